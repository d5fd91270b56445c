//! A registry for tests: real HTTP over loopback, which misbehaves as it is told.

use std::collections::BTreeMap;
use std::io::{BufRead as _, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;

use knarr_cas::Hasher;
use rustls::{ServerConfig, ServerConnection, StreamOwned};

use super::Handmade;

/// A request as it came.
#[derive(Debug, Clone)]
pub(crate) struct Seen {
    pub(crate) method: String,
    pub(crate) path: String,
    pub(crate) headers: BTreeMap<String, String>,
    pub(crate) body: Vec<u8>,
}

impl Seen {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(String::as_str)
    }

    pub(crate) fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    pub(crate) fn authorization(&self) -> Option<&str> {
        self.header("authorization")
    }
}

/// What is sent back.
#[derive(Debug, Clone, Default)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) headers: Vec<(String, String)>,
    pub(crate) body: Vec<u8>,
    /// Drop the connection after so many bytes of the body.
    pub(crate) cut: Option<usize>,
    /// Instead of everything else.
    pub(crate) raw: Option<Vec<u8>>,
}

impl Answer {
    pub(crate) fn new(status: u16, body: impl Into<Vec<u8>>) -> Self {
        Self {
            status,
            body: body.into(),
            ..Self::default()
        }
    }

    pub(crate) fn error(status: u16, code: &str) -> Self {
        let body = format!(r#"{{"errors":[{{"code":"{code}","message":"said so"}}]}}"#);
        Self::new(status, body).with("content-type", "application/json")
    }

    pub(crate) fn with(mut self, name: &str, value: impl Into<String>) -> Self {
        self.headers.push((name.to_owned(), value.into()));
        self
    }
}

/// What a registry has: by path.
#[derive(Debug, Clone, Default)]
pub(crate) struct Content(BTreeMap<String, (String, Vec<u8>)>);

impl Content {
    pub(crate) fn of(repository: &str, tag: &str, image: &Handmade) -> Self {
        let mut content = Self::default();
        content.put_image(repository, image);
        content.put_tag(repository, tag, &image.manifest);
        content
    }

    pub(crate) fn put_image(&mut self, repository: &str, image: &Handmade) {
        for bytes in image.blobs.iter().chain([&image.config]) {
            self.put_blob(repository, bytes);
        }
        self.put_manifest(repository, &image.manifest);
    }

    pub(crate) fn put_blob(&mut self, repository: &str, bytes: &[u8]) {
        let path = format!("/v2/{repository}/blobs/{}", Hasher::digest(bytes));
        self.0.insert(
            path,
            ("application/octet-stream".to_owned(), bytes.to_vec()),
        );
    }

    pub(crate) fn put_manifest(&mut self, repository: &str, bytes: &[u8]) {
        let digest = Hasher::digest(bytes).to_string();
        self.put_tag(repository, &digest, bytes);
    }

    pub(crate) fn put_tag(&mut self, repository: &str, tag: &str, bytes: &[u8]) {
        let parsed: serde_json::Value = serde_json::from_slice(bytes).unwrap_or_default();
        let kind = parsed["mediaType"]
            .as_str()
            .unwrap_or("text/plain")
            .to_owned();
        self.0.insert(
            format!("/v2/{repository}/manifests/{tag}"),
            (kind, bytes.to_vec()),
        );
    }

    /// As a good registry answers.
    pub(crate) fn answer(&self, seen: &Seen) -> Answer {
        if seen.path == "/v2/" {
            return Answer::new(200, "{}");
        }
        let Some((kind, bytes)) = self.0.get(&seen.path) else {
            let code = if seen.path.contains("/blobs/") {
                "BLOB_UNKNOWN"
            } else {
                "MANIFEST_UNKNOWN"
            };
            return Answer::error(404, code);
        };
        let range = seen.header("range").and_then(|r| {
            let (start, last) = r.strip_prefix("bytes=")?.split_once('-')?;
            let last = last.parse::<usize>().unwrap_or(bytes.len() - 1);
            Some((start.parse::<usize>().ok()?, last.min(bytes.len() - 1)))
        });
        let answer = match range {
            Some((start, last)) => Answer::new(206, bytes[start..=last].to_vec()).with(
                "content-range",
                format!("bytes {start}-{last}/{}", bytes.len()),
            ),
            None => Answer::new(200, bytes.clone()),
        };
        answer
            .with("content-type", kind.clone())
            .with("docker-content-digest", Hasher::digest(bytes).to_string())
    }
}

type Handler = dyn Fn(&Seen) -> Answer + Send + Sync;

/// A running server; stops when dropped.
pub(crate) struct Registry {
    pub(crate) address: SocketAddr,
    seen: Arc<Mutex<Vec<Seen>>>,
    stop: Arc<AtomicBool>,
}

impl Registry {
    pub(crate) fn start(handler: impl Fn(&Seen) -> Answer + Send + Sync + 'static) -> Self {
        Self::serve(None, Arc::new(handler))
    }

