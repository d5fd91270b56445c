//! What a container has used.

use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::{Cgroup, Result, control};

/// Numbers of one moment. A part is `None` where no controller counts it for this container (yet:
/// on v1 see [`Cgroup::join_stats`](crate::Cgroup::join_stats)).
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stats {
    /// CPU time.
    pub cpu: Option<CpuStats>,
    /// Memory.
    pub memory: Option<MemoryStats>,
    /// Processes.
    pub pids: Option<PidsStats>,
    /// Block I/O.
    pub block: Option<BlockStats>,
}

/// CPU time, all in nanoseconds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CpuStats {
    /// User and system together.
    pub total: u64,
    /// In programs.
    pub user: u64,
    /// In the kernel.
    pub system: u64,
    /// Periods in which there was something to run, with a quota.
    pub periods: u64,
    /// Periods in which the quota ran out.
    pub throttled_periods: u64,
    /// Time spent waiting for the next period.
    pub throttled: u64,
}

/// Memory in bytes.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemoryStats {
    /// Everything that is charged.
    pub usage: u64,
    /// The most there ever was, where the kernel keeps it.
    pub peak: Option<u64>,
    /// `None` is unlimited.
    pub limit: Option<u64>,
    /// Inactive page cache: what `docker stats` subtracts from `usage`.
    pub cache: u64,
    /// Swap in use.
    pub swap: u64,
    /// How often the limit was hit, where the kernel still counts it (6.18 does not on v1).
    pub failures: u64,
    /// `memory.stat` as the kernel has it.
    pub details: std::collections::BTreeMap<String, u64>,
}

/// Processes and threads.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PidsStats {
    /// Now.
    pub current: u64,
    /// `None` is unlimited.
    pub limit: Option<u64>,
}

/// Block I/O since the start.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct BlockStats {
    /// Bytes.
    pub read: u64,
    /// Bytes.
    pub written: u64,
    /// Requests.
    pub reads: u64,
    /// Requests.
    pub writes: u64,
}

impl Cgroup {
    /// What was used until now.
    ///
    /// # Errors
    /// [`Error::Read`](crate::Error::Read).
    pub fn stats(&self) -> Result<Stats> {
        let mut stats = Stats::default();
        if let Some(unified) = &self.unified {
            let dir = &unified.path;
            stats.cpu = control::try_read(&dir.join("cpu.stat"))?.map(|text| cpu_of_v2(&text));
            stats.memory = memory_of_v2(dir)?;
            stats.pids = pids(dir)?;
            stats.block = block_of_v2(dir)?;
        }
        if let Some(dir) = self.legacy_with("cpuacct")
            && stats.cpu.is_none()
            && let Some(total) = number(&dir, "cpuacct.usage")?
        {
            stats.cpu = Some(CpuStats {
                total,
                user: number(&dir, "cpuacct.usage_user")?.unwrap_or_default(),
                system: number(&dir, "cpuacct.usage_sys")?.unwrap_or_default(),
                ..CpuStats::default()
            });
        }
        if let Some(dir) = self.legacy_with("cpu")
            && let Some(cpu) = &mut stats.cpu
            && let Some(text) = control::try_read(&dir.join("cpu.stat"))?
        {
            throttling_of_v1(&text, cpu);
        }
        if let Some(dir) = self.legacy_with("memory") {
            stats.memory = memory_of_v1(&dir)?;
        }
        if let Some(dir) = self.legacy_with("pids") {
            stats.pids = pids(&dir)?;
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
            stats.block = block_of_v1(&dir)?;
        }
        Ok(stats)
    }

    /// How many processes the kernel killed in it because memory ran out; 0 where nobody counts.
    /// Ask before [`Self::remove`].
    ///
    /// # Errors
    /// [`Error::Read`](crate::Error::Read).
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
}

impl MemoryStats {
    /// What `docker stats` shows: usage without the page cache that can be dropped at once.
    pub fn working_set(&self) -> u64 {
        self.usage.saturating_sub(self.cache)
    }
}

/// v1's number for "no limit": the largest whole page.
const NO_LIMIT: u64 = 0x7fff_ffff_ffff_f000;

