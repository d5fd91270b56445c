//! Where layers are kept.

use std::fmt;
use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use aws_lc_rs::digest;
use knarr_fs::{Lock, Trash};
use knarr_spec::{Digest, DigestError};
use serde::{Deserialize, Serialize};

use crate::erofs::Index;
use crate::lower::Lower;
use crate::tree::{Sources, Tree};
use crate::{Error, Ingest, Result};

/// The name of the exact tar in a layer's folder.
pub const TAR: &str = "layer.tar";
/// The name of the EROFS index in a layer's folder.
pub const INDEX: &str = "index.erofs";
/// The name of the description in a layer's folder.
pub const MANIFEST: &str = "layer.json";
/// The name of the file in a layer's folder that who needs the layer locks.
pub(crate) const LOCK: &str = "lock";
/// The folder of layers that were set aside.
pub const DAMAGED: &str = "damaged";
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
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
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

/// The version of [`MANIFEST`] that is written and understood.
const VERSION: u32 = 1;

/// What [`MANIFEST`] holds.
#[derive(Serialize, Deserialize)]
struct Manifest {
    version: u32,
    #[serde(flatten)]
    layer: Layer,
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
    trash: Trash,
}

impl Store {
    /// The store below a data root; folders are made when they are needed.
    pub fn open(data_root: &Path) -> Self {
        Self {
            folder: data_root.join("layers"),
            trash: Trash::below(data_root),
        }
    }

    /// The folder of a layer, whether it exists or not.
    pub fn path(&self, id: &LayerId) -> PathBuf {
        self.by_digest().join(id.digest().hex())
    }

    /// Where ingests have their temporary folders.
    pub(crate) fn folder(&self) -> &Path {
        &self.folder
    }

