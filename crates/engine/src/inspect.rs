//! `inspect`: Docker's JSON of a container, fields in Docker's order.

use knarr_monitor::State;
use serde_json::{Value, json};

use crate::list::Status;
use crate::record::{Mount, Record, Root};
use crate::{Engine, Error, Result, network, time};

impl Engine {
    pub(crate) fn inspect_now(&self, text: &str, size: bool) -> Result<Value> {
        let id = self.find(text)?;
        let record = self.record(&id)?;
        let state = self.state(&id)?;
        let sizes = if size { Some(self.sizes(&id)?) } else { None };
        self.document(&record, &state, sizes)
    }

    fn document(&self, record: &Record, state: &State, sizes: Option<(u64, u64)>) -> Result<Value> {
        let to_json = |what: serde_json::Result<Value>| {
            what.map_err(|cause| Error::Damaged {
                path: record.paths.folder.clone(),
                cause,
            })
        };
        let mut command = record.command().into_iter();
        let path = command.next().unwrap_or_default();
        let arguments: Vec<String> = command.collect();
        let driver = match &record.root {
            Root::Image { driver, .. } => to_json(serde_json::to_value(driver))?,
            Root::Host => json!("host"),
            Root::Scratch => json!("overlay"),
        };
        let mounts: Vec<_> = record.mounts.iter().map(Mount::point).collect();
        let file = |name: &str| record.paths.folder.join(name);
        let log = match record.host.log_config.kind.as_str() {
            "none" => json!(""),
            _ => json!(record.paths.log),
        };
        let mut document = json!({
            "Id": record.id,
            "Created": record.created,
            "Path": path,
            "Args": arguments,
            "State": state_json(state),
            "Image": record.image_id(),
            "ResolvConfPath": file("resolv.conf"),
            "HostnamePath": file("hostname"),
            "HostsPath": file("hosts"),
            "LogPath": log,
            "Name": format!("/{}", record.name),
            "RestartCount": state.restart_count,
            "Driver": driver,
            "Platform": record.platform.os,
            "MountLabel": "",
            "ProcessLabel": "",
            "AppArmorProfile": "",
            "ExecIDs": null,
            "HostConfig": to_json(serde_json::to_value(&record.host))?,
            "GraphDriver": {
                "Data": { "UpperDir": record.paths.upper, "WorkDir": record.paths.work },
                "Name": driver,
            },
        });
        let rest = json!({
            "Mounts": mounts,
            "Config": to_json(serde_json::to_value(&record.config))?,
            "NetworkSettings": network::settings_json(record, state),
            "IDMappings": record.ids.map(|ids| json!({ "Start": ids.start, "Size": ids.size })),
        });
        if let (Value::Object(document), Value::Object(rest)) = (&mut document, rest) {
            if let Some((own, all)) = sizes {
                document.insert("SizeRw".to_owned(), json!(own));
                document.insert("SizeRootFs".to_owned(), json!(all));
            }
            document.extend(rest);
        }
        Ok(document)
    }
}

/// Docker's `State` object.
fn state_json(state: &State) -> Value {
    let status = Status::of(state);
    let alive = state.status.is_alive();
    let time = |time: &Option<String>| time.clone().unwrap_or_else(|| time::NEVER.to_owned());
    json!({
        "Status": status.as_str(),
        "Running": alive,
        "Paused": status == Status::Paused,
        "Restarting": status == Status::Restarting,
        "OOMKilled": state.oom_killed,
        "Dead": false,
        "Pid": state.process.filter(|_| alive).map_or(0, |process| process.pid),
        "ExitCode": state.exit_code.unwrap_or_default(),
        "Error": state.error.clone().unwrap_or_default(),
        "StartedAt": time(&state.started_at),
        "FinishedAt": time(&state.finished_at),
    })
}
