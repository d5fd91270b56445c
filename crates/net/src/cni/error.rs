//! What can go wrong with a CNI network.

use std::path::PathBuf;

use knarr_diag::{Class, Explain};
use knarr_sys::Failure;

/// What this module's functions return.
pub type Result<T> = std::result::Result<T, Error>;

/// Why a network's plugins could not do what they were asked.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// No configuration has that name.
    #[error("there is no CNI network {name} in {}", dir.display())]
    NoNetwork {
        /// The name asked for.
        name: String,
        /// Where it was looked for.
        dir: PathBuf,
        /// What is there.
        others: Vec<String>,
    },
    /// A configuration that is not one.
    #[error("{} is not a CNI configuration: {reason}", path.display())]
    BadList {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// A container id, interface name or argument that plugins would misread.
    #[error("{what} {value:?} cannot be given to CNI plugins")]
    BadArgument {
        /// Such as `interface name`.
        what: &'static str,
        /// As given.
        value: String,
    },
    /// No folder has the program.
    #[error("CNI network {network} needs the plugin {plugin}, which is not installed")]
    NoPlugin {
        /// The network.
        network: String,
        /// The plugin's type.
        plugin: String,
        /// Where it was looked for.
        folders: Vec<PathBuf>,
    },
    /// The plugin says why it cannot.
    #[error("CNI plugin {plugin} of network {network} failed to {command}: {message}")]
    Plugin {
        /// The network.
        network: String,
        /// The plugin's type.
        plugin: String,
        /// Such as `ADD`.
        command: &'static str,
        /// The specification's, or the plugin's own from 100 on.
        code: u64,
        /// The plugin's words, with its details.
        message: String,
    },
    /// The plugin ended without saying anything that can be understood.
    #[error("CNI plugin {plugin} of network {network} {how} on {command}")]
    Broken {
        /// The network.
        network: String,
        /// The plugin's type.
        plugin: String,
        /// Such as `ADD`.
        command: &'static str,
        /// Such as `was killed by signal 9: <what it wrote>`.
        how: String,
    },
    /// The plugin could not be run.
    #[error("cannot run CNI plugin {plugin} of network {network}")]
    Run {
        /// The network.
        network: String,
        /// The plugin's type.
        plugin: String,
        /// How it failed.
        #[source]
        cause: Failure,
    },
    /// CHECK and the like of an attachment that nobody remembers.
    #[error("container {container} is not attached to CNI network {network} as {interface}")]
    NotAttached {
        /// The network.
        network: String,
        /// The container.
        container: String,
        /// The interface inside it.
        interface: String,
    },
    /// What the version of the configuration does not have.
    #[error("CNI network {network} has version {version}, which has no {command}")]
    TooOld {
        /// The network.
        network: String,
        /// Of its configuration.
        version: String,
        /// Such as `CHECK`.
        command: &'static str,
    },
    /// Several plugins failed to let go of something; all were called.
    #[error("{first}")]
    Several {
        /// The first failure.
        first: Box<Error>,
        /// The others, as text.
        others: Vec<String>,
    },
    /// A file operation failed.
    #[error(transparent)]
    File(#[from] knarr_fs::Error),
}

impl Error {
    /// One error of many; `None` when there are none.
    pub(super) fn all(errors: Vec<Self>) -> Option<Self> {
        let mut errors = errors.into_iter();
        let first = errors.next()?;
        let others: Vec<String> = errors.map(|error| error.to_string()).collect();
        if others.is_empty() {
            return Some(first);
        }
        Some(Self::Several {
            first: Box::new(first),
            others,
        })
    }
}

/// The specification's code for "try again later".
const TRY_AGAIN: u64 = 11;
/// The specification's code for an unknown container, which DEL must not mind.
const INCOMPATIBLE: u64 = 1;

impl Explain for Error {
    fn class(&self) -> Class {
        match self {
            Self::NoNetwork { .. } | Self::NotAttached { .. } => Class::NotFound,
            Self::BadList { .. } | Self::BadArgument { .. } => Class::Invalid,
            Self::NoPlugin { .. } | Self::TooOld { .. } => Class::Unsupported,
            Self::Plugin { code, .. } if *code == TRY_AGAIN => Class::Busy,
            Self::Plugin { code, .. } if *code == INCOMPATIBLE => Class::Unsupported,
            Self::Plugin { .. } | Self::Broken { .. } | Self::Run { .. } => Class::Unavailable,
            Self::Several { first, .. } => first.class(),
            Self::File(error) => error.class(),
        }
    }

    fn code(&self) -> &'static str {
        match self {
            Self::NoNetwork { .. } => "no-such-network",
            Self::BadList { .. } => "bad-network-configuration",
            Self::BadArgument { .. } => "bad-argument",
            Self::NoPlugin { .. } => "plugin-missing",
            Self::Plugin { .. } | Self::Broken { .. } | Self::Run { .. } => "plugin-failed",
            Self::NotAttached { .. } => "not-attached",
            Self::TooOld { .. } => "plugin-version",
            Self::Several { first, .. } => first.code(),
            Self::File(error) => error.code(),
        }
    }

    fn hint(&self) -> Option<String> {
        match self {
            Self::NoNetwork { others, .. } if others.is_empty() => {
                Some("put a file such as 10-mynet.conflist there".to_owned())
            }
            Self::NoNetwork { others, .. } => Some(format!("there is {}", others.join(", "))),
            Self::NoPlugin { folders, .. } => {
                let folders: Vec<String> = folders
                    .iter()
                    .map(|folder| folder.display().to_string())
                    .collect();
                Some(format!(
                    "looked in {}; Debian's package containernetworking-plugins has the standard ones",
                    folders.join(", ")
                ))
            }
            Self::Several { others, .. } => Some(format!("also: {}", others.join("; "))),
            Self::File(error) => error.hint(),
            _ => None,
        }
    }
}
