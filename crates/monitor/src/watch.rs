//! The monitor's life: one loop over one epoll, until the container has ended for good.

mod end;
mod network;
mod serve;
mod splice;
mod stream;

use std::collections::BTreeMap;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use knarr_cgroup::{Cgroup, Layout};
use knarr_diag::{Class, Explain as _, Report};
use knarr_fs::{Durability, Lock};
use knarr_layer::HeldLayer;
use knarr_spec::ContainerId;
use rustix::event::epoll::{self, CreateFlags, EventData, EventFlags};
use rustix::io::Errno;

use crate::log::Log;
use crate::protocol::{Answer, Reply};
use crate::request::{Paths, Removal, Request, Restart, Stdin, Stop};
use crate::restart::Backoff;
use crate::session::{Client, Role};
use crate::start::{self, Container};
use crate::state::{ProcessId, State, Status};
use crate::undo::{self, Undo};
use crate::{Error, Result, clock, events, socket, stdio};

pub(crate) use network::namespace_of;
pub use serve::ExecState;

/// What epoll says is ready. Clients and execs have numbers from [`FIRST_OTHER`] on.
const INIT: u64 = 0;
const LISTENER: u64 = 1;
const STDOUT: u64 = 2;
const STDERR: u64 = 3;
const STDIN: u64 = 4;
const TERMINAL: u64 = 5;
/// The container's name server.
const NAMES: u64 = 6;
/// Somebody has changed the firewall.
const FIREWALL: u64 = 7;
const FIRST_OTHER: u64 = 16;
/// Sockets that keep published ports, in order.
const FIRST_PORT: u64 = 1 << 40;
/// Connections by way of them, two sockets each.
const FIRST_SPLICE: u64 = 1 << 48;

/// The most clients at a time.
const MOST_CLIENTS: usize = 256;
/// How long clients may take to fetch the last output once the container ended.
const LINGER: Duration = Duration::from_secs(10);
/// When an idle monitor gives its buffers back.
const RELAX: Duration = Duration::from_secs(1);

/// Descriptors that the monitor is born with.
#[derive(Debug)]
pub(crate) struct Inherited {
    pub(crate) report: UnixStream,
    pub(crate) lock: Lock,
    pub(crate) attach: Option<OwnedFd>,
}

/// The first process.
#[derive(Debug)]
struct Init {
    id: ProcessId,
    pidfd: OwnedFd,
    /// An adopted one is somebody else's child.
    ours: bool,
    since: Instant,
}

/// One more process that a client asked for.
#[derive(Debug)]
struct Exec {
    id: String,
    pid: u32,
    pidfd: OwnedFd,
}

/// What the loop is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// The container lives.
    Alive,
    /// It will be started again then.
    Resting(Instant),
    /// It is over; the last clients fetch what is theirs until then.
    Lingering(Instant),
}

/// A monitor.
#[derive(Debug)]
pub(crate) struct Watch {
    id: ContainerId,
    attributes: BTreeMap<String, String>,
    paths: Paths,
    stdin_kind: Stdin,
    has_terminal: bool,
    stop: Stop,
    restart: Restart,
    remove: Option<Removal>,
    undo: Undo,
    /// Where the run folder is; `--rm` moves it.
    run: PathBuf,
    lock: Option<Lock>,
    report: Option<UnixStream>,
    layout: Layout,
    cgroup: Option<Cgroup>,
    epoll: OwnedFd,
    listener: Option<OwnedFd>,
    state: State,
    phase: Phase,
    init: Option<Init>,
    log: Log,
    streams: stream::Sources,
    held: Vec<HeldLayer>,
    network: Option<knarr_net::Membership>,
    splices: splice::Splices,
    clients: BTreeMap<u64, Client>,
    execs: BTreeMap<u64, Exec>,
    next_token: u64,
    backoff: Backoff,
    /// When SIGKILL follows the stop signal.
    kill_at: Option<Instant>,
    relax_at: Option<Instant>,
}

/// Makes the container, then watches it until it is over.
pub(crate) fn run(request: Request, inherited: Inherited) {
    let Inherited {
        report,
        lock,
        attach,
    } = inherited;
    knarr_fs::failpoint!("monitor.spawned");
    let mut watch = match Watch::new(&request, lock) {
        Ok(watch) => watch,
        Err(error) => return tell(&report, &Reply::error(error.report())),
    };
    if let (Some(socket), Some(streams)) = (attach, request.attach) {
        watch.join(socket, Role::Attached(streams));
    }
    if let Err(error) = watch.first_start(request) {
        watch.give_up(&error, &report);
        return;
    }
    watch.go_on(report);
}

