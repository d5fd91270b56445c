//! What one Knarr has on this machine beside its objects: processes, cgroups, mounts, half-made
//! files. Told from outside, by the kernel's word, and of these roots only, so that others may run
//! containers meanwhile.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use crate::Knarr;

/// A process that belongs to a Knarr.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Process {
    /// Its number.
    pub pid: i32,
    /// The letter of proc(5): `T` is stopped.
    pub state: char,
    /// Its arguments, joined by blanks.
    pub command: String,
    /// Whether it is in a pid namespace of its own, or of its container.
    pub inside: bool,
}

impl Process {
    /// A monitor; not what it has just forked.
    pub fn is_monitor(&self) -> bool {
        self.command.contains("knarr-monitor") && !self.inside
    }
}

impl Knarr {
    /// Every id that was ever a container's here.
    pub fn ids(&self) -> BTreeSet<String> {
        let mut ids = BTreeSet::new();
        let mut hex = |text: &str| {
            let words = text.split(|c: char| !c.is_ascii_hexdigit());
            ids.extend(words.filter(|word| word.len() == 64).map(str::to_owned));
        };
        hex(&std::fs::read_to_string(self.run_root().join("events")).unwrap_or_default());
        for root in [self.root(), self.run_root()] {
            for folder in ["containers", "ending"] {
                names(&root.join(folder)).for_each(|name| hex(&name));
            }
        }
        ids
    }

    /// The processes of these roots that live: commands, monitors, and what runs in containers.
    pub fn processes(&self) -> Vec<Process> {
        self.processes_if(|_| true)
    }

    /// The processes of these roots that are stopped (at a point, say).
    pub fn stopped(&self) -> Vec<Process> {
        self.processes_if(|state| state == 'T')
    }

    /// Whether nobody is at anything: every monitor waits for events, or is gone.
    pub fn is_quiet(&self) -> bool {
        self.processes().iter().all(|process| {
            let call = std::fs::read_to_string(format!("/proc/{}/syscall", process.pid));
            let call = call.unwrap_or_default();
            // epoll_wait, epoll_pwait and epoll_pwait2 of x86-64, epoll_pwait of arm64.
            let waits = ["232 ", "281 ", "441 ", "22 "]
                .iter()
                .any(|nr| call.starts_with(nr));
            !process.is_monitor() || (process.state == 'S' && waits)
        })
    }

    fn processes_if(&self, wanted: impl Fn(char) -> bool) -> Vec<Process> {
        let root = self.root().parent().map(PathBuf::from).unwrap_or_default();
        let root = root.display().to_string();
        let mut ids = None;
        let mut found = Vec::new();
        for name in names(Path::new("/proc")) {
            let Ok(pid) = name.parse::<i32>() else {
                continue;
            };
            let read = |file: &str| {
                let bytes = std::fs::read(format!("/proc/{pid}/{file}")).unwrap_or_default();
                String::from_utf8_lossy(&bytes).into_owned()
            };
            let stat = read("stat");
            let state = stat
                .rsplit_once(") ")
                .and_then(|(_, rest)| rest.chars().next());
            // A zombie waits for a parent that may not reap; it owns nothing.
            let Some(state) = state.filter(|state| !matches!(state, 'Z' | 'X') && wanted(*state))
            else {
                continue;
            };
            let command = read("cmdline").replace('\0', " ");
            let cgroup = read("cgroup");
            let ours = command.contains(&root) || {
                let ids = ids.get_or_insert_with(|| self.ids());
                ids.iter()
                    .any(|id| command.contains(id) || cgroup.contains(id))
            };
            if ours {
                let inside = read("status")
                    .lines()
                    .find_map(|line| line.strip_prefix("NSpid:"))
                    .is_some_and(|pids| pids.split_whitespace().count() > 1);
                found.push(Process {
                    pid,
                    state,
                    command,
                    inside,
                });
            }
        }
        found
    }

    /// What is left when every container is removed and nothing is under way: processes, cgroups,
    /// mounts in the host's table, folders, names, leases, records of holders, temporaries. Empty
    /// when all is well. Commands that hold `except` in their arguments do not count.
    pub fn leftovers(&self, except: &str) -> BTreeSet<String> {
        let mut found = self.litter();
        for process in self.processes() {
            if !process.command.contains(except) {
                found.insert(format!("process {process:?}"));
            }
        }
        let ids = self.ids();
        cgroups_below(Path::new("/sys/fs/cgroup"), 0, &mut |path| {
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            if ids.iter().any(|id| name.contains(id.as_str())) {
                found.insert(format!("cgroup {}", path.display()));
            }
        });
        found.extend(network_residue());
        let root = self.root().parent().map(PathBuf::from).unwrap_or_default();
        let root = root.display().to_string();
        let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
        found.extend(
            mounts
                .lines()
                .filter(|line| line.contains(&root))
                .map(|line| format!("mount {line}")),
        );
        found
    }
}

/// Links of containers, and ports that are open in the firewall, in the thread's own network.
fn network_residue() -> Vec<String> {
    let links = std::fs::read_to_string("/proc/thread-self/net/dev").unwrap_or_default();
    let links = links
        .lines()
        .filter_map(|line| line.split_once(':'))
        .filter(|(name, _)| name.trim().starts_with("kv"))
        .map(|(name, _)| format!("link {}", name.trim()));
    let mut found: Vec<String> = links.collect();
    let rules = crate::net::output(&["nft", "list", "ruleset"]).unwrap_or_default();
    for map in rules.split("\tmap ").skip(1) {
        let map = map.split("\n\t}").next().unwrap_or_default();
        if map.contains("elements") {
            found.push(format!("open ports: {map}"));
        }
    }
    found
}

fn names(dir: &Path) -> impl Iterator<Item = String> {
    let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
    entries.map(|entry| entry.file_name().to_string_lossy().into_owned())
}

fn cgroups_below(dir: &Path, depth: usize, each: &mut impl FnMut(&Path)) {
    for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            each(&entry.path());
            if depth < 5 {
                cgroups_below(&entry.path(), depth + 1, each);
            }
        }
    }
}
