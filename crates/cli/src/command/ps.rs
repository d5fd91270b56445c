//! `ps`.

use knarr_engine::{Filters, ListOptions, Summary};
use serde_json::{Map, Value};

use super::{Call, Command, USUAL};
use crate::failure::{Failure, Result};
use crate::flag::{Flag, Parsed, value};
use crate::format::{self, Layout, ellipsis};
use crate::{output, time, units};

pub(super) static COMMAND: Command = Command {
    names: &["ps", "container ls", "container list", "container ps"],
    usage: "[OPTIONS]",
    about: "List containers",
    flags: &[&[
        Flag::switch("all", "Show all containers (default shows just running)").short('a'),
        Flag::with(
            "filter",
            "filter",
            "Filter output based on conditions provided",
        )
        .short('f'),
        Flag::with("format", "string", FORMAT),
        Flag::with(
            "last",
            "int",
            "Show n last created containers (includes all states)",
        )
        .short('n')
        .checked(value::int)
        .default("-1"),
        Flag::switch(
            "latest",
            "Show the latest created container (includes all states)",
        )
        .short('l'),
        Flag::switch("no-trunc", "Don't truncate output"),
        Flag::switch("quiet", "Only display container IDs").short('q'),
        Flag::switch("size", "Display total file sizes").short('s'),
    ]],
    run,
    ..USUAL
};

/// What the help of every list says of --format.
pub(super) const FORMAT: &str = "Format output using a custom template:\n\
    'table':            Print output in table format with column headers (default)\n\
    'table TEMPLATE':   Print output in table format using the given Go template\n\
    'json':             Print in JSON format\n\
    'TEMPLATE':         Print output using the given Go template";

pub(super) const TITLES: &[(&str, &str)] = &[
    ("Command", "COMMAND"),
    ("CreatedAt", "CREATED AT"),
    ("ID", "CONTAINER ID"),
    ("Image", "IMAGE"),
    ("Labels", "LABELS"),
    ("LocalVolumes", "LOCAL VOLUMES"),
    ("Mounts", "MOUNTS"),
    ("Names", "NAMES"),
    ("Networks", "NETWORKS"),
    ("Ports", "PORTS"),
    ("RunningFor", "CREATED"),
    ("Size", "SIZE"),
    ("State", "STATE"),
    ("Status", "STATUS"),
];

static LAYOUT: Layout = Layout {
    table: "{{.ID}}\t{{.Image}}\t{{.Command}}\t{{.RunningFor}}\t{{.Status}}\t{{.Ports}}\t{{.Names}}",
    titles: TITLES,
    kind: "*formatter.ContainerContext",
};

static SIZED: Layout = Layout {
    table: "{{.ID}}\t{{.Image}}\t{{.Command}}\t{{.RunningFor}}\t{{.Status}}\t{{.Ports}}\t\
            {{.Names}}\t{{.Size}}",
    titles: TITLES,
    kind: "*formatter.ContainerContext",
};

fn run(call: &Call<'_>) -> Result<u8> {
    let line = &call.line;
    let shown = line.text("format");
    let last = match line.int("last") {
        _ if line.on("latest") => Some(1),
        Some(count) => usize::try_from(count).ok().filter(|count| *count > 0),
        None => None,
    };
    let options = ListOptions {
        all: line.on("all"),
        last,
        size: line.on("size") || shown.contains(".Size"),
        filters: filters(line)?,
    };
    let listing = call.engine()?.list(&options)?;
    let long = line.on("no-trunc");
    let containers = &listing.containers;
    let text = if line.on("quiet") && shown.is_empty() {
        containers
            .iter()
            .map(|container| id(container, long) + "\n")
            .collect()
    } else {
        let rows: Vec<Value> = containers.iter().map(|c| row(c, long)).collect();
        let layout = if line.on("size") { &SIZED } else { &LAYOUT };
        format::rows(layout, shown, &rows, &|row, name, args| {
            let ("Label", [Value::String(key)]) = (name, args) else {
                return None;
            };
            let at = rows.iter().position(|other| std::ptr::eq(other, row))?;
            let label = containers.get(at)?.labels.get(key);
            Some(Value::from(label.map_or("", String::as_str)))
        })?
    };
    output::print(&text)?;
    if listing.damaged.is_empty() {
        return Ok(0);
    }
    Err(Failure::told(listing.damaged))
}

/// `--filter key=value`.
pub(super) fn filters(line: &Parsed) -> Result<Filters> {
    let mut filters = Filters::default();
    for filter in line.all("filter") {
        let Some((key, value)) = filter.split_once('=') else {
            return Err(Failure::invalid(format!("invalid filter {filter:?}"))
                .hint("a filter is KEY=VALUE, such as `status=exited`"));
        };
        let key = key.trim().to_lowercase();
        filters
            .0
            .entry(key)
            .or_default()
            .push(value.trim().to_owned());
    }
    Ok(filters)
}

