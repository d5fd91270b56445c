//! pidfd ioctls: how a process ended that is not our child.

use std::os::fd::{AsRawFd, BorrowedFd};

use crate::{Failure, Result};

/// `struct pidfd_info` of `linux/pidfd.h`, first version (64 bytes).
#[repr(C)]
#[derive(Default)]
struct Info {
    mask: u64,
    cgroupid: u64,
    pid: u32,
    tgid: u32,
    ppid: u32,
    ruid: u32,
    rgid: u32,
    euid: u32,
    egid: u32,
    suid: u32,
    sgid: u32,
    fsuid: u32,
    fsgid: u32,
    exit_code: i32,
}

/// `_IOWR(0xFF, 11, struct pidfd_info)`
const PIDFD_GET_INFO: libc::c_ulong = 0xC040_FF0B;
const PIDFD_INFO_EXIT: u64 = 1 << 3;

/// How the process behind a pidfd ended, as waitpid(2) encodes it; `None` while it is not reaped
/// yet. Needs no relation to it (`PIDFD_GET_INFO` with `PIDFD_INFO_EXIT`, Linux 6.15).
///
/// # Errors
/// ENOTTY and EINVAL before Linux 6.15; ESRCH when it was reaped before the pidfd was opened.
pub fn exit_status(pidfd: BorrowedFd<'_>) -> Result<Option<i32>> {
    let mut info = Info {
        mask: PIDFD_INFO_EXIT,
        ..Info::default()
    };
    // SAFETY: `info` has the layout and the size that the number says, and outlives the call.
    let done = unsafe { libc::ioctl(pidfd.as_raw_fd(), PIDFD_GET_INFO, &raw mut info) };
    if done < 0 {
        return Err(Failure::last("ioctl(PIDFD_GET_INFO)"));
    }
    Ok((info.mask & PIDFD_INFO_EXIT != 0).then_some(info.exit_code))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsFd;

    #[test]
    fn the_exit_of_a_reaped_process_can_still_be_read() {
        let mut child = std::process::Command::new("/bin/sh")
            .args(["-c", "read x; exit 7"])
            .stdin(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        let pid = rustix::process::Pid::from_child(&child);
        let pidfd = rustix::process::pidfd_open(pid, rustix::process::PidfdFlags::empty()).unwrap();
        match exit_status(pidfd.as_fd()) {
            Ok(status) => assert_eq!(status, None),
            Err(failure) => {
                eprintln!("SKIP the_exit_of_a_reaped_process_can_still_be_read: {failure}");
                child.kill().unwrap();
                child.wait().unwrap();
                return;
            }
        }
        drop(child.stdin.take());
        child.wait().unwrap();
        assert_eq!(exit_status(pidfd.as_fd()).unwrap(), Some(7 << 8));
    }
}
