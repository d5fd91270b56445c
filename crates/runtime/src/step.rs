//! What the child was doing when it failed, in sixteen bytes, and the error that the parent makes
//! of it.

use knarr_sys::Failure;
use rustix::io::Errno;

use crate::plan::{MountKind, Plan, ProcessPlan};
use crate::{Error, MountPlan};

macro_rules! steps {
    ($( $(#[$meta:meta])* $name:ident = $code:literal ),* $(,)?) => {
        /// A step of the child; what its index counts is said at each.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub(crate) enum Step { $( $(#[$meta])* $name ),* }

        impl Step {
            /// In declaration order.
            const ALL: &[Self] = &[ $( Self::$name ),* ];

            /// The name that [`knarr_diag::Explain::code`] gives it.
            fn code(self) -> &'static str {
                match self { $( Self::$name => $code ),* }
            }
        }
    };
}

steps! {
    Session = "session-failed",
    Wait = "runtime-gone",
    BecomeRoot = "user-namespace-failed",
    TimeNamespace = "time-namespace-failed",
    CgroupNamespace = "cgroup-namespace-failed",
    Propagation = "propagation-failed",
    AttachRoot = "root-mount-failed",
    Hostname = "hostname-failed",
    Domainname = "domainname-failed",
    Loopback = "loopback-failed",
    /// The mount's index.
    MountTarget = "mount-target-failed",
    /// The mount's index.
    Mount = "mount-failed",
    /// The mount's index.
    MountPropagation = "mount-propagation-failed",
    DevLinks = "device-failed",
    /// The device's index.
    Device = "device-failed",
    ProcHandle = "proc-failed",
    /// The parameter's index.
    Sysctl = "sysctl-failed",
    Console = "terminal-failed",
    Cwd = "cwd-failed",
    /// The path's index.
    Mask = "mask-failed",
    /// The path's index.
    ReadonlyPath = "readonly-path-failed",
    RootAttributes = "root-mount-failed",
    /// The hook's index.
    CreateContainerHook = "hook-failed",
    Pivot = "pivot-failed",
    Gate = "gate-failed",
    /// The hook's index.
    StartContainerHook = "hook-failed",
    Join = "join-failed",
    Fork = "fork-failed",
    Stdio = "stdio-failed",
    Keyring = "keyring-failed",
    Personality = "personality-failed",
    Scheduler = "scheduler-failed",
    IoPriority = "io-priority-failed",
    Affinity = "cpu-affinity-failed",
    MemoryPolicy = "memory-policy-failed",
    Apparmor = "apparmor-failed",
    Selinux = "selinux-failed",
    /// The limit's index.
    Rlimit = "rlimit-failed",
    Seccomp = "seccomp-failed",
    NoNewPrivileges = "no-new-privileges-failed",
    Bounding = "capabilities-failed",
    Groups = "user-failed",
    User = "user-failed",
    Capabilities = "capabilities-failed",
    EnterCwd = "cwd-failed",
    CloseFiles = "close-files-failed",
    /// The candidate's index.
    Exec = "exec-failed",
}

/// The calls that may fail in the child; a failure travels as an index into this.
const CALLS: &[&str] = &[
    "?",
    "setsid",
    "recv",
    "send",
    "setresuid",
    "setresgid",
    "setgroups",
    "unshare",
    "mount",
    "mount_setattr",
    "move_mount",
    "open_tree",
    "openat2",
    "openat",
    "mkdirat",
    "mknodat",
    "symlinkat",
    "unlinkat",
    "fchownat",
    "fchown",
    "fchdir",
    "sethostname",
    "setdomainname",
    "socket",
    "ioctl(SIOCSIFFLAGS)",
    "ioctl(FIONBIO)",
    "ioctl(TIOCSPTLCK)",
    "ioctl(TIOCGPTPEER)",
    "ioctl(TIOCSWINSZ)",
    "ioctl(TIOCSCTTY)",
    "fstat",
    "fstatfs",
    "write",
    "fsopen",
    "fsconfig",
    "fsmount",
    "pivot_root",
    "umount2",
    "setns",
    "clone3",
    "dup2",
    "keyctl",
    "setrlimit",
    "seccomp",
    "prctl",
    "capset",
    "close_range",
    "sigprocmask",
    "execve",
    "stat",
    "accept",
    "lseek",
    "poll",
    "waitid",
    "pidfd_send_signal",
    "hook",
    "chroot",
    "fcntl",
    "personality",
    "sched_setattr",
    "sched_setaffinity",
    "ioprio_set",
    "set_mempolicy",
];

/// A step that failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Fault {
    pub(crate) step: Step,
    pub(crate) index: u32,
    pub(crate) failure: Failure,
}

