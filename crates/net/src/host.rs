//! This host's part of a network: the bridge with its addresses, forwarding, and what the host's
//! own firewall says.

use std::path::Path;

use knarr_fs::{Durability, failpoint};
use knarr_spec::ContainerId;

use crate::firewall::{self, Bridge, Change};
use crate::lease;
use crate::netlink::{Batch, Socket};
use crate::network::{Network, option};
use crate::route::{self, Link, Mac};
use crate::{Error, Result};

/// What the bridge's alias says once everything about it is done.
fn mark(run_root: &Path, network: &Network) -> String {
    let id = network.id.get(..12).unwrap_or(&network.id);
    format!("knarr {id} {}", run_root.display())
}

/// The first of `knarr0`, `knarr1`, … that is not there.
///
/// # Errors
/// When the kernel does not tell.
pub fn free_bridge_name() -> Result<String> {
    let links = Socket::route()?.links()?;
    let taken = |name: &String| links.iter().any(|link| link.name == *name);
    Ok((0..)
        .map(|number| format!("knarr{number}"))
        .find(|name| !taken(name))
        .unwrap_or_default())
}

/// The link that this host's default route leads over, of a family; where there is none, of the
/// other one.
///
/// # Errors
/// When the kernel does not tell.
pub fn uplink(ipv6: bool) -> Result<Option<String>> {
    let socket = Socket::route()?;
    let mut routes = socket.routes()?;
    routes.retain(|route| route.to.is_none());
    routes.sort_by_key(|route| route.ipv6 != ipv6);
    let Some(route) = routes.first() else {
        return Ok(None);
    };
    let links = socket.links()?;
    let link = links.into_iter().find(|link| link.index == route.link);
    Ok(link.map(|link| link.name))
}

/// Whether bridged packets are run through the firewall, so that it decides within a network, too.
pub fn firewall_sees_bridged() -> bool {
    crate::driver::bridges_call_firewall()
}

/// The network's bridge, made where it is not there yet, for a container that has an address of
/// the network's: a network that was removed meanwhile does not come back. Gives the bridge's index.
pub(crate) fn ensure_bridge(
    socket: &Socket,
    run_root: &Path,
    network: &Network,
    id: &ContainerId,
) -> Result<u32> {
    let mark = mark(run_root, network);
    let note = lease::folder(run_root, &network.name).join("bridge.json");
    let ready = |link: &Link| link.up && link.alias == mark && note.exists();
    if let Some(link) = socket.link(&network.interface)?.filter(ready) {
        return Ok(link.index);
    }
    let _alone = lease::lock(run_root, &network.name)?;
    if let Some(link) = socket.link(&network.interface)?.filter(ready) {
        return Ok(link.index);
    }
    let leased = lease::holders(run_root, &network.name)?;
    if !leased.iter().any(|(_, holder)| holder == id) {
        if leased.is_empty() && !note.exists() {
            // Of the folder there was only what the lock has made.
            knarr_fs::remove_tree(&lease::folder(run_root, &network.name))?;
        }
        return Err(Error::invalid(format!(
            "network {} was removed while container {} was starting",
            network.name,
            id.short()
        )));
    }
    make_bridge(socket, run_root, network, &mark)
}

fn make_bridge(socket: &Socket, run_root: &Path, network: &Network, mark: &str) -> Result<u32> {
    let name = &network.interface;
    let note = lease::folder(run_root, &network.name).join("bridge.json");
    let known = knarr_fs::read(&note).is_ok();
    let bridge = describe(network);
    let bytes = serde_json::to_vec(&bridge).map_err(|cause| Error::Damaged {
        path: note.clone(),
        cause,
    })?;
    let mut batch = Batch::default();
    match socket.link(name)? {
        // Whoever wrote the note was killed before the mark.
        Some(link) if link.alias == mark || (link.alias.is_empty() && known) => {}
        Some(link) => {
            return Err(Error::ForeignLink {
                name: name.clone(),
                owner: match link.alias.strip_prefix("knarr ") {
                    Some(other) => format!("belongs to another Knarr ({other})"),
                    None => "is not Knarr's".to_owned(),
                },
            });
        }
        None => {
            knarr_fs::write_atomic(&note, &bytes, Durability::Volatile)?;
            failpoint!("net.bridge-noted");
            let digits = u64::from_str_radix(network.id.get(..10).unwrap_or("0"), 16);
            let [.., a, b, c, d, e] = digits.unwrap_or_default().to_be_bytes();
            let mac = Mac([0x02, a, b, c, d, e]);
            route::add_bridge(&mut batch, name, mac, network.mtu());
            socket.apply(&batch)?;
            failpoint!("net.bridge-made");
        }
    }
    knarr_fs::write_atomic(&note, &bytes, Durability::Volatile)?;
    let Some(link) = socket.link(name)? else {
        return Err(Error::of("netlink", format!("find the bridge {name}"))(
            rustix::io::Errno::NODEV,
        ));
    };
    sysctl(&format!("ipv4/conf/{name}/route_localnet"), "1")?;
    sysctl_if_there(&format!("ipv6/conf/{name}/accept_ra"), "0")?;
    if !network.ipv6 {
        sysctl_if_there(&format!("ipv6/conf/{name}/disable_ipv6"), "1")?;
    }
    if !network.internal {
        forward(run_root, network.ipv6)?;
    }
    let mut batch = Batch::default();
    for pool in &network.pools {
        if let Some(gateway) = pool.gateway {
            route::add_address(&mut batch, link.index, gateway, pool.subnet.prefix());
        }
    }
    socket.apply(&batch)?;
    failpoint!("net.bridge-addressed");
    firewall::change(run_root, &Change::AddBridge(bridge))?;
    failpoint!("net.bridge-guarded");
    let mut batch = Batch::default();
    route::set_up(&mut batch, name, Some(mark));
    socket.apply(&batch)?;
    Ok(link.index)
}

