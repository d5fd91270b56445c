//! The program, prepared: its words, its user, its rights and limits.

use std::ffi::CString;
use std::os::fd::OwnedFd;

use knarr_fs::Root;
use knarr_seccomp::Program;
use knarr_sys::process::CStringArray;
use knarr_sys::schedule::Scheduling;
use rustix::fs::Mode;
use rustix::process::{Gid, Resource, Rlimit, Uid};
use rustix::thread::{CapabilitySet, CapabilitySets, CpuSet};

use super::{Place, c_string, host_proc, need_selinux};
use crate::plan::{ProcessPlan, UserPlan};
use crate::{Capability, ConsoleSize, Error, Result, user};

/// `PATH` where the environment has none (as the kernel's and Docker's default).
const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// The program, ready to be executed.
#[derive(Debug)]
pub(crate) struct Prepared {
    pub(crate) candidates: Vec<CString>,
    pub(crate) args: CStringArray,
    pub(crate) env: CStringArray,
    pub(crate) cwd: Place,
    pub(crate) uid: Uid,
    pub(crate) gid: Gid,
    pub(crate) groups: Vec<Gid>,
    pub(crate) umask: Mode,
    pub(crate) terminal: Option<ConsoleSize>,
    pub(crate) capabilities: Option<Capabilities>,
    pub(crate) rlimits: Vec<(Resource, Rlimit)>,
    pub(crate) no_new_privileges: bool,
    pub(crate) seccomp: Option<Program>,
    pub(crate) new_keyring: bool,
    pub(crate) init: bool,
    pub(crate) personality: Option<u32>,
    pub(crate) scheduling: Option<Scheduling>,
    pub(crate) io_priority: Option<u16>,
    pub(crate) memory_policy: Option<(u32, [u64; 16])>,
    pub(crate) initial_cpus: Option<CpuSet>,
    pub(crate) last_cpus: Option<CpuSet>,
    pub(crate) labels: Option<Labels>,
    /// Those that the caller ignores, and its children with it; bit 0 is signal 1.
    pub(crate) ignored_signals: u64,
}

/// What the security modules are told, through a procfs of the host that no container can cover.
#[derive(Debug)]
pub(crate) struct Labels {
    pub(crate) proc: OwnedFd,
    /// `exec PROFILE`.
    pub(crate) apparmor: Option<Vec<u8>>,
    pub(crate) selinux: Option<Vec<u8>>,
}

#[derive(Debug)]
pub(crate) struct Capabilities {
    /// Those to drop from the bounding set.
    pub(crate) dropped: Vec<CapabilitySet>,
    pub(crate) sets: CapabilitySets,
    pub(crate) ambient: Vec<CapabilitySet>,
}

/// Prepares the program. `root` is the container's root, for its passwd.
pub(crate) fn process(process: &ProcessPlan, root: &Root) -> Result<Prepared> {
    let (uid, gid, groups, home) = match &process.user {
        UserPlan::Ids {
            uid,
            gid,
            additional_gids,
        } => {
            let has_home = process.env.iter().any(|entry| entry.starts_with("HOME="));
            let home = if has_home {
                None
            } else {
                user::home_of(root, *uid)?
            };
            (*uid, *gid, additional_gids.clone(), home)
        }
        UserPlan::Lookup { spec, group_add } => {
            let found = user::resolve(root, spec, group_add)?;
            (
                found.uid,
                found.gid,
                found.additional_gids,
                Some(found.home),
            )
        }
    };
    let mut env = process.env.clone();
    if !env.iter().any(|entry| entry.starts_with("HOME=")) {
        env.push(format!("HOME={}", home.as_deref().unwrap_or("/")));
    }
    let strings = |field: &str, list: &[String]| {
        list.iter()
            .map(|text| c_string(field, text))
            .collect::<Result<Vec<_>>>()
    };
    let first = process.args.first().map_or("", String::as_str);
    Ok(Prepared {
        candidates: strings("process.args", &candidates(first, &env))?,
        args: CStringArray::new(strings("process.args", &process.args)?),
        env: CStringArray::new(strings("process.env", &env)?),
        cwd: Place::new("process.cwd", &process.cwd)?,
        uid: Uid::from_raw(uid),
        gid: Gid::from_raw(gid),
        groups: groups.into_iter().map(Gid::from_raw).collect(),
        umask: Mode::from_raw_mode(process.umask.unwrap_or(0o022)),
        terminal: process.terminal,
        capabilities: process.capabilities.as_ref().map(|sets| {
            let looked_up = matches!(process.user, UserPlan::Lookup { .. });
            capabilities(sets, looked_up && uid != 0)
        }),
        rlimits: process
            .rlimits
            .iter()
            .map(|limit| {
                let number = |number: u64| (number != u64::MAX).then_some(number);
                let resource = resource(&limit.resource).ok_or_else(|| Error::Config {
                    field: "process.rlimits".to_owned(),
                    reason: format!("`{}` is not a resource limit", limit.resource),
                })?;
                let limit = Rlimit {
                    current: number(limit.soft),
                    maximum: number(limit.hard),
                };
                Ok((resource, limit))
            })
            .collect::<Result<_>>()?,
        no_new_privileges: process.no_new_privileges,
        seccomp: process.seccomp.clone(),
        new_keyring: process.new_keyring,
        init: process.init,
        personality: process.personality,
        scheduling: process.scheduler.as_ref().map(|asked| {
            let mut scheduling = Scheduling::default();
            scheduling.policy = asked.policy;
            scheduling.flags = asked.flags;
            scheduling.nice = asked.nice;
            scheduling.priority = asked.priority;
            scheduling.runtime = asked.runtime;
            scheduling.deadline = asked.deadline;
            scheduling.period = asked.period;
            scheduling
        }),
        io_priority: process.io_priority,
        memory_policy: process.memory_policy.as_ref().map(|policy| {
            let mut nodes = [0u64; 16];
            for node in &policy.nodes {
                // The plan holds numbers below 1024.
                if let Some(word) = usize::try_from(node / 64)
                    .ok()
                    .and_then(|word| nodes.get_mut(word))
                {
                    *word |= 1 << (node % 64);
                }
            }
            (policy.mode, nodes)
        }),
        initial_cpus: cpus(&process.affinity.initial),
        last_cpus: cpus(&process.affinity.last),
        labels: labels(process)?,
        ignored_signals: crate::process::ignored_signals(),
    })
}

