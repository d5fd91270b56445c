//! What the machine is like, read once, so that deciding stays pure.

use std::cell::OnceCell;
use std::path::Path;

/// Facts of the host that a plan depends on.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Facts {
    /// Online processors.
    pub(crate) cpus: u32,
    /// As a list of cpuset(7); empty where unknown.
    pub(crate) cpu_list: String,
    /// Read where somebody asks: [`Facts::memory_nodes`].
    pub(crate) memory_nodes: OnceCell<String>,
    /// The capabilities that this process has, a bit for each: nobody can give more.
    pub(crate) capabilities: u64,
    /// The most files that the caller may allow itself to open.
    pub(crate) open_files: u64,
    /// `thermal_throttle` folders that exist.
    pub(crate) thermal: Vec<String>,
    /// The host's name.
    pub(crate) hostname: String,
}

impl Facts {
    /// What every start needs. Two small files and a few stats.
    pub(crate) fn read() -> Self {
        let text = |path: &str| {
            knarr_fs::read_to_string(Path::new(path))
                .map(|text| text.trim().to_owned())
                .unwrap_or_default()
        };
        let cpu_list = text("/sys/devices/system/cpu/online");
        let cpus: u32 = cpu_list
            .split(',')
            .filter_map(|part| {
                let (from, to) = part.split_once('-').unwrap_or((part, part));
                let (from, to): (u32, u32) = (from.parse().ok()?, to.parse().ok()?);
                to.checked_sub(from)?.checked_add(1)
            })
            .sum();
        let thermal = |cpu: u32| format!("/sys/devices/system/cpu/cpu{cpu}/thermal_throttle");
        // Machines have it for all processors or for none.
        let thermal = if Path::new(&thermal(0)).exists() {
            (0..cpus).map(thermal).collect()
        } else {
            Vec::new()
        };
        Self {
            cpus: cpus.max(1),
            cpu_list,
            memory_nodes: OnceCell::new(),
            capabilities: permitted(&text("/proc/self/status")),
            open_files: rustix::process::getrlimit(rustix::process::Resource::Nofile)
                .maximum
                .unwrap_or(u64::MAX),
            thermal,
            hostname: rustix::system::uname()
                .nodename()
                .to_string_lossy()
                .into_owned(),
        }
    }

    /// The memory nodes as a list of cpuset(7); empty where unknown.
    pub(crate) fn memory_nodes(&self) -> &str {
        self.memory_nodes.get_or_init(|| {
            knarr_fs::read_to_string(Path::new("/sys/devices/system/node/online"))
                .map(|text| text.trim().to_owned())
                .unwrap_or_default()
        })
    }
}

/// The permitted set in proc_pid_status(5).
fn permitted(status: &str) -> u64 {
    let line = status.lines().find_map(|line| line.strip_prefix("CapPrm:"));
    line.and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok())
        .unwrap_or_default()
}
