//! Whole indexes in the store: brought, kept, shown, checked and removed together.
#![expect(clippy::unwrap_used, reason = "in tests a panic is the message")]

mod support;

use std::collections::BTreeSet;
use std::os::unix::process::ExitStatusExt as _;
use std::path::Path;
use std::process::Command;

use knarr_cas::Hasher;
use knarr_diag::Explain as _;
use knarr_distribution::Settings;
use knarr_image::{Outcome, PullOptions, PullPolicy, SaveFormat, Silent, Source, Store, User};
use knarr_spec::{Digest, Platform};
use serde_json::{Value, json};
use support::registry::{Content, Registry};
use support::{Handmade, Scratch, gzip, tar_of};

/// An index with an attestation and with another index in it.
struct Multi {
    amd: Handmade,
    arm: Handmade,
    riscv: Handmade,
    attestation: Vec<u8>,
    statement: Vec<u8>,
    empty: Vec<u8>,
    inner: Vec<u8>,
    outer: Vec<u8>,
}

impl Multi {
    fn new(seed: &str) -> Self {
        let make = |architecture: &str| {
            let base = tar_of(&[("./", b""), ("base", b"the same in all")]);
            let own = tar_of(&[("./", b""), (architecture, seed.as_bytes())]);
            Handmade::of(vec![base, own], architecture, gzip)
        };
        let (amd, arm, riscv) = (make("amd64"), make("arm64"), make("riscv64"));
        let entry = |image: &Handmade, architecture: &str| {
            let mut entry = image.descriptor();
            entry["platform"] = json!({"os": "linux", "architecture": architecture});
            entry
        };
        let (statement, empty) = (
            format!("{{\"about\":\"{seed}\"}}").into_bytes(),
            b"{}".to_vec(),
        );
        let attestation = serde_json::to_vec(&json!({
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": support::descriptor("application/vnd.oci.image.config.v1+json", &empty),
            "layers": [support::descriptor("application/vnd.in-toto+json", &statement)],
        }));
        let attestation = attestation.unwrap();
        let kind = "application/vnd.oci.image.manifest.v1+json";
        let mut about = support::descriptor(kind, &attestation);
        about["platform"] = json!({"os": "unknown", "architecture": "unknown"});
        about["annotations"] = json!({
            "vnd.docker.reference.type": "attestation-manifest",
            "vnd.docker.reference.digest": Hasher::digest(&amd.manifest).to_string(),
        });
        let inner = support::index_of(vec![entry(&riscv, "riscv64"), entry(&amd, "amd64")]);
        let nested = support::descriptor("application/vnd.oci.image.index.v1+json", &inner);
        let outer = vec![entry(&amd, "amd64"), entry(&arm, "arm64"), about, nested];
        Self {
            outer: support::index_of(outer),
            amd,
            arm,
            riscv,
            attestation,
            statement,
            empty,
            inner,
        }
    }

    fn digest(&self) -> Digest {
        Hasher::digest(&self.outer)
    }

    fn images(&self) -> [&Handmade; 3] {
        [&self.amd, &self.arm, &self.riscv]
    }

    fn content(&self, tag: &str) -> Content {
        let mut content = Content::default();
        for image in self.images() {
            content.put_image("app", image);
        }
        content.put_blob("app", &self.empty);
        content.put_blob("app", &self.statement);
        content.put_manifest("app", &self.attestation);
        content.put_manifest("app", &self.inner);
        content.put_manifest("app", &self.outer);
        content.put_tag("app", tag, &self.outer);
        content
    }
}

fn options(scratch: &Scratch) -> PullOptions {
    PullOptions {
        all_platforms: true,
        keep_blobs: true,
        registry: Settings {
            auth_file: Some(scratch.write("auth.json", b"{}")),
            etc: Some(scratch.path("etc")),
            ..Settings::default()
        },
        ..PullOptions::default()
    }
}

