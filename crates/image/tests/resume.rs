//! Pulls that break off and go on, blobs in parts, and bytes that are not what they should be.
#![expect(clippy::unwrap_used, reason = "in tests a panic is the message")]

mod support;

use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use knarr_cas::Hasher;
use knarr_diag::Explain as _;
use knarr_distribution::Settings;
use knarr_image::{Error, PullOptions, Pulled, Silent, Store};
use support::registry::{Answer, Content, Registry, Seen};
use support::{Handmade, Scratch, gzip, noise, tar_of, zstd};

const ROOT: &str = "KNARR_TEST_PULL_ROOT";
const NAME: &str = "KNARR_TEST_PULL_NAME";

fn options(root: &Path) -> PullOptions {
    let auth_file = root.join("auth.json");
    std::fs::write(&auth_file, "{}").unwrap();
    PullOptions {
        registry: Settings {
            auth_file: Some(auth_file),
            etc: Some(root.join("etc")),
            ..Settings::default()
        },
        ..PullOptions::default()
    }
}

fn pull(scratch: &Scratch, registry: &Registry) -> Result<Pulled, Error> {
    let options = options(scratch.dir.path());
    scratch
        .store
        .pull(&registry.name("app:1"), &options, &Silent)
}

/// One layer of about so many bytes, which do not compress.
fn large(seed: u64, size: usize) -> Handmade {
    let tar = tar_of(&[("./", b""), ("data", &noise(seed, size))]);
    Handmade::of(vec![tar], "amd64", gzip)
}

fn is_layer(seen: &Seen, image: &Handmade) -> bool {
    let digest = Hasher::digest(&image.blobs[0]).to_string();
    seen.path.contains("/blobs/") && seen.path.ends_with(&digest)
}

fn partial(scratch: &Scratch, image: &Handmade) -> PathBuf {
    let hex = Hasher::digest(&image.blobs[0]).hex().to_string();
    scratch.path("data/blobs/partial").join(hex)
}

/// The first byte of each range that was asked for.
fn starts(registry: &Registry) -> Vec<usize> {
    let ranges = registry.seen().into_iter().filter_map(|seen| {
        let range = seen.header("range")?.strip_prefix("bytes=")?.to_owned();
        range.split('-').next()?.parse().ok()
    });
    ranges.collect()
}

fn is_whole(store: &Store, image: &Handmade, name: &str) {
    let found = store.resolve(name).unwrap();
    assert_eq!(found.id.digest(), image.id());
    for id in &found.layers {
        store.layers().verify(id).unwrap();
    }
}

#[test]
fn a_pull_goes_on_where_another_broke_off() {
    let image = large(1, 5 << 20);
    let content = Content::of("app", "1", &image);
    let broken = Arc::new(AtomicBool::new(true));
    let (is_broken, of) = (Arc::clone(&broken), image.clone());
    let registry = Registry::start(move |seen| {
        let answer = content.answer(seen);
        match is_broken.load(Ordering::Relaxed) && is_layer(seen, &of) {
            true if seen.header("range").is_some() => Answer::error(403, "DENIED"),
            true => Answer {
                cut: Some(3 << 20),
                ..answer
            },
            false => answer,
        }
    });
    let scratch = Scratch::new();
    let report = pull(&scratch, &registry).unwrap_err().report();
    assert_eq!(report.code, "registry-denied", "{report}");
    assert!(partial(&scratch, &image).join("data").exists());
    broken.store(false, Ordering::Relaxed);
    let before = starts(&registry).len();
    pull(&scratch, &registry).unwrap();
    let resumed = starts(&registry).split_off(before);
    assert_eq!(resumed.len(), 1, "{resumed:?}");
    assert!(resumed[0] >= 2 << 20, "{resumed:?}");
    is_whole(&scratch.store, &image, &registry.name("app:1").to_string());
    assert!(
        !partial(&scratch, &image).exists(),
        "it is not needed any more"
    );
}

