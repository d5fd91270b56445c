//! Which containers there are.

use std::collections::BTreeMap;

use knarr_diag::Report;
use knarr_spec::docker::MountPoint;
use knarr_spec::{ContainerId, ContainerName, Reference};

/// `--filter key=value`, as typed; several of one key are alternatives, keys must all match.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Filters(pub BTreeMap<String, Vec<String>>);

/// What `ps` asks for.
#[derive(Debug, Clone, Default)]
pub struct ListOptions {
    /// Stopped ones too.
    pub all: bool,
    /// The newest so many, whatever their state (`-n`, `-l`).
    pub last: Option<usize>,
    /// Measure the writable layer (`-s`).
    pub size: bool,
    /// `--filter`.
    pub filters: Filters,
}

/// The containers, newest first, and what could not be read.
#[derive(Debug, Default)]
pub struct Listing {
    /// Newest first.
    pub containers: Vec<Summary>,
    /// Damaged objects; the rest is unaffected.
    pub damaged: Vec<Report>,
}

/// Docker's states.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, serde::Serialize)]
#[serde(rename_all = "lowercase")]
#[allow(missing_docs, reason = "the names are Docker's")]
pub enum Status {
    Created,
    Running,
    Paused,
    Restarting,
    Removing,
    Exited,
    Dead,
}

/// One line of `ps`.
#[derive(Debug, Clone)]
pub struct Summary {
    /// Its id.
    pub id: ContainerId,
    /// Its name.
    pub name: ContainerName,
    /// The image as it was typed.
    pub image: String,
    /// `sha256:…`; empty for `@host` and `scratch`.
    pub image_id: String,
    /// Entrypoint and command.
    pub command: Vec<String>,
    /// Nanoseconds since the epoch.
    pub created: i64,
    /// Docker's state.
    pub status: Status,
    /// Docker's sentence, such as `Up 2 minutes` or `Exited (0) 3 hours ago`.
    pub status_text: String,
    /// The last exit code.
    pub exit_code: i32,
    /// Its labels (the image's and the user's).
    pub labels: BTreeMap<String, String>,
    /// Its mounts.
    pub mounts: Vec<MountPoint>,
    /// `none`, `host`, `default`, …
    pub network: String,
    /// Ports the image exposes (`80/tcp`).
    pub exposed: Vec<String>,
    /// Bytes of the writable layer and of the whole root, where asked.
    pub size: Option<(u64, u64)>,
    /// The image's name, where it parses.
    pub reference: Option<Reference>,
}
