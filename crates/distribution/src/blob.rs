//! Reading blobs.

use std::fmt;
use std::io;

use bytes::{Buf as _, Bytes};
use http::header::{CONTENT_LENGTH, CONTENT_RANGE, RANGE};
use http::{Method, StatusCode};
use knarr_spec::image::Descriptor;
use knarr_spec::manifest::DOCUMENT_LIMIT;
use knarr_spec::{Digest, Reference};

use crate::ask::{Ask, What};
use crate::endpoint::Endpoint;
use crate::foreign::range_start;
use crate::hosts::Capability;
use crate::manifest::check_digest;
use crate::session::{ATTEMPTS, Answer, header, next_chunk, too_large};
use crate::{Error, Result, Session};

/// Connections that one blob may take in all.
const RECONNECTS: u32 = 200;

/// A blob's bytes as they arrive. A dropped connection is opened again where it broke.
pub struct Blob<'s, 'c> {
    session: &'s Session<'c>,
    endpoints: Vec<Endpoint>,
    /// The server being asked.
    at: usize,
    digest: Digest,
    /// Of the whole blob.
    size: u64,
    /// Bytes given to the caller, or not wanted by him.
    offset: u64,
    /// Where the caller wants to stop.
    end: u64,
    /// Bytes of the current body to drop, where the server ignored `Range`.
    skip: u64,
    open: Option<Answer>,
    /// Where the open body ends.
    open_end: u64,
    ranged: Option<bool>,
    /// In a row.
    failures: u32,
    connections: u32,
    /// What [`io::Read`] has not given yet.
    left: Bytes,
}

impl<'c> Session<'c> {
    /// A configuration, or another blob that is read whole: at most 4 MiB, digest checked.
    ///
    /// # Errors
    /// [`Error`].
    pub fn document(&self, reference: &Reference, descriptor: &Descriptor) -> Result<Vec<u8>> {
        let what = format!("blob {}", descriptor.digest);
        let registry = reference.registry();
        if descriptor.size > DOCUMENT_LIMIT {
            return Err(too_large(registry, what, DOCUMENT_LIMIT));
        }
        let mut blob = self.blob(reference, descriptor)?;
        let mut bytes = Vec::with_capacity(usize::try_from(descriptor.size).unwrap_or_default());
        while let Some(chunk) = blob.chunk()? {
            bytes.extend_from_slice(&chunk);
        }
        check_digest(registry, what, descriptor.digest, &bytes)?;
        Ok(bytes)
    }

    /// A blob of any size as a stream. **Its digest is not checked**: whoever stores the bytes
    /// hashes them.
    ///
    /// # Errors
    /// When the configuration of registries cannot be read; nothing is sent yet.
    pub fn blob<'s>(
        &'s self,
        reference: &Reference,
        descriptor: &Descriptor,
    ) -> Result<Blob<'s, 'c>> {
        // Blobs have digests: what mirrors by tag have is of no use.
        let by_digest = reference.with_digest(descriptor.digest);
        Ok(Blob {
            session: self,
            endpoints: self.endpoints(&by_digest, Capability::Pull)?,
            at: 0,
            digest: descriptor.digest,
            size: descriptor.size,
            offset: 0,
            end: descriptor.size,
            skip: 0,
            open: None,
            open_end: 0,
            ranged: None,
            failures: 0,
            connections: 0,
            left: Bytes::new(),
        })
    }

    /// The size of a blob in the reference's repository; `None` where it is not there.
    ///
    /// # Errors
    /// [`Error`].
    pub fn has_blob(&self, reference: &Reference, digest: Digest) -> Result<Option<u64>> {
        let mut ask = Ask::get(format!("blobs/{digest}"), "*/*", What::Blob(digest));
        ask.method = Method::HEAD;
        // Where it would be written, whatever mirrors have; and so with that token.
        ask.access = crate::ask::Access::Push { from: None };
        let endpoints = self.endpoints(reference, Capability::Push)?;
        let answer = self.runtime.block_on(async {
            let (answer, _) = self.fetch(&endpoints, &ask).await?;
            let size = header(&answer.parts, CONTENT_LENGTH).parse().unwrap_or(0);
            self.keep(answer.line, answer.sender);
            Ok(size)
        });
        match answer {
            Ok(size) => Ok(Some(size)),
            Err(error) if Error::is_absence(&error) => Ok(None),
            Err(error) => Err(error),
        }
    }
}

impl Blob<'_, '_> {
    /// Only the bytes from `offset` on, up to `end` (exclusive).
    #[must_use]
    pub fn part(mut self, offset: u64, end: u64) -> Self {
        self.offset = offset;
        self.end = end.min(self.size);
        self
    }

    /// Moves the end on: what comes next is asked for when the present answer is used up.
    pub fn extend(&mut self, end: u64) {
        self.end = end.min(self.size);
    }

    /// The next byte that [`chunk`](Self::chunk) will give.
    pub fn offset(&self) -> u64 {
        self.offset
    }

    /// Whether the server gives parts; known once something came, if a part was asked for.
    pub fn gives_ranges(&self) -> Option<bool> {
        self.ranged
    }

