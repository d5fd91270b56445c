//! One question that the host's servers are asked.
//!
//! It goes to one server after the other, a second apart, and round again; the first usable answer
//! counts, wherever it comes from, so a slow server is not lost by asking the next. Over UDP each
//! question has a socket of its own, connected to its server: the kernel picks a random port, takes
//! nothing from anybody else, and tells at once when nobody listens there. The number is random too.

use std::net::SocketAddr;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use rustix::event::epoll::{self, EventData, EventFlags};
use rustix::io::Errno;
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType};

use super::message::{self, Query, Verdict};
use super::upstream::{MOST_SERVERS, Upstream};

/// When the next server is asked.
const STEP: Duration = Duration::from_secs(1);
/// When a client over UDP is told that nobody answers: before it would ask again (resolv.conf(5):
/// five seconds), so that it hears why.
const UDP_PATIENCE: Duration = Duration::from_millis(4500);
/// The same over TCP, where clients wait longer.
const TCP_PATIENCE: Duration = Duration::from_secs(9);
/// Datagrams read from one socket in a turn.
const MOST_AT_ONCE: usize = 16;

/// Who asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Client {
    /// By a datagram from there.
    Udp(SocketAddr),
    /// Over the connection with this key.
    Tcp(u64),
}

/// Where an exchange is registered.
#[derive(Debug, Clone, Copy)]
pub(super) struct Hub<'a> {
    pub(super) epoll: BorrowedFd<'a>,
    /// What epoll reports for the socket to the first server; the others follow.
    pub(super) token: u64,
}

/// What an event has led to.
#[derive(Debug)]
pub(super) enum Outcome {
    /// Nothing yet.
    Wait,
    /// This is the answer, still with the exchange's own number.
    Done(Vec<u8>),
    /// No server gave one.
    Failed,
}

/// A question under way.
#[derive(Debug)]
pub(super) struct Exchange {
    pub(super) client: Client,
    pub(super) query: Query,
    /// With the exchange's own number.
    message: Vec<u8>,
    servers: Vec<Server>,
    tries: usize,
    asked: usize,
    next_try: Instant,
    until: Instant,
    /// An answer that is better than none: an error that a server told.
    refusal: Option<Vec<u8>>,
}

#[derive(Debug)]
struct Server {
    address: SocketAddr,
    failed: bool,
    line: Option<Line>,
}

#[derive(Debug)]
enum Line {
    Udp(OwnedFd),
    Tcp(Stream),
}

#[derive(Debug)]
struct Stream {
    socket: OwnedFd,
    out: Vec<u8>,
    sent: usize,
    received: Vec<u8>,
}

impl Exchange {
    /// A question to ask, not asked yet: [`Exchange::ask`].
    pub(super) fn new(
        client: Client,
        query: Query,
        message: &[u8],
        servers: &[SocketAddr],
        now: Instant,
    ) -> rustix::io::Result<Self> {
        let mut id = [0; 2];
        rustix::rand::getrandom(&mut id, rustix::rand::GetRandomFlags::empty())?;
        let mut message = message.to_vec();
        message::set_id(&mut message, u16::from_ne_bytes(id));
        let patience = match client {
            Client::Udp(_) => UDP_PATIENCE,
            Client::Tcp(_) => TCP_PATIENCE,
        };
        let servers = servers.iter().take(MOST_SERVERS).map(|address| Server {
            address: *address,
            failed: false,
            line: None,
        });
        Ok(Self {
            client,
            query,
            message,
            servers: servers.collect(),
            tries: 0,
            asked: 0,
            next_try: now + STEP,
            until: now + patience,
            refusal: None,
        })
    }

    /// Whether it is the question that a client asks once more.
    pub(super) fn is_repeated_by(&self, client: Client, query: &Query) -> bool {
        self.client == client && self.query == *query
    }

    /// When [`Exchange::tick`] has something to do.
    pub(super) fn deadline(&self) -> Instant {
        self.next_try.min(self.until)
    }

    /// The error that a server told, once all have failed.
    pub(super) fn take_refusal(&mut self) -> Option<Vec<u8>> {
        self.refusal.take()
    }

