//! A tar stream to a tree below a root that it cannot leave.

use std::io::{ErrorKind, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Component, Path, PathBuf};

use knarr_fs::{Inode, Root, Times};
use knarr_layer::tar::{Event, Kind, Limits, Member, Reader};
use rustix::fs::{AtFlags, FileType, Mode, OFlags, Timespec};
use rustix::io::Errno;

use crate::{Error, Result};

/// Whose files they will be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Owners {
    /// Those that the archive names.
    Kept,
    /// The caller's; and no devices are made, which would give a container's word power here.
    Callers,
}

/// Takes the bytes of a tar and makes what it says.
#[derive(Debug)]
pub(super) struct Unpacker<'a> {
    root: &'a Root,
    base: &'a Path,
    shift: u32,
    owners: Owners,
    reader: Reader,
    /// The file being written, with what it gets when it is complete.
    current: Option<(OwnedFd, Member, PathBuf)>,
    /// Directories get their times last: making what is in them changes them.
    directories: Vec<(PathBuf, Member)>,
    started: bool,
    failed: Option<Error>,
}

impl<'a> Unpacker<'a> {
    /// Below the directory `base` of `root`; `shift` is put onto all ids.
    pub(super) fn new(root: &'a Root, base: &'a Path, shift: u32, owners: Owners) -> Self {
        Self {
            root,
            base,
            shift,
            owners,
            reader: Reader::new(Limits::default()),
            current: None,
            directories: Vec::new(),
            started: false,
            failed: None,
        }
    }

    /// The error that a failed `write` stood for.
    pub(super) fn failure(&mut self) -> Result<()> {
        self.failed.take().map_or(Ok(()), Err)
    }

    /// After the last byte.
    pub(super) fn finish(mut self) -> Result<()> {
        self.complete()?;
        self.reader.end().map_err(knarr_layer::Error::from)?;
        while let Some((path, member)) = self.directories.pop() {
            let flags = OFlags::PATH | OFlags::NOFOLLOW;
            let Ok(fd) = self.root.open(&path, flags, Mode::empty()) else {
                continue;
            };
            let inode = Inode::from_fd(fd, self.root.display(&path));
            inode.set_times(&times(&member))?;
        }
        Ok(())
    }

    fn feed(&mut self, mut bytes: &[u8]) -> Result<()> {
        if !std::mem::replace(&mut self.started, true) {
            let compressed = [&b"\x1f\x8b"[..], b"\x28\xb5\x2f\xfd", b"BZh", b"\xfd7zXZ"];
            if compressed.iter().any(|magic| bytes.starts_with(magic)) {
                return Err(Error::invalid_hint(
                    "the archive is compressed, a plain tar is expected",
                    "decompress it in front, for example with `gunzip |` or `zstd -d |`",
                ));
            }
        }
        while !bytes.is_empty() {
            let (taken, event) = self.reader.feed(bytes).map_err(knarr_layer::Error::from)?;
            match event {
                Some(Event::Member(member)) => {
                    self.complete()?;
                    self.make(*member)?;
                }
                Some(Event::Data(data)) => {
                    if let Some((file, _, path)) = &self.current {
                        write_all(file, data)
                            .map_err(knarr_fs::Error::of("write", "write", path))?;
                    }
                }
                None => {}
            }
            bytes = bytes.get(taken..).unwrap_or_default();
        }
        Ok(())
    }

    /// The file whose last byte has come gets the rest of what it has.
    fn complete(&mut self) -> Result<()> {
        let Some((file, member, path)) = self.current.take() else {
            return Ok(());
        };
        self.dress(&Inode::from_fd(file, path), &member)
    }

