//! Compares the layers drawn in `docs/architecture.md` with what `cargo metadata` says.

use std::collections::BTreeMap;
use std::process::Command;

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::Value;

use crate::shell;

/// Fails when a crate depends upwards, or sideways without a drawn arrow, or is not drawn.
pub(crate) fn check() -> Result<()> {
    let text = std::fs::read_to_string(shell::workspace().join("docs/architecture.md"))?;
    let drawing = Drawing::parse(&text)?;
    let faults = drawing.faults(&dependencies()?);
    if !faults.is_empty() {
        bail!(
            "the layers are not as docs/architecture.md draws them:\n  {}",
            faults.join("\n  ")
        );
    }
    Ok(())
}

/// The picture: each crate's layer, and the sideways arrows.
#[derive(Debug, Default)]
struct Drawing {
    layers: BTreeMap<String, u8>,
    arrows: Vec<(String, String)>,
}

impl Drawing {
    /// Reads the lines `L<n> <word> …` of the block that follows `<!-- layers -->`. In a line,
    /// `a→b` and `a→b, c` draw arrows; all names must be drawn.
    fn parse(text: &str) -> Result<Self> {
        let block = text
            .split_once("<!-- layers -->")
            .and_then(|(_, rest)| rest.split("```").nth(1))
            .context("docs/architecture.md has no drawing after <!-- layers -->")?;
        let mut drawing = Self::default();
        for line in block.lines() {
            let mut words = line.split_whitespace();
            let Some(level) = words
                .next()
                .and_then(|w| w.strip_prefix('L')?.parse::<u8>().ok())
            else {
                continue;
            };
            // The second word is the layer's name.
            let crates = words.skip(1).collect::<Vec<_>>().join(" ");
            for group in crates.split(';') {
                let chain: Vec<Vec<&str>> = group
                    .split('→')
                    .map(|names| names.split([',', ' ']).filter(|n| !n.is_empty()).collect())
                    .collect();
                for names in &chain {
                    for name in names {
                        drawing.layers.insert((*name).to_owned(), level);
                    }
                }
                for pair in chain.windows(2) {
                    if let [from, to] = pair {
                        for from in from {
                            for to in to {
                                drawing.arrows.push(((*from).to_owned(), (*to).to_owned()));
                            }
                        }
                    }
                }
            }
        }
        ensure!(!drawing.layers.is_empty(), "the drawing is empty");
        Ok(drawing)
    }

    /// What in `dependencies` (crate and what it depends on) is not as drawn.
    fn faults(&self, dependencies: &[(String, String)]) -> Vec<String> {
        let mut faults = Vec::new();
        for (from, to) in dependencies {
            let (Some(from_level), Some(to_level)) = (self.layers.get(from), self.layers.get(to))
            else {
                let missing = if self.layers.contains_key(from) {
                    to
                } else {
                    from
                };
                faults.push(format!("{missing} is not drawn"));
                continue;
            };
            let arrow = self.arrows.contains(&(from.clone(), to.clone()));
            // L0's words are open to every crate, and so to each other only by an arrow.
            if to_level > from_level || (to_level == from_level && !arrow) {
                faults.push(format!(
                    "{from} (L{from_level}) depends on {to} (L{to_level})"
                ));
            }
        }
        for (from, to) in &self.arrows {
            if !dependencies.contains(&(from.clone(), to.clone())) {
                faults.push(format!(
                    "the arrow {from}→{to} is drawn, but there is no such dependency"
                ));
            }
        }
        faults.sort();
        faults.dedup();
        faults
    }
}

/// Normal dependencies between the crates of `crates/` and `bin/`, by folder name.
fn dependencies() -> Result<Vec<(String, String)>> {
    let output = Command::new(shell::cargo_program())
        .args([
            "metadata",
            "--format-version",
            "1",
            "--no-deps",
            "--offline",
        ])
        .current_dir(shell::workspace())
        .output()?;
    ensure!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    let metadata: Value = serde_json::from_slice(&output.stdout)?;
    let packages = metadata
        .get("packages")
        .and_then(Value::as_array)
        .context("no packages")?;
    let mut folders = BTreeMap::new();
    for package in packages {
        let name = package
            .get("name")
            .and_then(Value::as_str)
            .unwrap_or_default();
        let path = package
            .get("manifest_path")
            .and_then(Value::as_str)
            .unwrap_or_default();
        let mut parts = path.rsplit('/').skip(1);
        let folder = parts.next().unwrap_or_default();
        match parts.next() {
            Some("crates") => folders.insert(name, folder.to_owned()),
            Some("bin") => folders.insert(name, format!("bin/{folder}")),
            _ => None,
        };
    }
    let mut found = Vec::new();
    for package in packages {
        let name = package
            .get("name")
            .and_then(Value::as_str)
            .unwrap_or_default();
        let Some(from) = folders.get(name) else {
            continue;
        };
        for dependency in package
            .get("dependencies")
            .and_then(Value::as_array)
            .into_iter()
            .flatten()
        {
            let to = dependency
                .get("name")
                .and_then(Value::as_str)
                .unwrap_or_default();
            if dependency.get("kind").is_some_and(Value::is_null)
                && let Some(to) = folders.get(to)
            {
                found.push((from.clone(), to.clone()));
            }
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    const PICTURE: &str = "<!-- layers -->\n```\nL2 mechanism  layer→cas; net\nL1 kernel  fs→sys\nL0 words  spec\n```\n";

    fn pairs(list: &[(&str, &str)]) -> Vec<(String, String)> {
        list.iter()
            .map(|(a, b)| ((*a).to_owned(), (*b).to_owned()))
            .collect()
    }

    #[test]
    fn the_tree_is_as_drawn() {
        check().unwrap();
    }

    #[test]
    fn upward_and_undrawn_dependencies_are_faults() {
        let drawing = Drawing::parse(PICTURE).unwrap();
        let good = pairs(&[
            ("layer", "cas"),
            ("fs", "sys"),
            ("layer", "spec"),
            ("net", "fs"),
        ]);
        assert_eq!(drawing.faults(&good), Vec::<String>::new());
        for bad in [
            ("cas", "layer"),
            ("sys", "net"),
            ("net", "cas"),
            ("spec", "fs"),
            ("net", "new"),
        ] {
            let mut all = good.clone();
            all.extend(pairs(&[bad]));
            assert_eq!(drawing.faults(&all).len(), 1, "{bad:?}");
        }
        assert_eq!(
            drawing.faults(&pairs(&[("fs", "sys")])).len(),
            1,
            "an arrow nobody uses"
        );
    }
}
