//! Reading what a container said: Docker's json-file format, rotated files included.

use std::collections::VecDeque;
use std::ffi::OsString;
use std::io::{BufRead, BufReader, Seek, SeekFrom};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use knarr_monitor::client;
use rustix::event::{PollFd, PollFlags};
use rustix::fs::inotify::{self, CreateFlags, WatchFlags};
use serde::Deserialize;

use crate::{Engine, Error, Result, time};

/// What `logs` asks for. Times in nanoseconds since the epoch.
#[derive(Debug, Clone, Default)]
pub struct LogOptions {
    /// Go on until the container ends.
    pub follow: bool,
    /// Only the last so many lines.
    pub tail: Option<usize>,
    /// Not before.
    pub since: Option<i64>,
    /// Not after.
    pub until: Option<i64>,
}

/// A piece of output, as it was written: usually one line, with its newline.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LogLine<'a> {
    /// Whether it was standard error.
    pub stderr: bool,
    /// RFC 3339 with nanoseconds, UTC.
    pub time: &'a str,
    /// The bytes, newline included where there was one.
    pub text: &'a [u8],
}

/// One line of the file.
#[derive(Debug, Deserialize)]
struct Entry {
    log: String,
    #[serde(default)]
    stream: String,
    #[serde(default)]
    time: String,
}

