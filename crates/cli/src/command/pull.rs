//! `pull`.

use knarr_distribution::Client;
use knarr_engine::Engine;
use knarr_engine::image::PullOptions;
use knarr_spec::Reference;

use super::{Arguments, Call, Command, USUAL, tag};
use crate::failure::{Failure, Result};
use crate::flag::Flag;
use crate::output;
use crate::progress::{self, Bars, Place};
use crate::request::{self, flags};

pub(super) static COMMAND: Command = Command {
    names: &["pull", "image pull"],
    usage: "[OPTIONS] NAME[:TAG|@DIGEST]",
    about: "Download an image from a registry",
    flags: &[
        &[
            Flag::switch(
                "all-platforms",
                "Pull the whole index, with the images of all platforms",
            ),
            Flag::switch("all-tags", "Download all tagged images in the repository").short('a'),
            Flag::switch(
                "keep-blobs",
                "Keep compressed layers, so that a push has the same digest\n(KNARR_KEEP_BLOBS)",
            ),
            Flag::with(
                "platform",
                "string",
                "Set platform if the image is for several",
            ),
            progress::FLAG,
            Flag::switch("quiet", "Suppress verbose output").short('q'),
        ],
        flags::REGISTRY,
    ],
    arguments: Arguments::Exactly(1),
    run,
    ..USUAL
};

fn run(call: &Call<'_>) -> Result<u8> {
    let typed = call.arg(0);
    let options = options(call)?;
    let engine = call.engine()?;
    let references = engine.images().meanings(typed, &options)?;
    let place = Place::of(&call.line);
    if call.line.on("all-tags") {
        return all_tags(call, &engine, &references, &options, place);
    }
    if place.is_text() && !names_a_tag(typed) {
        output::line("Using default tag: latest")?;
    }
    let bars = Bars::new(place);
    let (reference, pulled) = engine.images().pull_first(&references, &options, &bars)?;
    bars.finish(pulled.newer);
    if place != Place::Json {
        output::line(&reference.to_string())?;
    }
    Ok(0)
}

/// `--all-tags`: every tag of the repository, one after the other.
fn all_tags(
    call: &Call<'_>,
    engine: &Engine,
    references: &[Reference],
    options: &PullOptions,
    place: Place,
) -> Result<u8> {
    if names_a_tag(call.arg(0)) {
        return Err(Failure::invalid("tag can't be used with --all-tags/-a"));
    }
    let Some(reference) = references.first() else {
        return Ok(0);
    };
    let tags = {
        let client = Client::new(options.registry.clone()).on_retry(output::note);
        client.session()?.tags(reference)?
    };
    let name = reference.full_name();
    for tag in tags {
        let reference = tag::reference(&format!("{name}:{tag}"))?;
        let bars = Bars::new(place);
        let pulled = engine.images().pull(&reference, options, &bars)?;
        bars.finish(pulled.newer);
    }
    if place != Place::Json {
        output::line(&reference.familiar_name())?;
    }
    Ok(0)
}

/// Whether a tag or digest was typed.
pub(super) fn names_a_tag(typed: &str) -> bool {
    let last = typed.rsplit('/').next().unwrap_or(typed);
    last.contains(':') || typed.contains('@')
}

/// What the flags say of registries, and `--config`.
pub(super) fn options(call: &Call<'_>) -> Result<PullOptions> {
    let mut options = request::pull_options(&call.line)?;
    use_config(call, &mut options);
    Ok(options)
}

/// `--config` before the command names the folder with Docker's credentials.
pub(super) fn use_config(call: &Call<'_>, options: &mut PullOptions) {
    if let (None, Some(folder)) = (&options.registry.auth_file, &call.globals.config) {
        options.registry.auth_file = Some(folder.join("config.json"));
    }
}
