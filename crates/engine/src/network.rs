//! Networks: what is kept of them, and their life from `create` to `prune`.
//!
//! ```text
//! <data>/networks/<name>.json   a network; `bridge` is made when it is first needed
//! <data>/networks/.lock         held exclusively while one is made or removed
//! ```

mod attach;
mod audit;
mod inspect;
mod plan;
pub(crate) mod ports;

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::PathBuf;

use knarr_fs::{Durability, Lock, failpoint};
use knarr_net::network::{self, DEFAULT, DriverKind, Network, Pool, Taken, option};
use knarr_net::{Subnet, lease};
use knarr_spec::ContainerId;

use crate::list::label_matches;
use crate::{Engine, Error, Filters, Result, Settings, names, time};

pub use audit::Way;
pub(crate) use inspect::settings_json;
pub(crate) use plan::{Mode, endpoint_names, mode_of};
pub use ports::PublishedPort;
pub(crate) use ports::show;

/// What `network create` asks for.
#[derive(Debug, Clone, Default)]
pub struct NetworkCreate {
    /// Its name.
    pub name: String,
    /// `bridge`, which empty means too, `macvlan` or `ipvlan`.
    pub driver: String,
    /// Nothing leaves it.
    pub internal: bool,
    /// Containers get IPv6 addresses, too.
    pub ipv6: bool,
    /// `--subnet`.
    pub subnets: Vec<String>,
    /// `--ip-range`.
    pub ranges: Vec<String>,
    /// `--gateway`.
    pub gateways: Vec<String>,
    /// `--aux-address`, name and address.
    pub auxiliary: BTreeMap<String, String>,
    /// `--opt`.
    pub options: BTreeMap<String, String>,
    /// `--label`.
    pub labels: BTreeMap<String, String>,
}

/// A network as `network ls` shows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NetworkSummary {
    /// 64 digits.
    pub id: String,
    /// Its name.
    pub name: String,
    /// `bridge`, `macvlan`, `ipvlan`, `host` or `null`.
    pub driver: String,
    /// RFC 3339.
    pub created: String,
    /// Nothing leaves it.
    pub internal: bool,
    /// Containers get IPv6 addresses, too.
    pub ipv6: bool,
    /// Labels.
    pub labels: BTreeMap<String, String>,
}

/// The networks that are there without a file: their name and driver.
pub(crate) const BUILT_IN: [(&str, &str); 2] = [("host", "host"), ("none", "null")];

fn folder(settings: &Settings) -> PathBuf {
    settings.root.join("networks")
}

fn file(settings: &Settings, name: &str) -> PathBuf {
    folder(settings).join(format!("{name}.json"))
}

fn lock(settings: &Settings) -> Result<Lock> {
    knarr_fs::create_dir_all(&folder(settings))?;
    Ok(Lock::exclusive(&folder(settings).join(".lock"))?)
}

/// Reads a network by its name; `None` where there is none.
pub(crate) fn load(settings: &Settings, name: &str) -> Result<Option<Network>> {
    if network::check_name(name).is_err() {
        return Ok(None);
    }
    let path = file(settings, name);
    let bytes = match knarr_fs::read(&path) {
        Err(error) if error.is_not_found() => return Ok(None),
        bytes => bytes?,
    };
    let network: Network = serde_json::from_slice(&bytes).map_err(|cause| Error::Damaged {
        path: path.clone(),
        cause,
    })?;
    if network.version > network::VERSION {
        return Err(Error::Version {
            path,
            found: network.version,
            known: network::VERSION,
        });
    }
    Ok(Some(network))
}

/// All networks that have a file, by name.
pub(crate) fn all(settings: &Settings) -> Result<Vec<Network>> {
    let mut found = Vec::new();
    for name in knarr_fs::file_names(&folder(settings))? {
        let name = name.to_str().and_then(|name| name.strip_suffix(".json"));
        if let Some(network) = name.map(|name| load(settings, name)).transpose()?.flatten() {
            found.push(network);
        }
    }
    found.sort_by(|a: &Network, b| a.name.cmp(&b.name));
    Ok(found)
}

