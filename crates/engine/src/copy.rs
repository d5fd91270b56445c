//! Files in and out of containers.
//!
//! No program of a container is run and nothing of it is loaded: its root is a directory here,
//! below which `openat2` resolves every path, and what goes in or out is a tar that this module
//! writes and reads (CVE-2018-15664, CVE-2019-14271, CVE-2026-41567).

mod pack;
mod unpack;

use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use knarr_fs::{Lock, Root};
use rustix::fs::{FileType, Mode, OFlags};

use crate::find::Found;
use crate::mounts::clean;
use crate::record::{MountKind, Record};
use crate::{Engine, Error, Result};
use pack::{Mounts, Packer};
use unpack::{Owners, Unpacker};

/// One end of `cp`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CopyEnd {
    /// A path here.
    Local(PathBuf),
    /// A tar stream: standard input or output (`-`).
    Stream,
    /// `container:path`.
    Container {
        /// Name or id.
        name: String,
        /// As typed; a trailing `/` or `/.` matters.
        path: String,
    },
}

/// How to copy.
#[derive(Debug, Clone, Copy, Default)]
pub struct CopyOptions {
    /// Keep owners (`-a`).
    pub archive: bool,
    /// Follow a symlink that is the source itself (`-L`).
    pub follow: bool,
}

/// A path below a root, here or in a container.
#[derive(Debug)]
struct Place {
    root: Root,
    /// Absolute and clean, below `root`.
    path: PathBuf,
    /// As messages call it.
    shown: String,
    /// It ended in `/` or `/.`: a directory is meant.
    directory: bool,
    /// It ended in `/.`: what is in the directory is meant.
    contents: bool,
    /// What the container's ids are shifted by in this view.
    shift: u32,
    container: Option<String>,
    /// Keeps others from starting a stopped container whose root is mounted here.
    _lock: Option<Lock>,
    /// Keeps the mounts of a stopped container's root.
    _mounted: Option<knarr_layer::Mounted>,
}

impl Engine {
    pub(crate) fn copy_now(
        &self,
        from: &CopyEnd,
        to: &CopyEnd,
        options: &CopyOptions,
        input: &mut dyn Read,
        output: &mut dyn Write,
    ) -> Result<()> {
        match (from, to) {
            (CopyEnd::Container { name, path }, CopyEnd::Stream) => {
                let source = self.inside(name, path, false)?;
                let packed = match source.contents || source.path == Path::new("/") {
                    true => PathBuf::from("."),
                    false => PathBuf::from(source.path.file_name().unwrap_or_default()),
                };
                let mut packer = Packer::new(output, source.shift, Mounts::Enter);
                packer.add(&source, &packed, options.follow)?;
                packer.finish()
            }
            (CopyEnd::Stream, CopyEnd::Container { name, path }) => {
                let to = self.inside(name, path, true)?;
                match to.kind(true)? {
                    Some(FileType::Directory) => {}
                    None => return Err(to.missing()),
                    Some(_) => {
                        return Err(Error::invalid(format!(
                            "destination \"{}\" must be a directory",
                            to.shown
                        )));
                    }
                }
                let mut unpacker = Unpacker::new(&to.root, &to.path, to.shift, Owners::Kept);
                unpack::copy(input, &mut unpacker)?;
                unpacker.finish()
            }
            (CopyEnd::Container { name, path }, CopyEnd::Local(local)) => {
                let source = self.inside(name, path, false)?;
                let owners = if options.archive {
                    Owners::Kept
                } else {
                    Owners::Callers
                };
                transfer(&source, &here(local)?, options.follow, owners)
            }
            (CopyEnd::Local(local), CopyEnd::Container { name, path }) => {
                let to = self.inside(name, path, true)?;
                transfer(&here(local)?, &to, options.follow, Owners::Kept)
            }
            (CopyEnd::Container { .. }, CopyEnd::Container { .. }) => Err(Error::invalid(
                "copying between containers is not supported",
            )),
            _ => Err(Error::invalid_hint(
                "must specify at least one container source",
                "a path in a container is written CONTAINER:PATH",
            )),
        }
    }

    pub(crate) fn export_now(&self, text: &str, output: &mut dyn Write) -> Result<()> {
        let root = self.inside(text, "/", false)?;
        let mut packer = Packer::new(output, root.shift, Mounts::Leave);
        packer.add(&root, Path::new("."), false)?;
        packer.finish()?;
        let record = self.record(&self.find(text)?)?;
        self.event(&record, "export", &[]);
        Ok(())
    }

