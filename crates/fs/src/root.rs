//! Paths that are not to be trusted, below a directory that they cannot leave.

use std::ffi::OsStr;
use std::io::Read as _;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Component, Path, PathBuf};

use rustix::fs::{AtFlags, FileType, Mode, OFlags, ResolveFlags, Stat};
use rustix::io::Errno;

use crate::{Error, Result};

/// A directory in which untrusted paths are resolved as if it were `/` (`openat2` with
/// `RESOLVE_IN_ROOT` and `RESOLVE_NO_MAGICLINKS`, Linux 5.6).
///
/// `..` and absolute symlinks clamp to the directory, `/proc`-style magic links fail with ELOOP.
/// Paths are given relative or absolute; both mean below the root.
#[derive(Debug)]
pub struct Root {
    dir: OwnedFd,
    /// For messages only.
    path: PathBuf,
}

impl Root {
    /// A root at one of Knarr's own (trusted) paths.
    ///
    /// # Errors
    /// As open(2).
    pub fn open_path(path: &Path) -> Result<Self> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let dir = rustix::fs::open(path, flags, Mode::empty())
            .map_err(Error::of("open", "open", path))?;
        Ok(Self {
            dir,
            path: path.to_owned(),
        })
    }

    /// A root at an open directory (O_PATH or a mount fd); `path` is how messages call it.
    pub fn from_fd(dir: OwnedFd, path: impl Into<PathBuf>) -> Self {
        Self {
            dir,
            path: path.into(),
        }
    }

    /// How messages call the path `inside`.
    pub fn display(&self, inside: &Path) -> PathBuf {
        self.path.join(inside.strip_prefix("/").unwrap_or(inside))
    }

    /// Opens a path below the root. `mode` is for `O_CREAT` only.
    ///
    /// # Errors
    /// As openat2(2); ELOOP for magic links.
    pub fn open(&self, inside: &Path, flags: OFlags, mode: Mode) -> Result<OwnedFd> {
        let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
        let path = if inside.as_os_str().is_empty() {
            Path::new("/")
        } else {
            inside
        };
        loop {
            match rustix::fs::openat2(&self.dir, path, flags | OFlags::CLOEXEC, mode, resolve) {
                // A rename somewhere in the system raced with the walk: try again (openat2(2)).
                Err(Errno::AGAIN) => {}
                Err(errno) => {
                    return Err(Error::of("open", "openat2", &self.display(inside))(errno));
                }
                Ok(fd) => return Ok(fd),
            }
        }
    }

    /// Opens a directory below the root as a root of its own.
    ///
    /// # Errors
    /// As openat2(2); ENOTDIR for what is none.
    pub fn enter(&self, inside: &Path) -> Result<Self> {
        let dir = self.open(inside, OFlags::PATH | OFlags::DIRECTORY, Mode::empty())?;
        Ok(Self {
            dir,
            path: self.display(inside),
        })
    }

    /// What is at a path, a final symlink not followed.
    ///
    /// # Errors
    /// As openat2(2).
    pub fn stat_nofollow(&self, inside: &Path) -> Result<Stat> {
        let fd = self.open(inside, OFlags::PATH | OFlags::NOFOLLOW, Mode::empty())?;
        rustix::fs::fstat(&fd).map_err(Error::of("stat", "fstat", &self.display(inside)))
    }

    /// What is at a path, symlinks followed below the root.
    ///
    /// # Errors
    /// As openat2(2).
    pub fn stat(&self, inside: &Path) -> Result<Stat> {
        let fd = self.open(inside, OFlags::PATH, Mode::empty())?;
        rustix::fs::fstat(&fd).map_err(Error::of("stat", "fstat", &self.display(inside)))
    }

    /// Reads a small regular file. Never blocks on a FIFO nor reads a device.
    ///
    /// # Errors
    /// As openat2(2); [`Error::NotRegular`]; [`Error::TooLarge`] beyond `limit` bytes.
    pub fn read(&self, inside: &Path, limit: u64) -> Result<Vec<u8>> {
        let shown = self.display(inside);
        // O_PATH first: opening a FIFO or device for reading has effects, looking has none.
        let found = self.open(inside, OFlags::PATH, Mode::empty())?;
        let stat = rustix::fs::fstat(&found).map_err(Error::of("stat", "fstat", &shown))?;
        if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
            return Err(Error::NotRegular { path: shown });
        }
        let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY;
        let file = self.open(inside, flags, Mode::empty())?;
        let again = rustix::fs::fstat(&file).map_err(Error::of("stat", "fstat", &shown))?;
        if FileType::from_raw_mode(again.st_mode) != FileType::RegularFile {
            return Err(Error::NotRegular { path: shown });
        }
        let size = u64::try_from(again.st_size).unwrap_or(0).min(limit);
        // With a byte to spare, the end is found without growing.
        let mut bytes = Vec::with_capacity(usize::try_from(size).unwrap_or(0) + 1);
        std::fs::File::from(file)
            .take(limit.saturating_add(1))
            .read_to_end(&mut bytes)
            .map_err(Error::of_io("read", "read", &shown))?;
        if u64::try_from(bytes.len()).is_ok_and(|len| len > limit) {
            return Err(Error::TooLarge { path: shown, limit });
        }
        Ok(bytes)
    }

    /// Opens the directory at a path, making what is missing with `mode`; symlinks on the way are
    /// followed below the root. Gives an O_PATH descriptor.
    ///
    /// # Errors
    /// As openat2(2) and mkdirat(2); ENOTDIR where something else is in the way.
    pub fn create_dir_all(&self, inside: &Path, mode: Mode) -> Result<OwnedFd> {
        let flags = OFlags::PATH | OFlags::DIRECTORY;
        match self.open(inside, flags, Mode::empty()) {
            Err(error) if error.is_not_found() => {}
            done => return done,
        }
        let mut done = PathBuf::from("/");
        let mut dir = self.open(&done, flags, Mode::empty())?;
        for component in inside.components() {
            match component {
                Component::Normal(name) => done.push(name),
                Component::ParentDir => {
                    done.pop();
                }
                Component::RootDir | Component::CurDir | Component::Prefix(_) => continue,
            }
            dir = match self.open(&done, flags, Mode::empty()) {
                Err(error) if error.is_not_found() => {
                    let name = done.file_name().unwrap_or(OsStr::new("."));
                    match rustix::fs::mkdirat(&dir, name, mode) {
                        Ok(()) | Err(Errno::EXIST) => {}
                        Err(errno) => {
                            let shown = self.display(&done);
                            return Err(Error::of("create", "mkdirat", &shown)(errno));
                        }
                    }
                    self.open(&done, flags | OFlags::NOFOLLOW, Mode::empty())?
                }
                opened => opened?,
            };
        }
        Ok(dir)
    }

    /// Opens the directory that `inside` is in, and gives the last name: for calls that take a
    /// directory and a name (`mknodat`, `unlinkat`, …), which then cannot be redirected.
    ///
    /// # Errors
    /// As openat2(2); EINVAL for a path without a last name (`/`, `..`).
    pub fn parent<'a>(&self, inside: &'a Path) -> Result<(OwnedFd, &'a OsStr)> {
        let shown = self.display(inside);
        let name = inside
            .file_name()
            .ok_or_else(|| Error::of("find the last name of", "openat2", &shown)(Errno::INVAL))?;
        let parent = inside.parent().unwrap_or(Path::new("/"));
        let dir = self.open(parent, OFlags::PATH | OFlags::DIRECTORY, Mode::empty())?;
        Ok((dir, name))
    }

    /// Removes a file, symlink or empty directory; what is gone already is fine.
    ///
    /// # Errors
    /// As unlinkat(2).
    pub fn remove(&self, inside: &Path) -> Result<()> {
        let (dir, name) = self.parent(inside)?;
        let removed = match rustix::fs::unlinkat(&dir, name, AtFlags::empty()) {
            Err(Errno::ISDIR) => rustix::fs::unlinkat(&dir, name, AtFlags::REMOVEDIR),
            done => done,
        };
        match removed {
            Ok(()) | Err(Errno::NOENT) => Ok(()),
            Err(errno) => Err(Error::of("remove", "unlinkat", &self.display(inside))(
                errno,
            )),
        }
    }
}

