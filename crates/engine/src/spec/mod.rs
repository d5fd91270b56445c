//! From Docker's configuration to an OCI one. Pure: a record, facts and resolved objects in, a
//! value out; nothing is read, made or mounted.

pub(crate) mod capabilities;
pub(crate) mod devices;
pub(crate) mod facts;

use knarr_cgroup::Mode;
use knarr_runtime::CgroupView;
use knarr_spec::docker::{HostConfig, ULIMITS};
use knarr_spec::runtime::{
    BlockIo, Capabilities, Config, ConsoleSize, Cpu, IdMapping, Linux, MASKED_PATHS, Memory, Mount,
    Namespace, OCI_VERSION, Pids, Process, READONLY_PATHS, Resources, Rlimit, Root,
};

use crate::check::Security;
use crate::network::{Mode as NetworkMode, mode_of};
use crate::record::{IdRange, MountKind, Record};
use crate::{Error, Result, merge};
use devices::HostDevice;
use facts::Facts;

/// What the namespaces of other processes are, by path, where the container joins them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Joined {
    pub(crate) network: Option<String>,
    pub(crate) ipc: Option<String>,
    pub(crate) pid: Option<String>,
    /// What `/dev/shm` is, where the IPC namespace is another's.
    pub(crate) shm: Option<String>,
    /// The user namespace that owns the joined ones, where it is not the machine's.
    pub(crate) user: Option<String>,
}

/// Files that Knarr writes for the container, bound over those of the image; paths on the host.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Files {
    pub(crate) hosts: String,
    pub(crate) resolv_conf: String,
    pub(crate) hostname: String,
}

/// Everything that [`config`] decides from.
#[derive(Debug)]
pub(crate) struct Input<'a> {
    pub(crate) record: &'a Record,
    pub(crate) facts: &'a Facts,
    pub(crate) security: &'a Security,
    pub(crate) joined: &'a Joined,
    pub(crate) files: Option<&'a Files>,
    /// Those that `--device` names, or with `--privileged` all.
    pub(crate) devices: &'a [HostDevice],
    /// The compiled filter is given to the runtime beside the configuration; this is what it is
    /// compiled from.
    pub(crate) seccomp: Option<knarr_spec::runtime::Seccomp>,
}

const PATH: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// The OCI configuration of a container. The user is left at root: its names are looked up in the
/// container's own files by the runtime, which is told `config.user` as it is.
pub(crate) fn config(input: &Input<'_>) -> Result<Config> {
    let record = input.record;
    let host = &record.host;
    let private_uts = host.uts_mode != "host";
    Ok(Config {
        oci_version: OCI_VERSION.to_owned(),
        process: Some(process(input)?),
        root: Some(Root {
            path: "rootfs".to_owned(),
            readonly: host.readonly_rootfs,
        }),
        hostname: private_uts.then(|| record.config.hostname.clone()),
        domainname: (private_uts && !record.config.domainname.is_empty())
            .then(|| record.config.domainname.clone()),
        mounts: mounts(input),
        hooks: None,
        // Only the user's: an image's labels and annotations never come here.
        annotations: host.annotations.clone().unwrap_or_default(),
        linux: Some(linux(input)?),
    })
}

fn process(input: &Input<'_>) -> Result<Process> {
    let (record, host) = (input.record, &input.record.host);
    let mut defaults = vec![
        PATH.to_owned(),
        format!("HOSTNAME={}", record.config.hostname),
    ];
    if record.config.tty {
        defaults.push("TERM=xterm".to_owned());
    }
    let caps: Vec<String> = capabilities::bounding(host)?
        .into_iter()
        .filter(|name| capabilities::is_in(name, input.facts.capabilities))
        .map(str::to_owned)
        .collect();
    let [height, width] = host.console_size;
    Ok(Process {
        terminal: record.config.tty,
        console_size: record.config.tty.then_some(ConsoleSize { height, width }),
        args: record.command(),
        env: merge::environment(defaults, &record.config.env),
        cwd: match record.config.working_dir.as_str() {
            "" => "/".to_owned(),
            dir => dir.to_owned(),
        },
        capabilities: Some(Capabilities {
            bounding: caps.clone(),
            effective: caps.clone(),
            permitted: caps,
            ..Capabilities::default()
        }),
        rlimits: rlimits(host, input.facts)?,
        no_new_privileges: input.security.no_new_privileges,
        oom_score_adj: Some(host.oom_score_adj),
        ..Process::default()
    })
}

