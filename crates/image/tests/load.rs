//! Archives: what is in them comes in exactly; what lies does not.

mod support;

use std::path::Path;

use knarr_diag::Explain as _;
use knarr_image::{Error, ImageId, ImportOptions, Loaded, Silent, Source};
use knarr_layer::tar::{self, Kind};
use support::{Handmade, Scratch, append, gzip, layout, noise, tar_files, tar_of, zstd};

fn load(scratch: &Scratch, path: &Path) -> Result<Vec<Loaded>, Error> {
    scratch.store.load(Source::Path(path), None, &Silent)
}

#[test]
fn a_docker_archive_comes_in_exactly_however_it_is_compressed() {
    let image = Handmade::new("one");
    let archive = image.docker_archive(&["team/app:1", "busybox"]);
    for bytes in [archive.clone(), gzip(&archive), zstd(&archive)] {
        let scratch = Scratch::new();
        let path = scratch.write("archive", &bytes);
        let loaded = load(&scratch, &path).unwrap();
        assert_eq!(loaded.len(), 1);
        assert_eq!(
            loaded[0].lines(),
            ["Loaded image: team/app:1", "Loaded image: busybox:latest"]
        );
        let found = scratch.store.resolve("busybox").unwrap();
        assert_eq!(found.id.digest(), image.id());
        assert_eq!(found.layers.len(), 2);
        assert_eq!(scratch.store.config_bytes(found.id).unwrap(), image.config);
        for (id, tar) in found.layers.iter().zip(&image.tars) {
            let stored = scratch.store.layers().path(id).join("layer.tar");
            assert!(std::fs::read(stored).unwrap() == *tar);
        }
        // Once more: nothing changes.
        let before = scratch.files();
        load(&scratch, &path).unwrap();
        assert_eq!(scratch.files(), before);
    }
}

#[test]
fn a_stream_is_taken_as_well() {
    let scratch = Scratch::new();
    let archive = Handmade::new("stream").docker_archive(&["a:1"]);
    for bytes in [archive.clone(), gzip(&archive)] {
        let mut stream = &bytes[..];
        let loaded = scratch
            .store
            .load(Source::Stream(&mut stream), None, &Silent);
        assert_eq!(loaded.unwrap()[0].lines(), ["Loaded image: a:1"]);
    }
}

#[test]
fn a_layer_that_occurs_twice_may_be_a_link() {
    let scratch = Scratch::new();
    let tar = tar_of(&[("./", b""), ("x", b"1")]);
    let image = Handmade::of(vec![tar.clone(), tar.clone(), tar.clone()], "amd64", gzip);
    let mut out = Vec::new();
    append(&mut out, "./a/layer.tar", Kind::File, "", &tar);
    append(
        &mut out,
        "./b/layer.tar",
        Kind::Symlink,
        "../a/layer.tar",
        b"",
    );
    append(
        &mut out,
        "./c/layer.tar",
        Kind::HardLink,
        "a/layer.tar",
        b"",
    );
    append(&mut out, "config.json", Kind::File, "", &image.config);
    let manifest = br#"[{"Config":"config.json","RepoTags":null,"Layers":["a/layer.tar","b/layer.tar","c/layer.tar"]}]"#;
    append(&mut out, "manifest.json", Kind::File, "", manifest);
    out.extend(tar::TRAILER);
    let loaded = load(&scratch, &scratch.write("archive", &out)).unwrap();
    assert_eq!(
        loaded[0].lines(),
        [format!("Loaded image ID: {}", image.id())]
    );
    let found = scratch.store.resolve(&image.id().short()).unwrap();
    assert_eq!(found.layers.len(), 3);
    assert_eq!(scratch.store.layers().list().unwrap().len(), 1);
}

#[test]
fn several_images_share_their_layers() {
    let scratch = Scratch::new();
    let base = tar_of(&[("./", b""), ("base", &noise(1, 10_000))]);
    let images: Vec<Handmade> = ["x", "y"]
        .map(|name| {
            let top = tar_of(&[("./", b""), (name, b"top")]);
            Handmade::of(vec![base.clone(), top], "amd64", gzip)
        })
        .to_vec();
    let blobs = images.iter().flat_map(Handmade::layout_blobs).collect();
    let entries = images.iter().zip(["a/x:1", "b/y:2"]).map(|(image, name)| {
        let mut descriptor = image.descriptor();
        descriptor["annotations"] = serde_json::json!({"io.containerd.image.name": name});
        descriptor
    });
    let files = layout(&support::index_of(entries.collect()), blobs);
    let loaded = load(&scratch, &scratch.write("oci.tar", &tar_files(&files))).unwrap();
    assert_eq!(loaded.len(), 2);
    assert_eq!(scratch.store.layers().list().unwrap().len(), 3);
    assert_eq!(scratch.store.list().unwrap().images.len(), 2);
    assert_eq!(
        scratch.store.resolve("b/y:2").unwrap().id.digest(),
        images[1].id()
    );
}

