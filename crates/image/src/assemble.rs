//! Bringing an image's layers into the layer store: all at once, published bottom up.

use std::collections::{HashMap, VecDeque};
use std::io::Read;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::{self, Receiver};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use knarr_fs::{Lock, failpoint};
use knarr_layer::{Ingest, Layer};
use knarr_spec::Digest;

use crate::inflate::{self, Copied, Failure, Hashing};
use crate::{Error, Event, LayerId, LayerState, Progress, Result};

/// How long another pull's work on a layer is waited for while this one has unfinished layers of
/// its own, which that other may be waiting for.
const DEADLOCK: Duration = Duration::from_secs(30);
const POLL: Duration = Duration::from_millis(20);

/// A layer that an image needs.
#[derive(Debug, Clone)]
pub(crate) struct Wanted {
    /// Its place in the image.
    pub(crate) index: usize,
    /// The digest of its tar.
    pub(crate) diff_id: Digest,
    /// The digest of its bytes as the manifest gives it, where there is one.
    pub(crate) blob: Option<Digest>,
    /// How many bytes come; 0 where unknown.
    pub(crate) size: u64,
}

impl Wanted {
    /// What messages and progress call it.
    pub(crate) fn name(&self) -> Digest {
        self.blob.unwrap_or(self.diff_id)
    }
}

/// Takes a layer's bytes, compressed or not, into the store.
pub(crate) type Take<'a> = dyn Fn(&mut dyn Read) -> Result<Ingest> + Sync + 'a;

/// Where layers come from: a registry or an archive.
pub(crate) trait Provider: Sync {
    /// Gives the layer's bytes to `take`. Should stop soon once `stop` is set.
    fn provide(&self, wanted: &Wanted, stop: &AtomicBool, take: &Take<'_>) -> Result<Brought>;
}

/// What is called when a layer is durable; what it gives is kept until the image is published.
pub(crate) type Published = Box<dyn FnOnce() -> Result<Option<Lock>> + Send>;

/// A layer's bytes, all taken.
pub(crate) struct Brought {
    pub(crate) ingest: Ingest,
    pub(crate) published: Option<Published>,
}

impl Brought {
    pub(crate) fn of(ingest: Ingest) -> Self {
        Self {
            ingest,
            published: None,
        }
    }
}

/// What every part of one operation needs.
pub(crate) struct Context<'a> {
    pub(crate) layers: &'a knarr_layer::Store,
    /// Where pulls tell each other which layer they are at.
    pub(crate) claims: PathBuf,
    pub(crate) progress: &'a dyn Progress,
    /// What the image is called in messages.
    pub(crate) name: String,
}

/// An image's layers, bottom first, kept from removal by `locks`.
#[derive(Debug, Default)]
pub(crate) struct Assembled {
    pub(crate) layers: Vec<Layer>,
    locks: Vec<Lock>,
}

impl Assembled {
    pub(crate) fn ids(&self) -> Vec<LayerId> {
        self.layers.iter().map(|layer| layer.id).collect()
    }

    /// The next layer, and what keeps it.
    pub(crate) fn push(&mut self, (layer, hold): (Layer, Lock)) {
        self.layers.push(layer);
        self.locks.push(hold);
    }

    pub(crate) fn size(&self) -> u64 {
        self.layers.iter().map(|layer| layer.size).sum()
    }
}

/// The right to bring a layer, which others wait for.
struct Claim {
    path: PathBuf,
    _lock: Lock,
}

impl Drop for Claim {
    fn drop(&mut self) {
        // While it is still locked: who waits for it sees that it is gone and makes a new one. A
        // file that stays is only clutter in the run root.
        knarr_fs::remove_file(&self.path).ok();
    }
}

/// Layers that were there already, held, by their place in the image.
type Present = HashMap<usize, (Layer, Lock)>;

/// What a thread made of a layer.
enum Made {
    /// All its bytes are in; they wait for the layers below. The claim ends when it is published.
    Taken(Box<Brought>, Option<Claim>),
    /// Somebody else had just brought it; held.
    Present(Layer, Lock),
}

