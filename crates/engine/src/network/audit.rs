//! What can be reached from where, and why; and what this host's own firewall is in the way of.

use std::collections::BTreeMap;
use std::net::IpAddr;

use knarr_net::firewall::{self, Published};
use knarr_net::network::{DriverKind, Network, option};
use knarr_net::policy::{Dropped, Packet, Ruleset};
use knarr_net::port::{Bound, Protocol};
use knarr_net::{lease, uplink};
use knarr_spec::ContainerId;
use serde::Serialize;

use super::all;
use crate::{Engine, Error, Result};

/// One way that a packet may go.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct Way {
    /// The network that it is about.
    pub network: String,
    /// `outside`, `this host`, `network web`.
    pub from: String,
    /// `outside`, `network web`, `db 172.17.0.2:80/tcp`.
    pub to: String,
    /// The published address, `0.0.0.0:8080`; empty otherwise.
    pub by: String,
    /// Packets get there.
    pub reachable: bool,
    /// By which rule.
    pub why: String,
}

/// Addresses for documentation (RFC 5737, RFC 3849) stand for everybody outside.
const OUTSIDE: [&str; 2] = ["198.51.100.1", "2001:db8::1"];

/// What looking at the ways of a network needs.
struct Survey<'a> {
    rules: &'a Ruleset,
    /// The link to everybody outside, of each family.
    uplinks: [String; 2],
    networks: Vec<Network>,
}

impl Survey<'_> {
    fn uplink(&self, ipv6: bool) -> &str {
        let [v4, v6] = &self.uplinks;
        if ipv6 { v6 } else { v4 }
    }

    /// An address of a container on a network, made up.
    fn inner(network: &Network, ipv6: bool) -> Option<IpAddr> {
        let pool = network.pool(ipv6)?;
        pool.after(None).next()
    }

    fn outer(ipv6: bool) -> Option<IpAddr> {
        let [v4, v6] = OUTSIDE;
        if ipv6 { v6 } else { v4 }.parse().ok()
    }

    /// A packet between two networks; `None` is everybody outside, or has no such addresses.
    fn packet(&self, from: Option<&Network>, to: Option<&Network>, ipv6: bool) -> Option<Packet> {
        let address = |network: Option<&Network>| match network {
            Some(network) => Self::inner(network, ipv6),
            None => Self::outer(ipv6),
        };
        let link = |network: Option<&Network>| {
            network.map_or_else(
                || self.uplink(ipv6).to_owned(),
                |network| network.interface.clone(),
            )
        };
        Some(Packet {
            input: link(from),
            output: link(to),
            source: address(from)?,
            destination: address(to)?,
            protocol: Protocol::Tcp,
            port: 80,
            translated: false,
        })
    }

    /// Who drops it, of either family.
    fn dropped(&self, from: Option<&Network>, to: Option<&Network>) -> Option<Dropped> {
        let packets = [false, true].map(|ipv6| self.packet(from, to, ipv6));
        let mut packets = packets.into_iter().flatten();
        packets.find_map(|packet| self.rules.forward(&packet, None))
    }
}

