//! The config as a whole → [`Plan`].

use std::collections::BTreeSet;

use knarr_spec::runtime;

use super::{
    CapabilitySets, ConsoleSize, DeviceKind, DevicePlan, HookPlan, HooksPlan, IdRange,
    JoinNamespace, ListenerPlan, MountKind, Namespace, Plan, PlanOptions, ProcessPlan, Propagation,
    Rlimit, RootPlan, Sysctl, TimeOffset, UserNamespace, UserPlan, VERSION, mount, ranges, tuning,
};
use crate::{Capability, Error, Result};

/// Resources of getrlimit(2).
pub(crate) const RLIMITS: [&str; 16] = [
    "RLIMIT_AS",
    "RLIMIT_CORE",
    "RLIMIT_CPU",
    "RLIMIT_DATA",
    "RLIMIT_FSIZE",
    "RLIMIT_LOCKS",
    "RLIMIT_MEMLOCK",
    "RLIMIT_MSGQUEUE",
    "RLIMIT_NICE",
    "RLIMIT_NOFILE",
    "RLIMIT_NPROC",
    "RLIMIT_RSS",
    "RLIMIT_RTPRIO",
    "RLIMIT_RTTIME",
    "RLIMIT_SIGPENDING",
    "RLIMIT_STACK",
];

/// Devices every container has (config-linux.md, "Default Devices").
const DEFAULT_DEVICES: [(&str, u32, u32); 6] = [
    ("/dev/null", 1, 3),
    ("/dev/zero", 1, 5),
    ("/dev/full", 1, 7),
    ("/dev/random", 1, 8),
    ("/dev/urandom", 1, 9),
    ("/dev/tty", 5, 0),
];

fn invalid(field: impl Into<String>, reason: impl Into<String>) -> Error {
    Error::Config {
        field: field.into(),
        reason: reason.into(),
    }
}

fn unsupported(field: impl Into<String>, what: impl Into<String>) -> Error {
    Error::Unsupported {
        field: field.into(),
        what: what.into(),
    }
}

/// Decides what [`crate::begin`] will do. Pure: no file, no system call. Resources are not part of
/// it (see `knarr_cgroup`), nor are network devices (`knarr_net::device`: the caller moves them when the
/// process is there), nor is the root's path (the caller mounts it).
///
/// # Errors
/// [`Error::Config`] for what is wrong, [`Error::Unsupported`] for what is not served, each naming
/// the field.
pub fn plan(config: &runtime::Config, options: &PlanOptions) -> Result<Plan> {
    let default_linux = runtime::Linux::default();
    let linux = config.linux.as_ref().unwrap_or(&default_linux);
    let process = config
        .process
        .as_ref()
        .ok_or_else(|| invalid("process", "missing"))?;
    if linux.intel_rdt.is_some() {
        return Err(unsupported(
            "linux.intelRdt",
            "Intel's resource director technology",
        ));
    }
    let (create, join) = namespaces(linux)?;
    let has = |kind: Namespace| create.contains(&kind) || join.iter().any(|j| j.kind == kind);
    if !has(Namespace::Mount) {
        return Err(unsupported(
            "linux.namespaces",
            "a container in the host's mount namespace",
        ));
    }
    if !linux.net_devices.is_empty() && !has(Namespace::Network) {
        let reason = "cannot be moved without a network namespace";
        return Err(invalid("linux.netDevices", reason));
    }
    let hooks = hooks(config.hooks.as_ref())?;
    for (field, value) in [
        ("hostname", &config.hostname),
        ("domainname", &config.domainname),
    ] {
        if value.as_ref().is_some_and(|name| !name.is_empty()) && !has(Namespace::Uts) {
            return Err(invalid(field, "cannot be set without a UTS namespace"));
        }
        if value.as_ref().is_some_and(|name| name.len() > 64) {
            return Err(invalid(field, "longer than 64 bytes"));
        }
    }
    let user_namespace = user_namespace(linux, &create)?;
    let mut mounts = Vec::with_capacity(config.mounts.len());
    for (index, one) in config.mounts.iter().enumerate() {
        mounts.push(mount::plan(
            one,
            index,
            &options.cgroup_view,
            user_namespace.as_ref(),
        )?);
    }
    let dev_is_bound = mounts.iter().any(|mount| {
        mount.destination.trim_end_matches('/') == "/dev"
            && matches!(mount.kind, MountKind::Bind { .. })
    });
    let (propagation, recursive) = root_propagation(linux.rootfs_propagation.as_deref())?;
    let absolute = |field: &str, paths: &[String]| -> Result<Vec<String>> {
        match paths.iter().find(|path| !path.starts_with('/')) {
            Some(path) => Err(invalid(field, format!("`{path}` is not an absolute path"))),
            None => Ok(paths.to_vec()),
        }
    };
    Ok(Plan {
        version: VERSION,
        time_offsets: time_offsets(linux, &create)?,
        user_namespace,
        hostname: config.hostname.clone().filter(|name| !name.is_empty()),
        domainname: config.domainname.clone().filter(|name| !name.is_empty()),
        loopback: create.contains(&Namespace::Network),
        root: RootPlan {
            readonly: config.root.as_ref().is_some_and(|root| root.readonly),
            propagation,
            recursive,
        },
        mounts,
        dev_links: !dev_is_bound,
        bind_devices: options.nested,
        devices: if dev_is_bound {
            Vec::new()
        } else {
            devices(&linux.devices)?
        },
        masked: absolute("linux.maskedPaths", &linux.masked_paths)?,
        readonly: absolute("linux.readonlyPaths", &linux.readonly_paths)?,
        sysctls: sysctls(linux, has)?,
        mount_label: linux.mount_label.clone().filter(|label| !label.is_empty()),
        hooks,
        process: process_plan(process, linux, options)?,
        create,
        join,
    })
}

