//! Being connected to a process in a container: its streams, its terminal's size, its end.

use std::collections::VecDeque;
use std::io::{ErrorKind, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;

use knarr_monitor::State;
use knarr_monitor::client::{self, Attached, Connection, Started};
use knarr_monitor::request::Size;
use rustix::event::{PollFd, PollFlags};
use rustix::io::Errno;

use crate::{Error, Result};

/// A connection to a container's main process (`run`, `attach`, `start -a`) or to an `exec`ed one.
///
/// Dropping it leaves a main process running; an `exec`ed one is killed.
#[derive(Debug)]
pub struct Session {
    tty: bool,
    peer: Peer,
}

#[derive(Debug)]
enum Peer {
    /// The main process, behind its monitor.
    Main {
        stream: UnixStream,
        raw: bool,
        started: Option<Started>,
        run: PathBuf,
        data: PathBuf,
    },
    /// A child of this process.
    Child(Child),
}

/// An `exec`ed process.
#[derive(Debug)]
pub(crate) struct Child {
    pub(crate) pidfd: OwnedFd,
    /// Writes to its standard input; a terminal's master for both.
    pub(crate) stdin: Option<OwnedFd>,
    /// Reads its standard output, or a terminal's master.
    pub(crate) stdout: Option<OwnedFd>,
    pub(crate) stderr: Option<OwnedFd>,
    pub(crate) ended: bool,
}

impl Drop for Child {
    fn drop(&mut self) {
        if !self.ended {
            // It may have ended by itself meanwhile.
            knarr_runtime::process::kill(self.pidfd.as_fd()).ok();
        }
    }
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

/// The most bytes of standard input that wait for the process.
const PENDING: usize = 64 << 10;

impl Session {
    pub(crate) fn started(
        mut started: Started,
        tty: bool,
        run: PathBuf,
        data: PathBuf,
    ) -> Option<Self> {
        let stream = started.attached.take()?;
        let peer = Peer::Main {
            stream,
            raw: tty,
            started: Some(started),
            run,
            data,
        };
        Some(Self { tty, peer })
    }

    pub(crate) fn attached(attached: Attached, tty: bool, run: PathBuf, data: PathBuf) -> Self {
        let Attached { raw, stream } = attached;
        Self {
            tty,
            peer: Peer::Main {
                stream,
                raw,
                started: None,
                run,
                data,
            },
        }
    }

    pub(crate) fn child(child: Child, tty: bool) -> Self {
        Self {
            tty,
            peer: Peer::Child(child),
        }
    }

    /// Whether the process has a terminal: then the caller puts its own into raw mode.
    pub fn tty(&self) -> bool {
        self.tty
    }

    /// Tells the terminal its size.
    ///
    /// # Errors
    /// When the monitor is gone.
    pub fn resize(&self, rows: u16, columns: u16) -> Result<()> {
        match &self.peer {
            Peer::Main { run, .. } => {
                Connection::open(run)?.resize(Size {
                    rows,
                    cols: columns,
                })?;
            }
            Peer::Child(child) => {
                let size = rustix::termios::Winsize {
                    ws_row: rows,
                    ws_col: columns,
                    ws_xpixel: 0,
                    ws_ypixel: 0,
                };
                if let Some(terminal) = &child.stdout {
                    rustix::termios::tcsetwinsize(terminal, size)
                        .map_err(Error::of("set the terminal's size", "ioctl"))?;
                }
            }
        }
        Ok(())
    }

    fn signal(&self, number: i32) -> Result<()> {
        match &self.peer {
            Peer::Main { run, .. } => Connection::open(run)?.signal(number)?,
            Peer::Child(child) => {
                knarr_runtime::process::signal(child.pidfd.as_fd(), number).map_err(|cause| {
                    Error::Call {
                        verb: "send a signal to the process".to_owned(),
                        cause,
                    }
                })?;
            }
        }
        Ok(())
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
        let mut input = Input::new(streams.stdin.is_some(), &streams.detach_keys);
        let mut frames = Frames::default();
        self.nonblocking()?;
        loop {
            let ready = self.poll(streams, &input)?;
            if let (true, Some(fd)) = (ready.signals, streams.signals) {
                let number = next_signal(fd)?;
                match on_signal(number) {
                    // That the process is gone already is told below.
                    OnSignal::Forward => drop(self.signal(number)),
                    OnSignal::Resize(rows, columns) => drop(self.resize(rows, columns)),
                    OnSignal::Detach => return Ok(self.detach()),
                    OnSignal::Ignore => {}
                }
            }
            if let (true, Some(fd)) = (ready.stdin, streams.stdin)
                && input.read(fd)?
            {
                return Ok(self.detach());
            }
            self.send(&mut input)?;
            if ready.output {
                let open = self.receive(streams, &mut frames)?;
                if !open && matches!(self.peer, Peer::Main { .. }) {
                    return self.exit_code().map(Ended::Exited);
                }
            }
            if ready.ended {
                // Everything it wrote is in the pipes by now; what others still hold open is theirs.
                while self.receive(streams, &mut frames)? && frames.progress {}
                return self.exit_code().map(Ended::Exited);
            }
        }
    }

    fn detach(&mut self) -> Ended {
        if let Peer::Child(child) = &mut self.peer {
            // It goes on without anybody.
            child.ended = true;
        }
        Ended::Detached
    }

    fn nonblocking(&self) -> Result<()> {
        let on = |fd: BorrowedFd<'_>| {
            rustix::io::ioctl_fionbio(fd, true).map_err(Error::of("prepare a stream", "ioctl"))
        };
        match &self.peer {
            Peer::Main { stream, .. } => on(stream.as_fd()),
            Peer::Child(child) => {
                let ends = [&child.stdin, &child.stdout, &child.stderr];
                ends.into_iter()
                    .flatten()
                    .try_for_each(|end| on(end.as_fd()))
            }
        }
    }

    fn poll(&self, streams: &Streams<'_>, input: &Input) -> Result<Ready> {
        let readable = PollFlags::IN;
        let mut fds: Vec<(Kind, PollFd<'_>)> = Vec::with_capacity(6);
        if let Some(fd) = streams.signals {
            fds.push((Kind::Signals, PollFd::from_borrowed_fd(fd, readable)));
        }
        if let Some(fd) = streams.stdin.filter(|_| input.wants_more()) {
            fds.push((Kind::Stdin, PollFd::from_borrowed_fd(fd, readable)));
        }
        match &self.peer {
            Peer::Main { stream, .. } => {
                let write = if input.has_pending() {
                    PollFlags::OUT
                } else {
                    PollFlags::empty()
                };
                fds.push((Kind::Output, PollFd::new(stream, readable | write)));
            }
            Peer::Child(child) => {
                if !child.ended {
                    fds.push((Kind::Ended, PollFd::new(&child.pidfd, readable)));
                }
                for end in [&child.stdout, &child.stderr].into_iter().flatten() {
                    fds.push((Kind::Output, PollFd::new(end, readable)));
                }
                if let Some(end) = child.stdin.as_ref().filter(|_| input.has_pending()) {
                    fds.push((Kind::Input, PollFd::new(end, PollFlags::OUT)));
                }
            }
        }
        let (kinds, mut polled): (Vec<Kind>, Vec<PollFd<'_>>) = fds.into_iter().unzip();
        loop {
            match rustix::event::poll(&mut polled, None) {
                Ok(_) => break,
                Err(Errno::INTR) => {}
                Err(errno) => return Err(Error::of("wait for the streams", "poll")(errno)),
            }
        }
        let is = |wanted: Kind| {
            kinds
                .iter()
                .zip(&polled)
                .any(|(kind, fd)| *kind == wanted && !fd.revents().is_empty())
        };
        Ok(Ready {
            signals: is(Kind::Signals),
            stdin: is(Kind::Stdin),
            output: is(Kind::Output),
            ended: is(Kind::Ended),
        })
    }

    /// Writes what the process takes now, and closes its standard input after the last byte.
    fn send(&mut self, input: &mut Input) -> Result<()> {
        let broken = |error: &std::io::Error| {
            matches!(
                error.kind(),
                ErrorKind::BrokenPipe | ErrorKind::ConnectionReset
            )
        };
        while input.has_pending() {
            let chunk = input.chunk();
            let written = match &mut self.peer {
                Peer::Main { stream, .. } => stream.write(chunk),
                Peer::Child(child) => match &child.stdin {
                    Some(end) => rustix::io::write(end, chunk).map_err(std::io::Error::from),
                    None => Ok(chunk.len()),
                },
            };
            match written {
                Ok(count) => input.sent(count),
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                // Nobody reads it any more.
                Err(error) if broken(&error) => input.discard(),
                Err(cause) => {
                    return Err(Error::Stream {
                        what: "standard input",
                        cause,
                    });
                }
            }
        }
        if input.take_end() {
            match &mut self.peer {
                // A terminal's end of input is a character that the user types.
                Peer::Main { stream, .. } if !self.tty => {
                    // Where the other side is gone there is nothing to close.
                    stream.shutdown(std::net::Shutdown::Write).ok();
                }
                Peer::Child(child) if !self.tty => child.stdin = None,
                _ => {}
            }
        }
        Ok(())
    }

    /// Passes on what the process wrote; `false` at the end of its output.
    fn receive(&mut self, streams: &Streams<'_>, frames: &mut Frames) -> Result<bool> {
        frames.progress = false;
        let mut buffer = [0; 32 << 10];
        match &mut self.peer {
            Peer::Main { stream, raw, .. } => loop {
                match stream.read(&mut buffer) {
                    Ok(0) => return Ok(false),
                    Ok(count) => {
                        let bytes = buffer.get(..count).unwrap_or_default();
                        if *raw {
                            give(streams.stdout, bytes)?;
                        } else {
                            frames.push(bytes, streams)?;
                        }
                        return Ok(true);
                    }
                    Err(error) if error.kind() == ErrorKind::Interrupted => {}
                    Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(true),
                    Err(error) if error.kind() == ErrorKind::ConnectionReset => return Ok(false),
                    Err(cause) => {
                        return Err(Error::Stream {
                            what: "standard output",
                            cause,
                        });
                    }
                }
            },
            Peer::Child(child) => {
                let ends = [
                    (&mut child.stdout, streams.stdout),
                    (&mut child.stderr, streams.stderr),
                ];
                for (end, to) in ends {
                    let Some(fd) = end.as_ref() else { continue };
                    match rustix::io::read(fd, &mut buffer) {
                        // EIO: the last one closed the terminal.
                        Ok(0) | Err(Errno::IO) => *end = None,
                        Ok(count) => {
                            frames.progress = true;
                            give(to, buffer.get(..count).unwrap_or_default())?;
                        }
                        Err(Errno::AGAIN | Errno::INTR) => {}
                        Err(errno) => return Err(Error::of("read the output", "read")(errno)),
                    }
                }
                Ok(child.stdout.is_some() || child.stderr.is_some())
            }
        }
    }

    fn exit_code(&mut self) -> Result<i32> {
        match &mut self.peer {
            Peer::Child(child) => {
                child.ended = true;
                let exit = knarr_runtime::process::wait(child.pidfd.as_fd()).map_err(|cause| {
                    Error::Call {
                        verb: "learn how the process ended".to_owned(),
                        cause,
                    }
                })?;
                Ok(exit.code())
            }
            Peer::Main {
                started: Some(started),
                ..
            } => Ok(code(&started.wait()?)),
            Peer::Main { run, data, .. } => {
                let observed = client::observe(run)?;
                if let Some(observed) = &observed
                    && observed.alive
                    && let Ok(mut monitor) = Connection::open(run)
                {
                    return Ok(code(&monitor.wait()?));
                }
                let state = match observed {
                    Some(observed) => Some(observed.state),
                    None => State::load(data)?,
                };
                Ok(state.as_ref().map(code).unwrap_or_default())
            }
        }
    }
}

fn code(state: &State) -> i32 {
    state.exit_code.unwrap_or(255)
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Signals,
    Stdin,
    Output,
    Input,
    Ended,
}

#[derive(Debug)]
struct Ready {
    signals: bool,
    stdin: bool,
    output: bool,
    ended: bool,
}

/// The number in the next record of a signalfd (signalfd(2): 128 bytes, the number first).
fn next_signal(fd: BorrowedFd<'_>) -> Result<i32> {
    let mut record = [0u8; 128];
    rustix::io::read(fd, &mut record).map_err(Error::of("read a signal", "read"))?;
    let [a, b, c, d, ..] = record;
    Ok(i32::from_ne_bytes([a, b, c, d]))
}

/// Writes all to a stream of the caller's. One that is closed, or that the caller lacks, is fine.
fn give(to: Option<BorrowedFd<'_>>, mut bytes: &[u8]) -> Result<()> {
    let Some(fd) = to else { return Ok(()) };
    while !bytes.is_empty() {
        match rustix::io::write(fd, bytes) {
            Ok(count) => bytes = bytes.get(count..).unwrap_or_default(),
            Err(Errno::INTR) => {}
            // The terminal of a caller in a hurry may be non-blocking.
            Err(Errno::AGAIN) => {
                let mut fds = [PollFd::from_borrowed_fd(fd, PollFlags::OUT)];
                rustix::event::poll(&mut fds, None).ok();
            }
            Err(Errno::PIPE) => return Ok(()),
            Err(errno) => return Err(Error::of("write the output", "write")(errno)),
        }
    }
    Ok(())
}

/// Docker's frames (see `knarr_monitor::protocol`), taken apart as they come.
#[derive(Debug, Default)]
struct Frames {
    header: Vec<u8>,
    left: usize,
    /// Whether the last call brought anything.
    progress: bool,
}

impl Frames {
    fn push(&mut self, mut bytes: &[u8], streams: &Streams<'_>) -> Result<()> {
        while !bytes.is_empty() {
            if self.left == 0 {
                let missing = 8usize.saturating_sub(self.header.len()).min(bytes.len());
                let (head, rest) = bytes.split_at(missing);
                self.header.extend_from_slice(head);
                bytes = rest;
                let [_, _, _, _, a, b, c, d] = *self.header.as_slice() else {
                    return Ok(());
                };
                self.left = usize::try_from(u32::from_be_bytes([a, b, c, d])).unwrap_or_default();
                if self.left == 0 {
                    self.header.clear();
                }
                continue;
            }
            let (now, rest) = bytes.split_at(self.left.min(bytes.len()));
            let to = if self.header.first() == Some(&2) {
                streams.stderr
            } else {
                streams.stdout
            };
            give(to, now)?;
            self.left = self.left.saturating_sub(now.len());
            if self.left == 0 {
                self.header.clear();
            }
            bytes = rest;
        }
        Ok(())
    }
}

/// Standard input on its way, watched for the detach keys.
#[derive(Debug)]
struct Input {
    open: bool,
    end: bool,
    pending: VecDeque<u8>,
    keys: Vec<u8>,
    /// How many of the keys were typed; they are held back until it is clear what they mean.
    typed: usize,
}

impl Input {
    fn new(open: bool, keys: &[u8]) -> Self {
        Self {
            open,
            end: false,
            pending: VecDeque::new(),
            keys: keys.to_vec(),
            typed: 0,
        }
    }

    fn wants_more(&self) -> bool {
        self.open && self.pending.len() < PENDING
    }

    fn has_pending(&self) -> bool {
        !self.pending.is_empty()
    }

    fn chunk(&self) -> &[u8] {
        self.pending.as_slices().0
    }

    fn sent(&mut self, count: usize) {
        self.pending.drain(..count.min(self.pending.len()));
    }

    fn discard(&mut self) {
        self.pending.clear();
        self.open = false;
    }

    /// Whether the end of the input has to be passed on now.
    fn take_end(&mut self) -> bool {
        std::mem::take(&mut self.end)
    }

    /// Reads once; `true` when the user typed the detach keys.
    fn read(&mut self, fd: BorrowedFd<'_>) -> Result<bool> {
        let mut buffer = [0; 16 << 10];
        match rustix::io::read(fd, &mut buffer) {
            // EIO: a terminal that hung up, or belongs to others now.
            Ok(0) | Err(Errno::IO) => {
                self.open = false;
                self.end = true;
                Ok(false)
            }
            Ok(count) => Ok(self.push(buffer.get(..count).unwrap_or_default())),
            Err(Errno::AGAIN | Errno::INTR) => Ok(false),
            Err(errno) => Err(Error::of("read standard input", "read")(errno)),
        }
    }

    fn push(&mut self, bytes: &[u8]) -> bool {
        if self.keys.is_empty() {
            self.pending.extend(bytes);
            return false;
        }
        for &byte in bytes {
            if self.keys.get(self.typed) == Some(&byte) {
                self.typed += 1;
                if self.typed == self.keys.len() {
                    return true;
                }
                continue;
            }
            self.pending.extend(self.keys.iter().take(self.typed));
            self.typed = 0;
            if self.keys.first() == Some(&byte) {
                self.typed = 1;
            } else {
                self.pending.push_back(byte);
            }
        }
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_detach_keys_detach_and_nothing_else_is_lost() {
        for (typed, passes, detaches) in [
            (&b"abc"[..], &b"abc"[..], false),
            (b"a\x10\x11b", b"a", true),
            (b"a\x10b\x10", b"a\x10b", false),
            (b"\x10\x10\x11", b"\x10", true),
        ] {
            let mut input = Input::new(true, b"\x10\x11");
            assert_eq!(input.push(typed), detaches, "{typed:?}");
            assert_eq!(
                input.pending.iter().copied().collect::<Vec<_>>(),
                passes,
                "{typed:?}"
            );
        }
    }

    #[test]
    fn frames_may_be_cut_anywhere() {
        let bytes = b"\x01\0\0\0\0\0\0\x03out\x02\0\0\0\0\0\0\x03err\x01\0\0\0\0\0\0\x01!";
        for step in 1..bytes.len() {
            let (out_read, out) = rustix::pipe::pipe().unwrap();
            let (err_read, err) = rustix::pipe::pipe().unwrap();
            let streams = Streams {
                stdout: Some(out.as_fd()),
                stderr: Some(err.as_fd()),
                ..Streams::default()
            };
            let mut frames = Frames::default();
            for piece in bytes.chunks(step) {
                frames.push(piece, &streams).unwrap();
            }
            drop((out, err));
            let text = |fd: OwnedFd| std::io::read_to_string(std::fs::File::from(fd)).unwrap();
            assert_eq!(
                (text(out_read), text(err_read)),
                ("out!".to_owned(), "err".to_owned())
            );
        }
    }
}
