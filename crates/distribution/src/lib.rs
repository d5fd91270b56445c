//! The registry client: distribution-spec 1.1 over HTTP, reading side.
//!
//! Owns how a registry is found ([`dns`]: own resolver, the binaries are static), reached ([`tls`],
//! connections), logged in to (`auth.json`, challenges, tokens), asked ([`Session`]) and, when it
//! refuses, explained ([`Error`]).
//!
//! ```text
//! Client ── settings, credentials, tokens, certificates; one per operation, shared by threads
//!   └─ Session ── a current-thread runtime and its connections; one per thread; calls block
//!        ├─ manifest()  bytes ≤ 4 MiB, digest checked
//!        ├─ document()  a config or other small blob, digest checked
//!        └─ blob()      a stream that survives dropped connections (Range); the caller hashes it
//! ```
//!
//! Invariants:
//! - Credentials go to the host they were configured for and to a token service that belongs to it,
//!   never anywhere else; `Authorization` is never sent after a redirect to another origin, and
//!   https never redirects to http.
//! - Plain http is spoken to loopback addresses, and elsewhere only with [`Settings::insecure`].
//!   A certificate that does not verify is an error, never a reason to try http.
//! - What is read whole is capped; what is streamed is capped by its descriptor's size.
//!
//! It never touches the image store and never decides what an image is.

mod auth;
mod challenge;
mod client;
mod connection;
mod credentials;
pub mod dns;
mod error;
mod session;
mod tls;

pub use client::Client;
pub use credentials::Credentials;
pub use error::{Error, Result};
pub use session::{Blob, Fetched, Session};

use std::path::PathBuf;

/// How registries are reached.
#[derive(Debug, Clone, Default)]
pub struct Settings {
    /// `--tls-verify=false`: plain http and any certificate are accepted. Loopback registries
    /// may speak plain http anyway.
    pub insecure: bool,
    /// `--cert-dir`: a folder with `*.crt` authorities, beside the system's and `certs.d`.
    pub cert_dir: Option<PathBuf>,
    /// `--creds user:password`.
    pub credentials: Option<Credentials>,
    /// `--authfile`; else `REGISTRY_AUTH_FILE`, `$XDG_RUNTIME_DIR/containers/auth.json`,
    /// `~/.config/containers/auth.json`, `~/.docker/config.json`.
    pub auth_file: Option<PathBuf>,
}
