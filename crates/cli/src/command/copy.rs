//! `cp`.

use std::io;

use knarr_engine::{CopyEnd, CopyOptions};

use super::{Arguments, Call, Command, USUAL};
use crate::failure::{Failure, Result};
use crate::flag::Flag;
use crate::{output, terminal};

pub(super) static COMMAND: Command = Command {
    names: &["cp", "container cp"],
    usage: "[OPTIONS] CONTAINER:SRC_PATH DEST_PATH|-\n\tknarr cp [OPTIONS] SRC_PATH|- \
            CONTAINER:DEST_PATH",
    about: "Copy files/folders between a container and the local filesystem",
    flags: &[&[
        Flag::switch("archive", "Archive mode (copy all uid/gid information)").short('a'),
        Flag::switch("follow-link", "Always follow symbol link in SRC_PATH").short('L'),
        Flag::switch("quiet", "Suppress progress output during copy").short('q'),
    ]],
    arguments: Arguments::Exactly(2),
    run,
    ..USUAL
};

fn run(call: &Call<'_>) -> Result<u8> {
    let (from, to) = (end(call.arg(0))?, end(call.arg(1))?);
    let inside = |end: &CopyEnd| matches!(end, CopyEnd::Container { .. });
    match (inside(&from), inside(&to)) {
        (true, true) => {
            return Err(
                Failure::invalid("copying between containers is not supported")
                    .hint("copy to `-` and from `-` through a pipe"),
            );
        }
        (false, false) => {
            return Err(
                Failure::invalid("must specify at least one container source")
                    .hint("a path in a container is CONTAINER:PATH"),
            );
        }
        _ => {}
    }
    if to == CopyEnd::Stream && terminal::is_terminal(io::stdout()) {
        return Err(
            Failure::invalid("refusing to write an archive to a terminal")
                .hint("redirect it, or pipe it into tar"),
        );
    }
    let options = CopyOptions {
        archive: call.line.on("archive"),
        follow: call.line.on("follow-link"),
    };
    let mut stdin = io::stdin().lock();
    let mut stdout = output::Stream::default();
    let engine = call.engine()?;
    let copied = engine.copy(&from, &to, &options, &mut stdin, &mut stdout);
    stdout.finish(copied)
}

/// Docker's rule: `NAME:PATH` is in a container, unless it begins as a local path does.
fn end(text: &str) -> Result<CopyEnd> {
    if text.is_empty() {
        return Err(Failure::invalid("source can not be empty"));
    }
    if text == "-" {
        return Ok(CopyEnd::Stream);
    }
    match text.split_once(':') {
        Some((name, path)) if !text.starts_with(['/', '.']) => Ok(CopyEnd::Container {
            name: name.to_owned(),
            path: path.to_owned(),
        }),
        _ => Ok(CopyEnd::Local(text.into())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ends_are_told_apart_as_docker_does() {
        let container = |name: &str, path: &str| CopyEnd::Container {
            name: name.to_owned(),
            path: path.to_owned(),
        };
        for (text, expected) in [
            ("-", CopyEnd::Stream),
            ("web:/etc", container("web", "/etc")),
            ("web:etc/.", container("web", "etc/.")),
            ("web:a:b", container("web", "a:b")),
            ("./web:x", CopyEnd::Local("./web:x".into())),
            ("/a:b", CopyEnd::Local("/a:b".into())),
            ("file", CopyEnd::Local("file".into())),
        ] {
            assert_eq!(end(text).unwrap(), expected, "{text}");
        }
    }
}
