//! The engine's front.

use std::cell::OnceCell;
use std::io::{Read, Write};
use std::path::PathBuf;

use knarr_cgroup::Layout;
use knarr_fs::Trash;
use knarr_image::{Checked, ImageId, Progress, PullOptions, Removed, Store, User};
use knarr_spec::ContainerId;
use knarr_spec::docker::{EndpointSettings, PortBinding};
use serde_json::Value;

use crate::record::{Record, Root};
use crate::spec::facts::Facts;
use crate::{
    Change, CommitRequest, CopyEnd, CopyOptions, CreateRequest, Created, Error, EventOptions,
    EventSink, ExecRequest, Filters, ListOptions, Listing, LogLine, LogOptions, NetworkCreate,
    NetworkSummary, Pruned, PublishedPort, RemoveOptions, Result, Session, Settings, StartOptions,
    StatsReader, StopOptions, SystemPruned, Top, UpdateRequest, Usage, Volume, VolumeCreate,
    WaitCondition, Way,
};

/// Everything that can be done with containers and volumes. `container` arguments are names, ids
/// or unique prefixes of ids.
#[derive(Debug)]
pub struct Engine {
    settings: Settings,
    images: Store,
    layout: OnceCell<Layout>,
    facts: OnceCell<Facts>,
}

impl Engine {
    /// Opens the state below the two roots, making what is missing.
    ///
    /// # Errors
    /// `Denied` with one clear sentence for a user without root; when the folders cannot be made.
    pub fn open(settings: Settings) -> Result<Self> {
        settings.prepare()?;
        let run_root = settings.run_root.clone();
        let images =
            Store::open(&settings.root, &settings.run_root)?.announcing(move |action, id, name| {
                let attributes = [("name".to_owned(), name.to_owned())].into();
                // That it cannot be written down changes nothing of what was done.
                knarr_monitor::events::append(&run_root, "image", action, id, attributes).ok();
            });
        Ok(Self {
            settings,
            images,
            layout: OnceCell::new(),
            facts: OnceCell::new(),
        })
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
        let mut draft = self.draft(request, progress)?;
        let mut warnings = std::mem::take(&mut draft.warnings);
        warnings.extend(self.limits(&draft)?);
        let (record, lock) = self.publish(request.name.as_deref(), draft)?;
        if !record.host.auto_remove {
            // It has nothing to tell until it is started, and lists need not look.
            // By one rename: who waits for the lock makes a folder of its own then.
            let trash = Trash::below(&self.settings.run_root);
            trash.throw(&self.settings.run_dir(&record.id))?;
            trash.empty()?;
        }
        drop(lock);
        Ok(Self::created(&record, warnings))
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
        self.run_now(request, options, progress)
    }

    /// `run --plan`: what would be done, as JSON, without doing it.
    ///
    /// # Errors
    /// As [`create`](Self::create).
    pub fn plan(&self, request: &CreateRequest, progress: &dyn Progress) -> Result<Value> {
        self.plan_now(request, progress)
    }

    /// The id that a name, id or unique prefix means.
    ///
    /// # Errors
    /// `NotFound` with near names, `Ambiguous`.
    pub fn resolve(&self, container: &str) -> Result<ContainerId> {
        self.find(container)
    }

    /// `start`. One that runs already is fine.
    ///
    /// # Errors
    /// What the runtime said, the reason of a failed exec included.
    pub fn start(&self, container: &str, options: &StartOptions) -> Result<Option<Session>> {
        self.start_now(container, options)
    }

    /// `attach`.
    ///
    /// # Errors
    /// `Conflict` where it does not run or is paused.
    pub fn attach(&self, container: &str, options: &StartOptions) -> Result<Session> {
        self.attach_now(container, options)
    }

    /// `stop`. One that does not run is fine.
    ///
    /// # Errors
    /// When it cannot be reached.
    pub fn stop(&self, container: &str, options: &StopOptions) -> Result<()> {
        self.stop_now(container, options, &mut |_| {})
    }

    /// [`stop`](Self::stop), and `deaf` is called with the signal where the first process will not
    /// react to it, so that the user knows why it takes so long.
    ///
    /// # Errors
    /// As [`stop`](Self::stop).
    pub fn stop_telling(
        &self,
        container: &str,
        options: &StopOptions,
        deaf: &mut dyn FnMut(i32),
    ) -> Result<()> {
        self.stop_now(container, options, deaf)
    }

    /// `kill`, with a signal by name (with or without SIG) or number.
    ///
    /// # Errors
    /// `Conflict` where it does not run; a wrong signal.
    pub fn kill(&self, container: &str, signal: &str) -> Result<()> {
        self.kill_now(container, signal)
    }

