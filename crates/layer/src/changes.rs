//! What a container changed: its upper folder against the layers.

use std::path::{Path, PathBuf};

use crate::Result;
use crate::rootfs::Rootfs;

/// How a path differs from the image.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ChangeKind {
    /// There, but not in the image (`A`).
    Added,
    /// In both, and written to (`C`).
    Changed,
    /// In the image only (`D`).
    Deleted,
}

/// One line of `docker diff`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Change {
    /// The path in the container, absolute.
    pub path: PathBuf,
    /// What happened to it.
    pub kind: ChangeKind,
}

/// What the container that `rootfs` belongs to changed, sorted by path, parents first. Works while
/// it runs and after.
///
/// # Errors
/// As [`mount`](crate::mount) for the layers, and the errors of reading the upper folder.
pub fn changes(rootfs: &Rootfs, run_root: &Path) -> Result<Vec<Change>> {
    let _ = (rootfs, run_root);
    todo!()
}
