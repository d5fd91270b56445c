//! Published ports in Docker's words, and the other way round.

use std::collections::BTreeMap;
use std::net::IpAddr;

use knarr_net::network::{Network, option};
use knarr_net::port::{Bound, PortRequest, Protocol};
use knarr_spec::docker::PortBinding;

use crate::record::Record;
use crate::{Error, Result};

/// A published port, for `port` and `ps`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct PublishedPort {
    /// In the container.
    pub port: u16,
    /// `tcp`, `udp` or `sctp`.
    pub protocol: &'static str,
    /// On the host.
    pub host: IpAddr,
    /// On the host.
    pub host_port: u16,
}

impl From<Bound> for PublishedPort {
    fn from(bound: Bound) -> Self {
        Self {
            port: bound.port,
            protocol: bound.protocol.name(),
            host: bound.host,
            host_port: bound.host_port,
        }
    }
}

/// What a container publishes: its bindings, neighbours joined to ranges, and with `-P` everything
/// else that it exposes.
pub(crate) fn requests(record: &Record, network: Option<&Network>) -> Result<Vec<PortRequest>> {
    let default = network
        .and_then(|network| network.options.get(option::HOST_ADDRESS))
        .and_then(|text| text.parse::<IpAddr>().ok())
        .filter(|address| !address.is_unspecified());
    let mut all = parse(&record.host.port_bindings, default)?;
    if record.host.publish_all_ports {
        let bound: Vec<_> = all.iter().map(|one| (one.port, one.protocol)).collect();
        for text in record.config.exposed_ports.keys() {
            let (port, protocol) = parse_port(text)?;
            if !bound.contains(&(port, protocol)) {
                all.push(PortRequest {
                    protocol,
                    port,
                    count: 1,
                    host: default,
                    host_ports: None,
                });
            }
        }
    }
    Ok(join(all))
}

/// Parses `HostConfig.PortBindings`.
pub(crate) fn parse(
    bindings: &BTreeMap<String, Vec<PortBinding>>,
    default: Option<IpAddr>,
) -> Result<Vec<PortRequest>> {
    let mut all = Vec::new();
    for (key, bindings) in bindings {
        let (port, protocol) = parse_port(key)?;
        for binding in bindings {
            all.push(parse_request(
                port,
                protocol,
                &binding.host_ip,
                &binding.host_port,
                default,
            )?);
        }
    }
    Ok(all)
}

/// One port, with its end on the host as Docker's flags write it.
pub(crate) fn parse_request(
    port: u16,
    protocol: Protocol,
    host_ip: &str,
    host_port: &str,
    default: Option<IpAddr>,
) -> Result<PortRequest> {
    let host = match host_ip.trim_start_matches('[').trim_end_matches(']') {
        "" => default,
        text => Some(
            text.parse::<IpAddr>()
                .map_err(|_| Error::invalid(format!("invalid IP address: {text}")))?,
        ),
    };
    let wrong = || Error::invalid(format!("invalid port specification: {host_port:?}"));
    let number = |text: &str| text.parse::<u16>().map_err(|_| wrong());
    let host_ports = match host_port {
        "" | "0" => None,
        text => Some(match text.split_once('-') {
            Some((first, last)) => (number(first)?, number(last)?),
            None => (number(text)?, number(text)?),
        }),
    };
    if host_ports.is_some_and(|(first, last)| first == 0 || first > last) {
        return Err(wrong());
    }
    Ok(PortRequest {
        protocol,
        port,
        count: 1,
        host,
        host_ports,
    })
}

/// `80/tcp`; without a protocol it is TCP.
pub(crate) fn parse_port(text: &str) -> Result<(u16, Protocol)> {
    let (port, protocol) = text.split_once('/').unwrap_or((text, "tcp"));
    let wrong = || Error::invalid(format!("invalid port: {text:?}"));
    let protocol = Protocol::parse(protocol).ok_or_else(wrong)?;
    let port = port
        .parse::<u16>()
        .ok()
        .filter(|port| *port > 0)
        .ok_or_else(wrong)?;
    Ok((port, protocol))
}

/// Joins ports that follow each other on both ends: a range is one element in the firewall.
fn join(mut all: Vec<PortRequest>) -> Vec<PortRequest> {
    all.sort_by_key(|one| (one.protocol, one.host, one.port, one.host_ports));
    let mut joined: Vec<PortRequest> = Vec::new();
    for one in all {
        let single = |request: &PortRequest| {
            let (first, last) = request.host_ports?;
            (u32::from(last) - u32::from(first) + 1 == u32::from(request.count)).then_some(first)
        };
        if let Some(last) = joined.last_mut()
            && (last.protocol, last.host) == (one.protocol, one.host)
            && last.port.checked_add(last.count) == Some(one.port)
            && let (Some(first), Some(next)) = (single(last), single(&one))
            && first.checked_add(last.count) == Some(next)
        {
            last.count += 1;
            last.host_ports = Some((first, next));
            continue;
        }
        joined.push(one);
    }
    joined
}

