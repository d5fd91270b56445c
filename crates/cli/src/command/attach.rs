//! `attach`.

use knarr_engine::StartOptions;

use super::{Arguments, Call, Command, USUAL};
use crate::attachment::{Attachment, Signals, check_terminal};
use crate::failure::{Failure, Result};
use crate::flag::Flag;
use crate::terminal;

pub(super) static COMMAND: Command = Command {
    names: &["attach", "container attach"],
    usage: "[OPTIONS] CONTAINER",
    about: "Attach local standard input, output, and error streams to a running container",
    flags: &[&[
        Flag::with(
            "detach-keys",
            "string",
            "Override the key sequence for detaching a container",
        ),
        Flag::switch("no-stdin", "Do not attach STDIN"),
        Flag::switch("sig-proxy", "Proxy all received signals to the process").default("true"),
    ]],
    arguments: Arguments::Exactly(1),
    run,
    ..USUAL
};

fn run(call: &Call<'_>) -> Result<u8> {
    let line = &call.line;
    let engine = call.engine()?;
    let options = StartOptions {
        attach: true,
        stdin: !line.on("no-stdin"),
    };
    let detach_keys = terminal::detach_keys(line.text("detach-keys")).map_err(Failure::invalid)?;
    let mut session = engine.attach(call.arg(0), &options)?;
    check_terminal(options.stdin, session.tty())?;
    let signals = Signals::block()?;
    let attachment = Attachment {
        stdin: options.stdin,
        stdout: true,
        stderr: true,
        forward_signals: !line.given("sig-proxy") || line.on("sig-proxy"),
        detach_keys,
    };
    attachment.stay(&mut session, &signals)
}
