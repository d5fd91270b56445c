//! The commands: what each is called, takes and does.
//!
//! A [`Command`] is data too. Only the one that was called is looked at: its flags are read, its
//! arguments counted, and its function run.

mod attach;
mod commit;
mod copy;
mod create;
mod diff;
mod events;
mod exec;
mod export;
#[cfg(test)]
mod golden;
mod history;
mod image_copy;
mod image_mount;
mod image_tree;
mod images;
mod import;
mod info;
mod inspect;
mod kill;
mod load;
mod login;
mod logs;
mod manifest;
mod network;
mod pause;
mod port;
mod prune;
mod ps;
mod pull;
mod push;
mod remote;
mod remove;
mod rename;
mod restart;
mod rmi;
mod run;
mod save;
mod start;
mod stats;
mod stop;
mod system;
mod tag;
mod top;
mod trash;
mod unserved;
mod untag;
mod update;
mod version;
mod volume;
mod wait;

use std::path::PathBuf;

use knarr_diag::Class;
use knarr_engine::{Engine, Settings};

use crate::failure::{Failure, Result};
use crate::flag::{self, Flag, Parsed, Refusal};
use crate::{output, suggest};

/// How many arguments a command takes.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Arguments {
    None,
    Exactly(usize),
    AtLeast(usize),
    AtMost(usize),
    Between(usize, usize),
}

/// Which exit code a failure has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Exits {
    /// Always 1.
    One,
    /// Docker's 125, 126 and 127 (`run`, `create`).
    Run,
    /// 126 and 127 for the command's own faults, else 1 (`exec`).
    Exec,
}

/// A command.
pub(crate) struct Command {
    /// What it is called, the usual name first: `ps`, `container ls`, …
    names: &'static [&'static str],
    /// What follows the name in the usage line.
    usage: &'static str,
    /// One sentence.
    about: &'static str,
    flags: &'static [&'static [Flag]],
    arguments: Arguments,
    /// Whether flags may follow arguments.
    interspersed: bool,
    exits: Exits,
    run: fn(&Call<'_>) -> Result<u8>,
}

/// Most commands' settings; the others are given with `..`.
const USUAL: Command = Command {
    names: &[],
    usage: "",
    about: "",
    flags: &[],
    arguments: Arguments::None,
    interspersed: true,
    exits: Exits::One,
    run: |_| Ok(0),
};

/// What was said before the command's name.
#[derive(Debug, Default)]
pub(crate) struct Globals {
    pub(crate) root: Option<PathBuf>,
    pub(crate) run_root: Option<PathBuf>,
    /// The folder with Docker's `config.json`, where one was named.
    pub(crate) config: Option<PathBuf>,
}

/// A command being run.
pub(crate) struct Call<'a> {
    globals: &'a Globals,
    line: Parsed,
}

impl Call<'_> {
    /// Opens the engine.
    fn engine(&self) -> Result<Engine> {
        let settings = Settings::locate(self.globals.root.clone(), self.globals.run_root.clone())?;
        Ok(Engine::open(settings)?)
    }

    fn arg(&self, index: usize) -> &str {
        self.line.args.get(index).map_or("", String::as_str)
    }
}

