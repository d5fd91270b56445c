//! `system df`, `system prune`, `system check`.

use knarr_engine::image::Outcome;
use knarr_engine::{ImageUsage, Status, Summary, Usage, VolumeUsage};
use serde_json::{Map, Value};

use super::{Call, Command, USUAL, images, prune, ps, pull, trash};
use crate::failure::{Failure, Result};
use crate::flag::Flag;
use crate::format::{self, Layout};
use crate::progress::{Bars, Place};
use crate::request::flags;
use crate::{output, time, units};

pub(super) static DF: Command = Command {
    names: &["system df"],
    usage: "[OPTIONS]",
    about: "Show disk usage",
    flags: &[&[
        Flag::with("format", "string", ps::FORMAT),
        Flag::switch("verbose", "Show detailed information on space usage").short('v'),
    ]],
    run: df,
    ..USUAL
};

pub(super) static PRUNE: Command = Command {
    names: &["system prune"],
    usage: "[OPTIONS]",
    about: "Remove unused data",
    flags: &[&[
        Flag::switch("all", "Remove all unused images not just dangling ones").short('a'),
        Flag::with(
            "filter",
            "filter",
            "Provide filter values (e.g. \"label=<key>=<value>\")",
        ),
        prune::FORCE,
        Flag::switch("volumes", "Prune anonymous volumes"),
    ]],
    run: prune_system,
    ..USUAL
};

pub(super) static CHECK: Command = Command {
    names: &["system check"],
    usage: "[OPTIONS]",
    about: "Hash everything again, find what is damaged or belongs to nothing",
    flags: &[
        &[
            Flag::switch(
                "repair",
                "Set damaged objects aside and make or fetch them again",
            )
            .short('r'),
            Flag::switch("quick", "")
                .hidden()
                .refused("a check reads everything"),
            Flag::switch("quiet", "Print findings only").short('q'),
        ],
        flags::REGISTRY,
    ],
    run: check,
    ..USUAL
};

static LAYOUT: Layout = Layout {
    table: "{{.Type}}\t{{.TotalCount}}\t{{.Active}}\t{{.Size}}\t{{.Reclaimable}}",
    titles: &[
        ("Active", "ACTIVE"),
        ("Reclaimable", "RECLAIMABLE"),
        ("Size", "SIZE"),
        ("TotalCount", "TOTAL"),
        ("Type", "TYPE"),
    ],
    kind: "*formatter.diskUsageContext",
};

static IMAGES: Layout = Layout {
    table: "{{.Repository}}\t{{.Tag}}\t{{.ID}}\t{{.CreatedSince}}\t{{.Size}}\t{{.SharedSize}}\t\
            {{.UniqueSize}}\t{{.Containers}}",
    titles: images::TITLES,
    kind: "*formatter.imageContext",
};

static CONTAINERS: Layout = Layout {
    table: "{{.ID}}\t{{.Image}}\t{{.Command}}\t{{.LocalVolumes}}\t{{.Size}}\t{{.RunningFor}}\t\
            {{.Status}}\t{{.Names}}",
    titles: ps::TITLES,
    kind: "*formatter.ContainerContext",
};

static VOLUMES: Layout = Layout {
    table: "{{.Name}}\t{{.Links}}\t{{.Size}}",
    titles: &[
        ("Links", "LINKS"),
        ("Name", "VOLUME NAME"),
        ("Size", "SIZE"),
    ],
    kind: "*formatter.volumeContext",
};

fn df(call: &Call<'_>) -> Result<u8> {
    let line = &call.line;
    let usage = call.engine()?.usage()?;
    let shown = line.text("format");
    if line.on("verbose") && shown.is_empty() {
        output::print(&verbose(&usage)?)?;
        return Ok(0);
    }
    let text = format::rows(&LAYOUT, shown, &summary(&usage), &|_, _, _| None)?;
    output::print(&text)?;
    Ok(0)
}

fn object<const N: usize>(fields: [(&str, String); N]) -> Value {
    let fields = fields.map(|(name, value)| (name.to_owned(), Value::from(value)));
    Value::Object(Map::from_iter(fields))
}

fn summary(usage: &Usage) -> Vec<Value> {
    let row = |kind: &str, total: usize, active: usize, size: u64, reclaimable: u64| {
        let mut text = units::decimal(reclaimable, 4);
        if let Some(percent) = reclaimable.saturating_mul(100).checked_div(size) {
            text.push_str(&format!(" ({percent}%)"));
        }
        object([
            ("Active", active.to_string()),
            ("Reclaimable", text),
            ("Size", units::decimal(size, 4)),
            ("TotalCount", total.to_string()),
            ("Type", kind.to_owned()),
        ])
    };
    let runs = |container: &&Summary| {
        matches!(
            container.status,
            Status::Running | Status::Paused | Status::Restarting
        )
    };
    let used = |volume: &&VolumeUsage| volume.links > 0;
    let bytes = |volumes: &mut dyn Iterator<Item = &VolumeUsage>| -> u64 {
        volumes.map(|volume| volume.bytes).sum()
    };
    vec![
        row(
            "Images",
            usage.images.len(),
            usage.images.iter().filter(|i| i.containers > 0).count(),
            usage.image_bytes,
            usage.image_reclaimable,
        ),
        row(
            "Containers",
            usage.containers.len(),
            usage.containers.iter().filter(runs).count(),
            usage.container_bytes,
            usage.container_reclaimable,
        ),
        row(
            "Local Volumes",
            usage.volumes.len(),
            usage.volumes.iter().filter(used).count(),
            bytes(&mut usage.volumes.iter()),
            bytes(&mut usage.volumes.iter().filter(|volume| !used(volume))),
        ),
        row("Build Cache", 0, 0, 0, 0),
    ]
}

