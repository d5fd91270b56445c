//! The tar format, with the meaning that Go's `archive/tar` gives it, because that is what every
//! image was made and first read with.
//!
//! [`Reader`] takes bytes as they come and gives [`Member`]s; it does no I/O and holds no more
//! memory than [`Limits`] allows, whatever the bytes say. [`encode`] turns a member into header
//! bytes.
//!
//! Understood: V7, ustar, PAX (`x`; `g` is read and has no effect, as in Go, Docker and
//! containerd), GNU long names (`L`, `K`), base-256 numbers, STAR prefixes, GNU sparse files (type
//! `S`, PAX 0.0, 0.1 and 1.0), `SCHILY.xattr.*` and `LIBARCHIVE.xattr.*`.
//!
//! Two rules that other readers have got wrong, with holes as the result: a PAX `size` always wins
//! over the header's, and an `x` header belongs to the next *file*, never to an `L` or `K` header
//! in between (CVE-2025-62518 and its family).
//!
//! Sources: POSIX.1-2017 pax, "ustar Interchange Format" and "pax Header Block"; GNU tar manual,
//! "Basic Tar Format" and "Storing Sparse Files"; libarchive tar(5).

#![warn(clippy::indexing_slicing, clippy::arithmetic_side_effects)]

mod encode;
mod error;
mod header;
mod pax;
mod reader;
mod sparse;
#[cfg(test)]
mod tests;

pub use encode::{TRAILER, encode, padding};
pub(crate) use error::show;
pub use error::{Error, Reason};
pub use reader::{Event, Limits, Reader};

use crate::tree::{Time, Xattrs};

/// The unit of everything in a tar, in bytes.
pub const BLOCK: u64 = 512;

/// One file of an archive, its extended headers merged in.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Member {
    /// Its name as it stands in the archive: any bytes but NUL, maybe absolute, maybe with `..`.
    pub path: Vec<u8>,
    /// What a hardlink or symlink points to.
    pub link: Vec<u8>,
    /// What it is.
    pub kind: Kind,
    /// The mode field, file type bits and all.
    pub mode: i64,
    /// The owner's number.
    pub uid: i64,
    /// The group's number.
    pub gid: i64,
    /// The owner's name, maybe empty.
    pub owner: Vec<u8>,
    /// The group's name, maybe empty.
    pub group: Vec<u8>,
    /// Last modification.
    pub mtime: Time,
    /// Major and minor number of a device.
    pub device: (i64, i64),
    /// Extended attributes by full name.
    pub xattrs: Xattrs,
    /// The size of the file in bytes, holes of sparse files included.
    pub size: u64,
    /// Where the data begins in the archive, a multiple of 512.
    pub data: u64,
    /// How many bytes of data follow in the archive.
    pub data_size: u64,
    /// The pieces of a sparse file, whose data follow each other from `data` on.
    pub sparse: Option<Box<[Segment]>>,
}

/// What a member is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Kind {
    /// A regular file, also for type flags that nobody knows (POSIX asks for that).
    #[default]
    File,
    /// Another name of the member called `link`.
    HardLink,
    /// A symbolic link.
    Symlink,
    /// A character device.
    CharDevice,
    /// A block device.
    BlockDevice,
    /// A directory.
    Dir,
    /// A named pipe.
    Fifo,
}

impl Kind {
    /// Whether bytes follow the header; for the others a size means nothing.
    pub const fn has_data(self) -> bool {
        matches!(self, Self::File)
    }
}

/// A piece of a sparse file that holds data.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Segment {
    /// Where in the file.
    pub offset: u64,
    /// How many bytes.
    pub len: u64,
}
