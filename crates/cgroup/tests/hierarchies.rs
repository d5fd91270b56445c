//! The crate against the kernel's real hierarchies: as they are, as pure v1 and as pure v2.
//!
//! On a hybrid machine the other views are made in a private mount namespace: the test binary runs
//! itself again below unshare(1) with `KNARR_CGROUP_VIEW` set. Pure v2 is there without the
//! controllers that are bound to v1: the limits must be refused by name. On a machine with pure v2
//! (`cargo x vm`) that has them, they must hold.
#![expect(clippy::unwrap_used, clippy::print_stderr, reason = "these are tests")]

use std::io::Write as _;
use std::os::fd::{AsFd as _, AsRawFd as _};
use std::os::linux::fs::MetadataExt as _;
use std::os::unix::process::{CommandExt as _, ExitStatusExt as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use knarr_cgroup::{Cgroup, Error, Layout, Limits, Mode, Plan};
use knarr_diag::{Class, Explain as _};
use knarr_spec::runtime::{BlockIo, Cpu, DeviceRule, Memory, Pids, Resources};
use knarr_sys::rustix::fs::{fstat, major, minor};
use knarr_sys::rustix::process::{Pid, geteuid};

/// Runs `body` in the machine's own layout and, in processes of their own, as pure v1 and pure v2.
fn in_each_view(test: &str, body: fn(&Layout)) {
    if !geteuid().is_root() {
        eprintln!("SKIP {test}: needs root");
        return;
    }
    let layout = Layout::detect().unwrap();
    if let Ok(view) = std::env::var("KNARR_CGROUP_VIEW") {
        let expected = if view == "v1" {
            Mode::Legacy
        } else {
            Mode::Unified
        };
        assert_eq!(layout.mode(), expected, "{layout:?}");
        return body(&layout);
    }
    body(&layout);
    if layout.mode() != Mode::Hybrid {
        return;
    }
    for (view, script) in [
        ("v1", "umount -l /sys/fs/cgroup/unified"),
        (
            "v2",
            "umount -l /sys/fs/cgroup && mount -t cgroup2 none /sys/fs/cgroup",
        ),
    ] {
        let status = Command::new("unshare")
            .args(["-m", "--propagation", "private", "sh", "-ec"])
            .arg(format!("{script}; exec \"$0\" --exact \"$1\" --nocapture"))
            .arg(std::env::current_exe().unwrap())
            .arg(test)
            .env("KNARR_CGROUP_VIEW", view)
            .status()
            .unwrap();
        assert!(status.success(), "{test} in the view {view}: {status}");
    }
}

/// A cgroup of a test, and what runs in it; both gone at the end.
struct Subject {
    layout: Layout,
    cgroup: Cgroup,
    children: Vec<Child>,
}

impl Subject {
    fn new(layout: &Layout, name: &str) -> Self {
        Self::limited(layout, name, Resources::default()).unwrap()
    }

    /// `None` where the controller is missing and that was told.
    fn limited(layout: &Layout, name: &str, resources: Resources) -> Option<Self> {
        let path = format!("knarr-test-{name}-{}", std::process::id());
        match Plan::from_resources(layout, &resources, &path) {
            Ok(plan) => Some(Self::of(layout, &plan)),
            Err(error) => {
                assert_refused(layout, &error);
                None
            }
        }
    }

    fn of(layout: &Layout, plan: &Plan) -> Self {
        let cgroup = Cgroup::create(layout, plan).unwrap();
        Self {
            layout: layout.clone(),
            cgroup,
            children: Vec::new(),
        }
    }

    /// Starts a shell script that is in the cgroup before its first command.
    fn sh(&mut self, script: &str) -> Pid {
        let mut command = Command::new("sh");
        // Held back until it has been moved, as a container's init is.
        command.args(["-c", &format!("read go; {script}")]);
        command.stdin(Stdio::piped()).process_group(0);
        let mut child = command.spawn().unwrap();
        let pid = Pid::from_child(&child);
        // What CLONE_INTO_CGROUP and the parent do at a start.
        if let Some(path) = self.unified() {
            std::fs::write(path.join("cgroup.procs"), child.id().to_string()).unwrap();
        }
        self.cgroup.join_limits(pid).unwrap();
        child.stdin.take().unwrap().write_all(b"go\n").unwrap();
        self.children.push(child);
        pid
    }

    fn unified(&self) -> Option<PathBuf> {
        let fd = self.cgroup.dir_fd()?;
        Some(std::fs::read_link(format!("/proc/self/fd/{}", fd.as_raw_fd())).unwrap())
    }

    fn wait(&mut self) -> ExitStatus {
        self.children.pop().unwrap().wait().unwrap()
    }
}

/// What pure v2 answers on a machine whose controllers are bound to v1.
fn assert_refused(layout: &Layout, error: &Error) {
    assert_eq!(layout.mode(), Mode::Unified, "{error}");
    let view = std::env::var("KNARR_CGROUP_VIEW");
    assert_eq!(view.as_deref(), Ok("v2"), "this machine has it: {error}");
    assert!(matches!(error, Error::MissingController { .. }), "{error}");
    assert_eq!(error.class(), Class::Unsupported);
    assert!(error.hint().unwrap().contains("available are:"));
}

impl Drop for Subject {
    fn drop(&mut self) {
        self.cgroup.kill().ok();
        for child in &mut self.children {
            child.wait().ok();
        }
        let removed = Cgroup::remove(&self.layout, self.cgroup.plan());
        if !std::thread::panicking() {
            removed.unwrap();
            let gone = Cgroup::open(&self.layout, self.cgroup.plan()).unwrap_err();
            assert_eq!(gone.class(), Class::NotFound);
        }
    }
}

fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(10);
    while !holds() {
        assert!(Instant::now() < deadline, "{what} did not come about");
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn without_limits_only_the_identity_is_made() {
    in_each_view("without_limits_only_the_identity_is_made", |layout| {
        let mut subject = Subject::new(layout, "bare");
        assert_eq!(
            subject.cgroup.dir_fd().is_some(),
            layout.mode() != Mode::Legacy
        );
        assert_eq!(subject.cgroup.needs_join(), layout.mode() == Mode::Legacy);
        if layout.mode() == Mode::Hybrid {
            let name = &subject.cgroup.plan().path;
            for controller in ["pids", "cpu", "blkio", "freezer", "devices"] {
                let path = format!("/sys/fs/cgroup/{controller}{name}");
                assert!(!Path::new(&path).exists(), "{path}");
            }
        }
        assert!(!subject.cgroup.is_populated().unwrap());
        let pid = subject.sh("sleep 60 & wait");
        assert!(subject.cgroup.is_populated().unwrap());
        eventually("the second process", || {
            subject.cgroup.processes().unwrap().len() == 2
        });
        assert!(subject.cgroup.processes().unwrap().contains(&pid));
        // Another process finds the same cgroup by the plan.
        let again = Cgroup::open(layout, subject.cgroup.plan()).unwrap();
        assert_eq!(
            again.processes().unwrap(),
            subject.cgroup.processes().unwrap()
        );
        // Making it twice is no error.
        Cgroup::create(layout, subject.cgroup.plan()).unwrap();
        subject.cgroup.kill().unwrap();
        assert!(!subject.wait().success());
        eventually("the end", || !subject.cgroup.is_populated().unwrap());
        assert_eq!(subject.cgroup.processes().unwrap(), []);
    });
}

#[test]
fn a_frozen_container_stands_still_and_can_be_killed() {
    in_each_view(
        "a_frozen_container_stands_still_and_can_be_killed",
        |layout| {
            let mut subject = Subject::new(layout, "freeze");
            let dir = tempfile::tempdir().unwrap();
            let file = dir.path().join("ticks");
            subject.sh(&format!("while :; do echo . >>{}; done", file.display()));
            let ticks = || {
                std::fs::metadata(&file)
                    .map(|m| m.len())
                    .unwrap_or_default()
            };
            eventually("ticks", || ticks() > 0);
            subject.cgroup.freeze().unwrap();
            assert!(subject.cgroup.is_frozen().unwrap());
            let before = ticks();
            std::thread::sleep(Duration::from_millis(50));
            assert_eq!(ticks(), before);
            subject.cgroup.thaw().unwrap();
            assert!(!subject.cgroup.is_frozen().unwrap());
            eventually("more ticks", || ticks() > before);
            subject.cgroup.freeze().unwrap();
            subject.cgroup.kill().unwrap();
            assert!(!subject.wait().success());
        },
    );
}

#[test]
fn memory_beyond_the_limit_kills_and_is_told() {
    in_each_view("memory_beyond_the_limit_kills_and_is_told", |layout| {
        let bytes = 32 << 20;
        let memory = Memory {
            limit: Some(bytes),
            swap: Some(bytes),
            ..Memory::default()
        };
        let resources = Resources {
            memory: Some(memory),
            ..Resources::default()
        };
        let Some(mut subject) = Subject::limited(layout, "oom", resources) else {
            return;
        };
        assert_eq!(subject.cgroup.oom_kills().unwrap(), 0);
        subject.sh("exec dd if=/dev/zero of=/dev/null bs=200M count=1");
        let status = subject.wait();
        assert_eq!(status.signal(), Some(9), "{status}");
        assert_eq!(subject.cgroup.oom_kills().unwrap(), 1);
        let memory = subject.cgroup.stats().unwrap().memory.unwrap();
        assert_eq!(memory.limit, Some(32 << 20));
        assert!(memory.peak.is_none_or(|peak| peak > 20 << 20), "{memory:?}");
    });
}

#[test]
fn the_limit_of_processes_bites() {
    in_each_view("the_limit_of_processes_bites", |layout| {
        let resources = Resources {
            pids: Some(Pids { limit: 3 }),
            ..Resources::default()
        };
        let Some(mut subject) = Subject::limited(layout, "pids", resources) else {
            return;
        };
        subject.sh("sleep 60 & sleep 60 & sleep 60 & wait");
        let status = subject.wait();
        assert!(!status.success(), "the third fork should have failed");
        let pids = subject.cgroup.stats().unwrap().pids.unwrap();
        assert_eq!((pids.current, pids.limit), (2, Some(3)));
    });
}

#[test]
fn a_quota_throttles_and_can_be_lifted() {
    in_each_view("a_quota_throttles_and_can_be_lifted", |layout| {
        let cpu = Cpu {
            quota: Some(5_000),
            period: Some(50_000),
            ..Cpu::default()
        };
        let resources = Resources {
            cpu: Some(cpu),
            ..Resources::default()
        };
        let Some(mut subject) = Subject::limited(layout, "quota", resources) else {
            return;
        };
        subject.sh("while :; do :; done");
        subject.cgroup.join_stats().unwrap();
        let cpu = |subject: &Subject| subject.cgroup.stats().unwrap().cpu.unwrap();
        eventually("throttling", || cpu(&subject).throttled_periods > 2);
        let now = cpu(&subject);
        assert!(now.throttled > 0 && now.total > 0 && now.periods >= now.throttled_periods);
        let lifted = Limits {
            cpu_quota: Some(-1),
            ..Limits::default()
        };
        subject.cgroup.update(&lifted).unwrap();
        assert_eq!(subject.cgroup.plan().limits.cpu_quota, Some(-1));
        // The period under way may still end throttled.
        std::thread::sleep(Duration::from_millis(60));
        let before = cpu(&subject).throttled_periods;
        std::thread::sleep(Duration::from_millis(200));
        assert_eq!(cpu(&subject).throttled_periods, before);
    });
}

#[test]
fn an_update_limits_what_was_not_limited() {
    in_each_view("an_update_limits_what_was_not_limited", |layout| {
        let mut subject = Subject::new(layout, "update");
        subject.sh("sleep 60 & wait");
        eventually("two processes", || {
            subject.cgroup.processes().unwrap().len() == 2
        });
        // Up, down and up again: v1 wants memory below memory+swap at each step.
        for megabytes in [64, 32, 128] {
            let bytes = megabytes << 20;
            let limits = Limits {
                memory: Some(bytes),
                memory_swap: Some(bytes * 2),
                pids: Some(megabytes),
                ..Limits::default()
            };
            match subject.cgroup.update(&limits) {
                Ok(()) => {}
                Err(error) => return assert_refused(layout, &error),
            }
            let stats = subject.cgroup.stats().unwrap();
            assert_eq!(stats.memory.unwrap().limit, Some(bytes.unsigned_abs()));
            let pids = stats.pids.unwrap();
            assert_eq!(
                (pids.current, pids.limit),
                (2, Some(megabytes.unsigned_abs()))
            );
        }
    });
}

#[test]
fn numbers_come_when_somebody_asks() {
    in_each_view("numbers_come_when_somebody_asks", |layout| {
        let mut subject = Subject::new(layout, "stats");
        subject.sh("sleep 0.2; dd if=/dev/zero of=/dev/null bs=20M count=1; while :; do :; done");
        subject.cgroup.join_stats().unwrap();
        eventually("CPU time", || {
            subject
                .cgroup
                .stats()
                .unwrap()
                .cpu
                .is_some_and(|cpu| cpu.total > 10_000_000)
        });
        eventually("one process", || {
            subject.cgroup.stats().unwrap().pids.unwrap().current == 1
        });
        match subject.cgroup.stats().unwrap().memory {
            Some(memory) => {
                eventually("the peak", || {
                    let memory = subject.cgroup.stats().unwrap().memory.unwrap();
                    memory.peak.is_none_or(|peak| peak > 10 << 20)
                });
                assert!(memory.usage > 0 && memory.limit.is_none(), "{memory:?}");
                assert!(memory.working_set() <= memory.usage && !memory.details.is_empty());
            }
            None => assert_eq!(layout.mode(), Mode::Unified),
        }
    });
}

#[test]
fn devices_are_allowed_and_denied() {
    in_each_view("devices_are_allowed_and_denied", |layout| {
        let rule = |allow, kind: &str, major, minor, access: &str| DeviceRule {
            allow,
            kind: Some(kind.to_owned()),
            major,
            minor,
            access: Some(access.to_owned()),
        };
        let resources = Resources {
            devices: vec![
                rule(false, "a", None, None, "rwm"),
                rule(true, "c", None, None, "m"),
                rule(true, "b", None, None, "m"),
                rule(true, "c", Some(1), Some(3), "rwm"),
                rule(true, "c", Some(1), Some(5), "r"),
            ],
            ..Resources::default()
        };
        let Some(mut subject) = Subject::limited(layout, "devices", resources) else {
            return;
        };
        let dir = tempfile::tempdir().unwrap();
        // The root disk's own number, made anew: reading it is what an escape would try.
        let device = std::fs::metadata("/").unwrap().st_dev();
        let (major, minor) = if major(device) == 0 {
            (7, 0)
        } else {
            (major(device), minor(device))
        };
        let script = format!(
            "cd {}
             mknod disk b {major} {minor} || exit 9
             dd if=disk of=/dev/null bs=512 count=1 2>why && exit 1
             grep -q 'Operation not permitted' why || exit 2
             echo x >/dev/null || exit 3
             head -c 1 /dev/zero >/dev/null || exit 4
             (echo x >/dev/zero) 2>/dev/null && exit 5
             (head -c 1 /dev/urandom >/dev/null) 2>/dev/null && exit 6
             exit 0",
            dir.path().display()
        );
        subject.sh(&script);
        let status = subject.wait();
        assert_eq!(status.code(), Some(0), "{status}");
    });
}

#[test]
fn a_failed_creation_leaves_nothing() {
    in_each_view("a_failed_creation_leaves_nothing", |layout| {
        let name = format!("knarr-test-fail-{}", std::process::id());
        let mut plan = Plan::from_resources(layout, &Resources::default(), &name).unwrap();
        if layout.mode() == Mode::Legacy {
            plan.limits.cpuset_cpus = Some("4000".to_owned());
        } else {
            plan.limits
                .unified
                .insert("cgroup.nonsense".to_owned(), "1".to_owned());
        }
        let error = Cgroup::create(layout, &plan).unwrap_err();
        assert!(matches!(error, Error::Write { .. }), "{error}");
        assert_eq!(
            Cgroup::open(layout, &plan).unwrap_err().class(),
            Class::NotFound
        );
    });
}

#[test]
fn child_cgroups_go_with_their_parent() {
    in_each_view("child_cgroups_go_with_their_parent", |layout| {
        let mut subject = Subject::new(layout, "nested");
        let Some(path) = subject.unified() else {
            return;
        };
        let pid = subject.sh("sleep 60 & wait");
        std::fs::create_dir_all(path.join("a/b")).unwrap();
        std::fs::write(path.join("a/b/cgroup.procs"), child_id(pid)).unwrap();
        assert!(subject.cgroup.processes().unwrap().contains(&pid));
        assert!(subject.cgroup.is_populated().unwrap());
        // While something lives in it, removing tells what is left.
        let error = Cgroup::remove(layout, subject.cgroup.plan()).unwrap_err();
        assert_eq!(error.class(), Class::Busy);
        assert!(matches!(&error, Error::Remove { leftovers, .. } if *leftovers == [path]));
        subject.cgroup.kill().unwrap();
        subject.wait();
    });
}

fn child_id(pid: Pid) -> String {
    pid.as_raw_nonzero().to_string()
}

#[test]
fn a_parent_is_made_and_the_monitors_have_their_place() {
    in_each_view(
        "a_parent_is_made_and_the_monitors_have_their_place",
        |layout| {
            let parent = format!("/knarr-test-parent-{}", std::process::id());
            let path = format!("{parent}/a/knarr-x");
            let plan = Plan::from_resources(layout, &Resources::default(), &path).unwrap();
            drop(Subject::of(layout, &plan));
            for path in [format!("{parent}/a"), parent] {
                Cgroup::remove(
                    layout,
                    &Plan {
                        path,
                        ..plan.clone()
                    },
                )
                .unwrap();
            }
            let monitors = layout.monitors_dir().unwrap();
            assert_eq!(monitors.is_some(), layout.mode() != Mode::Legacy);
            if let Some(fd) = monitors {
                fstat(fd.as_fd()).unwrap();
            }
        },
    );
}

#[test]
fn the_other_limits_reach_the_kernel() {
    in_each_view("the_other_limits_reach_the_kernel", |layout| {
        let cpu = Cpu {
            shares: Some(512),
            cpus: Some("0".to_owned()),
            ..Cpu::default()
        };
        let resources = Resources {
            cpu: Some(cpu),
            block_io: Some(BlockIo {
                weight: Some(300),
                ..BlockIo::default()
            }),
            memory: Some(Memory {
                reservation: Some(1 << 24),
                ..Memory::default()
            }),
            ..Resources::default()
        };
        let Some(mut subject) = Subject::limited(layout, "others", resources) else {
            return;
        };
        let dir = tempfile::tempdir().unwrap();
        let cpus = dir.path().join("cpus");
        subject.sh(&format!(
            "grep Cpus_allowed_list /proc/self/status >{}",
            cpus.display()
        ));
        assert!(subject.wait().success());
        let cpus = std::fs::read_to_string(cpus).unwrap();
        assert_eq!(cpus.split_whitespace().last(), Some("0"));
        let read = |controller: &str, file: &str| {
            let name = &subject.cgroup.plan().path;
            let path = format!("/sys/fs/cgroup/{controller}{name}/{file}");
            std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{path}: {error}"))
        };
        if layout.mode() != Mode::Unified {
            assert_eq!(read("cpu", "cpu.shares").trim(), "512");
            if subject.cgroup.warnings().is_empty() {
                assert_eq!(read("blkio", "blkio.bfq.weight").trim(), "300");
            }
        } else {
            assert_eq!(read(".", "cpu.weight").trim(), "59");
            assert_eq!(read(".", "memory.low").trim(), "16777216");
        }
    });
}
