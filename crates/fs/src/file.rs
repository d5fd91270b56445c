//! Knarr's own files: whole reads, atomic writes, durable renames.

use std::ffi::OsString;
use std::io::Write;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, Mode, OFlags};
use rustix::io::Errno;

use crate::{Error, Lock, Result};

/// Whether a change must survive a power cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Durability {
    /// fsync the file, rename, fsync the folder.
    Durable,
    /// No fsync: for what a reboot may lose.
    Volatile,
}

/// Opens an existing file for reading, close-on-exec.
///
/// # Errors
/// As open(2).
pub fn open_read(path: &Path) -> Result<OwnedFd> {
    rustix::fs::open(path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
        .map_err(Error::of("open", "open", path))
}

/// Reads a whole file.
///
/// # Errors
/// As open(2) and read(2).
pub fn read(path: &Path) -> Result<Vec<u8>> {
    let file = open_read(path)?;
    // Almost all fit, and then two calls do it. What is not filled is not touched.
    let mut bytes = Vec::with_capacity(16 << 10);
    loop {
        match rustix::io::read(&file, rustix::buffer::spare_capacity(&mut bytes)) {
            Ok(0) => return Ok(bytes),
            // Twice as much each time.
            Ok(_) => bytes.reserve(1),
            Err(Errno::INTR) => {}
            Err(errno) => return Err(Error::of("read", "read", path)(errno)),
        }
    }
}

/// Reads a file of the kernel's that is one record of less than a page, such as
/// `/proc/PID/stat`: a single read(2) gives all of it.
///
/// # Errors
/// As open(2) and read(2).
pub fn read_record(path: &Path) -> Result<Vec<u8>> {
    let file = open_read(path)?;
    let mut bytes = Vec::with_capacity(4 << 10);
    rustix::io::retry_on_intr(|| {
        rustix::io::read(&file, rustix::buffer::spare_capacity(&mut bytes))
    })
    .map_err(Error::of("read", "read", path))?;
    Ok(bytes)
}

/// Reads a whole file of text.
///
/// # Errors
/// As [`read`], and [`Error::NotText`].
pub fn read_to_string(path: &Path) -> Result<String> {
    String::from_utf8(read(path)?).map_err(|_| Error::NotText {
        path: path.to_owned(),
    })
}

/// Replaces `path` by a file (mode 0600) with these bytes, in one step: readers see the old file
/// or the new one, whole.
///
/// # Errors
/// As open(2), write(2), fsync(2), rename(2). A half-written temporary file is removed.
pub fn write_atomic(path: &Path, bytes: &[u8], durability: Durability) -> Result<()> {
    // One writer per object holds its lock; the process id tells two without one apart.
    let mut name = OsString::from(".");
    name.push(path.file_name().unwrap_or_default());
    name.push(format!(".{}", rustix::process::getpid().as_raw_nonzero()));
    let temporary = path.with_file_name(name);
    let write = || -> Result<()> {
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::TRUNC | OFlags::CLOEXEC;
        let file = rustix::fs::open(&temporary, flags, Mode::RUSR | Mode::WUSR)
            .map_err(Error::of("create", "open", &temporary))?;
        let mut file = std::fs::File::from(file);
        file.write_all(bytes)
            .map_err(Error::of_io("write", "write", &temporary))?;
        if durability == Durability::Durable {
            file.sync_data()
                .map_err(Error::of_io("sync", "fdatasync", &temporary))?;
        }
        rename(&temporary, path)
    };
    let written = write();
    if written.is_err() {
        // The first error is the one to tell; what is left is swept with its folder.
        rustix::fs::unlink(&temporary).ok();
    }
    written?;
    match (durability, path.parent()) {
        (Durability::Durable, Some(parent)) => sync_dir(parent),
        _ => Ok(()),
    }
}

/// Makes an empty file (mode 0600), or leaves one that exists as it is: a mark.
///
/// # Errors
/// As open(2).
pub fn create_empty(path: &Path) -> Result<()> {
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::CLOEXEC;
    rustix::fs::open(path, flags, Mode::RUSR | Mode::WUSR)
        .map(drop)
        .map_err(Error::of("create", "open", path))
}

/// rename(2) within one file system.
///
/// # Errors
/// As rename(2), naming the new path.
pub fn rename(from: &Path, to: &Path) -> Result<()> {
    rustix::fs::rename(from, to).map_err(Error::of("rename a file to", "rename", to))
}

/// [`rename`], then fsync of the folder that `to` is in.
///
/// # Errors
/// As rename(2) and fsync(2).
pub fn rename_durable(from: &Path, to: &Path) -> Result<()> {
    rename(from, to)?;
    to.parent().map_or(Ok(()), sync_dir)
}

/// fsync(2) of a folder: makes the names in it durable.
///
/// # Errors
/// As open(2) and fsync(2).
pub fn sync_dir(path: &Path) -> Result<()> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let dir =
        rustix::fs::open(path, flags, Mode::empty()).map_err(Error::of("open", "open", path))?;
    rustix::fs::fsync(&dir).map_err(Error::of("sync", "fsync", path))
}

