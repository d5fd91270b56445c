//! One file of credentials: `auth.json` or Docker's `config.json`, which are alike.

use std::fmt;
use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use knarr_fs::Durability;
use rustix::fs::{FlockOperation, Mode, OFlags};
use serde::Deserialize;
use serde_json::{Map, Value};

use super::{Credentials, Found, Secret, helper};
use crate::{Error, Result};

/// Where credentials are kept.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Place {
    /// The file.
    pub path: PathBuf,
    /// The credential helper that the file leaves them to.
    pub helper: Option<String>,
    pub(super) must_exist: bool,
    pub(super) is_lasting: bool,
    pub(super) is_dockers: bool,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.helper {
            Some(helper) => write!(f, "docker-credential-{helper}"),
            None => write!(f, "{}", self.path.display()),
        }
    }
}

/// What a file holds, keys unknown here included.
#[derive(Debug, Default)]
pub(super) struct File {
    path: PathBuf,
    all: Map<String, Value>,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct Entry {
    auth: Option<String>,
    username: Option<String>,
    password: Option<String>,
    identitytoken: Option<String>,
    registrytoken: Option<String>,
}

/// Reads the file of a place; `None` where there is none that may be read.
pub(super) fn load(place: &Place) -> Result<Option<File>> {
    use std::io::ErrorKind::{NotADirectory, NotFound, PermissionDenied};
    let path = place.path.clone();
    match std::fs::read(&path) {
        Ok(bytes) => File::parse(path, &bytes).map(Some),
        Err(error)
            if !place.must_exist
                && matches!(error.kind(), NotFound | NotADirectory | PermissionDenied) =>
        {
            Ok(None)
        }
        Err(cause) => Err(Error::AuthFileRead { path, cause }),
    }
}

/// Keeps a secret in the place's file, or with the helper that it names.
pub(super) fn store(place: &Place, key: &str, secret: &Secret) -> Result<Place> {
    let mut file = Changing::open(place)?;
    if let Some(name) = file.file.helper_for(key) {
        helper::store(&name, &server_url(key), secret)?;
        return Ok(Place {
            helper: Some(name),
            ..place.clone()
        });
    }
    let mut entry = Map::new();
    match secret {
        Secret::Password(credentials) => {
            let pair = format!("{}:{}", credentials.user, credentials.password);
            entry.insert("auth".to_owned(), STANDARD.encode(pair).into());
        }
        Secret::Identity(token) => {
            entry.insert("auth".to_owned(), STANDARD.encode("<token>:").into());
            entry.insert("identitytoken".to_owned(), token.clone().into());
        }
        Secret::Bearer(token) => {
            entry.insert("registrytoken".to_owned(), token.clone().into());
        }
    }
    let key = match place.is_dockers {
        true => server_url(key),
        false => key.to_owned(),
    };
    file.file.auths().insert(key, Value::Object(entry));
    file.save()?;
    Ok(place.clone())
}

/// Takes away what a place has for `key`; where that was.
pub(super) fn erase(place: &Place, key: &str) -> Result<Option<Place>> {
    if load(place)?.is_none() {
        return Ok(None);
    }
    let mut file = Changing::open(place)?;
    let auths = file.file.auths();
    let before = auths.len();
    auths.retain(|known, _| canonical(host_of(known)) != canonical(key));
    let was_there = auths.len() != before;
    if was_there {
        file.save()?;
    }
    if let Some(name) = file.file.helper_for(key)
        && helper::erase(&name, &server_url(key))?
    {
        return Ok(Some(Place {
            helper: Some(name),
            ..place.clone()
        }));
    }
    Ok(was_there.then(|| place.clone()))
}

/// A file being changed: nobody else of Knarr changes it meanwhile.
struct Changing {
    file: File,
    _lock: rustix::fd::OwnedFd,
}

impl Changing {
    fn open(place: &Place) -> Result<Self> {
        // Through a link to where the file really is, which is what gets replaced.
        let path = place
            .path
            .canonicalize()
            .unwrap_or_else(|_| place.path.clone());
        let folder = match path.parent() {
            Some(folder) if !folder.as_os_str().is_empty() => folder,
            _ => Path::new("."),
        };
        knarr_fs::create_dir_all(folder)?;
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let lock = rustix::fs::open(folder, flags, Mode::empty())
            .map_err(knarr_fs::Error::of("open", "open", folder))?;
        rustix::fs::flock(&lock, FlockOperation::LockExclusive)
            .map_err(knarr_fs::Error::of("lock", "flock", folder))?;
        let there = Place {
            path: path.clone(),
            must_exist: false,
            ..place.clone()
        };
        let file = match load(&there)? {
            Some(file) => file,
            None => File {
                path,
                all: Map::new(),
            },
        };
        Ok(Self { file, _lock: lock })
    }

