//! Which registries there are: `registries.conf` version 2 (containers-registries.conf(5)), Docker's
//! `daemon.json`.

use std::collections::BTreeMap;
use std::env;
use std::path::{Path, PathBuf};

use knarr_spec::Reference;
use serde::Deserialize;
use serde::de::DeserializeOwned;

use crate::{Error, Result, Settings};

/// What the files say, merged.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Registries {
    /// Registries that a name without one may be at, in this order.
    pub(crate) unqualified: Vec<String>,
    /// What short names stand for.
    pub(crate) aliases: BTreeMap<String, String>,
    pub(crate) registries: Vec<Registry>,
}

/// What is said of all names with a prefix.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Registry {
    /// `host[:port][/path]`, or `*.host`.
    pub(crate) prefix: String,
    /// What takes the prefix's place; empty: nothing does.
    pub(crate) location: String,
    pub(crate) insecure: bool,
    /// The file that blocks it.
    pub(crate) blocked: Option<PathBuf>,
    pub(crate) mirrors: Vec<Mirror>,
}

/// Another place to read from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Mirror {
    /// `host[:port][/path]`, in the place of the prefix.
    pub(crate) location: String,
    /// Where an address with a scheme was given.
    pub(crate) https: Option<bool>,
    pub(crate) insecure: bool,
    pub(crate) pulls: Pulls,
}

/// Which pulls a mirror serves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Pulls {
    All,
    ByDigest,
    ByTag,
}

impl Pulls {
    pub(crate) fn serve(self, by_digest: bool) -> bool {
        match self {
            Self::All => true,
            Self::ByDigest => by_digest,
            Self::ByTag => !by_digest,
        }
    }
}

#[derive(Deserialize, Default)]
#[serde(default, rename_all = "kebab-case")]
struct File {
    unqualified_search_registries: Option<Vec<String>>,
    #[serde(rename = "registry")]
    registry: Vec<FileRegistry>,
    aliases: BTreeMap<String, String>,
    /// Version 1.
    registries: Option<toml::Value>,
}

#[derive(Deserialize, Default)]
#[serde(default, rename_all = "kebab-case")]
struct FileRegistry {
    prefix: String,
    location: String,
    insecure: bool,
    blocked: bool,
    mirror: Vec<FileMirror>,
    mirror_by_digest_only: bool,
}

#[derive(Deserialize, Default)]
#[serde(default, rename_all = "kebab-case")]
struct FileMirror {
    location: String,
    insecure: bool,
    pull_from_mirror: String,
}

/// `daemon.json`, the part about registries.
#[derive(Deserialize, Default)]
#[serde(default, rename_all = "kebab-case")]
struct Daemon {
    registry_mirrors: Vec<String>,
    insecure_registries: Vec<String>,
}

impl Registries {
    /// Reads all files; none need exist.
    pub(crate) fn load(settings: &Settings) -> Result<Self> {
        let etc = settings.etc();
        let mut all = Self::default();
        for path in files(&etc)? {
            if let Some(text) = text(&path)? {
                all.merge(&parse::<File>(&path, &text)?, &path)?;
            }
        }
        let path = etc.join("docker/daemon.json");
        if let Some(text) = text(&path)? {
            let daemon = serde_json::from_str(&text);
            all.merge_daemon(daemon.map_err(|error| invalid(&path, error))?);
        }
        Ok(all)
    }

    fn merge(&mut self, file: &File, path: &Path) -> Result<()> {
        if file.registries.is_some() {
            return Err(invalid(
                path,
                "it is in version 1 of the format, which is obsolete; see containers-registries.conf(5)",
            ));
        }
        if let Some(search) = &file.unqualified_search_registries {
            self.unqualified.clone_from(search);
        }
        for (short, full) in &file.aliases {
            if full.is_empty() {
                self.aliases.remove(short);
            } else {
                self.aliases.insert(short.clone(), full.clone());
            }
        }
        for entry in &file.registry {
            let registry = entry.read(path)?;
            self.registries
                .retain(|known| known.prefix != registry.prefix);
            self.registries.push(registry);
        }
        Ok(())
    }

