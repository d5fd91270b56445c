//! Which containers there are.

use std::collections::BTreeMap;

use knarr_diag::{Explain, Report};
use knarr_monitor::state::{State, Status as Monitored};
use knarr_spec::docker::{Empty, MountPoint};
use knarr_spec::{ContainerId, ContainerName, Digest, Reference};
use serde::Deserialize;

use crate::network::{self, Mode, mode_of};
use crate::record::{FILE, Mount};
use crate::{Engine, Error, Result, time};

/// `--filter key=value`, as typed; several of one key are alternatives, keys must all match.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Filters(pub BTreeMap<String, Vec<String>>);

/// What `ps` asks for.
#[derive(Debug, Clone, Default)]
pub struct ListOptions {
    /// Stopped ones too.
    pub all: bool,
    /// The newest so many, whatever their state (`-n`, `-l`).
    pub last: Option<usize>,
    /// Measure the writable layer (`-s`).
    pub size: bool,
    /// `--filter`.
    pub filters: Filters,
}

/// The containers, newest first, and what could not be read.
#[derive(Debug, Default)]
pub struct Listing {
    /// Newest first.
    pub containers: Vec<Summary>,
    /// Damaged objects; the rest is unaffected.
    pub damaged: Vec<Report>,
}

/// Docker's states.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, serde::Serialize)]
#[serde(rename_all = "lowercase")]
#[expect(missing_docs, reason = "the names are Docker's")]
pub enum Status {
    Created,
    Running,
    Paused,
    Restarting,
    Removing,
    Exited,
    Dead,
}

/// One line of `ps`.
#[derive(Debug, Clone)]
pub struct Summary {
    /// Its id.
    pub id: ContainerId,
    /// Its name.
    pub name: ContainerName,
    /// The image as it was typed.
    pub image: String,
    /// `sha256:…`; empty for `@host` and `scratch`.
    pub image_id: String,
    /// Entrypoint and command.
    pub command: Vec<String>,
    /// Nanoseconds since the epoch.
    pub created: i64,
    /// Docker's state.
    pub status: Status,
    /// Docker's sentence, such as `Up 2 minutes` or `Exited (0) 3 hours ago`.
    pub status_text: String,
    /// The last exit code.
    pub exit_code: i32,
    /// Its labels (the image's and the user's).
    pub labels: BTreeMap<String, String>,
    /// Its mounts.
    pub mounts: Vec<MountPoint>,
    /// Its networks by name, or `none` or `host`; empty with another container's.
    pub networks: Vec<String>,
    /// Docker's text of its ports, published and exposed; empty when it does not run.
    pub ports: String,
    /// Bytes of the writable layer and of the whole root, where asked.
    pub size: Option<(u64, u64)>,
    /// The image's name, where it parses.
    pub reference: Option<Reference>,
}

impl Status {
    /// Docker's word.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Created => "created",
            Self::Running => "running",
            Self::Paused => "paused",
            Self::Restarting => "restarting",
            Self::Removing => "removing",
            Self::Exited => "exited",
            Self::Dead => "dead",
        }
    }

    pub(crate) fn of(state: &State) -> Self {
        match state.status {
            Monitored::Created => Self::Created,
            Monitored::Running => Self::Running,
            Monitored::Paused => Self::Paused,
            Monitored::Restarting => Self::Restarting,
            Monitored::Exited => Self::Exited,
        }
    }
}

/// What of `container.json` a list shows; the rest is skipped unread.
#[derive(Debug, Deserialize)]
struct Brief {
    id: ContainerId,
    name: ContainerName,
    created: String,
    root: BriefRoot,
    config: BriefConfig,
    host: BriefHost,
    #[serde(default)]
    mounts: Vec<Mount>,
    #[serde(default)]
    endpoints: Option<BTreeMap<String, serde::de::IgnoredAny>>,
}

