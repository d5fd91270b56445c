//! The folder of blobs.

use std::collections::HashSet;
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

/// The lock file of [`Store::lease`], in `partial/`.
const LEASE: &str = ".lease";

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
        let digest = Hasher::digest(bytes);
        if self.contains(digest) {
            match self.read(digest, bytes.len().try_into().unwrap_or(u64::MAX)) {
                Ok(_) => return Ok(digest),
                Err(error) if error.is_gone() => {}
                Err(error) => return Err(error),
            }
        }
        let mut writer = self.writer()?;
        writer.write(bytes)?;
        writer.commit(Some(digest))
    }

    /// A new blob, to be written piece by piece.
    ///
    /// # Errors
    /// When the temporary file cannot be made.
    pub fn writer(&self) -> Result<Writer> {
        let (file, name) = self.create()?;
        Ok(Writer {
            store: self.clone(),
            file,
            name,
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
        let (file, name) = self.create()?;
        if let Some(name) = name {
            knarr_fs::remove_file(&name)?;
        }
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

    /// Keeps [`collect`](Self::collect) away while blobs are written that nothing names yet.
    ///
    /// # Errors
    /// As flock(2).
    pub fn lease(&self) -> Result<Lock> {
        Ok(Lock::shared(&self.lease_path())?)
    }

    /// Whether somebody holds a [lease](Self::lease) now.
    ///
    /// # Errors
    /// As flock(2).
    pub fn is_leased(&self) -> Result<bool> {
        Ok(Lock::try_exclusive(&self.lease_path())?.is_none())
    }

    /// Removes every blob that is not among those `keep` gives, unless somebody holds a
    /// [lease](Self::lease): then nothing is done and the next call gets them. Gives what went.
    ///
    /// `keep` is asked only while no lease is held, and so can rely on what it reads.
    ///
    /// # Errors
    /// When the folder cannot be read or a blob not removed, and what `keep` gives.
    pub fn collect<E: From<Error>>(
        &self,
        keep: impl FnOnce() -> std::result::Result<HashSet<Digest>, E>,
    ) -> std::result::Result<Vec<Digest>, E> {
        let lock = Lock::try_exclusive(&self.lease_path()).map_err(Error::File)?;
        let Some(_lock) = lock else {
            return Ok(Vec::new());
        };
        let keep = keep()?;
        let mut gone = Vec::new();
        for digest in self.list()? {
            if !keep.contains(&digest) {
                self.remove(digest)?;
                gone.push(digest);
            }
        }
        self.remove_leftovers()?;
        Ok(gone)
    }

    /// Where blobs are that are only partly here, each a folder named by its digest.
    pub fn partials(&self) -> PathBuf {
        self.partial.clone()
    }

    /// What killed writers left in `partial/`, and partly fetched blobs that nobody went on with
    /// for a week; only while nobody holds a lease.
    fn remove_leftovers(&self) -> Result<()> {
        let failed = |call| knarr_fs::Error::of_io("list", call, &self.partial);
        let entries = std::fs::read_dir(&self.partial).map_err(failed("open"))?;
        for entry in entries {
            let entry = entry.map_err(failed("getdents"))?;
            let name = entry.file_name();
            if name == LEASE {
                continue;
            }
            let metadata = entry.metadata().map_err(failed("stat"))?;
            let age = metadata.modified().ok().and_then(|at| at.elapsed().ok());
            let is_partial = name.to_str().is_some_and(|n| Digest::from_hex(n).is_ok());
            if metadata.is_dir() && is_partial && age.is_none_or(|age| age < PATIENCE) {
                continue;
            }
            knarr_fs::remove_tree(&entry.path())?;
        }
        Ok(())
    }

    fn lease_path(&self) -> PathBuf {
        self.partial.join(LEASE)
    }

    /// A new file in `partial/`, and its name where it has one.
    fn create(&self) -> Result<(File, Option<PathBuf>)> {
        // Unnamed until it is whole: a killed writer leaves nothing. File systems without unnamed
        // files (NFS, older overlayfs) get a named one.
        let flags = OFlags::RDWR | OFlags::CLOEXEC;
        let mode = Mode::RUSR | Mode::WUSR;
        let (file, name) = match rustix::fs::open(&self.partial, flags | OFlags::TMPFILE, mode) {
            Err(Errno::OPNOTSUPP | Errno::ISDIR | Errno::NOENT) => {
                let name = self.temporary()?;
                let create = flags | OFlags::CREATE | OFlags::EXCL;
                (rustix::fs::open(&name, create, mode), Some(name))
            }
            opened => (opened, None),
        };
        let file = file.map_err(knarr_fs::Error::of(
            "create a file in",
            "open",
            &self.partial,
        ))?;
        Ok((File::from(file), name))
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
    /// Where the file system has no unnamed files.
    name: Option<PathBuf>,
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

    /// Publishes it, durably.
    ///
    /// # Errors
    /// [`Error::Mismatch`] when the bytes are not `expected`; as fsync(2), rename(2).
    pub fn commit(mut self, expected: Option<Digest>) -> Result<Digest> {
        let digest = std::mem::take(&mut self.hasher).finish();
        if let Some(expected) = expected
            && expected != digest
        {
            return Err(Error::Mismatch {
                expected,
                got: digest,
            });
        }
        let partial = &self.store.partial;
        self.file
            .sync_data()
            .map_err(knarr_fs::Error::of_io("sync", "fdatasync", partial))?;
        failpoint!("blob.synced");
        let named = match &self.name {
            Some(name) => name,
            None => {
                let name = self.store.temporary()?;
                let source = format!("/proc/self/fd/{}", self.file.as_raw_fd());
                rustix::fs::linkat(CWD, source, CWD, &name, AtFlags::SYMLINK_FOLLOW)
                    .map_err(knarr_fs::Error::of("create", "linkat", &name))?;
                self.name.insert(name)
            }
        };
        failpoint!("blob.linked");
        knarr_fs::rename_durable(named, &self.store.path(digest))?;
        self.name = None;
        failpoint!("blob.published");
        Ok(digest)
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        if let Some(name) = &self.name {
            // Nobody is left to tell; `collect` removes what stays.
            knarr_fs::remove_file(name).ok();
        }
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
        let digest = writer.commit(None).unwrap();
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
    fn collect_removes_what_nobody_wants_and_waits_for_leases() {
        let (_dir, store) = scratch();
        let (keep, drop_it) = (store.put(b"keep").unwrap(), store.put(b"drop").unwrap());
        let wanted = || Ok::<_, Error>(HashSet::from([keep]));
        let lease = store.lease().unwrap();
        assert_eq!(store.collect(wanted).unwrap(), []);
        drop(lease);
        assert_eq!(store.collect(wanted).unwrap(), [drop_it]);
        assert!(store.contains(keep) && !store.contains(drop_it));
    }
}
