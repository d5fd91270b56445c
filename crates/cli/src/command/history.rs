//! `history`.

use knarr_engine::image::Image;
use serde_json::{Map, Value};

use super::{Arguments, Call, Command, USUAL, ps};
use crate::failure::Result;
use crate::flag::Flag;
use crate::format::{self, Layout, ellipsis};
use crate::{output, time, units};

pub(super) static COMMAND: Command = Command {
    names: &["history", "image history"],
    usage: "[OPTIONS] IMAGE",
    about: "Show the history of an image",
    flags: &[&[
        Flag::with("format", "string", ps::FORMAT),
        Flag::switch("human", "Print sizes and dates in human readable format")
            .short('H')
            .default("true"),
        Flag::switch("no-trunc", "Don't truncate output"),
        Flag::switch("quiet", "Only show image IDs").short('q'),
        Flag::with("platform", "string", "").refused("an image has one platform"),
    ]],
    arguments: Arguments::Exactly(1),
    run,
    ..USUAL
};

static LAYOUT: Layout = Layout {
    table: "{{.ID}}\t{{.CreatedSince}}\t{{.CreatedBy}}\t{{.Size}}\t{{.Comment}}",
    titles: &[
        ("Comment", "COMMENT"),
        ("CreatedAt", "CREATED AT"),
        ("CreatedBy", "CREATED BY"),
        ("CreatedSince", "CREATED"),
        ("ID", "IMAGE"),
        ("Size", "SIZE"),
    ],
    kind: "*formatter.historyContext",
};

/// With `--human=false`, dates stand where ages do.
static EXACT: Layout = Layout {
    table: "{{.ID}}\t{{.CreatedAt}}\t{{.CreatedBy}}\t{{.Size}}\t{{.Comment}}",
    ..LAYOUT
};

/// How much of a command the table shows.
const COMMAND_WIDTH: usize = 45;

fn run(call: &Call<'_>) -> Result<u8> {
    let line = &call.line;
    let human = !line.given("human") || line.on("human");
    let long = line.on("no-trunc");
    let engine = call.engine()?;
    let image = engine.images().resolve(call.arg(0))?;
    let mut sizes = Vec::new();
    for layer in &image.layers {
        sizes.push(engine.images().layers().load(layer)?.size);
    }
    let rows = rows(&image, &sizes, human, long);
    let text = if line.on("quiet") && line.text("format").is_empty() {
        rows.iter()
            .filter_map(|row| row.get("ID")?.as_str())
            .map(|id| format!("{id}\n"))
            .collect()
    } else {
        let layout = if human { &LAYOUT } else { &EXACT };
        format::rows(layout, line.text("format"), &rows, &|_, _, _| None)?
    };
    output::print(&text)?;
    Ok(0)
}

/// Newest first. Steps that made no layer have no size; layers that no step tells of are the lowest.
fn rows(image: &Image, sizes: &[u64], human: bool, long: bool) -> Vec<Value> {
    let told = image.config.history.iter().filter(|step| !step.empty_layer);
    let untold = sizes.len().saturating_sub(told.count());
    let mut sizes = sizes.iter().copied();
    let mut steps: Vec<_> = sizes
        .by_ref()
        .take(untold)
        .map(|size| (None, String::new(), size, String::new()))
        .collect();
    for step in &image.config.history {
        let size = match step.empty_layer {
            true => 0,
            false => sizes.next().unwrap_or_default(),
        };
        let created = step.created.as_deref().and_then(time::parse_rfc3339);
        let by = step.created_by.clone().unwrap_or_default();
        steps.push((created, by, size, step.comment.clone().unwrap_or_default()));
    }
    let own = if long {
        image.id.to_string()
    } else {
        image.id.short()
    };
    let first = steps.len().saturating_sub(1);
    let row = |(at, (created, by, size, comment)): (usize, (Option<i64>, String, u64, String))| {
        let by = by.replace('\t', " ");
        let fields: [(&str, String); 6] = [
            ("Comment", comment),
            ("CreatedAt", created.map(time::rfc3339).unwrap_or_default()),
            (
                "CreatedBy",
                if long {
                    by
                } else {
                    ellipsis(&by, COMMAND_WIDTH)
                },
            ),
            (
                "CreatedSince",
                created.map_or_else(|| "N/A".to_owned(), time::ago),
            ),
            (
                "ID",
                if at == first {
                    own.clone()
                } else {
                    "<missing>".to_owned()
                },
            ),
            (
                "Size",
                if human {
                    units::decimal(size, 3)
                } else {
                    size.to_string()
                },
            ),
        ];
        let fields = fields.map(|(name, value)| (name.to_owned(), Value::from(value)));
        Value::Object(Map::from_iter(fields))
    };
    let mut rows: Vec<Value> = steps.into_iter().enumerate().map(row).collect();
    rows.reverse();
    rows
}
