//! `knarr run`: what a command sees and what comes back.

use anyhow::Result;
use knarr_testkit::{Knarr, eventually};
use std::io::Write as _;
use std::time::Duration;

/// Runs a shell line in a throw-away busybox and gives what it printed.
fn sh(knarr: &Knarr, flags: &[&str], script: &str) -> Result<String> {
    let args = [&["run", "--rm"], flags, &["busybox", "sh", "-c", script]].concat();
    knarr.ok(args)
}

#[test]
fn output_streams_and_exit_code_are_the_containers() -> Result<()> {
    let knarr = Knarr::with_busybox()?;
    let output = knarr.run([
        "run",
        "--rm",
        "busybox",
        "sh",
        "-c",
        "echo out; echo err >&2; exit 42",
    ])?;
    assert_eq!(
        (output.code, output.stdout.as_str(), output.stderr.as_str()),
        (42, "out\n", "err\n")
    );
    let output = knarr.run([
        "run",
        "--rm",
        "busybox",
        "sh",
        "-c",
        "sh -c 'kill -9 $$'; exit $?",
    ])?;
    assert_eq!(output.code, 137);
    assert_eq!(knarr.containers()?, Vec::<String>::new());
    // The trash is emptied behind the caller's back.
    eventually(Duration::from_secs(20), "an empty trash", || {
        knarr.litter().is_empty().then_some(())
    });
    Ok(())
}

#[test]
fn the_container_has_its_own_view_of_the_machine() -> Result<()> {
    let knarr = Knarr::with_busybox()?;
    assert_eq!(sh(&knarr, &[], "echo $$")?, "1");
    assert_eq!(sh(&knarr, &["-h", "here"], "hostname")?, "here");
    // The shell, which expands this itself: nobody else's processes.
    assert_eq!(sh(&knarr, &[], "echo /proc/[0-9]*")?, "/proc/1");
    assert_eq!(
        sh(&knarr, &["--network", "none"], "ls /sys/class/net")?,
        "lo"
    );
    assert_eq!(
        sh(
            &knarr,
            &[],
            "ls /sys/class/net; ping -c 1 -W 1 127.0.0.1 >/dev/null && echo up"
        )?,
        "eth0\nlo\nup"
    );
    assert_eq!(
        // The kernel may still be at the other containers' links.
        sh(
            &knarr,
            &["--network", "host"],
            "ls /sys/class/net | grep -v ^kv"
        )?,
        "knarr0\nlo"
    );
    let host_uts = rustix::system::uname()
        .nodename()
        .to_string_lossy()
        .into_owned();
    assert_eq!(sh(&knarr, &["--uts", "host"], "hostname")?, host_uts);
    Ok(())
}

#[test]
fn flags_change_the_process() -> Result<()> {
    let knarr = Knarr::with_busybox()?;
    let file = knarr.scratch().join("env");
    std::fs::write(&file, "# comment\nFROM_FILE=a b\n")?;
    let env_file = file.to_str().unwrap_or_default();
    assert_eq!(
        sh(
            &knarr,
            &["-e", "A=1", "--env-file", env_file],
            "echo $A $FROM_FILE $HOME $HOSTNAME | wc -w; echo $A $FROM_FILE"
        )?,
        "5\n1 a b"
    );
    assert_eq!(sh(&knarr, &["-w", "/made/here"], "pwd")?, "/made/here");
    assert_eq!(
        sh(&knarr, &["-u", "app"], "id -u; id -g; echo $HOME")?,
        "1000\n1000\n/home/app"
    );
    assert_eq!(
        sh(
            &knarr,
            &["-u", "1234:5678", "--group-add", "extra"],
            "id -u; id -G"
        )?,
        "1234\n5678 2000"
    );
    assert_eq!(
        knarr.ok(["run", "--rm", "--entrypoint", "echo", "busybox", "hi"])?,
        "hi"
    );
    assert_eq!(
        sh(
            &knarr,
            &["--ulimit", "nofile=512:1024"],
            "ulimit -n; ulimit -Hn"
        )?,
        "512\n1024"
    );
    assert_eq!(
        sh(
            &knarr,
            &["--sysctl", "net.ipv4.ip_forward=1"],
            "cat /proc/sys/net/ipv4/ip_forward"
        )?,
        "1"
    );
    assert_eq!(
        sh(
            &knarr,
            &["--shm-size", "8m"],
            "df -k /dev/shm | awk 'NR==2{print $2}'"
        )?,
        "8192"
    );
    assert_eq!(
        sh(&knarr, &["--init"], "cat /proc/1/comm; echo $$")?
            .lines()
            .count(),
        2
    );
    assert_ne!(sh(&knarr, &["--init"], "echo $$")?, "1");
    let read_only = knarr.run(["run", "--rm", "--read-only", "busybox", "touch", "/x"])?;
    assert_eq!(read_only.code, 1);
    assert!(
        read_only.stderr.contains("Read-only file system"),
        "{}",
        read_only.stderr
    );
    assert_eq!(
        sh(
            &knarr,
            &["--read-only", "--tmpfs", "/x:size=1m"],
            "touch /x/y && echo yes"
        )?,
        "yes"
    );
    Ok(())
}

