//! knarr-oci by its command line: runc's words, runc's codes, state that outlives the call.

#![expect(clippy::unwrap_used, reason = "a test says what it saw by failing")]

use std::io::Read as _;
use std::os::fd::AsRawFd as _;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use knarr_testkit::eventually;
use knarr_testkit::oci::{Oci, end};
use serde_json::{Value, json};

const LONG: Duration = Duration::from_secs(60);

fn args(config: &mut Value, args: &[&str]) {
    config["process"]["args"] = json!(args);
}

/// What a call says, without what must differ: time, name, remedy.
fn said(text: &str, dir: &Path) -> String {
    let text = text.replace(&dir.display().to_string(), "DIR");
    text.lines()
        .map(|line| {
            let line = match line.split_once("level=") {
                Some((_, rest)) => rest,
                None => line,
            };
            let line = line.replace("knarr-oci", "runc").replace("\\n\"", "\"");
            match line.find(" (install `") {
                Some(at) => format!("{}\"", line.get(..at).unwrap()),
                None => line,
            }
        })
        .collect::<Vec<_>>()
        .join("\n")
}

#[test]
fn callers_hear_what_they_hear_from_runc() {
    let both = [Oci::new("words"), Oci::of("words", "runc")];
    let mut heard = Vec::new();
    for oci in &both {
        oci.bundle("web", |config| args(config, &["sleep", "100"]));
        let mut lines = Vec::new();
        let mut ask = |call: &[&str]| {
            let ended = oci.run(call);
            let out = if ended.code == 0 {
                ended.out
            } else {
                String::new()
            };
            lines.push(format!(
                "{} -> {} {} {}",
                said(&format!("{call:?}"), oci.dir()),
                ended.code,
                said(&ended.err, oci.dir()),
                out
            ));
        };
        for verb in [
            "state", "kill", "start", "delete", "pause", "resume", "ps", "update", "events",
        ] {
            ask(&[verb, "nope"]);
        }
        ask(&["exec", "nope", "true"]);
        ask(&["delete", "--force", "nope"]);
        ask(&["create", "no/id"]);
        ask(&["create", "--bundle", "/", "x"]);
        ask(&["list", "-q"]);
        ask(&["list"]);
        ask(&["list", "-f", "json"]);
        ask(&["create"]);
        ask(&["state", "a", "b"]);
        ask(&["exec"]);
        ask(&["kill"]);
        oci.create("web");
        ask(&[
            "create",
            "--bundle",
            &oci.dir().join("bundles/web").display().to_string(),
            "web",
        ]);
        ask(&["list", "-q"]);
        ask(&["resume", "web"]);
        ask(&["exec", "web", "true"]);
        ask(&["pause", "web"]);
        ask(&["pause", "web"]);
        ask(&["start", "web"]);
        ask(&["exec", "web", "true"]);
        ask(&["delete", "web"]);
        ask(&["resume", "web"]);
        ask(&["start", "web"]);
        ask(&["start", "web"]);
        ask(&["exec", "web", "sh", "-c", "exit 7"]);
        ask(&["exec", "web", "nosuch"]);
        ask(&["exec", "--user", "x", "web", "true"]);
        ask(&["exec", "web"]);
        ask(&["kill", "web", "NOSUCH"]);
        ask(&["delete", "web"]);
        ask(&["kill", "web", "KILL"]);
        eventually(LONG, "it stops", || {
            (oci.status("web") == "stopped").then_some(())
        });
        for verb in ["kill", "start", "pause", "update"] {
            ask(&[verb, "web"]);
        }
        ask(&["exec", "web", "true"]);
        ask(&["kill", "--all", "web", "TERM"]);
        ask(&["delete", "web"]);
        ask(&["state", "web"]);
        heard.push(lines);
    }
    // runc 1.1 says these otherwise, or says less.
    let differs = |line: &str| {
        [
            "[\"update\", \"web\"]",
            "\"--user\", \"x\"",
            "[\"exec\", \"web\"]",
            "[\"exec\"]",
            "[\"kill\"]",
            "[\"kill\", \"--all\"",
        ]
        .iter()
        .any(|known| line.starts_with(known) || line.contains(known))
    };
    for (ours, theirs) in heard[0].iter().zip(&heard[1]) {
        if !differs(ours) {
            assert_eq!(ours, theirs);
        }
    }
    assert_eq!(heard[0].len(), heard[1].len());
}