    /// A path in a container: through the running one's root, else through a mount of its own.
    fn inside(&self, name: &str, path: &str, write: bool) -> Result<Place> {
        let id = self.find(name)?;
        let record = self.record(&id)?;
        let shift = record.ids.map(|ids| ids.start).unwrap_or_default();
        let wanted = clean(path);
        if path.contains('\0') {
            return Err(Error::invalid("a path has no zero bytes"));
        }
        if write {
            writable(&record, &wanted)?;
        }
        let mut place = Place {
            // Replaced below; a handle on something empty.
            root: Root::open_path(&record.paths.folder)?,
            path: PathBuf::from(&wanted),
            shown: format!("{name}:{path}"),
            directory: path.ends_with('/') || path.ends_with("/.") || path == ".",
            contents: path.ends_with("/.") || path == ".",
            shift,
            container: Some(name.to_owned()),
            _lock: None,
            _mounted: None,
        };
        match self.touch(&id)? {
            Found::Running(state) => {
                let pid = state.process.map(|process| process.pid).unwrap_or_default();
                place.root = running_root(pid, name)?;
            }
            Found::Idle(lock, _) => {
                // The volumes are not mounted there: one that the path leads into is its own root.
                let volume = record
                    .mounts
                    .iter()
                    .filter(|mount| mount.kind != MountKind::Tmpfs)
                    .filter(|mount| Path::new(&wanted).starts_with(&mount.destination))
                    .max_by_key(|mount| mount.destination.len());
                match volume {
                    Some(mount) if Path::new(&mount.source).is_dir() => {
                        place.root = Root::open_path(Path::new(&mount.source))?;
                        let below = Path::new(&wanted).strip_prefix(&mount.destination);
                        place.path = Path::new("/").join(below.unwrap_or(Path::new("")));
                        place.shift = 0;
                    }
                    _ => {
                        let run_root = &self.settings().run_root;
                        let mounted = knarr_layer::mount(&self.rootfs(&record), run_root)?;
                        let root = rustix::io::fcntl_dupfd_cloexec(&mounted.root, 3)
                            .map_err(Error::of("use the container's root", "fcntl"))?;
                        place.root = Root::from_fd(root, format!("{name}:"));
                        place._mounted = Some(mounted);
                    }
                }
                place._lock = Some(lock);
            }
        }
        Ok(place)
    }
}

/// The root as the container's first process sees it. What is below is only resolved relative to
/// it, never entered.
fn running_root(pid: u32, name: &str) -> Result<Root> {
    let path = format!("/proc/{pid}/root");
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let root: OwnedFd = rustix::fs::open(&path, flags, Mode::empty())
        .map_err(knarr_fs::Error::of("open", "open", Path::new(&path)))?;
    Ok(Root::from_fd(root, format!("{name}:")))
}

/// Whether a stopped container may be written to there; a running one's mounts say so themselves.
fn writable(record: &Record, path: &str) -> Result<()> {
    let mount = record
        .mounts
        .iter()
        .filter(|mount| Path::new(path).starts_with(&mount.destination))
        .max_by_key(|mount| mount.destination.len());
    match mount {
        Some(mount) if mount.read_only => Err(Error::invalid("mounted volume is marked read-only")),
        None if record.host.readonly_rootfs => {
            Err(Error::invalid("container rootfs is marked read-only"))
        }
        _ => Ok(()),
    }
}

/// A path on this machine.
fn here(path: &Path) -> Result<Place> {
    let typed = path.as_os_str().as_encoded_bytes();
    let absolute = std::path::absolute(path).map_err(knarr_fs::Error::of_io(
        "make absolute",
        "getcwd",
        path,
    ))?;
    // `absolute` keeps `..`, which symlinks give a meaning; the root resolves it.
    Ok(Place {
        root: Root::open_path(Path::new("/"))?,
        path: absolute,
        shown: path.display().to_string(),
        directory: typed.ends_with(b"/") || typed.ends_with(b"/.") || typed == b".",
        contents: typed.ends_with(b"/.") || typed == b".",
        shift: 0,
        container: None,
        _lock: None,
        _mounted: None,
    })
}