/// Those to create in the kernel's order of rights, those to join.
fn namespaces(linux: &runtime::Linux) -> Result<(Vec<Namespace>, Vec<JoinNamespace>)> {
    let (mut create, mut join) = (Vec::new(), Vec::new());
    let mut seen = BTreeSet::new();
    for (index, namespace) in linux.namespaces.iter().enumerate() {
        let field = format!("linux.namespaces[{index}]");
        let kind = match namespace.kind.as_str() {
            "user" => Namespace::User,
            "ipc" => Namespace::Ipc,
            "uts" => Namespace::Uts,
            "network" => Namespace::Network,
            "pid" => Namespace::Pid,
            "mount" => Namespace::Mount,
            "cgroup" => Namespace::Cgroup,
            "time" => Namespace::Time,
            other => {
                return Err(invalid(
                    field,
                    format!("`{other}` is not a kind of namespace"),
                ));
            }
        };
        if !seen.insert(kind) {
            return Err(invalid(
                field,
                format!("`{}` is listed twice", namespace.kind),
            ));
        }
        match namespace.path.as_deref().filter(|path| !path.is_empty()) {
            None => create.push(kind),
            Some(path) if path.starts_with('/') => {
                join.push(JoinNamespace {
                    kind,
                    path: path.to_owned(),
                });
            }
            Some(path) => {
                return Err(invalid(field, format!("`{path}` is not an absolute path")));
            }
        }
    }
    create.sort_unstable();
    join.sort_unstable_by_key(|join| join.kind);
    Ok((create, join))
}

fn user_namespace(linux: &runtime::Linux, create: &[Namespace]) -> Result<Option<UserNamespace>> {
    let maps = UserNamespace {
        uids: ranges(&linux.uid_mappings),
        gids: ranges(&linux.gid_mappings),
    };
    if !create.contains(&Namespace::User) {
        return if maps == UserNamespace::default() {
            Ok(None)
        } else {
            Err(invalid(
                "linux.uidMappings",
                "id maps without a user namespace",
            ))
        };
    }
    for (field, ranges) in [
        ("linux.uidMappings", &maps.uids),
        ("linux.gidMappings", &maps.gids),
    ] {
        if ranges.is_empty() {
            return Err(invalid(field, "a new user namespace needs a map"));
        }
        if !ranges
            .iter()
            .any(|range| range.container == 0 && range.size > 0)
        {
            return Err(invalid(field, "id 0 of the container is not mapped"));
        }
        check_ranges(field, ranges)?;
    }
    Ok(Some(maps))
}

/// That the kernel can take these ranges: none empty, none beyond the last id, none over another
/// on either side (B24: an overlap would make two ids one).
pub(super) fn check_ranges(field: &str, ranges: &[IdRange]) -> Result<()> {
    for (index, range) in ranges.iter().enumerate() {
        let fits = |first: u32| first.checked_add(range.size).is_some();
        if range.size == 0 || !fits(range.container) || !fits(range.host) {
            return Err(invalid(field, "a range is empty or goes beyond 4294967295"));
        }
        let over = |a: u32, b: u32, size: u32| {
            a < b.saturating_add(size) && b < a.saturating_add(range.size)
        };
        if ranges.iter().skip(index + 1).any(|other| {
            over(range.container, other.container, other.size)
                || over(range.host, other.host, other.size)
        }) {
            return Err(invalid(field, "two ranges overlap"));
        }
    }
    Ok(())
}

