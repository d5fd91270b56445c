//! What a container has used.

use serde::{Deserialize, Serialize};

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
    /// How often the limit was hit.
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

impl MemoryStats {
    /// What `docker stats` shows: usage without the page cache that can be dropped at once.
    pub fn working_set(&self) -> u64 {
        self.usage.saturating_sub(self.cache)
    }
}
