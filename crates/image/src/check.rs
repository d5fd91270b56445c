//! `system check`: everything hashed again; what is damaged set aside and made or fetched anew.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::path::Path;
use std::sync::{Mutex, PoisonError};
use std::thread;

use knarr_cas::Hasher;
use knarr_diag::Explain as _;
use knarr_fs::{Durability, failpoint};
use knarr_layer::Layer;
use knarr_spec::manifest::{DOCUMENT_LIMIT, Document};
use knarr_spec::{Digest, Reference};

use crate::record::NewRecord;
use crate::remove::Users;
use crate::{Error, Image, ImageId, LayerId, Progress, PullOptions, Result, Store};

/// What a check looked at and found.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Checked {
    /// Images whose descriptions were read.
    pub images: usize,
    /// Blobs that were hashed.
    pub blobs: usize,
    /// Layers that were hashed, their indexes read through.
    pub layers: usize,
    /// Bytes that were hashed.
    pub bytes: u64,
    /// What is wrong.
    pub findings: Vec<Finding>,
}

/// One thing that is wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// `layer sha256:…`, `blob …`, `image …`, `name …`.
    pub object: String,
    /// What is wrong with it.
    pub what: String,
    /// The images that need it, by name or id.
    pub needed_by: Vec<String>,
    /// What became of it.
    pub outcome: Outcome,
}

/// What became of a finding.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// Nothing was to be changed.
    Found,
    /// It is whole again; the text says how.
    Repaired(String),
    /// It could not be repaired; the text says why, and what helps.
    Unrepaired(String),
}

/// Who needs a layer: the image, and the layer's place in it.
type Owners<'a> = BTreeMap<LayerId, Vec<(&'a Image, usize)>>;

impl Store {
    /// Hashes every blob and layer again and reads every description. With `repair`, what is
    /// damaged is set aside, and made again from what is here, or fetched from where its image
    /// came from: only what is damaged, never the rest. Without, nothing is changed.
    ///
    /// Pulls, removals and starts may go on meanwhile. An image that is removed counts while `users`
    /// names a container that has it; else its removal is under way, or was cut short.
    ///
    /// # Errors
    /// When the store's folders cannot be read. What is wrong in them is in [`Checked::findings`].
    pub fn check(
        &self,
        repair: Option<&PullOptions>,
        users: Users<'_>,
        progress: &dyn Progress,
    ) -> Result<Checked> {
        let mut checked = Checked::default();
        let images = self.check_records(repair.is_some(), users, &mut checked)?;
        self.check_names(&images, repair.is_some(), &mut checked)?;
        self.check_blobs(&images, repair, progress, &mut checked)?;
        self.check_layers(&images, repair, progress, &mut checked)?;
        Ok(checked)
    }

    fn check_records(
        &self,
        repair: bool,
        users: Users<'_>,
        checked: &mut Checked,
    ) -> Result<Vec<Image>> {
        let mut images = Vec::new();
        for id in self.records.ids()? {
            checked.images += 1;
            let error = match self.records.read(id) {
                Ok(Some(record)) if !record.removed || !users(id).is_empty() => {
                    images.push(record.image);
                    continue;
                }
                // Removed, or about to be: what it has may be gone.
                Ok(Some(_) | None) => continue,
                Err(error) => error,
            };
            let outcome = match (&error, repair) {
                (Error::Record { .. }, true) => match self.rewrite_record(id) {
                    Ok(image) => {
                        images.push(image);
                        Outcome::Repaired("written again from its manifest".to_owned())
                    }
                    Err(why) => Outcome::Unrepaired(why.report().one_line()),
                },
                _ => Outcome::Found,
            };
            checked.findings.push(Finding {
                object: format!("image {}", id.short()),
                what: error.report().one_line(),
                needed_by: Vec::new(),
                outcome,
            });
        }
        Ok(images)
    }

