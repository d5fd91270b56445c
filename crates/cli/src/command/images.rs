//! `images`.

use knarr_engine::image::Listed;
use knarr_spec::Reference;
use serde_json::{Map, Value};

use super::{Arguments, Call, Command, USUAL, ps};
use crate::failure::{Failure, Result};
use crate::flag::Flag;
use crate::format::{self, Layout};
use crate::{output, time, units};

pub(super) static COMMAND: Command = Command {
    names: &["images", "image ls", "image list"],
    usage: "[OPTIONS] [REPOSITORY[:TAG]]",
    about: "List images",
    flags: &[&[
        Flag::switch("all", "Show all images (default hides intermediate images)").short('a'),
        Flag::switch("digests", "Show digests"),
        Flag::with(
            "filter",
            "filter",
            "Filter output based on conditions provided",
        )
        .short('f'),
        Flag::with("format", "string", ps::FORMAT),
        Flag::switch("no-trunc", "Don't truncate output"),
        Flag::switch("quiet", "Only show image IDs").short('q'),
        Flag::switch("tree", "").refused("`knarr image tree` shows an image's layers"),
    ]],
    arguments: Arguments::AtMost(1),
    run,
    ..USUAL
};

pub(super) const TITLES: &[(&str, &str)] = &[
    ("Containers", "CONTAINERS"),
    ("CreatedAt", "CREATED AT"),
    ("CreatedSince", "CREATED"),
    ("Digest", "DIGEST"),
    ("ID", "IMAGE ID"),
    ("Repository", "REPOSITORY"),
    ("SharedSize", "SHARED SIZE"),
    ("Size", "SIZE"),
    ("Tag", "TAG"),
    ("UniqueSize", "UNIQUE SIZE"),
    ("VirtualSize", "SIZE"),
];

static LAYOUT: Layout = Layout {
    table: "{{.Repository}}\t{{.Tag}}\t{{.ID}}\t{{.CreatedSince}}\t{{.Size}}",
    titles: TITLES,
    kind: "*formatter.imageContext",
};

static WITH_DIGESTS: Layout = Layout {
    table: "{{.Repository}}\t{{.Tag}}\t{{.Digest}}\t{{.ID}}\t{{.CreatedSince}}\t{{.Size}}",
    titles: TITLES,
    kind: "*formatter.imageContext",
};

const NONE: &str = "<none>";

fn run(call: &Call<'_>) -> Result<u8> {
    let line = &call.line;
    let engine = call.engine()?;
    let listing = engine.images().list()?;
    let mut kept = Vec::new();
    let filter = Filter::read(call, &listing.images)?;
    for listed in &listing.images {
        // The other images of a whole index are shown where all are.
        if filter.keeps(listed) && (!listed.is_part || line.on("all")) {
            kept.push(listed);
        }
    }
    let long = line.on("no-trunc");
    let digests = line.on("digests") || line.text("format").contains(".Digest");
    let names = |listed: &Listed| filter.names(listed, digests);
    let text = if line.on("quiet") && line.text("format").is_empty() {
        kept.iter()
            .flat_map(|listed| names(listed).into_iter().map(|_| id(listed, long) + "\n"))
            .collect()
    } else {
        let rows: Vec<Value> = kept
            .iter()
            .flat_map(|listed| {
                names(listed)
                    .into_iter()
                    .map(|name| row(listed, &name, long))
            })
            .collect();
        let layout = if line.on("digests") {
            &WITH_DIGESTS
        } else {
            &LAYOUT
        };
        format::rows(layout, line.text("format"), &rows, &|_, _, _| None)?
    };
    output::print(&text)?;
    if listing.damaged.is_empty() {
        return Ok(0);
    }
    let reports = listing
        .damaged
        .iter()
        .map(knarr_diag::Explain::report)
        .collect();
    Err(Failure::told(reports))
}

fn id(listed: &Listed, long: bool) -> String {
    if long {
        listed.image.id.to_string()
    } else {
        listed.image.id.short()
    }
}

