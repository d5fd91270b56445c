//! The cgroup of one container: made, entered, watched, removed.

use std::cell::{Cell, OnceCell};
use std::collections::HashSet;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use knarr_sys::rustix::io::Errno;
use knarr_sys::rustix::process::Pid;

use crate::control;
use crate::devices;
use crate::layout::{Hierarchy, Layout};
use crate::limits::Limits;
use crate::plan::{Plan, Warning};
use crate::settings::{self, Setting};
use crate::tree::{Made, delegate, inherit_cpuset, join, remove_dir};
use crate::{Error, Result};

/// How long freezing, thawing and removing may take.
pub(crate) const PATIENCE: Duration = Duration::from_secs(2);

/// The v1 hierarchies that only count, and are joined when somebody asks.
const COUNTING: [&str; 4] = ["memory", "blkio", "cpuacct", "pids"];

/// A handle on a container's cgroup in all hierarchies. Dropping it changes nothing.
#[derive(Debug)]
pub struct Cgroup {
    plan: Plan,
    pub(crate) layout: Layout,
    pub(crate) unified: Option<Unified>,
    warnings: Vec<Warning>,
}

/// The directory in the v2 hierarchy.
#[derive(Debug)]
pub(crate) struct Unified {
    pub(crate) path: PathBuf,
    /// Missing as long as systemd is still to make it.
    fd: OnceCell<OwnedFd>,
    /// Whether it was made here.
    fresh: Cell<bool>,
}

impl Unified {
    fn new(path: PathBuf) -> Self {
        Self {
            path,
            fd: OnceCell::new(),
            fresh: Cell::new(false),
        }
    }

