//! An index back to inodes and a tree.

use std::cell::RefCell;
use std::collections::HashMap;
use std::fs;
use std::os::unix::fs::FileExt;

use super::Error;
use super::crc32c::crc32c;
use super::format::*;
use crate::tree::{
    self, Content, Device, Dir, Entries, File, Kind, Meta, Node, NodeId, Piece, Time, Tree, Xattrs,
};

/// An open index. It reads what [`plan`](super::plan) writes, not every EROFS image; damage is an
/// [`Error::Damaged`], never a panic.
#[derive(Debug)]
pub struct Index {
    file: fs::File,
    len: u64,
    root: u64,
    inodes: u64,
    epoch: Time,
    /// The last stretch that was read, as lookups are near each other.
    window: RefCell<(u64, Vec<u8>)>,
}

/// An inode as it stands in the index.
#[derive(Debug, Clone)]
pub struct Inode {
    /// Its number.
    pub nid: u64,
    /// File type and permissions, as in `st_mode`.
    pub mode: u16,
    /// How many names it has.
    pub links: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Last modification.
    pub mtime: Time,
    /// Size in bytes.
    pub size: u64,
    layout: u16,
    union: u32,
    xattr_len: u64,
    body: u64,
}

/// A directory entry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Its name.
    pub name: Box<[u8]>,
    /// Its inode's number.
    pub nid: u64,
}

impl Inode {
    /// Whether it is a directory.
    pub fn is_dir(&self) -> bool {
        self.mode & S_IFMT == S_IFDIR
    }

    /// Whether it is overlayfs' mark for "nothing here": a character device 0:0.
    pub fn is_whiteout(&self) -> bool {
        self.mode & S_IFMT == S_IFCHR && self.union == 0
    }
}

const DAMAGED: &str = "something lies outside the index";

impl Index {
    /// Opens an index and checks its superblock.
    ///
    /// # Errors
    /// [`Error::Damaged`] where it is not an index that Knarr wrote.
    pub fn open(file: fs::File) -> Result<Self, Error> {
        let len = file
            .metadata()
            .map_err(|error| Error::Io("stat the index", error))?
            .len();
        let mut index = Self {
            file,
            len,
            root: 0,
            inodes: 0,
            epoch: Time::default(),
            window: RefCell::default(),
        };
        let block: [u8; 512] = index.array(SUPER_OFFSET)?;
        let damaged = |what| Error::Damaged {
            offset: SUPER_OFFSET,
            what,
        };
        let field = |at| u32_at(&block, at);
        if field(0) != MAGIC || block.get(12) != Some(&BLOCK_BITS) || field(80) != INCOMPAT {
            return Err(damaged("it is not an index of Knarr's kind"));
        }
        if crc32c(CHECKSUM_SEED, block.get(8..).unwrap_or_default()) != field(4) {
            return Err(damaged("the superblock's checksum is wrong"));
        }
        index.root = u64::from(u16_at(&block, 14));
        index.inodes = u64_at(&block, 16);
        index.epoch = Time {
            seconds: u64_at(&block, 24).cast_signed(),
            nanoseconds: field(32),
        };
        Ok(index)
    }

    /// The open file.
    pub fn file(&self) -> &fs::File {
        &self.file
    }

    /// How many inodes it says it has.
    pub fn inodes(&self) -> u64 {
        self.inodes
    }

    /// The root directory.
    ///
    /// # Errors
    /// [`Error::Damaged`], [`Error::Io`].
    pub fn root(&self) -> Result<Inode, Error> {
        self.inode(self.root)
    }

