//! What the engine asks of a monitor: everything it needs to make, watch and end one container.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use knarr_layer::Rootfs;
use knarr_runtime::Plan;
use knarr_spec::ContainerId;
use serde::{Deserialize, Serialize};

use crate::{Error, Result};

/// The version of [`Request`] that this Knarr writes.
pub const REQUEST_VERSION: u32 = 1;

/// One container, from its mounts to its removal. Travels as JSON in a sealed memfd and is kept as
/// `request.json` in the run folder, for restarts and for the monitor that takes over.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Request {
    /// Of this format: [`REQUEST_VERSION`].
    pub version: u32,
    /// The container.
    pub id: ContainerId,
    /// The attributes of its events: `image`, `name` and the labels, as Docker has them.
    #[serde(default)]
    pub attributes: BTreeMap<String, String>,
    /// Where its files are.
    pub paths: Paths,
    /// What to run and how.
    pub runtime: Plan,
    /// What its root is made of.
    pub rootfs: Rootfs,
    /// Its cgroup.
    pub cgroup: knarr_cgroup::Plan,
    /// Its networks and published ports; `None` where it has none of its own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub network: Option<knarr_net::Plan>,
    /// Where its output goes.
    pub log: Log,
    /// When it is started again.
    #[serde(default)]
    pub restart: Restart,
    /// How often it was restarted before this monitor.
    #[serde(default)]
    pub restart_count: u32,
    /// Where its standard input comes from.
    #[serde(default)]
    pub stdin: Stdin,
    /// `Some` gives it a pseudo terminal of that size (`-t`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub terminal: Option<Size>,
    /// How it is asked to end.
    #[serde(default)]
    pub stop: Stop,
    /// New volumes that get the image's content first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub copy_ups: Vec<CopyUp>,
    /// `--rm`: what to remove once it ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub remove: Option<Removal>,
    /// The streams of the client that starts it, attached before the program runs so that nothing
    /// is missed; [`client::spawn`](crate::client::spawn) gives the other end.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub attach: Option<Streams>,
}

/// Folders of a container, all absolute.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Paths {
    /// The run root: `/run/knarr`.
    pub run_root: PathBuf,
    /// The run folder, which exists and holds the `lock`: `/run/knarr/containers/<id>`.
    pub run: PathBuf,
    /// Where the last state is kept beyond a reboot: `/var/lib/knarr/containers/<id>`. `None` for
    /// a container that `remove` deletes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub data: Option<PathBuf>,
}

/// The log driver.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "driver", rename_all = "kebab-case")]
pub enum Log {
    /// Nothing is kept.
    None,
    /// Docker's `json-file`.
    JsonFile {
        /// The current file; older ones are `<path>.1`, `<path>.2`, …
        path: PathBuf,
        /// When a file is full, in bytes; 0 is never.
        max_size: u64,
        /// How many files are kept, the current one included; at least 1.
        max_file: u32,
    },
}

impl Log {
    /// The default `max-size`, in bytes: 20 MiB.
    pub const MAX_SIZE: u64 = 20 << 20;
    /// The default `max-file`. With [`Log::MAX_SIZE`] one container keeps 100 MiB at most; Docker
    /// keeps all, until the disk is full.
    pub const MAX_FILE: u32 = 5;

    /// `json-file` with the defaults.
    pub fn json_file(path: PathBuf) -> Self {
        Self::JsonFile {
            path,
            max_size: Self::MAX_SIZE,
            max_file: Self::MAX_FILE,
        }
    }
}

/// Docker's restart policies.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "name", rename_all = "kebab-case")]
pub enum Restart {
    /// Never.
    #[default]
    No,
    /// After every end that the user did not ask for; after a reboot in any case.
    Always,
    /// As `Always`, but a container that the user stopped stays so after a reboot.
    UnlessStopped,
    /// When it failed, at most `max` times in a row; 0 is without bound.
    OnFailure {
        /// How often.
        max: u32,
    },
}

/// Where standard input comes from.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Stdin {
    /// `/dev/null`.
    #[default]
    Null,
    /// Attached clients, one after the other; it stays open between them (`-d -i`).
    Open,
    /// The first client to attach with stdin; when that one closes or leaves, the container sees
    /// the end of file (`-i`).
    Once,
}

/// A terminal's size in character cells.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Size {
    /// Lines.
    pub rows: u16,
    /// Columns.
    pub cols: u16,
}

/// How a container is asked to end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stop {
    /// The signal, by number.
    pub signal: i32,
    /// Seconds until SIGKILL; negative waits for ever.
    pub timeout: i64,
}

impl Default for Stop {
    /// SIGTERM and ten seconds, as Docker.
    fn default() -> Self {
        Self {
            signal: 15,
            timeout: 10,
        }
    }
}

/// A new volume that gets what the image has at the place where it is mounted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CopyUp {
    /// The path in the image; nothing is copied where the image has no folder there.
    pub from: String,
    /// The volume's folder, which holds `data`. Nothing is copied when `data` is not empty.
    pub volume: PathBuf,
}

/// What `--rm` removes besides the run folder.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Removal {
    /// The data root, whose `trash/` takes them.
    pub data_root: PathBuf,
    /// Symlinks and folders, in order: the name, the data folder, anonymous volumes. What is gone
    /// already is fine.
    pub paths: Vec<PathBuf>,
}

/// Which streams a client wants.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Streams {
    /// What it writes goes to standard input.
    pub stdin: bool,
    /// It gets standard output.
    pub stdout: bool,
    /// It gets standard error.
    pub stderr: bool,
}

impl Request {
    /// Parses a request.
    ///
    /// # Errors
    /// [`Error::Request`] for another version or anything that is not one.
    pub fn parse(bytes: &[u8]) -> Result<Self> {
        crate::parse_versioned(bytes, "request", REQUEST_VERSION, Error::request)
    }

    /// Reads what a monitor has kept in its run folder.
    ///
    /// # Errors
    /// As [`Request::parse`], and [`Error::File`].
    pub(crate) fn load(run: &Path) -> Result<Self> {
        Self::parse(&knarr_fs::read(&run.join(crate::undo::REQUEST_FILE))?)
    }

    /// The request as JSON.
    ///
    /// # Errors
    /// [`Error::Request`], when a path is not UTF-8.
    pub fn to_json(&self) -> Result<Vec<u8>> {
        serde_json::to_vec(self).map_err(Error::request)
    }
}
