//! Names and passwords, from where Docker and Podman keep them.

use std::collections::BTreeMap;
use std::env;
use std::fmt;
use std::path::{Path, PathBuf};

use base64::Engine as _;
use serde::Deserialize;

use crate::{Error, Result, Settings};

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

/// What the files say about one repository.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct Found {
    pub(crate) credentials: Option<Credentials>,
    /// Why there are none although a file has something: for the hint of a refusal.
    pub(crate) unusable: Option<String>,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct AuthFile {
    auths: BTreeMap<String, Entry>,
    #[serde(rename = "credsStore")]
    creds_store: Option<String>,
    #[serde(rename = "credHelpers")]
    cred_helpers: BTreeMap<String, String>,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct Entry {
    auth: Option<String>,
    username: Option<String>,
    password: Option<String>,
    identitytoken: Option<String>,
}

/// The credentials for `repository` at `registry`.
///
/// # Errors
/// When a file that was named explicitly is missing, or any is malformed.
pub(crate) fn find(settings: &Settings, registry: &str, repository: &str) -> Result<Found> {
    if let Some(credentials) = &settings.credentials {
        return Ok(Found {
            credentials: Some(credentials.clone()),
            unusable: None,
        });
    }
    let mut unusable = None;
    for (path, must_exist) in files(settings) {
        let bytes = match std::fs::read(&path) {
            Ok(bytes) => bytes,
            Err(error) if !must_exist && unreadable(&error) => continue,
            Err(cause) => return Err(Error::AuthFileRead { path, cause }),
        };
        let found = search(&bytes, &path, registry, repository)?;
        if found.credentials.is_some() {
            return Ok(found);
        }
        unusable = unusable.or(found.unusable);
    }
    Ok(Found {
        credentials: None,
        unusable,
    })
}

fn unreadable(error: &std::io::Error) -> bool {
    use std::io::ErrorKind::{NotADirectory, NotFound, PermissionDenied};
    matches!(error.kind(), NotFound | NotADirectory | PermissionDenied)
}

/// Where credentials are looked for, and whether the file must exist (auth.json(5), docker's
/// "config.json").
fn files(settings: &Settings) -> Vec<(PathBuf, bool)> {
    if let Some(path) = &settings.auth_file {
        return vec![(path.clone(), true)];
    }
    let dir = |name: &str| {
        env::var_os(name)
            .filter(|v| !v.is_empty())
            .map(PathBuf::from)
    };
    if let Some(path) = dir("REGISTRY_AUTH_FILE") {
        return vec![(path, true)];
    }
    let uid = rustix::process::getuid().as_raw();
    let runtime = dir("XDG_RUNTIME_DIR").map_or_else(
        || PathBuf::from(format!("/run/containers/{uid}/auth.json")),
        |path| path.join("containers/auth.json"),
    );
    let home = dir("HOME");
    let config = dir("XDG_CONFIG_HOME").or_else(|| home.as_ref().map(|h| h.join(".config")));
    let docker = dir("DOCKER_CONFIG").or_else(|| home.as_ref().map(|h| h.join(".docker")));
    [
        Some(runtime),
        config.map(|path| path.join("containers/auth.json")),
        docker.map(|path| path.join("config.json")),
    ]
    .into_iter()
    .flatten()
    .map(|path| (path, false))
    .collect()
}

/// Looks into one file: the longest key that is the repository or a prefix of it wins.
fn search(bytes: &[u8], path: &Path, registry: &str, repository: &str) -> Result<Found> {
    let file: AuthFile = serde_json::from_slice(bytes).map_err(|cause| Error::AuthFile {
        path: path.to_owned(),
        cause,
    })?;
    let mut wanted = vec![format!("{registry}/{repository}")];
    while let Some(shorter) = wanted
        .last()
        .and_then(|last| last.rsplit_once('/'))
        .map(|(shorter, _)| shorter.to_owned())
    {
        wanted.push(shorter);
    }
    if registry == "docker.io" {
        wanted.extend([
            "index.docker.io".to_owned(),
            "registry-1.docker.io".to_owned(),
        ]);
    }
    let entry = wanted.iter().find_map(|wanted| {
        file.auths
            .iter()
            .find(|(key, entry)| host_of(key) == wanted && !entry.is_empty())
            .map(|(_, entry)| entry)
    });
    let unusable = |what: String| Found {
        credentials: None,
        unusable: Some(format!("{} {what}", path.display())),
    };
    if let Some(entry) = entry {
        return Ok(match entry.credentials() {
            Some(credentials) => Found {
                credentials: Some(credentials),
                unusable: None,
            },
            None if entry.identitytoken.is_some() => unusable(format!(
                "has an identity token for {registry}, which Knarr cannot use yet"
            )),
            None => unusable(format!(
                "has an entry for {registry} that is not user:password"
            )),
        });
    }
    let helper = file
        .cred_helpers
        .get(registry)
        .or(file.creds_store.as_ref());
    Ok(match helper {
        Some(name) => unusable(format!(
            "leaves {registry} to the credential helper docker-credential-{name}, which Knarr \
             does not call yet"
        )),
        None => Found::default(),
    })
}

impl Entry {
    fn is_empty(&self) -> bool {
        self.auth.as_deref().unwrap_or_default().is_empty()
            && self.username.is_none()
            && self.identitytoken.is_none()
    }

    fn credentials(&self) -> Option<Credentials> {
        if let Some(auth) = self.auth.as_deref().filter(|auth| !auth.is_empty()) {
            let bytes = base64::engine::general_purpose::STANDARD
                .decode(auth.trim())
                .ok()?;
            let text = String::from_utf8(bytes).ok()?;
            let (user, password) = text.split_once(':')?;
            // Docker pads with NULs.
            let password = password.trim_end_matches('\0');
            if user == "<token>" || (password.is_empty() && self.identitytoken.is_some()) {
                return None;
            }
            return Some(Credentials {
                user: user.to_owned(),
                password: password.to_owned(),
            });
        }
        Some(Credentials {
            user: self.username.clone()?,
            password: self.password.clone()?,
        })
    }
}

/// `https://index.docker.io/v1/` is how old keys look; new ones are `host` or `host/path`.
fn host_of(key: &str) -> &str {
    let bare = key
        .strip_prefix("https://")
        .or_else(|| key.strip_prefix("http://"));
    match bare {
        Some(bare) => bare.split('/').next().unwrap_or(bare),
        None => key.trim_end_matches('/'),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn look(json: &str, registry: &str, repository: &str) -> Found {
        search(
            json.as_bytes(),
            Path::new("/a/config.json"),
            registry,
            repository,
        )
        .unwrap()
    }

    fn user(found: &Found) -> Option<&str> {
        found.credentials.as_ref().map(|c| c.user.as_str())
    }

    #[test]
    fn the_longest_matching_key_wins() {
        // "deep:pw", "host:pw", "hub:p:w"
        let json = r#"{"auths":{
            "reg.io/team/app":{"auth":"ZGVlcDpwdw=="},
            "reg.io":{"auth":"aG9zdDpwdw=="},
            "https://index.docker.io/v1/":{"auth":"aHViOnA6dw=="}},
            "unknown":1}"#;
        assert_eq!(user(&look(json, "reg.io", "team/app")), Some("deep"));
        assert_eq!(user(&look(json, "reg.io", "team/app2")), Some("host"));
        assert_eq!(user(&look(json, "reg.io.evil", "team/app")), None);
        let hub = look(json, "docker.io", "library/debian")
            .credentials
            .unwrap();
        assert_eq!((hub.user.as_str(), hub.password.as_str()), ("hub", "p:w"));
        assert_eq!(hub.basic(), "Basic aHViOnA6dw==");
        assert!(!format!("{hub:?}").contains("p:w"));
    }

    #[test]
    fn what_cannot_be_used_is_named() {
        let found = look(
            r#"{"credsStore":"pass","auths":{"reg.io":{}}}"#,
            "reg.io",
            "a",
        );
        assert!(found.unusable.unwrap().contains("docker-credential-pass"));
        let found = look(
            r#"{"auths":{"reg.io":{"identitytoken":"x"}}}"#,
            "reg.io",
            "a",
        );
        assert!(found.unusable.unwrap().contains("identity token"));
        let found = look(r#"{"auths":{"reg.io":{"auth":"!!"}}}"#, "reg.io", "a");
        assert!(found.unusable.unwrap().contains("not user:password"));
        assert_eq!(look("{}", "reg.io", "a"), Found::default());
        let error = search(b"{", Path::new("/x"), "reg.io", "a").unwrap_err();
        assert!(error.to_string().contains("/x"));
    }
}
