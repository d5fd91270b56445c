//! The flags of `run` and `create`, Docker's all of them: served, or refused by name.

use super::{mount, network, parts};
use crate::flag::{Flag, value};

const NO_LINKS: &str = "containers on the same network reach each other by name";
const NO_HEALTH: &str = "health checks are not run yet; --no-healthcheck says so explicitly";
const NO_BLOCK_LIMITS: &str = "limits of single block devices are not set yet";
const NO_REALTIME: &str = "real-time scheduling is not given out yet";
const WINDOWS: &str = "it exists on Windows only";

pub(crate) const AUTHFILE: Flag =
    Flag::with("authfile", "string", "File with registry credentials");
pub(crate) const CERT_DIR: Flag = Flag::with(
    "cert-dir",
    "string",
    "Folder with certificates of authorities to trust",
);
pub(crate) const TLS_VERIFY: Flag =
    Flag::switch("tls-verify", "Require https and a valid certificate").default("true");

/// How registries are reached, in Podman's words.
pub(crate) const REGISTRY: &[Flag] = &[
    AUTHFILE,
    CERT_DIR,
    Flag::with(
        "creds",
        "string",
        "Credentials for the registry (USER:PASSWORD)",
    ),
    TLS_VERIFY,
    Flag::switch("disable-content-trust", "").hidden(),
];

/// The flags that `run` has and `create` has not.
pub(crate) const RUN: &[Flag] = &[
    Flag::switch(
        "detach",
        "Run container in background and print container ID",
    )
    .short('d'),
    Flag::with(
        "detach-keys",
        "string",
        "Override the key sequence for detaching a container",
    ),
    Flag::switch("plan", "Print what would be done, as JSON, and do nothing"),
    Flag::switch("sig-proxy", "Proxy received signals to the process").default("true"),
];

/// What both can say and `update` can change.
pub(crate) const LIMITS: &[Flag] = &[
    Flag::with(
        "blkio-weight",
        "uint16",
        "Block IO (relative weight), between 10 and 1000, or 0 to disable",
    )
    .default("0")
    .checked(value::uint16),
    Flag::with(
        "cpu-period",
        "int",
        "Limit CPU CFS (Completely Fair Scheduler) period",
    )
    .checked(value::int),
    Flag::with(
        "cpu-quota",
        "int",
        "Limit CPU CFS (Completely Fair Scheduler) quota",
    )
    .checked(value::int),
    Flag::with("cpu-shares", "int", "CPU shares (relative weight)")
        .short('c')
        .checked(value::int),
    Flag::with("cpus", "decimal", "Number of CPUs").checked(value::cpus),
    Flag::with(
        "cpuset-cpus",
        "string",
        "CPUs in which to allow execution (0-3, 0,1)",
    ),
    Flag::with(
        "cpuset-mems",
        "string",
        "MEMs in which to allow execution (0-3, 0,1)",
    ),
    Flag::with("memory", "bytes", "Memory limit")
        .short('m')
        .checked(value::bytes),
    Flag::with("memory-reservation", "bytes", "Memory soft limit").checked(value::bytes),
    Flag::with(
        "memory-swap",
        "bytes",
        "Swap limit equal to memory plus swap: '-1' to enable unlimited swap",
    )
    .checked(value::swap),
    Flag::with(
        "pids-limit",
        "int",
        "Tune container pids limit (set -1 for unlimited)",
    )
    .checked(value::int),
    Flag::with(
        "restart",
        "string",
        "Restart policy to apply when a container exits",
    )
    .default("\"no\""),
];

