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
