//! How a pull or push is doing: bars on a terminal, a line per change elsewhere, as Docker shows it,
//! or its engine's JSON lines.

use std::io::{self, Write};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use knarr_engine::image::{Event, LayerState, Progress};
use knarr_spec::{Digest, Reference};
use serde_json::{Value, json};

use crate::flag::{Flag, Parsed};
use crate::{attachment, terminal, units};

/// Bars are drawn anew at most this often.
const PAUSE: Duration = Duration::from_millis(100);

/// Where progress is shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Place {
    Stdout,
    Stderr,
    /// Standard output, as bars whatever it is.
    Bars,
    /// Standard output, a line per change even on a terminal.
    Plain,
    /// Standard output, a JSON object per change (Docker Engine API, `JSONMessage`).
    Json,
    Nowhere,
}

/// `--progress` of commands that pull or push.
pub(crate) const FLAG: Flag = Flag::with(
    "progress",
    "string",
    "Type of progress output (\"auto\", \"plain\", \"tty\", \"quiet\", \"json\")",
)
.default("\"auto\"")
.checked(check);

fn check(text: &str) -> std::result::Result<(), String> {
    match text {
        "auto" | "plain" | "tty" | "quiet" | "json" => Ok(()),
        _ => Err("use auto, plain, tty, quiet or json".to_owned()),
    }
}

impl Place {
    /// As `--quiet` and `--progress` say.
    pub(crate) fn of(line: &Parsed) -> Self {
        if line.on("quiet") {
            return Self::Nowhere;
        }
        match line.text("progress") {
            "quiet" => Self::Nowhere,
            "plain" => Self::Plain,
            "tty" => Self::Bars,
            "json" => Self::Json,
            _ => Self::Stdout,
        }
    }

    /// Whether people read it on standard output.
    pub(crate) fn is_text(self) -> bool {
        matches!(self, Self::Stdout | Self::Bars | Self::Plain)
    }
}

/// What is said of layers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Words {
    Pull,
    Load,
    Push,
}

/// Receives what the image store tells, and draws it.
#[derive(Debug)]
pub(crate) struct Bars {
    place: Place,
    /// Columns of the terminal, where bars are drawn.
    width: Option<usize>,
    words: Words,
    /// Printed before the first pull.
    announce: Option<String>,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    layers: Vec<Layer>,
    reference: Option<Reference>,
    resolved: Option<Digest>,
}

#[derive(Debug)]
struct Layer {
    id: Digest,
    state: LayerState,
    drawn: Instant,
}

impl Bars {
    pub(crate) fn new(place: Place) -> Self {
        let terminal = match place {
            Place::Stdout => terminal::is_terminal(io::stdout()),
            Place::Stderr => terminal::is_terminal(io::stderr()),
            Place::Bars => true,
            Place::Plain | Place::Json | Place::Nowhere => false,
        };
        Self {
            place,
            width: terminal.then(|| terminal::size().map_or(80, |(_, columns)| columns.into())),
            words: Words::Pull,
            announce: None,
            state: Mutex::default(),
        }
    }

    /// For `run` and `create`, which say first why they pull.
    pub(crate) fn for_run(image: &str, quiet: bool) -> Self {
        let place = if quiet { Place::Nowhere } else { Place::Stderr };
        let name = image
            .parse()
            .map_or_else(|_| image.to_owned(), |r: Reference| r.familiar());
        Self {
            announce: Some(format!("Unable to find image '{name}' locally")),
            ..Self::new(place)
        }
    }

    /// For `load` and `import`: bars on a terminal, nothing elsewhere.
    pub(crate) fn for_archive(quiet: bool) -> Self {
        let bars = Self::new(if quiet { Place::Nowhere } else { Place::Stderr });
        let place = if bars.width.is_some() {
            bars.place
        } else {
            Place::Nowhere
        };
        Self {
            place,
            words: Words::Load,
            ..bars
        }
    }

    /// For `push`.
    pub(crate) fn for_push(place: Place) -> Self {
        Self {
            words: Words::Push,
            ..Self::new(place)
        }
    }