#[test]
fn limits_are_enforced_and_told() -> Result<()> {
    let knarr = Knarr::with_busybox()?;
    // Dirty more anonymous memory than allowed: a string grows in the shell until it is killed.
    let grow = "x=aaaaaaaaaaaaaaaa; while :; do x=$x$x; done";
    let output = knarr.run([
        "run",
        "--name",
        "oom",
        "-m",
        "16m",
        "--memory-swap",
        "16m",
        "busybox",
        "sh",
        "-c",
        grow,
    ])?;
    assert_eq!(output.code, 137, "{}", output.stderr);
    assert_eq!(
        knarr.ok(["inspect", "-f", "{{.State.OOMKilled}}", "oom"])?,
        "true"
    );
    // Forks beyond the limit fail.
    let forks = "for i in 1 2 3 4 5 6 7 8 9 10; do sleep 5 & done; echo all";
    let output = knarr.run([
        "run",
        "--rm",
        "--pids-limit",
        "5",
        "busybox",
        "sh",
        "-c",
        forks,
    ])?;
    assert!(output.stderr.contains("fork"), "{output:?}");
    let bad = knarr.run(["run", "--rm", "-m", "1m", "busybox", "true"])?;
    assert_eq!(bad.code, 125);
    assert!(
        bad.stderr.contains("6"),
        "names the least memory: {}",
        bad.stderr
    );
    Ok(())
}

#[test]
fn capabilities_and_filters_are_dockers() -> Result<()> {
    let knarr = Knarr::with_busybox()?;
    let status = |flags: &[&str]| {
        sh(
            &knarr,
            flags,
            "grep -E 'CapEff|CapInh|NoNewPrivs|^Seccomp:' /proc/self/status",
        )
    };
    assert_eq!(
        status(&[])?.split_whitespace().collect::<Vec<_>>(),
        [
            "CapInh:",
            "0000000000000000",
            "CapEff:",
            "00000000a80425fb",
            "NoNewPrivs:",
            "0",
            "Seccomp:",
            "2"
        ]
    );
    let tight = status(&[
        "--cap-drop",
        "ALL",
        "--cap-add",
        "NET_BIND_SERVICE",
        "--security-opt",
        "no-new-privileges",
        "--security-opt",
        "seccomp=unconfined",
    ])?;
    assert_eq!(
        tight.split_whitespace().collect::<Vec<_>>(),
        [
            "CapInh:",
            "0000000000000000",
            "CapEff:",
            "0000000000000400",
            "NoNewPrivs:",
            "1",
            "Seccomp:",
            "0"
        ]
    );
    // Masked and read-only paths.
    assert_eq!(
        sh(
            &knarr,
            &[],
            "cat /proc/kcore | wc -c; ls /proc/acpi 2>/dev/null | wc -l"
        )?,
        "0\n0"
    );
    let sysrq = knarr.run([
        "run",
        "--rm",
        "busybox",
        "sh",
        "-c",
        "echo 0 > /proc/sys/kernel/core_pattern",
    ])?;
    assert_ne!(sysrq.code, 0);
    // The filter: unshare is refused without CAP_SYS_ADMIN, keyctl always.
    let unshare = knarr.run(["run", "--rm", "busybox", "unshare", "-m", "true"])?;
    assert_ne!(unshare.code, 0);
    assert_eq!(
        knarr.ok([
            "run",
            "--rm",
            "--privileged",
            "busybox",
            "unshare",
            "-m",
            "echo",
            "ok"
        ])?,
        "ok"
    );
    // A node for the host's disk can be made, but not opened.
    let disk = knarr.run([
        "run",
        "--rm",
        "busybox",
        "sh",
        "-c",
        "mknod /d b 254 0 && cat /d | head -c 1",
    ])?;
    assert!(disk.stderr.contains("Operation not permitted"), "{disk:?}");
    assert_eq!(
        sh(
            &knarr,
            &[],
            "echo x > /dev/null; head -c 3 /dev/zero | wc -c"
        )?,
        "3"
    );
    Ok(())
}

