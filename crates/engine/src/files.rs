//! `/etc/hosts`, `/etc/resolv.conf` and `/etc/hostname` as Docker writes them.

use std::fmt::Write as _;
use std::net::IpAddr;
use std::path::Path;

use knarr_net::dns::Servers;

use crate::network::{Mode, mode_of};
use crate::record::Record;
use crate::spec::Files;
use crate::{Error, Result};

/// Writes the three files into the container's folder, new at every start.
pub(crate) fn write(record: &Record, gateway: Option<IpAddr>) -> Result<Files> {
    let host_network = record.host.network_mode == "host";
    let read = |path: &str| knarr_fs::read_to_string(Path::new(path)).unwrap_or_default();
    let mut resolv_conf = read("/etc/resolv.conf");
    if !host_network && only_systemd(&resolv_conf) {
        // What is behind systemd's stub on loopback, which a container cannot reach.
        resolv_conf = match read("/run/systemd/resolve/resolv.conf") {
            empty if empty.is_empty() => resolv_conf,
            servers => servers,
        };
    }
    let base = if host_network {
        Some(read("/etc/hosts"))
    } else {
        None
    };
    let folder = &record.paths.folder;
    let put = |name: &str, text: &str| -> Result<String> {
        let path = folder.join(name);
        publish(&path, text.as_bytes(), record.ids.map(|ids| ids.start))?;
        path.to_str()
            .map(str::to_owned)
            .ok_or_else(|| Error::invalid(format!("{} is not text (UTF-8)", path.display())))
    };
    Ok(Files {
        hosts: put("hosts", &hosts(record, base.as_deref(), gateway)?)?,
        resolv_conf: put("resolv.conf", &resolv(record, &resolv_conf)?)?,
        hostname: put("hostname", &format!("{}\n", record.config.hostname))?,
    })
}

fn only_systemd(text: &str) -> bool {
    let mut servers = text
        .lines()
        .filter_map(|line| line.trim().strip_prefix("nameserver"));
    servers
        .next()
        .is_some_and(|server| server.trim() == "127.0.0.53")
        && servers.next().is_none()
}

/// A file that everybody in the container may read and its root write. Not by rename: a bind mount
/// of a running container would go on showing the old one.
fn publish(path: &Path, bytes: &[u8], owner: Option<u32>) -> Result<()> {
    use rustix::fs::{Gid, Mode, OFlags, Uid};
    use std::io::Write as _;
    let flags =
        OFlags::WRONLY | OFlags::CREATE | OFlags::TRUNC | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let mode = Mode::from_raw_mode(0o644);
    let file =
        rustix::fs::open(path, flags, mode).map_err(knarr_fs::Error::of("create", "open", path))?;
    rustix::fs::fchmod(&file, mode).map_err(knarr_fs::Error::of(
        "change the mode of",
        "fchmod",
        path,
    ))?;
    if let Some(id) = owner {
        rustix::fs::fchown(&file, Some(Uid::from_raw(id)), Some(Gid::from_raw(id)))
            .map_err(knarr_fs::Error::of("change the owner of", "fchown", path))?;
    }
    std::fs::File::from(file)
        .write_all(bytes)
        .map_err(knarr_fs::Error::of_io("write", "write", path))?;
    Ok(())
}

/// `/etc/hosts`: the host's with its network, else loopback. The container's own lines are added by
/// its monitor, which knows its addresses. `gateway` is what `host-gateway` means.
pub(crate) fn hosts(
    record: &Record,
    base: Option<&str>,
    gateway: Option<IpAddr>,
) -> Result<String> {
    let mut text = match base {
        Some(text) => text.to_owned(),
        None => String::from(
            "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n\
             fe00::\tip6-localnet\nff00::\tip6-mcastprefix\nff02::1\tip6-allnodes\n\
             ff02::2\tip6-allrouters\n",
        ),
    };
    if !text.ends_with('\n') && !text.is_empty() {
        text.push('\n');
    }
    for extra in record.host.extra_hosts.iter().flatten() {
        let (name, address) = extra_host(extra, gateway)?;
        // Writing to a String cannot fail.
        writeln!(text, "{address}\t{name}").unwrap_or_default();
    }
    Ok(text)
}

