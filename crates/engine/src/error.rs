//! What can go wrong with containers.

use knarr_diag::{Class, Explain};

/// The crate's result.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why an operation on a container or volume failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// No container of that name or id.
    #[error("No such container: {name}")]
    NotFound {
        /// What was asked for.
        name: String,
        /// Names that look like it, best first.
        near: Vec<String>,
    },
}

impl Explain for Error {
    fn class(&self) -> Class {
        match self {
            Self::NotFound { .. } => Class::NotFound,
        }
    }

    fn code(&self) -> &'static str {
        match self {
            Self::NotFound { .. } => "container-not-found",
        }
    }
}
