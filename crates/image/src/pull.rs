//! From a registry.

use std::io::{self, Read};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use knarr_diag::{Class, Explain as _};
use knarr_distribution::{Client, Fetched, Session};
use knarr_fs::{Lock, failpoint};
use knarr_spec::image::{Descriptor, Index, Manifest};
use knarr_spec::manifest::{DOCUMENT_LIMIT, Document};
use knarr_spec::{Digest, Platform, Reference};

use crate::assemble::{Brought, Provider, Take, Wanted};
use crate::fetch::{CONNECTIONS, Fetcher};
use crate::partial::Partial;
use crate::store::{NewImage, Stored};
use crate::trust::Gate;
use crate::trust::policy::Place;
use crate::whole::{self, Part};
use crate::{Error, Event, Progress, PullOptions, Pulled, Result, Store, select};

/// Layers that are inflated at a time.
const LAYERS: usize = 6;

/// One pull.
struct Pull<'a> {
    store: &'a Store,
    client: &'a Client<'a>,
    reference: &'a Reference,
    /// What messages call the image.
    name: String,
    options: &'a PullOptions,
    progress: &'a dyn Progress,
}

impl Store {
    /// `pull`: fetches `reference`, all layers at once. Joins every thread before it returns.
    ///
    /// What came of a blob before a failure, a kill or Ctrl-C is in `blobs/partial`, and the next
    /// pull goes on there.
    ///
    /// # Errors
    /// The registry's, or the store's; no half-made image stays.
    pub fn pull(
        &self,
        reference: &Reference,
        options: &PullOptions,
        progress: &dyn Progress,
    ) -> Result<Pulled> {
        self.layers.sweep()?;
        let client = Client::new(options.registry.clone())
            .on_retry(|why| progress.event(&Event::Retrying(why.to_owned())));
        let pull = Pull {
            store: self,
            client: &client,
            reference,
            name: reference.familiar(),
            options,
            progress,
        };
        pull.run()
    }

    /// [`pull`](Self::pull) of the first of some names that exists.
    ///
    /// # Errors
    /// The last one's.
    pub fn pull_first(
        &self,
        references: &[Reference],
        options: &PullOptions,
        progress: &dyn Progress,
    ) -> Result<(Reference, Pulled)> {
        let mut failed = Err(Error::Worker);
        for reference in references {
            match self.pull(reference, options, progress) {
                Ok(pulled) => return Ok((reference.clone(), pulled)),
                Err(error) if references.len() > 1 => {
                    let text = format!("{error}; trying the next registry");
                    progress.event(&Event::Retrying(text));
                    failed = Err(error);
                }
                Err(error) => return Err(error),
            }
        }
        failed
    }
}