#[test]
fn a_container_goes_through_its_life() {
    let oci = Oci::new("life");
    oci.bundle("web", |config| {
        args(
            config,
            &["sh", "-c", "echo started > /began; exec sleep 100"],
        );
        config["annotations"] = json!({"io.example.key": "value"});
    });
    let pid_file = oci.dir().join("pid");
    let mut create = oci.with_bundle(
        "create",
        &["--pid-file", &pid_file.display().to_string()],
        "web",
    );
    assert!(
        create
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status()
            .unwrap()
            .success()
    );
    let began = oci.dir().join("bundles/web/rootfs/began");
    let state = oci.state("web");
    assert_eq!(state["status"], "created");
    assert_eq!(state["annotations"]["io.example.key"], "value");
    assert_eq!(
        state["pid"].to_string(),
        std::fs::read_to_string(&pid_file).unwrap()
    );
    assert!(!began.exists());
    // It waits with nothing of its creator but what the program will have.
    let mut fds: Vec<String> = std::fs::read_dir(format!("/proc/{}/fd", state["pid"]))
        .unwrap()
        .map(|fd| {
            std::fs::read_link(fd.unwrap().path())
                .unwrap()
                .display()
                .to_string()
        })
        .filter(|target| !target.starts_with("socket:") && target != "/")
        .collect();
    fds.dedup();
    assert_eq!(fds, ["/dev/null"]);
    oci.run(&["start", "web"]).ok();
    eventually(LONG, "the program runs", || began.exists().then_some(()));
    assert_eq!(oci.status("web"), "running");
    let pids: Value = serde_json::from_str(&oci.run(&["ps", "-f", "json", "web"]).ok()).unwrap();
    assert_eq!(pids, json!([state["pid"]]));
    assert!(oci.run(&["ps", "web"]).ok().contains("sleep 100"));
    let listed: Value = serde_json::from_str(&oci.run(&["list", "-f", "json"]).ok()).unwrap();
    assert_eq!(listed[0]["id"], "web");
    assert_eq!(listed[0]["owner"], "root");
    let stats: Value = serde_json::from_str(&oci.run(&["events", "--stats", "web"]).ok()).unwrap();
    assert_eq!(stats["type"], "stats");
    assert!(stats["data"]["memory"]["usage"]["usage"].as_u64().unwrap() > 0);
    assert!(stats["data"]["cpu"]["usage"]["total"].as_u64().unwrap() > 0);
    assert_eq!(stats["data"]["pids"]["current"], 1);
    let limit = |file: &str| {
        oci.cgroup_dirs()
            .iter()
            .find_map(|dir| std::fs::read_to_string(dir.join(file)).ok())
            .map(|text| text.trim().to_owned())
    };
    // No limit is printed as runc does: the kernel's number under v1, the largest under v2.
    let unlimited = limit("memory.limit_in_bytes").map_or(u64::MAX, |text| text.parse().unwrap());
    assert_eq!(stats["data"]["memory"]["usage"]["limit"], unlimited);
    oci.run(&["pause", "web"]).ok();
    assert_eq!(oci.status("web"), "paused");
    oci.run(&["resume", "web"]).ok();
    oci.run(&["update", "--memory", "64m", "--pids-limit", "7", "web"])
        .ok();
    let memory = limit("memory.limit_in_bytes").or_else(|| limit("memory.max"));
    assert_eq!(memory.as_deref(), Some("67108864"));
    assert_eq!(limit("pids.max").as_deref(), Some("7"));
    let mut from_file = oci.command(&["update", "-r", "-", "web"]);
    let mut child = from_file.stdin(Stdio::piped()).spawn().unwrap();
    std::io::Write::write_all(
        &mut child.stdin.take().unwrap(),
        b"{\"memory\":{\"limit\":33554432},\"pids\":{\"limit\":9}}",
    )
    .unwrap();
    assert!(child.wait().unwrap().success());
    assert_eq!(limit("pids.max").as_deref(), Some("9"));
    assert_ne!(oci.run(&["update", "--memory", "1x", "web"]).code, 0);
    oci.run(&["kill", "web", "9"]).ok();
    eventually(LONG, "it stops", || {
        (oci.status("web") == "stopped").then_some(())
    });
    assert_eq!(oci.state("web")["pid"], 0);
    oci.run(&["delete", "web"]).ok();
    assert!(oci.cgroup_dirs().is_empty());
}

