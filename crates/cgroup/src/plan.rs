//! What a container's cgroup shall be: pure, printable, kept for later callers.

use std::collections::BTreeMap;

use knarr_spec::ContainerId;
use knarr_spec::runtime::Resources;
use serde::{Deserialize, Serialize};

use crate::control;
use crate::devices::DeviceRule;
use crate::layout::{Hierarchy, Layout};
use crate::limits::Limits;
use crate::settings::{self, warning};
use crate::systemd::Unit;
use crate::{Error, Result};

/// The newest version of [`Plan`] that this Knarr reads. One with a unit is written as 2.
pub(crate) const VERSION: u32 = 2;

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
    /// The systemd unit whose cgroup it is; without one Knarr makes the cgroup itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unit: Option<Unit>,
    /// The limits.
    #[serde(default)]
    pub limits: Limits,
    /// In order, later rules win. Empty means that all devices are allowed.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub devices: Vec<DeviceRule>,
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
    /// the root of v2 (who may not write there: below what is delegated to the caller) and below the
    /// caller's own cgroup in each v1 hierarchy; an absolute one is taken below the mount point
    /// everywhere.
    ///
    /// # Errors
    /// [`Error::Invalid`] and [`Error::BadPath`] for what no kernel takes,
    /// [`Error::MissingController`] for what this one lacks, [`Error::NotDelegated`].
    pub fn from_resources(layout: &Layout, resources: &Resources, path: &str) -> Result<Self> {
        check_path(path)?;
        let mut bases = BTreeMap::new();
        if !path.starts_with('/') {
            for hierarchy in &layout.legacy {
                if let (true, Some(controller)) =
                    (hierarchy.own != "/", hierarchy.controllers().first())
                {
                    bases.insert(controller.clone(), hierarchy.own.clone());
                }
            }
        }
        let below = match path.starts_with('/') {
            true => "",
            false => layout.delegated()?,
        };
        let path = format!("{below}/{}", path.trim_matches('/'));
        Self::resolve(layout, resources, path, bases, None)
    }

    /// [`Self::from_resources`] with systemd as the maker: the cgroup is that of a scope.
    ///
    /// # Errors
    /// As that.
    pub fn for_systemd(layout: &Layout, resources: &Resources, unit: Unit) -> Result<Self> {
        let path = unit.path()?;
        Self::resolve(layout, resources, path, BTreeMap::new(), Some(unit))
    }

    fn resolve(
        layout: &Layout,
        resources: &Resources,
        path: String,
        bases: BTreeMap<String, String>,
        unit: Option<Unit>,
    ) -> Result<Self> {
        let plan = Self {
            version: if unit.is_some() { 2 } else { 1 },
            path,
            bases,
            unit,
            limits: Limits::parse(resources)?,
            devices: resources
                .devices
                .iter()
                .map(DeviceRule::parse)
                .collect::<Result<Vec<_>>>()?,
        };
        let mut softened = plan.clone();
        softened.soften(layout);
        settings::settings(&softened.limits, layout)?;
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
        let memory_on_v2 = settings::place(layout, "memory", "").unwrap_or(false);
        if let Some(swap) = limits.memory_swap
            && !memory_on_v2
            && !v1_has("memory", "memory.memsw.limit_in_bytes")
        {
            limits.memory_swap = None;
            if swap != -1 {
                warnings.push(warning::SWAP);
            }
        }
        if limits.kernel.take().is_some() {
            warnings.push(warning::KERNEL_MEMORY);
        }
        let leaf = limits.block.leaf_weight.take();
        let leaves = limits.block.weight_device.iter_mut();
        if leaves
            .fold(leaf, |leaf, device| leaf.or(device.leaf_weight.take()))
            .is_some()
        {
            warnings.push(warning::LEAF_WEIGHT);
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
        if limits.cpu_shares.is_some() && settings::place(layout, "cpu", "").is_err() {
            limits.cpu_shares = None;
            warnings.push(warning::SHARES);
        }
        if settings::place(layout, "blkio", "").is_err() {
            if limits.block_weight.take().is_some() {
                warnings.push(warning::WEIGHT);
            }
            if !std::mem::take(&mut limits.block.weight_device).is_empty() {
                warnings.push(warning::WEIGHT_DEVICE);
            }
        }
        warnings
    }

    /// Whether a process must be moved before it may run its program ([`Cgroup::join_limits`]).
    ///
    /// [`Cgroup::join_limits`]: crate::Cgroup::join_limits
    pub fn needs_join(&self, layout: &Layout) -> bool {
        layout.unified.is_none()
            || self.unit.is_some()
            || settings::settings(&self.limits, layout)
                .is_ok_and(|settings| settings.iter().any(|setting| !setting.unified))
    }

    /// Where the container is in a v1 hierarchy, absolute below its mount point.
    pub(crate) fn legacy_path(&self, hierarchy: &Hierarchy) -> String {
        let base = hierarchy
            .controllers()
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
        plan.version = 3;
        assert!(matches!(
            plan.check_version(),
            Err(Error::Version { found: 3, known: 2 })
        ));
    }
}
