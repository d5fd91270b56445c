//! The container's tree, put together: mounts, devices, covered paths, the root itself.

use std::ffi::CStr;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use knarr_sys::Failure;
use knarr_sys::mount::{Attributes, Change, Propagation as SysPropagation, mount_setattr};
use rustix::fs::{AtFlags, FileType, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MountFlags, MoveMountFlags, OpenTreeFlags,
    UnmountFlags,
};

use super::Outcome;
use crate::plan::Plan;
use crate::prepare::{Device, DeviceSource, Mount, Place, Source, Tree, propagation};
use crate::step::{Fault, Step};
use crate::weak;

/// linux/mount.h; rustix has a function of its own for it, which takes no handle.
const MS_REMOUNT: u32 = 32;

/// Puts the detached root where it will be found: over the old one (paths from `/` still lead
/// through that), or at its own place on the host.
pub(super) fn attach_root(root: BorrowedFd<'_>, place: &CStr) -> Outcome<()> {
    rustix::mount::move_mount(
        root,
        c"",
        rustix::fs::CWD,
        place,
        MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH,
    )
    .map_err(Failure::of("move_mount"))
}

/// A procfs of the container's pid namespace that is mounted nowhere, so nothing can cover it.
pub(super) fn proc_handle() -> Outcome<OwnedFd> {
    let context = rustix::mount::fsopen(c"proc", FsOpenFlags::FSOPEN_CLOEXEC)
        .map_err(Failure::of("fsopen"))?;
    rustix::mount::fsconfig_create(&context).map_err(Failure::of("fsconfig"))?;
    rustix::mount::fsmount(
        &context,
        FsMountFlags::FSMOUNT_CLOEXEC,
        MountAttrFlags::empty(),
    )
    .map_err(Failure::of("fsmount"))
}

pub(super) fn write_sysctl(proc: BorrowedFd<'_>, path: &CStr, value: &[u8]) -> Outcome<()> {
    let resolve = ResolveFlags::BENEATH
        | ResolveFlags::NO_XDEV
        | ResolveFlags::NO_SYMLINKS
        | ResolveFlags::NO_MAGICLINKS;
    let flags = OFlags::WRONLY | OFlags::CLOEXEC;
    let file = rustix::fs::openat2(proc, path, flags, Mode::empty(), resolve)
        .map_err(Failure::of("openat2"))?;
    rustix::io::write(&file, value)
        .map(drop)
        .map_err(Failure::of("write"))
}

/// Opens a path of the container as O_PATH.
pub(crate) fn open(
    root: BorrowedFd<'_>,
    path: &CStr,
    flags: OFlags,
    resolve: ResolveFlags,
) -> Outcome<OwnedFd> {
    let mut resolve = resolve | ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    let mut path = path;
    if weak::off("paths") {
        // As string concatenation would: links lead wherever they say.
        resolve = ResolveFlags::empty();
        path = match path.to_bytes_with_nul().split_first() {
            Some((b'/', [0])) => c".",
            Some((b'/', rest)) => CStr::from_bytes_with_nul(rest).unwrap_or(path),
            _ => path,
        };
    }
    loop {
        match rustix::fs::openat2(root, path, flags | OFlags::CLOEXEC, Mode::empty(), resolve) {
            // A rename somewhere in the system raced with the walk (openat2(2)).
            Err(Errno::AGAIN) => {}
            Err(errno) => {
                return Err(Failure {
                    call: "openat2",
                    errno,
                });
            }
            Ok(fd) => return Ok(fd),
        }
    }
}

/// What is made where a place is missing.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Directory,
    File,
}

