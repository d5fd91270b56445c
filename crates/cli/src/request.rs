//! From the flags of `run` and `create` to Docker's two halves of a container's description.
//!
//! Reads the files that flags name and the environment; decides nothing about the machine.

pub(crate) mod flags;
pub(crate) mod mount;
pub(crate) mod network;
pub(crate) mod parts;

use std::collections::BTreeMap;
use std::path::Path;

use knarr_diag::Class;
use knarr_engine::CreateRequest;
use knarr_engine::image::{PullOptions, PullPolicy};
use knarr_spec::docker::{ContainerConfig, Empty, Healthcheck, HostConfig, LogConfig, PortBinding};

use crate::failure::{Failure, Result};
use crate::flag::{Parsed, value};

/// Everything that `create` needs, out of a parsed line whose first argument is the image.
pub(crate) fn create(line: &Parsed) -> Result<CreateRequest> {
    let (mode, endpoints) = network::networks(line)?;
    let host = HostConfig {
        network_mode: mode,
        ..host(line)?
    };
    let config = config(line)?;
    if host.auto_remove && !matches!(host.restart_policy.name.as_str(), "" | "no") {
        return Err(Failure::invalid(
            "conflicting options: cannot specify both --restart and --rm",
        ));
    }
    let pull = match line.get("pull").unwrap_or("missing") {
        "missing" | "" => PullPolicy::Missing,
        "always" => PullPolicy::Always,
        "never" => PullPolicy::Never,
        other => {
            return Err(Failure::invalid(format!(
                "invalid pull option: '{other}': must be one of \"always\", \"missing\" or \"never\""
            )));
        }
    };
    Ok(CreateRequest {
        name: line
            .get("name")
            .filter(|name| !name.is_empty())
            .map(str::to_owned),
        config,
        host,
        endpoints,
        pull,
        pull_options: pull_options(line)?,
    })
}

/// `--platform` and how registries are reached.
pub(crate) fn pull_options(line: &Parsed) -> Result<PullOptions> {
    let mut options = PullOptions::default();
    if let Some(platform) = line.get("platform").filter(|platform| !platform.is_empty()) {
        let parsed = platform.parse();
        let wrong = |error: knarr_spec::PlatformError| Failure::invalid(error.to_string());
        options.platform = Some(parsed.map_err(wrong)?);
    }
    options.all_platforms = line.on("all-platforms");
    let kept = std::env::var("KNARR_KEEP_BLOBS").unwrap_or_default();
    options.keep_blobs = match line.given("keep-blobs") {
        true => line.on("keep-blobs"),
        false => crate::flag::value::parse_boolean(&kept).unwrap_or(false),
    };
    if options.all_platforms && options.platform.is_some() {
        return Err(Failure::invalid(
            "--platform and --all-platforms are mutually exclusive",
        ));
    }
    options.registry.insecure = line.given("tls-verify") && !line.on("tls-verify");
    options.registry.cert_dir = line.get("cert-dir").map(Into::into);
    options.registry.auth_file = line.get("authfile").map(Into::into);
    if let Some(credentials) = line.get("creds") {
        let Some((user, password)) = credentials.split_once(':') else {
            return Err(Failure::invalid("--creds must be USER:PASSWORD"));
        };
        options.registry.credentials = Some(knarr_distribution::Credentials {
            user: user.to_owned(),
            password: password.to_owned(),
        });
    }
    Ok(options)
}

fn optional(list: Vec<String>) -> Option<Vec<String>> {
    (!list.is_empty()).then_some(list)
}

fn not_served(what: &str, why: &str) -> Failure {
    Failure::of(
        Class::Unsupported,
        "flag-not-served",
        format!("{what} is not served by Knarr yet: {why}"),
    )
}

