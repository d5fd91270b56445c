//! One more process in a running container.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use knarr_spec::runtime::State;
use knarr_sys::child::{Parent, fork};
use knarr_sys::clone::Namespaces;
use knarr_sys::{Failure, process as sys_process};
use rustix::fs::{Mode, OFlags, ResolveFlags};
use rustix::process::{Pid, PidfdFlags};
use serde::{Deserialize, Serialize};

use crate::child::{
    Finish, Stdio as ChildStdio, become_root, finish, give_up, leave_groups, open, send,
    send_terminal, wait_for, word,
};
use crate::launch::{
    Link, Process, Stdio, bits, check_stdio, files, hear, open_root, sockets, write_proc,
};
use crate::plan::{Namespace, ProcessPlan, VERSION};
use crate::prepare::{self, Prepared};
use crate::step::{self, Fault, Message, Step};
use crate::{Error, Result, console, process};

/// What [`exec`] does; crosses processes.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ExecPlan {
    /// 1; a reader refuses what it does not know.
    pub version: u32,
    /// What the container does not share with the host: [`crate::Plan::namespaces`].
    pub namespaces: Vec<Namespace>,
    /// The program.
    pub process: ProcessPlan,
}

impl ExecPlan {
    /// For a program in the container that `plan` made.
    pub fn new(plan: &crate::Plan, process: ProcessPlan) -> Self {
        Self {
            version: VERSION,
            namespaces: plan.namespaces(),
            process,
        }
    }
}

/// A running container.
#[derive(Debug, Clone, Copy)]
pub struct Target<'a> {
    /// Its first process, in the caller's pid namespace.
    pub pid: Pid,
    /// Handle on it.
    pub pidfd: BorrowedFd<'a>,
    /// Its cgroup v2 directory.
    pub cgroup: Option<BorrowedFd<'a>>,
}

/// What the two processes of an exec work on.
#[derive(Debug)]
struct Job<'a> {
    target: BorrowedFd<'a>,
    namespaces: Namespaces,
    process: &'a Prepared,
    stdio: Option<&'a [OwnedFd; 3]>,
    socket: BorrowedFd<'a>,
    preserve: i32,
    own_stdio: bool,
}

/// What only some callers of [`exec_then`] need.
#[derive(Debug, Default)]
pub struct ExecExtras {
    /// As [`crate::Extras::preserve`].
    pub preserve: u32,
    /// As [`crate::Extras::own_stdio`].
    pub own_stdio: bool,
    /// The container's, for a seccomp listener.
    pub state: Option<State>,
}

/// Runs one more program in a container, as the caller's child. The caller's own executable is
/// visible in there until the exec: see [`crate::seal`].
///
/// # Errors
/// [`Error::NotRunning`], [`Error::Command`], [`Error::Step`]; then nothing is left of it.
pub fn exec(target: &Target<'_>, plan: &ExecPlan, stdio: Stdio) -> Result<Process> {
    exec_then(target, plan, stdio, ExecExtras::default(), |_| Ok(()))
}

/// [`exec`], with a moment for `joined` to move the process into cgroups before it runs anything.
///
/// # Errors
/// As [`exec`], and what `joined` says.
pub fn exec_then(
    target: &Target<'_>,
    plan: &ExecPlan,
    stdio: Stdio,
    extras: ExecExtras,
    joined: impl FnOnce(Pid) -> Result<()>,
) -> Result<Process> {
    if plan.version != VERSION {
        return Err(Error::Version {
            found: plan.version,
        });
    }
    check_stdio(&stdio, &plan.process)?;
    let unreachable = |cause| Error::Prepare {
        what: "cannot see into the container".into(),
        cause,
    };
    let root = match open_root(target.pid) {
        Ok(root) => root,
        Err(failure) if failure.errno == rustix::io::Errno::NOENT => return Err(Error::NotRunning),
        Err(failure) => return Err(unreachable(failure)),
    };
    // After the look: the id was still the container's then.
    if !process::signal(target.pidfd, 0).map_err(unreachable)? {
        return Err(Error::NotRunning);
    }
    let prepared = prepare::process(&plan.process, &root)?;
    let files = files(stdio)?;
    let namespaces = plan
        .namespaces
        .iter()
        .fold(Namespaces::NONE, |all, kind| all.with(bits(*kind)));
    let (ours, theirs) = sockets()?;
    let job = Job {
        target: target.pidfd,
        namespaces,
        process: &prepared,
        stdio: files.as_ref(),
        socket: theirs.as_fd(),
        preserve: i32::try_from(extras.preserve).unwrap_or(i32::MAX - 4),
        own_stdio: extras.own_stdio,
    };
    knarr_fs::failpoint!("exec.clone");
    let mut end = Some(ours);
    // A pid namespace takes effect on children only, so the one that enters is not yet the one
    // that runs; that one is made as our child, and inside from its first moment.
    let (stage, stage_handle) = fork(Namespaces::NONE, target.cgroup, Parent::Caller, || {
        drop(end.take());
        enter(&job)
    })
    .map_err(|cause| Error::Prepare {
        what: "cannot make the process".to_owned(),
        cause,
    })?;
    drop(theirs);
    let (Some(stage_handle), Some(socket)) = (stage_handle, end) else {
        return Err(Error::NotRunning);
    };
    let stage = Stage {
        pid: stage,
        pidfd: stage_handle,
    };
    let pid = match hear(&socket)?.0 {
        Some(Message::Forked(pid)) => Pid::from_raw(pid).ok_or(Error::NotRunning)?,
        Some(Message::Fault(fault)) => {
            // It waits for this before it ends.
            drop(socket);
            return Err(step::error(None, &plan.process, fault));
        }
        Some(_) | None => {
            let status = process::wait(&stage.pidfd);
            return Err(status.map_or(Error::NotRunning, |status| Error::Died { status }));
        }
    };
    // Our child, not reaped: the id is its own.
    let pidfd = rustix::process::pidfd_open(pid, PidfdFlags::empty())
        .map_err(Failure::of("pidfd_open"))
        .map_err(unreachable)?;
    knarr_fs::failpoint!("exec.cloned");
    let link = Link::new(pid, pidfd, socket).with_state(extras.state);
    if let Some(adjust) = plan.process.oom_score_adj {
        write_proc(pid, "oom_score_adj", &adjust.to_string())?;
    }
    joined(pid)?;
    link.say(word::GO)?;
    let link = link.ready(None, &plan.process)?;
    drop(stage);
    link.executed(None, &plan.process, move |_| Some(root))
}

