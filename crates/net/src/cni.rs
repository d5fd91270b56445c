//! Networks that standard CNI plugins make: programs that are given a network namespace and a
//! configuration, and answer with addresses (CNI specification 1.0.0 and 1.1.0).
//!
//! ```text
//! /etc/cni/net.d/10-mynet.conflist      List: {"cniVersion", "name", "plugins": [{"type"}, …]}
//! /usr/lib/cni/bridge                   one program per type
//! <cache>/<network>/<container>:<interface>.json   what ADD was called with and what it gave
//!
//! Runner::add    type 1 ── result ──▶ type 2 ── result ──▶ …   its result is the network's
//! Runner::del    the other way round, with the cached result
//! Runner::check  as add, with the cached result;  Runner::gc, Runner::status: specification 1.1
//! ```
//!
//! A plugin sees the variables of the specification and `PATH`, nothing else of the caller's
//! environment; it gets no descriptor but its three. What it writes is read up to a bound, and one
//! that does not end is killed with what it runs. Versions from 0.3.0 on are spoken.
//!
//! A failed ADD is followed by DEL, so that nothing is left. DEL goes on when a plugin fails, and
//! tells of all that did.

mod error;
mod list;
mod plugin;
mod result;
mod runner;

#[cfg(test)]
mod tests;

pub use error::{Error, Result};
pub use list::{List, Version, load_all};
pub use result::{Address, Attached, Dns, Interface, Route};
pub use runner::{Attachment, Runner};
