//! Starting a container: from its record to a finished request for its monitor.

use std::path::{Path, PathBuf};

use knarr_fs::{Lock, failpoint};
use knarr_layer::{Base, IdMap, LayerPaths, Rootfs, Upper};
use knarr_monitor::client::{self, Started};
use knarr_monitor::request::{
    self, CopyUp, Log, Removal, Request, Restart, Size, Stdin, Stop, Streams,
};
use knarr_runtime::{PlanOptions, UserPlan};
use knarr_spec::ContainerId;

use crate::check::{self, Filter, Security};
use crate::create::text;
use crate::network::{Mode, mode_of};
use crate::record::{MountKind, Record, Root};
use crate::spec::{self, Files, Input, Joined, devices};
use crate::{Engine, Error, Result, StartOptions, files, signal, volume};

/// The three parts of what a start will do.
#[derive(Debug)]
pub(crate) struct Planned {
    pub(crate) runtime: knarr_runtime::Plan,
    pub(crate) rootfs: Rootfs,
    pub(crate) cgroup: knarr_cgroup::Plan,
    pub(crate) network: Option<knarr_net::Plan>,
    pub(crate) warnings: Vec<String>,
}

impl Engine {
    /// Starts a container whose lock the caller has; the lock passes to the monitor.
    pub(crate) fn launch(
        &self,
        record: &Record,
        lock: Lock,
        restart_count: u32,
        options: &StartOptions,
    ) -> Result<(Started, Vec<String>)> {
        prepare_sources(record)?;
        let gateway = self.gateway(record)?;
        let files = files::write(record, gateway)?;
        failpoint!("start.files");
        let planned = self.planned(record, Some(&files))?;
        let request = self.request(record, &planned, restart_count, options)?;
        failpoint!("start.planned");
        let started = client::spawn(&self.settings().monitor, &request, lock)
            .map_err(|report| report.wrap(format!("cannot start container `{}`", record.name)))?;
        failpoint!("start.spawned");
        Ok((started, planned.warnings))
    }

    /// Decides what a start will do, and makes nothing.
    pub(crate) fn planned(&self, record: &Record, files: Option<&Files>) -> Result<Planned> {
        let settings = self.settings();
        let facts = self.facts();
        let security = check::security(&record.host)?;
        let joined = self.joined(record)?;
        let devices = devices::look(&record.host)?;
        let filter = seccomp(record, &security)?;
        let program = match &filter {
            Some(section) => Some(knarr_seccomp::Cache::new(&settings.run_root).program(section)?),
            None => None,
        };
        let config = spec::config(&Input {
            record,
            facts,
            security: &security,
            joined: &joined,
            files,
            devices: &devices,
            seccomp: filter,
        })?;
        let layout = self.layout()?;
        let resources = config
            .linux
            .as_ref()
            .and_then(|linux| linux.resources.clone());
        let parent = match record.host.cgroup_parent.as_str() {
            "" => None,
            parent => Some(parent),
        };
        let path = knarr_cgroup::Plan::path_for(&record.id, parent);
        let mut cgroup =
            knarr_cgroup::Plan::from_resources(layout, &resources.unwrap_or_default(), &path)?;
        let warnings = cgroup
            .soften(layout)
            .iter()
            .map(ToString::to_string)
            .collect();
        let options = PlanOptions {
            seccomp: program,
            user: Some(UserPlan::Lookup {
                spec: record.config.user.clone(),
                group_add: record.host.group_add.clone().unwrap_or_default(),
            }),
            init: record.host.init == Some(true),
            keep_keyring: false,
            cgroup_view: spec::cgroup_view(layout.mode(), cgroup.needs_join(layout), || {
                knarr_fs::read_to_string(Path::new("/proc/self/mountinfo")).unwrap_or_default()
            }),
            nested: false,
        };
        let runtime = knarr_runtime::plan(&config, &options)
            .map_err(|error| Error::from(knarr_diag::Report::from(error)))?;
        Ok(Planned {
            runtime,
            rootfs: self.rootfs(record),
            cgroup,
            network: self.network_plan(record, files)?,
            warnings,
        })
    }

    /// What the container's root is made of.
    pub(crate) fn rootfs(&self, record: &Record) -> Rootfs {
        let store = knarr_layer::Store::open(&self.settings().root);
        let upper = Upper {
            upper: record.paths.upper.clone(),
            work: record.paths.work.clone(),
        };
        let (base, upper) = match &record.root {
            Root::Image { layers, driver, .. } => {
                let layers = layers
                    .iter()
                    .map(|id| LayerPaths {
                        id: *id,
                        folder: store.path(id),
                    })
                    .collect();
                (
                    Base::Layers {
                        driver: *driver,
                        layers,
                    },
                    Some(upper),
                )
            }
            Root::Scratch => {
                let driver = knarr_layer::Driver::Overlay;
                (
                    Base::Layers {
                        driver,
                        layers: Vec::new(),
                    },
                    Some(upper),
                )
            }
            Root::Host => (Base::Host, None),
        };
        Rootfs {
            base,
            upper,
            volatile: record.host.auto_remove,
            idmap: record.ids.map(|ids| IdMap::shifted(ids.start, ids.size)),
        }
    }

