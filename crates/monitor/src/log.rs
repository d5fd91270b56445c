//! The container's output as files: Docker's `json-file`, with an end to it.
//!
//! ```text
//! <path>     {"log":"text\n","stream":"stdout","time":"2026-11-20T19:30:29.123456789Z"}
//! <path>.1   the file before, .2 the one before that, …
//! ```
//! A line longer than 16 KiB comes in parts; all but the last lack the `\n` at the end of `log`.
//! Rotation renames upwards from the oldest; killed in between, it leaves a gap in the numbers that
//! the next one closes. A torn last line is ended with a newline by whoever opens the file next.

mod line;

use std::ffi::OsString;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

use crate::Result;
use crate::clock::Timestamp;
use crate::request;
use line::{Encoder, Splitter};

/// Which stream a chunk came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stream {
    Stdout,
    Stderr,
}

/// Bytes that are collected before they are written.
const BATCH: usize = 128 << 10;

/// The log of one container.
#[derive(Debug, Default)]
pub(crate) struct Log {
    file: Option<JsonFile>,
    stdout: Splitter,
    stderr: Splitter,
    last: Timestamp,
    encoder: Encoder,
}

#[derive(Debug)]
struct JsonFile {
    path: PathBuf,
    max_size: u64,
    max_file: u32,
    file: Option<OwnedFd>,
    size: u64,
    lost: u64,
    out: Vec<u8>,
}

impl Log {
    /// Opens what the request asks for.
    pub(crate) fn open(log: &request::Log) -> Result<Self> {
        let file = match log {
            request::Log::None => None,
            request::Log::JsonFile {
                path,
                max_size,
                max_file,
            } => {
                let mut file = JsonFile {
                    path: path.clone(),
                    max_size: *max_size,
                    max_file: (*max_file).max(1),
                    file: None,
                    size: 0,
                    lost: 0,
                    out: Vec::new(),
                };
                file.open()?;
                Some(file)
            }
        };
        Ok(Self {
            file,
            ..Self::default()
        })
    }

    /// Logs what was just read from a stream.
    pub(crate) fn write(&mut self, stream: Stream, bytes: &[u8]) {
        let Some(file) = &mut self.file else { return };
        // One look at the clock per chunk; lines of a chunk are told apart by a nanosecond.
        self.last = Timestamp::now().max(self.last.next());
        let splitter = match stream {
            Stream::Stdout => &mut self.stdout,
            Stream::Stderr => &mut self.stderr,
        };
        let (encoder, last) = (&mut self.encoder, &mut self.last);
        splitter.split(bytes, |part, first_time, ends| {
            let time = first_time.unwrap_or(*last);
            *last = last.next();
            file.make_room();
            encoder.append(&mut file.out, part, ends, stream, time);
            time
        });
        file.flush();
    }

    /// Logs what is left of unfinished lines, at the end of the streams.
    pub(crate) fn finish(&mut self) {
        let Some(file) = &mut self.file else { return };
        self.last = Timestamp::now().max(self.last.next());
        for (stream, splitter) in [
            (Stream::Stdout, &mut self.stdout),
            (Stream::Stderr, &mut self.stderr),
        ] {
            let (encoder, last) = (&mut self.encoder, self.last);
            splitter.rest(|part, first_time| {
                file.make_room();
                encoder.append(
                    &mut file.out,
                    part,
                    false,
                    stream,
                    first_time.unwrap_or(last),
                );
            });
        }
        file.flush();
        self.relax();
    }

    /// Gives buffers back that an idle container does not need.
    pub(crate) fn relax(&mut self) {
        self.stdout.relax();
        self.stderr.relax();
        if let Some(file) = &mut self.file {
            file.out = Vec::new();
        }
    }

    /// Bytes of log lines that could not be written.
    pub(crate) fn lost(&self) -> u64 {
        self.file.as_ref().map_or(0, |file| file.lost)
    }
}

impl JsonFile {
    fn open(&mut self) -> Result<()> {
        let flags =
            OFlags::RDWR | OFlags::APPEND | OFlags::CREATE | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        let file = rustix::fs::open(&self.path, flags, Mode::RUSR | Mode::WUSR)
            .map_err(knarr_fs::Error::of("open the log", "open", &self.path))?;
        let stat = rustix::fs::fstat(&file).map_err(knarr_fs::Error::of(
            "stat the log",
            "fstat",
            &self.path,
        ))?;
        self.size = u64::try_from(stat.st_size).unwrap_or(0);
        let mut last = [b'\n'];
        if self.size > 0
            && rustix::io::pread(&file, &mut last, self.size - 1) == Ok(1)
            && last != [b'\n']
        {
            self.out.push(b'\n');
        }
        self.file = Some(file);
        Ok(())
    }