/// `name:address` or `name=address`; nothing that could start another line.
/// `host-gateway` is the given address, and checked only where none is given.
pub(crate) fn extra_host(text: &str, gateway: Option<IpAddr>) -> Result<(&str, IpAddr)> {
    let bad = || {
        Error::invalid(format!(
            "invalid extra host: {text:?}, expected NAME:ADDRESS"
        ))
    };
    let (name, address) = text.split_once([':', '=']).ok_or_else(bad)?;
    let good = !name.is_empty()
        && name
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte));
    if !good {
        return Err(bad());
    }
    if address == "host-gateway" {
        return Ok((
            name,
            gateway.unwrap_or(IpAddr::V4(std::net::Ipv4Addr::LOCALHOST)),
        ));
    }
    let address = address.trim_start_matches('[').trim_end_matches(']');
    Ok((name, address.parse().map_err(|_| bad())?))
}

/// Who is asked for names that are not the networks' own: `--dns`, or the host's servers.
pub(crate) fn servers(record: &Record) -> Result<Servers> {
    let flags = &record.host.dns;
    if flags.is_empty() {
        return Ok(Servers::default());
    }
    let servers = flags
        .iter()
        .map(|server| Ok((dns_address(server)?, 53).into()));
    Ok(Servers::Fixed(servers.collect::<Result<_>>()?))
}

fn dns_address(text: &str) -> Result<IpAddr> {
    text.parse()
        .map_err(|_| Error::invalid(format!("invalid DNS address: {text:?}")))
}