    fn request(
        &self,
        record: &Record,
        planned: &Planned,
        restart_count: u32,
        options: &StartOptions,
    ) -> Result<Request> {
        let settings = self.settings();
        let host = &record.host;
        let (max_size, max_file) = check::log(host)?;
        let log = match host.log_config.kind.as_str() {
            "none" => Log::None,
            _ => Log::JsonFile {
                path: record.paths.log.clone(),
                max_size,
                max_file,
            },
        };
        let [rows, cols] = host.console_size;
        let copy_ups = record
            .mounts
            .iter()
            .filter(|mount| mount.kind == MountKind::Volume && mount.copy_up)
            .map(|mount| CopyUp {
                from: mount.destination.clone(),
                volume: volume::folder(settings, &mount.name),
            })
            .collect();
        Ok(Request {
            version: request::REQUEST_VERSION,
            id: record.id.clone(),
            attributes: attributes(record),
            paths: request::Paths {
                run_root: settings.run_root.clone(),
                run: settings.run_dir(&record.id),
                data: (!host.auto_remove).then(|| record.paths.folder.clone()),
            },
            runtime: planned.runtime.clone(),
            rootfs: planned.rootfs.clone(),
            cgroup: planned.cgroup.clone(),
            network: planned.network.clone(),
            log,
            restart: restart(host),
            restart_count,
            stdin: match (record.config.open_stdin, record.config.stdin_once) {
                (false, _) => Stdin::Null,
                (true, false) => Stdin::Open,
                (true, true) => Stdin::Once,
            },
            terminal: record.config.tty.then_some(Size { rows, cols }),
            stop: stop(record)?,
            copy_ups,
            remove: host.auto_remove.then(|| self.removal(record)),
            attach: options.attach.then_some(Streams {
                stdin: options.stdin && record.config.open_stdin,
                stdout: true,
                stderr: true,
            }),
        })
    }

    /// What goes with a `--rm` container besides its run folder.
    fn removal(&self, record: &Record) -> Removal {
        let settings = self.settings();
        let mut paths: Vec<PathBuf> = record
            .mounts
            .iter()
            .filter(|mount| mount.anonymous)
            .map(|mount| volume::folder(settings, &mount.name))
            .collect();
        paths.push(settings.ephemeral_dir(&record.id));
        if let (Some(ids), "auto") = (record.ids, record.host.userns_mode.as_str()) {
            paths.push(settings.leases().join(ids.start.to_string()));
        }
        paths.push(settings.names().join(record.name.as_str()));
        Removal {
            data_root: settings.root.clone(),
            paths,
        }
    }

    /// The namespaces of the containers that this one joins, which must run.
    fn joined(&self, record: &Record) -> Result<Joined> {
        let mut joined = Joined::default();
        let host = &record.host;
        let mut owner: Option<(ContainerId, u32)> = None;
        let mut join = |mode: &str| -> Result<Option<u32>> {
            let Some(name) = mode.strip_prefix("container:") else {
                return Ok(None);
            };
            let id = self.find(name)?;
            let state = self.state(&id)?;
            let pid = state
                .process
                .filter(|_| state.status.is_alive())
                .map(|process| process.pid);
            let pid = pid.ok_or_else(|| {
                Error::conflict(
                    format!(
                        "cannot join namespaces of a non running container: {}",
                        id.short()
                    ),
                    format!("start it first: `knarr start {}`", id.short()),
                )
            })?;
            owner = Some((id, pid));
            Ok(Some(pid))
        };
        let namespace =
            |kind: &str, pid: Option<u32>| pid.map(|pid| format!("/proc/{pid}/ns/{kind}"));
        joined.network = namespace("net", join(&host.network_mode)?);
        if let Mode::Namespace(path) = mode_of(&host.network_mode) {
            joined.network = Some(path.to_owned());
        }
        joined.pid = namespace("pid", join(&host.pid_mode)?);
        let ipc = join(&host.ipc_mode)?;
        joined.ipc = namespace("ipc", ipc);
        joined.shm = ipc.map(|pid| format!("/proc/{pid}/root/dev/shm"));
        if host.ipc_mode == "host" {
            joined.shm = Some("/dev/shm".to_owned());
        }
        if let Some((_, pid)) = owner
            && record.ids.is_some()
        {
            joined.user = namespace("user", Some(pid));
        }
        Ok(joined)
    }
}

