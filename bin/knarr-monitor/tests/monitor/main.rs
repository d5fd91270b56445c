//! The monitor's program, run as the engine runs it, on containers made of busybox.

mod cost;
mod death;
mod life;
mod sandbox;
