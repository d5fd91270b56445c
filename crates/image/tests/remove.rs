//! Names come and go, images with their last name, layers with their last image.
#![expect(clippy::unwrap_used, reason = "in tests a panic is the message")]

mod support;

use knarr_diag::Explain as _;
use knarr_image::{Error, ImageId, Outcome, PullOptions, Removed, Silent, Source, User};
use support::{Handmade, Scratch, gzip, noise, tar_of};

fn load(scratch: &Scratch, image: &Handmade, tags: &[&str]) -> ImageId {
    let path = scratch.write("load.tar", &image.docker_archive(tags));
    scratch
        .store
        .load(Source::Path(&path), None, &Silent)
        .unwrap()[0]
        .id
}

fn nobody(_: ImageId) -> Vec<User> {
    Vec::new()
}

fn used(running: bool) -> impl Fn(ImageId) -> Vec<User> {
    move |_| {
        vec![User {
            container: "0123456789abcdef".repeat(4),
            running,
        }]
    }
}

fn lines(removed: &[Removed]) -> Vec<String> {
    removed
        .iter()
        .map(|line| line.to_string().chars().take(40).collect())
        .collect()
}

/// Two images that share their lowest layer.
fn relatives() -> [Handmade; 2] {
    let base = tar_of(&[("./", b""), ("base", &noise(1, 10_000))]);
    ["x", "y"].map(|name| {
        let top = tar_of(&[("./", b""), (name, b"top")]);
        Handmade::of(vec![base.clone(), top], "amd64", gzip)
    })
}

#[test]
fn a_name_goes_alone_while_another_stays() {
    let scratch = Scratch::new();
    let id = load(&scratch, &Handmade::new("a"), &["a:1", "b:2"]);
    let before = scratch.files().len();
    let removed = scratch.store.remove("a:1", false, &nobody).unwrap();
    assert_eq!(lines(&removed), ["Untagged: a:1"]);
    assert!(scratch.store.resolve("a:1").is_err());
    assert_eq!(scratch.store.resolve("b:2").unwrap().id, id);
    assert_eq!(scratch.files().len(), before - 1);
    // The folders that only the name had are gone too.
    assert!(!scratch.path("data/refs/docker.io/library/a").exists());
}

#[test]
fn the_last_name_takes_the_image_and_the_layers_nobody_else_has() {
    let scratch = Scratch::new();
    let [x, y] = relatives();
    load(&scratch, &y, &["y"]);
    let before = scratch.files();
    let id = load(&scratch, &x, &["x"]);
    let layers = scratch.store.resolve("x").unwrap().layers;
    let removed = scratch.store.remove("x", false, &nobody).unwrap();
    assert_eq!(
        removed,
        [
            Removed::Untagged("x".parse().unwrap()),
            Removed::Image(id),
            Removed::Layer(layers[1]),
        ]
    );
    scratch.store.empty_trash().unwrap();
    assert_eq!(scratch.files(), before);
    scratch.store.remove("y", false, &nobody).unwrap();
    scratch.store.empty_trash().unwrap();
    assert_eq!(scratch.files(), []);
}

#[test]
fn containers_keep_their_image() {
    let scratch = Scratch::new();
    let id = load(&scratch, &Handmade::new("a"), &["a:1"]);
    let hex = id.digest().hex();
    let error = |name: &str, force, running| {
        let error = scratch
            .store
            .remove(name, force, &used(running))
            .unwrap_err();
        assert_eq!(error.code(), "image-in-use");
        error.to_string()
    };
    assert_eq!(
        error("a:1", false, false),
        format!(
            "conflict: unable to remove repository reference \"a:1\" (must be forced) - container \
             0123456789ab is using its referenced image {}",
            id.short()
        )
    );
    assert!(
        error(&hex, false, false)
            .ends_with("(must be forced) - image is being used by stopped container 0123456789ab")
    );
    assert!(
        error(&hex, true, true).ends_with(
            "(cannot be forced) - image is being used by running container 0123456789ab"
        )
    );
    // With force only the name goes from under a running container.
    let removed = scratch.store.remove("a:1", true, &used(true)).unwrap();
    assert_eq!(lines(&removed), ["Untagged: a:1"]);
    assert!(scratch.store.resolve(&hex).is_ok());
}

