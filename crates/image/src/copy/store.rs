//! A copy into the store: the same as a load.

use std::io::Read as _;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::thread::available_parallelism;

use knarr_fs::Lock;
use knarr_spec::image::{Descriptor, Index, Manifest};
use knarr_spec::manifest::{DOCUMENT_LIMIT, Document};
use knarr_spec::{Digest, Platform, Reference};

use super::source::Source;
use super::{CopyOptions, Top};
use crate::archive::Archive;
use crate::assemble::{Brought, Provider, Take, Wanted};
use crate::store::NewImage;
use crate::whole::{self, Part};
use crate::{Error, Image, Progress, Result, Store, select};

impl Store {
    pub(super) fn copy_in(
        &self,
        source: &Source<'_>,
        name: &str,
        top: &Top,
        target: &str,
        options: &CopyOptions,
        progress: &dyn Progress,
    ) -> Result<Digest> {
        let target = crate::store::parse_name(target)?;
        if target.digest().is_some() {
            return Err(Error::TagWithDigest { name: target });
        }
        let coming = Coming {
            store: self,
            source,
            name,
            progress,
        };
        self.or_collect(|| {
            self.layers.sweep()?;
            let platform = options.platform.as_ref();
            let names = std::slice::from_ref(&target);
            match &top.document {
                Document::Manifest(manifest) => {
                    coming.image(manifest, &top.bytes, platform, names)?;
                }
                Document::Index(index) => {
                    coming.index(top, index, platform, names)?;
                }
            }
            Ok(top.digest())
        })
    }

    /// A whole index from an archive, where the entry of the archive's index is one.
    pub(crate) fn load_index(
        &self,
        archive: &Arc<Archive>,
        name: &str,
        entry: &Descriptor,
        names: &[Reference],
        progress: &dyn Progress,
    ) -> Result<Option<Image>> {
        let source = Source::Layout(Arc::clone(archive), Box::new(entry.clone()));
        let top = super::fetch(&source, name, entry)?;
        let Document::Index(index) = &top.document else {
            return Ok(None);
        };
        let coming = Coming {
            store: self,
            source: &source,
            name,
            progress,
        };
        coming.index(&top, index, None, names).map(Some)
    }
}

/// What is on its way in.
struct Coming<'a> {
    store: &'a Store,
    source: &'a Source<'a>,
    name: &'a str,
    progress: &'a dyn Progress,
}

impl Coming<'_> {
    /// One image.
    fn image(
        &self,
        manifest: &Manifest,
        bytes: &[u8],
        platform: Option<&Platform>,
        names: &[Reference],
    ) -> Result<Image> {
        let Self {
            store,
            source,
            name,
            ..
        } = self;
        let mut config = Vec::new();
        source.blob(&manifest.config, &mut |bytes| {
            let read = bytes.take(DOCUMENT_LIMIT).read_to_end(&mut config);
            read.map(drop).map_err(|cause| self.unreadable(cause))
        })?;
        super::check(name, &manifest.config, knarr_cas::Hasher::digest(&config))?;
        let parsed = select::check_config(name, &config, manifest.layers.len(), platform)?;
        let wanted = crate::pull::wanted(manifest, &parsed.rootfs.diff_ids);
        let layers = Layers { source, manifest };
        let workers = available_parallelism().map_or(2, usize::from).min(8);
        let context = store.context((*name).to_owned(), self.progress);
        let assembled = context.assemble(&wanted, workers, &layers)?;
        let stored = store.store_image(&NewImage {
            manifest: bytes,
            config: &config,
            assembled: &assembled,
            names,
            index: None,
        })?;
        Ok(stored.image)
    }

    /// An index with everything that it names; the image that the names mean where no platform is
    /// asked for.
    fn index(
        &self,
        top: &Top,
        index: &Index,
        platform: Option<&Platform>,
        names: &[Reference],
    ) -> Result<Image> {
        let blobs = &self.store.blobs;
        let mut fetch = |entry: &Descriptor| {
            if !self.source.has_document(entry.digest)? {
                return Ok(None);
            }
            let found = super::fetch(self.source, self.name, entry)?;
            Ok(Some((found.bytes, found.document)))
        };
        // Kept until they are named.
        let mut holds = Vec::new();
        whole::walk(self.name, (&top.bytes, index), &mut fetch, &mut |part| {
            match part {
                Part::Index(bytes) => holds.push(blobs.put_and_hold(bytes)?.1),
                Part::Image(digest, manifest, bytes) => {
                    let own: Vec<Reference> =
                        names.iter().map(|name| name.with_digest(digest)).collect();
                    self.image(manifest, bytes, None, &own)?;
                    holds.extend(blobs.hold(digest)?);
                }
                Part::Other(manifest, bytes) => {
                    for blob in whole::blobs_of(manifest) {
                        holds.push(self.blob(blob)?);
                    }
                    holds.push(blobs.put_and_hold(bytes)?.1);
                }
            }
            Ok(())
        })?;
        let digest = top.digest();
        let mut all = names.to_vec();
        all.extend(names.iter().map(|name| name.with_digest(digest)));
        let (image, _) = self.store.name_index(self.name, digest, platform, &all)?;
        Ok(image)
    }

    /// A blob as it is, held.
    fn blob(&self, descriptor: &Descriptor) -> Result<Lock> {
        let blobs = &self.store.blobs;
        if let Some(hold) = blobs.hold(descriptor.digest)? {
            return Ok(hold);
        }
        let mut writer = blobs.writer()?;
        let mut buffer = vec![0; 256 << 10];
        self.source.blob(descriptor, &mut |bytes| {
            loop {
                let count = bytes.read(&mut buffer);
                let count = count.map_err(|cause| self.unreadable(cause))?;
                match buffer.get(..count) {
                    None | Some([]) => return Ok(()),
                    Some(bytes) => writer.write(bytes)?,
                }
                if writer.size() > descriptor.size {
                    return Err(Error::NotItsSize {
                        name: self.name.to_owned(),
                        blob: descriptor.digest,
                        expected: descriptor.size,
                        got: writer.size(),
                    });
                }
            }
        })?;
        Ok(writer.commit(Some(descriptor.digest))?.1)
    }

    fn unreadable(&self, cause: std::io::Error) -> Error {
        Error::ArchiveRead {
            archive: self.name.to_owned(),
            cause,
        }
    }
}

/// Layers from wherever the copy comes from.
struct Layers<'a> {
    source: &'a Source<'a>,
    manifest: &'a Manifest,
}

impl Provider for Layers<'_> {
    fn provide(&self, wanted: &Wanted, _stop: &AtomicBool, take: &Take<'_>) -> Result<Brought> {
        let descriptor = self.manifest.layers.get(wanted.index);
        let descriptor = descriptor.ok_or(Error::Worker)?;
        let mut ingest = None;
        self.source.blob(descriptor, &mut |bytes| {
            ingest = Some(take(bytes)?);
            Ok(())
        })?;
        ingest.map(Brought::of).ok_or(Error::Worker)
    }
}
