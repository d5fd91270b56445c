//! seccomp(2): installing a filter program on the calling thread.

use std::os::fd::{FromRawFd, OwnedFd, RawFd};

use rustix::io::Errno;

use crate::{Failure, Result};

/// One instruction of classic BPF, as the kernel reads it (`struct sock_filter`).
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub struct Instruction {
    /// Operation, size and addressing mode.
    pub code: u16,
    /// How far to jump when the comparison holds.
    pub jt: u8,
    /// How far to jump when it does not.
    pub jf: u8,
    /// The operand.
    pub k: u32,
}

/// Flags of `SECCOMP_SET_MODE_FILTER`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub struct Flags(u32);

#[expect(missing_docs, reason = "the names are seccomp(2)'s")]
impl Flags {
    pub const NONE: Self = Self(0);
    pub const TSYNC: Self = Self(1);
    pub const LOG: Self = Self(1 << 1);
    pub const SPEC_ALLOW: Self = Self(1 << 2);
    pub const NEW_LISTENER: Self = Self(1 << 3);
    pub const WAIT_KILLABLE_RECV: Self = Self(1 << 5);

    /// Both sets.
    #[must_use]
    pub const fn with(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// `self` less `other`.
    #[must_use]
    pub const fn without(self, other: Self) -> Self {
        Self(self.0 & !other.0)
    }

    /// Whether all of `other` is in `self`.
    pub const fn contains(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }

    /// From raw bits, as they were stored.
    pub const fn from_bits(bits: u32) -> Self {
        Self(bits)
    }

    /// The raw bits.
    pub const fn bits(self) -> u32 {
        self.0
    }
}

/// Installs `program` on the calling thread, for good: it passes to children and through execve.
/// With [`Flags::NEW_LISTENER`] the answer is the notification descriptor. Allocates nothing, so a
/// fresh child may call it.
///
/// # Errors
/// EACCES without `no_new_privs` and without CAP_SYS_ADMIN; EINVAL for a program the kernel does
/// not accept (longer than 4096, jumps out of itself) or a flag it does not know.
pub fn load(program: &[Instruction], flags: Flags) -> Result<Option<OwnedFd>> {
    #[repr(C)]
    struct Fprog {
        len: u16,
        filter: *const Instruction,
    }
    const SET_MODE_FILTER: libc::c_ulong = 1;
    let len = u16::try_from(program.len()).map_err(|_| Failure {
        call: "seccomp",
        errno: Errno::INVAL,
    })?;
    let fprog = Fprog {
        len,
        filter: program.as_ptr(),
    };
    // SAFETY: `fprog` has the layout of struct sock_fprog and points to `len` instructions with
    // the layout of struct sock_filter; the kernel copies them before the call returns.
    let answer = unsafe {
        libc::syscall(
            libc::SYS_seccomp,
            SET_MODE_FILTER,
            libc::c_ulong::from(flags.bits()),
            &raw const fprog,
        )
    };
    match RawFd::try_from(answer) {
        Ok(fd) if fd >= 0 && flags.contains(Flags::NEW_LISTENER) => {
            // SAFETY: with this flag the call returns a new descriptor that nobody else owns.
            Ok(Some(unsafe { OwnedFd::from_raw_fd(fd) }))
        }
        Ok(0) => Ok(None),
        // With TSYNC a positive answer is the thread that could not follow.
        Ok(thread) if thread > 0 => Err(Failure {
            call: "seccomp",
            errno: Errno::SRCH,
        }),
        _ => Err(Failure::last("seccomp")),
    }
}
