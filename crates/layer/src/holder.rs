//! Holders: one superblock per layer per host.
//!
//! Mounting the same files twice makes two superblocks with a page cache each. So whoever mounts a
//! layer says where its mount can be cloned from, in one symlink:
//!
//! ```text
//! <run>/layers/<id>/lock                      held while somebody mounts the layer
//! <run>/layers/<id>/holders/<pid>.<fd> -> <start time>:<boot id>:<device>:<mount|namespace>
//! ```
//!
//! `<fd>` is the holder's descriptor: of the detached mount, or of a mount namespace that shows the
//! layer (see [`private`](crate::private)). A record is removed before its descriptor is closed; of
//! a holder that was killed it stays, and the next one to hold the lock removes it.
//!
//! Invariant: a record is believed only while `/proc/<pid>` is the process with that start time,
//! and only if what was cloned is an EROFS on the device that the record names.

use std::ffi::OsStr;
use std::fmt;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use knarr_fs::Lock;
use rustix::fs::{AtFlags, CWD, Mode, OFlags};
use rustix::io::Errno;
use rustix::mount::OpenTreeFlags;

use crate::store::LayerId;
use crate::{Result, filesystem, private};

/// How a holder's descriptor leads to the layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Keeping {
    /// It is the layer's detached mount.
    Mount,
    /// It is a mount namespace in which the layer is attached.
    Namespace,
}

/// What a record's file says: its name and the link's target.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Holder {
    pid: i32,
    fd: RawFd,
    start_time: u64,
    boot_id: String,
    device: u64,
    keeping: Keeping,
}

/// A layer's mount, and the record that lends it to others for as long as this lives.
#[derive(Debug)]
pub(crate) struct Held {
    /// The layer's root: a detached mount.
    pub(crate) mount: OwnedFd,
    /// The namespace that keeps it, where the kernel cannot clone detached mounts.
    _namespace: Option<OwnedFd>,
    record: PathBuf,
}

impl Drop for Held {
    fn drop(&mut self) {
        // Fields drop after this: the record is gone before the descriptor. What cannot be
        // removed is a stale record, which is swept.
        knarr_fs::remove_file(&self.record).ok();
    }
}

/// Who this process is, for its records.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Process {
    pid: i32,
    start_time: u64,
}

impl Process {
    pub(crate) fn current() -> Result<Self> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let own = rustix::fs::openat(CWD, "/proc/self", flags, Mode::empty())
            .map_err(filesystem::failed(&"a layer", "openat"))?;
        Ok(Self {
            pid: rustix::process::getpid().as_raw_nonzero().get(),
            start_time: start_time(own.as_fd())?,
        })
    }
}

/// The layer's mount: cloned from a living holder, or made by `make` under the layer's lock.
pub(crate) fn acquire(
    id: &LayerId,
    run_root: &Path,
    keeping: Keeping,
    process: Process,
    make: impl FnOnce() -> Result<OwnedFd>,
) -> Result<Held> {
    let folder = folder(id, run_root);
    let holders = folder.join("holders");
    // Most starts end here, and take no lock.
    if let Some(mount) = clone_any(&holders, keeping)? {
        return record(mount, &holders, keeping, process);
    }
    let _lock = loop {
        knarr_fs::create_dir_all(&holders)?;
        match Lock::exclusive(&folder.join("lock")) {
            // A sweep took the folder away meanwhile.
            Err(error) if error.is_not_found() => {}
            lock => break lock?,
        }
    };
    if let Some(mount) = clone_any(&holders, keeping)? {
        return record(mount, &holders, keeping, process);
    }
    sweep_dead(&holders)?;
    let mount = make()?;
    knarr_fs::failpoint!("layer.mounted");
    record(mount, &holders, keeping, process)
}

