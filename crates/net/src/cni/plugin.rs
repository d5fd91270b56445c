//! Running one plugin: a program with its configuration on standard input.

use std::io::{Read as _, Seek as _, Write as _};
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::process::CommandExt as _;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use knarr_sys::Failure;
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, WaitId, WaitIdOptions};
use serde::Deserialize;
use serde_json::Value;

use super::{Error, Result};

/// What is read of a plugin's output, in bytes.
const MOST_OUTPUT: u64 = 1 << 20;
/// What is told of a plugin's complaints, in characters.
const MOST_TOLD: usize = 400;
/// How a plugin finds the programs it uses (iptables, …), as a root's login shell does.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Which plugin of which network is asked for what.
#[derive(Debug, Clone, Copy)]
pub(super) struct Call<'a> {
    pub(super) network: &'a str,
    pub(super) plugin: &'a str,
    pub(super) command: &'static str,
    /// The variables of the specification, and nothing else.
    pub(super) env: &'a [(&'static str, String)],
    pub(super) folders: &'a [PathBuf],
    pub(super) patience: Duration,
}

/// A plugin's error (specification, section 5).
#[derive(Debug, Deserialize)]
struct Refusal {
    #[serde(default)]
    code: u64,
    #[serde(default)]
    msg: String,
    #[serde(default)]
    details: String,
}

impl Call<'_> {
    /// Runs the plugin, and gives what it wrote.
    pub(super) fn run(&self, configuration: &Value) -> Result<Vec<u8>> {
        let program = self.find()?;
        let failed = |cause| Error::Run {
            network: self.network.to_owned(),
            plugin: self.plugin.to_owned(),
            cause,
        };
        let input = memory(configuration.to_string().as_bytes()).map_err(failed)?;
        let output = memory(b"").map_err(failed)?;
        let complaints = memory(b"").map_err(failed)?;
        let copy = |fd: &OwnedFd| {
            let copy = fd.try_clone().map(Stdio::from);
            copy.map_err(|error| failed(Failure::from_io("dup", &error)))
        };
        // By path: it may be a script, whose interpreter opens it again.
        let child = Command::new(program)
            .env_clear()
            .env("PATH", PATH)
            .envs(self.env.iter().map(|(name, value)| (*name, value.as_str())))
            .current_dir("/")
            .process_group(0)
            .stdin(Stdio::from(input))
            .stdout(copy(&output)?)
            .stderr(copy(&complaints)?)
            .spawn()
            .map_err(|error| failed(Failure::from_io("execve", &error)))?;
        let pid = i32::try_from(child.id()).ok().and_then(Pid::from_raw);
        let pid = pid.ok_or(failed(Failure::of("fork")(Errno::CHILD)))?;
        let pidfd = rustix::process::pidfd_open(pid, PidfdFlags::empty())
            .map_err(|errno| failed(Failure::of("pidfd_open")(errno)))?;
        let ended = wait(pid, &pidfd, self.patience).map_err(failed)?;
        let output = text(output).map_err(failed)?;
        let complaints = String::from_utf8_lossy(&text(complaints).map_err(failed)?).into_owned();
        match ended {
            Ended::Code(0) => Ok(output),
            Ended::Code(code) => Err(self.refusal(code, &output, &complaints)),
            Ended::Signal(signal) => {
                Err(self.broken(&format!("was killed by signal {signal}"), &complaints))
            }
            Ended::Never => Err(self.broken(
                &format!("took longer than {} seconds", self.patience.as_secs()),
                &complaints,
            )),
        }
    }

    /// What it wrote makes no sense.
    pub(super) fn garbled(&self, error: &serde_json::Error) -> Error {
        self.broken(&format!("gave no result ({error})"), "")
    }

    fn refusal(&self, code: i32, output: &[u8], complaints: &str) -> Error {
        match serde_json::from_slice::<Refusal>(output) {
            Ok(refusal) if refusal.code != 0 || !refusal.msg.is_empty() => {
                let mut message = short(&refusal.msg);
                if !refusal.details.is_empty() {
                    message = format!("{message} ({})", short(&refusal.details));
                }
                Error::Plugin {
                    network: self.network.to_owned(),
                    plugin: self.plugin.to_owned(),
                    command: self.command,
                    code: refusal.code,
                    message,
                }
            }
            _ => self.broken(&format!("ended with status {code}"), complaints),
        }
    }

    fn broken(&self, how: &str, complaints: &str) -> Error {
        let complaints = short(complaints);
        Error::Broken {
            network: self.network.to_owned(),
            plugin: self.plugin.to_owned(),
            command: self.command,
            how: match complaints.as_str() {
                "" => how.to_owned(),
                complaints => format!("{how} ({complaints})"),
            },
        }
    }

    fn find(&self) -> Result<PathBuf> {
        let mut paths = self.folders.iter().map(|folder| folder.join(self.plugin));
        paths
            .find(|path| path.is_file())
            .ok_or_else(|| Error::NoPlugin {
                network: self.network.to_owned(),
                plugin: self.plugin.to_owned(),
                folders: self.folders.to_vec(),
            })
    }
}

