//! The configuration as a whole: what config.json of the runtime specification says happens, or is
//! refused by its name.

#![expect(clippy::unwrap_used, reason = "a test says what it saw by failing")]

use std::io::Read as _;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use knarr_testkit::oci::{Oci, end};
use serde_json::{Value, json};

fn shell(config: &mut Value, script: &str) {
    config["process"]["args"] = json!(["sh", "-c", script]);
}

fn namespace(config: &mut Value, kind: &str, path: Option<&str>) {
    let list = config["linux"]["namespaces"].as_array_mut().unwrap();
    list.retain(|namespace| namespace["type"] != kind);
    list.push(match path {
        Some(path) => json!({"type": kind, "path": path}),
        None => json!({"type": kind}),
    });
}

fn mount(config: &mut Value, mount: Value) {
    config["mounts"].as_array_mut().unwrap().push(mount);
}

#[test]
fn hooks_run_at_their_moments_with_the_state() {
    let oci = Oci::new("hooks");
    let log = oci.dir().join("log");
    let bundle = oci.bundle("web", |config| {
        shell(config, "echo program >>/log; cat /log");
        let hook = |moment: &str, log: &str| {
            json!([{
                "path": "/bin/sh",
                "args": ["sh", "-c", format!(
                    "echo {moment} $A $PWD $(readlink /proc/self/ns/mnt) $(cat) >>{log}"
                )],
                "env": ["A=b"]
            }])
        };
        let host = log.display().to_string();
        for moment in [
            "prestart",
            "createRuntime",
            "createContainer",
            "poststart",
            "poststop",
        ] {
            config["hooks"][moment] = hook(moment, &host);
        }
        config["hooks"]["startContainer"] = hook("startContainer", "/log");
        config["annotations"] = json!({"k": "v"});
    });
    // The container's tree stands at its own place while hooks of the creation run.
    oci.rewrite("web", |config| {
        let more = json!({
            "path": "/bin/sh",
            "args": ["sh", "-c", format!("test -e {}/rootfs/proc/self", bundle.display())]
        });
        config["hooks"]["createContainer"]
            .as_array_mut()
            .unwrap()
            .push(more);
    });
    let out = oci.run_container("web").ok();
    let own = std::fs::read_link("/proc/self/ns/mnt")
        .unwrap()
        .display()
        .to_string();
    let text = std::fs::read_to_string(&log).unwrap();
    let lines: Vec<Vec<&str>> = text
        .lines()
        .map(|line| line.splitn(5, ' ').collect())
        .collect();
    let moments: Vec<&str> = lines.iter().map(|line| line[0]).collect();
    assert_eq!(
        moments,
        [
            "prestart",
            "createRuntime",
            "createContainer",
            "poststart",
            "poststop"
        ]
    );
    for line in &lines {
        assert_eq!(line[1], "b");
        assert_eq!(line[2], "/");
        assert_eq!(line[3] == own, line[0] != "createContainer", "{line:?}");
        let state: Value = serde_json::from_str(line[4]).unwrap();
        assert_eq!(state["id"], "web");
        assert_eq!(state["bundle"], bundle.display().to_string());
        assert_eq!(state["annotations"]["k"], "v");
        let status = match line[0] {
            "poststart" => "running",
            "poststop" => "stopped",
            _ => "creating",
        };
        assert_eq!(state["status"], status, "{line:?}");
        assert_eq!(state["pid"].is_i64(), line[0] != "poststop", "{line:?}");
    }
    let inside: Vec<&str> = out.lines().collect();
    assert_eq!(inside.len(), 2, "{out}");
    assert!(inside[0].starts_with("startContainer b / mnt:"), "{out}");
    assert!(inside[0].contains("\"status\":\"created\""), "{out}");
    assert_eq!(inside[1], "program");
}

