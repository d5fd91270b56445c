//! The request as a whole: defaults filled in, contradictions refused, in Docker's words.
//!
//! Runs on the final configuration, after the image's part is merged in, so nothing can be added
//! behind its back.

use std::collections::BTreeSet;

use knarr_spec::docker::{ContainerConfig, HostConfig, RestartPolicy};

use crate::network::{Mode, mode_of, ports};
use crate::spec::facts::Facts;
use crate::{Error, Result};

/// Docker's default for `/dev/shm`, in bytes.
const SHM_SIZE: i64 = 64 << 20;
/// The least memory a container may be limited to, in bytes.
const MIN_MEMORY: i64 = 6 << 20;

/// Fills in Docker's defaults, checks everything that needs no other object, and gives warnings.
pub(crate) fn settle(
    config: &mut ContainerConfig,
    host: &mut HostConfig,
    facts: &Facts,
) -> Result<Vec<String>> {
    let mut warnings = Vec::new();
    not_served(host)?;
    defaults(host);
    modes(config, host)?;
    if host.network_mode == "host" && publishes(host) {
        warnings.push("Published ports are discarded when using host network mode".to_owned());
    }
    resources(host, facts, &mut warnings)?;
    restart(host)?;
    log(host)?;
    security(host)?;
    crate::spec::capabilities::bounding(host)?;
    crate::spec::capabilities::check(host, facts.capabilities)?;
    crate::spec::ulimits(host)?;
    hostname(config)?;
    if let Some(signal) = &config.stop_signal {
        crate::signal::parse(signal)?;
    }
    for rule in host.device_cgroup_rules.iter().flatten() {
        if crate::spec::devices::parse_rule(rule).is_none() {
            return Err(Error::invalid(format!(
                "invalid device cgroup format '{rule}'"
            )));
        }
    }
    for (name, value) in &host.sysctls {
        sysctl(name, value, host)?;
    }
    if !(-1000..=1000).contains(&host.oom_score_adj) {
        return Err(Error::invalid(format!(
            "Invalid value {}, range for oom score adj is [-1000, 1000]",
            host.oom_score_adj
        )));
    }
    Ok(warnings)
}

/// What Docker knows and Knarr does not serve yet: refused by name, never ignored.
fn not_served(host: &HostConfig) -> Result<()> {
    let refuse = |what: String, reason| Err(Error::Unsupported { what, reason });
    if host.links.as_ref().is_some_and(|links| !links.is_empty()) {
        return refuse(
            "--link".to_owned(),
            "containers on the same network reach each other by name",
        );
    }
    if !host.volume_driver.is_empty() && host.volume_driver != "local" {
        return refuse(
            format!("volume driver `{}`", host.volume_driver),
            "there are no volume plugins; `local` is the one driver",
        );
    }
    if !matches!(host.isolation.as_str(), "" | "default" | "process") {
        return refuse(
            format!("isolation `{}`", host.isolation),
            "only `process` exists so far",
        );
    }
    if !matches!(host.runtime.as_str(), "" | "knarr") {
        return refuse(
            format!("runtime `{}`", host.runtime),
            "other runtimes cannot be driven yet",
        );
    }
    if host
        .annotations
        .as_ref()
        .is_some_and(|all| all.keys().any(|key| reserved(key)))
    {
        return refuse(
            "an annotation that begins with `knarr.`".to_owned(),
            "it is Knarr's own",
        );
    }
    if !host.cgroup.is_empty() {
        return refuse(
            format!("cgroup `{}`", host.cgroup),
            "it is not part of Docker's any more",
        );
    }
    Ok(())
}

/// Annotations that a user cannot set.
fn reserved(key: &str) -> bool {
    key.starts_with("knarr.") || key.starts_with("io.knarr.")
}

fn defaults(host: &mut HostConfig) {
    let fill = |field: &mut String, default: &str| {
        if field.is_empty() {
            default.clone_into(field);
        }
    };
    fill(&mut host.network_mode, "default");
    fill(&mut host.ipc_mode, "private");
    fill(&mut host.cgroupns_mode, "private");
    fill(&mut host.log_config.kind, "json-file");
    fill(&mut host.restart_policy.name, "no");
    fill(&mut host.runtime, "knarr");
    fill(&mut host.isolation, "process");
    if host.shm_size == 0 {
        host.shm_size = SHM_SIZE;
    }
    if host.memory > 0 && host.memory_swap == 0 {
        host.memory_swap = host.memory.saturating_mul(2);
    }
    if host.privileged {
        host.masked_paths.get_or_insert_default();
        host.readonly_paths.get_or_insert_default();
    }
}

