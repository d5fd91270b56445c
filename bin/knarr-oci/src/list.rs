//! `state` and `list`.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::ExitCode;

use serde::Serialize;

use crate::args::Parsed;
use crate::command::Globals;
use crate::container::{Container, OWN, Status};
use crate::failure::{Failure, Result};

/// What `state` and `list` print of one container.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Shown<'a> {
    oci_version: &'a str,
    id: &'a str,
    /// 0 where it has stopped.
    pid: i32,
    status: &'a str,
    bundle: &'a str,
    rootfs: &'a str,
    created: &'a str,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    annotations: &'a BTreeMap<String, String>,
    owner: String,
}

fn shown(container: &Container, owner: String) -> Result<Shown<'_>> {
    let status = container.status()?;
    let record = &container.record;
    let pid = match (&record.init, status) {
        (_, Status::Stopped) | (None, _) => 0,
        (Some(init), _) => init.pid,
    };
    Ok(Shown {
        oci_version: knarr_spec::runtime::OCI_VERSION,
        id: &record.id,
        pid,
        status: status.name(),
        bundle: &record.bundle,
        rootfs: &record.rootfs,
        created: &record.created,
        annotations: &record.annotations,
        owner,
    })
}

/// `state`.
pub(crate) fn state(globals: &mut Globals, parsed: &Parsed) -> Result<ExitCode> {
    let id = parsed.rest.first().map_or("", String::as_str);
    let container = Container::open(&globals.root, id)?;
    let state = shown(&container, String::new())?;
    // A struct of strings always serializes.
    print!(
        "{}",
        serde_json::to_string_pretty(&state).unwrap_or_default()
    );
    Ok(ExitCode::SUCCESS)
}

/// `list`.
pub(crate) fn list(globals: &mut Globals, parsed: &Parsed) -> Result<ExitCode> {
    let mut containers = Vec::new();
    let mut names = match knarr_fs::file_names(&globals.root) {
        Ok(names) => names,
        Err(error) if error.is_not_found() => Vec::new(),
        Err(error) => return Err(error.into()),
    };
    names.sort();
    for name in names {
        let Some(id) = name.to_str().filter(|id| *id != OWN) else {
            continue;
        };
        match Container::open(&globals.root, id) {
            Ok(container) => containers.push(container),
            // Being made, just removed, or no container at all; a damaged one is told about.
            Err(failure) if failure.message.starts_with("container ") => {}
            Err(failure) => globals
                .log
                .error(&format!("load container {id}: {}", failure.message)),
        }
    }
    if parsed.is_set("quiet") {
        for container in &containers {
            println!("{}", container.record.id);
        }
        return Ok(ExitCode::SUCCESS);
    }
    let rows = containers
        .iter()
        .map(|container| shown(container, owner(&container.dir)))
        .collect::<Result<Vec<_>>>()?;
    match parsed.value("format").unwrap_or("table") {
        "table" => table(&rows),
        "json" if rows.is_empty() => println!("null"),
        "json" => println!("{}", serde_json::to_string(&rows).unwrap_or_default()),
        _ => return Err(Failure::new("invalid format option")),
    }
    Ok(ExitCode::SUCCESS)
}

/// Columns as wide as their content, at least 12, three spaces between.
fn table(rows: &[Shown<'_>]) {
    let head = ["ID", "PID", "STATUS", "BUNDLE", "CREATED", "OWNER"].map(str::to_owned);
    let mut lines = vec![head];
    lines.extend(rows.iter().map(|row| {
        [
            row.id.to_owned(),
            row.pid.to_string(),
            row.status.to_owned(),
            row.bundle.to_owned(),
            row.created.to_owned(),
            row.owner.clone(),
        ]
    }));
    let mut widths = [12; 6];
    for line in &lines {
        for (width, cell) in widths.iter_mut().zip(line) {
            *width = (*width).max(cell.chars().count() + 3);
        }
    }
    for line in &lines {
        let mut text = String::new();
        for (column, (cell, width)) in line.iter().zip(widths).enumerate() {
            if column + 1 == line.len() {
                text.push_str(cell);
            } else {
                text.push_str(&format!("{cell:width$}"));
            }
        }
        println!("{text}");
    }
}

/// The name of who made it, from the host's passwd, else the number.
fn owner(dir: &Path) -> String {
    let Ok(stat) = rustix::fs::stat(dir) else {
        return String::new();
    };
    user_name(stat.st_uid).unwrap_or_else(|| format!("#{}", stat.st_uid))
}

/// The name of a user in the host's passwd.
pub(crate) fn user_name(uid: u32) -> Option<String> {
    let passwd = std::fs::read_to_string("/etc/passwd").unwrap_or_default();
    let uid = uid.to_string();
    passwd.lines().find_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next()?;
        (fields.nth(1) == Some(&uid)).then(|| name.to_owned())
    })
}
