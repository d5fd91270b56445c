//! knarr-oci with systemd as the maker of cgroups.

#![expect(clippy::unwrap_used, reason = "a test says what it saw by failing")]

use std::process::{Command, Stdio};
use std::time::Duration;

use knarr_testkit::eventually;
use knarr_testkit::oci::{Ended, Oci, end};
use serde_json::{Value, json};

const LONG: Duration = Duration::from_secs(120);

/// A container in a scope of its own, limited.
fn scoped(config: &mut Value, path: &str, script: &str) {
    config["process"]["args"] = json!(["sh", "-c", script]);
    config["linux"]["cgroupsPath"] = json!(path);
    config["linux"]["resources"]["memory"] = json!({"limit": 64 << 20});
    config["linux"]["resources"]["pids"] = json!({"limit": 20});
}

fn with_systemd(oci: &Oci, verb: &[&str], id: &str) -> Command {
    let bundle = oci.dir().join("bundles").join(id).display().to_string();
    let (verb, flags) = verb.split_first().unwrap();
    let head = ["--systemd-cgroup", verb, "--bundle", &bundle];
    oci.command(&[&head, flags, &[id]].concat())
}

fn made(mut create: Command) {
    let status = create
        .stdout(Stdio::null())
        .stderr(Stdio::inherit())
        .status();
    assert!(status.unwrap().success());
}

fn property(unit: &str, name: &str) -> String {
    let ended = end(Command::new("systemctl").args(["show", "--value", "-p", name, unit]));
    ended.ok().trim().to_owned()
}

#[test]
#[ignore = "for cargo x vm"]
fn a_container_lives_in_a_scope() {
    let oci = Oci::new("scope");
    let id = format!("web-{}", std::process::id());
    let unit = format!("knarrtest-{id}.scope");
    oci.bundle(&id, |config| {
        let script =
            "echo up >/up; cat /proc/self/cgroup /sys/fs/cgroup/memory.max >/seen; exec sleep 1000";
        scoped(config, &format!("system.slice:knarrtest:{id}"), script);
    });
    made(with_systemd(&oci, &["create"], &id));
    let pid = oci.state(&id)["pid"].to_string();
    let place = std::fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap();
    assert_eq!(place.trim(), format!("0::/system.slice/{unit}"));
    assert_eq!(property(&unit, "MemoryMax"), "67108864");
    assert_eq!(property(&unit, "TasksMax"), "20");
    assert_eq!(property(&unit, "Delegate"), "yes");
    oci.run(&["start", &id]).ok();
    let seen = oci.dir().join("bundles").join(&id).join("rootfs/seen");
    let text = eventually(LONG, "the container has looked", || {
        std::fs::read_to_string(&seen)
            .ok()
            .filter(|text| text.lines().count() == 2)
    });
    // Its own cgroup is the root of what it sees.
    assert_eq!(text, "0::/\n67108864\n");
    let inside = oci.run(&[
        "exec",
        &id,
        "cat",
        "/proc/self/cgroup",
        "/sys/fs/cgroup/pids.max",
    ]);
    assert_eq!(inside.ok(), "0::/\n20\n");
    oci.run(&[
        "--systemd-cgroup",
        "update",
        "--memory",
        "96m",
        "--pids-limit",
        "30",
        &id,
    ])
    .ok();
    assert_eq!(property(&unit, "MemoryMax"), "100663296");
    assert_eq!(property(&unit, "TasksMax"), "30");
    end(Command::new("systemctl").arg("daemon-reload")).ok();
    assert_eq!(
        oci.run(&["exec", &id, "cat", "/sys/fs/cgroup/memory.max"])
            .ok(),
        "100663296\n"
    );
    let stats: Value = serde_json::from_str(&oci.run(&["events", "--stats", &id]).ok()).unwrap();
    assert_eq!(stats["data"]["memory"]["usage"]["limit"], 96 << 20);
    assert_eq!(stats["data"]["pids"]["limit"], 30);
    let pids: Value = serde_json::from_str(&oci.run(&["ps", "-f", "json", &id]).ok()).unwrap();
    assert_eq!(pids.to_string(), format!("[{pid}]"));
    oci.run(&["pause", &id]).ok();
    assert_eq!(oci.status(&id), "paused");
    oci.run(&["resume", &id]).ok();
    assert_eq!(oci.status(&id), "running");
    oci.run(&["--systemd-cgroup", "kill", "--all", &id, "KILL"])
        .ok();
    eventually(LONG, "it stops", || {
        (oci.status(&id) == "stopped").then_some(())
    });
    oci.run(&["--systemd-cgroup", "delete", &id]).ok();
    assert_eq!(property(&unit, "LoadState"), "not-found");
    // At once to its end, and by force.
    oci.rewrite(&id, |config| {
        config["process"]["args"] = json!(["sh", "-c", "exit 5"])
    });
    assert_eq!(end(&mut with_systemd(&oci, &["run"], &id)).code, 5);
    assert_eq!(property(&unit, "LoadState"), "not-found");
    oci.rewrite(&id, |config| {
        config["process"]["args"] = json!(["sleep", "1000"])
    });
    made(with_systemd(&oci, &["run", "-d"], &id));
    oci.run(&["delete", "--force", &id]).ok();
    assert_eq!(property(&unit, "LoadState"), "not-found");
}

