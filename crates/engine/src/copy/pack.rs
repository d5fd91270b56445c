//! A tree to a tar stream.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::io::{Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use knarr_fs::Inode;
use knarr_layer::tar::{self, Kind, Member};
use knarr_layer::tree::Time;
use rustix::fs::{FileType, Mode, OFlags, Stat};

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
    out: &'a mut dyn Write,
    shift: u32,
    /// The first name of every file that has several.
    links: HashMap<(u64, u64), PathBuf>,
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
    pub(super) fn new(out: &'a mut dyn Write, shift: u32) -> Self {
        Self {
            out,
            shift,
            links: HashMap::new(),
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
    pub(super) fn finish(&mut self) -> Result<()> {
        self.write(&tar::TRAILER)?;
        self.out.flush().map_err(stream)
    }

    fn entry(&mut self, inode: &Inode, name: &Path, depth: usize, whole: bool) -> Result<()> {
        let stat = inode.stat()?;
        let mut member = self.member(inode, &stat, name)?;
        match FileType::from_raw_mode(stat.st_mode) {
            FileType::Directory => {
                member.kind = Kind::Dir;
                member.path.push(b'/');
                if name != Path::new(".") {
                    self.header(&member)?;
                }
                self.directory(inode, &stat, name, depth, whole)
            }
            FileType::RegularFile => {
                let id = (stat.st_dev, stat.st_ino);
                if let Some(first) = self.links.get(&id) {
                    member.kind = Kind::HardLink;
                    member.link = first.as_os_str().as_bytes().to_vec();
                    return self.header(&member);
                }
                if stat.st_nlink > 1 {
                    self.links.insert(id, name.to_owned());
                }
                member.size = u64::try_from(stat.st_size).unwrap_or_default();
                let file = inode.reopen(OFlags::RDONLY | OFlags::NONBLOCK)?;
                self.header(&member)?;
                self.contents(file, member.size, inode.shown())
            }
            FileType::Symlink => {
                member.kind = Kind::Symlink;
                member.link = inode.link_target()?.into_bytes();
                self.header(&member)
            }
            kind @ (FileType::CharacterDevice | FileType::BlockDevice) => {
                member.kind = match kind {
                    FileType::CharacterDevice => Kind::CharDevice,
                    _ => Kind::BlockDevice,
                };
                member.device = (
                    rustix::fs::major(stat.st_rdev).into(),
                    rustix::fs::minor(stat.st_rdev).into(),
                );
                self.header(&member)
            }
            FileType::Fifo => {
                member.kind = Kind::Fifo;
                self.header(&member)
            }
            // A socket is nothing without who listens on it.
            _ => Ok(()),
        }
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
            if below.st_dev != stat.st_dev && kernels(found.as_fd(), &child, whole) {
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

    fn header(&mut self, member: &Member) -> Result<()> {
        let bytes = tar::encode(member).map_err(knarr_layer::Error::from)?;
        self.write(&bytes)
    }

    /// Exactly `size` bytes, as the header says, whatever the file became meanwhile.
    fn contents(&mut self, file: OwnedFd, size: u64, shown: &Path) -> Result<()> {
        let mut file = std::fs::File::from(file).take(size);
        let mut buffer = vec![0; 64 << 10];
        let mut left = size;
        while left > 0 {
            let count = file
                .read(&mut buffer)
                .map_err(knarr_fs::Error::of_io("read", "read", shown))?;
            if count == 0 {
                buffer.fill(0);
                while left > 0 {
                    let zeros = usize::try_from(left)
                        .unwrap_or(usize::MAX)
                        .min(buffer.len());
                    self.write(buffer.get(..zeros).unwrap_or_default())?;
                    left = left.saturating_sub(u64::try_from(zeros).unwrap_or_default());
                }
                break;
            }
            self.write(buffer.get(..count).unwrap_or_default())?;
            left = left.saturating_sub(u64::try_from(count).unwrap_or_default());
        }
        self.write(tar::padding(size))
    }

    fn write(&mut self, bytes: &[u8]) -> Result<()> {
        self.out.write_all(bytes).map_err(stream)
    }
}

fn stream(cause: std::io::Error) -> Error {
    Error::Stream {
        what: "the archive",
        cause,
    }
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
