//! Published ports: asked for, held bound on the host, and who has one that is taken.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::OwnedFd;
use std::path::Path;

use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketFlags, SocketType, ipproto, sockopt};
use serde::{Deserialize, Serialize};

use crate::firewall::Published;
use crate::{Error, Result};

/// A transport whose ports can be published.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[expect(missing_docs, reason = "named by the IANA")]
pub enum Protocol {
    Tcp,
    Udp,
    Sctp,
}

impl Protocol {
    /// Docker's word for it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
            Self::Sctp => "sctp",
        }
    }

    /// By its name.
    pub fn parse(name: &str) -> Option<Self> {
        [Self::Tcp, Self::Udp, Self::Sctp]
            .into_iter()
            .find(|protocol| protocol.name().eq_ignore_ascii_case(name))
    }

    /// In an IP header.
    pub(crate) fn number(self) -> u8 {
        match self {
            Self::Tcp => 6,
            Self::Udp => 17,
            Self::Sctp => 132,
        }
    }
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A port or a range of ports to publish.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PortRequest {
    /// Of the transport.
    pub protocol: Protocol,
    /// The first port in the container.
    pub port: u16,
    /// How many follow each other, at least 1.
    pub count: u16,
    /// The address on the host; `None` is all of them, of both families.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host: Option<IpAddr>,
    /// The ports on the host that may be taken, first and last; `None` is any free one. A range
    /// longer than `count` is a choice.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host_ports: Option<(u16, u16)>,
}

/// A port that is published.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Bound {
    /// In the container.
    pub port: u16,
    /// Of the transport.
    pub protocol: Protocol,
    /// On the host.
    pub host: IpAddr,
    /// On the host.
    pub host_port: u16,
}

/// A socket that keeps a port, so that nobody else takes it. One that listens serves who comes by
/// an address that cannot be translated.
#[derive(Debug)]
pub struct Held {
    /// The socket.
    pub socket: OwnedFd,
    /// What it keeps.
    pub bound: Bound,
}

/// The container's addresses that ports lead to.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Target {
    pub(crate) ipv4: Option<Ipv4Addr>,
    pub(crate) ipv6: Option<Ipv6Addr>,
}

/// What publishing some ports takes: sockets held, and what the firewall translates.
#[derive(Debug, Default)]
pub(crate) struct Publication {
    pub(crate) held: Vec<Held>,
    pub(crate) bound: Vec<Bound>,
    pub(crate) published: Vec<Published>,
}

/// Takes the ports on the host.
pub(crate) fn take(requests: &[PortRequest], target: Target) -> Result<Publication> {
    let mut all = Publication::default();
    for request in requests {
        all.take(request, target)?;
    }
    all.bound.sort_unstable();
    Ok(all)
}

impl Publication {
    fn take(&mut self, request: &PortRequest, target: Target) -> Result<()> {
        let hosts: Vec<IpAddr> = match request.host {
            Some(host) => vec![host],
            None => vec![Ipv4Addr::UNSPECIFIED.into(), Ipv6Addr::UNSPECIFIED.into()],
        };
        let (first, sockets) = take_first(request, &hosts)?;
        for host in hosts {
            // What the kernel translates; the rest is served by the sockets themselves.
            let to = match host {
                IpAddr::V4(_) => target.ipv4.map(IpAddr::from),
                IpAddr::V6(host) if host.is_loopback() => None,
                IpAddr::V6(_) => target.ipv6.map(IpAddr::from),
            };
            if let Some(to) = to {
                self.published.push(Published {
                    protocol: request.protocol,
                    host,
                    host_port: first,
                    count: request.count,
                    target: to,
                    target_port: request.port,
                });
            }
        }
        for held in sockets {
            if !self.bound.contains(&held.bound) {
                self.bound.push(held.bound);
            }
            self.held.push(held);
        }
        Ok(())
    }
}

/// Where ports that nobody chose come from: the kernel's default `ip_local_port_range`.
const EPHEMERAL: (u16, u16) = (32_768, 60_999);

