//! SIGKILL at every named point, then one call on the object: nothing is left that nobody owns, and
//! nothing that was alive was rolled back.
//!
//! The points are read from the sources, so a new one is in the matrix without being listed here;
//! one that no case passes fails the test.
//!
//! Each case runs three times over:
//! 1. *stopped*: the process stops itself at the point and is killed from outside. So the test sees
//!    that the point was passed, and by whom; everybody else has all the time to go on meanwhile.
//! 2. *killed*: the process kills itself at the point, in the middle of the others' work. For points
//!    in the container's first process, which cannot be stopped, this is the only way.
//! 3. *another one*: while the process stands at the point, another one is killed (the command, the
//!    monitor, or the container's first process), then it goes on.

use std::collections::{BTreeMap, BTreeSet};
use std::process::Stdio;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use knarr_testkit::{Knarr, Process, eventually, fixture, wait_for};
use rustix::process::{Pid, Signal, kill_process};

static TURN: Mutex<()> = Mutex::new(());

/// The tests of this file take turns, so that each has the machine for what it stops and kills.
fn turn() -> MutexGuard<'static, ()> {
    TURN.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Every `failpoint!("…")` in the sources that is part of a container's life (or not: of an
/// image's).
fn points(of_images: bool) -> Result<BTreeSet<String>> {
    let mut found = BTreeSet::new();
    let mut folders = vec![knarr_testkit::workspace().join("crates")];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder)? {
            let path = entry?.path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|e| e == "rs") {
                let text = std::fs::read_to_string(&path)?;
                let here = !["cas", "image"].iter().any(|name| {
                    path.starts_with(knarr_testkit::workspace().join("crates").join(name))
                });
                for part in text.split("failpoint!(\"").skip(1) {
                    let name = part.split('"').next().filter(|name| name.contains('.'));
                    // The layer crate has both: layers come with images and are mounted by runs.
                    let image = !here || name.is_some_and(|name| IMAGE_LAYERS.contains(&name));
                    found.extend(name.filter(|_| image == of_images).map(str::to_owned));
                }
            }
        }
    }
    // The failpoint crate's own examples.
    found.retain(|name| !UNREACHED.iter().any(|(unreached, _)| name == unreached));
    ensure!(found.len() >= 10, "the matrix is empty: {found:?}");
    Ok(found)
}

const IMAGE_LAYERS: [&str; 5] = [
    "layer.begun",
    "layer.indexed",
    "layer.synced",
    "layer.published",
    "layer.unpacked",
];

/// Points that no case here passes, and why.
const UNREACHED: &[(&str, &str)] = &[
    (
        "push.begun",
        "an upload to a registry, nothing here: tests/tests/registry.rs",
    ),
    (
        "image.part-hidden",
        "between the images of an index that goes: crates/image/tests/whole.rs",
    ),
    (
        "monitor.log-rotated",
        "between two renames of a log file, no object's life: crates/monitor tests it",
    ),
    (
        "run.created",
        "knarr-oci's two-step create; the monitor takes the path with one wait",
    ),
];

/// Points in the container's first process: SIGSTOP from itself does nothing to it.
const IN_INIT: [&str; 3] = ["run.mounted", "run.gate", "run.exec"];

/// The points of networks and ports, which cases of their own pass.
const NETWORK: &[&str] = &["net.", "network.", "monitor.network-chang"];

/// From these on a program runs, and lives on whoever dies.
const RUNS: [&str; 4] = [
    "monitor.running",
    "monitor.reported",
    "run.started",
    "start.spawned",
];

/// What happens at the point.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum How {
    Stopped,
    Killed,
    Another(Victim),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Victim {
    Command,
    Monitor,
    Init,
}

/// One trial: a Knarr, an armed point, and what came of it.
struct Trial<'a> {
    knarr: &'a Knarr,
    point: &'a str,
    how: How,
    command: Mutex<Option<i32>>,
    /// Who passed the point.
    hits: Mutex<Vec<Process>>,
    over: AtomicBool,
}

impl<'a> Trial<'a> {
    fn new(knarr: &'a Knarr, point: &'a str, how: How) -> Self {
        Self {
            knarr,
            point,
            how,
            command: Mutex::default(),
            hits: Mutex::default(),
            over: AtomicBool::new(false),
        }
    }

    fn fired(&self) -> bool {
        !lock(&self.hits).is_empty()
    }

