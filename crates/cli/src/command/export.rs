//! `export`.

use super::{Arguments, Call, Command, USUAL, save};
use crate::failure::Result;
use crate::flag::Flag;

pub(super) static COMMAND: Command = Command {
    names: &["export", "container export"],
    usage: "[OPTIONS] CONTAINER",
    about: "Export a container's filesystem as a tar archive",
    flags: &[&[Flag::with("output", "string", "Write to a file, instead of STDOUT").short('o')]],
    arguments: Arguments::Exactly(1),
    run: |call: &Call<'_>| -> Result<u8> {
        let engine = call.engine()?;
        save::to_output(call, "export", |out| Ok(engine.export(call.arg(0), out)?))
    },
    ..USUAL
};
