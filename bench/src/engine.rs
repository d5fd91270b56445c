//! Knarr, docker and podman, each on folders of its own, all with the same busybox image.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use knarr_testkit::{binary, fixture, target, wait_for};

/// A tmpfs in the benchmark's folder, gone with its mount namespace.
const RUN: &str = "run";

/// One container engine's command line.
#[derive(Debug, Clone)]
pub(crate) struct Engine {
    /// `knarr`, `docker` or `podman`.
    pub(crate) name: &'static str,
    program: PathBuf,
    globals: Vec<String>,
    /// What `run` and `create` need here on top.
    extra: &'static [&'static str],
}

impl Engine {
    /// A program with the words that come before each command.
    pub(crate) fn new(name: &'static str, program: &str, globals: &[&str]) -> Self {
        Self {
            name,
            program: PathBuf::from(program),
            globals: globals.iter().map(|&word| word.to_owned()).collect(),
            extra: &[],
        }
    }

    /// The same with another `--root`.
    pub(crate) fn with_root(mut self, root: &Path) -> Self {
        self.globals
            .extend(["--root".to_owned(), root.display().to_string()]);
        self
    }

    /// A command line, not started, output thrown away.
    pub(crate) fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(&self.program);
        command.args(&self.globals);
        match args.split_first() {
            Some((verb, rest)) if matches!(*verb, "run" | "create") => {
                command.arg(verb).args(self.extra).args(rest);
            }
            _ => {
                command.args(args);
            }
        }
        command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped());
        command
    }

    /// Runs it; fails if it fails.
    pub(crate) fn ok(&self, args: &[&str]) -> Result<()> {
        let output = self
            .command(args)
            .output()
            .with_context(|| format!("cannot run {}", self.name))?;
        ensure!(
            output.status.success(),
            "{} {args:?} failed: {}",
            self.name,
            String::from_utf8_lossy(&output.stderr)
        );
        Ok(())
    }
}

/// All three. Dropping ends the daemon and removes every folder.
#[derive(Debug)]
pub(crate) struct Engines {
    /// Knarr first: ratios are to it.
    pub(crate) all: Vec<Engine>,
    dockerd: Child,
    dir: PathBuf,
}

impl Engines {
    /// Starts dockerd, gives every engine the image.
    pub(crate) fn start() -> Result<Self> {
        let dir = target().join("bench").join(std::process::id().to_string());
        std::fs::create_dir_all(&dir)?;
        let at = |name: &str| dir.join(name).display().to_string();
        // What /run is on every distribution: each engine's volatile state goes there.
        let run = dir.join(RUN);
        std::fs::create_dir(&run)?;
        let mounted = Command::new("mount")
            .args(["-t", "tmpfs", "-o", "mode=700", "tmpfs"])
            .arg(&run)
            .status()?;
        ensure!(mounted.success(), "cannot mount a tmpfs: {mounted}");
        let volatile = |name: &str| run.join(name).display().to_string();
        let socket = format!("unix://{}", at("docker.sock"));
        let dockerd = Command::new("dockerd")
            .args([
                "--data-root",
                &at("docker/data"),
                "--exec-root",
                &volatile("docker"),
            ])
            .args(["--pidfile", &at("docker.pid"), "-H", &socket])
            .args([
                "--bridge=none",
                "--iptables=false",
                "--ip6tables=false",
                "--ip-forward=false",
            ])
            .args(["--storage-driver", "overlay2", "--log-level", "error"])
            .stdout(Stdio::null())
            .stderr(std::fs::File::create(dir.join("dockerd.log"))?)
            .spawn()
            .context("cannot start dockerd")?;
        let owned = |args: &[&str]| args.iter().map(|arg| (*arg).to_owned()).collect();
        let all = vec![
            Engine {
                name: "knarr",
                program: binary("knarr"),
                globals: owned(&["--root", &at("knarr/data"), "--runroot", &volatile("knarr")]),
                extra: &["--network", "none"],
            },
            Engine {
                name: "docker",
                program: PathBuf::from("/usr/bin/docker"),
                globals: owned(&["-H", &socket]),
                extra: &["--network", "none"],
            },
            Engine {
                name: "podman",
                program: PathBuf::from("podman"),
                globals: owned(&[
                    "--root",
                    &at("podman/data"),
                    "--runroot",
                    &volatile("podman/run"),
                    "--tmpdir",
                    &volatile("podman/tmp"),
                    "--cgroup-manager",
                    "cgroupfs",
                    "--storage-driver",
                    "overlay",
                    "--events-backend",
                    "file",
                    "--runtime",
                    "runc",
                    "--log-level",
                    "error",
                ]),
                // Its default limits need CAP_SYS_RESOURCE where the host has lower ones.
                extra: &[
                    "--network",
                    "none",
                    "--ulimit",
                    "nofile=1024:2048",
                    "--ulimit",
                    "nproc=4096:8192",
                ],
            },
        ];
        let engines = Self { all, dockerd, dir };
        let image = fixture::busybox_image()?;
        let image = image.to_str().context("odd path")?;
        for engine in &engines.all {
            let up = wait_for(Duration::from_secs(30), || {
                let version = engine.command(&["version"]).output().ok()?;
                version.status.success().then_some(())
            });
            ensure!(up.is_some(), "{} does not answer", engine.name);
            engine.ok(&["load", "-i", image])?;
            // The first start fills caches that every later one has.
            engine.ok(&["run", "--rm", "busybox", "true"])?;
        }
        Ok(engines)
    }

    /// Removes the containers whose names start with a prefix and a number below `count`.
    pub(crate) fn remove(&self, prefix: &str, count: usize) -> Result<()> {
        let names: Vec<String> = (0..count).map(|n| format!("{prefix}{n}")).collect();
        for engine in &self.all {
            for chunk in names.chunks(20) {
                let mut args = vec!["rm", "-f"];
                args.extend(chunk.iter().map(String::as_str));
                engine.ok(&args)?;
            }
        }
        Ok(())
    }

    /// dockerd and its containerd.
    pub(crate) fn daemons(&self) -> Vec<u32> {
        let parent = self.dockerd.id();
        let mut found = vec![parent];
        for entry in std::fs::read_dir("/proc").into_iter().flatten().flatten() {
            let status = std::fs::read_to_string(entry.path().join("status")).unwrap_or_default();
            let is_child = status
                .lines()
                .filter_map(|line| line.strip_prefix("PPid:"))
                .any(|ppid| ppid.trim().parse() == Ok(parent));
            let pid = entry
                .file_name()
                .to_str()
                .and_then(|name| name.parse::<u32>().ok());
            found.extend(pid.filter(|_| is_child));
        }
        found
    }

    /// The folder whose space the engines use.
    pub(crate) fn dir(&self) -> &Path {
        &self.dir
    }
}

impl Drop for Engines {
    fn drop(&mut self) {
        let pid = std::fs::read_to_string(self.dir.join("docker.pid")).unwrap_or_default();
        if let Some(pid) = pid
            .trim()
            .parse()
            .ok()
            .and_then(rustix::process::Pid::from_raw)
        {
            rustix::process::kill_process(pid, rustix::process::Signal::TERM).ok();
        }
        self.dockerd.wait().ok();
        for engine in self.all.iter().filter(|engine| engine.name == "podman") {
            engine.ok(&["system", "reset", "-f"]).ok();
        }
        // Lazily: what still runs in it ends on its own.
        Command::new("umount")
            .arg("-l")
            .arg(self.dir.join(RUN))
            .status()
            .ok();
        std::fs::remove_dir_all(&self.dir).ok();
    }
}
