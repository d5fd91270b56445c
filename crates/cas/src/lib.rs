//! Content-addressed blobs: small files named by the digest of their bytes.
//!
//! Owns, below a data root:
//!
//! ```text
//! blobs/sha256/<hex>        the bytes; visible only whole; flock: shared by who needs the blob
//!                           and is about to say so, exclusive to remove it
//! blobs/partial/            what is still being written: unnamed, or `.<random>` where the file
//!                           system knows no unnamed files; flock: its writer;
//!                           `<hex>/` a blob that is partly here (kept by `knarr-image`)
//! blobs/damaged/<hex>       set aside because its bytes no longer give its name
//! ```
//!
//! Invariants: a name in `sha256/` appears by one link after the bytes were hashed and fsynced, and
//! never takes the place of another file; bytes read through [`Store::read`] were hashed in the same
//! call. It never interprets a blob and knows no reference from one to another: which may be removed
//! is the caller's question. Who removes one asks for its lock first ([`Store::try_lock`]).
//!
//! ```
//! # let root = knarr_fs::TempDir::new_in(&std::env::temp_dir()).unwrap();
//! let store = knarr_cas::Store::open(root.path()).unwrap();
//! let digest = store.put(b"{}").unwrap();
//! assert_eq!(store.read(digest, 100).unwrap(), b"{}");
//! ```

mod error;
mod hash;
mod store;

pub use error::{Error, Result};
pub use hash::Hasher;
pub use store::{Partials, Store, Writer};