    /// Runs a command with the point armed: in it, in the monitor that it starts, or in init.
    fn armed(&self, args: &[&str]) -> Result<()> {
        let mode = if self.how == How::Killed { "" } else { ":stop" };
        let mut child = self
            .knarr
            .command(args)
            .env("KNARR_FAILPOINT", format!("{}{mode}", self.point))
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .context("cannot start knarr")?;
        *lock(&self.command) = i32::try_from(child.id()).ok();
        let status = wait_for(Duration::from_secs(25), || child.try_wait().ok().flatten());
        *lock(&self.command) = None;
        let Some(status) = status else {
            child.kill().ok();
            child.wait().ok();
            bail!("`knarr {}` hangs", args.join(" "));
        };
        if self.how == How::Killed && !status.success() {
            lock(&self.hits).push(Process {
                pid: 0,
                state: 'Z',
                command: String::new(),
                inside: false,
            });
        }
        Ok(())
    }

    /// Looks for processes that stopped at the point and deals with them, until the trial is over.
    fn watch(&self) {
        while !self.over.load(Ordering::Relaxed) {
            for process in self.knarr.stopped() {
                match self.how {
                    How::Stopped | How::Killed => kill(process.pid, Signal::KILL),
                    How::Another(victim) => {
                        if let Some(victim) = self.victim(victim, &process) {
                            kill(victim, Signal::KILL);
                            wait_for(Duration::from_secs(2), || is_dead(victim).then_some(()));
                        }
                        kill(process.pid, Signal::CONT);
                    }
                }
                lock(&self.hits).push(process);
            }
            std::thread::sleep(Duration::from_millis(3));
        }
    }

