//! Control files: short texts, read and written in one go.

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use knarr_sys::Failure;
use knarr_sys::rustix::fs::{self, AtFlags, CWD, Mode, OFlags};
use knarr_sys::rustix::io::{self, Errno};
use knarr_sys::rustix::process::Pid;

use crate::{Error, Result};

/// The whole of a control file (or of a file in `/proc`).
pub(crate) fn read(path: &Path) -> Result<String> {
    let failed = |call| {
        move |errno| Error::Read {
            path: path.to_owned(),
            cause: Failure { call, errno },
        }
    };
    let file =
        fs::open(path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()).map_err(failed("open"))?;
    let mut bytes = vec![0; 4096];
    let mut length = 0;
    loop {
        let space = bytes.get_mut(length..).unwrap_or_default();
        match io::read(&file, space) {
            Ok(0) => break,
            Ok(count) => length += count,
            Err(Errno::INTR) => {}
            Err(errno) => return Err(failed("read")(errno)),
        }
        if length == bytes.len() {
            bytes.resize(length * 2, 0);
        }
    }
    bytes.truncate(length);
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// Like [`read`], `None` when the file (or the cgroup) is not there.
pub(crate) fn try_read(path: &Path) -> Result<Option<String>> {
    match read(path) {
        Ok(text) => Ok(Some(text)),
        Err(Error::Read { cause, .. }) if is_gone(cause.errno) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Whether the errno of a read means that the cgroup or the file does not exist (any more).
pub(crate) fn is_gone(errno: Errno) -> bool {
    matches!(errno, Errno::NOENT | Errno::NODEV)
}

/// Writes `value` in one call, as control files want it.
pub(crate) fn write(path: &Path, value: &str) -> Result<()> {
    write_raw(path, value).map_err(|cause| Error::Write {
        path: path.to_owned(),
        value: value.to_owned(),
        cause,
    })
}

/// [`write`] for callers with an error of their own.
pub(crate) fn write_raw(path: &Path, value: &str) -> std::result::Result<(), Failure> {
    let file = fs::open(path, OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty())
        .map_err(Failure::of("open"))?;
    io::retry_on_intr(|| io::write(&file, value.as_bytes()))
        .map(drop)
        .map_err(Failure::of("write"))
}

/// Makes one directory; `false` when it is there already.
pub(crate) fn make_dir(path: &Path) -> std::result::Result<bool, Failure> {
    match fs::mkdir(path, Mode::from_raw_mode(0o755)) {
        Ok(()) => Ok(true),
        Err(Errno::EXIST) => Ok(false),
        Err(errno) => Err(Failure {
            call: "mkdir",
            errno,
        }),
    }
}

/// Opens a cgroup directory, for `CLONE_INTO_CGROUP` and bpf(2).
pub(crate) fn open_dir(path: &Path) -> Result<OwnedFd> {
    fs::open(
        path,
        OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC,
        Mode::empty(),
    )
    .map_err(|errno| Error::Open {
        path: path.to_owned(),
        cause: Failure {
            call: "open",
            errno,
        },
    })
}

/// Whether something is there.
pub(crate) fn exists(path: &Path) -> bool {
    fs::accessat(CWD, path, fs::Access::EXISTS, AtFlags::empty()).is_ok()
}

/// Whether the caller may write to it.
pub(crate) fn is_writable(path: &Path) -> bool {
    fs::accessat(CWD, path, fs::Access::WRITE_OK, AtFlags::EACCESS).is_ok()
}

/// The child cgroups of a cgroup; none when it is gone.
pub(crate) fn children(path: &Path) -> Result<Vec<PathBuf>> {
    let failed = |call| {
        move |errno| Error::Read {
            path: path.to_owned(),
            cause: Failure { call, errno },
        }
    };
    let dir = match fs::open(
        path,
        OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC,
        Mode::empty(),
    ) {
        Ok(dir) => dir,
        Err(errno) if is_gone(errno) => return Ok(Vec::new()),
        Err(errno) => return Err(failed("open")(errno)),
    };
    let mut names = Vec::new();
    for entry in fs::Dir::read_from(&dir).map_err(failed("getdents64"))? {
        let entry = match entry {
            Ok(entry) => entry,
            Err(errno) if is_gone(errno) => break,
            Err(errno) => return Err(failed("getdents64")(errno)),
        };
        let name = entry.file_name().to_bytes();
        if entry.file_type() == fs::FileType::Directory && name != b"." && name != b".." {
            use std::os::unix::ffi::OsStrExt as _;
            names.push(path.join(std::ffi::OsStr::from_bytes(name)));
        }
    }
    Ok(names)
}

/// The ids in `file` (`cgroup.procs`, `cgroup.threads`) of a cgroup and all below it.
pub(crate) fn ids_below(path: &Path, file: &str, into: &mut Vec<Pid>) -> Result<()> {
    match read(&path.join(file)) {
        Ok(text) => {
            into.extend(
                text.lines()
                    .filter_map(|line| Pid::from_raw(line.parse().ok()?)),
            );
        }
        // A threaded child of a v2 cgroup shows its processes in the parent's file.
        Err(Error::Read { cause, .. })
            if is_gone(cause.errno) || cause.errno == Errno::OPNOTSUPP => {}
        Err(error) => return Err(error),
    }
    children(path)?
        .iter()
        .try_for_each(|child| ids_below(child, file, into))
}

/// A flat keyed file (`memory.stat` and the like).
pub(crate) fn keyed(text: &str) -> BTreeMap<&str, u64> {
    text.lines()
        .filter_map(|line| {
            let (key, value) = line.split_once(' ')?;
            Some((key, value.trim().parse().ok()?))
        })
        .collect()
}
