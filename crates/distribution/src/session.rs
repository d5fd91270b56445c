//! One thread's conversation with registries: connections, retries, redirects, other servers.

use std::cell::RefCell;
use std::collections::HashMap;
use std::fmt;
use std::time::Duration;

use bytes::Bytes;
use http::header::{
    AUTHORIZATION, HOST, LOCATION, PROXY_AUTHORIZATION, USER_AGENT, WWW_AUTHENTICATE,
};
use http::request::Builder;
use http::response::Parts;
use http::{Method, Request, StatusCode, Uri};
use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use tokio::runtime::Runtime;
use tokio::time::timeout;

use crate::ask::{Access, Ask, Target};
use crate::body::Body;
use crate::challenge::{self, Challenge};
use crate::client::{Authorization, Line};
use crate::connection::{self, Origin, Sender};
use crate::endpoint::{self, Endpoint};
use crate::hosts::Capability;
use crate::location::{follow, is_followed, uri};
use crate::{Client, Error, Result};

/// For the head of an answer, and between two pieces of a body.
pub(crate) const SILENCE: Duration = Duration::from_secs(60);
/// Tries of one request, or in a row without a byte of progress in a blob.
pub(crate) const ATTEMPTS: u32 = 5;
/// The longest `Retry-After` that is waited for.
const PATIENCE: Duration = Duration::from_secs(60);
const REDIRECTS: usize = 10;
/// Error bodies and token answers, in bytes.
pub(crate) const SMALL: u64 = 256 << 10;
const AGENT: &str = concat!("knarr/", env!("CARGO_PKG_VERSION"));

/// Connections of the thread that made it. Calls block; nothing runs between them.
pub struct Session<'c> {
    pub(crate) client: &'c Client<'c>,
    pub(crate) runtime: Runtime,
    idle: RefCell<HashMap<Line, Vec<Sender>>>,
}

/// The head of an answer, and its body still on the wire.
pub(crate) struct Answer {
    pub(crate) parts: Parts,
    pub(crate) body: Incoming,
    pub(crate) line: Line,
    /// Where it came from, after redirects.
    pub(crate) uri: Uri,
    pub(crate) sender: Sender,
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

    /// The servers to ask about a reference.
    pub(crate) fn endpoints(
        &self,
        reference: &knarr_spec::Reference,
        capability: Capability,
    ) -> Result<Vec<Endpoint>> {
        endpoint::of(self.client, reference, capability)
    }

    /// Asks one server after the other until one answers with 2xx.
    pub(crate) async fn fetch(&self, endpoints: &[Endpoint], ask: &Ask) -> Result<(Answer, usize)> {
        let mut at = 0;
        loop {
            let Some(endpoint) = endpoints.get(at) else {
                return Err(Error::NotARegistry {
                    registry: String::new(),
                    what: "no server to ask".to_owned(),
                });
            };
            let is_last = at + 1 >= endpoints.len();
            match self
                .fetch_from(endpoint, ask, if is_last { ATTEMPTS } else { 2 })
                .await
            {
                Ok(answer) => return Ok((answer, at)),
                Err(error) if is_last || error.is_local() => return Err(error),
                Err(error) => self.next(&error, endpoints, at),
            }
            at += 1;
        }
    }

    /// Tells that another server is asked.
    pub(crate) fn next(&self, error: &Error, endpoints: &[Endpoint], failed: usize) {
        // That a mirror lacks something is what mirrors are like.
        if let Some(next) = endpoints.get(failed + 1)
            && !error.is_absence()
        {
            self.client
                .retrying(&format!("{error}; trying {}", next.authority));
        }
    }

    /// As [`fetch`](Self::fetch), and the whole body, of at most `limit` bytes; tried again from
    /// the start if it breaks.
    pub(crate) async fn fetch_whole(
        &self,
        endpoints: &[Endpoint],
        ask: &Ask,
        limit: u64,
    ) -> Result<(Parts, Bytes, usize)> {
        let mut failures = 0;
        loop {
            let (answer, at) = self.fetch(endpoints, ask).await?;
            let registry = endpoints.get(at).map_or("", |e| e.registry.as_str());
            match self.read_whole(answer, registry, &ask.what, limit).await {
                Err(error) if error.is_transient() && failures < ATTEMPTS && ask.is_safe() => {
                    failures += 1;
                    self.wait(&error, failures).await;
                }
                done => return done.map(|(parts, bytes)| (parts, bytes.into(), at)),
            }
        }
    }

