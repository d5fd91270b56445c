//! The other side: spawning monitors, speaking to them, and telling how a container really is.

use std::ffi::CString;
use std::io::{BufRead, BufReader, ErrorKind, IoSlice, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use knarr_cgroup::Layout;
use knarr_diag::{Explain as _, Report};
use knarr_fs::Lock;
use knarr_runtime::ExecPlan;
use knarr_sys::Failure;
use knarr_sys::process::CStringArray;
use knarr_sys::spawn::Program;
use rustix::fs::{MemfdFlags, Mode, OFlags, SealFlags};
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags};

use crate::protocol::{Answer, Call, PROTOCOL_VERSION, Question, Reply};
use crate::request::{Request, Restart, Size, Streams};
use crate::state::{ProcessId, State, Status};
use crate::{Error, Result, socket, undo};

pub use crate::undo::{Swept, sweep, sweep_ending};

/// A container that runs, as who started it sees it. Dropping it lets go of everything; container
/// and monitor go on.
#[derive(Debug)]
pub struct Started {
    /// Its first process, on the host.
    pub pid: u32,
    /// The streams that [`Request::attach`] asked for, as after [`Call::Attach`].
    pub attached: Option<UnixStream>,
    report: BufReader<UnixStream>,
    id: String,
}

impl Started {
    /// Waits until the container ended (with `--rm`: until it is gone) and tells how. What it wrote
    /// is on the attached streams by then, up to their end.
    ///
    /// # Errors
    /// [`Error::Died`] when the monitor was killed; then [`observe`] and [`adopt`].
    pub fn wait(&mut self) -> Result<State> {
        match read_reply(&mut self.report) {
            Ok(Reply {
                ok: Some(Answer::Ended(state)),
                ..
            }) => Ok(*state),
            Ok(Reply {
                error: Some(report),
                ..
            }) => Err(Error::Refused {
                report: Box::new(report),
            }),
            _ => Err(Error::Died {
                id: self.id.clone(),
            }),
        }
    }
}

impl AsFd for Started {
    /// Becomes readable when the end can be told: for poll(2) beside the attached streams.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.report.get_ref().as_fd()
    }
}

/// Starts a monitor for the container, and with it the container. The `lock` (on `lock` in the run
/// folder, exclusive) passes to the monitor, whatever comes of it.
///
/// The monitor stays the caller's child until either ends; a caller that lives long must set
/// SIGCHLD to be ignored, or wait for its children.
///
/// # Errors
/// What the monitor reports: nothing is left of the start then (and with `--rm`, of the container).
pub fn spawn(
    monitor: &Path,
    request: &Request,
    lock: Lock,
) -> std::result::Result<Started, Report> {
    let sealed = sealed(&request.to_json().map_err(|error| error.report())?)
        .map_err(|error| error.report())?;
    let attach = request.attach.is_some();
    start(monitor, "run", request.id.as_str(), sealed, lock, attach)
}

/// Starts a monitor for a container that lives and has none: call it when the `lock` could be had
/// and [`observe`] says that it lives.
///
/// # Errors
/// What the monitor reports.
pub fn adopt(monitor: &Path, run: &Path, lock: Lock) -> std::result::Result<Started, Report> {
    let request = knarr_fs::open_read(&run.join(undo::REQUEST_FILE))?;
    let id = run.file_name().unwrap_or_default().to_string_lossy();
    start(monitor, "adopt", &id, request, lock, false)
}

/// Spawns `knarr-monitor <mode> <id>` with the descriptors it expects: 3 the report, 4 the lock,
/// 5 the request, 6 the attached streams.
fn start(
    monitor: &Path,
    mode: &str,
    id: &str,
    request: OwnedFd,
    lock: Lock,
    attach: bool,
) -> std::result::Result<Started, Report> {
    let pair = || {
        UnixStream::pair().map_err(|error| {
            let cause = Failure::from_io("socketpair", &error);
            Error::Call {
                verb: "speak to the monitor",
                cause,
            }
            .report()
        })
    };
    let (ours, theirs) = pair()?;
    let (attached, their_streams) = if attach {
        let (ours, theirs) = pair()?;
        (Some(ours), Some(theirs))
    } else {
        (None, None)
    };
    spawn_process(
        monitor,
        mode,
        id,
        &theirs,
        &lock,
        &request,
        their_streams.as_ref(),
    )
    .map_err(|error| error.report())?;
    // The monitor's are its own now.
    drop((theirs, their_streams, lock, request));
    let mut report = BufReader::new(ours);
    let died = |_| Error::Died {
        id: id.get(..12).unwrap_or(id).to_owned(),
    };
    let reply = read_reply(&mut report)
        .map_err(died)
        .map_err(|error| error.report())?;
    match (reply.ok, reply.error) {
        (Some(Answer::Running { pid }), _) => Ok(Started {
            pid,
            attached,
            report,
            id: id.to_owned(),
        }),
        (_, Some(report)) => Err(report),
        _ => Err(died(std::io::ErrorKind::InvalidData.into()).report()),
    }
}

