//! systemd as the maker of cgroups, against a real one: these run in the virtual machine
//! (`cargo x vm`), as root, and for some as a user with a manager of its own.
#![expect(clippy::unwrap_used, reason = "these are tests")]

use std::io::Write as _;
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use knarr_cgroup::{Cgroup, Error, Layout, Limits, Plan, Unit};
use knarr_diag::{Class, Explain as _};
use knarr_spec::runtime::{Cpu, DeviceRule, Memory, Pids, Resources};
use knarr_sys::rustix::process::{Pid, geteuid};

/// A shell that waits for a line before it does anything, as a container's init waits at its gate.
struct Held(Child);

impl Held {
    fn new(script: &str) -> Self {
        let mut command = Command::new("sh");
        command.args(["-c", &format!("read go; {script}")]);
        Self(command.stdin(Stdio::piped()).spawn().unwrap())
    }

    fn pid(&self) -> Pid {
        Pid::from_child(&self.0)
    }

    fn go(&mut self) {
        self.0.stdin.take().unwrap().write_all(b"go\n").unwrap();
    }

    /// Its place in the v2 hierarchy.
    fn cgroup(&self) -> String {
        let text = std::fs::read_to_string(format!("/proc/{}/cgroup", self.0.id())).unwrap();
        text.trim().strip_prefix("0::").unwrap().to_owned()
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.0.kill().ok();
        self.0.wait().ok();
    }
}