fn id(container: &Summary, long: bool) -> String {
    if long {
        container.id.as_str()
    } else {
        container.id.short()
    }
    .to_owned()
}

pub(super) fn row(container: &Summary, long: bool) -> Value {
    // As Docker: what has a blank in it is in single quotes.
    let words: Vec<String> = container
        .command
        .iter()
        .enumerate()
        .map(|(at, word)| match at > 0 && word.contains(' ') {
            true => format!("'{word}'"),
            false => word.clone(),
        })
        .collect();
    let command = words.join(" ");
    let command = if long {
        command
    } else {
        ellipsis(&command, 20)
    };
    let state = serde_json::to_value(container.status).unwrap_or_default();
    let mounts: Vec<String> = container
        .mounts
        .iter()
        .map(|mount| {
            if mount.name.is_empty() {
                &mount.source
            } else {
                &mount.name
            }
        })
        .map(|name| {
            if long {
                name.clone()
            } else {
                ellipsis(name, 15)
            }
        })
        .collect();
    let volumes = container
        .mounts
        .iter()
        .filter(|mount| mount.driver == "local")
        .count();
    let image = match container.image.strip_prefix("sha256:") {
        _ if container.image.is_empty() => "<no image>",
        Some(digest) if !long => digest.get(..12).unwrap_or(digest),
        _ => &container.image,
    };
    let size = container.size.map_or_else(
        || "0B".to_owned(),
        |(own, whole)| {
            format!(
                "{} (virtual {})",
                units::decimal(own, 3),
                units::decimal(whole, 3)
            )
        },
    );
    // In the order of Docker's JSON.
    let fields: [(&str, Value); 14] = [
        ("Command", quoted(&command).into()),
        ("CreatedAt", time::local(container.created).into()),
        ("ID", id(container, long).into()),
        ("Image", image.into()),
        ("Labels", format::labels(&container.labels).into()),
        ("LocalVolumes", volumes.to_string().into()),
        ("Mounts", mounts.join(",").into()),
        ("Names", container.name.as_str().into()),
        ("Networks", container.networks.join(",").into()),
        ("Ports", container.ports.as_str().into()),
        ("RunningFor", time::ago(container.created).into()),
        ("Size", size.into()),
        ("State", state),
        ("Status", container.status_text.as_str().into()),
    ];
    let fields = fields.map(|(name, value)| (name.to_owned(), value));
    Value::Object(Map::from_iter(fields))
}

/// Go's quotes around a command.
fn quoted(command: &str) -> String {
    let mut out = String::from("\"");
    for c in command.chars() {
        match c {
            '"' | '\\' => out.extend(['\\', c]),
            '\n' => out.push_str("\\n"),
            '\t' => out.push_str("\\t"),
            '\r' => out.push_str("\\r"),
            c if c.is_control() => out.push_str(&format!("\\x{:02x}", u32::from(c))),
            c => out.push(c),
        }
    }
    out + "\""
}

#[cfg(test)]
mod tests {
    use super::*;
    use knarr_engine::Status;

    fn container() -> Summary {
        Summary {
            id: "a".repeat(64).parse().unwrap(),
            name: "web".parse().unwrap(),
            image: "debian:12".to_owned(),
            image_id: String::new(),
            command: ["sh", "-c", "echo \"hello world\""]
                .map(str::to_owned)
                .to_vec(),
            created: time::now() - 7_200_000_000_000,
            status: Status::Running,
            status_text: "Up 2 hours".to_owned(),
            exit_code: 0,
            labels: [
                ("a".to_owned(), "1".to_owned()),
                ("b".to_owned(), "2".to_owned()),
            ]
            .into(),
            mounts: Vec::new(),
            networks: vec!["none".to_owned()],
            ports: "53/udp, 80-81/tcp".to_owned(),
            size: Some((0, 1_234_567)),
            reference: None,
        }
    }

    #[test]
    fn containers_are_listed_as_docker_lists_them() {
        let rows = [row(&container(), false)];
        let print = |layout, format| format::rows(layout, format, &rows, &|_, _, _| None).unwrap();
        assert_eq!(
            print(&LAYOUT, ""),
            "CONTAINER ID   IMAGE       COMMAND                   CREATED       STATUS       \
             PORTS               NAMES\n\
             aaaaaaaaaaaa   debian:12   \"sh -c 'echo \\\"hello …\"   2 hours ago   Up 2 hours   \
             53/udp, 80-81/tcp   web\n"
        );
        assert_eq!(
            print(&LAYOUT, "{{.Names}} {{.Size}} {{.Labels}} {{.State}}"),
            "web 0B (virtual 1.23MB) a=1,b=2 running\n"
        );
        let json: Value = serde_json::from_str(&print(&LAYOUT, "json")).unwrap();
        let keys: Vec<&String> = json.as_object().unwrap().keys().collect();
        assert!(keys.is_sorted(), "{keys:?}");
    }
}