static COMMANDS: &[&Command] = &[
    &run::COMMAND,
    &exec::COMMAND,
    &ps::COMMAND,
    &pull::COMMAND,
    &images::COMMAND,
    &version::COMMAND,
    &info::COMMAND,
    &attach::COMMAND,
    &commit::COMMAND,
    &copy::COMMAND,
    &create::COMMAND,
    &diff::COMMAND,
    &events::COMMAND,
    &export::COMMAND,
    &history::COMMAND,
    &import::COMMAND,
    &inspect::COMMAND,
    &kill::COMMAND,
    &load::COMMAND,
    &login::LOGIN,
    &login::LOGOUT,
    &manifest::ADD,
    &manifest::ANNOTATE,
    &manifest::CREATE,
    &manifest::INSPECT,
    &manifest::PUSH,
    &manifest::REMOVE,
    &logs::COMMAND,
    &network::AUDIT,
    &network::CONNECT,
    &network::CREATE,
    &network::DISCONNECT,
    &network::INSPECT,
    &network::LIST,
    &network::PRUNE,
    &network::PUBLISH,
    &network::REMOVE,
    &network::UNPUBLISH,
    &pause::PAUSE,
    &port::COMMAND,
    &push::COMMAND,
    &rename::COMMAND,
    &restart::COMMAND,
    &remove::COMMAND,
    &rmi::COMMAND,
    &save::COMMAND,
    &remote::SEARCH,
    &start::COMMAND,
    &stats::COMMAND,
    &stop::COMMAND,
    &tag::COMMAND,
    &top::COMMAND,
    &pause::UNPAUSE,
    &untag::COMMAND,
    &update::COMMAND,
    &wait::COMMAND,
    &inspect::CONTAINER,
    &inspect::IMAGE,
    &image_copy::COMMAND,
    &image_mount::MOUNT,
    &image_tree::COMMAND,
    &image_mount::UNMOUNT,
    &remote::TAGS,
    &remote::DELETE,
    &prune::CONTAINERS,
    &prune::IMAGES,
    &system::CHECK,
    &system::DF,
    &system::PRUNE,
    &trash::EMPTY,
    &volume::CREATE,
    &volume::INSPECT,
    &volume::LIST,
    &volume::PRUNE,
    &volume::REMOVE,
];

/// The commands that hold others, with what the help says of them.
static GROUPS: &[(&str, &str)] = &[
    ("container", "Manage containers"),
    ("image", "Manage images"),
    ("manifest", "Manage image manifests and manifest lists"),
    ("network", "Manage networks"),
    ("system", "Manage Knarr"),
    ("volume", "Manage volumes"),
];

/// The flags before a command's name.
static GLOBAL: &[Flag] = &[
    Flag::with(
        "config",
        "string",
        "Folder with Docker's config.json (credentials)",
    ),
    Flag::switch("debug", "Enable debug mode").short('D'),
    Flag::with("log-level", "string", "Accepted for Docker's sake")
        .short('l')
        .default("\"info\""),
    Flag::with(
        "root",
        "string",
        "Folder for images, containers and volumes (KNARR_ROOT)",
    )
    .default("\"/var/lib/knarr\""),
    Flag::with(
        "runroot",
        "string",
        "Folder for what a reboot forgets (KNARR_RUNROOT)",
    )
    .default("\"/run/knarr\""),
    Flag::switch("version", "Print version information and quit").short('v'),
    Flag::with("host", "list", "")
        .short('H')
        .refused("Knarr has no daemon to connect to"),
    Flag::with("context", "string", "")
        .short('c')
        .refused("Knarr has no daemon to connect to"),
    Flag::switch("tls", "").refused("Knarr has no daemon to connect to"),
    Flag::switch("tlsverify", "").refused("Knarr has no daemon to connect to"),
    Flag::with("tlscacert", "string", "").refused("Knarr has no daemon to connect to"),
    Flag::with("tlscert", "string", "").refused("Knarr has no daemon to connect to"),
    Flag::with("tlskey", "string", "").refused("Knarr has no daemon to connect to"),
];

/// Reads the whole command line, does what it says and gives the exit code.
pub(crate) fn main(args: &[String]) -> u8 {
    let global = match flag::parse(&[GLOBAL], args, false) {
        Ok(global) => global,
        Err(Refusal::Help) => return finish(help(&[]), Exits::One, None),
        Err(refusal) => return finish(Err(refused(refusal)), Exits::Run, None),
    };
    let globals = Globals {
        root: global.get("root").map(PathBuf::from),
        run_root: global.get("runroot").map(PathBuf::from),
        config: global.get("config").map(PathBuf::from),
    };
    if global.on("version") {
        let version = format!("Knarr version {}", env!("CARGO_PKG_VERSION"));
        return finish(output::line(&version).map(|()| 0), Exits::One, None);
    }
    let words: Vec<&str> = global.args.iter().map(String::as_str).collect();
    match find(&words) {
        Found::Command(command, used) => {
            let args = global.args.get(used..).unwrap_or_default();
            let done = invoke(command, args, &globals);
            finish(done, command.exits, Some(command))
        }
        Found::Help(path) => finish(help(&path), Exits::One, None),
        Found::Unknown(failure) => finish(Err(failure), Exits::One, None),
    }
}