    /// Docker's mirrors are for Docker Hub; what `registries.conf` says of it counts for more.
    fn merge_daemon(&mut self, daemon: Daemon) {
        for host in daemon.insecure_registries {
            if !self.registries.iter().any(|known| known.prefix == host) {
                self.registries.push(Registry {
                    prefix: host,
                    insecure: true,
                    ..Registry::default()
                });
            }
        }
        let mirrors: Vec<Mirror> = daemon
            .registry_mirrors
            .iter()
            .map(|url| {
                let (https, location) = match url.split_once("://") {
                    Some((scheme, rest)) => (Some(scheme == "https"), rest),
                    None => (None, url.as_str()),
                };
                Mirror {
                    location: location.trim_end_matches('/').to_owned(),
                    https,
                    insecure: https == Some(false),
                    pulls: Pulls::All,
                }
            })
            .collect();
        if !mirrors.is_empty() && !self.registries.iter().any(|r| r.prefix == "docker.io") {
            self.registries.push(Registry {
                prefix: "docker.io".to_owned(),
                mirrors,
                ..Registry::default()
            });
        }
    }

    /// What is said of a name: the longest prefix that fits.
    pub(crate) fn of(&self, reference: &Reference) -> Option<&Registry> {
        let name = reference.full_name();
        self.registries
            .iter()
            .filter(|registry| registry.fits(reference.registry(), &name))
            .max_by_key(|registry| registry.prefix.len())
    }

    /// What a name without a registry may mean, in the order to try. One that has a registry, or
    /// of which no file says anything, means what Docker says.
    pub(crate) fn qualify(
        &self,
        typed: &str,
    ) -> Result<Vec<Reference>, knarr_spec::ReferenceError> {
        let usual: Reference = typed.parse()?;
        let end = typed.find('@').unwrap_or(typed.len());
        let (name, digest) = typed.split_at(end);
        let (name, tag) = match name.rsplit_once(':') {
            Some((name, tag)) if !tag.contains('/') => (name, format!(":{tag}")),
            _ => (name, String::new()),
        };
        let first = name.split('/').next().unwrap_or(name);
        let names_registry =
            name.contains('/') && (first == "localhost" || first.contains(['.', ':']));
        if names_registry {
            return Ok(vec![usual]);
        }
        if let Some(full) = self.aliases.get(name) {
            return Ok(vec![format!("{full}{tag}{digest}").parse()?]);
        }
        if self.unqualified.is_empty() {
            return Ok(vec![usual]);
        }
        self.unqualified
            .iter()
            .map(|registry| format!("{registry}/{typed}").parse())
            .collect()
    }
}

impl Registry {
    fn fits(&self, host: &str, name: &str) -> bool {
        match self.prefix.strip_prefix("*.") {
            Some(domain) => host
                .strip_suffix(domain)
                .is_some_and(|front| front.len() > 1 && front.ends_with('.')),
            None => name
                .strip_prefix(&self.prefix)
                .is_some_and(|rest| rest.is_empty() || rest.starts_with('/')),
        }
    }

    /// `registry/repository` with `location` in the prefix's place.
    pub(crate) fn rewrite(&self, reference: &Reference, location: &str) -> String {
        let name = reference.full_name();
        if location.is_empty() {
            return name;
        }
        if self.prefix.starts_with("*.") {
            // Only the host is matched, so only the host is replaced.
            return format!("{location}/{}", reference.repository());
        }
        let rest = name.strip_prefix(&self.prefix).unwrap_or_default();
        format!("{location}{rest}")
    }
}

impl FileRegistry {
    fn read(&self, path: &Path) -> Result<Registry> {
        let prefix = if self.prefix.is_empty() {
            &self.location
        } else {
            &self.prefix
        };
        if prefix.is_empty() {
            return Err(invalid(
                path,
                "a [[registry]] has neither prefix nor location",
            ));
        }
        if let Some(rest) = prefix.strip_prefix('*')
            && (!rest.starts_with('.') || rest.contains(['*', '/']))
        {
            let what = format!("the prefix {prefix} is not `*.` and a host name");
            return Err(invalid(path, what));
        }
        let mut mirrors = Vec::new();
        for mirror in &self.mirror {
            if mirror.location.is_empty() {
                let what = format!("a mirror of {prefix} has no location");
                return Err(invalid(path, what));
            }
            let pulls = match mirror.pull_from_mirror.as_str() {
                "" | "all" if !self.mirror_by_digest_only => Pulls::All,
                "" | "digest-only" => Pulls::ByDigest,
                "tag-only" if !self.mirror_by_digest_only => Pulls::ByTag,
                other => {
                    let what = format!(
                        "the mirror {} of {prefix} cannot have pull-from-mirror = {other:?}",
                        mirror.location
                    );
                    return Err(invalid(path, what));
                }
            };
            mirrors.push(Mirror {
                location: bare(&mirror.location, path)?.to_owned(),
                https: None,
                insecure: mirror.insecure,
                pulls,
            });
        }
        Ok(Registry {
            prefix: bare(prefix, path)?.to_owned(),
            location: bare(&self.location, path)?.to_owned(),
            insecure: self.insecure,
            blocked: self.blocked.then(|| path.to_owned()),
            mirrors,
        })
    }
}

