//! One 512-byte header block.

use std::ops::Range;

use super::{Reason, Segment};

const NAME: Range<usize> = 0..100;
const MODE: Range<usize> = 100..108;
const UID: Range<usize> = 108..116;
const GID: Range<usize> = 116..124;
const SIZE: Range<usize> = 124..136;
const MTIME: Range<usize> = 136..148;
const CHECKSUM: Range<usize> = 148..156;
const TYPE: usize = 156;
const LINK: Range<usize> = 157..257;
const MAGIC: Range<usize> = 257..265;
const OWNER: Range<usize> = 265..297;
const GROUP: Range<usize> = 297..329;
const MAJOR: Range<usize> = 329..337;
const MINOR: Range<usize> = 337..345;
const PREFIX: Range<usize> = 345..500;
const STAR_PREFIX: Range<usize> = 345..476;
const STAR_MAGIC: Range<usize> = 508..512;
const GNU_ATIME: Range<usize> = 345..357;
const GNU_CTIME: Range<usize> = 357..369;
const GNU_SPARSE: Range<usize> = 386..482;
const GNU_EXTENDED: usize = 482;
const GNU_REAL_SIZE: Range<usize> = 483..495;
const EXTENSION_SPARSE: Range<usize> = 0..504;
const EXTENSION_EXTENDED: usize = 504;

/// Which dialect a header is in (Go's `block.getFormat`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Format {
    V7,
    Ustar,
    Star,
    Gnu,
}

/// A header block whose checksum is right.
#[derive(Debug, Clone, Copy)]
pub(super) struct Header<'a> {
    block: &'a [u8],
    pub(super) format: Format,
}

impl<'a> Header<'a> {
    /// Checks a block of 512 bytes that are not all zeros.
    pub(super) fn parse(block: &'a [u8]) -> Result<Self, Reason> {
        let field = |range: Range<usize>| block.get(range).unwrap_or_default();
        let stored = octal(field(CHECKSUM)).ok_or(Reason::Checksum)?;
        // The sum of all bytes, the checksum's own taken as spaces. Old programs added them as
        // signed numbers; both are accepted.
        let (mut unsigned, mut signed) = (0i64, 0i64);
        for (at, &byte) in block.iter().enumerate() {
            let byte = if CHECKSUM.contains(&at) { b' ' } else { byte };
            unsigned = unsigned.saturating_add(i64::from(byte));
            signed = signed.saturating_add(i64::from(byte.cast_signed()));
        }
        if stored != unsigned && stored != signed {
            return Err(Reason::Checksum);
        }
        let format = match field(MAGIC) {
            b"ustar  \0" => Format::Gnu,
            magic if magic.starts_with(b"ustar\0") => {
                if field(STAR_MAGIC) == b"tar\0" {
                    Format::Star
                } else {
                    Format::Ustar
                }
            }
            _ => Format::V7,
        };
        Ok(Self { block, format })
    }