/// CPU time from v2's `cpu.stat` and, for throttling, v1's.
pub(crate) fn cpu_of_v2(text: &str) -> CpuStats {
    let stat = control::keyed(text);
    let get = |key| stat.get(key).copied().unwrap_or_default();
    let nanoseconds = |key| get(key).saturating_mul(1000);
    CpuStats {
        total: nanoseconds("usage_usec"),
        user: nanoseconds("user_usec"),
        system: nanoseconds("system_usec"),
        periods: get("nr_periods"),
        throttled_periods: get("nr_throttled"),
        throttled: nanoseconds("throttled_usec"),
    }
}

/// Throttling from v1's `cpu.stat`.
pub(crate) fn throttling_of_v1(text: &str, into: &mut CpuStats) {
    let stat = control::keyed(text);
    let get = |key| stat.get(key).copied().unwrap_or_default();
    into.periods = get("nr_periods");
    into.throttled_periods = get("nr_throttled");
    into.throttled = get("throttled_time");
}

/// Memory of a v1 directory; `None` when the container is not in it.
pub(crate) fn memory_of_v1(dir: &Path) -> Result<Option<MemoryStats>> {
    let Some(stat) = control::try_read(&dir.join("memory.stat"))? else {
        return Ok(None);
    };
    let stat = control::keyed(&stat);
    let get = |key| stat.get(key).copied();
    let limit = number(dir, "memory.limit_in_bytes")?
        .into_iter()
        .chain(get("hierarchical_memory_limit"))
        .min();
    Ok(Some(MemoryStats {
        usage: number(dir, "memory.usage_in_bytes")?.unwrap_or_default(),
        peak: number(dir, "memory.max_usage_in_bytes")?,
        limit: limit.filter(|&limit| limit < NO_LIMIT),
        cache: get("total_inactive_file").unwrap_or_default(),
        swap: get("total_swap").unwrap_or_default(),
        // Which of the two is hit first depends on the swap limit.
        failures: number(dir, "memory.failcnt")?.unwrap_or_default()
            + number(dir, "memory.memsw.failcnt")?.unwrap_or_default(),
        details: stat
            .into_iter()
            .map(|(key, value)| (key.to_owned(), value))
            .collect(),
    }))
}

/// Memory of a v2 directory; `None` without the controller.
pub(crate) fn memory_of_v2(dir: &Path) -> Result<Option<MemoryStats>> {
    let Some(usage) = number(dir, "memory.current")? else {
        return Ok(None);
    };
    let stat = control::try_read(&dir.join("memory.stat"))?.unwrap_or_default();
    let stat = control::keyed(&stat);
    let events = control::try_read(&dir.join("memory.events"))?.unwrap_or_default();
    Ok(Some(MemoryStats {
        usage,
        peak: number(dir, "memory.peak")?,
        // `max` is no number.
        limit: number(dir, "memory.max")?,
        cache: stat.get("inactive_file").copied().unwrap_or_default(),
        swap: number(dir, "memory.swap.current")?.unwrap_or_default(),
        failures: control::keyed(&events)
            .get("max")
            .copied()
            .unwrap_or_default(),
        details: stat
            .into_iter()
            .map(|(key, value)| (key.to_owned(), value))
            .collect(),
    }))
}

/// Processes of a directory of either version; `None` without the controller.
pub(crate) fn pids(dir: &Path) -> Result<Option<PidsStats>> {
    let Some(current) = number(dir, "pids.current")? else {
        return Ok(None);
    };
    Ok(Some(PidsStats {
        current,
        limit: number(dir, "pids.max")?,
    }))
}

/// Block I/O from v1's `*_recursive` files; `None` when the container is not in it.
pub(crate) fn block_of_v1(dir: &Path) -> Result<Option<BlockStats>> {
    let sums = |file: &str| -> Result<Option<(u64, u64)>> {
        let Some(text) = control::try_read(&dir.join(file))? else {
            return Ok(None);
        };
        let sum = |act: &str| {
            text.lines()
                .filter_map(|line| {
                    line.split_once(' ')?
                        .1
                        .strip_prefix(act)?
                        .trim()
                        .parse()
                        .ok()
                })
                .fold(0u64, u64::saturating_add)
        };
        Ok(Some((sum("Read "), sum("Write "))))
    };
    let Some((read, written)) = sums("blkio.throttle.io_service_bytes_recursive")? else {
        return Ok(None);
    };
    let (reads, writes) = sums("blkio.throttle.io_serviced_recursive")?.unwrap_or_default();
    Ok(Some(BlockStats {
        read,
        written,
        reads,
        writes,
    }))
}

