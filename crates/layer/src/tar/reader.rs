//! Bytes in, members out.

use super::error::show;
use super::header::{self, Format, Header};
use super::pax::Pax;
use super::sparse::{self, MapReader};
use super::{BLOCK, Error, Kind, Member, Reason, Segment};
use crate::tree::Time;

const BLOCK_LEN: usize = 512;

/// How much memory an archive may make a [`Reader`] take.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// The most bytes of one extended header: PAX records, a long name. Go has 1 MiB.
    pub extended_header: usize,
    /// The most segments of one sparse file.
    pub segments: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            extended_header: 1 << 20,
            segments: 1 << 18,
        }
    }
}

/// What [`Reader::feed`] has found.
#[derive(Debug, PartialEq, Eq)]
pub enum Event<'a> {
    /// The headers of the next file.
    Member(Box<Member>),
    /// The next bytes of that file's data, as they stand in the archive.
    Data(&'a [u8]),
}

/// What the bytes being collected are.
#[derive(Debug)]
enum State {
    /// A header block.
    Header,
    /// A header block, after one of zeros.
    LastZeros,
    /// The payload of an extended header of this type (`x`, `g`, `L`, `K`), of this size.
    Extended(u8, usize),
    /// A GNU sparse extension block of a member.
    GnuMap(Box<Member>, Vec<Segment>),
    /// A block of a member's PAX 1.0 sparse map.
    PaxMap(Box<Member>, MapReader),
    /// A member's data, of which so much is left.
    Data(u64),
    /// Everything has come; what follows is ignored, as everybody does.
    End,
}

/// A tar parser that does no I/O.
///
/// Give it bytes in pieces of any size with [`feed`](Self::feed) until it has taken them all, then
/// call [`end`](Self::end). Who can seek may jump over data with [`skippable`](Self::skippable) and
/// [`skip`](Self::skip). After an error it must not be used again.
///
/// ```
/// use knarr_layer::tar::{self, Event, Limits, Member, Reader};
/// let member = Member { path: b"hello".to_vec(), size: 3, ..Member::default() };
/// let mut archive = tar::encode(&member)?;
/// archive.extend(b"hi\n");
/// archive.extend(tar::padding(3));
/// archive.extend(tar::TRAILER);
///
/// let mut reader = Reader::new(Limits::default());
/// let mut rest = &archive[..];
/// let mut seen = Vec::new();
/// while !rest.is_empty() {
///     let (taken, event) = reader.feed(rest)?;
///     match event {
///         Some(Event::Member(member)) => seen.extend(member.path),
///         Some(Event::Data(bytes)) => seen.extend(bytes),
///         None => {}
///     }
///     rest = &rest[taken..];
/// }
/// reader.end()?;
/// assert_eq!(seen, b"hellohi\n");
/// # Ok::<(), tar::Error>(())
/// ```
#[derive(Debug)]
pub struct Reader {
    limits: Limits,
    state: State,
    /// How many bytes have been taken.
    offset: u64,
    /// Padding to jump over before anything else.
    padding: u64,
    /// A block or extended header that has come in part.
    partial: Vec<u8>,
    /// From extended headers, for the next file.
    pax: Option<Pax>,
    long_name: Option<Vec<u8>>,
    long_link: Option<Vec<u8>>,
    /// The last file's path, for errors.
    last: Option<Vec<u8>>,
}

impl Reader {
    /// A reader at the beginning of an archive.
    pub fn new(limits: Limits) -> Self {
        Self {
            limits,
            state: State::Header,
            offset: 0,
            padding: 0,
            partial: Vec::new(),
            pax: None,
            long_name: None,
            long_link: None,
            last: None,
        }
    }