enum Found {
    /// The command, and how many words its name took.
    Command(&'static Command, usize),
    /// Help for this much of a name was asked for.
    Help(Vec<String>),
    Unknown(Failure),
}

fn command(name: &str) -> Option<&'static Command> {
    COMMANDS
        .iter()
        .copied()
        .find(|command| command.names.contains(&name))
}

fn find(words: &[&str]) -> Found {
    let Some((first, rest)) = words.split_first() else {
        return Found::Help(Vec::new());
    };
    if *first == "help" {
        return Found::Help(rest.iter().map(|word| (*word).to_owned()).collect());
    }
    if let Some(command) = command(first) {
        return Found::Command(command, 1);
    }
    if GROUPS.iter().any(|(group, _)| group == first) {
        return match rest.first() {
            None | Some(&("--help" | "-h" | "help")) => Found::Help(vec![(*first).to_owned()]),
            Some(second) => match command(&format!("{first} {second}")) {
                Some(command) => Found::Command(command, 2),
                None => Found::Unknown(unknown(&format!("{first} {second}"))),
            },
        };
    }
    Found::Unknown(unknown(first))
}

fn unknown(name: &str) -> Failure {
    if let Some(why) = unserved::command(name) {
        return Failure::of(
            Class::Unsupported,
            "command-not-served",
            format!("`knarr {name}` is not served yet"),
        )
        .hint(why);
    }
    let failure = Failure::of(
        Class::NotFound,
        "unknown-command",
        format!("unknown command: knarr {name}"),
    );
    let names = COMMANDS.iter().flat_map(|command| command.names).copied();
    match suggest::nearest(name, names) {
        Some(near) => failure.hint(format!("did you mean `knarr {near}`?")),
        None => failure.hint("run `knarr --help` for the list of commands"),
    }
}

fn refused(refusal: Refusal) -> Failure {
    match refusal {
        Refusal::Help => Failure::silent(0),
        Refusal::Usage(text, hint) => {
            let mut failure = Failure::of(Class::Invalid, "usage", text).exit(125);
            failure.usage = true;
            match hint {
                Some(hint) => failure.hint(hint),
                None => failure,
            }
        }
        Refusal::NotServed(flag, why) => Failure::of(
            Class::Unsupported,
            "flag-not-served",
            format!("{flag} is not served by Knarr yet: {why}"),
        )
        .exit(125),
    }
}

fn invoke(command: &'static Command, args: &[String], globals: &Globals) -> Result<u8> {
    let line = match flag::parse(command.flags, args, command.interspersed) {
        Ok(line) => line,
        Err(Refusal::Help) => return output::print(&command_help(command)).map(|()| 0),
        Err(refusal) => return Err(refused(refusal)),
    };
    let count = line.args.len();
    let wanted = match command.arguments {
        Arguments::None if count > 0 => Some("accepts no arguments".to_owned()),
        Arguments::Exactly(n) if count != n => Some(format!("requires {}", arguments(n))),
        Arguments::AtLeast(n) if count < n => Some(format!("requires at least {}", arguments(n))),
        Arguments::AtMost(n) if count > n => Some(format!("requires at most {}", arguments(n))),
        Arguments::Between(least, most) if count < least || count > most => Some(format!(
            "requires at least {least} and at most {}",
            arguments(most)
        )),
        _ => None,
    };
    if let Some(wanted) = wanted {
        let name = command.names.first().copied().unwrap_or_default();
        let text = format!("'knarr {name}' {wanted}");
        let mut failure = Failure::of(Class::Invalid, "usage", text).exit(1);
        failure.usage = true;
        return Err(failure);
    }
    (command.run)(&Call { globals, line })
}

fn arguments(count: usize) -> String {
    match count {
        1 => "1 argument".to_owned(),
        n => format!("{n} arguments"),
    }
}