    /// The query as the client sent it, but for the number.
    pub(super) fn message(&self) -> &[u8] {
        &self.message
    }

    /// Asks the next server.
    pub(super) fn ask(&mut self, hub: Hub<'_>, upstream: &mut Upstream, now: Instant) -> Outcome {
        for _ in 0..self.servers.len() {
            let index = self.tries % self.servers.len();
            self.tries += 1;
            let Some(server) = self.servers.get_mut(index).filter(|server| !server.failed) else {
                continue;
            };
            let over_tcp = matches!(self.client, Client::Tcp(_));
            match server.send(&self.message, over_tcp, hub, index) {
                Ok(()) => {
                    self.asked = index;
                    self.next_try = now + STEP;
                    return Outcome::Wait;
                }
                Err(_) => {
                    server.fail();
                    upstream.note(server.address, true, now);
                }
            }
        }
        Outcome::Failed
    }

    /// Does what is due.
    pub(super) fn tick(&mut self, hub: Hub<'_>, upstream: &mut Upstream, now: Instant) -> Outcome {
        if now < self.deadline() {
            return Outcome::Wait;
        }
        if let Some(server) = self.servers.get(self.asked)
            && !server.failed
        {
            upstream.note(server.address, true, now);
        }
        if now >= self.until {
            return Outcome::Failed;
        }
        self.ask(hub, upstream, now)
    }

    /// The socket to the server `index` is ready.
    pub(super) fn ready(
        &mut self,
        index: usize,
        hub: Hub<'_>,
        upstream: &mut Upstream,
        now: Instant,
    ) -> Outcome {
        let Some(server) = self.servers.get_mut(index) else {
            return Outcome::Wait;
        };
        let (message, end) = (&self.message, self.query.question_end);
        let reply = match &mut server.line {
            Some(Line::Udp(socket)) => receive(socket, message, end),
            Some(Line::Tcp(stream)) => stream.go_on(hub, index).and_then(|reply| {
                let Some(reply) = reply else { return Ok(None) };
                let verdict = message::judge(message, end, &reply).ok_or(Errno::PROTO)?;
                Ok(Some((verdict, reply)))
            }),
            None => Ok(None),
        };
        match reply {
            Ok(None) => Outcome::Wait,
            Ok(Some((Verdict::Good, reply))) => {
                upstream.note(server.address, false, now);
                Outcome::Done(reply)
            }
            Ok(Some((Verdict::Bad, reply))) => {
                server.fail();
                self.refusal = Some(reply);
                self.ask(hub, upstream, now)
            }
            Err(_) => {
                server.fail();
                upstream.note(server.address, true, now);
                // Others that were asked already may still answer.
                self.ask(hub, upstream, now)
            }
        }
    }
}

impl Server {
    fn fail(&mut self) {
        self.failed = true;
        self.line = None;
    }

    fn send(
        &mut self,
        message: &[u8],
        over_tcp: bool,
        hub: Hub<'_>,
        index: usize,
    ) -> rustix::io::Result<()> {
        let data = EventData::new_u64(hub.token + u64::try_from(index).unwrap_or(0));
        match (&mut self.line, over_tcp) {
            (Some(Line::Udp(socket)), _) => send(socket, message),
            // It is still being waited for.
            (Some(Line::Tcp(_)), _) => Ok(()),
            (line @ None, false) => {
                let socket = socket(self.address, SocketType::DGRAM)?;
                rustix::net::connect(&socket, &self.address)?;
                epoll::add(hub.epoll, &socket, data, EventFlags::IN)?;
                send(&socket, message)?;
                *line = Some(Line::Udp(socket));
                Ok(())
            }
            (line @ None, true) => {
                let socket = socket(self.address, SocketType::STREAM)?;
                match rustix::net::connect(&socket, &self.address) {
                    Ok(()) | Err(Errno::INPROGRESS) => {}
                    Err(errno) => return Err(errno),
                }
                epoll::add(hub.epoll, &socket, data, EventFlags::OUT)?;
                *line = Some(Line::Tcp(Stream {
                    socket,
                    out: framed(message),
                    sent: 0,
                    received: Vec::new(),
                }));
                Ok(())
            }
        }
    }
}

