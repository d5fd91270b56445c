//! `logs`.

use std::io::{self, Write};

use knarr_engine::{LogLine, LogOptions};

use super::{Arguments, Call, Command, USUAL};
use crate::failure::{Failure, Result};
use crate::flag::Flag;
use crate::{output, time};

pub(super) static COMMAND: Command = Command {
    names: &["logs", "container logs"],
    usage: "[OPTIONS] CONTAINER",
    about: "Fetch the logs of a container",
    flags: &[&[
        Flag::switch("details", "").refused("log lines carry no attributes"),
        Flag::switch("follow", "Follow log output").short('f'),
        Flag::with(
            "since",
            "string",
            "Show logs since timestamp (e.g. \"2013-01-02T13:23:37Z\") or relative (e.g. \"42m\" for \
             42 minutes)",
        ),
        Flag::with(
            "tail",
            "string",
            "Number of lines to show from the end of the logs",
        )
        .short('n')
        .default("\"all\""),
        Flag::switch("timestamps", "Show timestamps").short('t'),
        Flag::with(
            "until",
            "string",
            "Show logs before a timestamp (e.g. \"2013-01-02T13:23:37Z\") or relative (e.g. \"42m\" \
             for 42 minutes)",
        ),
    ]],
    arguments: Arguments::Exactly(1),
    run,
    ..USUAL
};

fn run(call: &Call<'_>) -> Result<u8> {
    let line = &call.line;
    let now = time::now();
    let moment = |flag: &str| -> Result<Option<i64>> {
        let given = line.get(flag).filter(|text| !text.is_empty());
        given
            .map(|text| time::moment(text, now))
            .transpose()
            .map_err(|error| Failure::invalid(format!("invalid value for {flag:?}: {error}")))
    };
    let options = LogOptions {
        follow: line.on("follow"),
        // As Docker: what is no number means all.
        tail: line.get("tail").and_then(|text| text.parse().ok()),
        since: moment("since")?,
        until: moment("until")?,
    };
    let mut writer = Demultiplexer::new(line.on("timestamps"), options.follow);
    let engine = call.engine()?;
    let read = engine.logs(call.arg(0), &options, &mut |line| writer.write(&line));
    match (writer.flush(), writer.broken) {
        (_, true) => return Err(Failure::silent(output::BROKEN_PIPE)),
        (Err(error), _) => return Err(Failure::io("cannot write the log", &error)),
        (Ok(()), false) => {}
    }
    read?;
    Ok(0)
}

/// Gives lines to standard output and standard error, in order even where both are one pipe.
struct Demultiplexer {
    timestamps: bool,
    /// Whether each line is wanted at once.
    prompt: bool,
    pending: Vec<u8>,
    to_stderr: bool,
    broken: bool,
}

/// Lines are gathered up to this many bytes.
const BUFFER: usize = 64 << 10;

impl Demultiplexer {
    fn new(timestamps: bool, prompt: bool) -> Self {
        Self {
            timestamps,
            prompt,
            pending: Vec::with_capacity(BUFFER),
            to_stderr: false,
            broken: false,
        }
    }

    fn write(&mut self, line: &LogLine<'_>) -> io::Result<()> {
        if line.stderr != self.to_stderr {
            self.flush()?;
            self.to_stderr = line.stderr;
        }
        if self.timestamps {
            self.pending.extend_from_slice(line.time.as_bytes());
            self.pending.push(b' ');
        }
        self.pending.extend_from_slice(line.text);
        if self.prompt || self.pending.len() >= BUFFER {
            self.flush()?;
        }
        Ok(())
    }

    fn flush(&mut self) -> io::Result<()> {
        let written = if self.to_stderr {
            io::stderr().lock().write_all(&self.pending)
        } else {
            let mut out = io::stdout().lock();
            out.write_all(&self.pending).and_then(|()| out.flush())
        };
        self.pending.clear();
        if let Err(error) = &written {
            self.broken |= error.kind() == io::ErrorKind::BrokenPipe;
        }
        written
    }
}
