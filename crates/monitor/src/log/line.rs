//! Bytes to lines, lines to JSON.

use super::Stream;
use crate::clock::{self, Timestamp};

/// The longest part of a line, in bytes: Docker's `defaultBufSize` (moby, daemon/logger/copier.go).
pub(super) const PART: usize = 16 << 10;

/// Cuts a stream into lines, and lines into parts.
#[derive(Debug, Default)]
pub(super) struct Splitter {
    /// The line that has no end yet, or its last part.
    held: Vec<u8>,
    /// When the first part of a line in parts was read.
    time: Option<Timestamp>,
}

impl Splitter {
    /// Calls `line(part, time of the line's first part, whether the line ends)` for every line, or
    /// part of one, that `bytes` completes. It returns the time that it used.
    pub(super) fn split(
        &mut self,
        mut bytes: &[u8],
        mut line: impl FnMut(&[u8], Option<Timestamp>, bool) -> Timestamp,
    ) {
        while !bytes.is_empty() {
            let room = PART - self.held.len();
            let window = bytes.get(..room).unwrap_or(bytes);
            if let Some(end) = memchr::memchr(b'\n', window) {
                let (part, rest) = bytes.split_at(end);
                if self.held.is_empty() {
                    line(part, self.time, true);
                } else {
                    self.held.extend_from_slice(part);
                    line(&self.held, self.time, true);
                    self.held.clear();
                }
                self.time = None;
                bytes = rest.get(1..).unwrap_or_default();
            } else if window.len() == room {
                self.held.extend_from_slice(window);
                bytes = bytes.get(room..).unwrap_or_default();
                // No character is cut in two, or both halves would be unreadable.
                let cut = whole_characters(&self.held);
                let time = line(self.held.get(..cut).unwrap_or_default(), self.time, false);
                self.time = Some(time);
                self.held.drain(..cut);
            } else {
                if self.held.capacity() == 0 {
                    self.held.reserve_exact(PART);
                }
                self.held.extend_from_slice(window);
                bytes = &[];
            }
        }
    }

    /// Calls `line` with what has no end.
    pub(super) fn rest(&mut self, line: impl FnOnce(&[u8], Option<Timestamp>)) {
        if !self.held.is_empty() {
            line(&self.held, self.time);
        }
        *self = Self::default();
    }

    /// Gives the buffer back if nothing is in it.
    pub(super) fn relax(&mut self) {
        if self.held.is_empty() {
            self.held = Vec::new();
        }
    }
}

/// How many bytes of a full part are left when a UTF-8 character that is cut off is put back.
fn whole_characters(part: &[u8]) -> usize {
    for back in 1..=3.min(part.len()) {
        let at = part.len() - back;
        match part.get(at) {
            // A continuation: its start is before.
            Some(0x80..=0xbf) => {}
            Some(0xc2..=0xdf) if back < 2 => return at,
            Some(0xe0..=0xef) if back < 3 => return at,
            Some(0xf0..=0xf4) if back < 4 => return at,
            _ => break,
        }
    }
    part.len()
}

/// Writes log lines; remembers the last second as text.
#[derive(Debug, Default)]
pub(super) struct Encoder {
    second: i64,
    text: String,
}

impl Encoder {
    /// Appends one line of the log.
    pub(super) fn append(
        &mut self,
        out: &mut Vec<u8>,
        part: &[u8],
        ends: bool,
        stream: Stream,
        time: Timestamp,
    ) {
        out.reserve(part.len() + 96);
        out.extend_from_slice(b"{\"log\":\"");
        escape(out, part);
        if ends {
            out.extend_from_slice(b"\\n");
        }
        out.extend_from_slice(match stream {
            Stream::Stdout => b"\",\"stream\":\"stdout\",\"time\":\"",
            Stream::Stderr => b"\",\"stream\":\"stderr\",\"time\":\"",
        });
        if self.text.is_empty() || self.second != time.seconds {
            self.second = time.seconds;
            self.text.clear();
            // Writing to a string cannot fail.
            clock::write_second(&mut self.text, time.seconds).unwrap_or_default();
        }
        out.extend_from_slice(self.text.as_bytes());
        fraction(out, time.nanoseconds);
        out.extend_from_slice(b"\"}\n");
    }
}

