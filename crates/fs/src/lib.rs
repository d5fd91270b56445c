//! Files: every path that is not Knarr's own is resolved below a [`Root`] handle, and every error
//! names its path.
//!
//! Two kinds of paths, two kinds of functions:
//! - **Untrusted** paths come from images, containers, archives and requests. They are only ever
//!   given to a [`Root`], which resolves them with `openat2` (Linux 5.6) inside a directory:
//!   symlinks and `..` clamp to it, magic links are refused.
//! - **Knarr's own** paths (its data and run folders) go through the functions of this crate that
//!   take a [`Path`](std::path::Path): [`read`], [`write_atomic`], [`rename`], [`Lock`], [`TempDir`],
//!   [`Trash`], …
//!
//! Durability: [`write_atomic`] with [`Durability::Durable`] writes a temporary file, fsyncs it,
//! renames it, and fsyncs the folder; with [`Durability::Volatile`] it does no fsync.
//!
//! [`failpoint!`] marks the instants at which a SIGKILL leaves different things behind; tests kill
//! the process there.
//!
//! It never decides *what* is stored, and knows no file format.

mod error;
mod failpoint;
mod file;
mod inode;
mod lock;
mod root;
mod trash;
pub mod tree;

pub use error::{Error, Result};
pub use failpoint::hit as failpoint_hit;
pub use file::{
    Durability, TempDir, create_dir_all, create_dir_all_durable, create_dir_private, create_empty,
    file_names, link_names, open_read, read, read_link, read_record, read_to_string, remove_file,
    remove_tree, rename, rename_durable, sweep, symlink, sync_dir, write_atomic,
};
pub use inode::{Inode, Times, times_of};
pub use lock::Lock;
pub use root::Root;
pub use trash::Trash;
