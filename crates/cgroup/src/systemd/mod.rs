//! systemd as the maker of cgroups: a container's cgroup is that of a transient scope.
//!
//! A scope is made around a process that exists, so on systemd's side everything happens when init is
//! handed over. The scope is delegated (`Delegate=yes`): below it nothing is systemd's, and in it only
//! what systemd has a property for is (`Limits` that systemd knows are told to it too, or it would
//! take them back at the next `daemon-reload`).

mod bus;
mod message;

use std::path::Path;

use knarr_sys::rustix::process::{Pid, geteuid};
use serde::{Deserialize, Serialize};

use self::bus::{Connection, Refusal};
use self::message::{Value, Writer};
use crate::control;
use crate::layout::{Layout, Mode};
use crate::limits::Limits;
use crate::settings;
use crate::{Error, Result};

/// The scope that a container is in.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Unit {
    /// `<prefix>-<name>.scope`.
    pub name: String,
    /// The slice it is in, such as `system.slice`.
    pub slice: String,
    /// Of the calling user's manager, not the system's.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub user: bool,
}

impl Unit {
    /// Understands a `linux.cgroupsPath` as runc's systemd driver does: `slice:prefix:name`. No path,
    /// or no slice in it, means `system.slice` (`user.slice` for a user's manager).
    ///
    /// # Errors
    /// [`Error::BadPath`].
    pub fn parse(path: Option<&str>, id: &str, user: bool) -> Result<Self> {
        let usual = if user { "user.slice" } else { "system.slice" };
        let (slice, prefix, name) = match path {
            None | Some("") => (usual, "knarr", id),
            Some(path) => {
                let parts: Vec<&str> = path.split(':').collect();
                match parts[..] {
                    ["", prefix, name] => (usual, prefix, name),
                    [slice, prefix, name] => (slice, prefix, name),
                    _ => {
                        return Err(Error::BadPath {
                            path: path.to_owned(),
                            reason: "with systemd it has the form slice:prefix:name",
                        });
                    }
                }
            }
        };
        let name = match prefix {
            "" => format!("{name}.scope"),
            _ => format!("{prefix}-{name}.scope"),
        };
        let unit = Self {
            name,
            slice: slice.to_owned(),
            user,
        };
        unit.slice_path()?;
        let stem = unit.name.trim_end_matches(".scope");
        let good = |c: char| c.is_ascii_alphanumeric() || ":-_.\\@".contains(c);
        if unit.name.len() > 255 || stem.is_empty() || !stem.chars().all(good) {
            return Err(Error::BadPath {
                path: unit.name,
                reason: "it is not the name of a unit",
            });
        }
        Ok(unit)
    }

    /// Where a slice is: `a-b.slice` is in `a.slice` (systemd.slice(5)).
    fn slice_path(&self) -> Result<String> {
        let bad = || Error::BadPath {
            path: self.slice.clone(),
            reason: "it is not the name of a slice",
        };
        let stem = self.slice.strip_suffix(".slice").ok_or_else(bad)?;
        if stem == "-" {
            return Ok(String::new());
        }
        let good = |c: char| c.is_ascii_alphanumeric() || ":_.\\@".contains(c);
        let mut path = String::new();
        let mut name = String::new();
        for part in stem.split('-') {
            if part.is_empty() || !part.chars().all(good) {
                return Err(bad());
            }
            if !name.is_empty() {
                name.push('-');
            }
            name.push_str(part);
            path.push_str(&format!("/{name}.slice"));
        }
        Ok(path)
    }

    /// The path of the unit's cgroup, absolute below every hierarchy's mount point.
    pub(crate) fn path(&self) -> Result<String> {
        let manager = if self.user {
            let uid = caller();
            format!("/user.slice/user-{uid}.slice/user@{uid}.service")
        } else {
            // The system's manager may itself be in a cgroup: in a container, say.
            let own = control::read(Path::new("/proc/1/cgroup"))?;
            own.lines()
                .find_map(|line| line.strip_prefix("0::")?.strip_suffix("/init.scope"))
                .unwrap_or_default()
                .to_owned()
        };
        Ok(format!("{manager}{}/{}", self.slice_path()?, self.name))
    }

