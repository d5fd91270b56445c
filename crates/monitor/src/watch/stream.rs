//! The container's streams: out of it to the log and the clients, into it from the clients.
//!
//! No output is lost: when a client is slow, the monitor stops reading and the container waits, as
//! with any pipe. Without clients nothing waits but for the log's disk.

use std::os::fd::{AsFd, OwnedFd};
use std::time::Instant;

use rustix::event::epoll::{self, EventData, EventFlags};
use rustix::io::Errno;

use super::{RELAX, STDERR, STDIN, STDOUT, TERMINAL, Watch};
use crate::Result;
use crate::log::Stream;
use crate::request::{Size, Stdin};
use crate::session::{BACKLOG, Input};
use crate::stdio::Ends;

/// What is read at once, in bytes: what a FIFO holds.
const CHUNK: usize = 64 << 10;
/// How many chunks before others have their turn.
const ROUNDS: usize = 16;

/// The monitor's ends of the streams.
#[derive(Debug, Default)]
pub(super) struct Sources {
    stdout: Option<Source>,
    stderr: Option<Source>,
    terminal: Option<Source>,
    stdin: Option<Source>,
    /// Input that the container has not taken yet.
    input: Vec<u8>,
    /// The input ends with what is in `input`.
    closing: bool,
    /// Kept between chunks, given back when idle.
    buffer: Vec<u8>,
}

/// A descriptor and what epoll was told about it.
#[derive(Debug)]
struct Source {
    fd: OwnedFd,
    interest: EventFlags,
}

impl Sources {
    /// Takes the streams of a new container.
    pub(super) fn open(&mut self, ends: Ends, terminal: Option<OwnedFd>) -> Result<()> {
        let source = |fd| Source {
            fd,
            interest: EventFlags::empty(),
        };
        let buffer = std::mem::take(&mut self.buffer);
        if let Some(terminal) = &terminal {
            let flags = rustix::fs::fcntl_getfl(terminal)
                .map_err(crate::Error::of("use the terminal", "fcntl"))?;
            rustix::fs::fcntl_setfl(terminal, flags | rustix::fs::OFlags::NONBLOCK)
                .map_err(crate::Error::of("use the terminal", "fcntl"))?;
        }
        *self = Self {
            stdout: ends.stdout.map(source),
            stderr: ends.stderr.map(source),
            stdin: ends.stdin.map(source),
            terminal: terminal.map(source),
            input: Vec::new(),
            closing: false,
            buffer,
        };
        Ok(())
    }

    /// Closes all of them.
    pub(super) fn close(&mut self) {
        *self = Self::default();
    }

    /// Gives buffers back.
    pub(super) fn relax(&mut self) {
        self.buffer = Vec::new();
        if self.input.is_empty() {
            self.input = Vec::new();
        }
    }

    fn by_token(&mut self, token: u64) -> &mut Option<Source> {
        match token {
            STDOUT => &mut self.stdout,
            STDERR => &mut self.stderr,
            STDIN => &mut self.stdin,
            _ => &mut self.terminal,
        }
    }

    /// Where input goes.
    fn sink(&mut self) -> &mut Option<Source> {
        if self.terminal.is_some() {
            &mut self.terminal
        } else {
            &mut self.stdin
        }
    }

    pub(super) fn terminal(&self) -> Option<&OwnedFd> {
        self.terminal.as_ref().map(|source| &source.fd)
    }
}

impl Watch {
    /// Reads a stream, up to some rounds.
    pub(super) fn pump(&mut self, token: u64) {
        for _ in 0..ROUNDS {
            if self.backlogged() || !self.pump_once(token) {
                return;
            }
        }
    }

    /// Reads one chunk. False when there is nothing now, or nothing any more.
    fn pump_once(&mut self, token: u64) -> bool {
        let mut buffer = std::mem::take(&mut self.streams.buffer);
        if buffer.is_empty() {
            buffer = vec![0; CHUNK];
        }
        let read = match self.streams.by_token(token) {
            Some(source) => rustix::io::read(&source.fd, &mut buffer[..]),
            None => Err(Errno::AGAIN),
        };
        let more = match read {
            Ok(0) => {
                *self.streams.by_token(token) = None;
                false
            }
            Ok(count) => {
                let bytes = buffer.get(..count).unwrap_or_default();
                let stream = if token == STDERR {
                    Stream::Stderr
                } else {
                    Stream::Stdout
                };
                self.log.write(stream, bytes);
                let raw = self.has_terminal;
                for client in self
                    .clients
                    .values_mut()
                    .filter(|client| client.wants(stream))
                {
                    client.output(stream, bytes, raw);
                }
                self.relax_at = Some(Instant::now() + RELAX);
                true
            }
            Err(Errno::INTR) => true,
            Err(Errno::AGAIN) => false,
            // A terminal whose last process let go says EIO.
            Err(_) => {
                *self.streams.by_token(token) = None;
                false
            }
        };
        self.streams.buffer = buffer;
        more
    }

