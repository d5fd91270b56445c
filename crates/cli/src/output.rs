//! Standard output, whose reader may have gone: `knarr ps | head` ends quietly.

use std::io::{self, Write};

use crate::failure::{Failure, Result};

/// What a shell reports for a program that SIGPIPE ended.
pub(crate) const BROKEN_PIPE: u8 = 128 + 13;

/// Writes to standard output and flushes.
pub(crate) fn print(text: &str) -> Result<()> {
    bytes(text.as_bytes())
}

/// Writes a line.
pub(crate) fn line(text: &str) -> Result<()> {
    bytes(format!("{text}\n").as_bytes())
}

/// Asks for something: text without a line's end.
pub(crate) fn prompt(text: &str) -> Result<()> {
    print(text)
}

/// Writes bytes to standard output and flushes.
pub(crate) fn bytes(bytes: &[u8]) -> Result<()> {
    let mut out = io::stdout().lock();
    let written = out.write_all(bytes).and_then(|()| out.flush());
    written.map_err(|error| Failure::io("cannot write to standard output", &error))
}

/// Writes a line to standard error; nobody can be told if that fails.
pub(crate) fn note(text: &str) {
    writeln!(io::stderr().lock(), "{text}").ok();
}

/// Standard output for those who write to any stream; knows afterwards whether its reader left.
#[derive(Debug, Default)]
pub(crate) struct Stream {
    broken: bool,
}

impl Stream {
    /// What came of writing to it: a reader that left counts for more than `done` does.
    pub(crate) fn finish<E: Into<Failure>>(mut self, done: Result<(), E>) -> Result<u8> {
        let flushed = self.flush();
        if self.broken {
            return Err(Failure::silent(BROKEN_PIPE));
        }
        done.map_err(Into::into)?;
        flushed.map_err(|error| Failure::io("cannot write to standard output", &error))?;
        Ok(0)
    }

    fn note<T>(&mut self, done: io::Result<T>) -> io::Result<T> {
        if let Err(error) = &done {
            self.broken |= error.kind() == io::ErrorKind::BrokenPipe;
        }
        done
    }
}

impl Write for Stream {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let done = io::stdout().lock().write(bytes);
        self.note(done)
    }

    fn flush(&mut self) -> io::Result<()> {
        let done = io::stdout().lock().flush();
        self.note(done)
    }
}
