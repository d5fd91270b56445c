//! `cargo x …`: all developer tooling of Knarr, one command each.
//!
//! Everything a command needs beyond the Rust toolchain it installs itself from Debian's packages.
#![expect(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a program for people"
)]

mod check;
mod demo;
mod layers;
mod packages;
mod shell;
mod test;
mod vm;

use std::process::ExitCode;

use anyhow::{Result, bail};

const USAGE: &str = "\
cargo x COMMAND

  demo [--debian]   build, then run a first container (with --debian: a web server on a real image)
  test [FILTER]     install what the tests need, build, run everything that can be tested here
  vm [FILTER]       the tests that need another machine: Debian 12 with systemd and pure cgroup v2 under
                    qemu, part of `test` (with --shell: log in there)
  check             format, lints, docs, layers
  bench [WHAT]      measure beside the peers; without WHAT: run and exec (an unknown WHAT lists all)
  fuzz [TARGET] [SECONDS]  feed the parsers of foreign bytes with what they should not have to read
  bless             renew golden files; read the diff before committing
  build             the static binaries in target/release
  install [PREFIX]  copy the binaries to PREFIX/bin (/usr/local)";

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    match run(&args.iter().map(String::as_str).collect::<Vec<_>>()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(args: &[&str]) -> Result<()> {
    match args {
        ["demo"] => demo::host(),
        ["demo", "--debian"] => demo::debian(),
        ["test", filter @ ..] => test::run(filter),
        ["vm", filter @ ..] => vm::command(filter),
        ["check"] => check::run(),
        ["bless"] => test::bless(),
        ["fuzz", what @ ..] => shell::cargo(
            &[
                "run",
                "--quiet",
                "--release",
                "--package",
                "knarr-fuzz",
                "--",
            ],
            what,
        ),
        ["build"] => shell::build_binaries(),
        ["install"] => shell::install("/usr/local"),
        ["install", prefix] => shell::install(prefix),
        ["bench", what @ ..] => {
            packages::install(packages::BENCH)?;
            shell::build_binaries()?;
            shell::cargo(
                &[
                    "run",
                    "--quiet",
                    "--release",
                    "--package",
                    "knarr-bench",
                    "--",
                ],
                what,
            )
        }
        [] | ["help" | "--help" | "-h"] => {
            println!("{USAGE}");
            Ok(())
        }
        [other, ..] => bail!("`{other}` is not a command\n\n{USAGE}"),
    }
}
