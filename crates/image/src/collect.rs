//! What no image has goes: while pulls, loads, commits and starts go on.
//!
//! There is no lock for all. Who brings an image holds each blob and layer of it (a shared flock(2)
//! on that object) from before he relies on its being there until the image's record is there, and
//! death ends a hold. So what is locked exclusively here, and is in no record that is read after
//! that, nobody has and nobody is about to have. What is held is left for the next time: collecting
//! waits for nobody, and others wait for it as long as some records take to be read.

use std::collections::{HashMap, HashSet};

use knarr_cas::Partials;
use knarr_fs::{Lock, failpoint};
use knarr_spec::Digest;
use knarr_spec::manifest::{DOCUMENT_LIMIT, Document};

use crate::record::Stamp;
use crate::{Error, ImageId, LayerId, Result, Store};

/// So many objects are locked, looked up and removed at a time; each takes a descriptor.
const BATCH: usize = 128;

/// What images need.
#[derive(Debug, Clone, Default)]
pub struct References {
    /// Each image with its blobs (configuration, manifest, and compressed layers that may have been
    /// kept) and its layers.
    pub images: Vec<(ImageId, Vec<Digest>, Vec<LayerId>)>,
    /// Some image cannot be read: nobody knows what that one needs.
    pub unsure: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Object {
    Blob(Digest),
    Layer(LayerId),
}

/// What the records that were read so far need, hidden images' included.
#[derive(Default)]
struct Needed {
    objects: HashSet<Object>,
    /// Manifests whose layers' blobs are not among `objects` yet.
    manifests: HashSet<Digest>,
    read: HashMap<ImageId, Stamp>,
    /// The whole indexes whose parts are among `objects`.
    indexes: HashSet<Digest>,
}

impl Store {
    /// Which image needs which blobs and layers, hidden images included.
    ///
    /// # Errors
    /// When the records' folder cannot be read.
    pub fn references(&self) -> Result<References> {
        let mut references = References::default();
        for id in self.records.ids()? {
            match self.records.read(id) {
                Ok(Some(record)) => {
                    let mut blobs = vec![id.digest(), record.image.manifest];
                    blobs.extend(self.blobs_in(record.image.manifest));
                    references.images.push((id, blobs, record.image.layers));
                }
                Ok(None) => {}
                Err(_) => references.unsure = true,
            }
        }
        let all = self.names.all()?;
        for (name, index) in &all.indexes {
            if let Some(id) = all.names.get(name) {
                let blobs = self.parts(*index)?.blobs().collect();
                references.images.push((*id, blobs, Vec::new()));
            }
        }
        Ok(references)
    }

    /// Removes the blobs and layers that no image has, and what killed calls left; not what a pull,
    /// load, import or commit that is under way holds.
    ///
    /// # Errors
    /// When the store cannot be read or something not be removed.
    pub fn collect_garbage(&self) -> Result<()> {
        self.collect().map(drop)
    }

    /// Where the blobs are that pulls have in part, and what interrupted ones left to go on with.
    pub fn interrupted(&self) -> std::path::PathBuf {
        self.blobs.partials()
    }

    /// Gives up what interrupted pulls left to go on with.
    ///
    /// # Errors
    /// When it cannot be removed.
    pub fn forget_interrupted(&self) -> Result<()> {
        Ok(self.blobs.sweep(Partials::All)?)
    }

    /// [`collect_garbage`](Self::collect_garbage); gives the layers that went.
    pub(crate) fn collect(&self) -> Result<Vec<LayerId>> {
        let mut needed = Needed::default();
        // With a damaged image nobody knows what is needed: everything stays.
        if !self.learn(&mut needed)? {
            return Ok(Vec::new());
        }
        let layers = self.layers.list()?.into_iter().map(Object::Layer);
        let blobs = self.blobs.list()?.into_iter().map(Object::Blob);
        let mut doubtful: Vec<Object> = layers.chain(blobs).collect();
        doubtful.retain(|object| !needed.objects.contains(object));
        let mut gone = Vec::new();
        for batch in doubtful.chunks(BATCH) {
            gone.extend(self.collect_batch(batch, &mut needed)?);
        }
        self.layers.sweep()?;
        self.records.sweep()?;
        self.blobs.sweep(Partials::Old)?;
        Ok(gone)
    }

