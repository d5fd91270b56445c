//! Volumes: folders that outlive containers.

use std::collections::BTreeMap;
use std::path::PathBuf;

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

impl Volume {
    /// Docker's JSON of it.
    pub fn inspect(&self) -> serde_json::Value {
        todo!()
    }
}
