//! `exec`.

use std::os::fd::{AsFd as _, OwnedFd};
use std::path::Path;
use std::process::ExitCode;

use knarr_cgroup::Cgroup;
use knarr_runtime::{
    Capability, CapabilitySets, ConsoleSize, ExecExtras, ExecPlan, ProcessPlan, Stdio, Target,
    UserPlan, exec_then,
};
use rustix::fs::{Mode, OFlags, ResolveFlags};
use rustix::process::{DumpableBehavior, Pid};

use crate::args::Parsed;
use crate::bundle;
use crate::command::Globals;
use crate::container::{Container, Status};
use crate::create::{Listeners, check_open, path, seal_self};
use crate::failure::{Failure, Result};
use crate::foreground::{self, Console};

/// What runc exits with when an exec fails.
const FAILED: u8 = 255;

/// `exec`.
pub(crate) fn exec(globals: &mut Globals, parsed: &Parsed) -> Result<ExitCode> {
    run(globals, parsed).map_err(|failure| failure.with_code(FAILED))
}

fn run(globals: &mut Globals, parsed: &Parsed) -> Result<ExitCode> {
    seal_self(false)?;
    let (id, command) = match parsed.rest.split_first() {
        Some((id, command)) => (id.as_str(), command),
        None => ("", [].as_slice()),
    };
    let container = Container::open(&globals.root, id)?;
    match container.status()? {
        Status::Stopped => return Err(Failure::new("cannot exec in a stopped container")),
        Status::Paused if !parsed.is_set("ignore-paused") => {
            return Err(Failure::new(
                "cannot exec in a paused container (use --ignore-paused to override)",
            ));
        }
        _ => {}
    }
    let record = &container.record;
    let (Some(init), Some(plan)) = (&record.init, &record.plan) else {
        return Err(Failure::new(
            "cannot exec in a container that is being created",
        ));
    };
    let mut process = process(parsed, &plan.process, command)?;
    let preserve = parsed.number("preserve-fds")?.unwrap_or(0);
    check_open(preserve)?;
    let detach = parsed.is_set("detach");
    let console_socket = path(parsed, "console-socket")?;
    let listeners = Listeners::parse(parsed)?;
    let console = foreground::console(
        process.terminal.is_some(),
        detach,
        console_socket.as_deref(),
    )?;
    if matches!(console, Console::Own) && process.terminal == Some(ConsoleSize::default()) {
        process.terminal = Some(foreground::own_size());
    }
    let stopped = || Failure::new("cannot exec in a stopped container");
    let pidfd = init.open()?.ok_or_else(stopped)?;
    let pid = Pid::from_raw(init.pid).ok_or_else(stopped)?;
    let cgroup = container.cgroup()?;
    let sub = sub_cgroup(cgroup.as_ref(), parsed)?;
    let target = Target {
        pid,
        pidfd: pidfd.as_fd(),
        cgroup: match &sub {
            Some(sub) => Some(sub.as_fd()),
            None => cgroup.as_ref().and_then(Cgroup::dir_fd),
        },
    };
    let stdio = if process.terminal.is_some() {
        Stdio::Terminal
    } else {
        Stdio::Inherited
    };
    let foreground = if detach {
        None
    } else {
        Some(foreground::prepare(true)?)
    };
    let extras = ExecExtras {
        preserve,
        own_stdio: true,
        state: Some(record.oci("running")),
    };
    let rootless = globals.rootless();
    let mut plan = ExecPlan::new(plan, process);
    if !rustix::process::geteuid().is_root() {
        inherit_oom_score(plan.process.oom_score_adj.take())?;
    }
    let process = exec_then(&target, &plan, stdio, extras, |pid| {
        if let (Some(cgroup), false) = (&cgroup, rootless) {
            cgroup.join_all(pid)?;
        }
        Ok(())
    })
    .map_err(|error| Failure::from(error).during("unable to start container process"))?;
    let announced = || -> Result<()> {
        listeners.announce(process.pid.as_raw_nonzero().get(), process.pidfd.as_fd())?;
        if let (Console::Socket(socket), Some(terminal)) = (&console, &process.terminal) {
            foreground::send_terminal(socket, terminal.as_fd())?;
        }
        Ok(())
    };
    if let Err(failure) = announced() {
        // Who asked could not be told of it, so it must not run on.
        knarr_runtime::process::kill(&process.pidfd).ok();
        knarr_runtime::process::wait(&process.pidfd).ok();
        return Err(failure);
    }
    let Some(foreground) = foreground else {
        return Ok(ExitCode::SUCCESS);
    };
    let terminal = process.terminal.filter(|_| matches!(console, Console::Own));
    let exit = foreground.wait(&process.pidfd, terminal)?;
    Ok(foreground::exit_code(exit))
}

