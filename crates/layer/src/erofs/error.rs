//! Why a tree cannot become an index, or an index cannot be read.

use std::io;

use knarr_diag::{Class, Explain};

/// A failure to write or read an index.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// More than an index can address.
    #[error("{what} of {size} bytes: an index can hold {limit}")]
    TooLarge {
        /// What is too large.
        what: &'static str,
        /// How large it is.
        size: u64,
        /// The limit in bytes.
        limit: u64,
    },
    /// A file operation failed.
    #[error("cannot {0}")]
    Io(&'static str, #[source] io::Error),
    /// The bytes are not an index that Knarr wrote.
    #[error("the index is damaged at byte {offset}: {what}")]
    Damaged {
        /// Where.
        offset: u64,
        /// What does not fit.
        what: &'static str,
    },
}

impl Explain for Error {
    fn class(&self) -> Class {
        match self {
            Self::TooLarge { .. } => Class::Unsupported,
            Self::Damaged { .. } => Class::Corrupt,
            Self::Io(_, error) => match error.kind() {
                io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Class::Exhausted,
                io::ErrorKind::UnexpectedEof => Class::Corrupt,
                _ => Class::Unavailable,
            },
        }
    }

    fn code(&self) -> &'static str {
        match self {
            Self::TooLarge { .. } => "layer-too-large",
            Self::Damaged { .. } => "layer-index-damaged",
            Self::Io(..) => "layer-index-io",
        }
    }
}
