//! The errors of this crate.

use knarr_diag::{Class, Explain};
use knarr_sys::Failure;
use rustix::io::Errno;

use crate::{diagnose, process, user};

/// What this crate's functions return.
pub type Result<T> = std::result::Result<T, Error>;

/// Why a container could not be planned, made or entered.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A field of the config that is wrong in itself.
    #[error("{field}: {reason}")]
    Config {
        /// Where, as the specification calls it: `mounts[2].options`.
        field: String,
        /// What is wrong with it.
        reason: String,
    },
    /// A field of the config that asks for what is not served.
    #[error("{field}: {what} is not served")]
    Unsupported {
        /// Where.
        field: String,
        /// What.
        what: String,
    },
    /// A plan written by a newer Knarr.
    #[error("the plan has version {found}, this Knarr knows 1")]
    Version {
        /// What it says.
        found: u32,
    },
    /// A string with a NUL byte, which the kernel cannot be given.
    #[error("{field} contains a NUL byte")]
    Nul {
        /// Where.
        field: String,
    },
    /// Preparing something before the container's process exists.
    #[error("{what}")]
    Prepare {
        /// What could not be done, naming the object.
        what: String,
        /// How it failed.
        #[source]
        cause: Failure,
    },
    /// The same where a file operation failed.
    #[error("{what}")]
    File {
        /// What could not be done, naming the object.
        what: String,
        /// How it failed.
        #[source]
        cause: knarr_fs::Error,
    },
    /// The user or a group cannot be told.
    #[error(transparent)]
    User(#[from] user::Error),
    /// The container's process failed at one of its steps.
    #[error("{what}")]
    Step {
        /// What could not be done, naming the object.
        what: String,
        /// A stable name of the step.
        code: &'static str,
        /// A remedy where one is known.
        hint: Option<String>,
        /// How it failed.
        #[source]
        cause: Failure,
    },
    /// A hook failed.
    #[error("error running {moment} hook #{index} ({path}): {reason}")]
    Hook {
        /// The specification's name of when it runs.
        moment: &'static str,
        /// Which of them.
        index: usize,
        /// Its program.
        path: String,
        /// How it failed, and what it wrote.
        reason: String,
    },
    /// The container's cgroups.
    #[error(transparent)]
    Cgroup(#[from] knarr_cgroup::Error),
    /// The program cannot be executed.
    #[error(transparent)]
    Command(#[from] diagnose::Fault),
    /// The container's process ended before it had executed the program.
    #[error("the container's first process ended before the program: {status}")]
    Died {
        /// How.
        status: process::Exit,
    },
    /// The container to enter is not running.
    #[error("the container's first process has ended")]
    NotRunning,
}

impl Explain for Error {
    fn class(&self) -> Class {
        match self {
            Self::Config { .. } | Self::Nul { .. } => Class::Invalid,
            Self::Unsupported { .. } | Self::Version { .. } => Class::Unsupported,
            Self::Prepare { cause, .. } | Self::Step { cause, .. } => class_of(cause.errno),
            Self::File { cause, .. } => cause.class(),
            Self::User(cause) => cause.class(),
            Self::Command(cause) => cause.class(),
            Self::Cgroup(cause) => cause.class(),
            Self::Hook { .. } => Class::Unavailable,
            Self::Died { .. } => Class::Unavailable,
            Self::NotRunning => Class::Busy,
        }
    }

    fn code(&self) -> &'static str {
        match self {
            Self::Config { .. } | Self::Nul { .. } => "invalid-config",
            Self::Unsupported { .. } => "unsupported-config",
            Self::Version { .. } => "unknown-plan-version",
            Self::Prepare { .. } => "prepare-failed",
            Self::File { cause, .. } => cause.code(),
            Self::User(cause) => cause.code(),
            Self::Step { code, .. } => code,
            Self::Command(cause) => cause.code(),
            Self::Cgroup(cause) => cause.code(),
            Self::Hook { .. } => "hook-failed",
            Self::Died { .. } => "init-died",
            Self::NotRunning => "not-running",
        }
    }

    fn hint(&self) -> Option<String> {
        match self {
            Self::File { cause, .. } => cause.hint(),
            Self::User(cause) => cause.hint(),
            Self::Command(cause) => cause.hint(),
            Self::Cgroup(cause) => cause.hint(),
            Self::Step { hint, .. } => hint.clone(),
            Self::Version { .. } => Some("update this Knarr".to_owned()),
            Self::Died { .. } => {
                Some("`dmesg` tells whether the kernel ran out of memory".to_owned())
            }
            _ => None,
        }
    }
}

fn class_of(errno: Errno) -> Class {
    match errno {
        Errno::PERM | Errno::ACCESS | Errno::ROFS => Class::Denied,
        Errno::NOENT | Errno::SRCH => Class::NotFound,
        Errno::NOSPC | Errno::NOMEM | Errno::AGAIN | Errno::MFILE | Errno::NFILE | Errno::USERS => {
            Class::Exhausted
        }
        Errno::NOSYS | Errno::OPNOTSUPP | Errno::NODEV => Class::Unsupported,
        Errno::BUSY => Class::Busy,
        _ => Class::Invalid,
    }
}
