//! The whole step, as a golden file, and what single flags change in it.

use serde_json::Value;

use knarr_runtime::CgroupHierarchy;

use super::*;
use crate::check::{self, Filter};

fn facts() -> Facts {
    Facts {
        cpus: 2,
        cpu_list: "0-1".to_owned(),
        memory_nodes: "0".to_owned().into(),
        capabilities: (1 << 41) - 1,
        open_files: 1 << 20,
        thermal: vec!["/sys/devices/system/cpu/cpu0/thermal_throttle".to_owned()],
        hostname: "machine".to_owned(),
    }
}

fn record(config: &str, host: &str) -> Record {
    let mut record = crate::record::tests::example();
    record.config = serde_json::from_str(config).unwrap();
    record.host = serde_json::from_str(host).unwrap();
    record.mounts.clear();
    record.ids = None;
    check::settle(&mut record.config, &mut record.host, &facts()).unwrap();
    record.config.hostname = "0123456789ab".to_owned();
    record
}

fn build(record: &Record) -> Config {
    let security = check::security(&record.host).unwrap();
    let files = Files {
        hosts: "/c/hosts".to_owned(),
        resolv_conf: "/c/resolv.conf".to_owned(),
        hostname: "/c/hostname".to_owned(),
    };
    config(&Input {
        record,
        facts: &facts(),
        security: &security,
        joined: &Joined::default(),
        files: Some(&files),
        devices: &[],
        seccomp: None,
    })
    .unwrap()
}

fn with(config: &str, host: &str) -> Value {
    serde_json::to_value(build(&record(config, host))).unwrap()
}

