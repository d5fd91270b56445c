//! Namespaces outside of `clone3`: a thread's own mount namespace, and user namespaces as values.

use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use rustix::io::Errno;
use rustix::process::Pid;

use crate::{Failure, Result};

/// Gives the calling *thread* a copy of its mount namespace, with a root and working directory of
/// its own (`unshare(CLONE_FS | CLONE_NEWNS)`). Other threads stay where they are.
///
/// # Errors
/// As unshare(2): EPERM without the right.
pub fn unshare_mounts() -> Result<()> {
    unshare(libc::CLONE_FS | libc::CLONE_NEWNS)
}

/// Gives the calling *thread* a new network namespace (`unshare(CLONE_NEWNET)`), in which `lo` is
/// down. Threads and processes that it makes are born there; other threads stay where they are.
///
/// # Errors
/// As unshare(2): EPERM without the right, ENOSPC at the limit.
pub fn unshare_network() -> Result<()> {
    unshare(libc::CLONE_NEWNET)
}

/// Moves the calling *thread* into the mount namespace behind `namespace`; its root and working
/// directory become that namespace's root.
///
/// # Errors
/// As unshare(2) and setns(2): EPERM without the right.
pub fn enter_mounts(namespace: BorrowedFd<'_>) -> Result<()> {
    // setns refuses a thread that shares its root and working directory with others.
    unshare(libc::CLONE_FS)?;
    crate::process::setns(namespace, crate::clone::Namespaces::MOUNT)
}

fn unshare(flags: i32) -> Result<()> {
    // SAFETY: no memory is passed, and the flags used here do not touch the table of file
    // descriptors, so every owned descriptor stays valid in every thread.
    if unsafe { libc::unshare(flags) } == 0 {
        Ok(())
    } else {
        Err(Failure::last("unshare"))
    }
}

/// A user namespace that nothing runs in, for idmapped mounts (mount_setattr(2)) or setns(2). The
/// maps are in the form of user_namespaces(7): lines of `inside outside count`.
///
/// A child process is made for it and gone when this returns; it raises no SIGCHLD.
///
/// # Errors
/// As clone3(2) and write(2) to `/proc/PID/uid_map`: EPERM without the right, EINVAL for maps that
/// overlap or have too many lines.
pub fn user_namespace(uid_map: &str, gid_map: &str) -> Result<OwnedFd> {
    let write = |pid: Pid| {
        for (file, map) in [("uid_map", uid_map), ("gid_map", gid_map)] {
            // One write(2) for the whole map, as user_namespaces(7) asks.
            std::fs::write(format!("/proc/{}/{file}", pid.as_raw_nonzero()), map)
                .map_err(|error| Failure::from_io("write", &error))?;
        }
        Ok(())
    };
    user_namespace_by(write, |failure| failure)
}

/// [`user_namespace`] with maps that `write` writes, or has written (newuidmap(1)), for the process in
/// it whose id it gets. `failed` makes an error of the caller's.
///
/// # Errors
/// As clone3(2), and what `write` says.
pub fn user_namespace_by<E>(
    write: impl FnOnce(Pid) -> std::result::Result<(), E>,
    failed: impl Fn(Failure) -> E,
) -> std::result::Result<OwnedFd, E> {
    let child = Child::sleeping().map_err(&failed)?;
    let pid = Pid::from_raw(child.pid).ok_or(Failure {
        call: "clone3",
        errno: Errno::SRCH,
    });
    write(pid.map_err(&failed)?)?;
    rustix::fs::open(
        format!("/proc/{}/ns/user", child.pid),
        rustix::fs::OFlags::RDONLY | rustix::fs::OFlags::CLOEXEC,
        rustix::fs::Mode::empty(),
    )
    .map_err(Failure::of("open"))
    .map_err(failed)
}

/// A child in a new user namespace that only waits to be killed.
struct Child {
    pid: libc::pid_t,
    pidfd: OwnedFd,
}

impl Child {
    fn sleeping() -> Result<Self> {
        let mut pidfd: RawFd = -1;
        let mut args = libc::clone_args {
            flags: (libc::CLONE_NEWUSER | libc::CLONE_PIDFD)
                .unsigned_abs()
                .into(),
            pidfd: (&raw mut pidfd).addr() as u64,
            child_tid: 0,
            parent_tid: 0,
            // No signal to the parent: it may have a handler for its other children.
            exit_signal: 0,
            stack: 0,
            stack_size: 0,
            tls: 0,
            set_tid: 0,
            set_tid_size: 0,
            cgroup: 0,
        };
        let parent = rustix::process::getpid().as_raw_nonzero().get();
        // SAFETY: `args` is a clone_args of the given size whose only pointer, `pidfd`, outlives
        // the call. The child has its own copy of memory and below makes system calls only, so it
        // does not matter which locks other threads held.
        let pid = unsafe {
            libc::syscall(
                libc::SYS_clone3,
                &raw mut args,
                size_of::<libc::clone_args>(),
            )
        };
        match libc::pid_t::try_from(pid) {
            Ok(0) => {
                // SAFETY: passes numbers only.
                unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) };
                // SAFETY: passes nothing. The parent may have died before the prctl.
                while unsafe { libc::getppid() } == parent {
                    // SAFETY: passes nothing.
                    unsafe { libc::pause() };
                }
                crate::process::exit_now(0)
            }
            Ok(pid) if pid > 0 => {
                // SAFETY: the kernel put a new descriptor there that nobody else owns.
                let pidfd = unsafe { OwnedFd::from_raw_fd(pidfd) };
                Ok(Self { pid, pidfd })
            }
            Ok(_) => Err(Failure::last("clone3")),
            Err(_) => Err(Failure {
                call: "clone3",
                errno: Errno::OVERFLOW,
            }),
        }
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        let id = self.pidfd.as_raw_fd().unsigned_abs();
        // SAFETY: passes numbers and a null siginfo, which asks for the default one.
        unsafe {
            libc::syscall(
                libc::SYS_pidfd_send_signal,
                self.pidfd.as_raw_fd(),
                libc::SIGKILL,
                std::ptr::null::<libc::siginfo_t>(),
                0,
            )
        };
        let options = libc::WEXITED | libc::__WALL;
        loop {
            // SAFETY: a null siginfo is allowed (waitid(2), "Linux").
            let waited = unsafe { libc::waitid(libc::P_PIDFD, id, std::ptr::null_mut(), options) };
            if waited == 0 || Failure::last("waitid").errno != Errno::INTR {
                break;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_user_namespace_has_the_maps_it_was_given() {
        if !rustix::process::geteuid().is_root() {
            eprintln!("SKIP a_user_namespace_has_the_maps_it_was_given: needs root");
            return;
        }
        let first = user_namespace("0 100000 65536\n", "0 200000 65536\n").unwrap();
        let second = user_namespace("0 100000 65536\n", "0 200000 65536\n").unwrap();
        let inode = |fd: &OwnedFd| rustix::fs::fstat(fd).unwrap().st_ino;
        assert_ne!(inode(&first), inode(&second));
        let overlapping = user_namespace("0 100000 10\n5 200000 10\n", "0 100000 1\n");
        assert_eq!(
            overlapping.unwrap_err(),
            Failure {
                call: "write",
                errno: Errno::INVAL
            }
        );
    }
}
