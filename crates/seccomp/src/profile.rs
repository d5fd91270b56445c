//! Profiles as users write them: rules that depend on capabilities, architecture and kernel.

use knarr_spec::runtime::{Seccomp, SeccompAction, SeccompArg, SeccompSyscalls};
use serde::{Deserialize, Serialize};

use crate::{Arch, Error, Result, docker};

/// A profile in Docker's JSON form (`--security-opt seccomp=FILE`), a superset of the OCI section.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
#[expect(missing_docs, reason = "named and explained by the OCI specification")]
pub struct Profile {
    pub default_action: SeccompAction,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub default_errno_ret: Option<u32>,
    /// Architectures by the host's own; or `architectures`, but not both.
    #[serde(deserialize_with = "or_default", skip_serializing_if = "Vec::is_empty")]
    pub arch_map: Vec<ArchMap>,
    #[serde(deserialize_with = "or_default", skip_serializing_if = "Vec::is_empty")]
    pub architectures: Vec<String>,
    #[serde(deserialize_with = "or_default", skip_serializing_if = "Vec::is_empty")]
    pub flags: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub listener_path: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub listener_metadata: Option<String>,
    /// The rules.
    #[serde(deserialize_with = "or_default", skip_serializing_if = "Vec::is_empty")]
    pub syscalls: Vec<Rule>,
}

/// The architectures that come with one.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ArchMap {
    /// The host's own, `SCMP_ARCH_…`.
    pub architecture: String,
    /// Those whose programs it also runs.
    pub sub_architectures: Option<Vec<String>>,
}

/// A rule with its circumstances.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
#[expect(missing_docs, reason = "named and explained by the OCI specification")]
pub struct Rule {
    /// The calls. An old profile has one, as `name`.
    #[serde(deserialize_with = "or_default", skip_serializing_if = "Vec::is_empty")]
    pub names: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    pub action: SeccompAction,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub errno_ret: Option<u32>,
    #[serde(deserialize_with = "or_default", skip_serializing_if = "Vec::is_empty")]
    pub args: Vec<SeccompArg>,
    /// The rule counts only if all of this is so.
    #[serde(
        deserialize_with = "or_default",
        skip_serializing_if = "Condition::is_empty"
    )]
    pub includes: Condition,
    /// The rule does not count if any of this is so.
    #[serde(
        deserialize_with = "or_default",
        skip_serializing_if = "Condition::is_empty"
    )]
    pub excludes: Condition,
}

/// Circumstances of a rule.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Condition {
    /// Capabilities (`CAP_…`) in the bounding set: all of them (`includes`), any (`excludes`).
    #[serde(deserialize_with = "or_default", skip_serializing_if = "Vec::is_empty")]
    pub caps: Vec<String>,
    /// The host is one of these (`amd64`, `arm64`, …).
    #[serde(deserialize_with = "or_default", skip_serializing_if = "Vec::is_empty")]
    pub arches: Vec<String>,
    /// The kernel is this one or newer (`4.8`).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub min_kernel: Option<String>,
}

impl Condition {
    fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

impl Profile {
    /// Parses a profile file.
    ///
    /// # Errors
    /// [`Error::Profile`] when it is no JSON of that form, [`Error::Ambiguous`] when it says one
    /// thing in two ways.
    pub fn parse(json: &[u8]) -> Result<Self> {
        let mut profile: Self = serde_json::from_slice(json).map_err(Error::Profile)?;
        if !profile.architectures.is_empty() && !profile.arch_map.is_empty() {
            return Err(Error::Ambiguous("`architectures` and `archMap`"));
        }
        for rule in &mut profile.syscalls {
            match rule.name.take().filter(|name| !name.is_empty()) {
                Some(_) if !rule.names.is_empty() => {
                    return Err(Error::Ambiguous("`name` and `names`"));
                }
                name => rule.names.extend(name),
            }
            for kernel in [&rule.includes.min_kernel, &rule.excludes.min_kernel] {
                if let Some(kernel) = kernel.as_deref().filter(|text| version(text).is_none()) {
                    return Err(Error::Kernel(kernel.to_owned()));
                }
            }
        }
        Ok(profile)
    }

    /// Docker's default profile.
    pub fn docker() -> Self {
        docker::profile()
    }

    /// The OCI section for a container with these capabilities (`CAP_…`, the bounding set) on the
    /// running kernel.
    pub fn section(&self, capabilities: &[impl AsRef<str>], arch: Arch) -> Seccomp {
        let uname = knarr_sys::rustix::system::uname();
        self.section_on(capabilities, arch, &uname.release().to_string_lossy())
    }

