//! From an archive: docker-archive, oci-archive, or the folder of an OCI layout.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::thread::available_parallelism;

use knarr_cas::Hasher;
use knarr_fs::failpoint;
use knarr_spec::image::{Descriptor, Index, Manifest, media_type};
use knarr_spec::manifest::{DOCUMENT_LIMIT, Document, LAYER_LIMIT};
use knarr_spec::{Digest, Platform, Reference};
use serde::Deserialize;

use crate::archive::{Archive, not_an_archive};
use crate::assemble::{Brought, Provider, Take, Wanted};
use crate::store::NewImage;
use crate::trust::policy::Place;
use crate::{Error, Event, ImageId, Loaded, Progress, Result, Source, Store, select};

/// What a docker-archive's manifest.json lists. Nobody documents it; moby, image/tarexport.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct DockerImage {
    config: String,
    #[serde(default)]
    repo_tags: Option<Vec<String>>,
    #[serde(default)]
    layers: Option<Vec<String>>,
}

/// An image found in an archive.
pub(crate) struct Found {
    pub(crate) manifest: Vec<u8>,
    pub(crate) config: Vec<u8>,
    pub(crate) wanted: Vec<Wanted>,
    /// The archive's member of each layer.
    pub(crate) members: Vec<String>,
    pub(crate) names: Vec<Reference>,
    label: String,
}

impl Store {
    /// `load`: docker-archive, oci-archive or the folder of an OCI layout; compressed or plain.
    /// `platform` picks from multi-platform indexes. Each image that is in the store is told as
    /// [`Event::Loaded`] at once, and stays when a later one fails.
    ///
    /// # Errors
    /// A damaged or lying archive, or the store's; nothing half-made stays.
    pub fn load(
        &self,
        source: Source<'_>,
        platform: Option<&Platform>,
        progress: &dyn Progress,
    ) -> Result<Vec<Loaded>> {
        self.or_collect(|| self.load_all(source, platform, progress))
    }

    /// [`load`](Self::load), and what the archive has of a multi-platform index whole, with the
    /// images of all platforms. Docker's archives have none.
    ///
    /// # Errors
    /// As [`load`](Self::load).
    pub fn load_whole(&self, source: Source<'_>, progress: &dyn Progress) -> Result<Vec<Loaded>> {
        self.or_collect(|| {
            self.layers.sweep()?;
            let place = place(&source);
            let archive = Archive::open(source, || Ok(self.blobs.scratch()?))?;
            self.admit(&archive, place)?;
            // Docker writes both, but only the layout has indexes.
            let Some(bytes) = archive.read("index.json", DOCUMENT_LIMIT)? else {
                return self.load_archive(&archive, None, progress);
            };
            let archive = Arc::new(archive);
            let mut loaded = Vec::new();
            for (name, group) in entries(&archive, &bytes)? {
                let names = names_of(name.as_deref());
                let label = label(&archive, name.as_deref(), &names);
                let image = match group.as_slice() {
                    [entry] => self.load_index(&archive, &label, entry, &names, progress)?,
                    _ => None,
                };
                loaded.push(match image {
                    Some(image) => self.loaded(image.id, names, progress),
                    None => {
                        let found = oci_image(&archive, name, group, None)?;
                        self.load_image(&archive, &found, None, progress)?
                    }
                });
            }
            Ok(loaded)
        })
    }

    fn load_all(
        &self,
        source: Source<'_>,
        platform: Option<&Platform>,
        progress: &dyn Progress,
    ) -> Result<Vec<Loaded>> {
        self.layers.sweep()?;
        let place = place(&source);
        let archive = Archive::open(source, || Ok(self.blobs.scratch()?))?;
        self.admit(&archive, place)?;
        self.load_archive(&archive, platform, progress)
    }

    /// Asks the policy. No archive has signatures, so it is all accepted or all refused.
    fn admit(&self, archive: &Archive, path: Option<PathBuf>) -> Result<()> {
        let is_docker = archive.find("manifest.json")?.is_some();
        let place = match (is_docker, path) {
            (true, _) => Place::Transport("docker-archive"),
            (false, Some(path)) if path.is_dir() => Place::Path("oci", path),
            (false, Some(path)) => Place::Path("oci-archive", path),
            (false, None) => Place::Transport("oci-archive"),
        };
        let gate = self.trust.gate(&archive.label, place, None)?;
        gate.check(None, &[])
    }

    fn load_archive(
        &self,
        archive: &Archive,
        platform: Option<&Platform>,
        progress: &dyn Progress,
    ) -> Result<Vec<Loaded>> {
        let images = if let Some(bytes) = archive.read("manifest.json", DOCUMENT_LIMIT)? {
            docker_archive(archive, &bytes)?
        } else if let Some(bytes) = archive.read("index.json", DOCUMENT_LIMIT)? {
            oci_layout(archive, &bytes, platform)?
        } else {
            return Err(not_an_archive(&archive.label));
        };
        let mut loaded = Vec::new();
        for image in images {
            loaded.push(self.load_image(archive, &image, platform, progress)?);
        }
        Ok(loaded)
    }

