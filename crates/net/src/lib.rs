//! Networks of containers: links, addresses, routes, the firewall, published ports, names.
//!
//! Owns what stands below `<run root>/networks` and `<run root>/published`, the links whose names
//! begin with `knarr`, `kn-` and `kv`, and the nf_tables table `knarr`. Speaks netlink itself: no
//! daemon is asked, and no program run but the plugins of [`cni`]. Everything is synchronous; what
//! the kernel does slowly (taking a link away) is waited for only by [`sweep`], two
//! seconds at most.
//!
//! Called so:
//! ```text
//! engine   networks/<name>.json ([`Network`])  ──▶ [`Plan`] of a container
//! monitor  [`Membership::prepare`]   addresses and names (exclusive symlinks), ports held bound
//!          clone3                    the namespace is there
//!          [`Membership::connect`]   one message makes both ends of the link, one batch the
//!                                    addresses and routes, one transaction opens the ports
//!          … the program runs …      [`Membership::join`], [`part`](Membership::part), …
//!          [`Membership::leave`]     ports closed, names gone; the kernel takes the links away
//! ```
//! Invariants:
//! - A name and a port work before the first instruction of the container's program, and no longer
//!   than the container.
//! - An address is not handed out while a link or a process of its last holder is there.
//! - The firewall's table is a function of files; a container's start changes its elements only.
//!
//! It never decides who may join what: the [`Plan`] says it.

pub mod cni;
mod conntrack;
pub mod device;
pub mod dns;
pub mod driver;
mod error;
pub mod firewall;
mod host;
mod join;
pub mod lease;
mod netlink;
pub mod network;
mod nft;
pub mod plan;
pub mod policy;
pub mod port;
mod route;
mod subnet;
#[cfg(test)]
mod testing;
mod weak;

pub use error::{Error, Result};
pub use host::{firewall_sees_bridged, free_bridge_name, remove, uplink};
pub use join::{Membership, sweep};
pub use netlink::{open_namespace, own_namespace, within};
pub use network::Network;
pub use plan::{Attached, Endpoint, Joint, Plan};
pub use route::{Mac, loopback_up};
pub use subnet::Subnet;
