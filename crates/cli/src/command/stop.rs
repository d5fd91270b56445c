//! `stop`.

use knarr_engine::StopOptions;

use super::{Arguments, Call, Command, USUAL};
use crate::failure::each;
use crate::flag::{Flag, Parsed, value};
use crate::output;

/// The flags of `stop` and `restart`. Docker 28 says --timeout, before that it was --time.
pub(super) const FLAGS: &[Flag] = &[
    Flag::with("signal", "string", "Signal to send to the container").short('s'),
    Flag::with(
        "timeout",
        "int",
        "Seconds to wait before killing the container",
    )
    .short('t')
    .checked(value::int),
    Flag::with("time", "int", "").checked(value::int).hidden(),
];

pub(super) static COMMAND: Command = Command {
    names: &["stop", "container stop"],
    usage: "[OPTIONS] CONTAINER [CONTAINER...]",
    about: "Stop one or more running containers",
    flags: &[FLAGS],
    arguments: Arguments::AtLeast(1),
    run: |call: &Call<'_>| {
        let options = options(&call.line);
        let engine = call.engine()?;
        each(&call.line.args, |name| {
            engine.stop(name, &options)?;
            output::line(name)
        })
    },
    ..USUAL
};

pub(super) fn options(line: &Parsed) -> StopOptions {
    StopOptions {
        signal: line
            .get("signal")
            .filter(|s| !s.is_empty())
            .map(str::to_owned),
        timeout: line.int("timeout").or_else(|| line.int("time")),
    }
}
