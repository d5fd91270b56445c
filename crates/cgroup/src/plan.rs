//! What a container's cgroup shall be: pure, printable, kept for later callers.

use std::collections::BTreeMap;

use knarr_spec::ContainerId;
use knarr_spec::runtime::Resources;
use serde::{Deserialize, Serialize};

use crate::control;
use crate::devices::DeviceRule;
use crate::layout::{Hierarchy, Layout};
use crate::limits::{self, warning};
use crate::{Error, Result};

/// The version of [`Plan`] that this Knarr writes.
pub(crate) const VERSION: u32 = 1;

/// Where a container's cgroup is and what it is limited to. Resolved against one machine: every
/// later call on the container opens it with the same plan.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Plan {
    /// Of this format.
    pub version: u32,
    /// Absolute, below the mount point of every hierarchy without an entry in `bases`.
    pub path: String,
    /// v1 hierarchies (by controller) where `path` lies below another cgroup: the caller's own.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub bases: BTreeMap<String, String>,
    /// The limits.
    #[serde(default)]
    pub limits: Limits,
    /// In order, later rules win. Empty means that all devices are allowed.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub devices: Vec<DeviceRule>,
}

/// Limits in one vocabulary for v1 and v2; `None` is "not asked for". Bytes, microseconds.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Limits {
    /// Bytes of memory; -1 is unlimited.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory: Option<i64>,
    /// Bytes of memory *and* swap together, as Docker and v1 count; -1 is unlimited.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory_swap: Option<i64>,
    /// Bytes that reclaim tries to leave alone.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory_reservation: Option<i64>,
    /// 0 to 100, v1 only.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub swappiness: Option<u64>,
    /// Stop instead of killing when memory runs out, v1 only.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub disable_oom_killer: Option<bool>,
    /// Relative weight, 2 to 262144, 1024 is normal (v1's scale).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cpu_shares: Option<u64>,
    /// Microseconds of CPU time per period; -1 is unlimited.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cpu_quota: Option<i64>,
    /// Microseconds, 1,000 to 1,000,000.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cpu_period: Option<u64>,
    /// Microseconds that may be saved up (Linux 5.14).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cpu_burst: Option<u64>,
    /// 1 makes all of it SCHED_IDLE (Linux 5.15).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cpu_idle: Option<i64>,
    /// CPUs, as a list of cpuset(7).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cpuset_cpus: Option<String>,
    /// Memory nodes, as a list of cpuset(7).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cpuset_mems: Option<String>,
    /// The most processes and threads; -1 is unlimited.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pids: Option<i64>,
    /// 10 to 1000, 500 is normal (v1's scale).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub block_weight: Option<u16>,
    /// v2 control files by name, written last.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub unified: BTreeMap<String, String>,
}

/// A limit that was left out because this kernel cannot do it. `Display` is Docker's sentence.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Warning(pub &'static str);

impl Plan {
    /// The path of a container's cgroup: `knarr-<id>`, below `parent` (`--cgroup-parent`) if given.
    /// A relative path leaves the place to [`Self::from_resources`].
    pub fn path_for(id: &ContainerId, parent: Option<&str>) -> String {
        match parent {
            Some(parent) => format!("/{}/knarr-{id}", parent.trim_matches('/')),
            None => format!("knarr-{id}"),
        }
    }

