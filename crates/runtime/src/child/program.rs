//! From inside the container's root to the program: who it is, what it may do, exec.

use std::ffi::CStr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use knarr_sys::{Failure, child as sys_child, process as sys_process};
use rustix::fs::{FileType, Mode, OFlags};
use rustix::io::Errno;

use super::{Outcome, send_with, set_groups};
use crate::prepare::Prepared;
use crate::step::{Fault, Message, Step};
use crate::{init, weak};

/// Whether there is a program to start: who creates shall hear of it, not only who starts.
pub(super) fn find_program(process: &Prepared, cwd: BorrowedFd<'_>) -> Result<(), Fault> {
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
    set_groups(&process.groups).map_err(Fault::at(Step::Groups))?;
    rustix::thread::set_thread_res_gid(process.gid, process.gid, process.gid)
        .map_err(Failure::of("setresgid"))
        .map_err(Fault::at(Step::Groups))?;
    rustix::thread::set_thread_res_uid(process.uid, process.uid, process.uid)
        .map_err(Failure::of("setresuid"))
        .map_err(Fault::at(Step::User))?;
    // As the user, who may not be allowed in; by handle, so it cannot be outside.
    if weak::off("cwd") {
        rustix::process::chdir(&process.cwd.path)
    } else {
        rustix::process::fchdir(cwd)
    }
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
    if !weak::off("files") {
        sys_child::close_on_exec_from(3 + rest.preserve).map_err(Fault::at(Step::CloseFiles))?;
    }
    for fd in 3..3 + rest.preserve {
        sys_child::keep_on_exec(fd).map_err(Fault::at(Step::CloseFiles))?;
    }
    if process.no_new_privileges {
        load_filter(process, rest.socket)?;
    }
    if process.init {
        init::run(process, rest.socket)
    } else {
        sys_process::reset_signals(process.ignored_signals).map_err(Fault::at(Step::CloseFiles))?;
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

pub(super) fn set_stdio(stdio: &Stdio<'_>) -> Outcome<()> {
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
