//! Profiles as users write them: rules that depend on capabilities, architecture and kernel.

use knarr_spec::runtime::Seccomp;
use serde::{Deserialize, Serialize};

use crate::{Arch, Error, Result};

/// A profile in Docker's JSON form (`--security-opt seccomp=FILE`), a superset of the OCI section.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Profile {}

impl Profile {
    /// Parses a profile file.
    ///
    /// # Errors
    /// [`Error::Profile`].
    pub fn parse(json: &[u8]) -> Result<Self> {
        serde_json::from_slice(json).map_err(Error::Profile)
    }

    /// Docker's default profile.
    pub fn docker() -> Self {
        Self::default()
    }

    /// The OCI section for a container with these capabilities (`CAP_…`, the bounding set) on the
    /// running kernel.
    pub fn section(&self, capabilities: &[impl AsRef<str>], arch: Arch) -> Seccomp {
        let _ = (capabilities, arch);
        Seccomp::default()
    }
}

/// Docker's default profile as an OCI section, for a container with these capabilities.
pub fn default_profile(capabilities: &[impl AsRef<str>], arch: Arch) -> Seccomp {
    Profile::docker().section(capabilities, arch)
}
