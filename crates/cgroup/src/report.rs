//! What a container has used, as `runc events` prints it: runc's `types.Stats`, name by name.

use std::collections::BTreeMap;
use std::path::Path;

use serde::Serialize;

use crate::stats::number;
use crate::{Cgroup, Result, control, settings};

macro_rules! report_types {
    ($(
        $(#[$meta:meta])*
        struct $name:ident { $( $(#[$fmeta:meta])* $field:ident : $ty:ty ),* $(,)? }
    )*) => { $(
        $(#[$meta])*
        #[derive(Debug, Clone, Default, PartialEq, Serialize)]
        pub struct $name { $( $(#[$fmeta])* #[expect(missing_docs, reason = "named as runc names it")] pub $field: $ty ),* }
    )* };
}

report_types! {
    /// The `data` of a `stats` event. Times are in nanoseconds, amounts in bytes.
    struct Report {
        cpu: Cpu,
        cpuset: Cpuset,
        memory: Memory,
        pids: Pids,
        blkio: Block,
        hugetlb: BTreeMap<String, HugePages>,
        intel_rdt: BTreeMap<String, u64>,
        network_interfaces: Option<Vec<u64>>,
    }
    /// Time on the processor.
    struct Cpu {
        usage: CpuUsage,
        throttling: Throttling,
        #[serde(skip_serializing_if = "Option::is_none")] psi: Option<Pressure>,
    }
    /// By mode and, under v1, by processor.
    struct CpuUsage {
        #[serde(skip_serializing_if = "is_zero")] total: u64,
        #[serde(skip_serializing_if = "Vec::is_empty")] percpu: Vec<u64>,
        #[serde(skip_serializing_if = "Vec::is_empty")] percpu_kernel: Vec<u64>,
        #[serde(skip_serializing_if = "Vec::is_empty")] percpu_user: Vec<u64>,
        kernel: u64,
        user: u64,
    }
    /// What the quota took.
    struct Throttling {
        #[serde(skip_serializing_if = "is_zero")] periods: u64,
        #[serde(rename = "throttledPeriods", skip_serializing_if = "is_zero")] throttled_periods: u64,
        #[serde(rename = "throttledTime", skip_serializing_if = "is_zero")] throttled_time: u64,
    }
    /// Where it may run (v1).
    struct Cpuset {
        #[serde(skip_serializing_if = "Vec::is_empty")] cpus: Vec<u16>,
        cpu_exclusive: u64,
        #[serde(skip_serializing_if = "Vec::is_empty")] mems: Vec<u16>,
        mem_hardwall: u64,
        mem_exclusive: u64,
        memory_migrate: u64,
        memory_spread_page: u64,
        memory_spread_slab: u64,
        memory_pressure: u64,
        sched_load_balance: u64,
        sched_relax_domain_level: i64,
    }
    /// Memory of each kind.
    struct Memory {
        #[serde(skip_serializing_if = "is_zero")] cache: u64,
        usage: Amount,
        swap: Amount,
        kernel: Amount,
        #[serde(rename = "kernelTCP")] kernel_tcp: Amount,
        #[serde(skip_serializing_if = "BTreeMap::is_empty")] raw: BTreeMap<String, u64>,
        #[serde(skip_serializing_if = "Option::is_none")] psi: Option<Pressure>,
    }
    /// One kind of memory; no limit is the largest number, under v1 the kernel's own largest.
    struct Amount {
        limit: u64,
        #[serde(skip_serializing_if = "is_zero")] usage: u64,
        #[serde(skip_serializing_if = "is_zero")] max: u64,
        failcnt: u64,
    }
    /// Processes; no limit is 0.
    struct Pids {
        #[serde(skip_serializing_if = "is_zero")] current: u64,
        #[serde(skip_serializing_if = "is_zero")] limit: u64,
    }
    /// Block I/O by device and act.
    struct Block {
        #[serde(rename = "ioServiceBytesRecursive", skip_serializing_if = "Vec::is_empty")] bytes: Vec<BlockEntry>,
        #[serde(rename = "ioServicedRecursive", skip_serializing_if = "Vec::is_empty")] requests: Vec<BlockEntry>,
        #[serde(skip_serializing_if = "Option::is_none")] psi: Option<Pressure>,
    }
    /// One number of one device.
    struct BlockEntry {
        #[serde(skip_serializing_if = "is_zero")] major: u64,
        #[serde(skip_serializing_if = "is_zero")] minor: u64,
        #[serde(skip_serializing_if = "String::is_empty")] op: String,
        #[serde(skip_serializing_if = "is_zero")] value: u64,
    }
    /// Huge pages of one size.
    struct HugePages {
        #[serde(skip_serializing_if = "is_zero")] usage: u64,
        #[serde(skip_serializing_if = "is_zero")] max: u64,
        failcnt: u64,
    }
    /// How long some, and all, of its tasks waited (Documentation/accounting/psi.rst).
    struct Pressure { some: Stall, full: Stall }
    /// Percent of the last 10, 60 and 300 seconds, and microseconds in all.
    struct Stall { avg10: f64, avg60: f64, avg300: f64, total: u64 }
}

#[expect(
    clippy::trivially_copy_pass_by_ref,
    reason = "serde passes a reference"
)]
fn is_zero(number: &u64) -> bool {
    *number == 0
}

impl Cgroup {
    /// What was used until now, as runc tells it.
    ///
    /// # Errors
    /// [`Error::Read`](crate::Error::Read).
    pub fn report(&self) -> Result<Report> {
        let stats = self.stats()?;
        let mut report = Report::default();
        if let Some(cpu) = stats.cpu {
            report.cpu.usage.total = cpu.total;
            report.cpu.usage.user = cpu.user;
            report.cpu.usage.kernel = cpu.system;
            report.cpu.throttling = Throttling {
                periods: cpu.periods,
                throttled_periods: cpu.throttled_periods,
                throttled_time: cpu.throttled,
            };
        }
        if let Some(pids) = stats.pids {
            report.pids.current = pids.current;
            report.pids.limit = pids.limit.unwrap_or_default();
        }
        if let Some(unified) = &self.unified {
            self.report_unified(&unified.path, &mut report)?;
        }
        if let Some(memory) = stats.memory {
            report.memory.cache = ["file", "cache"]
                .iter()
                .find_map(|key| memory.details.get(*key))
                .copied()
                .unwrap_or_default();
            report.memory.usage = Amount {
                limit: memory.limit.unwrap_or(u64::MAX),
                usage: memory.usage,
                max: memory.peak.unwrap_or_default(),
                failcnt: memory.failures,
            };
            report.memory.raw = memory.details;
        }
        self.report_legacy(&mut report)?;
        Ok(report)
    }

    fn report_unified(&self, dir: &Path, report: &mut Report) -> Result<()> {
        report.cpu.psi = pressure(dir, "cpu.pressure")?;
        report.memory.psi = pressure(dir, "memory.pressure")?;
        report.blkio.psi = pressure(dir, "io.pressure")?;
        if let Some(current) = number(dir, "memory.swap.current")? {
            // As v1 counts, and so as runc prints: memory and swap together.
            let memory = number(dir, "memory.current")?.unwrap_or_default();
            let memory_max = number(dir, "memory.max")?;
            let swap_max = number(dir, "memory.swap.max")?;
            report.memory.swap = Amount {
                limit: match (memory_max, swap_max) {
                    (Some(memory), Some(swap)) => memory.saturating_add(swap),
                    _ => u64::MAX,
                },
                usage: memory.saturating_add(current),
                ..Amount::default()
            };
        }
        if let Some(text) = control::try_read(&dir.join("io.stat"))? {
            for line in text.lines() {
                let mut words = line.split(' ');
                let Some((major, minor)) = words.next().and_then(device) else {
                    continue;
                };
                for (key, value) in words.filter_map(|word| word.split_once('=')) {
                    let (list, op) = match key {
                        "rbytes" => (&mut report.blkio.bytes, "Read"),
                        "wbytes" => (&mut report.blkio.bytes, "Write"),
                        "rios" => (&mut report.blkio.requests, "Read"),
                        "wios" => (&mut report.blkio.requests, "Write"),
                        _ => continue,
                    };
                    list.push(BlockEntry {
                        major,
                        minor,
                        op: op.to_owned(),
                        value: value.parse().unwrap_or_default(),
                    });
                }
            }
        }
        for size in settings::page_sizes() {
            let Some(usage) = number(dir, &format!("hugetlb.{size}.current"))? else {
                continue;
            };
            let events = control::try_read(&dir.join(format!("hugetlb.{size}.events")))?;
            let events = events.unwrap_or_default();
            let failcnt = control::keyed(&events).get("max").copied();
            let pages = HugePages {
                usage,
                max: 0,
                failcnt: failcnt.unwrap_or_default(),
            };
            report.hugetlb.insert(size, pages);
        }
        Ok(())
    }

    fn report_legacy(&self, report: &mut Report) -> Result<()> {
        if let Some(dir) = self.legacy_with("cpuacct") {
            let list = |file: &str| -> Result<Vec<u64>> {
                let text = control::try_read(&dir.join(file))?.unwrap_or_default();
                Ok(text
                    .split_whitespace()
                    .filter_map(|n| n.parse().ok())
                    .collect())
            };
            report.cpu.usage.percpu = list("cpuacct.usage_percpu")?;
            report.cpu.usage.percpu_kernel = list("cpuacct.usage_percpu_sys")?;
            report.cpu.usage.percpu_user = list("cpuacct.usage_percpu_user")?;
        }
        if let Some(dir) = self.legacy_with("memory") {
            let amount = |prefix: &str| -> Result<Amount> {
                let get = |name: &str| number(&dir, &format!("memory.{prefix}{name}"));
                Ok(Amount {
                    limit: get("limit_in_bytes")?.unwrap_or_default(),
                    usage: get("usage_in_bytes")?.unwrap_or_default(),
                    max: get("max_usage_in_bytes")?.unwrap_or_default(),
                    failcnt: get("failcnt")?.unwrap_or_default(),
                })
            };
            report.memory.usage = amount("")?;
            report.memory.swap = amount("memsw.")?;
            report.memory.kernel = amount("kmem.")?;
            report.memory.kernel_tcp = amount("kmem.tcp.")?;
        }
        if let Some(dir) = self.legacy_with("cpuset") {
            let get = |name: &str| -> Result<u64> {
                Ok(number(&dir, &format!("cpuset.{name}"))?.unwrap_or_default())
            };
            let list = |name: &str| -> Result<Vec<u16>> {
                let text = control::try_read(&dir.join(format!("cpuset.{name}")))?;
                Ok(numbers(text.unwrap_or_default().trim()))
            };
            report.cpuset = Cpuset {
                cpus: list("cpus")?,
                cpu_exclusive: get("cpu_exclusive")?,
                mems: list("mems")?,
                mem_hardwall: get("mem_hardwall")?,
                mem_exclusive: get("mem_exclusive")?,
                memory_migrate: get("memory_migrate")?,
                memory_spread_page: get("memory_spread_page")?,
                memory_spread_slab: get("memory_spread_slab")?,
                memory_pressure: get("memory_pressure")?,
                sched_load_balance: get("sched_load_balance")?,
                // -1 is "the system's"; unsigned numbers are none.
                sched_relax_domain_level: control::try_read(
                    &dir.join("cpuset.sched_relax_domain_level"),
                )?
                .and_then(|text| text.trim().parse().ok())
                .unwrap_or_default(),
            };
        }
        if let Some(dir) = self.legacy_with("blkio") {
            report.blkio.bytes = entries(&dir, "blkio.throttle.io_service_bytes_recursive")?;
            report.blkio.requests = entries(&dir, "blkio.throttle.io_serviced_recursive")?;
        }
        if let Some(dir) = self.legacy_with("hugetlb") {
            for size in settings::page_sizes() {
                let get = |name: &str| number(&dir, &format!("hugetlb.{size}.{name}"));
                let Some(usage) = get("usage_in_bytes")? else {
                    continue;
                };
                let pages = HugePages {
                    usage,
                    max: get("max_usage_in_bytes")?.unwrap_or_default(),
                    failcnt: get("failcnt")?.unwrap_or_default(),
                };
                report.hugetlb.insert(size, pages);
            }
        }
        Ok(())
    }
}

/// `8:0`.
fn device(text: &str) -> Option<(u64, u64)> {
    let (major, minor) = text.split_once(':')?;
    Some((major.parse().ok()?, minor.parse().ok()?))
}

/// The lines `8:0 Read 10` of a v1 file; its sum has no device and is left out.
fn entries(dir: &Path, file: &str) -> Result<Vec<BlockEntry>> {
    let text = control::try_read(&dir.join(file))?.unwrap_or_default();
    Ok(text
        .lines()
        .filter_map(|line| {
            let mut words = line.split(' ');
            let (major, minor) = device(words.next()?)?;
            Some(BlockEntry {
                major,
                minor,
                op: words.next()?.to_owned(),
                value: words.next()?.parse().ok()?,
            })
        })
        .collect())
}

/// The members of a list such as `0-2,8`.
fn numbers(list: &str) -> Vec<u16> {
    list.split(',')
        .filter_map(|range| {
            let (first, last) = range.split_once('-').unwrap_or((range, range));
            Some(first.parse::<u16>().ok()?..=last.parse().ok()?)
        })
        .flatten()
        .collect()
}

/// A file of stalls; `None` where the kernel does not count them.
fn pressure(dir: &Path, file: &str) -> Result<Option<Pressure>> {
    let text = match control::try_read(&dir.join(file)) {
        // Switched off at boot (`psi=0`), reading fails with EOPNOTSUPP.
        Err(crate::Error::Read { cause, .. })
            if cause.errno == knarr_sys::rustix::io::Errno::OPNOTSUPP =>
        {
            return Ok(None);
        }
        other => other?,
    };
    Ok(text.map(|text| {
        let stall = |kind: &str| {
            let line = text.lines().find_map(|line| line.strip_prefix(kind));
            let line = line.unwrap_or_default();
            let get = |key: &str| {
                line.split_whitespace()
                    .find_map(|word| word.strip_prefix(key)?.strip_prefix('='))
            };
            let share = |key| get(key).and_then(|n| n.parse().ok()).unwrap_or_default();
            Stall {
                avg10: share("avg10"),
                avg60: share("avg60"),
                avg300: share("avg300"),
                total: get("total")
                    .and_then(|n| n.parse().ok())
                    .unwrap_or_default(),
            }
        };
        Pressure {
            some: stall("some"),
            full: stall("full"),
        }
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_of_the_kernel_are_read() {
        let dir = tempfile::tempdir().unwrap();
        let put = |name: &str, text: &str| std::fs::write(dir.path().join(name), text).unwrap();
        put(
            "p",
            "some avg10=1.50 avg60=0.20 avg300=0.00 total=77\nfull avg10=0.00 avg60=0.00 avg300=0.00 total=5\n",
        );
        let pressure = pressure(dir.path(), "p").unwrap().unwrap();
        assert_eq!((pressure.some.avg10, pressure.some.total), (1.5, 77));
        assert_eq!(pressure.full.total, 5);
        put("b", "8:0 Read 10\n8:0 Write 0\nTotal 10\n");
        let entries = entries(dir.path(), "b").unwrap();
        assert_eq!(
            serde_json::to_string(&entries).unwrap(),
            r#"[{"major":8,"op":"Read","value":10},{"major":8,"op":"Write"}]"#
        );
        assert_eq!(numbers("0-2,8"), [0, 1, 2, 8]);
        assert_eq!(numbers(""), [0u16; 0]);
    }

    #[test]
    fn what_is_not_counted_is_printed_as_by_runc() {
        let text = serde_json::to_string(&Report::default()).unwrap();
        assert!(text.starts_with(
            r#"{"cpu":{"usage":{"kernel":0,"user":0},"throttling":{}},"cpuset":{"cpu_exclusive":0,"#
        ));
        assert!(text.ends_with(
            r#""pids":{},"blkio":{},"hugetlb":{},"intel_rdt":{},"network_interfaces":null}"#
        ));
    }
}
