//! The child's side, from clone to exec. **Nothing here allocates**, takes a lock, or returns to
//! the parent's code: a failure is a [`Fault`], everything else was prepared.

use std::ffi::CStr;
use std::io::IoSlice;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use knarr_sys::clone::Namespaces;
use knarr_sys::mount::{Attributes, Change, Propagation as SysPropagation, mount_setattr};
use knarr_sys::{Failure, child as sys_child, process as sys_process};
use rustix::fs::{AtFlags, FileType, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MountFlags, MountPropagationFlags, MoveMountFlags,
    OpenTreeFlags, UnmountFlags,
};
use rustix::net::{RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags};
use rustix::process::Uid;

use crate::plan::{Plan, Propagation};
use crate::prepare::{Device, DeviceSource, Mount, Place, Prepared, Source, Tree, propagation};
use crate::step::{Fault, MESSAGE, Message, Step};
use crate::{console, hook, init};

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
        let proc = proc_handle().map_err(Fault::at(Step::ProcHandle))?;
        for (index, (path, value)) in tree.sysctls.iter().enumerate() {
            write_sysctl(proc.as_fd(), path, value).map_err(Fault::nth(Step::Sysctl, index))?;
        }
    }
    let mut joined = job.cgroups == CgroupNamespace::AtOnce;
    for (index, mount) in tree.mounts.iter().enumerate() {
        if !matches!(mount.source, Source::Hierarchies { .. }) {
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
    let cwd = open_or_make(
        root,
        &job.process.cwd,
        Kind::Directory,
        ResolveFlags::empty(),
    )
    .map_err(Fault::at(Step::Cwd))?;
    mask(root, tree)?;
    for (index, path) in tree.readonly.iter().enumerate() {
        make_readonly(root, path).map_err(Fault::nth(Step::ReadonlyPath, index))?;
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
    sys_child::close_all_but_sorted(3 + job.preserve, &kept).map_err(&at)?;
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

/// Whether there is a program to start: who creates shall hear of it, not only who starts.
fn find_program(process: &Prepared, cwd: BorrowedFd<'_>) -> Result<(), Fault> {
    rustix::process::fchdir(cwd)
        .map_err(Failure::of("fchdir"))
        .map_err(Fault::at(Step::EnterCwd))?;
    let mut errno = Errno::NOENT;
    for candidate in &process.candidates {
        match rustix::fs::stat(candidate) {
            Ok(stat) => {
                let regular = FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile;
                if regular && stat.st_mode & 0o111 != 0 {
                    return Ok(());
                }
                errno = Errno::ACCESS;
            }
            Err(Errno::NOENT | Errno::NOTDIR) => {}
            Err(other) => errno = other,
        }
    }
    Err(Fault::at(Step::Exec)(Failure {
        call: "stat",
        errno,
    }))
}

/// Goes ahead into others' namespaces and makes the container's process there. Its own exit code
/// says nothing.
pub(crate) fn stage(job: &Job<'_>, targets: &[(OwnedFd, Namespaces)], create: Namespaces) -> i32 {
    let forked = || -> Result<rustix::process::Pid, Fault> {
        let at = Fault::at(Step::Join);
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

/// Where the program's standard files come from.
pub(crate) enum Stdio<'a> {
    Files(&'a [OwnedFd; 3]),
    Terminal(BorrowedFd<'a>),
    /// As they are.
    Inherited,
}

impl<'a> Stdio<'a> {
    pub(crate) fn of(files: Option<&'a [OwnedFd; 3]>, terminal: Option<BorrowedFd<'a>>) -> Self {
        match (terminal, files) {
            (Some(slave), _) => Self::Terminal(slave),
            (None, Some(files)) => Self::Files(files),
            (None, None) => Self::Inherited,
        }
    }
}

/// What [`finish`] is told beside the program.
pub(crate) struct Finish<'a> {
    pub(crate) socket: BorrowedFd<'a>,
    /// Descriptors from 3 on that the program keeps.
    pub(crate) preserve: i32,
    /// Its standard files become its user's.
    pub(crate) own_stdio: bool,
}

/// From inside the container's root to the program: who it is and what it may do, then exec.
pub(crate) fn finish(
    process: &Prepared,
    cwd: BorrowedFd<'_>,
    stdio: &Stdio<'_>,
    rest: &Finish<'_>,
) -> Result<i32, Fault> {
    if process.new_keyring {
        match sys_child::join_new_session_keyring() {
            // A kernel without keyrings has none to share.
            Ok(())
            | Err(Failure {
                errno: Errno::NOSYS,
                ..
            }) => {}
            Err(failure) => return Err(Fault::at(Step::Keyring)(failure)),
        }
    }
    set_stdio(stdio).map_err(Fault::at(Step::Stdio))?;
    if rest.own_stdio {
        own_stdio(process);
    }
    tune(process)?;
    for (index, (resource, limit)) in process.rlimits.iter().enumerate() {
        rustix::process::setrlimit(*resource, *limit)
            .map_err(Failure::of("setrlimit"))
            .map_err(Fault::nth(Step::Rlimit, index))?;
    }
    if process.no_new_privileges {
        rustix::thread::set_no_new_privs(true)
            .map_err(Failure::of("prctl"))
            .map_err(Fault::at(Step::NoNewPrivileges))?;
    } else {
        // Without no_new_privs it takes CAP_SYS_ADMIN, so before that is dropped.
        load_filter(process, rest.socket)?;
    }
    if let Some(capabilities) = &process.capabilities {
        for &capability in &capabilities.dropped {
            match rustix::thread::remove_capability_from_bounding_set(capability) {
                Ok(()) => {}
                // Newer than the kernel: nobody has it.
                Err(Errno::INVAL) => break,
                Err(errno) => {
                    return Err(Fault::at(Step::Bounding)(Failure {
                        call: "prctl",
                        errno,
                    }));
                }
            }
        }
        rustix::thread::set_keep_capabilities(true)
            .map_err(Failure::of("prctl"))
            .map_err(Fault::at(Step::Capabilities))?;
    }
    rustix::thread::set_thread_groups(&process.groups)
        .map_err(Failure::of("setgroups"))
        .map_err(Fault::at(Step::Groups))?;
    rustix::thread::set_thread_res_gid(process.gid, process.gid, process.gid)
        .map_err(Failure::of("setresgid"))
        .map_err(Fault::at(Step::Groups))?;
    rustix::thread::set_thread_res_uid(process.uid, process.uid, process.uid)
        .map_err(Failure::of("setresuid"))
        .map_err(Fault::at(Step::User))?;
    // As the user, who may not be allowed in; by handle, so it cannot be outside.
    rustix::process::fchdir(cwd)
        .map_err(Failure::of("fchdir"))
        .map_err(Fault::at(Step::EnterCwd))?;
    if let Some(capabilities) = &process.capabilities {
        rustix::thread::set_capabilities(None, capabilities.sets)
            .map_err(Failure::of("capset"))
            .map_err(Fault::at(Step::Capabilities))?;
        // A change of uid has emptied the ambient set; for one that stays root this does.
        rustix::thread::clear_ambient_capability_set()
            .map_err(Failure::of("prctl"))
            .map_err(Fault::at(Step::Capabilities))?;
        for &capability in &capabilities.ambient {
            rustix::thread::configure_capability_in_ambient_set(capability, true)
                .map_err(Failure::of("prctl"))
                .map_err(Fault::at(Step::Capabilities))?;
        }
    }
    rustix::process::umask(process.umask);
    sys_child::close_on_exec_from(3 + rest.preserve).map_err(Fault::at(Step::CloseFiles))?;
    for fd in 3..3 + rest.preserve {
        sys_child::keep_on_exec(fd).map_err(Fault::at(Step::CloseFiles))?;
    }
    if process.no_new_privileges {
        load_filter(process, rest.socket)?;
    }
    if process.init {
        init::run(process, rest.socket)
    } else {
        sys_process::reset_signals().map_err(Fault::at(Step::CloseFiles))?;
        knarr_fs::failpoint!("run.exec");
        Err(execute(process))
    }
}

/// Tries every candidate as execvp(3) does. Returns only if none could be executed: with the fault
/// that says most.
pub(crate) fn execute(process: &Prepared) -> Fault {
    let mut worst = Fault::at(Step::Exec)(Failure {
        call: "execve",
        errno: Errno::NOENT,
    });
    for (index, candidate) in process.candidates.iter().enumerate() {
        let failure = sys_process::execve(candidate, &process.args, &process.env);
        let fault = Fault::nth(Step::Exec, index)(failure);
        match failure.errno {
            Errno::NOENT | Errno::NOTDIR if process.candidates.len() > 1 => {}
            // It is there, but another may be allowed.
            Errno::ACCESS => worst = fault,
            _ => return fault,
        }
    }
    worst
}

fn load_filter(process: &Prepared, socket: BorrowedFd<'_>) -> Result<(), Fault> {
    if let Some(program) = &process.seccomp {
        let listener = knarr_sys::seccomp::load(program.instructions(), program.flags())
            .map_err(Fault::at(Step::Seccomp))?;
        if let Some(listener) = listener {
            send_with(socket, Message::Listener, listener.as_fd())
                .map_err(Fault::at(Step::Seccomp))?;
        }
    }
    Ok(())
}

/// Scheduling, memory and labels of the program.
fn tune(process: &Prepared) -> Result<(), Fault> {
    use knarr_sys::schedule;
    if let Some(persona) = process.personality {
        schedule::set_personality(persona).map_err(Fault::at(Step::Personality))?;
    }
    if let Some(cpus) = &process.last_cpus {
        rustix::thread::sched_setaffinity(None, cpus)
            .map_err(Failure::of("sched_setaffinity"))
            .map_err(Fault::at(Step::Affinity))?;
    }
    if let Some(scheduling) = &process.scheduling {
        schedule::sched_setattr(scheduling).map_err(Fault::at(Step::Scheduler))?;
    }
    if let Some(value) = process.io_priority {
        schedule::set_io_priority(value).map_err(Fault::at(Step::IoPriority))?;
    }
    if let Some((mode, nodes)) = &process.memory_policy {
        schedule::set_memory_policy(*mode, nodes).map_err(Fault::at(Step::MemoryPolicy))?;
    }
    if let Some(labels) = &process.labels {
        let proc = labels.proc.as_fd();
        if let Some(profile) = &labels.apparmor {
            // The module's own file (Linux 5.8), else the one it may share.
            write_label(proc, c"thread-self/attr/apparmor/exec", profile)
                .or_else(|failure| match failure.call {
                    "openat" => write_label(proc, c"thread-self/attr/exec", profile),
                    _ => Err(failure),
                })
                .map_err(Fault::at(Step::Apparmor))?;
        }
        if let Some(label) = &labels.selinux {
            write_label(proc, c"thread-self/attr/exec", label).map_err(Fault::at(Step::Selinux))?;
        }
    }
    Ok(())
}

fn write_label(proc: BorrowedFd<'_>, path: &CStr, value: &[u8]) -> Outcome<()> {
    let flags = OFlags::WRONLY | OFlags::CLOEXEC;
    let file =
        rustix::fs::openat(proc, path, flags, Mode::empty()).map_err(Failure::of("openat"))?;
    rustix::io::write(&file, value)
        .map(drop)
        .map_err(Failure::of("write"))
}

/// Gives the standard files to the program's user, where that is allowed: `/dev/stdout` opened by
/// its name asks for permission again.
fn own_stdio(process: &Prepared) {
    let null = rustix::fs::makedev(1, 3);
    for fd in [
        rustix::stdio::stdin(),
        rustix::stdio::stdout(),
        rustix::stdio::stderr(),
    ] {
        let Ok(stat) = rustix::fs::fstat(fd) else {
            continue;
        };
        let is_null = FileType::from_raw_mode(stat.st_mode) == FileType::CharacterDevice
            && stat.st_rdev == null;
        if !is_null && stat.st_uid != process.uid.as_raw() {
            // A user that is not mapped, a read-only file system: the file stays whose it was.
            rustix::fs::fchown(fd, Some(process.uid), None).ok();
        }
    }
}

fn set_stdio(stdio: &Stdio<'_>) -> Outcome<()> {
    let [input, output, error] = match stdio {
        Stdio::Files(files) => [files[0].as_fd(), files[1].as_fd(), files[2].as_fd()],
        Stdio::Terminal(slave) => {
            rustix::process::ioctl_tiocsctty(slave).map_err(Failure::of("ioctl(TIOCSCTTY)"))?;
            [*slave; 3]
        }
        Stdio::Inherited => return Ok(()),
    };
    rustix::stdio::dup2_stdin(input).map_err(Failure::of("dup2"))?;
    rustix::stdio::dup2_stdout(output).map_err(Failure::of("dup2"))?;
    rustix::stdio::dup2_stderr(error).map_err(Failure::of("dup2"))
}

/// Root of the new user namespace: before, the process is nobody in it.
pub(crate) fn become_root() -> Outcome<()> {
    let (uid, gid) = (Uid::ROOT, rustix::process::Gid::ROOT);
    rustix::thread::set_thread_res_gid(gid, gid, gid).map_err(Failure::of("setresgid"))?;
    rustix::thread::set_thread_res_uid(uid, uid, uid).map_err(Failure::of("setresuid"))?;
    rustix::thread::set_thread_groups(&[]).map_err(Failure::of("setgroups"))
}

/// Puts the detached root where it will be found: over the old one (paths from `/` still lead
/// through that), or at its own place on the host.
fn attach_root(root: BorrowedFd<'_>, place: &CStr) -> Outcome<()> {
    rustix::mount::move_mount(
        root,
        c"",
        rustix::fs::CWD,
        place,
        MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH,
    )
    .map_err(Failure::of("move_mount"))
}

/// A procfs of the container's pid namespace that is mounted nowhere, so nothing can cover it.
fn proc_handle() -> Outcome<OwnedFd> {
    let context = rustix::mount::fsopen(c"proc", FsOpenFlags::FSOPEN_CLOEXEC)
        .map_err(Failure::of("fsopen"))?;
    rustix::mount::fsconfig_create(&context).map_err(Failure::of("fsconfig"))?;
    rustix::mount::fsmount(
        &context,
        FsMountFlags::FSMOUNT_CLOEXEC,
        MountAttrFlags::empty(),
    )
    .map_err(Failure::of("fsmount"))
}

fn write_sysctl(proc: BorrowedFd<'_>, path: &CStr, value: &[u8]) -> Outcome<()> {
    let resolve = ResolveFlags::BENEATH
        | ResolveFlags::NO_XDEV
        | ResolveFlags::NO_SYMLINKS
        | ResolveFlags::NO_MAGICLINKS;
    let flags = OFlags::WRONLY | OFlags::CLOEXEC;
    let file = rustix::fs::openat2(proc, path, flags, Mode::empty(), resolve)
        .map_err(Failure::of("openat2"))?;
    rustix::io::write(&file, value)
        .map(drop)
        .map_err(Failure::of("write"))
}

/// Opens a path of the container as O_PATH.
pub(crate) fn open(
    root: BorrowedFd<'_>,
    path: &CStr,
    flags: OFlags,
    resolve: ResolveFlags,
) -> Outcome<OwnedFd> {
    let resolve = resolve | ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    loop {
        match rustix::fs::openat2(root, path, flags | OFlags::CLOEXEC, Mode::empty(), resolve) {
            // A rename somewhere in the system raced with the walk (openat2(2)).
            Err(Errno::AGAIN) => {}
            Err(errno) => {
                return Err(Failure {
                    call: "openat2",
                    errno,
                });
            }
            Ok(fd) => return Ok(fd),
        }
    }
}

/// What is made where a place is missing.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Directory,
    File,
}

/// Opens a place as O_PATH, making it and the folders on the way where they are missing. Every
/// step is taken from a handle, so what another process of a shared volume does meanwhile cannot
/// lead it out.
pub(crate) fn open_or_make(
    root: BorrowedFd<'_>,
    place: &Place,
    kind: Kind,
    resolve: ResolveFlags,
) -> Outcome<OwnedFd> {
    let flags = match kind {
        Kind::Directory => OFlags::PATH | OFlags::DIRECTORY,
        Kind::File => OFlags::PATH,
    };
    match open(root, &place.path, flags, resolve) {
        Err(Failure {
            errno: Errno::NOENT,
            ..
        }) => {}
        done => return done,
    }
    let folder = OFlags::PATH | OFlags::DIRECTORY;
    let mut parent: Option<OwnedFd> = None;
    for (at, (path, name)) in place.steps.iter().enumerate() {
        let last = at + 1 == place.steps.len();
        let wanted = if last { flags } else { folder };
        let opened = match open(root, path, wanted, resolve) {
            Err(Failure {
                errno: Errno::NOENT,
                ..
            }) => {
                let dir = parent.as_ref().map_or(root, AsFd::as_fd);
                if last && kind == Kind::File {
                    let create = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
                    rustix::fs::openat(dir, name, create, Mode::from_raw_mode(0o644))
                        .map_err(Failure::of("openat"))?;
                } else {
                    rustix::fs::mkdirat(dir, name, Mode::from_raw_mode(0o755))
                        .map_err(Failure::of("mkdirat"))?;
                }
                open(
                    dir,
                    name,
                    wanted | OFlags::NOFOLLOW,
                    ResolveFlags::NO_SYMLINKS,
                )?
            }
            other => other?,
        };
        parent = Some(opened);
    }
    parent.ok_or(Failure {
        call: "openat2",
        errno: Errno::NOENT,
    })
}

/// Attaches a detached mount to what `target` refers to.
pub(crate) fn move_in(tree: BorrowedFd<'_>, target: BorrowedFd<'_>) -> Outcome<()> {
    rustix::mount::move_mount(
        tree,
        c"",
        target,
        c"",
        MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH,
    )
    .map_err(Failure::of("move_mount"))
}

/// Few descriptors are closed one by one: execve closes them all at once.
fn leave(fd: OwnedFd) {
    if fd.as_raw_fd() < 256 {
        std::mem::forget(fd);
    }
}

fn attach(root: BorrowedFd<'_>, mount: &Mount, index: usize) -> Result<(), Fault> {
    let target = |kind, resolve| {
        open_or_make(root, &mount.place, kind, resolve)
            .map_err(Fault::nth(Step::MountTarget, index))
    };
    match &mount.source {
        Source::Tree { tree, directory } => {
            let kind = if *directory {
                Kind::Directory
            } else {
                Kind::File
            };
            let target = target(kind, ResolveFlags::empty())?;
            move_in(tree.as_fd(), target.as_fd()).map_err(Fault::nth(Step::Mount, index))?;
            leave(target);
        }
        Source::New {
            file_system,
            source,
            data,
            flags,
        } => {
            // A /proc or /sys that is a link would put them elsewhere than everybody believes.
            let strict = file_system.as_c_str() == c"proc" || file_system.as_c_str() == c"sysfs";
            let resolve = if strict {
                ResolveFlags::NO_SYMLINKS
            } else {
                ResolveFlags::empty()
            };
            let target = target(Kind::Directory, resolve)?;
            mount_here(target.as_fd(), file_system, source, data.as_deref(), *flags)
                .map_err(Fault::nth(Step::Mount, index))?;
            leave(target);
        }
        Source::Hierarchies { list, flags } => {
            let target = target(Kind::Directory, ResolveFlags::empty())?;
            hierarchies(root, mount, target.as_fd(), list, *flags)
                .map_err(Fault::nth(Step::Mount, index))?;
        }
    }
    for (word, recursive) in &mount.propagation {
        let change = Change {
            propagation: *word,
            recursive: *recursive,
            ..Change::default()
        };
        let top = open(root, &mount.place.path, OFlags::PATH, ResolveFlags::empty());
        top.and_then(|top| mount_setattr(&top, c"", &change))
            .map_err(Fault::nth(Step::MountPropagation, index))?;
    }
    Ok(())
}

/// mount(2) on a handle: on the working directory, after moving there.
fn mount_here(
    target: BorrowedFd<'_>,
    file_system: &CStr,
    source: &CStr,
    data: Option<&CStr>,
    flags: MountFlags,
) -> Outcome<()> {
    rustix::process::fchdir(target).map_err(Failure::of("fchdir"))?;
    rustix::mount::mount(source, c".", file_system, flags, data).map_err(Failure::of("mount"))
}

/// `/sys/fs/cgroup` of cgroup v1: a tmpfs with one folder per hierarchy.
fn hierarchies(
    root: BorrowedFd<'_>,
    mount: &Mount,
    target: BorrowedFd<'_>,
    list: &[(std::ffi::CString, Option<std::ffi::CString>)],
    flags: MountFlags,
) -> Outcome<()> {
    let no = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    mount_here(target, c"tmpfs", c"cgroup", Some(c"mode=755,size=64k"), no)?;
    let dir = open(
        root,
        &mount.place.path,
        OFlags::PATH | OFlags::DIRECTORY,
        ResolveFlags::empty(),
    )?;
    for (name, controllers) in list {
        rustix::fs::mkdirat(&dir, name, Mode::from_raw_mode(0o755))
            .map_err(Failure::of("mkdirat"))?;
        let place = open(
            dir.as_fd(),
            name,
            OFlags::PATH | OFlags::DIRECTORY,
            ResolveFlags::empty(),
        )?;
        let kind = if controllers.is_some() {
            c"cgroup"
        } else {
            c"cgroup2"
        };
        mount_here(
            place.as_fd(),
            kind,
            c"cgroup",
            controllers.as_deref(),
            flags | no,
        )?;
    }
    if flags.contains(MountFlags::RDONLY) {
        let change = Change {
            set: Attributes::RDONLY,
            ..Change::default()
        };
        mount_setattr(&dir, c"", &change)?;
    }
    Ok(())
}

fn make_dev(root: BorrowedFd<'_>, dev: &Place, devices: &[Device]) -> Result<(), Fault> {
    let at = Fault::at(Step::DevLinks);
    let dir = open_or_make(root, dev, Kind::Directory, ResolveFlags::empty()).map_err(&at)?;
    for (name, target) in [
        (c"fd", c"/proc/self/fd"),
        (c"stdin", c"/proc/self/fd/0"),
        (c"stdout", c"/proc/self/fd/1"),
        (c"stderr", c"/proc/self/fd/2"),
        (c"core", c"/proc/kcore"),
        (c"ptmx", c"pts/ptmx"),
    ] {
        match rustix::fs::symlinkat(target, &dir, name) {
            Err(Errno::EXIST) if name == c"ptmx" => {
                // The image's own would be the host's terminals.
                rustix::fs::unlinkat(&dir, name, AtFlags::empty())
                    .map_err(Failure::of("unlinkat"))
                    .map_err(&at)?;
                rustix::fs::symlinkat(target, &dir, name)
                    .map_err(Failure::of("symlinkat"))
                    .map_err(&at)?;
            }
            Ok(()) | Err(Errno::EXIST) => {}
            Err(errno) => {
                return Err(at(Failure {
                    call: "symlinkat",
                    errno,
                }));
            }
        }
    }
    for (index, device) in devices.iter().enumerate() {
        make_device(root, dev, dir.as_fd(), device).map_err(Fault::nth(Step::Device, index))?;
    }
    leave(dir);
    Ok(())
}

fn make_device(
    root: BorrowedFd<'_>,
    dev: &Place,
    dev_dir: BorrowedFd<'_>,
    device: &Device,
) -> Outcome<()> {
    match &device.source {
        DeviceSource::Tree(tree) => {
            let target = open_or_make(root, &device.place, Kind::File, ResolveFlags::empty())?;
            move_in(tree.as_fd(), target.as_fd())
        }
        DeviceSource::Node {
            kind,
            mode,
            dev: number,
            owner,
        } => {
            let Some(((_, name), above)) = device.place.steps.split_last() else {
                return Err(Failure {
                    call: "mknodat",
                    errno: Errno::ISDIR,
                });
            };
            let held;
            let dir = match above {
                // Nearly all are in /dev itself.
                [only] if only.0 == dev.path => dev_dir,
                above => {
                    held = make_above(root, above)?;
                    held.as_fd()
                }
            };
            match rustix::fs::mknodat(dir, name, *kind, *mode, *number) {
                Err(Errno::EXIST) => {
                    let stat = rustix::fs::statat(dir, name, AtFlags::SYMLINK_NOFOLLOW)
                        .map_err(Failure::of("fstat"))?;
                    let same =
                        FileType::from_raw_mode(stat.st_mode) == *kind && stat.st_rdev == *number;
                    if !same {
                        rustix::fs::unlinkat(dir, name, AtFlags::empty())
                            .map_err(Failure::of("unlinkat"))?;
                        rustix::fs::mknodat(dir, name, *kind, *mode, *number)
                            .map_err(Failure::of("mknodat"))?;
                    }
                }
                done => done.map_err(Failure::of("mknodat"))?,
            }
            if let Some((uid, gid)) = *owner {
                let (uid, gid) = (Some(uid), Some(gid));
                rustix::fs::chownat(dir, name, uid, gid, AtFlags::SYMLINK_NOFOLLOW)
                    .map_err(Failure::of("fchownat"))?;
            }
            Ok(())
        }
    }
}

/// The folder above a place, made where missing.
fn make_above(
    root: BorrowedFd<'_>,
    steps: &[(std::ffi::CString, std::ffi::CString)],
) -> Outcome<OwnedFd> {
    let folder = OFlags::PATH | OFlags::DIRECTORY;
    let mut parent = open(root, c"/", folder, ResolveFlags::empty())?;
    for (path, name) in steps {
        parent = match open(root, path, folder, ResolveFlags::empty()) {
            Err(Failure {
                errno: Errno::NOENT,
                ..
            }) => {
                rustix::fs::mkdirat(&parent, name, Mode::from_raw_mode(0o755))
                    .map_err(Failure::of("mkdirat"))?;
                open(parent.as_fd(), name, folder, ResolveFlags::NO_SYMLINKS)?
            }
            opened => opened?,
        };
    }
    Ok(parent)
}

/// Covers the masked paths: all directories by one empty read-only tmpfs, files by `/dev/null`.
fn mask(root: BorrowedFd<'_>, tree: &Tree) -> Result<(), Fault> {
    let (mut empty, mut null_moved) = (None::<OwnedFd>, false);
    for (index, path) in tree.masked.iter().enumerate() {
        let at = Fault::nth(Step::Mask, index);
        let target = match open(root, path, OFlags::PATH, ResolveFlags::empty()) {
            Ok(target) => target,
            Err(Failure {
                errno: Errno::NOENT | Errno::NOTDIR,
                ..
            }) => continue,
            Err(failure) => return Err(at(failure)),
        };
        let stat = rustix::fs::fstat(&target)
            .map_err(Failure::of("fstat"))
            .map_err(&at)?;
        if FileType::from_raw_mode(stat.st_mode) == FileType::Directory {
            match &empty {
                None => {
                    let fresh = empty_directory().map_err(&at)?;
                    move_in(fresh.as_fd(), target.as_fd()).map_err(&at)?;
                    empty = Some(fresh);
                }
                Some(first) => again(first.as_fd(), target.as_fd()).map_err(&at)?,
            }
        } else if let Some(null) = &tree.null {
            if null_moved {
                again(null.as_fd(), target.as_fd()).map_err(&at)?;
            } else {
                move_in(null.as_fd(), target.as_fd()).map_err(&at)?;
                null_moved = true;
            }
        }
        leave(target);
    }
    Ok(())
}

/// An empty read-only directory that the kernel makes, so that nobody can have prepared it.
fn empty_directory() -> Outcome<OwnedFd> {
    let context = rustix::mount::fsopen(c"tmpfs", FsOpenFlags::FSOPEN_CLOEXEC)
        .map_err(Failure::of("fsopen"))?;
    rustix::mount::fsconfig_create(&context).map_err(Failure::of("fsconfig"))?;
    let attributes = MountAttrFlags::MOUNT_ATTR_RDONLY
        | MountAttrFlags::MOUNT_ATTR_NOSUID
        | MountAttrFlags::MOUNT_ATTR_NODEV
        | MountAttrFlags::MOUNT_ATTR_NOEXEC;
    rustix::mount::fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, attributes)
        .map_err(Failure::of("fsmount"))
}

/// Mounts what is mounted already once more.
fn again(mounted: BorrowedFd<'_>, target: BorrowedFd<'_>) -> Outcome<()> {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE
        | OpenTreeFlags::OPEN_TREE_CLOEXEC
        | OpenTreeFlags::AT_EMPTY_PATH;
    let tree = rustix::mount::open_tree(mounted, c"", flags).map_err(Failure::of("open_tree"))?;
    move_in(tree.as_fd(), target)?;
    leave(tree);
    Ok(())
}

/// Covers a path by itself, read-only with all below.
fn make_readonly(root: BorrowedFd<'_>, path: &CStr) -> Outcome<()> {
    let target = match open(root, path, OFlags::PATH, ResolveFlags::empty()) {
        Ok(target) => target,
        Err(Failure {
            errno: Errno::NOENT | Errno::NOTDIR,
            ..
        }) => return Ok(()),
        Err(failure) => return Err(failure),
    };
    let flags = OpenTreeFlags::OPEN_TREE_CLONE
        | OpenTreeFlags::OPEN_TREE_CLOEXEC
        | OpenTreeFlags::AT_EMPTY_PATH
        | OpenTreeFlags::AT_RECURSIVE;
    let tree = rustix::mount::open_tree(&target, c"", flags).map_err(Failure::of("open_tree"))?;
    let change = Change {
        set: Attributes::RDONLY,
        recursive: true,
        ..Change::default()
    };
    mount_setattr(&tree, c"", &change)?;
    move_in(tree.as_fd(), target.as_fd())?;
    leave(tree);
    leave(target);
    Ok(())
}

/// The root's own attributes, once all is in place.
fn finish_root(root: BorrowedFd<'_>, plan: &Plan) -> Outcome<()> {
    if plan.root.readonly {
        let change = Change {
            set: Attributes::RDONLY,
            ..Change::default()
        };
        mount_setattr(root, c"", &change)?;
    }
    let word = propagation(plan.root.propagation);
    if word != SysPropagation::Private {
        // The detached root came as private; only another word has to be said.
        let recursive = plan.root.recursive;
        mount_setattr(
            root,
            c"",
            &Change {
                propagation: word,
                recursive,
                ..Change::default()
            },
        )?;
    }
    Ok(())
}

/// Makes the root, which lies over the old one, the process's own.
fn change_root(root: BorrowedFd<'_>) -> Outcome<()> {
    rustix::process::fchdir(root).map_err(Failure::of("fchdir"))?;
    rustix::process::chroot(c".").map_err(Failure::of("chroot"))
}

/// Swaps the roots and lets the old one go.
fn pivot(root: BorrowedFd<'_>) -> Outcome<()> {
    rustix::process::fchdir(root).map_err(Failure::of("fchdir"))?;
    rustix::process::pivot_root(c".", c".").map_err(Failure::of("pivot_root"))?;
    rustix::mount::unmount(c".", UnmountFlags::DETACH).map_err(Failure::of("umount2"))
}