/// A location without a trailing slash; one with a scheme is wrong in this file.
fn bare<'a>(location: &'a str, path: &Path) -> Result<&'a str> {
    if location.contains("://") {
        let what = format!("{location} must be written without a scheme");
        return Err(invalid(path, what));
    }
    Ok(location.trim_end_matches('/'))
}

/// The files of `registries.conf`, those that count for more later.
fn files(etc: &Path) -> Result<Vec<PathBuf>> {
    if let Some(path) = env::var_os("CONTAINERS_REGISTRIES_CONF").filter(|path| !path.is_empty()) {
        return Ok(vec![path.into()]);
    }
    let system = etc.join("containers");
    let mut files = vec![system.join("registries.conf")];
    files.extend(drop_ins(&system)?);
    let home = env::var_os("HOME").map(|home| PathBuf::from(home).join(".config"));
    let user = env::var_os("XDG_CONFIG_HOME")
        .filter(|path| !path.is_empty())
        .map(PathBuf::from)
        .or(home)
        .map(|config| config.join("containers"));
    if let Some(user) = user {
        let own = user.join("registries.conf");
        if own.exists() {
            // A user's own file stands for the system's.
            files = vec![own];
        }
        files.extend(drop_ins(&user)?);
    }
    Ok(files)
}

fn drop_ins(folder: &Path) -> Result<Vec<PathBuf>> {
    let folder = folder.join("registries.conf.d");
    let names = match knarr_fs::file_names(&folder) {
        Ok(names) => names,
        Err(_) if std::fs::read_dir(&folder).is_err() => return Ok(Vec::new()),
        Err(cause) => return Err(Error::File(cause)),
    };
    let mut files: Vec<PathBuf> = names
        .iter()
        .map(|name| folder.join(name))
        .filter(|path| path.extension().is_some_and(|e| e == "conf"))
        .collect();
    files.sort();
    Ok(files)
}

/// The text of a configuration file; `None` where there is none.
pub(crate) fn text(path: &Path) -> Result<Option<String>> {
    use std::io::ErrorKind::{NotADirectory, NotFound, PermissionDenied};
    match std::fs::read_to_string(path) {
        Ok(text) => Ok(Some(text)),
        Err(error) if matches!(error.kind(), NotFound | NotADirectory | PermissionDenied) => {
            Ok(None)
        }
        Err(error) => Err(invalid(path, error)),
    }
}

/// Reads TOML.
pub(crate) fn parse<T: DeserializeOwned>(path: &Path, text: &str) -> Result<T> {
    toml::from_str(text).map_err(|error| {
        let at = error.span().map(|span| {
            text.get(..span.start)
                .unwrap_or_default()
                .lines()
                .count()
                .max(1)
        });
        let line = at.map(|line| format!("line {line}: ")).unwrap_or_default();
        invalid(path, format!("{line}{}", error.message()))
    })
}

