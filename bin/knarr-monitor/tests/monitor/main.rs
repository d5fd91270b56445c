//! The monitor's program, run as the engine runs it, on containers made of busybox.

#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::exit,
    clippy::print_stderr,
    reason = "a test fails by panicking, and talks"
)]

mod cost;
mod death;
mod life;
mod sandbox;
