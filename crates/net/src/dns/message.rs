//! DNS messages on the wire (RFC 1035, section 4; EDNS: RFC 6891): queries are parsed, answers
//! written. Pure bytes, no I/O. Nothing here can panic or loop: every step of the parser goes
//! forward in the message, and compression pointers are never followed.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Bytes of the fixed header.
pub const HEADER: usize = 12;
/// The most bytes that an answer over UDP has unless the query says otherwise (RFC 1035, 4.2.1).
pub const UDP_DEFAULT: usize = 512;
/// What Knarr says it takes over UDP: fits every path's MTU (DNS Flag Day 2020).
const UDP_OFFER: u16 = 1232;
/// A name with its length bytes and the root's.
const MOST_NAME: usize = 255;
const MOST_LABEL: usize = 63;
/// Bytes of an OPT record without options.
const OPT_BYTES: usize = 11;

/// The types of records that matter here; the numbers are IANA's.
pub mod kind {
    /// An IPv4 address.
    pub const A: u16 = 1;
    /// The name of an address.
    pub const PTR: u16 = 12;
    /// An IPv6 address.
    pub const AAAA: u16 = 28;
    /// EDNS.
    pub const OPT: u16 = 41;
    /// All types (a question only).
    pub const ANY: u16 = 255;
}

/// The class of the Internet.
pub const IN: u16 = 1;
/// Any class (a question only).
pub const CLASS_ANY: u16 = 255;

mod flag {
    pub(super) const RESPONSE: u16 = 1 << 15;
    pub(super) const OPCODE: u16 = 0xf << 11;
    pub(super) const AUTHORITATIVE: u16 = 1 << 10;
    pub(super) const TRUNCATED: u16 = 1 << 9;
    pub(super) const RECURSION_DESIRED: u16 = 1 << 8;
    pub(super) const RECURSION_AVAILABLE: u16 = 1 << 7;
    pub(super) const CHECKING_DISABLED: u16 = 1 << 4;
}

/// Response codes (RFC 1035, 4.1.1; RFC 6891, 9).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Code {
    /// All is well, also when there is no record of the type asked for.
    NoError,
    /// The query cannot be read.
    FormatError,
    /// No server gave an answer.
    ServerFailure,
    /// The name does not exist.
    NoSuchName,
    /// Another operation than a query.
    NotImplemented,
    /// Too much is under way.
    Refused,
    /// An EDNS version that nobody has defined.
    BadVersion,
}

impl Code {
    const fn bits(self) -> u16 {
        match self {
            Self::NoError => 0,
            Self::FormatError => 1,
            Self::ServerFailure => 2,
            Self::NoSuchName => 3,
            Self::NotImplemented => 4,
            Self::Refused => 5,
            Self::BadVersion => 16,
        }
    }
}

/// A domain name as it is compared: labels with their length bytes, lower-case, without the root's
/// zero. At most 254 bytes.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct Name(Vec<u8>);

impl Name {
    /// Reads the name at `at`; also gives the offset behind it. `None` for what is no name: too
    /// long, cut off, or compressed. The name of a question has nothing before it that it could
    /// point to, and no other name is ever read.
    pub fn parse(message: &[u8], at: usize) -> Option<(Self, usize)> {
        let mut wire = Vec::new();
        let mut here = at;
        loop {
            let length = usize::from(*message.get(here)?);
            let next = here + 1 + length;
            if length == 0 {
                return Some((Self(wire), next));
            }
            let label = message.get(here..next)?;
            if length > MOST_LABEL || wire.len() + label.len() >= MOST_NAME {
                return None;
            }
            // Lengths are below `A`.
            wire.extend(label.iter().map(u8::to_ascii_lowercase));
            here = next;
        }
    }

    /// From text with dots, with or without one at the end. `None` for what does not fit.
    pub fn from_text(text: &str) -> Option<Self> {
        let mut wire = Vec::with_capacity(text.len() + 1);
        let text = text.strip_suffix('.').unwrap_or(text);
        if text.is_empty() {
            return Some(Self(wire));
        }
        for label in text.split('.') {
            let length = u8::try_from(label.len()).ok()?;
            if length == 0 || label.len() > MOST_LABEL {
                return None;
            }
            wire.push(length);
            wire.extend(label.bytes().map(|byte| byte.to_ascii_lowercase()));
        }
        (wire.len() < MOST_NAME).then_some(Self(wire))
    }

