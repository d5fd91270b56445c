//! The tree that the kernel shows through a layer's index is the one that GNU tar extracts.

mod listing;

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{Seek, SeekFrom, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;

use knarr_fs::TempDir;
use knarr_layer::{Layer, LayerId, Store};
use listing::{Listing, assert_same, list};
use rustix::fs::{CWD, FileType, Mode, Timespec, Timestamps, XattrFlags};
use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags};

/// A place for a test's files on a file system that has xattrs and can back EROFS.
fn scratch() -> TempDir {
    TempDir::new_in(&std::env::temp_dir().join("knarr-layer-tests")).unwrap()
}

fn is_root(test: &str) -> bool {
    let root = rustix::process::geteuid().is_root();
    if !root {
        eprintln!("SKIP {test}: needs root to mount and to extract devices");
    }
    root
}

#[track_caller]
fn run(command: &mut Command) {
    let output = command.output().unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?}: {errors}");
}

/// Takes a tar in, in pieces of odd sizes.
fn ingest(store: &Store, tar: &[u8], parents: &[LayerId]) -> Layer {
    let mut ingest = store.ingest(None).unwrap();
    for piece in tar.chunks(99_991) {
        ingest.write_all(piece).unwrap();
    }
    ingest.finish(parents).unwrap()
}

/// Mounts a layer's index over its tar, detached.
fn mount(store: &Store, id: &LayerId) -> OwnedFd {
    let folder = store.path(id);
    let context = rustix::mount::fsopen("erofs", FsOpenFlags::FSOPEN_CLOEXEC).unwrap();
    let set = |key: &str, name: &str| {
        rustix::mount::fsconfig_set_string(&context, key, folder.join(name)).unwrap();
    };
    set("source", "index.erofs");
    set("device", "layer.tar");
    rustix::mount::fsconfig_create(&context).unwrap();
    rustix::mount::fsmount(
        &context,
        FsMountFlags::FSMOUNT_CLOEXEC,
        MountAttrFlags::MOUNT_ATTR_RDONLY,
    )
    .unwrap()
}

/// What the kernel shows of a layer.
fn mounted(store: &Store, id: &LayerId) -> Listing {
    let mount = mount(store, id);
    list(Path::new(&format!("/proc/self/fd/{}", mount.as_raw_fd())))
}

/// What GNU tar makes of an archive, over what is in `into` already.
fn extract(tar: &Path, into: &Path) {
    fs::create_dir_all(into).unwrap();
    run(Command::new("tar")
        .args(["--numeric-owner", "--xattrs", "--xattrs-include=*", "-xpf"])
        .arg(tar)
        .arg("-C")
        .arg(into));
}

fn set_mtime(path: &Path, seconds: i64, nanoseconds: i64) {
    let time = Timespec {
        tv_sec: seconds,
        tv_nsec: nanoseconds,
    };
    let times = Timestamps {
        last_access: time,
        last_modification: time,
    };
    rustix::fs::utimensat(CWD, path, &times, rustix::fs::AtFlags::SYMLINK_NOFOLLOW).unwrap();
}

fn make_node(path: &Path, kind: FileType, mode: u32, device: u64) {
    rustix::fs::mknodat(CWD, path, kind, Mode::from_raw_mode(mode), device).unwrap();
}

fn xattr(path: &Path, name: &str, value: &[u8]) {
    rustix::fs::lsetxattr(path, name, value, XattrFlags::empty()).unwrap();
}

