//! Members to header bytes.

use std::collections::BTreeMap;

use super::{BLOCK, Error, Kind, Member, Reason};
use crate::tree::Time;

/// The two blocks of zeros that end an archive.
pub const TRAILER: [u8; 1024] = [0; 1024];

/// The zeros that fill the last block of `size` bytes of data.
pub fn padding(size: u64) -> &'static [u8] {
    let used = usize::try_from(size.checked_rem(BLOCK).unwrap_or(0)).unwrap_or(0);
    match used {
        0 => &[],
        used => TRAILER.get(used..512).unwrap_or_default(),
    }
}

/// The header blocks of a member, ustar where that says it all, else PAX with records in byte order
/// of their keys, like Go's writer. `size` bytes of data and [`padding`] must follow.
///
/// Times are written with their nanoseconds. `sparse`, `data` and `data_size` are not looked at.
///
/// # Errors
/// [`Reason::Unwritable`] for negative ids, device numbers or modes, and NULs in names.
pub fn encode(member: &Member) -> Result<Vec<u8>, Error> {
    encode_parts(member).map_err(|what| Error {
        offset: 0,
        member: Some(super::error::show(&member.path)),
        reason: Reason::Unwritable(what),
    })
}

fn encode_parts(member: &Member) -> Result<Vec<u8>, &'static str> {
    let mut records: BTreeMap<Vec<u8>, Vec<u8>> = BTreeMap::new();
    let mut block = Block::new();
    let type_flag = match member.kind {
        Kind::File => b'0',
        Kind::HardLink => b'1',
        Kind::Symlink => b'2',
        Kind::CharDevice => b'3',
        Kind::BlockDevice => b'4',
        Kind::Dir => b'5',
        Kind::Fifo => b'6',
    };
    if !block.path(&member.path) {
        records.insert(b"path".to_vec(), member.path.clone());
    }
    for (key, at, width, value) in [
        ("linkpath", LINK, 100usize, &member.link),
        ("uname", OWNER, 32, &member.owner),
        ("gname", GROUP, 32, &member.group),
    ] {
        if value.contains(&0) {
            return Err("a NUL in a name");
        }
        // Names need a NUL at their end, link targets may fill the field.
        let room = if key == "linkpath" {
            width
        } else {
            width.saturating_sub(1)
        };
        if value.is_ascii() && value.len() <= room {
            block.put(at, value);
        } else {
            block.put(at, value.get(..room.min(value.len())).unwrap_or_default());
            records.insert(key.into(), value.clone());
        }
    }
    if member.path.contains(&0) {
        return Err("a NUL in a name");
    }
    block
        .octal(MODE, 8, member.mode & 0o7777)
        .ok_or("its mode")?;
    for (key, at, id) in [("uid", UID, member.uid), ("gid", GID, member.gid)] {
        if id < 0 {
            return Err("a negative owner");
        }
        if block.octal(at, 8, id).is_none() {
            block.octal(at, 8, 0);
            records.insert(key.into(), id.to_string().into_bytes());
        }
    }
    let size = if member.kind.has_data() {
        member.size
    } else {
        0
    };
    if i64::try_from(size)
        .ok()
        .and_then(|size| block.octal(SIZE, 12, size))
        .is_none()
    {
        block.octal(SIZE, 12, 0);
        records.insert(b"size".to_vec(), size.to_string().into_bytes());
    }
    let Time {
        seconds,
        nanoseconds,
    } = member.mtime;
    if nanoseconds > 0 || block.octal(MTIME, 12, seconds).is_none() {
        block.octal(MTIME, 12, seconds.clamp(0, 0o77_777_777_777));
        records.insert(b"mtime".to_vec(), time(member.mtime));
    }
    let (major, minor) = member.device;
    block.octal(MAJOR, 8, major).ok_or("its device number")?;
    block.octal(MINOR, 8, minor).ok_or("its device number")?;
    for (name, value) in &member.xattrs {
        if name.contains(&0) || name.is_empty() {
            return Err("an attribute's name");
        }
        let mut key = b"SCHILY.xattr.".to_vec();
        for &byte in name {
            match byte {
                b'=' => key.extend(b"%3D"),
                b'%' => key.extend(b"%25"),
                byte => key.push(byte),
            }
        }
        records.insert(key, value.to_vec());
    }
    let mut out = Vec::new();
    if !records.is_empty() {
        let payload: Vec<u8> = records
            .iter()
            .flat_map(|(key, value)| record(key, value))
            .collect();
        let mut pax = Block::new();
        pax.path(&pax_name(&member.path));
        for (at, width) in [
            (MODE, 8),
            (UID, 8),
            (GID, 8),
            (MTIME, 12),
            (MAJOR, 8),
            (MINOR, 8),
        ] {
            pax.octal(at, width, 0);
        }
        let size = i64::try_from(payload.len()).map_err(|_| "its extended header")?;
        pax.octal(SIZE, 12, size).ok_or("its extended header")?;
        out.extend(pax.finish(b'x'));
        out.extend(&payload);
        out.extend(padding(payload.len() as u64));
    }
    out.extend(block.finish(type_flag));
    Ok(out)
}

