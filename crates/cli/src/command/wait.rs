//! `wait`.

use super::{Arguments, Call, Command, USUAL};
use crate::failure::{Failure, Result, each};
use crate::flag::Flag;
use crate::output;
use knarr_engine::WaitCondition;

pub(super) static COMMAND: Command = Command {
    names: &["wait", "container wait"],
    usage: "CONTAINER [CONTAINER...]",
    about: "Block until one or more containers stop, then print their exit codes",
    flags: &[&[Flag::with(
        "condition",
        "string",
        "What to wait for (\"not-running\", \"next-exit\", \"removed\")",
    )
    .default("\"not-running\"")]],
    arguments: Arguments::AtLeast(1),
    run,
    ..USUAL
};

fn run(call: &Call<'_>) -> Result<u8> {
    let condition = match call.line.text("condition") {
        "" | "not-running" => WaitCondition::NotRunning,
        "next-exit" => WaitCondition::NextExit,
        "removed" => WaitCondition::Removed,
        other => {
            return Err(Failure::invalid(format!(
                "invalid wait condition: {other:?}"
            )));
        }
    };
    let engine = call.engine()?;
    each(&call.line.args, |name| {
        let code = engine.wait(name, condition)?;
        output::line(&code.to_string())
    })
}