fn publishes(host: &HostConfig) -> bool {
    host.publish_all_ports || !host.port_bindings.is_empty()
}

/// Which namespaces are whose.
fn modes(config: &ContainerConfig, host: &HostConfig) -> Result<()> {
    let network = host.network_mode.as_str();
    let check = |field: &str, value: &str, good: &[&str]| {
        let joined = value
            .strip_prefix("container:")
            .is_some_and(|name| !name.is_empty());
        if good.contains(&value) || (good.contains(&"container:") && joined) {
            Ok(())
        } else {
            Err(Error::invalid(format!("invalid {field} mode: {value}")))
        }
    };
    match mode_of(network) {
        Mode::Container("") => check("network", network, &[])?,
        Mode::Namespace(path) if !path.starts_with('/') => check("network", network, &[])?,
        Mode::Networks(name) => knarr_net::network::check_name(name)?,
        Mode::Container(_) if publishes(host) => {
            return Err(Error::invalid(
                "conflicting options: port publishing and the container type network mode",
            ));
        }
        _ => {}
    }
    ports::parse(&host.port_bindings, None)?;
    check(
        "IPC",
        &host.ipc_mode,
        &["none", "private", "shareable", "host", "container:"],
    )?;
    check("PID", &host.pid_mode, &["", "host", "container:"])?;
    check("UTS", &host.uts_mode, &["", "host"])?;
    check("user namespace", &host.userns_mode, &["", "host", "auto"])?;
    check(
        "cgroup namespace",
        &host.cgroupns_mode,
        &["private", "host"],
    )?;
    if network.starts_with("container:") {
        if !config.hostname.is_empty() {
            return Err(Error::invalid(
                "conflicting options: hostname and the network mode",
            ));
        }
        if !host.dns.is_empty() {
            return Err(Error::invalid(
                "conflicting options: dns and the network mode",
            ));
        }
        if host
            .extra_hosts
            .as_ref()
            .is_some_and(|hosts| !hosts.is_empty())
        {
            return Err(Error::invalid(
                "conflicting options: custom host-to-IP mapping and the network mode",
            ));
        }
    }
    if host.uts_mode == "host" && !config.hostname.is_empty() {
        return Err(Error::invalid(
            "conflicting options: hostname and the UTS mode",
        ));
    }
    if host.userns_mode == "auto" {
        for (flag, mode) in [
            ("--pid", &host.pid_mode),
            ("--ipc", &host.ipc_mode),
            ("--network", &host.network_mode),
        ] {
            if mode == "host" || mode.starts_with("container:") {
                return Err(Error::invalid_hint(
                    format!("{flag} {mode} and --userns auto cannot be combined"),
                    "a user namespace has no rights over namespaces that belong to another one",
                ));
            }
        }
        if host.privileged {
            return Err(Error::invalid(
                "privileged mode is incompatible with user namespaces.  You must run the container \
                 in the host namespace when running privileged mode",
            ));
        }
    }
    Ok(())
}

