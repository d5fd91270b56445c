//! The cgroup of one container: made, entered, watched, removed.

use std::collections::{BTreeSet, HashSet};
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use knarr_sys::Failure;
use knarr_sys::rustix::event::{PollFd, PollFlags, Timespec, poll};
use knarr_sys::rustix::fs;
use knarr_sys::rustix::io::Errno;
use knarr_sys::rustix::process::{Pid, Signal, kill_process};

use crate::control;
use crate::devices;
use crate::layout::{Hierarchy, Layout};
use crate::limits::{self, Setting};
use crate::plan::{Limits, Plan, Warning};
use crate::stats::{self, CpuStats, PidsStats, Stats};
use crate::{Error, Result};

/// How long freezing and removing may take.
const PATIENCE: Duration = Duration::from_secs(2);

/// The v1 hierarchies that only count, and are joined when somebody asks.
const COUNTING: [&str; 4] = ["memory", "blkio", "cpuacct", "pids"];

/// A handle on a container's cgroup in all hierarchies. Dropping it changes nothing.
#[derive(Debug)]
pub struct Cgroup {
    plan: Plan,
    layout: Layout,
    unified: Option<Unified>,
    warnings: Vec<Warning>,
}

/// The directory in the v2 hierarchy.
#[derive(Debug)]
struct Unified {
    path: PathBuf,
    fd: OwnedFd,
}

impl Cgroup {
    /// Makes the directories that identity and limits need, sets the limits, installs the device
    /// rules. Idempotent. Without limits, on v2 or hybrid, it is one mkdir. When it fails, what it
    /// made is gone.
    ///
    /// # Errors
    /// [`Error::Create`], [`Error::Write`], [`Error::Delegate`], [`Error::Devices`],
    /// [`Error::MissingController`].
    pub fn create(layout: &Layout, plan: &Plan) -> Result<Self> {
        let mut made = Made::default();
        match Self::create_recording(layout, plan, &mut made) {
            Ok(cgroup) => Ok(cgroup),
            Err(error) => {
                made.undo();
                Err(error)
            }
        }
    }

    fn create_recording(layout: &Layout, plan: &Plan, made: &mut Made) -> Result<Self> {
        plan.check_version()?;
        let mut plan_softened = plan.clone();
        let warnings = plan_softened.soften(layout);
        let settings = limits::settings(&plan_softened.limits, layout)?;
        let unified = match &layout.unified {
            None => None,
            Some(hierarchy) => {
                let path = hierarchy.dir(&plan.path);
                let fresh = made.directory(&hierarchy.mount, &path)?;
                delegate(hierarchy, &path, &settings)?;
                let fd = control::open_dir(&path)?;
                if !plan.devices.is_empty() {
                    devices::install(fd.as_fd(), &path, &plan.devices, fresh)?;
                }
                Some(Unified { path, fd })
            }
        };
        let mut cgroup = Self {
            plan: plan_softened,
            layout: layout.clone(),
            unified,
            warnings,
        };
        for (_, dir) in cgroup.joined_before_exec(&settings) {
            let mount = cgroup.mount_of(&dir);
            made.directory(&mount, &dir)?;
        }
        if cgroup.unified.is_none() && !cgroup.plan.devices.is_empty() {
            cgroup.set_legacy_devices()?;
        }
        cgroup.apply(&settings)?;
        Ok(cgroup)
    }

    /// Opens what [`Self::create`] made, perhaps in another process.
    ///
    /// # Errors
    /// [`Error::Open`], of class not-found when it does not exist.
    pub fn open(layout: &Layout, plan: &Plan) -> Result<Self> {
        plan.check_version()?;
        let unified = match &layout.unified {
            None => None,
            Some(hierarchy) => {
                let path = hierarchy.dir(&plan.path);
                let fd = control::open_dir(&path)?;
                Some(Unified { path, fd })
            }
        };
        let cgroup = Self {
            plan: plan.clone(),
            layout: layout.clone(),
            unified,
            warnings: Vec::new(),
        };
        if cgroup.unified.is_none() {
            control::open_dir(&cgroup.identity()?)?;
        }
        Ok(cgroup)
    }

