//! `create` and `run`: from a bundle to a container.

use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use knarr_cgroup::{Cgroup, Layout};
use knarr_fs::Error as FsError;
use knarr_net::device::Device;
use knarr_runtime::process::Identity;
use knarr_runtime::rootless::is_nested;
use knarr_runtime::seal::{self, Executable};
use knarr_runtime::{Begun, Extras, Launch, Namespace, Plan, PlanOptions, Stdio, hook_plan, weak};
use knarr_sys::Failure as SysFailure;
use knarr_sys::mount::{Change, Propagation, mount_setattr};
use knarr_sys::process::CStringArray;
use rustix::fs::CWD;
use rustix::io::Errno;
use rustix::mount::{OpenTreeFlags, open_tree};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};

use crate::args::Parsed;
use crate::command::Globals;
use crate::container::{self, Container, Lock, OWN};
use crate::failure::{Failure, Result};
use crate::foreground::{self, Console};
use crate::state::{GATE, Phase, Record, VERSION};
use crate::{bundle, cgroups, clock, delete, rootless};

/// `create`.
pub(crate) fn create(globals: &mut Globals, parsed: &Parsed) -> Result<ExitCode> {
    let request = Request::parse(parsed, true)?;
    seal_self(rootless::enter(&request.bundle)?)?;
    let (preparation, rootfs) = prepare(globals, &request)?;
    let console = preparation.console(&request)?;
    let made = Made::new(preparation, globals)?;
    let gate = made.gate()?;
    let begun = made.begin(&request, rootfs, Some(gate), globals)?;
    let init = Identity::of(begun.pid())?;
    let created = begun
        .ready()
        .map_err(|error| Failure::from(error).during("unable to start container process"))?;
    if let (Console::Socket(socket), Some(terminal)) = (&console, created.terminal()) {
        foreground::send_terminal(socket, terminal)?;
    }
    if let Some(pidfd) = created.pidfd() {
        request.listeners.announce(init.pid, pidfd)?;
    }
    let record = made.whole(init);
    record.save(&made.dir)?;
    knarr_fs::failpoint!("oci.saved");
    created.leave()?;
    made.keep();
    Ok(ExitCode::SUCCESS)
}

/// `run`.
pub(crate) fn run(globals: &mut Globals, parsed: &Parsed) -> Result<ExitCode> {
    let request = Request::parse(parsed, parsed.is_set("detach"))?;
    seal_self(rootless::enter(&request.bundle)?)?;
    let (preparation, rootfs) = prepare(globals, &request)?;
    let console = preparation.console(&request)?;
    let foreground = if request.detach {
        None
    } else {
        Some(foreground::prepare(!parsed.is_set("no-subreaper"))?)
    };
    let made = Made::new(preparation, globals)?;
    let begun = made.begin(&request, rootfs, None, globals)?;
    let init = Identity::of(begun.pid())?;
    if let Some(pidfd) = begun.pidfd() {
        request.listeners.announce(init.pid, pidfd)?;
    }
    let record = made.whole(init);
    record.save(&made.dir)?;
    let init = begun
        .start()
        .map_err(|error| Failure::from(error).during("unable to start container process"))?;
    let (dir, lock) = made.keep();
    let container = Container { dir, record };
    drop(lock);
    let started = knarr_runtime::hook::run(
        "poststart",
        &container.record.poststart,
        &container.record.oci("running"),
    );
    if let Err(error) = started {
        knarr_runtime::process::kill(&init.pidfd).ok();
        knarr_runtime::process::wait(&init.pidfd).ok();
        delete::remove(globals, &container)?;
        return Err(error.into());
    }
    if let (Console::Socket(socket), Some(terminal)) = (&console, &init.terminal) {
        foreground::send_terminal(socket, terminal.as_fd())?;
    }
    let Some(foreground) = foreground else {
        return Ok(ExitCode::SUCCESS);
    };
    let terminal = init.terminal.filter(|_| matches!(console, Console::Own));
    let exit = foreground.wait(&init.pidfd, terminal)?;
    if !parsed.is_set("keep") {
        delete::remove(globals, &container)?;
    }
    Ok(foreground::exit_code(exit))
}

