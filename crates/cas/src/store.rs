//! The folder of blobs.

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::os::fd::AsRawFd as _;
use std::path::{Path, PathBuf};

use knarr_fs::{Lock, failpoint};
use knarr_spec::Digest;
use rustix::fs::{AtFlags, CWD, Mode, OFlags};
use rustix::io::Errno;

use crate::{Error, Hasher, Result};

/// How long what came of a blob waits for the rest of it.
const PATIENCE: std::time::Duration = std::time::Duration::from_secs(7 * 24 * 3600);

/// Which partly fetched blobs a [sweep](Store::sweep) removes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Partials {
    /// Those that nobody went on with for a week.
    Old,
    /// Whatever nobody is at.
    All,
}

/// The blobs below one data root. Cheap to open and clone; safe to use from many processes.
#[derive(Debug, Clone)]
pub struct Store {
    blobs: PathBuf,
    partial: PathBuf,
    damaged: PathBuf,
}

impl Store {
    /// Opens `<data_root>/blobs`, making what is missing.
    ///
    /// # Errors
    /// When the folders cannot be made.
    pub fn open(data_root: &Path) -> Result<Self> {
        let root = data_root.join("blobs");
        let store = Self {
            blobs: root.join("sha256"),
            partial: root.join("partial"),
            damaged: root.join("damaged"),
        };
        if !store.partial.is_dir() {
            knarr_fs::create_dir_all_durable(&store.blobs)?;
            knarr_fs::create_dir_all(&store.partial)?;
        }
        Ok(store)
    }

    /// Where a blob is or would be.
    pub fn path(&self, digest: Digest) -> PathBuf {
        self.blobs.join(digest.hex())
    }

    /// Whether the blob is here (its bytes are not looked at).
    pub fn contains(&self, digest: Digest) -> bool {
        self.path(digest).is_file()
    }

    /// Stores bytes, durably. One that is here already is left as it is.
    ///
    /// # Errors
    /// When they cannot be written.
    pub fn put(&self, bytes: &[u8]) -> Result<Digest> {
        Ok(self.put_and_hold(bytes)?.0)
    }

    /// [`put`](Self::put), and a [hold](Self::hold) on the blob, had before anybody could see it.
    ///
    /// # Errors
    /// As [`put`](Self::put).
    pub fn put_and_hold(&self, bytes: &[u8]) -> Result<(Digest, Lock)> {
        let digest = Hasher::digest(bytes);
        if let Some(hold) = self.hold(digest)? {
            match self.read(digest, bytes.len().try_into().unwrap_or(u64::MAX)) {
                Ok(_) => return Ok((digest, hold)),
                Err(error) if error.is_gone() => {}
                Err(error) => return Err(error),
            }
        }
        let mut writer = self.writer()?;
        writer.write(bytes)?;
        writer.commit(Some(digest))
    }

    /// Keeps a blob from being collected while it lives (a shared flock(2) on its file). `None`
    /// where there is no such blob.
    ///
    /// # Errors
    /// As open(2) and flock(2).
    pub fn hold(&self, digest: Digest) -> Result<Option<Lock>> {
        Ok(Lock::share(&self.path(digest))?)
    }

    /// Makes a blob of a file that is whole, on the same file system, durably; gives a
    /// [hold](Self::hold) on it. Its bytes are not looked at: who wrote them has hashed them. A name
    /// that the file has already stays.
    ///
    /// # Errors
    /// As fsync(2), linkat(2).
    pub fn adopt(&self, file: &File, digest: Digest) -> Result<Lock> {
        let path = self.path(digest);
        file.sync_data()
            .map_err(knarr_fs::Error::of_io("sync", "fdatasync", &path))?;
        failpoint!("blob.synced");
        let source = format!("/proc/self/fd/{}", file.as_raw_fd());
        let hold = loop {
            let hold = share(file, &path)?;
            match rustix::fs::linkat(CWD, &source, CWD, &path, AtFlags::SYMLINK_FOLLOW) {
                Ok(()) => break hold,
                // Never in the place of another: somebody may hold that one.
                Err(Errno::EXIST) => {}
                Err(errno) => {
                    return Err(knarr_fs::Error::of("create", "linkat", &path)(errno).into());
                }
            }
            if let Some(hold) = self.hold(digest)? {
                let got = self.rehash(digest)?;
                if got == digest {
                    break hold;
                }
                self.set_aside(digest, got)?;
            }
        };
        failpoint!("blob.linked");
        knarr_fs::sync_dir(&self.blobs)?;
        failpoint!("blob.published");
        Ok(hold)
    }