    /// `restart`.
    ///
    /// # Errors
    /// As [`stop`](Self::stop) and [`start`](Self::start).
    pub fn restart(&self, container: &str, options: &StopOptions) -> Result<()> {
        self.restart_now(container, options)
    }

    /// `rm`.
    ///
    /// # Errors
    /// `Conflict` where it runs and force is not said.
    pub fn remove(&self, container: &str, options: &RemoveOptions) -> Result<()> {
        self.remove_now(container, options)
    }

    /// `rename`.
    ///
    /// # Errors
    /// A wrong name, one in use.
    pub fn rename(&self, container: &str, name: &str) -> Result<()> {
        self.rename_now(container, name)
    }

    /// `pause`.
    ///
    /// # Errors
    /// `Conflict` where it does not run or is paused already.
    pub fn pause(&self, container: &str) -> Result<()> {
        self.pause_now(container, true)
    }

    /// `unpause`.
    ///
    /// # Errors
    /// `Conflict` where it is not paused.
    pub fn unpause(&self, container: &str) -> Result<()> {
        self.pause_now(container, false)
    }

    /// `wait`: the exit code.
    ///
    /// # Errors
    /// When it cannot be found.
    pub fn wait(&self, container: &str, condition: WaitCondition) -> Result<i32> {
        self.wait_now(container, condition)
    }

    /// `exec`, in the foreground.
    ///
    /// # Errors
    /// `Conflict` where it does not run or is paused; why the program could not be run.
    pub fn exec(&self, container: &str, request: &ExecRequest) -> Result<Session> {
        self.exec_now(container, request)
    }

    /// `exec -d`: returns once the program runs.
    ///
    /// # Errors
    /// As [`exec`](Self::exec).
    pub fn exec_detached(&self, container: &str, request: &ExecRequest) -> Result<()> {
        self.exec_detached_now(container, request)
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
        self.logs_now(container, options, sink)
    }

    /// Whether the container has a terminal (then its log has no separate standard error).
    ///
    /// # Errors
    /// `NotFound`.
    pub fn has_tty(&self, container: &str) -> Result<bool> {
        Ok(self.record(&self.find(container)?)?.config.tty)
    }

    /// `top`: the host's view of its processes; `arguments` are those of ps(1).
    ///
    /// # Errors
    /// `Conflict` where it does not run.
    pub fn top(&self, container: &str, arguments: &[String]) -> Result<Top> {
        self.top_now(container, arguments)
    }

    /// `stats` of one container.
    ///
    /// # Errors
    /// `NotFound`; one that does not run gives zeros.
    pub fn stats(&self, container: &str) -> Result<StatsReader> {
        self.stats_now(container)
    }

    /// `diff`.
    ///
    /// # Errors
    /// `NotFound`.
    pub fn diff(&self, container: &str) -> Result<Vec<Change>> {
        self.diff_now(container)
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
        self.copy_now(from, to, options, input, output)
    }

    /// `inspect` of a container, in Docker's shape and field order.
    ///
    /// # Errors
    /// `NotFound`.
    pub fn inspect(&self, container: &str, size: bool) -> Result<Value> {
        self.inspect_now(container, size)
    }

    /// `ps`.
    ///
    /// # Errors
    /// An unknown filter; when the state folders cannot be read.
    pub fn list(&self, options: &ListOptions) -> Result<Listing> {
        self.list_now(options)
    }

    /// `container prune`. Filters: `label`, `label!`, `until`.
    ///
    /// # Errors
    /// The first failure, after trying everything.
    pub fn prune(&self, filters: &Filters) -> Result<Pruned> {
        self.prune_now(filters)
    }

    /// `rmi`: removes a name or an image that no container needs.
    ///
    /// # Errors
    /// `Conflict` in Docker's words.
    pub fn remove_image(&self, name: &str, force: bool) -> Result<Vec<Removed>> {
        match self.images.remove(name, force, &|id| self.image_users(id)) {
            Err(error @ knarr_image::Error::Conflict { .. }) => {
                let mounted = self.images.resolve(name).ok();
                match mounted.and_then(|image| self.mounted_at(image.id)) {
                    Some(path) => Err(Error::conflict(
                        format!("image {name} is mounted at {}", path.display()),
                        format!("`knarr image unmount {name}` comes first"),
                    )),
                    None => Err(error.into()),
                }
            }
            removed => Ok(removed?),
        }
    }

    /// `image prune`: dangling images, with `all` every one that no container has. Filters:
    /// `dangling`, `label`, `label!`, `until`.
    ///
    /// # Errors
    /// A wrong filter; the first failure.
    pub fn prune_images(&self, all: bool, filters: &Filters) -> Result<Pruned> {
        self.prune_images_now(all, filters)
    }

