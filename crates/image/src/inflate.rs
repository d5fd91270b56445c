//! Compressed bytes in, tar bytes out. What a stream is, its first bytes say, not its media type:
//! registries and archives are full of wrong ones.

use std::io::{self, BufRead as _, BufReader, Cursor, Read, Write};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Mutex, PoisonError};
use std::thread;

use knarr_cas::Hasher;
use knarr_spec::Digest;

/// What moves at once, in bytes.
const PIECE: usize = 256 << 10;
/// The largest window that a zstd stream may ask for, as a power of two: 8 MiB, which every decoder
/// must have (RFC 8878, section 3.1.1.1.2) and which all levels up to 19 keep to. Several layers are
/// inflated at once, and nobody's images may take the memory of others.
const ZSTD_WINDOW_LOG: u32 = 23;
/// One stream at a time may ask for 32 MiB, as `zstd --ultra -20` makes it.
const ZSTD_LARGE_WINDOW_LOG: u32 = 25;
/// The largest dictionary that an xz stream may ask for, in bytes: that of its default level.
const XZ_DICTIONARY: u64 = 8 << 20;
/// One stream at a time may ask for that of level 8.
const XZ_LARGE_DICTIONARY: u64 = 32 << 20;
/// The bytes of a stream that tell how it is compressed, and what it asks for: an xz stream's header
/// and the start of its first block's.
const START: u64 = 24;
/// Who has a large window.
static LARGE: Mutex<()> = Mutex::new(());
/// Buffers between the inflating and the storing thread.
const BUFFERS: usize = 4;

/// How a stream is compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Compression {
    None,
    Gzip,
    Zstd,
    Xz,
    Bzip2,
}

/// What went through [`copy`].
#[derive(Debug)]
pub(crate) struct Copied {
    /// Of the compressed bytes, where they were hashed.
    pub(crate) digest: Option<Digest>,
}

/// On which side a copy failed.
#[derive(Debug)]
pub(crate) enum Failure {
    /// The source broke.
    Source(io::Error),
    /// The source's bytes all came but cannot be inflated; their digest, where it was asked for.
    Stream(io::Error, Option<Digest>),
    /// The bytes could not be taken.
    Sink(io::Error),
}

/// When the compressed bytes are hashed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Hashing {
    Always,
    /// Not where they are the tar itself, which the sink hashes.
    Compressed,
    Never,
}

/// What the first bytes of a stream say.
pub(crate) fn detect(start: &[u8]) -> Compression {
    match start {
        [0x1f, 0x8b, ..] => Compression::Gzip,
        [0x28, 0xb5, 0x2f, 0xfd, ..] => Compression::Zstd,
        // A skippable frame, as zstd:chunked and pzstd write first.
        [0x50..=0x5f, 0x2a, 0x4d, 0x18, ..] => Compression::Zstd,
        [b'B', b'Z', b'h', b'1'..=b'9', ..] => Compression::Bzip2,
        [0xfd, b'7', b'z', b'X', b'Z', 0, ..] => Compression::Xz,
        _ => Compression::None,
    }
}

/// Reads `source` to its end and writes what it holds, inflated, to `sink`.
pub(crate) fn copy(
    mut source: &mut dyn Read,
    hashing: Hashing,
    sink: &mut dyn Write,
) -> Result<Copied, Failure> {
    let mut start = Vec::new();
    Read::by_ref(&mut source)
        .take(START)
        .read_to_end(&mut start)
        .map_err(Failure::Source)?;
    let compression = detect(&start);
    let hashed = match hashing {
        Hashing::Always => true,
        Hashing::Compressed => compression != Compression::None,
        Hashing::Never => false,
    };
    let mut tee = Tee {
        source: Cursor::new(start).chain(source),
        hasher: hashed.then(Hasher::new),
    };
    let inflated = inflate(compression, &mut tee, sink);
    if let Err(failure @ Failure::Sink(_)) = inflated {
        return Err(failure);
    }
    // What follows the compressed data belongs to the blob's digest; and where the data is bad,
    // whether it is what was promised is the better thing to say.
    io::copy(&mut tee, &mut io::sink()).map_err(Failure::Source)?;
    let digest = tee.hasher.map(Hasher::finish);
    match inflated {
        Ok(()) => Ok(Copied { digest }),
        Err(Failure::Source(cause)) => Err(Failure::Stream(cause, digest)),
        Err(failure) => Err(failure),
    }
}

