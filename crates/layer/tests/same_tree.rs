//! The tree that the kernel shows through a layer's index is the one that GNU tar extracts.

#![expect(
    clippy::unwrap_used,
    clippy::print_stderr,
    clippy::cast_possible_truncation,
    reason = "a test's helpers may do what its tests may"
)]

mod drivers;
mod listing;

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{Seek, SeekFrom, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use knarr_fs::TempDir;
use knarr_layer::tar::{self, Kind, Member};
use knarr_layer::tree::{Builder, Limits, Links, Sources, Time};
use knarr_layer::{Error, Layer, LayerId, Store};
use knarr_spec::Digest;
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
    make_node(
        &root.join("null"),
        FileType::CharacterDevice,
        0o666,
        rustix::fs::makedev(1, 3),
    );
    make_node(
        &root.join("disk"),
        FileType::BlockDevice,
        0o640,
        rustix::fs::makedev(259, 70_000),
    );
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
        file(
            &format!("many/{number:03}-{}", "n".repeat(number % 200)),
            b"m",
        );
    }
    // Modes, owners, times.
    for (name, mode) in [
        ("setuid", 0o4755),
        ("setgid", 0o2755),
        ("none", 0),
        ("sticky", 0o1777),
    ] {
        let path = file(name, b"#!");
        rustix::fs::chown(
            &path,
            Some(rustix::fs::Uid::from_raw(4_000_000)),
            Some(rustix::fs::Gid::from_raw(65_536)),
        )
        .unwrap();
        rustix::fs::chmod(&path, Mode::from_raw_mode(mode)).unwrap();
    }
    rustix::fs::chownat(
        CWD,
        root.join("dangling"),
        Some(rustix::fs::Uid::from_raw(77)),
        None,
        rustix::fs::AtFlags::SYMLINK_NOFOLLOW,
    )
    .unwrap();
    rustix::fs::chmod(root.join("sizes"), Mode::from_raw_mode(0o3701)).unwrap();
    // Attributes.
    let path = file("attributes", b"attributes");
    xattr(&path, "user.text", b"value");
    xattr(&path, "user.bytes", b"\0\xff\n=");
    xattr(&path, "user.long", &vec![b'l'; 3000]);
    xattr(&path, "trusted.knarr", b"t");
    let ping = file("ping", b"file capabilities");
    // VFS_CAP_REVISION_2, effective, cap_net_raw.
    let capability = [1u32 | 0x0200_0000, 1 << 13, 0, 0, 0]
        .map(u32::to_le_bytes)
        .concat();
    xattr(&ping, "security.capability", &capability);
    xattr(&root.join("sizes"), "user.dir", b"d");
    xattr(&root.join("dangling"), "trusted.link", b"l");
    // Sparse: holes at the start, in the middle, at the end; odd bounds.
    for (name, size, pieces) in [
        ("sparse/end", 1_000_003u64, &[(0u64, 5usize)][..]),
        ("sparse/start", 3_000_000, &[(2_999_990, 10)]),
        (
            "sparse/middle",
            900_001,
            &[(0, 4096), (409_600, 10_000), (819_200, 80_801)],
        ),
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
        command
            .arg(format!("--format={format}"))
            .arg("--numeric-owner");
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
        if sparse == Some("--sparse-version=1.0") {
            drivers::all_show(&what, &store, &[layer.id], &expected_listing, |_| {});
        }
        fs::remove_dir_all(&expected).unwrap();
        store.verify(&layer.id).unwrap();
    }
}

/// How long parsing a tar in memory and laying out its index takes, and how large that is.
fn index_alone(bytes: &[u8]) -> (std::time::Duration, u64) {
    let started = std::time::Instant::now();
    let mut reader = tar::Reader::new(tar::Limits::default());
    let mut builder = Builder::new(Limits::default(), None);
    let mut rest = bytes;
    while !rest.is_empty() {
        let (taken, event) = reader.feed(rest).unwrap();
        if let Some(tar::Event::Member(member)) = event {
            builder.add(*member).unwrap();
        }
        rest = &rest[taken..];
    }
    let tree = builder.finish(Links::Must).unwrap().tree;
    let plan = knarr_layer::erofs::plan(&tree, bytes.len() as u64, [0; 16], &[0; 64]).unwrap();
    (started.elapsed(), plan.size())
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
    let (indexed, size) = index_alone(&bytes);
    println!("parsing and laying out the index alone: {indexed:?} for {size} bytes");
    let expected = dir.path().join("expected");
    extract(Path::new(&tar), &expected);
    let shown = mounted(&store, &layer.id);
    assert_same("debian", &shown, &list(&expected));
}

