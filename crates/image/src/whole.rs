//! Whole indexes: an index that came with all its images, and is kept, moved and removed with them.
//!
//! ```text
//! refs/…/_tags/1     the image that is meant where no platform is asked for, and: index sha256:I
//! blobs/sha256/I     the index, byte for byte; indexes that are nested in it
//!                    the manifests of all its images, which are images of their own (`<repository>@…`)
//!                    what of it is no image (attestations): manifests, and every blob of those
//! ```
//!
//! The names hold it together: what an index needs is kept while some name means it, and its images
//! go with the last name that does, unless they have other names.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::io::Read as _;

use knarr_spec::image::{Descriptor, Index, Manifest, media_type};
use knarr_spec::manifest::{DOCUMENT_LIMIT, Document};
use knarr_spec::{Digest, Platform, Reference};
use serde_json::Value;

use crate::copy::Top;
use crate::names::{AllNames, Meaning};
use crate::store::Named;
use crate::{Error, Hold, Image, ImageId, Result, Store, select};

/// How deep indexes may be nested.
pub(crate) const DEPTH: usize = 4;
/// The most manifests that an index and those nested in it may have together.
const LIMIT: usize = 10_000;
/// What BuildKit says of an attestation: the digest of the image that it is about.
const ABOUT: &str = "vnd.docker.reference.digest";

/// A part of an index.
pub(crate) enum Part<'a> {
    /// The index itself or one that is nested in it; its parts came before.
    Index(&'a [u8]),
    /// An image: its manifest, and the manifest's digest and exact bytes.
    Image(Digest, &'a Manifest, &'a [u8]),
    /// What is no image.
    Other(&'a Manifest, &'a [u8]),
}

/// A manifest or index with its bytes; `None` where it is not there.
pub(crate) type Found = Option<(Vec<u8>, Document)>;

/// Visits every part of an index once, an index after its parts. What `fetch` does not find is left
/// out: indexes may be sparse.
pub(crate) fn walk(
    name: &str,
    top: (&[u8], &Index),
    fetch: &mut dyn FnMut(&Descriptor) -> Result<Found>,
    visit: &mut dyn FnMut(Part<'_>) -> Result<()>,
) -> Result<()> {
    let mut walk = Walk {
        name,
        fetch,
        visit,
        seen: HashSet::new(),
    };
    walk.index(top.0, top.1, DEPTH)
}

struct Walk<'a> {
    name: &'a str,
    fetch: &'a mut dyn FnMut(&Descriptor) -> Result<Found>,
    visit: &'a mut dyn FnMut(Part<'_>) -> Result<()>,
    seen: HashSet<Digest>,
}

impl Walk<'_> {
    fn index(&mut self, bytes: &[u8], index: &Index, depth: usize) -> Result<()> {
        if depth == 0 {
            return Err(too_deep(self.name));
        }
        for entry in &index.manifests {
            if !self.seen.insert(entry.digest) {
                continue;
            }
            if self.seen.len() > LIMIT {
                return Err(Error::NotAnImage {
                    name: self.name.to_owned(),
                    what: format!("its indexes list more than {LIMIT} manifests"),
                });
            }
            match (self.fetch)(entry)? {
                None => {}
                Some((bytes, Document::Index(nested))) => self.index(&bytes, &nested, depth - 1)?,
                Some((bytes, Document::Manifest(manifest))) => {
                    (self.visit)(match select::is_image(entry) && is_image(&manifest) {
                        true => Part::Image(entry.digest, &manifest, &bytes),
                        false => Part::Other(&manifest, &bytes),
                    })?;
                }
            }
        }
        (self.visit)(Part::Index(bytes))
    }
}

/// Whether a manifest is that of a container image.
fn is_image(manifest: &Manifest) -> bool {
    select::check_types("", manifest).is_ok()
}

pub(crate) fn too_deep(name: &str) -> Error {
    Error::NotAnImage {
        name: name.to_owned(),
        what: "its indexes are nested too deeply".to_owned(),
    }
}

