//! Signals by name, with an error that tells what can be typed.

use crate::{Error, Result};

/// As [`knarr_spec::signal::parse`].
pub(crate) fn parse(text: &str) -> Result<i32> {
    knarr_spec::signal::parse(text).ok_or_else(|| {
        Error::invalid_hint(
            format!("invalid signal: {text}"),
            "a name such as SIGTERM, or 1 to 64",
        )
    })
}