/// The members of a tar, by name.
fn members(tar: &[u8]) -> BTreeSet<String> {
    let mut names = BTreeSet::new();
    let mut reader = knarr_layer::tar::Reader::new(knarr_layer::tar::Limits::default());
    let mut rest = tar;
    while !rest.is_empty() {
        let (taken, event) = reader.feed(rest).unwrap();
        if let Some(knarr_layer::tar::Event::Member(member)) = event {
            names.insert(String::from_utf8(member.path).unwrap());
        }
        rest = &rest[taken..];
    }
    names
}

#[test]
fn a_whole_index_is_one_thing_with_an_image_for_each_platform() {
    let multi = Multi::new("one");
    let content = multi.content("1");
    let registry = Registry::start(move |seen| content.answer(seen));
    let scratch = Scratch::new();
    let store = &scratch.store;
    let name = registry.name("app:1");
    let pulled = store.pull(&name, &options(&scratch), &Silent).unwrap();
    assert_eq!(pulled.digest, multi.digest());
    assert_eq!(pulled.image.id.digest(), multi.amd.id());
    let all = scratch.files();

    // Every image runs under the one name; without asking anybody.
    let text = name.to_string();
    for (image, platform) in multi.images().iter().zip(["amd64", "arm64", "riscv64"]) {
        let mut wanted = options(&scratch);
        wanted.platform = Some(format!("linux/{platform}").parse().unwrap());
        let asked = registry.seen().len();
        let found = store.obtain(&text, PullPolicy::Missing, &wanted, &Silent);
        assert_eq!(found.unwrap().0.id.digest(), image.id());
        assert_eq!(registry.seen().len(), asked);
        assert_eq!(store.layers().list().unwrap().len(), 4);
    }
    let other: Platform = "linux/s390x".parse().unwrap();
    let error = store.resolve_platform(&text, Some(&other)).unwrap_err();
    assert_eq!(error.report().code, "platform-not-found");
    // The others are parts, not dangling.
    let parts = |store: &Store| {
        let images = store.list().unwrap().images;
        images.iter().filter(|listed| listed.is_part).count()
    };
    assert_eq!(parts(store), 2);
    // Nothing of it is garbage.
    store.collect_garbage().unwrap();
    assert_eq!(scratch.files(), all);
    let known: BTreeSet<Digest> = store
        .references()
        .unwrap()
        .images
        .into_iter()
        .flat_map(|(_, blobs, _)| blobs)
        .collect();
    for bytes in [
        &multi.statement,
        &multi.empty,
        &multi.attestation,
        &multi.inner,
        &multi.outer,
    ] {
        assert!(known.contains(&Hasher::digest(bytes)));
    }

    // A pull of one platform leaves it whole, as long as the registry has the same.
    let mut one = options(&scratch);
    one.all_platforms = false;
    store.pull(&name, &one, &Silent).unwrap();
    assert_eq!(parts(store), 2);

    // Saved as it came, and loaded elsewhere, also under a second name.
    let second: knarr_spec::Reference = "other.io/app:2".parse().unwrap();
    store.tag(&text, &second).unwrap();
    let mut archive = Vec::new();
    let names = [text.clone(), second.to_string()];
    store
        .save(&names, SaveFormat::Oci, None, &mut archive)
        .unwrap();
    for bytes in [
        &multi.statement,
        &multi.inner,
        &multi.outer,
        &multi.arm.blobs[1],
    ] {
        let member = support::blob_path(bytes);
        assert!(members(&archive).contains(&member), "{member}");
    }
    let elsewhere = Scratch::new();
    let path = elsewhere.write("archive.tar", &archive);
    let loaded = elsewhere.store.load_whole(Source::Path(&path), &Silent);
    let loaded = loaded.unwrap();
    assert_eq!(loaded.len(), 2);
    let wanted: Platform = "linux/riscv64".parse().unwrap();
    for name in [&text, &second.to_string()] {
        let found = elsewhere.store.resolve_platform(name, Some(&wanted));
        assert_eq!(found.unwrap().0.id.digest(), multi.riscv.id());
    }
    // Docker's archive has the one image that is asked for.
    let mut archive = Vec::new();
    let names = [second.to_string()];
    let save = store.save(&names, SaveFormat::Docker, Some(&wanted), &mut archive);
    save.unwrap();
    let config = format!("{}.json", multi.riscv.id().hex());
    assert!(members(&archive).contains(&config));
    forget(&elsewhere, &[&text, &second.to_string()]);

    // It goes with its last name, and nothing stays.
    store.remove(&text, false, &|_| Vec::new()).unwrap();
    assert_eq!(parts(store), 2);
    let removed = store.remove(&second.to_string(), false, &|_| Vec::new());
    let removed = removed.unwrap();
    for image in multi.images() {
        let line = format!("Deleted: {}", image.id());
        assert!(removed.iter().any(|removed| removed.to_string() == line));
    }
    store.empty_trash().unwrap();
    assert_eq!(scratch.files(), []);
}

