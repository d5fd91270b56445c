//! Whole trees that may change under us: copied, removed and measured by descriptors, never by a
//! path that somebody could bend meanwhile.

use std::collections::{HashMap, HashSet, VecDeque};
use std::ffi::{OsStr, OsString};
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;

use crate::{Error, Inode, Result};

/// A directory to walk in: everything in it is found through this descriptor.
#[derive(Debug)]
pub struct Tree {
    root: OwnedFd,
    shown: PathBuf,
}

/// One entry that [`Tree::walk`] found.
#[derive(Debug)]
pub struct Entry<'a> {
    /// Its path below the tree's root, relative.
    pub path: &'a Path,
    /// The directory it is in, open for reading.
    pub parent: BorrowedFd<'a>,
    /// It.
    pub inode: &'a Inode,
    /// What it is.
    pub stat: &'a rustix::fs::Stat,
}

impl Entry<'_> {
    /// The kind of file.
    pub fn file_type(&self) -> FileType {
        FileType::from_raw_mode(self.stat.st_mode)
    }
}

/// What [`Tree::walk`] does with a directory it has just shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Descend {
    /// Goes in (means nothing for other files).
    Into,
    /// Leaves it out.
    Past,
}

impl Tree {
    /// The tree below one of Knarr's own (trusted) paths.
    ///
    /// # Errors
    /// As open(2).
    pub fn open(path: &Path) -> Result<Self> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let root = rustix::fs::open(path, flags, Mode::empty())
            .map_err(Error::of("open", "open", path))?;
        Ok(Self::from_fd(root, path))
    }

    /// The tree below an open directory (O_PATH will do).
    pub fn from_fd(root: OwnedFd, shown: impl Into<PathBuf>) -> Self {
        Self {
            root,
            shown: shown.into(),
        }
    }

    /// Opens a directory of the tree by the path it was found at. Whoever exchanges part of it for
    /// a symlink or a mount gets an error for it (ELOOP, EXDEV).
    ///
    /// # Errors
    /// As openat2(2); ENAMETOOLONG for what is deeper than paths go (4095 bytes).
    pub fn directory(&self, path: &Path) -> Result<OwnedFd> {
        let path = if path.as_os_str().is_empty() {
            Path::new(".")
        } else {
            path
        };
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_XDEV;
        loop {
            match rustix::fs::openat2(&self.root, path, flags, Mode::empty(), resolve) {
                Err(Errno::AGAIN) => {}
                Err(errno) => {
                    return Err(Error::of("open", "openat2", &self.shown.join(path))(errno));
                }
                Ok(fd) => return Ok(fd),
            }
        }
    }

    /// Shows every entry once, a directory before what is in it, in no order among siblings.
    /// Descriptors in use do not grow with the depth.
    ///
    /// # Errors
    /// The visitor's, and those of opening and reading directories. What vanishes while walking is
    /// left out.
    pub fn walk<E: From<Error>>(
        &self,
        mut visit: impl FnMut(&Entry<'_>) -> std::result::Result<Descend, E>,
    ) -> std::result::Result<(), E> {
        // A queue would keep one path per directory of a level; a stack keeps far fewer.
        let mut todo = vec![PathBuf::new()];
        while let Some(path) = todo.pop() {
            let directory = match self.directory(&path) {
                Err(error) if error.is_not_found() && !path.as_os_str().is_empty() => continue,
                opened => opened?,
            };
            for name in names(directory.as_fd(), &self.shown.join(&path))? {
                let child = path.join(&name);
                let shown = self.shown.join(&child);
                let inode = match Inode::open_at(directory.as_fd(), &name, shown) {
                    Err(error) if error.is_not_found() => continue,
                    opened => opened?,
                };
                let stat = inode.stat()?;
                let entry = Entry {
                    path: &child,
                    parent: directory.as_fd(),
                    inode: &inode,
                    stat: &stat,
                };
                let descend = visit(&entry)?;
                if descend == Descend::Into && entry.file_type() == FileType::Directory {
                    todo.push(child);
                }
            }
        }
        Ok(())
    }

    /// The bytes that the tree takes on disk, its root included; a file with several names counts
    /// once.
    ///
    /// # Errors
    /// As [`Tree::walk`].
    pub fn disk_usage(&self) -> Result<u64> {
        let blocks = |stat: &rustix::fs::Stat| u64::try_from(stat.st_blocks).unwrap_or(0) * 512;
        let root =
            rustix::fs::fstat(&self.root).map_err(Error::of("stat", "fstat", &self.shown))?;
        let mut total = blocks(&root);
        let mut seen = HashSet::new();
        self.walk::<Error>(|entry| {
            let stat = entry.stat;
            let single = stat.st_nlink < 2 || entry.file_type() == FileType::Directory;
            if single || seen.insert((stat.st_dev, stat.st_ino)) {
                total = total.saturating_add(blocks(stat));
            }
            Ok(Descend::Into)
        })?;
        Ok(total)
    }

    /// Copies everything into the directory `to`, which should be empty, and the root's own
    /// metadata onto it: contents with their holes, hardlinks among them, symlinks, devices,
    /// FIFOs, owners, modes, times, and the extended attributes that `keep` wants. Sockets are
    /// left out. Does not cross into other mounts.
    ///
    /// # Errors
    /// As the calls it takes; EEXIST where `to` has an entry of that name. What was copied stays.
    pub fn copy_to(&self, to: &Self, keep: impl Fn(&[u8]) -> bool + Copy) -> Result<()> {
        // The first copy of an inode that has several names: by path, as there may be many.
        let mut links: HashMap<(u64, u64), PathBuf> = HashMap::new();
        let mut directories = VecDeque::new();
        self.walk::<Error>(|entry| {
            let name = entry.path.file_name().unwrap_or_default();
            let parent = to.directory(entry.path.parent().unwrap_or(Path::new("")))?;
            let shown = to.shown.join(entry.path);
            if entry.file_type() == FileType::Directory {
                rustix::fs::mkdirat(&parent, name, Mode::RWXU)
                    .map_err(Error::of("create", "mkdirat", &shown))?;
                // Their times change while they are filled: done last, the deepest first.
                directories.push_front(entry.path.to_owned());
                return Ok(Descend::Into);
            }
            let id = (entry.stat.st_dev, entry.stat.st_ino);
            if let Some(first) = links.get(&id) {
                let folder = to.directory(first.parent().unwrap_or(Path::new("")))?;
                let first_name = first.file_name().unwrap_or_default();
                Inode::open_at(folder.as_fd(), first_name, to.shown.join(first))?
                    .hardlink(parent.as_fd(), name)?;
                return Ok(Descend::Past);
            }
            let Some(copy) = copy_one(entry, parent.as_fd(), name, shown)? else {
                return Ok(Descend::Past);
            };
            copy.copy_metadata(entry.inode, keep)?;
            if entry.stat.st_nlink > 1 {
                links.insert(id, entry.path.to_owned());
            }
            Ok(Descend::Past)
        })?;
        directories.push_back(PathBuf::new());
        for path in directories {
            let from = Inode::from_fd(self.directory(&path)?, self.shown.join(&path));
            let copy = Inode::from_fd(to.directory(&path)?, to.shown.join(&path));
            copy.copy_metadata(&from, keep)?;
        }
        Ok(())
    }
}