/// Goes on from a read-only mount of this program, so that nothing in a container can overwrite it
/// through `/proc/PID/exe` (CVE-2019-5736). One that has entered a user namespace goes on in any case:
/// the exec makes it that namespace's own.
pub(crate) fn seal_self(entered: bool) -> Result<()> {
    if !entered && (weak::off("seal") || seal::is_sealed()) {
        return Ok(());
    }
    let c_string = |text: std::ffi::OsString| {
        use std::os::unix::ffi::OsStringExt as _;
        std::ffi::CString::new(text.into_vec()).unwrap_or_default()
    };
    let args = CStringArray::new(std::env::args_os().map(c_string).collect());
    let env = std::env::vars_os().map(|(name, value)| {
        let mut entry = name;
        entry.push("=");
        entry.push(value);
        c_string(entry)
    });
    let mark = entered.then(|| c_string(format!("{}=1", rootless::ENTERED).into()));
    let env = CStringArray::new(env.chain(mark).collect());
    Err(Executable::of_self()?.exec(&args, &env).into())
}

/// The command line.
struct Request {
    id: String,
    bundle: PathBuf,
    console_socket: Option<PathBuf>,
    listeners: Listeners,
    no_pivot: bool,
    keep_keyring: bool,
    preserve: u32,
    detach: bool,
}

impl Request {
    fn parse(parsed: &Parsed, detach: bool) -> Result<Self> {
        let bundle = path(parsed, "bundle")?.map_or_else(|| absolute("."), Ok)?;
        Ok(Self {
            id: parsed.rest.first().cloned().unwrap_or_default(),
            bundle,
            console_socket: path(parsed, "console-socket")?,
            listeners: Listeners::parse(parsed)?,
            no_pivot: parsed.is_set("no-pivot"),
            keep_keyring: parsed.is_set("no-new-keyring"),
            preserve: parsed.number("preserve-fds")?.unwrap_or(0),
            detach,
        })
    }
}

/// Who wants to know which process it is.
pub(crate) struct Listeners {
    pid_file: Option<PathBuf>,
    pidfd_socket: Option<PathBuf>,
}

impl Listeners {
    pub(crate) fn parse(parsed: &Parsed) -> Result<Self> {
        Ok(Self {
            pid_file: path(parsed, "pid-file")?,
            pidfd_socket: path(parsed, "pidfd-socket")?,
        })
    }

    /// Tells them.
    pub(crate) fn announce(&self, pid: i32, pidfd: BorrowedFd<'_>) -> Result<()> {
        if let Some(path) = &self.pid_file {
            let durability = knarr_fs::Durability::Volatile;
            knarr_fs::write_atomic(path, pid.to_string().as_bytes(), durability)?;
        }
        if let Some(socket) = &self.pidfd_socket {
            knarr_runtime::send_fd(socket, b"pidfd", pidfd).map_err(|cause| {
                Failure::new(format!(
                    "cannot send the pidfd to {}: {cause}",
                    socket.display()
                ))
            })?;
        }
        Ok(())
    }
}

/// The path that a flag gives; an empty one is none.
pub(crate) fn path(parsed: &Parsed, name: &str) -> Result<Option<PathBuf>> {
    let path = parsed.value(name).filter(|path| !path.is_empty());
    path.map(absolute).transpose()
}

/// Below the working directory where it is relative.
fn absolute(path: &str) -> Result<PathBuf> {
    std::path::absolute(path).map_err(|error| Failure::new(format!("{path}: {error}")))
}

/// What was decided before anything was made.
struct Preparation {
    plan: Plan,
    layout: Layout,
    record: Record,
    /// Network devices that move in.
    devices: Vec<Device>,
    /// Descriptors from 3 on that the program keeps.
    preserve: u32,
}

impl Preparation {
    fn console(&self, request: &Request) -> Result<Console> {
        foreground::console(
            self.plan.process.terminal.is_some(),
            request.detach,
            request.console_socket.as_deref(),
        )
    }
}

