//! The crash matrix: whatever of the store's writes a power cut leaves, what was committed is
//! readable and hash-true, what was not is gone or whole, and no byte has no owner.
//!
//! A store is worked with under strace(1), so that what is tested is what ships. Of every system
//! call that changes a file system a model is made; then for every instant, the states are made that
//! the disk may be in: nothing that fsync(2) made durable is missing, of the rest any legal part is.
//!
//! The rules, weaker than what ext4, xfs and btrfs keep: changes of one folder are kept in their
//! order, but independently of other folders' and of files' contents; a rename is one step, that
//! of the folder it leads to; contents that were not synced are missing, cut short, torn, or zeros.

#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "in tests a panic is the message"
)]

#[path = "crash/model.rs"]
mod model;
mod support;
#[path = "crash/trace.rs"]
mod trace;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::Command;

use knarr_fs::TempDir;
use knarr_image::{CommitOptions, Silent, Source, Store};
use support::{Handmade, Scratch, tar_of};

/// Where the helper works, when this program is run as the helper.
const HELPER: &str = "KNARR_CRASH_HELPER";
/// Paths below it do not exist: to look for one tells the trace how far the work is.
const MARK: &str = "/knarr-mark";

fn mark(what: &str) {
    std::fs::metadata(format!("{MARK}/{what}")).unwrap_err();
}

/// What the trace is of. Marks: `begin:<name>`, then `present:<name>` or `absent:<name>`.
fn work(dir: &Path) {
    let store = Store::open(&dir.join("data"), &dir.join("run")).unwrap();
    let none = |_| Vec::new();
    for name in ["one", "two"] {
        let archive = dir.join(format!("{name}.tar"));
        mark(&format!("begin:{name}:1"));
        let loaded = store.load(Source::Path(&archive), None, &Silent).unwrap();
        assert_eq!(loaded.len(), 1);
        mark(&format!("present:{name}:1"));
    }
    mark("begin:three:1");
    let base = store.resolve("one:1").unwrap();
    let options = CommitOptions {
        reference: Some("three:1".parse().unwrap()),
        ..CommitOptions::default()
    };
    store
        .commit(Some(&base), &options, &mut |out| {
            let tar = tar_of(&[("./", b""), ("new", b"what the container wrote")]);
            out.write_all(&tar).map_err(knarr_layer::Error::Output)?;
            Ok(2)
        })
        .unwrap();
    mark("present:three:1");
    mark("begin:tagged:1");
    store.tag("two:1", &"tagged:1".parse().unwrap()).unwrap();
    mark("present:tagged:1");
    mark("begin:two:1");
    store.remove("two:1", false, &none).unwrap();
    mark("absent:two:1");
    mark("begin:tagged:1");
    store.remove("tagged:1", false, &none).unwrap();
    mark("absent:tagged:1");
    mark("begin:three:1");
    store.remove("three:1", false, &none).unwrap();
    mark("absent:three:1");
    store.empty_trash().unwrap();
    mark("begin:two:1");
    store
        .load(Source::Path(&dir.join("two.tar")), None, &Silent)
        .unwrap();
    mark("present:two:1");
}

/// Not a test of its own: what the matrix runs under strace.
#[test]
fn helper() {
    if let Some(dir) = std::env::var_os(HELPER) {
        work(Path::new(&dir));
    }
}

/// What must be true of a name at an instant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Expected {
    Present,
    Absent,
    /// Either, but whole.
    Open,
}

fn expected(marks: &[String]) -> BTreeMap<&str, Expected> {
    let mut expected = BTreeMap::new();
    for mark in marks {
        let (word, name) = mark.split_once(':').unwrap();
        let state = match word {
            "begin" => Expected::Open,
            "present" => Expected::Present,
            _ => Expected::Absent,
        };
        expected.insert(name, state);
    }
    expected
}

