//! Plans as text and JSON.

use crate::support::{config, linux, mount, process, shell, strings};
use knarr_runtime::{Plan, PlanOptions, UserPlan};
use knarr_spec::runtime::{Config, Device, IdMapping, Namespace, Rlimit};

fn rich() -> (Config, PlanOptions) {
    let mut config = config(&["sh", "-c", "echo it's"]);
    config.root.as_mut().unwrap().readonly = true;
    config.mounts.push(mount(
        "/data",
        "bind",
        "/srv/data",
        &["rbind", "ro", "rnosuid", "rslave"],
    ));
    config.mounts.push(mount(
        "/run",
        "tmpfs",
        "tmpfs",
        &["tmpcopyup", "noexec", "size=1m"],
    ));
    let linux = linux(&mut config);
    linux.namespaces.push(Namespace {
        kind: "user".to_owned(),
        path: None,
    });
    let map = vec![IdMapping {
        container_id: 0,
        host_id: 100_000,
        size: 65536,
    }];
    (linux.uid_mappings, linux.gid_mappings) = (map.clone(), map);
    linux.namespaces[4].path = Some("/proc/7/ns/net".to_owned());
    linux
        .sysctl
        .insert("net.ipv4.ip_forward".to_owned(), "1".to_owned());
    linux.devices = vec![Device {
        path: "/dev/fuse".to_owned(),
        kind: "c".to_owned(),
        major: Some(10),
        minor: Some(229),
        file_mode: Some(0o660),
        gid: Some(5),
        ..Device::default()
    }];
    let process = process(&mut config);
    process.rlimits = vec![Rlimit {
        kind: "RLIMIT_NOFILE".to_owned(),
        soft: 1024,
        hard: u64::MAX,
    }];
    process.user.umask = Some(0o27);
    process.no_new_privileges = true;
    process.oom_score_adj = Some(-5);
    process.terminal = true;
    let options = PlanOptions {
        user: Some(UserPlan::Lookup {
            spec: "app".to_owned(),
            group_add: strings(&["video"]),
        }),
        init: true,
        ..PlanOptions::default()
    };
    (config, options)
}

/// Compares with a file beside this one; `KNARR_BLESS=1` renews it.
fn golden(name: &str, text: &str) {
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/golden")
        .join(name);
    if std::env::var_os("KNARR_BLESS").is_some() {
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, text).unwrap();
    }
    let expected = std::fs::read_to_string(&path).unwrap_or_default();
    assert_eq!(text, expected, "{name}: KNARR_BLESS=1 renews it");
}

#[test]
fn plans_read_as_before() {
    let plain = knarr_runtime::plan(&config(&["true"]), &PlanOptions::default()).unwrap();
    golden("plain.txt", &format!("{plain}\n"));
    golden(
        "plain.json",
        &format!("{}\n", serde_json::to_string_pretty(&plain).unwrap()),
    );
    let (config, options) = rich();
    let rich = knarr_runtime::plan(&config, &options).unwrap();
    golden("rich.txt", &format!("{rich}\n"));
    golden(
        "rich.json",
        &format!("{}\n", serde_json::to_string_pretty(&rich).unwrap()),
    );
}

#[test]
fn a_plan_survives_the_wire() {
    let (config, options) = rich();
    let plan = knarr_runtime::plan(&config, &options).unwrap();
    let back: Plan = serde_json::from_str(&serde_json::to_string(&plan).unwrap()).unwrap();
    assert_eq!(back, plan);
}

/// A filter that asks a listener about mkdir(2).
fn notifying(default: &str, listener: Option<&str>) -> Option<knarr_spec::runtime::Seccomp> {
    let mut section = serde_json::json!({
        "defaultAction": default,
        "syscalls": [{"names": ["mkdir"], "action": "SCMP_ACT_NOTIFY"}]
    });
    if let Some(path) = listener {
        section["listenerPath"] = path.into();
    }
    Some(serde_json::from_value(section).unwrap())
}

