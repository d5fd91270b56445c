//! The small languages inside of single flags: devices, limits, ports, files of variables.

use std::collections::BTreeMap;
use std::path::Path;

use knarr_spec::docker::{DeviceMapping, RestartPolicy, Ulimit};

/// A relative path made absolute, as the shell's `./` is meant.
pub(crate) fn absolute(path: &str) -> Result<String, String> {
    let made = std::path::absolute(path).map_err(|error| format!("{path}: {error}"))?;
    // `absolute` keeps `..`; Docker's filepath.Abs does not.
    let mut clean = std::path::PathBuf::from("/");
    for component in made.components() {
        match component {
            std::path::Component::Normal(name) => clean.push(name),
            std::path::Component::ParentDir => {
                clean.pop();
            }
            _ => {}
        }
    }
    let clean = clean.into_os_string().into_string();
    clean.map_err(|path| format!("{} is not UTF-8", Path::new(&path).display()))
}

pub(crate) fn device_check(text: &str) -> Result<(), String> {
    device(text).map(|_| ())
}

/// `host[:container][:rwm]`.
pub(crate) fn device(text: &str) -> Result<DeviceMapping, String> {
    let is_mode = |mode: &str| {
        !mode.is_empty() && mode.len() <= 3 && mode.bytes().all(|b| matches!(b, b'r' | b'w' | b'm'))
    };
    let parts: Vec<&str> = text.split(':').collect();
    let (host, container, mode) = match parts.as_slice() {
        [host] => (*host, *host, "rwm"),
        [host, mode] if is_mode(mode) => (*host, *host, *mode),
        [host, container] => (*host, *container, "rwm"),
        [host, container, mode] if is_mode(mode) => (*host, *container, *mode),
        [_, _, mode] => return Err(format!("bad mode specified: {mode}")),
        _ => return Err(format!("bad format for path: {text}")),
    };
    if host.contains('=') && !host.starts_with('/') {
        return Err("devices by vendor name (CDI) are not served by Knarr yet".to_owned());
    }
    for path in [host, container] {
        if path.is_empty() {
            return Err(format!("bad format for path: {text}"));
        }
        if !path.starts_with('/') {
            return Err(format!("{path} is not an absolute path"));
        }
    }
    Ok(DeviceMapping {
        path_on_host: host.to_owned(),
        path_in_container: container.to_owned(),
        cgroup_permissions: mode.to_owned(),
    })
}

/// `c 1:3 rwm`, also with `a` and `*`.
pub(crate) fn device_rule(text: &str) -> Result<(), String> {
    let wrong = || format!("invalid device cgroup format '{text}'");
    let words: Vec<&str> = text.split(' ').collect();
    let [kind, numbers, access] = words.as_slice() else {
        return Err(wrong());
    };
    let number = |n: &str| n == "*" || (!n.is_empty() && n.bytes().all(|b| b.is_ascii_digit()));
    let pair = numbers.split_once(':');
    let good = matches!(*kind, "a" | "b" | "c")
        && pair.is_some_and(|(major, minor)| number(major) && number(minor))
        && (1..=3).contains(&access.len())
        && access.bytes().all(|b| matches!(b, b'r' | b'w' | b'm'));
    if good { Ok(()) } else { Err(wrong()) }
}

pub(crate) fn ulimit_check(text: &str) -> Result<(), String> {
    ulimit(text).map(|_| ())
}

/// `name=soft[:hard]`; -1 is without limit.
pub(crate) fn ulimit(text: &str) -> Result<Ulimit, String> {
    let Some((name, limits)) = text.split_once('=') else {
        return Err(format!("invalid ulimit argument: {text}"));
    };
    if !knarr_spec::docker::ULIMITS.contains(&name) {
        return Err(format!("invalid ulimit type: {name}"));
    }
    let number = |text: &str| {
        text.parse::<i64>()
            .map_err(|_| format!("strconv.ParseInt: parsing {text:?}: invalid syntax"))
    };
    let limits: Vec<&str> = limits.split(':').collect();
    let (soft, hard) = match limits.as_slice() {
        [soft] => (number(soft)?, number(soft)?),
        [soft, hard] => (number(soft)?, number(hard)?),
        _ => {
            return Err(format!(
                "too many limit value arguments - {}, can only have up to two, `soft[:hard]`",
                limits.join(":")
            ));
        }
    };
    if hard != -1 && soft == -1 {
        return Err(format!(
            "ulimit soft limit must be less than or equal to hard limit: soft: -1 (unlimited), \
             hard: {hard}"
        ));
    }
    if hard != -1 && soft > hard {
        return Err(format!(
            "ulimit soft limit must be less than or equal to hard limit: {soft} > {hard}"
        ));
    }
    Ok(Ulimit {
        name: name.to_owned(),
        hard,
        soft,
    })
}