#[test]
fn a_layout_folder_with_nested_indexes_gives_the_platform_that_was_asked_for() {
    let make = |architecture| {
        let tar = tar_of(&[("./", b""), (architecture, b"")]);
        Handmade::of(vec![tar], architecture, zstd)
    };
    let (amd, arm) = (make("amd64"), make("arm64"));
    let entry = |image: &Handmade, architecture: &str| {
        let mut descriptor = image.descriptor();
        descriptor["platform"] = serde_json::json!({"os": "linux", "architecture": architecture});
        descriptor
    };
    let mut attestation = entry(&amd, "unknown");
    attestation["platform"]["os"] = "unknown".into();
    let nested = support::index_of(vec![
        attestation,
        entry(&arm, "arm64"),
        entry(&amd, "amd64"),
    ]);
    let top = support::index_of(vec![support::descriptor(
        "application/vnd.oci.image.index.v1+json",
        &nested,
    )]);
    let mut blobs = [amd.layout_blobs(), arm.layout_blobs()].concat();
    blobs.push((support::blob_path(&nested), nested));
    let scratch = Scratch::new();
    for (name, bytes) in layout(&top, blobs) {
        scratch.write(&format!("layout/{name}"), &bytes);
    }
    let path = scratch.path("layout");
    let with = |platform: &str| {
        let platform = platform.parse().unwrap();
        scratch
            .store
            .load(Source::Path(&path), Some(&platform), &Silent)
    };
    assert_eq!(with("linux/arm64").unwrap()[0].id, ImageId::from(arm.id()));
    assert_eq!(with("linux/amd64").unwrap()[0].id, ImageId::from(amd.id()));
    let error = with("linux/s390x").unwrap_err();
    assert_eq!(error.code(), "platform-not-found");
    assert!(
        error.to_string().contains("linux/arm64, linux/amd64"),
        "{error}"
    );
}

#[test]
fn what_lies_is_refused_and_nothing_of_it_stays() {
    let good = Handmade::new("good");
    let lies: Vec<(&str, Vec<u8>, &str)> = vec![
        (
            "truncated",
            {
                let mut bytes = good.docker_archive(&["a:1"]);
                bytes.truncate(50_000);
                bytes
            },
            "archive-damaged",
        ),
        (
            "truncated gzip",
            {
                let mut bytes = gzip(&good.docker_archive(&["a:1"]));
                bytes.truncate(bytes.len() / 2);
                bytes
            },
            "archive-unreadable",
        ),
        (
            "wrong diff id",
            {
                let mut bad = good.clone();
                bad.tars[1] = tar_of(&[("./", b""), ("evil", b"")]);
                bad.docker_archive(&["a:1"])
            },
            "layer-digest-mismatch",
        ),
        (
            "wrong blob",
            {
                let mut blobs = good.layout_blobs();
                blobs[2].1 = gzip(b"something else");
                tar_files(&layout(&support::index_of(vec![good.descriptor()]), blobs))
            },
            "digest-mismatch",
        ),
        (
            "wrong config",
            {
                let mut blobs = good.layout_blobs();
                blobs[1].1.push(b' ');
                tar_files(&layout(&support::index_of(vec![good.descriptor()]), blobs))
            },
            "archive-damaged",
        ),
        (
            "missing blob",
            {
                let mut blobs = good.layout_blobs();
                blobs.remove(3);
                tar_files(&layout(&support::index_of(vec![good.descriptor()]), blobs))
            },
            "archive-damaged",
        ),
        (
            "too few layers",
            {
                let mut bad = good.clone();
                bad.tars.pop();
                bad.docker_archive(&["a:1"])
            },
            "manifest-invalid",
        ),
        (
            "a layer that is no tar",
            { Handmade::of(vec![noise(3, 5000)], "amd64", gzip).docker_archive(&["a:1"]) },
            "tar",
        ),
        (
            "a truncated layer",
            {
                let tar = tar_of(&[("./", b""), ("x", &noise(3, 5000))]);
                Handmade::of(vec![tar[..3000].to_vec()], "amd64", gzip).docker_archive(&["a:1"])
            },
            "tar",
        ),
        (
            "a root file system",
            tar_of(&[("bin/", b""), ("bin/sh", b"x")]),
            "not-an-archive",
        ),
        ("an empty file", Vec::new(), "not-an-archive"),
        ("noise", noise(9, 4096), "archive-damaged"),
        (
            "bad json",
            tar_of(&[("manifest.json", b"[{")]),
            "archive-damaged",
        ),
        (
            "huge json",
            tar_of(&[("manifest.json", &vec![b' '; 5 << 20])]),
            "archive-damaged",
        ),
        (
            "a loop",
            {
                let mut out = Vec::new();
                append(
                    &mut out,
                    "manifest.json",
                    Kind::Symlink,
                    "manifest.json",
                    b"",
                );
                out.extend(tar::TRAILER);
                out
            },
            "archive-damaged",
        ),
    ];
    let scratch = Scratch::new();
    let keep = scratch.write(
        "keep.tar",
        &Handmade::new("keep").docker_archive(&["keep:1"]),
    );
    load(&scratch, &keep).unwrap();
    let before = scratch.files();
    for (what, bytes, code) in lies {
        let path = scratch.write("lie", &bytes);
        let error = load(&scratch, &path).unwrap_err();
        let report = error.report();
        assert!(
            report.code.contains(code),
            "{what}: {report} ({})",
            report.code
        );
        scratch.store.empty_trash().unwrap();
        assert_eq!(scratch.files(), before, "{what}");
    }
    load(
        &scratch,
        &scratch.write(
            "more.tar",
            &Handmade::new("more").docker_archive(&["more:1"]),
        ),
    )
    .unwrap();
    scratch
        .store
        .remove("more:1", false, &|_| Vec::new())
        .unwrap();
    scratch.store.empty_trash().unwrap();
    assert_eq!(scratch.files(), before);
    assert!(scratch.store.resolve("keep:1").is_ok());
}

