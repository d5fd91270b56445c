//! A tree to the bytes of its index.

use std::fs;
use std::os::unix::fs::FileExt;

use super::Error;
use super::crc32c::crc32c;
use super::format::*;
use crate::tree::{Content, Device, Dir, File, Kind, Meta, Node, NodeId, Sources, Time, Tree};

/// [`BLOCK`] as a length in memory.
const BLOCK_LEN: usize = 512;
/// The most blocks that 32-bit block numbers reach.
const BLOCKS_MAX: u64 = u32::MAX as u64;
/// Sparse files get the smallest chunks, of 4 KiB or more, that need no more indexes than this.
const SPARSE_CHUNKS: u64 = 1 << 16;
const SPARSE_CHUNK_BITS: u8 = 3;

/// An index, ready to be written. What has a place in it is known; the bytes are made while they
/// are written, so that a large tree is in memory once.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan<'t> {
    tree: &'t Tree,
    tar_size: u64,
    epoch: Time,
    /// Superblock and device table: what comes before the inodes.
    head: Vec<u8>,
    /// Where `..` of each node leads.
    parents: Vec<NodeId>,
    /// The inode number of each node.
    numbers: Vec<u32>,
    /// Where the blocks of directories and long symlinks begin, and the copied data behind them.
    first_block: u64,
    first_copied: u64,
    /// The size of the whole index in bytes.
    size: u64,
}

/// Bytes to copy from a source into the index.
struct Copy {
    source: usize,
    from: u64,
    to: u64,
    len: u64,
}

/// Lays out the index of `tree`, whose tar has `tar_size` bytes. `uuid` is the file system's, and
/// `tag` names the tar in the device table (the kernel shows it nowhere).
///
/// # Errors
/// [`Error::TooLarge`] beyond 2 TiB of tar or of copied data.
pub fn plan<'t>(
    tree: &'t Tree,
    tar_size: u64,
    uuid: [u8; 16],
    tag: &[u8; 64],
) -> Result<Plan<'t>, Error> {
    let tar_blocks = blocks("a tar", tar_size)?;
    let mut plan = Plan {
        tree,
        tar_size,
        epoch: usual_mtime(tree),
        head: vec![0; inline(INODES)],
        parents: parents(tree),
        numbers: Vec::with_capacity(tree.len()),
        first_block: 0,
        first_copied: 0,
        size: 0,
    };
    let mut numbers = Vec::with_capacity(tree.len());
    let (mut outside, mut copied) = (0, 0u64);
    let mut end = INODES;
    for shape in plan.shapes() {
        let mut shape = shape?;
        shape.place(&mut end);
        let number = u32::try_from(shape.nid()).map_err(|_| too_large("an index", end))?;
        numbers.push(number);
        outside += shape.outside().div_ceil(BLOCK);
        copied = copied.saturating_add(shape.copied());
    }
    plan.numbers = numbers;
    plan.first_block = end.div_ceil(BLOCK);
    plan.first_copied = plan.first_block + outside;
    let all = plan.first_copied.saturating_add(copied);
    plan.size = all.saturating_mul(BLOCK);
    blocks("an index", plan.size)?;
    Super {
        root: plan.numbers.first().copied().map_or(0, u64::from),
        inodes: tree.len() as u64,
        blocks: all,
        tar_blocks,
        epoch: plan.epoch,
        uuid,
        tag,
    }
    .write(&mut plan.head);
    Ok(plan)
}

