//! Making inputs from others.

/// Numbers that come out the same for the same seed (xorshift64*; Vigna, 2016).
#[derive(Debug)]
pub struct Random(u64);

impl Random {
    /// A sequence of its own for every seed.
    pub fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    /// Any number.
    pub fn number(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    /// A number below `limit`; 0 where that is 0.
    pub fn below(&mut self, limit: usize) -> usize {
        let limit = limit.max(1) as u64;
        usize::try_from(self.number() % limit).unwrap_or_default()
    }

    /// One of some.
    pub fn of<'a, T>(&mut self, all: &'a [T]) -> Option<&'a T> {
        all.get(self.below(all.len()))
    }

    fn byte(&mut self) -> u8 {
        let [byte, ..] = self.number().to_le_bytes();
        byte
    }
}

/// What parsers trip over.
const ODD: [&[u8]; 16] = [
    b"\0",
    b"\xff",
    b"-1",
    b"0",
    b"9",
    b"/",
    b"..",
    b"../../",
    b"\"",
    b"\\",
    b"\n",
    b"=",
    b",",
    b"18446744073709551615",
    b"9223372036854775808",
    "\u{feff}".as_bytes(),
];
/// The unit of tars and indexes.
const BLOCK: usize = 512;
/// Inputs do not grow beyond.
const MOST: usize = 256 << 10;

/// One input of the corpus with one to eight changes.
pub(crate) fn mutated(corpus: &[Vec<u8>], words: &[&[u8]], random: &mut Random) -> Vec<u8> {
    let mut input = random.of(corpus).cloned().unwrap_or_default();
    for _ in 0..=random.below(8) {
        change(&mut input, corpus, words, random);
    }
    input.truncate(MOST);
    input
}

fn change(input: &mut Vec<u8>, corpus: &[Vec<u8>], words: &[&[u8]], random: &mut Random) {
    let at = random.below(input.len());
    let left = input.len().saturating_sub(at);
    match random.below(9) {
        0 => {
            if let Some(byte) = input.get_mut(at) {
                *byte ^= 1 << random.below(8);
            }
        }
        1 => {
            let value = random.byte();
            if let Some(byte) = input.get_mut(at) {
                *byte = value;
            }
        }
        2 => input.truncate(at),
        3 => {
            let end = at + random.below(left.min(64));
            input.drain(at..end);
        }
        // A word in the place of what is there, or between.
        4 | 5 => {
            let words = if random.below(2) == 0 { words } else { &ODD };
            let word = random.of(words).copied().unwrap_or_default();
            let over = if random.below(2) == 0 {
                word.len().min(left)
            } else {
                0
            };
            input.splice(at..at + over, word.iter().copied());
        }
        // A piece twice.
        6 => {
            let end = at + random.below(left.min(2 * BLOCK));
            let piece = input.get(at..end).unwrap_or_default().to_vec();
            input.splice(at..at, piece);
        }
        // A block away, or twice.
        7 => {
            let block = at - at % BLOCK;
            let end = (block + BLOCK).min(input.len());
            let piece = input.get(block..end).unwrap_or_default().to_vec();
            match random.below(2) {
                0 => drop(input.drain(block..end)),
                _ => drop(input.splice(block..block, piece)),
            }
        }
        // The end of another.
        _ => {
            let other = random.of(corpus).map(Vec::as_slice).unwrap_or_default();
            let from = random.below(other.len());
            input.truncate(at);
            input.extend_from_slice(other.get(from..).unwrap_or_default());
        }
    }
}