/// Gives this process the score that the new one shall have: a caller without rights may not write that
/// one's, which is root's in the container's eyes until it runs its program.
fn inherit_oom_score(adjust: Option<i32>) -> Result<()> {
    let Some(adjust) = adjust else {
        return Ok(());
    };
    let path = Path::new("/proc/self/oom_score_adj");
    let own = knarr_fs::read_to_string(path)?;
    if own.trim() == adjust.to_string() {
        return Ok(());
    }
    let dumpable = |behavior| {
        rustix::process::set_dumpable_behavior(behavior)
            .map_err(|errno| Failure::new(format!("prctl: {errno}")))
    };
    dumpable(DumpableBehavior::Dumpable)?;
    let written = std::fs::write(path, adjust.to_string());
    dumpable(DumpableBehavior::NotDumpable)?;
    written.map_err(|error| {
        Failure::new(format!(
            "cannot write `{adjust}` to {}: {error}",
            path.display()
        ))
    })
}

/// What to run: `--process`, or the container's own process with what the flags change in it.
fn process(parsed: &Parsed, own: &ProcessPlan, command: &[String]) -> Result<ProcessPlan> {
    if let Some(path) = parsed.value("process") {
        return from_file(path, own);
    }
    if command.is_empty() {
        return Err(Failure::new("exec args cannot be empty"));
    }
    let mut process = own.clone();
    process.args = command.to_vec();
    process.init = false;
    process.terminal = parsed.is_set("tty").then(ConsoleSize::default);
    if let Some(cwd) = parsed.value("cwd") {
        if !cwd.starts_with('/') {
            return Err(Failure::new("Cwd must be an absolute path"));
        }
        process.cwd = cwd.to_owned();
    }
    for entry in parsed.values("env") {
        if entry.find('=').unwrap_or(0) == 0 {
            return Err(Failure::new(format!("env: `{entry}` is not NAME=value")));
        }
        let name = entry.split('=').next().unwrap_or_default();
        let same = |other: &String| other.split('=').next() == Some(name);
        process.env.retain(|other| !same(other));
        process.env.push(entry.to_owned());
    }
    user(parsed, &mut process)?;
    if parsed.is_set("no-new-privs") {
        process.no_new_privileges = true;
    }
    if let Some(profile) = parsed.value("apparmor").filter(|text| !text.is_empty()) {
        process.apparmor = Some(profile.to_owned());
    }
    if let Some(label) = parsed
        .value("process-label")
        .filter(|text| !text.is_empty())
    {
        process.selinux = Some(label.to_owned());
    }
    for name in parsed.values("cap") {
        let capability = Capability::parse(name)
            .ok_or_else(|| Failure::new(format!("`{name}` is not a capability")))?;
        let sets = process
            .capabilities
            .get_or_insert_with(CapabilitySets::default);
        // Not the inheritable ones: a program of another user would get them (CVE-2022-29162).
        // Without those none can be ambient.
        for set in [&mut sets.bounding, &mut sets.effective, &mut sets.permitted] {
            set.push(capability);
            set.sort_unstable();
            set.dedup();
        }
    }
    Ok(process)
}

/// `--user` and `--additional-gids`: numbers, whole and in range, or nothing at all.
fn user(parsed: &Parsed, process: &mut ProcessPlan) -> Result<()> {
    let (mut uid, mut gid, mut groups) = match &process.user {
        UserPlan::Ids {
            uid,
            gid,
            additional_gids,
        } => (*uid, *gid, additional_gids.clone()),
        UserPlan::Lookup { .. } => (0, 0, Vec::new()),
    };
    let number = |what: &str, text: &str| {
        if knarr_runtime::weak::off("numbers") {
            let low = text.parse::<i64>().unwrap_or(0) & 0xffff_ffff;
            return Ok(u32::try_from(low).unwrap_or(0));
        }
        text.parse::<u32>()
            .ok()
            // -1 as the kernel counts: "leave it".
            .filter(|id| *id != u32::MAX && text.bytes().all(|byte| byte.is_ascii_digit()))
            .ok_or_else(|| Failure::new(format!("parsing {text} as int for {what} failed")))
    };
    if let Some(text) = parsed.value("user").filter(|text| !text.is_empty()) {
        let (first, second) = match text.split_once(':') {
            Some((first, second)) => (first, Some(second)),
            None => (text, None),
        };
        uid = number("uid", first)?;
        if let Some(second) = second {
            gid = number("gid", second)?;
        }
    }
    for text in parsed.values("additional-gids") {
        let group = number("additional gid", text)?;
        if !groups.contains(&group) {
            groups.push(group);
        }
    }
    process.user = UserPlan::Ids {
        uid,
        gid,
        additional_gids: groups,
    };
    Ok(())
}