/// Offsets make sense for a namespace that is made.
fn time_offsets(linux: &runtime::Linux, create: &[Namespace]) -> Result<Vec<TimeOffset>> {
    let mut offsets = Vec::new();
    for (clock, offset) in &linux.time_offsets {
        let field = format!("linux.timeOffsets[{clock}]");
        if !create.contains(&Namespace::Time) {
            return Err(invalid(field, "needs a new time namespace"));
        }
        if !matches!(clock.as_str(), "monotonic" | "boottime") {
            return Err(invalid(field, "only monotonic and boottime can be set"));
        }
        if offset.nanosecs > 999_999_999 {
            return Err(invalid(field, "nanosecs is above 999999999"));
        }
        offsets.push(TimeOffset {
            clock: clock.clone(),
            secs: offset.secs,
            nanosecs: offset.nanosecs,
        });
    }
    Ok(offsets)
}

/// Those that run until the program does.
fn hooks(hooks: Option<&runtime::Hooks>) -> Result<HooksPlan> {
    let Some(hooks) = hooks else {
        return Ok(HooksPlan::default());
    };
    let plan = |moment: &str, hooks: &[runtime::Hook]| {
        hooks
            .iter()
            .enumerate()
            .map(|(index, hook)| hook_plan(&format!("hooks.{moment}[{index}]"), hook))
            .collect::<Result<Vec<_>>>()
    };
    let mut create_runtime = plan("prestart", &hooks.prestart)?;
    create_runtime.extend(plan("createRuntime", &hooks.create_runtime)?);
    // Checked now, run by the caller.
    plan("poststart", &hooks.poststart)?;
    plan("poststop", &hooks.poststop)?;
    Ok(HooksPlan {
        create_runtime,
        create_container: plan("createContainer", &hooks.create_container)?,
        start_container: plan("startContainer", &hooks.start_container)?,
    })
}

/// Checks a hook, which `field` names.
///
/// # Errors
/// [`Error::Config`].
pub fn hook_plan(field: &str, hook: &runtime::Hook) -> Result<HookPlan> {
    if !hook.path.starts_with('/') {
        let reason = format!("`{}` is not an absolute path", hook.path);
        return Err(invalid(format!("{field}.path"), reason));
    }
    if hook.timeout == Some(0) {
        let reason = "must be greater than zero";
        return Err(invalid(format!("{field}.timeout"), reason));
    }
    Ok(HookPlan {
        path: hook.path.clone(),
        args: if hook.args.is_empty() {
            vec![hook.path.clone()]
        } else {
            hook.args.clone()
        },
        env: hook.env.clone(),
        timeout: hook.timeout,
    })
}

fn root_propagation(word: Option<&str>) -> Result<(Propagation, bool)> {
    Ok(match word {
        None | Some("" | "rprivate") => (Propagation::Private, true),
        Some("private") => (Propagation::Private, false),
        Some("slave") => (Propagation::Slave, false),
        Some("rslave") => (Propagation::Slave, true),
        Some("shared") => (Propagation::Shared, false),
        Some("rshared") => (Propagation::Shared, true),
        Some("unbindable") => (Propagation::Unbindable, false),
        Some("runbindable") => (Propagation::Unbindable, true),
        Some(other) => {
            return Err(invalid(
                "linux.rootfsPropagation",
                format!("`{other}` is not a kind of propagation"),
            ));
        }
    })
}

