//! The parent's side of a create and a start.

use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use knarr_fs::Root;
use knarr_spec::runtime::{ContainerProcessState, State};
use knarr_sys::child::Parent;
use knarr_sys::clone::Namespaces;
use knarr_sys::{Failure, child as sys_child};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketFlags, SocketType,
};
use rustix::process::Pid;

use crate::child::{self, CgroupNamespace, Job, TimePlan, word};
use crate::plan::{Namespace, Plan, ProcessPlan, VERSION};
use crate::prepare::{self, above_stdio};
use crate::step::{self, MESSAGE, Message, Step};
use crate::{Error, Result, diagnose, hook, process};

/// What a container is made from.
#[derive(Debug)]
pub struct Launch<'a> {
    /// What to do.
    pub plan: &'a Plan,
    /// The root: a detached mount, which is moved into the container.
    pub rootfs: OwnedFd,
    /// The program's standard files.
    pub stdio: Stdio,
    /// A cgroup v2 directory that the container is born in; without one it waits, before it makes a
    /// cgroup namespace of its own, for [`Begun::joined`].
    pub cgroup: Option<BorrowedFd<'a>>,
    /// Sources of bind mounts that the caller opened itself (O_PATH descriptors or detached
    /// mounts), by index in `plan.mounts`.
    pub binds: Vec<(usize, OwnedFd)>,
    /// What only some callers need.
    pub extras: Extras,
}

/// What a runtime behind another engine's back needs on top ([`Extras::default`]: nothing).
#[derive(Debug, Default)]
pub struct Extras {
    /// Descriptors from 3 on that the program keeps.
    pub preserve: u32,
    /// A listening socket (SOCK_SEQPACKET): what connects to it starts the program, long after the
    /// caller has gone. See [`Created::leave`] and [`open_gate`].
    pub gate: Option<OwnedFd>,
    /// Where on the host the root is. While the container is made its tree stands there in its own
    /// mount namespace, which is where hooks expect it.
    pub root_path: Option<String>,
    /// chroot(2) instead of pivot_root(2), for hosts that run from an initial ramdisk.
    pub no_pivot: bool,
    /// The standard files become the user's, so that it can open them again by their name in
    /// `/dev`.
    pub own_stdio: bool,
    /// For hooks and for the seccomp listener; its `status` and `pid` are filled in.
    pub state: Option<State>,
}

/// A program's standard files.
#[derive(Debug)]
pub enum Stdio {
    /// Standard input, output and error.
    Files([OwnedFd; 3]),
    /// The caller's own, which are open.
    Inherited,
    /// The terminal that the plan asks for; its master end comes back.
    Terminal,
}

/// A process that was asked for: the program runs (or has ended already).
#[derive(Debug)]
pub struct Process {
    /// In the caller's pid namespace; the caller reaps it.
    pub pid: Pid,
    /// Handle on it.
    pub pidfd: OwnedFd,
    /// The master end of its terminal, where it has one.
    pub terminal: Option<OwnedFd>,
}

/// A container's first process.
pub type Init = Process;

/// A container whose process exists and is making its tree. Dropping it kills and reaps it.
#[derive(Debug)]
pub struct Begun<'a> {
    plan: &'a Plan,
    link: Link,
    waits_for_cgroups: bool,
    joined: bool,
    files: Option<hook::Files>,
}

/// A container that only waits for its start. Dropping it kills and reaps it.
#[derive(Debug)]
pub struct Created<'a> {
    plan: &'a Plan,
    link: Link,
}

/// The child, and the socket that it speaks over.
#[derive(Debug)]
pub(crate) struct Link {
    pub(crate) pid: Pid,
    /// Taken when the child has become the caller's.
    pidfd: Option<OwnedFd>,
    pub(crate) socket: OwnedFd,
    terminal: Option<OwnedFd>,
    state: Option<State>,
}