fn config(line: &Parsed) -> Result<ContainerConfig> {
    let attached = |stream: &str| line.all("attach").any(|a| a.eq_ignore_ascii_case(stream));
    let any = line.given("attach");
    let detached = line.on("detach");
    let interactive = line.on("interactive");
    let attach_stdin = !detached && (attached("stdin") || (!any && interactive));
    let (_, volumes) = volumes(line);
    let image = line.args.first().cloned().unwrap_or_default();
    if image.is_empty() {
        return Err(Failure::invalid("the name of the image is empty"));
    }
    let mut exposed_ports = BTreeMap::new();
    for port in line
        .all("expose")
        .filter_map(|text| parts::ports(text).ok())
        .flatten()
    {
        exposed_ports.insert(port, Empty {});
    }
    for (port, _) in published(line) {
        exposed_ports.insert(port, Empty {});
    }
    Ok(ContainerConfig {
        hostname: line.text("hostname").to_owned(),
        domainname: line.text("domainname").to_owned(),
        user: line.text("user").to_owned(),
        attach_stdin,
        attach_stdout: !detached && (!any || attached("stdout")),
        attach_stderr: !detached && (!any || attached("stderr")),
        exposed_ports,
        tty: line.on("tty"),
        open_stdin: interactive,
        stdin_once: interactive && attach_stdin,
        env: environment(line)?,
        cmd: optional(line.args.get(1..).unwrap_or_default().to_vec()),
        healthcheck: line.on("no-healthcheck").then(|| Healthcheck {
            test: vec!["NONE".to_owned()],
            ..Healthcheck::default()
        }),
        image,
        volumes: (!volumes.is_empty()).then_some(volumes),
        working_dir: line.text("workdir").to_owned(),
        entrypoint: line
            .get("entrypoint")
            .map(|program| vec![program.to_owned()]),
        on_build: None,
        labels: labels(line)?,
        stop_signal: line
            .get("stop-signal")
            .filter(|s| !s.is_empty())
            .map(str::to_owned),
        stop_timeout: line.int("stop-timeout"),
        shell: None,
    })
}

/// `-e` and `--env-file`, the files first.
pub(crate) fn environment(line: &Parsed) -> Result<Vec<String>> {
    let mut entries = Vec::new();
    for path in line.all("env-file") {
        entries.extend(file_lines("env file", path, &|name| {
            let value = std::env::var(name).ok()?;
            Some(format!("{name}={value}"))
        })?);
    }
    entries.extend(line.all("env").map(parts::from_environment));
    Ok(entries)
}

fn labels(line: &Parsed) -> Result<BTreeMap<String, String>> {
    let mut entries = Vec::new();
    for path in line.all("label-file") {
        entries.extend(file_lines("label file", path, &|name| {
            Some(name.to_owned())
        })?);
    }
    let given = line.all("label");
    Ok(parts::map(entries.iter().map(String::as_str).chain(given)))
}

fn file_lines(
    what: &str,
    path: &str,
    bare: &dyn Fn(&str) -> Option<String>,
) -> Result<Vec<String>> {
    let bytes = read(what, path)?;
    parts::lines(&bytes, bare)
        .map_err(|text| Failure::invalid(format!("invalid {what} ({path}): {text}")))
}

fn read(what: &str, path: &str) -> Result<Vec<u8>> {
    knarr_fs::read(Path::new(path)).map_err(|error| {
        let class = if error.is_not_found() {
            Class::NotFound
        } else {
            Class::Invalid
        };
        let mut failure = Failure::of(class, "file", format!("cannot read the {what}"));
        for report in &mut failure.reports {
            let inner = knarr_diag::Explain::report(&error);
            report.because.push(inner.message);
            report.because.extend(inner.because);
        }
        failure
    })
}

/// `-v`: what has a source is a bind (or a named volume), the rest are anonymous volumes.
fn volumes(line: &Parsed) -> (Vec<String>, BTreeMap<String, Empty>) {
    let mut binds = Vec::new();
    let mut anonymous = BTreeMap::new();
    for volume in line.all("volume") {
        match volume.split_once(':') {
            None => {
                anonymous.insert(volume.to_owned(), Empty {});
            }
            Some((source, rest)) if source.starts_with('.') => {
                let source = parts::absolute(source).unwrap_or_else(|_| source.to_owned());
                binds.push(format!("{source}:{rest}"));
            }
            Some(_) => binds.push(volume.to_owned()),
        }
    }
    (binds, anonymous)
}