#[test]
fn a_stopped_container_keeps_the_layers_of_a_removed_image_until_it_goes() {
    let scratch = Scratch::new();
    let image = Handmade::new("a");
    let id = load(&scratch, &image, &["a:1"]);
    let removed = scratch
        .store
        .remove(&id.short(), true, &used(false))
        .unwrap();
    assert_eq!(removed.len(), 2);
    assert!(matches!(
        scratch.store.resolve("a:1"),
        Err(Error::NotFound { .. })
    ));
    assert!(matches!(
        scratch.store.resolve(&id.to_string()),
        Err(Error::NotFound { .. })
    ));
    assert!(scratch.store.list().unwrap().images.is_empty());
    // The container still starts.
    let kept = scratch.store.get(id).unwrap();
    assert!(scratch.store.layers().load(&kept.layers[0]).is_ok());
    scratch.store.release(id, &used(false)).unwrap();
    assert!(scratch.store.get(id).is_ok());
    // Loaded again it is an image like any other.
    load(&scratch, &image, &["b:1"]);
    assert_eq!(scratch.store.resolve("b:1").unwrap().id, id);
    scratch.store.remove("b:1", true, &used(false)).unwrap();
    scratch.store.release(id, &nobody).unwrap();
    scratch.store.empty_trash().unwrap();
    assert_eq!(scratch.files(), []);
}

#[test]
fn a_removed_image_that_a_container_has_is_repaired_like_any_other() {
    let scratch = Scratch::new();
    let id = load(&scratch, &Handmade::new("a"), &["a:1"]);
    let store = &scratch.store;
    store.remove("a:1", true, &used(false)).unwrap();
    let layer = store.get(id).unwrap().layers[0];
    std::fs::remove_file(store.layers().path(&layer).join("index.erofs")).unwrap();
    let checked = store
        .check(Some(&PullOptions::default()), &used(false), &Silent)
        .unwrap();
    let [finding] = checked.findings.as_slice() else {
        panic!("{checked:?}");
    };
    assert_eq!(finding.needed_by, [id.short()]);
    assert_eq!(
        finding.outcome,
        Outcome::Repaired("indexed again from its tar".to_owned())
    );
    store.layers().verify(&layer).unwrap();
}

#[test]
fn ids_with_names_in_several_repositories_need_force() {
    let scratch = Scratch::new();
    let id = load(&scratch, &Handmade::new("a"), &["a:1", "b:2"]);
    let error = scratch
        .store
        .remove(&id.short(), false, &nobody)
        .unwrap_err();
    assert!(
        error
            .to_string()
            .ends_with("image is referenced in multiple repositories")
    );
    let removed = scratch.store.remove(&id.short(), true, &nobody).unwrap();
    assert_eq!(lines(&removed)[..2], ["Untagged: a:1", "Untagged: b:2"]);
    scratch.store.empty_trash().unwrap();
    assert_eq!(scratch.files(), []);
}

#[test]
fn a_tag_moves_and_the_old_image_stays_without_a_name() {
    let scratch = Scratch::new();
    let [x, y] = relatives();
    let old = load(&scratch, &x, &["app"]);
    let new = load(&scratch, &y, &["app"]);
    assert_eq!(scratch.store.resolve("app").unwrap().id, new);
    let listing = scratch.store.list().unwrap();
    let dangling = listing.images.iter().find(|i| i.image.id == old).unwrap();
    assert!(dangling.tags.is_empty());
    scratch
        .store
        .tag("app", &"team/app:stable".parse().unwrap())
        .unwrap();
    scratch
        .store
        .tag(&old.short(), &"app:old".parse().unwrap())
        .unwrap();
    assert_eq!(scratch.store.resolve("team/app:stable").unwrap().id, new);
    assert_eq!(scratch.store.resolve("app:old").unwrap().id, old);
    let pinned = format!("app@sha256:{}", "0".repeat(64)).parse().unwrap();
    assert_eq!(
        scratch.store.tag("app", &pinned).unwrap_err().code(),
        "tag-with-digest"
    );
}

