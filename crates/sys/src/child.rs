//! A forked child that runs Rust code of ours until it execs: the fork itself, and what rustix
//! lacks of the calls such a child makes. Nothing here allocates.

use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use rustix::io::Errno;
use rustix::process::Pid;

use crate::clone::Namespaces;
use crate::process::{CloseRange, SignalSet, close_range, exit_now};
use crate::{Failure, Result};

/// `linux/sched.h`; libc's constants are too narrow for them.
const CLONE_CLEAR_SIGHAND: u64 = 0x1_0000_0000;
const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;

/// Whose child the new process is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Parent {
    /// The caller's.
    Caller,
    /// The caller's own parent's (`CLONE_PARENT`); then no pidfd is made, and the id is the one in
    /// the caller's pid namespace.
    Grandparent,
}

/// Ends the process if it is dropped: unwinding must not run the parent's frames a second time.
struct NeverReturn;

impl Drop for NeverReturn {
    fn drop(&mut self) {
        exit_now(70);
    }
}

/// Forks with clone3(2): new `namespaces`, born in `cgroup` (a cgroup v2 directory), signal
/// handlers cleared (`CLONE_CLEAR_SIGHAND`, Linux 5.5). The child runs `child` and exits with what
/// it returns; the caller gets the child's id and, as its parent, a pidfd.
///
/// `child` works on a copy of the caller's memory. Other threads do not exist in it, but locks that
/// they held stay locked: **it must not allocate, free, lock or print**. The caller keeps that
/// (`knarr_runtime::child` does, and its test runs under an allocator that forbids it).
///
/// # Errors
/// As clone3(2): EAGAIN and ENOSPC at limits, EPERM without the right, EBUSY or EOPNOTSUPP when
/// the cgroup cannot take processes.
pub fn fork<F: FnOnce() -> i32>(
    namespaces: Namespaces,
    cgroup: Option<BorrowedFd<'_>>,
    parent: Parent,
    child: F,
) -> Result<(Pid, Option<OwnedFd>)> {
    let mut pidfd: RawFd = -1;
    let mut args = libc::clone_args {
        flags: namespaces.bits() | CLONE_CLEAR_SIGHAND,
        pidfd: (&raw mut pidfd).addr() as u64,
        child_tid: 0,
        parent_tid: 0,
        exit_signal: libc::SIGCHLD as u64,
        stack: 0,
        stack_size: 0,
        tls: 0,
        set_tid: 0,
        set_tid_size: 0,
        cgroup: 0,
    };
    match parent {
        Parent::Caller => args.flags |= libc::CLONE_PIDFD as u64,
        Parent::Grandparent => {
            args.flags |= libc::CLONE_PARENT as u64;
            // clone3 takes the signal from the caller's own and refuses another.
            args.exit_signal = 0;
            args.pidfd = 0;
        }
    }
    if let Some(cgroup) = cgroup {
        args.flags |= CLONE_INTO_CGROUP;
        args.cgroup = u64::from(cgroup.as_raw_fd().unsigned_abs());
    }
    // SAFETY: `args` is a clone_args of the given size whose only pointer, `pidfd`, outlives the
    // call. Without CLONE_VM the child has its own copy of everything; it leaves this function only
    // through `exit_now`, and `child` keeps away from what other threads may have locked.
    let mut answer = unsafe {
        libc::syscall(
            libc::SYS_clone3,
            &raw mut args,
            size_of::<libc::clone_args>(),
        )
    };
    // Filters answer ENOSYS for clone3, whose flags they cannot see; glibc's fork goes on like this.
    if answer == -1 && Failure::last("clone3").errno == Errno::NOSYS && cgroup.is_none() {
        let flags = (args.flags & !CLONE_CLEAR_SIGHAND) | args.exit_signal;
        // SAFETY: as above; a null stack means the caller's own, and of the three pointers only the
        // pidfd's, which is the parent's thread id's too, is used.
        answer = unsafe { libc::syscall(libc::SYS_clone, flags, 0, &raw mut pidfd, 0, 0) };
    }
    match i32::try_from(answer) {
        Ok(0) => {
            let never = NeverReturn;
            let code = child();
            std::mem::forget(never);
            exit_now(code)
        }
        Ok(pid) if pid > 0 => {
            let pid = Pid::from_raw(pid).ok_or(Failure {
                call: "clone3",
                errno: Errno::IO,
            })?;
            let pidfd = (parent == Parent::Caller).then(|| {
                // SAFETY: the kernel put a new file descriptor there that nobody else owns.
                unsafe { OwnedFd::from_raw_fd(pidfd) }
            });
            Ok((pid, pidfd))
        }
        _ => Err(Failure::last("clone3")),
    }
}

