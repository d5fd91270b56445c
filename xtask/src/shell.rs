//! Running cargo and other programs.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, ensure};

/// The folder of the checkout.
pub(crate) fn workspace() -> PathBuf {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    here.parent().unwrap_or(here).to_owned()
}

/// `cargo ARGS MORE` in the checkout, with its output shown.
pub(crate) fn cargo(args: &[&str], more: &[&str]) -> Result<()> {
    run(Command::new(cargo_program())
        .args(args)
        .args(more)
        .current_dir(workspace()))
}

/// The cargo that runs this program.
pub(crate) fn cargo_program() -> String {
    std::env::var("CARGO").unwrap_or_else(|_| "cargo".to_owned())
}

/// Runs a program to its end with its output shown; fails if it fails.
pub(crate) fn run(command: &mut Command) -> Result<()> {
    let status = command
        .status()
        .with_context(|| format!("cannot run {command:?}"))?;
    ensure!(status.success(), "{command:?} failed: {status}");
    Ok(())
}

/// Builds what is installed, statically linked, into `target/release`.
///
/// `crt-static` is given to the last crate only: for the whole build it would break proc-macros on
/// the gnu target.
pub(crate) fn build_binaries() -> Result<()> {
    // Whoever starts knarr-oci waits for it: at a fixed address it has nothing to relocate first.
    for (package, binary, more) in [
        ("knarr-monitor-bin", "knarr-monitor", &[][..]),
        ("knarr-oci", "knarr-oci", &["-C", "relocation-model=static"]),
        ("knarr", "knarr", &[]),
    ] {
        cargo(
            &[
                "rustc",
                "--quiet",
                "--release",
                "--package",
                package,
                "--bin",
                binary,
                "--",
            ],
            &[&["-C", "target-feature=+crt-static"], more].concat(),
        )?;
    }
    Ok(())
}

/// Builds knarr-oci once more with switches for its defences: for tests that see attacks succeed.
pub(crate) fn build_weak_binary() -> Result<()> {
    cargo(
        &[
            "rustc",
            "--quiet",
            "--release",
            "--package",
            "knarr-oci",
            "--features",
            "weak",
            "--bin",
            "knarr-oci-weak",
            "--",
        ],
        &["-C", "target-feature=+crt-static"],
    )
}

/// Copies the binaries to `PREFIX/bin`: a copy is an installation.
pub(crate) fn install(prefix: &str) -> Result<()> {
    build_binaries()?;
    for binary in ["knarr", "knarr-monitor", "knarr-oci"] {
        let from = workspace().join("target/release").join(binary);
        run(Command::new("install")
            .arg("-D")
            .arg(from)
            .arg(format!("{prefix}/bin/{binary}")))?;
    }
    Ok(())
}
