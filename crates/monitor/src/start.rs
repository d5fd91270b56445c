//! Making the container: mounts, cgroup, streams, the first process. In that order, each step's
//! leftovers named in `undo` before it is taken.

use std::borrow::Cow;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::path::Path;

use knarr_cgroup::{Cgroup, Layout};
use knarr_diag::{Explain as _, Report};
use knarr_fs::{Durability, Lock, tree};
use knarr_layer::HeldLayer;
use knarr_net::Membership;

use knarr_runtime::{Extras, Launch, Plan, Rlimit, Stdio};
use rustix::fs::{Mode, OFlags};
use rustix::process::{Pid, Resource};

use crate::request::{CopyUp, Request};
use crate::state::ProcessId;
use crate::stdio::{self, Ends};
use crate::watch::namespace_of;
use crate::{DESCRIPTORS, Result};

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
    network: Option<&mut Membership>,
    announce: impl FnOnce(ProcessId) -> Result<()>,
) -> std::result::Result<Container, Report> {
    let paths = &request.paths;
    let root = knarr_layer::mount(&request.rootfs, &paths.run_root)?;
    knarr_fs::failpoint!("monitor.mounted");
    for copy in &request.copy_ups {
        fill_volume(root.root.as_fd(), copy).map_err(|error| error.report())?;
    }
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
    let plan = with_usual_limit(&request.runtime);
    let begun = knarr_runtime::begin(Launch {
        plan: &plan,
        rootfs: root.root,
        stdio,
        cgroup: cgroup.dir_fd(),
        binds: Vec::new(),
        extras: Extras::default(),
    })?;
    knarr_fs::failpoint!("monitor.cloned");
    let pid = begun.pid();
    announce(process_id(pid)?)?;
    knarr_fs::failpoint!("monitor.announced");
    if let Some(network) = network
        && let Some(namespace) = namespace_of(pid.as_raw_nonzero().get().unsigned_abs())
            .map_err(|error| error.report())?
    {
        // While the child makes its mounts. One that has ended says why when it is asked to go.
        network.connect(namespace)?;
        knarr_fs::failpoint!("monitor.networked");
    }
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

/// With the usual limit of open files, where this process has raised its own.
fn with_usual_limit(plan: &Plan) -> Cow<'_, Plan> {
    const NAME: &str = "RLIMIT_NOFILE";
    let own = rustix::process::getrlimit(Resource::Nofile);
    let said = plan
        .process
        .rlimits
        .iter()
        .any(|limit| limit.resource == NAME);
    if said || own.current.is_some_and(|current| current <= DESCRIPTORS) {
        return Cow::Borrowed(plan);
    }
    let mut plan = plan.clone();
    plan.process.rlimits.push(Rlimit {
        resource: NAME.to_owned(),
        soft: DESCRIPTORS,
        hard: own.maximum.unwrap_or(u64::MAX),
    });
    Cow::Owned(plan)
}

/// The volume is being filled; found by another start, it means that the filling was cut short.
const COPYING: &str = ".copying";

/// Gives a new volume what the image has in its place, whole or not at all.
fn fill_volume(root: BorrowedFd<'_>, copy: &CopyUp) -> Result<()> {
    let data = copy.volume.join("data");
    let marker = copy.volume.join(COPYING);
    // Two containers may be started with the same new volume.
    let _alone = Lock::exclusive(&copy.volume.join(".lock"))?;
    let folder = rustix::fs::open(
        &data,
        OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC,
        Mode::empty(),
    )
    .map_err(knarr_fs::Error::of("open", "open", &data))?;
    let names = tree::names(folder.as_fd(), &data)?;
    if rustix::fs::stat(&marker).is_ok() {
        for name in names {
            tree::remove(folder.as_fd(), &name, &data.join(&name))?;
        }
    } else if !names.is_empty() {
        return Ok(());
    }
    knarr_fs::write_atomic(&marker, b"", Durability::Volatile)?;
    knarr_fs::failpoint!("monitor.copying");
    knarr_layer::copy_up(root, Path::new(&copy.from), &data)?;
    knarr_fs::failpoint!("monitor.copied");
    Ok(knarr_fs::remove_file(&marker)?)
}

/// A process of ours that has not been reaped, so its number is its own.
pub(crate) fn process_id(pid: Pid) -> Result<ProcessId> {
    let raw = pid.as_raw_nonzero().get();
    // A zombie has no time to tell; it is ours and known to be dead soon.
    let start_time = knarr_runtime::process::start_time(raw)?.unwrap_or(0);
    Ok(ProcessId {
        pid: raw.unsigned_abs(),
        start_time,
    })
}
