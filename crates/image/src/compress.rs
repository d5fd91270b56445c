//! Tar bytes in, compressed bytes out, on all processors.
//!
//! The bytes are cut into blocks that are compressed independently of each other, in order: for
//! gzip one member a block (RFC 1952, section 2.2: members follow one another), for zstd one frame.
//! The result depends on the level and the bytes only, so that an upload can be taken up again by
//! compressing once more.

use std::collections::VecDeque;
use std::fmt;
use std::io::{self, Read};
use std::str::FromStr;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Condvar, Mutex, PoisonError};

/// What gzip compresses at a time, in bytes: a member knows nothing of those before it.
const GZIP_BLOCK: usize = 1 << 20;
/// What zstd compresses at a time.
const ZSTD_BLOCK: usize = 2 << 20;

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
    /// gzip at a level that is fast and hardly larger than what zlib makes at the usual 6.
    fn default() -> Self {
        Self {
            kind: Kind::Gzip,
            level: 2,
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
    reply: SyncSender<io::Result<Vec<u8>>>,
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
        let mut compressor = None;
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
            let squeezed = squeeze(&block, &mut compressor);
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
        Compressed {
            pool: self.clone(),
            source: Some(source),
            compression,
            ahead: ahead.max(1),
            pending: VecDeque::new(),
            ready: io::Cursor::default(),
            any: false,
        }
    }
}

/// What a thread compresses with, of one level.
enum Compressor {
    Gzip(libdeflater::Compressor),
    Zstd(zstd::bulk::Compressor<'static>),
}

impl Compressor {
    fn new(Compression { kind, level }: Compression) -> io::Result<Self> {
        match kind {
            Kind::Gzip => {
                let level = libdeflater::CompressionLvl::new(level)
                    .map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))?;
                Ok(Self::Gzip(libdeflater::Compressor::new(level)))
            }
            Kind::Zstd => {
                let mut compressor = zstd::bulk::Compressor::new(level)?;
                compressor.include_checksum(true)?;
                Ok(Self::Zstd(compressor))
            }
        }
    }
}

fn squeeze(block: &Block, kept: &mut Option<(Compression, Compressor)>) -> io::Result<Vec<u8>> {
    let compressor = match kept {
        Some((of, compressor)) if *of == block.compression => compressor,
        other => {
            let new = Compressor::new(block.compression)?;
            &mut other.insert((block.compression, new)).1
        }
    };
    match compressor {
        Compressor::Zstd(compressor) => compressor.compress(&block.bytes),
        Compressor::Gzip(compressor) => {
            let mut out = vec![0; compressor.gzip_compress_bound(block.bytes.len())];
            let len = compressor
                .gzip_compress(&block.bytes, &mut out)
                .map_err(io::Error::other)?;
            out.truncate(len);
            Ok(out)
        }
    }
}

/// Compressed bytes, in the order of the source.
pub(crate) struct Compressed<R> {
    pool: Pool,
    /// `None` once it is read to its end.
    source: Option<R>,
    compression: Compression,
    ahead: usize,
    pending: VecDeque<Receiver<io::Result<Vec<u8>>>>,
    ready: io::Cursor<Vec<u8>>,
    /// Whether any block was made.
    any: bool,
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
            // What is empty is a member or a frame all the same.
            let is_needed = !bytes.is_empty() || !self.any;
            if bytes.len() < size {
                self.source = None;
            }
            if !is_needed {
                break;
            }
            self.any = true;
            let (reply, receiver) = sync_channel(1);
            self.pool.add(Block {
                compression: self.compression,
                bytes,
                reply,
            });
            self.pending.push_back(receiver);
        }
        Ok(())
    }
}

impl<R: Read> Read for Compressed<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            let count = self.ready.read(buffer)?;
            if count > 0 || buffer.is_empty() {
                return Ok(count);
            }
            self.fill()?;
            let Some(receiver) = self.pending.pop_front() else {
                return Ok(0);
            };
            let squeezed = receiver
                .recv()
                .map_err(|_| io::Error::other("a compressing thread is gone"))??;
            self.ready = io::Cursor::new(squeezed);
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
