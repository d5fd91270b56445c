//! sync_file_range(2): starting to write a file's pages out before somebody waits for them.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

use crate::{Failure, Result};

/// Starts writing a range's dirty pages to the disk and returns at once. It promises nothing about
/// durability: only a later fsync does, which then has less to wait for.
///
/// # Errors
/// As sync_file_range(2); EINVAL for a range beyond 2^63.
pub fn start_writeback(file: impl AsFd, offset: u64, len: u64) -> Result<()> {
    sync_file_range(file.as_fd(), offset, len, libc::SYNC_FILE_RANGE_WRITE)
}

/// Writes a range's dirty pages to the disk and waits until they are there. As a promise it lacks
/// what fsync adds: the file's size and its blocks' numbers.
///
/// # Errors
/// As sync_file_range(2). A failed write is told here, and then no more by a later fsync.
pub fn finish_writeback(file: impl AsFd, offset: u64, len: u64) -> Result<()> {
    let all = libc::SYNC_FILE_RANGE_WAIT_BEFORE
        | libc::SYNC_FILE_RANGE_WRITE
        | libc::SYNC_FILE_RANGE_WAIT_AFTER;
    sync_file_range(file.as_fd(), offset, len, all)
}

fn sync_file_range(file: BorrowedFd<'_>, offset: u64, len: u64, flags: libc::c_uint) -> Result<()> {
    let number = |value: u64| {
        i64::try_from(value).map_err(|_| Failure {
            call: "sync_file_range",
            errno: rustix::io::Errno::INVAL,
        })
    };
    let (offset, len) = (number(offset)?, number(len)?);
    // SAFETY: the call takes no pointers, and `file` keeps the descriptor open meanwhile.
    let result = unsafe { libc::sync_file_range(file.as_raw_fd(), offset, len, flags) };
    if result == -1 {
        return Err(Failure::last("sync_file_range"));
    }
    Ok(())
}