/// What Go calls the PAX header of a file: `dir/PaxHeaders.0/base`, in ASCII.
fn pax_name(path: &[u8]) -> Vec<u8> {
    let path: Vec<u8> = path.iter().copied().filter(u8::is_ascii).collect();
    let trimmed = path.strip_suffix(b"/").unwrap_or(&path);
    let (dir, base) = match trimmed.iter().rposition(|&byte| byte == b'/') {
        Some(slash) => trimmed
            .split_at_checked(slash.saturating_add(1))
            .unwrap_or_default(),
        None => (&[][..], trimmed),
    };
    let mut name = [dir, b"PaxHeaders.0/", base].concat();
    name.truncate(100);
    name
}

/// One PAX record. Its length counts its own digits.
fn record(key: &[u8], value: &[u8]) -> Vec<u8> {
    let rest = key.len().saturating_add(value.len()).saturating_add(3);
    let mut len = rest;
    loop {
        let digits = len.to_string();
        let whole = rest.saturating_add(digits.len());
        if whole == len {
            return [digits.as_bytes(), b" ", key, b"=", value, b"\n"].concat();
        }
        len = whole;
    }
}

/// `[-]seconds.fraction` without trailing zeros.
fn time(time: Time) -> Vec<u8> {
    let total = i128::from(time.seconds)
        .saturating_mul(1_000_000_000)
        .saturating_add(i128::from(time.nanoseconds));
    let sign = if total < 0 { "-" } else { "" };
    let (whole, fraction) = (
        total.unsigned_abs().checked_div(1_000_000_000).unwrap_or(0),
        total.unsigned_abs().checked_rem(1_000_000_000).unwrap_or(0),
    );
    let text = format!("{sign}{whole}.{fraction:09}");
    text.trim_end_matches('0').trim_end_matches('.').into()
}

const MODE: usize = 100;
const UID: usize = 108;
const GID: usize = 116;
const SIZE: usize = 124;
const MTIME: usize = 136;
const CHECKSUM: usize = 148;
const TYPE: usize = 156;
const LINK: usize = 157;
const MAGIC: usize = 257;
const OWNER: usize = 265;
const GROUP: usize = 297;
const MAJOR: usize = 329;
const MINOR: usize = 337;
const PREFIX: usize = 345;

/// A ustar header block being filled in.
struct Block([u8; 512]);

impl Block {
    fn new() -> Self {
        Self([0; 512])
    }

    fn put(&mut self, at: usize, bytes: &[u8]) {
        let field = self.0.iter_mut().skip(at);
        for (slot, byte) in field.zip(bytes) {
            *slot = *byte;
        }
    }

    /// Octal digits with a NUL at the end; `None`, and nothing written, where they do not fit.
    fn octal(&mut self, at: usize, width: usize, value: i64) -> Option<()> {
        let digits = width.saturating_sub(1);
        let text = format!("{:0digits$o}", u64::try_from(value).ok()?);
        if text.len() > digits {
            return None;
        }
        self.put(at, text.as_bytes());
        Some(())
    }

    /// Name and prefix. `false` where the path does not fit; its end is cut off then.
    fn path(&mut self, path: &[u8]) -> bool {
        if !path.is_ascii() {
            let ascii: Vec<u8> = path.iter().copied().filter(u8::is_ascii).collect();
            self.put(0, ascii.get(..100).unwrap_or(&ascii));
            return false;
        }
        if path.len() <= 100 {
            self.put(0, path);
            return true;
        }
        // Go's splitUSTARPath: the last slash within the first 156 bytes, the final one excepted.
        let trimmed = path.strip_suffix(b"/").unwrap_or(path);
        let head = trimmed.get(..156).unwrap_or(trimmed);
        if let Some(slash) = head.iter().rposition(|&byte| byte == b'/')
            && let (Some(prefix), Some(name)) =
                (path.get(..slash), path.get(slash.saturating_add(1)..))
            && !prefix.is_empty()
            && !name.is_empty()
            && name.len() <= 100
        {
            self.put(0, name);
            self.put(PREFIX, prefix);
            return true;
        }
        self.put(0, path.get(..100).unwrap_or(path));
        false
    }

    fn finish(mut self, type_flag: u8) -> [u8; 512] {
        self.put(TYPE, &[type_flag]);
        self.put(MAGIC, b"ustar\x0000");
        self.put(CHECKSUM, b"        ");
        let sum: u32 = self.0.iter().map(|&byte| u32::from(byte)).sum();
        self.put(CHECKSUM, format!("{sum:06o}\0 ").as_bytes());
        self.0
    }
}