    /// The next bytes; `None` at the end, after exactly as many as were asked for.
    ///
    /// # Errors
    /// [`Error`], after trying again where that may help.
    pub fn chunk(&mut self) -> Result<Option<Bytes>> {
        let session = self.session;
        session.runtime.block_on(self.next())
    }

    async fn next(&mut self) -> Result<Option<Bytes>> {
        loop {
            match self.attempt().await {
                Ok(Some(chunk)) => {
                    self.failures = 0;
                    return Ok(Some(chunk));
                }
                Ok(None) => return Ok(None),
                // All is here; how the connection ends does not matter.
                Err(_) if self.offset == self.size && self.size > 0 => return Ok(None),
                Err(error) => {
                    self.open = None;
                    self.failures += 1;
                    let is_last = self.at + 1 >= self.endpoints.len();
                    let attempts = if is_last { ATTEMPTS } else { 2 };
                    let hopeless = self.failures >= attempts || self.connections >= RECONNECTS;
                    if error.is_transient() && !hopeless {
                        self.session.wait(&error, self.failures).await;
                    } else if !is_last && !error.is_local() {
                        self.session.next(&error, &self.endpoints, self.at);
                        self.at += 1;
                        self.failures = 0;
                    } else {
                        return Err(error);
                    }
                }
            }
        }
    }

    async fn attempt(&mut self) -> Result<Option<Bytes>> {
        // Nothing is wanted any more; a blob without bytes is asked for all the same.
        if self.offset >= self.end && (self.size > 0 || self.connections > 0) && !self.at_the_end()
        {
            return Ok(None);
        }
        if self.open.is_none() {
            self.reopen().await?;
        }
        let registry = self.registry();
        let Some(answer) = &mut self.open else {
            return Ok(None);
        };
        while let Some(mut chunk) = next_chunk(&mut answer.body, &registry).await? {
            let dropped = self.skip.min(chunk.len() as u64);
            self.skip -= dropped;
            // At most the chunk's length, so it fits.
            let chunk = chunk.split_off(usize::try_from(dropped).unwrap_or_default());
            if chunk.is_empty() {
                continue;
            }
            self.offset += chunk.len() as u64;
            if self.offset > self.open_end {
                let what = format!("blob {}", self.digest);
                return Err(too_large(&registry, what, self.size));
            }
            return Ok(Some(chunk));
        }
        if let Some(answer) = self.open.take() {
            self.session.keep(answer.line, answer.sender);
        }
        if self.offset < self.open_end {
            return Err(Error::Truncated {
                registry,
                what: format!("blob {}", self.digest),
                got: self.offset,
                expected: self.size,
            });
        }
        Ok(None)
    }

    /// Whether the open body should be over: then it is read to its end, so that what comes
    /// beyond is noticed and the connection can be used again.
    fn at_the_end(&self) -> bool {
        self.open.is_some() && self.offset >= self.open_end
    }

    fn registry(&self) -> String {
        let endpoint = self.endpoints.get(self.at);
        endpoint.map_or(String::new(), |e| e.registry.clone())
    }

    async fn reopen(&mut self) -> Result<()> {
        self.connections += 1;
        let mut ask = Ask::get(
            format!("blobs/{}", self.digest),
            "*/*",
            What::Blob(self.digest),
        );
        let is_part = self.offset > 0 || self.end < self.size;
        if is_part {
            let last = match self.end < self.size {
                true => self.end.saturating_sub(1).to_string(),
                false => String::new(),
            };
            ask = ask.with(RANGE, format!("bytes={}-{last}", self.offset));
        }
        let Some(endpoint) = self.endpoints.get(self.at) else {
            return Ok(());
        };
        // Tries are counted by who calls.
        let answer = self.session.fetch_from(endpoint, &ask, 1).await?;
        self.skip = 0;
        if answer.parts.status == StatusCode::PARTIAL_CONTENT {
            let range = header(&answer.parts, CONTENT_RANGE);
            if range_start(&range) != Some(self.offset) {
                return Err(Error::Unexpected {
                    registry: self.registry(),
                    status: 206,
                    detail: format!(
                        "it answers with the range {range:?} of blob {}",
                        self.digest
                    ),
                });
            }
            self.ranged = Some(true);
            self.open_end = self.end;
        } else {
            if is_part {
                self.ranged = Some(false);
            }
            self.skip = self.offset;
            self.open_end = self.size;
        }
        self.open = Some(answer);
        Ok(())
    }
}

impl io::Read for Blob<'_, '_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.left.is_empty() {
            match self.chunk() {
                Ok(Some(chunk)) => self.left = chunk,
                Ok(None) => return Ok(0),
                Err(error) => return Err(io::Error::other(error)),
            }
        }
        let count = self.left.len().min(buffer.len());
        if let Some(to) = buffer.get_mut(..count) {
            self.left.copy_to_slice(to);
        }
        Ok(count)
    }
}

impl fmt::Debug for Blob<'_, '_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Blob")
            .field("digest", &self.digest)
            .field("size", &self.size)
            .field("offset", &self.offset)
            .finish_non_exhaustive()
    }
}