#[test]
fn standard_input_reaches_the_container_and_ends() -> Result<()> {
    let knarr = Knarr::with_busybox()?;
    let mut child = knarr.spawn(["run", "--rm", "-i", "busybox", "wc", "-c"])?;
    let mut stdin = child
        .stdin
        .take()
        .ok_or_else(|| anyhow::anyhow!("no stdin"))?;
    stdin.write_all(&vec![b'x'; 1 << 20])?;
    drop(stdin);
    let output = child.wait_with_output()?;
    assert_eq!(String::from_utf8_lossy(&output.stdout).trim(), "1048576");
    // Nothing is lost on the way out either, however much it is.
    let many = knarr.run(["run", "--rm", "busybox", "sh", "-c", "seq 1 200000"])?;
    assert_eq!(many.stdout.lines().count(), 200_000);
    assert!(many.stdout.ends_with("\n200000\n"));
    Ok(())
}

#[test]
fn a_terminal_is_a_terminal() -> Result<()> {
    let knarr = Knarr::with_busybox()?;
    let refused = knarr.run(["run", "--rm", "-it", "busybox", "true"])?;
    assert_ne!(refused.code, 0);
    assert!(
        refused.stderr.contains("the input device is not a TTY"),
        "{}",
        refused.stderr
    );
    assert_eq!(
        sh(&knarr, &["-t"], "tty; test -t 1 && echo yes")?.replace('\r', ""),
        "/dev/pts/0\nyes"
    );
    Ok(())
}

#[test]
fn namespaces_of_another_container_can_be_joined() -> Result<()> {
    let knarr = Knarr::with_busybox()?;
    knarr.ok([
        "run",
        "-d",
        "--name",
        "one",
        "-h",
        "one",
        "--ipc",
        "shareable",
        "busybox",
        "sleep",
        "60",
    ])?;
    let one = |ns: &str| knarr.ok(["exec", "one", "readlink", &format!("/proc/self/ns/{ns}")]);
    for (flag, ns) in [("--network", "net"), ("--pid", "pid"), ("--ipc", "ipc")] {
        let two = sh(
            &knarr,
            &[flag, "container:one"],
            &format!("readlink /proc/self/ns/{ns}"),
        )?;
        assert_eq!(two, one(ns)?, "{flag}");
    }
    knarr.ok(["rm", "-f", "one"])?;
    Ok(())
}

#[test]
fn plan_shows_what_would_be_done_and_does_nothing() -> Result<()> {
    let knarr = Knarr::with_busybox()?;
    let plan = knarr.ok(["run", "--plan", "--rm", "-m", "64m", "busybox", "true"])?;
    assert!(
        plan.contains("67108864") && plan.contains("/proc/kcore"),
        "{plan}"
    );
    assert_eq!(knarr.containers()?, Vec::<String>::new());
    Ok(())
}

#[test]
fn cidfile_holds_the_id_and_is_never_overwritten() -> Result<()> {
    let knarr = Knarr::with_busybox()?;
    let file = knarr.scratch().join("cid");
    let path = file.to_str().unwrap_or_default();
    let id = knarr.ok(["run", "-d", "--cidfile", path, "busybox", "true"])?;
    assert_eq!(std::fs::read_to_string(&file)?, id);
    let again = knarr.run(["run", "-d", "--cidfile", path, "busybox", "true"])?;
    assert_eq!(again.code, 125);
    Ok(())
}

#[test]
fn host_run_needs_no_image_and_keeps_secrets() -> Result<()> {
    let knarr = Knarr::new()?;
    let output = knarr.run([
        "run",
        "--rm",
        "--network",
        "none",
        "@host",
        "sh",
        "-c",
        "id -u; hostname; cat /etc/shadow; echo $?",
    ])?;
    assert!(output.stdout.starts_with("0\n"), "{output:?}");
    assert!(output.stderr.contains("Permission denied"), "{output:?}");
    assert!(output.stdout.ends_with("1\n"), "{output:?}");
    // Nothing of the machine can be changed.
    for path in ["/usr/x", "/etc/x"] {
        assert_ne!(
            knarr.run(["run", "--rm", "@host", "touch", path])?.code,
            0,
            "{path}"
        );
    }
    // Its own files can, and are thrown away.
    assert_eq!(
        knarr.ok([
            "run",
            "--rm",
            "@host",
            "sh",
            "-c",
            "echo 1 > /tmp/x; cat /tmp/x"
        ])?,
        "1"
    );
    assert!(!std::path::Path::new("/tmp/x").exists());
    Ok(())
}

