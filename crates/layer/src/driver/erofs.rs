//! The `erofs` drivers: the kernel mounts a layer's index with the tar as its extra device.

use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use knarr_sys::loopdev::LoopDevice;
use rustix::mount::MountAttrFlags;

use super::Snapshotter;
use crate::filesystem::{self, Context};
use crate::holder::{self, Keeping, Process};
use crate::mount::HeldLayer;
use crate::rootfs::LayerPaths;
use crate::store::{self, LayerId, Store};
use crate::{Error, Result};

/// How the kernel reads the layer's files.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Backing {
    /// Straight (Linux 6.12, `CONFIG_EROFS_FS_BACKED_BY_FILE`).
    Files,
    /// Through loop devices.
    Loop,
}

/// Mounts layers as EROFS.
#[derive(Debug)]
pub(super) struct Erofs {
    pub(super) backing: Backing,
    pub(super) keeping: Keeping,
}

impl Snapshotter for Erofs {
    fn prepare(&self, _store: &Store, _id: &LayerId) -> Result<()> {
        Ok(())
    }

    fn open(&self, layers: &[LayerPaths], run_root: &Path) -> Result<Vec<HeldLayer>> {
        let process = Process::current()?;
        let open = |layer: &LayerPaths| {
            let make = || mount(layer, self.backing);
            let held = holder::acquire(&layer.id, run_root, self.keeping, process, make)?;
            Ok(HeldLayer::mounted(layer.id, held))
        };
        layers.iter().map(open).collect()
    }
}

/// A new superblock of the layer, as a detached mount.
fn mount(layer: &LayerPaths, backing: Backing) -> Result<OwnedFd> {
    let index = layer.folder.join(store::INDEX);
    let tar = layer.folder.join(store::TAR);
    let files = [knarr_fs::open_read(&index), knarr_fs::open_read(&tar)];
    let [index_file, tar_file] = match files {
        [Ok(index), Ok(tar)] => [index, tar],
        [Err(error), _] | [_, Err(error)] if error.is_not_found() => {
            return Err(Error::NotFound(layer.id));
        }
        [Err(error), _] | [_, Err(error)] => return Err(error.into()),
    };
    let context = Context::new("erofs", format_args!("layer {}", layer.id))?;
    // A read-only device is refused (EACCES) unless it is said.
    context.flag("ro")?;
    match backing {
        Backing::Files => {
            // The real path shows in mountinfo and in /proc/PID/maps; a long one does not fit.
            let option = |path: &Path, file: &OwnedFd| match path.to_str() {
                Some(path) if path.len() < 256 => path.to_owned(),
                _ => filesystem::path_of(file),
            };
            context.string("source", &option(&index, &index_file))?;
            context.string("device", &option(&tar, &tar_file))?;
            context.mount(MountAttrFlags::MOUNT_ATTR_RDONLY)
        }
        Backing::Loop => {
            let attach = |file: &OwnedFd| {
                LoopDevice::attach(file.as_fd()).map_err(|cause| Error::Mount {
                    what: format!("layer {}", layer.id),
                    kernel: None,
                    cause,
                })
            };
            // The mount keeps them once it is there; until then, and if it fails, these do.
            let (index, tar) = (attach(&index_file)?, attach(&tar_file)?);
            context.string("source", &index.path())?;
            context.string("device", &tar.path())?;
            context.mount(MountAttrFlags::MOUNT_ATTR_RDONLY)
        }
    }
}
