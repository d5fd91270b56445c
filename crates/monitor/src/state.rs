//! `state.json`: how a container is, for every other process to read.

use std::path::Path;

use knarr_fs::Durability;
use knarr_spec::ContainerId;
use serde::{Deserialize, Serialize};

use crate::{Error, Result};

/// The version of [`State`] that this Knarr writes.
pub const STATE_VERSION: u32 = 1;

/// The file's name, in the run folder and, once the container ended, in the data folder.
pub const STATE_FILE: &str = "state.json";

/// Docker's words for a container's state.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    /// Never started, or its start failed.
    Created,
    /// Its first process lives.
    Running,
    /// Alive and frozen.
    Paused,
    /// Ended; the monitor will start it again.
    Restarting,
    /// Ended.
    Exited,
}

impl Status {
    /// Docker's `.State.Running`: a container that waits for its restart counts, too.
    pub const fn is_alive(self) -> bool {
        matches!(self, Self::Running | Self::Paused | Self::Restarting)
    }
}

/// How a container is. Written by its monitor only, each time as a whole, by rename.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct State {
    /// Of this format: [`STATE_VERSION`].
    pub version: u32,
    /// The container.
    pub id: ContainerId,
    /// The word for it.
    pub status: Status,
    /// Its first process, on the host; `None` when there is none.
    pub process: Option<ProcessId>,
    /// The monitor that wrote this.
    pub monitor: Option<ProcessId>,
    /// The boot in which those processes are what they are named
    /// (`/proc/sys/kernel/random/boot_id`).
    pub boot_id: String,
    /// 128 + n for a signal; 255 where nobody saw the end (then `error` says so).
    pub exit_code: Option<i32>,
    /// The kernel killed a process in it because memory ran out.
    pub oom_killed: bool,
    /// Why the last start failed, or what is not known.
    pub error: Option<String>,
    /// When the first process began, RFC 3339 with nanoseconds.
    pub started_at: Option<String>,
    /// When it ended.
    pub finished_at: Option<String>,
    /// How often the restart policy started it.
    pub restart_count: u32,
    /// The user asked for its end, so `unless-stopped` leaves it alone after a reboot.
    pub stopped_by_user: bool,
    /// Bytes of output that could not be written to the log (a full disk).
    #[serde(default)]
    pub log_lost: u64,
    /// Its networks and published ports, while it runs.
    #[serde(default, skip_serializing_if = "knarr_net::Attached::is_empty")]
    pub network: knarr_net::Attached,
}

/// A process that can be told from a later one with the same number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessId {
    /// Its number on the host.
    pub pid: u32,
    /// When it started, in clock ticks after boot (field 22 of `/proc/PID/stat`).
    pub start_time: u64,
}

impl State {
    /// The state of a container that was never started.
    pub fn created(id: ContainerId) -> Self {
        Self {
            version: STATE_VERSION,
            id,
            status: Status::Created,
            process: None,
            monitor: None,
            boot_id: String::new(),
            exit_code: None,
            oom_killed: false,
            error: None,
            started_at: None,
            finished_at: None,
            restart_count: 0,
            stopped_by_user: false,
            log_lost: 0,
            network: knarr_net::Attached::default(),
        }
    }

    /// Parses the file's bytes.
    ///
    /// # Errors
    /// [`Error::State`] for another version or anything that is not one; the caller names the file.
    pub fn parse(bytes: &[u8], path: &Path) -> Result<Self> {
        crate::parse_versioned(bytes, "state", STATE_VERSION, |cause| Error::State {
            path: path.to_owned(),
            cause,
        })
    }

    /// Reads the `state.json` in `folder` (run or data); `None` where there is none.
    ///
    /// # Errors
    /// As [`State::parse`], and [`Error::File`].
    pub fn load(folder: &Path) -> Result<Option<Self>> {
        let path = folder.join(STATE_FILE);
        let mut buffer = [0u8; 4096];
        match read_small(&path, &mut buffer) {
            Ok(bytes) if bytes.len() < 4096 => Self::parse(bytes, &path).map(Some),
            Ok(_) => Self::parse(&knarr_fs::read(&path)?, &path).map(Some),
            Err(error) if error.is_not_found() => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// The bytes of the file.
    pub fn to_json(&self) -> Vec<u8> {
        // A struct of strings and numbers always serializes.
        let mut bytes = serde_json::to_vec(self).unwrap_or_default();
        bytes.push(b'\n');
        bytes
    }

    /// Replaces the `state.json` in `folder`.
    ///
    /// # Errors
    /// [`Error::File`].
    pub fn save(&self, folder: &Path, durability: Durability) -> Result<()> {
        Ok(knarr_fs::write_atomic(
            &folder.join(STATE_FILE),
            &self.to_json(),
            durability,
        )?)
    }
}

/// Reads the beginning of a file in three system calls, for `ps` of many containers.
pub(crate) fn read_small<'a>(path: &Path, buffer: &'a mut [u8]) -> knarr_fs::Result<&'a [u8]> {
    let file = knarr_fs::open_read(path)?;
    let count =
        rustix::io::read(&file, &mut *buffer).map_err(knarr_fs::Error::of("read", "read", path))?;
    Ok(buffer.get(..count).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn full() -> State {
        State {
            status: Status::Exited,
            process: Some(ProcessId {
                pid: 71,
                start_time: 4242,
            }),
            monitor: Some(ProcessId {
                pid: 70,
                start_time: 4241,
            }),
            boot_id: "a3c51fd9-4c07-4aaa-9089-2a9289811c52".to_owned(),
            exit_code: Some(137),
            oom_killed: true,
            error: Some("why".to_owned()),
            started_at: Some("2026-11-20T19:30:29.5Z".to_owned()),
            finished_at: Some("2026-11-20T19:30:30Z".to_owned()),
            restart_count: 3,
            stopped_by_user: true,
            log_lost: 9,
            ..State::created(ContainerId::from_bytes([7; 32]))
        }
    }

    #[test]
    fn the_files_form_is_golden() {
        let golden = include_str!("../tests/state.json");
        assert_eq!(String::from_utf8(full().to_json()).unwrap(), golden);
        assert_eq!(
            State::parse(golden.as_bytes(), Path::new("state.json")).unwrap(),
            full()
        );
    }

    #[test]
    fn other_versions_and_damage_are_told() {
        let newer = include_str!("../tests/state.json").replace("\"version\":1", "\"version\":2");
        let error = State::parse(newer.as_bytes(), Path::new("state.json")).unwrap_err();
        assert!(error.to_string().contains("version 2"), "{error}");
        let error = State::parse(b"{\"version\":1", Path::new("/x/state.json")).unwrap_err();
        assert_eq!(error.to_string(), "/x/state.json is damaged");
    }

    #[test]
    fn a_state_is_saved_and_loaded_whole_however_long() {
        let dir =
            knarr_fs::TempDir::new_in(&std::env::temp_dir().join("knarr-monitor-tests")).unwrap();
        assert_eq!(State::load(dir.path()).unwrap(), None);
        for length in [0, 10_000] {
            let state = State {
                error: Some("x".repeat(length)),
                ..full()
            };
            state.save(dir.path(), Durability::Volatile).unwrap();
            assert_eq!(State::load(dir.path()).unwrap(), Some(state));
        }
    }
}
