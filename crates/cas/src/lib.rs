//! Content-addressed blobs: small files named by the digest of their bytes.
//!
//! Owns, below a data root:
//!
//! ```text
//! blobs/sha256/<hex>        the bytes; visible only whole and durable
//! blobs/partial/            what is still being written: unnamed, or `.<random>` for the instant
//!                           before its rename; `.lease` is the lock of `Store::lease`;
//!                           `<hex>/` a blob that is partly here (kept by `knarr-image`)
//! blobs/damaged/<hex>       set aside because its bytes no longer give its name
//! ```
//!
//! Invariants: a name in `sha256/` appears by one rename after the bytes were hashed and fsynced;
//! bytes read through [`Store::read`] were hashed in the same call. It never interprets a blob and
//! knows no reference from one to another: who may be removed is the caller's question
//! ([`Store::collect`]).
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
pub use store::{Store, Writer};
