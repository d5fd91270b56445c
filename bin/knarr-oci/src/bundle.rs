//! A bundle's configuration, as it can be served.

use std::collections::BTreeSet;
use std::path::Path;

use knarr_runtime::Capability;
use knarr_spec::runtime::Config;

use crate::failure::{Failure, Result};
use crate::log::Log;

/// Reads a bundle's configuration; relative paths in it start at the bundle.
pub(crate) fn load(bundle: &Path) -> Result<Config> {
    let path = bundle.join("config.json");
    let bytes = match knarr_fs::read(&path) {
        Ok(bytes) => bytes,
        Err(error) if error.is_not_found() => {
            return Err(Failure::new(
                "JSON specification file config.json not found",
            ));
        }
        Err(error) => return Err(error.into()),
    };
    let mut config: Config = serde_json::from_slice(&bytes)
        .map_err(|error| Failure::new(format!("{}: {error}", path.display())))?;
    if !config.oci_version.starts_with("1.") {
        return Err(Failure::new(format!(
            "ociVersion: `{}` is not served, only 1.x",
            config.oci_version
        )));
    }
    for mount in &mut config.mounts {
        let is_bind = mount.kind.as_deref() == Some("bind")
            || mount
                .options
                .iter()
                .any(|option| option == "bind" || option == "rbind");
        if let (true, Some(source)) = (is_bind, &mount.source)
            && !source.starts_with('/')
            && !source.is_empty()
        {
            mount.source = Some(bundle.join(source).display().to_string());
        }
    }
    Ok(config)
}

/// Takes out the capabilities that cannot be given: "runtimes SHOULD NOT fail if the container
/// configuration requests capabilities that cannot be granted" (config.md), they warn.
pub(crate) fn grant(config: &mut Config, log: &mut Log) {
    let new_user_namespace = config.linux.as_ref().is_some_and(|linux| {
        linux
            .namespaces
            .iter()
            .any(|namespace| namespace.kind == "user")
    });
    let Some(sets) = config
        .process
        .as_mut()
        .and_then(|process| process.capabilities.as_mut())
    else {
        return;
    };
    let all = u64::MAX;
    let own = if new_user_namespace {
        all
    } else {
        rustix::thread::capabilities(None).map_or(all, |sets| sets.permitted.bits())
    };
    let mut refused = BTreeSet::new();
    for set in [
        &mut sets.bounding,
        &mut sets.effective,
        &mut sets.permitted,
        &mut sets.inheritable,
        &mut sets.ambient,
    ] {
        set.retain(|name| {
            let granted = Capability::parse(name).is_some_and(|one| own & one.bit() != 0);
            if !granted {
                refused.insert(name.clone());
            }
            granted
        });
    }
    // The kernel asks for both before it makes one ambient (capabilities(7)).
    let (permitted, inheritable) = (&sets.permitted, &sets.inheritable);
    sets.ambient.retain(|name| {
        let granted = permitted.contains(name) && inheritable.contains(name);
        if !granted {
            refused.insert(format!("{name} (ambient)"));
        }
        granted
    });
    if !refused.is_empty() {
        let names: Vec<&str> = refused.iter().map(String::as_str).collect();
        log.warning(&format!(
            "capabilities that cannot be granted are left out: {}",
            names.join(" ")
        ));
    }
}
