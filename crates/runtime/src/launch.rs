//! The parent's side of a create and a start.

use std::io::IoSliceMut;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use knarr_fs::Root;
use knarr_sys::child::Parent;
use knarr_sys::clone::Namespaces;
use knarr_sys::{Failure, child as sys_child};
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendFlags, SocketFlags,
    SocketType,
};
use rustix::process::Pid;

use crate::child::{self, Job, word};
use crate::plan::{IdRange, Namespace, Plan, ProcessPlan, VERSION};
use crate::prepare::{self, above_stdio};
use crate::step::{self, MESSAGE, Message, Step};
use crate::{Error, Result, diagnose, process};

/// What a container is made from.
#[derive(Debug)]
pub struct Launch<'a> {
    /// What to do.
    pub plan: &'a Plan,
    /// The root: a detached mount, which is moved into the container.
    pub rootfs: OwnedFd,
    /// The program's standard files.
    pub stdio: Stdio,
    /// A cgroup v2 directory that the container is born in.
    pub cgroup: Option<BorrowedFd<'a>>,
    /// Sources of bind mounts that the caller opened itself (O_PATH descriptors or detached
    /// mounts), by index in `plan.mounts`.
    pub binds: Vec<(usize, OwnedFd)>,
}

/// A program's standard files.
#[derive(Debug)]
pub enum Stdio {
    /// Standard input, output and error.
    Files([OwnedFd; 3]),
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
    late_cgroup_namespace: bool,
    joined: bool,
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
        }
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
    pub(crate) fn hear(&mut self) -> Result<Option<Message>> {
        let (message, fd) = hear(&self.socket)?;
        if fd.is_some() {
            self.terminal = fd;
        }
        Ok(message)
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
        match self.hear()? {
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
        match self.hear()? {
            Some(Message::Ready) => Ok(self),
            Some(Message::Fault(fault)) => Err(step::error(plan, process, fault)),
            Some(Message::Forked(_)) | None => Err(self.died()),
        }
    }
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
        Stdio::Terminal => None,
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
    let late_cgroup_namespace =
        plan.waits_for_cgroups() && plan.create.contains(&Namespace::Cgroup);
    let namespaces = plan
        .create
        .iter()
        .filter(|kind| !(late_cgroup_namespace && **kind == Namespace::Cgroup))
        .fold(Namespaces::NONE, |all, kind| all.with(bits(*kind)));
    let (ours, theirs) = sockets()?;
    let job = Job {
        plan,
        tree: &tree,
        process: &prepared,
        root: root.as_fd(),
        stdio: files.as_ref(),
        socket: theirs.as_fd(),
        preserve: 0,
        late_cgroup_namespace,
    };
    // Also reads the variable, so that the child does not.
    knarr_fs::failpoint!("run.clone");
    let borrowed = join(plan)?;
    let mut ours = Some(ours);
    let forked = sys_child::fork(namespaces, cgroup, Parent::Caller, || {
        // In the child this closes its copy of the parent's end, so that it hears the parent die.
        drop(ours.take());
        child::run(&job)
    });
    let restored = borrowed.into_iter().try_for_each(Borrowed::give_back);
    let (pid, pidfd) = forked.map_err(|cause| Error::Prepare {
        what: "cannot make the container's process".to_owned(),
        cause,
    })?;
    let (Some(pidfd), Some(ours)) = (pidfd, ours) else {
        return Err(Error::NotRunning);
    };
    let link = Link::new(pid, pidfd, ours);
    restored?;
    knarr_fs::failpoint!("run.cloned");
    if let Some(maps) = &plan.user_namespace {
        write_map(pid, "uid_map", &maps.uids)?;
        write_map(pid, "gid_map", &maps.gids)?;
        link.say(word::MAPPED)?;
    }
    if let Some(adjust) = plan.process.oom_score_adj {
        write_proc(pid, "oom_score_adj", &adjust.to_string())?;
    }
    Ok(Begun {
        plan,
        link,
        late_cgroup_namespace,
        joined: false,
    })
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
        (Stdio::Terminal, Some(_)) | (Stdio::Files(_), None) => Ok(()),
        (Stdio::Terminal, None) => Err(Error::Config {
            field: "process.terminal".to_owned(),
            reason: "a terminal was asked for that the plan does not have".to_owned(),
        }),
        (Stdio::Files(_), Some(_)) => Err(Error::Config {
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
        if self.late_cgroup_namespace && !self.joined {
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
        let link = self.link.ready(Some(self.plan), &self.plan.process)?;
        knarr_fs::failpoint!("run.created");
        Ok(Created {
            plan: self.plan,
            link,
        })
    }

    /// [`Self::ready`] and [`Created::start`] with one wait instead of two.
    ///
    /// # Errors
    /// As those.
    pub fn start(mut self) -> Result<Init> {
        self.joined()?;
        self.link.say(word::GO)?;
        let link = self.link.ready(Some(self.plan), &self.plan.process)?;
        executed(self.plan, link)
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

fn write_map(pid: Pid, file: &str, ranges: &[IdRange]) -> Result<()> {
    let lines: String = ranges
        .iter()
        .map(|range| format!("{} {} {}\n", range.container, range.host, range.size))
        .collect();
    write_proc(pid, file, &lines)
}

/// One write(2) to a file of the child in the caller's `/proc`.
fn write_proc(pid: Pid, file: &str, text: &str) -> Result<()> {
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
