//! Which capabilities a container has.

use knarr_runtime::Capability;
use knarr_spec::docker::HostConfig;

use crate::{Error, Result};

/// The names of all capabilities, in the order of their numbers.
pub(crate) fn all() -> impl Iterator<Item = &'static str> {
    Capability::all().map(Capability::name)
}

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
    Ok(all().filter(chosen).collect())
}

/// Whether a set of bits has a capability.
pub(crate) fn is_in(name: &str, bits: u64) -> bool {
    all()
        .position(|known| known == name)
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
        Capability::parse(&upper)
            .map(|known| Some(known.name()))
            .ok_or_else(|| {
                Error::invalid_hint(
                    format!(
                        "invalid {field}: unknown capability: {:?}",
                        format!("CAP_{}", upper.trim_start_matches("CAP_"))
                    ),
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