    /// The plan it was made from, without what had to be dropped ([`Self::warnings`]).
    pub fn plan(&self) -> &Plan {
        &self.plan
    }

    /// What [`Self::create`] had to leave out; also what [`Plan::soften`] told before.
    pub fn warnings(&self) -> &[Warning] {
        &self.warnings
    }

    /// The v2 directory, for `CLONE_INTO_CGROUP`; `None` on pure v1.
    pub fn dir_fd(&self) -> Option<BorrowedFd<'_>> {
        self.unified.as_ref().map(|unified| unified.fd.as_fd())
    }

    /// Whether [`Self::join_limits`] has anything to do.
    pub fn needs_join(&self) -> bool {
        self.plan.needs_join(&self.layout)
    }

    /// Moves a process that is still held back into the v1 hierarchies that limit it (on pure v1
    /// also into the one that identifies it). Meant for the parent, while the child makes its
    /// mounts: the first write after a quiet moment takes 5 to 17 ms, further ones some 20 µs.
    ///
    /// # Errors
    /// [`Error::Join`].
    pub fn join_limits(&self, pid: Pid) -> Result<()> {
        let settings = limits::settings(&self.plan.limits, &self.layout)?;
        self.joined_before_exec(&settings)
            .iter()
            .try_for_each(|(_, dir)| join(dir, pid))
    }

    /// Moves all processes of the container into the v1 hierarchies that count for [`Self::stats`]
    /// and were not joined yet. What was charged before stays where it was charged: call it once
    /// the container has lived a moment. Nothing to do on v2.
    ///
    /// # Errors
    /// [`Error::Create`], [`Error::Join`].
    pub fn join_stats(&self) -> Result<()> {
        for hierarchy in &self.layout.legacy {
            // The unified hierarchy counts CPU time and processes without a controller.
            let counts = |controller: &&str| {
                hierarchy.has(controller)
                    && (self.unified.is_none() || matches!(*controller, "memory" | "blkio"))
            };
            if !COUNTING.iter().any(counts) {
                continue;
            }
            let dir = self.legacy_dir(hierarchy);
            Made::default().directory(&hierarchy.mount, &dir)?;
            self.move_all(&dir)?;
        }
        Ok(())
    }

    /// Moves a process that is still held back into every v1 hierarchy, whether it limits or not: for
    /// engines that find a container's numbers by the cgroups of its first process, as they do with
    /// runc. Nothing to do on v2.
    ///
    /// # Errors
    /// [`Error::Create`], [`Error::Write`], [`Error::Join`].
    pub fn join_all(&self, pid: Pid) -> Result<()> {
        for hierarchy in &self.layout.legacy {
            let dir = self.legacy_dir(hierarchy);
            Made::default().directory(&hierarchy.mount, &dir)?;
            if hierarchy.has("cpuset") {
                inherit_cpuset(&hierarchy.mount, &dir)?;
            }
            join(&dir, pid)?;
        }
        Ok(())
    }

    /// Stops all processes and waits until they stand.
    ///
    /// # Errors
    /// [`Error::Stuck`] after 2 s; then it is thawed again. [`Error::MissingController`] on a v1
    /// without freezer.
    pub fn freeze(&self) -> Result<()> {
        let result = match &self.unified {
            Some(unified) => {
                control::write(&unified.path.join("cgroup.freeze"), "1")?;
                wait_for_event(&unified.path, "frozen 1", "frozen")
            }
            None => {
                let file = self.freezer()?.join("freezer.state");
                let deadline = Instant::now() + PATIENCE;
                loop {
                    // Written again: a process that forks while it freezes can escape the first.
                    control::write(&file, "FROZEN")?;
                    if control::read(&file)?.trim() == "FROZEN" {
                        break Ok(());
                    }
                    if Instant::now() > deadline {
                        break Err(stuck(file.parent().unwrap_or(&file), "frozen"));
                    }
                    std::thread::sleep(Duration::from_millis(1));
                }
            }
        };
        if result.is_err() {
            // The caller shall hear of the freezing, not of the thawing.
            self.thaw().ok();
        }
        result
    }

    /// Lets them go on.
    ///
    /// # Errors
    /// [`Error::Write`].
    pub fn thaw(&self) -> Result<()> {
        match &self.unified {
            Some(unified) => {
                control::write(&unified.path.join("cgroup.freeze"), "0")?;
                wait_for_event(&unified.path, "frozen 0", "thawed")
            }
            None => control::write(&self.freezer()?.join("freezer.state"), "THAWED"),
        }
    }

    /// Whether it is frozen, or about to be.
    ///
    /// # Errors
    /// [`Error::Read`].
    pub fn is_frozen(&self) -> Result<bool> {
        match &self.unified {
            Some(unified) => Ok(control::read(&unified.path.join("cgroup.freeze"))?.trim() == "1"),
            None => match self.freezer() {
                Ok(dir) => Ok(control::read(&dir.join("freezer.state"))?.trim() != "THAWED"),
                Err(_) => Ok(false),
            },
        }
    }

    /// Sends SIGKILL to every process in it, frozen ones and those of child cgroups included, and
    /// does not wait for their end.
    ///
    /// # Errors
    /// [`Error::Write`], [`Error::Read`].
    pub fn kill(&self) -> Result<()> {
        if let Some(unified) = &self.unified {
            match control::write(&unified.path.join("cgroup.kill"), "1") {
                // Before Linux 5.14.
                Err(Error::Write { cause, .. }) if cause.errno == Errno::NOENT => {}
                other => return other,
            }
        }
        self.kill_one_by_one()
    }

    /// For kernels without `cgroup.kill`: frozen, no process can fork away.
    fn kill_one_by_one(&self) -> Result<()> {
        let frozen = self.freeze().is_ok();
        let killed = self.processes().map(|processes| {
            for pid in processes {
                // It may have gone by itself.
                kill_process(pid, Signal::KILL).ok();
            }
        });
        if frozen || self.is_frozen()? {
            self.thaw()?;
        }
        killed
    }

    /// Whether a live process is in it or in a child cgroup; `false` when it is gone.
    ///
    /// # Errors
    /// [`Error::Read`].
    pub fn is_populated(&self) -> Result<bool> {
        match &self.unified {
            Some(unified) => Ok(control::try_read(&unified.path.join("cgroup.events"))?
                .is_some_and(|events| events.lines().any(|line| line == "populated 1"))),
            None => Ok(!self.processes()?.is_empty()),
        }
    }

    /// All processes, child cgroups included, ascending, in the caller's pid namespace.
    ///
    /// # Errors
    /// [`Error::Read`].
    pub fn processes(&self) -> Result<Vec<Pid>> {
        let mut pids = Vec::new();
        control::ids_below(&self.identity()?, "cgroup.procs", &mut pids)?;
        pids.sort_unstable_by_key(|pid| pid.as_raw_nonzero());
        pids.dedup();
        Ok(pids)
    }

    /// What was used until now.
    ///
    /// # Errors
    /// [`Error::Read`].
    pub fn stats(&self) -> Result<Stats> {
        let mut stats = Stats::default();
        if let Some(unified) = &self.unified {
            let dir = &unified.path;
            stats.cpu =
                control::try_read(&dir.join("cpu.stat"))?.map(|text| stats::cpu_of_v2(&text));
            stats.memory = stats::memory_of_v2(dir)?;
            stats.pids = stats::pids(dir)?;
            stats.block = stats::block_of_v2(dir)?;
        }
        if let Some(dir) = self.legacy_with("cpuacct")
            && stats.cpu.is_none()
            && let Some(total) = stats::number(&dir, "cpuacct.usage")?
        {
            stats.cpu = Some(CpuStats {
                total,
                user: stats::number(&dir, "cpuacct.usage_user")?.unwrap_or_default(),
                system: stats::number(&dir, "cpuacct.usage_sys")?.unwrap_or_default(),
                ..CpuStats::default()
            });
        }
        if let Some(dir) = self.legacy_with("cpu")
            && let Some(cpu) = &mut stats.cpu
            && let Some(text) = control::try_read(&dir.join("cpu.stat"))?
        {
            stats::throttling_of_v1(&text, cpu);
        }
        if let Some(dir) = self.legacy_with("memory") {
            stats.memory = stats::memory_of_v1(&dir)?;
        }
        if let Some(dir) = self.legacy_with("pids") {
            stats.pids = stats::pids(&dir)?;
        }
        if stats.pids.is_none() {
            let mut threads = Vec::new();
            let (dir, file) = match &self.unified {
                Some(unified) => (unified.path.clone(), "cgroup.threads"),
                None => (self.identity()?, "tasks"),
            };
            control::ids_below(&dir, file, &mut threads)?;
            stats.pids = Some(PidsStats {
                current: u64::try_from(threads.len()).unwrap_or(u64::MAX),
                limit: None,
            });
        }
        if let Some(dir) = self.legacy_with("blkio") {
            stats.block = stats::block_of_v1(&dir)?;
        }
        Ok(stats)
    }

    /// How many processes the kernel killed in it because memory ran out; 0 where nobody counts.
    /// Ask before [`Self::remove`].
    ///
    /// # Errors
    /// [`Error::Read`].
    pub fn oom_kills(&self) -> Result<u64> {
        let file = match (self.legacy_with("memory"), &self.unified) {
            (Some(dir), _) => dir.join("memory.oom_control"),
            (None, Some(unified)) => unified.path.join("memory.events"),
            (None, None) => return Ok(0),
        };
        let text = control::try_read(&file)?.unwrap_or_default();
        Ok(control::keyed(&text)
            .get("oom_kill")
            .copied()
            .unwrap_or_default())
    }

    /// Changes limits while it runs: those that are `Some` in `limits`, the others stay. On v1,
    /// processes are moved into hierarchies that begin to limit them. [`Self::plan`] has the result:
    /// keep it.
    ///
    /// # Errors
    /// [`Error::Write`], [`Error::MissingController`]: what was set before the failure stays set.
    pub fn update(&mut self, limits: &Limits) -> Result<()> {
        let mut asked = Plan {
            limits: limits.clone(),
            ..self.plan.clone()
        };
        // v2 and v1 both need to know the one to say the other.
        if limits.memory_swap.is_some() && limits.memory.is_none() {
            asked.limits.memory = self.plan.limits.memory;
        }
        self.warnings = asked.soften(&self.layout);
        let settings = limits::settings(&asked.limits, &self.layout)?;
        if let (Some(hierarchy), Some(unified)) = (&self.layout.unified, &self.unified) {
            delegate(hierarchy, &unified.path, &settings)?;
        }
        for (hierarchy, dir) in self.joined_before_exec(&settings) {
            Made::default().directory(&hierarchy.mount, &dir)?;
        }
        self.apply(&settings)?;
        for (_, dir) in self.joined_before_exec(&settings) {
            self.move_all(&dir)?;
        }
        self.plan.limits.merge(&asked.limits);
        Ok(())
    }

    /// Removes the directories in all hierarchies, child cgroups included. Idempotent. Processes
    /// that were just killed are waited for, 2 s at most.
    ///
    /// # Errors
    /// [`Error::Remove`] with all that is still there.
    pub fn remove(layout: &Layout, plan: &Plan) -> Result<()> {
        let deadline = Instant::now() + PATIENCE;
        let mut leftovers = Vec::new();
        let mut first = None;
        let unified = layout
            .unified
            .iter()
            .map(|hierarchy| hierarchy.dir(&plan.path));
        let legacy = layout
            .legacy
            .iter()
            .map(|hierarchy| hierarchy.dir(&plan.legacy_path(hierarchy)));
        for dir in unified.chain(legacy) {
            if let Err(cause) = remove_dir(&dir, deadline) {
                first.get_or_insert(cause);
                leftovers.push(dir);
            }
        }
        match first {
            None => Ok(()),
            Some(cause) => Err(Error::Remove { leftovers, cause }),
        }
    }

    fn legacy_dir(&self, hierarchy: &Hierarchy) -> PathBuf {
        hierarchy.dir(&self.plan.legacy_path(hierarchy))
    }

    /// The directory in the v1 hierarchy of a controller, if there is such a hierarchy.
    fn legacy_with(&self, controller: &str) -> Option<PathBuf> {
        self.layout
            .legacy_with(controller)
            .map(|hierarchy| self.legacy_dir(hierarchy))
    }

    fn mount_of(&self, dir: &Path) -> PathBuf {
        self.layout
            .legacy
            .iter()
            .find(|hierarchy| dir.starts_with(&hierarchy.mount))
            .map_or_else(|| dir.to_owned(), |hierarchy| hierarchy.mount.clone())
    }

    /// The directory whose processes are the container's.
    fn identity(&self) -> Result<PathBuf> {
        if let Some(unified) = &self.unified {
            return Ok(unified.path.clone());
        }
        ["freezer", "pids", "memory", "cpu"]
            .into_iter()
            .find_map(|controller| self.legacy_with(controller))
            .ok_or(Error::NotMounted)
    }

    fn freezer(&self) -> Result<PathBuf> {
        self.legacy_with("freezer")
            .ok_or_else(|| Error::MissingController {
                wanted: "pause",
                controller: "freezer",
                available: self.layout.controllers(),
            })
    }

    /// The v1 directories that a process must be in before it runs anything.
    fn joined_before_exec(&self, settings: &[Setting]) -> Vec<(&Hierarchy, PathBuf)> {
        let identity = if self.unified.is_none() {
            self.identity().ok()
        } else {
            None
        };
        self.layout
            .legacy
            .iter()
            .map(|hierarchy| (hierarchy, self.legacy_dir(hierarchy)))
            .filter(|(hierarchy, dir)| {
                settings
                    .iter()
                    .any(|s| !s.unified && hierarchy.has(s.controller))
                    || Some(dir) == identity.as_ref()
                    || (self.unified.is_none()
                        && !self.plan.devices.is_empty()
                        && hierarchy.has("devices"))
            })
            .collect()
    }

    /// Writes the settings; soft ones without a file become warnings.
    fn apply(&mut self, settings: &[Setting]) -> Result<()> {
        for setting in settings {
            let hierarchy = match setting.unified {
                true => None,
                false => self.layout.legacy_with(setting.controller),
            };
            let dir = match (hierarchy, &self.unified) {
                (Some(hierarchy), _) => self.legacy_dir(hierarchy),
                (None, Some(unified)) => unified.path.clone(),
                (None, None) => continue,
            };
            if let (Some(hierarchy), "cpuset") = (hierarchy, setting.controller) {
                inherit_cpuset(&hierarchy.mount, &dir)?;
            }
            let there = setting
                .choices
                .iter()
                .find(|(file, _)| control::exists(&dir.join(file)));
            match (there.or(setting.choices.first()), setting.soft) {
                (_, Some(warning)) if there.is_none() => self.warnings.push(warning),
                (Some((file, value)), soft) => match control::write(&dir.join(file), value) {
                    Err(Error::Write { cause, .. })
                        if soft.is_some() && cause.errno == Errno::OPNOTSUPP =>
                    {
                        self.warnings.extend(soft);
                    }
                    // The limit of memory alone cannot rise above that of memory and swap: that
                    // one first.
                    Err(Error::Write { cause, .. })
                        if file == "memory.limit_in_bytes" && cause.errno == Errno::INVAL =>
                    {
                        let swap = settings
                            .iter()
                            .flat_map(|s| &s.choices)
                            .find(|(file, _)| is_swap(file));
                        let unlimited = ("memory.memsw.limit_in_bytes".to_owned(), "-1".to_owned());
                        let (swap_file, swap_value) = swap.unwrap_or(&unlimited);
                        control::write(&dir.join(swap_file), swap_value)?;
                        control::write(&dir.join(file), value)?;
                    }
                    other => other?,
                },
                (None, _) => {}
            }
        }
        Ok(())
    }

    /// Pure v1: the `devices` controller instead of a program.
    fn set_legacy_devices(&self) -> Result<()> {
        let dir = self
            .legacy_with("devices")
            .ok_or_else(|| Error::MissingController {
                wanted: "list of devices",
                controller: "devices",
                available: self.layout.controllers(),
            })?;
        // What no rule speaks about is denied, as in the program.
        control::write(&dir.join("devices.deny"), "a *:* rwm")?;
        for rule in &self.plan.devices {
            let file = if rule.allow {
                "devices.allow"
            } else {
                "devices.deny"
            };
            control::write(&dir.join(file), &rule.to_string())?;
        }
        Ok(())
    }

    /// Moves every process of the container into `dir`, until none is left outside.
    fn move_all(&self, dir: &Path) -> Result<()> {
        let mut tried = HashSet::new();
        // Each round finds only what was forked during the last; a fork bomb shall not hold us.
        for _ in 0..16 {
            let mut inside = Vec::new();
            control::ids_below(dir, "cgroup.procs", &mut inside)?;
            let outside: Vec<Pid> = self
                .processes()?
                .into_iter()
                .filter(|pid| !inside.contains(pid) && tried.insert(*pid))
                .collect();
            if outside.is_empty() {
                break;
            }
            for pid in outside {
                match join(dir, pid) {
                    // It ended, or is a zombie.
                    Err(Error::Join { cause, .. }) if cause.errno == Errno::SRCH => {}
                    other => other?,
                }
            }
        }
        Ok(())
    }
}