/// Removes the names one after the other; nothing may stay.
fn forget(scratch: &Scratch, names: &[&str]) {
    for name in names {
        scratch.store.remove(name, false, &|_| Vec::new()).unwrap();
    }
    scratch.store.empty_trash().unwrap();
    assert_eq!(scratch.files(), []);
}

#[test]
fn what_two_indexes_share_stays_for_the_second() {
    let (one, two) = (Multi::new("one"), Multi::new("two"));
    // The second has one image of the first.
    let mut outer: Value = serde_json::from_slice(&two.outer).unwrap();
    outer["manifests"][1] = one.arm.descriptor();
    outer["manifests"][1]["platform"] = json!({"os": "linux", "architecture": "arm64"});
    let outer = serde_json::to_vec(&outer).unwrap();
    let (first, second) = (one.content("1"), two.content("2"));
    let shared = outer.clone();
    let registry = Registry::start(move |seen| match seen.path.as_str() {
        "/v2/app/manifests/2" => {
            let mut content = Content::default();
            content.put_tag("app", "2", &shared);
            content.answer(seen)
        }
        _ => match first.answer(seen) {
            answer if answer.status == 404 => second.answer(seen),
            answer => answer,
        },
    });
    let scratch = Scratch::new();
    let store = &scratch.store;
    let options = options(&scratch);
    for tag in ["1", "2"] {
        let name = registry.name(&format!("app:{tag}"));
        store.pull(&name, &options, &Silent).unwrap();
    }
    let name = |tag: &str| registry.name(&format!("app:{tag}")).to_string();
    // A container has the riscv64 image of the first.
    let users = |id: knarr_image::ImageId| match id.digest() == one.riscv.id() {
        true => vec![User {
            container: "c".repeat(64),
            running: false,
        }],
        false => Vec::new(),
    };
    let before = scratch.files();
    let error = store.remove(&name("1"), false, &users).unwrap_err();
    assert_eq!(error.report().code, "image-in-use");
    assert_eq!(scratch.files(), before);
    store.remove(&name("1"), false, &|_| Vec::new()).unwrap();
    assert!(store.resolve(&one.riscv.id().to_string()).is_err());
    let arm: Platform = "linux/arm64".parse().unwrap();
    let found = store.resolve_platform(&name("2"), Some(&arm)).unwrap().0;
    assert_eq!(found.id.digest(), one.arm.id());
    drop(found);
    forget(&scratch, &[&name("2")]);
}

#[test]
fn a_damaged_part_is_found_and_fetched_again() {
    let multi = Multi::new("damaged");
    let content = multi.content("1");
    let registry = Registry::start(move |seen| content.answer(seen));
    let scratch = Scratch::new();
    let options = options(&scratch);
    let name = registry.name("app:1");
    scratch.store.pull(&name, &options, &Silent).unwrap();
    let before = scratch.files();
    let mut alone = options.clone();
    alone.all_platforms = false;
    for bytes in [
        &multi.outer,
        &multi.inner,
        &multi.statement,
        &multi.arm.manifest,
    ] {
        let path = scratch.path("data").join(support::blob_path(bytes));
        std::fs::write(&path, b"{}").unwrap();
        let checked = scratch.store.check(None, &|_| Vec::new(), &Silent).unwrap();
        assert_eq!(checked.findings.len(), 1, "{checked:?}");
        let checked = scratch.store.check(Some(&alone), &|_| Vec::new(), &Silent);
        let checked = checked.unwrap();
        assert!(
            matches!(checked.findings[0].outcome, Outcome::Repaired(_)),
            "{checked:?}"
        );
        scratch.store.forget_damaged().unwrap();
        scratch.store.empty_trash().unwrap();
        assert_eq!(scratch.files(), before);
    }
}