pub(crate) fn invalid(path: &Path, reason: impl ToString) -> Error {
    Error::Configuration {
        path: path.to_owned(),
        reason: reason.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Registries> {
        let mut all = Registries::default();
        let path = Path::new("/etc/containers/registries.conf");
        all.merge(&parse(path, text)?, path)?;
        Ok(all)
    }

    fn reference(text: &str) -> Reference {
        text.parse().unwrap()
    }

    #[test]
    fn the_longest_prefix_wins_and_is_replaced() {
        let all = read(
            r#"
            [[registry]]
            location = "example.com"
            [[registry]]
            prefix = "example.com/team"
            location = "internal.example:5000/mirror"
            [[registry]]
            prefix = "*.wild.org"
            location = "cache.local/wild"
            [[registry.mirror]]
            location = "m.local/x/"
            pull-from-mirror = "tag-only"
            [[registry]]
            prefix = "bad.io"
            blocked = true
            "#,
        )
        .unwrap();
        for (name, prefix, rewritten) in [
            ("example.com/app", Some("example.com"), "example.com/app"),
            (
                "example.com/team/app",
                Some("example.com/team"),
                "internal.example:5000/mirror/app",
            ),
            (
                "example.com/teams/app",
                Some("example.com"),
                "example.com/teams/app",
            ),
            ("a.wild.org/app", Some("*.wild.org"), "cache.local/wild/app"),
            ("wild.org/app", None, ""),
            ("example.com.evil.io/app", None, ""),
            ("bad.io/x", Some("bad.io"), "bad.io/x"),
        ] {
            let found = all.of(&reference(name));
            assert_eq!(found.map(|r| r.prefix.as_str()), prefix, "{name}");
            if let Some(found) = found {
                assert_eq!(found.rewrite(&reference(name), &found.location), rewritten);
            }
        }
        let wild = all.of(&reference("a.wild.org/app")).unwrap();
        assert_eq!(wild.mirrors[0].pulls, Pulls::ByTag);
        assert_eq!(wild.mirrors[0].location, "m.local/x");
        assert!(all.of(&reference("bad.io/x")).unwrap().blocked.is_some());
    }

    #[test]
    fn short_names_are_aliases_or_searched() {
        let mut all =
            read("[aliases]\n\"fedora\" = \"registry.fedoraproject.org/fedora\"").unwrap();
        let names = |all: &Registries, typed: &str| -> Vec<String> {
            let found = all.qualify(typed).unwrap();
            found.iter().map(Reference::to_string).collect()
        };
        assert_eq!(
            names(&all, "fedora:40"),
            ["registry.fedoraproject.org/fedora:40"]
        );
        assert_eq!(names(&all, "debian"), ["docker.io/library/debian:latest"]);
        all.unqualified = vec!["quay.io".to_owned(), "docker.io".to_owned()];
        assert_eq!(
            names(&all, "debian:12"),
            ["quay.io/debian:12", "docker.io/library/debian:12"]
        );
        assert_eq!(names(&all, "user/app")[0], "quay.io/user/app:latest");
        assert_eq!(names(&all, "localhost/app"), ["localhost/app:latest"]);
        assert_eq!(names(&all, "reg.io/app"), ["reg.io/app:latest"]);
        assert!(all.qualify("Bad Name").is_err());
    }

    #[test]
    fn what_is_wrong_with_a_file_is_said_with_its_name() {
        for (text, expected) in [
            ("x = [", "line 1"),
            ("[registries.search]\nregistries = []", "version 1"),
            (
                "[[registry]]\ninsecure = true",
                "neither prefix nor location",
            ),
            ("[[registry]]\nprefix = \"*x.org\"", "`*.` and a host"),
            (
                "[[registry]]\nlocation = \"https://x.org\"",
                "without a scheme",
            ),
            (
                "[[registry]]\nlocation = \"x.org\"\n[[registry.mirror]]\nlocation = \"y\"\npull-from-mirror = \"z\"",
                "pull-from-mirror",
            ),
        ] {
            let error = read(text).unwrap_err().to_string();
            assert!(
                error.contains("registries.conf") && error.contains(expected),
                "{error}"
            );
        }
    }

    #[test]
    fn dockers_mirrors_are_for_docker_hub() {
        let mut all = Registries::default();
        let json = r#"{"registry-mirrors":["http://m.local:5000/","https://n.local"],
            "insecure-registries":["old.local:5000"],"debug":true}"#;
        all.merge_daemon(serde_json::from_str(json).unwrap());
        let hub = all.of(&reference("debian")).unwrap();
        assert_eq!(hub.mirrors.len(), 2);
        assert_eq!(hub.mirrors[0].https, Some(false));
        assert_eq!(
            hub.rewrite(&reference("debian"), &hub.mirrors[0].location),
            "m.local:5000/library/debian"
        );
        assert!(all.of(&reference("old.local:5000/a")).unwrap().insecure);
        assert!(all.of(&reference("quay.io/a")).is_none());
    }
}
