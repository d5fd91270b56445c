//! What a network is: `networks/<name>.json`, in words that `network inspect` prints.

use std::collections::BTreeMap;
use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use crate::netlink::Socket;
use crate::{Error, Result, Subnet};

/// The version of [`Network`] that this Knarr writes.
pub const VERSION: u32 = 1;

/// The network that containers join where nobody says otherwise.
pub const DEFAULT: &str = "bridge";

/// Who makes the links.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DriverKind {
    /// A bridge of this host, behind its address.
    Bridge,
    /// Links beside the host's own, with their own Ethernet addresses.
    Macvlan,
    /// Links beside the host's own, with its Ethernet address.
    Ipvlan,
}

impl DriverKind {
    /// Docker's word for it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Bridge => "bridge",
            Self::Macvlan => "macvlan",
            Self::Ipvlan => "ipvlan",
        }
    }

    /// By its name.
    pub fn parse(name: &str) -> Option<Self> {
        [Self::Bridge, Self::Macvlan, Self::Ipvlan]
            .into_iter()
            .find(|kind| kind.name() == name)
    }
}

/// A network, for as long as it exists.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Network {
    /// Of this format: [`VERSION`].
    pub version: u32,
    /// 64 hexadecimal digits, random.
    pub id: String,
    /// Its name.
    pub name: String,
    /// RFC 3339 with nine digits.
    pub created: String,
    /// Who makes the links.
    pub driver: DriverKind,
    /// Nothing leaves it.
    #[serde(default)]
    pub internal: bool,
    /// Containers get IPv6 addresses, too.
    #[serde(default)]
    pub ipv6: bool,
    /// Where addresses come from: at most one pool of each family gives them.
    pub pools: Vec<Pool>,
    /// `--opt`.
    #[serde(default)]
    pub options: BTreeMap<String, String>,
    /// `--label`.
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
    /// The bridge, or the link that the containers' are above.
    pub interface: String,
}

/// Addresses of a network.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pool {
    /// All of them.
    pub subnet: Subnet,
    /// Those that containers get, where not all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub range: Option<Subnet>,
    /// The way out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gateway: Option<IpAddr>,
    /// Taken by others: name and address (`--aux-address`).
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub auxiliary: BTreeMap<String, IpAddr>,
}

/// What `--opt` may say, by Docker's names.
pub mod option {
    /// The bridge's name.
    pub const BRIDGE: &str = "com.docker.network.bridge.name";
    /// Whether containers reach each other (`false` isolates the ports).
    pub const ICC: &str = "com.docker.network.bridge.enable_icc";
    /// Whether packets leave with the host's address.
    pub const MASQUERADE: &str = "com.docker.network.bridge.enable_ip_masquerade";
    /// The address of ports that are published without one.
    pub const HOST_ADDRESS: &str = "com.docker.network.bridge.host_binding_ipv4";
    /// Bytes that a packet may have.
    pub const MTU: &str = "com.docker.network.driver.mtu";
    /// What the links in the container are called, before the number.
    pub const PREFIX: &str = "com.docker.network.container_iface_prefix";
    /// The lower link of macvlan and ipvlan.
    pub const PARENT: &str = "parent";
    /// How macvlan's links see each other.
    pub const MACVLAN_MODE: &str = "macvlan_mode";
    /// Which layer ipvlan works on.
    pub const IPVLAN_MODE: &str = "ipvlan_mode";
    /// What Docker says of its default bridge.
    pub const DEFAULT_BRIDGE: &str = "com.docker.network.bridge.default_bridge";
}

impl Network {
    /// The pool of a family.
    pub fn pool(&self, ipv6: bool) -> Option<&Pool> {
        self.pools.iter().find(|pool| pool.subnet.is_ipv6() == ipv6)
    }

    /// An option that is yes or no.
    pub fn flag(&self, option: &str, default: bool) -> bool {
        self.options
            .get(option)
            .and_then(|value| value.parse().ok())
            .unwrap_or(default)
    }

