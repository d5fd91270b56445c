//! Limits as control files and their values, for v1 and v2. Pure.

use std::path::Path;

use crate::control;
use crate::layout::Layout;
use crate::limits::Limits;
use crate::plan::Warning;
use crate::{Error, Result};

/// What Docker says where a wish that can be lived without is dropped.
pub(crate) mod warning {
    use super::Warning;

    pub(crate) const SWAP: Warning = Warning(
        "Your kernel does not support swap limit capabilities or the cgroup is not mounted. \
         Memory limited without swap.",
    );
    pub(crate) const RESERVATION: Warning = Warning(
        "Your kernel does not support memory soft limit capabilities or the cgroup is not \
         mounted. Limitation discarded.",
    );
    pub(crate) const SWAPPINESS: Warning = Warning(
        "Your kernel does not support memory swappiness capabilities or the cgroup is not \
         mounted. Memory swappiness discarded.",
    );
    pub(crate) const OOM_KILL: Warning =
        Warning("Your kernel does not support OomKillDisable. OomKillDisable discarded.");
    pub(crate) const SHARES: Warning = Warning(
        "Your kernel does not support CPU shares or the cgroup is not mounted. Shares discarded.",
    );
    pub(crate) const WEIGHT: Warning = Warning(
        "Your kernel does not support Block I/O weight or the cgroup is not mounted. Weight \
         discarded.",
    );
    pub(crate) const WEIGHT_DEVICE: Warning = Warning(
        "Your kernel does not support Block I/O weight_device or the cgroup is not mounted. \
         Weight-device discarded.",
    );
    pub(crate) const LEAF_WEIGHT: Warning =
        Warning("No kernel since 5.0 has a leaf weight of block I/O. Leaf weight discarded.");
    pub(crate) const KERNEL_MEMORY: Warning = Warning(
        "Specifying a kernel memory limit is deprecated and has no effect. Limitation discarded.",
    );
    pub(crate) const RESERVED_HUGE_PAGES: Warning =
        Warning("Your kernel does not limit the reservation of huge pages; their use is limited.");
}

/// One value for one control file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Setting {
    /// Whose hierarchy it is in.
    pub(crate) controller: &'static str,
    /// In the v2 hierarchy, or in the v1 hierarchy of the controller.
    pub(crate) unified: bool,
    /// File names and values, of which the first that exists is written.
    pub(crate) choices: Vec<(String, String)>,
    /// If none exists: drop it with this sentence, or fail.
    pub(crate) soft: Option<Warning>,
}

/// A controller for the limit `wanted`: on v2 (`true`) or v1.
pub(crate) fn place(
    layout: &Layout,
    controller: &'static str,
    wanted: &'static str,
) -> Result<bool> {
    if layout.legacy_with(controller).is_some() {
        return Ok(false);
    }
    let on_v2 = v2_name(controller);
    if layout
        .unified
        .as_ref()
        .is_some_and(|unified| unified.has(on_v2))
    {
        return Ok(true);
    }
    Err(Error::MissingController {
        wanted,
        controller: if layout.legacy.is_empty() {
            on_v2
        } else {
            controller
        },
        available: layout.controllers(),
    })
}

/// What v2 calls a controller of v1.
pub(crate) fn v2_name(controller: &'static str) -> &'static str {
    match controller {
        "blkio" => "io",
        other => other,
    }
}

/// All settings, in the order in which they must be written to a fresh cgroup.
///
/// # Errors
/// [`Error::MissingController`], [`Error::Invalid`] for what v2 cannot say.
pub(crate) fn settings(limits: &Limits, layout: &Layout) -> Result<Vec<Setting>> {
    let mut builder = Builder {
        layout,
        all: Vec::new(),
    };
    builder.cpuset(limits)?;
    builder.memory(limits)?;
    builder.cpu(limits)?;
    builder.pids(limits)?;
    builder.block(limits)?;
    builder.huge_pages(limits)?;
    builder.network(limits)?;
    builder.rdma(limits)?;
    builder.unified(limits)?;
    Ok(builder.all)
}

struct Builder<'a> {
    layout: &'a Layout,
    all: Vec<Setting>,
}

