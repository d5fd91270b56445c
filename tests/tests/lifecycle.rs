//! create, start, stop, kill, restart, rm, ps, wait, rename, pause, top, stats, attach, logs.

use std::io::{Read as _, Write as _};
use std::time::{Duration, Instant};

use anyhow::Result;
use knarr_testkit::{Knarr, eventually};

const SOON: Duration = Duration::from_secs(10);

fn status(knarr: &Knarr, name: &str) -> String {
    knarr
        .ok(["inspect", "-f", "{{.State.Status}}", name])
        .unwrap_or_default()
}

#[test]
fn a_container_goes_through_its_life() -> Result<()> {
    let knarr = Knarr::with_busybox()?;
    let id = knarr.ok(["create", "--name", "web", "busybox", "sleep", "100"])?;
    assert_eq!(id.len(), 64);
    assert_eq!(status(&knarr, "web"), "created");
    assert_eq!(knarr.ok(["start", "web"])?, "web");
    assert_eq!(status(&knarr, "web"), "running");
    assert_eq!(knarr.ok(["ps", "-q", "--no-trunc"])?, id);
    let ps = knarr.ok(["ps"])?;
    let header = ps.lines().next().unwrap_or_default();
    assert_eq!(
        header.split_whitespace().collect::<Vec<_>>(),
        [
            "CONTAINER",
            "ID",
            "IMAGE",
            "COMMAND",
            "CREATED",
            "STATUS",
            "PORTS",
            "NAMES"
        ]
    );
    assert!(
        ps.contains("\"sleep 100\"") && ps.contains("Up ") && ps.contains("web"),
        "{ps}"
    );
    knarr.ok(["pause", "web"])?;
    assert_eq!(status(&knarr, "web"), "paused");
    knarr.ok(["unpause", "web"])?;
    knarr.ok(["rename", "web", "site"])?;
    assert_eq!(status(&knarr, "site"), "running");
    assert!(knarr.ok(["top", "site"])?.contains("sleep 100"));
    let stats = knarr.ok(["stats", "--no-stream", "site"])?;
    assert!(stats.contains("site") && stats.contains('%'), "{stats}");
    // Also what it took before it was counted is told.
    let memory = knarr.ok(["stats", "--no-stream", "--format", "{{.MemUsage}}", "site"])?;
    assert!(!memory.starts_with("0B"), "{memory}");
    let old = knarr.ok(["inspect", "-f", "{{.State.Pid}}", "site"])?;
    knarr.ok(["restart", "-t", "0", "site"])?;
    assert_ne!(knarr.ok(["inspect", "-f", "{{.State.Pid}}", "site"])?, old);
    knarr.ok(["stop", "-t", "0", "site"])?;
    assert_eq!(status(&knarr, "site"), "exited");
    assert_eq!(
        knarr.ok(["inspect", "-f", "{{.State.ExitCode}}", "site"])?,
        "137"
    );
    assert_eq!(knarr.ok(["wait", "site"])?, "137");
    assert!(knarr.ok(["ps", "-a"])?.contains("Exited (137)"));
    knarr.ok(["start", "site"])?;
    knarr.ok(["kill", "-s", "KILL", "site"])?;
    assert_eq!(knarr.ok(["wait", "site"])?, "137");
    assert_eq!(knarr.ok(["rm", "site"])?, "site");
    assert_eq!(knarr.ok(["ps", "-aq"])?, "");
    assert_eq!(knarr.litter(), Default::default());
    Ok(())
}

#[test]
fn stop_asks_first_and_insists_later() -> Result<()> {
    let knarr = Knarr::with_busybox()?;
    knarr.ok([
        "run",
        "-d",
        "--name",
        "polite",
        "busybox",
        "sh",
        "-c",
        "trap 'echo bye; exit 3' TERM; while :; do sleep 0.1; done",
    ])?;
    eventually(SOON, "the trap is set", || {
        let pid = knarr
            .ok(["inspect", "-f", "{{.State.Pid}}", "polite"])
            .ok()?;
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
        let mask = status
            .lines()
            .find_map(|l| l.strip_prefix("SigCgt:"))?
            .trim()
            .to_owned();
        (u64::from_str_radix(&mask, 16).ok()? & (1 << 14) != 0).then_some(())
    });
    let start = Instant::now();
    knarr.ok(["stop", "polite"])?;
    assert!(
        start.elapsed() < Duration::from_secs(8),
        "it was killed instead of asked"
    );
    assert_eq!(
        knarr.ok(["inspect", "-f", "{{.State.ExitCode}}", "polite"])?,
        "3"
    );
    assert_eq!(knarr.ok(["logs", "polite"])?, "bye");
    knarr.ok([
        "run",
        "-d",
        "--name",
        "deaf",
        "--stop-timeout",
        "1",
        "busybox",
        "sleep",
        "100",
    ])?;
    let start = Instant::now();
    knarr.ok(["stop", "deaf"])?;
    assert!(start.elapsed() < Duration::from_secs(6));
    assert_eq!(
        knarr.ok(["inspect", "-f", "{{.State.ExitCode}}", "deaf"])?,
        "137"
    );
    knarr.ok([
        "run",
        "-d",
        "--name",
        "usr1",
        "--stop-signal",
        "USR1",
        "busybox",
        "sh",
        "-c",
        "trap 'exit 9' USR1; while :; do sleep 0.1; done",
    ])?;
    eventually(SOON, "stopped by USR1", || {
        knarr.ok(["stop", "-t", "5", "usr1"]).ok()?;
        let code = knarr
            .ok(["inspect", "-f", "{{.State.ExitCode}}", "usr1"])
            .ok()?;
        (code == "9").then_some(()).or_else(|| {
            knarr.ok(["start", "usr1"]).ok();
            None
        })
    });
    Ok(())
}

