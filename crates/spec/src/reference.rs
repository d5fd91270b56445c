//! Image references, as Docker types and prints them (distribution `reference` grammar).

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::Digest;

const DOCKER_HUB: &str = "docker.io";

/// A normalized image reference: `registry/repository[:tag][@digest]`.
///
/// Parsing adds what Docker adds: registry `docker.io`, its `library/` prefix, and the tag
/// `latest` where neither tag nor digest is given. `Display` prints the full form, [`familiar`]
/// what Docker shows.
///
/// [`familiar`]: Reference::familiar
///
/// ```
/// let reference: knarr_spec::Reference = "debian".parse().unwrap();
/// assert_eq!(reference.to_string(), "docker.io/library/debian:latest");
/// assert_eq!(reference.familiar(), "debian:latest");
/// ```
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Reference {
    registry: String,
    repository: String,
    tag: Option<String>,
    digest: Option<Digest>,
}

/// Why a text is not an image reference.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("invalid reference `{text}`: {reason}")]
pub struct ReferenceError {
    text: String,
    reason: &'static str,
}

impl Reference {
    /// Host name or address, with `:port` where given.
    pub fn registry(&self) -> &str {
        &self.registry
    }

    /// The path below the registry, such as `library/debian`.
    pub fn repository(&self) -> &str {
        &self.repository
    }

    /// The tag, unless the reference is by digest only.
    pub fn tag(&self) -> Option<&str> {
        self.tag.as_deref()
    }

    /// The digest, where the reference is pinned.
    pub fn digest(&self) -> Option<Digest> {
        self.digest
    }

    /// The same repository by digest, without a tag.
    #[must_use]
    pub fn with_digest(&self, digest: Digest) -> Self {
        Self {
            tag: None,
            digest: Some(digest),
            ..self.clone()
        }
    }

    /// `registry/repository` as Docker shows it: without `docker.io/` and `library/`.
    pub fn familiar_name(&self) -> String {
        if self.registry == DOCKER_HUB {
            let short = match self.repository.strip_prefix("library/") {
                // What is left of `library/a/b` would mean another repository.
                Some(rest) if !rest.contains('/') => rest,
                _ => &self.repository,
            };
            // And what begins like a registry would mean that one.
            let first = short.split_once('/').map(|(first, _)| first);
            if !first.is_some_and(is_registry) {
                return short.to_owned();
            }
        }
        self.full_name()
    }

    /// `registry/repository`, whatever the registry.
    pub fn full_name(&self) -> String {
        format!("{}/{}", self.registry, self.repository)
    }

    /// The whole reference as Docker shows it.
    pub fn familiar(&self) -> String {
        let mut text = self.familiar_name();
        if let Some(tag) = &self.tag {
            text = format!("{text}:{tag}");
        }
        if let Some(digest) = &self.digest {
            text = format!("{text}@{digest}");
        }
        text
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.registry, self.repository)?;
        if let Some(tag) = &self.tag {
            write!(f, ":{tag}")?;
        }
        if let Some(digest) = &self.digest {
            write!(f, "@{digest}")?;
        }
        Ok(())
    }
}

impl FromStr for Reference {
    type Err = ReferenceError;

    fn from_str(text: &str) -> Result<Self, ReferenceError> {
        let error = |reason| ReferenceError {
            text: text.to_owned(),
            reason,
        };
        let (rest, digest) = match text.split_once('@') {
            Some((rest, digest)) => {
                let digest = digest
                    .parse()
                    .map_err(|_| error("what follows @ is not a sha256 digest"))?;
                (rest, Some(digest))
            }
            None => (text, None),
        };
        // A colon after the last slash starts a tag; one before it is a port.
        let (name, tag) = match rest.rsplit_once(':') {
            Some((name, tag)) if !tag.contains('/') => (name, Some(tag)),
            _ => (rest, None),
        };
        if let Some(tag) = tag
            && !is_tag(tag)
        {
            return Err(error(
                "a tag is 1 to 128 of [A-Za-z0-9_.-] and does not start with . or -",
            ));
        }
        if name.is_empty() {
            return Err(error("the name is empty"));
        }
        let (registry, repository) = match name.split_once('/') {
            Some((host, path)) if is_registry(host) => (host, path.to_owned()),
            Some(_) => (DOCKER_HUB, name.to_owned()),
            None => (DOCKER_HUB, format!("library/{name}")),
        };
        let registry = match registry {
            "index.docker.io" => DOCKER_HUB,
            other => other,
        };
        let repository = if registry == DOCKER_HUB && !repository.contains('/') {
            format!("library/{repository}")
        } else {
            repository
        };
        if !is_host(registry) {
            return Err(error(
                "the registry is not a host name with an optional port",
            ));
        }
        if repository.bytes().any(|b| b.is_ascii_uppercase()) {
            return Err(error("the repository name must be lower case"));
        }
        if !repository.split('/').all(is_component) {
            return Err(error(
                "the repository is made of [a-z0-9]+ parts joined by . _ __ or -, and slashes",
            ));
        }
        if registry.len() + repository.len() > 254 {
            return Err(error("the name is longer than 255 bytes"));
        }
        let tag = tag
            .map(str::to_owned)
            .or_else(|| digest.is_none().then(|| "latest".to_owned()));
        Ok(Self {
            registry: registry.to_owned(),
            repository,
            tag,
            digest,
        })
    }
}