/// A tar of members, with their data.
fn archive(members: &[(Member, &[u8])]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for (member, data) in members {
        bytes.extend(tar::encode(member).unwrap());
        bytes.extend_from_slice(data);
        bytes.extend(tar::padding(data.len() as u64));
    }
    bytes.extend(tar::TRAILER);
    bytes
}

fn entry(path: &str, kind: Kind, mode: i64) -> Member {
    Member {
        path: path.into(),
        kind,
        mode,
        mtime: Time {
            seconds: 1_600_000_000,
            nanoseconds: 7,
        },
        ..Member::default()
    }
}

fn dir(path: &str, mode: i64) -> (Member, &'static [u8]) {
    (entry(path, Kind::Dir, mode), b"")
}

fn file(path: &str, data: &'static [u8]) -> (Member, &'static [u8]) {
    let mut member = entry(path, Kind::File, 0o640);
    member.size = data.len() as u64;
    (member, data)
}

fn linked(path: &str, kind: Kind, to: &str) -> (Member, &'static [u8]) {
    let mut member = entry(path, kind, 0o777);
    member.link = to.into();
    (member, b"")
}

/// What all layers together show: mounted one over the other with overlayfs.
fn overlaid(store: &Store, layers: &[LayerId]) -> Listing {
    let mounts: Vec<OwnedFd> = layers.iter().map(|id| mount(store, id)).collect();
    // An overlay needs two lower layers or an upper one.
    let empty = store.path(&layers[0]).parent().unwrap().join("empty");
    fs::create_dir_all(&empty).unwrap();
    let context = rustix::mount::fsopen("overlay", FsOpenFlags::FSOPEN_CLOEXEC).unwrap();
    for mount in mounts.iter().rev() {
        rustix::mount::fsconfig_set_fd(&context, "lowerdir+", mount).unwrap();
    }
    let bottom = File::open(&empty).unwrap();
    rustix::mount::fsconfig_set_fd(&context, "lowerdir+", &bottom).unwrap();
    rustix::mount::fsconfig_create(&context).unwrap();
    let mount = rustix::mount::fsmount(
        &context,
        FsMountFlags::FSMOUNT_CLOEXEC,
        MountAttrFlags::MOUNT_ATTR_RDONLY,
    )
    .unwrap();
    list(Path::new(&format!("/proc/self/fd/{}", mount.as_raw_fd())))
}

/// Extracts layers in order with GNU tar, doing whiteouts as image-spec's layer.md says: they
/// hide what lower layers have, before the layer's own members appear.
fn oracle(dir: &Path, layers: &[Vec<u8>]) -> Listing {
    let root = dir.join("oracle");
    fs::create_dir_all(&root).unwrap();
    for (number, bytes) in layers.iter().enumerate() {
        let tar = dir.join(format!("{number}.tar"));
        fs::write(&tar, bytes).unwrap();
        let names = Command::new("tar")
            .arg("-tf")
            .arg(&tar)
            .output()
            .unwrap()
            .stdout;
        for name in String::from_utf8(names).unwrap().lines() {
            let path = root.join(name);
            let (parent, base) = (path.parent().unwrap(), path.file_name().unwrap_or_default());
            match base.to_str().and_then(|base| base.strip_prefix(".wh.")) {
                Some(".wh..opq") => {
                    for entry in fs::read_dir(parent).into_iter().flatten() {
                        knarr_fs::remove_tree(&entry.unwrap().path()).unwrap();
                    }
                }
                Some(hidden) => knarr_fs::remove_tree(&parent.join(hidden)).unwrap(),
                None => {}
            }
        }
        run(Command::new("tar")
            .args([
                "--numeric-owner",
                "--xattrs",
                "--xattrs-include=*",
                "--exclude=.wh.*",
                "-xpf",
            ])
            .arg(&tar)
            .arg("-C")
            .arg(&root));
    }
    list(&root)
}

