//! Volumes: folders that outlive containers.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use knarr_fs::{Durability, Lock, Trash, failpoint};
use serde::{Deserialize, Serialize};

use crate::list::label_matches;
use crate::{Engine, Error, Filters, Pruned, Result, Settings, names, time};

/// The version of `volume.json` that this Knarr writes.
const VERSION: u32 = 1;
const FILE: &str = "volume.json";
/// How Docker marks a volume without a name of its own.
const ANONYMOUS: &str = "com.docker.volume.anonymous";

/// What `volume create` asks for.
#[derive(Debug, Clone, Default)]
pub struct VolumeCreate {
    /// A random one where missing.
    pub name: Option<String>,
    /// Only `local`, which empty means too.
    pub driver: String,
    /// Options of the driver; none are known yet.
    pub options: BTreeMap<String, String>,
    /// Labels.
    pub labels: BTreeMap<String, String>,
}

/// A volume.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Volume {
    /// Its name.
    pub name: String,
    /// `local`.
    pub driver: String,
    /// Where its data is.
    pub mountpoint: PathBuf,
    /// RFC 3339.
    pub created_at: String,
    /// Made for one container, without a name given.
    pub anonymous: bool,
    /// Labels.
    pub labels: BTreeMap<String, String>,
    /// Options.
    pub options: BTreeMap<String, String>,
}

/// `volume.json`.
#[derive(Debug, Serialize, Deserialize)]
struct Stored {
    version: u32,
    name: String,
    created: String,
    anonymous: bool,
    labels: BTreeMap<String, String>,
}

impl Volume {
    /// Docker's JSON of it.
    pub fn inspect(&self) -> serde_json::Value {
        let or_null = |map: &BTreeMap<String, String>| {
            if map.is_empty() {
                serde_json::Value::Null
            } else {
                serde_json::json!(map)
            }
        };
        serde_json::json!({
            "CreatedAt": self.created_at,
            "Driver": self.driver,
            "Labels": or_null(&self.labels),
            "Mountpoint": self.mountpoint,
            "Name": self.name,
            "Options": or_null(&self.options),
            "Scope": "local",
        })
    }
}

/// Whether a text can be a volume's name.
pub(crate) fn check_name(name: &str) -> Result<()> {
    if name.parse::<knarr_spec::ContainerName>().is_ok() && !name.starts_with('/') {
        return Ok(());
    }
    Err(Error::invalid_hint(
        format!(
            "{name:?} includes invalid characters for a local volume name, only \
             \"[a-zA-Z0-9][a-zA-Z0-9_.-]\" are allowed"
        ),
        "if you intended to pass a host directory, use an absolute path",
    ))
}

/// Where a volume is.
pub(crate) fn folder(settings: &Settings, name: &str) -> PathBuf {
    settings.volumes().join(name)
}

/// Where its data is.
pub(crate) fn data(settings: &Settings, name: &str) -> PathBuf {
    folder(settings, name).join("data")
}

/// Keeps volumes from being removed while containers that use them are made.
pub(crate) fn hold(settings: &Settings) -> Result<Lock> {
    Ok(Lock::shared(&settings.volumes().join(".lock"))?)
}

/// Where a volume is made before it appears; `maker` is the container it is made for, which one
/// finds there what a killed command left.
pub(crate) fn half_made(settings: &Settings, maker: &str) -> PathBuf {
    settings.volumes().join(format!(".tmp-{maker}"))
}

/// Removes what killed `volume create`s left. Cheap where there is nothing; not now where somebody
/// makes or uses a volume.
fn sweep(settings: &Settings) -> Result<()> {
    let folder = settings.volumes();
    let entries = match std::fs::read_dir(&folder) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        entries => entries.map_err(knarr_fs::Error::of_io("list", "open", &folder))?,
    };
    let names = entries.flatten().map(|entry| entry.file_name());
    let left: Vec<_> = names
        .filter(|name| name.as_encoded_bytes().starts_with(b".tmp-"))
        .collect();
    if !left.is_empty()
        && let Some(_alone) = Lock::try_exclusive(&folder.join(".lock"))?
    {
        for name in left {
            knarr_fs::remove_tree(&folder.join(name))?;
        }
    }
    Ok(())
}