    /// Its labels, first to last.
    pub fn labels(&self) -> impl Iterator<Item = &[u8]> {
        let mut rest = self.0.as_slice();
        std::iter::from_fn(move || {
            let (length, tail) = rest.split_first()?;
            let label = tail.get(..usize::from(*length))?;
            rest = tail.get(usize::from(*length)..)?;
            Some(label)
        })
    }

    /// The name as text without the last dot, if it is one that a container can have: letters,
    /// digits, `-`, `_`, and dots between the labels. It is a safe file name then.
    pub fn to_host_name(&self) -> Option<String> {
        let mut text = String::with_capacity(self.0.len());
        for label in self.labels() {
            if !text.is_empty() {
                text.push('.');
            }
            for byte in label {
                if !byte.is_ascii_alphanumeric() && *byte != b'-' && *byte != b'_' {
                    return None;
                }
                text.push(char::from(*byte));
            }
        }
        (!text.is_empty()).then_some(text)
    }

    /// The address that a reverse name stands for (RFC 1035, 3.5; RFC 3596, 2.5).
    pub fn to_address(&self) -> Option<IpAddr> {
        let labels: Vec<&[u8]> = self.labels().collect();
        let (zone, digits) = match labels.as_slice() {
            [digits @ .., zone, b"arpa"] => (*zone, digits),
            _ => return None,
        };
        match (zone, digits.len()) {
            (b"in-addr", 4) => {
                let mut octets = [0; 4];
                for (octet, digits) in octets.iter_mut().rev().zip(digits) {
                    let text = std::str::from_utf8(digits).ok()?;
                    *octet = text.parse().ok()?;
                }
                Some(Ipv4Addr::from(octets).into())
            }
            (b"ip6", 32) => {
                let mut bits = 0u128;
                for digit in digits.iter().rev() {
                    let [digit] = digit else { return None };
                    let value = char::from(*digit).to_digit(16)?;
                    bits = bits << 4 | u128::from(value);
                }
                Some(Ipv6Addr::from(bits).into())
            }
            _ => None,
        }
    }

    /// On the wire, without compression.
    fn write(&self, message: &mut Vec<u8>) {
        message.extend_from_slice(&self.0);
        message.push(0);
    }
}

/// What EDNS says about who asks (RFC 6891, 6.1.3).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Edns {
    /// The most bytes that it takes over UDP.
    pub payload: u16,
    /// Of EDNS; only 0 is defined.
    pub version: u8,
    /// It wants DNSSEC's records.
    pub dnssec: bool,
}

/// A query that can be read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Query {
    /// As the client numbers it.
    pub id: u16,
    flags: u16,
    /// What is asked about.
    pub name: Name,
    /// The type asked for: [`kind`].
    pub kind: u16,
    /// The class asked for: [`IN`].
    pub class: u16,
    /// Where the question ends in the message; it begins at [`HEADER`].
    pub question_end: usize,
    /// Present when the client speaks EDNS.
    pub edns: Option<Edns>,
}

/// Why a message is no query that can be answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refusal {
    /// Not even a header, or an answer: silence is the only safe reply.
    Ignore,
    /// To be told with this code: [`refuse`].
    Tell(Code),
}

impl Query {
    /// Reads a message from a client.
    ///
    /// # Errors
    /// [`Refusal`], for everything that is not one question.
    pub fn parse(message: &[u8]) -> Result<Self, Refusal> {
        let header = |index| word(message, index);
        let (Some(id), Some(flags), Some(additional)) = (header(0), header(2), header(10)) else {
            return Err(Refusal::Ignore);
        };
        if flags & flag::RESPONSE != 0 {
            return Err(Refusal::Ignore);
        }
        if flags & flag::OPCODE != 0 {
            return Err(Refusal::Tell(Code::NotImplemented));
        }
        let bad = Refusal::Tell(Code::FormatError);
        if header(4) != Some(1) || flags & flag::TRUNCATED != 0 {
            return Err(bad);
        }
        let (name, at) = Name::parse(message, HEADER).ok_or(bad)?;
        let kind = word(message, at).ok_or(bad)?;
        let class = word(message, at + 2).ok_or(bad)?;
        let question_end = at + 4;
        // Queries have neither answers nor authorities; what has is let through to whom it may
        // concern, and EDNS is looked for behind them.
        let before = usize::from(header(6).unwrap_or(0)) + usize::from(header(8).unwrap_or(0));
        let edns = find_edns(message, question_end, before, additional.into()).ok_or(bad)?;
        Ok(Self {
            id,
            flags,
            name,
            kind,
            class,
            question_end,
            edns,
        })
    }

