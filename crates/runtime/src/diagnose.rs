//! Why a program could not be executed: execve says one errno for many reasons, so the reason is
//! looked for in the container, while its tree is still there.

use std::io::Read as _;
use std::path::{Path, PathBuf};

use knarr_diag::{Class, Explain};
use knarr_fs::Root;
use knarr_sys::Failure;
use rustix::fs::{FileType, Mode, OFlags};
use rustix::io::Errno;

use crate::plan::ProcessPlan;
use crate::prepare::candidates;

/// How much of a program's file is looked at, in bytes.
const HEAD: u64 = 4096;
/// Interpreters of interpreters that the kernel follows (linux/binfmts.h).
const MAX_DEPTH: usize = 5;

/// The reason, with the program as the user wrote it or the path where it was found.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    /// In no directory of PATH. (The wording is Docker's.)
    #[error("exec: \"{program}\": executable file not found in $PATH")]
    NotInPath {
        /// As given.
        program: String,
    },
    /// A path with nothing there. (The wording is Docker's.)
    #[error("exec: \"{path}\": stat {path}: no such file or directory")]
    NotFound {
        /// As given.
        path: String,
    },
    /// A link that leads nowhere.
    #[error("{path} is a symbolic link to {target}, which does not exist in the container")]
    Dangling {
        /// The link.
        path: String,
        /// What it says.
        target: String,
    },
    /// A directory.
    #[error("{path} is a directory")]
    Directory {
        /// Which.
        path: String,
    },
    /// A device, FIFO or socket.
    #[error("{path} is not a regular file")]
    NotRegular {
        /// What.
        path: String,
    },
    /// No execute bit. (The wording after the colon is Docker's.)
    #[error("{path} is not executable (mode {mode:04o}): permission denied")]
    NotExecutable {
        /// The file.
        path: String,
        /// Its permission bits.
        mode: u32,
    },
    /// A mount with `noexec`.
    #[error("{path} is on a mount with the option noexec")]
    NoExecMount {
        /// The file.
        path: String,
    },
    /// The user may not.
    #[error("{path} may not be executed by this user (owner {uid}:{gid}, mode {mode:04o})")]
    Denied {
        /// The file.
        path: String,
        /// Its owner in the container's file system.
        uid: u32,
        /// Its group.
        gid: u32,
        /// Its permission bits.
        mode: u32,
    },
    /// The first line names what is not there.
    #[error("{path} needs {interpreter}, which does not exist in the container")]
    Interpreter {
        /// The script.
        path: String,
        /// From its `#!` line.
        interpreter: String,
    },
    /// The first line ends in CR LF.
    #[error("the first line of {path} ends with a carriage return (CRLF, a Windows line end)")]
    CarriageReturn {
        /// The script.
        path: String,
        /// The interpreter without it.
        interpreter: String,
    },
    /// The dynamic loader is not there.
    #[error("{path} needs the loader {loader}, which does not exist in the container")]
    Loader {
        /// The program.
        path: String,
        /// From its ELF header.
        loader: String,
    },
    /// Built for another machine. (The wording after the colon is Docker's.)
    #[error("{path} is a program for {found}, this machine is {host}: exec format error")]
    Architecture {
        /// The program.
        path: String,
        /// Its own.
        found: &'static str,
        /// This machine's.
        host: &'static str,
    },
    /// Text without a `#!` line.
    #[error("{path} is a script without a `#!` line: exec format error")]
    NoShebang {
        /// The script.
        path: String,
    },
    /// Nothing in it.
    #[error("{path} is empty: exec format error")]
    Empty {
        /// The file.
        path: String,
    },
    /// Something else than a program.
    #[error("{path} is not a program: exec format error")]
    NotAProgram {
        /// The file.
        path: String,
    },
    /// What only the kernel knows.
    #[error("cannot execute {path}")]
    Other {
        /// As given.
        path: String,
        /// How it failed.
        #[source]
        cause: Failure,
    },
}