fn resources(host: &mut HostConfig, facts: &Facts, warnings: &mut Vec<String>) -> Result<()> {
    let refuse = |reason: &str| Err(Error::invalid(reason));
    if host.memory != 0 && host.memory < MIN_MEMORY {
        return refuse("Minimum memory limit allowed is 6MB");
    }
    if host.memory > 0 && host.memory_swap > 0 && host.memory_swap < host.memory {
        return refuse("Minimum memoryswap limit should be larger than memory limit, see usage");
    }
    if host.memory == 0 && host.memory_swap > 0 {
        return refuse(
            "You should always set the Memory limit when using Memoryswap limit, see usage",
        );
    }
    if let Some(swappiness) = host.memory_swappiness
        && !(-1..=100).contains(&swappiness)
    {
        return Err(Error::invalid(format!(
            "Invalid value: {swappiness}, valid memory swappiness range is 0-100"
        )));
    }
    if host.memory_reservation != 0 && host.memory_reservation < MIN_MEMORY {
        return refuse("Minimum memory reservation allowed is 6MB");
    }
    if host.memory > 0 && host.memory_reservation > 0 && host.memory < host.memory_reservation {
        return refuse(
            "Minimum memory limit can not be less than memory reservation limit, see usage",
        );
    }
    if host.oom_kill_disable == Some(true) && host.memory == 0 {
        warnings.push(
            "OOM killer is disabled for the container, but no memory limit is set, this can result \
             in the system running out of resources."
                .to_owned(),
        );
    }
    if host.nano_cpus != 0 {
        if host.cpu_period != 0 {
            return refuse("Conflicting options: Nano CPUs and CPU Period cannot both be set");
        }
        if host.cpu_quota != 0 {
            return refuse("Conflicting options: Nano CPUs and CPU Quota cannot both be set");
        }
        let all = i64::from(facts.cpus).saturating_mul(1_000_000_000);
        if host.nano_cpus < 0 || host.nano_cpus > all {
            return Err(Error::invalid(format!(
                "range of CPUs is from 0.01 to {0}.00, as there are only {0} CPUs available",
                facts.cpus
            )));
        }
    }
    if host.cpu_shares < 0 {
        return Err(Error::invalid(format!(
            "invalid CPU shares ({}): value must be a positive integer",
            host.cpu_shares
        )));
    }
    if host.cpu_period != 0 && !(1_000..=1_000_000).contains(&host.cpu_period) {
        return refuse(
            "CPU cfs period can not be less than 1ms (i.e. 1000) or larger than 1s (i.e. 1000000)",
        );
    }
    if host.cpu_quota > 0 && host.cpu_quota < 1_000 {
        return refuse("CPU cfs quota can not be less than 1ms (i.e. 1000)");
    }
    let nodes = if host.cpuset_mems.is_empty() {
        ""
    } else {
        facts.memory_nodes()
    };
    for (what, asked, there) in [
        ("CPUs", &host.cpuset_cpus, facts.cpu_list.as_str()),
        ("Memory Nodes", &host.cpuset_mems, nodes),
    ] {
        if asked.is_empty() {
            continue;
        }
        let word = if what == "CPUs" { "cpus" } else { "mems" };
        let Some(wanted) = parse_list(asked) else {
            return Err(Error::invalid(format!(
                "Invalid value {asked} for cpuset {word}"
            )));
        };
        if !there.is_empty() && !wanted.is_subset(&parse_list(there).unwrap_or_default()) {
            return Err(Error::invalid(format!(
                "Requested {what} are not available - requested {asked}, available: {there}"
            )));
        }
    }
    if host.pids_limit.is_some_and(|limit| limit < -1) {
        return Err(Error::invalid(format!(
            "invalid PIDs limit {}: it is a number of processes, or -1 for no limit",
            host.pids_limit.unwrap_or_default()
        )));
    }
    if host.blkio_weight != 0 && !(10..=1000).contains(&host.blkio_weight) {
        return refuse("Range of blkio weight is from 10 to 1000");
    }
    if host.shm_size < 0 {
        return refuse("SHM size can not be less than 0");
    }
    Ok(())
}

/// A list of cpuset(7): `0-2,7`.
fn parse_list(text: &str) -> Option<BTreeSet<u32>> {
    let mut all = BTreeSet::new();
    for part in text
        .split(',')
        .map(str::trim)
        .filter(|part| !part.is_empty())
    {
        let (from, to) = part.split_once('-').unwrap_or((part, part));
        let (from, to): (u32, u32) = (from.parse().ok()?, to.parse().ok()?);
        if from > to || to > 8192 {
            return None;
        }
        all.extend(from..=to);
    }
    (!all.is_empty()).then_some(all)
}

