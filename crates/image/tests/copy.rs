//! `image copy`, with skopeo and umoci to say whether what comes out is right.

#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "in tests a panic is the message"
)]

mod support;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::RwLock;

use knarr_image::{CopyOptions, Location, Silent};
use knarr_spec::Digest;
use serde_json::{Value, json};
use support::{Handmade, Scratch, layout, tar_of};

/// Written while nothing may start: between fork(2) and execve(2) a child holds this process's locks
/// too, also a store's lease, and who fails then leaves what it brought to the next one.
static STARTS: RwLock<()> = RwLock::new(());

fn skopeo(args: &[&str]) -> Vec<u8> {
    let _starts = STARTS.read().unwrap();
    let output = Command::new("skopeo").args(args).output();
    let output = output.expect("skopeo is missing: install Debian's package skopeo");
    assert!(
        output.status.success(),
        "skopeo {args:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    output.stdout
}

fn copy(scratch: &Scratch, from: &str, to: &str, all: bool) -> knarr_image::Result<Digest> {
    let place = |text: &str| text.parse::<Location>().unwrap();
    let options = CopyOptions {
        all,
        ..CopyOptions::default()
    };
    scratch
        .store
        .copy(&place(from), &place(to), &options, &Silent)
}

/// Every file below a folder.
fn files(folder: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut found = BTreeMap::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_str().unwrap().to_owned();
        if path.is_dir() {
            for (below, bytes) in files(&path) {
                found.insert(format!("{name}/{below}"), bytes);
            }
        } else {
            found.insert(name, std::fs::read(path).unwrap());
        }
    }
    found
}

fn write(scratch: &Scratch, name: &str, files: Vec<(String, Vec<u8>)>) -> PathBuf {
    for (file, bytes) in files {
        scratch.write(&format!("{name}/{file}"), &bytes);
    }
    scratch.path(name)
}

fn named(mut descriptor: Value, name: &str) -> Value {
    descriptor["annotations"] = json!({"org.opencontainers.image.ref.name": name});
    descriptor
}

/// A layout with one image, `app:1`.
fn write_layout(scratch: &Scratch, image: &Handmade, name: &str) -> PathBuf {
    let index = support::index_of(vec![named(image.descriptor(), "app:1")]);
    write(scratch, name, layout(&index, image.layout_blobs()))
}

/// A layout with an index of three platforms: `multi`.
fn write_index(scratch: &Scratch, name: &str) -> PathBuf {
    let mut blobs = BTreeMap::new();
    let mut entry = |architecture: &str| {
        let tar = tar_of(&[("./", b""), ("arch", architecture.as_bytes())]);
        // The lower layer is the same in all.
        let base = Handmade::new("base").tars[0].clone();
        let image = Handmade::of(vec![base, tar], architecture, support::gzip);
        blobs.extend(image.layout_blobs());
        let mut entry = image.descriptor();
        entry["platform"] = json!({"architecture": architecture, "os": "linux"});
        entry
    };
    let manifests = vec![entry("arm64"), entry("amd64"), entry("riscv64")];
    let list = support::index_of(manifests);
    blobs.insert(support::blob_path(&list), list.clone());
    let top = support::descriptor("application/vnd.oci.image.index.v1+json", &list);
    let index = support::index_of(vec![named(top, "multi")]);
    write(scratch, name, layout(&index, blobs.into_iter().collect()))
}

