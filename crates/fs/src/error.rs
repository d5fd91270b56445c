//! The error of a file operation.

use std::path::{Path, PathBuf};

use knarr_diag::{Class, Explain};
use knarr_sys::Failure;
use rustix::io::Errno;

/// What file operations return.
pub type Result<T> = std::result::Result<T, Error>;

/// A file operation that failed: on which path, and which call said why.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// A system call failed on `path`.
    #[error("cannot {verb} {}", path.display())]
    Call {
        /// What was tried, in the imperative ("open", "rename").
        verb: &'static str,
        /// On what.
        path: PathBuf,
        /// How it failed.
        #[source]
        cause: Failure,
    },
    /// A file that must be small is not.
    #[error("{} is larger than {limit} bytes", path.display())]
    TooLarge {
        /// The file.
        path: PathBuf,
        /// The most that is read, in bytes.
        limit: u64,
    },
    /// Something else than a regular file (a FIFO, a device) where a file must be.
    #[error("{} is not a regular file", path.display())]
    NotRegular {
        /// The path.
        path: PathBuf,
    },
    /// The bytes are not UTF-8 where text must be.
    #[error("{} is not text (UTF-8)", path.display())]
    NotText {
        /// The file.
        path: PathBuf,
    },
}

impl Error {
    /// For `map_err`: names what was tried on what.
    pub fn of<'a>(
        verb: &'static str,
        call: &'static str,
        path: &'a Path,
    ) -> impl Fn(Errno) -> Self + 'a {
        move |errno| Self::Call {
            verb,
            path: path.to_owned(),
            cause: Failure { call, errno },
        }
    }

    /// The same from an error of the standard library.
    pub fn of_io<'a>(
        verb: &'static str,
        call: &'static str,
        path: &'a Path,
    ) -> impl Fn(std::io::Error) -> Self + 'a {
        move |error| Self::Call {
            verb,
            path: path.to_owned(),
            cause: Failure::from_io(call, &error),
        }
    }

    /// What the kernel answered, where a call failed.
    pub fn errno(&self) -> Option<Errno> {
        match self {
            Self::Call { cause, .. } => Some(cause.errno),
            _ => None,
        }
    }

    /// Whether it failed because nothing is there.
    pub fn is_not_found(&self) -> bool {
        self.errno() == Some(Errno::NOENT)
    }

    /// Whether it failed because something is there already.
    pub fn is_exists(&self) -> bool {
        self.errno() == Some(Errno::EXIST)
    }
}

impl Explain for Error {
    fn class(&self) -> Class {
        match self {
            Self::Call { cause, .. } => match cause.errno {
                Errno::NOENT | Errno::NOTDIR => Class::NotFound,
                Errno::EXIST | Errno::NOTEMPTY => Class::Exists,
                Errno::ACCESS | Errno::PERM | Errno::ROFS => Class::Denied,
                Errno::NOSPC | Errno::DQUOT | Errno::MFILE | Errno::NFILE | Errno::NOMEM => {
                    Class::Exhausted
                }
                Errno::BUSY | Errno::TXTBSY | Errno::AGAIN => Class::Busy,
                Errno::NOSYS | Errno::OPNOTSUPP => Class::Unsupported,
                Errno::LOOP | Errno::XDEV | Errno::INVAL | Errno::NAMETOOLONG | Errno::ISDIR => {
                    Class::Invalid
                }
                _ => Class::Unavailable,
            },
            Self::TooLarge { .. } | Self::NotRegular { .. } | Self::NotText { .. } => {
                Class::Invalid
            }
        }
    }

    fn code(&self) -> &'static str {
        match self {
            Self::Call { .. } => "file-operation-failed",
            Self::TooLarge { .. } => "file-too-large",
            Self::NotRegular { .. } => "not-a-regular-file",
            Self::NotText { .. } => "not-text",
        }
    }

    fn hint(&self) -> Option<String> {
        let Self::Call { path, cause, .. } = self else {
            return None;
        };
        let path = path.display();
        match cause.errno {
            Errno::NOSPC => Some(format!(
                "the file system of {path} is full; `knarr rmi` and `knarr volume prune` free space"
            )),
            Errno::DQUOT => Some(format!(
                "the disk quota that {path} counts against is used up"
            )),
            Errno::ROFS => Some(format!(
                "{path} is on a read-only file system; use `--root DIR`"
            )),
            Errno::MFILE => Some("raise the limit of open files (`ulimit -n`)".to_owned()),
            _ => None,
        }
    }
}
