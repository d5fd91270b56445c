//! The engine's front.

use std::io::{Read, Write};

use knarr_image::{Progress, Removed, Store};
use knarr_spec::ContainerId;
use serde_json::Value;

use crate::{
    Change, CopyEnd, CopyOptions, CreateRequest, Created, ExecRequest, Filters, ListOptions,
    Listing, LogLine, LogOptions, Pruned, RemoveOptions, Result, Session, Settings, StartOptions,
    StatsReader, StopOptions, Top, Volume, VolumeCreate, WaitCondition,
};

/// Everything that can be done with containers and volumes. `container` arguments are names, ids
/// or unique prefixes of ids.
#[derive(Debug)]
pub struct Engine {
    settings: Settings,
    images: Store,
}

impl Engine {
    /// Opens the state below the two roots, making what is missing.
    ///
    /// # Errors
    /// `Denied` with one clear sentence for a user without root; when the folders cannot be made.
    pub fn open(settings: Settings) -> Result<Self> {
        let _ = settings;
        todo!()
    }

    /// Where everything is.
    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    /// The images.
    pub fn images(&self) -> &Store {
        &self.images
    }

    /// `create`.
    ///
    /// # Errors
    /// A wrong request, a missing image, a name in use.
    pub fn create(&self, request: &CreateRequest, progress: &dyn Progress) -> Result<Created> {
        let _ = (request, progress);
        todo!()
    }

    /// `run`: create and start in one step.
    ///
    /// # Errors
    /// As [`create`](Self::create) and [`start`](Self::start); a `--rm` container is gone then.
    pub fn run(
        &self,
        request: &CreateRequest,
        options: &StartOptions,
        progress: &dyn Progress,
    ) -> Result<(Created, Option<Session>)> {
        let _ = (request, options, progress);
        todo!()
    }

    /// `run --plan`: what would be done, as JSON, without doing it.
    ///
    /// # Errors
    /// As [`create`](Self::create).
    pub fn plan(&self, request: &CreateRequest, progress: &dyn Progress) -> Result<Value> {
        let _ = (request, progress);
        todo!()
    }

    /// The id that a name, id or unique prefix means.
    ///
    /// # Errors
    /// `NotFound` with near names, `Ambiguous`.
    pub fn resolve(&self, container: &str) -> Result<ContainerId> {
        let _ = container;
        todo!()
    }

    /// `start`. One that runs already is fine.
    ///
    /// # Errors
    /// What the runtime said, the reason of a failed exec included.
    pub fn start(&self, container: &str, options: &StartOptions) -> Result<Option<Session>> {
        let _ = (container, options);
        todo!()
    }

    /// `attach`.
    ///
    /// # Errors
    /// `Conflict` where it does not run or is paused.
    pub fn attach(&self, container: &str, options: &StartOptions) -> Result<Session> {
        let _ = (container, options);
        todo!()
    }

    /// `stop`. One that does not run is fine.
    ///
    /// # Errors
    /// When it cannot be reached.
    pub fn stop(&self, container: &str, options: &StopOptions) -> Result<()> {
        let _ = (container, options);
        todo!()
    }

    /// `kill`, with a signal by name (with or without SIG) or number.
    ///
    /// # Errors
    /// `Conflict` where it does not run; a wrong signal.
    pub fn kill(&self, container: &str, signal: &str) -> Result<()> {
        let _ = (container, signal);
        todo!()
    }

    /// `restart`.
    ///
    /// # Errors
    /// As [`stop`](Self::stop) and [`start`](Self::start).
    pub fn restart(&self, container: &str, options: &StopOptions) -> Result<()> {
        let _ = (container, options);
        todo!()
    }

    /// `rm`.
    ///
    /// # Errors
    /// `Conflict` where it runs and force is not said.
    pub fn remove(&self, container: &str, options: &RemoveOptions) -> Result<()> {
        let _ = (container, options);
        todo!()
    }

    /// `rename`.
    ///
    /// # Errors
    /// A wrong name, one in use.
    pub fn rename(&self, container: &str, name: &str) -> Result<()> {
        let _ = (container, name);
        todo!()
    }

    /// `pause`.
    ///
    /// # Errors
    /// `Conflict` where it does not run or is paused already.
    pub fn pause(&self, container: &str) -> Result<()> {
        let _ = container;
        todo!()
    }

    /// `unpause`.
    ///
    /// # Errors
    /// `Conflict` where it is not paused.
    pub fn unpause(&self, container: &str) -> Result<()> {
        let _ = container;
        todo!()
    }

    /// `wait`: the exit code.
    ///
    /// # Errors
    /// When it cannot be found.
    pub fn wait(&self, container: &str, condition: WaitCondition) -> Result<i32> {
        let _ = (container, condition);
        todo!()
    }

    /// `exec`, in the foreground.
    ///
    /// # Errors
    /// `Conflict` where it does not run or is paused; why the program could not be run.
    pub fn exec(&self, container: &str, request: &ExecRequest) -> Result<Session> {
        let _ = (container, request);
        todo!()
    }

