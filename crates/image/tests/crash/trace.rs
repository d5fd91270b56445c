//! What strace(1) wrote, as steps.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use crate::model::{Inode, Step};

/// Everything that changes a file system, and what the marks are looked for with.
pub(crate) const CALLS: &str = "trace=open,openat,openat2,creat,mkdir,mkdirat,rename,renameat,\
    renameat2,link,linkat,unlink,unlinkat,rmdir,symlink,symlinkat,write,writev,pwrite64,pwritev,\
    pwritev2,ftruncate,truncate,fallocate,copy_file_range,sendfile,splice,fsync,fdatasync,sync,\
    syncfs,statx,newfstatat,stat,lseek,dup,dup2,dup3,fcntl";

/// The names and inodes as they are while the trace is read.
struct Reader {
    root: PathBuf,
    mark: String,
    folders: HashMap<PathBuf, Inode>,
    entries: HashMap<(Inode, Vec<u8>), Inode>,
    /// Open files by descriptor: inode and position.
    open: HashMap<i64, (Inode, u64)>,
    /// Folders that are open, by descriptor.
    directories: HashMap<i64, PathBuf>,
    next: Inode,
    steps: Vec<Step>,
}

/// Reads a trace of one process; only what is below `root` counts.
pub(crate) fn read(log: &str, root: &Path, mark: &str) -> Vec<Step> {
    let mut reader = Reader {
        root: root.to_owned(),
        mark: mark.to_owned(),
        folders: HashMap::from([(root.to_owned(), 0)]),
        entries: HashMap::new(),
        open: HashMap::new(),
        directories: HashMap::new(),
        next: 1,
        steps: Vec::new(),
    };
    let mut unfinished: HashMap<&str, String> = HashMap::new();
    for line in log.lines() {
        let (pid, rest) = line.split_once(' ').unwrap();
        let rest = rest.trim_start();
        if let Some(begun) = rest.strip_suffix(" <unfinished ...>") {
            unfinished.insert(pid, begun.to_owned());
        } else if let Some(resumed) = rest.strip_prefix("<... ") {
            let (_, end) = resumed.split_once(" resumed>").unwrap();
            let begun = unfinished.remove(pid).unwrap();
            reader.call(&format!("{begun}{end}"));
        } else if !rest.starts_with("+++") && !rest.starts_with("---") {
            reader.call(rest);
        }
    }
    reader.steps
}

/// `\x2f\x61` between quotes.
fn bytes(argument: &str) -> Vec<u8> {
    let inner = argument.trim().trim_matches('"');
    inner
        .split("\\x")
        .skip(1)
        .map(|hex| u8::from_str_radix(hex, 16).unwrap())
        .collect()
}

impl Reader {
    fn call(&mut self, line: &str) {
        let Some((name, rest)) = line.split_once('(') else {
            panic!("odd line {line}");
        };
        let Some((arguments, result)) = rest.rsplit_once(" = ") else {
            panic!("odd line {line}");
        };
        let result = result.trim().split([' ', '<']).next().unwrap();
        let Ok(result) = result.parse::<i64>() else {
            return;
        };
        let arguments = arguments.trim_end().trim_end_matches(')');
        // Strings are in hexadecimal: a comma is never part of one.
        let arguments: Vec<&str> = arguments.split(", ").collect();
        let text = |at: usize| bytes(arguments[at]);
        let number = |at: usize| arguments[at].trim().parse::<i64>().unwrap();
        match name {
            "stat" | "statx" | "newfstatat" => {
                let path = text(usize::from(name != "stat"));
                let path = String::from_utf8_lossy(&path).into_owned();
                if let Some(mark) = path.strip_prefix(&format!("{}/", self.mark)) {
                    self.steps.push(Step::Mark(mark.to_owned()));
                }
            }
            _ if result < 0 => {}
            "open" | "openat" | "openat2" | "creat" => {
                let first = usize::from(name.starts_with("openat"));
                let directory = if first == 1 { arguments[0] } else { "AT_FDCWD" };
                let path = self.path(directory, &text(first));
                self.opened(path, arguments[first + 1], result);
            }
            "mkdir" | "mkdirat" => {
                let first = usize::from(name == "mkdirat");
                let directory = if first == 1 { arguments[0] } else { "AT_FDCWD" };
                let path = self.path(directory, &text(first));
                if let Some((parent, name)) = self.place(&path) {
                    let inode = self.new_inode();
                    self.folders.insert(path, inode);
                    self.entries.insert((parent, name.clone()), inode);
                    self.steps.push(Step::Create {
                        parent,
                        name,
                        inode,
                        folder: true,
                    });
                }
            }
            "rename" | "renameat" | "renameat2" => {
                let at = usize::from(name != "rename");
                let from = self.path(if at == 1 { arguments[0] } else { "AT_FDCWD" }, &text(at));
                let to = at * 2 + 1;
                let to = self.path(if at == 1 { arguments[2] } else { "AT_FDCWD" }, &text(to));
                self.renamed(&from, &to);
            }
            "link" | "linkat" => {
                let from = text(usize::from(name == "linkat"));
                let from = String::from_utf8_lossy(&from).into_owned();
                let inode = match from.strip_prefix("/proc/self/fd/") {
                    Some(fd) => self.open.get(&fd.parse().unwrap()).map(|(inode, _)| *inode),
                    None => None,
                };
                let to = self.path("AT_FDCWD", &text(if name == "linkat" { 3 } else { 1 }));
                if let Some((parent, name)) = self.place(&to) {
                    let inode = inode.expect("a link of something else than an open file");
                    self.entries.insert((parent, name.clone()), inode);
                    self.steps.push(Step::Create {
                        parent,
                        name,
                        inode,
                        folder: false,
                    });
                }
            }
            "unlink" | "unlinkat" | "rmdir" => {
                let first = usize::from(name == "unlinkat");
                let directory = if first == 1 { arguments[0] } else { "AT_FDCWD" };
                let path = self.path(directory, &text(first));
                if let Some((parent, name)) = self.place(&path)
                    && self.entries.remove(&(parent, name.clone())).is_some()
                {
                    self.folders.remove(&path);
                    self.steps.push(Step::Remove { parent, name });
                }
            }
            "write" => self.written(number(0), &text(1), None, result),
            "pwrite64" => {
                let offset = u64::try_from(number(3)).unwrap();
                self.written(number(0), &text(1), Some(offset), result);
            }
            "ftruncate" => {
                if let Some((inode, _)) = self.open.get(&number(0)) {
                    self.steps.push(Step::Truncate {
                        inode: *inode,
                        size: u64::try_from(number(1)).unwrap(),
                    });
                }
            }
            "lseek" => {
                if let Some((_, position)) = self.open.get_mut(&number(0)) {
                    *position = u64::try_from(result).unwrap();
                }
            }
            "fsync" | "fdatasync" => {
                let fd = number(0);
                let inode = match self.open.get(&fd) {
                    Some((inode, _)) => Some(*inode),
                    None => {
                        let path = self.directories.get(&fd);
                        path.and_then(|path| self.folders.get(path)).copied()
                    }
                };
                if let Some(inode) = inode {
                    self.steps.push(Step::Sync { inode });
                }
            }
            "dup" | "fcntl" if name == "dup" || arguments[1].starts_with("F_DUPFD") => {
                if let Some(known) = self.open.get(&number(0)).copied() {
                    self.open.insert(result, known);
                }
            }
            "fcntl" => {}
            "sync" | "syncfs" => panic!("{name} makes everything durable: {line}"),
            // The model does not know them: none may concern the store.
            _ => {
                let fds = arguments
                    .iter()
                    .filter_map(|a| a.trim().parse::<i64>().ok());
                assert!(
                    fds.into_iter().all(|fd| !self.open.contains_key(&fd)),
                    "{line}"
                );
            }
        }
    }