/// `/etc/resolv.conf`: the host's, with what the flags replace. On networks of its own the container
/// asks its monitor, and a name without dots is tried as it is first: so are the networks' names.
/// Without any network the host's servers on loopback cannot be reached and are left out.
fn resolv(record: &Record, host: &str) -> Result<String> {
    let flags = &record.host;
    let mode = mode_of(&flags.network_mode);
    let of = |keyword: &str| -> Vec<String> {
        host.lines()
            .filter_map(|line| {
                let mut words = line.split_whitespace();
                (words.next()? == keyword).then(|| words.map(str::to_owned).collect::<Vec<_>>())
            })
            .flatten()
            .collect()
    };
    let nothing_asked =
        flags.dns.is_empty() && flags.dns_search.is_empty() && flags.dns_options.is_empty();
    if mode == Mode::Host && nothing_asked {
        return Ok(host.to_owned());
    }
    let given = flags.dns.iter().map(|server| dns_address(server));
    let given = given.collect::<Result<Vec<_>>>()?;
    let servers = match mode {
        Mode::Networks(_) => vec![IpAddr::V4(knarr_net::dns::ADDRESS)],
        _ if !given.is_empty() => given,
        _ => of("nameserver")
            .iter()
            .filter_map(|server| server.split('%').next()?.parse::<IpAddr>().ok())
            .filter(|address| mode == Mode::Host || !address.is_loopback())
            .collect(),
    };
    let mut text = String::new();
    for server in servers {
        // Writing to a String cannot fail.
        writeln!(text, "nameserver {server}").unwrap_or_default();
    }
    for (own, keyword) in [
        (&flags.dns_search, "search"),
        (&flags.dns_options, "options"),
    ] {
        let mut words = if own.is_empty() {
            of(keyword)
        } else {
            own.clone()
        };
        let one_line = |word: &String| {
            !word.is_empty() && !word.contains(|c: char| c.is_whitespace() || c.is_control())
        };
        if !words.iter().all(one_line) {
            return Err(Error::invalid(format!(
                "invalid DNS {keyword}: {:?}",
                words.join(" ")
            )));
        }
        let ndots = words.iter().any(|word| word.starts_with("ndots:"));
        if keyword == "options" && matches!(mode, Mode::Networks(_)) && !ndots {
            words.push("ndots:0".to_owned());
        }
        if !words.is_empty() && words != ["."] {
            writeln!(text, "{keyword} {}", words.join(" ")).unwrap_or_default();
        }
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(host: &str) -> Record {
        let mut record = crate::record::tests::example();
        record.config.hostname = "web".to_owned();
        record.host = serde_json::from_str(host).unwrap();
        record
    }

    #[test]
    fn hosts_has_the_container_and_what_was_added() {
        let record = record(
            r#"{"NetworkMode": "default", "ExtraHosts": ["db:10.0.0.2", "six=::2", "host:host-gateway"]}"#,
        );
        let text = hosts(&record, None, Some("10.0.0.1".parse().unwrap())).unwrap();
        assert!(text.starts_with("127.0.0.1\tlocalhost\n"), "{text}");
        assert!(
            text.ends_with("10.0.0.2\tdb\n::2\tsix\n10.0.0.1\thost\n"),
            "{text}"
        );
    }

    #[test]
    fn no_flag_adds_a_line_of_its_own() {
        for bad in [
            "db",
            "db:no",
            "a b:10.0.0.1",
            "db:10.0.0.1\n10.0.0.2 bank",
            "x\ny:10.0.0.1",
        ] {
            assert!(extra_host(bad, None).is_err(), "{bad:?}");
        }
        for bad in [
            r#"{"Dns": ["1.1.1.1\nnameserver 6.6.6.6"]}"#,
            r#"{"DnsSearch": ["a\nb"]}"#,
            r#"{"DnsOptions": ["ndots:1 x"]}"#,
        ] {
            assert!(resolv(&record(bad), "").is_err(), "{bad}");
        }
    }

    #[test]
    fn names_are_asked_of_the_monitor_or_of_the_host() {
        let host =
            "# mine\nnameserver 127.0.0.1\nnameserver 9.9.9.9\nsearch a b\noptions timeout:2\n";
        let text = |flags: &str| resolv(&record(flags), host).unwrap();
        for (flags, expected) in [
            (
                "{}",
                "nameserver 127.0.0.11\nsearch a b\noptions timeout:2 ndots:0\n",
            ),
            (
                r#"{"Dns": ["1.1.1.1"], "DnsSearch": ["."], "DnsOptions": ["ndots:5"]}"#,
                "nameserver 127.0.0.11\noptions ndots:5\n",
            ),
            (
                r#"{"NetworkMode": "none"}"#,
                "nameserver 9.9.9.9\nsearch a b\noptions timeout:2\n",
            ),
            (
                r#"{"NetworkMode": "none", "Dns": ["1.1.1.1"]}"#,
                "nameserver 1.1.1.1\nsearch a b\noptions timeout:2\n",
            ),
            (r#"{"NetworkMode": "host"}"#, host),
            (
                r#"{"NetworkMode": "host", "DnsSearch": ["c"]}"#,
                "nameserver 127.0.0.1\nnameserver 9.9.9.9\nsearch c\noptions timeout:2\n",
            ),
        ] {
            assert_eq!(text(flags), expected, "{flags}");
        }
        let servers = |flags: &str| servers(&record(flags)).unwrap();
        assert_eq!(servers("{}"), Servers::File("/etc/resolv.conf".into()));
        assert_eq!(
            servers(r#"{"Dns": ["1.1.1.1", "::1"]}"#),
            Servers::Fixed(vec![
                "1.1.1.1:53".parse().unwrap(),
                "[::1]:53".parse().unwrap()
            ])
        );
    }

    /// B13: no byte in any field makes a second record, or one of another kind.
    #[test]
    fn every_byte_in_every_field_makes_one_record_or_an_error() {
        let mut accepted = 0;
        for byte in 0..=255u32 {
            let Some(odd) = char::from_u32(byte) else {
                continue;
            };
            let mut record = record("{}");
            record.host.extra_hosts = Some(vec![format!("d{odd}b:10.0.0.2")]);
            if let Ok(text) = hosts(&record, Some(""), None) {
                let words: Vec<&str> = text.split(char::is_whitespace).collect();
                assert_eq!(words, ["10.0.0.2", &format!("d{odd}b"), ""], "{odd:?}");
                accepted += 1;
            }
            record.host.extra_hosts = Some(vec![format!("db:10.0.0.{odd}2")]);
            if let Ok(text) = hosts(&record, Some(""), None) {
                assert_eq!(text.lines().count(), 1, "{odd:?}");
                assert!(text.ends_with("\tdb\n"), "{text:?}");
            }
            record.host.extra_hosts = None;
            for field in ["search", "options", "nameserver"] {
                let value = vec![format!("a{odd}b")];
                record.host.dns_search = Vec::new();
                record.host.dns_options = Vec::new();
                record.host.dns = Vec::new();
                match field {
                    "search" => record.host.dns_search = value,
                    "options" => record.host.dns_options = value,
                    _ => record.host.dns = value,
                }
                if let Ok(text) = resolv(&record, "") {
                    let keywords: Vec<&str> = text
                        .lines()
                        .filter_map(|line| line.split(' ').next())
                        .collect();
                    let expected: &[&str] = match field {
                        "search" => &["nameserver", "search", "options"],
                        _ => &["nameserver", "options"],
                    };
                    assert_eq!(keywords, expected, "{field} {odd:?}: {text:?}");
                    let line = text.lines().find(|line| line.starts_with(field)).unwrap();
                    let words = line.split_whitespace().count();
                    assert_eq!(words, if field == "options" { 3 } else { 2 }, "{odd:?}");
                    accepted += 1;
                }
            }
        }
        assert!(accepted > 400, "{accepted}");
    }
}
