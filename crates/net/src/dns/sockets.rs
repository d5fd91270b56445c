//! The sockets that a container's questions come to.

use std::net::{Ipv4Addr, SocketAddr};
use std::os::fd::{BorrowedFd, OwnedFd};

use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketFlags, SocketType};

use crate::{Error, Result};

/// Where a container finds its name server, as with Docker.
pub const ADDRESS: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 11);
/// Connections that wait to be accepted.
const BACKLOG: i32 = 32;

/// UDP and TCP on [`ADDRESS`], on ports that are not 53, so that the container may have that for
/// itself.
#[derive(Debug)]
pub struct Sockets {
    pub(super) udp: OwnedFd,
    pub(super) tcp: OwnedFd,
    /// The port of UDP.
    pub udp_port: u16,
    /// The port of TCP.
    pub tcp_port: u16,
}

impl Sockets {
    /// Makes them in the caller's network namespace; its loopback need not be up yet. Where the
    /// port `wanted` is taken, the kernel picks another; 0 leaves it to the kernel.
    ///
    /// # Errors
    /// [`Error::Kernel`], when there are no descriptors left.
    pub fn open(wanted: u16) -> Result<Self> {
        let (udp, udp_port) = bound(SocketType::DGRAM, wanted)?;
        let (tcp, tcp_port) = bound(SocketType::STREAM, wanted)?;
        rustix::net::listen(&tcp, BACKLOG).map_err(failed("listen"))?;
        Ok(Self {
            udp,
            tcp,
            udp_port,
            tcp_port,
        })
    }

    /// Makes them in another network namespace.
    ///
    /// # Errors
    /// As [`Sockets::open`] and [`within`](crate::within).
    pub fn open_in(namespace: BorrowedFd<'_>, wanted: u16) -> Result<Self> {
        crate::within(namespace, || Self::open(wanted))
    }
}

fn failed(call: &'static str) -> impl FnOnce(Errno) -> Error {
    Error::of(
        call,
        "open the sockets of the container's name server".to_owned(),
    )
}

fn bound(kind: SocketType, wanted: u16) -> Result<(OwnedFd, u16)> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = rustix::net::socket_with(AddressFamily::INET, kind, flags, None)
        .map_err(failed("socket"))?;
    rustix::net::sockopt::set_ip_freebind(&socket, true).map_err(failed("setsockopt"))?;
    let bind = |port: u16| rustix::net::bind(&socket, &SocketAddr::from((ADDRESS, port)));
    match bind(wanted) {
        Err(Errno::ADDRINUSE) if wanted != 0 => bind(0),
        done => done,
    }
    .map_err(failed("bind"))?;
    let address = rustix::net::getsockname(&socket)
        .and_then(SocketAddr::try_from)
        .map_err(failed("getsockname"))?;
    Ok((socket, address.port()))
}
