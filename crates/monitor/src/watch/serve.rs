//! Answering clients.

use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use knarr_diag::{Class, Explain, Report};
use knarr_fs::Durability;
use knarr_runtime::{ExecPlan, Stdio, Target};
use rustix::event::epoll::{self, EventData, EventFlags};
use rustix::io::Errno;
use rustix::net::SocketFlags;
use rustix::process::Signal;
use serde::{Deserialize, Serialize};

use super::{Exec, MOST_CLIENTS, Phase, Watch};
use crate::protocol::{Answer, Call, PROTOCOL_VERSION};
use crate::request::{Request, Restart};
use crate::session::{Client, Role};
use crate::state::Status;
use crate::{Error, clock, socket, undo};

/// `execs/<id>.json`: how a process that a client asked for ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExecState {
    /// 1.
    pub version: u32,
    /// On the host.
    pub pid: u32,
    /// `None` while it runs; 128 + n for a signal.
    pub exit_code: Option<i32>,
    /// When it began.
    pub started_at: Option<String>,
    /// When it ended.
    pub finished_at: Option<String>,
}

impl Watch {
    /// Takes new clients in.
    pub(super) fn accept(&mut self) {
        let Some(listener) = &self.listener else {
            return;
        };
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let Ok(connection) = rustix::net::accept_with(listener, flags) else {
            return;
        };
        if !socket::is_trusted(&connection) {
            return;
        }
        if self.clients.len() >= MOST_CLIENTS {
            // Who says nothing makes room for who might.
            let silent = self.clients.iter().find_map(|(token, client)| {
                matches!(client.role, Role::Asking { .. }).then_some(*token)
            });
            match silent {
                Some(token) => drop(self.clients.remove(&token)),
                None => return,
            }
        }
        let token = self.next_token;
        self.next_token += 1;
        self.clients.insert(token, Client::asking(connection));
        // Most have asked already.
        self.client_ready(token, EventFlags::IN);
    }

    /// A client can be read or written, or is gone.
    pub(super) fn client_ready(&mut self, token: u64, flags: EventFlags) {
        let Some(client) = self.clients.get_mut(&token) else {
            return;
        };
        if flags.contains(EventFlags::OUT) && !client.flush() {
            client.hang_up();
        }
        match client.role {
            Role::Asking { .. } => match client.ask() {
                Ok(Some((question, descriptors))) => {
                    if question.version == PROTOCOL_VERSION {
                        self.serve(token, question.call, descriptors);
                    } else {
                        client.refuse(unknown_version(question.version));
                    }
                }
                Ok(None) => {}
                Err(Error::Request { cause }) => client.refuse(not_understood(&cause)),
                Err(_) => {
                    self.clients.remove(&token);
                    return;
                }
            },
            Role::Attached(_) => self.read_input(token),
            Role::Waiting | Role::Holding | Role::Leaving => {
                if flags.contains(EventFlags::RDHUP) {
                    client.hang_up();
                }
            }
        }
        if flags.intersects(EventFlags::HUP | EventFlags::ERR)
            && let Some(client) = self.clients.get_mut(&token)
        {
            client.hang_up();
        }
    }