/// What was made, so that a failure can take it back.
#[derive(Debug, Default)]
struct Made(Vec<PathBuf>);

impl Made {
    /// Makes `dir` and what is missing between it and `mount`; whether it is new.
    fn directory(&mut self, mount: &Path, dir: &Path) -> Result<bool> {
        let failed = |cause| Error::Create {
            path: dir.to_owned(),
            cause,
        };
        match control::make_dir(dir) {
            Ok(fresh) => {
                if fresh {
                    self.0.push(dir.to_owned());
                }
                Ok(fresh)
            }
            Err(cause) if cause.errno == Errno::NOENT => match dir.parent() {
                Some(parent) if parent.starts_with(mount) && parent != mount => {
                    self.directory(mount, parent)?;
                    let fresh = control::make_dir(dir).map_err(failed)?;
                    if fresh {
                        self.0.push(dir.to_owned());
                    }
                    Ok(fresh)
                }
                _ => Err(failed(cause)),
            },
            Err(cause) => Err(failed(cause)),
        }
    }

    fn undo(&self) {
        for dir in self.0.iter().rev() {
            // The first failure is the one to tell; an empty cgroup can always be removed.
            fs::rmdir(dir).ok();
        }
    }
}

fn is_swap(file: &str) -> bool {
    file == "memory.memsw.limit_in_bytes"
}