    /// Before one more line: writes a full batch, starts a new file when this one is full.
    fn make_room(&mut self) {
        if self.max_size > 0 && self.size + self.out.len() as u64 >= self.max_size {
            self.flush();
            self.rotate();
        } else if self.out.len() >= BATCH {
            self.flush();
        }
    }

    /// What cannot be written is lost and counted: the container goes on when a disk is full.
    fn flush(&mut self) {
        if self.file.is_none() && self.open().is_err() {
            self.lost += self.out.len() as u64;
            self.out.clear();
        }
        let Some(file) = &self.file else { return };
        let mut rest = self.out.as_slice();
        while !rest.is_empty() {
            match rustix::io::write(file, rest) {
                Ok(written) => {
                    self.size += written as u64;
                    rest = rest.get(written..).unwrap_or_default();
                }
                Err(Errno::INTR) => {}
                Err(_) => {
                    self.lost += rest.len() as u64;
                    break;
                }
            }
        }
        self.out.clear();
    }

    fn rotate(&mut self) {
        if self.max_file == 1 {
            if let Some(file) = &self.file
                && rustix::fs::ftruncate(file, 0).is_ok()
            {
                self.size = 0;
            }
            return;
        }
        self.file = None;
        // A number that is missing is a rotation that was cut short: what is below it moves up.
        for number in (1..self.max_file).rev() {
            let older = numbered(&self.path, number);
            let newer = if number == 1 {
                self.path.clone()
            } else {
                numbered(&self.path, number - 1)
            };
            // Missing files are no failure, and any other shows when the new file is opened.
            rustix::fs::rename(&newer, &older).ok();
        }
        knarr_fs::failpoint!("monitor.log-rotated");
        if self.open().is_err() {
            self.size = 0;
        }
    }
}

fn numbered(path: &Path, number: u32) -> PathBuf {
    let mut name = OsString::from(path);
    name.push(format!(".{number}"));
    name.into()
}