#[test]
fn what_was_damaged_meanwhile_is_fetched_again() {
    let image = large(2, 3 << 20);
    let content = Content::of("app", "1", &image);
    let registry = Registry::start(move |seen| content.answer(seen));
    let scratch = Scratch::new();
    let folder = partial(&scratch, &image);
    std::fs::create_dir_all(&folder).unwrap();
    std::fs::write(folder.join("data"), vec![0u8; 2 << 20]).unwrap();
    std::fs::write(folder.join("progress"), (2u64 << 20).to_le_bytes()).unwrap();
    pull(&scratch, &registry).unwrap();
    is_whole(&scratch.store, &image, &registry.name("app:1").to_string());
    // Once from where it seemed to be, once from the start.
    assert_eq!(starts(&registry), [2 << 20]);
    assert!(!folder.exists());
}

#[test]
fn a_large_blob_comes_in_parts_at_the_same_time() {
    let image = large(3, 50 << 20);
    let content = Content::of("app", "1", &image);
    let (now, most) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let (count, high, of) = (Arc::clone(&now), Arc::clone(&most), image.clone());
    let other = content.clone();
    let registry = Registry::start(move |seen| {
        if is_layer(seen, &of) {
            let at_once = count.fetch_add(1, Ordering::SeqCst) + 1;
            high.fetch_max(at_once, Ordering::SeqCst);
            // All but the first, before which nobody knows whether there are parts, wait for another.
            let is_first = seen
                .header("range")
                .is_none_or(|r| r.starts_with("bytes=0-"));
            let begun = std::time::Instant::now();
            while !is_first && high.load(Ordering::SeqCst) < 2 && begun.elapsed().as_secs() < 20 {
                std::thread::sleep(std::time::Duration::from_millis(5));
            }
            count.fetch_sub(1, Ordering::SeqCst);
        }
        content.answer(seen)
    });
    let scratch = Scratch::new();
    pull(&scratch, &registry).unwrap();
    is_whole(&scratch.store, &image, &registry.name("app:1").to_string());
    let mut ranges = starts(&registry);
    ranges.sort_unstable();
    assert_eq!(ranges, [0, 16 << 20, 32 << 20, 48 << 20]);
    assert!(most.load(Ordering::SeqCst) > 1, "one after the other");
    // A server without ranges sends it in one piece.
    let registry = Registry::start(move |seen| {
        let mut plain = seen.clone();
        plain.headers.remove("range");
        other.answer(&plain)
    });
    let scratch = Scratch::new();
    pull(&scratch, &registry).unwrap();
    is_whole(&scratch.store, &image, &registry.name("app:1").to_string());
    let asked = registry
        .seen()
        .iter()
        .filter(|s| is_layer(s, &image))
        .count();
    assert_eq!(asked, 1);
}

#[test]
fn parts_that_do_not_fit_together_are_refused() {
    let image = large(4, 40 << 20);
    let content = Content::of("app", "1", &image);
    let of = image.clone();
    // The bytes change between one request and the next.
    let registry = Registry::start(move |seen| {
        let mut answer = content.answer(seen);
        let is_later = seen
            .header("range")
            .is_some_and(|r| !r.starts_with("bytes=0-"));
        if is_layer(seen, &of) && is_later {
            answer.body.iter_mut().for_each(|byte| *byte ^= 1);
        }
        answer
    });
    let scratch = Scratch::new();
    let report = pull(&scratch, &registry).unwrap_err().report();
    assert_eq!(report.code, "digest-mismatch", "{report}");
    assert!(scratch.store.layers().list().unwrap().is_empty());
    assert!(
        !partial(&scratch, &image).exists(),
        "of no use to the next pull"
    );
}

/// Not a test of its own: what the others run in a process of its own.
#[test]
fn in_a_process_of_its_own() {
    let (Some(root), Ok(name)) = (std::env::var_os(ROOT), std::env::var(NAME)) else {
        return;
    };
    let root = Path::new(&root);
    let store = Store::open(&root.join("data"), &root.join("run")).unwrap();
    let pulled = store.pull(&name.parse().unwrap(), &options(root), &Silent);
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let peak = status
        .lines()
        .find(|line| line.starts_with("VmHWM:"))
        .unwrap();
    std::fs::write(root.join("peak"), peak).unwrap();
    pulled.unwrap();
}

fn run(scratch: &Scratch, name: &str, point: &str) -> std::process::ExitStatus {
    Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "in_a_process_of_its_own", "--test-threads=1"])
        .env(ROOT, scratch.dir.path())
        .env(NAME, name)
        .env("KNARR_FAILPOINT", point)
        .output()
        .unwrap()
        .status
}