/// A folder with one of everything.
fn everything(root: &Path) {
    let file = |name: &str, bytes: &[u8]| -> PathBuf {
        let path = root.join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, bytes).unwrap();
        path
    };
    file("empty", b"");
    for size in [1usize, 511, 512, 513, 4095, 4096, 4097, 70_000] {
        let bytes: Vec<u8> = (0..size).map(|at| (at * 7 + size) as u8).collect();
        file(&format!("sizes/{size}"), &bytes);
    }
    // Hardlinks, also to a symlink and a device.
    let first = file("links/first", b"one inode");
    fs::hard_link(&first, root.join("links/second")).unwrap();
    fs::hard_link(&first, root.join("third")).unwrap();
    symlink("first", root.join("links/to")).unwrap();
    fs::hard_link(root.join("links/to"), root.join("links/to-too")).unwrap();
    symlink("/nowhere/../at all", root.join("dangling")).unwrap();
    symlink("x".repeat(700), root.join("long-symlink")).unwrap();
    symlink("y".repeat(4000), root.join("longest-symlink")).unwrap();
    make_node(&root.join("null"), FileType::CharacterDevice, 0o666, rustix::fs::makedev(1, 3));
    make_node(&root.join("disk"), FileType::BlockDevice, 0o640, rustix::fs::makedev(259, 70_000));
    fs::hard_link(root.join("null"), root.join("zero-too")).unwrap();
    make_node(&root.join("pipe"), FileType::Fifo, 0o600, 0);
    // Names.
    fs::write(root.join(OsStr::from_bytes(b"not\xffutf\xfe8")), b"bytes").unwrap();
    fs::write(root.join("new\nline and \\ back"), b"").unwrap();
    file(&format!("{}/{}", "d".repeat(255), "e".repeat(255)), b"long");
    let deep = vec!["deep"; 60].join("/");
    file(&format!("{deep}/{}", "f".repeat(120)), b"deep");
    // Sorting: before `.`, around `..`, beyond ASCII; several blocks of entries.
    for name in ["!", "-", ".a", "..b", "...", "~", "\u{e9}"] {
        file(&format!("order/{name}"), name.as_bytes());
    }
    for number in 0..300 {
        file(&format!("many/{number:03}-{}", "n".repeat(number % 200)), b"m");
    }
    // Modes, owners, times.
    for (name, mode) in [("setuid", 0o4755), ("setgid", 0o2755), ("none", 0), ("sticky", 0o1777)] {
        let path = file(name, b"#!");
        rustix::fs::chown(&path, Some(rustix::fs::Uid::from_raw(4_000_000)), Some(rustix::fs::Gid::from_raw(65_536))).unwrap();
        rustix::fs::chmod(&path, Mode::from_raw_mode(mode)).unwrap();
    }
    rustix::fs::chownat(CWD, root.join("dangling"), Some(rustix::fs::Uid::from_raw(77)), None, rustix::fs::AtFlags::SYMLINK_NOFOLLOW).unwrap();
    rustix::fs::chmod(root.join("sizes"), Mode::from_raw_mode(0o3701)).unwrap();
    // Attributes.
    let path = file("attributes", b"attributes");
    xattr(&path, "user.text", b"value");
    xattr(&path, "user.bytes", b"\0\xff\n=");
    xattr(&path, "user.long", &vec![b'l'; 3000]);
    xattr(&path, "trusted.knarr", b"t");
    let ping = file("ping", b"file capabilities");
    // VFS_CAP_REVISION_2, effective, cap_net_raw.
    let capability = [1u32 | 0x0200_0000, 1 << 13, 0, 0, 0].map(u32::to_le_bytes).concat();
    xattr(&ping, "security.capability", &capability);
    xattr(&root.join("sizes"), "user.dir", b"d");
    xattr(&root.join("dangling"), "trusted.link", b"l");
    // Sparse: holes at the start, in the middle, at the end; odd bounds.
    for (name, size, pieces) in [
        ("sparse/end", 1_000_003u64, &[(0u64, 5usize)][..]),
        ("sparse/start", 3_000_000, &[(2_999_990, 10)]),
        ("sparse/middle", 900_001, &[(0, 4096), (409_600, 10_000), (819_200, 80_801)]),
        ("sparse/hole", 123_456_789, &[]),
    ] {
        file(name, b"");
        let mut file = File::create(root.join(name)).unwrap();
        file.set_len(size).unwrap();
        for (at, len) in pieces {
            file.seek(SeekFrom::Start(*at)).unwrap();
            file.write_all(&vec![b's'; *len]).unwrap();
        }
    }
    let path = root.join("sparse/many");
    let file = File::create(&path).unwrap();
    for number in 0..100u64 {
        std::os::unix::fs::FileExt::write_all_at(&file, b"island", number * 65_536 + 13).unwrap();
    }
    drop(file);
    // Times last, as everything above changes them.
    set_mtime(&root.join("empty"), -1, 0);
    set_mtime(&root.join("sizes/1"), -1_000_000_000, 250_000_000);
    set_mtime(&root.join("sizes/511"), 5_000_000_000, 1);
    set_mtime(&root.join("sizes/512"), 0, 999_999_999);
    set_mtime(&root.join("dangling"), 1, 0);
    set_mtime(&root.join("order"), 0, 0);
    set_mtime(root, 1_234_567_890, 123_456_789);
}

#[test]
fn gnu_tar_and_the_kernel_see_one_tree_in_every_format() {
    if !is_root("gnu_tar_and_the_kernel_see_one_tree_in_every_format") {
        return;
    }
    let dir = scratch();
    let root = dir.path().join("root");
    fs::create_dir(&root).unwrap();
    everything(&root);
    let store = Store::open(&dir.path().join("data"));
    for (format, sparse) in [
        ("gnu", None),
        ("gnu", Some("")),
        ("oldgnu", Some("")),
        ("posix", None),
        ("posix", Some("--sparse-version=0.0")),
        ("posix", Some("--sparse-version=0.1")),
        ("posix", Some("--sparse-version=1.0")),
    ] {
        let what = format!("{format} {sparse:?}");
        let tar = dir.path().join("layer.tar");
        let mut command = Command::new("tar");
        command.arg(format!("--format={format}")).arg("--numeric-owner");
        if format == "posix" {
            command.args(["--xattrs", "--xattrs-include=*"]);
        }
        if let Some(version) = sparse {
            command.arg("--sparse");
            command.args(Some(version).filter(|version| !version.is_empty()));
        }
        run(command.arg("-cf").arg(&tar).arg("-C").arg(&root).arg("."));
        let expected = dir.path().join("expected");
        extract(&tar, &expected);
        let layer = ingest(&store, &fs::read(&tar).unwrap(), &[]);
        assert!(layer.self_contained, "{what}");
        let expected_listing = list(&expected);
        assert_same(&what, &mounted(&store, &layer.id), &expected_listing);
        fs::remove_dir_all(&expected).unwrap();
        store.verify(&layer.id).unwrap();
    }
}

#[test]
fn a_debian_layer_is_what_gnu_tar_extracts() {
    let test = "a_debian_layer_is_what_gnu_tar_extracts";
    let Some(tar) = std::env::var_os("KNARR_TEST_DEBIAN_TAR") else {
        eprintln!("SKIP {test}: KNARR_TEST_DEBIAN_TAR names no tar");
        return;
    };
    if !is_root(test) {
        return;
    }
    let dir = scratch();
    let store = Store::open(&dir.path().join("data"));
    let started = std::time::Instant::now();
    let bytes = fs::read(&tar).unwrap();
    let read = started.elapsed();
    let layer = ingest(&store, &bytes, &[]);
    let taken = started.elapsed() - read;
    println!("read {read:?}, took in {taken:?}: {layer:?}");
    let expected = dir.path().join("expected");
    extract(Path::new(&tar), &expected);
    let shown = mounted(&store, &layer.id);
    assert_same("debian", &shown, &list(&expected));
}
