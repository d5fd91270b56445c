//! Names and passwords, from where Docker and Podman keep them, and back to there.

mod file;
mod helper;

use std::collections::BTreeMap;
use std::env;
use std::fmt;
use std::path::PathBuf;

use base64::Engine as _;

use crate::{Result, Settings};

pub use file::Place;

/// A user name and its password; never printed.
#[derive(Clone, PartialEq, Eq)]
pub struct Credentials {
    /// The user's name.
    pub user: String,
    /// The password or access token.
    pub password: String,
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Credentials")
            .field("user", &self.user)
            .finish_non_exhaustive()
    }
}

impl Credentials {
    /// The value of an `Authorization: Basic` header (RFC 7617).
    pub(crate) fn basic(&self) -> String {
        let pair = format!("{}:{}", self.user, self.password);
        format!(
            "Basic {}",
            base64::engine::general_purpose::STANDARD.encode(pair)
        )
    }
}

/// What proves who asks; never printed.
#[derive(Clone, PartialEq, Eq)]
pub enum Secret {
    /// A name and its password.
    Password(Credentials),
    /// A refresh token of the registry's token service (Docker's "identity token").
    Identity(String),
    /// A bearer token as it is (Docker's "registry token").
    Bearer(String),
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Password(credentials) => credentials.fmt(f),
            Self::Identity(_) => f.write_str("identity token"),
            Self::Bearer(_) => f.write_str("registry token"),
        }
    }
}

/// What the files say about one repository.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct Found {
    pub(crate) secret: Option<Secret>,
    /// Why there is none although a file has something: for the hint of a refusal.
    pub(crate) unusable: Option<String>,
}

/// The credentials for `repository` at `registry`: those that were given, else those that are kept.
///
/// # Errors
/// As [`kept`].
pub(crate) fn find(settings: &Settings, registry: &str, repository: &str) -> Result<Found> {
    if let Some(credentials) = &settings.credentials {
        return Ok(Found {
            secret: Some(Secret::Password(credentials.clone())),
            unusable: None,
        });
    }
    kept(settings, registry, repository)
}

/// The credentials that files and helpers have for `repository` at `registry`.
///
/// # Errors
/// When a file that was named explicitly is missing, or any is malformed.
pub(crate) fn kept(settings: &Settings, registry: &str, repository: &str) -> Result<Found> {
    let mut unusable = None;
    for place in places(settings) {
        let Some(file) = file::load(&place)? else {
            continue;
        };
        let found = file.search(registry, repository)?;
        if found.secret.is_some() {
            return Ok(found);
        }
        unusable = unusable.or(found.unusable);
    }
    Ok(Found {
        secret: None,
        unusable,
    })
}

/// Who is logged in at a registry, where anybody is.
///
/// # Errors
/// When a file cannot be read or a helper fails.
pub fn user_of(settings: &Settings, registry: &str) -> Result<Option<String>> {
    Ok(match find(settings, registry, "")?.secret {
        Some(Secret::Password(credentials)) => Some(credentials.user),
        Some(Secret::Identity(_) | Secret::Bearer(_)) => Some("<token>".to_owned()),
        None => None,
    })
}

/// Every registry that somebody is logged in to, and who: files first, then helpers.
///
/// # Errors
/// When a file cannot be read or a helper fails.
pub fn list(settings: &Settings) -> Result<BTreeMap<String, String>> {
    let mut all = BTreeMap::new();
    for place in places(settings) {
        if let Some(file) = file::load(&place)? {
            for (registry, user) in file.list()? {
                all.entry(registry).or_insert(user);
            }
        }
    }
    Ok(all)
}

/// Keeps a secret for `key` (a registry, or a repository of one): gives where.
///
/// # Errors
/// When the file cannot be written or a helper fails.
pub fn store(settings: &Settings, key: &str, secret: &Secret) -> Result<Place> {
    let places = places(settings);
    let mut chosen = None;
    for place in places.iter().filter(|place| !place.is_dockers) {
        // A file that has an entry already would be found first.
        let has = file::load(place)?.is_some_and(|file| file.has(key));
        if has || (chosen.is_none() && place.is_lasting) {
            chosen = Some(place.clone());
        }
        if has {
            break;
        }
    }
    let place = chosen
        .or_else(|| places.first().cloned())
        .unwrap_or_default();
    file::store(&place, key, secret)
}

/// Forgets what is kept for `key`, wherever it is: gives where it was.
///
/// # Errors
/// When a file cannot be written or a helper fails.
pub fn erase(settings: &Settings, key: &str) -> Result<Vec<Place>> {
    let mut erased = Vec::new();
    for place in places(settings) {
        if let Some(place) = file::erase(&place, key)? {
            erased.push(place);
        }
    }
    Ok(erased)
}

/// Forgets everything that is kept in files and helpers.
///
/// # Errors
/// As [`erase`].
pub fn erase_all(settings: &Settings) -> Result<()> {
    for registry in list(settings)?.into_keys() {
        erase(settings, &registry)?;
    }
    Ok(())
}

/// Where credentials are looked for (auth.json(5), docker's "config.json").
fn places(settings: &Settings) -> Vec<Place> {
    let named = |path: PathBuf| {
        vec![Place {
            path,
            must_exist: true,
            is_lasting: true,
            ..Place::default()
        }]
    };
    if let Some(path) = &settings.auth_file {
        return named(path.clone());
    }
    let dir = |name: &str| {
        env::var_os(name)
            .filter(|v| !v.is_empty())
            .map(PathBuf::from)
    };
    if let Some(path) = dir("REGISTRY_AUTH_FILE") {
        return named(path);
    }
    let uid = rustix::process::getuid().as_raw();
    let runtime = dir("XDG_RUNTIME_DIR").map_or_else(
        || PathBuf::from(format!("/run/containers/{uid}/auth.json")),
        |path| path.join("containers/auth.json"),
    );
    let home = dir("HOME");
    let config = dir("XDG_CONFIG_HOME").or_else(|| home.as_ref().map(|h| h.join(".config")));
    let docker = dir("DOCKER_CONFIG").or_else(|| home.as_ref().map(|h| h.join(".docker")));
    let mut places = vec![Place {
        path: runtime,
        ..Place::default()
    }];
    places.extend(config.map(|path| Place {
        path: path.join("containers/auth.json"),
        is_lasting: true,
        ..Place::default()
    }));
    places.extend(docker.map(|path| Place {
        path: path.join("config.json"),
        is_dockers: true,
        ..Place::default()
    }));
    places
}
