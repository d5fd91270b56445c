//! A tree to a tar stream.

use std::ffi::OsStr;
use std::io::Write;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use knarr_fs::Inode;
use knarr_layer::TarWriter;
use knarr_layer::tar::Member;
use knarr_layer::tree::Time;
use rustix::fs::{AtFlags, FileType, Mode, OFlags, Stat, StatxAttributes, StatxFlags};

use super::Place;
use crate::{Error, Result};

/// File systems of the kernel's that are mounted in a container: not files that anybody copies
/// (`linux/magic.h`).
const KERNELS: [u64; 7] = [
    0x9fa0,      // proc
    0x6265_6572, // sysfs
    0x0027_e0eb, // cgroup
    0x6367_7270, // cgroup2
    0x1cd1,      // devpts
    0x1980_0202, // mqueue
    0x7363_6673, // securityfs, below sysfs
];

/// How deep a tree may be.
const DEPTH: usize = 800;

/// Writes a tar.
pub(super) struct Packer<'a> {
    writer: TarWriter<&'a mut dyn Write>,
    shift: u32,
    mounts: Mounts,
}

/// What becomes of mounts below what is packed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Mounts {
    /// They are packed, but for the kernel's own file systems.
    Enter,
    /// What they are mounted on is packed, empty, as the container's own file system has it.
    Leave,
}

impl std::fmt::Debug for Packer<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Packer")
            .field("shift", &self.shift)
            .finish_non_exhaustive()
    }
}

impl<'a> Packer<'a> {
    /// `shift` is taken off all ids.
    pub(super) fn new(out: &'a mut dyn Write, shift: u32, mounts: Mounts) -> Self {
        Self {
            writer: TarWriter::new(out),
            shift,
            mounts,
        }
    }

    /// Adds what is at a place, called `name` in the archive.
    pub(super) fn add(&mut self, place: &Place, name: &Path, follow: bool) -> Result<()> {
        let nofollow = if follow || place.directory {
            OFlags::empty()
        } else {
            OFlags::NOFOLLOW
        };
        let found = match place
            .root
            .open(&place.path, OFlags::PATH | nofollow, Mode::empty())
        {
            Err(error) if error.is_not_found() => return Err(place.missing()),
            found => found?,
        };
        let inode = Inode::from_fd(found, place.root.display(&place.path));
        let whole = place.container.is_some() && place.path == Path::new("/");
        self.entry(&inode, name, 0, whole)
    }

    /// Ends the archive.
    pub(super) fn finish(self) -> Result<()> {
        self.writer.finish().map_err(of_the_writer)
    }

    fn entry(&mut self, inode: &Inode, name: &Path, depth: usize, whole: bool) -> Result<()> {
        let stat = inode.stat()?;
        let member = self.member(inode, &stat, name)?;
        let covered = depth > 0 && self.mounts == Mounts::Leave && is_mount(inode)?;
        match FileType::from_raw_mode(stat.st_mode) {
            // An empty file.
            FileType::RegularFile if covered => self.writer.header(&member).map_err(of_the_writer),
            FileType::Directory => {
                if name != Path::new(".") {
                    self.inode(inode, &stat, member)?;
                }
                if covered {
                    return Ok(());
                }
                self.directory(inode, &stat, name, depth, whole)
            }
            _ => self.inode(inode, &stat, member),
        }
    }

    fn inode(&mut self, inode: &Inode, stat: &Stat, member: Member) -> Result<()> {
        let written = self.writer.inode(inode, stat, member);
        written.map(drop).map_err(of_the_writer)
    }

    fn directory(
        &mut self,
        inode: &Inode,
        stat: &Stat,
        name: &Path,
        depth: usize,
        whole: bool,
    ) -> Result<()> {
        if depth > DEPTH {
            return Err(Error::invalid(format!(
                "{} is nested too deep",
                inode.shown().display()
            )));
        }
        let directory = inode.reopen(OFlags::RDONLY | OFlags::DIRECTORY)?;
        let mut names = knarr_fs::tree::names(directory.as_fd(), inode.shown())?;
        names.sort();
        for child in names {
            let shown = inode.shown().join(&child);
            let found = match Inode::open_at(directory.as_fd(), &child, shown) {
                // It vanished meanwhile.
                Err(error) if error.is_not_found() => continue,
                found => found?,
            };
            let below = found.stat()?;
            if self.mounts == Mounts::Enter
                && below.st_dev != stat.st_dev
                && kernels(found.as_fd(), &child, whole)
            {
                continue;
            }
            let path = if name == Path::new(".") {
                PathBuf::from(&child)
            } else {
                name.join(&child)
            };
            self.entry(&found, &path, depth + 1, false)?;
        }
        Ok(())
    }

    fn member(&self, inode: &Inode, stat: &Stat, name: &Path) -> Result<Member> {
        let inside = |id: u32| i64::from(id.checked_sub(self.shift).unwrap_or(id));
        let keep = |name: &[u8]| {
            name.starts_with(b"user.") && !name.starts_with(b"user.overlay.")
                || name == b"security.capability"
        };
        let xattrs = inode
            .xattrs(keep)?
            .into_iter()
            .map(|(name, value)| {
                (
                    name.into_bytes().into_boxed_slice(),
                    value.into_boxed_slice(),
                )
            })
            .collect();
        Ok(Member {
            path: name.as_os_str().as_bytes().to_vec(),
            mode: i64::from(stat.st_mode & 0o7777),
            uid: inside(stat.st_uid),
            gid: inside(stat.st_gid),
            mtime: Time {
                seconds: stat.st_mtime,
                nanoseconds: u32::try_from(stat.st_mtime_nsec).unwrap_or_default(),
            },
            xattrs,
            ..Member::default()
        })
    }
}

fn of_the_writer(error: knarr_layer::Error) -> Error {
    match error {
        knarr_layer::Error::Output(cause) => Error::Stream {
            what: "the archive",
            cause,
        },
        knarr_layer::Error::Fs(cause) => cause.into(),
        error => error.into(),
    }
}

/// Whether something is mounted there (statx(2), Linux 5.8).
fn is_mount(inode: &Inode) -> Result<bool> {
    let stat = rustix::fs::statx(inode, "", AtFlags::EMPTY_PATH, StatxFlags::TYPE)
        .map_err(knarr_fs::Error::of("stat", "statx", inode.shown()))?;
    Ok(stat.stx_attributes.contains(StatxAttributes::MOUNT_ROOT))
}

/// Whether a mount below is the kernel's: `/proc`, `/sys` and their like, and a whole container's
/// `/dev`.
fn kernels(directory: BorrowedFd<'_>, name: &OsStr, whole: bool) -> bool {
    let kind = rustix::fs::fstatfs(directory).map(|stat| stat.f_type);
    let magic = kind
        .ok()
        .and_then(|kind| u64::try_from(kind).ok())
        .unwrap_or_default();
    KERNELS.contains(&magic) || (whole && name == "dev")
}
