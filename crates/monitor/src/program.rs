//! The monitor's own program: found by who spawns it, read-only for who it watches.

use std::os::fd::OwnedFd;
use std::path::Path;

use knarr_sys::Failure;
use knarr_sys::mount::{Attributes, Change};
use rustix::fs::{CWD, Mode, OFlags};
use rustix::mount::OpenTreeFlags;

/// Opens a program on a detached read-only clone of its mount, so that nobody who gets hold of
/// `/proc/PID/exe` can open it for writing (CVE-2019-5736). Without the right to do so, as it is.
pub(crate) fn open_read_only(path: &Path) -> Result<OwnedFd, Failure> {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    let Ok(tree) = rustix::mount::open_tree(CWD, path, flags) else {
        return rustix::fs::open(path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())
            .map_err(Failure::of("open"));
    };
    let change = Change {
        set: Attributes::RDONLY,
        ..Change::default()
    };
    knarr_sys::mount::mount_setattr(&tree, c"", &change)?;
    Ok(tree)
}