#[test]
fn a_pull_that_is_killed_did_nothing_or_everything() {
    let tar = tar_of(&[("./", b""), ("data", &noise(9, 2 << 20))]);
    let small = tar_of(&[("./", b""), ("etc/", b""), ("etc/name", b"x")]);
    let image = Handmade::of(vec![tar, small], "amd64", gzip);
    let content = Content::of("app", "1", &image);
    let registry = Registry::start(move |seen| content.answer(seen));
    let name = registry.name("app:1").to_string();
    for point in support::points::PULL {
        let scratch = Scratch::new();
        let status = run(&scratch, &name, point);
        assert_eq!(status.signal(), Some(9), "{point}: {status}");
        let listing = scratch.store.list().unwrap();
        assert!(
            listing.damaged.is_empty() && listing.images.len() <= 1,
            "{point}"
        );
        if scratch.store.resolve(&name).is_ok() {
            is_whole(&scratch.store, &image, &name);
        }
        pull(&scratch, &registry).unwrap();
        is_whole(&scratch.store, &image, &name);
        let removed = scratch.store.remove(&name, false, &|_| Vec::new());
        removed.unwrap();
        scratch.store.empty_trash().unwrap();
        assert_eq!(scratch.files(), [], "{point}");
    }
}

#[test]
fn memory_is_bounded_whatever_the_registry_sends() {
    let zeros = vec![0u8; 120 << 20];
    let bomb = tar_of(&[("./", b""), ("zeros", &zeros)]);
    drop(zeros);
    let small = |n: u8| tar_of(&[("./", b""), ("x", &[n])]);
    let gzipped = Handmade::of(vec![bomb.clone(), small(1)], "amd64", gzip);
    let squeezed = Handmade::of(vec![bomb, small(2)], "amd64", zstd);
    let mut content = Content::of("gzip", "1", &gzipped);
    content.put_image("zstd", &squeezed);
    content.put_tag("zstd", "1", &squeezed.manifest);
    let registry = Registry::start(move |seen| {
        let endless = |head: &str| Answer {
            raw: Some([head.as_bytes(), &vec![b' '; 150 << 20]].concat()),
            ..Answer::default()
        };
        match seen.path.as_str() {
            "/v2/manifest/manifests/1" => {
                endless("HTTP/1.1 200 OK\r\ncontent-length: 157286400\r\n\r\n")
            }
            "/v2/headers/manifests/1" => endless("HTTP/1.1 200 OK\r\nx: "),
            "/v2/error/manifests/1" => {
                endless("HTTP/1.1 500 Oh\r\ncontent-length: 157286400\r\n\r\n")
            }
            _ => content.answer(seen),
        }
    });
    for (repository, is_good) in [
        ("gzip", true),
        ("zstd", true),
        ("manifest", false),
        ("headers", false),
        ("error", false),
    ] {
        let scratch = Scratch::new();
        let name = registry.name(&format!("{repository}:1")).to_string();
        let status = run(&scratch, &name, "");
        assert_eq!(status.success(), is_good, "{repository}");
        let peak = std::fs::read_to_string(scratch.path("peak")).unwrap();
        let kib: u64 = peak.split_whitespace().nth(1).unwrap().parse().unwrap();
        assert!(kib < 64 << 10, "{repository}: {peak}");
    }
}

#[test]
fn a_window_that_takes_too_much_memory_is_refused() {
    let tar = tar_of(&[
        ("./", b""),
        ("data", &noise(5, 3 << 20)),
        ("again", &noise(5, 3 << 20)),
    ]);
    let with_window = |log: u32| {
        move |tar: &[u8]| {
            let mut encoder = ::zstd::stream::write::Encoder::new(Vec::new(), 1).unwrap();
            encoder.window_log(log).unwrap();
            encoder.long_distance_matching(true).unwrap();
            std::io::Write::write_all(&mut encoder, tar).unwrap();
            encoder.finish().unwrap()
        }
    };
    for (log, is_good) in [(23, true), (25, true), (27, false)] {
        let image = Handmade::of(vec![tar.clone()], "amd64", with_window(log));
        let content = Content::of("app", "1", &image);
        let registry = Registry::start(move |seen| content.answer(seen));
        let pulled = pull(&Scratch::new(), &registry);
        assert_eq!(pulled.is_ok(), is_good, "{log}: {pulled:?}");
    }
}
