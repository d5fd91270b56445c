//! Connections that the kernel cannot translate, copied between two sockets without passing through
//! memory (splice(2)): to `[::1]`, and to IPv6 addresses where the container has none.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::event::epoll::{self, EventData, EventFlags};
use rustix::io::Errno;
use rustix::net::{AddressFamily, Shutdown, SocketFlags, SocketType};
use rustix::pipe::{PipeFlags, SpliceFlags};

use super::FIRST_SPLICE;

/// The most connections at a time; more wait in the socket's queue.
const MOST: usize = 256;
/// What they take: two sockets and two pipes each.
pub(super) const DESCRIPTORS: u64 = MOST as u64 * 6;
/// What a pipe holds, in bytes.
const PIPE: usize = 64 << 10;

/// All of a container's.
#[derive(Debug, Default)]
pub(super) struct Splices {
    all: BTreeMap<u64, Splice>,
    next: u64,
}

/// One connection: the caller's socket and the container's.
#[derive(Debug)]
struct Splice {
    sockets: [OwnedFd; 2],
    /// From each socket to the other one.
    ways: [Way; 2],
    interest: [EventFlags; 2],
}

/// One direction.
#[derive(Debug)]
struct Way {
    out: OwnedFd,
    into: OwnedFd,
    /// Bytes in the pipe.
    held: usize,
    /// The sender has said all.
    ended: bool,
    /// The receiver has been told.
    told: bool,
}

impl Way {
    fn new() -> rustix::io::Result<Self> {
        let (out, into) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK)?;
        Ok(Self {
            out,
            into,
            held: 0,
            ended: false,
            told: false,
        })
    }

    /// Moves what can be moved; an error is the end of the connection.
    fn pump(&mut self, from: BorrowedFd<'_>, to: BorrowedFd<'_>) -> rustix::io::Result<()> {
        let flags = SpliceFlags::NONBLOCK | SpliceFlags::MOVE;
        loop {
            let mut moved = false;
            if !self.ended && self.held < PIPE {
                match rustix::pipe::splice(from, None, &self.into, None, PIPE - self.held, flags) {
                    Ok(0) => self.ended = true,
                    Ok(count) => {
                        self.held += count;
                        moved = true;
                    }
                    Err(Errno::AGAIN | Errno::INTR) => {}
                    Err(errno) => return Err(errno),
                }
            }
            if self.held > 0 {
                match rustix::pipe::splice(&self.out, None, to, None, self.held, flags) {
                    Ok(count) => {
                        self.held = self.held.saturating_sub(count);
                        moved |= count > 0;
                    }
                    Err(Errno::AGAIN | Errno::INTR) => {}
                    Err(errno) => return Err(errno),
                }
            }
            if self.ended && self.held == 0 && !self.told {
                self.told = true;
                // One that is gone needs not be told.
                rustix::net::shutdown(to, Shutdown::Write).ok();
            }
            if !moved {
                return Ok(());
            }
        }
    }
}

impl Splices {
    /// Takes one connection from a listening socket, and connects it. What cannot be connected is
    /// closed: the caller sees that.
    pub(super) fn accept(&mut self, epoll: BorrowedFd<'_>, from: BorrowedFd<'_>, to: SocketAddr) {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let Ok(caller) = rustix::net::accept_with(from, flags) else {
            return;
        };
        if self.all.len() >= MOST {
            return;
        }
        let open = || -> rustix::io::Result<Splice> {
            let family = if to.is_ipv4() {
                AddressFamily::INET
            } else {
                AddressFamily::INET6
            };
            let target = rustix::net::socket_with(family, SocketType::STREAM, flags, None)?;
            match rustix::net::connect(&target, &to) {
                Ok(()) | Err(Errno::INPROGRESS) => {}
                Err(errno) => return Err(errno),
            }
            Ok(Splice {
                sockets: [caller, target],
                ways: [Way::new()?, Way::new()?],
                interest: [EventFlags::IN, EventFlags::OUT],
            })
        };
        let Ok(splice) = open() else { return };
        let number = self.next;
        self.next += 1;
        for (side, socket) in (0..).zip(&splice.sockets) {
            let interest = splice.interest.get(side).copied().unwrap_or(EventFlags::IN);
            if epoll::add(epoll, socket, token(number, side), interest).is_err() {
                return;
            }
        }
        self.all.insert(number, splice);
    }

    /// A socket of one of them is ready.
    pub(super) fn ready(&mut self, epoll: BorrowedFd<'_>, token: u64) {
        let number = (token - FIRST_SPLICE) / 2;
        if let Some(splice) = self.all.get_mut(&number)
            && !splice.go_on(epoll, number)
        {
            self.all.remove(&number);
        }
    }
}

fn token(number: u64, side: usize) -> EventData {
    EventData::new_u64(FIRST_SPLICE + number * 2 + side as u64)
}

impl Splice {
    /// `false` at its end.
    fn go_on(&mut self, epoll: BorrowedFd<'_>, number: u64) -> bool {
        let [caller, target] = &self.sockets;
        let [there, back] = &mut self.ways;
        let (caller, target) = (caller.as_fd(), target.as_fd());
        // While it is being connected, both only wait.
        for (way, from, to) in [(&mut *there, caller, target), (&mut *back, target, caller)] {
            match way.pump(from, to) {
                Ok(()) | Err(Errno::NOTCONN) => {}
                Err(_) => return false,
            }
        }
        if there.told && back.told {
            return false;
        }
        let wants = |reads: &Way, writes: &Way| {
            let mut flags = EventFlags::empty();
            if !reads.ended && reads.held < PIPE {
                flags |= EventFlags::IN;
            }
            if writes.held > 0 {
                flags |= EventFlags::OUT;
            }
            flags
        };
        let wanted = [wants(there, back), wants(back, there)];
        for (side, socket) in (0..).zip([caller, target]) {
            let (Some(now), Some(wanted)) = (self.interest.get_mut(side), wanted.get(side)) else {
                continue;
            };
            if now != wanted {
                if epoll::modify(epoll, socket, token(number, side), *wanted).is_err() {
                    return false;
                }
                *now = *wanted;
            }
        }
        true
    }
}
