//! Configurations of networks: which plugins, in which order, with what settings.

use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use super::{Error, Result};

/// A version of the specification that a configuration is written for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Version {
    /// 1 in 1.0.0.
    pub major: u32,
    /// 1 in 1.1.0.
    pub minor: u32,
    /// 4 in 0.3.1: patch levels are the last part.
    pub patch: u32,
}

impl Version {
    /// The first with CHECK and with a previous result for DEL.
    pub const CHECK: Self = Self::new(0, 4, 0);
    /// The first with GC and STATUS.
    pub const GC: Self = Self::new(1, 1, 0);
    const OLDEST: Self = Self::new(0, 3, 0);
    const NEWEST: Self = Self::new(1, 1, u32::MAX);

    const fn new(major: u32, minor: u32, patch: u32) -> Self {
        Self {
            major,
            minor,
            patch,
        }
    }

    fn parse(text: &str) -> Option<Self> {
        let mut parts = text.split('.').map(|part| part.parse().ok());
        let version = Self::new(parts.next()??, parts.next()??, parts.next()??);
        parts.next().is_none().then_some(version)
    }
}

/// A network: the plugins that make it.
#[derive(Debug, Clone, PartialEq)]
pub struct List {
    /// The network's name.
    pub name: String,
    /// As written.
    pub cni_version: String,
    /// The same, to compare.
    pub version: Version,
    /// CHECK would fail although all is well, its author says.
    pub disable_check: bool,
    /// Others keep things of this network that GC would take for litter.
    pub disable_gc: bool,
    /// The plugins' configurations, in order; each has a `type` that is a plain file name.
    pub plugins: Vec<Map<String, Value>>,
}

impl List {
    /// Reads a configuration: a list, or that of one plugin, which is a list of one. `path` is for
    /// errors.
    ///
    /// # Errors
    /// [`Error::BadList`].
    pub fn parse(bytes: &[u8], path: &Path) -> Result<Self> {
        let bad = |reason: String| Error::BadList {
            path: path.to_owned(),
            reason,
        };
        let value: Value = serde_json::from_slice(bytes).map_err(|error| bad(error.to_string()))?;
        let Value::Object(object) = value else {
            return Err(bad("it is not a JSON object".to_owned()));
        };
        let text = |key: &str| object.get(key).and_then(Value::as_str);
        let name = text("name").unwrap_or_default().to_owned();
        if !is_name(&name) {
            return Err(bad(format!("{name:?} is not a network's name")));
        }
        let cni_version = text("cniVersion").unwrap_or("0.2.0").to_owned();
        let version = Version::parse(&cni_version)
            .filter(|version| (Version::OLDEST..=Version::NEWEST).contains(version))
            .ok_or_else(|| {
                bad(format!(
                    "cniVersion {cni_version:?} is not one from 0.3.0 to 1.1.0"
                ))
            })?;
        let plugins = match object.get("plugins") {
            Some(Value::Array(plugins)) => plugins.clone(),
            Some(_) => return Err(bad("plugins is not a list".to_owned())),
            None if object.contains_key("type") => vec![Value::Object(object.clone())],
            None => Vec::new(),
        };
        if plugins.is_empty() {
            return Err(bad("it names no plugin".to_owned()));
        }
        let plugins = plugins.into_iter().enumerate().map(|(index, plugin)| {
            let name = plugin.get("type").and_then(Value::as_str).unwrap_or("");
            match plugin {
                _ if !is_name(name) => Err(bad(format!(
                    "plugin {index} has the type {name:?}, which is not a program's name"
                ))),
                Value::Object(plugin) => Ok(plugin),
                _ => Err(bad(format!("plugin {index} is not an object"))),
            }
        });
        let flag = |key: &str| match object.get(key) {
            Some(Value::Bool(flag)) => *flag,
            // The specification allows the words.
            Some(Value::String(word)) => word.eq_ignore_ascii_case("true"),
            _ => false,
        };
        Ok(Self {
            plugins: plugins.collect::<Result<_>>()?,
            name,
            version,
            disable_check: flag("disableCheck"),
            disable_gc: flag("disableGC"),
            cni_version,
        })
    }

    /// Finds a network by its name in a folder of configurations.
    ///
    /// # Errors
    /// [`Error::NoNetwork`]; [`Error::BadList`] when no good file has the name and a bad one may.
    pub fn load(dir: &Path, name: &str) -> Result<Self> {
        let (mut others, mut damaged) = (Vec::new(), None);
        for list in load_all(dir)? {
            match list {
                Ok(list) if list.name == name => return Ok(list),
                Ok(list) => others.push(list.name),
                Err(error) => damaged = damaged.or(Some(error)),
            }
        }
        Err(damaged.unwrap_or_else(|| Error::NoNetwork {
            name: name.to_owned(),
            dir: dir.to_owned(),
            others,
        }))
    }

    /// A plugin's type.
    pub(super) fn plugin_type(plugin: &Map<String, Value>) -> &str {
        plugin.get("type").and_then(Value::as_str).unwrap_or("")
    }
}

/// All networks of a folder (`/etc/cni/net.d`) in the order of their files' names, the bad ones as
/// errors. A folder that does not exist has none.
///
/// # Errors
/// [`Error::File`], when the folder cannot be read.
pub fn load_all(dir: &Path) -> Result<Vec<Result<List>>> {
    let mut files = match knarr_fs::file_names(dir) {
        Ok(files) => files,
        Err(error) if error.is_not_found() => return Ok(Vec::new()),
        Err(error) => return Err(error.into()),
    };
    files.sort();
    let files = files.into_iter().map(PathBuf::from).filter(|file| {
        let extension = file.extension().and_then(std::ffi::OsStr::to_str);
        matches!(extension, Some("conflist" | "conf" | "json"))
    });
    let lists = files.map(|file| {
        let path = dir.join(file);
        List::parse(&knarr_fs::read(&path)?, &path)
    });
    Ok(lists.collect())
}

/// What the specification allows for networks and containers.
pub(super) fn is_name(text: &str) -> bool {
    text.starts_with(|first: char| first.is_ascii_alphanumeric())
        && text
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || b"_.-".contains(&byte))
}