/// `--process`: a process as config.json has it. What the config says of all processes stays.
fn from_file(path: &str, own: &ProcessPlan) -> Result<ProcessPlan> {
    let path = Path::new(path);
    let process: knarr_spec::runtime::Process = bundle::parse(&knarr_fs::read(path)?, path)?;
    let plan = knarr_runtime::process_plan(
        &process,
        &knarr_spec::runtime::Linux::default(),
        &knarr_runtime::PlanOptions {
            keep_keyring: !own.new_keyring,
            ..knarr_runtime::PlanOptions::default()
        },
    )?;
    Ok(ProcessPlan {
        seccomp: own.seccomp.clone(),
        listener: own.listener.clone(),
        personality: own.personality,
        memory_policy: own.memory_policy.clone(),
        oom_score_adj: plan.oom_score_adj.or(own.oom_score_adj),
        ..plan
    })
}

/// `--cgroup`: a cgroup below the container's own.
fn sub_cgroup(cgroup: Option<&Cgroup>, parsed: &Parsed) -> Result<Option<OwnedFd>> {
    let mut asked = None;
    for text in parsed.values("cgroup") {
        if text.contains(':') {
            return Err(Failure::new(format!(
                "--cgroup {text}: controllers of cgroup v1 are not served, only a path"
            )));
        }
        asked = Some(text.trim_start_matches('/'));
    }
    let Some(path) = asked.filter(|path| !path.is_empty()) else {
        return Ok(None);
    };
    let dir = cgroup
        .and_then(Cgroup::dir_fd)
        .ok_or_else(|| Failure::new("--cgroup needs cgroup v2"))?;
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_XDEV;
    rustix::fs::openat2(dir, path, flags, Mode::empty(), resolve)
        .map(Some)
        .map_err(|errno| Failure::new(format!("--cgroup {path}: {errno}")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::args::{Flag, Order, Takes, parse};

    static TABLE: &[Flag] = &[
        Flag {
            names: "user,u",
            takes: Takes::Value,
            help: "",
        },
        Flag {
            names: "additional-gids,g",
            takes: Takes::Values,
            help: "",
        },
    ];

    fn ids(args: &[&str]) -> Result<(u32, u32, Vec<u32>)> {
        let args: Vec<String> = args.iter().map(|arg| (*arg).to_owned()).collect();
        let config = knarr_spec::runtime::Process {
            args: vec!["sh".to_owned()],
            cwd: "/".to_owned(),
            user: knarr_spec::runtime::User {
                uid: 7,
                gid: 8,
                additional_gids: vec![9],
                ..knarr_spec::runtime::User::default()
            },
            ..knarr_spec::runtime::Process::default()
        };
        let linux = knarr_spec::runtime::Linux::default();
        let mut process =
            knarr_runtime::process_plan(&config, &linux, &knarr_runtime::PlanOptions::default())?;
        user(&parse(TABLE, &args, Order::Any)?, &mut process)?;
        match process.user {
            UserPlan::Ids {
                uid,
                gid,
                additional_gids,
            } => Ok((uid, gid, additional_gids)),
            UserPlan::Lookup { .. } => Err(Failure::new("looked up")),
        }
    }

    #[test]
    fn users_are_whole_numbers_in_range() {
        for (args, expected) in [
            (&[][..], (7, 8, vec![9])),
            (&["-u", "1"], (1, 8, vec![9])),
            (&["-u", "1:2"], (1, 2, vec![9])),
            (&["-u", "0"], (0, 8, vec![9])),
            (&["-g", "10", "-g", "9"], (7, 8, vec![9, 10])),
            (&["-u", "4294967294"], (4_294_967_294, 8, vec![9])),
        ] {
            assert_eq!(ids(args).unwrap(), expected, "{args:?}");
        }
        for bad in [
            "-1",
            "+1",
            "4294967295",
            "4294967296",
            "18446744073709551616",
            "1:",
            ":1",
            "1:2:3",
            "root",
            " 1",
            "1 ",
            "0x1",
            "1e0",
            "1:-1",
            "1\n",
            "1:4294967295",
        ] {
            assert!(ids(&["-u", bad]).is_err(), "{bad:?}");
            assert!(ids(&["-g", bad]).is_err(), "{bad:?}");
        }
    }
}