/// The process that enters; reaped when dropped.
#[derive(Debug)]
struct Stage {
    #[expect(dead_code, reason = "for Debug")]
    pid: Pid,
    pidfd: OwnedFd,
}

impl Drop for Stage {
    fn drop(&mut self) {
        // It has forked and is about to end, or has failed and said so: nothing is lost.
        process::kill(&self.pidfd).ok();
        process::wait(&self.pidfd).ok();
    }
}

/// The first child: goes in and forks the second. Allocates nothing.
fn enter(job: &Job<'_>) -> i32 {
    let forked = || -> std::result::Result<Pid, Fault> {
        let at = Fault::at(Step::Join);
        // What is in the container already must not look into what comes.
        rustix::process::set_dumpable_behavior(rustix::process::DumpableBehavior::NotDumpable)
            .map_err(Failure::of("prctl"))
            .map_err(&at)?;
        if let Some(cpus) = &job.process.initial_cpus {
            rustix::thread::sched_setaffinity(None, cpus)
                .map_err(Failure::of("sched_setaffinity"))
                .map_err(Fault::at(Step::Affinity))?;
        }
        if job.namespaces.contains(Namespaces::USER) {
            leave_groups().map_err(Fault::at(Step::Groups))?;
        }
        if job.namespaces != Namespaces::NONE {
            sys_process::setns(job.target, job.namespaces).map_err(&at)?;
        }
        if job.namespaces.contains(Namespaces::USER) {
            become_root().map_err(&at)?;
        }
        fork(Namespaces::NONE, None, Parent::Grandparent, || inside(job))
            .map(|(pid, _)| pid)
            .map_err(Fault::at(Step::Fork))
    };
    match forked() {
        Ok(pid) => {
            let pid = pid.as_raw_nonzero().get();
            i32::from(send(job.socket, Message::Forked(pid)).is_err())
        }
        Err(fault) => give_up(job.socket, fault),
    }
}

/// The second child: in the container, up to the exec. Allocates nothing.
fn inside(job: &Job<'_>) -> i32 {
    let place = settle(job);
    // The first child names this one to the parent; nothing is said, or run, before the parent
    // knows it.
    if wait_for(job.socket, word::GO).is_err() {
        return 1;
    }
    let run = || -> std::result::Result<i32, Fault> {
        let (cwd, terminal) = place?;
        match &terminal {
            Some(pair) => send_terminal(job.socket, pair.master.as_fd()),
            None => send(job.socket, Message::Ready),
        }
        .map_err(Fault::at(Step::Wait))?;
        let slave = terminal.as_ref().map(|pair| pair.slave.as_fd());
        let stdio = ChildStdio::of(job.stdio, slave);
        let rest = Finish {
            socket: job.socket,
            preserve: job.preserve,
            own_stdio: job.own_stdio,
        };
        finish(job.process, cwd.as_fd(), &stdio, &rest)
    };
    match run() {
        Ok(code) => code,
        Err(fault) => give_up(job.socket, fault),
    }
}

/// The working directory and the terminal.
fn settle(job: &Job<'_>) -> std::result::Result<(OwnedFd, Option<console::Pair>), Fault> {
    let process = job.process;
    let session = Fault::at(Step::Session);
    rustix::process::setsid()
        .map_err(Failure::of("setsid"))
        .map_err(&session)?;
    rustix::process::umask(Mode::empty());
    let folder = OFlags::PATH | OFlags::DIRECTORY;
    let root = rustix::fs::open(c"/", folder | OFlags::CLOEXEC, Mode::empty())
        .map_err(Failure::of("openat"))
        .map_err(&session)?;
    let cwd = open(
        root.as_fd(),
        &process.cwd.path,
        folder,
        ResolveFlags::empty(),
    )
    .map_err(Fault::at(Step::Cwd))?;
    let owner = (process.uid, process.gid);
    let terminal = process
        .terminal
        .map(|size| console::open(root.as_fd(), size, owner, None))
        .transpose()
        .map_err(Fault::at(Step::Console))?;
    Ok((cwd, terminal))
}