#[test]
fn a_power_cut_at_any_instant_loses_nothing_that_was_committed() {
    if !support::has("a_power_cut_at_any_instant", "strace") {
        return;
    }
    let scratch = Scratch::new();
    let dir = scratch.dir.path().join("traced");
    std::fs::create_dir_all(&dir).unwrap();
    for name in ["one", "two"] {
        let archive = Handmade::new(name).docker_archive(&[&format!("{name}:1")]);
        std::fs::write(dir.join(format!("{name}.tar")), archive).unwrap();
    }
    let log = scratch.path("trace");
    let traced = Command::new("strace")
        .args(["-f", "-qq", "-xx", "-s", "10000000", "-o"])
        .arg(&log)
        .args(["-e", trace::CALLS])
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", "helper", "--test-threads", "1"])
        .env(HELPER, &dir)
        .output()
        .unwrap();
    assert!(
        traced.status.success(),
        "{}{}",
        String::from_utf8_lossy(&traced.stdout),
        String::from_utf8_lossy(&traced.stderr)
    );
    let steps = trace::read(
        &std::fs::read_to_string(&log).unwrap(),
        &dir.join("data"),
        MARK,
    );
    let changes = steps.iter().filter(|step| step.is_change()).count();
    let syncs = steps.iter().filter(|step| step.is_sync()).count();
    // A trace that sees nothing proves nothing.
    assert!(
        changes > 80 && syncs > 30,
        "{changes} changes, {syncs} syncs"
    );

    // Memory will do for what a disk may hold, and syncs at once.
    let memory = Path::new("/dev/shm");
    let places = match memory.is_dir() {
        true => TempDir::new_in(&memory.join("knarr-crash")).unwrap(),
        false => TempDir::new_in(scratch.dir.path()).unwrap(),
    };
    let mut seen = BTreeSet::new();
    let mut judged = 0;
    let mut failures = Vec::new();
    for at in 0..=steps.len() {
        let marks: Vec<String> = model::marks(&steps[..at]);
        for (how, disk) in model::crashes(&steps[..at]) {
            if !seen.insert((disk.fingerprint(), marks.len())) {
                continue;
            }
            let place = places.path().join(judged.to_string());
            disk.write(&place.join("data"));
            if let Err(what) = judge(&place, &scratch, &expected(&marks), judged % 25 == 0) {
                let last = steps[..at].iter().rev().find(|step| step.is_change());
                failures.push(format!("after {at} ({last:?}), {how}: {what}"));
            }
            std::fs::remove_dir_all(&place).unwrap();
            judged += 1;
        }
    }
    eprintln!("{changes} changes, {syncs} syncs, {judged} states of the disk");
    assert!(judged > 300, "{judged}");
    assert!(
        failures.is_empty(),
        "{} of {judged} states:\n{}",
        failures.len(),
        failures
            .iter()
            .take(12)
            .cloned()
            .collect::<Vec<_>>()
            .join("\n")
    );
}

/// Opens what a crash left, as the next command would.
fn judge(
    place: &Path,
    scratch: &Scratch,
    expected: &BTreeMap<&str, Expected>,
    thoroughly: bool,
) -> Result<(), String> {
    let told = |error: knarr_image::Error| knarr_diag::Explain::report(&error).to_string();
    let store = Store::open(&place.join("data"), &place.join("run")).map_err(told)?;
    for (name, expected) in expected {
        match (store.resolve(name), expected) {
            (Ok(_), Expected::Present | Expected::Open) => {}
            (Err(knarr_image::Error::NotFound { .. }), Expected::Absent | Expected::Open) => {}
            (Ok(_), Expected::Absent) => return Err(format!("{name} is back")),
            (Err(error), _) => return Err(format!("{name} {expected:?}: {}", told(error))),
        }
    }
    let checked = store.check(None, &|_| Vec::new(), &Silent).map_err(told)?;
    // What no image needs may be anything: it goes with the next removal.
    for finding in &checked.findings {
        if !finding.needed_by.is_empty() || finding.object.starts_with("image") {
            return Err(format!("{finding:?}"));
        }
    }
    // The next removal finishes what was under way.
    let gone = store.remove("no/such:image", false, &|_| Vec::new());
    if !matches!(gone, Err(knarr_image::Error::NotFound { .. })) {
        return Err(format!("removing nothing: {gone:?}"));
    }
    store.empty_trash().map_err(told)?;
    let litter = litter(&store, &place.join("data"));
    if !litter.is_empty() {
        return Err(format!("unaccounted: {litter:?}"));
    }
    if thoroughly {
        let checked = store.check(None, &|_| Vec::new(), &Silent).map_err(told)?;
        if !checked.findings.is_empty() {
            return Err(format!("after the clean-up: {:?}", checked.findings));
        }
        for name in ["one", "two"] {
            let archive = scratch.path(&format!("traced/{name}.tar"));
            store
                .load(Source::Path(&archive), None, &Silent)
                .map_err(told)?;
        }
    }
    Ok(())
}

/// Files that belong to no image.
fn litter(store: &Store, data: &Path) -> Vec<PathBuf> {
    let references = store.references().unwrap();
    let mut known = BTreeSet::new();
    for (image, blobs, layers) in references.images {
        for blob in blobs {
            known.insert(data.join("blobs/sha256").join(blob.hex()));
        }
        let folder = data.join("images").join(image.digest().hex());
        known.extend([folder.join("image.json"), folder.join("lock")]);
        for layer in layers {
            let folder = store.layers().path(&layer);
            let files = ["layer.tar", "index.erofs", "layer.json", "lock"];
            known.extend(files.map(|file| folder.join(file)));
        }
    }
    let mut litter = Vec::new();
    let mut folders = vec![data.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder).unwrap() {
            let path = entry.unwrap().path();
            let below = path.strip_prefix(data).unwrap();
            let frame = below.ends_with(".lock") || below.starts_with("refs");
            if path.is_dir() {
                folders.push(path);
            } else if !frame && !known.contains(&path) {
                litter.push(path);
            }
        }
    }
    litter
}
