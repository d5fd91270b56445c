//! The servers that are asked what Knarr does not know.

use std::net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV6};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

/// The port of DNS.
const PORT: u16 = 53;
/// As many as the C library asks (resolv.conf(5), MAXNS).
pub(super) const MOST_SERVERS: usize = 3;
/// How often the host's resolv.conf is looked at, at most.
const LOOK: Duration = Duration::from_secs(1);
/// How long a server that was silent is asked last.
const AVOID: Duration = Duration::from_secs(15);

/// Which servers are asked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Servers {
    /// Those of a resolv.conf(5) of the host. It is looked at again when a name is asked for,
    /// once a second at most, so changes count without anybody being told.
    File(PathBuf),
    /// These (`--dns`), in order.
    Fixed(Vec<SocketAddr>),
    /// None: no name outside the container's networks exists. For containers that are on internal
    /// networks only, which would reach the world through names otherwise.
    None,
}

impl Default for Servers {
    fn default() -> Self {
        Self::File(PathBuf::from("/etc/resolv.conf"))
    }
}

#[derive(Debug)]
struct Server {
    address: SocketAddr,
    /// It was silent; others are asked first until then.
    avoid_until: Option<Instant>,
}

/// The servers, and how they behave.
#[derive(Debug)]
pub(super) struct Upstream {
    source: Servers,
    servers: Vec<Server>,
    looked: Option<(Instant, Option<Stamp>)>,
}

/// What tells that a file is another or has changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Stamp {
    device: u64,
    inode: u64,
    size: i64,
    changed: (i64, i64),
}

impl Stamp {
    fn of(path: &Path) -> Option<Self> {
        let stat = rustix::fs::stat(path).ok()?;
        Some(Self {
            device: stat.st_dev,
            inode: stat.st_ino,
            size: stat.st_size,
            changed: (
                stat.st_ctime,
                i64::try_from(stat.st_ctime_nsec).unwrap_or(0),
            ),
        })
    }
}

impl Upstream {
    pub(super) fn new(source: Servers) -> Self {
        let servers = match &source {
            Servers::Fixed(addresses) => keep(&[], addresses),
            Servers::File(_) | Servers::None => Vec::new(),
        };
        Self {
            source,
            servers,
            looked: None,
        }
    }

    /// The servers to ask now, in order; none where nobody may be asked.
    pub(super) fn order(&mut self, now: Instant) -> Vec<SocketAddr> {
        self.look(now);
        let avoided = |server: &&Server| server.avoid_until.is_some_and(|until| until > now);
        let good = self.servers.iter().filter(|server| !avoided(server));
        let bad = self.servers.iter().filter(avoided);
        good.chain(bad).map(|server| server.address).collect()
    }

    /// Remembers that a server was silent, or that it is not.
    pub(super) fn note(&mut self, address: SocketAddr, silent: bool, now: Instant) {
        for server in &mut self.servers {
            if server.address == address {
                server.avoid_until = silent.then(|| now + AVOID);
            }
        }
    }

    fn look(&mut self, now: Instant) {
        let Servers::File(path) = &self.source else {
            return;
        };
        let before = match self.looked {
            Some((at, _)) if now.saturating_duration_since(at) < LOOK => return,
            Some((_, stamp)) => Some(stamp),
            None => None,
        };
        let stamp = Stamp::of(path);
        self.looked = Some((now, stamp));
        if before == Some(stamp) {
            return;
        }
        let text = knarr_fs::read(path).unwrap_or_default();
        let addresses = name_servers(&String::from_utf8_lossy(&text));
        self.servers = keep(&self.servers, &addresses);
    }
}

/// What is known of servers stays known when the list changes.
fn keep(old: &[Server], addresses: &[SocketAddr]) -> Vec<Server> {
    addresses
        .iter()
        .take(MOST_SERVERS)
        .map(|address| Server {
            address: *address,
            avoid_until: old
                .iter()
                .find(|server| server.address == *address)
                .and_then(|server| server.avoid_until),
        })
        .collect()
}

