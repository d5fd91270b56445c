//! What will be done, as a value: made by pure code, printed by `knarr run --plan`, applied by
//! `begin`.

mod config;
mod mount;
mod text;
mod tuning;

use serde::{Deserialize, Serialize};

pub use config::{hook_plan, plan, process_plan};

use crate::Capability;

/// The version of [`Plan`]'s and [`crate::ExecPlan`]'s serde form.
pub(crate) const VERSION: u32 = 1;

/// Everything the runtime will do to make one container, in the order it does it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Plan {
    /// 1; a reader refuses what it does not know.
    pub version: u32,
    /// Namespaces that `clone3` creates.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub create: Vec<Namespace>,
    /// Namespaces of others that are joined before the clone, in this order.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub join: Vec<JoinNamespace>,
    /// The id maps of the new user namespace.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user_namespace: Option<UserNamespace>,
    /// Clocks of a new time namespace.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub time_offsets: Vec<TimeOffset>,
    /// For `sethostname`, in a UTS namespace of its own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hostname: Option<String>,
    /// For `setdomainname`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub domainname: Option<String>,
    /// Whether `lo` is brought up: in a new network namespace.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub loopback: bool,
    /// The root's own mount.
    pub root: RootPlan,
    /// The mounts, in order.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub mounts: Vec<MountPlan>,
    /// Whether the symlinks of `/dev` (`fd`, `stdin`, `ptmx`, …) are made.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub dev_links: bool,
    /// The device nodes.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub devices: Vec<DevicePlan>,
    /// Whether the caller's nodes are bound instead of making some: nobody may make any in a user
    /// namespace, and the caller is in one. With one of the container's own they are bound anyway.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub bind_devices: bool,
    /// Paths covered by an empty read-only directory or `/dev/null`; absent ones are passed over.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub masked: Vec<String>,
    /// Paths made read-only with all below; absent ones are passed over.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub readonly: Vec<String>,
    /// Kernel parameters of the container's namespaces.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub sysctls: Vec<Sysctl>,
    /// SELinux's label of the file systems that are mounted anew.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mount_label: Option<String>,
    /// Programs that run while the container is made and started.
    #[serde(default, skip_serializing_if = "HooksPlan::is_empty")]
    pub hooks: HooksPlan,
    /// The program.
    pub process: ProcessPlan,
}

/// A kind of namespace (namespaces(7)); the names are the specification's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[expect(missing_docs, reason = "the names are the specification's")]
pub enum Namespace {
    User,
    Ipc,
    Uts,
    Network,
    Pid,
    Mount,
    Cgroup,
    Time,
}

/// A namespace of another process.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct JoinNamespace {
    /// Its kind.
    pub kind: Namespace,
    /// Where it is: `/proc/PID/ns/net` or a bind mount of that.
    pub path: String,
}

/// By how much a clock of the container differs from the host's (time_namespaces(7)).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[expect(missing_docs, reason = "the names are the specification's")]
pub struct TimeOffset {
    /// `monotonic` or `boottime`.
    pub clock: String,
    pub secs: i64,
    pub nanosecs: u32,
}

/// Hooks by their moment (config.md, "POSIX-platform Hooks"). Those after the start are the
/// caller's: [`crate::hook::run`].
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct HooksPlan {
    /// On the host, with the mounts made and the root not yet changed: `prestart`, then
    /// `createRuntime`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub create_runtime: Vec<HookPlan>,
    /// The host's programs in the container's namespaces, after those.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub create_container: Vec<HookPlan>,
    /// The container's programs, before its own.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub start_container: Vec<HookPlan>,
}

impl HooksPlan {
    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// Whether the child stops before it changes its root.
    pub(crate) fn before_pivot(&self) -> bool {
        !self.create_runtime.is_empty() || !self.create_container.is_empty()
    }
}

/// One hook.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HookPlan {
    /// Absolute.
    pub path: String,
    /// With the program's name; the path where there is none.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub args: Vec<String>,
    /// All of its environment.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub env: Vec<String>,
    /// Seconds until it is killed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout: Option<u32>,
}

/// The maps of a new user namespace.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct UserNamespace {
    /// For `/proc/PID/uid_map`.
    pub uids: Vec<IdRange>,
    /// For `/proc/PID/gid_map`.
    pub gids: Vec<IdRange>,
}

