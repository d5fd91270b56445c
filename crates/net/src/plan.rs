//! What a container's network shall be ([`Plan`]), and what it is ([`Attached`]).

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::dns::Servers;
use crate::network::Network;
use crate::port::{Bound, PortRequest};
use crate::route::Mac;

/// Everything about the network of one container, decided.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Plan {
    /// The networks that it joins, in order.
    pub endpoints: Vec<Endpoint>,
    /// What is published.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ports: Vec<PortRequest>,
    /// Its `/etc/hosts`, where that is Knarr's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hosts: Option<Hosts>,
    /// Who is asked for names that none of its networks has.
    #[serde(default)]
    pub servers: Servers,
}

/// The file that tells the container its own names.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hosts {
    /// On the host.
    pub path: PathBuf,
    /// What stands above the container's own lines.
    pub head: String,
    /// What stands behind each of its addresses: `web.example.org web`.
    pub names: String,
}

/// One network that a container joins.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Endpoint {
    /// Which.
    pub network: Network,
    /// `--ip`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ipv4: Option<Ipv4Addr>,
    /// `--ip6`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ipv6: Option<Ipv6Addr>,
    /// `--mac-address`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mac: Option<Mac>,
    /// The names that lead to it on this network, lower case.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub names: Vec<String>,
    /// The highest one gives the default route.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub gateway_priority: i32,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes references")]
fn is_zero(value: &i32) -> bool {
    *value == 0
}

/// A container's network as it is. Kept in its `state.json`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Attached {
    /// The networks that it is on, in the order in which it joined.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub endpoints: Vec<Joint>,
    /// What is published.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub ports: Vec<Bound>,
}

/// A container's place on one network.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Joint {
    /// The network's name.
    pub network: String,
    /// The network's id.
    pub network_id: String,
    /// The link in the container: `eth0`.
    pub interface: String,
    /// The link on the host, where there is one.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub link: String,
    /// Its Ethernet address.
    pub mac: Mac,
    /// Its address.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ipv4: Option<Place<Ipv4Addr>>,
    /// Its IPv6 address.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ipv6: Option<Place<Ipv6Addr>>,
    /// The names that lead to it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub names: Vec<String>,
    /// Nothing leaves the network.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub internal: bool,
    /// The highest one gives the default route.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub gateway_priority: i32,
    /// Its ports can be published: it is behind this host.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub behind_host: bool,
}

/// An address on a network.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Place<A> {
    /// The address.
    pub address: A,
    /// How many leading bits name the network.
    pub prefix: u8,
    /// The way out.
    #[serde(default = "none", skip_serializing_if = "Option::is_none")]
    pub gateway: Option<A>,
}

fn none<A>() -> Option<A> {
    None
}

impl Joint {
    /// All its addresses.
    pub fn addresses(&self) -> impl Iterator<Item = IpAddr> {
        let ipv4 = self.ipv4.map(|place| place.address.into());
        let ipv6 = self.ipv6.map(|place| place.address.into());
        ipv4.into_iter().chain(ipv6)
    }
}

impl Attached {
    /// Whether there is nothing to tell.
    pub fn is_empty(&self) -> bool {
        self.endpoints.is_empty() && self.ports.is_empty()
    }

    /// The place on a network.
    pub fn on(&self, network: &str) -> Option<&Joint> {
        self.endpoints.iter().find(|joint| joint.network == network)
    }

    /// The place that gives the default route of a family: that with the highest priority, and of
    /// those the one whose network's name comes first, as Docker has it.
    pub fn way_out(&self, ipv6: bool) -> Option<&Joint> {
        self.endpoints
            .iter()
            .filter(|joint| !joint.internal)
            .filter(|joint| {
                if ipv6 {
                    joint.ipv6.is_some_and(|place| place.gateway.is_some())
                } else {
                    joint.ipv4.is_some_and(|place| place.gateway.is_some())
                }
            })
            .min_by_key(|joint| (-i64::from(joint.gateway_priority), joint.network.clone()))
    }

    /// The place that published ports lead to.
    pub(crate) fn behind_host(&self) -> Option<&Joint> {
        self.endpoints
            .iter()
            .filter(|joint| joint.behind_host)
            .min_by_key(|joint| (-i64::from(joint.gateway_priority), joint.network.clone()))
    }

    /// The lines of `/etc/hosts` that tell the container its own names.
    pub fn hosts_lines(&self, names: &str) -> String {
        self.endpoints
            .iter()
            .flat_map(Joint::addresses)
            .map(|address| format!("{address}\t{names}\n"))
            .collect()
    }
}
