//! Messages of D-Bus on the wire (the D-Bus specification, "Marshaling" and "Message Format"), as much
//! as talking to systemd takes. Numbers are in the machine's own order; both ends are on it.

/// The mark of the machine's byte order.
const ORDER: u8 = if cfg!(target_endian = "little") {
    b'l'
} else {
    b'B'
};

/// The longest message that is taken; systemd's answers here have some hundred bytes.
const LONGEST: usize = 1 << 20;

/// What a message is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Call = 1,
    Return = 2,
    Error = 3,
    Signal = 4,
}

/// A value that systemd's properties have, with its own type.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Value {
    /// `b`
    Flag(bool),
    /// `t`
    Number(u64),
    /// `s`
    Text(String),
    /// `ay`
    Bytes(Vec<u8>),
    /// `au`
    Numbers32(Vec<u32>),
}

impl Value {
    fn signature(&self) -> &'static str {
        match self {
            Self::Flag(_) => "b",
            Self::Number(_) => "t",
            Self::Text(_) => "s",
            Self::Bytes(_) => "ay",
            Self::Numbers32(_) => "au",
        }
    }
}

/// Bytes that are being put together; offsets count from an 8-aligned start.
#[derive(Debug, Default)]
pub(super) struct Writer {
    bytes: Vec<u8>,
}

impl Writer {
    fn align(&mut self, to: usize) {
        while !self.bytes.len().is_multiple_of(to) {
            self.bytes.push(0);
        }
    }

    pub(super) fn u32(&mut self, value: u32) {
        self.align(4);
        self.bytes.extend(value.to_ne_bytes());
    }

    fn u64(&mut self, value: u64) {
        self.align(8);
        self.bytes.extend(value.to_ne_bytes());
    }

    /// A string, or an object path.
    pub(super) fn text(&mut self, text: &str) {
        self.u32(u32::try_from(text.len()).unwrap_or(u32::MAX));
        self.bytes.extend(text.as_bytes());
        self.bytes.push(0);
    }

    fn signature(&mut self, signature: &str) {
        self.bytes
            .push(u8::try_from(signature.len()).unwrap_or(u8::MAX));
        self.bytes.extend(signature.as_bytes());
        self.bytes.push(0);
    }

    /// An array whose elements are aligned to `to`; its length does not count the padding before
    /// the first of them.
    fn array(&mut self, to: usize, content: impl FnOnce(&mut Self)) {
        self.u32(0);
        let at = self.bytes.len();
        self.align(to);
        let start = self.bytes.len();
        content(self);
        let length = u32::try_from(self.bytes.len() - start).unwrap_or(u32::MAX);
        if let Some(place) = self.bytes.get_mut(at - 4..at) {
            place.copy_from_slice(&length.to_ne_bytes());
        }
    }

    fn variant(&mut self, value: &Value) {
        self.signature(value.signature());
        match value {
            Value::Flag(flag) => self.u32(u32::from(*flag)),
            Value::Number(number) => self.u64(*number),
            Value::Text(text) => self.text(text),
            Value::Bytes(bytes) => self.array(1, |w| w.bytes.extend(bytes)),
            Value::Numbers32(numbers) => {
                self.array(4, |w| numbers.iter().for_each(|number| w.u32(*number)));
            }
        }
    }

    /// `a(sv)`: a unit's properties.
    pub(super) fn properties(&mut self, properties: &[(&str, Value)]) {
        self.array(8, |w| {
            for (name, value) in properties {
                w.align(8);
                w.text(name);
                w.variant(value);
            }
        });
    }

    /// `a(sa(sv))` with nothing in it: the auxiliary units.
    pub(super) fn no_units(&mut self) {
        self.array(8, |_| {});
    }
}

/// Where a call goes.
#[derive(Debug, Clone, Copy)]
pub(super) struct Method<'a> {
    pub(super) destination: &'a str,
    pub(super) path: &'a str,
    pub(super) interface: &'a str,
    pub(super) member: &'a str,
}

