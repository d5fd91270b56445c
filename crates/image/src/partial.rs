//! A blob on its way: what came so far is in `blobs/partial/<hex>/`, also after a kill.
//!
//! ```text
//! data       the blob's bytes, sparse: segments are filled from their starts
//! progress   per segment, how much of it is in `data` (little endian, 8 bytes)
//! lock       flock: who fills it
//! ```
//!
//! Only hashing the whole tells whether what a file holds is right; whoever reads does that.

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

use knarr_fs::{Lock, failpoint};
use knarr_spec::Digest;
use rustix::fs::{Mode, OFlags};

use crate::{Error, Result};

/// What one request asks for where a blob is fetched in parts.
const SEGMENT: u64 = 16 << 20;
/// A blob of up to this size is one segment.
const WHOLE: u64 = 2 * SEGMENT;
/// How much comes before `progress` is written again.
const NOTED: u64 = 1 << 20;

/// A blob being fetched: writers fill segments, a reader follows from the start.
#[derive(Debug)]
pub(crate) struct Partial {
    folder: PathBuf,
    data: File,
    progress: File,
    size: u64,
    /// Whether some of it was here before.
    resumed: bool,
    state: Mutex<State>,
    changed: Condvar,
    _lock: Lock,
}

#[derive(Debug, Default)]
struct State {
    segments: Vec<Segment>,
    /// Whether the server gives parts; until that is known only one writer is let in.
    ranged: Option<bool>,
    writers: usize,
    /// Why no more will come.
    failure: Option<Error>,
    given_up: bool,
}

#[derive(Debug, Clone, Copy)]
struct Segment {
    start: u64,
    end: u64,
    /// Bytes up to here are in the file.
    have: u64,
    noted: u64,
    taken: bool,
}

/// A segment to be filled, from `from` to `end`.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Job {
    pub(crate) segment: usize,
    pub(crate) from: u64,
    pub(crate) end: u64,
}

impl Partial {
    /// Opens what there is of a blob, or begins. `None` where another process has it.
    pub(crate) fn open(partials: &Path, digest: Digest, size: u64) -> Result<Option<Self>> {
        let folder = partials.join(digest.hex());
        loop {
            knarr_fs::create_dir_all(&folder)?;
            let lock = match Lock::try_exclusive(&folder.join("lock")) {
                // Its last owner has just removed it.
                Err(error) if error.is_not_found() => continue,
                lock => lock?,
            };
            return match lock {
                Some(lock) => Self::read(folder, size, lock).map(Some),
                None => Ok(None),
            };
        }
    }