impl Builder<'_> {
    fn add(
        &mut self,
        controller: &'static str,
        unified: bool,
        choices: Vec<(String, String)>,
        soft: Option<Warning>,
    ) {
        self.all.push(Setting {
            controller,
            unified,
            choices,
            soft,
        });
    }

    fn one(&mut self, controller: &'static str, unified: bool, file: &str, value: String) {
        self.add(controller, unified, vec![(file.to_owned(), value)], None);
    }

    /// A file of the one or the other version with the same value.
    fn either(
        &mut self,
        controller: &'static str,
        wanted: &'static str,
        files: [&str; 2],
        value: impl FnOnce(bool) -> String,
    ) -> Result<()> {
        let unified = place(self.layout, controller, wanted)?;
        let [v1, v2] = files;
        self.one(
            controller,
            unified,
            if unified { v2 } else { v1 },
            value(unified),
        );
        Ok(())
    }

    /// What only v1 has.
    fn legacy(
        &mut self,
        controller: &'static str,
        wanted: &'static str,
        file: &str,
        value: String,
    ) -> Result<()> {
        if self.layout.legacy_with(controller).is_none() {
            return Err(Error::MissingController {
                wanted,
                controller,
                available: self.layout.controllers(),
            });
        }
        self.one(controller, false, file, value);
        Ok(())
    }

    fn cpuset(&mut self, limits: &Limits) -> Result<()> {
        if let Some(list) = &limits.cpuset_mems {
            let file = "cpuset.mems";
            self.either("cpuset", "list of memory nodes", [file; 2], |_| {
                list.clone()
            })?;
        }
        if let Some(list) = &limits.cpuset_cpus {
            let file = "cpuset.cpus";
            self.either("cpuset", "list of CPUs", [file; 2], |_| list.clone())?;
        }
        Ok(())
    }

    fn memory(&mut self, limits: &Limits) -> Result<()> {
        if let Some(bytes) = limits.memory {
            let files = ["memory.limit_in_bytes", "memory.max"];
            self.either("memory", "memory limit", files, |v2| amount(bytes, v2))?;
        }
        if let Some(bytes) = limits.memory_swap {
            if place(self.layout, "memory", "swap limit")? {
                let swap = swap_alone(bytes, limits.memory)?;
                let value = swap.map_or_else(|| "max".to_owned(), |swap| swap.to_string());
                let choices = vec![("memory.swap.max".to_owned(), value)];
                self.add("memory", true, choices, Some(warning::SWAP));
            } else {
                let file = "memory.memsw.limit_in_bytes";
                self.one("memory", false, file, amount(bytes, false));
            }
        }
        if let Some(bytes) = limits.memory_reservation {
            let files = ["memory.soft_limit_in_bytes", "memory.low"];
            self.either("memory", "memory reservation", files, |v2| {
                amount(bytes, v2)
            })?;
        }
        if let Some(bytes) = limits.kernel_tcp {
            let file = "memory.kmem.tcp.limit_in_bytes";
            let value = amount(bytes, false);
            self.legacy("memory", "limit of kernel memory for TCP", file, value)?;
        }
        if let Some(percent) = limits.swappiness {
            let file = "memory.swappiness";
            self.either("memory", "swappiness", [file; 2], |_| percent.to_string())?;
        }
        if let Some(disable) = limits.disable_oom_killer {
            // Only v1 has it; v2 needs to be told nothing when it is off.
            let unified = place(self.layout, "memory", "setting of the OOM killer")?;
            if disable || !unified {
                let value = u8::from(disable).to_string();
                self.one("memory", unified, "memory.oom_control", value);
            }
        }
        Ok(())
    }

    fn cpu(&mut self, limits: &Limits) -> Result<()> {
        // SCHED_IDLE and a weight exclude each other; who asks for idle gets that.
        let idle = limits.cpu_idle == Some(1);
        if let Some(idle) = limits.cpu_idle {
            self.either("cpu", "CPU idle setting", ["cpu.idle"; 2], |_| {
                idle.to_string()
            })?;
        }
        if let Some(shares) = limits.cpu_shares.filter(|_| !idle) {
            self.either("cpu", "CPU weight", ["cpu.shares", "cpu.weight"], |v2| {
                if v2 { weight_of_shares(shares) } else { shares }.to_string()
            })?;
        }
        // Of these two the kernel wants the runtime below the period at each step.
        if let Some(period) = limits.cpu_realtime_period {
            let file = "cpu.rt_period_us";
            self.legacy(
                "cpu",
                "period of realtime scheduling",
                file,
                period.to_string(),
            )?;
        }
        if let Some(runtime) = limits.cpu_realtime_runtime {
            let file = "cpu.rt_runtime_us";
            self.legacy(
                "cpu",
                "runtime of realtime scheduling",
                file,
                runtime.to_string(),
            )?;
        }
        if limits.cpu_quota.is_some() || limits.cpu_period.is_some() {
            if place(self.layout, "cpu", "CPU quota")? {
                let quota = match limits.cpu_quota {
                    Some(quota) if quota > 0 => quota.to_string(),
                    _ => "max".to_owned(),
                };
                let value = match limits.cpu_period {
                    Some(period) => format!("{quota} {period}"),
                    None => quota,
                };
                self.one("cpu", true, "cpu.max", value);
            } else {
                if let Some(period) = limits.cpu_period {
                    self.one("cpu", false, "cpu.cfs_period_us", period.to_string());
                }
                if let Some(quota) = limits.cpu_quota {
                    let quota = if quota > 0 { quota } else { -1 };
                    self.one("cpu", false, "cpu.cfs_quota_us", quota.to_string());
                }
            }
        }
        if let Some(burst) = limits.cpu_burst {
            let files = ["cpu.cfs_burst_us", "cpu.max.burst"];
            self.either("cpu", "CPU burst", files, |_| burst.to_string())?;
        }
        Ok(())
    }

    fn pids(&mut self, limits: &Limits) -> Result<()> {
        if let Some(count) = limits.pids {
            let value = match count {
                1.. => count.to_string(),
                _ => "max".to_owned(),
            };
            self.either("pids", "limit of processes", ["pids.max"; 2], |_| value)?;
        }
        Ok(())
    }

    fn block(&mut self, limits: &Limits) -> Result<()> {
        // Of bfq or of the other schedulers; v1 has files of their own for devices.
        let choices = |unified, of: &str, same: String, spread: String| {
            if unified {
                vec![
                    ("io.bfq.weight".to_owned(), same),
                    ("io.weight".to_owned(), spread),
                ]
            } else {
                vec![
                    (format!("blkio.bfq.weight{of}"), same.clone()),
                    (format!("blkio.weight{of}"), same),
                ]
            }
        };
        if let Some(weight) = limits.block_weight {
            let unified = place(self.layout, "blkio", "block I/O weight")?;
            let spread = io_weight(weight).to_string();
            let files = choices(unified, "", weight.to_string(), spread);
            self.add("blkio", unified, files, Some(warning::WEIGHT));
        }
        for device in &limits.block.weight_device {
            let unified = place(self.layout, "blkio", "block I/O weight of a device")?;
            let name = format!("{}:{}", device.major, device.minor);
            if let Some(weight) = device.weight {
                let same = format!("{name} {weight}");
                let spread = format!("{name} {}", io_weight(weight));
                let files = choices(unified, "_device", same, spread);
                self.add("blkio", unified, files, Some(warning::WEIGHT_DEVICE));
            }
        }
        let block = &limits.block;
        for (devices, key, file) in [
            (&block.throttle_read_bps_device, "rbps", "read_bps_device"),
            (&block.throttle_write_bps_device, "wbps", "write_bps_device"),
            (
                &block.throttle_read_iops_device,
                "riops",
                "read_iops_device",
            ),
            (
                &block.throttle_write_iops_device,
                "wiops",
                "write_iops_device",
            ),
        ] {
            for device in devices {
                let name = format!("{}:{}", device.major, device.minor);
                let rate = device.rate;
                let file = format!("blkio.throttle.{file}");
                self.either("blkio", "block I/O rate", [&file, "io.max"], |unified| {
                    match (unified, rate) {
                        // v1 has 0 for "no limit", v2 its word.
                        (true, 0) => format!("{name} {key}=max"),
                        (true, _) => format!("{name} {key}={rate}"),
                        (false, _) => format!("{name} {rate}"),
                    }
                })?;
            }
        }
        Ok(())
    }

    fn huge_pages(&mut self, limits: &Limits) -> Result<()> {
        for limit in &limits.huge_pages {
            let size = &limit.page_size;
            let value = limit.limit.to_string();
            let v1 = format!("hugetlb.{size}.limit_in_bytes");
            let v2 = format!("hugetlb.{size}.max");
            let unified = place(self.layout, "hugetlb", "limit of huge pages")?;
            let file = if unified { &v2 } else { &v1 };
            if !page_sizes().iter().any(|known| known == size) {
                return Err(Error::Invalid {
                    what: format!("limit of huge pages of {size}"),
                    reason: "is for a size that this kernel does not have; \
                             /sys/kernel/mm/hugepages shows those it has",
                });
            }
            self.one("hugetlb", unified, file, value.clone());
            // Reservations are limited too, where the kernel can (5.7): a program then hears of it
            // from mmap and not from a SIGBUS.
            let reserved = if unified {
                format!("hugetlb.{size}.rsvd.max")
            } else {
                format!("hugetlb.{size}.rsvd.limit_in_bytes")
            };
            self.add(
                "hugetlb",
                unified,
                vec![(reserved, value)],
                Some(warning::RESERVED_HUGE_PAGES),
            );
        }
        Ok(())
    }

    fn network(&mut self, limits: &Limits) -> Result<()> {
        if let Some(class) = limits.network_class {
            let wanted = "network class";
            self.legacy("net_cls", wanted, "net_cls.classid", class.to_string())?;
        }
        for priority in &limits.network_priorities {
            let value = format!("{} {}", priority.name, priority.priority);
            let wanted = "network priority";
            self.legacy("net_prio", wanted, "net_prio.ifpriomap", value)?;
        }
        Ok(())
    }

    fn rdma(&mut self, limits: &Limits) -> Result<()> {
        for (device, limit) in &limits.rdma {
            let mut value = device.clone();
            for (key, number) in [
                ("hca_handle", limit.hca_handles),
                ("hca_object", limit.hca_objects),
            ] {
                if let Some(number) = number {
                    value.push_str(&format!(" {key}={number}"));
                }
            }
            self.either("rdma", "limit of RDMA", ["rdma.max"; 2], |_| value)?;
        }
        Ok(())
    }

    fn unified(&mut self, limits: &Limits) -> Result<()> {
        for (file, value) in &limits.unified {
            if self.layout.unified.is_none() {
                return Err(Error::Invalid {
                    what: format!("unified setting {file}"),
                    reason: "needs cgroup v2, which is not mounted",
                });
            }
            self.one("unified", true, file, value.clone());
        }
        Ok(())
    }
}