/// Opens a place as O_PATH, making it and the folders on the way where they are missing. Every
/// step is taken from a handle, so what another process of a shared volume does meanwhile cannot
/// lead it out.
pub(crate) fn open_or_make(
    root: BorrowedFd<'_>,
    place: &Place,
    kind: Kind,
    resolve: ResolveFlags,
) -> Outcome<OwnedFd> {
    let flags = match kind {
        Kind::Directory => OFlags::PATH | OFlags::DIRECTORY,
        Kind::File => OFlags::PATH,
    };
    match open(root, &place.path, flags, resolve) {
        Err(Failure {
            errno: Errno::NOENT,
            ..
        }) => {}
        done => return done,
    }
    // From the deepest folder that there is, downwards.
    let folder = OFlags::PATH | OFlags::DIRECTORY;
    let (mut parent, mut at) = (None::<OwnedFd>, place.steps.len().saturating_sub(1));
    while let Some((above, _)) = at.checked_sub(1).and_then(|above| place.steps.get(above)) {
        match open(root, above, folder, resolve) {
            Err(Failure {
                errno: Errno::NOENT,
                ..
            }) => at -= 1,
            found => {
                parent = Some(found?);
                break;
            }
        }
    }
    for (index, (_, name)) in place.steps.iter().enumerate().skip(at) {
        let last = index + 1 == place.steps.len();
        let dir = parent.as_ref().map_or(root, AsFd::as_fd);
        if last && kind == Kind::File {
            let create = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
            rustix::fs::openat(dir, name, create, Mode::from_raw_mode(0o644))
                .map_err(Failure::of("openat"))?;
        } else {
            rustix::fs::mkdirat(dir, name, Mode::from_raw_mode(0o755))
                .map_err(Failure::of("mkdirat"))?;
        }
        let wanted = if last { flags } else { folder };
        let made = open(
            dir,
            name,
            wanted | OFlags::NOFOLLOW,
            ResolveFlags::NO_SYMLINKS,
        )?;
        if let Some(above) = parent.replace(made) {
            leave(above);
        }
    }
    parent.ok_or(Failure {
        call: "openat2",
        errno: Errno::NOENT,
    })
}

/// Attaches a detached mount to what `target` refers to.
pub(crate) fn move_in(tree: BorrowedFd<'_>, target: BorrowedFd<'_>) -> Outcome<()> {
    rustix::mount::move_mount(
        tree,
        c"",
        target,
        c"",
        MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH,
    )
    .map_err(Failure::of("move_mount"))
}

/// Few descriptors are closed one by one: execve closes them all at once.
fn leave(fd: OwnedFd) {
    if fd.as_raw_fd() < 256 {
        std::mem::forget(fd);
    }
}

pub(super) fn attach(root: BorrowedFd<'_>, mount: &Mount, index: usize) -> Result<(), Fault> {
    let target = |kind, resolve| {
        open_or_make(root, &mount.place, kind, resolve)
            .map_err(Fault::nth(Step::MountTarget, index))
    };
    match &mount.source {
        Source::Tree { tree, directory } => {
            let kind = if *directory {
                Kind::Directory
            } else {
                Kind::File
            };
            let target = target(kind, ResolveFlags::empty())?;
            move_in(tree.as_fd(), target.as_fd()).map_err(Fault::nth(Step::Mount, index))?;
            leave(target);
        }
        Source::New {
            file_system,
            source,
            data,
            flags,
        } => {
            // A /proc or /sys that is a link would put them elsewhere than everybody believes.
            let strict = file_system.as_c_str() == c"proc" || file_system.as_c_str() == c"sysfs";
            let resolve = if strict {
                ResolveFlags::NO_SYMLINKS
            } else {
                ResolveFlags::empty()
            };
            let target = target(Kind::Directory, resolve)?;
            mount_here(target.as_fd(), file_system, source, data.as_deref(), *flags)
                .map_err(Fault::nth(Step::Mount, index))?;
            leave(target);
        }
        Source::Again { data, flags } => {
            let flags = *flags | MountFlags::from_bits_retain(MS_REMOUNT);
            let place = open(
                root,
                &mount.place.path,
                OFlags::PATH | OFlags::DIRECTORY,
                ResolveFlags::empty(),
            );
            place
                .and_then(|there| mount_here(there.as_fd(), c"", c"", data.as_deref(), flags))
                .map_err(Fault::nth(Step::Mount, index))?;
        }
        Source::Hierarchies { list, flags } => {
            let target = target(Kind::Directory, ResolveFlags::empty())?;
            hierarchies(root, mount, target.as_fd(), list, *flags)
                .map_err(Fault::nth(Step::Mount, index))?;
        }
    }
    for (word, recursive) in &mount.propagation {
        let change = Change {
            propagation: *word,
            recursive: *recursive,
            ..Change::default()
        };
        let top = open(root, &mount.place.path, OFlags::PATH, ResolveFlags::empty());
        top.and_then(|top| mount_setattr(&top, c"", &change))
            .map_err(Fault::nth(Step::MountPropagation, index))?;
    }
    Ok(())
}

