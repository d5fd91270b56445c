//! Registry client.

use std::path::PathBuf;

/// How registries are reached.
#[derive(Debug, Clone, Default)]
pub struct Settings {
    /// `--tls-verify=false`: plain http and any certificate are accepted. Loopback registries
    /// speak plain http anyway.
    pub insecure: bool,
    /// `--cert-dir`: a folder with `*.crt` authorities, beside the system's and `certs.d`.
    pub cert_dir: Option<PathBuf>,
    /// `--creds user:password`.
    pub credentials: Option<Credentials>,
    /// `--authfile`; else `REGISTRY_AUTH_FILE`, `$XDG_RUNTIME_DIR/containers/auth.json`,
    /// `~/.config/containers/auth.json`, `~/.docker/config.json`.
    pub auth_file: Option<PathBuf>,
}

/// A user name and its password; never printed.
#[derive(Clone, PartialEq, Eq)]
pub struct Credentials {
    /// The user's name.
    pub user: String,
    /// The password or access token.
    pub password: String,
}

impl std::fmt::Debug for Credentials {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Credentials")
            .field("user", &self.user)
            .finish_non_exhaustive()
    }
}
