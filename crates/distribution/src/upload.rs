//! Writing blobs (distribution-spec, "Pushing blobs").

use std::future::Future;
use std::io::{self, Read};
use std::pin::Pin;
use std::time::Duration;

use bytes::Bytes;
use http::header::{CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE, LOCATION, RANGE};
use http::response::Parts;
use http::{Method, Response, StatusCode, Uri};
use hyper::body::Incoming;
use knarr_spec::{Digest, Reference};
use tokio::sync::mpsc;
use tokio::time::timeout;

use crate::ask::{Access, Ask, Target, What};
use crate::body::Body;
use crate::client::Line;
use crate::connection::Sender;
use crate::endpoint::Endpoint;
use crate::hosts::Capability;
use crate::location::follow;
use crate::manifest::Hashing;
use crate::session::{ATTEMPTS, Answer, SILENCE, SMALL, broken, header, silent, unfollowed};
use crate::{Error, Result, Session};

/// Up to so much goes in one request.
const AT_ONCE: usize = 1 << 20;
/// What is read of the source at a time.
const PIECE: usize = 256 << 10;
/// Pieces on their way to the connection.
const PIECES: usize = 2;
/// A chunk's size where the registry wants chunks, or where an upload goes on after a failure.
const CHUNK: usize = 8 << 20;
/// The most that a registry may want a chunk to have.
const LARGEST_CHUNK: usize = 32 << 20;
/// A registry hashes and syncs a whole blob before it answers.
const STORING: Duration = Duration::from_secs(600);

/// Opens what is pushed, from its start; once more each time an upload has to be taken up again.
/// It must give the same bytes each time.
pub type Open<'a> = dyn FnMut() -> io::Result<Box<dyn Read + 'a>> + 'a;

/// What a registry has now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Uploaded {
    /// The digest of the bytes.
    pub digest: Digest,
    /// How many they are.
    pub size: u64,
}

/// What became of a body that can be sent only once.
enum Streamed {
    Taken,
    /// The server wants another proof of who is asking.
    Unauthorized(Box<Answer>),
}

/// An upload that the registry knows.
struct Upload {
    location: Uri,
    /// The smallest chunk that the registry takes; 0: any.
    least: usize,
}

/// Reads and hashes.
struct Source<'a> {
    reader: Box<dyn Read + 'a>,
    hashing: Hashing,
    size: u64,
}

impl Source<'_> {
    /// At most `limit` bytes, fewer only at the end.
    fn take(&mut self, limit: usize) -> Result<Bytes> {
        let mut bytes = Vec::with_capacity(limit.min(PIECE));
        let taken = Read::by_ref(&mut self.reader)
            .take(limit as u64)
            .read_to_end(&mut bytes);
        taken.map_err(Error::Source)?;
        self.hashing.update(&bytes);
        self.size += bytes.len() as u64;
        Ok(bytes.into())
    }

    /// Reads on to `offset`.
    fn skip_to(&mut self, offset: u64) -> Result<()> {
        while self.size < offset {
            let step = usize::try_from(offset - self.size)
                .unwrap_or(PIECE)
                .min(PIECE);
            if self.take(step)?.is_empty() {
                return Err(Error::Source(io::ErrorKind::UnexpectedEof.into()));
            }
        }
        Ok(())
    }
}