    fn save(&self) -> Result<()> {
        // A map of plain values always serializes.
        let mut text = serde_json::to_vec_pretty(&self.file.all).unwrap_or_default();
        text.push(b'\n');
        Ok(knarr_fs::write_atomic(
            &self.file.path,
            &text,
            Durability::Durable,
        )?)
    }
}

impl File {
    fn parse(path: PathBuf, bytes: &[u8]) -> Result<Self> {
        if bytes.iter().all(u8::is_ascii_whitespace) {
            return Ok(Self {
                path,
                all: Map::new(),
            });
        }
        match serde_json::from_slice(bytes) {
            Ok(all) => Ok(Self { path, all }),
            Err(cause) => Err(Error::AuthFile { path, cause }),
        }
    }

    fn auths(&mut self) -> &mut Map<String, Value> {
        let is_map = self.all.get("auths").is_some_and(Value::is_object);
        if !is_map {
            self.all.insert("auths".to_owned(), Map::new().into());
        }
        match self.all.get_mut("auths") {
            Some(Value::Object(auths)) => auths,
            // It has just been made one.
            _ => unreachable!("auths is an object"),
        }
    }

    fn entries(&self) -> impl Iterator<Item = (&String, Entry)> {
        let auths = self.all.get("auths").and_then(Value::as_object);
        auths.into_iter().flatten().map(|(key, value)| {
            let entry = serde_json::from_value(value.clone()).unwrap_or_default();
            (key, entry)
        })
    }

    /// The helper that the file leaves a registry to.
    fn helper_for(&self, key: &str) -> Option<String> {
        let registry = key.split('/').next().unwrap_or(key);
        let helpers = self.all.get("credHelpers").and_then(Value::as_object);
        let named = helpers.and_then(|helpers| {
            let mut known = helpers.iter();
            known.find(|(known, _)| {
                let host = canonical(host_of(known));
                host == canonical(key) || host == canonical(registry)
            })
        });
        let store = self.all.get("credsStore");
        let name = named.map(|(_, name)| name).or(store)?.as_str()?;
        Some(name.to_owned()).filter(|name| !name.is_empty())
    }

    /// Whether there is an entry for exactly this key.
    pub(super) fn has(&self, key: &str) -> bool {
        self.entries()
            .any(|(known, entry)| host_of(known) == key && !entry.is_empty())
    }

