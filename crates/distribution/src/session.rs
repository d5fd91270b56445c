//! One thread's conversation with registries.

use std::cell::RefCell;
use std::collections::HashMap;
use std::fmt;
use std::time::Duration;

use bytes::Bytes;
use http::header::{
    ACCEPT, AUTHORIZATION, CONTENT_RANGE, CONTENT_TYPE, HOST, LOCATION, RANGE, RETRY_AFTER,
    USER_AGENT, WWW_AUTHENTICATE,
};
use http::response::Parts;
use http::{Request, StatusCode, Uri};
use http_body_util::{BodyExt as _, Empty};
use hyper::body::Incoming;
use knarr_spec::image::{Descriptor, media_type};
use knarr_spec::manifest::{DOCUMENT_LIMIT, Document};
use knarr_spec::{Digest, Reference};
use serde::Deserialize;
use tokio::runtime::Runtime;
use tokio::time::timeout;

use crate::client::Authorization;
use crate::connection::{self, Origin, Sender};
use crate::{Client, Error, Result, auth, challenge, credentials};

/// For the head of an answer, and between two pieces of a body.
const SILENCE: Duration = Duration::from_secs(60);
/// Tries of one request, or in a row without a byte of progress in a blob.
const ATTEMPTS: u32 = 5;
/// Connections that one blob may take in all.
const RECONNECTS: u32 = 200;
/// The longest `Retry-After` that is waited for.
const PATIENCE: Duration = Duration::from_secs(60);
const REDIRECTS: usize = 10;
/// Error bodies and token answers, in bytes.
const SMALL: u64 = 256 << 10;
const AGENT: &str = concat!("knarr/", env!("CARGO_PKG_VERSION"));

/// Connections of the thread that made it. Calls block; nothing runs between them.
pub struct Session<'c> {
    client: &'c Client<'c>,
    idle: RefCell<HashMap<Origin, Vec<Sender>>>,
    runtime: Runtime,
}

/// A manifest or index as it came.
#[derive(Debug, Clone)]
pub struct Fetched {
    /// The exact bytes.
    pub bytes: Vec<u8>,
    /// Their digest.
    pub digest: Digest,
    /// What they say.
    pub document: Document,
}

/// What is asked for, for messages.
#[derive(Clone)]
enum What {
    /// `tag x` or `manifest sha256:…`
    Manifest(String),
    Blob(Digest),
}

impl fmt::Display for What {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Manifest(what) => f.write_str(what),
            Self::Blob(digest) => write!(f, "blob {digest}"),
        }
    }
}

/// One GET below `/v2/<repository>/`.
struct Ask<'a> {
    registry: &'a str,
    repository: &'a str,
    path: String,
    accept: String,
    /// The first byte wanted.
    offset: u64,
    what: What,
}

/// The head of a 2xx answer, and its body still on the wire.
struct Answer {
    parts: Parts,
    body: Incoming,
    origin: Origin,
    sender: Sender,
}

