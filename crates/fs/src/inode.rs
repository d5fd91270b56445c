//! One file of any kind, held by a descriptor: what it is and all its metadata.

use std::ffi::{CString, OsStr};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, FileType, Gid, Mode, OFlags, Stat, Timestamps, Uid, XattrFlags};
use rustix::io::Errno;

use crate::{Error, Result};

/// A file, directory, symlink, device, … that was found once and stays the same, whatever happens
/// to its name. Nothing here follows a symlink, opens a device or waits for a FIFO.
#[derive(Debug)]
pub struct Inode {
    /// O_PATH, so that having it has no effect.
    fd: OwnedFd,
    /// For messages only.
    shown: PathBuf,
}

/// Access and modification times as utimensat(2) takes them.
pub type Times = Timestamps;

impl Inode {
    /// What `name` is in the directory `parent`; `shown` is how messages call it. A name, not a
    /// path: one component, not followed if it is a symlink.
    ///
    /// # Errors
    /// As openat(2).
    pub fn open_at(parent: BorrowedFd<'_>, name: &OsStr, shown: PathBuf) -> Result<Self> {
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        match rustix::fs::openat(parent, name, flags, Mode::empty()) {
            Ok(fd) => Ok(Self { fd, shown }),
            Err(errno) => Err(Error::of("open", "openat", &shown)(errno)),
        }
    }

    /// Wraps a descriptor, O_PATH or not.
    pub fn from_fd(fd: OwnedFd, shown: impl Into<PathBuf>) -> Self {
        Self {
            fd,
            shown: shown.into(),
        }
    }

    /// How messages call it.
    pub fn shown(&self) -> &Path {
        &self.shown
    }

    /// The magic link to it: the only way to some calls for an O_PATH descriptor. Following it ends
    /// at this very inode, a symlink's too.
    fn link(&self) -> String {
        format!("/proc/self/fd/{}", self.fd.as_raw_fd())
    }

    /// What it is.
    ///
    /// # Errors
    /// As fstat(2).
    pub fn stat(&self) -> Result<Stat> {
        rustix::fs::fstat(&self.fd).map_err(Error::of("stat", "fstat", &self.shown))
    }

    /// Opens a regular file or directory for reading or writing. Anything else is refused before
    /// opening it could have an effect.
    ///
    /// # Errors
    /// As open(2); [`Error::NotRegular`].
    pub fn reopen(&self, flags: OFlags) -> Result<OwnedFd> {
        match FileType::from_raw_mode(self.stat()?.st_mode) {
            FileType::RegularFile | FileType::Directory => {
                rustix::fs::open(self.link(), flags | OFlags::CLOEXEC, Mode::empty())
                    .map_err(Error::of("open", "open", &self.shown))
            }
            _ => Err(Error::NotRegular {
                path: self.shown.clone(),
            }),
        }
    }

    /// What a symlink says.
    ///
    /// # Errors
    /// As readlinkat(2).
    pub fn link_target(&self) -> Result<CString> {
        rustix::fs::readlinkat(&self.fd, "", Vec::new()).map_err(Error::of(
            "read the link",
            "readlinkat",
            &self.shown,
        ))
    }

    /// Its extended attributes that `keep` wants, by full name. None on a file system without.
    ///
    /// # Errors
    /// As listxattr(2) and getxattr(2).
    pub fn xattrs(&self, keep: impl Fn(&[u8]) -> bool) -> Result<Vec<(CString, Vec<u8>)>> {
        let link = self.link();
        let list = match grow(|buffer| rustix::fs::listxattr(&link, buffer)) {
            Ok(list) => list,
            Err(Errno::OPNOTSUPP) => return Ok(Vec::new()),
            Err(errno) => {
                return Err(Error::of(
                    "list the attributes of",
                    "listxattr",
                    &self.shown,
                )(errno));
            }
        };
        let mut found = Vec::new();
        for name in list.split(|byte| *byte == 0) {
            if name.is_empty() || !keep(name) {
                continue;
            }
            let Ok(name) = CString::new(name) else {
                continue;
            };
            match grow(|buffer| rustix::fs::getxattr(&link, name.as_c_str(), buffer)) {
                Ok(value) => found.push((name, value)),
                // Removed meanwhile, or one that only shows in the list.
                Err(Errno::NODATA | Errno::OPNOTSUPP) => {}
                Err(errno) => {
                    return Err(Error::of("read an attribute of", "getxattr", &self.shown)(
                        errno,
                    ));
                }
            }
        }
        Ok(found)
    }

