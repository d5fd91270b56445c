//! What runs and what it costs.

use std::path::Path;
use std::time::Instant;

use knarr_cgroup::Mode;
use knarr_monitor::state::Status;
use serde_json::{Value, json};

use crate::find::Found;
use crate::list::Filters;
use crate::prune::PruneFilter;
use crate::record::Record;
use crate::{Engine, Error, Result, time};

/// What `top` shows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Top {
    /// Column titles.
    pub titles: Vec<String>,
    /// One row per process.
    pub processes: Vec<Vec<String>>,
}

/// What a changed path underwent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ChangeKind {
    /// `C`
    Changed,
    /// `A`
    Added,
    /// `D`
    Deleted,
}

/// A line of `diff`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    /// What happened.
    pub kind: ChangeKind,
    /// To which path, absolute, as bytes of the container.
    pub path: std::path::PathBuf,
}

/// What a container uses now; percentages as Docker computes them.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Stats {
    /// Full id.
    pub id: String,
    /// Name.
    pub name: String,
    /// Percent of one CPU (200 is two whole ones).
    pub cpu_percent: f64,
    /// Bytes, without the inactive page cache.
    pub memory: u64,
    /// Bytes: the limit, or the machine's memory.
    pub memory_limit: u64,
    /// Percent of the limit.
    pub memory_percent: f64,
    /// Bytes received and sent on all interfaces but loopback.
    pub network: (u64, u64),
    /// Bytes read and written.
    pub block: (u64, u64),
    /// Processes and threads.
    pub pids: u64,
}

/// Takes [`Stats`] of one container again and again.
#[derive(Debug)]
pub struct StatsReader {
    id: String,
    name: String,
    /// `None` where it does not run: all numbers are 0.
    source: Option<Source>,
    before: Option<(Instant, u64)>,
}

#[derive(Debug)]
struct Source {
    cgroup: knarr_cgroup::Cgroup,
    pid: u32,
    machine_memory: u64,
    /// It joined its v1 hierarchies after it had started: what it took before is not in them.
    joined_late: bool,
}

impl StatsReader {
    /// A sample. The percentage of CPU time is since the sample before, and 0 in the first.
    ///
    /// # Errors
    /// When the container is gone.
    pub fn sample(&mut self) -> Result<Stats> {
        let mut stats = Stats {
            id: self.id.clone(),
            name: self.name.clone(),
            ..Stats::default()
        };
        let Some(source) = &self.source else {
            return Ok(stats);
        };
        let now = Instant::now();
        let used = source.cgroup.stats()?;
        let cpu = used.cpu.map(|cpu| cpu.total).unwrap_or_default();
        if let Some((then, before)) = self.before {
            let wall = now.duration_since(then).as_nanos();
            stats.cpu_percent = percent(
                cpu.saturating_sub(before),
                u64::try_from(wall).unwrap_or(u64::MAX),
            );
        }
        self.before = Some((now, cpu));
        if let Some(memory) = used.memory {
            stats.memory = memory.working_set();
            if source.joined_late {
                stats.memory = stats.memory.max(own_memory(&source.cgroup.processes()?));
            }
            stats.memory_limit = memory.limit.unwrap_or(u64::MAX).min(source.machine_memory);
            stats.memory_percent = percent(stats.memory, stats.memory_limit);
        }
        if let Some(block) = used.block {
            stats.block = (block.read, block.written);
        }
        stats.pids = match used.pids {
            Some(pids) => pids.current,
            None => u64::try_from(source.cgroup.processes()?.len()).unwrap_or_default(),
        };
        stats.network = network(source.pid);
        Ok(stats)
    }
}

/// `part` of `whole` in percent.
#[expect(clippy::cast_precision_loss, reason = "two digits are shown")]
fn percent(part: u64, whole: u64) -> f64 {
    if whole == 0 {
        0.0
    } else {
        part as f64 / whole as f64 * 100.0
    }
}

/// Bytes of the processes' own memory: anonymous and shared, no files (`smaps_rollup`, proc(5), since
/// Linux 5.9). Who is gone has none.
fn own_memory(processes: &[rustix::process::Pid]) -> u64 {
    let of = |pid: &rustix::process::Pid| -> u64 {
        let path = format!("/proc/{}/smaps_rollup", pid.as_raw_nonzero());
        let text = knarr_fs::read_to_string(Path::new(&path)).unwrap_or_default();
        let kilobytes = |line: &str| -> Option<u64> {
            let (key, value) = line.split_once(':')?;
            matches!(key, "Pss_Anon" | "Pss_Shmem")
                .then(|| value.trim().strip_suffix(" kB")?.parse().ok())
                .flatten()
        };
        text.lines().filter_map(kilobytes).sum::<u64>() * 1024
    };
    processes.iter().map(of).sum()
}