#[derive(Debug, Deserialize)]
struct BriefRoot {
    id: Option<Digest>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
#[derive(Default)]
struct BriefConfig {
    image: String,
    cmd: Option<Vec<String>>,
    entrypoint: Option<Vec<String>>,
    labels: BTreeMap<String, String>,
    exposed_ports: BTreeMap<String, Empty>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct BriefHost {
    network_mode: String,
}

impl Engine {
    pub(crate) fn list_now(&self, options: &ListOptions) -> Result<Listing> {
        let filter = Filter::parse(self, &options.filters)?;
        let all = options.all || options.last.is_some() || filter.any_state;
        let now = time::now();
        let mut listing = Listing::default();
        for (id, run) in self.places()? {
            // A removal that was cut short is finished, unless somebody is at it.
            if run
                && self
                    .intent(&id)
                    .is_ok_and(|intent| intent.is_some_and(|intent| intent.removing))
            {
                self.finish_removal(&id)?;
                continue;
            }
            match self.summary(&id, run, now) {
                Ok(Some(found)) => {
                    let alive = matches!(
                        found.status,
                        Status::Running | Status::Paused | Status::Restarting
                    );
                    if (all || alive) && filter.matches(&found) {
                        listing.containers.push(found);
                    }
                }
                // Half-made, or going: undone unless somebody works on it.
                Ok(None) => self.undo(&id)?,
                Err(error) => listing.damaged.push(
                    error
                        .report()
                        .wrap(format!("container {} cannot be listed", id.short())),
                ),
            }
        }
        listing
            .containers
            .sort_by(|a, b| b.created.cmp(&a.created).then(a.id.cmp(&b.id)));
        if let Some(last) = options.last {
            listing.containers.truncate(last);
        }
        if options.size {
            for summary in &mut listing.containers {
                summary.size = Some(self.sizes(&summary.id)?);
            }
        }
        Ok(listing)
    }

    /// One container; `None` where there is no record.
    fn summary(&self, id: &ContainerId, run: bool, now: i64) -> Result<Option<Summary>> {
        let settings = self.settings();
        let mut found = None;
        for folder in [settings.data_dir(id), settings.run_dir(id)] {
            let path = folder.join(FILE);
            match knarr_fs::read(&path) {
                Ok(bytes) => {
                    let brief: Brief = serde_json::from_slice(&bytes)
                        .map_err(|cause| Error::Damaged { path, cause })?;
                    found = Some(brief);
                    break;
                }
                Err(error) if error.is_not_found() => {}
                Err(error) => return Err(error.into()),
            }
        }
        let Some(brief) = found else { return Ok(None) };
        let state = if run {
            self.state(id)?
        } else {
            self.state_at_rest(id)?
        };
        let command = [&brief.config.entrypoint, &brief.config.cmd];
        Ok(Some(Summary {
            status: Status::of(&state),
            status_text: status_text(&state, now),
            exit_code: state.exit_code.unwrap_or_default(),
            command: command.into_iter().flatten().flatten().cloned().collect(),
            created: time::parse(&brief.created).unwrap_or_default(),
            reference: brief.config.image.parse().ok(),
            image: brief.config.image,
            image_id: brief.root.id.map(|id| id.to_string()).unwrap_or_default(),
            labels: brief.config.labels,
            mounts: brief.mounts.iter().map(Mount::point).collect(),
            networks: match mode_of(&brief.host.network_mode) {
                Mode::None => vec!["none".to_owned()],
                Mode::Host => vec!["host".to_owned()],
                Mode::Container(_) | Mode::Namespace(_) => Vec::new(),
                Mode::Networks(first) => brief
                    .endpoints
                    .map_or_else(|| vec![first.to_owned()], |all| all.into_keys().collect()),
            },
            ports: if state.status.is_alive() {
                let exposed: Vec<String> = brief.config.exposed_ports.into_keys().collect();
                network::show(&state.network.ports, &exposed)
            } else {
                String::new()
            },
            size: None,
            id: brief.id,
            name: brief.name,
        }))
    }