/// Docker's rule for telling a registry from the first part of a repository.
fn is_registry(part: &str) -> bool {
    part == "localhost" || part.contains(['.', ':']) || part.bytes().any(|b| b.is_ascii_uppercase())
}

fn is_host(host: &str) -> bool {
    let (name, port) = match host.strip_prefix('[') {
        Some(rest) => match rest.split_once(']') {
            Some((address, port)) => {
                if !address.bytes().all(|b| b.is_ascii_hexdigit() || b == b':') {
                    return false;
                }
                ("v6", port.strip_prefix(':'))
            }
            None => return false,
        },
        None => match host.split_once(':') {
            Some((name, port)) => (name, Some(port)),
            None => (host, None),
        },
    };
    let port_is_good = port.is_none_or(|p| p.parse::<u16>().is_ok());
    port_is_good
        && !name.is_empty()
        && name.split('.').all(|label| {
            !label.is_empty()
                && !label.starts_with('-')
                && !label.ends_with('-')
                && label
                    .bytes()
                    .all(|b| b.is_ascii_alphanumeric() || b == b'-')
        })
}

fn is_tag(tag: &str) -> bool {
    (1..=128).contains(&tag.len())
        && !tag.starts_with(['.', '-'])
        && tag
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.' | b'-'))
}

/// `[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*`
fn is_component(part: &str) -> bool {
    let alphanumeric = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    let bytes = part.as_bytes();
    let edges = bytes.first().copied().is_some_and(alphanumeric)
        && bytes.last().copied().is_some_and(alphanumeric);
    edges
        && part
            .split(|c: char| c.is_ascii_lowercase() || c.is_ascii_digit())
            .all(|separator| {
                matches!(separator, "" | "." | "_" | "__") || separator.bytes().all(|b| b == b'-')
            })
}

impl Serialize for Reference {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Reference {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?
            .parse()
            .map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_shown_means_the_same() {
        for (text, shown) in [
            ("docker.io/library/x", "x:latest"),
            ("docker.io/library/x/y", "library/x/y:latest"),
            ("docker.io/localhost/x", "docker.io/localhost/x:latest"),
            ("docker.io/a.b/c", "docker.io/a.b/c:latest"),
        ] {
            let reference: Reference = text.parse().unwrap();
            assert_eq!(reference.familiar(), shown);
            assert_eq!(shown.parse::<Reference>().unwrap(), reference);
        }
    }

    #[test]
    fn references_are_completed_as_docker_does() {
        let digest = format!("sha256:{}", "a".repeat(64));
        for (text, full, familiar) in [
            ("debian", "docker.io/library/debian:latest", "debian:latest"),
            ("debian:12", "docker.io/library/debian:12", "debian:12"),
            ("user/app", "docker.io/user/app:latest", "user/app:latest"),
            (
                "index.docker.io/debian",
                "docker.io/library/debian:latest",
                "debian:latest",
            ),
            ("localhost/a", "localhost/a:latest", "localhost/a:latest"),
            (
                "127.0.0.1:5000/a/b/c:v1",
                "127.0.0.1:5000/a/b/c:v1",
                "127.0.0.1:5000/a/b/c:v1",
            ),
            ("[::1]:5000/a", "[::1]:5000/a:latest", "[::1]:5000/a:latest"),
            (
                "quay.io/a__b/c--d.e",
                "quay.io/a__b/c--d.e:latest",
                "quay.io/a__b/c--d.e:latest",
            ),
        ] {
            let reference: Reference = text.parse().unwrap();
            assert_eq!(reference.to_string(), full);
            assert_eq!(reference.familiar(), familiar);
            assert_eq!(full.parse::<Reference>().unwrap(), reference);
        }
        let pinned: Reference = format!("debian:12@{digest}").parse().unwrap();
        assert_eq!(
            pinned.to_string(),
            format!("docker.io/library/debian:12@{digest}")
        );
        let by_digest: Reference = format!("debian@{digest}").parse().unwrap();
        assert_eq!(by_digest.tag(), None);
    }

    #[test]
    fn what_is_not_a_reference_is_refused() {
        for bad in [
            "",
            ":",
            "/",
            "Debian",
            "debian:",
            "debian:-x",
            "a//b",
            "../etc",
            "a/../b",
            "a b",
            "debian@sha256:12",
            "reg.io/A",
            "reg.io:port/a",
            "a_-b",
            "a\n",
            "-a",
            "host-:5000/a",
        ] {
            assert!(bad.parse::<Reference>().is_err(), "{bad:?}");
        }
    }
}