fn linux(input: &Input<'_>) -> Result<Linux> {
    let (record, host) = (input.record, &input.record.host);
    let maps: Vec<IdMapping> = record.ids.iter().map(id_mapping).collect();
    let paths = |own: &Option<Vec<String>>, default: Vec<String>| match own {
        Some(own) => own.clone(),
        None if input.security.all_paths => Vec::new(),
        None => default,
    };
    let masked = MASKED_PATHS.iter().map(|&path| path.to_owned());
    let thermal = input.facts.thermal.iter().cloned();
    Ok(Linux {
        uid_mappings: maps.clone(),
        gid_mappings: maps,
        sysctl: sysctls(record),
        resources: Some(resources(input)),
        cgroups_path: None,
        namespaces: namespaces(input),
        devices: input.devices.iter().map(HostDevice::node).collect(),
        seccomp: input.seccomp.clone(),
        rootfs_propagation: propagation(record),
        masked_paths: paths(&host.masked_paths, masked.chain(thermal).collect()),
        readonly_paths: paths(
            &host.readonly_paths,
            READONLY_PATHS.iter().map(|&path| path.to_owned()).collect(),
        ),
        mount_label: None,
        ..Linux::default()
    })
}

fn id_mapping(ids: &IdRange) -> IdMapping {
    IdMapping {
        container_id: 0,
        host_id: ids.start,
        size: ids.size,
    }
}

/// Mounts that come in or go out need a root that is not private.
fn propagation(record: &Record) -> Option<String> {
    let any = |words: [&str; 2]| {
        record
            .mounts
            .iter()
            .any(|mount| words.contains(&mount.propagation.as_str()))
    };
    match () {
        () if any(["shared", "rshared"]) => Some("shared".to_owned()),
        () if any(["slave", "rslave"]) => Some("rslave".to_owned()),
        () => None,
    }
}

fn namespaces(input: &Input<'_>) -> Vec<Namespace> {
    let (record, host) = (input.record, &input.record.host);
    let mut all = vec![Namespace {
        kind: "mount".to_owned(),
        path: None,
    }];
    let mut add = |kind: &str, mode: &str, path: &Option<String>| {
        if mode != "host" {
            all.push(Namespace {
                kind: kind.to_owned(),
                path: path.clone(),
            });
        }
    };
    add("network", &host.network_mode, &input.joined.network);
    add("uts", &host.uts_mode, &None);
    add("pid", &host.pid_mode, &input.joined.pid);
    add("ipc", &host.ipc_mode, &input.joined.ipc);
    add("cgroup", &host.cgroupns_mode, &None);
    if record.ids.is_some() || input.joined.user.is_some() {
        add("user", "", &input.joined.user);
    }
    all
}

fn mount(destination: &str, kind: &str, source: &str, options: &[&str]) -> Mount {
    Mount {
        destination: destination.to_owned(),
        kind: Some(kind.to_owned()),
        source: Some(source.to_owned()),
        options: options.iter().map(|&option| option.to_owned()).collect(),
        ..Mount::default()
    }
}

