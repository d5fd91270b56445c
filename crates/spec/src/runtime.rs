//! `config.json` of the OCI runtime-spec 1.3 (config.md, config-linux.md), and the container
//! state it hands to hooks (runtime.md).
//!
//! Field names are the specification's; what a field means is said there. Unknown members are
//! ignored, as the specification asks of runtimes (config.md, "Extensibility").

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// The version of the specification that these types follow.
pub const OCI_VERSION: &str = "1.3.0";

/// Paths of /proc and /sys that show too much of the machine (moby, `oci/defaults.go`; the power
/// meters tell what others compute: CVE-2020-8694). What is not there is not masked.
pub const MASKED_PATHS: [&str; 12] = [
    "/proc/acpi",
    "/proc/asound",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/sys/firmware",
    "/sys/devices/virtual/powercap",
];

/// Paths that must not be written to (the same source).
pub const READONLY_PATHS: [&str; 5] = [
    "/proc/bus",
    "/proc/fs",
    "/proc/irq",
    "/proc/sys",
    "/proc/sysrq-trigger",
];

macro_rules! spec_types {
    ($(
        $(#[$meta:meta])*
        struct $name:ident { $( $(#[$fmeta:meta])* $field:ident : $ty:ty ),* $(,)? }
    )*) => { $(
        $(#[$meta])*
        #[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
        #[serde(rename_all = "camelCase", default)]
        pub struct $name { $( $(#[$fmeta])* #[expect(missing_docs, reason = "named and explained by the specification")] pub $field: $ty ),* }
    )* };
}

spec_types! {
    /// The whole bundle configuration (config.md).
    struct Config {
        oci_version: String,
        #[serde(skip_serializing_if = "Option::is_none")] process: Option<Process>,
        #[serde(skip_serializing_if = "Option::is_none")] root: Option<Root>,
        #[serde(skip_serializing_if = "Option::is_none")] hostname: Option<String>,
        #[serde(skip_serializing_if = "Option::is_none")] domainname: Option<String>,
        #[serde(skip_serializing_if = "Vec::is_empty")] mounts: Vec<Mount>,
        #[serde(skip_serializing_if = "Option::is_none")] hooks: Option<Hooks>,
        #[serde(skip_serializing_if = "BTreeMap::is_empty")] annotations: BTreeMap<String, String>,
        #[serde(skip_serializing_if = "Option::is_none")] linux: Option<Linux>,
    }
    /// The container's root file system.
    struct Root { path: String, #[serde(skip_serializing_if = "std::ops::Not::not")] readonly: bool }
    /// One mount, applied in the order listed.
    struct Mount {
        destination: String,
        #[serde(rename = "type", skip_serializing_if = "Option::is_none")] kind: Option<String>,
        #[serde(skip_serializing_if = "Option::is_none")] source: Option<String>,
        #[serde(skip_serializing_if = "Vec::is_empty")] options: Vec<String>,
        #[serde(skip_serializing_if = "Vec::is_empty")] uid_mappings: Vec<IdMapping>,
        #[serde(skip_serializing_if = "Vec::is_empty")] gid_mappings: Vec<IdMapping>,
    }
    /// One range of user or group ids; `size` ids starting at `host_id` (`hostID`) on the host.
    struct IdMapping {
        #[serde(rename = "containerID")] container_id: u32,
        #[serde(rename = "hostID")] host_id: u32,
        size: u32,
    }
    /// The process that starts in the container.
    struct Process {
        #[serde(skip_serializing_if = "std::ops::Not::not")] terminal: bool,
        #[serde(skip_serializing_if = "Option::is_none")] console_size: Option<ConsoleSize>,
        user: User,
        args: Vec<String>,
        #[serde(skip_serializing_if = "Vec::is_empty")] env: Vec<String>,
        cwd: String,
        #[serde(skip_serializing_if = "Option::is_none")] capabilities: Option<Capabilities>,
        #[serde(skip_serializing_if = "Vec::is_empty")] rlimits: Vec<Rlimit>,
        #[serde(skip_serializing_if = "std::ops::Not::not")] no_new_privileges: bool,
        #[serde(skip_serializing_if = "Option::is_none")] apparmor_profile: Option<String>,
        #[serde(skip_serializing_if = "Option::is_none")] oom_score_adj: Option<i32>,
        #[serde(skip_serializing_if = "Option::is_none")] selinux_label: Option<String>,
        #[serde(skip_serializing_if = "Option::is_none")] scheduler: Option<Scheduler>,
        #[serde(skip_serializing_if = "Option::is_none")] io_priority: Option<IoPriority>,
        #[serde(rename = "execCPUAffinity", skip_serializing_if = "Option::is_none")] exec_cpu_affinity: Option<CpuAffinity>,
    }
    /// How the process is scheduled (sched_setattr(2)): `policy` is `SCHED_…`, `flags` are
    /// `SCHED_FLAG_…`, the last three are nanoseconds for `SCHED_DEADLINE`.
    struct Scheduler {
        policy: String,
        #[serde(skip_serializing_if = "Option::is_none")] nice: Option<i32>,
        #[serde(skip_serializing_if = "Option::is_none")] priority: Option<i32>,
        #[serde(skip_serializing_if = "Vec::is_empty")] flags: Vec<String>,
        #[serde(skip_serializing_if = "Option::is_none")] runtime: Option<u64>,
        #[serde(skip_serializing_if = "Option::is_none")] deadline: Option<u64>,
        #[serde(skip_serializing_if = "Option::is_none")] period: Option<u64>,
    }
    /// I/O priority (ioprio_set(2)): `class` is `IOPRIO_CLASS_…`, `priority` 0 to 7.
    struct IoPriority { class: String, priority: i64 }
    /// CPUs of an exec, as lists of cpuset(7): before it joins the cgroup, and after.
    struct CpuAffinity {
        #[serde(skip_serializing_if = "Option::is_none")] initial: Option<String>,
        #[serde(rename = "final", skip_serializing_if = "Option::is_none")] last: Option<String>,
    }
    /// Character cells of the terminal.
    struct ConsoleSize { height: u16, width: u16 }
    /// Ids inside the container.
    struct User {
        uid: u32,
        gid: u32,
        #[serde(skip_serializing_if = "Option::is_none")] umask: Option<u32>,
        #[serde(skip_serializing_if = "Vec::is_empty")] additional_gids: Vec<u32>,
    }
    /// Capability names (`CAP_…`) per set (capabilities(7)).
    struct Capabilities {
        #[serde(skip_serializing_if = "Vec::is_empty")] bounding: Vec<String>,
        #[serde(skip_serializing_if = "Vec::is_empty")] effective: Vec<String>,
        #[serde(skip_serializing_if = "Vec::is_empty")] inheritable: Vec<String>,
        #[serde(skip_serializing_if = "Vec::is_empty")] permitted: Vec<String>,
        #[serde(skip_serializing_if = "Vec::is_empty")] ambient: Vec<String>,
    }
    /// One resource limit (`RLIMIT_…`, getrlimit(2)).
    struct Rlimit { #[serde(rename = "type")] kind: String, hard: u64, soft: u64 }
    /// Programs run at the moments of the life cycle (config.md, "POSIX-platform Hooks").
    struct Hooks {
        #[serde(skip_serializing_if = "Vec::is_empty")] prestart: Vec<Hook>,
        #[serde(skip_serializing_if = "Vec::is_empty")] create_runtime: Vec<Hook>,
        #[serde(skip_serializing_if = "Vec::is_empty")] create_container: Vec<Hook>,
        #[serde(skip_serializing_if = "Vec::is_empty")] start_container: Vec<Hook>,
        #[serde(skip_serializing_if = "Vec::is_empty")] poststart: Vec<Hook>,
        #[serde(skip_serializing_if = "Vec::is_empty")] poststop: Vec<Hook>,
    }
    /// One hook program; `timeout` in seconds.
    struct Hook {
        path: String,
        #[serde(skip_serializing_if = "Vec::is_empty")] args: Vec<String>,
        #[serde(skip_serializing_if = "Vec::is_empty")] env: Vec<String>,
        #[serde(skip_serializing_if = "Option::is_none")] timeout: Option<u32>,
    }
    /// The Linux part (config-linux.md).
    struct Linux {
        #[serde(skip_serializing_if = "Vec::is_empty")] uid_mappings: Vec<IdMapping>,
        #[serde(skip_serializing_if = "Vec::is_empty")] gid_mappings: Vec<IdMapping>,
        #[serde(skip_serializing_if = "BTreeMap::is_empty")] sysctl: BTreeMap<String, String>,
        #[serde(skip_serializing_if = "Option::is_none")] resources: Option<Resources>,
        #[serde(skip_serializing_if = "Option::is_none")] cgroups_path: Option<String>,
        #[serde(skip_serializing_if = "Vec::is_empty")] namespaces: Vec<Namespace>,
        #[serde(skip_serializing_if = "Vec::is_empty")] devices: Vec<Device>,
        #[serde(skip_serializing_if = "Option::is_none")] seccomp: Option<Seccomp>,
        #[serde(skip_serializing_if = "Option::is_none")] rootfs_propagation: Option<String>,
        #[serde(skip_serializing_if = "Vec::is_empty")] masked_paths: Vec<String>,
        #[serde(skip_serializing_if = "Vec::is_empty")] readonly_paths: Vec<String>,
        #[serde(skip_serializing_if = "Option::is_none")] mount_label: Option<String>,
        #[serde(skip_serializing_if = "BTreeMap::is_empty")] time_offsets: BTreeMap<String, TimeOffset>,
        #[serde(skip_serializing_if = "BTreeMap::is_empty")] net_devices: BTreeMap<String, NetDevice>,
        #[serde(skip_serializing_if = "Option::is_none")] personality: Option<Personality>,
        #[serde(skip_serializing_if = "Option::is_none")] intel_rdt: Option<IntelRdt>,
        #[serde(skip_serializing_if = "Option::is_none")] memory_policy: Option<MemoryPolicy>,
    }
    /// Offset of a clock (`monotonic`, `boottime`) of the container's time namespace.
    struct TimeOffset { secs: i64, nanosecs: u32 }
    /// A network device of the host that moves in; `name` is its new one.
    struct NetDevice { #[serde(skip_serializing_if = "String::is_empty")] name: String }
    /// Execution domain (personality(2)): `LINUX` or `LINUX32`.
    struct Personality { domain: String, #[serde(skip_serializing_if = "Vec::is_empty")] flags: Vec<String> }
    /// Intel's cache and memory bandwidth allocation (resctrl).
    struct IntelRdt {
        #[serde(rename = "closID", skip_serializing_if = "Option::is_none")] clos_id: Option<String>,
        #[serde(rename = "l3CacheSchema", skip_serializing_if = "Option::is_none")] l3_cache_schema: Option<String>,
        #[serde(skip_serializing_if = "Option::is_none")] mem_bw_schema: Option<String>,
        #[serde(skip_serializing_if = "Vec::is_empty")] schemata: Vec<String>,
        #[serde(skip_serializing_if = "std::ops::Not::not")] enable_monitoring: bool,
    }
    /// NUMA memory policy (set_mempolicy(2)): `mode` is `MPOL_…`, `nodes` a list as in cpuset(7).
    struct MemoryPolicy {
        mode: String,
        #[serde(skip_serializing_if = "String::is_empty")] nodes: String,
        #[serde(skip_serializing_if = "Vec::is_empty")] flags: Vec<String>,
    }
    /// A namespace to create, or with `path` to join. `kind` is the specification's word:
    /// pid, network, mount, ipc, uts, user, cgroup, time.
    struct Namespace {
        #[serde(rename = "type")] kind: String,
        #[serde(skip_serializing_if = "Option::is_none")] path: Option<String>,
    }
    /// A device node; `kind` is `c`, `b`, `u` or `p`.
    struct Device {
        path: String,
        #[serde(rename = "type")] kind: String,
        #[serde(skip_serializing_if = "Option::is_none")] major: Option<i64>,
        #[serde(skip_serializing_if = "Option::is_none")] minor: Option<i64>,
        #[serde(skip_serializing_if = "Option::is_none")] file_mode: Option<u32>,
        #[serde(skip_serializing_if = "Option::is_none")] uid: Option<u32>,
        #[serde(skip_serializing_if = "Option::is_none")] gid: Option<u32>,
    }
    /// Limits, all for the container's cgroup.
    struct Resources {
        #[serde(skip_serializing_if = "Vec::is_empty")] devices: Vec<DeviceRule>,
        #[serde(skip_serializing_if = "Option::is_none")] memory: Option<Memory>,
        #[serde(skip_serializing_if = "Option::is_none")] cpu: Option<Cpu>,
        #[serde(skip_serializing_if = "Option::is_none")] pids: Option<Pids>,
        #[serde(rename = "blockIO", skip_serializing_if = "Option::is_none")] block_io: Option<BlockIo>,
        #[serde(skip_serializing_if = "Vec::is_empty")] hugepage_limits: Vec<HugepageLimit>,
        #[serde(skip_serializing_if = "Option::is_none")] network: Option<Network>,
        #[serde(skip_serializing_if = "BTreeMap::is_empty")] rdma: BTreeMap<String, Rdma>,
        #[serde(skip_serializing_if = "BTreeMap::is_empty")] unified: BTreeMap<String, String>,
    }
    /// The most bytes in huge pages of a size (`2MB`, `1GB`).
    struct HugepageLimit { page_size: String, limit: u64 }
    /// The class of the packets (net_cls) and their priorities per interface (net_prio); v1 only.
    struct Network {
        #[serde(rename = "classID", skip_serializing_if = "Option::is_none")] class_id: Option<u32>,
        #[serde(skip_serializing_if = "Vec::is_empty")] priorities: Vec<InterfacePriority>,
    }
    /// The priority of packets that leave by one interface.
    struct InterfacePriority { name: String, priority: u32 }
    /// Limits of one RDMA device.
    struct Rdma {
        #[serde(skip_serializing_if = "Option::is_none")] hca_handles: Option<u32>,
        #[serde(skip_serializing_if = "Option::is_none")] hca_objects: Option<u32>,
    }
    /// One rule of the device list, later rules win; `None` numbers match all.
    struct DeviceRule {
        allow: bool,
        #[serde(rename = "type", skip_serializing_if = "Option::is_none")] kind: Option<String>,
        #[serde(skip_serializing_if = "Option::is_none")] major: Option<i64>,
        #[serde(skip_serializing_if = "Option::is_none")] minor: Option<i64>,
        #[serde(skip_serializing_if = "Option::is_none")] access: Option<String>,
    }
    /// Bytes; -1 is unlimited. `swap` is memory plus swap, as cgroup v1 counts it.
    struct Memory {
        #[serde(skip_serializing_if = "Option::is_none")] limit: Option<i64>,
        #[serde(skip_serializing_if = "Option::is_none")] reservation: Option<i64>,
        #[serde(skip_serializing_if = "Option::is_none")] swap: Option<i64>,
        #[serde(skip_serializing_if = "Option::is_none")] swappiness: Option<u64>,
        #[serde(rename = "disableOOMKiller", skip_serializing_if = "Option::is_none")] disable_oom_killer: Option<bool>,
        #[serde(skip_serializing_if = "Option::is_none")] kernel: Option<i64>,
        #[serde(rename = "kernelTCP", skip_serializing_if = "Option::is_none")] kernel_tcp: Option<i64>,
        #[serde(skip_serializing_if = "Option::is_none")] use_hierarchy: Option<bool>,
        #[serde(skip_serializing_if = "Option::is_none")] check_before_update: Option<bool>,
    }
    /// `quota` and `period` in microseconds; `cpus` and `mems` as cpuset(7) lists.
    struct Cpu {
        #[serde(skip_serializing_if = "Option::is_none")] shares: Option<u64>,
        #[serde(skip_serializing_if = "Option::is_none")] quota: Option<i64>,
        #[serde(skip_serializing_if = "Option::is_none")] burst: Option<u64>,
        #[serde(skip_serializing_if = "Option::is_none")] period: Option<u64>,
        #[serde(skip_serializing_if = "Option::is_none")] cpus: Option<String>,
        #[serde(skip_serializing_if = "Option::is_none")] mems: Option<String>,
        #[serde(skip_serializing_if = "Option::is_none")] idle: Option<i64>,
        #[serde(skip_serializing_if = "Option::is_none")] realtime_runtime: Option<i64>,
        #[serde(skip_serializing_if = "Option::is_none")] realtime_period: Option<u64>,
    }
    /// The most processes; 0 or less is unlimited.
    struct Pids { limit: i64 }
    /// Block I/O: weights 10 to 1000; rates in bytes or operations per second.
    struct BlockIo {
        #[serde(skip_serializing_if = "Option::is_none")] weight: Option<u16>,
        #[serde(skip_serializing_if = "Option::is_none")] leaf_weight: Option<u16>,
        #[serde(skip_serializing_if = "Vec::is_empty")] weight_device: Vec<WeightDevice>,
        #[serde(skip_serializing_if = "Vec::is_empty")] throttle_read_bps_device: Vec<ThrottleDevice>,
        #[serde(skip_serializing_if = "Vec::is_empty")] throttle_write_bps_device: Vec<ThrottleDevice>,
        #[serde(rename = "throttleReadIOPSDevice", skip_serializing_if = "Vec::is_empty")] throttle_read_iops_device: Vec<ThrottleDevice>,
        #[serde(rename = "throttleWriteIOPSDevice", skip_serializing_if = "Vec::is_empty")] throttle_write_iops_device: Vec<ThrottleDevice>,
    }
    /// The weight of one block device.
    struct WeightDevice {
        major: i64,
        minor: i64,
        #[serde(skip_serializing_if = "Option::is_none")] weight: Option<u16>,
        #[serde(skip_serializing_if = "Option::is_none")] leaf_weight: Option<u16>,
    }
    /// The rate of one block device.
    struct ThrottleDevice { major: i64, minor: i64, rate: u64 }
    /// A container's state as hooks get it on standard input (runtime.md, "State").
    struct State {
        oci_version: String,
        id: String,
        status: String,
        #[serde(skip_serializing_if = "Option::is_none")] pid: Option<i32>,
        bundle: String,
        #[serde(skip_serializing_if = "BTreeMap::is_empty")] annotations: BTreeMap<String, String>,
    }
    /// What goes to the seccomp listener beside the descriptor (config-linux.md, "The Container
    /// Process State").
    struct ContainerProcessState {
        oci_version: String,
        fds: Vec<String>,
        pid: i32,
        #[serde(skip_serializing_if = "Option::is_none")] metadata: Option<String>,
        state: State,
    }
    /// The system call filter (config-linux.md, "Seccomp").
    struct Seccomp {
        default_action: SeccompAction,
        #[serde(skip_serializing_if = "Option::is_none")] default_errno_ret: Option<u32>,
        #[serde(skip_serializing_if = "Vec::is_empty")] architectures: Vec<String>,
        #[serde(skip_serializing_if = "Vec::is_empty")] flags: Vec<String>,
        #[serde(skip_serializing_if = "Option::is_none")] listener_path: Option<String>,
        #[serde(skip_serializing_if = "Option::is_none")] listener_metadata: Option<String>,
        #[serde(skip_serializing_if = "Vec::is_empty")] syscalls: Vec<SeccompSyscalls>,
    }
    /// One rule: these calls, with all these arguments, get this action.
    struct SeccompSyscalls {
        names: Vec<String>,
        action: SeccompAction,
        #[serde(skip_serializing_if = "Option::is_none")] errno_ret: Option<u32>,
        #[serde(skip_serializing_if = "Vec::is_empty")] args: Vec<SeccompArg>,
    }
    /// A comparison of one argument (index 0 to 5).
    struct SeccompArg { index: u32, value: u64, #[serde(default)] value_two: u64, op: SeccompOperator }
}

/// What the filter does with a matching call; the names are the specification's.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum SeccompAction {
    /// Kill the thread (same as `SCMP_ACT_KILL`).
    #[serde(rename = "SCMP_ACT_KILL_THREAD", alias = "SCMP_ACT_KILL")]
    KillThread,
    /// Kill the whole process.
    #[serde(rename = "SCMP_ACT_KILL_PROCESS")]
    KillProcess,
    /// Send SIGSYS.
    #[serde(rename = "SCMP_ACT_TRAP")]
    Trap,
    /// Fail with an errno, EPERM unless told otherwise.
    #[default]
    #[serde(rename = "SCMP_ACT_ERRNO")]
    Errno,
    /// Tell the tracer.
    #[serde(rename = "SCMP_ACT_TRACE")]
    Trace,
    /// Let it pass.
    #[serde(rename = "SCMP_ACT_ALLOW")]
    Allow,
    /// Let it pass, and log.
    #[serde(rename = "SCMP_ACT_LOG")]
    Log,
    /// Ask the listener.
    #[serde(rename = "SCMP_ACT_NOTIFY")]
    Notify,
}

/// How an argument is compared; the names are the specification's.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum SeccompOperator {
    /// `!=`
    #[serde(rename = "SCMP_CMP_NE")]
    NotEqual,
    /// `<`
    #[serde(rename = "SCMP_CMP_LT")]
    Less,
    /// `<=`
    #[serde(rename = "SCMP_CMP_LE")]
    LessOrEqual,
    /// `==`
    #[default]
    #[serde(rename = "SCMP_CMP_EQ")]
    Equal,
    /// `>=`
    #[serde(rename = "SCMP_CMP_GE")]
    GreaterOrEqual,
    /// `>`
    #[serde(rename = "SCMP_CMP_GT")]
    Greater,
    /// `argument & value == value_two`
    #[serde(rename = "SCMP_CMP_MASKED_EQ")]
    MaskedEqual,
}
