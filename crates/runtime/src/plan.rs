//! What will be done, as a value: made by pure code, printed by `knarr run --plan`, applied by
//! `begin`.

mod config;
mod mount;
mod text;

use serde::{Deserialize, Serialize};

pub use config::plan;

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
    /// Paths covered by an empty read-only directory or `/dev/null`; absent ones are passed over.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub masked: Vec<String>,
    /// Paths made read-only with all below; absent ones are passed over.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub readonly: Vec<String>,
    /// Kernel parameters of the container's namespaces.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub sysctls: Vec<Sysctl>,
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
    /// A new session keyring, so that the container sees no keys of the caller.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub new_keyring: bool,
    /// A tiny init is pid 1 and the program its child (`--init`). Not for exec.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub init: bool,
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