    /// The same for a kernel release (`6.1.0-18-amd64`).
    pub(crate) fn section_on(
        &self,
        capabilities: &[impl AsRef<str>],
        arch: Arch,
        release: &str,
    ) -> Seccomp {
        let has = |capability: &String| capabilities.iter().any(|c| c.as_ref() == capability);
        let host = |name: &String| name == arch.docker_name();
        let kernel = version(release).unwrap_or((u32::MAX, 0));
        let reached = |text: &Option<String>| {
            text.as_deref()
                .and_then(version)
                .map(|wanted| kernel >= wanted)
        };
        let counts = |rule: &&Rule| {
            let Rule {
                includes, excludes, ..
            } = rule;
            (includes.arches.is_empty() || includes.arches.iter().any(host))
                && includes.caps.iter().all(has)
                && reached(&includes.min_kernel).unwrap_or(true)
                && !excludes.arches.iter().any(host)
                && !excludes.caps.iter().any(has)
                && !reached(&excludes.min_kernel).unwrap_or(false)
        };
        let mut architectures = self.architectures.clone();
        if let Some(map) = self
            .arch_map
            .iter()
            .find(|map| map.architecture == arch.oci_name())
        {
            architectures.push(map.architecture.clone());
            architectures.extend(map.sub_architectures.iter().flatten().cloned());
        }
        Seccomp {
            default_action: self.default_action,
            default_errno_ret: self.default_errno_ret,
            architectures,
            flags: self.flags.clone(),
            listener_path: self.listener_path.clone(),
            listener_metadata: self.listener_metadata.clone(),
            syscalls: self
                .syscalls
                .iter()
                .filter(counts)
                .map(|rule| SeccompSyscalls {
                    names: rule.names.clone(),
                    action: rule.action,
                    errno_ret: rule.errno_ret,
                    args: rule.args.clone(),
                })
                .collect(),
        }
    }
}

/// Docker's default profile as an OCI section, for a container with these capabilities.
pub fn default_profile(capabilities: &[impl AsRef<str>], arch: Arch) -> Seccomp {
    Profile::docker().section(capabilities, arch)
}

/// The first two numbers of a kernel release.
fn version(release: &str) -> Option<(u32, u32)> {
    let mut parts = release.split(|c: char| !c.is_ascii_digit());
    Some((parts.next()?.parse().ok()?, parts.next()?.parse().ok()?))
}

/// Go writes an empty list as `null`.
fn or_default<'de, D, T>(deserializer: D) -> std::result::Result<T, D::Error>
where
    D: serde::Deserializer<'de>,
    T: Default + Deserialize<'de>,
{
    Ok(Option::deserialize(deserializer)?.unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(section: &Seccomp) -> Vec<&str> {
        section
            .syscalls
            .iter()
            .flat_map(|rule| &rule.names)
            .map(String::as_str)
            .collect()
    }

    #[test]
    fn dockers_profile_follows_capabilities_architecture_and_kernel() {
        let none: [&str; 0] = [];
        let plain = Profile::docker().section_on(&none, Arch::X86_64, "6.1.0-18-amd64");
        assert_eq!(plain.default_errno_ret, Some(1));
        assert_eq!(
            plain.architectures,
            ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32"]
        );
        let plain = names(&plain);
        for (name, there) in [
            ("read", true),
            ("ptrace", true),
            ("arch_prctl", true),
            ("clone3", true),
            ("set_tls", false),
            ("mount", false),
            ("chroot", false),
            ("bpf", false),
            ("keyctl", false),
            ("io_uring_setup", false),
            ("userfaultfd", false),
        ] {
            assert_eq!(plain.contains(&name), there, "{name}");
        }
        let admin = Profile::docker().section_on(&["CAP_SYS_ADMIN"], Arch::X86_64, "4.7");
        let clone3 = admin
            .syscalls
            .iter()
            .find(|rule| rule.names.iter().any(|n| n == "clone3"));
        assert_eq!(clone3.unwrap().action, SeccompAction::Allow);
        assert!(names(&admin).contains(&"mount") && !names(&admin).contains(&"ptrace"));
        let arm = Profile::docker().section_on(&none, Arch::Aarch64, "6.1");
        assert_eq!(arm.architectures, ["SCMP_ARCH_AARCH64", "SCMP_ARCH_ARM"]);
        assert!(names(&arm).contains(&"set_tls") && !names(&arm).contains(&"arch_prctl"));
    }

    #[test]
    fn every_name_in_dockers_profile_is_a_call_somewhere() {
        // Of architectures without a table here, and aliases of no number of their own.
        let foreign = [
            "epoll_ctl_old",
            "epoll_wait_old",
            "fstatat64",
            "riscv_hwprobe",
            "riscv_flush_icache",
            "s390_pci_mmio_read",
            "s390_pci_mmio_write",
            "s390_runtime_instr",
            "swapcontext",
            "sync_file_range2",
            "umount",
            "utimensat_time64",
        ];
        for name in Profile::docker()
            .syscalls
            .iter()
            .flat_map(|rule| &rule.names)
        {
            let known = crate::arch::Call::by_name(name).is_some();
            assert!(known || foreign.contains(&name.as_str()), "{name}");
        }
    }

    #[test]
    fn a_profile_file_is_read_in_all_its_dialects() {
        let profile = Profile::parse(
            br#"{"defaultAction": "SCMP_ACT_ALLOW", "architectures": null, "x": 1, "syscalls": [
                {"name": "read", "action": "SCMP_ACT_KILL", "args": null, "includes": null},
                {"names": ["write"], "action": "SCMP_ACT_ERRNO", "errnoRet": 5, "comment": "no",
                 "args": [{"index": 0, "value": 1, "op": "SCMP_CMP_EQ"}],
                 "excludes": {"minKernel": "5.0"}}]}"#,
        )
        .unwrap();
        let section = profile.section_on(&["CAP_X"], Arch::X86_64, "4.19.0");
        assert_eq!(names(&section), ["read", "write"]);
        assert_eq!(section.syscalls[0].action, SeccompAction::KillThread);
        assert_eq!(
            names(&profile.section_on(&["CAP_X"], Arch::X86_64, "5.0.1")),
            ["read"]
        );
        for bad in [
            &b"{"[..],
            br#"{"defaultAction": "NO"}"#,
            br#"{"architectures": ["a"], "archMap": [{"architecture": "b"}]}"#,
            br#"{"syscalls": [{"name": "a", "names": ["b"], "action": "SCMP_ACT_ALLOW"}]}"#,
            br#"{"syscalls": [{"names": ["b"], "includes": {"minKernel": "new"}}]}"#,
        ] {
            assert!(
                Profile::parse(bad).is_err(),
                "{}",
                String::from_utf8_lossy(bad)
            );
        }
    }
}
