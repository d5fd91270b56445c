//! Everything the child will need, made before it exists: C strings, flags, buffers, descriptors.

mod program;
mod tree;

use std::ffi::CString;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::Path;

use knarr_sys::Failure;
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

pub(crate) use self::program::{Prepared, candidates, process};
pub(crate) use self::tree::{Device, DeviceSource, Mount, Source, Tree, propagation, tree};
use crate::{Error, Result};

pub(crate) fn c_string(field: &str, text: &str) -> Result<CString> {
    CString::new(text).map_err(|_| Error::Nul {
        field: field.to_owned(),
    })
}

/// A path in the container, and what it takes to make it where it is missing.
#[derive(Debug)]
pub(crate) struct Place {
    pub(crate) path: CString,
    /// Each directory on the way and at last the path itself, with its last name.
    pub(crate) steps: Vec<(CString, CString)>,
}

impl Place {
    /// `path` is absolute; `.` and `..` in it are taken as written.
    pub(crate) fn new(field: &str, path: &str) -> Result<Self> {
        let mut names: Vec<&str> = Vec::new();
        for name in path.split('/') {
            match name {
                "" | "." => {}
                ".." => {
                    names.pop();
                }
                name => names.push(name),
            }
        }
        let mut steps = Vec::with_capacity(names.len());
        let mut prefix = String::with_capacity(path.len());
        for name in names {
            prefix.push('/');
            prefix.push_str(name);
            steps.push((c_string(field, &prefix)?, c_string(field, name)?));
        }
        let path = if prefix.is_empty() { "/" } else { &prefix };
        Ok(Self {
            path: c_string(field, path)?,
            steps,
        })
    }
}

/// In the form of user_namespaces(7).
pub(crate) fn map_lines(ranges: &[crate::IdRange]) -> String {
    ranges
        .iter()
        .map(|range| format!("{} {} {}\n", range.container, range.host, range.size))
        .collect()
}

fn need_selinux(field: &str) -> Result<()> {
    if Path::new("/sys/fs/selinux/enforce").exists() {
        return Ok(());
    }
    Err(Error::Config {
        field: field.to_owned(),
        reason: "selinux label is specified in config, but selinux is disabled or not supported"
            .to_owned(),
    })
}

/// The caller's own procfs, and nothing that only looks like one.
pub(crate) fn host_proc() -> Result<OwnedFd> {
    let failed = |cause| Error::Prepare {
        what: "cannot use the host's /proc".to_owned(),
        cause,
    };
    let proc = open_path("/proc").map_err(failed)?;
    let magic = rustix::fs::fstatfs(&proc)
        .map_err(Failure::of("fstatfs"))
        .map_err(failed)?
        .f_type;
    if magic == rustix::fs::PROC_SUPER_MAGIC {
        Ok(proc)
    } else {
        Err(failed(Failure {
            call: "fstatfs",
            errno: Errno::NODEV,
        }))
    }
}

/// A duplicate above standard error, so that `dup2` in the child overwrites none that is still
/// needed.
pub(crate) fn above_stdio(fd: OwnedFd) -> Result<OwnedFd> {
    if fd.as_raw_fd() > 2 {
        return Ok(fd);
    }
    rustix::io::fcntl_dupfd_cloexec(&fd, 3).map_err(|errno| Error::Prepare {
        what: "cannot duplicate a file".to_owned(),
        cause: Failure {
            call: "fcntl",
            errno,
        },
    })
}

/// Where the caller's mount namespace has procfs and sysfs, the last mounted first.
pub(crate) fn kernel_mounts() -> Result<Vec<CString>> {
    let path = Path::new("/proc/self/mountinfo");
    let text = knarr_fs::read_to_string(path).map_err(|cause| Error::File {
        what: "cannot see the host's mounts".to_owned(),
        cause,
    })?;
    text.lines()
        .rev()
        .filter_map(|line| {
            let (mount, kind) = line.split_once(" - ")?;
            let kernel = kind.starts_with("proc ") || kind.starts_with("sysfs ");
            kernel.then(|| mount.split(' ').nth(4)).flatten()
        })
        .map(|point| c_string("mountinfo", point))
        .collect()
}

/// Opens a path of the host as O_PATH.
pub(crate) fn open_path(path: &str) -> std::result::Result<OwnedFd, Failure> {
    rustix::fs::open(path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())
        .map_err(Failure::of("open"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_knows_every_folder_on_the_way() {
        let place = Place::new("x", "/a/./b/../c//d").unwrap();
        assert_eq!(place.path.as_c_str(), c"/a/c/d");
        let steps: Vec<_> = place
            .steps
            .iter()
            .map(|(path, _)| path.as_c_str())
            .collect();
        assert_eq!(steps, [c"/a", c"/a/c", c"/a/c/d"]);
        assert_eq!(Place::new("x", "/../..").unwrap().path.as_c_str(), c"/");
        assert!(Place::new("x", "/a\0b").is_err());
    }
}