#[test]
#[ignore = "for cargo x vm"]
fn a_failed_or_killed_creation_leaves_no_scope() {
    let oci = Oci::new("noscope");
    let id = format!("bad-{}", std::process::id());
    let unit = format!("knarrtest-{id}.scope");
    oci.bundle(&id, |config| {
        scoped(config, &format!(":knarrtest:{id}"), "sleep 1000");
        config["process"]["args"] = json!(["nosuch"]);
    });
    let ended = end(&mut with_systemd(&oci, &["run"], &id));
    assert!(
        ended.err.contains("executable file not found in $PATH"),
        "{}",
        ended.err
    );
    assert_eq!(property(&unit, "LoadState"), "not-found");
    oci.rewrite(&id, |config| {
        config["process"]["args"] = json!(["sleep", "1000"])
    });
    for point in ["oci.claimed", "oci.begun", "run.created"] {
        let mut create = with_systemd(&oci, &["create"], &id);
        assert_ne!(end(create.env("KNARR_FAILPOINT", point)).code, 0, "{point}");
        let gone = oci.run(&["state", &id]);
        assert!(
            gone.err.contains("container does not exist"),
            "{point}: {}",
            gone.err
        );
        assert_eq!(property(&unit, "LoadState"), "not-found", "{point}");
    }
    for (path, said) in [
        ("/a/b", "slice:prefix:name"),
        ("noslice:a:b", "it is not the name of a slice"),
    ] {
        oci.rewrite(&id, |config| config["linux"]["cgroupsPath"] = json!(path));
        let ended = end(&mut with_systemd(&oci, &["run"], &id));
        assert!(ended.err.contains(said), "{path}: {}", ended.err);
        assert_eq!(ended.code, 1);
    }
}

/// A call of the user 1000, who has a manager of its own.
fn by_owner(command: &Command) -> Ended {
    let mut user = Command::new("setpriv");
    user.args(["--reuid", "1000", "--regid", "1000", "--init-groups", "--"])
        .arg(command.get_program())
        .args(command.get_args())
        .env("XDG_RUNTIME_DIR", "/run/user/1000")
        .env("HOME", "/home/user")
        .current_dir("/")
        .stdin(Stdio::null());
    end(&mut user)
}

#[test]
#[ignore = "for cargo x vm"]
fn a_user_has_limits_where_cgroups_are_delegated() {
    eventually(LONG, "the user's manager", || {
        std::path::Path::new("/run/user/1000/systemd/private")
            .exists()
            .then_some(())
    });
    let oci = Oci::new("owner");
    let id = format!("own-{}", std::process::id());
    let script = "cat /proc/self/cgroup /sys/fs/cgroup/memory.max /sys/fs/cgroup/pids.max";
    oci.bundle(&id, |config| {
        scoped(config, &format!(":knarrtest:{id}"), script);
        let linux = &mut config["linux"];
        linux["namespaces"]
            .as_array_mut()
            .unwrap()
            .push(json!({"type": "user"}));
        // The user that the machine was made with, and its subordinate ids.
        let map = json!([
            {"containerID": 0, "hostID": 1000, "size": 1},
            {"containerID": 1, "hostID": 100_000, "size": 100}
        ]);
        linux["uidMappings"] = map.clone();
        linux["gidMappings"] = map;
    });
    end(Command::new("chown")
        .args(["-R", "1000:1000"])
        .arg(oci.dir()))
    .ok();
    let expected = "0::/\n67108864\n20\n";
    // By the user's own systemd.
    let ended = by_owner(&with_systemd(&oci, &["run"], &id));
    assert_eq!(ended.out, expected, "{}", ended.err);
    // In a scope that is given away: made by hand below it.
    oci.rewrite(&id, |config| {
        config["linux"]["cgroupsPath"] = Value::from(id.clone())
    });
    let run = oci.with_bundle("run", &[], &id);
    let mut inside = Command::new("systemd-run");
    inside
        .args(["--user", "--scope", "-q", "-p", "Delegate=yes"])
        .arg(run.get_program())
        .args(run.get_args());
    let ended = by_owner(&inside);
    assert_eq!(ended.out, expected, "{}", ended.err);
    // Where nothing is delegated, that is what is said.
    let ended = by_owner(&oci.with_bundle("run", &[], &id));
    assert!(
        ended.err.contains("no cgroup is delegated to this user"),
        "{}",
        ended.err
    );
    assert_eq!(ended.code, 1);
}