    /// For who wants to remove a blob: keeps everybody from [holding](Self::hold) it. `None` where
    /// somebody does, or there is no such blob.
    ///
    /// # Errors
    /// As open(2) and flock(2).
    pub fn try_lock(&self, digest: Digest) -> Result<Option<Lock>> {
        Ok(Lock::try_seize(&self.path(digest))?)
    }

    /// A new blob, to be written piece by piece.
    ///
    /// # Errors
    /// When the temporary file cannot be made.
    pub fn writer(&self) -> Result<Writer> {
        let (file, hold, name) = self.create()?;
        Ok(Writer {
            store: self.clone(),
            file,
            _hold: hold,
            _name: name,
            hasher: Hasher::new(),
            size: 0,
        })
    }

    /// An empty file without a name, for bytes that must be read more than once. It is gone when
    /// it is closed.
    ///
    /// # Errors
    /// As open(2).
    pub fn scratch(&self) -> Result<File> {
        let (file, _, _) = self.create()?;
        Ok(file)
    }

    /// Opens a blob for reading; its bytes are not checked.
    ///
    /// # Errors
    /// [`Error::Missing`]; as open(2).
    pub fn open_blob(&self, digest: Digest) -> Result<File> {
        match knarr_fs::open_read(&self.path(digest)) {
            Ok(file) => Ok(File::from(file)),
            Err(error) if error.is_not_found() => Err(Error::Missing { digest }),
            Err(error) => Err(error.into()),
        }
    }

    /// The bytes of a blob of at most `limit` bytes, checked against its name.
    ///
    /// # Errors
    /// [`Error::Missing`], [`Error::TooLarge`]; [`Error::Damaged`] after setting it aside.
    pub fn read(&self, digest: Digest, limit: u64) -> Result<Vec<u8>> {
        let path = self.path(digest);
        let file = self.open_blob(digest)?;
        let stat = rustix::fs::fstat(&file).map_err(knarr_fs::Error::of("stat", "fstat", &path))?;
        let size = u64::try_from(stat.st_size).unwrap_or_default();
        if size > limit {
            return Err(Error::TooLarge {
                digest,
                size,
                limit,
            });
        }
        let mut bytes = Vec::with_capacity(size.try_into().unwrap_or_default());
        file.take(limit)
            .read_to_end(&mut bytes)
            .map_err(knarr_fs::Error::of_io("read", "read", &path))?;
        let got = Hasher::digest(&bytes);
        if got == digest {
            Ok(bytes)
        } else {
            Err(self.set_aside(digest, got)?)
        }
    }

    /// Hashes a stored blob of any size again.
    ///
    /// # Errors
    /// As [`read`](Self::read).
    pub fn verify(&self, digest: Digest) -> Result<()> {
        let got = self.rehash(digest)?;
        if got == digest {
            Ok(())
        } else {
            Err(self.set_aside(digest, got)?)
        }
    }

    /// What a stored blob's bytes hash to now. Changes nothing.
    ///
    /// # Errors
    /// [`Error::Missing`]; as read(2).
    pub fn rehash(&self, digest: Digest) -> Result<Digest> {
        let path = self.path(digest);
        let mut file = self.open_blob(digest)?;
        let mut hasher = Hasher::new();
        let mut buffer = vec![0; 256 << 10];
        loop {
            let n = file
                .read(&mut buffer)
                .map_err(knarr_fs::Error::of_io("read", "read", &path))?;
            match buffer.get(..n) {
                None | Some([]) => break,
                Some(bytes) => hasher.update(bytes),
            }
        }
        Ok(hasher.finish())
    }