#[test]
fn run_waits_and_passes_on_what_it_hears() {
    let oci = Oci::new("run");
    oci.bundle("web", |config| {
        args(
            config,
            &["sh", "-c", "echo out; echo err >&2; cat; exit 42"],
        )
    });
    let mut run = oci.with_bundle("run", &[], "web");
    let mut child = run
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    std::io::Write::write_all(&mut child.stdin.take().unwrap(), b"in\n").unwrap();
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(42));
    assert_eq!(String::from_utf8_lossy(&output.stdout), "out\nin\n");
    assert_eq!(String::from_utf8_lossy(&output.stderr), "err\n");
    // Deleted when it ended.
    assert_eq!(oci.run(&["state", "web"]).code, 1);
    oci.rewrite("web", |config| {
        args(
            config,
            &[
                "sh",
                "-c",
                "trap 'exit 9' USR1; echo ready; while :; do sleep 0.1; done",
            ],
        );
    });
    let mut run = oci.with_bundle("run", &["--keep"], "web");
    let mut child = run.stdout(Stdio::piped()).spawn().unwrap();
    let mut ready = [0; 6];
    child.stdout.take().unwrap().read_exact(&mut ready).unwrap();
    let pid = rustix::process::Pid::from_child(&child);
    rustix::process::kill_process(pid, rustix::process::Signal::USR1).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(9));
    assert_eq!(oci.status("web"), "stopped");
    oci.run(&["delete", "web"]).ok();
    oci.rewrite("web", |config| args(config, &["nosuch"]));
    let ended = oci.run_container("web");
    assert_eq!(ended.code, 1);
    assert!(
        ended.err.contains("executable file not found in $PATH"),
        "{}",
        ended.err
    );
    oci.rewrite("web", |config| args(config, &["sleep", "100"]));
    let mut detached = oci.with_bundle("run", &["-d"], "web");
    detached.stdout(Stdio::null()).stderr(Stdio::null());
    assert!(detached.status().unwrap().success());
    assert_eq!(oci.status("web"), "running");
    oci.run(&["delete", "-f", "web"]).ok();
}

