//! Callers without rights of their own: what they ask for is done in a user namespace that is made for
//! the call, by this program executed once more ([`knarr_runtime::rootless`]). A container's ids are
//! taken from that namespace's.

use std::path::Path;

use knarr_runtime::rootless::{ids, inside, parse_map, subordinate};
use knarr_runtime::{IdRange, UserNamespace};
use knarr_spec::runtime::{Config, IdMapping};
use rustix::process::{getegid, geteuid};

use crate::bundle;
use crate::failure::{Failure, Result};
use crate::list::user_name;

/// The variable that tells the program that it has entered one.
pub(crate) const ENTERED: &str = "KNARR_OCI_ENTERED";

/// Whether this process came out of [`enter`].
pub(crate) fn entered() -> bool {
    std::env::var_os(ENTERED).is_some()
}

/// Makes a caller without rights root of a user namespace with the ids that the bundle's container
/// needs. `false` where there was no need.
///
/// # Errors
/// What the container asks for and the caller has not.
pub(crate) fn enter(bundle: &Path) -> Result<bool> {
    let (uid, gid) = (geteuid().as_raw(), getegid().as_raw());
    if uid == 0 {
        return Ok(false);
    }
    let linux = bundle::load(bundle)?.linux.unwrap_or_default();
    match linux.namespaces.iter().find(|one| one.kind == "user") {
        None => {
            return Err(Failure::new(
                "rootless container requires user namespaces (`knarr-oci spec --rootless` writes a config.json with one)",
            ));
        }
        Some(joined) if joined.path.as_ref().is_some_and(|path| !path.is_empty()) => {
            return Err(Failure::new(
                "linux.namespaces: a user namespace can be joined by root only (leave its path out)",
            ));
        }
        Some(_) => {}
    }
    let only =
        |maps: &[IdMapping], own: u32| matches!(maps, [one] if (one.host_id, one.size) == (own, 1));
    let alone = only(&linux.uid_mappings, uid) && only(&linux.gid_mappings, gid);
    let (number, name) = (uid.to_string(), user_name(uid));
    let names = [number.as_str(), name.as_deref().unwrap_or(&number)];
    let all = |own: u32, file: &str| -> Result<Vec<IdRange>> {
        if alone {
            return Ok(ids(own, &[]));
        }
        match knarr_fs::read_to_string(Path::new(file)) {
            Ok(text) => Ok(ids(own, &subordinate(&text, &names))),
            Err(error) if error.is_not_found() => Ok(ids(own, &[])),
            Err(error) => Err(error.into()),
        }
    };
    let (uids, gids) = (all(uid, "/etc/subuid")?, all(gid, "/etc/subgid")?);
    for (field, maps, have, own, file) in [
        (
            "uidMappings",
            &linux.uid_mappings,
            &uids,
            uid,
            "/etc/subuid",
        ),
        (
            "gidMappings",
            &linux.gid_mappings,
            &gids,
            gid,
            "/etc/subgid",
        ),
    ] {
        inside(&ranges(maps), have).map_err(|id| {
            Failure::new(format!(
                "linux.{field}: id {id} of the host is neither the caller's own, {own}, nor one of its \
                 subordinate ids in {file} (see `usermod --add-subuids`)"
            ))
        })?;
    }
    knarr_runtime::rootless::enter(&UserNamespace { uids, gids })?;
    Ok(true)
}

/// Gives a container's ids as the namespace has them that [`enter`] made.
///
/// # Errors
/// An id that it has not.
pub(crate) fn translate(config: &mut Config) -> Result<()> {
    let (true, Some(linux)) = (entered(), &mut config.linux) else {
        return Ok(());
    };
    for (file, maps) in [
        ("/proc/self/uid_map", &mut linux.uid_mappings),
        ("/proc/self/gid_map", &mut linux.gid_mappings),
    ] {
        let outer = parse_map(&knarr_fs::read_to_string(Path::new(file))?);
        let found = inside(&ranges(maps), &outer)
            .map_err(|id| Failure::new(format!("{file} does not have id {id} of the host")))?;
        *maps = found
            .iter()
            .map(|range| IdMapping {
                container_id: range.container,
                host_id: range.host,
                size: range.size,
            })
            .collect();
    }
    Ok(())
}

fn ranges(maps: &[IdMapping]) -> Vec<IdRange> {
    maps.iter()
        .map(|map| IdRange {
            container: map.container_id,
            host: map.host_id,
            size: map.size,
        })
        .collect()
}
