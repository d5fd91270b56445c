//! A container's cgroup: where it is, what is in it, and callers that may make none.

use std::path::Path;

use knarr_cgroup::{Cgroup, Error, Layout, Limits, Mode, Plan, Unit, Warning};
use knarr_diag::{Class, Explain as _};
use knarr_runtime::CgroupView;
use knarr_spec::runtime::{Config, DeviceRule, Resources};

use crate::command::Globals;
use crate::failure::{Failure, Result};
use crate::log::Log;

/// What mounts of cgroups show.
pub(crate) fn view(config: &Config, layout: &Layout) -> Result<CgroupView> {
    let asked = config
        .mounts
        .iter()
        .any(|mount| mount.kind.as_deref() == Some("cgroup"));
    if !asked || layout.mode() == Mode::Unified {
        return Ok(CgroupView::Unified);
    }
    let mountinfo = knarr_fs::read_to_string(Path::new("/proc/self/mountinfo"))?;
    Ok(CgroupView::hierarchies(&mountinfo))
}

/// Where its cgroup is, and what it limits. None for a caller without rights that has no place for one
/// and asks for no limits.
pub(crate) fn plan(
    globals: &mut Globals,
    config: &Config,
    layout: &Layout,
    id: &str,
) -> Result<Option<Plan>> {
    let linux = config.linux.as_ref();
    let mut resources = linux
        .and_then(|linux| linux.resources.clone())
        .unwrap_or_default();
    let rootless = globals.rootless();
    if rootless {
        // Only the machine's root may set a program on a cgroup; a user namespace has no devices that
        // are not the caller's anyway.
        resources.devices.clear();
    } else {
        add_default_devices(&mut resources);
    }
    let path = linux
        .and_then(|linux| linux.cgroups_path.as_deref())
        .filter(|path| !path.is_empty());
    let planned = if globals.systemd_cgroup {
        if layout.mode() == Mode::Legacy {
            return Err(Failure::new(
                "--systemd-cgroup needs cgroup v2, alone or beside v1, which is not mounted here (leave it out)",
            ));
        }
        let unit = Unit::parse(path, id, rootless)?;
        Plan::for_systemd(layout, &resources, unit)
    } else {
        Plan::from_resources(layout, &resources, path.unwrap_or(id))
    };
    match planned {
        Ok(plan) => Ok(Some(plan)),
        Err(error) if Limits::parse(&resources)?.is_empty() => without(globals, error),
        Err(error) => Err(error.into()),
    }
}

/// Makes it; for a caller with rights only as far as a process can be born in it, so that
/// [`Cgroup::complete`] has to follow. None as for [`plan`].
pub(crate) fn create(
    globals: &mut Globals,
    layout: &Layout,
    plan: &Plan,
) -> Result<Option<Cgroup>> {
    let made = if globals.rootless() {
        Cgroup::create(layout, plan)
    } else {
        Cgroup::begin(layout, plan)
    };
    match made {
        Ok(cgroup) => {
            warn(&mut globals.log, cgroup.warnings());
            Ok(Some(cgroup))
        }
        Err(error) if plan.limits.is_empty() => without(globals, error),
        Err(error) => Err(error.into()),
    }
}

/// A caller without rights may do without a cgroup, and is told.
fn without<T>(globals: &mut Globals, error: Error) -> Result<Option<T>> {
    if !globals.rootless() || error.class() != Class::Denied {
        return Err(error.into());
    }
    let reason = Failure::from(error).message;
    globals.log.warning(&format!(
        "the container has no cgroup of its own, so it cannot be limited, paused or counted: {reason}"
    ));
    Ok(None)
}

/// What every container may use, whatever the rules say (config-linux.md, "Default Devices"):
/// everything else is forbidden unless a rule allows it.
fn add_default_devices(resources: &mut Resources) {
    let rule = |kind: &str, major: Option<i64>, minor: Option<i64>, access: &str| DeviceRule {
        allow: true,
        kind: Some(kind.to_owned()),
        major,
        minor,
        access: Some(access.to_owned()),
    };
    if resources.devices.is_empty() {
        resources.devices.push(DeviceRule {
            allow: false,
            access: Some("rwm".to_owned()),
            ..DeviceRule::default()
        });
    }
    resources.devices.extend([
        rule("c", None, None, "m"),
        rule("b", None, None, "m"),
        rule("c", Some(1), Some(3), "rwm"),
        rule("c", Some(1), Some(5), "rwm"),
        rule("c", Some(1), Some(7), "rwm"),
        rule("c", Some(1), Some(8), "rwm"),
        rule("c", Some(1), Some(9), "rwm"),
        rule("c", Some(5), Some(0), "rwm"),
        rule("c", Some(5), Some(2), "rwm"),
        rule("c", Some(136), None, "rwm"),
    ]);
}

/// Limits that this kernel cannot keep and that can be lived without.
pub(crate) fn warn(log: &mut Log, left_out: &[Warning]) {
    for warning in left_out {
        log.warning(&warning.to_string());
    }
}
