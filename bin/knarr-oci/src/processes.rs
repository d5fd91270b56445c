//! `ps`.

use std::process::{Command, ExitCode};

use crate::args::Parsed;
use crate::command::Globals;
use crate::container::Container;
use crate::failure::{Failure, Result};

/// `ps`.
pub(crate) fn ps(globals: &mut Globals, parsed: &Parsed) -> Result<ExitCode> {
    let (id, options) = match parsed.rest.split_first() {
        Some((id, options)) => (id.as_str(), options),
        None => ("", [].as_slice()),
    };
    let container = Container::open(&globals.root, id)?;
    container.may("list the processes of")?;
    let pids: Vec<i32> = match container.living_cgroup()? {
        Some(cgroup) => cgroup
            .processes()?
            .iter()
            .map(|pid| pid.as_raw_nonzero().get())
            .collect(),
        None => Vec::new(),
    };
    match parsed.value("format").unwrap_or("table") {
        "json" => {
            println!("{}", serde_json::to_string(&pids).unwrap_or_default());
            Ok(ExitCode::SUCCESS)
        }
        "table" => table(&pids, options),
        _ => Err(Failure::new("invalid format option")),
    }
}

/// The lines of the host's `ps` that are the container's.
fn table(pids: &[i32], options: &[String]) -> Result<ExitCode> {
    let default = ["-ef".to_owned()];
    let options = if options.is_empty() {
        default.as_slice()
    } else {
        options
    };
    let output = Command::new("ps")
        .args(options)
        .output()
        .map_err(|error| Failure::new(format!("cannot run ps: {error}")))?;
    let text = String::from_utf8_lossy(&output.stdout);
    if !output.status.success() {
        let error = String::from_utf8_lossy(&output.stderr);
        return Err(Failure::new(format!("{}: {}", output.status, error.trim())));
    }
    let mut lines = text.lines();
    let head = lines.next().unwrap_or_default();
    let column = head
        .split_whitespace()
        .position(|name| name == "PID")
        .ok_or_else(|| Failure::new("couldn't find PID field in ps output"))?;
    println!("{head}");
    for line in lines {
        let pid = line.split_whitespace().nth(column);
        if pid
            .and_then(|pid| pid.parse().ok())
            .is_some_and(|pid: i32| pids.contains(&pid))
        {
            println!("{line}");
        }
    }
    Ok(ExitCode::SUCCESS)
}