impl Plan<'_> {
    /// What each node becomes, not placed yet.
    fn shapes(&self) -> impl Iterator<Item = Result<Shape, Error>> {
        let nodes = self.tree.nodes().zip(&self.parents);
        nodes.map(|((id, node), parent)| {
            Shape::of(node, [id, *parent], self.tree, self.tar_size, self.epoch)
        })
    }

    /// Writes the index into an empty file. Holes stay holes.
    ///
    /// # Errors
    /// As pread(2) on the sources and pwrite(2) and ftruncate(2) on `out`.
    pub fn write(&self, sources: &Sources, out: &fs::File) -> Result<(), Error> {
        let mut inodes = Region::new(out, 0);
        inodes.bytes(&self.head)?;
        let mut outside = Region::new(out, self.first_block * BLOCK);
        let (mut next_block, mut next_copied) = (self.first_block, self.first_copied);
        let mut end = INODES;
        for (shape, (id, node)) in self.shapes().zip(self.tree.nodes()) {
            let mut shape = shape?;
            shape.place(&mut end);
            shape.first_block = next_block;
            next_block += shape.outside().div_ceil(BLOCK);
            if let Body::Chunks { map, .. } = &mut shape.body {
                let mut copies = Vec::new();
                map.place(&mut next_copied, &mut copies);
                for copy in copies {
                    copy.apply(sources, out)?;
                }
            }
            if let (Kind::Dir(_), Body::Bytes(bytes)) = (&node.kind, &mut shape.body) {
                number_dirents(bytes, &self.numbers);
            }
            inodes.skip_to(shape.offset)?;
            inodes.bytes(&shape.inode(node, id))?;
            if let Body::Bytes(bytes) = &shape.body {
                outside.skip_to(shape.first_block * BLOCK)?;
                outside.bytes(bytes.get(..inline(shape.outside())).unwrap_or_default())?;
            }
        }
        inodes.flush()?;
        outside.flush()?;
        out.set_len(self.size).map_err(unwritten)
    }

    /// The size of the index in bytes.
    pub fn size(&self) -> u64 {
        self.size
    }
}

fn unwritten(error: std::io::Error) -> Error {
    Error::Io("write the index", error)
}

impl Copy {
    fn apply(&self, sources: &Sources, out: &fs::File) -> Result<(), Error> {
        let mut buffer = vec![0; inline(self.len).min(128 << 10)];
        let mut done = 0;
        while done < self.len {
            let part = usize::try_from(self.len - done)
                .map_or(buffer.len(), |left| left.min(buffer.len()));
            let chunk = &mut buffer[..part];
            sources
                .read_at(self.source, self.from + done, chunk)
                .map_err(|error| Error::Io("read a file's data to copy", error))?;
            out.write_all_at(chunk, self.to + done).map_err(unwritten)?;
            done += part as u64;
        }
        Ok(())
    }
}

/// A part of the index that is written from its beginning to its end.
struct Region<'f> {
    out: &'f fs::File,
    /// Where the first byte of `buffer` goes.
    at: u64,
    buffer: Vec<u8>,
}

impl<'f> Region<'f> {
    /// What is collected before it is written, in bytes.
    const PIECE: usize = 256 << 10;

    fn new(out: &'f fs::File, at: u64) -> Self {
        Self {
            out,
            at,
            buffer: Vec::with_capacity(Self::PIECE),
        }
    }

    /// Zeros up to a byte that is less than a block away.
    fn skip_to(&mut self, offset: u64) -> Result<(), Error> {
        let len = offset.saturating_sub(self.at);
        self.buffer.resize(inline(len).max(self.buffer.len()), 0);
        self.flush_full()
    }

    fn bytes(&mut self, bytes: &[u8]) -> Result<(), Error> {
        self.buffer.extend_from_slice(bytes);
        self.flush_full()
    }

    fn flush_full(&mut self) -> Result<(), Error> {
        match self.buffer.len() >= Self::PIECE {
            true => self.flush(),
            false => Ok(()),
        }
    }

    fn flush(&mut self) -> Result<(), Error> {
        self.out
            .write_all_at(&self.buffer, self.at)
            .map_err(unwritten)?;
        self.at += self.buffer.len() as u64;
        self.buffer.clear();
        Ok(())
    }
}

/// What an inode becomes on disk.
struct Shape {
    extended: bool,
    /// The attributes as they stand after the inode, header included.
    xattrs: Vec<u8>,
    body: Body,
    /// How many bytes at the end of `body` stand right after inode and attributes.
    inline_tail: u64,
    /// Where the inode begins.
    offset: u64,
    first_block: u64,
}