fn prepare(globals: &mut Globals, request: &Request) -> Result<(Preparation, OwnedFd)> {
    let mut config = bundle::load(&request.bundle)?;
    container::check_id(&request.id)?;
    bundle::grant(&mut config, &mut globals.log);
    rootless::translate(&mut config)?;
    let layout = Layout::detect()?;
    let seccomp = config
        .linux
        .as_ref()
        .and_then(|linux| linux.seccomp.as_ref())
        .map(|section| knarr_seccomp::Cache::new(&globals.root.join(OWN)).program(section))
        .transpose()?;
    let options = PlanOptions {
        seccomp,
        user: None,
        init: false,
        keep_keyring: request.keep_keyring,
        cgroup_view: cgroups::view(&config, &layout)?,
        nested: is_nested(),
    };
    let mut plan = knarr_runtime::plan(&config, &options)?;
    if weak::off("userns") {
        plan.create.retain(|kind| *kind != Namespace::User);
        plan.user_namespace = None;
    }
    let preserve = keep_descriptors(&mut plan, request.preserve)?;
    let cgroup = cgroups::plan(globals, &config, &layout, &request.id)?;
    let rootfs = match &config.root {
        Some(root) => request.bundle.join(&root.path),
        None => return Err(Failure::new("root: missing in config.json")),
    };
    let hooks = config.hooks.clone().unwrap_or_default();
    let hook_plans = |moment: &str, hooks: &[knarr_spec::runtime::Hook]| {
        hooks
            .iter()
            .map(|hook| hook_plan(&format!("hooks.{moment}"), hook))
            .collect::<knarr_runtime::Result<Vec<_>>>()
    };
    let tree = open_root(&rootfs, plan.root.propagation)?;
    let record = Record {
        version: VERSION,
        phase: Phase::Creating,
        id: request.id.clone(),
        bundle: request.bundle.display().to_string(),
        rootfs: rootfs.display().to_string(),
        created: clock::nanoseconds(),
        annotations: config.annotations.clone(),
        cgroup,
        init: None,
        plan: None,
        poststart: hook_plans("poststart", &hooks.poststart)?,
        poststop: hook_plans("poststop", &hooks.poststop)?,
    };
    let preparation = Preparation {
        plan,
        layout,
        record,
        devices: bundle::devices(&config)?,
        preserve,
    };
    Ok((preparation, tree))
}

/// How many descriptors from 3 on the program keeps: sockets that systemd passes to a service
/// (sd_listen_fds(3)), then those of `--preserve-fds`.
fn keep_descriptors(plan: &mut Plan, preserve: u32) -> Result<u32> {
    let variable = |name: &str| std::env::var(name).ok();
    let own = |pid: &str| pid == std::process::id().to_string();
    let sockets = match (variable("LISTEN_PID"), variable("LISTEN_FDS")) {
        (Some(pid), Some(count)) if own(&pid) => count.parse::<u32>().unwrap_or(0),
        _ => 0,
    };
    if sockets > 0 {
        let env = &mut plan.process.env;
        env.push(format!("LISTEN_FDS={sockets}"));
        env.push("LISTEN_PID=1".to_owned());
        if let Some(names) = variable("LISTEN_FDNAMES") {
            env.push(format!("LISTEN_FDNAMES={names}"));
        }
    }
    let all = sockets.saturating_add(preserve);
    check_open(all)?;
    Ok(all)
}

/// That descriptors from 3 on are open.
pub(crate) fn check_open(count: u32) -> Result<()> {
    match (3..3u32.saturating_add(count))
        .find(|number| !Path::new(&format!("/proc/self/fd/{number}")).exists())
    {
        None => Ok(()),
        Some(number) => Err(Failure::new(format!(
            "unable to stat preserved-fd {number} (of {count}): it is not open"
        ))),
    }
}

/// The root as a mount of its own, that nobody sees yet.
fn open_root(path: &Path, propagation: knarr_runtime::Propagation) -> Result<OwnedFd> {
    let failed = |call: &'static str| {
        move |errno: Errno| {
            let cause = SysFailure { call, errno };
            Failure::new(format!("invalid rootfs: stat {}: {cause}", path.display()))
        }
    };
    let flags = OpenTreeFlags::OPEN_TREE_CLONE
        | OpenTreeFlags::OPEN_TREE_CLOEXEC
        | OpenTreeFlags::AT_RECURSIVE;
    // With a slash at the end it can only be a directory.
    let tree = open_tree(CWD, path.join(""), flags).map_err(failed("open_tree"))?;
    // A clone of a shared mount is its peer: the container's mounts would appear on the host.
    let change = Change {
        propagation: match propagation {
            knarr_runtime::Propagation::Slave => Propagation::Slave,
            _ => Propagation::Private,
        },
        recursive: true,
        ..Change::default()
    };
    mount_setattr(&tree, c"", &change).map_err(|cause| {
        Failure::new(format!(
            "cannot take {} out of the host's mounts: {cause}",
            path.display()
        ))
    })?;
    Ok(tree)
}

/// What exists of a container so far; dropped, it is taken away again.
struct Made {
    dir: PathBuf,
    lock: Option<Lock>,
    preparation: Preparation,
    cgroup: Option<Cgroup>,
}

impl Made {
    fn new(preparation: Preparation, globals: &mut Globals) -> Result<Self> {
        let (dir, lock) = container::claim(&globals.root, &preparation.record.id)?;
        let mut made = Self {
            dir,
            lock: Some(lock),
            cgroup: None,
            preparation,
        };
        made.preparation.record.save(&made.dir)?;
        knarr_fs::failpoint!("oci.claimed");
        if let Some(plan) = made.preparation.record.cgroup.take() {
            made.cgroup = cgroups::create(globals, &made.preparation.layout, &plan)?;
            if made.cgroup.is_some() {
                made.preparation.record.cgroup = Some(plan);
            }
        }
        knarr_fs::failpoint!("oci.cgroup");
        Ok(made)
    }