    pub(crate) fn start_tls(
        config: ServerConfig,
        handler: impl Fn(&Seen) -> Answer + Send + Sync + 'static,
    ) -> Self {
        Self::serve(Some(Arc::new(config)), Arc::new(handler))
    }

    fn serve(tls: Option<Arc<ServerConfig>>, handler: Arc<Handler>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let registry = Self {
            address: listener.local_addr().unwrap(),
            seen: Arc::default(),
            stop: Arc::default(),
        };
        let (seen, stop) = (Arc::clone(&registry.seen), Arc::clone(&registry.stop));
        thread::spawn(move || {
            for stream in listener.incoming() {
                if stop.load(Ordering::Relaxed) {
                    return;
                }
                let (seen, handler, tls) = (Arc::clone(&seen), Arc::clone(&handler), tls.clone());
                thread::spawn(move || {
                    let stream = stream.unwrap();
                    match tls {
                        None => converse(stream, &handler, &seen),
                        Some(config) => {
                            let connection = ServerConnection::new(config).unwrap();
                            converse(StreamOwned::new(connection, stream), &handler, &seen);
                        }
                    }
                });
            }
        });
        registry
    }

    /// `127.0.0.1:port/repository:tag` as a reference.
    pub(crate) fn name(&self, rest: &str) -> knarr_spec::Reference {
        format!("{}/{rest}", self.address).parse().unwrap()
    }

    pub(crate) fn seen(&self) -> Vec<Seen> {
        self.seen.lock().unwrap().clone()
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        // Wakes the listener.
        TcpStream::connect(self.address).ok();
    }
}

/// The body of a request, by its length or in chunks; `None` where it broke off.
fn body(reader: &mut impl std::io::BufRead, headers: &BTreeMap<String, String>) -> Option<Vec<u8>> {
    let mut body = Vec::new();
    if headers.get("transfer-encoding").map(String::as_str) != Some("chunked") {
        let length = headers.get("content-length").and_then(|n| n.parse().ok());
        body.resize(length.unwrap_or(0), 0);
        return reader.read_exact(&mut body).ok().map(|()| body);
    }
    loop {
        let mut line = String::new();
        reader.read_line(&mut line).ok()?;
        let size = usize::from_str_radix(line.trim(), 16).ok()?;
        let mut chunk = vec![0; size + 2];
        reader.read_exact(&mut chunk).ok()?;
        if size == 0 {
            return Some(body);
        }
        body.extend_from_slice(&chunk[..size]);
    }
}

/// Requests and answers until something ends it.
fn converse<S: Read + Write>(stream: S, handler: &Arc<Handler>, log: &Mutex<Vec<Seen>>) {
    let mut reader = BufReader::new(stream);
    loop {
        // What is not HTTP (a TLS handshake) is told so, as Go's server does.
        match reader.fill_buf() {
            Ok([b'A'..=b'Z', ..]) => {}
            Ok([]) | Err(_) => return,
            Ok(_) => {
                reader
                    .get_mut()
                    .write_all(b"HTTP/1.0 400 Bad Request\r\n\r\n")
                    .ok();
                return;
            }
        }
        let mut line = String::new();
        if reader.read_line(&mut line).unwrap_or(0) == 0 {
            return;
        }
        let mut words = line.split(' ').map(str::to_owned);
        let method = words.next().unwrap_or_default();
        let path = words.next().unwrap_or_default();
        let mut headers = BTreeMap::new();
        loop {
            let mut line = String::new();
            if reader.read_line(&mut line).unwrap_or(0) == 0 {
                return;
            }
            match line.trim_end().split_once(": ") {
                Some((name, value)) => headers.insert(name.to_ascii_lowercase(), value.to_owned()),
                None => break,
            };
        }
        let Some(body) = body(&mut reader, &headers) else {
            return;
        };
        let is_head = method == "HEAD";
        let seen = Seen {
            method,
            path,
            headers,
            body,
        };
        log.lock().unwrap().push(seen.clone());
        let answer = handler(&seen);
        let writer = reader.get_mut();
        if let Some(raw) = answer.raw {
            writer.write_all(&raw).ok();
            return;
        }
        let mut head = format!("HTTP/1.1 {} X\r\n", answer.status);
        let sized = answer
            .headers
            .iter()
            .any(|(name, _)| name.eq_ignore_ascii_case("content-length"));
        if !sized {
            head += &format!("content-length: {}\r\n", answer.body.len());
        }
        for (name, value) in &answer.headers {
            head += &format!("{name}: {value}\r\n");
        }
        head += "\r\n";
        let body = match answer.cut {
            _ if is_head => &[],
            Some(cut) => &answer.body[..cut.min(answer.body.len())],
            None => &answer.body[..],
        };
        let sent = writer
            .write_all(head.as_bytes())
            .and_then(|()| writer.write_all(body))
            .and_then(|()| writer.flush());
        if sent.is_err() || answer.cut.is_some() {
            return;
        }
    }
}