    fn make(&mut self, member: Member) -> Result<()> {
        if member.sparse.is_some() {
            return Err(Error::Unsupported {
                what: format!("the sparse file {}", String::from_utf8_lossy(&member.path)),
                reason: "pack it without --sparse",
            });
        }
        let Some(path) = self.place(&member.path) else {
            // `.` is the folder itself, which is there.
            return Ok(());
        };
        let shown = self.root.display(&path);
        let above = path.parent().unwrap_or(Path::new("/"));
        let name = path.file_name().unwrap_or_default();
        let parent = self
            .root
            .create_dir_all(above, Mode::from_raw_mode(0o755))?;
        if member.kind == Kind::Dir {
            match rustix::fs::mkdirat(&parent, name, Mode::RWXU) {
                Ok(()) => {}
                Err(Errno::EXIST) => {
                    let there = self.root.stat_nofollow(&path)?;
                    match FileType::from_raw_mode(there.st_mode) {
                        FileType::Directory => {}
                        // As a shell would: into the folder that the link leads to.
                        FileType::Symlink if self.is_dir(&path) => return Ok(()),
                        _ => {
                            return Err(Error::invalid(format!(
                                "cannot overwrite non-directory {} with directory",
                                shown.display()
                            )));
                        }
                    }
                }
                Err(errno) => {
                    return Err(knarr_fs::Error::of("create", "mkdirat", &shown)(errno).into());
                }
            }
            let inode = Inode::open_at(parent.as_fd(), name, shown)?;
            self.dress(&inode, &member)?;
            self.directories.push((path, member));
            return Ok(());
        }
        let busy = match rustix::fs::unlinkat(&parent, name, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => false,
            // A file that is mounted there (`/etc/hosts`) is written in place.
            Err(Errno::BUSY) => true,
            Err(Errno::ISDIR | Errno::PERM) if self.is_dir(&path) => {
                return Err(Error::invalid(format!(
                    "cannot overwrite directory {} with non-directory",
                    shown.display()
                )));
            }
            Err(errno) => {
                return Err(knarr_fs::Error::of("replace", "unlinkat", &shown)(errno).into());
            }
        };
        let failed = |call| {
            let shown = shown.clone();
            move |errno| Error::from(knarr_fs::Error::of("create", call, &shown)(errno))
        };
        match member.kind {
            Kind::File => {
                let fresh = if busy {
                    OFlags::TRUNC
                } else {
                    OFlags::CREATE | OFlags::EXCL
                };
                let flags = OFlags::WRONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NONBLOCK;
                let mode = Mode::RUSR | Mode::WUSR;
                let file = rustix::fs::openat(&parent, name, flags | fresh, mode)
                    .map_err(failed("openat"))?;
                self.current = Some((file, member, shown));
                return Ok(());
            }
            Kind::HardLink => {
                let Some(target) = self.place(&member.link) else {
                    return Err(Error::invalid(format!(
                        "{} is a link to nothing",
                        shown.display()
                    )));
                };
                let flags = OFlags::PATH | OFlags::NOFOLLOW;
                let target = self.root.open(&target, flags, Mode::empty())?;
                Inode::from_fd(target, &shown).hardlink(parent.as_fd(), name)?;
                return Ok(());
            }
            Kind::Symlink => {
                let target = Path::new(std::ffi::OsStr::from_bytes(&member.link));
                rustix::fs::symlinkat(target, &parent, name).map_err(failed("symlinkat"))?;
            }
            Kind::CharDevice | Kind::BlockDevice if self.owners == Owners::Callers => {
                return Err(Error::invalid_hint(
                    format!("{} is a device, which is not copied out", shown.display()),
                    "leave it out, or copy with -a if the container is to be trusted",
                ));
            }
            Kind::CharDevice | Kind::BlockDevice | Kind::Fifo => {
                let kind = match member.kind {
                    Kind::CharDevice => FileType::CharacterDevice,
                    Kind::BlockDevice => FileType::BlockDevice,
                    _ => FileType::Fifo,
                };
                let number = |number: i64| u32::try_from(number).unwrap_or_default();
                let device = rustix::fs::makedev(number(member.device.0), number(member.device.1));
                rustix::fs::mknodat(&parent, name, kind, Mode::RUSR | Mode::WUSR, device)
                    .map_err(failed("mknodat"))?;
            }
            Kind::Dir => {}
        }
        let inode = Inode::open_at(parent.as_fd(), name, shown)?;
        self.dress(&inode, &member)
    }

