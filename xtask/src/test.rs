//! `cargo x test`: everything that can be tested here.

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader, Write as _};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context as _, Result, bail, ensure};

use crate::{packages, shell, vm};

/// Tests that may be skipped where the machine lacks something, by the name in their `SKIP` line.
/// Any other skip fails the run: a skip is a pass that lies.
const EXPECTED_SKIPS: &[&str] = &[];

/// Builds once (release), runs unit, contract and end-to-end tests, and counts.
pub(crate) fn run(filter: &[&str]) -> Result<()> {
    packages::install(packages::BUILD)?;
    packages::install(packages::TEST)?;
    let start = Instant::now();
    shell::build_binaries()?;
    shell::build_weak_binary()?;
    println!("binaries built in {} s", start.elapsed().as_secs());
    make_fixtures()?;
    println!("fixtures made after {} s", start.elapsed().as_secs());
    let mut totals = cargo_test(filter, &[])?;
    println!("tests took {} s, build included", start.elapsed().as_secs());
    // What is chosen by cargo's own flags is not known by name.
    if filter.iter().all(|word| !word.starts_with('-')) {
        match vm::run(filter) {
            Ok(more) => totals.add(more),
            Err(error) if error.is::<vm::Unavailable>() => println!("{error}"),
            Err(error) => {
                println!("{error:#}");
                totals.failed += 1;
            }
        }
    }
    totals.conclude()
}

/// Renews golden files.
pub(crate) fn bless() -> Result<()> {
    shell::build_binaries()?;
    shell::build_weak_binary()?;
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
pub(crate) fn make_fixtures() -> Result<()> {
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

/// What test programs said.
#[derive(Default)]
pub(crate) struct Totals {
    pub(crate) success: bool,
    pub(crate) passed: u64,
    pub(crate) failed: u64,
    pub(crate) skips: BTreeSet<String>,
}

impl Totals {
    /// Reads the output of test programs to its end: counts, shows what fails, keeps all of it in a
    /// file, and hands on each line.
    pub(crate) fn read(
        &mut self,
        output: impl BufRead,
        log: &Path,
        mut each: impl FnMut(&str),
    ) -> Result<()> {
        let mut log = std::fs::File::create(log)?;
        let mut in_failures = false;
        for line in output.split(b'\n') {
            let line = String::from_utf8_lossy(&line?).into_owned();
            let line = line.trim_end_matches('\r');
            writeln!(log, "{line}")?;
            each(line);
            if let Some(at) = line.find("SKIP ") {
                self.skips
                    .insert(line.get(at..).unwrap_or_default().to_owned());
            }
            match line {
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
                self.passed += count(" passed");
                self.failed += count(" failed");
            } else if in_failures || line.ends_with("... FAILED") {
                println!("{line}");
            }
        }
        Ok(())
    }

    /// Takes over what other programs said.
    fn add(&mut self, other: Self) {
        self.success &= other.success;
        self.passed += other.passed;
        self.failed += other.failed;
        self.skips.extend(other.skips);
    }

    /// Prints the plain closing line that any runner can read, and fails where something failed.
    pub(crate) fn conclude(&self) -> Result<()> {
        for skip in &self.skips {
            println!("{skip}");
        }
        println!(
            "{} passed, {} failed, {} skipped",
            self.passed,
            self.failed,
            self.skips.len()
        );
        let unexpected: Vec<_> = self
            .skips
            .iter()
            .filter(|line| {
                !EXPECTED_SKIPS
                    .iter()
                    .any(|name| line.contains(&format!(" {name}:")))
            })
            .collect();
        ensure!(self.success && self.failed == 0, "tests failed");
        ensure!(self.passed > 0, "no test ran");
        ensure!(
            unexpected.is_empty(),
            "tests were skipped that should run here: {unexpected:#?}"
        );
        Ok(())
    }
}

/// `cargo test --release --workspace`; shows what fails.
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
    let log = shell::workspace().join("target/test.log");
    let mut totals = Totals::default();
    let output = child.stdout.take().context("no output")?;
    totals.read(BufReader::new(output), &log, |_| {})?;
    totals.success = child.wait()?.success();
    if !totals.success && totals.failed == 0 {
        bail!(
            "the tests could not be built or run; see above and {}",
            log.display()
        );
    }
    Ok(totals)
}