fn spawn_process(
    monitor: &Path,
    mode: &str,
    id: &str,
    report: &UnixStream,
    lock: &Lock,
    request: &OwnedFd,
    streams: Option<&UnixStream>,
) -> Result<()> {
    let fail = |call| {
        move |errno| Error::Spawn {
            path: monitor.to_owned(),
            cause: Failure { call, errno },
        }
    };
    let file = knarr_runtime::seal::Executable::open(monitor)?;
    let null = rustix::fs::open("/dev/null", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())
        .map_err(fail("open"))?;
    // An argument or a variable with a NUL byte cannot exist.
    let text = |text: String| CString::new(text).unwrap_or_default();
    let args = ["knarr-monitor", mode, id]
        .map(|arg| text(arg.to_owned()))
        .to_vec();
    let env = std::env::var("KNARR_FAILPOINT")
        .map(|value| text(format!("KNARR_FAILPOINT={value}")))
        .into_iter()
        .collect();
    // A machine without a place for monitors keeps them where their caller is.
    let cgroup = Layout::detect()
        .and_then(|layout| layout.monitors_dir())
        .ok()
        .flatten();
    let mut fds = vec![
        null.as_fd(),
        null.as_fd(),
        null.as_fd(),
        report.as_fd(),
        lock.as_fd(),
        request.as_fd(),
    ];
    fds.extend(streams.map(AsFd::as_fd));
    let (args, env) = (CStringArray::new(args), CStringArray::new(env));
    let mut program = Program {
        file: file.as_fd(),
        args: &args,
        env: &env,
        fds: &fds,
        cgroup: cgroup.as_ref().map(AsFd::as_fd),
    };
    let spawned = knarr_sys::spawn::spawn(&program).or_else(|failure| {
        // Denied where the caller's own cgroup is delegated to it, or it is threaded.
        if failure.call == "clone3" && program.cgroup.is_some() {
            program.cgroup = None;
            knarr_sys::spawn::spawn(&program)
        } else {
            Err(failure)
        }
    });
    spawned.map(drop).map_err(|cause| Error::Spawn {
        path: monitor.to_owned(),
        cause,
    })
}

/// Bytes in a file that has no name and never changes.
fn sealed(bytes: &[u8]) -> Result<OwnedFd> {
    let fail = |call| Error::of("hand the request over", call);
    let file = rustix::fs::memfd_create(
        "knarr-request",
        MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING,
    )
    .map_err(fail("memfd_create"))?;
    let mut file = std::fs::File::from(file);
    file.write_all(bytes).map_err(|error| Error::Call {
        verb: "hand the request over",
        cause: Failure::from_io("write", &error),
    })?;
    rustix::fs::fcntl_add_seals(
        &file,
        SealFlags::WRITE | SealFlags::GROW | SealFlags::SHRINK | SealFlags::SEAL,
    )
    .map_err(fail("fcntl(F_ADD_SEALS)"))?;
    Ok(file.into())
}

fn read_reply(stream: &mut BufReader<UnixStream>) -> std::io::Result<Reply> {
    let mut line = Vec::new();
    stream.read_until(b'\n', &mut line)?;
    if line.is_empty() {
        return Err(std::io::ErrorKind::UnexpectedEof.into());
    }
    Ok(serde_json::from_slice(&line)?)
}

/// How a container really is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Observed {
    /// Its state, corrected by what the kernel knows: a process that is gone is not called running.
    pub state: State,
    /// Whether its first process lives.
    pub alive: bool,
}

