//! What can go wrong with blobs.

use std::path::PathBuf;

use knarr_diag::{Class, Explain};
use knarr_spec::Digest;

/// Why a blob could not be stored or read.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A file operation failed.
    #[error("cannot access the blob store")]
    File(#[from] knarr_fs::Error),
    /// The store has no such blob.
    #[error("blob {digest} is not in the store")]
    Missing {
        /// The blob.
        digest: Digest,
    },
    /// The bytes that came are not those that were announced.
    #[error("digest mismatch: expected {expected}, got {got}")]
    Mismatch {
        /// The announced digest.
        expected: Digest,
        /// What the bytes gave.
        got: Digest,
    },
    /// A stored blob's bytes changed; it was moved out of the way.
    #[error("blob {digest} is damaged (its bytes give {got}); set aside as {}", aside.display())]
    Damaged {
        /// The blob's name.
        digest: Digest,
        /// What its bytes gave.
        got: Digest,
        /// Where it is now.
        aside: PathBuf,
    },
    /// A blob that is read whole is too large for that.
    #[error("blob {digest} has {size} bytes, more than the {limit} that are read at once")]
    TooLarge {
        /// The blob.
        digest: Digest,
        /// Its size in bytes.
        size: u64,
        /// The most that is read, in bytes.
        limit: u64,
    },
}

/// The crate's result.
pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    /// Whether the blob is missing or was just set aside, so that fetching it again helps.
    pub fn is_gone(&self) -> bool {
        matches!(self, Self::Missing { .. } | Self::Damaged { .. })
    }
}

impl Explain for Error {
    fn class(&self) -> Class {
        match self {
            Self::File(error) => error.class(),
            Self::Missing { .. } => Class::NotFound,
            Self::Mismatch { .. } | Self::Damaged { .. } => Class::Corrupt,
            Self::TooLarge { .. } => Class::Exhausted,
        }
    }

    fn code(&self) -> &'static str {
        match self {
            Self::File(error) => error.code(),
            Self::Missing { .. } => "blob-missing",
            Self::Mismatch { .. } => "digest-mismatch",
            Self::Damaged { .. } => "blob-damaged",
            Self::TooLarge { .. } => "blob-too-large",
        }
    }

    fn hint(&self) -> Option<String> {
        match self {
            Self::File(error) => error.hint(),
            Self::Damaged { .. } => {
                Some("pull or load its image again; check the disk if it recurs".to_owned())
            }
            _ => None,
        }
    }
}