/// `size` ids from `container` on are the ids from `host` on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[expect(missing_docs, reason = "said above")]
pub struct IdRange {
    pub container: u32,
    pub host: u32,
    pub size: u32,
}

/// Ranges as the specification has them.
fn ranges(maps: &[knarr_spec::runtime::IdMapping]) -> Vec<IdRange> {
    maps.iter()
        .map(|map| IdRange {
            container: map.container_id,
            host: map.host_id,
            size: map.size,
        })
        .collect()
}

/// The root's mount.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RootPlan {
    /// Made read-only once everything is in place.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub readonly: bool,
    /// How mounts of the container's namespace propagate.
    pub propagation: Propagation,
    /// The same for all mounts below the root.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub recursive: bool,
}

/// Propagation of a mount (mount_namespaces(7)).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[expect(missing_docs, reason = "the names are the kernel's")]
pub enum Propagation {
    #[default]
    Private,
    Slave,
    Shared,
    Unbindable,
}

/// One mount.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MountPlan {
    /// Where, in the container; made where it is missing.
    pub destination: String,
    /// What.
    #[serde(flatten)]
    pub kind: MountKind,
    /// Attributes set and cleared.
    #[serde(default, skip_serializing_if = "MountChange::is_empty")]
    pub change: MountChange,
    /// Attributes set and cleared with all mounts below (`rro` and the like).
    #[serde(default, skip_serializing_if = "MountChange::is_empty")]
    pub change_recursive: MountChange,
    /// Its propagation, where one is asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub propagation: Option<Propagation>,
    /// The same for all mounts below.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub propagation_recursive: Option<Propagation>,
    /// Ids as a bind mount shows them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub idmap: Option<Idmap>,
}

/// Ids that a mount translates (mount_setattr(2), "ID-mapped mounts"): what the file system has as
/// `container` is seen as `host`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Idmap {
    /// The maps.
    #[serde(flatten)]
    pub maps: UserNamespace,
    /// Also for all mounts below.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub recursive: bool,
}

/// What is mounted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub enum MountKind {
    /// A file or directory of the host, opened before the clone (or handed in by the caller).
    Bind {
        /// Its path on the host.
        source: String,
        /// With the mounts below it.
        recursive: bool,
    },
    /// A new mount of a file system.
    New {
        /// `proc`, `tmpfs`, …
        file_system: String,
        /// As `/proc/mounts` will show it.
        source: String,
        /// Options of the file system, with commas.
        #[serde(default, skip_serializing_if = "String::is_empty")]
        data: String,
        /// The image's content of the destination is copied in first (`tmpcopyup`).
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        copy_up: bool,
        /// How the file system itself works.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        super_options: Vec<SuperOption>,
    },
    /// What is mounted there already gets these attributes and options instead of its own (mount(2),
    /// `MS_REMOUNT`).
    Remount {
        /// Only the mount's attributes, not the file system's options.
        bind: bool,
        /// Options of the file system, with commas.
        #[serde(default, skip_serializing_if = "String::is_empty")]
        data: String,
        /// How the file system itself works.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        super_options: Vec<SuperOption>,
    },
    /// The container's own view of its cgroups.
    Cgroup {
        /// Which hierarchies.
        view: CgroupView,
    },
}

/// The hierarchies that a cgroup mount shows.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum CgroupView {
    /// cgroup2 at the destination itself.
    #[default]
    Unified,
    /// A tmpfs with one directory per v1 hierarchy (and `unified` where it is listed). The child
    /// waits for [`crate::Begun::joined`] before it enters its cgroup namespace.
    Hierarchies(Vec<CgroupHierarchy>),
}

impl CgroupView {
    /// The cgroup mounts below `/sys/fs/cgroup` in a text of proc_pid_mountinfo(5).
    pub fn hierarchies(mountinfo: &str) -> Self {
        let mount = |line: &str| {
            let (mount, file_system) = line.split_once(" - ")?;
            let name = mount.split(' ').nth(4)?.strip_prefix("/sys/fs/cgroup/")?;
            let mut fields = file_system.split(' ');
            let controllers = match (fields.next()?, fields.nth(1)?) {
                ("cgroup2", _) => String::new(),
                ("cgroup", options) => {
                    let common =
                        |word: &&str| !matches!(*word, "rw" | "ro" | "xattr" | "clone_children");
                    let own = |word: &&str| common(word) && !word.starts_with("release_agent=");
                    options.split(',').filter(own).collect::<Vec<_>>().join(",")
                }
                _ => return None,
            };
            // A mount below another one is somebody's container.
            (!name.contains('/')).then(|| CgroupHierarchy {
                name: name.to_owned(),
                controllers,
            })
        };
        Self::Hierarchies(mountinfo.lines().filter_map(mount).collect())
    }
}

