//! A copy into the store: the same as a load.

use std::io::Read as _;
use std::sync::atomic::AtomicBool;
use std::thread::available_parallelism;

use knarr_spec::Digest;
use knarr_spec::image::Manifest;
use knarr_spec::manifest::{DOCUMENT_LIMIT, Document};

use super::source::Source;
use super::{CopyOptions, Top};
use crate::assemble::{Brought, Provider, Take, Wanted};
use crate::store::NewImage;
use crate::{Error, Progress, Result, Store, select};

impl Store {
    pub(super) fn copy_in(
        &self,
        source: &Source<'_>,
        name: &str,
        top: Top,
        target: &str,
        options: &CopyOptions,
        progress: &dyn Progress,
    ) -> Result<Digest> {
        let target = crate::store::parse_name(target)?;
        if target.digest().is_some() {
            return Err(Error::TagWithDigest { name: target });
        }
        let digest = top.digest();
        let Document::Manifest(manifest) = top.document else {
            return Err(Error::Unsupported {
                what: "a whole index in the store".to_owned(),
            });
        };
        self.or_collect(|| {
            self.layers.sweep()?;
            let mut config = Vec::new();
            source.blob(&manifest.config, &mut |bytes| {
                let read = bytes.take(DOCUMENT_LIMIT).read_to_end(&mut config);
                read.map(drop).map_err(|cause| Error::ArchiveRead {
                    archive: name.to_owned(),
                    cause,
                })
            })?;
            super::check(name, &manifest.config, knarr_cas::Hasher::digest(&config))?;
            let platform = options.platform.as_ref();
            let parsed = select::check_config(name, &config, manifest.layers.len(), platform)?;
            let wanted = crate::pull::wanted(&manifest, &parsed.rootfs.diff_ids);
            let layers = Layers {
                source,
                manifest: &manifest,
            };
            let workers = available_parallelism().map_or(2, usize::from).min(8);
            let context = self.context(name.to_owned(), progress);
            let assembled = context.assemble(&wanted, workers, &layers)?;
            self.store_image(&NewImage {
                manifest: &top.bytes,
                config: &config,
                assembled: &assembled,
                names: &[target],
            })?;
            Ok(digest)
        })
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