/// Bytes received and sent on all interfaces but loopback (proc_pid_net(5)).
fn network(pid: u32) -> (u64, u64) {
    let path = format!("/proc/{pid}/net/dev");
    let text = knarr_fs::read_to_string(Path::new(&path)).unwrap_or_default();
    let lines = text.lines().filter_map(|line| {
        let (name, numbers) = line.split_once(':')?;
        let numbers: Vec<u64> = numbers
            .split_whitespace()
            .map_while(|n| n.parse().ok())
            .collect();
        (name.trim() != "lo").then_some((*numbers.first()?, *numbers.get(8)?))
    });
    lines.fold((0, 0), |(received, sent), (more, and_more)| {
        (received + more, sent + and_more)
    })
}

/// What a prune removed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Pruned {
    /// Ids or names.
    pub removed: Vec<String>,
    /// Bytes that are free now.
    pub bytes: u64,
}

impl Engine {
    pub(crate) fn stats_now(&self, text: &str) -> Result<StatsReader> {
        let id = self.find(text)?;
        let record = self.record(&id)?;
        let source = match self.touch(&id)? {
            Found::Idle(..) => None,
            Found::Running(state) => {
                let cgroup = self.cgroup(&self.stored_request(&id)?)?;
                cgroup.join_stats()?;
                let layout = self.layout()?;
                let joined_late = layout.mode() != Mode::Unified && !cgroup.needs_join();
                let pid = state.process.map(|process| process.pid).unwrap_or_default();
                Some(Source {
                    cgroup,
                    pid,
                    machine_memory: machine_memory(),
                    joined_late,
                })
            }
        };
        Ok(StatsReader {
            id: id.to_string(),
            name: record.name.to_string(),
            source,
            before: None,
        })
    }

    pub(crate) fn top_now(&self, text: &str, arguments: &[String]) -> Result<Top> {
        let id = self.find(text)?;
        let not_running = || {
            Error::conflict(
                format!("Container {id} is not running"),
                format!("start it first: `knarr start {text}`"),
            )
        };
        let Found::Running(state) = self.touch(&id)? else {
            return Err(not_running());
        };
        if state.status == Status::Restarting {
            return Err(Error::conflict(
                format!("Container {id} is restarting, wait until the container is running"),
                format!("`knarr logs {text}` shows why it ended"),
            ));
        }
        let processes = self.cgroup(&self.stored_request(&id)?)?.processes()?;
        crate::top::table(&processes, arguments)
    }

    pub(crate) fn diff_now(&self, text: &str) -> Result<Vec<Change>> {
        let id = self.find(text)?;
        let record = self.record(&id)?;
        let changes = knarr_layer::changes(&self.rootfs(&record), &self.settings().run_root)?;
        let changes = without_targets(changes, &record);
        Ok(changes
            .into_iter()
            .map(|change| Change {
                kind: match change.kind {
                    knarr_layer::ChangeKind::Added => ChangeKind::Added,
                    knarr_layer::ChangeKind::Changed => ChangeKind::Changed,
                    knarr_layer::ChangeKind::Deleted => ChangeKind::Deleted,
                },
                path: change.path,
            })
            .collect())
    }

    pub(crate) fn prune_now(&self, filters: &Filters) -> Result<Pruned> {
        let filter = PruneFilter::parse(filters)?;
        let mut pruned = Pruned::default();
        let mut result = Ok(());
        for id in self.ids()? {
            // One that was removed meanwhile, or is damaged, is left alone.
            let Ok(record) = self.record(&id) else {
                continue;
            };
            if !filter.matches(&record.config.labels, time::parse(&record.created)) {
                continue;
            }
            let removed = match self.touch(&id) {
                Ok(Found::Idle(lock, _)) => {
                    let bytes = crate::list::disk_usage(&record.paths.upper);
                    self.erase(&id, lock, false).map(|()| bytes)
                }
                Ok(Found::Running(_)) | Err(Error::NotFound { .. }) => continue,
                Err(error) => Err(error),
            };
            match removed {
                Ok(bytes) => {
                    pruned.bytes = pruned.bytes.saturating_add(bytes);
                    pruned.removed.push(id.to_string());
                }
                Err(error) => result = result.and(Err(error)),
            }
        }
        result.map(|()| pruned)
    }