    /// Makes and opens the directory, if that is still to be done.
    fn make(&self, hierarchy: &Hierarchy, made: &mut Made) -> Result<BorrowedFd<'_>> {
        if self.fd.get().is_none() {
            self.fresh
                .set(made.directory(&hierarchy.mount, &self.path)?);
        }
        self.open()
    }

    fn open(&self) -> Result<BorrowedFd<'_>> {
        let fd = match self.fd.get() {
            Some(fd) => fd,
            None => {
                let fd = control::open_dir(&self.path)?;
                self.fd.get_or_init(|| fd)
            }
        };
        Ok(fd.as_fd())
    }
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
        let created = Self::begin_recording(layout, plan, &mut made).and_then(|mut cgroup| {
            let warnings = cgroup.complete_recording(&mut made)?;
            cgroup.warnings.extend(warnings);
            Ok(cgroup)
        });
        if created.is_err() {
            made.undo();
        }
        created
    }

    /// The first half of [`Self::create`]: only what a process can be born in ([`Self::dir_fd`]).
    /// The rest, [`Self::complete`], costs up to 0.5 ms, in which that process can already work.
    ///
    /// # Errors
    /// As [`Self::create`].
    pub fn begin(layout: &Layout, plan: &Plan) -> Result<Self> {
        let mut made = Made::default();
        let begun = Self::begin_recording(layout, plan, &mut made);
        if begun.is_err() {
            made.undo();
        }
        begun
    }

    /// The second half of [`Self::create`], to be done before anything that shall be limited runs
    /// in it. Given back is what had to be left out, beyond [`Self::warnings`]. When it fails, the
    /// cgroup is to be removed.
    ///
    /// # Errors
    /// As [`Self::create`].
    pub fn complete(&self) -> Result<Vec<Warning>> {
        self.complete_recording(&mut Made::default())
    }

    fn begin_recording(layout: &Layout, plan: &Plan, made: &mut Made) -> Result<Self> {
        plan.check_version()?;
        let mut softened = plan.clone();
        let warnings = softened.soften(layout);
        let unified = layout
            .unified
            .as_ref()
            .map(|hierarchy| Unified::new(hierarchy.dir(&plan.path)));
        let cgroup = Self {
            plan: softened,
            layout: layout.clone(),
            unified,
            warnings,
        };
        if let (Some(hierarchy), Some(unified), None) =
            (&layout.unified, &cgroup.unified, &plan.unit)
        {
            unified.make(hierarchy, made)?;
        }
        Ok(cgroup)
    }

    fn complete_recording(&self, made: &mut Made) -> Result<Vec<Warning>> {
        match self.plan.unit {
            None => self.furnish(made),
            // By `join_limits`, when there is a process to make the unit for.
            Some(_) => Ok(Vec::new()),
        }
    }

    /// Sets the limits, installs the device rules, makes the directories in v1 hierarchies.
    fn furnish(&self, made: &mut Made) -> Result<Vec<Warning>> {
        let settings = settings::settings(&self.plan.limits, &self.layout)?;
        if let (Some(hierarchy), Some(unified)) = (&self.layout.unified, &self.unified) {
            delegate(hierarchy, &unified.path, &settings)?;
            let fd = unified.open()?;
            if !self.plan.devices.is_empty() {
                // systemd puts no program on what it has delegated.
                let fresh = self.plan.unit.is_some() || unified.fresh.get();
                devices::install(fd, &unified.path, &self.plan.devices, fresh)?;
            }
        }
        for (hierarchy, dir) in self.joined_before_exec(&settings) {
            made.directory(&hierarchy.mount, &dir)?;
        }
        if self.unified.is_none() && !self.plan.devices.is_empty() {
            self.set_legacy_devices()?;
        }
        self.apply(&settings)
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
                let unified = Unified::new(hierarchy.dir(&plan.path));
                unified.open()?;
                Some(unified)
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

    /// The v2 directory, for `CLONE_INTO_CGROUP`; `None` on pure v1, and as long as systemd is still
    /// to make it.
    pub fn dir_fd(&self) -> Option<BorrowedFd<'_>> {
        Some(self.unified.as_ref()?.fd.get()?.as_fd())
    }

    /// Whether [`Self::join_limits`] has anything to do.
    pub fn needs_join(&self) -> bool {
        let of_v1 = || {
            settings::settings(&self.plan.limits, &self.layout)
                .is_ok_and(|settings| settings.iter().any(|setting| !setting.unified))
        };
        self.dir_fd().is_none() || of_v1()
    }

    /// Moves a process that is still held back into the v1 hierarchies that limit it (on pure v1
    /// also into the one that identifies it). Meant for the parent, while the child makes its
    /// mounts: the first write after a quiet moment takes 5 to 17 ms, further ones some 20 µs.
    ///
    /// With a systemd unit, this is where all of it happens: the scope is made around the first
    /// process, and its cgroup is furnished. Given back is what had to be left out, beyond
    /// [`Self::warnings`].
    ///
    /// # Errors
    /// [`Error::Join`]; with systemd also what [`Self::create`] gives, [`Error::NoManager`] and
    /// [`Error::Unit`].
    pub fn join_limits(&self, pid: Pid) -> Result<Vec<Warning>> {
        let mut warnings = Vec::new();
        if let Some(unit) = self.plan.unit.clone()
            && self.dir_fd().is_none()
            && self.layout.unified.is_some()
        {
            unit.start(pid, &self.plan.limits, &self.layout)?;
            warnings = self
                .furnish(&mut Made::default())
                .map_err(|error| match error {
                    Error::Open { path, .. } => Error::Unit {
                        unit: unit.name.clone(),
                        act: "start",
                        reason: format!("its cgroup is not {}", path.display()),
                    },
                    other => other,
                })?;
        }
        let settings = settings::settings(&self.plan.limits, &self.layout)?;
        self.joined_before_exec(&settings)
            .iter()
            .try_for_each(|(_, dir)| join(dir, pid))?;
        Ok(warnings)
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
            match join(&dir, pid) {
                // It is still to be made, or its cpuset is still empty.
                Err(Error::Join { cause, .. })
                    if matches!(cause.errno, Errno::NOENT | Errno::NOSPC) =>
                {
                    Made::default().directory(&hierarchy.mount, &dir)?;
                    if hierarchy.has("cpuset") {
                        inherit_cpuset(&hierarchy.mount, &dir)?;
                    }
                    join(&dir, pid)?;
                }
                joined => joined?,
            }
        }
        Ok(())
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
        if asked.limits.check_before_update
            && let Some(most @ 0..) = asked.limits.memory
            && let Some(memory) = self.stats()?.memory
            && memory.usage > most.unsigned_abs()
        {
            return Err(Error::Invalid {
                what: format!("memory limit {most}"),
                reason: "is less than what is in use, and checkBeforeUpdate was asked for",
            });
        }
        let settings = settings::settings(&asked.limits, &self.layout)?;
        if let (Some(hierarchy), Some(unified)) = (&self.layout.unified, &self.unified) {
            delegate(hierarchy, &unified.path, &settings)?;
        }
        for (hierarchy, dir) in self.joined_before_exec(&settings) {
            Made::default().directory(&hierarchy.mount, &dir)?;
        }
        if let Some(unit) = &self.plan.unit {
            unit.update(&asked.limits, &self.layout)?;
        }
        let more = self.apply(&settings)?;
        self.warnings.extend(more);
        for (_, dir) in self.joined_before_exec(&settings) {
            self.move_all(&dir)?;
        }
        self.plan.limits.merge(&asked.limits);
        Ok(())
    }

    /// Removes the directories in all hierarchies where nothing is in them, as is the rule when a
    /// container has ended; whether all are gone. What is not needs [`Self::kill`] and
    /// [`Self::remove`].
    pub fn remove_empty(layout: &Layout, plan: &Plan) -> bool {
        let gone = |dir: PathBuf| {
            matches!(
                knarr_sys::rustix::fs::rmdir(dir),
                Ok(()) | Err(Errno::NOENT)
            )
        };
        let legacy = || {
            layout
                .legacy
                .iter()
                .all(|hierarchy| gone(hierarchy.dir(&plan.legacy_path(hierarchy))))
        };
        let unified = layout.unified.as_ref();
        plan.unit.is_none()
            && unified.is_none_or(|hierarchy| gone(hierarchy.dir(&plan.path)))
            && legacy()
    }

    /// Removes the directories in all hierarchies, child cgroups included. Idempotent. Processes
    /// that were just killed are waited for, 2 s at most.
    ///
    /// # Errors
    /// [`Error::Remove`] with all that is still there.
    pub fn remove(layout: &Layout, plan: &Plan) -> Result<()> {
        match plan.unit.as_ref().map_or(Ok(()), |unit| unit.stop()) {
            // Without systemd there is no unit; what counts is that the cgroup goes.
            Ok(()) | Err(Error::NoManager { .. }) => {}
            Err(error) => return Err(error),
        }
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
    pub(crate) fn legacy_with(&self, controller: &str) -> Option<PathBuf> {
        self.layout
            .legacy_with(controller)
            .map(|hierarchy| self.legacy_dir(hierarchy))
    }

    /// The directory whose processes are the container's.
    pub(crate) fn identity(&self) -> Result<PathBuf> {
        if let Some(unified) = &self.unified {
            return Ok(unified.path.clone());
        }
        ["freezer", "pids", "memory", "cpu"]
            .into_iter()
            .find_map(|controller| self.legacy_with(controller))
            .ok_or(Error::NotMounted)
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
    fn apply(&self, settings: &[Setting]) -> Result<Vec<Warning>> {
        let mut warnings = Vec::new();
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
                (_, Some(warning)) if there.is_none() => warnings.push(warning),
                (Some((file, value)), soft) => match control::write(&dir.join(file), value) {
                    Err(Error::Write { cause, .. })
                        if soft.is_some() && cause.errno == Errno::OPNOTSUPP =>
                    {
                        warnings.extend(soft);
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
        Ok(warnings)
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

fn is_swap(file: &str) -> bool {
    file == "memory.memsw.limit_in_bytes"
}
