//! Containers of a busybox root, made, entered and attacked. Needs root; passed over without.

#![expect(
    clippy::unwrap_used,
    clippy::panic,
    clippy::print_stderr,
    reason = "a test says what it saw by failing"
)]

mod attack;
mod create;
mod diagnose;
mod exec;
mod plan;
mod speed;
mod support;
mod terminal;

/// Whatever these tests start, its child must not allocate between clone and exec.
#[global_allocator]
static HEAP: knarr_sys::tripwire::Tripwire = knarr_sys::tripwire::Tripwire::new();
