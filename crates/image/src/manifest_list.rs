//! `manifest`: indexes of images for several platforms, made by hand.
//!
//! A list in the making is a file `manifests/<its name, with slashes as %2F>.json` below the data
//! root: an OCI image index, its entries' repositories in an annotation that a push takes out. Who
//! changes one holds the lock of the folder, so that two changes at once are both kept.

use std::collections::BTreeMap;
use std::path::PathBuf;

use knarr_distribution::{Fetched, Session};
use knarr_fs::{Durability, Lock};
use knarr_spec::image::{Descriptor, Index, media_type};
use knarr_spec::manifest::Document;
use knarr_spec::{Digest, Platform, Reference};

use crate::{Error, Result, Store, select};

/// Where an entry's image is; of no concern to the registry.
const FROM: &str = "knarr.from";

/// A manifest list (image index) that is being made, alone in this process's hands.
#[derive(Debug)]
pub struct ManifestList {
    reference: Reference,
    path: PathBuf,
    index: Index,
    _lock: Lock,
}

/// What an image of a list is said to be; what is `None` or empty stays.
#[derive(Debug, Clone, Default)]
pub struct ManifestNote {
    /// `os`.
    pub os: Option<String>,
    /// `architecture`.
    pub architecture: Option<String>,
    /// `variant`.
    pub variant: Option<String>,
    /// `os.version`.
    pub os_version: Option<String>,
    /// Annotations of the entry.
    pub annotations: BTreeMap<String, String>,
}

impl Store {
    /// A new list; with `amend` also one that is there.
    ///
    /// # Errors
    /// [`Error::ListExists`], [`Error::ListDamaged`], or where the folder cannot be used.
    pub fn create_manifest_list(&self, reference: &Reference, amend: bool) -> Result<ManifestList> {
        let folder = self.data_root.join("manifests");
        knarr_fs::create_dir_all(&folder)?;
        let lock = Lock::exclusive(&folder.join(".lock"))?;
        let path = self.list_path(reference);
        let index = match knarr_fs::read(&path) {
            Err(error) if error.is_not_found() => Index {
                schema_version: 2,
                media_type: Some(media_type::OCI_INDEX.to_owned()),
                manifests: Vec::new(),
                annotations: BTreeMap::new(),
            },
            Err(error) => return Err(error.into()),
            Ok(_) if !amend => {
                return Err(Error::ListExists {
                    name: reference.familiar(),
                });
            }
            Ok(bytes) => serde_json::from_slice(&bytes).map_err(|cause| Error::ListDamaged {
                name: reference.familiar(),
                cause,
            })?,
        };
        Ok(ManifestList {
            reference: reference.clone(),
            path,
            index,
            _lock: lock,
        })
    }

    /// A list that is there.
    ///
    /// # Errors
    /// [`Error::ListNotFound`], [`Error::ListDamaged`].
    pub fn manifest_list(&self, reference: &Reference) -> Result<ManifestList> {
        if !self.list_path(reference).exists() {
            return Err(Error::ListNotFound {
                name: reference.familiar(),
            });
        }
        self.create_manifest_list(reference, true)
    }

    /// Forgets a list, also a damaged one.
    ///
    /// # Errors
    /// [`Error::ListNotFound`].
    pub fn remove_manifest_list(&self, reference: &Reference) -> Result<()> {
        match self.manifest_list(reference) {
            Ok(list) => list.remove(),
            Err(Error::ListDamaged { .. }) => {
                Ok(knarr_fs::remove_file(&self.list_path(reference))?)
            }
            Err(error) => Err(error),
        }
    }

    fn list_path(&self, reference: &Reference) -> PathBuf {
        let file = format!("{}.json", reference.to_string().replace('/', "%2F"));
        self.data_root.join("manifests").join(file)
    }
}

impl ManifestList {
    /// Its name.
    pub fn reference(&self) -> &Reference {
        &self.reference
    }

    /// The index as a registry gets it.
    pub fn index(&self) -> Index {
        let mut index = self.index.clone();
        for entry in &mut index.manifests {
            entry.annotations.remove(FROM);
        }
        index
    }

    /// Writes it down.
    ///
    /// # Errors
    /// Where the data root cannot be written.
    pub fn save(&self) -> Result<()> {
        // Plain values always serialize.
        let bytes = serde_json::to_vec_pretty(&self.index).unwrap_or_default();
        Ok(knarr_fs::write_atomic(
            &self.path,
            &bytes,
            Durability::Durable,
        )?)
    }

    /// Forgets it.
    ///
    /// # Errors
    /// Where the data root cannot be written.
    pub fn remove(self) -> Result<()> {
        Ok(knarr_fs::remove_file(&self.path)?)
    }

    /// Adds the image that a registry has: of an index the one for `platform` (the host's, where that
    /// is `None`), or `all`.
    ///
    /// # Errors
    /// What the registry answers, [`Error::NoPlatform`].
    pub fn add(
        &mut self,
        session: &Session<'_>,
        reference: &Reference,
        platform: Option<&Platform>,
        all: bool,
    ) -> Result<()> {
        let fetched = session.manifest(reference).map_err(reading(reference))?;
        let entries = match &fetched.document {
            Document::Manifest(_) => vec![described(session, reference, &fetched)?],
            Document::Index(index) if all => index.manifests.clone(),
            Document::Index(index) => {
                let host = Platform::host();
                let wanted = platform.unwrap_or(&host);
                vec![select::best(&reference.familiar(), wanted, index)?.clone()]
            }
        };
        for mut entry in entries {
            entry
                .annotations
                .insert(FROM.to_owned(), reference.full_name());
            // In the place of the same one.
            let known = &mut self.index.manifests;
            known.retain(|known| known.digest != entry.digest);
            known.push(entry);
        }
        Ok(())
    }

