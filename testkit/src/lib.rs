//! What tests and benchmarks stand on: real images made from Debian's packages, a real registry
//! on loopback, and a private Knarr whose leftovers are counted.
//!
//! - [`Knarr`] runs the built binaries on roots of its own and, when dropped, fails the test if a
//!   process, cgroup, mount or folder is left that nobody owns.
//! - [`fixture`] makes images once and keeps them in `target/fixtures`.
//! - [`oci::Oci`] is `knarr-oci`, or a peer with the same command line, with bundles of its own.
//! - [`private_network`] gives every test a network namespace of its own; [`Netns`] makes more.
//! - [`Registry`] is Debian's `docker-registry` on a free loopback port; [`token::Tokens`] signs what it
//!   believes.
//! - [`eventually`] waits for a condition with a deadline; nothing here sleeps and hopes.
//! - [`skip`] tells by name why a test cannot run here; `cargo x test` counts these lines and
//!   fails on one that it did not expect.

pub mod fixture;
mod image;
mod knarr;
pub mod net;
pub mod oci;
mod registry;
mod residue;
pub mod token;
mod wait;

pub use image::{ImageBuilder, sha256, tar_folder};
pub use knarr::{Knarr, Output};
pub use net::{Netns, private_network};
pub use registry::Registry;
pub use residue::Process;
pub use wait::{eventually, wait_for};

use std::path::PathBuf;

/// The folder of the checkout.
pub fn workspace() -> PathBuf {
    let here = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    here.parent().map(PathBuf::from).unwrap_or(here)
}

/// The folder of what is built: `KNARR_TARGET_DIR`, else `target/` of the checkout.
pub fn target() -> PathBuf {
    std::env::var_os("KNARR_TARGET_DIR").map_or_else(|| workspace().join("target"), PathBuf::from)
}

/// One of the built binaries, `target/release/<name>`.
pub fn binary(name: &str) -> PathBuf {
    target().join("release").join(name)
}

/// Prints the line that `cargo x test` counts: this test cannot run here, and why.
pub fn skip(test: &str, reason: &str) {
    eprintln_line(&format!("SKIP {test}: {reason}"));
}

#[expect(
    clippy::print_stderr,
    reason = "the one place where the test kit talks"
)]
fn eprintln_line(line: &str) {
    eprintln!("{line}");
}

/// Whether a program is on the PATH.
pub fn has_program(name: &str) -> bool {
    std::env::var_os("PATH")
        .is_some_and(|path| std::env::split_paths(&path).any(|dir| dir.join(name).is_file()))
}
