//! Device nodes and who may use them.

use std::path::Path;

use knarr_spec::docker::HostConfig;
use knarr_spec::runtime::{Device, DeviceRule};
use rustix::fs::FileType;

use crate::{Error, Result};

/// A device of the host that a container sees.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct HostDevice {
    /// In the container.
    pub(crate) path: String,
    pub(crate) character: bool,
    pub(crate) major: u32,
    pub(crate) minor: u32,
    pub(crate) mode: u32,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    /// Any of `r`, `w`, `m`.
    pub(crate) access: String,
}

impl HostDevice {
    /// The node to make.
    pub(crate) fn node(&self) -> Device {
        Device {
            path: self.path.clone(),
            kind: if self.character { "c" } else { "b" }.to_owned(),
            major: Some(self.major.into()),
            minor: Some(self.minor.into()),
            file_mode: Some(self.mode),
            uid: Some(self.uid),
            gid: Some(self.gid),
        }
    }

    fn look(host: &Path, path: &str, access: &str) -> Result<Option<Self>> {
        let stat = rustix::fs::stat(host).map_err(knarr_fs::Error::of("stat", "stat", host))?;
        let character = match FileType::from_raw_mode(stat.st_mode) {
            FileType::CharacterDevice => true,
            FileType::BlockDevice => false,
            _ => return Ok(None),
        };
        Ok(Some(Self {
            path: path.to_owned(),
            character,
            major: rustix::fs::major(stat.st_rdev),
            minor: rustix::fs::minor(stat.st_rdev),
            mode: stat.st_mode & 0o7777,
            uid: stat.st_uid,
            gid: stat.st_gid,
            access: access.to_owned(),
        }))
    }
}

/// Looks at what `--device` names (folders with all that is in them), or with `--privileged` at all
/// of `/dev`.
pub(crate) fn look(host: &HostConfig) -> Result<Vec<HostDevice>> {
    let mut found = Vec::new();
    if host.privileged {
        walk(Path::new("/dev"), "/dev", "rwm", &mut found);
    }
    for mapping in &host.devices {
        let source = Path::new(&mapping.path_on_host);
        let inside = match mapping.path_in_container.as_str() {
            "" => &mapping.path_on_host,
            path => path,
        };
        let access = match mapping.cgroup_permissions.as_str() {
            "" => "rwm",
            access if access.bytes().all(|byte| b"rwm".contains(&byte)) => access,
            access => return Err(Error::invalid(format!("invalid device mode: {access}"))),
        };
        if !inside.starts_with('/') || inside.contains('\0') {
            return Err(Error::invalid(format!("{inside} is not an absolute path")));
        }
        let inside = &crate::mounts::clean(inside);
        if source.is_dir() {
            let before = found.len();
            walk(source, inside, access, &mut found);
            if found.len() > before {
                continue;
            }
        }
        let device = HostDevice::look(source, inside, access).map_err(|error| {
            Error::invalid_hint(
                format!(
                    "error gathering device information while adding custom device \"{}\": {}",
                    mapping.path_on_host,
                    match error {
                        Error::Fs(error) if error.is_not_found() =>
                            "no such file or directory".to_owned(),
                        other => other.to_string(),
                    }
                ),
                "`ls /dev` shows the devices that this machine has",
            )
        })?;
        found.push(device.ok_or_else(|| {
            Error::invalid(format!(
                "error gathering device information while adding custom device \"{}\": not a device \
                 node",
                mapping.path_on_host
            ))
        })?);
    }
    Ok(found)
}

/// What a container has of its own anyway, or must not have.
const SKIPPED: [&str; 9] = [
    "pts",
    "shm",
    "fd",
    "mqueue",
    ".lxc",
    ".lxd-mounts",
    ".udev",
    "console",
    "ptmx",
];

fn walk(folder: &Path, inside: &str, access: &str, found: &mut Vec<HostDevice>) {
    // A device that vanishes meanwhile is not there.
    let Ok(entries) = std::fs::read_dir(folder) else {
        return;
    };
    let mut entries: Vec<_> = entries.flatten().collect();
    entries.sort_by_key(std::fs::DirEntry::file_name);
    for entry in entries {
        let name = entry.file_name();
        let Some(name) = name.to_str() else { continue };
        let Ok(kind) = entry.file_type() else {
            continue;
        };
        if SKIPPED.contains(&name) || kind.is_symlink() {
            continue;
        }
        let inside = format!("{}/{name}", inside.trim_end_matches('/'));
        if kind.is_dir() {
            walk(&entry.path(), &inside, access, found);
        } else if let Ok(Some(device)) = HostDevice::look(&entry.path(), &inside, access) {
            found.push(device);
        }
    }
}

/// The device rules: nothing, then what every container has (moby, `oci/defaults.go`; runc,
/// `specconv.AllowedDevices`), then the user's.
pub(crate) fn rules(host: &HostConfig, devices: &[HostDevice]) -> Vec<DeviceRule> {
    let rule = |allow, kind: Option<&str>, major: Option<i64>, minor: Option<i64>, access: &str| {
        DeviceRule {
            allow,
            kind: kind.map(str::to_owned),
            major,
            minor,
            access: Some(access.to_owned()),
        }
    };
    if host.privileged {
        return vec![rule(true, None, None, None, "rwm")];
    }
    let mut rules = vec![
        rule(false, None, None, None, "rwm"),
        // Any node may be made: using it is another matter.
        rule(true, Some("c"), None, None, "m"),
        rule(true, Some("b"), None, None, "m"),
    ];
    // null, zero, full, random, urandom, tty, console, ptmx
    for (major, minor) in [
        (1, 3),
        (1, 5),
        (1, 7),
        (1, 8),
        (1, 9),
        (5, 0),
        (5, 1),
        (5, 2),
    ] {
        rules.push(rule(true, Some("c"), Some(major), Some(minor), "rwm"));
    }
    // The terminals of its own devpts.
    rules.push(rule(true, Some("c"), Some(136), None, "rwm"));
    for device in devices {
        rules.push(rule(
            true,
            Some(if device.character { "c" } else { "b" }),
            Some(device.major.into()),
            Some(device.minor.into()),
            &device.access,
        ));
    }
    rules.extend(
        host.device_cgroup_rules
            .iter()
            .flatten()
            .filter_map(|text| parse_rule(text)),
    );
    rules
}

/// `c 42:* rmw` of `--device-cgroup-rule`.
pub(crate) fn parse_rule(text: &str) -> Option<DeviceRule> {
    let [kind, numbers, access] = *text.split_whitespace().collect::<Vec<_>>() else {
        return None;
    };
    let (major, minor) = numbers.split_once(':')?;
    let number = |text: &str| match text {
        "*" => Some(None),
        digits => digits
            .parse::<u32>()
            .ok()
            .map(|number| Some(i64::from(number))),
    };
    let good = matches!(kind, "a" | "b" | "c")
        && !access.is_empty()
        && access.bytes().all(|byte| b"rwm".contains(&byte));
    Some(DeviceRule {
        allow: true,
        kind: good.then(|| kind.to_owned()).map(Some)?,
        major: number(major)?,
        minor: number(minor)?,
        access: Some(access.to_owned()),
    })
}