const ROOT: &str = "KNARR_TEST_WHOLE_ROOT";

/// Not a test of its own: what the one below runs in a process that is killed.
#[test]
fn in_a_process_of_its_own() {
    let Some(root) = std::env::var_os(ROOT) else {
        return;
    };
    let root = Path::new(&root);
    let store = Store::open(&root.join("data"), &root.join("run")).unwrap();
    match std::fs::read_to_string(root.join("remove")) {
        Ok(name) => drop(store.remove(&name, false, &|_| Vec::new()).unwrap()),
        Err(_) => {
            let path = root.join("archive.tar");
            drop(store.load_whole(Source::Path(&path), &Silent).unwrap());
        }
    }
}

#[test]
fn killed_anywhere_it_can_be_done_again_and_leaves_nothing() {
    let multi = Multi::new("killed");
    let content = multi.content("1");
    let registry = Registry::start(move |seen| content.answer(seen));
    let source = Scratch::new();
    let name = registry.name("app:1").to_string();
    let pulled = registry.name("app:1");
    source
        .store
        .pull(&pulled, &options(&source), &Silent)
        .unwrap();
    let mut archive = Vec::new();
    source
        .store
        .save(
            std::slice::from_ref(&name),
            SaveFormat::Oci,
            None,
            &mut archive,
        )
        .unwrap();
    let killed = |scratch: &Scratch, point: &str| {
        let status = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "in_a_process_of_its_own", "--test-threads=1"])
            .env(ROOT, scratch.dir.path())
            .env("KNARR_FAILPOINT", point)
            .output()
            .unwrap()
            .status;
        assert_eq!(status.signal(), Some(9), "{point}: {status}");
    };
    let is_whole = |scratch: &Scratch| {
        for platform in ["linux/amd64", "linux/arm64", "linux/riscv64"] {
            let wanted: Platform = platform.parse().unwrap();
            let found = scratch.store.resolve_platform(&name, Some(&wanted));
            assert_eq!(found.unwrap().0.platform, wanted);
        }
    };
    for point in [
        "layer.published",
        "blob.published",
        "image.published",
        "image.naming",
        "image.named",
    ] {
        let scratch = Scratch::new();
        let path = scratch.write("archive.tar", &archive);
        killed(&scratch, point);
        assert!(scratch.store.list().unwrap().damaged.is_empty());
        assert!(scratch.store.resolve(&name).is_err(), "{point}");
        let again = scratch.store.load_whole(Source::Path(&path), &Silent);
        again.unwrap();
        is_whole(&scratch);
        forget(&scratch, &[&name]);
    }
    for point in [
        "image.part-hidden",
        "image.hidden",
        "image.unnamed",
        "image.removed",
        "image.layer-removed",
    ] {
        let scratch = Scratch::new();
        let path = scratch.write("archive.tar", &archive);
        let load = || scratch.store.load_whole(Source::Path(&path), &Silent);
        load().unwrap();
        scratch.write("remove", name.as_bytes());
        killed(&scratch, point);
        assert!(scratch.store.list().unwrap().damaged.is_empty());
        // Done again it is done, and brought again it is whole. (The index goes last, and with it
        // the name.)
        let is_named = scratch.store.resolve(&name).is_ok();
        assert_eq!(is_named, point != "image.hidden", "{point}");
        let again = scratch.store.remove(&name, false, &|_| Vec::new());
        assert_eq!(again.is_ok(), is_named, "{point}");
        scratch.store.empty_trash().unwrap();
        assert_eq!(scratch.files(), [], "{point}");
        load().unwrap();
        is_whole(&scratch);
    }
}