#[test]
fn every_place_gives_and_takes_what_skopeo_does() {
    let scratch = Scratch::new();
    let layout = write_layout(&scratch, &Handmade::new("app"), "source");
    let source = format!("oci:{}:app:1", layout.display());
    let manifest = skopeo(&["inspect", "--raw", &source]);
    let digest = knarr_cas::Hasher::digest(&manifest);
    let at = |kind: &str, name: &str| format!("{kind}:{}", scratch.path(name).display());

    // Where the bytes can stay, they do.
    for (kind, name, tail) in [
        ("oci", "copied", ":x"),
        ("oci-archive", "copied.tar", ":x"),
        ("dir", "folder", ""),
    ] {
        let to = at(kind, name) + tail;
        assert_eq!(copy(&scratch, &source, &to, false).unwrap(), digest, "{to}");
        assert_eq!(skopeo(&["inspect", "--raw", &to]), manifest, "{to}");
        // And back, through what skopeo writes in that form.
        let theirs = at(kind, &format!("theirs-{name}")) + tail;
        skopeo(&["copy", "-q", &source, &theirs]);
        let back = at("oci", &format!("back-{name}")) + ":y";
        assert_eq!(
            copy(&scratch, &theirs, &back, false).unwrap(),
            digest,
            "{theirs}"
        );
        if kind == "dir" {
            assert_eq!(
                files(&scratch.path("folder")),
                files(&scratch.path("theirs-folder"))
            );
        }
    }

    // A docker-archive holds tars: the image is the same, its manifest is made.
    let docker = at("docker-archive", "docker.tar") + ":app:1";
    copy(&scratch, &source, &docker, false).unwrap();
    let config = |place: &str| -> Value {
        serde_json::from_slice(&skopeo(&["inspect", "--config", place])).unwrap()
    };
    assert_eq!(config(&docker), config(&source));
    let unpacked = at("oci", "unpacked") + ":z";
    copy(&scratch, &docker, &unpacked, false).unwrap();
    assert_eq!(config(&unpacked), config(&source));

    // Into the store and out of it.
    assert_eq!(
        copy(&scratch, &docker, "stored:1", false).unwrap(),
        copy(&scratch, "stored:1", &(at("dir", "out")), false).unwrap()
    );
    copy(&scratch, &source, "kept:1", false).unwrap();
    let one = scratch.store.resolve("stored:1").unwrap();
    let two = scratch.store.resolve("kept:1").unwrap();
    assert_eq!((one.id, &one.layers), (two.id, &two.layers));
    let out = at("oci-archive", "out.tar") + ":1";
    copy(&scratch, "kept:1", &out, false).unwrap();
    assert_eq!(config(&out), config(&source));

    // umoci checks a layout more strictly than anybody.
    let bundle = scratch.path("bundle");
    let starts = STARTS.read().unwrap();
    let unpacked = Command::new("umoci")
        .args(["raw", "unpack", "--image"])
        .arg(format!("{}:x", scratch.path("copied").display()))
        .arg(&bundle)
        .output()
        .expect("umoci is missing: install Debian's package umoci");
    drop(starts);
    assert!(
        unpacked.status.success(),
        "{}",
        String::from_utf8_lossy(&unpacked.stderr)
    );
}

#[test]
fn a_whole_index_goes_with_all_its_images_and_once_only() {
    let scratch = Scratch::new();
    let layout = write_index(&scratch, "index");
    let source = format!("oci:{}:multi", layout.display());
    let raw = skopeo(&["inspect", "--raw", &source]);
    let at = |kind: &str, name: &str| format!("{kind}:{}", scratch.path(name).display());
    for (kind, name) in [
        ("oci", "all"),
        ("oci-archive", "all.tar"),
        ("dir", "all-dir"),
    ] {
        let to = at(kind, name);
        let digest = copy(&scratch, &source, &to, true).unwrap();
        assert_eq!(digest, knarr_cas::Hasher::digest(&raw));
        assert_eq!(skopeo(&["inspect", "--raw", &to]), raw);
        // Every image of it is whole: skopeo copies all.
        let theirs = at("dir", &format!("theirs-{name}"));
        skopeo(&["copy", "-q", "--all", &to, &theirs]);
        if kind == "dir" {
            assert_eq!(
                files(&scratch.path("all-dir")),
                files(&scratch.path(&format!("theirs-{name}")))
            );
        }
    }
    // Without --all: one image, this machine's.
    let one = at("oci", "one");
    copy(&scratch, &source, &one, false).unwrap();
    let config: Value = serde_json::from_slice(&skopeo(&["inspect", "--config", &one])).unwrap();
    assert_eq!(
        config["architecture"],
        knarr_spec::Platform::host().architecture
    );
    let to = at("docker-archive", "no.tar");
    let error = copy(&scratch, &source, &to, true).unwrap_err().to_string();
    assert!(error.contains("a whole index"), "{error}");
    assert!(!scratch.path("no.tar").exists());

    // Into the store, where its layers are tars, so that the manifests name those; and out again,
    // as often as one likes.
    assert_eq!(
        copy(&scratch, &source, "whole:1", true).unwrap(),
        knarr_cas::Hasher::digest(&raw)
    );
    let out = at("oci", "out") + ":1";
    let digest = copy(&scratch, "whole:1", &out, true).unwrap();
    assert_eq!(
        knarr_cas::Hasher::digest(&skopeo(&["inspect", "--raw", &out])),
        digest
    );
    skopeo(&["copy", "-q", "--all", &out, &at("dir", "theirs-out")]);
    let archive = at("oci-archive", "again.tar");
    assert_eq!(copy(&scratch, "whole:1", &archive, true).unwrap(), digest);
    assert_eq!(copy(&scratch, &archive, "again:1", true).unwrap(), digest);
    assert_eq!(copy(&scratch, "again:1", &out, true).unwrap(), digest);
    // One image of it, and another.
    for (platform, architecture) in [("linux/arm64", "arm64"), ("linux/riscv64", "riscv64")] {
        let place = |text: &str| text.parse::<Location>().unwrap();
        let options = CopyOptions {
            platform: Some(platform.parse().unwrap()),
            ..CopyOptions::default()
        };
        let to = at("oci", architecture);
        let (from, to_place) = (place("whole:1"), place(&to));
        let copied = scratch.store.copy(&from, &to_place, &options, &Silent);
        copied.unwrap();
        let config: Value = serde_json::from_slice(&skopeo(&["inspect", "--config", &to])).unwrap();
        assert_eq!(config["architecture"], architecture);
    }
    // Both names go, and with them every image.
    for name in ["whole:1", "again:1"] {
        scratch.store.remove(name, false, &|_| Vec::new()).unwrap();
    }
    scratch.store.empty_trash().unwrap();
    assert_eq!(scratch.files(), []);
}