    /// `system prune`: stopped containers, images as [`prune_images`](Self::prune_images), with
    /// `volumes` anonymous volumes that no container has, what was set aside as damaged. Filters:
    /// `label`, `label!`, `until`.
    ///
    /// # Errors
    /// A wrong filter; the first failure.
    pub fn prune_system(
        &self,
        all: bool,
        volumes: bool,
        filters: &Filters,
    ) -> Result<SystemPruned> {
        self.prune_system_now(all, volumes, filters)
    }

    /// `system df`.
    ///
    /// # Errors
    /// When the data root cannot be read.
    pub fn usage(&self) -> Result<Usage> {
        self.usage_now()
    }

    /// `system check`: everything hashed again, and whatever has no owner found. With `repair`,
    /// damaged objects are set aside and made or fetched anew; the options say how registries are
    /// reached.
    ///
    /// # Errors
    /// When the data root cannot be read; what is wrong in it is in the result.
    pub fn check(&self, repair: Option<&PullOptions>, progress: &dyn Progress) -> Result<Checked> {
        self.check_now(repair, progress)
    }

    /// `commit`: makes an image of a container, running or not; its id.
    ///
    /// # Errors
    /// `Invalid` for a wrong change, `Unsupported` for `@host`.
    pub fn commit(&self, container: &str, request: &CommitRequest) -> Result<ImageId> {
        self.commit_now(container, request)
    }

    /// `export`: a container's whole file system as a tar, what is mounted in it left out.
    ///
    /// # Errors
    /// `NotFound`; when `output` fails.
    pub fn export(&self, container: &str, output: &mut dyn Write) -> Result<()> {
        self.export_now(container, output)
    }

    /// `update`: other limits, at once where it runs; warnings for the user.
    ///
    /// # Errors
    /// Limits that contradict each other or that the kernel refuses.
    pub fn update(&self, container: &str, request: &UpdateRequest) -> Result<Vec<String>> {
        self.update_now(container, request)
    }

    /// `events`: gives what happened and happens to `sink`, until `options.until`.
    ///
    /// # Errors
    /// An unknown filter; what `sink` gave, as [`Error::Stream`].
    pub fn events(&self, options: &EventOptions, sink: EventSink<'_>) -> Result<()> {
        self.events_now(options, sink)
    }

    /// `image mount`: shows an image's files, read-only, in the machine's mount table until
    /// [`image_unmount`](Self::image_unmount). Gives where; again where it is mounted already.
    ///
    /// # Errors
    /// `NotFound`; where nothing can be mounted.
    pub fn image_mount(&self, name: &str) -> Result<PathBuf> {
        self.image_mount_now(name)
    }

    /// `image unmount`. With `force` one in use goes when its last user does.
    ///
    /// # Errors
    /// `Conflict` where it is not mounted or in use.
    pub fn image_unmount(&self, id: ImageId, force: bool) -> Result<()> {
        self.image_unmount_now(id, force)
    }

    /// The images that are mounted, and where.
    ///
    /// # Errors
    /// When the run root cannot be read.
    pub fn image_mounts(&self) -> Result<Vec<(ImageId, PathBuf)>> {
        self.image_mounts_now()
    }

    /// `info`, in Docker's shape.
    ///
    /// # Errors
    /// When the state folders cannot be read.
    pub fn info(&self) -> Result<Value> {
        self.info_now()
    }

    /// The engine's part of `version` (Docker's `Server` object).
    pub fn version(&self) -> Value {
        self.version_now()
    }

    /// `volume create`. One of that name already is given back.
    ///
    /// # Errors
    /// A wrong name, an unknown driver or option.
    pub fn volume_create(&self, request: &VolumeCreate) -> Result<Volume> {
        self.volume_create_now(request)
    }

    /// `volume ls`, by name. Filters: `name`, `label`, `dangling`, `driver`.
    ///
    /// # Errors
    /// An unknown filter.
    pub fn volumes(&self, filters: &Filters) -> Result<Vec<Volume>> {
        self.volumes_now(filters)
    }

    /// `volume inspect`: Docker's JSON is [`Volume::inspect`].
    ///
    /// # Errors
    /// `NotFound`.
    pub fn volume(&self, name: &str) -> Result<Volume> {
        match crate::volume::load(&self.settings, name)? {
            Some(volume) => Ok(volume),
            None => Err(self.no_volume(name)?),
        }
    }

    /// `volume rm`. With `force` a missing one is fine.
    ///
    /// # Errors
    /// `Conflict` naming the containers that use it.
    pub fn volume_remove(&self, name: &str, force: bool) -> Result<()> {
        self.volume_remove_now(name, force)
    }

    /// `volume prune`: unused anonymous ones; with `all` named ones too. Filters: `label`.
    ///
    /// # Errors
    /// The first failure, after trying everything.
    pub fn volume_prune(&self, all: bool, filters: &Filters) -> Result<Pruned> {
        self.volume_prune_now(all, filters)
    }