#[test]
fn exec_does_what_its_flags_and_files_say() {
    let oci = Oci::new("exec");
    oci.bundle("web", |config| {
        args(config, &["sleep", "100"]);
        config["process"]["noNewPrivileges"] = json!(false);
    });
    oci.create("web");
    oci.run(&["start", "web"]).ok();
    let shell = |flags: &[&str], script: &str| {
        let call = [&["exec"], flags, &["web", "sh", "-c", script]].concat();
        oci.run(&call)
    };
    assert_eq!(shell(&[], "exit 5").code, 5);
    assert_eq!(shell(&[], "kill -15 $$").code, 143);
    assert_eq!(
        shell(
            &["-e", "A=b", "-e", "PATH=/bin", "--cwd", "/tmp"],
            "pwd; echo $A $PATH"
        )
        .ok(),
        "/tmp\nb /bin\n"
    );
    assert_eq!(
        shell(
            &["-u", "1000:1001", "-g", "7", "-g", "8"],
            "id -u; id -g; id -G"
        )
        .ok(),
        "1000\n1001\n1001 7 8\n"
    );
    // crun's CVE-2026-30892: one number is a user, not root with a group.
    let status = shell(
        &["-u", "1"],
        "grep -E '^(Uid|Gid|CapEff|CapInh|CapPrm|NoNewPrivs)' /proc/self/status",
    )
    .ok();
    assert_eq!(
        status,
        "Uid:\t1\t1\t1\t1\nGid:\t0\t0\t0\t0\nCapInh:\t0000000000000000\nCapPrm:\t0000000000000000\nCapEff:\t0000000000000000\nNoNewPrivs:\t0\n"
    );
    assert_eq!(
        shell(&["--no-new-privs"], "grep NoNewPrivs /proc/self/status").ok(),
        "NoNewPrivs:\t1\n"
    );
    // Neither of the container's own.
    let cap = shell(
        &["--cap", "CAP_SYS_PTRACE"],
        "grep -E 'CapEff|CapBnd|CapInh' /proc/self/status",
    )
    .ok();
    assert_eq!(
        cap,
        "CapInh:\t0000000000000000\nCapEff:\t0000000020080420\nCapBnd:\t0000000020080420\n"
    );
    let process = oci.dir().join("process.json");
    std::fs::write(
        &process,
        json!({
            "args": ["sh", "-c", "id -u; echo $X; pwd; ulimit -n; umask"],
            "env": ["X=y", "PATH=/bin"],
            "cwd": "/home",
            "user": {"uid": 33, "gid": 34, "umask": 63},
            "rlimits": [{"type": "RLIMIT_NOFILE", "soft": 99, "hard": 99}]
        })
        .to_string(),
    )
    .unwrap();
    let file = process.display().to_string();
    assert_eq!(
        oci.run(&["exec", "--process", &file, "web"]).ok(),
        "33\ny\n/home\n99\n0077\n"
    );
    let pid_file = oci.dir().join("exec.pid").display().to_string();
    let mut detached = oci.command(&["exec", "-d", "--pid-file", &pid_file, "web", "sleep", "99"]);
    detached.stdout(Stdio::null()).stderr(Stdio::null());
    assert!(detached.status().unwrap().success());
    let pid = std::fs::read_to_string(&pid_file).unwrap();
    let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap();
    assert_eq!(line, b"sleep\x0099\0");
    oci.run(&["pause", "web"]).ok();
    assert_eq!(shell(&[], "true").code, 255);
    oci.run(&["resume", "web"]).ok();
    // No file of the caller gets in, and those that are asked for keep their numbers.
    let kept = std::fs::File::open("/etc/hostname").unwrap();
    let with_files = oci.command(&[
        "exec",
        "--preserve-fds",
        "1",
        "web",
        "sh",
        "-c",
        "ls -l /proc/self/fd | wc -l; test -e /proc/self/fd/3",
    ]);
    // Made by a shell, which leaks more than it is asked for.
    let script = format!(
        "exec 3</proc/self/fd/{} 4</etc/passwd 9</etc; exec \"$0\" \"$@\"",
        kept.as_raw_fd()
    );
    rustix::io::fcntl_setfd(&kept, rustix::io::FdFlags::empty()).unwrap();
    let mut sh = Command::new("sh");
    sh.args(["-c", &script])
        .arg(with_files.get_program())
        .args(with_files.get_args());
    let ended = end(sh.stdin(Stdio::null()));
    // 0, 1, 2, the kept one, and the folder that ls reads; and the line "total 0".
    assert_eq!(ended.ok(), "6\n");
}

#[test]
fn terminals_go_to_who_listens() {
    let oci = Oci::new("tty");
    oci.bundle("web", |config| {
        args(config, &["sh", "-c", "tty; stty size; read x; echo got $x"]);
        config["process"]["terminal"] = json!(true);
        config["process"]["consoleSize"] = json!({"height": 24, "width": 80});
    });
    let refused = end(&mut oci.with_bundle("create", &[], "web"));
    assert!(
        refused.err.contains("cannot allocate tty"),
        "{}",
        refused.err
    );
    let socket = oci.dir().join("console.sock");
    let listener = std::os::unix::net::UnixListener::bind(&socket).unwrap();
    let name = socket.display().to_string();
    let mut create = oci.with_bundle("create", &["--console-socket", &name], "web");
    let ended = end(&mut create);
    assert_eq!(ended.code, 0, "{}", ended.err);
    let (stream, _) = listener.accept().unwrap();
    let mut terminal = std::fs::File::from(receive(&stream));
    oci.run(&["start", "web"]).ok();
    std::io::Write::write_all(&mut terminal, b"word\n").unwrap();
    let mut text = Vec::new();
    // EIO at the end of a terminal.
    terminal.read_to_end(&mut text).ok();
    let text = String::from_utf8_lossy(&text);
    // What is typed is echoed somewhere between.
    assert!(text.contains("/dev/pts/0\r\n"), "{text:?}");
    assert!(text.contains("24 80\r\n"), "{text:?}");
    assert!(text.contains("got word"), "{text:?}");
    oci.run(&["delete", "-f", "web"]).ok();
}

