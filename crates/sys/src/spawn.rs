//! Starting a program from a handle on its file, as a child with nothing of ours but what is given.

use std::ffi::c_void;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use rustix::io::Errno;
use rustix::process::Pid;

use crate::process::{CStringArray, SignalSet};
use crate::{Failure, Result};

/// What [`spawn`] starts.
#[derive(Debug)]
pub struct Program<'a> {
    /// The executable, run with execveat(2).
    pub file: BorrowedFd<'a>,
    /// Its arguments, the name first.
    pub args: &'a CStringArray,
    /// Its environment.
    pub env: &'a CStringArray,
    /// Its descriptors: the first becomes 0, and so on. No other is open in it.
    pub fds: &'a [BorrowedFd<'a>],
    /// The cgroup v2 directory it is born in.
    pub cgroup: Option<BorrowedFd<'a>>,
}

/// `linux/sched.h`; libc's constant is too narrow for it.
const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;
/// Above every descriptor number that a program is given.
const HIGH: RawFd = 64;

struct Inside<'a> {
    program: &'a Program<'a>,
    failure: Option<Failure>,
}

/// Starts `program` in a session of its own, with default signal actions and an empty mask, as a
/// child (exit signal SIGCHLD), and returns once it runs. The caller's memory is not copied
/// (`CLONE_VM | CLONE_VFORK`), so it costs the same for a large caller.
///
/// # Errors
/// As clone3(2) and, from inside the child, dup3(2), setsid(2), execveat(2).
pub fn spawn(program: &Program<'_>) -> Result<(Pid, OwnedFd)> {
    if program.fds.len() > HIGH.unsigned_abs() as usize {
        return Err(Failure {
            call: "dup3",
            errno: Errno::MFILE,
        });
    }
    let mut inside = Inside {
        program,
        failure: None,
    };
    // A signal handler must not run in the child on our memory.
    let mask = crate::process::set_signal_mask(&SignalSet::full())?;
    let spawned = vfork(program.cgroup, &mut inside);
    crate::process::set_signal_mask(&mask)?;
    let (pid, pidfd) = spawned?;
    match inside.failure {
        None => Ok((pid, pidfd)),
        Some(failure) => {
            // The child has ended already; take its record away.
            rustix::process::waitpid(Some(pid), rustix::process::WaitOptions::empty())
                .map_err(Failure::of("waitpid"))?;
            Err(failure)
        }
    }
}

/// What runs in the child, on its own stack and the parent's memory. Does not return.
extern "C" fn child(inside: *mut c_void) -> ! {
    // SAFETY: `vfork` passes a pointer to an `Inside` on the stack of the parent, which stands
    // still until this process execs or ends, so nobody else uses it meanwhile.
    let inside = unsafe { &mut *inside.cast::<Inside<'_>>() };
    inside.failure = Some(become_program(inside.program));
    crate::process::exit_now(127)
}

/// Allocates nothing: the heap is the parent's.
fn become_program(program: &Program<'_>) -> Failure {
    let prepare = || -> Result<BorrowedFd<'_>> {
        rustix::process::setsid().map_err(Failure::of("setsid"))?;
        // First out of the way, so that no source is overwritten before its turn.
        let mut high = [-1; HIGH.unsigned_abs() as usize];
        for (place, fd) in high.iter_mut().zip(program.fds) {
            *place = raw("fcntl", || {
                // SAFETY: F_DUPFD_CLOEXEC touches no memory.
                unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_DUPFD_CLOEXEC, HIGH + 1) }
            })?;
        }
        let file = raw("fcntl", || {
            // SAFETY: as above.
            unsafe { libc::fcntl(program.file.as_raw_fd(), libc::F_DUPFD_CLOEXEC, HIGH + 1) }
        })?;
        for (target, source) in (0..).zip(high.iter().take(program.fds.len())) {
            // SAFETY: dup3 touches no memory; this process has its own descriptor table.
            raw("dup3", || unsafe { libc::dup3(*source, target, 0) })?;
        }
        let first = i32::try_from(program.fds.len()).unwrap_or(0);
        // SAFETY: the table is this process's own (no CLONE_FILES) and it owns no Rust values.
        unsafe { crate::process::close_range(first, crate::process::CloseRange::CloseOnExec) }?;
        crate::process::reset_signals(u64::MAX)?;
        // glibc keeps these two for itself and does not pass them on, but others may ignore them.
        for signal in [32, 33] {
            default_action(signal)?;
        }
        // SAFETY: `file` stays open until execveat.
        Ok(unsafe { BorrowedFd::borrow_raw(file) })
    };
    match prepare() {
        Ok(file) => crate::process::execveat(file, program.args, program.env),
        Err(failure) => failure,
    }
}

