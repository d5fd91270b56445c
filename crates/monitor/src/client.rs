//! The other side: spawning monitors, speaking to them, and telling how a container really is.

use std::io::{BufRead, BufReader, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use knarr_diag::Report;
use knarr_fs::Lock;

use crate::protocol::{Answer, Call, PROTOCOL_VERSION, Question, Reply};
use crate::request::{Request, Restart, Size, Streams};
use crate::state::State;
use crate::{Error, Result};

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
        todo!()
    }

    /// Becomes readable when the end can be told: for poll(2) beside the attached streams.
    pub fn as_fd(&self) -> BorrowedFd<'_> {
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
    let _ = (monitor, request, lock);
    todo!()
}

/// Starts a monitor for a container that lives and has none: call it when the `lock` could be had
/// and [`observe`] says that it lives.
///
/// # Errors
/// What the monitor reports.
pub fn adopt(monitor: &Path, run: &Path, lock: Lock) -> std::result::Result<Started, Report> {
    let _ = (monitor, run, lock);
    todo!()
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
    let _ = run;
    todo!()
}

/// Undoes what a monitor that is gone has left of a container that does not live: processes,
/// cgroups, half-made stdio; with `--rm` the container itself. Whoever calls it holds the lock.
/// Cheap when there is nothing to do. Afterwards `state.json` tells the truth.
///
/// # Errors
/// The first thing that could not be undone, after trying all of it; another call tries again.
pub fn sweep(run: &Path, lock: &Lock) -> Result<Swept> {
    let _ = (run, lock);
    todo!()
}

/// What [`sweep`] found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Swept {
    /// Nothing to undo.
    Clean,
    /// Something was undone; the container is there, and ended.
    Undone,
    /// It was a `--rm` container and is gone.
    Removed,
    /// It lives: adopt it instead.
    Alive,
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
        let _ = run;
        todo!()
    }

    /// Asks, and gives the first answer.
    ///
    /// # Errors
    /// [`Error::Refused`] with the monitor's report, [`Error::Answer`].
    pub fn call(&mut self, call: Call) -> Result<Answer> {
        let question = Question {
            version: PROTOCOL_VERSION,
            call,
        };
        let mut line = serde_json::to_vec(&question).map_err(Error::request)?;
        line.push(b'\n');
        let sent = self.stream.get_mut().write_all(&line);
        sent.map_err(|cause| self.broken(cause))?;
        self.next()
    }

    /// The next answer, where there are several.
    ///
    /// # Errors
    /// As [`Connection::call`].
    pub fn next(&mut self) -> Result<Answer> {
        let mut line = Vec::new();
        let read = self.stream.read_until(b'\n', &mut line);
        read.map_err(|cause| self.broken(cause))?;
        let reply: Reply =
            serde_json::from_slice(&line).map_err(|cause| self.broken(cause.into()))?;
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
            answer = self.next()?;
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

    /// Replaces the restart policy.
    ///
    /// # Errors
    /// As [`Connection::call`].
    pub fn update(&mut self, restart: Restart) -> Result<()> {
        self.done(Call::Update { restart })
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
    pub fn exec(
        &mut self,
        id: &str,
        plan: crate::pending::ExecPlan,
        stdio: Option<[OwnedFd; 3]>,
    ) -> Result<u32> {
        let _ = (id, plan, stdio);
        todo!()
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
