//! Being connected to a process in a container: its streams, its terminal's size, its end.

use std::os::fd::BorrowedFd;

use crate::Result;

/// A connection to a container's main process (`run`, `attach`, `start -a`) or to an `exec`ed one.
///
/// Dropping it leaves a main process running; an `exec`ed one is killed.
#[derive(Debug)]
pub struct Session {
    _private: (),
}

/// The caller's ends.
#[derive(Debug, Default)]
pub struct Streams<'a> {
    /// Read and sent in, where the container has an open standard input.
    pub stdin: Option<BorrowedFd<'a>>,
    /// Gets standard output (and a terminal's).
    pub stdout: Option<BorrowedFd<'a>>,
    /// Gets standard error.
    pub stderr: Option<BorrowedFd<'a>>,
    /// A signalfd; each signal that arrives is given to `on_signal`.
    pub signals: Option<BorrowedFd<'a>>,
    /// The bytes that detach when typed; empty for none.
    pub detach_keys: Vec<u8>,
}

/// What to do about a signal that arrived while pumping.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OnSignal {
    /// Send it to the process (`--sig-proxy`).
    Forward,
    /// Tell the terminal its new size: rows and columns.
    Resize(u16, u16),
    /// Leave the container and return [`Ended::Detached`].
    Detach,
    /// Nothing.
    Ignore,
}

/// How a session ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ended {
    /// The process ended with this exit code (128 + signal where one killed it).
    Exited(i32),
    /// The user typed the detach keys; the process goes on.
    Detached,
}

impl Session {
    /// Whether the process has a terminal: then the caller puts its own into raw mode.
    pub fn tty(&self) -> bool {
        todo!()
    }

    /// Tells the terminal its size.
    ///
    /// # Errors
    /// When the monitor is gone.
    pub fn resize(&self, rows: u16, columns: u16) -> Result<()> {
        let _ = (rows, columns);
        todo!()
    }

    /// Copies between the caller's streams and the process's until it ends or the user detaches.
    /// A closed standard input closes the process's; a closed output of the caller's is no error
    /// for the process.
    ///
    /// # Errors
    /// When the connection breaks, or the caller's streams fail.
    pub fn pump(
        &mut self,
        streams: &Streams<'_>,
        on_signal: &mut dyn FnMut(i32) -> OnSignal,
    ) -> Result<Ended> {
        let _ = (streams, on_signal);
        todo!()
    }
}
