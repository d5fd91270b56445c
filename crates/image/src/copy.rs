//! `image copy`: an image from one place to another as it is, without unpacking it.
//!
//! Everything that is copied is hashed on the way and compared with what names it, whether a
//! registry, an archive or a folder gave it. What the destination has already is not copied. Where
//! both ends can hold it, the manifest stays what it is, byte for byte, and with it the digest.

mod location;
mod sink;
mod source;
mod store;

use std::collections::{BTreeSet, VecDeque};
use std::io::Read;
use std::sync::{Mutex, PoisonError};
use std::thread;

use knarr_cas::Hasher;
use knarr_spec::image::{Descriptor, Index, Manifest};
use knarr_spec::manifest::Document;
use knarr_spec::{Digest, Platform};

pub use location::{Location, LocationError};

use crate::trust::Gate;
use crate::whole::{DEPTH, too_deep};
use crate::{Error, Event, LayerState, Progress, Result, Store, select};
use sink::Sink;
use source::Source;

/// How many blobs are copied at a time, where the destination takes several.
const WORKERS: usize = 4;

/// How to copy.
#[derive(Debug, Clone, Default)]
pub struct CopyOptions {
    /// Copy an index with all its images; otherwise one image.
    pub all: bool,
    /// Which image of an index; the host's by default.
    pub platform: Option<Platform>,
    /// How the source's registry is reached.
    pub from: knarr_distribution::Settings,
    /// How the destination's registry is reached.
    pub to: knarr_distribution::Settings,
}

/// A manifest or index with its exact bytes.
#[derive(Debug, Clone)]
pub(crate) struct Top {
    pub(crate) bytes: Vec<u8>,
    pub(crate) document: Document,
    pub(crate) media_type: String,
}

impl Top {
    /// Parses what some place has; `said` is what it says it is.
    pub(crate) fn parse(bytes: Vec<u8>, said: &str, name: &str) -> Result<Self> {
        let document = Document::parse(&bytes, said).map_err(|cause| Error::Manifest {
            name: name.to_owned(),
            cause,
        })?;
        let own = match &document {
            Document::Manifest(manifest) => manifest.media_type.clone(),
            Document::Index(index) => index.media_type.clone(),
        };
        use knarr_spec::image::media_type::{OCI_INDEX, OCI_MANIFEST};
        let media_type = own.unwrap_or_else(|| match (&document, said) {
            (_, said) if said.contains("+json") => said.to_owned(),
            (Document::Manifest(_), _) => OCI_MANIFEST.to_owned(),
            (Document::Index(_), _) => OCI_INDEX.to_owned(),
        });
        Ok(Self {
            bytes,
            document,
            media_type,
        })
    }

    pub(crate) fn digest(&self) -> Digest {
        Hasher::digest(&self.bytes)
    }

    pub(crate) fn descriptor(&self) -> Descriptor {
        Descriptor {
            media_type: self.media_type.clone(),
            digest: self.digest(),
            size: self.bytes.len() as u64,
            urls: Vec::new(),
            annotations: std::collections::BTreeMap::new(),
            platform: None,
        }
    }
}

/// Takes a blob's bytes.
pub(crate) type Take<'a> = &'a mut dyn FnMut(&mut dyn Read) -> Result<()>;

impl Store {
    /// `image copy`: gives the digest of the manifest or index at the destination.
    ///
    /// # Errors
    /// What either place says; bytes that are not what names them; [`Error::Unsupported`] for an
    /// index where the destination can hold one image only.
    pub fn copy(
        &self,
        from: &Location,
        to: &Location,
        options: &CopyOptions,
        progress: &dyn Progress,
    ) -> Result<Digest> {
        let name = from.to_string();
        let gate = match from.place()? {
            None => None,
            Some(place) => Some(self.trust.gate(&name, place, options.from.etc.as_deref())?),
        };
        let source = Source::open(self, from, options)?;
        let mut top = source.top()?;
        let whole = top.digest();
        if let Document::Index(_) = top.document
            && !options.all
        {
            top = one_image(&source, &name, top, options.platform.as_ref())?;
        }
        if let Some(gate) = &gate {
            admit(gate, &source, &name, &top, whole, DEPTH)?;
        }
        if let Location::Store(target) = to {
            return self.copy_in(&source, &name, &top, target, options, progress);
        }
        let sink = Sink::open(self, to, options)?;
        let mut seen = BTreeSet::new();
        copy_document(&source, &sink, &name, &top, progress, &mut seen, 0)?;
        sink.finish(&top)?;
        Ok(top.digest())
    }
}

/// Checks everything that is to be copied before any of it is: an image by its signature or that of
/// the index `whole` that it was found in.
fn admit(
    gate: &Gate,
    source: &Source<'_>,
    name: &str,
    top: &Top,
    whole: Digest,
    depth: usize,
) -> Result<()> {
    let session = source.session()?;
    let session = session.as_ref();
    let Document::Index(index) = &top.document else {
        return gate.check(session, &[top.digest(), whole]);
    };
    if gate.check(session, &[whole]).is_ok() {
        return Ok(());
    }
    if depth == 0 {
        return Err(too_deep(name));
    }
    for entry in &index.manifests {
        let below = fetch(source, name, entry)?;
        admit(gate, source, name, &below, below.digest(), depth - 1)?;
    }
    Ok(())
}

/// Follows indexes down to the image of one platform.
fn one_image(
    source: &Source<'_>,
    name: &str,
    top: Top,
    platform: Option<&Platform>,
) -> Result<Top> {
    let host = Platform::host();
    let wanted = platform.unwrap_or(&host);
    let mut current = top;
    for _ in 0..DEPTH {
        let descriptor = match &current.document {
            Document::Manifest(_) => return Ok(current),
            Document::Index(index) => select::best(name, wanted, index)?.clone(),
        };
        current = fetch(source, name, &descriptor)?;
    }
    Err(too_deep(name))
}

