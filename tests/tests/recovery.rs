//! What dies, and what goes on: the monitor, the command, the machine; and a disk that is full.

use std::collections::BTreeSet;
use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use knarr_testkit::{ImageBuilder, Knarr, Output, Process, eventually, fixture, wait_for};
use rustix::process::{Pid, Signal, kill_process};

const SOON: Duration = Duration::from_secs(10);

fn kill(pid: i32) -> Result<()> {
    let process = Pid::from_raw(pid).context("no process")?;
    kill_process(process, Signal::KILL)?;
    eventually(SOON, "it is dead", || {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        (stat.is_empty() || stat.contains(") Z ")).then_some(())
    });
    Ok(())
}

fn monitor_of(knarr: &Knarr, id: &str) -> Result<i32> {
    let monitors = knarr.processes().into_iter().filter(Process::is_monitor);
    let mut monitors = monitors.filter(|monitor| monitor.command.contains(id));
    Ok(monitors.next().context("no monitor")?.pid)
}

fn state(knarr: &Knarr, name: &str) -> Result<String> {
    knarr.ok(["inspect", "-f", "{{.State.Status}} {{.State.Pid}}", name])
}

const COUNT: &str = "i=0; while :; do echo $i; i=$((i+1)); sleep 0.05; done";

#[test]
fn a_killed_monitor_is_replaced_and_the_container_lives() -> Result<()> {
    let knarr = Knarr::with_busybox()?;
    let id = knarr.ok(["run", "-d", "--name", "kk", "busybox", "sh", "-c", COUNT])?;
    let before = state(&knarr, "kk")?;
    kill(monitor_of(&knarr, &id)?)?;
    assert_eq!(state(&knarr, "kk")?, before);
    assert!(before.starts_with("running "));
    assert!(knarr.ok(["ps"])?.contains("Up "));
    assert_eq!(knarr.ok(["exec", "kk", "echo", "in"])?, "in");
    assert_ne!(
        monitor_of(&knarr, &id)?,
        0,
        "the call has left a new monitor"
    );
    let seen = knarr.ok(["logs", "kk"])?.lines().count();
    eventually(SOON, "logs go on", || {
        (knarr.ok(["logs", "kk"]).ok()?.lines().count() > seen + 3).then_some(())
    });
    // What it wrote while nobody read waited in the pipe.
    let lines = knarr.ok(["logs", "kk"])?;
    for (index, line) in lines.lines().enumerate() {
        assert_eq!(line, index.to_string(), "a line was lost");
    }
    assert_eq!(state(&knarr, "kk")?, before);
    knarr.ok(["stop", "-t", "0", "kk"])?;
    let end = "{{.State.Status}} {{.State.ExitCode}}";
    assert_eq!(knarr.ok(["inspect", "-f", end, "kk"])?, "exited 137");
    knarr.ok(["rm", "kk"])?;
    assert_eq!(knarr.leftovers("-"), BTreeSet::new());
    Ok(())
}

#[test]
fn a_killed_command_does_not_take_the_container_with_it() -> Result<()> {
    let knarr = Knarr::with_busybox()?;
    for rm in [false, true] {
        let mut args = vec!["run", "--name", "kk", "busybox", "sh", "-c"];
        let wait = "echo up; until [ -e /go ]; do echo tick; sleep 0.05; done; exit 4";
        args.push(wait);
        if rm {
            args.insert(1, "--rm");
        }
        let mut client = knarr.spawn(&args)?;
        let mut line = String::new();
        let stdout = client.stdout.take().context("no output")?;
        BufReader::new(stdout).read_line(&mut line)?;
        assert_eq!(line, "up\n");
        let before = state(&knarr, "kk")?;
        client.kill()?;
        client.wait()?;
        assert_eq!(knarr.ok(["exec", "kk", "echo", "in"])?, "in");
        assert_eq!(state(&knarr, "kk")?, before);
        knarr.ok(["exec", "kk", "touch", "/go"])?;
        if rm {
            eventually(SOON, "it is removed at its end", || {
                knarr.ok(["ps", "-aq"]).ok()?.is_empty().then_some(())
            });
        } else {
            assert_eq!(knarr.ok(["wait", "kk"])?, "4");
            assert!(knarr.ok(["logs", "kk"])?.ends_with("tick"));
            knarr.ok(["rm", "kk"])?;
        }
        eventually(SOON, "nothing is left", || {
            knarr.leftovers("-").is_empty().then_some(())
        });
    }
    Ok(())
}

