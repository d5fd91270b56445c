//! Why bytes are not a tar.

use std::fmt;

use knarr_diag::{Class, Explain};

/// Where an archive stops making sense, and how.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Error {
    /// The byte of the archive at which the offending block begins.
    pub offset: u64,
    /// The member it belongs to, or the one before it; with escapes, maybe shortened.
    pub member: Option<String>,
    /// What is wrong.
    pub reason: Reason,
}

/// What is wrong with an archive.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Reason {
    /// It ends in the middle of something.
    #[error("it ends too early")]
    Truncated,
    /// A header's checksum does not match.
    #[error("the header's checksum is wrong")]
    Checksum,
    /// One block of zeros is followed by something else than another one.
    #[error("a lone block of zeros is followed by data")]
    LoneZeroBlock,
    /// A number field holds something else than a number that fits.
    #[error("the header's {0} is not a number that fits")]
    Number(&'static str),
    /// A PAX record is malformed.
    #[error("a PAX record is malformed")]
    Pax,
    /// A sparse file's map is malformed, overlapping or at odds with its size.
    #[error("the sparse file's map makes no sense")]
    Sparse,
    /// An extended header or sparse map is larger than allowed.
    #[error("its {what} is larger than the allowed {limit}")]
    TooLarge {
        /// Which part.
        what: &'static str,
        /// The limit, in bytes or entries.
        limit: usize,
    },
    /// A volume of a multi-volume archive.
    #[error("it continues a file from another volume")]
    MultiVolume,
    /// Extended headers at the end of the archive, with no file after them.
    #[error("an extended header has no file after it")]
    Dangling,
    /// A value that the writer cannot express.
    #[error("{0} cannot be written")]
    Unwritable(&'static str),
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "tar: at byte {}", self.offset)?;
        if let Some(member) = &self.member {
            write!(f, ", near `{member}`")?;
        }
        write!(f, ": {}", self.reason)
    }
}

impl std::error::Error for Error {}

impl Explain for Error {
    fn class(&self) -> Class {
        match self.reason {
            Reason::TooLarge { .. } => Class::Exhausted,
            Reason::MultiVolume => Class::Unsupported,
            _ => Class::Corrupt,
        }
    }

    fn code(&self) -> &'static str {
        match self.reason {
            Reason::TooLarge { .. } => "tar-too-large",
            Reason::MultiVolume => "tar-unsupported",
            _ => "tar-malformed",
        }
    }
}

/// A path for messages: printable, and of bearable length.
pub(crate) fn show(path: &[u8]) -> String {
    const MOST: usize = 200;
    match path.get(..MOST) {
        Some(start) if path.len() > MOST => format!("{}…", start.escape_ascii()),
        _ => path.escape_ascii().to_string(),
    }
}