    fn field(&self, range: Range<usize>) -> &'a [u8] {
        self.block.get(range).unwrap_or_default()
    }

    pub(super) fn type_flag(&self) -> u8 {
        self.block.get(TYPE).copied().unwrap_or(0)
    }

    pub(super) fn mode(&self) -> Result<i64, Reason> {
        number(self.field(MODE)).ok_or(Reason::Number("mode"))
    }

    pub(super) fn uid(&self) -> Result<i64, Reason> {
        number(self.field(UID)).ok_or(Reason::Number("uid"))
    }

    pub(super) fn gid(&self) -> Result<i64, Reason> {
        number(self.field(GID)).ok_or(Reason::Number("gid"))
    }

    /// The header's own idea of the size; a PAX record may know better.
    pub(super) fn size(&self) -> Result<u64, Reason> {
        number(self.field(SIZE))
            .and_then(|size| u64::try_from(size).ok())
            .ok_or(Reason::Number("size"))
    }

    pub(super) fn mtime(&self) -> Result<i64, Reason> {
        number(self.field(MTIME)).ok_or(Reason::Number("modification time"))
    }

    pub(super) fn device(&self) -> Result<(i64, i64), Reason> {
        if self.format == Format::V7 {
            return Ok((0, 0));
        }
        let part = |range| number(self.field(range)).ok_or(Reason::Number("device number"));
        Ok((part(MAJOR)?, part(MINOR)?))
    }

    pub(super) fn link(&self) -> Vec<u8> {
        text(self.field(LINK)).to_vec()
    }

    pub(super) fn owner(&self) -> Vec<u8> {
        self.named(OWNER)
    }

    pub(super) fn group(&self) -> Vec<u8> {
        self.named(GROUP)
    }

    fn named(&self, range: Range<usize>) -> Vec<u8> {
        match self.format {
            Format::V7 => Vec::new(),
            _ => text(self.field(range)).to_vec(),
        }
    }

    /// The name with the dialect's prefix in front.
    pub(super) fn path(&self) -> Vec<u8> {
        let prefix = match self.format {
            Format::V7 => &[][..],
            Format::Ustar => text(self.field(PREFIX)),
            Format::Star => text(self.field(STAR_PREFIX)),
            // Go before 1.8 wrote GNU headers with a ustar prefix where GNU has times.
            Format::Gnu if self.has_gnu_times() => &[],
            Format::Gnu => Some(text(self.field(PREFIX)))
                .filter(|prefix| prefix.is_ascii())
                .unwrap_or_default(),
        };
        let name = text(self.field(NAME));
        if prefix.is_empty() {
            name.to_vec()
        } else {
            [prefix, b"/", name].concat()
        }
    }

    fn has_gnu_times(&self) -> bool {
        [GNU_ATIME, GNU_CTIME].into_iter().all(|range| {
            let field = self.field(range);
            field.first() == Some(&0) || number(field).is_some()
        })
    }

    /// The four map entries of a GNU `S` header, whether extension blocks follow, and the size of
    /// the whole file.
    pub(super) fn gnu_sparse(&self) -> Result<(Vec<Segment>, bool, u64), Reason> {
        let real_size = number(self.field(GNU_REAL_SIZE))
            .and_then(|size| u64::try_from(size).ok())
            .ok_or(Reason::Number("real size"))?;
        let extended = self.block.get(GNU_EXTENDED).is_some_and(|&byte| byte > 0);
        Ok((segments(self.field(GNU_SPARSE))?, extended, real_size))
    }
}

/// The 21 map entries of a GNU sparse extension block, and whether another one follows.
pub(super) fn gnu_sparse_extension(block: &[u8]) -> Result<(Vec<Segment>, bool), Reason> {
    let extended = block.get(EXTENSION_EXTENDED).is_some_and(|&byte| byte > 0);
    let entries = block.get(EXTENSION_SPARSE).unwrap_or_default();
    Ok((segments(entries)?, extended))
}

/// Pairs of 12-byte numbers; the first empty pair ends the list.
fn segments(entries: &[u8]) -> Result<Vec<Segment>, Reason> {
    let mut segments = Vec::new();
    for entry in entries.as_chunks::<24>().0 {
        if entry.first() == Some(&0) {
            break;
        }
        let (offset, len) = entry.split_at(12);
        let part = |field| {
            number(field)
                .and_then(|value| u64::try_from(value).ok())
                .ok_or(Reason::Sparse)
        };
        segments.push(Segment {
            offset: part(offset)?,
            len: part(len)?,
        });
    }
    Ok(segments)
}

/// A field up to its first NUL.
pub(super) fn text(field: &[u8]) -> &[u8] {
    field.split(|&byte| byte == 0).next().unwrap_or_default()
}

/// A number field: base 256 where the highest bit is set (two's complement, GNU), else octal.
pub(super) fn number(field: &[u8]) -> Option<i64> {
    let Some((&first, rest)) = field.split_first().filter(|(first, _)| **first & 0x80 != 0) else {
        return octal(field);
    };
    // A negative number's bits are inverted, so that what is added up is never negative.
    let invert = if first & 0x40 != 0 { 0xff } else { 0 };
    let mut value = i64::from((first ^ invert) & 0x7f);
    for &byte in rest {
        value = value.checked_mul(256)? | i64::from(byte ^ invert);
    }
    Some(if invert == 0 { value } else { !value })
}

/// Octal digits between spaces and NULs; nothing is 0.
fn octal(field: &[u8]) -> Option<i64> {
    let blank = |byte: &u8| matches!(byte, b' ' | 0);
    let start = field.iter().position(|byte| !blank(byte));
    let end = field.iter().rposition(|byte| !blank(byte));
    let (Some(start), Some(end)) = (start, end) else {
        return Some(0);
    };
    let digits = text(field.get(start..=end)?);
    digits.iter().try_fold(0i64, |value, &digit| match digit {
        b'0'..=b'7' => Some(value.checked_mul(8)? | i64::from(digit & 7)),
        _ => None,
    })
}