impl Drop for Link {
    fn drop(&mut self) {
        if let Some(pidfd) = &self.pidfd {
            // Nobody is left to tell; a child that cannot be killed has ended.
            process::kill(pidfd).ok();
            process::wait(pidfd).ok();
        }
    }
}

impl Link {
    pub(crate) fn new(pid: Pid, pidfd: OwnedFd, socket: OwnedFd) -> Self {
        Self {
            pid,
            pidfd: Some(pidfd),
            socket,
            terminal: None,
            state: None,
        }
    }

    /// The container's state, for a seccomp listener.
    pub(crate) fn with_state(mut self, state: Option<State>) -> Self {
        self.state = state;
        self
    }

    fn pidfd(&self) -> Option<BorrowedFd<'_>> {
        self.pidfd.as_ref().map(AsFd::as_fd)
    }

    pub(crate) fn say(&self, word: u8) -> Result<()> {
        match rustix::net::send(&self.socket, &[word], SendFlags::NOSIGNAL) {
            Ok(_) => Ok(()),
            // It has failed or died: what it said or how it ended is the better news.
            Err(Errno::PIPE | Errno::CONNRESET) => Ok(()),
            Err(errno) => Err(Error::Prepare {
                what: "cannot speak to the container's process".to_owned(),
                cause: Failure {
                    call: "send",
                    errno,
                },
            }),
        }
    }

    /// The next message; `None` at the end of the connection.
    pub(crate) fn hear(&mut self, process: &ProcessPlan) -> Result<Option<Message>> {
        let (message, fd) = hear(&self.socket)?;
        match (message, fd) {
            (Some(Message::Listener), Some(fd)) => self.notify(&fd, process)?,
            (_, Some(fd)) => self.terminal = Some(fd),
            _ => {}
        }
        Ok(message)
    }

    /// Hands the descriptor of a filter's notifications to the listener (config-linux.md, "The
    /// Container Process State").
    fn notify(&self, fd: &OwnedFd, process: &ProcessPlan) -> Result<()> {
        let Some(listener) = &process.listener else {
            return Ok(());
        };
        let pid = self.pid.as_raw_nonzero().get();
        let state = self.state.clone().unwrap_or_default();
        let message = ContainerProcessState {
            oci_version: knarr_spec::runtime::OCI_VERSION.to_owned(),
            fds: vec!["seccompFd".to_owned()],
            pid,
            metadata: listener.metadata.clone(),
            state,
        };
        // A struct of strings always serializes.
        let bytes = serde_json::to_vec(&message).unwrap_or_default();
        send_fd(Path::new(&listener.path), &bytes, fd.as_fd()).map_err(|cause| Error::Prepare {
            what: format!("cannot reach the seccomp listener {}", listener.path),
            cause,
        })
    }

    /// How the child ended, for errors.
    fn died(mut self) -> Error {
        let status = self.pidfd.take().map(|pidfd| {
            process::kill(&pidfd).ok();
            process::wait(&pidfd)
        });
        match status {
            Some(Ok(status)) => Error::Died { status },
            _ => Error::NotRunning,
        }
    }

    /// Waits for the exec: the end of the connection, or a fault.
    pub(crate) fn executed(
        mut self,
        plan: Option<&Plan>,
        process: &ProcessPlan,
        root: impl FnOnce(Pid) -> Option<Root>,
    ) -> Result<Process> {
        let mut message = self.hear(process)?;
        while message == Some(Message::Listener) {
            message = self.hear(process)?;
        }
        match message {
            None => {}
            Some(Message::Fault(fault)) if fault.step == Step::Exec => {
                // The child waits, so its tree is still there to be looked at.
                return Err(match root(self.pid) {
                    Some(root) => diagnose::diagnose(&root, process, fault.failure).into(),
                    None => step::error(plan, process, fault),
                });
            }
            Some(Message::Fault(fault)) => return Err(step::error(plan, process, fault)),
            Some(_) => return Err(self.died()),
        }
        let terminal = self.terminal.take();
        match self.pidfd.take() {
            Some(pidfd) => Ok(Process {
                pid: self.pid,
                pidfd,
                terminal,
            }),
            None => Err(Error::NotRunning),
        }
    }

    /// Waits until the child is ready.
    pub(crate) fn ready(mut self, plan: Option<&Plan>, process: &ProcessPlan) -> Result<Self> {
        match self.hear(process)? {
            Some(Message::Ready) => Ok(self),
            Some(Message::Fault(fault)) => Err(self.failed(plan, process, fault)),
            Some(_) | None => Err(self.died()),
        }
    }

    /// The error of a fault; of a program that was looked for, with the reason.
    fn failed(&self, plan: Option<&Plan>, process: &ProcessPlan, fault: step::Fault) -> Error {
        if fault.step == Step::Exec
            && let Ok(root) = open_root(self.pid)
        {
            return diagnose::diagnose(&root, process, fault.failure).into();
        }
        step::error(plan, process, fault)
    }
}