/// The flags of both.
pub(crate) const CREATE: &[Flag] = &[
    Flag::with(
        "add-host",
        "list",
        "Add a custom host-to-IP mapping (host:ip)",
    )
    .checked(parts::extra_host),
    Flag::with(
        "annotation",
        "map",
        "Add an annotation to the container (passed to the runtime)",
    )
    .checked(value::pair),
    Flag::with("attach", "list", "Attach to STDIN, STDOUT or STDERR")
        .short('a')
        .checked(value::stream),
    Flag::with("blkio-weight-device", "list", "").refused(NO_BLOCK_LIMITS),
    Flag::with("cap-add", "list", "Add Linux capabilities"),
    Flag::with("cap-drop", "list", "Drop Linux capabilities"),
    Flag::with(
        "cgroup-parent",
        "string",
        "Optional parent cgroup for the container",
    ),
    Flag::with(
        "cgroupns",
        "string",
        "Cgroup namespace to use (host|private)",
    ),
    Flag::with("cidfile", "string", "Write the container ID to the file"),
    Flag::with("cpu-count", "int", "").refused(WINDOWS),
    Flag::with("cpu-percent", "int", "").refused(WINDOWS),
    Flag::with("cpu-rt-period", "int", "").refused(NO_REALTIME),
    Flag::with("cpu-rt-runtime", "int", "").refused(NO_REALTIME),
    Flag::with("device", "list", "Add a host device to the container").checked(parts::device_check),
    Flag::with(
        "device-cgroup-rule",
        "list",
        "Add a rule to the cgroup allowed devices list",
    )
    .checked(parts::device_rule),
    Flag::with("device-read-bps", "list", "").refused(NO_BLOCK_LIMITS),
    Flag::with("device-read-iops", "list", "").refused(NO_BLOCK_LIMITS),
    Flag::with("device-write-bps", "list", "").refused(NO_BLOCK_LIMITS),
    Flag::with("device-write-iops", "list", "").refused(NO_BLOCK_LIMITS),
    Flag::with("dns", "list", "Set custom DNS servers").checked(parts::address),
    Flag::with("dns-option", "list", "Set DNS options"),
    Flag::with("dns-opt", "list", "").hidden(),
    Flag::with("dns-search", "list", "Set custom DNS search domains"),
    Flag::with("domainname", "string", "Container NIS domain name"),
    Flag::with(
        "entrypoint",
        "string",
        "Overwrite the default ENTRYPOINT of the image",
    ),
    Flag::with("env", "list", "Set environment variables")
        .short('e')
        .checked(value::environment),
    Flag::with(
        "env-file",
        "list",
        "Read in a file of environment variables",
    ),
    Flag::with("expose", "list", "Expose a port or a range of ports").checked(parts::port_check),
    Flag::with("gpus", "gpu-request", "")
        .refused("no vendor's device description is read; pass single devices with --device"),
    Flag::with("group-add", "list", "Add additional groups to join"),
    Flag::with("health-cmd", "string", "").refused(NO_HEALTH),
    Flag::with("health-interval", "duration", "").refused(NO_HEALTH),
    Flag::with("health-retries", "int", "").refused(NO_HEALTH),
    Flag::with("health-start-interval", "duration", "").refused(NO_HEALTH),
    Flag::with("health-start-period", "duration", "").refused(NO_HEALTH),
    Flag::with("health-timeout", "duration", "").refused(NO_HEALTH),
    Flag::with("hostname", "string", "Container host name").short('h'),
    Flag::switch(
        "init",
        "Run an init inside the container that forwards signals and reaps processes",
    ),
    Flag::switch("interactive", "Keep STDIN open even if not attached").short('i'),
    Flag::with("io-maxbandwidth", "bytes", "").refused(WINDOWS),
    Flag::with("io-maxiops", "uint", "").refused(WINDOWS),
    Flag::with("ip", "string", "IPv4 address (e.g., 172.30.100.104)").checked(parts::ip),
    Flag::with("ip6", "string", "IPv6 address (e.g., 2001:db8::33)").checked(parts::ip),
    Flag::with("ipc", "string", "IPC mode to use"),
    Flag::with(
        "isolation",
        "string",
        "Container isolation technology (\"process\")",
    ),
    Flag::with("kernel-memory", "bytes", "").refused("Linux has no such limit any more"),
    Flag::with("label", "list", "Set meta data on a container")
        .short('l')
        .checked(value::label),
    Flag::with(
        "label-file",
        "list",
        "Read in a line delimited file of labels",
    ),
    Flag::with("link", "list", "").refused(NO_LINKS),
    Flag::with("link-local-ip", "list", "").refused("the kernel chooses link-local addresses"),
    Flag::with(
        "log-driver",
        "string",
        "Logging driver for the container (\"json-file\", \"none\")",
    ),
    Flag::with("log-opt", "list", "Log driver options"),
    Flag::with(
        "mac-address",
        "string",
        "Container MAC address (e.g., 92:d0:c6:0a:29:33)",
    ),
    Flag::with(
        "memory-swappiness",
        "int",
        "Tune container memory swappiness (0 to 100)",
    )
    .default("-1")
    .checked(value::int),
    Flag::with(
        "mount",
        "mount",
        "Attach a filesystem mount to the container",
    )
    .checked(mount::check),
    Flag::with("name", "string", "Assign a name to the container"),
    Flag::with(
        "network",
        "network",
        "Connect a container to a network (NAME|host|none|container:ID|ns:PATH), also several",
    ),
    Flag::with("net", "network", "").hidden(),
    Flag::with(
        "network-alias",
        "list",
        "Add network-scoped alias for the container",
    ),
    Flag::with("net-alias", "list", "").hidden(),
    Flag::switch(
        "no-healthcheck",
        "Disable any container-specified HEALTHCHECK",
    ),
    Flag::switch("oom-kill-disable", "Disable OOM Killer"),
    Flag::with(
        "oom-score-adj",
        "int",
        "Tune host's OOM preferences (-1000 to 1000)",
    )
    .checked(value::int),
    Flag::with("pid", "string", "PID namespace to use"),
    Flag::with(
        "platform",
        "string",
        "Set platform if the image is for several",
    ),
    Flag::switch("privileged", "Give extended privileges to this container"),
    Flag::with(
        "publish",
        "list",
        "Publish a container's port(s) to the host",
    )
    .short('p')
    .checked(network::publish_check),
    Flag::switch("publish-all", "Publish all exposed ports to random ports").short('P'),
    Flag::with(
        "pull",
        "string",
        "Pull image before running (\"always\", \"missing\", \"never\")",
    )
    .default("\"missing\""),
    Flag::switch("quiet", "Suppress the pull output").short('q'),
    Flag::switch(
        "read-only",
        "Mount the container's root filesystem as read only",
    ),
    Flag::switch(
        "rm",
        "Automatically remove the container and its associated anonymous volumes when it exits",
    ),
    Flag::with("runtime", "string", "").refused("containers are run by Knarr itself"),
    Flag::with("security-opt", "list", "Security Options"),
    Flag::with("shm-size", "bytes", "Size of /dev/shm").checked(value::bytes),
    Flag::with("stop-signal", "string", "Signal to stop the container"),
    Flag::with(
        "stop-timeout",
        "int",
        "Timeout (in seconds) to stop a container",
    )
    .checked(value::int),
    Flag::with("storage-opt", "list", "").refused("the writable layer has no quota yet"),
    Flag::with("sysctl", "map", "Sysctl options").checked(parts::sysctl),
    Flag::with("tmpfs", "list", "Mount a tmpfs directory"),
    Flag::switch("tty", "Allocate a pseudo-TTY").short('t'),
    Flag::with("ulimit", "ulimit", "Ulimit options").checked(parts::ulimit_check),
    Flag::switch("use-api-socket", "").refused("Knarr has no socket to hand in"),
    Flag::with(
        "user",
        "string",
        "Username or UID (format: <name|uid>[:<group|gid>])",
    )
    .short('u'),
    Flag::with("userns", "string", "User namespace to use (host|auto)"),
    Flag::with("uts", "string", "UTS namespace to use"),
    Flag::with("volume", "list", "Bind mount a volume").short('v'),
    Flag::with("volume-driver", "string", "").hidden(),
    Flag::with(
        "volumes-from",
        "list",
        "Mount volumes from the specified container(s)",
    ),
    Flag::with(
        "workdir",
        "string",
        "Working directory inside the container",
    )
    .short('w'),
];
