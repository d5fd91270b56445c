//! `restart`.

use super::{Arguments, Command, USUAL, stop};
use crate::failure::each;
use crate::output;

pub(super) static COMMAND: Command = Command {
    names: &["restart", "container restart"],
    usage: "[OPTIONS] CONTAINER [CONTAINER...]",
    about: "Restart one or more containers",
    flags: &[stop::FLAGS],
    arguments: Arguments::AtLeast(1),
    run: |call| {
        let options = stop::options(&call.line);
        let engine = call.engine()?;
        each(&call.line.args, |name| {
            engine.restart(name, &options)?;
            output::line(name)
        })
    },
    ..USUAL
};
