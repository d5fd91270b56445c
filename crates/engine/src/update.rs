//! `update`: other limits and another restart policy, also while it runs.

use knarr_cgroup::Limits;
use knarr_fs::{Durability, Lock};
use knarr_monitor::client::Connection;
use knarr_monitor::request::Request;
use knarr_spec::docker::{HostConfig, RestartPolicy};
use serde_json::{Map, Value};

use crate::find::Found;
use crate::record::Record;
use crate::{Engine, Error, Result};

/// What `update` asks for. Of `host`, the limits that are not zero or empty replace those before.
#[derive(Debug, Clone, Default)]
pub struct UpdateRequest {
    /// `memory`, `memory_swap`, `memory_reservation`, `nano_cpus`, `cpu_shares`, `cpu_period`,
    /// `cpu_quota`, `cpuset_cpus`, `cpuset_mems`, `pids_limit`, `blkio_weight`; nothing else is
    /// looked at.
    pub host: HostConfig,
    /// The restart policy.
    pub restart: Option<RestartPolicy>,
}

impl Engine {
    pub(crate) fn update_now(&self, text: &str, request: &UpdateRequest) -> Result<Vec<String>> {
        let id = self.find(text)?;
        // Also keeps a stopped one from being started meanwhile.
        let found = self.touch(&id)?;
        // What else writes the record holds this too.
        let _order = Lock::exclusive(&self.settings().run_dir(&id).join("rename.lock"))?;
        let before = self.record(&id)?;
        let mut record = before.clone();
        change(&mut record.host, request)?;
        let mut config = record.config.clone();
        let mut warnings = crate::check::settle(&mut config, &mut record.host, self.facts())?;
        if let Found::Running(_) = &found {
            let old = self.planned(&before, None)?.cgroup.limits;
            let new = self.planned(&record, None)?;
            warnings.extend(new.warnings);
            self.apply(&record, &changed(&old, &new.cgroup.limits)?)?;
            if request.restart.is_some() {
                let mut monitor = Connection::open(&self.settings().run_dir(&id))?;
                monitor.update(crate::launch::restart(&record.host))?;
            }
        }
        record.save(&record.paths.folder, record.durability())?;
        self.event(&record, "update", &[]);
        drop(found);
        Ok(warnings)
    }

    /// To a container that runs, and into what is kept for whoever takes its monitor's place.
    fn apply(&self, record: &Record, limits: &Limits) -> Result<()> {
        if *limits == Limits::default() {
            return Ok(());
        }
        let stored = self.stored_request(&record.id)?;
        let mut cgroup = self.cgroup(&stored)?;
        cgroup.update(limits)?;
        let stored = Request {
            cgroup: cgroup.plan().clone(),
            ..stored
        };
        let path = self.settings().run_dir(&record.id).join("request.json");
        Ok(knarr_fs::write_atomic(
            &path,
            &stored.to_json()?,
            Durability::Volatile,
        )?)
    }
}

fn change(host: &mut HostConfig, request: &UpdateRequest) -> Result<()> {
    let new = &request.host;
    if new.nano_cpus != 0 {
        if host.cpu_quota != 0 || host.cpu_period != 0 {
            return Err(Error::invalid(
                "Conflicting options: Nano CPUs cannot be updated as CPU Quota or Period has already been set",
            ));
        }
    } else if (new.cpu_quota != 0 || new.cpu_period != 0) && host.nano_cpus != 0 {
        return Err(Error::invalid(
            "Conflicting options: CPU Quota or Period cannot be updated as NanoCPUs has already been set",
        ));
    }
    if new.memory > 0
        && new.memory_swap == 0
        && host.memory_swap > 0
        && new.memory > host.memory_swap
    {
        return Err(Error::invalid(
            "Memory limit should be smaller than already set memoryswap limit, update the \
             memoryswap at the same time",
        ));
    }
    let number = |field: &mut i64, new: i64| {
        if new != 0 {
            *field = new;
        }
    };
    number(&mut host.memory, new.memory);
    number(&mut host.memory_swap, new.memory_swap);
    number(&mut host.memory_reservation, new.memory_reservation);
    number(&mut host.nano_cpus, new.nano_cpus);
    number(&mut host.cpu_shares, new.cpu_shares);
    number(&mut host.cpu_period, new.cpu_period);
    number(&mut host.cpu_quota, new.cpu_quota);
    for (field, new) in [
        (&mut host.cpuset_cpus, &new.cpuset_cpus),
        (&mut host.cpuset_mems, &new.cpuset_mems),
    ] {
        if !new.is_empty() {
            field.clone_from(new);
        }
    }
    if new.pids_limit.is_some() {
        host.pids_limit = new.pids_limit;
    }
    if new.blkio_weight != 0 {
        host.blkio_weight = new.blkio_weight;
    }
    if let Some(restart) = &request.restart {
        if host.auto_remove && restart.name != "no" {
            return Err(Error::invalid(
                "Restart policy cannot be updated because AutoRemove is enabled for the container",
            ));
        }
        host.restart_policy = restart.clone();
    }
    Ok(())
}

/// The limits of `new` that differ from `old`.
fn changed(old: &Limits, new: &Limits) -> Result<Limits> {
    let fields = |limits: &Limits| -> serde_json::Result<Map<String, Value>> {
        serde_json::from_value(serde_json::to_value(limits)?)
    };
    let differing = || -> serde_json::Result<Limits> {
        let old = fields(old)?;
        let mut new = fields(new)?;
        new.retain(|name, value| old.get(name) != Some(value));
        serde_json::from_value(Value::Object(new))
    };
    differing().map_err(|cause| Error::Damaged {
        path: "the limits".into(),
        cause,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_said_changes() {
        let mut host = HostConfig {
            memory: 8 << 20,
            memory_swap: 16 << 20,
            cpu_shares: 512,
            ..HostConfig::default()
        };
        let mut request = UpdateRequest::default();
        request.host.cpu_shares = 256;
        request.host.pids_limit = Some(-1);
        change(&mut host, &request).unwrap();
        assert_eq!(
            (host.memory, host.cpu_shares, host.pids_limit),
            (8 << 20, 256, Some(-1))
        );
        let mut request = UpdateRequest::default();
        request.host.memory = 32 << 20;
        let error = change(&mut host, &request).unwrap_err();
        assert!(error.to_string().contains("memoryswap"), "{error}");
        let old = Limits {
            memory: Some(1),
            pids: Some(5),
            ..Limits::default()
        };
        let new = Limits {
            memory: Some(2),
            pids: Some(5),
            cpuset_cpus: Some("0".to_owned()),
            ..Limits::default()
        };
        let changed = changed(&old, &new).unwrap();
        assert_eq!((changed.memory, changed.pids), (Some(2), None));
        assert_eq!(changed.cpuset_cpus.as_deref(), Some("0"));
    }
}
