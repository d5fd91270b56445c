//! Limits of a container in one vocabulary for v1 and v2: parsed, checked, merged. Pure.

use std::collections::BTreeMap;

use knarr_spec::runtime::{BlockIo, HugepageLimit, InterfacePriority, Rdma, Resources};
use serde::{Deserialize, Serialize};

use crate::{Error, Result};

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
    /// Microseconds per period for realtime tasks, v1 only.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cpu_realtime_runtime: Option<i64>,
    /// Microseconds, v1 only.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cpu_realtime_period: Option<u64>,
    /// Bytes of kernel memory for TCP, v1 only.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kernel_tcp: Option<i64>,
    /// Bytes of kernel memory: no kernel limits it alone any more.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kernel: Option<i64>,
    /// A memory limit below what is in use is refused.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub check_before_update: bool,
    /// Weights and rates of single block devices (its own weight is in `block_weight`).
    #[serde(skip_serializing_if = "is_default")]
    pub block: BlockIo,
    /// By size of the page.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub huge_pages: Vec<HugepageLimit>,
    /// The class of packets, v1 only.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub network_class: Option<u32>,
    /// Priorities of packets by interface, v1 only.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub network_priorities: Vec<InterfacePriority>,
    /// By RDMA device.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub rdma: BTreeMap<String, Rdma>,
    /// v2 control files by name, written last.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub unified: BTreeMap<String, String>,
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
            // No limit at all is what that means, as for runc.
            if limits.memory == Some(-1) && limits.memory_swap.is_none() {
                limits.memory_swap = Some(-1);
            }
            limits.memory_reservation = bytes("memory reservation", memory.reservation)?;
            limits.kernel = bytes("kernel memory limit", memory.kernel)?;
            limits.kernel_tcp = bytes("limit of kernel memory for TCP", memory.kernel_tcp)?;
            limits.check_before_update = memory.check_before_update.unwrap_or_default();
            if memory.use_hierarchy == Some(false) {
                return Err(Error::Invalid {
                    what: "memory.useHierarchy false".to_owned(),
                    reason: "cannot be had: every kernel since 5.11 counts hierarchically",
                });
            }
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
            limits.cpu_realtime_runtime = asked(cpu.realtime_runtime);
            limits.cpu_realtime_period = cpu.realtime_period.filter(|&period| period != 0);
            if let Some(idle) = limits.cpu_idle
                && !(0..=1).contains(&idle)
            {
                return Err(Error::Invalid {
                    what: format!("CPU idle setting {idle}"),
                    reason: "is not 0 or 1",
                });
            }
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
        if let Some(block) = &resources.block_io {
            limits.block = check_block(block)?;
            limits.block_weight = limits.block.weight.take();
        }
        for page in &resources.hugepage_limits {
            let size = page
                .page_size
                .trim_end_matches("B")
                .trim_end_matches(['K', 'M', 'G']);
            if size.parse::<u32>().is_err() || page.page_size.len() - size.len() != 2 {
                return Err(Error::Invalid {
                    what: format!("limit of huge pages of `{}`", page.page_size),
                    reason: "is for no size such as 2MB",
                });
            }
        }
        limits.huge_pages.clone_from(&resources.hugepage_limits);
        if let Some(network) = &resources.network {
            limits.network_class = network.class_id.filter(|&class| class != 0);
            limits.network_priorities.clone_from(&network.priorities);
        }
        let words = limits.network_priorities.iter().map(|p| &p.name);
        for name in words.chain(resources.rdma.keys()) {
            if name.is_empty() || name.contains(|c: char| c.is_whitespace() || c.is_control()) {
                return Err(Error::Invalid {
                    what: format!("limit of the device `{name}`"),
                    reason: "is for no name of a device",
                });
            }
        }
        limits.rdma.clone_from(&resources.rdma);
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
        take(&mut self.cpu_realtime_runtime, &newer.cpu_realtime_runtime);
        take(&mut self.cpu_realtime_period, &newer.cpu_realtime_period);
        take(&mut self.kernel_tcp, &newer.kernel_tcp);
        take(&mut self.network_class, &newer.network_class);
        fn renew<T: Clone, K: PartialEq>(into: &mut Vec<T>, from: &[T], key: impl Fn(&T) -> K) {
            into.retain(|old| from.iter().all(|new| key(new) != key(old)));
            into.extend_from_slice(from);
        }
        let (block, newer_block) = (&mut self.block, &newer.block);
        renew(
            &mut block.weight_device,
            &newer_block.weight_device,
            |device| (device.major, device.minor),
        );
        for (into, from) in [
            (
                &mut block.throttle_read_bps_device,
                &newer_block.throttle_read_bps_device,
            ),
            (
                &mut block.throttle_write_bps_device,
                &newer_block.throttle_write_bps_device,
            ),
            (
                &mut block.throttle_read_iops_device,
                &newer_block.throttle_read_iops_device,
            ),
            (
                &mut block.throttle_write_iops_device,
                &newer_block.throttle_write_iops_device,
            ),
        ] {
            renew(into, from, |device| (device.major, device.minor));
        }
        renew(&mut self.huge_pages, &newer.huge_pages, |page| {
            page.page_size.clone()
        });
        renew(
            &mut self.network_priorities,
            &newer.network_priorities,
            |one| one.name.clone(),
        );
        let rdma = newer
            .rdma
            .iter()
            .map(|(name, limit)| (name.clone(), limit.clone()));
        self.rdma.extend(rdma);
        let unified = newer
            .unified
            .iter()
            .map(|(file, value)| (file.clone(), value.clone()));
        self.unified.extend(unified);
    }
}

fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

/// The block I/O section with numbers that a kernel takes; 0 is "not asked for" in a weight.
fn check_block(block: &BlockIo) -> Result<BlockIo> {
    let weight = |of: &str, weight: Option<u16>| match weight.filter(|&weight| weight != 0) {
        Some(weight) if !(10..=1000).contains(&weight) => Err(Error::Invalid {
            what: format!("block I/O weight{of} {weight}"),
            reason: "is not between 10 and 1000",
        }),
        weight => Ok(weight),
    };
    let number = |major: i64, minor: i64| {
        let good = |number| (0..1 << 20).contains(&number);
        if good(major) && good(minor) {
            return Ok(());
        }
        Err(Error::Invalid {
            what: format!("block I/O limit of device {major}:{minor}"),
            reason: "has a device number out of range",
        })
    };
    let mut checked = block.clone();
    checked.weight = weight("", block.weight)?;
    for device in &mut checked.weight_device {
        number(device.major, device.minor)?;
        let of = format!(" of device {}:{}", device.major, device.minor);
        device.weight = weight(&of, device.weight)?;
    }
    [
        &block.throttle_read_bps_device,
        &block.throttle_write_bps_device,
        &block.throttle_read_iops_device,
        &block.throttle_write_iops_device,
    ]
    .into_iter()
    .flatten()
    .try_for_each(|device| number(device.major, device.minor))?;
    Ok(checked)
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