    fn collect_batch(&self, batch: &[Object], needed: &mut Needed) -> Result<Vec<LayerId>> {
        let mut locked: Vec<(Object, Lock)> = Vec::new();
        for object in batch {
            let lock = match object {
                Object::Blob(digest) => self.blobs.try_lock(*digest)?,
                Object::Layer(id) => self.layers.try_lock(id)?,
            };
            locked.extend(lock.map(|lock| (*object, lock)));
        }
        failpoint!("image.collecting");
        let mut gone = Vec::new();
        // Whatever was held until now is in a record now.
        if locked.is_empty() || !self.learn(needed)? {
            return Ok(gone);
        }
        if locked
            .iter()
            .any(|(object, _)| matches!(object, Object::Blob(_)))
        {
            for manifest in std::mem::take(&mut needed.manifests) {
                let blobs = self.blobs_in(manifest).into_iter().map(Object::Blob);
                needed.objects.extend(blobs);
            }
            // And what whole indexes need, which the names hold together.
            for index in self.names.all()?.indexes.into_values() {
                if needed.indexes.insert(index) {
                    let blobs = self.parts(index)?;
                    needed.objects.extend(blobs.blobs().map(Object::Blob));
                }
            }
        }
        for (object, _lock) in locked {
            if needed.objects.contains(&object) {
                continue;
            }
            match object {
                Object::Blob(digest) => {
                    self.blobs.remove(digest)?;
                    failpoint!("image.blob-removed");
                }
                Object::Layer(id) => {
                    self.layers.remove(&id)?;
                    failpoint!("image.layer-removed");
                    gone.push(id);
                }
            }
        }
        Ok(gone)
    }

    /// Reads the records that came or changed since the last time; whether all can be read.
    fn learn(&self, needed: &mut Needed) -> Result<bool> {
        for id in self.records.ids()? {
            // Taken before it is read: one that changes meanwhile is read again.
            let Some(stamp) = self.records.stamp(id)? else {
                continue;
            };
            if needed.read.get(&id) == Some(&stamp) {
                continue;
            }
            match self.records.read(id) {
                Ok(Some(record)) => {
                    let (image, own) = (record.image, Object::Blob(id.digest()));
                    needed.objects.extend([own, Object::Blob(image.manifest)]);
                    needed
                        .objects
                        .extend(image.layers.into_iter().map(Object::Layer));
                    needed.manifests.insert(image.manifest);
                    needed.read.insert(id, stamp);
                }
                Ok(None) => {}
                Err(Error::Record { .. } | Error::Version { .. }) => return Ok(false),
                Err(error) => return Err(error),
            }
        }
        Ok(true)
    }

    /// The layers' blobs of a manifest, which may have been kept when it was pulled.
    fn blobs_in(&self, manifest: Digest) -> Vec<Digest> {
        let bytes = self
            .blobs
            .read(manifest, DOCUMENT_LIMIT)
            .unwrap_or_default();
        match Document::parse(&bytes, "") {
            Ok(Document::Manifest(manifest)) => manifest.layers.iter().map(|l| l.digest).collect(),
            _ => Vec::new(),
        }
    }

    /// Does something that brings layers in; where it fails, they go again. (A failed pull keeps
    /// them: the next one goes on from there.)
    pub(crate) fn or_collect<T>(&self, bring: impl FnOnce() -> Result<T>) -> Result<T> {
        bring().inspect_err(|_| {
            // The failure is what has to be told; what stays here, the next removal collects.
            self.collect().ok();
        })
    }
}
