//! Names of images: `refs/<registry>/<repository…>/{_tags/<tag>,_digests/<hex>}`, each a file that
//! holds one image id, like a git ref. No part of a repository starts with `_`, so the two folders
//! cannot be mistaken for one.
//!
//! A name that means a whole index says so in a second line, `index sha256:…`: the first one is
//! the image of it that is meant where no platform is asked for.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::{Path, PathBuf};

use knarr_fs::{Durability, Lock, failpoint};
use knarr_spec::{Digest, Reference};

use crate::{Error, ImageId, Result};

const TAGS: &str = "_tags";
const DIGESTS: &str = "_digests";
/// What the second line starts with.
const INDEX: &str = "index ";

/// The folder `refs/`.
#[derive(Debug, Clone)]
pub(crate) struct Names {
    root: PathBuf,
}

/// What a name means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Meaning {
    pub(crate) image: ImageId,
    /// The index that the image is of, where the whole of it was brought.
    pub(crate) index: Option<Digest>,
}

impl Meaning {
    pub(crate) fn of(image: ImageId, index: Option<Digest>) -> Self {
        Self { image, index }
    }

    fn parse(text: &str) -> Option<Self> {
        let mut lines = text.lines();
        let image = lines.next()?.parse().ok()?;
        let index = match lines.next() {
            None => None,
            Some(line) => Some(line.strip_prefix(INDEX)?.parse().ok()?),
        };
        lines.next().is_none().then_some(Self { image, index })
    }

    fn text(&self) -> String {
        match self.index {
            None => format!("{}\n", self.image),
            Some(index) => format!("{}\n{INDEX}{index}\n", self.image),
        }
    }
}

/// Every name with its image, and the files that hold none.
#[derive(Debug, Default)]
pub(crate) struct AllNames {
    pub(crate) names: BTreeMap<Reference, ImageId>,
    /// The names that mean whole indexes.
    pub(crate) indexes: BTreeMap<Reference, Digest>,
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
        Ok(self.meaning(name)?.map(|meaning| meaning.image))
    }

    /// What a name means: its image, and its index where that is here.
    pub(crate) fn meaning(&self, name: &Reference) -> Result<Option<Meaning>> {
        let path = self.path(name);
        match knarr_fs::read_to_string(&path) {
            Ok(text) => match Meaning::parse(&text) {
                Some(meaning) => Ok(Some(meaning)),
                None => Err(Error::NameFile {
                    name: name.familiar(),
                    path,
                }),
            },
            Err(error) if error.is_not_found() || is_not_dir(&error) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// Gives something the name, durably, away from whatever had it.
    pub(crate) fn write(&self, _lock: &Lock, name: &Reference, meaning: Meaning) -> Result<()> {
        let path = self.path(name);
        if matches!(self.meaning(name), Ok(Some(had)) if had == meaning) {
            return Ok(());
        }
        if let Some(folder) = path.parent() {
            knarr_fs::create_dir_all_durable(folder)?;
        }
        failpoint!("image.naming");
        knarr_fs::write_atomic(&path, meaning.text().as_bytes(), Durability::Durable)?;
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
                match self.meaning(&reference) {
                    Ok(Some(meaning)) => {
                        if let Some(index) = meaning.index {
                            all.indexes.insert(reference.clone(), index);
                        }
                        all.names.insert(reference, meaning.image);
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_names_file_is_golden_and_strict() {
        let (image, index) = ("a".repeat(64), "b".repeat(64));
        let of = |hex: &str| Digest::from_hex(hex).unwrap();
        let one = Meaning::of(of(&image).into(), None);
        assert_eq!(one.text(), format!("sha256:{image}\n"));
        let whole = Meaning::of(of(&image).into(), Some(of(&index)));
        assert_eq!(
            whole.text(),
            format!("sha256:{image}\nindex sha256:{index}\n")
        );
        for meaning in [one, whole] {
            assert_eq!(Meaning::parse(&meaning.text()), Some(meaning));
        }
        for wrong in [
            String::new(),
            "x\n".to_owned(),
            format!("sha256:{image}\nsha256:{index}\n"),
            format!("sha256:{image}\nindex\n"),
            format!("{}more\n", whole.text()),
        ] {
            assert_eq!(Meaning::parse(&wrong), None, "{wrong:?}");
        }
    }
}
