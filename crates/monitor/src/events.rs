//! `<run root>/events`: what happened, one JSON object per line, for anyone to follow.
//!
//! A record is one `write` to a file opened O_APPEND, so records of many processes never mix. The
//! fields are those of Docker's `GET /events`. A file over 8 MiB becomes `events.1`.

use std::collections::BTreeMap;
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::Result;

/// One record.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Event {
    /// `container`, `image`, `volume`, …
    #[serde(rename = "Type")]
    pub kind: String,
    /// `create`, `start`, `die`, `oom`, `kill`, `stop`, `destroy`, …
    #[serde(rename = "Action")]
    pub action: String,
    /// Whom it happened to.
    #[serde(rename = "Actor")]
    pub actor: Actor,
    /// Always `local`.
    pub scope: String,
    /// Seconds since 1970.
    pub time: i64,
    /// Nanoseconds since 1970.
    #[serde(rename = "timeNano")]
    pub time_nano: i64,
}

/// Whom an event happened to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Actor {
    /// The object's id or name.
    #[serde(rename = "ID")]
    pub id: String,
    /// `image`, `name`, `exitCode`, labels, …
    #[serde(rename = "Attributes")]
    pub attributes: BTreeMap<String, String>,
}

/// Appends a record that happens now.
///
/// # Errors
/// [`Error::File`](crate::Error::File).
pub fn append(
    run_root: &Path,
    kind: &str,
    action: &str,
    id: &str,
    attributes: BTreeMap<String, String>,
) -> Result<()> {
    let _ = (run_root, kind, action, id, attributes);
    todo!()
}