/// The files of a `json-file` log, oldest first; those that are missing are left out.
pub(crate) fn files(path: &Path) -> Vec<PathBuf> {
    let mut found = vec![path.to_owned()];
    // `max-file` may have been larger once, and a rotation cut short leaves one gap.
    let mut gap = 0;
    for number in 1.. {
        let file = numbered(path, number);
        if rustix::fs::stat(&file).is_ok() {
            found.push(file);
            gap = 0;
        } else {
            gap += 1;
            if gap > 1 {
                break;
            }
        }
    }
    found.reverse();
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use knarr_fs::TempDir;

    fn scratch() -> TempDir {
        TempDir::new_in(&std::env::temp_dir().join("knarr-monitor-tests")).unwrap()
    }

    fn open(path: &Path, max_size: u64, max_file: u32) -> Log {
        Log::open(&request::Log::JsonFile {
            path: path.to_owned(),
            max_size,
            max_file,
        })
        .unwrap()
    }

    /// The log with its times replaced, as they differ from run to run.
    fn timeless(path: &Path) -> String {
        let text = std::fs::read_to_string(path).unwrap();
        let mut out = String::new();
        for line in text.lines() {
            let (head, time) = line.rsplit_once(",\"time\":\"").unwrap();
            assert!(time.ends_with("Z\"}"), "{time}");
            out.push_str(head);
            out.push('\n');
        }
        out
    }

    #[test]
    fn lines_are_dockers() {
        let dir = scratch();
        let path = dir.path().join("log");
        let mut log = open(&path, 0, 1);
        log.write(
            Stream::Stdout,
            b"plain\nwith \"quotes\" \\ and <html> & tab\t\r\n\n",
        );
        log.write(Stream::Stderr, b"no end");
        log.write(
            Stream::Stdout,
            "h\u{e9}\u{2028}\u{1f600}\x7f\x01\n".as_bytes(),
        );
        log.write(Stream::Stdout, b"bad \xe2\x82 \xff\n");
        log.write(Stream::Stderr, b" yet\nunfinished");
        log.finish();
        // Written by moby's `jsonlog.JSONLogs.MarshalJSONBuf`, whose escapes these are.
        let expected = concat!(
            r#"{"log":"plain\n","stream":"stdout""#,
            "\n",
            r#"{"log":"with \"quotes\" \\ and \u003chtml\u003e \u0026 tab\u0009\r\n","stream":"stdout""#,
            "\n",
            r#"{"log":"\n","stream":"stdout""#,
            "\n",
            "{\"log\":\"h\u{e9}\\u2028\u{1f600}\x7f\\u0001\\n\",\"stream\":\"stdout\"\n",
            r#"{"log":"bad \ufffd\ufffd \ufffd\n","stream":"stdout""#,
            "\n",
            r#"{"log":"no end yet\n","stream":"stderr""#,
            "\n",
            r#"{"log":"unfinished","stream":"stderr""#,
            "\n",
        );
        assert_eq!(timeless(&path), expected);
    }

    #[test]
    fn a_long_line_comes_in_parts_of_16_kib_with_one_time() {
        let dir = scratch();
        let path = dir.path().join("log");
        let mut log = open(&path, 0, 1);
        let long = "x".repeat(40_000);
        for chunk in format!("{long}\nafter\n").as_bytes().chunks(7000) {
            log.write(Stream::Stdout, chunk);
        }
        let text = std::fs::read_to_string(&path).unwrap();
        let lines: Vec<serde_json::Value> = text
            .lines()
            .map(|line| serde_json::from_str(line).unwrap())
            .collect();
        let lengths: Vec<_> = lines
            .iter()
            .map(|l| l["log"].as_str().unwrap().len())
            .collect();
        assert_eq!(lengths, [16384, 16384, 40_000 - 32768 + 1, 6]);
        assert_eq!(lines[0]["time"], lines[2]["time"]);
        assert_ne!(lines[2]["time"], lines[3]["time"]);
        assert!(lines[2]["log"].as_str().unwrap().ends_with('\n'));
    }

    #[test]
    fn files_rotate_by_size_and_never_exceed_their_number() {
        let dir = scratch();
        let path = dir.path().join("log");
        let mut log = open(&path, 1000, 3);
        for number in 0..100 {
            log.write(Stream::Stdout, format!("line {number}\n").as_bytes());
        }
        let found = files(&path);
        assert_eq!(
            found,
            [numbered(&path, 2), numbered(&path, 1), path.clone()]
        );
        let mut text = String::new();
        for file in &found {
            let size = std::fs::metadata(file).unwrap().len();
            assert!(size <= 1000 + 100, "{size}");
            text.push_str(&std::fs::read_to_string(file).unwrap());
        }
        let lines: Vec<_> = text.lines().collect();
        assert!(lines[lines.len() - 1].contains("line 99"));
        let first: serde_json::Value = serde_json::from_str(lines[0]).unwrap();
        let first: usize = first["log"]
            .as_str()
            .unwrap()
            .trim_start_matches("line ")
            .trim()
            .parse()
            .unwrap();
        assert_eq!(lines.len(), 100 - first, "no line in between is missing");
    }

    #[test]
    fn a_rotation_that_was_cut_short_and_a_torn_line_are_mended() {
        let dir = scratch();
        let path = dir.path().join("log");
        std::fs::write(numbered(&path, 1), "one\n").unwrap();
        std::fs::write(numbered(&path, 2), "two\n").unwrap();
        assert_eq!(files(&path).len(), 3);
        std::fs::write(&path, "{\"log\":\"tor").unwrap();
        let mut log = open(&path, 10, 3);
        log.write(Stream::Stdout, b"a\n");
        assert_eq!(
            std::fs::read_to_string(numbered(&path, 1)).unwrap(),
            "{\"log\":\"tor\n"
        );
        assert_eq!(
            std::fs::read_to_string(numbered(&path, 2)).unwrap(),
            "one\n"
        );
        assert!(std::fs::read_to_string(&path).unwrap().contains("\"a\\n\""));
    }

    #[test]
    fn a_disk_that_is_full_loses_lines_and_counts_them() {
        let mut log = open(Path::new("/dev/full"), 0, 1);
        log.write(Stream::Stdout, b"gone\n");
        assert!(log.lost() > 40, "{}", log.lost());
    }
}