/// Compares a stack of layers with the oracle. GNU tar touches directories that it puts files into
/// without an entry for them, and has no mtime for those it makes; so such times are not compared.
#[track_caller]
fn stack_is_right(what: &str, layers: &[Vec<u8>], untimed: &[&str]) -> Vec<Layer> {
    let dir = scratch();
    let store = Store::open(&dir.path().join("data"));
    let mut ids: Vec<LayerId> = Vec::new();
    let mut taken = Vec::new();
    for bytes in layers {
        let layer = ingest(&store, bytes, &ids);
        ids.push(layer.id);
        taken.push(layer);
    }
    let mut expected = oracle(dir.path(), layers);
    let mut found = overlaid(&store, &ids);
    for listing in [&mut expected, &mut found] {
        for (path, entry) in listing.iter_mut() {
            if untimed.iter().any(|name| path == *name) {
                entry.mtime = (0, 0);
            }
        }
    }
    assert_same(what, &found, &expected);
    drivers::all_show(what, &store, &ids, &expected, |listing| {
        for (path, entry) in listing.iter_mut() {
            if untimed.iter().any(|name| path == *name) {
                entry.mtime = (0, 0);
            }
        }
    });
    taken
}

#[test]
fn layers_without_their_parents_take_them_from_below() {
    if !is_root("layers_without_their_parents_take_them_from_below") {
        return;
    }
    let mut private = dir("srv/private/", 0o2750);
    private.0.uid = 42;
    private.0.gid = 4_000_000;
    private
        .0
        .xattrs
        .insert(b"user.kept".to_vec().into(), b"yes".to_vec().into());
    let base = archive(&[
        dir("./", 0o751),
        dir("srv/", 0o700),
        private,
        file("srv/private/old", b"old"),
    ]);
    let middle = archive(&[file("srv/private/new", b"new"), file("made/up/path", b"x")]);
    let top = archive(&[file("srv/private/.wh.old", b""), file("made/up/too", b"y")]);
    let untimed = ["", "srv/private", "made", "made/up"];
    let layers = stack_is_right("parents", &[base, middle.clone(), top], &untimed);
    let contained: Vec<_> = layers.iter().map(|layer| layer.self_contained).collect();
    assert_eq!(contained, [true, false, false]);
    assert_ne!(layers[1].id.digest(), layers[1].diff_id);
    assert_eq!(layers[2].parents, [layers[0].diff_id, layers[1].diff_id]);

    // The same tar over nothing is another layer, and both can be found.
    let place = scratch();
    let store = Store::open(place.path());
    let alone = ingest(&store, &middle, &[]);
    let base = ingest(&store, &archive(&[dir("./", 0o700)]), &[]);
    let over = ingest(&store, &middle, &[base.id]);
    assert_eq!((alone.diff_id, alone.self_contained), (over.diff_id, false));
    assert_ne!(alone.id, over.id);
    assert_eq!(store.find(over.diff_id, &[base.id]).unwrap(), Some(over));
    assert_eq!(store.find(alone.diff_id, &[]).unwrap(), Some(alone));
}

#[test]
fn whiteouts_and_opaque_folders_hide_what_is_below() {
    if !is_root("whiteouts_and_opaque_folders_hide_what_is_below") {
        return;
    }
    let base = archive(&[
        dir("./", 0o755),
        dir("a/", 0o755),
        file("a/one", b"1"),
        file("a/two", b"2"),
        dir("b/", 0o755),
        dir("b/sub/", 0o755),
        file("b/sub/deep", b"deep"),
        file("c", b"c"),
        dir("d/", 0o755),
        file("d/hidden", b"h"),
    ]);
    let second = archive(&[
        dir("./", 0o755),
        dir("a/", 0o711),
        file("a/.wh.one", b""),
        file("a/three", b"3"),
        dir("b/", 0o755),
        file("b/.wh..wh..opq", b""),
        file("b/new", b"new"),
        file(".wh.c", b""),
        file(".wh.d", b""),
        dir("d/", 0o700),
        file("d/shown", b"s"),
        file(".wh.never-was", b""),
    ]);
    let third = archive(&[
        dir("./", 0o755),
        file("c", b"again"),
        dir("b/", 0o755),
        dir("b/sub/", 0o700),
    ]);
    let layers = stack_is_right("whiteouts", &[base, second, third], &[]);
    assert!(layers.iter().all(|layer| layer.self_contained));
}

