//! Links, addresses and routes: the messages of route netlink (rtnetlink(7)) that Knarr needs.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::{AsRawFd as _, BorrowedFd, RawFd};
use std::str::FromStr;

use rustix::io::Errno;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::netlink::{self, ACK, Batch, CREATE, DUMP, EXCL, REPLACE, Socket, attributes, number};
use crate::{Error, Result, Subnet};

const RTM_NEWLINK: u16 = 16;
const RTM_DELLINK: u16 = 17;
const RTM_GETLINK: u16 = 18;
const RTM_NEWADDR: u16 = 20;
const RTM_GETADDR: u16 = 22;
const RTM_NEWROUTE: u16 = 24;
const RTM_GETROUTE: u16 = 26;

const AF_UNSPEC: u8 = 0;
const AF_INET: u8 = 2;
const AF_INET6: u8 = 10;

const IFF_UP: u32 = 1;
const IFLA_ADDRESS: u16 = 1;
const IFLA_IFNAME: u16 = 3;
const IFLA_MTU: u16 = 4;
const IFLA_LINK: u16 = 5;
const IFLA_MASTER: u16 = 10;
const IFLA_LINKINFO: u16 = 18;
const IFLA_IFALIAS: u16 = 20;
const IFLA_NET_NS_FD: u16 = 28;
const INFO_KIND: u16 = 1;
const INFO_DATA: u16 = 2;
const INFO_SLAVE_KIND: u16 = 4;
const INFO_SLAVE_DATA: u16 = 5;
const VETH_INFO_PEER: u16 = 1;
const IFLA_BRPORT_MODE: u16 = 4;
const IFLA_BRPORT_ISOLATED: u16 = 33;
const IFLA_MACVLAN_MODE: u16 = 1;
const IFLA_IPVLAN_MODE: u16 = 1;
const IFLA_VLAN_ID: u16 = 1;

const IFA_ADDRESS: u16 = 1;
const IFA_LOCAL: u16 = 2;
const IFA_BROADCAST: u16 = 4;
/// No duplicate address detection: the address works at once, and Knarr's leases are exclusive.
const IFA_F_NODAD: u8 = 2;
const IFA_F_PERMANENT: u8 = 0x80;
const RT_SCOPE_UNIVERSE: u8 = 0;

const RTA_DST: u16 = 1;
const RTA_OIF: u16 = 4;
const RTA_GATEWAY: u16 = 5;
const RTA_TABLE: u16 = 15;
const RT_TABLE_MAIN: u8 = 254;
const RTPROT_STATIC: u8 = 4;
const RTN_UNICAST: u8 = 1;

/// An Ethernet address.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Mac(pub [u8; 6]);

impl Mac {
    /// The one that goes with an IPv4 address, as Docker's did: `02:42` and the address. The same
    /// address on the same network has the same one, so no neighbour remembers a wrong one.
    pub fn of(address: Ipv4Addr) -> Self {
        let [a, b, c, d] = address.octets();
        Self([0x02, 0x42, a, b, c, d])
    }

    /// The same of either family: the last four bytes count.
    pub(crate) fn of_any(address: IpAddr) -> Self {
        match address {
            IpAddr::V4(address) => Self::of(address),
            IpAddr::V6(address) => {
                let [.., a, b, c, d] = address.octets();
                Self([0x02, 0x42, a, b, c, d])
            }
        }
    }
}

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl fmt::Debug for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for Mac {
    type Err = Error;

    /// Six pairs of hexadecimal digits with `:` or `-` between. Group addresses are refused.
    fn from_str(text: &str) -> Result<Self> {
        let bad = || Error::invalid(format!("invalid MAC address: {text:?}"));
        let mut bytes = [0; 6];
        let mut parts = text.split([':', '-']);
        for byte in &mut bytes {
            let part = parts
                .next()
                .filter(|part| part.len() == 2)
                .ok_or_else(bad)?;
            *byte = u8::from_str_radix(part, 16).map_err(|_| bad())?;
        }
        if parts.next().is_some() || bytes[0] & 1 != 0 || bytes == [0; 6] {
            return Err(bad());
        }
        Ok(Self(bytes))
    }
}

