//! The help of every command, against golden files.

use super::*;

/// Renews the golden files instead of comparing with them.
const BLESS: &str = "KNARR_BLESS";

fn compare(name: &str, text: &str) {
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("golden")
        .join(name);
    if std::env::var_os(BLESS).is_some() {
        std::fs::write(&path, text).unwrap();
    }
    let golden = std::fs::read_to_string(&path).unwrap_or_default();
    assert_eq!(text, golden, "{name} differs; `cargo x bless` renews it");
}

#[test]
fn the_help_of_run_is_reviewed() {
    compare("run-help.txt", &command_help(&run::COMMAND));
}

#[test]
fn the_main_help_is_reviewed() {
    compare("help.txt", &main_help());
}

#[test]
fn every_command_has_a_name_a_help_and_tidy_flags() {
    let mut names: Vec<&str> = Vec::new();
    for command in COMMANDS {
        let help = command_help(command);
        let name = command.names.first().unwrap();
        assert!(help.starts_with(&format!("Usage:  knarr {name}")), "{help}");
        for line in help.lines() {
            let about = line.starts_with(command.about) && !command.about.is_empty();
            let aliases = line.starts_with("  knarr ");
            assert!(about || aliases || line.chars().count() <= 80, "{line}");
        }
        let mut flags: Vec<&str> = Vec::new();
        let mut letters: Vec<char> = Vec::new();
        for flag in command.flags.iter().copied().flatten() {
            assert!(!flags.contains(&flag.name), "{name} --{} twice", flag.name);
            flags.push(flag.name);
            if let Some(letter) = flag.short {
                assert!(!letters.contains(&letter), "{name} -{letter} twice");
                letters.push(letter);
            }
        }
        names.extend(command.names);
    }
    let mut unique = names.clone();
    unique.sort_unstable();
    unique.dedup();
    assert_eq!(unique.len(), names.len());
}

/// Every command of `docker --help` (28.2) and of its management commands.
#[test]
fn every_command_of_docker_is_served_or_refused_by_name() {
    let docker = "run exec ps build pull push images login logout search version info builder \
        checkpoint context manifest network plugin trust config node secret service stack swarm \
        attach commit cp create diff events export history import inspect kill load logs pause port \
        rename restart rm rmi save start stats stop tag top unpause update wait compose";
    let groups = "container:attach commit cp create diff exec export inspect kill logs ls pause port \
        prune rename restart rm run start stats stop top unpause update wait;image:build history \
        import inspect load ls prune pull push rm save tag;system:df events info prune;network:connect create disconnect inspect ls prune rm;volume:create \
        inspect ls prune rm update";
    let mut all: Vec<String> = docker.split_whitespace().map(str::to_owned).collect();
    for group in groups.split(';') {
        let (group, commands) = group.split_once(':').unwrap();
        all.extend(
            commands
                .split_whitespace()
                .map(|name| format!("{group} {name}")),
        );
    }
    for name in all {
        let is_group = GROUPS.iter().any(|(group, _)| *group == name);
        let known = is_group || command(&name).is_some();
        assert!(known || unserved::command(&name).is_some(), "{name}");
    }
}

fn report(words: &[&str]) -> (String, Option<u8>) {
    let done = match find(words) {
        Found::Command(command, used) => {
            let args: Vec<String> = words[used..].iter().map(|w| (*w).to_owned()).collect();
            invoke(command, &args, &Globals::default())
        }
        Found::Unknown(failure) => Err(failure),
        Found::Help(_) => Ok(0),
    };
    let failure = done.unwrap_err();
    (failure.reports.first().unwrap().to_string(), failure.exit)
}

#[test]
fn what_is_wrong_with_a_line_is_told_with_dockers_exit_code() {
    for (words, text, exit) in [
        (
            vec!["run"],
            "error: 'knarr run' requires at least 1 argument",
            Some(1),
        ),
        (
            vec!["exec", "a"],
            "error: 'knarr exec' requires at least 2 arguments",
            Some(1),
        ),
        (
            vec!["rename", "a"],
            "error: 'knarr rename' requires 2 arguments",
            Some(1),
        ),
        (
            vec!["images", "a", "b"],
            "error: 'knarr images' requires at most 1 argument",
            Some(1),
        ),
        (
            vec!["version", "a"],
            "error: 'knarr version' accepts no arguments",
            Some(1),
        ),
        (
            vec!["ps", "-Z"],
            "error: unknown shorthand flag: 'Z' in -Z",
            Some(125),
        ),
        (
            vec!["ps", "--al"],
            "error: unknown flag: --al\n  hint: did you mean `--all`?",
            Some(125),
        ),
        (
            vec!["run", "--gpus", "all", "img"],
            "error: --gpus is not served by Knarr yet: no vendor's device description is read; pass \
             single devices with --device",
            Some(125),
        ),
        (
            vec!["run", "--link", "a", "img"],
            "error: --link is not served by Knarr yet: containers on the same network reach each \
             other by name",
            Some(125),
        ),
        (
            vec!["rnu"],
            "error: unknown command: knarr rnu\n  hint: did you mean `knarr run`?",
            None,
        ),
        (
            vec!["container", "lss"],
            "error: unknown command: knarr container lss\n  hint: did you mean `knarr container ls`?",
            None,
        ),
    ] {
        assert_eq!(report(&words), (text.to_owned(), exit), "{words:?}");
    }
}