#[test]
fn a_hook_that_fails_or_hangs_ends_the_creation() {
    let oci = Oci::new("badhooks");
    oci.bundle("web", |config| shell(config, "sleep 100"));
    let hook = |script: &str, timeout: Option<u32>| {
        let mut hook = json!({"path": "/bin/sh", "args": ["sh", "-c", script]});
        if let Some(timeout) = timeout {
            hook["timeout"] = json!(timeout);
        }
        json!([hook])
    };
    for moment in [
        "prestart",
        "createRuntime",
        "createContainer",
        "startContainer",
        "poststart",
    ] {
        for (script, timeout, said) in [
            ("echo reason >&2; exit 3", None, "hook #0"),
            ("exec sleep 100", Some(1), "longer than"),
        ] {
            oci.rewrite("web", |config| {
                config["hooks"] = json!({moment: hook(script, timeout)});
            });
            let start = Instant::now();
            let ended = oci.run_container("web");
            assert_ne!(ended.code, 0, "{moment}");
            assert!(ended.err.contains(said), "{moment}: {}", ended.err);
            let host = !moment.starts_with("start");
            if host && timeout.is_none() {
                assert!(ended.err.contains("reason"), "{moment}: {}", ended.err);
            }
            assert!(start.elapsed() < Duration::from_secs(50), "{moment}");
            assert!(!oci.root().join("web").exists(), "{moment}");
            assert!(oci.cgroup_dirs().is_empty(), "{moment}");
        }
    }
    // After the end there is nobody to fail any more: a warning.
    oci.rewrite("web", |config| {
        shell(config, "true");
        config["hooks"] = json!({"poststop": hook("exit 1", None)});
    });
    let ended = oci.run_container("web");
    assert_eq!(ended.code, 0);
    assert!(ended.err.contains("level=warning"), "{}", ended.err);
    oci.rewrite("web", |config| {
        config["hooks"] = json!({"prestart": [{"path": "relative"}]})
    });
    assert!(
        oci.run_container("web")
            .err
            .contains("hooks.prestart[0].path")
    );
}

/// A process in namespaces of its own.
struct Other(Child);

impl Other {
    fn new(flags: &[&str]) -> Self {
        let mut child = Command::new("unshare")
            .args(flags)
            .args(["sh", "-c", "echo ready; exec sleep 1000"])
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut ready = [0; 6];
        child
            .stdout
            .as_mut()
            .unwrap()
            .read_exact(&mut ready)
            .unwrap();
        Self(child)
    }

    fn path(&self, kind: &str) -> String {
        format!("/proc/{}/ns/{kind}", self.0.id())
    }
}

impl Drop for Other {
    fn drop(&mut self) {
        self.0.kill().ok();
        self.0.wait().ok();
    }
}

#[test]
fn every_kind_of_namespace_is_joined_by_its_path() {
    let oci = Oci::new("join");
    let other = Other::new(&["--net", "--ipc", "--uts", "--cgroup", "--mount"]);
    let users = Other::new(&["--user", "--map-root-user", "--net"]);
    let times = Other::new(&["--time", "--fork", "--kill-child"]);
    oci.bundle("web", |config| shell(config, "true"));
    for (kind, name, path) in [
        ("network", "net", other.path("net")),
        ("ipc", "ipc", other.path("ipc")),
        ("uts", "uts", other.path("uts")),
        ("cgroup", "cgroup", other.path("cgroup")),
        ("time", "time", times.path("time_for_children")),
        ("mount", "mnt", other.path("mnt")),
        ("pid", "pid", "/proc/self/ns/pid".to_owned()),
        ("user", "user", users.path("user")),
    ] {
        oci.rewrite("web", |config| {
            config["hostname"] = Value::Null;
            shell(config, &format!("readlink /proc/self/ns/{name}"));
            config["linux"]["namespaces"] = json!([
                {"type": "pid"}, {"type": "network"}, {"type": "ipc"}, {"type": "uts"},
                {"type": "mount"}, {"type": "cgroup"}
            ]);
            namespace(config, kind, Some(&path));
            if kind == "user" {
                // What can be mounted there is what its own namespaces allow.
                config["mounts"].as_array_mut().unwrap().retain(|mount| {
                    !matches!(
                        mount["destination"].as_str(),
                        Some("/sys" | "/sys/fs/cgroup" | "/dev/pts")
                    )
                });
            }
        });
        let ended = oci.run_container("web");
        let expected = std::fs::read_link(&path).unwrap().display().to_string();
        assert_eq!(ended.out.trim(), expected, "{kind}: {}", ended.err);
        assert_eq!(ended.code, 0, "{kind}: {}", ended.err);
    }
    oci.rewrite("web", |config| {
        config["linux"]["namespaces"] =
            json!([{"type": "mount"}, {"type": "network", "path": "/proc/1/ns/nothing"}]);
    });
    let ended = oci.run_container("web");
    assert!(ended.err.contains("/proc/1/ns/nothing"), "{}", ended.err);
}