/// The first place among those asked for where all ports are free on all addresses.
fn take_first(request: &PortRequest, hosts: &[IpAddr]) -> Result<(u16, Vec<Held>)> {
    let more = request.count.saturating_sub(1);
    let (low, high) = request.host_ports.unwrap_or(EPHEMERAL);
    let Some(high) = high.checked_sub(more).filter(|high| *high >= low) else {
        return Err(Error::invalid(format!(
            "invalid range of ports on the host: {} ports do not fit into {low}-{high}",
            request.count
        )));
    };
    let mut conflict = None;
    let mut try_at = |first: u16| match take_all(request, hosts, first)? {
        Ok(held) => Ok(Some((first, held))),
        Err(at) => {
            conflict.get_or_insert(at);
            Ok::<_, Error>(None)
        }
    };
    if request.host_ports.is_some() {
        for first in low..=high {
            if let Some(taken) = try_at(first)? {
                return Ok(taken);
            }
        }
    } else {
        for _ in 0..64 {
            let mut bytes = [0; 2];
            rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty())
                .map_err(Error::of("getrandom", "choose a port"))?;
            let first = low + u16::from_ne_bytes(bytes) % (high - low + 1);
            if let Some(taken) = try_at(first)? {
                return Ok(taken);
            }
        }
    }
    let (address, port) = conflict.unwrap_or((Ipv4Addr::UNSPECIFIED.into(), low));
    Err(Error::PortInUse {
        address,
        port,
        protocol: request.protocol.name(),
        holder: holder(request.protocol, port).unwrap_or_else(|| "another process".to_owned()),
    })
}

/// All ports from `first` on, on all addresses; or where one is taken.
fn take_all(
    request: &PortRequest,
    hosts: &[IpAddr],
    first: u16,
) -> Result<std::result::Result<Vec<Held>, (IpAddr, u16)>> {
    let mut all = Vec::new();
    for host in hosts {
        for by in 0..request.count {
            let host_port = first.saturating_add(by);
            let bound = Bound {
                port: request.port.saturating_add(by),
                protocol: request.protocol,
                host: *host,
                host_port,
            };
            match hold(bound.protocol, SocketAddr::new(*host, host_port)) {
                Ok(socket) => all.push(Held { socket, bound }),
                Err(Errno::ADDRINUSE) => return Ok(Err((*host, host_port))),
                // This machine has no IPv6, and nobody asked for it by name.
                Err(Errno::AFNOSUPPORT | Errno::ADDRNOTAVAIL)
                    if request.host.is_none() && host.is_ipv6() => {}
                Err(errno) => {
                    let what = format!(
                        "publish port {}/{}",
                        SocketAddr::new(*host, host_port),
                        request.protocol
                    );
                    return Err(Error::of("bind", what)(errno));
                }
            }
        }
    }
    Ok(Ok(all))
}

/// A socket that keeps a port. One of TCP listens: two that only bind may share a port, and those
/// who come by `::1` are served.
fn hold(protocol: Protocol, address: SocketAddr) -> rustix::io::Result<OwnedFd> {
    let family = match address {
        SocketAddr::V4(_) => AddressFamily::INET,
        SocketAddr::V6(_) => AddressFamily::INET6,
    };
    let (kind, number) = match protocol {
        Protocol::Tcp => (SocketType::STREAM, ipproto::TCP),
        Protocol::Udp => (SocketType::DGRAM, ipproto::UDP),
        Protocol::Sctp => (SocketType::STREAM, ipproto::SCTP),
    };
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = match rustix::net::socket_with(family, kind, flags, Some(number)) {
        // The kernel translates SCTP also where it has no sockets for it; TCP's of that number
        // would keep nothing, but a descriptor is needed.
        Err(Errno::PROTONOSUPPORT) if protocol == Protocol::Sctp => {
            return rustix::net::socket_with(family, SocketType::DGRAM, flags, None);
        }
        socket => socket?,
    };
    if family == AddressFamily::INET6 {
        sockopt::set_ipv6_v6only(&socket, true)?;
    }
    if protocol == Protocol::Udp {
        // What arrives here was not translated, and nobody reads it.
        sockopt::set_socket_recv_buffer_size(&socket, 0)?;
    } else {
        // Connections that are over do not keep the port; another listener does.
        sockopt::set_socket_reuseaddr(&socket, true)?;
    }
    rustix::net::bind(&socket, &address)?;
    if protocol != Protocol::Udp {
        rustix::net::listen(&socket, 128)?;
    }
    Ok(socket)
}

/// Keeps a port again whose holder died; `None` where somebody else was faster.
pub(crate) fn hold_again(bound: Bound) -> Option<Held> {
    let socket = hold(bound.protocol, SocketAddr::new(bound.host, bound.host_port)).ok()?;
    Some(Held { socket, bound })
}

