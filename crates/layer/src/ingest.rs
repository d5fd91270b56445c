//! Taking a layer in.

use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use aws_lc_rs::digest;
use knarr_fs::{Durability, Lock, TempDir, failpoint};
use knarr_spec::Digest;

use crate::store::{self, INDEX, LOCK, Layer, LayerId, MANIFEST, Store, TAR};
use crate::tar::{self, Event, Reader};
use crate::tree::{self, Builder, Built, Links, Sources};
use crate::{Error, Result, erofs};

/// How much is written before the kernel is told to bring it to the disk, so that the fsync at the
/// end finds little left to do. What was written before that is waited for and dropped.
const WRITEBACK: u64 = 8 << 20;

/// A layer on its way into the store: an [`io::Write`] for the bytes of its uncompressed tar.
///
/// One pass hashes them, writes them to `layer.tar` in a temporary folder, and parses them. Nothing
/// is known to be true before [`finish`](Self::finish), which makes the layer visible with one
/// rename; dropped before that, nothing stays. The temporary folder is held with flock(2), so that
/// [`Store::sweep`] can tell a crashed ingest from one in flight.
///
/// Of a large tar only the last pages stay in the page cache: filling it with bytes of which a start
/// reads few throws out what others use, and taking fresh memory for each of them costs more than
/// all the rest (on a virtual machine whose host has to provide it, 1 to 2 ms a megabyte).
#[derive(Debug)]
pub struct Ingest {
    store: Store,
    expected: Option<Digest>,
    folder: TempDir,
    held: Lock,
    path: PathBuf,
    tar: fs::File,
    size: u64,
    flushed: u64,
    /// So much of it is on the disk, and no more in memory.
    dropped: u64,
    hash: Hash,
    parsing: Parsing,
    /// The first failed write; there is no way on from it.
    broken: Option<knarr_fs::Error>,
}

/// A running SHA-256.
struct Hash(digest::Context);

impl std::fmt::Debug for Hash {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Hash")
    }
}