impl<'c> Session<'c> {
    pub(crate) fn new(client: &'c Client<'c>) -> Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_io()
            .enable_time()
            .build()
            .map_err(Error::Runtime)?;
        Ok(Self {
            client,
            idle: RefCell::default(),
            runtime,
        })
    }

    /// The manifest or index that `reference` means: by its digest where it has one, else its tag.
    ///
    /// # Errors
    /// [`Error`]; among others when the bytes do not have the digest that was asked for or that
    /// the registry announces.
    pub fn manifest(&self, reference: &Reference) -> Result<Fetched> {
        self.runtime.block_on(self.fetch_manifest(reference))
    }

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
        let mut blob = self.blob(reference, descriptor);
        let mut bytes = Vec::with_capacity(usize::try_from(descriptor.size).unwrap_or_default());
        while let Some(chunk) = blob.chunk()? {
            bytes.extend_from_slice(&chunk);
        }
        check_digest(registry, what, descriptor.digest, &bytes)?;
        Ok(bytes)
    }

    /// A blob of any size as a stream. **Its digest is not checked**: whoever stores the bytes
    /// hashes them.
    pub fn blob<'s>(&'s self, reference: &Reference, descriptor: &Descriptor) -> Blob<'s, 'c> {
        Blob {
            session: self,
            registry: reference.registry().to_owned(),
            repository: reference.repository().to_owned(),
            digest: descriptor.digest,
            size: descriptor.size,
            offset: 0,
            skip: 0,
            open: None,
            failures: 0,
            connections: 0,
        }
    }

    async fn fetch_manifest(&self, reference: &Reference) -> Result<Fetched> {
        let (name, what) = match (reference.digest(), reference.tag()) {
            (Some(digest), _) => (digest.to_string(), format!("manifest {digest}")),
            (None, tag) => {
                let tag = tag.unwrap_or("latest");
                (tag.to_owned(), format!("tag {tag}"))
            }
        };
        let registry = reference.registry();
        let ask = Ask {
            registry,
            repository: reference.repository(),
            path: format!("manifests/{name}"),
            accept: [
                media_type::OCI_INDEX,
                media_type::OCI_MANIFEST,
                media_type::DOCKER_LIST,
                media_type::DOCKER_MANIFEST,
            ]
            .join(", "),
            offset: 0,
            what: What::Manifest(what.clone()),
        };
        let (parts, bytes) = self.fetch_whole(&ask).await?;
        let content_type = header(&parts, CONTENT_TYPE);
        if content_type.starts_with("text/html") {
            return Err(Error::NotARegistry {
                registry: registry.to_owned(),
                what: "a web page".to_owned(),
            });
        }
        let announced: Option<Digest> = header(&parts, "docker-content-digest").parse().ok();
        let mut digest = digest_of(&bytes);
        for expected in reference.digest().into_iter().chain(announced) {
            digest = check_digest(registry, what.clone(), expected, &bytes)?;
        }
        let document = Document::parse(&bytes, &content_type).map_err(|cause| Error::Manifest {
            registry: registry.to_owned(),
            what,
            cause,
        })?;
        Ok(Fetched {
            bytes,
            digest,
            document,
        })
    }

    /// A body of at most [`DOCUMENT_LIMIT`] bytes; tried again from the start if it breaks.
    async fn fetch_whole(&self, ask: &Ask<'_>) -> Result<(Parts, Vec<u8>)> {
        let mut failures = 0;
        loop {
            let answer = self.fetch(ask).await?;
            match self.read_whole(answer, ask, DOCUMENT_LIMIT).await {
                Err(error) if error.is_transient() && failures < ATTEMPTS => {
                    failures += 1;
                    self.wait(&error, failures).await?;
                }
                done => return done,
            }
        }
    }

    async fn read_whole(
        &self,
        answer: Answer,
        ask: &Ask<'_>,
        limit: u64,
    ) -> Result<(Parts, Vec<u8>)> {
        let Answer {
            parts,
            mut body,
            origin,
            sender,
        } = answer;
        let mut bytes = Vec::new();
        while let Some(chunk) = next_chunk(&mut body, ask.registry).await? {
            if (bytes.len() + chunk.len()) as u64 > limit {
                return Err(too_large(ask.registry, ask.what.to_string(), limit));
            }
            bytes.extend_from_slice(&chunk);
        }
        self.keep(origin, sender);
        Ok((parts, bytes))
    }

    /// Sends a request until it is answered with 200 or 206, as often as makes sense.
    async fn fetch(&self, ask: &Ask<'_>) -> Result<Answer> {
        let mut failures = 0;
        loop {
            match self.fetch_once(ask).await {
                Err(error) if error.is_transient() && failures + 1 < ATTEMPTS => {
                    failures += 1;
                    self.wait(&error, failures).await?;
                }
                done => return done,
            }
        }
    }

    /// Waits before another try: as long as the registry asks, else 0.2 s, doubled each time, half
    /// of it random so that many clients do not return at once.
    async fn wait(&self, error: &Error, failures: u32) -> Result<()> {
        let mut random = [0u8; 1];
        // Without randomness it is only less well spread.
        rustix::rand::getrandom(&mut random, rustix::rand::GetRandomFlags::empty()).ok();
        let backoff = Duration::from_millis(100) * 2u32.pow(failures.min(6));
        let jittered = backoff / 2 + backoff * u32::from(random[0]) / 512;
        let wait = error.retry_after().unwrap_or(jittered);
        self.client.retrying(&format!(
            "{error}; trying again in {:.1} s",
            wait.as_secs_f32()
        ));
        tokio::time::sleep(wait.min(PATIENCE)).await;
        Ok(())
    }

    async fn fetch_once(&self, ask: &Ask<'_>) -> Result<Answer> {
        let home = self.home(ask.registry).await?;
        let mut uri: Uri = format!("{home}/v2/{}/{}", ask.repository, ask.path)
            .parse()
            .map_err(|_| unfollowed(ask, &ask.path, "it is not a URL"))?;
        let mut authorization = self.client.authorization(ask.registry, ask.repository);
        let mut answered = false;
        for _ in 0..REDIRECTS {
            let origin =
                Origin::of_uri(&uri).ok_or_else(|| unfollowed(ask, &uri, "it is not http"))?;
            let at_home = origin == home;
            // What belongs to the registry is not shown to where it sends us.
            let secret = authorization.as_ref().filter(|_| at_home);
            let answer = self.exchange(&origin, &uri, ask, secret).await?;
            match answer.parts.status {
                StatusCode::OK | StatusCode::PARTIAL_CONTENT => return Ok(answer),
                StatusCode::UNAUTHORIZED if at_home && !answered => {
                    answered = true;
                    let fresh = self.authorize(&home, ask, answer).await?;
                    self.client
                        .learn_authorization(ask.registry, ask.repository, &fresh);
                    authorization = Some(fresh);
                }
                status if status.is_redirection() && status != StatusCode::NOT_MODIFIED => {
                    let location = header(&answer.parts, LOCATION);
                    uri = follow(&uri, &location)
                        .ok_or_else(|| unfollowed(ask, &location, "it is not a URL"))?;
                    if origin.https && uri.scheme_str() != Some("https") {
                        return Err(unfollowed(ask, &uri, "it leads from https to http"));
                    }
                }
                _ => {
                    let sent = secret.is_some_and(|a| a.with_credentials);
                    return Err(self.refusal(&home, ask, answer, sent).await);
                }
            }
        }
        Err(unfollowed(ask, &uri, "there were too many redirects"))
    }

    /// Where the registry is: finds out once whether it speaks https or, where allowed, http.
    async fn home(&self, registry: &str) -> Result<Origin> {
        if let Some(origin) = self.client.origin(registry) {
            return Ok(origin);
        }
        let origin = |https| {
            Origin::of_registry(registry, https).ok_or_else(|| Error::NotARegistry {
                registry: registry.to_owned(),
                what: "a name that is no host".to_owned(),
            })
        };
        let secure = origin(true)?;
        let plain_allowed = self.client.settings.insecure || secure.is_loopback();
        let found = match self.connect(&secure, registry).await {
            Ok(sender) => {
                self.keep(secure.clone(), sender);
                secure
            }
            Err(error) if plain_allowed && connection::is_not_tls(&error) => {
                // "host" alone means port 443 with https but 80 with http.
                origin(false)?
            }
            Err(Error::Connect { .. }) if plain_allowed && !registry.contains(':') => {
                origin(false)?
            }
            Err(error) => return Err(error),
        };
        self.client.learn_origin(registry, &found);
        Ok(found)
    }

    async fn connect(&self, origin: &Origin, registry: &str) -> Result<Sender> {
        let tls = match origin.https {
            true => Some(self.client.tls(&origin.authority())?),
            false => None,
        };
        connection::open(origin, registry, tls).await
    }

    /// One request and the head of its answer, on a connection kept from before if it still works.
    async fn exchange(
        &self,
        origin: &Origin,
        uri: &Uri,
        ask: &Ask<'_>,
        authorization: Option<&Authorization>,
    ) -> Result<Answer> {
        let authorization = authorization.map(|a| a.header.as_str());
        loop {
            let kept = self.idle.borrow_mut().get_mut(origin).and_then(Vec::pop);
            let reused = kept.is_some();
            let mut sender = match kept {
                Some(sender) => sender,
                None => self.connect(origin, ask.registry).await?,
            };
            let request = request(origin, uri, ask, authorization)?;
            let sent = async {
                sender.ready().await?;
                sender.send_request(request).await
            };
            match timeout(SILENCE, sent).await {
                Ok(Ok(response)) => {
                    let (parts, body) = response.into_parts();
                    return Ok(Answer {
                        parts,
                        body,
                        origin: origin.clone(),
                        sender,
                    });
                }
                // The server closed it while it was idle.
                Ok(Err(_)) if reused => {}
                Ok(Err(cause)) => return Err(broken(ask.registry, "waiting for an answer", cause)),
                Err(_) => return Err(silent(ask.registry, "waiting for an answer")),
            }
        }
    }

    /// Keeps a connection whose answer was read to its end.
    fn keep(&self, origin: Origin, sender: Sender) {
        if !sender.is_closed() {
            self.idle
                .borrow_mut()
                .entry(origin)
                .or_default()
                .push(sender);
        }
    }

    /// Answers a 401: the `Authorization` to try again with.
    async fn authorize(
        &self,
        home: &Origin,
        ask: &Ask<'_>,
        answer: Answer,
    ) -> Result<Authorization> {
        let challenges: Vec<_> = answer
            .parts
            .headers
            .get_all(WWW_AUTHENTICATE)
            .iter()
            .filter_map(|value| value.to_str().ok())
            .flat_map(challenge::parse)
            .collect();
        let found = credentials::find(&self.client.settings, ask.registry, ask.repository)?;
        let named = |scheme: &str| challenges.iter().find(|c| c.scheme == scheme);
        if let Some(bearer) = named("bearer") {
            return self.token(home, ask, bearer, found).await;
        }
        match (named("basic"), &found.credentials) {
            (Some(_), Some(credentials)) => Ok(Authorization {
                header: credentials.basic(),
                with_credentials: true,
            }),
            _ => Err(Error::Unauthorized {
                registry: ask.registry.to_owned(),
                repository: ask.repository.to_owned(),
                sent_credentials: false,
                detail: self.detail(answer, ask).await.0,
                unusable: found.unusable,
            }),
        }
    }

    /// Fetches a bearer token (distribution's "token authentication" specification).
    async fn token(
        &self,
        home: &Origin,
        ask: &Ask<'_>,
        challenge: &challenge::Challenge,
        found: credentials::Found,
    ) -> Result<Authorization> {
        let parameter = |name: &str| challenge.parameters.get(name).map(String::as_str);
        let bad_realm = |reason| unfollowed(ask, parameter("realm").unwrap_or_default(), reason);
        let realm: Uri = parameter("realm")
            .and_then(|realm| realm.parse().ok())
            .ok_or_else(|| bad_realm("the token service it names is not a URL"))?;
        let origin = Origin::of_uri(&realm)
            .ok_or_else(|| bad_realm("the token service it names is not a URL"))?;
        if home.https && !origin.https {
            return Err(bad_realm("the token service it names is not https"));
        }
        let mut unusable = found.unusable;
        let mut credentials = found.credentials;
        if credentials.is_some() && !auth::belongs(&home.host, &origin.host) {
            // Unless the user has credentials for that host itself.
            let explicit = self.client.settings.credentials.is_some();
            let theirs = match explicit {
                true => credentials::Found::default(),
                false => {
                    credentials::find(&self.client.settings, &origin.authority(), ask.repository)?
                }
            };
            if theirs.credentials.is_none() {
                return Err(Error::ForeignRealm {
                    registry: ask.registry.to_owned(),
                    realm: origin.host,
                });
            }
            credentials = theirs.credentials;
            unusable = theirs.unusable;
        }
        let scope = parameter("scope").map_or_else(
            || format!("repository:{}:pull", ask.repository),
            str::to_owned,
        );
        let mut url = realm.to_string();
        let service = parameter("service").map(|service| ("service", service));
        for (name, value) in service.into_iter().chain([("scope", scope.as_str())]) {
            url.push(if url.contains('?') { '&' } else { '?' });
            url.push_str(name);
            url.push('=');
            encode_query(value, &mut url);
        }
        let uri: Uri = url
            .parse()
            .map_err(|_| bad_realm("the token service it names is not a URL"))?;
        let authorization = credentials.map(|credentials| Authorization {
            header: credentials.basic(),
            with_credentials: true,
        });
        let with_credentials = authorization.is_some();
        let plea = Ask {
            registry: ask.registry,
            repository: ask.repository,
            path: String::new(),
            accept: "application/json".to_owned(),
            offset: 0,
            what: ask.what.clone(),
        };
        let answer = self
            .exchange(&origin, &uri, &plea, authorization.as_ref())
            .await?;
        if answer.parts.status != StatusCode::OK {
            let mut refusal = self.refusal(home, &plea, answer, with_credentials).await;
            if let Error::Unauthorized { unusable: why, .. } = &mut refusal {
                *why = unusable;
            }
            return Err(refusal);
        }
        let (_, bytes) = self.read_whole(answer, &plea, SMALL).await?;
        let token: Token = serde_json::from_slice(&bytes).unwrap_or_default();
        let token = token
            .token
            .or(token.access_token)
            .filter(|token| !token.is_empty())
            .ok_or_else(|| Error::NotARegistry {
                registry: ask.registry.to_owned(),
                what: format!("the login service {}, which gives no token", origin.host),
            })?;
        Ok(Authorization {
            header: format!("Bearer {token}"),
            with_credentials,
        })
    }

    /// What a status other than 2xx means.
    async fn refusal(
        &self,
        home: &Origin,
        ask: &Ask<'_>,
        answer: Answer,
        sent_credentials: bool,
    ) -> Error {
        let status = answer.parts.status;
        let retry_after = header(&answer.parts, RETRY_AFTER)
            .parse()
            .ok()
            .map(Duration::from_secs);
        let (detail, code) = self.detail(answer, ask).await;
        let registry = ask.registry.to_owned();
        let repository = ask.repository.to_owned();
        match status {
            StatusCode::UNAUTHORIZED => Error::Unauthorized {
                registry,
                repository,
                sent_credentials,
                detail,
                unusable: None,
            },
            StatusCode::FORBIDDEN => Error::Denied {
                registry,
                repository,
                detail,
            },
            StatusCode::NOT_FOUND => match (code.as_deref(), &ask.what) {
                (Some("NAME_UNKNOWN"), _) => Error::NameUnknown {
                    registry,
                    repository,
                },
                (None, _) if !self.is_registry(home, ask).await => Error::NotARegistry {
                    registry,
                    what: "404 to everything".to_owned(),
                },
                (_, What::Manifest(what)) => Error::ManifestUnknown {
                    registry,
                    repository,
                    what: what.clone(),
                },
                (_, What::Blob(digest)) => Error::BlobUnknown {
                    registry,
                    repository,
                    digest: *digest,
                },
            },
            StatusCode::TOO_MANY_REQUESTS => Error::TooManyRequests {
                registry,
                detail,
                retry_after,
            },
            status if status.is_server_error() => Error::Server {
                registry,
                status: status.as_u16(),
                detail,
                retry_after,
            },
            status => Error::Unexpected {
                registry,
                status: status.as_u16(),
                detail,
            },
        }
    }

    /// Whether `/v2/` answers as distribution-spec demands ("Determining support").
    async fn is_registry(&self, home: &Origin, ask: &Ask<'_>) -> bool {
        let Ok(uri) = format!("{home}/v2/").parse() else {
            return false;
        };
        match self.exchange(home, &uri, ask, None).await {
            Ok(answer) => matches!(answer.parts.status.as_u16(), 200 | 401 | 403),
            Err(_) => false,
        }
    }

    /// A refusal's own words and its first error code (distribution-spec, "Error codes").
    async fn detail(&self, answer: Answer, ask: &Ask<'_>) -> (String, Option<String>) {
        let status = answer.parts.status;
        let body = match self.read_whole(answer, ask, SMALL).await {
            Ok((_, bytes)) => bytes,
            Err(_) => Vec::new(),
        };
        let refusals: Refusals = serde_json::from_slice(&body).unwrap_or_default();
        let code = refusals.errors.first().and_then(|error| error.code.clone());
        let words = refusals
            .errors
            .iter()
            .filter_map(|error| error.message.clone().or_else(|| error.code.clone()))
            .chain(refusals.details)
            .next();
        let words = words.filter(|words| !words.is_empty()).unwrap_or_else(|| {
            let reason = status.canonical_reason().unwrap_or("no reason given");
            reason.to_lowercase()
        });
        // They end on a terminal.
        let clean = words
            .chars()
            .filter(|c| !c.is_control())
            .take(300)
            .collect();
        (clean, code)
    }
}