#[test]
fn exec_joins_and_reports_its_own_exit_code() -> Result<()> {
    let knarr = Knarr::with_busybox()?;
    knarr.ok([
        "run", "-d", "--name", "web", "-e", "A=1", "-m", "64m", "busybox", "sleep", "100",
    ])?;
    let output = knarr.run([
        "exec",
        "-e",
        "B=2",
        "-w",
        "/tmp",
        "-u",
        "app",
        "web",
        "sh",
        "-c",
        "echo $A $B; pwd; id -u; exit 5",
    ])?;
    assert_eq!(
        (output.code, output.stdout.as_str()),
        (5, "1 2\n/tmp\n1000\n")
    );
    assert_eq!(knarr.run(["exec", "web", "nothing-here"])?.code, 127);
    let inside = knarr.ok([
        "exec",
        "web",
        "sh",
        "-c",
        "grep -E 'CapEff|Seccomp:' /proc/self/status",
    ])?;
    assert!(
        inside.contains("00000000a80425fb") && inside.contains("2"),
        "{inside}"
    );
    // All capabilities that there are to give, but the container's filter stays, as with Docker.
    let rights = ["grep", "-E", "^(CapEff|Seccomp):", "/proc/self/status"];
    let privileged = knarr.ok([&["exec", "--privileged", "web"], &rights[..]].concat())?;
    let expected = knarr.ok([&["run", "--rm", "--privileged", "busybox"], &rights[..]].concat())?;
    assert_eq!(
        privileged,
        expected.replace("Seccomp:\t0", "Seccomp:\t2"),
        "{privileged}"
    );
    let mut child = knarr.spawn(["exec", "-i", "web", "cat"])?;
    child
        .stdin
        .take()
        .map(|mut stdin| stdin.write_all(b"through"))
        .transpose()?;
    assert_eq!(child.wait_with_output()?.stdout, b"through");
    // It counts against the container's limits: same cgroup as init.
    let cgroups = knarr.ok(["exec", "web", "sh", "-c", "cat /proc/1/cgroup > /tmp/1; cat /proc/self/cgroup > /tmp/2; cmp /tmp/1 /tmp/2 && echo same"])?;
    assert_eq!(cgroups, "same");
    knarr.ok(["exec", "-d", "web", "sh", "-c", "echo detached > /tmp/d"])?;
    eventually(SOON, "the detached exec ran", || {
        knarr
            .ok(["exec", "web", "cat", "/tmp/d"])
            .ok()
            .filter(|t| t == "detached")
    });
    let stopped = knarr.run(["exec", "gone", "true"])?;
    assert_eq!(stopped.code, 1);
    assert!(stopped.stderr.contains("gone"), "{}", stopped.stderr);
    Ok(())
}