/// What is here of an index.
#[derive(Debug, Default)]
pub(crate) struct Parts {
    /// What it cannot be without: the indexes, and what is no image with all blobs of that.
    pub(crate) needed: Vec<Digest>,
    /// The manifests of its images, and those.
    pub(crate) images: Vec<(Digest, ImageId)>,
    /// The layers' blobs, which may have been kept.
    pub(crate) layers: Vec<Digest>,
}

impl Parts {
    /// Everything in the blob store that may be its.
    pub(crate) fn blobs(&self) -> impl Iterator<Item = Digest> {
        let images = self.images.iter();
        let images = images.flat_map(|(manifest, id)| [*manifest, id.digest()]);
        let rest = self.needed.iter().chain(&self.layers).copied();
        images.chain(rest)
    }
}

/// Where a whole index goes.
pub(crate) trait Export {
    /// Takes the blobs of an image; gives the manifest that it has there. `own` is what the index
    /// here names.
    fn image(&mut self, image: Image, hold: Hold, own: Vec<u8>) -> Result<Top>;
    /// Takes the blobs of what is no image.
    fn other(&mut self, manifest: &Manifest) -> Result<()>;
    /// Takes a manifest or nested index, after everything that it names.
    fn document(&mut self, top: &Top) -> Result<()>;
}