/// Tells how the container with this run folder is, from `state.json` and `/proc`, in some 20 µs and
/// without any lock. `None` when it has no state there: then [`State::load`] on its data folder
/// tells how it ended, before a reboot perhaps.
///
/// # Errors
/// [`Error::State`], [`Error::File`].
pub fn observe(run: &Path) -> Result<Option<Observed>> {
    // A second look, for the moment between the end of a process and what its monitor writes.
    for last in [false, true] {
        let Some(state) = State::load(run)? else {
            return Ok(None);
        };
        let lives = |process: Option<ProcessId>| match process {
            Some(process) => is_alive(process),
            None => Ok(false),
        };
        let alive = match state.status {
            Status::Created | Status::Exited => {
                return Ok(Some(Observed {
                    state,
                    alive: false,
                }));
            }
            Status::Running | Status::Paused => lives(state.process)?,
            Status::Restarting => false,
        };
        if alive {
            return Ok(Some(Observed { state, alive }));
        }
        // A monitor that lives is about to say so, or waits before the restart.
        let monitored = lives(state.monitor)?;
        if monitored && (last || state.status == Status::Restarting) {
            return Ok(Some(Observed { state, alive }));
        }
        if last {
            return Ok(Some(Observed {
                state: undo::unseen_end(state),
                alive,
            }));
        }
    }
    Ok(None)
}

/// Tells how a container was, from the `state.json` in its data folder, where [`observe`] knows
/// nothing: the run root went with a reboot, and so did every container that ran.
///
/// # Errors
/// [`Error::File`].
pub fn remembered(data: &Path) -> Result<Option<State>> {
    match State::load(data) {
        Ok(Some(state)) if state.status.is_alive() => Ok(Some(undo::lost_end(state))),
        // It was being written when the power went.
        Err(Error::State { .. }) => Ok(None),
        state => state,
    }
}

/// Whether a process lives; its zombie does not. The boot is the run root's: another one wipes it.
fn is_alive(process: ProcessId) -> Result<bool> {
    let path = format!("/proc/{}/stat", process.pid);
    let mut buffer = [0u8; 1024];
    let stat = match crate::state::read_small(Path::new(&path), &mut buffer) {
        Ok(stat) => stat,
        Err(error) if error.is_not_found() || error.errno() == Some(rustix::io::Errno::SRCH) => {
            return Ok(false);
        }
        Err(error) => return Err(error.into()),
    };
    Ok(started(stat) == Some(process.start_time))
}

/// Field 22 of `/proc/PID/stat` (proc(5)), unless it is a zombie. The name may contain anything.
fn started(stat: &[u8]) -> Option<u64> {
    let end = stat.iter().rposition(|&byte| byte == b')')?;
    let mut fields = stat.get(end + 1..)?.split(|&byte| byte == b' ').skip(1);
    if matches!(fields.next()?, [b'Z' | b'X', ..]) {
        return None;
    }
    std::str::from_utf8(fields.nth(18)?).ok()?.parse().ok()
}

/// A handle on a process, if it lives.
pub(crate) fn open_process(process: ProcessId, boot_id: &str) -> Result<Option<OwnedFd>> {
    let identity = knarr_runtime::process::Identity {
        pid: i32::try_from(process.pid).unwrap_or(0),
        start_time: process.start_time,
        boot_id: boot_id.to_owned(),
    };
    Ok(identity.open()?)
}

/// A connection to a monitor; it carries one call.
#[derive(Debug)]
pub struct Connection {
    stream: BufReader<UnixStream>,
    path: PathBuf,
}

impl Connection {
    /// Connects to the monitor of the container with this run folder.
    ///
    /// # Errors
    /// [`Error::Connect`]: ENOENT or ECONNREFUSED when there is no monitor.
    pub fn open(run: &Path) -> Result<Self> {
        let stream = UnixStream::from(socket::connect(run)?);
        Ok(Self {
            stream: BufReader::new(stream),
            path: run.join(undo::SOCKET_FILE),
        })
    }

    /// Asks, and gives the first answer.
    ///
    /// # Errors
    /// [`Error::Refused`] with the monitor's report; [`Error::Connect`] when the monitor has ended or
    /// was killed meanwhile, so that [`observe`] knows better; [`Error::Answer`].
    pub fn call(&mut self, call: Call) -> Result<Answer> {
        self.ask(call, None)?;
        self.next_answer()
    }