/// Marks all descriptors from `first` on close-on-exec (close_range(2), Linux 5.11).
///
/// # Errors
/// ENOSYS, EINVAL before Linux 5.11.
pub fn close_on_exec_from(first: RawFd) -> Result<()> {
    // SAFETY: nothing is closed now.
    unsafe { close_range(first, CloseRange::CloseOnExec) }
}

/// Closes all descriptors from `first` on now. Only for a child of [`fork`], which ends without
/// running the destructors of what owned them.
///
/// # Errors
/// ENOSYS before Linux 5.9.
pub fn close_all_from(first: RawFd) -> Result<()> {
    // SAFETY: the process is a child of `fork` (the caller's promise), so no owner of a descriptor
    // is ever dropped in it.
    unsafe { close_range(first, CloseRange::Close) }
}

/// [`close_all_from`] without `kept`.
///
/// # Errors
/// ENOSYS before Linux 5.9.
pub fn close_all_from_but(first: RawFd, kept: BorrowedFd<'_>) -> Result<()> {
    let kept = kept.as_raw_fd();
    if kept > first {
        // SAFETY: as in `close_all_from`.
        let done = unsafe { libc::syscall(libc::SYS_close_range, first, kept - 1, 0) };
        if done != 0 {
            return Err(Failure::last("close_range"));
        }
    }
    close_all_from(first.max(kept + 1))
}

/// pidfd_send_signal(2) by number; 0 only asks.
///
/// # Errors
/// ESRCH where the process has ended and is reaped, EPERM, EINVAL.
pub fn pidfd_send_signal(pidfd: BorrowedFd<'_>, signal: i32) -> Result<()> {
    // SAFETY: the NULL is for the optional siginfo.
    let done = unsafe {
        libc::syscall(
            libc::SYS_pidfd_send_signal,
            pidfd.as_raw_fd(),
            signal,
            std::ptr::null::<libc::siginfo_t>(),
            0,
        )
    };
    if done == 0 {
        Ok(())
    } else {
        Err(Failure::last("pidfd_send_signal"))
    }
}

/// kill(2) of one process by number.
///
/// # Errors
/// ESRCH, EPERM, EINVAL.
pub fn kill(pid: Pid, signal: i32) -> Result<()> {
    // SAFETY: no memory is passed.
    let done = unsafe { libc::kill(pid.as_raw_nonzero().get(), signal) };
    if done == 0 {
        Ok(())
    } else {
        Err(Failure::last("kill"))
    }
}

/// Waits for one of `set`, which the caller blocks, and takes it (sigwaitinfo(2)).
///
/// # Errors
/// EINTR.
pub fn wait_signal(set: &SignalSet) -> Result<i32> {
    // SAFETY: `set` is an initialized set that outlives the call; the NULL is for the optional
    // siginfo.
    let signal = unsafe { libc::sigwaitinfo(set.raw(), std::ptr::null_mut()) };
    if signal > 0 {
        Ok(signal)
    } else {
        Err(Failure::last("sigwaitinfo"))
    }
}

/// Gives the calling process a new, empty session keyring (keyctl(2)).
///
/// # Errors
/// ENOSYS without keyrings, EDQUOT at the user's limit, EPERM where a filter forbids it.
pub fn join_new_session_keyring() -> Result<()> {
    const JOIN_SESSION_KEYRING: libc::c_int = 1;
    // SAFETY: the NULL asks for a keyring without a name.
    let done = unsafe {
        libc::syscall(
            libc::SYS_keyctl,
            JOIN_SESSION_KEYRING,
            std::ptr::null::<libc::c_char>(),
        )
    };
    if done >= 0 {
        Ok(())
    } else {
        Err(Failure::last("keyctl"))
    }
}