    /// `image.json` from the blobs: the manifest that names this configuration.
    fn rewrite_record(&self, id: ImageId) -> Result<Image> {
        let config = self.config_bytes(id)?;
        let name = id.to_string();
        for digest in self.blobs.list()? {
            let Ok(bytes) = self.blobs.read(digest, DOCUMENT_LIMIT) else {
                continue;
            };
            let Ok(Document::Manifest(manifest)) = Document::parse(&bytes, "") else {
                continue;
            };
            if manifest.config.digest != id.digest() {
                continue;
            }
            let parsed = crate::select::check_config(&name, &config, manifest.layers.len(), None)?;
            let mut layers: Vec<Layer> = Vec::new();
            for diff_id in &parsed.rootfs.diff_ids {
                let below: Vec<LayerId> = layers.iter().map(|layer| layer.id).collect();
                let found = self.layers.find(*diff_id, &below)?;
                layers.push(found.ok_or(knarr_layer::Error::NotFound((*diff_id).into()))?);
            }
            drop(self.records.publish(&NewRecord {
                id,
                manifest: digest,
                config: &config,
                layers: layers.iter().map(|layer| layer.id).collect(),
                size: layers.iter().map(|layer| layer.size).sum(),
            })?);
            return self.get(id);
        }
        Err(knarr_cas::Error::Missing {
            digest: id.digest(),
        }
        .into())
    }

    fn check_names(&self, images: &[Image], repair: bool, checked: &mut Checked) -> Result<()> {
        let all = self.names.all()?;
        for error in all.damaged {
            let outcome = match (&error, repair) {
                (Error::NameFile { path, .. }, true) => {
                    let _lock = self.names.lock()?;
                    knarr_fs::remove_file(path)?;
                    Outcome::Repaired("removed; give the name again with `knarr tag`".to_owned())
                }
                _ => Outcome::Found,
            };
            checked.findings.push(Finding {
                object: "name".to_owned(),
                what: error.report().one_line(),
                needed_by: Vec::new(),
                outcome,
            });
        }
        for (name, id) in all.names {
            // It may have come or gone since the images were listed.
            if images.iter().any(|image| image.id == id) || self.records.exists(id) {
                continue;
            }
            let lock = self.names.lock()?;
            if !matches!(self.names.read(&name), Ok(Some(now)) if now == id) {
                continue;
            }
            let outcome = if repair {
                self.names.remove(&lock, &name, Durability::Durable)?;
                Outcome::Repaired("removed".to_owned())
            } else {
                Outcome::Found
            };
            checked.findings.push(Finding {
                object: format!("name {}", name.familiar()),
                what: format!("it means image {}, which is not here", id.short()),
                needed_by: Vec::new(),
                outcome,
            });
        }
        Ok(())
    }

    fn check_blobs(
        &self,
        images: &[Image],
        repair: Option<&PullOptions>,
        progress: &dyn Progress,
        checked: &mut Checked,
    ) -> Result<()> {
        let mut owners: BTreeMap<Digest, Vec<&Image>> = BTreeMap::new();
        for image in images {
            for digest in [image.id.digest(), image.manifest] {
                owners.entry(digest).or_default().push(image);
            }
        }
        let mut of_indexes: BTreeSet<Digest> = BTreeSet::new();
        let all = self.names.all()?;
        for (name, index) in &all.indexes {
            let id = all.names.get(name);
            if let Some(image) = images.iter().find(|image| Some(&image.id) == id) {
                for digest in self.parts(*index)?.needed {
                    owners.entry(digest).or_default().push(image);
                    of_indexes.insert(digest);
                }
            }
        }
        let here: BTreeSet<Digest> = self.blobs.list()?.into_iter().collect();
        let needed: BTreeSet<Digest> = owners.keys().copied().collect();
        for digest in here.union(&needed) {
            let what = match self.blobs.rehash(*digest) {
                Ok(got) if got == *digest => {
                    checked.blobs += 1;
                    checked.bytes += self.blob_size(*digest);
                    continue;
                }
                Ok(got) => format!("its bytes give {got}"),
                Err(knarr_cas::Error::Missing { .. }) => {
                    let gone = owners.get(digest).is_none_or(|images| {
                        !images.iter().any(|image| self.records.exists(image.id))
                    });
                    if gone {
                        continue;
                    }
                    "it is missing".to_owned()
                }
                Err(error) => return Err(error.into()),
            };
            let owners = owners.get(digest).map(Vec::as_slice).unwrap_or_default();
            let outcome = match repair {
                None => Outcome::Found,
                Some(options) => {
                    // Sets it aside where its bytes are wrong.
                    self.blobs.verify(*digest).ok();
                    failpoint!("check.set-aside");
                    let options = PullOptions {
                        all_platforms: of_indexes.contains(digest),
                        ..options.clone()
                    };
                    self.repair_blob(*digest, owners, &options, progress)
                }
            };
            checked.findings.push(Finding {
                object: format!("blob {digest}"),
                what,
                needed_by: self.called(owners),
                outcome,
            });
        }
        Ok(())
    }