/// `net_admin` is `CAP_NET_ADMIN`; `all` is `ALL` and stands alone.
pub(crate) fn capabilities<'a>(names: impl Iterator<Item = &'a str>) -> Vec<String> {
    let mut full: Vec<String> = names
        .map(|name| name.trim().to_uppercase())
        .map(|name| match name.as_str() {
            "ALL" | "CAP_ALL" => "ALL".to_owned(),
            full if full.starts_with("CAP_") => name,
            short => format!("CAP_{short}"),
        })
        .collect();
    full.sort();
    full.dedup();
    if full.iter().any(|name| name == "ALL") {
        full.retain(|name| name == "ALL");
    }
    full
}

/// Docker's list of kernel settings that have a namespace.
pub(crate) fn sysctl(text: &str) -> Result<(), String> {
    const NAMES: &[&str] = &[
        "kernel.msgmax",
        "kernel.msgmnb",
        "kernel.msgmni",
        "kernel.sem",
        "kernel.shmall",
        "kernel.shmmax",
        "kernel.shmmni",
        "kernel.shm_rmid_forced",
    ];
    let refused = || format!("sysctl '{text}' is not allowed");
    let (name, _) = text.split_once('=').ok_or_else(refused)?;
    if NAMES.contains(&name) || name.starts_with("net.") || name.starts_with("fs.mqueue.") {
        return Ok(());
    }
    Err(refused())
}

/// `host:ip` or `host=ip`, also with `host-gateway`.
pub(crate) fn extra_host(text: &str) -> Result<(), String> {
    let bad = || format!("bad format for add-host: {text:?}");
    let split = text.split_once('=').or_else(|| text.split_once(':'));
    let (name, address) = split.ok_or_else(bad)?;
    if name.is_empty() {
        return Err(bad());
    }
    let plain = address
        .strip_prefix('[')
        .and_then(|a| a.strip_suffix(']'))
        .unwrap_or(address);
    if address == "host-gateway" || plain.parse::<std::net::IpAddr>().is_ok() {
        return Ok(());
    }
    Err(format!("invalid IP address in add-host: {address:?}"))
}

/// An IP address.
pub(crate) fn address(text: &str) -> Result<(), String> {
    match text.trim().parse::<std::net::IpAddr>() {
        Ok(_) => Ok(()),
        Err(_) => Err(format!("IP address is not correctly formatted: {text}")),
    }
}

/// An IP address.
pub(crate) fn ip(text: &str) -> Result<(), String> {
    match text.parse::<std::net::IpAddr>() {
        Ok(_) => Ok(()),
        Err(_) => Err(format!("{text} is not an ip address")),
    }
}

pub(crate) fn port_check(text: &str) -> Result<(), String> {
    ports(text).map(|_| ())
}

/// `80`, `80/udp` or `8000-8010/tcp`, as `80/udp` each.
pub(crate) fn ports(text: &str) -> Result<Vec<String>, String> {
    let (range, protocol) = text.split_once('/').unwrap_or((text, "tcp"));
    let protocol = protocol.to_lowercase();
    if !matches!(protocol.as_str(), "tcp" | "udp" | "sctp") {
        return Err(format!("invalid proto: {protocol}"));
    }
    let wrong = || format!("invalid range format for --expose: {text}");
    let (first, last) = range.split_once('-').unwrap_or((range, range));
    let first: u16 = first.parse().map_err(|_| wrong())?;
    let last: u16 = last.parse().map_err(|_| wrong())?;
    if first > last {
        return Err(wrong());
    }
    Ok((first..=last)
        .map(|port| format!("{port}/{protocol}"))
        .collect())
}

