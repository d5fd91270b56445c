//! **The only `unsafe` of Knarr**: one typed wrapper per system call that rustix lacks.
//!
//! Each wrapper does one call, takes and gives owned or borrowed file descriptors, and fails with
//! a [`Failure`] that names the call. No policy, no paths of its own, no allocation where a caller
//! between `clone3` and `execve` needs it (each such function says so).

pub mod bpf;
pub mod child;
pub mod clone;
pub mod entry;
mod failure;
pub mod heap;
pub mod loopdev;
pub mod mount;
pub mod namespace;
pub mod pidfd;
pub mod process;
pub mod schedule;
pub mod seccomp;
pub mod spawn;
pub mod tripwire;
pub mod writeback;
pub mod xtables;

pub use failure::{Failure, Result};
pub use rustix;
