//! What the machine is like, read once, so that deciding stays pure.

use std::path::Path;

/// Facts of the host that a plan depends on.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Facts {
    /// Online processors.
    pub(crate) cpus: u32,
    /// As a list of cpuset(7); empty where unknown.
    pub(crate) cpu_list: String,
    /// As a list of cpuset(7); empty where unknown.
    pub(crate) memory_nodes: String,
    /// The highest capability's number that the kernel knows.
    pub(crate) last_capability: u32,
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
            memory_nodes: String::new(),
            last_capability: text("/proc/sys/kernel/cap_last_cap").parse().unwrap_or(40),
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

    /// And what only some need.
    pub(crate) fn with_memory_nodes(mut self) -> Self {
        self.memory_nodes = knarr_fs::read_to_string(Path::new("/sys/devices/system/node/online"))
            .map(|text| text.trim().to_owned())
            .unwrap_or_default();
        self
    }
}