impl Session<'_> {
    /// Has the registry take a blob from another of its repositories; whether it did.
    ///
    /// # Errors
    /// [`Error`].
    pub fn mount_blob(&self, reference: &Reference, digest: Digest, from: &str) -> Result<bool> {
        let access = Access::Push {
            from: Some(from.to_owned()),
        };
        let path = format!("blobs/uploads/?mount={digest}&from={from}");
        let ask = Ask::new(
            Method::POST,
            Target::Path(path),
            access,
            What::Upload(format!("blob {digest}")),
        )
        .with(CONTENT_LENGTH, "0");
        let endpoints = self.endpoints(reference, Capability::Push)?;
        self.runtime.block_on(async {
            let (parts, _, at) = match self.fetch_whole(&endpoints, &ask, SMALL).await {
                // Who may not read there cannot take from there.
                Err(error) if error.is_absence() => return Ok(false),
                Err(Error::Unauthorized { .. } | Error::Denied { .. }) => return Ok(false),
                fetched => fetched?,
            };
            if parts.status.as_u16() == 201 {
                return Ok(true);
            }
            // It began an upload in its place, which nobody needs.
            if let Some(endpoint) = endpoints.get(at)
                && let Some(location) = self.location(endpoint, &parts).await
            {
                self.cancel(endpoint, &location).await;
            }
            Ok(false)
        })
    }

    /// Uploads a blob: what `open` gives, of whatever size. `sent` hears how many bytes are on
    /// their way. A broken connection is taken up where the registry says that it broke.
    ///
    /// # Errors
    /// [`Error`]; [`Error::Source`] where `open` or its reader fails, [`Error::SourceMismatch`]
    /// where the bytes are not those that `expected` says.
    pub fn push_blob<'a>(
        &self,
        reference: &Reference,
        expected: Option<Digest>,
        open: &mut Open<'a>,
        sent: &dyn Fn(u64),
    ) -> Result<Uploaded> {
        let endpoints = self.endpoints(reference, Capability::Push)?;
        let Some(endpoint) = endpoints.first() else {
            return Err(unfollowed(
                reference.registry(),
                reference,
                "there is no server",
            ));
        };
        let mut failures = 0;
        loop {
            match self.push_once(endpoint, expected, open, sent) {
                Err(error) if error.is_transient() && failures + 1 < ATTEMPTS => {
                    failures += 1;
                    self.runtime.block_on(self.wait(&error, failures));
                }
                done => return done,
            }
        }
    }

    fn push_once<'a>(
        &self,
        endpoint: &Endpoint,
        expected: Option<Digest>,
        open: &mut Open<'a>,
        sent: &dyn Fn(u64),
    ) -> Result<Uploaded> {
        let mut upload = self.runtime.block_on(self.begin(endpoint))?;
        knarr_fs::failpoint!("push.begun");
        let done = self.transfer(endpoint, &mut upload, expected, open, sent);
        if done.is_err() {
            let cancel = self.cancel(endpoint, &upload.location);
            self.runtime
                .block_on(async { timeout(SILENCE / 6, cancel).await })
                .ok();
        }
        done
    }

    fn transfer<'a>(
        &self,
        endpoint: &Endpoint,
        upload: &mut Upload,
        expected: Option<Digest>,
        open: &mut Open<'a>,
        sent: &dyn Fn(u64),
    ) -> Result<Uploaded> {
        let mut start = || -> Result<Source<'a>> {
            Ok(Source {
                reader: open().map_err(Error::Source)?,
                hashing: Hashing::default(),
                size: 0,
            })
        };
        let mut source = start()?;
        let first = source.take(AT_ONCE)?;
        if first.len() < AT_ONCE {
            return self.finish(endpoint, upload, source, expected, first, sent);
        }
        if upload.least == 0 {
            let mut streamed = self.stream(endpoint, upload, &mut source, first, sent);
            if let Ok(Streamed::Unauthorized(answer)) = streamed {
                // The token had ended. Nothing was taken: from the start, with a new one.
                self.runtime.block_on(self.renew(endpoint, *answer))?;
                source = start()?;
                let first = source.take(AT_ONCE)?;
                streamed = self.stream(endpoint, upload, &mut source, first, sent);
            }
            match streamed {
                Ok(Streamed::Taken) => {
                    return self.finish(endpoint, upload, source, expected, Bytes::new(), sent);
                }
                Ok(Streamed::Unauthorized(answer)) => {
                    return Err(self.runtime.block_on(async {
                        let ask = self.ask(Method::PATCH, Target::Url(upload.location.clone()));
                        match self.home(endpoint).await {
                            Ok(home) => self.refusal(endpoint, &home, &ask, *answer, true).await,
                            Err(error) => error,
                        }
                    }));
                }
                Err(error) if error.is_transient() => {
                    self.runtime.block_on(self.wait(&error, 1));
                }
                // A registry that cannot take a stream says so with one of these.
                Err(Error::Unexpected {
                    status: 400 | 411 | 413 | 416,
                    ..
                }) => upload.least = CHUNK,
                Err(error) => return Err(error),
            }
        }
        // From here on by chunks, from where the registry has got to.
        let mut failures = 0;
        let mut is_new = upload.least > 0 && upload.least != CHUNK;
        loop {
            let there = match is_new {
                true => 0,
                false => self.runtime.block_on(self.progress(endpoint, upload))?,
            };
            is_new = false;
            if there < source.size {
                source = start()?;
            }
            source.skip_to(there)?;
            match self.chunks(endpoint, upload, &mut source, sent) {
                Ok(last) => {
                    return self.finish(endpoint, upload, source, expected, last, sent);
                }
                Err(error) if error.is_transient() && failures + 1 < ATTEMPTS => {
                    failures += 1;
                    self.runtime.block_on(self.wait(&error, failures));
                }
                Err(error) => return Err(error),
            }
        }
    }

    async fn begin(&self, endpoint: &Endpoint) -> Result<Upload> {
        let ask = self
            .ask(Method::POST, Target::Path("blobs/uploads/".to_owned()))
            .with(CONTENT_LENGTH, "0");
        let answer = self.fetch_from(endpoint, &ask, ATTEMPTS).await?;
        let (parts, _) = self
            .read_whole(answer, &endpoint.registry, &ask.what, SMALL)
            .await?;
        let location = self
            .location(endpoint, &parts)
            .await
            .ok_or_else(|| unfollowed(&endpoint.registry, "", "it says not where to upload to"))?;
        let least = header(&parts, "oci-chunk-min-length").parse().unwrap_or(0);
        if least > LARGEST_CHUNK {
            return Err(Error::Unexpected {
                registry: endpoint.registry.clone(),
                status: parts.status.as_u16(),
                detail: format!("it wants chunks of at least {least} bytes"),
            });
        }
        Ok(Upload { location, least })
    }

    fn ask(&self, method: Method, target: Target) -> Ask {
        let access = Access::Push { from: None };
        Ask::new(method, target, access, What::Upload("a blob".to_owned()))
    }

    /// Where an answer says to go on.
    async fn location(&self, endpoint: &Endpoint, parts: &Parts) -> Option<Uri> {
        let home = self.home(endpoint).await.ok()?;
        let base: Uri = format!("{home}{}/", endpoint.base).parse().ok()?;
        follow(&base, &header(parts, LOCATION))
    }

    /// Sends everything that is left in one request whose size is not known.
    fn stream(
        &self,
        endpoint: &Endpoint,
        upload: &mut Upload,
        source: &mut Source<'_>,
        first: Bytes,
        sent: &dyn Fn(u64),
    ) -> Result<Streamed> {
        let ask = self
            .ask(Method::PATCH, Target::Url(upload.location.clone()))
            .with(CONTENT_TYPE, "application/octet-stream");
        let (pieces, body) = mpsc::channel(PIECES);
        let mut sending = self.runtime.block_on(async {
            let prepared = self
                .prepare(endpoint, &upload.location, &ask, Body::Stream(body))
                .await?;
            Sending::begin(endpoint, prepared).await
        })?;
        let mut piece = first;
        let mut is_whole = true;
        while !piece.is_empty() {
            sent(source.size);
            if self
                .runtime
                .block_on(sending.piece(&pieces, piece))?
                .is_break()
            {
                is_whole = false;
                break;
            }
            piece = source.take(PIECE)?;
        }
        drop(pieces);
        let answer = self.runtime.block_on(sending.answer())?;
        self.runtime.block_on(async {
            let home = self.home(endpoint).await?;
            if answer.parts.status == StatusCode::UNAUTHORIZED && answer.line.origin == home {
                return Ok(Streamed::Unauthorized(Box::new(answer)));
            }
            if !is_whole || !answer.parts.status.is_success() {
                return Err(self.refusal(endpoint, &home, &ask, answer, true).await);
            }
            let (parts, _) = self
                .read_whole(answer, &endpoint.registry, &ask.what, SMALL)
                .await?;
            if let Some(location) = self.location(endpoint, &parts).await {
                upload.location = location;
            }
            Ok(Streamed::Taken)
        })
    }

    /// Gets another token for an upload, as a 401 asks.
    async fn renew(&self, endpoint: &Endpoint, answer: Answer) -> Result<()> {
        let ask = self.ask(Method::PATCH, Target::Root(String::new()));
        let home = self.home(endpoint).await?;
        let scopes = ask.access.scopes(&endpoint.repository);
        let fresh = self
            .authorize(endpoint, &home, &ask, &scopes, answer)
            .await?;
        self.client
            .learn_authorization(&home, &endpoint.registry, &scopes, &fresh);
        Ok(())
    }

    /// Sends what is left in chunks; gives the last bytes, which come with the end.
    fn chunks(
        &self,
        endpoint: &Endpoint,
        upload: &mut Upload,
        source: &mut Source<'_>,
        sent: &dyn Fn(u64),
    ) -> Result<Bytes> {
        let size = upload.least.max(CHUNK);
        loop {
            let start = source.size;
            let mut chunk = Vec::with_capacity(size);
            while chunk.len() < size {
                let piece = source.take(PIECE.min(size - chunk.len()))?;
                if piece.is_empty() {
                    break;
                }
                chunk.extend_from_slice(&piece);
            }
            if chunk.len() < size {
                // The last chunk may be smaller than the least; the end takes it along.
                return Ok(chunk.into());
            }
            let range = format!("{start}-{}", source.size - 1);
            let ask = self
                .ask(Method::PATCH, Target::Url(upload.location.clone()))
                .with(CONTENT_TYPE, "application/octet-stream")
                .with(CONTENT_RANGE, range)
                .sending(chunk);
            let parts = self.runtime.block_on(async {
                let answer = self.fetch_from(endpoint, &ask, 1).await?;
                let read = self.read_whole(answer, &endpoint.registry, &ask.what, SMALL);
                let (parts, _) = read.await?;
                let location = self.location(endpoint, &parts).await;
                Ok::<_, Error>(location)
            })?;
            if let Some(location) = parts {
                upload.location = location;
            }
            sent(source.size);
        }
    }

    /// How many bytes the registry has of an upload.
    async fn progress(&self, endpoint: &Endpoint, upload: &mut Upload) -> Result<u64> {
        let ask = self.ask(Method::GET, Target::Url(upload.location.clone()));
        let answer = self.fetch_from(endpoint, &ask, ATTEMPTS).await?;
        let (parts, _) = self
            .read_whole(answer, &endpoint.registry, &ask.what, SMALL)
            .await?;
        if let Some(location) = self.location(endpoint, &parts).await {
            upload.location = location;
        }
        // `0-99`: 100 bytes. Nothing at all is `0-0` with some, no header with others.
        let range = header(&parts, RANGE);
        let last = range
            .trim_start_matches("bytes=")
            .split_once('-')
            .and_then(|(_, last)| last.parse::<u64>().ok());
        Ok(match last {
            None | Some(0) => 0,
            Some(last) => last + 1,
        })
    }

    /// Ends an upload with its last bytes and its digest.
    fn finish(
        &self,
        endpoint: &Endpoint,
        upload: &Upload,
        source: Source<'_>,
        expected: Option<Digest>,
        last: Bytes,
        sent: &dyn Fn(u64),
    ) -> Result<Uploaded> {
        let digest = source.hashing.finish();
        if let Some(expected) = expected
            && expected != digest
        {
            return Err(Error::SourceMismatch {
                expected,
                got: digest,
            });
        }
        let location = upload.location.to_string();
        let mark = if location.contains('?') { '&' } else { '?' };
        let uri: Uri = format!("{location}{mark}digest={digest}")
            .parse()
            .map_err(|_| unfollowed(&endpoint.registry, &location, "it is not a URL"))?;
        let mut ask = self
            .ask(Method::PUT, Target::Url(uri))
            .with(CONTENT_TYPE, "application/octet-stream");
        if last.is_empty() {
            ask = ask.with(CONTENT_LENGTH, "0");
        } else if source.size > last.len() as u64 {
            let start = source.size - last.len() as u64;
            ask = ask.with(CONTENT_RANGE, format!("{start}-{}", source.size - 1));
        }
        let ask = ask.sending(last);
        self.runtime.block_on(async {
            let answer = self.fetch_from(endpoint, &ask, 1).await?;
            self.read_whole(answer, &endpoint.registry, &ask.what, SMALL)
                .await
        })?;
        sent(source.size);
        Ok(Uploaded {
            digest,
            size: source.size,
        })
    }

    /// Has the registry forget an upload; one that does not is no reason to fail.
    async fn cancel(&self, endpoint: &Endpoint, location: &Uri) {
        let ask = self.ask(Method::DELETE, Target::Url(location.clone()));
        if let Ok(answer) = self.fetch_from(endpoint, &ask, 1).await {
            self.read_whole(answer, &endpoint.registry, &ask.what, SMALL)
                .await
                .ok();
        }
    }
}

