//! bpf(2), as far as device rules of cgroups need it: load, attach, replace, list.

use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use crate::{Failure, Result};

/// One instruction of extended BPF, as the kernel reads it (`struct bpf_insn`).
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Instruction {
    /// Operation.
    pub code: u8,
    /// Destination register in the low four bits, source register in the high four.
    pub registers: u8,
    /// Offset of a jump or of a memory access.
    pub offset: i16,
    /// The operand.
    pub immediate: i32,
}

const PROG_LOAD: libc::c_int = 5;
const PROG_ATTACH: libc::c_int = 8;
const PROG_GET_FD_BY_ID: libc::c_int = 13;
const PROG_QUERY: libc::c_int = 16;

const PROG_TYPE_CGROUP_DEVICE: u32 = 15;
const ATTACH_CGROUP_DEVICE: u32 = 6;
const ALLOW_MULTI: u32 = 1 << 1;
const REPLACE: u32 = 1 << 2;

/// Calls bpf(2) with an attribute block of type `T`.
///
/// # Safety
/// `T` has the layout that `command` reads and writes, and every pointer in it is valid for that.
unsafe fn bpf<T>(command: libc::c_int, attributes: &mut T) -> Result<RawFd> {
    // SAFETY: the block is valid for its own size; its content is the caller's promise.
    let answer = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            command,
            std::ptr::from_mut(attributes),
            size_of::<T>(),
        )
    };
    match RawFd::try_from(answer) {
        Ok(answer) if answer >= 0 => Ok(answer),
        _ => Err(Failure::last("bpf")),
    }
}

/// Loads a program of type `BPF_PROG_TYPE_CGROUP_DEVICE` (Linux 4.15).
///
/// # Errors
/// EPERM without CAP_BPF or CAP_SYS_ADMIN, EINVAL and EACCES when the verifier refuses it.
pub fn load_device_program(program: &[Instruction]) -> Result<OwnedFd> {
    #[repr(C)]
    struct Load {
        prog_type: u32,
        insn_cnt: u32,
        insns: u64,
        license: u64,
        log_level: u32,
        log_size: u32,
        log_buf: u64,
        kern_version: u32,
        prog_flags: u32,
        prog_name: [u8; 16],
    }
    let mut attributes = Load {
        prog_type: PROG_TYPE_CGROUP_DEVICE,
        insn_cnt: u32::try_from(program.len()).unwrap_or(u32::MAX),
        insns: program.as_ptr().addr() as u64,
        license: c"Apache-2.0".as_ptr().addr() as u64,
        log_level: 0,
        log_size: 0,
        log_buf: 0,
        kern_version: 0,
        prog_flags: 0,
        prog_name: *b"knarr_devices\0\0\0",
    };
    // SAFETY: `Load` is the head of union bpf_attr for BPF_PROG_LOAD; both pointers are to memory
    // that outlives the call, of the length told.
    let fd = unsafe { bpf(PROG_LOAD, &mut attributes) }?;
    // SAFETY: BPF_PROG_LOAD returns a new descriptor that nobody else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Attaches a device program to a cgroup v2 directory: as one more (all must allow), or in the
/// place of `replaced` at one stroke (Linux 5.6).
///
/// # Errors
/// EPERM when an ancestor forbids it, EINVAL when `replaced` is not attached there.
pub fn attach_device_program(
    cgroup: BorrowedFd<'_>,
    program: BorrowedFd<'_>,
    replaced: Option<BorrowedFd<'_>>,
) -> Result<()> {
    #[repr(C)]
    struct Attach {
        target_fd: u32,
        attach_bpf_fd: u32,
        attach_type: u32,
        attach_flags: u32,
        replace_bpf_fd: u32,
    }
    let mut attributes = Attach {
        target_fd: cgroup.as_raw_fd().unsigned_abs(),
        attach_bpf_fd: program.as_raw_fd().unsigned_abs(),
        attach_type: ATTACH_CGROUP_DEVICE,
        attach_flags: ALLOW_MULTI | if replaced.is_some() { REPLACE } else { 0 },
        replace_bpf_fd: replaced.map_or(0, |fd| fd.as_raw_fd().unsigned_abs()),
    };
    // SAFETY: `Attach` is the head of union bpf_attr for BPF_PROG_ATTACH, without pointers.
    unsafe { bpf(PROG_ATTACH, &mut attributes) }.map(drop)
}

/// The device programs attached to a cgroup v2 directory itself, at most 64.
///
/// # Errors
/// EPERM without CAP_NET_ADMIN or CAP_SYS_ADMIN.
pub fn device_programs(cgroup: BorrowedFd<'_>) -> Result<Vec<OwnedFd>> {
    #[repr(C)]
    struct Query {
        target_fd: u32,
        attach_type: u32,
        query_flags: u32,
        attach_flags: u32,
        prog_ids: u64,
        prog_cnt: u32,
        padding: u32,
    }
    #[repr(C)]
    struct ById {
        id: u32,
        next_id: u32,
        open_flags: u32,
    }
    let mut ids = [0u32; 64];
    let mut query = Query {
        target_fd: cgroup.as_raw_fd().unsigned_abs(),
        attach_type: ATTACH_CGROUP_DEVICE,
        query_flags: 0,
        attach_flags: 0,
        prog_ids: (&raw mut ids).addr() as u64,
        prog_cnt: 64,
        padding: 0,
    };
    // SAFETY: `Query` is the head of union bpf_attr for BPF_PROG_QUERY; `prog_ids` points to 64
    // numbers that outlive the call.
    unsafe { bpf(PROG_QUERY, &mut query) }?;
    ids.iter()
        .take(query.prog_cnt as usize)
        .map(|&id| {
            let mut by_id = ById {
                id,
                next_id: 0,
                open_flags: 0,
            };
            // SAFETY: `ById` is the head of union bpf_attr for this command, without pointers.
            let fd = unsafe { bpf(PROG_GET_FD_BY_ID, &mut by_id) }?;
            // SAFETY: the call returns a new descriptor that nobody else owns.
            Ok(unsafe { OwnedFd::from_raw_fd(fd) })
        })
        .collect()
}