/// The sizes of huge pages that this kernel has, as the files of `hugetlb` call them: `2MB`, `1GB`.
pub(crate) fn page_sizes() -> Vec<String> {
    let folder = Path::new("/sys/kernel/mm/hugepages");
    let mut sizes: Vec<String> = control::children(folder)
        .unwrap_or_default()
        .iter()
        .filter_map(|path| {
            let name = path.file_name()?.to_str()?;
            let kilobytes: u64 = name
                .strip_prefix("hugepages-")?
                .strip_suffix("kB")?
                .parse()
                .ok()?;
            Some(match kilobytes {
                kb if kb >= 1 << 20 => format!("{}GB", kb >> 20),
                kb if kb >= 1 << 10 => format!("{}MB", kb >> 10),
                kb => format!("{kb}KB"),
            })
        })
        .collect();
    sizes.sort();
    sizes
}

/// Bytes, or the word for no limit.
fn amount(bytes: i64, unified: bool) -> String {
    match (bytes, unified) {
        (..0, true) => "max".to_owned(),
        (..0, false) => "-1".to_owned(),
        _ => bytes.to_string(),
    }
}

/// v2 counts swap without memory; `None` is no limit.
pub(crate) fn swap_alone(swap: i64, memory: Option<i64>) -> Result<Option<u64>> {
    match memory {
        _ if swap < 0 => Ok(None),
        Some(memory) if memory >= 0 => Ok(Some(swap.saturating_sub(memory).max(0).unsigned_abs())),
        _ => Err(Error::Invalid {
            what: format!("memory+swap limit {swap}"),
            reason: "needs a memory limit beside it",
        }),
    }
}

