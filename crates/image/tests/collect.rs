//! Garbage is collected beside everything else, and never what somebody needs.
#![expect(clippy::unwrap_used, reason = "in tests a panic is the message")]

mod support;

use std::os::unix::process::ExitStatusExt as _;
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use knarr_fs::TempDir;
use knarr_image::{Error, ImageId, PullOptions, Silent, Source, Store, User};
use support::registry::{Content, Registry};
use support::{Handmade, Scratch, gzip, noise, tar_of};

/// Where the helper works, when this program is run as the helper.
const HELPER: &str = "KNARR_TEST_COLLECT_ROOT";

fn nobody(_: ImageId) -> Vec<User> {
    Vec::new()
}

/// Images that share their lowest layer.
fn relatives(names: &[&str]) -> Vec<Handmade> {
    let base = tar_of(&[("./", b""), ("base", &noise(1, 10_000))]);
    let images = names.iter().map(|name| {
        let middle = tar_of(&[("./", b""), ("middle", name.as_bytes())]);
        let top = tar_of(&[("./", b""), ("top", name.as_bytes())]);
        Handmade::of(vec![base.clone(), middle, top], "amd64", gzip)
    });
    images.collect()
}

fn is_whole(store: &Store, name: &str) {
    let image = store.resolve(name).unwrap();
    store.config_bytes(image.id).unwrap();
    store.manifest_bytes(&image).unwrap();
    for layer in &image.layers {
        store.layers().verify(layer).unwrap();
    }
}

/// A gate that requests wait at.
#[derive(Default)]
struct Gate {
    open: Mutex<bool>,
    changed: Condvar,
    waiting: AtomicU32,
}

impl Gate {
    fn pass(&self) {
        self.waiting.fetch_add(1, Ordering::Relaxed);
        let mut open = self.open.lock().unwrap();
        while !*open {
            open = self.changed.wait(open).unwrap();
        }
    }

    fn open(&self) {
        *self.open.lock().unwrap() = true;
        self.changed.notify_all();
    }
}

fn until(what: &str, done: impl Fn() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(30);
    while !done() {
        assert!(Instant::now() < deadline, "not yet: {what}");
        thread::sleep(Duration::from_millis(2));
    }
}

#[test]
fn what_a_pull_has_so_far_stays_and_so_does_what_it_found() {
    let scratch = Scratch::new();
    let images = relatives(&["old", "new"]);
    let old = scratch.write("old.tar", &images[0].docker_archive(&["old:1"]));
    let store = &scratch.store;
    store.load(Source::Path(&old), None, &Silent).unwrap();
    let content = Content::of("app", "1", &images[1]);
    let gate = Arc::new(Gate::default());
    let last = format!(
        "/v2/app/blobs/{}",
        knarr_cas::Hasher::digest(&images[1].blobs[2])
    );
    let registry = Registry::start({
        let gate = Arc::clone(&gate);
        move |seen| {
            if seen.path == last {
                gate.pass();
            }
            content.answer(seen)
        }
    });
    let name = registry.name("app:1");
    thread::scope(|scope| {
        let pulling = scope.spawn(|| store.pull(&name, &PullOptions::default(), &Silent));
        // The middle layer is published, the lowest was there, the last one waits.
        until("two layers are there", || {
            gate.waiting.load(Ordering::Relaxed) > 0 && store.layers().list().unwrap().len() == 4
        });
        // Now only the pull knows what the lowest one is good for.
        let removed = store.remove("old:1", false, &nobody).unwrap();
        assert_eq!(
            removed.len(),
            4,
            "its name, itself, two layers: {removed:?}"
        );
        store.collect_garbage().unwrap();
        assert_eq!(store.layers().list().unwrap().len(), 2);
        gate.open();
        pulling.join().unwrap().unwrap();
    });
    is_whole(store, &name.to_string());
    let checked = store.check(None, &nobody, &Silent).unwrap();
    assert_eq!((checked.layers, checked.findings), (3, Vec::new()));
    store.remove(&name.to_string(), false, &nobody).unwrap();
    store.empty_trash().unwrap();
    assert_eq!(scratch.files(), []);
}

/// Not a test of its own: a load in a process that is killed.
#[test]
fn helper() {
    let Some(root) = std::env::var_os(HELPER) else {
        return;
    };
    let root = Path::new(&root);
    let store = Store::open(&root.join("data"), &root.join("run")).unwrap();
    let archive = root.join("image.tar");
    store.load(Source::Path(&archive), None, &Silent).unwrap();
}

