//! A container as later calls find it.

use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use knarr_cgroup::{Cgroup, Layout};
use knarr_diag::{Class, Explain as _};
use knarr_fs::Error as FsError;
use rustix::fs::{FlockOperation, Mode, OFlags};
use rustix::io::Errno;

use crate::failure::{Failure, Result};
use crate::state::{FILE, GATE, Phase, Record};

/// The folder in the root that is no container.
pub(crate) const OWN: &str = ".knarr";

/// As the specification calls them, and `paused`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Status {
    Creating,
    Created,
    Running,
    Paused,
    Stopped,
}

impl Status {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Creating => "creating",
            Self::Created => "created",
            Self::Running => "running",
            Self::Paused => "paused",
            Self::Stopped => "stopped",
        }
    }
}

/// One container, and where it is described.
#[derive(Debug)]
pub(crate) struct Container {
    pub(crate) dir: PathBuf,
    pub(crate) record: Record,
}

/// Held while a container changes; released by death.
#[derive(Debug)]
pub(crate) struct Lock(#[expect(dead_code, reason = "held")] OwnedFd);

/// What callers match on.
pub(crate) fn does_not_exist() -> Failure {
    Failure::new("container does not exist")
}

/// That an id can be the name of a folder, in runc's words.
pub(crate) fn check_id(id: &str) -> Result<()> {
    let right =
        |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'+' | b'-' | b'.');
    if id.is_empty() || id.len() > 255 || !id.bytes().all(right) || matches!(id, "." | ".." | OWN) {
        return Err(Failure::new("invalid container ID format"));
    }
    Ok(())
}

/// Opens a container's folder and takes its lock, if that goes at once.
pub(crate) fn try_lock(dir: &Path) -> Result<Option<Lock>> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let folder = match rustix::fs::open(dir, flags, Mode::empty()) {
        Ok(folder) => folder,
        Err(Errno::NOENT) => return Err(does_not_exist()),
        Err(errno) => return Err(FsError::of("open", "open", dir)(errno).into()),
    };
    match rustix::fs::flock(&folder, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(Some(Lock(folder))),
        Err(Errno::WOULDBLOCK) => Ok(None),
        Err(errno) => Err(FsError::of("lock", "flock", dir)(errno).into()),
    }
}

/// Makes the folder of a new container and locks it.
pub(crate) fn claim(root: &Path, id: &str) -> Result<(PathBuf, Lock)> {
    check_id(id)?;
    let dir = root.join(id);
    loop {
        let mode = if knarr_runtime::weak::off("modes") {
            Mode::from_raw_mode(0o777)
        } else {
            Mode::RWXU
        };
        match rustix::fs::mkdir(&dir, mode) {
            Ok(()) => {}
            Err(Errno::NOENT) => {
                knarr_fs::create_dir_all(root)?;
                continue;
            }
            Err(Errno::EXIST) => {
                // Perhaps only what a killed creation has left.
                match Container::open(root, id) {
                    Err(failure) if failure.message == does_not_exist().message => continue,
                    _ => {
                        return Err(Failure::new("container with given ID already exists"));
                    }
                }
            }
            Err(errno) => return Err(FsError::of("create", "mkdir", &dir)(errno).into()),
        }
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let folder = match rustix::fs::open(&dir, flags, Mode::empty()) {
            Ok(folder) => folder,
            Err(Errno::NOENT) => continue,
            Err(errno) => return Err(FsError::of("open", "open", &dir)(errno).into()),
        };
        rustix::fs::flock(&folder, FlockOperation::LockExclusive)
            .map_err(FsError::of("lock", "flock", &dir))?;
        // Somebody may have taken it for a leftover in between.
        let stat = rustix::fs::fstat(&folder).map_err(FsError::of("stat", "fstat", &dir))?;
        if stat.st_nlink > 0 {
            return Ok((dir, Lock(folder)));
        }
    }
}

impl Container {
    /// Finds one. What a killed creation has left is taken away.
    ///
    /// # Errors
    /// [`does_not_exist`], and what cannot be read.
    pub(crate) fn open(root: &Path, id: &str) -> Result<Self> {
        check_id(id)?;
        let dir = root.join(id);
        match Record::load(&dir)? {
            Some(record) if record.phase == Phase::Whole => Ok(Self { dir, record }),
            found => Self::unfinished(dir, id, found),
        }
    }

    /// One that is being made, or was.
    fn unfinished(dir: PathBuf, id: &str, found: Option<Record>) -> Result<Self> {
        let Some(lock) = try_lock(&dir)? else {
            return match found {
                Some(record) => Ok(Self { dir, record }),
                None => Err(Failure::new(format!("container {id} is being created"))),
            };
        };
        // Looked at again under the lock: it may have become whole, or gone.
        let record = Record::load(&dir)?;
        match record {
            Some(record) if record.phase == Phase::Whole => Ok(Self { dir, record }),
            record => {
                if let Some(plan) = record.and_then(|record| record.cgroup) {
                    remove_cgroup(&plan)?;
                }
                knarr_fs::remove_tree(&dir)?;
                drop(lock);
                Err(does_not_exist())
            }
        }
    }