#[test]
fn an_opaque_root_hides_all_layers_below() {
    if !is_root("an_opaque_root_hides_all_layers_below") {
        return;
    }
    let base = archive(&[
        dir("./", 0o755),
        file("gone", b"1"),
        dir("d/", 0o755),
        file("d/gone", b"2"),
    ]);
    let second = archive(&[
        dir("./", 0o700),
        file(".wh..wh..opq", b""),
        dir("d/", 0o711),
        file("d/new", b"n"),
    ]);
    stack_is_right("opaque root", &[base, second], &[]);
}

#[test]
fn a_last_file_without_its_padding_is_whole() {
    if !is_root("a_last_file_without_its_padding_is_whole") {
        return;
    }
    let place = scratch();
    let store = Store::open(place.path());
    let bytes = archive(&[dir("./", 0o755), file("last", &[b'e'; 700])]);
    let end = bytes.len() - tar::TRAILER.len() - tar::padding(700).len();
    let layer = ingest(&store, &bytes[..end], &[]);
    let mount = mount(&store, &layer.id);
    let path = format!("/proc/self/fd/{}/last", mount.as_raw_fd());
    assert_eq!(fs::read(path).unwrap(), [b'e'; 700]);
}

#[test]
fn hardlinks_into_lower_layers_share_one_inode_with_all_their_names() {
    if !is_root("hardlinks_into_lower_layers_share_one_inode_with_all_their_names") {
        return;
    }
    let mut base = vec![
        dir("./", 0o755),
        dir("bin/", 0o755),
        file("bin/tool", b"a program of some kind"),
        linked("bin/alias", Kind::HardLink, "bin/tool"),
        linked("hidden", Kind::HardLink, "bin/tool"),
        linked("sym", Kind::Symlink, "bin/tool"),
        file("single", b"single"),
    ];
    base[2]
        .0
        .xattrs
        .insert(b"user.x".to_vec().into(), b"v".to_vec().into());
    let base = archive(&base);
    let second = archive(&[dir("./", 0o755), file(".wh.hidden", b"")]);
    let third = archive(&[
        dir("./", 0o755),
        dir("opt/", 0o755),
        linked("opt/tool", Kind::HardLink, "bin/tool"),
        linked("opt/sym", Kind::HardLink, "sym"),
        linked("opt/single", Kind::HardLink, "/single"),
    ]);
    // Once more over a layer whose data are copies in its own index.
    let fourth = archive(&[
        dir("./", 0o755),
        linked("last", Kind::HardLink, "opt/single"),
    ]);
    let untimed = ["bin"];
    let layers = stack_is_right("hardlinks", &[base, second, third, fourth], &untimed);
    let contained: Vec<_> = layers.iter().map(|layer| layer.self_contained).collect();
    assert_eq!(contained, [true, true, false, false]);
}

#[test]
fn links_of_lower_layers_are_followed_within_the_root() {
    if !is_root("links_of_lower_layers_are_followed_within_the_root") {
        return;
    }
    let base = archive(&[
        dir("./", 0o755),
        dir("usr/", 0o755),
        dir("usr/lib/", 0o755),
        linked("lib", Kind::Symlink, "usr/lib"),
    ]);
    let second = archive(&[dir("./", 0o755), file("lib/thing.so", b"elf")]);
    stack_is_right("symlinked parent", &[base, second], &["usr/lib"]);
}

#[test]
fn duplicates_and_strange_members_are_what_gnu_tar_makes_of_them() {
    if !is_root("duplicates_and_strange_members_are_what_gnu_tar_makes_of_them") {
        return;
    }
    let layer = archive(&[
        dir("./", 0o755),
        file("twice", b"first, and longer"),
        file("twice", b"second"),
        file("a", b"old inode"),
        linked("b", Kind::HardLink, "a"),
        file("a", b"new inode"),
        dir("d/", 0o700),
        file("d/kept", b"k"),
        dir("d/", 0o711),
        linked("was-link", Kind::Symlink, "a"),
        file("was-link", b"now a file"),
        dir("./dots/./", 0o755),
        file("dots/.//file", b"f"),
        file("/absolute", b"abs"),
    ]);
    stack_is_right("duplicates", &[layer], &["dots"]);
}