impl AsFd for Tree {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.root.as_fd()
    }
}

/// Makes a new file of the same kind and contents; `None` for a socket.
fn copy_one(
    entry: &Entry<'_>,
    parent: BorrowedFd<'_>,
    name: &OsStr,
    shown: PathBuf,
) -> Result<Option<Inode>> {
    match entry.file_type() {
        FileType::RegularFile => {
            let from = entry.inode.reopen(OFlags::RDONLY | OFlags::NONBLOCK)?;
            let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
            let mode = Mode::RUSR | Mode::WUSR;
            let to = rustix::fs::openat(parent, name, flags, mode)
                .map_err(Error::of("create", "openat", &shown))?;
            copy_contents(from, to.as_fd(), &shown)?;
            return Ok(Some(Inode::from_fd(to, shown)));
        }
        FileType::Symlink => {
            let target = entry.inode.link_target()?;
            rustix::fs::symlinkat(target.as_c_str(), parent, name).map_err(Error::of(
                "create",
                "symlinkat",
                &shown,
            ))?;
        }
        kind @ (FileType::CharacterDevice | FileType::BlockDevice | FileType::Fifo) => {
            let mode = Mode::RUSR | Mode::WUSR;
            rustix::fs::mknodat(parent, name, kind, mode, entry.stat.st_rdev)
                .map_err(Error::of("create", "mknodat", &shown))?;
        }
        _ => return Ok(None),
    }
    Inode::open_at(parent, name, shown).map(Some)
}

