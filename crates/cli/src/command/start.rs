//! `start`.

use knarr_engine::StartOptions;

use super::{Arguments, Call, Command, USUAL};
use crate::attachment::{Attachment, Signals};
use crate::failure::{Failure, Result, each};
use crate::flag::Flag;
use crate::{output, terminal};

pub(super) static COMMAND: Command = Command {
    names: &["start", "container start"],
    usage: "[OPTIONS] CONTAINER [CONTAINER...]",
    about: "Start one or more stopped containers",
    flags: &[&[
        Flag::switch("attach", "Attach STDOUT/STDERR and forward signals").short('a'),
        Flag::with("checkpoint", "string", "").refused("checkpoints are not taken yet"),
        Flag::with("checkpoint-dir", "string", "").refused("checkpoints are not taken yet"),
        Flag::with(
            "detach-keys",
            "string",
            "Override the key sequence for detaching a container",
        ),
        Flag::switch("interactive", "Attach container's STDIN").short('i'),
        Flag::switch("sig-proxy", "").hidden(),
    ]],
    arguments: Arguments::AtLeast(1),
    run,
    ..USUAL
};

fn run(call: &Call<'_>) -> Result<u8> {
    let line = &call.line;
    let (attach, stdin) = (line.on("attach"), line.on("interactive"));
    let engine = call.engine()?;
    if !attach && !stdin {
        return each(&line.args, |name| {
            engine.start(name, &StartOptions::default())?;
            output::line(name)
        });
    }
    if line.args.len() > 1 {
        return Err(Failure::invalid(
            "you cannot start and attach multiple containers at once",
        ));
    }
    let detach_keys = terminal::detach_keys(line.text("detach-keys")).map_err(Failure::invalid)?;
    let signals = Signals::block()?;
    let options = StartOptions {
        attach: true,
        stdin,
    };
    let Some(mut session) = engine.start(call.arg(0), &options)? else {
        return Ok(0);
    };
    let attachment = Attachment {
        stdin,
        stdout: true,
        stderr: true,
        forward_signals: !line.given("sig-proxy") || line.on("sig-proxy"),
        detach_keys,
    };
    attachment.stay(&mut session, &signals)
}
