//! What can go wrong with images.

use knarr_diag::{Class, Explain};

/// Why an image operation failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// No image of that name or id.
    #[error("no such image: {name}")]
    NotFound {
        /// What was asked for.
        name: String,
        /// Names in the store that look like it, best first.
        near: Vec<String>,
    },
}

/// The crate's result.
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Explain for Error {
    fn class(&self) -> Class {
        match self {
            Self::NotFound { .. } => Class::NotFound,
        }
    }

    fn code(&self) -> &'static str {
        match self {
            Self::NotFound { .. } => "image-not-found",
        }
    }
}