impl Fault {
    /// For `map_err`, at a step without an index.
    pub(crate) fn at(step: Step) -> impl Fn(Failure) -> Self {
        move |failure| Self {
            step,
            index: 0,
            failure,
        }
    }

    /// For `map_err`, at the `index`th object of a step.
    pub(crate) fn nth(step: Step, index: usize) -> impl Fn(Failure) -> Self {
        move |failure| Self {
            step,
            index: u32::try_from(index).unwrap_or(u32::MAX),
            failure,
        }
    }
}

/// What the child says to the parent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Message {
    /// Everything up to the gate is done. Carries the pty master where there is a terminal.
    Ready,
    /// A step failed; the child ends once the parent has closed the socket.
    Fault(Fault),
    /// The process that exec was asked for, in the caller's pid namespace.
    Forked(i32),
    /// The mounts are made, the root is not yet changed: the moment of hooks.
    Mounted,
    /// Carries the descriptor that the seccomp listener gets.
    Listener,
}

/// The size of every message.
pub(crate) const MESSAGE: usize = 16;

impl Message {
    pub(crate) fn encode(self) -> [u8; MESSAGE] {
        let mut bytes = [0; MESSAGE];
        match self {
            Self::Ready => bytes[0] = 1,
            Self::Fault(Fault {
                step,
                index,
                failure,
            }) => {
                let call = CALLS
                    .iter()
                    .position(|call| *call == failure.call)
                    .unwrap_or(0);
                bytes[0] = 2;
                // Both tables are far shorter than 255.
                bytes[1] = Step::ALL
                    .iter()
                    .position(|one| *one == step)
                    .and_then(|at| u8::try_from(at).ok())
                    .unwrap_or(0);
                bytes[2] = u8::try_from(call).unwrap_or(0);
                bytes[4..8].copy_from_slice(&index.to_ne_bytes());
                bytes[8..12].copy_from_slice(&failure.errno.raw_os_error().to_ne_bytes());
            }
            Self::Forked(pid) => {
                bytes[0] = 3;
                bytes[4..8].copy_from_slice(&pid.to_ne_bytes());
            }
            Self::Mounted => bytes[0] = 4,
            Self::Listener => bytes[0] = 5,
        }
        bytes
    }

    pub(crate) fn decode(bytes: &[u8; MESSAGE]) -> Option<Self> {
        let number = [bytes[4], bytes[5], bytes[6], bytes[7]];
        Some(match bytes[0] {
            1 => Self::Ready,
            2 => Self::Fault(Fault {
                step: *Step::ALL.get(usize::from(bytes[1]))?,
                index: u32::from_ne_bytes(number),
                failure: Failure {
                    call: CALLS.get(usize::from(bytes[2]))?,
                    errno: Errno::from_raw_os_error(i32::from_ne_bytes([
                        bytes[8], bytes[9], bytes[10], bytes[11],
                    ])),
                },
            }),
            3 => Self::Forked(i32::from_ne_bytes(number)),
            4 => Self::Mounted,
            5 => Self::Listener,
            _ => return None,
        })
    }
}