    /// The most bytes that the client takes over UDP.
    pub fn udp_limit(&self) -> usize {
        self.edns.map_or(UDP_DEFAULT, |edns| {
            usize::from(edns.payload).max(UDP_DEFAULT)
        })
    }
}

/// Walks over the records behind the question: `Some(None)` without EDNS, `None` when they cannot
/// be read or there is more than one OPT.
fn find_edns(
    message: &[u8],
    mut at: usize,
    before: usize,
    additional: usize,
) -> Option<Option<Edns>> {
    let mut found = None;
    // Each record takes at least eleven bytes, so the counts cannot keep this busy.
    for index in 0..before + additional {
        let fixed = skip_name(message, at)?;
        let kind = word(message, fixed)?;
        let length = usize::from(word(message, fixed + 8)?);
        let end = fixed + 10 + length;
        message.get(fixed..end)?;
        if kind == kind::OPT && index >= before {
            if found.is_some() || message.get(at) != Some(&0) {
                return None;
            }
            found = Some(Edns {
                payload: word(message, fixed + 2)?,
                version: *message.get(fixed + 5)?,
                dnssec: word(message, fixed + 6)? & 1 << 15 != 0,
            });
        }
        at = end;
    }
    Some(found)
}

/// The offset behind a name. A pointer ends it and is not followed.
fn skip_name(message: &[u8], mut at: usize) -> Option<usize> {
    loop {
        match *message.get(at)? {
            0 => return Some(at + 1),
            length @ 1..=63 => at += 1 + usize::from(length),
            192.. => return message.get(at + 1).map(|_| at + 2),
            _ => return None,
        }
    }
}

fn word(message: &[u8], at: usize) -> Option<u16> {
    let bytes = message.get(at..at.checked_add(2)?)?;
    Some(u16::from_be_bytes(bytes.try_into().ok()?))
}

/// One record of an answer; its name is the question's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Data {
    /// A or AAAA.
    Address(IpAddr),
    /// PTR.
    Pointer(Name),
}

/// Writes the answer to `query`, whose bytes are `message`: the question as it was asked, letter
/// by letter, and the records with a time to live of 0, because a container may be gone the next
/// moment. What does not fit into `limit` bytes is left out and the answer marked as truncated.
pub fn answer(message: &[u8], query: &Query, code: Code, data: &[Data], limit: usize) -> Vec<u8> {
    let question = message.get(HEADER..query.question_end).unwrap_or_default();
    let limit = limit.saturating_sub(if query.edns.is_some() { OPT_BYTES } else { 0 });
    let mut out = Vec::with_capacity(HEADER + question.len() + OPT_BYTES + 16 * data.len());
    let flags = flag::RESPONSE
        | flag::AUTHORITATIVE
        | flag::RECURSION_AVAILABLE
        | query.flags & (flag::RECURSION_DESIRED | flag::CHECKING_DISABLED)
        | code.bits() & 0xf;
    for value in [query.id, flags, 1, 0, 0, 0] {
        out.extend(value.to_be_bytes());
    }
    out.extend_from_slice(question);
    let mut count = 0u16;
    for data in data {
        let before = out.len();
        write_record(&mut out, data);
        if out.len() > limit || count == u16::MAX {
            out.truncate(before);
            set_word(&mut out, 2, flags | flag::TRUNCATED);
            break;
        }
        count += 1;
    }
    set_word(&mut out, 6, count);
    if let Some(edns) = query.edns {
        add_edns(&mut out, edns, code);
    }
    out
}