/// Renders a failure, once, and gives the exit code.
fn finish(done: Result<u8>, exits: Exits, command: Option<&Command>) -> u8 {
    let failure = match done {
        Ok(code) => return code,
        Err(failure) => failure,
    };
    for report in &failure.reports {
        output::note(&report.to_string());
    }
    if failure.usage {
        let name = command.and_then(|command| command.names.first());
        let usage = command.map_or("[OPTIONS] COMMAND [ARG...]", |command| command.usage);
        let name = name.map(|name| format!(" {name}")).unwrap_or_default();
        output::note(&format!(
            "\nUsage:  knarr{name} {usage}\n\nRun 'knarr{name} --help' for more information"
        ));
    }
    let class = failure.reports.first().map(|report| report.class);
    failure.exit.unwrap_or(match (exits, class) {
        (Exits::Run, Some(class)) => class.run_exit_code(),
        // Of its engine's own failures `docker exec` says 1.
        (Exits::Exec, Some(class)) => match class.run_exit_code() {
            125 => 1,
            command => command,
        },
        _ => 1,
    })
}

fn help(path: &[String]) -> Result<u8> {
    let words: Vec<&str> = path.iter().map(String::as_str).collect();
    let text = match find(&words) {
        _ if path.is_empty() => main_help(),
        Found::Command(command, _) => command_help(command),
        Found::Help(_) => group_help(path.first().map_or("", String::as_str)),
        Found::Unknown(failure) => return Err(failure),
    };
    output::print(&text)?;
    Ok(0)
}

fn command_help(command: &Command) -> String {
    let name = command.names.first().copied().unwrap_or_default();
    let usage = command.usage;
    let mut text = format!("Usage:  knarr {name} {usage}\n\n{}\n", command.about);
    if command.names.len() > 1 {
        let mut names: Vec<String> = command.names.iter().map(|n| format!("knarr {n}")).collect();
        names.sort();
        text.push_str(&format!("\nAliases:\n  {}\n", names.join(", ")));
    }
    let flags = flag::help::table(command.flags);
    if !flags.is_empty() {
        text.push_str(&format!("\nOptions:\n{flags}"));
    }
    text
}

fn rows(title: &str, rows: &[(&str, &str)]) -> String {
    let width = rows.iter().map(|(name, _)| name.len()).max().unwrap_or(0);
    let mut text = format!("\n{title}:\n");
    for (name, about) in rows {
        text.push_str(&format!("  {name:width$}   {about}\n"));
    }
    text
}

fn main_help() -> String {
    const COMMON: [&str; 7] = ["run", "exec", "ps", "pull", "images", "version", "info"];
    let mut text =
        "Usage:  knarr [OPTIONS] COMMAND\n\nRuns containers: no daemon, no unpacking\n".to_owned();
    let short = |command: &&'static Command| -> Option<(&'static str, &'static str)> {
        let name = command.names.iter().find(|name| !name.contains(' '))?;
        Some((*name, command.about))
    };
    let (common, mut other): (Vec<_>, Vec<_>) = COMMANDS
        .iter()
        .filter_map(short)
        .partition(|(name, _)| COMMON.contains(name));
    other.sort_unstable();
    text.push_str(&rows("Common Commands", &common));
    text.push_str(&rows("Management Commands", GROUPS));
    text.push_str(&rows("Commands", &other));
    let flags = flag::help::table(&[GLOBAL]);
    text.push_str(&format!(
        "\nGlobal Options:\n{flags}\nRun 'knarr COMMAND --help' for more information on a command.\n"
    ));
    text
}

fn group_help(group: &str) -> String {
    let about = GROUPS.iter().find(|(name, _)| *name == group);
    let about = about.map_or("", |(_, about)| *about);
    let prefix = format!("{group} ");
    let mut found = Vec::new();
    for command in COMMANDS {
        let mut names = command
            .names
            .iter()
            .filter_map(|name| name.strip_prefix(&prefix));
        found.extend(names.next().map(|name| (name, command.about)));
        // One without a word about it is not for people.
        found.retain(|(_, about)| !about.is_empty());
    }
    found.sort_unstable();
    let commands = rows("Commands", &found);
    format!(
        "Usage:  knarr {group} COMMAND\n\n{about}\n{commands}\n\
         Run 'knarr {group} COMMAND --help' for more information on a command.\n"
    )
}
