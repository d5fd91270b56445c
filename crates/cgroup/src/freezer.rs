//! A container's processes made to stand, to go on, to end.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use knarr_sys::Failure;
use knarr_sys::rustix::event::{PollFd, PollFlags, Timespec, poll};
use knarr_sys::rustix::fs;
use knarr_sys::rustix::io::Errno;
use knarr_sys::rustix::process::{Signal, kill_process};

use crate::control;
use crate::handle::{Cgroup, PATIENCE};
use crate::{Error, Result};

impl Cgroup {
    /// Stops all processes and waits until they stand.
    ///
    /// # Errors
    /// [`Error::Stuck`] after 2 s; then it is thawed again. [`Error::MissingController`] on a v1
    /// without freezer.
    pub fn freeze(&self) -> Result<()> {
        let result = match &self.unified {
            Some(unified) => {
                control::write(&unified.path.join("cgroup.freeze"), "1")?;
                wait_for_event(&unified.path, "frozen 1", "frozen")
            }
            None => {
                let file = self.freezer()?.join("freezer.state");
                let deadline = Instant::now() + PATIENCE;
                loop {
                    // Written again: a process that forks while it freezes can escape the first.
                    control::write(&file, "FROZEN")?;
                    if control::read(&file)?.trim() == "FROZEN" {
                        break Ok(());
                    }
                    if Instant::now() > deadline {
                        break Err(stuck(file.parent().unwrap_or(&file), "frozen"));
                    }
                    std::thread::sleep(Duration::from_millis(1));
                }
            }
        };
        if result.is_err() {
            // The caller shall hear of the freezing, not of the thawing.
            self.thaw().ok();
        }
        result
    }

    /// Lets them go on.
    ///
    /// # Errors
    /// [`Error::Write`]; on v2 [`Error::Stuck`] after 2 s.
    pub fn thaw(&self) -> Result<()> {
        match &self.unified {
            Some(unified) => {
                control::write(&unified.path.join("cgroup.freeze"), "0")?;
                wait_for_event(&unified.path, "frozen 0", "thawed")
            }
            None => control::write(&self.freezer()?.join("freezer.state"), "THAWED"),
        }
    }

    /// Whether it is frozen, or about to be.
    ///
    /// # Errors
    /// [`Error::Read`].
    pub fn is_frozen(&self) -> Result<bool> {
        match &self.unified {
            Some(unified) => Ok(control::read(&unified.path.join("cgroup.freeze"))?.trim() == "1"),
            None => match self.freezer() {
                Ok(dir) => Ok(control::read(&dir.join("freezer.state"))?.trim() != "THAWED"),
                Err(_) => Ok(false),
            },
        }
    }

    /// Sends SIGKILL to every process in it, frozen ones and those of child cgroups included, and
    /// does not wait for their end.
    ///
    /// # Errors
    /// [`Error::Write`], [`Error::Read`].
    pub fn kill(&self) -> Result<()> {
        if let Some(unified) = &self.unified {
            match control::write(&unified.path.join("cgroup.kill"), "1") {
                // Before Linux 5.14.
                Err(Error::Write { cause, .. }) if cause.errno == Errno::NOENT => {}
                other => return other,
            }
        }
        self.kill_one_by_one()
    }

    /// For kernels without `cgroup.kill`: frozen, no process can fork away.
    fn kill_one_by_one(&self) -> Result<()> {
        let frozen = self.freeze().is_ok();
        let killed = self.processes().map(|processes| {
            for pid in processes {
                // It may have gone by itself.
                kill_process(pid, Signal::KILL).ok();
            }
        });
        if frozen || self.is_frozen()? {
            self.thaw()?;
        }
        killed
    }

    fn freezer(&self) -> Result<PathBuf> {
        self.legacy_with("freezer")
            .ok_or_else(|| Error::MissingController {
                wanted: "pause",
                controller: "freezer",
                available: self.layout.controllers(),
            })
    }
}

fn stuck(path: &Path, state: &'static str) -> Error {
    Error::Stuck {
        path: path.to_owned(),
        state,
        seconds: PATIENCE.as_secs(),
    }
}

/// Waits until `cgroup.events` has a line; the kernel marks each change of the file.
fn wait_for_event(dir: &Path, line: &str, state: &'static str) -> Result<()> {
    let path = dir.join("cgroup.events");
    let failed = |call: &'static str| {
        let path = path.clone();
        move |errno| Error::Read {
            path,
            cause: Failure { call, errno },
        }
    };
    let file = fs::open(
        &path,
        fs::OFlags::RDONLY | fs::OFlags::CLOEXEC,
        fs::Mode::empty(),
    )
    .map_err(failed("open"))?;
    let deadline = Instant::now() + PATIENCE;
    loop {
        let mut text = [0; 256];
        let length = knarr_sys::rustix::io::pread(&file, &mut text, 0).map_err(failed("pread"))?;
        let text = text.get(..length).unwrap_or_default();
        if text
            .split(|&byte| byte == b'\n')
            .any(|found| found == line.as_bytes())
        {
            return Ok(());
        }
        let left = deadline.saturating_duration_since(Instant::now());
        let timeout = Timespec {
            tv_sec: i64::try_from(left.as_secs()).unwrap_or(i64::MAX),
            tv_nsec: i64::from(left.subsec_nanos()),
        };
        match poll(&mut [PollFd::new(&file, PollFlags::PRI)], Some(&timeout)) {
            Ok(0) => return Err(stuck(dir, state)),
            Ok(_) | Err(Errno::INTR) => {}
            Err(errno) => return Err(failed("poll")(errno)),
        }
    }
}
