//! The sockets that a container's questions come to.

use std::net::{Ipv4Addr, SocketAddr};
use std::os::fd::{BorrowedFd, OwnedFd};

use rustix::net::{AddressFamily, SocketFlags, SocketType};

use crate::{Error, Result};

/// Where a container finds its name server, as with Docker.
pub const ADDRESS: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 11);
/// Connections that wait to be accepted.
const BACKLOG: i32 = 32;

/// UDP and TCP on [`ADDRESS`], each on a port that the kernel picked, so that the container may
/// have port 53 for itself.
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
    /// Makes them in the caller's network namespace; its loopback need not be up yet.
    ///
    /// # Errors
    /// [`Error::Kernel`], when there are no descriptors left.
    pub fn open() -> Result<Self> {
        let (udp, udp_port) = bound(SocketType::DGRAM)?;
        let (tcp, tcp_port) = bound(SocketType::STREAM)?;
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
    pub fn open_in(namespace: BorrowedFd<'_>) -> Result<Self> {
        crate::within(namespace, Self::open)
    }
}

fn failed(call: &'static str) -> impl FnOnce(rustix::io::Errno) -> Error {
    Error::of(
        call,
        "open the sockets of the container's name server".to_owned(),
    )
}

fn bound(kind: SocketType) -> Result<(OwnedFd, u16)> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = rustix::net::socket_with(AddressFamily::INET, kind, flags, None)
        .map_err(failed("socket"))?;
    rustix::net::sockopt::set_ip_freebind(&socket, true).map_err(failed("setsockopt"))?;
    rustix::net::bind(&socket, &SocketAddr::from((ADDRESS, 0))).map_err(failed("bind"))?;
    let address = rustix::net::getsockname(&socket)
        .and_then(SocketAddr::try_from)
        .map_err(failed("getsockname"))?;
    Ok((socket, address.port()))
}
