//! What the tests of this crate share: a store of their own, and images made by hand.
#![allow(
    dead_code,
    clippy::allow_attributes,
    clippy::print_stderr,
    clippy::unwrap_used,
    reason = "each test program uses a part of it, and in tests a panic is the message"
)]

pub(crate) mod points;
pub(crate) mod registry;

use std::io::Write as _;
use std::path::{Path, PathBuf};

use knarr_cas::Hasher;
use knarr_fs::TempDir;
use knarr_image::Store;
use knarr_layer::tar::{self, Kind, Member};
use knarr_spec::Digest;

/// A store that is gone after the test.
pub(crate) struct Scratch {
    pub(crate) dir: TempDir,
    pub(crate) store: Store,
}

impl Scratch {
    pub(crate) fn new() -> Self {
        // Indexes can be made anywhere, so any file system does.
        let dir = TempDir::new_in(&std::env::temp_dir().join("knarr-image-tests")).unwrap();
        let store = Store::open(&dir.path().join("data"), &dir.path().join("run")).unwrap();
        Self { dir, store }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub(crate) fn write(&self, name: &str, bytes: &[u8]) -> PathBuf {
        let path = self.path(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, bytes).unwrap();
        path
    }

    /// Every file below the data root but locks, with what is in it, to compare before and after.
    pub(crate) fn files(&self) -> Vec<(PathBuf, Digest)> {
        let mut files = Vec::new();
        walk(&self.path("data"), &mut files);
        files.sort();
        files
    }
}

fn walk(folder: &Path, files: &mut Vec<(PathBuf, Digest)>) {
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap();
        if path.is_dir() {
            walk(&path, files);
        } else if name != "lock" && name != ".lock" {
            let digest = Hasher::digest(&std::fs::read(&path).unwrap());
            files.push((path, digest));
        }
    }
}

/// A tar of files (`name`, content); a name that ends in `/` is a folder.
pub(crate) fn tar_of(files: &[(&str, &[u8])]) -> Vec<u8> {
    let mut out = Vec::new();
    for (name, content) in files {
        let kind = if name.ends_with('/') {
            Kind::Dir
        } else {
            Kind::File
        };
        append(&mut out, name, kind, "", content);
    }
    out.extend(tar::TRAILER);
    out
}

pub(crate) fn append(out: &mut Vec<u8>, name: &str, kind: Kind, link: &str, content: &[u8]) {
    let size = content.len() as u64;
    let header = tar::encode(&Member {
        path: name.as_bytes().to_vec(),
        link: link.as_bytes().to_vec(),
        kind,
        mode: 0o755,
        size,
        data_size: size,
        ..Member::default()
    });
    out.extend(header.unwrap());
    out.extend(content);
    out.extend(tar::padding(size));
}

pub(crate) fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

pub(crate) fn zstd(bytes: &[u8]) -> Vec<u8> {
    zstd::stream::encode_all(bytes, 1).unwrap()
}

/// Bytes that do not compress, the same for the same seed.
pub(crate) fn noise(seed: u64, size: usize) -> Vec<u8> {
    let mut state = seed | 1;
    let mut bytes = Vec::with_capacity(size + 8);
    while bytes.len() < size {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend(state.to_le_bytes());
    }
    bytes.truncate(size);
    bytes
}

/// An image made by hand.
#[derive(Clone)]
pub(crate) struct Handmade {
    /// Uncompressed, bottom first.
    pub(crate) tars: Vec<Vec<u8>>,
    /// As they travel.
    pub(crate) blobs: Vec<Vec<u8>>,
    pub(crate) config: Vec<u8>,
    pub(crate) manifest: Vec<u8>,
}

impl Handmade {
    /// Two self-contained layers with something of `seed` in them.
    pub(crate) fn new(seed: &str) -> Self {
        let first = tar_of(&[
            ("./", b""),
            ("bin/", b""),
            ("bin/sh", &noise(7, 70_000)),
            ("etc/", b""),
            ("etc/name", seed.as_bytes()),
        ]);
        let second = tar_of(&[("./", b""), ("srv/", b""), ("srv/x", seed.as_bytes())]);
        Self::of(vec![first, second], "amd64", gzip)
    }