/// One hierarchy below `/sys/fs/cgroup`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CgroupHierarchy {
    /// The directory: `memory`, `cpu,cpuacct`, `systemd`, `unified`.
    pub name: String,
    /// Mount options: `memory`, `cpu,cpuacct`, `name=systemd`; empty for cgroup2.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub controllers: String,
}

/// Attributes of a mount to set and to clear.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[expect(missing_docs, reason = "said above")]
pub struct MountChange {
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub set: Vec<Attribute>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub clear: Vec<Attribute>,
}

impl MountChange {
    /// Whether it changes nothing.
    pub fn is_empty(&self) -> bool {
        self.set.is_empty() && self.clear.is_empty()
    }
}

/// One attribute of a mount (mount_setattr(2)).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[expect(missing_docs, reason = "the names are mount(8)'s")]
pub enum Attribute {
    Ro,
    Nosuid,
    Nodev,
    Noexec,
    Relatime,
    Noatime,
    Strictatime,
    Nodiratime,
    Nosymfollow,
}

/// An option of a file system that all have (mount(2)).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[expect(missing_docs, reason = "the names are mount(8)'s")]
pub enum SuperOption {
    Sync,
    Dirsync,
    Lazytime,
    Mand,
    Iversion,
    Silent,
}

/// A device node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DevicePlan {
    /// Where, in the container.
    pub path: String,
    /// Character, block or FIFO.
    pub kind: DeviceKind,
    /// The driver; 0 for a FIFO.
    pub major: u32,
    /// The device among the driver's; 0 for a FIFO.
    pub minor: u32,
    /// Permission bits.
    pub mode: u32,
    /// Owner in the container.
    pub uid: u32,
    /// Group in the container.
    pub gid: u32,
}

/// The kind of a device node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[expect(missing_docs, reason = "the names say it")]
pub enum DeviceKind {
    Character,
    Block,
    Fifo,
}

/// A kernel parameter.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sysctl {
    /// With dots: `net.ipv4.ip_forward`.
    pub name: String,
    /// What is written.
    pub value: String,
}

/// The program and what it may do. Part of [`Plan`] and of [`crate::ExecPlan`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ProcessPlan {
    /// The program and its arguments; at least one.
    pub args: Vec<String>,
    /// `NAME=value`. `HOME` is added from the container's passwd where it is not here.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub env: Vec<String>,
    /// Absolute, in the container; made where it is missing (not for exec).
    pub cwd: String,
    /// Who.
    pub user: UserPlan,
    /// File mode creation mask; 0022 where not said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub umask: Option<u32>,
    /// A terminal of the container's own devpts, of this size, instead of plain files.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub terminal: Option<ConsoleSize>,
    /// The five sets; `None` leaves all to root and nothing to others.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub capabilities: Option<CapabilitySets>,
    /// Resource limits.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub rlimits: Vec<Rlimit>,
    /// prctl(PR_SET_NO_NEW_PRIVS).
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub no_new_privileges: bool,
    /// -1000 (never) to 1000 (first).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub oom_score_adj: Option<i32>,
    /// The system call filter.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub seccomp: Option<knarr_seccomp::Program>,
    /// Who is asked about calls that the filter does not decide.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub listener: Option<ListenerPlan>,
    /// Execution domain (personality(2)).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub personality: Option<u32>,
    /// Scheduling policy.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scheduler: Option<SchedulerPlan>,
    /// As ioprio_set(2) takes it: class times 8192 plus level.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub io_priority: Option<u16>,
    /// CPUs before and after an exec has joined the container's cgroups.
    #[serde(default, skip_serializing_if = "AffinityPlan::is_empty")]
    pub affinity: AffinityPlan,
    /// NUMA memory policy.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory_policy: Option<MemoryPolicyPlan>,
    /// AppArmor's profile.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub apparmor: Option<String>,
    /// SELinux's label.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub selinux: Option<String>,
    /// A new session keyring, so that the container sees no keys of the caller.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub new_keyring: bool,
    /// A tiny init is pid 1 and the program its child (`--init`). Not for exec.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub init: bool,
}