impl Serialize for Mac {
    fn serialize<S: Serializer>(&self, serializer: S) -> std::result::Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Mac {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        String::deserialize(deserializer)?
            .parse()
            .map_err(serde::de::Error::custom)
    }
}

/// A link of some network namespace.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Link {
    pub(crate) index: u32,
    pub(crate) name: String,
    pub(crate) up: bool,
    /// Free text (`ip link set … alias`); Knarr's own say whose they are.
    pub(crate) alias: String,
    pub(crate) mtu: u32,
    /// Of an Ethernet link.
    pub(crate) mac: Option<Mac>,
}

fn link_header(index: u32, flags: u32) -> [u8; 16] {
    let mut header = [0; 16];
    header[4..8].copy_from_slice(&index.to_ne_bytes());
    header[8..12].copy_from_slice(&flags.to_ne_bytes());
    header[12..].copy_from_slice(&flags.to_ne_bytes());
    header
}

fn parse_link(payload: &[u8]) -> Link {
    let mut link = Link {
        index: number(payload, 4),
        up: number(payload, 8) & IFF_UP != 0,
        ..Link::default()
    };
    for (kind, value) in attributes(payload, 16) {
        match kind {
            IFLA_IFNAME => link.name = text(value),
            IFLA_IFALIAS => link.alias = text(value),
            IFLA_MTU => link.mtu = number(value, 0),
            IFLA_ADDRESS => link.mac = value.try_into().ok().map(Mac),
            _ => {}
        }
    }
    link
}

fn text(value: &[u8]) -> String {
    let end = value
        .iter()
        .position(|byte| *byte == 0)
        .unwrap_or(value.len());
    String::from_utf8_lossy(value.get(..end).unwrap_or_default()).into_owned()
}

impl Socket {
    /// The link of that name, in the socket's namespace.
    pub(crate) fn link(&self, name: &str) -> Result<Option<Link>> {
        let mut question = Batch::default();
        question.push("", RTM_GETLINK, 0, &link_header(0, 0), |all| {
            all.text(IFLA_IFNAME, name);
        });
        let mut found = None;
        match self.ask(&question, |payload| found = Some(parse_link(payload)))? {
            None | Some(Errno::NODEV) => Ok(found),
            Some(errno) => Err(Error::of("netlink", format!("look for interface {name}"))(
                errno,
            )),
        }
    }

    /// All links.
    pub(crate) fn links(&self) -> Result<Vec<Link>> {
        let mut question = Batch::default();
        question.push("", RTM_GETLINK, DUMP, &link_header(0, 0), |_| {});
        let mut found = Vec::new();
        refused(
            "list interfaces",
            self.ask(&question, |payload| {
                found.push(parse_link(payload));
            })?,
        )?;
        Ok(found)
    }

    /// All addresses: the link's index, the address and how long its network's prefix is.
    pub(crate) fn addresses(&self) -> Result<Vec<(u32, Subnet)>> {
        self.addresses_that(|_, _| true)
    }

    /// Those of global scope that do not run out.
    pub(crate) fn lasting_addresses(&self) -> Result<Vec<(u32, Subnet)>> {
        self.addresses_that(|flags, scope| {
            flags & IFA_F_PERMANENT != 0 && scope == RT_SCOPE_UNIVERSE
        })
    }

