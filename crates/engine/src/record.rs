//! `container.json`: what a container is, for as long as it exists.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use knarr_fs::Durability;
use knarr_layer::LayerId;
use knarr_spec::docker::{ContainerConfig, EndpointSettings, HostConfig, MountPoint};
use knarr_spec::{ContainerId, ContainerName, Digest, Platform};
use serde::{Deserialize, Serialize};

use crate::{Error, Result, Settings};

/// The version of [`Record`] that this Knarr writes.
pub(crate) const VERSION: u32 = 1;

/// The file's name.
pub(crate) const FILE: &str = "container.json";

/// Everything about a container that does not change by itself. `state.json` has the rest.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Record {
    /// Of this format: [`VERSION`].
    pub(crate) version: u32,
    pub(crate) id: ContainerId,
    pub(crate) name: ContainerName,
    /// RFC 3339 with nine digits, UTC.
    pub(crate) created: String,
    /// What its root is made of.
    pub(crate) root: Root,
    pub(crate) platform: Platform,
    /// What runs, the image's part merged in.
    pub(crate) config: ContainerConfig,
    /// How it runs here, defaults filled in.
    pub(crate) host: HostConfig,
    pub(crate) mounts: Vec<Mount>,
    /// How it is on its networks, by their names; `None` is the network mode's alone, as it comes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) endpoints: Option<BTreeMap<String, EndpointSettings>>,
    /// The range of user ids that it leases, with `--userns auto` and `@host`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) ids: Option<IdRange>,
    pub(crate) paths: Paths,
}

/// What a container's root is made of.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub(crate) enum Root {
    /// An image's layers.
    Image {
        /// `sha256:…` of its configuration.
        id: Digest,
        /// Bottom first.
        layers: Vec<LayerId>,
        /// Who mounts them.
        driver: knarr_layer::Driver,
    },
    /// The machine's own files.
    Host,
    /// Nothing.
    Scratch,
}

/// A range of ids on the host.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct IdRange {
    pub(crate) start: u32,
    pub(crate) size: u32,
}

/// Where a container's files are.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Paths {
    /// The folder that holds this file.
    pub(crate) folder: PathBuf,
    pub(crate) upper: PathBuf,
    pub(crate) work: PathBuf,
    /// The current log file, whatever the log driver.
    pub(crate) log: PathBuf,
}

/// A mount that was asked for.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct Mount {
    pub(crate) kind: MountKind,
    /// A volume's name.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub(crate) name: String,
    /// On the host, absolute; empty for tmpfs.
    pub(crate) source: String,
    /// In the container, absolute and clean.
    pub(crate) destination: String,
    /// What stood behind the second colon of `-v`, for `inspect`.
    pub(crate) mode: String,
    pub(crate) read_only: bool,
    /// `rprivate`, …; empty for the default.
    pub(crate) propagation: String,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub(crate) non_recursive: bool,
    /// A missing source of a bind mount is made (as `-v` does), not refused (as `--mount` does).
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub(crate) make_source: bool,
    /// Mount options of a tmpfs, as `--tmpfs` takes them.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub(crate) tmpfs: String,
    /// A new volume gets the image's content.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub(crate) copy_up: bool,
    /// A volume made for this container, without a name given: goes with `rm -v` and `--rm`.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub(crate) anonymous: bool,
}

/// What is mounted.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum MountKind {
    #[default]
    Bind,
    Volume,
    Tmpfs,
}

impl Mount {
    /// Docker's word for it.
    pub(crate) fn kind_name(&self) -> &'static str {
        match self.kind {
            MountKind::Bind => "bind",
            MountKind::Volume => "volume",
            MountKind::Tmpfs => "tmpfs",
        }
    }

    /// As `inspect` shows it.
    pub(crate) fn point(&self) -> MountPoint {
        MountPoint {
            kind: self.kind_name().to_owned(),
            name: self.name.clone(),
            source: self.source.clone(),
            destination: self.destination.clone(),
            driver: if self.kind == MountKind::Volume {
                "local".to_owned()
            } else {
                String::new()
            },
            mode: self.mode.clone(),
            rw: !self.read_only,
            propagation: match self.kind {
                MountKind::Bind if self.propagation.is_empty() => "rprivate".to_owned(),
                _ => self.propagation.clone(),
            },
        }
    }
}

impl Paths {
    /// Where a container's files go: in the data root, or with `--rm` what describes it into the
    /// run root and what it writes into `ephemeral`.
    pub(crate) fn plan(settings: &Settings, id: &ContainerId, auto_remove: bool) -> Self {
        let (folder, layer) = if auto_remove {
            (settings.run_dir(id), settings.ephemeral_dir(id))
        } else {
            (settings.data_dir(id), settings.data_dir(id))
        };
        Self {
            upper: layer.join("upper"),
            work: layer.join("work"),
            // Output may be much, so it is never in memory.
            log: layer.join("logs").join(format!("{id}-json.log")),
            folder,
        }
    }
}

