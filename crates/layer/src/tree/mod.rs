//! What a layer's members mean: one file tree, in memory.
//!
//! A [`Tree`] is what extracting the tar would leave behind, with OCI whiteouts
//! (image-spec layer.md, "Whiteouts") turned into node kinds. It is built by a [`Builder`], member
//! by member, and then written as an EROFS index or unpacked. File contents stay where they are: a
//! [`File`] says which ranges of which [`Sources`] make it up.
//!
//! Nodes live in one arena; a hardlink is a second directory entry with the same [`NodeId`].

mod below;
mod build;
mod entries;
mod error;
mod sources;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;

pub use below::Below;
pub use build::{Builder, Built, Limits, Links};
pub use entries::Entries;
pub use error::Error;
pub use sources::Sources;

/// A node of a [`Tree`]. Ids are dense and start at 0, the root; in a finished tree they follow a
/// depth-first walk in byte order of names.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NodeId(pub(crate) u32);

impl NodeId {
    /// The root directory.
    pub const ROOT: Self = Self(0);

    pub(crate) fn index(self) -> usize {
        self.0 as usize
    }
}

/// A point in time: seconds since 1970 (negative before) plus nanoseconds (0 to 999,999,999).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Time {
    /// Whole seconds, rounded down.
    pub seconds: i64,
    /// The rest.
    pub nanoseconds: u32,
}

/// Extended attributes by full name (`user.mime_type`). Values are bytes.
pub type Xattrs = BTreeMap<Box<[u8]>, Box<[u8]>>;

/// What every inode has.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Meta {
    /// Permission bits with setuid, setgid and sticky: `& 0o7777`.
    pub mode: u16,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Last modification.
    pub mtime: Time,
    /// Extended attributes, where there are any; never one of overlayfs' own.
    pub xattrs: Option<Box<Xattrs>>,
}

impl Meta {
    /// What a directory gets that no layer describes: 0755, root, 1970.
    pub fn implied_dir() -> Self {
        Self {
            mode: 0o755,
            ..Self::default()
        }
    }

    /// The extended attributes by name.
    pub fn xattrs(&self) -> impl Iterator<Item = (&[u8], &[u8])> {
        let all = self.xattrs.iter().flat_map(|xattrs| xattrs.iter());
        all.map(|(name, value)| (&name[..], &value[..]))
    }
}

/// Attributes as [`Meta`] has them.
pub(crate) fn boxed(xattrs: Xattrs) -> Option<Box<Xattrs>> {
    (!xattrs.is_empty()).then(|| Box::new(xattrs))
}

/// An inode: its metadata and what it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Node {
    /// Mode, owner, times, attributes.
    pub meta: Meta,
    /// How many directory entries lead to it (directories: 2 plus their subdirectories).
    pub links: u32,
    /// What it is.
    pub kind: Kind,
}

/// What an inode is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Kind {
    /// A directory.
    Dir(Box<Dir>),
    /// A regular file.
    File(File),
    /// A symbolic link and what it says (1 to 4095 bytes, no NUL).
    Symlink(Box<[u8]>),
    /// A character device.
    CharDevice(Device),
    /// A block device.
    BlockDevice(Device),
    /// A named pipe.
    Fifo,
    /// A socket. No tar has them, an index may.
    Socket,
    /// Hides what lower layers have under this name: overlayfs' character device 0:0.
    Whiteout,
}

/// A directory's entries.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Dir {
    /// By name: 1 to 255 bytes, no `/`, no NUL, neither `.` nor `..`.
    pub entries: Entries,
    /// Hides everything that lower layers have in this directory (`trusted.overlay.opaque=y`).
    pub opaque: bool,
}

/// A device number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Device {
    /// The driver: 12 bits.
    pub major: u32,
    /// The instance: 20 bits.
    pub minor: u32,
}

/// A regular file's content, described.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct File {
    /// Size in bytes.
    pub size: u64,
    /// Where the bytes are.
    pub content: Content,
}

/// Where a file's bytes are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Content {
    /// All of them in the layer's own tar, from this byte on (a multiple of 512).
    Tar(u64),
    /// In pieces, ascending and disjoint; what lies between them is zeros.
    Pieces(Box<[Piece]>),
}

/// A range of a file that is not all zeros.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Piece {
    /// Where in the file it goes.
    pub at: u64,
    /// Its length; more than 0.
    pub len: u64,
    /// Which of the [`Sources`] holds it.
    pub source: usize,
    /// Where in that source it begins.
    pub offset: u64,
}

impl File {
    /// The ranges that hold data, ascending and disjoint; the rest of the file is zeros.
    pub fn pieces(&self) -> impl Iterator<Item = Piece> + '_ {
        let (whole, pieces) = match &self.content {
            Content::Tar(offset) => {
                let piece = Piece {
                    at: 0,
                    len: self.size,
                    source: Sources::TAR,
                    offset: *offset,
                };
                (Some(piece), &[][..])
            }
            Content::Pieces(pieces) => (None, &pieces[..]),
        };
        whole
            .into_iter()
            .filter(|piece| piece.len > 0)
            .chain(pieces.iter().copied())
    }
}

/// A layer's file tree.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tree {
    nodes: Vec<Node>,
}

impl Tree {
    /// A tree from its nodes: the first is the root directory, every entry leads to one of them.
    pub(crate) fn from_nodes(nodes: Vec<Node>) -> Self {
        Self { nodes }
    }

    /// A node; ids come from this tree's own directories.
    ///
    /// # Panics
    /// If the id is another tree's.
    pub fn node(&self, id: NodeId) -> &Node {
        &self.nodes[id.index()]
    }

    /// The entries of the directory `id`, in byte order; nothing where it is not a directory.
    pub fn entries(&self, id: NodeId) -> impl Iterator<Item = (&[u8], NodeId)> {
        let dir = match &self.node(id).kind {
            Kind::Dir(dir) => Some(dir),
            _ => None,
        };
        dir.into_iter().flat_map(|dir| dir.entries.iter())
    }

    /// All nodes with their ids.
    pub fn nodes(&self) -> impl Iterator<Item = (NodeId, &Node)> {
        (0..).map(NodeId).zip(&self.nodes)
    }

    /// How many inodes there are.
    pub fn len(&self) -> usize {
        self.nodes.len()
    }

    /// Whether there is nothing but the root directory.
    pub fn is_empty(&self) -> bool {
        self.nodes.len() <= 1
    }

    /// The node at a path relative to the root, `/` between names; symlinks are not followed.
    pub fn find(&self, path: &[u8]) -> Option<NodeId> {
        path.split(|&byte| byte == b'/')
            .filter(|name| !name.is_empty())
            .try_fold(NodeId::ROOT, |id, name| match &self.node(id).kind {
                Kind::Dir(dir) => dir.entries.get(name),
                _ => None,
            })
    }
}