/// As [`clock::write_fraction`], without the formatting machinery.
fn fraction(out: &mut Vec<u8>, nanoseconds: u32) {
    if nanoseconds != 0 {
        let mut text = *b".000000000";
        let mut rest = nanoseconds;
        for digit in text.iter_mut().skip(1).rev() {
            *digit = b'0' + u8::try_from(rest % 10).unwrap_or(0);
            rest /= 10;
        }
        let kept = text.iter().rposition(|&digit| digit != b'0').unwrap_or(0);
        out.extend_from_slice(text.get(..=kept).unwrap_or_default());
    }
    out.push(b'Z');
}

/// What a byte needs in Docker's JSON: nothing, a look, or an escape.
const PLAIN: [bool; 256] = {
    let mut plain = [true; 256];
    let mut byte = 0;
    while byte < 0x20 {
        plain[byte] = false;
        byte += 1;
    }
    plain[b'"' as usize] = false;
    plain[b'\\' as usize] = false;
    plain[b'<' as usize] = false;
    plain[b'>' as usize] = false;
    plain[b'&' as usize] = false;
    // The first byte of U+2028 and U+2029.
    plain[0xe2] = false;
    plain
};

/// Escapes as moby's `ffjsonWriteJSONBytesAsString`; every byte that is not UTF-8 becomes `\ufffd`.
fn escape(out: &mut Vec<u8>, bytes: &[u8]) {
    for chunk in bytes.utf8_chunks() {
        escape_text(out, chunk.valid().as_bytes());
        for _ in chunk.invalid() {
            out.extend_from_slice(b"\\ufffd");
        }
    }
}

fn escape_text(out: &mut Vec<u8>, mut text: &[u8]) {
    loop {
        let plain = text.iter().position(|&byte| !PLAIN[usize::from(byte)]);
        let (before, rest) = text.split_at(plain.unwrap_or(text.len()));
        out.extend_from_slice(before);
        let Some((&byte, after)) = rest.split_first() else {
            return;
        };
        text = after;
        match byte {
            b'"' | b'\\' => out.extend_from_slice(&[b'\\', byte]),
            b'\n' => out.extend_from_slice(b"\\n"),
            b'\r' => out.extend_from_slice(b"\\r"),
            0xe2 => match after {
                [0x80, last @ (0xa8 | 0xa9), tail @ ..] => {
                    out.extend_from_slice(if *last == 0xa8 {
                        b"\\u2028"
                    } else {
                        b"\\u2029"
                    });
                    text = tail;
                }
                _ => out.push(byte),
            },
            _ => {
                const HEX: &[u8; 16] = b"0123456789abcdef";
                out.extend_from_slice(b"\\u00");
                out.push(HEX[usize::from(byte >> 4)]);
                out.push(HEX[usize::from(byte & 0xf)]);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_character_on_the_cut_stays_whole() {
        let mut text = "x".repeat(PART - 1).into_bytes();
        text.extend("\u{20ac}uro\n".as_bytes());
        let mut parts = Vec::new();
        let mut splitter = Splitter::default();
        for byte in &text {
            splitter.split(&[*byte], |part, _, ends| {
                parts.push((part.to_vec(), ends));
                Timestamp::default()
            });
        }
        assert_eq!(parts.len(), 2);
        assert_eq!(parts[0].0.len(), PART - 1);
        assert_eq!(parts[1], ("\u{20ac}uro".as_bytes().to_vec(), true));
    }

    #[test]
    fn bytes_that_are_no_text_are_cut_anyhow() {
        let mut parts = Vec::new();
        let mut splitter = Splitter::default();
        splitter.split(&vec![0x80; PART * 2 + 5], |part, _, _| {
            parts.push(part.len());
            Timestamp::default()
        });
        assert_eq!(parts, [PART, PART]);
    }
}