/// The error for a fault, with its object named from the plan. Not for [`Step::Exec`], which has a
/// diagnosis of its own.
pub(crate) fn error(plan: Option<&Plan>, process: &ProcessPlan, fault: Fault) -> Error {
    let (mut cause, index) = (
        fault.failure,
        usize::try_from(fault.index).unwrap_or(usize::MAX),
    );
    let path = |list: fn(&Plan) -> &Vec<String>| {
        plan.and_then(|plan| list(plan).get(index))
            .map_or("?", String::as_str)
    };
    let mount = plan.and_then(|plan| plan.mounts.get(index));
    let mut hint = None;
    let what = match fault.step {
        Step::Session => "cannot begin a session".to_owned(),
        Step::Wait => "the runtime ended while the container was made".to_owned(),
        Step::BecomeRoot => "cannot become root of the new user namespace".to_owned(),
        Step::TimeNamespace => "cannot make a time namespace".to_owned(),
        Step::CreateContainerHook | Step::StartContainerHook => {
            let (moment, hooks) = if fault.step == Step::CreateContainerHook {
                (
                    "createContainer",
                    plan.map(|plan| &plan.hooks.create_container),
                )
            } else {
                (
                    "startContainer",
                    plan.map(|plan| &plan.hooks.start_container),
                )
            };
            return Error::Hook {
                moment,
                index,
                path: hooks
                    .and_then(|hooks| hooks.get(index))
                    .map_or_else(|| "?".to_owned(), |hook| hook.path.clone()),
                reason: crate::hook::reason(cause.errno),
            };
        }
        Step::Gate => "cannot wait for the container's start".to_owned(),
        Step::Personality => "cannot set the personality".to_owned(),
        Step::Scheduler => "cannot set the scheduling policy".to_owned(),
        Step::IoPriority => "cannot set the I/O priority".to_owned(),
        Step::Affinity => "cannot set the CPU affinity".to_owned(),
        Step::MemoryPolicy => "cannot set the memory policy".to_owned(),
        Step::Apparmor => {
            let name = process.apparmor.as_deref().unwrap_or_default();
            if cause.errno == Errno::NOENT {
                hint = Some(format!("no AppArmor profile `{name}` is loaded"));
            }
            format!("unable to apply apparmor profile: {name}")
        }
        Step::Selinux => format!(
            "cannot set the SELinux label `{}`",
            process.selinux.as_deref().unwrap_or_default()
        ),
        Step::CgroupNamespace => "cannot make a cgroup namespace".to_owned(),
        Step::Propagation => "cannot cut the container's mounts off the host's".to_owned(),
        Step::AttachRoot => "cannot mount the container's root".to_owned(),
        Step::Hostname => format!(
            "cannot set the hostname to `{}`",
            plan.and_then(|plan| plan.hostname.as_deref())
                .unwrap_or_default()
        ),
        Step::Domainname => format!(
            "cannot set the domain name to `{}`",
            plan.and_then(|plan| plan.domainname.as_deref())
                .unwrap_or_default()
        ),
        Step::Loopback => "cannot bring up lo".to_owned(),
        Step::MountTarget => {
            let destination = mount.map_or("?", |mount| mount.destination.as_str());
            hint = match cause.errno {
                Errno::NOTDIR => Some(format!(
                    "a directory can be mounted on a directory only, a file on a file only; \
                     something else is at {destination} in the image"
                )),
                Errno::LOOP | Errno::EXIST => Some(format!(
                    "{destination} in the image leads over a symbolic link that cannot be followed"
                )),
                Errno::ROFS => Some(format!(
                    "{destination} does not exist and what it is in is read-only"
                )),
                _ => None,
            };
            format!("cannot make the place {destination} to mount on")
        }
        Step::Mount | Step::MountPropagation => {
            hint = mount.and_then(|mount| mount_hint(mount, cause.errno));
            mount.map_or_else(|| "cannot mount".to_owned(), mount_text)
        }
        Step::DevLinks => "cannot make the links in /dev".to_owned(),
        Step::Device => {
            let device = plan.and_then(|plan| plan.devices.get(index));
            format!(
                "cannot make the device {}",
                device.map_or("?", |device| device.path.as_str())
            )
        }
        Step::ProcHandle => "cannot open a /proc of the container's own".to_owned(),
        Step::Sysctl => {
            let sysctl = plan.and_then(|plan| plan.sysctls.get(index));
            hint = match cause.errno {
                Errno::NOENT => Some("this kernel has no such parameter".to_owned()),
                Errno::INVAL => Some("the kernel does not take this value".to_owned()),
                _ => None,
            };
            sysctl.map_or_else(
                || "cannot set a kernel parameter".to_owned(),
                |sysctl| format!("cannot set {} to `{}`", sysctl.name, sysctl.value),
            )
        }
        Step::Console => {
            if cause.errno == Errno::NOENT {
                hint = Some("a terminal needs a mount of type devpts on /dev/pts".to_owned());
            }
            "cannot open a terminal in the container".to_owned()
        }
        Step::Cwd | Step::EnterCwd => {
            hint = match cause.errno {
                Errno::NOTDIR => Some("it is not a directory in the image".to_owned()),
                Errno::LOOP => {
                    Some("it leads through a link of /proc, out of the container".to_owned())
                }
                Errno::NOENT if plan.is_none() => {
                    Some("it does not exist in the container".to_owned())
                }
                Errno::ACCESS => Some("the user may not enter it".to_owned()),
                _ => None,
            };
            format!("cannot use {} as the working directory", process.cwd)
        }
        Step::Mask => format!("cannot mask {}", path(|plan| &plan.masked)),
        Step::ReadonlyPath => format!("cannot make {} read-only", path(|plan| &plan.readonly)),
        Step::RootAttributes => "cannot set the attributes of the container's root".to_owned(),
        Step::Pivot => "cannot change to the container's root".to_owned(),
        Step::Join => "cannot enter the container's namespaces".to_owned(),
        Step::Fork => "cannot make the process".to_owned(),
        Step::Stdio => "cannot set up standard input and output".to_owned(),
        Step::Keyring => "cannot make a session keyring".to_owned(),
        Step::Rlimit => {
            let limit = process.rlimits.get(index);
            limit.map_or_else(
                || "cannot set a resource limit".to_owned(),
                |limit| {
                    format!(
                        "cannot set {} to {}:{}",
                        limit.resource, limit.soft, limit.hard
                    )
                },
            )
        }
        Step::Seccomp => {
            if cause.errno == Errno::ACCESS {
                hint = Some(
                    "without CAP_SYS_ADMIN it needs `--security-opt no-new-privileges`".to_owned(),
                );
            }
            "cannot install the system call filter".to_owned()
        }
        Step::NoNewPrivileges => "cannot set no_new_privs".to_owned(),
        Step::Bounding | Step::Capabilities => "cannot set the capabilities".to_owned(),
        Step::Groups => "cannot set the groups".to_owned(),
        Step::User => "cannot change to the user".to_owned(),
        Step::CloseFiles => "cannot close inherited files".to_owned(),
        Step::Exec => format!(
            "cannot execute {}",
            process.args.first().map_or("?", String::as_str)
        ),
    };
    if matches!(fault.step, Step::Groups | Step::User) && cause.errno == Errno::INVAL {
        hint = Some("the id is not mapped in the container's user namespace".to_owned());
    }
    if cause.call == "?" {
        cause.call = "system call";
    }
    Error::Step {
        what,
        code: fault.step.code(),
        hint,
        cause,
    }
}