    fn serve(&mut self, token: u64, call: Call, mut descriptors: Vec<OwnedFd>) {
        if let (Phase::Lingering(_), Call::Wait | Call::Stop { .. }) = (self.phase, &call) {
            // It came a moment too late to be told with the others.
            let state = Box::new(self.state.clone());
            if let Some(client) = self.clients.get_mut(&token) {
                client.answer_last(Answer::Ended(state));
            }
            return;
        }
        let answer = match call {
            Call::Attach(streams) => {
                if self.has_terminal && self.streams.terminal().is_none() {
                    Err(self.no_terminal())
                } else {
                    let raw = self.has_terminal;
                    if let Some(client) = self.clients.get_mut(&token) {
                        client.answer(Answer::Attached { raw });
                        client.role = Role::Attached(streams);
                    }
                    return;
                }
            }
            Call::Wait => {
                if let Some(client) = self.clients.get_mut(&token) {
                    client.role = Role::Waiting;
                }
                return;
            }
            Call::Stop { signal, timeout } => {
                if let Some(client) = self.clients.get_mut(&token) {
                    client.role = Role::Waiting;
                }
                match self.stop(signal, timeout) {
                    Ok(deaf) => {
                        if let (Some(signal), Some(client)) = (deaf, self.clients.get_mut(&token)) {
                            client.answer(Answer::Deaf { signal });
                        }
                        return;
                    }
                    Err(report) => Err(report),
                }
            }
            Call::Resize(size) => match self.resize(size) {
                Ok(true) => Ok(Answer::Done),
                Ok(false) => Err(self.no_terminal()),
                Err(errno) => Err(
                    Error::of("change the terminal's size", "ioctl(TIOCSWINSZ)")(errno).report(),
                ),
            },
            Call::Signal { signal } => self.signal(signal).map(|()| Answer::Done),
            Call::Pause => self.pause().map(|()| Answer::Done),
            Call::Unpause => self.unpause().map(|()| Answer::Done),
            Call::Hold => match self.pause() {
                Ok(()) => {
                    if let Some(client) = self.clients.get_mut(&token) {
                        client.answer(Answer::Done);
                        client.role = Role::Holding;
                    }
                    return;
                }
                Err(report) => Err(report),
            },
            Call::Status => Ok(Answer::State(Box::new(self.state.clone()))),
            Call::Connect(endpoint) => self.join_network(&endpoint).map(|()| Answer::Done),
            Call::Disconnect { network } => self.part_network(&network).map(|()| Answer::Done),
            Call::Publish { ports } => self.publish(&ports).map(|()| Answer::Done),
            Call::Unpublish { port } => self.unpublish(port).map(|()| Answer::Done),
            Call::Update { restart } => self.update(restart).map(|()| Answer::Done),
            Call::Exec { id, plan } => {
                let given = <[OwnedFd; 3]>::try_from(std::mem::take(&mut descriptors)).ok();
                self.exec(&id, &plan, given).map(|pid| Answer::Exec { pid })
            }
        };
        if let Some(client) = self.clients.get_mut(&token) {
            match answer {
                Ok(answer) => client.answer_last(answer),
                Err(report) => client.refuse(report),
            }
        }
    }

    /// Asks the container to end. Gives the signal when it is in vain.
    fn stop(&mut self, signal: Option<i32>, timeout: Option<i64>) -> Result<Option<i32>, Report> {
        self.state.stopped_by_user = true;
        let signal = signal.unwrap_or(self.stop.signal);
        if let Phase::Resting(_) = self.phase {
            self.stay_ended();
            return Ok(None);
        }
        if self.init.is_none() {
            return Err(self.not_running());
        }
        // Kept now, or a reboot meanwhile would start it again.
        self.state
            .save(&self.run, Durability::Volatile)
            .map_err(|error| error.report())?;
        let deaf = signal != Signal::KILL.as_raw() && self.is_deaf(signal);
        self.event("kill", &[("signal", signal.to_string())]);
        self.send_signal(signal)?;
        knarr_fs::failpoint!("monitor.stopping");
        self.thaw()?;
        if let Ok(seconds) = u64::try_from(timeout.unwrap_or(self.stop.timeout)) {
            let at = Instant::now() + Duration::from_secs(seconds.min(1 << 30));
            self.kill_at = Some(self.kill_at.map_or(at, |other| other.min(at)));
        }
        Ok(deaf.then_some(signal))
    }

    fn signal(&mut self, signal: i32) -> Result<(), Report> {
        if self.init.is_none() && matches!(self.phase, Phase::Resting(_)) {
            if signal == Signal::KILL.as_raw() {
                self.state.stopped_by_user = true;
                self.stay_ended();
                return Ok(());
            }
            return Err(self.not_running());
        }
        if signal == Signal::KILL.as_raw() || signal == self.stop.signal {
            self.state.stopped_by_user = true;
        }
        self.event("kill", &[("signal", signal.to_string())]);
        self.send_signal(signal)?;
        if signal == Signal::KILL.as_raw() {
            // On v1 a frozen process does not even die.
            self.thaw()?;
        }
        Ok(())
    }

    /// Another restart policy, for a monitor that takes over, too.
    fn update(&mut self, restart: Restart) -> Result<(), Report> {
        let keep = || -> crate::Result<()> {
            let request = Request {
                restart,
                ..Request::load(&self.run)?
            };
            let path = self.run.join(undo::REQUEST_FILE);
            Ok(knarr_fs::write_atomic(
                &path,
                &request.to_json()?,
                Durability::Volatile,
            )?)
        };
        keep().map_err(|error| error.report())?;
        self.restart = restart;
        Ok(())
    }

    /// To the first process.
    pub(super) fn send_signal(&self, signal: i32) -> Result<(), Report> {
        let Some(init) = &self.init else {
            return Err(self.not_running());
        };
        match knarr_runtime::process::signal(&init.pidfd, signal) {
            // One that has just ended is fine: its end is on the way.
            Ok(_) => Ok(()),
            Err(cause) => {
                let error = Error::Call {
                    verb: "send the signal",
                    cause,
                };
                let mut report = error.report();
                if cause.errno == Errno::INVAL {
                    report.class = Class::Invalid;
                }
                Err(report.wrap(format!(
                    "cannot send signal {signal} to container {}",
                    self.id.short()
                )))
            }
        }
    }