    /// `network create`: its id.
    ///
    /// # Errors
    /// A wrong name or subnet, one in use.
    pub fn network_create(&self, request: &NetworkCreate) -> Result<String> {
        self.network_create_now(request)
    }

    /// What this host's own firewall drops of a network's packets, a sentence each with the commands
    /// that allow them. With `fix` these are run first, and what is left is told.
    ///
    /// # Errors
    /// `NetworkNotFound`; a command that fails.
    pub fn network_obstacles(&self, network: &str, fix: bool) -> Result<Vec<String>> {
        self.network_obstacles_now(network, fix)
    }

    /// `network audit`: what can be reached from where, out of the kernel's own rules; with `fix`
    /// after what [`network_obstacles`](Self::network_obstacles) names is allowed.
    ///
    /// # Errors
    /// When the kernel does not tell its rules; a command that fails.
    pub fn network_audit(&self, fix: bool) -> Result<Vec<Way>> {
        self.network_audit_now(fix)
    }

    /// `network ls`, by name. Filters: `name`, `id`, `driver`, `scope`, `label`, `type`,
    /// `dangling`.
    ///
    /// # Errors
    /// An unknown filter.
    pub fn networks(&self, filters: &Filters) -> Result<Vec<NetworkSummary>> {
        self.networks_now(filters)
    }

    /// `network inspect`, in Docker's shape.
    ///
    /// # Errors
    /// `NetworkNotFound` with near names.
    pub fn network_inspect(&self, network: &str) -> Result<Value> {
        self.network_inspect_now(network)
    }

    /// `network rm`.
    ///
    /// # Errors
    /// `Conflict` naming the containers that are on it.
    pub fn network_remove(&self, network: &str) -> Result<()> {
        self.network_remove_now(network)
    }

    /// `network prune`: those that no container names. Filters: `label`, `until`.
    ///
    /// # Errors
    /// The first failure.
    pub fn network_prune(&self, filters: &Filters) -> Result<Vec<String>> {
        self.network_prune_now(filters)
    }

    /// `network connect`, of a container that runs or not.
    ///
    /// # Errors
    /// An address in use; a container without networks of its own.
    pub fn network_connect(
        &self,
        network: &str,
        container: &str,
        settings: &EndpointSettings,
    ) -> Result<()> {
        self.network_connect_now(network, container, settings)
    }

    /// `network disconnect`.
    ///
    /// # Errors
    /// When it is not on that network.
    pub fn network_disconnect(&self, network: &str, container: &str, force: bool) -> Result<()> {
        self.network_disconnect_now(network, container, force)
    }

    /// `network publish`: more ports (`80/tcp`), of a container that runs or not.
    ///
    /// # Errors
    /// A port in use, named with its holder.
    pub fn publish_ports(&self, container: &str, ports: &[(String, PortBinding)]) -> Result<()> {
        self.publish_now(container, ports)
    }

    /// `network unpublish`: one port (`80/tcp`) or all of them.
    ///
    /// # Errors
    /// When none is published.
    pub fn unpublish_ports(&self, container: &str, port: Option<&str>) -> Result<()> {
        self.unpublish_now(container, port)
    }

    /// `port`: what a running container publishes, sorted.
    ///
    /// # Errors
    /// `NotFound`.
    pub fn ports(&self, container: &str) -> Result<Vec<PublishedPort>> {
        self.ports_now(container)
    }

    /// The machine's cgroups, looked at once.
    pub(crate) fn layout(&self) -> Result<&Layout> {
        if let Some(layout) = self.layout.get() {
            return Ok(layout);
        }
        let layout = Layout::detect()?;
        Ok(self.layout.get_or_init(|| layout))
    }

    /// What the machine is like, looked at once.
    pub(crate) fn facts(&self) -> &Facts {
        self.facts.get_or_init(Facts::read)
    }

    /// The containers that were made from an image, as the image store asks before it removes one.
    pub(crate) fn image_users(&self, image: ImageId) -> Vec<User> {
        let users = self.ids().unwrap_or_default().into_iter().filter_map(|id| {
            // A container that cannot be read keeps no image.
            let record = Record::load(&self.settings, &id).ok()??;
            matches!(record.root, Root::Image { id, .. } if id == image.digest()).then_some(id)
        });
        users
            .map(|id| User {
                running: self.state(&id).is_ok_and(|state| state.status.is_alive()),
                container: id.to_string(),
            })
            // A mounted image is as much in use as a running container's.
            .chain(self.mounted_at(image).map(|path| User {
                running: true,
                container: path.display().to_string(),
            }))
            .collect()
    }
}
