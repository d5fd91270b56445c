//! Numbers of the on-disk format (`fs/erofs/erofs_fs.h`).

/// log2 of the block size.
pub(super) const BLOCK_BITS: u8 = 9;
/// The block size in bytes.
pub(super) const BLOCK: u64 = 512;
/// Inodes begin at multiples of this, and their number is their offset divided by it.
pub(super) const SLOT: u64 = 32;

pub(super) const SUPER_OFFSET: u64 = 1024;
pub(super) const MAGIC: u32 = 0xe0f5_e1e2;
/// The checksum of the magic and a checksum field of 0: where the kernel starts.
pub(super) const CHECKSUM_SEED: u32 = 0x5045_b54a;
/// `SB_CHKSUM | MTIME`.
pub(super) const COMPAT: u32 = 0x3;
/// `CHUNKED_FILE | DEVICE_TABLE`.
pub(super) const INCOMPAT: u32 = 0xc;
/// The device table's offset in slots of 128 bytes: right after the superblock.
pub(super) const DEVICE_SLOT: u16 = 9;
pub(super) const DEVICE_SLOT_LEN: u64 = 128;
/// Where inodes begin: the first block after the superblock's. The root's number is 48.
pub(super) const INODES: u64 = 1536;

pub(super) const COMPACT_LEN: u64 = 32;
pub(super) const EXTENDED_LEN: u64 = 64;
/// Bit 0 of `i_format`.
pub(super) const EXTENDED: u16 = 1;
/// Data layouts, in bits 1 to 3 of `i_format`.
pub(super) const FLAT_PLAIN: u16 = 0;
pub(super) const FLAT_INLINE: u16 = 2;
pub(super) const CHUNK_BASED: u16 = 4;

/// In the chunk format: 8-byte chunk indexes; the low five bits are log2(chunk size / block size).
pub(super) const CHUNK_INDEXES: u16 = 0x20;
pub(super) const CHUNK_BITS_MAX: u8 = 31;
pub(super) const CHUNK_INDEX_LEN: u64 = 8;
/// A hole.
pub(super) const NULL_BLOCK: u32 = u32::MAX;
/// The device id of the tar.
pub(super) const TAR_DEVICE: u16 = 1;

pub(super) const XATTR_HEADER_LEN: u64 = 12;
pub(super) const DIRENT_LEN: usize = 12;

/// Attribute name prefixes and their numbers; the first that fits, fits.
pub(super) const XATTR_PREFIXES: [(u8, &[u8]); 5] = [
    (1, b"user."),
    (2, b"system.posix_acl_access"),
    (3, b"system.posix_acl_default"),
    (4, b"trusted."),
    (6, b"security."),
];

/// What overlayfs takes for "hides everything below" (Documentation/filesystems/overlayfs.rst).
pub(super) const OPAQUE: (&[u8], &[u8]) = (b"trusted.overlay.opaque", b"y");

/// File types of directory entries: `FT_*` of `include/linux/fs_types.h`.
pub(super) const FT_REG: u8 = 1;
pub(super) const FT_DIR: u8 = 2;
pub(super) const FT_CHR: u8 = 3;
pub(super) const FT_BLK: u8 = 4;
pub(super) const FT_FIFO: u8 = 5;
pub(super) const FT_SOCK: u8 = 6;
pub(super) const FT_SYMLINK: u8 = 7;

/// `S_IF*` of inode(7).
pub(super) const S_IFMT: u16 = 0o170_000;
pub(super) const S_IFSOCK: u16 = 0o140_000;
pub(super) const S_IFLNK: u16 = 0o120_000;
pub(super) const S_IFREG: u16 = 0o100_000;
pub(super) const S_IFBLK: u16 = 0o060_000;
pub(super) const S_IFDIR: u16 = 0o040_000;
pub(super) const S_IFCHR: u16 = 0o020_000;
pub(super) const S_IFIFO: u16 = 0o010_000;
