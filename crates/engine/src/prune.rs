//! `image prune` and `system prune`; what is checked and repaired beside images.

use std::collections::BTreeMap;

use knarr_diag::{Class, Explain as _};
use knarr_image::{Checked, Finding, LayerId, Listed, Outcome, Progress, PullOptions, Removed};

use crate::list::label_matches;
use crate::record::Record;
use crate::usage::on_disk;
use crate::{Engine, Error, Filters, Pruned, Result, time};

/// What `system prune` removed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SystemPruned {
    /// Containers, by id.
    pub containers: Vec<String>,
    /// Volumes, by name.
    pub volumes: Vec<String>,
    /// Lines about images.
    pub images: Vec<String>,
    /// Bytes that are free now, or as soon as the trash is empty.
    pub bytes: u64,
}

/// `label`, `label!` and `until`, understood.
#[derive(Debug, Default)]
pub(crate) struct PruneFilter {
    labels: Vec<(bool, String)>,
    /// Nanoseconds since 1970: only what was made before.
    before: Option<i64>,
}

impl PruneFilter {
    pub(crate) fn parse(filters: &Filters) -> Result<Self> {
        let mut parsed = Self::default();
        for (key, values) in &filters.0 {
            for value in values {
                match key.as_str() {
                    "label" => parsed.labels.push((true, value.clone())),
                    "label!" => parsed.labels.push((false, value.clone())),
                    "until" => {
                        parsed.before = Some(time::parse(value).ok_or_else(|| wrong(key, value))?)
                    }
                    _ => return Err(Error::invalid(format!("invalid filter '{key}'"))),
                }
            }
        }
        Ok(parsed)
    }

    /// Whether it is to be pruned.
    pub(crate) fn matches(&self, labels: &BTreeMap<String, String>, created: Option<i64>) -> bool {
        let labelled = self
            .labels
            .iter()
            .all(|(is, label)| label_matches(labels, label) == *is);
        labelled
            && self
                .before
                .is_none_or(|before| created.is_some_and(|created| created < before))
    }
}

/// The last of the `dangling` filters, which images alone have, taken out.
fn take_dangling(filters: &mut Filters) -> Result<Option<bool>> {
    const KEY: &str = "dangling";
    let mut dangling = None;
    for value in filters.0.remove(KEY).unwrap_or_default() {
        dangling = Some(match value.as_str() {
            "true" | "1" => true,
            "false" | "0" => false,
            _ => return Err(wrong(KEY, &value)),
        });
    }
    Ok(dangling)
}

fn wrong(key: &str, value: &str) -> Error {
    Error::invalid(format!("invalid filter '{key}={value}'"))
}

impl Engine {
    pub(crate) fn prune_images_now(&self, all: bool, filters: &Filters) -> Result<Pruned> {
        let mut filters = filters.clone();
        let all = take_dangling(&mut filters)?.map_or(all, |dangling| !dangling);
        let filter = PruneFilter::parse(&filters)?;
        let mut pruned = Pruned::default();
        let images = self.images().list()?.images;
        // A damaged one counts nothing.
        let sizes: BTreeMap<LayerId, u64> = images
            .iter()
            .flat_map(|listed| &listed.image.layers)
            .filter_map(|id| Some((*id, self.images().layers().load(id).ok()?.size)))
            .collect();
        // What is of a whole index goes with the index.
        for listed in images.into_iter().filter(|listed| !listed.is_part) {
            let labels = listed.image.config.config.labels.clone();
            let created = listed.image.config.created.as_deref();
            let wanted = (all || listed.tags.is_empty())
                && filter.matches(&labels.unwrap_or_default(), created.and_then(time::parse));
            if wanted {
                self.prune_image(&listed, &sizes, &mut pruned)?;
            }
        }
        // What killed calls left goes along.
        self.images().collect_garbage()?;
        Ok(pruned)
    }

