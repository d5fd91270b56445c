//! The registry client: distribution-spec 1.1 over HTTP, both sides of it.
//!
//! Owns how a registry is found ([`dns`]: own resolver, the binaries are static; `registries.conf`,
//! `hosts.toml`, mirrors, proxies), reached (TLS, connections), logged in to ([`credentials`],
//! challenges, tokens), asked ([`Session`]) and, when it refuses, explained ([`Error`]).
//!
//! ```text
//! Client ── settings, credentials, tokens, certificates; one per operation, shared by threads
//!   └─ Session ── a current-thread runtime and its connections; one per thread; calls block
//!        ├─ manifest() head_manifest() put_manifest() delete_manifest()   ≤ 4 MiB, digest checked
//!        ├─ tags() referrers() repositories()                            lists, page by page
//!        ├─ document()                                 a config or other small blob, digest checked
//!        ├─ blob()      a stream that survives dropped connections (Range); the caller hashes it
//!        ├─ has_blob() mount_blob() push_blob()        writing; taken up again where it broke
//!        └─ login()
//!
//! reference ─ endpoint ─ mirrors of registries.conf, hosts of hosts.toml, the registry itself
//!   each: ask ─ session (retries, redirects, 401 → token) ─ connection (proxy, TLS, HTTP/1.1)
//! ```
//!
//! Invariants:
//! - Credentials go to the host they were configured for and to a token service that belongs to it,
//!   never anywhere else; `Authorization` and the headers of `hosts.toml` are never sent after a
//!   redirect to another origin, and https never redirects to http.
//! - Plain http is spoken to loopback addresses, and elsewhere only where the user or a
//!   configuration file says so. A certificate that does not verify is never a reason to try http.
//! - What is read whole is capped; what is streamed is capped by its descriptor's size.
//!
//! It never touches the image store and never decides what an image is.

mod ask;
mod auth;
mod blob;
mod body;
mod challenge;
mod client;
mod connection;
pub mod credentials;
pub mod dns;
mod endpoint;
mod error;
pub mod foreign;
mod hosts;
mod location;
mod manifest;
mod proxy;
mod refusal;
mod registries;
mod session;
mod tls;
mod token;
mod upload;

pub use blob::Blob;
pub use client::Client;
pub use credentials::{Credentials, Secret};
pub use error::{Error, Result};
pub use manifest::Fetched;
pub use proxy::Proxies;
pub use session::Session;
pub use upload::{Open, Uploaded};

use std::path::PathBuf;

use knarr_spec::Reference;

/// How registries are reached.
#[derive(Debug, Clone, Default)]
pub struct Settings {
    /// `--tls-verify=false`: plain http and any certificate are accepted. Loopback registries
    /// may speak plain http anyway.
    pub insecure: bool,
    /// `--cert-dir`: a folder with `*.crt` authorities and a client's `*.cert` and `*.key`, beside
    /// the system's and `certs.d`.
    pub cert_dir: Option<PathBuf>,
    /// `--creds user:password`, for the registry that a reference names and none of its mirrors.
    pub credentials: Option<Credentials>,
    /// `--authfile`; else `REGISTRY_AUTH_FILE`, `$XDG_RUNTIME_DIR/containers/auth.json`,
    /// `~/.config/containers/auth.json`, `~/.docker/config.json`.
    pub auth_file: Option<PathBuf>,
    /// What takes the place of `/etc`, where `containers/registries.conf`, `docker/daemon.json` and
    /// the folders `certs.d` are.
    pub etc: Option<PathBuf>,
    /// Proxies; else those of the environment.
    pub proxies: Option<Proxies>,
}

impl Settings {
    fn etc(&self) -> PathBuf {
        self.etc.clone().unwrap_or_else(|| PathBuf::from("/etc"))
    }

    /// What a name as the user typed it may mean, in the order to try: the aliases and
    /// `unqualified-search-registries` of `registries.conf`; without those, what Docker says.
    ///
    /// # Errors
    /// [`Error::Configuration`]; [`Error::Name`] for what is no name.
    pub fn qualify(&self, typed: &str) -> Result<Vec<Reference>> {
        let registries = registries::Registries::load(self)?;
        registries.qualify(typed).map_err(Error::Name)
    }
}