fn host(line: &Parsed) -> Result<HostConfig> {
    let mode = |flag: &'static str, words: &[&str], error: &str| -> Result<String> {
        let text = line.text(flag);
        let container = text
            .strip_prefix("container:")
            .is_some_and(|name| !name.is_empty());
        let allowed = text.is_empty()
            || words.contains(&text)
            || (container && words.contains(&"container:"));
        if allowed {
            Ok(text.to_owned())
        } else {
            Err(Failure::invalid(error))
        }
    };
    let ipc = &["none", "host", "private", "shareable", "container:"];
    let security = security(line)?;
    let (binds, _) = volumes(line);
    let mut mounts = Vec::new();
    for text in line.all("mount") {
        mounts.push(mount::parse(text).map_err(Failure::invalid)?);
    }
    // The last word of each name counts, as the later flag does.
    let mut ulimits = BTreeMap::new();
    for limit in line
        .all("ulimit")
        .filter_map(|text| parts::ulimit(text).ok())
    {
        ulimits.insert(limit.name.clone(), limit);
    }
    let swappiness = line.int("memory-swappiness");
    if swappiness.is_some_and(|value| !(-1..=100).contains(&value)) {
        let text = line.text("memory-swappiness");
        return Err(Failure::invalid(format!(
            "invalid value: {text}. Valid memory swappiness range is 0-100"
        )));
    }
    if !matches!(line.text("volume-driver"), "" | "local") {
        let driver = line.text("volume-driver");
        return Err(not_served(
            &format!("--volume-driver {driver}"),
            "volumes are folders; there is the driver `local`",
        ));
    }
    let mut dns_options = line.list("dns-option");
    dns_options.extend(line.list("dns-opt"));
    Ok(HostConfig {
        binds: optional(binds),
        container_id_file: line.text("cidfile").to_owned(),
        log_config: log(line)?,
        port_bindings: port_bindings(line),
        publish_all_ports: line.on("publish-all"),
        auto_remove: line.on("rm"),
        volumes_from: optional(line.list("volumes-from")),
        mounts: (!mounts.is_empty()).then_some(mounts),
        annotations: line
            .given("annotation")
            .then(|| parts::map(line.all("annotation"))),
        cap_add: optional(parts::capabilities(line.all("cap-add"))),
        cap_drop: optional(parts::capabilities(line.all("cap-drop"))),
        cgroupns_mode: mode(
            "cgroupns",
            &["host", "private"],
            "--cgroupns: invalid CGROUP mode",
        )?,
        dns: line.list("dns"),
        dns_options,
        dns_search: line.list("dns-search"),
        extra_hosts: optional(line.list("add-host")),
        group_add: optional(line.list("group-add")),
        ipc_mode: mode(
            "ipc",
            ipc,
            &format!("invalid IPC mode: {}", line.text("ipc")),
        )?,
        oom_score_adj: narrow(line, "oom-score-adj")?,
        pid_mode: mode("pid", &["host", "container:"], "--pid: invalid PID mode")?,
        privileged: line.on("privileged"),
        readonly_rootfs: line.on("read-only"),
        security_opt: optional(security.options),
        tmpfs: line.all("tmpfs").map(tmpfs).collect(),
        uts_mode: mode("uts", &["host"], "--uts: invalid UTS mode")?,
        userns_mode: mode("userns", &["host", "auto"], "--userns: invalid USER mode")?,
        shm_size: line.bytes("shm-size").unwrap_or(0),
        sysctls: parts::map(line.all("sysctl")),
        isolation: isolation(line)?,
        cgroup_parent: line.text("cgroup-parent").to_owned(),
        devices: line
            .all("device")
            .filter_map(|text| parts::device(text).ok())
            .collect(),
        device_cgroup_rules: optional(line.list("device-cgroup-rule")),
        memory_swappiness: swappiness.filter(|value| *value >= 0),
        oom_kill_disable: line.on("oom-kill-disable").then_some(true),
        ulimits: ulimits.into_values().collect(),
        masked_paths: security.system_paths_open.then(Vec::new),
        readonly_paths: security.system_paths_open.then(Vec::new),
        init: line.given("init").then(|| line.on("init")),
        ..limits(line)?
    })
}

