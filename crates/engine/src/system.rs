//! What runs and what it costs.

use crate::Result;

/// What `top` shows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Top {
    /// Column titles.
    pub titles: Vec<String>,
    /// One row per process.
    pub processes: Vec<Vec<String>>,
}

/// What a changed path underwent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ChangeKind {
    /// `C`
    Changed,
    /// `A`
    Added,
    /// `D`
    Deleted,
}

/// A line of `diff`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    /// What happened.
    pub kind: ChangeKind,
    /// To which path, absolute, as bytes of the container.
    pub path: std::path::PathBuf,
}

/// What a container uses now; percentages as Docker computes them.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Stats {
    /// Full id.
    pub id: String,
    /// Name.
    pub name: String,
    /// Percent of one CPU (200 is two whole ones).
    pub cpu_percent: f64,
    /// Bytes, without the inactive page cache.
    pub memory: u64,
    /// Bytes: the limit, or the machine's memory.
    pub memory_limit: u64,
    /// Percent of the limit.
    pub memory_percent: f64,
    /// Bytes received and sent on all interfaces but loopback.
    pub network: (u64, u64),
    /// Bytes read and written.
    pub block: (u64, u64),
    /// Processes and threads.
    pub pids: u64,
}

/// Takes [`Stats`] of one container again and again.
#[derive(Debug)]
pub struct StatsReader {
    _private: (),
}

impl StatsReader {
    /// A sample; percentages are since the one before (the first: since 0 percent).
    ///
    /// # Errors
    /// When the container is gone.
    pub fn sample(&mut self) -> Result<Stats> {
        todo!()
    }
}

/// What a prune removed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Pruned {
    /// Ids or names.
    pub removed: Vec<String>,
    /// Bytes that are free now.
    pub bytes: u64,
}
