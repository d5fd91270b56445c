//! The caller's executable, where what it starts cannot reach it (CVE-2019-5736).
//!
//! A process that runs Knarr's code inside a container shows its executable at `/proc/PID/exe`,
//! and that can be opened again for writing once nobody executes it. So whatever enters a container
//! runs from a clone of the mount that is read-only, which costs two system calls and no copy. Where
//! that is not allowed (without root), from a sealed copy in memory.

use std::io::Write as _;
use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use knarr_sys::Failure;
use knarr_sys::mount::{Attributes, Change, Propagation, mount_setattr};
use knarr_sys::process::{CStringArray, execveat};
use rustix::fs::{CWD, MemfdFlags, SealFlags};
use rustix::io::Errno;
use rustix::mount::{OpenTreeFlags, open_tree};

use crate::{Error, Result};

/// An executable that cannot be written through what executes it.
#[derive(Debug)]
pub struct Executable {
    file: OwnedFd,
}

impl Executable {
    /// The one that runs now.
    ///
    /// # Errors
    /// [`Error::Prepare`].
    pub fn of_self() -> Result<Self> {
        Self::open(Path::new("/proc/self/exe"))
    }

    /// One of the host's.
    ///
    /// # Errors
    /// [`Error::Prepare`], [`Error::File`].
    pub fn open(path: &Path) -> Result<Self> {
        let what = || format!("cannot protect the executable {}", path.display());
        let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
        let file = match open_tree(CWD, path, flags) {
            Ok(file) => file,
            Err(Errno::PERM | Errno::NOSYS | Errno::INVAL) => return Self::copy(path),
            Err(errno) => {
                let cause = Failure {
                    call: "open_tree",
                    errno,
                };
                return Err(Error::Prepare {
                    what: what(),
                    cause,
                });
            }
        };
        let change = Change {
            set: Attributes::RDONLY.with(Attributes::NOSUID),
            propagation: Propagation::Private,
            ..Change::default()
        };
        mount_setattr(&file, c"", &change).map_err(|cause| Error::Prepare {
            what: what(),
            cause,
        })?;
        Ok(Self { file })
    }

    /// A sealed copy in memory.
    fn copy(path: &Path) -> Result<Self> {
        let what = || format!("cannot protect the executable {}", path.display());
        let prepare = |call: &'static str| {
            move |errno: Errno| Error::Prepare {
                what: what(),
                cause: Failure { call, errno },
            }
        };
        let bytes = knarr_fs::read(path).map_err(|cause| Error::File {
            what: what(),
            cause,
        })?;
        let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
        let memory = rustix::fs::memfd_create(c"knarr", flags).map_err(prepare("memfd_create"))?;
        let mut memory = std::fs::File::from(memory);
        memory.write_all(&bytes).map_err(|error| Error::Prepare {
            what: what(),
            cause: Failure::from_io("write", &error),
        })?;
        let seals = SealFlags::SEAL | SealFlags::SHRINK | SealFlags::GROW | SealFlags::WRITE;
        rustix::fs::fcntl_add_seals(&memory, seals).map_err(prepare("fcntl"))?;
        Ok(Self {
            file: memory.into(),
        })
    }

    /// A path to it for [`std::process::Command`], valid in this process as long as `self` is.
    pub fn path(&self) -> PathBuf {
        PathBuf::from(format!("/proc/self/fd/{}", self.file.as_raw_fd()))
    }

    /// Executes it in the place of this process. Returns only if that failed.
    pub fn exec(&self, args: &CStringArray, env: &CStringArray) -> Error {
        Error::Prepare {
            what: "cannot execute Knarr again".to_owned(),
            cause: execveat(&self.file, args, env),
        }
    }
}

impl AsFd for Executable {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

/// Whether this process already runs from a file that cannot be written: its mount is read-only,
/// or it is a sealed copy.
pub fn is_sealed() -> bool {
    let readonly = rustix::fs::statvfs(c"/proc/self/exe")
        .is_ok_and(|stat| stat.f_flag.contains(rustix::fs::StatVfsMountFlags::RDONLY));
    readonly
        || std::fs::read_link("/proc/self/exe").is_ok_and(|path| {
            // The kernel adds ` (deleted)`.
            path.as_os_str()
                .as_encoded_bytes()
                .starts_with(b"/memfd:knarr ")
        })
}

/// Keeps processes of lesser rights from looking into this one (`/proc/PID/mem`, `fd`, `exe`). The
/// children inherit it until they exec.
///
/// # Errors
/// None in practice.
pub fn undumpable() -> Result<()> {
    rustix::process::set_dumpable_behavior(rustix::process::DumpableBehavior::NotDumpable).map_err(
        |errno| Error::Prepare {
            what: "cannot protect this process from others".to_owned(),
            cause: Failure {
                call: "prctl",
                errno,
            },
        },
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sealed_executable_runs_and_cannot_be_written() {
        let run = |sealed: &Executable| {
            let status = std::process::Command::new(sealed.path())
                .arg("-c")
                .arg("(exec 3>>/proc/self/exe) && exit 1; exit 42")
                .arg0_sh()
                .status()
                .unwrap();
            assert_eq!(status.code(), Some(42));
        };
        trait Arg0 {
            fn arg0_sh(&mut self) -> &mut Self;
        }
        impl Arg0 for std::process::Command {
            fn arg0_sh(&mut self) -> &mut Self {
                use std::os::unix::process::CommandExt as _;
                self.arg0("sh").stderr(std::process::Stdio::null())
            }
        }
        // A copy, which nobody else executes: that would keep it from being written as well.
        let top = knarr_fs::TempDir::new_in(&std::env::temp_dir().join("knarr-runtime-tests"));
        let top = top.unwrap();
        let shell = top.path().join("sh");
        std::fs::copy("/bin/sh", &shell).unwrap();
        run(&Executable::copy(&shell).unwrap());
        if !rustix::process::geteuid().is_root() {
            eprintln!("SKIP a_sealed_executable_runs_and_cannot_be_written (clone): not root");
            return;
        }
        let sealed = Executable::open(&shell).unwrap();
        run(&sealed);
        let reopened = rustix::fs::open(
            sealed.path(),
            rustix::fs::OFlags::WRONLY,
            rustix::fs::Mode::empty(),
        );
        assert_eq!(reopened.unwrap_err(), Errno::ROFS);
    }
}
