//! Hooks (config.md, "POSIX-platform Hooks"): programs that run at the moments of a container's
//! life, with the container's state on standard input.
//!
//! A hook's environment is what its entry says and nothing else, its working directory is `/`, its
//! descriptors are the state and a file that collects its output: nothing of the caller and nothing
//! of the image gets in (CVE-2025-23266 came of an image's `LD_PRELOAD` in a host's hook).

use std::ffi::CString;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::process::CommandExt as _;
use std::process::{Command, Stdio};

use knarr_spec::runtime::State;
use knarr_sys::Failure;
use knarr_sys::child::{Parent, fork};
use knarr_sys::clone::Namespaces;
use knarr_sys::process::CStringArray;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{MemfdFlags, SealFlags, SeekFrom};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags};

use crate::plan::HookPlan;
use crate::prepare::c_string;
use crate::process::{self, Exit};
use crate::step::{Fault, Step};
use crate::{Error, Result};

/// How much of a hook's output is told.
const TOLD: usize = 4096;

/// Runs hooks on the host, one after the other, until one fails. `moment` is the specification's
/// name of theirs.
///
/// # Errors
/// [`Error::Hook`] with what it wrote.
pub fn run(moment: &'static str, hooks: &[HookPlan], state: &State) -> Result<()> {
    if hooks.is_empty() {
        return Ok(());
    }
    let input = state_file(state)?;
    for (index, hook) in hooks.iter().enumerate() {
        let output = output_file()?;
        run_one(hook, input.as_fd(), output.as_fd()).map_err(|reason| Error::Hook {
            moment,
            index,
            path: hook.path.clone(),
            reason: with_output(reason, output.as_fd()),
        })?;
    }
    Ok(())
}

fn run_one(
    hook: &HookPlan,
    input: BorrowedFd<'_>,
    output: BorrowedFd<'_>,
) -> std::result::Result<(), String> {
    let io = |error: std::io::Error| error.to_string();
    let errno = |errno: Errno| errno.to_string();
    rustix::fs::seek(input, SeekFrom::Start(0)).map_err(errno)?;
    let copy = |fd: BorrowedFd<'_>| fd.try_clone_to_owned().map(Stdio::from);
    let mut command = Command::new(&hook.path);
    if let Some((name, args)) = hook.args.split_first() {
        command.arg0(name).args(args);
    }
    if !crate::weak::off("hook-env") {
        command.env_clear();
    }
    command
        .envs(hook.env.iter().filter_map(|entry| entry.split_once('=')))
        .current_dir("/")
        .stdin(copy(input).map_err(io)?)
        .stdout(copy(output).map_err(io)?)
        .stderr(copy(output).map_err(io)?);
    let mut child = command.spawn().map_err(io)?;
    let pid = i32::try_from(child.id()).ok().and_then(Pid::from_raw);
    let pidfd = pid.map(|pid| rustix::process::pidfd_open(pid, PidfdFlags::empty()));
    if let Some(Ok(pidfd)) = pidfd
        && !ended_in_time(pidfd.as_fd(), hook.timeout).map_err(|failure| failure.to_string())?
    {
        child.kill().and_then(|()| child.wait()).map_err(io)?;
        let seconds = hook.timeout.unwrap_or(0);
        return Err(format!("killed: it ran longer than {seconds} s"));
    }
    let status = child.wait().map_err(io)?;
    if status.success() {
        Ok(())
    } else {
        Err(status.to_string())
    }
}

/// Waits for a process to end, `seconds` at most.
fn ended_in_time(
    pidfd: BorrowedFd<'_>,
    seconds: Option<u32>,
) -> std::result::Result<bool, Failure> {
    // Signals are not taken here, so what interrupts is rare and only makes it a little longer.
    let limit = seconds.map(|seconds| Timespec {
        tv_sec: i64::from(seconds),
        tv_nsec: 0,
    });
    loop {
        match poll(
            &mut [PollFd::from_borrowed_fd(pidfd, PollFlags::IN)],
            limit.as_ref(),
        ) {
            Ok(0) => return Ok(false),
            Ok(_) => return Ok(true),
            Err(Errno::INTR) => {}
            Err(errno) => {
                return Err(Failure {
                    call: "poll",
                    errno,
                });
            }
        }
    }
}

/// What a hook wrote, behind the reason.
pub(crate) fn with_output(reason: String, output: BorrowedFd<'_>) -> String {
    let mut bytes = [0; TOLD];
    let count = rustix::io::pread(output, &mut bytes, 0).unwrap_or(0);
    let text = String::from_utf8_lossy(bytes.get(..count).unwrap_or_default());
    match text.trim() {
        "" => reason,
        text => format!("{reason}: {text}"),
    }
}

fn memory(name: &std::ffi::CStr) -> Result<OwnedFd> {
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    rustix::fs::memfd_create(name, flags).map_err(|errno| Error::Prepare {
        what: "cannot make a file in memory for hooks".to_owned(),
        cause: Failure {
            call: "memfd_create",
            errno,
        },
    })
}

pub(crate) fn output_file() -> Result<OwnedFd> {
    memory(c"knarr-hook-output")
}

