//! From a reference to the servers that may have it, in the order to ask them.

use std::sync::Arc;

use knarr_spec::Reference;

use crate::hosts::{Capability, Host, Trust};
use crate::registries::Registry;
use crate::{Client, Error, Result};

/// One server, and what the repository is called there.
#[derive(Debug, Clone)]
pub(crate) struct Endpoint {
    /// `host[:port]` as users, credentials and certificates name it.
    pub(crate) registry: String,
    /// Whether it is the registry that the reference names, and no mirror of it.
    pub(crate) is_named: bool,
    /// `host[:port]` to connect to.
    pub(crate) authority: String,
    /// `None`: to be found out.
    pub(crate) https: Option<bool>,
    /// What comes before the repository in a path: `/v2`.
    pub(crate) base: String,
    pub(crate) repository: String,
    /// Plain http and any certificate will do.
    pub(crate) insecure: bool,
    pub(crate) trust: Arc<Trust>,
    pub(crate) headers: Arc<Vec<(String, String)>>,
}

impl Endpoint {
    /// The registry itself, by its name alone.
    fn plain(registry: &str, repository: &str, insecure: bool) -> Self {
        let authority = if registry == "docker.io" {
            "registry-1.docker.io"
        } else {
            registry
        };
        Self {
            registry: registry.to_owned(),
            is_named: false,
            authority: authority.to_owned(),
            https: None,
            base: "/v2".to_owned(),
            repository: repository.to_owned(),
            insecure,
            trust: Arc::default(),
            headers: Arc::default(),
        }
    }
}

/// The servers to ask, the registry itself last. Never empty.
pub(crate) fn of(
    client: &Client<'_>,
    reference: &Reference,
    capability: Capability,
) -> Result<Vec<Endpoint>> {
    let configuration = client.registries()?;
    let said = configuration.of(reference);
    if let Some(path) = said.and_then(|registry| registry.blocked.clone()) {
        return Err(Error::Blocked {
            name: reference.familiar_name(),
            path,
        });
    }
    let unsaid = Registry {
        prefix: reference.registry().to_owned(),
        ..Registry::default()
    };
    let said = said.unwrap_or(&unsaid);
    let mut endpoints = Vec::new();
    let by_digest = reference.digest().is_some();
    if capability != Capability::Push {
        for mirror in said.mirrors.iter().filter(|m| m.pulls.serve(by_digest)) {
            let name = said.rewrite(reference, &mirror.location);
            let (host, repository) = split(&name, reference)?;
            for endpoint in at(client, host, repository, mirror.insecure, capability)? {
                endpoints.push(Endpoint {
                    https: mirror.https.or(endpoint.https),
                    ..endpoint
                });
            }
        }
    }
    let name = said.rewrite(reference, &said.location);
    let (host, repository) = split(&name, reference)?;
    endpoints.extend(at(client, host, repository, said.insecure, capability)?);
    for endpoint in &mut endpoints {
        endpoint.is_named = endpoint.registry == reference.registry();
    }
    Ok(endpoints)
}

fn split<'n>(name: &'n str, reference: &Reference) -> Result<(&'n str, &'n str)> {
    name.split_once('/').ok_or_else(|| Error::NotARegistry {
        registry: reference.registry().to_owned(),
        what: format!("the location {name:?} of registries.conf"),
    })
}

/// The servers that stand for one registry: those of `hosts.toml`, or itself.
fn at(
    client: &Client<'_>,
    registry: &str,
    repository: &str,
    insecure: bool,
    capability: Capability,
) -> Result<Vec<Endpoint>> {
    let insecure = insecure || client.settings.insecure;
    let itself = Endpoint::plain(registry, repository, insecure);
    let hosts = client.hosts(registry)?;
    let can = |host: &&Host| host.is_server || host.capabilities.contains(&capability);
    let named: Vec<Endpoint> = hosts
        .iter()
        .filter(can)
        .map(|host| Endpoint {
            registry: if host.is_server {
                registry.to_owned()
            } else {
                host.authority.clone()
            },
            authority: host.authority.clone(),
            https: Some(host.https),
            base: host.base.clone(),
            insecure: insecure || host.trust.skip_verify || !host.https,
            trust: Arc::new(host.trust.clone()),
            headers: Arc::new(host.headers.clone()),
            ..itself.clone()
        })
        .collect();
    Ok(if named.is_empty() {
        vec![itself]
    } else {
        named
    })
}