    fn new_inode(&mut self) -> Inode {
        self.next += 1;
        self.next
    }

    fn path(&self, directory: &str, path: &[u8]) -> PathBuf {
        let path = PathBuf::from(String::from_utf8_lossy(path).into_owned());
        if path.is_absolute() {
            return path;
        }
        let folder = directory.trim().parse::<i64>().ok();
        match folder.and_then(|fd| self.directories.get(&fd)) {
            Some(folder) => folder.join(path),
            None => PathBuf::from("/elsewhere").join(path),
        }
    }

    /// The folder that a path below the root is in, and its name there.
    fn place(&self, path: &Path) -> Option<(Inode, Vec<u8>)> {
        path.strip_prefix(&self.root).ok()?;
        let parent = self.folders.get(path.parent()?)?;
        let name = path.file_name()?.as_encoded_bytes().to_vec();
        Some((*parent, name))
    }

    fn opened(&mut self, path: PathBuf, flags: &str, fd: i64) {
        self.open.remove(&fd);
        self.directories.remove(&fd);
        if flags.contains("O_TMPFILE") {
            if path.starts_with(&self.root) {
                let inode = self.new_inode();
                self.open.insert(fd, (inode, 0));
            }
            return;
        }
        if self.folders.contains_key(&path) {
            self.directories.insert(fd, path);
            return;
        }
        let Some((parent, name)) = self.place(&path) else {
            return;
        };
        let known = self.entries.get(&(parent, name.clone())).copied();
        let inode = match known {
            Some(inode) => inode,
            // Not made since the trace began: nothing is there that was not.
            None if !flags.contains("O_CREAT") => return,
            None => {
                let inode = self.new_inode();
                self.entries.insert((parent, name.clone()), inode);
                self.steps.push(Step::Create {
                    parent,
                    name,
                    inode,
                    folder: false,
                });
                inode
            }
        };
        if flags.contains("O_TRUNC") && known.is_some() {
            self.steps.push(Step::Truncate { inode, size: 0 });
        }
        self.open.insert(fd, (inode, 0));
    }

    fn renamed(&mut self, from: &Path, to: &Path) {
        let (Some(from_place), Some(to_place)) = (self.place(from), self.place(to)) else {
            return;
        };
        let Some(inode) = self.entries.remove(&from_place) else {
            panic!("{} was renamed and never made", from.display());
        };
        self.entries.insert(to_place.clone(), inode);
        // What is below moves along.
        let moved: Vec<PathBuf> = self
            .folders
            .keys()
            .filter(|folder| folder.starts_with(from))
            .cloned()
            .collect();
        for folder in moved {
            let inode = self.folders.remove(&folder).unwrap();
            let below = folder.strip_prefix(from).unwrap();
            let new = match below.as_os_str().is_empty() {
                true => to.to_owned(),
                false => to.join(below),
            };
            self.folders.insert(new, inode);
        }
        for folder in self.directories.values_mut() {
            if let Ok(below) = folder.strip_prefix(from) {
                *folder = to.join(below);
            }
        }
        self.steps.push(Step::Rename {
            from: from_place,
            to: to_place,
            inode,
        });
    }

    fn written(&mut self, fd: i64, data: &[u8], offset: Option<u64>, count: i64) {
        let Some((inode, position)) = self.open.get_mut(&fd) else {
            return;
        };
        let count = usize::try_from(count).unwrap();
        let at = offset.unwrap_or(*position);
        if offset.is_none() {
            *position += count as u64;
        }
        let data = data[..count].to_vec();
        self.steps.push(Step::Write {
            inode: *inode,
            at,
            data,
        });
    }
}
