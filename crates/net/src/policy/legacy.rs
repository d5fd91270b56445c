//! The rules of `iptables-legacy`, as the kernel keeps them: entries one behind the other, jumps are
//! offsets (`linux/netfilter_ipv4/ip_tables.h`, `linux/netfilter_ipv6/ip6_tables.h`).

use std::os::fd::AsFd as _;

use rustix::net::{AddressFamily, SocketFlags, SocketType};

use super::{Packet, Place, System};
use crate::netlink::{number, short};
use crate::{Error, Result};

/// The hook's place among those of `struct ipt_getinfo`.
const FORWARD: usize = 2;
/// `sizeof(struct ipt_getinfo)`.
const INFO: usize = 84;
/// Where the entries begin in `struct ipt_get_entries`.
const FIRST: usize = 40;

/// Where things are in an entry.
struct Layout {
    address: usize,
    /// Of the interfaces' names, their masks behind them.
    names: usize,
    protocol: usize,
    flags: usize,
    inverted: usize,
    target: usize,
    matches: usize,
    /// The flag of a jump that does not come back.
    goto: u8,
}

const IPV4: Layout = Layout {
    address: 4,
    names: 16,
    protocol: 80,
    flags: 82,
    inverted: 83,
    target: 88,
    matches: 112,
    goto: 2,
};
const IPV6: Layout = Layout {
    address: 16,
    names: 64,
    protocol: 128,
    flags: 131,
    inverted: 132,
    target: 140,
    matches: 168,
    goto: 4,
};

/// The table `filter` of one family.
#[derive(Debug)]
pub(super) struct Table {
    ipv6: bool,
    entries: Vec<u8>,
    /// Where the chain FORWARD begins, and where its policy is.
    forward: (usize, usize),
    pub(super) system: System,
}

impl Table {
    /// `None` where there is none.
    pub(super) fn load(ipv6: bool) -> Result<Option<Self>> {
        let names = if ipv6 {
            "/proc/thread-self/net/ip6_tables_names"
        } else {
            "/proc/thread-self/net/ip_tables_names"
        };
        // Asking for a table that is not there makes it.
        let there = knarr_fs::read_to_string(std::path::Path::new(names)).unwrap_or_default();
        if !there.lines().any(|name| name == "filter") {
            return Ok(None);
        }
        let failed = |cause| Error::Kernel {
            what: "read the rules of iptables-legacy".to_owned(),
            cause,
        };
        let family = if ipv6 {
            AddressFamily::INET6
        } else {
            AddressFamily::INET
        };
        let socket = rustix::net::socket_with(
            family,
            SocketType::RAW,
            SocketFlags::CLOEXEC,
            Some(rustix::net::ipproto::RAW),
        )
        .map_err(Error::of("socket", "read the rules of iptables-legacy"))?;
        // Once more, if somebody changes it meanwhile.
        for last in [false, false, true] {
            let mut info = vec![0; INFO];
            put(&mut info, 0, b"filter");
            knarr_sys::xtables::info(socket.as_fd(), ipv6, &mut info).map_err(failed)?;
            let at = |field: usize| number(&info, field) as usize;
            let (hooks, underflows) = (36, 56);
            let forward = (at(hooks + 4 * FORWARD), at(underflows + 4 * FORWARD));
            let size = at(80);
            let mut all = vec![0; FIRST + size];
            put(&mut all, 0, b"filter");
            let length = u32::try_from(size).unwrap_or(0);
            put(&mut all, 32, &length.to_ne_bytes());
            match knarr_sys::xtables::entries(socket.as_fd(), ipv6, &mut all) {
                Err(error) if error.errno == rustix::io::Errno::AGAIN && !last => {}
                done => {
                    done.map_err(failed)?;
                    let mut table = Self {
                        ipv6,
                        entries: all.split_off(FIRST),
                        forward,
                        system: System::Iptables,
                    };
                    table.system = table.keeper();
                    return Ok(Some(table));
                }
            }
        }
        Ok(None)
    }

    pub(super) fn is_ipv6(&self) -> bool {
        self.ipv6
    }

