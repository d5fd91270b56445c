//! Telling a manifest from an index, strictly.
//!
//! Two readers that see different images in the same bytes are an attack (CVE-2021-41190 and its
//! family), so what could be read in two ways is refused: an object key given twice, in whatever
//! case, and the fields of both kinds in one document.

use std::collections::HashSet;
use std::fmt;

use serde::Deserialize;
use serde::de::{DeserializeSeed, Deserializer, MapAccess, SeqAccess, Visitor};

use crate::image::{Index, Manifest, media_type};

/// The most bytes that a manifest, index or configuration may have (distribution-spec, "Pushing
/// manifests": registries should accept 4 MiB).
pub const DOCUMENT_LIMIT: u64 = 4 << 20;

/// The most layers an image may have: overlayfs takes 500 lower layers, Docker makes 127.
pub const LAYER_LIMIT: usize = 500;

/// The most manifests an index may have.
const INDEX_LIMIT: usize = 10_000;

/// What a registry or a layout keeps under a digest or tag.
#[derive(Debug, Clone, PartialEq)]
pub enum Document {
    /// One image.
    Manifest(Box<Manifest>),
    /// Several.
    Index(Index),
}

/// Why bytes are not a manifest or index.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DocumentError {
    /// Not JSON, a key twice, or fields missing or of the wrong type.
    #[error("it is not a well-formed manifest")]
    Json(#[from] serde_json::Error),
    /// It could be read as an image and as an index.
    #[error("it is ambiguous: it has the fields of an image and of an index")]
    Ambiguous,
    /// The declared media type and the fields disagree.
    #[error("it is said to be {said} but its fields are those of {fields}")]
    Mismatch {
        /// The media type that was declared.
        said: String,
        /// What the fields are of.
        fields: &'static str,
    },
    /// Neither an image nor an index.
    #[error("it is neither an image nor an index (media type {0:?})")]
    Unknown(String),
    /// Docker's schema 1, which nobody writes any more.
    #[error("it is in Docker's schema 1 format, which is obsolete and not verifiable")]
    Schema1,
    /// More layers or manifests than an image can have.
    #[error("it lists {found} {what}, more than {limit}")]
    TooMany {
        /// Of what.
        what: &'static str,
        /// How many there are.
        found: usize,
        /// How many there may be.
        limit: usize,
    },
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Probe {
    #[serde(default)]
    schema_version: u32,
    media_type: Option<String>,
    config: Option<serde::de::IgnoredAny>,
    layers: Option<serde::de::IgnoredAny>,
    manifests: Option<serde::de::IgnoredAny>,
    #[serde(rename = "fsLayers")]
    fs_layers: Option<serde::de::IgnoredAny>,
}

impl Document {
    /// Parses a manifest or index. `content_type` is what the transport or the descriptor said it
    /// is, empty where nothing was said.
    ///
    /// # Errors
    /// Whatever could be read in two ways, see the module.
    pub fn parse(bytes: &[u8], content_type: &str) -> Result<Self, DocumentError> {
        check_unambiguous(bytes)?;
        let probe: Probe = serde_json::from_slice(bytes)?;
        if probe.schema_version == 1 && probe.fs_layers.is_some() {
            return Err(DocumentError::Schema1);
        }
        let image = probe.config.is_some() || probe.layers.is_some() || probe.fs_layers.is_some();
        let index = probe.manifests.is_some();
        if image && index {
            return Err(DocumentError::Ambiguous);
        }
        // `application/vnd…+json; charset=utf-8`
        let content_type = content_type.split(';').next().unwrap_or_default().trim();
        for said in probe
            .media_type
            .as_deref()
            .into_iter()
            .chain([content_type])
        {
            let fields = if index { "an index" } else { "an image" };
            let mismatch = match said {
                media_type::OCI_INDEX | media_type::DOCKER_LIST => !index,
                media_type::OCI_MANIFEST | media_type::DOCKER_MANIFEST => index,
                // Many servers know no better.
                _ => false,
            };
            if mismatch {
                let said = said.to_owned();
                return Err(DocumentError::Mismatch { said, fields });
            }
        }
        let limit = |what, found, limit| {
            if found > limit {
                return Err(DocumentError::TooMany { what, found, limit });
            }
            Ok(())
        };
        if index {
            let index: Index = serde_json::from_slice(bytes)?;
            limit("manifests", index.manifests.len(), INDEX_LIMIT)?;
            Ok(Self::Index(index))
        } else if image {
            let manifest: Box<Manifest> = serde_json::from_slice(bytes)?;
            limit("layers", manifest.layers.len(), LAYER_LIMIT)?;
            Ok(Self::Manifest(manifest))
        } else {
            let said = probe.media_type.unwrap_or_else(|| content_type.to_owned());
            Err(DocumentError::Unknown(said))
        }
    }
}

/// Refuses JSON in which an object has a key twice. Go's decoder, which most of the world reads
/// manifests with, ignores case, so two keys that differ in case only count as twice too; not so
/// below `annotations` and the like, whose keys are data.
///
/// # Errors
/// Where the JSON is malformed or ambiguous.
pub fn check_unambiguous(bytes: &[u8]) -> Result<(), serde_json::Error> {
    let mut deserializer = serde_json::Deserializer::from_slice(bytes);
    Unambiguous { fold_case: true }.deserialize(&mut deserializer)?;
    deserializer.end()
}

#[derive(Clone, Copy)]
struct Unambiguous {
    fold_case: bool,
}

impl<'de> DeserializeSeed<'de> for Unambiguous {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Unambiguous {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        let mut seen = HashSet::new();
        while let Some(key) = map.next_key::<String>()? {
            // `annotations`, `Labels`, `ExposedPorts`, `Volumes`: sets of the user's own words.
            let data = matches!(
                key.as_str(),
                "annotations" | "Labels" | "ExposedPorts" | "Volumes" | "labels"
            );
            let folded = if self.fold_case {
                key.to_ascii_lowercase()
            } else {
                key.clone()
            };
            if !seen.insert(folded) {
                return Err(serde::de::Error::custom(format_args!(
                    "the key {key:?} is given twice"
                )));
            }
            map.next_value_seed(Self { fold_case: !data })?;
        }
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<(), A::Error> {
        while seq.next_element_seed(self)?.is_some() {}
        Ok(())
    }

    fn visit_bool<E>(self, _: bool) -> Result<(), E> {
        Ok(())
    }

    fn visit_i64<E>(self, _: i64) -> Result<(), E> {
        Ok(())
    }

    fn visit_u64<E>(self, _: u64) -> Result<(), E> {
        Ok(())
    }

    fn visit_f64<E>(self, _: f64) -> Result<(), E> {
        Ok(())
    }

    fn visit_str<E>(self, _: &str) -> Result<(), E> {
        Ok(())
    }

    fn visit_unit<E>(self) -> Result<(), E> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn descriptor() -> String {
        format!(
            r#"{{"mediaType":"x","digest":"sha256:{}","size":1}}"#,
            "a".repeat(64)
        )
    }

    #[test]
    fn kinds_are_told_by_their_fields() {
        let d = descriptor();
        let image = format!(r#"{{"schemaVersion":2,"config":{d},"layers":[{d}]}}"#);
        let index = format!(r#"{{"schemaVersion":2,"manifests":[{d}]}}"#);
        for said in [
            "",
            "text/plain",
            "application/vnd.oci.image.manifest.v1+json; charset=utf-8",
        ] {
            assert!(matches!(
                Document::parse(image.as_bytes(), said),
                Ok(Document::Manifest(m)) if m.layers.len() == 1
            ));
        }
        assert!(matches!(
            Document::parse(index.as_bytes(), media_type::DOCKER_LIST),
            Ok(Document::Index(i)) if i.manifests.len() == 1
        ));
    }

    #[test]
    fn what_could_be_read_in_two_ways_is_refused() {
        let d = descriptor();
        let cases = [
            (
                format!(r#"{{"config":{d},"layers":[],"manifests":[]}}"#),
                "",
                "ambiguous",
            ),
            (
                r#"{"layers":[],"manifests":[]}"#.to_owned(),
                "",
                "ambiguous",
            ),
            (
                format!(r#"{{"config":{d},"layers":[],"layers":[{d}]}}"#),
                "",
                "not a well-formed",
            ),
            (
                format!(r#"{{"config":{d},"layers":[],"Layers":[{d}]}}"#),
                "",
                "not a well-formed",
            ),
            (
                format!(r#"{{"config":{d},"layers":[{{"digest":"a","digest":"b"}}]}}"#),
                "",
                "not a well-formed",
            ),
            (
                format!(r#"{{"config":{d},"layers":[]}}"#),
                media_type::OCI_INDEX,
                "fields are those",
            ),
            (
                format!(
                    r#"{{"mediaType":"{}","manifests":[]}}"#,
                    media_type::OCI_MANIFEST
                ),
                "",
                "fields are those",
            ),
            ("{}".to_owned(), "text/html", "neither"),
            (
                r#"{"schemaVersion":1,"fsLayers":[]}"#.to_owned(),
                "",
                "schema 1",
            ),
            ("<html>".to_owned(), "", "not a well-formed"),
            (
                format!(r#"{{"config":{d},"layers":[]}} trailing"#),
                "",
                "not a well-formed",
            ),
            (
                format!(
                    r#"{{"schemaVersion":2,"config":{d},"layers":[{}]}}"#,
                    vec![d.clone(); 501].join(",")
                ),
                "",
                "501 layers",
            ),
        ];
        for (json, said, expected) in cases {
            let error = Document::parse(json.as_bytes(), said).unwrap_err();
            assert!(error.to_string().contains(expected), "{json}: {error}");
        }
        // Deep nesting ends in an error, not in a stack overflow.
        assert!(Document::parse("[".repeat(100_000).as_bytes(), "").is_err());
    }

    #[test]
    fn annotations_may_differ_in_case() {
        let d = descriptor();
        let json = format!(
            r#"{{"schemaVersion":2,"config":{d},"layers":[],"annotations":{{"a":"1","A":"2"}}}}"#
        );
        assert!(Document::parse(json.as_bytes(), "").is_ok());
    }
}