    /// Bytes that a packet may have, where that was said.
    pub fn mtu(&self) -> Option<u32> {
        self.options
            .get(option::MTU)
            .and_then(|value| value.parse().ok())
            .filter(|mtu| *mtu > 0)
    }

    /// What the links in the container are called, before the number.
    pub fn prefix(&self) -> &str {
        self.options
            .get(option::PREFIX)
            .map_or("eth", String::as_str)
    }

    /// Checks that the parts fit together, in Docker's words.
    ///
    /// # Errors
    /// [`Error::Invalid`], [`Error::Unsupported`] for an option that nothing here knows.
    pub fn check(&self) -> Result<()> {
        check_name(&self.name)?;
        for pool in &self.pools {
            pool.check()?;
        }
        for ipv6 in [false, true] {
            let all: Vec<_> = self
                .pools
                .iter()
                .filter(|p| p.subnet.is_ipv6() == ipv6)
                .collect();
            if all.len() > 1 {
                return Err(Error::invalid(format!(
                    "network {} has two subnets of one family: {} and {}",
                    self.name, all[0].subnet, all[1].subnet
                )));
            }
        }
        if self.ipv6 != self.pool(true).is_some() {
            return Err(Error::invalid_hint(
                format!("network {} has an IPv6 subnet but not IPv6", self.name),
                "say --ipv6, too",
            ));
        }
        self.check_interface()?;
        for (option, value) in &self.options {
            self.check_option(option, value)?;
        }
        Ok(())
    }

    fn check_interface(&self) -> Result<()> {
        let name = &self.interface;
        let good = (1..=15).contains(&name.len())
            && !matches!(name.as_str(), "." | "..")
            && name
                .bytes()
                .all(|byte| byte.is_ascii_graphic() && byte != b'/' && byte != b':');
        if good {
            Ok(())
        } else {
            Err(Error::invalid(format!(
                "{name:?} cannot be the name of an interface: 1 to 15 characters without blanks, \
                 `/` and `:`"
            )))
        }
    }

    fn check_option(&self, option: &str, value: &str) -> Result<()> {
        use option::{
            BRIDGE, DEFAULT_BRIDGE, HOST_ADDRESS, ICC, IPVLAN_MODE, MACVLAN_MODE, MASQUERADE, MTU,
            PARENT, PREFIX,
        };
        let kinds: &[DriverKind] = match option {
            BRIDGE | ICC | MASQUERADE | HOST_ADDRESS | DEFAULT_BRIDGE => &[DriverKind::Bridge],
            MTU | PREFIX => &[DriverKind::Bridge, DriverKind::Macvlan, DriverKind::Ipvlan],
            PARENT => &[DriverKind::Macvlan, DriverKind::Ipvlan],
            MACVLAN_MODE => &[DriverKind::Macvlan],
            IPVLAN_MODE => &[DriverKind::Ipvlan],
            _ => &[],
        };
        if !kinds.contains(&self.driver) {
            return Err(Error::Unsupported {
                what: format!("network option {option}={value}"),
                reason: format!("the driver {} does not know it", self.driver.name()),
            });
        }
        let good = match option {
            ICC | MASQUERADE | DEFAULT_BRIDGE => value.parse::<bool>().is_ok(),
            MTU => value
                .parse::<u32>()
                .is_ok_and(|mtu| mtu == 0 || (68..=65_535).contains(&mtu)),
            HOST_ADDRESS => value.parse::<IpAddr>().is_ok(),
            PREFIX => {
                (1..=11).contains(&value.len())
                    && value.bytes().all(|byte| byte.is_ascii_alphanumeric())
            }
            MACVLAN_MODE => macvlan_mode(value).is_some(),
            IPVLAN_MODE => ipvlan_mode(value).is_some(),
            _ => !value.is_empty(),
        };
        if good {
            Ok(())
        } else {
            Err(Error::invalid(format!(
                "invalid value of the network option {option}: {value:?}"
            )))
        }
    }
}