/// Block I/O from v2's `io.stat`; `None` without the controller.
pub(crate) fn block_of_v2(dir: &Path) -> Result<Option<BlockStats>> {
    let Some(text) = control::try_read(&dir.join("io.stat"))? else {
        return Ok(None);
    };
    let sum = |key: &str| {
        text.split_whitespace()
            .filter_map(|field| field.strip_prefix(key)?.parse().ok())
            .fold(0u64, u64::saturating_add)
    };
    Ok(Some(BlockStats {
        read: sum("rbytes="),
        written: sum("wbytes="),
        reads: sum("rios="),
        writes: sum("wios="),
    }))
}

/// A file with one number; `None` when it is missing or says `max`.
pub(crate) fn number(dir: &Path, file: &str) -> Result<Option<u64>> {
    Ok(control::try_read(&dir.join(file))?.and_then(|text| text.trim().parse().ok()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cpu_time_is_read_from_both_versions() {
        let mut cpu = cpu_of_v2("usage_usec 7\nuser_usec 4\nsystem_usec 3\nnice_usec 0\n");
        assert_eq!(
            (cpu.total, cpu.user, cpu.system, cpu.periods),
            (7000, 4000, 3000, 0)
        );
        throttling_of_v1(
            "nr_periods 9\nnr_throttled 2\nthrottled_time 55\n",
            &mut cpu,
        );
        assert_eq!(
            (cpu.periods, cpu.throttled_periods, cpu.throttled),
            (9, 2, 55)
        );
        let cpu = cpu_of_v2("usage_usec 1\nnr_periods 2\nnr_throttled 1\nthrottled_usec 3\n");
        assert_eq!(
            (cpu.periods, cpu.throttled_periods, cpu.throttled),
            (2, 1, 3000)
        );
    }

    #[test]
    fn memory_and_block_io_are_read_from_both_versions() {
        let dir = tempfile::tempdir().unwrap();
        let put = |name: &str, text: &str| std::fs::write(dir.path().join(name), text).unwrap();
        assert_eq!(memory_of_v1(dir.path()).unwrap(), None);
        assert_eq!(memory_of_v2(dir.path()).unwrap(), None);
        put(
            "memory.stat",
            "cache 5\ntotal_inactive_file 30\ntotal_swap 2\ninactive_file 31\n\
                            hierarchical_memory_limit 9223372036854771712\n",
        );
        put("memory.usage_in_bytes", "100\n");
        put("memory.limit_in_bytes", "9223372036854771712\n");
        let v1 = memory_of_v1(dir.path()).unwrap().unwrap();
        assert_eq!(
            (v1.usage, v1.limit, v1.cache, v1.swap, v1.working_set()),
            (100, None, 30, 2, 70)
        );
        put("memory.current", "100\n");
        put("memory.max", "max\n");
        let v2 = memory_of_v2(dir.path()).unwrap().unwrap();
        assert_eq!((v2.limit, v2.working_set()), (None, 69));
        put("memory.max", "4096\n");
        assert_eq!(memory_of_v2(dir.path()).unwrap().unwrap().limit, Some(4096));

        put(
            "blkio.throttle.io_service_bytes_recursive",
            "8:0 Read 10\n8:0 Write 20\n8:0 Sync 30\n9:1 Read 1\nTotal 61\n",
        );
        put(
            "blkio.throttle.io_serviced_recursive",
            "8:0 Read 1\n8:0 Write 2\n",
        );
        let expected = BlockStats {
            read: 11,
            written: 20,
            reads: 1,
            writes: 2,
        };
        assert_eq!(block_of_v1(dir.path()).unwrap(), Some(expected));
        put(
            "io.stat",
            "8:0 rbytes=10 wbytes=20 rios=1 wios=2 dbytes=0 dios=0\n9:1 rbytes=1\n",
        );
        assert_eq!(block_of_v2(dir.path()).unwrap(), Some(expected));
    }
}