/// [`copy`] to a sink that works in a thread of its own, so that inflating and storing take two
/// processors; the sink is given back.
pub(crate) fn copy_beside<S: Write + Send>(
    source: &mut dyn Read,
    hashing: Hashing,
    mut sink: S,
) -> Result<(Result<Copied, Failure>, S), crate::Error> {
    thread::scope(|scope| {
        let (full, filled) = sync_channel::<Vec<u8>>(BUFFERS);
        let (empty, emptied) = sync_channel::<Vec<u8>>(BUFFERS + 2);
        let storing = scope.spawn(move || {
            let mut stored = Ok(());
            for buffer in filled {
                stored = sink.write_all(&buffer);
                if stored.is_err() {
                    break;
                }
                // Its other end may have all it needs.
                empty.try_send(buffer).ok();
            }
            (sink, stored)
        });
        let mut pipe = Pipe { full, emptied };
        let copied = copy(source, hashing, &mut pipe);
        drop(pipe);
        let (sink, stored) = storing.join().map_err(|_| crate::Error::Worker)?;
        let copied = match stored {
            Ok(()) => copied,
            // What the pipe said is only that the other end is gone.
            Err(cause) => Err(Failure::Sink(cause)),
        };
        Ok((copied, sink))
    })
}

/// The inflating thread's end.
struct Pipe {
    full: SyncSender<Vec<u8>>,
    emptied: Receiver<Vec<u8>>,
}