#[test]
fn clocks_scheduling_and_memory_are_as_asked() {
    let oci = Oci::new("tuning");
    oci.bundle("web", |config| {
        shell(
            config,
            "cut -d. -f1 /proc/uptime; cut -d' ' -f19,41 /proc/self/stat; uname -m; \
             ionice -p $$; cat /proc/self/oom_score_adj; grep -m1 -o 'bind[^ ]*' /proc/self/numa_maps; \
             readlink /proc/self/ns/time",
        );
        namespace(config, "time", None);
        config["linux"]["timeOffsets"] = json!({"boottime": {"secs": 100_000_000, "nanosecs": 5}, "monotonic": {"secs": 7, "nanosecs": 0}});
        config["process"]["scheduler"] = json!({"policy": "SCHED_BATCH", "nice": 5});
        config["process"]["ioPriority"] = json!({"class": "IOPRIO_CLASS_BE", "priority": 6});
        config["process"]["oomScoreAdj"] = json!(500);
        config["linux"]["personality"] = json!({"domain": "LINUX32"});
        config["linux"]["seccomp"] = Value::Null;
    });
    let numa = std::path::Path::new("/proc/self/numa_maps").exists();
    if numa {
        oci.rewrite("web", |config| {
            config["linux"]["memoryPolicy"] = json!({"mode": "MPOL_BIND", "nodes": "0"});
        });
    }
    let out = oci.run_container("web").ok();
    let lines: Vec<&str> = out.lines().collect();
    assert!(lines[0].parse::<u64>().unwrap() > 100_000_000, "{out}");
    assert_eq!(lines[1], "5 3", "{out}");
    assert_eq!(lines[2], "i686", "{out}");
    assert!(lines[3].contains("prio 6"), "{out}");
    assert_eq!(lines[4], "500", "{out}");
    assert_eq!(lines[5] == "bind:0", numa, "{out}");
    let own = std::fs::read_link("/proc/self/ns/time")
        .unwrap()
        .display()
        .to_string();
    assert_ne!(lines.last(), Some(&own.as_str()));
    // An exec is in the same time, on the CPUs that its process asks for.
    oci.rewrite("web", |config| shell(config, "sleep 100"));
    oci.create("web");
    oci.run(&["start", "web"]).ok();
    let process = oci.dir().join("process.json");
    let asked = json!({
        "args": ["sh", "-c", "cut -d. -f1 /proc/uptime; grep Cpus_allowed_list /proc/self/status"],
        "cwd": "/", "env": ["PATH=/bin"], "user": {"uid": 0, "gid": 0},
        "execCPUAffinity": {"initial": "0", "final": "1"}
    });
    std::fs::write(&process, asked.to_string()).unwrap();
    let out = oci
        .run(&["exec", "-p", &process.display().to_string(), "web"])
        .ok();
    let lines: Vec<&str> = out.lines().collect();
    assert!(lines[0].parse::<u64>().unwrap() > 100_000_000, "{out}");
    assert_eq!(lines[1], "Cpus_allowed_list:\t1");
}

