//! Making the container: mounts, cgroup, streams, the first process. In that order, each step's
//! leftovers named in `undo` before it is taken.

use std::os::fd::OwnedFd;

use knarr_cgroup::{Cgroup, Layout};
use knarr_diag::{Explain as _, Report};
use knarr_layer::HeldLayer;
use knarr_runtime::{Launch, Stdio};
use rustix::process::Pid;

use crate::request::Request;
use crate::state::ProcessId;
use crate::stdio::{self, Ends};

/// A container whose program runs.
#[derive(Debug)]
pub(crate) struct Container {
    pub(crate) pid: Pid,
    pub(crate) pidfd: OwnedFd,
    pub(crate) terminal: Option<OwnedFd>,
    pub(crate) ends: Ends,
    pub(crate) cgroup: Cgroup,
    /// Lends the layers' mounts to later starts.
    pub(crate) held: Vec<HeldLayer>,
}

/// Makes and starts it. `announce` is called with the first process while that still makes its
/// mounts: from then on a later call can find it.
pub(crate) fn start(
    request: &Request,
    layout: &Layout,
    announce: impl FnOnce(ProcessId) -> crate::Result<()>,
) -> Result<Container, Report> {
    let paths = &request.paths;
    let root = knarr_layer::mount(&request.rootfs, &paths.run_root)?;
    knarr_fs::failpoint!("monitor.mounted");
    //COPYUP
    let cgroup = Cgroup::create(layout, &request.cgroup)?;
    knarr_fs::failpoint!("monitor.cgroup");
    let (ends, stdio) = if request.terminal.is_some() {
        (Ends::default(), Stdio::Terminal)
    } else {
        let (ends, files) =
            stdio::create(&paths.run, request.stdin).map_err(|error| error.report())?;
        (
            ends,
            Stdio::Files([files.stdin, files.stdout, files.stderr]),
        )
    };
    knarr_fs::failpoint!("monitor.stdio");
    let begun = knarr_runtime::begin(Launch {
        plan: &request.runtime,
        rootfs: root.root,
        stdio,
        cgroup: cgroup.dir_fd(),
        binds: Vec::new(),
    })?;
    knarr_fs::failpoint!("monitor.cloned");
    let pid = begun.pid();
    announce(process_id(pid)?)?;
    knarr_fs::failpoint!("monitor.announced");
    if cgroup.needs_join() {
        cgroup.join_limits(pid)?;
    }
    knarr_fs::failpoint!("monitor.joined");
    let init = begun.start()?;
    knarr_fs::failpoint!("monitor.running");
    Ok(Container {
        pid: init.pid,
        pidfd: init.pidfd,
        terminal: init.terminal,
        ends,
        cgroup,
        held: root.held,
    })
}

/// A process of ours that has not been reaped, so its number is its own.
pub(crate) fn process_id(pid: Pid) -> crate::Result<ProcessId> {
    let raw = pid.as_raw_nonzero().get();
    // A zombie has no time to tell; it is ours and known to be dead soon.
    let start_time = knarr_runtime::process::start_time(raw)?.unwrap_or(0);
    Ok(ProcessId {
        pid: raw.unsigned_abs(),
        start_time,
    })
}