/// `no`, `always`, `unless-stopped`, `on-failure[:N]`.
pub(crate) fn restart(text: &str) -> Result<RestartPolicy, String> {
    let (name, count) = match text.split_once(':') {
        Some((name, count)) => (name, Some(count)),
        None => (text, None),
    };
    let maximum_retry_count = match count {
        None => 0,
        Some(count) => count
            .parse::<i64>()
            .map_err(|_| "invalid restart policy format: maximum retry count must be an integer")?,
    };
    match name {
        "" if count.is_some() => {
            return Err(
                "invalid restart policy format: no policy provided before colon".to_owned(),
            );
        }
        "on-failure" if maximum_retry_count < 0 => {
            return Err(
                "invalid restart policy: maximum retry count cannot be negative".to_owned(),
            );
        }
        "on-failure" => {}
        "" | "no" | "always" | "unless-stopped" if maximum_retry_count == 0 => {}
        "no" | "always" | "unless-stopped" => {
            return Err(
                "invalid restart policy: maximum retry count can only be used with 'on-failure'"
                    .to_owned(),
            );
        }
        _ => {
            return Err(format!(
                "invalid restart policy: unknown policy '{name}'; use one of 'no', 'always', \
                 'on-failure', or 'unless-stopped'"
            ));
        }
    }
    Ok(RestartPolicy {
        name: if name.is_empty() {
            "no".to_owned()
        } else {
            name.to_owned()
        },
        maximum_retry_count,
    })
}

/// `key=value` texts as a map; a key alone has an empty value.
pub(crate) fn map<'a>(pairs: impl IntoIterator<Item = &'a str>) -> BTreeMap<String, String> {
    let split = |pair: &'a str| pair.split_once('=').unwrap_or((pair, ""));
    pairs
        .into_iter()
        .map(split)
        .map(|(key, value)| (key.to_owned(), value.to_owned()))
        .collect()
}

/// `NAME` becomes `NAME=value` where the environment has it.
pub(crate) fn from_environment(entry: &str) -> String {
    if entry.contains('=') {
        return entry.to_owned();
    }
    match std::env::var(entry) {
        Ok(value) => format!("{entry}={value}"),
        // Docker's engine takes a bare name as "unset what the image sets".
        Err(_) => entry.to_owned(),
    }
}

