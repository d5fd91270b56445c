//! Writes images as OCI layouts, byte by byte, so that tests decide what is in them.

use std::io::Write as _;
use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};

/// An image being put together: layers as uncompressed tars, bottom first, and a configuration.
#[derive(Debug, Clone)]
pub struct ImageBuilder {
    /// `name:tag`, as `load` will show it.
    pub name: String,
    /// The uncompressed layers.
    pub layers: Vec<Vec<u8>>,
    /// The `config` object of the image configuration (`Cmd`, `Env`, `Volumes`, …).
    pub config: Value,
    /// Go's name of the architecture.
    pub architecture: String,
    /// gzip's level, 1 to 9.
    pub gzip: u32,
}

impl ImageBuilder {
    /// An image without layers for this machine.
    pub fn new(name: &str) -> Self {
        Self {
            name: name.to_owned(),
            layers: Vec::new(),
            config: json!({}),
            architecture: match std::env::consts::ARCH {
                "aarch64" => "arm64".to_owned(),
                _ => "amd64".to_owned(),
            },
            gzip: 1,
        }
    }

    /// Adds a layer on top.
    #[must_use]
    pub fn layer(mut self, tar: Vec<u8>) -> Self {
        self.layers.push(tar);
        self
    }

    /// Sets gzip's level: 1 where it only has to be gzip.
    #[must_use]
    pub fn gzip(mut self, level: u32) -> Self {
        self.gzip = level;
        self
    }

    /// Sets the `config` object.
    #[must_use]
    pub fn config(mut self, config: Value) -> Self {
        self.config = config;
        self
    }

    /// Writes an OCI layout folder with gzip layers; gives the manifest's digest.
    ///
    /// # Errors
    /// When a file cannot be written.
    pub fn write_layout(&self, dir: &Path) -> Result<String> {
        let blobs = dir.join("blobs/sha256");
        std::fs::create_dir_all(&blobs)?;
        let put = |bytes: &[u8]| -> Result<String> {
            let hex = sha256(bytes);
            std::fs::write(blobs.join(&hex), bytes)?;
            Ok(format!("sha256:{hex}"))
        };
        let mut diff_ids = Vec::new();
        let mut layers = Vec::new();
        for tar in &self.layers {
            diff_ids.push(format!("sha256:{}", sha256(tar)));
            let level = flate2::Compression::new(self.gzip);
            let mut gzip = flate2::write::GzEncoder::new(Vec::new(), level);
            gzip.write_all(tar)?;
            let bytes = gzip.finish()?;
            layers.push(json!({
                "mediaType": "application/vnd.oci.image.layer.v1.tar+gzip",
                "digest": put(&bytes)?,
                "size": bytes.len(),
            }));
        }
        let config = serde_json::to_vec(&json!({
            "created": "2026-01-02T03:04:05Z",
            "architecture": self.architecture,
            "os": "linux",
            "config": self.config,
            "rootfs": {"type": "layers", "diff_ids": diff_ids},
            "history": self.layers.iter().map(|_| json!({"created_by": "test"})).collect::<Vec<_>>(),
        }))?;
        let manifest = serde_json::to_vec(&json!({
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": {
                "mediaType": "application/vnd.oci.image.config.v1+json",
                "digest": put(&config)?,
                "size": config.len(),
            },
            "layers": layers,
        }))?;
        let digest = put(&manifest)?;
        let tag = self.name.rsplit_once(':').map_or("latest", |(_, tag)| tag);
        std::fs::write(
            dir.join("index.json"),
            serde_json::to_vec(&json!({
                "schemaVersion": 2,
                "manifests": [{
                    "mediaType": "application/vnd.oci.image.manifest.v1+json",
                    "digest": digest,
                    "size": manifest.len(),
                    "platform": {"os": "linux", "architecture": self.architecture},
                    "annotations": {
                        "org.opencontainers.image.ref.name": tag,
                        "io.containerd.image.name": self.name,
                    },
                }],
            }))?,
        )?;
        std::fs::write(dir.join("oci-layout"), br#"{"imageLayoutVersion":"1.0.0"}"#)?;
        Ok(digest)
    }

    /// Writes an `oci-archive` (the layout as one tar).
    ///
    /// # Errors
    /// When a file cannot be written or `tar` fails.
    pub fn write_oci_archive(&self, path: &Path) -> Result<()> {
        let dir = path.with_extension("layout");
        self.write_layout(&dir)?;
        tar_folder(&dir, path)?;
        std::fs::remove_dir_all(&dir)?;
        Ok(())
    }

    /// Writes what `docker save` writes: `manifest.json`, the configuration, uncompressed layers.
    ///
    /// # Errors
    /// When a file cannot be written or `tar` fails.
    pub fn write_docker_archive(&self, path: &Path) -> Result<()> {
        let dir = path.with_extension("save");
        std::fs::create_dir_all(&dir)?;
        let mut files = Vec::new();
        let mut diff_ids = Vec::new();
        for tar in &self.layers {
            let hex = sha256(tar);
            std::fs::create_dir_all(dir.join(&hex))?;
            std::fs::write(dir.join(&hex).join("layer.tar"), tar)?;
            files.push(format!("{hex}/layer.tar"));
            diff_ids.push(format!("sha256:{hex}"));
        }
        let config = serde_json::to_vec(&json!({
            "created": "2026-01-02T03:04:05Z",
            "architecture": self.architecture,
            "os": "linux",
            "config": self.config,
            "rootfs": {"type": "layers", "diff_ids": diff_ids},
        }))?;
        let config_name = format!("{}.json", sha256(&config));
        std::fs::write(dir.join(&config_name), &config)?;
        std::fs::write(
            dir.join("manifest.json"),
            serde_json::to_vec(&json!([{
                "Config": config_name, "RepoTags": [self.name], "Layers": files,
            }]))?,
        )?;
        tar_folder(&dir, path)?;
        std::fs::remove_dir_all(&dir)?;
        Ok(())
    }
}

/// The SHA-256 of some bytes in hexadecimal.
pub fn sha256(bytes: &[u8]) -> String {
    let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, bytes);
    digest
        .as_ref()
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect()
}

/// GNU tar of a folder's content, owners as numbers, sorted: the same bytes each time.
///
/// # Errors
/// When `tar` fails.
pub fn tar_folder(dir: &Path, tar: &Path) -> Result<()> {
    let status = Command::new("tar")
        .args(["--numeric-owner", "--sort=name", "-C"])
        .arg(dir)
        .arg("-cf")
        .arg(tar)
        .arg(".")
        .status()
        .context("cannot run tar")?;
    ensure!(
        status.success(),
        "tar of {} failed: {status}",
        dir.display()
    );
    Ok(())
}
