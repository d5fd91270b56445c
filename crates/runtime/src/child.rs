//! The child's side, from clone to exec. **Nothing here allocates**, takes a lock, or returns to
//! the parent's code: a failure is a [`Fault`], everything else was prepared.

mod program;
mod tree;

use std::ffi::CStr;
use std::io::IoSlice;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use knarr_sys::clone::Namespaces;
use knarr_sys::{Failure, child as sys_child, process as sys_process};
use rustix::fs::{Mode, OFlags, ResolveFlags};
use rustix::io::Errno;
use rustix::mount::{MountPropagationFlags, UnmountFlags};
use rustix::net::{RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags};
use rustix::process::Uid;
use rustix::thread::CapabilitySet;

pub(crate) use self::program::{Finish, Stdio, execute, finish};
use self::program::{find_program, set_stdio};
pub(crate) use self::tree::{Kind, move_in, open, open_or_make};
use self::tree::{
    attach, attach_root, change_root, finish_root, make_dev, make_readonly, mask, pivot,
    proc_handle, write_sysctl,
};
use crate::plan::{Plan, Propagation};
use crate::prepare::{Prepared, Source, Tree};
use crate::step::{Fault, MESSAGE, Message, Step};
use crate::{console, hook, weak};

type Outcome<T> = Result<T, Failure>;

/// All that the child of a create works on.
#[derive(Debug)]
pub(crate) struct Job<'a> {
    pub(crate) plan: &'a Plan,
    pub(crate) tree: &'a Tree,
    pub(crate) process: &'a Prepared,
    pub(crate) root: BorrowedFd<'a>,
    /// Standard input, output and error, all above 2; none for a terminal.
    pub(crate) stdio: Option<&'a [OwnedFd; 3]>,
    pub(crate) socket: BorrowedFd<'a>,
    /// Descriptors from 3 on that the program keeps.
    pub(crate) preserve: i32,
    pub(crate) cgroups: CgroupNamespace,
    pub(crate) time: Option<&'a TimePlan>,
    /// The host's procfs, where it is needed.
    pub(crate) proc: Option<BorrowedFd<'a>>,
    /// Waits until the parent knows it.
    pub(crate) staged: bool,
    pub(crate) gate: Option<BorrowedFd<'a>>,
    pub(crate) root_path: Option<&'a CStr>,
    pub(crate) no_pivot: bool,
    /// Mounts of the host that chroot(2) would leave within reach.
    pub(crate) hidden: &'a [std::ffi::CString],
    pub(crate) own_stdio: bool,
    pub(crate) container_hooks: &'a [hook::Prepared],
    pub(crate) start_hooks: &'a [hook::Prepared],
    pub(crate) hook_files: Option<&'a hook::Files>,
}

/// When the cgroup namespace is made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum CgroupNamespace {
    /// By the clone, or not at all.
    AtOnce,
    /// When the parent has joined cgroups.
    Late,
    /// The same, but only for the mounts, which then show the container's own cgroups.
    Lent,
}

/// A new time namespace.
#[derive(Debug)]
pub(crate) struct TimePlan {
    /// For `/proc/self/timens_offsets`.
    pub(crate) offsets: Vec<u8>,
}

/// What the parent says to the child, one byte each.
pub(crate) mod word {
    pub(crate) const MAPPED: u8 = b'M';
    pub(crate) const JOINED: u8 = b'J';
    /// The hooks of the host have run.
    pub(crate) const HOOKED: u8 = b'H';
    pub(crate) const GO: u8 = b'G';
    /// The creator goes; whoever connects to the gate is the one to listen to.
    pub(crate) const LEFT: u8 = b'L';
}

/// Runs the child to its end; the answer is the exit code.
pub(crate) fn run(job: &Job<'_>) -> i32 {
    match create(job) {
        Ok(code) => code,
        Err(fault) => give_up(job.socket, fault),
    }
}

/// Tells the parent, and stays until it has looked around in the container (see `diagnose`).
pub(crate) fn give_up(socket: BorrowedFd<'_>, fault: Fault) -> i32 {
    if send(socket, Message::Fault(fault)).is_ok() {
        // Whatever comes, or the end of the connection: it is time to go.
        while receive(socket).is_ok_and(|word| word.is_some()) {}
    }
    1
}

pub(crate) fn send(socket: BorrowedFd<'_>, message: Message) -> Outcome<()> {
    rustix::net::send(socket, &message.encode(), SendFlags::NOSIGNAL)
        .map(drop)
        .map_err(Failure::of("send"))
}

/// Says that all is ready, with the master end of the terminal.
pub(crate) fn send_terminal(socket: BorrowedFd<'_>, master: BorrowedFd<'_>) -> Outcome<()> {
    send_with(socket, Message::Ready, master)
}

