//! `volume create`, `inspect`, `ls`, `prune`, `rm`.

use knarr_engine::{Volume, VolumeCreate};
use serde_json::{Map, Value};

use super::{Arguments, Call, Command, USUAL, inspect, prune, ps};
use crate::failure::{Result, each};
use crate::flag::{Flag, value};
use crate::format::{self, Layout};
use crate::output;
use crate::request::parts;

const ONE_MACHINE: &str = "Knarr runs containers on one machine";

pub(super) static CREATE: Command = Command {
    names: &["volume create"],
    usage: "[OPTIONS] [VOLUME]",
    about: "Create a volume",
    flags: &[&[
        Flag::with("driver", "string", "Specify volume driver name")
            .short('d')
            .default("\"local\""),
        Flag::with("label", "list", "Set metadata for a volume").checked(value::label),
        Flag::with("opt", "map", "Set driver specific options")
            .short('o')
            .checked(value::pair),
        Flag::with("availability", "string", "").refused(ONE_MACHINE),
        Flag::with("group", "string", "").refused(ONE_MACHINE),
        Flag::with("limit-bytes", "bytes", "").refused(ONE_MACHINE),
        Flag::with("required-bytes", "bytes", "").refused(ONE_MACHINE),
        Flag::with("scope", "string", "").refused(ONE_MACHINE),
        Flag::with("secret", "map", "").refused(ONE_MACHINE),
        Flag::with("sharing", "string", "").refused(ONE_MACHINE),
        Flag::with("topology-preferred", "list", "").refused(ONE_MACHINE),
        Flag::with("topology-required", "list", "").refused(ONE_MACHINE),
        Flag::with("type", "string", "").refused(ONE_MACHINE),
    ]],
    arguments: Arguments::AtMost(1),
    run: |call: &Call<'_>| {
        let volume = call.engine()?.volume_create(&VolumeCreate {
            name: call.line.args.first().cloned(),
            driver: call.line.text("driver").to_owned(),
            options: parts::map(call.line.all("opt")),
            labels: parts::map(call.line.all("label")),
        })?;
        output::line(&volume.name)?;
        Ok(0)
    },
    ..USUAL
};

pub(super) static INSPECT: Command = Command {
    names: &["volume inspect"],
    usage: "[OPTIONS] VOLUME [VOLUME...]",
    about: "Display detailed information on one or more volumes",
    flags: &[&[inspect::FORMAT]],
    arguments: Arguments::AtLeast(1),
    run: |call| {
        let engine = call.engine()?;
        inspect::show(call, |name| Ok(engine.volume(name)?.inspect()))
    },
    ..USUAL
};

pub(super) static LIST: Command = Command {
    names: &["volume ls", "volume list"],
    usage: "[OPTIONS]",
    about: "List volumes",
    flags: &[&[
        Flag::switch("cluster", "").refused(ONE_MACHINE),
        Flag::with(
            "filter",
            "filter",
            "Provide filter values (e.g. \"dangling=true\")",
        )
        .short('f'),
        Flag::with("format", "string", ps::FORMAT),
        Flag::switch("quiet", "Only display volume names").short('q'),
    ]],
    run: list,
    ..USUAL
};

pub(super) static PRUNE: Command = Command {
    names: &["volume prune"],
    usage: "[OPTIONS]",
    about: "Remove unused local volumes",
    flags: &[&[
        Flag::switch("all", "Remove all unused volumes, not just anonymous ones").short('a'),
        Flag::with(
            "filter",
            "filter",
            "Provide filter values (e.g. \"label=<label>\")",
        ),
        Flag::switch("force", "Do not prompt for confirmation").short('f'),
    ]],
    run: |call| {
        let all = call.line.on("all");
        let kind = if all { "" } else { "anonymous " };
        let what =
            format!("This will remove {kind}local volumes not used by at least one container.");
        if !prune::confirmed(call, &what)? {
            return Ok(0);
        }
        let pruned = call
            .engine()?
            .volume_prune(all, &ps::filters(&call.line)?)?;
        prune::tell("Deleted Volumes:", &pruned)
    },
    ..USUAL
};

pub(super) static REMOVE: Command = Command {
    names: &["volume rm", "volume remove"],
    usage: "[OPTIONS] VOLUME [VOLUME...]",
    about: "Remove one or more volumes. You cannot remove a volume that is in use by a container.",
    flags: &[&[Flag::switch("force", "Force the removal of one or more volumes").short('f')]],
    arguments: Arguments::AtLeast(1),
    run: |call| {
        let force = call.line.on("force");
        let engine = call.engine()?;
        each(&call.line.args, |name| {
            engine.volume_remove(name, force)?;
            output::line(name)
        })
    },
    ..USUAL
};

static LAYOUT: Layout = Layout {
    table: "{{.Driver}}\t{{.Name}}",
    titles: &[
        ("Availability", "AVAILABILITY"),
        ("Driver", "DRIVER"),
        ("Group", "GROUP"),
        ("Labels", "LABELS"),
        ("Links", "LINKS"),
        ("Mountpoint", "MOUNTPOINT"),
        ("Name", "VOLUME NAME"),
        ("Scope", "SCOPE"),
        ("Size", "SIZE"),
        ("Status", "STATUS"),
    ],
    kind: "*formatter.volumeContext",
};

fn list(call: &Call<'_>) -> Result<u8> {
    let line = &call.line;
    let volumes = call.engine()?.volumes(&ps::filters(line)?)?;
    let text = if line.on("quiet") && line.text("format").is_empty() {
        volumes
            .iter()
            .map(|volume| format!("{}\n", volume.name))
            .collect()
    } else {
        let rows: Vec<Value> = volumes.iter().map(row).collect();
        format::rows(&LAYOUT, line.text("format"), &rows, &|row, name, args| {
            let ("Label", [Value::String(key)]) = (name, args) else {
                return None;
            };
            let at = rows.iter().position(|other| std::ptr::eq(other, row))?;
            let label = volumes.get(at)?.labels.get(key);
            Some(Value::from(label.map_or("", String::as_str)))
        })?
    };
    output::print(&text)?;
    Ok(0)
}

fn row(volume: &Volume) -> Value {
    // In the order of Docker's JSON.
    let fields: [(&str, String); 10] = [
        ("Availability", "N/A".to_owned()),
        ("Driver", volume.driver.clone()),
        ("Group", "N/A".to_owned()),
        ("Labels", format::labels(&volume.labels)),
        ("Links", "N/A".to_owned()),
        ("Mountpoint", volume.mountpoint.display().to_string()),
        ("Name", volume.name.clone()),
        ("Scope", "local".to_owned()),
        ("Size", "N/A".to_owned()),
        ("Status", "N/A".to_owned()),
    ];
    let fields = fields.map(|(name, value)| (name.to_owned(), Value::from(value)));
    Value::Object(Map::from_iter(fields))
}