/// Sends a descriptor with a message to a Unix stream socket.
///
/// # Errors
/// As connect(2) and sendmsg(2).
pub fn send_fd(
    socket: &Path,
    message: &[u8],
    fd: BorrowedFd<'_>,
) -> std::result::Result<(), Failure> {
    let address = rustix::net::SocketAddrUnix::new(socket).map_err(Failure::of("connect"))?;
    let stream = rustix::net::socket_with(
        AddressFamily::UNIX,
        SocketType::STREAM,
        SocketFlags::CLOEXEC,
        None,
    )
    .map_err(Failure::of("socket"))?;
    rustix::net::connect(&stream, &address).map_err(Failure::of("connect"))?;
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    let fds = [fd];
    control.push(SendAncillaryMessage::ScmRights(&fds));
    let sent = rustix::net::sendmsg(
        &stream,
        &[IoSlice::new(message)],
        &mut control,
        SendFlags::NOSIGNAL,
    )
    .map_err(Failure::of("sendmsg"))?;
    // The descriptor went with the first byte; a long message may need more.
    let mut rest = message.get(sent..).unwrap_or_default();
    while !rest.is_empty() {
        let sent =
            rustix::net::send(&stream, rest, SendFlags::NOSIGNAL).map_err(Failure::of("send"))?;
        rest = rest.get(sent..).unwrap_or_default();
    }
    Ok(())
}

/// One message, and the descriptor that came with it.
pub(crate) fn hear(socket: &OwnedFd) -> Result<(Option<Message>, Option<OwnedFd>)> {
    let mut bytes = [0; MESSAGE];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let received = loop {
        let mut slices = [IoSliceMut::new(&mut bytes)];
        match rustix::net::recvmsg(socket, &mut slices, &mut control, RecvFlags::CMSG_CLOEXEC) {
            Err(Errno::INTR) => {}
            Err(Errno::CONNRESET) => break 0,
            Err(errno) => {
                return Err(Error::Prepare {
                    what: "cannot hear the container's process".to_owned(),
                    cause: Failure {
                        call: "recvmsg",
                        errno,
                    },
                });
            }
            Ok(received) => break received.bytes,
        }
    };
    let mut fd = None;
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(fds) = message {
            fd = fds.last();
        }
    }
    Ok((
        if received == MESSAGE {
            Message::decode(&bytes)
        } else {
            None
        },
        fd,
    ))
}

/// A pair of connected sockets that keep messages apart.
pub(crate) fn sockets() -> Result<(OwnedFd, OwnedFd)> {
    rustix::net::socketpair(
        AddressFamily::UNIX,
        SocketType::SEQPACKET,
        SocketFlags::CLOEXEC,
        None,
    )
    .map_err(|errno| Error::Prepare {
        what: "cannot make a pair of sockets".to_owned(),
        cause: Failure {
            call: "socketpair",
            errno,
        },
    })
}