/// A reboot: every process ends at once, and the run root, which is memory, tells of another boot.
#[test]
fn after_a_reboot_containers_are_known_and_start_again() -> Result<()> {
    let knarr = Knarr::with_busybox()?;
    let ran = [
        "run", "-d", "--name", "ran", "-v", "kv:/data", "busybox", "sh", "-c",
    ];
    let work = "echo $((1 + $(cat /data/n || echo 0))) >/data/n.new; mv /data/n.new /data/n; cat /proc/sys/kernel/random/uuid >/mark; echo up; sleep 60";
    knarr.ok(ran.iter().chain(&[work]))?;
    knarr.run(["run", "--name", "done", "busybox", "sh", "-c", "exit 3"])?;
    knarr.ok(["create", "--name", "new", "busybox", "sleep", "60"])?;
    knarr.ok([
        "run", "-d", "--rm", "--name", "gone", "busybox", "sleep", "60",
    ])?;
    eventually(SOON, "it is up", || {
        knarr.ok(["logs", "ran"]).ok()?.contains("up").then_some(())
    });
    let mark = knarr.ok(["exec", "ran", "cat", "/mark"])?;
    let mut processes = knarr.processes();
    // Monitors first, so that none of them sees an end.
    processes.sort_by_key(|process| !process.is_monitor());
    for process in processes {
        kill_process(Pid::from_raw(process.pid).context("pid")?, Signal::KILL).ok();
    }
    eventually(SOON, "all is dead", || {
        knarr.processes().is_empty().then_some(())
    });
    // A reboot takes the cgroups with it.
    for item in knarr.leftovers("-") {
        if let Some(dir) = item.strip_prefix("cgroup ") {
            std::fs::remove_dir(dir)?;
        }
    }
    std::fs::write(
        knarr.run_root().join("boot-id"),
        "00000000-0000-0000-0000-000000000000",
    )?;

    let status = |name| knarr.ok(["ps", "-a", "--filter", name, "--format", "{{.Status}}"]);
    assert!(
        status("name=ran")?.starts_with("Exited (255)"),
        "{}",
        status("name=ran")?
    );
    assert!(
        status("name=done")?.starts_with("Exited (3)"),
        "{}",
        status("name=done")?
    );
    assert_eq!(status("name=new")?, "Created");
    assert_eq!(status("name=gone")?, "");
    assert!(knarr.ok(["logs", "ran"])?.contains("up"));
    // A name of a container that the reboot took is free again.
    for name in ["ran", "done", "new"] {
        let taken = knarr.run(["create", "--name", name, "busybox"])?;
        assert_eq!(taken.code, 125, "{taken:?}");
    }
    knarr.ok(["start", "ran", "new"])?;
    assert_eq!(
        knarr.ok(["start", "-a", "done"]).err().map(|_| ()),
        Some(())
    );
    eventually(SOON, "it counts on", || {
        (knarr.ok(["exec", "ran", "cat", "/data/n"]).ok()? == "2").then_some(())
    });
    assert_ne!(
        knarr.ok(["exec", "ran", "cat", "/mark"])?,
        mark,
        "its own layer is writable"
    );
    knarr.ok(["run", "--rm", "--name", "gone", "busybox", "true"])?;
    knarr.ok(["rm", "-f", "ran", "done", "new"])?;
    let left = || knarr.leftovers("-");
    wait_for(SOON, || left().is_empty().then_some(()))
        .with_context(|| format!("left behind: {:#?}", left()))?;
    Ok(())
}

/// A small disk that only the processes in one mount namespace see.
struct Disk {
    holder: Child,
}

impl Disk {
    fn new(knarr: &Knarr, megabytes: u64) -> Result<Self> {
        let image = knarr.scratch().join("disk");
        std::fs::File::create(&image)?.set_len(megabytes << 20)?;
        let made = Command::new("mkfs.ext4")
            .args(["-q", "-F", "-m", "0"])
            .arg(&image)
            .status();
        ensure!(
            made.context("mkfs.ext4 is missing: e2fsprogs")?.success(),
            "mkfs.ext4 failed"
        );
        std::fs::create_dir_all(knarr.root())?;
        let mut holder = Command::new("unshare")
            .args(["--mount", "--propagation", "private", "sh", "-c"])
            .arg("mount -o loop \"$0\" \"$1\" && echo mounted && exec sleep 600")
            .args([&image, &knarr.root()])
            .stdout(Stdio::piped())
            .spawn()?;
        let mut line = String::new();
        let stdout = holder.stdout.take().context("no output")?;
        BufReader::new(stdout).read_line(&mut line)?;
        let disk = Self { holder };
        ensure!(line == "mounted\n", "the small disk cannot be mounted");
        Ok(disk)
    }

    /// A command in there.
    fn command(&self, program: &Path) -> Command {
        let mut command = Command::new("nsenter");
        command.arg(format!("--mount=/proc/{}/ns/mnt", self.holder.id()));
        command.arg("--").arg(program).stdin(Stdio::null());
        command
    }

