//! Being attached: the user's streams, keys and signals on one side, a process on the other.
//!
//! One thread, one poll loop (the engine's). Signals are blocked and read from a descriptor, so
//! none can kill this process while the terminal is raw.

use std::os::fd::{AsFd, OwnedFd};

use knarr_engine::{Ended, OnSignal, Session, Streams};
use knarr_sys::process::{SignalSet, set_signal_mask, signalfd};

use crate::failure::{Failure, Result};
use crate::terminal::{self, Raw};

const HUP: i32 = 1;
const INT: i32 = 2;
const QUIT: i32 = 3;
const TERM: i32 = 15;
const WINCH: i32 = 28;

/// What may be forwarded: HUP INT QUIT USR1 USR2 ALRM TERM WINCH, and the real-time signals.
const FORWARDED: [i32; 8] = [HUP, INT, QUIT, 10, 12, 14, TERM, WINCH];
const REAL_TIME: std::ops::RangeInclusive<i32> = 34..=64;

/// The signals of this process, as a descriptor.
#[derive(Debug)]
pub(crate) struct Signals {
    descriptor: OwnedFd,
}

impl Signals {
    /// Blocks them and opens the descriptor. To be called before the container starts, so that
    /// none is lost.
    pub(crate) fn block() -> Result<Self> {
        let set = forwarded();
        let failed = |failure: knarr_sys::Failure| {
            Failure::of(
                knarr_diag::Class::Bug,
                "signals",
                format!("cannot take signals: {failure}"),
            )
        };
        set_signal_mask(&set).map_err(failed)?;
        let descriptor = signalfd(&set).map_err(failed)?;
        Ok(Self { descriptor })
    }

    /// Blocks them again, after a pull let them act.
    pub(crate) fn again(self) -> Self {
        // Worked before with the same set.
        set_signal_mask(&forwarded()).ok();
        self
    }
}

fn forwarded() -> SignalSet {
    FORWARDED
        .into_iter()
        .chain(REAL_TIME)
        .fold(SignalSet::empty(), SignalSet::with)
}

/// Lets signals act as usual again, for steps that Ctrl-C shall simply end (a pull).
pub(crate) fn let_signals_act() {
    // Cannot fail with a valid set.
    set_signal_mask(&SignalSet::empty()).ok();
}

/// Which streams, and how.
#[derive(Debug)]
pub(crate) struct Attachment {
    pub(crate) stdin: bool,
    pub(crate) stdout: bool,
    pub(crate) stderr: bool,
    /// `--sig-proxy`.
    pub(crate) forward_signals: bool,
    pub(crate) detach_keys: Vec<u8>,
}

impl Attachment {
    /// Stays until the process ends or the user detaches; gives the exit code.
    pub(crate) fn stay(&self, session: &mut Session, signals: &Signals) -> Result<u8> {
        let stdin = rustix::stdio::stdin();
        let tty = session.tty();
        if tty && let Some((rows, columns)) = terminal::size() {
            session.resize(rows, columns)?;
        }
        let raw = (tty && self.stdin).then(|| Raw::enter(stdin)).flatten();
        let mut ended_by = None;
        let ended = session.pump(
            &Streams {
                stdin: self.stdin.then_some(stdin),
                stdout: self.stdout.then(rustix::stdio::stdout),
                stderr: self.stderr.then(rustix::stdio::stderr),
                signals: Some(signals.descriptor.as_fd()),
                detach_keys: self.detach_keys.clone(),
            },
            &mut |signal| match signal {
                WINCH => match terminal::size() {
                    Some((rows, columns)) if tty => OnSignal::Resize(rows, columns),
                    _ => OnSignal::Ignore,
                },
                _ if self.forward_signals => OnSignal::Forward,
                HUP | INT | QUIT | TERM => {
                    ended_by = Some(signal);
                    OnSignal::Detach
                }
                _ => OnSignal::Ignore,
            },
        );
        drop(raw);
        match (ended?, ended_by) {
            (Ended::Exited(code), _) => Ok(exit_code(code)),
            (Ended::Detached, Some(signal)) => Ok(exit_code(128 + signal)),
            (Ended::Detached, None) => Ok(0),
        }
    }
}

/// An exit code as a process can have it.
pub(crate) fn exit_code(code: i32) -> u8 {
    u8::try_from(code & 0xff).unwrap_or(1)
}

/// Docker's rule: a container's terminal needs one here, where its input is attached.
pub(crate) fn check_terminal(stdin: bool, tty: bool) -> Result<()> {
    if stdin && tty && !terminal::is_terminal(rustix::stdio::stdin()) {
        return Err(Failure::invalid("the input device is not a TTY")
            .hint("leave -t out, or run it in a terminal")
            .exit(1));
    }
    Ok(())
}
