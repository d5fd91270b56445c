//! Running another process in a container.

use std::os::fd::AsFd;

use knarr_monitor::Request;
use knarr_monitor::client::Connection;
use knarr_monitor::state::Status;
use knarr_runtime::process::Identity;
use knarr_runtime::{ExecPlan, Process, Stdio, Target, UserPlan, seal};
use knarr_sys::process::CStringArray;
use rustix::process::Pid;

use crate::find::Found;
use crate::session::Child;
use crate::{Engine, Error, Result, Session};

/// What `exec` asks for.
#[derive(Debug, Clone, Default)]
pub struct ExecRequest {
    /// Program and arguments.
    pub command: Vec<String>,
    /// `NAME=value`, added to the container's.
    pub env: Vec<String>,
    /// `-u`; the container's where missing.
    pub user: Option<String>,
    /// `-w`; the container's where missing.
    pub workdir: Option<String>,
    /// `-t`, with its size in rows and columns.
    pub tty: Option<(u16, u16)>,
    /// `-i`: keep standard input open.
    pub stdin: bool,
    /// `--privileged`.
    pub privileged: bool,
}

impl Engine {
    pub(crate) fn exec_now(&self, text: &str, request: &ExecRequest) -> Result<Session> {
        // What enters a container must not run from a file that it could write to through
        // `/proc/PID/exe` (CVE-2019-5736): once more then, from a clone that is read-only.
        if !seal::is_sealed() {
            return Err(again(&self.settings().monitor));
        }
        let target = self.target(text)?;
        let plan = target.plan(request, self)?;
        let cgroup = self.cgroup(&target.request)?;
        if cgroup.needs_join() {
            // On v1 a child inherits its limits, and joining later would leave it a moment without.
            cgroup.join_limits(rustix::process::getpid())?;
        }
        let identity = Identity {
            pid: target.pid.as_raw_nonzero().get(),
            start_time: target.start_time,
            boot_id: knarr_runtime::process::boot_id()?,
        };
        let pidfd = identity
            .open()?
            .ok_or_else(|| not_running(text, &target.request.id))?;
        let aim = Target {
            pid: target.pid,
            pidfd: pidfd.as_fd(),
            cgroup: cgroup.dir_fd(),
        };
        let pipe = || {
            rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)
                .map_err(Error::of("make a pipe", "pipe2"))
        };
        let run = |stdio| {
            knarr_runtime::exec(&aim, &plan, stdio).map_err(|error| {
                Error::from(
                    knarr_diag::Report::from(error)
                        .wrap(format!("cannot exec in container `{text}`")),
                )
            })
        };
        if request.tty.is_some() {
            let Process {
                pidfd, terminal, ..
            } = run(Stdio::Terminal)?;
            let stdin = match (&terminal, request.stdin) {
                (Some(master), true) => Some(
                    rustix::io::fcntl_dupfd_cloexec(master, 3)
                        .map_err(Error::of("use the terminal", "fcntl"))?,
                ),
                _ => None,
            };
            let child = Child {
                pidfd,
                stdin,
                stdout: terminal,
                stderr: None,
                ended: false,
            };
            return Ok(Session::child(child, true));
        }
        // Pipes and not this process's own files: a container that has the user's terminal or file
        // open could do more with it than write.
        let (their_stdin, stdin) = if request.stdin {
            let (read, write) = pipe()?;
            (read, Some(write))
        } else {
            (
                knarr_fs::open_read(std::path::Path::new("/dev/null"))?,
                None,
            )
        };
        let (stdout, their_stdout) = pipe()?;
        let (stderr, their_stderr) = pipe()?;
        let Process { pidfd, .. } = run(Stdio::Files([their_stdin, their_stdout, their_stderr]))?;
        let (stdout, stderr) = (Some(stdout), Some(stderr));
        Ok(Session::child(
            Child {
                pidfd,
                stdin,
                stdout,
                stderr,
                ended: false,
            },
            false,
        ))
    }

    pub(crate) fn exec_detached_now(&self, text: &str, request: &ExecRequest) -> Result<()> {
        let target = self.target(text)?;
        let mut plan = target.plan(
            &ExecRequest {
                tty: None,
                ..request.clone()
            },
            self,
        )?;
        plan.process.terminal = None;
        let id = crate::names::random_id()?;
        let name = id.as_str().get(..32).unwrap_or_default();
        Connection::open(&self.settings().run_dir(&target.request.id))?.exec(name, plan, None)?;
        Ok(())
    }

    /// The running container that `exec` aims at, and what it was started with.
    fn target(&self, text: &str) -> Result<Aimed> {
        let id = self.find(text)?;
        let Found::Running(state) = self.touch(&id)? else {
            return Err(not_running(text, &id));
        };
        match state.status {
            Status::Paused => {
                return Err(Error::conflict(
                    format!("Container {id} is paused, unpause the container before exec"),
                    format!("`knarr unpause {text}`"),
                ));
            }
            Status::Restarting => {
                return Err(Error::conflict(
                    format!("Container {id} is restarting, wait until the container is running"),
                    format!("`knarr logs {text}` shows why it ended"),
                ));
            }
            _ => {}
        }
        let process = state.process.ok_or_else(|| not_running(text, &id))?;
        let pid = i32::try_from(process.pid).ok().and_then(Pid::from_raw);
        Ok(Aimed {
            request: self.stored_request(&id)?,
            pid: pid.ok_or_else(|| not_running(text, &id))?,
            start_time: process.start_time,
        })
    }

    /// What the monitor was asked for.
    pub(crate) fn stored_request(&self, id: &knarr_spec::ContainerId) -> Result<Request> {
        let path = self.settings().run_dir(id).join("request.json");
        Ok(Request::parse(&knarr_fs::read(&path)?)?)
    }

    /// The cgroup of a container that runs.
    pub(crate) fn cgroup(&self, request: &Request) -> Result<knarr_cgroup::Cgroup> {
        Ok(knarr_cgroup::Cgroup::open(self.layout()?, &request.cgroup)?)
    }
}

