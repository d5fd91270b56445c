//! How a layer has travelled: compressed forms of it that registries were given, beside it in
//! `layers/sha256/<id>/travelled.json`.
//!
//! Only hints: a push asks the registry for these before it compresses anything. What is missing,
//! damaged or wrong costs time, nothing else.

use std::path::PathBuf;

use knarr_fs::Durability;
use knarr_spec::image::Descriptor;
use knarr_spec::{Digest, Reference};
use serde::{Deserialize, Serialize};

use crate::LayerId;

const FILE: &str = "travelled.json";
const VERSION: u32 = 1;
/// The most forms and repositories that are remembered, the latest first.
const MOST: usize = 8;

/// The file.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Travelled {
    version: u32,
    forms: Vec<Form>,
}

#[derive(Debug, Serialize, Deserialize)]
struct Form {
    blob: Descriptor,
    /// `registry/repository` that have it.
    at: Vec<String>,
}

impl Travelled {
    /// What is remembered of a layer.
    pub(crate) fn load(layers: &knarr_layer::Store, id: LayerId) -> Self {
        let read = knarr_fs::read(&path(layers, id)).ok();
        let known = read.and_then(|bytes| serde_json::from_slice::<Self>(&bytes).ok());
        known
            .filter(|known| known.version == VERSION)
            .unwrap_or(Self {
                version: VERSION,
                forms: Vec::new(),
            })
    }

    /// The forms, the latest first.
    pub(crate) fn forms(&self) -> impl Iterator<Item = Descriptor> {
        self.forms.iter().map(|form| form.blob.clone())
    }

    /// The repositories of a registry that have a form.
    pub(crate) fn repositories(&self, digest: Digest, registry: &str) -> Vec<String> {
        let form = self.forms.iter().find(|form| form.blob.digest == digest);
        let at = form.map(|form| form.at.as_slice()).unwrap_or_default();
        at.iter()
            .filter_map(|at| at.strip_prefix(registry)?.strip_prefix('/'))
            .map(str::to_owned)
            .collect()
    }

    /// Remembers that a repository has a form.
    pub(crate) fn note(&mut self, blob: &Descriptor, to: &Reference) {
        let place = to.full_name();
        let known = self.forms.iter().position(|f| f.blob.digest == blob.digest);
        let mut form = match known {
            Some(at) => self.forms.remove(at),
            None => Form {
                blob: blob.clone(),
                at: Vec::new(),
            },
        };
        form.at.retain(|other| *other != place);
        form.at.insert(0, place);
        form.at.truncate(MOST);
        self.forms.insert(0, form);
        self.forms.truncate(MOST);
    }

    /// Writes it; a hint that cannot be written is none.
    pub(crate) fn save(&self, layers: &knarr_layer::Store, id: LayerId) {
        if let Ok(bytes) = serde_json::to_vec(self) {
            knarr_fs::write_atomic(&path(layers, id), &bytes, Durability::Volatile).ok();
        }
    }
}

fn path(layers: &knarr_layer::Store, id: LayerId) -> PathBuf {
    layers.path(&id).join(FILE)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_latest_forms_are_remembered_and_the_file_is_golden() {
        let mut known = Travelled {
            version: VERSION,
            forms: Vec::new(),
        };
        let blob = |digit: &str| Descriptor {
            media_type: "x".to_owned(),
            digest: Digest::from_hex(&digit.repeat(64)).unwrap(),
            size: 1,
            urls: Vec::new(),
            annotations: std::collections::BTreeMap::new(),
            platform: None,
        };
        known.note(&blob("a"), &"reg.io/one".parse().unwrap());
        known.note(&blob("b"), &"reg.io/one".parse().unwrap());
        known.note(&blob("a"), &"reg.io/two".parse().unwrap());
        assert_eq!(known.forms().next().unwrap(), blob("a"));
        assert_eq!(
            known.repositories(blob("a").digest, "reg.io"),
            ["two", "one"]
        );
        assert!(known.repositories(blob("a").digest, "reg").is_empty());
        let json = serde_json::to_string(&known).unwrap();
        let (a, b) = ("a".repeat(64), "b".repeat(64));
        let expected = format!(
            r#"{{"version":1,"forms":[{{"blob":{{"mediaType":"x","digest":"sha256:{a}","size":1}},"at":["reg.io/two","reg.io/one"]}},{{"blob":{{"mediaType":"x","digest":"sha256:{b}","size":1}},"at":["reg.io/one"]}}]}}"#
        );
        assert_eq!(json, expected);
    }
}