/// The servers of a resolv.conf(5): the first three, or the one on this machine if none is named.
pub fn name_servers(text: &str) -> Vec<SocketAddr> {
    let mut servers: Vec<SocketAddr> = text
        .lines()
        .filter_map(|line| {
            let mut words = line.split_ascii_whitespace();
            (words.next()? == "nameserver").then(|| words.next())?
        })
        .filter_map(server)
        .take(MOST_SERVERS)
        .collect();
    if servers.is_empty() {
        servers.push((Ipv4Addr::LOCALHOST, PORT).into());
    }
    servers
}

/// An address, with the interface that a link-local one is on (`fe80::1%eth0`).
fn server(text: &str) -> Option<SocketAddr> {
    let (address, zone) = match text.split_once('%') {
        Some((address, zone)) => (address, Some(zone)),
        None => (text, None),
    };
    match (address.parse().ok()?, zone) {
        (IpAddr::V6(address), Some(zone)) => {
            let index = match zone.parse() {
                Ok(index) => index,
                Err(_) => interface(zone)?,
            };
            Some(SocketAddrV6::new(address, PORT, 0, index).into())
        }
        (IpAddr::V4(_), Some(_)) => None,
        (address, None) => Some((address, PORT).into()),
    }
}

/// The number of an interface.
fn interface(name: &str) -> Option<u32> {
    let kind = rustix::net::SocketType::DGRAM;
    let any = rustix::net::socket(rustix::net::AddressFamily::INET, kind, None).ok()?;
    rustix::net::netdevice::name_to_index(any, name).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn servers_are_those_that_the_c_library_would_ask() {
        for (text, expected) in [
            ("", vec!["127.0.0.1:53"]),
            ("search a\noptions ndots:2\n", vec!["127.0.0.1:53"]),
            (
                "nameserver 10.0.0.1 # first\n  nameserver\t10.0.0.2\n#nameserver 10.0.0.3\n",
                vec!["10.0.0.1:53", "10.0.0.2:53"],
            ),
            (
                "nameserver bad\nnameserver 1.1.1.1%lo\nnameserver ::1\nnameserver fe80::1%1\n",
                vec!["[::1]:53", "[fe80::1%1]:53"],
            ),
            (
                "nameserver 1.1.1.1\nnameserver 1.1.1.2\nnameserver 1.1.1.3\nnameserver 1.1.1.4\n",
                vec!["1.1.1.1:53", "1.1.1.2:53", "1.1.1.3:53"],
            ),
            ("nameserver fe80::1%../lo\n", vec!["127.0.0.1:53"]),
        ] {
            let servers: Vec<String> = name_servers(text).iter().map(ToString::to_string).collect();
            assert_eq!(servers, expected, "{text:?}");
        }
        assert_eq!(
            name_servers("nameserver fe80::1%lo")
                .first()
                .map(ToString::to_string),
            Some("[fe80::1%1]:53".to_owned())
        );
    }

    #[test]
    fn changes_of_the_file_count_after_a_second() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("resolv.conf");
        std::fs::write(&path, "nameserver 10.0.0.1\n").unwrap();
        let mut upstream = Upstream::new(Servers::File(path.clone()));
        let start = Instant::now();
        let first: SocketAddr = "10.0.0.1:53".parse().unwrap();
        let second: SocketAddr = "10.0.0.2:53".parse().unwrap();
        assert_eq!(upstream.order(start), [first]);
        let new = folder.path().join("new");
        std::fs::write(&new, "nameserver 10.0.0.1\nnameserver 10.0.0.2\n").unwrap();
        std::fs::rename(&new, &path).unwrap();
        assert_eq!(upstream.order(start + LOOK / 2), [first]);
        assert_eq!(upstream.order(start + LOOK), [first, second]);
        upstream.note(first, true, start + LOOK);
        assert_eq!(upstream.order(start + LOOK), [second, first]);
        assert_eq!(upstream.order(start + LOOK + AVOID), [first, second]);
        std::fs::remove_file(&path).unwrap();
        assert_eq!(
            upstream.order(start + AVOID + 3 * LOOK),
            ["127.0.0.1:53".parse().unwrap()]
        );
        assert_eq!(Upstream::new(Servers::None).order(start), []);
    }
}