fn describe(network: &Network) -> Bridge {
    let masquerade = !network.internal && network.flag(option::MASQUERADE, true);
    Bridge {
        name: network.interface.clone(),
        internal: network.internal,
        isolated: !network.flag(option::ICC, true),
        subnets: network.pools.iter().map(|pool| pool.subnet).collect(),
        masquerade: if masquerade {
            network.pools.iter().map(|pool| pool.subnet).collect()
        } else {
            Vec::new()
        },
    }
}

/// Takes the network's part of this host away: bridge, firewall elements, run folder. What is gone
/// is fine.
///
/// # Errors
/// When the kernel or the disk refuses.
pub fn remove(run_root: &Path, network: &Network) -> Result<()> {
    let lock = lease::lock(run_root, &network.name)?;
    let folder = lease::folder(run_root, &network.name);
    let note = folder.join("bridge.json");
    if note.exists() {
        let socket = Socket::route()?;
        let mark = mark(run_root, network);
        let ours = |link: &Link| link.alias == mark || link.alias.is_empty();
        if socket
            .link(&network.interface)?
            .is_some_and(|link| ours(&link))
        {
            let mut batch = Batch::default();
            route::delete(&mut batch, &network.interface);
            socket.apply(&batch)?;
        }
        failpoint!("net.bridge-gone");
        knarr_fs::remove_file(&note)?;
        firewall::change(run_root, &Change::RemoveBridge(describe(network)))?;
    }
    knarr_fs::remove_tree(&folder)?;
    drop(lock);
    Ok(())
}

/// Turns IP forwarding on, noting first that it was off: then the firewall keeps the machine from
/// being a router for others.
fn forward(run_root: &Path, ipv6: bool) -> Result<()> {
    let mut changed = false;
    let mut turn_on = |name: &str| -> Result<()> {
        if sysctl_get(name).is_some_and(|value| value == "0") {
            if !changed {
                knarr_fs::write_atomic(&run_root.join("forwarding"), b"", Durability::Volatile)?;
            }
            changed = true;
            sysctl(name, "1")?;
        }
        Ok(())
    };
    turn_on("ipv4/ip_forward")?;
    if ipv6 {
        keep_router_advertisements();
        turn_on("ipv6/conf/all/forwarding")?;
        turn_on("ipv6/conf/default/forwarding")?;
    }
    if changed {
        firewall::change(run_root, &Change::Rebuild)?;
    }
    Ok(())
}

/// A host that forwards IPv6 ignores router advertisements unless it is told not to
/// (ip-sysctl, `accept_ra`): it would lose its default route.
fn keep_router_advertisements() {
    let folder = Path::new("/proc/sys/net/ipv6/conf");
    for name in knarr_fs::file_names(folder).unwrap_or_default() {
        let name = format!("ipv6/conf/{}/accept_ra", name.to_string_lossy());
        if sysctl_get(&name).as_deref() == Some("1") {
            // Best effort: one that is read-only stays as it was.
            sysctl(&name, "2").ok();
        }
    }
}

pub(crate) fn sysctl_get(name: &str) -> Option<String> {
    let path = format!("/proc/sys/net/{name}");
    let text = knarr_fs::read_to_string(Path::new(&path)).ok()?;
    Some(text.trim().to_owned())
}

/// Sets a variable of the calling thread's network namespace, where it has another value.
pub(crate) fn sysctl(name: &str, value: &str) -> Result<()> {
    if sysctl_get(name).as_deref() == Some(value) {
        return Ok(());
    }
    let path = format!("/proc/sys/net/{name}");
    std::fs::write(&path, value).map_err(|error| Error::Kernel {
        what: format!("set {path} to {value}"),
        cause: knarr_sys::Failure::from_io("write", &error),
    })
}

pub(crate) fn sysctl_if_there(name: &str, value: &str) -> Result<()> {
    match sysctl_get(name) {
        Some(_) => sysctl(name, value),
        // Without IPv6 there is nothing to set.
        None => Ok(()),
    }
}