impl Context<'_> {
    /// Makes every wanted layer present. `wanted` is the whole image, bottom first.
    pub(crate) fn assemble(
        &self,
        wanted: &[Wanted],
        workers: usize,
        provider: &dyn Provider,
    ) -> Result<Assembled> {
        let (present, jobs) = self.survey(wanted)?;
        for job in &jobs {
            self.tell(job, LayerState::Pending);
        }
        let stop = AtomicBool::new(false);
        let unpublished = AtomicUsize::new(0);
        let workers = workers.min(jobs.len());
        // The longest first, so that it is not what everybody waits for at the end.
        let mut jobs = jobs;
        jobs.sort_by_key(|job| std::cmp::Reverse(job.size));
        let queue = Mutex::new(VecDeque::from(jobs));
        thread::scope(|scope| {
            let (sender, made) = mpsc::channel();
            for _ in 0..workers {
                let sender = sender.clone();
                let (queue, stop, unpublished) = (&queue, &stop, &unpublished);
                scope.spawn(move || {
                    loop {
                        let next = queue
                            .lock()
                            .unwrap_or_else(PoisonError::into_inner)
                            .pop_front();
                        let Some(job) = next.filter(|_| !stop.load(Ordering::Relaxed)) else {
                            return;
                        };
                        let made = self.make(provider, &job, stop, unpublished);
                        if made.is_err() {
                            stop.store(true, Ordering::Relaxed);
                        }
                        // Nobody listens any more after a first error.
                        if sender.send((job, made)).is_err() {
                            return;
                        }
                    }
                });
            }
            drop(sender);
            let assembled = self.publish(wanted, present, &made, &unpublished);
            stop.store(true, Ordering::Relaxed);
            assembled
        })
    }

    /// What is here already, held, and what must be brought (each tar once).
    fn survey(&self, wanted: &[Wanted]) -> Result<(Present, Vec<Wanted>)> {
        let mut present = HashMap::new();
        let mut jobs: Vec<Wanted> = Vec::new();
        let mut below: Option<Vec<LayerId>> = Some(Vec::new());
        for layer in wanted {
            let found = match &below {
                Some(parents) => self.layers.find_and_hold(layer.diff_id, parents)?,
                // The ids below are not known yet, so only one that needs none can be told.
                None => self.find_self_contained(layer.diff_id)?,
            };
            match found {
                Some(found) => {
                    self.tell(layer, LayerState::Exists);
                    if let Some(below) = &mut below {
                        below.push(found.0.id);
                    }
                    present.insert(layer.index, found);
                }
                None => {
                    below = None;
                    if !jobs.iter().any(|job| job.diff_id == layer.diff_id) {
                        jobs.push(layer.clone());
                    }
                }
            }
        }
        Ok((present, jobs))
    }

    fn find_self_contained(&self, diff_id: Digest) -> Result<Option<(Layer, Lock)>> {
        let found = self.layers.find_and_hold(diff_id, &[])?;
        Ok(found.filter(|(layer, _)| layer.self_contained))
    }

    /// One layer, in a worker's thread.
    fn make(
        &self,
        provider: &dyn Provider,
        job: &Wanted,
        stop: &AtomicBool,
        unpublished: &AtomicUsize,
    ) -> Result<Made> {
        let claim = self.claim(job, stop, unpublished)?;
        if let Some((layer, hold)) = self.find_self_contained(job.diff_id)? {
            self.tell(job, LayerState::Exists);
            return Ok(Made::Present(layer, hold));
        }
        let take = |source: &mut dyn Read| self.take(job, source);
        let brought = provider.provide(job, stop, &take)?;
        self.tell(job, LayerState::Received);
        unpublished.fetch_add(1, Ordering::Relaxed);
        Ok(Made::Taken(Box::new(brought), claim))
    }

    /// Waits while another pull or load brings the same layer. `None` when waiting longer could be
    /// for ever: then the work is done twice, which does no harm.
    fn claim(
        &self,
        job: &Wanted,
        stop: &AtomicBool,
        unpublished: &AtomicUsize,
    ) -> Result<Option<Claim>> {
        knarr_fs::create_dir_all(&self.claims)?;
        let path = self.claims.join(job.diff_id.hex());
        let begun = Instant::now();
        loop {
            if let Some(lock) = Lock::try_exclusive(&path)? {
                return Ok(Some(Claim { path, _lock: lock }));
            }
            let waited_for = unpublished.load(Ordering::Relaxed) > 0;
            if stop.load(Ordering::Relaxed) || (waited_for && begun.elapsed() > DEADLOCK) {
                return Ok(None);
            }
            // flock has no timeout; the other one is busy for seconds.
            thread::sleep(POLL);
        }
    }

    /// Inflates, hashes and stores a layer's bytes; nothing is visible yet.
    pub(crate) fn take(&self, job: &Wanted, source: &mut dyn Read) -> Result<Ingest> {
        let ingest = self
            .layers
            .ingest(Some(job.diff_id))
            .map_err(|cause| self.failed(job, cause))?;
        let hashing = match job.blob {
            None => Hashing::Never,
            // Then the tar's digest, which the ingest checks, is the blob's.
            Some(blob) if blob == job.diff_id => Hashing::Compressed,
            Some(_) => Hashing::Always,
        };
        let (copied, ingest) = inflate::copy_beside(source, hashing, ingest)?;
        let copied = match copied {
            Ok(copied) => copied,
            Err(Failure::Stream(_, Some(got))) if job.blob.is_some_and(|blob| blob != got) => {
                Copied { digest: Some(got) }
            }
            Err(Failure::Source(cause) | Failure::Stream(cause, _)) => {
                return Err(Error::LayerStream {
                    name: self.name.clone(),
                    layer: job.name().to_string(),
                    cause,
                });
            }
            Err(Failure::Sink(cause)) => return Err(self.not_taken(job, cause)),
        };
        if let (Some(expected), Some(got)) = (job.blob, copied.digest)
            && expected != got
        {
            return Err(Error::LayerMismatch {
                name: self.name.clone(),
                layer: job.name().to_string(),
                expected,
                got,
            });
        }
        failpoint!("layer.taken");
        Ok(ingest)
    }

    /// Publishes the layers bottom up, as they and all below them are in.
    fn publish(
        &self,
        wanted: &[Wanted],
        mut present: Present,
        made: &Receiver<(Wanted, Result<Made>)>,
        unpublished: &AtomicUsize,
    ) -> Result<Assembled> {
        let mut taken: HashMap<Digest, (Box<Brought>, Option<Claim>)> = HashMap::new();
        let mut done = Assembled::default();
        for layer in wanted {
            let parents = done.ids();
            let found = loop {
                if let Some(layer) = present.remove(&layer.index) {
                    break layer;
                }
                if let Some((brought, claim)) = taken.remove(&layer.diff_id) {
                    let published = brought
                        .ingest
                        .finish_and_hold(&parents)
                        .map_err(|cause| self.failed(layer, cause))?;
                    if let Some(published) = brought.published {
                        done.locks.extend(published()?);
                    }
                    unpublished.fetch_sub(1, Ordering::Relaxed);
                    drop(claim);
                    self.tell(layer, LayerState::Complete);
                    break published;
                }
                // The same tar once more in this image: bring it in again over other parents.
                if wanted
                    .iter()
                    .take(layer.index)
                    .any(|w| w.diff_id == layer.diff_id)
                {
                    break self.again(layer, &parents, &done)?;
                }
                match made.recv() {
                    Ok((job, Ok(Made::Taken(brought, claim)))) => {
                        taken.insert(job.diff_id, (brought, claim));
                    }
                    Ok((job, Ok(Made::Present(found, hold)))) => {
                        present.insert(job.index, (found, hold));
                    }
                    Ok((_, Err(error))) => return Err(error),
                    Err(_) => return Err(Error::Worker),
                }
            };
            done.push(found);
        }
        Ok(done)
    }

    /// A layer of this image that is also further down in it.
    fn again(
        &self,
        layer: &Wanted,
        parents: &[LayerId],
        done: &Assembled,
    ) -> Result<(Layer, Lock)> {
        if let Some(found) = self.layers.find_and_hold(layer.diff_id, parents)? {
            return Ok(found);
        }
        let below = done.layers.iter().find(|l| l.diff_id == layer.diff_id);
        let Some(below) = below else {
            return Err(Error::Worker);
        };
        let tar = self.layers.path(&below.id).join(knarr_layer::store::TAR);
        let mut file = std::fs::File::from(knarr_fs::open_read(&tar)?);
        let ingest = self.take(layer, &mut file)?;
        ingest
            .finish_and_hold(parents)
            .map_err(|cause| self.failed(layer, cause))
    }

    /// Layers that are in the store already, bottom first.
    pub(crate) fn hold_all(&self, ids: &[LayerId]) -> Result<Assembled> {
        let mut held = Assembled::default();
        for id in ids {
            let hold = self.layers.hold(id)?.ok_or_else(|| Error::LayerGone {
                name: self.name.clone(),
                layer: *id,
            })?;
            held.push((self.layers.load(id)?, hold));
        }
        Ok(held)
    }

    pub(crate) fn tell(&self, layer: &Wanted, state: LayerState) {
        self.progress.event(&Event::Layer {
            layer: layer.name(),
            state,
        });
    }

    fn failed(&self, job: &Wanted, cause: knarr_layer::Error) -> Error {
        Error::Layer {
            name: self.name.clone(),
            layer: job.name().to_string(),
            cause,
        }
    }

    /// The layer store speaks through `io::Write`; its own error may be inside.
    fn not_taken(&self, job: &Wanted, cause: std::io::Error) -> Error {
        match of_the_store(cause) {
            Ok(cause) => self.failed(job, cause),
            Err(cause) => Error::LayerStream {
                name: self.name.clone(),
                layer: job.name().to_string(),
                cause,
            },
        }
    }
}

/// The layer store's error in what its writer said: its own, or the disk's.
pub(crate) fn of_the_store(
    cause: std::io::Error,
) -> std::result::Result<knarr_layer::Error, std::io::Error> {
    cause
        .downcast::<knarr_layer::Error>()
        .or_else(|cause| cause.downcast::<knarr_fs::Error>().map(Into::into))
}
