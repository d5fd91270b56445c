//! What an image is: pull, load and import into blobs and layers; names, lists, removal.
//!
//! Owns, below the data root:
//!
//! ```text
//! refs/<registry>/<repo…>/_tags/<tag>        one image id, like a git ref; the whole index that it is of
//!                         _digests/<hex>     one image id: the digest a registry has for it
//! images/<hex of the image id>/image.json    manifest digest, layer ids, the configuration (versioned)
//!                              lock          flock: shared by who uses the image, exclusive to remove it
//!                              removed       marks a removal under way, or waiting for a stopped container
//! blobs/sha256/<hex>                         manifests and configurations (kept by `knarr-cas`)
//! blobs/partial/<hex>/                       what came of a blob that is on its way, or broke off
//! manifests/<name>.json                      a list that `manifest create` made; .lock
//! layers/                                    (kept by `knarr-layer`)
//! <run root>/claims/<diff id>                flock: who is bringing this layer
//! ```
//!
//! An image's id is the digest of its configuration, as Docker's. It exists from the rename of its
//! folder in `images/` until `removed` appears in it: both are single steps, so a killed pull, load
//! or rmi did nothing or everything; what it leaves besides is unreachable and is removed by the
//! next [`Store::remove`].
//!
//! ```text
//! registry ═ connections ═ blobs/partial ─┐                         ┌ finish, bottom up ─ image.json ─ names
//! archive ────────────────────────────────┴ inflate, hash ─ Ingest ┘  (index, fsync, rename)
//! ```
//!
//! Layers come in all at once, each in threads of its own, and are published from the bottom up;
//! every thread is joined before a call returns. Who brings an image holds shared locks on its layers
//! and blobs until it is published, so that a collection at the same time leaves them.
//!
//! A whole index (`--all-platforms`) is its blobs and a second line in the files of its names; each of
//! its images is an image of its own.
//!
//! It never mounts a layer, never runs anything, and prints nothing: it tells a [`Progress`].

mod announce;
mod archive;
mod assemble;
mod change;
mod check;
mod collect;
mod commit;
mod compress;
mod copy;
mod error;
mod fetch;
mod image;
mod import;
mod inflate;
mod load;
mod manifest_list;
mod names;
mod near;
mod partial;
mod progress;
mod pull;
mod push;
mod record;
mod remove;
mod save;
mod select;
mod store;
mod travelled;
mod trust;
mod whole;
mod yaml;

pub use check::{Checked, Finding, Outcome};
pub use collect::References;
pub use commit::{CommitOptions, WriteLayer};
pub use compress::{Compression, Kind as CompressionKind};
pub use copy::{CopyOptions, Location, LocationError};
pub use error::{Error, Result};
pub use image::{Image, ImageId, Listed, Removed, User};
pub use knarr_layer::LayerId;
pub use manifest_list::{ManifestList, ManifestNote};
pub use progress::{Event, LayerState, Progress, Silent};
pub use push::{PushOptions, Pushed};
pub use select::best;
pub use store::{
    Hold, ImportOptions, Listing, Loaded, PullOptions, PullPolicy, Pulled, SaveFormat, Source,
    Store,
};