/// Removes the records of dead holders of all layers, and the folders of layers that nobody holds.
///
/// # Errors
/// Where the run folder cannot be read or written.
pub fn sweep_holders(run_root: &Path) -> Result<()> {
    let layers = run_root.join("layers");
    for name in knarr_fs::file_names(&layers)? {
        let folder = layers.join(&name);
        let lock_path = folder.join("lock");
        if !folder.is_dir() {
            continue;
        }
        // Whoever has the lock is mounting it right now.
        let Some(lock) = Lock::try_exclusive(&lock_path)? else {
            continue;
        };
        let holders = folder.join("holders");
        sweep_dead(&holders)?;
        if knarr_fs::file_names(&holders)?.is_empty() {
            // A start that is just recording makes the folder again; a record that slipped in
            // keeps it, as rmdir refuses.
            if rustix::fs::rmdir(&holders).is_ok() {
                knarr_fs::remove_file(&lock_path)?;
                rustix::fs::rmdir(&folder).ok();
            }
        }
        drop(lock);
    }
    Ok(())
}

fn folder(id: &LayerId, run_root: &Path) -> PathBuf {
    run_root.join("layers").join(id.digest().hex())
}

/// Says that this process holds `mount`.
fn record(mount: OwnedFd, holders: &Path, keeping: Keeping, process: Process) -> Result<Held> {
    let device = filesystem::device(mount.as_fd(), &holders.display())?;
    let (mount, namespace) = match keeping {
        Keeping::Mount => (mount, None),
        Keeping::Namespace => {
            let (mount, namespace) = private::keep(mount)?;
            (mount, Some(namespace))
        }
    };
    let holder = Holder {
        pid: process.pid,
        fd: namespace.as_ref().unwrap_or(&mount).as_raw_fd(),
        start_time: process.start_time,
        boot_id: boot_id()?.to_owned(),
        device,
        keeping,
    };
    let path = holders.join(holder.name());
    loop {
        match knarr_fs::symlink(holder.target(), &path) {
            Ok(()) => break,
            // The folder was swept between the clone and now.
            Err(error) if error.is_not_found() => knarr_fs::create_dir_all(holders)?,
            // This very descriptor is ours, so the record is of a process that had our id.
            Err(error) if error.is_exists() => knarr_fs::remove_file(&path)?,
            Err(error) => return Err(error.into()),
        }
    }
    Ok(Held {
        mount,
        _namespace: namespace,
        record: path,
    })
}

/// A clone of the layer's mount from the first holder that lives.
fn clone_any(holders: &Path, keeping: Keeping) -> Result<Option<OwnedFd>> {
    for name in knarr_fs::file_names(holders)? {
        let target = knarr_fs::read_link(&holders.join(&name)).ok();
        let Some(holder) = target.and_then(|target| Holder::parse(&name, target.as_os_str()))
        else {
            continue;
        };
        if holder.keeping != keeping {
            continue;
        }
        // Whatever goes wrong with a holder (it dies just now): there are others, or a mount.
        if let Ok(Some(mount)) = holder.lend() {
            return Ok(Some(mount));
        }
    }
    Ok(None)
}

/// Removes the records of processes that are gone. Under the layer's lock.
fn sweep_dead(holders: &Path) -> Result<()> {
    for (name, target) in knarr_fs::link_names(holders)? {
        let living = Holder::parse(&name, target.as_os_str()).is_some_and(|holder| holder.holds());
        if !living {
            knarr_fs::remove_file(&holders.join(&name))?;
        }
    }
    Ok(())
}

impl Holder {
    fn name(&self) -> String {
        format!("{}.{}", self.pid, self.fd)
    }

    fn target(&self) -> String {
        self.to_string()
    }

    fn parse(name: &OsStr, target: &OsStr) -> Option<Self> {
        let (pid, fd) = name.to_str()?.split_once('.')?;
        let mut fields = target.to_str()?.split(':');
        let holder = Self {
            pid: pid.parse().ok()?,
            fd: fd.parse().ok()?,
            start_time: fields.next()?.parse().ok()?,
            boot_id: fields.next()?.to_owned(),
            device: fields.next()?.parse().ok()?,
            keeping: match fields.next()? {
                "mount" => Keeping::Mount,
                "namespace" => Keeping::Namespace,
                _ => return None,
            },
        };
        fields.next().is_none().then_some(holder)
    }