    fn by_digest(&self) -> PathBuf {
        self.folder.join("sha256")
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
    /// Where a description cannot be read, a parent's included.
    pub fn find(&self, diff_id: Digest, parents: &[LayerId]) -> Result<Option<Layer>> {
        // A lowest layer that is not self-contained is named by its diff ID too: its chain ID.
        if let Some(layer) = self.load_if_present(&LayerId(diff_id))?
            && (layer.self_contained || parents.is_empty())
        {
            return Ok(Some(layer));
        }
        if parents.is_empty() {
            return Ok(None);
        }
        let below = self.diff_ids(parents)?;
        self.load_if_present(&chain_id(&below, diff_id))
    }

    /// A layer's description.
    ///
    /// # Errors
    /// [`Error::NotFound`], [`Error::Damaged`].
    pub fn load(&self, id: &LayerId) -> Result<Layer> {
        self.load_if_present(id)?.ok_or(Error::NotFound(*id))
    }

    fn load_if_present(&self, id: &LayerId) -> Result<Option<Layer>> {
        let damaged = |what: String| Error::Damaged { id: *id, what };
        let bytes = match knarr_fs::read(&self.path(id).join(MANIFEST)) {
            Ok(bytes) => bytes,
            Err(error) if error.is_not_found() => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        let manifest: Manifest = serde_json::from_slice(&bytes)
            .map_err(|error| damaged(format!("{MANIFEST} cannot be read: {error}")))?;
        if manifest.version != VERSION {
            return Err(damaged(format!(
                "{MANIFEST} has version {}, this Knarr knows {VERSION}",
                manifest.version
            )));
        }
        if manifest.layer.id != *id {
            return Err(damaged(format!("{MANIFEST} is of {}", manifest.layer.id)));
        }
        Ok(Some(manifest.layer))
    }

    /// The diff IDs of some layers, in their order.
    pub(crate) fn diff_ids(&self, layers: &[LayerId]) -> Result<Vec<Digest>> {
        layers.iter().map(|id| Ok(self.load(id)?.diff_id)).collect()
    }

    /// The ids of all layers, in no order.
    ///
    /// # Errors
    /// Where the folder cannot be listed.
    pub fn list(&self) -> Result<Vec<LayerId>> {
        let names = knarr_fs::file_names(&self.by_digest())?;
        let digests = names
            .iter()
            .filter_map(|name| Digest::from_hex(name.to_str()?).ok());
        Ok(digests.map(LayerId).collect())
    }

    /// Removes a layer; one that is gone already is fine. Mounts of it live on; its space is free
    /// when the trash has been emptied and the last of them is gone.
    ///
    /// # Errors
    /// Where it cannot be renamed into the trash.
    pub fn remove(&self, id: &LayerId) -> Result<()> {
        Ok(self.trash.throw(&self.path(id))?)
    }

    /// Reads a layer's whole tree from its index.
    ///
    /// # Errors
    /// Where the layer is missing or damaged.
    pub fn contents(&self, id: &LayerId) -> Result<Contents> {
        let (tar, index) = self.files(id)?;
        let copied = index.try_clone();
        let mut sources = Sources::new(tar);
        let index = Index::open(index)?;
        let copied = copied.map_err(knarr_fs::Error::of_io("open", "dup", &self.path(id)))?;
        let copied = sources.add(copied);
        let tree = index.tree([Sources::TAR, copied])?;
        Ok(Contents { tree, sources })
    }

    /// The tar and the index, open.
    pub(crate) fn files(&self, id: &LayerId) -> Result<(fs::File, fs::File)> {
        let folder = self.path(id);
        let open = |name| match knarr_fs::open_read(&folder.join(name)) {
            Ok(file) => Ok(fs::File::from(file)),
            Err(error) if error.is_not_found() && folder.exists() => Err(Error::Damaged {
                id: *id,
                what: format!("{name} is missing"),
            }),
            Err(error) if error.is_not_found() => Err(Error::NotFound(*id)),
            Err(error) => Err(error.into()),
        };
        Ok((open(TAR)?, open(INDEX)?))
    }

    /// The merged view of some layers, bottom first, and their files as further sources.
    pub(crate) fn lower(&self, layers: &[LayerId], sources: &mut Sources) -> Result<Lower> {
        let mut lower = Lower::default();
        for id in layers {
            let (tar, index) = self.files(id)?;
            let copied =
                index
                    .try_clone()
                    .map_err(knarr_fs::Error::of_io("open", "dup", &self.path(id)))?;
            let numbers = [sources.add(tar), sources.add(copied)];
            lower.push(Index::open(index)?, numbers);
        }
        Ok(lower)
    }

    /// Hashes the tar again and reads the index through.
    ///
    /// # Errors
    /// [`Error::Damaged`] where something differs.
    pub fn verify(&self, id: &LayerId) -> Result<()> {
        let damaged = |what: String| Error::Damaged { id: *id, what };
        let layer = self.load(id)?;
        let (mut tar, index) = self.files(id)?;
        let path = self.path(id).join(TAR);
        let mut hash = digest::Context::new(&digest::SHA256);
        let mut buffer = vec![0; 256 << 10];
        let mut size = 0;
        loop {
            match tar.read(&mut buffer) {
                Ok(0) => break,
                Ok(count) => {
                    hash.update(buffer.get(..count).unwrap_or_default());
                    size += count as u64;
                }
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                Err(error) => {
                    return Err(knarr_fs::Error::of_io("read", "read", &path)(error).into());
                }
            }
        }
        let found = digest_of(hash);
        if found != layer.diff_id || size != layer.size {
            return Err(damaged(format!(
                "{TAR} has digest {found} and {size} bytes instead of {} and {}",
                layer.diff_id, layer.size
            )));
        }
        let tree = Index::open(index).and_then(|index| index.tree([0, 1]));
        match tree {
            Ok(tree) if tree.len() as u64 == layer.inodes => Ok(()),
            Ok(tree) => Err(damaged(format!(
                "{INDEX} has {} inodes instead of {}",
                tree.len(),
                layer.inodes
            ))),
            Err(error) => Err(damaged(error.to_string())),
        }
    }

    /// Moves a damaged layer out of the way, as evidence: `layers/damaged/<hex>`, in the place of
    /// an earlier one. Mounts of it live on. Gives where it is.
    ///
    /// # Errors
    /// Where it cannot be renamed.
    pub fn set_aside(&self, id: &LayerId) -> Result<PathBuf> {
        let aside = self.aside(id);
        if let Some(damaged) = aside.parent() {
            knarr_fs::create_dir_all(damaged)?;
        }
        if self.path(id).exists() {
            self.trash.throw(&aside)?;
        }
        knarr_fs::rename_durable(&self.path(id), &aside)?;
        Ok(aside)
    }

    /// Where a layer is, or would be, when it was set aside.
    pub fn aside(&self, id: &LayerId) -> PathBuf {
        self.folder.join(DAMAGED).join(id.digest().hex())
    }

    /// Keeps a layer from being collected while it lives (a shared flock(2) in its folder). `None`
    /// where there is no such layer.
    ///
    /// # Errors
    /// As open(2) and flock(2).
    pub fn hold(&self, id: &LayerId) -> Result<Option<Lock>> {
        present(Lock::shared(&self.lock_path(id)))
    }

    /// [`find`](Self::find), and a [hold](Self::hold) on what was found.
    ///
    /// # Errors
    /// As both.
    pub fn find_and_hold(
        &self,
        diff_id: Digest,
        parents: &[LayerId],
    ) -> Result<Option<(Layer, Lock)>> {
        let Some(layer) = self.find(diff_id, parents)? else {
            return Ok(None);
        };
        // One that was removed in between is not there.
        Ok(self.hold(&layer.id)?.map(|hold| (layer, hold)))
    }

    /// For who wants to remove a layer: keeps everybody from [holding](Self::hold) it. `None` where
    /// somebody does, or there is no such layer.
    ///
    /// # Errors
    /// As open(2) and flock(2).
    pub fn try_lock(&self, id: &LayerId) -> Result<Option<Lock>> {
        present(Lock::try_exclusive(&self.lock_path(id))).map(Option::flatten)
    }

    /// The file of a layer that is locked.
    pub fn lock_path(&self, id: &LayerId) -> PathBuf {
        self.path(id).join(LOCK)
    }

    /// Removes what killed ingests left behind, that is temporary folders that nobody holds;
    /// returns how many.
    ///
    /// # Errors
    /// Where a leftover cannot be removed.
    pub fn sweep(&self) -> Result<usize> {
        Ok(knarr_fs::sweep(&self.folder)?)
    }

    /// The bytes of a layer's [`MANIFEST`].
    pub(crate) fn manifest(layer: &Layer) -> Vec<u8> {
        let manifest = Manifest {
            version: VERSION,
            layer: layer.clone(),
        };
        // Plain data always serializes.
        let mut bytes = serde_json::to_vec_pretty(&manifest).unwrap_or_default();
        bytes.push(b'\n');
        bytes
    }
}

/// A lock on what may not be there.
fn present<T>(lock: knarr_fs::Result<T>) -> Result<Option<T>> {
    match lock {
        Ok(lock) => Ok(Some(lock)),
        Err(error) if error.is_not_found() => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// What a finished SHA-256 computation gives.
pub(crate) fn digest_of(hash: digest::Context) -> Digest {
    let mut bytes = [0; 32];
    for (to, from) in bytes.iter_mut().zip(hash.finish().as_ref()) {
        *to = *from;
    }
    Digest::from_bytes(bytes)
}

/// The chain ID of a layer over others (image-spec config.md): `SHA256(chain below + " " + diff ID)`.
pub(crate) fn chain_id(below: &[Digest], diff_id: Digest) -> LayerId {
    let mut all = below.iter().copied().chain([diff_id]);
    let first = all.next().unwrap_or(diff_id);
    LayerId(all.fold(first, |chain, next| {
        let mut hash = digest::Context::new(&digest::SHA256);
        hash.update(format!("{chain} {next}").as_bytes());
        digest_of(hash)
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn digest(digit: &str) -> Digest {
        Digest::from_hex(&digit.repeat(64)).unwrap()
    }

    #[test]
    fn chain_id_of_the_lowest_layer_is_its_diff_id() {
        assert_eq!(chain_id(&[], digest("a")).digest(), digest("a"));
        // printf 'sha256:aa… sha256:bb…' | sha256sum
        assert_eq!(
            chain_id(&[digest("a")], digest("b")).to_string(),
            CHAIN_OF_A_AND_B
        );
    }

    const CHAIN_OF_A_AND_B: &str =
        "sha256:ccd722928bd92476ba1745586fed6e45a102504185ad88cd89e01ff116fd146c";

    #[test]
    fn the_manifest_is_golden() {
        let layer = Layer {
            id: LayerId(digest("c")),
            diff_id: digest("b"),
            size: 10240,
            index_size: 2048,
            self_contained: false,
            parents: vec![digest("a")],
            inodes: 3,
        };
        let json = String::from_utf8(Store::manifest(&layer)).unwrap();
        let (a, b, c) = ("a".repeat(64), "b".repeat(64), "c".repeat(64));
        assert_eq!(
            json,
            format!(
                r#"{{
  "version": 1,
  "id": "sha256:{c}",
  "diff_id": "sha256:{b}",
  "size": 10240,
  "index_size": 2048,
  "self_contained": false,
  "parents": [
    "sha256:{a}"
  ],
  "inodes": 3
}}
"#
            )
        );
        let back: Manifest = serde_json::from_str(&json).unwrap();
        assert_eq!(back.layer, layer);
    }
}