/// Makes a folder (mode 0700) and the missing ones above it; one that exists is fine.
///
/// # Errors
/// As mkdir(2).
pub fn create_dir_all(path: &Path) -> Result<()> {
    match rustix::fs::mkdir(path, Mode::RWXU) {
        Ok(()) => Ok(()),
        Err(Errno::EXIST) => Ok(()),
        Err(Errno::NOENT) => {
            if let Some(parent) = path.parent() {
                create_dir_all(parent)?;
            }
            match rustix::fs::mkdir(path, Mode::RWXU) {
                Ok(()) | Err(Errno::EXIST) => Ok(()),
                Err(errno) => Err(Error::of("create", "mkdir", path)(errno)),
            }
        }
        Err(errno) => Err(Error::of("create", "mkdir", path)(errno)),
    }
}

/// [`create_dir_all`], and each folder that was made is durable in the one above it. Costs one
/// stat(2) where the folder exists.
///
/// # Errors
/// As mkdir(2) and fsync(2).
pub fn create_dir_all_durable(path: &Path) -> Result<()> {
    let mut missing: Vec<&Path> = path.ancestors().take_while(|path| !path.is_dir()).collect();
    while let Some(path) = missing.pop() {
        create_dir_all(path)?;
        if let Some(parent) = path.parent() {
            sync_dir(parent)?;
        }
    }
    Ok(())
}

/// Makes one folder (mode 0700) that must not exist.
///
/// # Errors
/// As mkdir(2).
pub fn create_dir_private(path: &Path) -> Result<()> {
    rustix::fs::mkdir(path, Mode::RWXU).map_err(Error::of("create", "mkdir", path))
}

/// symlink(2): `link` will say `target`. Exclusive: fails with EEXIST where anything is.
///
/// # Errors
/// As symlink(2).
pub fn symlink(target: impl AsRef<Path>, link: &Path) -> Result<()> {
    rustix::fs::symlink(target.as_ref(), link).map_err(Error::of("create", "symlink", link))
}

/// What a symlink says.
///
/// # Errors
/// As readlink(2).
pub fn read_link(path: &Path) -> Result<PathBuf> {
    std::fs::read_link(path).map_err(Error::of_io("read the link", "readlink", path))
}

/// Removes a file or symlink; one that is gone already is fine.
///
/// # Errors
/// As unlink(2).
pub fn remove_file(path: &Path) -> Result<()> {
    match rustix::fs::unlinkat(CWD, path, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => Ok(()),
        Err(errno) => Err(Error::of("remove", "unlink", path)(errno)),
    }
}

/// Removes a folder and all below it, never following a symlink; one that is gone is fine.
///
/// # Errors
/// As unlinkat(2).
pub fn remove_tree(path: &Path) -> Result<()> {
    match std::fs::remove_dir_all(path) {
        Ok(()) => Ok(()),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        Err(error) if error.kind() == std::io::ErrorKind::NotADirectory => remove_file(path),
        Err(error) => Err(Error::of_io("remove", "unlinkat", path)(error)),
    }
}

/// The names in a folder, in no order, without those that start with a dot (temporary files). A
/// folder that does not exist has none.
///
/// # Errors
/// As open(2) and getdents(2).
pub fn file_names(path: &Path) -> Result<Vec<OsString>> {
    let entries = match std::fs::read_dir(path) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(Error::of_io("list", "open", path)(error)),
    };
    let mut names = Vec::new();
    for entry in entries {
        let name = entry
            .map_err(Error::of_io("list", "getdents", path))?
            .file_name();
        if !name.as_encoded_bytes().starts_with(b".") {
            names.push(name);
        }
    }
    Ok(names)
}