fn send_with(socket: BorrowedFd<'_>, message: Message, fd: BorrowedFd<'_>) -> Outcome<()> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    let fds = [fd];
    control.push(SendAncillaryMessage::ScmRights(&fds));
    let bytes: [u8; MESSAGE] = message.encode();
    rustix::net::sendmsg(
        socket,
        &[IoSlice::new(&bytes)],
        &mut control,
        SendFlags::NOSIGNAL,
    )
    .map(drop)
    .map_err(Failure::of("send"))
}

/// One byte from the parent; `None` when it is gone.
fn receive(socket: BorrowedFd<'_>) -> Outcome<Option<u8>> {
    let mut byte = [0u8; 1];
    loop {
        match rustix::net::recv(socket, &mut byte, RecvFlags::empty()) {
            Ok((_, 0)) => return Ok(None),
            Ok(_) => return Ok(Some(byte[0])),
            Err(Errno::INTR) => {}
            Err(errno) => {
                return Err(Failure {
                    call: "recv",
                    errno,
                });
            }
        }
    }
}

/// Waits for one word of the parent; nothing else may come first.
pub(crate) fn wait_for(socket: BorrowedFd<'_>, word: u8) -> Result<(), Fault> {
    match receive(socket).map_err(Fault::at(Step::Wait))? {
        Some(got) if got == word => Ok(()),
        _ => Err(Fault::at(Step::Wait)(Failure {
            call: "recv",
            errno: Errno::PIPE,
        })),
    }
}

