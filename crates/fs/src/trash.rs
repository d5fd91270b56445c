//! Deleting without waiting: rename into a trash folder now, delete later.

use std::path::{Path, PathBuf};

use crate::{Result, TempDir, create_dir_all, file_names, remove_tree, rename};

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
        create_dir_all(&self.path)?;
        let place = TempDir::new_in(&self.path)?;
        // `<random>/<name>`: the random folder makes it unique, its name visible to `empty`.
        let bin = self.path.join(
            place
                .path()
                .file_name()
                .unwrap_or_default()
                .to_string_lossy()
                .trim_start_matches('.'),
        );
        place.publish(&bin, crate::Durability::Volatile)?;
        match rename(path, &bin.join(path.file_name().unwrap_or_default())) {
            Err(error) => {
                remove_tree(&bin)?;
                if error.is_not_found() {
                    Ok(())
                } else {
                    Err(error)
                }
            }
            Ok(()) => Ok(()),
        }
    }

    /// Deletes what is in it. Two at once are fine.
    ///
    /// # Errors
    /// As unlinkat(2), after trying everything.
    pub fn empty(&self) -> Result<()> {
        let mut result = Ok(());
        for name in file_names(&self.path)? {
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
