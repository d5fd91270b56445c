//! `exec`.

use knarr_engine::ExecRequest;

use super::{Arguments, Call, Command, Exits};
use crate::attachment::{Attachment, Signals, check_terminal};
use crate::failure::{Failure, Result};
use crate::flag::{Flag, value};
use crate::{request, terminal};

pub(super) static COMMAND: Command = Command {
    names: &["exec", "container exec"],
    usage: "[OPTIONS] CONTAINER COMMAND [ARG...]",
    about: "Execute a command in a running container",
    flags: &[&[
        Flag::switch("detach", "Detached mode: run command in the background").short('d'),
        Flag::with(
            "detach-keys",
            "string",
            "Override the key sequence for detaching a container",
        ),
        Flag::with("env", "list", "Set environment variables")
            .short('e')
            .checked(value::environment),
        Flag::with(
            "env-file",
            "list",
            "Read in a file of environment variables",
        ),
        Flag::switch("interactive", "Keep STDIN open even if not attached").short('i'),
        Flag::switch("privileged", "Give extended privileges to the command"),
        Flag::switch("tty", "Allocate a pseudo-TTY").short('t'),
        Flag::with(
            "user",
            "string",
            "Username or UID (format: \"<name|uid>[:<group|gid>]\")",
        )
        .short('u'),
        Flag::with(
            "workdir",
            "string",
            "Working directory inside the container",
        )
        .short('w'),
    ]],
    arguments: Arguments::AtLeast(2),
    interspersed: false,
    exits: Exits::Exec,
    run,
};

/// Where nobody looks, a terminal has Docker's usual size.
const UNSEEN: (u16, u16) = (24, 80);

fn run(call: &Call<'_>) -> Result<u8> {
    let line = &call.line;
    let detached = line.on("detach");
    let tty = line.on("tty");
    let stdin = line.on("interactive") && !detached;
    check_terminal(stdin, tty)?;
    let given = |flag| {
        line.get(flag)
            .filter(|text: &&str| !text.is_empty())
            .map(str::to_owned)
    };
    let request = ExecRequest {
        command: line.args.get(1..).unwrap_or_default().to_vec(),
        env: request::environment(line)?,
        user: given("user"),
        workdir: given("workdir"),
        tty: tty.then(|| terminal::size().filter(|_| !detached).unwrap_or(UNSEEN)),
        stdin,
        privileged: line.on("privileged"),
    };
    let attachment = Attachment {
        stdin,
        stdout: true,
        stderr: true,
        // Docker's exec does not forward; what kills the caller kills the process with it.
        forward_signals: false,
        detach_keys: terminal::detach_keys(line.text("detach-keys")).map_err(Failure::invalid)?,
    };
    let engine = call.engine()?;
    if detached {
        engine.exec_detached(call.arg(0), &request)?;
        return Ok(0);
    }
    let signals = Signals::block()?;
    let mut session = engine.exec(call.arg(0), &request)?;
    attachment.stay(&mut session, &signals)
}