    fn victim(&self, victim: Victim, at: &Process) -> Option<i32> {
        let others = || {
            self.knarr
                .processes()
                .into_iter()
                .filter(|p| p.pid != at.pid)
        };
        match victim {
            Victim::Command => (*lock(&self.command)).filter(|pid| *pid != at.pid),
            Victim::Monitor => others().find(Process::is_monitor).map(|p| p.pid),
            Victim::Init => others().filter(|p| p.inside).map(|p| p.pid).min(),
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn kill(pid: i32, signal: Signal) {
    if let Some(pid) = Pid::from_raw(pid) {
        // It may have ended by itself.
        kill_process(pid, signal).ok();
    }
}

fn is_dead(pid: i32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.is_empty() || stat.contains(") Z ")
}

/// One way through a container's life.
struct Case {
    name: &'static str,
    /// Which points to try; empty means all.
    points: &'static [&'static str],
    run: fn(&Trial<'_>) -> Result<()>,
}

const SLEEP: [&str; 6] = ["run", "-d", "--name", "kk", "busybox", "sleep"];

/// A container that runs, started without a point.
fn running(knarr: &Knarr) -> Result<String> {
    knarr.ok(SLEEP.iter().chain(&["60"]))?;
    knarr.ok(["inspect", "-f", "{{.State.Pid}}", "kk"])
}

/// A container that runs, with the point armed in its monitor. `false` where the start passed it.
fn armed_monitor(trial: &Trial<'_>, args: &[&str]) -> Result<bool> {
    trial.armed(args)?;
    let up = trial
        .knarr
        .run(["inspect", "-f", "{{.State.Status}}", "kk"])?;
    Ok(!trial.fired() && up.text() == "running")
}

fn status(knarr: &Knarr) -> Result<String> {
    knarr.ok(["inspect", "-f", "{{.State.Status}}", "kk"])
}

const CASES: &[Case] = &[
    Case {
        name: "run --rm",
        points: &[],
        run: |trial| trial.armed(&["run", "--rm", "--name", "kk", "busybox", "true"]),
    },
    Case {
        name: "run -d with volumes",
        points: &[],
        run: |trial| {
            let mut args = SLEEP.to_vec();
            args.splice(
                1..1,
                ["-v", "kv:/etc", "-v", "/anonymous", "--userns", "auto"],
            );
            args.push("60");
            trial.armed(&args)?;
            if trial.fired() && trial.how == How::Stopped && RUNS.contains(&trial.point) {
                ensure!(
                    trial.knarr.ok(["exec", "kk", "echo", "alive"])? == "alive",
                    "a container that ran was rolled back"
                );
            }
            Ok(())
        },
    },
    Case {
        name: "run --init -t",
        points: &[
            "run.",
            "monitor.cloned",
            "monitor.announced",
            "monitor.running",
        ],
        run: |trial| {
            let mut args = SLEEP.to_vec();
            args.splice(1..1, ["--init", "-t"]);
            args.push("60");
            trial.armed(&args)
        },
    },
    Case {
        name: "exec",
        points: &["exec.", "run.exec", "engine."],
        run: |trial| {
            let pid = running(trial.knarr)?;
            trial.armed(&["exec", "kk", "true"])?;
            if !matches!(trial.how, How::Another(_)) {
                lives_on(trial.knarr, &pid)?;
            }
            Ok(())
        },
    },
    Case {
        name: "exec -d",
        points: &["exec.", "monitor."],
        run: |trial| {
            if !armed_monitor(trial, &[&SLEEP[..], &["60"]].concat())? {
                return Ok(());
            }
            let pid = trial.knarr.ok(["inspect", "-f", "{{.State.Pid}}", "kk"])?;
            trial.knarr.run(["exec", "-d", "kk", "true"])?;
            if !matches!(trial.how, How::Another(_)) {
                lives_on(trial.knarr, &pid)?;
            }
            Ok(())
        },
    },
    Case {
        name: "commit",
        points: &["commit."],
        run: |trial| {
            let pid = running(trial.knarr)?;
            trial.armed(&["commit", "kk", "kk:committed"])?;
            if !matches!(trial.how, How::Another(_)) {
                // Its monitor sees that nobody holds it still any more.
                wait_for(Duration::from_secs(5), || {
                    (status(trial.knarr).ok()? == "running").then_some(())
                });
                lives_on(trial.knarr, &pid)?;
            }
            trial.knarr.run(["rmi", "kk:committed"])?;
            Ok(())
        },
    },
    Case {
        name: "stop",
        points: &["engine.", "monitor.adopt"],
        run: |trial| {
            running(trial.knarr)?;
            trial.armed(&["stop", "-t", "0", "kk"])?;
            stays_stopped(trial.knarr)
        },
    },
    Case {
        name: "the monitor in a stop",
        points: &["monitor."],
        run: |trial| {
            if !armed_monitor(trial, &[&SLEEP[..], &["60"]].concat())? {
                return Ok(());
            }
            trial.knarr.run(["stop", "-t", "0", "kk"])?;
            stays_stopped(trial.knarr)
        },
    },
    Case {
        name: "rm -f",
        points: &["engine.", "undo.", "remove."],
        run: |trial| {
            running(trial.knarr)?;
            trial.armed(&["rm", "-f", "-v", "kk"])
        },
    },
    Case {
        name: "the monitor in an rm -f",
        points: &["monitor."],
        run: |trial| {
            if armed_monitor(trial, &[&SLEEP[..], &["60"]].concat())? {
                trial.knarr.run(["rm", "-f", "kk"])?;
            }
            Ok(())
        },
    },
    Case {
        name: "the monitor in an rm -f of a --rm container",
        points: &["monitor."],
        run: |trial| {
            let args = [&["run", "--rm", "-v", "/anonymous"], &SLEEP[1..], &["60"]].concat();
            if armed_monitor(trial, &args)? {
                trial.knarr.run(["rm", "-f", "kk"])?;
            }
            Ok(())
        },
    },
    Case {
        name: "start",
        points: &["start.", "monitor.", "run.", "layer.", "engine."],
        run: |trial| {
            running(trial.knarr)?;
            trial.knarr.ok(["stop", "-t", "0", "kk"])?;
            trial.armed(&["start", "kk"])?;
            can_be_started(trial.knarr)
        },
    },
    Case {
        name: "a call that adopts",
        points: &["monitor.adopt", "monitor.reported"],
        run: |trial| {
            let pid = running(trial.knarr)?;
            kill_monitor(trial.knarr)?;
            trial.armed(&["exec", "kk", "true"])?;
            if !matches!(trial.how, How::Another(_)) {
                lives_on(trial.knarr, &pid)?;
            }
            Ok(())
        },
    },
    Case {
        name: "a call that sweeps",
        points: &["engine."],
        run: |trial| {
            let pid = running(trial.knarr)?;
            kill_monitor(trial.knarr)?;
            kill(pid.parse()?, Signal::KILL);
            trial.armed(&["start", "kk"])?;
            can_be_started(trial.knarr)
        },
    },
    Case {
        name: "a name that is stale",
        points: &["names."],
        run: |trial| {
            // The `ps` beside it may take the stale name away first.
            for _ in 0..10 {
                half_made(trial.knarr, "create.named")?;
                trial.armed(&["run", "--rm", "--name", "kk", "busybox", "true"])?;
                if trial.fired() {
                    break;
                }
            }
            Ok(())
        },
    },
    Case {
        name: "a lease that is stale",
        points: &["userns."],
        run: |trial| {
            // The `ps` beside may be first to clear it away.
            for _ in 0..20 {
                half_made(trial.knarr, "create.leased")?;
                trial.armed(&[
                    "run", "--rm", "--userns", "auto", "--name", "kk", "busybox", "true",
                ])?;
                if trial.fired() {
                    break;
                }
            }
            Ok(())
        },
    },
    Case {
        name: "a restart by policy",
        points: &["monitor."],
        run: |trial| {
            let args = [&["run", "--restart", "always"], &SLEEP[1..], &["60"]].concat();
            if armed_monitor(trial, &args)? {
                let pid = trial.knarr.ok(["inspect", "-f", "{{.State.Pid}}", "kk"])?;
                kill(pid.parse()?, Signal::KILL);
                wait_for(Duration::from_secs(3), || {
                    let now = trial
                        .knarr
                        .run(["inspect", "-f", "{{.State.Pid}}", "kk"])
                        .ok()?;
                    (trial.fired() || (now.text() != pid && now.text() != "0")).then_some(())
                });
            }
            Ok(())
        },
    },
    Case {
        name: "pause",
        points: &["monitor.paused"],
        run: |trial| {
            if armed_monitor(trial, &[&SLEEP[..], &["60"]].concat())? {
                trial.knarr.run(["pause", "kk"])?;
                if trial.how == How::Stopped {
                    ensure!(status(trial.knarr)? == "paused");
                    trial.knarr.ok(["unpause", "kk"])?;
                    ensure!(trial.knarr.ok(["exec", "kk", "echo", "in"])? == "in");
                }
            }
            Ok(())
        },
    },
    Case {
        name: "rename",
        points: &["rename."],
        run: |trial| {
            let pid = running(trial.knarr)?;
            trial.armed(&["rename", "kk", "other"])?;
            // Whichever name it has now, it has one, and the other one is free.
            let at = |name: &str| -> Result<bool> {
                let told = trial
                    .knarr
                    .run(["inspect", "-f", "{{.State.Pid}} {{.Name}}", name])?;
                Ok(told.text() == format!("{pid} /{name}"))
            };
            ensure!(at("kk")? != at("other")?, "it has two names, or none");
            let free = if at("kk")? { "other" } else { "kk" };
            trial
                .knarr
                .ok(["run", "--rm", "--name", free, "busybox", "true"])?;
            trial.knarr.run(["rm", "-f", "other"])?;
            Ok(())
        },
    },
    Case {
        name: "run -p",
        points: NETWORK,
        run: |trial| {
            let mut args = SLEEP.to_vec();
            args.splice(1..1, ["-p", "18080:80"]);
            args.push("60");
            trial.armed(&args)
        },
    },
    Case {
        name: "run --rm -p",
        points: NETWORK,
        run: |trial| {
            trial.armed(&[
                "run", "--rm", "-p", "18080:80", "--name", "kk", "busybox", "true",
            ])
        },
    },
    Case {
        name: "publish and unpublish",
        points: NETWORK,
        run: |trial| {
            if !armed_monitor(trial, &[&SLEEP[..], &["60"]].concat())? {
                return Ok(());
            }
            let pid = trial.knarr.ok(["inspect", "-f", "{{.State.Pid}}", "kk"])?;
            trial.armed(&["network", "publish", "kk", "18080-18089:8080-8089"])?;
            if !trial.fired() {
                trial.armed(&["network", "unpublish", "--all", "kk"])?;
            }
            if matches!(trial.how, How::Another(_)) {
                return Ok(());
            }
            lives_on(trial.knarr, &pid)?;
            // Whatever came of it, this call ends the matter.
            let closed = trial.knarr.run(["network", "unpublish", "--all", "kk"])?;
            ensure!(
                closed.code == 0 || closed.stderr.contains("publishes no port"),
                "unpublish said {closed:?}"
            );
            ensure!(trial.knarr.ok(["port", "kk"])?.is_empty(), "a port is told");
            let left = trial.knarr.leftovers(" ps -a");
            ensure!(
                !left.iter().any(|item| item.starts_with("open ports")),
                "a port is open: {left:#?}"
            );
            lives_on(trial.knarr, &pid)
        },
    },
    Case {
        name: "connect and disconnect",
        points: NETWORK,
        run: |trial| {
            trial.knarr.ok(["network", "create", "kn"])?;
            if !armed_monitor(trial, &[&SLEEP[..], &["60"]].concat())? {
                return Ok(());
            }
            let pid = trial.knarr.ok(["inspect", "-f", "{{.State.Pid}}", "kk"])?;
            trial.armed(&["network", "connect", "--alias", "other", "kn", "kk"])?;
            if !trial.fired() {
                trial.armed(&["network", "disconnect", "kn", "kk"])?;
            }
            if matches!(trial.how, How::Another(_)) {
                return Ok(());
            }
            lives_on(trial.knarr, &pid)?;
            trial.knarr.run(["network", "disconnect", "kn", "kk"])?;
            let links = trial.knarr.ok(["exec", "kk", "ls", "/sys/class/net"])?;
            ensure!(links == "eth0\nlo", "it has the links {links}");
            let network = trial.knarr.run_root().join("networks/kn");
            for folder in ["leases", "names"] {
                let left = files(&network.join(folder));
                ensure!(left.is_empty(), "left behind: {left:?}");
            }
            trial.knarr.ok(["network", "rm", "kn"])?;
            lives_on(trial.knarr, &pid)
        },
    },
    Case {
        name: "network create and rm",
        points: NETWORK,
        run: |trial| {
            trial.armed(&["network", "create", "kn"])?;
            if !trial.fired() {
                trial.armed(&[
                    "run",
                    "--rm",
                    "--network",
                    "kn",
                    "--name",
                    "kk",
                    "busybox",
                    "true",
                ])?;
            }
            if !trial.fired() {
                trial.armed(&["network", "rm", "kn"])?;
            }
            Ok(())
        },
    },
    Case {
        name: "volume rm",
        points: &["volume."],
        run: |trial| {
            trial.armed(&["volume", "create", "kv"])?;
            if !trial.fired() {
                trial.armed(&["volume", "rm", "kv"])?;
            }
            Ok(())
        },
    },
];

/// What was alive is alive, the same process, and serves the next.
fn lives_on(knarr: &Knarr, pid: &str) -> Result<()> {
    let now = knarr.ok(["inspect", "-f", "{{.State.Status}} {{.State.Pid}}", "kk"])?;
    ensure!(now == format!("running {pid}"), "it was {pid} and is {now}");
    ensure!(knarr.ok(["exec", "kk", "echo", "again"])? == "again");
    Ok(())
}

/// It is there whatever happened, and starts. A first process that was killed between its gate and its
/// program ended like any program: for an instant it still counts as running.
fn can_be_started(knarr: &Knarr) -> Result<()> {
    let mut now = String::new();
    wait_for(Duration::from_secs(5), || {
        knarr.ok(["start", "kk"]).ok()?;
        now = status(knarr).ok()?;
        (now == "running").then_some(())
    })
    .with_context(|| format!("it was started and is {now:?}"))
}

fn stays_stopped(knarr: &Knarr) -> Result<()> {
    knarr.ok(["stop", "-t", "0", "kk"])?;
    ensure!(status(knarr)? == "exited");
    Ok(())
}

/// A container whose making was cut short.
fn half_made(knarr: &Knarr, point: &str) -> Result<()> {
    let mut create = knarr.command(["create", "--userns", "auto", "--name", "kk", "busybox"]);
    create.env("KNARR_FAILPOINT", point);
    create.stdout(Stdio::null()).stderr(Stdio::null());
    ensure!(create.status()?.code().is_none(), "{point} is not passed");
    Ok(())
}

fn kill_monitor(knarr: &Knarr) -> Result<()> {
    let monitor = knarr.processes().into_iter().find(Process::is_monitor);
    let monitor = monitor.context("there is no monitor")?.pid;
    kill(monitor, Signal::KILL);
    eventually(Duration::from_secs(5), "the monitor is dead", || {
        is_dead(monitor).then_some(())
    });
    Ok(())
}

/// One call on the object, then all is as before: nothing that nobody owns.
fn nothing_left(knarr: &Knarr) -> Result<()> {
    // The object may have begun to exist or not; either way this call ends the matter.
    let output = knarr.run(["rm", "-f", "-v", "kk"])?;
    ensure!(
        output.code == 0 || output.stderr.contains("o such container"),
        "rm -f said {output:?}"
    );
    knarr.ok(["volume", "rm", "-f", "kv"])?;
    let output = knarr.run(["network", "rm", "kn"])?;
    ensure!(
        output.code == 0 || output.stderr.contains("not found"),
        "network rm said {output:?}"
    );
    let left = || {
        let mut left = knarr.leftovers(" ps -a");
        left.extend(files(&knarr.run_root().join("networks/kn")));
        let links = std::fs::read_to_string("/proc/thread-self/net/dev").unwrap_or_default();
        left.extend(
            links
                .lines()
                .filter(|line| line.trim().starts_with("kn-"))
                .map(str::to_owned),
        );
        left.extend(
            knarr
                .ok(["volume", "ls", "-q"])
                .err()
                .map(|error| error.to_string()),
        );
        left
    };
    wait_for(Duration::from_secs(5), || left().is_empty().then_some(()))
        .with_context(|| format!("left behind: {:#?}", left()))?;
    ensure!(
        knarr.ok(["volume", "ls", "-q"])?.is_empty(),
        "a volume is left"
    );
    ensure!(knarr.ok(["run", "--rm", "--name", "kk", "busybox", "echo", "works"])? == "works");
    Ok(())
}

/// Tries one point in one case; tells whether it was passed.
fn attempt(knarr: &Knarr, case: &Case, point: &str, how: How) -> Result<Vec<Process>> {
    let trial = Trial::new(knarr, point, how);
    let done = std::thread::scope(|scope| {
        scope.spawn(|| trial.watch());
        let done = (case.run)(&trial);
        // The call comes after the kill, or it is none to judge by.
        wait_for(Duration::from_secs(1), || knarr.is_quiet().then_some(()));
        if how == How::Stopped {
            let killed = lock(&trial.hits).clone();
            wait_for(Duration::from_secs(2), || {
                killed.iter().all(|hit| is_dead(hit.pid)).then_some(())
            });
        }
        // It may be what passes the point.
        let done = done.and_then(|()| nothing_left(knarr));
        trial.over.store(true, Ordering::Relaxed);
        done
    });
    if done.is_err() {
        // The next trial begins clean.
        for process in knarr.processes() {
            if !process.command.contains(" ps -a") {
                kill(process.pid, Signal::KILL);
            }
        }
        knarr.run(["rm", "-f", "-v", "kk", "other"]).ok();
        knarr.run(["volume", "rm", "-f", "kv"]).ok();
        knarr.run(["network", "rm", "kn"]).ok();
    }
    done.with_context(|| format!("{}, {point}, {how:?}", case.name))?;
    Ok(trial
        .hits
        .into_inner()
        .unwrap_or_else(PoisonError::into_inner))
}

/// What came of some cases.
#[derive(Default)]
struct Outcome<'a> {
    trials: usize,
    failed: Vec<String>,
    /// Which points were passed by which cases.
    passed: BTreeMap<&'a str, BTreeSet<&'a str>>,
}

/// Tries cases at all their points until none is left to take.
fn matrix<'a>(
    knarr: &Knarr,
    cases: &Mutex<impl Iterator<Item = &'a Case>>,
    points: &'a BTreeSet<String>,
    only: &str,
) -> Outcome<'a> {
    let mut outcome = Outcome::default();
    let Outcome {
        trials,
        failed,
        passed,
    } = &mut outcome;
    let next = || lock(cases).next();
    while let Some(case) = next() {
        for point in points {
            let wanted = |part: &&str| point.starts_with(part);
            let all = case.points.is_empty() && !NETWORK.iter().any(wanted);
            if !(all || case.points.iter().any(wanted))
                || !format!("{} {point}", case.name).contains(only)
            {
                continue;
            }
            let mut trial = |how| {
                *trials += 1;
                match attempt(knarr, case, point, how) {
                    Ok(hits) => hits,
                    Err(error) => {
                        report(&format!("{error:#}"));
                        failed.push(format!("{error:#}"));
                        Vec::new()
                    }
                }
            };
            if IN_INIT.contains(&point.as_str()) && !trial(How::Killed).is_empty() {
                passed.entry(point).or_default().insert(case.name);
                continue;
            }
            let hits = trial(How::Stopped);
            let Some(at) = hits.first() else { continue };
            passed.entry(point).or_default().insert(case.name);
            trial(How::Killed);
            if at.is_monitor() {
                trial(How::Another(Victim::Command));
                trial(How::Another(Victim::Init));
            } else {
                trial(How::Another(Victim::Monitor));
            }
        }
    }
    outcome
}

