//! Tar bytes in, compressed bytes out, on all processors.
//!
//! The bytes are cut into blocks that are compressed independently of each other, in order: for
//! gzip one member of deflate blocks, each with the 32 KiB before it as its dictionary (as pigz
//! does); for zstd one frame a block. The result depends on the level and the bytes only, so that
//! an upload can be taken up again by compressing once more.

use std::collections::VecDeque;
use std::fmt;
use std::io::{self, Read};
use std::str::FromStr;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Condvar, Mutex, PoisonError};

use flate2::{Compress, Crc, FlushCompress, Status};

/// What gzip compresses at a time, in bytes.
const GZIP_BLOCK: usize = 512 << 10;
/// What zstd compresses at a time: a frame knows nothing of those before it.
const ZSTD_BLOCK: usize = 2 << 20;
/// How far deflate looks back.
const WINDOW: usize = 32 << 10;
/// Of no name, made at no time, on Unix (RFC 1952, section 2.3).
const GZIP_HEADER: [u8; 10] = [0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 3];
/// A last block without bytes (RFC 1951, section 3.2.6).
const DEFLATE_END: [u8; 2] = [3, 0];

/// How a layer is compressed to be sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Compression {
    /// The format.
    pub kind: Kind,
    /// 1 to 9 for gzip, 1 to 22 for zstd.
    pub level: i32,
}

/// A compressed format.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// What every registry and engine takes.
    Gzip,
    /// Smaller and faster; for engines since 2021 or so.
    Zstd,
}

impl Default for Compression {
    /// gzip at a level that is fast and hardly larger than the usual 6.
    fn default() -> Self {
        Self {
            kind: Kind::Gzip,
            level: 4,
        }
    }
}

impl Compression {
    /// The format with a level, its usual one by default.
    ///
    /// # Errors
    /// Says which levels there are.
    pub fn new(kind: Kind, level: Option<i32>) -> Result<Self, String> {
        let (usual, most) = match kind {
            Kind::Gzip => (Self::default().level, 9),
            Kind::Zstd => (3, 22),
        };
        let level = level.unwrap_or(usual);
        match (1..=most).contains(&level) {
            true => Ok(Self { kind, level }),
            false => Err(format!("{kind} has levels 1 to {most}, not {level}")),
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Gzip => "gzip",
            Self::Zstd => "zstd",
        })
    }
}

impl FromStr for Kind {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "gzip" => Ok(Self::Gzip),
            "zstd" => Ok(Self::Zstd),
            other => Err(format!("{other:?} is not a compression; use gzip or zstd")),
        }
    }
}

/// A block to be compressed.
struct Block {
    compression: Compression,
    bytes: Vec<u8>,
    /// What came before it, for gzip.
    dictionary: Vec<u8>,
    reply: SyncSender<io::Result<Squeezed>>,
}

/// A block that is compressed.
struct Squeezed {
    bytes: Vec<u8>,
    crc: Crc,
}

/// Threads that compress blocks, for all layers of a push.
#[derive(Debug, Clone, Default)]
pub(crate) struct Pool {
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    queue: Mutex<(VecDeque<Block>, bool)>,
    changed: Condvar,
}

impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Shared")
    }
}

impl Pool {
    /// One thread's work, until [`close`](Self::close).
    pub(crate) fn work(&self) {
        let mut deflate: Option<(i32, Compress)> = None;
        loop {
            let mut queue = self
                .shared
                .queue
                .lock()
                .unwrap_or_else(PoisonError::into_inner);
            let block = loop {
                if let Some(block) = queue.0.pop_front() {
                    break block;
                }
                if queue.1 {
                    return;
                }
                queue = self
                    .shared
                    .changed
                    .wait(queue)
                    .unwrap_or_else(PoisonError::into_inner);
            };
            drop(queue);
            let squeezed = squeeze(&block, &mut deflate);
            // Who wanted it may have failed.
            block.reply.send(squeezed).ok();
        }
    }

    /// Ends the threads once the queue is empty.
    pub(crate) fn close(&self) {
        self.queue(|queue| queue.1 = true);
    }

