//! What can go wrong with a layer.

use knarr_diag::{Class, Explain};
use knarr_spec::Digest;

use crate::{erofs, store::LayerId, tar, tree};

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
    /// A file operation failed.
    #[error(transparent)]
    Fs(#[from] knarr_fs::Error),
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
            Self::Fs(error) => error.hint(),
            Self::Tar(_) | Self::Tree(_) | Self::Erofs(_) => None,
        }
    }
}