fn save(settings: &Settings, network: &Network) -> Result<()> {
    let path = file(settings, &network.name);
    let bytes = serde_json::to_vec_pretty(network).map_err(|cause| Error::Damaged {
        path: path.clone(),
        cause,
    })?;
    Ok(knarr_fs::write_atomic(&path, &bytes, Durability::Durable)?)
}

/// What is in the way of new subnets: the host's routes, and other networks, up or not.
fn taken(settings: &Settings) -> Result<Vec<Taken>> {
    let mut all_taken = network::taken_by_host()?;
    all_taken.extend(all(settings)?.into_iter().flat_map(|network| {
        network.pools.into_iter().map(move |pool| Taken {
            subnet: pool.subnet,
            by: format!("network {}", network.name),
        })
    }));
    Ok(all_taken)
}

impl Engine {
    /// A network by its name; the default one is made where it is not there yet.
    pub(crate) fn network_named(&self, name: &str) -> Result<Network> {
        let settings = self.settings();
        if let Some(network) = load(settings, name)? {
            return Ok(network);
        }
        if name == DEFAULT {
            return self.default_network();
        }
        if let Some(network) = self.network_by_id(name)? {
            return Ok(network);
        }
        self.no_network(name)
    }

    fn network_by_id(&self, text: &str) -> Result<Option<Network>> {
        let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_hexdigit());
        if !digits {
            return Ok(None);
        }
        let mut found = all(self.settings())?;
        found.retain(|network| network.id.starts_with(text));
        if found.len() > 1 {
            return Err(Error::invalid(format!(
                "network {text} is ambiguous ({} matches found on ID prefix)",
                found.len()
            )));
        }
        Ok(found.pop())
    }

    fn no_network<T>(&self, name: &str) -> Result<T> {
        let mut known: Vec<String> = all(self.settings())?
            .into_iter()
            .map(|network| network.name)
            .collect();
        known.extend(BUILT_IN.map(|(name, _)| name.to_owned()));
        if !known.iter().any(|name| name == DEFAULT) {
            known.push(DEFAULT.to_owned());
        }
        Err(Error::NetworkNotFound {
            name: name.to_owned(),
            near: names::near(name, known),
        })
    }

    /// Makes the default network, where this is its first use; and says what this host's own
    /// firewall is in the way of.
    pub(crate) fn first_network(&self, mode: &str) -> Result<Vec<String>> {
        if mode_of(mode) != Mode::Networks(DEFAULT) || load(self.settings(), DEFAULT)?.is_some() {
            return Ok(Vec::new());
        }
        self.default_network()?;
        self.network_obstacles_now(DEFAULT, false)
    }

    /// Makes the network that containers join where nobody says otherwise.
    fn default_network(&self) -> Result<Network> {
        let settings = self.settings();
        let _alone = lock(settings)?;
        if let Some(network) = load(settings, DEFAULT)? {
            return Ok(network);
        }
        let pool = network::choose_subnet(&taken(settings)?)?;
        let options = [
            (option::DEFAULT_BRIDGE, "true"),
            (option::ICC, "true"),
            (option::MASQUERADE, "true"),
            (option::HOST_ADDRESS, "0.0.0.0"),
            (option::MTU, "1500"),
        ];
        let network = Network {
            version: network::VERSION,
            id: names::random_id()?.to_string(),
            name: DEFAULT.to_owned(),
            created: time::format(time::now()),
            driver: DriverKind::Bridge,
            internal: false,
            ipv6: false,
            pools: vec![pool],
            options: options
                .map(|(key, value)| (key.to_owned(), value.to_owned()))
                .into(),
            labels: BTreeMap::new(),
            interface: knarr_net::free_bridge_name()?,
        };
        save(settings, &network)?;
        Ok(network)
    }

    pub(crate) fn network_create_now(&self, request: &NetworkCreate) -> Result<String> {
        let settings = self.settings();
        let name = &request.name;
        network::check_name(name)?;
        let reserved = BUILT_IN.iter().any(|(known, _)| known == name);
        if reserved || matches!(name.as_str(), DEFAULT | "default" | "container" | "ns") {
            return Err(Error::conflict(
                format!("operation is not permitted on predefined {name} network"),
                "choose another name",
            ));
        }
        let driver = match request.driver.as_str() {
            "" => DriverKind::Bridge,
            text => DriverKind::parse(text).ok_or_else(|| Error::Unsupported {
                what: format!("network driver `{text}`"),
                reason: "there are bridge, macvlan and ipvlan",
            })?,
        };
        let id = names::random_id()?.to_string();
        let _alone = lock(settings)?;
        if load(settings, name)?.is_some() {
            return Err(Error::conflict(
                format!("network with name {name} already exists"),
                format!("`knarr network rm {name}` removes it"),
            ));
        }
        let taken = taken(settings)?;
        let mut pools = self.pools(request, &taken)?;
        if pools.iter().all(|pool| pool.subnet.is_ipv6()) {
            pools.insert(0, network::choose_subnet(&taken)?);
        }
        if request.ipv6 && !pools.iter().any(|pool| pool.subnet.is_ipv6()) {
            pools.push(network::unique_local(&id));
        }
        for pool in &mut pools {
            if pool.gateway.is_none() {
                pool.gateway = first_host(pool);
            }
        }
        let interface = match driver {
            DriverKind::Bridge => match request.options.get(option::BRIDGE) {
                Some(name) => name.clone(),
                None => format!("kn-{}", id.get(..12).unwrap_or_default()),
            },
            DriverKind::Macvlan | DriverKind::Ipvlan => request
                .options
                .get(option::PARENT)
                .cloned()
                .ok_or_else(|| {
                    Error::invalid_hint(
                        format!("a network of the driver {} needs a parent", driver.name()),
                        "say the interface that it is above: -o parent=eth0",
                    )
                })?,
        };
        let network = Network {
            version: network::VERSION,
            id,
            name: name.clone(),
            created: time::format(time::now()),
            driver,
            internal: request.internal,
            ipv6: request.ipv6,
            pools,
            options: request.options.clone(),
            labels: request.labels.clone(),
            interface,
        };
        network.check()?;
        for other in all(settings)? {
            for pool in &other.pools {
                if network
                    .pools
                    .iter()
                    .any(|own| own.subnet.overlaps(&pool.subnet))
                {
                    return Err(Error::conflict(
                        format!(
                            "invalid pool request: Pool overlaps with other one on this address \
                             space: network {} has {}",
                            other.name, pool.subnet
                        ),
                        "choose another --subnet, or leave it out",
                    ));
                }
            }
            if other.driver == DriverKind::Bridge && other.interface == network.interface {
                return Err(Error::conflict(
                    format!("network {} has the bridge {}", other.name, other.interface),
                    "choose another name for the bridge",
                ));
            }
        }
        if driver != DriverKind::Bridge {
            knarr_net::driver::check_parent(&network)?;
        }
        save(settings, &network)?;
        failpoint!("network.written");
        Ok(network.id)
    }

    /// The pools that the flags describe: ranges, gateways and auxiliary addresses go with the
    /// subnet that they are in.
    fn pools(&self, request: &NetworkCreate, taken: &[Taken]) -> Result<Vec<Pool>> {
        let mut pools: Vec<Pool> = Vec::new();
        for text in &request.subnets {
            let subnet: Subnet = text.parse()?;
            pools.push(Pool {
                subnet,
                range: None,
                gateway: None,
                auxiliary: BTreeMap::new(),
            });
        }
        let chosen_later = pools.is_empty();
        if chosen_later && !(request.ranges.is_empty() && request.gateways.is_empty()) {
            return Err(Error::invalid(
                "every ip-range or gateway must have a corresponding subnet",
            ));
        }
        if chosen_later && !request.auxiliary.is_empty() {
            pools.push(network::choose_subnet(taken)?);
        }
        for text in &request.ranges {
            let range: Subnet = text.parse()?;
            let pool = pools.iter_mut().find(|pool| pool.subnet.covers(&range));
            let pool =
                pool.ok_or_else(|| Error::invalid(format!("no matching subnet for range {text}")))?;
            if pool.range.replace(range).is_some() {
                return Err(Error::invalid(format!(
                    "cannot configure multiple ranges ({text}) on the same subnet ({})",
                    pool.subnet
                )));
            }
        }
        let address = |text: &String| -> Result<IpAddr> {
            text.parse()
                .map_err(|_| Error::invalid(format!("invalid address: {text}")))
        };
        for text in &request.gateways {
            let gateway = address(text)?;
            let pool = pools.iter_mut().find(|pool| pool.subnet.contains(gateway));
            let pool = pool
                .ok_or_else(|| Error::invalid(format!("no matching subnet for gateway {text}")))?;
            if pool.gateway.replace(gateway).is_some() {
                return Err(Error::invalid(format!(
                    "cannot configure multiple gateways ({text}) for the same subnet ({})",
                    pool.subnet
                )));
            }
        }
        for (name, text) in &request.auxiliary {
            let taken = address(text)?;
            let pool = pools.iter_mut().find(|pool| pool.subnet.contains(taken));
            let pool = pool.ok_or_else(|| {
                Error::invalid(format!("no matching subnet for aux-address {text}"))
            })?;
            pool.auxiliary.insert(name.clone(), taken);
        }
        Ok(pools)
    }

    pub(crate) fn networks_now(&self, filters: &Filters) -> Result<Vec<NetworkSummary>> {
        let settings = self.settings();
        let mut found: Vec<NetworkSummary> = all(settings)?.iter().map(summary).collect();
        if !found.iter().any(|network| network.name == DEFAULT) {
            found.push(summary(&self.default_network()?));
        }
        found.extend(BUILT_IN.map(|(name, driver)| built_in(name, driver)));
        found.sort_by(|a, b| a.name.cmp(&b.name));
        let mut kept = Vec::new();
        for network in found {
            if self.network_matches(&network, filters)? {
                kept.push(network);
            }
        }
        Ok(kept)
    }

    fn network_matches(&self, network: &NetworkSummary, filters: &Filters) -> Result<bool> {
        let is_predefined =
            BUILT_IN.iter().any(|(name, _)| *name == network.name) || network.name == DEFAULT;
        for (key, values) in &filters.0 {
            let matches = match key.as_str() {
                "name" => values
                    .iter()
                    .any(|value| network.name.contains(value.as_str())),
                "id" => values
                    .iter()
                    .any(|value| network.id.starts_with(value.as_str())),
                "driver" => values.contains(&network.driver),
                "scope" => values.iter().any(|value| value == "local"),
                "label" => values
                    .iter()
                    .all(|value| label_matches(&network.labels, value)),
                "type" => values.iter().any(|value| match value.as_str() {
                    "builtin" => is_predefined,
                    "custom" => !is_predefined,
                    _ => false,
                }),
                "dangling" => {
                    let dangling = !is_predefined && self.network_users(&network.name)?.is_empty();
                    values
                        .iter()
                        .any(|value| matches!(value.as_str(), "true" | "1") == dangling)
                }
                _ => return Err(Error::invalid(format!("invalid filter '{key}'"))),
            };
            if !matches {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// The running containers that are on a network.
    pub(crate) fn network_users(&self, name: &str) -> Result<Vec<ContainerId>> {
        let mut users: Vec<ContainerId> = lease::holders(&self.settings().run_root, name)?
            .into_iter()
            .map(|(_, id)| id)
            .collect();
        users.sort();
        users.dedup();
        users.retain(|id| self.state(id).is_ok_and(|state| state.status.is_alive()));
        Ok(users)
    }

    pub(crate) fn network_remove_now(&self, text: &str) -> Result<()> {
        if BUILT_IN.iter().any(|(name, _)| *name == text) || text == DEFAULT {
            return Err(Error::Denied {
                reason: format!("{text} is a pre-defined network and cannot be removed"),
            });
        }
        let settings = self.settings();
        let network = self.network_named(text)?;
        let _alone = lock(settings)?;
        let users = self.network_users(&network.name)?;
        if !users.is_empty() {
            let names: Vec<String> = users
                .iter()
                .map(|id| match self.record(id) {
                    Ok(record) => record.name.to_string(),
                    Err(_) => id.short().to_owned(),
                })
                .collect();
            return Err(Error::conflict(
                format!(
                    "error while removing network: network {} has active endpoints: {}",
                    network.name,
                    names.join(", ")
                ),
                format!(
                    "`knarr network disconnect {} CONTAINER`, or stop them",
                    network.name
                ),
            ));
        }
        // The file last: until then another call finds what is left.
        knarr_net::remove(&settings.run_root, &network)?;
        failpoint!("network.removed");
        knarr_fs::remove_file(&file(settings, &network.name))?;
        Ok(())
    }

    pub(crate) fn network_prune_now(&self, filters: &Filters) -> Result<Vec<String>> {
        let mut removed = Vec::new();
        let before = match filters.0.get("until").and_then(|values| values.first()) {
            None => None,
            Some(text) => Some(time::parse(text).ok_or_else(|| {
                Error::invalid(format!("invalid filter 'until={text}': not a time"))
            })?),
        };
        for network in all(self.settings())? {
            let labels = filters.0.iter().all(|(key, values)| match key.as_str() {
                "label" => values
                    .iter()
                    .all(|value| label_matches(&network.labels, value)),
                "label!" => !values
                    .iter()
                    .any(|value| label_matches(&network.labels, value)),
                _ => true,
            });
            let old = before.is_none_or(|before| {
                time::parse(&network.created).is_some_and(|created| created < before)
            });
            if network.name != DEFAULT && labels && old && !self.is_named(&network.name)? {
                self.network_remove_now(&network.name)?;
                removed.push(network.name);
            }
        }
        Ok(removed)
    }
}

impl Engine {
    /// Whether any container is to be on a network, running or not.
    fn is_named(&self, network: &str) -> Result<bool> {
        for id in self.ids()? {
            if let Some(record) = crate::record::Record::load(self.settings(), &id)?
                && plan::networks_of(&record)
                    .iter()
                    .any(|(name, _)| name == network)
            {
                return Ok(true);
            }
        }
        Ok(false)
    }
}

/// The first address of a pool that can be the way out.
fn first_host(pool: &Pool) -> Option<IpAddr> {
    let range = pool.range();
    (0..8)
        .filter_map(|position| range.nth(position))
        .find(|address| {
            *address != pool.subnet.network()
                && !pool.auxiliary.values().any(|taken| taken == address)
        })
}

fn summary(network: &Network) -> NetworkSummary {
    NetworkSummary {
        id: network.id.clone(),
        name: network.name.clone(),
        driver: network.driver.name().to_owned(),
        created: network.created.clone(),
        internal: network.internal,
        ipv6: network.ipv6,
        labels: network.labels.clone(),
    }
}

fn built_in(name: &str, driver: &str) -> NetworkSummary {
    // Everywhere the same: it is nobody's.
    let id = name
        .bytes()
        .map(|byte| format!("{byte:02x}"))
        .collect::<String>();
    NetworkSummary {
        id: id.chars().cycle().take(64).collect(),
        name: name.to_owned(),
        driver: driver.to_owned(),
        created: time::NEVER.to_owned(),
        internal: false,
        ipv6: false,
        labels: BTreeMap::new(),
    }
}