/// The mounts in the order they are made: the kernel's, Knarr's files, then the user's, shallow
/// ones first.
fn mounts(input: &Input<'_>) -> Vec<Mount> {
    let (record, host) = (input.record, &input.record.host);
    let own = |path: &str| record.mounts.iter().any(|mount| mount.destination == path);
    let write = if host.privileged { "rw" } else { "ro" };
    let mut all = vec![
        mount("/proc", "proc", "proc", &["nosuid", "noexec", "nodev"]),
        mount(
            "/dev",
            "tmpfs",
            "tmpfs",
            &["nosuid", "strictatime", "mode=755", "size=65536k"],
        ),
        mount(
            "/dev/pts",
            "devpts",
            "devpts",
            &[
                "nosuid",
                "noexec",
                "newinstance",
                "ptmxmode=0666",
                "mode=0620",
                "gid=5",
            ],
        ),
        mount(
            "/sys",
            "sysfs",
            "sysfs",
            &["nosuid", "noexec", "nodev", write],
        ),
        mount(
            "/sys/fs/cgroup",
            "cgroup",
            "cgroup",
            &[write, "nosuid", "noexec", "nodev"],
        ),
    ];
    if host.ipc_mode == "host" {
        all.push(mount(
            "/dev/mqueue",
            "bind",
            "/dev/mqueue",
            &["rbind", "nosuid", "noexec", "nodev"],
        ));
    } else {
        all.push(mount(
            "/dev/mqueue",
            "mqueue",
            "mqueue",
            &["nosuid", "noexec", "nodev"],
        ));
    }
    match (host.ipc_mode.as_str(), &input.joined.shm) {
        ("none", _) => {}
        (_, Some(shm)) => {
            all.push(mount(
                "/dev/shm",
                "bind",
                shm,
                &["rbind", "nosuid", "noexec", "nodev"],
            ));
        }
        _ => {
            let size = format!("size={}", host.shm_size);
            let options = ["nosuid", "noexec", "nodev", "mode=1777", size.as_str()];
            all.push(mount("/dev/shm", "tmpfs", "shm", &options));
        }
    }
    // A mount of the user's takes the place of one of these, and of all that would be below it.
    all.retain(|mount| {
        let taken = own(&mount.destination);
        !taken || mount.destination == "/proc" || mount.destination == "/dev"
    });
    if let Some(files) = input.files {
        let write = if host.readonly_rootfs { "ro" } else { "rw" };
        for (destination, source) in [
            ("/etc/resolv.conf", &files.resolv_conf),
            ("/etc/hostname", &files.hostname),
            ("/etc/hosts", &files.hosts),
        ] {
            if !own(destination) {
                all.push(mount(
                    destination,
                    "bind",
                    source,
                    &["bind", "rprivate", write],
                ));
            }
        }
    }
    all.extend(record.mounts.iter().map(user_mount));
    all
}

/// A mount of the user's.
fn user_mount(wanted: &crate::record::Mount) -> Mount {
    if wanted.kind == MountKind::Tmpfs {
        let options: Vec<&str> = wanted
            .tmpfs
            .split(',')
            .filter(|word| !word.is_empty())
            .collect();
        return mount(&wanted.destination, "tmpfs", "tmpfs", &options);
    }
    let bind = if wanted.non_recursive {
        "bind"
    } else {
        "rbind"
    };
    let propagation = match wanted.propagation.as_str() {
        "" => "rprivate",
        own => own,
    };
    let write = if wanted.read_only { "ro" } else { "rw" };
    mount(
        &wanted.destination,
        "bind",
        &wanted.source,
        &[bind, propagation, write],
    )
}

/// Docker's two, and the user's.
fn sysctls(record: &Record) -> std::collections::BTreeMap<String, String> {
    let host = &record.host;
    let mut all = std::collections::BTreeMap::new();
    if matches!(
        mode_of(&host.network_mode),
        NetworkMode::None | NetworkMode::Networks(_)
    ) {
        all.insert(
            "net.ipv4.ip_unprivileged_port_start".to_owned(),
            "0".to_owned(),
        );
        if record.ids.is_none() {
            all.insert(
                "net.ipv4.ping_group_range".to_owned(),
                "0 2147483647".to_owned(),
            );
        }
    }
    for (name, value) in &host.sysctls {
        all.insert(name.replace('/', "."), value.clone());
    }
    all
}

fn resources(input: &Input<'_>) -> Resources {
    let host = &input.record.host;
    Resources {
        devices: devices::rules(host, input.devices),
        ..limits(host)
    }
}

/// The limits alone, without device rules.
pub(crate) fn limits(host: &HostConfig) -> Resources {
    let some = |value: i64| (value != 0).then_some(value);
    let text = |value: &String| (!value.is_empty()).then(|| value.clone());
    let positive = |value: i64| u64::try_from(value).ok().filter(|value| *value > 0);
    let memory = Memory {
        limit: some(host.memory),
        reservation: some(host.memory_reservation),
        swap: some(host.memory_swap),
        swappiness: host
            .memory_swappiness
            .and_then(|value| u64::try_from(value).ok()),
        disable_oom_killer: host.oom_kill_disable.filter(|disable| *disable),
        ..Memory::default()
    };
    // `--cpus 1.5`: 150 ms of every 100 ms.
    let (quota, period) = match host.nano_cpus {
        0 => (some(host.cpu_quota), positive(host.cpu_period)),
        nano => (Some(nano / 10_000), Some(100_000)),
    };
    let cpu = Cpu {
        shares: positive(host.cpu_shares),
        quota,
        period,
        cpus: text(&host.cpuset_cpus),
        mems: text(&host.cpuset_mems),
        ..Cpu::default()
    };
    Resources {
        memory: (memory != Memory::default()).then_some(memory),
        cpu: (cpu != Cpu::default()).then_some(cpu),
        pids: host
            .pids_limit
            .filter(|limit| *limit != 0)
            .map(|limit| Pids { limit }),
        block_io: (host.blkio_weight != 0).then_some(BlockIo {
            weight: Some(host.blkio_weight),
            ..BlockIo::default()
        }),
        ..Resources::default()
    }
}

