//! From what a container changed.

use std::io::Write;

use knarr_fs::failpoint;
use knarr_spec::image::{ExecutionConfig, History, ImageConfig};
use knarr_spec::{Platform, Reference};

use crate::assemble::of_the_store;
use crate::{Error, Image, Result, Silent, Store, change};

/// How to commit.
#[derive(Debug, Clone, Default)]
pub struct CommitOptions {
    /// The name the image gets.
    pub reference: Option<Reference>,
    /// Who made it.
    pub author: Option<String>,
    /// The comment in its history.
    pub message: Option<String>,
    /// Dockerfile instructions applied to `config`.
    pub changes: Vec<String>,
    /// The command line that the history shows.
    pub created_by: String,
    /// What the image runs.
    pub config: ExecutionConfig,
}

/// Writes a layer as an uncompressed tar and gives how many members it has; none is no layer.
pub type WriteLayer<'a> =
    &'a mut dyn FnMut(&mut dyn Write) -> std::result::Result<u64, knarr_layer::Error>;

impl Store {
    /// `commit`: makes an image of `base` and one layer more, which `write` gives. The caller keeps
    /// the layers of `base` (an image, also a hidden one, that a container has).
    ///
    /// # Errors
    /// A wrong change, what `write` says, or the store's; nothing half-made stays.
    pub fn commit(
        &self,
        base: Option<&Image>,
        options: &CommitOptions,
        write: WriteLayer<'_>,
    ) -> Result<Image> {
        self.or_collect(|| self.commit_layer(base, options, write))
    }

    fn commit_layer(
        &self,
        base: Option<&Image>,
        options: &CommitOptions,
        write: WriteLayer<'_>,
    ) -> Result<Image> {
        // A wrong change must not cost the time of a commit.
        let mut execution = options.config.clone();
        for instruction in &options.changes {
            change::apply(&mut execution, instruction)?;
        }
        self.layers.sweep()?;
        let name = options
            .reference
            .as_ref()
            .map_or_else(|| "the new image".to_owned(), Reference::familiar);
        let parents = base.map(|base| base.layers.clone()).unwrap_or_default();
        let mut assembled = self.context(name.clone(), &Silent).hold_all(&parents)?;
        let mut ingest = self.layers.ingest(None)?;
        let members = write(&mut ingest).map_err(|error| match error {
            knarr_layer::Error::Output(cause) => match of_the_store(cause) {
                Ok(cause) => Error::LayerStore(cause),
                Err(cause) => Error::Write(cause),
            },
            error => Error::LayerStore(error),
        })?;
        failpoint!("commit.taken");
        if members > 0 {
            assembled.push(ingest.finish_and_hold(&parents)?);
        } else {
            drop(ingest);
        }
        failpoint!("commit.layer-present");
        let config = describe(base, options, execution, members == 0, &assembled.layers);
        self.store_made(&config, &assembled, options.reference.as_ref(), &name)
    }
}

fn describe(
    base: Option<&Image>,
    options: &CommitOptions,
    config: ExecutionConfig,
    empty_layer: bool,
    layers: &[knarr_layer::Layer],
) -> ImageConfig {
    let created = Some(jiff::Timestamp::now().to_string());
    let author = options.author.clone().filter(|author| !author.is_empty());
    let platform = base.map_or_else(Platform::host, |base| base.platform.clone());
    let mut described = base.map(|base| base.config.clone()).unwrap_or_default();
    described.created.clone_from(&created);
    described.architecture = platform.architecture;
    described.variant = platform.variant;
    described.os = platform.os;
    if author.is_some() {
        described.author.clone_from(&author);
    }
    described.config = config;
    described.rootfs.diff_ids = layers.iter().map(|layer| layer.diff_id).collect();
    // Where the layers below have no history, the new one's must not stand for them.
    let below = layers.len().saturating_sub(usize::from(!empty_layer));
    let told = described.history.iter().filter(|step| !step.empty_layer);
    let untold = below.saturating_sub(told.count());
    let silent = std::iter::repeat_n(History::default(), untold);
    described.history.splice(0..0, silent);
    described.history.push(History {
        created,
        created_by: Some(options.created_by.clone()),
        author,
        comment: options.message.clone().filter(|text| !text.is_empty()),
        empty_layer,
    });
    described
}