/// The config's devices, and the default ones that it does not have.
fn devices(devices: &[runtime::Device]) -> Result<Vec<DevicePlan>> {
    let mut planned: Vec<DevicePlan> = Vec::new();
    for (index, device) in devices.iter().enumerate() {
        let field = |name: &str| format!("linux.devices[{index}].{name}");
        if !device.path.starts_with('/') {
            let reason = format!("`{}` is not an absolute path", device.path);
            return Err(invalid(field("path"), reason));
        }
        let kind = match device.kind.as_str() {
            "c" | "u" => DeviceKind::Character,
            "b" => DeviceKind::Block,
            "p" => DeviceKind::Fifo,
            other => {
                let reason = format!("`{other}` is not one of c, u, b and p");
                return Err(invalid(field("type"), reason));
            }
        };
        let number = |name: &str, number: Option<i64>| match number {
            Some(number) => u32::try_from(number)
                .map_err(|_| invalid(field(name), format!("{number} is no device number"))),
            None if kind == DeviceKind::Fifo => Ok(0),
            None => Err(invalid(field(name), "missing")),
        };
        let (major, minor) = (
            number("major", device.major)?,
            number("minor", device.minor)?,
        );
        planned.retain(|other| other.path != device.path);
        planned.push(DevicePlan {
            path: device.path.clone(),
            kind,
            major,
            minor,
            mode: device.file_mode.unwrap_or(0o666) & 0o7777,
            uid: device.uid.unwrap_or(0),
            gid: device.gid.unwrap_or(0),
        });
    }
    for (path, major, minor) in DEFAULT_DEVICES {
        if planned.iter().all(|device| device.path != path) {
            planned.push(DevicePlan {
                path: path.to_owned(),
                kind: DeviceKind::Character,
                major,
                minor,
                mode: 0o666,
                uid: 0,
                gid: 0,
            });
        }
    }
    Ok(planned)
}

/// Only parameters that belong to a namespace of the container may be set.
fn sysctls(linux: &runtime::Linux, has: impl Fn(Namespace) -> bool) -> Result<Vec<Sysctl>> {
    const IPC: [&str; 8] = [
        "kernel.msgmax",
        "kernel.msgmnb",
        "kernel.msgmni",
        "kernel.sem",
        "kernel.shmall",
        "kernel.shmmax",
        "kernel.shmmni",
        "kernel.shm_rmid_forced",
    ];
    let mut planned = Vec::new();
    for (name, value) in &linux.sysctl {
        let field = format!("linux.sysctl[{name}]");
        // The form with slashes exists for interface names with dots in them.
        let dotted = if name.contains('/') && !name.contains('.') {
            name.replace('/', ".")
        } else {
            name.clone()
        };
        if dotted
            .split(['.', '/'])
            .any(|part| part.is_empty() || part == "..")
        {
            return Err(invalid(field, "not the name of a kernel parameter"));
        }
        let needs = if IPC.contains(&dotted.as_str()) || dotted.starts_with("fs.mqueue.") {
            Namespace::Ipc
        } else if dotted.starts_with("net.") {
            Namespace::Network
        } else if dotted == "kernel.domainname" {
            Namespace::Uts
        } else if dotted == "kernel.hostname" {
            return Err(invalid(field, "use the field `hostname`"));
        } else {
            return Err(invalid(
                field,
                "not a parameter of a namespace; it would change the whole machine",
            ));
        };
        if !has(needs) {
            return Err(invalid(
                field,
                format!(
                    "not allowed in the host's {} namespace",
                    match needs {
                        Namespace::Ipc => "ipc",
                        Namespace::Uts => "uts",
                        _ => "network",
                    }
                ),
            ));
        }
        planned.push(Sysctl {
            name: name.clone(),
            value: value.clone(),
        });
    }
    Ok(planned)
}

/// The part of a plan that is the program: of [`plan`], and of an exec with a `process` of its
/// own. Of `linux` only what programs have counts: the filter, the personality, the memory policy.
///
/// # Errors
/// As [`plan`].
pub fn process_plan(
    process: &runtime::Process,
    linux: &runtime::Linux,
    options: &PlanOptions,
) -> Result<ProcessPlan> {
    if process.args.is_empty() {
        return Err(invalid("process.args", "no command"));
    }
    if !process.cwd.starts_with('/') {
        let reason = format!("`{}` is not an absolute path", process.cwd);
        return Err(invalid("process.cwd", reason));
    }
    if let Some(entry) = process
        .env
        .iter()
        .find(|entry| entry.find('=').unwrap_or(0) == 0)
    {
        return Err(invalid(
            "process.env",
            format!("`{entry}` is not NAME=value"),
        ));
    }
    if let Some(adjust) = process.oom_score_adj
        && !(-1000..=1000).contains(&adjust)
    {
        let reason = format!("{adjust} is not between -1000 and 1000");
        return Err(invalid("process.oomScoreAdj", reason));
    }
    let seccomp = match (&options.seccomp, &linux.seccomp) {
        (Some(program), _) => Some(program.clone()),
        (None, Some(section)) => Some(
            knarr_seccomp::compile(section)
                .map_err(|error| invalid("linux.seccomp", error.to_string()))?,
        ),
        (None, None) => None,
    };
    let listener = listener(linux, seccomp.as_ref())?;
    Ok(ProcessPlan {
        args: process.args.clone(),
        env: process.env.clone(),
        cwd: process.cwd.clone(),
        user: options.user.clone().unwrap_or_else(|| UserPlan::Ids {
            uid: process.user.uid,
            gid: process.user.gid,
            additional_gids: process.user.additional_gids.clone(),
        }),
        umask: process.user.umask,
        terminal: process.terminal.then(|| {
            process
                .console_size
                .as_ref()
                .map_or_else(ConsoleSize::default, |size| ConsoleSize {
                    rows: size.height,
                    columns: size.width,
                })
        }),
        capabilities: process
            .capabilities
            .as_ref()
            .map(capabilities)
            .transpose()?,
        rlimits: rlimits(&process.rlimits)?,
        no_new_privileges: process.no_new_privileges,
        oom_score_adj: process.oom_score_adj,
        seccomp,
        listener,
        personality: tuning::personality(linux.personality.as_ref())?,
        scheduler: process
            .scheduler
            .as_ref()
            .map(tuning::scheduler)
            .transpose()?,
        io_priority: process
            .io_priority
            .as_ref()
            .map(tuning::io_priority)
            .transpose()?,
        affinity: tuning::affinity(process.exec_cpu_affinity.as_ref())?,
        memory_policy: linux
            .memory_policy
            .as_ref()
            .map(tuning::memory_policy)
            .transpose()?,
        apparmor: label("process.apparmorProfile", process.apparmor_profile.as_ref())?,
        selinux: label("process.selinuxLabel", process.selinux_label.as_ref())?,
        new_keyring: !options.keep_keyring,
        init: options.init,
    })
}