/// The descriptor that came over a socket.
fn receive(stream: &std::os::unix::net::UnixStream) -> std::os::fd::OwnedFd {
    let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = rustix::net::RecvAncillaryBuffer::new(&mut space);
    let mut bytes = [0; 64];
    rustix::net::recvmsg(
        stream,
        &mut [std::io::IoSliceMut::new(&mut bytes)],
        &mut control,
        rustix::net::RecvFlags::CMSG_CLOEXEC,
    )
    .unwrap();
    control
        .drain()
        .find_map(|message| match message {
            rustix::net::RecvAncillaryMessage::ScmRights(mut fds) => fds.next(),
            _ => None,
        })
        .unwrap()
}

#[test]
fn a_creation_that_is_killed_leaves_nothing() {
    let oci = Oci::new("killed");
    oci.bundle("web", |config| args(config, &["sleep", "100"]));
    for point in [
        "oci.claimed",
        "oci.cgroup",
        "run.clone",
        "run.cloned",
        "oci.begun",
        "run.mounted",
        "run.created",
        "oci.saved",
    ] {
        let mut create = oci.with_bundle("create", &[], "web");
        let ended = end(create.env("KNARR_FAILPOINT", point));
        assert_ne!(ended.code, 0, "{point}");
        let state = oci.run(&["state", "web"]);
        if point == "oci.saved" {
            // It was whole, but its creator did not live to let it go.
            eventually(LONG, "it ends with its creator", || {
                (oci.status("web") == "stopped").then_some(())
            });
            oci.run(&["delete", "web"]).ok();
        } else {
            assert_eq!(state.code, 1, "{point}: {}", state.out);
            assert!(state.err.contains("container does not exist"), "{point}");
        }
        assert!(
            oci.cgroup_dirs().is_empty(),
            "{point}: {:?}",
            oci.cgroup_dirs()
        );
        assert!(!oci.root().join("web").exists(), "{point}");
    }
    // And the id is free.
    oci.create("web");
}

#[test]
fn features_and_spec_tell_the_truth() {
    let oci = Oci::new("features");
    let features: Value = serde_json::from_str(&oci.run(&["features"]).ok()).unwrap();
    assert_eq!(features["ociVersionMax"], "1.3.0");
    assert_eq!(features["linux"]["cgroup"]["rdma"], true);
    for option in features["mountOptions"].as_array().unwrap() {
        let option = option.as_str().unwrap();
        let bind = ["bind", "rbind", "idmap", "ridmap"].contains(&option);
        let recursive = option.starts_with('r') && !["ro", "rw", "relatime"].contains(&option);
        let id = format!("m-{option}");
        // Each is taken where it makes sense; none is passed to a file system as data.
        if bind || recursive || option == "tmpcopyup" {
            continue;
        }
        oci.bundle(&id, |config| {
            args(config, &["true"]);
            config["mounts"].as_array_mut().unwrap().push(
                json!({"destination": "/mnt", "type": "tmpfs", "source": "x", "options": [option]}),
            );
        });
        let ended = oci.run_container(&id);
        // Mandatory locks are gone from Linux 5.15 on, which only warns.
        assert_eq!(ended.code, 0, "{option}: {}", ended.err);
    }
    let version = oci.run(&["--version"]).ok();
    assert!(version.starts_with("knarr-oci version "), "{version}");
    let again = end(oci.command(&["spec"]).current_dir(oci.dir()));
    assert_eq!(again.code, 0, "{}", again.err);
    let again = end(oci.command(&["spec"]).current_dir(oci.dir()));
    assert!(
        again
            .err
            .contains("File config.json exists. Remove it first")
    );
    let log = oci.dir().join("log");
    let name = log.display().to_string();
    let ended = oci.run(&["--log", &name, "--log-format", "json", "state", "nope"]);
    assert_eq!(ended.err, "container does not exist\n");
    let line: Value = serde_json::from_str(&std::fs::read_to_string(&log).unwrap()).unwrap();
    assert_eq!(
        (&line["level"], &line["msg"]),
        (&json!("error"), &json!("container does not exist"))
    );
}

