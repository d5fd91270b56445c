//! What is written down about a container: `state.json`, replaced whole, and read by every later
//! version.

use std::collections::BTreeMap;
use std::path::Path;

use knarr_runtime::process::Identity;
use knarr_runtime::{HookPlan, Plan};
use serde::{Deserialize, Serialize};

use crate::failure::{Failure, Result};

/// The version of [`Record`]: a reader refuses what is newer.
pub(crate) const VERSION: u32 = 1;
/// Its file in the container's folder.
pub(crate) const FILE: &str = "state.json";
/// The socket in the container's folder that its process listens at until it is started.
pub(crate) const GATE: &str = "gate";

/// How far the creation is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Phase {
    /// Somebody makes it and holds its lock; where nobody does, it is to be taken away.
    Creating,
    /// It is whole; whether it runs is to be asked of the kernel.
    Whole,
}

/// The container.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Record {
    pub(crate) version: u32,
    pub(crate) phase: Phase,
    pub(crate) id: String,
    /// Absolute.
    pub(crate) bundle: String,
    /// Absolute.
    pub(crate) rootfs: String,
    /// RFC 3339.
    pub(crate) created: String,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub(crate) annotations: BTreeMap<String, String>,
    /// None where cgroups may not be used.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) cgroup: Option<knarr_cgroup::Plan>,
    /// The first process; none while it is made.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) init: Option<Identity>,
    /// What it was made from; none while it is made.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) plan: Option<Plan>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) poststart: Vec<HookPlan>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) poststop: Vec<HookPlan>,
}

impl Record {
    /// Reads a container's file; `None` where there is none.
    ///
    /// # Errors
    /// What is damaged, or newer.
    pub(crate) fn load(dir: &Path) -> Result<Option<Self>> {
        let path = dir.join(FILE);
        let bytes = match knarr_fs::read(&path) {
            Ok(bytes) => bytes,
            Err(error) if error.is_not_found() => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        Self::parse(&bytes)
            .map(Some)
            .map_err(|failure| failure.during(&path.display().to_string()))
    }

    fn parse(bytes: &[u8]) -> Result<Self> {
        #[derive(Deserialize)]
        struct Head {
            version: u32,
        }
        let wrong = |error: serde_json::Error| Failure::new(error.to_string());
        let head: Head = serde_json::from_slice(bytes).map_err(wrong)?;
        if head.version > VERSION {
            let found = head.version;
            return Err(Failure::new(format!(
                "has version {found}, this knarr-oci knows {VERSION} (update it)"
            )));
        }
        serde_json::from_slice(bytes).map_err(wrong)
    }

    /// Replaces the file.
    ///
    /// # Errors
    /// As write(2).
    pub(crate) fn save(&self, dir: &Path) -> Result<()> {
        // A struct of strings and numbers always serializes.
        let bytes = serde_json::to_vec(self).unwrap_or_default();
        // A reboot ends what is described here.
        Ok(knarr_fs::write_atomic(
            &dir.join(FILE),
            &bytes,
            knarr_fs::Durability::Volatile,
        )?)
    }

    /// As hooks and `state` have it.
    pub(crate) fn oci(&self, status: &str) -> knarr_spec::runtime::State {
        knarr_spec::runtime::State {
            oci_version: knarr_spec::runtime::OCI_VERSION.to_owned(),
            id: self.id.clone(),
            status: status.to_owned(),
            pid: self.init.as_ref().map(|init| init.pid),
            bundle: self.bundle.clone(),
            annotations: self.annotations.clone(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Written by version 1 of the format. Later versions read it.
    const GOLDEN: &str = include_str!("../tests/golden/state-1.json");

    #[test]
    fn the_first_format_is_read_and_written_as_it_was() {
        let record = Record::parse(GOLDEN.as_bytes()).unwrap();
        assert_eq!(record.id, "web");
        assert_eq!(record.phase, Phase::Whole);
        assert_eq!(record.init.as_ref().unwrap().pid, 4711);
        let plan = record.plan.as_ref().unwrap();
        assert_eq!(plan.process.args, ["sleep", "60"]);
        assert_eq!(plan.mounts.len(), 3);
        assert_eq!(record.poststop.len(), 1);
        let value: serde_json::Value = serde_json::from_str(GOLDEN).unwrap();
        assert_eq!(serde_json::to_value(&record).unwrap(), value);
    }

    #[test]
    fn a_later_format_is_refused_by_its_number() {
        let later = GOLDEN.replacen("\"version\": 1", "\"version\": 2", 1);
        let failure = Record::parse(later.as_bytes()).unwrap_err();
        assert!(
            failure.message.contains("has version 2"),
            "{}",
            failure.message
        );
        assert!(Record::parse(b"{\"version\":1").is_err());
    }
}