/// A file for a state that is not known yet.
pub(crate) fn empty_state_file() -> Result<OwnedFd> {
    memory(c"knarr-hook-state")
}

/// Fills the file, for good: hooks must not change it for those that come after.
pub(crate) fn write_state(file: BorrowedFd<'_>, state: &State) -> Result<()> {
    let failed = |call: &'static str| {
        move |errno: Errno| Error::Prepare {
            what: "cannot write the state for hooks".to_owned(),
            cause: Failure { call, errno },
        }
    };
    // A struct of strings always serializes.
    let bytes = serde_json::to_vec(state).unwrap_or_default();
    let mut done = 0;
    while let Some(rest) = bytes.get(done..).filter(|rest| !rest.is_empty()) {
        let at = u64::try_from(done).unwrap_or(u64::MAX);
        done += rustix::io::pwrite(file, rest, at).map_err(failed("pwrite"))?;
    }
    let seals = SealFlags::SEAL | SealFlags::SHRINK | SealFlags::GROW | SealFlags::WRITE;
    rustix::fs::fcntl_add_seals(file, seals).map_err(failed("fcntl"))
}

fn state_file(state: &State) -> Result<OwnedFd> {
    let file = empty_state_file()?;
    write_state(file.as_fd(), state)?;
    Ok(file)
}

/// A hook that the container's own process runs.
#[derive(Debug)]
pub(crate) struct Prepared {
    path: CString,
    args: CStringArray,
    env: CStringArray,
    timeout: Option<u32>,
}

/// What the container's hooks read and write: the state before and after the creation, and what
/// they print.
#[derive(Debug)]
pub(crate) struct Files {
    pub(crate) creating: OwnedFd,
    pub(crate) created: OwnedFd,
    pub(crate) output: OwnedFd,
}

impl Files {
    pub(crate) fn new() -> Result<Self> {
        Ok(Self {
            creating: empty_state_file()?,
            created: empty_state_file()?,
            output: output_file()?,
        })
    }
}

pub(crate) fn prepare(hooks: &[HookPlan]) -> Result<Vec<Prepared>> {
    let strings = |list: &[String]| {
        list.iter()
            .map(|text| c_string("hooks", text))
            .collect::<Result<Vec<_>>>()
            .map(CStringArray::new)
    };
    hooks
        .iter()
        .map(|hook| {
            Ok(Prepared {
                path: c_string("hooks", &hook.path)?,
                args: strings(&hook.args)?,
                env: strings(&hook.env)?,
                timeout: hook.timeout,
            })
        })
        .collect()
}

/// Runs them as children of the container's process, which allocates nothing.
pub(crate) fn run_inside(
    hooks: &[Prepared],
    step: Step,
    input: BorrowedFd<'_>,
    output: BorrowedFd<'_>,
) -> std::result::Result<(), Fault> {
    for (index, hook) in hooks.iter().enumerate() {
        let at = Fault::nth(step, index);
        rustix::fs::seek(input, SeekFrom::Start(0))
            .map_err(Failure::of("lseek"))
            .map_err(&at)?;
        let (_, pidfd) = fork(Namespaces::NONE, None, Parent::Caller, || {
            become_hook(hook, input, output)
        })
        .map_err(&at)?;
        let Some(pidfd) = pidfd else { continue };
        let failed = |errno| {
            at(Failure {
                call: "hook",
                errno,
            })
        };
        if !ended_in_time(pidfd.as_fd(), hook.timeout).map_err(&at)? {
            process::kill(&pidfd).map_err(&at)?;
            process::wait(&pidfd).map_err(&at)?;
            return Err(failed(Errno::TIMEDOUT));
        }
        match process::wait(&pidfd).map_err(&at)? {
            Exit::Code(0) => {}
            Exit::Code(127) => return Err(failed(Errno::NOEXEC)),
            Exit::Code(_) | Exit::Signal(_) => return Err(failed(Errno::CANCELED)),
        }
    }
    Ok(())
}

fn become_hook(hook: &Prepared, input: BorrowedFd<'_>, output: BorrowedFd<'_>) -> i32 {
    let prepared = rustix::stdio::dup2_stdin(input)
        .and_then(|()| rustix::stdio::dup2_stdout(output))
        .and_then(|()| rustix::stdio::dup2_stderr(output))
        .and_then(|()| rustix::process::chdir(c"/"))
        .is_ok()
        && knarr_sys::child::close_on_exec_from(3).is_ok()
        && knarr_sys::process::reset_signals(u64::MAX).is_ok();
    if prepared {
        knarr_sys::process::execve(&hook.path, &hook.args, &hook.env);
    }
    127
}

/// The reason of a fault of [`run_inside`], in words.
pub(crate) fn reason(errno: Errno) -> String {
    match errno {
        Errno::TIMEDOUT => "killed: it ran longer than its timeout".to_owned(),
        Errno::NOEXEC => "it could not be executed (or exited with 127)".to_owned(),
        Errno::CANCELED => "it failed".to_owned(),
        other => other.to_string(),
    }
}