    /// Tells of an image that is in.
    fn loaded(&self, id: ImageId, names: Vec<Reference>, progress: &dyn Progress) -> Loaded {
        let loaded = Loaded { id, names };
        progress.event(&Event::Loaded(loaded.clone()));
        let name = loaded.names.first().map(Reference::familiar);
        self.announce.image("load", id, name);
        loaded
    }

    fn load_image(
        &self,
        archive: &Archive,
        found: &Found,
        platform: Option<&Platform>,
        progress: &dyn Progress,
    ) -> Result<Loaded> {
        // Once more, now with the platform that was asked for.
        select::check_config(&found.label, &found.config, found.wanted.len(), platform)?;
        let context = self.context(found.label.clone(), progress);
        let workers = available_parallelism().map_or(2, usize::from).min(8);
        let members = Members {
            archive,
            names: &found.members,
        };
        let assembled = context.assemble(&found.wanted, workers, &members)?;
        failpoint!("load.layers-present");
        let stored = self.store_image(&NewImage {
            manifest: &found.manifest,
            config: &found.config,
            assembled: &assembled,
            names: &found.names,
            index: None,
        })?;
        Ok(self.loaded(stored.image.id, found.names.clone(), progress))
    }
}

/// Where a source is, as policies see it.
fn place(source: &Source<'_>) -> Option<PathBuf> {
    match source {
        Source::Path(path) => std::fs::canonicalize(path).ok(),
        Source::File(_) | Source::Stream(_) => None,
    }
}

/// Layers from an archive, each read from its place.
struct Members<'a> {
    archive: &'a Archive,
    names: &'a [String],
}

impl Provider for Members<'_> {
    fn provide(&self, wanted: &Wanted, _stop: &AtomicBool, take: &Take<'_>) -> Result<Brought> {
        let name = self.names.get(wanted.index).ok_or(Error::Worker)?;
        take(&mut self.archive.section(name)?).map(Brought::of)
    }
}

pub(crate) fn docker_archive(archive: &Archive, bytes: &[u8]) -> Result<Vec<Found>> {
    let listed: Vec<DockerImage> =
        serde_json::from_slice(bytes).map_err(|cause| archive.json("manifest.json", cause))?;
    listed
        .into_iter()
        .map(|image| docker_image(archive, image))
        .collect()
}

fn docker_image(archive: &Archive, image: DockerImage) -> Result<Found> {
    let names = image.repo_tags.unwrap_or_default();
    let names = names
        .iter()
        .map(|name| crate::store::parse_name(name))
        .collect::<Result<Vec<Reference>>>()?;
    let label = names.first().map_or_else(
        || format!("{} in {}", image.config, archive.label),
        Reference::familiar,
    );
    let config = archive
        .read(&image.config, DOCUMENT_LIMIT)?
        .ok_or_else(|| {
            archive.damaged(format!(
                "it lacks {}, which its manifest names",
                image.config
            ))
        })?;
    let id = Hasher::digest(&config);
    // Docker and skopeo name the configuration by its digest.
    let stem = image.config.rsplit('/').next().unwrap_or_default();
    let stem = stem.strip_suffix(".json").unwrap_or(stem);
    if let Ok(expected) = Digest::from_hex(stem)
        && expected != id
    {
        let name = &image.config;
        return Err(archive.damaged(format!("{name} has wrong bytes: their digest is {id}")));
    }
    let members = image.layers.unwrap_or_default();
    if members.len() > LAYER_LIMIT {
        return Err(archive.damaged(format!("{label} has {} layers", members.len())));
    }
    let parsed = select::check_config(&label, &config, members.len(), None)?;
    let mut wanted = Vec::new();
    for (index, (member, diff_id)) in members.iter().zip(&parsed.rootfs.diff_ids).enumerate() {
        wanted.push(Wanted {
            index,
            diff_id: *diff_id,
            blob: None,
            size: archive.section(member)?.size(),
        });
    }
    let manifest = plain_manifest(&config, wanted.iter().map(|w| (w.diff_id, w.size)))
        .map_err(|cause| archive.json(&image.config, cause))?;
    Ok(Found {
        manifest,
        config,
        wanted,
        members,
        names,
        label,
    })
}

/// The manifest of an image that comes without one: its layers are plain tars.
pub(crate) fn plain_manifest(
    config: &[u8],
    layers: impl Iterator<Item = (Digest, u64)>,
) -> Result<Vec<u8>, serde_json::Error> {
    let descriptor = |media_type: &str, digest, size| Descriptor {
        media_type: media_type.to_owned(),
        digest,
        size,
        urls: Vec::new(),
        annotations: BTreeMap::new(),
        platform: None,
    };
    let size = u64::try_from(config.len()).unwrap_or(u64::MAX);
    serde_json::to_vec(&Manifest {
        schema_version: 2,
        media_type: Some(media_type::OCI_MANIFEST.to_owned()),
        config: descriptor(media_type::OCI_CONFIG, Hasher::digest(config), size),
        layers: layers
            .map(|(digest, size)| descriptor(media_type::OCI_LAYER, digest, size))
            .collect(),
        annotations: BTreeMap::new(),
    })
}