#[test]
fn what_cannot_be_is_told_with_its_field() {
    type Change = fn(&mut Config);
    let cases: &[(Change, &str)] = &[
        (|c| c.process = None, "process: missing"),
        (|c| process(c).args.clear(), "process.args: no command"),
        (
            |c| process(c).cwd = "x".into(),
            "process.cwd: `x` is not an absolute path",
        ),
        (
            |c| process(c).env = strings(&["A"]),
            "process.env: `A` is not NAME=value",
        ),
        (
            |c| {
                process(c).capabilities.as_mut().unwrap().bounding = strings(&["CAP_NO"]);
            },
            "process.capabilities.bounding: `CAP_NO` is not a capability",
        ),
        (
            |c| {
                process(c).rlimits = vec![Rlimit {
                    kind: "RLIMIT_X".into(),
                    soft: 1,
                    hard: 1,
                }];
            },
            "process.rlimits[0]: `RLIMIT_X` is not a resource limit",
        ),
        (
            |c| {
                process(c).rlimits = vec![Rlimit {
                    kind: "RLIMIT_AS".into(),
                    soft: 2,
                    hard: 1,
                }];
            },
            "process.rlimits[0]: the soft limit is above the hard limit",
        ),
        (
            |c| process(c).oom_score_adj = Some(1001),
            "process.oomScoreAdj: 1001 is not between -1000 and 1000",
        ),
        (
            |c| process(c).apparmor_profile = Some("x\ny".into()),
            "process.apparmorProfile: has control characters",
        ),
        (
            |c| c.mounts.push(mount("x", "tmpfs", "x", &[])),
            "mounts[7].destination: `x` is not an absolute path",
        ),
        (
            |c| c.mounts.push(mount("/./", "tmpfs", "x", &[])),
            "mounts[7].destination: a mount over the root is not served",
        ),
        (
            |c| {
                c.mounts
                    .push(mount("/x", "bind", "/y", &["bind", "size=1"]))
            },
            "mounts[7].options: `size=1` is not an option of a bind mount",
        ),
        (
            |c| c.mounts.push(mount("/x", "tmpfs", "x", &["idmap"])),
            "mounts[7].uidMappings: only a bind mount can be id-mapped",
        ),
        (
            |c| c.mounts.push(mount("/x", "bind", "/y", &["bind", "idmap"])),
            "mounts[7].options: an id-mapped mount needs maps, its own or a user namespace's",
        ),
        (
            |c| c.mounts.push(mount("/x", "bind", "/y", &["bind", "sync"])),
            "mounts[7].options: Sync is of the file system, which a bind mount cannot change",
        ),
        (
            |c| {
                c.mounts
                    .push(mount("/x", "tmpfs", "x", &["remount", "rro"]))
            },
            "mounts[7].options: `remount` changes a mount that is there, and only that one",
        ),
        (
            |c| {
                linux(c).time_offsets.insert(
                    "boottime".into(),
                    knarr_spec::runtime::TimeOffset::default(),
                );
            },
            "linux.timeOffsets[boottime]: needs a new time namespace",
        ),
        (
            |c| {
                linux(c).namespaces.push(Namespace {
                    kind: "user".into(),
                    path: None,
                });
                let map = |container_id, host_id, size| knarr_spec::runtime::IdMapping {
                    container_id,
                    host_id,
                    size,
                };
                linux(c).uid_mappings = vec![map(0, 1000, 10), map(20, 1005, 10)];
                linux(c).gid_mappings = vec![map(0, 1000, 10)];
            },
            "linux.uidMappings: two ranges overlap",
        ),
        (
            |c| c.mounts.push(mount("/x", "proc", "x", &["tmpcopyup"])),
            "mounts[7].options: `tmpcopyup` is for tmpfs only",
        ),
        (
            |c| {
                linux(c).namespaces.push(Namespace {
                    kind: "pid".into(),
                    path: None,
                });
            },
            "linux.namespaces[6]: `pid` is listed twice",
        ),
        (
            |c| {
                linux(c).namespaces.push(Namespace {
                    kind: "x".into(),
                    path: None,
                });
            },
            "linux.namespaces[6]: `x` is not a kind of namespace",
        ),
        (
            |c| linux(c).namespaces.retain(|n| n.kind != "mount"),
            "linux.namespaces: a container in the host's mount namespace is not served",
        ),
        (
            |c| linux(c).namespaces.retain(|n| n.kind != "uts"),
            "hostname: cannot be set without a UTS namespace",
        ),
        (
            |c| {
                linux(c).sysctl.insert("vm.swappiness".into(), "1".into());
            },
            "linux.sysctl[vm.swappiness]: not a parameter of a namespace; it would change the \
             whole machine",
        ),
        (
            |c| {
                linux(c).namespaces.retain(|n| n.kind != "network");
                linux(c)
                    .sysctl
                    .insert("net.ipv4.ip_forward".into(), "1".into());
            },
            "linux.sysctl[net.ipv4.ip_forward]: not allowed in the host's network namespace",
        ),
        (
            |c| {
                linux(c)
                    .sysctl
                    .insert("net/../kernel/panic".into(), "1".into());
            },
            "linux.sysctl[net/../kernel/panic]: not the name of a kernel parameter",
        ),
        (
            |c| {
                linux(c).namespaces.push(Namespace {
                    kind: "user".into(),
                    path: None,
                });
            },
            "linux.uidMappings: a new user namespace needs a map",
        ),
        (
            |c| linux(c).seccomp = notifying("SCMP_ACT_ALLOW", None),
            "linux.seccomp: seccomp listener: a rule has SCMP_ACT_NOTIFY, but listenerPath is missing",
        ),
        (
            |c| linux(c).seccomp = notifying("SCMP_ACT_ALLOW", Some("")),
            "linux.seccomp: seccomp listener: a rule has SCMP_ACT_NOTIFY, but listenerPath is missing",
        ),
        (
            |c| linux(c).seccomp = notifying("SCMP_ACT_NOTIFY", Some("/run/agent")),
            "linux.seccomp: seccomp listener: SCMP_ACT_NOTIFY cannot be the default action",
        ),
        (
            |c| linux(c).masked_paths = strings(&["x"]),
            "linux.maskedPaths: `x` is not an absolute path",
        ),
        (
            |c| linux(c).rootfs_propagation = Some("x".into()),
            "linux.rootfsPropagation: `x` is not a kind of propagation",
        ),
        (
            |c| {
                c.hooks = Some(knarr_spec::runtime::Hooks {
                    prestart: vec![knarr_spec::runtime::Hook::default()],
                    ..Default::default()
                });
            },
            "hooks.prestart[0].path: `` is not an absolute path",
        ),
    ];
    for (change, expected) in cases {
        let mut config = shell("true");
        change(&mut config);
        let error = knarr_runtime::plan(&config, &PlanOptions::default()).unwrap_err();
        assert_eq!(error.to_string(), *expected);
    }
}