    fn add(&self, block: Block) {
        self.queue(|queue| queue.0.push_back(block));
    }

    fn queue(&self, change: impl FnOnce(&mut (VecDeque<Block>, bool))) {
        let mut queue = self
            .shared
            .queue
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        change(&mut queue);
        drop(queue);
        self.shared.changed.notify_all();
    }

    /// `source`, compressed, with at most `ahead` blocks on their way.
    pub(crate) fn compress<R: Read>(
        &self,
        source: R,
        compression: Compression,
        ahead: usize,
    ) -> Compressed<R> {
        let start = match compression.kind {
            Kind::Gzip => GZIP_HEADER.to_vec(),
            Kind::Zstd => Vec::new(),
        };
        Compressed {
            pool: self.clone(),
            source: Some(source),
            compression,
            ahead: ahead.max(1),
            pending: VecDeque::new(),
            dictionary: Vec::new(),
            ready: io::Cursor::new(start),
            crc: Crc::new(),
            any: false,
            ended: false,
        }
    }
}

fn squeeze(block: &Block, deflate: &mut Option<(i32, Compress)>) -> io::Result<Squeezed> {
    let level = block.compression.level;
    let mut crc = Crc::new();
    if block.compression.kind == Kind::Zstd {
        let mut compressor = zstd::bulk::Compressor::new(level)?;
        compressor.include_checksum(true)?;
        let bytes = compressor.compress(&block.bytes)?;
        return Ok(Squeezed { bytes, crc });
    }
    crc.update(&block.bytes);
    let compress = match deflate {
        Some((of, compress)) if *of == level => {
            compress.reset();
            compress
        }
        other => {
            let level = flate2::Compression::new(u32::try_from(level).unwrap_or(6));
            &mut other
                .insert((block.compression.level, Compress::new(level, false)))
                .1
        }
    };
    if !block.dictionary.is_empty() {
        compress.set_dictionary(&block.dictionary)?;
    }
    // What does not compress grows by a few bytes per 64 KiB, and the flush adds five.
    let mut bytes = Vec::with_capacity(block.bytes.len() + block.bytes.len() / 1024 + 64);
    let mut rest = block.bytes.as_slice();
    loop {
        let before = compress.total_in();
        let status = compress.compress_vec(rest, &mut bytes, FlushCompress::Sync)?;
        let taken = usize::try_from(compress.total_in() - before).unwrap_or(usize::MAX);
        rest = rest.get(taken..).unwrap_or_default();
        if rest.is_empty() && bytes.len() < bytes.capacity() {
            break;
        }
        if status == Status::StreamEnd {
            return Err(io::ErrorKind::InvalidData.into());
        }
        bytes.reserve(bytes.len() / 2 + 64);
    }
    Ok(Squeezed { bytes, crc })
}

/// Compressed bytes, in the order of the source.
pub(crate) struct Compressed<R> {
    pool: Pool,
    /// `None` once it is read to its end.
    source: Option<R>,
    compression: Compression,
    ahead: usize,
    pending: VecDeque<Receiver<io::Result<Squeezed>>>,
    dictionary: Vec<u8>,
    ready: io::Cursor<Vec<u8>>,
    crc: Crc,
    /// Whether any block was made.
    any: bool,
    ended: bool,
}

impl<R: Read> Compressed<R> {
    /// Reads blocks until enough are on their way.
    fn fill(&mut self) -> io::Result<()> {
        let size = match self.compression.kind {
            Kind::Gzip => GZIP_BLOCK,
            Kind::Zstd => ZSTD_BLOCK,
        };
        while self.pending.len() < self.ahead
            && let Some(source) = &mut self.source
        {
            let mut bytes = Vec::with_capacity(size);
            source.by_ref().take(size as u64).read_to_end(&mut bytes)?;
            // An empty zstd stream is a frame all the same.
            let is_needed = !bytes.is_empty() || (!self.any && self.compression.kind == Kind::Zstd);
            if bytes.len() < size {
                self.source = None;
            }
            if !is_needed {
                break;
            }
            self.any = true;
            let mut dictionary = Vec::new();
            if self.compression.kind == Kind::Gzip {
                let tail = bytes.len().saturating_sub(WINDOW);
                let next = bytes.get(tail..).unwrap_or_default().to_vec();
                dictionary = std::mem::replace(&mut self.dictionary, next);
            }
            let (reply, receiver) = sync_channel(1);
            self.pool.add(Block {
                compression: self.compression,
                bytes,
                dictionary,
                reply,
            });
            self.pending.push_back(receiver);
        }
        Ok(())
    }