    /// The longest key that is the repository or a prefix of it wins.
    pub(super) fn search(&self, registry: &str, repository: &str) -> Result<Found> {
        let mut wanted = vec![format!("{registry}/{repository}")];
        if repository.is_empty() {
            wanted = vec![registry.to_owned()];
        }
        while let Some(shorter) = wanted
            .last()
            .and_then(|last| last.rsplit_once('/'))
            .map(|(shorter, _)| shorter.to_owned())
        {
            wanted.push(shorter);
        }
        let entry = wanted.iter().find_map(|wanted| {
            let wanted = canonical(wanted);
            self.entries()
                .find(|(key, entry)| canonical(host_of(key)) == wanted && !entry.is_empty())
        });
        let unusable = |what: String| Found {
            secret: None,
            unusable: Some(format!("{} {what}", self.path.display())),
        };
        if let Some((_, entry)) = entry {
            let secret = entry.secret();
            return Ok(match secret {
                Some(_) => Found {
                    secret,
                    unusable: None,
                },
                None => unusable(format!(
                    "has an entry for {registry} that is not user:password"
                )),
            });
        }
        let Some(name) = self.helper_for(registry) else {
            return Ok(Found::default());
        };
        let secret = helper::get(&name, &server_url(registry))?;
        Ok(match secret {
            Some(_) => Found {
                secret,
                unusable: None,
            },
            None => unusable(format!(
                "leaves {registry} to the credential helper docker-credential-{name}, which has nothing for it"
            )),
        })
    }

    /// Registries and users.
    pub(super) fn list(&self) -> Result<Vec<(String, String)>> {
        let mut all = Vec::new();
        for (key, entry) in self.entries() {
            let user = match entry.secret() {
                Some(Secret::Password(credentials)) => credentials.user,
                Some(_) => "<token>".to_owned(),
                None => continue,
            };
            all.push((canonical(host_of(key)).to_owned(), user));
        }
        let helpers = self.all.get("credHelpers").and_then(Value::as_object);
        for (key, name) in helpers.into_iter().flatten() {
            if let Some(name) = name.as_str()
                && let Some(user) = helper::list(name)?.remove(&server_url(key))
            {
                all.push((key.clone(), user));
            }
        }
        if let Some(name) = self.all.get("credsStore").and_then(Value::as_str) {
            let known = helper::list(name)?;
            let hosts = known
                .into_iter()
                .map(|(key, user)| (canonical(host_of(&key)).to_owned(), user));
            all.extend(hosts);
        }
        Ok(all)
    }
}

impl Entry {
    fn is_empty(&self) -> bool {
        self.auth.as_deref().unwrap_or_default().is_empty()
            && self.username.is_none()
            && self.identitytoken.is_none()
            && self.registrytoken.is_none()
    }

