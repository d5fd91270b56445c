//! Layers: an exact tar and an index that lets the kernel mount it without unpacking.
//!
//! Owns the tar format ([`tar`]), what a layer's members mean as a file tree ([`tree`]: OCI
//! whiteouts, hardlinks, duplicates, missing parents), the EROFS index whose extents point into the
//! tar ([`erofs`]), and where layers are kept ([`Store`], [`Ingest`]):
//!
//! ```text
//! <data>/layers/sha256/<id>/layer.tar     the uncompressed tar, byte for byte: its SHA-256 is the diff ID
//!                           index.erofs   inodes, directories, xattrs; file data = block numbers in layer.tar
//!                           layer.json    what it is (versioned)
//!                           tree/         only where the overlay driver unpacked it
//! <data>/layers/damaged/<id>/             set aside by a check
//! <data>/layers/.tmp-<random>/            an ingest in flight, which holds the folder with flock(2)
//! ```
//!
//! `<id>` is the layer's diff ID where its index is a function of the tar alone; otherwise (members
//! whose parent folders are not in the tar, hardlinks to files of a lower layer, an opaque root)
//! the chain ID. What such a layer takes from lower ones (a folder's metadata, a linked file's data)
//! is copied into its index, so that every layer is mounted from its own two files.
//!
//! And how they become a container's root: a [`Rootfs`] says what it is made of, [`mount`] makes it,
//! detached, from what a [`Driver`] shows of each layer. A layer has one superblock per host, which
//! later starts clone from whoever holds it:
//!
//! ```text
//! <run>/layers/<id>/holders/<pid>.<fd>    a symlink: this process lends the layer's mount
//! <run>/layers/<id>/lock                  held while somebody mounts it
//! <run>/driver                            which driver works here, found out once per boot
//! ```
//!
//! It never decompresses, never talks to a network, never decides which layers an image has, and
//! never lets a member's path lead anywhere: members become nodes of an in-memory tree, not files.
//!
//! Invariants: a published layer folder is complete and never changes (but for `tree/`, which
//! appears by one rename); `layer.tar` hashes to `diff_id`; the same tar over the same parents gives
//! the same index, bit for bit.

mod changes;
mod diff;
pub mod driver;
pub mod erofs;
mod error;
mod filesystem;
mod holder;
mod host;
mod ingest;
mod lower;
mod mount;
mod pack;
mod private;
mod rootfs;
pub mod store;
pub mod tar;
pub mod tree;
mod volume;

pub use changes::{Change, ChangeKind, changes};
pub use diff::diff;
pub use driver::{Driver, Snapshotter};
pub use error::{Error, Result};
pub use holder::sweep_holders;
pub use ingest::Ingest;
pub use mount::{HeldLayer, Mounted, mount, userns};
pub use pack::TarWriter;
pub use rootfs::{Base, IdMap, LayerPaths, Rootfs, Upper};
pub use store::{Contents, Layer, LayerId, Store};
pub use volume::copy_up;
