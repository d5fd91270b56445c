//! `registries.d` (containers-registries.d(5)): where signatures are looked for. Of it only
//! `use-sigstore-attachments` matters here; signature stores are for GPG.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use knarr_spec::Reference;
use serde_json::Value;

use super::policy::namespaces;
use crate::yaml;

/// What the files say.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Attachments {
    default: Option<bool>,
    scopes: BTreeMap<String, Option<bool>>,
}

const KEYS: [&str; 5] = [
    "use-sigstore-attachments",
    "lookaside",
    "lookaside-staging",
    "sigstore",
    "sigstore-staging",
];

impl Attachments {
    /// Reads every `.yaml` of a folder, which need not exist.
    ///
    /// # Errors
    /// The file, and in words what is wrong.
    pub(crate) fn load(folder: &Path) -> Result<Self, (PathBuf, String)> {
        let mut all = Self::default();
        let mut names =
            knarr_fs::file_names(folder).map_err(|error| (folder.to_owned(), error.to_string()))?;
        names.sort();
        for name in names {
            let path = folder.join(&name);
            if path.extension().is_none_or(|kind| kind != "yaml") {
                continue;
            }
            let wrong = |why| (path.clone(), why);
            let text = knarr_fs::read_to_string(&path).map_err(|e| wrong(e.to_string()))?;
            all.merge(&yaml::parse(&text).map_err(wrong)?)
                .map_err(wrong)?;
        }
        Ok(all)
    }

    fn merge(&mut self, file: &Value) -> Result<(), String> {
        let fields = match file {
            Value::Null => return Ok(()),
            Value::Object(fields) => fields,
            _ => return Err("it is no mapping".to_owned()),
        };
        for (key, value) in fields {
            match (key.as_str(), value) {
                (_, Value::Null) => {}
                ("default-docker", section) => {
                    if self.default.is_some() {
                        return Err("default-docker is in two files".to_owned());
                    }
                    self.default = read(section)?;
                }
                ("docker", Value::Object(scopes)) => {
                    for (scope, section) in scopes {
                        if self.scopes.insert(scope.clone(), read(section)?).is_some() {
                            return Err(format!("{scope} is in two files"));
                        }
                    }
                }
                _ => return Err(format!("{key} is not known")),
            }
        }
        Ok(())
    }

    /// Whether signatures are looked for beside an image.
    pub(crate) fn used(&self, reference: &Reference) -> bool {
        let mut scopes = vec![reference.to_string()];
        scopes.extend(namespaces(reference));
        let found = scopes
            .iter()
            .find_map(|scope| self.scopes.get(scope).copied().flatten());
        found.or(self.default).unwrap_or(false)
    }
}

/// `use-sigstore-attachments` of a section.
fn read(section: &Value) -> Result<Option<bool>, String> {
    let Some(fields) = section.as_object() else {
        return Err("a section is no mapping".to_owned());
    };
    if let Some(unknown) = fields.keys().find(|key| !KEYS.contains(&key.as_str())) {
        return Err(format!("{unknown} is not known"));
    }
    match fields.get("use-sigstore-attachments") {
        None | Some(Value::Null) => Ok(None),
        Some(Value::Bool(on)) => Ok(Some(*on)),
        Some(_) => Err("use-sigstore-attachments is neither true nor false".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_narrowest_section_that_says_something_counts() {
        let mut all = Attachments::default();
        let file = yaml::parse(
            "default-docker:\n  lookaside: file:///x\ndocker:\n  reg.io:\n    use-sigstore-attachments: true\n  \
             reg.io/a:\n    lookaside: https://x\n  reg.io/b:\n    use-sigstore-attachments: false\n",
        );
        all.merge(&file.unwrap()).unwrap();
        for (name, used) in [
            ("reg.io/x", true),
            ("reg.io/a/y", true),
            ("reg.io/b/y:1", false),
            ("busybox", false),
        ] {
            assert_eq!(all.used(&name.parse().unwrap()), used, "{name}");
        }
        for (text, why) in [
            ("docker:\n  reg.io: {}\n", "two files"),
            ("dockers: {a: {}}\n", "not known"),
            ("docker:\n  a:\n    use: true\n", "not known"),
            (
                "docker:\n  a:\n    use-sigstore-attachments: 1\n",
                "neither",
            ),
        ] {
            let error = all.merge(&yaml::parse(text).unwrap()).unwrap_err();
            assert!(error.contains(why), "{text}: {error}");
        }
    }
}