    /// Decides from an OCI `linux.resources` and `linux.cgroupsPath`. A relative `path` goes below
    /// the root of v2 and below the caller's own cgroup in each v1 hierarchy; an absolute one is
    /// taken below the mount point everywhere.
    ///
    /// # Errors
    /// [`Error::Invalid`] and [`Error::BadPath`] for what no kernel takes,
    /// [`Error::MissingController`] for what this one lacks.
    pub fn from_resources(layout: &Layout, resources: &Resources, path: &str) -> Result<Self> {
        let limits = Limits::parse(resources)?;
        let devices = resources
            .devices
            .iter()
            .map(DeviceRule::parse)
            .collect::<Result<Vec<_>>>()?;
        check_path(path)?;
        let mut bases = BTreeMap::new();
        if !path.starts_with('/') {
            for hierarchy in &layout.legacy {
                if let (true, Some(controller)) =
                    (hierarchy.own != "/", hierarchy.controllers.first())
                {
                    bases.insert(controller.clone(), hierarchy.own.clone());
                }
            }
        }
        let path = format!("/{}", path.trim_matches('/'));
        let plan = Self {
            version: VERSION,
            path,
            bases,
            limits,
            devices,
        };
        let mut softened = plan.clone();
        softened.soften(layout);
        limits::settings(&softened.limits, layout)?;
        Ok(plan)
    }

    /// Takes out what this kernel cannot do and what can be lived without, and tells about it in
    /// Docker's words. A memory, CPU or process limit that cannot be kept is an error instead
    /// ([`Self::from_resources`]): it protects others.
    pub fn soften(&mut self, layout: &Layout) -> Vec<Warning> {
        let mut warnings = Vec::new();
        let limits = &mut self.limits;
        // The mounted root of v1 shows what the kernel was built and booted with.
        let v1_has = |controller, file| {
            layout
                .legacy_with(controller)
                .is_some_and(|hierarchy| control::exists(&hierarchy.mount.join(file)))
        };
        let memory_on_v2 = limits::place(layout, "memory", "").unwrap_or(false);
        if limits.memory_swap.is_some_and(|swap| swap != -1)
            && !memory_on_v2
            && !v1_has("memory", "memory.memsw.limit_in_bytes")
        {
            limits.memory_swap = None;
            warnings.push(warning::SWAP);
        }
        if limits.memory_reservation.is_some()
            && !memory_on_v2
            && !v1_has("memory", "memory.soft_limit_in_bytes")
        {
            limits.memory_reservation = None;
            warnings.push(warning::RESERVATION);
        }
        if limits.swappiness.is_some() && !v1_has("memory", "memory.swappiness") {
            limits.swappiness = None;
            warnings.push(warning::SWAPPINESS);
        }
        if limits.disable_oom_killer.is_some() && !v1_has("memory", "memory.oom_control") {
            if limits.disable_oom_killer == Some(true) {
                warnings.push(warning::OOM_KILL);
            }
            limits.disable_oom_killer = None;
        }
        if limits.cpu_shares.is_some() && limits::place(layout, "cpu", "").is_err() {
            limits.cpu_shares = None;
            warnings.push(warning::SHARES);
        }
        if limits.block_weight.is_some() && limits::place(layout, "blkio", "").is_err() {
            limits.block_weight = None;
            warnings.push(warning::WEIGHT);
        }
        warnings
    }

    /// Whether a process must be moved before it may run its program ([`Cgroup::join_limits`]).
    ///
    /// [`Cgroup::join_limits`]: crate::Cgroup::join_limits
    pub fn needs_join(&self, layout: &Layout) -> bool {
        layout.unified.is_none()
            || limits::settings(&self.limits, layout)
                .is_ok_and(|settings| settings.iter().any(|setting| !setting.unified))
    }

    /// Where the container is in a v1 hierarchy, absolute below its mount point.
    pub(crate) fn legacy_path(&self, hierarchy: &Hierarchy) -> String {
        let base = hierarchy
            .controllers
            .first()
            .and_then(|first| self.bases.get(first));
        match base {
            Some(base) => format!("{}{}", base.trim_end_matches('/'), self.path),
            None => self.path.clone(),
        }
    }

    /// Refuses a plan of a later format.
    pub(crate) fn check_version(&self) -> Result<()> {
        if self.version > VERSION {
            return Err(Error::Version {
                found: self.version,
                known: VERSION,
            });
        }
        Ok(())
    }
}