fn create(job: &Job<'_>) -> Result<i32, Fault> {
    let (plan, tree, root) = (job.plan, job.tree, job.root);
    // Descriptors keep their numbers low; each is close-on-exec, so few are closed by hand.
    if job.staged {
        wait_for(job.socket, word::GO)?;
    }
    if plan.user_namespace.is_some() {
        wait_for(job.socket, word::MAPPED)?;
        become_root().map_err(Fault::at(Step::BecomeRoot))?;
    }
    rustix::process::setsid()
        .map_err(Failure::of("setsid"))
        .map_err(Fault::at(Step::Session))?;
    rustix::process::umask(Mode::empty());
    if let (Some(time), Some(proc)) = (job.time, job.proc) {
        enter_time(time, proc).map_err(Fault::at(Step::TimeNamespace))?;
    }
    if let Some(name) = &plan.hostname {
        rustix::system::sethostname(name.as_bytes())
            .map_err(Failure::of("sethostname"))
            .map_err(Fault::at(Step::Hostname))?;
    }
    if let Some(name) = &plan.domainname {
        rustix::system::setdomainname(name.as_bytes())
            .map_err(Failure::of("setdomainname"))
            .map_err(Fault::at(Step::Domainname))?;
    }
    if plan.loopback {
        sys_child::bring_up_loopback().map_err(Fault::at(Step::Loopback))?;
    }
    // Nothing that is mounted from here on reaches the host. A root that shall be a slave or
    // shared stays the host's slave until the end.
    let cut = match plan.root.propagation {
        Propagation::Private | Propagation::Unbindable => MountPropagationFlags::PRIVATE,
        Propagation::Slave | Propagation::Shared => MountPropagationFlags::DOWNSTREAM,
    };
    rustix::mount::mount_change(c"/", cut | MountPropagationFlags::REC)
        .map_err(Failure::of("mount"))
        .map_err(Fault::at(Step::Propagation))?;
    for mount in job.hidden {
        // Some lie below others that are gone already.
        rustix::mount::unmount(mount, UnmountFlags::DETACH).ok();
    }
    attach_root(root, job.root_path.unwrap_or(c"/")).map_err(Fault::at(Step::AttachRoot))?;
    if !tree.sysctls.is_empty() {
        let proc = if weak::off("sysctl") {
            open(root, c"/proc", OFlags::PATH, ResolveFlags::empty())
        } else {
            proc_handle()
        }
        .map_err(Fault::at(Step::ProcHandle))?;
        for (index, (path, value)) in tree.sysctls.iter().enumerate() {
            write_sysctl(proc.as_fd(), path, value).map_err(Fault::nth(Step::Sysctl, index))?;
        }
    }
    let mut joined = job.cgroups == CgroupNamespace::AtOnce;
    for (index, mount) in tree.mounts.iter().enumerate() {
        let waits = match &mount.source {
            Source::Hierarchies { .. } => true,
            // Its root is the one of the namespace that it is mounted from.
            Source::New { file_system, .. } => {
                job.cgroups == CgroupNamespace::Late && file_system.as_c_str() == c"cgroup2"
            }
            Source::Tree { .. } | Source::Again { .. } => false,
        };
        if !waits {
            attach(root, mount, index)?;
            continue;
        }
        if !joined {
            wait_for(job.socket, word::JOINED)?;
        }
        let own = match job.cgroups {
            CgroupNamespace::Lent => Some(own_cgroups(job.proc)?),
            CgroupNamespace::Late | CgroupNamespace::AtOnce => None,
        };
        if !joined || own.is_some() {
            sys_child::unshare_cgroup_namespace().map_err(Fault::at(Step::CgroupNamespace))?;
        }
        joined = true;
        attach(root, mount, index)?;
        if let Some(own) = own {
            match sys_process::setns(own.as_fd(), Namespaces::CGROUP) {
                // In a user namespace there is no way back; the new one shows less.
                Ok(())
                | Err(Failure {
                    errno: Errno::PERM, ..
                }) => {}
                Err(failure) => return Err(Fault::at(Step::CgroupNamespace)(failure)),
            }
        }
    }
    if let Some(dev) = &tree.dev {
        make_dev(root, dev, &tree.devices)?;
    }
    let terminal = match (&tree.console, job.process.terminal) {
        (Some(place), Some(size)) => {
            let owner = (job.process.uid, job.process.gid);
            Some(console::open(root, size, owner, Some(place)).map_err(Fault::at(Step::Console))?)
        }
        _ => None,
    };
    let cwd = if weak::off("cwd") {
        open(root, c"/", OFlags::PATH, ResolveFlags::empty())
    } else {
        open_or_make(
            root,
            &job.process.cwd,
            Kind::Directory,
            ResolveFlags::empty(),
        )
    }
    .map_err(Fault::at(Step::Cwd))?;
    if !weak::off("masks") {
        mask(root, tree)?;
        for (index, path) in tree.readonly.iter().enumerate() {
            make_readonly(root, path).map_err(Fault::nth(Step::ReadonlyPath, index))?;
        }
    }
    if plan.hooks.before_pivot() {
        send(job.socket, Message::Mounted).map_err(Fault::at(Step::Wait))?;
        wait_for(job.socket, word::HOOKED)?;
        if let Some(files) = job.hook_files {
            let (input, output) = (files.creating.as_fd(), files.output.as_fd());
            hook::run_inside(
                job.container_hooks,
                Step::CreateContainerHook,
                input,
                output,
            )?;
        }
    }
    finish_root(root, plan).map_err(Fault::at(Step::RootAttributes))?;
    if job.no_pivot {
        change_root(root)
    } else {
        pivot(root)
    }
    .map_err(Fault::at(Step::Pivot))?;
    knarr_fs::failpoint!("run.mounted");

    if !joined {
        wait_for(job.socket, word::JOINED)?;
        if job.cgroups == CgroupNamespace::Late {
            sys_child::unshare_cgroup_namespace().map_err(Fault::at(Step::CgroupNamespace))?;
        }
    }
    if job.gate.is_some() {
        find_program(job.process, cwd.as_fd())?;
    }
    match &terminal {
        Some(pair) => send_terminal(job.socket, pair.master.as_fd()),
        None => send(job.socket, Message::Ready),
    }
    .map_err(Fault::at(Step::Wait))?;
    let stdio = Stdio::of(job.stdio, terminal.as_ref().map(|pair| pair.slave.as_fd()));
    if let Some(gate) = job.gate {
        return wait_at_gate(job, gate, cwd.as_fd(), &stdio);
    }
    wait_for(job.socket, word::GO)?;
    knarr_fs::failpoint!("run.gate");
    start(job, cwd.as_fd(), &stdio, job.socket)
}

/// From the start on: hooks, then the program.
fn start(
    job: &Job<'_>,
    cwd: BorrowedFd<'_>,
    stdio: &Stdio<'_>,
    socket: BorrowedFd<'_>,
) -> Result<i32, Fault> {
    if let Some(files) = job.hook_files {
        let (input, output) = (files.created.as_fd(), files.output.as_fd());
        hook::run_inside(job.start_hooks, Step::StartContainerHook, input, output)?;
    }
    let rest = Finish {
        socket,
        preserve: job.preserve,
        own_stdio: job.own_stdio,
    };
    finish(job.process, cwd, stdio, &rest)
}