/// Docker's `PORTS` column: `0.0.0.0:8080->80/tcp, [::]:8080->80/tcp`, neighbours joined.
pub(crate) fn show(bound: &[Bound], exposed: &[String]) -> String {
    let mut parts = Vec::new();
    let mut sorted = bound.to_vec();
    sorted.sort_by_key(|one| (one.protocol, one.host, one.port, one.host_port));
    let mut rest = sorted.as_slice();
    while let Some((first, others)) = rest.split_first() {
        let follows = |(by, one): (u16, &Bound)| {
            (one.protocol, one.host) == (first.protocol, first.host)
                && first.port.checked_add(by) == Some(one.port)
                && first.host_port.checked_add(by) == Some(one.host_port)
        };
        let more = (1..)
            .zip(others)
            .take_while(|(by, one)| follows((*by, one)))
            .count();
        let range = |port: u16| match u16::try_from(more) {
            Ok(more) if more > 0 => format!("{port}-{}", port.saturating_add(more)),
            _ => port.to_string(),
        };
        let host = match first.host {
            IpAddr::V4(host) => host.to_string(),
            IpAddr::V6(host) => format!("[{host}]"),
        };
        let (host_port, port) = (range(first.host_port), range(first.port));
        parts.push(format!("{host}:{host_port}->{port}/{}", first.protocol));
        rest = others.get(more..).unwrap_or_default();
    }
    let mut only_exposed: Vec<(&str, u16)> = exposed
        .iter()
        .filter_map(|text| {
            let (port, protocol) = text.split_once('/')?;
            Some((protocol, port.parse().ok()?))
        })
        .filter(|(protocol, port)| {
            !bound
                .iter()
                .any(|one| one.port == *port && one.protocol.name() == *protocol)
        })
        .collect();
    only_exposed.sort_unstable();
    let mut rest = only_exposed.as_slice();
    while let Some((first, others)) = rest.split_first() {
        let more = (1..)
            .zip(others)
            .take_while(|(by, one)| one.0 == first.0 && first.1.checked_add(*by) == Some(one.1))
            .count();
        parts.push(match others.get(more.wrapping_sub(1)) {
            Some((_, last)) if more > 0 => format!("{}-{last}/{}", first.1, first.0),
            _ => format!("{}/{}", first.1, first.0),
        });
        rest = others.get(more..).unwrap_or_default();
    }
    parts.join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn neighbours_become_a_range() {
        let mut bindings = BTreeMap::new();
        let binding = |port: &str| PortBinding {
            host_ip: String::new(),
            host_port: port.to_owned(),
        };
        for (port, host) in [
            (80, "8080"),
            (81, "8081"),
            (82, "8082"),
            (84, "8084"),
            (85, "9000"),
        ] {
            bindings.insert(format!("{port}/tcp"), vec![binding(host)]);
        }
        bindings.insert("53/udp".to_owned(), vec![binding("8000-8010"), binding("")]);
        let all = join(parse(&bindings, None).unwrap());
        let shown: Vec<_> = all
            .iter()
            .map(|r| (r.port, r.count, r.host_ports))
            .collect();
        assert_eq!(
            shown,
            [
                (80, 3, Some((8080, 8082))),
                (84, 1, Some((8084, 8084))),
                (85, 1, Some((9000, 9000))),
                (53, 1, None),
                (53, 1, Some((8000, 8010))),
            ]
        );
    }

    #[test]
    fn ports_are_shown_as_docker_shows_them() {
        let bound = |host: &str, host_port, port| Bound {
            port,
            protocol: Protocol::Tcp,
            host: host.parse().unwrap(),
            host_port,
        };
        let all = [
            bound("0.0.0.0", 8080, 80),
            bound("::", 8080, 80),
            bound("0.0.0.0", 9000, 9000),
            bound("0.0.0.0", 9001, 9001),
        ];
        let exposed = ["80/tcp", "443/tcp", "444/tcp", "53/udp"].map(str::to_owned);
        assert_eq!(
            show(&all, &exposed),
            "0.0.0.0:8080->80/tcp, 0.0.0.0:9000-9001->9000-9001/tcp, [::]:8080->80/tcp, \
             443-444/tcp, 53/udp"
        );
    }

    #[test]
    fn wrong_ports_are_refused() {
        for bad in ["", "0/tcp", "65536/tcp", "80/icmp", "80 /tcp", "x"] {
            assert!(parse_port(bad).is_err(), "{bad:?}");
        }
        for (ip, port) in [
            ("1.2.3", "80"),
            ("", "80-70"),
            ("", "a"),
            ("", "0-5"),
            ("::x", ""),
        ] {
            assert!(
                parse_request(80, Protocol::Tcp, ip, port, None).is_err(),
                "{ip} {port}"
            );
        }
    }
}