fn cpus(numbers: &[u32]) -> Option<CpuSet> {
    if numbers.is_empty() {
        return None;
    }
    let mut set = CpuSet::new();
    for number in numbers {
        // 1023 is the last that sched_setaffinity(2) takes in this form.
        if let Some(number) = usize::try_from(*number)
            .ok()
            .filter(|number| *number < CpuSet::MAX_CPU)
        {
            set.set(number);
        }
    }
    Some(set)
}

/// The labels of a process, refused where the kernel has not the module.
fn labels(process: &ProcessPlan) -> Result<Option<Labels>> {
    if process.selinux.is_some() {
        need_selinux("process.selinuxLabel")?;
    }
    let mut apparmor = None;
    if let Some(profile) = &process.apparmor {
        let enabled = std::fs::read("/sys/module/apparmor/parameters/enabled")
            .is_ok_and(|text| text.first() == Some(&b'Y'));
        if enabled {
            apparmor = Some(format!("exec {profile}").into_bytes());
        } else if profile != "unconfined" {
            return Err(Error::Config {
                field: "process.apparmorProfile".to_owned(),
                reason: format!(
                    "`{profile}`: apparmor: config provided but apparmor not supported"
                ),
            });
        }
    }
    if apparmor.is_none() && process.selinux.is_none() {
        return Ok(None);
    }
    Ok(Some(Labels {
        proc: host_proc()?,
        apparmor,
        selinux: process.selinux.clone().map(String::into_bytes),
    }))
}

/// What execvp(3) would try.
pub(crate) fn candidates(program: &str, env: &[String]) -> Vec<String> {
    if program.contains('/') || program.is_empty() {
        return vec![program.to_owned()];
    }
    let path = env
        .iter()
        .rev()
        .find_map(|entry| entry.strip_prefix("PATH="))
        .unwrap_or(DEFAULT_PATH);
    path.split(':')
        .map(|dir| {
            if dir.is_empty() {
                format!("./{program}")
            } else {
                format!("{dir}/{program}")
            }
        })
        .collect()
}

/// `unprivileged`: a user that is not root has none but the ambient ones, as if it had come by
/// execve; whoever planned could not know who it would be.
fn capabilities(sets: &crate::CapabilitySets, unprivileged: bool) -> Capabilities {
    let set = |list: &[Capability]| {
        CapabilitySet::from_bits_retain(list.iter().fold(0, |bits, one| bits | one.bit()))
    };
    let single = |capability: Capability| CapabilitySet::from_bits_retain(capability.bit());
    Capabilities {
        dropped: Capability::all()
            .filter(|capability| !sets.bounding.contains(capability))
            .map(single)
            .collect(),
        sets: CapabilitySets {
            effective: set(if unprivileged {
                &sets.ambient
            } else {
                &sets.effective
            }),
            permitted: set(if unprivileged {
                &sets.ambient
            } else {
                &sets.permitted
            }),
            inheritable: set(&sets.inheritable),
        },
        ambient: sets.ambient.iter().copied().map(single).collect(),
    }
}

fn resource(name: &str) -> Option<Resource> {
    Some(match name {
        "RLIMIT_AS" => Resource::As,
        "RLIMIT_CORE" => Resource::Core,
        "RLIMIT_CPU" => Resource::Cpu,
        "RLIMIT_DATA" => Resource::Data,
        "RLIMIT_FSIZE" => Resource::Fsize,
        "RLIMIT_LOCKS" => Resource::Locks,
        "RLIMIT_MEMLOCK" => Resource::Memlock,
        "RLIMIT_MSGQUEUE" => Resource::Msgqueue,
        "RLIMIT_NICE" => Resource::Nice,
        "RLIMIT_NOFILE" => Resource::Nofile,
        "RLIMIT_NPROC" => Resource::Nproc,
        "RLIMIT_RSS" => Resource::Rss,
        "RLIMIT_RTPRIO" => Resource::Rtprio,
        "RLIMIT_RTTIME" => Resource::Rttime,
        "RLIMIT_SIGPENDING" => Resource::Sigpending,
        "RLIMIT_STACK" => Resource::Stack,
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_is_looked_for_where_its_own_path_says() {
        let env = |path: &str| vec!["PATH=/ignored".to_owned(), format!("PATH={path}")];
        assert_eq!(candidates("/bin/x", &env("/a")), ["/bin/x"]);
        assert_eq!(candidates("./x", &env("/a")), ["./x"]);
        assert_eq!(candidates("x", &env("/a:/b")), ["/a/x", "/b/x"]);
        assert_eq!(candidates("x", &env("/a:")), ["/a/x", "./x"]);
        assert_eq!(candidates("x", &[]).len(), 6);
        assert_eq!(candidates("", &[]), [""]);
    }
}