    /// After a pull that worked: what it was, and whether it is new.
    pub(crate) fn finish(&self, newer: bool) {
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(reference) = &state.reference else {
            return;
        };
        if let Some(digest) = &state.resolved {
            self.say(&format!("Digest: {digest}"));
        }
        let familiar = reference.familiar();
        self.say(&if newer {
            format!("Status: Downloaded newer image for {familiar}")
        } else {
            format!("Status: Image is up to date for {familiar}")
        });
    }

    /// Whether anything was pulled, or tried to be.
    pub(crate) fn pulled(&self) -> bool {
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.reference.is_some()
    }

    /// A line of its own.
    pub(crate) fn say(&self, text: &str) {
        match self.place {
            Place::Json => self.json(json!({"status": text})),
            _ => self.write(&format!("{text}\n")),
        }
    }

    fn json(&self, message: Value) {
        self.write(&format!("{message}\n"));
    }

    fn write(&self, text: &str) {
        // Progress that nobody can see is no reason to fail.
        match self.place {
            Place::Stdout | Place::Bars | Place::Plain | Place::Json => {
                let mut out = io::stdout().lock();
                out.write_all(text.as_bytes())
                    .and_then(|()| out.flush())
                    .ok();
            }
            Place::Stderr => {
                io::stderr().lock().write_all(text.as_bytes()).ok();
            }
            Place::Nowhere => {}
        }
    }

    fn layer(&self, state: &mut State, id: Digest, now: LayerState) {
        let at = state.layers.iter().position(|layer| layer.id == id);
        let drawn = Instant::now();
        let Some(at) = at else {
            state.layers.push(Layer {
                id,
                state: now,
                drawn,
            });
            match self.place {
                Place::Json => self.layer_json(id, now),
                _ => self.write(&format!("{}\n", self.line(id, now))),
            }
            return;
        };
        let below = state.layers.len() - at;
        let Some(layer) = state.layers.get_mut(at) else {
            return;
        };
        let is_moving = |state| {
            matches!(
                state,
                LayerState::Receiving { .. } | LayerState::Sending { .. }
            )
        };
        let moved = is_moving(layer.state) && is_moving(now);
        let same = layer.state == now;
        layer.state = now;
        let shows_moves = self.width.is_some() || self.place == Place::Json;
        if same || (moved && (!shows_moves || drawn - layer.drawn < PAUSE)) {
            return;
        }
        layer.drawn = drawn;
        if self.place == Place::Json {
            return self.layer_json(id, now);
        }
        let line = self.line(id, now);
        match self.width {
            Some(_) => self.write(&format!("\x1b[{below}A\r\x1b[2K{line}\x1b[{below}B\r")),
            // Elsewhere only what is final is worth a line.
            None if is_moving(now) => {}
            None => self.write(&format!("{line}\n")),
        }
    }

    fn line(&self, id: Digest, state: LayerState) -> String {
        format!("{}: {}", id.short(), self.words(state))
    }

    fn words(&self, state: LayerState) -> String {
        let width = self.width.unwrap_or(80);
        match (state, self.words) {
            (LayerState::Pending, Words::Pull) => "Pulling fs layer".to_owned(),
            (LayerState::Pending, Words::Push) => "Preparing".to_owned(),
            (LayerState::Pending, Words::Load) => "Waiting".to_owned(),
            (LayerState::Exists, Words::Push) => "Layer already exists".to_owned(),
            (LayerState::Exists, _) => "Already exists".to_owned(),
            (LayerState::Receiving { done, total }, Words::Load) => {
                bar("Loading layer", done, total, width)
            }
            (LayerState::Receiving { done, total }, _) => bar("Downloading", done, total, width),
            (LayerState::Sending { done, total }, _) => bar("Pushing", done, total, width),
            (LayerState::Sent, _) => "Pushed".to_owned(),
            (LayerState::Received, Words::Pull) => "Download complete".to_owned(),
            (LayerState::Complete, Words::Pull) => "Pull complete".to_owned(),
            (LayerState::Received | LayerState::Complete, _) => "Loaded".to_owned(),
            _ => String::new(),
        }
    }