/// SIG_DFL, past glibc.
fn default_action(signal: i32) -> Result<()> {
    // Larger than any architecture's `struct sigaction` of the kernel; all zeros is SIG_DFL.
    let action = [0u64; 8];
    let none: *mut u64 = std::ptr::null_mut();
    // SAFETY: `action` outlives the call and is only read; the old action is not asked for; 8 is
    // the size of the kernel's signal set.
    let done = unsafe { libc::syscall(libc::SYS_rt_sigaction, signal, &raw const action, none, 8) };
    if done == 0 {
        Ok(())
    } else {
        Err(Failure::last("rt_sigaction"))
    }
}

fn raw(call: &'static str, run: impl FnOnce() -> i32) -> Result<RawFd> {
    match run() {
        done if done >= 0 => Ok(done),
        _ => Err(Failure::last(call)),
    }
}

fn vfork(cgroup: Option<BorrowedFd<'_>>, inside: &mut Inside<'_>) -> Result<(Pid, OwnedFd)> {
    // The child's stack: what it runs needs a few KiB.
    let mut stack = vec![0u128; 4096];
    let mut pidfd: RawFd = -1;
    let mut args = libc::clone_args {
        flags: (libc::CLONE_VM | libc::CLONE_VFORK | libc::CLONE_PIDFD) as u64,
        pidfd: (&raw mut pidfd).addr() as u64,
        child_tid: 0,
        parent_tid: 0,
        exit_signal: libc::SIGCHLD as u64,
        stack: stack.as_mut_ptr().addr() as u64,
        stack_size: size_of_val(stack.as_slice()) as u64,
        tls: 0,
        set_tid: 0,
        set_tid_size: 0,
        cgroup: 0,
    };
    if let Some(cgroup) = cgroup {
        args.flags |= CLONE_INTO_CGROUP;
        args.cgroup = u64::from(cgroup.as_raw_fd().unsigned_abs());
    }
    // SAFETY: the stack is ours, 16-byte aligned, and lives until the child has left it (the parent
    // is suspended until then); `child` never returns, reads only `inside`, and allocates nothing.
    let answer = unsafe { clone3_onto(&args, child, std::ptr::from_mut(inside).cast()) };
    drop(stack);
    match i32::try_from(answer) {
        Ok(pid) if pid > 0 => {
            // SAFETY: the kernel put a new descriptor there that nobody else owns.
            let pidfd = unsafe { OwnedFd::from_raw_fd(pidfd) };
            let pid = Pid::from_raw(pid).ok_or(Failure {
                call: "clone3",
                errno: Errno::IO,
            })?;
            Ok((pid, pidfd))
        }
        Ok(errno) => Err(Failure {
            call: "clone3",
            errno: Errno::from_raw_os_error(-errno),
        }),
        Err(_) => Err(Failure {
            call: "clone3",
            errno: Errno::IO,
        }),
    }
}

/// clone3 with a stack, and `entry(argument)` on it in the child. Gives the kernel's answer.
///
/// # Safety
/// `args.stack` is a stack of `args.stack_size` bytes, aligned to 16, that nobody else uses before
/// the child left it; `entry` may run on the memory it shares.
#[cfg(target_arch = "x86_64")]
unsafe fn clone3_onto(
    args: &libc::clone_args,
    entry: extern "C" fn(*mut c_void) -> !,
    argument: *mut c_void,
) -> i64 {
    let mut answer: i64 = libc::SYS_clone3;
    // SAFETY: the caller vouches for stack and entry; in the parent the block changes no more than
    // it declares, and the child never leaves it.
    unsafe {
        std::arch::asm!(
            "syscall",
            "test rax, rax",
            "jnz 2f",
            "xor ebp, ebp",
            "mov rdi, {argument}",
            "call {entry}",
            "ud2",
            "2:",
            argument = in(reg) argument,
            entry = in(reg) entry,
            inlateout("rax") answer,
            in("rdi") std::ptr::from_ref(args),
            in("rsi") size_of::<libc::clone_args>(),
            out("rcx") _,
            out("r11") _,
        );
    }
    answer
}