fn oci_layout(archive: &Archive, bytes: &[u8], platform: Option<&Platform>) -> Result<Vec<Found>> {
    entries(archive, bytes)?
        .into_iter()
        .map(|(name, group)| oci_image(archive, name, group, platform))
        .collect()
}

/// The entries of a layout's index by name: those of one name are one image for several platforms.
fn entries(archive: &Archive, bytes: &[u8]) -> Result<Vec<(Option<String>, Vec<Descriptor>)>> {
    let document = Document::parse(bytes, media_type::OCI_INDEX);
    let index = match document {
        Ok(Document::Index(index)) => index,
        Ok(Document::Manifest(_)) => {
            return Err(archive.damaged("its index.json is no index".to_owned()));
        }
        Err(cause) => {
            return Err(Error::Manifest {
                name: format!("index.json in {}", archive.label),
                cause,
            });
        }
    };
    let mut groups: Vec<(Option<String>, Vec<Descriptor>)> = Vec::new();
    for descriptor in index.manifests {
        let name = name_of(&descriptor);
        match groups.iter_mut().find(|(known, _)| *known == name) {
            Some((_, group)) => group.push(descriptor),
            None => groups.push((name, vec![descriptor])),
        }
    }
    Ok(groups)
}

/// The references in what an entry is called: a tag alone (`latest`) names no repository.
fn names_of(name: Option<&str>) -> Vec<Reference> {
    name.into_iter()
        .filter(|name| name.contains([':', '/']))
        .filter_map(|name| name.parse().ok())
        .collect()
}

/// What messages call an entry.
fn label(archive: &Archive, name: Option<&str>, names: &[Reference]) -> String {
    match (names.first(), name) {
        (Some(reference), _) => reference.familiar(),
        (None, Some(name)) => name.to_owned(),
        (None, None) => archive.label.clone(),
    }
}

/// What an entry of index.json is called: containerd's annotation, else OCI's.
fn name_of(descriptor: &Descriptor) -> Option<String> {
    let annotation = |key: &str| descriptor.annotations.get(key).cloned();
    annotation("io.containerd.image.name")
        .or_else(|| annotation("org.opencontainers.image.ref.name"))
}

fn oci_image(
    archive: &Archive,
    name: Option<String>,
    group: Vec<Descriptor>,
    platform: Option<&Platform>,
) -> Result<Found> {
    let names = names_of(name.as_deref());
    let label = label(archive, name.as_deref(), &names);
    let host = Platform::host();
    let index = Index {
        schema_version: 2,
        media_type: None,
        manifests: group,
        annotations: BTreeMap::new(),
    };
    let first = match index.manifests.as_slice() {
        [single] => single,
        _ => select::best(&label, platform.unwrap_or(&host), &index)?,
    };
    let fetch = |descriptor: &Descriptor| {
        let bytes = blob(archive, descriptor)?;
        let document =
            Document::parse(&bytes, &descriptor.media_type).map_err(|cause| Error::Manifest {
                name: label.clone(),
                cause,
            })?;
        Ok((bytes, document))
    };
    let chosen = select::choose(&label, platform, fetch(first)?, fetch)?;
    let manifest = &chosen.manifest;
    let config = blob(archive, &manifest.config)?;
    let parsed = select::check_config(&label, &config, manifest.layers.len(), platform)?;
    let layers = manifest
        .layers
        .iter()
        .zip(&parsed.rootfs.diff_ids)
        .enumerate();
    Ok(Found {
        wanted: layers
            .map(|(index, (layer, diff_id))| Wanted {
                index,
                diff_id: *diff_id,
                blob: Some(layer.digest),
                size: layer.size,
            })
            .collect(),
        members: manifest.layers.iter().map(|l| member(l.digest)).collect(),
        manifest: chosen.bytes,
        config,
        names,
        label,
    })
}

/// Where a layout keeps a blob (image-layout.md).
pub(crate) fn member(digest: Digest) -> String {
    format!("blobs/sha256/{}", digest.hex())
}

/// A small blob, its digest checked.
fn blob(archive: &Archive, descriptor: &Descriptor) -> Result<Vec<u8>> {
    let digest = descriptor.digest;
    let bytes = archive
        .read(&member(digest), DOCUMENT_LIMIT)?
        .ok_or_else(|| archive.damaged(format!("it lacks blob {digest}")))?;
    let got = Hasher::digest(&bytes);
    if got == digest {
        return Ok(bytes);
    }
    Err(archive.damaged(format!(
        "blob {digest} has wrong bytes: their digest is {got}"
    )))
}

impl Loaded {
    /// `docker load`'s lines.
    pub fn lines(&self) -> Vec<String> {
        if self.names.is_empty() {
            return vec![format!("Loaded image ID: {}", self.id)];
        }
        self.names
            .iter()
            .map(|name| format!("Loaded image: {}", name.familiar()))
            .collect()
    }
}