struct Aimed {
    request: Request,
    pid: Pid,
    start_time: u64,
}

impl Aimed {
    /// The container's own process, with what is asked for changed.
    fn plan(&self, request: &ExecRequest, engine: &Engine) -> Result<ExecPlan> {
        if request.command.iter().all(String::is_empty) {
            return Err(Error::invalid("No exec command specified"));
        }
        let mut process = self.request.runtime.process.clone();
        process.args.clone_from(&request.command);
        let terminal = request.tty.iter().map(|_| "TERM=xterm".to_owned());
        let own: Vec<String> = terminal.chain(request.env.iter().cloned()).collect();
        process.env = crate::merge::environment(process.env, &own);
        if let Some(workdir) = &request.workdir {
            if !workdir.starts_with('/') {
                return Err(Error::invalid(format!(
                    "the working directory '{workdir}' is invalid, it needs to be an absolute path"
                )));
            }
            process.cwd = crate::mounts::clean(workdir);
        }
        if let Some(user) = &request.user {
            let group_add = match &process.user {
                UserPlan::Lookup { group_add, .. } => group_add.clone(),
                UserPlan::Ids { .. } => Vec::new(),
            };
            process.user = UserPlan::Lookup {
                spec: user.clone(),
                group_add,
            };
            // The home folder is that user's, not the first one's.
            if !request.env.iter().any(|entry| entry.starts_with("HOME=")) {
                process.env.retain(|entry| !entry.starts_with("HOME="));
            }
        }
        process.terminal = request
            .tty
            .map(|(rows, columns)| knarr_runtime::ConsoleSize { rows, columns });
        if request.privileged {
            // All that there are to give, as for a privileged container.
            let available = engine.facts().capabilities;
            let all: Vec<_> = knarr_runtime::Capability::all()
                .filter(|one| crate::spec::capabilities::is_in(one.name(), available))
                .collect();
            process.capabilities = Some(knarr_runtime::CapabilitySets {
                bounding: all.clone(),
                effective: all.clone(),
                permitted: all,
                ..Default::default()
            });
        }
        process.init = false;
        process.new_keyring = false;
        Ok(ExecPlan::new(&self.request.runtime, process))
    }
}

fn not_running(text: &str, id: &knarr_spec::ContainerId) -> Error {
    Error::conflict(
        format!("container {id} is not running"),
        format!("start it first: `knarr start {text}`"),
    )
}

/// Executes this program again from a file that nobody can write. Returns only if that failed.
fn again(monitor: &std::path::Path) -> Error {
    use std::os::unix::ffi::OsStringExt as _;
    let sealed = match seal::Executable::of_self() {
        Ok(sealed) => sealed,
        Err(error) => return knarr_diag::Report::from(error).into(),
    };
    let c = |text: std::ffi::OsString| std::ffi::CString::new(text.into_vec()).unwrap_or_default();
    let args = std::env::args_os().map(c).collect();
    // Where it is now, there is nothing beside it; a monitor may have to take over yet.
    let beside = ("KNARR_MONITOR".into(), monitor.as_os_str().to_owned());
    let env = std::env::vars_os()
        .filter(|(key, _)| key != "KNARR_MONITOR")
        .chain([beside])
        .map(
            |(mut key, value): (std::ffi::OsString, std::ffi::OsString)| {
                key.push("=");
                key.push(value);
                c(key)
            },
        )
        .collect();
    knarr_diag::Report::from(sealed.exec(&CStringArray::new(args), &CStringArray::new(env))).into()
}
