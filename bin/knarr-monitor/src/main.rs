//! The process beside every container; see the crate `knarr_monitor`.

use std::process::ExitCode;

fn main() -> ExitCode {
    knarr_monitor::main()
}
