//! The monitor is killed: the container lives, or nothing of it is left.

use std::process::Command;
use std::time::Duration;

use crate::sandbox::{Container, can_run, eventually, monitor};
use knarr_monitor::client::{self, Connection, Swept};
use knarr_monitor::request::{Restart, Streams};
use knarr_monitor::state::Status;

#[test]
fn another_monitor_takes_over_logs_clients_and_the_exit_code() {
    if !can_run("another_monitor_takes_over_logs_clients_and_the_exit_code") {
        return;
    }
    let container = Container::new(
        "trap 'echo last; exit 6' TERM; i=0; while :; do echo $i; i=$((i+1)); sleep 0.02; done",
    );
    let started = container.start();
    container.wait_for_log("1");
    container.kill_monitor();
    drop(started);
    let observed = container.observe().unwrap();
    assert!(observed.alive);
    assert_eq!(observed.state.status, Status::Running);
    assert!(Connection::open(container.run_folder()).is_err());
    let lock = container.lock();
    assert_eq!(
        client::sweep(container.run_folder(), &lock).unwrap(),
        Swept::Alive
    );
    let before = container.logged().len();
    let mut adopted = client::adopt(monitor(), container.run_folder(), lock).unwrap();
    assert_eq!(
        Some(adopted.pid),
        observed.state.process.map(|process| process.pid)
    );
    eventually("the log goes on", || {
        (container.logged().len() > before + 3).then_some(())
    });
    let state = container.connect().stop(None, None, |_| ()).unwrap();
    assert_eq!(state.exit_code, Some(6), "{:?}", state.error);
    assert_eq!(adopted.wait().unwrap(), state);
    // What was written while nobody read waited in the FIFO.
    let numbers: Vec<u32> = container
        .logged()
        .iter()
        .filter_map(|(_, log)| log.trim().parse().ok())
        .collect();
    assert!(
        numbers.windows(2).all(|pair| pair[1] == pair[0] + 1),
        "{numbers:?}"
    );
    assert!(container.logged().iter().any(|(_, log)| log == "last\n"));
    drop(container.lock());
    assert!(container.cgroups().is_empty());
}

#[test]
fn a_container_that_ended_unseen_says_so() {
    if !can_run("a_container_that_ended_unseen_says_so") {
        return;
    }
    let container = Container::new("echo up; sleep 1000");
    let started = container.start();
    container.wait_for_log("up");
    let pid = started.pid;
    container.kill_monitor();
    let init = rustix::process::Pid::from_raw(pid.cast_signed()).unwrap();
    rustix::process::kill_process(init, rustix::process::Signal::KILL).unwrap();
    let observed = eventually("it is seen to be dead", || {
        container.observe().filter(|observed| !observed.alive)
    });
    assert_eq!(observed.state.status, Status::Exited);
    assert_eq!(observed.state.exit_code, Some(255));
    assert!(observed.state.error.unwrap().contains("nobody saw"));
    let lock = container.lock();
    assert_eq!(
        client::sweep(container.run_folder(), &lock).unwrap(),
        Swept::Undone
    );
    assert_eq!(
        client::sweep(container.run_folder(), &lock).unwrap(),
        Swept::Clean
    );
    assert_eq!(container.state().status, Status::Exited);
    assert!(container.cgroups().is_empty());
}

#[test]
fn a_lost_terminal_is_told() {
    if !can_run("a_lost_terminal_is_told") {
        return;
    }
    let container = Container::new("trap '' HUP; echo up; while :; do sleep 1000; done").terminal();
    let started = container.start();
    container.wait_for_log("up");
    container.kill_monitor();
    drop(started);
    let _adopted = client::adopt(monitor(), container.run_folder(), container.lock()).unwrap();
    let error = container.connect().attach(Streams::default()).unwrap_err();
    assert!(error.to_string().contains("terminal"), "{error}");
    assert!(
        container
            .connect()
            .status()
            .unwrap()
            .error
            .unwrap()
            .contains("terminal")
    );
    container.connect().stop(Some(9), None, |_| ()).unwrap();
}

/// Not a test of its own: starts the container that `KNARR_TEST_REQUEST` names, in a process that
/// has a point armed, and tells how far that went by its exit code.
#[test]
fn helper_that_starts_with_a_point_armed() {
    let Some(path) = std::env::var_os("KNARR_TEST_REQUEST") else {
        return;
    };
    let request = knarr_monitor::Request::parse(&std::fs::read(path).unwrap()).unwrap();
    let lock = knarr_fs::Lock::try_exclusive(&request.paths.run.join("lock"))
        .unwrap()
        .unwrap();
    let code = match client::spawn(monitor(), &request, lock) {
        Err(_) => START_FAILED,
        Ok(mut started) => match started.wait() {
            Err(_) => WAIT_FAILED,
            Ok(_) => WENT_WELL,
        },
    };
    std::process::exit(code);
}

