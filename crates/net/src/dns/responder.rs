//! The server: one epoll over its sockets, hosted by somebody else's loop.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use rustix::event::epoll::{self, CreateFlags, EventData, EventFlags};
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags, SocketFlags};
use serde::{Deserialize, Serialize};

use super::Sockets;
use super::answer::{self, Answer};
use super::connection::{Connection, MOST_QUERY};
use super::exchange::{Client, Exchange, Hub, Outcome};
use super::message::{self, Code, Query, Refusal};
use super::upstream::{Servers, Upstream};
use super::zone::Zone;
use crate::{Error, Result, weak};

/// Questions that wait for other servers at a time; each may have a socket per server. A host's
/// loop usually has 1024 descriptors.
const MOST_EXCHANGES: usize = 192;
/// Connections at a time. One more takes the place of the one that was idle longest.
const MOST_CONNECTIONS: usize = 32;
/// Datagrams answered before others have their turn.
const MOST_AT_ONCE: usize = 64;
/// How long nobody is let in once descriptors ran out.
const BREATHER: Duration = Duration::from_millis(500);

/// What epoll reports: a key above three bits that say what it is the key of. Keys are never used
/// twice, so an event for something that is gone finds nothing.
const BITS: u32 = 3;
const UDP: u64 = 0;
const TCP: u64 = 1;
const CONNECTION: u64 = 2;
/// And one per server of an exchange.
const FIRST_SERVER: u64 = 3;

/// What a name server answers from.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Config {
    /// The run root, whose `networks/` has the names.
    pub run_root: PathBuf,
    /// The container's networks, the one that wins first.
    pub networks: Vec<String>,
    /// Who is asked what they do not know.
    #[serde(default)]
    pub servers: Servers,
}

/// A name server for one container.
#[derive(Debug)]
pub struct Responder {
    epoll: OwnedFd,
    sockets: Sockets,
    zone: Zone,
    upstream: Upstream,
    exchanges: BTreeMap<u64, Exchange>,
    connections: BTreeMap<u64, Connection>,
    next_key: u64,
    /// Turns the addresses of names that have several.
    turn: usize,
    /// When connections are accepted again.
    listen_at: Option<Instant>,
    /// Only in a test that attacks it.
    unlimited: bool,
}

impl Responder {
    /// A server on `sockets`. Forwards from the network namespace that the calling thread is in
    /// when it calls [`Responder::turn`].
    ///
    /// # Errors
    /// [`Error::Kernel`], when there are no descriptors left.
    pub fn new(config: &Config, sockets: Sockets) -> Result<Self> {
        let failed = |call| {
            Error::of(
                call,
                "wait for questions to the container's name server".to_owned(),
            )
        };
        let epoll = epoll::create(CreateFlags::CLOEXEC).map_err(failed("epoll_create"))?;
        for (socket, token) in [(&sockets.udp, UDP), (&sockets.tcp, TCP)] {
            epoll::add(&epoll, socket, EventData::new_u64(token), EventFlags::IN)
                .map_err(failed("epoll_ctl"))?;
        }
        Ok(Self {
            epoll,
            sockets,
            zone: Zone::new(&config.run_root, &config.networks),
            upstream: Upstream::new(config.servers.clone()),
            exchanges: BTreeMap::new(),
            connections: BTreeMap::new(),
            next_key: 1,
            turn: 0,
            listen_at: None,
            unlimited: weak::off("dns-limits"),
        })
    }

    /// The sockets, whose ports the container's nat table leads to.
    pub fn sockets(&self) -> &Sockets {
        &self.sockets
    }

    /// Answers from other networks from now on.
    pub fn set_config(&mut self, config: &Config) {
        self.zone = Zone::new(&config.run_root, &config.networks);
        self.upstream = Upstream::new(config.servers.clone());
    }

    /// When [`Responder::turn`] has something to do even if nothing comes.
    pub fn next_deadline(&self) -> Option<Instant> {
        let exchanges = self.exchanges.values().map(Exchange::deadline);
        let connections = self.connections.values().filter_map(Connection::deadline);
        exchanges.chain(connections).chain(self.listen_at).min()
    }

