//! `kill`.

use super::{Arguments, Command, USUAL};
use crate::failure::each;
use crate::flag::Flag;
use crate::output;

pub(super) static COMMAND: Command = Command {
    names: &["kill", "container kill"],
    usage: "[OPTIONS] CONTAINER [CONTAINER...]",
    about: "Kill one or more running containers",
    flags: &[&[Flag::with("signal", "string", "Signal to send to the container").short('s')]],
    arguments: Arguments::AtLeast(1),
    run: |call| {
        let engine = call.engine()?;
        let signal = call.line.get("signal").filter(|signal| !signal.is_empty());
        each(&call.line.args, |name| {
            engine.kill(name, signal.unwrap_or("KILL"))?;
            output::line(name)
        })
    },
    ..USUAL
};