/// `MACVLAN_MODE_*` (`linux/if_link.h`).
pub(crate) fn macvlan_mode(name: &str) -> Option<u32> {
    Some(match name {
        "private" => 1,
        "vepa" => 2,
        "bridge" => 4,
        "passthru" => 8,
        _ => return None,
    })
}

/// `IPVLAN_MODE_*` (`linux/if_link.h`).
pub(crate) fn ipvlan_mode(name: &str) -> Option<u16> {
    Some(match name {
        "l2" => 0,
        "l3" => 1,
        "l3s" => 2,
        _ => return None,
    })
}

/// A network's name: Docker's rule for containers, and not one that means something else.
///
/// # Errors
/// [`Error::Invalid`].
pub fn check_name(name: &str) -> Result<()> {
    let first = name
        .bytes()
        .next()
        .is_some_and(|byte| byte.is_ascii_alphanumeric());
    let rest = name
        .bytes()
        .all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'.' | b'-'));
    if first && rest && name.len() <= 200 {
        Ok(())
    } else {
        Err(Error::invalid(format!(
            "{name:?} includes invalid characters for a network name, only \
             \"[a-zA-Z0-9][a-zA-Z0-9_.-]*\" are allowed"
        )))
    }
}

impl Pool {
    /// Where containers' addresses come from.
    pub fn range(&self) -> Subnet {
        self.range.unwrap_or(self.subnet)
    }

    /// Whether a container may have an address.
    pub(crate) fn may_lease(&self, address: IpAddr) -> bool {
        let ends = !self.subnet.is_ipv6() && self.subnet.prefix() < 31;
        self.subnet.contains(address)
            && !(ends && (address == self.subnet.network() || address == self.subnet.end()))
            && !(self.subnet.is_ipv6() && address == self.subnet.network())
            && self.gateway != Some(address)
            && !self.auxiliary.values().any(|taken| *taken == address)
    }

    /// The addresses that may be handed out, in a circle that begins behind `last`. Of a large
    /// range, the first 2¹⁶ from there.
    pub fn after(&self, last: Option<IpAddr>) -> impl Iterator<Item = IpAddr> {
        let range = self.range();
        let count = range.last_position().saturating_add(1);
        let start = last
            .and_then(|last| range.position(last))
            .map_or(0, |position| position.saturating_add(1));
        (0..count.min(1 << 16)).filter_map(move |step| {
            let address = range.nth((start.saturating_add(step)) % count)?;
            self.may_lease(address).then_some(address)
        })
    }

    fn check(&self) -> Result<()> {
        let subnet = &self.subnet;
        if subnet.address() != subnet.network() {
            return Err(Error::invalid(format!(
                "invalid subnet {subnet}: it should be {}",
                Subnet::of(subnet.address(), subnet.prefix())
            )));
        }
        if subnet.prefix() == 0 {
            return Err(Error::invalid(format!(
                "invalid subnet {subnet}: it is everything"
            )));
        }
        if let Some(range) = &self.range
            && !subnet.covers(range)
        {
            return Err(Error::invalid(format!(
                "invalid ip-range {range}: parent subnet {subnet} doesn't contain ip-range"
            )));
        }
        let others = self
            .auxiliary
            .values()
            .map(|address| ("auxiliary", address));
        for (what, address) in self.gateway.iter().map(|a| ("gateway", a)).chain(others) {
            if !subnet.contains(*address) {
                return Err(Error::invalid(format!(
                    "invalid {what} address {address}: parent subnet {subnet} doesn't contain it"
                )));
            }
        }
        if self.after(None).next().is_none() {
            return Err(Error::invalid(format!(
                "subnet {subnet} leaves no address to a container"
            )));
        }
        Ok(())
    }
}