/// The rows of one image, one per name.
pub(super) fn rows(listed: &Listed, digests: bool, long: bool) -> Vec<Value> {
    let names = all_names(listed, digests);
    names.iter().map(|name| row(listed, name, long)).collect()
}

/// Repository, tag and digest of a row.
type Name = (String, String, String);

/// The rows of one image: one per tag, or per tag and digest; one with `<none>` where there is none.
fn all_names(listed: &Listed, digests: bool) -> Vec<Name> {
    let of = |reference: &Reference, repository: &str| reference.familiar_name() == repository;
    let mut repositories: Vec<String> = Vec::new();
    for reference in listed.tags.iter().chain(&listed.digests) {
        let name = reference.familiar_name();
        if !repositories.contains(&name) {
            repositories.push(name);
        }
    }
    let none = || NONE.to_owned();
    let mut names = Vec::new();
    for repository in repositories {
        let tags: Vec<String> = listed
            .tags
            .iter()
            .filter(|reference| of(reference, &repository))
            .filter_map(|reference| reference.tag().map(str::to_owned))
            .collect();
        let shas: Vec<String> = listed
            .digests
            .iter()
            .filter(|reference| of(reference, &repository))
            .filter_map(|reference| reference.digest().map(|digest| digest.to_string()))
            .collect();
        let tags = if tags.is_empty() { vec![none()] } else { tags };
        let shas = if shas.is_empty() || !digests {
            vec![none()]
        } else {
            shas
        };
        for tag in &tags {
            for sha in &shas {
                names.push((repository.clone(), tag.clone(), sha.clone()));
            }
        }
    }
    if names.is_empty() {
        names.push((none(), none(), none()));
    }
    names
}

fn created(listed: &Listed) -> Option<i64> {
    listed
        .image
        .config
        .created
        .as_deref()
        .and_then(time::parse_rfc3339)
}

fn row(listed: &Listed, (repository, tag, digest): &Name, long: bool) -> Value {
    let created = created(listed);
    // In the order of Docker's JSON.
    let fields: [(&str, String); 11] = [
        ("Containers", "N/A".to_owned()),
        ("CreatedAt", time::local(created.unwrap_or(0))),
        (
            "CreatedSince",
            created.map_or_else(|| "N/A".to_owned(), time::ago),
        ),
        ("Digest", digest.clone()),
        ("ID", id(listed, long)),
        ("Repository", repository.clone()),
        ("SharedSize", "N/A".to_owned()),
        ("Size", units::decimal(listed.image.size, 3)),
        ("Tag", tag.clone()),
        ("UniqueSize", "N/A".to_owned()),
        ("VirtualSize", units::decimal(listed.image.size, 4)),
    ];
    let fields = fields.map(|(name, value)| (name.to_owned(), Value::from(value)));
    Value::Object(Map::from_iter(fields))
}

/// Which images and which of their names are shown.
struct Filter {
    dangling: Option<bool>,
    labels: Vec<String>,
    /// Created after.
    since: Option<i64>,
    /// Created before.
    before: Option<i64>,
    /// Patterns of names; any may match.
    references: Vec<String>,
}

impl Filter {
    fn read(call: &Call<'_>, images: &[Listed]) -> Result<Self> {
        let mut filter = Self {
            dangling: None,
            labels: Vec::new(),
            since: None,
            before: None,
            references: Vec::new(),
        };
        for (key, values) in ps::filters(&call.line)?.0 {
            for value in values {
                match key.as_str() {
                    "dangling" => {
                        let on = crate::flag::value::parse_boolean(&value);
                        let wrong =
                            || Failure::invalid(format!("invalid filter 'dangling={value}'"));
                        filter.dangling = Some(on.ok_or_else(wrong)?);
                    }
                    "label" => filter.labels.push(value),
                    "since" => {
                        filter.since = filter.since.max(Some(moment_of(call, images, &value)?))
                    }
                    "before" => {
                        let moment = moment_of(call, images, &value)?;
                        filter.before = Some(filter.before.map_or(moment, |b| b.min(moment)));
                    }
                    "until" => {
                        let moment = time::moment(&value, time::now()).map_err(Failure::invalid)?;
                        filter.before = Some(filter.before.map_or(moment, |b| b.min(moment)));
                    }
                    "reference" => filter.references.push(value),
                    other => return Err(Failure::invalid(format!("invalid filter '{other}'"))),
                }
            }
        }
        if let Some(name) = call.line.args.first() {
            filter.references.push(name.clone());
        }
        Ok(filter)
    }

