//! What a file tree looks like, completely: for comparing trees that must be the same.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::io::Read;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;

/// Everything that can be seen of a tree, by path from its root (which is empty).
pub(crate) type Listing = BTreeMap<OsString, Entry>;

/// Everything that can be seen of a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Entry {
    /// File type and permissions.
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
    pub mtime: (i64, i64),
    /// Of devices.
    pub rdev: u64,
    /// Of regular files and symlinks.
    pub size: u64,
    /// SHA-256 of a regular file, the target of a symlink.
    pub content: Vec<u8>,
    pub xattrs: BTreeMap<OsString, Vec<u8>>,
    /// The first path, in byte order, of the inode that this is a name of.
    pub first_link: OsString,
    pub links: u64,
}

/// Lists the tree at `root`. Directories' sizes and link counts are the file system's own business
/// and left out.
pub(crate) fn list(root: &Path) -> Listing {
    let mut listing = Listing::new();
    let mut first: BTreeMap<(u64, u64), OsString> = BTreeMap::new();
    let mut stack = vec![OsString::new()];
    let mut paths = vec![OsString::new()];
    while let Some(dir) = stack.pop() {
        for entry in fs::read_dir(at(root, &dir)).unwrap() {
            let entry = entry.unwrap();
            let mut path = dir.clone();
            if !path.is_empty() {
                path.push("/");
            }
            path.push(entry.file_name());
            if entry.file_type().unwrap().is_dir() {
                stack.push(path.clone());
            }
            paths.push(path);
        }
    }
    paths.sort();
    for path in paths {
        let full = at(root, &path);
        let meta = fs::symlink_metadata(&full).unwrap();
        let kind = meta.file_type();
        let content = if kind.is_file() {
            hash(&full)
        } else if kind.is_symlink() {
            fs::read_link(&full).unwrap().into_os_string().into_vec()
        } else {
            Vec::new()
        };
        let is_device = kind.is_char_device() || kind.is_block_device();
        let key = (meta.dev(), meta.ino());
        let first_link = first.entry(key).or_insert_with(|| path.clone()).clone();
        let entry = Entry {
            mode: meta.mode(),
            uid: meta.uid(),
            gid: meta.gid(),
            mtime: (meta.mtime(), meta.mtime_nsec()),
            rdev: if is_device { meta.rdev() } else { 0 },
            size: if kind.is_dir() { 0 } else { meta.size() },
            content,
            xattrs: xattrs(&full),
            first_link,
            links: if kind.is_dir() { 0 } else { meta.nlink() },
        };
        listing.insert(path, entry);
    }
    listing
}

/// Fails with the differences, and nothing but them.
#[track_caller]
pub(crate) fn assert_same(what: &str, found: &Listing, expected: &Listing) {
    let mut differences = Vec::new();
    for (path, entry) in expected {
        match found.get(path) {
            None => differences.push(format!("{path:?} is missing")),
            Some(other) if other != entry => {
                differences.push(format!("{path:?}\n   found {other:?}\nexpected {entry:?}"));
            }
            Some(_) => {}
        }
    }
    for path in found.keys().filter(|path| !expected.contains_key(*path)) {
        differences.push(format!("{path:?} should not be there"));
    }
    let shown: Vec<_> = differences.iter().take(20).cloned().collect();
    assert!(
        differences.is_empty(),
        "{what}: {} differences\n{}",
        differences.len(),
        shown.join("\n")
    );
}

fn at(root: &Path, path: &OsStr) -> std::path::PathBuf {
    if path.is_empty() {
        // With the slash, so that a root that is itself a (magic) link is followed.
        root.join("")
    } else {
        root.join(path)
    }
}

fn hash(path: &Path) -> Vec<u8> {
    let mut file = File::open(path).unwrap();
    let mut context = aws_lc_rs::digest::Context::new(&aws_lc_rs::digest::SHA256);
    let mut buffer = vec![0; 64 << 10];
    loop {
        let count = file.read(&mut buffer).unwrap();
        if count == 0 {
            return context.finish().as_ref().to_vec();
        }
        context.update(&buffer[..count]);
    }
}

fn xattrs(path: &Path) -> BTreeMap<OsString, Vec<u8>> {
    let mut names = vec![0u8; 64 << 10];
    let len = rustix::fs::llistxattr(path, &mut names[..]).unwrap_or(0);
    names[..len]
        .split(|&byte| byte == 0)
        .filter(|name| !name.is_empty())
        .map(|name| {
            let name = OsStr::from_bytes(name);
            let mut value = vec![0u8; 64 << 10];
            let len = rustix::fs::lgetxattr(path, name, &mut value[..]).unwrap();
            value.truncate(len);
            (name.to_owned(), value)
        })
        .collect()
}
