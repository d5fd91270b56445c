//! `--network` and its companions, and `-p`.

use std::collections::BTreeMap;
use std::net::IpAddr;

use knarr_spec::docker::{EndpointAddresses, EndpointSettings, PortBinding};

use crate::failure::{Failure, Result};
use crate::flag::Parsed;

/// The network mode, and how the container is on each network that was named.
pub(crate) fn networks(line: &Parsed) -> Result<(String, BTreeMap<String, EndpointSettings>)> {
    let mut all = Vec::new();
    for text in line.all("network").chain(line.all("net")) {
        all.push(one(text)?);
    }
    let mut aliases = line.list("network-alias");
    aliases.extend(line.list("net-alias"));
    let (ipv4, ipv6, mac) = (line.text("ip"), line.text("ip6"), line.text("mac-address"));
    let plain = !(aliases.is_empty() && ipv4.is_empty() && ipv6.is_empty() && mac.is_empty());
    if all.is_empty() {
        all.push(("default".to_owned(), EndpointSettings::default()));
    }
    let shares = |name: &str| {
        matches!(name, "host" | "none") || name.starts_with("container:") || name.starts_with("ns:")
    };
    if let [(first, _), _, ..] = all.as_slice() {
        let odd = all.iter().map(|(name, _)| name).find(|name| shares(name));
        if let Some(name) = odd {
            return Err(Failure::invalid(format!(
                "conflicting options: cannot attach both user-defined and non-user-defined network-modes: \
                 {first} and {name}"
            )));
        }
    }
    if plain {
        // As Docker: they belong to the first network.
        let Some((first, settings)) = all.first_mut() else {
            return Err(Failure::invalid("no name set for network"));
        };
        if shares(first) {
            return Err(Failure::invalid(format!(
                "conflicting options: --ip, --ip6, --mac-address, --network-alias and the network mode \
                 {first}"
            )));
        }
        for (flag, given, inside) in [
            (
                "--ip",
                ipv4,
                settings
                    .ipam_config
                    .as_ref()
                    .map(|a| a.ipv4_address.as_str()),
            ),
            (
                "--ip6",
                ipv6,
                settings
                    .ipam_config
                    .as_ref()
                    .map(|a| a.ipv6_address.as_str()),
            ),
            ("--mac-address", mac, Some(settings.mac_address.as_str())),
        ] {
            if !given.is_empty() && inside.is_some_and(|inside| !inside.is_empty()) {
                return Err(Failure::invalid(format!(
                    "conflicting options: cannot specify both {flag} and per-network address"
                )));
            }
        }
        settings.aliases.extend(aliases);
        if !mac.is_empty() {
            mac.clone_into(&mut settings.mac_address);
        }
        if !(ipv4.is_empty() && ipv6.is_empty()) {
            let addresses = settings.ipam_config.get_or_insert_default();
            for (given, place) in [
                (ipv4, &mut addresses.ipv4_address),
                (ipv6, &mut addresses.ipv6_address),
            ] {
                if !given.is_empty() {
                    given.clone_into(place);
                }
            }
        }
    }
    let mode = all
        .first()
        .map_or_else(String::new, |(name, _)| name.clone());
    if shares(&mode) {
        return Ok((mode, BTreeMap::new()));
    }
    let mut endpoints = BTreeMap::new();
    for (name, settings) in all {
        let name = if name == "default" {
            "bridge".to_owned()
        } else {
            name
        };
        if endpoints.insert(name.clone(), settings).is_some() {
            return Err(Failure::invalid(format!(
                "network {name:?} is specified multiple times"
            )));
        }
    }
    if endpoints.len() == 1 && endpoints.get("bridge") == Some(&EndpointSettings::default()) {
        endpoints.clear();
    }
    Ok((mode, endpoints))
}

/// A name, or `name=web,alias=db,ip=…` as Docker's long form has it.
fn one(text: &str) -> Result<(String, EndpointSettings)> {
    if text.is_empty() {
        return Err(Failure::invalid("no name set for network"));
    }
    if text == "container:" {
        return Err(Failure::invalid(
            "--net: invalid net mode: invalid container format container:<name|id>",
        ));
    }
    if !text.contains('=') || text.starts_with("ns:") {
        return Ok((text.to_owned(), EndpointSettings::default()));
    }
    let mut name = String::new();
    let mut settings = EndpointSettings::default();
    let mut addresses = EndpointAddresses::default();
    for part in text.split(',') {
        let (key, value) = part
            .split_once('=')
            .ok_or_else(|| Failure::invalid(format!("invalid field {part} in --network {text}")))?;
        match key.trim().to_lowercase().as_str() {
            "name" => value.clone_into(&mut name),
            "alias" => settings.aliases.push(value.to_owned()),
            "ip" => value.clone_into(&mut addresses.ipv4_address),
            "ip6" => value.clone_into(&mut addresses.ipv6_address),
            "mac-address" => value.clone_into(&mut settings.mac_address),
            "gw-priority" => {
                settings.gw_priority = value.parse().map_err(|_| {
                    Failure::invalid(format!("invalid gw-priority in --network: {value:?}"))
                })?;
            }
            "driver-opt" => {
                let (key, value) = value.split_once('=').unwrap_or((value, ""));
                settings
                    .driver_opts
                    .insert(key.to_owned(), value.to_owned());
            }
            _ => {
                return Err(Failure::invalid(format!(
                    "invalid field {part} in --network {text}"
                )));
            }
        }
    }
    if name.is_empty() {
        return Err(Failure::invalid(format!(
            "network name/id is not specified in {text:?}"
        )));
    }
    if addresses != EndpointAddresses::default() {
        settings.ipam_config = Some(addresses);
    }
    Ok((name, settings))
}

