//! Names of images: `refs/<registry>/<repository…>/{_tags/<tag>,_digests/<hex>}`, each a file that
//! holds one image id, like a git ref. No part of a repository starts with `_`, so the two folders
//! cannot be mistaken for one.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::{Path, PathBuf};

use knarr_fs::{Durability, Lock, failpoint};
use knarr_spec::Reference;

use crate::{Error, ImageId, Result};

const TAGS: &str = "_tags";
const DIGESTS: &str = "_digests";

/// The folder `refs/`.
#[derive(Debug, Clone)]
pub(crate) struct Names {
    root: PathBuf,
}

/// Every name with its image, and the files that hold none.
#[derive(Debug, Default)]
pub(crate) struct AllNames {
    pub(crate) names: BTreeMap<Reference, ImageId>,
    pub(crate) damaged: Vec<Error>,
}

impl AllNames {
    pub(crate) fn of(&self, id: ImageId) -> impl Iterator<Item = &Reference> {
        self.names
            .iter()
            .filter(move |(_, of)| **of == id)
            .map(|(name, _)| name)
    }
}

impl Names {
    pub(crate) fn below(data_root: &Path) -> Self {
        Self {
            root: data_root.join("refs"),
        }
    }

    /// Keeps other writers of names away. Reading needs no lock: each name is one atomic file.
    /// Held for the few milliseconds of a rename and its fsync.
    pub(crate) fn lock(&self) -> Result<Lock> {
        knarr_fs::create_dir_all_durable(&self.root)?;
        Ok(Lock::exclusive(&self.root.join(".lock"))?)
    }

    /// The image of a name with a digest, else a tag.
    pub(crate) fn read(&self, name: &Reference) -> Result<Option<ImageId>> {
        let path = self.path(name);
        match knarr_fs::read_to_string(&path) {
            Ok(text) => match text.trim_end().parse() {
                Ok(id) => Ok(Some(id)),
                Err(_) => Err(Error::NameFile {
                    name: name.familiar(),
                    path,
                }),
            },
            Err(error) if error.is_not_found() || is_not_dir(&error) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// Gives `id` the name, durably, away from whatever had it.
    pub(crate) fn write(&self, _lock: &Lock, name: &Reference, id: ImageId) -> Result<()> {
        let path = self.path(name);
        if matches!(self.read(name), Ok(Some(had)) if had == id) {
            return Ok(());
        }
        if let Some(folder) = path.parent() {
            knarr_fs::create_dir_all_durable(folder)?;
        }
        failpoint!("image.naming");
        knarr_fs::write_atomic(&path, format!("{id}\n").as_bytes(), Durability::Durable)?;
        failpoint!("image.named");
        Ok(())
    }

    /// Takes a name away, and the folders that only it had.
    pub(crate) fn remove(
        &self,
        _lock: &Lock,
        name: &Reference,
        durability: Durability,
    ) -> Result<()> {
        let path = self.path(name);
        knarr_fs::remove_file(&path)?;
        for folder in path.ancestors().skip(1) {
            if folder == self.root || std::fs::remove_dir(folder).is_err() {
                // Not empty, or not made by us: it stays.
                if durability == Durability::Durable {
                    knarr_fs::sync_dir(folder)?;
                }
                break;
            }
        }
        Ok(())
    }

    /// Every name there is.
    pub(crate) fn all(&self) -> Result<AllNames> {
        let mut all = AllNames::default();
        for registry in knarr_fs::file_names(&self.root)? {
            let folder = self.root.join(&registry);
            self.walk(&folder, &registry.to_string_lossy(), &mut all)?;
        }
        Ok(all)
    }

    /// Reads the names in `folder`, which are called `name` and something.
    fn walk(&self, folder: &Path, name: &str, all: &mut AllNames) -> Result<()> {
        for entry in names_in(folder)? {
            let path = folder.join(&entry);
            let entry = entry.to_string_lossy();
            if entry != TAGS && entry != DIGESTS {
                self.walk(&path, &format!("{name}/{entry}"), all)?;
                continue;
            }
            for last in names_in(&path)? {
                let last = last.to_string_lossy();
                let text = match entry.as_ref() {
                    TAGS => format!("{name}:{last}"),
                    _ => format!("{name}@sha256:{last}"),
                };
                let damaged = || Error::NameFile {
                    name: text.clone(),
                    path: path.join(last.as_ref()),
                };
                let Ok(reference) = text.parse::<Reference>() else {
                    all.damaged.push(damaged());
                    continue;
                };
                match self.read(&reference) {
                    Ok(Some(id)) => {
                        all.names.insert(reference, id);
                    }
                    // Gone meanwhile.
                    Ok(None) => {}
                    Err(error) => all.damaged.push(error),
                }
            }
        }
        Ok(())
    }

    fn path(&self, name: &Reference) -> PathBuf {
        let folder = self.root.join(name.registry()).join(name.repository());
        match (name.digest(), name.tag()) {
            (Some(digest), _) => folder.join(DIGESTS).join(digest.hex()),
            (None, tag) => folder.join(TAGS).join(tag.unwrap_or("latest")),
        }
    }
}

/// [`knarr_fs::file_names`], where a file in a folder's place has none.
fn names_in(folder: &Path) -> Result<Vec<OsString>> {
    match knarr_fs::file_names(folder) {
        Err(error) if is_not_dir(&error) => Ok(Vec::new()),
        names => Ok(names?),
    }
}

fn is_not_dir(error: &knarr_fs::Error) -> bool {
    error.errno() == Some(rustix::io::Errno::NOTDIR)
}
