//! What the store knows about one image.

use std::fmt;
use std::str::FromStr;

use knarr_spec::image::ImageConfig;
use knarr_spec::{Digest, DigestError, Platform, Reference};
use serde::{Deserialize, Serialize};

use crate::LayerId;

/// An image's id: the digest of its configuration's exact bytes, as `docker images` shows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ImageId(Digest);

impl ImageId {
    /// The digest it is.
    pub const fn digest(&self) -> Digest {
        self.0
    }

    /// The first 12 hexadecimal digits.
    pub fn short(&self) -> String {
        self.0.short()
    }
}

impl From<Digest> for ImageId {
    fn from(digest: Digest) -> Self {
        Self(digest)
    }
}

impl fmt::Display for ImageId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl FromStr for ImageId {
    type Err = DigestError;

    fn from_str(text: &str) -> Result<Self, DigestError> {
        text.parse().map(Self)
    }
}

/// An image in the store: everything a start needs.
#[derive(Debug, Clone, PartialEq)]
pub struct Image {
    /// The digest of its configuration.
    pub id: ImageId,
    /// The digest of its manifest, a blob of the store.
    pub manifest: Digest,
    /// What it was made for.
    pub platform: Platform,
    /// The parsed configuration; its exact bytes are [`crate::Store::config_bytes`].
    pub config: ImageConfig,
    /// Its layers in the layer store, bottom first.
    pub layers: Vec<LayerId>,
    /// Bytes of all layers, uncompressed.
    pub size: u64,
}

/// An image as `images` lists it.
#[derive(Debug, Clone, PartialEq)]
pub struct Listed {
    /// The image.
    pub image: Image,
    /// Names with a tag, sorted (`RepoTags`).
    pub tags: Vec<Reference>,
    /// Names with a digest, sorted (`RepoDigests`).
    pub digests: Vec<Reference>,
    /// Whether it has no tag of its own, but is of a whole index that has one: it is not dangling,
    /// and goes with the index.
    pub is_part: bool,
}

/// A container that uses an image, as the engine tells it to [`crate::Store::remove`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct User {
    /// The container's id.
    pub container: String,
    /// Whether it runs now; then not even force removes its image.
    pub running: bool,
}

/// A line of what `rmi` did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Removed {
    /// `Untagged: name`
    Untagged(Reference),
    /// `Deleted: sha256:…`, the image.
    Image(ImageId),
    /// `Deleted: sha256:…`, a layer that no other image has.
    Layer(LayerId),
}

impl fmt::Display for Removed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Untagged(name) => write!(f, "Untagged: {}", name.familiar()),
            Self::Image(id) => write!(f, "Deleted: {id}"),
            Self::Layer(id) => write!(f, "Deleted: {id}"),
        }
    }
}