/// Takes over a container that lives and whose monitor does not.
pub(crate) fn adopt(request: Request, inherited: Inherited) {
    let Inherited {
        report,
        lock,
        attach: _,
    } = inherited;
    knarr_fs::failpoint!("monitor.adopting");
    let adopted = Watch::new(&request, lock).and_then(|mut watch| {
        watch.take_over(request.network.as_ref())?;
        Ok(watch)
    });
    drop(request);
    match adopted {
        Ok(watch) => watch.go_on(report),
        Err(error) => tell(&report, &Reply::error(error.report())),
    }
}

/// The request makes no sense.
pub(crate) fn refuse(report: &UnixStream, error: &Error) {
    tell(report, &Reply::error(error.report()));
}

fn tell(mut report: &UnixStream, reply: &Reply) {
    use std::io::Write as _;
    // Who started it may be gone; then nobody wants to know.
    report.write_all(&reply.to_line()).ok();
}

impl Watch {
    fn new(request: &Request, lock: Lock) -> Result<Self> {
        let epoll = epoll::create(CreateFlags::CLOEXEC)
            .map_err(Error::of("wait for events", "epoll_create"))?;
        let mut state = State::created(request.id.clone());
        state.restart_count = request.restart_count;
        state.boot_id = knarr_runtime::process::boot_id()?;
        state.monitor = Some(start::process_id(rustix::process::getpid())?);
        Ok(Self {
            id: request.id.clone(),
            attributes: request.attributes.clone(),
            paths: request.paths.clone(),
            stdin_kind: request.stdin,
            has_terminal: request.terminal.is_some(),
            stop: request.stop,
            restart: request.restart,
            remove: request.remove.clone(),
            undo: Undo::of(request),
            run: request.paths.run.clone(),
            lock: Some(lock),
            report: None,
            layout: Layout::detect()?,
            cgroup: None,
            epoll,
            listener: None,
            state,
            phase: Phase::Alive,
            init: None,
            log: Log::open(&request.log)?,
            streams: stream::Sources::default(),
            held: Vec::new(),
            network: None,
            splices: splice::Splices::default(),
            clients: BTreeMap::new(),
            execs: BTreeMap::new(),
            next_token: FIRST_OTHER,
            backoff: Backoff::default(),
            kill_at: None,
            relax_at: None,
        })
    }

    /// The start that somebody waits for.
    fn first_start(&mut self, request: Request) -> std::result::Result<(), Report> {
        let prepare = |watch: &mut Self| -> Result<()> {
            knarr_fs::write_atomic(
                &watch.run.join(undo::REQUEST_FILE),
                &request.to_json()?,
                Durability::Volatile,
            )?;
            watch.undo.save(&watch.run)?;
            knarr_fs::failpoint!("monitor.undo");
            watch.listen()
        };
        prepare(self).map_err(|error| error.report())?;
        self.start(&request)?;
        drop(request);
        self.event("start", &[]);
        Ok(())
    }

    fn start(&mut self, request: &Request) -> std::result::Result<(), Report> {
        self.prepare_network(request)
            .map_err(|error| error.report())?;
        let Self {
            state,
            run,
            layout,
            held,
            paths,
            network,
            ..
        } = self;
        let data = paths.data.as_deref();
        let container = start::start(request, layout, network.as_mut(), |process| {
            state.status = Status::Running;
            state.process = Some(process);
            state.started_at = Some(clock::now());
            state.finished_at = None;
            state.exit_code = None;
            state.error = None;
            state.oom_killed = false;
            state.save(run, Durability::Volatile)?;
            // After a reboot this is what tells that it ran.
            data.map_or(Ok(()), |data| state.save(data, Durability::Volatile))
        })?;
        let Container {
            pid,
            pidfd,
            terminal,
            ends,
            cgroup,
            held: layers,
        } = container;
        // The old ones lend their mounts to the new ones, so they go last.
        *held = layers;
        self.cgroup = Some(cgroup);
        let id = self.state.process.unwrap_or(ProcessId {
            pid: pid.as_raw_nonzero().get().unsigned_abs(),
            start_time: 0,
        });
        self.init = Some(Init {
            id,
            pidfd,
            ours: true,
            since: Instant::now(),
        });
        self.watch_names().map_err(|error| error.report())?;
        self.watch_container(ends, terminal)
            .map_err(|error| error.report())
    }