impl Pull<'_> {
    fn run(&self) -> Result<Pulled> {
        let place = Place::Registry(self.reference.clone());
        let etc = self.options.registry.etc.as_deref();
        let gate = self.store.trust.gate(&self.name, place, etc)?;
        let session = self.client.session().map_err(|e| self.failed(e))?;
        self.progress.event(&Event::Pulling(self.reference.clone()));
        let top = session
            .manifest(self.reference)
            .map_err(|e| self.failed(e))?;
        let digest = top.digest;
        let mut names = Vec::new();
        if self.reference.digest().is_none() {
            names.push(self.reference.clone());
        }
        names.push(self.reference.with_digest(digest));
        let platform = self.options.platform.as_ref();
        let (image, newer) = match &top.document {
            Document::Index(index) if self.options.all_platforms => {
                let _holds = self.whole(&session, &gate, &top, index)?;
                let store = self.store;
                store.name_index(&self.name, digest, platform, &names)?
            }
            _ => {
                // What is whole here stays so while the registry has the same.
                let known = self.store.names.meaning(self.reference)?;
                let index = known.and_then(|known| known.index);
                let index = index.filter(|index| *index == digest);
                let chosen =
                    select::choose(&self.name, platform, (top.bytes, top.document), |d| {
                        let fetched = self.manifest(&session, d)?;
                        Ok((fetched.bytes, fetched.document))
                    })?;
                let own = knarr_cas::Hasher::digest(&chosen.bytes);
                gate.check(Some(&session), &[own, digest])?;
                let (manifest, bytes) = (&chosen.manifest, &chosen.bytes);
                let stored = self.image(session, manifest, bytes, platform, &names, index)?;
                (stored.image, stored.newer)
            }
        };
        self.progress.event(&Event::Resolved(digest));
        self.store.announce.name("pull", self.reference);
        Ok(Pulled {
            image,
            digest,
            newer,
        })
    }

    /// `--all-platforms`: everything that an index names, and it itself. The blobs stay while what
    /// is given lives, until they are named.
    fn whole(
        &self,
        session: &Session<'_>,
        gate: &Gate,
        top: &Fetched,
        index: &Index,
    ) -> Result<Vec<Lock>> {
        let mut holds = Vec::new();
        // What is signed as a whole is asked about once.
        let allowed = |own| gate.check(Some(session), &[top.digest, own]);
        let blobs = &self.store.blobs;
        let mut fetch = |entry: &Descriptor| match self.manifest(session, entry) {
            Ok(fetched) => Ok(Some((fetched.bytes, fetched.document))),
            // What is about an image may be left out; an image may not.
            Err(error) if error.class() == Class::NotFound && !select::is_image(entry) => Ok(None),
            Err(error) => Err(error),
        };
        whole::walk(&self.name, (&top.bytes, index), &mut fetch, &mut |part| {
            match part {
                Part::Index(bytes) => holds.push(blobs.put_and_hold(bytes)?.1),
                Part::Image(digest, manifest, bytes) => {
                    allowed(digest)?;
                    let names = [self.reference.with_digest(digest)];
                    let own = self.client.session().map_err(|e| self.failed(e))?;
                    self.image(own, manifest, bytes, None, &names, None)?;
                    // Another manifest of the same image may take its place in the record.
                    holds.extend(blobs.hold(digest)?);
                }
                Part::Other(manifest, bytes) => {
                    allowed(knarr_cas::Hasher::digest(bytes))?;
                    for blob in whole::blobs_of(manifest) {
                        holds.push(self.blob(session, blob)?);
                    }
                    holds.push(blobs.put_and_hold(bytes)?.1);
                }
            }
            Ok(())
        })?;
        Ok(holds)
    }

    /// A blob as it is, held.
    fn blob(&self, session: &Session<'_>, descriptor: &Descriptor) -> Result<Lock> {
        let blobs = &self.store.blobs;
        if let Some(hold) = blobs.hold(descriptor.digest)? {
            return Ok(hold);
        }
        let failed = |e| self.failed(e);
        let mut blob = session.blob(self.reference, descriptor).map_err(failed)?;
        let mut writer = blobs.writer()?;
        while let Some(piece) = blob.chunk().map_err(failed)? {
            writer.write(&piece)?;
        }
        Ok(writer.commit(Some(descriptor.digest))?.1)
    }

    fn manifest(&self, session: &Session<'_>, descriptor: &Descriptor) -> Result<Fetched> {
        session
            .manifest(&self.reference.with_digest(descriptor.digest))
            .map_err(|cause| self.failed(cause))
    }

    /// Brings one image.
    fn image(
        &self,
        session: Session<'_>,
        manifest: &Manifest,
        bytes: &[u8],
        platform: Option<&Platform>,
        names: &[Reference],
        index: Option<Digest>,
    ) -> Result<Stored> {
        let store = self.store;
        let config_bytes = match store.blobs.read(manifest.config.digest, DOCUMENT_LIMIT) {
            Ok(bytes) => bytes,
            Err(error) if error.is_gone() => session
                .document(self.reference, &manifest.config)
                .map_err(|e| self.failed(e))?,
            Err(error) => return Err(error.into()),
        };
        let layers = manifest.layers.len();
        let config = select::check_config(&self.name, &config_bytes, layers, platform)?;
        let wanted = wanted(manifest, &config.rootfs.diff_ids);
        let context = store.context(self.name.clone(), self.progress);
        let fetcher = Fetcher::new(self.client, self.reference, &self.name, self.progress);
        let registry = Layers {
            pull: self,
            manifest,
            fetcher: &fetcher,
        };
        let assembled = thread::scope(|scope| {
            let fetcher = &fetcher;
            let mut first = Some(session);
            for _ in 0..CONNECTIONS {
                let session = first.take();
                scope.spawn(move || fetcher.connection(session));
            }
            let assembled = context.assemble(&wanted, LAYERS, &registry);
            fetcher.close();
            assembled
        })?;
        // A pull that was killed when a layer had just become durable left its blob.
        for layer in &manifest.layers {
            Partial::discard(&store.blobs.partials(), layer.digest)?;
        }
        failpoint!("pull.layers-present");
        store.store_image(&NewImage {
            manifest: bytes,
            config: &config_bytes,
            assembled: &assembled,
            names,
            index,
        })
    }

    fn failed(&self, cause: knarr_distribution::Error) -> Error {
        Error::Pull {
            name: self.name.clone(),
            cause: Box::new(cause),
        }
    }
}