    pub(crate) fn info_now(&self) -> Result<Value> {
        let (mut running, mut paused, mut stopped) = (0, 0, 0);
        for id in self.ids()? {
            if !self.exists(&id) {
                continue;
            }
            match self.state(&id)?.status {
                Status::Running | Status::Restarting => running += 1,
                Status::Paused => paused += 1,
                Status::Created | Status::Exited => stopped += 1,
            }
        }
        let images = self.images().list()?;
        let layout = self.layout()?;
        let facts = crate::spec::facts::Facts::read();
        let uname = rustix::system::uname();
        let settings = self.settings();
        let driver = knarr_layer::Driver::choose(&settings.root, &settings.run_root);
        let driver = match driver {
            Ok(driver) => json!(driver),
            Err(error) => json!(error.to_string()),
        };
        Ok(json!({
            "ID": "",
            "Containers": running + paused + stopped,
            "ContainersRunning": running,
            "ContainersPaused": paused,
            "ContainersStopped": stopped,
            "Images": images.images.len(),
            "Driver": driver,
            "DriverStatus": [],
            "Plugins": { "Volume": ["local"], "Network": ["host", "none"], "Authorization": null,
                         "Log": ["json-file", "none"] },
            "MemoryLimit": true,
            "SwapLimit": true,
            "CpuCfsPeriod": true,
            "CpuCfsQuota": true,
            "CPUShares": true,
            "CPUSet": true,
            "PidsLimit": true,
            "IPv4Forwarding": true,
            "OomKillDisable": layout.mode() != knarr_cgroup::Mode::Unified,
            "LoggingDriver": "json-file",
            "CgroupDriver": "cgroupfs",
            "CgroupVersion": if layout.mode() == knarr_cgroup::Mode::Unified { "2" } else { "1" },
            "KernelVersion": uname.release().to_string_lossy(),
            "OperatingSystem": operating_system(),
            "OSType": "linux",
            "Architecture": uname.machine().to_string_lossy(),
            "NCPU": facts.cpus,
            "MemTotal": machine_memory(),
            "DockerRootDir": settings.root,
            "RunRootDir": settings.run_root,
            "Name": facts.hostname,
            "Labels": [],
            "ExperimentalBuild": false,
            "ServerVersion": env!("CARGO_PKG_VERSION"),
            "Runtimes": { "knarr": { "path": settings.monitor } },
            "DefaultRuntime": "knarr",
            "LiveRestoreEnabled": true,
            "Isolation": "process",
            "InitBinary": "knarr-monitor",
            "SecurityOptions": ["name=seccomp,profile=builtin", "name=cgroupns"],
            "Warnings": null,
        }))
    }

    pub(crate) fn version_now(&self) -> Value {
        let uname = rustix::system::uname();
        json!({
            "Platform": { "Name": "Knarr" },
            "Components": [{ "Name": "Engine", "Version": env!("CARGO_PKG_VERSION") }],
            "Version": env!("CARGO_PKG_VERSION"),
            "ApiVersion": "1.43",
            "MinAPIVersion": "1.24",
            "Os": "linux",
            "Arch": knarr_spec::Platform::host().architecture,
            "KernelVersion": uname.release().to_string_lossy(),
        })
    }
}

/// The places where Knarr mounts something in a container, and makes them where they are missing.
pub(crate) fn mount_points(record: &Record) -> impl Iterator<Item = &Path> {
    let files = [
        "/etc/hosts",
        "/etc/hostname",
        "/etc/resolv.conf",
        "/proc",
        "/sys",
        "/dev",
    ];
    let own = record.mounts.iter().map(|mount| mount.destination.as_str());
    files.into_iter().chain(own).map(Path::new)
}

/// Leaves out the places that mounts were made on, and the folders that only changed for those.
fn without_targets(changes: Vec<knarr_layer::Change>, record: &Record) -> Vec<knarr_layer::Change> {
    let targets: Vec<&Path> = mount_points(record).collect();
    let mut kept: Vec<knarr_layer::Change> = Vec::with_capacity(changes.len());
    // They are sorted: what is below a folder comes behind it, so from the back it is known.
    for change in changes.into_iter().rev() {
        let deleted = change.kind == knarr_layer::ChangeKind::Deleted;
        let leads = targets
            .iter()
            .any(|target| target.starts_with(&change.path));
        let needed = kept
            .last()
            .is_some_and(|below| below.path.starts_with(&change.path));
        if deleted || !leads || needed {
            kept.push(change);
        }
    }
    kept.reverse();
    kept
}

/// `PRETTY_NAME` of os-release(5).
fn operating_system() -> String {
    let text = knarr_fs::read_to_string(Path::new("/etc/os-release")).unwrap_or_default();
    let name = text
        .lines()
        .find_map(|line| line.strip_prefix("PRETTY_NAME="));
    name.map_or_else(
        || "Linux".to_owned(),
        |name| name.trim_matches('"').to_owned(),
    )
}

/// Bytes of memory that the machine has.
pub(crate) fn machine_memory() -> u64 {
    let text = knarr_fs::read_to_string(Path::new("/proc/meminfo")).unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix("MemTotal:"));
    let kib = line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok());
    kib.unwrap_or_default().saturating_mul(1024)
}

#[cfg(test)]
mod tests {
    use super::*;
    use knarr_layer::ChangeKind::{Added, Changed, Deleted};

    #[test]
    fn a_diff_leaves_out_what_mounts_made() {
        let mut record = crate::record::tests::example();
        record.mounts.truncate(1);
        let changes = [
            (Changed, "/etc"),
            (Added, "/etc/hosts"),
            (Added, "/etc/mine"),
            (Added, "/proc"),
            (Deleted, "/sys"),
            (Changed, "/var"),
            (Changed, "/var/lib"),
            (Added, "/var/lib/data"),
        ];
        let changes = changes.map(|(kind, path)| knarr_layer::Change {
            path: path.into(),
            kind,
        });
        let left: Vec<_> = without_targets(changes.into(), &record)
            .iter()
            .map(|change| change.path.display().to_string())
            .collect();
        assert_eq!(left, ["/etc", "/etc/mine", "/sys"]);
    }
}
