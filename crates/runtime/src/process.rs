//! Processes by handle: identity, liveness, signals, exit.

use std::fmt;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::sync::OnceLock;

use knarr_sys::Failure;
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, Signal, WaitId, WaitIdOptions};
use serde::{Deserialize, Serialize};

/// A process that cannot be taken for another one: id, start time and boot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    /// In the caller's pid namespace.
    pub pid: i32,
    /// Clock ticks since boot (field 22 of `/proc/PID/stat`, proc(5)).
    pub start_time: u64,
    /// `/proc/sys/kernel/random/boot_id`.
    pub boot_id: String,
}

/// How a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Exit {
    /// It called exit.
    Code(u8),
    /// A signal ended it.
    Signal(i32),
}

impl Exit {
    /// As shells and Docker count: the code, or 128 + the signal's number.
    pub fn code(self) -> i32 {
        match self {
            Self::Code(code) => i32::from(code),
            Self::Signal(signal) => 128 + signal,
        }
    }
}

impl fmt::Display for Exit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Code(code) => write!(f, "exit code {code}"),
            Self::Signal(signal) => write!(f, "killed by signal {signal}"),
        }
    }
}

/// This boot, from `/proc/sys/kernel/random/boot_id`, read once.
///
/// # Errors
/// As open(2) and read(2).
pub fn boot_id() -> knarr_fs::Result<String> {
    static BOOT: OnceLock<String> = OnceLock::new();
    if let Some(boot) = BOOT.get() {
        return Ok(boot.clone());
    }
    let text = knarr_fs::read_record(Path::new("/proc/sys/kernel/random/boot_id"))?;
    let text = String::from_utf8_lossy(&text);
    Ok(BOOT.get_or_init(|| text.trim().to_owned()).clone())
}

/// The signals that this process ignores, bit 0 for signal 1 (`SigIgn` of proc_pid_status(5)); all
/// where that cannot be known. One look instead of 62 questions.
pub(crate) fn ignored_signals() -> u64 {
    let status = knarr_fs::read_record(Path::new("/proc/self/status")).unwrap_or_default();
    parse_ignored(&status).unwrap_or(u64::MAX)
}

fn parse_ignored(status: &[u8]) -> Option<u64> {
    let mut lines = status.split(|&byte| byte == b'\n');
    let mask = lines.find_map(|line| line.strip_prefix(b"SigIgn:\t"))?;
    u64::from_str_radix(std::str::from_utf8(mask).ok()?, 16).ok()
}

/// When a process started, in clock ticks since boot; `None` where there is no such process or
/// only its zombie.
///
/// # Errors
/// As open(2) and read(2).
pub fn start_time(pid: i32) -> knarr_fs::Result<Option<u64>> {
    let stat = match knarr_fs::read_record(Path::new(&format!("/proc/{pid}/stat"))) {
        Ok(stat) => stat,
        Err(error) if error.is_not_found() || error.errno() == Some(Errno::SRCH) => {
            return Ok(None);
        }
        Err(error) => return Err(error),
    };
    Ok(parse_stat(&stat)
        .and_then(|(state, start)| (!matches!(state, b'Z' | b'X')).then_some(start)))
}

/// State (field 3) and start time (field 22). The name may contain anything, `)` included.
fn parse_stat(stat: &[u8]) -> Option<(u8, u64)> {
    let after = stat.iter().rposition(|&byte| byte == b')')?;
    let mut fields = stat.get(after + 1..)?.split(|&byte| byte == b' ').skip(1);
    let state = *fields.next()?.first()?;
    let start = std::str::from_utf8(fields.nth(18)?)
        .ok()?
        .trim()
        .parse()
        .ok()?;
    Some((state, start))
}

impl Identity {
    /// Of a process that is known to live.
    ///
    /// # Errors
    /// As open(2); ENOENT where it has ended.
    pub fn of(pid: Pid) -> knarr_fs::Result<Self> {
        let raw = pid.as_raw_nonzero().get();
        let start_time = start_time(raw)?.ok_or_else(|| {
            let path = format!("/proc/{raw}/stat");
            knarr_fs::Error::of("open", "open", Path::new(&path))(Errno::NOENT)
        })?;
        Ok(Self {
            pid: raw,
            start_time,
            boot_id: boot_id()?,
        })
    }

