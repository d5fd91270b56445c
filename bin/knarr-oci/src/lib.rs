//! `knarr-oci`: containers for other engines, behind runc's command line.
//!
//! containerd, dockerd, CRI-O and podman call it exactly as they call runc: the same commands,
//! flags, output, exit codes and the sentences that they look for in errors. What it does is
//! `knarr_runtime` and `knarr_cgroup`; here are only the words, and the state that outlives a call.
//!
//! ```text
//! <root>/<id>/           mode 0700, made by `create` and `run`; its flock is held while it changes
//!   state.json           what the container is (see `state`); phase `creating` until it is whole
//!   gate                 socket that the container's process listens at until `start` connects
//! <root>/.knarr/seccomp  compiled filters
//! ```
//!
//! Invariants:
//! * Nothing stays behind to serve a container: its truth is the kernel's and `state.json`'s.
//! * A call that dies half-way leaves what the next call that touches the container takes away.
//! * What enters a container runs from a read-only mount of this program (`knarr_runtime::seal`).
#![expect(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a program for people"
)]

mod args;
mod bundle;
mod cgroups;
mod clock;
mod command;
mod container;
mod create;
mod delete;
mod events;
mod exec;
mod failure;
mod features;
mod foreground;
mod kill;
mod list;
mod log;
mod processes;
mod rootless;
mod skeleton;
mod start;
mod state;
mod update;

use std::process::ExitCode;

/// All of it: understands the command line and does what it says.
pub fn main() -> ExitCode {
    // Nobody of lesser rights shall look into a process that may be inside a container soon.
    if !knarr_runtime::weak::off("seal") {
        knarr_runtime::seal::undumpable().ok();
    }
    command::run()
}
