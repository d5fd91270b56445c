//! `start`.

use std::os::fd::AsFd as _;
use std::process::ExitCode;

use rustix::fs::{AtFlags, Mode, OFlags};
use rustix::net::{AddressFamily, SocketFlags, SocketType};
use rustix::process::Pid;

use crate::args::Parsed;
use crate::command::Globals;
use crate::container::{Container, Status};
use crate::create::gate_address;
use crate::failure::{Failure, Result};
use crate::state::GATE;

/// `start`.
pub(crate) fn start(globals: &mut Globals, parsed: &Parsed) -> Result<ExitCode> {
    let id = parsed.rest.first().map_or("", String::as_str);
    let container = Container::open(&globals.root, id)?;
    let _lock = container.lock()?;
    match container.status()? {
        Status::Created => {}
        Status::Stopped => {
            return Err(Failure::new("cannot start a container that has stopped"));
        }
        Status::Running => {
            return Err(Failure::new("cannot start an already running container"));
        }
        status => {
            let name = status.name();
            return Err(Failure::new(format!(
                "cannot start a container in the {name} state"
            )));
        }
    }
    let record = &container.record;
    let (Some(init), Some(plan)) = (&record.init, &record.plan) else {
        return Err(Failure::new(
            "cannot start a container in the creating state",
        ));
    };
    let stopped = || Failure::new("cannot start a container that has stopped");
    let pidfd = init.open()?.ok_or_else(stopped)?;
    let pid = Pid::from_raw(init.pid).ok_or_else(stopped)?;
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let folder = rustix::fs::open(&container.dir, flags, Mode::empty())
        .map_err(knarr_fs::Error::of("open", "open", &container.dir))?;
    let path = container.dir.join(GATE);
    let socket = rustix::net::socket_with(
        AddressFamily::UNIX,
        SocketType::SEQPACKET,
        SocketFlags::CLOEXEC,
        None,
    )
    .map_err(knarr_fs::Error::of("open", "socket", &path))?;
    rustix::net::connect(&socket, &gate_address(&folder)?)
        .map_err(knarr_fs::Error::of("open", "connect", &path))?;
    // Before the word is said: a container whose gate is gone is not "created" any more.
    rustix::fs::unlinkat(&folder, GATE, AtFlags::empty())
        .map_err(knarr_fs::Error::of("remove", "unlinkat", &path))?;
    let kill = pidfd.try_clone();
    knarr_runtime::open_gate(
        socket,
        pid,
        pidfd,
        Some(plan),
        &plan.process,
        Some(record.oci("created")),
    )?;
    let hooks = knarr_runtime::hook::run("poststart", &record.poststart, &record.oci("running"));
    if let (Err(_), Ok(pidfd)) = (&hooks, kill) {
        knarr_runtime::process::kill(pidfd.as_fd()).ok();
    }
    hooks?;
    Ok(ExitCode::SUCCESS)
}
