//! Copies between a root and a folder of the host's.

use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;

use knarr_fs::{Root, tree};
use rustix::fs::{Mode, OFlags};

use crate::Result;

/// Fills an empty volume with what the image has where it will be mounted, the folder's own owner,
/// mode and attributes included: everything is preserved, and no symlink leads out of the root.
/// Says whether it copied: not where the volume has something in it, or the image no folder there.
///
/// `root` is a mounted root ([`Mounted::root`](crate::Mounted::root)), `inside` a path in it,
/// `volume` a folder of Knarr's own.
///
/// # Errors
/// As the file operations it takes. A copy that failed half-way is removed again.
pub fn copy_up(root: BorrowedFd<'_>, inside: &Path, volume: &Path) -> Result<bool> {
    let to = tree::Tree::open(volume)?;
    let directory = to.directory(Path::new(""))?;
    if !tree::names(directory.as_fd(), volume)?.is_empty() {
        return Ok(false);
    }
    let own = root
        .try_clone_to_owned()
        .map_err(knarr_fs::Error::of_io("open", "fcntl", inside))?;
    let root = Root::from_fd(own, "/");
    let flags = OFlags::RDONLY | OFlags::DIRECTORY;
    let from = match root.open(inside, flags, Mode::empty()) {
        Ok(from) => from,
        Err(error)
            if matches!(
                error.errno(),
                Some(rustix::io::Errno::NOENT | rustix::io::Errno::NOTDIR)
            ) =>
        {
            return Ok(false);
        }
        Err(error) => return Err(error.into()),
    };
    let from = tree::Tree::from_fd(from, inside);
    if let Err(error) = from.copy_to(&to, tree::is_portable_xattr) {
        for name in tree::names(directory.as_fd(), volume)? {
            tree::remove(directory.as_fd(), &name, &volume.join(&name))?;
        }
        return Err(error.into());
    }
    Ok(true)
}