/// What follows an inode.
enum Body {
    Nothing,
    /// A directory's entries (their inode numbers filled in later) or a symlink's target.
    Bytes(Vec<u8>),
    /// A regular file.
    Chunks {
        bits: u8,
        map: ChunkMap,
    },
}

impl Shape {
    /// `dots`: where `.` and `..` lead, if it is a directory.
    fn of(
        node: &Node,
        dots: [NodeId; 2],
        tree: &Tree,
        tar_size: u64,
        epoch: Time,
    ) -> Result<Self, Error> {
        let body = match &node.kind {
            Kind::Dir(dir) => Body::Bytes(dirents(dir, dots, tree)),
            Kind::Symlink(target) => Body::Bytes(target.to_vec()),
            Kind::File(file) if file.size > 0 => {
                let (bits, map) = chunks(file, tar_size)?;
                Body::Chunks { bits, map }
            }
            _ => Body::Nothing,
        };
        let opaque = matches!(&node.kind, Kind::Dir(dir) if dir.opaque);
        let size = match &node.kind {
            Kind::File(file) => file.size,
            _ => 0,
        };
        let Meta {
            uid, gid, mtime, ..
        } = node.meta;
        let compact = mtime == epoch
            && uid <= 0xffff
            && gid <= 0xffff
            && node.links <= 0xffff
            && u32::try_from(size).is_ok();
        Ok(Self {
            extended: !compact,
            xattrs: xattrs(&node.meta, opaque)?,
            body,
            inline_tail: 0,
            offset: 0,
            first_block: 0,
        })
    }

    fn inode_len(&self) -> u64 {
        if self.extended {
            EXTENDED_LEN
        } else {
            COMPACT_LEN
        }
    }

    /// Inode and attributes.
    fn fixed_len(&self) -> u64 {
        self.inode_len() + self.xattrs.len() as u64
    }

    fn nid(&self) -> u64 {
        self.offset / SLOT
    }

    /// Gives the inode its place at or after `end`, and moves `end` behind it.
    fn place(&mut self, end: &mut u64) {
        self.offset = end.next_multiple_of(SLOT);
        let fixed = self.fixed_len();
        let tail = match &self.body {
            Body::Bytes(bytes) => bytes.len() as u64 % BLOCK,
            Body::Chunks { map, .. } => {
                *end = self.chunk_indexes() + map.chunks.len() as u64 * CHUNK_INDEX_LEN;
                return;
            }
            Body::Nothing => 0,
        };
        // A tail must lie within one block; the inode may move a little to make that so, but not
        // further than the tail is long.
        let fits = |offset: u64| (offset + fixed) % BLOCK + tail <= BLOCK;
        let place = (0..BLOCK / SLOT)
            .map(|step| self.offset + step * SLOT)
            .take_while(|offset| offset - self.offset <= tail)
            .find(|&offset| fits(offset));
        if let (true, Some(place)) = (tail > 0, place) {
            self.offset = place;
            self.inline_tail = tail;
        }
        *end = self.offset + fixed + self.inline_tail;
    }

    /// How many bytes stand in blocks of their own.
    fn outside(&self) -> u64 {
        match &self.body {
            Body::Bytes(bytes) => bytes.len() as u64 - self.inline_tail,
            _ => 0,
        }
    }

    /// How many blocks of data are copied.
    fn copied(&self) -> u64 {
        match &self.body {
            Body::Chunks { map, .. } => map.copied.iter().map(|chunk| chunk.blocks).sum(),
            _ => 0,
        }
    }

