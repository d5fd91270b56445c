//! What a container's cgroup shall be: pure, printable, kept for later callers.

use std::collections::BTreeMap;

use knarr_spec::ContainerId;
use knarr_spec::runtime::Resources;
use serde::{Deserialize, Serialize};

use crate::devices::DeviceRule;
use crate::layout::Layout;
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
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
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
        let _ = (layout, resources, path);
        todo!()
    }

    /// Takes out what this kernel cannot do and what can be lived without, and tells about it.
    pub fn soften(&mut self, layout: &Layout) -> Vec<Warning> {
        let _ = layout;
        todo!()
    }

    /// Whether a process must be moved before it may run its program ([`Cgroup::join_limits`]).
    ///
    /// [`Cgroup::join_limits`]: crate::Cgroup::join_limits
    pub fn needs_join(&self, layout: &Layout) -> bool {
        let _ = layout;
        todo!()
    }
}

impl Limits {
    /// Parses and checks a `linux.resources` section, without its device rules.
    ///
    /// # Errors
    /// [`Error::Invalid`] names the limit and its value.
    pub fn parse(resources: &Resources) -> Result<Self> {
        let _ = resources;
        Err(Error::NotMounted)
    }

    /// Whether nothing is asked for.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}