    /// Whether the kernel will drop the signal: the init of a pid namespace gets none that it has
    /// no handler for (pid_namespaces(7)).
    fn is_deaf(&self, signal: i32) -> bool {
        let Some(init) = &self.init else { return false };
        let path = format!("/proc/{}/status", init.id.pid);
        knarr_fs::read(std::path::Path::new(&path))
            .is_ok_and(|status| is_deaf(&String::from_utf8_lossy(&status), signal))
    }

    fn pause(&mut self) -> Result<(), Report> {
        let Some(cgroup) = &self.cgroup else {
            return Err(self.not_running());
        };
        match self.state.status {
            Status::Running if self.init.is_some() => {}
            Status::Paused => {
                return Err(self.wrong_state("is already paused", "already-paused"));
            }
            _ => return Err(self.not_running()),
        }
        cgroup.freeze()?;
        knarr_fs::failpoint!("monitor.paused");
        self.state.status = Status::Paused;
        self.state
            .save(&self.run, Durability::Volatile)
            .map_err(|error| error.report())?;
        self.event("pause", &[]);
        Ok(())
    }

    fn unpause(&mut self) -> Result<(), Report> {
        if self.state.status != Status::Paused {
            return Err(self.wrong_state("is not paused", "not-paused"));
        }
        self.thaw()
    }

    /// Lets a paused container go on; any other one is fine.
    pub(super) fn thaw(&mut self) -> Result<(), Report> {
        if self.state.status != Status::Paused {
            return Ok(());
        }
        if let Some(cgroup) = &self.cgroup {
            cgroup.thaw()?;
        }
        self.state.status = Status::Running;
        self.state
            .save(&self.run, Durability::Volatile)
            .map_err(|error| error.report())?;
        self.event("unpause", &[]);
        Ok(())
    }

    /// One more process, as the monitor's child.
    fn exec(
        &mut self,
        id: &str,
        plan: &ExecPlan,
        descriptors: Option<[OwnedFd; 3]>,
    ) -> Result<u32, Report> {
        let named = (1..=64).contains(&id.len())
            && id
                .bytes()
                .all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit());
        if !named {
            return Err(self.wrong_state("cannot name a process like that", "bad-exec-id"));
        }
        let Some(init) = &self.init else {
            return Err(self.not_running());
        };
        if self.state.status == Status::Paused {
            return Err(self.wrong_state("is paused", "paused"));
        }
        let [stdin, stdout, stderr] = match descriptors {
            Some(descriptors) => descriptors,
            None => null().map_err(|error| error.report())?,
        };
        let cgroup = self.cgroup.as_ref().and_then(|cgroup| cgroup.dir_fd());
        let number = i32::try_from(init.id.pid).ok();
        let Some(pid) = number.and_then(rustix::process::Pid::from_raw) else {
            return Err(self.not_running());
        };
        let process = knarr_runtime::exec(
            &Target {
                pid,
                pidfd: init.pidfd.as_fd(),
                cgroup,
            },
            plan,
            Stdio::Files([stdin, stdout, stderr]),
        )?;
        let pid = process.pid.as_raw_nonzero().get().unsigned_abs();
        let state = ExecState {
            version: 1,
            pid,
            exit_code: None,
            started_at: Some(clock::now()),
            finished_at: None,
        };
        self.save_exec(id, &state).map_err(|error| error.report())?;
        self.event("exec_start", &[("execID", id.to_owned())]);
        let token = self.next_token;
        self.next_token += 1;
        epoll::add(
            &self.epoll,
            &process.pidfd,
            EventData::new_u64(token),
            EventFlags::IN,
        )
        .map_err(|errno| Error::of("wait for the process", "epoll_ctl")(errno).report())?;
        self.execs.insert(
            token,
            Exec {
                id: id.to_owned(),
                pid,
                pidfd: process.pidfd,
            },
        );
        Ok(pid)
    }

    /// One of those has ended.
    pub(super) fn exec_ended(&mut self, token: u64) {
        let Some(exec) = self.execs.get(&token) else {
            return;
        };
        // Not yet, or not ours to know: then epoll tells again, or never.
        let Ok(Some(exit)) = knarr_runtime::process::try_wait(&exec.pidfd) else {
            return;
        };
        let path = self
            .run
            .join(undo::EXECS_FOLDER)
            .join(format!("{}.json", exec.id));
        let started_at = knarr_fs::read(&path)
            .ok()
            .and_then(|bytes| serde_json::from_slice::<ExecState>(&bytes).ok())
            .and_then(|state| state.started_at);
        let state = ExecState {
            version: 1,
            pid: exec.pid,
            exit_code: Some(exit.code()),
            started_at,
            finished_at: Some(clock::now()),
        };
        self.event(
            "exec_die",
            &[
                ("execID", exec.id.clone()),
                ("exitCode", exit.code().to_string()),
            ],
        );
        // On a full tmpfs the code is lost, as everything is.
        self.save_exec(&exec.id.clone(), &state).ok();
        self.execs.remove(&token);
    }

    fn save_exec(&self, id: &str, state: &ExecState) -> crate::Result<()> {
        let folder = self.run.join(undo::EXECS_FOLDER);
        knarr_fs::create_dir_all(&folder)?;
        // A struct of strings and numbers always serializes.
        let bytes = serde_json::to_vec(state).unwrap_or_default();
        let path = folder.join(format!("{id}.json"));
        Ok(knarr_fs::write_atomic(&path, &bytes, Durability::Volatile)?)
    }

    pub(super) fn not_running(&self) -> Report {
        self.wrong_state("is not running", "not-running")
    }

    fn wrong_state(&self, how: &str, code: &str) -> Report {
        Report {
            class: Class::Busy,
            code: code.to_owned(),
            message: format!("container {} {how}", self.id.short()),
            because: Vec::new(),
            hint: None,
        }
    }

    fn no_terminal(&self) -> Report {
        let short = self.id.short();
        if self.has_terminal {
            Report {
                class: Class::Unavailable,
                code: "terminal-lost".to_owned(),
                message: format!("the terminal of container {short} is gone"),
                because: vec!["its monitor was killed, and a terminal cannot be saved".to_owned()],
                hint: Some(format!(
                    "`knarr exec -it {short} sh` opens another one, `knarr restart {short}` starts over"
                )),
            }
        } else {
            Report {
                class: Class::Invalid,
                code: "no-terminal".to_owned(),
                message: format!("container {short} has no terminal"),
                because: Vec::new(),
                hint: Some("give it one with `-t` when it is created".to_owned()),
            }
        }
    }
}