enum Ended {
    Code(i32),
    Signal(i32),
    Never,
}

/// Waits for the program; kills it when it takes too long, with all that it runs in its group.
fn wait(pid: Pid, pidfd: &OwnedFd, patience: Duration) -> std::result::Result<Ended, Failure> {
    let until = Instant::now() + patience;
    let in_time = loop {
        let left = until.saturating_duration_since(Instant::now());
        let timeout = Timespec {
            tv_sec: i64::try_from(left.as_secs()).unwrap_or(i64::MAX),
            tv_nsec: i64::from(left.subsec_nanos()),
        };
        let mut fds = [PollFd::new(pidfd, PollFlags::IN)];
        match rustix::event::poll(&mut fds, Some(&timeout)) {
            Ok(0) => break false,
            Ok(_) => break true,
            Err(Errno::INTR) => {}
            Err(errno) => return Err(Failure::of("poll")(errno)),
        }
    };
    if !in_time {
        // Not waited for yet, it still has the number.
        rustix::process::kill_process_group(pid, rustix::process::Signal::KILL)
            .map_err(Failure::of("kill"))?;
    }
    let status = loop {
        match rustix::process::waitid(WaitId::PidFd(pidfd.as_fd()), WaitIdOptions::EXITED) {
            Ok(status) => break status,
            Err(Errno::INTR) => {}
            Err(errno) => return Err(Failure::of("waitid")(errno)),
        }
    };
    let status = status.ok_or(Failure::of("waitid")(Errno::CHILD))?;
    Ok(match (in_time, status.exit_status()) {
        (false, _) => Ended::Never,
        (true, Some(code)) => Ended::Code(code),
        (true, None) => Ended::Signal(status.terminating_signal().unwrap_or(0)),
    })
}

/// A file in memory: neither side can make the other wait.
fn memory(bytes: &[u8]) -> std::result::Result<OwnedFd, Failure> {
    let fd = rustix::fs::memfd_create("cni", rustix::fs::MemfdFlags::CLOEXEC)
        .map_err(Failure::of("memfd_create"))?;
    let mut file = std::fs::File::from(fd);
    file.write_all(bytes)
        .and_then(|()| file.rewind())
        .map_err(|error| Failure::from_io("write", &error))?;
    Ok(file.into())
}

fn text(fd: OwnedFd) -> std::result::Result<Vec<u8>, Failure> {
    let mut file = std::fs::File::from(fd);
    let mut bytes = Vec::new();
    file.rewind()
        .and_then(|()| file.take(MOST_OUTPUT).read_to_end(&mut bytes))
        .map_err(|error| Failure::from_io("read", &error))?;
    Ok(bytes)
}

/// The first line or so of what a program says, without what a terminal would obey.
fn short(text: &str) -> String {
    let clean = text
        .trim()
        .chars()
        .map(|c| if c.is_control() { ' ' } else { c });
    clean.take(MOST_TOLD).collect()
}

/// Folders as `CNI_PATH` lists them.
pub(super) fn joined(folders: &[PathBuf]) -> String {
    let parts: Vec<String> = folders
        .iter()
        .map(|folder| folder.to_string_lossy().into_owned())
        .collect();
    parts.join(":")
}