#[test]
fn logs_are_dockers_lines_bounded_and_followable() -> Result<()> {
    let knarr = Knarr::with_busybox()?;
    let id = knarr.ok([
        "run",
        "-d",
        "--name",
        "web",
        "busybox",
        "sh",
        "-c",
        "echo one; echo two >&2; echo three; exec sleep 100",
    ])?;
    eventually(SOON, "three lines", || {
        let output = knarr.run(["logs", "web"]).ok()?;
        (output.stdout == "one\nthree\n" && output.stderr == "two\n").then_some(())
    });
    assert_eq!(knarr.ok(["logs", "--tail", "0", "web"])?, "");
    let stamped = knarr.ok(["logs", "-t", "--tail", "all", "web"])?;
    assert!(
        stamped.lines().next().is_some_and(|l| l.ends_with("Z one")),
        "{stamped}"
    );
    let path = knarr.ok(["inspect", "-f", "{{.LogPath}}", "web"])?;
    assert!(path.contains(&id));
    let first = std::fs::read_to_string(&path)?
        .lines()
        .next()
        .unwrap_or_default()
        .to_owned();
    let line: serde_json::Value = serde_json::from_str(&first)?;
    assert_eq!(
        (line["log"].as_str(), line["stream"].as_str()),
        (Some("one\n"), Some("stdout"))
    );
    assert!(
        line["time"]
            .as_str()
            .is_some_and(|t| t.ends_with('Z') && t.contains('T'))
    );
    // Following ends with the container.
    knarr.ok([
        "run",
        "-d",
        "--name",
        "short",
        "busybox",
        "sh",
        "-c",
        "for i in 1 2 3; do echo $i; sleep 0.2; done",
    ])?;
    assert_eq!(knarr.ok(["logs", "-f", "short"])?, "1\n2\n3");
    // A chatty container keeps to its bounds.
    knarr.ok([
        "run",
        "--name",
        "chatty",
        "--log-opt",
        "max-size=10k",
        "--log-opt",
        "max-file=2",
        "-d",
        "busybox",
        "seq",
        "1",
        "20000",
    ])?;
    knarr.ok(["wait", "chatty"])?;
    let path = std::path::PathBuf::from(knarr.ok(["inspect", "-f", "{{.LogPath}}", "chatty"])?);
    let dir = path
        .parent()
        .map(std::fs::read_dir)
        .transpose()?
        .into_iter()
        .flatten();
    let sizes: Vec<u64> = dir
        .flatten()
        .filter(|e| e.file_name().to_string_lossy().contains("json.log"))
        .filter_map(|e| e.metadata().ok())
        .map(|m| m.len())
        .collect();
    assert!(
        sizes.len() <= 2 && sizes.iter().sum::<u64>() <= 24 << 10,
        "{sizes:?}"
    );
    assert!(knarr.ok(["logs", "chatty"])?.ends_with("20000"));
    assert_eq!(knarr.ok(["logs", "--tail", "2", "chatty"])?, "19999\n20000");
    let none = knarr.run([
        "run",
        "--name",
        "quiet",
        "--log-driver",
        "none",
        "busybox",
        "echo",
        "seen",
    ])?;
    assert_eq!(none.stdout, "seen\n");
    assert_ne!(knarr.run(["logs", "quiet"])?.code, 0);
    Ok(())
}

#[test]
fn attach_takes_part_and_leaves_with_the_keys() -> Result<()> {
    let knarr = Knarr::with_busybox()?;
    knarr.ok(["run", "-d", "-i", "--name", "echo", "busybox", "cat"])?;
    let mut client = knarr.spawn(["attach", "echo"])?;
    let mut stdin = client
        .stdin
        .take()
        .ok_or_else(|| anyhow::anyhow!("no stdin"))?;
    stdin.write_all(b"hello\n")?;
    let mut answer = [0u8; 6];
    client
        .stdout
        .as_mut()
        .map(|out| out.read_exact(&mut answer))
        .transpose()?;
    assert_eq!(&answer, b"hello\n");
    client.kill()?;
    client.wait()?;
    drop(stdin);
    assert_eq!(
        status(&knarr, "echo"),
        "running",
        "killing a client does not end the container"
    );
    Ok(())
}

#[test]
fn restart_policies_are_honoured() -> Result<()> {
    let knarr = Knarr::with_busybox()?;
    knarr.ok([
        "run",
        "-d",
        "--name",
        "twice",
        "--restart",
        "on-failure:2",
        "busybox",
        "sh",
        "-c",
        "echo run; exit 1",
    ])?;
    eventually(SOON, "two restarts, then rest", || {
        let text = knarr
            .ok([
                "inspect",
                "-f",
                "{{.RestartCount}} {{.State.Status}}",
                "twice",
            ])
            .ok()?;
        (text == "2 exited").then_some(())
    });
    assert_eq!(knarr.ok(["logs", "twice"])?, "run\nrun\nrun");
    knarr.ok([
        "run",
        "-d",
        "--name",
        "always",
        "--restart",
        "always",
        "busybox",
        "sleep",
        "100",
    ])?;
    let pid = knarr.ok(["inspect", "-f", "{{.State.Pid}}", "always"])?;
    rustix::process::kill_process(
        rustix::process::Pid::from_raw(pid.parse()?).ok_or_else(|| anyhow::anyhow!("no pid"))?,
        rustix::process::Signal::KILL,
    )?;
    eventually(SOON, "started again", || {
        let text = knarr
            .ok([
                "inspect",
                "-f",
                "{{.State.Status}} {{.State.Pid}}",
                "always",
            ])
            .ok()?;
        (text.starts_with("running") && !text.ends_with(&format!(" {pid}"))).then_some(())
    });
    knarr.ok(["stop", "-t", "0", "always"])?;
    assert_eq!(
        status(&knarr, "always"),
        "exited",
        "a stop by the user is final"
    );
    let both = knarr.run(["run", "--rm", "--restart", "always", "busybox", "true"])?;
    assert_eq!(both.code, 125);
    Ok(())
}