impl fmt::Debug for Session<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Session")
            .field("client", &self.client)
            .finish_non_exhaustive()
    }
}

/// A blob's bytes as they arrive. A dropped connection is opened again where it broke.
pub struct Blob<'s, 'c> {
    session: &'s Session<'c>,
    registry: String,
    repository: String,
    digest: Digest,
    size: u64,
    /// Bytes given to the caller.
    offset: u64,
    /// Bytes of the current body to drop, where the server ignored `Range`.
    skip: u64,
    open: Option<Answer>,
    /// In a row.
    failures: u32,
    connections: u32,
}

impl Blob<'_, '_> {
    /// The next bytes; `None` after exactly the descriptor's size.
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
                    let hopeless = self.failures >= ATTEMPTS || self.connections >= RECONNECTS;
                    if !error.is_transient() || hopeless {
                        return Err(error);
                    }
                    self.session.wait(&error, self.failures).await?;
                }
            }
        }
    }

    async fn attempt(&mut self) -> Result<Option<Bytes>> {
        if self.open.is_none() {
            self.reopen().await?;
        }
        let Some(answer) = &mut self.open else {
            return Ok(None);
        };
        while let Some(mut chunk) = next_chunk(&mut answer.body, &self.registry).await? {
            let dropped = self.skip.min(chunk.len() as u64);
            self.skip -= dropped;
            // At most the chunk's length, so it fits.
            let chunk = chunk.split_off(usize::try_from(dropped).unwrap_or_default());
            if chunk.is_empty() {
                continue;
            }
            self.offset += chunk.len() as u64;
            if self.offset > self.size {
                let what = format!("blob {}", self.digest);
                return Err(too_large(&self.registry, what, self.size));
            }
            return Ok(Some(chunk));
        }
        if let Some(answer) = self.open.take() {
            self.session.keep(answer.origin, answer.sender);
        }
        if self.offset < self.size {
            return Err(Error::Truncated {
                registry: self.registry.clone(),
                what: format!("blob {}", self.digest),
                got: self.offset,
                expected: self.size,
            });
        }
        Ok(None)
    }

    async fn reopen(&mut self) -> Result<()> {
        self.connections += 1;
        let ask = Ask {
            registry: &self.registry,
            repository: &self.repository,
            path: format!("blobs/{}", self.digest),
            accept: "*/*".to_owned(),
            offset: self.offset,
            what: What::Blob(self.digest),
        };
        let answer = self.session.fetch(&ask).await?;
        self.skip = 0;
        if answer.parts.status == StatusCode::PARTIAL_CONTENT {
            // `bytes 100-199/200`
            let range = header(&answer.parts, CONTENT_RANGE);
            let start = range
                .strip_prefix("bytes ")
                .and_then(|range| range.split('-').next()?.trim().parse::<u64>().ok());
            if start != Some(self.offset) {
                return Err(Error::Unexpected {
                    registry: self.registry.clone(),
                    status: 206,
                    detail: format!(
                        "it answers with the range {range:?} of blob {}",
                        self.digest
                    ),
                });
            }
        } else {
            self.skip = self.offset;
        }
        self.open = Some(answer);
        Ok(())
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

#[derive(Deserialize, Default)]
#[serde(default)]
struct Token {
    token: Option<String>,
    access_token: Option<String>,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct Refusals {
    errors: Vec<Refused>,
    /// Docker Hub's token service.
    details: Option<String>,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct Refused {
    code: Option<String>,
    message: Option<String>,
}

fn request(
    origin: &Origin,
    uri: &Uri,
    ask: &Ask<'_>,
    authorization: Option<&str>,
) -> Result<Request<Empty<Bytes>>> {
    let path = uri.path_and_query().map_or("/", |path| path.as_str());
    let mut builder = Request::get(path)
        .header(HOST, origin.authority())
        .header(USER_AGENT, AGENT)
        .header(ACCEPT, &ask.accept);
    if ask.offset > 0 {
        builder = builder.header(RANGE, format!("bytes={}-", ask.offset));
    }
    if let Some(authorization) = authorization {
        builder = builder.header(AUTHORIZATION, authorization);
    }
    // What a registry put into a token or location may not fit into a request.
    builder
        .body(Empty::new())
        .map_err(|_| unfollowed(ask, uri, "it does not make a valid request"))
}

/// The next data of a body, trailers left out.
async fn next_chunk(body: &mut Incoming, registry: &str) -> Result<Option<Bytes>> {
    loop {
        match timeout(SILENCE, body.frame()).await {
            Ok(Some(Ok(frame))) => match frame.into_data() {
                Ok(data) if !data.is_empty() => return Ok(Some(data)),
                _ => {}
            },
            Ok(Some(Err(cause))) => return Err(broken(registry, "sending data", cause)),
            Ok(None) => return Ok(None),
            Err(_) => return Err(silent(registry, "sending data")),
        }
    }
}

/// Where a `Location` leads, seen from `base`: an absolute URL, or a path on the same host.
fn follow(base: &Uri, location: &str) -> Option<Uri> {
    if let Some(path) = location.strip_prefix('/') {
        let scheme = base.scheme_str()?;
        return match path.strip_prefix('/') {
            Some(rest) => format!("{scheme}://{rest}").parse().ok(),
            None => format!("{scheme}://{}/{path}", base.authority()?)
                .parse()
                .ok(),
        };
    }
    location
        .parse()
        .ok()
        .filter(|uri: &Uri| uri.scheme().is_some() && uri.host().is_some())
}

/// Percent-encodes a query value (RFC 3986; `:` and `/` may stay).
fn encode_query(value: &str, out: &mut String) {
    use fmt::Write as _;
    for byte in value.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~:/,".contains(&byte) {
            out.push(char::from(byte));
        } else {
            // Writing to a String cannot fail.
            write!(out, "%{byte:02X}").unwrap_or_default();
        }
    }
}

fn header(parts: &Parts, name: impl http::header::AsHeaderName) -> String {
    parts
        .headers
        .get(name)
        .and_then(|value| value.to_str().ok())
        .unwrap_or_default()
        .to_owned()
}

fn digest_of(bytes: &[u8]) -> Digest {
    let mut raw = [0u8; 32];
    let hash = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, bytes);
    for (to, from) in raw.iter_mut().zip(hash.as_ref()) {
        *to = *from;
    }
    Digest::from_bytes(raw)
}

