//! `login` and `logout`.

use std::io::Read as _;

use knarr_distribution::{Client, Credentials, Settings, credentials};

use super::{Arguments, Call, Command, USUAL, pull};
use crate::failure::{Failure, Result};
use crate::flag::Flag;
use crate::request::flags;
use crate::{output, terminal};

pub(super) static LOGIN: Command = Command {
    names: &["login"],
    usage: "[OPTIONS] [SERVER]",
    about: "Authenticate to a registry",
    flags: &[&[
        flags::AUTHFILE,
        flags::CERT_DIR,
        Flag::switch("get-login", "Print the user who is logged in"),
        Flag::with(
            "password",
            "string",
            "Password or Personal Access Token (PAT)",
        )
        .short('p'),
        Flag::switch("password-stdin", "Take the Password or PAT from stdin"),
        flags::TLS_VERIFY,
        Flag::with("username", "string", "Username").short('u'),
    ]],
    arguments: Arguments::AtMost(1),
    run: login,
    ..USUAL
};

pub(super) static LOGOUT: Command = Command {
    names: &["logout"],
    usage: "[SERVER]",
    about: "Log out from a registry",
    flags: &[&[
        Flag::switch("all", "Log out from every registry").short('a'),
        flags::AUTHFILE,
    ]],
    arguments: Arguments::AtMost(1),
    run: logout,
    ..USUAL
};

/// The registry that was typed, or Docker Hub: as a key of credentials, and its host.
fn server(call: &Call<'_>) -> Result<(String, String)> {
    let typed = call.arg(0);
    let bare = typed
        .strip_prefix("https://")
        .or_else(|| typed.strip_prefix("http://"));
    let key = match bare {
        // What Docker wants written as a URL is a host.
        Some(bare) => bare.split('/').next().unwrap_or(bare),
        None => typed.trim_end_matches('/'),
    };
    let key = match key {
        "" | "index.docker.io" | "registry-1.docker.io" => "docker.io",
        key => key,
    };
    let host = key.split('/').next().unwrap_or(key).to_owned();
    if format!("{host}/a")
        .parse::<knarr_spec::Reference>()
        .map(|r| r.registry() == host)
        != Ok(true)
    {
        return Err(
            Failure::invalid(format!("{typed} is not the name of a registry"))
                .hint("name its host, such as quay.io or localhost:5000"),
        );
    }
    Ok((key.to_owned(), host))
}

fn settings(call: &Call<'_>) -> Result<Settings> {
    Ok(pull::options(call)?.registry)
}

fn login(call: &Call<'_>) -> Result<u8> {
    let line = &call.line;
    let (key, host) = server(call)?;
    let settings = settings(call)?;
    if line.on("get-login") {
        return match credentials::user_of(&settings, &key)? {
            Some(user) => output::line(&user).map(|()| 0),
            None => Err(Failure::invalid(format!("not logged in to {key}"))),
        };
    }
    let given = ask(call, &key, &settings)?;
    let client = Client::new(Settings {
        credentials: None,
        ..settings.clone()
    })
    .on_retry(output::note);
    let secret = client.session()?.login(&host, &given)?;
    let place = credentials::store(&settings, &key, &secret)?;
    if place.helper.is_none() {
        output::note(&format!(
            "WARNING! Your credentials are stored unencrypted in '{place}'.\n\
             Configure a credential helper to remove this warning."
        ));
    }
    output::line("Login Succeeded")?;
    Ok(0)
}

/// The name and password: from the flags, standard input or the terminal.
fn ask(call: &Call<'_>, key: &str, settings: &Settings) -> Result<Credentials> {
    let line = &call.line;
    let from_stdin = line.on("password-stdin");
    let mut user = line.text("username").to_owned();
    if from_stdin {
        if line.given("password") {
            return Err(Failure::invalid(
                "--password and --password-stdin are mutually exclusive",
            ));
        }
        if user.is_empty() {
            return Err(Failure::invalid(
                "Must provide --username with --password-stdin",
            ));
        }
        let mut text = String::new();
        std::io::stdin()
            .take(1 << 20)
            .read_to_string(&mut text)
            .map_err(|error| Failure::io("cannot read the password from standard input", &error))?;
        let password = text.trim_end_matches(['\r', '\n']).to_owned();
        return complete(user, password);
    }
    if line.given("password") {
        output::note("WARNING! Using --password via the CLI is insecure. Use --password-stdin.");
    }
    let password = line.text("password").to_owned();
    if user.is_empty() || password.is_empty() {
        if !terminal::is_terminal(std::io::stdin()) {
            return Err(Failure::invalid(
                "cannot perform an interactive login from a non TTY device",
            )
            .hint("give --username and --password-stdin"));
        }
        if user.is_empty() {
            let known = credentials::user_of(settings, key)?.filter(|user| user != "<token>");
            let offer = known.as_ref().map(|user| format!(" ({user})"));
            output::prompt(&format!("Username{}: ", offer.unwrap_or_default()))?;
            user = terminal::read_line(terminal::Echo::On)
                .map_err(|error| Failure::io("cannot read the user name", &error))?;
            if user.is_empty() {
                user = known.unwrap_or_default();
            }
        }
    }
    if !password.is_empty() {
        return complete(user, password);
    }
    output::prompt("Password: ")?;
    let password = terminal::read_line(terminal::Echo::Off)
        .map_err(|error| Failure::io("cannot read the password", &error))?;
    output::note("");
    complete(user, password)
}

fn complete(user: String, password: String) -> Result<Credentials> {
    if user.is_empty() {
        return Err(Failure::invalid("username is required"));
    }
    if password.is_empty() {
        return Err(Failure::invalid("password is required"));
    }
    if user.contains(':') {
        return Err(Failure::invalid("a user name cannot contain a colon"));
    }
    Ok(Credentials { user, password })
}

fn logout(call: &Call<'_>) -> Result<u8> {
    let settings = settings(call)?;
    if call.line.on("all") {
        credentials::erase_all(&settings)?;
        output::line("Removed login credentials for all registries")?;
        return Ok(0);
    }
    let (key, _) = server(call)?;
    let places = credentials::erase(&settings, &key)?;
    if places.is_empty() {
        output::line(&format!("Not logged in to {key}"))?;
    } else {
        output::line(&format!("Removing login credentials for {key}"))?;
    }
    Ok(0)
}