#[test]
fn the_dead_hold_nothing_from_the_instant_they_are_dead() {
    let image = Handmade::new("dead");
    for point in [
        "layer.published",
        "load.layers-present",
        "image.blobs-stored",
    ] {
        let scratch = Scratch::new();
        scratch.write("image.tar", &image.docker_archive(&["app:1"]));
        let status = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "helper", "--test-threads=1"])
            .env(HELPER, scratch.dir.path())
            .env("KNARR_FAILPOINT", point)
            .output()
            .unwrap()
            .status;
        assert_eq!(status.signal(), Some(9), "{point}: {status}");
        assert_ne!(scratch.files(), [], "{point}");
        scratch.store.collect_garbage().unwrap();
        scratch.store.empty_trash().unwrap();
        assert_eq!(scratch.files(), [], "{point}");
    }
}

/// Loads, removals and collections in a heap. The only thing that may go wrong is that an image is
/// not there.
#[test]
fn loads_removals_and_collections_get_along() {
    let scratch = Scratch::new();
    let names = ["a", "b", "c"];
    let images = relatives(&names);
    let archives: Vec<_> = names
        .iter()
        .zip(&images)
        .map(|(name, image)| {
            let archive = image.docker_archive(&[&format!("{name}:1")]);
            scratch.write(&format!("{name}.tar"), &archive)
        })
        .collect();
    let store = &scratch.store;
    let over = AtomicBool::new(false);
    let collected = AtomicU32::new(0);
    thread::scope(|scope| {
        let workers: Vec<_> = names
            .iter()
            .zip(&archives)
            .map(|(name, archive)| {
                scope.spawn(move || {
                    let name = format!("{name}:1");
                    for _ in 0..15 {
                        store.load(Source::Path(archive), None, &Silent).unwrap();
                        is_whole(store, &name);
                        store.remove(&name, false, &nobody).unwrap();
                        let gone = store.resolve(&name);
                        assert!(matches!(gone, Err(Error::NotFound { .. })), "{gone:?}");
                    }
                    store.load(Source::Path(archive), None, &Silent).unwrap();
                })
            })
            .collect();
        scope.spawn(|| {
            while !over.load(Ordering::Relaxed) {
                store.collect_garbage().unwrap();
                collected.fetch_add(1, Ordering::Relaxed);
            }
        });
        let done: Vec<_> = workers.into_iter().map(|worker| worker.join()).collect();
        over.store(true, Ordering::Relaxed);
        for worker in done {
            worker.unwrap();
        }
    });
    assert!(collected.into_inner() > 10);
    for name in names {
        is_whole(store, &format!("{name}:1"));
    }
    let checked = store.check(None, &nobody, &Silent).unwrap();
    assert_eq!(checked.findings, []);
    for name in names {
        store.remove(&format!("{name}:1"), false, &nobody).unwrap();
    }
    store.empty_trash().unwrap();
    assert_eq!(scratch.files(), []);
}

#[test]
fn a_thousand_images_are_looked_through_in_no_time() {
    const IMAGES: usize = 1000;
    // Memory syncs at once.
    let memory = Path::new("/dev/shm");
    let parent = if memory.is_dir() {
        memory.to_owned()
    } else {
        std::env::temp_dir()
    };
    let dir = TempDir::new_in(&parent.join("knarr-collect")).unwrap();
    let store = Store::open(&dir.path().join("data"), &dir.path().join("run")).unwrap();
    let base = tar_of(&[("./", b""), ("base", &noise(1, 1000))]);
    let archive = dir.path().join("image.tar");
    for n in 0..IMAGES {
        let top = tar_of(&[("./", b""), ("n", n.to_string().as_bytes())]);
        let image = Handmade::of(vec![base.clone(), top], "amd64", gzip);
        std::fs::write(&archive, image.docker_archive(&[])).unwrap();
        store.load(Source::Path(&archive), None, &Silent).unwrap();
    }
    let timed = |what: &str, expected: usize| {
        let begun = Instant::now();
        store.collect_garbage().unwrap();
        let took = begun.elapsed();
        let layers = store.layers().list().unwrap().len();
        assert_eq!(layers, expected, "{what}");
        eprintln!("{what}: {took:?}");
        // A hundred times what it takes on a quiet machine.
        assert!(took < Duration::from_secs(20), "{what}: {took:?}");
    };
    timed("1,000 images and no garbage", IMAGES + 1);
    // Half of them vanish, as if a power cut had taken their records.
    for entry in std::fs::read_dir(dir.path().join("data/images"))
        .unwrap()
        .take(IMAGES / 2)
    {
        std::fs::remove_dir_all(entry.unwrap().path()).unwrap();
    }
    timed(
        "500 images and 500 others' layers and blobs",
        IMAGES / 2 + 1,
    );
    let checked = store.check(None, &nobody, &Silent).unwrap();
    assert_eq!(
        (checked.images, checked.blobs, checked.findings),
        (IMAGES / 2, IMAGES, Vec::new())
    );
}