impl Store {
    /// A stored manifest or index; `None` where it is not here or damaged. Changes nothing.
    fn document(&self, digest: Digest) -> Result<Found> {
        let file = match self.blobs.open_blob(digest) {
            Ok(file) => file,
            Err(error) if error.is_gone() => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        let mut bytes = Vec::new();
        let path = self.blobs.path(digest);
        file.take(DOCUMENT_LIMIT + 1)
            .read_to_end(&mut bytes)
            .map_err(knarr_fs::Error::of_io("read", "read", &path))?;
        if knarr_cas::Hasher::digest(&bytes) != digest {
            return Ok(None);
        }
        Ok(Document::parse(&bytes, "")
            .ok()
            .map(|parsed| (bytes, parsed)))
    }

    /// The index that a name means, where all of it was brought.
    pub(crate) fn index_of(&self, name: &str) -> Result<Option<Digest>> {
        let (named, _) = self.find(name)?;
        match named {
            Named::Name(name) => Ok(self.names.meaning(&name)?.and_then(|meaning| meaning.index)),
            Named::Id => Ok(None),
        }
    }

    /// What is here of an index. A damaged or missing part hides what it names.
    pub(crate) fn parts(&self, index: Digest) -> Result<Parts> {
        let mut parts = Parts::default();
        parts.needed.push(index);
        let Some((bytes, Document::Index(top))) = self.document(index)? else {
            return Ok(parts);
        };
        let mut indexes = Vec::new();
        let walked = walk(
            "",
            (&bytes, &top),
            &mut |entry| {
                let found = self.document(entry.digest)?;
                if matches!(
                    entry.media_type.as_str(),
                    media_type::OCI_INDEX | media_type::DOCKER_LIST
                ) {
                    indexes.push(entry.digest);
                }
                Ok(found)
            },
            &mut |part| {
                match part {
                    Part::Index(_) => {}
                    Part::Image(digest, manifest, _) => {
                        parts.images.push((digest, manifest.config.digest.into()));
                        parts
                            .layers
                            .extend(manifest.layers.iter().map(|l| l.digest));
                    }
                    Part::Other(manifest, bytes) => {
                        parts.needed.push(knarr_cas::Hasher::digest(bytes));
                        parts.needed.extend(blobs_of(manifest).map(|b| b.digest));
                    }
                }
                Ok(())
            },
        );
        // One that is too large or deep was never stored.
        match walked {
            Ok(()) | Err(Error::NotAnImage { .. }) => {}
            Err(error) => return Err(error),
        }
        parts.needed.extend(indexes);
        Ok(parts)
    }

    /// The image of a stored index for a platform; without one the host's, or else the first.
    pub(crate) fn image_of_index(
        &self,
        name: &str,
        index: Digest,
        platform: Option<&Platform>,
    ) -> Result<ImageId> {
        let read = |digest| {
            let missing = knarr_cas::Error::Missing { digest };
            self.document(digest)?.ok_or_else(|| missing.into())
        };
        let fetch = |entry: &Descriptor| read(entry.digest);
        match select::choose(name, platform, read(index)?, fetch) {
            Ok(chosen) => Ok(chosen.manifest.config.digest.into()),
            Err(error @ Error::NoPlatform { .. }) if platform.is_none() => {
                let here = self.parts(index)?.images;
                let mut here = here.into_iter().map(|(_, id)| id);
                here.find(|id| self.records.exists(*id)).ok_or(error)
            }
            Err(error) => Err(error),
        }
    }

    /// [`resolve_and_hold`](Self::resolve_and_hold), and of a whole index the image for `platform`.
    ///
    /// # Errors
    /// As [`resolve`](Self::resolve); [`Error::Platform`] where there is no image for it.
    pub fn resolve_platform(
        &self,
        name: &str,
        platform: Option<&Platform>,
    ) -> Result<(Image, Hold)> {
        let (image, hold) = self.resolve_and_hold(name)?;
        let Some(wanted) = platform.filter(|wanted| !image.platform.satisfies(wanted)) else {
            return Ok((image, hold));
        };
        if let Some(index) = self.index_of(name)?
            && let Ok(id) = self.image_of_index(name, index, platform)
            && let Some(found) = self.hold(id)?
        {
            return Ok(found);
        }
        Err(Error::Platform {
            name: name.to_owned(),
            wanted: Box::new(wanted.clone()),
            actual: Box::new(image.platform),
        })
    }

    /// An image by its id, with a lock that keeps it.
    fn hold(&self, id: ImageId) -> Result<Option<(Image, Hold)>> {
        let Some(lock) = self.records.hold(id)? else {
            return Ok(None);
        };
        let record = self.records.read(id)?.filter(|record| !record.removed);
        Ok(record.map(|record| (record.image, Hold::of(lock))))
    }

    /// Names an index that is whole, and with it one of its images, which it gives, and whether the
    /// first name meant something else before.
    pub(crate) fn name_index(
        &self,
        label: &str,
        index: Digest,
        platform: Option<&Platform>,
        names: &[Reference],
    ) -> Result<(Image, bool)> {
        let id = self.image_of_index(label, index, platform)?;
        let Some((image, _hold)) = self.hold(id)? else {
            // Removed a moment ago.
            return Err(self.not_whole(label, id.digest()));
        };
        let newer = self.name(names, Meaning::of(id, Some(index)))?;
        Ok((image, newer))
    }

    fn not_whole(&self, name: &str, lacks: Digest) -> Error {
        Error::NotWhole {
            name: name.to_owned(),
            lacks,
        }
    }

    /// Gives an index with all its parts to `export`; what the index is there. It is not given itself.
    pub(crate) fn export(&self, name: &str, index: Digest, to: &mut dyn Export) -> Result<Top> {
        let mut done = BTreeMap::new();
        self.export_document(name, index, to, &mut done, DEPTH)
    }

    fn export_document(
        &self,
        name: &str,
        digest: Digest,
        to: &mut dyn Export,
        done: &mut BTreeMap<Digest, Descriptor>,
        depth: usize,
    ) -> Result<Top> {
        let Some((bytes, document)) = self.document(digest)? else {
            return Err(self.not_whole(name, digest));
        };
        let index = match document {
            Document::Index(index) => index,
            Document::Manifest(manifest) if is_image(&manifest) => {
                let id = ImageId::from(manifest.config.digest);
                let Some((image, hold)) = self.hold(id)? else {
                    return Err(self.not_whole(name, digest));
                };
                return to.image(image, hold, bytes);
            }
            Document::Manifest(manifest) => {
                to.other(&manifest)?;
                return Top::parse(bytes, "", name);
            }
        };
        if depth == 0 {
            return Err(too_deep(name));
        }
        for entry in &index.manifests {
            if done.contains_key(&entry.digest) {
                continue;
            }
            // Where it came from lacked it too.
            if !select::is_image(entry) && !self.blobs.contains(entry.digest) {
                continue;
            }
            let top = self.export_document(name, entry.digest, to, done, depth - 1)?;
            to.document(&top)?;
            done.insert(entry.digest, top.descriptor());
        }
        let bytes = rewritten(&bytes, &index, done).map_err(|cause| Error::Config {
            name: name.to_owned(),
            cause,
        })?;
        Top::parse(bytes, "", name)
    }

    /// The images that go with the names in `gone`, each with the names that it loses: those of
    /// indexes that no other name means.
    pub(crate) fn going_along(
        &self,
        all: &AllNames,
        gone: &[Reference],
        main: ImageId,
    ) -> Result<Vec<(ImageId, Vec<Reference>)>> {
        let (mut going, mut staying) = (BTreeSet::new(), BTreeSet::new());
        for (name, index) in &all.indexes {
            match gone.contains(name) {
                true => going.insert(*index),
                false => staying.insert(*index),
            };
        }
        going.retain(|index| !staying.contains(index));
        if going.is_empty() {
            return Ok(Vec::new());
        }
        let mut needed = HashSet::new();
        for index in staying {
            needed.extend(self.parts(index)?.images.into_iter().map(|(m, _)| m));
        }
        let mut found: BTreeMap<ImageId, Vec<Reference>> = BTreeMap::new();
        for index in going {
            for (manifest, id) in self.parts(index)?.images {
                if id == main || needed.contains(&manifest) || !self.records.exists(id) {
                    continue;
                }
                let names = all.of(id).filter(|name| name.digest() == Some(manifest));
                found.entry(id).or_default().extend(names.cloned());
            }
        }
        Ok(found.into_iter().collect())
    }

    /// The images of whole indexes that some name means, beside the one that the name itself means.
    pub(crate) fn parts_of_indexes(&self, all: &AllNames) -> Result<HashSet<ImageId>> {
        let indexes: BTreeSet<Digest> = all.indexes.values().copied().collect();
        let mut found = HashSet::new();
        for index in indexes {
            found.extend(self.parts(index)?.images.into_iter().map(|(_, id)| id));
        }
        Ok(found)
    }
}

/// The blobs that a manifest names.
pub(crate) fn blobs_of(manifest: &Manifest) -> impl Iterator<Item = &Descriptor> {
    std::iter::once(&manifest.config).chain(&manifest.layers)
}

/// An index with other manifests in the place of those that are different now; the same bytes where
/// none is.
fn rewritten(
    bytes: &[u8],
    index: &Index,
    now: &BTreeMap<Digest, Descriptor>,
) -> Result<Vec<u8>, serde_json::Error> {
    let same = |entry: &Descriptor| {
        now.get(&entry.digest)
            .is_none_or(|n| n.digest == entry.digest)
    };
    if index.manifests.iter().all(same) {
        return Ok(bytes.to_vec());
    }
    // As a value, so that what is not known here stays.
    let mut value: Value = serde_json::from_slice(bytes)?;
    let entries = value.get_mut("manifests").and_then(Value::as_array_mut);
    let mut becomes_oci = false;
    for (entry, was) in entries.into_iter().flatten().zip(&index.manifests) {
        if let Some(now) = now.get(&was.digest).filter(|now| now.digest != was.digest) {
            becomes_oci |= now.media_type == media_type::OCI_MANIFEST;
            if let Some(fields) = entry.as_object_mut() {
                fields.insert("mediaType".to_owned(), now.media_type.clone().into());
                fields.insert("digest".to_owned(), now.digest.to_string().into());
                fields.insert("size".to_owned(), now.size.into());
            }
        }
        if let Some(about) = entry.pointer_mut(&format!("/annotations/{ABOUT}"))
            && let Some(was) = about.as_str().and_then(|about| about.parse().ok())
            && let Some(now) = now.get(&was)
        {
            *about = now.digest.to_string().into();
        }
    }
    // Docker's list is for Docker's manifests.
    if becomes_oci
        && index.media_type.as_deref() == Some(media_type::DOCKER_LIST)
        && let Some(kind) = value.get_mut("mediaType")
    {
        *kind = media_type::OCI_INDEX.into();
    }
    serde_json::to_vec(&value)
}
