//! What an image is: pull, load and import into blobs and layers; names, lists, removal.

mod error;
mod image;
mod progress;
mod store;

pub use error::{Error, Result};
pub use image::{Image, ImageId, Listed, Removed, User};
pub use progress::{Event, LayerState, Progress, Silent};
pub use store::{
    Hold, ImportOptions, Listing, Loaded, PullOptions, PullPolicy, Pulled, SaveFormat, Source,
    Store,
};

/// A layer's id. TODO: `knarr_layer::LayerId` once it exists.
pub type LayerId = knarr_spec::Digest;
