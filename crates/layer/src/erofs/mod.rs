//! The index of a layer: an EROFS image of its tree whose file data lie in the tar.
//!
//! ```text
//! byte 0      1024         1152           1536                  …              …
//! | zeros     | superblock | device slot  | inodes              | blocks       | copied data |
//!                            = layer.tar    64 or 32 bytes each,  directories,   what a tar extent
//!                                           xattrs, chunk         long symlinks  cannot express
//!                                           indexes, small tails
//! ```
//!
//! Blocks have 512 bytes, so a tar's data are block-aligned; a regular file is a *chunk-based* inode
//! whose chunks name blocks of device 1, which is mounted with `-o device=layer.tar`. Sparse
//! files, files of lower layers, and a last file whose padding is missing are copied into the index
//! itself (device 0), with holes.
//!
//! [`plan`] turns a tree into bytes, purely; [`Plan::write`] puts them into a file. The same tree
//! gives the same bytes. [`Index`] reads an index back.
//!
//! Sources: Linux `Documentation/filesystems/erofs.rst`, `fs/erofs/erofs_fs.h`. Needs Linux 5.16
//! for devices and chunks, 6.3 for 512-byte blocks. Limits: 2^32 blocks, so 2 TiB of tar and 2 TiB
//! of copied data.

mod crc32c;
mod error;
mod format;
mod plan;
mod read;
#[cfg(test)]
mod tests;

pub use error::Error;
pub use plan::{Plan, plan};
pub use read::{Entry, Index, Inode};