/// Standard files, above 2 so that none is overwritten before its turn.
pub(crate) fn files(stdio: Stdio) -> Result<Option<[OwnedFd; 3]>> {
    Ok(match stdio {
        Stdio::Files([input, output, error]) => Some([
            above_stdio(input)?,
            above_stdio(output)?,
            above_stdio(error)?,
        ]),
        Stdio::Inherited | Stdio::Terminal => None,
    })
}

pub(crate) fn bits(kind: Namespace) -> Namespaces {
    match kind {
        Namespace::User => Namespaces::USER,
        Namespace::Ipc => Namespaces::IPC,
        Namespace::Uts => Namespaces::UTS,
        Namespace::Network => Namespaces::NETWORK,
        Namespace::Pid => Namespaces::PID,
        Namespace::Mount => Namespaces::MOUNT,
        Namespace::Cgroup => Namespaces::CGROUP,
        Namespace::Time => Namespaces::TIME,
    }
}

/// Makes the container's process, and returns while it works. Where v1 cgroups are to be joined,
/// now is the time: [`Begun::pid`], then [`Begun::joined`].
///
/// # Errors
/// [`Error`]; then nothing is left of it.
pub fn begin(launch: Launch<'_>) -> Result<Begun<'_>> {
    let Launch {
        plan,
        rootfs,
        stdio,
        cgroup,
        binds,
        extras,
    } = launch;
    if plan.version != VERSION {
        return Err(Error::Version {
            found: plan.version,
        });
    }
    check_stdio(&stdio, &plan.process)?;
    let root = Root::from_fd(rootfs, "/");
    let tree = prepare::tree(plan, &root, binds)?;
    let prepared = prepare::process(&plan.process, &root)?;
    let files = files(stdio)?;
    let own_cgroups = plan.create.contains(&Namespace::Cgroup);
    // Who is not born in its cgroup can make its namespace only once it is there.
    let waits_for_cgroups = plan.waits_for_cgroups() || (own_cgroups && cgroup.is_none());
    let cgroups = match (waits_for_cgroups, own_cgroups) {
        (false, _) => CgroupNamespace::AtOnce,
        (true, true) => CgroupNamespace::Late,
        (true, false) => CgroupNamespace::Lent,
    };
    let time = time_plan(plan)?;
    let namespaces = plan
        .create
        .iter()
        .filter(|kind| {
            !matches!(
                (kind, cgroups),
                (Namespace::Cgroup, CgroupNamespace::Late) | (Namespace::Time, _)
            )
        })
        .fold(Namespaces::NONE, |all, kind| all.with(bits(*kind)));
    // Those two cannot be left again, so a process goes ahead that never has to.
    let staged = plan
        .join
        .iter()
        .any(|join| matches!(join.kind, Namespace::User | Namespace::Mount));
    let has_proc = time.is_some() || cgroups == CgroupNamespace::Lent;
    let proc = has_proc.then(prepare::host_proc).transpose()?;
    let hook_files = (!plan.hooks.is_empty())
        .then(hook::Files::new)
        .transpose()?;
    let root_path = match (&extras.root_path, plan.hooks.before_pivot()) {
        (Some(path), true) if !extras.no_pivot => Some(prepare::c_string("root.path", path)?),
        _ => None,
    };
    let gate = extras.gate.map(above_stdio).transpose()?;
    let hidden = if extras.no_pivot {
        prepare::kernel_mounts()?
    } else {
        Vec::new()
    };
    let container_hooks = hook::prepare(&plan.hooks.create_container)?;
    let start_hooks = hook::prepare(&plan.hooks.start_container)?;
    let (ours, theirs) = sockets()?;
    let job = Job {
        plan,
        tree: &tree,
        process: &prepared,
        root: root.as_fd(),
        stdio: files.as_ref(),
        socket: theirs.as_fd(),
        preserve: i32::try_from(extras.preserve).unwrap_or(i32::MAX - 4),
        cgroups,
        time: time.as_ref(),
        proc: proc.as_ref().map(AsFd::as_fd),
        staged,
        gate: gate.as_ref().map(AsFd::as_fd),
        root_path: root_path.as_deref(),
        no_pivot: extras.no_pivot,
        hidden: &hidden,
        own_stdio: extras.own_stdio,
        container_hooks: &container_hooks,
        start_hooks: &start_hooks,
        hook_files: hook_files.as_ref(),
    };
    // Both also read a variable, so that the child does not.
    knarr_fs::failpoint!("run.clone");
    crate::weak::off("");
    let mut ours = Some(ours);
    let cannot = |cause| Error::Prepare {
        what: "cannot make the container's process".to_owned(),
        cause,
    };
    let link = if staged {
        let targets = plan
            .join
            .iter()
            .map(open_namespace)
            .collect::<Result<Vec<_>>>()?;
        let (_, handle) = sys_child::fork(Namespaces::NONE, cgroup, Parent::Caller, || {
            drop(ours.take());
            child::stage(&job, &targets, namespaces)
        })
        .map_err(cannot)?;
        let (Some(handle), Some(ours)) = (handle, ours) else {
            return Err(Error::NotRunning);
        };
        let stage = Stage { pidfd: handle };
        drop(theirs);
        let pid = match hear(&ours)?.0 {
            Some(Message::Forked(pid)) => Pid::from_raw(pid).ok_or(Error::NotRunning)?,
            Some(Message::Fault(fault)) => {
                // It waits for this before it ends.
                drop(ours);
                return Err(step::error(Some(plan), &plan.process, fault));
            }
            _ => return Err(Error::NotRunning),
        };
        // Our child, not reaped: the id is its own.
        let pidfd = rustix::process::pidfd_open(pid, rustix::process::PidfdFlags::empty())
            .map_err(Failure::of("pidfd_open"))
            .map_err(cannot)?;
        drop(stage);
        let link = Link::new(pid, pidfd, ours);
        link.say(word::GO)?;
        link
    } else {
        let borrowed = join(plan)?;
        let forked = sys_child::fork(namespaces, cgroup, Parent::Caller, || {
            // In the child this closes its copy of the parent's end, so that it hears the parent
            // die.
            drop(ours.take());
            child::run(&job)
        });
        let restored = borrowed.into_iter().try_for_each(Borrowed::give_back);
        let (pid, pidfd) = forked.map_err(cannot)?;
        let (Some(pidfd), Some(ours)) = (pidfd, ours) else {
            return Err(Error::NotRunning);
        };
        let link = Link::new(pid, pidfd, ours);
        restored?;
        link
    };
    let pid = link.pid;
    let link = link.with_state(extras.state.map(|state| State {
        pid: Some(pid.as_raw_nonzero().get()),
        ..state
    }));
    if let Some(files) = &hook_files {
        write_states(files, link.state.as_ref())?;
    }
    knarr_fs::failpoint!("run.cloned");
    if let Some(maps) = &plan.user_namespace {
        write_proc(pid, "uid_map", &prepare::map_lines(&maps.uids))?;
        write_proc(pid, "gid_map", &prepare::map_lines(&maps.gids))?;
        link.say(word::MAPPED)?;
    }
    if let Some(adjust) = plan.process.oom_score_adj {
        write_proc(pid, "oom_score_adj", &adjust.to_string())?;
    }
    Ok(Begun {
        plan,
        link,
        waits_for_cgroups,
        joined: false,
        files: hook_files,
    })
}

/// What `/proc/self/timens_offsets` is told; `None` without a new time namespace.
fn time_plan(plan: &Plan) -> Result<Option<TimePlan>> {
    if !plan.create.contains(&Namespace::Time) {
        return Ok(None);
    }
    let offsets: String = plan
        .time_offsets
        .iter()
        .map(|offset| format!("{} {} {}\n", offset.clock, offset.secs, offset.nanosecs))
        .collect();
    Ok(Some(TimePlan {
        offsets: offsets.into_bytes(),
    }))
}

/// [`begin`], [`Begun::joined`], [`Begun::ready`]: for callers without v1 cgroups.
///
/// # Errors
/// As those.
pub fn create(launch: Launch<'_>) -> Result<Created<'_>> {
    begin(launch)?.ready()
}

pub(crate) fn check_stdio(stdio: &Stdio, process: &ProcessPlan) -> Result<()> {
    match (stdio, process.terminal) {
        (Stdio::Terminal, Some(_)) | (Stdio::Files(_) | Stdio::Inherited, None) => Ok(()),
        (Stdio::Terminal, None) => Err(Error::Config {
            field: "process.terminal".to_owned(),
            reason: "a terminal was asked for that the plan does not have".to_owned(),
        }),
        (Stdio::Files(_) | Stdio::Inherited, Some(_)) => Err(Error::Config {
            field: "process.terminal".to_owned(),
            reason: "the plan has a terminal, and files were given".to_owned(),
        }),
    }
}

impl<'a> Begun<'a> {
    /// The process, in the caller's pid namespace.
    pub fn pid(&self) -> Pid {
        self.link.pid
    }

    /// Handle on it.
    pub fn pidfd(&self) -> Option<BorrowedFd<'_>> {
        self.link.pidfd()
    }

    /// Tells it that it is in all its cgroups. Said for the caller by [`Self::ready`] and
    /// [`Self::start`] where it was not said.
    ///
    /// # Errors
    /// [`Error::Prepare`].
    pub fn joined(&mut self) -> Result<()> {
        if self.waits_for_cgroups && !self.joined {
            self.link.say(word::JOINED)?;
        }
        self.joined = true;
        Ok(())
    }

    /// Waits until the container is made and stands at the gate.
    ///
    /// # Errors
    /// [`Error::Step`], [`Error::Died`]; then nothing is left of it.
    pub fn ready(mut self) -> Result<Created<'a>> {
        self.joined()?;
        let (plan, link) = self.made()?;
        knarr_fs::failpoint!("run.created");
        Ok(Created { plan, link })
    }

    /// Runs the hooks in their time, until the container is made.
    fn made(mut self) -> Result<(&'a Plan, Link)> {
        let (plan, process) = (self.plan, &self.plan.process);
        if plan.hooks.before_pivot() {
            match self.link.hear(process)? {
                Some(Message::Mounted) => self.run_hooks()?,
                Some(Message::Fault(fault)) => {
                    return Err(self.link.failed(Some(plan), process, fault));
                }
                Some(_) | None => return Err(self.link.died()),
            }
        }
        let files = self.files;
        let link = self
            .link
            .ready(Some(plan), process)
            .map_err(|error| match (error, &files) {
                (
                    Error::Hook {
                        moment,
                        index,
                        path,
                        reason,
                    },
                    Some(files),
                ) => Error::Hook {
                    moment,
                    index,
                    path,
                    reason: hook::with_output(reason, files.output.as_fd()),
                },
                (error, _) => error,
            })?;
        Ok((plan, link))
    }

    fn run_hooks(&self) -> Result<()> {
        let state = State {
            status: "creating".to_owned(),
            ..self.link.state.clone().unwrap_or_default()
        };
        hook::run("createRuntime", &self.plan.hooks.create_runtime, &state)?;
        self.link.say(word::HOOKED)
    }

    /// [`Self::ready`] and [`Created::start`] with one wait instead of two.
    ///
    /// # Errors
    /// As those.
    pub fn start(mut self) -> Result<Init> {
        self.joined()?;
        // The two words are told apart by their order.
        if self.plan.hooks.before_pivot() {
            let (plan, link) = self.made()?;
            link.say(word::GO)?;
            return executed(plan, link);
        }
        self.link.say(word::GO)?;
        let (plan, link) = self.made()?;
        executed(plan, link)
    }
}