    /// The inode and what stands right behind it: attributes, chunk indexes, a tail.
    fn inode(&self, node: &Node, id: NodeId) -> Vec<u8> {
        let (layout, size, union) = match &self.body {
            Body::Nothing => (FLAT_PLAIN, 0, device_number(&node.kind)),
            Body::Bytes(bytes) => {
                let layout = if self.inline_tail > 0 {
                    FLAT_INLINE
                } else {
                    FLAT_PLAIN
                };
                (layout, bytes.len() as u64, block_number(self.first_block))
            }
            Body::Chunks { bits, map } => (
                CHUNK_BASED,
                map.size,
                u32::from(u16::from(*bits) | CHUNK_INDEXES),
            ),
        };
        let Meta {
            mode,
            uid,
            gid,
            mtime,
            ..
        } = node.meta;
        let format = (layout << 1) | if self.extended { EXTENDED } else { 0 };
        let xattr_count = match self.xattrs.len() as u64 {
            0 => 0,
            // 4-byte units, of which the header counts as one.
            len => u16::try_from((len - XATTR_HEADER_LEN) / 4 + 1).unwrap_or(u16::MAX),
        };
        let behind = match &self.body {
            Body::Chunks { map, .. } => {
                self.chunk_indexes() - self.offset - self.fixed_len()
                    + map.chunks.len() as u64 * CHUNK_INDEX_LEN
            }
            _ => self.inline_tail,
        };
        let mut bytes = vec![0; inline(self.fixed_len() + behind)];
        let mut out = Out::at(&mut bytes, 0);
        out.u16(format);
        out.u16(xattr_count);
        out.u16(mode | format_bits(&node.kind));
        if self.extended {
            out.u16(0);
            out.u64(size);
            out.u32(union);
            out.u32(id.0 + 1);
            out.u32(uid);
            out.u32(gid);
            out.u64(mtime.seconds.cast_unsigned());
            out.u32(mtime.nanoseconds);
            out.u32(node.links);
            out.bytes(&[0; 16]);
        } else {
            // That these fit was checked when the shape was chosen.
            let short = |value: u32| u16::try_from(value).unwrap_or(u16::MAX);
            out.u16(short(node.links));
            out.u32(u32::try_from(size).unwrap_or(u32::MAX));
            out.u32(0);
            out.u32(union);
            out.u32(id.0 + 1);
            out.u16(short(uid));
            out.u16(short(gid));
            out.u32(0);
        }
        out.bytes(&self.xattrs);
        match &self.body {
            Body::Nothing => {}
            Body::Bytes(body) => {
                out.bytes(body.get(inline(self.outside())..).unwrap_or_default());
            }
            Body::Chunks { map, .. } => {
                let mut out = Out::at(&mut bytes, self.chunk_indexes() - self.offset);
                for (device, block) in &map.chunks {
                    out.u16(0);
                    out.u16(*device);
                    out.u32(*block);
                }
            }
        }
        bytes
    }

    /// Where a regular file's chunk indexes begin.
    fn chunk_indexes(&self) -> u64 {
        (self.offset + self.fixed_len()).next_multiple_of(CHUNK_INDEX_LEN)
    }
}

fn inline(len: u64) -> usize {
    usize::try_from(len).unwrap_or(0)
}

/// A regular file's chunks.
struct ChunkMap {
    size: u64,
    /// Device and first block of each.
    chunks: Vec<(u16, u32)>,
    /// Copied data: for the chunks that are not holes, in order.
    copied: Vec<CopiedChunk>,
}

/// A chunk to be copied into the index.
struct CopiedChunk {
    /// Which of the file's chunks.
    number: usize,
    /// How many blocks it takes.
    blocks: u64,
    /// What to copy; `to` is relative to the chunk.
    copies: Vec<Copy>,
}

impl ChunkMap {
    /// Gives copied chunks their blocks.
    fn place(&mut self, next_block: &mut u64, copies: &mut Vec<Copy>) {
        for chunk in self.copied.drain(..) {
            if let Some(slot) = self.chunks.get_mut(chunk.number) {
                *slot = (0, block_number(*next_block));
            }
            let base = *next_block * BLOCK;
            copies.extend(chunk.copies.into_iter().map(|copy| Copy {
                to: base + copy.to,
                ..copy
            }));
            *next_block += chunk.blocks;
        }
    }
}