/// A cgroup path names a cgroup below the root, and no other place.
fn check_path(path: &str) -> Result<()> {
    let bad = |reason| Error::BadPath {
        path: path.to_owned(),
        reason,
    };
    let mut parts = path.split('/').filter(|part| !part.is_empty()).peekable();
    if parts.peek().is_none() {
        return Err(bad("it names the root"));
    }
    for part in parts {
        if part == "." || part == ".." {
            return Err(bad("it has a `.` or `..`"));
        }
        if part.len() > 255 || part.chars().any(char::is_control) {
            return Err(bad("a part is too long or has control characters"));
        }
    }
    Ok(())
}

impl Limits {
    /// Parses and checks a `linux.resources` section, without its device rules.
    ///
    /// # Errors
    /// [`Error::Invalid`] names the limit and its value.
    pub fn parse(resources: &Resources) -> Result<Self> {
        let mut limits = Self::default();
        // 0 is "not asked for" everywhere in Docker's and runc's world.
        let asked = |value: Option<i64>| value.filter(|&value| value != 0);
        if let Some(memory) = &resources.memory {
            let bytes = |what: &str, value: Option<i64>| match asked(value) {
                Some(bytes @ ..-1) => Err(Error::Invalid {
                    what: format!("{what} {bytes}"),
                    reason: "is negative; -1 is unlimited",
                }),
                other => Ok(other),
            };
            limits.memory = bytes("memory limit", memory.limit)?;
            limits.memory_swap = bytes("memory+swap limit", memory.swap)?;
            limits.memory_reservation = bytes("memory reservation", memory.reservation)?;
            if let (Some(swap @ 0..), Some(most)) = (limits.memory_swap, limits.memory)
                && (most < 0 || swap < most)
            {
                return Err(Error::Invalid {
                    what: format!("memory+swap limit {swap}"),
                    reason: "is smaller than the memory limit",
                });
            }
            if let (Some(reservation), Some(most @ 0..)) =
                (limits.memory_reservation, limits.memory)
                && reservation > most
            {
                return Err(Error::Invalid {
                    what: format!("memory reservation {reservation}"),
                    reason: "is larger than the memory limit",
                });
            }
            limits.swappiness = memory.swappiness;
            if let Some(percent @ 101..) = limits.swappiness {
                return Err(Error::Invalid {
                    what: format!("swappiness {percent}"),
                    reason: "is not between 0 and 100",
                });
            }
            limits.disable_oom_killer = memory.disable_oom_killer.filter(|&disable| disable);
        }
        if let Some(cpu) = &resources.cpu {
            limits.cpu_shares = cpu.shares.filter(|&shares| shares != 0);
            limits.cpu_quota = asked(cpu.quota);
            limits.cpu_period = cpu.period.filter(|&period| period != 0);
            limits.cpu_burst = cpu.burst;
            limits.cpu_idle = cpu.idle;
            if let Some(quota @ 1..1000) = limits.cpu_quota {
                return Err(Error::Invalid {
                    what: format!("CPU quota {quota}"),
                    reason: "is less than 1000 microseconds",
                });
            }
            if let Some(period) = limits.cpu_period
                && !(1000..=1_000_000).contains(&period)
            {
                return Err(Error::Invalid {
                    what: format!("CPU period {period}"),
                    reason: "is not between 1000 and 1000000 microseconds",
                });
            }
            let list = |what: &str, list: &Option<String>| match list.as_deref().map(str::trim) {
                None | Some("") => Ok(None),
                Some(text) if is_list(text) => Ok(Some(text.to_owned())),
                Some(text) => Err(Error::Invalid {
                    what: format!("{what} {text}"),
                    reason: "is not a list such as 0-2,4",
                }),
            };
            limits.cpuset_cpus = list("list of CPUs", &cpu.cpus)?;
            limits.cpuset_mems = list("list of memory nodes", &cpu.mems)?;
        }
        limits.pids = resources
            .pids
            .as_ref()
            .and_then(|pids| asked(Some(pids.limit)));
        if let Some(weight) = resources.block_io.as_ref().and_then(|io| io.weight)
            && weight != 0
        {
            if !(10..=1000).contains(&weight) {
                return Err(Error::Invalid {
                    what: format!("block I/O weight {weight}"),
                    reason: "is not between 10 and 1000",
                });
            }
            limits.block_weight = Some(weight);
        }
        for file in resources.unified.keys() {
            if file.contains('/') || !file.contains('.') || file.starts_with('.') {
                return Err(Error::Invalid {
                    what: format!("unified setting `{file}`"),
                    reason: "is not the name of a control file",
                });
            }
        }
        limits.unified.clone_from(&resources.unified);
        Ok(limits)
    }