/// What is wanted of the layers of a manifest.
pub(crate) fn wanted(manifest: &Manifest, diff_ids: &[Digest]) -> Vec<Wanted> {
    let layers = manifest.layers.iter().zip(diff_ids).enumerate();
    layers
        .map(|(index, (layer, diff_id))| Wanted {
            index,
            diff_id: *diff_id,
            blob: Some(layer.digest),
            size: layer.size,
        })
        .collect()
}

/// Layers from a registry: connections fill files, each layer's thread reads after them.
struct Layers<'a> {
    pull: &'a Pull<'a>,
    manifest: &'a Manifest,
    fetcher: &'a Fetcher<'a>,
}

impl Provider for Layers<'_> {
    fn provide(&self, wanted: &Wanted, stop: &AtomicBool, take: &Take<'_>) -> Result<Brought> {
        let Some(descriptor) = self.manifest.layers.get(wanted.index) else {
            return Err(Error::Worker);
        };
        let blobs = &self.pull.store.blobs;
        if let Ok(mut kept) = blobs.open_blob(descriptor.digest) {
            match take(&mut kept) {
                Ok(ingest) => return Ok(Brought::of(ingest)),
                // The registry has a good one.
                Err(Error::LayerMismatch { .. } | Error::LayerStream { .. }) => {
                    blobs.remove(descriptor.digest)?;
                }
                Err(error) => return Err(error),
            }
        }
        loop {
            let partial = self.partial(descriptor)?;
            let resumed = partial.resumed();
            let partial = Arc::new(partial);
            self.fetcher.want(descriptor, &partial);
            let taken = take(&mut Stopping {
                reader: partial.reader(),
                stop,
            });
            self.fetcher.done(&partial);
            let failure = partial.failure();
            let partial = Arc::into_inner(partial).ok_or(Error::Worker)?;
            let error = match (taken, failure) {
                (Ok(ingest), _) => {
                    let keep = self.pull.options.keep_blobs;
                    let (blobs, digest) = (blobs.clone(), descriptor.digest);
                    return Ok(Brought {
                        ingest,
                        published: Some(Box::new(move || match keep {
                            true => partial.keep(&blobs, digest).map(Some),
                            false => partial.remove().map(|()| None),
                        })),
                    });
                }
                (Err(_), Some(failure)) => {
                    // Only what broke off is worth going on with.
                    if failure.class() == Class::Corrupt || partial.done() == 0 {
                        partial.remove()?;
                    }
                    return Err(failure);
                }
                (Err(error), None) => error,
            };
            if !matches!(
                error,
                Error::LayerMismatch { .. } | Error::LayerStream { .. }
            ) || stop.load(Ordering::Relaxed)
            {
                return Err(error);
            }
            // Whatever is wrong with it, it is of no use to the next pull; and what was wrong may
            // be what an earlier one left.
            partial.remove()?;
            if !resumed {
                return Err(error);
            }
        }
    }
}

impl Layers<'_> {
    fn partial(&self, descriptor: &Descriptor) -> Result<Partial> {
        let folder = self.pull.store.blobs.partials();
        let (digest, size) = (descriptor.digest, descriptor.size);
        match Partial::open(&folder, digest, size)? {
            Some(partial) => Ok(partial),
            // Another process is at it, which for once could not be waited for.
            None => Partial::private(&folder, digest, size),
        }
    }
}

/// Reads until somebody else has failed.
struct Stopping<'a, R> {
    reader: R,
    stop: &'a AtomicBool,
}

impl<R: Read> Read for Stopping<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.stop.load(Ordering::Relaxed) {
            return Err(io::ErrorKind::ConnectionAborted.into());
        }
        self.reader.read(buffer)
    }
}