#[test]
fn mounts_do_what_their_options_say() {
    let oci = Oci::new("mounts");
    let source = oci.dir().join("source");
    std::fs::create_dir_all(source.join("sub")).unwrap();
    std::fs::write(source.join("file"), "text").unwrap();
    std::os::unix::fs::chown(source.join("file"), Some(1000), Some(1000)).unwrap();
    let bundle = oci.bundle("web", |config| {
        let bind = |options: &[&str], destination: &str| {
            json!({"destination": destination, "type": "bind", "source": source, "options": options})
        };
        mount(config, bind(&["rbind", "rro"], "/ro"));
        mount(config, bind(&["rbind", "nosuid", "nodev", "noexec"], "/rw"));
        let mut mapped = bind(&["bind", "idmap"], "/mapped");
        mapped["uidMappings"] = json!([{"containerID": 1000, "hostID": 0, "size": 1}]);
        mapped["gidMappings"] = json!([{"containerID": 1000, "hostID": 0, "size": 1}]);
        mount(config, mapped);
        mount(config, json!({"destination": "/one", "type": "bind", "source": source.join("file"), "options": ["bind", "ro"]}));
        mount(config, json!({"destination": "/rel", "type": "bind", "source": "inbundle", "options": ["bind"]}));
        mount(config, json!({"destination": "/etc", "type": "tmpfs", "source": "x", "options": ["tmpcopyup", "mode=755"]}));
        mount(config, json!({"destination": "/lazy", "type": "tmpfs", "source": "x", "options": ["sync", "dirsync", "noatime", "size=1m"]}));
        shell(
            config,
            "touch /ro/x 2>/dev/null || echo refused; touch /rw/x && echo written; \
             stat -c %u /rw/file /mapped/file; cat /one; echo; cat /rel/file; echo; \
             grep -c root /etc/passwd; touch /etc/new && echo new; \
             grep -E ' /(rw|lazy) ' /proc/mounts | cut -d' ' -f2-4",
        );
    });
    std::fs::create_dir(bundle.join("inbundle")).unwrap();
    std::fs::write(bundle.join("inbundle/file"), "beside").unwrap();
    let out = oci.run_container("web").ok();
    let lines: Vec<&str> = out.lines().collect();
    assert_eq!(
        lines[..8],
        [
            "refused", "written", "1000", "0", "text", "beside", "1", "new"
        ],
        "{out}"
    );
    assert!(lines[8].contains("nosuid,nodev,noexec"), "{out}");
    assert!(
        lines[9].contains("sync")
            && lines[9].contains("noatime")
            && lines[9].contains("size=1024k"),
        "{out}"
    );
    assert!(!bundle.join("rootfs/etc/new").exists());
}

#[test]
fn what_is_mounted_is_mounted_again_with_other_options() {
    let oci = Oci::new("remount");
    oci.bundle("web", |config| {
        mount(config, json!({"destination": "/t", "type": "tmpfs", "source": "x", "options": ["size=1m", "nosuid"]}));
        mount(config, json!({"destination": "/u", "type": "tmpfs", "source": "x", "options": ["size=1m"]}));
        mount(config, json!({"destination": "/t", "type": "tmpfs", "source": "x", "options": ["remount", "size=2m", "noexec"]}));
        mount(config, json!({"destination": "/u", "type": "bind", "source": "/", "options": ["remount", "bind", "ro"]}));
        shell(
            config,
            "touch /t/x && echo written; touch /u/x 2>/dev/null || echo refused; \
             grep -E ' /(t|u) ' /proc/mounts | cut -d' ' -f2-4",
        );
    });
    let out = oci.run_container("web").ok();
    let lines: Vec<&str> = out.lines().collect();
    assert_eq!(lines[..2], ["written", "refused"], "{out}");
    // What is not said again is as it is by default (mount(2)).
    assert!(
        lines[2].starts_with("/t tmpfs rw,noexec") && lines[2].contains("size=2048k"),
        "{out}"
    );
    assert!(
        lines[3].starts_with("/u tmpfs ro,") && lines[3].contains("size=1024k"),
        "{out}"
    );
    assert_eq!(lines.len(), 4, "{out}");
}