/// The symlinks in a folder with what they say: Knarr's names and leases.
///
/// # Errors
/// As [`file_names`] and readlink(2). A link that vanishes meanwhile is left out.
pub fn link_names(path: &Path) -> Result<Vec<(OsString, PathBuf)>> {
    let mut links = Vec::new();
    for name in file_names(path)? {
        match read_link(&path.join(&name)) {
            Ok(target) => links.push((name, target)),
            Err(error) if error.is_not_found() || error.errno() == Some(Errno::INVAL) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(links)
}

/// A folder that is removed when dropped, unless [published](TempDir::publish).
///
/// Its name is `.tmp-<random>`, so that [`file_names`] does not see it and a sweep can tell it.
#[derive(Debug)]
pub struct TempDir {
    path: PathBuf,
    published: bool,
}

impl TempDir {
    /// Makes a new folder (mode 0700) inside `parent`, which is made too where missing.
    ///
    /// # Errors
    /// As mkdir(2) and getrandom(2).
    pub fn new_in(parent: &Path) -> Result<Self> {
        create_dir_all(parent)?;
        let mut random = [0u8; 8];
        rustix::rand::getrandom(&mut random, rustix::rand::GetRandomFlags::empty())
            .map_err(Error::of("get random bytes for", "getrandom", parent))?;
        let path = parent.join(format!(".tmp-{:016x}", u64::from_ne_bytes(random)));
        create_dir_private(&path)?;
        Ok(Self {
            path,
            published: false,
        })
    }

    /// As [`new_in`](Self::new_in), and held while the [`Lock`] lives, so that [`sweep`] leaves it.
    ///
    /// # Errors
    /// As [`new_in`](Self::new_in) and flock(2).
    pub fn new_held_in(parent: &Path) -> Result<(Self, Lock)> {
        loop {
            let folder = Self::new_in(parent)?;
            // A sweep may come between the two; then another folder will do.
            if let Some(held) = Lock::share(folder.path())? {
                return Ok((folder, held));
            }
        }
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Renames it to where it is visible from now on.
    ///
    /// # Errors
    /// As rename(2): ENOTEMPTY or EEXIST where a folder is already. Then it is removed.
    pub fn publish(self, to: &Path, durability: Durability) -> Result<()> {
        match self.try_publish(to, durability)? {
            None => Ok(()),
            Some(_) => Err(Error::of("rename a file to", "rename", to)(Errno::EXIST)),
        }
    }

    /// As [`publish`](Self::publish), but gives itself back where a folder is already.
    ///
    /// # Errors
    /// As rename(2).
    pub fn try_publish(mut self, to: &Path, durability: Durability) -> Result<Option<Self>> {
        match rename(&self.path, to) {
            Ok(()) => self.published = true,
            Err(error) if matches!(error.errno(), Some(Errno::EXIST | Errno::NOTEMPTY)) => {
                return Ok(Some(self));
            }
            Err(error) => return Err(error),
        }
        if let (Durability::Durable, Some(parent)) = (durability, to.parent()) {
            sync_dir(parent)?;
        }
        Ok(None)
    }
}

impl Drop for TempDir {
    fn drop(&mut self) {
        if !self.published {
            // Nobody is left to tell; the store's check finds what stays.
            remove_tree(&self.path).ok();
        }
    }
}

/// Removes the temporary folders that killed calls left in `parent`: those that nobody
/// [holds](TempDir::new_held_in). Gives how many they were.
///
/// # Errors
/// As open(2), flock(2), unlinkat(2).
pub fn sweep(parent: &Path) -> Result<usize> {
    let entries = match std::fs::read_dir(parent) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(0),
        Err(error) => return Err(Error::of_io("list", "open", parent)(error)),
    };
    let mut removed = 0;
    for entry in entries {
        let entry = entry.map_err(Error::of_io("list", "getdents", parent))?;
        if !entry.file_name().as_encoded_bytes().starts_with(b".tmp-") {
            continue;
        }
        // Held until it is gone, so that its maker cannot begin to use it.
        if let Some(_held) = Lock::try_seize(&entry.path())? {
            remove_tree(&entry.path())?;
            removed += 1;
        }
    }
    Ok(removed)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scratch() -> TempDir {
        TempDir::new_in(&std::env::temp_dir().join("knarr-fs-tests")).unwrap()
    }

    #[test]
    fn an_atomic_write_replaces_the_whole_file_and_leaves_no_other() {
        let dir = scratch();
        let path = dir.path().join("state.json");
        for (text, durability) in [
            ("a longer first text", Durability::Durable),
            ("short", Durability::Volatile),
        ] {
            write_atomic(&path, text.as_bytes(), durability).unwrap();
            assert_eq!(read_to_string(&path).unwrap(), text);
        }
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn errors_name_the_path_and_the_call() {
        use knarr_diag::Explain as _;
        let error = read(Path::new("/no/such/file")).unwrap_err();
        assert!(error.is_not_found());
        assert_eq!(
            error.report().to_string(),
            "error: cannot open /no/such/file\n  because: open: ENOENT (no such file or directory)"
        );
    }

    #[test]
    fn a_dropped_temporary_folder_is_gone_and_a_published_one_stays() {
        let dir = scratch();
        let dropped = TempDir::new_in(dir.path()).unwrap();
        let path = dropped.path().to_owned();
        drop(dropped);
        assert!(!path.exists());
        let to = dir.path().join("there");
        TempDir::new_in(dir.path())
            .unwrap()
            .publish(&to, Durability::Durable)
            .unwrap();
        assert!(to.is_dir());
    }
}