/// How a file's data are mapped: log2 of the chunk size in blocks, and the chunks.
fn chunks(file: &File, tar_size: u64) -> Result<(u8, ChunkMap), Error> {
    let size_blocks = file.size.div_ceil(BLOCK);
    let mut map = ChunkMap {
        size: file.size,
        chunks: Vec::new(),
        copied: Vec::new(),
    };
    // The kernel reads whole blocks, so the last one must be there whole.
    if let Content::Tar(offset) = file.content
        && offset % BLOCK == 0
        && offset
            .checked_add(size_blocks * BLOCK)
            .is_some_and(|end| end <= tar_size)
    {
        let bits = bits_for(size_blocks, 1, 0);
        let mut block = offset / BLOCK;
        let end = block + size_blocks;
        while block < end {
            map.chunks.push((TAR_DEVICE, block_number(block)));
            block += 1 << bits;
        }
        return Ok((bits, map));
    }
    let sparse = match file.content {
        Content::Tar(_) => 1,
        Content::Pieces(_) => SPARSE_CHUNKS,
    };
    let bits = bits_for(size_blocks, sparse, SPARSE_CHUNK_BITS);
    let chunk = BLOCK << bits;
    let count = file.size.div_ceil(chunk);
    if count > SPARSE_CHUNKS {
        return Err(Error::TooLarge {
            what: "a file",
            size: file.size,
            limit: SPARSE_CHUNKS * chunk,
        });
    }
    map.chunks = vec![(0, NULL_BLOCK); usize::try_from(count).unwrap_or(0)];
    for piece in file.pieces() {
        let mut done = 0;
        while done < piece.len {
            let at = piece.at + done;
            let (number, within) = (at / chunk, at % chunk);
            let len = (piece.len - done).min(chunk - within);
            let number = usize::try_from(number).unwrap_or(usize::MAX);
            if map.copied.last().is_none_or(|last| last.number != number) {
                let left = file.size - number as u64 * chunk;
                map.copied.push(CopiedChunk {
                    number,
                    blocks: left.min(chunk).div_ceil(BLOCK),
                    copies: Vec::new(),
                });
            }
            if let Some(last) = map.copied.last_mut() {
                last.copies.push(Copy {
                    source: piece.source,
                    from: piece.offset + done,
                    to: within,
                    len,
                });
            }
            done += len;
        }
    }
    let copied: u64 = map.copied.iter().map(|chunk| chunk.blocks).sum();
    blocks("copied data", copied.saturating_mul(BLOCK))?;
    Ok((bits, map))
}

/// The smallest chunk size, in bits above a block, with which `blocks` need at most `most` chunks.
fn bits_for(blocks: u64, most: u64, least: u8) -> u8 {
    (least..CHUNK_BITS_MAX)
        .find(|bits| blocks.div_ceil(1 << bits) <= most)
        .unwrap_or(CHUNK_BITS_MAX)
}

fn too_large(what: &'static str, size: u64) -> Error {
    Error::TooLarge {
        what,
        size,
        limit: BLOCKS_MAX * BLOCK,
    }
}

/// How many blocks `size` bytes take, if they can be addressed.
fn blocks(what: &'static str, size: u64) -> Result<u64, Error> {
    let blocks = size.div_ceil(BLOCK);
    if blocks > BLOCKS_MAX {
        return Err(too_large(what, size));
    }
    Ok(blocks)
}

/// A block number as it is stored; that it fits was checked by [`blocks`].
fn block_number(block: u64) -> u32 {
    u32::try_from(block).unwrap_or(NULL_BLOCK)
}

/// The most frequent modification time, the earliest of equals: inodes that have it may be compact.
fn usual_mtime(tree: &Tree) -> Time {
    let mut times: Vec<Time> = tree.nodes().map(|(_, node)| node.meta.mtime).collect();
    times.sort_unstable();
    let runs = times.chunk_by(|a, b| a == b);
    // Of equals this finds the last, so they are gone through from the end.
    let longest = runs.rev().max_by_key(|run| run.len());
    longest
        .and_then(|run| run.first().copied())
        .unwrap_or_default()
}

fn file_type(kind: &Kind) -> u8 {
    match kind {
        Kind::Dir(_) => FT_DIR,
        Kind::File(_) => FT_REG,
        Kind::Symlink(_) => FT_SYMLINK,
        Kind::CharDevice(_) | Kind::Whiteout => FT_CHR,
        Kind::BlockDevice(_) => FT_BLK,
        Kind::Fifo => FT_FIFO,
        Kind::Socket => FT_SOCK,
    }
}