    fn addresses_that(&self, asked: impl Fn(u8, u8) -> bool) -> Result<Vec<(u32, Subnet)>> {
        let mut question = Batch::default();
        question.push(
            "",
            RTM_GETADDR,
            DUMP,
            &[AF_UNSPEC, 0, 0, 0, 0, 0, 0, 0],
            |_| {},
        );
        let mut found = Vec::new();
        refused(
            "list addresses",
            self.ask(&question, |payload| {
                let byte = |at: usize| payload.get(at).copied().unwrap_or_default();
                let prefix = byte(1);
                if !asked(byte(2), byte(3)) {
                    return;
                }
                let mut address = None;
                for (kind, value) in attributes(payload, 8) {
                    if kind == IFA_LOCAL || (kind == IFA_ADDRESS && address.is_none()) {
                        address = ip(value);
                    }
                }
                if let Some(address) = address {
                    found.push((number(payload, 4), Subnet::holding(address, prefix)));
                }
            })?,
        )?;
        Ok(found)
    }

    /// The unicast routes of all tables but `local`.
    pub(crate) fn routes(&self) -> Result<Vec<Route>> {
        let mut question = Batch::default();
        question.push("", RTM_GETROUTE, DUMP, &[0; 12], |_| {});
        let mut found = Vec::new();
        refused(
            "list routes",
            self.ask(&question, |payload| {
                let byte = |at: usize| payload.get(at).copied().unwrap_or_default();
                let mut route = Route {
                    to: None,
                    link: 0,
                    gateway: None,
                    ipv6: byte(0) == AF_INET6,
                };
                let mut table = u32::from(byte(4));
                for (kind, value) in attributes(payload, 12) {
                    match kind {
                        RTA_DST => route.to = ip(value).map(|address| Subnet::of(address, byte(1))),
                        RTA_OIF => route.link = number(value, 0),
                        RTA_GATEWAY => route.gateway = ip(value),
                        RTA_TABLE => table = number(value, 0),
                        _ => {}
                    }
                }
                // Table 255 is the kernel's own, of local addresses.
                if byte(7) == RTN_UNICAST && table != 255 {
                    found.push(route);
                }
            })?,
        )?;
        Ok(found)
    }
}

/// A route.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Route {
    /// `None` is the default route.
    pub(crate) to: Option<Subnet>,
    /// The index of the link that it leads over.
    pub(crate) link: u32,
    pub(crate) gateway: Option<IpAddr>,
    pub(crate) ipv6: bool,
}

fn refused(what: &str, errno: Option<Errno>) -> Result<()> {
    match errno {
        None => Ok(()),
        Some(errno) => Err(Error::of("netlink", what)(errno)),
    }
}

fn ip(value: &[u8]) -> Option<IpAddr> {
    match value.len() {
        4 => <[u8; 4]>::try_from(value)
            .ok()
            .map(|octets| Ipv4Addr::from(octets).into()),
        16 => <[u8; 16]>::try_from(value)
            .ok()
            .map(|octets| Ipv6Addr::from(octets).into()),
        _ => None,
    }
}

pub(crate) fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    }
}

fn family(address: IpAddr) -> u8 {
    if address.is_ipv4() { AF_INET } else { AF_INET6 }
}

/// A bridge, down, with an Ethernet address that does not change with its ports.
pub(crate) fn add_bridge(batch: &mut Batch, name: &str, mac: Mac, mtu: Option<u32>) {
    let what = format!("make the bridge {name}");
    batch.push(
        what,
        RTM_NEWLINK,
        ACK | CREATE | EXCL,
        &link_header(0, 0),
        |all| {
            all.text(IFLA_IFNAME, name);
            all.bytes(IFLA_ADDRESS, &mac.0);
            if let Some(mtu) = mtu {
                all.u32(IFLA_MTU, mtu);
            }
            all.nested(IFLA_LINKINFO, |all| all.text(INFO_KIND, "bridge"));
        },
    );
}

/// Sets a link up, and says whose it is.
pub(crate) fn set_up(batch: &mut Batch, name: &str, alias: Option<&str>) {
    let what = format!("set {name} up");
    batch.push(what, RTM_NEWLINK, ACK, &link_header(0, IFF_UP), |all| {
        all.text(IFLA_IFNAME, name);
        if let Some(alias) = alias {
            all.text(IFLA_IFALIAS, alias);
        }
    });
}

