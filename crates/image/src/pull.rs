//! From a registry.

use std::collections::HashSet;
use std::io::{self, Read};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use knarr_diag::{Class, Explain as _};
use knarr_distribution::{Client, Fetched, Session};
use knarr_fs::failpoint;
use knarr_spec::image::{Descriptor, Manifest, media_type};
use knarr_spec::manifest::{DOCUMENT_LIMIT, Document};
use knarr_spec::{Digest, Platform, Reference};

use crate::assemble::{Brought, Provider, Take, Wanted};
use crate::fetch::{CONNECTIONS, Fetcher};
use crate::partial::Partial;
use crate::store::{NewImage, Stored};
use crate::{Error, Event, Progress, PullOptions, Pulled, Result, Store, select};

/// Layers that are inflated at a time.
const LAYERS: usize = 6;
/// How deep indexes may be nested.
const DEPTH: usize = 4;

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
        if self.options.all_platforms {
            self.others(&session, &top)?;
        }
        let chosen = select::choose(&self.name, platform, (top.bytes, top.document), |d| {
            let fetched = self.manifest(&session, d)?;
            Ok((fetched.bytes, fetched.document))
        })?;
        let stored = self.image(session, &chosen.manifest, &chosen.bytes, platform, &names)?;
        self.progress.event(&Event::Resolved(digest));
        self.store.announce.name("pull", self.reference);
        Ok(Pulled {
            image: stored.image,
            digest,
            newer: stored.newer,
        })
    }

    /// `--all-platforms`: every image of an index, each under its own digest.
    fn others(&self, session: &Session<'_>, top: &Fetched) -> Result<()> {
        let mut found = Vec::new();
        self.flatten(
            session,
            &top.document,
            DEPTH,
            &mut HashSet::new(),
            &mut found,
        )?;
        for descriptor in found {
            let fetched = self.manifest(session, &descriptor)?;
            let Document::Manifest(manifest) = &fetched.document else {
                continue;
            };
            let names = [self.reference.with_digest(descriptor.digest)];
            let own = self.client.session().map_err(|e| self.failed(e))?;
            self.image(own, manifest, &fetched.bytes, None, &names)?;
        }
        Ok(())
    }

    /// The images of an index and of the indexes in it, each once.
    fn flatten(
        &self,
        session: &Session<'_>,
        document: &Document,
        depth: usize,
        seen: &mut HashSet<Digest>,
        found: &mut Vec<Descriptor>,
    ) -> Result<()> {
        let Document::Index(index) = document else {
            return Ok(());
        };
        if depth == 0 {
            return Err(Error::NotAnImage {
                name: self.name.clone(),
                what: "its indexes are nested too deeply".to_owned(),
            });
        }
        for descriptor in index.manifests.iter().filter(|d| select::is_image(d)) {
            if !seen.insert(descriptor.digest) {
                continue;
            }
            if matches!(
                descriptor.media_type.as_str(),
                media_type::OCI_INDEX | media_type::DOCKER_LIST
            ) {
                let nested = self.manifest(session, descriptor)?;
                self.flatten(session, &nested.document, depth - 1, seen, found)?;
            } else {
                found.push(descriptor.clone());
            }
        }
        Ok(())
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
