//! Where a copy comes from.

use std::collections::BTreeMap;
use std::io::{self, Read};
use std::path::Path;
use std::sync::Arc;

use bytes::{Buf as _, Bytes};
use knarr_distribution::{Blob, Client, Session};
use knarr_spec::image::{Descriptor, Manifest, media_type};
use knarr_spec::manifest::{DOCUMENT_LIMIT, Document};
use knarr_spec::{Digest, Reference};

use super::{CopyOptions, Location, Take, Top};
use crate::archive::{Archive, not_an_archive};
use crate::load::{self, Found};
use crate::whole::Export;
use crate::{Error, Hold, Image, Result, Store};

/// An open place.
pub(super) enum Source<'a> {
    /// A layout, folder or tar, and the entry of its index that is meant.
    Layout(Arc<Archive>, Box<Descriptor>),
    /// `docker save`'s, and the image in it.
    Docker(Archive, Box<Found>),
    /// skopeo's folder.
    Folder(Archive),
    Registry(Box<Client<'a>>, &'a Reference),
    Store(Box<Stored<'a>>),
}

/// An image of the store, or a whole index.
pub(super) struct Stored<'a> {
    store: &'a Store,
    name: String,
    top: Top,
    /// The manifests and indexes below the top.
    documents: BTreeMap<Digest, Vec<u8>>,
    images: Vec<(Image, Hold)>,
}

impl Export for Stored<'_> {
    fn image(&mut self, image: Image, hold: Hold, own: Vec<u8>) -> Result<Top> {
        let manifest = self.store.manifest_for_copies(&image, own)?;
        self.images.push((image, hold));
        Top::parse(manifest, "", &self.name)
    }

    fn other(&mut self, _: &Manifest) -> Result<()> {
        Ok(())
    }

    fn document(&mut self, top: &Top) -> Result<()> {
        self.documents.insert(top.digest(), top.bytes.clone());
        Ok(())
    }
}

impl<'a> Stored<'a> {
    fn open(store: &'a Store, name: &str, options: &CopyOptions) -> Result<Self> {
        let platform = options.platform.as_ref();
        let (image, hold) = store.resolve_platform(name, platform)?;
        let own = store.manifest_bytes(&image)?;
        let manifest = store.manifest_for_copies(&image, own)?;
        let mut stored = Self {
            store,
            name: image.id.to_string(),
            top: Top::parse(manifest, "", name)?,
            documents: BTreeMap::new(),
            images: vec![(image, hold)],
        };
        if options.all
            && let Some(index) = store.index_of(name)?
        {
            stored.top = store.export(name, index, &mut stored)?;
        }
        Ok(stored)
    }
}

impl<'a> Source<'a> {
    pub(super) fn open(
        store: &'a Store,
        location: &'a Location,
        options: &CopyOptions,
    ) -> Result<Self> {
        let archive =
            |path: &Path| Archive::open(crate::Source::Path(path), || Ok(store.blobs.scratch()?));
        match location {
            Location::Layout { path, name } | Location::LayoutArchive { path, name } => {
                let archive = archive(path)?;
                let entry = entry(&archive, name.as_deref())?;
                Ok(Self::Layout(Arc::new(archive), Box::new(entry)))
            }
            Location::DockerArchive { path, name } => {
                let archive = archive(path)?;
                let found = image(&archive, name.as_ref())?;
                Ok(Self::Docker(archive, Box::new(found)))
            }
            Location::Folder(path) => Ok(Self::Folder(archive(path)?)),
            Location::Registry(reference) => Ok(Self::Registry(
                Box::new(Client::new(options.from.clone())),
                reference,
            )),
            Location::Store(name) => {
                let stored = Stored::open(store, name, options)?;
                Ok(Self::Store(Box::new(stored)))
            }
        }
    }

