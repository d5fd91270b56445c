//! Knarr's one firewall table: fixed chains, and maps and sets whose elements are the bridges and
//! the published ports. What it holds is a function of a few files, so that whoever finds it gone
//! can make it again as it was.
//!
//! ```text
//! <run root>/networks/<net>/bridge.json   a [`Bridge`] that is there
//! <run root>/published/<container>        its [`Published`] ports, from before they work
//! <run root>/published/<container>.gone   those that cease to, until they are out of the table
//! <run root>/forwarding                   Knarr turned IP forwarding on; it was off before
//! ```
//! Who may reach whom:
//! - Towards a bridge go answers, what came for a published port, and what comes from the same
//!   bridge. Everything else is dropped: other networks, neighbours that route to a container.
//! - Containers of a network whose containers are isolated (`icc=false`) do not reach each other by
//!   way of this host either.
//! - From an internal bridge nothing leaves, and of this host only the bridge's own address answers.
//! - What comes from a bridge for 127.0.0.0/8 is dropped, though `route_localnet` lets it in.
//! - Nothing is accepted on behalf of other tables: what the host's own policy drops stays dropped.
//! - Where Knarr turned forwarding on, packets between interfaces that are not bridges are dropped:
//!   the machine was no router before.

mod chains;
mod live;
mod owner;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::{Path, PathBuf};

use knarr_fs::{Durability, failpoint};
use knarr_spec::ContainerId;
use serde::{Deserialize, Serialize};

use crate::netlink::Socket;
use crate::nft::{Element, Family, Set, Transaction, Type};
use crate::port::Protocol;
use crate::route::octets;
use crate::{Error, Result, Subnet};

pub use live::{Live, live};
pub use owner::{Hold, change, hold};

/// A bridge, as the firewall sees it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Bridge {
    /// The link's name.
    pub name: String,
    /// Nothing leaves it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub internal: bool,
    /// Its containers do not reach each other, but by published ports.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub isolated: bool,
    /// Its networks.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub subnets: Vec<Subnet>,
    /// Whose packets leave with this host's address as their source.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub masquerade: Vec<Subnet>,
}

/// A published port, or a range of them that keep their numbers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Published {
    /// Of the transport.
    pub protocol: Protocol,
    /// An address of this host; the unspecified one stands for all of its family.
    pub host: IpAddr,
    /// The first port on this host.
    pub host_port: u16,
    /// How many follow each other.
    pub count: u16,
    /// The container's address, of the same family.
    pub target: IpAddr,
    /// The first port in the container.
    pub target_port: u16,
}

impl Published {
    /// Whether a port of the container is one of them.
    pub(crate) fn covers(&self, protocol: Protocol, port: u16) -> bool {
        let behind = port.checked_sub(self.target_port);
        self.protocol == protocol && behind.is_some_and(|behind| behind < self.count)
    }

    /// What is left of them without a port of the container: those before it, those behind it.
    pub(crate) fn without(&self, port: u16) -> impl Iterator<Item = Self> {
        let before = port.saturating_sub(self.target_port).min(self.count);
        let skipped = before.saturating_add(1).min(self.count);
        let part = |from: u16, count: u16| Self {
            host_port: self.host_port.saturating_add(from),
            target_port: self.target_port.saturating_add(from),
            count,
            ..*self
        };
        [part(0, before), part(skipped, self.count - skipped)]
            .into_iter()
            .filter(|part| part.count > 0)
    }
}

/// Something to change in the table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// A bridge is there.
    AddBridge(Bridge),
    /// A bridge goes.
    RemoveBridge(Bridge),
    /// Ports begin to work.
    Publish(Vec<Published>),
    /// Ports cease to work.
    Unpublish(Vec<Published>),
    /// The files say it all.
    Rebuild,
}

/// Everything that the table holds.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Content {
    /// All bridges.
    pub bridges: Vec<Bridge>,
    /// All published ports.
    pub published: Vec<Published>,
    /// Packets between other interfaces than bridges are dropped.
    pub no_router: bool,
}

const BRIDGES: Set = set("bridges", &[Type::InterfaceName], &[], false);
const INTERNAL: Set = set("internal", &[Type::InterfaceName], &[], false);
const SAME: Set = set(
    "same",
    &[Type::InterfaceName, Type::InterfaceName],
    &[],
    false,
);
const HOME4: Set = set("home4", &[Type::InterfaceName, Type::Ipv4], &[], true);
const HOME6: Set = set("home6", &[Type::InterfaceName, Type::Ipv6], &[], true);
const MASQUERADED4: Set = set("masqueraded4", &[Type::Ipv4], &[], true);
const MASQUERADED6: Set = set("masqueraded6", &[Type::Ipv6], &[], true);
const PORTS4: Set = set("ports4", KEY4, &[Type::Ipv4, Type::Port], true);
const RANGES4: Set = set("ranges4", KEY4, &[Type::Ipv4], true);
const PORTS6: Set = set("ports6", KEY6, &[Type::Ipv6, Type::Port], true);
const RANGES6: Set = set("ranges6", KEY6, &[Type::Ipv6], true);
const KEY4: &[Type] = &[Type::Ipv4, Type::Transport, Type::Port];
const KEY6: &[Type] = &[Type::Ipv6, Type::Transport, Type::Port];

