//! SIGKILL at every named point, then one call on the object: nothing is left that nobody owns.
//!
//! The tests here take turns: nothing else of Knarr's may run while leftovers are compared.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use knarr_testkit::{Knarr, eventually, leftovers, wait_for};

static TURN: Mutex<()> = Mutex::new(());

/// Every `failpoint!("…")` in the sources: a new one is in the matrix without being listed here.
fn points() -> Result<BTreeSet<String>> {
    let mut found = BTreeSet::new();
    let mut folders = vec![knarr_testkit::workspace().join("crates")];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder)? {
            let path = entry?.path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|e| e == "rs") {
                let text = std::fs::read_to_string(&path)?;
                for part in text.split("failpoint!(\"").skip(1) {
                    found.extend(part.split('"').next().map(str::to_owned));
                }
            }
        }
    }
    found.retain(|name| name.contains('.'));
    Ok(found)
}

/// Calls `ps` in a loop until told to stop; every call must succeed.
fn ps_loop<'scope>(
    scope: &'scope std::thread::Scope<'scope, '_>,
    knarr: &'scope Knarr,
    stop: &'scope AtomicBool,
) -> std::thread::ScopedJoinHandle<'scope, Result<u32>> {
    scope.spawn(move || {
        let mut calls = 0;
        while !stop.load(Ordering::Relaxed) {
            let output = knarr.run(["ps", "-a"])?;
            ensure!(output.code == 0, "ps failed: {}", output.stderr);
            calls += 1;
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(calls)
    })
}

/// Runs a command with a point armed; the point may lie in the CLI, the monitor or init.
fn armed(knarr: &Knarr, point: &str, args: &[&str]) -> Result<()> {
    let mut child: Child = Command::new("timeout")
        .args(["-s", "KILL", "20"])
        .arg(knarr_testkit::binary("knarr"))
        .arg("--root")
        .arg(knarr.root())
        .arg("--runroot")
        .arg(knarr.run_root())
        .args(args)
        .env("KNARR_FAILPOINT", point)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .context("cannot start knarr")?;
    let status = wait_for(Duration::from_secs(25), || child.try_wait().ok().flatten());
    ensure!(
        status.is_some(),
        "`knarr {}` hangs when killed at {point}",
        args.join(" ")
    );
    Ok(())
}

#[test]
fn a_kill_at_any_point_leaves_nothing_behind() -> Result<()> {
    let _turn = TURN.lock();
    let knarr = Knarr::with_busybox()?;
    let points = points()?;
    assert!(points.len() >= 10, "the matrix is empty: {points:?}");
    let clean = leftovers();
    let stop = AtomicBool::new(false);
    let failed: Vec<String> = std::thread::scope(|scope| {
        let ps = ps_loop(scope, &knarr, &stop);
        let mut failed = Vec::new();
        for point in &points {
            for (what, case) in CASES {
                if let Err(error) = case(&knarr, point).and_then(|()| nothing_left(&knarr, &clean))
                {
                    failed.push(format!("{what} killed at {point}: {error:#}"));
                }
            }
        }
        stop.store(true, Ordering::Relaxed);
        match ps.join() {
            Ok(Ok(calls)) => assert!(calls > 10),
            Ok(Err(error)) => failed.push(format!("{error:#}")),
            Err(_) => failed.push("the ps loop panicked".to_owned()),
        }
        failed
    });
    assert!(
        failed.is_empty(),
        "{} of the matrix failed:\n{}",
        failed.len(),
        failed.join("\n")
    );
    Ok(())
}

type Case = fn(&Knarr, &str) -> Result<()>;

const CASES: &[(&str, Case)] = &[
    ("run --rm", |knarr, point| {
        armed(
            knarr,
            point,
            &["run", "--rm", "--name", "kk", "busybox", "true"],
        )
    }),
    ("run -d", |knarr, point| {
        armed(
            knarr,
            point,
            &[
                "run", "-d", "--name", "kk", "-v", "kv:/data", "busybox", "sleep", "30",
            ],
        )
    }),
    ("exec", |knarr, point| {
        knarr.ok(["run", "-d", "--name", "kk", "busybox", "sleep", "30"])?;
        let pid = knarr.ok(["inspect", "-f", "{{.State.Pid}}", "kk"])?;
        armed(knarr, point, &["exec", "kk", "true"])?;
        // What was alive stays alive, and serves the next.
        ensure!(
            knarr.ok(["inspect", "-f", "{{.State.Status}} {{.State.Pid}}", "kk"])?
                == format!("running {pid}")
        );
        ensure!(knarr.ok(["exec", "kk", "echo", "again"])? == "again");
        Ok(())
    }),
    ("stop", |knarr, point| {
        knarr.ok(["run", "-d", "--name", "kk", "busybox", "sleep", "30"])?;
        armed(knarr, point, &["stop", "-t", "0", "kk"])?;
        knarr.ok(["stop", "-t", "0", "kk"])?;
        ensure!(knarr.ok(["inspect", "-f", "{{.State.Status}}", "kk"])? == "exited");
        Ok(())
    }),
    ("rm -f", |knarr, point| {
        knarr.ok(["run", "-d", "--name", "kk", "busybox", "sleep", "30"])?;
        armed(knarr, point, &["rm", "-f", "kk"])
    }),
];