/// Moves a link to the namespace behind a descriptor, where it gets a new name and is down.
pub(crate) fn move_link(batch: &mut Batch, link: &Link, namespace: RawFd, new_name: &str) {
    let what = format!("move the network device {} as {new_name}", link.name);
    let header = link_header(link.index, 0);
    batch.push(what, RTM_NEWLINK, ACK, &header, |all| {
        all.u32(IFLA_NET_NS_FD, namespace.unsigned_abs());
        all.text(IFLA_IFNAME, new_name);
    });
}

/// Removes a link. One that is gone is fine.
pub(crate) fn delete(batch: &mut Batch, name: &str) {
    let what = format!("remove the interface {name}");
    batch.push(what, RTM_DELLINK, ACK, &link_header(0, 0), |all| {
        all.text(IFLA_IFNAME, name);
    });
    batch.fine(Errno::NODEV);
}

/// One end of a pair of links.
#[derive(Debug)]
pub(crate) struct Inner<'a> {
    /// The namespace that it is born in.
    pub(crate) namespace: BorrowedFd<'a>,
    pub(crate) name: &'a str,
    pub(crate) mac: Mac,
    pub(crate) mtu: Option<u32>,
}

impl Inner<'_> {
    fn fill(&self, all: &mut netlink::Attributes<'_>) {
        all.text(IFLA_IFNAME, self.name);
        all.bytes(IFLA_ADDRESS, &self.mac.0);
        all.u32(IFLA_NET_NS_FD, self.namespace.as_raw_fd().unsigned_abs());
        if let Some(mtu) = self.mtu {
            all.u32(IFLA_MTU, mtu);
        }
    }
}

/// A pair of links: `name` here, up, as a port of the bridge with the index `bridge`, and `inner`,
/// which is born in the container and still down (veth refuses to set up what has no peer yet):
/// nothing of the pair is left when the container is not.
pub(crate) fn add_veth(batch: &mut Batch, name: &str, bridge: u32, inner: &Inner<'_>) {
    let what = format!(
        "make the interface {} with {name} at its other end",
        inner.name
    );
    let flags = ACK | CREATE | EXCL;
    batch.push(what, RTM_NEWLINK, flags, &link_header(0, IFF_UP), |all| {
        all.text(IFLA_IFNAME, name);
        if let Some(mtu) = inner.mtu {
            all.u32(IFLA_MTU, mtu);
        }
        all.u32(IFLA_MASTER, bridge);
        all.nested(IFLA_LINKINFO, |all| {
            all.text(INFO_KIND, "veth");
            all.nested(INFO_DATA, |all| {
                all.nested_behind(VETH_INFO_PEER, &link_header(0, 0), |all| inner.fill(all));
            });
        });
    });
}

/// A bridge's port that exchanges frames with the bridge only, not with other isolated ports.
pub(crate) fn isolate(batch: &mut Batch, name: &str) {
    set_port(
        batch,
        format!("isolate the bridge port {name}"),
        name,
        IFLA_BRPORT_ISOLATED,
    );
}

/// A bridge's port that gives back frames to where they came from. Where the kernel runs bridged
/// packets through the firewall (br_netfilter), a container's packets to its own published port are
/// translated on the bridge and need this.
pub(crate) fn reflect(batch: &mut Batch, name: &str) {
    let what = format!("let the bridge port {name} reflect");
    set_port(batch, what, name, IFLA_BRPORT_MODE);
}

fn set_port(batch: &mut Batch, what: String, name: &str, flag: u16) {
    batch.push(what, RTM_NEWLINK, ACK, &link_header(0, 0), |all| {
        all.text(IFLA_IFNAME, name);
        all.nested(IFLA_LINKINFO, |all| {
            all.text(INFO_SLAVE_KIND, "bridge");
            all.nested(INFO_SLAVE_DATA, |all| all.u8(flag, 1));
        });
    });
}