fn write_states(files: &hook::Files, state: Option<&State>) -> Result<()> {
    let state = state.cloned().unwrap_or_default();
    for (file, status) in [(&files.creating, "creating"), (&files.created, "created")] {
        let state = State {
            status: status.to_owned(),
            ..state.clone()
        };
        hook::write_state(file.as_fd(), &state)?;
    }
    Ok(())
}

/// A container that waits at its gate; nobody has to stay for it.
#[derive(Debug)]
pub struct Waiting {
    /// Its first process, in the caller's pid namespace.
    pub pid: Pid,
    /// Handle on it.
    pub pidfd: OwnedFd,
    /// The master end of its terminal, where it has one.
    pub terminal: Option<OwnedFd>,
}

/// Starts the program of a container that waits behind `gate`, a connection to the socket that its
/// creator gave as [`Extras::gate`], and waits for the exec. `plan` is what it was made from;
/// `state` is for a seccomp listener.
///
/// # Errors
/// As [`Created::start`]; then the container has ended.
pub fn open_gate(
    gate: OwnedFd,
    pid: Pid,
    pidfd: OwnedFd,
    plan: Option<&Plan>,
    process: &ProcessPlan,
    state: Option<State>,
) -> Result<()> {
    let watched = pidfd.try_clone();
    let link = Link::new(pid, pidfd, gate).with_state(state);
    link.say(word::GO)?;
    let started = link
        .executed(plan, process, |pid| open_root(pid).ok())
        .map(drop);
    if let (Err(_), Ok(pidfd)) = (&started, watched) {
        // It is not the caller's child: its end is to be waited for by handle.
        let mut polled = [PollFd::new(&pidfd, PollFlags::IN)];
        while matches!(poll(&mut polled, None), Err(Errno::INTR)) {}
    }
    started
}