    /// All blobs, in no order.
    ///
    /// # Errors
    /// When the folder cannot be read.
    pub fn list(&self) -> Result<Vec<Digest>> {
        Ok(knarr_fs::file_names(&self.blobs)?
            .iter()
            .filter_map(|name| Digest::from_hex(name.to_str()?).ok())
            .collect())
    }

    /// Removes a blob; one that is gone is fine.
    ///
    /// # Errors
    /// As unlink(2).
    pub fn remove(&self, digest: Digest) -> Result<()> {
        Ok(knarr_fs::remove_file(&self.path(digest))?)
    }

    /// Where blobs are that are only partly here, each a folder named by its digest.
    pub fn partials(&self) -> PathBuf {
        self.partial.clone()
    }

    /// Removes what killed writers left, and partly fetched blobs that nobody went on with for a
    /// week, or at all where `partials` are to go too. What somebody is at stays.
    ///
    /// # Errors
    /// When something cannot be looked at or removed.
    pub fn sweep(&self, partials: Partials) -> Result<()> {
        let failed = |call| knarr_fs::Error::of_io("list", call, &self.partial);
        let entries = std::fs::read_dir(&self.partial).map_err(failed("open"))?;
        for entry in entries {
            let entry = entry.map_err(failed("getdents"))?;
            let path = entry.path();
            let metadata = match entry.metadata() {
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => continue,
                metadata => metadata.map_err(failed("stat"))?,
            };
            let lock = match metadata.is_dir() {
                false => Lock::try_seize(&path)?,
                true => {
                    let age = metadata.modified().ok().and_then(|at| at.elapsed().ok());
                    let name = entry.file_name();
                    let resumable = name.to_str().is_some_and(|n| Digest::from_hex(n).is_ok());
                    let is_young = age.is_none_or(|age| age < PATIENCE);
                    if resumable && is_young && partials == Partials::Old {
                        continue;
                    }
                    match Lock::try_exclusive(&path.join("lock")) {
                        Err(error) if error.is_not_found() => continue,
                        lock => lock?,
                    }
                }
            };
            if lock.is_some() {
                knarr_fs::remove_tree(&path)?;
            }
        }
        Ok(())
    }

    /// A new file in `partial/`, held, and its name where it has one.
    fn create(&self) -> Result<(File, Lock, Option<Name>)> {
        // Unnamed until it is whole: a killed writer leaves nothing. File systems without unnamed
        // files (NFS, older overlayfs) get a named one.
        let flags = OFlags::RDWR | OFlags::CLOEXEC;
        let mode = Mode::RUSR | Mode::WUSR;
        let (file, name) = match rustix::fs::open(&self.partial, flags | OFlags::TMPFILE, mode) {
            Err(Errno::OPNOTSUPP | Errno::ISDIR | Errno::NOENT) => {
                let name = self.temporary()?;
                let create = flags | OFlags::CREATE | OFlags::EXCL;
                (rustix::fs::open(&name, create, mode), Some(Name(name)))
            }
            opened => (opened, None),
        };
        let called = knarr_fs::Error::of("create a file in", "open", &self.partial);
        let file = File::from(file.map_err(called)?);
        let hold = share(&file, &self.partial)?;
        Ok((file, hold, name))
    }

    /// A fresh name in `partial/`.
    fn temporary(&self) -> Result<PathBuf> {
        let mut random = [0u8; 16];
        rustix::rand::getrandom(&mut random, rustix::rand::GetRandomFlags::empty()).map_err(
            knarr_fs::Error::of("get random bytes for", "getrandom", &self.partial),
        )?;
        let name = format!(".{:032x}", u128::from_ne_bytes(random));
        Ok(self.partial.join(name))
    }

