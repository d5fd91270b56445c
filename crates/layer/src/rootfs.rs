//! What a container's root is made of: a value that travels in the monitor's request.

use std::path::PathBuf;

use knarr_spec::runtime::IdMapping;
use serde::{Deserialize, Serialize};

use crate::driver::Driver;
use crate::store::LayerId;

/// A container's root file system, decided but not made: [`mount`](crate::mount) makes it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rootfs {
    /// What is below everything the container writes.
    pub base: Base,
    /// Where the container's own changes go; without one the root is read-only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub upper: Option<Upper>,
    /// Whether a crash of the machine may lose the upper folder: no fsync reaches the disk and an
    /// unmount syncs nothing (overlayfs `volatile`). For containers that are removed when they end.
    #[serde(default)]
    pub volatile: bool,
    /// The user namespace's ids: the root's files show shifted, and nothing is chowned.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub idmap: Option<IdMap>,
}

/// What the root shows before the container changes anything.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Base {
    /// The layers of an image; none is the empty image `scratch`.
    Layers {
        /// Who mounts them.
        driver: Driver,
        /// Bottom first.
        layers: Vec<LayerPaths>,
    },
    /// The machine's own programs, libraries and configuration, read-only; everything else is
    /// empty and thrown away (`@host`). The upper folder is not used.
    Host,
}

/// A layer in the store.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LayerPaths {
    /// Its name in the store.
    pub id: LayerId,
    /// Its folder ([`Store::path`](crate::Store::path)).
    pub folder: PathBuf,
}

/// The folders of a container's own changes, both in one file system. Made, and the upper one
/// given the owner, mode and attributes of the image's root, where they do not exist.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Upper {
    /// What the container changed, in overlayfs' form.
    pub upper: PathBuf,
    /// overlayfs' scratch space.
    pub work: PathBuf,
}

/// The maps of a user namespace (user_namespaces(7)); at most 340 ranges each.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct IdMap {
    /// User ids.
    pub uids: Vec<IdMapping>,
    /// Group ids.
    pub gids: Vec<IdMapping>,
}

impl IdMap {
    /// One range for users and groups alike: `size` ids, 0 inside being `host` outside.
    pub fn shifted(host: u32, size: u32) -> Self {
        let range = || {
            vec![IdMapping {
                container_id: 0,
                host_id: host,
                size,
            }]
        };
        Self {
            uids: range(),
            gids: range(),
        }
    }

    /// The user id outside of one inside.
    pub fn uid_outside(&self, inside: u32) -> Option<u32> {
        outside(&self.uids, inside)
    }

    /// The group id outside of one inside.
    pub fn gid_outside(&self, inside: u32) -> Option<u32> {
        outside(&self.gids, inside)
    }

    /// The user id inside of one outside.
    pub fn uid_inside(&self, outside: u32) -> Option<u32> {
        inside(&self.uids, outside)
    }

    /// The group id inside of one outside.
    pub fn gid_inside(&self, outside: u32) -> Option<u32> {
        inside(&self.gids, outside)
    }
}

fn outside(ranges: &[IdMapping], id: u32) -> Option<u32> {
    ranges.iter().find_map(|range| {
        let offset = id.checked_sub(range.container_id)?;
        (offset < range.size).then(|| range.host_id.checked_add(offset))?
    })
}

fn inside(ranges: &[IdMapping], id: u32) -> Option<u32> {
    ranges.iter().find_map(|range| {
        let offset = id.checked_sub(range.host_id)?;
        (offset < range.size).then(|| range.container_id.checked_add(offset))?
    })
}
