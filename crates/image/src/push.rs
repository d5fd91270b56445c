//! To a registry.

use std::collections::{BTreeMap, VecDeque};
use std::fs::File;
use std::io::{self, Read};
use std::sync::{Mutex, PoisonError};
use std::thread::{self, available_parallelism};

use knarr_cas::Hasher;
use knarr_distribution::{Client, Open, Session};
use knarr_spec::image::{Descriptor, Manifest, media_type};
use knarr_spec::manifest::Document;
use knarr_spec::{Digest, Platform, Reference};
use serde_json::Value;

use crate::compress::{Compression, Kind, Pool};
use crate::copy::Top;
use crate::names::Meaning;
use crate::travelled::Travelled;
use crate::whole::{self, Export};
use crate::{Error, Event, Hold, Image, LayerId, LayerState, Progress, Result, Store};

/// Layers that are sent at a time.
const LAYERS: usize = 4;
/// Blocks of a layer that are compressed ahead at most.
const AHEAD: usize = 8;

/// How to push.
#[derive(Debug, Clone, Default)]
pub struct PushOptions {
    /// How layers are compressed that the registry lacks and that are not here compressed. Where it
    /// is not said, what the registry has in any other form will do.
    pub compression: Option<Compression>,
    /// One image of a whole index; the whole of it by default.
    pub platform: Option<Platform>,
    /// Credentials, certificates, plain http: how registries are reached.
    pub registry: knarr_distribution::Settings,
}

/// What a push did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pushed {
    /// The digest of the manifest that the registry has now.
    pub digest: Digest,
    /// Its size in bytes.
    pub size: u64,
    /// The digest that the image came with, where that was another.
    pub was: Option<Digest>,
}

/// One push.
struct Push<'a> {
    store: &'a Store,
    client: &'a Client<'a>,
    reference: &'a Reference,
    name: String,
    options: &'a PushOptions,
    progress: &'a dyn Progress,
    pool: Pool,
    /// Repositories of the same registry that may have the image's layers.
    relatives: Vec<String>,
}

/// A layer to be sent.
struct Job {
    /// Its places in the image.
    indexes: Vec<usize>,
    id: LayerId,
    /// As the image's manifest has it.
    original: Descriptor,
}

impl Store {
    /// `push`: sends the image that is called `reference` to its registry under that name. Only
    /// what the registry lacks is sent, and what another of its repositories has is taken from
    /// there. Joins every thread before it returns.
    ///
    /// # Errors
    /// [`Error::NotFound`], [`Error::PushByDigest`]; the registry's. The name at the registry is
    /// changed last.
    pub fn push(
        &self,
        reference: &Reference,
        options: &PushOptions,
        progress: &dyn Progress,
    ) -> Result<Pushed> {
        if reference.digest().is_some() {
            return Err(Error::PushByDigest {
                name: reference.clone(),
            });
        }
        let name = reference.familiar();
        let (image, _hold) = self.resolve_platform(&name, options.platform.as_ref())?;
        let index = match options.platform {
            None => self.index_of(&name)?,
            Some(_) => None,
        };
        let client = Client::new(options.registry.clone())
            .on_retry(|why| progress.event(&Event::Retrying(why.to_owned())));
        progress.event(&Event::Pushing(reference.clone()));
        let mut push = Push {
            store: self,
            client: &client,
            reference,
            name,
            options,
            progress,
            pool: Pool::default(),
            relatives: self.relatives(&image, reference)?,
        };
        match index {
            None => push.run(&image),
            Some(index) => push.whole(&image, index),
        }
    }

    /// The repositories of a registry that the image was pulled from or pushed to.
    fn relatives(&self, image: &Image, to: &Reference) -> Result<Vec<String>> {
        let all = self.names.all()?;
        let mut found: Vec<String> = all
            .of(image.id)
            .filter(|name| name.digest().is_some() && name.registry() == to.registry())
            .map(|name| name.repository().to_owned())
            .filter(|repository| repository != to.repository())
            .collect();
        found.dedup();
        Ok(found)
    }
}

/// The parts of a whole index go to the registry under their digests.
impl Export for Push<'_> {
    fn image(&mut self, image: Image, _hold: Hold, own: Vec<u8>) -> Result<Top> {
        self.pool = Pool::default();
        self.relatives = self.store.relatives(&image, self.reference)?;
        Ok(self.one(&image, own)?.0)
    }

    fn other(&mut self, manifest: &Manifest) -> Result<()> {
        let session = self.client.session().map_err(|e| self.failed(e))?;
        for blob in whole::blobs_of(manifest) {
            let blobs = &self.store.blobs;
            let mut open = || -> io::Result<Box<dyn Read>> {
                let file = blobs.open_blob(blob.digest).map_err(io::Error::other)?;
                Ok(Box::new(file))
            };
            self.small(&session, blob.digest, &mut open)?;
        }
        Ok(())
    }

    fn document(&mut self, top: &Top) -> Result<()> {
        let by_digest = self.reference.with_digest(top.digest());
        self.put(&by_digest, top)?;
        Ok(())
    }
}