/// v1's weight of block I/O (10 to 1000) on v2's scale (1 to 10000), as runc spreads it.
pub(crate) fn io_weight(weight: u16) -> u64 {
    1 + (u64::from(weight).saturating_sub(10)) * 9999 / 990
}

/// v1's shares (2 to 262144, normal 1024) as v2's weight (1 to 10000, normal 100): the curve through
/// these three points that runc and crun use since 2025.
pub(crate) fn weight_of_shares(shares: u64) -> u64 {
    if shares <= 2 {
        return 1;
    }
    if shares >= 262_144 {
        return 10_000;
    }
    let log = (shares as f64).log2();
    let exponent = (log * log + 125.0 * log) / 612.0 - 7.0 / 34.0;
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "between 1 and 10000 for shares between 2 and 2^18"
    )]
    let weight = 10f64.powf(exponent).ceil() as u64;
    weight
}

#[cfg(test)]
mod tests {
    use super::*;

    const V1: &str = "\
1 0 0:1 / /c/memory rw - cgroup cgroup rw,memory
1 0 0:2 / /c/cpu rw - cgroup cgroup rw,cpu
1 0 0:3 / /c/cpuset rw - cgroup cgroup rw,cpuset
1 0 0:4 / /c/pids rw - cgroup cgroup rw,pids
1 0 0:5 / /c/blkio rw - cgroup cgroup rw,blkio
";
    const OWN: &str = "5:memory:/me\n4:cpu:/\n3:cpuset:/\n2:pids:/\n1:blkio:/\n0::/\n";