/// The lines of a file of variables or labels. Blank lines and those that begin with `#` are
/// skipped, values are taken as they are. `bare` says what a name without a value becomes.
pub(crate) fn lines(
    bytes: &[u8],
    bare: &dyn Fn(&str) -> Option<String>,
) -> Result<Vec<String>, String> {
    let bytes = bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(bytes);
    let mut entries = Vec::new();
    for (index, line) in bytes.split(|b| *b == b'\n').enumerate() {
        let number = index + 1;
        let Ok(line) = std::str::from_utf8(line) else {
            return Err(format!("invalid utf8 bytes at line {number}"));
        };
        let line = line.strip_suffix('\r').unwrap_or(line).trim_start();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let (name, value) = match line.split_once('=') {
            Some((name, value)) => (name, Some(value)),
            None => (line, None),
        };
        if name.is_empty() {
            return Err(format!("no variable name on line '{line}'"));
        }
        if name.contains(char::is_whitespace) {
            return Err(format!("variable '{name}' contains whitespaces"));
        }
        match value {
            Some(_) => entries.push(line.to_owned()),
            None => entries.extend(bare(name)),
        }
    }
    Ok(entries)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_are_host_container_and_access() {
        let show = |text| {
            device(text).map(|d| {
                let paths = format!("{} {}", d.path_on_host, d.path_in_container);
                format!("{paths} {}", d.cgroup_permissions)
            })
        };
        for (text, expected) in [
            ("/dev/null", "/dev/null /dev/null rwm"),
            ("/dev/null:r", "/dev/null /dev/null r"),
            ("/dev/null:/dev/x", "/dev/null /dev/x rwm"),
            ("/dev/null:/dev/x:rw", "/dev/null /dev/x rw"),
        ] {
            assert_eq!(show(text), Ok(expected.to_owned()), "{text}");
        }
        for (text, error) in [
            ("", "bad format for path: "),
            ("/dev/a:/dev/b:x", "bad mode specified: x"),
            ("dev/a", "dev/a is not an absolute path"),
            ("/a:/b:/c:rw", "bad format for path: /a:/b:/c:rw"),
            (
                "nvidia.com/gpu=all",
                "devices by vendor name (CDI) are not served by Knarr yet",
            ),
        ] {
            assert_eq!(show(text), Err(error.to_owned()), "{text}");
        }
        assert!(device_rule("c 1:* rwm").is_ok());
        assert!(device_rule("x 1:3 rwm").is_err());
        assert!(device_rule("c 1 rwm").is_err());
    }

    #[test]
    fn limits_are_soft_and_hard() {
        for (text, soft, hard) in [
            ("nofile=1024", 1024, 1024),
            ("nofile=1024:2048", 1024, 2048),
            ("memlock=-1:-1", -1, -1),
            ("core=0:-1", 0, -1),
        ] {
            let limit = ulimit(text).unwrap();
            assert_eq!((limit.soft, limit.hard), (soft, hard), "{text}");
        }
        for (text, error) in [
            ("nofile", "invalid ulimit argument: nofile"),
            ("foo=1", "invalid ulimit type: foo"),
            (
                "nofile=x",
                "strconv.ParseInt: parsing \"x\": invalid syntax",
            ),
            (
                "nofile=2:1",
                "ulimit soft limit must be less than or equal to hard limit: 2 > 1",
            ),
            (
                "nofile=-1:1",
                "ulimit soft limit must be less than or equal to hard limit: soft: -1 (unlimited), \
                 hard: 1",
            ),
            (
                "nofile=1:2:3",
                "too many limit value arguments - 1:2:3, can only have up to two, `soft[:hard]`",
            ),
        ] {
            assert_eq!(ulimit(text).unwrap_err(), error);
        }
    }

    #[test]
    fn restart_policies_are_four() {
        for (text, name, count) in [
            ("no", "no", 0),
            ("", "no", 0),
            ("always", "always", 0),
            ("unless-stopped", "unless-stopped", 0),
            ("on-failure", "on-failure", 0),
            ("on-failure:3", "on-failure", 3),
        ] {
            let policy = restart(text).unwrap();
            assert_eq!(
                (policy.name.as_str(), policy.maximum_retry_count),
                (name, count)
            );
        }
        for bad in ["foo", "always:3", "on-failure:x", "on-failure:-1", ":3"] {
            assert!(restart(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn files_of_variables_are_read_line_by_line() {
        let bare = |name: &str| (name == "HOME").then(|| "HOME=/root".to_owned());
        let text = b"\xef\xbb\xbfA=1\n# comment\n\n  B= x y \nHOME\nMISSING\nC=a=b\r\nD=";
        assert_eq!(
            lines(text, &bare).unwrap(),
            ["A=1", "B= x y ", "HOME=/root", "C=a=b", "D="]
        );
        for (text, error) in [
            (&b"=x"[..], "no variable name on line '=x'"),
            (b"A B=x", "variable 'A B' contains whitespaces"),
            (b"A=1\n\xff=2", "invalid utf8 bytes at line 2"),
        ] {
            assert_eq!(lines(text, &bare).unwrap_err(), error);
        }
    }

    #[test]
    fn ports_addresses_and_kernel_settings() {
        assert_eq!(ports("80").unwrap(), ["80/tcp"]);
        assert_eq!(ports("80-82/UDP").unwrap(), ["80/udp", "81/udp", "82/udp"]);
        assert!(ports("82-80").is_err() && ports("80/x").is_err() && ports("99999").is_err());
        assert!(extra_host("a:127.0.0.1").is_ok() && extra_host("a=::1").is_ok());
        assert!(extra_host("a:[::1]").is_ok() && extra_host("a:host-gateway").is_ok());
        assert!(extra_host("a").is_err() && extra_host("a:b").is_err());
        assert!(sysctl("net.core.somaxconn=1").is_ok() && sysctl("kernel.sem=1").is_ok());
        assert!(sysctl("kernel.panic=1").is_err() && sysctl("net.core.somaxconn").is_err());
        assert_eq!(absolute("/a/../b/./c").unwrap(), "/b/c");
    }
}