/// A manifest or index that another one names.
fn fetch(source: &Source<'_>, name: &str, descriptor: &Descriptor) -> Result<Top> {
    let bytes = source.document(descriptor)?;
    check(name, descriptor, Hasher::digest(&bytes))?;
    let top = Top::parse(bytes, &descriptor.media_type, name)?;
    Ok(Top {
        media_type: match descriptor.media_type.as_str() {
            "" => top.media_type,
            said => said.to_owned(),
        },
        ..top
    })
}

fn check(name: &str, descriptor: &Descriptor, got: Digest) -> Result<()> {
    if got == descriptor.digest {
        return Ok(());
    }
    Err(Error::LayerMismatch {
        name: name.to_owned(),
        layer: descriptor.digest.to_string(),
        expected: descriptor.digest,
        got,
    })
}

/// Copies a manifest or index after everything that it names.
fn copy_document(
    source: &Source<'_>,
    sink: &Sink<'_>,
    name: &str,
    top: &Top,
    progress: &dyn Progress,
    seen: &mut BTreeSet<Digest>,
    depth: usize,
) -> Result<()> {
    if depth >= DEPTH {
        return Err(too_deep(name));
    }
    match &top.document {
        Document::Index(Index { manifests, .. }) => {
            sink.takes_indexes()?;
            for descriptor in manifests {
                let below = fetch(source, name, descriptor)?;
                copy_document(source, sink, name, &below, progress, seen, depth + 1)?;
            }
        }
        Document::Manifest(manifest) => {
            copy_blobs(source, sink, name, manifest, progress, seen)?;
        }
    }
    if depth > 0 {
        sink.document(top)?;
    }
    Ok(())
}

fn copy_blobs(
    source: &Source<'_>,
    sink: &Sink<'_>,
    name: &str,
    manifest: &Manifest,
    progress: &dyn Progress,
    seen: &mut BTreeSet<Digest>,
) -> Result<()> {
    sink.image(source, name, manifest)?;
    let mut wanted = VecDeque::new();
    for descriptor in std::iter::once(&manifest.config).chain(&manifest.layers) {
        if !seen.insert(descriptor.digest) {
            continue;
        }
        // Foreign layers (Windows) are where their URLs say.
        if !descriptor.urls.is_empty() {
            continue;
        }
        if sink.has(descriptor)? {
            tell(progress, descriptor, LayerState::Exists);
            continue;
        }
        tell(progress, descriptor, LayerState::Pending);
        wanted.push_back(descriptor);
    }
    let workers = match sink.takes_several() {
        true => WORKERS.min(wanted.len()),
        false => 1,
    };
    let queue = Mutex::new(wanted);
    let failed = Mutex::new(None);
    thread::scope(|scope| {
        let work = || {
            loop {
                let next = queue
                    .lock()
                    .unwrap_or_else(PoisonError::into_inner)
                    .pop_front();
                let Some(descriptor) = next else { return };
                if let Err(error) = copy_blob(source, sink, name, descriptor, progress) {
                    let mut failed = failed.lock().unwrap_or_else(PoisonError::into_inner);
                    failed.get_or_insert(error);
                    // Nobody goes on after a failure.
                    queue.lock().unwrap_or_else(PoisonError::into_inner).clear();
                    return;
                }
            }
        };
        for _ in 1..workers {
            scope.spawn(work);
        }
        work();
    });
    match failed.into_inner().unwrap_or_else(PoisonError::into_inner) {
        Some(error) => Err(error),
        None => Ok(()),
    }
}

fn copy_blob(
    source: &Source<'_>,
    sink: &Sink<'_>,
    name: &str,
    descriptor: &Descriptor,
    progress: &dyn Progress,
) -> Result<()> {
    source.blob(descriptor, &mut |bytes| {
        let mut hashing = Hashing {
            source: bytes,
            hasher: Hasher::new(),
            done: 0,
            total: descriptor.size,
            told: 0,
            tell: &|done| {
                let total = descriptor.size;
                tell(progress, descriptor, LayerState::Receiving { done, total });
            },
        };
        let settled = sink.blob(descriptor, &mut hashing)?;
        let (done, got) = (hashing.done, hashing.hasher.finish());
        if done != descriptor.size {
            return Err(Error::NotItsSize {
                name: name.to_owned(),
                blob: descriptor.digest,
                expected: descriptor.size,
                got: done,
            });
        }
        check(name, descriptor, got)?;
        settled.keep()
    })?;
    tell(progress, descriptor, LayerState::Complete);
    Ok(())
}

fn tell(progress: &dyn Progress, descriptor: &Descriptor, state: LayerState) {
    progress.event(&Event::Layer {
        layer: descriptor.digest,
        state,
    });
}

/// Hashes what is read, and stops a source that gives more than was announced.
struct Hashing<'a> {
    source: &'a mut dyn Read,
    hasher: Hasher,
    done: u64,
    total: u64,
    told: u64,
    tell: &'a dyn Fn(u64),
}

impl Read for Hashing<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let count = self.source.read(buffer)?;
        self.hasher.update(buffer.get(..count).unwrap_or_default());
        self.done += count as u64;
        if self.done > self.total {
            // The caller sees that there are too many; no more of them are taken.
            return Ok(0);
        }
        if self.done - self.told >= 1 << 20 || self.done == self.total {
            self.told = self.done;
            (self.tell)(self.done);
        }
        Ok(count)
    }
}
