//! How a process is scheduled, its memory placed and its system calls understood: what rustix
//! lacks. All act on the calling thread; none allocates.

use std::os::raw::{c_int, c_long, c_ulong};

use crate::{Failure, Result};

/// `struct sched_attr` of sched_setattr(2) without the utilization clamps (version 0, 48 bytes).
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Scheduling {
    size: u32,
    /// `SCHED_*`.
    pub policy: u32,
    /// `SCHED_FLAG_*`.
    pub flags: u64,
    /// For `SCHED_OTHER` and `SCHED_BATCH`, -20 to 19.
    pub nice: i32,
    /// For `SCHED_FIFO` and `SCHED_RR`, 1 to 99.
    pub priority: u32,
    /// For `SCHED_DEADLINE`, nanoseconds.
    pub runtime: u64,
    /// For `SCHED_DEADLINE`, nanoseconds.
    pub deadline: u64,
    /// For `SCHED_DEADLINE`, nanoseconds.
    pub period: u64,
}

fn done(call: &'static str, answer: c_long) -> Result<()> {
    if answer < 0 {
        Err(Failure::last(call))
    } else {
        Ok(())
    }
}

/// sched_setattr(2).
///
/// # Errors
/// EPERM without the right, EINVAL for values out of range, EBUSY where a deadline is not kept.
pub fn sched_setattr(scheduling: &Scheduling) -> Result<()> {
    let attributes = Scheduling {
        size: 48,
        ..*scheduling
    };
    // SAFETY: `attributes` has the layout and the size that it says, and outlives the call.
    let answer = unsafe { libc::syscall(libc::SYS_sched_setattr, 0, &raw const attributes, 0) };
    done("sched_setattr", answer)
}

/// ioprio_set(2): class in the bits from 13 on, level below.
///
/// # Errors
/// EPERM without the right, EINVAL for a value out of range.
pub fn set_io_priority(value: u16) -> Result<()> {
    const WHO_PROCESS: c_int = 1;
    // SAFETY: numbers only.
    let answer = unsafe { libc::syscall(libc::SYS_ioprio_set, WHO_PROCESS, 0, c_int::from(value)) };
    done("ioprio_set", answer)
}

/// personality(2).
///
/// # Errors
/// EINVAL where the kernel cannot.
pub fn set_personality(persona: u32) -> Result<()> {
    // SAFETY: numbers only.
    let answer = unsafe { libc::personality(c_ulong::from(persona)) };
    done("personality", c_long::from(answer))
}

/// set_mempolicy(2): mode with its flags, and the nodes as bits (1024 at most).
///
/// # Errors
/// EINVAL for nodes that do not exist, ENOSYS without NUMA.
pub fn set_memory_policy(mode: u32, nodes: &[u64; 16]) -> Result<()> {
    let empty = nodes.iter().all(|word| *word == 0);
    let mask = if empty {
        std::ptr::null()
    } else {
        nodes.as_ptr()
    };
    // The kernel looks at one bit less than it is told.
    let bits: c_ulong = if empty { 0 } else { 1024 + 1 };
    // SAFETY: `mask` is null or points to 1024 bits that outlive the call.
    let answer = unsafe { libc::syscall(libc::SYS_set_mempolicy, mode, mask, bits) };
    done("set_mempolicy", answer)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernel_takes_what_is_said() {
        std::thread::spawn(|| {
            set_io_priority((2 << 13) | 7).unwrap();
            let nice = Scheduling {
                nice: 5,
                ..Scheduling::default()
            };
            sched_setattr(&nice).unwrap();
            set_personality(0).unwrap();
            assert_eq!(
                set_io_priority(7 << 13).unwrap_err().errno,
                rustix::io::Errno::INVAL
            );
        })
        .join()
        .unwrap();
    }
}