    /// Whether nothing is asked for.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// Takes over what `newer` asks for.
    pub(crate) fn merge(&mut self, newer: &Self) {
        fn take<T: Clone>(into: &mut Option<T>, from: &Option<T>) {
            if from.is_some() {
                into.clone_from(from);
            }
        }
        take(&mut self.memory, &newer.memory);
        take(&mut self.memory_swap, &newer.memory_swap);
        take(&mut self.memory_reservation, &newer.memory_reservation);
        take(&mut self.swappiness, &newer.swappiness);
        take(&mut self.disable_oom_killer, &newer.disable_oom_killer);
        take(&mut self.cpu_shares, &newer.cpu_shares);
        take(&mut self.cpu_quota, &newer.cpu_quota);
        take(&mut self.cpu_period, &newer.cpu_period);
        take(&mut self.cpu_burst, &newer.cpu_burst);
        take(&mut self.cpu_idle, &newer.cpu_idle);
        take(&mut self.cpuset_cpus, &newer.cpuset_cpus);
        take(&mut self.cpuset_mems, &newer.cpuset_mems);
        take(&mut self.pids, &newer.pids);
        take(&mut self.block_weight, &newer.block_weight);
        let unified = newer
            .unified
            .iter()
            .map(|(file, value)| (file.clone(), value.clone()));
        self.unified.extend(unified);
    }
}