/// Waits without the creator, with nothing of it but what the program will have.
fn wait_at_gate(
    job: &Job<'_>,
    gate: BorrowedFd<'_>,
    cwd: BorrowedFd<'_>,
    stdio: &Stdio<'_>,
) -> Result<i32, Fault> {
    let at = Fault::at(Step::Gate);
    set_stdio(stdio).map_err(Fault::at(Step::Stdio))?;
    let files = job.hook_files;
    let labels = job.process.labels.as_ref();
    let mut kept = [
        gate.as_raw_fd(),
        cwd.as_raw_fd(),
        job.socket.as_raw_fd(),
        files.map_or(-1, |files| files.created.as_raw_fd()),
        files.map_or(-1, |files| files.output.as_raw_fd()),
        labels.map_or(-1, |labels| labels.proc.as_raw_fd()),
    ];
    kept.sort_unstable();
    if !weak::off("files") {
        sys_child::close_all_but_sorted(3 + job.preserve, &kept).map_err(&at)?;
    }
    // A creator that dies before it has written down what it made takes this process along.
    wait_for(job.socket, word::LEFT)?;
    let connection = loop {
        match rustix::net::accept_with(gate, rustix::net::SocketFlags::CLOEXEC) {
            Ok(connection) => break connection,
            Err(Errno::INTR | Errno::CONNABORTED) => {}
            Err(errno) => {
                return Err(at(Failure {
                    call: "accept",
                    errno,
                }));
            }
        }
    };
    let socket = connection.as_fd();
    let started = wait_for(socket, word::GO).and_then(|()| {
        knarr_fs::failpoint!("run.gate");
        start(job, cwd, &Stdio::Inherited, socket)
    });
    Ok(started.unwrap_or_else(|fault| give_up(socket, fault)))
}

/// Goes ahead into others' namespaces and makes the container's process there. Its own exit code
/// says nothing.
pub(crate) fn stage(job: &Job<'_>, targets: &[(OwnedFd, Namespaces)], create: Namespaces) -> i32 {
    let forked = || -> Result<rustix::process::Pid, Fault> {
        let at = Fault::at(Step::Join);
        if targets.iter().any(|(_, kind)| *kind == Namespaces::USER) {
            leave_groups().map_err(Fault::at(Step::Groups))?;
        }
        for (target, kind) in targets {
            sys_process::setns(target.as_fd(), *kind).map_err(&at)?;
            if *kind == Namespaces::USER {
                become_root().map_err(Fault::at(Step::BecomeRoot))?;
            }
        }
        sys_child::fork(create, None, sys_child::Parent::Grandparent, || run(job))
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

/// Makes a time namespace, sets its clocks, and enters it: what is in one cannot change it.
fn enter_time(time: &TimePlan, proc: BorrowedFd<'_>) -> Outcome<()> {
    sys_child::unshare_time_namespace()?;
    if !time.offsets.is_empty() {
        let flags = OFlags::WRONLY | OFlags::CLOEXEC;
        let file = rustix::fs::openat(proc, c"self/timens_offsets", flags, Mode::empty())
            .map_err(Failure::of("openat"))?;
        rustix::io::write(&file, &time.offsets).map_err(Failure::of("write"))?;
    }
    let flags = OFlags::RDONLY | OFlags::CLOEXEC;
    let namespace = rustix::fs::openat(proc, c"self/ns/time_for_children", flags, Mode::empty())
        .map_err(Failure::of("openat"))?;
    sys_process::setns(namespace.as_fd(), Namespaces::TIME)
}

/// The cgroup namespace that the process is in.
fn own_cgroups(proc: Option<BorrowedFd<'_>>) -> Result<OwnedFd, Fault> {
    let flags = OFlags::RDONLY | OFlags::CLOEXEC;
    let proc = proc.unwrap_or(rustix::fs::CWD);
    rustix::fs::openat(proc, c"self/ns/cgroup", flags, Mode::empty())
        .map_err(Failure::of("openat"))
        .map_err(Fault::at(Step::CgroupNamespace))
}

/// Drops the caller's supplementary groups before a user namespace of others is joined, which may
/// deny that ([`set_groups`]).
pub(crate) fn leave_groups() -> Outcome<()> {
    match rustix::thread::set_thread_groups(&[]) {
        // Who has not the right here may get it there.
        Ok(()) | Err(Errno::PERM) => Ok(()),
        Err(errno) => Err(Failure {
            call: "setgroups",
            errno,
        }),
    }
}

/// Root of the new user namespace: before, the process is nobody in it.
pub(crate) fn become_root() -> Outcome<()> {
    let (uid, gid) = (Uid::ROOT, rustix::process::Gid::ROOT);
    rustix::thread::set_thread_res_gid(gid, gid, gid).map_err(Failure::of("setresgid"))?;
    rustix::thread::set_thread_res_uid(uid, uid, uid).map_err(Failure::of("setresuid"))?;
    set_groups(&[])
}

/// Sets the supplementary groups. Where a user namespace denies that to who has CAP_SETGID
/// (user_namespaces(7), "The /proc/pid/setgroups file"), having none asked for is enough: those
/// that could be dropped before are gone.
fn set_groups(groups: &[rustix::process::Gid]) -> Outcome<()> {
    match rustix::thread::set_thread_groups(groups) {
        Err(Errno::PERM)
            if groups.is_empty()
                && rustix::thread::capabilities(None)
                    .is_ok_and(|own| own.effective.contains(CapabilitySet::SETGID)) =>
        {
            Ok(())
        }
        done => done.map_err(Failure::of("setgroups")),
    }
}