/// Who has a port of this host, in words: a process by name, or a container of a Knarr.
pub fn holder(protocol: Protocol, port: u16) -> Option<String> {
    let inode = socket_inode(protocol, port)?;
    let wanted = format!("socket:[{inode}]");
    for process in knarr_fs::file_names(Path::new("/proc")).ok()? {
        let Some(pid) = process.to_str().and_then(|name| name.parse::<u32>().ok()) else {
            continue;
        };
        let folder = format!("/proc/{pid}/fd");
        // Of another user's, or gone.
        let Ok(links) = knarr_fs::link_names(Path::new(&folder)) else {
            continue;
        };
        if links
            .iter()
            .any(|(_, target)| target.as_os_str() == wanted.as_str())
        {
            return Some(describe(pid));
        }
    }
    None
}

fn socket_inode(protocol: Protocol, port: u16) -> Option<String> {
    let name = match protocol {
        Protocol::Tcp => "tcp",
        Protocol::Udp => "udp",
        Protocol::Sctp => return None,
    };
    for file in [
        format!("/proc/thread-self/net/{name}"),
        format!("/proc/thread-self/net/{name}6"),
    ] {
        let text = knarr_fs::read_to_string(Path::new(&file)).unwrap_or_default();
        let mut inodes = text.lines().skip(1).filter_map(|line| {
            // sl local_address rem_address st tx:rx tr:when retrnsmt uid timeout inode
            let fields: Vec<_> = line.split_whitespace().collect();
            let (_, local) = fields.get(1)?.rsplit_once(':')?;
            let listens = protocol == Protocol::Udp || *fields.get(3)? == "0A";
            (listens && u16::from_str_radix(local, 16) == Ok(port)).then_some(*fields.get(9)?)
        });
        if let Some(inode) = inodes.next() {
            return Some(inode.to_owned());
        }
    }
    None
}

/// `nginx (pid 812)`, `container 0123456789ab`.
fn describe(pid: u32) -> String {
    let file =
        |name: &str| knarr_fs::read(Path::new(&format!("/proc/{pid}/{name}"))).unwrap_or_default();
    let arguments = file("cmdline");
    let mut words = arguments
        .split(|byte| *byte == 0)
        .map(String::from_utf8_lossy);
    let is_monitor = words
        .next()
        .is_some_and(|program| program.ends_with("knarr-monitor"));
    if is_monitor && let Some(id) = words.nth(1) {
        return format!("container {}", id.get(..12).unwrap_or(&id));
    }
    let name = String::from_utf8_lossy(&file("comm")).trim().to_owned();
    format!("{name} (pid {pid})")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(count: u16, host: Option<&str>, host_ports: Option<(u16, u16)>) -> PortRequest {
        PortRequest {
            protocol: Protocol::Tcp,
            port: 80,
            count,
            host: host.map(|host| host.parse().unwrap()),
            host_ports,
        }
    }

    #[test]
    fn ports_are_held_and_who_has_one_is_named() {
        if !crate::testing::private("ports_are_held_and_who_has_one_is_named") {
            return;
        }
        let target = Target {
            ipv4: Some(Ipv4Addr::new(10, 0, 0, 2)),
            ipv6: None,
        };
        let first = take(&[request(1, None, Some((8080, 8080)))], target).unwrap();
        assert_eq!(first.held.len(), 2);
        assert_eq!(first.published.len(), 1);
        for taken in ["0.0.0.0", "127.0.0.1", "::", "::1"] {
            let again = take(&[request(1, Some(taken), Some((8080, 8080)))], target).unwrap_err();
            let Error::PortInUse {
                holder, port: 8080, ..
            } = again
            else {
                panic!("{again}");
            };
            assert!(
                holder.contains(&format!("(pid {})", std::process::id())),
                "{holder}"
            );
        }
        let choice = take(&[request(1, None, Some((8080, 8082)))], target).unwrap();
        assert_eq!(choice.bound[0].host_port, 8081);
        let range = take(&[request(20, None, Some((9000, 9019)))], target).unwrap();
        assert_eq!((range.held.len(), range.published.len()), (40, 1));
        let any = take(&[request(3, None, None)], target).unwrap();
        assert!(any.bound[0].host_port >= 32_768);
        drop(first);
        take(&[request(1, None, Some((8080, 8080)))], target).unwrap();
        let many = take(&[request(3, None, Some((5, 6)))], target).unwrap_err();
        assert_eq!(
            many.to_string(),
            "invalid range of ports on the host: 3 ports do not fit into 5-6"
        );
    }
}