fn verbose(usage: &Usage) -> Result<String> {
    let none = |_: &Value, _: &str, _: &[Value]| None;
    let mut text = "Images space usage:\n\n".to_owned();
    let rows: Vec<Value> = usage.images.iter().flat_map(image_rows).collect();
    text.push_str(&format::rows(&IMAGES, "", &rows, &none)?);
    text.push_str("\nContainers space usage:\n\n");
    let rows: Vec<Value> = usage
        .containers
        .iter()
        .map(|container| ps::row(container, false))
        .collect();
    text.push_str(&format::rows(&CONTAINERS, "", &rows, &none)?);
    text.push_str("\nLocal Volumes space usage:\n\n");
    let rows: Vec<Value> = usage
        .volumes
        .iter()
        .map(|volume| {
            object([
                ("Links", volume.links.to_string()),
                ("Name", volume.volume.name.clone()),
                ("Size", units::decimal(volume.bytes, 4)),
            ])
        })
        .collect();
    text.push_str(&format::rows(&VOLUMES, "", &rows, &none)?);
    text.push_str("\nBuild cache usage: 0B\n");
    for (what, bytes) in [
        ("Pulls and the like under way", usage.under_way),
        ("Set aside as damaged", usage.set_aside),
        ("Removed, to be deleted", usage.trash),
    ] {
        text.push_str(&format!("{what}: {}\n", units::decimal(bytes, 4)));
    }
    for (path, bytes) in &usage.unaccounted {
        text.push_str(&format!("  {bytes} bytes: {}\n", path.display()));
    }
    text.push_str(&format!(
        "Unaccounted bytes: {}\n",
        usage.unaccounted_bytes()
    ));
    Ok(text)
}

fn image_rows(image: &ImageUsage) -> Vec<Value> {
    let rows = images::rows(&image.listed, false, false);
    rows.into_iter()
        .map(|mut row| {
            if let Value::Object(fields) = &mut row {
                for (name, value) in [
                    ("SharedSize", units::decimal(image.shared, 4)),
                    ("UniqueSize", units::decimal(image.unique, 4)),
                    ("Containers", image.containers.to_string()),
                ] {
                    fields.insert(name.to_owned(), value.into());
                }
            }
            row
        })
        .collect()
}

fn prune_system(call: &Call<'_>) -> Result<u8> {
    let line = &call.line;
    let (all, volumes) = (line.on("all"), line.on("volumes"));
    let filters = prune::filters(line)?;
    let mut warning = "This will remove:\n  - all stopped containers\n".to_owned();
    if volumes {
        warning.push_str("  - all anonymous volumes not used by at least one container\n");
    }
    warning.push_str(if all {
        "  - all images without at least one container associated to them\n"
    } else {
        "  - all dangling images\n"
    });
    warning.push_str("  - what was set aside as damaged\n");
    let given: Vec<&str> = line.all("filter").collect();
    if !given.is_empty() {
        warning.push_str("\n  Items to be pruned will be filtered with:\n");
        for filter in given {
            warning.push_str(&format!("  - {filter}\n"));
        }
    }
    if !prune::confirmed(call, &warning)? {
        return Ok(0);
    }
    let engine = call.engine()?;
    let pruned = engine.prune_system(all, volumes, &filters)?;
    let mut text = String::new();
    for (title, removed) in [
        ("Deleted Containers:", &pruned.containers),
        ("Deleted Volumes:", &pruned.volumes),
        ("Deleted Images:", &pruned.images),
    ] {
        if !removed.is_empty() {
            text.push_str(&format!("{title}\n{}\n\n", removed.join("\n")));
        }
    }
    let space = units::decimal(pruned.bytes, 4);
    output::print(&format!("{text}Total reclaimed space: {space}\n"))?;
    trash::empty_later(&engine);
    Ok(0)
}

fn check(call: &Call<'_>) -> Result<u8> {
    let line = &call.line;
    let options = pull::options(call)?;
    let repair = line.on("repair").then_some(&options);
    let bars = Bars::new(Place::Nowhere);
    let begun = time::now();
    let checked = call.engine()?.check(repair, &bars)?;
    let mut text = String::new();
    let mut left = 0;
    for finding in &checked.findings {
        text.push_str(&format!("{}: {}\n", finding.object, finding.what));
        if !finding.needed_by.is_empty() {
            text.push_str(&format!("  needed by: {}\n", finding.needed_by.join(", ")));
        }
        match &finding.outcome {
            Outcome::Found => left += 1,
            Outcome::Repaired(how) => text.push_str(&format!("  repaired: {how}\n")),
            Outcome::Unrepaired(why) => {
                left += 1;
                text.push_str(&format!("  not repaired: {why}\n"));
            }
        }
    }
    if !line.on("quiet") {
        let seconds = time::now().saturating_sub(begun) / 1_000_000_000;
        text.push_str(&format!(
            "Checked {} images, {} layers and {} blobs: {} in {seconds}s\n",
            checked.images,
            checked.layers,
            checked.blobs,
            units::decimal(checked.bytes, 4)
        ));
    }
    output::print(&text)?;
    if left == 0 {
        return Ok(0);
    }
    let failure = Failure::of(
        knarr_diag::Class::Corrupt,
        "check-failed",
        match left {
            1 => "1 thing is wrong".to_owned(),
            left => format!("{left} things are wrong"),
        },
    );
    Err(match repair {
        None => failure
            .hint("`knarr system check --repair` sets them aside and makes or fetches them again"),
        Some(_) => failure.hint("what could not be repaired says above what helps"),
    })
}
