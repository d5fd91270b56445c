//! Connections that the kernel still remembers (`linux/netfilter/nfnetlink_conntrack.h`).
//!
//! A flow of UDP that began before its port was published is not translated, and one that began
//! before its container ended is translated to an address that nobody has: both as long as packets
//! keep coming.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::Result;
use crate::firewall::Published;
use crate::netlink::{ACK, Batch, DUMP, Socket, attributes};
use crate::port::Protocol;

const GET: u16 = 1 << 8 | 1;
const DELETE: u16 = 1 << 8 | 2;
const TUPLE_ORIGINAL: u16 = 1;
const TUPLE_IP: u16 = 1;
const TUPLE_PROTOCOL: u16 = 2;
const IPV4_DESTINATION: u16 = 2;
const IPV6_DESTINATION: u16 = 4;
const PROTOCOL_NUMBER: u16 = 1;
const DESTINATION_PORT: u16 = 3;

/// Forgets the flows of UDP to these ports. Best effort: without conntrack's own netlink there is
/// nothing to be done, and the flows end by themselves once no packet came for a while.
pub(crate) fn forget(published: &[Published]) {
    let udp: Vec<_> = published
        .iter()
        .filter(|one| one.protocol == Protocol::Udp)
        .collect();
    for family in [2, 10] {
        let ours: Vec<_> = udp
            .iter()
            .copied()
            .filter(|one| one.host.is_ipv6() == (family == 10))
            .collect();
        if !ours.is_empty() {
            forget_family(family, &ours).ok();
        }
    }
}

fn forget_family(family: u8, published: &[&Published]) -> Result<()> {
    let socket = Socket::netfilter()?;
    let header = [family, 0, 0, 0];
    let mut question = Batch::default();
    question.push("", GET, DUMP, &header, |_| {});
    let mut tuples = Vec::new();
    socket.ask(&question, |flow| {
        let tuple = attributes(flow, 4).find(|(kind, _)| *kind == TUPLE_ORIGINAL);
        if let Some((_, tuple)) = tuple
            && parse(tuple).is_some_and(|to| published.iter().any(|one| is_to(one, to)))
        {
            tuples.push(tuple.to_vec());
        }
    })?;
    for some in tuples.chunks(64) {
        let mut batch = Batch::default();
        for tuple in some {
            batch.push("forget a connection", DELETE, ACK, &header, |all| {
                all.bytes(TUPLE_ORIGINAL | 0x8000, tuple);
            });
            batch.fine(rustix::io::Errno::NOENT);
        }
        socket.apply(&batch)?;
    }
    Ok(())
}

/// The protocol's number, the destination's address and port.
fn parse(tuple: &[u8]) -> Option<(u8, IpAddr, u16)> {
    let ip = attributes(find_in(tuple, TUPLE_IP)?, 0).find_map(|(kind, value)| match kind {
        IPV4_DESTINATION => Some(Ipv4Addr::from(<[u8; 4]>::try_from(value).ok()?).into()),
        IPV6_DESTINATION => Some(Ipv6Addr::from(<[u8; 16]>::try_from(value).ok()?).into()),
        _ => None,
    })?;
    let protocol = find_in(tuple, TUPLE_PROTOCOL)?;
    let number = *find_in(protocol, PROTOCOL_NUMBER)?.first()?;
    let port = <[u8; 2]>::try_from(find_in(protocol, DESTINATION_PORT)?).ok()?;
    Some((number, ip, u16::from_be_bytes(port)))
}

fn find_in(bytes: &[u8], wanted: u16) -> Option<&[u8]> {
    attributes(bytes, 0)
        .find(|(kind, _)| *kind == wanted)
        .map(|(_, value)| value)
}

fn is_to(published: &Published, (protocol, address, port): (u8, IpAddr, u16)) -> bool {
    let last = published
        .host_port
        .saturating_add(published.count.saturating_sub(1));
    protocol == published.protocol.number()
        && (published.host.is_unspecified() || published.host == address)
        && (published.host_port..=last).contains(&port)
}