impl Push<'_> {
    fn run(&self, image: &Image) -> Result<Pushed> {
        let own = self.store.manifest_bytes(image)?;
        let (top, travelled) = self.one(image, own)?;
        let digest = self.put(self.reference, &top)?;
        let by_digest = self.reference.with_digest(digest);
        let meaning = Meaning::of(image.id, None);
        self.store.name(&[by_digest], meaning)?;
        Ok(Pushed {
            digest,
            size: top.bytes.len() as u64,
            was: (digest != image.manifest && travelled).then_some(image.manifest),
        })
    }

    /// An index with everything that it names; the name at the registry is changed last.
    fn whole(&mut self, main: &Image, index: Digest) -> Result<Pushed> {
        let (store, name) = (self.store, self.name.clone());
        let top = store.export(&name, index, self)?;
        let digest = self.put(self.reference, &top)?;
        let by_digest = self.reference.with_digest(digest);
        let same = (digest == index).then_some(index);
        store.name(&[by_digest], Meaning::of(main.id, same))?;
        Ok(Pushed {
            digest,
            size: top.bytes.len() as u64,
            was: (digest != index).then_some(index),
        })
    }

    fn put(&self, reference: &Reference, top: &Top) -> Result<Digest> {
        let session = self.client.session().map_err(|e| self.failed(e))?;
        session
            .put_manifest(reference, &top.media_type, &top.bytes)
            .map_err(|e| self.failed(e))
    }

    /// Sends what an image has; its manifest at the registry, which is still to be put, and whether
    /// its layers came compressed: one from an archive has plain ones, and so no digest that anybody
    /// could miss.
    fn one(&self, image: &Image, bytes: Vec<u8>) -> Result<(Top, bool)> {
        let document = Document::parse(&bytes, "").map_err(|cause| Error::Manifest {
            name: self.name.clone(),
            cause,
        })?;
        let Document::Manifest(manifest) = document else {
            return Err(Error::NotAnImage {
                name: self.name.clone(),
                what: "its manifest is an index".to_owned(),
            });
        };
        let config = self.store.config_bytes(image.id)?;
        let sent = self.layers(image, &manifest)?;
        let session = self.client.session().map_err(|e| self.failed(e))?;
        let mut open = || -> io::Result<Box<dyn Read>> { Ok(Box::new(&config[..])) };
        self.small(&session, manifest.config.digest, &mut open)?;
        let (bytes, kind) = written(&self.name, &bytes, &manifest, &sent)?;
        let diff_ids = &image.config.rootfs.diff_ids;
        let travelled = manifest
            .layers
            .iter()
            .zip(diff_ids)
            .any(|(layer, id)| layer.digest != *id);
        Ok((Top::parse(bytes, &kind, &self.name)?, travelled))
    }

    /// Sends the layers; what each is at the registry now.
    fn layers(&self, image: &Image, manifest: &Manifest) -> Result<Vec<Descriptor>> {
        let mut jobs: BTreeMap<LayerId, Job> = BTreeMap::new();
        let layers = image.layers.iter().zip(&manifest.layers);
        for (index, (id, original)) in layers.enumerate() {
            let job = jobs.entry(*id).or_insert_with(|| Job {
                indexes: Vec::new(),
                id: *id,
                original: original.clone(),
            });
            job.indexes.push(index);
        }
        let mut jobs: Vec<Job> = jobs.into_values().collect();
        jobs.sort_by_key(|job| job.indexes.first().copied());
        for job in &jobs {
            self.tell(job.id, LayerState::Pending);
        }
        jobs.sort_by_key(|job| std::cmp::Reverse(job.original.size));
        let workers = LAYERS.min(jobs.len());
        let queue = Mutex::new(VecDeque::from(jobs));
        let sent: Mutex<Vec<Descriptor>> = Mutex::new(manifest.layers.clone());
        let failure: Mutex<Option<Error>> = Mutex::new(None);
        thread::scope(|scope| {
            for _ in 0..available_parallelism().map_or(2, usize::from) {
                scope.spawn(|| self.pool.work());
            }
            let threads: Vec<_> = (0..workers)
                .map(|_| scope.spawn(|| self.worker(&queue, &sent, &failure)))
                .collect();
            for thread in threads {
                if thread.join().is_err() {
                    lock(&failure).get_or_insert(Error::Worker);
                }
            }
            self.pool.close();
        });
        match lock(&failure).take() {
            Some(error) => Err(error),
            None => Ok(lock(&sent).clone()),
        }
    }

    fn worker(
        &self,
        queue: &Mutex<VecDeque<Job>>,
        sent: &Mutex<Vec<Descriptor>>,
        failure: &Mutex<Option<Error>>,
    ) {
        let session = match self.client.session() {
            Ok(session) => session,
            Err(cause) => {
                lock(failure).get_or_insert(self.failed(cause));
                return;
            }
        };
        loop {
            let next = lock(queue).pop_front();
            let Some(job) = next.filter(|_| lock(failure).is_none()) else {
                return;
            };
            match self.layer(&session, &job) {
                Ok(descriptor) => {
                    let mut sent = lock(sent);
                    for index in &job.indexes {
                        if let Some(layer) = sent.get_mut(*index) {
                            *layer = descriptor.clone();
                        }
                    }
                }
                Err(error) => {
                    lock(failure).get_or_insert(error);
                }
            }
        }
    }

    /// One layer: as it is there, from elsewhere, as it came, or compressed anew.
    fn layer(&self, session: &Session<'_>, job: &Job) -> Result<Descriptor> {
        let failed = |cause| self.failed(cause);
        let layers = &self.store.layers;
        let layer = layers.load(&job.id)?;
        let mut known = Travelled::load(layers, job.id);
        let mut forms = vec![job.original.clone()];
        forms.extend(known.forms());
        forms.retain(|form| self.will_do(form, layer.diff_id));
        forms.dedup_by_key(|form| form.digest);
        for form in &forms {
            let there = session
                .has_blob(self.reference, form.digest)
                .map_err(failed)?;
            if there == Some(form.size) {
                self.tell(job.id, LayerState::Exists);
                return Ok(form.clone());
            }
            let noted = known.repositories(form.digest, self.reference.registry());
            let relatives = self.relatives.iter().chain(&noted);
            let mut tried: Vec<&String> = vec![];
            for from in relatives {
                if tried.contains(&from) || from == self.reference.repository() {
                    continue;
                }
                tried.push(from);
                if session
                    .mount_blob(self.reference, form.digest, from)
                    .map_err(failed)?
                {
                    self.progress.event(&Event::Mounted {
                        layer: job.id.digest(),
                        from: from.clone(),
                    });
                    return Ok(form.clone());
                }
            }
        }
        let sent = match forms.iter().find(|f| self.store.blobs.contains(f.digest)) {
            Some(form) => {
                self.send_kept(session, job, form)?;
                form.clone()
            }
            None => self.send_compressed(session, job, layer.diff_id, layer.size)?,
        };
        known.note(&sent, self.reference);
        known.save(layers, job.id);
        self.tell(job.id, LayerState::Sent);
        Ok(sent)
    }

    /// Whether a form that the registry may have is as good as the one that was asked for. A plain
    /// tar never is: registries are for compressed ones.
    fn will_do(&self, form: &Descriptor, diff_id: Digest) -> bool {
        let is_plain = form.digest == diff_id;
        match self.options.compression {
            None => !is_plain,
            Some(wanted) => {
                let is_zstd = form.media_type.ends_with("zstd");
                !is_plain && is_zstd == (wanted.kind == Kind::Zstd)
            }
        }
    }

    /// The compressed bytes that were kept when it was pulled.
    fn send_kept(&self, session: &Session<'_>, job: &Job, form: &Descriptor) -> Result<()> {
        let blobs = &self.store.blobs;
        let mut open = || -> io::Result<Box<dyn Read>> {
            let file = blobs.open_blob(form.digest).map_err(io::Error::other)?;
            Ok(Box::new(file))
        };
        let total = form.size;
        let sent = |done| self.tell(job.id, LayerState::Sending { done, total });
        session
            .push_blob(self.reference, Some(form.digest), &mut open, &sent)
            .map_err(|cause| self.failed(cause))?;
        Ok(())
    }

    /// The tar, compressed while it is sent.
    fn send_compressed(
        &self,
        session: &Session<'_>,
        job: &Job,
        diff_id: Digest,
        total: u64,
    ) -> Result<Descriptor> {
        let compression = self.options.compression.unwrap_or_default();
        let path = self
            .store
            .layers
            .path(&job.id)
            .join(knarr_layer::store::TAR);
        let ahead = available_parallelism().map_or(2, usize::from) + 1;
        let told = |done| self.tell(job.id, LayerState::Sending { done, total });
        let mut open = || -> io::Result<Box<dyn Read>> {
            let file = File::from(knarr_fs::open_read(&path).map_err(io::Error::other)?);
            let checked = Checked {
                source: file,
                hasher: Some(Hasher::new()),
                expected: diff_id,
                passed: 0,
                told: &told,
            };
            Ok(Box::new(self.pool.compress(
                checked,
                compression,
                ahead.min(AHEAD),
            )))
        };
        let uploaded = session
            .push_blob(self.reference, None, &mut open, &|_| {})
            .map_err(|cause| self.failed(cause))?;
        Ok(Descriptor {
            media_type: match compression.kind {
                Kind::Gzip => media_type::OCI_LAYER_GZIP.to_owned(),
                Kind::Zstd => media_type::OCI_LAYER_ZSTD.to_owned(),
            },
            digest: uploaded.digest,
            size: uploaded.size,
            urls: Vec::new(),
            annotations: job.original.annotations.clone(),
            platform: None,
        })
    }

    /// A blob that goes as it is, unless it is there.
    fn small(&self, session: &Session<'_>, digest: Digest, open: &mut Open<'_>) -> Result<()> {
        let failed = |cause| self.failed(cause);
        let there = session.has_blob(self.reference, digest).map_err(failed)?;
        if there.is_none() {
            session
                .push_blob(self.reference, Some(digest), open, &|_| {})
                .map_err(failed)?;
        }
        Ok(())
    }

    fn tell(&self, layer: LayerId, state: LayerState) {
        self.progress.event(&Event::Layer {
            layer: layer.digest(),
            state,
        });
    }

    fn failed(&self, cause: knarr_distribution::Error) -> Error {
        Error::Push {
            name: self.name.clone(),
            cause: Box::new(cause),
        }
    }
}