/// Copies a file's bytes, leaving its holes out.
fn copy_contents(from: OwnedFd, to: BorrowedFd<'_>, shown: &Path) -> Result<()> {
    let failed = |error| Error::of_io("copy to", "write", shown)(error);
    let size = rustix::fs::fstat(&from)
        .map_err(Error::of("stat", "fstat", shown))?
        .st_size;
    let size = u64::try_from(size).unwrap_or(0);
    let mut from = std::fs::File::from(from);
    let to = to.try_clone_to_owned().map_err(failed)?;
    let mut to = std::fs::File::from(to);
    to.set_len(size).map_err(failed)?;
    let mut position = 0;
    while position < size {
        let start = match rustix::fs::seek(&from, rustix::fs::SeekFrom::Data(position)) {
            Ok(start) => start,
            // Only a hole is left.
            Err(Errno::NXIO) => break,
            // A file system that does not know about holes.
            Err(Errno::INVAL | Errno::OPNOTSUPP) => position,
            Err(errno) => return Err(Error::of("copy to", "lseek", shown)(errno)),
        };
        let end = rustix::fs::seek(&from, rustix::fs::SeekFrom::Hole(start)).unwrap_or(size);
        from.seek(SeekFrom::Start(start)).map_err(failed)?;
        to.seek(SeekFrom::Start(start)).map_err(failed)?;
        // copy_file_range(2) where the file systems have it: shares blocks, or stays in the kernel.
        let length = end.saturating_sub(start);
        let copied = std::io::copy(&mut (&mut from).take(length), &mut to).map_err(failed)?;
        if copied < length {
            // It was truncated meanwhile: what is left are the zeros of set_len.
            break;
        }
        position = end;
    }
    to.flush().map_err(failed)
}

/// The names in an open directory, without `.` and `..`.
///
/// # Errors
/// As getdents(2).
pub fn names(directory: BorrowedFd<'_>, shown: &Path) -> Result<Vec<OsString>> {
    let listed = Dir::read_from(directory).map_err(Error::of("list", "open", shown))?;
    let mut names = Vec::new();
    for entry in listed {
        let entry = entry.map_err(Error::of("list", "getdents", shown))?;
        let name = entry.file_name().to_bytes();
        if name != b"." && name != b".." {
            names.push(OsString::from_vec(name.to_vec()));
        }
    }
    Ok(names)
}

/// Removes `name` in the directory `parent` with all that is below it. Follows no symlink, whatever
/// is exchanged meanwhile, and needs few descriptors and little stack however deep it is: a
/// directory found deep down is first moved up.
///
/// # Errors
/// As unlinkat(2) and renameat(2). It goes on where it can; the first error is returned. What is
/// gone already is fine.
pub fn remove(parent: BorrowedFd<'_>, name: &OsStr, shown: &Path) -> Result<()> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let directory = match rustix::fs::openat(parent, name, flags, Mode::empty()) {
        Ok(directory) => directory,
        Err(Errno::NOENT) => return Ok(()),
        // No directory, or a symlink.
        Err(Errno::NOTDIR | Errno::LOOP) => {
            return match rustix::fs::unlinkat(parent, name, AtFlags::empty()) {
                Ok(()) | Err(Errno::NOENT) => Ok(()),
                Err(errno) => Err(Error::of("remove", "unlinkat", shown)(errno)),
            };
        }
        Err(errno) => return Err(Error::of("remove", "openat", shown)(errno)),
    };
    let mut removal = Removal {
        top: directory.as_fd(),
        shown,
        moved: 0,
        failed: None,
    };
    // Each round empties the directory to a certain depth and moves the rest to its top.
    loop {
        let moved = removal.moved;
        removal.empty(directory.as_fd(), 0);
        if removal.failed.is_some() || removal.moved == moved {
            break;
        }
    }
    if let Some(error) = removal.failed {
        return Err(error);
    }
    match rustix::fs::unlinkat(parent, name, AtFlags::REMOVEDIR) {
        Ok(()) | Err(Errno::NOENT) => Ok(()),
        Err(errno) => Err(Error::of("remove", "unlinkat", shown)(errno)),
    }
}

/// How many directories are open at once while removing.
const OPEN_AT_ONCE: usize = 32;

struct Removal<'a> {
    top: BorrowedFd<'a>,
    shown: &'a Path,
    /// How many directories were moved to the top.
    moved: u64,
    failed: Option<Error>,
}

