//! Docker's JSON of networks, and of a container's part in them.

use std::collections::BTreeMap;
use std::net::IpAddr;

use knarr_monitor::State;
use knarr_net::network::Network;
use knarr_net::port::Bound;
use knarr_net::{Joint, lease};
use serde_json::{Map, Value, json};

use super::plan::networks_of;
use super::{BUILT_IN, built_in};
use crate::record::Record;
use crate::{Engine, Result, time};

impl Engine {
    pub(crate) fn network_inspect_now(&self, text: &str) -> Result<Value> {
        if let Some((name, driver)) = BUILT_IN.iter().find(|(name, _)| *name == text) {
            let network = built_in(name, driver);
            return Ok(document(
                &network.name,
                &network.id,
                time::NEVER,
                driver,
                (false, false),
                &json!({ "Driver": "default", "Options": null, "Config": [] }),
                Map::new(),
                (&BTreeMap::new(), &BTreeMap::new()),
            ));
        }
        let network = self.network_named(text)?;
        let mut containers: BTreeMap<String, Value> = BTreeMap::new();
        for (_, id) in lease::holders(&self.settings().run_root, &network.name)? {
            // One that is going has no place any more.
            let (Ok(record), Ok(state)) = (self.record(&id), self.state(&id)) else {
                continue;
            };
            if let Some(joint) = state.network.on(&network.name) {
                containers.insert(id.to_string(), member(&record, joint));
            }
        }
        let config: Vec<Value> = network
            .pools
            .iter()
            .map(|pool| {
                let mut config = Map::new();
                config.insert("Subnet".to_owned(), json!(pool.subnet));
                if let Some(range) = &pool.range {
                    config.insert("IPRange".to_owned(), json!(range));
                }
                if let Some(gateway) = &pool.gateway {
                    config.insert("Gateway".to_owned(), json!(gateway));
                }
                if !pool.auxiliary.is_empty() {
                    config.insert("AuxiliaryAddresses".to_owned(), json!(pool.auxiliary));
                }
                Value::Object(config)
            })
            .collect();
        Ok(document(
            &network.name,
            &network.id,
            &network.created,
            network.driver.name(),
            (network.ipv6, network.internal),
            &json!({ "Driver": "default", "Options": {}, "Config": config }),
            containers.into_iter().collect(),
            (&shown_options(&network), &network.labels),
        ))
    }
}

/// With the bridge's name, which is asked for often and not always given.
fn shown_options(network: &Network) -> BTreeMap<String, String> {
    let mut options = network.options.clone();
    if network.driver == knarr_net::network::DriverKind::Bridge {
        options.insert(
            knarr_net::network::option::BRIDGE.to_owned(),
            network.interface.clone(),
        );
    }
    options
}

#[expect(clippy::too_many_arguments, reason = "the fields of one JSON object")]
fn document(
    name: &str,
    id: &str,
    created: &str,
    driver: &str,
    (ipv6, internal): (bool, bool),
    ipam: &Value,
    containers: Map<String, Value>,
    (options, labels): (&BTreeMap<String, String>, &BTreeMap<String, String>),
) -> Value {
    json!({
        "Name": name,
        "Id": id,
        "Created": created,
        "Scope": "local",
        "Driver": driver,
        "EnableIPv4": true,
        "EnableIPv6": ipv6,
        "IPAM": ipam,
        "Internal": internal,
        "Attachable": false,
        "Ingress": false,
        "ConfigFrom": { "Network": "" },
        "ConfigOnly": false,
        "Containers": containers,
        "Options": options,
        "Labels": labels,
    })
}

fn member(record: &Record, joint: &Joint) -> Value {
    let cidr = |address: Option<(IpAddr, u8)>| {
        address.map_or_else(String::new, |(address, prefix)| {
            format!("{address}/{prefix}")
        })
    };
    json!({
        "Name": record.name,
        "EndpointID": endpoint_id(record, joint),
        "MacAddress": joint.mac,
        "IPv4Address": cidr(joint.ipv4.map(|place| (place.address.into(), place.prefix))),
        "IPv6Address": cidr(joint.ipv6.map(|place| (place.address.into(), place.prefix))),
    })
}