    /// Takes bytes from the front of `input` until something is found: how many were taken, and
    /// what it is. Without an event, all were.
    ///
    /// # Errors
    /// Where the bytes are not a tar, or one beyond the limits.
    pub fn feed<'a>(&mut self, input: &'a [u8]) -> Result<(usize, Option<Event<'a>>), Error> {
        let mut rest = input;
        let mut event = None;
        while !rest.is_empty() && event.is_none() {
            if self.padding > 0 {
                let jump = at_most(self.padding, rest.len());
                self.padding = self.padding.saturating_sub(jump as u64);
                rest = self.advance(rest, jump).1;
                continue;
            }
            let want = match self.state {
                State::Data(left) => {
                    let (bytes, after) = self.advance(rest, at_most(left, rest.len()));
                    rest = after;
                    self.data_passed(bytes.len() as u64);
                    event = Some(Event::Data(bytes));
                    continue;
                }
                State::End => {
                    rest = self.advance(rest, rest.len()).1;
                    continue;
                }
                State::Extended(_, size) => size,
                _ => BLOCK_LEN,
            };
            let missing = want.saturating_sub(self.partial.len());
            let start = self.offset.saturating_sub(self.partial.len() as u64);
            let (bytes, after) = self.advance(rest, missing.min(rest.len()));
            rest = after;
            // The usual case is a whole block at once: no copy.
            let found = if bytes.len() == want {
                self.take(bytes)
            } else {
                self.partial.extend_from_slice(bytes);
                if self.partial.len() < want {
                    break;
                }
                let whole = std::mem::take(&mut self.partial);
                self.take(&whole)
            };
            event = found
                .map_err(|reason| self.error(start, reason))?
                .map(|member| {
                    self.last = Some(member.path.clone());
                    Event::Member(member)
                });
        }
        Ok((input.len().saturating_sub(rest.len()), event))
    }

    /// Says that no more bytes will come.
    ///
    /// # Errors
    /// Where the archive is cut off. The two blocks of zeros at the end may be missing, as may the
    /// padding of the last file.
    pub fn end(&self) -> Result<(), Error> {
        let whole = match self.state {
            State::Header => self.partial.is_empty(),
            State::LastZeros | State::End => true,
            _ => false,
        };
        let dangling = self.pax.is_some() || self.long_name.is_some() || self.long_link.is_some();
        match (whole, dangling) {
            (false, _) => Err(self.error(self.offset, Reason::Truncated)),
            (true, true) => Err(self.error(self.offset, Reason::Dangling)),
            (true, false) => Ok(()),
        }
    }

    /// How many bytes have been taken, which is where the next one belongs.
    pub fn offset(&self) -> u64 {
        self.offset
    }

    /// How many of the following bytes are a file's data and padding.
    pub fn skippable(&self) -> u64 {
        match self.state {
            State::Data(left) => left.saturating_add(pad(left.saturating_add(self.offset))),
            _ => self.padding,
        }
    }

    /// Takes all [`skippable`](Self::skippable) bytes as if they had come.
    pub fn skip(&mut self) {
        self.offset = self.offset.saturating_add(self.skippable());
        self.padding = 0;
        if let State::Data(_) = self.state {
            self.state = State::Header;
        }
    }

    fn advance<'a>(&mut self, input: &'a [u8], count: usize) -> (&'a [u8], &'a [u8]) {
        self.offset = self.offset.saturating_add(count as u64);
        input.split_at_checked(count).unwrap_or((input, &[]))
    }

    fn data_passed(&mut self, count: u64) {
        if let State::Data(left) = &mut self.state {
            *left = left.saturating_sub(count);
            if *left == 0 {
                self.padding = pad(self.offset);
                self.state = State::Header;
            }
        }
    }

    fn error(&self, offset: u64, reason: Reason) -> Error {
        Error {
            offset,
            member: self.last.as_deref().map(show),
            reason,
        }
    }

    /// Takes what the state was collecting.
    fn take(&mut self, bytes: &[u8]) -> Result<Option<Box<Member>>, Reason> {
        match std::mem::replace(&mut self.state, State::Header) {
            State::Header => {
                if bytes.iter().all(|&byte| byte == 0) {
                    self.state = State::LastZeros;
                    Ok(None)
                } else {
                    self.header(bytes)
                }
            }
            State::LastZeros if bytes.iter().all(|&byte| byte == 0) => {
                self.state = State::End;
                Ok(None)
            }
            State::LastZeros => Err(Reason::LoneZeroBlock),
            State::Extended(flag, _) => {
                self.padding = pad(self.offset);
                self.extended(flag, bytes).map(|()| None)
            }
            State::GnuMap(member, mut segments) => {
                let (more, extended) = header::gnu_sparse_extension(bytes)?;
                segments.extend(more);
                self.check_segments(segments.len())?;
                self.gnu_sparse(member, segments, extended)
            }
            State::PaxMap(mut member, mut map) => {
                member.data_size = member.data_size.checked_sub(BLOCK).ok_or(Reason::Sparse)?;
                match map.block(bytes, self.limits.segments)? {
                    Some(segments) => self.sparse(member, segments),
                    None => {
                        self.state = State::PaxMap(member, map);
                        Ok(None)
                    }
                }
            }
            State::Data(_) | State::End => Ok(None),
        }
    }

    /// A block that starts something: an extended header's payload or a file.
    fn header(&mut self, block: &[u8]) -> Result<Option<Box<Member>>, Reason> {
        let header = Header::parse(block)?;
        match header.type_flag() {
            flag @ (b'x' | b'g' | b'L' | b'K') => {
                let limit = self.limits.extended_header;
                match usize::try_from(header.size()?) {
                    Ok(0) => self.extended(flag, &[])?,
                    Ok(size) if size <= limit => self.state = State::Extended(flag, size),
                    _ => {
                        return Err(Reason::TooLarge {
                            what: "extended header",
                            limit,
                        });
                    }
                }
                Ok(None)
            }
            b'M' => Err(Reason::MultiVolume),
            // The label of a volume is no file.
            b'V' => {
                self.forget();
                let size = header.size()?;
                self.begin_data(size);
                Ok(None)
            }
            _ => self.file(&header),
        }
    }

    fn extended(&mut self, flag: u8, bytes: &[u8]) -> Result<(), Reason> {
        match flag {
            b'x' => self.pax = Some(Pax::parse(bytes, self.limits.segments)?),
            // Global records must be well formed, and have no effect.
            b'g' => drop(Pax::parse(bytes, self.limits.segments)?),
            b'L' => self.long_name = Some(header::text(bytes).to_vec()),
            _ => self.long_link = Some(header::text(bytes).to_vec()),
        }
        Ok(())
    }

    /// Drops what extended headers said about a file that is not given to the caller.
    fn forget(&mut self) {
        self.pax = None;
        self.long_name = None;
        self.long_link = None;
    }

    /// A file's header, with what the extended headers before it say merged in.
    fn file(&mut self, header: &Header<'_>) -> Result<Option<Box<Member>>, Reason> {
        let pax = self.pax.take().unwrap_or_default();
        let flag = header.type_flag();
        let filled = |text: Option<Vec<u8>>| text.filter(|text| !text.is_empty());
        let path = filled(self.long_name.take())
            .or(pax.path)
            .unwrap_or_else(|| header.path());
        let kind = match flag {
            b'1' => Kind::HardLink,
            b'2' => Kind::Symlink,
            b'3' => Kind::CharDevice,
            b'4' => Kind::BlockDevice,
            b'5' | b'D' => Kind::Dir,
            b'6' => Kind::Fifo,
            // Before POSIX, a directory was a file whose name ends in a slash.
            0 if path.ends_with(b"/") => Kind::Dir,
            _ => Kind::File,
        };
        let size = match pax.size {
            Some(size) => size,
            None if kind.has_data() || flag == b'D' => header.size()?,
            // Whatever a hardlink or device says its size is, no data follows.
            None => 0,
        };
        let is_device = matches!(kind, Kind::CharDevice | Kind::BlockDevice);
        let mut member = Box::new(Member {
            link: filled(self.long_link.take())
                .or(pax.link)
                .unwrap_or_else(|| header.link()),
            kind,
            mode: header.mode()?,
            uid: pax.uid.map_or_else(|| header.uid(), Ok)?,
            gid: pax.gid.map_or_else(|| header.gid(), Ok)?,
            owner: pax.owner.unwrap_or_else(|| header.owner()),
            group: pax.group.unwrap_or_else(|| header.group()),
            mtime: match pax.mtime {
                Some(mtime) => mtime,
                None => Time {
                    seconds: header.mtime()?,
                    nanoseconds: 0,
                },
            },
            device: if is_device { header.device()? } else { (0, 0) },
            xattrs: pax.xattrs,
            size: if kind.has_data() { size } else { 0 },
            data: self.offset,
            // A GNU dump's directory is followed by its list of names.
            data_size: if kind.has_data() || flag == b'D' {
                size
            } else {
                0
            },
            sparse: None,
            path,
        });
        if flag == b'S' && header.format == Format::Gnu {
            let (segments, extended, real_size) = header.gnu_sparse()?;
            member.size = real_size;
            return self.gnu_sparse(member, segments, extended);
        }
        if kind != Kind::File {
            self.begin_data(member.data_size);
            return Ok(Some(member));
        }
        let records = pax.sparse;
        let version = (records.major.as_deref(), records.minor.as_deref());
        let in_data = version == (Some(b"1"), Some(b"0"));
        let in_header = match version {
            (Some(b"0"), Some(b"0" | b"1")) => true,
            (None, None) => !records.map.is_empty(),
            _ => false,
        };
        if !in_data && !in_header {
            self.begin_data(member.data_size);
            return Ok(Some(member));
        }
        if let Some(real_size) = records.real_size {
            member.size = real_size;
        }
        if in_header {
            let segments = records.segments()?;
            if let Some(name) = records.name {
                member.path = name;
            }
            return self.sparse(member, segments);
        }
        if let Some(name) = records.name {
            member.path = name;
        }
        if member.data_size == 0 {
            return Err(Reason::Sparse);
        }
        self.state = State::PaxMap(member, MapReader::default());
        Ok(None)
    }

    fn check_segments(&self, count: usize) -> Result<(), Reason> {
        if count > self.limits.segments {
            return Err(Reason::TooLarge {
                what: "sparse map",
                limit: self.limits.segments,
            });
        }
        Ok(())
    }

    fn gnu_sparse(
        &mut self,
        member: Box<Member>,
        segments: Vec<Segment>,
        extended: bool,
    ) -> Result<Option<Box<Member>>, Reason> {
        if extended {
            self.state = State::GnuMap(member, segments);
            return Ok(None);
        }
        self.sparse(member, segments)
    }

    /// A sparse file whose map is whole; its data begin here.
    fn sparse(
        &mut self,
        mut member: Box<Member>,
        segments: Vec<Segment>,
    ) -> Result<Option<Box<Member>>, Reason> {
        member.data = self.offset;
        member.sparse = Some(sparse::check(segments, member.size, member.data_size)?);
        self.begin_data(member.data_size);
        Ok(Some(member))
    }

    fn begin_data(&mut self, size: u64) {
        self.state = if size > 0 {
            State::Data(size)
        } else {
            State::Header
        };
    }
}

/// How many bytes are missing to the next block boundary.
fn pad(offset: u64) -> u64 {
    offset.next_multiple_of(BLOCK).saturating_sub(offset)
}

/// The smaller of the two.
fn at_most(left: u64, len: usize) -> usize {
    usize::try_from(left).map_or(len, |left| left.min(len))
}
