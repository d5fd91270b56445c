//! `update`.

use knarr_engine::UpdateRequest;

use super::{Arguments, Call, Command, USUAL};
use crate::failure::{Failure, Result, each};
use crate::flag::Flag;
use crate::output;
use crate::request::{self, flags};

const REALTIME: &str = "real-time scheduling is not given out yet";

pub(super) static COMMAND: Command = Command {
    names: &["update", "container update"],
    usage: "[OPTIONS] CONTAINER [CONTAINER...]",
    about: "Update configuration of one or more containers",
    flags: &[
        flags::LIMITS,
        &[
            Flag::with("cpu-rt-period", "int", "").refused(REALTIME),
            Flag::with("cpu-rt-runtime", "int", "").refused(REALTIME),
            Flag::with("kernel-memory", "bytes", "").refused("Linux has no such limit any more"),
        ],
    ],
    arguments: Arguments::AtLeast(1),
    run,
    ..USUAL
};

fn run(call: &Call<'_>) -> Result<u8> {
    let line = &call.line;
    if !flags::LIMITS.iter().any(|flag| line.given(flag.name)) {
        let mut failure =
            Failure::invalid("you must provide one or more flags when using this command");
        failure.usage = true;
        return Err(failure);
    }
    let host = request::limits(line)?;
    let request = UpdateRequest {
        restart: line.given("restart").then(|| host.restart_policy.clone()),
        host,
    };
    let engine = call.engine()?;
    each(&line.args, |name| {
        for warning in engine.update(name, &request)? {
            output::note(&format!("WARNING: {warning}"));
        }
        output::line(name)
    })
}
