//! Container ids and names.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// A container's id: 64 lower-case hexadecimal digits, random, as Docker's.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ContainerId(String);

/// A container's (or volume's) name: Docker's `[a-zA-Z0-9][a-zA-Z0-9_.-]+`.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ContainerName(String);

/// Why a text is neither an id nor a name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum IdError {
    /// Not 64 lower-case hexadecimal digits.
    #[error("`{0}` is not a container id: expected 64 lower-case hexadecimal digits")]
    Id(String),
    /// Holds characters that a name may not.
    #[error("invalid name `{0}`: only [a-zA-Z0-9][a-zA-Z0-9_.-]+ is allowed, at most 255 bytes")]
    Name(String),
}

impl ContainerId {
    /// An id out of 32 random bytes.
    pub fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(crate::Digest::from_bytes(bytes).hex())
    }

    /// All 64 digits.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The first 12 digits, as Docker shows ids.
    pub fn short(&self) -> &str {
        self.0.get(..12).unwrap_or(&self.0)
    }
}

impl FromStr for ContainerId {
    type Err = IdError;

    fn from_str(text: &str) -> Result<Self, IdError> {
        crate::Digest::from_hex(text)
            .map(|_| Self(text.to_owned()))
            .map_err(|_| IdError::Id(text.to_owned()))
    }
}

impl ContainerName {
    /// The name, without Docker's leading slash.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for ContainerName {
    type Err = IdError;

    /// Accepts the leading slash that Docker's API prints.
    fn from_str(text: &str) -> Result<Self, IdError> {
        let name = text.strip_prefix('/').unwrap_or(text);
        let mut bytes = name.bytes();
        let first = bytes.next().is_some_and(|b| b.is_ascii_alphanumeric());
        let rest = bytes.all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.' | b'-'));
        if first && rest && (2..=255).contains(&name.len()) {
            Ok(Self(name.to_owned()))
        } else {
            Err(IdError::Name(text.to_owned()))
        }
    }
}

macro_rules! text_newtype {
    ($name:ident) => {
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.serialize_str(&self.0)
            }
        }
        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                String::deserialize(deserializer)?
                    .parse()
                    .map_err(serde::de::Error::custom)
            }
        }
    };
}
text_newtype!(ContainerId);
text_newtype!(ContainerName);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_follow_dockers_rule() {
        for good in ["web", "/web", "a1", "A.b_c-d", &"x".repeat(255)] {
            assert!(good.parse::<ContainerName>().is_ok(), "{good}");
        }
        for bad in [
            "",
            "/",
            "a",
            "-web",
            ".web",
            "we b",
            "web/1",
            "wéb",
            "a\n",
            &"x".repeat(256),
        ] {
            assert!(bad.parse::<ContainerName>().is_err(), "{bad}");
        }
    }
}
