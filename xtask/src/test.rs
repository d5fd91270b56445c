//! `cargo x test`: everything that can be tested here.

use std::collections::BTreeSet;
use std::io::{BufRead as _, BufReader, Write as _};
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context as _, Result, bail, ensure};

use crate::{packages, shell};

/// Tests that may be skipped where the machine lacks something, by the name in their `SKIP` line.
/// Any other skip fails the run: a skip is a pass that lies.
const EXPECTED_SKIPS: &[&str] = &[];

/// Builds once (release), runs unit, contract and end-to-end tests, and counts.
pub(crate) fn run(filter: &[&str]) -> Result<()> {
    packages::install(packages::BUILD)?;
    packages::install(packages::TEST)?;
    let start = Instant::now();
    shell::build_binaries()?;
    println!("binaries built in {} s", start.elapsed().as_secs());
    make_fixtures()?;
    println!("fixtures made after {} s", start.elapsed().as_secs());
    let totals = cargo_test(filter, &[])?;
    println!("tests took {} s, build included", start.elapsed().as_secs());
    for skip in &totals.skips {
        println!("{skip}");
    }
    // The plain closing line that any runner can read.
    println!(
        "{} passed, {} failed, {} skipped",
        totals.passed,
        totals.failed,
        totals.skips.len()
    );
    let unexpected: Vec<_> = totals
        .skips
        .iter()
        .filter(|line| {
            !EXPECTED_SKIPS
                .iter()
                .any(|name| line.contains(&format!(" {name}:")))
        })
        .collect();
    ensure!(totals.success && totals.failed == 0, "tests failed");
    ensure!(totals.passed > 0, "no test ran");
    ensure!(
        unexpected.is_empty(),
        "tests were skipped that should run here: {unexpected:#?}"
    );
    Ok(())
}

/// Renews golden files.
pub(crate) fn bless() -> Result<()> {
    shell::build_binaries()?;
    make_fixtures()?;
    let totals = cargo_test(&[], &[("KNARR_BLESS", "1")])?;
    ensure!(
        totals.success,
        "tests failed for other reasons than golden files"
    );
    println!("golden files renewed: read `git diff` before committing");
    Ok(())
}

/// The images that tests stand on, made from packages once.
fn make_fixtures() -> Result<()> {
    shell::cargo(
        &[
            "run",
            "--quiet",
            "--release",
            "--package",
            "knarr-testkit",
            "--example",
            "demo-registry",
            "--",
        ],
        &["--make-only"],
    )
}

#[derive(Default)]
struct Totals {
    success: bool,
    passed: u64,
    failed: u64,
    skips: BTreeSet<String>,
}

/// `cargo test --release --workspace`; shows what fails, and one line for each test binary.
fn cargo_test(filter: &[&str], env: &[(&str, &str)]) -> Result<Totals> {
    let mut child = Command::new(shell::cargo_program())
        .args(["test", "--release", "--workspace", "--no-fail-fast"])
        .args(filter)
        .args(["--", "--show-output"])
        .envs(env.iter().copied())
        .env(
            "KNARR_TEST_DEBIAN_TAR",
            shell::workspace().join("target/fixtures/debian-rootfs.tar"),
        )
        .current_dir(shell::workspace())
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::inherit())
        .spawn()
        .context("cannot run cargo test")?;
    let log_path = shell::workspace().join("target/test.log");
    let mut log = std::fs::File::create(&log_path)?;
    let mut totals = Totals::default();
    let mut in_failures = false;
    let output = child.stdout.take().context("no output")?;
    for line in BufReader::new(output).split(b'\n') {
        let line = String::from_utf8_lossy(&line?).into_owned();
        writeln!(log, "{line}")?;
        if let Some(at) = line.find("SKIP ") {
            totals
                .skips
                .insert(line.get(at..).unwrap_or_default().to_owned());
        }
        match line.as_str() {
            "failures:" => in_failures = true,
            "successes:" => in_failures = false,
            _ => {}
        }
        if let Some(result) = line.strip_prefix("test result: ") {
            in_failures = false;
            let count = |word: &str| -> u64 {
                result
                    .split([';', '.'])
                    .find_map(|part| part.trim().strip_suffix(word)?.trim().parse().ok())
                    .unwrap_or(0)
            };
            totals.passed += count(" passed");
            totals.failed += count(" failed");
        } else if in_failures || line.ends_with("... FAILED") {
            println!("{line}");
        }
    }
    totals.success = child.wait()?.success();
    if !totals.success && totals.failed == 0 {
        bail!(
            "the tests could not be built or run; see above and {}",
            log_path.display()
        );
    }
    Ok(totals)
}