impl Explain for Fault {
    fn class(&self) -> Class {
        match self {
            Self::NotInPath { .. } | Self::NotFound { .. } | Self::Dangling { .. } => {
                Class::CommandNotFound
            }
            Self::Other { cause, .. } if cause.errno == Errno::NOENT => Class::CommandNotFound,
            Self::Interpreter { .. } | Self::CarriageReturn { .. } | Self::Loader { .. } => {
                // As Docker counts: execve said ENOENT.
                Class::CommandNotFound
            }
            _ => Class::CommandNotExecutable,
        }
    }

    fn code(&self) -> &'static str {
        match self {
            Self::NotInPath { .. } | Self::NotFound { .. } => "command-not-found",
            Self::Dangling { .. } => "command-dangling-link",
            Self::Directory { .. } => "command-is-directory",
            Self::NotRegular { .. } => "command-not-regular",
            Self::NotExecutable { .. } => "command-not-executable",
            Self::NoExecMount { .. } => "command-on-noexec-mount",
            Self::Denied { .. } => "command-denied",
            Self::Interpreter { .. } => "interpreter-not-found",
            Self::CarriageReturn { .. } => "interpreter-carriage-return",
            Self::Loader { .. } => "loader-not-found",
            Self::Architecture { .. } => "wrong-architecture",
            Self::NoShebang { .. } => "no-shebang",
            Self::Empty { .. } => "command-empty",
            Self::NotAProgram { .. } => "not-a-program",
            Self::Other { .. } => "exec-failed",
        }
    }

    fn hint(&self) -> Option<String> {
        Some(match self {
            Self::NotInPath { program } => {
                format!("install `{program}` in the image, or give its full path")
            }
            Self::NotFound { .. } | Self::Dangling { .. } => {
                "the path is looked up in the image and its volumes, not on the host".to_owned()
            }
            Self::Directory { .. } => "give the program itself as the command".to_owned(),
            Self::NotExecutable { path, .. } => format!("`chmod +x {path}` in the image"),
            Self::NoExecMount { .. } => {
                "mount it with `exec`, or keep programs elsewhere".to_owned()
            }
            Self::Denied { .. } => "run as another user (`--user`), or change its mode".to_owned(),
            Self::Interpreter { interpreter, .. } => {
                format!("install `{interpreter}` in the image, or correct the script's first line")
            }
            Self::CarriageReturn { path, .. } => {
                format!("convert the line ends: `sed -i 's/\\r$//' {path}`")
            }
            Self::Loader { loader, .. } => {
                let libc = if loader.contains("musl") {
                    "musl"
                } else {
                    "glibc"
                };
                format!(
                    "the program was linked against {libc}, which this image does not have; \
                     link it statically or use an image with {libc}"
                )
            }
            Self::Architecture { .. } => {
                "use an image for this machine, or install an emulator on the host (qemu-user, \
                 binfmt_misc)"
                    .to_owned()
            }
            Self::NoShebang { .. } => {
                "begin it with `#!/bin/sh`, or run it as `sh SCRIPT`".to_owned()
            }
            Self::Other { cause, .. } if cause.errno == Errno::TOOBIG => {
                "arguments and environment together are too long".to_owned()
            }
            _ => return None,
        })
    }
}

/// Looks in the container at `root` for the reason why `process` could not be executed. `failure`
/// is what execve said of the candidate that came furthest.
pub fn diagnose(root: &Root, process: &ProcessPlan, failure: Failure) -> Fault {
    let program = process.args.first().map_or("", String::as_str);
    let cwd = Path::new(&process.cwd);
    let tried: Vec<PathBuf> = candidates(program, &process.env)
        .iter()
        .map(|path| cwd.join(path))
        .collect();
    // The one that execve was about: the first that is there and fits what it said.
    let found = tried.iter().filter(|path| root.stat_nofollow(path).is_ok());
    let mut other = None;
    for path in found {
        if let Some(fault) = look(root, path, failure, 0) {
            // A directory in PATH of that name is passed over, as execve does.
            match fault {
                Fault::Directory { .. } if tried.len() > 1 => other = Some(fault),
                fault => return fault,
            }
        }
    }
    if let Some(fault) = other {
        return fault;
    }
    let path = program.to_owned();
    match failure.errno {
        Errno::NOENT | Errno::NOTDIR if program.contains('/') => Fault::NotFound { path },
        Errno::NOENT | Errno::NOTDIR => Fault::NotInPath { program: path },
        _ => Fault::Other {
            path,
            cause: failure,
        },
    }
}

