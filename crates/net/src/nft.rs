//! nf_tables over netlink: tables, chains, rules, sets and elements as one transaction
//! (`linux/netfilter/nf_tables.h`; `nft --debug=netlink` shows the same expressions).
//!
//! The kernel takes all of a [`Transaction`] or nothing.

use rustix::io::Errno;

use crate::netlink::{
    ACK, APPEND, Attributes, Batch, CREATE, Message, Socket, attributes, big_number,
};
use crate::{Error, Result};

const SUBSYSTEM: u16 = 10 << 8;
const BATCH_BEGIN: u16 = 0x10;
const BATCH_END: u16 = 0x11;
const NEWTABLE: u16 = SUBSYSTEM;
const GETTABLE: u16 = SUBSYSTEM | 1;
const DELTABLE: u16 = SUBSYSTEM | 2;
const NEWCHAIN: u16 = SUBSYSTEM | 3;
const NEWRULE: u16 = SUBSYSTEM | 6;
const NEWSET: u16 = SUBSYSTEM | 9;
const NEWSETELEM: u16 = SUBSYSTEM | 12;
const DELSETELEM: u16 = SUBSYSTEM | 14;
const NEWGEN: u16 = SUBSYSTEM | 15;
const GETGEN: u16 = SUBSYSTEM | 16;
/// As [`DELTABLE`], but that nothing is there is fine (Linux 6.3).
const DESTROYTABLE: u16 = SUBSYSTEM | 26;

/// `NFT_TABLE_F_OWNER`: only the socket that made it may change it.
const OWNER: u32 = 2;
/// `NFT_TABLE_F_PERSIST`: it outlives that socket (Linux 6.9).
const PERSIST: u32 = 4;

const LIST_ELEM: u16 = 1;
const DATA_VALUE: u16 = 1;
const DATA_VERDICT: u16 = 2;

/// The families that a table may be of (`NFPROTO_*`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Family {
    /// IPv4 and IPv6.
    Inet = 1,
    Ipv4 = 2,
    Ipv6 = 10,
}

/// Where a chain is called (`NF_INET_*`).
#[derive(Debug, Clone, Copy)]
#[repr(u32)]
pub(crate) enum Hook {
    Prerouting = 0,
    Input = 1,
    Forward = 2,
    Output = 3,
    Postrouting = 4,
}

/// A chain that the kernel calls.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Base {
    /// `filter` or `nat`.
    pub(crate) kind: &'static str,
    pub(crate) hook: Hook,
    pub(crate) priority: i32,
}

/// A register of 16 bytes is four of 4 bytes; both kinds of numbers are used.
pub(crate) const REG_1: u32 = 1;
pub(crate) const REG_2: u32 = 2;
/// The second quarter of [`REG_1`].
pub(crate) const REG32_01: u32 = 9;
pub(crate) const REG32_02: u32 = 10;
/// The second quarter of [`REG_2`].
pub(crate) const REG32_05: u32 = 13;

/// What is known about a packet (`NFT_META_*`).
#[derive(Debug, Clone, Copy)]
#[repr(u32)]
pub(crate) enum Meta {
    InputName = 6,
    OutputName = 7,
    Protocol = 15,
    Transport = 16,
    InputKind = 26,
    OutputKind = 27,
}

/// What conntrack knows (`NFT_CT_*`).
#[derive(Debug, Clone, Copy)]
#[repr(u32)]
pub(crate) enum Conntrack {
    State = 0,
    Status = 2,
}

/// Where a payload's offset is counted from (`NFT_PAYLOAD_*`).
#[derive(Debug, Clone, Copy)]
#[repr(u32)]
pub(crate) enum Header {
    Network = 1,
    Transport = 2,
}

/// What becomes of a packet.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Verdict {
    Accept,
    Drop,
    Return,
    Jump(&'static str),
}

/// One step of a rule: it goes on with the next one, or the rule does not apply.
#[derive(Debug, Clone)]
pub(crate) enum Expr<'a> {
    Meta(Meta, u32),
    Ct(Conntrack, u32),
    Payload {
        header: Header,
        offset: u32,
        length: u32,
        to: u32,
    },
    /// The type of the destination address, as seen from anywhere (`false`) or from the interface
    /// that the packet came in on (`true`).
    DestinationType {
        on_interface: bool,
        to: u32,
    },
    Equal(u32, Vec<u8>),
    Unequal(u32, Vec<u8>),
    And(u32, Vec<u8>),
    In(&'a str, u32),
    NotIn(&'a str, u32),
    Map {
        map: &'a str,
        from: u32,
        to: u32,
    },
    Dnat {
        family: Family,
        address: u32,
        port: Option<u32>,
    },
    /// Bytes that are known beforehand.
    Load(u32, Vec<u8>),
    Masquerade,
    Give(Verdict),
}

/// A set or map.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Set {
    pub(crate) name: &'static str,
    pub(crate) key: &'static [Type],
    /// Of a map.
    pub(crate) data: &'static [Type],
    /// Keys are ranges.
    pub(crate) interval: bool,
}