fn stuck(path: &Path, state: &'static str) -> Error {
    Error::Stuck {
        path: path.to_owned(),
        state,
        seconds: PATIENCE.as_secs(),
    }
}

fn join(dir: &Path, pid: Pid) -> Result<()> {
    let pid = pid.as_raw_nonzero().get();
    control::write_raw(&dir.join("cgroup.procs"), &pid.to_string()).map_err(|cause| Error::Join {
        pid,
        path: dir.to_owned(),
        cause,
    })
}

/// v2: switches on what limits need, and what numbers need if it can be had, in every cgroup
/// between the root and the container.
fn delegate(hierarchy: &Hierarchy, dir: &Path, settings: &[Setting]) -> Result<()> {
    if hierarchy.controllers.is_empty() {
        return Ok(());
    }
    let needed: BTreeSet<&str> = settings
        .iter()
        .filter(|setting| setting.unified)
        .flat_map(|setting| match setting.controller {
            "unified" => setting
                .choices
                .first()
                .and_then(|(file, _)| file.split('.').next()),
            controller => Some(limits::v2_name(controller)),
        })
        .filter(|controller| !matches!(*controller, "cgroup" | "unified"))
        .collect();
    let counting = ["cpu", "memory", "pids", "io"];
    let wanted: BTreeSet<&str> = counting
        .into_iter()
        .filter(|controller| hierarchy.has(controller))
        .chain(needed.iter().copied())
        .collect();
    if wanted.is_empty() {
        return Ok(());
    }
    let Ok(below) = dir.strip_prefix(&hierarchy.mount) else {
        return Ok(());
    };
    let mut parent = hierarchy.mount.clone();
    for part in below {
        let file = parent.join("cgroup.subtree_control");
        let enabled = control::read(&file)?;
        let enabled: BTreeSet<&str> = enabled.split_whitespace().collect();
        for controller in wanted.difference(&enabled) {
            if let Err(cause) = control::write_raw(&file, &format!("+{controller}"))
                && needed.contains(controller)
            {
                return Err(Error::Delegate {
                    path: parent,
                    controller: (*controller).to_owned(),
                    cause,
                });
            }
        }
        parent.push(part);
    }
    Ok(())
}

