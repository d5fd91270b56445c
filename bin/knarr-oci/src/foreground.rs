//! Terminals, and waiting for a process with its signals and its terminal passed on.

use std::io::IsTerminal as _;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use knarr_runtime::ConsoleSize;
use knarr_runtime::process::{self, Exit};
use knarr_sys::process::{SignalSet, set_signal_mask, signalfd};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use rustix::termios::{OptionalActions, Termios, tcgetattr, tcgetwinsize, tcsetattr, tcsetwinsize};

use crate::failure::{Failure, Result};

/// Who has the master end of a process's terminal.
#[derive(Debug)]
pub(crate) enum Console {
    /// There is no terminal.
    None,
    /// The caller's terminal shows it.
    Own,
    /// Whoever listens there gets it.
    Socket(PathBuf),
}

/// What the flags ask for, in runc's words where they contradict each other.
pub(crate) fn console(terminal: bool, detach: bool, socket: Option<&Path>) -> Result<Console> {
    match (terminal, detach, socket) {
        (true, _, Some(socket)) => Ok(Console::Socket(socket.to_owned())),
        (true, true, None) => Err(Failure::new(
            "cannot allocate tty if runc will detach without setting console socket",
        )),
        (true, false, None) => Ok(Console::Own),
        (false, _, Some(_)) => Err(Failure::new(
            "cannot use console socket if runc will not detach or allocate tty",
        )),
        (false, _, None) => Ok(Console::None),
    }
}

/// Sends the master end of a terminal.
pub(crate) fn send_terminal(socket: &Path, terminal: BorrowedFd<'_>) -> Result<()> {
    knarr_runtime::send_fd(socket, b"/dev/ptmx", terminal).map_err(|cause| {
        let socket = socket.display();
        Failure::new(format!("cannot send the terminal to {socket}: {cause}"))
    })
}

/// The size of the caller's terminal.
pub(crate) fn own_size() -> ConsoleSize {
    tcgetwinsize(std::io::stdin()).map_or_else(
        |_| ConsoleSize::default(),
        |size| ConsoleSize {
            rows: size.ws_row,
            columns: size.ws_col,
        },
    )
}

/// Signals that come from now on are the process's.
#[derive(Debug)]
pub(crate) struct Foreground {
    signals: OwnedFd,
}

const SIGCHLD: i32 = 17;
const SIGPIPE: i32 = 13;
const SIGURG: i32 = 23;
const SIGWINCH: i32 = 28;

/// Takes over the caller's signals, and what the container's processes leave behind.
pub(crate) fn prepare(subreaper: bool) -> Result<Foreground> {
    let failed =
        |what: &str, cause: &dyn std::fmt::Display| Failure::new(format!("cannot {what}: {cause}"));
    if subreaper {
        // Whoever is named, it is the caller (prctl(2), PR_SET_CHILD_SUBREAPER).
        rustix::process::set_child_subreaper(Some(rustix::process::Pid::INIT))
            .map_err(|errno| failed("adopt orphans", &errno))?;
    }
    let all = SignalSet::full();
    set_signal_mask(&all).map_err(|cause| failed("hold signals back", &cause))?;
    let signals = signalfd(&all).map_err(|cause| failed("receive signals", &cause))?;
    Ok(Foreground { signals })
}

/// The caller's terminal in raw mode, and back when dropped.
struct Raw(Termios);

impl Raw {
    fn enter() -> Option<Self> {
        let input = std::io::stdin();
        if !input.is_terminal() {
            return None;
        }
        let before = tcgetattr(&input).ok()?;
        let mut raw = before.clone();
        raw.make_raw();
        tcsetattr(&input, OptionalActions::Now, &raw).ok()?;
        Some(Self(before))
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        // A terminal that has gone needs no restoring.
        tcsetattr(std::io::stdin(), OptionalActions::Now, &self.0).ok();
    }
}