/// The manifest that names the layers as they were sent, and its media type. Where they are what
/// they were, these are the bytes that came.
fn written(
    name: &str,
    bytes: &[u8],
    manifest: &Manifest,
    layers: &[Descriptor],
) -> Result<(Vec<u8>, String)> {
    let kind = manifest
        .media_type
        .clone()
        .unwrap_or_else(|| media_type::OCI_MANIFEST.to_owned());
    if layers == manifest.layers {
        return Ok((bytes.to_vec(), kind));
    }
    let unwritable = |cause| Error::Config {
        name: name.to_owned(),
        cause,
    };
    // As a value, so that what is not known here stays.
    let mut value: Value = serde_json::from_slice(bytes).map_err(unwritable)?;
    let is_docker = kind == media_type::DOCKER_MANIFEST;
    // Docker's own types have no zstd.
    let becomes_oci = is_docker && layers.iter().any(|l| l.media_type.ends_with("zstd"));
    let mut layers = layers.to_vec();
    for layer in &mut layers {
        if is_docker && !becomes_oci {
            layer.media_type = media_type::DOCKER_LAYER_GZIP.to_owned();
        } else if layer.media_type == media_type::DOCKER_LAYER_GZIP {
            layer.media_type = media_type::OCI_LAYER_GZIP.to_owned();
        }
    }
    let kind = if becomes_oci {
        if let Some(config) = value.get_mut("config").and_then(Value::as_object_mut) {
            config.insert("mediaType".to_owned(), media_type::OCI_CONFIG.into());
        }
        media_type::OCI_MANIFEST.to_owned()
    } else {
        kind
    };
    if let Some(fields) = value.as_object_mut() {
        let layers = serde_json::to_value(&layers).map_err(unwritable)?;
        fields.insert("layers".to_owned(), layers);
        fields.insert("mediaType".to_owned(), kind.clone().into());
    }
    Ok((serde_json::to_vec(&value).map_err(unwritable)?, kind))
}

/// A layer's tar on its way out, checked against its digest: a damaged one goes nowhere.
struct Checked<'a> {
    source: File,
    /// `None` after the end.
    hasher: Option<Hasher>,
    expected: Digest,
    passed: u64,
    told: &'a (dyn Fn(u64) + 'a),
}

impl Read for Checked<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.source.read(buffer)?;
        if let (Some(hasher), Some(bytes)) = (&mut self.hasher, buffer.get(..count)) {
            hasher.update(bytes);
        }
        self.passed += count as u64;
        if count > 0 {
            (self.told)(self.passed);
        } else if !buffer.is_empty()
            && let Some(hasher) = self.hasher.take()
        {
            let got = hasher.finish();
            if got != self.expected {
                return Err(io::Error::other(knarr_layer::Error::DigestMismatch {
                    expected: self.expected,
                    found: got,
                }));
            }
        }
        Ok(count)
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    // Each change is whole before the lock is given back.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