/// What is wrong with the file at `path`, if anything can be seen.
fn look(root: &Root, path: &Path, failure: Failure, depth: usize) -> Option<Fault> {
    let shown = path.display().to_string();
    let stat = match root.stat(path) {
        Ok(stat) => stat,
        Err(error) if error.is_not_found() => {
            let target = read_link(root, path)?;
            return Some(Fault::Dangling {
                path: shown,
                target,
            });
        }
        Err(_) => return None,
    };
    match FileType::from_raw_mode(stat.st_mode) {
        FileType::RegularFile => {}
        FileType::Directory => return Some(Fault::Directory { path: shown }),
        _ => return Some(Fault::NotRegular { path: shown }),
    }
    let mode = stat.st_mode & 0o7777;
    if mode & 0o111 == 0 {
        return Some(Fault::NotExecutable { path: shown, mode });
    }
    if failure.errno == Errno::ACCESS && is_noexec(root, path) {
        return Some(Fault::NoExecMount { path: shown });
    }
    let head = read_head(root, path)?;
    if let Some(line) = head.strip_prefix(b"#!") {
        return script(root, path, line, failure, depth).or_else(|| {
            (failure.errno == Errno::ACCESS && depth == 0).then_some(Fault::Denied {
                path: shown,
                uid: stat.st_uid,
                gid: stat.st_gid,
                mode,
            })
        });
    }
    if head.starts_with(b"\x7fELF") {
        let found = machine(&head);
        let host = host_machine();
        if found != host && failure.errno == Errno::NOEXEC {
            return Some(Fault::Architecture {
                path: shown,
                found,
                host,
            });
        }
        if let Some(loader) = loader(&head)
            && failure.errno == Errno::NOENT
        {
            let loader_path = Path::new(&loader);
            if root.stat(loader_path).is_err() {
                // A program for another machine lacks its loader as well; that comes first.
                return Some(if found == host {
                    Fault::Loader {
                        path: shown,
                        loader,
                    }
                } else {
                    Fault::Architecture {
                        path: shown,
                        found,
                        host,
                    }
                });
            }
        }
    } else if failure.errno == Errno::NOEXEC {
        return Some(if head.is_empty() {
            Fault::Empty { path: shown }
        } else if is_text(&head) {
            Fault::NoShebang { path: shown }
        } else {
            Fault::NotAProgram { path: shown }
        });
    }
    // An interpreter that everybody may execute is not the one that was refused.
    if failure.errno == Errno::ACCESS && (depth == 0 || mode & 0o001 == 0) {
        let (uid, gid) = (stat.st_uid, stat.st_gid);
        return Some(Fault::Denied {
            path: shown,
            uid,
            gid,
            mode,
        });
    }
    None
}

/// The `#!` line, and the interpreter that it names.
fn script(root: &Root, path: &Path, line: &[u8], failure: Failure, depth: usize) -> Option<Fault> {
    let shown = path.display().to_string();
    let line = line.split(|&byte| byte == b'\n').next().unwrap_or(line);
    let text = String::from_utf8_lossy(line);
    let name = text
        .trim_start_matches([' ', '\t'])
        .split([' ', '\t'])
        .next()
        .unwrap_or_default();
    if name.is_empty() || name == "\r" {
        return Some(Fault::NoShebang { path: shown });
    }
    let interpreter = Path::new(name);
    if root.stat(interpreter).is_err() {
        if let Some(name) = name.strip_suffix('\r') {
            return Some(Fault::CarriageReturn {
                path: shown,
                interpreter: name.to_owned(),
            });
        }
        return Some(Fault::Interpreter {
            path: shown,
            interpreter: name.to_owned(),
        });
    }
    if depth < MAX_DEPTH {
        look(root, interpreter, failure, depth + 1)
    } else {
        None
    }
}