/// The listener of a filter with `SCMP_ACT_NOTIFY`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ListenerPlan {
    /// Of its Unix socket on the host.
    pub path: String,
    /// Passed on as it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub metadata: Option<String>,
}

/// What sched_setattr(2) is told.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[expect(missing_docs, reason = "the names are sched_setattr(2)'s")]
pub struct SchedulerPlan {
    pub policy: u32,
    pub flags: u64,
    pub nice: i32,
    pub priority: u32,
    pub runtime: u64,
    pub deadline: u64,
    pub period: u64,
}

/// CPUs by number.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct AffinityPlan {
    /// Before it joins.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub initial: Vec<u32>,
    /// For the program.
    #[serde(rename = "final", skip_serializing_if = "Vec::is_empty")]
    pub last: Vec<u32>,
}

impl AffinityPlan {
    /// Whether nothing is asked for.
    pub fn is_empty(&self) -> bool {
        self.initial.is_empty() && self.last.is_empty()
    }
}

/// What set_mempolicy(2) is told.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemoryPolicyPlan {
    /// `MPOL_*` with its flags.
    pub mode: u32,
    /// By number, below 1024.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub nodes: Vec<u32>,
}

/// Who the program runs as.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum UserPlan {
    /// Numbers, as the OCI config has them.
    Ids {
        /// User.
        uid: u32,
        /// Primary group.
        gid: u32,
        /// Supplementary groups.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        additional_gids: Vec<u32>,
    },
    /// `user[:group]` as `docker run --user` and an image's `USER` have it, looked up in the
    /// container's own `/etc/passwd` and `/etc/group`. Empty is root.
    Lookup {
        /// Names or numbers.
        spec: String,
        /// `--group-add`, names or numbers.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        group_add: Vec<String>,
    },
}

/// Character cells of a terminal; 0 × 0 where nobody said.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[expect(missing_docs, reason = "said above")]
pub struct ConsoleSize {
    pub rows: u16,
    pub columns: u16,
}

/// Capabilities per set (capabilities(7)), sorted.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
#[expect(missing_docs, reason = "the names are the kernel's")]
pub struct CapabilitySets {
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub bounding: Vec<Capability>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub effective: Vec<Capability>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub permitted: Vec<Capability>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub inheritable: Vec<Capability>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub ambient: Vec<Capability>,
}

/// One limit; `u64::MAX` is unlimited.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[expect(missing_docs, reason = "the names are getrlimit(2)'s")]
pub struct Rlimit {
    /// `RLIMIT_NOFILE`, …
    pub resource: String,
    pub soft: u64,
    pub hard: u64,
}

/// What [`plan()`] is told beside the config.
#[derive(Debug, Clone, Default)]
pub struct PlanOptions {
    /// The compiled form of `linux.seccomp` (or of none).
    pub seccomp: Option<knarr_seccomp::Program>,
    /// Instead of the config's numeric user.
    pub user: Option<UserPlan>,
    /// A tiny init as pid 1.
    pub init: bool,
    /// Leave the caller's session keyring (runc's `--no-new-keyring`).
    pub keep_keyring: bool,
    /// What mounts of type `cgroup` show.
    pub cgroup_view: CgroupView,
    /// The caller is in a user namespace that is not the first ([`crate::rootless::is_nested`]).
    pub nested: bool,
}

impl Plan {
    /// The namespaces that `exec` joins: what this container does not share with the host.
    pub fn namespaces(&self) -> Vec<Namespace> {
        let mut all: Vec<_> = self.create.clone();
        all.extend(self.join.iter().map(|join| join.kind));
        all.sort_unstable();
        all.dedup();
        all
    }

    /// Whether the child waits for [`crate::Begun::joined`].
    pub fn waits_for_cgroups(&self) -> bool {
        self.mounts.iter().any(|mount| {
            matches!(
                &mount.kind,
                MountKind::Cgroup {
                    view: CgroupView::Hierarchies(_)
                }
            )
        })
    }
}