#[expect(clippy::print_stderr, reason = "what a test did, for who looks at it")]
fn report(text: &str) {
    eprintln!("{text}");
}

/// Tries cases on a Knarr of its own, while `ps` is called all the time.
fn matrix_beside_ps<'a>(
    cases: &Mutex<impl Iterator<Item = &'a Case> + Send>,
    points: &'a BTreeSet<String>,
    only: &str,
) -> Result<Outcome<'a>> {
    let knarr = Knarr::with_busybox()?;
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let ps = scope.spawn(|| -> Result<()> {
            while !stop.load(Ordering::Relaxed) {
                knarr.ok(["ps", "-a"])?;
                std::thread::sleep(Duration::from_millis(50));
            }
            Ok(())
        });
        let outcome = matrix(&knarr, cases, points, only);
        stop.store(true, Ordering::Relaxed);
        match ps.join() {
            Ok(called) => called.context("beside it")?,
            Err(_) => bail!("the ps loop panicked"),
        }
        Ok(outcome)
    })
}

#[test]
fn a_kill_at_any_point_leaves_nothing_behind() -> Result<()> {
    let _turn = turn();
    // The time goes into waiting as much as into work.
    const AT_A_TIME: usize = 3;
    let points = points(false)?;
    let only = std::env::var("KNARR_MATRIX").unwrap_or_default();
    let cases = Mutex::new(CASES.iter());
    let begun = Instant::now();
    let mut all = Outcome::default();
    std::thread::scope(|scope| -> Result<()> {
        let workers: Vec<_> = (0..AT_A_TIME)
            .map(|_| scope.spawn(|| matrix_beside_ps(&cases, &points, &only)))
            .collect();
        for worker in workers {
            let Ok(outcome) = worker.join() else {
                bail!("a worker panicked");
            };
            let outcome = outcome?;
            all.trials += outcome.trials;
            all.failed.extend(outcome.failed);
            for (point, cases) in outcome.passed {
                all.passed.entry(point).or_default().extend(cases);
            }
        }
        Ok(())
    })?;
    let Outcome {
        trials,
        failed,
        passed,
    } = all;
    report(&format!(
        "{trials} trials in {:?}: {passed:#?}",
        begun.elapsed()
    ));
    ensure!(
        failed.is_empty(),
        "{} of {trials} trials failed:\n{}",
        failed.len(),
        failed.join("\n")
    );
    let never: Vec<_> = points
        .iter()
        .filter(|point| !passed.contains_key(point.as_str()))
        .collect();
    ensure!(
        never.is_empty() || !only.is_empty(),
        "no case passes these points; add a case, or a reason to UNREACHED: {never:?}"
    );
    Ok(())
}