#[test]
fn an_error_names_the_layer_and_both_digests() {
    let scratch = Scratch::new();
    let good = Handmade::new("good");
    let mut blobs = good.layout_blobs();
    let expected = blobs[2].0.clone();
    blobs[2].1 = gzip(b"something else");
    let bytes = tar_files(&layout(&support::index_of(vec![good.descriptor()]), blobs));
    let report = load(&scratch, &scratch.write("oci.tar", &bytes))
        .unwrap_err()
        .report();
    let expected = expected.rsplit('/').next().unwrap();
    let got = knarr_cas::Hasher::digest(&gzip(b"something else")).hex();
    assert!(
        report.message.contains(expected) && report.message.contains(&got),
        "{report}"
    );
}

#[test]
fn import_makes_an_image_with_the_changes() {
    let scratch = Scratch::new();
    let tar = tar_of(&[("./", b""), ("bin/", b""), ("bin/sh", b"x")]);
    for bytes in [tar.clone(), gzip(&tar), zstd(&tar)] {
        let path = scratch.write("root.tar", &bytes);
        let options = ImportOptions {
            reference: Some("mine:1".parse().unwrap()),
            changes: vec!["CMD [\"/bin/sh\"]".to_owned(), "ENV A=b".to_owned()],
            message: Some("by hand".to_owned()),
            platform: None,
        };
        let image = scratch.store.import(Source::Path(&path), &options).unwrap();
        let found = scratch.store.resolve("mine:1").unwrap();
        assert_eq!(found, image);
        assert_eq!(
            image.config.config.cmd.as_deref(),
            Some(&["/bin/sh".to_owned()][..])
        );
        assert_eq!(image.config.history[0].comment.as_deref(), Some("by hand"));
        assert_eq!(
            image.config.rootfs.diff_ids,
            [knarr_cas::Hasher::digest(&tar)]
        );
        assert_eq!(image.size, tar.len() as u64);
    }
    let options = ImportOptions {
        changes: vec!["RUN x".to_owned()],
        ..ImportOptions::default()
    };
    let path = scratch.path("root.tar");
    let error = scratch
        .store
        .import(Source::Path(&path), &options)
        .unwrap_err();
    assert_eq!(error.code(), "change-invalid");
    let cut = scratch.write("cut.tar", &gzip(&tar)[..100]);
    assert!(
        scratch
            .store
            .import(Source::Path(&cut), &ImportOptions::default())
            .is_err()
    );
}

#[test]
fn what_was_saved_can_be_loaded_here_and_by_skopeo() {
    let scratch = Scratch::new();
    let image = Handmade::new("saved");
    load(
        &scratch,
        &scratch.write("a.tar", &image.docker_archive(&["a:1", "b:2"])),
    )
    .unwrap();
    for format in [
        knarr_image::SaveFormat::Docker,
        knarr_image::SaveFormat::Oci,
    ] {
        let mut bytes = Vec::new();
        let names = ["a:1".to_owned(), "b:2".to_owned()];
        scratch
            .store
            .save(&names, format, None, &mut bytes)
            .unwrap();
        let other = Scratch::new();
        let path = other.write("saved.tar", &bytes);
        let names: usize = load(&other, &path)
            .unwrap()
            .iter()
            .map(|l| l.names.len())
            .sum();
        assert_eq!(names, 2);
        for name in ["a:1", "b:2"] {
            let found = other.store.resolve(name).unwrap();
            assert_eq!(found.id.digest(), image.id());
        }
        if support::has("what_was_saved_can_be_loaded_here_and_by_skopeo", "skopeo") {
            let from = match format {
                knarr_image::SaveFormat::Docker => format!("docker-archive:{}:a:1", path.display()),
                knarr_image::SaveFormat::Oci => format!("oci-archive:{}:1", path.display()),
            };
            let to = format!("oci:{}:x", other.path("copied").display());
            let output = std::process::Command::new("skopeo")
                .args(["--insecure-policy", "copy", &from, &to])
                .output()
                .unwrap();
            assert!(
                output.status.success(),
                "{}",
                String::from_utf8_lossy(&output.stderr)
            );
            let loaded = load(&other, &other.path("copied")).unwrap();
            assert_eq!(loaded.len(), 1);
        }
    }
}