    /// Makes the scope around a process, which is in its cgroup when this returns. A dead unit of
    /// that name is forgotten first.
    pub(crate) fn start(&self, pid: Pid, limits: &Limits, layout: &Layout) -> Result<()> {
        let mut manager = Connection::open(self.user)?;
        let pid = pid.as_raw_nonzero().get().unsigned_abs();
        let mut properties = vec![
            (
                "Description",
                Value::Text(format!("container {}", self.name)),
            ),
            ("Slice", Value::Text(self.slice.clone())),
            ("PIDs", Value::Numbers32(vec![pid])),
            ("Delegate", Value::Flag(true)),
            ("DefaultDependencies", Value::Flag(false)),
            ("CollectMode", Value::Text("inactive-or-failed".to_owned())),
        ];
        for counted in ["CPUAccounting", "MemoryAccounting", "TasksAccounting"] {
            properties.push((counted, Value::Flag(true)));
        }
        let io = if layout.mode() == Mode::Unified {
            "IOAccounting"
        } else {
            "BlockIOAccounting"
        };
        properties.push((io, Value::Flag(true)));
        properties.extend(known_to_systemd(limits, layout));
        let ask = |manager: &mut Connection| {
            let mut body = Writer::default();
            body.text(&self.name);
            body.text("fail");
            body.properties(&properties);
            body.no_units();
            manager.manager("StartTransientUnit", "ssa(sv)a(sa(sv))", body)
        };
        let mut answer = ask(&mut manager)?;
        if let Err(refusal) = &answer
            && refusal.name == "org.freedesktop.systemd1.UnitExists"
        {
            self.forget(&mut manager)?;
            answer = ask(&mut manager)?;
        }
        let answer = answer.map_err(|refusal| self.refused("start", refusal))?;
        let job = answer.first_text().unwrap_or_default();
        match manager.job(&job)?.as_str() {
            "done" => Ok(()),
            result => Err(Error::Unit {
                unit: self.name.clone(),
                act: "start",
                reason: format!("its job ended with `{result}`"),
            }),
        }
    }

    /// Tells systemd of new limits, so that it does not restore the old ones.
    pub(crate) fn update(&self, limits: &Limits, layout: &Layout) -> Result<()> {
        let properties = known_to_systemd(limits, layout);
        if properties.is_empty() {
            return Ok(());
        }
        let mut manager = Connection::open(self.user)?;
        let mut body = Writer::default();
        body.text(&self.name);
        // Until the unit ends, as the unit itself.
        body.u32(1);
        body.properties(&properties);
        manager
            .manager("SetUnitProperties", "sba(sv)", body)?
            .map_err(|refusal| self.refused("change", refusal))?;
        Ok(())
    }

    /// Ends the unit; no error when there is none (any more).
    pub(crate) fn stop(&self) -> Result<()> {
        let mut manager = Connection::open(self.user)?;
        let mut body = Writer::default();
        body.text(&self.name);
        body.text("replace");
        match manager.manager("StopUnit", "ss", body)? {
            Ok(answer) => {
                let job = answer.first_text().unwrap_or_default();
                manager.job(&job)?;
            }
            Err(refusal) if refusal.name == "org.freedesktop.systemd1.NoSuchUnit" => {}
            Err(refusal) => return Err(self.refused("stop", refusal)),
        }
        self.forget(&mut manager)
    }

    /// A failed unit stays listed until it is told to go; that it is not there is well.
    fn forget(&self, manager: &mut Connection) -> Result<()> {
        let mut body = Writer::default();
        body.text(&self.name);
        manager.manager("ResetFailedUnit", "s", body)?.ok();
        Ok(())
    }

    fn refused(&self, act: &'static str, refusal: Refusal) -> Error {
        Error::Unit {
            unit: self.name.clone(),
            act,
            reason: format!("{} ({})", refusal.text, refusal.name),
        }
    }
}

/// The caller's user id as the machine has it: in a user namespace it may be 0.
fn caller() -> u32 {
    let own = geteuid().as_raw();
    let map = control::read(Path::new("/proc/self/uid_map")).unwrap_or_default();
    let outside = |line: &str| {
        let mut fields = line.split_whitespace().map(str::parse::<u32>);
        let (inside, outside, size) = (
            fields.next()?.ok()?,
            fields.next()?.ok()?,
            fields.next()?.ok()?,
        );
        let offset = own.checked_sub(inside).filter(|offset| *offset < size)?;
        outside.checked_add(offset)
    };
    map.lines().find_map(outside).unwrap_or(own)
}