/// What [`flags::LIMITS`] say; the rest is Docker's default.
pub(crate) fn limits(line: &Parsed) -> Result<HostConfig> {
    Ok(HostConfig {
        restart_policy: parts::restart(line.text("restart")).map_err(Failure::invalid)?,
        cpu_shares: line.int("cpu-shares").unwrap_or(0),
        memory: line.bytes("memory").unwrap_or(0),
        nano_cpus: line
            .get("cpus")
            .and_then(|text| value::parse_cpus(text).ok())
            .unwrap_or(0),
        blkio_weight: narrow(line, "blkio-weight")?,
        cpu_period: line.int("cpu-period").unwrap_or(0),
        cpu_quota: line.int("cpu-quota").unwrap_or(0),
        cpuset_cpus: line.text("cpuset-cpus").to_owned(),
        cpuset_mems: line.text("cpuset-mems").to_owned(),
        memory_reservation: line.bytes("memory-reservation").unwrap_or(0),
        memory_swap: match line.text("memory-swap") {
            "-1" => -1,
            _ => line.bytes("memory-swap").unwrap_or(0),
        },
        pids_limit: line.int("pids-limit"),
        ..HostConfig::default()
    })
}

/// `-p`, each port of the container with its end on the host.
fn published(line: &Parsed) -> impl Iterator<Item = (String, PortBinding)> {
    line.all("publish")
        .filter_map(|text| network::publish(text).ok())
        .flatten()
}

fn port_bindings(line: &Parsed) -> BTreeMap<String, Vec<PortBinding>> {
    let mut all: BTreeMap<String, Vec<PortBinding>> = BTreeMap::new();
    for (port, binding) in published(line) {
        all.entry(port).or_default().push(binding);
    }
    all
}

fn narrow<T: TryFrom<i64> + Default>(line: &Parsed, flag: &str) -> Result<T> {
    match line.int(flag) {
        None => Ok(T::default()),
        Some(value) => T::try_from(value)
            .map_err(|_| Failure::invalid(format!("--{flag}: {value} is out of range"))),
    }
}

fn tmpfs(text: &str) -> (String, String) {
    let (path, options) = text.split_once(':').unwrap_or((text, ""));
    (path.to_owned(), options.to_owned())
}

fn isolation(line: &Parsed) -> Result<String> {
    match line.text("isolation") {
        "" | "default" => Ok(String::new()),
        "process" => Ok("process".to_owned()),
        other @ ("sandbox" | "vm") => Err(not_served(
            &format!("--isolation {other}"),
            "containers share the host's kernel; use --isolation process",
        )),
        other => Err(
            Failure::invalid(format!("--isolation: {other:?} is not known"))
                .hint("use --isolation process"),
        ),
    }
}

fn log(line: &Parsed) -> Result<LogConfig> {
    let kind = line.text("log-driver");
    let config = parts::map(line.all("log-opt"));
    match kind {
        "" | "json-file" => {}
        "none" if config.is_empty() => {}
        "none" => return Err(Failure::invalid("invalid logging opts for driver none")),
        other => {
            return Err(not_served(
                &format!("--log-driver {other}"),
                "logs go to files; use json-file or none",
            ));
        }
    }
    for (key, value) in &config {
        match key.as_str() {
            "max-size" if value == "-1" || crate::units::ram_in_bytes(value).is_ok() => {}
            "max-file" if value.parse::<u32>().is_ok_and(|count| count > 0) => {}
            "max-size" | "max-file" => {
                return Err(Failure::invalid(format!(
                    "invalid value for log option {key}: {value:?}"
                )));
            }
            other => {
                return Err(not_served(
                    &format!("--log-opt {other}"),
                    "json-file knows max-size and max-file",
                ));
            }
        }
    }
    Ok(LogConfig {
        kind: kind.to_owned(),
        config,
    })
}

#[derive(Default)]
struct Security {
    options: Vec<String>,
    system_paths_open: bool,
}

