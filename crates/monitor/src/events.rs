//! `<run root>/events`: what happened, one JSON object per line, for anyone to follow.
//!
//! A record is one `write` to a file opened O_APPEND, so records of many processes never mix. The
//! fields are those of Docker's `GET /events`. A file over 8 MiB becomes `events.1`, while nobody
//! writes to it (flock(2)).

use std::collections::BTreeMap;
use std::path::Path;

use rustix::fs::{FlockOperation, Mode, OFlags};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use crate::Result;
use crate::clock::Timestamp;

/// The file's name in the run root.
pub const EVENTS_FILE: &str = "events";

/// When the file is set aside, in bytes.
const LIMIT: i64 = 8 << 20;

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
    let now = Timestamp::now();
    let event = Event {
        kind: kind.to_owned(),
        action: action.to_owned(),
        actor: Actor {
            id: id.to_owned(),
            attributes,
        },
        scope: "local".to_owned(),
        time: now.seconds,
        time_nano: now.as_nanoseconds(),
    };
    // Strings and numbers always serialize.
    let mut line = serde_json::to_vec(&event).unwrap_or_default();
    line.push(b'\n');
    let path = run_root.join(EVENTS_FILE);
    let flags = OFlags::WRONLY | OFlags::APPEND | OFlags::CREATE | OFlags::CLOEXEC;
    let file = loop {
        let file = rustix::fs::open(&path, flags, Mode::RUSR | Mode::WUSR)
            .map_err(knarr_fs::Error::of("open", "open", &path))?;
        // While it is held nobody sets it aside: who follows has not left it behind.
        match rustix::fs::flock(&file, FlockOperation::LockShared) {
            Err(Errno::INTR) => continue,
            locked => locked.map_err(knarr_fs::Error::of("lock", "flock", &path))?,
        }
        let held = rustix::fs::fstat(&file).map_err(knarr_fs::Error::of("stat", "fstat", &path))?;
        if rustix::fs::stat(&path).is_ok_and(|named| named.st_ino == held.st_ino) {
            break file;
        }
    };
    rustix::io::write(&file, &line).map_err(knarr_fs::Error::of("write", "write", &path))?;
    let stat = rustix::fs::fstat(&file).map_err(knarr_fs::Error::of("stat", "fstat", &path))?;
    if stat.st_size > LIMIT
        && rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive).is_ok()
        // Not when another one has just set it aside.
        && rustix::fs::stat(&path).is_ok_and(|named| named.st_ino == stat.st_ino)
    {
        knarr_fs::rename(&path, &path.with_extension("1"))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_are_dockers_and_a_large_file_is_set_aside() {
        let dir =
            knarr_fs::TempDir::new_in(&std::env::temp_dir().join("knarr-monitor-tests")).unwrap();
        let attributes = BTreeMap::from([("image".to_owned(), "busybox".to_owned())]);
        append(dir.path(), "container", "start", "abc", attributes).unwrap();
        let path = dir.path().join(EVENTS_FILE);
        let text = std::fs::read_to_string(&path).unwrap();
        assert!(text.starts_with(
            r#"{"Type":"container","Action":"start","Actor":{"ID":"abc","Attributes":{"image":"busybox"}},"scope":"local","time":"#
        ), "{text}");
        std::fs::write(&path, vec![b'\n'; 8 << 20]).unwrap();
        append(dir.path(), "container", "die", "abc", BTreeMap::new()).unwrap();
        assert!(!path.exists());
        assert!(dir.path().join("events.1").exists());
    }
}
