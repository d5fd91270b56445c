//! The commands: their words, and which function does them.

use std::path::PathBuf;
use std::process::ExitCode;

use knarr_runtime::rootless::is_nested;
use rustix::process::geteuid;

use crate::args::{self, Flag, Order, Parsed, Takes};
use crate::failure::{Failure, Result};
use crate::log::Log;

/// Where state is kept unless `--root` says otherwise. Not runc's place: the two would not
/// understand each other's state.
const ROOT: &str = "/run/knarr-oci";

/// What all commands are told.
#[derive(Debug)]
pub(crate) struct Globals {
    pub(crate) root: PathBuf,
    pub(crate) log: Log,
    /// `cgroupsPath` is `slice:prefix:name`.
    pub(crate) systemd_cgroup: bool,
    /// What `--rootless` says; none for auto.
    rootless: Option<bool>,
}

impl Globals {
    /// Whether the caller is not the machine's root, and so may have to do without cgroups.
    pub(crate) fn rootless(&self) -> bool {
        self.rootless
            .unwrap_or_else(|| !geteuid().is_root() || is_nested())
    }
}

/// Where state is unless `--root` says it: who is not the machine's root has a folder for that.
fn default_root() -> PathBuf {
    match std::env::var_os("XDG_RUNTIME_DIR") {
        Some(own)
            if !own.is_empty()
                && (!geteuid().is_root()
                    || crate::rootless::entered()
                    || (is_nested()
                        && std::env::var_os("USER").is_none_or(|user| user != "root"))) =>
        {
            PathBuf::from(own).join("knarr-oci")
        }
        _ => PathBuf::from(ROOT),
    }
}

/// How many arguments a command takes.
#[derive(Debug, Clone, Copy)]
enum Count {
    Exactly(usize),
    AtLeast(usize),
}

/// One command.
struct Command {
    name: &'static str,
    /// What follows the name, and the flags, in the usage line.
    usage: &'static str,
    help: &'static str,
    count: Count,
    order: Order,
    flags: &'static [Flag],
    /// What stands before the reason when it fails; nothing for most.
    failed: &'static str,
    run: fn(&mut Globals, &Parsed) -> Result<ExitCode>,
}

/// A command on one container without flags of its own.
const fn command(
    name: &'static str,
    usage: &'static str,
    help: &'static str,
    run: fn(&mut Globals, &Parsed) -> Result<ExitCode>,
) -> Command {
    Command {
        name,
        usage,
        help,
        count: Count::Exactly(1),
        order: Order::Any,
        flags: &[],
        failed: "",
        run,
    }
}

const fn flag(names: &'static str, help: &'static str) -> Flag {
    Flag {
        names,
        takes: Takes::Nothing,
        help,
    }
}

pub(crate) const fn value(names: &'static str, help: &'static str) -> Flag {
    Flag {
        names,
        takes: Takes::Value,
        help,
    }
}

const fn values(names: &'static str, help: &'static str) -> Flag {
    Flag {
        names,
        takes: Takes::Values,
        help,
    }
}

const BUNDLE: Flag = value(
    "bundle,b",
    "the folder with config.json; the current one by default",
);
const CONSOLE: Flag = value(
    "console-socket",
    "Unix socket that gets the terminal's master end",
);
const PID_FILE: Flag = value("pid-file", "file to write the process id to");
const PIDFD_SOCKET: Flag = value(
    "pidfd-socket",
    "Unix socket that gets a pidfd of the process",
);
const NO_PIVOT: Flag = flag(
    "no-pivot",
    "chroot instead of pivot_root, for a root on a ramdisk",
);
const NO_KEYRING: Flag = flag("no-new-keyring", "keep the caller's session keyring");
const PRESERVE: Flag = value(
    "preserve-fds",
    "so many descriptors from 3 on stay open in it",
);
const DETACH: Flag = flag("detach,d", "do not wait for the process");
const FORMAT: Flag = value("format,f", "table or json");

static GLOBALS: &[Flag] = &[
    flag("debug", "accepted; there is nothing more to tell"),
    value("log", "file for log lines (default: /dev/stderr)"),
    value("log-format", "text or json (default: text)"),
    value(
        "root",
        "folder for containers' state (default: /run/knarr-oci, or $XDG_RUNTIME_DIR/knarr-oci for all but root)",
    ),
    value(
        "criu",
        "ignored with a warning, as runc does: checkpoints are not served",
    ),
    flag(
        "systemd-cgroup",
        "cgroups through systemd; cgroupsPath is slice:prefix:name",
    ),
    value(
        "rootless",
        "whether a cgroup that cannot be made is left out: true, false, or auto (default: auto), which is true for all but root",
    ),
    flag("help,h", "show this"),
    flag("version,v", "print the version"),
];