#[test]
fn network_devices_move_in_with_their_addresses() {
    let oci = Oci::new("devices");
    oci.bundle("web", |config| {
        shell(
            config,
            "ip -o addr show moved; ip -o link show dev2 | grep -c UP; ls /sys/class/net",
        );
        config["linux"]["netDevices"] = json!({"dev0": {"name": "moved"}, "dev2": {}});
    });
    let run = oci.with_bundle("run", &[], "web");
    // In a network namespace of the call's own, where devices can be made.
    let mut inside = Command::new("unshare");
    inside
        .args(["--net", "sh", "-ec"])
        .arg(
            "ip link add dev0 type veth peer name dev1; ip link add dev2 type veth peer name dev3; \
             ip addr add 10.9.0.1/24 dev dev0; ip addr add fd09::1/64 dev dev0; ip link set dev0 up; \
             \"$0\" \"$@\"; echo; ls /sys/class/net",
        )
        .arg(run.get_program())
        .args(run.get_args())
        .stdin(Stdio::null());
    let ended = end(&mut inside);
    assert_eq!(ended.code, 0, "{}", ended.err);
    let (container, host) = ended.out.split_once("\n\n").unwrap();
    for address in ["10.9.0.1/24", "fd09::1/64"] {
        assert!(container.contains(address), "{container}");
    }
    assert!(container.contains("\n1\n"), "{container}");
    assert!(container.ends_with("dev2\nlo\nmoved"), "{container}");
    // They have died with their namespace, and their other ends with them.
    assert!(!host.contains("dev0") && !host.contains("dev2"), "{host}");
}

#[test]
fn a_listener_gets_the_notifications() {
    let oci = Oci::new("notify");
    let socket = oci.dir().join("notify.sock");
    let listener = std::os::unix::net::UnixListener::bind(&socket).unwrap();
    oci.bundle("web", |config| {
        shell(config, "mkdir /made || echo refused");
        config["linux"]["seccomp"] = json!({
            "defaultAction": "SCMP_ACT_ALLOW",
            "listenerPath": socket,
            "listenerMetadata": "about",
            "syscalls": [{"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_NOTIFY"}]
        });
    });
    let mut run = oci.with_bundle("run", &[], "web");
    let child = run
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let (stream, _) = listener.accept().unwrap();
    let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = rustix::net::RecvAncillaryBuffer::new(&mut space);
    let mut bytes = vec![0; 1 << 16];
    let flags = rustix::net::RecvFlags::CMSG_CLOEXEC;
    let mut slices = [std::io::IoSliceMut::new(&mut bytes)];
    let count = rustix::net::recvmsg(&stream, &mut slices, &mut control, flags)
        .unwrap()
        .bytes;
    let message: Value = serde_json::from_slice(&bytes[..count]).unwrap();
    assert_eq!(message["fds"], json!(["seccompFd"]));
    assert_eq!(message["metadata"], "about");
    assert_eq!(message["state"]["id"], "web");
    assert_eq!(message["pid"], message["state"]["pid"]);
    let fd = control.drain().find_map(|message| match message {
        rustix::net::RecvAncillaryMessage::ScmRights(mut fds) => fds.next(),
        _ => None,
    });
    let link = format!(
        "/proc/self/fd/{}",
        std::os::fd::AsRawFd::as_raw_fd(fd.as_ref().unwrap())
    );
    assert!(
        std::fs::read_link(link)
            .unwrap()
            .display()
            .to_string()
            .contains("seccomp notify")
    );
    // Without a listener the kernel answers for it.
    drop(fd);
    let output = child.wait_with_output().unwrap();
    assert_eq!(String::from_utf8_lossy(&output.stdout), "refused\n");
    oci.rewrite("web", |config| {
        config["linux"]["seccomp"]["listenerPath"] = json!("/nowhere.sock");
    });
    assert!(oci.run_container("web").err.contains("/nowhere.sock"));
    oci.rewrite("web", |config| {
        config["linux"]["seccomp"]
            .as_object_mut()
            .unwrap()
            .remove("listenerPath");
    });
    assert!(
        oci.run_container("web")
            .err
            .contains("SCMP_ACT_NOTIFY, but listenerPath is missing")
    );
}

#[test]
fn a_root_on_a_ramdisk_is_changed_without_pivot() {
    let oci = Oci::new("nopivot");
    oci.bundle("web", |config| {
        shell(
            config,
            "ls -d /bin; ls / | grep -c work; cat /proc/1/comm; true",
        )
    });
    let ended = end(&mut oci.with_bundle("run", &["--no-pivot"], "web"));
    assert_eq!(ended.ok(), "/bin\n0\nsh\n");
}

