//! One client on `monitor.sock`: its question, and the streams or answers it waits for.

use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use rustix::event::epoll::{self, EventData, EventFlags};
use rustix::io::Errno;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendFlags,
};

use crate::log::Stream;
use crate::protocol::{Answer, LINE_LIMIT, Question, Reply};
use crate::request::Streams;
use crate::{Error, Result};

/// How long a client may take to ask.
pub(crate) const PATIENCE: Duration = Duration::from_secs(10);
/// Output that a client has not taken yet, in bytes, beyond which the container must wait.
pub(crate) const BACKLOG: usize = 256 << 10;

/// What a client is here for.
#[derive(Debug)]
pub(crate) enum Role {
    /// It has not asked yet.
    Asking {
        line: Vec<u8>,
        descriptors: Vec<OwnedFd>,
        until: Instant,
    },
    /// It has the streams.
    Attached(Streams),
    /// It wants to hear of the next end.
    Waiting,
    /// The container is frozen until it goes.
    Holding,
    /// It has been answered; what is queued is sent, then it is done.
    Leaving,
}

/// A connection.
#[derive(Debug)]
pub(crate) struct Client {
    socket: OwnedFd,
    pub(crate) role: Role,
    /// Its input has ended.
    pub(crate) input_ended: bool,
    /// It is gone, only its input remains to be read.
    pub(crate) gone: bool,
    out: Vec<u8>,
    sent: usize,
    interest: Option<EventFlags>,
}

/// What came from a client.
#[derive(Debug)]
pub(crate) enum Input {
    /// So many bytes are in the buffer.
    Bytes(usize),
    /// Nothing now.
    Later,
    /// Nothing any more.
    End,
}

impl Client {
    pub(crate) fn new(socket: OwnedFd, role: Role) -> Self {
        Self {
            socket,
            role,
            input_ended: false,
            gone: false,
            out: Vec::new(),
            sent: 0,
            interest: None,
        }
    }

    /// A client that has just connected.
    pub(crate) fn asking(socket: OwnedFd) -> Self {
        let until = Instant::now() + PATIENCE;
        Self::new(
            socket,
            Role::Asking {
                line: Vec::new(),
                descriptors: Vec::new(),
                until,
            },
        )
    }

    /// It has closed its end: what is left of its input still counts, output does not.
    pub(crate) fn hang_up(&mut self) {
        self.gone = true;
        self.out = Vec::new();
        self.sent = 0;
    }

    /// Bytes that wait to be sent.
    pub(crate) fn queued(&self) -> usize {
        self.out.len() - self.sent
    }

    /// Whether its input goes to the container.
    pub(crate) fn feeds(&self) -> bool {
        matches!(self.role, Role::Attached(streams) if streams.stdin) && !self.input_ended
    }

    pub(crate) fn wants(&self, stream: Stream) -> bool {
        match self.role {
            Role::Attached(streams) if !self.gone => match stream {
                Stream::Stdout => streams.stdout,
                Stream::Stderr => streams.stderr,
            },
            _ => false,
        }
    }