#[test]
fn bytes_that_are_not_what_names_them_go_nowhere() {
    let scratch = Scratch::new();
    let at = |kind: &str, name: &str| format!("{kind}:{}", scratch.path(name).display());
    for (what, spoil) in [
        (
            "wrong bytes",
            (|bytes: &mut Vec<u8>| bytes[20] ^= 1) as fn(&mut Vec<u8>),
        ),
        ("more bytes", |bytes| bytes.push(0)),
        ("fewer bytes", |bytes| bytes.truncate(bytes.len() - 1)),
    ] {
        let name = what.replace(' ', "-");
        let made = Handmade::new("app");
        let layout = write_layout(&scratch, &made, &name);
        let blob = layout.join(support::blob_path(&made.blobs[1]));
        let mut bytes = std::fs::read(&blob).unwrap();
        spoil(&mut bytes);
        std::fs::write(&blob, bytes).unwrap();
        let source = format!("oci:{}", layout.display());
        let before = scratch.files();
        for (kind, to) in [
            ("oci", "spoilt"),
            ("oci-archive", "spoilt.tar"),
            ("docker-archive", "spoilt-docker.tar"),
            ("dir", "spoilt-dir"),
        ] {
            let error = copy(&scratch, &source, &at(kind, to), false).unwrap_err();
            let digest = blob.file_name().unwrap().to_str().unwrap();
            assert!(error.to_string().contains(digest), "{what} {kind}: {error}");
        }
        let still = STARTS.write().unwrap();
        copy(&scratch, &source, "spoilt:1", false).unwrap_err();
        drop(still);
        scratch.store.empty_trash().unwrap();
        assert_eq!(scratch.files(), before, "{what}");
        assert!(
            !scratch.path("spoilt.tar").exists() && !scratch.path("spoilt-docker.tar").exists()
        );
        assert!(
            !scratch.path("spoilt/index.json").exists()
                && !scratch.path("spoilt-dir/manifest.json").exists()
        );
        // Nothing temporary stays beside them.
        for entry in std::fs::read_dir(scratch.dir.path()).unwrap() {
            let name = entry.unwrap().file_name();
            assert!(!name.to_str().unwrap().starts_with('.'), "{name:?}");
        }
    }
}

#[test]
fn an_image_that_is_not_there_is_told_from_those_that_are() {
    let scratch = Scratch::new();
    let layout = write_layout(&scratch, &Handmade::new("app"), "named");
    let source = format!("oci:{}:other", layout.display());
    let error = copy(&scratch, &source, "x:1", false).unwrap_err();
    let report = knarr_diag::Explain::report(&error).to_string();
    assert!(
        report.contains("no such image: other in") && report.contains("app:1"),
        "{report}"
    );
    let json = json!({"schemaVersion": 2, "manifests": []}).to_string();
    let empty = scratch.path("empty");
    std::fs::create_dir_all(&empty).unwrap();
    std::fs::write(empty.join("index.json"), json).unwrap();
    let error = copy(&scratch, &format!("oci:{}", empty.display()), "x:1", false).unwrap_err();
    assert!(error.to_string().contains("has 0 images"), "{error}");
}