#[test]
fn names_are_found_by_prefix_and_near_ones_are_suggested() {
    let scratch = Scratch::new();
    let mut ids = Vec::new();
    for n in 0..20 {
        let name = format!("image{n}:v1");
        ids.push(load(&scratch, &Handmade::new(&name), &[&name]));
    }
    let hex = ids[3].digest().hex();
    for name in [
        &hex[..12],
        &hex,
        &format!("sha256:{hex}"),
        &format!("sha256:{}", &hex[..9]),
    ] {
        assert_eq!(scratch.store.resolve(name).unwrap().id, ids[3], "{name}");
    }
    // 20 ids and 16 digits.
    let error = (0..16)
        .filter_map(|digit| scratch.store.resolve(&format!("{digit:x}")).err())
        .find(|error| matches!(error, Error::Ambiguous { .. }))
        .unwrap();
    assert_eq!(error.code(), "image-ambiguous");
    let report = scratch.store.resolve("imagee3:v1").unwrap_err().report();
    assert_eq!(report.message, "no such image: imagee3:v1");
    assert!(report.hint.unwrap().contains("image3:v1"));
    let report = scratch.store.resolve("UPPER").unwrap_err().report();
    assert_eq!(report.code, "image-name-invalid");
}

#[test]
fn a_damaged_image_is_named_and_the_others_go_on() {
    let scratch = Scratch::new();
    let bad = load(&scratch, &Handmade::new("bad"), &["bad:1"]);
    let good = load(&scratch, &Handmade::new("good"), &["good:1"]);
    let record = scratch.path(&format!("data/images/{}/image.json", bad.digest().hex()));
    std::fs::write(&record, b"{\"version\":1").unwrap();
    std::fs::write(
        scratch.path("data/refs/docker.io/library/good/_tags/broken"),
        b"x",
    )
    .unwrap();
    let listing = scratch.store.list().unwrap();
    assert_eq!(listing.images.len(), 1);
    assert_eq!(listing.damaged.len(), 2);
    assert_eq!(scratch.store.resolve("good:1").unwrap().id, good);
    let report = scratch.store.resolve("bad:1").unwrap_err().report();
    assert_eq!(report.code, "image-damaged");
    assert!(report.hint.unwrap().contains("rmi"));
    assert_eq!(
        scratch.store.resolve("good:broken").unwrap_err().code(),
        "image-name-damaged"
    );
    // Nothing that it may need is removed on account of others...
    let layers = scratch.store.layers().list().unwrap().len();
    load(&scratch, &Handmade::new("more"), &["more:1"]);
    scratch.store.remove("more:1", false, &nobody).unwrap();
    assert!(scratch.store.layers().list().unwrap().len() >= layers);
    // ...loading it again heals it, and removing it works as well.
    load(&scratch, &Handmade::new("bad"), &["bad:1"]);
    assert!(scratch.store.resolve("bad:1").is_ok());
    std::fs::write(&record, b"").unwrap();
    scratch.store.remove("bad:1", false, &nobody).unwrap();
    scratch.store.remove("good:broken", false, &nobody).unwrap();
    scratch.store.remove("good:1", false, &nobody).unwrap();
    scratch.store.empty_trash().unwrap();
    assert_eq!(scratch.files(), []);
    // A later format is not damage.
    load(&scratch, &Handmade::new("bad"), &["bad:1"]);
    std::fs::write(&record, b"{\"version\":9,\"new\":true}").unwrap();
    assert_eq!(
        scratch.store.resolve("bad:1").unwrap_err().code(),
        "image-version"
    );
}

#[test]
fn a_held_image_is_not_removed_meanwhile() {
    let scratch = Scratch::new();
    load(&scratch, &Handmade::new("a"), &["a:1"]);
    let (_, hold) = scratch.store.resolve_and_hold("a:1").unwrap();
    std::thread::scope(|scope| {
        let removal = scope.spawn(|| scratch.store.remove("a:1", false, &nobody));
        std::thread::sleep(std::time::Duration::from_millis(100));
        assert!(!removal.is_finished());
        assert!(scratch.store.resolve("a:1").is_ok());
        drop(hold);
        removal.join().unwrap().unwrap();
    });
    assert!(scratch.store.resolve("a:1").is_err());
}