/// One call on the object, then the machine is as before: nothing that nobody owns.
fn nothing_left(knarr: &Knarr, clean: &BTreeSet<String>) -> Result<()> {
    // The object may have begun to exist or not; either way this call ends the matter.
    let output = knarr.run(["rm", "-f", "-v", "kk"])?;
    ensure!(
        output.code == 0 || output.stderr.contains("o such container"),
        "rm -f said {output:?}"
    );
    knarr.run(["volume", "rm", "-f", "kv"])?;
    let left = || {
        let mut left: BTreeSet<String> = leftovers().difference(clean).cloned().collect();
        // The ps loop's own processes come and go.
        left.retain(|item| !(item.ends_with(" knarr") && item.starts_with("process")));
        left.extend(knarr.litter());
        left
    };
    wait_for(Duration::from_secs(5), || left().is_empty().then_some(()))
        .with_context(|| format!("left behind: {:#?}", left()))?;
    ensure!(knarr.ok(["run", "--rm", "busybox", "echo", "works"])? == "works");
    Ok(())
}

#[test]
fn a_killed_monitor_is_replaced_and_the_container_lives() -> Result<()> {
    let _turn = TURN.lock();
    let knarr = Knarr::with_busybox()?;
    let id = knarr.ok([
        "run",
        "-d",
        "--name",
        "kk",
        "busybox",
        "sh",
        "-c",
        "i=0; while :; do echo $i; i=$((i+1)); sleep 0.05; done",
    ])?;
    let pid = knarr.ok(["inspect", "-f", "{{.State.Pid}}", "kk"])?;
    let monitor = monitor_of(&knarr, &id)?;
    rustix::process::kill_process(monitor, rustix::process::Signal::KILL)?;
    eventually(Duration::from_secs(5), "the monitor is dead", || {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", monitor.as_raw_nonzero()))
            .unwrap_or_default();
        (stat.is_empty() || stat.contains(") Z ")).then_some(())
    });
    assert_eq!(
        knarr.ok(["inspect", "-f", "{{.State.Status}} {{.State.Pid}}", "kk"])?,
        format!("running {pid}")
    );
    assert!(knarr.ok(["ps"])?.contains("Up "));
    let seen = knarr.ok(["logs", "kk"])?.lines().count();
    eventually(Duration::from_secs(10), "logs go on", || {
        (knarr.ok(["logs", "kk"]).ok()?.lines().count() > seen + 3).then_some(())
    });
    assert_eq!(knarr.ok(["exec", "kk", "echo", "in"])?, "in");
    knarr.ok(["stop", "-t", "0", "kk"])?;
    assert_eq!(
        knarr.ok([
            "inspect",
            "-f",
            "{{.State.Status}} {{.State.ExitCode}}",
            "kk"
        ])?,
        "exited 137"
    );
    knarr.ok(["rm", "kk"])?;
    Ok(())
}

/// The process that holds the container's lock.
fn monitor_of(knarr: &Knarr, id: &str) -> Result<rustix::process::Pid> {
    let state = std::fs::read_to_string(
        knarr
            .run_root()
            .join("containers")
            .join(id)
            .join("state.json"),
    )?;
    let state: serde_json::Value = serde_json::from_str(&state)?;
    let pid = find_number(&state, "monitor").context("state.json names no monitor")?;
    ensure!(Path::new(&format!("/proc/{pid}")).exists());
    rustix::process::Pid::from_raw(i32::try_from(pid)?).context("no pid")
}

/// The number at a key that starts with `prefix`, or at `pid` inside it.
fn find_number(value: &serde_json::Value, prefix: &str) -> Option<i64> {
    value.as_object()?.iter().find_map(|(key, value)| {
        key.starts_with(prefix)
            .then(|| value.as_i64().or_else(|| value.get("pid")?.as_i64()))
            .flatten()
    })
}
