//! What can go wrong with containers.

use std::path::PathBuf;

use knarr_diag::{Class, Explain, Report};
use knarr_spec::{ContainerId, ContainerName};

/// The crate's result.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why an operation on a container or volume failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The user has no rights to the state folders.
    #[error("Knarr cannot be used without root on this machine yet")]
    NotRoot,
    /// No container of that name or id.
    #[error("No such container: {name}")]
    NotFound {
        /// What was asked for.
        name: String,
        /// Names that look like it, best first.
        near: Vec<String>,
    },
    /// A prefix of several ids.
    #[error("several containers have an id that begins with {prefix}")]
    Ambiguous {
        /// What was asked for.
        prefix: String,
    },
    /// A name that another container has.
    #[error(
        "Conflict. The container name \"/{name}\" is already in use by container \"{id}\". You have \
         to remove (or rename) that container to be able to reuse that name."
    )]
    NameInUse {
        /// The name.
        name: ContainerName,
        /// Who has it.
        id: ContainerId,
    },
    /// The request makes no sense; the text is Docker's where Docker has one.
    #[error("{reason}")]
    Invalid {
        /// What is wrong with what.
        reason: String,
        /// What to do instead.
        hint: Option<String>,
    },
    /// Something that Docker knows and Knarr does not do (yet).
    #[error("{what} is not supported: {reason}")]
    Unsupported {
        /// The flag with its value.
        what: String,
        /// Why not.
        reason: &'static str,
    },
    /// The container or volume is not in the state that the operation needs.
    #[error("{reason}")]
    Conflict {
        /// Which is in what state.
        reason: String,
        /// What to do about it.
        hint: Option<String>,
    },
    /// No such volume.
    #[error("no such volume: {name}")]
    VolumeNotFound {
        /// What was asked for.
        name: String,
        /// Names that look like it, best first.
        near: Vec<String>,
    },
    /// A volume that containers use.
    #[error("volume is in use - [{}]", containers.join(", "))]
    VolumeInUse {
        /// Their ids.
        containers: Vec<String>,
    },
    /// No such network.
    #[error("network {name} not found")]
    NetworkNotFound {
        /// What was asked for.
        name: String,
        /// Names that look like it, best first.
        near: Vec<String>,
    },
    /// Something that nobody may do.
    #[error("{reason}")]
    Denied {
        /// What, in Docker's words.
        reason: String,
    },
    /// Nothing is at a path in a container, or here.
    #[error("{reason}")]
    PathNotFound {
        /// Which path, and where.
        reason: String,
    },
    /// A file of Knarr's own that cannot be understood.
    #[error("{} is damaged", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What the parser said.
        #[source]
        cause: serde_json::Error,
    },
    /// A file that a newer Knarr wrote.
    #[error("{} is of version {found}, this Knarr knows up to {known}", path.display())]
    Version {
        /// The file.
        path: PathBuf,
        /// In the file.
        found: u32,
        /// The newest known here.
        known: u32,
    },
    /// All ranges of user ids are leased.
    #[error("no range of 65536 user ids is free for another user namespace")]
    IdsExhausted,
    /// What a container's monitor, or the start of one, said.
    #[error("{}", .0.message)]
    Told(Box<Report>),
    /// A system call.
    #[error("cannot {verb}")]
    Call {
        /// What was tried on what.
        verb: String,
        /// How it failed.
        #[source]
        cause: knarr_sys::Failure,
    },
    /// Reading or writing a caller's stream failed.
    #[error("cannot copy {what}")]
    Stream {
        /// Which stream.
        what: &'static str,
        /// How it failed.
        #[source]
        cause: std::io::Error,
    },
    /// A file operation.
    #[error(transparent)]
    Fs(#[from] knarr_fs::Error),
    /// An image operation.
    #[error("{0}")]
    Image(#[source] Box<knarr_image::Error>),
    /// A layer operation.
    #[error(transparent)]
    Layer(#[from] knarr_layer::Error),
    /// A cgroup operation.
    #[error(transparent)]
    Cgroup(#[from] knarr_cgroup::Error),
    /// A network operation.
    #[error(transparent)]
    Network(#[from] knarr_net::Error),
    /// A system call filter.
    #[error(transparent)]
    Seccomp(#[from] knarr_seccomp::Error),
    /// A container's monitor.
    #[error(transparent)]
    Monitor(#[from] knarr_monitor::Error),
}

impl Error {
    /// A wrong request.
    pub(crate) fn invalid(reason: impl Into<String>) -> Self {
        Self::Invalid {
            reason: reason.into(),
            hint: None,
        }
    }

    /// A wrong request, with what to do instead.
    pub(crate) fn invalid_hint(reason: impl Into<String>, hint: impl Into<String>) -> Self {
        Self::Invalid {
            reason: reason.into(),
            hint: Some(hint.into()),
        }
    }

    /// The wrong state.
    pub(crate) fn conflict(reason: impl Into<String>, hint: impl Into<String>) -> Self {
        Self::Conflict {
            reason: reason.into(),
            hint: Some(hint.into()),
        }
    }

    /// For `map_err` on system calls.
    pub(crate) fn of(
        verb: impl Into<String>,
        call: &'static str,
    ) -> impl FnOnce(rustix::io::Errno) -> Self {
        let verb = verb.into();
        move |errno| Self::Call {
            verb,
            cause: knarr_sys::Failure { call, errno },
        }
    }

    fn inner(&self) -> Option<&dyn Explain> {
        match self {
            Self::Fs(error) => Some(error),
            Self::Image(error) => Some(&**error),
            Self::Layer(error) => Some(error),
            Self::Cgroup(error) => Some(error),
            Self::Network(error) => Some(error),
            Self::Seccomp(error) => Some(error),
            Self::Monitor(error) => Some(error),
            _ => None,
        }
    }
}

impl From<knarr_image::Error> for Error {
    fn from(error: knarr_image::Error) -> Self {
        Self::Image(Box::new(error))
    }
}

impl From<Report> for Error {
    fn from(report: Report) -> Self {
        Self::Told(Box::new(report))
    }
}

impl Explain for Error {
    fn class(&self) -> Class {
        if let Some(inner) = self.inner() {
            return inner.class();
        }
        match self {
            Self::NotRoot | Self::Denied { .. } => Class::Denied,
            Self::NotFound { .. }
            | Self::VolumeNotFound { .. }
            | Self::NetworkNotFound { .. }
            | Self::PathNotFound { .. } => Class::NotFound,
            Self::NameInUse { .. } => Class::Exists,
            Self::Ambiguous { .. } | Self::Invalid { .. } => Class::Invalid,
            Self::Unsupported { .. } | Self::Version { .. } => Class::Unsupported,
            Self::Conflict { .. } | Self::VolumeInUse { .. } => Class::Busy,
            Self::Damaged { .. } => Class::Corrupt,
            Self::IdsExhausted => Class::Exhausted,
            Self::Told(report) => report.class,
            _ => Class::Unavailable,
        }
    }

    fn code(&self) -> &'static str {
        if let Some(inner) = self.inner() {
            return inner.code();
        }
        match self {
            Self::NotRoot => "not-root",
            Self::NotFound { .. } => "container-not-found",
            Self::Ambiguous { .. } => "container-ambiguous",
            Self::NameInUse { .. } => "name-in-use",
            Self::Invalid { .. } => "request-invalid",
            Self::Unsupported { .. } => "unsupported",
            Self::Conflict { .. } => "conflict",
            Self::VolumeNotFound { .. } => "volume-not-found",
            Self::VolumeInUse { .. } => "volume-in-use",
            Self::NetworkNotFound { .. } => "network-not-found",
            Self::Denied { .. } => "denied",
            Self::PathNotFound { .. } => "path-not-found",
            Self::Damaged { .. } => "object-damaged",
            Self::Version { .. } => "object-too-new",
            Self::IdsExhausted => "user-ids-exhausted",
            Self::Told(_) => "start-failed",
            Self::Call { .. } => "system-call-failed",
            _ => "stream-failed",
        }
    }

    fn hint(&self) -> Option<String> {
        if let Some(inner) = self.inner() {
            return inner.hint();
        }
        let near = |near: &[String]| match near {
            [] => None,
            names => Some(format!("did you mean {}?", names.join(" or "))),
        };
        match self {
            Self::NotRoot => Some("run it as root, for example with sudo".to_owned()),
            Self::NotFound { near: names, .. } => {
                near(names).or_else(|| Some("`knarr ps -a` lists all containers".to_owned()))
            }
            Self::VolumeNotFound { near: names, .. } => {
                near(names).or_else(|| Some("`knarr volume ls` lists all volumes".to_owned()))
            }
            Self::NetworkNotFound { near: names, .. } => {
                near(names).or_else(|| Some("`knarr network ls` lists all networks".to_owned()))
            }
            Self::Ambiguous { .. } => Some("type more digits of the id, or the name".to_owned()),
            Self::NameInUse { id, .. } => Some(format!(
                "`knarr rm {0}` removes it, `knarr rename {0} NAME` renames it",
                id.short()
            )),
            Self::Invalid { hint, .. } | Self::Conflict { hint, .. } => hint.clone(),
            Self::VolumeInUse { .. } => {
                Some("remove those containers first (`knarr rm -v CONTAINER`)".to_owned())
            }
            Self::Damaged { path, .. } => Some(format!(
                "the other objects are unaffected; `knarr rm -f` removes a damaged container, or \
                 restore {}",
                path.display()
            )),
            Self::Version { .. } => Some("use the newer Knarr that wrote it".to_owned()),
            Self::IdsExhausted => Some(
                "give the user `containers` more ids in /etc/subuid and /etc/subgid, or remove \
                 containers that hold a range"
                    .to_owned(),
            ),
            Self::Told(report) => report.hint.clone(),
            _ => None,
        }
    }

    fn report(&self) -> Report {
        match self {
            Self::Told(report) => (**report).clone(),
            Self::Monitor(error) => error.report(),
            Self::Image(error) => error.report(),
            _ => {
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
    }
}