    /// The socket that `start` will find.
    fn gate(&self) -> Result<OwnedFd> {
        let path = self.dir.join(GATE);
        let failed = |call: &'static str| FsError::of("make the socket", call, &path);
        let socket = rustix::net::socket_with(
            AddressFamily::UNIX,
            SocketType::SEQPACKET,
            SocketFlags::CLOEXEC,
            None,
        )
        .map_err(failed("socket"))?;
        // By the folder's handle: a socket's path has room for 107 bytes.
        let folder = rustix::fs::open(
            &self.dir,
            rustix::fs::OFlags::PATH | rustix::fs::OFlags::CLOEXEC,
            rustix::fs::Mode::empty(),
        )
        .map_err(FsError::of("open", "open", &self.dir))?;
        let address = gate_address(&folder)?;
        // Nobody else may connect, should the folder ever be entered by others.
        let mask = rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o177));
        let bound = rustix::net::bind(&socket, &address);
        rustix::process::umask(mask);
        bound.map_err(failed("bind"))?;
        rustix::net::listen(&socket, 1).map_err(failed("listen"))?;
        Ok(socket)
    }

    fn begin<'a>(
        &'a self,
        request: &Request,
        rootfs: OwnedFd,
        gate: Option<OwnedFd>,
        globals: &mut Globals,
    ) -> Result<Begun<'a>> {
        let rootless = globals.rootless();
        let preparation = &self.preparation;
        let stdio = if preparation.plan.process.terminal.is_some() {
            Stdio::Terminal
        } else {
            Stdio::Inherited
        };
        let record = &preparation.record;
        let mut begun = knarr_runtime::begin(Launch {
            plan: &preparation.plan,
            rootfs,
            stdio,
            cgroup: self.cgroup.as_ref().and_then(Cgroup::dir_fd),
            binds: Vec::new(),
            extras: Extras {
                preserve: preparation.preserve,
                gate,
                root_path: Some(record.rootfs.clone()),
                no_pivot: request.no_pivot,
                own_stdio: true,
                state: Some(record.oci("creating")),
            },
        })
        .map_err(|error| Failure::from(error).during("unable to start container process"))?;
        knarr_fs::failpoint!("oci.begun");
        if let Some(cgroup) = &self.cgroup {
            if cgroup.plan().unit.is_some() {
                // systemd makes it around the process.
                cgroups::warn(&mut globals.log, &cgroup.join_limits(begun.pid())?);
            }
            if !rootless {
                // While the process makes its tree.
                cgroups::warn(&mut globals.log, &cgroup.complete()?);
                // Engines read a container's numbers in v1 hierarchies by its process.
                cgroup.join_all(begun.pid())?;
            }
        }
        if !preparation.devices.is_empty() {
            let path = format!("/proc/{}/ns/net", begun.pid().as_raw_nonzero());
            let namespace = knarr_net::open_namespace(&path)?;
            knarr_net::device::move_into(namespace.as_fd(), &preparation.devices)
                .map_err(|error| Failure::from(error).during("linux.netDevices"))?;
        }
        begun.joined()?;
        Ok(begun)
    }

    fn whole(&self, init: Identity) -> Record {
        Record {
            phase: Phase::Whole,
            init: Some(init),
            plan: Some(self.preparation.plan.clone()),
            ..self.preparation.record.clone()
        }
    }

    /// From here on it is there to stay.
    fn keep(mut self) -> (PathBuf, Option<Lock>) {
        (std::mem::take(&mut self.dir), self.lock.take())
    }
}

impl Drop for Made {
    fn drop(&mut self) {
        if self.lock.is_none() {
            return;
        }
        // The error that led here is the one to tell; what cannot be removed now is removed by
        // the next call that touches the id.
        if let (Some(_), Some(plan)) = (&self.cgroup, &self.preparation.record.cgroup) {
            container::remove_cgroup(plan).ok();
        }
        knarr_fs::remove_tree(&self.dir).ok();
    }
}

/// The gate in a container's folder.
pub(crate) fn gate_address(folder: &OwnedFd) -> Result<SocketAddrUnix> {
    use std::os::fd::AsRawFd as _;
    SocketAddrUnix::new(format!("/proc/self/fd/{}/{GATE}", folder.as_raw_fd()))
        .map_err(|errno| Failure::new(format!("gate: {errno}")))
}