/// The limits that systemd has properties for (systemd.resource-control(5)). All of them are written
/// to the control files as well: systemd rounds some.
fn known_to_systemd(limits: &Limits, layout: &Layout) -> Vec<(&'static str, Value)> {
    let unified = |controller| settings::place(layout, controller, "").unwrap_or(false);
    let legacy = |controller| layout.legacy_with(controller).is_some();
    // -1 is no limit, and systemd's word for that is the largest number.
    let amount = |bytes: i64| Value::Number(u64::try_from(bytes).unwrap_or(u64::MAX));
    let mut known = Vec::new();
    if let Some(bytes) = limits.memory {
        if unified("memory") {
            known.push(("MemoryMax", amount(bytes)));
        } else if legacy("memory") {
            known.push(("MemoryLimit", amount(bytes)));
        }
    }
    if unified("memory") {
        if let Some(swap) = limits
            .memory_swap
            .and_then(|swap| settings::swap_alone(swap, limits.memory).ok())
        {
            known.push(("MemorySwapMax", Value::Number(swap.unwrap_or(u64::MAX))));
        }
        if let Some(bytes) = limits.memory_reservation {
            known.push(("MemoryLow", amount(bytes)));
        }
    }
    if let Some(shares) = limits.cpu_shares {
        if unified("cpu") {
            let weight = settings::weight_of_shares(shares);
            known.push(("CPUWeight", Value::Number(weight)));
        } else if legacy("cpu") {
            known.push(("CPUShares", Value::Number(shares)));
        }
    }
    if let Some(quota) = limits.cpu_quota {
        let period = limits.cpu_period.unwrap_or(100_000).max(1);
        // Per second, in steps of 10 ms; systemd refuses finer ones.
        let share = match u64::try_from(quota) {
            Ok(quota) if quota > 0 => {
                (quota.saturating_mul(1_000_000) / period).next_multiple_of(10_000)
            }
            _ => u64::MAX,
        };
        known.push(("CPUQuotaPerSecUSec", Value::Number(share)));
    }
    if let Some(period) = limits.cpu_period {
        known.push(("CPUQuotaPeriodUSec", Value::Number(period)));
    }
    if unified("cpuset") {
        for (name, list) in [
            ("AllowedCPUs", &limits.cpuset_cpus),
            ("AllowedMemoryNodes", &limits.cpuset_mems),
        ] {
            if let Some(bits) = list.as_deref().and_then(bits) {
                known.push((name, Value::Bytes(bits)));
            }
        }
    }
    if let Some(count) = limits.pids {
        let count = if count > 0 { count } else { -1 };
        known.push(("TasksMax", amount(count)));
    }
    if let Some(weight) = limits.block_weight
        && unified("blkio")
    {
        let weight = settings::io_weight(weight);
        known.push(("IOWeight", Value::Number(weight)));
    }
    known
}

/// A list such as `0-2,8` as a bit mask, lowest byte first.
fn bits(list: &str) -> Option<Vec<u8>> {
    let mut bytes = Vec::new();
    for range in list.split(',').filter(|range| !range.is_empty()) {
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        let (first, last): (usize, usize) = (first.parse().ok()?, last.parse().ok()?);
        for bit in first..=last.min(8191) {
            if bytes.len() <= bit / 8 {
                bytes.resize(bit / 8 + 1, 0u8);
            }
            *bytes.get_mut(bit / 8)? |= 1 << (bit % 8);
        }
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_understood_as_by_runc() {
        for (path, user, slice, name, place) in [
            (
                Some("machine.slice:libpod:abc"),
                false,
                "machine.slice",
                "libpod-abc.scope",
                "/machine.slice",
            ),
            (
                Some(":docker:abc"),
                false,
                "system.slice",
                "docker-abc.scope",
                "/system.slice",
            ),
            (
                Some("a-b-c.slice::abc"),
                false,
                "a-b-c.slice",
                "abc.scope",
                "/a.slice/a-b.slice/a-b-c.slice",
            ),
            (Some("-.slice:x:y"), false, "-.slice", "x-y.scope", ""),
            (
                None,
                false,
                "system.slice",
                "knarr-id.scope",
                "/system.slice",
            ),
            (
                Some(""),
                true,
                "user.slice",
                "knarr-id.scope",
                "/user.slice",
            ),
        ] {
            let unit = Unit::parse(path, "id", user).unwrap();
            assert_eq!((unit.slice.as_str(), unit.name.as_str()), (slice, name));
            assert_eq!(unit.slice_path().unwrap(), place, "{path:?}");
        }
        for bad in [
            "/a/b",
            "a:b",
            "a:b:c:d",
            "system:x:y",
            "a/b.slice:x:y",
            "-a.slice:x:y",
            "a--b.slice:x:y",
            ".slice:x:y",
            "a.slice:x:y/z",
            "a.slice::",
            "a.slice:x:y z",
        ] {
            let error = Unit::parse(Some(bad), "id", false).unwrap_err();
            assert!(matches!(error, Error::BadPath { .. }), "{bad}");
        }
    }

    #[test]
    fn lists_become_bits() {
        assert_eq!(bits("0-2,8"), Some(vec![0b111, 1]));
        assert_eq!(bits("9"), Some(vec![0, 2]));
        assert_eq!(bits("x"), None);
    }

    #[test]
    fn limits_become_properties() {
        let v2 = Layout::with_controllers(&["memory", "cpu", "cpuset", "pids", "io"]);
        let limits = Limits {
            memory: Some(1 << 20),
            memory_swap: Some(3 << 20),
            cpu_shares: Some(1024),
            cpu_quota: Some(12_345),
            cpu_period: Some(50_000),
            cpuset_cpus: Some("0-1".to_owned()),
            pids: Some(-1),
            block_weight: Some(1000),
            ..Limits::default()
        };
        assert_eq!(
            known_to_systemd(&limits, &v2),
            [
                ("MemoryMax", Value::Number(1 << 20)),
                ("MemorySwapMax", Value::Number(2 << 20)),
                ("CPUWeight", Value::Number(100)),
                ("CPUQuotaPerSecUSec", Value::Number(250_000)),
                ("CPUQuotaPeriodUSec", Value::Number(50_000)),
                ("AllowedCPUs", Value::Bytes(vec![3])),
                ("TasksMax", Value::Number(u64::MAX)),
                ("IOWeight", Value::Number(10_000)),
            ]
        );
    }
}