    /// `exec -d`: returns once the program runs.
    ///
    /// # Errors
    /// As [`exec`](Self::exec).
    pub fn exec_detached(&self, container: &str, request: &ExecRequest) -> Result<()> {
        let _ = (container, request);
        todo!()
    }

    /// `logs`: gives every line to `sink` until it returns an error or there is no more.
    ///
    /// # Errors
    /// When the container logs nowhere, or the sink failed.
    pub fn logs(
        &self,
        container: &str,
        options: &LogOptions,
        sink: &mut dyn FnMut(LogLine<'_>) -> std::io::Result<()>,
    ) -> Result<()> {
        let _ = (container, options, sink);
        todo!()
    }

    /// Whether the container has a terminal (then its log has no separate standard error).
    ///
    /// # Errors
    /// `NotFound`.
    pub fn has_tty(&self, container: &str) -> Result<bool> {
        let _ = container;
        todo!()
    }

    /// `top`: the host's view of its processes; `arguments` are those of ps(1).
    ///
    /// # Errors
    /// `Conflict` where it does not run.
    pub fn top(&self, container: &str, arguments: &[String]) -> Result<Top> {
        let _ = (container, arguments);
        todo!()
    }

    /// `stats` of one container.
    ///
    /// # Errors
    /// `NotFound`; one that does not run gives zeros.
    pub fn stats(&self, container: &str) -> Result<StatsReader> {
        let _ = container;
        todo!()
    }

    /// `diff`.
    ///
    /// # Errors
    /// `NotFound`.
    pub fn diff(&self, container: &str) -> Result<Vec<Change>> {
        let _ = container;
        todo!()
    }

    /// `cp`. `input` and `output` are what [`CopyEnd::Stream`] means.
    ///
    /// # Errors
    /// Docker's rules about what may be copied onto what.
    pub fn copy(
        &self,
        from: &CopyEnd,
        to: &CopyEnd,
        options: &CopyOptions,
        input: &mut dyn Read,
        output: &mut dyn Write,
    ) -> Result<()> {
        let _ = (from, to, options, input, output);
        todo!()
    }

    /// `inspect` of a container, in Docker's shape and field order.
    ///
    /// # Errors
    /// `NotFound`.
    pub fn inspect(&self, container: &str, size: bool) -> Result<Value> {
        let _ = (container, size);
        todo!()
    }

    /// `ps`.
    ///
    /// # Errors
    /// An unknown filter; when the state folders cannot be read.
    pub fn list(&self, options: &ListOptions) -> Result<Listing> {
        let _ = options;
        todo!()
    }

    /// `container prune`. Filters: `label`, `until`.
    ///
    /// # Errors
    /// The first failure, after trying everything.
    pub fn prune(&self, filters: &Filters) -> Result<Pruned> {
        let _ = filters;
        todo!()
    }

    /// `rmi`: removes a name or an image that no container needs.
    ///
    /// # Errors
    /// `Conflict` in Docker's words.
    pub fn remove_image(&self, name: &str, force: bool) -> Result<Vec<Removed>> {
        let _ = (name, force);
        todo!()
    }

    /// `info`, in Docker's shape.
    ///
    /// # Errors
    /// When the state folders cannot be read.
    pub fn info(&self) -> Result<Value> {
        todo!()
    }

    /// The engine's part of `version` (Docker's `Server` object).
    pub fn version(&self) -> Value {
        todo!()
    }

    /// `volume create`. One of that name already is given back.
    ///
    /// # Errors
    /// A wrong name, an unknown driver or option.
    pub fn volume_create(&self, request: &VolumeCreate) -> Result<Volume> {
        let _ = request;
        todo!()
    }

    /// `volume ls`, by name. Filters: `name`, `label`, `dangling`, `driver`.
    ///
    /// # Errors
    /// An unknown filter.
    pub fn volumes(&self, filters: &Filters) -> Result<Vec<Volume>> {
        let _ = filters;
        todo!()
    }

    /// `volume inspect`: Docker's JSON is [`Volume::inspect`].
    ///
    /// # Errors
    /// `NotFound`.
    pub fn volume(&self, name: &str) -> Result<Volume> {
        let _ = name;
        todo!()
    }

    /// `volume rm`. With `force` a missing one is fine.
    ///
    /// # Errors
    /// `Conflict` naming the containers that use it.
    pub fn volume_remove(&self, name: &str, force: bool) -> Result<()> {
        let _ = (name, force);
        todo!()
    }

    /// `volume prune`: unused anonymous ones; with `all` named ones too. Filters: `label`.
    ///
    /// # Errors
    /// The first failure, after trying everything.
    pub fn volume_prune(&self, all: bool, filters: &Filters) -> Result<Pruned> {
        let _ = (all, filters);
        todo!()
    }
}
