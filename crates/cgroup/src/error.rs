//! What can go wrong with a cgroup.

use std::path::PathBuf;

use knarr_diag::{Class, Explain};
use knarr_sys::Failure;
use knarr_sys::rustix::io::Errno;

/// Why a cgroup could not be planned, made, read or removed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// `/proc/self/mountinfo` has no cgroup file system.
    #[error("no cgroup file system is mounted")]
    NotMounted,
    /// A text that is not of the form the kernel documents.
    #[error("cannot understand {path}: `{line}`")]
    Unreadable {
        /// The file it was read from.
        path: PathBuf,
        /// The offending line.
        line: String,
    },
    /// A limit needs a controller that this machine does not offer at that place.
    #[error("the {wanted} needs the cgroup controller `{controller}`, which is not available")]
    MissingController {
        /// Such as `memory limit`.
        wanted: &'static str,
        /// The controller's name in the kernel.
        controller: &'static str,
        /// What is there instead, for the hint.
        available: Vec<String>,
    },
    /// A limit that no kernel would take.
    #[error("{what} {reason}")]
    Invalid {
        /// The limit and its value, such as `memory limit -5`.
        what: String,
        /// Such as `is negative`.
        reason: &'static str,
    },
    /// A path for a cgroup that leads elsewhere.
    #[error("`{path}` is not a cgroup path: {reason}")]
    BadPath {
        /// As given.
        path: String,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// A plan that a newer Knarr wrote.
    #[error("cgroup plan has version {found}, this Knarr reads up to {known}")]
    Version {
        /// In the plan.
        found: u32,
        /// The newest known here.
        known: u32,
    },
    /// A cgroup directory could not be made.
    #[error("cannot create cgroup {path}")]
    Create {
        /// The directory.
        path: PathBuf,
        /// Why.
        #[source]
        cause: Failure,
    },
    /// A cgroup directory of an existing container could not be opened.
    #[error("cannot open cgroup {path}")]
    Open {
        /// The directory.
        path: PathBuf,
        /// Why.
        #[source]
        cause: Failure,
    },
    /// A control file could not be read.
    #[error("cannot read {path}")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        cause: Failure,
    },
    /// A control file did not take a value.
    #[error("cannot write `{value}` to {path}")]
    Write {
        /// The file.
        path: PathBuf,
        /// What was written.
        value: String,
        /// Why.
        #[source]
        cause: Failure,
    },
    /// A controller could not be switched on for the children of a v2 cgroup.
    #[error("cannot enable the cgroup controller `{controller}` below {path}")]
    Delegate {
        /// The parent cgroup.
        path: PathBuf,
        /// The controller.
        controller: String,
        /// Why.
        #[source]
        cause: Failure,
    },
    /// The device rules could not be loaded or attached.
    #[error("cannot install the device rules of cgroup {path}")]
    Devices {
        /// The cgroup.
        path: PathBuf,
        /// Why.
        #[source]
        cause: Failure,
    },
    /// A process could not be moved.
    #[error("cannot move process {pid} into cgroup {path}")]
    Join {
        /// The process, in the caller's pid namespace.
        pid: i32,
        /// The cgroup.
        path: PathBuf,
        /// Why.
        #[source]
        cause: Failure,
    },
    /// Freezing or thawing did not finish in time.
    #[error("cgroup {path} is not {state} after {seconds} s")]
    Stuck {
        /// The cgroup.
        path: PathBuf,
        /// `frozen` or `thawed`.
        state: &'static str,
        /// How long was waited.
        seconds: u64,
    },
    /// A systemd manager could not be reached, or was lost.
    #[error("cannot talk to systemd over {socket}")]
    NoManager {
        /// Where it listens.
        socket: PathBuf,
        /// Why.
        #[source]
        cause: Failure,
    },
    /// What answers is no systemd manager, or not for us.
    #[error("cannot talk to systemd over {socket}: {reason}")]
    Manager {
        /// Where it listens.
        socket: PathBuf,
        /// Such as `it refuses this user`.
        reason: &'static str,
    },
    /// systemd did not do what it was asked for.
    #[error("systemd cannot {act} the unit {unit}: {reason}")]
    Unit {
        /// The unit.
        unit: String,
        /// `start`, `change` or `stop`.
        act: &'static str,
        /// systemd's own words.
        reason: String,
    },
    /// The caller is not root, and no part of the tree is its own.
    #[error("no cgroup is delegated to this user: {own} belongs to another")]
    NotDelegated {
        /// The caller's cgroup.
        own: PathBuf,
    },
    /// Directories that could not be removed.
    #[error("cannot remove cgroup {}", .leftovers.iter().map(|p| p.display().to_string()).collect::<Vec<_>>().join(", "))]
    Remove {
        /// What is still there.
        leftovers: Vec<PathBuf>,
        /// Why, for the first of them.
        #[source]
        cause: Failure,
    },
}

/// What the crate returns.
pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    fn cause(&self) -> Option<Failure> {
        match self {
            Self::Create { cause, .. }
            | Self::Open { cause, .. }
            | Self::Read { cause, .. }
            | Self::Write { cause, .. }
            | Self::Delegate { cause, .. }
            | Self::Devices { cause, .. }
            | Self::Join { cause, .. }
            | Self::NoManager { cause, .. }
            | Self::Remove { cause, .. } => Some(*cause),
            _ => None,
        }
    }
}