const fn set(
    name: &'static str,
    key: &'static [Type],
    data: &'static [Type],
    interval: bool,
) -> Set {
    Set {
        name,
        key,
        data,
        interval,
    }
}

/// The table's name: `knarr`, or one of its own for another run root than the usual, as two Knarrs
/// on one machine do not share one.
pub fn table(run_root: &Path) -> String {
    if run_root == Path::new("/run/knarr") {
        "knarr".to_owned()
    } else {
        format!(
            "knarr-{:08x}",
            knarr_spec::fnv1a(run_root.to_string_lossy().as_bytes()) >> 32
        )
    }
}

impl Content {
    /// What the files say.
    ///
    /// # Errors
    /// When they cannot be read. A damaged one is passed over: it is named by who owns it.
    pub fn load(run_root: &Path) -> Result<Self> {
        let mut content = Self {
            no_router: run_root.join("forwarding").exists(),
            ..Self::default()
        };
        let networks = run_root.join("networks");
        for name in knarr_fs::file_names(&networks)? {
            if let Some(bridge) = read(&networks.join(name).join("bridge.json"))? {
                content.bridges.push(bridge);
            }
        }
        let published = published_folder(run_root);
        for name in knarr_fs::file_names(&published)? {
            if name.as_encoded_bytes().ends_with(GONE.as_bytes()) {
                continue;
            }
            let ports: Option<Vec<Published>> = read(&published.join(name))?;
            content.published.extend(ports.unwrap_or_default());
        }
        Ok(content)
    }

    /// Makes the table anew, whatever was there, in one transaction; `owned` by the socket.
    pub(crate) fn replace(&self, socket: &Socket, table: &str, owned: bool) -> Result<()> {
        let mut transaction = Transaction::new(Family::Inet, table);
        if owned {
            transaction.renew_owned_table();
        } else {
            transaction.renew_table();
        }
        self.write(&mut transaction);
        transaction.commit(socket)
    }

    fn write(&self, to: &mut Transaction<'_>) {
        for (id, set) in (1..).zip([
            &BRIDGES,
            &INTERNAL,
            &SAME,
            &HOME4,
            &HOME6,
            &MASQUERADED4,
            &MASQUERADED6,
            &PORTS4,
            &RANGES4,
            &PORTS6,
            &RANGES6,
        ]) {
            to.add_set(set, id);
        }
        chains::chains(to, self.no_router);
        for bridge in &self.bridges {
            for (set, elements) in bridge.elements() {
                to.add_elements(set, &elements);
            }
        }
        for published in &self.published {
            let (set, elements) = published.elements();
            to.add_elements(set, &elements);
        }
    }
}

impl Change {
    /// Makes it in the kernel.
    pub(crate) fn apply(&self, socket: &Socket, table: &str) -> Result<()> {
        let mut transaction = Transaction::new(Family::Inet, table);
        match self {
            Self::AddBridge(bridge) => {
                for (set, elements) in bridge.elements() {
                    transaction.add_elements(set, &elements);
                }
            }
            Self::RemoveBridge(bridge) => {
                for (set, elements) in bridge.elements() {
                    transaction.delete_elements(set, &elements);
                }
            }
            Self::Publish(all) => {
                for (set, elements) in all.iter().map(Published::elements) {
                    transaction.add_elements(set, &elements);
                }
            }
            Self::Unpublish(all) => {
                for (set, elements) in all.iter().map(Published::elements) {
                    transaction.delete_elements(set, &elements);
                }
            }
            Self::Rebuild => {}
        }
        transaction.commit(socket)
    }
}

impl Bridge {
    fn elements(&self) -> Vec<(&'static str, Vec<Element>)> {
        let name = interface(&self.name);
        let mut all = vec![(BRIDGES.name, vec![Element::key(name.clone())])];
        if !self.isolated {
            // Ports that are isolated from each other still have this host as a router.
            let same = [name.clone(), name.clone()].concat();
            all.push((SAME.name, vec![Element::key(same)]));
        }
        if self.internal {
            all.push((INTERNAL.name, vec![Element::key(name)]));
        }
        for subnet in &self.subnets {
            let set = if subnet.is_ipv6() {
                HOME6.name
            } else {
                HOME4.name
            };
            let key = |address| [interface(&self.name), octets(address)].concat();
            let element = Element {
                end: Some(key(subnet.end())),
                ..Element::key(key(subnet.network()))
            };
            all.push((set, vec![element]));
        }
        for subnet in &self.masquerade {
            let set = if subnet.is_ipv6() {
                MASQUERADED6.name
            } else {
                MASQUERADED4.name
            };
            let mut elements = vec![Element::key(octets(subnet.network()))];
            // The first address behind; at the end of all addresses there is none.
            if let Some(behind) = behind(subnet.end()) {
                elements.push(Element {
                    is_end: true,
                    ..Element::key(octets(behind))
                });
            }
            all.push((set, elements));
        }
        all
    }
}