    fn prune_image(
        &self,
        listed: &Listed,
        sizes: &BTreeMap<LayerId, u64>,
        pruned: &mut Pruned,
    ) -> Result<()> {
        // Used by a container: it keeps its names too.
        if !self.image_users(listed.image.id).is_empty() {
            return Ok(());
        }
        let mut names: Vec<String> = listed.tags.iter().map(ToString::to_string).collect();
        if names.is_empty() {
            names.push(listed.image.id.to_string());
        }
        for name in names {
            match self.remove_image(&name, false) {
                Ok(removed) => {
                    for line in removed {
                        if let Removed::Layer(id) = &line {
                            pruned.bytes += sizes.get(id).copied().unwrap_or_default();
                        }
                        let line = line.to_string();
                        let line = line.replace("Untagged:", "untagged:");
                        pruned.removed.push(line.replace("Deleted:", "deleted:"));
                    }
                }
                // A container came that needs it, or another call was faster.
                Err(error) if matches!(error.class(), Class::Busy | Class::NotFound) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    pub(crate) fn prune_system_now(
        &self,
        all: bool,
        volumes: bool,
        filters: &Filters,
    ) -> Result<SystemPruned> {
        if volumes && filters.0.contains_key("until") {
            return Err(Error::invalid(
                "The \"until\" filter is not supported with \"--volumes\"",
            ));
        }
        let mut pruned = SystemPruned::default();
        let containers = self.prune(filters)?;
        pruned.containers = containers.removed;
        if volumes {
            let volumes = self.volume_prune(false, filters)?;
            pruned.volumes = volumes.removed;
            pruned.bytes += volumes.bytes;
        }
        let images = self.prune_images(all, filters)?;
        pruned.images = images.removed;
        pruned.bytes += containers.bytes + images.bytes;
        for folder in self.images().damaged() {
            pruned.bytes += on_disk(&folder)?;
        }
        self.images().forget_damaged()?;
        let partials = self.images().interrupted();
        let before = on_disk(&partials)?;
        self.images().forget_interrupted()?;
        pruned.bytes += before.saturating_sub(on_disk(&partials)?);
        Ok(pruned)
    }

    pub(crate) fn check_now(
        &self,
        repair: Option<&PullOptions>,
        progress: &dyn Progress,
    ) -> Result<Checked> {
        let mut checked = self
            .images()
            .check(repair, &|id| self.image_users(id), progress)?;
        for id in self.ids()? {
            if let Err(error @ (Error::Damaged { .. } | Error::Version { .. })) =
                Record::load(self.settings(), &id)
            {
                checked.findings.push(Finding {
                    object: format!("container {}", id.short()),
                    what: error.report().one_line(),
                    needed_by: Vec::new(),
                    outcome: match repair {
                        None => Outcome::Found,
                        Some(_) => Outcome::Unrepaired(error.hint().unwrap_or_default()),
                    },
                });
            }
            // What a killed call left half-made is undone by looking at it.
            if repair.is_some() && !self.exists(&id) {
                self.undo(&id)?;
            }
        }
        if repair.is_some() {
            self.images().collect_garbage()?;
            self.images().empty_trash()?;
        }
        for (path, bytes) in self.usage_now()?.unaccounted {
            checked.findings.push(Finding {
                object: path.display().to_string(),
                what: format!("{bytes} bytes that belong to nothing"),
                needed_by: Vec::new(),
                outcome: match repair {
                    None => Outcome::Found,
                    Some(_) => Outcome::Unrepaired(
                        "it is not Knarr's: look at it, and remove it by hand".to_owned(),
                    ),
                },
            });
        }
        Ok(checked)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_images_dangle() {
        let filters =
            |key: &str, value: &str| Filters([(key.to_owned(), vec![value.to_owned()])].into());
        for (value, dangling) in [("true", true), ("0", false)] {
            let mut filters = filters("dangling", value);
            assert!(PruneFilter::parse(&filters).is_err(), "{value}");
            assert_eq!(take_dangling(&mut filters).unwrap(), Some(dangling));
            PruneFilter::parse(&filters).unwrap();
        }
        take_dangling(&mut filters("dangling", "maybe")).unwrap_err();
        for (key, value) in [("until", "soon"), ("colour", "red")] {
            let error = PruneFilter::parse(&filters(key, value)).unwrap_err();
            assert!(error.to_string().contains(key), "{error}");
        }
    }
}
