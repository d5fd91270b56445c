//! The layers under the one being built.

use super::{Error, Node};

/// The merged view of the lower layers, asked where a member's place or a hardlink's target is not
/// in the layer itself. Paths are lists of names from the root; symlinks are not followed.
pub trait Below: Send {
    /// What is at `path` in the merged view, directories without their entries. `None`: nothing.
    /// A regular file's pieces refer to sources that this call may add.
    ///
    /// # Errors
    /// [`Error::Below`] when a lower layer cannot be read.
    fn lookup(&mut self, path: &[&[u8]]) -> Result<Option<Node>, Error>;

    /// All visible paths of the inode at `path`, itself included: more than one where it has
    /// hardlinks.
    ///
    /// # Errors
    /// [`Error::Below`] when a lower layer cannot be read.
    fn links(&mut self, path: &[&[u8]]) -> Result<Vec<Vec<Box<[u8]>>>, Error>;

    /// All names that may be visible in the root directory of the merged view.
    ///
    /// # Errors
    /// [`Error::Below`] when a lower layer cannot be read.
    fn root_names(&mut self) -> Result<Vec<Box<[u8]>>, Error>;
}