static COMMANDS: &[Command] = &[
    Command {
        flags: &[
            BUNDLE,
            CONSOLE,
            PIDFD_SOCKET,
            PID_FILE,
            NO_PIVOT,
            NO_KEYRING,
            PRESERVE,
        ],
        failed: "knarr-oci create failed",
        ..command(
            "create",
            "<container-id>",
            "create a container from a bundle; its process waits for `start`",
            crate::create::create,
        )
    },
    Command {
        flags: &[flag("force,f", "kill it first if it runs")],
        ..command(
            "delete",
            "<container-id>",
            "remove what is left of a container that has stopped",
            crate::delete::delete,
        )
    },
    Command {
        flags: &[
            value("interval", "between statistics (default: 5s)"),
            flag("stats", "print statistics once"),
        ],
        ..command(
            "events",
            "<container-id>",
            "print statistics at an interval, and when memory runs out",
            crate::events::events,
        )
    },
    Command {
        count: Count::AtLeast(1),
        order: Order::FlagsFirst,
        flags: &[
            CONSOLE,
            PIDFD_SOCKET,
            value("cwd", "working directory"),
            values("env,e", "set a variable"),
            flag("tty,t", "with a terminal"),
            value("user,u", "<uid>[:<gid>]"),
            values("additional-gids,g", "more groups"),
            value("process,p", "file with the process, as in config.json"),
            DETACH,
            PID_FILE,
            value("process-label", "SELinux's label"),
            value("apparmor", "AppArmor's profile"),
            flag("no-new-privs", "set no_new_privs"),
            values("cap,c", "add a capability"),
            PRESERVE,
            values("cgroup", "sub-cgroup to run in: [<controller>:]<path>"),
            flag("ignore-paused", "even if the container is paused"),
        ],
        failed: "exec failed",
        ..command(
            "exec",
            "<container-id> <command> [args...] || -p process.json <container-id>",
            "run one more process in a container",
            crate::exec::exec,
        )
    },
    Command {
        count: Count::Exactly(0),
        ..command(
            "features",
            "",
            "tell what is served, as JSON",
            crate::features::features,
        )
    },
    Command {
        count: Count::AtLeast(1),
        flags: &[flag("all,a", "to all its processes")],
        ..command(
            "kill",
            "<container-id> [signal]",
            "send a signal (default: SIGTERM) to the container's first process",
            crate::kill::kill,
        )
    },
    Command {
        count: Count::Exactly(0),
        flags: &[FORMAT, flag("quiet,q", "names only")],
        ..command("list", "", "list containers", crate::list::list)
    },
    command(
        "pause",
        "<container-id>",
        "stop all processes of a container where they are",
        crate::kill::pause,
    ),
    Command {
        count: Count::AtLeast(1),
        order: Order::FlagsFirst,
        flags: &[FORMAT],
        ..command(
            "ps",
            "<container-id> [ps options]",
            "show the processes of a container",
            crate::processes::ps,
        )
    },
    command(
        "resume",
        "<container-id>",
        "let the processes of a paused container go on",
        crate::kill::resume,
    ),
    Command {
        flags: &[
            BUNDLE,
            CONSOLE,
            PIDFD_SOCKET,
            DETACH,
            flag("keep", "do not delete the container when it ends"),
            PID_FILE,
            flag(
                "no-subreaper",
                "do not adopt what the container leaves behind",
            ),
            NO_PIVOT,
            NO_KEYRING,
            PRESERVE,
        ],
        failed: "knarr-oci run failed",
        ..command(
            "run",
            "<container-id>",
            "create a container, start it, and wait for it",
            crate::create::run,
        )
    },
    Command {
        count: Count::Exactly(0),
        flags: &[BUNDLE, flag("rootless", "for a caller who is not root")],
        ..command(
            "spec",
            "",
            "write a config.json to begin with",
            crate::skeleton::spec,
        )
    },
    command(
        "start",
        "<container-id>",
        "run the program of a created container",
        crate::start::start,
    ),
    command(
        "state",
        "<container-id>",
        "tell a container's state, as JSON",
        crate::list::state,
    ),
    Command {
        flags: crate::update::FLAGS,
        ..command(
            "update",
            "<container-id>",
            "change the limits of a container",
            crate::update::update,
        )
    },
];