fn format_bits(kind: &Kind) -> u16 {
    match kind {
        Kind::Dir(_) => S_IFDIR,
        Kind::File(_) => S_IFREG,
        Kind::Symlink(_) => S_IFLNK,
        Kind::CharDevice(_) | Kind::Whiteout => S_IFCHR,
        Kind::BlockDevice(_) => S_IFBLK,
        Kind::Fifo => S_IFIFO,
        Kind::Socket => S_IFSOCK,
    }
}

/// `new_encode_dev` of the kernel; 0 for what is no device.
fn device_number(kind: &Kind) -> u32 {
    match kind {
        Kind::CharDevice(Device { major, minor }) | Kind::BlockDevice(Device { major, minor }) => {
            (minor & 0xff) | (major << 8) | ((minor & !0xff) << 12)
        }
        _ => 0,
    }
}

/// Where `..` of each node leads; of what is no directory it means nothing.
fn parents(tree: &Tree) -> Vec<NodeId> {
    let mut parents = vec![NodeId::ROOT; tree.len()];
    for (id, node) in tree.nodes() {
        if let Kind::Dir(dir) = &node.kind {
            for (_, child) in dir.entries.iter() {
                if let Some(parent) = parents.get_mut(child.index()) {
                    *parent = id;
                }
            }
        }
    }
    parents
}

/// A directory's data: per block, 12-byte entries, then their names; all in byte order, `.` and
/// `..` among them. Where inode numbers belong stand node ids, until [`number_dirents`].
fn dirents(dir: &Dir, [this, parent]: [NodeId; 2], tree: &Tree) -> Vec<u8> {
    let mut names: Vec<(&[u8], NodeId, u8)> = dir
        .entries
        .iter()
        .map(|(name, id)| (name, id, file_type(&tree.node(id).kind)))
        .collect();
    for (dots, id) in [(&b"."[..], this), (b"..", parent)] {
        let place = names.partition_point(|(name, ..)| *name < dots);
        names.insert(place, (dots, id, FT_DIR));
    }
    let mut data = Vec::new();
    let mut rest = &names[..];
    while !rest.is_empty() {
        let mut used = 0;
        let count = rest
            .iter()
            .take_while(|(name, ..)| {
                used += DIRENT_LEN + name.len();
                used <= BLOCK_LEN
            })
            .count();
        let (now, later) = rest.split_at(count);
        let mut name_offset = count * DIRENT_LEN;
        for (name, id, file_type) in now {
            data.extend(u64::from(id.0).to_le_bytes());
            data.extend(short(name_offset).to_le_bytes());
            data.extend([*file_type, 0]);
            name_offset += name.len();
        }
        for (name, ..) in now {
            data.extend_from_slice(name);
        }
        if !later.is_empty() {
            data.resize(data.len().next_multiple_of(BLOCK_LEN), 0);
        }
        rest = later;
    }
    data
}

/// Replaces node ids by inode numbers.
fn number_dirents(data: &mut [u8], numbers: &[u32]) {
    for block in data.chunks_mut(BLOCK_LEN) {
        let names_begin = block
            .get(8..10)
            .and_then(|bytes| bytes.try_into().ok())
            .map_or(0, u16::from_le_bytes);
        let (entries, _) = block.split_at_mut(usize::from(names_begin).min(block.len()));
        for entry in entries.as_chunks_mut::<DIRENT_LEN>().0 {
            if let Some(number) = entry.first_chunk_mut::<8>() {
                let id = usize::try_from(u64::from_le_bytes(*number)).unwrap_or(usize::MAX);
                *number = numbers
                    .get(id)
                    .map_or(0, |nid| u64::from(*nid))
                    .to_le_bytes();
            }
        }
    }
}

/// A number of at most 65535, checked before.
fn short(value: usize) -> u16 {
    u16::try_from(value).unwrap_or(u16::MAX)
}

