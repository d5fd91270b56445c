//! `inspect`, `container inspect`, `image inspect`.

use knarr_diag::Class;
use knarr_engine::Engine;
use knarr_engine::image::{Image, Listed, Store};
use serde_json::{Value, json};

use super::{Arguments, Call, Command, USUAL, remote};
use crate::failure::{Failure, Result};
use crate::flag::Flag;
use crate::format;
use crate::output;
use crate::request::flags;
use crate::template::{Data, Template};

pub(super) const FORMAT: Flag = Flag::with(
    "format",
    "string",
    "Format output using a custom template:\n\
     'json':             Print in JSON format\n\
     'TEMPLATE':         Print output using the given Go template",
)
.short('f');

pub(super) static COMMAND: Command = Command {
    names: &["inspect"],
    usage: "[OPTIONS] NAME|ID [NAME|ID...]",
    about: "Return low-level information on Knarr objects",
    flags: &[&[
        FORMAT,
        Flag::switch("size", "Display total file sizes if the type is container").short('s'),
        Flag::with(
            "type",
            "string",
            "Only inspect objects of the given type (container, image, volume)",
        ),
    ]],
    arguments: Arguments::AtLeast(1),
    run,
    ..USUAL
};

pub(super) static CONTAINER: Command = Command {
    names: &["container inspect"],
    usage: "[OPTIONS] CONTAINER [CONTAINER...]",
    about: "Display detailed information on one or more containers",
    flags: &[&[
        FORMAT,
        Flag::switch("size", "Display total file sizes").short('s'),
    ]],
    arguments: Arguments::AtLeast(1),
    run: |call| {
        let engine = call.engine()?;
        let size = call.line.on("size");
        show(call, |name| container(&engine, name, size))
    },
    ..USUAL
};

pub(super) static IMAGE: Command = Command {
    names: &["image inspect"],
    usage: "[OPTIONS] IMAGE [IMAGE...]",
    about: "Display detailed information on one or more images",
    flags: &[
        &[
            FORMAT,
            Flag::with(
                "platform",
                "string",
                "Which image of several, with --remote",
            ),
            Flag::switch("remote", "Ask the registry, whatever is here"),
        ],
        flags::REGISTRY,
    ],
    arguments: Arguments::AtLeast(1),
    run: |call| {
        if call.line.on("remote") {
            return remote::inspect(call);
        }
        let engine = call.engine()?;
        show(call, |name| image(engine.images(), name))
    },
    ..USUAL
};

/// Finds one kind of object by its name.
type Find<'a> = &'a dyn Fn(&str) -> Result<Value>;

fn run(call: &Call<'_>) -> Result<u8> {
    let engine = call.engine()?;
    let size = call.line.on("size");
    let one_of = |name: &str| -> Result<Value> {
        let missing = |failure: &Failure| {
            let mut reports = failure.reports.iter();
            reports.all(|report| matches!(report.class, Class::NotFound | Class::Invalid))
        };
        let kinds: [Find<'_>; 3] = [
            &|name| container(&engine, name, size),
            &|name| image(engine.images(), name),
            &|name| Ok(engine.volume(name)?.inspect()),
        ];
        for kind in kinds {
            match kind(name) {
                Err(failure) if missing(&failure) => {}
                done => return done,
            }
        }
        Err(Failure::of(
            Class::NotFound,
            "object-not-found",
            format!("no such object: {name}"),
        )
        .hint("`knarr ps -a`, `knarr images` and `knarr volume ls` list what there is"))
    };
    match call.line.text("type") {
        "" => show(call, one_of),
        "container" => show(call, |name| container(&engine, name, size)),
        "image" => show(call, |name| image(engine.images(), name)),
        "volume" => show(call, |name| Ok(engine.volume(name)?.inspect())),
        other => Err(
            Failure::invalid(format!("{other:?} is not a valid value for --type"))
                .hint("use container, image or volume"),
        ),
    }
}

/// Prints each argument's object as `--format` says, going on after a missing one.
pub(super) fn show(call: &Call<'_>, mut find: impl FnMut(&str) -> Result<Value>) -> Result<u8> {
    let template = match call.line.text("format") {
        "" | "json" => None,
        text => Some(format::template(text)?),
    };
    let mut found = Vec::new();
    let mut failed = Failure::default();
    for name in &call.line.args {
        match find(name) {
            Ok(value) => found.push(value),
            Err(failure) => failed.reports.extend(failure.reports),
        }
    }
    let text = match &template {
        None if call.line.text("format") == "json" => {
            format!("{}\n", Value::Array(found))
        }
        None => format::pretty(&Value::Array(found)) + "\n",
        Some(template) => {
            let mut text = String::new();
            for value in &found {
                text.push_str(&render(template, value)?);
                text.push('\n');
            }
            text
        }
    };
    output::print(&text)?;
    if failed.reports.is_empty() {
        Ok(0)
    } else {
        Err(failed)
    }
}

/// Applies a template to an object whose shape is that of Docker's structs.
pub(super) fn render(template: &Template, value: &Value) -> Result<String> {
    let data = Data {
        structs: true,
        ..Data::plain(value)
    };
    template
        .render(&data)
        .map_err(|text| format::failure(&text))
}

fn container(engine: &Engine, name: &str, size: bool) -> Result<Value> {
    Ok(engine.inspect(name, size)?)
}

fn image(store: &Store, name: &str) -> Result<Value> {
    let image = store.resolve(name)?;
    let listed = store.describe(image)?;
    let bytes = store.config_bytes(listed.image.id)?;
    Ok(image_json(&listed, &bytes))
}

/// Docker's `image inspect` (API v1.43) of an image and its configuration's bytes.
fn image_json(listed: &Listed, config: &[u8]) -> Value {
    let image: &Image = &listed.image;
    // It was parsed when it came; only its own fields are wanted, unknown ones included.
    let raw: Value = serde_json::from_slice(config).unwrap_or_default();
    let text = |key: &str| raw.get(key).cloned().unwrap_or_else(|| json!(""));
    let names = |references: &[knarr_spec::Reference]| -> Vec<String> {
        references
            .iter()
            .map(knarr_spec::Reference::familiar)
            .collect()
    };
    let mut digests = names(&listed.digests);
    digests.dedup();
    let comment = image
        .config
        .history
        .last()
        .and_then(|step| step.comment.clone());
    json!({
        "Id": image.id.to_string(),
        "RepoTags": names(&listed.tags),
        "RepoDigests": digests,
        "Parent": "",
        "Comment": comment.unwrap_or_default(),
        "Created": text("created"),
        "DockerVersion": text("docker_version"),
        "Author": text("author"),
        "Config": raw.get("config").cloned().unwrap_or_default(),
        "Architecture": image.platform.architecture,
        "Variant": image.platform.variant.clone().unwrap_or_default(),
        "Os": image.platform.os,
        "Size": image.size,
        "GraphDriver": {"Data": null, "Name": "knarr"},
        "RootFS": {
            "Type": "layers",
            "Layers": image.config.rootfs.diff_ids.iter().map(ToString::to_string)
                .collect::<Vec<_>>(),
        },
        "Metadata": {"LastTagTime": "0001-01-01T00:00:00Z"},
    })
}