/// Every file and folder below a root.
fn files(root: &std::path::Path) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    let mut folders = vec![root.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder).into_iter().flatten().flatten() {
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                folders.push(entry.path());
            }
            found.insert(entry.path().display().to_string());
        }
    }
    found
}

#[test]
fn a_kill_at_any_point_of_an_images_life_leaves_it_whole_or_gone() -> Result<()> {
    let _turn = turn();
    let knarr = Knarr::new()?;
    let rootfs = fixture::busybox_rootfs()?;
    let rootfs = rootfs.to_str().context("a path")?;
    let archive = fixture::busybox_image()?;
    let archive = archive.to_str().context("a path")?;
    let layout = knarr.scratch().join("layout");
    let mut image = fixture::busybox(std::path::Path::new(rootfs))?;
    "kk:1".clone_into(&mut image.name);
    image.write_layout(&layout)?;
    let registry = knarr_testkit::Registry::start(&knarr.scratch().join("registry"), None)?;
    registry.push_layout(&layout, "kk", "1")?;
    let remote = format!("{}/kk:1", registry.host());

    let points = points(true)?;
    let ways: [(&str, &[&str], &str); 8] = [
        ("load", &["load", "-q", "-i", archive], "busybox"),
        ("import", &["import", rootfs, "kk:imported"], "kk:imported"),
        ("pull", &["pull", "-q", &remote], &remote),
        ("rmi", &["rmi", "busybox"], "busybox"),
        ("tag", &["tag", "busybox", "kk:tagged"], "kk:tagged"),
        ("unpack", &["run", "--rm", "busybox", "true"], "busybox"),
        ("commit", &["commit", "kk", "kk:committed"], "kk:committed"),
        ("repair", &["system", "check", "--repair"], "busybox"),
    ];
    // What is there when nothing is: folders.
    knarr.ok(["load", "-q", "-i", archive])?;
    knarr.ok(["run", "--rm", "busybox", "true"])?;
    knarr.ok(["import", rootfs, "kk:imported"])?;
    knarr.ok(["pull", "-q", &remote])?;
    knarr.ok(["rmi", "busybox", "kk:imported", &remote])?;
    let clean = files(&knarr.root());
    let mut failed = Vec::new();
    let mut passed: BTreeMap<String, BTreeSet<&str>> = BTreeMap::new();
    let begun = Instant::now();
    for (way, args, name) in ways {
        for point in &points {
            for how in [How::Stopped, How::Killed] {
                let trial = Trial::new(&knarr, point, how);
                let driver = if way == "unpack" { "overlay" } else { "erofs" };
                let done = std::thread::scope(|scope| {
                    scope.spawn(|| trial.watch());
                    let done = image_trial(&trial, (way, args, name), archive, driver, &clean);
                    trial.over.store(true, Ordering::Relaxed);
                    done
                });
                if let Err(error) = done {
                    report(&format!("{way}, {point}, {how:?}: {error:#}"));
                    failed.push(format!("{way}, {point}, {how:?}: {error:#}"));
                    for image in ["busybox", "kk:imported", "kk:tagged", &remote] {
                        knarr.run(["rmi", "-f", image]).ok();
                    }
                }
                if !trial.fired() {
                    break;
                }
                passed.entry(point.clone()).or_default().insert(way);
            }
        }
    }
    report(&format!("{:?}: {passed:#?}", begun.elapsed()));
    ensure!(failed.is_empty(), "{}", failed.join("\n"));
    let never: Vec<_> = points
        .iter()
        .filter(|point| !passed.contains_key(*point))
        .collect();
    ensure!(never.is_empty(), "nothing passes these points: {never:?}");
    Ok(())
}

