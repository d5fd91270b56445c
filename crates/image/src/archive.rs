//! An archive of images: a tar that can seek, or a folder.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::sync::Arc;

use knarr_layer::tar::{self, Kind, Limits};
use rustix::fs::{Mode, OFlags};

use crate::inflate::{self, Compression, Failure, Hashing};
use crate::{Error, Result, Source};

/// Images have some hundred members; a root file system given by mistake has very many.
const MEMBERS: usize = 100_000;
/// Old `docker save` writes a layer that occurs twice as a symlink.
const LINKS: usize = 8;
const BLOCK: usize = 64 << 10;

/// The members of an archive, by name.
pub(crate) struct Archive {
    /// How messages call it.
    pub(crate) label: String,
    body: Body,
}

enum Body {
    Tar {
        file: Arc<File>,
        members: HashMap<String, Member>,
    },
    Folder(knarr_fs::Root),
}

enum Member {
    Data { offset: u64, size: u64 },
    Link(String),
}

/// A member's bytes, readable from any thread.
#[derive(Debug)]
pub(crate) struct Section {
    file: Arc<File>,
    offset: u64,
    left: u64,
}

impl Section {
    pub(crate) fn size(&self) -> u64 {
        self.left
    }
}

impl Read for Section {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let limit = usize::try_from(self.left)
            .unwrap_or(usize::MAX)
            .min(buffer.len());
        let Some(buffer) = buffer.get_mut(..limit) else {
            return Ok(0);
        };
        if buffer.is_empty() {
            return Ok(0);
        }
        let n = self.file.read_at(buffer, self.offset)?;
        if n == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.offset += n as u64;
        self.left -= n as u64;
        Ok(n)
    }
}

/// A source made readable: a folder, or a file that can seek.
enum Opened {
    File(File),
    Folder(knarr_fs::Root),
}

impl Archive {
    /// Opens a source; what is compressed or cannot seek goes through an unnamed file that
    /// `scratch` makes.
    pub(crate) fn open(source: Source<'_>, scratch: impl FnOnce() -> Result<File>) -> Result<Self> {
        let label = label(&source);
        let opened = match source {
            Source::Path(path) => {
                let fd = knarr_fs::open_read(path)?;
                let stat =
                    rustix::fs::fstat(&fd).map_err(knarr_fs::Error::of("stat", "fstat", path))?;
                match rustix::fs::FileType::from_raw_mode(stat.st_mode) {
                    rustix::fs::FileType::Directory => {
                        Opened::Folder(knarr_fs::Root::from_fd(fd, path))
                    }
                    _ => Opened::File(seekable(&label, File::from(fd), scratch)?),
                }
            }
            Source::File(file) => Opened::File(seekable(&label, file, scratch)?),
            Source::Stream(stream) => Opened::File(spool(&label, stream, scratch)?),
        };
        let body = match opened {
            Opened::Folder(root) => Body::Folder(root),
            Opened::File(file) => {
                let members = index(&label, &file)?;
                let file = Arc::new(file);
                Body::Tar { file, members }
            }
        };
        Ok(Self { label, body })
    }

    /// A member's bytes.
    ///
    /// # Errors
    /// [`Error::ArchiveDamaged`] where there is none.
    pub(crate) fn section(&self, name: &str) -> Result<Section> {
        self.find(name)?
            .ok_or_else(|| self.damaged(format!("it lacks {name}, which its manifest names")))
    }

    /// A member's bytes, where there is one.
    pub(crate) fn find(&self, name: &str) -> Result<Option<Section>> {
        match &self.body {
            Body::Folder(root) => {
                let flags = OFlags::RDONLY | OFlags::NONBLOCK;
                let fd = match root.open(Path::new(name), flags, Mode::empty()) {
                    Ok(fd) => fd,
                    Err(error) if error.is_not_found() => return Ok(None),
                    Err(error) => return Err(error.into()),
                };
                let stat = rustix::fs::fstat(&fd).map_err(knarr_fs::Error::of(
                    "stat",
                    "fstat",
                    Path::new(name),
                ))?;
                if rustix::fs::FileType::from_raw_mode(stat.st_mode)
                    != rustix::fs::FileType::RegularFile
                {
                    return Err(self.damaged(format!("{name} is not a file")));
                }
                Ok(Some(Section {
                    file: Arc::new(File::from(fd)),
                    offset: 0,
                    left: u64::try_from(stat.st_size).unwrap_or_default(),
                }))
            }
            Body::Tar { file, members } => {
                let mut name = clean(name);
                for _ in 0..LINKS {
                    match members.get(&name) {
                        None => return Ok(None),
                        Some(Member::Link(target)) => name.clone_from(target),
                        Some(Member::Data { offset, size }) => {
                            return Ok(Some(Section {
                                file: Arc::clone(file),
                                offset: *offset,
                                left: *size,
                            }));
                        }
                    }
                }
                Err(self.damaged(format!("{name} is a loop of links")))
            }
        }
    }

    /// A small member, whole.
    pub(crate) fn read(&self, name: &str, limit: u64) -> Result<Option<Vec<u8>>> {
        let Some(mut section) = self.find(name)? else {
            return Ok(None);
        };
        if section.size() > limit {
            return Err(self.damaged(format!("{name} is larger than {limit} bytes")));
        }
        let mut bytes = Vec::new();
        section
            .read_to_end(&mut bytes)
            .map_err(|cause| self.unreadable(cause))?;
        Ok(Some(bytes))
    }