/// Makes a volume; one that is there already is fine. Appears whole, by one rename.
pub(crate) fn ensure(
    settings: &Settings,
    maker: &str,
    name: &str,
    labels: &BTreeMap<String, String>,
    anonymous: bool,
) -> Result<Volume> {
    check_name(name)?;
    if let Some(volume) = load(settings, name)? {
        return Ok(volume);
    }
    let mut labels = labels.clone();
    if anonymous {
        labels.insert(ANONYMOUS.to_owned(), String::new());
    }
    let stored = Stored {
        version: VERSION,
        name: name.to_owned(),
        created: time::format(time::now()),
        anonymous,
        labels,
    };
    let temporary = half_made(settings, maker);
    knarr_fs::remove_tree(&temporary)?;
    knarr_fs::create_dir_private(&temporary)?;
    let data = temporary.join("data");
    knarr_fs::create_dir_private(&data)?;
    // Everybody in the container may enter; on the host the folder above is closed.
    let mode = rustix::fs::Mode::from_raw_mode(0o755);
    rustix::fs::chmod(&data, mode).map_err(knarr_fs::Error::of(
        "change the mode of",
        "chmod",
        &data,
    ))?;
    let file = temporary.join(FILE);
    let json = serde_json::to_vec(&stored).map_err(|cause| Error::Damaged {
        path: file.clone(),
        cause,
    })?;
    let durability = if anonymous {
        Durability::Volatile
    } else {
        Durability::Durable
    };
    knarr_fs::write_atomic(&file, &json, durability)?;
    failpoint!("volume.written");
    let place = folder(settings, name);
    let published = match durability {
        Durability::Durable => knarr_fs::rename_durable(&temporary, &place),
        Durability::Volatile => knarr_fs::rename(&temporary, &place),
    };
    match published {
        // Somebody else made it meanwhile.
        Err(error) if error.is_exists() || error.errno() == Some(rustix::io::Errno::NOTEMPTY) => {
            knarr_fs::remove_tree(&temporary)?;
        }
        done => done?,
    }
    load(settings, name)?.ok_or_else(|| Error::VolumeNotFound {
        name: name.to_owned(),
        near: Vec::new(),
    })
}

/// A random name for an anonymous volume.
pub(crate) fn random_name() -> Result<String> {
    Ok(names::random_id()?.to_string())
}

/// Reads a volume; `None` where there is none of that name.
pub(crate) fn load(settings: &Settings, name: &str) -> Result<Option<Volume>> {
    if check_name(name).is_err() {
        return Ok(None);
    }
    let path = folder(settings, name).join(FILE);
    let bytes = match knarr_fs::read(&path) {
        Err(error) if error.is_not_found() => return Ok(None),
        bytes => bytes?,
    };
    let stored: Stored = serde_json::from_slice(&bytes).map_err(|cause| Error::Damaged {
        path: path.clone(),
        cause,
    })?;
    if stored.version > VERSION {
        return Err(Error::Version {
            path,
            found: stored.version,
            known: VERSION,
        });
    }
    Ok(Some(Volume {
        mountpoint: data(settings, name),
        name: stored.name,
        driver: "local".to_owned(),
        created_at: stored.created,
        anonymous: stored.anonymous,
        labels: stored.labels,
        options: BTreeMap::new(),
    }))
}

/// All volumes' names, sorted.
pub(crate) fn all(settings: &Settings) -> Result<Vec<String>> {
    let mut names: Vec<String> = knarr_fs::file_names(&settings.volumes())?
        .into_iter()
        .filter_map(|name| name.into_string().ok())
        .collect();
    names.sort();
    Ok(names)
}

/// Removes a volume: gone at once, its space soon after.
pub(crate) fn remove(settings: &Settings, name: &str) -> Result<()> {
    check_name(name)?;
    Ok(Trash::below(&settings.root).throw(&folder(settings, name))?)
}

impl Engine {
    pub(crate) fn volume_create_now(&self, request: &VolumeCreate) -> Result<Volume> {
        if !matches!(request.driver.as_str(), "" | "local") {
            return Err(Error::Unsupported {
                what: format!("volume driver `{}`", request.driver),
                reason: "there are no volume plugins; `local` is the one driver",
            });
        }
        if let Some((key, value)) = request.options.iter().next() {
            return Err(Error::Unsupported {
                what: format!("volume option `{key}={value}`"),
                reason: "a volume is a plain folder so far",
            });
        }
        sweep(self.settings())?;
        let _there = hold(self.settings())?;
        let maker = random_name()?;
        match &request.name {
            Some(name) => ensure(self.settings(), &maker, name, &request.labels, false),
            None => ensure(
                self.settings(),
                &maker,
                &random_name()?,
                &request.labels,
                true,
            ),
        }
    }

