//! Copying the image's content into a tmpfs that covers it (`tmpcopyup`).

use std::ffi::CStr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use knarr_fs::{Error, Result, Root};
use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, Timespec, Timestamps};

/// Copies everything in `from` into the directory `to`, with owners, modes and times. Devices and
/// sockets are left out.
pub(crate) fn tree(from: &Root, to: &OwnedFd) -> Result<()> {
    let shown = from.display(Path::new("/"));
    let dir = from.open(
        Path::new("/"),
        OFlags::RDONLY | OFlags::DIRECTORY,
        Mode::empty(),
    )?;
    let stat = rustix::fs::fstat(&dir).map_err(Error::of("stat", "fstat", &shown))?;
    let error = |errno| Error::of("copy", "openat", &shown)(errno);
    // A fresh mount's descriptor is O_PATH.
    let folder = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let to = &rustix::fs::openat(to, c".", folder, Mode::empty()).map_err(error)?;
    let error = |errno| Error::of("copy", "fchown", &shown)(errno);
    rustix::fs::fchmod(to, Mode::from_raw_mode(stat.st_mode & 0o7777)).map_err(error)?;
    rustix::fs::fchown(to, Some(uid(&stat)), Some(gid(&stat))).map_err(error)?;
    entries(dir, to.as_fd(), &shown)
}

fn uid(stat: &rustix::fs::Stat) -> rustix::fs::Uid {
    rustix::fs::Uid::from_raw(stat.st_uid)
}

fn gid(stat: &rustix::fs::Stat) -> rustix::fs::Gid {
    rustix::fs::Gid::from_raw(stat.st_gid)
}

/// Every step is from a handle and follows no link, so the image cannot lead it elsewhere.
fn entries(from: OwnedFd, to: BorrowedFd<'_>, shown: &Path) -> Result<()> {
    let error = |call| Error::of("copy", call, shown);
    let listing = Dir::read_from(&from).map_err(error("getdents"))?;
    for entry in listing {
        let entry = entry.map_err(error("getdents"))?;
        let name = entry.file_name();
        if name != c"." && name != c".." {
            one(from.as_fd(), to, name, shown)?;
        }
    }
    Ok(())
}

fn one(from: BorrowedFd<'_>, to: BorrowedFd<'_>, name: &CStr, shown: &Path) -> Result<()> {
    let error = |call| Error::of("copy", call, shown);
    let stat = rustix::fs::statat(from, name, AtFlags::SYMLINK_NOFOLLOW).map_err(error("stat"))?;
    let mode = Mode::from_raw_mode(stat.st_mode & 0o7777);
    let read = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NONBLOCK;
    match FileType::from_raw_mode(stat.st_mode) {
        FileType::Directory => {
            rustix::fs::mkdirat(to, name, Mode::RWXU).map_err(error("mkdirat"))?;
            let folder = read | OFlags::DIRECTORY;
            let inner_from =
                rustix::fs::openat(from, name, folder, Mode::empty()).map_err(error("openat"))?;
            let inner_to =
                rustix::fs::openat(to, name, folder, Mode::empty()).map_err(error("openat"))?;
            entries(inner_from, inner_to.as_fd(), shown)?;
        }
        FileType::RegularFile => {
            let source =
                rustix::fs::openat(from, name, read, Mode::empty()).map_err(error("openat"))?;
            let create = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
            let target = rustix::fs::openat(to, name, create, Mode::RUSR | Mode::WUSR)
                .map_err(error("openat"))?;
            std::io::copy(
                &mut std::fs::File::from(source),
                &mut std::fs::File::from(target),
            )
            .map_err(Error::of_io("copy", "write", shown))?;
        }
        FileType::Symlink => {
            let text =
                rustix::fs::readlinkat(from, name, Vec::new()).map_err(error("readlinkat"))?;
            rustix::fs::symlinkat(text, to, name).map_err(error("symlinkat"))?;
        }
        FileType::Fifo => {
            rustix::fs::mknodat(to, name, FileType::Fifo, Mode::RWXU, 0)
                .map_err(error("mknodat"))?;
        }
        _ => return Ok(()),
    }
    rustix::fs::chownat(
        to,
        name,
        Some(uid(&stat)),
        Some(gid(&stat)),
        AtFlags::SYMLINK_NOFOLLOW,
    )
    .map_err(error("fchownat"))?;
    // A change of owner drops set-id bits, so the mode comes last; a link has none. Nobody else sees
    // the target yet, so its name can be followed.
    if FileType::from_raw_mode(stat.st_mode) != FileType::Symlink {
        rustix::fs::chmodat(to, name, mode, AtFlags::empty()).map_err(error("fchmodat"))?;
    }
    let times = Timestamps {
        last_access: Timespec {
            tv_sec: stat.st_atime,
            tv_nsec: nanoseconds(stat.st_atime_nsec),
        },
        last_modification: Timespec {
            tv_sec: stat.st_mtime,
            tv_nsec: nanoseconds(stat.st_mtime_nsec),
        },
    };
    rustix::fs::utimensat(to, name, &times, AtFlags::SYMLINK_NOFOLLOW).map_err(error("utimensat"))
}

fn nanoseconds(count: u64) -> i64 {
    i64::try_from(count).unwrap_or_default()
}