    /// Moves a damaged blob out of the way and gives the error that says so.
    fn set_aside(&self, digest: Digest, got: Digest) -> Result<Error> {
        knarr_fs::create_dir_all(&self.damaged)?;
        let aside = self.damaged.join(digest.hex());
        match knarr_fs::rename(&self.path(digest), &aside) {
            // Another reader was first.
            Err(error) if error.is_not_found() => {}
            renamed => renamed?,
        }
        Ok(Error::Damaged { digest, got, aside })
    }
}

/// A blob in the making. Dropped uncommitted, it never was.
#[derive(Debug)]
pub struct Writer {
    store: Store,
    file: File,
    _hold: Lock,
    /// Where the file system has no unnamed files.
    _name: Option<Name>,
    hasher: Hasher,
    size: u64,
}

impl Writer {
    /// Adds bytes.
    ///
    /// # Errors
    /// As write(2).
    pub fn write(&mut self, bytes: &[u8]) -> Result<()> {
        self.file.write_all(bytes).map_err(knarr_fs::Error::of_io(
            "write",
            "write",
            &self.store.partial,
        ))?;
        self.hasher.update(bytes);
        self.size = self
            .size
            .saturating_add(bytes.len().try_into().unwrap_or(u64::MAX));
        Ok(())
    }

    /// Bytes so far.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Publishes it, durably; gives a [hold](Store::hold) on it, too.
    ///
    /// # Errors
    /// [`Error::Mismatch`] when the bytes are not `expected`; as fsync(2), linkat(2).
    pub fn commit(self, expected: Option<Digest>) -> Result<(Digest, Lock)> {
        let digest = self.hasher.finish();
        if let Some(expected) = expected
            && expected != digest
        {
            return Err(Error::Mismatch {
                expected,
                got: digest,
            });
        }
        Ok((digest, self.store.adopt(&self.file, digest)?))
    }
}

/// A shared lock on an open file.
fn share(file: &File, path: &Path) -> Result<Lock> {
    let copied = file.try_clone();
    let copied = copied.map_err(knarr_fs::Error::of_io("open", "dup", path))?;
    Ok(Lock::of_open(copied.into(), path)?)
}

/// A temporary name, taken away when dropped.
#[derive(Debug)]
struct Name(PathBuf);