    /// Deals with what has come and what is due, without waiting. What is left over keeps the
    /// descriptor readable.
    pub fn turn(&mut self, now: Instant) {
        let mut events = [epoll::Event {
            flags: EventFlags::empty(),
            data: EventData::new_u64(0),
        }; 16];
        let zero = rustix::time::Timespec {
            tv_sec: 0,
            tv_nsec: 0,
        };
        // Interrupted or not, the host's loop comes back as long as something is there.
        let count = epoll::wait(&self.epoll, &mut events, Some(&zero)).unwrap_or(0);
        for event in events.iter().take(count) {
            let (token, flags) = (event.data.u64(), event.flags);
            let key = token >> BITS;
            match token & ((1 << BITS) - 1) {
                UDP => self.datagrams(now),
                TCP => self.accept(now),
                // Nobody is there any more to be answered.
                CONNECTION if flags.intersects(EventFlags::ERR | EventFlags::HUP) => {
                    self.close(key);
                }
                CONNECTION => self.read(key, now),
                server => self.server_ready(key, server - FIRST_SERVER, now),
            }
        }
        self.tick(now);
    }

    fn key(&mut self) -> u64 {
        let key = self.next_key;
        self.next_key += 1;
        key
    }

    fn datagrams(&mut self, now: Instant) {
        // One byte more than is allowed shows that there was more.
        let mut buffer = [0; MOST_QUERY + 1];
        for _ in 0..MOST_AT_ONCE {
            let received =
                rustix::net::recvfrom(&self.sockets.udp, &mut buffer[..], RecvFlags::empty());
            let (count, from) = match received {
                Ok((count, _, Some(from))) => (count, from),
                Ok((_, _, None)) | Err(Errno::INTR) => continue,
                Err(_) => return,
            };
            let Ok(from) = SocketAddr::try_from(from) else {
                continue;
            };
            let message = buffer.get(..count).unwrap_or_default();
            self.question(message, Client::Udp(from), now);
        }
    }

    fn question(&mut self, message: &[u8], client: Client, now: Instant) {
        let parsed = if message.len() > MOST_QUERY {
            Err(Refusal::Tell(Code::FormatError))
        } else {
            Query::parse(message)
        };
        let query = match parsed {
            Ok(query) => query,
            Err(Refusal::Ignore) => return,
            Err(Refusal::Tell(code)) => {
                if let Some(refusal) = message::refuse(message, code) {
                    self.reply(client, &refusal);
                }
                return;
            }
        };
        self.turn = self.turn.wrapping_add(1);
        let limit = limit(client, &query);
        match answer::decide(message, &query, &self.zone, self.turn, limit) {
            Answer::Known(reply) => self.reply(client, &reply),
            Answer::Forward => self.forward(message, query, client, now),
        }
    }

    fn forward(&mut self, message: &[u8], query: Query, client: Client, now: Instant) {
        let known = |code| message::answer(message, &query, code, &[], limit(client, &query));
        let servers = self.upstream.order(now);
        if servers.is_empty() {
            return self.reply(client, &known(Code::NoSuchName));
        }
        let mut others = self.exchanges.values();
        // A client that has become impatient will hear from the first one.
        if others.any(|other| other.is_repeated_by(client, &query)) {
            return;
        }
        let full = (self.exchanges.len() >= MOST_EXCHANGES && !self.unlimited)
            || match client {
                Client::Udp(_) => false,
                Client::Tcp(key) => !self.connections.get_mut(&key).is_some_and(Connection::wait),
            };
        if full {
            return self.reply(client, &known(Code::Refused));
        }
        let failure = known(Code::ServerFailure);
        match Exchange::new(client, query, message, &servers, now) {
            Ok(exchange) => {
                let key = self.key();
                self.exchanges.insert(key, exchange);
                self.with_exchange(key, now, Exchange::ask);
            }
            Err(_) => {
                self.reply(client, &failure);
                self.answered(client, now);
            }
        }
    }

    fn server_ready(&mut self, key: u64, server: u64, now: Instant) {
        let index = usize::try_from(server).unwrap_or(usize::MAX);
        self.with_exchange(key, now, |exchange, hub, upstream, now| {
            exchange.ready(index, hub, upstream, now)
        });
    }