    /// Reads on with its question; `Some` once it is whole.
    pub(crate) fn ask(&mut self) -> Result<Option<(Question, Vec<OwnedFd>)>> {
        let Role::Asking {
            line, descriptors, ..
        } = &mut self.role
        else {
            return Ok(None);
        };
        loop {
            let mut bytes = [0u8; 2048];
            let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(3))];
            let mut control = RecvAncillaryBuffer::new(&mut space);
            let received = rustix::net::recvmsg(
                &self.socket,
                &mut [IoSliceMut::new(&mut bytes)],
                &mut control,
                RecvFlags::DONTWAIT | RecvFlags::CMSG_CLOEXEC,
            );
            let count = match received {
                Ok(message) => message.bytes,
                Err(Errno::AGAIN) => return Ok(None),
                Err(Errno::INTR) => continue,
                Err(errno) => return Err(Error::of("read from a client", "recvmsg")(errno)),
            };
            for message in control.drain() {
                if let RecvAncillaryMessage::ScmRights(fds) = message {
                    descriptors.extend(fds);
                }
            }
            line.extend_from_slice(bytes.get(..count).unwrap_or_default());
            if let Some(end) = memchr::memchr(b'\n', line) {
                // A client waits for the answer before it sends more.
                let question = serde_json::from_slice(line.get(..end).unwrap_or_default())
                    .map_err(Error::request)?;
                let descriptors = std::mem::take(descriptors);
                return Ok(Some((question, descriptors)));
            }
            if count == 0 || line.len() > LINE_LIMIT {
                return Err(Error::of("read from a client", "recvmsg")(Errno::PIPE));
            }
        }
    }

    /// Reads a piece of its standard input.
    pub(crate) fn read(&mut self, buffer: &mut [u8]) -> Input {
        loop {
            match rustix::net::recv(&self.socket, &mut *buffer, RecvFlags::DONTWAIT) {
                Ok((_, 0)) => return Input::End,
                Ok((_, count)) => return Input::Bytes(count),
                Err(Errno::AGAIN) => return Input::Later,
                Err(Errno::INTR) => {}
                Err(_) => return Input::End,
            }
        }
    }

    /// Queues an answer.
    pub(crate) fn answer(&mut self, answer: Answer) {
        self.queue(&[&Reply::ok(answer).to_line()]);
    }

    /// Queues an answer that ends the conversation.
    pub(crate) fn answer_last(&mut self, answer: Answer) {
        self.answer(answer);
        self.role = Role::Leaving;
    }

    /// Queues a refusal, which ends the conversation.
    pub(crate) fn refuse(&mut self, report: knarr_diag::Report) {
        self.queue(&[&Reply::error(report).to_line()]);
        self.role = Role::Leaving;
    }

    /// Queues output, in a frame unless `raw`.
    pub(crate) fn output(&mut self, stream: Stream, bytes: &[u8], raw: bool) {
        if raw {
            self.queue(&[bytes]);
            return;
        }
        let mut head = [0u8; 8];
        head[0] = match stream {
            Stream::Stdout => 1,
            Stream::Stderr => 2,
        };
        let length = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
        head[4..].copy_from_slice(&length.to_be_bytes());
        self.queue(&[&head, bytes]);
    }

    /// Sends at once what goes, keeps the rest.
    fn queue(&mut self, parts: &[&[u8]]) {
        if self.gone {
            return;
        }
        let mut skip = 0;
        if self.queued() == 0 {
            let slices: Vec<_> = parts.iter().map(|part| IoSlice::new(part)).collect();
            skip = rustix::net::sendmsg(
                &self.socket,
                &slices,
                &mut SendAncillaryBuffer::default(),
                SendFlags::DONTWAIT | SendFlags::NOSIGNAL,
            )
            // Whatever it is, epoll tells of it next.
            .unwrap_or(0);
        }
        for part in parts {
            let now = skip.min(part.len());
            self.out
                .extend_from_slice(part.get(now..).unwrap_or_default());
            skip -= now;
        }
    }

    /// Sends on. False when the client is gone.
    pub(crate) fn flush(&mut self) -> bool {
        while self.queued() > 0 {
            let rest = self.out.get(self.sent..).unwrap_or_default();
            match rustix::net::send(
                &self.socket,
                rest,
                SendFlags::DONTWAIT | SendFlags::NOSIGNAL,
            ) {
                Ok(count) => self.sent += count,
                Err(Errno::AGAIN) => return true,
                Err(Errno::INTR) => {}
                Err(_) => return false,
            }
        }
        self.out = Vec::new();
        self.sent = 0;
        true
    }

    /// Tells epoll what is waited for now. `feed` is whether the container takes input.
    pub(crate) fn update_interest(
        &mut self,
        epoll: BorrowedFd<'_>,
        token: u64,
        feed: bool,
    ) -> Result<()> {
        let mut wanted = EventFlags::empty();
        let reads = match self.role {
            Role::Asking { .. } => true,
            Role::Attached(_) => self.feeds() && feed,
            // Only to see it go.
            Role::Waiting | Role::Holding | Role::Leaving => false,
        };
        if reads {
            wanted |= EventFlags::IN;
        }
        if matches!(self.role, Role::Waiting | Role::Holding) {
            wanted |= EventFlags::RDHUP;
        }
        if self.queued() > 0 {
            wanted |= EventFlags::OUT;
        }
        let data = EventData::new_u64(token);
        let result = match self.interest {
            // A peer that is gone would be reported for ever.
            Some(_) if self.gone => {
                self.interest = None;
                epoll::delete(epoll, &self.socket)
            }
            None if self.gone => Ok(()),
            Some(interest) if interest == wanted => Ok(()),
            Some(_) => {
                self.interest = Some(wanted);
                epoll::modify(epoll, &self.socket, data, wanted)
            }
            None => {
                self.interest = Some(wanted);
                epoll::add(epoll, &self.socket, data, wanted)
            }
        };
        result.map_err(Error::of("wait for a client", "epoll_ctl"))
    }
}

impl AsFd for Client {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}