impl Explain for Error {
    fn class(&self) -> Class {
        match self {
            Self::NotMounted | Self::MissingController { .. } | Self::Version { .. } => {
                Class::Unsupported
            }
            Self::Unreadable { .. } => Class::Corrupt,
            Self::Invalid { .. } | Self::BadPath { .. } => Class::Invalid,
            Self::Stuck { .. } => Class::Timeout,
            Self::NoManager { .. } | Self::Manager { .. } => Class::Unavailable,
            Self::Unit { .. } => Class::Busy,
            Self::NotDelegated { .. } => Class::Denied,
            Self::Create { .. }
            | Self::Open { .. }
            | Self::Read { .. }
            | Self::Write { .. }
            | Self::Delegate { .. }
            | Self::Devices { .. }
            | Self::Join { .. }
            | Self::Remove { .. } => match self.cause().map(|cause| cause.errno) {
                Some(Errno::ACCESS | Errno::PERM | Errno::ROFS) => Class::Denied,
                Some(Errno::NOENT | Errno::NODEV | Errno::SRCH) => Class::NotFound,
                Some(Errno::INVAL | Errno::RANGE) => Class::Invalid,
                Some(Errno::AGAIN | Errno::NOSPC | Errno::NOMEM) => Class::Exhausted,
                _ => Class::Busy,
            },
        }
    }

    fn code(&self) -> &'static str {
        match self {
            Self::NotMounted => "cgroup-not-mounted",
            Self::Unreadable { .. } => "cgroup-unreadable",
            Self::MissingController { .. } => "cgroup-controller-missing",
            Self::Invalid { .. } => "cgroup-limit-invalid",
            Self::BadPath { .. } => "cgroup-path-invalid",
            Self::Version { .. } => "cgroup-plan-version",
            Self::Create { .. } => "cgroup-create-failed",
            Self::Open { .. } => "cgroup-open-failed",
            Self::Read { .. } => "cgroup-read-failed",
            Self::Write { .. } => "cgroup-write-failed",
            Self::Delegate { .. } => "cgroup-delegate-failed",
            Self::Devices { .. } => "cgroup-devices-failed",
            Self::Join { .. } => "cgroup-join-failed",
            Self::Stuck { .. } => "cgroup-stuck",
            Self::NoManager { .. } | Self::Manager { .. } => "systemd-unavailable",
            Self::Unit { .. } => "systemd-unit-failed",
            Self::NotDelegated { .. } => "cgroup-not-delegated",
            Self::Remove { .. } => "cgroup-remove-failed",
        }
    }

    fn hint(&self) -> Option<String> {
        let errno = self.cause().map(|cause| cause.errno);
        match self {
            Self::NotMounted => Some("mount it: `mount -t cgroup2 none /sys/fs/cgroup`".to_owned()),
            Self::MissingController {
                controller,
                available,
                ..
            } => Some(format!(
                "leave the limit out, or boot a kernel that has `{controller}` (it must not be \
                 disabled with cgroup_disable= and must not be bound to a hierarchy that is not \
                 mounted); available are: {}",
                if available.is_empty() {
                    "none".to_owned()
                } else {
                    available.join(", ")
                }
            )),
            Self::Delegate { path, .. } if errno == Some(Errno::BUSY) => Some(format!(
                "{} has processes of its own, and cgroup v2 then passes no controllers on; move \
                 them into a child cgroup, or choose another parent with --cgroup-parent",
                path.display()
            )),
            Self::NotDelegated { .. } => Some(
                "start it where one is: `systemd-run --user --scope -p Delegate=yes …`, let systemd \
                 make the cgroup (--systemd-cgroup), or run as root"
                    .to_owned(),
            ),
            Self::NoManager { .. } => Some(
                "systemd must run here as process 1 (for a user: with a session, see `loginctl \
                 enable-linger`); without it use the cgroupfs driver"
                    .to_owned(),
            ),
            Self::Delegate {
                path, controller, ..
            } if matches!(errno, Some(Errno::ACCESS | Errno::PERM)) => Some(format!(
                "{} belongs to another user and does not pass `{controller}` on; have systemd \
                 delegate it: `Delegate=cpu cpuset io memory pids` in a drop-in of user@.service, \
                 or leave the limit out",
                path.display()
            )),
            Self::Create { .. }
            | Self::Delegate { .. }
            | Self::Write { .. }
            | Self::Join { .. }
                if matches!(errno, Some(Errno::ACCESS | Errno::PERM | Errno::ROFS)) =>
            {
                Some(
                    "this user may not change that cgroup: run as root, or have the subtree \
                     delegated (systemd: Delegate=yes)"
                        .to_owned(),
                )
            }
            Self::Create { .. } if errno == Some(Errno::AGAIN) => Some(
                "the parent's cgroup.max.descendants or cgroup.max.depth is reached".to_owned(),
            ),
            Self::Write { path, .. }
                if errno == Some(Errno::BUSY) && path.ends_with("memory.limit_in_bytes") =>
            {
                Some(
                    "the container uses more than that already; ask for more, or stop it first"
                        .to_owned(),
                )
            }
            Self::Stuck { .. } => Some(
                "a process is in an uninterruptible sleep; look for state D in `ps`".to_owned(),
            ),
            Self::Remove { .. } if errno == Some(Errno::BUSY) => {
                Some("a process or a child cgroup is still in it".to_owned())
            }
            _ => None,
        }
    }
}