    fn v1() -> Layout {
        Layout::parse(V1, OWN).unwrap()
    }

    fn v2(controllers: &[&str]) -> Layout {
        Layout::with_controllers(controllers)
    }

    fn text(limits: &Limits, layout: &Layout) -> Vec<String> {
        settings(limits, layout)
            .unwrap()
            .into_iter()
            .map(|setting| {
                let (file, value) = &setting.choices[0];
                format!("{file} = {value}")
            })
            .collect()
    }

    fn everything() -> Limits {
        Limits {
            memory: Some(1 << 28),
            memory_swap: Some(3 << 27),
            memory_reservation: Some(1 << 27),
            swappiness: None,
            disable_oom_killer: Some(false),
            cpu_shares: Some(1024),
            cpu_quota: Some(50_000),
            cpu_period: Some(100_000),
            cpu_burst: Some(1000),
            cpu_idle: None,
            cpuset_cpus: Some("0-1".to_owned()),
            cpuset_mems: Some("0".to_owned()),
            pids: Some(64),
            block_weight: Some(500),
            ..Limits::default()
        }
    }

    #[test]
    fn limits_become_files_of_v1() {
        assert_eq!(
            text(&everything(), &v1()),
            [
                "cpuset.mems = 0",
                "cpuset.cpus = 0-1",
                "memory.limit_in_bytes = 268435456",
                "memory.memsw.limit_in_bytes = 402653184",
                "memory.soft_limit_in_bytes = 134217728",
                "memory.oom_control = 0",
                "cpu.shares = 1024",
                "cpu.cfs_period_us = 100000",
                "cpu.cfs_quota_us = 50000",
                "cpu.cfs_burst_us = 1000",
                "pids.max = 64",
                "blkio.bfq.weight = 500",
            ]
        );
    }

    #[test]
    fn limits_become_files_of_v2() {
        let layout = v2(&["memory", "cpu", "cpuset", "pids", "io"]);
        assert_eq!(
            text(&everything(), &layout),
            [
                "cpuset.mems = 0",
                "cpuset.cpus = 0-1",
                "memory.max = 268435456",
                "memory.swap.max = 134217728",
                "memory.low = 134217728",
                "cpu.weight = 100",
                "cpu.max = 50000 100000",
                "cpu.max.burst = 1000",
                "pids.max = 64",
                "io.bfq.weight = 500",
            ]
        );
        let unlimited = Limits {
            memory: Some(-1),
            memory_swap: Some(-1),
            cpu_quota: Some(-1),
            pids: Some(0),
            ..Limits::default()
        };
        assert_eq!(
            text(&unlimited, &layout),
            [
                "memory.max = max",
                "memory.swap.max = max",
                "cpu.max = max",
                "pids.max = max"
            ]
        );
    }

