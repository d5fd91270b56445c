//! From a registry.

use std::io::{self, Read};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, sync_channel};
use std::thread;

use bytes::{Buf as _, Bytes};
use knarr_distribution::{Client, Session};
use knarr_fs::failpoint;
use knarr_layer::Ingest;
use knarr_spec::image::Manifest;
use knarr_spec::manifest::DOCUMENT_LIMIT;
use knarr_spec::{Digest, Reference};

use crate::assemble::{Provider, Take, Wanted};
use crate::store::NewImage;
use crate::{Error, Event, LayerState, Progress, PullOptions, Pulled, Result, Store, select};

/// Layers that are fetched at a time.
const WORKERS: usize = 6;
/// Pieces (of at most 128 KiB) between the network and the inflating thread.
const PIECES: usize = 16;

impl Store {
    /// `pull`: fetches `reference`, all layers at once. Joins every thread before it returns.
    ///
    /// # Errors
    /// The registry's, or the store's; nothing half-made stays.
    pub fn pull(
        &self,
        reference: &Reference,
        options: &PullOptions,
        progress: &dyn Progress,
    ) -> Result<Pulled> {
        let name = reference.familiar();
        let pulling = |cause| Error::Pull {
            name: name.clone(),
            cause: Box::new(cause),
        };
        let _lease = self.blobs.lease()?;
        self.layers.sweep()?;
        let client = Client::new(options.registry.clone())
            .on_retry(|why| progress.event(&Event::Retrying(why.to_owned())));
        let session = client.session().map_err(pulling)?;
        progress.event(&Event::Pulling(reference.clone()));
        let top = session.manifest(reference).map_err(pulling)?;
        let digest = top.digest;
        let platform = options.platform.as_ref();
        let chosen = select::choose(&name, platform, (top.bytes, top.document), |descriptor| {
            let fetched = session
                .manifest(&reference.with_digest(descriptor.digest))
                .map_err(pulling)?;
            Ok((fetched.bytes, fetched.document))
        })?;
        let manifest = &chosen.manifest;
        let config_bytes = match self.blobs.read(manifest.config.digest, DOCUMENT_LIMIT) {
            Ok(bytes) => bytes,
            Err(error) if error.is_gone() => session
                .document(reference, &manifest.config)
                .map_err(pulling)?,
            Err(error) => return Err(error.into()),
        };
        let config = select::check_config(&name, &config_bytes, manifest.layers.len(), platform)?;
        drop(session);
        let wanted = wanted(manifest, &config.rootfs.diff_ids);
        let context = self.context(name.clone(), progress);
        let registry = Registry {
            client: &client,
            reference,
            manifest,
            name: &name,
            progress,
        };
        let assembled = context.assemble(&wanted, WORKERS, &registry)?;
        failpoint!("pull.layers-present");
        let mut names = Vec::new();
        if reference.digest().is_none() {
            names.push(reference.clone());
        }
        names.push(reference.with_digest(digest));
        let stored = self.store_image(&NewImage {
            manifest: &chosen.bytes,
            config: &config_bytes,
            assembled: &assembled,
            names: &names,
        })?;
        progress.event(&Event::Resolved(digest));
        self.announce.name("pull", reference);
        Ok(Pulled {
            image: stored.image,
            digest,
            newer: stored.newer,
        })
    }
}

fn wanted(manifest: &Manifest, diff_ids: &[Digest]) -> Vec<Wanted> {
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

/// Layers from a registry: one thread reads the network, another inflates and stores.
struct Registry<'a> {
    client: &'a Client<'a>,
    reference: &'a Reference,
    manifest: &'a Manifest,
    name: &'a str,
    progress: &'a dyn Progress,
}

impl<'a> Provider for Registry<'a> {
    type Worker = Session<'a>;

    fn worker(&self) -> Result<Session<'a>> {
        self.client.session().map_err(|cause| self.failed(cause))
    }

    fn provide(
        &self,
        session: &mut Session<'a>,
        wanted: &Wanted,
        stop: &AtomicBool,
        take: &Take<'_>,
    ) -> Result<Ingest> {
        let Some(descriptor) = self.manifest.layers.get(wanted.index) else {
            return Err(Error::Worker);
        };
        let mut blob = session.blob(self.reference, descriptor);
        thread::scope(|scope| {
            let (sender, receiver) = sync_channel(PIECES);
            let taking = scope.spawn(move || {
                take(&mut Incoming {
                    receiver,
                    piece: Some(Bytes::new()),
                })
            });
            let mut done = 0;
            let received = loop {
                match blob.chunk() {
                    Ok(Some(piece)) => {
                        done += piece.len() as u64;
                        let total = descriptor.size;
                        self.progress.event(&Event::Layer {
                            layer: wanted.name(),
                            state: LayerState::Receiving { done, total },
                        });
                        // The other side is gone after an error, which it will tell.
                        if sender.send(Some(piece)).is_err() || stop.load(Ordering::Relaxed) {
                            break Ok(());
                        }
                    }
                    Ok(None) => {
                        sender.send(None).ok();
                        break Ok(());
                    }
                    Err(cause) => break Err(self.failed(cause)),
                }
            };
            drop(sender);
            let taken = taking.join().unwrap_or(Err(Error::Worker));
            received.and(taken)
        })
    }
}

impl Registry<'_> {
    fn failed(&self, cause: knarr_distribution::Error) -> Error {
        Error::Pull {
            name: self.name.to_owned(),
            cause: Box::new(cause),
        }
    }
}

/// The inflating thread's end of the pipe; `None` is the good end.
struct Incoming {
    receiver: Receiver<Option<Bytes>>,
    /// `None` after the end.
    piece: Option<Bytes>,
}

impl Read for Incoming {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while let Some(piece) = &mut self.piece {
            if piece.has_remaining() {
                let n = piece.len().min(buffer.len());
                if let Some(to) = buffer.get_mut(..n) {
                    piece.copy_to_slice(to);
                }
                return Ok(n);
            }
            self.piece = self
                .receiver
                .recv()
                .map_err(|_| io::ErrorKind::ConnectionAborted)?;
        }
        Ok(0)
    }
}
