//! Credential helpers: the programs `docker-credential-<name>` (docker-credential-helpers).

use std::collections::BTreeMap;
use std::io::{Read as _, Write as _};
use std::process::{Command, Stdio};

use serde::{Deserialize, Serialize};

use super::{Credentials, Secret};
use crate::{Error, Result};

/// What a helper says when it has nothing, in whatever it keeps its secrets.
const NOT_FOUND: &str = "credentials not found";
/// The most bytes that are read of an answer.
const ANSWER: u64 = 1 << 20;
/// The user name that marks an identity token.
const TOKEN: &str = "<token>";

#[derive(Serialize, Deserialize, Default)]
#[serde(rename_all = "PascalCase", default)]
struct Entry {
    #[serde(rename = "ServerURL")]
    server: String,
    username: String,
    secret: String,
}

/// What the helper `name` has for `server`.
pub(super) fn get(name: &str, server: &str) -> Result<Option<Secret>> {
    let answer = match run(name, "get", server.as_bytes())? {
        Answer::Good(answer) => answer,
        Answer::NotFound => return Ok(None),
    };
    let entry: Entry = serde_json::from_slice(&answer)
        .map_err(|_| failed(name, "get", "its answer is not JSON".to_owned()))?;
    Ok(match (entry.username.as_str(), entry.secret.as_str()) {
        (_, "") => None,
        (TOKEN, _) => Some(Secret::Identity(entry.secret)),
        _ => Some(Secret::Password(Credentials {
            user: entry.username,
            password: entry.secret,
        })),
    })
}

/// Gives a secret to the helper.
pub(super) fn store(name: &str, server: &str, secret: &Secret) -> Result<()> {
    let (username, secret) = match secret {
        Secret::Password(credentials) => (credentials.user.clone(), credentials.password.clone()),
        Secret::Identity(token) | Secret::Bearer(token) => (TOKEN.to_owned(), token.clone()),
    };
    let entry = Entry {
        server: server.to_owned(),
        username,
        secret,
    };
    let text = serde_json::to_vec(&entry).unwrap_or_default();
    run(name, "store", &text).map(|_| ())
}

/// Has the helper forget; whether it had anything.
pub(super) fn erase(name: &str, server: &str) -> Result<bool> {
    Ok(matches!(
        run(name, "erase", server.as_bytes())?,
        Answer::Good(_)
    ))
}

/// The servers that the helper has something for, and the users there.
pub(super) fn list(name: &str) -> Result<BTreeMap<String, String>> {
    match run(name, "list", b"")? {
        Answer::Good(answer) => serde_json::from_slice(&answer)
            .map_err(|_| failed(name, "list", "its answer is not JSON".to_owned())),
        Answer::NotFound => Ok(BTreeMap::new()),
    }
}

enum Answer {
    Good(Vec<u8>),
    NotFound,
}

fn failed(name: &str, action: &'static str, reason: String) -> Error {
    Error::Helper {
        helper: format!("docker-credential-{name}"),
        action,
        reason,
    }
}

fn run(name: &str, action: &'static str, input: &[u8]) -> Result<Answer> {
    let fail = |reason: String| failed(name, action, reason);
    // It is searched for in PATH and must not be somewhere else.
    if name.is_empty() || name.contains('/') {
        return Err(fail("it is not a program's name".to_owned()));
    }
    let io = |error: std::io::Error| match error.kind() {
        std::io::ErrorKind::NotFound => fail("it is not installed".to_owned()),
        _ => fail(error.to_string()),
    };
    let mut child = Command::new(format!("docker-credential-{name}"))
        .arg(action)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::inherit())
        .spawn()
        .map_err(io)?;
    if let Some(mut stdin) = child.stdin.take() {
        // One that does not read has no use for it.
        stdin.write_all(input).ok();
    }
    let mut answer = Vec::new();
    if let Some(stdout) = child.stdout.take() {
        stdout.take(ANSWER).read_to_end(&mut answer).map_err(io)?;
    }
    let status = child.wait().map_err(io)?;
    if status.success() {
        return Ok(Answer::Good(answer));
    }
    let words: String = String::from_utf8_lossy(&answer)
        .trim()
        .chars()
        .filter(|c| !c.is_control())
        .take(200)
        .collect();
    if words.contains(NOT_FOUND) {
        return Ok(Answer::NotFound);
    }
    Err(fail(if words.is_empty() {
        status.to_string()
    } else {
        words
    }))
}