/// Ends, and reaps, the process that goes ahead into others' namespaces.
#[derive(Debug)]
struct Stage {
    pidfd: OwnedFd,
}

impl Drop for Stage {
    fn drop(&mut self) {
        // It has forked and is about to end, or has failed and said so: nothing is lost.
        process::kill(&self.pidfd).ok();
        process::wait(&self.pidfd).ok();
    }
}

impl Created<'_> {
    /// The process, in the caller's pid namespace.
    pub fn pid(&self) -> Pid {
        self.link.pid
    }

    /// Handle on it.
    pub fn pidfd(&self) -> Option<BorrowedFd<'_>> {
        self.link.pidfd()
    }

    /// Leaves it to whoever connects to its gate ([`Extras::gate`]): from here on it lives without
    /// the caller.
    ///
    /// # Errors
    /// [`Error::Prepare`]; then nothing is left of it.
    pub fn leave(mut self) -> Result<Waiting> {
        self.link.say(word::LEFT)?;
        match self.link.pidfd.take() {
            Some(pidfd) => Ok(Waiting {
                pid: self.link.pid,
                pidfd,
                terminal: self.link.terminal.take(),
            }),
            None => Err(Error::NotRunning),
        }
    }

    /// The master end of its terminal, where it has one.
    pub fn terminal(&self) -> Option<BorrowedFd<'_>> {
        self.link.terminal.as_ref().map(AsFd::as_fd)
    }

    /// Opens the gate and waits for the exec.
    ///
    /// # Errors
    /// [`Error::Command`] with the reason looked for in the container, [`Error::Step`],
    /// [`Error::Died`]; then nothing is left of it.
    pub fn start(self) -> Result<Init> {
        self.link.say(word::GO)?;
        executed(self.plan, self.link)
    }
}

