//! Several connections that fill the blobs of one image, shared by all its layers.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use knarr_distribution::{Client, Session};
use knarr_fs::failpoint;
use knarr_spec::Reference;
use knarr_spec::image::Descriptor;

use crate::partial::{Job, Partial};
use crate::{Error, Event, LayerState, Progress, Result};

/// Connections to a registry at a time, whatever the number of layers.
pub(crate) const CONNECTIONS: usize = 6;

/// The blobs that are wanted now.
pub(crate) struct Fetcher<'a> {
    client: &'a Client<'a>,
    reference: &'a Reference,
    /// What messages call the image.
    name: &'a str,
    progress: &'a dyn Progress,
    queue: Mutex<Queue>,
    changed: Condvar,
}

#[derive(Default)]
struct Queue {
    blobs: Vec<Wanted>,
    closed: bool,
}

#[derive(Clone)]
struct Wanted {
    descriptor: Descriptor,
    partial: Arc<Partial>,
}

impl<'a> Fetcher<'a> {
    pub(crate) fn new(
        client: &'a Client<'a>,
        reference: &'a Reference,
        name: &'a str,
        progress: &'a dyn Progress,
    ) -> Self {
        Self {
            client,
            reference,
            name,
            progress,
            queue: Mutex::default(),
            changed: Condvar::new(),
        }
    }

    /// Has a blob fetched until [`done`](Self::done) with it.
    pub(crate) fn want(&self, descriptor: &Descriptor, partial: &Arc<Partial>) {
        self.queue().blobs.push(Wanted {
            descriptor: descriptor.clone(),
            partial: Arc::clone(partial),
        });
        self.changed.notify_all();
    }

    /// Lets go of a blob; waits until no connection fills it any more.
    pub(crate) fn done(&self, partial: &Arc<Partial>) {
        partial.give_up();
        let mut queue = self.queue();
        queue
            .blobs
            .retain(|wanted| !Arc::ptr_eq(&wanted.partial, partial));
        // One reference is the caller's; the others are of connections.
        while Arc::strong_count(partial) > 1 {
            queue = self
                .changed
                .wait(queue)
                .unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Ends the connections when they have nothing to do.
    pub(crate) fn close(&self) {
        self.queue().closed = true;
        self.changed.notify_all();
    }

    /// One connection's thread, until [`close`](Self::close).
    pub(crate) fn connection(&self, mut session: Option<Session<'a>>) {
        while let Some((wanted, job)) = self.next() {
            let filled = match &session {
                Some(session) => self.fill(session, &wanted, job),
                None => match self.client.session() {
                    Ok(new) => self.fill(session.insert(new), &wanted, job),
                    Err(cause) => Err(self.failed(cause)),
                },
            };
            let partial = Arc::clone(&wanted.partial);
            drop(wanted);
            partial.left(job, filled.err());
            let queue = self.queue();
            drop(partial);
            drop(queue);
            self.changed.notify_all();
        }
    }

    /// A segment of the blob that the fewest connections are at.
    fn next(&self) -> Option<(Wanted, Job)> {
        let mut queue = self.queue();
        loop {
            let mut open: Vec<(usize, &Wanted)> = queue
                .blobs
                .iter()
                .filter_map(|wanted| Some((wanted.partial.wants()?, wanted)))
                .collect();
            open.sort_by_key(|(writers, _)| *writers);
            let found = open
                .iter()
                .find_map(|(_, wanted)| Some(((*wanted).clone(), wanted.partial.take()?)));
            if found.is_some() {
                return found;
            }
            if queue.closed {
                return None;
            }
            queue = self
                .changed
                .wait(queue)
                .unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn fill(&self, session: &Session<'_>, wanted: &Wanted, job: Job) -> Result<()> {
        let Wanted {
            descriptor,
            partial,
        } = wanted;
        let failed = |cause| self.failed(cause);
        let blob = session.blob(self.reference, descriptor).map_err(failed)?;
        let mut blob = blob.part(job.from, job.end);
        let mut at = job.from;
        let mut knows = job.from == 0 && job.end == partial.size();
        while let Some(piece) = blob.chunk().map_err(failed)? {
            if !knows {
                knows = true;
                let ranged = blob.gives_ranges() == Some(true);
                if !ranged {
                    partial.alone();
                    blob.extend(partial.size());
                }
                partial.ranged(ranged);
                self.changed.notify_all();
            }
            partial.write(at, &piece)?;
            at += piece.len() as u64;
            failpoint!("pull.receiving");
            self.progress.event(&Event::Layer {
                layer: descriptor.digest,
                state: LayerState::Receiving {
                    done: partial.done(),
                    total: partial.size(),
                },
            });
            if partial.is_given_up() {
                break;
            }
        }
        failpoint!("pull.segment-received");
        Ok(())
    }

    fn failed(&self, cause: knarr_distribution::Error) -> Error {
        Error::Pull {
            name: self.name.to_owned(),
            cause: Box::new(cause),
        }
    }

    fn queue(&self) -> MutexGuard<'_, Queue> {
        // Each change is whole before the lock is given back.
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