    /// A handle on it, if it lives.
    ///
    /// # Errors
    /// As pidfd_open(2) and open(2), except for what says that it does not live.
    pub fn open(&self) -> knarr_fs::Result<Option<OwnedFd>> {
        let Some(pid) = Pid::from_raw(self.pid) else {
            return Ok(None);
        };
        let pidfd = match rustix::process::pidfd_open(pid, PidfdFlags::empty()) {
            Ok(pidfd) => pidfd,
            // EINVAL: now the id of a thread.
            Err(Errno::SRCH | Errno::INVAL) => return Ok(None),
            Err(errno) => {
                let path = format!("/proc/{}", self.pid);
                return Err(knarr_fs::Error::of("open", "pidfd_open", Path::new(&path))(
                    errno,
                ));
            }
        };
        // The handle first, then the look: what is looked at cannot be reused any more.
        let same = start_time(self.pid)? == Some(self.start_time) && boot_id()? == self.boot_id;
        Ok(same.then_some(pidfd))
    }

    /// Whether it lives; a zombie does not.
    ///
    /// # Errors
    /// As [`Self::open`].
    pub fn is_alive(&self) -> knarr_fs::Result<bool> {
        Ok(self.open()?.is_some())
    }
}

/// Sends a signal by number; a process that has ended is fine and gives `false`.
///
/// # Errors
/// EPERM; EINVAL for what is no signal.
pub fn signal<Fd: AsFd>(pidfd: Fd, number: i32) -> Result<bool, Failure> {
    knarr_sys::child::pidfd_send_signal(pidfd.as_fd(), number).map_or_else(
        |failure| {
            if failure.errno == Errno::SRCH {
                Ok(false)
            } else {
                Err(failure)
            }
        },
        |()| Ok(true),
    )
}

/// SIGKILL by handle; a process that has ended is fine.
///
/// # Errors
/// EPERM.
pub fn kill<Fd: AsFd>(pidfd: Fd) -> Result<bool, Failure> {
    signal(pidfd, Signal::KILL.as_raw())
}

/// Waits for a child to end, and reaps it.
///
/// # Errors
/// ECHILD where it is not the caller's child.
pub fn wait<Fd: AsFd>(pidfd: Fd) -> Result<Exit, Failure> {
    loop {
        match reap(pidfd.as_fd(), WaitIdOptions::EXITED) {
            Ok(Some(exit)) => return Ok(exit),
            Ok(None) => {}
            Err(failure) if failure.errno == Errno::INTR => {}
            Err(failure) => return Err(failure),
        }
    }
}

/// Reaps a child if it has ended.
///
/// # Errors
/// ECHILD where it is not the caller's child.
pub fn try_wait<Fd: AsFd>(pidfd: Fd) -> Result<Option<Exit>, Failure> {
    reap(pidfd.as_fd(), WaitIdOptions::EXITED | WaitIdOptions::NOHANG)
}

fn reap(
    pidfd: std::os::fd::BorrowedFd<'_>,
    options: WaitIdOptions,
) -> Result<Option<Exit>, Failure> {
    let status =
        rustix::process::waitid(WaitId::PidFd(pidfd), options).map_err(Failure::of("waitid"))?;
    Ok(status.and_then(
        |status| match (status.exit_status(), status.terminating_signal()) {
            (Some(code), _) => Some(Exit::Code(u8::try_from(code & 0xff).unwrap_or(u8::MAX))),
            (None, Some(signal)) => Some(Exit::Signal(signal)),
            (None, None) => None,
        },
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_known_by_more_than_its_id() {
        let me = Identity::of(rustix::process::getpid()).unwrap();
        assert!(me.is_alive().unwrap());
        let other = Identity {
            start_time: me.start_time + 1,
            ..me.clone()
        };
        assert!(!other.is_alive().unwrap());
        let before = Identity {
            boot_id: "another".to_owned(),
            ..me
        };
        assert!(!before.is_alive().unwrap());
    }

    #[test]
    fn what_is_ignored_is_known() {
        for (status, expected) in [
            (
                &b"Name:\tx\nSigIgn:\t8000000000001000\nSigCgt:\t0\n"[..],
                Some(1 << 63 | 1 << 12),
            ),
            (b"SigIgn:\t0000000000000000", Some(0)),
            (b"Name:\tx\n", None),
            (b"SigIgn:\tmany\n", None),
        ] {
            assert_eq!(parse_ignored(status), expected);
        }
        // As Rust programs do.
        assert_ne!(ignored_signals() & 1 << (Signal::PIPE.as_raw() - 1), 0);
    }

    #[test]
    fn a_name_with_parentheses_does_not_confuse_the_reader_of_stat() {
        let mut stat = b"7 (a) R 1 (b)) S".to_vec();
        for number in 4..=21 {
            stat.extend(format!(" {number}").bytes());
        }
        stat.extend(b" 12345 0 0\n");
        assert_eq!(parse_stat(&stat), Some((b'S', 12345)));
    }
}