/// Tells a client that its message cannot be read: a header only. `None` if there is no header to
/// answer to.
pub fn refuse(message: &[u8], code: Code) -> Option<Vec<u8>> {
    let (id, flags) = (word(message, 0)?, word(message, 2)?);
    let flags = flag::RESPONSE
        | flags & (flag::OPCODE | flag::RECURSION_DESIRED)
        | flag::RECURSION_AVAILABLE
        | code.bits() & 0xf;
    let mut out = Vec::with_capacity(HEADER);
    for value in [id, flags, 0, 0, 0, 0] {
        out.extend(value.to_be_bytes());
    }
    Some(out)
}

fn write_record(out: &mut Vec<u8>, data: &Data) {
    // A pointer to the question's name, which follows the header.
    out.extend([0xc0, 0x0c]);
    let kind = match data {
        Data::Address(IpAddr::V4(_)) => kind::A,
        Data::Address(IpAddr::V6(_)) => kind::AAAA,
        Data::Pointer(_) => kind::PTR,
    };
    out.extend(kind.to_be_bytes());
    out.extend(IN.to_be_bytes());
    out.extend(0u32.to_be_bytes());
    let length = out.len();
    out.extend([0, 0]);
    match data {
        Data::Address(IpAddr::V4(address)) => out.extend(address.octets()),
        Data::Address(IpAddr::V6(address)) => out.extend(address.octets()),
        Data::Pointer(name) => name.write(out),
    }
    let bytes = u16::try_from(out.len() - length - 2).unwrap_or(0);
    set_word(out, length, bytes);
}

fn add_edns(out: &mut Vec<u8>, edns: Edns, code: Code) {
    out.push(0);
    out.extend(kind::OPT.to_be_bytes());
    out.extend(UDP_OFFER.to_be_bytes());
    // The upper eight bits of the code, the version, the flags.
    out.extend([u8::try_from(code.bits() >> 4).unwrap_or(0), 0]);
    out.extend(if edns.dnssec { [0x80, 0] } else { [0, 0] });
    out.extend([0, 0]);
    set_word(out, 10, 1);
}

fn set_word(message: &mut [u8], at: usize, value: u16) {
    if let Some(bytes) = message.get_mut(at..at + 2) {
        bytes.copy_from_slice(&value.to_be_bytes());
    }
}

/// Numbers a message anew.
pub fn set_id(message: &mut [u8], id: u16) {
    set_word(message, 0, id);
}

/// What a server's answer says, as far as it decides what to do with it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// To be given to the client.
    Good,
    /// The server cannot help (SERVFAIL, REFUSED, NOTIMP, FORMERR, …): another one may.
    Bad,
}

/// Judges what came from a server; `None` where it does not answer `query` (another id, another
/// question, no answer at all): late, lost or forged.
pub fn judge(query: &[u8], question_end: usize, reply: &[u8]) -> Option<Verdict> {
    let flags = word(reply, 2)?;
    if word(reply, 0) != word(query, 0) || flags & flag::RESPONSE == 0 || flags & flag::OPCODE != 0
    {
        return None;
    }
    let bad = !matches!(flags & 0xf, 0 | 3);
    // Servers that cannot read a query may leave the question out.
    if bad && word(reply, 4) == Some(0) {
        return Some(Verdict::Bad);
    }
    let name = HEADER..question_end.checked_sub(4)?;
    let rest = name.end..question_end;
    let same = word(reply, 4) == Some(1)
        && reply
            .get(name.clone())?
            .eq_ignore_ascii_case(query.get(name)?)
        && reply.get(rest.clone()) == query.get(rest);
    match (same, bad) {
        (false, _) => None,
        (true, false) => Some(Verdict::Good),
        (true, true) => Some(Verdict::Bad),
    }
}

/// Cuts a server's answer down for a client that takes no more than `limit` bytes: header,
/// question, the mark that it is truncated.
pub fn shorten(reply: Vec<u8>, query: &Query, limit: usize) -> Vec<u8> {
    if reply.len() <= limit {
        return reply;
    }
    let mut out = reply;
    out.truncate(query.question_end);
    let flags = word(&out, 2).unwrap_or(0) | flag::TRUNCATED;
    set_word(&mut out, 2, flags);
    for count in [6, 8, 10] {
        set_word(&mut out, count, 0);
    }
    if let Some(edns) = query.edns {
        add_edns(&mut out, edns, Code::NoError);
    }
    out
}