    #[test]
    fn devices_networks_and_rdma_have_a_line_each() {
        use knarr_spec::runtime::{BlockIo, InterfacePriority, Rdma, ThrottleDevice, WeightDevice};
        let throttle = |rate| ThrottleDevice {
            major: 8,
            minor: 0,
            rate,
        };
        let mut limits = Limits {
            block: BlockIo {
                weight_device: vec![WeightDevice {
                    major: 8,
                    minor: 16,
                    weight: Some(1000),
                    leaf_weight: None,
                }],
                throttle_read_bps_device: vec![throttle(1000)],
                throttle_write_iops_device: vec![throttle(0)],
                ..BlockIo::default()
            },
            rdma: [(
                "mlx5_1".to_owned(),
                Rdma {
                    hca_handles: Some(3),
                    hca_objects: Some(10_000),
                },
            )]
            .into(),
            ..Limits::default()
        };
        assert_eq!(
            text(&limits, &v2(&["io", "rdma"])),
            [
                "io.bfq.weight = 8:16 1000",
                "io.max = 8:0 rbps=1000",
                "io.max = 8:0 wiops=max",
                "rdma.max = mlx5_1 hca_handle=3 hca_object=10000",
            ]
        );
        limits.rdma.clear();
        limits.network_class = Some(1_048_577);
        limits.network_priorities = vec![InterfacePriority {
            name: "eth0".to_owned(),
            priority: 500,
        }];
        let mounts = "1 0 0:1 / /c/b rw - cgroup cgroup rw,blkio\n\
                      1 0 0:2 / /c/n rw - cgroup cgroup rw,net_cls,net_prio\n";
        let layout = Layout::parse(mounts, "5:blkio:/\n4:net_cls,net_prio:/\n").unwrap();
        assert_eq!(
            text(&limits, &layout),
            [
                "blkio.bfq.weight_device = 8:16 1000",
                "blkio.throttle.read_bps_device = 8:0 1000",
                "blkio.throttle.write_iops_device = 8:0 0",
                "net_cls.classid = 1048577",
                "net_prio.ifpriomap = eth0 500",
            ]
        );
        let error = settings(&limits, &v2(&["io"])).unwrap_err();
        assert_eq!(
            error.to_string(),
            "the network class needs the cgroup controller `net_cls`, which is not available"
        );
    }

    #[test]
    fn huge_pages_are_of_a_size_that_there_is() {
        use knarr_spec::runtime::HugepageLimit;
        let of = |size: &str| Limits {
            huge_pages: vec![HugepageLimit {
                page_size: size.to_owned(),
                limit: 1 << 22,
            }],
            ..Limits::default()
        };
        if let Some(size) = page_sizes().first() {
            assert_eq!(
                text(&of(size), &v2(&["hugetlb"])),
                [
                    format!("hugetlb.{size}.max = 4194304"),
                    format!("hugetlb.{size}.rsvd.max = 4194304")
                ]
            );
        }
        let error = settings(&of("3MB"), &v2(&["hugetlb"])).unwrap_err();
        assert!(
            error
                .to_string()
                .starts_with("limit of huge pages of 3MB is for a size")
        );
    }

    #[test]
    fn a_missing_controller_is_named_with_what_is_there() {
        use knarr_diag::Explain as _;
        let limits = Limits {
            cpuset_cpus: Some("0".to_owned()),
            ..Limits::default()
        };
        let error = settings(&limits, &v2(&["memory", "pids"])).unwrap_err();
        assert_eq!(
            error.to_string(),
            "the list of CPUs needs the cgroup controller `cpuset`, which is not available"
        );
        assert!(
            error
                .hint()
                .unwrap()
                .ends_with("available are: memory, pids")
        );
    }

    #[test]
    fn swap_without_memory_cannot_be_said_on_v2() {
        let limits = Limits {
            memory_swap: Some(5),
            ..Limits::default()
        };
        assert!(settings(&limits, &v2(&["memory"])).is_err());
        assert!(settings(&limits, &v1()).is_ok());
    }

    #[test]
    fn shares_become_weights_along_the_common_curve() {
        for (shares, weight) in [
            (2, 1),
            (1024, 100),
            (262_144, 10_000),
            (512, 59),
            (2048, 174),
        ] {
            assert_eq!(weight_of_shares(shares), weight, "{shares}");
        }
    }
}
