//! Knarr, docker and podman, each on folders of its own, all with the same busybox image.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use knarr_testkit::{Netns, binary, fixture, target, wait_for};

/// A tmpfs in the benchmark's folder, gone with its mount namespace.
const RUN: &str = "run";

/// Where containers are, when a command line does not say.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Network {
    /// On none: what an engine is besides its networks.
    None,
    /// On the engine's default network; every engine has a network namespace of its own with a
    /// neighbour at [`NEIGHBOUR`].
    Default,
}

/// An engine's own address on the link to its neighbour.
pub(crate) const HOST: &str = "192.0.2.1";
/// Its neighbour's.
pub(crate) const NEIGHBOUR: &str = "192.0.2.2";

/// An engine's host, and who reaches it from outside.
#[derive(Debug)]
pub(crate) struct Place {
    pub(crate) host: Netns,
    pub(crate) neighbour: Netns,
}

impl Place {
    /// Two network namespaces and a link between them.
    pub(crate) fn new() -> Result<Self> {
        let (host, neighbour) = (Netns::new()?, Netns::new()?);
        let address = |ip: &str| format!("{ip}/24");
        host.link(
            ("uplink0", &[&address(HOST)]),
            &neighbour,
            ("uplink0", &[&address(NEIGHBOUR)]),
        )?;
        Ok(Self { host, neighbour })
    }
}

/// One container engine's command line.
#[derive(Debug, Clone)]
pub(crate) struct Engine {
    /// `knarr`, `docker` or `podman`.
    pub(crate) name: &'static str,
    program: PathBuf,
    globals: Vec<String>,
    /// What `run` and `create` need here on top.
    extra: Vec<&'static str>,
    /// Where it runs, if not where everything does.
    pub(crate) place: Option<Arc<Place>>,
}

impl Engine {
    /// A program with the words that come before each command.
    pub(crate) fn new(name: &'static str, program: &str, globals: &[&str]) -> Self {
        Self {
            name,
            program: PathBuf::from(program),
            globals: globals.iter().map(|&word| word.to_owned()).collect(),
            extra: Vec::new(),
            place: None,
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
                command.arg(verb).args(&self.extra).args(rest);
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
        self.finish(self.command(args)).map(drop)
    }

    /// Runs it and gives what it printed; fails if it fails.
    pub(crate) fn text(&self, args: &[&str]) -> Result<String> {
        let mut command = self.command(args);
        command.stdout(Stdio::piped());
        self.finish(command)
    }

    fn finish(&self, mut command: Command) -> Result<String> {
        let output = self
            .within(|| Ok(command.output()?))
            .with_context(|| format!("cannot run {}", self.name))?;
        ensure!(
            output.status.success(),
            "{command:?} failed: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
    }

    /// Does something where the engine runs.
    pub(crate) fn within<T>(&self, act: impl FnOnce() -> Result<T>) -> Result<T> {
        match &self.place {
            Some(place) => place.host.within(act),
            None => act(),
        }
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
    pub(crate) fn start(network: Network) -> Result<Self> {
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
        let mut dockerd = Command::new("dockerd");
        if network == Network::None {
            dockerd
                .args(["--bridge=none", "--iptables=false", "--ip6tables=false"])
                .arg("--ip-forward=false");
        }
        dockerd
            .args(["--data-root", &at("docker/data")])
            .args(["--exec-root", &volatile("docker")])
            .args(["--pidfile", &at("docker.pid"), "-H", &socket])
            .args(["--storage-driver", "overlay2", "--log-level", "error"])
            .stdout(Stdio::null())
            .stderr(std::fs::File::create(dir.join("dockerd.log"))?);
        let place = || match network {
            Network::None => Ok(None),
            Network::Default => Place::new().map(Arc::new).map(Some),
        };
        let extra: &[&str] = match network {
            Network::None => &["--network", "none"],
            Network::Default => &[],
        };
        let owned = |args: &[&str]| args.iter().map(|arg| (*arg).to_owned()).collect();
        let all = vec![
            Engine {
                name: "knarr",
                program: binary("knarr"),
                globals: owned(&["--root", &at("knarr/data"), "--runroot", &volatile("knarr")]),
                extra: extra.to_vec(),
                place: place()?,
            },
            Engine {
                name: "docker",
                program: PathBuf::from("/usr/bin/docker"),
                globals: owned(&["-H", &socket]),
                extra: extra.to_vec(),
                place: place()?,
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
                    "--network-config-dir",
                    &at("podman/networks"),
                    "--log-level",
                    "error",
                ]),
                // Its default limits need CAP_SYS_RESOURCE where the host has lower ones.
                extra: [
                    extra,
                    &[
                        "--ulimit",
                        "nofile=1024:2048",
                        "--ulimit",
                        "nproc=4096:8192",
                    ],
                ]
                .concat(),
                place: place()?,
            },
        ];
        let docker = all.iter().find(|engine| engine.name == "docker");
        let dockerd = docker
            .context("no docker")?
            .within(|| dockerd.spawn().context("cannot start dockerd"))?;
        let engines = Self { all, dockerd, dir };
        let image = fixture::busybox_image()?;
        let image = image.to_str().context("odd path")?;
        for engine in &engines.all {
            let up = wait_for(Duration::from_secs(30), || engine.ok(&["version"]).ok());
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
