//! Drivers: how a layer in the store becomes a directory that can be stacked.

mod erofs;
mod overlay;
mod probe;

use std::fmt;
use std::path::Path;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::Result;
use crate::holder::Keeping;
use crate::mount::HeldLayer;
use crate::rootfs::LayerPaths;
use crate::store::{LayerId, Store};

/// A way to mount layers. [`Driver::choose`] picks the best that this machine has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Driver {
    /// EROFS straight from the layer's files; everything by file descriptor.
    Erofs,
    /// The same, stacked by path inside a private mount namespace (kernels whose overlayfs takes
    /// no detached mounts).
    ErofsPath,
    /// EROFS through loop devices (kernels before 6.12), stacked by descriptor.
    ErofsLoop,
    /// EROFS through loop devices, stacked by path.
    ErofsLoopPath,
    /// Unpacked trees, stacked by descriptor.
    Overlay,
    /// Unpacked trees, stacked by path.
    OverlayPath,
}

impl Driver {
    /// All of them, the best first.
    pub const ALL: [Self; 6] = [
        Self::Erofs,
        Self::ErofsPath,
        Self::ErofsLoop,
        Self::ErofsLoopPath,
        Self::Overlay,
        Self::OverlayPath,
    ];

    /// Its name, for `KNARR_DRIVER` and messages.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Erofs => "erofs",
            Self::ErofsPath => "erofs-path",
            Self::ErofsLoop => "erofs-loop",
            Self::ErofsLoopPath => "erofs-loop-path",
            Self::Overlay => "overlay",
            Self::OverlayPath => "overlay-path",
        }
    }

    /// What `KNARR_DRIVER` says, else the first of [`Driver::ALL`] that works for layers below
    /// `data_root`. It is tried with a tiny image, once per boot: the answer is kept in `run_root`.
    ///
    /// # Errors
    /// [`Error::NoDriver`](crate::Error::NoDriver) where none works,
    /// [`Error::UnknownDriver`](crate::Error::UnknownDriver) for a wrong `KNARR_DRIVER`.
    pub fn choose(data_root: &Path, run_root: &Path) -> Result<Self> {
        match std::env::var("KNARR_DRIVER") {
            Ok(name) if !name.is_empty() => name.parse().map_err(crate::Error::UnknownDriver),
            _ => probe::choose(data_root, run_root),
        }
    }

    /// The driver's code.
    pub fn snapshotter(self) -> &'static dyn Snapshotter {
        use erofs::{Backing, Erofs};
        match self {
            Self::Erofs => &Erofs {
                backing: Backing::Files,
                keeping: Keeping::Mount,
            },
            Self::ErofsPath => &Erofs {
                backing: Backing::Files,
                keeping: Keeping::Namespace,
            },
            Self::ErofsLoop => &Erofs {
                backing: Backing::Loop,
                keeping: Keeping::Mount,
            },
            Self::ErofsLoopPath => &Erofs {
                backing: Backing::Loop,
                keeping: Keeping::Namespace,
            },
            Self::Overlay | Self::OverlayPath => &overlay::Overlay,
        }
    }

    /// How its layers are stacked.
    pub(crate) const fn stacking(self) -> Stacking {
        match self {
            Self::Erofs | Self::ErofsLoop | Self::Overlay => Stacking::Descriptors,
            Self::ErofsPath | Self::ErofsLoopPath | Self::OverlayPath => Stacking::Paths,
        }
    }
}

/// How overlayfs is given its layers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stacking {
    /// By descriptors of detached mounts.
    Descriptors,
    /// By paths inside a private mount namespace.
    Paths,
}

impl fmt::Display for Driver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// The name of no driver.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("there is no layer driver `{0}`")]
pub struct NoSuchDriver(pub String);

impl FromStr for Driver {
    type Err = NoSuchDriver;

    fn from_str(name: &str) -> std::result::Result<Self, NoSuchDriver> {
        Self::ALL
            .into_iter()
            .find(|driver| driver.name() == name)
            .ok_or_else(|| NoSuchDriver(name.to_owned()))
    }
}

/// What a driver does with layers. All drivers show the same tree, bit for bit; one contract suite
/// (`tests/drivers`) holds them to it.
///
/// A layer as a directory is in overlayfs' form: whiteouts are character devices 0:0, opaque
/// folders carry `trusted.overlay.opaque=y`.
pub trait Snapshotter: fmt::Debug + Send + Sync {
    /// Makes what mounting needs beside the layer's tar and index, once; idempotent, and safe
    /// against others doing the same.
    ///
    /// # Errors
    /// Where the layer is missing or damaged or its tree cannot be written.
    fn prepare(&self, store: &Store, id: &LayerId) -> Result<()>;

    /// Layers as directories, in the order given: detached read-only mounts or, for trees, the
    /// open folders.
    ///
    /// # Errors
    /// [`Error::Mount`](crate::Error::Mount) where the kernel refuses,
    /// [`Error::NotPrepared`](crate::Error::NotPrepared) without [`prepare`](Self::prepare).
    fn open(&self, layers: &[LayerPaths], run_root: &Path) -> Result<Vec<HeldLayer>>;
}