    fn blob_size(&self, digest: Digest) -> u64 {
        let file = self.blobs.open_blob(digest).ok();
        file.and_then(|file| file.metadata().ok())
            .map_or(0, |metadata| metadata.len())
    }

    /// A configuration stands in the image's record too; the manifest of an image that was made
    /// here can be made again; everything else is where the image came from.
    fn repair_blob(
        &self,
        digest: Digest,
        owners: &[&Image],
        options: &PullOptions,
        progress: &dyn Progress,
    ) -> Outcome {
        let Some(image) = owners.first() else {
            return Outcome::Repaired("set aside; no image needs it".to_owned());
        };
        let local = || -> Result<bool> {
            let config = self.records.config(image.id)?;
            let bytes = if digest == image.id.digest() {
                config
            } else {
                let tars = self.tars(image)?;
                crate::load::plain_manifest(&config, tars.into_iter()).map_err(|cause| {
                    Error::Config {
                        name: image.id.to_string(),
                        cause,
                    }
                })?
            };
            if Hasher::digest(&bytes) != digest {
                return Ok(false);
            }
            self.blobs.put(&bytes)?;
            Ok(true)
        };
        if let Ok(true) = local() {
            return Outcome::Repaired("written again from the image's description".to_owned());
        }
        self.fetch(image, options, progress, &|| self.blobs.contains(digest))
    }

    fn check_layers(
        &self,
        images: &[Image],
        repair: Option<&PullOptions>,
        progress: &dyn Progress,
        checked: &mut Checked,
    ) -> Result<()> {
        let mut owners = Owners::new();
        for image in images {
            for (at, id) in image.layers.iter().enumerate() {
                owners.entry(*id).or_default().push((image, at));
            }
        }
        let mut ids: BTreeSet<LayerId> = self.layers.list()?.into_iter().collect();
        ids.extend(owners.keys());
        for (id, verified) in self.verify_all(ids) {
            let error = match verified {
                Ok(layer) => {
                    checked.layers += 1;
                    checked.bytes += layer.size;
                    continue;
                }
                Err(error) => error,
            };
            let owners = owners.get(&id).map(Vec::as_slice).unwrap_or_default();
            let needed = |(image, _): &(&Image, usize)| self.records.exists(image.id);
            if let knarr_layer::Error::NotFound(_) = error
                && !owners.iter().any(needed)
            {
                // Removed meanwhile.
                continue;
            }
            let outcome = match repair {
                None => Outcome::Found,
                Some(options) => self.repair_layer(id, owners, options, progress),
            };
            let images: Vec<&Image> = owners.iter().map(|(image, _)| *image).collect();
            checked.findings.push(Finding {
                object: format!("layer {id}"),
                what: match error {
                    knarr_layer::Error::Damaged { what, .. } => what,
                    knarr_layer::Error::NotFound(_) => "it is missing".to_owned(),
                    error => error.report().one_line(),
                },
                needed_by: self.called(&images),
                outcome,
            });
        }
        Ok(())
    }

