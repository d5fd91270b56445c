//! A Knarr of one's own: the built binaries on private roots.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use anyhow::{Context as _, Result, ensure};

use crate::{binary, fixture, target};

/// The `knarr` binary with `--root` and `--runroot` of its own. Dropping it removes every container
/// and the roots.
#[derive(Debug)]
pub struct Knarr {
    dir: PathBuf,
    env: Vec<(String, String)>,
}

/// What a command did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Output {
    /// The exit code; 128+n where a signal ended it.
    pub code: i32,
    /// Standard output as text.
    pub stdout: String,
    /// Standard error as text.
    pub stderr: String,
}

impl Output {
    /// Standard output without the white space around it.
    pub fn text(&self) -> &str {
        self.stdout.trim()
    }
}

impl Knarr {
    /// Fresh roots and a private network for the calling thread. The roots are below `target/tmp` (a real disk: EROFS does not mount from tmpfs).
    ///
    /// # Errors
    /// When the folder cannot be made, or the binaries are not built.
    pub fn new() -> Result<Self> {
        ensure!(
            binary("knarr").exists() && binary("knarr-monitor").exists(),
            "the binaries are not built: run `cargo x build` first"
        );
        crate::private_network()?;
        let mut random = [0u8; 4];
        rustix::rand::getrandom(&mut random, rustix::rand::GetRandomFlags::empty())?;
        let dir = target()
            .join("tmp")
            .join(format!("{:08x}", u32::from_ne_bytes(random)));
        std::fs::create_dir_all(&dir)?;
        Ok(Self {
            dir,
            env: Vec::new(),
        })
    }

    /// With `busybox:latest` loaded.
    ///
    /// # Errors
    /// As [`Knarr::new`], or when loading fails.
    pub fn with_busybox() -> Result<Self> {
        Self::with_image(&fixture::busybox_image()?)
    }

    /// With the images of an archive or layout folder loaded.
    ///
    /// # Errors
    /// As [`Knarr::new`], or when loading fails.
    pub fn with_image(archive: &Path) -> Result<Self> {
        let knarr = Self::new()?;
        let loaded = knarr.run([
            "load".as_ref(),
            "-q".as_ref(),
            "-i".as_ref(),
            archive.as_os_str(),
        ])?;
        ensure!(loaded.code == 0, "load failed: {}", loaded.stderr);
        Ok(knarr)
    }

    /// Sets an environment variable for every later call.
    pub fn env(&mut self, name: &str, value: &str) {
        self.env.retain(|(known, _)| known != name);
        self.env.push((name.to_owned(), value.to_owned()));
    }

    /// The data root.
    pub fn root(&self) -> PathBuf {
        self.dir.join("data")
    }

    /// The run root.
    pub fn run_root(&self) -> PathBuf {
        self.dir.join("run")
    }

    /// A folder for the test's own files, removed with the roots.
    pub fn scratch(&self) -> PathBuf {
        let dir = self.dir.join("scratch");
        std::fs::create_dir_all(&dir).ok();
        dir
    }

    /// A command line, not started: `knarr ARGS` on these roots, standard input closed.
    pub fn command<I: IntoIterator<Item: AsRef<OsStr>>>(&self, args: I) -> Command {
        let mut command = Command::new(binary("knarr"));
        command
            .arg("--root")
            .arg(self.root())
            .arg("--runroot")
            .arg(self.run_root())
            .args(args)
            .envs(self.env.iter().map(|(name, value)| (name, value)))
            .stdin(Stdio::null());
        command
    }

    /// Runs a command to its end.
    ///
    /// # Errors
    /// When it cannot be started; not when it fails.
    pub fn run<I: IntoIterator<Item: AsRef<OsStr>>>(&self, args: I) -> Result<Output> {
        finish(self.command(args))
    }

    /// Runs a command to its end and gives standard output, trimmed; fails if it fails.
    ///
    /// # Errors
    /// When it exits with anything but 0; the message holds its standard error.
    pub fn ok<I: IntoIterator<Item: AsRef<OsStr>>>(&self, args: I) -> Result<String> {
        let args: Vec<_> = args
            .into_iter()
            .map(|arg| arg.as_ref().to_owned())
            .collect();
        let output = self.run(&args)?;
        ensure!(
            output.code == 0,
            "knarr {args:?} gave {}: {}",
            output.code,
            output.stderr
        );
        Ok(output.text().to_owned())
    }

    /// Starts a command with piped streams.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn spawn<I: IntoIterator<Item: AsRef<OsStr>>>(&self, args: I) -> Result<Child> {
        let mut command = self.command(args);
        command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        command.spawn().context("cannot start knarr")
    }

    /// The ids of all containers, running or not, as `ps` tells them.
    ///
    /// # Errors
    /// When `ps` fails.
    pub fn containers(&self) -> Result<Vec<String>> {
        Ok(self
            .ok(["ps", "-aq", "--no-trunc"])?
            .lines()
            .map(str::to_owned)
            .collect())
    }

    /// What is in the roots that belongs to no container, volume or image: folders, names, leases,
    /// temporaries, records of dead holders. Empty when all is well after every container is
    /// removed.
    pub fn litter(&self) -> BTreeSet<String> {
        let mut found = BTreeSet::new();
        let mut look = |folder: PathBuf, wanted: &dyn Fn(&str) -> bool| {
            for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
                if wanted(&entry.file_name().to_string_lossy()) {
                    found.insert(entry.path().display().to_string());
                }
            }
        };
        let (root, run) = (self.root(), self.run_root());
        let temporary = |name: &str| name.starts_with('.') && name != ".lock";
        for folder in ["containers", "names", "trash", "userns", "ephemeral"] {
            look(root.join(folder), &|name| name != ".lock");
        }
        for folder in [
            "volumes",
            "layers/sha256",
            "layers",
            "blobs",
            "blobs/sha256",
            "images",
            ".",
        ] {
            look(root.join(folder), &temporary);
        }
        for network in std::fs::read_dir(run.join("networks"))
            .into_iter()
            .flatten()
            .flatten()
        {
            for folder in ["leases", "names"] {
                look(network.path().join(folder), &|_| true);
            }
        }
        for folder in ["containers", "ending", "trash", "published"] {
            look(run.join(folder), &|_| true);
        }
        look(run.clone(), &temporary);
        let dead = |name: &str| {
            let pid = name.split('.').next().unwrap_or_default();
            let stat = std::fs::read_to_string(Path::new("/proc").join(pid).join("stat"));
            // A zombie holds nothing.
            stat.map_or(true, |stat| stat.contains(") Z "))
        };
        for layer in std::fs::read_dir(run.join("layers"))
            .into_iter()
            .flatten()
            .flatten()
        {
            look(layer.path().join("holders"), &dead);
        }
        found
    }
}

impl Drop for Knarr {
    fn drop(&mut self) {
        // A failing test must not hide behind a failing clean-up.
        if let Ok(ids) = self.containers()
            && !ids.is_empty()
        {
            self.run(
                ["rm", "-f", "-v"]
                    .into_iter()
                    .chain(ids.iter().map(String::as_str)),
            )
            .ok();
        }
        std::fs::remove_dir_all(&self.dir).ok();
    }
}

/// Runs a prepared command to its end.
fn finish(mut command: Command) -> Result<Output> {
    use std::os::unix::process::ExitStatusExt as _;
    let output = command.output().context("cannot start knarr")?;
    Ok(Output {
        code: output
            .status
            .code()
            .unwrap_or_else(|| 128 + output.status.signal().unwrap_or(0)),
        stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
        stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
    })
}
