//! What a pull or load tells whoever waits for it.

use knarr_spec::{Digest, Reference};

/// Receives [`Event`]s, from several threads at once and often: draw at your own pace.
pub trait Progress: Sync {
    /// Something moved on.
    fn event(&self, event: &Event);
}

/// Tells nobody.
#[derive(Debug, Clone, Copy, Default)]
pub struct Silent;

impl Progress for Silent {
    fn event(&self, _: &Event) {}
}

/// One step of a pull, load or import.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Event {
    /// The pull of this reference begins (`latest: Pulling from library/debian`).
    Pulling(Reference),
    /// The push to this reference begins (`The push refers to repository [docker.io/user/app]`).
    Pushing(Reference),
    /// The registry took a layer from another of its repositories (`Mounted from user/app`).
    Mounted {
        /// Which one.
        layer: Digest,
        /// The repository.
        from: String,
    },
    /// A layer's state; `layer` is the digest the manifest or archive names it by (Docker prints
    /// its first 12 digits).
    Layer {
        /// Which one.
        layer: Digest,
        /// How far it is.
        state: LayerState,
    },
    /// The registry's digest for the reference (`Digest: sha256:…`).
    Resolved(Digest),
    /// An image of an archive is in the store (`Loaded image: name`).
    Loaded(crate::Loaded),
    /// Something failed that will be tried again; the text says what and when.
    Retrying(String),
}

/// How far a layer is. Byte counts are of the compressed stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum LayerState {
    /// Known, nothing done yet (`Pulling fs layer`).
    Pending,
    /// In the store already (`Already exists`).
    Exists,
    /// Bytes arrive and are inflated, hashed and written as they do (`Downloading`).
    Receiving {
        /// Bytes so far.
        done: u64,
        /// Bytes in all; 0 where unknown.
        total: u64,
    },
    /// Bytes are compressed and sent (`Pushing`).
    Sending {
        /// Bytes so far, as they travel.
        done: u64,
        /// Bytes of the layer's tar, or as they travel where that is known.
        total: u64,
    },
    /// The registry has it (`Pushed`).
    Sent,
    /// All bytes are here and both digests are right (`Download complete`).
    Received,
    /// In the store, durable (`Pull complete`).
    Complete,
}
