//! Containers of a busybox root, made, entered and attacked. Needs root; passed over without.

mod attack;
mod create;
mod diagnose;
mod exec;
mod plan;
mod support;
mod terminal;