/// 64 digits that are the same as long as the container is on the network.
fn endpoint_id(record: &Record, joint: &Joint) -> String {
    let (left, right) = (record.id.as_str(), joint.network_id.as_str());
    let digit = |byte: u8| char::from(byte).to_digit(16).unwrap_or_default();
    left.bytes()
        .zip(right.bytes())
        .filter_map(|(a, b)| char::from_digit(digit(a) ^ digit(b), 16))
        .collect()
}

/// `NetworkSettings` of `inspect`.
pub(crate) fn settings_json(record: &Record, state: &State) -> Value {
    let attached = &state.network;
    let mut ports: BTreeMap<String, Vec<Value>> = BTreeMap::new();
    for exposed in record.config.exposed_ports.keys() {
        ports.entry(exposed.clone()).or_default();
    }
    for Bound {
        port,
        protocol,
        host,
        host_port,
    } in &attached.ports
    {
        ports
            .entry(format!("{port}/{protocol}"))
            .or_default()
            .push(json!({
                "HostIp": host,
                "HostPort": host_port.to_string(),
            }));
    }
    let ports: Map<String, Value> = ports
        .into_iter()
        .map(|(port, bindings)| {
            let bindings = if bindings.is_empty() {
                Value::Null
            } else {
                json!(bindings)
            };
            (port, bindings)
        })
        .filter(|_| state.status.is_alive())
        .collect();
    let networks: Map<String, Value> = networks_of(record)
        .into_iter()
        .map(|(name, settings)| {
            let joint = attached.on(&name);
            let asked = settings.ipam_config.as_ref().map_or(Value::Null, |asked| json!(asked));
            let ipv4 = joint.and_then(|joint| joint.ipv4);
            let ipv6 = joint.and_then(|joint| joint.ipv6);
            let text = |value: Option<String>| value.unwrap_or_default();
            let value = json!({
                "IPAMConfig": asked,
                "Links": null,
                "Aliases": if settings.aliases.is_empty() { Value::Null } else { json!(settings.aliases) },
                "MacAddress": text(joint.map(|joint| joint.mac.to_string())),
                "DriverOpts": null,
                "GwPriority": settings.gw_priority,
                "NetworkID": text(joint.map(|joint| joint.network_id.clone())),
                "EndpointID": text(joint.map(|joint| endpoint_id(record, joint))),
                "Gateway": text(ipv4.and_then(|place| place.gateway).map(|ip| ip.to_string())),
                "IPAddress": text(ipv4.map(|place| place.address.to_string())),
                "IPPrefixLen": ipv4.map_or(0, |place| place.prefix),
                "IPv6Gateway": text(ipv6.and_then(|place| place.gateway).map(|ip| ip.to_string())),
                "GlobalIPv6Address": text(ipv6.map(|place| place.address.to_string())),
                "GlobalIPv6PrefixLen": ipv6.map_or(0, |place| place.prefix),
                "DNSNames": if settings.aliases.is_empty() && joint.is_none() {
                    Value::Null
                } else {
                    json!(super::endpoint_names(record, &settings))
                },
            });
            (name, value)
        })
        .collect();
    // Docker's old fields: the default network's.
    let default = attached.on(knarr_net::network::DEFAULT);
    let ipv4 = default.and_then(|joint| joint.ipv4);
    let process = state.process.filter(|_| state.status.is_alive());
    json!({
        "SandboxID": if process.is_some() { record.id.as_str() } else { "" },
        "SandboxKey": process.map_or_else(String::new, |process| format!("/proc/{}/ns/net", process.pid)),
        "Ports": ports,
        "Gateway": ipv4.and_then(|place| place.gateway).map_or_else(String::new, |ip| ip.to_string()),
        "IPAddress": ipv4.map_or_else(String::new, |place| place.address.to_string()),
        "IPPrefixLen": ipv4.map_or(0, |place| place.prefix),
        "MacAddress": default.map_or_else(String::new, |joint| joint.mac.to_string()),
        "Networks": networks,
    })
}