    pub(crate) async fn read_whole(
        &self,
        answer: Answer,
        registry: &str,
        what: &impl fmt::Display,
        limit: u64,
    ) -> Result<(Parts, Vec<u8>)> {
        let Answer {
            parts,
            mut body,
            line,
            sender,
            ..
        } = answer;
        let mut bytes = Vec::new();
        while let Some(chunk) = next_chunk(&mut body, registry).await? {
            if (bytes.len() + chunk.len()) as u64 > limit {
                return Err(too_large(registry, what.to_string(), limit));
            }
            bytes.extend_from_slice(&chunk);
        }
        self.keep(line, sender);
        Ok((parts, bytes))
    }

    /// Sends a request to one server until it is answered with 2xx, as often as makes sense.
    pub(crate) async fn fetch_from(
        &self,
        endpoint: &Endpoint,
        ask: &Ask,
        attempts: u32,
    ) -> Result<Answer> {
        let mut failures = 0;
        loop {
            match self.fetch_once(endpoint, ask).await {
                Err(error) if error.is_transient() && failures + 1 < attempts => {
                    failures += 1;
                    self.wait(&error, failures).await;
                }
                done => return done,
            }
        }
    }

    /// Waits before another try: as long as the registry asks, else 0.2 s, doubled each time, half
    /// of it random so that many clients do not return at once.
    pub(crate) async fn wait(&self, error: &Error, failures: u32) {
        let mut random = [0u8; 1];
        // Without randomness it is only less well spread.
        rustix::rand::getrandom(&mut random, rustix::rand::GetRandomFlags::empty()).ok();
        let backoff = Duration::from_millis(100) * 2u32.pow(failures.min(6));
        let jittered = backoff / 2 + backoff * u32::from(random[0]) / 512;
        let wait = error.retry_after().unwrap_or(jittered).min(PATIENCE);
        self.client.retrying(&format!(
            "{error}; trying again in {:.1} s",
            wait.as_secs_f32()
        ));
        tokio::time::sleep(wait).await;
    }

    async fn fetch_once(&self, endpoint: &Endpoint, ask: &Ask) -> Result<Answer> {
        let home = self.home(endpoint).await?;
        let registry = endpoint.registry.as_str();
        let mut uri = uri(&home, endpoint, ask)?;
        let scopes = ask.access.scopes(&endpoint.repository);
        let mut authorization = self.client.authorization(&home, registry, &scopes);
        let mut answered = false;
        for _ in 0..REDIRECTS {
            let origin =
                Origin::of_uri(&uri).ok_or_else(|| unfollowed(registry, &uri, "it is not http"))?;
            let at_home = origin == home;
            // What belongs to the registry is not shown to where it sends us.
            let secret = authorization.as_ref().filter(|_| at_home);
            let answer = self
                .exchange(endpoint, &origin, &uri, ask, secret, at_home)
                .await?;
            match answer.parts.status {
                status if status.is_success() => return Ok(answer),
                StatusCode::UNAUTHORIZED if at_home && !answered => {
                    answered = true;
                    let fresh = self
                        .authorize(endpoint, &home, ask, &scopes, answer)
                        .await?;
                    self.client
                        .learn_authorization(&home, registry, &scopes, &fresh);
                    authorization = Some(fresh);
                }
                status if is_followed(status, &ask.method) => {
                    let location = header(&answer.parts, LOCATION);
                    uri = follow(&uri, &location)
                        .ok_or_else(|| unfollowed(registry, &location, "it is not a URL"))?;
                    if origin.https && uri.scheme_str() != Some("https") {
                        return Err(unfollowed(registry, &uri, "it leads from https to http"));
                    }
                }
                _ => {
                    let sent = secret.is_some_and(|a| a.with_credentials);
                    return Err(self.refusal(endpoint, &home, ask, answer, sent).await);
                }
            }
        }
        Err(unfollowed(registry, &uri, "there were too many redirects"))
    }

