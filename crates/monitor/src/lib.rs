//! One small process per container: it makes the container, carries its streams, sees its end.
//!
//! Owns the run folder of a container that lives, `state.json` in particular, the log files, and
//! the protocol on `monitor.sock`. Single-threaded, one epoll, no async, no network, a few hundred
//! KiB of private memory. It decides nothing that the [`Request`] has not decided; it never opens
//! an image, a registry or another container.
//!
//! ```text
//! engine ── client::spawn ──▶ knarr-monitor run <id>     fds 3 report  4 lock  5 request  6 streams
//!                                │  undo, mounts, cgroup, FIFOs, clone, program
//!        ◀── Running or Report ──┤
//!                                │  logs, clients, restarts         ◀──▶ monitor.sock (protocol)
//!        ◀── Ended ──────────────┘
//!
//! <run root>/containers/<id>/    lock          held (flock) as long as the monitor lives
//!                                undo          what must be undone, from before it is done
//!                                request.json  for restarts, and for a monitor that takes over
//!                                state.json    how it is; replaced by rename
//!                                monitor.sock  stdin stdout stderr (FIFOs)  execs/<id>.json
//! <run root>/ending/<id>/        the run folder of a `--rm` container that is gone, while its
//!                                cgroups are being removed
//! <run root>/events              one JSON line per event, of all containers
//! ```
//!
//! Invariants:
//! - Whoever holds the lock is the only one to write there. A lock that can be had means that no
//!   monitor lives: then [`client::observe`] tells whether the container does ([`client::adopt`])
//!   or not ([`client::sweep`]).
//! - `state.json` names the first process before its program runs, so there is no running program
//!   that a later call cannot find.
//! - Killing a monitor at any instant loses no output that fits a FIFO, and no exit code on Linux
//!   6.15 or later if another one takes over before the container ends.
//! - A container is gone (`--rm`) before anybody hears of its exit code.

pub mod client;
mod clock;
mod error;
pub mod events;
mod log;
pub mod protocol;
pub mod request;
mod restart;
mod session;
mod socket;
mod start;
pub mod state;
mod stdio;
mod undo;
mod watch;

use std::io::Read as _;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use knarr_fs::Lock;
use rustix::process::{Resource, Rlimit};

pub use error::{Error, Result};
pub use request::Request;
pub use state::State;
pub use watch::ExecState;

/// The files of a `json-file` log, oldest first; those that are missing are left out.
pub fn log_files(path: &Path) -> Vec<PathBuf> {
    log::files(path)
}

/// The whole of `knarr-monitor`: `run <id>` and `adopt <id>`, spawned by [`client`] with the
/// descriptors that it expects. Exits with 0 once the container is over, with 2 when it was called
/// by somebody else.
pub fn main() -> ExitCode {
    knarr_runtime::seal::undumpable().ok();
    knarr_sys::heap::keep_small();
    let mode = std::env::args().nth(1).unwrap_or_default();
    let mut fds = knarr_sys::spawn::inherited(3, 4).into_iter();
    let (Some(report), Some(lock), Some(request)) = (fds.next(), fds.next(), fds.next()) else {
        return ExitCode::from(2);
    };
    let attach = fds.next();
    leave_the_caller();
    let inherited = watch::Inherited {
        report: UnixStream::from(report),
        lock: Lock::inherited(lock),
        attach,
    };
    let request = match read(request).and_then(|bytes| Request::parse(&bytes)) {
        Ok(request) => request,
        Err(error) => {
            watch::refuse(&inherited.report, &error);
            return ExitCode::FAILURE;
        }
    };
    match mode.as_str() {
        "run" => watch::run(request, inherited),
        "adopt" => watch::adopt(request, inherited),
        _ => return ExitCode::from(2),
    }
    ExitCode::SUCCESS
}

fn read(request: OwnedFd) -> Result<Vec<u8>> {
    let mut file = std::fs::File::from(request);
    // Both ends share the file's position.
    let rewound = std::io::Seek::rewind(&mut file);
    let mut bytes = Vec::new();
    rewound
        .and_then(|()| file.read_to_end(&mut bytes))
        .map_err(|error| Error::Call {
            verb: "read the request",
            cause: knarr_sys::Failure::from_io("read", &error),
        })?;
    Ok(bytes)
}

/// Parses a format that carries its version. Another version may look quite different, so it is told
/// as such and not as damage.
fn parse_versioned<T: serde::de::DeserializeOwned>(
    bytes: &[u8],
    what: &'static str,
    version: u32,
    damaged: impl FnOnce(serde_json::Error) -> Error,
) -> Result<T> {
    #[derive(serde::Deserialize)]
    struct Head {
        version: u32,
    }
    let head: std::result::Result<Head, _> = serde_json::from_slice(bytes);
    match head {
        Ok(head) if head.version != version => Err(Error::Version {
            what,
            found: head.version,
            known: version,
        }),
        _ => serde_json::from_slice(bytes).map_err(damaged),
    }
}

/// How many open files a container may have where nobody says otherwise.
const DESCRIPTORS: u64 = 1024;

/// Lets this process have `more` open files beside what it needs anyway. The containers that it
/// starts have [`DESCRIPTORS`] all the same.
pub(crate) fn make_room(more: u64) -> Result<()> {
    let needed = DESCRIPTORS / 4 + more;
    let limit = rustix::process::getrlimit(Resource::Nofile);
    if limit.current.is_none_or(|current| current >= needed) {
        return Ok(());
    }
    let raised = Rlimit {
        current: Some(needed),
        ..limit
    };
    rustix::process::setrlimit(Resource::Nofile, raised).map_err(|_| {
        Error::from(knarr_net::Error::Invalid {
            message: format!(
                "publishing so many ports takes {needed} open files, and the limit is {}",
                limit.maximum.unwrap_or_default()
            ),
            hint: Some(
                "publish fewer, or start Knarr with a higher hard limit (`ulimit -Hn`)".to_owned(),
            ),
        })
    })
}

/// Lets go of what would tie the container to who happened to start it. Session, cgroup, signals
/// and environment are new already.
fn leave_the_caller() {
    rustix::process::umask(rustix::fs::Mode::RWXG | rustix::fs::Mode::RWXO);
    // The caller's folder may be on a disk that is to be unmounted.
    rustix::process::chdir("/").ok();
    for (resource, soft, hard) in [
        // What systemd gives to services; more makes programs that close all of them slow.
        (Resource::Nofile, Some(DESCRIPTORS), Some(524_288)),
        (Resource::Core, None, None),
        (Resource::Fsize, None, None),
        (Resource::Data, None, None),
        (Resource::As, None, None),
        (Resource::Cpu, None, None),
        (Resource::Nproc, None, None),
        (Resource::Stack, Some(8 << 20), None),
    ] {
        let limit = Rlimit {
            current: soft,
            maximum: hard,
        };
        if rustix::process::getrlimit(resource) == limit
            || rustix::process::setrlimit(resource, limit).is_ok()
        {
            continue;
        }
        // Hard limits rise with CAP_SYS_RESOURCE only: then as far as it goes.
        let maximum = rustix::process::getrlimit(resource).maximum;
        let current = match (soft, maximum) {
            (Some(soft), Some(maximum)) => Some(soft.min(maximum)),
            (soft, maximum) => soft.or(maximum),
        };
        rustix::process::setrlimit(resource, Rlimit { current, maximum }).ok();
    }
}
