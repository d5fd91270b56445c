//! What can go wrong with a layer.

use knarr_diag::{Class, Explain};
use knarr_spec::Digest;
use rustix::io::Errno;

use crate::{driver, erofs, store::LayerId, tar, tree};

/// What this crate's functions return.
pub type Result<T> = std::result::Result<T, Error>;

/// A failure to read, make or find a layer.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The bytes are not a tar, or one that Knarr must not read.
    #[error("the layer is not a readable tar")]
    Tar(#[source] tar::Error),
    /// The members do not make up a file tree.
    #[error("the layer's members do not make a file tree")]
    Tree(#[source] tree::Error),
    /// The tree cannot be written as an EROFS index, or an index cannot be read.
    #[error("cannot index the layer")]
    Erofs(#[source] erofs::Error),
    /// The uncompressed tar has another digest than the image's configuration says.
    #[error("layer {expected} is not what it claims to be: its bytes have digest {found}")]
    DigestMismatch {
        /// The diff ID that was asked for.
        expected: Digest,
        /// What the bytes hash to.
        found: Digest,
    },
    /// A layer that is needed is not in the store.
    #[error("layer {0} is not in the store")]
    NotFound(LayerId),
    /// The layer's folder does not hold what it must.
    #[error("layer {id} is damaged: {what}")]
    Damaged {
        /// Which layer.
        id: LayerId,
        /// What is wrong with it.
        what: String,
    },
    /// A mount could not be made.
    #[error("cannot mount {what}{}", KernelSays(.kernel))]
    Mount {
        /// What was to be mounted.
        what: String,
        /// What the kernel said about it, where it said something.
        kernel: Option<String>,
        /// The call that failed.
        #[source]
        cause: knarr_sys::Failure,
    },
    /// The overlay driver has not unpacked the layer yet.
    #[error("layer {0} has not been unpacked for the overlay driver")]
    NotPrepared(LayerId),
    /// No way to mount layers works here.
    #[error("this machine cannot mount layers below {}", data_root.display())]
    NoDriver {
        /// Where layers are kept.
        data_root: std::path::PathBuf,
        /// Why the last driver failed, which is the one that needs least.
        #[source]
        last: Box<Error>,
    },
    /// `@host` without a user namespace would show the machine's secrets.
    #[error("@host can only be run in a user namespace")]
    HostNeedsUserns,
    /// `KNARR_DRIVER` names no driver.
    #[error("KNARR_DRIVER cannot be followed")]
    UnknownDriver(#[source] driver::NoSuchDriver),
    /// An archive could not be written to where it goes.
    #[error("cannot write the archive")]
    Output(#[source] std::io::Error),
    /// A file operation failed.
    #[error(transparent)]
    Fs(#[from] knarr_fs::Error),
}

/// The kernel's own words in parentheses, or nothing.
struct KernelSays<'a>(&'a Option<String>);

impl std::fmt::Display for KernelSays<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.0 {
            Some(message) => write!(f, " (the kernel says: {message})"),
            None => Ok(()),
        }
    }
}

impl From<tar::Error> for Error {
    fn from(error: tar::Error) -> Self {
        Self::Tar(error)
    }
}

impl From<tree::Error> for Error {
    fn from(error: tree::Error) -> Self {
        Self::Tree(error)
    }
}

impl From<erofs::Error> for Error {
    fn from(error: erofs::Error) -> Self {
        Self::Erofs(error)
    }
}

impl Explain for Error {
    fn class(&self) -> Class {
        match self {
            Self::Tar(error) => error.class(),
            Self::Tree(error) => error.class(),
            Self::Erofs(error) => error.class(),
            Self::DigestMismatch { .. } | Self::Damaged { .. } => Class::Corrupt,
            Self::NotFound(_) => Class::NotFound,
            Self::Mount { cause, .. } => match cause.errno {
                Errno::PERM | Errno::ACCESS => Class::Denied,
                Errno::NOSPC | Errno::NOMEM | Errno::MFILE | Errno::NFILE => Class::Exhausted,
                Errno::NOENT => Class::NotFound,
                Errno::BUSY => Class::Busy,
                Errno::UCLEAN | Errno::IO => Class::Corrupt,
                _ => Class::Unsupported,
            },
            Self::NotPrepared(_) => Class::NotFound,
            Self::NoDriver { .. } => Class::Unsupported,
            Self::UnknownDriver(_) | Self::HostNeedsUserns => Class::Invalid,
            Self::Output(cause) => match cause.kind() {
                std::io::ErrorKind::StorageFull => Class::Exhausted,
                _ => Class::Unavailable,
            },
            Self::Fs(error) => error.class(),
        }
    }

    fn code(&self) -> &'static str {
        match self {
            Self::Tar(error) => error.code(),
            Self::Tree(error) => error.code(),
            Self::Erofs(error) => error.code(),
            Self::DigestMismatch { .. } => "layer-digest-mismatch",
            Self::Damaged { .. } => "layer-damaged",
            Self::NotFound(_) => "layer-not-found",
            Self::Mount { .. } => "mount-failed",
            Self::NotPrepared(_) => "layer-not-unpacked",
            Self::NoDriver { .. } => "no-layer-driver",
            Self::HostNeedsUserns => "host-needs-userns",
            Self::UnknownDriver(_) => "unknown-layer-driver",
            Self::Output(_) => "archive-not-written",
            Self::Fs(error) => error.code(),
        }
    }

    fn hint(&self) -> Option<String> {
        match self {
            Self::DigestMismatch { .. } => Some(
                "the archive or the registry delivered other bytes; fetch the image again"
                    .to_owned(),
            ),
            Self::Damaged { .. } => Some("remove the image and pull or load it again".to_owned()),
            Self::NotFound(_) => Some("pull or load the image again".to_owned()),
            Self::Mount { cause, .. } => match cause.errno {
                Errno::PERM => Some("mounting needs root (CAP_SYS_ADMIN)".to_owned()),
                // mount(2): the limit on mounts answers with "no space left on device".
                Errno::NOSPC => Some("raise /proc/sys/fs/mount-max".to_owned()),
                Errno::UCLEAN => Some("remove the image and pull or load it again".to_owned()),
                _ => None,
            },
            Self::NotPrepared(_) => Some("pull or load the image again".to_owned()),
            Self::NoDriver { .. } => Some(
                "run as root, with a data root (`--root DIR`) on ext4, xfs or btrfs, and the \
                 kernel modules erofs and overlay"
                    .to_owned(),
            ),
            Self::HostNeedsUserns => Some("leave out `--userns=host`".to_owned()),
            Self::UnknownDriver(_) => Some(format!(
                "the drivers are {}",
                driver::Driver::ALL.map(driver::Driver::name).join(", ")
            )),
            Self::Fs(error) => error.hint(),
            Self::Tree(tree::Error::TooLarge { .. }) => Some(
                "a layer of so many files is refused to protect the machine; pull or load it while \
                 nothing else is, or make the image with fewer files in a layer"
                    .to_owned(),
            ),
            Self::Tar(_) | Self::Tree(_) | Self::Erofs(_) | Self::Output(_) => None,
        }
    }
}
