//! From a container's record to a plan of its network. Reads the networks' files, makes nothing.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::PathBuf;

use knarr_net::network::DEFAULT;
use knarr_net::plan::Hosts;
use knarr_net::{Endpoint, Mac, Plan};
use knarr_spec::docker::EndpointSettings;

use super::ports;
use crate::record::Record;
use crate::spec::Files;
use crate::{Engine, Error, Result, files};

/// What a network mode means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mode<'a> {
    /// Loopback only.
    None,
    /// The machine's.
    Host,
    /// Another container's.
    Container(&'a str),
    /// One that somebody else has made, by the path of its file.
    Namespace(&'a str),
    /// Networks of its own, this one first.
    Networks(&'a str),
}

/// Parses `HostConfig.NetworkMode`.
pub(crate) fn mode_of(text: &str) -> Mode<'_> {
    match text {
        "none" => Mode::None,
        "host" => Mode::Host,
        "" | "default" | DEFAULT => Mode::Networks(DEFAULT),
        _ => match text.split_once(':') {
            Some(("container", name)) => Mode::Container(name),
            Some(("ns", path)) => Mode::Namespace(path),
            _ => Mode::Networks(text),
        },
    }
}

/// The networks that a container is to be on: the one of its mode first, the others by name.
pub(crate) fn networks_of(record: &Record) -> Vec<(String, EndpointSettings)> {
    let Mode::Networks(first) = mode_of(&record.host.network_mode) else {
        return Vec::new();
    };
    let Some(endpoints) = &record.endpoints else {
        return vec![(first.to_owned(), EndpointSettings::default())];
    };
    let mut all: Vec<_> = endpoints
        .iter()
        .map(|(name, settings)| (name.clone(), settings.clone()))
        .collect();
    all.sort_by_key(|(name, _)| name != first);
    all
}

/// The names that lead to a container: its own, its short id, its host name, its aliases.
pub(crate) fn endpoint_names(record: &Record, settings: &EndpointSettings) -> Vec<String> {
    let own = [
        record.name.as_str(),
        record.id.short(),
        &record.config.hostname,
    ];
    let mut names: Vec<String> = Vec::new();
    for name in own
        .into_iter()
        .chain(settings.aliases.iter().map(String::as_str))
    {
        let name = name.to_ascii_lowercase();
        // A host name may begin with a dot nowhere else than here.
        if !name.is_empty() && !name.starts_with('.') && !names.contains(&name) {
            names.push(name);
        }
    }
    names
}

impl Engine {
    /// A container's network, decided; `None` where it has none of its own.
    pub(crate) fn network_plan(
        &self,
        record: &Record,
        written: Option<&Files>,
    ) -> Result<Option<Plan>> {
        let networks = networks_of(record);
        if !matches!(mode_of(&record.host.network_mode), Mode::Networks(_)) {
            return Ok(None);
        }
        let endpoints = networks
            .iter()
            .map(|(name, settings)| self.endpoint(record, name, settings))
            .collect::<Result<Vec<_>>>()?;
        let gateway = endpoints
            .iter()
            .find_map(|endpoint| endpoint.network.pool(false)?.gateway);
        let hosts = match written {
            Some(written) => Some(Hosts {
                path: PathBuf::from(&written.hosts),
                head: files::hosts(record, None, gateway)?,
                names: match record.config.domainname.as_str() {
                    "" => record.config.hostname.clone(),
                    domain => format!("{0}.{domain} {0}", record.config.hostname),
                },
            }),
            None => None,
        };
        Ok(Some(Plan {
            ports: ports::requests(record, endpoints.first().map(|endpoint| &endpoint.network))?,
            endpoints,
            hosts,
            servers: files::servers(record)?,
        }))
    }

    /// What `host-gateway` means to a container: this host, as its first network sees it. With the
    /// host's own network that is loopback.
    pub(crate) fn gateway(&self, record: &Record) -> Result<Option<IpAddr>> {
        let asked = record.host.extra_hosts.iter().flatten();
        if !asked.into_iter().any(|text| text.ends_with("host-gateway")) {
            return Ok(None);
        }
        let Some((name, _)) = networks_of(record).into_iter().next() else {
            return Ok(None);
        };
        Ok(self
            .network_named(&name)?
            .pool(false)
            .and_then(|pool| pool.gateway))
    }

    /// One network that a container joins.
    pub(crate) fn endpoint(
        &self,
        record: &Record,
        name: &str,
        settings: &EndpointSettings,
    ) -> Result<Endpoint> {
        let network = self.network_named(name)?;
        let addresses = settings.ipam_config.clone().unwrap_or_default();
        let given = |text: &str| (!text.is_empty()).then(|| text.to_owned());
        let wrong = |text: &str| Error::invalid(format!("invalid IP address: {text}"));
        let ipv4 = given(&addresses.ipv4_address)
            .map(|text| text.parse::<Ipv4Addr>().map_err(|_| wrong(&text)))
            .transpose()?;
        let ipv6 = given(&addresses.ipv6_address)
            .map(|text| text.parse::<Ipv6Addr>().map_err(|_| wrong(&text)))
            .transpose()?;
        for (asked, family) in [(ipv4.is_some(), false), (ipv6.is_some(), true)] {
            if asked && network.pool(family).is_none() {
                let version = if family { "IPv6" } else { "IPv4" };
                return Err(Error::invalid(format!(
                    "network {} has no {version} subnet to take an address from",
                    network.name
                )));
            }
        }
        if let Some((key, value)) = settings.driver_opts.iter().next() {
            return Err(Error::Unsupported {
                what: format!("driver option `{key}={value}` of a container on a network"),
                reason: "no driver here has options of that kind",
            });
        }
        Ok(Endpoint {
            names: endpoint_names(record, settings),
            ipv4,
            ipv6,
            mac: given(&settings.mac_address)
                .map(|text| text.parse::<Mac>())
                .transpose()?,
            gateway_priority: settings.gw_priority,
            network,
        })
    }
}