    /// A conversation with the registry, where it is one.
    pub(super) fn session(&self) -> Result<Option<Session<'_>>> {
        match self {
            Self::Registry(client, reference) => {
                let session = client.session().map_err(|cause| failed(reference, cause))?;
                Ok(Some(session))
            }
            _ => Ok(None),
        }
    }

    /// What messages call it.
    fn name(&self) -> String {
        match self {
            Self::Layout(archive, _) => archive.label.clone(),
            Self::Docker(archive, _) | Self::Folder(archive) => archive.label.clone(),
            Self::Registry(_, reference) => reference.familiar(),
            Self::Store(stored) => stored.name.clone(),
        }
    }

    /// The manifest or index that is meant.
    pub(super) fn top(&self) -> Result<Top> {
        let name = self.name();
        match self {
            Self::Layout(_, entry) => super::fetch(self, &name, entry),
            Self::Docker(_, found) => {
                Top::parse(found.manifest.clone(), media_type::OCI_MANIFEST, &name)
            }
            Self::Folder(archive) => {
                let bytes = archive
                    .read("manifest.json", DOCUMENT_LIMIT)?
                    .ok_or_else(|| not_an_archive(&archive.label))?;
                Top::parse(bytes, "", &name)
            }
            Self::Registry(client, reference) => {
                let session = client.session().map_err(|cause| failed(reference, cause))?;
                let fetched = session
                    .manifest(reference)
                    .map_err(|cause| failed(reference, cause))?;
                Top::parse(fetched.bytes, "", &name)
            }
            Self::Store(stored) => Ok(stored.top.clone()),
        }
    }

    /// Whether a manifest or index that another one names is here: archives may lack some.
    pub(super) fn has_document(&self, digest: Digest) -> Result<bool> {
        match self {
            Self::Layout(archive, _) => Ok(archive.find(&load::member(digest))?.is_some()),
            _ => Ok(true),
        }
    }

    /// The bytes of a manifest or index that another one names; not checked.
    pub(super) fn document(&self, descriptor: &Descriptor) -> Result<Vec<u8>> {
        let digest = descriptor.digest;
        let lacks = |archive: &Archive| archive.damaged(format!("it lacks blob {digest}"));
        match self {
            Self::Layout(archive, _) => archive
                .read(&load::member(digest), DOCUMENT_LIMIT)?
                .ok_or_else(|| lacks(archive)),
            Self::Folder(archive) => {
                // The manifests of an index have a name of their own.
                let named = format!("{}.manifest.json", digest.hex());
                match archive.read(&named, DOCUMENT_LIMIT)? {
                    Some(bytes) => Ok(bytes),
                    None => archive
                        .read(&digest.hex(), DOCUMENT_LIMIT)?
                        .ok_or_else(|| lacks(archive)),
                }
            }
            Self::Registry(client, reference) => {
                let session = client.session().map_err(|cause| failed(reference, cause))?;
                let fetched = session
                    .manifest(&reference.with_digest(digest))
                    .map_err(|cause| failed(reference, cause))?;
                Ok(fetched.bytes)
            }
            Self::Store(stored) => match stored.documents.get(&digest) {
                Some(bytes) => Ok(bytes.clone()),
                None => Ok(stored.store.blobs.read(digest, DOCUMENT_LIMIT)?),
            },
            // It holds single images.
            Self::Docker(archive, _) => Err(lacks(archive)),
        }
    }

    /// Gives a blob's bytes to `take`; not checked.
    pub(super) fn blob(&self, descriptor: &Descriptor, take: Take<'_>) -> Result<()> {
        let digest = descriptor.digest;
        match self {
            Self::Layout(archive, _) => take(&mut archive.section(&load::member(digest))?),
            Self::Folder(archive) => take(&mut archive.section(&digest.hex())?),
            Self::Docker(archive, found) => {
                if knarr_cas::Hasher::digest(&found.config) == digest {
                    return take(&mut &found.config[..]);
                }
                let at = found.wanted.iter().position(|w| w.diff_id == digest);
                let member = at.and_then(|at| found.members.get(at));
                let member =
                    member.ok_or_else(|| archive.damaged(format!("it lacks layer {digest}")))?;
                take(&mut archive.section(member)?)
            }
            Self::Registry(client, reference) => {
                let session: Session<'_> =
                    client.session().map_err(|cause| failed(reference, cause))?;
                let mut pieces = Pieces {
                    blob: session
                        .blob(reference, descriptor)
                        .map_err(|cause| failed(reference, cause))?,
                    piece: Bytes::new(),
                    failure: None,
                };
                let taken = take(&mut pieces);
                match pieces.failure {
                    Some(cause) => Err(failed(reference, cause)),
                    None => taken,
                }
            }
            Self::Store(stored) => {
                let Stored { store, images, .. } = &**stored;
                if store.blobs.contains(digest) {
                    return take(&mut store.blobs.open_blob(digest)?);
                }
                for id in images.iter().flat_map(|(image, _)| &image.layers) {
                    if store.layers.load(id)?.diff_id == digest {
                        let tar = store.layers.path(id).join(knarr_layer::store::TAR);
                        return take(&mut std::fs::File::from(knarr_fs::open_read(&tar)?));
                    }
                }
                Err(knarr_cas::Error::Missing { digest }.into())
            }
        }
    }
}

