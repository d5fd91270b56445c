//! `pause` and `unpause`.

use super::{Arguments, Command, USUAL};
use crate::failure::each;
use crate::output;

pub(super) static PAUSE: Command = Command {
    names: &["pause", "container pause"],
    usage: "CONTAINER [CONTAINER...]",
    about: "Pause all processes within one or more containers",
    arguments: Arguments::AtLeast(1),
    run: |call| {
        let engine = call.engine()?;
        each(&call.line.args, |name| {
            engine.pause(name)?;
            output::line(name)
        })
    },
    ..USUAL
};

pub(super) static UNPAUSE: Command = Command {
    names: &["unpause", "container unpause"],
    usage: "CONTAINER [CONTAINER...]",
    about: "Unpause all processes within one or more containers",
    arguments: Arguments::AtLeast(1),
    run: |call| {
        let engine = call.engine()?;
        each(&call.line.args, |name| {
            engine.unpause(name)?;
            output::line(name)
        })
    },
    ..USUAL
};