/// mount(2) on a handle: on the working directory, after moving there.
fn mount_here(
    target: BorrowedFd<'_>,
    file_system: &CStr,
    source: &CStr,
    data: Option<&CStr>,
    flags: MountFlags,
) -> Outcome<()> {
    rustix::process::fchdir(target).map_err(Failure::of("fchdir"))?;
    rustix::mount::mount(source, c".", file_system, flags, data).map_err(Failure::of("mount"))
}

/// `/sys/fs/cgroup` of cgroup v1: a tmpfs with one folder per hierarchy.
fn hierarchies(
    root: BorrowedFd<'_>,
    mount: &Mount,
    target: BorrowedFd<'_>,
    list: &[(std::ffi::CString, Option<std::ffi::CString>)],
    flags: MountFlags,
) -> Outcome<()> {
    let no = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    mount_here(target, c"tmpfs", c"cgroup", Some(c"mode=755,size=64k"), no)?;
    let dir = open(
        root,
        &mount.place.path,
        OFlags::PATH | OFlags::DIRECTORY,
        ResolveFlags::empty(),
    )?;
    for (name, controllers) in list {
        rustix::fs::mkdirat(&dir, name, Mode::from_raw_mode(0o755))
            .map_err(Failure::of("mkdirat"))?;
        let place = open(
            dir.as_fd(),
            name,
            OFlags::PATH | OFlags::DIRECTORY,
            ResolveFlags::empty(),
        )?;
        let kind = if controllers.is_some() {
            c"cgroup"
        } else {
            c"cgroup2"
        };
        mount_here(
            place.as_fd(),
            kind,
            c"cgroup",
            controllers.as_deref(),
            flags | no,
        )?;
    }
    if flags.contains(MountFlags::RDONLY) {
        let change = Change {
            set: Attributes::RDONLY,
            ..Change::default()
        };
        mount_setattr(&dir, c"", &change)?;
    }
    Ok(())
}

pub(super) fn make_dev(root: BorrowedFd<'_>, dev: &Place, devices: &[Device]) -> Result<(), Fault> {
    let at = Fault::at(Step::DevLinks);
    let dir = open_or_make(root, dev, Kind::Directory, ResolveFlags::empty()).map_err(&at)?;
    for (name, target) in [
        (c"fd", c"/proc/self/fd"),
        (c"stdin", c"/proc/self/fd/0"),
        (c"stdout", c"/proc/self/fd/1"),
        (c"stderr", c"/proc/self/fd/2"),
        (c"core", c"/proc/kcore"),
        (c"ptmx", c"pts/ptmx"),
    ] {
        match rustix::fs::symlinkat(target, &dir, name) {
            Err(Errno::EXIST) if name == c"ptmx" => {
                // The image's own would be the host's terminals.
                rustix::fs::unlinkat(&dir, name, AtFlags::empty())
                    .map_err(Failure::of("unlinkat"))
                    .map_err(&at)?;
                rustix::fs::symlinkat(target, &dir, name)
                    .map_err(Failure::of("symlinkat"))
                    .map_err(&at)?;
            }
            Ok(()) | Err(Errno::EXIST) => {}
            Err(errno) => {
                return Err(at(Failure {
                    call: "symlinkat",
                    errno,
                }));
            }
        }
    }
    for (index, device) in devices.iter().enumerate() {
        make_device(root, dev, dir.as_fd(), device).map_err(Fault::nth(Step::Device, index))?;
    }
    leave(dir);
    Ok(())
}