fn executed(plan: &Plan, link: Link) -> Result<Init> {
    let init = link.executed(Some(plan), &plan.process, |pid| open_root(pid).ok())?;
    knarr_fs::failpoint!("run.started");
    Ok(init)
}

/// The root of a process as a handle: its whole tree, mounts included.
pub(crate) fn open_root(pid: Pid) -> std::result::Result<Root, Failure> {
    let dir = prepare::open_path(&format!("/proc/{}/root", pid.as_raw_nonzero()))?;
    Ok(Root::from_fd(dir, "/"))
}

/// A namespace that the caller has left for a moment, so that the child is born in another.
struct Borrowed {
    own: OwnedFd,
    kind: Namespace,
}

impl Borrowed {
    fn give_back(self) -> Result<()> {
        knarr_sys::process::setns(self.own.as_fd(), bits(self.kind)).map_err(|cause| {
            Error::Prepare {
                what: "cannot return to the caller's namespaces".to_owned(),
                cause,
            }
        })
    }
}

/// A namespace of the plan, with its kind.
fn open_namespace(join: &crate::JoinNamespace) -> Result<(OwnedFd, Namespaces)> {
    let flags = rustix::fs::OFlags::RDONLY | rustix::fs::OFlags::CLOEXEC;
    rustix::fs::open(join.path.as_str(), flags, rustix::fs::Mode::empty())
        .map(|fd| (fd, bits(join.kind)))
        .map_err(|errno| Error::Prepare {
            what: format!("cannot join the namespace {}", join.path),
            cause: Failure {
                call: "open",
                errno,
            },
        })
}

