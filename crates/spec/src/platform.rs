//! Which machine an image is for (image-spec, image-index.md "platform").

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Operating system, CPU architecture and its variant, in Go's words (`linux/arm64/v8`).
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Platform {
    /// `GOARCH`, such as `amd64`.
    pub architecture: String,
    /// `GOOS`, such as `linux`.
    pub os: String,
    /// `v7`, `v8`, …
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub variant: Option<String>,
    /// Windows only.
    #[serde(
        rename = "os.version",
        default,
        skip_serializing_if = "Option::is_none"
    )]
    pub os_version: Option<String>,
}

/// Why a text is not a platform.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not a platform: expected os/architecture or os/architecture/variant")]
pub struct PlatformError(String);

impl Platform {
    /// The machine that this binary was built for.
    pub fn host() -> Self {
        let architecture = match std::env::consts::ARCH {
            "x86_64" => "amd64",
            "aarch64" => "arm64",
            "x86" => "386",
            other => other,
        };
        Self::new("linux", architecture, None)
    }

    fn new(os: &str, architecture: &str, variant: Option<&str>) -> Self {
        // The variants that mean "nothing special" (containerd's normalization).
        let (architecture, variant) = match (architecture, variant) {
            ("x86_64" | "x86-64", v) => ("amd64", v),
            ("aarch64", v) => ("arm64", v),
            ("armhf", None) => ("arm", Some("v7")),
            ("armel", None) => ("arm", Some("v6")),
            ("i386", v) => ("386", v),
            other => other,
        };
        let variant = match (architecture, variant) {
            ("amd64", Some("v1")) | ("arm64", Some("v8" | "8")) => None,
            ("arm", None) => Some("v7"),
            (_, v) => v,
        };
        Self {
            architecture: architecture.to_owned(),
            os: os.to_owned(),
            variant: variant.map(str::to_owned),
            os_version: None,
        }
    }

    /// Whether an image for `self` runs for a user who asked for `wanted`.
    pub fn satisfies(&self, wanted: &Self) -> bool {
        self.rank(wanted).is_some()
    }
}

impl Platform {
    /// How well an image for `self` serves a user who asked for `wanted`: `None` not at all, 0
    /// exactly, more where a lower variant of the same architecture stands in (arm v7 runs v6;
    /// amd64 v3 runs v2), as containerd chooses.
    pub fn rank(&self, wanted: &Self) -> Option<u32> {
        let norm = |p: &Self| Self::new(&p.os, &p.architecture, p.variant.as_deref());
        let (have, want) = (norm(self), norm(wanted));
        if have.os != want.os || have.architecture != want.architecture {
            return None;
        }
        if have.variant == want.variant {
            return Some(0);
        }
        // amd64 without a variant is v1, arm64 is v8.
        let level = |p: &Self| match (&p.variant, p.architecture.as_str()) {
            (Some(variant), _) => variant.strip_prefix('v')?.parse::<u32>().ok(),
            (None, "amd64") => Some(1),
            (None, "arm64") => Some(8),
            (None, _) => None,
        };
        let (have, want) = (level(&have)?, level(&want)?);
        want.checked_sub(have)
    }
}

impl fmt::Display for Platform {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.os, self.architecture)?;
        self.variant
            .iter()
            .try_for_each(|variant| write!(f, "/{variant}"))
    }
}

impl FromStr for Platform {
    type Err = PlatformError;

    fn from_str(text: &str) -> Result<Self, PlatformError> {
        let good = |part: &str| {
            !part.is_empty()
                && part
                    .bytes()
                    .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-' | b'.'))
        };
        let mut parts = text.split('/');
        let (os, architecture, variant) = match (parts.next(), parts.next(), parts.next()) {
            // Docker accepts an architecture alone.
            (Some(architecture), None, None) if architecture != "linux" => {
                ("linux", architecture, None)
            }
            (Some(os), Some(architecture), variant) => (os, architecture, variant),
            _ => return Err(PlatformError(text.to_owned())),
        };
        if parts.next().is_some() || ![os, architecture].into_iter().chain(variant).all(good) {
            return Err(PlatformError(text.to_owned()));
        }
        Ok(Self::new(os, architecture, variant))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lower_variant_stands_in_for_a_higher_one() {
        let parse = |text: &str| text.parse::<Platform>().unwrap();
        for (have, wanted, rank) in [
            ("linux/amd64", "linux/amd64", Some(0)),
            ("linux/amd64/v1", "linux/amd64", Some(0)),
            ("linux/amd64", "linux/amd64/v3", Some(2)),
            ("linux/amd64/v2", "linux/amd64", None),
            ("linux/arm/v6", "linux/arm/v7", Some(1)),
            ("linux/arm/v7", "linux/arm/v6", None),
            ("linux/arm64/v8", "linux/arm64", Some(0)),
            ("linux/386", "linux/amd64", None),
            ("windows/amd64", "linux/amd64", None),
        ] {
            assert_eq!(
                parse(have).rank(&parse(wanted)),
                rank,
                "{have} for {wanted}"
            );
        }
    }

    #[test]
    fn platforms_are_normalized() {
        for (text, printed) in [
            ("linux/amd64", "linux/amd64"),
            ("linux/x86_64", "linux/amd64"),
            ("arm64", "linux/arm64"),
            ("linux/arm64/v8", "linux/arm64"),
            ("linux/arm", "linux/arm/v7"),
            ("linux/arm/v6", "linux/arm/v6"),
        ] {
            assert_eq!(text.parse::<Platform>().unwrap().to_string(), printed);
        }
        for bad in ["", "/", "linux", "linux/", "a/b/c/d", "li nux/amd64"] {
            assert!(bad.parse::<Platform>().is_err(), "{bad}");
        }
    }
}