    fn trailer(&self) -> Vec<u8> {
        let mut trailer = Vec::new();
        if self.compression.kind == Kind::Gzip {
            trailer.extend(DEFLATE_END);
            trailer.extend(self.crc.sum().to_le_bytes());
            trailer.extend(self.crc.amount().to_le_bytes());
        }
        trailer
    }
}

impl<R: Read> Read for Compressed<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            let count = self.ready.read(buffer)?;
            if count > 0 || self.ended || buffer.is_empty() {
                return Ok(count);
            }
            self.fill()?;
            let next = match self.pending.pop_front() {
                Some(receiver) => {
                    let squeezed = receiver
                        .recv()
                        .map_err(|_| io::Error::other("a compressing thread is gone"))??;
                    self.crc.combine(&squeezed.crc);
                    squeezed.bytes
                }
                None => {
                    self.ended = true;
                    self.trailer()
                }
            };
            self.ready = io::Cursor::new(next);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::{Command, Stdio};

    fn squeezed(plain: &[u8], compression: Compression) -> Vec<u8> {
        let pool = Pool::default();
        std::thread::scope(|scope| {
            for _ in 0..2 {
                scope.spawn(|| pool.work());
            }
            let mut out = Vec::new();
            let read = pool.compress(plain, compression, 3).read_to_end(&mut out);
            pool.close();
            read.unwrap();
            out
        })
    }

    fn samples() -> Vec<Vec<u8>> {
        let text: Vec<u8> = (0..700_000u32)
            .flat_map(|n| format!("{} ", n % 977).into_bytes())
            .collect();
        let mut state = 1u64;
        let noise: Vec<u8> = std::iter::repeat_with(|| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state.to_le_bytes()
        })
        .take(200_000)
        .flatten()
        .collect();
        vec![
            Vec::new(),
            b"x".to_vec(),
            vec![0; GZIP_BLOCK],
            vec![7; GZIP_BLOCK + 1],
            text,
            noise,
        ]
    }

    #[test]
    fn what_is_compressed_inflates_to_what_it_was_and_is_the_same_each_time() {
        for plain in samples() {
            for (kind, level, program) in [
                (Kind::Gzip, 1, "gzip"),
                (Kind::Gzip, 6, "gzip"),
                (Kind::Zstd, 3, "zstd"),
            ] {
                let compression = Compression::new(kind, Some(level)).unwrap();
                let out = squeezed(&plain, compression);
                assert!(out == squeezed(&plain, compression));
                // Another program's word for it.
                let mut child = Command::new(program)
                    .arg("-dc")
                    .stdin(Stdio::piped())
                    .stdout(Stdio::piped())
                    .spawn()
                    .unwrap();
                let mut stdin = child.stdin.take().unwrap();
                let back = std::thread::scope(|scope| {
                    scope.spawn(move || io::Write::write_all(&mut stdin, &out).unwrap());
                    child.wait_with_output().unwrap()
                });
                assert!(back.status.success(), "{program}");
                assert!(back.stdout == plain, "{kind} {level} of {}", plain.len());
            }
        }
    }

    #[test]
    fn levels_are_checked() {
        assert!(Compression::new(Kind::Gzip, Some(10)).is_err());
        assert!(Compression::new(Kind::Zstd, Some(0)).is_err());
        assert_eq!(Compression::new(Kind::Zstd, None).unwrap().level, 3);
        assert!("bzip2".parse::<Kind>().is_err());
    }
}
