//! `create`, and what `run` has in common with it.

use std::io::Write;
use std::os::fd::OwnedFd;

use knarr_diag::{Class, Explain};
use knarr_engine::{CreateRequest, Engine};
use rustix::fs::{CWD, Mode, OFlags, openat};

use super::{Arguments, Call, Command, Exits, pull};
use crate::failure::{Failure, Result};
use crate::output;
use crate::progress::Bars;
use crate::request::{self, flags};

pub(super) static COMMAND: Command = Command {
    names: &["create", "container create"],
    usage: "[OPTIONS] IMAGE [COMMAND] [ARG...]",
    about: "Create a new container",
    flags: &[flags::CREATE, flags::LIMITS, flags::REGISTRY],
    arguments: Arguments::AtLeast(1),
    interspersed: false,
    exits: Exits::Run,
    run,
};

fn run(call: &Call<'_>) -> Result<u8> {
    let request = request(call)?;
    let bars = Bars::for_run(&request.config.image, call.line.on("quiet"));
    let engine = call.engine()?;
    let cid_file = CidFile::reserve(&request.host.container_id_file)?;
    let created = engine.create(&request, &bars);
    let created =
        created.map_err(|error| near_image(&engine, &request.config.image, &bars, error.into()))?;
    if let Some(file) = cid_file {
        file.write(created.id.as_str())?;
    }
    bars.finish(true);
    for warning in &created.warnings {
        output::note(&format!("WARNING: {warning}"));
    }
    output::line(created.id.as_str())?;
    Ok(0)
}

/// What the line asks for.
pub(super) fn request(call: &Call<'_>) -> Result<CreateRequest> {
    let mut request = request::create(&call.line)?;
    pull::use_config(call, &mut request.pull_options);
    Ok(request)
}

/// A pull that failed because the name was mistyped: says which image here was probably meant.
pub(super) fn near_image(engine: &Engine, image: &str, bars: &Bars, failure: Failure) -> Failure {
    let Some(near) = bars.pulled().then(|| engine.images().resolve(image)) else {
        return failure;
    };
    match near {
        Err(error) if error.class() == Class::NotFound => match error.hint() {
            Some(hint) if hint.starts_with("did you mean") => failure.hint(hint),
            _ => failure,
        },
        _ => failure,
    }
}

/// The file of `--cidfile`: made before the container, so that two cannot share it, and removed
/// again where no container came of it.
#[derive(Debug)]
pub(super) struct CidFile {
    path: String,
    file: Option<OwnedFd>,
}

impl CidFile {
    pub(super) fn reserve(path: &str) -> Result<Option<Self>> {
        if path.is_empty() {
            return Ok(None);
        }
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
        match openat(CWD, path, flags, Mode::from_raw_mode(0o644)) {
            Ok(file) => Ok(Some(Self {
                path: path.to_owned(),
                file: Some(file),
            })),
            Err(rustix::io::Errno::EXIST) => Err(Failure::of(
                Class::Exists,
                "cidfile-exists",
                format!(
                    "container ID file found, make sure the other container isn't running or \
                     delete {path}"
                ),
            )),
            Err(errno) => Err(Failure::io(
                format!("failed to create the container ID file {path}"),
                &errno.into(),
            )),
        }
    }

    pub(super) fn write(mut self, id: &str) -> Result<()> {
        let Some(file) = self.file.take() else {
            return Ok(());
        };
        std::fs::File::from(file)
            .write_all(id.as_bytes())
            .map_err(|error| {
                Failure::io(
                    format!("failed to write the container ID to {}", self.path),
                    &error,
                )
            })
    }
}

impl Drop for CidFile {
    fn drop(&mut self) {
        if self.file.is_some() {
            // Best effort: an empty file is all that can be left.
            rustix::fs::unlink(self.path.as_str()).ok();
        }
    }
}