    fn run(&self, knarr: &Knarr, args: &[&str]) -> Result<Output> {
        let there = knarr.command(args);
        let output = self
            .command(Path::new(there.get_program()))
            .args(there.get_args())
            .output()?;
        Ok(Output {
            code: output.status.code().unwrap_or(-1),
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        })
    }

    fn ok(&self, knarr: &Knarr, args: &[&str]) -> Result<String> {
        let output = self.run(knarr, args)?;
        ensure!(output.code == 0, "{args:?}: {output:?}");
        Ok(output.text().to_owned())
    }

    fn sh(&self, script: &str, root: &Path) -> Result<String> {
        let output = self
            .command(Path::new("sh"))
            .args(["-c", script])
            .arg(root)
            .output()?;
        Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        // The disk goes with the last process of its namespace.
        self.holder.kill().ok();
        self.holder.wait().ok();
    }
}

#[test]
fn a_full_disk_is_told_and_leaves_nothing_half_made() -> Result<()> {
    let knarr = Knarr::new()?;
    let disk = Disk::new(&knarr, 24)?;
    let busybox = fixture::busybox_image()?;
    let busybox = busybox.to_str().context("a path")?;
    disk.ok(&knarr, &["load", "-q", "-i", busybox])?;
    disk.ok(&knarr, &["run", "--rm", "busybox", "true"])?;

    // A layer that does not fit.
    let big = knarr.scratch().join("big");
    std::fs::create_dir(&big)?;
    let mut noise = vec![0u8; 40 << 20];
    rustix::rand::getrandom(&mut noise[..256], rustix::rand::GetRandomFlags::empty())?;
    std::fs::write(big.join("noise"), &noise)?;
    let tar = knarr.scratch().join("big.tar");
    knarr_testkit::tar_folder(&big, &tar)?;
    let archive = knarr.scratch().join("big-image.tar");
    let image = ImageBuilder::new("big:1").layer(std::fs::read(&tar)?);
    image.write_docker_archive(&archive)?;
    let list = "cd $0 && find . | sort";
    let before = disk.sh(list, &knarr.root())?;
    let archive = archive.to_str().context("a path")?;
    for args in [
        &["load", "-i", archive][..],
        &["import", tar.to_str().context("path")?, "big:2"],
    ] {
        let output = disk.run(&knarr, args)?;
        assert_eq!(output.code, 1, "{output:?}");
        assert!(
            output
                .stderr
                .to_lowercase()
                .contains("no space left on device"),
            "{}",
            output.stderr
        );
        assert_eq!(
            disk.sh(list, &knarr.root())?,
            before,
            "half-made after {args:?}"
        );
    }

    // A container fills it, and is told so; its end gives the space back.
    let fill = "dd if=/dev/zero of=/big bs=1M; echo full >&2; exit 9";
    let output = disk.run(&knarr, &["run", "--rm", "busybox", "sh", "-c", fill])?;
    assert_eq!(output.code, 9, "{output:?}");
    assert!(
        output
            .stderr
            .to_lowercase()
            .contains("no space left on device"),
        "{}",
        output.stderr
    );

    // A log that cannot be written does not stop the container.
    disk.ok(&knarr, &["run", "-d", "--name", "talks", "busybox", "sh", "-c", "cat /dev/zero >/big; \
        i=0; while [ $i -lt 2000 ]; do echo a line of some length that goes to the log $i; i=$((i+1)); done; \
        rm /big; sleep 60"])?;
    eventually(SOON, "it goes on", || {
        let sleeps = disk.run(&knarr, &["top", "talks"]).ok()?;
        sleeps.stdout.contains("sleep 60").then_some(())
    });
    disk.ok(&knarr, &["rm", "-f", "talks"])?;

    // Nothing more can be made, and what cannot be made leaves nothing.
    disk.sh(
        "cd $0; cat /dev/zero >filler; i=0; while echo >f$i; do i=$((i+1)); done; sync",
        &knarr.root(),
    )?;
    let before = disk.sh(list, &knarr.root())?;
    let output = disk.run(
        &knarr,
        &["create", "--name", "no", "-v", "novolume:/data", "busybox"],
    )?;
    assert_eq!(output.code, 125, "{output:?}");
    assert!(
        output
            .stderr
            .to_lowercase()
            .contains("no space left on device"),
        "{}",
        output.stderr
    );
    assert!(
        output.stderr.contains(&knarr.root().display().to_string()),
        "{}",
        output.stderr
    );
    assert_eq!(disk.sh(list, &knarr.root())?, before, "half-made");
    assert_eq!(disk.ok(&knarr, &["ps", "-aq"])?, "");
    disk.sh("rm $0/filler $0/f[0-9]*", &knarr.root())?;
    disk.ok(&knarr, &["run", "--rm", "busybox", "true"])?;
    eventually(SOON, "nothing is left", || {
        knarr.leftovers("-").is_empty().then_some(())
    });
    Ok(())
}