const START_FAILED: i32 = 41;
const WAIT_FAILED: i32 = 42;
const WENT_WELL: i32 = 43;

/// Every point on the way of a container that ends, and what its starter sees of the kill.
const POINTS: [(&str, i32); 19] = [
    ("monitor.spawned", START_FAILED),
    ("monitor.undo", START_FAILED),
    ("monitor.mounted", START_FAILED),
    ("monitor.copying", START_FAILED),
    ("monitor.copied", START_FAILED),
    ("monitor.cgroup", START_FAILED),
    ("monitor.stdio", START_FAILED),
    ("monitor.cloned", START_FAILED),
    ("monitor.announced", START_FAILED),
    ("monitor.joined", START_FAILED),
    ("monitor.running", START_FAILED),
    ("monitor.reported", WAIT_FAILED),
    ("monitor.exit", WAIT_FAILED),
    ("monitor.resting", WAIT_FAILED),
    ("monitor.state", WAIT_FAILED),
    ("monitor.rm", WAIT_FAILED),
    ("monitor.removed", WAIT_FAILED),
    ("monitor.told", WENT_WELL),
    ("monitor.cgroup-removed", WENT_WELL),
];

#[test]
fn a_kill_at_every_point_leaves_nothing_after_one_call() {
    if !can_run("a_kill_at_every_point_leaves_nothing_after_one_call") {
        return;
    }
    for (point, code) in POINTS {
        for removed in [false, true] {
            // Points that the other kind of container does not come by.
            let passed = match point {
                "monitor.resting" => !removed,
                "monitor.rm" | "monitor.removed" => removed,
                _ => true,
            };
            if !passed {
                continue;
            }
            let mut container = Container::new("echo up; exit 1");
            if removed {
                container = container.removed();
            } else if point == "monitor.resting" {
                container.request.restart = Restart::OnFailure { max: 1 };
            }
            container.with_volume("/bin");
            let file = container.root().join("request");
            std::fs::write(&file, container.request.to_json().unwrap()).unwrap();
            let status = Command::new(std::env::current_exe().unwrap())
                .args([
                    "--exact",
                    "death::helper_that_starts_with_a_point_armed",
                    "--nocapture",
                ])
                .env("KNARR_TEST_REQUEST", &file)
                .env("KNARR_FAILPOINT", point)
                .stdout(std::process::Stdio::null())
                .stderr(std::process::Stdio::null())
                .status()
                .unwrap();
            assert_eq!(status.code(), Some(code), "{point}, removed: {removed}");
            clean_up_as_the_engine_does(&container, point, removed);
            if !removed && point.starts_with("monitor.cop") {
                container.request.restart = Restart::No;
                container.start().wait().unwrap();
                let volume = container.root().join("volume");
                assert!(volume.join("data/busybox").exists(), "{point}");
                assert!(!volume.join("data/half").exists(), "{point}");
                drop(container.lock());
            }
        }
    }
}

fn clean_up_as_the_engine_does(container: &Container, point: &str, removed: bool) {
    let what = format!("{point}, removed: {removed}");
    let run = container.run_folder();
    if run.exists() {
        let lock = knarr_fs::Lock::exclusive_within(&run.join("lock"), Duration::from_secs(10))
            .unwrap()
            .unwrap_or_else(|| panic!("{what}: the lock is held"));
        // Init dies with its monitor before the program runs, or ends by itself; the program
        // without a reader must not hang either.
        let swept = eventually(&what, || {
            let swept = client::sweep(run, &lock).unwrap_or_else(|e| panic!("{what}: {e}"));
            (swept != Swept::Alive).then_some(swept)
        });
        if swept == Swept::Removed || (removed && swept == Swept::Clean && !run.exists()) {
            assert!(removed, "{what}");
        }
    }
    // A monitor that was not killed is still at it.
    eventually(&format!("{what}: ending"), || {
        client::sweep_ending(&container.request.paths.run_root).unwrap();
        let ending = container.root().join("run/ending");
        knarr_fs::file_names(&ending)
            .unwrap()
            .is_empty()
            .then_some(())
    });
    eventually(&format!("{what}: cgroups"), || {
        container.cgroups().is_empty().then_some(())
    });
    if run.exists() {
        let mut left = knarr_fs::file_names(run).unwrap();
        left.retain(|name| name != "lock" && name != "state.json");
        assert!(left.is_empty(), "{what}: {left:?}");
        if let Some(observed) = container.observe() {
            assert!(!observed.alive, "{what}");
            assert!(
                matches!(observed.state.status, Status::Exited | Status::Created),
                "{what}: {observed:?}"
            );
        }
    } else {
        assert!(removed, "{what}");
    }
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
    assert!(!mounts.contains(container.id.as_str()), "{what}");
}