impl Record {
    pub(crate) fn parse(bytes: &[u8], path: &Path) -> Result<Self> {
        #[derive(Deserialize)]
        struct Head {
            version: u32,
        }
        let damaged = |cause| Error::Damaged {
            path: path.to_owned(),
            cause,
        };
        match serde_json::from_slice(bytes) {
            Ok(record) => Ok(record),
            Err(cause) => match serde_json::from_slice::<Head>(bytes) {
                Ok(head) if head.version > VERSION => Err(Error::Version {
                    path: path.to_owned(),
                    found: head.version,
                    known: VERSION,
                }),
                _ => Err(damaged(cause)),
            },
        }
    }

    /// Reads the record of a container, wherever it lives; `None` where there is none.
    pub(crate) fn load(settings: &Settings, id: &ContainerId) -> Result<Option<Self>> {
        for folder in [settings.data_dir(id), settings.run_dir(id)] {
            let path = folder.join(FILE);
            match knarr_fs::read(&path) {
                Ok(bytes) => return Self::parse(&bytes, &path).map(Some),
                Err(error) if error.is_not_found() => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(None)
    }

    /// Replaces the file in `folder`.
    pub(crate) fn save(&self, folder: &Path, durability: Durability) -> Result<()> {
        let path = folder.join(FILE);
        let bytes = serde_json::to_vec(self).map_err(|cause| Error::Damaged {
            path: path.clone(),
            cause,
        })?;
        knarr_fs::write_atomic(&path, &bytes, durability)?;
        Ok(())
    }

    /// How durable its files are.
    pub(crate) fn durability(&self) -> Durability {
        if self.host.auto_remove {
            Durability::Volatile
        } else {
            Durability::Durable
        }
    }

    /// Entrypoint and command.
    pub(crate) fn command(&self) -> Vec<String> {
        let parts = [&self.config.entrypoint, &self.config.cmd];
        parts.into_iter().flatten().flatten().cloned().collect()
    }

    /// The image's id as Docker prints it; empty where there is none.
    pub(crate) fn image_id(&self) -> String {
        match &self.root {
            Root::Image { id, .. } => id.to_string(),
            Root::Host | Root::Scratch => String::new(),
        }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A record with every kind of content.
    pub(crate) fn example() -> Record {
        let id: ContainerId = "0123456789ab".repeat(6).get(..64).unwrap().parse().unwrap();
        let settings = Settings {
            root: "/data".into(),
            run_root: "/run/knarr".into(),
            monitor: "/bin/knarr-monitor".into(),
        };
        let digest = |byte: u8| Digest::from_bytes([byte; 32]);
        Record {
            version: VERSION,
            paths: Paths::plan(&settings, &id, false),
            id,
            name: "web".parse().unwrap(),
            created: crate::time::format(1_700_000_000_000_000_001),
            root: Root::Image {
                id: digest(1),
                layers: vec![digest(2).into(), digest(3).into()],
                driver: knarr_layer::Driver::Erofs,
            },
            platform: "linux/amd64".parse().unwrap(),
            config: ContainerConfig {
                image: "debian".to_owned(),
                cmd: Some(vec!["sh".to_owned()]),
                ..ContainerConfig::default()
            },
            host: HostConfig {
                network_mode: "default".to_owned(),
                ..HostConfig::default()
            },
            mounts: vec![Mount {
                kind: MountKind::Volume,
                name: "data".to_owned(),
                source: "/data/volumes/data/data".to_owned(),
                destination: "/var/lib/data".to_owned(),
                copy_up: true,
                ..Mount::default()
            }],
            endpoints: None,
            ids: Some(IdRange {
                start: 0x7000_0000,
                size: 65_536,
            }),
        }
    }

    #[test]
    fn the_file_format_is_as_written_down() {
        let text = serde_json::to_string_pretty(&example()).unwrap() + "\n";
        crate::golden("container.json", &text);
        assert_eq!(
            Record::parse(text.as_bytes(), Path::new("x")).unwrap(),
            example()
        );
    }

    #[test]
    fn a_newer_or_damaged_file_is_named() {
        let parse = |text: &str| Record::parse(text.as_bytes(), Path::new("/c/container.json"));
        let newer = parse(r#"{"version": 2, "shape": "other"}"#).unwrap_err();
        assert!(matches!(newer, Error::Version { found: 2, .. }), "{newer}");
        let damaged = parse(r#"{"version": 1"#).unwrap_err();
        assert_eq!(damaged.to_string(), "/c/container.json is damaged");
    }
}
