//! SIGKILL at every named point of a load and of a removal: afterwards the image is there whole or
//! not at all, and one more call leaves nothing that nobody owns.
#![expect(clippy::unwrap_used, reason = "in tests a panic is the message")]

mod support;

use std::os::unix::process::ExitStatusExt as _;
use std::path::Path;
use std::process::{Command, ExitStatus};

use knarr_image::{Silent, Source, Store};
use support::{Handmade, Scratch};

const ROOT: &str = "KNARR_TEST_KILL_ROOT";
const LOAD: [&str; 14] = [
    "layer.begun",
    "layer.indexed",
    "layer.synced",
    "layer.taken",
    "layer.published",
    "load.layers-present",
    "blob.synced",
    "blob.linked",
    "blob.published",
    "image.blobs-stored",
    "image.written",
    "image.published",
    "image.naming",
    "image.named",
];
const REMOVE: [&str; 4] = [
    "image.hidden",
    "image.unnamed",
    "image.removed",
    "image.layer-removed",
];

/// Not a test of its own: what the others run in a process that is killed.
#[test]
fn in_a_process_of_its_own() {
    let Some(root) = std::env::var_os(ROOT) else {
        return;
    };
    let root = Path::new(&root);
    let store = Store::open(&root.join("data"), &root.join("run")).unwrap();
    if root.join("image.tar").exists() {
        let path = root.join("image.tar");
        store.load(Source::Path(&path), None, &Silent).unwrap();
    } else {
        store.remove("app:1", false, &|_| Vec::new()).unwrap();
    }
}

fn killed_at(scratch: &Scratch, point: &str) -> ExitStatus {
    Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "in_a_process_of_its_own", "--test-threads=1"])
        .env(ROOT, scratch.dir.path())
        .env("KNARR_FAILPOINT", point)
        .output()
        .unwrap()
        .status
}

fn is_whole(scratch: &Scratch, image: &Handmade) {
    let found = scratch.store.resolve("app:1").unwrap();
    assert_eq!(scratch.store.config_bytes(found.id).unwrap(), image.config);
    assert_eq!(
        scratch.store.manifest_bytes(&found).unwrap().first(),
        Some(&b'{')
    );
    for id in &found.layers {
        scratch.store.layers().verify(id).unwrap();
    }
}

#[test]
fn a_load_that_is_killed_did_nothing_or_everything() {
    let image = Handmade::new("killed");
    for point in LOAD {
        let scratch = Scratch::new();
        let path = scratch.write("image.tar", &image.docker_archive(&["app:1"]));
        let status = killed_at(&scratch, point);
        assert_eq!(status.signal(), Some(9), "{point}: {status}");
        let listing = scratch.store.list().unwrap();
        assert!(listing.damaged.is_empty(), "{point}");
        assert!(listing.images.len() <= 1, "{point}");
        if scratch.store.resolve("app:1").is_ok() {
            is_whole(&scratch, &image);
        }
        scratch
            .store
            .load(Source::Path(&path), None, &Silent)
            .unwrap();
        is_whole(&scratch, &image);
        scratch
            .store
            .remove("app:1", false, &|_| Vec::new())
            .unwrap();
        scratch.store.empty_trash().unwrap();
        assert_eq!(scratch.files(), [], "{point}");
    }
}

#[test]
fn a_removal_that_is_killed_did_nothing_or_everything() {
    let (image, other) = (Handmade::new("killed"), Handmade::new("other"));
    for point in REMOVE {
        let scratch = Scratch::new();
        let path = scratch.write("other.tar", &other.docker_archive(&["other:1"]));
        scratch
            .store
            .load(Source::Path(&path), None, &Silent)
            .unwrap();
        let before = scratch.files();
        let path = scratch.write("app.tar", &image.docker_archive(&["app:1"]));
        scratch
            .store
            .load(Source::Path(&path), None, &Silent)
            .unwrap();
        let status = killed_at(&scratch, point);
        assert_eq!(status.signal(), Some(9), "{point}: {status}");
        let listing = scratch.store.list().unwrap();
        assert!(listing.damaged.is_empty(), "{point}");
        assert_eq!(listing.images.len(), 1, "{point}");
        assert!(scratch.store.resolve("app:1").is_err(), "{point}");
        // The next removal, of whatever, finishes it.
        scratch
            .store
            .load(Source::Path(&path), None, &Silent)
            .unwrap();
        is_whole(&scratch, &image);
        scratch
            .store
            .remove("app:1", false, &|_| Vec::new())
            .unwrap();
        scratch.store.empty_trash().unwrap();
        assert_eq!(scratch.files(), before, "{point}");
    }
}
