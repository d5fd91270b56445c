//! Why members do not make a tree.

use knarr_diag::{Class, Explain};

/// A member that cannot be placed in the tree. Paths are shown with escapes for bytes that are not
/// printable.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// A component of a path is something other than a directory.
    #[error("`{path}` leads through something that is not a directory")]
    NotADirectory {
        /// The member's path.
        path: String,
    },
    /// Too many symlinks on the way.
    #[error("`{path}` leads through too many symbolic links")]
    Loop {
        /// The member's path.
        path: String,
    },
    /// A name longer than 255 bytes, or a path that the kernel would not take.
    #[error("`{path}` is a path that Linux cannot have: {why}")]
    Path {
        /// The member's path, shortened.
        path: String,
        /// What is wrong with it.
        why: &'static str,
    },
    /// A field that has no place in an inode.
    #[error("`{path}` has {what} {value}, which no file can have")]
    Value {
        /// The member's path.
        path: String,
        /// Which field.
        what: &'static str,
        /// What it says.
        value: i64,
    },
    /// A hardlink to something that is neither in this layer nor in a lower one.
    #[error("`{path}` is a hardlink to `{target}`, which does not exist")]
    LinkTarget {
        /// The member's path.
        path: String,
        /// What it links to.
        target: String,
    },
    /// A hardlink to a directory.
    #[error("`{path}` is a hardlink to `{target}`, which is a directory")]
    LinkToDirectory {
        /// The member's path.
        path: String,
        /// What it links to.
        target: String,
    },
    /// The tree would take more memory than allowed, together with those of the layers that are
    /// taken in at the same time.
    #[error(
        "the layer has too many or too large entries: describing it, and the layers that come with it, \
         takes more than {} MiB of memory", limit >> 20
    )]
    TooLarge {
        /// The limit, in bytes.
        limit: usize,
    },
    /// A lower layer, needed to place a member, could not be read.
    #[error("cannot look up `{path}` in the lower layers: {why}")]
    Below {
        /// The path that was looked up.
        path: String,
        /// What went wrong.
        why: String,
    },
}

impl Explain for Error {
    fn class(&self) -> Class {
        match self {
            Self::TooLarge { .. } => Class::Exhausted,
            Self::Below { .. } => Class::Corrupt,
            _ => Class::Invalid,
        }
    }

    fn code(&self) -> &'static str {
        match self {
            Self::NotADirectory { .. } => "layer-path-not-a-directory",
            Self::Loop { .. } => "layer-path-loop",
            Self::Path { .. } => "layer-path-invalid",
            Self::Value { .. } => "layer-value-invalid",
            Self::LinkTarget { .. } => "layer-link-target-missing",
            Self::LinkToDirectory { .. } => "layer-link-to-directory",
            Self::TooLarge { .. } => "layer-too-large",
            Self::Below { .. } => "layer-below-unreadable",
        }
    }
}
