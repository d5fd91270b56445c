//! What people type: Docker's command line, over the engine.
//!
//! Owns words only: flags, tables, templates, the user's terminal, exit codes. Every command is one
//! file of [`command`] and the same three steps: flags → a request to `engine` or `image` → output.
//! It holds no state, makes no decision about containers, and never touches a kernel object other
//! than its own standard streams, terminal and signals.
//!
//! ```text
//! argv ─ command ─┬─ flag       pflag's rules; the table of flags is data: parser, help, refusals
//!                 ├─ request    run's and create's flags → Docker's ContainerConfig, HostConfig
//!                 ├─ engine, image
//!                 ├─ attachment, terminal, progress      live: streams, raw mode, bars
//!                 └─ format ─ template, table, units, time   Docker's output, Go's templates
//! ```
//!
//! Invariants:
//! - Only the called command's flags are looked at; nothing is allocated for the others.
//! - A flag or command that Docker knows is served or refused by its name, never ignored.
//! - No threads and no processes are made here (a pull's threads are the image store's).
//! - A failure is a report, printed once, by [`command::main`]; the exit code is Docker's.

mod attachment;
mod command;
mod duration;
mod failure;
mod flag;
mod format;
mod output;
mod progress;
mod request;
mod suggest;
mod table;
mod template;
mod terminal;
mod time;
mod units;

use std::process::ExitCode;

/// Does what the command line says; the whole of `main`.
#[must_use]
pub fn main() -> ExitCode {
    let mut args = Vec::new();
    for arg in std::env::args_os().skip(1) {
        match arg.into_string() {
            Ok(arg) => args.push(arg),
            Err(arg) => {
                let shown = arg.to_string_lossy();
                output::note(&format!("error: the argument `{shown}` is not UTF-8"));
                return ExitCode::from(125);
            }
        }
    }
    ExitCode::from(command::main(&args))
}