fn restart(host: &HostConfig) -> Result<()> {
    let RestartPolicy {
        name,
        maximum_retry_count,
    } = &host.restart_policy;
    if !matches!(
        name.as_str(),
        "no" | "always" | "on-failure" | "unless-stopped"
    ) {
        return Err(Error::invalid(format!(
            "invalid restart policy: unknown policy '{name}'; use one of 'no', 'always', \
             'on-failure', or 'unless-stopped'"
        )));
    }
    if *maximum_retry_count != 0 && name != "on-failure" {
        return Err(Error::invalid(
            "invalid restart policy: maximum retry count can only be used with 'on-failure'",
        ));
    }
    if u32::try_from(*maximum_retry_count).is_err() {
        return Err(Error::invalid(
            "invalid restart policy: maximum retry count cannot be negative",
        ));
    }
    if host.auto_remove && name != "no" {
        return Err(Error::invalid(
            "can't create 'AutoRemove' container with restart policy",
        ));
    }
    Ok(())
}

/// `--log-driver` and `--log-opt`, as the monitor takes them.
pub(crate) fn log(host: &HostConfig) -> Result<(u64, u32)> {
    let driver = host.log_config.kind.as_str();
    match driver {
        "json-file" => {}
        "none" if host.log_config.config.is_empty() => {}
        "none" => return Err(Error::invalid("the log driver `none` has no options")),
        _ => {
            return Err(Error::Unsupported {
                what: format!("log driver `{driver}`"),
                reason: "there are json-file and none",
            });
        }
    }
    let mut size = knarr_monitor::request::Log::MAX_SIZE;
    let mut files = knarr_monitor::request::Log::MAX_FILE;
    for (option, value) in &host.log_config.config {
        let wrong =
            |what: &str| Error::invalid(format!("invalid value for {option}: {value}{what}"));
        match option.as_str() {
            "max-size" if value == "-1" => size = 0,
            "max-size" => {
                size = crate::spec::parse_size(value)
                    .filter(|size| *size > 0)
                    .ok_or_else(|| wrong(", expected a size such as 10m"))?;
            }
            "max-file" => {
                files = value
                    .parse()
                    .ok()
                    .filter(|files| *files >= 1)
                    .ok_or_else(|| wrong(", expected at least 1"))?;
            }
            "compress" if value == "false" => {}
            // `local`-like options that change nothing that is read back.
            "mode" if value == "blocking" => {}
            _ => {
                return Err(Error::Unsupported {
                    what: format!("log option `{option}={value}`"),
                    reason: "json-file has max-size and max-file",
                });
            }
        }
    }
    Ok((size, files))
}

/// What `--security-opt` asks for.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Security {
    pub(crate) no_new_privileges: bool,
    pub(crate) seccomp: Filter,
    /// `systempaths=unconfined`: no masked and no read-only paths.
    pub(crate) all_paths: bool,
}

/// Which system call filter.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) enum Filter {
    #[default]
    Docker,
    Unconfined,
    /// A profile's JSON, read by the caller when the container was made, so that what runs does
    /// not change with the file.
    Profile(String),
}

/// Parses the options; a profile must be its JSON by now ([`inline_profiles`]).
pub(crate) fn security(host: &HostConfig) -> Result<Security> {
    let mut security = Security::default();
    for option in host.security_opt.iter().flatten() {
        if option == "no-new-privileges" {
            security.no_new_privileges = true;
            continue;
        }
        let (key, value) = option
            .split_once('=')
            .or_else(|| option.split_once(':'))
            .ok_or_else(|| Error::invalid(format!("invalid --security-opt: {option:?}")))?;
        match (key, value) {
            ("no-new-privileges", "true" | "false") => security.no_new_privileges = value == "true",
            ("seccomp", "unconfined") => security.seccomp = Filter::Unconfined,
            ("seccomp", "builtin" | "default") => security.seccomp = Filter::Docker,
            ("seccomp", json) => security.seccomp = Filter::Profile(json.to_owned()),
            ("systempaths", "unconfined") => security.all_paths = true,
            ("apparmor", "unconfined") | ("label", "disable") => {}
            ("apparmor", profile) => {
                return Err(Error::Unsupported {
                    what: format!("AppArmor profile `{profile}`"),
                    reason: "AppArmor is not used yet, only `apparmor=unconfined` is accepted",
                });
            }
            ("label", label) => {
                return Err(Error::Unsupported {
                    what: format!("SELinux label `{label}`"),
                    reason: "SELinux is not used yet, only `label=disable` is accepted",
                });
            }
            _ => {
                return Err(Error::invalid(format!(
                    "invalid --security-opt: {option:?}"
                )));
            }
        }
    }
    if host.privileged {
        security.seccomp = match security.seccomp {
            Filter::Docker => Filter::Unconfined,
            other => other,
        };
        security.all_paths = true;
    }
    Ok(security)
}