impl Place {
    /// What is there; `None` for nothing.
    fn kind(&self, follow: bool) -> Result<Option<FileType>> {
        let stat = if follow || self.directory {
            self.root.stat(&self.path)
        } else {
            self.root.stat_nofollow(&self.path)
        };
        match stat {
            Ok(stat) => Ok(Some(FileType::from_raw_mode(stat.st_mode))),
            Err(error) if error.is_not_found() => Ok(None),
            Err(error) if error.errno() == Some(rustix::io::Errno::NOTDIR) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    fn missing(&self) -> Error {
        Error::PathNotFound {
            reason: match &self.container {
                Some(name) => {
                    format!(
                        "Could not find the file {} in container {name}",
                        self.path.display()
                    )
                }
                None => format!("no such file or directory: {}", self.shown),
            },
        }
    }

    /// Where a symlink at the end leads, one step: what `cp` writes to is what the link says.
    fn followed(mut self) -> Result<Self> {
        if self.kind(false)? != Some(FileType::Symlink) {
            return Ok(self);
        }
        let flags = OFlags::PATH | OFlags::NOFOLLOW;
        let link = self.root.open(&self.path, flags, Mode::empty())?;
        let target = rustix::fs::readlinkat(&link, c"", Vec::new()).map_err(
            knarr_fs::Error::of("read the link", "readlinkat", &self.path),
        )?;
        let target = Path::new(std::ffi::OsStr::new(
            target
                .to_str()
                .map_err(|_| Error::invalid("the link is not text (UTF-8)"))?,
        ));
        self.path = self.path.parent().unwrap_or(Path::new("/")).join(target);
        Ok(self)
    }
}

/// `cp`'s rules about what becomes what (docs.docker.com, "docker container cp").
fn transfer(from: &Place, to: &Place, follow: bool, owners: Owners) -> Result<()> {
    let source = from.kind(follow)?.ok_or_else(|| from.missing())?;
    if from.directory && source != FileType::Directory {
        return Err(Error::invalid(format!("{}: not a directory", from.shown)));
    }
    let target = Place {
        root: Root::from_fd(
            to.root.open(
                Path::new("/"),
                OFlags::PATH | OFlags::DIRECTORY,
                Mode::empty(),
            )?,
            to.root.display(Path::new("")),
        ),
        path: to.path.clone(),
        shown: to.shown.clone(),
        container: to.container.clone(),
        directory: to.directory,
        contents: to.contents,
        shift: to.shift,
        _lock: None,
        _mounted: None,
    }
    .followed()?;
    let is_dir = source == FileType::Directory;
    let name = |path: &Path| PathBuf::from(path.file_name().unwrap_or_default());
    let above = |path: &Path| path.parent().unwrap_or(Path::new("/")).to_owned();
    let (folder, packed) = match target.kind(true)? {
        Some(FileType::Directory) if is_dir && from.contents => {
            (target.path.clone(), PathBuf::from("."))
        }
        Some(FileType::Directory) if from.path == Path::new("/") => {
            (target.path.clone(), PathBuf::from("."))
        }
        Some(FileType::Directory) => (target.path.clone(), name(&from.path)),
        Some(_) if is_dir => {
            return Err(Error::invalid(format!(
                "cannot copy directory {} onto the file {}",
                from.shown, to.shown
            )));
        }
        Some(_) if target.directory => {
            return Err(Error::invalid(format!("{}: not a directory", to.shown)));
        }
        Some(_) => (above(&target.path), name(&target.path)),
        None if target.directory && !is_dir => {
            return Err(Error::invalid(format!("no such directory: {}", to.shown)));
        }
        None => (above(&target.path), name(&target.path)),
    };
    // The folder itself must be there: only the last part of a path is made.
    match target.root.stat(&folder) {
        Ok(stat) if FileType::from_raw_mode(stat.st_mode) == FileType::Directory => {}
        Ok(_) => {
            return Err(Error::invalid(format!(
                "{}: not a directory",
                folder.display()
            )));
        }
        Err(error) if error.is_not_found() && to.container.is_none() => {
            return Err(Error::PathNotFound {
                reason: format!(
                    "invalid output path: directory \"{}\" does not exist",
                    folder.display()
                ),
            });
        }
        Err(error) if error.is_not_found() => {
            return Err(Place {
                path: folder,
                ..target
            }
            .missing());
        }
        Err(error) => return Err(error.into()),
    }
    // What comes out of a container cannot leave the folder it is copied to, whatever symlinks it
    // brings along; what goes in cannot leave the container.
    let confined = if to.container.is_none() {
        Some(target.root.enter(&folder)?)
    } else {
        None
    };
    let (root, base) = match &confined {
        Some(root) => (root, PathBuf::from("/")),
        None => (&target.root, folder),
    };
    let mut unpacker = Unpacker::new(root, &base, target.shift, owners);
    let mut packer = Packer::new(&mut unpacker, from.shift, Mounts::Enter);
    let packing = packer
        .add(from, &packed, follow)
        .and_then(|()| packer.finish());
    // What the receiving side says is the reason of what the sending side met.
    unpacker.failure().and(packing)?;
    unpacker.finish()
}