    /// Where the server is: finds out once whether it speaks https or, where allowed, http.
    pub(crate) async fn home(&self, endpoint: &Endpoint) -> Result<Origin> {
        let registry = endpoint.registry.as_str();
        let origin = |https| {
            Origin::of_authority(&endpoint.authority, https).ok_or_else(|| Error::NotARegistry {
                registry: registry.to_owned(),
                what: "a name that is no host".to_owned(),
            })
        };
        if let Some(https) = endpoint.https {
            return origin(https);
        }
        if let Some(origin) = self.client.origin(endpoint) {
            return Ok(origin);
        }
        let secure = origin(true)?;
        let plain_allowed = endpoint.insecure || secure.is_loopback();
        let line = self.client.line(endpoint, &secure, true);
        let found = match self.connect(endpoint, &line).await {
            Ok(sender) => {
                self.keep(line, sender);
                secure
            }
            Err(error) if plain_allowed && connection::is_not_tls(&error) => {
                // "host" alone means port 443 with https but 80 with http.
                origin(false)?
            }
            Err(Error::Connect { .. }) if plain_allowed && !endpoint.authority.contains(':') => {
                origin(false)?
            }
            Err(error) => return Err(error),
        };
        self.client.learn_origin(endpoint, &found);
        Ok(found)
    }

    async fn connect(&self, endpoint: &Endpoint, line: &Line) -> Result<Sender> {
        let tls = line
            .trusted
            .as_ref()
            .map(|trusted| self.client.tls(trusted));
        let proxies = self.client.proxies()?;
        let proxy = proxies.for_origin(&line.origin);
        connection::open(&line.origin, &endpoint.registry, tls.transpose()?, proxy).await
    }

    /// One request and the head of its answer, on a connection kept from before if it still works.
    pub(crate) async fn exchange(
        &self,
        endpoint: &Endpoint,
        origin: &Origin,
        uri: &Uri,
        ask: &Ask,
        authorization: Option<&Authorization>,
        at_home: bool,
    ) -> Result<Answer> {
        let registry = endpoint.registry.as_str();
        let line = self.client.line(endpoint, origin, at_home);
        loop {
            let kept = self.idle.borrow_mut().get_mut(&line).and_then(Vec::pop);
            let reused = kept.is_some();
            let mut sender = match kept {
                Some(sender) => sender,
                None => self.connect(endpoint, &line).await?,
            };
            let head = self.head(endpoint, origin, uri, ask, authorization, at_home)?;
            let request = with_body(head, Body::Whole(ask.body.clone()), endpoint, uri)?;
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
                        line,
                        uri: uri.clone(),
                        sender,
                    });
                }
                // The server closed it while it was idle. What is written must not be written twice,
                // though, where it may have been received.
                Ok(Err(cause)) if reused && (ask.is_safe() || cause.is_canceled()) => {}
                Ok(Err(cause)) => return Err(broken(registry, "waiting for an answer", cause)),
                Err(_) => return Err(silent(registry, "waiting for an answer")),
            }
        }
    }

    /// A connection that nothing was sent on yet, and the request of `ask` with another body: for
    /// bodies that can be sent only once.
    pub(crate) async fn prepare(
        &self,
        endpoint: &Endpoint,
        uri: &Uri,
        ask: &Ask,
        body: Body,
    ) -> Result<(Sender, Request<Body>, Line)> {
        let home = self.home(endpoint).await?;
        let registry = endpoint.registry.as_str();
        let origin =
            Origin::of_uri(uri).ok_or_else(|| unfollowed(registry, uri, "it is not http"))?;
        let at_home = origin == home;
        if home.https && !origin.https {
            return Err(unfollowed(registry, uri, "it leads from https to http"));
        }
        let scopes = ask.access.scopes(&endpoint.repository);
        let authorization = self
            .client
            .authorization(&home, registry, &scopes)
            .filter(|_| at_home);
        let line = self.client.line(endpoint, &origin, at_home);
        let sender = self.connect(endpoint, &line).await?;
        let authorization = authorization.as_ref();
        let head = self.head(endpoint, &origin, uri, ask, authorization, at_home)?;
        Ok((sender, with_body(head, body, endpoint, uri)?, line))
    }

    /// A request without its body.
    fn head(
        &self,
        endpoint: &Endpoint,
        origin: &Origin,
        uri: &Uri,
        ask: &Ask,
        authorization: Option<&Authorization>,
        at_home: bool,
    ) -> Result<Builder> {
        let proxies = self.client.proxies()?;
        let proxy = proxies.for_origin(origin).filter(|_| !origin.https);
        let path = uri.path_and_query().map_or("/", |path| path.as_str());
        let target = match proxy {
            Some(_) => format!("{origin}{path}"),
            None => path.to_owned(),
        };
        let mut builder = Request::builder()
            .method(ask.method.clone())
            .uri(target)
            .header(HOST, origin.authority())
            .header(USER_AGENT, AGENT);
        for (name, value) in &ask.headers {
            builder = builder.header(name, value);
        }
        // Those of `hosts.toml` may hold secrets, which are for that server only.
        for (name, value) in endpoint.headers.iter().filter(|_| at_home) {
            builder = builder.header(name, value);
        }
        if let Some(authorization) = authorization {
            builder = builder.header(AUTHORIZATION, &authorization.header);
        }
        if let Some(secret) = proxy.and_then(|proxy| proxy.authorization.as_ref()) {
            builder = builder.header(PROXY_AUTHORIZATION, secret);
        }
        Ok(builder)
    }

    /// Keeps a connection whose answer was read to its end.
    pub(crate) fn keep(&self, line: Line, sender: Sender) {
        if !sender.is_closed() {
            self.idle.borrow_mut().entry(line).or_default().push(sender);
        }
    }

    /// Answers a 401: the `Authorization` to try again with.
    pub(crate) async fn authorize(
        &self,
        endpoint: &Endpoint,
        home: &Origin,
        ask: &Ask,
        scopes: &[String],
        answer: Answer,
    ) -> Result<Authorization> {
        let challenges = challenges(&answer.parts);
        let detail = self.detail(answer, &endpoint.registry, &ask.what).await.0;
        self.answer_challenge(endpoint, home, scopes, &challenges, detail)
            .await
    }

    /// Whether `/v2/` answers as distribution-spec demands ("Determining support").
    pub(crate) async fn is_registry(&self, endpoint: &Endpoint, home: &Origin) -> bool {
        let ask = Ask::new(
            Method::GET,
            Target::Root(String::new()),
            Access::Identity,
            crate::ask::What::Login,
        );
        let Ok(uri) = uri(home, endpoint, &ask) else {
            return false;
        };
        match self.exchange(endpoint, home, &uri, &ask, None, true).await {
            Ok(answer) => matches!(answer.parts.status.as_u16(), 200 | 401 | 403),
            Err(_) => false,
        }
    }
}

