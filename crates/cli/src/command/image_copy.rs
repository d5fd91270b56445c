//! `image copy`.

use knarr_engine::image::{CopyOptions, Location, LocationError};

use super::{Arguments, Call, Command, USUAL, pull};
use crate::failure::{Failure, Result};
use crate::flag::Flag;
use crate::output;
use crate::progress::Bars;
use crate::request::flags;

pub(super) static COMMAND: Command = Command {
    names: &["image copy"],
    usage: "[OPTIONS] SOURCE DESTINATION",
    about: "Copy an image between docker://, oci:, oci-archive:, docker-archive:, dir: and the store, as it is",
    flags: &[
        &[
            Flag::switch("all", "Copy all images of an index").short('a'),
            Flag::with("platform", "string", "Which image of an index"),
            Flag::switch("quiet", "Suppress verbose output").short('q'),
        ],
        flags::REGISTRY,
    ],
    arguments: Arguments::Exactly(2),
    run,
    ..USUAL
};

fn run(call: &Call<'_>) -> Result<u8> {
    let line = &call.line;
    let place = |index| {
        let parsed = call.arg(index).parse::<Location>();
        parsed.map_err(|error: LocationError| {
            Failure::invalid(error.to_string()).hint(
                "places are docker://NAME, oci:PATH[:NAME], oci-archive:PATH[:NAME], \
                 docker-archive:PATH[:NAME], dir:PATH, and names of images here",
            )
        })
    };
    let (from, to) = (place(0)?, place(1)?);
    let pulling = pull::options(call)?;
    let options = CopyOptions {
        all: line.on("all"),
        platform: pulling.platform,
        from: pulling.registry.clone(),
        to: pulling.registry,
    };
    let bars = Bars::for_archive(line.on("quiet"));
    let digest = call.engine()?.images().copy(&from, &to, &options, &bars)?;
    output::line(&digest.to_string())?;
    Ok(0)
}