/// The tree as far as it has come. A tar that makes no sense is still hashed to its end: that it
/// is another one than expected is the better thing to say.
#[derive(Debug)]
enum Parsing {
    Going(Box<(Reader, Builder<'static>)>),
    Failed(Error),
}

impl Ingest {
    pub(crate) fn new(store: Store, expected: Option<Digest>) -> Result<Self> {
        knarr_fs::create_dir_all_durable(store.folder())?;
        let (folder, held) = TempDir::new_held_in(store.folder())?;
        let path = folder.path().join(TAR);
        let tar = create(&path)?;
        failpoint!("layer.begun");
        Ok(Self {
            store,
            expected,
            folder,
            held,
            path,
            tar,
            size: 0,
            flushed: 0,
            dropped: 0,
            hash: Hash(digest::Context::new(&digest::SHA256)),
            parsing: Parsing::Going(Box::new((
                Reader::new(tar::Limits::default()),
                Builder::new(tree::Limits::default(), None),
            ))),
            broken: None,
        })
    }

    /// How many bytes have been taken.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Checks the digest, writes the index and publishes the layer over `parents` (bottom first),
    /// which matter only where it is not self-contained. If the layer is in the store already, that
    /// one is returned.
    ///
    /// # Errors
    /// [`Error::DigestMismatch`], [`Error::Tar`], [`Error::Tree`] where the bytes are not what they
    /// should be; [`Error::NotFound`] for a missing parent; file errors. Nothing stays behind.
    pub fn finish(self, parents: &[LayerId]) -> Result<Layer> {
        Ok(self.finish_and_hold(parents)?.0)
    }

    /// [`finish`](Self::finish), and a [hold](Store::hold) on the layer, had before anybody could
    /// see it.
    ///
    /// # Errors
    /// As [`finish`](Self::finish).
    pub fn finish_and_hold(self, parents: &[LayerId]) -> Result<(Layer, Lock)> {
        if let Some(error) = self.broken {
            return Err(error.into());
        }
        let diff_id = store::digest_of(self.hash.0);
        if let Some(expected) = self.expected.filter(|expected| *expected != diff_id) {
            return Err(Error::DigestMismatch {
                expected,
                found: diff_id,
            });
        }
        let (reader, builder) = match self.parsing {
            Parsing::Going(going) => *going,
            Parsing::Failed(error) => return Err(error),
        };
        reader.end()?;
        if let Some(present) = self.store.find_and_hold(diff_id, parents)? {
            return Ok(present);
        }
        let links = if parents.is_empty() {
            Links::Must
        } else {
            Links::May
        };
        let mut built = builder.finish(links)?;
        let mut sources = Sources::new(self.tar);
        let mut below = Vec::new();
        if !built.self_contained && !parents.is_empty() {
            below = self.store.diff_ids(parents)?;
            built = rebuild(&self.store, &self.path, parents, &mut sources)?;
        }
        let id = if built.self_contained {
            LayerId::from(diff_id)
        } else {
            store::chain_id(&below, diff_id)
        };
        let folder = self.folder.path();
        let index_size = write_index(&built.tree, self.size, &id, &diff_id, &sources, folder)?;
        let layer = Layer {
            id,
            diff_id,
            size: self.size,
            index_size,
            self_contained: built.self_contained,
            parents: below,
            inodes: built.tree.len() as u64,
        };
        let manifest = folder.join(MANIFEST);
        let file = create(&manifest)?;
        file.write_all_at(&Store::manifest(&layer), 0)
            .map_err(knarr_fs::Error::of_io("write", "write", &manifest))?;
        sync(&file, &manifest)?;
        failpoint!("layer.indexed");
        if let Some(tar) = sources.file(Sources::TAR) {
            sync(tar, &self.path)?;
        }
        let hold = Lock::shared(&folder.join(LOCK))?;
        knarr_fs::sync_dir(folder)?;
        failpoint!("layer.synced");
        let target = self.store.path(&id);
        if let Some(parent) = target.parent() {
            knarr_fs::create_dir_all_durable(parent)?;
        }
        let mut ours = self.folder;
        while let Some(back) = ours.try_publish(&target, Durability::Durable)? {
            // Somebody else was faster, with the same bytes; unless it has gone again.
            if let Some(hold) = self.store.hold(&id)? {
                return Ok((self.store.load(&id)?, hold));
            }
            ours = back;
        }
        failpoint!("layer.published");
        drop(self.held);
        Ok((layer, hold))
    }

    /// Starts to bring what is new to the disk; lets go of what was new the time before.
    fn write_back(&mut self) -> knarr_sys::Result<()> {
        let (tar, new) = (&self.tar, self.size - self.flushed);
        // Only a head start: who waits for it hears whether it worked.
        knarr_sys::writeback::start_writeback(tar, self.flushed, new).ok();
        if let Some(old) = std::num::NonZeroU64::new(self.flushed - self.dropped) {
            knarr_sys::writeback::finish_writeback(tar, self.dropped, old.get())?;
            rustix::fs::fadvise(tar, self.dropped, Some(old), rustix::fs::Advice::DontNeed).ok();
            self.dropped = self.flushed;
        }
        self.flushed = self.size;
        Ok(())
    }

    fn fail(&mut self, error: knarr_fs::Error) -> io::Error {
        self.broken = Some(error.clone());
        let kind = error
            .errno()
            .map_or(io::ErrorKind::Other, |errno| io::Error::from(errno).kind());
        io::Error::new(kind, error)
    }

    fn parse(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty()
            && let Parsing::Going(going) = &mut self.parsing
        {
            let (reader, builder) = &mut **going;
            let taken = match reader.feed(bytes) {
                Ok((taken, Some(Event::Member(member)))) => {
                    builder.add(*member).map(|()| taken).map_err(Error::from)
                }
                Ok((taken, _)) => Ok(taken),
                Err(error) => Err(error.into()),
            };
            match taken {
                Ok(taken) => bytes = bytes.get(taken..).unwrap_or_default(),
                Err(error) => self.parsing = Parsing::Failed(error),
            }
        }
    }
}

impl Write for Ingest {
    /// Fails only where the disk does; that the bytes are not a tar is for
    /// [`finish`](Ingest::finish) to say.
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if let Some(error) = &self.broken {
            return Err(io::Error::other(error.clone()));
        }
        if let Err(error) = self.tar.write_all(bytes) {
            let named = knarr_fs::Error::of_io("write", "write", &self.path)(error);
            return Err(self.fail(named));
        }
        self.hash.0.update(bytes);
        self.size += bytes.len() as u64;
        if self.size - self.flushed >= WRITEBACK
            && let Err(failure) = self.write_back()
        {
            let named = knarr_fs::Error::of("write", failure.call, &self.path)(failure.errno);
            return Err(self.fail(named));
        }
        self.parse(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Reads the tar's headers again, now that the layers below are known.
fn rebuild(
    store: &Store,
    path: &Path,
    parents: &[LayerId],
    sources: &mut Sources,
) -> Result<Built> {
    let mut lower = store.lower(parents, sources)?;
    let mut builder = Builder::new(tree::Limits::default(), Some(&mut lower));
    if let Some(tar) = sources.file(Sources::TAR) {
        each_member(tar, path, |member| Ok(builder.add(member)?))?;
    }
    Ok(builder.finish(Links::Must)?)
}

/// Gives all members of a tar file, reading headers only.
fn each_member(
    file: &fs::File,
    path: &Path,
    mut take: impl FnMut(tar::Member) -> Result<()>,
) -> Result<()> {
    let failed = knarr_fs::Error::of_io("read", "pread", path);
    let mut reader = Reader::new(tar::Limits::default());
    // Small files' headers come along with the ones before them.
    let mut buffer = vec![0; 32 << 10];
    loop {
        reader.skip();
        let count = file
            .read_at(&mut buffer, reader.offset())
            .map_err(&failed)?;
        let mut bytes = buffer.get(..count).unwrap_or_default();
        if bytes.is_empty() {
            return Ok(reader.end()?);
        }
        while !bytes.is_empty() {
            let (taken, event) = reader.feed(bytes)?;
            bytes = bytes.get(taken..).unwrap_or_default();
            if let Some(Event::Member(member)) = event {
                take(*member)?;
            }
            if reader.skippable() > bytes.len() as u64 {
                break;
            }
        }
    }
}

/// Writes the index, which is synced when this returns; its size.
fn write_index(
    tree: &tree::Tree,
    tar_size: u64,
    id: &LayerId,
    diff_id: &Digest,
    sources: &Sources,
    folder: &Path,
) -> Result<u64> {
    let digest = id.digest();
    let mut uuid = [0; 16];
    for (to, from) in uuid.iter_mut().zip(digest.as_bytes()) {
        *to = *from;
    }
    let mut tag = [0; 64];
    for (to, from) in tag.iter_mut().zip(diff_id.hex().bytes()) {
        *to = from;
    }
    let plan = erofs::plan(tree, tar_size, uuid, &tag)?;
    let path = folder.join(INDEX);
    let file = create(&path)?;
    plan.write(sources, &file)?;
    sync(&file, &path)?;
    Ok(plan.size())
}

fn create(path: &Path) -> Result<fs::File> {
    let file = fs::OpenOptions::new()
        .read(true)
        .write(true)
        .create_new(true)
        .open(path);
    Ok(file.map_err(knarr_fs::Error::of_io("create", "open", path))?)
}

fn sync(file: &fs::File, path: &Path) -> Result<()> {
    Ok(file
        .sync_data()
        .map_err(knarr_fs::Error::of_io("sync", "fdatasync", path))?)
}