impl Write for Pipe {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut buffer = self.emptied.try_recv().unwrap_or_default();
        buffer.clear();
        buffer.extend_from_slice(bytes);
        match self.full.send(buffer) {
            Ok(()) => Ok(bytes.len()),
            Err(_) => Err(io::ErrorKind::BrokenPipe.into()),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The window that the first frame of a zstd stream needs, in bytes (RFC 8878, section 3.1.1.1).
fn zstd_window(start: &[u8]) -> u64 {
    let [_, _, _, _, descriptor, rest @ ..] = start else {
        return 0;
    };
    if descriptor & 0x20 != 0 {
        // A single segment is its own window; the size that follows is for the decoder to judge.
        return 0;
    }
    let byte = rest.first().copied().unwrap_or_default();
    let base = 1u64 << (10 + (byte >> 3));
    base + (base >> 3) * u64::from(byte & 7)
}

fn inflate(
    compression: Compression,
    source: &mut impl Read,
    sink: &mut dyn Write,
) -> Result<(), Failure> {
    let mut buffered = BufReader::with_capacity(PIECE / 2, source);
    match compression {
        Compression::None => pump(buffered.get_mut(), sink),
        Compression::Gzip => pump(&mut flate2::bufread::MultiGzDecoder::new(buffered), sink),
        Compression::Zstd => {
            let start = buffered.fill_buf().map_err(Failure::Source)?;
            let is_large = zstd_window(start) > 1 << ZSTD_WINDOW_LOG;
            let _large = is_large.then(|| LARGE.lock().unwrap_or_else(PoisonError::into_inner));
            let limit = match is_large {
                true => ZSTD_LARGE_WINDOW_LOG,
                false => ZSTD_WINDOW_LOG,
            };
            let mut decoder =
                zstd::stream::read::Decoder::with_buffer(buffered).map_err(Failure::Source)?;
            decoder.window_log_max(limit).map_err(Failure::Source)?;
            pump(&mut decoder, sink)
        }
        Compression::Bzip2 => pump(&mut bzip2::bufread::MultiBzDecoder::new(buffered), sink),
        Compression::Xz => {
            let start = buffered.fill_buf().map_err(Failure::Source)?;
            let dictionary = xz_dictionary(start);
            if let Some(size) = dictionary.filter(|size| *size > XZ_LARGE_DICTIONARY) {
                let message = format!(
                    "it was compressed by xz with a dictionary of {} MiB, more than {} MiB; unpack it with `xz -d` first",
                    size >> 20,
                    XZ_LARGE_DICTIONARY >> 20
                );
                let error = io::Error::new(io::ErrorKind::Unsupported, message);
                return Err(Failure::Source(error));
            }
            let is_large = dictionary.is_none_or(|size| size > XZ_DICTIONARY);
            let _large = is_large.then(|| LARGE.lock().unwrap_or_else(PoisonError::into_inner));
            let limit = match is_large {
                true => XZ_LARGE_DICTIONARY,
                false => XZ_DICTIONARY,
            };
            // In KiB, with a megabyte for the rest of the decoder.
            let limit = u32::try_from((limit >> 10) + 1024).unwrap_or(u32::MAX);
            let mut decoder = lzma_rust2::XzReader::new_mem_limit(buffered, true, limit);
            pump(&mut decoder, sink)
        }
    }
}

/// The dictionary that the first block of an xz stream needs, in bytes; `None` where it is not said
/// in the usual way (xz-file-format 1.2, sections 2.1.1, 3.1 and 5.3.1).
fn xz_dictionary(start: &[u8]) -> Option<u64> {
    let block = start.get(12..)?;
    // One filter, and neither of the optional sizes: what every encoder that streams writes.
    let [_, 0, 0x21, 1, bits, ..] = block else {
        return None;
    };
    match bits {
        0..=39 => Some((2 | u64::from(bits & 1)) << (bits / 2 + 11)),
        40 => Some((4 << 30) - 1),
        _ => None,
    }
}

pub(crate) fn pump(source: &mut dyn Read, sink: &mut dyn Write) -> Result<(), Failure> {
    let mut buffer = vec![0; PIECE];
    loop {
        let n = match source.read(&mut buffer) {
            Ok(n) => n,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(Failure::Source(error)),
        };
        match buffer.get(..n) {
            None | Some([]) => return Ok(()),
            Some(bytes) => sink.write_all(bytes).map_err(Failure::Sink)?,
        }
    }
}

/// Hashes what passes.
struct Tee<R> {
    source: R,
    hasher: Option<Hasher>,
}

impl<R: Read> Read for Tee<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let n = self.source.read(buffer)?;
        if let (Some(hasher), Some(bytes)) = (&mut self.hasher, buffer.get(..n)) {
            hasher.update(bytes);
        }
        Ok(n)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn gzip(bytes: &[u8]) -> Vec<u8> {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
        encoder.write_all(bytes).unwrap();
        encoder.finish().unwrap()
    }

    #[test]
    fn every_compression_gives_the_same_bytes_and_its_own_digest() {
        let plain: Vec<u8> = (0..1_000_000u32)
            .flat_map(|n| (n % 251).to_le_bytes())
            .collect();
        let (first, second) = plain.split_at(1000);
        // Concatenated gzip members are one stream.
        let two = [gzip(first), gzip(second)].concat();
        let squeezed = zstd::stream::encode_all(&plain[..], 3).unwrap();
        let mut encoder = bzip2::write::BzEncoder::new(Vec::new(), bzip2::Compression::default());
        encoder.write_all(&plain).unwrap();
        let bzip2 = encoder.finish().unwrap();
        for source in [plain.clone(), gzip(&plain), two, squeezed, bzip2] {
            let mut out = Vec::new();
            let copied = copy(&mut &source[..], Hashing::Always, &mut out).unwrap();
            assert!(out == plain);
            assert_eq!(copied.digest, Some(Hasher::digest(&source)));
            let cut = &source[..source.len() - 1];
            let result = copy(&mut &cut[..], Hashing::Always, &mut io::sink());
            assert_eq!(result.is_ok(), source == plain);
        }
        let mut out = Vec::new();
        let copied = copy(&mut &plain[..], Hashing::Compressed, &mut out).unwrap();
        assert_eq!(copied.digest, None);
        for odd in [&b""[..], b"x", b"\x1f"] {
            let mut out = Vec::new();
            copy(&mut &odd[..], Hashing::Always, &mut out).unwrap();
            assert_eq!(out, odd);
        }
    }

    #[test]
    fn xz_streams_are_inflated_in_little_memory() {
        use base64::Engine as _;
        // `knarr`, a thousand lines of it, by `xz -0`, `-6` and `-9`.
        let stream = |middle: &str, rest: &str| {
            let text = format!("/Td6WFoAAATm1rRGAgAhA{middle}4BdvACddADWbiEh{rest}");
            base64::engine::general_purpose::STANDARD
                .decode(text)
                .unwrap()
        };
        let rest = "QOwBXND32d8wtX9CGQJHWkMB95cu9SV14f0qJ3PsEqUbkAAAAstFa6UdPYYUAAUPwLgAAAE8kQEKxxGf7AgAAAAAEWVo=";
        let small = stream(
            "QwAAACPmEGc",
            "GIeM9cF/NDhOUnJm9j+hjUSZBKFw2stgujZvIAvjtb72DLAAAstFa6UdPYYUAAUPwLgAAAE8kQEKxxGf7AgAAAAAEWVo=",
        );
        let (usual, large) = (stream("RYAAAB0L+Wj", rest), stream("RwAAAAQz1jM", rest));
        let plain = b"knarr\n".repeat(1000);
        let two = [usual.clone(), small.clone()].concat();
        for (source, expected) in [(&small, &plain), (&usual, &plain), (&two, &plain.repeat(2))] {
            let mut out = Vec::new();
            let copied = copy(&mut &source[..], Hashing::Always, &mut out).unwrap();
            assert!(out == *expected);
            assert_eq!(copied.digest, Some(Hasher::digest(source)));
        }
        // Cut anywhere, or with a byte changed, it is an error.
        for end in 7..usual.len() {
            let cut = &usual[..end];
            assert!(
                copy(&mut &cut[..], Hashing::Never, &mut io::sink()).is_err(),
                "{end}"
            );
        }
        let mut changed = usual.clone();
        changed[60] ^= 1;
        assert!(copy(&mut &changed[..], Hashing::Never, &mut io::sink()).is_err());
        let refused = copy(&mut &large[..], Hashing::Never, &mut io::sink());
        assert!(matches!(
            refused,
            Err(Failure::Source(e) | Failure::Stream(e, _)) if e.to_string().contains("64 MiB")
        ));
    }
}