/// Leaves the caller's cgroup namespace for a new one rooted where it is now (unshare(2)).
///
/// # Errors
/// EPERM, ENOSPC at the limit.
pub fn unshare_cgroup_namespace() -> Result<()> {
    // SAFETY: no memory is passed, and a cgroup namespace changes no Rust state.
    let done = unsafe { libc::unshare(libc::CLONE_NEWCGROUP) };
    if done == 0 {
        Ok(())
    } else {
        Err(Failure::last("unshare"))
    }
}

/// Makes a time namespace for what the caller forks; the caller enters it with setns(2)
/// (unshare(2), Linux 5.6). Until somebody is in it, its offsets can be set.
///
/// # Errors
/// EPERM, EINVAL without time namespaces.
pub fn unshare_time_namespace() -> Result<()> {
    // SAFETY: no memory is passed, and the caller itself stays where it is.
    let done = unsafe { libc::unshare(libc::CLONE_NEWTIME) };
    if done == 0 {
        Ok(())
    } else {
        Err(Failure::last("unshare"))
    }
}

/// Closes all descriptors from `first` on but `kept` (which must be sorted, ascending). Only for a child
/// of [`fork`].
///
/// # Errors
/// ENOSYS before Linux 5.9.
pub fn close_all_but_sorted(first: RawFd, kept: &[RawFd]) -> Result<()> {
    let mut from = first;
    for &fd in kept.iter().filter(|fd| **fd >= first) {
        if fd > from {
            // SAFETY: as in `close_all_from`.
            let done = unsafe { libc::syscall(libc::SYS_close_range, from, fd - 1, 0) };
            if done != 0 {
                return Err(Failure::last("close_range"));
            }
        }
        from = from.max(fd + 1);
    }
    close_all_from(from)
}

/// Lets a descriptor live through execve. Only for a child of [`fork`].
///
/// # Errors
/// EBADF where it is not open.
pub fn keep_on_exec(fd: RawFd) -> Result<()> {
    // SAFETY: a number; no memory is touched.
    let done = unsafe { libc::fcntl(fd, libc::F_SETFD, 0) };
    if done == 0 {
        Ok(())
    } else {
        Err(Failure::last("fcntl"))
    }
}

/// Sets the interface `lo` of the caller's network namespace up (netdevice(7)).
///
/// # Errors
/// EPERM without CAP_NET_ADMIN in it.
pub fn bring_up_loopback() -> Result<()> {
    let socket = rustix::net::socket_with(
        rustix::net::AddressFamily::INET,
        rustix::net::SocketType::DGRAM,
        rustix::net::SocketFlags::CLOEXEC,
        None,
    )
    .map_err(Failure::of("socket"))?;
    // SAFETY: an ifreq is plain data, for which zero is a value.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    request.ifr_name[0] = b'l'.cast_signed();
    request.ifr_name[1] = b'o'.cast_signed();
    request.ifr_ifru.ifru_flags = i16::try_from(libc::IFF_UP | libc::IFF_RUNNING).unwrap_or(1);
    // SAFETY: SIOCSIFFLAGS reads an ifreq, which outlives the call.
    let done = unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS, &raw const request) };
    if done == 0 {
        Ok(())
    } else {
        Err(Failure::last("ioctl(SIOCSIFFLAGS)"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::process::{WaitId, WaitIdOptions, waitid};
    use std::os::fd::AsFd;

    #[test]
    fn a_forked_child_exits_with_what_it_returns() {
        let (_, pidfd) = fork(Namespaces::NONE, None, Parent::Caller, || 7).unwrap();
        let status = waitid(WaitId::PidFd(pidfd.unwrap().as_fd()), WaitIdOptions::EXITED)
            .unwrap()
            .unwrap();
        assert_eq!(status.exit_status(), Some(7));
    }
}
