//! From a root file system.

use std::fs::File;
use std::io::Read;

use knarr_fs::failpoint;

use knarr_spec::image::{ExecutionConfig, History, ImageConfig, RootFs};
use knarr_spec::{Platform, Reference};

use crate::archive::label;
use crate::assemble::Assembled;
use crate::inflate::{self, Failure, Hashing};
use crate::{Error, Image, ImportOptions, Result, Source, Store, change};

impl Store {
    /// `import`: makes an image of one layer of a root file system tar (compressed or plain).
    ///
    /// # Errors
    /// A damaged tar, a wrong change, or the store's.
    pub fn import(&self, source: Source<'_>, options: &ImportOptions) -> Result<Image> {
        self.or_collect(|| self.import_layer(source, options))
    }

    fn import_layer(&self, source: Source<'_>, options: &ImportOptions) -> Result<Image> {
        let label = label(&source);
        // A wrong change must not cost the time of an import.
        let mut execution = ExecutionConfig::default();
        for instruction in &options.changes {
            change::apply(&mut execution, instruction)?;
        }
        self.layers.sweep()?;
        let mut file;
        let stream: &mut dyn Read = match source {
            Source::Path(path) => {
                file = File::from(knarr_fs::open_read(path)?);
                &mut file
            }
            Source::File(opened) => {
                file = opened;
                &mut file
            }
            Source::Stream(stream) => stream,
        };
        let mut ingest = self.layers.ingest(None)?;
        match inflate::copy(stream, Hashing::Never, &mut ingest) {
            Ok(_) => {}
            Err(Failure::Source(cause) | Failure::Stream(cause, _)) => {
                return Err(Error::ArchiveRead {
                    archive: label,
                    cause,
                });
            }
            Err(Failure::Sink(cause)) => {
                return Err(match crate::assemble::of_the_store(cause) {
                    Ok(cause) => Error::LayerStore(cause),
                    Err(cause) => Error::ArchiveRead {
                        archive: label,
                        cause,
                    },
                });
            }
        }
        failpoint!("import.taken");
        let mut assembled = Assembled::default();
        assembled.push(ingest.finish_and_hold(&[])?);
        failpoint!("import.layer-present");
        let config = describe(options, execution, &assembled, &label);
        let reference = options.reference.as_ref();
        let image = self.store_made(&config, &assembled, reference, &label)?;
        let name = reference.map(Reference::familiar);
        self.announce.image("import", image.id, name);
        Ok(image)
    }
}

fn describe(
    options: &ImportOptions,
    config: ExecutionConfig,
    assembled: &Assembled,
    label: &str,
) -> ImageConfig {
    let platform = options.platform.clone().unwrap_or_else(Platform::host);
    let created = Some(jiff::Timestamp::now().to_string());
    let comment = options
        .message
        .clone()
        .unwrap_or_else(|| format!("Imported from {label}"));
    ImageConfig {
        created: created.clone(),
        architecture: platform.architecture,
        variant: platform.variant,
        os: platform.os,
        config,
        rootfs: RootFs {
            diff_ids: assembled.layers.iter().map(|l| l.diff_id).collect(),
            ..RootFs::default()
        },
        history: vec![History {
            created,
            comment: Some(comment),
            ..History::default()
        }],
        ..ImageConfig::default()
    }
}
