//! `diff`.

use std::os::unix::ffi::OsStrExt;

use knarr_engine::ChangeKind;

use super::{Arguments, Call, Command, USUAL};
use crate::failure::Result;
use crate::output;

pub(super) static COMMAND: Command = Command {
    names: &["diff", "container diff"],
    usage: "CONTAINER",
    about: "Inspect changes to files or directories on a container's filesystem",
    arguments: Arguments::Exactly(1),
    run,
    ..USUAL
};

fn run(call: &Call<'_>) -> Result<u8> {
    let mut lines = Vec::new();
    for change in call.engine()?.diff(call.arg(0))? {
        lines.extend_from_slice(match change.kind {
            ChangeKind::Changed => b"C ",
            ChangeKind::Added => b"A ",
            ChangeKind::Deleted => b"D ",
        });
        lines.extend_from_slice(change.path.as_os_str().as_bytes());
        lines.push(b'\n');
    }
    output::bytes(&lines)?;
    Ok(0)
}
