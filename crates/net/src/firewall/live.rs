//! What Knarr's table holds in the kernel, whatever the files say.

use std::net::IpAddr;
use std::path::Path;

use super::{PORTS4, PORTS6, Published, RANGES4, RANGES6, table};
use crate::Result;
use crate::nft::{self, Ownership};
use crate::policy::Ruleset;
use crate::port::Protocol;

/// The table as it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Live {
    /// Its name, in the family inet.
    pub table: String,
    /// It is there at all.
    pub present: bool,
    /// Nobody but Knarr's monitors can change it now.
    pub owned: bool,
    /// The ports that are translated.
    pub published: Vec<Published>,
}

/// Reads the table out of the rules.
///
/// # Errors
/// When the kernel does not tell whose it is.
pub fn live(run_root: &Path, rules: &Ruleset) -> Result<Live> {
    let table = table(run_root);
    let ownership = nft::ownership(&table)?;
    let mut published = Vec::new();
    for (set, ipv6) in [
        (&PORTS4, false),
        (&RANGES4, false),
        (&PORTS6, true),
        (&RANGES6, true),
    ] {
        let all = rules.elements(&table, set.name);
        published.extend(all.filter_map(|(key, end, data)| element(key, end, data, ipv6)));
    }
    Ok(Live {
        present: ownership != Ownership::Missing,
        owned: matches!(ownership, Ownership::Owned(_)),
        table,
        published,
    })
}

/// The other way round than [`Published::elements`].
fn element(key: &[u8], end: &[u8], data: &[u8], ipv6: bool) -> Option<Published> {
    let length = if ipv6 { 16 } else { 4 };
    let address = |bytes: &[u8]| -> Option<IpAddr> {
        let bytes = bytes.get(..length)?;
        if ipv6 {
            Some(IpAddr::from(<[u8; 16]>::try_from(bytes).ok()?))
        } else {
            Some(IpAddr::from(<[u8; 4]>::try_from(bytes).ok()?))
        }
    };
    let port = |bytes: &[u8], at: usize| -> Option<u16> {
        Some(u16::from_be_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
    };
    let number = *key.get(length)?;
    let (first, last) = (port(key, length + 4)?, port(end, length + 4)?);
    Some(Published {
        protocol: [Protocol::Tcp, Protocol::Udp, Protocol::Sctp]
            .into_iter()
            .find(|protocol| protocol.number() == number)?,
        host: address(key)?,
        host_port: first,
        count: last.checked_sub(first)?.checked_add(1)?,
        target: address(data)?,
        // A range keeps its numbers.
        target_port: port(data, length).unwrap_or(first),
    })
}
