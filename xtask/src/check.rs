//! `cargo x check`: format, lints, docs, layers.

use std::process::Command;

use anyhow::Result;

use crate::{layers, shell};

/// All of it; what a change must pass before it is shown to anybody.
pub(crate) fn run() -> Result<()> {
    shell::cargo(&["fmt", "--all", "--check"], &[])?;
    layers::check()?;
    shell::cargo(
        &[
            "clippy",
            "--quiet",
            "--release",
            "--workspace",
            "--all-targets",
        ],
        &["--", "-D", "warnings"],
    )?;
    shell::run(
        Command::new(shell::cargo_program())
            .args(["doc", "--quiet", "--release", "--workspace", "--no-deps"])
            // The pages at the top link to private modules, for those who read the code.
            .env(
                "RUSTDOCFLAGS",
                "-D warnings -A rustdoc::private_intra_doc_links",
            )
            .current_dir(shell::workspace()),
    )?;
    println!("format, layers, lints and docs are clean");
    Ok(())
}
