//! `spec`: a config.json to begin with.

use std::io::Write as _;
use std::path::Path;
use std::process::ExitCode;

use serde::Serialize as _;
use serde_json::{Value, json};

use crate::args::Parsed;
use crate::command::Globals;
use crate::failure::{Failure, Result};

/// `spec`.
pub(crate) fn spec(_: &mut Globals, parsed: &Parsed) -> Result<ExitCode> {
    let path = Path::new(parsed.value("bundle").unwrap_or("")).join("config.json");
    let mut file = match std::fs::File::create_new(&path) {
        Ok(file) => file,
        Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {
            return Err(Failure::new("File config.json exists. Remove it first"));
        }
        Err(error) => return Err(Failure::new(format!("{}: {error}", path.display()))),
    };
    let mut text = Vec::new();
    let indent = serde_json::ser::PrettyFormatter::with_indent(b"\t");
    let mut writer = serde_json::Serializer::with_formatter(&mut text, indent);
    skeleton(parsed.is_set("rootless"))
        .serialize(&mut writer)
        .map_err(|error| Failure::new(error.to_string()))?;
    file.write_all(&text)
        .map_err(|error| Failure::new(format!("{}: {error}", path.display())))?;
    Ok(ExitCode::SUCCESS)
}

fn mount(destination: &str, kind: &str, source: &str, options: &[&str]) -> Value {
    let mut mount = json!({"destination": destination, "type": kind, "source": source});
    if let (Some(mount), false) = (mount.as_object_mut(), options.is_empty()) {
        mount.insert("options".to_owned(), json!(options));
    }
    mount
}

fn skeleton(rootless: bool) -> Value {
    let capabilities = json!(["CAP_AUDIT_WRITE", "CAP_KILL", "CAP_NET_BIND_SERVICE"]);
    let mut pts = vec![
        "nosuid",
        "noexec",
        "newinstance",
        "ptmxmode=0666",
        "mode=0620",
    ];
    let sys = if rootless {
        // A sysfs of its own needs a network namespace of its own.
        let options = ["rbind", "nosuid", "noexec", "nodev", "ro"];
        mount("/sys", "none", "/sys", &options)
    } else {
        pts.push("gid=5");
        mount(
            "/sys",
            "sysfs",
            "sysfs",
            &["nosuid", "noexec", "nodev", "ro"],
        )
    };
    let mut kinds = vec!["pid", "network", "ipc", "uts", "mount", "cgroup"];
    let mut linux = json!({});
    if rootless {
        kinds.retain(|kind| *kind != "network");
        kinds.push("user");
        let map = |id: u32| json!([{"containerID": 0, "hostID": id, "size": 1}]);
        linux["uidMappings"] = map(rustix::process::geteuid().as_raw());
        linux["gidMappings"] = map(rustix::process::getegid().as_raw());
    } else {
        linux["resources"] = json!({"devices": [{"allow": false, "access": "rwm"}]});
    }
    linux["namespaces"] = kinds.iter().map(|kind| json!({"type": kind})).collect();
    linux["maskedPaths"] = json!(knarr_spec::runtime::MASKED_PATHS);
    linux["readonlyPaths"] = json!(knarr_spec::runtime::READONLY_PATHS);
    json!({
        "ociVersion": knarr_spec::runtime::OCI_VERSION,
        "process": {
            "terminal": true,
            "user": {"uid": 0, "gid": 0},
            "args": ["sh"],
            "env": [
                "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
                "TERM=xterm"
            ],
            "cwd": "/",
            "capabilities": {
                "bounding": capabilities,
                "effective": capabilities,
                "permitted": capabilities
            },
            "rlimits": [{"type": "RLIMIT_NOFILE", "hard": 1024, "soft": 1024}],
            "noNewPrivileges": true
        },
        "root": {"path": "rootfs", "readonly": true},
        "hostname": "knarr",
        "mounts": [
            mount("/proc", "proc", "proc", &[]),
            mount("/dev", "tmpfs", "tmpfs", &["nosuid", "strictatime", "mode=755", "size=65536k"]),
            mount("/dev/pts", "devpts", "devpts", &pts),
            mount("/dev/shm", "tmpfs", "shm", &["nosuid", "noexec", "nodev", "mode=1777", "size=65536k"]),
            mount("/dev/mqueue", "mqueue", "mqueue", &["nosuid", "noexec", "nodev"]),
            sys,
            mount("/sys/fs/cgroup", "cgroup", "cgroup", &["nosuid", "noexec", "nodev", "relatime", "ro"])
        ],
        "linux": linux
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_can_be_planned() {
        for rootless in [false, true] {
            let config = serde_json::from_value(skeleton(rootless)).unwrap();
            knarr_runtime::plan(&config, &knarr_runtime::PlanOptions::default()).unwrap();
        }
    }
}
