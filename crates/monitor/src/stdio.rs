//! The container's standard streams: FIFOs in the run folder, so that they outlive the monitor.
//!
//! The container's end of `stdout` and `stderr` is open for reading *and* writing: while a process
//! of the container has it open the FIFO has a reader, so nobody gets SIGPIPE when the monitor
//! dies, and what is written meanwhile waits in the FIFO for the monitor that takes over.
//! `stdin` has one writer, the monitor: closing it is the end of file. So a container with an open
//! stdin sees that end when its monitor is killed; nothing else could hold it open for it alone.

use std::os::fd::OwnedFd;
use std::path::Path;

use rustix::fs::{FileType, Mode, OFlags};
use rustix::io::Errno;

use crate::Result;
use crate::request::Stdin;

pub(crate) const STDIN: &str = "stdin";
pub(crate) const STDOUT: &str = "stdout";
pub(crate) const STDERR: &str = "stderr";

/// The monitor's ends, non-blocking.
#[derive(Debug, Default)]
pub(crate) struct Ends {
    pub(crate) stdin: Option<OwnedFd>,
    pub(crate) stdout: Option<OwnedFd>,
    pub(crate) stderr: Option<OwnedFd>,
}

/// The container's ends.
#[derive(Debug)]
pub(crate) struct Files {
    pub(crate) stdin: OwnedFd,
    pub(crate) stdout: OwnedFd,
    pub(crate) stderr: OwnedFd,
}

/// Makes the FIFOs where they are missing and opens both ends.
pub(crate) fn create(run: &Path, stdin: Stdin) -> Result<(Ends, Files)> {
    let (stdout, container_stdout) = output(&run.join(STDOUT))?;
    let (stderr, container_stderr) = output(&run.join(STDERR))?;
    let (stdin, container_stdin) = match stdin {
        Stdin::Null => {
            let null = open(Path::new("/dev/null"), OFlags::RDONLY)?;
            (None, null)
        }
        Stdin::Open | Stdin::Once => {
            let path = run.join(STDIN);
            fifo(&path)?;
            // The reader first: a writer that does not block needs one.
            let reader = open(&path, OFlags::RDONLY | OFlags::NONBLOCK)?;
            let writer = open(&path, OFlags::WRONLY | OFlags::NONBLOCK)?;
            rustix::fs::fcntl_setfl(&reader, OFlags::empty())
                .map_err(knarr_fs::Error::of("open", "fcntl", &path))?;
            (Some(writer), reader)
        }
    };
    Ok((
        Ends {
            stdin,
            stdout: Some(stdout),
            stderr: Some(stderr),
        },
        Files {
            stdin: container_stdin,
            stdout: container_stdout,
            stderr: container_stderr,
        },
    ))
}

/// Opens the monitor's ends of FIFOs whose container lives. Those that the container has closed
/// read as ended at once.
pub(crate) fn reopen(run: &Path, stdin: Stdin) -> Result<Ends> {
    let stdin = match stdin {
        Stdin::Null => None,
        Stdin::Open | Stdin::Once => {
            match open(&run.join(STDIN), OFlags::WRONLY | OFlags::NONBLOCK) {
                Ok(writer) => Some(writer),
                // The container has closed it.
                Err(error) if error.errno() == Some(Errno::NXIO) => None,
                Err(error) => return Err(error.into()),
            }
        }
    };
    let reader = |name: &str| open(&run.join(name), OFlags::RDONLY | OFlags::NONBLOCK);
    Ok(Ends {
        stdin,
        stdout: Some(reader(STDOUT)?),
        stderr: Some(reader(STDERR)?),
    })
}

/// Removes the FIFOs.
pub(crate) fn remove(run: &Path) -> Result<()> {
    for name in [STDIN, STDOUT, STDERR] {
        knarr_fs::remove_file(&run.join(name))?;
    }
    Ok(())
}

fn output(path: &Path) -> Result<(OwnedFd, OwnedFd)> {
    fifo(path)?;
    let reader = open(path, OFlags::RDONLY | OFlags::NONBLOCK)?;
    let container = open(path, OFlags::RDWR)?;
    Ok((reader, container))
}

/// The container reopens its streams by `/dev/stdout`, perhaps as another user than it began, perhaps
/// in a user namespace: so everybody may. Nobody else gets here: the folder is root's only, and
/// `/proc/PID/fd` shows a process's own alone.
fn fifo(path: &Path) -> knarr_fs::Result<()> {
    let all = Mode::from_raw_mode(0o666);
    match rustix::fs::mknodat(rustix::fs::CWD, path, FileType::Fifo, all, 0) {
        Ok(()) | Err(Errno::EXIST) => {}
        Err(errno) => return Err(knarr_fs::Error::of("create", "mknod", path)(errno)),
    }
    // The umask took some of it.
    rustix::fs::chmod(path, all).map_err(knarr_fs::Error::of("create", "chmod", path))
}

fn open(path: &Path, flags: OFlags) -> knarr_fs::Result<OwnedFd> {
    rustix::fs::open(
        path,
        flags | OFlags::CLOEXEC | OFlags::NOFOLLOW,
        Mode::empty(),
    )
    .map_err(knarr_fs::Error::of("open", "open", path))
}