    /// An inode by number.
    ///
    /// # Errors
    /// [`Error::Damaged`], [`Error::Io`].
    pub fn inode(&self, nid: u64) -> Result<Inode, Error> {
        let offset = nid.checked_mul(SLOT).ok_or_else(|| damaged(nid, DAMAGED))?;
        let short: [u8; 32] = self.array(offset)?;
        let format = u16_at(&short, 0);
        let xattr_len = match u16_at(&short, 2) {
            0 => 0,
            count => XATTR_HEADER_LEN + (u64::from(count) - 1) * 4,
        };
        let mut inode = Inode {
            nid,
            mode: u16_at(&short, 4),
            links: u32::from(u16_at(&short, 6)),
            uid: u32::from(u16_at(&short, 24)),
            gid: u32::from(u16_at(&short, 26)),
            mtime: self.epoch,
            size: u64::from(u32_at(&short, 8)),
            layout: (format >> 1) & 7,
            union: u32_at(&short, 16),
            xattr_len,
            body: offset.saturating_add(COMPACT_LEN),
        };
        if format & EXTENDED != 0 {
            let long: [u8; 64] = self.array(offset)?;
            inode.size = u64_at(&long, 8);
            inode.uid = u32_at(&long, 24);
            inode.gid = u32_at(&long, 28);
            inode.mtime = Time {
                seconds: u64_at(&long, 32).cast_signed(),
                nanoseconds: u32_at(&long, 40),
            };
            inode.links = u32_at(&long, 44);
            inode.body = offset.saturating_add(EXTENDED_LEN);
        }
        Ok(inode)
    }

    /// A directory's entries in byte order, without `.` and `..`.
    ///
    /// # Errors
    /// [`Error::Damaged`], [`Error::Io`].
    pub fn entries(&self, dir: &Inode) -> Result<Vec<Entry>, Error> {
        let mut entries = Vec::new();
        for block in self.bytes(dir)?.chunks(512) {
            self.block_entries(dir, block, &mut entries)?;
        }
        Ok(entries)
    }

    /// The entry of this name in a directory.
    ///
    /// # Errors
    /// [`Error::Damaged`], [`Error::Io`].
    pub fn lookup(&self, dir: &Inode, name: &[u8]) -> Result<Option<Inode>, Error> {
        if !dir.is_dir() {
            return Ok(None);
        }
        let bytes = self.bytes(dir)?;
        let blocks: Vec<&[u8]> = bytes.chunks(512).collect();
        let first_name = |block: &&[u8]| -> Vec<u8> {
            let start = usize::from(u16_at(block, 8));
            let end = match u16_at(block, 20) {
                end if start > DIRENT_LEN => usize::from(end),
                _ => block.len(),
            };
            let name = block.get(start..end).unwrap_or_default();
            name.split(|&byte| byte == 0)
                .next()
                .unwrap_or_default()
                .to_vec()
        };
        let after = blocks.partition_point(|block| first_name(block).as_slice() <= name);
        let Some(block) = after.checked_sub(1).and_then(|at| blocks.get(at)) else {
            return Ok(None);
        };
        let mut entries = Vec::new();
        self.block_entries(dir, block, &mut entries)?;
        entries
            .iter()
            .find(|entry| *entry.name == *name)
            .map(|entry| self.inode(entry.nid))
            .transpose()
    }

    fn block_entries(
        &self,
        dir: &Inode,
        block: &[u8],
        entries: &mut Vec<Entry>,
    ) -> Result<(), Error> {
        let names = usize::from(u16_at(block, 8));
        let table = block
            .get(..names)
            .filter(|_| names >= DIRENT_LEN)
            .ok_or_else(|| damaged(dir.body, "a directory block makes no sense"))?
            .as_chunks::<DIRENT_LEN>()
            .0;
        for (at, entry) in table.iter().enumerate() {
            let start = usize::from(u16_at(entry, 8));
            let end = table
                .get(at + 1)
                .map_or(block.len(), |next| usize::from(u16_at(next, 8)));
            let name = block
                .get(start..end)
                .and_then(|name| name.split(|&byte| byte == 0).next())
                .filter(|name| !name.is_empty() && !name.contains(&b'/'))
                .ok_or_else(|| damaged(dir.body, "a directory entry makes no sense"))?;
            if !matches!(name, b"." | b"..") {
                entries.push(Entry {
                    name: name.into(),
                    nid: u64_at(entry, 0),
                });
            }
        }
        Ok(())
    }

    /// A directory's or symlink's data, which lie in whole blocks and a tail after the inode.
    fn bytes(&self, inode: &Inode) -> Result<Vec<u8>, Error> {
        if inode.size > self.len {
            return Err(damaged(inode.body, DAMAGED));
        }
        let tail = match inode.layout {
            FLAT_INLINE => inode.size % BLOCK,
            _ => 0,
        };
        let mut bytes = self.read(u64::from(inode.union) * BLOCK, inode.size - tail)?;
        bytes.extend(self.read(inode.body.saturating_add(inode.xattr_len), tail)?);
        Ok(bytes)
    }