#[test]
fn the_default_container_is_dockers() {
    let config = build(&record(r#"{"Cmd": ["sh"]}"#, "{}"));
    let text = serde_json::to_string_pretty(&config).unwrap() + "\n";
    crate::golden("default-config.json", &text);
}

#[test]
fn flags_change_what_they_name() {
    let at = |value: &Value, path: &str| value.pointer(path).cloned().unwrap_or_default();
    let cmd = r#"{"Cmd": ["sh"]}"#;
    for (config, host, path, expected) in [
        (
            r#"{"Cmd": ["a"], "Entrypoint": ["b"]}"#,
            "{}",
            "/process/args",
            r#"["b", "a"]"#,
        ),
        (
            r#"{"Cmd": ["a"], "WorkingDir": "/srv"}"#,
            "{}",
            "/process/cwd",
            r#""/srv""#,
        ),
        (
            r#"{"Cmd": ["a"], "Tty": true}"#,
            "{}",
            "/process/env/2",
            r#""TERM=xterm""#,
        ),
        (
            r#"{"Cmd": ["a"], "Env": ["PATH=/bin"]}"#,
            "{}",
            "/process/env/0",
            r#""PATH=/bin""#,
        ),
        (cmd, r#"{"ReadonlyRootfs": true}"#, "/root/readonly", "true"),
        (
            cmd,
            r#"{"CapDrop": ["ALL"]}"#,
            "/process/capabilities/bounding",
            "null",
        ),
        (cmd, r#"{"Privileged": true}"#, "/linux/maskedPaths", "null"),
        (
            cmd,
            r#"{"Privileged": true}"#,
            "/linux/resources/devices/0/allow",
            "true",
        ),
        (
            cmd,
            r#"{"SecurityOpt": ["no-new-privileges"]}"#,
            "/process/noNewPrivileges",
            "true",
        ),
        (
            cmd,
            r#"{"SecurityOpt": ["systempaths=unconfined"]}"#,
            "/linux/readonlyPaths",
            "null",
        ),
        (
            cmd,
            r#"{"Memory": 8388608}"#,
            "/linux/resources/memory/swap",
            "16777216",
        ),
        (
            cmd,
            r#"{"NanoCpus": 1500000000}"#,
            "/linux/resources/cpu/quota",
            "150000",
        ),
        (
            cmd,
            r#"{"PidsLimit": 7}"#,
            "/linux/resources/pids/limit",
            "7",
        ),
        (cmd, r#"{"OomScoreAdj": -5}"#, "/process/oomScoreAdj", "-5"),
        (
            cmd,
            r#"{"Ulimits": [{"Name": "nofile", "Soft": 5, "Hard": -1}]}"#,
            "/process/rlimits/0/hard",
            "18446744073709551615",
        ),
        (
            cmd,
            r#"{"Sysctls": {"net/core/somaxconn": "9"}}"#,
            "/linux/sysctl/net.core.somaxconn",
            r#""9""#,
        ),
        (cmd, r#"{"UTSMode": "host"}"#, "/hostname", "null"),
        (
            cmd,
            r#"{"ShmSize": 4096}"#,
            "/mounts/6/options/4",
            r#""size=4096""#,
        ),
        (
            cmd,
            r#"{"Annotations": {"a": "b"}}"#,
            "/annotations/a",
            r#""b""#,
        ),
    ] {
        let value = with(config, host);
        let expected: Value = serde_json::from_str(expected).unwrap();
        assert_eq!(at(&value, path), expected, "{config} {host} {path}");
    }
}

#[test]
fn namespaces_are_new_the_hosts_or_anothers() {
    let kinds = |host: &str| -> String {
        let config = build(&record(r#"{"Cmd": ["sh"]}"#, host));
        let all = config.linux.unwrap().namespaces;
        all.iter()
            .map(|namespace| namespace.kind.as_str())
            .collect::<Vec<_>>()
            .join(" ")
    };
    assert_eq!(kinds("{}"), "mount network uts pid ipc cgroup");
    assert_eq!(
        kinds(r#"{"NetworkMode": "host", "PidMode": "host"}"#),
        "mount uts ipc cgroup"
    );
    assert_eq!(
        kinds(r#"{"UTSMode": "host", "IpcMode": "host", "CgroupnsMode": "host"}"#),
        "mount network pid"
    );
}

#[test]
fn what_an_image_says_never_becomes_control() {
    let labels = [
        "knarr.privileged",
        "io.knarr.log",
        "org.opencontainers.runtime.seccomp",
        "io.containerd.logging",
        "run.oci.handler",
        "com.docker.security",
    ];
    let plain = build(&record(r#"{"Cmd": ["sh"]}"#, "{}"));
    for label in labels {
        let mut labelled = record(r#"{"Cmd": ["sh"]}"#, "{}");
        let image: knarr_spec::image::ExecutionConfig =
            serde_json::from_value(serde_json::json!({"Labels": {label: "binary:///bin/sh"}}))
                .unwrap();
        crate::merge::merge(&mut labelled.config, &image);
        assert_eq!(labelled.config.labels.len(), 1);
        assert_eq!(build(&labelled), plain, "{label}");
    }
}

#[test]
fn security_options_are_read() {
    let host = |json: &str| serde_json::from_str(json).unwrap();
    assert_eq!(
        check::security(&host("{}")).unwrap().seccomp,
        Filter::Docker
    );
    let privileged = check::security(&host(r#"{"Privileged": true}"#)).unwrap();
    assert_eq!(privileged.seccomp, Filter::Unconfined);
    let own = host(r#"{"SecurityOpt": ["seccomp={\"defaultAction\":\"SCMP_ACT_ALLOW\"}"]}"#);
    assert!(matches!(
        check::security(&own).unwrap().seccomp,
        Filter::Profile(_)
    ));
}

#[test]
fn sizes_are_read_as_docker_reads_them() {
    for (text, bytes) in [
        ("64m", Some(64 << 20)),
        ("1.5g", Some(3 << 29)),
        ("512", Some(512)),
        ("10KB", Some(10_240)),
        ("1x", None),
        ("", None),
        ("-1", None),
    ] {
        assert_eq!(parse_size(text), bytes, "{text}");
    }
}

#[test]
fn device_rules_are_read() {
    for good in ["c 42:* rmw", "a *:* r", "b 8:0 m"] {
        assert!(devices::parse_rule(good).is_some(), "{good}");
    }
    for bad in ["", "c 42 r", "x 1:1 r", "c 1:1 z", "c -1:1 r"] {
        assert!(devices::parse_rule(bad).is_none(), "{bad}");
    }
}

#[test]
fn v1_hierarchies_are_shown_where_there_are_limits() {
    let mountinfo = || {
        "30 20 0:26 / /sys/fs/cgroup ro,nosuid - tmpfs tmpfs rw,mode=755\n\
         31 30 0:27 / /sys/fs/cgroup/unified rw,nosuid shared:5 - cgroup2 cgroup2 rw,nsdelegate\n\
         32 30 0:28 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,xattr,name=systemd\n\
         33 30 0:29 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct\n"
            .to_owned()
    };
    for (mode, limited) in [(Mode::Unified, true), (Mode::Hybrid, false)] {
        assert_eq!(cgroup_view(mode, limited, mountinfo), CgroupView::Unified);
    }
    let hierarchy = |name: &str, controllers: &str| CgroupHierarchy {
        name: name.to_owned(),
        controllers: controllers.to_owned(),
    };
    let all = CgroupView::Hierarchies(vec![
        hierarchy("unified", ""),
        hierarchy("systemd", "name=systemd"),
        hierarchy("cpu,cpuacct", "cpu,cpuacct"),
    ]);
    assert_eq!(cgroup_view(Mode::Hybrid, true, mountinfo), all);
    assert_eq!(cgroup_view(Mode::Legacy, false, mountinfo), all);
}
