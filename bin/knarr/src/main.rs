//! `knarr`: what people type.

use std::process::ExitCode;

fn main() -> ExitCode {
    knarr_cli::main()
}