/// The limits that `--ulimit` asks for, as OCI has them.
pub(crate) fn ulimits(host: &HostConfig) -> Result<Vec<Rlimit>> {
    let mut limits = Vec::new();
    for limit in &host.ulimits {
        let name = limit.name.to_ascii_lowercase();
        if !ULIMITS.contains(&name.as_str()) {
            return Err(Error::invalid(format!(
                "invalid ulimit type: {}",
                limit.name
            )));
        }
        // -1 is unlimited.
        let value = |value: i64| u64::try_from(value).unwrap_or(u64::MAX);
        let (soft, hard) = (value(limit.soft), value(limit.hard));
        if soft > hard {
            return Err(Error::invalid(format!(
                "ulimit soft limit must be less than or equal to hard limit: {} > {}",
                limit.soft, limit.hard
            )));
        }
        limits.push(Rlimit {
            kind: format!("RLIMIT_{}", name.to_ascii_uppercase()),
            hard,
            soft,
        });
    }
    Ok(limits)
}

/// And the number of open files where nothing is said: enough for every program, few enough for
/// those that close them all one by one.
fn rlimits(host: &HostConfig, facts: &Facts) -> Result<Vec<Rlimit>> {
    let mut limits = ulimits(host)?;
    if !limits.iter().any(|limit| limit.kind == "RLIMIT_NOFILE") {
        let hard = facts.open_files.min(524_288);
        limits.push(Rlimit {
            kind: "RLIMIT_NOFILE".to_owned(),
            hard,
            soft: hard.min(1024),
        });
    }
    Ok(limits)
}

/// A size as Docker's flags have it: `64m`, `1.5g`, `512`, `10kb`; bytes.
pub(crate) fn parse_size(text: &str) -> Option<u64> {
    let lower = text.trim().to_ascii_lowercase();
    let digits = lower.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let factor: u64 = match lower.get(digits.len()..)? {
        "" | "b" => 1,
        "k" | "kb" | "kib" => 1 << 10,
        "m" | "mb" | "mib" => 1 << 20,
        "g" | "gb" | "gib" => 1 << 30,
        "t" | "tb" | "tib" => 1 << 40,
        _ => return None,
    };
    match digits.split_once('.') {
        None => digits.parse::<u64>().ok()?.checked_mul(factor),
        Some((whole, fraction)) => {
            let fraction = fraction.get(..fraction.len().min(6))?;
            let scale = 10u64.pow(u32::try_from(fraction.len()).ok()?);
            let part = fraction.parse::<u64>().ok()?.checked_mul(factor)? / scale;
            whole
                .parse::<u64>()
                .ok()?
                .checked_mul(factor)?
                .checked_add(part)
        }
    }
}

/// What `/sys/fs/cgroup` shows in the container. `mountinfo` is only asked for where v1 hierarchies
/// are shown.
///
/// On a hybrid machine that is the unified hierarchy alone, where the container's own cgroup always
/// is, unless there are limits: programs (Java's runtime, …) look for those in the v1 files. Then
/// the container has joined them already, and the view costs no wait.
pub(crate) fn cgroup_view(
    mode: Mode,
    limited: bool,
    mountinfo: impl FnOnce() -> String,
) -> CgroupView {
    match (mode, limited) {
        (Mode::Unified, _) | (Mode::Hybrid, false) => CgroupView::Unified,
        (Mode::Hybrid, true) | (Mode::Legacy, _) => CgroupView::hierarchies(&mountinfo()),
    }
}

#[cfg(test)]
mod tests;