type Sink<'a> = &'a mut dyn FnMut(LogLine<'_>) -> std::io::Result<()>;

impl Engine {
    pub(crate) fn logs_now(&self, text: &str, options: &LogOptions, sink: Sink<'_>) -> Result<()> {
        let id = self.find(text)?;
        let record = self.record(&id)?;
        if record.host.log_config.kind == "none" {
            return Err(Error::invalid_hint(
                "configured logging driver does not support reading",
                "the container was made with --log-driver none, so nothing was kept",
            ));
        }
        let path = &record.paths.log;
        // Watched before the first look, so that nothing falls between.
        let run = self.settings().run_dir(&id);
        let watch = if options.follow {
            Some(Watch::new(path, &run)?)
        } else {
            None
        };
        let mut reader = Reader::open(path)?;
        let mut out = Out { options, sink };
        match options.tail {
            Some(0) => reader.skip_all()?,
            Some(lines) => {
                let mut kept: VecDeque<Vec<u8>> = VecDeque::with_capacity(lines.min(4096));
                while let Some(line) = reader.next(path)? {
                    if kept.len() == lines {
                        kept.pop_front();
                    }
                    kept.push_back(line);
                }
                for line in kept {
                    if !out.give(&line)? {
                        return Ok(());
                    }
                }
            }
            None => {}
        }
        loop {
            while let Some(line) = reader.next(path)? {
                if !out.give(&line)? {
                    return Ok(());
                }
            }
            let Some(watch) = &watch else { return Ok(()) };
            let alive =
                client::observe(&run)?.is_some_and(|observed| observed.state.status.is_alive());
            if !alive {
                // What was written between the last look and the end.
                while let Some(line) = reader.next(path)? {
                    if !out.give(&line)? {
                        return Ok(());
                    }
                }
                return Ok(());
            }
            watch.wait(options.until)?;
            if options.until.is_some_and(|until| time::now() > until) {
                return Ok(());
            }
        }
    }
}

struct Out<'a, 'b> {
    options: &'a LogOptions,
    sink: Sink<'b>,
}

impl Out<'_, '_> {
    /// `false` once a line is too late.
    fn give(&mut self, line: &[u8]) -> Result<bool> {
        // A line that a full disk cut short is passed over; the others are told.
        let Ok(entry) = serde_json::from_slice::<Entry>(line) else {
            return Ok(true);
        };
        if self.options.since.is_some() || self.options.until.is_some() {
            let at = time::parse(&entry.time).unwrap_or_default();
            if self.options.since.is_some_and(|since| at < since) {
                return Ok(true);
            }
            if self.options.until.is_some_and(|until| at > until) {
                return Ok(false);
            }
        }
        let line = LogLine {
            stderr: entry.stream == "stderr",
            time: &entry.time,
            text: entry.log.as_bytes(),
        };
        (self.sink)(line).map_err(|cause| Error::Stream {
            what: "the log",
            cause,
        })?;
        Ok(true)
    }
}

/// All files of a log, oldest first, then what is appended.
#[derive(Debug)]
struct Reader {
    /// Older files still to come, newest last read first from the back.
    older: Vec<PathBuf>,
    current: Option<BufReader<std::fs::File>>,
    /// The inode of `current` while it is the newest file.
    newest: Option<(u64, u64)>,
    /// The beginning of a line whose end is not written yet.
    partial: Vec<u8>,
}

impl Reader {
    fn open(path: &Path) -> Result<Self> {
        // `<path>.1` is the newest of the older ones.
        let older: Vec<PathBuf> = (1..)
            .map(|number| numbered(path, number))
            .take_while(|path| path.exists())
            .collect();
        let mut reader = Self {
            older,
            current: None,
            newest: None,
            partial: Vec::new(),
        };
        reader.advance(path)?;
        Ok(reader)
    }

    /// Opens the next file; `false` when there is no other.
    fn advance(&mut self, path: &Path) -> Result<bool> {
        while let Some(next) = self.older.pop() {
            // One that was rotated away meanwhile is gone by its limit.
            if let Ok(file) = std::fs::File::open(&next) {
                self.current = Some(BufReader::new(file));
                return Ok(true);
            }
        }
        let file = match std::fs::File::open(path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(false),
            file => file.map_err(knarr_fs::Error::of_io("open", "open", path))?,
        };
        let id = identity(&file, path)?;
        if self.newest == Some(id) {
            return Ok(false);
        }
        self.newest = Some(id);
        self.current = Some(BufReader::new(file));
        Ok(true)
    }

    /// The next whole line.
    fn next(&mut self, path: &Path) -> Result<Option<Vec<u8>>> {
        loop {
            if let Some(file) = &mut self.current {
                file.read_until(b'\n', &mut self.partial)
                    .map_err(knarr_fs::Error::of_io("read", "read", path))?;
                if self.partial.ends_with(b"\n") {
                    return Ok(Some(std::mem::take(&mut self.partial)));
                }
            }
            if !self.advance(path)? {
                return Ok(None);
            }
            // What a full disk cut short in the old file does not go on in the new one.
            self.partial.clear();
        }
    }

    /// To the end of the newest file.
    fn skip_all(&mut self) -> Result<()> {
        self.older.clear();
        if let Some(file) = &mut self.current {
            let end = file.seek(SeekFrom::End(0));
            end.map_err(knarr_fs::Error::of_io(
                "seek in",
                "lseek",
                Path::new("the log"),
            ))?;
        }
        Ok(())
    }
}

fn numbered(path: &Path, number: u32) -> PathBuf {
    let mut name = OsString::from(path);
    name.push(format!(".{number}"));
    PathBuf::from(name)
}

fn identity(file: &std::fs::File, path: &Path) -> Result<(u64, u64)> {
    let stat = rustix::fs::fstat(file).map_err(knarr_fs::Error::of("stat", "fstat", path))?;
    Ok((stat.st_dev, stat.st_ino))
}

/// Sleeps until the log grows or the container's state changes.
#[derive(Debug)]
struct Watch {
    fd: OwnedFd,
}

impl Watch {
    fn new(log: &Path, run: &Path) -> Result<Self> {
        let fd = inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK)
            .map_err(Error::of("watch the log", "inotify_init1"))?;
        let what = WatchFlags::MODIFY
            | WatchFlags::CREATE
            | WatchFlags::MOVED_TO
            | WatchFlags::DELETE_SELF;
        for folder in log.parent().into_iter().chain([run]) {
            match inotify::add_watch(&fd, folder, what) {
                // Never started, or no output yet to a folder that is not there.
                Ok(_) | Err(rustix::io::Errno::NOENT) => {}
                Err(errno) => {
                    return Err(
                        knarr_fs::Error::of("watch", "inotify_add_watch", folder)(errno).into(),
                    );
                }
            }
        }
        Ok(Self { fd })
    }

    fn wait(&self, until: Option<i64>) -> Result<()> {
        let left = until.map(|until| {
            let nanoseconds = until.saturating_sub(time::now()).max(0);
            rustix::time::Timespec {
                tv_sec: nanoseconds / 1_000_000_000,
                tv_nsec: nanoseconds % 1_000_000_000,
            }
        });
        let mut fds = [PollFd::new(&self.fd, PollFlags::IN)];
        match rustix::event::poll(&mut fds, left.as_ref()) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(errno) => return Err(Error::of("wait for the log", "poll")(errno)),
        }
        let mut events = [0u8; 8192];
        while rustix::io::read(&self.fd, &mut events).is_ok_and(|count| count > 0) {}
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(path: &Path, lines: &[&str]) {
        let text: String = lines
            .iter()
            .map(|line| {
                let entry = serde_json::json!(
                    {"log": format!("{line}\n"), "stream": "stdout", "time": "2026-01-01T00:00:00Z"});
                format!("{entry}\n")
            })
            .collect();
        std::fs::write(path, text).unwrap();
    }

    #[test]
    fn rotated_files_are_read_in_order_and_rotation_is_followed() {
        let dir = knarr_fs::TempDir::new_in(&std::env::temp_dir().join("knarr-engine")).unwrap();
        let path = dir.path().join("x-json.log");
        write(&numbered(&path, 2), &["1", "2"]);
        write(&numbered(&path, 1), &["3"]);
        write(&path, &["4"]);
        let mut reader = Reader::open(&path).unwrap();
        let mut read = || {
            let mut all = Vec::new();
            while let Some(line) = reader.next(&path).unwrap() {
                all.push(
                    serde_json::from_slice::<Entry>(&line)
                        .unwrap()
                        .log
                        .trim()
                        .to_owned(),
                );
            }
            all
        };
        assert_eq!(read(), ["1", "2", "3", "4"]);
        std::fs::rename(&path, numbered(&path, 1)).unwrap();
        write(&path, &["5", "6"]);
        assert_eq!(read(), ["5", "6"]);
        assert_eq!(read(), Vec::<String>::new());
    }
}