#[test]
fn what_is_not_the_layer_it_should_be_leaves_nothing_behind() {
    let place = scratch();
    let store = Store::open(place.path());
    let good = archive(&[dir("./", 0o755), file("f", b"data")]);
    let other = archive(&[dir("./", 0o755), file("g", b"data")]);
    let diff_id = ingest(&store, &good, &[]).diff_id;
    let finish = |bytes: &[u8], expected| {
        let mut ingest = store.ingest(expected).unwrap();
        ingest.write_all(bytes).unwrap();
        ingest.finish(&[])
    };
    // A truncated tar of a known digest is a lie first, and a bad tar second.
    let lie = finish(&other, Some(diff_id)).unwrap_err();
    assert!(matches!(lie, Error::DigestMismatch { expected, .. } if expected == diff_id));
    let cut = finish(&good[..700], Some(diff_id)).unwrap_err();
    assert!(matches!(cut, Error::DigestMismatch { .. }));
    assert!(matches!(finish(&good[..700], None), Err(Error::Tar(_))));
    assert!(matches!(
        finish(&vec![b'A'; 5000], None),
        Err(Error::Tar(_))
    ));
    let link = archive(&[linked("l", Kind::HardLink, "gone")]);
    assert!(matches!(finish(&link, None), Err(Error::Tree(_))));
    let dropped = store.ingest(None).unwrap();
    assert_eq!(
        store.sweep().unwrap(),
        0,
        "an ingest in flight is not swept"
    );
    drop(dropped);
    // The same layer again is the same layer.
    assert_eq!(finish(&good, Some(diff_id)).unwrap().diff_id, diff_id);
    assert_eq!(store.list().unwrap().len(), 1);
    let left: Vec<_> = fs::read_dir(place.path().join("layers"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name())
        .collect();
    assert_eq!(left, ["sha256"]);
    // What a crash leaves is swept.
    fs::create_dir(place.path().join("layers/.tmp-0123456789abcdef")).unwrap();
    assert_eq!(store.sweep().unwrap(), 1);

    let id = store.list().unwrap()[0];
    store.verify(&id).unwrap();
    let tar = store.path(&id).join("layer.tar");
    let mut bytes = fs::read(&tar).unwrap();
    bytes[1030] ^= 1;
    fs::write(&tar, bytes).unwrap();
    assert!(matches!(store.verify(&id), Err(Error::Damaged { .. })));
    store.remove(&id).unwrap();
    store.remove(&id).unwrap();
    assert!(matches!(store.load(&id), Err(Error::NotFound(_))));
}

#[test]
fn data_beyond_four_gibibytes_are_found() {
    if !is_root("data_beyond_four_gibibytes_are_found") {
        return;
    }
    // A sparse host file: 5 GiB of zeros as one member, another member after it.
    let place = scratch();
    let store = Store::open(place.path());
    let mut big = entry("big", Kind::File, 0o600);
    big.size = 5 << 30;
    let mut bytes = tar::encode(&dir("./", 0o755).0).unwrap();
    bytes.extend(tar::encode(&big).unwrap());
    let big_at = bytes.len() as u64;
    let after = archive(&[file("after", b"far behind")]);
    let path = place.path().join("big.tar");
    let host = File::create(&path).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&host, &bytes, 0).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&host, &after, big_at + big.size).unwrap();
    // Laid out as the store would, without hashing zeros for seconds.
    let mut reader = tar::Reader::new(tar::Limits::default());
    let mut builder = Builder::new(Limits::default(), None);
    let feed = |reader: &mut tar::Reader, builder: &mut Builder<'_>, mut rest: &[u8]| {
        while !rest.is_empty() {
            let (taken, event) = reader.feed(rest).unwrap();
            if let Some(tar::Event::Member(member)) = event {
                builder.add(*member).unwrap();
            }
            rest = &rest[taken..];
        }
    };
    feed(&mut reader, &mut builder, &bytes);
    assert_eq!(reader.skippable(), big.size);
    reader.skip();
    feed(&mut reader, &mut builder, &after);
    reader.end().unwrap();
    let tree = builder.finish(Links::Must).unwrap().tree;
    let size = host.metadata().unwrap().len();
    let plan = knarr_layer::erofs::plan(&tree, size, [0; 16], &[0; 64]).unwrap();
    let folder = store.path(&LayerId::from(Digest::from_bytes([7; 32])));
    fs::create_dir_all(&folder).unwrap();
    let index = File::create(folder.join("index.erofs")).unwrap();
    plan.write(&Sources::new(host), &index).unwrap();
    fs::rename(&path, folder.join("layer.tar")).unwrap();
    let mount = mount(&store, &LayerId::from(Digest::from_bytes([7; 32])));
    let root = PathBuf::from(format!("/proc/self/fd/{}", mount.as_raw_fd()));
    assert_eq!(fs::read(root.join("after")).unwrap(), b"far behind");
    assert_eq!(fs::metadata(root.join("big")).unwrap().len(), 5 << 30);
}