    /// Takes its lock, waiting for others.
    ///
    /// # Errors
    /// [`does_not_exist`] where it was removed meanwhile.
    pub(crate) fn lock(&self) -> Result<Lock> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let folder = match rustix::fs::open(&self.dir, flags, Mode::empty()) {
            Ok(folder) => folder,
            Err(Errno::NOENT) => return Err(does_not_exist()),
            Err(errno) => return Err(FsError::of("open", "open", &self.dir)(errno).into()),
        };
        rustix::fs::flock(&folder, FlockOperation::LockExclusive)
            .map_err(FsError::of("lock", "flock", &self.dir))?;
        let stat = rustix::fs::fstat(&folder).map_err(FsError::of("stat", "fstat", &self.dir))?;
        if stat.st_nlink == 0 {
            return Err(does_not_exist());
        }
        Ok(Lock(folder))
    }

    /// Asks the kernel.
    ///
    /// # Errors
    /// What cannot be read.
    pub(crate) fn status(&self) -> Result<Status> {
        let Some(init) = &self.record.init else {
            return Ok(Status::Creating);
        };
        if !init.is_alive()? {
            return Ok(Status::Stopped);
        }
        if self.is_frozen() {
            return Ok(Status::Paused);
        }
        if rustix::fs::access(self.dir.join(GATE), rustix::fs::Access::EXISTS).is_ok() {
            return Ok(Status::Created);
        }
        Ok(Status::Running)
    }

    /// A cgroup that cannot be asked is not frozen by anybody here.
    fn is_frozen(&self) -> bool {
        self.cgroup()
            .is_ok_and(|cgroup| cgroup.is_some_and(|cgroup| cgroup.is_frozen().unwrap_or(false)))
    }

    /// A handle on its cgroup, where it has one.
    ///
    /// # Errors
    /// What is gone.
    pub(crate) fn cgroup(&self) -> Result<Option<Cgroup>> {
        let Some(plan) = &self.record.cgroup else {
            return Ok(None);
        };
        Ok(Some(Cgroup::open(&Layout::detect()?, plan)?))
    }

    /// The same; none also where it is gone, as it may be once the container has stopped.
    ///
    /// # Errors
    /// What is there and cannot be opened.
    pub(crate) fn living_cgroup(&self) -> Result<Option<Cgroup>> {
        let Some(plan) = &self.record.cgroup else {
            return Ok(None);
        };
        living(&Layout::detect()?, plan)
    }

    /// The same, for what cannot do without.
    ///
    /// # Errors
    /// What is gone; a container without one.
    pub(crate) fn need_cgroup(&self, what: &str) -> Result<Cgroup> {
        self.may(what)?;
        self.cgroup()?.ok_or_else(does_not_exist)
    }

    /// Whether it has a cgroup at all, to do something with.
    ///
    /// # Errors
    /// That it has none.
    pub(crate) fn may(&self, what: &str) -> Result<()> {
        if self.record.cgroup.is_some() {
            return Ok(());
        }
        Err(Failure::new(format!(
            "cannot {what} a container without a cgroup (none was delegated to its user: start it with `systemd-run --user --scope -p Delegate=yes`, or use --systemd-cgroup)"
        )))
    }

    /// Removes all that is left of a stopped container.
    ///
    /// # Errors
    /// What stays.
    pub(crate) fn remove(&self) -> Result<()> {
        if let Some(plan) = &self.record.cgroup {
            remove_cgroup(plan)?;
        }
        // What it is described by first: without that it is a leftover. Nearly always that is all.
        let gone = |removed: rustix::io::Result<()>| matches!(removed, Ok(()) | Err(Errno::NOENT));
        if gone(rustix::fs::unlink(self.dir.join(FILE))) && gone(rustix::fs::rmdir(&self.dir)) {
            return Ok(());
        }
        Ok(knarr_fs::remove_tree(&self.dir)?)
    }
}

fn living(layout: &Layout, plan: &knarr_cgroup::Plan) -> Result<Option<Cgroup>> {
    match Cgroup::open(layout, plan) {
        Ok(cgroup) => Ok(Some(cgroup)),
        Err(error) if error.class() == Class::NotFound => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// Kills what is in a container's cgroups and removes them.
pub(crate) fn remove_cgroup(plan: &knarr_cgroup::Plan) -> Result<()> {
    let layout = Layout::detect()?;
    if Cgroup::remove_empty(&layout, plan) {
        return Ok(());
    }
    if let Some(cgroup) = living(&layout, plan)?
        && cgroup.is_populated()?
    {
        cgroup.kill()?;
    }
    Ok(Cgroup::remove(&layout, plan)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_is_a_file_name_and_nothing_else() {
        for good in ["a", "web-1", "A_b+c.d", "0", "..."] {
            assert!(check_id(good).is_ok(), "{good}");
        }
        for bad in [
            "", ".", "..", "a/b", "a b", "é", "a\n", "a\0", ".knarr", "a:b", "*",
        ] {
            assert!(check_id(bad).is_err(), "{bad}");
        }
        assert!(check_id(&"x".repeat(256)).is_err());
    }

    #[test]
    fn what_a_killed_creation_left_is_taken_away() {
        let root = knarr_fs::TempDir::new_in(&std::env::temp_dir()).unwrap();
        let (dir, lock) = claim(root.path(), "web").unwrap();
        let again = claim(root.path(), "web").unwrap_err();
        assert_eq!(again.message, "container with given ID already exists");
        assert!(dir.exists());
        drop(lock);
        let gone = Container::open(root.path(), "web").unwrap_err();
        assert_eq!(gone.message, "container does not exist");
        assert!(!dir.exists());
        claim(root.path(), "web").unwrap();
    }
}
