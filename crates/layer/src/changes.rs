//! What a container changed: its upper folder against the layers.

use std::collections::{BTreeMap, HashSet};
use std::os::fd::{AsFd, BorrowedFd};
use std::path::{Path, PathBuf};

use knarr_fs::{Inode, tree};
use rustix::fs::{FileType, Mode, OFlags, ResolveFlags, Stat};
use rustix::io::Errno;

use crate::rootfs::{Base, Rootfs};
use crate::{Error, Result, mount};

/// How a path differs from the image.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ChangeKind {
    /// There, but not in the image (`A`).
    Added,
    /// In both, and different, or a folder with something different in it (`C`).
    Changed,
    /// In the image only (`D`).
    Deleted,
}

/// One line of `docker diff`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Change {
    /// The path in the container, absolute.
    pub path: PathBuf,
    /// What happened to it.
    pub kind: ChangeKind,
}

/// What the container that `rootfs` belongs to changed, sorted by path, parents first, by Docker's
/// rules: a file counts as changed when its mode, owner, size, modification time or capabilities
/// differ, a folder when its mode or owner do or when something in it changed; of a deleted folder
/// there is one line. Works while it runs and after.
///
/// # Errors
/// As [`mount`](crate::mount()) for the layers, and the errors of reading the upper folder.
pub fn changes(rootfs: &Rootfs, run_root: &Path) -> Result<Vec<Change>> {
    let Some(upper) = &rootfs.upper else {
        return Ok(Vec::new());
    };
    if let Base::Host = rootfs.base {
        return Ok(Vec::new());
    }
    let upper = match tree::Tree::open(&upper.upper) {
        // Never started.
        Err(error) if error.is_not_found() => return Ok(Vec::new()),
        opened => opened?,
    };
    // The image as the container would see it, ids shifted alike.
    let image = mount(
        &Rootfs {
            upper: None,
            ..rootfs.clone()
        },
        run_root,
    )?;
    let mut found = BTreeMap::new();
    if is_opaque(&Inode::from_fd(upper.directory(Path::new(""))?, "/"))? {
        hidden(&upper, image.root.as_fd(), Path::new(""), &mut found)?;
    }
    upper.walk::<Error>(|entry| {
        let old = find(image.root.as_fd(), entry.path)?;
        let old_stat = old.as_ref().map(Inode::stat).transpose()?;
        let kind = match (is_whiteout(entry.stat), &old_stat) {
            (true, None) => None,
            (true, Some(_)) => Some(ChangeKind::Deleted),
            (false, None) => Some(ChangeKind::Added),
            (false, Some(old_stat)) => {
                let differs = differ(old_stat, entry.stat)
                    || capability(old.as_ref())? != capability(Some(entry.inode))?;
                differs.then_some(ChangeKind::Changed)
            }
        };
        if let Some(kind) = kind {
            found.insert(entry.path.to_owned(), kind);
        }
        if entry.file_type() == FileType::Directory
            && old_stat.is_some_and(|old| is_directory(&old))
            && is_opaque(entry.inode)?
        {
            hidden(&upper, image.root.as_fd(), entry.path, &mut found)?;
        }
        Ok(tree::Descend::Into)
    })?;
    // A folder is changed when something in it is.
    let changed: Vec<PathBuf> = found.keys().cloned().collect();
    for path in changed {
        for above in path.ancestors().skip(1) {
            if !above.as_os_str().is_empty() {
                found.entry(above.to_owned()).or_insert(ChangeKind::Changed);
            }
        }
    }
    let absolute = |(path, kind)| Change {
        path: Path::new("/").join::<PathBuf>(path),
        kind,
    };
    Ok(found.into_iter().map(absolute).collect())
}

/// What an opaque folder hides and does not replace is deleted.
fn hidden(
    upper: &tree::Tree,
    image: BorrowedFd<'_>,
    path: &Path,
    found: &mut BTreeMap<PathBuf, ChangeKind>,
) -> Result<()> {
    let new = tree::names(upper.directory(path)?.as_fd(), path)?;
    let new: HashSet<_> = new.into_iter().collect();
    let Some(old) = find(image, path)? else {
        return Ok(());
    };
    let old = old.reopen(OFlags::RDONLY | OFlags::DIRECTORY)?;
    for name in tree::names(old.as_fd(), path)? {
        if !new.contains(&name) {
            found.insert(path.join(name), ChangeKind::Deleted);
        }
    }
    Ok(())
}

/// What the image has at a path, no symlink followed on the way.
fn find(image: BorrowedFd<'_>, path: &Path) -> Result<Option<Inode>> {
    let inside = if path.as_os_str().is_empty() {
        Path::new(".")
    } else {
        path
    };
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    // A symlink as the last name is found, and not followed (openat2(2)).
    let (parent, last) = (
        inside
            .parent()
            .filter(|parent| !parent.as_os_str().is_empty()),
        inside.file_name().unwrap_or(inside.as_os_str()),
    );
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS;
    let folder = match parent {
        None => None,
        Some(parent) => {
            match rustix::fs::openat2(
                image,
                parent,
                OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC,
                Mode::empty(),
                resolve,
            ) {
                Ok(folder) => Some(folder),
                Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => return Ok(None),
                Err(errno) => {
                    return Err(knarr_fs::Error::of("open", "openat2", path)(errno).into());
                }
            }
        }
    };
    let folder = folder.as_ref().map_or(image, AsFd::as_fd);
    match rustix::fs::openat(folder, last, flags, Mode::empty()) {
        Ok(fd) => Ok(Some(Inode::from_fd(fd, path))),
        Err(Errno::NOENT | Errno::NOTDIR) => Ok(None),
        Err(errno) => Err(knarr_fs::Error::of("open", "openat", path)(errno).into()),
    }
}

fn is_directory(stat: &Stat) -> bool {
    FileType::from_raw_mode(stat.st_mode) == FileType::Directory
}

/// overlayfs hides a name of a lower layer by a character device 0:0.
pub(crate) fn is_whiteout(stat: &Stat) -> bool {
    FileType::from_raw_mode(stat.st_mode) == FileType::CharacterDevice && stat.st_rdev == 0
}

/// overlayfs hides all that lower layers have in a folder by an attribute.
pub(crate) fn is_opaque(directory: &Inode) -> Result<bool> {
    let marks = directory.xattrs(|name| name == b"trusted.overlay.opaque")?;
    Ok(marks.iter().any(|(_, value)| value == b"y"))
}

fn capability(inode: Option<&Inode>) -> Result<Vec<(std::ffi::CString, Vec<u8>)>> {
    Ok(inode
        .map(|inode| inode.xattrs(|name| name == b"security.capability"))
        .transpose()?
        .unwrap_or_default())
}

fn differ(old: &Stat, new: &Stat) -> bool {
    let inode = |stat: &Stat| (stat.st_mode, stat.st_uid, stat.st_gid, stat.st_rdev);
    let contents = |stat: &Stat| (stat.st_size, stat.st_mtime, stat.st_mtime_nsec);
    inode(old) != inode(new) || (!is_directory(new) && contents(old) != contents(new))
}