#[test]
fn a_million_entries_and_deep_folders_are_taken_in() {
    // Header bytes repeat but for the name, so that the test does not measure the encoder.
    let place = scratch();
    let store = Store::open(place.path());
    let mut ingest = store.ingest(None).unwrap();
    let deep = vec!["d"; 2000].join("/");
    ingest
        .write_all(&tar::encode(&dir("./", 0o755).0).unwrap())
        .unwrap();
    ingest
        .write_all(&tar::encode(&file(&deep, b"").0).unwrap())
        .unwrap();
    let count = if cfg!(debug_assertions) {
        50_000
    } else {
        1_000_000
    };
    let mut piece = Vec::new();
    for number in 0..count {
        let name = format!("dir{:03}/entry-{number:07}", number % 300);
        piece.extend(tar::encode(&file(&name, b"").0).unwrap());
        if piece.len() > 1 << 20 {
            ingest.write_all(&piece).unwrap();
            piece.clear();
        }
    }
    ingest.write_all(&piece).unwrap();
    let layer = ingest.finish(&[]).unwrap();
    assert_eq!(layer.inodes, count + 300 + 2001);
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let peak = status
        .lines()
        .find(|line| line.starts_with("VmHWM"))
        .unwrap();
    println!(
        "{count} entries: index of {} bytes, {peak}",
        layer.index_size
    );
    // 124 MB by itself; other tests run in this process too.
    let kib: u64 = peak
        .split_whitespace()
        .nth(1)
        .and_then(|number| number.parse().ok())
        .unwrap();
    assert!(kib < 256 << 10, "{peak}");
    store.verify(&layer.id).unwrap();
}

#[test]
fn inode_numbers_are_unique_and_disk_usage_is_that_of_the_files() {
    if !is_root("inode_numbers_are_unique_and_disk_usage_is_that_of_the_files") {
        return;
    }
    let place = scratch();
    let store = Store::open(place.path());
    let data = &[b'x'; 100_000];
    let mut members = vec![dir("./", 0o755), dir("d/", 0o755)];
    members.extend([
        file("d/a", data),
        file("d/b", data),
        linked("c", Kind::HardLink, "d/a"),
    ]);
    let layer = ingest(&store, &archive(&members), &[]);
    let mount = mount(&store, &layer.id);
    // By process id, as du has another /proc/self.
    let process = std::process::id();
    let root = PathBuf::from(format!("/proc/{process}/fd/{}/.", mount.as_raw_fd()));
    let inode = |path: &str| fs::metadata(root.join(path)).unwrap().ino();
    assert_eq!(inode("c"), inode("d/a"));
    assert_ne!(inode("d/a"), inode("d/b"));
    assert_eq!(inode("d/.."), inode("."));
    assert_eq!(fs::metadata(root.join("d/a")).unwrap().nlink(), 2);
    assert_eq!(fs::metadata(&root).unwrap().nlink(), 3);
    let output = Command::new("du")
        .args(["-sx", "--block-size=1"])
        .arg(&root)
        .output()
        .unwrap();
    let used = String::from_utf8(output.stdout).unwrap();
    let used: u64 = used.split_whitespace().next().unwrap().parse().unwrap();
    // Two files, a hardlink counted once, two directories of one block each.
    assert_eq!(used, 2 * 100_000u64.next_multiple_of(512) + 2 * 512);
}
