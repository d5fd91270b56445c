//! The `overlay` drivers: a layer as an unpacked tree, for machines where EROFS cannot be mounted.
//!
//! The tree is made from the layer's index, so that it says what the index says; it is written with
//! calls that take a directory and one name, so that nothing in it can lead anywhere else.

use std::collections::HashMap;
use std::ffi::{CString, OsStr};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use knarr_fs::{Durability, Inode, Lock, TempDir, Times, tree as files};
use rustix::fs::{FileType, Mode, OFlags, Timespec};
use rustix::io::Errno;

use super::Snapshotter;
use crate::mount::HeldLayer;
use crate::rootfs::LayerPaths;
use crate::store::{self, Contents, LayerId, Store};
use crate::tree::{Device, File, Kind, Meta, Node, NodeId, Sources};
use crate::{Error, Result};

/// Held in the layer's folder while its tree is made.
const LOCK: &str = ".tree.lock";

/// Keeps layers as unpacked trees.
#[derive(Debug)]
pub(super) struct Overlay;

impl Snapshotter for Overlay {
    fn prepare(&self, store: &Store, id: &LayerId) -> Result<()> {
        let folder = store.path(id);
        let tree = folder.join(store::TREE);
        if tree.is_dir() {
            return Ok(());
        }
        let lock = match Lock::exclusive(&folder.join(LOCK)) {
            Err(error) if error.is_not_found() => return Err(Error::NotFound(*id)),
            lock => lock?,
        };
        if tree.is_dir() {
            return Ok(());
        }
        // Nobody else has the lock, so these are of processes that were killed.
        let dir = files::Tree::open(&folder)?.directory(Path::new(""))?;
        for name in files::names(dir.as_fd(), &folder)? {
            if name.as_bytes().starts_with(b".tmp-") {
                files::remove(dir.as_fd(), &name, &folder.join(&name))?;
            }
        }
        let contents = store.contents(id)?;
        let temporary = TempDir::new_in(&folder)?;
        unpack(&contents, temporary.path())?;
        knarr_fs::failpoint!("layer.unpacked");
        // One flush for all files of the layer, before the rename that makes them count.
        let dir = files::Tree::open(temporary.path())?.directory(Path::new(""))?;
        rustix::fs::syncfs(&dir).map_err(knarr_fs::Error::of(
            "sync",
            "syncfs",
            temporary.path(),
        ))?;
        temporary.publish(&tree, Durability::Durable)?;
        drop(lock);
        Ok(())
    }

    fn open(&self, layers: &[LayerPaths], _run_root: &Path) -> Result<Vec<HeldLayer>> {
        let open = |layer: &LayerPaths| {
            let path = layer.folder.join(store::TREE);
            let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
            match rustix::fs::open(&path, flags, Mode::empty()) {
                Ok(directory) => Ok(HeldLayer::tree(layer.id, directory)),
                Err(Errno::NOENT) => Err(Error::NotPrepared(layer.id)),
                Err(errno) => Err(knarr_fs::Error::of("open", "open", &path)(errno).into()),
            }
        };
        layers.iter().map(open).collect()
    }
}

/// Writes a layer's tree into an empty directory, in overlayfs' form. Needs root.
///
/// # Errors
/// Where a file cannot be made. What is there then stays.
pub(crate) fn unpack(contents: &Contents, to: &Path) -> Result<()> {
    let root = files::Tree::open(to)?;
    let tree = &contents.tree;
    // The first name of an inode that has several.
    let mut named: HashMap<NodeId, PathBuf> = HashMap::new();
    let mut directories = vec![(PathBuf::new(), NodeId::ROOT)];
    let mut next = 0;
    while let Some((path, id)) = directories.get(next).cloned() {
        next += 1;
        let directory = root.directory(&path)?;
        for (name, child) in tree.entries(id) {
            let name = OsStr::from_bytes(name);
            let node = tree.node(child);
            let inside = path.join(name);
            let shown = to.join(&inside);
            if let Kind::Dir(_) = node.kind {
                rustix::fs::mkdirat(&directory, name, Mode::RWXU)
                    .map_err(knarr_fs::Error::of("create", "mkdirat", &shown))?;
                directories.push((inside, child));
                continue;
            }
            if let Some(first) = named.get(&child) {
                let parent = root.directory(first.parent().unwrap_or(Path::new("")))?;
                let name_of_first = first.file_name().unwrap_or_default();
                Inode::open_at(parent.as_fd(), name_of_first, to.join(first))?
                    .hardlink(directory.as_fd(), name)?;
                continue;
            }
            let inode = make(node, &contents.sources, directory.as_fd(), name, shown)?;
            if !matches!(node.kind, Kind::Whiteout) {
                apply(&inode, node)?;
            }
            if node.links > 1 {
                named.insert(child, inside);
            }
        }
    }
    // What is put into a directory changes its times: theirs come last, the deepest first.
    for (path, id) in directories.iter().rev() {
        let inode = Inode::from_fd(root.directory(path)?, to.join(path));
        let node = tree.node(*id);
        if let Kind::Dir(dir) = &node.kind
            && dir.opaque
        {
            inode.set_xattr(c"trusted.overlay.opaque", b"y")?;
        }
        apply(&inode, node)?;
    }
    Ok(())
}