    /// The start did not work: undoes it, then tells.
    fn give_up(mut self, error: &Report, report: &UnixStream) {
        let cgroup = self.undo.remove_cgroup();
        self.leave_network();
        self.give_addresses_back();
        self.state.network = knarr_net::Attached::default();
        self.listener = None;
        self.state.status = Status::Created;
        self.state.process = None;
        self.state.monitor = None;
        self.state.started_at = None;
        self.state.exit_code = Some(i32::from(error.class.run_exit_code()));
        self.state.error = Some(error.one_line());
        let undone = match (&self.remove, &self.paths.data) {
            (Some(removal), _) => self
                .undo
                .remove_container(&self.run, removal)
                .and_then(|place| Ok(knarr_fs::remove_tree(&place)?)),
            (None, data) => {
                let kept = self.save_state(data.as_deref());
                undo::clean_run(&self.run).and(kept)
            }
        };
        // What could not be undone stays in `undo` for the next call on the container.
        if undone.and(cgroup).is_ok() && self.remove.is_none() {
            knarr_fs::remove_file(&self.run.join(undo::UNDO_FILE)).ok();
        }
        drop(self.lock.take());
        tell(report, &Reply::error(error.clone()));
    }

    fn save_state(&self, data: Option<&std::path::Path>) -> Result<()> {
        self.state.save(&self.run, Durability::Volatile)?;
        data.map_or(Ok(()), |data| self.state.save(data, Durability::Volatile))
    }

    /// Tells that it runs, and watches.
    fn go_on(mut self, report: UnixStream) {
        let pid = self.state.process.map_or(0, |process| process.pid);
        tell(&report, &Reply::ok(Answer::Running { pid }));
        self.report = Some(report);
        knarr_fs::failpoint!("monitor.reported");
        self.relax_at = Some(Instant::now());
        while !self.is_over() {
            self.turn();
        }
    }

    fn is_over(&self) -> bool {
        match self.phase {
            Phase::Lingering(until) => self.clients.is_empty() || Instant::now() >= until,
            _ => false,
        }
    }

    /// Waits for something and deals with it.
    fn turn(&mut self) {
        // On the stack: an idle monitor keeps no buffers.
        let mut events = [epoll::Event {
            flags: EventFlags::empty(),
            data: EventData::new_u64(0),
        }; 8];
        let timeout = self.next_deadline().map(|at| {
            let wait = at.saturating_duration_since(Instant::now());
            rustix::time::Timespec {
                tv_sec: i64::try_from(wait.as_secs()).unwrap_or(i64::MAX),
                tv_nsec: i64::from(wait.subsec_nanos()),
            }
        });
        let count = match epoll::wait(&self.epoll, &mut events, timeout.as_ref()) {
            Ok(count) => count,
            Err(Errno::INTR) => 0,
            // Nothing sensible is left to do but look at the clock again.
            Err(_) => 0,
        };
        let mut ended = false;
        for event in events.iter().take(count) {
            let (token, flags) = (event.data.u64(), event.flags);
            match token {
                // After what else is ready: the last output comes before the end.
                INIT => ended = true,
                LISTENER => self.accept(),
                STDOUT | STDERR => self.pump(token),
                STDIN => self.feed(),
                TERMINAL => self.terminal_ready(flags),
                NAMES => self.answer_names(),
                FIREWALL => self.heal_firewall(),
                FIRST_SPLICE.. => self.splices.ready(self.epoll.as_fd(), token),
                FIRST_PORT.. => self.port_ready(token),
                other if self.execs.contains_key(&other) => self.exec_ended(other),
                other => self.client_ready(other, flags),
            }
        }
        if ended {
            self.init_ended();
        }
        self.tick();
        self.settle();
    }

    fn next_deadline(&self) -> Option<Instant> {
        let phase = match self.phase {
            Phase::Alive => None,
            Phase::Resting(at) | Phase::Lingering(at) => Some(at),
        };
        let clients = self
            .clients
            .values()
            .filter_map(|client| match client.role {
                Role::Asking { until, .. } => Some(until),
                _ => None,
            });
        clients
            .chain(self.names_due())
            .chain(phase)
            .chain(self.kill_at)
            .chain(self.relax_at)
            .min()
    }

    /// What is due.
    fn tick(&mut self) {
        let now = Instant::now();
        if self.kill_at.is_some_and(|at| at <= now) {
            self.kill_at = None;
            self.send_signal(rustix::process::Signal::KILL.as_raw())
                .ok();
        }
        if self.names_due().is_some_and(|at| at <= now) {
            self.answer_names();
        }
        if let Phase::Resting(at) = self.phase
            && at <= now
        {
            self.start_again();
        }
        if self.relax_at.is_some_and(|at| at <= now) {
            self.relax_at = None;
            self.log.relax();
            self.streams.relax();
            knarr_sys::heap::trim();
        }
        self.clients
            .retain(|_, client| !matches!(client.role, Role::Asking { until, .. } if until <= now));
    }