impl Foreground {
    /// Waits for a child to end, passing on signals and, with the master end of its terminal, what
    /// is typed and printed.
    pub(crate) fn wait(&self, pidfd: &OwnedFd, terminal: Option<OwnedFd>) -> Result<Exit> {
        let raw = terminal.as_ref().and_then(|_| Raw::enter());
        let mut terminal = terminal;
        if let Some(master) = &terminal {
            resize(master);
        }
        let input = std::io::stdin();
        let mut typing = terminal.is_some();
        let exit = loop {
            let mut polled = vec![
                PollFd::new(&self.signals, PollFlags::IN),
                PollFd::new(pidfd, PollFlags::IN),
            ];
            if let Some(master) = &terminal {
                polled.push(PollFd::new(master, PollFlags::IN));
                if typing {
                    polled.push(PollFd::new(&input, PollFlags::IN));
                }
            }
            match poll(&mut polled, None) {
                Ok(_) | Err(Errno::INTR) => {}
                Err(errno) => return Err(Failure::new(format!("poll: {errno}"))),
            }
            let ready: Vec<bool> = polled.iter().map(|fd| !fd.revents().is_empty()).collect();
            drop(polled);
            let is_ready = |index: usize| ready.get(index).copied().unwrap_or(false);
            if is_ready(0) {
                self.pass_signals(pidfd, terminal.as_ref());
            }
            if let Some(master) = &terminal {
                let more = !is_ready(2) || pump(master.as_fd(), std::io::stdout().as_fd());
                if is_ready(3) && !pump(input.as_fd(), master.as_fd()) {
                    typing = false;
                }
                if !more {
                    terminal = None;
                }
            }
            if is_ready(1)
                && let Some(exit) = process::try_wait(pidfd)
                    .map_err(|cause| Failure::new(format!("cannot wait: {cause}")))?
            {
                break exit;
            }
        };
        // What it printed last.
        while let Some(master) = &terminal {
            let mut polled = [PollFd::new(master, PollFlags::IN)];
            let now = rustix::event::Timespec::default();
            if !matches!(poll(&mut polled, Some(&now)), Ok(1..))
                || !pump(master.as_fd(), std::io::stdout().as_fd())
            {
                break;
            }
        }
        drop(raw);
        Ok(exit)
    }

    fn pass_signals(&self, pidfd: &OwnedFd, terminal: Option<&OwnedFd>) {
        let mut record = [0u8; 128];
        while let Ok(128) = rustix::io::read(&self.signals, &mut record) {
            let [a, b, c, d, ..] = record;
            match i32::from_ne_bytes([a, b, c, d]) {
                SIGCHLD => reap_orphans(pidfd),
                // Go's and the pipes' own.
                SIGPIPE | SIGURG => {}
                SIGWINCH if terminal.is_some() => {
                    if let Some(master) = terminal {
                        resize(master);
                    }
                }
                signal => {
                    // It may have ended just now.
                    process::signal(pidfd, signal).ok();
                }
            }
        }
    }
}

/// Takes the records of adopted processes away; the waited one's stays for who waits.
fn reap_orphans(pidfd: &OwnedFd) {
    use rustix::process::{WaitId, WaitIdOptions, WaitOptions, waitid, waitpid};
    loop {
        let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
        // If the one that is waited for has ended, the rest is the next parent's.
        if matches!(
            waitid(WaitId::PidFd(pidfd.as_fd()), options),
            Ok(Some(_)) | Err(_)
        ) {
            return;
        }
        if !matches!(waitpid(None, WaitOptions::NOHANG), Ok(Some(_))) {
            return;
        }
    }
}

/// Gives a terminal the size of the caller's.
fn resize(master: &OwnedFd) {
    if let Ok(size) = tcgetwinsize(std::io::stdin()) {
        // A size is a courtesy.
        tcsetwinsize(master, size).ok();
    }
}

/// Copies what is there; false at the end.
fn pump(from: BorrowedFd<'_>, to: BorrowedFd<'_>) -> bool {
    let mut buffer = [0u8; 8192];
    let count = match rustix::io::read(from, &mut buffer) {
        Ok(0) => return false,
        Ok(count) => count,
        Err(Errno::INTR | Errno::AGAIN) => return true,
        // EIO: nobody has the terminal open any more.
        Err(_) => return false,
    };
    let mut rest = buffer.get(..count).unwrap_or_default();
    while !rest.is_empty() {
        match rustix::io::write(to, rest) {
            Ok(count) => rest = rest.get(count..).unwrap_or_default(),
            Err(Errno::INTR) => {}
            Err(_) => return false,
        }
    }
    true
}

/// As shells count.
pub(crate) fn exit_code(exit: Exit) -> ExitCode {
    ExitCode::from(u8::try_from(exit.code()).unwrap_or(u8::MAX))
}
