use std::os::unix::fs::FileExt;

use super::*;
use crate::tar::{self, Member};
use crate::tree::{Builder, Limits, Links, Sources, Time, Tree};

fn tree(members: impl IntoIterator<Item = Member>) -> Tree {
    let mut builder = Builder::new(Limits::default(), None);
    for member in members {
        builder.add(member).unwrap();
    }
    builder.finish(Links::Must).unwrap().tree
}

fn member(path: &str, kind: tar::Kind) -> Member {
    Member {
        path: path.into(),
        kind,
        mode: 0o755,
        uid: 1000,
        mtime: Time {
            seconds: 1_700_000_000,
            nanoseconds: 0,
        },
        ..Member::default()
    }
}

/// A file without a name.
fn unnamed() -> std::fs::File {
    use rustix::fs::{CWD, Mode, OFlags};
    let flags = OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC;
    let fd = rustix::fs::openat(CWD, std::env::temp_dir(), flags, Mode::RUSR | Mode::WUSR);
    fd.unwrap().into()
}

/// Members with something of everything, over a tar of 64 KiB.
fn everything() -> Vec<Member> {
    let mut members = vec![
        member("./", tar::Kind::Dir),
        member("dir", tar::Kind::Dir),
        member("dir/.wh..wh..opq", tar::Kind::File),
        member(".wh.gone", tar::Kind::File),
        member("fifo", tar::Kind::Fifo),
    ];
    let mut file = member("dir/file", tar::Kind::File);
    (file.size, file.data) = (1000, 512);
    file.xattrs
        .insert(b"user.x".to_vec().into(), b"value".to_vec().into());
    let mut other = file.clone();
    (other.path, other.uid, other.xattrs) = (b"other".to_vec(), 70_000, Default::default());
    other.mtime.nanoseconds = 5;
    let mut sparse = member("sparse", tar::Kind::File);
    (sparse.size, sparse.data) = (20_000, 4096);
    let piece = |offset, len| tar::Segment { offset, len };
    sparse.sparse = Some([piece(100, 10), piece(10_000, 3)].into());
    let mut link = member("link", tar::Kind::Symlink);
    link.link = b"dir/file".to_vec();
    let mut long = member("long", tar::Kind::Symlink);
    long.link = vec![b'l'; 1500];
    let mut device = member("device", tar::Kind::CharDevice);
    device.device = (259, 70_000);
    let mut hard = member("hard", tar::Kind::HardLink);
    hard.link = b"other".to_vec();
    members.extend([file, other, sparse, link, long, device, hard]);
    members.extend((0..40).map(|number| member(&format!("many/{number:03}"), tar::Kind::File)));
    members
}

fn written(tree: &Tree) -> std::fs::File {
    let tar = unnamed();
    tar.write_all_at(b"first 10 b3b", 4096).unwrap();
    tar.set_len(65536).unwrap();
    let index = unnamed();
    let plan = plan(tree, 65536, [7; 16], &[b'f'; 64]).unwrap();
    plan.write(&Sources::new(tar), &index).unwrap();
    assert_eq!(index.metadata().unwrap().len(), plan.size());
    index
}

#[test]
fn an_index_is_read_back_as_the_tree_it_was_made_of() {
    let tree = tree(everything());
    let file = written(&tree);
    let copy = file.try_clone().unwrap();
    let index = Index::open(file).unwrap();
    let back = index.tree([Sources::TAR, 1]).unwrap();
    assert_eq!(back.len(), tree.len());
    for ((id, node), (_, found)) in tree.nodes().zip(back.nodes()) {
        match (&node.kind, &found.kind) {
            // A sparse file's data now lie in the index, in chunks of 4 KiB.
            (crate::tree::Kind::File(a), crate::tree::Kind::File(b)) if a.size == 20_000 => {
                assert_eq!(b.size, 20_000);
                let mut bytes = Vec::new();
                let mut sources = Sources::new(unnamed());
                sources.add(copy.try_clone().unwrap());
                sources.copy(b, &mut bytes).unwrap();
                assert_eq!(bytes.len(), 20_000);
                assert_eq!(&bytes[100..110], b"first 10 b");
                assert_eq!(&bytes[10_000..10_003], b"3b\0");
                assert_eq!(bytes.iter().filter(|&&byte| byte != 0).count(), 12);
            }
            _ => assert_eq!(node, found, "{id:?}"),
        }
    }
    let many = index
        .lookup(&index.root().unwrap(), b"many")
        .unwrap()
        .unwrap();
    for number in 0..40 {
        let name = format!("{number:03}");
        assert!(
            index.lookup(&many, name.as_bytes()).unwrap().is_some(),
            "{name}"
        );
    }
    for absent in ["", "!", "0", "0505", "999"] {
        assert!(
            index.lookup(&many, absent.as_bytes()).unwrap().is_none(),
            "{absent}"
        );
    }
}