    fn secret(&self) -> Option<Secret> {
        let full = |text: &Option<String>| text.clone().filter(|text| !text.is_empty());
        if let Some(token) = full(&self.identitytoken) {
            return Some(Secret::Identity(token));
        }
        if let Some(token) = full(&self.registrytoken) {
            return Some(Secret::Bearer(token));
        }
        let (user, password) = match full(&self.auth) {
            Some(auth) => {
                let bytes = STANDARD.decode(auth.trim()).ok()?;
                let text = String::from_utf8(bytes).ok()?;
                let (user, password) = text.split_once(':')?;
                // Docker pads with NULs.
                (user.to_owned(), password.trim_end_matches('\0').to_owned())
            }
            None => (self.username.clone()?, self.password.clone()?),
        };
        Some(if user == "<token>" {
            Secret::Identity(password)
        } else {
            Secret::Password(Credentials { user, password })
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

/// Docker Hub has several names.
fn canonical(host: &str) -> &str {
    match host {
        "index.docker.io" | "registry-1.docker.io" => "docker.io",
        other => other,
    }
}

/// What Docker calls a registry in its own file and towards helpers.
fn server_url(key: &str) -> String {
    match canonical(key) {
        "docker.io" => "https://index.docker.io/v1/".to_owned(),
        _ => key.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn look(json: &str, registry: &str, repository: &str) -> Found {
        let file = File::parse("/a/config.json".into(), json.as_bytes()).unwrap();
        file.search(registry, repository).unwrap()
    }

    fn user(found: &Found) -> Option<&str> {
        match &found.secret {
            Some(Secret::Password(credentials)) => Some(&credentials.user),
            _ => None,
        }
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
        assert_eq!(user(&look(json, "reg.io", "")), Some("host"));
        assert_eq!(user(&look(json, "reg.io.evil", "team/app")), None);
        let hub = look(json, "docker.io", "library/debian");
        let Some(Secret::Password(hub)) = hub.secret else {
            panic!("{hub:?}");
        };
        assert_eq!((hub.user.as_str(), hub.password.as_str()), ("hub", "p:w"));
        assert_eq!(hub.basic(), "Basic aHViOnA6dw==");
        assert!(!format!("{hub:?}").contains("p:w"));
    }

    #[test]
    fn tokens_are_told_from_passwords() {
        let found = look(
            r#"{"auths":{"reg.io":{"auth":"PHRva2VuPjo=","identitytoken":"x"}}}"#,
            "reg.io",
            "a",
        );
        assert_eq!(found.secret, Some(Secret::Identity("x".to_owned())));
        assert!(!format!("{found:?}").contains("\"x\""));
        let found = look(
            r#"{"auths":{"reg.io":{"registrytoken":"y"}}}"#,
            "reg.io",
            "a",
        );
        assert_eq!(found.secret, Some(Secret::Bearer("y".to_owned())));
    }

    #[test]
    fn what_cannot_be_used_is_named() {
        let found = look(r#"{"auths":{"reg.io":{"auth":"!!"}}}"#, "reg.io", "a");
        assert!(found.unusable.unwrap().contains("not user:password"));
        assert_eq!(look("{}", "reg.io", "a"), Found::default());
        assert_eq!(look("", "reg.io", "a"), Found::default());
        let error = File::parse("/x".into(), b"{").unwrap_err();
        assert!(error.to_string().contains("/x"));
        let file = File::parse("/x".into(), br#"{"credsStore":"../evil"}"#).unwrap();
        let error = file.search("reg.io", "a").unwrap_err();
        assert!(error.to_string().contains("not a program"), "{error}");
    }

    #[test]
    fn what_is_kept_leaves_the_rest_of_the_file_as_it_was() {
        use std::os::unix::fs::PermissionsExt as _;
        let dir =
            knarr_fs::TempDir::new_in(&std::env::temp_dir().join("knarr-auth-tests")).unwrap();
        let path = dir.path().join("auth.json");
        std::fs::write(
            &path,
            r#"{"zeta":{"b":1},"auths":{"other.io":{"auth":"eDp5","email":"e"}},"alpha":2}"#,
        )
        .unwrap();
        let place = Place {
            path: path.clone(),
            must_exist: true,
            ..Place::default()
        };
        let secret = Secret::Password(Credentials {
            user: "me".to_owned(),
            password: "p:w".to_owned(),
        });
        store(&place, "reg.io", &secret).unwrap();
        let text = std::fs::read_to_string(&path).unwrap();
        let order: Vec<usize> = ["zeta", "other.io", "email", "reg.io", "alpha"]
            .map(|key| text.find(key).unwrap())
            .to_vec();
        assert!(order.is_sorted(), "{text}");
        let mode = std::fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        let file = load(&place).unwrap().unwrap();
        assert_eq!(file.search("reg.io", "x").unwrap().secret, Some(secret));
        assert!(erase(&place, "reg.io").unwrap().is_some());
        assert!(erase(&place, "reg.io").unwrap().is_none());
        let text = std::fs::read_to_string(&path).unwrap();
        assert!(text.contains("other.io") && !text.contains("reg.io"));
        // A first login makes the file.
        let place = Place {
            path: dir.path().join("new/auth.json"),
            must_exist: true,
            ..Place::default()
        };
        store(&place, "reg.io", &Secret::Identity("t".to_owned())).unwrap();
        let file = load(&place).unwrap().unwrap();
        assert_eq!(
            file.search("reg.io", "").unwrap().secret,
            Some(Secret::Identity("t".to_owned()))
        );
    }
}