    /// Reads all that is left once the container ended.
    pub(super) fn drain(&mut self) {
        for token in [TERMINAL, STDOUT, STDERR] {
            // Somebody outside who holds a FIFO open could write for ever.
            for _ in 0..1024 {
                if !self.pump_once(token) {
                    break;
                }
            }
        }
    }

    fn backlogged(&self) -> bool {
        self.clients
            .values()
            .any(|client| client.queued() > BACKLOG)
    }

    /// The terminal can be read or written.
    pub(super) fn terminal_ready(&mut self, flags: EventFlags) {
        if flags.contains(EventFlags::OUT) {
            self.feed();
        }
        if flags.intersects(EventFlags::IN | EventFlags::HUP | EventFlags::ERR) {
            self.pump(TERMINAL);
        }
    }

    /// Whether a client's input could be passed on at once.
    pub(super) fn takes_input(&self) -> bool {
        self.streams.input.is_empty()
    }

    /// Passes on what a client sends.
    pub(super) fn read_input(&mut self, token: u64) {
        while self.takes_input() {
            let Some(client) = self.clients.get_mut(&token) else {
                return;
            };
            if !client.feeds() {
                return;
            }
            let mut buffer = [0u8; 4096];
            match client.read(&mut buffer) {
                Input::Bytes(count) => {
                    self.streams
                        .input
                        .extend_from_slice(buffer.get(..count).unwrap_or_default());
                    self.feed();
                }
                Input::Later => return,
                Input::End => {
                    client.input_ended = true;
                    self.input_ended();
                }
            }
        }
    }

    /// A client that fed the container does so no more.
    pub(super) fn input_ended(&mut self) {
        // On a terminal the end is a character that the client sends.
        if self.stdin_kind == Stdin::Once && !self.has_terminal {
            self.streams.closing = true;
            self.feed();
        }
    }

    /// Writes input that waits.
    pub(super) fn feed(&mut self) {
        let input = std::mem::take(&mut self.streams.input);
        let closing = self.streams.closing;
        let sink = self.streams.sink();
        let mut rest = input.as_slice();
        while let Some(source) = sink {
            if rest.is_empty() {
                break;
            }
            match rustix::io::write(&source.fd, rest) {
                Ok(count) => rest = rest.get(count..).unwrap_or_default(),
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => break,
                // The container has closed it: nobody wants to read.
                Err(_) => {
                    *sink = None;
                    break;
                }
            }
        }
        if sink.is_none() {
            rest = &[];
        }
        if rest.is_empty() && closing {
            *sink = None;
        }
        self.streams.input = if rest.len() == input.len() {
            input
        } else {
            rest.to_vec()
        };
        if self.streams.input.is_empty() {
            // Clients that are gone, and that epoll does not report any more, may have sent more.
            let gone: Vec<_> = self
                .clients
                .iter()
                .filter(|(_, client)| client.gone && client.feeds())
                .map(|(token, _)| *token)
                .collect();
            for token in gone {
                self.read_input(token);
            }
        }
    }

    /// Tells epoll what is waited for now.
    pub(super) fn update_sources(&mut self) {
        let reads = !self.backlogged();
        let writes = !self.streams.input.is_empty();
        let epoll = self.epoll.as_fd();
        for (token, read, write) in [
            (STDOUT, reads, false),
            (STDERR, reads, false),
            (STDIN, false, writes),
            (TERMINAL, reads, writes),
        ] {
            let Some(source) = self.streams.by_token(token) else {
                continue;
            };
            let mut wanted = EventFlags::empty();
            wanted.set(EventFlags::IN, read);
            wanted.set(EventFlags::OUT, write);
            if wanted == source.interest {
                continue;
            }
            let data = EventData::new_u64(token);
            // Without interest it is taken out: an end is reported whether asked for or not.
            let done = if wanted.is_empty() {
                epoll::delete(epoll, &source.fd)
            } else if source.interest.is_empty() {
                epoll::add(epoll, &source.fd, data, wanted)
            } else {
                epoll::modify(epoll, &source.fd, data, wanted)
            };
            // It cannot fail but for memory; then the next turn tries again.
            if done.is_ok() {
                source.interest = wanted;
            }
        }
    }

    /// Sets the terminal's size; the kernel sends SIGWINCH.
    pub(super) fn resize(&self, size: Size) -> rustix::io::Result<bool> {
        let Some(terminal) = self.streams.terminal() else {
            return Ok(false);
        };
        rustix::termios::tcsetwinsize(
            terminal,
            rustix::termios::Winsize {
                ws_row: size.rows,
                ws_col: size.cols,
                ws_xpixel: 0,
                ws_ypixel: 0,
            },
        )?;
        Ok(true)
    }
}