impl Removal<'_> {
    fn fail(&mut self, call: &'static str, name: &OsStr, errno: Errno) {
        let shown = self.shown.join(name);
        self.failed
            .get_or_insert(Error::of("remove", call, &shown)(errno));
    }

    fn empty(&mut self, directory: BorrowedFd<'_>, depth: usize) {
        let names = match names(directory, self.shown) {
            Ok(names) => names,
            Err(error) => {
                self.failed.get_or_insert(error);
                return;
            }
        };
        for name in names {
            self.remove(directory, &name, depth);
        }
    }

    fn remove(&mut self, parent: BorrowedFd<'_>, name: &OsStr, depth: usize) {
        match rustix::fs::unlinkat(parent, name, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => return,
            Err(Errno::ISDIR) => {}
            Err(errno) => return self.fail("unlinkat", name, errno),
        }
        if depth >= OPEN_AT_ONCE {
            // Most directories that deep are still empty or small.
            match rustix::fs::unlinkat(parent, name, AtFlags::REMOVEDIR) {
                Ok(()) | Err(Errno::NOENT) => {}
                Err(Errno::NOTEMPTY | Errno::EXIST) => self.move_up(parent, name),
                Err(errno) => self.fail("unlinkat", name, errno),
            }
            return;
        }
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        match rustix::fs::openat(parent, name, flags, Mode::empty()) {
            Ok(directory) => self.empty(directory.as_fd(), depth + 1),
            Err(Errno::NOENT) => return,
            Err(errno) => return self.fail("openat", name, errno),
        }
        match rustix::fs::unlinkat(parent, name, AtFlags::REMOVEDIR) {
            Ok(()) | Err(Errno::NOENT) => {}
            // Part of it failed, which is told, or somebody is filling it again.
            Err(Errno::NOTEMPTY | Errno::EXIST) if self.failed.is_some() => {}
            Err(errno) => self.fail("unlinkat", name, errno),
        }
    }

    fn move_up(&mut self, parent: BorrowedFd<'_>, name: &OsStr) {
        loop {
            self.moved += 1;
            let new = format!(".knarr-removing-{}", self.moved);
            let flags = rustix::fs::RenameFlags::NOREPLACE;
            match rustix::fs::renameat_with(parent, name, self.top, &new, flags) {
                Ok(()) | Err(Errno::NOENT) => return,
                Err(Errno::EXIST) => {}
                Err(errno) => return self.fail("renameat2", name, errno),
            }
        }
    }
}

/// Whether an attribute is a file's own, to be copied from one file system to another: not
/// overlayfs' marks.
pub fn is_portable_xattr(name: &[u8]) -> bool {
    !name.starts_with(b"trusted.overlay.") && !name.starts_with(b"user.overlay.")
}

