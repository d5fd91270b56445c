//! A terminal of the container's own devpts. Runs in the child: nothing here allocates.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use knarr_sys::Failure;
use rustix::fs::{FileType, OFlags, ResolveFlags};
use rustix::io::Errno;
use rustix::mount::OpenTreeFlags;
use rustix::process::{Gid, Uid};
use rustix::pty::OpenptFlags;
use rustix::termios::Winsize;

use crate::ConsoleSize;
use crate::child::{Kind, move_in, open as open_inside, open_or_make};
use crate::prepare::Place;

/// `DEVPTS_SUPER_MAGIC` (linux/magic.h).
const DEVPTS: u32 = 0x1cd1;

/// Both ends.
#[derive(Debug)]
pub(crate) struct Pair {
    pub(crate) master: OwnedFd,
    pub(crate) slave: OwnedFd,
}

/// Opens a pair in the container at `root`, its user's, and binds the slave over `place`
/// (`/dev/console`) where one is given.
///
/// The image decides what is found under `/dev/pts/ptmx`, so it is believed only if it is the
/// multiplexer of a devpts; the slave comes from the kernel by TIOCGPTPEER, not from a path.
pub(crate) fn open_pair(
    root: BorrowedFd<'_>,
    size: ConsoleSize,
    owner: (Uid, Gid),
) -> Result<Pair, Failure> {
    let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::NONBLOCK;
    // Looked at before it is opened: opening some devices has effects.
    let found = open_inside(
        root,
        c"/dev/pts/ptmx",
        OFlags::PATH,
        ResolveFlags::NO_SYMLINKS,
    )?;
    verify(found.as_fd(), 5, 2)?;
    let master = open_inside(root, c"/dev/pts/ptmx", flags, ResolveFlags::NO_SYMLINKS)?;
    verify(master.as_fd(), 5, 2)?;
    rustix::io::ioctl_fionbio(&master, false).map_err(Failure::of("ioctl(FIONBIO)"))?;
    rustix::pty::unlockpt(&master).map_err(Failure::of("ioctl(TIOCSPTLCK)"))?;
    let peer = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
    let slave =
        rustix::pty::ioctl_tiocgptpeer(&master, peer).map_err(Failure::of("ioctl(TIOCGPTPEER)"))?;
    rustix::fs::fchown(&slave, Some(owner.0), None).map_err(Failure::of("fchown"))?;
    if size != ConsoleSize::default() {
        let size = Winsize {
            ws_row: size.rows,
            ws_col: size.columns,
            ws_xpixel: 0,
            ws_ypixel: 0,
        };
        rustix::termios::tcsetwinsize(&slave, size).map_err(Failure::of("ioctl(TIOCSWINSZ)"))?;
    }
    Ok(Pair { master, slave })
}

/// [`open_pair`], and the slave as `/dev/console`.
pub(crate) fn open(
    root: BorrowedFd<'_>,
    size: ConsoleSize,
    owner: (Uid, Gid),
    place: Option<&Place>,
) -> Result<Pair, Failure> {
    let pair = open_pair(root, size, owner)?;
    if let Some(place) = place {
        let target = open_or_make(root, place, Kind::File, ResolveFlags::NO_SYMLINKS)?;
        let flags = OpenTreeFlags::OPEN_TREE_CLONE
            | OpenTreeFlags::OPEN_TREE_CLOEXEC
            | OpenTreeFlags::AT_EMPTY_PATH;
        let tree =
            rustix::mount::open_tree(&pair.slave, c"", flags).map_err(Failure::of("open_tree"))?;
        move_in(tree.as_fd(), target.as_fd())?;
    }
    Ok(pair)
}

/// That it is this character device, on a devpts.
fn verify(fd: BorrowedFd<'_>, major: u32, minor: u32) -> Result<(), Failure> {
    let stat = rustix::fs::fstat(fd).map_err(Failure::of("fstat"))?;
    let magic = rustix::fs::fstatfs(fd)
        .map_err(Failure::of("fstatfs"))?
        .f_type;
    let right = FileType::from_raw_mode(stat.st_mode) == FileType::CharacterDevice
        && stat.st_rdev == rustix::fs::makedev(major, minor)
        && u32::try_from(magic).is_ok_and(|magic| magic == DEVPTS);
    if right {
        Ok(())
    } else {
        Err(Failure {
            call: "fstatfs",
            errno: Errno::NOTTY,
        })
    }
}