    /// The holder's folder in /proc, if it is that very process: later lookups in it fail once
    /// the process is gone, even if its id is used again.
    fn process(&self) -> Option<OwnedFd> {
        if boot_id().ok()? != self.boot_id {
            return None;
        }
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let process = rustix::fs::open(format!("/proc/{}", self.pid), flags, Mode::empty()).ok()?;
        (start_time(process.as_fd()).ok()? == self.start_time).then_some(process)
    }

    /// Whether it lives and has its descriptor: a process that was killed has lost its descriptors,
    /// and with them its locks, for a moment before it is a zombie.
    fn holds(&self) -> bool {
        let Some(process) = self.process() else {
            return false;
        };
        let fd = format!("fd/{}", self.fd);
        let found = rustix::fs::statat(&process, fd, AtFlags::SYMLINK_NOFOLLOW);
        !matches!(found, Err(Errno::NOENT | Errno::SRCH))
    }

    /// A clone of what it holds, if it lives and holds what it says.
    fn lend(&self) -> Result<Option<OwnedFd>> {
        let Some(process) = self.process() else {
            return Ok(None);
        };
        let what = format!("a layer that process {} holds", self.pid);
        let fd = format!("fd/{}", self.fd);
        let mount = match self.keeping {
            Keeping::Mount => {
                let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
                rustix::mount::open_tree(&process, fd, flags)
                    .map_err(filesystem::failed(&what, "open_tree"))?
            }
            Keeping::Namespace => {
                let flags = OFlags::RDONLY | OFlags::CLOEXEC;
                let namespace = rustix::fs::openat(&process, fd, flags, Mode::empty())
                    .map_err(filesystem::failed(&what, "openat"))?;
                private::borrow(namespace.as_fd())?
            }
        };
        let magic = rustix::fs::fstatfs(&mount)
            .map_err(filesystem::failed(&what, "fstatfs"))?
            .f_type;
        let device = filesystem::device(mount.as_fd(), &what)?;
        Ok((magic == EROFS_SUPER_MAGIC && device == self.device).then_some(mount))
    }
}

impl fmt::Display for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let keeping = match self.keeping {
            Keeping::Mount => "mount",
            Keeping::Namespace => "namespace",
        };
        write!(
            f,
            "{}:{}:{}:{keeping}",
            self.start_time, self.boot_id, self.device
        )
    }
}

/// `linux/magic.h`.
const EROFS_SUPER_MAGIC: rustix::fs::FsWord = 0xE0F5_E1E2;

/// When a process began, in clock ticks since boot: field 22 of `/proc/PID/stat` (proc_pid_stat(5)).
fn start_time(process: BorrowedFd<'_>) -> Result<u64> {
    let what = "a layer's holder";
    let flags = OFlags::RDONLY | OFlags::CLOEXEC;
    let file = rustix::fs::openat(process, "stat", flags, Mode::empty())
        .map_err(filesystem::failed(&what, "openat"))?;
    // Numbers and a command name of at most 64 bytes: all of it comes with one read.
    let mut buffer = [0u8; 1024];
    let length = rustix::io::read(&file, &mut buffer).map_err(filesystem::failed(&what, "read"))?;
    let stat = String::from_utf8_lossy(buffer.get(..length).unwrap_or_default());
    // The command may hold spaces and parentheses; it ends with the last one.
    let mut fields = stat
        .rsplit_once(')')
        .map_or("", |(_, fields)| fields)
        .split_whitespace();
    // A zombie holds nothing any more, and whose it is may never reap it.
    if matches!(fields.next(), Some("Z" | "X")) {
        return Err(filesystem::failed(&what, "read")(Errno::SRCH));
    }
    fields
        .nth(18)
        .and_then(|field| field.parse().ok())
        .ok_or_else(|| filesystem::failed(&what, "read")(Errno::ILSEQ))
}

/// This boot's id, read once.
fn boot_id() -> Result<&'static str> {
    static BOOT_ID: OnceLock<String> = OnceLock::new();
    if let Some(id) = BOOT_ID.get() {
        return Ok(id);
    }
    let id = knarr_fs::read_to_string(Path::new("/proc/sys/kernel/random/boot_id"))?;
    Ok(BOOT_ID.get_or_init(|| id.trim().to_owned()))
}
