//! The words of the field as Rust types: parse and print, no I/O.
//!
//! Owns the OCI runtime, image and distribution types, Docker's own configuration, and the
//! newtypes every other crate speaks in ([`Digest`], [`Reference`], [`Platform`],
//! [`ContainerId`]). It never touches a file, a socket or the clock.
//!
//! A value of an identifier type exists only if it was parsed, so holding one means it is well
//! formed and safe to use as a file name.
//!
//! ```
//! use knarr_spec::Digest;
//! let text = format!("sha256:{}", "0".repeat(64));
//! assert_eq!(text.parse::<Digest>().unwrap().to_string(), text);
//! assert!("sha256:../../etc/passwd".parse::<Digest>().is_err());
//! ```

mod digest;
pub mod docker;
mod fnv;
mod id;
pub mod image;
pub mod manifest;
mod platform;
mod reference;
pub mod runtime;
pub mod signal;

pub use digest::{Digest, DigestError};
pub use fnv::fnv1a;
pub use id::{ContainerId, ContainerName, IdError};
pub use platform::{Platform, PlatformError};
pub use reference::{Reference, ReferenceError};