    /// On all cores: hashing is what takes the time.
    fn verify_all(
        &self,
        ids: BTreeSet<LayerId>,
    ) -> Vec<(LayerId, std::result::Result<Layer, knarr_layer::Error>)> {
        let workers = thread::available_parallelism().map_or(2, usize::from);
        let workers = workers.min(ids.len());
        let queue = Mutex::new(VecDeque::from_iter(ids));
        let done = Mutex::new(Vec::new());
        thread::scope(|scope| {
            for _ in 0..workers {
                scope.spawn(|| {
                    loop {
                        let next = queue
                            .lock()
                            .unwrap_or_else(PoisonError::into_inner)
                            .pop_front();
                        let Some(id) = next else { return };
                        let verified = self.layers.verify(&id).and_then(|()| self.layers.load(&id));
                        done.lock()
                            .unwrap_or_else(PoisonError::into_inner)
                            .push((id, verified));
                    }
                });
            }
        });
        let mut done = done.into_inner().unwrap_or_else(PoisonError::into_inner);
        done.sort_by_key(|(id, _)| *id);
        done
    }

    fn repair_layer(
        &self,
        id: LayerId,
        owners: &[(&Image, usize)],
        options: &PullOptions,
        progress: &dyn Progress,
    ) -> Outcome {
        let aside = match self.layers.set_aside(&id) {
            Ok(aside) => Some(aside),
            // A repair that was killed may have set it aside.
            Err(knarr_layer::Error::Fs(error)) if error.is_not_found() => {
                Some(self.layers.aside(&id)).filter(|aside| aside.is_dir())
            }
            Err(error) => return Outcome::Unrepaired(error.report().one_line()),
        };
        failpoint!("check.set-aside");
        let Some((image, at)) = owners.first() else {
            return Outcome::Repaired("set aside; no image needs it".to_owned());
        };
        if let Some(aside) = &aside
            && self.index_again(id, image, *at, aside).is_ok()
        {
            self.trash().throw(aside).ok();
            return Outcome::Repaired("indexed again from its tar".to_owned());
        }
        self.fetch(image, options, progress, &|| self.layers.load(&id).is_ok())
    }

    /// Takes a layer in again from a tar that is whole.
    fn index_again(&self, id: LayerId, image: &Image, at: usize, aside: &Path) -> Result<()> {
        let parents = image.layers.get(..at).unwrap_or_default();
        let diff_id = image.config.rootfs.diff_ids.get(at).copied();
        let tar = aside.join(knarr_layer::store::TAR);
        let mut tar = std::fs::File::from(knarr_fs::open_read(&tar)?);
        let mut ingest = self.layers.ingest(diff_id)?;
        crate::inflate::pump(&mut tar, &mut ingest)
            .map_err(|_| knarr_layer::Error::NotFound(id))?;
        let layer = ingest.finish(parents)?;
        if layer.id == id {
            Ok(())
        } else {
            Err(knarr_layer::Error::NotFound(id).into())
        }
    }

    /// Pulls what is missing of an image from where it came from.
    fn fetch(
        &self,
        image: &Image,
        options: &PullOptions,
        progress: &dyn Progress,
        whole: &dyn Fn() -> bool,
    ) -> Outcome {
        let listed = match self.describe(image.clone()) {
            Ok(listed) => listed,
            Err(error) => return Outcome::Unrepaired(error.report().one_line()),
        };
        let options = PullOptions {
            platform: Some(image.platform.clone()),
            ..options.clone()
        };
        let mut failures = Vec::new();
        for source in &listed.digests {
            match self.pull(source, &options, progress) {
                Ok(pulled) if pulled.image.id == image.id && whole() => {
                    return Outcome::Repaired(format!("fetched again from {}", source.familiar()));
                }
                Ok(_) => failures.push(format!("{} has another image", source.familiar())),
                Err(error) => failures.push(error.report().one_line()),
            }
        }
        if failures.is_empty() {
            failures.push(
                "set aside; it came from no registry: load, import or build its image again"
                    .to_owned(),
            );
        }
        Outcome::Unrepaired(failures.join("; "))
    }

    /// Images by a name, or by id.
    fn called(&self, images: &[&Image]) -> Vec<String> {
        let names = self.names.all().unwrap_or_default();
        let called = images.iter().map(|image| {
            let tagged = names.of(image.id).find(|name| name.digest().is_none());
            let name = tagged.or_else(|| names.of(image.id).next());
            name.map_or_else(|| image.id.short(), Reference::familiar)
        });
        let called: BTreeSet<String> = called.collect();
        called.into_iter().collect()
    }
}