/// A method call with its arguments, ready to be sent.
pub(super) fn call(serial: u32, method: Method<'_>, signature: &str, body: Writer) -> Vec<u8> {
    const PATH: u8 = 1;
    const INTERFACE: u8 = 2;
    const MEMBER: u8 = 3;
    const DESTINATION: u8 = 6;
    const SIGNATURE: u8 = 8;
    let mut head = Writer {
        bytes: vec![ORDER, Kind::Call as u8, 0, 1],
    };
    head.u32(u32::try_from(body.bytes.len()).unwrap_or(u32::MAX));
    head.u32(serial);
    head.array(8, |w| {
        for (code, kind, text) in [
            (PATH, "o", method.path),
            (INTERFACE, "s", method.interface),
            (MEMBER, "s", method.member),
            (DESTINATION, "s", method.destination),
        ] {
            w.align(8);
            w.bytes.push(code);
            w.signature(kind);
            w.text(text);
        }
        if !signature.is_empty() {
            w.align(8);
            w.bytes.push(SIGNATURE);
            w.signature("g");
            w.signature(signature);
        }
    });
    head.align(8);
    head.bytes.extend(body.bytes);
    head.bytes
}

/// A message that came.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Message {
    pub(super) kind: Kind,
    /// Of the call that it answers.
    pub(super) answers: Option<u32>,
    pub(super) member: String,
    /// The name of an error.
    pub(super) error: String,
    signature: String,
    body: Vec<u8>,
}

impl Message {
    /// How many bytes a message has, by its first 16; `None` when they are not of one.
    pub(super) fn length(head: &[u8; 16]) -> Option<usize> {
        let number = |at: usize| -> Option<usize> {
            let bytes = head.get(at..at + 4)?.try_into().ok()?;
            usize::try_from(u32::from_ne_bytes(bytes)).ok()
        };
        let (body, fields) = (number(4)?, number(12)?);
        let whole = 16usize
            .checked_add(fields)?
            .checked_next_multiple_of(8)?
            .checked_add(body)?;
        (head.first() == Some(&ORDER) && whole <= LONGEST).then_some(whole)
    }

    /// Understands a whole message.
    pub(super) fn parse(bytes: &[u8]) -> Option<Self> {
        let kind = match bytes.get(1)? {
            1 => Kind::Call,
            2 => Kind::Return,
            3 => Kind::Error,
            4 => Kind::Signal,
            _ => return None,
        };
        let mut message = Self {
            kind,
            answers: None,
            member: String::new(),
            error: String::new(),
            signature: String::new(),
            body: Vec::new(),
        };
        let mut reader = Reader { bytes, at: 12 };
        let end = 16 + usize::try_from(reader.u32()?).ok()?;
        while reader.at < end {
            reader.align(8);
            let code = reader.u8()?;
            match reader.signature()?.as_str() {
                "s" | "o" => {
                    let text = reader.text()?;
                    match code {
                        3 => message.member = text,
                        4 => message.error = text,
                        _ => {}
                    }
                }
                "g" => message.signature = reader.signature()?,
                "u" => {
                    let number = reader.u32()?;
                    if code == 5 {
                        message.answers = Some(number);
                    }
                }
                _ => return None,
            }
        }
        message.body = bytes.get(end.next_multiple_of(8)..)?.to_vec();
        Some(message)
    }

    /// The text that the body starts with: an object's path, or what an error says.
    pub(super) fn first_text(&self) -> Option<String> {
        let mut reader = self.reader();
        matches!(self.signature.as_bytes().first(), Some(b's' | b'o'))
            .then(|| reader.text())
            .flatten()
    }

    /// The body of systemd's `JobRemoved` (`uoss`): the job's path and its result.
    pub(super) fn removed_job(&self) -> Option<(String, String)> {
        if self.kind != Kind::Signal || self.member != "JobRemoved" || self.signature != "uoss" {
            return None;
        }
        let mut reader = self.reader();
        reader.u32()?;
        let job = reader.text()?;
        reader.text()?;
        Some((job, reader.text()?))
    }

    fn reader(&self) -> Reader<'_> {
        Reader {
            bytes: &self.body,
            at: 0,
        }
    }
}

