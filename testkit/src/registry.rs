//! Debian's `docker-registry` on a free loopback port.

use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};

/// A registry that ends, with its files, when dropped.
#[derive(Debug)]
pub struct Registry {
    process: Child,
    dir: PathBuf,
    port: u16,
}

impl Registry {
    /// Starts a registry over plain http; `htpasswd` (bcrypt lines) switches basic auth on.
    ///
    /// # Errors
    /// When Debian's package docker-registry is missing or the server does not come up.
    pub fn start(dir: &Path, htpasswd: Option<&str>) -> Result<Self> {
        crate::private_network()?;
        std::fs::create_dir_all(dir)?;
        let Some(lines) = htpasswd else {
            return Self::launch(dir, "");
        };
        let file = dir.join("htpasswd");
        std::fs::write(&file, lines)?;
        let auth = format!(
            "auth:\n  htpasswd:\n    realm: test\n    path: {}\n",
            file.display()
        );
        Self::launch(dir, &auth)
    }

    /// One that believes the tokens of a service at `realm`, which are for the service
    /// `registry.test` and signed by whom `certificate` is of.
    ///
    /// # Errors
    /// As [`start`](Self::start).
    pub fn with_tokens(dir: &Path, realm: &str, certificate: &Path) -> Result<Self> {
        std::fs::create_dir_all(dir)?;
        let auth = format!(
            "auth:\n  token:\n    realm: {realm}\n    service: registry.test\n    issuer: {}\n    \
             rootcertbundle: {}\n",
            crate::token::ISSUER,
            certificate.display()
        );
        Self::launch(dir, &auth)
    }

    fn launch(dir: &Path, auth: &str) -> Result<Self> {
        // Bound and closed again: the port is free, and nobody on this machine races for it.
        let port = TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
        let mut config = format!(
            "version: 0.1\nlog:\n  level: error\nstorage:\n  delete:\n    enabled: true\n  filesystem:\n    \
             rootdirectory: {}\nhttp:\n  addr: 127.0.0.1:{port}\n",
            dir.join("data").display()
        );
        config += auth;
        let file = dir.join("config.yml");
        std::fs::write(&file, config)?;
        let process = Command::new("docker-registry")
            .arg("serve")
            .arg(&file)
            .stdout(Stdio::null())
            .stderr(std::fs::File::create(dir.join("log"))?)
            .spawn()
            .context("docker-registry is missing: install Debian's package docker-registry")?;
        let registry = Self {
            process,
            dir: dir.to_owned(),
            port,
        };
        let up = crate::wait_for(Duration::from_secs(20), || {
            TcpStream::connect(("127.0.0.1", port)).ok()
        });
        if up.is_none() {
            bail!("docker-registry did not come up on port {port}");
        }
        Ok(registry)
    }

    /// `127.0.0.1:<port>`, the first part of references to it.
    pub fn host(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// Puts an OCI layout folder (one image) into the registry as `repository:tag`, with plain
    /// HTTP requests (distribution-spec, "Push"), so that no tool under test is needed for it.
    ///
    /// # Errors
    /// When a request fails.
    pub fn push_layout(&self, layout: &Path, repository: &str, tag: &str) -> Result<()> {
        let index: serde_json::Value =
            serde_json::from_slice(&std::fs::read(layout.join("index.json"))?)?;
        let entry = index.pointer("/manifests/0").context("empty index.json")?;
        let blob = |digest: &str| -> Result<Vec<u8>> {
            let hex = digest.strip_prefix("sha256:").context("no sha256 digest")?;
            Ok(std::fs::read(layout.join("blobs/sha256").join(hex))?)
        };
        let digest_of = |value: &serde_json::Value| -> Result<String> {
            Ok(value
                .get("digest")
                .and_then(|d| d.as_str())
                .context("no digest")?
                .to_owned())
        };
        let manifest_bytes = blob(&digest_of(entry)?)?;
        let manifest: serde_json::Value = serde_json::from_slice(&manifest_bytes)?;
        let config = manifest.get("config").context("no config")?;
        let layers = manifest
            .get("layers")
            .and_then(|l| l.as_array())
            .context("no layers")?;
        for descriptor in std::iter::once(config).chain(layers) {
            let digest = digest_of(descriptor)?;
            let head =
                self.request("POST", &format!("/v2/{repository}/blobs/uploads/"), "", &[])?;
            let location = head
                .lines()
                .find_map(|line| {
                    line.split_once(": ")
                        .filter(|(k, _)| k.eq_ignore_ascii_case("location"))
                })
                .map(|(_, value)| value.trim().to_owned())
                .context("the registry gave no upload location")?;
            let path = location
                .split_once("://")
                .and_then(|(_, rest)| rest.find('/').and_then(|at| rest.get(at..)))
                .unwrap_or(&location);
            let separator = if path.contains('?') { '&' } else { '?' };
            self.request(
                "PUT",
                &format!("{path}{separator}digest={digest}"),
                "application/octet-stream",
                &blob(&digest)?,
            )?;
        }
        let media_type = manifest
            .get("mediaType")
            .and_then(|m| m.as_str())
            .context("no media type")?;
        self.request(
            "PUT",
            &format!("/v2/{repository}/manifests/{tag}"),
            media_type,
            &manifest_bytes,
        )?;
        Ok(())
    }

    /// One request over its own connection; gives the answer's head.
    fn request(&self, method: &str, path: &str, content_type: &str, body: &[u8]) -> Result<String> {
        let mut stream = TcpStream::connect(("127.0.0.1", self.port))?;
        let kind = if content_type.is_empty() {
            String::new()
        } else {
            format!("Content-Type: {content_type}\r\n")
        };
        write!(
            stream,
            "{method} {path} HTTP/1.1\r\nHost: {}\r\nConnection: close\r\n{kind}Content-Length: {}\r\n\r\n",
            self.host(),
            body.len()
        )?;
        stream.write_all(body)?;
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer)?;
        let answer = String::from_utf8_lossy(&answer).into_owned();
        let status = answer.split(' ').nth(1).unwrap_or("");
        if !status.starts_with('2') {
            bail!("{method} {path}: the registry answered {answer}");
        }
        Ok(answer)
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        // Already ended, or ended now: either way there is nothing more to do about it.
        self.process.kill().ok();
        self.process.wait().ok();
        std::fs::remove_dir_all(&self.dir).ok();
    }
}