/// A fresh v1 cpuset is empty and takes no process; the parents' values are what "not asked" means.
fn inherit_cpuset(mount: &Path, dir: &Path) -> Result<()> {
    for file in ["cpuset.cpus", "cpuset.mems"] {
        let path = dir.join(file);
        if !control::read(&path)?.trim().is_empty() {
            continue;
        }
        if let Some(parent) = dir.parent()
            && dir != mount
        {
            inherit_cpuset(mount, parent)?;
            let inherited = control::read(&parent.join(file))?;
            control::write(&path, inherited.trim())?;
        }
    }
    Ok(())
}

/// Waits until `cgroup.events` has a line; the kernel marks each change of the file.
fn wait_for_event(dir: &Path, line: &str, state: &'static str) -> Result<()> {
    let path = dir.join("cgroup.events");
    let failed = |call: &'static str| {
        let path = path.clone();
        move |errno| Error::Read {
            path,
            cause: Failure { call, errno },
        }
    };
    let file = fs::open(
        &path,
        fs::OFlags::RDONLY | fs::OFlags::CLOEXEC,
        fs::Mode::empty(),
    )
    .map_err(failed("open"))?;
    let deadline = Instant::now() + PATIENCE;
    loop {
        let mut text = [0; 256];
        let length = knarr_sys::rustix::io::pread(&file, &mut text, 0).map_err(failed("pread"))?;
        let text = text.get(..length).unwrap_or_default();
        if text
            .split(|&byte| byte == b'\n')
            .any(|found| found == line.as_bytes())
        {
            return Ok(());
        }
        let left = deadline.saturating_duration_since(Instant::now());
        let timeout = Timespec {
            tv_sec: i64::try_from(left.as_secs()).unwrap_or(i64::MAX),
            tv_nsec: i64::from(left.subsec_nanos()),
        };
        match poll(&mut [PollFd::new(&file, PollFlags::PRI)], Some(&timeout)) {
            Ok(0) => return Err(stuck(dir, state)),
            Ok(_) | Err(Errno::INTR) => {}
            Err(errno) => return Err(failed("poll")(errno)),
        }
    }
}

/// Removes a directory with its children; a cgroup whose last process is still on its way out is
/// busy, so EBUSY is tried again until the deadline.
fn remove_dir(dir: &Path, deadline: Instant) -> std::result::Result<(), Failure> {
    let mut pause = Duration::from_micros(200);
    loop {
        match fs::rmdir(dir) {
            Ok(()) | Err(Errno::NOENT) => return Ok(()),
            Err(errno @ (Errno::BUSY | Errno::NOTEMPTY)) => {
                for child in control::children(dir).unwrap_or_default() {
                    remove_dir(&child, deadline)?;
                }
                match fs::rmdir(dir) {
                    Ok(()) | Err(Errno::NOENT) => return Ok(()),
                    Err(_) if Instant::now() < deadline => {
                        std::thread::sleep(pause);
                        pause = (pause * 2).min(Duration::from_millis(50));
                    }
                    Err(_) => {
                        return Err(Failure {
                            call: "rmdir",
                            errno,
                        });
                    }
                }
            }
            Err(errno) => {
                return Err(Failure {
                    call: "rmdir",
                    errno,
                });
            }
        }
    }
}
