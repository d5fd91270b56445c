//! `container prune` and `image prune`.

use std::io::BufRead;

use knarr_diag::{Class, Explain};
use knarr_engine::Pruned;

use super::{Call, Command, USUAL, ps, trash};
use crate::failure::{Failure, Result};
use crate::flag::Flag;
use crate::{output, units};

const FORCE: Flag = Flag::switch("force", "Do not prompt for confirmation").short('f');

pub(super) static CONTAINERS: Command = Command {
    names: &["container prune"],
    usage: "[OPTIONS]",
    about: "Remove all stopped containers",
    flags: &[&[
        FORCE,
        Flag::with(
            "filter",
            "filter",
            "Provide filter values (e.g. \"until=<timestamp>\")",
        ),
    ]],
    run: |call| {
        if !confirmed(call, "This will remove all stopped containers.")? {
            return Ok(0);
        }
        let pruned = call.engine()?.prune(&ps::filters(&call.line)?)?;
        tell("Deleted Containers:", &pruned)
    },
    ..USUAL
};

pub(super) static IMAGES: Command = Command {
    names: &["image prune"],
    usage: "[OPTIONS]",
    about: "Remove unused images",
    flags: &[&[
        Flag::switch("all", "Remove all unused images, not just dangling ones").short('a'),
        FORCE,
        Flag::with("filter", "filter", "").refused("all unused images are removed, or none"),
    ]],
    run: images,
    ..USUAL
};

fn images(call: &Call<'_>) -> Result<u8> {
    let all = call.line.on("all");
    let what = if all {
        "This will remove all images without at least one container associated to them."
    } else {
        "This will remove all dangling images."
    };
    if !confirmed(call, what)? {
        return Ok(0);
    }
    let engine = call.engine()?;
    let mut pruned = Pruned::default();
    for listed in engine.images().list()?.images {
        if !all && !listed.tags.is_empty() {
            continue;
        }
        let mut names: Vec<String> = listed.tags.iter().map(ToString::to_string).collect();
        if names.is_empty() {
            names.push(listed.image.id.to_string());
        }
        let mut gone = false;
        for name in names {
            match engine.remove_image(&name, false) {
                Ok(removed) => {
                    gone |= removed
                        .iter()
                        .any(|r| matches!(r, knarr_engine::image::Removed::Image(_)));
                    pruned.removed.extend(removed.iter().map(|line| {
                        let line = line.to_string();
                        line.replace("Untagged:", "untagged:")
                            .replace("Deleted:", "deleted:")
                    }));
                }
                // A container needs it; that is what "unused" leaves alone.
                Err(error) if error.class() == Class::Busy => {}
                Err(error) => return Err(error.into()),
            }
        }
        if gone {
            pruned.bytes += listed.image.size;
        }
    }
    let told = tell("Deleted Images:", &pruned);
    trash::empty_later(&engine);
    told
}

/// Asks, unless `--force` answers.
pub(super) fn confirmed(call: &Call<'_>, what: &str) -> Result<bool> {
    if call.line.on("force") {
        return Ok(true);
    }
    output::print(&format!(
        "WARNING! {what}\nAre you sure you want to continue? [y/N] "
    ))?;
    let mut answer = String::new();
    let read = std::io::stdin().lock().read_line(&mut answer);
    read.map_err(|error| Failure::io("cannot read the answer", &error))?;
    Ok(answer.trim().eq_ignore_ascii_case("y"))
}

/// Says what was removed.
pub(super) fn tell(title: &str, pruned: &Pruned) -> Result<u8> {
    let mut text = String::new();
    if !pruned.removed.is_empty() {
        text = format!("{title}\n{}\n\n", pruned.removed.join("\n"));
    }
    let space = units::decimal(pruned.bytes, 4);
    output::print(&format!("{text}Total reclaimed space: {space}\n"))?;
    Ok(0)
}