/// A field's type; nft's own numbers, by which it prints sets (`datatype.h`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Type {
    Ipv4,
    Ipv6,
    Transport,
    Port,
    InterfaceName,
}

impl Type {
    fn number(self) -> u32 {
        match self {
            Self::Ipv4 => 7,
            Self::Ipv6 => 8,
            Self::Transport => 12,
            Self::Port => 13,
            Self::InterfaceName => 41,
        }
    }

    fn length(self) -> u32 {
        match self {
            Self::Ipv4 => 4,
            Self::Ipv6 | Self::InterfaceName => 16,
            Self::Transport => 1,
            Self::Port => 2,
        }
    }

    fn all(types: &[Self]) -> u32 {
        types.iter().fold(0, |all, one| all << 6 | one.number())
    }

    /// Fields of a concatenation are padded to registers.
    fn total(types: &[Self]) -> u32 {
        match types {
            [one] => one.length(),
            many => many
                .iter()
                .map(|one| one.length().next_multiple_of(4))
                .sum(),
        }
    }
}

/// An element: one key, or the first and the last of a range.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Element {
    pub(crate) key: Vec<u8>,
    pub(crate) end: Option<Vec<u8>>,
    pub(crate) data: Option<Vec<u8>>,
    /// Of a set of ranges without concatenation: this key is the first one behind a range.
    pub(crate) is_end: bool,
}

impl Element {
    pub(crate) fn key(key: Vec<u8>) -> Self {
        Self {
            key,
            end: None,
            data: None,
            is_end: false,
        }
    }
}

/// Changes to one table.
#[derive(Debug)]
pub(crate) struct Transaction<'a> {
    batch: Batch,
    family: Family,
    table: &'a str,
}

impl<'a> Transaction<'a> {
    pub(crate) fn new(family: Family, table: &'a str) -> Self {
        let mut batch = Batch::default();
        batch.push(
            "begin a firewall transaction",
            BATCH_BEGIN,
            0,
            &[0, 0, 0, 10],
            |_| {},
        );
        Self {
            batch,
            family,
            table,
        }
    }

