//! Netlink (netlink(7)): many messages in one send, all answers in what the kernel has queued when
//! that returns. Synchronous, no allocation but the buffers.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use knarr_sys::clone::Namespaces;
use rustix::io::Errno;
use rustix::net::netlink::{self, SocketAddrNetlink};
use rustix::net::{AddressFamily, Protocol, RecvFlags, SendFlags, SocketFlags, SocketType};

use crate::{Error, Result};

/// `struct nlmsghdr`.
const HEADER: usize = 16;
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;

pub(crate) const REQUEST: u16 = 0x1;
pub(crate) const ACK: u16 = 0x4;
pub(crate) const DUMP: u16 = 0x300;
pub(crate) const REPLACE: u16 = 0x100;
pub(crate) const EXCL: u16 = 0x200;
pub(crate) const CREATE: u16 = 0x400;
pub(crate) const APPEND: u16 = 0x800;

const NESTED: u16 = 0x8000;

/// The attributes of a message, being written.
#[derive(Debug)]
pub(crate) struct Attributes<'a>(&'a mut Vec<u8>);

impl Attributes<'_> {
    pub(crate) fn bytes(&mut self, kind: u16, value: &[u8]) {
        let length = u16::try_from(value.len() + 4).unwrap_or(u16::MAX);
        self.0.extend(length.to_ne_bytes());
        self.0.extend(kind.to_ne_bytes());
        self.0.extend(value);
        pad(self.0);
    }

    /// In the host's byte order, as route netlink wants numbers.
    pub(crate) fn u32(&mut self, kind: u16, value: u32) {
        self.bytes(kind, &value.to_ne_bytes());
    }

    pub(crate) fn u16(&mut self, kind: u16, value: u16) {
        self.bytes(kind, &value.to_ne_bytes());
    }

    pub(crate) fn u8(&mut self, kind: u16, value: u8) {
        self.bytes(kind, &[value]);
    }

    /// In network byte order, as nf_tables wants numbers.
    pub(crate) fn be32(&mut self, kind: u16, value: u32) {
        self.bytes(kind, &value.to_be_bytes());
    }

    /// With the zero byte behind it.
    pub(crate) fn text(&mut self, kind: u16, value: &str) {
        let mut bytes = value.as_bytes().to_vec();
        bytes.push(0);
        self.bytes(kind, &bytes);
    }

    pub(crate) fn nested(&mut self, kind: u16, fill: impl FnOnce(&mut Attributes<'_>)) {
        self.nested_behind(kind, &[], fill);
    }

    /// Attributes behind a fixed header.
    pub(crate) fn nested_behind(
        &mut self,
        kind: u16,
        header: &[u8],
        fill: impl FnOnce(&mut Attributes<'_>),
    ) {
        let start = self.0.len();
        self.0.extend([0; 4]);
        self.0.extend(header);
        pad(self.0);
        fill(&mut Attributes(self.0));
        let length = u16::try_from(self.0.len() - start).unwrap_or(u16::MAX);
        if let Some(place) = self.0.get_mut(start..start + 4) {
            let [a, b] = length.to_ne_bytes();
            let [c, d] = (kind | NESTED).to_ne_bytes();
            place.copy_from_slice(&[a, b, c, d]);
        }
    }
}

fn pad(bytes: &mut Vec<u8>) {
    bytes.resize(bytes.len().next_multiple_of(4), 0);
}

/// Messages that go to the kernel in one send.
#[derive(Debug, Default)]
pub(crate) struct Batch {
    bytes: Vec<u8>,
    /// What each message does, for its error; and the answer that is as good as none.
    about: Vec<(String, Option<Errno>)>,
}

impl Batch {
    /// Adds a message; `what` completes "cannot …".
    pub(crate) fn push(
        &mut self,
        what: impl Into<String>,
        kind: u16,
        flags: u16,
        header: &[u8],
        fill: impl FnOnce(&mut Attributes<'_>),
    ) {
        let start = self.bytes.len();
        self.about.push((what.into(), None));
        self.bytes.extend([0; HEADER]);
        self.bytes.extend(header);
        pad(&mut self.bytes);
        fill(&mut Attributes(&mut self.bytes));
        let length = u32::try_from(self.bytes.len() - start).unwrap_or(u32::MAX);
        let sequence = u32::try_from(self.about.len()).unwrap_or(u32::MAX);
        let mut head = Vec::with_capacity(HEADER);
        head.extend(length.to_ne_bytes());
        head.extend(kind.to_ne_bytes());
        head.extend((flags | REQUEST).to_ne_bytes());
        head.extend(sequence.to_ne_bytes());
        head.extend([0; 4]);
        if let Some(place) = self.bytes.get_mut(start..start + HEADER) {
            place.copy_from_slice(&head);
        }
    }

    /// That the last message is answered by this is fine.
    pub(crate) fn fine(&mut self, errno: Errno) {
        if let Some((_, fine)) = self.about.last_mut() {
            *fine = Some(errno);
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.about.is_empty()
    }
}

/// What the kernel answered to one message that asked for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Answer {
    sequence: u32,
    errno: Option<Errno>,
}

/// A netlink socket in some network namespace.
#[derive(Debug)]
pub(crate) struct Socket(OwnedFd);

impl Socket {
    /// For links, addresses and routes, in the caller's namespace.
    pub(crate) fn route() -> Result<Self> {
        Self::open(None)
    }

    /// For nf_tables, in the caller's namespace.
    pub(crate) fn netfilter() -> Result<Self> {
        Self::open(Some(netlink::NETFILTER))
    }

    /// On which the kernel tells of every change to the firewall, in the caller's namespace.
    pub(crate) fn firewall_changes() -> Result<Self> {
        /// `NFNLGRP_NFTABLES`, as a bit (netlink(7)).
        const CHANGES: u32 = 1 << 6;
        let socket = Self::netfilter()?;
        rustix::net::bind(&socket.0, &SocketAddrNetlink::new(0, CHANGES))
            .map_err(Error::of("bind", "hear of changes to the firewall"))?;
        Ok(socket)
    }

    /// One that another process has made.
    pub(crate) fn lent(socket: OwnedFd) -> Self {
        Self(socket)
    }

    /// What the kernel calls it: a number of its own in its network namespace; not a netlink socket
    /// is an error. 0 before something was sent.
    pub(crate) fn port(&self) -> Result<u32> {
        let of = || Error::of("getsockname", "look at a netlink socket");
        let address = rustix::net::getsockname(&self.0).map_err(of())?;
        Ok(SocketAddrNetlink::try_from(address).map_err(of())?.pid())
    }

    /// Takes everything that is queued; `false` where the kernel had to leave something out.
    pub(crate) fn drain(&self, mut found: impl FnMut(&Message<'_>)) -> Result<bool> {
        let mut complete = true;
        let mut buffer = vec![0; 16 << 10];
        loop {
            match self.receive(&mut buffer, RecvFlags::DONTWAIT) {
                Ok(length) => each(buffer.get(..length).unwrap_or_default(), |message| {
                    found(&message);
                }),
                Err(Errno::AGAIN) => return Ok(complete),
                Err(Errno::NOBUFS) => complete = false,
                Err(errno) => return Err(Error::of("recv", "hear the kernel's network")(errno)),
            }
        }
    }

    fn open(protocol: Option<Protocol>) -> Result<Self> {
        // NETLINK_ROUTE is number 0, which rustix calls none.
        let socket = rustix::net::socket_with(
            AddressFamily::NETLINK,
            SocketType::RAW,
            SocketFlags::CLOEXEC,
            protocol,
        )
        .map_err(Error::of("socket", "open a netlink socket"))?;
        Ok(Self(socket))
    }

    /// Sends all messages; fails with the first error that is not fine.
    pub(crate) fn apply(&self, batch: &Batch) -> Result<()> {
        if batch.is_empty() {
            return Ok(());
        }
        self.send(&batch.bytes)?;
        for answer in self.answers()? {
            let Some(errno) = answer.errno else { continue };
            let about = (answer.sequence as usize)
                .checked_sub(1)
                .and_then(|index| batch.about.get(index));
            if about.is_some_and(|(_, fine)| *fine == Some(errno)) {
                continue;
            }
            let what = about.map_or("set up the network", |(what, _)| what);
            return Err(Error::of("netlink", what)(errno));
        }
        Ok(())
    }

    fn send(&self, bytes: &[u8]) -> Result<()> {
        let kernel = SocketAddrNetlink::new(0, 0);
        loop {
            match rustix::net::sendto(&self.0, bytes, SendFlags::empty(), &kernel) {
                Ok(_) => return Ok(()),
                Err(Errno::INTR) => {}
                Err(errno) => {
                    return Err(Error::of("sendto", "speak to the kernel's network")(errno));
                }
            }
        }
    }

    /// The answers that are there: the kernel queues them before the send returns.
    fn answers(&self) -> Result<Vec<Answer>> {
        let mut all = Vec::new();
        let complete = self.drain(|message| {
            if message.kind == NLMSG_ERROR {
                all.push(Answer {
                    sequence: message.sequence,
                    errno: message.errno(),
                });
            }
        })?;
        if complete {
            Ok(all)
        } else {
            Err(Error::of("recv", "hear the kernel's network")(
                Errno::NOBUFS,
            ))
        }
    }

    fn receive(&self, buffer: &mut [u8], flags: RecvFlags) -> rustix::io::Result<usize> {
        loop {
            match rustix::net::recv(&self.0, &mut *buffer, flags) {
                Err(Errno::INTR) => {}
                received => return received.map(|(length, _)| length),
            }
        }
    }

    /// Asks one question and gives every message of the answer, header stripped, to `found`.
    /// `Ok(Some(errno))` is the kernel's refusal.
    pub(crate) fn ask(
        &self,
        question: &Batch,
        mut found: impl FnMut(&[u8]),
    ) -> Result<Option<Errno>> {
        self.send(&question.bytes)?;
        let mut buffer = vec![0; 32 << 10];
        loop {
            let length = self
                .receive(&mut buffer, RecvFlags::empty())
                .map_err(Error::of("recv", "hear the kernel's network"))?;
            let mut done = None;
            each(
                buffer.get(..length).unwrap_or_default(),
                |message| match message.kind {
                    NLMSG_DONE => done = Some(None),
                    NLMSG_ERROR => done = Some(message.errno()),
                    _ => {
                        found(message.payload);
                        if !message.multi {
                            done = Some(None);
                        }
                    }
                },
            );
            if let Some(done) = done {
                return Ok(done);
            }
        }
    }
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// What the kernel says.
#[derive(Debug)]
pub(crate) struct Message<'a> {
    pub(crate) kind: u16,
    multi: bool,
    sequence: u32,
    /// Of the socket that it answers, or that made the change it tells of.
    pub(crate) port: u32,
    /// Without the header.
    pub(crate) payload: &'a [u8],
}

impl Message<'_> {
    /// Of an NLMSG_ERROR.
    fn errno(&self) -> Option<Errno> {
        let code = number(self.payload, 0).cast_signed();
        (code != 0).then(|| Errno::from_raw_os_error(code.wrapping_neg()))
    }
}

fn each(mut bytes: &[u8], mut found: impl FnMut(Message<'_>)) {
    while bytes.len() >= HEADER {
        let length = number(bytes, 0) as usize;
        let Some(message) = bytes.get(..length).filter(|_| length >= HEADER) else {
            return;
        };
        found(Message {
            kind: short(message, 4),
            multi: short(message, 6) & 0x2 != 0,
            sequence: number(message, 8),
            port: number(message, 12),
            payload: message.get(HEADER..).unwrap_or_default(),
        });
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
}

/// The attributes behind a fixed header of `skip` bytes.
pub(crate) fn attributes(payload: &[u8], skip: usize) -> impl Iterator<Item = (u16, &[u8])> {
    let mut rest = payload.get(skip..).unwrap_or_default();
    std::iter::from_fn(move || {
        let length = usize::from(short(rest, 0));
        let value = rest.get(4..length)?;
        let kind = short(rest, 2) & 0x3fff;
        rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((kind, value))
    })
}

/// A u32 in the host's byte order; 0 where there is none.
pub(crate) fn number(bytes: &[u8], at: usize) -> u32 {
    bytes
        .get(at..at + 4)
        .and_then(|bytes| bytes.try_into().ok())
        .map_or(0, u32::from_ne_bytes)
}

/// As [`number`], in network byte order.
pub(crate) fn big_number(bytes: &[u8], at: usize) -> u32 {
    u32::from_be(number(bytes, at))
}

pub(crate) fn short(bytes: &[u8], at: usize) -> u16 {
    bytes
        .get(at..at + 2)
        .and_then(|bytes| bytes.try_into().ok())
        .map_or(0, u16::from_ne_bytes)
}

/// Does something with the calling thread in another network namespace, then comes back.
///
/// # Errors
/// As setns(2), and what `act` fails with.
pub fn within<T>(namespace: BorrowedFd<'_>, act: impl FnOnce() -> Result<T>) -> Result<T> {
    let enter = |fd: BorrowedFd<'_>| {
        knarr_sys::process::setns(fd, Namespaces::NETWORK).map_err(|cause| Error::Kernel {
            what: "enter a network namespace".to_owned(),
            cause,
        })
    };
    let own = own_namespace()?;
    enter(namespace)?;
    let done = act();
    // Whoever cannot return must not go on somewhere else.
    enter(own.as_fd())?;
    done
}

/// The calling thread's network namespace.
///
/// # Errors
/// When `/proc` is not there.
pub fn own_namespace() -> Result<OwnedFd> {
    open_namespace("/proc/thread-self/ns/net")
}

/// A network namespace by the path of its file.
///
/// # Errors
/// When there is none.
pub fn open_namespace(path: &str) -> Result<OwnedFd> {
    use rustix::fs::{Mode, OFlags};
    rustix::fs::open(path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()).map_err(Error::of(
        "open",
        format!("open the network namespace {path}"),
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_are_written_as_they_are_read() {
        let mut batch = Batch::default();
        batch.push("x", 16, ACK, &[9; 6], |all| {
            all.text(3, "eth0");
            all.nested(18, |all| {
                all.u32(1, 7);
                all.nested_behind(2, &[1; 4], |all| all.u8(5, 6));
            });
        });
        let mut seen = 0;
        each(&batch.bytes, |message| {
            seen += 1;
            assert_eq!(
                (message.kind, message.sequence, message.multi),
                (16, 1, false)
            );
            let all: Vec<_> = attributes(message.payload, 8).collect();
            assert_eq!(all.first(), Some(&(3, &b"eth0\0"[..])));
            let (kind, nested) = all[1];
            assert_eq!(kind, 18);
            let inner: Vec<_> = attributes(nested, 0).collect();
            assert_eq!(number(inner[0].1, 0), 7);
            assert_eq!(
                attributes(inner[1].1, 4).collect::<Vec<_>>(),
                [(5, &[6][..])]
            );
        });
        assert_eq!(seen, 1);
    }

    #[test]
    fn cut_short_bytes_end_the_walk() {
        for bytes in [
            &[][..],
            &[3, 0],
            &[2, 0, 1, 0],
            &[9, 0, 1, 0, 5],
            &[0, 0, 0, 0],
        ] {
            assert_eq!(attributes(bytes, 0).count(), 0, "{bytes:?}");
            each(bytes, |_| panic!("no message in {bytes:?}"));
        }
    }
}
