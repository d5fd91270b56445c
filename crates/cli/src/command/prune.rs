//! `container prune` and `image prune`.

use std::io::BufRead;

use knarr_engine::{Filters, Pruned};

use super::{Call, Command, USUAL, ps, trash};
use crate::failure::{Failure, Result};
use crate::flag::{Flag, Parsed};
use crate::{output, time, units};

pub(super) const FORCE: Flag = Flag::switch("force", "Do not prompt for confirmation").short('f');

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
        let pruned = call.engine()?.prune(&filters(&call.line)?)?;
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
        Flag::with(
            "filter",
            "filter",
            "Provide filter values (e.g. \"until=<timestamp>\")",
        ),
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
    let pruned = engine.prune_images(all, &filters(&call.line)?)?;
    let told = tell("Deleted Images:", &pruned);
    trash::empty_later(&engine);
    told
}

/// `--filter`, moments as the engine takes them.
pub(super) fn filters(line: &Parsed) -> Result<Filters> {
    let mut filters = ps::filters(line)?;
    for until in filters.0.get_mut("until").into_iter().flatten() {
        let moment = time::moment(until, time::now()).map_err(Failure::invalid)?;
        *until = time::rfc3339_nano(moment);
    }
    Ok(filters)
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