fn null() -> crate::Result<[OwnedFd; 3]> {
    let open = || {
        rustix::fs::open(
            "/dev/null",
            rustix::fs::OFlags::RDWR | rustix::fs::OFlags::CLOEXEC,
            rustix::fs::Mode::empty(),
        )
        .map_err(Error::of("open /dev/null", "open"))
    };
    Ok([open()?, open()?, open()?])
}

/// From `/proc/PID/status` (proc(5)): the last of several numbers in `NSpid` is the one in the
/// innermost namespace, the masks have bit n - 1 for signal n.
fn is_deaf(status: &str, signal: i32) -> bool {
    let field = |name: &str| {
        status
            .lines()
            .find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))
            .map(str::trim)
    };
    let mut numbers = field("NSpid").unwrap_or_default().split_whitespace();
    let is_init = numbers.clone().count() > 1 && numbers.next_back() == Some("1");
    let bit = u32::try_from(signal - 1)
        .ok()
        .and_then(|shift| 1u64.checked_shl(shift));
    let Some(bit) = bit else { return false };
    let in_mask = |name: &str| {
        field(name)
            .and_then(|mask| u64::from_str_radix(mask, 16).ok())
            .unwrap_or(0)
            & bit
            != 0
    };
    // Blocked signals are kept, for sigwait(3) and signalfd(2).
    is_init && !in_mask("SigCgt") && !in_mask("SigBlk")
}

fn unknown_version(found: u32) -> Report {
    Error::Version {
        what: "question",
        found,
        known: PROTOCOL_VERSION,
    }
    .report()
}

fn not_understood(cause: &serde_json::Error) -> Report {
    Report {
        class: Class::Unsupported,
        code: "call-unknown".to_owned(),
        message: "the container's monitor does not know this call".to_owned(),
        because: vec![cause.to_string()],
        hint: Some("it was started by an older Knarr; restart the container".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_an_init_without_a_handler_is_deaf() {
        let status = |nspid: &str, caught: &str, blocked: &str| {
            format!("Name:\tsh\nNSpid:\t{nspid}\nSigBlk:\t{blocked}\nSigCgt:\t{caught}\n")
        };
        let (none, term) = ("0000000000000000", "0000000000004000");
        for (nspid, caught, blocked, deaf) in [
            ("812\t1", none, none, true),
            ("812\t1", term, none, false),
            ("812\t1", none, term, false),
            ("812", none, none, false),
            ("812\t7", none, none, false),
        ] {
            assert_eq!(
                is_deaf(&status(nspid, caught, blocked), 15),
                deaf,
                "{nspid} {caught}"
            );
        }
        assert!(!is_deaf("", 15));
        assert!(!is_deaf(&status("812\t1", none, none), 0));
    }
}