    pub(crate) fn of(
        tars: Vec<Vec<u8>>,
        architecture: &str,
        compress: impl Fn(&[u8]) -> Vec<u8>,
    ) -> Self {
        let diff_ids: Vec<String> = tars.iter().map(|t| Hasher::digest(t).to_string()).collect();
        let config = serde_json::json!({
            "created": "2024-01-02T03:04:05Z",
            "architecture": architecture,
            "os": "linux",
            "config": {"Cmd": ["sh"], "Env": ["PATH=/bin"]},
            "rootfs": {"type": "layers", "diff_ids": diff_ids},
        });
        let blobs: Vec<Vec<u8>> = tars.iter().map(|tar| compress(tar)).collect();
        Self::with_config(tars, blobs, serde_json::to_vec(&config).unwrap())
    }

    pub(crate) fn with_config(tars: Vec<Vec<u8>>, blobs: Vec<Vec<u8>>, config: Vec<u8>) -> Self {
        let layers: Vec<_> = blobs
            .iter()
            .map(|blob| descriptor("application/vnd.oci.image.layer.v1.tar+gzip", blob))
            .collect();
        let manifest = serde_json::json!({
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": descriptor("application/vnd.oci.image.config.v1+json", &config),
            "layers": layers,
        });
        Self {
            tars,
            blobs,
            config,
            manifest: serde_json::to_vec(&manifest).unwrap(),
        }
    }

    pub(crate) fn id(&self) -> Digest {
        Hasher::digest(&self.config)
    }

    /// As old `docker save` writes it.
    pub(crate) fn docker_archive(&self, tags: &[&str]) -> Vec<u8> {
        let config = format!("{}.json", self.id().hex());
        let names: Vec<String> = (0..self.tars.len())
            .map(|n| format!("{n}/layer.tar"))
            .collect();
        let mut out = Vec::new();
        for (name, tar) in names.iter().zip(&self.tars) {
            append(&mut out, name, Kind::File, "", tar);
        }
        append(&mut out, &config, Kind::File, "", &self.config);
        let manifest = serde_json::json!([{"Config": config, "RepoTags": tags, "Layers": names}]);
        let manifest = serde_json::to_vec(&manifest).unwrap();
        append(&mut out, "manifest.json", Kind::File, "", &manifest);
        out.extend(tar::TRAILER);
        out
    }

    /// The blobs of a layout, by name.
    pub(crate) fn layout_blobs(&self) -> Vec<(String, Vec<u8>)> {
        [&self.manifest, &self.config]
            .into_iter()
            .chain(&self.blobs)
            .map(|bytes| (blob_path(bytes), bytes.clone()))
            .collect()
    }

    pub(crate) fn descriptor(&self) -> serde_json::Value {
        descriptor("application/vnd.oci.image.manifest.v1+json", &self.manifest)
    }
}

pub(crate) fn blob_path(bytes: &[u8]) -> String {
    format!("blobs/sha256/{}", Hasher::digest(bytes).hex())
}

pub(crate) fn descriptor(media_type: &str, bytes: &[u8]) -> serde_json::Value {
    serde_json::json!({
        "mediaType": media_type,
        "digest": Hasher::digest(bytes).to_string(),
        "size": bytes.len(),
    })
}

pub(crate) fn index_of(manifests: Vec<serde_json::Value>) -> Vec<u8> {
    serde_json::to_vec(&serde_json::json!({
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.index.v1+json",
        "manifests": manifests,
    }))
    .unwrap()
}

/// An OCI layout as files.
pub(crate) fn layout(index: &[u8], blobs: Vec<(String, Vec<u8>)>) -> Vec<(String, Vec<u8>)> {
    let mut files = vec![
        (
            "oci-layout".to_owned(),
            b"{\"imageLayoutVersion\":\"1.0.0\"}".to_vec(),
        ),
        ("index.json".to_owned(), index.to_vec()),
    ];
    files.extend(blobs);
    files
}

pub(crate) fn tar_files(files: &[(String, Vec<u8>)]) -> Vec<u8> {
    let files: Vec<(&str, &[u8])> = files.iter().map(|(n, b)| (n.as_str(), &b[..])).collect();
    tar_of(&files)
}

/// Whether a program can be run; says so where a test has to be skipped.
pub(crate) fn has(test: &str, program: &str) -> bool {
    let found = std::env::var_os("PATH").is_some_and(|path| {
        std::env::split_paths(&path).any(|folder| folder.join(program).is_file())
    });
    if !found {
        eprintln!("SKIP {test}: {program} is not installed");
    }
    found
}
