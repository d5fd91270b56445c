//! Names inside a container: a small server at 127.0.0.11 that the container's monitor hosts.
//!
//! ```text
//! program ── 127.0.0.11:53 ──▶ nat table in the container ──▶ 127.0.0.11:random   (Sockets)
//!                                                                  │ Query::parse
//!            names of the container's networks    ◀── Zone ────────┤ answer::decide
//!            <run root>/networks/<net>/names/<name>/<address>      │
//!            the host's servers, from the host's network namespace ◀── Exchange
//! ```
//!
//! Owns: DNS messages, whom a question is for, how it is forwarded. Never: caches (a name exists
//! from its symlink's creation to its removal), interprets what other servers answer, or resolves
//! recursively.
//!
//! A [`Responder`] is one descriptor for its host's event loop: when that is readable or
//! [`Responder::next_deadline`] has come, [`Responder::turn`] does what there is to do and returns.
//! Nothing blocks, and what a container can make it hold is bounded: questions under way,
//! connections, the bytes of each.

mod answer;
mod connection;
mod exchange;
pub mod message;
mod nat;
mod responder;
mod sockets;
mod upstream;
mod zone;

#[cfg(test)]
mod oracle;
#[cfg(test)]
mod tests;

pub(crate) use nat::redirect;
pub use responder::{Config, Responder};
pub use sockets::{ADDRESS, Sockets};
pub use upstream::{Servers, name_servers};
