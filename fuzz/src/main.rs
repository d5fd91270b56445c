//! `cargo x fuzz [TARGET] [SECONDS]`: one target, or all of them in turn.
#![expect(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a program for people"
)]

use std::process::ExitCode;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use knarr_fuzz::{TARGETS, fuzz};

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let seconds = args.iter().find_map(|arg| arg.parse().ok()).unwrap_or(60);
    let wanted: Vec<&String> = args
        .iter()
        .filter(|arg| arg.parse::<u64>().is_err())
        .collect();
    let known = |name: &&String| TARGETS.iter().any(|target| target.name == name.as_str());
    if let Some(other) = wanted.iter().find(|name| !known(name)) {
        let names: Vec<&str> = TARGETS.iter().map(|target| target.name).collect();
        eprintln!(
            "error: `{other}` is no target; there are {}",
            names.join(", ")
        );
        return ExitCode::FAILURE;
    }
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    let seed = now.map(|now| now.as_secs()).unwrap_or_default();
    let mut code = ExitCode::SUCCESS;
    for target in &TARGETS {
        if !wanted.is_empty() && !wanted.iter().any(|name| *name == target.name) {
            continue;
        }
        let deadline = Instant::now() + Duration::from_secs(seconds);
        let mut inputs = 0;
        let found = fuzz(target, seed, |count| {
            inputs = count;
            Instant::now() < deadline
        });
        println!("{}: {inputs} inputs, seed {seed}", target.name);
        if let Some(finding) = found {
            code = ExitCode::FAILURE;
            let file = format!("target/fuzz/{}-{seed}", target.name);
            let kept = std::fs::create_dir_all("target/fuzz")
                .and_then(|()| std::fs::write(&file, &finding.input));
            eprintln!("  {}\n  the input is in {file} ({kept:?})", finding.what);
        }
    }
    code
}