fn security(line: &Parsed) -> Result<Security> {
    let mut security = Security::default();
    for option in line.all("security-opt") {
        let (key, value) = match option.split_once('=').or_else(|| option.split_once(':')) {
            Some((key, value)) => (key, Some(value)),
            None => (option, None),
        };
        match (key, value) {
            ("systempaths", Some("unconfined")) => security.system_paths_open = true,
            ("no-new-privileges", None) => security.options.push("no-new-privileges".to_owned()),
            ("no-new-privileges", Some(value)) => match value::parse_boolean(value) {
                Some(true) => security.options.push("no-new-privileges".to_owned()),
                Some(false) => {}
                None => {
                    return Err(Failure::invalid(format!(
                        "invalid --security-opt: {option:?}"
                    )));
                }
            },
            ("seccomp", Some(value @ ("unconfined" | "builtin"))) => {
                security.options.push(format!("seccomp={value}"));
            }
            ("seccomp", Some(path)) => {
                let text = read("seccomp profile", path)?;
                let wrong = |error: serde_json::Error| {
                    Failure::invalid(format!(
                        "compacting json for seccomp profile ({path}) failed: {error}"
                    ))
                };
                // Compact, as it is kept in the container's description.
                let profile: serde_json::Value = serde_json::from_slice(&text).map_err(wrong)?;
                security.options.push(format!("seccomp={profile}"));
            }
            // There is nothing to switch off.
            ("apparmor", Some("unconfined")) | ("label", Some("disable")) => {}
            (
                "apparmor" | "label" | "systempaths" | "credentialspec" | "writable-cgroups",
                Some(_),
            ) => {
                return Err(not_served(
                    &format!("--security-opt {option}"),
                    "seccomp= and no-new-privileges are",
                ));
            }
            _ => {
                return Err(Failure::invalid(format!(
                    "invalid --security-opt: {option:?}"
                )));
            }
        }
    }
    Ok(security)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::flag::{self, Refusal};
    use serde_json::{Value, json};

    fn line(words: &[&str]) -> Parsed {
        let words: Vec<String> = words.iter().map(|w| (*w).to_owned()).collect();
        flag::parse(
            &[flags::RUN, flags::CREATE, flags::LIMITS, flags::REGISTRY],
            &words,
            false,
        )
        .unwrap()
    }

    fn host_of(words: &[&str]) -> Value {
        let mut words = words.to_vec();
        words.push("img");
        serde_json::to_value(create(&line(&words)).unwrap().host).unwrap()
    }

    fn config_of(words: &[&str]) -> Value {
        serde_json::to_value(create(&line(words)).unwrap().config).unwrap()
    }

    fn refused(words: &[&str]) -> String {
        let mut words = words.to_vec();
        words.push("img");
        let failure = create(&line(&words)).unwrap_err();
        failure.reports.first().unwrap().message.clone()
    }

    #[test]
    fn flags_become_the_host_half() {
        let plain = host_of(&[]);
        for (words, key, expected) in [
            (vec!["-m", "512m"], "Memory", json!(536_870_912)),
            (vec!["--memory-swap", "-1"], "MemorySwap", json!(-1)),
            (vec!["--memory-swap=1g"], "MemorySwap", json!(1_073_741_824)),
            (
                vec!["--memory-reservation", "1m"],
                "MemoryReservation",
                json!(1_048_576),
            ),
            (
                vec!["--memory-swappiness", "0"],
                "MemorySwappiness",
                json!(0),
            ),
            (vec!["--cpus", "1.5"], "NanoCpus", json!(1_500_000_000)),
            (vec!["-c", "512"], "CpuShares", json!(512)),
            (vec!["--cpuset-cpus", "0-1"], "CpusetCpus", json!("0-1")),
            (vec!["--pids-limit", "-1"], "PidsLimit", json!(-1)),
            (
                vec!["--ulimit", "nofile=1:2", "--ulimit", "nofile=3"],
                "Ulimits",
                json!([{"Name": "nofile", "Hard": 3, "Soft": 3}]),
            ),
            (
                vec!["--cap-add", "net_admin", "--cap-add=CAP_CHOWN"],
                "CapAdd",
                json!(["CAP_CHOWN", "CAP_NET_ADMIN"]),
            ),
            (vec!["--cap-drop", "all"], "CapDrop", json!(["ALL"])),
            (vec!["--privileged"], "Privileged", json!(true)),
            (vec!["--read-only"], "ReadonlyRootfs", json!(true)),
            (
                vec![
                    "--security-opt",
                    "seccomp=unconfined",
                    "--security-opt",
                    "no-new-privileges:true",
                ],
                "SecurityOpt",
                json!(["seccomp=unconfined", "no-new-privileges"]),
            ),
            (
                vec!["--security-opt", "systempaths=unconfined"],
                "MaskedPaths",
                json!([]),
            ),
            (
                vec!["--device", "/dev/fuse"],
                "Devices",
                json!([{"PathOnHost": "/dev/fuse", "PathInContainer": "/dev/fuse",
                        "CgroupPermissions": "rwm"}]),
            ),
            (
                vec!["--sysctl", "net.core.somaxconn=1"],
                "Sysctls",
                json!({"net.core.somaxconn": "1"}),
            ),
            (vec!["--init"], "Init", json!(true)),
            (vec!["--init=false"], "Init", json!(false)),
            (vec!["--network", "host"], "NetworkMode", json!("host")),
            (
                vec!["--net=container:a"],
                "NetworkMode",
                json!("container:a"),
            ),
            (vec!["--pid", "host"], "PidMode", json!("host")),
            (
                vec!["--ipc", "container:a"],
                "IpcMode",
                json!("container:a"),
            ),
            (vec!["--uts=host"], "UTSMode", json!("host")),
            (vec!["--userns", "auto"], "UsernsMode", json!("auto")),
            (vec!["--shm-size", "1g"], "ShmSize", json!(1_073_741_824)),
            (
                vec!["--restart", "on-failure:3"],
                "RestartPolicy",
                json!({"Name": "on-failure", "MaximumRetryCount": 3}),
            ),
            (
                vec![
                    "--log-driver=json-file",
                    "--log-opt",
                    "max-size=10m",
                    "--log-opt=max-file=3",
                ],
                "LogConfig",
                json!({"Type": "json-file", "Config": {"max-file": "3", "max-size": "10m"}}),
            ),
            (
                vec!["--tmpfs", "/run:size=1m", "--tmpfs", "/x"],
                "Tmpfs",
                json!({"/run": "size=1m", "/x": ""}),
            ),
            (
                vec!["-v", "/a:/b:ro", "-v", "data:/d"],
                "Binds",
                json!(["/a:/b:ro", "data:/d"]),
            ),
            (
                vec!["--volumes-from", "a:ro"],
                "VolumesFrom",
                json!(["a:ro"]),
            ),
            (
                vec!["--mount", "type=tmpfs,target=/t"],
                "Mounts",
                json!([{"Type": "tmpfs", "Target": "/t"}]),
            ),
            (
                vec!["--group-add", "audio", "--group-add=5"],
                "GroupAdd",
                json!(["audio", "5"]),
            ),
            (vec!["--rm"], "AutoRemove", json!(true)),
            (
                vec!["--cidfile", "/tmp/x"],
                "ContainerIDFile",
                json!("/tmp/x"),
            ),
            (
                vec!["--isolation", "process"],
                "Isolation",
                json!("process"),
            ),
            (vec!["--oom-score-adj", "-500"], "OomScoreAdj", json!(-500)),
            (
                vec!["--add-host", "a:1.2.3.4"],
                "ExtraHosts",
                json!(["a:1.2.3.4"]),
            ),
            (vec!["--dns", "1.1.1.1"], "Dns", json!(["1.1.1.1"])),
            (
                vec!["--annotation", "a=b"],
                "Annotations",
                json!({"a": "b"}),
            ),
            (vec!["--cgroupns", "host"], "CgroupnsMode", json!("host")),
            (vec!["--blkio-weight", "300"], "BlkioWeight", json!(300)),
            (vec!["--oom-kill-disable"], "OomKillDisable", json!(true)),
        ] {
            let host = host_of(&words);
            assert_eq!(host[key], expected, "{words:?}");
            // A flag changes its own field and no other.
            for (other, value) in host.as_object().unwrap() {
                let pair = key == "MaskedPaths" && other == "ReadonlyPaths";
                assert!(
                    other == key || pair || plain.get(other) == Some(value),
                    "{words:?} {other}"
                );
            }
        }
        assert_eq!(plain["NetworkMode"], "default");
        assert_eq!(plain["RestartPolicy"]["Name"], "no");
    }

    #[test]
    fn flags_become_the_portable_half() {
        for (words, key, expected) in [
            (vec!["img"], "Image", json!("img")),
            (vec!["img"], "Cmd", json!(null)),
            (
                vec!["img", "sh", "-c", "x"],
                "Cmd",
                json!(["sh", "-c", "x"]),
            ),
            (vec!["--entrypoint", "", "img"], "Entrypoint", json!([""])),
            (
                vec!["--entrypoint=/bin/sh", "img", "-c"],
                "Entrypoint",
                json!(["/bin/sh"]),
            ),
            (vec!["-it", "img"], "Tty", json!(true)),
            (vec!["-it", "img"], "StdinOnce", json!(true)),
            (vec!["-i", "img"], "AttachStdin", json!(true)),
            (vec!["-di", "img"], "AttachStdin", json!(false)),
            (vec!["-di", "img"], "OpenStdin", json!(true)),
            (vec!["-d", "img"], "AttachStdout", json!(false)),
            (vec!["-a", "STDERR", "img"], "AttachStdout", json!(false)),
            (vec!["-a", "STDERR", "img"], "AttachStderr", json!(true)),
            (
                vec!["-eA=1", "-e", "KNARR_NO_SUCH_VARIABLE", "img"],
                "Env",
                json!(["A=1", "KNARR_NO_SUCH_VARIABLE"]),
            ),
            (
                vec!["-l", "a=b=c", "--label", "d", "img"],
                "Labels",
                json!({"a": "b=c", "d": ""}),
            ),
            (vec!["-v", "/data", "img"], "Volumes", json!({"/data": {}})),
            (vec!["-h", "host", "img"], "Hostname", json!("host")),
            (vec!["-u", "1:2", "img"], "User", json!("1:2")),
            (vec!["-w", "/x", "img"], "WorkingDir", json!("/x")),
            (
                vec!["--stop-signal", "INT", "img"],
                "StopSignal",
                json!("INT"),
            ),
            (
                vec!["--stop-timeout", "-1", "img"],
                "StopTimeout",
                json!(-1),
            ),
            (
                vec!["--expose", "80-81", "img"],
                "ExposedPorts",
                json!({"80/tcp": {}, "81/tcp": {}}),
            ),
            (
                vec!["--no-healthcheck", "img"],
                "Healthcheck",
                json!({"Test": ["NONE"]}),
            ),
        ] {
            assert_eq!(config_of(&words)[key], expected, "{words:?}");
        }
    }

    #[test]
    fn wrong_requests_are_refused_in_dockers_words() {
        for (words, error) in [
            (
                vec!["--rm", "--restart", "always"],
                "conflicting options: cannot specify both --restart and --rm",
            ),
            (vec!["--pid", "x"], "--pid: invalid PID mode"),
            (vec!["--uts", "x"], "--uts: invalid UTS mode"),
            (vec!["--userns", "x"], "--userns: invalid USER mode"),
            (vec!["--network", ""], "no name set for network"),
            (
                vec!["--memory-swappiness", "200"],
                "invalid value: 200. Valid memory swappiness range is 0-100",
            ),
            (
                vec!["--pull", "x"],
                "invalid pull option: 'x': must be one of \"always\", \"missing\" or \"never\"",
            ),
            (vec!["--security-opt", "x"], "invalid --security-opt: \"x\""),
            (
                vec!["--network", "web", "--network", "host"],
                "conflicting options: cannot attach both user-defined and non-user-defined \
                 network-modes: web and host",
            ),
            (
                vec!["--network", "name=web,ip=10.0.0.2", "--ip", "10.0.0.3"],
                "conflicting options: cannot specify both --ip and per-network address",
            ),
            (
                vec!["--network", "web", "--net", "web"],
                "network \"web\" is specified multiple times",
            ),
            (
                vec!["--log-driver", "syslog"],
                "--log-driver syslog is not served by Knarr yet: logs go to files; use json-file or \
                 none",
            ),
            (
                vec!["--isolation", "vm"],
                "--isolation vm is not served by Knarr yet: containers share the host's kernel; use \
                 --isolation process",
            ),
            (
                vec!["--env-file", "/nonexistent/x"],
                "cannot read the env file",
            ),
        ] {
            assert_eq!(refused(&words), error, "{words:?}");
        }
    }

    /// What Docker's own client (28.2) asks its engine for, given the same line.
    #[test]
    fn the_request_is_the_one_that_docker_sends() {
        let mut docker: Value =
            serde_json::from_str(include_str!("request/docker-create.json")).unwrap();
        let words = "--name x -it -m 1g --cpus 1.5 --memory-swap -1 --ulimit nofile=1:2 --ulimit \
            core=0 --cap-add NET_ADMIN --cap-drop mknod -v /a:/b:ro -v data:/d -v /anon --mount \
            type=bind,source=/a,target=/m,readonly --mount type=tmpfs,target=/t,tmpfs-size=1m \
            --tmpfs /run:size=1m --device /dev/fuse:/dev/f:r --sysctl net.core.somaxconn=1 \
            --security-opt seccomp=unconfined --security-opt no-new-privileges --restart \
            on-failure:3 --log-driver json-file --log-opt max-size=1m -e A=1 -e \
            KNARR_NO_SUCH_VARIABLE -l a=b --expose 80-82 --expose 53/udp --entrypoint= \
            --stop-signal INT --stop-timeout 5 --init --pids-limit 7 --shm-size 1m -w /w -u 1:2 -h \
            host --group-add g --network none --ipc private --add-host a:1.2.3.4 --dns 1.1.1.1 \
            --dns-option x --dns-search y --read-only --oom-score-adj 5 --annotation k=v --userns \
            host img cmd arg";
        let words: Vec<&str> = words.split_whitespace().collect();
        let request = create(&line(&words)).unwrap();
        let host = serde_json::to_value(request.host).unwrap();
        // Docker says "unset" with -1 and false here, Knarr with null.
        docker["HostConfig"]["MemorySwappiness"] = Value::Null;
        docker["HostConfig"]["OomKillDisable"] = Value::Null;
        for (key, value) in host.as_object().unwrap() {
            assert_eq!(
                docker["HostConfig"].get(key).unwrap_or(&json!("")),
                value,
                "{key}"
            );
        }
        for (key, value) in serde_json::to_value(request.config)
            .unwrap()
            .as_object()
            .unwrap()
        {
            assert_eq!(docker.get(key), Some(value), "{key}");
        }
    }

    /// Every flag of `docker run --help` (28.2) is served or refused by its name.
    #[test]
    fn every_flag_of_docker_is_known() {
        let docker = "add-host annotation attach blkio-weight blkio-weight-device cap-add cap-drop \
            cgroup-parent cgroupns cidfile cpu-count cpu-percent cpu-period cpu-quota cpu-rt-period \
            cpu-rt-runtime cpu-shares cpus cpuset-cpus cpuset-mems detach detach-keys device \
            device-cgroup-rule device-read-bps device-read-iops device-write-bps device-write-iops \
            disable-content-trust dns dns-option dns-search domainname entrypoint env env-file \
            expose gpus group-add health-cmd health-interval health-retries health-start-interval \
            health-start-period health-timeout help hostname init interactive io-maxbandwidth \
            io-maxiops ip ip6 ipc isolation kernel-memory label label-file link link-local-ip \
            log-driver log-opt mac-address memory memory-reservation memory-swap memory-swappiness \
            mount name network network-alias no-healthcheck oom-kill-disable oom-score-adj pid \
            pids-limit platform privileged publish publish-all pull quiet read-only restart rm \
            runtime security-opt shm-size sig-proxy stop-signal stop-timeout storage-opt sysctl \
            tmpfs tty ulimit use-api-socket user userns uts volume volume-driver volumes-from \
            workdir";
        for name in docker.split_whitespace() {
            for word in [format!("--{name}=1"), format!("--{name}=true")] {
                let tables = [flags::RUN, flags::CREATE, flags::LIMITS, flags::REGISTRY];
                if let Err(Refusal::Usage(text, _)) = flag::parse(&tables, &[word], false) {
                    assert!(!text.starts_with("unknown"), "{text}");
                }
            }
        }
    }
}