fn read_link(root: &Root, path: &Path) -> Option<String> {
    let link = root
        .open(path, OFlags::PATH | OFlags::NOFOLLOW, Mode::empty())
        .ok()?;
    let target = rustix::fs::readlinkat(&link, c"", Vec::new()).ok()?;
    Some(target.to_string_lossy().into_owned())
}

/// The beginning of a regular file.
fn read_head(root: &Root, path: &Path) -> Option<Vec<u8>> {
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY;
    let file = root.open(path, flags, Mode::empty()).ok()?;
    let mut head = Vec::new();
    std::fs::File::from(file)
        .take(HEAD)
        .read_to_end(&mut head)
        .ok()?;
    Some(head)
}

fn is_noexec(root: &Root, path: &Path) -> bool {
    root.open(path, OFlags::PATH, Mode::empty())
        .is_ok_and(|file| {
            rustix::fs::fstatvfs(&file)
                .is_ok_and(|stat| stat.f_flag.contains(rustix::fs::StatVfsMountFlags::NOEXEC))
        })
}

fn is_text(head: &[u8]) -> bool {
    !head.contains(&0) && std::str::from_utf8(head).map_or_else(|e| e.valid_up_to() > 64, |_| true)
}

/// How an ELF file's header is laid out.
struct Elf<'a> {
    head: &'a [u8],
    wide: bool,
    big: bool,
}

impl Elf<'_> {
    fn number(&self, at: usize, size: usize) -> Option<usize> {
        let bytes = self.head.get(at..at.checked_add(size)?)?;
        let add = |value: usize, byte: &u8| (value << 8) | usize::from(*byte);
        Some(if self.big {
            bytes.iter().fold(0, add)
        } else {
            bytes.iter().rev().fold(0, add)
        })
    }
}

fn elf(head: &[u8]) -> Elf<'_> {
    Elf {
        head,
        wide: head.get(4) == Some(&2),
        big: head.get(5) == Some(&2),
    }
}

/// The machine an ELF file is for, in the words of platforms where they exist.
fn machine(head: &[u8]) -> &'static str {
    let elf = elf(head);
    match (elf.number(18, 2), elf.wide, elf.big) {
        (Some(62), true, _) => "amd64",
        (Some(62), false, _) => "x32",
        (Some(3), ..) => "386",
        (Some(183), ..) => "arm64",
        (Some(40), ..) => "arm",
        (Some(243), true, _) => "riscv64",
        (Some(243), false, _) => "riscv32",
        (Some(21), _, false) => "ppc64le",
        (Some(21), _, true) => "ppc64",
        (Some(22), ..) => "s390x",
        (Some(258), ..) => "loong64",
        (Some(8), true, false) => "mips64le",
        (Some(8), ..) => "mips",
        _ => "an unknown machine",
    }
}

const fn host_machine() -> &'static str {
    if cfg!(target_arch = "x86_64") {
        "amd64"
    } else if cfg!(target_arch = "aarch64") {
        "arm64"
    } else if cfg!(target_arch = "riscv64") {
        "riscv64"
    } else {
        std::env::consts::ARCH
    }
}

/// The `PT_INTERP` of an ELF file.
fn loader(head: &[u8]) -> Option<String> {
    const PT_INTERP: usize = 3;
    let elf = elf(head);
    let (offset, size, count) = if elf.wide {
        (elf.number(32, 8)?, elf.number(54, 2)?, elf.number(56, 2)?)
    } else {
        (elf.number(28, 4)?, elf.number(42, 2)?, elf.number(44, 2)?)
    };
    for index in 0..count.min(64) {
        let at = offset.checked_add(index.checked_mul(size)?)?;
        if elf.number(at, 4)? == PT_INTERP {
            let (start, length) = if elf.wide {
                (
                    elf.number(at.checked_add(8)?, 8)?,
                    elf.number(at.checked_add(32)?, 8)?,
                )
            } else {
                (
                    elf.number(at.checked_add(4)?, 4)?,
                    elf.number(at.checked_add(16)?, 4)?,
                )
            };
            let bytes = head.get(start..start.checked_add(length)?)?;
            let bytes = bytes.split(|&byte| byte == 0).next()?;
            return Some(String::from_utf8_lossy(bytes).into_owned());
        }
    }
    None
}
