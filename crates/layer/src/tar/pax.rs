//! PAX extended headers: `length key=value\n` records.

use super::{Reason, Segment};
use crate::tree::{Time, Xattrs};

/// What the records of one `x` header say about the next file. An empty value means: as if it were
/// not there.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Pax {
    pub(super) path: Option<Vec<u8>>,
    pub(super) link: Option<Vec<u8>>,
    pub(super) owner: Option<Vec<u8>>,
    pub(super) group: Option<Vec<u8>>,
    pub(super) size: Option<u64>,
    pub(super) uid: Option<i64>,
    pub(super) gid: Option<i64>,
    pub(super) mtime: Option<Time>,
    pub(super) xattrs: Xattrs,
    pub(super) sparse: SparseRecords,
}

/// The `GNU.sparse.*` records.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct SparseRecords {
    pub(super) major: Option<Vec<u8>>,
    pub(super) minor: Option<Vec<u8>>,
    pub(super) name: Option<Vec<u8>>,
    /// `GNU.sparse.size` (0.x) or `GNU.sparse.realsize` (1.0).
    pub(super) real_size: Option<u64>,
    /// From `GNU.sparse.map` (0.1), or from alternating offset and numbytes records (0.0).
    pub(super) map: Vec<u64>,
}

impl Pax {
    /// Reads a whole header's records. `most_segments` bounds the sparse map.
    pub(super) fn parse(mut bytes: &[u8], most_segments: usize) -> Result<Self, Reason> {
        let mut pax = Self::default();
        let mut libarchive = Xattrs::new();
        while !bytes.is_empty() {
            let (key, value, rest) = record(bytes).ok_or(Reason::Pax)?;
            bytes = rest;
            pax.take(key, value, &mut libarchive)?;
            if pax.sparse.map.len().div_ceil(2) > most_segments {
                return Err(Reason::TooLarge {
                    what: "sparse map",
                    limit: most_segments,
                });
            }
        }
        // bsdtar writes both kinds with the same content; SCHILY's needs no decoding.
        for (name, value) in libarchive {
            pax.xattrs.entry(name).or_insert(value);
        }
        Ok(pax)
    }

    fn take(&mut self, key: &[u8], value: &[u8], libarchive: &mut Xattrs) -> Result<(), Reason> {
        let text = || Some(value.to_vec()).filter(|value| !value.is_empty());
        let count = || {
            text()
                .map(|_| decimal(value).and_then(|value| u64::try_from(value).ok()))
                .map(|count| count.ok_or(Reason::Pax))
                .transpose()
        };
        let id = || {
            text()
                .map(|_| decimal(value).ok_or(Reason::Pax))
                .transpose()
        };
        let named = matches!(key, b"path" | b"linkpath" | b"uname" | b"gname");
        if key.is_empty() || (if named { value } else { key }).contains(&0) {
            return Err(Reason::Pax);
        }
        match key {
            b"path" => self.path = text(),
            b"linkpath" => self.link = text(),
            b"uname" => self.owner = text(),
            b"gname" => self.group = text(),
            b"size" => self.size = count()?,
            b"uid" => self.uid = id()?,
            b"gid" => self.gid = id()?,
            b"mtime" => {
                self.mtime = text().map(|_| time(value).ok_or(Reason::Pax)).transpose()?;
            }
            b"GNU.sparse.major" => self.sparse.major = text(),
            b"GNU.sparse.minor" => self.sparse.minor = text(),
            b"GNU.sparse.name" => self.sparse.name = text(),
            b"GNU.sparse.size" | b"GNU.sparse.realsize" => self.sparse.real_size = count()?,
            b"GNU.sparse.map" => {
                self.sparse.map.clear();
                for number in value
                    .split(|&byte| byte == b',')
                    .filter(|_| !value.is_empty())
                {
                    self.sparse
                        .map
                        .push(unsigned(number).ok_or(Reason::Sparse)?);
                }
            }
            // Offset and length in turn (0.0): what is at odds with the turn is malformed.
            b"GNU.sparse.offset" | b"GNU.sparse.numbytes" => {
                let is_offset = key == b"GNU.sparse.offset";
                if is_offset != self.sparse.map.len().is_multiple_of(2) {
                    return Err(Reason::Sparse);
                }
                self.sparse.map.push(unsigned(value).ok_or(Reason::Sparse)?);
            }
            _ => {
                if let Some(name) = key.strip_prefix(b"SCHILY.xattr.") {
                    let name = unescape(name, b"=%");
                    self.xattrs.insert(name.into(), value.into());
                } else if let Some(name) = key.strip_prefix(b"LIBARCHIVE.xattr.") {
                    let value = base64(value).ok_or(Reason::Pax)?;
                    libarchive.insert(unescape(name, &[]).into(), value.into());
                }
            }
        }
        Ok(())
    }
}