#[test]
fn user_namespaces_keep_root_from_being_root() -> Result<()> {
    let knarr = Knarr::with_busybox()?;
    knarr.ok([
        "run",
        "-d",
        "--name",
        "mapped",
        "--userns",
        "auto",
        "busybox",
        "sh",
        "-c",
        "[ -e /file ] || echo x > /file; sleep 60",
    ])?;
    assert_eq!(knarr.ok(["exec", "mapped", "id", "-u"])?, "0");
    let pid = knarr.ok(["inspect", "-f", "{{.State.Pid}}", "mapped"])?;
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let uid: u32 = status
        .lines()
        .find_map(|line| {
            line.strip_prefix("Uid:")?
                .split_whitespace()
                .next()?
                .parse()
                .ok()
        })
        .unwrap_or(0);
    assert!(uid >= 65536, "root inside is {uid} outside");
    // The image's files look like root's inside, and what it writes is kept over a restart.
    assert_eq!(
        knarr.ok([
            "exec",
            "mapped",
            "stat",
            "-c",
            "%u",
            "/bin/busybox",
            "/file"
        ])?,
        "0\n0"
    );
    knarr.ok(["restart", "-t", "0", "mapped"])?;
    assert_eq!(knarr.ok(["exec", "mapped", "cat", "/file"])?, "x");
    knarr.ok(["rm", "-f", "mapped"])?;
    Ok(())
}

#[test]
fn every_driver_runs_the_same_container() -> Result<()> {
    // Files as devices of EROFS came with Linux 6.12, and so did overlays of descriptors; an older kernel
    // has loop devices and paths.
    let release = rustix::system::uname()
        .release()
        .to_string_lossy()
        .into_owned();
    let mut numbers = release
        .split('.')
        .map_while(|number| number.parse::<u32>().ok());
    let newer = (numbers.next(), numbers.next()) >= (Some(6), Some(12));
    let drivers: &[&str] = if newer {
        &["erofs", "erofs-loop", "erofs-loop-path", "overlay"]
    } else {
        &["erofs-loop-path", "overlay-path"]
    };
    for driver in drivers {
        let mut knarr = Knarr::new()?;
        knarr.env("KNARR_DRIVER", driver);
        let image = knarr_testkit::fixture::busybox_image()?;
        knarr.ok(["load", "-q", "-i", image.to_str().unwrap_or_default()])?;
        assert_eq!(
            sh(
                &knarr,
                &[],
                "echo 1 > /bin/new; rm /bin/ls; test -e /bin/ls || cat /bin/new; du -sx / >/dev/null && echo du"
            )?,
            "1\ndu",
            "{driver}"
        );
    }
    Ok(())
}

#[test]
fn twenty_containers_share_one_copy_of_the_image() -> Result<()> {
    let knarr = Knarr::with_busybox()?;
    let mut superblocks = std::collections::BTreeSet::new();
    let mut holders = 0;
    for n in 0..20 {
        let name = format!("c{n:02}");
        let id = knarr.ok(["run", "-d", "--name", &name, "busybox", "sleep", "60"])?;
        // The monitor holds the layer's mount; one superblock is one page cache.
        let state = knarr
            .run_root()
            .join("containers")
            .join(id)
            .join("state.json");
        let state: serde_json::Value = serde_json::from_str(&std::fs::read_to_string(state)?)?;
        let monitor = state["monitor"]["pid"].as_i64().unwrap_or_default();
        for entry in std::fs::read_dir(format!("/proc/{monitor}/fd"))?.flatten() {
            let erofs = rustix::fs::statfs(entry.path()).is_ok_and(|fs| fs.f_type == 0xe0f5_e1e2);
            if erofs {
                superblocks.insert(rustix::fs::stat(entry.path())?.st_dev);
                holders += 1;
            }
        }
    }
    assert!(holders >= 20, "{holders} of 20 monitors hold the layer");
    assert_eq!(superblocks.len(), 1, "{superblocks:?}");
    let mounts = std::fs::read_to_string("/proc/self/mountinfo")?;
    assert!(
        !mounts.contains(" erofs "),
        "nothing in the host's mount table"
    );
    Ok(())
}
