//! What a container changed, as a layer.

use std::io::Write;
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use knarr_fs::{Inode, tree};
use rustix::fs::{FileType, Stat};

use crate::changes::{is_opaque, is_whiteout};
use crate::rootfs::{IdMap, Upper};
use crate::tar::{Kind, Member};
use crate::tree::{Time, Xattrs};
use crate::{Result, TarWriter};

/// image-spec layer.md, "Whiteouts".
const WHITEOUT: &[u8] = b".wh.";
const OPAQUE: &str = ".wh..wh..opq";
/// `/proc/sys/kernel/overflowuid`, as every kernel has it.
const OVERFLOW_ID: u32 = 65534;

/// Writes an upper folder as a layer: a tar with OCI whiteouts, straight from the files, folders
/// before what is in them, in byte order of names. Gives the number of members besides the root.
///
/// Nothing of the image is looked at: overlayfs copies up whatever changes, so that the upper folder
/// *is* the difference. The root is a member too, which makes the layer self-contained. Owners are
/// written as the container sees them. `leave_out` says which paths (relative) belong to Knarr, not
/// to the container; it is asked for empty files and folders only. Sockets are left out: they are
/// nothing without who listens on them.
///
/// Works while the container runs; a file that changes meanwhile is whatever was read of it.
///
/// # Errors
/// Those of reading the folder, and [`Error::Output`](crate::Error::Output).
pub fn diff(
    upper: &Upper,
    idmap: Option<&IdMap>,
    leave_out: &dyn Fn(&Path) -> bool,
    out: &mut dyn Write,
) -> Result<u64> {
    let upper = match tree::Tree::open(&upper.upper) {
        Ok(upper) => upper,
        // Never started.
        Err(error) if error.is_not_found() => {
            TarWriter::new(out).finish()?;
            return Ok(0);
        }
        Err(error) => return Err(error.into()),
    };
    let mut differ = Differ {
        writer: TarWriter::new(out),
        idmap,
        leave_out,
        members: 0,
    };
    let root = Inode::from_fd(upper.directory(Path::new(""))?, "/");
    let stat = root.stat()?;
    let member = differ.member(&root, &stat, Path::new(""))?;
    differ.writer.header(&Member {
        path: b"./".to_vec(),
        kind: Kind::Dir,
        ..member
    })?;
    differ.opaque(&root, Path::new(""))?;
    // By path, so that the descriptors in use do not grow with the depth.
    let mut todo = vec![PathBuf::new()];
    while let Some(path) = todo.pop() {
        let directory = match upper.directory(&path) {
            Err(error) if error.is_not_found() => continue,
            opened => opened?,
        };
        let mut names = tree::names(directory.as_fd(), &path)?;
        names.sort();
        let mut below = Vec::new();
        for name in names {
            let child = path.join(&name);
            match Inode::open_at(directory.as_fd(), &name, child.clone()) {
                // It vanished meanwhile.
                Err(error) if error.is_not_found() => {}
                Err(error) => return Err(error.into()),
                Ok(inode) => {
                    if differ.add(&inode, &child)? {
                        below.push(child);
                    }
                }
            }
        }
        todo.extend(below.into_iter().rev());
    }
    differ.writer.finish()?;
    Ok(differ.members)
}

struct Differ<'a> {
    writer: TarWriter<&'a mut dyn Write>,
    idmap: Option<&'a IdMap>,
    leave_out: &'a dyn Fn(&Path) -> bool,
    members: u64,
}

impl Differ<'_> {
    /// Adds an entry; whether it is a folder to go into.
    fn add(&mut self, inode: &Inode, path: &Path) -> Result<bool> {
        let stat = inode.stat()?;
        let kind = FileType::from_raw_mode(stat.st_mode);
        if is_whiteout(&stat) {
            let name = path.file_name().unwrap_or_default().as_bytes();
            let hidden = [WHITEOUT, name].concat();
            self.mark(&path.with_file_name(std::ffi::OsStr::from_bytes(&hidden)))?;
            return Ok(false);
        }
        let empty = match kind {
            FileType::Directory => true,
            FileType::RegularFile => stat.st_size == 0,
            _ => false,
        };
        if empty && (self.leave_out)(path) {
            return Ok(false);
        }
        let member = self.member(inode, &stat, path)?;
        let written = self.writer.inode(inode, &stat, member)?;
        self.members += u64::from(written);
        if kind == FileType::Directory {
            self.opaque(inode, path)?;
            return Ok(true);
        }
        Ok(false)
    }

    /// An empty file whose name says something.
    fn mark(&mut self, path: &Path) -> Result<()> {
        self.members += 1;
        self.writer.header(&Member {
            path: path.as_os_str().as_bytes().to_vec(),
            ..Member::default()
        })
    }

    fn opaque(&mut self, directory: &Inode, path: &Path) -> Result<()> {
        if is_opaque(directory)? {
            self.mark(&path.join(OPAQUE))?;
        }
        Ok(())
    }

    fn member(&self, inode: &Inode, stat: &Stat, path: &Path) -> Result<Member> {
        // An id that the container has not, it sees as the overflow id (user_namespaces(7)).
        let (uid, gid) = match self.idmap {
            None => (stat.st_uid, stat.st_gid),
            Some(map) => (
                map.uid_inside(stat.st_uid).unwrap_or(OVERFLOW_ID),
                map.gid_inside(stat.st_gid).unwrap_or(OVERFLOW_ID),
            ),
        };
        Ok(Member {
            path: path.as_os_str().as_bytes().to_vec(),
            mode: i64::from(stat.st_mode & 0o7777),
            uid: uid.into(),
            gid: gid.into(),
            mtime: Time {
                seconds: stat.st_mtime,
                nanoseconds: u32::try_from(stat.st_mtime_nsec).unwrap_or_default(),
            },
            xattrs: self.xattrs(inode)?,
            ..Member::default()
        })
    }

    /// Those that mean the same on another machine. Access lists name users by number, so they stay
    /// behind where numbers are shifted.
    fn xattrs(&self, inode: &Inode) -> Result<Xattrs> {
        let keep = |name: &[u8]| {
            tree::is_portable_xattr(name)
                && (name.starts_with(b"user.")
                    || name == b"security.capability"
                    || (self.idmap.is_none() && name.starts_with(b"system.posix_acl_")))
        };
        let mut found = Xattrs::new();
        for (name, mut value) in inode.xattrs(keep)? {
            if name.as_bytes() == b"security.capability" && self.idmap.is_some() {
                value = without_root(value);
            }
            found.insert(name.into_bytes().into(), value.into());
        }
        Ok(found)
    }
}

/// A file capability of a user namespace (version 3: with the namespace's root, capabilities(7)) as
/// the container sees it: version 2.
fn without_root(mut value: Vec<u8>) -> Vec<u8> {
    const VERSION_3_SIZE: usize = 24;
    if value.len() == VERSION_3_SIZE
        && let Some(version) = value.get_mut(3)
        && *version == 3
    {
        *version = 2;
        value.truncate(20);
    }
    value
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_namespaces_capability_becomes_an_ordinary_one() {
        let mut three = vec![1, 0, 0, 3];
        three.extend([7; 16]);
        three.extend(100_000u32.to_le_bytes());
        let two = without_root(three);
        assert_eq!(two.len(), 20);
        assert_eq!(&two[..4], &[1, 0, 0, 2]);
        assert_eq!(without_root(two.clone()), two);
    }
}