/// A link on top of another one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Above {
    /// With an Ethernet address of its own; the number is `MACVLAN_MODE_*`.
    Macvlan(u32),
    /// With the lower link's Ethernet address; the number is `IPVLAN_MODE_*`.
    Ipvlan(u16),
}

/// A link above `parent` (an index), born down in the container: it cannot be set up before it is
/// there.
pub(crate) fn add_above(batch: &mut Batch, parent: u32, above: Above, inner: &Inner<'_>) {
    let what = format!("make the interface {}", inner.name);
    let flags = ACK | CREATE | EXCL;
    batch.push(what, RTM_NEWLINK, flags, &link_header(0, 0), |all| {
        match above {
            Above::Macvlan(_) => inner.fill(all),
            Above::Ipvlan(_) => {
                all.text(IFLA_IFNAME, inner.name);
                all.u32(IFLA_NET_NS_FD, inner.namespace.as_raw_fd().unsigned_abs());
            }
        }
        all.u32(IFLA_LINK, parent);
        all.nested(IFLA_LINKINFO, |all| match above {
            Above::Macvlan(mode) => {
                all.text(INFO_KIND, "macvlan");
                all.nested(INFO_DATA, |all| all.u32(IFLA_MACVLAN_MODE, mode));
            }
            Above::Ipvlan(mode) => {
                all.text(INFO_KIND, "ipvlan");
                all.nested(INFO_DATA, |all| all.u16(IFLA_IPVLAN_MODE, mode));
            }
        });
    });
}

/// An 802.1Q link above `parent`, up. One that is there is fine.
pub(crate) fn add_vlan(batch: &mut Batch, name: &str, parent: u32, id: u16) {
    let what = format!("make the VLAN interface {name}");
    let flags = ACK | CREATE | EXCL;
    batch.push(what, RTM_NEWLINK, flags, &link_header(0, IFF_UP), |all| {
        all.text(IFLA_IFNAME, name);
        all.u32(IFLA_LINK, parent);
        all.nested(IFLA_LINKINFO, |all| {
            all.text(INFO_KIND, "vlan");
            all.nested(INFO_DATA, |all| all.u16(IFLA_VLAN_ID, id));
        });
    });
    batch.fine(Errno::EXIST);
}

/// An address of a link, with its network. One that is there is fine.
pub(crate) fn add_address(batch: &mut Batch, link: u32, address: IpAddr, prefix: u8) {
    let what = format!("set the address {address}/{prefix}");
    let flags = if address.is_ipv6() { IFA_F_NODAD } else { 0 };
    let mut header = vec![family(address), prefix, flags, 0];
    header.extend(link.to_ne_bytes());
    batch.push(what, RTM_NEWADDR, ACK | CREATE | EXCL, &header, |all| {
        all.bytes(IFA_LOCAL, &octets(address));
        all.bytes(IFA_ADDRESS, &octets(address));
        if let IpAddr::V4(address) = address
            && prefix < 31
        {
            let hosts = u32::MAX.checked_shr(prefix.into()).unwrap_or(0);
            let broadcast = u32::from(address) | hosts;
            all.bytes(IFA_BROADCAST, &broadcast.to_be_bytes());
        }
    });
    batch.fine(Errno::EXIST);
}

/// The default route via a gateway, instead of another one.
pub(crate) fn set_default_route(batch: &mut Batch, link: u32, gateway: IpAddr) {
    let what = format!("set the default route via {gateway}");
    let header = [
        family(gateway),
        0,
        0,
        0,
        RT_TABLE_MAIN,
        RTPROT_STATIC,
        0,
        RTN_UNICAST,
        0,
        0,
        0,
        0,
    ];
    batch.push(what, RTM_NEWROUTE, ACK | CREATE | REPLACE, &header, |all| {
        all.u32(RTA_OIF, link);
        all.bytes(RTA_GATEWAY, &octets(gateway));
    });
}