    /// Lets go of clients that are done, and tells epoll what the others wait for.
    fn settle(&mut self) {
        let feed = self.takes_input();
        let epoll = self.epoll.as_fd();
        let mut left_feeding = false;
        let mut let_go = false;
        let before = self.clients.len();
        self.clients.retain(|token, client| {
            let done = matches!(client.role, Role::Leaving) && client.queued() == 0;
            let gone = client.gone && !client.feeds();
            if done || gone || client.update_interest(epoll, *token, feed).is_err() {
                left_feeding |= matches!(client.role, Role::Attached(streams) if streams.stdin);
                let_go |= matches!(client.role, Role::Holding);
                return false;
            }
            true
        });
        if left_feeding {
            self.input_ended();
        }
        if let_go {
            // Whom it could be told is gone; `unpause` does the same again.
            self.thaw().ok();
        }
        if self.clients.len() < before {
            self.relax_at = Some(Instant::now() + RELAX);
        }
        self.update_sources();
    }

    /// Takes a client in. A number is never used twice.
    fn join(&mut self, socket: OwnedFd, role: Role) -> u64 {
        let token = self.next_token;
        self.next_token += 1;
        self.clients.insert(token, Client::new(socket, role));
        token
    }

    fn listen(&mut self) -> Result<()> {
        let listener = socket::listen(&self.run)?;
        self.add(LISTENER, &listener, EventFlags::IN)?;
        self.listener = Some(listener);
        Ok(())
    }

    fn watch_container(&mut self, ends: stdio::Ends, terminal: Option<OwnedFd>) -> Result<()> {
        if let Some(init) = &self.init {
            epoll::add(
                &self.epoll,
                &init.pidfd,
                EventData::new_u64(INIT),
                EventFlags::IN,
            )
            .map_err(Error::of("wait for the container", "epoll_ctl"))?;
        }
        self.streams.open(ends, terminal)?;
        self.phase = Phase::Alive;
        self.settle();
        Ok(())
    }

    fn add<Fd: AsFd>(&self, token: u64, fd: Fd, flags: EventFlags) -> Result<()> {
        epoll::add(&self.epoll, fd, EventData::new_u64(token), flags)
            .map_err(Error::of("wait for events", "epoll_ctl"))
    }

    /// Finds the container as its last monitor left it.
    fn take_over(&mut self, network: Option<&knarr_net::Plan>) -> Result<()> {
        let id = self.id.short().to_owned();
        let gone = || Error::Refused {
            report: Box::new(Report {
                class: Class::Unavailable,
                code: "not-running".to_owned(),
                message: format!("container {id} ended before a monitor could take it over"),
                because: Vec::new(),
                hint: None,
            }),
        };
        let Some(state) = State::load(&self.run)? else {
            return Err(gone());
        };
        let Some(process) = state.process else {
            return Err(gone());
        };
        let Some(pidfd) = crate::client::open_process(process, &state.boot_id)? else {
            return Err(gone());
        };
        let monitor = self.state.monitor;
        self.backoff = Backoff::after(state.restart_count);
        self.state = State {
            monitor,
            boot_id: self.state.boot_id.clone(),
            ..state
        };
        if self.state.status == Status::Restarting || self.state.status == Status::Created {
            self.state.status = Status::Running;
        }
        let cgroup = Cgroup::open(&self.layout, &self.undo.cgroup)?;
        if cgroup.is_frozen()? {
            self.state.status = Status::Paused;
        } else if self.state.status == Status::Paused {
            self.state.status = Status::Running;
        }
        self.cgroup = Some(cgroup);
        let ends = if self.has_terminal {
            self.state.error = Some(
                "the terminal was lost when the monitor was killed; the container goes on without"
                    .to_owned(),
            );
            stdio::Ends::default()
        } else {
            stdio::reopen(&self.run, self.stdin_kind)?
        };
        self.init = Some(Init {
            id: process,
            pidfd,
            ours: false,
            since: Instant::now(),
        });
        // The last one may have noted more than the request tells.
        if let Some(undo) = Undo::load(&self.run)? {
            self.undo = undo;
        }
        self.adopt_network(network)?;
        self.listen()?;
        self.watch_container(ends, None)?;
        self.state.save(&self.run, Durability::Volatile)?;
        knarr_fs::failpoint!("monitor.adopted");
        Ok(())
    }

    /// Records an event; that nobody can read it is no reason to stop.
    fn event(&self, action: &str, more: &[(&str, String)]) {
        let mut attributes = self.attributes.clone();
        for (key, value) in more {
            attributes.insert((*key).to_owned(), value.clone());
        }
        events::append(
            &self.paths.run_root,
            "container",
            action,
            self.id.as_str(),
            attributes,
        )
        .ok();
    }
}