impl fmt::Debug for Session<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Session")
            .field("client", &self.client)
            .finish_non_exhaustive()
    }
}

fn with_body(head: Builder, body: Body, endpoint: &Endpoint, uri: &Uri) -> Result<Request<Body>> {
    // What a registry put into a token or location may not fit into a request.
    head.body(body)
        .map_err(|_| unfollowed(&endpoint.registry, uri, "it does not make a valid request"))
}

/// The URL of a request at a server.
/// What a 401 asks for.
pub(crate) fn challenges(parts: &Parts) -> Vec<Challenge> {
    parts
        .headers
        .get_all(WWW_AUTHENTICATE)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(challenge::parse)
        .collect()
}

/// The next data of a body, trailers left out.
pub(crate) async fn next_chunk(body: &mut Incoming, registry: &str) -> Result<Option<Bytes>> {
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

pub(crate) fn header(parts: &Parts, name: impl http::header::AsHeaderName) -> String {
    parts
        .headers
        .get(name)
        .and_then(|value| value.to_str().ok())
        .unwrap_or_default()
        .to_owned()
}

pub(crate) fn broken(registry: &str, doing: &'static str, cause: hyper::Error) -> Error {
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

pub(crate) fn silent(registry: &str, doing: &'static str) -> Error {
    Error::Timeout {
        registry: registry.to_owned(),
        doing,
        after: SILENCE,
    }
}

pub(crate) fn too_large(registry: &str, what: String, limit: u64) -> Error {
    Error::TooLarge {
        registry: registry.to_owned(),
        what,
        limit,
    }
}

pub(crate) fn unfollowed(
    registry: &str,
    location: impl fmt::Display,
    reason: &'static str,
) -> Error {
    Error::Redirect {
        registry: registry.to_owned(),
        location: location
            .to_string()
            .chars()
            .filter(|c| !c.is_control())
            .take(200)
            .collect(),
        reason,
    }
}
