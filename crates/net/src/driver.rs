//! Who makes a container's links: [`Driver`], and the ones there are.

use std::os::fd::BorrowedFd;
use std::path::Path;

use rustix::io::Errno;

use crate::netlink::{self, Batch, Socket};
use crate::network::{DriverKind, Network, ipvlan_mode, macvlan_mode, option};
use crate::plan::Joint;
use crate::route::{self, Above, Inner, Link, Mac};
use crate::{Error, Result, host, lease};

/// A link to be made: where, for whom.
#[derive(Debug)]
pub struct Wanted<'a> {
    /// The run root.
    pub run_root: &'a Path,
    /// The network.
    pub network: &'a Network,
    /// The container's network namespace.
    pub namespace: BorrowedFd<'a>,
    /// The container.
    pub id: &'a knarr_spec::ContainerId,
    /// It publishes ports, which it may want to reach itself by the host's address.
    pub publishes: bool,
}

/// What makes links between a network and a container.
pub trait Driver {
    /// Makes the link and says in `joint.link` what its end on the host is called. Its addresses
    /// and routes are set by the caller.
    ///
    /// # Errors
    /// When the kernel refuses; nothing is left then.
    fn connect(&self, wanted: &Wanted<'_>, joint: &mut Joint) -> Result<()>;

    /// Takes the link away from a container that goes on.
    ///
    /// # Errors
    /// When the kernel refuses. A link that is gone is fine.
    fn disconnect(&self, namespace: BorrowedFd<'_>, joint: &Joint) -> Result<()>;

    /// Whether containers are behind this host, which can publish their ports.
    fn is_behind_host(&self) -> bool;
}

/// The driver of a kind.
pub fn of(kind: DriverKind) -> &'static dyn Driver {
    match kind {
        DriverKind::Bridge => &BridgeDriver,
        DriverKind::Macvlan | DriverKind::Ipvlan => &ParentDriver,
    }
}

/// A pair of links, one end of which is a port of the network's bridge.
#[derive(Debug)]
struct BridgeDriver;

impl Driver for BridgeDriver {
    fn connect(&self, wanted: &Wanted<'_>, joint: &mut Joint) -> Result<()> {
        let socket = Socket::route()?;
        let bridge = host::ensure_bridge(&socket, wanted.run_root, wanted.network, wanted.id)?;
        let prefix = lease::link_prefix(&wanted.network.name, wanted.id);
        for digit in 0..16 {
            joint.link = format!("{prefix}{digit:x}");
            let mut batch = Batch::default();
            let inner = Inner {
                namespace: wanted.namespace,
                name: &joint.interface,
                mac: joint.mac,
                mtu: wanted.network.mtu(),
            };
            route::add_veth(&mut batch, &joint.link, bridge, &inner);
            if !wanted.network.flag(option::ICC, true) {
                route::isolate(&mut batch, &joint.link);
            }
            if wanted.publishes && bridges_call_firewall() {
                route::reflect(&mut batch, &joint.link);
            }
            match socket.apply(&batch) {
                // The last start's, which the kernel has not taken away yet.
                Err(error) if error.errno() == Some(Errno::EXIST) && digit < 15 => {}
                done => return done,
            }
        }
        Ok(())
    }

    fn disconnect(&self, _: BorrowedFd<'_>, joint: &Joint) -> Result<()> {
        delete(&joint.link)
    }

    fn is_behind_host(&self) -> bool {
        true
    }
}

/// Removes a link, if it is there.
pub(crate) fn delete(link: &str) -> Result<()> {
    let mut batch = Batch::default();
    route::delete(&mut batch, link);
    Socket::route()?.apply(&batch)
}

/// Removes the links that have these Ethernet addresses.
pub(crate) fn delete_by_mac(macs: &[Mac]) -> Result<()> {
    if macs.is_empty() {
        return Ok(());
    }
    let socket = Socket::route()?;
    let mut batch = Batch::default();
    let ours = |link: &Link| link.mac.is_some_and(|mac| macs.contains(&mac));
    for link in socket.links()?.into_iter().filter(ours) {
        route::delete(&mut batch, &link.name);
    }
    socket.apply(&batch)
}

/// Whether the kernel runs bridged packets through the firewall.
pub(crate) fn bridges_call_firewall() -> bool {
    ["iptables", "ip6tables"].iter().any(|table| {
        host::sysctl_get(&format!("bridge/bridge-nf-call-{table}"))
            .is_some_and(|value| value == "1")
    })
}

/// A container that runs begins to publish ports.
pub(crate) fn publishes(joint: &Joint) -> Result<()> {
    let mut batch = Batch::default();
    if bridges_call_firewall() && !joint.link.is_empty() {
        route::reflect(&mut batch, &joint.link);
    }
    Socket::route()?.apply(&batch)
}

/// A link above one of the host's.
#[derive(Debug)]
struct ParentDriver;

impl Driver for ParentDriver {
    fn connect(&self, wanted: &Wanted<'_>, joint: &mut Joint) -> Result<()> {
        let socket = Socket::route()?;
        let network = wanted.network;
        let parent = ensure_parent(&socket, network)?;
        let option = |name: &str| network.options.get(name).map(String::as_str);
        let above = if network.driver == DriverKind::Ipvlan {
            Above::Ipvlan(
                option(option::IPVLAN_MODE)
                    .and_then(ipvlan_mode)
                    .unwrap_or(0),
            )
        } else {
            Above::Macvlan(
                option(option::MACVLAN_MODE)
                    .and_then(macvlan_mode)
                    .unwrap_or(4),
            )
        };
        let mut batch = Batch::default();
        let inner = Inner {
            namespace: wanted.namespace,
            name: &joint.interface,
            mac: joint.mac,
            mtu: network.mtu(),
        };
        route::add_above(&mut batch, parent, above, &inner);
        socket.apply(&batch).map_err(|error| match error.errno() {
            Some(Errno::OPNOTSUPP) => Error::Unsupported {
                what: format!("a network of the driver {}", network.driver.name()),
                reason: "this kernel has no such links".to_owned(),
            },
            _ => error,
        })
    }