/// Replaces `seccomp=FILE` by `seccomp=<its JSON>`, as Docker's client does.
pub(crate) fn inline_profiles(host: &mut HostConfig) -> Result<()> {
    for option in host.security_opt.iter_mut().flatten() {
        let Some(file) = option
            .strip_prefix("seccomp=")
            .or_else(|| option.strip_prefix("seccomp:"))
        else {
            continue;
        };
        if matches!(file, "unconfined" | "builtin" | "default")
            || file.trim_start().starts_with('{')
        {
            continue;
        }
        let bytes = knarr_fs::read(std::path::Path::new(file)).map_err(|error| {
            Error::invalid(format!("opening seccomp profile ({file}) failed: {error}"))
        })?;
        knarr_seccomp::Profile::parse(&bytes)?;
        let compact: Box<serde_json::value::RawValue> =
            serde_json::from_slice(&bytes).map_err(|cause| Error::Damaged {
                path: file.into(),
                cause,
            })?;
        *option = format!("seccomp={compact}");
    }
    Ok(())
}

/// A host name that can stand in `/etc/hosts` without adding a line to it.
fn hostname(config: &ContainerConfig) -> Result<()> {
    for (what, name) in [
        ("hostname", &config.hostname),
        ("domainname", &config.domainname),
    ] {
        let good = name.len() <= 64
            && name
                .bytes()
                .all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte))
            && !name.starts_with(['-', '.']);
        if !good {
            return Err(Error::invalid_hint(
                format!("invalid {what} format: {name}"),
                "letters, digits, `-`, `_` and `.` are allowed, at most 64",
            ));
        }
    }
    Ok(())
}

