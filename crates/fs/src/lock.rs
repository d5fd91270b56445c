//! Locks that death releases: flock(2).

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::fs::{FlockOperation, Mode, OFlags};
use rustix::io::Errno;

use crate::{Error, Result};

/// A held `flock` on a file. It belongs to the open file description, so a process that inherits
/// the descriptor holds it too, and it is released when the last one closes.
#[derive(Debug)]
pub struct Lock {
    file: OwnedFd,
}

impl Lock {
    /// Waits until nobody else holds the lock on `path` (made, mode 0600, where missing).
    ///
    /// # Errors
    /// As open(2) and flock(2).
    pub fn exclusive(path: &Path) -> Result<Self> {
        Self::acquire(path, FlockOperation::LockExclusive)
    }

    /// Waits until nobody holds the lock exclusively.
    ///
    /// # Errors
    /// As open(2) and flock(2).
    pub fn shared(path: &Path) -> Result<Self> {
        Self::acquire(path, FlockOperation::LockShared)
    }

    /// As [`Lock::exclusive`], or `None` at once when somebody else holds it.
    ///
    /// # Errors
    /// As open(2) and flock(2).
    pub fn try_exclusive(path: &Path) -> Result<Option<Self>> {
        Self::attempt(path, FlockOperation::NonBlockingLockExclusive)
    }

    /// As [`Lock::shared`], or `None` at once when somebody else holds it exclusively.
    ///
    /// # Errors
    /// As open(2) and flock(2).
    pub fn try_shared(path: &Path) -> Result<Option<Self>> {
        Self::attempt(path, FlockOperation::NonBlockingLockShared)
    }

    /// As [`Lock::exclusive`], or `None` when that took longer than `timeout`.
    ///
    /// # Errors
    /// As open(2) and flock(2).
    pub fn exclusive_within(path: &Path, timeout: Duration) -> Result<Option<Self>> {
        let deadline = Instant::now() + timeout;
        loop {
            if let Some(lock) = Self::try_exclusive(path)? {
                return Ok(Some(lock));
            }
            if Instant::now() >= deadline {
                return Ok(None);
            }
            // flock has no timeout of its own; holders are short-lived commands or monitors.
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    /// Waits for a shared lock on a file or folder that exists; it is opened for reading, and never
    /// made. `None` where there is none.
    ///
    /// # Errors
    /// As open(2) and flock(2).
    pub fn share(path: &Path) -> Result<Option<Self>> {
        let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        match Self::acquire_with(path, flags, FlockOperation::LockShared) {
            Ok(lock) => Ok(Some(lock)),
            Err(error) if error.is_not_found() => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// As [`Lock::share`], but exclusively and at once: also `None` when somebody else holds it.
    ///
    /// # Errors
    /// As open(2) and flock(2).
    pub fn try_seize(path: &Path) -> Result<Option<Self>> {
        let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        match Self::acquire_with(path, flags, FlockOperation::NonBlockingLockExclusive) {
            Ok(lock) => Ok(Some(lock)),
            Err(error) if error.is_not_found() || error.errno() == Some(Errno::AGAIN) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Whether somebody holds a lock on a file or folder now; nobody does on one that is not there.
    ///
    /// # Errors
    /// As open(2) and flock(2).
    pub fn is_held(path: &Path) -> Result<bool> {
        let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        match Self::acquire_with(path, flags, FlockOperation::NonBlockingLockExclusive) {
            Ok(_) => Ok(false),
            Err(error) if error.is_not_found() => Ok(false),
            Err(error) if error.errno() == Some(Errno::AGAIN) => Ok(true),
            Err(error) => Err(error),
        }
    }

    /// A shared lock on a file that is open, whatever its name is or will be.
    ///
    /// # Errors
    /// As flock(2); `path` is what messages call it.
    pub fn of_open(file: OwnedFd, path: &Path) -> Result<Self> {
        flock(&file, FlockOperation::LockShared, path)?;
        Ok(Self { file })
    }

    /// Wraps a descriptor on which the lock is held already, inherited from another process.
    pub fn inherited(file: OwnedFd) -> Self {
        Self { file }
    }

    fn attempt(path: &Path, operation: FlockOperation) -> Result<Option<Self>> {
        match Self::acquire(path, operation) {
            Ok(lock) => Ok(Some(lock)),
            Err(error) if error.errno() == Some(Errno::AGAIN) => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn acquire(path: &Path, operation: FlockOperation) -> Result<Self> {
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        Self::acquire_with(path, flags, operation)
    }

    fn acquire_with(path: &Path, flags: OFlags, operation: FlockOperation) -> Result<Self> {
        loop {
            let file = rustix::fs::open(path, flags, Mode::RUSR | Mode::WUSR)
                .map_err(Error::of("open the lock", "open", path))?;
            flock(&file, operation, path)?;
            // Whoever held it may have removed the object, lock file included: then what was
            // locked is not what the path names now.
            let held = rustix::fs::fstat(&file).map_err(Error::of("stat", "fstat", path))?;
            match rustix::fs::stat(path) {
                Ok(named) if (named.st_dev, named.st_ino) == (held.st_dev, held.st_ino) => {
                    return Ok(Self { file });
                }
                Ok(_) => {}
                // The object is gone, and with it the folder or just the lock.
                Err(Errno::NOENT) => {}
                Err(errno) => return Err(Error::of("stat", "stat", path)(errno)),
            }
        }
    }
}

fn flock(file: &OwnedFd, operation: FlockOperation, path: &Path) -> Result<()> {
    loop {
        match rustix::fs::flock(file, operation) {
            Ok(()) => return Ok(()),
            Err(Errno::INTR) => {}
            Err(errno) => return Err(Error::of("lock", "flock", path)(errno)),
        }
    }
}

impl AsFd for Lock {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

impl From<Lock> for OwnedFd {
    fn from(lock: Lock) -> Self {
        lock.file
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exclusive_keeps_others_out_until_dropped() {
        let dir = crate::TempDir::new_in(&std::env::temp_dir().join("knarr-fs-tests")).unwrap();
        let path = dir.path().join("lock");
        let held = Lock::try_exclusive(&path).unwrap();
        assert!(held.is_some());
        assert!(Lock::try_exclusive(&path).unwrap().is_none());
        assert!(Lock::try_shared(&path).unwrap().is_none());
        drop(held);
        let (one, two) = (
            Lock::try_shared(&path).unwrap(),
            Lock::try_shared(&path).unwrap(),
        );
        assert!(one.is_some() && two.is_some());
        assert!(
            Lock::exclusive_within(&path, Duration::from_millis(5))
                .unwrap()
                .is_none()
        );
    }

    #[test]
    fn what_exists_is_locked_as_it_is_and_nothing_is_made() {
        let dir = crate::TempDir::new_in(&std::env::temp_dir().join("knarr-fs-tests")).unwrap();
        let path = dir.path().join("blob");
        assert!(Lock::share(&path).unwrap().is_none());
        assert!(Lock::try_seize(&path).unwrap().is_none());
        assert!(!Lock::is_held(&path).unwrap() && !path.exists());
        std::fs::write(&path, "x").unwrap();
        for path in [path.as_path(), dir.path()] {
            let held = Lock::share(path).unwrap().unwrap();
            assert!(Lock::try_seize(path).unwrap().is_none());
            assert!(Lock::is_held(path).unwrap());
            drop(held);
            assert!(!Lock::is_held(path).unwrap());
            assert!(Lock::try_seize(path).unwrap().is_some());
        }
    }
}