/// One command on an image is killed; one more call, and all that is there is whole and accounted.
fn image_trial(
    trial: &Trial<'_>,
    (way, args, name): (&str, &[&str], &str),
    archive: &str,
    driver: &str,
    clean: &BTreeSet<String>,
) -> Result<()> {
    let knarr = trial.knarr;
    if !matches!(way, "load" | "import" | "pull") {
        knarr.ok(["load", "-q", "-i", archive])?;
    }
    match way {
        "commit" => drop(knarr.ok(["run", "--name", "kk", "busybox", "touch", "/made"])?),
        "repair" => {
            for layer in std::fs::read_dir(knarr.root().join("layers/sha256"))? {
                std::fs::remove_file(layer?.path().join("index.erofs"))?;
            }
        }
        _ => {}
    }
    let args: Vec<&str> = args.to_vec();
    if driver == "overlay" {
        // The driver is the environment's word; the trial's own command has it from there.
        let status = knarr
            .command(&args)
            .env("KNARR_DRIVER", driver)
            .env("KNARR_FAILPOINT", trial.point)
            .stderr(Stdio::null())
            .status()?;
        if !status.success() {
            lock(&trial.hits).extend(knarr.processes().into_iter().chain([Process {
                pid: 0,
                state: 'Z',
                command: String::new(),
                inside: false,
            }]));
        }
        let mut again = knarr.command(&args);
        ensure!(
            again.env("KNARR_DRIVER", driver).status()?.success(),
            "no second run"
        );
    } else {
        trial.armed(&args)?;
    }
    if trial.fired() {
        let listed = knarr.ok(["images", "-q", name])?;
        // Of a repair, what was damaged before.
        if !listed.is_empty() && !matches!(way, "pull" | "repair") {
            ensure!(
                knarr.ok(["run", "--rm", name, "/bin/echo", "whole"])? == "whole",
                "it is listed and cannot be run"
            );
        }
        // The same again works, whatever was done of it already.
        let again = knarr.run(&args)?;
        let gone = way == "rmi" && again.stderr.contains("o such image");
        ensure!(again.code == 0 || gone, "again: {again:?}");
        if way == "repair" {
            ensure!(knarr.ok(["run", "--rm", name, "/bin/echo", "whole"])? == "whole");
        }
    }
    match way {
        "commit" => drop(knarr.ok(["rm", "kk"])?),
        "repair" => drop(knarr.ok(["system", "prune", "-f"])?),
        _ => {}
    }
    for name in ["busybox", "kk:tagged", name] {
        let removed = knarr.run(["rmi", name])?;
        ensure!(
            removed.code == 0 || removed.stderr.contains("o such image"),
            "rmi {name}: {removed:?}"
        );
    }
    // A second import is another image, which takes the name from the first.
    for id in knarr.ok(["images", "-aq", "--no-trunc"])?.lines() {
        ensure!(matches!(way, "import" | "commit"), "an image is left");
        knarr.ok(["rmi", id])?;
    }
    ensure!(knarr.ok(["images", "-aq"])?.is_empty(), "an image is left");
    let left = || -> Vec<String> { files(&knarr.root()).difference(clean).cloned().collect() };
    wait_for(Duration::from_secs(2), || left().is_empty().then_some(()))
        .with_context(|| format!("unaccounted: {:#?}", left()))?;
    Ok(())
}
