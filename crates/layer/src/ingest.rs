//! Taking a layer in.
use std::io;

use knarr_spec::Digest;

use crate::Result;
use crate::store::{Layer, LayerId, Store};

/// A layer on its way into the store: an [`io::Write`] for the bytes of its uncompressed tar.
///
/// Dropped unfinished it leaves nothing behind.
#[derive(Debug)]
pub struct Ingest {
    store: Store,
}

impl Ingest {
    pub(crate) fn new(store: Store, expected: Option<Digest>) -> Result<Self> {
        let _ = expected;
        Ok(Self { store })
    }

    /// Checks the digest, writes the index and publishes the layer over `parents` (bottom first).
    ///
    /// # Errors
    /// Where the bytes are not the tar they should be, or cannot be stored.
    pub fn finish(self, parents: &[LayerId]) -> Result<Layer> {
        let _ = (parents, self.store);
        todo!()
    }
}

impl io::Write for Ingest {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
