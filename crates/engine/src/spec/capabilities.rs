//! Which capabilities a container has.

use knarr_spec::docker::HostConfig;

use crate::{Error, Result};

/// All capabilities by number (linux/capability.h, Linux 6.12).
pub(crate) const ALL: [&str; 41] = [
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_DAC_READ_SEARCH",
    "CAP_FOWNER",
    "CAP_FSETID",
    "CAP_KILL",
    "CAP_SETGID",
    "CAP_SETUID",
    "CAP_SETPCAP",
    "CAP_LINUX_IMMUTABLE",
    "CAP_NET_BIND_SERVICE",
    "CAP_NET_BROADCAST",
    "CAP_NET_ADMIN",
    "CAP_NET_RAW",
    "CAP_IPC_LOCK",
    "CAP_IPC_OWNER",
    "CAP_SYS_MODULE",
    "CAP_SYS_RAWIO",
    "CAP_SYS_CHROOT",
    "CAP_SYS_PTRACE",
    "CAP_SYS_PACCT",
    "CAP_SYS_ADMIN",
    "CAP_SYS_BOOT",
    "CAP_SYS_NICE",
    "CAP_SYS_RESOURCE",
    "CAP_SYS_TIME",
    "CAP_SYS_TTY_CONFIG",
    "CAP_MKNOD",
    "CAP_LEASE",
    "CAP_AUDIT_WRITE",
    "CAP_AUDIT_CONTROL",
    "CAP_SETFCAP",
    "CAP_MAC_OVERRIDE",
    "CAP_MAC_ADMIN",
    "CAP_SYSLOG",
    "CAP_WAKE_ALARM",
    "CAP_BLOCK_SUSPEND",
    "CAP_AUDIT_READ",
    "CAP_PERFMON",
    "CAP_BPF",
    "CAP_CHECKPOINT_RESTORE",
];

/// Docker's default set (moby, `oci/caps/defaults.go`).
const DEFAULT: [&str; 14] = [
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_FSETID",
    "CAP_FOWNER",
    "CAP_MKNOD",
    "CAP_NET_RAW",
    "CAP_SETGID",
    "CAP_SETUID",
    "CAP_SETFCAP",
    "CAP_SETPCAP",
    "CAP_NET_BIND_SERVICE",
    "CAP_SYS_CHROOT",
    "CAP_KILL",
    "CAP_AUDIT_WRITE",
];

/// The bounding set that `--privileged`, `--cap-add` and `--cap-drop` ask for, in the order of their
/// numbers (moby, `oci/caps/utils.go`, `TweakCapabilities`).
pub(crate) fn bounding(host: &HostConfig) -> Result<Vec<&'static str>> {
    let add = parse("CapAdd", host.cap_add.as_deref())?;
    let drop = parse("CapDrop", host.cap_drop.as_deref())?;
    let chosen = |name: &&'static str| {
        let asked = add.contains(&Some(*name));
        match () {
            () if host.privileged => true,
            // ALL on one side, single ones on the other; the single ones win.
            () if add.contains(&None) => !drop.contains(&Some(*name)),
            () if drop.contains(&None) => asked,
            () => asked || (DEFAULT.contains(name) && !drop.contains(&Some(*name))),
        }
    };
    Ok(ALL.iter().copied().filter(chosen).collect())
}

/// Whether a set of bits has a capability.
pub(crate) fn is_in(name: &str, bits: u64) -> bool {
    ALL.iter()
        .position(|known| *known == name)
        .is_some_and(|number| bits >> number & 1 == 1)
}

/// Refuses what is asked for by name and cannot be given here. ALL and `--privileged` mean what
/// there is.
pub(crate) fn check(host: &HostConfig, available: u64) -> Result<()> {
    for name in parse("CapAdd", host.cap_add.as_deref())?
        .into_iter()
        .flatten()
    {
        if !is_in(name, available) {
            return Err(Error::invalid(format!(
                "invalid CapAdd: capability not supported by your kernel or not available in the \
                 current environment: {name:?}"
            )));
        }
    }
    Ok(())
}

/// Names with or without `CAP_`, in any case; `None` is ALL.
fn parse(field: &str, names: Option<&[String]>) -> Result<Vec<Option<&'static str>>> {
    let one = |name: &String| {
        let upper = name.trim().to_ascii_uppercase();
        if upper == "ALL" {
            return Ok(None);
        }
        let full = if upper.starts_with("CAP_") {
            upper
        } else {
            format!("CAP_{upper}")
        };
        ALL.iter()
            .find(|known| **known == full)
            .map(|known| Some(*known))
            .ok_or_else(|| {
                Error::invalid_hint(
                    format!("invalid {field}: unknown capability: {full:?}"),
                    "capabilities(7) lists them; ALL means every one",
                )
            })
    };
    names.unwrap_or_default().iter().map(one).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sets_are_tweaked_as_docker_tweaks_them() {
        let count = |json: &str| bounding(&serde_json::from_str(json).unwrap()).unwrap();
        assert_eq!(count("{}").len(), 14);
        assert_eq!(count(r#"{"Privileged": true}"#).len(), 41);
        assert_eq!(count(r#"{"CapDrop": ["ALL"]}"#).len(), 0);
        assert_eq!(count(r#"{"CapAdd": ["ALL"]}"#).len(), 41);
        assert_eq!(
            count(r#"{"CapAdd": ["all"], "CapDrop": ["sys_admin"]}"#).len(),
            40
        );
        assert_eq!(
            count(r#"{"CapDrop": ["ALL"], "CapAdd": ["CAP_KILL", "chown"]}"#),
            ["CAP_CHOWN", "CAP_KILL"]
        );
        let host =
            serde_json::from_str(r#"{"CapAdd": ["SYS_TIME"], "CapDrop": ["MKNOD"]}"#).unwrap();
        let set = bounding(&host).unwrap();
        assert!(
            set.contains(&"CAP_SYS_TIME") && !set.contains(&"CAP_MKNOD"),
            "{set:?}"
        );
    }
}
