//! A bundle's configuration, as it can be served.

use std::collections::BTreeSet;
use std::path::Path;

use knarr_net::device::{Device, is_link_name};
use knarr_runtime::Capability;
use knarr_spec::runtime::Config;
use serde::de::DeserializeOwned;
use serde_json::Value;

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
    let mut config: Config = parse(&bytes, &path)?;
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

/// Understands JSON of an engine's. Those written in Go say `null` for what they leave empty.
///
/// # Errors
/// Where it is not the JSON that it should be.
pub(crate) fn parse<T: DeserializeOwned>(bytes: &[u8], path: &Path) -> Result<T> {
    let wrong = |error: serde_json::Error| Failure::new(format!("{}: {error}", path.display()));
    let first = match serde_json::from_slice(bytes) {
        Ok(value) => return Ok(value),
        Err(error) => error,
    };
    match serde_json::from_slice::<Value>(bytes) {
        Ok(mut value) if first.is_data() => {
            drop_nulls(&mut value);
            // The first error knows its line.
            serde_json::from_value(value).map_err(|_| wrong(first))
        }
        _ => Err(wrong(first)),
    }
}

fn drop_nulls(value: &mut Value) {
    match value {
        Value::Object(map) => {
            map.retain(|_, value| !value.is_null());
            map.values_mut().for_each(drop_nulls);
        }
        Value::Array(list) => list.iter_mut().for_each(drop_nulls),
        _ => {}
    }
}

/// The network devices that move in.
///
/// # Errors
/// Names that no link can have, or two would.
pub(crate) fn devices(config: &Config) -> Result<Vec<Device>> {
    let Some(linux) = &config.linux else {
        return Ok(Vec::new());
    };
    let mut devices: Vec<Device> = Vec::with_capacity(linux.net_devices.len());
    for (name, asked) in &linux.net_devices {
        let new_name = match asked.name.as_str() {
            "" => name,
            new_name => new_name,
        };
        let wrong = |reason: &str| Err(Failure::new(format!("linux.netDevices[{name}]: {reason}")));
        if !is_link_name(name) || !is_link_name(new_name) {
            return wrong("not the name of a network device");
        }
        if devices.iter().any(|other| other.new_name == *new_name) {
            return wrong(&format!("another one is to be `{new_name}` as well"));
        }
        devices.push(Device {
            name: name.clone(),
            new_name: new_name.to_owned(),
        });
    }
    Ok(devices)
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn null_is_nothing_and_errors_keep_their_place() {
        let path = Path::new("config.json");
        let text = br#"{"ociVersion": "1.0.2", "hooks": null, "annotations": null, "mounts": [
            {"destination": "/m", "type": "tmpfs", "options": null}], "process": null}"#;
        let config: Config = parse(text, path).unwrap();
        assert_eq!(config.mounts.len(), 1);
        assert!(config.process.is_none() && config.annotations.is_empty());
        for (text, said) in [
            (&b"{"[..], "config.json: EOF while parsing"),
            (br#"{"ociVersion": null, "mounts": 5}"#, "null"),
            (
                br#"{"mounts": 5}"#,
                "config.json: invalid type: integer `5`",
            ),
            (b"{} x", "config.json: trailing characters"),
        ] {
            let failure = parse::<Config>(text, path).unwrap_err();
            assert!(failure.message.contains(said), "{}", failure.message);
        }
    }
}
