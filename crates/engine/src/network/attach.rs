//! Networks and ports of containers that exist: joined, left, published while they run or not.

use knarr_fs::failpoint;
use knarr_monitor::client::Connection;
use knarr_net::port::{PortRequest, Protocol};
use knarr_spec::docker::{EndpointSettings, PortBinding};

use super::plan::{Mode, mode_of, networks_of};
use super::ports;
use crate::find::Found;
use crate::record::Record;
use crate::{Engine, Error, PublishedPort, Result};

impl Engine {
    pub(crate) fn network_connect_now(
        &self,
        network: &str,
        container: &str,
        settings: &EndpointSettings,
    ) -> Result<()> {
        let id = self.find(container)?;
        let mut record = self.record(&id)?;
        own_networks(&record)?;
        let network = self.network_named(network)?.name;
        let endpoint = self.endpoint(&record, &network, settings)?;
        let known = networks_of(&record);
        if known.iter().any(|(name, _)| *name == network) {
            return Err(Error::conflict(
                format!(
                    "endpoint with name {} already exists in network {network}",
                    record.name
                ),
                format!("`knarr network disconnect {network} {container}` comes first"),
            ));
        }
        record
            .endpoints
            .get_or_insert_with(|| known.into_iter().collect())
            .insert(network, settings.clone());
        let found = self.touch(&id)?;
        failpoint!("network.connecting");
        if let Found::Running(_) = found {
            Connection::open(&self.settings().run_dir(&id))?.connect(endpoint)?;
        }
        failpoint!("network.connected");
        record.save(&record.paths.folder, record.durability())
    }

    pub(crate) fn network_disconnect_now(
        &self,
        network: &str,
        container: &str,
        force: bool,
    ) -> Result<()> {
        let id = self.find(container)?;
        let mut record = self.record(&id)?;
        own_networks(&record)?;
        // One that was removed meanwhile can still be left.
        let network = match self.network_named(network) {
            Ok(network) => network.name,
            Err(_) if force => network.to_owned(),
            Err(error) => return Err(error),
        };
        let known = networks_of(&record);
        // A command that was killed may have connected it without writing that down.
        let found = self.touch(&id)?;
        let is_on = self.state(&id)?.network.on(&network).is_some();
        if !is_on && !known.iter().any(|(name, _)| *name == network) {
            return Err(Error::conflict(
                format!("container {id} is not connected to network {network}"),
                format!("`knarr inspect {container}` lists its networks"),
            ));
        }
        record
            .endpoints
            .get_or_insert_with(|| known.into_iter().collect())
            .remove(&network);
        // The record first: a kill in between leaves a container that leaves at its next start.
        record.save(&record.paths.folder, record.durability())?;
        failpoint!("network.disconnecting");
        if let (Found::Running(_), true) = (found, is_on) {
            Connection::open(&self.settings().run_dir(&id))?.disconnect(&network)?;
        }
        Ok(())
    }

    pub(crate) fn publish_now(
        &self,
        container: &str,
        bindings: &[(String, PortBinding)],
    ) -> Result<()> {
        let id = self.find(container)?;
        let mut record = self.record(&id)?;
        own_networks(&record)?;
        let mut requests: Vec<PortRequest> = Vec::new();
        for (key, binding) in bindings {
            let (port, protocol) = ports::parse_port(key)?;
            let (ip, host_port) = (&binding.host_ip, &binding.host_port);
            requests.push(ports::parse_request(port, protocol, ip, host_port, None)?);
            record
                .host
                .port_bindings
                .entry(format!("{port}/{protocol}"))
                .or_default()
                .push(binding.clone());
        }
        if let Found::Running(_) = self.touch(&id)? {
            Connection::open(&self.settings().run_dir(&id))?.publish(requests)?;
        }
        failpoint!("network.publishing");
        record.save(&record.paths.folder, record.durability())
    }

    pub(crate) fn unpublish_now(&self, container: &str, port: Option<&str>) -> Result<()> {
        let id = self.find(container)?;
        let mut record = self.record(&id)?;
        own_networks(&record)?;
        let port: Option<(u16, Protocol)> = port.map(ports::parse_port).transpose()?;
        let known = match port {
            Some((port, protocol)) => record
                .host
                .port_bindings
                .remove(&format!("{port}/{protocol}"))
                .is_some(),
            None => !std::mem::take(&mut record.host.port_bindings).is_empty(),
        };
        let found = self.touch(&id)?;
        if !known && !matches!(found, Found::Running(_)) {
            return Err(Error::conflict(
                format!("container {container} does not publish that port"),
                format!("`knarr port {container}` lists those that it does"),
            ));
        }
        record.save(&record.paths.folder, record.durability())?;
        failpoint!("network.unpublishing");
        if let Found::Running(_) = found {
            Connection::open(&self.settings().run_dir(&id))?.unpublish(port)?;
        }
        Ok(())
    }

    pub(crate) fn ports_now(&self, container: &str) -> Result<Vec<PublishedPort>> {
        let id = self.find(container)?;
        let state = self.state(&id)?;
        let mut all: Vec<PublishedPort> = state
            .network
            .ports
            .iter()
            .map(|one| (*one).into())
            .collect();
        all.sort_unstable();
        Ok(all)
    }
}

/// Docker's rule: only a container with networks of its own can be put on others.
fn own_networks(record: &Record) -> Result<()> {
    let what = match mode_of(&record.host.network_mode) {
        Mode::Networks(_) => return Ok(()),
        Mode::Host => "the host's network",
        Mode::None => "no network (`--network none`)",
        Mode::Container(_) | Mode::Namespace(_) => "another one's network namespace",
    };
    Err(Error::conflict(
        format!(
            "container {} has {what}: networks and ports cannot be changed",
            record.name
        ),
        "make it anew with `--network NAME`",
    ))
}
