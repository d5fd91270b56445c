//! `image tree`.

use std::collections::BTreeMap;

use knarr_engine::image::{LayerId, Listed};
use knarr_spec::Reference;

use super::{Arguments, Call, Command, USUAL};
use crate::failure::Result;
use crate::flag::Flag;
use crate::{output, units};

pub(super) static COMMAND: Command = Command {
    names: &["image tree"],
    usage: "[OPTIONS] IMAGE",
    about: "Print the layers of an image as a tree",
    flags: &[&[Flag::switch(
        "whatrequires",
        "Show all images that stand on this one's layers",
    )]],
    arguments: Arguments::Exactly(1),
    run,
    ..USUAL
};

fn run(call: &Call<'_>) -> Result<u8> {
    let engine = call.engine()?;
    let images = engine.images();
    let shown = images.describe(images.resolve(call.arg(0))?)?;
    let listing = images.list()?;
    let mut text = format!(
        "Image ID: {}\nTags:     [{}]\nSize:     {}\n",
        shown.image.id.short(),
        names(&shown).join(" "),
        units::decimal(shown.image.size, 4)
    );
    if call.line.on("whatrequires") {
        text.push_str("Image Layers\n");
        let below = &shown.image.layers;
        let others: Vec<String> = listing
            .images
            .iter()
            .filter(|other| other.image.id != shown.image.id)
            .filter(|other| other.image.layers.starts_with(below))
            .map(|other| {
                format!(
                    "ID: {} Size: {} Top Layer of: [{}]",
                    other.image.id.short(),
                    units::decimal(other.image.size.saturating_sub(shown.image.size), 4),
                    names(other).join(" ")
                )
            })
            .collect();
        branches(&mut text, &others);
    } else if shown.image.layers.is_empty() {
        text.push_str("No Image Layers\n");
    } else {
        text.push_str("Image Layers\n");
        // Whose layers end there.
        let mut tops: BTreeMap<(usize, LayerId), Vec<String>> = BTreeMap::new();
        for other in &listing.images {
            if let Some(top) = other.image.layers.last()
                && shown.image.layers.starts_with(&other.image.layers)
            {
                let at = (other.image.layers.len(), *top);
                tops.entry(at).or_default().extend(names(other));
            }
        }
        let mut layers = Vec::new();
        for (at, id) in shown.image.layers.iter().enumerate() {
            let size = units::decimal(images.layers().load(id)?.size, 4);
            let mut layer = format!("ID: {} Size: {size:>7}", id.digest().short());
            if let Some(of) = tops.get(&(at + 1, *id)).filter(|of| !of.is_empty()) {
                layer.push_str(&format!(" Top Layer of: [{}]", of.join(" ")));
            }
            layers.push(layer);
        }
        branches(&mut text, &layers);
    }
    output::print(&text)?;
    Ok(0)
}

fn names(listed: &Listed) -> Vec<String> {
    listed.tags.iter().map(Reference::familiar).collect()
}

fn branches(text: &mut String, lines: &[String]) {
    for (at, line) in lines.iter().enumerate() {
        let branch = if at + 1 == lines.len() {
            "└──"
        } else {
            "├──"
        };
        text.push_str(&format!("{branch} {line}\n"));
    }
}