impl SparseRecords {
    /// The 0.x map as segments.
    pub(super) fn segments(&self) -> Result<Vec<Segment>, Reason> {
        let (pairs, rest) = self.map.as_chunks::<2>();
        if !rest.is_empty() {
            return Err(Reason::Sparse);
        }
        Ok(pairs
            .iter()
            .map(|&[offset, len]| Segment { offset, len })
            .collect())
    }
}

/// Splits `"%d %s=%s\n"` off the front: key, value, rest. The number counts the whole record.
fn record(bytes: &[u8]) -> Option<(&[u8], &[u8], &[u8])> {
    let space = bytes.iter().position(|&byte| byte == b' ')?;
    let (digits, _) = bytes.split_at_checked(space)?;
    let len = usize::try_from(unsigned(digits)?).ok()?;
    let (record, rest) = bytes.split_at_checked(len)?;
    let body = record.get(space.checked_add(1)?..)?.strip_suffix(b"\n")?;
    let equals = body.iter().position(|&byte| byte == b'=')?;
    let (key, value) = body.split_at_checked(equals)?;
    Some((key, value.get(1..)?, rest))
}

/// Decimal digits only.
pub(super) fn unsigned(digits: &[u8]) -> Option<u64> {
    let digits = std::str::from_utf8(digits).ok()?;
    // `parse` would take a sign.
    digits
        .bytes()
        .all(|byte| byte.is_ascii_digit())
        .then(|| digits.parse().ok())?
}

/// Decimal digits, maybe after a minus.
fn decimal(text: &[u8]) -> Option<i64> {
    match text.strip_prefix(b"-") {
        Some(digits) => 0i64.checked_sub_unsigned(unsigned(digits)?),
        None => i64::try_from(unsigned(text)?).ok(),
    }
}

/// `[-]seconds[.fraction]`; digits after the ninth are cut off.
fn time(text: &[u8]) -> Option<Time> {
    let (whole, fraction) = match text.iter().position(|&byte| byte == b'.') {
        Some(dot) => (text.get(..dot)?, text.get(dot.checked_add(1)?..)?),
        None => (text, &[][..]),
    };
    let seconds = decimal(whole)?;
    let mut nanoseconds = 0u32;
    for place in 0..9 {
        let digit = match fraction.get(place) {
            Some(digit @ b'0'..=b'9') => u32::from(digit & 15),
            Some(_) => return None,
            None => 0,
        };
        nanoseconds = nanoseconds.checked_mul(10)?.checked_add(digit)?;
    }
    if fraction.iter().skip(9).any(|byte| !byte.is_ascii_digit()) {
        return None;
    }
    if whole.first() == Some(&b'-') && nanoseconds > 0 {
        return Some(Time {
            seconds: seconds.checked_sub(1)?,
            nanoseconds: 1_000_000_000u32.checked_sub(nanoseconds)?,
        });
    }
    Some(Time {
        seconds,
        nanoseconds,
    })
}

/// Undoes `%XX`: GNU tar escapes only `=` and `%`, libarchive whatever is not printable (`only`
/// empty: all).
fn unescape(text: &[u8], only: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(text.len());
    let mut rest = text;
    while let Some((&first, tail)) = rest.split_first() {
        let hex = |byte: u8| {
            char::from(byte)
                .to_digit(16)
                .and_then(|d| u8::try_from(d).ok())
        };
        if let (b'%', Some(&[high, low])) = (first, tail.first_chunk::<2>())
            && let (Some(high), Some(low)) = (hex(high), hex(low))
        {
            let byte = (high << 4) | low;
            if only.is_empty() || only.contains(&byte) {
                out.push(byte);
                rest = tail.get(2..).unwrap_or_default();
                continue;
            }
        }
        out.push(first);
        rest = tail;
    }
    out
}

/// Base64 (RFC 4648, section 4) with or without padding.
fn base64(text: &[u8]) -> Option<Vec<u8>> {
    let end = text
        .iter()
        .rposition(|&byte| byte != b'=')
        .map_or(0, |last| last.saturating_add(1));
    let mut out = Vec::with_capacity(end);
    let (mut bits, mut have) = (0u32, 0u32);
    for &byte in text.get(..end)? {
        let value = match byte {
            b'A'..=b'Z' => byte.wrapping_sub(b'A'),
            b'a'..=b'z' => byte.wrapping_sub(b'a').wrapping_add(26),
            b'0'..=b'9' => byte.wrapping_sub(b'0').wrapping_add(52),
            b'+' => 62,
            b'/' => 63,
            _ => return None,
        };
        bits = (bits << 6) | u32::from(value);
        have = have.wrapping_add(6);
        if have >= 8 {
            have = have.wrapping_sub(8);
            out.push(u8::try_from((bits >> have) & 0xff).ok()?);
            bits &= (1u32 << have).wrapping_sub(1);
        }
    }
    Some(out)
}