/// Bytes that are being taken apart.
struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl Reader<'_> {
    fn align(&mut self, to: usize) {
        self.at = self.at.next_multiple_of(to);
    }

    fn take(&mut self, count: usize) -> Option<&[u8]> {
        let end = self.at.checked_add(count)?;
        let taken = self.bytes.get(self.at..end)?;
        self.at = end;
        Some(taken)
    }

    fn u8(&mut self) -> Option<u8> {
        self.take(1)?.first().copied()
    }

    fn u32(&mut self) -> Option<u32> {
        self.align(4);
        Some(u32::from_ne_bytes(self.take(4)?.try_into().ok()?))
    }

    fn text(&mut self) -> Option<String> {
        let length = usize::try_from(self.u32()?).ok()?;
        let text = String::from_utf8(self.take(length)?.to_vec()).ok()?;
        self.take(1)?;
        Some(text)
    }

    fn signature(&mut self) -> Option<String> {
        let length = usize::from(self.u8()?);
        let text = String::from_utf8(self.take(length)?.to_vec()).ok()?;
        self.take(1)?;
        Some(text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_call_has_the_specifications_bytes() {
        let method = Method {
            destination: "a.b",
            path: "/o",
            interface: "i.f",
            member: "M",
        };
        let mut body = Writer::default();
        body.text("x");
        let bytes = call(7, method, "s", body);
        if ORDER == b'l' {
            assert_eq!(
                bytes,
                [
                    b"l\x01\0\x01\x06\0\0\0\x07\0\0\0\x47\0\0\0".as_slice(),
                    b"\x01\x01o\0\x02\0\0\0/o\0\0\0\0\0\0",
                    b"\x02\x01s\0\x03\0\0\0i.f\0\0\0\0\0",
                    b"\x03\x01s\0\x01\0\0\0M\0\0\0\0\0\0\0",
                    b"\x06\x01s\0\x03\0\0\0a.b\0\0\0\0\0",
                    b"\x08\x01g\0\x01s\0\0",
                    b"\x01\0\0\0x\0",
                ]
                .concat()
            );
        }
        let head = bytes.first_chunk::<16>().unwrap();
        assert_eq!(Message::length(head), Some(bytes.len()));
        let message = Message::parse(&bytes).unwrap();
        assert_eq!((message.kind, message.member.as_str()), (Kind::Call, "M"));
        assert_eq!(message.first_text().as_deref(), Some("x"));
        // Any cut of it is refused, and none of them panics.
        for end in 0..bytes.len() - 6 {
            assert_eq!(Message::parse(&bytes[..end]), None, "{end}");
        }
    }

    #[test]
    fn properties_are_aligned() {
        let mut writer = Writer::default();
        writer.properties(&[
            ("P", Value::Numbers32(vec![5])),
            ("N", Value::Number(u64::MAX)),
            ("D", Value::Bytes(vec![7])),
        ]);
        if ORDER == b'l' {
            assert_eq!(
                writer.bytes,
                [
                    b"\x41\0\0\0\0\0\0\0".as_slice(),
                    b"\x01\0\0\0P\0\x02au\0\0\0\x04\0\0\0\x05\0\0\0\0\0\0\0",
                    b"\x01\0\0\0N\0\x01t\0\0\0\0\0\0\0\0",
                    b"\xff\xff\xff\xff\xff\xff\xff\xff",
                    b"\x01\0\0\0D\0\x02ay\0\0\0\x01\0\0\0\x07",
                ]
                .concat()
            );
        }
    }

    #[test]
    fn oversized_and_foreign_heads_are_refused() {
        for head in [
            *b"l\x02\0\x01\xff\xff\xff\xff\x01\0\0\0\x08\0\0\0",
            *b"l\x02\0\x01\0\0\0\0\x01\0\0\0\xff\xff\xff\x7f",
            *b"x\x02\0\x01\0\0\0\0\x01\0\0\0\x08\0\0\0",
        ] {
            assert_eq!(Message::length(&head), None, "{head:?}");
        }
    }
}