    pub(crate) fn damaged(&self, what: String) -> Error {
        Error::ArchiveDamaged {
            archive: self.label.clone(),
            what,
        }
    }

    pub(crate) fn json(&self, member: &str, cause: serde_json::Error) -> Error {
        Error::ArchiveJson {
            archive: self.label.clone(),
            member: member.to_owned(),
            cause,
        }
    }

    fn unreadable(&self, cause: io::Error) -> Error {
        Error::ArchiveRead {
            archive: self.label.clone(),
            cause,
        }
    }
}

/// How messages call a source.
pub(crate) fn label(source: &Source<'_>) -> String {
    match source {
        Source::Path(path) => path.display().to_string(),
        Source::File(_) | Source::Stream(_) => "the input".to_owned(),
    }
}

/// The file itself where it is a plain regular one, else its inflated bytes in a scratch file.
fn seekable(label: &str, mut file: File, scratch: impl FnOnce() -> Result<File>) -> Result<File> {
    let failed = |cause| Error::ArchiveRead {
        archive: label.to_owned(),
        cause,
    };
    let regular = file.metadata().map_err(failed)?.is_file();
    if regular {
        let mut start = [0; 6];
        let n = file.read_at(&mut start, 0).map_err(failed)?;
        let start = start.get(..n).unwrap_or_default();
        if inflate::detect(start) == Compression::None {
            return Ok(file);
        }
    }
    spool(label, &mut file, scratch)
}

fn spool(
    label: &str,
    stream: &mut dyn Read,
    scratch: impl FnOnce() -> Result<File>,
) -> Result<File> {
    let mut file = scratch()?;
    match inflate::copy(stream, Hashing::Never, &mut file) {
        Ok(_) => Ok(file),
        Err(Failure::Source(cause) | Failure::Stream(cause, _) | Failure::Sink(cause)) => {
            Err(Error::ArchiveRead {
                archive: label.to_owned(),
                cause,
            })
        }
    }
}

/// Reads the headers of a tar, jumping over the data.
fn index(label: &str, file: &File) -> Result<HashMap<String, Member>> {
    let tar_error = |cause| Error::ArchiveTar {
        archive: label.to_owned(),
        cause,
    };
    let size = file
        .metadata()
        .map(|m| m.len())
        .map_err(|cause| Error::ArchiveRead {
            archive: label.to_owned(),
            cause,
        })?;
    let mut members = HashMap::new();
    let mut reader = tar::Reader::new(Limits::default());
    let mut buffer = vec![0; BLOCK];
    let mut at = 0;
    // Headers are apart; a small read is enough until they come in a row.
    loop {
        let n = file
            .read_at(&mut buffer, at)
            .map_err(|cause| Error::ArchiveRead {
                archive: label.to_owned(),
                cause,
            })?;
        let mut rest = match buffer.get(..n) {
            None | Some([]) => break,
            Some(bytes) => bytes,
        };
        at += n as u64;
        while !rest.is_empty() {
            let (taken, event) = reader.feed(rest).map_err(tar_error)?;
            if let Some(tar::Event::Member(member)) = event {
                if members.len() >= MEMBERS {
                    return Err(not_an_archive(label));
                }
                if member.data.saturating_add(member.data_size) > size && member.kind.has_data() {
                    return Err(Error::ArchiveDamaged {
                        archive: label.to_owned(),
                        what: format!("it ends after {size} bytes, in the middle of a file"),
                    });
                }
                insert(&mut members, &member);
            }
            rest = rest.get(taken..).unwrap_or_default();
            let skippable = reader.skippable();
            if skippable > rest.len() as u64 {
                at += skippable - rest.len() as u64;
                reader.skip();
                break;
            }
        }
    }
    reader.end().map_err(tar_error)?;
    Ok(members)
}

pub(crate) fn not_an_archive(label: &str) -> Error {
    Error::NotAnArchive {
        archive: label.to_owned(),
        what: "it has neither manifest.json nor index.json".to_owned(),
    }
}

fn insert(members: &mut HashMap<String, Member>, member: &tar::Member) {
    let name = clean(&String::from_utf8_lossy(&member.path));
    let link = String::from_utf8_lossy(&member.link);
    let entry = match member.kind {
        Kind::Symlink => {
            let folder = name.rsplit_once('/').map_or("", |(folder, _)| folder);
            Member::Link(clean(&format!("{folder}/{link}")))
        }
        Kind::HardLink => Member::Link(clean(&link)),
        kind if kind.has_data() => Member::Data {
            offset: member.data,
            size: member.data_size,
        },
        _ => return,
    };
    // As when unpacked: the last of a name wins.
    members.insert(name, entry);
}

/// `./a//b/../c` is `a/c`; nothing leads out.
fn clean(name: &str) -> String {
    let mut parts: Vec<&str> = Vec::new();
    for part in name.split('/') {
        match part {
            "" | "." => {}
            ".." => {
                parts.pop();
            }
            part => parts.push(part),
        }
    }
    parts.join("/")
}

#[cfg(test)]
mod tests {
    use super::clean;

    #[test]
    fn member_names_are_cleaned() {
        for (name, expected) in [
            ("./a//b/../c", "a/c"),
            ("/../../x", "x"),
            ("a/", "a"),
            ("", ""),
        ] {
            assert_eq!(clean(name), expected);
        }
    }
}