    fn disconnect(&self, namespace: BorrowedFd<'_>, joint: &Joint) -> Result<()> {
        netlink::within(namespace, || delete(&joint.interface))
    }

    fn is_behind_host(&self) -> bool {
        false
    }
}

/// The lower link; `eth0.100` is made as VLAN 100 of `eth0` where it is missing, as Docker does.
fn ensure_parent(socket: &Socket, network: &Network) -> Result<u32> {
    let name = &network.interface;
    if let Some(link) = socket.link(name)? {
        return Ok(link.index);
    }
    let missing = || {
        Error::invalid_hint(
            format!(
                "network {} needs the interface {name}, which is not there",
                network.name
            ),
            "`ip link` lists those that are",
        )
    };
    let (lower, tag) = name.rsplit_once('.').ok_or_else(missing)?;
    let tag: u16 = tag.parse().map_err(|_| missing())?;
    let lower = socket.link(lower)?.ok_or_else(missing)?;
    if !(1..4095).contains(&tag) {
        return Err(missing());
    }
    let mut batch = Batch::default();
    route::add_vlan(&mut batch, name, lower.index, tag);
    socket.apply(&batch)?;
    Ok(socket.link(name)?.ok_or_else(missing)?.index)
}

/// Checks that the lower link of such a network is there, or can be made.
///
/// # Errors
/// [`Error::Invalid`].
pub fn check_parent(network: &Network) -> Result<()> {
    let socket = Socket::route()?;
    let there = |name: &str| Ok::<_, Error>(socket.link(name)?.is_some());
    let name = &network.interface;
    let lower = name.rsplit_once('.').map(|(lower, _)| lower);
    if there(name)? || lower.map_or(Ok(false), there)? {
        return Ok(());
    }
    Err(Error::invalid_hint(
        format!("the parent interface {name} is not there"),
        "`ip link` lists those that are; `-o parent=eth0.100` makes VLAN 100 of eth0",
    ))
}

/// Sets the addresses of a link that is there, sets it up, and makes the default routes lead where
/// they shall.
pub(crate) fn configure(
    namespace: BorrowedFd<'_>,
    joint: &Joint,
    routes: Option<&crate::Attached>,
) -> Result<()> {
    netlink::within(namespace, || {
        let socket = Socket::route()?;
        let Some(link) = socket.link(&joint.interface)? else {
            let what = format!("find {} in the container", joint.interface);
            return Err(Error::of("netlink", what)(Errno::NODEV));
        };
        let mut batch = Batch::default();
        if !link.up {
            route::set_up(&mut batch, &joint.interface, None);
        }
        if let Some(place) = joint.ipv4 {
            route::add_address(&mut batch, link.index, place.address.into(), place.prefix);
        }
        if let Some(place) = joint.ipv6 {
            route::add_address(&mut batch, link.index, place.address.into(), place.prefix);
        }
        if let Some(all) = routes {
            add_routes(&socket, &mut batch, all)?;
        }
        socket.apply(&batch)
    })
}

/// Only the default routes, after a network was left.
pub(crate) fn reroute(namespace: BorrowedFd<'_>, all: &crate::Attached) -> Result<()> {
    netlink::within(namespace, || {
        let socket = Socket::route()?;
        let mut batch = Batch::default();
        add_routes(&socket, &mut batch, all)?;
        socket.apply(&batch)
    })
}

fn add_routes(socket: &Socket, batch: &mut Batch, all: &crate::Attached) -> Result<()> {
    for ipv6 in [false, true] {
        let Some(joint) = all.way_out(ipv6) else {
            continue;
        };
        let gateway = if ipv6 {
            joint.ipv6.and_then(|place| place.gateway).map(Into::into)
        } else {
            joint.ipv4.and_then(|place| place.gateway).map(Into::into)
        };
        if let (Some(gateway), Some(link)) = (gateway, socket.link(&joint.interface)?) {
            route::set_default_route(batch, link.index, gateway);
        }
    }
    Ok(())
}
