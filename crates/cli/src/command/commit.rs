//! `commit`.

use knarr_engine::CommitRequest;

use super::{Arguments, Call, Command, USUAL, tag};
use crate::failure::{Failure, Result};
use crate::flag::Flag;
use crate::output;

pub(super) static COMMAND: Command = Command {
    names: &["commit", "container commit"],
    usage: "[OPTIONS] CONTAINER [REPOSITORY[:TAG]]",
    about: "Create a new image from a container's changes",
    flags: &[&[
        Flag::with(
            "author",
            "string",
            "Author (e.g., \"John Hannibal Smith <hannibal@a-team.com>\")",
        )
        .short('a'),
        Flag::with(
            "change",
            "list",
            "Apply Dockerfile instruction to the created image",
        )
        .short('c'),
        Flag::with("message", "string", "Commit message").short('m'),
        Flag::switch("pause", "Pause container during commit")
            .short('p')
            .default("true"),
        Flag::switch("no-pause", "Leave the container running during commit"),
        Flag::switch("quiet", "Accepted for Podman's sake")
            .short('q')
            .hidden(),
    ]],
    arguments: Arguments::Between(1, 2),
    run,
    ..USUAL
};

fn run(call: &Call<'_>) -> Result<u8> {
    let line = &call.line;
    let name = line.args.get(1).map(|name| tag::reference(name));
    let reference = name.transpose()?;
    if reference
        .as_ref()
        .is_some_and(|name| name.digest().is_some())
    {
        return Err(Failure::invalid(
            "refusing to create a tag with a digest reference",
        ));
    }
    let text = |flag| line.get(flag).map(str::to_owned);
    let request = CommitRequest {
        reference,
        author: text("author"),
        message: text("message"),
        changes: line.list("change"),
        pause: !line.on("no-pause") && (!line.given("pause") || line.on("pause")),
    };
    let id = call.engine()?.commit(call.arg(0), &request)?;
    output::line(&id.to_string())?;
    Ok(0)
}
