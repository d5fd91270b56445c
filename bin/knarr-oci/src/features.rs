//! `features`: what is served, in the form of the specification (features.md).

use std::process::ExitCode;

use knarr_runtime::Capability;
use serde_json::json;

use crate::args::Parsed;
use crate::command::Globals;
use crate::failure::Result;

/// `features`.
pub(crate) fn features(_: &mut Globals, _: &Parsed) -> Result<ExitCode> {
    let capabilities: Vec<&str> = Capability::all().map(Capability::name).collect();
    let plain = [
        "atime",
        "bind",
        "defaults",
        "dev",
        "diratime",
        "exec",
        "noatime",
        "nodev",
        "nodiratime",
        "noexec",
        "norelatime",
        "nostrictatime",
        "nosuid",
        "nosymfollow",
        "private",
        "relatime",
        "ro",
        "rw",
        "shared",
        "slave",
        "strictatime",
        "suid",
        "symfollow",
        "unbindable",
    ];
    let mut options: Vec<String> = plain
        .iter()
        .flat_map(|option| {
            let recursive = (*option != "defaults").then(|| format!("r{option}"));
            std::iter::once((*option).to_owned()).chain(recursive)
        })
        .collect();
    options.extend(
        [
            "async",
            "dirsync",
            "idmap",
            "iversion",
            "lazytime",
            "loud",
            "mand",
            "noiversion",
            "nolazytime",
            "nomand",
            "remount",
            "ridmap",
            "silent",
            "sync",
            "tmpcopyup",
        ]
        .map(str::to_owned),
    );
    options.sort();
    let apparmor = std::fs::read("/sys/module/apparmor/parameters/enabled")
        .is_ok_and(|text| text.first() == Some(&b'Y'));
    let selinux = std::path::Path::new("/sys/fs/selinux/enforce").exists();
    let features = json!({
        "ociVersionMin": "1.0.0",
        "ociVersionMax": knarr_spec::runtime::OCI_VERSION,
        "hooks": [
            "prestart", "createRuntime", "createContainer", "startContainer", "poststart",
            "poststop",
        ],
        "mountOptions": options,
        "linux": {
            "namespaces": ["cgroup", "ipc", "mount", "network", "pid", "time", "user", "uts"],
            "capabilities": capabilities,
            "cgroup": {
                "v1": true,
                "v2": true,
                "systemd": true,
                "systemdUser": true,
                "rdma": true,
            },
            "seccomp": {
                "enabled": true,
                "actions": [
                    "SCMP_ACT_ALLOW", "SCMP_ACT_ERRNO", "SCMP_ACT_KILL",
                    "SCMP_ACT_KILL_PROCESS", "SCMP_ACT_KILL_THREAD", "SCMP_ACT_LOG",
                    "SCMP_ACT_NOTIFY", "SCMP_ACT_TRACE", "SCMP_ACT_TRAP",
                ],
                "operators": [
                    "SCMP_CMP_EQ", "SCMP_CMP_GE", "SCMP_CMP_GT", "SCMP_CMP_LE", "SCMP_CMP_LT",
                    "SCMP_CMP_MASKED_EQ", "SCMP_CMP_NE",
                ],
                "archs": [
                    "SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32", "SCMP_ARCH_AARCH64",
                    "SCMP_ARCH_ARM",
                ],
                "knownFlags": [
                    "SECCOMP_FILTER_FLAG_TSYNC", "SECCOMP_FILTER_FLAG_LOG",
                    "SECCOMP_FILTER_FLAG_SPEC_ALLOW",
                    "SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV",
                ],
                "supportedFlags": [
                    "SECCOMP_FILTER_FLAG_TSYNC", "SECCOMP_FILTER_FLAG_LOG",
                    "SECCOMP_FILTER_FLAG_SPEC_ALLOW",
                    "SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV",
                ],
            },
            "apparmor": {"enabled": apparmor},
            "selinux": {"enabled": selinux},
            "intelRdt": {"enabled": false},
            "memoryPolicy": {
                "modes": [
                    "MPOL_BIND", "MPOL_DEFAULT", "MPOL_INTERLEAVE", "MPOL_LOCAL",
                    "MPOL_PREFERRED", "MPOL_PREFERRED_MANY", "MPOL_WEIGHTED_INTERLEAVE",
                ],
                "flags": [
                    "MPOL_F_NUMA_BALANCING", "MPOL_F_RELATIVE_NODES", "MPOL_F_STATIC_NODES",
                ],
            },
            "mountExtensions": {"idmap": {"enabled": true}},
            "netDevices": {"enabled": true},
        },
        "annotations": {
            "io.knarr.version": env!("CARGO_PKG_VERSION"),
            "org.opencontainers.runc.checkpoint.enabled": "false",
        },
        "potentiallyUnsafeConfigAnnotations": [],
    });
    println!(
        "{}",
        serde_json::to_string_pretty(&features).unwrap_or_default()
    );
    Ok(ExitCode::SUCCESS)
}
