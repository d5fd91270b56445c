//! `monitor.sock` in a folder whose path may be longer than a socket's address can be.

use std::os::fd::{AsRawFd, OwnedFd};
use std::path::Path;

use knarr_sys::Failure;
use rustix::fs::{Mode, OFlags};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};

use crate::undo::SOCKET_FILE;
use crate::{Error, Result};

/// Makes the socket, in the place of one that a killed monitor left.
pub(crate) fn listen(run: &Path) -> Result<OwnedFd> {
    let path = run.join(SOCKET_FILE);
    knarr_fs::remove_file(&path)?;
    let (folder, address) = address(run)?;
    let socket = stream(SocketFlags::NONBLOCK)?;
    rustix::net::bind(&socket, &address).map_err(knarr_fs::Error::of("create", "bind", &path))?;
    drop(folder);
    rustix::net::listen(&socket, 128).map_err(knarr_fs::Error::of("listen on", "listen", &path))?;
    Ok(socket)
}

/// Connects to it.
pub(crate) fn connect(run: &Path) -> Result<OwnedFd> {
    let fail = |call| {
        let path = run.join(SOCKET_FILE);
        move |errno| Error::Connect {
            path,
            cause: Failure { call, errno },
        }
    };
    let folder = rustix::fs::open(run, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())
        .map_err(fail("open"))?;
    let address = within(&folder).map_err(fail("connect"))?;
    let socket = stream(SocketFlags::empty())?;
    rustix::net::connect(&socket, &address).map_err(fail("connect"))?;
    Ok(socket)
}

/// Whether the peer is root or the monitor's own user.
pub(crate) fn is_trusted(connection: &OwnedFd) -> bool {
    rustix::net::sockopt::socket_peercred(connection)
        .is_ok_and(|peer| peer.uid.is_root() || peer.uid == rustix::process::geteuid())
}

fn stream(flags: SocketFlags) -> Result<OwnedFd> {
    rustix::net::socket_with(
        AddressFamily::UNIX,
        SocketType::STREAM,
        SocketFlags::CLOEXEC | flags,
        None,
    )
    .map_err(Error::of("make a socket", "socket"))
}

fn address(run: &Path) -> Result<(OwnedFd, SocketAddrUnix)> {
    let folder = rustix::fs::open(run, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())
        .map_err(knarr_fs::Error::of("open", "open", run))?;
    let address = within(&folder).map_err(Error::of("make a socket", "bind"))?;
    Ok((folder, address))
}

/// The folder by its descriptor, so that the address is short.
fn within(folder: &OwnedFd) -> rustix::io::Result<SocketAddrUnix> {
    SocketAddrUnix::new(format!(
        "/proc/self/fd/{}/{SOCKET_FILE}",
        folder.as_raw_fd()
    ))
}