    /// Bytes of the writable layer, and of it and the image together.
    pub(crate) fn sizes(&self, id: &ContainerId) -> Result<(u64, u64)> {
        let record = self.record(id)?;
        let own = disk_usage(&record.paths.upper);
        let image = match &record.root {
            crate::record::Root::Image { id, .. } => self
                .images()
                .get((*id).into())
                .map(|image| image.size)
                .unwrap_or_default(),
            _ => 0,
        };
        Ok((own, own.saturating_add(image)))
    }
}

/// Bytes of all files below a folder; what cannot be read counts nothing.
pub(crate) fn disk_usage(path: &std::path::Path) -> u64 {
    use std::os::unix::fs::MetadataExt as _;
    let Ok(entries) = std::fs::read_dir(path) else {
        return 0;
    };
    entries
        .flatten()
        .map(|entry| match entry.metadata() {
            Ok(metadata) if metadata.is_dir() => disk_usage(&entry.path()),
            Ok(metadata) if metadata.nlink() > 1 => metadata.len() / metadata.nlink(),
            Ok(metadata) => metadata.len(),
            Err(_) => 0,
        })
        .fold(0, u64::saturating_add)
}

/// Docker's sentence (moby, `container/state.go`, `String`).
pub(crate) fn status_text(state: &State, now: i64) -> String {
    let since = |time: &Option<String>| {
        let time = time.as_deref().and_then(time::parse).unwrap_or(now);
        time::human(now.saturating_sub(time).max(0))
    };
    let code = state.exit_code.unwrap_or_default();
    match state.status {
        Monitored::Running => format!("Up {}", since(&state.started_at)),
        Monitored::Paused => format!("Up {} (Paused)", since(&state.started_at)),
        Monitored::Restarting => {
            format!("Restarting ({code}) {} ago", since(&state.finished_at))
        }
        Monitored::Created => "Created".to_owned(),
        Monitored::Exited => format!("Exited ({code}) {} ago", since(&state.finished_at)),
    }
}

/// `--filter`, understood. Several values of one key are alternatives, but labels must all be
/// there, as with Docker.
#[derive(Debug, Default)]
struct Filter {
    any_state: bool,
    ids: Vec<String>,
    names: Vec<String>,
    labels: Vec<String>,
    statuses: Vec<String>,
    exited: Vec<i32>,
    ancestors: Vec<Ancestor>,
    before: Option<i64>,
    since: Option<i64>,
    volumes: Vec<String>,
    networks: Vec<String>,
    /// A key that nothing can match, such as `publish` until there are networks.
    nothing: bool,
}

#[derive(Debug)]
struct Ancestor {
    text: String,
    reference: Option<Reference>,
    /// The image itself, and those that have all of its layers below theirs would be asked for too.
    id: Option<String>,
}

impl Filter {
    fn parse(engine: &Engine, filters: &Filters) -> Result<Self> {
        let mut all = Self::default();
        for (key, values) in &filters.0 {
            for value in values {
                let wrong = || Error::invalid(format!("invalid filter '{key}={value}'"));
                match key.as_str() {
                    "id" => all.ids.push(value.clone()),
                    "name" => all.names.push(value.trim_start_matches('/').to_owned()),
                    "label" => all.labels.push(value.clone()),
                    "status" => {
                        let known = [
                            "created",
                            "running",
                            "paused",
                            "restarting",
                            "removing",
                            "exited",
                            "dead",
                        ];
                        if !known.contains(&value.as_str()) {
                            return Err(Error::invalid(format!(
                                "invalid filter 'status={value}': it is one of {}",
                                known.join(", ")
                            )));
                        }
                        all.any_state = true;
                        all.statuses.push(value.clone());
                    }
                    "exited" => {
                        all.any_state = true;
                        all.exited.push(value.parse().map_err(|_| wrong())?);
                    }
                    "ancestor" => all.ancestors.push(Ancestor {
                        text: value.clone(),
                        reference: value.parse().ok(),
                        id: engine
                            .images()
                            .resolve(value)
                            .ok()
                            .map(|image| image.id.to_string()),
                    }),
                    "before" | "since" => {
                        let record = engine.record(&engine.find(value)?)?;
                        let time = time::parse(&record.created);
                        if key == "before" {
                            all.before = time
                        } else {
                            all.since = time
                        }
                        all.any_state = true;
                    }
                    "volume" => all.volumes.push(value.clone()),
                    "network" => all.networks.push(value.clone()),
                    "publish" | "expose" | "is-task" | "health" => {
                        all.nothing |= !matches!(
                            (key.as_str(), value.as_str()),
                            ("health", "none") | ("is-task", "false")
                        );
                    }
                    _ => return Err(Error::invalid(format!("invalid filter '{key}'"))),
                }
            }
        }
        Ok(all)
    }