    fn keeps(&self, listed: &Listed) -> bool {
        let labels = listed.image.config.config.labels.as_ref();
        let has = |wanted: &String| {
            let (key, value) = match wanted.split_once('=') {
                Some((key, value)) => (key, Some(value)),
                None => (wanted.as_str(), None),
            };
            let found = labels.and_then(|labels| labels.get(key));
            found.is_some_and(|found| value.is_none_or(|value| value == found))
        };
        let at = created(listed).unwrap_or(0);
        self.dangling
            .is_none_or(|dangling| dangling == (listed.tags.is_empty() && !listed.is_part))
            && self.labels.iter().all(has)
            && self.since.is_none_or(|since| at > since)
            && self.before.is_none_or(|before| at < before)
            && !self.names(listed, false).is_empty()
    }

    fn names(&self, listed: &Listed, digests: bool) -> Vec<Name> {
        let mut names = all_names(listed, digests);
        if !self.references.is_empty() {
            names.retain(|(repository, tag, _)| {
                self.references
                    .iter()
                    .any(|pattern| matches(pattern, repository, tag))
            });
        }
        names
    }
}

fn moment_of(call: &Call<'_>, images: &[Listed], name: &str) -> Result<i64> {
    let image = call.engine()?.images().resolve(name)?;
    let found = images.iter().find(|listed| listed.image.id == image.id);
    Ok(found.and_then(created).unwrap_or(0))
}

/// Whether `pattern` (`debian`, `debian:1*`, `*/app`, `docker.io/library/debian`) means the name.
fn matches(pattern: &str, repository: &str, tag: &str) -> bool {
    let has_tag = pattern
        .rsplit('/')
        .next()
        .is_some_and(|last| last.contains(':'));
    let name = if has_tag {
        format!("{repository}:{tag}")
    } else {
        repository.to_owned()
    };
    let full = pattern.parse::<Reference>().map(|r| match has_tag {
        true => r.familiar(),
        false => r.familiar_name(),
    });
    glob(pattern, &name) || full.is_ok_and(|full| full == name)
}

/// Go's `path.Match` without character classes: `*` and `?` do not cross a slash.
fn glob(pattern: &str, text: &str) -> bool {
    let mut letters = pattern.chars();
    match letters.next() {
        None => text.is_empty(),
        Some('*') => {
            let rest = letters.as_str();
            let end = text.find('/').unwrap_or(text.len());
            let mut ends = text
                .char_indices()
                .map(|(at, _)| at)
                .filter(|at| *at <= end);
            ends.any(|at| glob(rest, text.get(at..).unwrap_or_default()))
                || (end == text.len() && glob(rest, ""))
        }
        Some(wanted) => {
            let mut others = text.chars();
            let same = others
                .next()
                .is_some_and(|c| c == wanted || (wanted == '?' && c != '/'));
            same && glob(letters.as_str(), others.as_str())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_match_patterns_within_a_path_part() {
        for (pattern, repository, tag, expected) in [
            ("debian", "debian", "12", true),
            ("debian:12", "debian", "12", true),
            ("debian:13", "debian", "12", false),
            ("deb*", "debian", "12", true),
            ("deb*:1?", "debian", "12", true),
            ("*/app", "user/app", "1", true),
            ("*", "user/app", "1", false),
            ("docker.io/library/debian", "debian", "12", true),
            ("docker.io/library/debian:12", "debian", "12", true),
            ("localhost:5000/a", "localhost:5000/a", "1", true),
            ("debian", "debianx", "12", false),
            ("", "debian", "12", false),
        ] {
            assert_eq!(
                matches(pattern, repository, tag),
                expected,
                "{pattern} {repository}:{tag}"
            );
        }
    }
}