#[test]
fn flags_of_all_commands_are_served_or_refused_by_name() {
    let oci = Oci::new("globals");
    for flags in [
        &["--debug"][..],
        &["--rootless", "auto"],
        &["--rootless=false"],
        &["--rootless", "true"],
        &["--criu", ""],
    ] {
        let ended = oci.run(&[flags, &["list", "-q"]].concat());
        assert_eq!((ended.code, ended.err.as_str()), (0, ""), "{flags:?}");
    }
    let warned = oci.run(&["--criu", "/usr/sbin/criu", "list", "-q"]);
    assert_eq!(warned.code, 0);
    assert!(
        warned.err.contains("level=warning msg=\"--criu is ignored"),
        "{}",
        warned.err
    );
    let ended = oci.run(&["--rootless", "maybe", "list", "-q"]);
    assert_eq!(ended.code, 1);
    let why = "--rootless: `maybe` is not true, false or auto";
    assert!(ended.err.contains(why), "{}", ended.err);
    for command in ["checkpoint", "restore"] {
        let ended = oci.run(&[command, "web"]);
        assert_eq!(ended.code, 1, "{command}");
        let why = format!("{command} is not served yet");
        assert!(ended.err.contains(&why), "{}", ended.err);
    }
}

#[test]
fn other_engines_get_a_pidfd() {
    let oci = Oci::new("pidfd");
    oci.bundle("web", |config| args(config, &["sleep", "100"]));
    let socket = oci.dir().join("pidfd.sock");
    let listener = std::os::unix::net::UnixListener::bind(&socket).unwrap();
    let name = socket.display().to_string();
    let mut create = oci.with_bundle("create", &["--pidfd-socket", &name], "web");
    assert!(
        create
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status()
            .unwrap()
            .success()
    );
    let (stream, _) = listener.accept().unwrap();
    let pidfd = receive(&stream);
    let info = std::fs::read_to_string(format!("/proc/self/fdinfo/{}", pidfd.as_raw_fd())).unwrap();
    let pid = oci.state("web")["pid"].to_string();
    let line = info.lines().find_map(|line| line.strip_prefix("Pid:"));
    assert_eq!(line.map(str::trim), Some(pid.as_str()));
}

#[test]
fn a_cgroup_that_cannot_be_opened_is_not_taken_for_empty() {
    let oci = Oci::new("unopened");
    oci.bundle("web", |config| args(config, &["sleep", "100"]));
    oci.create("web");
    oci.run(&["start", "web"]).ok();
    let file = oci.root().join("web/state.json");
    let whole = std::fs::read_to_string(&file).unwrap();
    let mut record: Value = serde_json::from_str(&whole).unwrap();
    let path = record["cgroup"]["path"].as_str().unwrap();
    record["cgroup"]["path"] = json!(format!("{path}/cgroup.procs/below"));
    std::fs::write(&file, record.to_string()).unwrap();
    for call in [
        &["kill", "--all", "web", "TERM"][..],
        &["kill", "--all", "web", "KILL"],
        &["ps", "web"],
    ] {
        let ended = oci.run(call);
        assert_eq!(ended.code, 1, "{call:?}");
        let told = ended.err.contains("cgroup.procs/below") && ended.err.contains("ENOTDIR");
        assert!(told, "{call:?}: {}", ended.err);
    }
    std::fs::write(&file, whole).unwrap();
    assert_eq!(oci.status("web"), "running");
}