fn check_digest(registry: &str, what: String, expected: Digest, bytes: &[u8]) -> Result<Digest> {
    let got = digest_of(bytes);
    if got == expected {
        return Ok(got);
    }
    Err(Error::Mismatch {
        registry: registry.to_owned(),
        what,
        expected,
        got,
    })
}

fn broken(registry: &str, doing: &'static str, cause: hyper::Error) -> Error {
    let registry = registry.to_owned();
    if cause.is_parse() {
        return Error::NotARegistry {
            registry,
            what: "bytes that are not HTTP".to_owned(),
        };
    }
    Error::Broken {
        registry,
        doing,
        cause,
    }
}

fn silent(registry: &str, doing: &'static str) -> Error {
    Error::Timeout {
        registry: registry.to_owned(),
        doing,
        after: SILENCE,
    }
}

fn too_large(registry: &str, what: String, limit: u64) -> Error {
    Error::TooLarge {
        registry: registry.to_owned(),
        what,
        limit,
    }
}

fn unfollowed(ask: &Ask<'_>, location: impl fmt::Display, reason: &'static str) -> Error {
    Error::Redirect {
        registry: ask.registry.to_owned(),
        location: location
            .to_string()
            .chars()
            .filter(|c| !c.is_control())
            .take(200)
            .collect(),
        reason,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn locations_are_followed_from_where_they_are_said() {
        let base: Uri = "https://reg.io:5000/v2/a/blobs/x".parse().unwrap();
        for (location, expected) in [
            ("/b?c=1", Some("https://reg.io:5000/b?c=1")),
            ("//cdn.io/b", Some("https://cdn.io/b")),
            ("http://cdn.io/b", Some("http://cdn.io/b")),
            ("b", None),
            ("", None),
            ("mailto:x", None),
        ] {
            let followed = follow(&base, location).map(|uri| uri.to_string());
            assert_eq!(followed.as_deref(), expected, "{location}");
        }
    }

    #[test]
    fn query_values_are_encoded() {
        let mut out = String::new();
        encode_query("repository:a/b:pull & x=\"é\"", &mut out);
        assert_eq!(out, "repository:a/b:pull%20%26%20x%3D%22%C3%A9%22");
    }
}