fn make_device(
    root: BorrowedFd<'_>,
    dev: &Place,
    dev_dir: BorrowedFd<'_>,
    device: &Device,
) -> Outcome<()> {
    match &device.source {
        DeviceSource::Tree(tree) => {
            let target = open_or_make(root, &device.place, Kind::File, ResolveFlags::empty())?;
            move_in(tree.as_fd(), target.as_fd())
        }
        DeviceSource::Node {
            kind,
            mode,
            dev: number,
            owner,
        } => {
            let Some(((_, name), above)) = device.place.steps.split_last() else {
                return Err(Failure {
                    call: "mknodat",
                    errno: Errno::ISDIR,
                });
            };
            let held;
            let dir = match above {
                // Nearly all are in /dev itself.
                [only] if only.0 == dev.path => dev_dir,
                above => {
                    held = make_above(root, above)?;
                    held.as_fd()
                }
            };
            match rustix::fs::mknodat(dir, name, *kind, *mode, *number) {
                Err(Errno::EXIST) => {
                    let stat = rustix::fs::statat(dir, name, AtFlags::SYMLINK_NOFOLLOW)
                        .map_err(Failure::of("fstat"))?;
                    let same =
                        FileType::from_raw_mode(stat.st_mode) == *kind && stat.st_rdev == *number;
                    if !same {
                        rustix::fs::unlinkat(dir, name, AtFlags::empty())
                            .map_err(Failure::of("unlinkat"))?;
                        rustix::fs::mknodat(dir, name, *kind, *mode, *number)
                            .map_err(Failure::of("mknodat"))?;
                    }
                }
                done => done.map_err(Failure::of("mknodat"))?,
            }
            if let Some((uid, gid)) = *owner {
                let (uid, gid) = (Some(uid), Some(gid));
                rustix::fs::chownat(dir, name, uid, gid, AtFlags::SYMLINK_NOFOLLOW)
                    .map_err(Failure::of("fchownat"))?;
            }
            Ok(())
        }
    }
}

/// The folder above a place, made where missing.
fn make_above(
    root: BorrowedFd<'_>,
    steps: &[(std::ffi::CString, std::ffi::CString)],
) -> Outcome<OwnedFd> {
    let folder = OFlags::PATH | OFlags::DIRECTORY;
    let mut parent = open(root, c"/", folder, ResolveFlags::empty())?;
    for (path, name) in steps {
        parent = match open(root, path, folder, ResolveFlags::empty()) {
            Err(Failure {
                errno: Errno::NOENT,
                ..
            }) => {
                rustix::fs::mkdirat(&parent, name, Mode::from_raw_mode(0o755))
                    .map_err(Failure::of("mkdirat"))?;
                open(parent.as_fd(), name, folder, ResolveFlags::NO_SYMLINKS)?
            }
            opened => opened?,
        };
    }
    Ok(parent)
}

/// Covers the masked paths: all directories by one empty read-only tmpfs, files by `/dev/null`.
pub(super) fn mask(root: BorrowedFd<'_>, tree: &Tree) -> Result<(), Fault> {
    let (mut empty, mut null_moved) = (None::<OwnedFd>, false);
    for (index, path) in tree.masked.iter().enumerate() {
        let at = Fault::nth(Step::Mask, index);
        let target = match open(root, path, OFlags::PATH, ResolveFlags::empty()) {
            Ok(target) => target,
            Err(Failure {
                errno: Errno::NOENT | Errno::NOTDIR,
                ..
            }) => continue,
            Err(failure) => return Err(at(failure)),
        };
        let stat = rustix::fs::fstat(&target)
            .map_err(Failure::of("fstat"))
            .map_err(&at)?;
        if FileType::from_raw_mode(stat.st_mode) == FileType::Directory {
            match &empty {
                None => {
                    let fresh = empty_directory().map_err(&at)?;
                    move_in(fresh.as_fd(), target.as_fd()).map_err(&at)?;
                    empty = Some(fresh);
                }
                Some(first) => again(first.as_fd(), target.as_fd()).map_err(&at)?,
            }
        } else if weak::off("null") {
            let null = open(root, c"/dev/null", OFlags::PATH, ResolveFlags::empty());
            null.and_then(|null| again(null.as_fd(), target.as_fd()))
                .map_err(&at)?;
        } else if let Some(null) = &tree.null {
            if null_moved {
                again(null.as_fd(), target.as_fd()).map_err(&at)?;
            } else {
                move_in(null.as_fd(), target.as_fd()).map_err(&at)?;
                null_moved = true;
            }
        }
        leave(target);
    }
    Ok(())
}

