//! `rm`.

use knarr_diag::{Class, Explain};
use knarr_engine::RemoveOptions;

use super::{Arguments, Call, Command, USUAL};
use crate::failure::{Result, each};
use crate::flag::Flag;
use crate::output;

pub(super) static COMMAND: Command = Command {
    names: &["rm", "container rm", "container remove"],
    usage: "[OPTIONS] CONTAINER [CONTAINER...]",
    about: "Remove one or more containers",
    flags: &[&[
        Flag::switch(
            "force",
            "Force the removal of a running container (uses SIGKILL)",
        )
        .short('f'),
        Flag::switch(
            "volumes",
            "Remove anonymous volumes associated with the container",
        )
        .short('v'),
        Flag::switch("link", "")
            .short('l')
            .refused("containers are not linked"),
    ]],
    arguments: Arguments::AtLeast(1),
    run,
    ..USUAL
};

fn run(call: &Call<'_>) -> Result<u8> {
    let options = RemoveOptions {
        force: call.line.on("force"),
        volumes: call.line.on("volumes"),
    };
    let engine = call.engine()?;
    each(&call.line.args, |name| {
        let name = name.strip_prefix('/').unwrap_or(name);
        match engine.remove(name, &options) {
            Ok(()) => output::line(name),
            // With --force Docker says it, but does not fail.
            Err(error) if options.force && error.class() == Class::NotFound => {
                output::note(&error.report().to_string());
                Ok(())
            }
            Err(error) => Err(error.into()),
        }
    })
}
