//! `save`.

use std::io::Write;

use knarr_engine::image::SaveFormat;
use rustix::fs::{CWD, Mode, OFlags};

use super::{Arguments, Call, Command, USUAL};
use crate::failure::{Failure, Result};
use crate::flag::Flag;
use crate::{output, request, terminal};

pub(super) static COMMAND: Command = Command {
    names: &["save", "image save"],
    usage: "[OPTIONS] IMAGE [IMAGE...]",
    about: "Save one or more images to a tar archive (streamed to STDOUT by default)",
    flags: &[&[
        Flag::with(
            "format",
            "string",
            "Format of the archive (\"docker-archive\", \"oci-archive\")",
        )
        .default("\"docker-archive\""),
        Flag::with("output", "string", "Write to a file, instead of STDOUT").short('o'),
        Flag::with(
            "platform",
            "string",
            "Save one image of a whole index, not all",
        ),
    ]],
    arguments: Arguments::AtLeast(1),
    run,
    ..USUAL
};

fn run(call: &Call<'_>) -> Result<u8> {
    let format = match call.line.get("format").unwrap_or("docker-archive") {
        "docker-archive" => SaveFormat::Docker,
        "oci-archive" => SaveFormat::Oci,
        other => {
            return Err(Failure::invalid(format!(
                "unknown archive format {other:?}"
            )));
        }
    };
    let engine = call.engine()?;
    let names = &call.line.args;
    let platform = request::pull_options(&call.line)?.platform;
    to_output(call, "save", |out| {
        Ok(engine
            .images()
            .save(names, format, platform.as_ref(), out)?)
    })
}

/// Writes to the file that `--output` names, else to standard output unless that is a terminal.
pub(super) fn to_output(
    call: &Call<'_>,
    verb: &str,
    write: impl FnOnce(&mut dyn Write) -> Result<()>,
) -> Result<u8> {
    let path = call.line.text("output");
    if path.is_empty() || path == "-" {
        if terminal::is_terminal(std::io::stdout()) {
            return Err(Failure::invalid(format!(
                "cowardly refusing to {verb} to a terminal. Use the -o flag or redirect"
            )));
        }
        let mut out = output::Stream::default();
        let written = write(&mut out);
        return out.finish(written);
    }
    // Beside its final name, so that a half-written archive is never taken for a whole one.
    let temporary = format!("{path}.tmp-{}", std::process::id());
    let failed = |error: std::io::Error| Failure::io(format!("cannot write {path}"), &error);
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
    let file = rustix::fs::openat(CWD, &temporary, flags, Mode::from_raw_mode(0o600));
    let mut file = std::fs::File::from(file.map_err(|errno| failed(errno.into()))?);
    let written = write(&mut file)
        .and_then(|()| rustix::fs::rename(&temporary, path).map_err(|errno| failed(errno.into())));
    if written.is_err() {
        // The failure is what matters; the rest is tidiness.
        rustix::fs::unlink(&temporary).ok();
    }
    written.map(|()| 0)
}