#[test]
fn diff_and_cp_see_the_containers_files() -> Result<()> {
    let knarr = Knarr::with_busybox()?;
    knarr.ok([
        "run",
        "--name",
        "box",
        "busybox",
        "sh",
        "-c",
        "echo new > /etc/new; rm /bin/vi; echo x >> /etc/passwd",
    ])?;
    let diff = knarr.ok(["diff", "box"])?;
    let lines: std::collections::BTreeSet<&str> = diff.lines().collect();
    assert_eq!(
        lines,
        [
            "A /etc/new",
            "C /bin",
            "C /etc",
            "C /etc/passwd",
            "D /bin/vi"
        ]
        .into()
    );
    let scratch = knarr.scratch();
    let file = scratch.join("in.txt");
    std::fs::write(&file, "in")?;
    // Stopped and running, in and out, file and folder.
    for running in [false, true] {
        if running {
            knarr.ok(["run", "-d", "--name", "live", "busybox", "sleep", "100"])?;
        }
        let name = if running { "live" } else { "box" };
        knarr.ok([
            "cp",
            file.to_str().unwrap_or_default(),
            &format!("{name}:/etc/in.txt"),
        ])?;
        let out = scratch.join(format!("out-{running}"));
        knarr.ok([
            "cp",
            &format!("{name}:/etc/in.txt"),
            out.to_str().unwrap_or_default(),
        ])?;
        assert_eq!(std::fs::read_to_string(&out)?, "in");
        let dir = scratch.join(format!("dir-{running}"));
        knarr.ok([
            "cp",
            &format!("{name}:/etc"),
            dir.to_str().unwrap_or_default(),
        ])?;
        assert!(dir.join("passwd").is_file());
        let missing = knarr.run([
            "cp",
            &format!("{name}:/none"),
            out.to_str().unwrap_or_default(),
        ])?;
        assert_eq!(missing.code, 1);
        assert!(missing.stderr.contains("/none"), "{}", missing.stderr);
    }
    assert_eq!(knarr.ok(["exec", "live", "cat", "/etc/in.txt"])?, "in");
    Ok(())
}

#[test]
fn names_are_unique_and_ids_may_be_short() -> Result<()> {
    let knarr = Knarr::with_busybox()?;
    let id = knarr.ok(["create", "--name", "web", "busybox"])?;
    let again = knarr.run(["create", "--name", "web", "busybox"])?;
    assert_eq!(again.code, 125);
    assert!(
        again.stderr.contains("web") && again.stderr.contains(&id[..12]),
        "{}",
        again.stderr
    );
    assert_eq!(knarr.ok(["inspect", "-f", "{{.Id}}", &id[..6]])?, id);
    assert_eq!(knarr.ok(["inspect", "-f", "{{.Name}}", &id])?, "/web");
    knarr.ok(["rm", &id[..12]])?;
    knarr.ok(["create", "--name", "web", "busybox"])?;
    let named = knarr.ok(["create", "busybox"])?;
    let name = knarr.ok(["inspect", "-f", "{{.Name}}", &named])?;
    assert!(name.contains('_'), "a name like Docker's: {name}");
    Ok(())
}

#[test]
fn ps_filters_and_formats() -> Result<()> {
    let knarr = Knarr::with_busybox()?;
    knarr.ok([
        "run", "-d", "--name", "up", "--label", "tier=web", "busybox", "sleep", "100",
    ])?;
    knarr
        .ok(["run", "--name", "down", "busybox", "sh", "-c", "exit 3"])
        .err();
    for (filter, names) in [
        ("status=running", "up"),
        ("status=exited", "down"),
        ("exited=3", "down"),
        ("label=tier=web", "up"),
        ("name=ow", "down"),
    ] {
        assert_eq!(
            knarr.ok(["ps", "-a", "--filter", filter, "--format", "{{.Names}}"])?,
            names,
            "{filter}"
        );
    }
    let json: serde_json::Value = serde_json::from_str(&knarr.ok(["ps", "--format", "json"])?)?;
    assert_eq!(json["Names"], "up");
    assert_eq!(json["Labels"], "tier=web");
    assert_eq!(
        knarr
            .ok(["ps", "-a", "--format", "table {{.Names}}\t{{.Image}}"])?
            .lines()
            .next()
            .map(str::split_whitespace)
            .map(Iterator::collect::<Vec<_>>),
        Some(vec!["NAMES", "IMAGE"])
    );
    Ok(())
}
