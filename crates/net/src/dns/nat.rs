//! The way from port 53 of 127.0.0.11 to the sockets, which are elsewhere so that a container may
//! have port 53 for itself. The table is the container's; it dies with its namespace.

use std::os::fd::BorrowedFd;

use super::{ADDRESS, Sockets};
use crate::netlink::Socket;
use crate::nft::{Base, Expr, Family, Header, Hook, Meta, REG_1, REG_2, Transaction};
use crate::{Result, within};

const TABLE: &str = "knarr-names";
const CHAIN: &str = "output";
/// `NF_IP_PRI_NAT_DST`.
const PRIORITY: i32 = -100;
const PORT: u16 = 53;
const UDP: u8 = 17;
const TCP: u8 = 6;

/// Leads questions to `sockets`, in place of those that a monitor before had.
///
/// # Errors
/// As nf_tables.
pub(crate) fn redirect(namespace: BorrowedFd<'_>, sockets: &Sockets) -> Result<()> {
    let mut all = Transaction::new(Family::Ipv4, TABLE);
    all.renew_table();
    let base = Base {
        kind: "nat",
        hook: Hook::Output,
        priority: PRIORITY,
    };
    all.add_chain(CHAIN, Some(base));
    for (protocol, port) in [(UDP, sockets.udp_port), (TCP, sockets.tcp_port)] {
        all.add_rule(CHAIN, &rule(protocol, port));
    }
    within(namespace, || all.commit(&Socket::netfilter()?))
}

fn rule(protocol: u8, port: u16) -> [Expr<'static>; 9] {
    let bytes = |header, offset, length| Expr::Payload {
        header,
        offset,
        length,
        to: REG_1,
    };
    let address = ADDRESS.octets().to_vec();
    [
        bytes(Header::Network, 16, 4),
        Expr::Equal(REG_1, address.clone()),
        Expr::Meta(Meta::Transport, REG_1),
        Expr::Equal(REG_1, vec![protocol]),
        bytes(Header::Transport, 2, 2),
        Expr::Equal(REG_1, PORT.to_be_bytes().to_vec()),
        Expr::Load(REG_1, address),
        Expr::Load(REG_2, port.to_be_bytes().to_vec()),
        Expr::Dnat {
            family: Family::Ipv4,
            address: REG_1,
            port: Some(REG_2),
        },
    ]
}
