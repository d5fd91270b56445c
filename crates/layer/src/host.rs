//! `@host`: the machine's own programs as a root.
//!
//! Programs, libraries and configuration are read-only clones of the machine's mounts: an overlay
//! over a live tree is undefined when the machine is upgraded. Everything else is an empty tmpfs
//! that goes with the container. It is for use in a user namespace only: its files keep their
//! owners, none of which is an id of the namespace, so the container's root has no more right to
//! them than any stranger.

use std::ffi::OsStr;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use knarr_fs::{Inode, tree};
use knarr_sys::mount::{Attributes, Change, Propagation, mount_setattr};
use rustix::fs::{CWD, FileType, Mode};

use crate::rootfs::IdMap;
use crate::{Error, Mounted, Result, filesystem, private};

/// What of `/` is shown, beside everything that begins with `lib`.
const SHOWN: [&str; 7] = ["bin", "etc", "gnu", "nix", "opt", "sbin", "usr"];

/// The folders that a program expects to exist, and may write to.
const EMPTY: [(&str, u32); 18] = [
    ("dev", 0o755),
    ("home", 0o755),
    ("media", 0o755),
    ("mnt", 0o755),
    ("proc", 0o555),
    ("root", 0o700),
    ("run", 0o755),
    ("run/lock", 0o1777),
    ("srv", 0o755),
    ("sys", 0o555),
    ("tmp", 0o1777),
    ("var", 0o755),
    ("var/cache", 0o755),
    ("var/lib", 0o755),
    ("var/log", 0o755),
    ("var/mail", 0o755),
    ("var/spool", 0o755),
    ("var/tmp", 0o1777),
];

/// What messages call it.
const WHAT: &str = "the machine's own programs (@host)";

/// Something at the top of the machine's `/`.
enum Top {
    /// A folder, cloned with the mounts below it.
    Mount(PathBuf, OwnedFd),
    /// A symlink, such as `bin -> usr/bin`.
    Link(PathBuf, std::ffi::CString),
}

/// Makes the root, detached.
pub(crate) fn mount(idmap: Option<&IdMap>) -> Result<Mounted> {
    let owner = idmap.and_then(|map| Some((map.uid_outside(0)?, map.gid_outside(0)?)));
    let Some(owner) = owner.filter(|(uid, gid)| *uid != 0 && *gid != 0) else {
        return Err(Error::HostNeedsUserns);
    };
    let top = shown()?;
    let root = private::run(|| {
        const ROOT: &str = "root";
        let root = filesystem::tmpfs(None, "0755", owner)?;
        rustix::fs::mkdirat(CWD, ROOT, Mode::RWXU).map_err(filesystem::failed(&WHAT, "mkdirat"))?;
        filesystem::attach(root.as_fd(), CWD, Path::new(ROOT), &WHAT)?;
        let folder = |path: &Path, mode: u32| -> Result<()> {
            rustix::fs::mkdirat(&root, path, Mode::RWXU)
                .map_err(filesystem::failed(&WHAT, "mkdirat"))?;
            let inode = Inode::open_at(root.as_fd(), path.as_os_str(), path.to_owned())?;
            inode.set_owner(owner.0, owner.1)?;
            inode.set_mode(Mode::from_raw_mode(mode))?;
            Ok(())
        };
        for (path, mode) in EMPTY {
            folder(Path::new(path), mode)?;
        }
        for (link, target) in [("var/run", c"../run"), ("var/lock", c"../run/lock")] {
            rustix::fs::symlinkat(target, &root, link)
                .map_err(filesystem::failed(&WHAT, "symlinkat"))?;
        }
        for item in &top {
            match item {
                Top::Mount(name, mount) => {
                    folder(name, 0o755)?;
                    filesystem::attach(mount.as_fd(), root.as_fd(), name, &WHAT)?;
                }
                Top::Link(name, target) => {
                    rustix::fs::symlinkat(target.as_c_str(), &root, name)
                        .map_err(filesystem::failed(&WHAT, "symlinkat"))?;
                }
            }
        }
        filesystem::clone_path(Path::new(ROOT), true)
    })?;
    Ok(Mounted {
        root,
        held: Vec::new(),
    })
}

/// Clones what is shown, each read-only with all mounts below, without setuid or devices.
fn shown() -> Result<Vec<Top>> {
    let machine = tree::Tree::open(Path::new("/"))?;
    let directory = machine.directory(Path::new(""))?;
    let mut top = Vec::new();
    for name in tree::names(directory.as_fd(), Path::new("/"))? {
        if !is_shown(&name) {
            continue;
        }
        let path = Path::new("/").join(&name);
        let inode = Inode::open_at(directory.as_fd(), &name, path.clone())?;
        match FileType::from_raw_mode(inode.stat()?.st_mode) {
            FileType::Symlink => top.push(Top::Link(name.into(), inode.link_target()?)),
            FileType::Directory => {
                let mount = filesystem::clone_path(&path, true)?;
                let change = Change {
                    set: Attributes::RDONLY
                        .with(Attributes::NOSUID)
                        .with(Attributes::NODEV),
                    propagation: Propagation::Private,
                    recursive: true,
                    ..Change::default()
                };
                mount_setattr(&mount, c"", &change).map_err(|cause| Error::Mount {
                    what: format!("{} read-only", path.display()),
                    kernel: None,
                    cause,
                })?;
                top.push(Top::Mount(name.into(), mount));
            }
            _ => {}
        }
    }
    Ok(top)
}

fn is_shown(name: &OsStr) -> bool {
    name.as_bytes().starts_with(b"lib") || SHOWN.iter().any(|shown| name == *shown)
}