#[test]
fn what_cannot_be_done_is_refused_by_its_name() {
    let oci = Oci::new("refused");
    type Change = fn(&mut Value);
    let cases: &[(Change, &str)] = &[
        (|c| c["ociVersion"] = json!("2.0.0"), "ociVersion: `2.0.0`"),
        (|c| c["root"]["path"] = json!("nothing"), "nothing"),
        (|c| c["process"]["cwd"] = json!("x"), "process.cwd"),
        (|c| c["process"]["args"] = json!([]), "process.args"),
        (
            |c| c["process"]["rlimits"] = json!([{"type": "RLIMIT_X", "soft": 1, "hard": 1}]),
            "RLIMIT_X",
        ),
        (
            |c| c["process"]["scheduler"] = json!({"policy": "SCHED_X"}),
            "process.scheduler.policy",
        ),
        (
            |c| c["process"]["ioPriority"] = json!({"class": "IOPRIO_CLASS_BE", "priority": 9}),
            "process.ioPriority",
        ),
        (
            |c| c["linux"]["netDevices"] = json!({"eth9": {"name": "x"}}),
            "linux.netDevices: cannot find the network device eth9",
        ),
        (
            |c| c["linux"]["netDevices"] = json!({"eth9": {"name": "a/b"}}),
            "linux.netDevices[eth9]: not the name of a network device",
        ),
        (
            |c| {
                c["linux"]["netDevices"] = json!({"eth8": {"name": "x"}, "eth9": {"name": "x"}});
            },
            "linux.netDevices[eth9]: another one is to be `x` as well",
        ),
        (
            |c| {
                let namespaces = c["linux"]["namespaces"].as_array_mut().unwrap();
                namespaces.retain(|namespace| namespace["type"] != "network");
                c["linux"]["netDevices"] = json!({"eth9": {}});
            },
            "linux.netDevices: cannot be moved without a network namespace",
        ),
        (
            |c| c["mounts"][1]["options"] = json!(["remount", "rbind"]),
            "`remount` changes a mount that is there",
        ),
        (
            |c| {
                let mount = json!({"destination": "/home", "options": ["remount", "bind", "ro"]});
                c["mounts"].as_array_mut().unwrap().push(mount);
            },
            "cannot remount /home",
        ),
        (
            |c| c["linux"]["intelRdt"] = json!({"closID": "x"}),
            "linux.intelRdt",
        ),
        (
            |c| c["linux"]["personality"] = json!({"domain": "BSD"}),
            "linux.personality.domain",
        ),
        (
            |c| c["linux"]["memoryPolicy"] = json!({"mode": "MPOL_X"}),
            "linux.memoryPolicy.mode",
        ),
        (
            |c| c["linux"]["timeOffsets"] = json!({"monotonic": {"secs": 1, "nanosecs": 0}}),
            "linux.timeOffsets",
        ),
        (
            |c| c["linux"]["namespaces"] = json!([{"type": "pid"}]),
            "mount namespace",
        ),
        (
            |c| c["linux"]["mountLabel"] = json!("system_u:object_r:x:s0"),
            "selinux",
        ),
        (|c| c["mounts"][0]["type"] = json!("nosuchfs"), "nosuchfs"),
        (
            |c| c["process"]["user"]["uid"] = json!("root"),
            "config.json",
        ),
    ];
    for (change, said) in cases {
        oci.bundle("web", |config| {
            shell(config, "true");
            change(config);
        });
        let ended = oci.run_container("web");
        assert_eq!(ended.code, 1, "{said}");
        assert!(ended.err.contains(said), "{said}: {}", ended.err);
        assert!(!oci.root().join("web").exists(), "{said}");
    }
    std::fs::write(oci.dir().join("bundles/web/config.json"), "{").unwrap();
    assert!(oci.run_container("web").err.contains("config.json"));
    std::fs::remove_file(oci.dir().join("bundles/web/config.json")).unwrap();
    assert!(
        oci.run_container("web")
            .err
            .contains("JSON specification file config.json not found")
    );
}