/// The system call filter's section; `None` without a filter.
fn seccomp(record: &Record, security: &Security) -> Result<Option<knarr_spec::runtime::Seccomp>> {
    let capabilities = || spec::capabilities::bounding(&record.host);
    let arch = knarr_seccomp::Arch::HOST;
    Ok(match &security.seccomp {
        Filter::Unconfined => None,
        Filter::Docker => Some(knarr_seccomp::default_profile(&capabilities()?, arch)),
        Filter::Profile(json) => {
            Some(knarr_seccomp::Profile::parse(json.as_bytes())?.section(&capabilities()?, arch))
        }
    })
}

/// Makes the missing sources of `-v` mounts, as Docker does, and refuses those of `--mount`. A new
/// volume becomes its first container's own, where that has a user namespace: it could not write to
/// it otherwise. (What the image has there is copied with the container's ids, too.)
fn prepare_sources(record: &Record) -> Result<()> {
    let volumes = record
        .mounts
        .iter()
        .filter(|mount| mount.kind == MountKind::Volume);
    if let Some(ids) = record.ids {
        for mount in volumes {
            let source = Path::new(&mount.source);
            let stat =
                rustix::fs::stat(source).map_err(knarr_fs::Error::of("stat", "stat", source))?;
            if stat.st_uid == 0 && knarr_fs::file_names(source)?.is_empty() {
                let (uid, gid) = (
                    rustix::fs::Uid::from_raw(ids.start),
                    rustix::fs::Gid::from_raw(ids.start),
                );
                rustix::fs::chown(source, Some(uid), Some(gid)).map_err(knarr_fs::Error::of(
                    "change the owner of",
                    "chown",
                    source,
                ))?;
            }
        }
    }
    for mount in record
        .mounts
        .iter()
        .filter(|mount| mount.kind == MountKind::Bind)
    {
        let source = Path::new(&mount.source);
        if source.exists() {
            continue;
        }
        if !mount.make_source {
            return Err(Error::invalid_hint(
                format!(
                    "invalid mount config for type \"bind\": bind source path does not exist: {}",
                    mount.source
                ),
                "it was there when the container was made; restore it, or make the container anew",
            ));
        }
        let mode = std::os::unix::fs::DirBuilderExt::mode;
        let mut builder = std::fs::DirBuilder::new();
        mode(builder.recursive(true), 0o755)
            .create(source)
            .map_err(knarr_fs::Error::of_io("create", "mkdir", source))?;
    }
    Ok(())
}

pub(crate) fn restart(host: &knarr_spec::docker::HostConfig) -> Restart {
    match host.restart_policy.name.as_str() {
        "always" => Restart::Always,
        "unless-stopped" => Restart::UnlessStopped,
        "on-failure" => Restart::OnFailure {
            max: u32::try_from(host.restart_policy.maximum_retry_count).unwrap_or_default(),
        },
        _ => Restart::No,
    }
}

fn stop(record: &Record) -> Result<Stop> {
    let default = Stop::default();
    Ok(Stop {
        signal: match record.config.stop_signal.as_deref() {
            None | Some("") => default.signal,
            Some(name) => signal::parse(name)?,
        },
        timeout: record.config.stop_timeout.unwrap_or(default.timeout),
    })
}

/// What events say of a container: its labels, and above them `image` and `name`.
pub(crate) fn attributes(record: &Record) -> std::collections::BTreeMap<String, String> {
    let mut all = record.config.labels.clone();
    all.insert("image".to_owned(), record.config.image.clone());
    all.insert("name".to_owned(), record.name.to_string());
    all
}

impl Planned {
    /// As `run --plan` prints it.
    pub(crate) fn to_json(&self, record: &Record) -> Result<serde_json::Value> {
        let json = |what: serde_json::Result<serde_json::Value>| {
            what.map_err(|cause| Error::Damaged {
                path: PathBuf::from("the plan"),
                cause,
            })
        };
        Ok(serde_json::json!({
            "command": record.command(),
            "rootfs": json(serde_json::to_value(&self.rootfs))?,
            "cgroup": json(serde_json::to_value(&self.cgroup))?,
            "network": json(serde_json::to_value(&self.network))?,
            "runtime": json(serde_json::to_value(&self.runtime))?,
            "warnings": self.warnings,
        }))
    }
}

/// Where Knarr's own files would be.
pub(crate) fn predicted_files(folder: &Path) -> Result<Files> {
    Ok(Files {
        hosts: text(&folder.join("hosts"))?,
        resolv_conf: text(&folder.join("resolv.conf"))?,
        hostname: text(&folder.join("hostname"))?,
    })
}