/// Understands the command line and does what it says.
pub(crate) fn run() -> ExitCode {
    // Every word of the interface is text; what is not cannot name anything.
    let args: Vec<String> = std::env::args_os()
        .skip(1)
        .map(|arg| arg.to_string_lossy().into_owned())
        .collect();
    let mut early = Log::default();
    let wanted = match args::parse(GLOBALS, &args, Order::FlagsFirst) {
        Ok(wanted) => wanted,
        Err(failure) => {
            println!("Incorrect Usage. {}\n", failure.message);
            print_usage();
            early.error(&failure.message);
            return ExitCode::from(1);
        }
    };
    let mut log = match Log::open(wanted.value("log"), wanted.value("log-format")) {
        Ok(log) => log,
        Err(failure) => {
            early.error(&failure.message);
            return ExitCode::from(1);
        }
    };
    if wanted.is_set("version") {
        println!(
            "knarr-oci version {}\ncommit: {}\nspec: {}",
            env!("CARGO_PKG_VERSION"),
            env!("CARGO_PKG_VERSION"),
            knarr_spec::runtime::OCI_VERSION
        );
        return ExitCode::SUCCESS;
    }
    let Some((name, rest)) = wanted.rest.split_first() else {
        print_usage();
        return ExitCode::SUCCESS;
    };
    if wanted.is_set("help") || matches!(name.as_str(), "help" | "h") {
        match rest.first().and_then(|name| find(name)) {
            Some(command) => print_command(command),
            None => print_usage(),
        }
        return ExitCode::SUCCESS;
    }
    if matches!(name.as_str(), "checkpoint" | "restore") {
        log.error(&format!(
            "{name} is not served yet (checkpoint the program by its own means, or run the container with runc)"
        ));
        return ExitCode::FAILURE;
    }
    let Some(command) = find(name) else {
        log.error(&format!("No help topic for '{name}'"));
        return ExitCode::from(3);
    };
    let mut globals = Globals {
        root: wanted
            .value("root")
            .filter(|root| !root.is_empty())
            .map_or_else(default_root, PathBuf::from),
        systemd_cgroup: wanted.is_set("systemd-cgroup"),
        rootless: None,
        log,
    };
    if wanted.value("criu").is_some_and(|path| !path.is_empty()) {
        let ignored = "--criu is ignored: knarr-oci makes no checkpoints (leave it out)";
        globals.log.warning(ignored);
    }
    let done = rootless(wanted.value("rootless")).and_then(|rootless| {
        globals.rootless = rootless;
        invoke(command, &mut globals, rest)
    });
    match done {
        Ok(code) => code,
        Err(mut failure) => {
            if !command.failed.is_empty() && !failure.usage {
                failure = failure.during(command.failed);
            }
            globals.log.error(&failure.message);
            ExitCode::from(failure.code)
        }
    }
}

/// `--rootless`; none for auto.
fn rootless(word: Option<&str>) -> Result<Option<bool>> {
    match word {
        None | Some("" | "auto") => Ok(None),
        Some("0" | "f" | "F" | "false" | "FALSE" | "False") => Ok(Some(false)),
        Some("1" | "t" | "T" | "true" | "TRUE" | "True") => Ok(Some(true)),
        Some(other) => Err(Failure::usage(format!(
            "--rootless: `{other}` is not true, false or auto"
        ))),
    }
}

fn invoke(command: &Command, globals: &mut Globals, args: &[String]) -> Result<ExitCode> {
    if args
        .iter()
        .any(|arg| matches!(arg.as_str(), "--help" | "-h"))
        && command.order == Order::Any
    {
        print_command(command);
        return Ok(ExitCode::SUCCESS);
    }
    let parsed = args::parse(command.flags, args, command.order).inspect_err(|failure| {
        println!("Incorrect Usage: {}\n", failure.message);
        print_command(command);
    })?;
    let found = parsed.rest.len();
    let wrong = match command.count {
        Count::Exactly(count) if found != count => Some(format!("exactly {count} argument(s)")),
        Count::AtLeast(count) if found < count => Some(format!("a minimum of {count} argument(s)")),
        _ => None,
    };
    if let Some(wrong) = wrong {
        println!("Incorrect Usage.\n");
        print_command(command);
        let name = command.name;
        return Err(Failure::usage(format!(
            "knarr-oci: \"{name}\" requires {wrong}"
        )));
    }
    (command.run)(globals, &parsed)
}

fn find(name: &str) -> Option<&'static Command> {
    COMMANDS.iter().find(|command| command.name == name)
}

fn print_flags(flags: &[Flag]) {
    let width = flags.iter().map(|flag| flag.shown().len()).max();
    for flag in flags {
        println!(
            "   {:width$}  {}",
            flag.shown(),
            flag.help,
            width = width.unwrap_or(0)
        );
    }
}

fn print_command(command: &Command) {
    let (name, help, usage) = (command.name, command.help, command.usage);
    let options = if command.flags.is_empty() {
        ""
    } else {
        "[command options] "
    };
    println!("NAME:\n   knarr-oci {name} - {help}\n\nUSAGE:\n   knarr-oci {name} {options}{usage}");
    if !command.flags.is_empty() {
        println!("\nOPTIONS:");
        print_flags(command.flags);
    }
}

fn print_usage() {
    println!(
        "NAME:\n   knarr-oci - run containers as the OCI runtime specification says\n\n\
         USAGE:\n   knarr-oci [global options] command [command options] [arguments...]\n\n\
         COMMANDS:"
    );
    for command in COMMANDS {
        println!("   {:9} {}", command.name, command.help);
    }
    println!("\nGLOBAL OPTIONS:");
    print_flags(GLOBALS);
}