    /// An inode's attributes.
    ///
    /// # Errors
    /// [`Error::Damaged`], [`Error::Io`].
    pub fn xattrs(&self, inode: &Inode) -> Result<Xattrs, Error> {
        let mut xattrs = Xattrs::new();
        if inode.xattr_len <= XATTR_HEADER_LEN {
            return Ok(xattrs);
        }
        let bytes = self.read(inode.body, inode.xattr_len)?;
        let mut rest = bytes.get(12..).unwrap_or_default();
        while let Some((&[name_len, index, size_low, size_high], after)) = rest.split_first_chunk()
        {
            let size = usize::from(u16::from_le_bytes([size_low, size_high]));
            let used = usize::from(name_len) + size;
            let parsed = XATTR_PREFIXES
                .iter()
                .find(|(number, _)| *number == index)
                .zip(after.get(..used))
                .map(|((_, prefix), both)| (prefix, both.split_at(usize::from(name_len))));
            let Some((prefix, (name, value))) = parsed else {
                return Err(damaged(inode.body, "an extended attribute makes no sense"));
            };
            xattrs.insert([prefix, name].concat().into(), value.into());
            rest = after.get(used.next_multiple_of(4)..).unwrap_or_default();
        }
        Ok(xattrs)
    }

    /// An inode as a tree's node, a directory without its entries. `[tar, index]` are the sources
    /// that its pieces shall name.
    ///
    /// # Errors
    /// [`Error::Damaged`], [`Error::Io`].
    pub fn node(&self, inode: &Inode, sources: [usize; 2]) -> Result<Node, Error> {
        let mut xattrs = self.xattrs(inode)?;
        let opaque = xattrs.remove(OPAQUE.0).is_some();
        let device = || Device {
            major: (inode.union >> 8) & 0xfff,
            minor: (inode.union & 0xff) | ((inode.union >> 12) & 0xf_ff00),
        };
        let kind = match inode.mode & S_IFMT {
            S_IFDIR => Kind::Dir(Box::new(Dir {
                entries: Entries::default(),
                opaque,
            })),
            S_IFREG => Kind::File(self.content(inode, sources)?),
            S_IFLNK => Kind::Symlink(self.bytes(inode)?.into()),
            S_IFCHR if inode.is_whiteout() => Kind::Whiteout,
            S_IFCHR => Kind::CharDevice(device()),
            S_IFBLK => Kind::BlockDevice(device()),
            S_IFIFO => Kind::Fifo,
            S_IFSOCK => Kind::Socket,
            _ => return Err(damaged(inode.body, "an inode has no type")),
        };
        Ok(Node {
            meta: Meta {
                mode: inode.mode & 0o7777,
                uid: inode.uid,
                gid: inode.gid,
                mtime: inode.mtime,
                xattrs: tree::boxed(xattrs),
            },
            links: inode.links,
            kind,
        })
    }

    /// Where a regular file's bytes are.
    fn content(&self, inode: &Inode, [tar, index]: [usize; 2]) -> Result<File, Error> {
        let size = inode.size;
        if size == 0 {
            return Ok(File {
                size,
                content: Content::Pieces(Box::default()),
            });
        }
        if inode.layout != CHUNK_BASED {
            return Err(damaged(inode.body, "a file has an unknown layout"));
        }
        let chunk = BLOCK << (inode.union & 31);
        let count = size.div_ceil(chunk);
        let start = inode
            .body
            .saturating_add(inode.xattr_len)
            .next_multiple_of(CHUNK_INDEX_LEN);
        if count > self.len / CHUNK_INDEX_LEN {
            return Err(damaged(inode.body, DAMAGED));
        }
        let mut pieces: Vec<Piece> = Vec::new();
        let map = self.read(start, count * CHUNK_INDEX_LEN)?;
        for (number, entry) in (0u64..).zip(map.as_chunks::<8>().0) {
            let (device, block) = (u16_at(entry, 2), u32_at(entry, 4));
            if block == NULL_BLOCK {
                continue;
            }
            let at = number * chunk;
            let piece = Piece {
                at,
                len: chunk.min(size - at),
                source: if device == TAR_DEVICE { tar } else { index },
                offset: u64::from(block) * BLOCK,
            };
            match pieces.last_mut() {
                Some(last)
                    if last.source == piece.source
                        && last.at + last.len == piece.at
                        && last.offset + last.len == piece.offset =>
                {
                    last.len += piece.len;
                }
                _ => pieces.push(piece),
            }
        }
        let content = match pieces.as_slice() {
            [piece] if piece.source == crate::tree::Sources::TAR && piece.len == size => {
                Content::Tar(piece.offset)
            }
            _ => Content::Pieces(pieces.into()),
        };
        Ok(File { size, content })
    }