    /// Throws away what there is of a blob that is not needed, unless somebody is at it.
    pub(crate) fn discard(partials: &Path, digest: Digest) -> Result<()> {
        let folder = partials.join(digest.hex());
        if !folder.exists() {
            return Ok(());
        }
        match Lock::try_exclusive(&folder.join("lock")) {
            Ok(Some(_lock)) => Ok(knarr_fs::remove_tree(&folder)?),
            Ok(None) => Ok(()),
            Err(error) if error.is_not_found() => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// One of this thread's own, which starts from nothing.
    pub(crate) fn private(partials: &Path, digest: Digest, size: u64) -> Result<Self> {
        let thread = rustix::thread::gettid().as_raw_nonzero();
        let folder = partials.join(format!("{}.{thread}", digest.hex()));
        let lock = loop {
            knarr_fs::create_dir_all(&folder)?;
            match Lock::exclusive(&folder.join("lock")) {
                // A sweep took it for one that was left behind.
                Err(error) if error.is_not_found() => {}
                lock => break lock?,
            }
        };
        for name in ["data", "progress"] {
            knarr_fs::remove_file(&folder.join(name))?;
        }
        Self::read(folder, size, lock)
    }

    fn read(folder: PathBuf, size: u64, lock: Lock) -> Result<Self> {
        let data = open(&folder.join("data"))?;
        let progress = open(&folder.join("progress"))?;
        let length = data.metadata().map(|meta| meta.len()).unwrap_or_default();
        let mut noted = Vec::new();
        (&progress)
            .take(1 << 20)
            .read_to_end(&mut noted)
            .map_err(knarr_fs::Error::of_io("read", "read", &folder))?;
        let mut known = noted
            .as_chunks::<8>()
            .0
            .iter()
            .copied()
            .map(u64::from_le_bytes);
        let step = if size <= WHOLE { size.max(1) } else { SEGMENT };
        let mut segments = Vec::new();
        let mut start = 0;
        while start < size {
            let end = (start + step).min(size);
            // What the file is too short for did not survive, whatever was noted.
            let have = known
                .next()
                .unwrap_or_default()
                .clamp(start, end)
                .min(length.max(start));
            segments.push(Segment {
                start,
                end,
                have,
                noted: have,
                taken: false,
            });
            start = end;
        }
        Ok(Self {
            folder,
            data,
            progress,
            size,
            resumed: segments.iter().any(|segment| segment.have > segment.start),
            state: Mutex::new(State {
                segments,
                ..State::default()
            }),
            changed: Condvar::new(),
            _lock: lock,
        })
    }

    /// Whether some of it was here before.
    pub(crate) fn resumed(&self) -> bool {
        self.resumed
    }

    /// Bytes that are here.
    pub(crate) fn done(&self) -> u64 {
        let state = self.state();
        state.segments.iter().map(|s| s.have - s.start).sum()
    }

    /// Bytes in all.
    pub(crate) fn size(&self) -> u64 {
        self.size
    }

    /// How many are filling it; `None` where there is nothing to fill, or nothing yet.
    pub(crate) fn wants(&self) -> Option<usize> {
        let state = self.state();
        let is_open = state.ranged == Some(true) || state.writers == 0;
        let any = state.segments.iter().any(Segment::is_free);
        (is_open && any && state.failure.is_none() && !state.given_up).then_some(state.writers)
    }

    /// Gives the next segment to a writer.
    pub(crate) fn take(&self) -> Option<Job> {
        let mut state = self.state();
        if state.writers > 0 && state.ranged != Some(true) {
            return None;
        }
        let segment = state.segments.iter().position(Segment::is_free)?;
        let found = state.segments.get_mut(segment)?;
        found.taken = true;
        let job = Job {
            segment,
            from: found.have,
            end: found.end,
        };
        state.writers += 1;
        Some(job)
    }

    /// Adds bytes to a segment. What the server sends beyond it goes to the next ones, which must
    /// be the writer's too: see [`alone`](Self::alone).
    pub(crate) fn write(&self, at: u64, bytes: &[u8]) -> Result<()> {
        let failed = |name: &str, cause| {
            knarr_fs::Error::of_io("write", "pwrite", &self.folder.join(name))(cause)
        };
        self.data
            .write_all_at(bytes, at)
            .map_err(|cause| failed("data", cause))?;
        let end = at + bytes.len() as u64;
        let mut state = self.state();
        let mut notes = Vec::new();
        for (index, segment) in state.segments.iter_mut().enumerate() {
            if segment.start < end && at < segment.end && segment.have < end {
                segment.have = end.min(segment.end);
                let is_full = segment.have == segment.end;
                if is_full || segment.have - segment.noted >= NOTED {
                    segment.noted = segment.have;
                    notes.push((index, segment.have));
                }
            }
        }
        drop(state);
        self.changed.notify_all();
        for (index, have) in notes {
            self.progress
                .write_all_at(&have.to_le_bytes(), index as u64 * 8)
                .map_err(|cause| failed("progress", cause))?;
        }
        Ok(())
    }

    /// Says whether the server gives parts.
    pub(crate) fn ranged(&self, ranged: bool) {
        self.state().ranged = Some(ranged);
        self.changed.notify_all();
    }

    /// Gives all that is missing to the one writer there is, because the server gives no parts.
    pub(crate) fn alone(&self) {
        for segment in &mut self.state().segments {
            segment.taken = true;
        }
    }

    /// A writer is done with its segment, or has failed.
    pub(crate) fn left(&self, job: Job, failure: Option<Error>) {
        let mut state = self.state();
        state.writers -= 1;
        if let Some(segment) = state.segments.get_mut(job.segment) {
            segment.taken = segment.have == segment.end;
        }
        if state.failure.is_none() {
            state.failure = failure;
        }
        drop(state);
        self.changed.notify_all();
    }

    /// Nobody reads any more: writers stop.
    pub(crate) fn give_up(&self) {
        self.state().given_up = true;
        self.changed.notify_all();
    }

    pub(crate) fn is_given_up(&self) -> bool {
        self.state().given_up
    }

    /// Why no more came, once.
    pub(crate) fn failure(&self) -> Option<Error> {
        self.state().failure.take()
    }

    /// The bytes from the start; waits for those that have not come yet.
    pub(crate) fn reader(&self) -> Reader<'_> {
        Reader {
            partial: self,
            at: 0,
        }
    }

    /// It is not needed any more.
    pub(crate) fn remove(self) -> Result<()> {
        knarr_fs::remove_tree(&self.folder)?;
        failpoint!("pull.partial-removed");
        Ok(())
    }

    /// Makes it a blob; gives a hold on that.
    pub(crate) fn keep(self, blobs: &knarr_cas::Store, digest: Digest) -> Result<Lock> {
        let hold = blobs.adopt(&self.data, digest)?;
        self.remove()?;
        Ok(hold)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Each change is whole before the lock is given back.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Segment {
    fn is_free(&self) -> bool {
        !self.taken && self.have < self.end
    }
}

/// Follows the writers.
#[derive(Debug)]
pub(crate) struct Reader<'a> {
    partial: &'a Partial,
    at: u64,
}

impl Read for Reader<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let partial = self.partial;
        if self.at >= partial.size {
            return Ok(0);
        }
        let mut state = partial.state();
        let have = loop {
            let segment = state
                .segments
                .iter()
                .find(|segment| (segment.start..segment.end).contains(&self.at));
            match segment {
                Some(segment) if segment.have > self.at => break segment.have,
                _ if state.failure.is_some() || state.given_up => {
                    return Err(io::ErrorKind::ConnectionAborted.into());
                }
                _ => {
                    state = partial
                        .changed
                        .wait(state)
                        .unwrap_or_else(PoisonError::into_inner);
                }
            }
        };
        drop(state);
        let most = usize::try_from(have - self.at).unwrap_or(usize::MAX);
        let length = most.min(buffer.len());
        let count = match buffer.get_mut(..length) {
            Some(to) => partial.data.read_at(to, self.at)?,
            None => 0,
        };
        if count == 0 && length > 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.at += count as u64;
        Ok(count)
    }
}