impl Engine {
    fn survey<'a>(&self, rules: &'a Ruleset) -> Result<Survey<'a>> {
        let mut networks = all(self.settings())?;
        networks.retain(|network| network.driver == DriverKind::Bridge);
        let name = |ipv6| Ok::<_, Error>(uplink(ipv6)?.unwrap_or_else(|| "eth0".to_owned()));
        Ok(Survey {
            rules,
            uplinks: [name(false)?, name(true)?],
            networks,
        })
    }

    pub(crate) fn network_audit_now(&self, fix: bool) -> Result<Vec<Way>> {
        if fix {
            for network in all(self.settings())? {
                self.network_obstacles_now(&network.name, true)?;
            }
        }
        let rules = Ruleset::load()?;
        let live = firewall::live(&self.settings().run_root, &rules)?;
        let survey = self.survey(&rules)?;
        let mut ways = Vec::new();
        for network in &survey.networks {
            if live.present {
                self.between(&survey, network, &mut ways);
            } else {
                ways.push(Way {
                    network: network.name.clone(),
                    from: "anywhere".to_owned(),
                    to: format!("network {}", network.name),
                    by: String::new(),
                    reachable: true,
                    why: format!(
                        "the firewall table inet {} is missing; the next start on a network makes it",
                        live.table
                    ),
                });
            }
            self.published(&survey, network, &live.published, &mut ways)?;
        }
        Ok(ways)
    }

    /// Between a network and the others.
    fn between(&self, survey: &Survey<'_>, network: &Network, ways: &mut Vec<Way>) {
        let named = |network: &Network| format!("network {}", network.name);
        let mut push = |from: String, to: String, reachable: bool, why: String| {
            ways.push(Way {
                network: network.name.clone(),
                from,
                to,
                by: String::new(),
                reachable,
                why,
            });
        };
        let judge = |from, to, open: &str| match survey.dropped(from, to) {
            Some(dropped) => (
                false,
                format!("dropped by {} {}", dropped.system, dropped.place),
            ),
            None => (true, open.to_owned()),
        };
        let outside = || "outside".to_owned();
        let (open, why) = judge(None, Some(network), "no rule drops it");
        push(outside(), named(network), open, why);
        let leaves = if network.flag(option::MASQUERADE, true) {
            "masqueraded: with this host's address"
        } else {
            "routed: with the container's own address"
        };
        let (open, why) = judge(Some(network), None, leaves);
        push(named(network), outside(), open, why);
        push(
            "this host".to_owned(),
            named(network),
            true,
            "it has an address on the bridge".to_owned(),
        );
        let isolated = !network.flag(option::ICC, true);
        let (open, why) = match isolated {
            true => (
                false,
                "the ports of the bridge are isolated (icc=false)".to_owned(),
            ),
            false if knarr_net::firewall_sees_bridged() => {
                judge(Some(network), Some(network), "bridged")
            }
            false => (true, "bridged".to_owned()),
        };
        push(named(network), named(network), open, why);
        let mut others = Vec::new();
        for other in survey
            .networks
            .iter()
            .filter(|one| one.name != network.name)
        {
            let (open, why) = judge(Some(other), Some(network), "no rule drops it");
            if open {
                push(named(other), named(network), true, why);
            } else {
                others.push(why);
            }
        }
        if let Some(why) = others.into_iter().next() {
            push("other networks".to_owned(), named(network), false, why);
        }
    }

    /// The ports that lead to a network: as the kernel has them, and as they should be.
    fn published(
        &self,
        survey: &Survey<'_>,
        network: &Network,
        live: &[Published],
        ways: &mut Vec<Way>,
    ) -> Result<()> {
        let mut names: BTreeMap<IpAddr, ContainerId> = BTreeMap::new();
        let mut bounds: Vec<(String, Bound, Option<IpAddr>)> = Vec::new();
        for (address, id) in lease::holders(&self.settings().run_root, &network.name)? {
            names.insert(address, id);
        }
        let ids: std::collections::BTreeSet<_> = names.values().cloned().collect();
        let mut titles = BTreeMap::new();
        for id in ids {
            // One that is going publishes nothing any more.
            let (Ok(record), Ok(state)) = (self.record(&id), self.state(&id)) else {
                continue;
            };
            titles.insert(id.clone(), record.name.to_string());
            let Some(joint) = state
                .network
                .on(&network.name)
                .filter(|one| one.behind_host)
            else {
                continue;
            };
            for bound in &state.network.ports {
                let mut own = joint.addresses();
                let target = own.find(|address| address.is_ipv6() == bound.host.is_ipv6());
                bounds.push((record.name.to_string(), *bound, target));
            }
        }
        let title = |address: &IpAddr| {
            let id = names.get(address);
            id.map(|id| {
                titles
                    .get(id)
                    .map_or_else(|| id.short().to_owned(), Clone::clone)
            })
        };
        let holds = |subnet: IpAddr| {
            let pool = network.pool(subnet.is_ipv6());
            pool.is_some_and(|pool| pool.subnet.contains(subnet))
        };
        for one in live.iter().filter(|one| holds(one.target)) {
            let last = one.host_port.saturating_add(one.count.saturating_sub(1));
            let ports = |first: u16| {
                let last = first.saturating_add(one.count.saturating_sub(1));
                if one.count > 1 {
                    format!("{first}-{last}")
                } else {
                    first.to_string()
                }
            };
            let wanted = bounds.iter().any(|(_, bound, target)| {
                *target == Some(one.target)
                    && bound.protocol == one.protocol
                    && (one.host_port..=last).contains(&bound.host_port)
            });
            let ipv6 = one.target.is_ipv6();
            let local = one.host.is_loopback();
            let packet = survey
                .packet(None, Some(network), ipv6)
                .map(|packet| Packet {
                    destination: one.target,
                    port: one.target_port,
                    protocol: one.protocol,
                    translated: true,
                    ..packet
                });
            // What this host sends is not forwarded.
            let dropped = packet
                .filter(|_| !local)
                .and_then(|packet| survey.rules.forward(&packet, None));
            let (reachable, why) = match (dropped, wanted) {
                (Some(dropped), _) => (
                    false,
                    format!("dropped by {} {}", dropped.system, dropped.place),
                ),
                (None, true) => (true, "published".to_owned()),
                (None, false) => (
                    true,
                    "unknown: the kernel has it, but no running container publishes it".to_owned(),
                ),
            };
            ways.push(Way {
                network: network.name.clone(),
                from: if local { "this host" } else { "outside" }.to_owned(),
                to: format!(
                    "{} {}/{}",
                    title(&one.target).unwrap_or_else(|| "nobody".to_owned()),
                    at(one.target, &ports(one.target_port)),
                    one.protocol
                ),
                by: at(one.host, &ports(one.host_port)),
                reachable,
                why,
            });
        }
        for (name, bound, target) in &bounds {
            let there = live.iter().any(|one| {
                let last = one.host_port.saturating_add(one.count.saturating_sub(1));
                Some(one.target) == *target
                    && one.protocol == bound.protocol
                    && one.host == bound.host
                    && (one.host_port..=last).contains(&bound.host_port)
            });
            if there {
                continue;
            }
            // What cannot be translated is copied by the monitor.
            let spliced = bound.host.is_ipv6()
                && bound.protocol == Protocol::Tcp
                && (bound.host.is_loopback() || target.is_none());
            ways.push(Way {
                network: network.name.clone(),
                from: match bound.host.is_loopback() {
                    true => "this host",
                    false => "outside",
                }
                .to_owned(),
                to: format!("{name} port {}/{}", bound.port, bound.protocol),
                by: at(bound.host, &bound.host_port.to_string()),
                reachable: spliced,
                why: if spliced {
                    "copied by the container's monitor"
                } else {
                    "missing: the kernel's table does not have it"
                }
                .to_owned(),
            });
        }
        Ok(())
    }

    pub(crate) fn network_obstacles_now(&self, name: &str, fix: bool) -> Result<Vec<String>> {
        let network = self.network_named(name)?;
        if network.driver != DriverKind::Bridge {
            return Ok(Vec::new());
        }
        let found = self.obstacles(&network)?;
        if !fix {
            return Ok(found.iter().map(|(text, _)| text.clone()).collect());
        }
        let mut done: Vec<Vec<String>> = Vec::new();
        for (_, commands) in found {
            for words in commands {
                if !done.contains(&words) {
                    run(&words)?;
                    done.push(words);
                }
            }
        }
        Ok(self
            .obstacles(&network)?
            .into_iter()
            .map(|(text, _)| text)
            .collect())
    }

    /// What others drop of a network's packets, and what allows them.
    fn obstacles(&self, network: &Network) -> Result<Vec<(String, Vec<Vec<String>>)>> {
        let rules = Ruleset::load()?;
        let survey = self.survey(&rules)?;
        let own = firewall::table(&self.settings().run_root);
        let mut found: Vec<(String, Vec<Vec<String>>)> = Vec::new();
        let mut ways = Vec::new();
        if !network.internal {
            ways.push((Some(network), None, "what its containers send out"));
            ways.push((None, Some(network), "what comes for its published ports"));
        }
        if network.flag(option::ICC, true) && knarr_net::firewall_sees_bridged() {
            let what = "what its containers send each other";
            ways.push((Some(network), Some(network), what));
        }
        for ipv6 in [false, true] {
            for &(from, to, what) in &ways {
                let Some(mut packet) = survey.packet(from, to, ipv6) else {
                    continue;
                };
                packet.translated = from.is_none();
                let Some(dropped) = rules.forward(&packet, Some(&own)) else {
                    continue;
                };
                let commands = dropped.remedy(&network.interface);
                if found.iter().any(|(_, known)| *known == commands) {
                    continue;
                }
                let lines: Vec<_> = commands
                    .iter()
                    .map(|words| format!("`{}`", words.join(" ")))
                    .collect();
                let text = format!(
                    "network {}: {what} is dropped by {} {}; allow it with {}, or with \
                     `knarr network audit --fix`",
                    network.name,
                    dropped.system,
                    dropped.place,
                    lines.join(" and ")
                );
                found.push((text, commands));
            }
        }
        Ok(found)
    }
}

fn at(address: IpAddr, ports: &str) -> String {
    match address {
        IpAddr::V4(address) => format!("{address}:{ports}"),
        IpAddr::V6(address) => format!("[{address}]:{ports}"),
    }
}

/// Runs a command that changes another's firewall.
fn run(words: &[String]) -> Result<()> {
    let line = words.join(" ");
    let Some((program, args)) = words.split_first() else {
        return Ok(());
    };
    let hint = "run it yourself, or allow the packets in another way";
    let output = std::process::Command::new(program)
        .args(args)
        .output()
        .map_err(|error| Error::conflict(format!("cannot run `{line}`: {error}"), hint))?;
    if output.status.success() {
        return Ok(());
    }
    let told = String::from_utf8_lossy(&output.stderr);
    Err(Error::conflict(
        format!("`{line}` failed: {}", told.trim()),
        hint,
    ))
}