/// The attributes as they follow an inode: a header without shared ones, then entries of name
/// length, prefix number, value size, rest of the name, value, each padded to 4 bytes.
fn xattrs(meta: &Meta, opaque: bool) -> Result<Vec<u8>, Error> {
    let mut out = Vec::new();
    let opaque = opaque.then_some(OPAQUE);
    for (name, value) in meta.xattrs().chain(opaque) {
        let Some((index, rest)) = XATTR_PREFIXES
            .iter()
            .find_map(|(index, prefix)| Some((*index, name.strip_prefix(*prefix)?)))
        else {
            // The tree holds no others.
            continue;
        };
        if out.is_empty() {
            out.resize(inline(XATTR_HEADER_LEN), 0);
        }
        out.push(u8::try_from(rest.len()).unwrap_or(u8::MAX));
        out.push(index);
        out.extend(short(value.len()).to_le_bytes());
        out.extend_from_slice(rest);
        out.extend_from_slice(value);
        out.resize(out.len().next_multiple_of(4), 0);
    }
    // The count of 4-byte units has 16 bits.
    let limit = XATTR_HEADER_LEN + 4 * (u64::from(u16::MAX) - 1);
    if out.len() as u64 > limit {
        return Err(Error::TooLarge {
            what: "one file's extended attributes",
            size: out.len() as u64,
            limit,
        });
    }
    Ok(out)
}

/// What the superblock and the device slot after it say.
struct Super<'a> {
    root: u64,
    inodes: u64,
    blocks: u64,
    tar_blocks: u64,
    epoch: Time,
    uuid: [u8; 16],
    tag: &'a [u8; 64],
}

impl Super<'_> {
    fn write(&self, head: &mut [u8]) {
        let mut out = Out::at(head, SUPER_OFFSET);
        out.u32(MAGIC);
        out.u32(0); // the checksum, below
        out.u32(COMPAT);
        out.bytes(&[BLOCK_BITS, 0]);
        out.u16(u16::try_from(self.root).unwrap_or(0));
        out.u64(self.inodes);
        out.u64(self.epoch.seconds.cast_unsigned());
        out.u32(self.epoch.nanoseconds);
        out.u32(block_number(self.blocks));
        out.u32(0); // inode numbers count from byte 0
        out.u32(0); // no shared attributes
        out.bytes(&self.uuid);
        out.bytes(&[0; 16]); // no volume name
        out.u32(INCOMPAT);
        out.u16(0); // no compression
        out.u16(1); // extra devices
        out.u16(DEVICE_SLOT);
        let mut out = Out::at(head, u64::from(DEVICE_SLOT) * DEVICE_SLOT_LEN);
        out.bytes(self.tag);
        out.u32(block_number(self.tar_blocks));
        let start = inline(SUPER_OFFSET);
        if let Some(block) = head.get_mut(start..start + BLOCK_LEN) {
            let sum = crc32c(CHECKSUM_SEED, block.get(8..).unwrap_or_default());
            Out::at(block, 4).u32(sum);
        }
    }
}

/// Writes little-endian numbers one after the other.
struct Out<'a> {
    rest: &'a mut [u8],
}

impl<'a> Out<'a> {
    /// From byte `offset` of `buffer`, which the layout made large enough.
    fn at(buffer: &'a mut [u8], offset: u64) -> Self {
        let offset = inline(offset).min(buffer.len());
        Self {
            rest: buffer.split_at_mut(offset).1,
        }
    }

    fn bytes(&mut self, bytes: &[u8]) {
        let rest = std::mem::take(&mut self.rest);
        let (now, later) = rest.split_at_mut(bytes.len().min(rest.len()));
        now.copy_from_slice(bytes.get(..now.len()).unwrap_or_default());
        self.rest = later;
    }

    fn u16(&mut self, value: u16) {
        self.bytes(&value.to_le_bytes());
    }

    fn u32(&mut self, value: u32) {
        self.bytes(&value.to_le_bytes());
    }

    fn u64(&mut self, value: u64) {
        self.bytes(&value.to_le_bytes());
    }
}