/// An empty read-only directory that the kernel makes, so that nobody can have prepared it.
fn empty_directory() -> Outcome<OwnedFd> {
    let context = rustix::mount::fsopen(c"tmpfs", FsOpenFlags::FSOPEN_CLOEXEC)
        .map_err(Failure::of("fsopen"))?;
    rustix::mount::fsconfig_create(&context).map_err(Failure::of("fsconfig"))?;
    let attributes = MountAttrFlags::MOUNT_ATTR_RDONLY
        | MountAttrFlags::MOUNT_ATTR_NOSUID
        | MountAttrFlags::MOUNT_ATTR_NODEV
        | MountAttrFlags::MOUNT_ATTR_NOEXEC;
    rustix::mount::fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, attributes)
        .map_err(Failure::of("fsmount"))
}

/// Mounts what is mounted already once more.
fn again(mounted: BorrowedFd<'_>, target: BorrowedFd<'_>) -> Outcome<()> {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE
        | OpenTreeFlags::OPEN_TREE_CLOEXEC
        | OpenTreeFlags::AT_EMPTY_PATH;
    let tree = rustix::mount::open_tree(mounted, c"", flags).map_err(Failure::of("open_tree"))?;
    move_in(tree.as_fd(), target)?;
    leave(tree);
    Ok(())
}

/// Covers a path by itself, read-only with all below.
pub(super) fn make_readonly(root: BorrowedFd<'_>, path: &CStr) -> Outcome<()> {
    let target = match open(root, path, OFlags::PATH, ResolveFlags::empty()) {
        Ok(target) => target,
        Err(Failure {
            errno: Errno::NOENT | Errno::NOTDIR,
            ..
        }) => return Ok(()),
        Err(failure) => return Err(failure),
    };
    let flags = OpenTreeFlags::OPEN_TREE_CLONE
        | OpenTreeFlags::OPEN_TREE_CLOEXEC
        | OpenTreeFlags::AT_EMPTY_PATH
        | OpenTreeFlags::AT_RECURSIVE;
    let tree = rustix::mount::open_tree(&target, c"", flags).map_err(Failure::of("open_tree"))?;
    let change = Change {
        set: Attributes::RDONLY,
        recursive: true,
        ..Change::default()
    };
    mount_setattr(&tree, c"", &change)?;
    move_in(tree.as_fd(), target.as_fd())?;
    leave(tree);
    leave(target);
    Ok(())
}

/// The root's own attributes, once all is in place.
pub(super) fn finish_root(root: BorrowedFd<'_>, plan: &Plan) -> Outcome<()> {
    if plan.root.readonly {
        let change = Change {
            set: Attributes::RDONLY,
            ..Change::default()
        };
        mount_setattr(root, c"", &change)?;
    }
    let word = propagation(plan.root.propagation);
    if word != SysPropagation::Private {
        // The detached root came as private; only another word has to be said.
        let recursive = plan.root.recursive;
        mount_setattr(
            root,
            c"",
            &Change {
                propagation: word,
                recursive,
                ..Change::default()
            },
        )?;
    }
    Ok(())
}

/// Makes the root, which lies over the old one, the process's own.
pub(super) fn change_root(root: BorrowedFd<'_>) -> Outcome<()> {
    rustix::process::fchdir(root).map_err(Failure::of("fchdir"))?;
    rustix::process::chroot(c".").map_err(Failure::of("chroot"))
}

/// Swaps the roots and lets the old one go.
pub(super) fn pivot(root: BorrowedFd<'_>) -> Outcome<()> {
    rustix::process::fchdir(root).map_err(Failure::of("fchdir"))?;
    rustix::process::pivot_root(c".", c".").map_err(Failure::of("pivot_root"))?;
    rustix::mount::unmount(c".", UnmountFlags::DETACH).map_err(Failure::of("umount2"))
}