    /// Docker's own form, which programs read.
    fn layer_json(&self, id: Digest, state: LayerState) {
        let (status, detail) = match state {
            LayerState::Receiving { done, total } => {
                ("Downloading".to_owned(), Some((done, total)))
            }
            LayerState::Sending { done, total } => ("Pushing".to_owned(), Some((done, total))),
            other => (self.words(other), None),
        };
        let detail = match detail {
            Some((current, total)) => json!({"current": current, "total": total}),
            None => json!({}),
        };
        self.json(json!({"status": status, "progressDetail": detail, "id": id.short()}));
    }
}

/// `Downloading [====>     ]  1.2MB/3.4MB`
fn bar(verb: &str, done: u64, total: u64, width: usize) -> String {
    let have = units::decimal(done, 4);
    if total == 0 {
        return format!("{verb} {have:>8}");
    }
    let length = match width {
        110.. => 50,
        70.. => 20,
        _ => 0,
    };
    let numbers = format!("{have:>8}/{}", units::decimal(total, 4));
    if length == 0 {
        return format!("{verb} {numbers}");
    }
    let part = u128::from(done.min(total)) * length / u128::from(total);
    let part = usize::try_from(part).unwrap_or(0);
    let rest = usize::try_from(length).unwrap_or(0) - part;
    let head = if rest > 0 { ">" } else { "" };
    let pad = " ".repeat(rest.saturating_sub(1));
    format!("{verb} [{}{head}{pad}] {numbers}", "=".repeat(part))
}

impl Progress for Bars {
    fn event(&self, event: &Event) {
        if matches!(event, Event::Pulling(_) | Event::Pushing(_)) {
            // It may take long: Ctrl-C ends it, and the store has nothing half-made.
            attachment::let_signals_act();
        }
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        match event {
            Event::Pulling(reference) => {
                if let Some(announce) = &self.announce {
                    self.say(announce);
                }
                let repository = reference.repository();
                let tag = reference.tag().map(str::to_owned);
                let tag = tag.or_else(|| reference.digest().map(|digest| digest.to_string()));
                let tag = tag.unwrap_or_default();
                match self.place {
                    Place::Json => {
                        let status = format!("Pulling from {repository}");
                        self.json(json!({"status": status, "id": tag}));
                    }
                    _ => self.say(&format!("{tag}: Pulling from {repository}")),
                }
                state.reference = Some(reference.clone());
            }
            Event::Pushing(reference) => self.say(&format!(
                "The push refers to repository [{}/{}]",
                reference.registry(),
                reference.repository()
            )),
            Event::Mounted { layer, from } => {
                let at = state.layers.iter().position(|known| known.id == *layer);
                let status = format!("Mounted from {from}");
                match (self.place, self.width, at) {
                    (Place::Json, _, _) => self
                        .json(json!({"status": status, "progressDetail": {}, "id": layer.short()})),
                    (_, Some(_), Some(at)) => {
                        let below = state.layers.len() - at;
                        let line = format!("{}: {status}", layer.short());
                        self.write(&format!("\x1b[{below}A\r\x1b[2K{line}\x1b[{below}B\r"));
                    }
                    _ => self.say(&format!("{}: {status}", layer.short())),
                }
            }
            Event::Layer { layer, state: now } => self.layer(&mut state, *layer, *now),
            Event::Resolved(digest) => state.resolved = Some(*digest),
            Event::Retrying(why) => {
                self.say(why);
                // The lines above have moved; begin anew below them.
                state.layers.clear();
            }
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bars_grow_to_their_full_length() {
        for (done, total, width, expected) in [
            (
                0,
                100,
                80,
                "Downloading [>                   ]       0B/100B",
            ),
            (
                50,
                100,
                80,
                "Downloading [==========>         ]      50B/100B",
            ),
            (
                100,
                100,
                80,
                "Downloading [====================]     100B/100B",
            ),
            (
                200,
                100,
                80,
                "Downloading [====================]     200B/100B",
            ),
            (1_234_567, 0, 80, "Downloading  1.235MB"),
            (50, 100, 40, "Downloading      50B/100B"),
        ] {
            assert_eq!(bar("Downloading", done, total, width), expected);
        }
        assert!(bar("Downloading", 1, 2, 120).contains(&format!("{}>", "=".repeat(25))));
    }
}
