//! Deleting without waiting: rename into a trash folder now, delete later.

use std::path::{Path, PathBuf};

use crate::{Error, Result, create_dir_all, file_names, remove_tree, rename, sync_dir};

/// A folder `trash/` on the same file system as what is thrown into it.
///
/// An object is gone for everybody once [`Trash::throw`] returns, whatever its size; the space is
/// free after [`Trash::empty`], which any later call may finish.
#[derive(Debug, Clone)]
pub struct Trash {
    path: PathBuf,
}

impl Trash {
    /// The trash below a data or run root.
    pub fn below(root: &Path) -> Self {
        Self {
            path: root.join("trash"),
        }
    }

    /// Moves a file or folder in; one that is gone already is fine.
    ///
    /// # Errors
    /// As rename(2).
    pub fn throw(&self, path: &Path) -> Result<()> {
        let mut random = [0u8; 8];
        rustix::rand::getrandom(&mut random, rustix::rand::GetRandomFlags::empty())
            .map_err(Error::of("get random bytes for", "getrandom", &self.path))?;
        let place = format!("{:016x}", u64::from_ne_bytes(random));
        let place = self.path.join(place);
        match rename(path, &place) {
            // Either it or the trash is not there.
            Err(error) if error.is_not_found() => {}
            result => return result,
        }
        create_dir_all(&self.path)?;
        match rename(path, &place) {
            Err(error) if error.is_not_found() => Ok(()),
            result => result,
        }
    }

    /// Deletes what is in it. Two at once are fine.
    ///
    /// # Errors
    /// As unlinkat(2), after trying everything.
    pub fn empty(&self) -> Result<()> {
        let mut result = Ok(());
        let names = file_names(&self.path)?;
        if !names.is_empty() {
            // That it was thrown away must outlast a power cut before any part of it is deleted:
            // what came back without its marks would be taken for whole.
            sync_dir(&self.path)?;
        }
        for name in names {
            let removed = remove_tree(&self.path.join(name));
            result = result.and(removed);
        }
        result
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }
}
