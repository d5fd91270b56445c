//! mount_setattr(2), Linux 5.12.

use std::ffi::CStr;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

use crate::{Failure, Result};

/// Attributes of a mount, the `MOUNT_ATTR_*` bits of mount_setattr(2).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Attributes(u64);

#[expect(missing_docs, reason = "the names are mount_setattr(2)'s")]
impl Attributes {
    pub const NONE: Self = Self(0);
    pub const RDONLY: Self = Self(libc::MOUNT_ATTR_RDONLY);
    pub const NOSUID: Self = Self(libc::MOUNT_ATTR_NOSUID);
    pub const NODEV: Self = Self(libc::MOUNT_ATTR_NODEV);
    pub const NOEXEC: Self = Self(libc::MOUNT_ATTR_NOEXEC);
    pub const ATIME: Self = Self(libc::MOUNT_ATTR__ATIME);
    pub const RELATIME: Self = Self(libc::MOUNT_ATTR_RELATIME);
    pub const NOATIME: Self = Self(libc::MOUNT_ATTR_NOATIME);
    pub const STRICTATIME: Self = Self(libc::MOUNT_ATTR_STRICTATIME);
    pub const NODIRATIME: Self = Self(libc::MOUNT_ATTR_NODIRATIME);
    pub const NOSYMFOLLOW: Self = Self(libc::MOUNT_ATTR_NOSYMFOLLOW);

    /// Both sets.
    #[must_use]
    pub const fn with(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// Whether nothing is set.
    pub const fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// The raw bits.
    pub const fn bits(self) -> u64 {
        self.0
    }
}

/// How mounts below propagate, the `MS_*` bits of mount(2); zero leaves it as it is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Propagation {
    /// As it is.
    #[default]
    Unchanged,
    /// `MS_PRIVATE`
    Private,
    /// `MS_SLAVE`
    Slave,
    /// `MS_SHARED`
    Shared,
    /// `MS_UNBINDABLE`
    Unbindable,
}

/// What [`mount_setattr`] changes.
#[derive(Debug, Clone, Copy, Default)]
pub struct Change<'a> {
    /// Attributes to set.
    pub set: Attributes,
    /// Attributes to clear.
    pub clear: Attributes,
    /// The new propagation.
    pub propagation: Propagation,
    /// A user namespace whose maps become the mount's (`MOUNT_ATTR_IDMAP`).
    pub idmap: Option<BorrowedFd<'a>>,
    /// Also all mounts below (`AT_RECURSIVE`).
    pub recursive: bool,
}

/// Changes the mount at `path` below `dir`; an empty `path` is the mount that `dir` itself refers
/// to (`AT_EMPTY_PATH`). Does not follow a final symlink. Does not allocate.
///
/// # Errors
/// As mount_setattr(2): EINVAL for a file system without idmapped mounts, EPERM without the right.
pub fn mount_setattr<Fd: AsFd>(dir: Fd, path: &CStr, change: &Change<'_>) -> Result<()> {
    let mut attributes = libc::mount_attr {
        attr_set: change.set.0,
        attr_clr: change.clear.0,
        propagation: match change.propagation {
            Propagation::Unchanged => 0,
            Propagation::Private => libc::MS_PRIVATE,
            Propagation::Slave => libc::MS_SLAVE,
            Propagation::Shared => libc::MS_SHARED,
            Propagation::Unbindable => libc::MS_UNBINDABLE,
        },
        userns_fd: 0,
    };
    if let Some(userns) = change.idmap {
        attributes.attr_set |= libc::MOUNT_ATTR_IDMAP;
        attributes.userns_fd = u64::from(userns.as_raw_fd().unsigned_abs());
    }
    let mut flags = libc::AT_SYMLINK_NOFOLLOW;
    if path.is_empty() {
        flags |= libc::AT_EMPTY_PATH;
    }
    if change.recursive {
        flags |= libc::AT_RECURSIVE;
    }
    // SAFETY: `path` is NUL-terminated and `attributes` a mount_attr of the given size; both
    // outlive the call, and the kernel only reads them.
    let done = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            dir.as_fd().as_raw_fd(),
            path.as_ptr(),
            flags,
            &raw const attributes,
            size_of::<libc::mount_attr>(),
        )
    };
    if done == 0 {
        Ok(())
    } else {
        Err(Failure::last("mount_setattr"))
    }
}