impl Drop for Name {
    fn drop(&mut self) {
        // Nobody is left to tell; a sweep removes what stays.
        knarr_fs::remove_file(&self.0).ok();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use knarr_fs::TempDir;

    fn scratch() -> (TempDir, Store) {
        let dir = TempDir::new_in(&std::env::temp_dir().join("knarr-cas-tests")).unwrap();
        let store = Store::open(dir.path()).unwrap();
        (dir, store)
    }

    #[test]
    fn a_blob_is_there_whole_or_not_at_all() {
        let (dir, store) = scratch();
        let mut writer = store.writer().unwrap();
        writer.write(b"half").unwrap();
        drop(writer);
        assert!(store.list().unwrap().is_empty());
        let mut writer = store.writer().unwrap();
        writer.write(b"he").unwrap();
        writer.write(b"llo").unwrap();
        assert_eq!(writer.size(), 5);
        let (digest, _hold) = writer.commit(None).unwrap();
        assert_eq!(
            digest.hex(),
            "2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824"
        );
        assert_eq!(store.list().unwrap(), [digest]);
        assert_eq!(store.put(b"hello").unwrap(), digest);
        store.verify(digest).unwrap();
        assert_eq!(
            std::fs::read_dir(dir.path().join("blobs/partial"))
                .unwrap()
                .count(),
            0
        );
    }

    #[test]
    fn bytes_that_lie_are_refused() {
        let (_dir, store) = scratch();
        let expected = Hasher::digest(b"good");
        let mut writer = store.writer().unwrap();
        writer.write(b"evil").unwrap();
        let error = writer.commit(Some(expected)).unwrap_err();
        assert!(matches!(error, Error::Mismatch { expected: e, .. } if e == expected));
        assert!(!store.contains(expected));
    }

    #[test]
    fn a_damaged_blob_is_set_aside_and_can_be_stored_again() {
        let (_dir, store) = scratch();
        let digest = store.put(b"precious").unwrap();
        std::fs::write(store.path(digest), b"precioux").unwrap();
        let error = store.read(digest, 100).unwrap_err();
        let Error::Damaged { aside, .. } = &error else {
            panic!("{error}");
        };
        assert_eq!(std::fs::read(aside).unwrap(), b"precioux");
        assert!(matches!(
            store.read(digest, 100),
            Err(Error::Missing { .. })
        ));
        store.put(b"precious").unwrap();
        assert_eq!(store.read(digest, 100).unwrap(), b"precious");
        // `put` heals too, and `verify` sees it.
        std::fs::write(store.path(digest), b"x").unwrap();
        store.put(b"precious").unwrap();
        std::fs::write(store.path(digest), b"y").unwrap();
        assert!(store.verify(digest).is_err());
    }

    #[test]
    fn a_large_blob_is_not_read_whole() {
        let (_dir, store) = scratch();
        let digest = store.put(&[7; 1000]).unwrap();
        assert!(matches!(
            store.read(digest, 999),
            Err(Error::TooLarge { size: 1000, .. })
        ));
    }

    #[test]
    fn a_blob_is_held_before_anybody_sees_it_and_until_its_holder_ends() {
        let (_dir, store) = scratch();
        let (digest, first) = store.put_and_hold(b"held").unwrap();
        assert!(store.try_lock(digest).unwrap().is_none());
        // Who finds it there holds it as well.
        let (_, second) = store.put_and_hold(b"held").unwrap();
        drop(first);
        assert!(store.try_lock(digest).unwrap().is_none());
        drop(second);
        let lock = store.try_lock(digest).unwrap().unwrap();
        store.remove(digest).unwrap();
        drop(lock);
        assert!(store.hold(digest).unwrap().is_none());
        assert!(store.try_lock(digest).unwrap().is_none());
    }

    #[test]
    fn two_writers_of_one_blob_hold_the_same_file() {
        let (_dir, store) = scratch();
        let mut late = store.writer().unwrap();
        late.write(b"twice").unwrap();
        let (digest, first) = store.put_and_hold(b"twice").unwrap();
        let (_, second) = late.commit(Some(digest)).unwrap();
        drop(first);
        assert!(store.try_lock(digest).unwrap().is_none());
        drop(second);
        // A damaged one is replaced.
        std::fs::write(store.path(digest), b"wrong").unwrap();
        let mut writer = store.writer().unwrap();
        writer.write(b"twice").unwrap();
        let (_, _hold) = writer.commit(Some(digest)).unwrap();
        assert_eq!(store.read(digest, 100).unwrap(), b"twice");
        assert!(store.damaged.join(digest.hex()).exists());
    }

    #[test]
    fn a_sweep_leaves_what_somebody_is_at() {
        let (_dir, store) = scratch();
        let partials = store.partials();
        let hex = "a".repeat(64);
        for folder in [&hex, &format!("{hex}.12")] {
            std::fs::create_dir_all(partials.join(folder)).unwrap();
        }
        std::fs::write(partials.join(format!(".{}", "b".repeat(32))), "killed").unwrap();
        let own = partials.join(format!("{hex}.13"));
        std::fs::create_dir_all(&own).unwrap();
        let at_work = Lock::exclusive(&own.join("lock")).unwrap();
        let left = || {
            let mut names: Vec<_> = std::fs::read_dir(&partials)
                .unwrap()
                .map(|entry| entry.unwrap().file_name().into_string().unwrap())
                .collect();
            names.sort();
            names
        };
        store.sweep(Partials::Old).unwrap();
        assert_eq!(left(), [hex.clone(), format!("{hex}.13")]);
        store.sweep(Partials::All).unwrap();
        assert_eq!(left(), [format!("{hex}.13")]);
        drop(at_work);
        store.sweep(Partials::Old).unwrap();
        assert!(left().is_empty());
    }
}