fn behind(address: IpAddr) -> Option<IpAddr> {
    Some(match address {
        IpAddr::V4(address) => Ipv4Addr::from(u32::from(address).checked_add(1)?).into(),
        IpAddr::V6(address) => Ipv6Addr::from(u128::from(address).checked_add(1)?).into(),
    })
}

impl Published {
    /// A range that keeps its numbers is one element.
    fn elements(&self) -> (&'static str, Vec<Element>) {
        let last = if self.host.is_unspecified() {
            match self.host {
                IpAddr::V4(_) => Ipv4Addr::BROADCAST.into(),
                IpAddr::V6(_) => Ipv6Addr::from(u128::MAX).into(),
            }
        } else {
            self.host
        };
        let key = |address: IpAddr, port: u16| {
            let mut key = octets(address);
            key.extend([self.protocol.number(), 0, 0, 0]);
            key.extend(port.to_be_bytes());
            key.extend([0, 0]);
            key
        };
        let offset = |port: u16, by: u16| port.saturating_add(by);
        let ipv6 = self.host.is_ipv6();
        if self.count > 1 && self.host_port == self.target_port {
            let element = Element {
                end: Some(key(last, offset(self.host_port, self.count - 1))),
                data: Some(octets(self.target)),
                ..Element::key(key(self.host, self.host_port))
            };
            return (
                if ipv6 { RANGES6.name } else { RANGES4.name },
                vec![element],
            );
        }
        let elements = (0..self.count).map(|by| {
            let mut data = octets(self.target);
            data.extend(offset(self.target_port, by).to_be_bytes());
            data.extend([0, 0]);
            let port = offset(self.host_port, by);
            Element {
                end: Some(key(last, port)),
                data: Some(data),
                ..Element::key(key(self.host, port))
            }
        });
        (
            if ipv6 { PORTS6.name } else { PORTS4.name },
            elements.collect(),
        )
    }
}

/// A name as the kernel compares it.
fn interface(name: &str) -> Vec<u8> {
    let mut bytes = name.as_bytes().to_vec();
    bytes.resize(16, 0);
    bytes
}

fn read<T: serde::de::DeserializeOwned>(path: &Path) -> Result<Option<T>> {
    match knarr_fs::read(path) {
        Ok(bytes) => Ok(serde_json::from_slice(&bytes).ok()),
        Err(error) if error.is_not_found() => Ok(None),
        Err(error) => Err(error.into()),
    }
}

fn save(path: &Path, ports: &[Published]) -> Result<()> {
    let bytes = serde_json::to_vec(ports).map_err(|cause| Error::Damaged {
        path: path.to_owned(),
        cause,
    })?;
    Ok(knarr_fs::write_atomic(path, &bytes, Durability::Volatile)?)
}

/// What the names of notes about ports that cease to be published end with.
const GONE: &str = ".gone";

fn published_folder(run_root: &Path) -> PathBuf {
    run_root.join("published")
}

/// Writes down what a container publishes; done before it is published.
///
/// # Errors
/// When the file cannot be written.
pub fn remember(run_root: &Path, id: &ContainerId, ports: &[Published]) -> Result<()> {
    let folder = published_folder(run_root);
    knarr_fs::create_dir_all(&folder)?;
    save(&folder.join(id.as_str()), ports)
}

/// What a container publishes; nothing where nothing is written down.
///
/// # Errors
/// When the file cannot be read.
pub fn remembered(run_root: &Path, id: &ContainerId) -> Result<Vec<Published>> {
    Ok(read(&published_folder(run_root).join(id.as_str()))?.unwrap_or_default())
}

