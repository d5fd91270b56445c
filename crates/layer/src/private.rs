//! A mount namespace of one's own, for kernels where mounts must be attached somewhere before
//! they can be stacked or cloned. The caller's namespace never sees anything.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use knarr_sys::{Failure, namespace};
use rustix::fs::{CWD, Mode, OFlags};
use rustix::io::Errno;
use rustix::mount::{MountPropagationFlags, UnmountFlags};

use crate::filesystem::{self, failed};
use crate::{Error, Result};

/// What messages call it.
const WHAT: &str = "in a private mount namespace";
/// Where [`keep`] attaches a layer, below the namespace's root.
const LAYER: &str = "layer";

/// Runs `work` in a thread with a fresh private copy of the mount namespace, whose working
/// directory is a new empty tmpfs; absolute paths lead where they always do. All of it ends with
/// the thread, but for what descriptors keep.
pub(crate) fn run<T: Send>(work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
    in_thread(|| {
        namespace::unshare_mounts().map_err(denied)?;
        let private = MountPropagationFlags::REC | MountPropagationFlags::PRIVATE;
        rustix::mount::mount_change("/", private).map_err(failed(&WHAT, "mount"))?;
        let tmpfs = filesystem::tmpfs(None, "0700", (0, 0))?;
        // On top of the root, but paths still start at the root below it.
        filesystem::attach(tmpfs.as_fd(), CWD, Path::new("/"), &WHAT)?;
        rustix::process::fchdir(&tmpfs).map_err(failed(&WHAT, "fchdir"))?;
        work()
    })
}

/// Attaches a layer's mount in a namespace that shows nothing else. Gives a detached clone of it,
/// and the namespace, which lives as long as its descriptor.
pub(crate) fn keep(mount: OwnedFd) -> Result<(OwnedFd, OwnedFd)> {
    run(move || {
        let flags = OFlags::RDONLY | OFlags::CLOEXEC;
        let namespace = rustix::fs::open("/proc/thread-self/ns/mnt", flags, Mode::empty())
            .map_err(failed(&WHAT, "open"))?;
        rustix::fs::mkdirat(CWD, LAYER, Mode::RWXU).map_err(failed(&WHAT, "mkdirat"))?;
        filesystem::attach(mount.as_fd(), CWD, Path::new(LAYER), &WHAT)?;
        let clone = filesystem::clone_path(Path::new(LAYER), false)?;
        // The machine's other mounts must not stay busy because of this namespace.
        rustix::process::pivot_root(".", ".").map_err(failed(&WHAT, "pivot_root"))?;
        rustix::mount::unmount(".", UnmountFlags::DETACH).map_err(failed(&WHAT, "umount2"))?;
        Ok((clone, namespace))
    })
}

/// A detached clone of the layer that another process [keeps](keep).
pub(crate) fn borrow(namespace: BorrowedFd<'_>) -> Result<OwnedFd> {
    in_thread(|| {
        namespace::enter_mounts(namespace).map_err(denied)?;
        filesystem::clone_path(&Path::new("/").join(LAYER), false)
    })
}

fn denied(cause: Failure) -> Error {
    Error::Mount {
        what: WHAT.to_owned(),
        kernel: None,
        cause,
    }
}

/// A namespace belongs to a thread, so a thread is what keeps it from the caller. It is joined
/// before this returns: a caller with one thread has one again.
fn in_thread<T: Send>(work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
    std::thread::scope(|scope| {
        std::thread::Builder::new()
            .spawn_scoped(scope, work)
            .map_err(|error| denied(Failure::from_io("clone", &error)))?
            .join()
            .unwrap_or_else(|_| {
                Err(denied(Failure {
                    call: "clone",
                    errno: Errno::CANCELED,
                }))
            })
    })
}