    fn is_dir(&self, path: &Path) -> bool {
        self.root
            .stat(path)
            .is_ok_and(|stat| FileType::from_raw_mode(stat.st_mode) == FileType::Directory)
    }

    /// Owner, attributes, mode, times: in this order, as each undoes some of the next.
    fn dress(&self, inode: &Inode, member: &Member) -> Result<()> {
        if self.owners == Owners::Kept {
            let outside = |id: i64| u32::try_from(id).ok()?.checked_add(self.shift);
            let (Some(uid), Some(gid)) = (outside(member.uid), outside(member.gid)) else {
                return Err(Error::invalid(format!(
                    "{} belongs to {}:{}, which the container does not have",
                    inode.shown().display(),
                    member.uid,
                    member.gid
                )));
            };
            inode.set_owner(uid, gid)?;
        }
        for (name, value) in &member.xattrs {
            let privileged = !name.starts_with(b"user.");
            let foreign = name.starts_with(b"user.overlay.") || name.starts_with(b"trusted.");
            if foreign || (privileged && self.owners == Owners::Callers) {
                continue;
            }
            let Ok(name) = std::ffi::CString::new(name.to_vec()) else {
                continue;
            };
            match inode.set_xattr(&name, value) {
                Err(error) if error.errno() == Some(Errno::OPNOTSUPP) => {}
                done => done?,
            }
        }
        if member.kind != Kind::Symlink {
            let mode = u32::try_from(member.mode & 0o7777).unwrap_or(0o644);
            inode.set_mode(Mode::from_raw_mode(mode))?;
        }
        inode.set_times(&times(member))?;
        Ok(())
    }

    /// Where a name of the archive goes: below `base`, whatever it says. `None` is `base` itself.
    fn place(&self, name: &[u8]) -> Option<PathBuf> {
        let mut below = PathBuf::new();
        for component in Path::new(std::ffi::OsStr::from_bytes(name)).components() {
            match component {
                Component::Normal(name) => below.push(name),
                Component::ParentDir => {
                    below.pop();
                }
                _ => {}
            }
        }
        (!below.as_os_str().is_empty()).then(|| self.base.join(below))
    }
}

impl Write for Unpacker<'_> {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        match self.feed(bytes) {
            Ok(()) => Ok(bytes.len()),
            Err(error) => {
                self.failed = Some(error);
                Err(ErrorKind::Other.into())
            }
        }
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// Feeds all of a stream.
pub(super) fn copy(input: &mut dyn Read, to: &mut Unpacker<'_>) -> Result<()> {
    let mut buffer = vec![0; 64 << 10];
    loop {
        let count = match input.read(&mut buffer) {
            Ok(0) => return Ok(()),
            Ok(count) => count,
            Err(error) if error.kind() == ErrorKind::Interrupted => continue,
            Err(cause) => {
                return Err(Error::Stream {
                    what: "the archive",
                    cause,
                });
            }
        };
        to.feed(buffer.get(..count).unwrap_or_default())?;
    }
}

fn write_all(file: &OwnedFd, mut bytes: &[u8]) -> std::result::Result<(), Errno> {
    while !bytes.is_empty() {
        match rustix::io::write(file, bytes) {
            Ok(count) => bytes = bytes.get(count..).unwrap_or_default(),
            Err(Errno::INTR) => {}
            Err(errno) => return Err(errno),
        }
    }
    Ok(())
}

fn times(member: &Member) -> Times {
    let time = Timespec {
        tv_sec: member.mtime.seconds,
        tv_nsec: member.mtime.nanoseconds.into(),
    };
    Times {
        last_access: time,
        last_modification: time,
    }
}
