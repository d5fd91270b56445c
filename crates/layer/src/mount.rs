//! Makes a root: layers from their driver, overlayfs on top, all of it detached.

use std::os::fd::OwnedFd;
use std::path::Path;

use crate::Result;
use crate::rootfs::Rootfs;
use crate::store::LayerId;

/// A root that was made. Dropping it unmounts what nobody else uses.
#[derive(Debug)]
pub struct Mounted {
    /// The root, a detached mount (for move_mount(2), or as the directory to start from).
    pub root: OwnedFd,
    /// The layers' own mounts. Whoever keeps them, usually the monitor for the container's life,
    /// lends them to later starts of the same image, so that a layer has one page cache.
    pub held: Vec<HeldLayer>,
}

/// A layer that this process has open and, if it is a mount, lends to others.
#[derive(Debug)]
pub struct HeldLayer {
    /// Which layer.
    pub id: LayerId,
    /// Its root directory.
    pub directory: OwnedFd,
}

/// Makes the root that `rootfs` describes. Nothing appears in the mount table of the caller's
/// mount namespace, and dropping the result takes everything back.
///
/// Missing upper and work folders are made, the folders that they are in must exist. `run_root` is
/// where holders of layer mounts find each other.
///
/// # Errors
/// [`Error::Mount`](crate::Error::Mount) and the file operations' errors.
pub fn mount(rootfs: &Rootfs, run_root: &Path) -> Result<Mounted> {
    let _ = (rootfs, run_root);
    todo!()
}