/// Takes ports out of the table: all of a container's but `kept`, those included that somebody who
/// was killed at it left half-way. What is kept of a range that goes is put in.
///
/// # Errors
/// When a file cannot be written, or the kernel refuses; the same again goes on there.
pub fn close(run_root: &Path, id: &ContainerId, kept: &[Published]) -> Result<Vec<Published>> {
    let note = published_folder(run_root).join(format!("{id}{GONE}"));
    let mut gone: Vec<Published> = read(&note)?.unwrap_or_default();
    let known = remembered(run_root, id)?;
    let parts = kept.iter().filter(|one| !known.contains(one));
    let parts: Vec<Published> = parts.cloned().collect();
    for one in known {
        if !kept.contains(&one) && !gone.contains(&one) {
            gone.push(one);
        }
    }
    if gone.is_empty() {
        knarr_fs::remove_file(&note)?;
        return Ok(gone);
    }
    save(&note, &gone)?;
    // Whoever makes the table anew leaves them out from here on.
    if kept.is_empty() {
        knarr_fs::remove_file(&published_folder(run_root).join(id.as_str()))?;
    } else {
        remember(run_root, id, kept)?;
    }
    failpoint!("net.unpublishing");
    change(run_root, &Change::Unpublish(gone.clone()))?;
    if !parts.is_empty() {
        change(run_root, &Change::Publish(parts))?;
    }
    failpoint!("net.unpublished");
    knarr_fs::remove_file(&note)?;
    Ok(gone)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn content() -> Content {
        let published =
            |protocol, host: &str, host_port, count, target: &str, target_port| Published {
                protocol,
                host: host.parse().unwrap(),
                host_port,
                count,
                target: target.parse().unwrap(),
                target_port,
            };
        Content {
            bridges: vec![
                Bridge {
                    name: "knarr0".to_owned(),
                    internal: false,
                    isolated: false,
                    subnets: vec![
                        "172.17.0.0/16".parse().unwrap(),
                        "fd00::/64".parse().unwrap(),
                    ],
                    masquerade: vec![
                        "172.17.0.0/16".parse().unwrap(),
                        "fd00::/64".parse().unwrap(),
                    ],
                },
                Bridge {
                    name: "kn-inside".to_owned(),
                    internal: true,
                    isolated: true,
                    subnets: vec!["10.0.0.0/24".parse().unwrap()],
                    masquerade: Vec::new(),
                },
            ],
            published: vec![
                published(Protocol::Tcp, "0.0.0.0", 8080, 1, "172.17.0.2", 80),
                published(Protocol::Udp, "127.0.0.1", 53, 1, "172.17.0.2", 53),
                published(Protocol::Tcp, "0.0.0.0", 9000, 101, "172.17.0.2", 9000),
                published(Protocol::Sctp, "0.0.0.0", 7000, 2, "172.17.0.2", 7100),
                published(Protocol::Tcp, "::", 8080, 1, "fd00::2", 80),
                published(Protocol::Tcp, "::", 9000, 101, "fd00::2", 9000),
            ],
            no_router: true,
        }
    }

    fn nft(args: &[&str]) -> String {
        let output = std::process::Command::new("nft")
            .args(args)
            .output()
            .unwrap();
        assert!(
            output.status.success(),
            "{}",
            String::from_utf8_lossy(&output.stderr)
        );
        String::from_utf8(output.stdout).unwrap()
    }

    /// The oracle: nft prints the table as it reads in the golden file.
    #[test]
    fn nft_reads_the_table_as_it_was_meant() {
        if !crate::testing::private("nft_reads_the_table_as_it_was_meant") {
            return;
        }
        let socket = Socket::netfilter().unwrap();
        // Twice: the second time replaces the first.
        for _ in 0..2 {
            content().replace(&socket, "knarr", false).unwrap();
        }
        crate::testing::golden("firewall.nft", &nft(&["list", "ruleset"]));
        let all = content();
        for change in [
            Change::Unpublish(all.published.clone()),
            Change::RemoveBridge(all.bridges[0].clone()),
            Change::RemoveBridge(all.bridges[1].clone()),
        ] {
            change.apply(&socket, "knarr").unwrap();
        }
        assert!(!nft(&["list", "ruleset"]).contains("elements"));
        for change in [
            Change::AddBridge(all.bridges[0].clone()),
            Change::AddBridge(all.bridges[1].clone()),
            Change::Publish(all.published.clone()),
        ] {
            change.apply(&socket, "knarr").unwrap();
        }
        crate::testing::golden("firewall.nft", &nft(&["list", "ruleset"]));
    }

    #[test]
    fn a_failed_change_changes_nothing() {
        if !crate::testing::private("a_failed_change_changes_nothing") {
            return;
        }
        let socket = Socket::netfilter().unwrap();
        let all = content();
        all.replace(&socket, "knarr", false).unwrap();
        let before = nft(&["list", "ruleset"]);
        let mut other = all.published[0].clone();
        other.target = "172.17.0.9".parse().unwrap();
        let new = Published {
            host_port: 1234,
            ..other.clone()
        };
        assert!(
            Change::Publish(vec![new, other])
                .apply(&socket, "knarr")
                .is_err()
        );
        assert_eq!(nft(&["list", "ruleset"]), before);
    }
}
