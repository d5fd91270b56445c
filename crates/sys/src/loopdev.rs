//! Loop devices (loop(4)): a file as a read-only block device.

use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

use crate::{Failure, Result};

/// `linux/loop.h`, "struct loop_info64".
#[repr(C)]
struct LoopInfo64 {
    device: u64,
    inode: u64,
    rdevice: u64,
    offset: u64,
    size_limit: u64,
    number: u32,
    encrypt_type: u32,
    encrypt_key_size: u32,
    flags: u32,
    file_name: [u8; 64],
    crypt_name: [u8; 64],
    encrypt_key: [u8; 32],
    init: [u64; 2],
}

/// `linux/loop.h`, "struct loop_config".
#[repr(C)]
struct LoopConfig {
    fd: u32,
    block_size: u32,
    info: LoopInfo64,
    reserved: [u64; 8],
}

const LOOP_CTL_GET_FREE: libc::Ioctl = 0x4C82;
const LOOP_CONFIGURE: libc::Ioctl = 0x4C0A;
const LO_FLAGS_READ_ONLY: u32 = 1;
const LO_FLAGS_AUTOCLEAR: u32 = 4;

/// A loop device that is open. It lets go of its file when the last user closes it (autoclear): a
/// mounted file system counts as one.
#[derive(Debug)]
pub struct LoopDevice {
    device: OwnedFd,
    number: u32,
}

impl LoopDevice {
    /// Puts `file` behind a free device, read-only, with 512-byte blocks (`LOOP_CONFIGURE`, Linux
    /// 5.8).
    ///
    /// # Errors
    /// ENOENT without `/dev/loop-control` (module `loop`), EPERM and EACCES without the right.
    pub fn attach<Fd: AsFd>(file: Fd) -> Result<Self> {
        let flags = OFlags::RDWR | OFlags::CLOEXEC;
        let control = rustix::fs::open("/dev/loop-control", flags, Mode::empty())
            .map_err(Failure::of("open /dev/loop-control"))?;
        loop {
            // SAFETY: this request takes no argument.
            let free = unsafe { libc::ioctl(control.as_raw_fd(), LOOP_CTL_GET_FREE) };
            let Ok(number) = u32::try_from(free) else {
                return Err(Failure::last("ioctl LOOP_CTL_GET_FREE"));
            };
            let device = rustix::fs::open(
                format!("/dev/loop{number}"),
                OFlags::RDONLY | OFlags::CLOEXEC,
                Mode::empty(),
            )
            .map_err(Failure::of("open /dev/loop"))?;
            let config = LoopConfig {
                fd: file.as_fd().as_raw_fd().unsigned_abs(),
                block_size: 512,
                info: LoopInfo64 {
                    device: 0,
                    inode: 0,
                    rdevice: 0,
                    offset: 0,
                    size_limit: 0,
                    number: 0,
                    encrypt_type: 0,
                    encrypt_key_size: 0,
                    flags: LO_FLAGS_READ_ONLY | LO_FLAGS_AUTOCLEAR,
                    file_name: [0; 64],
                    crypt_name: [0; 64],
                    encrypt_key: [0; 32],
                    init: [0; 2],
                },
                reserved: [0; 8],
            };
            // SAFETY: `config` has the layout of the kernel's struct loop_config and outlives the
            // call, which only reads it.
            let done =
                unsafe { libc::ioctl(device.as_raw_fd(), LOOP_CONFIGURE, &raw const config) };
            if done == 0 {
                return Ok(Self { device, number });
            }
            let failure = Failure::last("ioctl LOOP_CONFIGURE");
            // Somebody else took the device since it was free: ask for another.
            if failure.errno != Errno::BUSY {
                return Err(failure);
            }
        }
    }

    /// Where it is: `/dev/loopN`.
    pub fn path(&self) -> String {
        format!("/dev/loop{}", self.number)
    }
}

impl AsFd for LoopDevice {
    fn as_fd(&self) -> std::os::fd::BorrowedFd<'_> {
        self.device.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_structures_have_the_kernels_sizes() {
        assert_eq!(size_of::<LoopInfo64>(), 232);
        assert_eq!(size_of::<LoopConfig>(), 304);
    }
}
