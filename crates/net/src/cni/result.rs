//! What plugins answer (specification, "ADD Success"), of any version from 0.3.0 on.

use serde::{Deserialize, Serialize};

/// The result of attaching a container.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Attached {
    /// The interfaces made, on both sides.
    #[serde(deserialize_with = "nullable")]
    pub interfaces: Vec<Interface>,
    /// The addresses given.
    #[serde(deserialize_with = "nullable")]
    pub ips: Vec<Address>,
    /// The routes set.
    #[serde(deserialize_with = "nullable")]
    pub routes: Vec<Route>,
    /// The name servers to use.
    pub dns: Dns,
}

/// An interface.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Interface {
    /// Its name.
    pub name: String,
    /// Its hardware address.
    pub mac: String,
    /// Its MTU in bytes; 0 is unknown (before 1.1).
    pub mtu: u32,
    /// The namespace it is in; empty for the host's.
    pub sandbox: String,
}

/// An address.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Address {
    /// With its prefix length: `10.1.0.5/16`.
    pub address: String,
    /// The way out; empty where there is none.
    pub gateway: String,
    /// Of which of the interfaces.
    pub interface: Option<usize>,
}

/// A route.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Route {
    /// Where to, with its prefix length.
    pub dst: String,
    /// By which gateway; empty for the address's own.
    pub gw: String,
}

/// Name servers.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Dns {
    /// Their addresses, in order.
    #[serde(deserialize_with = "nullable")]
    pub nameservers: Vec<String>,
    /// The local domain.
    pub domain: String,
    /// Domains to search.
    #[serde(deserialize_with = "nullable")]
    pub search: Vec<String>,
    /// As resolv.conf(5) has them.
    #[serde(deserialize_with = "nullable")]
    pub options: Vec<String>,
}

/// Programs in Go write `null` for an empty list.
fn nullable<'de, D, T>(deserializer: D) -> Result<T, D::Error>
where
    D: serde::Deserializer<'de>,
    T: Default + Deserialize<'de>,
{
    Ok(Option::deserialize(deserializer)?.unwrap_or_default())
}
