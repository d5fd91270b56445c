//! clone3(2): a process with all its namespaces, cgroup and pidfd in one call.

use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use rustix::process::Pid;

use crate::{Failure, Result};

/// Namespaces to create, as the `CLONE_NEW*` bits of clone(2).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Namespaces(u64);

#[expect(missing_docs, reason = "the names are namespaces(7)'s")]
impl Namespaces {
    pub const NONE: Self = Self(0);
    pub const TIME: Self = Self(libc::CLONE_NEWTIME as u64);
    pub const MOUNT: Self = Self(libc::CLONE_NEWNS as u64);
    pub const CGROUP: Self = Self(libc::CLONE_NEWCGROUP as u64);
    pub const UTS: Self = Self(libc::CLONE_NEWUTS as u64);
    pub const IPC: Self = Self(libc::CLONE_NEWIPC as u64);
    pub const USER: Self = Self(libc::CLONE_NEWUSER as u64);
    pub const PID: Self = Self(libc::CLONE_NEWPID as u64);
    pub const NETWORK: Self = Self(libc::CLONE_NEWNET as u64);

    /// Both sets.
    #[must_use]
    pub const fn with(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// Whether all of `other` is in `self`.
    pub const fn contains(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }

    /// The raw bits, for setns(2) and unshare(2).
    pub const fn bits(self) -> u64 {
        self.0
    }
}

/// `linux/sched.h`; libc's constant is too narrow for it.
const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;

/// Which side of the fork the caller finds itself on.
#[derive(Debug)]
pub enum Forked {
    /// In the new process.
    Child,
    /// In the caller.
    Parent {
        /// The child's id in the caller's pid namespace.
        pid: Pid,
        /// A handle that stays valid when the id is reused (pidfd_open(2)).
        pidfd: OwnedFd,
    },
}

/// Forks with `clone3`, flags `CLONE_PIDFD`, the `namespaces`, and `CLONE_INTO_CGROUP` where a
/// cgroup v2 directory is given (Linux 5.7). The child's exit signal is SIGCHLD.
///
/// # Safety
/// The calling process has one thread. Were there more, the child could find a lock held by a
/// thread that does not exist in it.
///
/// # Errors
/// As clone3(2): EAGAIN and ENOSPC at limits, EPERM without the right, EBUSY or EOPNOTSUPP when
/// the cgroup cannot take processes.
pub unsafe fn clone3(namespaces: Namespaces, cgroup: Option<BorrowedFd<'_>>) -> Result<Forked> {
    let mut pidfd: RawFd = -1;
    let mut args = libc::clone_args {
        flags: namespaces.0 | libc::CLONE_PIDFD as u64,
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
    if let Some(cgroup) = cgroup {
        args.flags |= CLONE_INTO_CGROUP;
        args.cgroup = u64::from(cgroup.as_raw_fd().unsigned_abs());
    }
    // SAFETY: `args` is a clone_args of the given size whose only pointer, `pidfd`, outlives the
    // call; without CLONE_VM the child has its own copy of everything, and the caller vouches for
    // there being one thread.
    let pid = unsafe {
        libc::syscall(
            libc::SYS_clone3,
            &raw mut args,
            size_of::<libc::clone_args>(),
        )
    };
    match i32::try_from(pid) {
        Ok(0) => Ok(Forked::Child),
        Ok(pid) if pid > 0 => {
            // SAFETY: the kernel put a new file descriptor there that nobody else owns.
            let pidfd = unsafe { OwnedFd::from_raw_fd(pidfd) };
            let pid = Pid::from_raw(pid).ok_or(Failure {
                call: "clone3",
                errno: rustix::io::Errno::IO,
            })?;
            Ok(Forked::Parent { pid, pidfd })
        }
        _ => Err(Failure::last("clone3")),
    }
}
