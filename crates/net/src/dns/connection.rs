//! A client's TCP connection (RFC 1035, 4.2.2; RFC 7766): many questions, answers in any order.

use std::os::fd::{BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use rustix::event::epoll::{self, EventData, EventFlags};
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags};

use super::exchange::{frame_length, framed};

/// A query has one name and a few options; more is not read.
pub(super) const MOST_QUERY: usize = 4096;
/// Answers that a client does not fetch.
const MOST_OUTPUT: usize = 256 << 10;
/// Questions of one connection that wait for other servers.
const MOST_WAITING: usize = 32;
/// How long a connection may do nothing.
const IDLE: Duration = Duration::from_secs(10);

/// One connection.
#[derive(Debug)]
pub(super) struct Connection {
    socket: OwnedFd,
    input: Vec<u8>,
    output: Vec<u8>,
    sent: usize,
    /// Questions that wait for an answer from elsewhere.
    waiting: usize,
    /// The client sends no more.
    ended: bool,
    /// When something last went well.
    active: Instant,
    interest: EventFlags,
}

/// It is of no more use.
#[derive(Debug)]
pub(super) struct Over;

impl Connection {
    /// Takes a connection in.
    pub(super) fn new(
        socket: OwnedFd,
        epoll: BorrowedFd<'_>,
        token: u64,
        now: Instant,
    ) -> rustix::io::Result<Self> {
        epoll::add(epoll, &socket, EventData::new_u64(token), EventFlags::IN)?;
        Ok(Self {
            socket,
            input: Vec::new(),
            output: Vec::new(),
            sent: 0,
            waiting: 0,
            ended: false,
            active: now,
            interest: EventFlags::IN,
        })
    }

    /// When it is closed unless something happens.
    pub(super) fn deadline(&self) -> Option<Instant> {
        // What waits for other servers has its own limit.
        (self.waiting == 0).then(|| self.active + IDLE)
    }

    pub(super) fn last_active(&self) -> Instant {
        self.active
    }

    /// Reads what is there: whole questions.
    pub(super) fn read(&mut self, now: Instant) -> Result<Vec<Vec<u8>>, Over> {
        if self.ended {
            return Ok(Vec::new());
        }
        let mut buffer = [0; 2 * MOST_QUERY];
        match rustix::net::recv(&self.socket, &mut buffer[..], RecvFlags::empty()) {
            Ok((0, _)) => self.ended = true,
            Ok((count, _)) => self
                .input
                .extend_from_slice(buffer.get(..count).unwrap_or_default()),
            Err(Errno::AGAIN | Errno::INTR) => {}
            Err(_) => return Err(Over),
        }
        let mut questions = Vec::new();
        let mut rest = self.input.as_slice();
        while let Some(length) = frame_length(rest) {
            if length > MOST_QUERY {
                return Err(Over);
            }
            let Some(question) = rest.get(2..2 + length) else {
                break;
            };
            questions.push(question.to_vec());
            rest = rest.get(2 + length..).unwrap_or_default();
        }
        if !questions.is_empty() {
            // Bytes that never become a question do not keep a connection open.
            self.active = now;
            self.input = rest.to_vec();
        }
        Ok(questions)
    }

    /// One more question waits; false if there are too many.
    pub(super) fn wait(&mut self) -> bool {
        let more = self.waiting < MOST_WAITING;
        self.waiting += usize::from(more);
        more
    }

    /// A question that waited has its answer.
    pub(super) fn answered(&mut self, now: Instant) {
        self.waiting = self.waiting.saturating_sub(1);
        self.active = now;
    }

    /// Queues an answer.
    pub(super) fn queue(&mut self, answer: &[u8]) {
        if self.output.len() - self.sent <= MOST_OUTPUT {
            self.output.append(&mut framed(answer));
        }
    }

    /// Sends what goes, and tells epoll what is waited for.
    pub(super) fn flush(
        &mut self,
        epoll: BorrowedFd<'_>,
        token: u64,
        now: Instant,
    ) -> Result<(), Over> {
        while self.sent < self.output.len() {
            let rest = self.output.get(self.sent..).unwrap_or_default();
            match rustix::net::send(&self.socket, rest, SendFlags::NOSIGNAL) {
                Ok(count) => {
                    self.sent += count;
                    self.active = now;
                }
                Err(Errno::AGAIN) => break,
                Err(Errno::INTR) => {}
                Err(_) => return Err(Over),
            }
        }
        let queued = self.output.len() - self.sent;
        if queued == 0 {
            self.output = Vec::new();
            self.sent = 0;
        }
        if queued > MOST_OUTPUT || (self.ended && queued == 0 && self.waiting == 0) {
            return Err(Over);
        }
        let mut wanted = EventFlags::empty();
        // No more questions while answers pile up.
        if !self.ended && queued == 0 {
            wanted |= EventFlags::IN;
        }
        if queued > 0 {
            wanted |= EventFlags::OUT;
        }
        if wanted != self.interest {
            let data = EventData::new_u64(token);
            epoll::modify(epoll, &self.socket, data, wanted).map_err(|_| Over)?;
            self.interest = wanted;
        }
        Ok(())
    }
}