fn open(path: &Path) -> Result<File> {
    let flags = OFlags::RDWR | OFlags::CREATE | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    let file = rustix::fs::open(path, flags, Mode::RUSR | Mode::WUSR)
        .map_err(knarr_fs::Error::of("open", "open", path))?;
    Ok(File::from(file))
}

#[cfg(test)]
mod tests {
    use super::*;
    use knarr_fs::TempDir;

    fn scratch() -> TempDir {
        TempDir::new_in(&std::env::temp_dir().join("knarr-partial-tests")).unwrap()
    }

    fn digest() -> Digest {
        Digest::from_hex(&"a".repeat(64)).unwrap()
    }

    #[test]
    fn what_came_is_there_after_a_restart_and_only_that() {
        let dir = scratch();
        let size = 5 * SEGMENT + 7;
        let partial = Partial::open(dir.path(), digest(), size).unwrap().unwrap();
        assert!(!partial.resumed());
        // Somebody else is kept away.
        assert!(Partial::open(dir.path(), digest(), size).unwrap().is_none());
        let first = partial.take().unwrap();
        // Whether there are parts is not known yet.
        assert!(partial.take().is_none() && partial.wants().is_none());
        partial.ranged(true);
        let second = partial.take().unwrap();
        assert_eq!(
            (first.from, second.from, second.end),
            (0, SEGMENT, 2 * SEGMENT)
        );
        partial.write(0, &[1; 2 << 20]).unwrap();
        partial.write(SEGMENT, &[2; 3 << 20]).unwrap();
        partial.write(SEGMENT + (3 << 20), &[2; 100]).unwrap();
        partial.left(first, None);
        partial.left(second, None);
        drop(partial);
        let partial = Partial::open(dir.path(), digest(), size).unwrap().unwrap();
        assert!(partial.resumed());
        // The last 100 bytes were too few to note.
        assert_eq!(partial.done(), 5 << 20);
        let job = partial.take().unwrap();
        assert_eq!(job.from, 2 << 20);
        let mut start = vec![0; 2 << 20];
        partial.reader().read_exact(&mut start).unwrap();
        assert!(start.iter().all(|byte| *byte == 1));
        partial.left(job, Some(Error::Worker));
        let mut rest = [0];
        let mut reader = partial.reader();
        reader.at = 2 << 20;
        assert!(reader.read(&mut rest).is_err());
        // A file that lost its end lost what was noted of it.
        partial.data.set_len(1 << 20).unwrap();
        drop(partial);
        let partial = Partial::open(dir.path(), digest(), size).unwrap().unwrap();
        assert_eq!(partial.done(), 1 << 20);
        partial.remove().unwrap();
        assert!(std::fs::read_dir(dir.path()).unwrap().next().is_none());
    }

    #[test]
    fn a_reader_follows_writers_over_segments() {
        let dir = scratch();
        let size = WHOLE + 10;
        let partial = Partial::open(dir.path(), digest(), size).unwrap().unwrap();
        let job = partial.take().unwrap();
        partial.ranged(false);
        partial.alone();
        assert!(partial.wants().is_none());
        std::thread::scope(|scope| {
            let reading = scope.spawn(|| {
                let mut all = Vec::new();
                partial.reader().read_to_end(&mut all).unwrap();
                all
            });
            let piece: Vec<u8> = (0..1_000_003u32)
                .map(|n| u8::try_from(n % 251).unwrap())
                .collect();
            let mut at = 0;
            while at < size {
                let count = piece.len().min(usize::try_from(size - at).unwrap());
                partial.write(at, &piece[..count]).unwrap();
                at += count as u64;
            }
            partial.left(job, None);
            let all = reading.join().unwrap();
            assert_eq!(all.len() as u64, size);
            assert!(
                all.chunks(piece.len())
                    .all(|chunk| chunk == &piece[..chunk.len()])
            );
        });
        assert_eq!(partial.done(), size);
    }
}
