//! What happened and what happens: the file that everybody appends to, read and followed.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{ErrorKind, Read};
use std::path::{Path, PathBuf};
use std::time::Duration;

use knarr_monitor::events::{EVENTS_FILE, Event};

use crate::list::label_matches;
use crate::watch::Watch;
use crate::{Engine, Error, Filters, Result, time};

/// Which events are wanted.
#[derive(Debug, Clone, Default)]
pub struct EventOptions {
    /// Nanoseconds since 1970: earlier ones are left out. Without, only what is still to come.
    pub since: Option<i64>,
    /// Nanoseconds since 1970: it ends then. Without, never.
    pub until: Option<i64>,
    /// `container`, `event`, `image`, `label`, `network`, `scope`, `type`, `volume`, `daemon`.
    pub filters: Filters,
}

/// Who gets the events; an error of its ends the reading and is given back.
pub type EventSink<'a> = &'a mut dyn FnMut(&Event) -> std::io::Result<()>;

impl Engine {
    pub(crate) fn events_now(&self, options: &EventOptions, sink: EventSink<'_>) -> Result<()> {
        check(&options.filters)?;
        let folder = &self.settings().run_root;
        let path = folder.join(EVENTS_FILE);
        let since = options.since.unwrap_or_else(time::now);
        let mut give = |line: &[u8]| -> Result<()> {
            // A record that a crash cut short is none.
            let Ok(event) = serde_json::from_slice::<Event>(line) else {
                return Ok(());
            };
            let late = options.until.is_some_and(|until| event.time_nano > until);
            if event.time_nano < since || late || !matches(&options.filters, &event) {
                return Ok(());
            }
            sink(&event).map_err(|cause| Error::Stream {
                what: "the events",
                cause,
            })
        };
        // Before the first look, so that nothing falls between.
        let watch = Watch::new(folder)?;
        let mut current = match options.since {
            Some(_) => Follower::after_all(path, &mut give)?,
            None => Follower::open(path)?,
        };
        loop {
            current.read(&mut give)?;
            let now = time::now();
            let left = options.until.map(|until| until.saturating_sub(now));
            if left.is_some_and(|left| left <= 0) {
                return Ok(());
            }
            let left = left.and_then(|left| u64::try_from(left).ok());
            watch.wait(left.map(Duration::from_nanos))?;
        }
    }
}

/// A file of records that grows, and is set aside when it is full.
struct Follower {
    path: PathBuf,
    file: Option<File>,
    rest: Vec<u8>,
}

impl Follower {
    fn open(path: PathBuf) -> Result<Self> {
        let file = open(&path)?;
        Ok(Self {
            path,
            file,
            rest: Vec::new(),
        })
    }

    /// Gives the records of the file that was set aside; goes on with the one that came after it.
    fn after_all(path: PathBuf, give: &mut dyn FnMut(&[u8]) -> Result<()>) -> Result<Self> {
        let older = path.with_extension("1");
        loop {
            let (mut aside, current) = (Self::open(older.clone())?, Self::open(path.clone())?);
            // Set aside between the two, a file would be neither.
            let now = open(&older)?;
            if same(aside.file.as_ref(), now.as_ref(), &older)? {
                if let Some(file) = &mut aside.file {
                    drain(file, &older, &mut aside.rest, give)?;
                }
                return Ok(current);
            }
        }
    }

    /// Gives all records that are there now.
    fn read(&mut self, give: &mut dyn FnMut(&[u8]) -> Result<()>) -> Result<()> {
        loop {
            if let Some(file) = &mut self.file {
                drain(file, &self.path, &mut self.rest, give)?;
            }
            // Was it set aside? Then what was written until then has been read above.
            let named = open(&self.path)?;
            if same(self.file.as_ref(), named.as_ref(), &self.path)? {
                return Ok(());
            }
            if let Some(file) = &mut self.file {
                drain(file, &self.path, &mut self.rest, give)?;
            }
            let Some(named) = named else { return Ok(()) };
            self.file = Some(named);
            self.rest.clear();
        }
    }
}

fn open(path: &Path) -> Result<Option<File>> {
    match knarr_fs::open_read(path) {
        Ok(file) => Ok(Some(File::from(file))),
        Err(error) if error.is_not_found() => Ok(None),
        Err(error) => Err(error.into()),
    }
}

fn same(one: Option<&File>, other: Option<&File>, path: &Path) -> Result<bool> {
    let id = |file: &File| {
        let stat = rustix::fs::fstat(file).map_err(knarr_fs::Error::of("stat", "fstat", path))?;
        Ok::<_, Error>((stat.st_dev, stat.st_ino))
    };
    Ok(one.map(id).transpose()? == other.map(id).transpose()?)
}

fn drain(
    file: &mut File,
    path: &Path,
    rest: &mut Vec<u8>,
    give: &mut dyn FnMut(&[u8]) -> Result<()>,
) -> Result<()> {
    let mut buffer = [0; 32 << 10];
    loop {
        let count = match file.read(&mut buffer) {
            Ok(0) => return Ok(()),
            Ok(count) => count,
            Err(error) if error.kind() == ErrorKind::Interrupted => continue,
            Err(error) => return Err(knarr_fs::Error::of_io("read", "read", path)(error).into()),
        };
        for piece in buffer
            .get(..count)
            .unwrap_or_default()
            .split_inclusive(|byte| *byte == b'\n')
        {
            rest.extend_from_slice(piece);
            if rest.last() == Some(&b'\n') {
                give(rest)?;
                rest.clear();
            }
        }
    }
}

