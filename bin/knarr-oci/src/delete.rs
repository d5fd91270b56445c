//! `delete`.

use std::process::ExitCode;
use std::time::{Duration, Instant};

use knarr_runtime::process;
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use crate::args::Parsed;
use crate::command::Globals;
use crate::container::{self, Container, Status};
use crate::failure::{Failure, Result};

/// How long a killed process may take to go.
const PATIENCE: Duration = Duration::from_secs(10);

/// `delete`.
pub(crate) fn delete(globals: &mut Globals, parsed: &Parsed) -> Result<ExitCode> {
    let id = parsed.rest.first().map_or("", String::as_str);
    let force = parsed.is_set("force");
    let container = match Container::open(&globals.root, id) {
        Ok(container) => container,
        Err(failure) if force && failure.message == container::does_not_exist().message => {
            return Ok(ExitCode::SUCCESS);
        }
        Err(failure) => return Err(failure),
    };
    let _lock = container.lock()?;
    match container.status()? {
        Status::Stopped => {}
        Status::Created => end(&container)?,
        _ if force => end(&container)?,
        status => {
            let name = status.name();
            return Err(Failure::new(format!(
                "cannot delete container {id} that is not stopped: {name}"
            )));
        }
    }
    remove(globals, &container)?;
    Ok(ExitCode::SUCCESS)
}

/// Kills it and waits until it is gone.
fn end(container: &Container) -> Result<()> {
    let Some(pidfd) = container
        .record
        .init
        .as_ref()
        .map_or(Ok(None), process::Identity::open)?
    else {
        return Ok(());
    };
    process::kill(&pidfd)
        .map_err(|cause| Failure::new(format!("unable to signal init: {cause}")))?;
    if let Some(cgroup) = container.living_cgroup()? {
        cgroup.kill()?;
    }
    let deadline = Instant::now() + PATIENCE;
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let limit = Timespec {
            tv_sec: i64::try_from(left.as_secs()).unwrap_or(i64::MAX),
            tv_nsec: i64::from(left.subsec_nanos()),
        };
        match poll(&mut [PollFd::new(&pidfd, PollFlags::IN)], Some(&limit)) {
            Ok(0) => return Err(Failure::new("container init still running")),
            Err(rustix::io::Errno::INTR) => {}
            _ => return Ok(()),
        }
    }
}

/// Takes a stopped container away and runs the hooks for that.
pub(crate) fn remove(globals: &mut Globals, container: &Container) -> Result<()> {
    container.remove()?;
    let record = &container.record;
    let mut state = record.oci("stopped");
    state.pid = None;
    for hook in &record.poststop {
        // "The runtime MUST log a warning", and go on (runtime.md, "Lifecycle").
        if let Err(error) = knarr_runtime::hook::run("poststop", std::slice::from_ref(hook), &state)
        {
            globals.log.warning(&error.to_string());
        }
    }
    Ok(())
}