/// Brings up `lo` in the caller's network namespace.
///
/// # Errors
/// Without CAP_NET_ADMIN there.
pub fn loopback_up() -> Result<()> {
    let mut batch = Batch::default();
    set_up(&mut batch, "lo", None);
    Socket::route()?.apply(&batch)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsFd as _;

    #[test]
    fn mac_addresses_are_parsed_as_they_are_shown() {
        let mac: Mac = "02:42:AC-11-00-02".parse().unwrap();
        assert_eq!(mac.to_string(), "02:42:ac:11:00:02");
        assert_eq!(mac, Mac::of(Ipv4Addr::new(172, 17, 0, 2)));
        for bad in [
            "",
            "02:42",
            "02:42:ac:11:00:2",
            "01:00:5e:00:00:01",
            "00:00:00:00:00:00",
            "02:42:ac:11:00:02:03",
            "02:42:ac:11:00:zz",
        ] {
            assert!(bad.parse::<Mac>().is_err(), "{bad}");
        }
    }

    /// In a network namespace of this test's thread alone.
    #[test]
    fn the_kernel_understands_every_message() {
        if !crate::testing::private("the_kernel_understands_every_message") {
            return;
        }
        let socket = Socket::route().unwrap();
        let inner = crate::testing::namespace();
        let mut batch = Batch::default();
        let mac = Mac([2, 0, 0, 0, 0, 1]);
        add_bridge(&mut batch, "knarr9", mac, Some(1400));
        socket.apply(&batch).unwrap();
        let bridge = socket.link("knarr9").unwrap().unwrap();
        assert_eq!((bridge.up, bridge.mtu), (false, 1400));
        let mut batch = Batch::default();
        let address = "10.9.0.1".parse().unwrap();
        add_address(&mut batch, bridge.index, address, 24);
        add_address(&mut batch, bridge.index, "fd09::1".parse().unwrap(), 64);
        set_up(&mut batch, "knarr9", Some("knarr:/x"));
        let end = Inner {
            namespace: inner.as_fd(),
            name: "eth0",
            mac: "02:42:0a:09:00:02".parse().unwrap(),
            mtu: Some(1400),
        };
        add_veth(&mut batch, "kv1", bridge.index, &end);
        isolate(&mut batch, "kv1");
        socket.apply(&batch).unwrap();
        assert_eq!(socket.link("knarr9").unwrap().unwrap().alias, "knarr:/x");
        assert!(
            socket
                .addresses()
                .unwrap()
                .contains(&(bridge.index, Subnet::holding(address, 24)))
        );
        let net = Subnet::of(address, 24);
        assert!(
            socket
                .routes()
                .unwrap()
                .iter()
                .any(|route| route.to == Some(net))
        );
        netlink::within(inner.as_fd(), || {
            let socket = Socket::route()?;
            let eth0 = socket.link("eth0")?.unwrap();
            let mut batch = Batch::default();
            set_up(&mut batch, "eth0", None);
            add_address(&mut batch, eth0.index, "10.9.0.2".parse().unwrap(), 24);
            add_address(&mut batch, eth0.index, "fd09::2".parse().unwrap(), 64);
            set_default_route(&mut batch, eth0.index, address);
            set_default_route(&mut batch, eth0.index, "fd09::1".parse().unwrap());
            socket.apply(&batch)?;
            let gateways: Vec<_> = socket
                .routes()?
                .into_iter()
                .filter_map(|r| r.gateway)
                .collect();
            assert_eq!(gateways.len(), 2, "{gateways:?}");
            Ok(())
        })
        .unwrap();
        let taken = {
            let mut batch = Batch::default();
            add_bridge(&mut batch, "knarr9", mac, None);
            socket.apply(&batch).unwrap_err()
        };
        assert_eq!(taken.to_string(), "cannot make the bridge knarr9");
        assert_eq!(taken.errno(), Some(Errno::EXIST));
        let mut batch = Batch::default();
        delete(&mut batch, "kv1");
        delete(&mut batch, "kv1");
        socket.apply(&batch).unwrap();
        assert_eq!(socket.link("kv1").unwrap(), None);
    }
}