    /// Sets an extended attribute by full name.
    ///
    /// # Errors
    /// As setxattr(2): EOPNOTSUPP where the file system has no such attributes.
    pub fn set_xattr(&self, name: &std::ffi::CStr, value: &[u8]) -> Result<()> {
        rustix::fs::setxattr(self.link(), name, value, XattrFlags::empty()).map_err(Error::of(
            "set an attribute of",
            "setxattr",
            &self.shown,
        ))
    }

    /// Changes owner and group; clears setuid, setgid and file capabilities of a file.
    ///
    /// # Errors
    /// As fchownat(2).
    pub fn set_owner(&self, uid: u32, gid: u32) -> Result<()> {
        let (uid, gid) = (Uid::from_raw(uid), Gid::from_raw(gid));
        rustix::fs::chownat(&self.fd, "", Some(uid), Some(gid), AtFlags::EMPTY_PATH)
            .map_err(Error::of("change the owner of", "fchownat", &self.shown))
    }

    /// Changes the mode (`& 0o7777`). Symlinks have none.
    ///
    /// # Errors
    /// As chmod(2).
    pub fn set_mode(&self, mode: Mode) -> Result<()> {
        rustix::fs::chmod(self.link(), mode).map_err(Error::of(
            "change the mode of",
            "chmod",
            &self.shown,
        ))
    }

    /// Sets the times.
    ///
    /// # Errors
    /// As utimensat(2).
    pub fn set_times(&self, times: &Times) -> Result<()> {
        rustix::fs::utimensat(CWD, self.link(), times, AtFlags::empty()).map_err(Error::of(
            "set the times of",
            "utimensat",
            &self.shown,
        ))
    }

    /// Gives it one more name.
    ///
    /// # Errors
    /// As linkat(2).
    pub fn hardlink(&self, parent: BorrowedFd<'_>, name: &OsStr) -> Result<()> {
        rustix::fs::linkat(CWD, self.link(), parent, name, AtFlags::SYMLINK_FOLLOW)
            .map_err(Error::of("make a hardlink to", "linkat", &self.shown))
    }

    /// Gives it everything that `from` has beside its contents: owner, the extended attributes that
    /// `keep` wants, mode, times. In this order, as each undoes some of the next.
    ///
    /// # Errors
    /// Where a call fails; attributes that the file system does not have are left out.
    pub fn copy_metadata(&self, from: &Self, keep: impl Fn(&[u8]) -> bool) -> Result<()> {
        let stat = from.stat()?;
        self.set_owner(stat.st_uid, stat.st_gid)?;
        for (name, value) in from.xattrs(keep)? {
            match self.set_xattr(&name, &value) {
                Err(error) if error.errno() == Some(Errno::OPNOTSUPP) => {}
                done => done?,
            }
        }
        if FileType::from_raw_mode(stat.st_mode) != FileType::Symlink {
            self.set_mode(Mode::from_raw_mode(stat.st_mode & 0o7777))?;
        }
        self.set_times(&times_of(&stat))
    }
}

impl AsFd for Inode {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// The access and modification time that a `stat` shows.
pub fn times_of(stat: &Stat) -> Times {
    let time = |seconds, nanoseconds: u64| rustix::fs::Timespec {
        tv_sec: seconds,
        tv_nsec: nanoseconds.try_into().unwrap_or(0),
    };
    Times {
        last_access: time(stat.st_atime, stat.st_atime_nsec),
        last_modification: time(stat.st_mtime, stat.st_mtime_nsec),
    }
}

/// Calls again with a larger buffer while the answer does not fit: 64 KiB is the most there is.
fn grow(call: impl Fn(&mut [u8]) -> rustix::io::Result<usize>) -> rustix::io::Result<Vec<u8>> {
    let mut buffer = vec![0; 256];
    loop {
        match call(&mut buffer) {
            Ok(length) => {
                buffer.truncate(length);
                return Ok(buffer);
            }
            Err(Errno::RANGE) if buffer.len() < 1 << 16 => buffer.resize(1 << 16, 0),
            Err(errno) => return Err(errno),
        }
    }
}