    /// Lets an exchange do something, and ends it if that was its last.
    fn with_exchange(
        &mut self,
        key: u64,
        now: Instant,
        act: impl FnOnce(&mut Exchange, Hub<'_>, &mut Upstream, Instant) -> Outcome,
    ) {
        let Some(exchange) = self.exchanges.get_mut(&key) else {
            return;
        };
        let hub = Hub {
            epoll: self.epoll.as_fd(),
            token: key << BITS | FIRST_SERVER,
        };
        let outcome = act(exchange, hub, &mut self.upstream, now);
        if matches!(outcome, Outcome::Wait) {
            return;
        }
        let Some(mut exchange) = self.exchanges.remove(&key) else {
            return;
        };
        let reply = match outcome {
            Outcome::Done(reply) => Some(reply),
            _ => exchange.take_refusal(),
        };
        let (client, query) = (exchange.client, &exchange.query);
        let limit = limit(client, query);
        let reply = match reply {
            Some(reply) => {
                let mut reply = message::shorten(reply, query, limit);
                message::set_id(&mut reply, query.id);
                reply
            }
            None => message::answer(exchange.message(), query, Code::ServerFailure, &[], limit),
        };
        self.reply(client, &reply);
        self.answered(client, now);
    }

    /// Sends an answer, or queues it on its connection.
    fn reply(&mut self, client: Client, reply: &[u8]) {
        match client {
            Client::Udp(to) => {
                // One that cannot go out is lost, as datagrams are.
                rustix::net::sendto(&self.sockets.udp, reply, SendFlags::NOSIGNAL, &to).ok();
            }
            Client::Tcp(key) => {
                if let Some(connection) = self.connections.get_mut(&key) {
                    connection.queue(reply);
                }
            }
        }
    }

    /// An exchange of this client is over.
    fn answered(&mut self, client: Client, now: Instant) {
        let Client::Tcp(key) = client else { return };
        if let Some(connection) = self.connections.get_mut(&key) {
            connection.answered(now);
        }
        self.flush(key, now);
    }

    fn accept(&mut self, now: Instant) {
        // One at a time; the others keep the listener readable.
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let socket = match rustix::net::accept_with(&self.sockets.tcp, flags) {
            Ok(socket) => socket,
            Err(Errno::MFILE | Errno::NFILE | Errno::NOBUFS | Errno::NOMEM) => {
                self.listen(false);
                self.listen_at = Some(now + BREATHER);
                return;
            }
            Err(_) => return,
        };
        if self.connections.len() >= MOST_CONNECTIONS && !self.unlimited {
            let oldest = self
                .connections
                .iter()
                .min_by_key(|(_, connection)| connection.last_active())
                .map(|(key, _)| *key);
            oldest.into_iter().for_each(|key| self.close(key));
        }
        let key = self.key();
        let token = key << BITS | CONNECTION;
        if let Ok(connection) = Connection::new(socket, self.epoll.as_fd(), token, now) {
            self.connections.insert(key, connection);
        }
    }

    fn listen(&self, on: bool) {
        let flags = if on {
            EventFlags::IN
        } else {
            EventFlags::empty()
        };
        // It is registered, so this does not fail.
        epoll::modify(
            &self.epoll,
            &self.sockets.tcp,
            EventData::new_u64(TCP),
            flags,
        )
        .ok();
    }

    fn read(&mut self, key: u64, now: Instant) {
        let Some(connection) = self.connections.get_mut(&key) else {
            return;
        };
        match connection.read(now) {
            Ok(questions) => {
                for question in questions {
                    self.question(&question, Client::Tcp(key), now);
                }
                self.flush(key, now);
            }
            Err(_) => self.close(key),
        }
    }

    fn flush(&mut self, key: u64, now: Instant) {
        let Some(connection) = self.connections.get_mut(&key) else {
            return;
        };
        let token = key << BITS | CONNECTION;
        if connection.flush(self.epoll.as_fd(), token, now).is_err() {
            self.close(key);
        }
    }

    fn close(&mut self, key: u64) {
        self.connections.remove(&key);
        self.exchanges
            .retain(|_, exchange| exchange.client != Client::Tcp(key));
    }

    fn tick(&mut self, now: Instant) {
        if self.listen_at.is_some_and(|at| at <= now) {
            self.listen_at = None;
            self.listen(true);
        }
        let due = |(key, at): (u64, Instant)| (at <= now).then_some(key);
        let deadlines = self.exchanges.iter().map(|(key, it)| (*key, it.deadline()));
        for key in deadlines.filter_map(due).collect::<Vec<_>>() {
            self.with_exchange(key, now, Exchange::tick);
        }
        let deadlines = self.connections.iter();
        let deadlines = deadlines.filter_map(|(key, it)| Some((*key, it.deadline()?)));
        for key in deadlines.filter_map(due).collect::<Vec<_>>() {
            self.close(key);
        }
    }
}

impl AsFd for Responder {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.epoll.as_fd()
    }
}

/// The most bytes of an answer.
fn limit(client: Client, query: &Query) -> usize {
    match client {
        Client::Udp(_) => query.udp_limit(),
        Client::Tcp(_) => usize::from(u16::MAX),
    }
}