/// Something in the way of a new subnet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Taken {
    /// Its addresses.
    pub subnet: Subnet,
    /// What it is: `route via eth0`, `network web`.
    pub by: String,
}

/// What this host's addresses and routes take, its name servers included.
///
/// # Errors
/// When the kernel does not tell.
pub fn taken_by_host() -> Result<Vec<Taken>> {
    let socket = Socket::route()?;
    let links = socket.links()?;
    let name = |index: u32| {
        links
            .iter()
            .find(|link| link.index == index)
            .map_or("?", |link| link.name.as_str())
    };
    let mut all = Vec::new();
    for (link, address) in socket.addresses()? {
        let subnet = Subnet::of(address.address(), address.prefix());
        all.push(Taken {
            subnet,
            by: format!("address of {}", name(link)),
        });
    }
    for route in socket.routes()? {
        if let Some(subnet) = route.to.filter(|subnet| subnet.prefix() > 0) {
            all.push(Taken {
                subnet,
                by: format!("route via {}", name(route.link)),
            });
        }
    }
    let servers = knarr_fs::read_to_string(std::path::Path::new("/etc/resolv.conf"));
    for server in crate::dns::name_servers(&servers.unwrap_or_default()) {
        all.push(Taken {
            subnet: Subnet::of(server.ip(), 128),
            by: "name server".to_owned(),
        });
    }
    Ok(all)
}

/// The first default subnet that nothing is in the way of, and its gateway. Small ones (4093
/// containers, four times what a bridge takes) out of many: 240 below 172.17.0.0/12, then 16 below
/// 192.168.0.0/16, then 2048 below 10.128.0.0/9.
///
/// # Errors
/// [`Error::NoSubnet`], naming what is in the way.
pub fn choose_subnet(taken: &[Taken]) -> Result<Pool> {
    let pools = (17..32)
        .map(|second| Subnet::of(IpAddr::from([172, second, 0, 0]), 16))
        .chain([
            Subnet::of(IpAddr::from([192, 168, 0, 0]), 16),
            Subnet::of(IpAddr::from([10, 128, 0, 0]), 9),
        ]);
    for subnet in pools.flat_map(|pool| pool.split(20)) {
        if !taken.iter().any(|one| one.subnet.overlaps(&subnet)) {
            return Ok(Pool {
                subnet,
                range: None,
                gateway: subnet.nth(1),
                auxiliary: BTreeMap::new(),
            });
        }
    }
    let mut names: Vec<_> = taken
        .iter()
        .filter(|one| !one.subnet.is_ipv6())
        .map(|one| format!("{} ({})", one.subnet, one.by))
        .collect();
    names.dedup();
    names.truncate(4);
    Err(Error::NoSubnet { taken: names })
}