/// 16 bytes a line, as `hexdump -C` has it, repeated lines left out.
fn hexdump(bytes: &[u8]) -> String {
    let mut text = String::new();
    let mut last: &[u8] = &[];
    for (number, line) in bytes.chunks(16).enumerate() {
        if line == last {
            continue;
        }
        last = line;
        let hex: Vec<_> = line.iter().map(|byte| format!("{byte:02x}")).collect();
        let shown: String = line
            .iter()
            .map(|byte| match byte {
                b' '..=b'~' => char::from(*byte),
                _ => '.',
            })
            .collect();
        text += &format!("{:06x}  {}  |{shown}|\n", number * 16, hex.join(" "));
    }
    text
}

#[test]
fn the_bytes_of_an_index_are_golden() {
    // Renewed on purpose only: stores keep indexes, and layers below others are read from them.
    let file = written(&tree(everything()));
    let mut bytes = vec![0; usize::try_from(file.metadata().unwrap().len()).unwrap()];
    file.read_exact_at(&mut bytes, 0).unwrap();
    let text = hexdump(&bytes);
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/index.erofs.txt");
    if std::env::var_os("KNARR_BLESS").is_some() {
        std::fs::write(path, &text).unwrap();
    }
    let known = std::fs::read_to_string(path).unwrap();
    assert!(
        text == known,
        "differs from {path}; `cargo x bless` renews it:\n{text}"
    );
}

#[test]
fn what_an_index_cannot_address_is_refused() {
    let root = || tree([member("./", tar::Kind::Dir)]);
    assert!(plan(&root(), (1 << 41) - 512, [0; 16], &[0; 64]).is_ok());
    let error = plan(&root(), 1 << 41, [0; 16], &[0; 64]).unwrap_err();
    assert!(matches!(error, Error::TooLarge { what: "a tar", .. }));
    let mut sparse = member("s", tar::Kind::File);
    (sparse.size, sparse.sparse) = (u64::MAX / 2, Some(Box::default()));
    let error = plan(&tree([sparse]), 512, [0; 16], &[0; 64]).unwrap_err();
    assert!(matches!(error, Error::TooLarge { what: "a file", .. }));
    // A hole of a tebibyte costs an index of some kilobytes.
    let mut sparse = member("s", tar::Kind::File);
    (sparse.size, sparse.sparse) = (1 << 40, Some(Box::default()));
    assert!(
        plan(&tree([sparse]), 512, [0; 16], &[0; 64])
            .unwrap()
            .size()
            < 1 << 20
    );
}

#[test]
fn a_damaged_index_is_an_error_and_no_panic() {
    let file = written(&tree(everything()));
    let len = file.metadata().unwrap().len();
    let mut bytes = vec![0; usize::try_from(len).unwrap()];
    file.read_exact_at(&mut bytes, 0).unwrap();
    let read = |bytes: &[u8]| {
        let file = unnamed();
        file.write_all_at(bytes, 0).unwrap();
        Index::open(file)?.tree([0, 1])
    };
    assert!(read(&bytes).is_ok());
    assert!(read(&bytes[..1200]).is_err());
    assert!(read(&[]).is_err());
    for at in 1024..1536 {
        let mut damaged = bytes.clone();
        damaged[at] ^= 0x10;
        assert!(matches!(read(&damaged), Err(Error::Damaged { .. })), "{at}");
    }
    for at in (1536..bytes.len().min(6000)).step_by(3) {
        let mut damaged = bytes.clone();
        damaged[at] = 0xff;
        read(&damaged).ok();
    }
}
