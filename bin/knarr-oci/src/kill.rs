//! `kill`, `pause`, `resume`.

use std::process::ExitCode;

use knarr_runtime::{Namespace, process};

use crate::args::Parsed;
use crate::command::Globals;
use crate::container::{Container, Status};
use crate::failure::{Failure, Result};

const SIGKILL: i32 = 9;

/// `kill`.
pub(crate) fn kill(globals: &mut Globals, parsed: &Parsed) -> Result<ExitCode> {
    let id = parsed.rest.first().map_or("", String::as_str);
    let container = Container::open(&globals.root, id)?;
    let name = parsed.rest.get(1).map_or("SIGTERM", String::as_str);
    let signal = knarr_spec::signal::parse(name)
        .ok_or_else(|| Failure::new(format!("unknown signal \"{name}\"")))?;
    let everyone = parsed.is_set("all");
    // Without a pid namespace of its own the others do not end with the first.
    let shared = container
        .record
        .plan
        .as_ref()
        .is_some_and(|plan| !plan.create.contains(&Namespace::Pid));
    if everyone || (shared && signal == SIGKILL) {
        let sent = signal_all(&container, signal)?;
        if sent || everyone {
            return Ok(ExitCode::SUCCESS);
        }
        return Err(not_running());
    }
    let init = container.record.init.as_ref().ok_or_else(not_running)?;
    let pidfd = init.open()?.ok_or_else(not_running)?;
    match process::signal(&pidfd, signal) {
        Ok(true) => {}
        Ok(false) => return Err(Failure::new("os: process already finished")),
        Err(cause) => return Err(Failure::new(format!("unable to signal init: {cause}"))),
    }
    // A frozen process takes SIGKILL on v2 at once, on v1 only when it thaws.
    if signal == SIGKILL
        && container.status()? == Status::Paused
        && let Some(cgroup) = container.cgroup()?
    {
        cgroup.thaw()?;
    }
    Ok(ExitCode::SUCCESS)
}

/// To all processes of its cgroup; whether there was one.
fn signal_all(container: &Container, signal: i32) -> Result<bool> {
    let own = container.record.plan.as_ref();
    if container.record.cgroup.is_none()
        && signal == SIGKILL
        && own.is_some_and(|plan| plan.create.contains(&Namespace::Pid))
    {
        // The others end with the first.
        let init = container.record.init.as_ref().ok_or_else(not_running)?;
        return match init.open()? {
            Some(pidfd) => process::signal(&pidfd, signal)
                .map_err(|cause| Failure::new(format!("unable to signal init: {cause}"))),
            None => Ok(false),
        };
    }
    container.may("signal all processes of")?;
    let Some(cgroup) = container.living_cgroup()? else {
        return Ok(false);
    };
    if signal == SIGKILL {
        let populated = cgroup.is_populated()?;
        cgroup.kill()?;
        return Ok(populated);
    }
    // Stopped meanwhile, so that none escapes by forking.
    let was_frozen = cgroup.is_frozen()?;
    if !was_frozen {
        cgroup.freeze()?;
    }
    let processes = cgroup.processes();
    let mut sent = false;
    for pid in processes.iter().flatten() {
        // It may have ended by itself.
        sent |= knarr_sys::child::kill(*pid, signal).is_ok();
    }
    if !was_frozen {
        cgroup.thaw()?;
    }
    processes?;
    Ok(sent)
}

fn not_running() -> Failure {
    Failure::new("container not running")
}

/// `pause`.
pub(crate) fn pause(globals: &mut Globals, parsed: &Parsed) -> Result<ExitCode> {
    let id = parsed.rest.first().map_or("", String::as_str);
    let container = Container::open(&globals.root, id)?;
    let _lock = container.lock()?;
    match container.status()? {
        Status::Running | Status::Created => {
            container.need_cgroup("pause")?.freeze()?;
            Ok(ExitCode::SUCCESS)
        }
        _ => Err(Failure::new("container not running")),
    }
}

/// `resume`.
pub(crate) fn resume(globals: &mut Globals, parsed: &Parsed) -> Result<ExitCode> {
    let id = parsed.rest.first().map_or("", String::as_str);
    let container = Container::open(&globals.root, id)?;
    let _lock = container.lock()?;
    if container.status()? != Status::Paused {
        return Err(Failure::new("container not paused"));
    }
    container.need_cgroup("resume")?.thaw()?;
    Ok(ExitCode::SUCCESS)
}