/// A unique local IPv6 subnet (RFC 4193) out of a network's random id.
pub fn unique_local(id: &str) -> Pool {
    let digits = u64::from_str_radix(id.get(..14).unwrap_or("0"), 16).unwrap_or_default();
    let bits = 0xfdu128 << 120 | u128::from(digits) << 64;
    let subnet = Subnet::of(std::net::Ipv6Addr::from(bits).into(), 64);
    Pool {
        subnet,
        range: None,
        gateway: subnet.nth(1),
        auxiliary: BTreeMap::new(),
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A bridge network.
    pub(crate) fn example(name: &str, subnet: &str) -> Network {
        let subnet: Subnet = subnet.parse().unwrap();
        Network {
            version: VERSION,
            id: format!("{:064x}", knarr_spec::fnv1a(name.as_bytes())),
            name: name.to_owned(),
            created: String::new(),
            driver: DriverKind::Bridge,
            internal: false,
            ipv6: false,
            pools: vec![Pool {
                subnet,
                range: None,
                gateway: subnet.nth(1),
                auxiliary: BTreeMap::new(),
            }],
            options: BTreeMap::new(),
            labels: BTreeMap::new(),
            interface: format!("kn-{name}"),
        }
    }

    #[test]
    fn addresses_are_handed_out_in_a_circle() {
        let mut pool = example("x", "10.0.0.0/29").pools.remove(0);
        pool.auxiliary
            .insert("router".to_owned(), "10.0.0.3".parse().unwrap());
        let text = |last: Option<&str>| {
            let last = last.map(|last| last.parse().unwrap());
            pool.after(last)
                .map(|a| a.to_string())
                .collect::<Vec<_>>()
                .join(" ")
        };
        assert_eq!(text(None), "10.0.0.2 10.0.0.4 10.0.0.5 10.0.0.6");
        assert_eq!(
            text(Some("10.0.0.4")),
            "10.0.0.5 10.0.0.6 10.0.0.2 10.0.0.4"
        );
        assert_eq!(
            text(Some("10.0.0.6")),
            "10.0.0.2 10.0.0.4 10.0.0.5 10.0.0.6"
        );
        assert_eq!(
            text(Some("10.9.0.6")),
            "10.0.0.2 10.0.0.4 10.0.0.5 10.0.0.6"
        );
        let pool = example("x", "fd00::/64").pools.remove(0);
        assert_eq!(pool.after(None).next().unwrap().to_string(), "fd00::2");
        assert_eq!(
            pool.after(Some("fd00::f".parse().unwrap()))
                .next()
                .unwrap()
                .to_string(),
            "fd00::10"
        );
    }

    #[test]
    fn contradictions_are_refused() {
        let network = |change: &dyn Fn(&mut Network)| {
            let mut network = example("web", "10.0.0.0/24");
            change(&mut network);
            network.check().map_err(|error| error.to_string())
        };
        assert_eq!(network(&|_| {}), Ok(()));
        for change in [
            &(|n: &mut Network| n.name = "a\nb".to_owned()) as &dyn Fn(&mut Network),
            &|n| n.name = "../x".to_owned(),
            &|n| n.interface = "a-name-that-is-too-long".to_owned(),
            &|n| n.interface = "a b".to_owned(),
            &|n| n.pools[0].subnet = "10.0.0.1/24".parse().unwrap(),
            &|n| n.pools[0].gateway = Some("10.0.1.1".parse().unwrap()),
            &|n| n.pools[0].range = Some("10.0.0.0/16".parse().unwrap()),
            &|n| n.pools[0].subnet = "10.0.0.0/32".parse().unwrap(),
            &|n| n.ipv6 = true,
            &|n| n.pools.push(n.pools[0].clone()),
            &|n| drop(n.options.insert("parent".to_owned(), "eth0".to_owned())),
            &|n| drop(n.options.insert(option::MTU.to_owned(), "12".to_owned())),
            &|n| drop(n.options.insert("com.example".to_owned(), "1".to_owned())),
        ] {
            assert!(network(change).is_err());
        }
    }

    #[test]
    fn default_subnets_pass_by_what_is_there() {
        let taken = |subnets: &[&str]| {
            subnets
                .iter()
                .map(|subnet| Taken {
                    subnet: subnet.parse().unwrap(),
                    by: "route via tun0".to_owned(),
                })
                .collect::<Vec<_>>()
        };
        let subnet = |subnets: &[&str]| choose_subnet(&taken(subnets)).unwrap().subnet.to_string();
        assert_eq!(subnet(&[]), "172.17.0.0/20");
        assert_eq!(
            subnet(&["172.17.0.0/16", "172.18.0.5/32"]),
            "172.18.16.0/20"
        );
        assert_eq!(subnet(&["172.16.0.0/12"]), "192.168.0.0/20");
        let error = choose_subnet(&taken(&["172.16.0.0/12", "192.168.0.0/16", "10.0.0.0/8"]));
        let hint = knarr_diag::Explain::hint(&error.unwrap_err()).unwrap();
        assert!(hint.contains("172.16.0.0/12 (route via tun0)"), "{hint}");
    }
}
