//! The files that hold the contents of a tree's files.

use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::FileExt;

use super::File;

/// Open files that [`Piece`](super::Piece)s point into. The first is the layer's own tar.
#[derive(Debug)]
pub struct Sources {
    files: Vec<fs::File>,
}

impl Sources {
    /// The index of the layer's own tar.
    pub const TAR: usize = 0;

    /// Sources with nothing but the layer's own tar.
    pub fn new(tar: fs::File) -> Self {
        Self { files: vec![tar] }
    }

    /// Adds another file and returns its index.
    pub fn add(&mut self, file: fs::File) -> usize {
        self.files.push(file);
        self.files.len() - 1
    }

    /// The open file behind an index, for copy_file_range(2) and the like.
    pub fn file(&self, source: usize) -> Option<&fs::File> {
        self.files.get(source)
    }

    /// Fills `buffer` from byte `offset` of a source.
    ///
    /// # Errors
    /// As pread(2); `UnexpectedEof` where the source is shorter.
    pub fn read_at(&self, source: usize, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        let file = self
            .files
            .get(source)
            .ok_or_else(|| io::Error::from(io::ErrorKind::NotFound))?;
        file.read_exact_at(buffer, offset)
    }

    /// Writes a file's whole content, zeros included, to `out`.
    ///
    /// # Errors
    /// As pread(2) and what `out` returns.
    pub fn copy(&self, file: &File, out: &mut dyn Write) -> io::Result<()> {
        let mut buffer = vec![0; 128 << 10];
        let mut at = 0;
        for piece in file.pieces() {
            zeros(piece.at.saturating_sub(at), out)?;
            let mut done = 0;
            while done < piece.len {
                let part = usize::try_from(piece.len - done)
                    .map_or(buffer.len(), |left| left.min(buffer.len()));
                let Some(chunk) = buffer.get_mut(..part) else {
                    break;
                };
                self.read_at(piece.source, piece.offset.saturating_add(done), chunk)?;
                out.write_all(chunk)?;
                done += part as u64;
            }
            at = piece.at.saturating_add(piece.len);
        }
        zeros(file.size.saturating_sub(at), out)
    }
}

/// Writes `count` zero bytes.
fn zeros(count: u64, out: &mut dyn Write) -> io::Result<()> {
    io::copy(&mut io::Read::take(io::repeat(0), count), out).map(drop)
}
