//! Members and their bytes to an archive.

use std::fs::File;
use std::io::{self, Read, Write};
use std::path::Path;

use crate::tar::{self, Member};
use crate::{Error, Result};

/// What is collected before it is written, in bytes: small files go out many at a time.
const PIECE: usize = 512 << 10;

/// Writes a tar: headers as [`tar::encode`] makes them, the files' bytes behind them.
///
/// What is not [finished](Self::finish) lacks its end, and maybe what was not written out yet.
pub struct TarWriter<W> {
    out: W,
    buffer: Box<[u8]>,
    used: usize,
}

impl<W> std::fmt::Debug for TarWriter<W> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TarWriter")
            .field("used", &self.used)
            .finish_non_exhaustive()
    }
}

impl<W: Write> TarWriter<W> {
    /// An empty archive that goes to `out`.
    pub fn new(out: W) -> Self {
        Self {
            out,
            buffer: vec![0; PIECE].into_boxed_slice(),
            used: 0,
        }
    }

    /// A member's header. For a file, [`contents`](Self::contents) of `member.size` bytes follow.
    ///
    /// # Errors
    /// [`Error::Tar`] for a member that no tar can hold, [`Error::Output`].
    pub fn header(&mut self, member: &Member) -> Result<()> {
        let bytes = tar::encode(member)?;
        self.bytes(&bytes)
    }

    /// A file's bytes: exactly `size` of them, as its header says, whatever the file became
    /// meanwhile, and the padding.
    ///
    /// # Errors
    /// As read(2), naming `shown`; [`Error::Output`].
    pub fn contents(&mut self, source: &mut dyn Read, size: u64, shown: &Path) -> Result<()> {
        let mut left = size;
        while left > 0 {
            if self.used == self.buffer.len() {
                self.flush()?;
            }
            let free = self.buffer.get_mut(self.used..).unwrap_or_default();
            let limit = usize::try_from(left).unwrap_or(usize::MAX).min(free.len());
            let free = free.get_mut(..limit).unwrap_or_default();
            let count = match source.read(free) {
                // It is shorter now: zeros for the rest.
                Ok(0) => {
                    free.fill(0);
                    limit
                }
                Ok(count) => count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => {
                    return Err(knarr_fs::Error::of_io("read", "read", shown)(error).into());
                }
            };
            self.used += count;
            left -= count as u64;
        }
        self.bytes(tar::padding(size))
    }

    /// A whole regular file of this name, mode 0644, as archives of images have them.
    ///
    /// # Errors
    /// As [`contents`](Self::contents).
    pub fn file(&mut self, name: &str, source: &mut dyn Read, size: u64) -> Result<()> {
        self.header(&Member {
            path: name.as_bytes().to_vec(),
            mode: 0o644,
            size,
            data_size: size,
            ..Member::default()
        })?;
        self.contents(source, size, Path::new(name))
    }

    /// [`file`](Self::file) of one that is open, from its beginning.
    ///
    /// # Errors
    /// As [`contents`](Self::contents).
    pub fn copy(&mut self, name: &str, source: &mut File, shown: &Path) -> Result<()> {
        let size = source
            .metadata()
            .map_err(knarr_fs::Error::of_io("stat", "fstat", shown))?
            .len();
        self.file(name, source, size)
    }

    /// The end of the archive.
    ///
    /// # Errors
    /// [`Error::Output`].
    pub fn finish(mut self) -> Result<()> {
        self.bytes(&tar::TRAILER)?;
        self.flush()?;
        self.out.flush().map_err(Error::Output)
    }

    fn bytes(&mut self, mut bytes: &[u8]) -> Result<()> {
        while !bytes.is_empty() {
            if self.used == self.buffer.len() {
                self.flush()?;
            }
            let free = self.buffer.get_mut(self.used..).unwrap_or_default();
            let count = free.len().min(bytes.len());
            for (to, from) in free.iter_mut().zip(bytes) {
                *to = *from;
            }
            self.used += count;
            bytes = bytes.get(count..).unwrap_or_default();
        }
        Ok(())
    }

    fn flush(&mut self) -> Result<()> {
        let bytes = self.buffer.get(..self.used).unwrap_or_default();
        self.out.write_all(bytes).map_err(Error::Output)?;
        self.used = 0;
        Ok(())
    }
}