    fn push(
        &mut self,
        what: String,
        kind: u16,
        flags: u16,
        fill: impl FnOnce(&mut Attributes<'_>),
    ) {
        let table = self.table;
        let header = [self.family as u8, 0, 0, 0];
        self.batch.push(what, kind, flags | ACK, &header, |all| {
            all.text(1, table);
            fill(all);
        });
    }

    /// Makes the table, empty, whatever was there but another socket's. It belongs to the socket
    /// that the transaction is sent on, and outlives it.
    pub(crate) fn renew_owned_table(&mut self) {
        let make = format!("make the firewall table {}", self.table);
        let remove = format!("remove the firewall table {}", self.table);
        self.push(remove, DESTROYTABLE, 0, |_| {});
        self.push(make, NEWTABLE, CREATE, |all| all.be32(2, OWNER | PERSIST));
    }

    /// Makes the table belong to the socket that the transaction is sent on; it is an orphan.
    pub(crate) fn claim_table(&mut self) {
        let what = format!("claim the firewall table {}", self.table);
        self.push(what, NEWTABLE, 0, |all| all.be32(2, OWNER | PERSIST));
    }

    /// Makes the table, empty, whatever was there. It belongs to nobody.
    pub(crate) fn renew_table(&mut self) {
        let make = format!("make the firewall table {}", self.table);
        let remove = format!("remove the firewall table {}", self.table);
        // Removing one that is not there would fail.
        self.push(make.clone(), NEWTABLE, CREATE, |_| {});
        self.push(remove, DELTABLE, 0, |_| {});
        self.push(make, NEWTABLE, CREATE, |_| {});
    }

    pub(crate) fn add_chain(&mut self, name: &str, base: Option<Base>) {
        let what = format!("make the firewall chain {} {name}", self.table);
        self.push(what, NEWCHAIN, CREATE, |all| {
            all.text(3, name);
            if let Some(base) = base {
                all.nested(4, |all| {
                    all.be32(1, base.hook as u32);
                    all.be32(2, base.priority.cast_unsigned());
                });
                all.be32(5, 1);
                all.text(7, base.kind);
            }
        });
    }

    pub(crate) fn add_rule(&mut self, chain: &str, steps: &[Expr<'_>]) {
        let what = format!("make a firewall rule in {} {chain}", self.table);
        self.push(what, NEWRULE, CREATE | APPEND, |all| {
            all.text(2, chain);
            all.nested(4, |all| {
                for step in steps {
                    all.nested(LIST_ELEM, |all| step.fill(all));
                }
            });
        });
    }

    /// `id` tells sets of one transaction apart.
    pub(crate) fn add_set(&mut self, set: &Set, id: u32) {
        const INTERVAL: u32 = 4;
        const MAP: u32 = 8;
        const CONCATENATION: u32 = 0x80;
        let what = format!("make the firewall set {} {}", self.table, set.name);
        let mut flags = 0;
        let ranges_of_many = set.interval && set.key.len() > 1;
        for (bit, is) in [
            (INTERVAL, set.interval),
            (MAP, !set.data.is_empty()),
            (CONCATENATION, ranges_of_many),
        ] {
            flags |= if is { bit } else { 0 };
        }
        self.push(what, NEWSET, CREATE, |all| {
            all.text(2, set.name);
            all.be32(3, flags);
            all.be32(4, Type::all(set.key));
            all.be32(5, Type::total(set.key));
            if !set.data.is_empty() {
                all.be32(6, Type::all(set.data));
                all.be32(7, Type::total(set.data));
            }
            all.be32(10, id);
            if ranges_of_many {
                all.nested(9, |all| {
                    all.nested(2, |all| {
                        for field in set.key {
                            all.nested(LIST_ELEM, |all| all.be32(1, field.length()));
                        }
                    });
                });
            }
            if set.key == [Type::InterfaceName] {
                // For nft's eyes: the key is in the host's byte order.
                all.bytes(13, &[0, 4, 1, 0, 0, 0]);
            }
        });
    }

    pub(crate) fn add_elements(&mut self, set: &str, elements: &[Element]) {
        let what = format!("add to the firewall set {} {set}", self.table);
        self.elements(what, NEWSETELEM, CREATE, set, elements);
    }

    pub(crate) fn delete_elements(&mut self, set: &str, elements: &[Element]) {
        let what = format!("take from the firewall set {} {set}", self.table);
        self.elements(what, DELSETELEM, 0, set, elements);
    }

    fn elements(&mut self, what: String, kind: u16, flags: u16, set: &str, elements: &[Element]) {
        // An attribute's length has 16 bits.
        for some in elements.chunks(256) {
            self.push(what.clone(), kind, flags, |all| {
                all.text(2, set);
                all.nested(3, |all| {
                    for element in some {
                        all.nested(LIST_ELEM, |all| {
                            if element.is_end {
                                all.be32(3, 1);
                            }
                            value(all, 1, &element.key);
                            if let Some(end) = &element.end {
                                value(all, 10, end);
                            }
                            if let Some(data) = &element.data {
                                value(all, 2, data);
                            }
                        });
                    }
                });
            });
        }
    }

    /// Sends it.
    pub(crate) fn commit(mut self, socket: &Socket) -> Result<()> {
        self.batch.push(
            "end a firewall transaction",
            BATCH_END,
            0,
            &[0, 0, 0, 10],
            |_| {},
        );
        socket.apply(&self.batch)
    }
}

/// Whose a table is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ownership {
    /// There is no such table.
    Missing,
    /// Everybody may change it.
    Nobody,
    /// Everybody may change it: the socket that owned it was closed.
    Orphan,
    /// The socket with this port's.
    Owned(u32),
}

/// Whose the table of that name is, in the family inet.
pub(crate) fn ownership(table: &str) -> Result<Ownership> {
    let mut question = Batch::default();
    let what = format!("look at the firewall table {table}");
    let header = [Family::Inet as u8, 0, 0, 0];
    question.push(what.clone(), GETTABLE, 0, &header, |all| {
        all.text(1, table);
    });
    let (mut flags, mut owner) = (0, None);
    let refused = Socket::netfilter()?.ask(&question, |payload| {
        for (kind, value) in attributes(payload, 4) {
            match kind {
                2 => flags = big_number(value, 0),
                7 => owner = Some(big_number(value, 0)),
                _ => {}
            }
        }
    })?;
    match (refused, owner) {
        (Some(Errno::NOENT), _) => Ok(Ownership::Missing),
        (Some(errno), _) => Err(Error::of("netlink", what)(errno)),
        (None, Some(port)) if flags & OWNER != 0 => Ok(Ownership::Owned(port)),
        (None, _) if flags & PERSIST != 0 => Ok(Ownership::Orphan),
        (None, _) => Ok(Ownership::Nobody),
    }
}

/// How many transactions there have been in this network namespace, anybody's.
pub(crate) fn generation() -> Result<u32> {
    let mut question = Batch::default();
    let what = "ask for the firewall's generation";
    question.push(what, GETGEN, 0, &[0; 4], |_| {});
    let mut generation = 0;
    let refused = Socket::netfilter()?.ask(&question, |payload| {
        let mut all = attributes(payload, 4);
        generation = all
            .find(|(kind, _)| *kind == 1)
            .map_or(0, |(_, value)| big_number(value, 0));
    })?;
    match refused {
        Some(errno) => Err(Error::of("netlink", what)(errno)),
        None => Ok(generation),
    }
}

/// Whether this is how a kernel answers that knows no tables that have an owner and outlive it.
pub(crate) fn cannot_own(error: &Error) -> bool {
    matches!(error.errno(), Some(Errno::OPNOTSUPP | Errno::INVAL))
}

/// Whether the kernel tells of a change to the table of that name, in the family inet.
pub(crate) fn is_about(message: &Message<'_>, table: &[u8]) -> bool {
    let family = message.payload.first().copied();
    message.kind != NEWGEN
        && family == Some(Family::Inet as u8)
        && attributes(message.payload, 4)
            .any(|(kind, value)| kind == 1 && value.strip_suffix(&[0]) == Some(table))
}

fn value(all: &mut Attributes<'_>, kind: u16, bytes: &[u8]) {
    all.nested(kind, |all| all.bytes(DATA_VALUE, bytes));
}

impl Expr<'_> {
    fn fill(&self, all: &mut Attributes<'_>) {
        match self {
            Self::Meta(key, to) => named(all, "meta", |all| {
                all.be32(1, *to);
                all.be32(2, *key as u32);
            }),
            Self::Ct(key, to) => named(all, "ct", |all| {
                all.be32(1, *to);
                all.be32(2, *key as u32);
            }),
            Self::Payload {
                header,
                offset,
                length,
                to,
            } => named(all, "payload", |all| {
                all.be32(1, *to);
                all.be32(2, *header as u32);
                all.be32(3, *offset);
                all.be32(4, *length);
            }),
            Self::DestinationType { on_interface, to } => named(all, "fib", |all| {
                const ADDRESS_TYPE: u32 = 3;
                const DESTINATION: u32 = 2;
                const INPUT_INTERFACE: u32 = 8;
                all.be32(1, *to);
                all.be32(2, ADDRESS_TYPE);
                let interface = if *on_interface { INPUT_INTERFACE } else { 0 };
                all.be32(3, DESTINATION | interface);
            }),
            Self::Equal(register, bytes) => compare(all, *register, 0, bytes),
            Self::Unequal(register, bytes) => compare(all, *register, 1, bytes),
            Self::And(register, mask) => named(all, "bitwise", |all| {
                all.be32(1, *register);
                all.be32(2, *register);
                all.be32(3, u32::try_from(mask.len()).unwrap_or(4));
                value(all, 4, mask);
                value(all, 5, &vec![0; mask.len()]);
            }),
            Self::In(set, from) => lookup(all, set, *from, None, false),
            Self::NotIn(set, from) => lookup(all, set, *from, None, true),
            Self::Map { map, from, to } => lookup(all, map, *from, Some(*to), false),
            Self::Dnat {
                family,
                address,
                port,
            } => named(all, "nat", |all| {
                const DESTINATION: u32 = 1;
                all.be32(1, DESTINATION);
                all.be32(2, u32::from(*family as u8));
                all.be32(3, *address);
                if let Some(port) = port {
                    all.be32(5, *port);
                }
            }),
            Self::Load(to, bytes) => named(all, "immediate", |all| {
                all.be32(1, *to);
                value(all, 2, bytes);
            }),
            Self::Masquerade => named(all, "masq", |_| {}),
            Self::Give(verdict) => named(all, "immediate", |all| {
                all.be32(1, 0);
                all.nested(2, |all| all.nested(DATA_VERDICT, |all| verdict.fill(all)));
            }),
        }
    }
}

impl Verdict {
    fn fill(self, all: &mut Attributes<'_>) {
        let code: i32 = match self {
            Self::Drop => 0,
            Self::Accept => 1,
            Self::Jump(_) => -3,
            Self::Return => -5,
        };
        all.be32(1, code.cast_unsigned());
        if let Self::Jump(chain) = self {
            all.text(2, chain);
        }
    }
}

fn named(all: &mut Attributes<'_>, name: &str, fill: impl FnOnce(&mut Attributes<'_>)) {
    all.text(1, name);
    all.nested(2, fill);
}

fn compare(all: &mut Attributes<'_>, register: u32, operation: u32, bytes: &[u8]) {
    named(all, "cmp", |all| {
        all.be32(1, register);
        all.be32(2, operation);
        value(all, 3, bytes);
    });
}

fn lookup(all: &mut Attributes<'_>, set: &str, from: u32, to: Option<u32>, invert: bool) {
    named(all, "lookup", |all| {
        all.text(1, set);
        all.be32(2, from);
        if let Some(to) = to {
            all.be32(3, to);
        }
        if invert {
            all.be32(5, 1);
        }
    });
}