/// A profile or label, which goes to the kernel as one line.
fn label(field: &str, label: Option<&String>) -> Result<Option<String>> {
    match label {
        Some(label) if label.chars().any(char::is_control) => {
            Err(invalid(field, "has control characters"))
        }
        Some(label) if !label.is_empty() => Ok(Some(label.clone())),
        _ => Ok(None),
    }
}

fn listener(
    linux: &runtime::Linux,
    program: Option<&knarr_seccomp::Program>,
) -> Result<Option<ListenerPlan>> {
    let asks = program.is_some_and(|program| {
        program
            .flags()
            .contains(knarr_sys::seccomp::Flags::NEW_LISTENER)
    });
    let section = linux.seccomp.as_ref();
    let path = section
        .and_then(|section| section.listener_path.as_ref())
        .filter(|path| !path.is_empty());
    match (asks, path) {
        (false, _) => Ok(None),
        (true, None) => Err(invalid(
            "linux.seccomp.listenerPath",
            "missing, and an action is SCMP_ACT_NOTIFY",
        )),
        (true, Some(path)) => Ok(Some(ListenerPlan {
            path: path.clone(),
            metadata: section.and_then(|section| section.listener_metadata.clone()),
        })),
    }
}

fn capabilities(sets: &runtime::Capabilities) -> Result<CapabilitySets> {
    let parse = |set: &str, names: &[String]| -> Result<Vec<Capability>> {
        let mut parsed = names
            .iter()
            .map(|name| {
                Capability::parse(name).ok_or_else(|| {
                    let reason = format!("`{name}` is not a capability");
                    invalid(format!("process.capabilities.{set}"), reason)
                })
            })
            .collect::<Result<Vec<_>>>()?;
        parsed.sort_unstable();
        parsed.dedup();
        Ok(parsed)
    };
    Ok(CapabilitySets {
        bounding: parse("bounding", &sets.bounding)?,
        effective: parse("effective", &sets.effective)?,
        permitted: parse("permitted", &sets.permitted)?,
        inheritable: parse("inheritable", &sets.inheritable)?,
        ambient: parse("ambient", &sets.ambient)?,
    })
}

fn rlimits(limits: &[runtime::Rlimit]) -> Result<Vec<Rlimit>> {
    let mut planned: Vec<Rlimit> = Vec::new();
    for (index, limit) in limits.iter().enumerate() {
        let field = format!("process.rlimits[{index}]");
        if !RLIMITS.contains(&limit.kind.as_str()) {
            return Err(invalid(
                field,
                format!("`{}` is not a resource limit", limit.kind),
            ));
        }
        if limit.soft > limit.hard {
            return Err(invalid(field, "the soft limit is above the hard limit"));
        }
        if planned.iter().any(|other| other.resource == limit.kind) {
            return Err(invalid(field, format!("`{}` is listed twice", limit.kind)));
        }
        planned.push(Rlimit {
            resource: limit.kind.clone(),
            soft: limit.soft,
            hard: limit.hard,
        });
    }
    Ok(planned)
}
