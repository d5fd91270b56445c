//! SIGKILL at every named point of a load, commit, import, removal, collection and repair: afterwards
//! the image is there whole or not at all, and one more call leaves nothing that nobody owns.
#![expect(clippy::unwrap_used, reason = "in tests a panic is the message")]

mod support;

use std::collections::BTreeSet;
use std::os::unix::process::ExitStatusExt as _;
use std::path::Path;
use std::process::{Command, ExitStatus};

use knarr_image::{CommitOptions, ImportOptions, PullOptions, Silent, Source, Store, WriteLayer};
use support::{Handmade, Scratch, points, tar_of};

const ROOT: &str = "KNARR_TEST_KILL_ROOT";
const WHAT: &str = "KNARR_TEST_KILL_WHAT";

/// Not a test of its own: what the others run in a process that is killed.
#[test]
fn in_a_process_of_its_own() {
    let Some(root) = std::env::var_os(ROOT) else {
        return;
    };
    let root = Path::new(&root);
    let store = Store::open(&root.join("data"), &root.join("run")).unwrap();
    let path = root.join("image.tar");
    match std::env::var(WHAT).unwrap().as_str() {
        "load" => drop(store.load(Source::Path(&path), None, &Silent).unwrap()),
        "remove" => drop(store.remove("app:1", false, &|_| Vec::new()).unwrap()),
        "commit" => {
            let base = store.resolve("app:1").unwrap();
            let options = CommitOptions {
                reference: Some("made:1".parse().unwrap()),
                ..CommitOptions::default()
            };
            let write: WriteLayer<'_> = &mut |out| {
                let tar = tar_of(&[("./", b""), ("new", b"what the container wrote")]);
                out.write_all(&tar).map_err(knarr_layer::Error::Output)?;
                Ok(2)
            };
            store.commit(Some(&base), &options, write).unwrap();
        }
        "import" => {
            let options = ImportOptions {
                reference: Some("made:1".parse().unwrap()),
                ..ImportOptions::default()
            };
            let tar = root.join("root.tar");
            store.import(Source::Path(&tar), &options).unwrap();
        }
        "collect" => store.collect_garbage().unwrap(),
        "check" => {
            let options = PullOptions::default();
            store
                .check(Some(&options), &|_| Vec::new(), &Silent)
                .unwrap();
        }
        what => unreachable!("{what}"),
    }
}

fn killed_at(scratch: &Scratch, what: &str, point: &str) -> ExitStatus {
    Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "in_a_process_of_its_own", "--test-threads=1"])
        .env(ROOT, scratch.dir.path())
        .env(WHAT, what)
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
    for point in points::LOAD {
        let scratch = Scratch::new();
        let path = scratch.write("image.tar", &image.docker_archive(&["app:1"]));
        let status = killed_at(&scratch, "load", point);
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
    for point in points::REMOVE {
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
        let status = killed_at(&scratch, "remove", point);
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

/// A store with `app:1`, and what is in it.
fn with_app(image: &Handmade) -> (Scratch, Vec<(std::path::PathBuf, knarr_spec::Digest)>) {
    let scratch = Scratch::new();
    let path = scratch.write("app.tar", &image.docker_archive(&["app:1"]));
    scratch
        .store
        .load(Source::Path(&path), None, &Silent)
        .unwrap();
    let before = scratch.files();
    (scratch, before)
}

#[test]
fn a_commit_or_import_that_is_killed_did_nothing_or_everything() {
    let image = Handmade::new("base");
    let tar = tar_of(&[("./", b""), ("root", b"file system")]);
    for (what, points) in [("commit", &points::COMMIT[..]), ("import", &points::IMPORT)] {
        for point in points {
            let (scratch, before) = with_app(&image);
            scratch.write("root.tar", &tar);
            let status = killed_at(&scratch, what, point);
            assert_eq!(status.signal(), Some(9), "{what} {point}: {status}");
            let listing = scratch.store.list().unwrap();
            assert!(listing.damaged.is_empty(), "{what} {point}");
            let made = |id| id != image.id();
            for listed in &listing.images {
                for layer in &listed.image.layers {
                    scratch.store.layers().verify(layer).unwrap();
                }
                let id = listed.image.id;
                if made(id.digest()) {
                    // Whole, and only its name may be missing.
                    scratch.store.config_bytes(id).unwrap();
                    scratch
                        .store
                        .remove(&id.to_string(), true, &|_| Vec::new())
                        .unwrap();
                }
            }
            scratch.store.collect_garbage().unwrap();
            scratch.store.empty_trash().unwrap();
            assert_eq!(scratch.files(), before, "{what} {point}");
            is_whole(&scratch, &image);
        }
    }
}

#[test]
fn a_collection_that_is_killed_took_only_garbage_and_the_next_takes_the_rest() {
    let (image, other) = (Handmade::new("kept"), Handmade::new("orphan"));
    for point in points::COLLECT {
        let (scratch, before) = with_app(&image);
        let path = scratch.write("other.tar", &other.docker_archive(&[]));
        let loaded = scratch.store.load(Source::Path(&path), None, &Silent);
        let id = loaded.unwrap()[0].id.digest().hex();
        std::fs::remove_dir_all(scratch.path("data/images").join(id)).unwrap();
        let status = killed_at(&scratch, "collect", point);
        assert_eq!(status.signal(), Some(9), "{point}: {status}");
        is_whole(&scratch, &image);
        scratch.store.collect_garbage().unwrap();
        scratch.store.empty_trash().unwrap();
        assert_eq!(scratch.files(), before, "{point}");
    }
}

#[test]
fn a_repair_that_is_killed_is_done_by_the_next() {
    let image = Handmade::new("repaired");
    for point in points::CHECK {
        let (scratch, before) = with_app(&image);
        let found = scratch.store.resolve("app:1").unwrap();
        let index = scratch
            .store
            .layers()
            .path(&found.layers[0])
            .join("index.erofs");
        std::fs::write(&index, "no index").unwrap();
        let status = killed_at(&scratch, "check", point);
        assert_eq!(status.signal(), Some(9), "{point}: {status}");
        let options = PullOptions::default();
        let check = |repair| {
            let checked = scratch.store.check(repair, &|_| Vec::new(), &Silent);
            checked.unwrap().findings
        };
        let findings = check(Some(&options));
        assert!(findings.len() <= 1, "{point}: {findings:?}");
        assert_eq!(check(None), [], "{point}");
        is_whole(&scratch, &image);
        scratch.store.empty_trash().unwrap();
        assert_eq!(scratch.files(), before, "{point}");
    }
}

/// Every `failpoint!("…")` of the crates that images are made of.
fn in_the_sources() -> BTreeSet<String> {
    let crates = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let mut folders: Vec<_> = ["image", "layer", "cas", "distribution"]
        .iter()
        .map(|name| crates.join(name).join("src"))
        .collect();
    let mut found = BTreeSet::new();
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
                continue;
            }
            let text = std::fs::read_to_string(&path).unwrap();
            let names = text.split("failpoint!(\"").skip(1);
            found.extend(names.filter_map(|part| Some(part.split_once('"')?.0.to_owned())));
        }
    }
    found
}

#[test]
fn every_point_in_the_sources_has_a_case() {
    let found = in_the_sources();
    assert!(found.len() > 25, "{found:?}");
    let mut cases: BTreeSet<String> = BTreeSet::new();
    for points in points::ALL {
        cases.extend(points.iter().map(|point| (*point).to_owned()));
    }
    assert_eq!(found, cases);
}
