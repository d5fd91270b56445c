//! Reading the rules of the old iptables: getsockopt(2) on a raw socket.

use std::os::fd::{AsRawFd, BorrowedFd};

use crate::{Failure, Result};

/// `IPT_SO_GET_INFO` and `IP6T_SO_GET_INFO` of `linux/netfilter_ipv4/ip_tables.h`.
const INFO: libc::c_int = 64;
/// `IPT_SO_GET_ENTRIES` and `IP6T_SO_GET_ENTRIES`.
const ENTRIES: libc::c_int = 65;

/// `struct ipt_getinfo` of the table that `buffer` begins with the name of. `ipv6` says whose table.
///
/// # Errors
/// ENOENT where there is no such table, EPERM without `CAP_NET_ADMIN`.
pub fn info(socket: BorrowedFd<'_>, ipv6: bool, buffer: &mut [u8]) -> Result<usize> {
    get(socket, ipv6, INFO, buffer)
}

/// `struct ipt_get_entries` with its entries; `buffer` begins with the table's name and the size
/// that [`info`] tells.
///
/// # Errors
/// As [`info`]; EAGAIN when the table has changed meanwhile.
pub fn entries(socket: BorrowedFd<'_>, ipv6: bool, buffer: &mut [u8]) -> Result<usize> {
    get(socket, ipv6, ENTRIES, buffer)
}

fn get(socket: BorrowedFd<'_>, ipv6: bool, what: libc::c_int, buffer: &mut [u8]) -> Result<usize> {
    let level = if ipv6 {
        libc::IPPROTO_IPV6
    } else {
        libc::IPPROTO_IP
    };
    let mut length = libc::socklen_t::try_from(buffer.len()).unwrap_or(0);
    // SAFETY: the kernel reads and writes at most `length` bytes of the buffer, which is that long
    // and borrowed exclusively, and `length` itself (getsockopt(2)).
    let done = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            level,
            what,
            buffer.as_mut_ptr().cast(),
            &raw mut length,
        )
    };
    if done < 0 {
        return Err(Failure::last("getsockopt"));
    }
    Ok(length as usize)
}
