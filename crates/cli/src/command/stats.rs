//! `stats`.

use std::time::Duration;

use knarr_engine::{Engine, ListOptions, Stats, StatsReader};
use serde_json::{Map, Value};

use super::{Arguments, Call, Command, USUAL, ps};
use crate::failure::Result;
use crate::flag::Flag;
use crate::format::{self, Layout};
use crate::{output, terminal, units};

pub(super) static COMMAND: Command = Command {
    names: &["stats", "container stats"],
    usage: "[OPTIONS] [CONTAINER...]",
    about: "Display a live stream of container(s) resource usage statistics",
    flags: &[&[
        Flag::switch("all", "Show all containers (default shows just running)").short('a'),
        Flag::with("format", "string", ps::FORMAT),
        Flag::switch(
            "no-stream",
            "Disable streaming stats and only pull the first result",
        ),
        Flag::switch("no-trunc", "Do not truncate output"),
    ]],
    arguments: Arguments::AtLeast(0),
    run,
    ..USUAL
};

static LAYOUT: Layout = Layout {
    table: "{{.Container}}\t{{.Name}}\t{{.CPUPerc}}\t{{.MemUsage}}\t{{.MemPerc}}\t{{.NetIO}}\t\
            {{.BlockIO}}\t{{.PIDs}}",
    titles: &[
        ("BlockIO", "BLOCK I/O"),
        ("CPUPerc", "CPU %"),
        ("Container", "CONTAINER ID"),
        ("ID", "CONTAINER ID"),
        ("MemPerc", "MEM %"),
        ("MemUsage", "MEM USAGE / LIMIT"),
        ("Name", "NAME"),
        ("NetIO", "NET I/O"),
        ("PIDs", "PIDS"),
    ],
    kind: "*formatter.statsContext",
};

/// Between two samples, as Docker's engine takes them.
const PERIOD: Duration = Duration::from_secs(1);

struct Watched {
    /// As it is shown: what was typed, or the id.
    shown: String,
    id: String,
    reader: StatsReader,
}

fn run(call: &Call<'_>) -> Result<u8> {
    let line = &call.line;
    let engine = call.engine()?;
    let once = line.on("no-stream");
    let screen = !once && terminal::is_terminal(std::io::stdout());
    let mut watched: Vec<Watched> = Vec::new();
    let mut first = true;
    loop {
        let wanted = wanted(call, &engine)?;
        watched.retain(|known| wanted.iter().any(|(_, id)| *id == known.id));
        let mut fresh = false;
        for (shown, id) in wanted {
            if !watched.iter().any(|known| known.id == id) {
                let mut reader = engine.stats(&id)?;
                // The base of the percentages.
                reader.sample()?;
                watched.push(Watched { shown, id, reader });
                fresh = true;
            }
        }
        if fresh || !first {
            std::thread::sleep(PERIOD);
        }
        first = false;
        let mut rows = Vec::new();
        for one in &mut watched {
            // One that has just gone is left out, and dropped with the next list.
            if let Ok(stats) = one.reader.sample() {
                rows.push(row(&one.shown, &stats, line.on("no-trunc")));
            }
        }
        let text = format::rows(&LAYOUT, line.text("format"), &rows, &|_, _, _| None)?;
        if screen {
            let lines: String = text.lines().map(|line| format!("{line}\x1b[K\n")).collect();
            output::print(&format!("\x1b[H{lines}\x1b[J"))?;
        } else {
            output::print(&text)?;
        }
        if once {
            return Ok(0);
        }
    }
}

/// What is shown, and its id.
fn wanted(call: &Call<'_>, engine: &Engine) -> Result<Vec<(String, String)>> {
    if !call.line.args.is_empty() {
        let mut wanted = Vec::new();
        for name in &call.line.args {
            wanted.push((name.clone(), engine.resolve(name)?.as_str().to_owned()));
        }
        return Ok(wanted);
    }
    let options = ListOptions {
        all: call.line.on("all"),
        ..ListOptions::default()
    };
    let long = call.line.on("no-trunc");
    let containers = engine.list(&options)?.containers;
    Ok(containers
        .iter()
        .map(|container| {
            let id = container.id.as_str();
            let shown = if long { id } else { container.id.short() };
            (shown.to_owned(), id.to_owned())
        })
        .collect())
}

fn row(shown: &str, stats: &Stats, long: bool) -> Value {
    let pair = |(a, b): (u64, u64)| format!("{} / {}", units::decimal(a, 3), units::decimal(b, 3));
    let memory = units::binary(stats.memory);
    let limit = units::binary(stats.memory_limit);
    let id = if long {
        &stats.id
    } else {
        stats.id.get(..12).unwrap_or(&stats.id)
    };
    // In the order of Docker's JSON.
    let fields: [(&str, String); 9] = [
        ("BlockIO", pair(stats.block)),
        ("CPUPerc", format!("{:.2}%", stats.cpu_percent)),
        ("Container", shown.to_owned()),
        ("ID", id.to_owned()),
        ("MemPerc", format!("{:.2}%", stats.memory_percent)),
        ("MemUsage", format!("{memory} / {limit}")),
        ("Name", stats.name.clone()),
        ("NetIO", pair(stats.network)),
        ("PIDs", stats.pids.to_string()),
    ];
    let fields = fields.map(|(name, value)| (name.to_owned(), Value::from(value)));
    Value::Object(Map::from_iter(fields))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn usage_is_shown_as_docker_shows_it() {
        let stats = Stats {
            id: "abcdefabcdefabcdef".to_owned(),
            name: "web".to_owned(),
            cpu_percent: 12.5,
            memory: 3_670_016,
            memory_limit: 1 << 30,
            memory_percent: 0.341,
            network: (0, 1_234),
            block: (5_000_000, 0),
            pids: 3,
        };
        let rows = [row("web", &stats, false)];
        assert_eq!(
            format::rows(&LAYOUT, "", &rows, &|_, _, _| None).unwrap(),
            "CONTAINER ID   NAME      CPU %     MEM USAGE / LIMIT   MEM %     NET I/O       \
             BLOCK I/O   PIDS\n\
             web            web       12.50%    3.5MiB / 1GiB       0.34%     0B / 1.23kB   \
             5MB / 0B    3\n"
        );
    }
}