fn systemctl(args: &[&str]) -> String {
    let user: &[&str] = if geteuid().is_root() {
        &[]
    } else {
        &["--user"]
    };
    let output = Command::new("systemctl")
        .args(user)
        .args(args)
        .output()
        .unwrap();
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

fn property(unit: &str, name: &str) -> String {
    systemctl(&["show", "--value", "-p", name, unit])
}

fn unit(name: &str) -> Unit {
    let path = format!("system.slice:knarrtest:{name}-{}", std::process::id());
    Unit::parse(Some(&path), "id", false).unwrap()
}

fn limited() -> Resources {
    Resources {
        memory: Some(Memory {
            limit: Some(64 << 20),
            swap: Some(64 << 20),
            ..Memory::default()
        }),
        cpu: Some(Cpu {
            shares: Some(512),
            quota: Some(12_300),
            period: Some(50_000),
            cpus: Some("0".to_owned()),
            ..Cpu::default()
        }),
        pids: Some(Pids { limit: 30 }),
        ..Resources::default()
    }
}

fn dir(plan: &Plan) -> PathBuf {
    Path::new("/sys/fs/cgroup").join(plan.path.trim_start_matches('/'))
}

fn file(plan: &Plan, name: &str) -> String {
    let text = std::fs::read_to_string(dir(plan).join(name)).unwrap();
    text.trim().to_owned()
}

fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while !holds() {
        assert!(Instant::now() < deadline, "{what} did not come about");
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
#[ignore = "for cargo x vm"]
fn a_scope_is_made_around_the_first_process_and_keeps_its_limits() {
    let layout = Layout::detect().unwrap();
    let unit = unit("limits");
    let plan = Plan::for_systemd(&layout, &limited(), unit.clone()).unwrap();
    let mut held = Held::new("sleep 100 & wait");
    let mut cgroup = Cgroup::create(&layout, &plan).unwrap();
    assert!(cgroup.dir_fd().is_none() && cgroup.needs_join());
    assert!(!dir(&plan).exists(), "a scope needs a process");
    cgroup.join_limits(held.pid()).unwrap();
    assert!(cgroup.dir_fd().is_some() && !cgroup.needs_join());
    assert_eq!(held.cgroup(), plan.path);
    assert_eq!(plan.path, format!("/system.slice/{}", unit.name));

    let check = |memory: &str, pids: &str| {
        assert_eq!(file(&plan, "memory.max"), memory);
        assert_eq!(file(&plan, "memory.swap.max"), "0");
        assert_eq!(file(&plan, "pids.max"), pids);
        assert_eq!(file(&plan, "cpu.weight"), "59");
        assert_eq!(file(&plan, "cpuset.cpus"), "0");
        assert_eq!(property(&unit.name, "MemoryMax"), memory);
        assert_eq!(property(&unit.name, "TasksMax"), pids);
    };
    check("67108864", "30");
    // The kernel has what was asked for, systemd the next step that it knows.
    assert_eq!(file(&plan, "cpu.max"), "12300 50000");
    assert_eq!(property(&unit.name, "CPUQuotaPerSecUSec"), "250ms");
    assert_eq!(property(&unit.name, "Delegate"), "yes");
    assert_eq!(property(&unit.name, "Slice"), "system.slice");
    systemctl(&["daemon-reload"]);
    check("67108864", "30");

    held.go();
    eventually("two processes", || cgroup.processes().unwrap().len() == 2);
    let limits = Limits {
        memory: Some(96 << 20),
        memory_swap: Some(96 << 20),
        pids: Some(40),
        ..Limits::default()
    };
    cgroup.update(&limits).unwrap();
    check("100663296", "40");
    systemctl(&["daemon-reload"]);
    check("100663296", "40");

    cgroup.freeze().unwrap();
    assert!(cgroup.is_frozen().unwrap());
    cgroup.thaw().unwrap();
    // Another process finds it by its plan, and may enter it.
    let again = Cgroup::open(&layout, cgroup.plan()).unwrap();
    assert!(again.dir_fd().is_some() && !again.needs_join());
    again.kill().unwrap();
    assert_eq!(held.0.wait().unwrap().signal(), Some(9));
    Cgroup::remove(&layout, cgroup.plan()).unwrap();
    assert!(!dir(&plan).exists());
    assert_eq!(property(&unit.name, "LoadState"), "not-found");
    Cgroup::remove(&layout, cgroup.plan()).unwrap();
}

#[test]
#[ignore = "for cargo x vm"]
fn device_rules_hold_in_a_scope_and_after_a_reload() {
    let layout = Layout::detect().unwrap();
    let allow = DeviceRule {
        allow: true,
        kind: Some("c".to_owned()),
        major: Some(1),
        minor: Some(3),
        access: Some("rw".to_owned()),
    };
    let resources = Resources {
        devices: vec![DeviceRule::default(), allow],
        ..Resources::default()
    };
    let plan = Plan::for_systemd(&layout, &resources, unit("devices")).unwrap();
    let script = "cat /dev/null && ! head -c 1 /dev/zero 2>/dev/null; echo $? >$OUT; sleep 100";
    let out = tempfile::tempdir().unwrap();
    let run = |name: &str| {
        let path = out.path().join(name);
        let mut held = Held::new(&script.replace("$OUT", path.to_str().unwrap()));
        let cgroup = Cgroup::create(&layout, &plan).unwrap();
        cgroup.join_limits(held.pid()).unwrap();
        systemctl(&["daemon-reload"]);
        held.go();
        eventually("an answer", || {
            std::fs::read_to_string(&path).is_ok_and(|text| !text.is_empty())
        });
        cgroup.kill().unwrap();
        held.0.wait().unwrap();
        Cgroup::remove(&layout, &plan).unwrap();
        std::fs::read_to_string(&path).unwrap()
    };
    assert_eq!(run("first"), "0\n");
    // The same name again, as after a restart.
    assert_eq!(run("second"), "0\n");
}

#[test]
#[ignore = "for cargo x vm"]
fn a_failed_unit_is_forgotten_and_a_live_one_is_told() {
    let layout = Layout::detect().unwrap();
    let unit = unit("failed");
    let plan = Plan::for_systemd(&layout, &Resources::default(), unit.clone()).unwrap();
    // A scope whose time is over has failed, and stays listed.
    let status = Command::new("systemd-run")
        .args([
            "--scope",
            "-q",
            "-p",
            "RuntimeMaxSec=1",
            "--unit",
            &unit.name,
        ])
        .args(["sleep", "100"])
        .stderr(Stdio::null())
        .status()
        .unwrap();
    assert!(!status.success());
    eventually("a failed unit", || {
        property(&unit.name, "ActiveState") == "failed"
    });
    let held = Held::new("sleep 100");
    let cgroup = Cgroup::create(&layout, &plan).unwrap();
    cgroup.join_limits(held.pid()).unwrap();

    let other = Held::new("sleep 100");
    let second = Cgroup::create(&layout, &plan).unwrap();
    let error = second.join_limits(other.pid()).unwrap_err();
    assert_eq!(error.code(), "systemd-unit-failed");
    let text = error.to_string();
    assert!(
        text.contains(&unit.name) && text.contains("already"),
        "{text}"
    );

    cgroup.kill().unwrap();
    drop(held);
    Cgroup::remove(&layout, &plan).unwrap();
    assert_eq!(property(&unit.name, "LoadState"), "not-found");
}

#[test]
#[ignore = "for cargo x vm"]
fn a_slice_of_ones_own_is_made_where_its_name_says() {
    let layout = Layout::detect().unwrap();
    let unit = Unit::parse(Some("knarrtest-inner.slice::x1"), "id", false).unwrap();
    let plan = Plan::for_systemd(&layout, &limited(), unit).unwrap();
    assert_eq!(plan.path, "/knarrtest.slice/knarrtest-inner.slice/x1.scope");
    let held = Held::new("sleep 100");
    let cgroup = Cgroup::create(&layout, &plan).unwrap();
    cgroup.join_limits(held.pid()).unwrap();
    assert_eq!(held.cgroup(), plan.path);
    cgroup.kill().unwrap();
    drop(held);
    Cgroup::remove(&layout, &plan).unwrap();
    systemctl(&["stop", "knarrtest.slice"]);
}

/// Runs a test of this file as the user 1000, who has a manager: below `prefix`.
fn as_user(prefix: &[&str], test: &str) {
    let runtime = Path::new("/run/user/1000");
    eventually("the user's manager", || {
        runtime.join("systemd/private").exists()
    });
    let exe = std::env::current_exe().unwrap();
    let mut command = Command::new("setpriv");
    command
        .args(["--reuid", "1000", "--regid", "1000", "--clear-groups"])
        .args(prefix)
        .arg(exe)
        .args(["--exact", test, "--include-ignored", "--nocapture"])
        .env("XDG_RUNTIME_DIR", runtime)
        .env("KNARR_AS_USER", "1")
        .env("HOME", "/home/user")
        .current_dir("/");
    let output = command.output().unwrap();
    assert!(
        output.status.success(),
        "{}\n{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
}

/// Whether this process is the one that [`as_user`] started.
fn is_user() -> bool {
    std::env::var_os("KNARR_AS_USER").is_some()
}

#[test]
#[ignore = "for cargo x vm"]
fn a_user_has_scopes_of_its_own_manager() {
    if !is_user() {
        return as_user(&[], "a_user_has_scopes_of_its_own_manager");
    }
    let layout = Layout::detect().unwrap();
    let unit = Unit::parse(None, "mine", true).unwrap();
    let resources = Resources {
        memory: Some(Memory {
            limit: Some(64 << 20),
            ..Memory::default()
        }),
        pids: Some(Pids { limit: 20 }),
        ..Resources::default()
    };
    let plan = Plan::for_systemd(&layout, &resources, unit).unwrap();
    let held = Held::new("sleep 100");
    let cgroup = Cgroup::create(&layout, &plan).unwrap();
    cgroup.join_limits(held.pid()).unwrap();
    let place = "/user.slice/user-1000.slice/user@1000.service/user.slice/knarr-mine.scope";
    assert_eq!(held.cgroup(), place);
    assert_eq!(file(&plan, "memory.max"), "67108864");
    assert_eq!(file(&plan, "pids.max"), "20");
    cgroup.kill().unwrap();
    drop(held);
    Cgroup::remove(&layout, &plan).unwrap();
    assert!(!dir(&plan).exists());
}

#[test]
#[ignore = "for cargo x vm"]
fn a_user_without_delegation_is_told_what_to_do() {
    if !is_user() {
        // In the cgroup of the test's own service, which is root's.
        return as_user(&[], "a_user_without_delegation_is_told_what_to_do");
    }
    let layout = Layout::detect().unwrap();
    let error = Plan::from_resources(&layout, &limited(), "knarr-x").unwrap_err();
    assert!(matches!(error, Error::NotDelegated { .. }), "{error}");
    assert_eq!(error.class(), Class::Denied);
    assert!(error.hint().unwrap().contains("systemd-run --user --scope"));
}

#[test]
#[ignore = "for cargo x vm"]
fn a_user_makes_cgroups_where_they_are_delegated() {
    let test = "a_user_makes_cgroups_where_they_are_delegated";
    if !is_user() {
        let scope = [
            "systemd-run",
            "--user",
            "--scope",
            "-q",
            "-p",
            "Delegate=yes",
        ];
        return as_user(&scope, test);
    }
    let layout = Layout::detect().unwrap();
    let resources = Resources {
        pids: Some(Pids { limit: 20 }),
        memory: Some(Memory {
            limit: Some(64 << 20),
            ..Memory::default()
        }),
        ..Resources::default()
    };
    let plan = Plan::from_resources(&layout, &resources, "knarr-deleg").unwrap();
    let place = "/user.slice/user-1000.slice/user@1000.service/knarr-deleg";
    assert_eq!(plan.path, place);
    let cgroup = Cgroup::create(&layout, &plan).unwrap();
    let held = Held::new("sleep 100");
    std::fs::write(dir(&plan).join("cgroup.procs"), held.0.id().to_string()).unwrap();
    assert_eq!(held.cgroup(), place);
    assert_eq!(file(&plan, "memory.max"), "67108864");
    assert_eq!(cgroup.processes().unwrap(), [held.pid()]);
    cgroup.kill().unwrap();
    drop(held);
    Cgroup::remove(&layout, &plan).unwrap();

    // What systemd does not pass on to users is named.
    let refused = Resources {
        block_io: Some(knarr_spec::runtime::BlockIo {
            throttle_read_bps_device: vec![knarr_spec::runtime::ThrottleDevice {
                major: 254,
                minor: 0,
                rate: 1 << 20,
            }],
            ..Default::default()
        }),
        ..Resources::default()
    };
    let plan = Plan::from_resources(&layout, &refused, "knarr-io").unwrap();
    let error = Cgroup::create(&layout, &plan).unwrap_err();
    assert!(matches!(error, Error::Delegate { .. }), "{error}");
    assert!(error.to_string().contains("`io`"), "{error}");
    assert!(error.hint().unwrap().contains("Delegate=cpu cpuset io"));
    assert!(!dir(&plan).exists(), "what was made is gone");
}