/// As on x86_64.
///
/// # Safety
/// As on x86_64.
#[cfg(target_arch = "aarch64")]
unsafe fn clone3_onto(
    args: &libc::clone_args,
    entry: extern "C" fn(*mut c_void) -> !,
    argument: *mut c_void,
) -> i64 {
    let mut answer: i64;
    // SAFETY: as on x86_64.
    unsafe {
        std::arch::asm!(
            "svc 0",
            "cbnz x0, 2f",
            "mov x29, xzr",
            "mov x0, {argument}",
            "blr {entry}",
            "brk 1",
            "2:",
            argument = in(reg) argument,
            entry = in(reg) entry,
            in("x8") libc::SYS_clone3,
            inlateout("x0") std::ptr::from_ref(args) => answer,
            in("x1") size_of::<libc::clone_args>(),
        );
    }
    answer
}

/// Takes over descriptors that this process was started with: those from `first` on, up to `count`,
/// that are open. They are close-on-exec from then on. Gives nothing when called again.
///
/// To be called before the process opens anything itself: what is in the range is taken for inherited.
pub fn inherited(first: RawFd, count: usize) -> Vec<OwnedFd> {
    static TAKEN: std::sync::atomic::AtomicBool = std::sync::atomic::AtomicBool::new(false);
    if TAKEN.swap(true, std::sync::atomic::Ordering::SeqCst) {
        return Vec::new();
    }
    (first..)
        .take(count)
        .map_while(|number| {
            // SAFETY: F_SETFD touches no memory; it fails for what is not open.
            let set = unsafe { libc::fcntl(number, libc::F_SETFD, libc::FD_CLOEXEC) };
            // SAFETY: it is open, and as nothing of this process was opened yet, nobody owns it.
            (set == 0).then(|| unsafe { OwnedFd::from_raw_fd(number) })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::process::CStringArray;
    use std::io::Read;
    use std::os::fd::AsFd;

    fn run(path: &str, args: &[&str], fds: &[BorrowedFd<'_>]) -> Result<(Pid, OwnedFd)> {
        let file = std::fs::File::open(path).unwrap();
        let args = args
            .iter()
            .map(|a| std::ffi::CString::new(*a).unwrap())
            .collect();
        spawn(&Program {
            file: file.as_fd(),
            args: &CStringArray::new(args),
            env: &CStringArray::new(vec![]),
            fds,
            cgroup: None,
        })
    }

    #[test]
    fn a_child_has_its_own_session_and_only_the_descriptors_it_is_given() {
        let null = std::fs::File::open("/dev/null").unwrap();
        let (mut reader, writer) = std::io::pipe().unwrap();
        let script = "read -r _ _ _ _ pgrp session _ < /proc/self/stat; \
                      [ $session = $$ ] && echo own; ls /proc/self/fd | tr '\\n' ' '";
        let fds = [null.as_fd(), writer.as_fd(), writer.as_fd()];
        let (pid, _pidfd) = run("/bin/bash", &["bash", "-c", script], &fds).unwrap();
        drop(writer);
        let mut said = String::new();
        reader.read_to_string(&mut said).unwrap();
        // 3 is the folder that ls reads.
        assert_eq!(said, "own\n0 1 2 3 ");
        rustix::process::waitpid(Some(pid), rustix::process::WaitOptions::empty()).unwrap();
    }

    #[test]
    fn a_program_that_cannot_run_is_told_by_errno() {
        let null = std::fs::File::open("/dev/null").unwrap();
        let failure = run("/etc/passwd", &["passwd"], &[null.as_fd()]).unwrap_err();
        assert_eq!(
            failure,
            Failure {
                call: "execveat",
                errno: Errno::ACCESS
            }
        );
    }
}
