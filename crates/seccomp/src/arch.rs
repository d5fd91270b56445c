//! Architectures a filter can speak about, and the numbers of their calls.

use crate::table::{CALLS, NO};

/// An architecture that system calls are made for: one table of numbers each.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Arch {
    /// 64-bit x86.
    X86_64,
    /// 32-bit x86.
    X86,
    /// 64-bit x86 with 32-bit pointers: x86-64's calls with bit 30 set.
    X32,
    /// 64-bit ARM.
    Aarch64,
    /// 32-bit ARM (EABI).
    Arm,
}

/// x32's mark in the number of a call.
pub(crate) const X32_BIT: u32 = 1 << 30;

/// From here on arm has calls of its own, apart from the common numbering.
pub(crate) const ARM_PRIVATE: u32 = 0xf_0000;

impl Arch {
    /// The one this was built for.
    pub const HOST: Self = if cfg!(target_arch = "aarch64") {
        Self::Aarch64
    } else {
        Self::X86_64
    };

    /// All of them.
    pub const ALL: [Self; 5] = [Self::X86_64, Self::X86, Self::X32, Self::Aarch64, Self::Arm];

    /// The name in an OCI `seccomp.architectures`.
    pub const fn oci_name(self) -> &'static str {
        match self {
            Self::X86_64 => "SCMP_ARCH_X86_64",
            Self::X86 => "SCMP_ARCH_X86",
            Self::X32 => "SCMP_ARCH_X32",
            Self::Aarch64 => "SCMP_ARCH_AARCH64",
            Self::Arm => "SCMP_ARCH_ARM",
        }
    }

    /// From the name in an OCI `seccomp.architectures`.
    pub fn from_oci_name(name: &str) -> Option<Self> {
        if name == "SCMP_ARCH_NATIVE" {
            return Some(Self::HOST);
        }
        Self::ALL.into_iter().find(|arch| arch.oci_name() == name)
    }

    /// The name in Docker's `includes.arches` and `excludes.arches`.
    pub(crate) const fn docker_name(self) -> &'static str {
        match self {
            Self::X86_64 => "amd64",
            Self::X86 => "x86",
            Self::X32 => "x32",
            Self::Aarch64 => "arm64",
            Self::Arm => "arm",
        }
    }

    /// What the kernel calls it in `seccomp_data.arch` (`AUDIT_ARCH_*`); x32 shares x86-64's.
    pub(crate) const fn audit(self) -> u32 {
        match self {
            Self::X86_64 | Self::X32 => 0xc000_003e,
            Self::X86 => 0x4000_0003,
            Self::Aarch64 => 0xc000_00b7,
            Self::Arm => 0x4000_0028,
        }
    }

    /// Whether arguments have 64 bits.
    pub(crate) const fn is_wide(self) -> bool {
        matches!(self, Self::X86_64 | Self::Aarch64)
    }

    fn column(self) -> usize {
        match self {
            Self::X86_64 => 0,
            Self::X86 => 1,
            Self::X32 => 2,
            Self::Aarch64 => 3,
            Self::Arm => 4,
        }
    }
}

/// A system call, known by name on at least one architecture.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Call(&'static (&'static str, [u32; 5]));

impl Call {
    pub(crate) fn by_name(name: &str) -> Option<Self> {
        let at = CALLS
            .binary_search_by(|(known, _)| (*known).cmp(name))
            .ok()?;
        CALLS.get(at).map(Self)
    }

    /// The number as it stands in `seccomp_data.nr`.
    pub(crate) fn number(self, arch: Arch) -> Option<u32> {
        let number = self
            .0
            .1
            .get(arch.column())
            .copied()
            .filter(|&number| number != NO)?;
        Some(if arch == Arch::X32 {
            number | X32_BIT
        } else {
            number
        })
    }

    /// On 32-bit x86, calls of sockets and System V IPC also go through `socketcall` and `ipc`:
    /// the number of that call, and the first argument that means this one.
    pub(crate) fn multiplexed(self) -> Option<(u32, u32)> {
        const SOCKETCALL: u32 = 102;
        const IPC: u32 = 117;
        let which = match self.0.0 {
            "socket" => (SOCKETCALL, 1),
            "bind" => (SOCKETCALL, 2),
            "connect" => (SOCKETCALL, 3),
            "listen" => (SOCKETCALL, 4),
            "accept" => (SOCKETCALL, 5),
            "getsockname" => (SOCKETCALL, 6),
            "getpeername" => (SOCKETCALL, 7),
            "socketpair" => (SOCKETCALL, 8),
            "send" => (SOCKETCALL, 9),
            "recv" => (SOCKETCALL, 10),
            "sendto" => (SOCKETCALL, 11),
            "recvfrom" => (SOCKETCALL, 12),
            "shutdown" => (SOCKETCALL, 13),
            "setsockopt" => (SOCKETCALL, 14),
            "getsockopt" => (SOCKETCALL, 15),
            "sendmsg" => (SOCKETCALL, 16),
            "recvmsg" => (SOCKETCALL, 17),
            "accept4" => (SOCKETCALL, 18),
            "recvmmsg" => (SOCKETCALL, 19),
            "sendmmsg" => (SOCKETCALL, 20),
            "semop" => (IPC, 1),
            "semget" => (IPC, 2),
            "semctl" => (IPC, 3),
            "semtimedop" => (IPC, 4),
            "msgsnd" => (IPC, 11),
            "msgrcv" => (IPC, 12),
            "msgget" => (IPC, 13),
            "msgctl" => (IPC, 14),
            "shmat" => (IPC, 21),
            "shmdt" => (IPC, 22),
            "shmget" => (IPC, 23),
            "shmctl" => (IPC, 24),
            _ => return None,
        };
        Some(which)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_is_sorted() {
        assert!(CALLS.is_sorted_by(|(a, _), (b, _)| a < b));
    }

    #[test]
    fn numbers_are_found_by_name() {
        let number = |name, arch| Call::by_name(name).and_then(|call| call.number(arch));
        assert_eq!(number("read", Arch::X86_64), Some(0));
        assert_eq!(number("read", Arch::X86), Some(3));
        assert_eq!(number("read", Arch::X32), Some(X32_BIT));
        assert_eq!(number("ioctl", Arch::X32), Some(X32_BIT | 514));
        assert_eq!(number("open", Arch::Aarch64), None);
        assert_eq!(number("set_tls", Arch::Arm), Some(0xf_0005));
        assert!(Call::by_name("no_such_call").is_none());
    }
}