/// Only kernel parameters that belong to a namespace of the container's own.
fn sysctl(name: &str, value: &str, host: &HostConfig) -> Result<()> {
    const IPC: [&str; 8] = [
        "kernel.msgmax",
        "kernel.msgmnb",
        "kernel.msgmni",
        "kernel.sem",
        "kernel.shmall",
        "kernel.shmmax",
        "kernel.shmmni",
        "kernel.shm_rmid_forced",
    ];
    let name = name.replace('/', ".");
    let shared = |what: &str| {
        Err(Error::invalid(format!(
            "sysctl '{name}' is not allowed in the host's {what} namespace"
        )))
    };
    if value.contains(['\n', '\0']) {
        return Err(Error::invalid(format!(
            "sysctl '{name}' has a value of several lines"
        )));
    }
    if IPC.contains(&name.as_str()) || name.starts_with("fs.mqueue.") {
        return if host.ipc_mode == "host" {
            shared("IPC")
        } else {
            Ok(())
        };
    }
    if name.starts_with("net.") {
        return if host.network_mode == "host" {
            shared("network")
        } else {
            Ok(())
        };
    }
    if matches!(name.as_str(), "kernel.domainname" | "kernel.hostname") {
        return if host.uts_mode == "host" {
            shared("UTS")
        } else {
            Ok(())
        };
    }
    Err(Error::invalid_hint(
        format!("sysctl '{name}' is not allowed: it belongs to the whole machine"),
        "only net.*, fs.mqueue.* and the kernel.msg*, sem and shm* parameters are a container's own",
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn facts() -> Facts {
        Facts {
            cpus: 2,
            capabilities: (1 << 41) - 1,
            cpu_list: "0-1".to_owned(),
            memory_nodes: "0".to_owned().into(),
            ..Facts::default()
        }
    }

    fn check(json: &serde_json::Value) -> Result<HostConfig> {
        let mut host: HostConfig = serde_json::from_value(json.clone()).unwrap();
        settle(&mut ContainerConfig::default(), &mut host, &facts()).map(|_| host)
    }

    #[test]
    fn wrong_requests_get_dockers_words() {
        for (json, message) in [
            (
                r#"{"Memory": 4194304}"#,
                "Minimum memory limit allowed is 6MB",
            ),
            (
                r#"{"Memory": 8388608, "MemorySwap": 6291456}"#,
                "should be larger than memory limit",
            ),
            (
                r#"{"MemorySwap": 8388608}"#,
                "You should always set the Memory limit",
            ),
            (
                r#"{"NanoCpus": 3000000000}"#,
                "range of CPUs is from 0.01 to 2.00",
            ),
            (
                r#"{"NanoCpus": 1000000000, "CpuQuota": 5000}"#,
                "Nano CPUs and CPU Quota",
            ),
            (
                r#"{"CpuPeriod": 10}"#,
                "CPU cfs period can not be less than 1ms",
            ),
            (
                r#"{"CpusetCpus": "0-9"}"#,
                "Requested CPUs are not available - requested 0-9",
            ),
            (r#"{"CpusetCpus": "x"}"#, "Invalid value x for cpuset cpus"),
            (
                r#"{"RestartPolicy": {"Name": "often"}}"#,
                "unknown policy 'often'",
            ),
            (
                r#"{"RestartPolicy": {"Name": "always"}, "AutoRemove": true}"#,
                "'AutoRemove'",
            ),
            (
                r#"{"NetworkMode": "a b"}"#,
                "invalid characters for a network name",
            ),
            (r#"{"NetworkMode": "ns:x"}"#, "invalid network mode: ns:x"),
            (
                r#"{"PortBindings": {"80/icmp": []}}"#,
                "invalid port: \"80/icmp\"",
            ),
            (
                r#"{"PortBindings": {"80": [{"HostPort": "9-8"}]}}"#,
                "invalid port specification: \"9-8\"",
            ),
            (
                r#"{"PublishAllPorts": true, "NetworkMode": "container:x"}"#,
                "port publishing and the container type network mode",
            ),
            (r#"{"Isolation": "vm"}"#, "only `process` exists"),
            (r#"{"PidMode": "private"}"#, "invalid PID mode: private"),
            (
                r#"{"SecurityOpt": ["what"]}"#,
                "invalid --security-opt: \"what\"",
            ),
            (
                r#"{"SecurityOpt": ["apparmor=mine"]}"#,
                "AppArmor profile `mine`",
            ),
            (r#"{"CapAdd": ["FLY"]}"#, "CAP_FLY"),
            (
                r#"{"Sysctls": {"vm.swappiness": "1"}}"#,
                "belongs to the whole machine",
            ),
            (
                r#"{"Sysctls": {"net.x": "1"}, "NetworkMode": "host"}"#,
                "host's network namespace",
            ),
            (r#"{"OomScoreAdj": 2000}"#, "range for oom score adj"),
            (
                r#"{"LogConfig": {"Type": "syslog"}}"#,
                "there are json-file and none",
            ),
            (
                r#"{"LogConfig": {"Config": {"max-size": "x"}}}"#,
                "invalid value for max-size: x",
            ),
            (r#"{"Annotations": {"knarr.x": "1"}}"#, "it is Knarr's own"),
            (
                r#"{"UsernsMode": "auto", "Privileged": true}"#,
                "incompatible with user namespaces",
            ),
            (
                r#"{"UsernsMode": "auto", "PidMode": "host"}"#,
                "cannot be combined",
            ),
        ] {
            let json = serde_json::from_str(json).unwrap();
            let error = check(&json).unwrap_err().to_string();
            assert!(error.contains(message), "{json}: {error}");
        }
    }

    #[test]
    fn defaults_are_dockers() {
        let host = check(&serde_json::json!({"Memory": 8_388_608})).unwrap();
        assert_eq!(host.memory_swap, 16_777_216);
        assert_eq!(
            (host.shm_size, host.ipc_mode.as_str()),
            (67_108_864, "private")
        );
        assert_eq!(log(&host).unwrap(), (20 << 20, 5));
    }

    #[test]
    fn hostnames_add_no_lines_to_files() {
        for (name, good) in [
            ("web-1.example", true),
            ("a b", false),
            ("a\nb", false),
            ("-a", false),
        ] {
            let config = ContainerConfig {
                hostname: name.to_owned(),
                ..Default::default()
            };
            assert_eq!(hostname(&config).is_ok(), good, "{name}");
        }
    }
}