/// `cannot mount /srv/data on /data`.
pub(crate) fn mount_text(mount: &MountPlan) -> String {
    match &mount.kind {
        MountKind::Bind { source, .. } => {
            format!("cannot mount {source} on {}", mount.destination)
        }
        MountKind::New { file_system, .. } => {
            format!("cannot mount a {file_system} on {}", mount.destination)
        }
        MountKind::Remount { .. } => format!("cannot remount {}", mount.destination),
        MountKind::Cgroup { .. } => format!("cannot mount cgroups on {}", mount.destination),
    }
}

fn mount_hint(mount: &MountPlan, errno: Errno) -> Option<String> {
    match (&mount.kind, errno) {
        (MountKind::New { file_system, .. }, Errno::NODEV) => {
            Some(format!("this kernel has no file system `{file_system}`"))
        }
        (MountKind::New { data, .. }, Errno::INVAL) if !data.is_empty() => Some(format!(
            "one of the options `{data}` is not the file system's"
        )),
        (MountKind::Remount { .. }, Errno::INVAL) => Some(
            "it must be where something is mounted, and the options that file system's".to_owned(),
        ),
        (MountKind::New { file_system, .. }, Errno::PERM) if file_system == "proc" => {
            Some("parts of the caller's own /proc are masked; the kernel forbids a new one".into())
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_survives_the_wire() {
        for (index, &step) in Step::ALL.iter().enumerate() {
            let fault = Fault::nth(step, index)(Failure {
                call: "openat2",
                errno: Errno::LOOP,
            });
            let message = Message::Fault(fault);
            assert_eq!(Message::decode(&message.encode()), Some(message));
        }
        for message in [
            Message::Ready,
            Message::Forked(77),
            Message::Mounted,
            Message::Listener,
        ] {
            assert_eq!(Message::decode(&message.encode()), Some(message));
        }
        assert_eq!(Message::decode(&[9; MESSAGE]), None);
    }
}