    /// The whole tree. `sources` as in [`node`](Self::node).
    ///
    /// # Errors
    /// [`Error::Damaged`], [`Error::Io`].
    pub fn tree(&self, sources: [usize; 2]) -> Result<Tree, Error> {
        // Ids are given in depth-first order, as a builder's tree has them.
        let mut nodes: Vec<Node> = Vec::new();
        let mut known: HashMap<u64, NodeId> = HashMap::new();
        let mut stack: Vec<(Option<NodeId>, Box<[u8]>, u64)> =
            vec![(None, Box::default(), self.root)];
        while let Some((parent, name, nid)) = stack.pop() {
            let id = match known.get(&nid) {
                Some(id) => *id,
                None => {
                    let id = NodeId(u32::try_from(nodes.len()).unwrap_or(u32::MAX));
                    if nodes.len() as u64 >= self.inodes {
                        return Err(damaged(nid, "it has more inodes than it says"));
                    }
                    let inode = self.inode(nid)?;
                    nodes.push(self.node(&inode, sources)?);
                    known.insert(nid, id);
                    if inode.is_dir() {
                        let entries = self.entries(&inode)?.into_iter().rev();
                        stack.extend(entries.map(|entry| (Some(id), entry.name, entry.nid)));
                    }
                    id
                }
            };
            let Some(parent) = parent.and_then(|parent| nodes.get_mut(parent.index())) else {
                continue;
            };
            if let Kind::Dir(dir) = &mut parent.kind {
                dir.entries.insert(&name, id);
            }
        }
        Ok(Tree::from_nodes(nodes))
    }

    /// Reads `len` bytes at `offset`.
    fn read(&self, offset: u64, len: u64) -> Result<Vec<u8>, Error> {
        const WINDOW: u64 = 64 << 10;
        let end = offset
            .checked_add(len)
            .filter(|end| *end <= self.len)
            .ok_or_else(|| damaged(offset, DAMAGED))?;
        let size = |len: u64| usize::try_from(len).map_err(|_| damaged(offset, DAMAGED));
        let mut window = self.window.borrow_mut();
        let (start, bytes) = &mut *window;
        if offset < *start || end > *start + bytes.len() as u64 {
            *start = offset;
            bytes.resize(size(len.max(WINDOW).min(self.len - offset))?, 0);
            self.file
                .read_exact_at(bytes, offset)
                .map_err(|error| Error::Io("read the index", error))?;
        }
        let from = size(offset - *start)?;
        Ok(bytes
            .get(from..from + size(len)?)
            .unwrap_or_default()
            .to_vec())
    }

    fn array<const N: usize>(&self, offset: u64) -> Result<[u8; N], Error> {
        self.read(offset, N as u64)?
            .try_into()
            .map_err(|_| damaged(offset, DAMAGED))
    }
}

fn damaged(offset: u64, what: &'static str) -> Error {
    Error::Damaged { offset, what }
}

/// A little-endian number in bytes that are long enough; 0 past their end.
fn u16_at(bytes: &[u8], at: usize) -> u16 {
    bytes
        .get(at..at + 2)
        .and_then(|bytes| bytes.try_into().ok())
        .map_or(0, u16::from_le_bytes)
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    bytes
        .get(at..at + 4)
        .and_then(|bytes| bytes.try_into().ok())
        .map_or(0, u32::from_le_bytes)
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    bytes
        .get(at..at + 8)
        .and_then(|bytes| bytes.try_into().ok())
        .map_or(0, u64::from_le_bytes)
}
