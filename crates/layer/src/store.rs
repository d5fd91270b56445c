//! Where layers are kept.

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use knarr_spec::{Digest, DigestError};
use serde::{Deserialize, Serialize};

use crate::tree::{Sources, Tree};
use crate::{Ingest, Result};

/// The name of the exact tar in a layer's folder.
pub const TAR: &str = "layer.tar";
/// The name of the EROFS index in a layer's folder.
pub const INDEX: &str = "index.erofs";
/// The name of the description in a layer's folder.
pub const MANIFEST: &str = "layer.json";
/// The name of the unpacked tree that the overlay driver adds.
pub const TREE: &str = "tree";

/// Names a layer in the store: its diff ID where it is self-contained, else its chain ID
/// (image-spec config.md, "Layer ChainID").
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[serde(transparent)]
pub struct LayerId(Digest);

impl LayerId {
    /// The digest it is.
    pub const fn digest(&self) -> Digest {
        self.0
    }
}

impl From<Digest> for LayerId {
    fn from(digest: Digest) -> Self {
        Self(digest)
    }
}

impl fmt::Display for LayerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl FromStr for LayerId {
    type Err = DigestError;
    fn from_str(text: &str) -> std::result::Result<Self, DigestError> {
        text.parse().map(Self)
    }
}

/// A layer that is in the store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Layer {
    /// Its name in the store.
    pub id: LayerId,
    /// The SHA-256 of its uncompressed tar.
    pub diff_id: Digest,
    /// The size of the tar in bytes.
    pub size: u64,
    /// The size of the index in bytes.
    pub index_size: u64,
    /// Whether the index is a function of the tar alone.
    pub self_contained: bool,
    /// The diff IDs of the layers below, bottom first; empty where it is self-contained.
    pub parents: Vec<Digest>,
    /// How many inodes it has.
    pub inodes: u64,
}

/// A layer's tree with what holds its files' bytes.
#[derive(Debug)]
pub struct Contents {
    /// The files.
    pub tree: Tree,
    /// Their bytes.
    pub sources: Sources,
}

/// The layers of one data root.
#[derive(Debug, Clone)]
pub struct Store {
    folder: PathBuf,
}

impl Store {
    /// The store below a data root; folders are made when they are needed.
    pub fn open(data_root: &Path) -> Self {
        Self {
            folder: data_root.join("layers"),
        }
    }

    /// The folder of a layer, whether it exists or not.
    pub fn path(&self, id: &LayerId) -> PathBuf {
        self.folder.join("sha256").join(id.digest().hex())
    }

    /// Begins to take in an uncompressed tar; write its bytes to the [`Ingest`], then
    /// [finish](Ingest::finish) it.
    ///
    /// # Errors
    /// Where the temporary folder cannot be made.
    pub fn ingest(&self, expected_diff_id: Option<Digest>) -> Result<Ingest> {
        Ingest::new(self.clone(), expected_diff_id)
    }

    /// The layer with this diff ID as it is over these parents (bottom first), if it is present.
    ///
    /// # Errors
    /// Where a description cannot be read.
    pub fn find(&self, diff_id: Digest, parents: &[LayerId]) -> Result<Option<Layer>> {
        let _ = (diff_id, parents);
        todo!()
    }

    /// A layer's description.
    ///
    /// # Errors
    /// [`Error::NotFound`](crate::Error::NotFound), [`Error::Damaged`](crate::Error::Damaged).
    pub fn load(&self, id: &LayerId) -> Result<Layer> {
        let _ = id;
        todo!()
    }

    /// The ids of all layers, in no order.
    ///
    /// # Errors
    /// Where the folder cannot be listed.
    pub fn list(&self) -> Result<Vec<LayerId>> {
        todo!()
    }

    /// Removes a layer; one that is gone already is fine.
    ///
    /// # Errors
    /// Where it cannot be renamed into the trash.
    pub fn remove(&self, id: &LayerId) -> Result<()> {
        let _ = id;
        todo!()
    }

    /// Reads a layer's whole tree from its index.
    ///
    /// # Errors
    /// Where the layer is missing or damaged.
    pub fn contents(&self, id: &LayerId) -> Result<Contents> {
        let _ = id;
        todo!()
    }

    /// Hashes the tar again and reads the index through.
    ///
    /// # Errors
    /// [`Error::Damaged`](crate::Error::Damaged) where something differs.
    pub fn verify(&self, id: &LayerId) -> Result<()> {
        let _ = id;
        todo!()
    }

    /// Removes what killed ingests left behind; returns how many.
    ///
    /// # Errors
    /// Where a leftover cannot be removed.
    pub fn sweep(&self) -> Result<usize> {
        todo!()
    }
}