impl Store {
    /// The manifest that a copy of the image has: its `own` where all its blobs are here, else one
    /// of plain tars.
    pub(crate) fn manifest_for_copies(&self, image: &Image, own: Vec<u8>) -> Result<Vec<u8>> {
        let tars = self.tars(image)?;
        if let Ok(Document::Manifest(manifest)) = Document::parse(&own, "") {
            let here = |digest: Digest| {
                tars.iter().any(|(tar, _)| *tar == digest) || self.blobs.contains(digest)
            };
            if manifest.layers.iter().all(|layer| here(layer.digest)) {
                return Ok(own);
            }
        }
        let config = self.config_bytes(image.id)?;
        load::plain_manifest(&config, tars.into_iter()).map_err(|cause| Error::Config {
            name: image.id.to_string(),
            cause,
        })
    }
}

fn failed(reference: &Reference, cause: knarr_distribution::Error) -> Error {
    Error::Pull {
        name: reference.familiar(),
        cause: Box::new(cause),
    }
}

/// The entry of a layout's index that `name` means; without a name the only one.
fn entry(archive: &Archive, name: Option<&str>) -> Result<Descriptor> {
    let bytes = archive
        .read("index.json", DOCUMENT_LIMIT)?
        .ok_or_else(|| not_an_archive(&archive.label))?;
    let Document::Index(index) =
        Document::parse(&bytes, media_type::OCI_INDEX).map_err(|cause| Error::Manifest {
            name: format!("index.json in {}", archive.label),
            cause,
        })?
    else {
        return Err(archive.damaged("its index.json is no index".to_owned()));
    };
    let names = |descriptor: &Descriptor| -> Vec<String> {
        [
            "org.opencontainers.image.ref.name",
            "io.containerd.image.name",
        ]
        .iter()
        .filter_map(|key| descriptor.annotations.get(*key).cloned())
        .collect()
    };
    let mut fitting: Vec<&Descriptor> = index.manifests.iter().collect();
    if let Some(name) = name {
        fitting.retain(|descriptor| names(descriptor).iter().any(|known| known == name));
    }
    match fitting.as_slice() {
        [single] => Ok((*single).clone()),
        _ => {
            let known: Vec<String> = index.manifests.iter().flat_map(names).collect();
            Err(Error::NotFound {
                name: match name {
                    Some(name) => format!("{name} in {}", archive.label),
                    None => format!(
                        "{} has {} images, and none is named",
                        archive.label,
                        index.manifests.len()
                    ),
                },
                near: known.into_iter().take(5).collect(),
            })
        }
    }
}

/// The image of a docker-archive that `name` means; without a name the only one.
fn image(archive: &Archive, name: Option<&Reference>) -> Result<Found> {
    let bytes = archive
        .read("manifest.json", DOCUMENT_LIMIT)?
        .ok_or_else(|| not_an_archive(&archive.label))?;
    let mut found = load::docker_archive(archive, &bytes)?;
    let count = found.len();
    let at = match name {
        Some(name) => found.iter().position(|image| image.names.contains(name)),
        None => (count == 1).then_some(0),
    };
    match at {
        Some(at) => Ok(found.swap_remove(at)),
        None => {
            let known = found.iter().flat_map(|image| &image.names);
            Err(Error::NotFound {
                name: match name {
                    Some(name) => format!("{} in {}", name.familiar(), archive.label),
                    None => format!("{} has {count} images, and none is named", archive.label),
                },
                near: known.map(Reference::familiar).take(5).collect(),
            })
        }
    }
}

/// A registry's blob as a stream.
struct Pieces<'s, 'c> {
    blob: Blob<'s, 'c>,
    piece: Bytes,
    /// What the registry said, which is the better thing to tell.
    failure: Option<knarr_distribution::Error>,
}

impl Read for Pieces<'_, '_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while !self.piece.has_remaining() {
            match self.blob.chunk() {
                Ok(Some(piece)) => self.piece = piece,
                Ok(None) => return Ok(0),
                Err(cause) => {
                    self.failure = Some(cause);
                    return Err(io::ErrorKind::ConnectionAborted.into());
                }
            }
        }
        let count = self.piece.len().min(buffer.len());
        if let Some(to) = buffer.get_mut(..count) {
            self.piece.copy_to_slice(to);
        }
        Ok(count)
    }
}
