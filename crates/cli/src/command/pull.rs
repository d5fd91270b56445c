//! `pull`.

use knarr_engine::image::PullOptions;

use super::{Arguments, Call, Command, USUAL, tag};
use crate::failure::Result;
use crate::flag::Flag;
use crate::output;
use crate::progress::{Bars, Place};
use crate::request::{self, flags};

pub(super) static COMMAND: Command = Command {
    names: &["pull", "image pull"],
    usage: "[OPTIONS] NAME[:TAG|@DIGEST]",
    about: "Download an image from a registry",
    flags: &[
        &[
            Flag::switch("all-tags", "")
                .short('a')
                .refused("pull the tags one by one"),
            Flag::with(
                "platform",
                "string",
                "Set platform if the image is for several",
            ),
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
    let reference = tag::reference(typed)?;
    let mut options = request::pull_options(&call.line)?;
    use_config(call, &mut options);
    let quiet = call.line.on("quiet");
    if !quiet && !names_a_tag(typed) {
        output::line("Using default tag: latest")?;
    }
    let bars = Bars::new(if quiet { Place::Nowhere } else { Place::Stdout });
    let pulled = call.engine()?.images().pull(&reference, &options, &bars)?;
    bars.finish(pulled.newer);
    output::line(&reference.to_string())?;
    Ok(0)
}

/// Whether a tag or digest was typed.
fn names_a_tag(typed: &str) -> bool {
    let last = typed.rsplit('/').next().unwrap_or(typed);
    last.contains(':') || typed.contains('@')
}

/// `--config` before the command names the folder with Docker's credentials.
pub(super) fn use_config(call: &Call<'_>, options: &mut PullOptions) {
    if let (None, Some(folder)) = (&options.registry.auth_file, &call.globals.config) {
        options.registry.auth_file = Some(folder.join("config.json"));
    }
}