/// Makes one file that is not a directory.
fn make(
    node: &Node,
    sources: &Sources,
    parent: BorrowedFd<'_>,
    name: &OsStr,
    shown: PathBuf,
) -> Result<Inode> {
    let special = |kind, mode, device: Device| {
        let number = rustix::fs::makedev(device.major, device.minor);
        rustix::fs::mknodat(parent, name, kind, mode, number)
            .map_err(knarr_fs::Error::of("create", "mknodat", &shown))
    };
    let private = Mode::RUSR | Mode::WUSR;
    let none = Device { major: 0, minor: 0 };
    match &node.kind {
        Kind::File(file) => {
            let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
            let fd = rustix::fs::openat(parent, name, flags, private)
                .map_err(knarr_fs::Error::of("create", "openat", &shown))?;
            write(file, sources, fd.as_fd(), &shown)?;
            return Ok(Inode::from_fd(fd, shown));
        }
        Kind::Symlink(target) => rustix::fs::symlinkat(OsStr::from_bytes(target), parent, name)
            .map_err(knarr_fs::Error::of("create", "symlinkat", &shown))?,
        Kind::CharDevice(device) => special(FileType::CharacterDevice, private, *device)?,
        Kind::BlockDevice(device) => special(FileType::BlockDevice, private, *device)?,
        Kind::Fifo => special(FileType::Fifo, private, none)?,
        Kind::Socket => special(FileType::Socket, private, none)?,
        Kind::Whiteout => special(FileType::CharacterDevice, Mode::empty(), none)?,
        // The caller has made it.
        Kind::Dir(_) => {}
    }
    Ok(Inode::open_at(parent, name, shown)?)
}

/// Writes a file's bytes, leaving its holes out.
fn write(file: &File, sources: &Sources, to: BorrowedFd<'_>, shown: &Path) -> Result<()> {
    let failed = |call| knarr_fs::Error::of("write", call, shown);
    rustix::fs::ftruncate(to, file.size).map_err(failed("ftruncate"))?;
    for piece in file.pieces() {
        let Some(source) = sources.file(piece.source) else {
            return Err(failed("open")(Errno::NOENT).into());
        };
        let (mut from, mut at, mut left) = (piece.offset, piece.at, piece.len);
        while left > 0 {
            let length = usize::try_from(left).unwrap_or(usize::MAX).min(1 << 30);
            // Shares the blocks where the file system can (btrfs, xfs), and else stays in the
            // kernel.
            let copied = match rustix::fs::copy_file_range(
                source,
                Some(&mut from),
                to,
                Some(&mut at),
                length,
            ) {
                Ok(copied) => copied,
                Err(Errno::XDEV | Errno::INVAL | Errno::OPNOTSUPP | Errno::NOSYS) => {
                    let mut buffer = vec![0; length.min(1 << 16)];
                    sources.read_at(piece.source, from, &mut buffer).map_err(
                        knarr_fs::Error::of_io("read the contents of", "pread", shown),
                    )?;
                    let written = rustix::io::pwrite(to, &buffer, at).map_err(failed("pwrite"))?;
                    let step = u64::try_from(written).unwrap_or(0);
                    (from, at) = (from.saturating_add(step), at.saturating_add(step));
                    written
                }
                Err(errno) => return Err(failed("copy_file_range")(errno).into()),
            };
            if copied == 0 {
                // The tar is shorter than its index says.
                return Err(failed("copy_file_range")(Errno::IO).into());
            }
            left = left.saturating_sub(u64::try_from(copied).unwrap_or(left));
        }
    }
    Ok(())
}

/// Owner, attributes, mode, times: each of these calls undoes some of the next.
fn apply(inode: &Inode, node: &Node) -> Result<()> {
    let Meta {
        mode,
        uid,
        gid,
        mtime,
        ..
    } = &node.meta;
    inode.set_owner(*uid, *gid)?;
    for (name, value) in node.meta.xattrs() {
        let Ok(name) = CString::new(name) else {
            continue;
        };
        match inode.set_xattr(&name, value) {
            // The kernel keeps user.* to files and directories (xattr(7)), and a file system may
            // lack a kind of attribute: GNU tar goes on then, too.
            Err(error) if matches!(error.errno(), Some(Errno::PERM | Errno::OPNOTSUPP)) => {}
            done => done?,
        }
    }
    if !matches!(node.kind, Kind::Symlink(_)) {
        inode.set_mode(Mode::from_raw_mode((*mode).into()))?;
    }
    let time = Timespec {
        tv_sec: mtime.seconds,
        tv_nsec: mtime.nanoseconds.into(),
    };
    inode.set_times(&Times {
        last_access: time,
        last_modification: time,
    })?;
    Ok(())
}
