//! `image mount` and `image unmount`.

use knarr_spec::Reference;
use serde_json::{Value, json};

use super::{Arguments, Call, Command, USUAL};
use crate::failure::{Failure, Result, each};
use crate::flag::Flag;
use crate::{format, output, table};

pub(super) static MOUNT: Command = Command {
    names: &["image mount"],
    usage: "[OPTIONS] [IMAGE...]",
    about: "Mount an image's root filesystem, read-only, and print where; without IMAGE, list the mounted ones",
    flags: &[&[
        Flag::switch("all", "Mount all images").short('a'),
        Flag::with(
            "format",
            "string",
            "Print the mounted images in Go template format (json)",
        ),
    ]],
    arguments: Arguments::AtLeast(0),
    run: mount,
    ..USUAL
};

pub(super) static UNMOUNT: Command = Command {
    names: &["image unmount", "image umount"],
    usage: "[OPTIONS] IMAGE [IMAGE...]",
    about: "Unmount an image's root filesystem",
    flags: &[&[
        Flag::switch("all", "Unmount all images").short('a'),
        Flag::switch("force", "Unmount also what is in use, once nobody uses it").short('f'),
    ]],
    arguments: Arguments::AtLeast(0),
    run: unmount,
    ..USUAL
};

fn mount(call: &Call<'_>) -> Result<u8> {
    let engine = call.engine()?;
    let mut names = call.line.args.clone();
    if call.line.on("all") {
        let listing = engine.images().list()?;
        names = listing
            .images
            .iter()
            .map(|listed| listed.image.id.to_string())
            .collect();
    }
    if names.is_empty() {
        return list(call);
    }
    let several = names.len() > 1;
    each(&names, |name| {
        let path = engine.image_mount(name)?;
        match several {
            true => output::line(&format!("{name} {}", path.display())),
            false => output::line(&path.display().to_string()),
        }
    })
}

fn list(call: &Call<'_>) -> Result<u8> {
    let engine = call.engine()?;
    let mut rows = Vec::new();
    for (id, path) in engine.image_mounts()? {
        let listed = engine.images().describe(engine.images().get(id)?)?;
        let names: Vec<String> = listed.tags.iter().map(Reference::familiar).collect();
        rows.push((id, names, path));
    }
    let text = match call.line.text("format") {
        "json" => {
            let rows: Vec<Value> = rows
                .iter()
                .map(|(id, names, path)| {
                    json!({"id": id.digest().hex(), "Repositories": names, "mountpoint": path})
                })
                .collect();
            format::pretty(&Value::Array(rows)) + "\n"
        }
        "" => {
            let rows = rows.iter().map(|(id, names, path)| {
                let name = names.first().cloned().unwrap_or_else(|| id.short());
                format!("{name}\t{}\n", path.display())
            });
            table::align(&rows.collect::<String>())
        }
        other => {
            return Err(Failure::invalid(format!("unknown --format {other:?}"))
                .hint("`--format json` is what there is"));
        }
    };
    output::print(&text)?;
    Ok(0)
}

fn unmount(call: &Call<'_>) -> Result<u8> {
    let engine = call.engine()?;
    let force = call.line.on("force");
    if call.line.on("all") {
        let ids = engine
            .image_mounts()?
            .into_iter()
            .map(|(id, _)| id.to_string());
        let ids: Vec<String> = ids.collect();
        return each(&ids, |id| {
            engine.image_unmount(engine.images().resolve(id)?.id, force)?;
            output::line(id)
        });
    }
    if call.line.args.is_empty() {
        return Err(Failure::invalid("at least one image must be named")
            .hint("`knarr image unmount --all` unmounts all"));
    }
    each(&call.line.args, |name| {
        let id = engine.images().resolve(name)?.id;
        engine.image_unmount(id, force)?;
        output::line(&id.to_string())
    })
}
