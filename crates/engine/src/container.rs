//! What is asked of a container's life.

use std::collections::BTreeMap;

use knarr_spec::docker::{ContainerConfig, EndpointSettings, HostConfig};
use knarr_spec::{ContainerId, ContainerName};

/// What `create` and `run` ask for. Everything as the flags say it; the image's part is merged in
/// by the engine.
#[derive(Debug, Clone, Default)]
pub struct CreateRequest {
    /// `--name`; a random one where missing.
    pub name: Option<String>,
    /// What runs. `image` is the reference or id as typed (`@host` and `scratch` too). `cmd` and
    /// `entrypoint` are `None` where the image's are wanted; an entrypoint of `[""]` or `[]` is
    /// none at all.
    pub config: ContainerConfig,
    /// How it runs here. Zero and empty mean Docker's defaults.
    pub host: HostConfig,
    /// How it is on its networks, by their names. The network mode's own is added where it is
    /// missing.
    pub endpoints: BTreeMap<String, EndpointSettings>,
    /// `--pull`.
    pub pull: knarr_image::PullPolicy,
    /// `--platform` and how registries are reached.
    pub pull_options: knarr_image::PullOptions,
}

/// A container that was made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Created {
    /// Its id.
    pub id: ContainerId,
    /// Its name.
    pub name: ContainerName,
    /// What the user should know (one sentence each), for standard error.
    pub warnings: Vec<String>,
}

/// How to start.
#[derive(Debug, Clone, Default)]
pub struct StartOptions {
    /// Give a [`Session`](crate::Session) that sees the output from the first byte.
    pub attach: bool,
    /// Connect standard input too (where the container has it open).
    pub stdin: bool,
}

/// How to stop: `--signal`, `--time` (seconds, -1 waits for ever); the container's own by default.
#[derive(Debug, Clone, Default)]
pub struct StopOptions {
    /// A name with or without SIG, or a number.
    pub signal: Option<String>,
    /// Seconds until SIGKILL.
    pub timeout: Option<i64>,
}

/// How to remove.
#[derive(Debug, Clone, Copy, Default)]
pub struct RemoveOptions {
    /// Kill it first where it runs.
    pub force: bool,
    /// Remove its anonymous volumes too.
    pub volumes: bool,
}

/// What `wait` waits for.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum WaitCondition {
    /// That it does not run (returns at once where it does not).
    #[default]
    NotRunning,
    /// Its next exit.
    NextExit,
    /// That it is removed.
    Removed,
}