    /// Says more of one image: the one with `digest`, or the only one of `repository`.
    ///
    /// # Errors
    /// [`Error::ListEntry`].
    pub fn annotate(
        &mut self,
        typed: &str,
        digest: Option<Digest>,
        repository: Option<&Reference>,
        note: ManifestNote,
    ) -> Result<()> {
        let entry = self.entry(typed, digest, repository)?;
        let platform = entry.platform.get_or_insert_default();
        if let Some(os) = note.os {
            platform.os = os;
        }
        if let Some(architecture) = note.architecture {
            platform.architecture = architecture;
        }
        platform.variant = note.variant.or(platform.variant.take());
        platform.os_version = note.os_version.or(platform.os_version.take());
        entry.annotations.extend(note.annotations);
        Ok(())
    }

    /// Where the image is that [`ManifestList::annotate`] would change.
    ///
    /// # Errors
    /// [`Error::ListEntry`].
    pub fn source(
        &mut self,
        typed: &str,
        digest: Option<Digest>,
        repository: Option<&Reference>,
    ) -> Result<Reference> {
        source(self.entry(typed, digest, repository)?)
    }

    fn entry(
        &mut self,
        typed: &str,
        digest: Option<Digest>,
        repository: Option<&Reference>,
    ) -> Result<&mut Descriptor> {
        let place = repository.map(Reference::full_name);
        let known = &mut self.index.manifests;
        let mut fitting = known.iter_mut().filter(|entry| match digest {
            Some(digest) => entry.digest == digest,
            None => place.is_some() && entry.annotations.get(FROM) == place.as_ref(),
        });
        match (fitting.next(), fitting.count()) {
            (Some(entry), 0) => Ok(entry),
            (first, others) => Err(Error::ListEntry {
                typed: typed.to_owned(),
                count: usize::from(first.is_some()) + others,
            }),
        }
    }

    /// Pushes it, and first into its repository what is elsewhere.
    ///
    /// # Errors
    /// What the registries answer.
    pub fn push(&self, session: &Session<'_>) -> Result<Digest> {
        let to = &self.reference;
        let home = to.full_name();
        for entry in &self.index.manifests {
            if entry.annotations.get(FROM) != Some(&home) {
                bring(session, to, entry)?;
            }
        }
        let bytes = serde_json::to_vec(&self.index()).unwrap_or_default();
        session
            .put_manifest(to, media_type::OCI_INDEX, &bytes)
            .map_err(writing(to))
    }
}

/// Where an entry's image is.
fn source(entry: &Descriptor) -> Result<Reference> {
    let place = entry.annotations.get(FROM).map_or("", String::as_str);
    let reference: Reference = place.parse().map_err(|cause| Error::Name {
        name: place.to_owned(),
        cause,
    })?;
    Ok(reference.with_digest(entry.digest))
}

fn reading(reference: &Reference) -> impl Fn(knarr_distribution::Error) -> Error {
    let name = reference.familiar();
    move |cause| Error::Pull {
        name: name.clone(),
        cause: Box::new(cause),
    }
}

fn writing(reference: &Reference) -> impl Fn(knarr_distribution::Error) -> Error {
    let name = reference.familiar();
    move |cause| Error::Push {
        name: name.clone(),
        cause: Box::new(cause),
    }
}

/// An image with the platform that its configuration says.
fn described(session: &Session<'_>, reference: &Reference, image: &Fetched) -> Result<Descriptor> {
    let mut descriptor = image.descriptor();
    if let Document::Manifest(manifest) = &image.document {
        let bytes = session
            .document(reference, &manifest.config)
            .map_err(reading(reference))?;
        let platform: Platform = serde_json::from_slice(&bytes).unwrap_or_default();
        descriptor.platform = Some(platform).filter(|platform| !platform.os.is_empty());
    }
    Ok(descriptor)
}

/// Has an image in the list's repository too: blobs are taken over inside a registry, and else
/// passed on.
fn bring(session: &Session<'_>, to: &Reference, entry: &Descriptor) -> Result<()> {
    let source = source(entry)?;
    let fetched = session.manifest(&source).map_err(reading(&source))?;
    let Document::Manifest(manifest) = &fetched.document else {
        return Err(Error::ListOfLists {
            name: source.familiar(),
        });
    };
    let failed = writing(to);
    for blob in manifest.layers.iter().chain([&manifest.config]) {
        if session.has_blob(to, blob.digest).map_err(&failed)? == Some(blob.size) {
            continue;
        }
        if source.registry() == to.registry()
            && session
                .mount_blob(to, blob.digest, source.repository())
                .map_err(&failed)?
        {
            continue;
        }
        let mut open = || -> std::io::Result<Box<dyn std::io::Read>> {
            let blob = session.blob(&source, blob).map_err(std::io::Error::other)?;
            Ok(Box::new(blob))
        };
        session
            .push_blob(to, Some(blob.digest), &mut open, &|_| {})
            .map_err(&failed)?;
    }
    session
        .put_manifest(
            &to.with_digest(entry.digest),
            &fetched.media_type,
            &fetched.bytes,
        )
        .map_err(&failed)?;
    Ok(())
}