/// The filters that `docker events` knows and that something here can match.
const KNOWN: [&str; 9] = [
    "container",
    "daemon",
    "event",
    "image",
    "label",
    "network",
    "scope",
    "type",
    "volume",
];

fn check(filters: &Filters) -> Result<()> {
    match filters.0.keys().find(|key| !KNOWN.contains(&key.as_str())) {
        Some(key) => Err(Error::invalid_hint(
            format!("invalid filter '{key}'"),
            format!("the filters of events are {}", KNOWN.join(", ")),
        )),
        None => Ok(()),
    }
}

/// Whether an event passes (moby, daemon/events/filter.go): one value of each key, all labels.
fn matches(filters: &Filters, event: &Event) -> bool {
    let id = event.actor.id.as_str();
    let attributes: &BTreeMap<String, String> = &event.actor.attributes;
    let name = attributes.get("name").map_or("", String::as_str);
    let object = |kind: &str, value: &str| {
        event.kind == kind && (id.starts_with(value) || name.starts_with(value))
    };
    filters.0.iter().all(|(key, values)| match key.as_str() {
        "label" => values.iter().all(|label| label_matches(attributes, label)),
        _ => values.iter().any(|value| match key.as_str() {
            "type" => event.kind == *value,
            "scope" => event.scope == *value,
            // `exec_create: sh -c …` is an `exec_create`.
            "event" => {
                event.action == *value
                    || event
                        .action
                        .split_once(':')
                        .is_some_and(|(action, _)| action == value)
            }
            "image" => image(event, value),
            kind => object(kind, value),
        }),
    })
}

/// Events of an image, and of the containers made from it; a name means all its tags.
fn image(event: &Event, wanted: &str) -> bool {
    let without_tag = |name: &str| match name.rsplit_once(':') {
        Some((repository, tag)) if !tag.contains('/') => repository.to_owned(),
        _ => name.to_owned(),
    };
    let key = match event.kind.as_str() {
        "image" => "name",
        _ => "image",
    };
    let name = event.actor.attributes.get(key).map_or("", String::as_str);
    (event.kind == "image" && event.actor.id == wanted)
        || name == wanted
        || without_tag(name) == wanted
}

#[cfg(test)]
mod tests {
    use super::*;
    use knarr_monitor::events::Actor;

    fn event(kind: &str, action: &str, id: &str, attributes: &[(&str, &str)]) -> Event {
        Event {
            kind: kind.to_owned(),
            action: action.to_owned(),
            actor: Actor {
                id: id.to_owned(),
                attributes: attributes
                    .iter()
                    .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()))
                    .collect(),
            },
            scope: "local".to_owned(),
            time: 0,
            time_nano: 0,
        }
    }

    #[test]
    fn filters_are_dockers() {
        let started = event(
            "container",
            "start",
            "abcdef",
            &[("name", "web"), ("image", "nginx:1.27"), ("tier", "front")],
        );
        let tagged = event("image", "tag", "sha256:1234", &[("name", "nginx:1.27")]);
        for (filter, container, image) in [
            (&[("type", "container")][..], true, false),
            (&[("type", "container"), ("type", "image")], true, true),
            (&[("event", "start")], true, false),
            (&[("event", "start"), ("type", "image")], false, false),
            (&[("container", "web")], true, false),
            (&[("container", "abc")], true, false),
            (&[("container", "db")], false, false),
            (&[("image", "nginx")], true, true),
            (&[("image", "nginx:1.27")], true, true),
            (&[("image", "nginx:1.26")], false, false),
            (&[("image", "sha256:1234")], false, true),
            (&[("label", "tier=front")], true, false),
            (&[("label", "tier"), ("label", "none")], false, false),
            (&[("scope", "local")], true, true),
            (&[("volume", "web")], false, false),
        ] {
            let mut filters = Filters::default();
            for (key, value) in filter {
                let values = filters.0.entry((*key).to_owned()).or_default();
                values.push((*value).to_owned());
            }
            assert_eq!(matches(&filters, &started), container, "{filter:?}");
            assert_eq!(matches(&filters, &tagged), image, "{filter:?}");
        }
    }

    #[test]
    fn records_are_read_across_a_file_that_was_set_aside() {
        let dir = knarr_fs::TempDir::new_in(&std::env::temp_dir().join("knarr-engine-tests"));
        let dir = dir.unwrap();
        let path = dir.path().join("events");
        let mut follower = Follower::open(path.clone()).unwrap();
        let mut seen = Vec::new();
        let mut read = |follower: &mut Follower| {
            follower
                .read(&mut |line| {
                    seen.push(String::from_utf8_lossy(line).trim().to_owned());
                    Ok(())
                })
                .unwrap();
        };
        read(&mut follower);
        std::fs::write(&path, "a\nb\nhalf").unwrap();
        read(&mut follower);
        std::fs::write(&path, "a\nb\nhalf done\n").unwrap();
        std::fs::rename(&path, path.with_extension("1")).unwrap();
        std::fs::write(&path, "new\n").unwrap();
        read(&mut follower);
        assert_eq!(seen, ["a", "b", "half done", "new"]);
    }
}