impl AsFd for Root {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.dir.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_path_leaves_the_root() {
        let top = crate::TempDir::new_in(&std::env::temp_dir().join("knarr-fs-tests")).unwrap();
        let inside = top.path().join("inside");
        std::fs::create_dir(&inside).unwrap();
        std::fs::write(top.path().join("secret"), "secret").unwrap();
        std::fs::write(inside.join("file"), "file").unwrap();
        for (link, target) in [
            ("up", "../secret"),
            ("absolute", "/file"),
            ("outside", top.path().join("secret").to_str().unwrap()),
            ("magic", "/proc/self/root"),
        ] {
            std::os::unix::fs::symlink(target, inside.join(link)).unwrap();
        }
        let root = Root::open_path(&inside).unwrap();
        assert_eq!(root.read(Path::new("absolute"), 10).unwrap(), b"file");
        assert_eq!(root.read(Path::new("/../../file"), 10).unwrap(), b"file");
        for path in ["up", "outside", "../secret", "magic/etc/passwd"] {
            assert!(
                root.read(Path::new(path), 10).unwrap_err().is_not_found(),
                "{path}"
            );
        }
        root.create_dir_all(Path::new("../../a/../b/c"), Mode::RWXU)
            .unwrap();
        assert!(inside.join("b/c").is_dir());
        assert!(!top.path().join("b").exists());
    }

    #[test]
    fn reading_refuses_what_is_no_small_file() {
        let top = crate::TempDir::new_in(&std::env::temp_dir().join("knarr-fs-tests")).unwrap();
        std::fs::write(top.path().join("large"), [0; 11]).unwrap();
        rustix::fs::mknodat(
            rustix::fs::CWD,
            top.path().join("fifo"),
            FileType::Fifo,
            Mode::RWXU,
            0,
        )
        .unwrap();
        let root = Root::open_path(top.path()).unwrap();
        let large = root.read(Path::new("large"), 10);
        assert!(
            matches!(large, Err(Error::TooLarge { limit: 10, .. })),
            "{large:?}"
        );
        let fifo = root.read(Path::new("fifo"), 10);
        assert!(matches!(fifo, Err(Error::NotRegular { .. })), "{fifo:?}");
    }
}