    fn matches(&self, found: &Summary) -> bool {
        fn any<T>(wanted: &[T], is: impl Fn(&T) -> bool) -> bool {
            wanted.is_empty() || wanted.iter().any(is)
        }
        !self.nothing
            && any(&self.ids, |id| found.id.as_str().starts_with(id.as_str()))
            && any(&self.names, |name| name_matches(name, found.name.as_str()))
            && self
                .labels
                .iter()
                .all(|label| label_matches(&found.labels, label))
            && any(&self.statuses, |status| status == found.status.as_str())
            && any(&self.exited, |code| {
                found.status == Status::Exited && found.exit_code == *code
            })
            && any(&self.ancestors, |ancestor| {
                ancestor.text == found.image
                    || (ancestor.reference.is_some() && ancestor.reference == found.reference)
                    || ancestor.id.as_ref().is_some_and(|id| *id == found.image_id)
            })
            && self.before.is_none_or(|time| found.created < time)
            && self.since.is_none_or(|time| found.created > time)
            && any(&self.volumes, |volume| {
                found.mounts.iter().any(|mount| {
                    mount.name == *volume || mount.destination == volume.trim_end_matches('/')
                })
            })
            && any(&self.networks, |network| found.networks.contains(network))
    }
}

/// Docker takes names as regular expressions; what people type is a part of a name, at times with
/// anchors.
fn name_matches(pattern: &str, name: &str) -> bool {
    let (start, pattern) = match pattern.strip_prefix('^') {
        Some(rest) => (true, rest.trim_start_matches('/')),
        None => (false, pattern),
    };
    let (end, pattern) = match pattern.strip_suffix('$') {
        Some(rest) => (true, rest),
        None => (false, pattern),
    };
    match (start, end) {
        (true, true) => name == pattern,
        (true, false) => name.starts_with(pattern),
        (false, true) => name.ends_with(pattern),
        (false, false) => name.contains(pattern),
    }
}

/// `key` or `key=value`.
pub(crate) fn label_matches(labels: &BTreeMap<String, String>, wanted: &str) -> bool {
    match wanted.split_once('=') {
        Some((key, value)) => labels.get(key).is_some_and(|known| known == value),
        None => labels.contains_key(wanted),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn states_are_said_as_docker_says_them() {
        let mut state = State::created("0".repeat(64).parse().unwrap());
        let now = time::parse("2026-01-01T00:10:00Z").unwrap();
        let mut check = |status, text: &str| {
            state.status = status;
            state.started_at = Some("2026-01-01T00:05:00Z".to_owned());
            state.finished_at = Some("2026-01-01T00:09:00Z".to_owned());
            state.exit_code = Some(3);
            assert_eq!(status_text(&state, now), text);
        };
        check(Monitored::Created, "Created");
        check(Monitored::Running, "Up 5 minutes");
        check(Monitored::Paused, "Up 5 minutes (Paused)");
        check(Monitored::Exited, "Exited (3) About a minute ago");
        check(Monitored::Restarting, "Restarting (3) About a minute ago");
    }

    #[test]
    fn names_match_by_part_and_by_anchors() {
        for (pattern, matches) in [
            ("eb", true),
            ("^web$", true),
            ("^/web$", true),
            ("^eb", false),
            ("we$", false),
        ] {
            assert_eq!(name_matches(pattern, "web"), matches, "{pattern}");
        }
    }
}
