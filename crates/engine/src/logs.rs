//! Reading what a container said.

/// What `logs` asks for. Times in nanoseconds since the epoch.
#[derive(Debug, Clone, Default)]
pub struct LogOptions {
    /// Go on until the container ends.
    pub follow: bool,
    /// Only the last so many lines.
    pub tail: Option<usize>,
    /// Not before.
    pub since: Option<i64>,
    /// Not after.
    pub until: Option<i64>,
}

/// A piece of output, as it was written: usually one line, with its newline.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LogLine<'a> {
    /// Whether it was standard error.
    pub stderr: bool,
    /// RFC 3339 with nanoseconds, UTC.
    pub time: &'a str,
    /// The bytes, newline included where there was one.
    pub text: &'a [u8],
}