/// Enters the namespaces that the plan joins. The child inherits them; it could not enter them
/// itself once it is in a user namespace of its own.
fn join(plan: &Plan) -> Result<Vec<Borrowed>> {
    let mut borrowed: Vec<Borrowed> = Vec::with_capacity(plan.join.len());
    let enter = |join: &crate::JoinNamespace| -> std::result::Result<Borrowed, Failure> {
        let name = match join.kind {
            Namespace::User => "user",
            Namespace::Ipc => "ipc",
            Namespace::Uts => "uts",
            Namespace::Network => "net",
            Namespace::Pid => "pid_for_children",
            Namespace::Mount => "mnt",
            Namespace::Cgroup => "cgroup",
            Namespace::Time => "time_for_children",
        };
        let open = |path: &str| {
            let flags = rustix::fs::OFlags::RDONLY | rustix::fs::OFlags::CLOEXEC;
            rustix::fs::open(path, flags, rustix::fs::Mode::empty()).map_err(Failure::of("open"))
        };
        let own = open(&format!("/proc/self/ns/{name}"))?;
        let other = open(&join.path)?;
        knarr_sys::process::setns(other.as_fd(), bits(join.kind))?;
        Ok(Borrowed {
            own,
            kind: join.kind,
        })
    };
    for one in &plan.join {
        match enter(one) {
            Ok(left) => borrowed.push(left),
            Err(cause) => {
                borrowed.into_iter().try_for_each(Borrowed::give_back)?;
                return Err(Error::Prepare {
                    what: format!("cannot join the namespace {}", one.path),
                    cause,
                });
            }
        }
    }
    Ok(borrowed)
}

/// One write(2) to a file of the child in the caller's `/proc`.
pub(crate) fn write_proc(pid: Pid, file: &str, text: &str) -> Result<()> {
    let path = format!("/proc/{}/{file}", pid.as_raw_nonzero());
    let write = || -> std::result::Result<(), Failure> {
        let flags = rustix::fs::OFlags::WRONLY | rustix::fs::OFlags::CLOEXEC;
        let file = rustix::fs::open(Path::new(&path), flags, rustix::fs::Mode::empty())
            .map_err(Failure::of("open"))?;
        rustix::io::write(&file, text.as_bytes())
            .map(drop)
            .map_err(Failure::of("write"))
    };
    write().map_err(|cause| Error::Prepare {
        what: format!(
            "cannot write `{}` to {path}",
            text.trim_end().replace('\n', ", ")
        ),
        cause,
    })
}