/// The list format of cpuset(7), without strides.
fn is_list(text: &str) -> bool {
    text.split(',').all(|range| {
        let mut ends = range.splitn(2, '-').map(|end| end.trim().parse::<u32>());
        match (ends.next(), ends.next()) {
            (Some(Ok(_)), None) => true,
            (Some(Ok(first)), Some(Ok(last))) => first <= last,
            _ => false,
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use knarr_spec::runtime::{BlockIo, Cpu, Memory, Pids};

    fn layout() -> Layout {
        let mounts = "1 0 0:1 / /c/memory rw - cgroup cgroup rw,memory\n\
                      1 0 0:2 / /c/pids rw - cgroup cgroup rw,pids\n\
                      1 0 0:3 / /c/unified rw - cgroup2 cgroup2 rw\n";
        Layout::parse(mounts, "2:memory:/me\n1:pids:/\n0::/\n").unwrap()
    }

    #[test]
    fn a_relative_path_goes_below_the_callers_own_cgroup() {
        let resources = Resources {
            pids: Some(Pids { limit: 5 }),
            ..Resources::default()
        };
        let plan = Plan::from_resources(&layout(), &resources, "knarr-x").unwrap();
        let golden =
            r#"{"version":1,"path":"/knarr-x","bases":{"memory":"/me"},"limits":{"pids":5}}"#;
        assert_eq!(serde_json::to_string(&plan).unwrap(), golden);
        assert_eq!(serde_json::from_str::<Plan>(golden).unwrap(), plan);
        let layout = layout();
        let memory = layout.legacy_with("memory").unwrap();
        assert_eq!(plan.legacy_path(memory), "/me/knarr-x");
        assert_eq!(
            plan.legacy_path(layout.legacy_with("pids").unwrap()),
            "/knarr-x"
        );
        assert!(plan.needs_join(&layout));
        let absolute = Plan::from_resources(&layout, &resources, "/a/b").unwrap();
        assert_eq!(absolute.legacy_path(memory), "/a/b");
    }

    #[test]
    fn nothing_asked_means_nothing_to_join() {
        let plan = Plan::from_resources(&layout(), &Resources::default(), "knarr-x").unwrap();
        assert!(plan.limits.is_empty() && !plan.needs_join(&layout()));
    }

    #[test]
    fn paths_that_lead_elsewhere_are_refused() {
        for bad in ["", "/", "a/../..", "./a", "a\nb"] {
            let result = Plan::from_resources(&layout(), &Resources::default(), bad);
            assert!(matches!(result, Err(Error::BadPath { .. })), "{bad:?}");
        }
    }

    #[test]
    fn impossible_limits_are_refused_by_name() {
        let memory = |memory| Resources {
            memory: Some(memory),
            ..Resources::default()
        };
        let cpu = |cpu| Resources {
            cpu: Some(cpu),
            ..Resources::default()
        };
        for (resources, told) in [
            (
                memory(Memory {
                    limit: Some(-5),
                    ..Memory::default()
                }),
                "memory limit -5 is negative; -1 is unlimited",
            ),
            (
                memory(Memory {
                    limit: Some(10),
                    swap: Some(9),
                    ..Memory::default()
                }),
                "memory+swap limit 9 is smaller than the memory limit",
            ),
            (
                memory(Memory {
                    limit: Some(10),
                    reservation: Some(11),
                    ..Memory::default()
                }),
                "memory reservation 11 is larger than the memory limit",
            ),
            (
                memory(Memory {
                    swappiness: Some(101),
                    ..Memory::default()
                }),
                "swappiness 101 is not between 0 and 100",
            ),
            (
                cpu(Cpu {
                    quota: Some(5),
                    ..Cpu::default()
                }),
                "CPU quota 5 is less than 1000 microseconds",
            ),
            (
                cpu(Cpu {
                    period: Some(5),
                    ..Cpu::default()
                }),
                "CPU period 5 is not between 1000 and 1000000 microseconds",
            ),
            (
                cpu(Cpu {
                    cpus: Some("0-x".to_owned()),
                    ..Cpu::default()
                }),
                "list of CPUs 0-x is not a list such as 0-2,4",
            ),
            (
                Resources {
                    block_io: Some(BlockIo {
                        weight: Some(5),
                        ..BlockIo::default()
                    }),
                    ..Resources::default()
                },
                "block I/O weight 5 is not between 10 and 1000",
            ),
            (
                cpu(Cpu {
                    quota: Some(5000),
                    ..Cpu::default()
                }),
                "the CPU quota needs the cgroup controller `cpu`, which is not available",
            ),
        ] {
            let error = Plan::from_resources(&layout(), &resources, "knarr-x").unwrap_err();
            assert_eq!(error.to_string(), told);
        }
    }

    #[test]
    fn what_can_be_lived_without_is_dropped_in_dockers_words() {
        let resources = Resources {
            cpu: Some(Cpu {
                shares: Some(512),
                ..Cpu::default()
            }),
            block_io: Some(BlockIo {
                weight: Some(500),
                ..BlockIo::default()
            }),
            memory: Some(Memory {
                limit: Some(1 << 30),
                swap: Some(1 << 31),
                ..Memory::default()
            }),
            ..Resources::default()
        };
        let mut plan = Plan::from_resources(&layout(), &resources, "knarr-x").unwrap();
        let told = plan.soften(&layout());
        assert_eq!(told, [warning::SWAP, warning::SHARES, warning::WEIGHT]);
        let left = Limits {
            memory: Some(1 << 30),
            ..Limits::default()
        };
        assert_eq!(plan.limits, left);
        assert_eq!(plan.soften(&layout()), []);
    }

    #[test]
    fn a_plan_of_a_later_format_is_refused() {
        let mut plan = Plan::from_resources(&layout(), &Resources::default(), "knarr-x").unwrap();
        plan.version = 2;
        assert!(matches!(
            plan.check_version(),
            Err(Error::Version { found: 2, known: 1 })
        ));
    }
}
