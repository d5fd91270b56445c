//! Members and their bytes to an archive.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Read, Write};
use std::path::Path;

use knarr_fs::Inode;
use rustix::fs::{FileType, OFlags, Stat};

use crate::tar::{self, Kind, Member};
use crate::{Error, Result};

/// What is collected before it is written, in bytes: small files go out many at a time.
const PIECE: usize = 512 << 10;

/// Writes a tar: headers as [`tar::encode`] makes them, the files' bytes behind them.
///
/// What is not [finished](Self::finish) lacks its end, and maybe what was not written out yet.
pub struct TarWriter<W> {
    out: W,
    buffer: Box<[u8]>,
    used: usize,
    /// The first name of every file that has several, by device and inode.
    links: HashMap<(u64, u64), Vec<u8>>,
}

impl<W> std::fmt::Debug for TarWriter<W> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TarWriter")
            .field("used", &self.used)
            .finish_non_exhaustive()
    }
}

impl<W: Write> TarWriter<W> {
    /// An empty archive that goes to `out`.
    pub fn new(out: W) -> Self {
        Self {
            out,
            buffer: vec![0; PIECE].into_boxed_slice(),
            used: 0,
            links: HashMap::new(),
        }
    }

    /// What is at an inode, as the member of the name, owner, times and attributes that `member`
    /// has: a folder (whose name gets its `/`), a file with its bytes, a hard link to the member
    /// that had its bytes, a symlink, a device, a FIFO. A socket is nothing without who listens on
    /// it: that is left out, and gives false.
    ///
    /// # Errors
    /// As open(2), read(2) and readlink(2), naming the inode; as [`header`](Self::header).
    pub fn inode(&mut self, inode: &Inode, stat: &Stat, mut member: Member) -> Result<bool> {
        match FileType::from_raw_mode(stat.st_mode) {
            FileType::Directory => {
                member.kind = Kind::Dir;
                member.path.push(b'/');
            }
            FileType::RegularFile => return self.regular(inode, stat, member).map(|()| true),
            FileType::Symlink => {
                member.kind = Kind::Symlink;
                member.link = inode.link_target()?.into_bytes();
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
            }
            FileType::Fifo => member.kind = Kind::Fifo,
            _ => return Ok(false),
        }
        self.header(&member)?;
        Ok(true)
    }

    fn regular(&mut self, inode: &Inode, stat: &Stat, mut member: Member) -> Result<()> {
        let id = (stat.st_dev, stat.st_ino);
        if let Some(first) = self.links.get(&id) {
            member.kind = Kind::HardLink;
            member.link.clone_from(first);
            return self.header(&member);
        }
        if stat.st_nlink > 1 {
            self.links.insert(id, member.path.clone());
        }
        member.size = u64::try_from(stat.st_size).unwrap_or_default();
        let mut file = File::from(inode.reopen(OFlags::RDONLY | OFlags::NONBLOCK)?);
        self.header(&member)?;
        self.contents(&mut file, member.size, inode.shown())
    }

    /// A member's header. For a file, [`contents`](Self::contents) of `member.size` bytes follow.
    ///
    /// # Errors
    /// [`Error::Tar`] for a member that no tar can hold, [`Error::Output`].
    pub fn header(&mut self, member: &Member) -> Result<()> {
        let bytes = tar::encode(member)?;
        self.bytes(&bytes)
    }

    /// A file's bytes: exactly `size` of them, as its header says, whatever the file became
    /// meanwhile, and the padding.
    ///
    /// # Errors
    /// As read(2), naming `shown`; [`Error::Output`].
    pub fn contents(&mut self, source: &mut dyn Read, size: u64, shown: &Path) -> Result<()> {
        let mut left = size;
        while left > 0 {
            if self.used == self.buffer.len() {
                self.flush()?;
            }
            let free = self.buffer.get_mut(self.used..).unwrap_or_default();
            let limit = usize::try_from(left).unwrap_or(usize::MAX).min(free.len());
            let free = free.get_mut(..limit).unwrap_or_default();
            let count = match source.read(free) {
                // It is shorter now: zeros for the rest.
                Ok(0) => {
                    free.fill(0);
                    limit
                }
                Ok(count) => count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => {
                    return Err(knarr_fs::Error::of_io("read", "read", shown)(error).into());
                }
            };
            self.used += count;
            left -= count as u64;
        }
        self.bytes(tar::padding(size))
    }

    /// A whole regular file of this name, mode 0644, as archives of images have them.
    ///
    /// # Errors
    /// As [`contents`](Self::contents).
    pub fn file(&mut self, name: &str, source: &mut dyn Read, size: u64) -> Result<()> {
        self.header(&Member {
            path: name.as_bytes().to_vec(),
            mode: 0o644,
            size,
            data_size: size,
            ..Member::default()
        })?;
        self.contents(source, size, Path::new(name))
    }

    /// [`file`](Self::file) of one that is open, from its beginning.
    ///
    /// # Errors
    /// As [`contents`](Self::contents).
    pub fn copy(&mut self, name: &str, source: &mut File, shown: &Path) -> Result<()> {
        let size = source
            .metadata()
            .map_err(knarr_fs::Error::of_io("stat", "fstat", shown))?
            .len();
        self.file(name, source, size)
    }

    /// The end of the archive.
    ///
    /// # Errors
    /// [`Error::Output`].
    pub fn finish(mut self) -> Result<()> {
        self.bytes(&tar::TRAILER)?;
        self.flush()?;
        self.out.flush().map_err(Error::Output)
    }

    fn bytes(&mut self, mut bytes: &[u8]) -> Result<()> {
        while !bytes.is_empty() {
            if self.used == self.buffer.len() {
                self.flush()?;
            }
            let free = self.buffer.get_mut(self.used..).unwrap_or_default();
            let count = free.len().min(bytes.len());
            for (to, from) in free.iter_mut().zip(bytes) {
                *to = *from;
            }
            self.used += count;
            bytes = bytes.get(count..).unwrap_or_default();
        }
        Ok(())
    }

    fn flush(&mut self) -> Result<()> {
        let bytes = self.buffer.get(..self.used).unwrap_or_default();
        self.out.write_all(bytes).map_err(Error::Output)?;
        self.used = 0;
        Ok(())
    }
}