type Pending = Pin<Box<dyn Future<Output = hyper::Result<Response<Incoming>>>>>;

/// A request whose body is still being made.
struct Sending {
    registry: String,
    line: Line,
    uri: Uri,
    sender: Sender,
    pending: Pending,
    early: Option<Response<Incoming>>,
}

impl Sending {
    async fn begin(
        endpoint: &Endpoint,
        (mut sender, request, line): (Sender, http::Request<Body>, Line),
    ) -> Result<Self> {
        let registry = endpoint.registry.clone();
        sender
            .ready()
            .await
            .map_err(|cause| broken(&registry, "sending data", cause))?;
        let uri = request.uri().clone();
        let pending: Pending = Box::pin(sender.send_request(request));
        Ok(Self {
            registry,
            line,
            uri,
            sender,
            pending,
            early: None,
        })
    }

    /// Sends a piece, unless the server has answered already.
    async fn piece(
        &mut self,
        pieces: &mpsc::Sender<Bytes>,
        piece: Bytes,
    ) -> Result<std::ops::ControlFlow<()>> {
        use std::ops::ControlFlow::{Break, Continue};
        let Self {
            pending, registry, ..
        } = self;
        let step = async {
            tokio::select! {
                biased;
                response = pending => Err(response),
                sent = pieces.send(piece) => Ok(sent),
            }
        };
        match timeout(SILENCE, step).await {
            Ok(Ok(Ok(()))) => Ok(Continue(())),
            // The connection is gone; its answer says why.
            Ok(Ok(Err(_))) => Ok(Break(())),
            Ok(Err(Ok(response))) => {
                self.early = Some(response);
                Ok(Break(()))
            }
            Ok(Err(Err(cause))) => Err(broken(registry, "taking data", cause)),
            Err(_) => Err(silent(registry, "taking data")),
        }
    }

    async fn answer(mut self) -> Result<Answer> {
        let response = match self.early.take() {
            Some(response) => response,
            None => match timeout(STORING, &mut self.pending).await {
                Ok(Ok(response)) => response,
                Ok(Err(cause)) => return Err(broken(&self.registry, "taking data", cause)),
                Err(_) => return Err(silent(&self.registry, "taking data")),
            },
        };
        let (parts, body) = response.into_parts();
        Ok(Answer {
            parts,
            body,
            line: self.line,
            uri: self.uri,
            sender: self.sender,
        })
    }
}
