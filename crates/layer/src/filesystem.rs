//! File system contexts (fsopen(2)): a superblock by descriptors, with the kernel's own words where
//! it refuses.

use std::fmt::Display;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;

use knarr_sys::Failure;
use rustix::fs::{AtFlags, CWD};
use rustix::io::Errno;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MoveMountFlags, OpenTreeFlags, fsconfig_create,
    fsconfig_set_fd, fsconfig_set_flag, fsconfig_set_string, fsmount, fsopen, move_mount,
    open_tree,
};

use crate::{Error, Result};

/// A file system that is being put together.
#[derive(Debug)]
pub(crate) struct Context {
    fd: OwnedFd,
    /// What it will be, for messages.
    what: String,
}

impl Context {
    pub(crate) fn new(kind: &str, what: impl Display) -> Result<Self> {
        let what = what.to_string();
        match fsopen(kind, FsOpenFlags::FSOPEN_CLOEXEC) {
            Ok(fd) => Ok(Self { fd, what }),
            Err(errno) => Err(Error::Mount {
                what,
                kernel: (errno == Errno::NODEV).then(|| format!("no file system `{kind}`")),
                cause: Failure {
                    call: "fsopen",
                    errno,
                },
            }),
        }
    }

    fn fail(&self, call: &'static str) -> impl Fn(Errno) -> Error + '_ {
        move |errno| Error::Mount {
            what: self.what.clone(),
            kernel: self.messages(),
            cause: Failure { call, errno },
        }
    }

    /// What the kernel wrote into the context's log, without the severity ("e ").
    fn messages(&self) -> Option<String> {
        let mut lines = Vec::new();
        let mut buffer = [0u8; 512];
        while let Ok(length) = rustix::io::read(&self.fd, &mut buffer) {
            let line = String::from_utf8_lossy(buffer.get(..length).unwrap_or_default());
            let line = line.trim_end();
            let line = line.get(2..).unwrap_or(line);
            if line.is_empty() {
                break;
            }
            lines.push(line.to_owned());
        }
        (!lines.is_empty()).then(|| lines.join("; "))
    }

    /// Sets an option of at most 255 bytes.
    pub(crate) fn string(&self, key: &str, value: &str) -> Result<()> {
        fsconfig_set_string(&self.fd, key, value).map_err(self.fail("fsconfig"))
    }

    pub(crate) fn flag(&self, key: &str) -> Result<()> {
        fsconfig_set_flag(&self.fd, key).map_err(self.fail("fsconfig"))
    }

    /// Sets an option to an open directory; O_PATH will do.
    pub(crate) fn directory(&self, key: &str, directory: BorrowedFd<'_>) -> Result<()> {
        fsconfig_set_fd(&self.fd, key, directory).map_err(self.fail("fsconfig"))
    }

    /// Makes the superblock and a detached mount of it.
    pub(crate) fn mount(self, attributes: MountAttrFlags) -> Result<OwnedFd> {
        fsconfig_create(&self.fd).map_err(self.fail("fsconfig"))?;
        fsmount(&self.fd, FsMountFlags::FSMOUNT_CLOEXEC, attributes).map_err(self.fail("fsmount"))
    }
}

/// An empty read-only tmpfs, detached: what `scratch` is made of. Its root belongs to `owner`.
pub(crate) fn empty(owner: (u32, u32)) -> Result<OwnedFd> {
    let context = Context::new("tmpfs", "an empty file system")?;
    context.string("mode", "0755")?;
    context.string("uid", &owner.0.to_string())?;
    context.string("gid", &owner.1.to_string())?;
    context.string("nr_inodes", "1")?;
    context.mount(MountAttrFlags::MOUNT_ATTR_RDONLY)
}

/// A tmpfs of at most `size` bytes, detached.
pub(crate) fn tmpfs(size: Option<u64>, mode: &str, owner: (u32, u32)) -> Result<OwnedFd> {
    let context = Context::new("tmpfs", "a tmpfs")?;
    context.string("mode", mode)?;
    context.string("uid", &owner.0.to_string())?;
    context.string("gid", &owner.1.to_string())?;
    if let Some(size) = size {
        context.string("size", &size.to_string())?;
    }
    context.mount(MountAttrFlags::empty())
}

/// A detached clone of the mount or directory behind `directory` (open_tree(2)).
pub(crate) fn clone(directory: BorrowedFd<'_>, what: &dyn Display) -> Result<OwnedFd> {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE
        | OpenTreeFlags::OPEN_TREE_CLOEXEC
        | OpenTreeFlags::AT_EMPTY_PATH;
    open_tree(directory, "", flags).map_err(failed(what, "open_tree"))
}

/// A detached clone of what is at one of Knarr's own or the machine's paths.
pub(crate) fn clone_path(path: &Path, recursive: bool) -> Result<OwnedFd> {
    let mut flags = OpenTreeFlags::OPEN_TREE_CLONE
        | OpenTreeFlags::OPEN_TREE_CLOEXEC
        | OpenTreeFlags::AT_SYMLINK_NOFOLLOW;
    if recursive {
        flags |= OpenTreeFlags::AT_RECURSIVE;
    }
    open_tree(CWD, path, flags).map_err(failed(&path.display(), "open_tree"))
}

/// Attaches a detached mount to the directory `name` in `parent`.
pub(crate) fn attach(
    mount: BorrowedFd<'_>,
    parent: BorrowedFd<'_>,
    name: &Path,
    what: &dyn Display,
) -> Result<()> {
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH;
    move_mount(mount, "", parent, name, flags).map_err(failed(what, "move_mount"))
}

/// For `map_err`: a mount of `what` failed in `call`.
pub(crate) fn failed<'a>(
    what: &'a dyn Display,
    call: &'static str,
) -> impl Fn(Errno) -> Error + 'a {
    move |errno| Error::Mount {
        what: what.to_string(),
        kernel: None,
        cause: Failure { call, errno },
    }
}

/// A path that leads to an open file, for options that only take paths, of at most 255 bytes.
pub(crate) fn path_of<Fd: AsFd>(file: Fd) -> String {
    format!("/proc/self/fd/{}", file.as_fd().as_raw_fd())
}

/// The device number of the file system behind an open directory, as `stat` shows it.
pub(crate) fn device(directory: BorrowedFd<'_>, what: &dyn Display) -> Result<u64> {
    rustix::fs::statat(directory, "", AtFlags::EMPTY_PATH)
        .map(|stat| stat.st_dev)
        .map_err(failed(what, "fstatat"))
}