    fn layout(&self) -> &'static Layout {
        if self.ipv6 { &IPV6 } else { &IPV4 }
    }

    /// Whose chains there are: each begins behind an entry that has its name.
    fn keeper(&self) -> System {
        let has = |prefix: &[u8]| {
            self.entries
                .windows(prefix.len())
                .any(|window| window == prefix)
        };
        if has(b"ufw-user-forward\0") || has(b"ufw6-user-forward\0") {
            System::Ufw
        } else if has(b"DOCKER-USER\0") {
            System::Docker
        } else {
            System::Iptables
        }
    }

    /// Where the packet is dropped.
    pub(super) fn drops(&self, packet: &Packet) -> Option<Place> {
        let layout = self.layout();
        let (mut at, policy) = self.forward;
        let mut back = Vec::new();
        // A walk through rules without loops is shorter than this.
        for _ in 0..self.entries.len() {
            let entry = self.entries.get(at..)?;
            let target = usize::from(short(entry, layout.target));
            let next = at + usize::from(short(entry, layout.target + 2));
            if next == at {
                return None;
            }
            let verdict = match self.applies(entry, packet) {
                false => None,
                true => target_of(entry.get(target..)?),
            };
            at = match verdict {
                None => next,
                Some(Target::Drop) => {
                    return Some(Place {
                        family: if self.ipv6 {
                            "ip6tables-legacy"
                        } else {
                            "iptables-legacy"
                        }
                        .to_owned(),
                        table: "filter".to_owned(),
                        chain: "FORWARD".to_owned(),
                        rule: (at != policy).then_some(at as u64),
                    });
                }
                Some(Target::Accept) => return None,
                Some(Target::Return) => back.pop().unwrap_or(policy),
                Some(Target::Jump(to)) => {
                    if to != next && byte(entry, layout.flags) & layout.goto == 0 {
                        back.push(next);
                    }
                    to
                }
            };
        }
        None
    }

    fn applies(&self, entry: &[u8], packet: &Packet) -> bool {
        let layout = self.layout();
        let inverted = byte(entry, layout.inverted);
        let is = |bit: u8, matches: bool| matches != (inverted & bit != 0);
        let length = layout.address;
        let address = |index: usize, address: std::net::IpAddr| {
            let octets = crate::route::octets(address);
            (0..length).all(|at| {
                let mask = byte(entry, (2 + index) * length + at);
                let wanted = byte(entry, index * length + at);
                octets.get(at).copied().unwrap_or_default() & mask == wanted
            })
        };
        let name = |index: usize, name: &str| {
            let own = super::packet::padded(name);
            (0..16).all(|at| {
                let wanted = byte(entry, layout.names + 16 * index + at);
                let mask = byte(entry, layout.names + 16 * (2 + index) + at);
                (own.get(at).copied().flatten().unwrap_or_default() ^ wanted) & mask == 0
            })
        };
        let protocol = short(entry, layout.protocol);
        let own = u16::from(packet.protocol.number());
        let plain = is(0x01, name(0, &packet.input))
            && is(0x02, name(1, &packet.output))
            && is(0x08, address(0, packet.source))
            && is(0x10, address(1, packet.destination))
            && (protocol == 0 || is(0x40, protocol == own));
        let mut at = layout.matches;
        let end = usize::from(short(entry, layout.target));
        let mut all = plain;
        while all && at < end {
            let size = usize::from(short(entry, at));
            let Some(found) = entry.get(at..at + size).filter(|found| found.len() >= 32) else {
                return false;
            };
            let name = found.get(2..31).unwrap_or_default();
            let info = found.get(32..).unwrap_or_default();
            all = match_applies(text(name), info) == Some(true);
            at += size;
        }
        all
    }
}

enum Target {
    Accept,
    Drop,
    Return,
    Jump(usize),
}

fn target_of(target: &[u8]) -> Option<Target> {
    match text(target.get(2..31)?) {
        "" => match number(target, 32).cast_signed() {
            -1 => Some(Target::Drop),
            -2 => Some(Target::Accept),
            -5 => Some(Target::Return),
            offset => usize::try_from(offset).ok().map(Target::Jump),
        },
        "REJECT" => Some(Target::Drop),
        // A chain's end.
        "ERROR" => Some(Target::Return),
        _ => None,
    }
}

/// A match of iptables that nf_tables keeps as it is, too. `None` is one that cannot be judged.
pub(super) fn match_applies(name: &str, info: &[u8]) -> Option<bool> {
    match name {
        "comment" | "limit" | "hashlimit" => Some(true),
        // `struct xt_conntrack_mtinfo3`, with nothing but `--ctstate`: is it new?
        "conntrack" if short(info, 146) == 1 => {
            const NEW: u16 = 8;
            Some((short(info, 150) & NEW != 0) != (short(info, 148) & 1 != 0))
        }
        "state" => Some(number(info, 0) & 8 != 0),
        _ => None,
    }
}

fn text(bytes: &[u8]) -> &str {
    let end = bytes.iter().position(|byte| *byte == 0);
    std::str::from_utf8(bytes.get(..end.unwrap_or(bytes.len())).unwrap_or_default())
        .unwrap_or_default()
}

fn byte(bytes: &[u8], at: usize) -> u8 {
    bytes.get(at).copied().unwrap_or_default()
}

fn put(bytes: &mut [u8], at: usize, value: &[u8]) {
    if let Some(place) = bytes.get_mut(at..at + value.len()) {
        place.copy_from_slice(value);
    }
}