    pub(crate) fn volumes_now(&self, filters: &Filters) -> Result<Vec<Volume>> {
        sweep(self.settings())?;
        let used = match filters.0.contains_key("dangling") {
            true => self.used_volumes()?,
            false => BTreeSet::new(),
        };
        let mut found = Vec::new();
        for name in all(self.settings())? {
            // One that is removed meanwhile is not there.
            let Some(volume) = load(self.settings(), &name)? else {
                continue;
            };
            let mut matches = true;
            for (key, values) in &filters.0 {
                matches &= match key.as_str() {
                    "name" => values.iter().any(|value| name.contains(value.as_str())),
                    "label" => values
                        .iter()
                        .all(|value| label_matches(&volume.labels, value)),
                    "driver" => values.iter().any(|value| value == "local"),
                    "dangling" => values.iter().any(|value| {
                        matches!(value.as_str(), "true" | "1") != used.contains(&name)
                    }),
                    _ => return Err(Error::invalid(format!("invalid filter '{key}'"))),
                };
            }
            if matches {
                found.push(volume);
            }
        }
        Ok(found)
    }

    pub(crate) fn volume_prune_now(&self, everything: bool, filters: &Filters) -> Result<Pruned> {
        let mut labels = Vec::new();
        let mut everything = everything;
        for (key, values) in &filters.0 {
            match key.as_str() {
                "label" => labels.extend(values.iter().map(|value| (true, value.as_str()))),
                "label!" => labels.extend(values.iter().map(|value| (false, value.as_str()))),
                "all" => {
                    everything |= values
                        .iter()
                        .any(|value| matches!(value.as_str(), "true" | "1"))
                }
                _ => return Err(Error::invalid(format!("invalid filter '{key}'"))),
            }
        }
        // Nobody makes a container with one of them meanwhile.
        let _alone = Lock::exclusive(&self.settings().volumes().join(".lock"))?;
        let used = self.used_volumes()?;
        let mut pruned = Pruned::default();
        for name in all(self.settings())? {
            let Some(volume) = load(self.settings(), &name)? else {
                continue;
            };
            let labelled = labels
                .iter()
                .all(|(is, label)| label_matches(&volume.labels, label) == *is);
            if used.contains(&name) || !labelled || !(everything || volume.anonymous) {
                continue;
            }
            let bytes = crate::list::disk_usage(&volume.mountpoint);
            remove(self.settings(), &name)?;
            pruned.bytes = pruned.bytes.saturating_add(bytes);
            pruned.removed.push(name);
        }
        Trash::below(&self.settings().root).empty()?;
        Ok(pruned)
    }

    fn used_volumes(&self) -> Result<BTreeSet<String>> {
        let mut used = BTreeSet::new();
        for id in self.ids()? {
            if let Some(record) = crate::record::Record::load(self.settings(), &id)? {
                used.extend(record.mounts.into_iter().map(|mount| mount.name));
            }
        }
        Ok(used)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_volume_is_made_once_and_found_again() {
        let dir = knarr_fs::TempDir::new_in(&std::env::temp_dir().join("knarr-engine")).unwrap();
        let settings = Settings {
            root: dir.path().join("data"),
            run_root: dir.path().join("run"),
            monitor: "/nonexistent".into(),
        };
        settings.prepare().unwrap();
        assert_eq!(load(&settings, "data").unwrap(), None);
        let labels = [("a".to_owned(), "b".to_owned())].into();
        let made = ensure(&settings, "x", "data", &labels, false).unwrap();
        std::fs::write(made.mountpoint.join("file"), "x").unwrap();
        assert_eq!(
            ensure(&settings, "x", "data", &BTreeMap::new(), false).unwrap(),
            made
        );
        assert_eq!(all(&settings).unwrap(), ["data"]);
        let inspected = made.inspect();
        assert_eq!(inspected["Labels"]["a"], "b");
        remove(&settings, "data").unwrap();
        assert_eq!(all(&settings).unwrap(), Vec::<String>::new());
        remove(&settings, "data").unwrap();
        for bad in ["../x", "/x", "a/b", ""] {
            assert!(
                ensure(&settings, "x", bad, &BTreeMap::new(), false).is_err(),
                "{bad}"
            );
            assert!(load(&settings, bad).unwrap().is_none(), "{bad}");
        }
    }
}