/// A path below a directory as the kernel would list it: for messages.
pub fn display(path: &Path) -> String {
    path.as_os_str().as_bytes().escape_ascii().to_string()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::TempDir;
    use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};

    fn scratch() -> TempDir {
        TempDir::new_in(&std::env::temp_dir().join("knarr-fs-tests")).unwrap()
    }

    fn root() -> bool {
        rustix::process::geteuid().is_root()
    }

    #[test]
    fn a_copy_has_everything_the_original_has() {
        if !root() {
            eprintln!("SKIP a_copy_has_everything_the_original_has: needs root");
            return;
        }
        let top = scratch();
        let (from, to) = (top.path().join("from"), top.path().join("to"));
        std::fs::create_dir_all(from.join("a/b")).unwrap();
        std::fs::create_dir(&to).unwrap();
        std::fs::write(from.join("a/file"), "contents").unwrap();
        std::fs::hard_link(from.join("a/file"), from.join("a/b/link")).unwrap();
        symlink("/etc/passwd", from.join("a/symlink")).unwrap();
        let sparse = std::fs::File::create(from.join("sparse")).unwrap();
        sparse.set_len(1 << 20).unwrap();
        (&sparse).seek(SeekFrom::Start(1 << 19)).unwrap();
        (&sparse).write_all(b"middle").unwrap();
        let fifo = Mode::from_raw_mode(0o640);
        rustix::fs::mknodat(rustix::fs::CWD, from.join("fifo"), FileType::Fifo, fifo, 0).unwrap();
        let node = rustix::fs::makedev(1, 3);
        let device = FileType::CharacterDevice;
        rustix::fs::mknodat(rustix::fs::CWD, from.join("null"), device, fifo, node).unwrap();
        std::os::unix::fs::chown(from.join("a/file"), Some(12), Some(34)).unwrap();
        std::os::unix::fs::lchown(from.join("a/symlink"), Some(5), Some(6)).unwrap();
        let mode = std::fs::Permissions::from_mode(0o4751);
        std::fs::set_permissions(from.join("a/file"), mode).unwrap();
        std::fs::set_permissions(&from, std::fs::Permissions::from_mode(0o1770)).unwrap();
        let flags = XattrFlags::empty();
        rustix::fs::setxattr(from.join("a"), "user.mark", b"value", flags).unwrap();
        for (path, name) in [
            ("a", "trusted.overlay.opaque"),
            ("a/b", "user.overlay.opaque"),
        ] {
            rustix::fs::setxattr(from.join(path), name, b"y", flags).unwrap();
        }
        Tree::open(&from)
            .unwrap()
            .copy_to(&Tree::open(&to).unwrap(), is_portable_xattr)
            .unwrap();
        let mut paths = vec![];
        let see = |path: &Path| {
            let stat = std::fs::symlink_metadata(path).unwrap();
            let times = (stat.mtime(), stat.mtime_nsec());
            (
                stat.mode(),
                stat.uid(),
                stat.gid(),
                stat.nlink(),
                stat.rdev(),
                times,
            )
        };
        Tree::open(&from)
            .unwrap()
            .walk::<Error>(|entry| {
                paths.push(entry.path.to_owned());
                Ok(Descend::Into)
            })
            .unwrap();
        assert_eq!(paths.len(), 8, "{paths:?}");
        paths.push(PathBuf::new());
        for path in &paths {
            assert_eq!(see(&from.join(path)), see(&to.join(path)), "{path:?}");
        }
        assert_eq!(std::fs::read(to.join("a/b/link")).unwrap(), b"contents");
        assert_eq!(
            std::fs::read_link(to.join("a/symlink")).unwrap(),
            Path::new("/etc/passwd")
        );
        let (sparse, copy) = (from.join("sparse"), to.join("sparse"));
        assert_eq!(
            std::fs::read(&sparse).unwrap(),
            std::fs::read(&copy).unwrap()
        );
        assert!(std::fs::metadata(&copy).unwrap().blocks() < 64);
        let attributes = |path: &str| {
            Inode::open_at(rustix::fs::CWD, to.join(path).as_os_str(), PathBuf::new())
                .unwrap()
                .xattrs(|_| true)
                .unwrap()
        };
        assert_eq!(
            attributes("a"),
            [(c"user.mark".to_owned(), b"value".to_vec())]
        );
        assert_eq!(attributes("a/b"), []);
        let usage = |path: &Path| Tree::open(path).unwrap().disk_usage().unwrap();
        assert_eq!(usage(&from), usage(&to));
    }

    use rustix::fs::XattrFlags;

    #[test]
    fn removing_goes_deeper_than_paths_and_follows_nothing() {
        let top = scratch();
        std::fs::create_dir(top.path().join("kept")).unwrap();
        std::fs::write(top.path().join("kept/file"), "").unwrap();
        let victim = top.path().join("victim");
        std::fs::create_dir(&victim).unwrap();
        // 3,000 levels: far more than PATH_MAX holds and than descriptors could be open.
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let mut directory = rustix::fs::open(&victim, flags, Mode::empty()).unwrap();
        for _ in 0..3000 {
            rustix::fs::mkdirat(&directory, "deep", Mode::RWXU).unwrap();
            rustix::fs::symlinkat(top.path().join("kept"), &directory, "out").unwrap();
            directory = rustix::fs::openat(&directory, "deep", flags, Mode::empty()).unwrap();
        }
        let open = std::fs::read_dir("/proc/self/fd").unwrap().count();
        let parent = rustix::fs::open(top.path(), flags, Mode::empty()).unwrap();
        remove(parent.as_fd(), OsStr::new("victim"), &victim).unwrap();
        remove(parent.as_fd(), OsStr::new("victim"), &victim).unwrap();
        assert!(!victim.exists());
        assert!(top.path().join("kept/file").exists());
        assert!(open < 200);
    }

    #[test]
    fn walking_does_not_follow_a_directory_that_became_a_symlink() {
        let top = scratch();
        let (inside, outside) = (top.path().join("inside"), top.path().join("outside"));
        std::fs::create_dir_all(inside.join("a")).unwrap();
        std::fs::create_dir(&outside).unwrap();
        std::fs::write(outside.join("secret"), "").unwrap();
        let tree = Tree::open(&inside).unwrap();
        let mut seen = Vec::new();
        let walked = tree.walk::<Error>(|entry| {
            seen.push(entry.path.to_owned());
            std::fs::rename(inside.join("a"), inside.join("b")).unwrap();
            symlink(&outside, inside.join("a")).unwrap();
            Ok(Descend::Into)
        });
        assert_eq!(walked.unwrap_err().errno(), Some(Errno::LOOP));
        assert_eq!(seen, [Path::new("a")]);
    }
}
