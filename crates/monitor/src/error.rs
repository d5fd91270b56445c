//! What can go wrong around a monitor.

use std::path::PathBuf;

use knarr_diag::{Class, Explain, Report};
use knarr_sys::Failure;

/// What this crate returns.
pub type Result<T> = std::result::Result<T, Error>;

/// Why a monitor, or a client of one, could not do something.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The request is not one.
    #[error("the monitor's request cannot be understood")]
    Request {
        /// What the parser said.
        #[source]
        cause: serde_json::Error,
    },
    /// The state file is not one.
    #[error("{} is damaged", path.display())]
    State {
        /// The file.
        path: PathBuf,
        /// What the parser said.
        #[source]
        cause: serde_json::Error,
    },
    /// Another version of a format.
    #[error("{what} of version {found}, this Knarr knows version {known}")]
    Version {
        /// What has a version.
        what: &'static str,
        /// Which.
        found: u32,
        /// The one that this Knarr speaks.
        known: u32,
    },
    /// A file operation failed.
    #[error(transparent)]
    File(#[from] knarr_fs::Error),
    /// The control group could not be made, used or removed.
    #[error(transparent)]
    Cgroup(#[from] knarr_cgroup::Error),
    /// The container's root could not be mounted.
    #[error(transparent)]
    Layer(#[from] knarr_layer::Error),
    /// The container's network could not be made, changed or removed.
    #[error(transparent)]
    Network(#[from] knarr_net::Error),
    /// The container's process could not be made, or the monitor's program not be opened.
    #[error(transparent)]
    Runtime(#[from] knarr_runtime::Error),
    /// A system call of the monitor's own business failed.
    #[error("cannot {verb}")]
    Call {
        /// What was tried.
        verb: &'static str,
        /// How it failed.
        #[source]
        cause: Failure,
    },
    /// The monitor's program could not be run.
    #[error("cannot run the monitor {}", path.display())]
    Spawn {
        /// The program.
        path: PathBuf,
        /// How it failed.
        #[source]
        cause: Failure,
    },
    /// The monitor ended without a word.
    #[error("the monitor of container {id} died before it could report")]
    Died {
        /// The container, shortened.
        id: String,
    },
    /// Nobody answers on the socket.
    #[error("no monitor answers at {}", path.display())]
    Connect {
        /// The socket.
        path: PathBuf,
        /// How it failed.
        #[source]
        cause: Failure,
    },
    /// The monitor's answer makes no sense or ended early.
    #[error("the monitor at {} broke off its answer", path.display())]
    Answer {
        /// The socket.
        path: PathBuf,
        /// How it failed.
        #[source]
        cause: std::io::Error,
    },
    /// The monitor refused.
    #[error("{}", report.message)]
    Refused {
        /// What it said.
        report: Box<Report>,
    },
}

impl Error {
    pub(crate) fn request(cause: serde_json::Error) -> Self {
        Self::Request { cause }
    }

    /// For `map_err`: names what was tried with which call.
    pub(crate) fn of(verb: &'static str, call: &'static str) -> impl Fn(rustix::io::Errno) -> Self {
        move |errno| Self::Call {
            verb,
            cause: Failure { call, errno },
        }
    }
}

impl Explain for Error {
    fn class(&self) -> Class {
        match self {
            Self::Request { .. } => Class::Bug,
            Self::State { .. } | Self::Answer { .. } => Class::Corrupt,
            Self::Version { .. } => Class::Unsupported,
            Self::File(error) => error.class(),
            Self::Cgroup(error) => error.class(),
            Self::Layer(error) => error.class(),
            Self::Network(error) => error.class(),
            Self::Runtime(error) => error.class(),
            Self::Call { .. } | Self::Spawn { .. } | Self::Connect { .. } => Class::Unavailable,
            Self::Died { .. } => Class::Unavailable,
            Self::Refused { report } => report.class,
        }
    }

    fn code(&self) -> &'static str {
        match self {
            Self::Request { .. } => "monitor-request-invalid",
            Self::State { .. } => "state-damaged",
            Self::Version { .. } => "version-unknown",
            Self::File(error) => error.code(),
            Self::Cgroup(error) => error.code(),
            Self::Layer(error) => error.code(),
            Self::Network(error) => error.code(),
            Self::Runtime(error) => error.code(),
            Self::Call { .. } => "monitor-failed",
            Self::Spawn { .. } => "monitor-not-run",
            Self::Died { .. } => "monitor-died",
            Self::Connect { .. } => "monitor-unreachable",
            Self::Answer { .. } => "monitor-answer-broken",
            Self::Refused { .. } => "monitor-refused",
        }
    }

    fn hint(&self) -> Option<String> {
        match self {
            Self::File(error) => error.hint(),
            Self::Cgroup(error) => error.hint(),
            Self::Layer(error) => error.hint(),
            Self::Network(error) => error.hint(),
            Self::Runtime(error) => error.hint(),
            Self::Spawn { path, .. } => Some(format!(
                "`knarr-monitor` belongs beside `knarr`; {} is where it was looked for",
                path.display()
            )),
            Self::Version { .. } => {
                Some("a newer Knarr wrote it; use that one, or remove the container with it".into())
            }
            Self::Died { .. } => {
                Some("nothing is left of it after the next call on the container; try again".into())
            }
            Self::Refused { report } => report.hint.clone(),
            _ => None,
        }
    }

    fn report(&self) -> Report {
        if let Self::Refused { report } = self {
            return (**report).clone();
        }
        let mut because = Vec::new();
        let mut source = std::error::Error::source(self);
        while let Some(error) = source {
            because.push(error.to_string());
            source = error.source();
        }
        Report {
            class: self.class(),
            code: self.code().to_owned(),
            message: self.to_string(),
            because,
            hint: self.hint(),
        }
    }
}