/// `--publish`, for the table of flags.
pub(crate) fn publish_check(text: &str) -> std::result::Result<(), String> {
    publish(text).map(|_| ())
}

/// `[ip:][host port]:port[/protocol]` with ranges (go-connections, `nat.ParsePortSpec`): one port of
/// the container each, with its end on the host.
pub(crate) fn publish(text: &str) -> std::result::Result<Vec<(String, PortBinding)>, String> {
    let (spec, protocol) = text.rsplit_once('/').unwrap_or((text, "tcp"));
    let protocol = protocol.to_lowercase();
    if !matches!(protocol.as_str(), "tcp" | "udp" | "sctp") {
        return Err(format!("invalid proto: {protocol}"));
    }
    let (rest, port) = spec.rsplit_once(':').unwrap_or(("", spec));
    let (ip, host) = match rest.rsplit_once(':') {
        Some((ip, host)) => (ip, host),
        None => ("", rest),
    };
    // `ip::port` and a bare IPv6 address are told apart by the brackets.
    let bare = ip.trim_start_matches('[').trim_end_matches(']');
    if !bare.is_empty() && bare.parse::<IpAddr>().is_err() {
        return Err(format!("invalid IP address: {bare}"));
    }
    if port.is_empty() {
        return Err(format!("no port specified: {text}<empty>"));
    }
    let range = |what: &str, text: &str| -> std::result::Result<(u16, u16), String> {
        let wrong = || format!("invalid {what}: {text}");
        let (first, last) = text.split_once('-').unwrap_or((text, text));
        let (first, last): (u16, u16) = (
            first.parse().map_err(|_| wrong())?,
            last.parse().map_err(|_| wrong())?,
        );
        if first > last || (what == "containerPort" && first == 0) {
            return Err(wrong());
        }
        Ok((first, last))
    };
    let (first, last) = range("containerPort", port)?;
    let binding = |host_port: String| PortBinding {
        host_ip: bare.to_owned(),
        host_port,
    };
    if host.is_empty() {
        return Ok((first..=last)
            .map(|port| (format!("{port}/{protocol}"), binding(String::new())))
            .collect());
    }
    let (host_first, host_last) = range("hostPort", host)?;
    if first == last && host_first != host_last {
        // A choice.
        return Ok(vec![(
            format!("{first}/{protocol}"),
            binding(host.to_owned()),
        )]);
    }
    if last - first != host_last - host_first {
        return Err(format!(
            "invalid ranges specified for container and host Ports: {port} and {host}"
        ));
    }
    Ok((first..=last)
        .zip(host_first..=host_last)
        .map(|(port, host)| (format!("{port}/{protocol}"), binding(host.to_string())))
        .collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_are_parsed_as_docker_parses_them() {
        let shown = |text: &str| match publish(text) {
            Ok(all) => all
                .iter()
                .map(|(key, b)| format!("{}|{}|{key}", b.host_ip, b.host_port))
                .collect::<Vec<_>>()
                .join(" "),
            Err(error) => error,
        };
        for (text, expected) in [
            ("80", "||80/tcp"),
            ("8080:80", "|8080|80/tcp"),
            ("53:53/udp", "|53|53/udp"),
            ("127.0.0.1:8080:80", "127.0.0.1|8080|80/tcp"),
            ("127.0.0.1::80", "127.0.0.1||80/tcp"),
            ("[::1]:8080:80", "::1|8080|80/tcp"),
            ("8000-8001:80-81", "|8000|80/tcp |8001|81/tcp"),
            ("8000-8010:80", "|8000-8010|80/tcp"),
            ("80-81", "||80/tcp ||81/tcp"),
            (
                "8000-8010:80-81",
                "invalid ranges specified for container and host Ports: 80-81 and 8000-8010",
            ),
            ("", "no port specified: <empty>"),
            ("8080:", "no port specified: 8080:<empty>"),
            ("1.2.3:1:1", "invalid IP address: 1.2.3"),
            ("a:80", "invalid hostPort: a"),
            ("80/icmp", "invalid proto: icmp"),
            ("70000", "invalid containerPort: 70000"),
            ("0", "invalid containerPort: 0"),
        ] {
            assert_eq!(shown(text), expected, "{text:?}");
        }
    }
}