    fn ask(&mut self, call: Call, descriptors: Option<&[OwnedFd; 3]>) -> Result<()> {
        let question = Question {
            version: PROTOCOL_VERSION,
            call,
        };
        let mut line = serde_json::to_vec(&question).map_err(Error::request)?;
        line.push(b'\n');
        let mut rest = line.as_slice();
        if let Some([stdin, stdout, stderr]) = descriptors {
            let fds = [stdin.as_fd(), stdout.as_fd(), stderr.as_fd()];
            let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(3))];
            let mut control = SendAncillaryBuffer::new(&mut space);
            control.push(SendAncillaryMessage::ScmRights(&fds));
            let socket = self.stream.get_ref();
            let sent = rustix::net::sendmsg(
                socket,
                &[IoSlice::new(rest)],
                &mut control,
                SendFlags::NOSIGNAL,
            );
            let sent = sent.map_err(|errno| self.broken(errno.into()))?;
            rest = rest.get(sent..).unwrap_or_default();
        }
        let sent = self.stream.get_mut().write_all(rest);
        sent.map_err(|cause| self.broken(cause))
    }

    /// The next answer, where there are several.
    ///
    /// # Errors
    /// As [`Connection::call`].
    pub fn next_answer(&mut self) -> Result<Answer> {
        let reply = read_reply(&mut self.stream).map_err(|cause| match cause.kind() {
            // It ended, or was killed, before it came to us.
            ErrorKind::UnexpectedEof | ErrorKind::ConnectionReset => Error::Connect {
                path: self.path.clone(),
                cause: Failure {
                    call: "recv",
                    errno: rustix::io::Errno::CONNRESET,
                },
            },
            _ => self.broken(cause),
        })?;
        match (reply.ok, reply.error) {
            (Some(answer), _) => Ok(answer),
            (None, Some(report)) => Err(Error::Refused {
                report: Box::new(report),
            }),
            (None, None) => Err(self.broken(std::io::ErrorKind::InvalidData.into())),
        }
    }

    /// Joins the container's streams. `raw` tells how they come (see [`crate::protocol`]).
    ///
    /// # Errors
    /// As [`Connection::call`].
    pub fn attach(mut self, streams: Streams) -> Result<Attached> {
        match self.call(Call::Attach(streams))? {
            Answer::Attached { raw } => Ok(Attached {
                raw,
                stream: self.stream.into_inner(),
            }),
            other => Err(self.unexpected(&other)),
        }
    }

    /// Changes the terminal's size.
    ///
    /// # Errors
    /// As [`Connection::call`]; class invalid without a terminal.
    pub fn resize(&mut self, size: Size) -> Result<()> {
        self.done(Call::Resize(size))
    }

    /// Waits for the container's next end.
    ///
    /// # Errors
    /// As [`Connection::call`].
    pub fn wait(&mut self) -> Result<State> {
        match self.call(Call::Wait)? {
            Answer::Ended(state) => Ok(*state),
            other => Err(self.unexpected(&other)),
        }
    }

    /// Sends a signal to the first process. SIGKILL and the container's stop signal count as the
    /// user's wish that it end: it is not restarted.
    ///
    /// # Errors
    /// As [`Connection::call`].
    pub fn signal(&mut self, signal: i32) -> Result<()> {
        self.done(Call::Signal { signal })
    }

    /// Ends the container and waits for it. `deaf` is called at once when the first process will not
    /// react to the signal, so that the user knows why it takes so long.
    ///
    /// # Errors
    /// As [`Connection::call`].
    pub fn stop(
        &mut self,
        signal: Option<i32>,
        timeout: Option<i64>,
        mut deaf: impl FnMut(i32),
    ) -> Result<State> {
        let mut answer = self.call(Call::Stop { signal, timeout })?;
        loop {
            match answer {
                Answer::Deaf { signal } => deaf(signal),
                Answer::Ended(state) => return Ok(*state),
                other => return Err(self.unexpected(&other)),
            }
            answer = self.next_answer()?;
        }
    }

    /// Freezes all processes.
    ///
    /// # Errors
    /// As [`Connection::call`].
    pub fn pause(&mut self) -> Result<()> {
        self.done(Call::Pause)
    }

    /// Lets them go on.
    ///
    /// # Errors
    /// As [`Connection::call`].
    pub fn unpause(&mut self) -> Result<()> {
        self.done(Call::Unpause)
    }

    /// Freezes all processes until this connection is dropped, by a killed caller too.
    ///
    /// # Errors
    /// As [`Connection::call`]; where it is paused already, a report with the code `already-paused`.
    pub fn hold(&mut self) -> Result<()> {
        self.done(Call::Hold)
    }

    /// Replaces the restart policy.
    ///
    /// # Errors
    /// As [`Connection::call`].
    pub fn update(&mut self, restart: Restart) -> Result<()> {
        self.done(Call::Update { restart })
    }

    /// Joins one more network.
    ///
    /// # Errors
    /// As [`Connection::call`].
    pub fn connect(&mut self, endpoint: knarr_net::Endpoint) -> Result<()> {
        self.done(Call::Connect(Box::new(endpoint)))
    }

    /// Leaves a network.
    ///
    /// # Errors
    /// As [`Connection::call`].
    pub fn disconnect(&mut self, network: &str) -> Result<()> {
        self.done(Call::Disconnect {
            network: network.to_owned(),
        })
    }

    /// Publishes more ports.
    ///
    /// # Errors
    /// As [`Connection::call`].
    pub fn publish(&mut self, ports: Vec<knarr_net::port::PortRequest>) -> Result<()> {
        self.done(Call::Publish { ports })
    }

    /// Ceases to publish a port of the container, or all of them.
    ///
    /// # Errors
    /// As [`Connection::call`].
    pub fn unpublish(&mut self, port: Option<(u16, knarr_net::port::Protocol)>) -> Result<()> {
        self.done(Call::Unpublish { port })
    }

    /// Asks the monitor how the container is.
    ///
    /// # Errors
    /// As [`Connection::call`].
    pub fn status(&mut self) -> Result<State> {
        match self.call(Call::Status)? {
            Answer::State(state) => Ok(*state),
            other => Err(self.unexpected(&other)),
        }
    }

    /// Runs one more process as a child of the monitor and gives its number on the host. `stdio`
    /// become its streams, else they are `/dev/null`.
    ///
    /// # Errors
    /// As [`Connection::call`].
    pub fn exec(&mut self, id: &str, plan: ExecPlan, stdio: Option<[OwnedFd; 3]>) -> Result<u32> {
        let call = Call::Exec {
            id: id.to_owned(),
            plan: Box::new(plan),
        };
        self.ask(call, stdio.as_ref())?;
        match self.next_answer()? {
            Answer::Exec { pid } => Ok(pid),
            other => Err(self.unexpected(&other)),
        }
    }

    fn done(&mut self, call: Call) -> Result<()> {
        match self.call(call)? {
            Answer::Done => Ok(()),
            other => Err(self.unexpected(&other)),
        }
    }

    fn unexpected(&self, answer: &Answer) -> Error {
        self.broken(std::io::Error::other(format!("unexpected {answer:?}")))
    }

    fn broken(&self, cause: std::io::Error) -> Error {
        Error::Answer {
            path: self.path.clone(),
            cause,
        }
    }
}

/// The container's streams.
#[derive(Debug)]
pub struct Attached {
    /// Whether they come as they are, or in Docker's frames.
    pub raw: bool,
    /// The connection.
    pub stream: UnixStream,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn start_times_are_found_behind_any_name() {
        let mut stat = b"7 (a) R 1 (b)) S".to_vec();
        for number in 4..=21 {
            stat.extend(format!(" {number}").bytes());
        }
        stat.extend(b" 12345 0 0\n");
        assert_eq!(started(&stat), Some(12345));
        let state = stat.iter().rposition(|&byte| byte == b'S').unwrap();
        stat[state] = b'Z';
        assert_eq!(started(&stat), None);
        assert_eq!(started(b""), None);
    }

    #[test]
    fn only_this_process_is_this_process() {
        let pid = std::process::id();
        let start_time = knarr_runtime::process::start_time(pid.cast_signed())
            .unwrap()
            .unwrap();
        assert!(is_alive(ProcessId { pid, start_time }).unwrap());
        assert!(
            !is_alive(ProcessId {
                pid,
                start_time: start_time + 1
            })
            .unwrap()
        );
        assert!(
            !is_alive(ProcessId {
                pid: u32::MAX >> 1,
                start_time
            })
            .unwrap()
        );
    }
}
