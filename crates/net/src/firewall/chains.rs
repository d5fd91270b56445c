//! The table's chains: always the same, but for what depends on who turned forwarding on.

use std::net::Ipv6Addr;

use super::{
    BRIDGES, HOME4, HOME6, INTERNAL, MASQUERADED4, MASQUERADED6, PORTS4, PORTS6, RANGES4, RANGES6,
    SAME, interface,
};
use crate::nft::{
    Base, Conntrack, Expr, Family, Header, Hook, Meta, REG_1, REG_2, REG32_01, REG32_02, REG32_05,
    Set, Transaction, Verdict,
};
use crate::port::Protocol;
use crate::route::octets;

/// `RTN_LOCAL`, the type of this host's addresses (`linux/rtnetlink.h`).
const LOCAL: u32 = 2;
/// `IP_CT_ESTABLISHED` and `IP_CT_RELATED` as bits of `ct state`.
const ANSWERS: u32 = 2 | 4;
/// `IPS_DST_NAT`, a bit of `ct status`.
const TRANSLATED: u32 = 1 << 5;

pub(super) fn chains(to: &mut Transaction<'_>, no_router: bool) {
    use Expr::{
        And, Ct, DestinationType, Equal, Give, In, Masquerade, Meta as Load, NotIn, Unequal,
    };
    use Verdict::{Accept, Drop, Jump, Return};
    let base = |kind, hook, priority| {
        Some(Base {
            kind,
            hook,
            priority,
        })
    };
    to.add_chain("publish", None);
    to.add_chain("prerouting", base("nat", Hook::Prerouting, -100));
    to.add_chain("output", base("nat", Hook::Output, -100));
    to.add_chain("postrouting", base("nat", Hook::Postrouting, 100));
    to.add_chain("input", base("filter", Hook::Input, 0));
    to.add_chain("forward", base("filter", Hook::Forward, 0));

    // Of packets of one family: the address at that place.
    let address = |family: Family, offset, length| {
        [
            Load(Meta::Protocol, REG_1),
            Equal(REG_1, vec![family as u8]),
            Expr::Payload {
                header: Header::Network,
                offset,
                length,
                to: REG_1,
            },
        ]
    };
    for (ports, ranges, family, offset, length) in [
        (PORTS4, RANGES4, Family::Ipv4, 16, 4),
        (PORTS6, RANGES6, Family::Ipv6, 24, 16),
    ] {
        let (transport, port) = if length == 4 {
            (REG32_01, REG32_02)
        } else {
            (REG_2, REG32_05)
        };
        let protocol_and_port = [
            Load(Meta::Transport, transport),
            Expr::Payload {
                header: Header::Transport,
                offset: 2,
                length: 2,
                to: port,
            },
        ];
        let translate = |map: Set, with_port: bool| {
            [
                Expr::Map {
                    map: map.name,
                    from: REG_1,
                    to: REG_1,
                },
                Expr::Dnat {
                    family,
                    address: REG_1,
                    // Behind the address, where the second field of a key is, too.
                    port: with_port.then_some(transport),
                },
            ]
        };
        let key = [&address(family, offset, length)[..], &protocol_and_port[..]].concat();
        // One rule would do, but nft could not load what it prints of it.
        for protocol in [Protocol::Tcp, Protocol::Udp, Protocol::Sctp] {
            let only = [
                Load(Meta::Transport, REG_1),
                Equal(REG_1, vec![protocol.number()]),
            ];
            let rule = [&only[..], &key[..], &translate(ports, true)[..]].concat();
            to.add_rule("publish", &rule);
        }
        let rule = [&key[..], &translate(ranges, false)[..]].concat();
        to.add_rule("publish", &rule);
    }

    let loopback4 = |offset| {
        let [protocol, is_ipv4, first_byte] = address(Family::Ipv4, offset, 1);
        [protocol, is_ipv4, first_byte, Equal(REG_1, vec![127])]
    };
    let input = |set: &'static Set| [Load(Meta::InputName, REG_1), In(set.name, REG_1)];
    let output = |set: &'static Set| [Load(Meta::OutputName, REG_1), In(set.name, REG_1)];
    let same = || {
        [
            Load(Meta::InputName, REG_1),
            Load(Meta::OutputName, REG_2),
            In(SAME.name, REG_1),
        ]
    };
    let translated = || {
        [
            Ct(Conntrack::Status, REG_1),
            And(REG_1, TRANSLATED.to_ne_bytes().to_vec()),
            Unequal(REG_1, vec![0; 4]),
        ]
    };
    let local = |on_interface| DestinationType {
        on_interface,
        to: REG_1,
    };
    let is_local = || Equal(REG_1, LOCAL.to_ne_bytes().to_vec());

    // From outside, 127.0.0.1 is nobody.
    to.add_rule(
        "prerouting",
        &[&loopback4(16)[..], &[Give(Return)]].concat(),
    );
    // The kernel sends nothing elsewhere that comes from ::1: whoever holds the port serves it.
    let loopback6 = Equal(REG_1, octets(Ipv6Addr::LOCALHOST.into()));
    to.add_rule(
        "output",
        &[
            &address(Family::Ipv6, 24, 16)[..],
            &[loopback6, Give(Return)],
        ]
        .concat(),
    );
    for chain in ["prerouting", "output"] {
        to.add_rule(chain, &[local(false), is_local(), Give(Jump("publish"))]);
    }

    for (set, family, offset, length) in [
        (MASQUERADED4, Family::Ipv4, 12, 4),
        (MASQUERADED6, Family::Ipv6, 8, 16),
    ] {
        to.add_rule(
            "postrouting",
            &[
                &address(family, offset, length)[..],
                &[
                    In(set.name, REG_1),
                    Load(Meta::OutputName, REG_1),
                    NotIn(BRIDGES.name, REG_1),
                    Masquerade,
                ],
            ]
            .concat(),
        );
    }
    // A container that reaches one on its own network by the host's address: the answer must come
    // back this way. By its address, as bridged packets do not tell where they came in.
    for (set, family, offset, length) in
        [(HOME4, Family::Ipv4, 12, 4), (HOME6, Family::Ipv6, 8, 16)]
    {
        let from_home = [
            Load(Meta::Protocol, REG_1),
            Equal(REG_1, vec![family as u8]),
            Load(Meta::OutputName, REG_1),
            Expr::Payload {
                header: Header::Network,
                offset,
                length,
                to: REG_2,
            },
            In(set.name, REG_1),
        ];
        let rule = [&from_home[..], &translated()[..], &[Masquerade]].concat();
        to.add_rule("postrouting", &rule);
    }
    // The container could not answer to 127.0.0.1.
    to.add_rule(
        "postrouting",
        &[&output(&BRIDGES)[..], &loopback4(12)[..], &[Masquerade]].concat(),
    );

    // But for answers to who came from 127.0.0.1 by a published port.
    to.add_rule(
        "input",
        &[
            &input(&BRIDGES)[..],
            &loopback4(16)[..],
            &[
                Ct(Conntrack::State, REG_1),
                And(REG_1, ANSWERS.to_ne_bytes().to_vec()),
                Equal(REG_1, vec![0; 4]),
                Give(Drop),
            ],
        ]
        .concat(),
    );
    to.add_rule(
        "input",
        &[
            &input(&INTERNAL)[..],
            &[local(false), is_local(), local(true)],
            &[Unequal(REG_1, LOCAL.to_ne_bytes().to_vec()), Give(Drop)],
        ]
        .concat(),
    );

    to.add_rule(
        "forward",
        &[
            Ct(Conntrack::State, REG_1),
            And(REG_1, ANSWERS.to_ne_bytes().to_vec()),
            Unequal(REG_1, vec![0; 4]),
            Give(Accept),
        ],
    );
    to.add_rule("forward", &[&same()[..], &[Give(Accept)]].concat());
    to.add_rule("forward", &[&input(&INTERNAL)[..], &[Give(Drop)]].concat());
    to.add_rule("forward", &[&output(&INTERNAL)[..], &[Give(Drop)]].concat());
    to.add_rule(
        "forward",
        &[&output(&BRIDGES)[..], &translated()[..], &[Give(Accept)]].concat(),
    );
    to.add_rule("forward", &[&output(&BRIDGES)[..], &[Give(Drop)]].concat());
    to.add_rule("forward", &[&input(&BRIDGES)[..], &[Give(Accept)]].concat());
    if no_router {
        let bridge = || interface("bridge");
        to.add_rule(
            "forward",
            &[
                Load(Meta::InputKind, REG_1),
                Unequal(REG_1, bridge()),
                Load(Meta::OutputKind, REG_1),
                Unequal(REG_1, bridge()),
                Give(Drop),
            ],
        );
    }
}
