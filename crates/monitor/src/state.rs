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
        }
    }

    /// Parses the file's bytes.
    ///
    /// # Errors
    /// [`Error::State`] for another version or anything that is not one; the caller names the file.
    pub fn parse(bytes: &[u8], path: &Path) -> Result<Self> {
        let state: Self = serde_json::from_slice(bytes).map_err(|cause| Error::State {
            path: path.to_owned(),
            cause,
        })?;
        if state.version != STATE_VERSION {
            return Err(Error::Version {
                what: "state",
                found: state.version,
            });
        }
        Ok(state)
    }

    /// Reads the `state.json` in `folder` (run or data); `None` where there is none.
    ///
    /// # Errors
    /// As [`State::parse`], and [`Error::File`].
    pub fn load(folder: &Path) -> Result<Option<Self>> {
        let path = folder.join(STATE_FILE);
        match knarr_fs::read(&path) {
            Ok(bytes) => Self::parse(&bytes, &path).map(Some),
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