fn socket(address: SocketAddr, kind: SocketType) -> rustix::io::Result<OwnedFd> {
    let family = match address {
        SocketAddr::V4(_) => AddressFamily::INET,
        SocketAddr::V6(_) => AddressFamily::INET6,
    };
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    rustix::net::socket_with(family, kind, flags, None)
}

fn send(socket: &OwnedFd, message: &[u8]) -> rustix::io::Result<()> {
    match rustix::net::send(socket, message, SendFlags::NOSIGNAL) {
        // A datagram that does not go out now counts as lost.
        Ok(_) | Err(Errno::AGAIN | Errno::NOBUFS | Errno::INTR) => Ok(()),
        Err(errno) => Err(errno),
    }
}

/// Takes datagrams until one answers the question.
fn receive(
    socket: &OwnedFd,
    query: &[u8],
    question_end: usize,
) -> rustix::io::Result<Option<(Verdict, Vec<u8>)>> {
    // Only the pages that are written to are ever real.
    let mut reply = Vec::with_capacity(usize::from(u16::MAX));
    for _ in 0..MOST_AT_ONCE {
        reply.clear();
        let buffer = rustix::buffer::spare_capacity(&mut reply);
        match rustix::net::recv(socket, buffer, RecvFlags::empty()) {
            Ok(_) => {
                if let Some(verdict) = message::judge(query, question_end, &reply) {
                    reply.shrink_to_fit();
                    return Ok(Some((verdict, reply)));
                }
            }
            Err(Errno::AGAIN) => break,
            Err(Errno::INTR) => {}
            Err(errno) => return Err(errno),
        }
    }
    Ok(None)
}

impl Stream {
    /// Sends and receives what goes; the answer once it is whole.
    fn go_on(&mut self, hub: Hub<'_>, index: usize) -> rustix::io::Result<Option<Vec<u8>>> {
        while self.sent < self.out.len() {
            let rest = self.out.get(self.sent..).unwrap_or_default();
            match rustix::net::send(&self.socket, rest, SendFlags::NOSIGNAL) {
                Ok(count) => self.sent += count,
                Err(Errno::AGAIN) => return Ok(None),
                Err(Errno::INTR) => {}
                Err(errno) => return Err(errno),
            }
            if self.sent == self.out.len() {
                let token = hub.token + u64::try_from(index).unwrap_or(0);
                let data = EventData::new_u64(token);
                epoll::modify(hub.epoll, &self.socket, data, EventFlags::IN)?;
            }
        }
        loop {
            let wanted = match frame_length(&self.received) {
                None => 2,
                Some(length) => 2 + length,
            };
            if wanted > 2 && self.received.len() == wanted {
                return Ok(Some(self.received.split_off(2)));
            }
            // Never more than the one answer, so never more than 64 KiB.
            let missing = wanted.saturating_sub(self.received.len()).max(1);
            let mut piece = vec![0; missing];
            match rustix::net::recv(&self.socket, piece.as_mut_slice(), RecvFlags::empty()) {
                Ok((0, _)) => return Err(Errno::CONNRESET),
                Ok((count, _)) => {
                    let piece = piece.get(..count).unwrap_or_default();
                    self.received.extend_from_slice(piece);
                }
                Err(Errno::AGAIN) => return Ok(None),
                Err(Errno::INTR) => {}
                Err(errno) => return Err(errno),
            }
        }
    }
}

/// A message as it goes over TCP (RFC 1035, 4.2.2): its length in front.
pub(super) fn framed(message: &[u8]) -> Vec<u8> {
    let length = u16::try_from(message.len()).unwrap_or(u16::MAX);
    let mut out = Vec::with_capacity(message.len() + 2);
    out.extend(length.to_be_bytes());
    out.extend_from_slice(message.get(..usize::from(length)).unwrap_or_default());
    out
}

/// The length that a frame says it has.
pub(super) fn frame_length(bytes: &[u8]) -> Option<usize> {
    let length: [u8; 2] = bytes.get(..2)?.try_into().ok()?;
    Some(usize::from(u16::from_be_bytes(length)))
}
