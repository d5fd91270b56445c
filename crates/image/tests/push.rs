//! Pushes to registries that are picky, forgetful or hostile.
#![expect(clippy::unwrap_used, reason = "in tests a panic is the message")]

mod support;

use std::collections::BTreeMap;
use std::io::Read as _;
use std::sync::{Arc, Mutex};

use knarr_cas::Hasher;
use knarr_diag::Explain as _;
use knarr_distribution::Settings;
use knarr_image::{Error, PushOptions, Pushed, Silent, Source};
use support::registry::{Answer, Registry, Seen};
use support::{Handmade, Scratch, noise, tar_of};

/// What a registry that can be written to has.
#[derive(Default)]
struct Shelf {
    uploads: BTreeMap<usize, Vec<u8>>,
    blobs: BTreeMap<String, Vec<u8>>,
    manifests: BTreeMap<String, Vec<u8>>,
    /// Times that an upload may still break off, after half of what came with a request.
    breaks: usize,
    /// The least size of a chunk; streams are refused then.
    least: usize,
}

impl Shelf {
    fn answer(&mut self, seen: &Seen) -> Answer {
        let last = seen.path.rsplit('/').next().unwrap_or_default();
        let (last, query) = last.split_once('?').unwrap_or((last, ""));
        match seen.method.as_str() {
            "POST" => {
                if query.starts_with("mount=") {
                    let digest = query
                        .trim_start_matches("mount=")
                        .split('&')
                        .next()
                        .unwrap();
                    if self.blobs.contains_key(digest) {
                        return Answer::new(201, "");
                    }
                }
                let id = self.uploads.len();
                self.uploads.insert(id, Vec::new());
                let answer = Answer::new(202, "").with("location", format!("/upload/{id}?state=x"));
                match self.least {
                    0 => answer,
                    least => answer.with("oci-chunk-min-length", least.to_string()),
                }
            }
            "PATCH" | "PUT" if seen.path.starts_with("/upload/") => {
                let upload = self.uploads.get_mut(&last.parse().unwrap()).unwrap();
                if self.least > 0 && seen.method == "PATCH" {
                    let range = seen.header("content-range").unwrap().to_owned();
                    let start: usize = range.split('-').next().unwrap().parse().unwrap();
                    assert_eq!(start, upload.len(), "chunks come in order");
                    assert!(seen.body.len() >= self.least);
                }
                if self.breaks > 0 && !seen.body.is_empty() {
                    self.breaks -= 1;
                    upload.extend(&seen.body[..seen.body.len() / 2]);
                    return Answer {
                        raw: Some(Vec::new()),
                        ..Answer::default()
                    };
                }
                upload.extend(&seen.body);
                if seen.method == "PATCH" {
                    return Answer::new(202, "").with("location", seen.path.clone());
                }
                let digest = query.split("digest=").nth(1).unwrap().to_owned();
                if digest != Hasher::digest(upload).to_string() {
                    return Answer::error(400, "DIGEST_INVALID");
                }
                let bytes = std::mem::take(upload);
                self.blobs.insert(digest, bytes);
                Answer::new(201, "")
            }
            "GET" if seen.path.starts_with("/upload/") => {
                let size = self.uploads.get(&last.parse().unwrap()).unwrap().len();
                Answer::new(204, "").with("range", format!("0-{}", size.max(1) - 1))
            }
            "DELETE" => Answer::new(204, ""),
            "PUT" => {
                let digest = Hasher::digest(&seen.body).to_string();
                self.manifests.insert(last.to_owned(), seen.body.clone());
                Answer::new(201, "").with("docker-content-digest", digest)
            }
            _ => match self.blobs.get(last) {
                Some(bytes) => Answer::new(200, "").with("content-length", bytes.len().to_string()),
                None => Answer::error(404, "BLOB_UNKNOWN"),
            },
        }
    }
}

fn shelf(shelf: Shelf) -> (Registry, Arc<Mutex<Shelf>>) {
    let shelf = Arc::new(Mutex::new(shelf));
    let shared = Arc::clone(&shelf);
    let registry = Registry::start(move |seen| shared.lock().unwrap().answer(seen));
    (registry, shelf)
}

/// A store with an image that is called as it will be pushed.
fn loaded(image: &Handmade, registry: &Registry) -> Scratch {
    let scratch = Scratch::new();
    let name = registry.name("app:1").to_string();
    let path = scratch.write("image.tar", &image.docker_archive(&[&name]));
    let loaded = scratch.store.load(Source::Path(&path), None, &Silent);
    loaded.unwrap();
    scratch
}

fn push(scratch: &Scratch, registry: &Registry) -> Result<Pushed, Error> {
    let options = PushOptions {
        registry: Settings {
            auth_file: Some(scratch.write("auth.json", b"{}")),
            etc: Some(scratch.path("etc")),
            ..Settings::default()
        },
        ..PushOptions::default()
    };
    scratch
        .store
        .push(&registry.name("app:1"), &options, &Silent)
}

fn sample(seed: u64) -> Handmade {
    let tars = vec![
        tar_of(&[("./", b""), ("data", &noise(seed, 11 << 20))]),
        tar_of(&[("./", b""), ("name", b"small")]),
    ];
    Handmade::of(tars, "amd64", support::gzip)
}

/// Every layer of the manifest at the registry inflates to the image's tar.
fn is_whole(shelf: &Shelf, image: &Handmade) {
    let manifest: serde_json::Value = serde_json::from_slice(&shelf.manifests["1"]).unwrap();
    assert_eq!(manifest["config"]["digest"], image.id().to_string());
    let layers = manifest["layers"].as_array().unwrap();
    assert_eq!(layers.len(), image.tars.len());
    for (layer, tar) in layers.iter().zip(&image.tars) {
        let blob = &shelf.blobs[layer["digest"].as_str().unwrap()];
        assert_eq!(layer["size"], blob.len());
        let mut plain = Vec::new();
        flate2::read::MultiGzDecoder::new(&blob[..])
            .read_to_end(&mut plain)
            .unwrap();
        assert!(&plain == tar);
    }
}

#[test]
fn an_upload_is_taken_up_where_it_broke() {
    let image = sample(11);
    let (registry, shelf) = shelf(Shelf {
        breaks: 3,
        ..Shelf::default()
    });
    let scratch = loaded(&image, &registry);
    push(&scratch, &registry).unwrap();
    let shelf = shelf.lock().unwrap();
    assert_eq!(shelf.breaks, 0);
    is_whole(&shelf, &image);
}

#[test]
fn chunks_are_as_large_as_the_registry_wants_them() {
    let image = sample(12);
    let (registry, shelf) = shelf(Shelf {
        least: 3 << 20,
        ..Shelf::default()
    });
    let scratch = loaded(&image, &registry);
    push(&scratch, &registry).unwrap();
    is_whole(&shelf.lock().unwrap(), &image);
}

#[test]
fn only_what_is_missing_is_sent_and_the_name_comes_last() {
    let image = sample(13);
    let (registry, shelf) = shelf(Shelf::default());
    let scratch = loaded(&image, &registry);
    let first = push(&scratch, &registry).unwrap();
    let requests = registry.seen();
    let writes = |seen: &[Seen]| -> Vec<String> {
        let written = seen
            .iter()
            .filter(|s| matches!(s.method.as_str(), "PATCH" | "PUT"));
        written.map(|s| s.path.clone()).collect()
    };
    assert_eq!(writes(&requests).last().unwrap(), "/v2/app/manifests/1");
    let second = push(&scratch, &registry).unwrap();
    assert_eq!(first, second);
    let again = registry.seen().split_off(requests.len());
    assert_eq!(writes(&again), ["/v2/app/manifests/1"]);
    is_whole(&shelf.lock().unwrap(), &image);
}

#[test]
fn a_damaged_layer_goes_nowhere() {
    let image = sample(14);
    let (registry, shelf) = shelf(Shelf::default());
    let scratch = loaded(&image, &registry);
    let id = scratch
        .store
        .resolve(&registry.name("app:1").to_string())
        .unwrap()
        .layers[0];
    let tar = scratch.store.layers().path(&id).join("layer.tar");
    let mut bytes = std::fs::read(&tar).unwrap();
    bytes[5 << 20] ^= 1;
    std::fs::write(&tar, bytes).unwrap();
    let report = push(&scratch, &registry).unwrap_err().report();
    assert_eq!(report.class, knarr_diag::Class::Corrupt, "{report}");
    assert!(shelf.lock().unwrap().manifests.is_empty());
}

#[test]
fn an_upload_elsewhere_takes_no_password_along() {
    let image = sample(15);
    let (elsewhere, stored) = shelf(Shelf::default());
    let address = elsewhere.address;
    let registry = Registry::start(move |seen| {
        if seen.authorization() != Some("Basic bWU6cHc=") {
            let answer = Answer::error(401, "UNAUTHORIZED");
            return answer.with("www-authenticate", "Basic realm=\"x\"");
        }
        match seen.method.as_str() {
            // The blobs are kept by another server.
            "POST" => {
                let mut shelf = stored.lock().unwrap();
                let id = shelf.uploads.len();
                shelf.uploads.insert(id, Vec::new());
                Answer::new(202, "").with("location", format!("http://{address}/upload/{id}?a=b"))
            }
            _ => stored.lock().unwrap().answer(seen),
        }
    });
    let scratch = loaded(&image, &registry);
    let auths = format!(
        r#"{{"auths":{{"{}":{{"auth":"bWU6cHc="}}}}}}"#,
        registry.address
    );
    let options = PushOptions {
        registry: Settings {
            auth_file: Some(scratch.write("auth.json", auths.as_bytes())),
            etc: Some(scratch.path("etc")),
            ..Settings::default()
        },
        ..PushOptions::default()
    };
    scratch
        .store
        .push(&registry.name("app:1"), &options, &Silent)
        .unwrap();
    let seen = elsewhere.seen();
    assert!(!seen.is_empty() && seen.iter().all(|seen| seen.authorization().is_none()));
}

#[test]
fn what_cannot_be_pushed_is_told() {
    let (registry, _) = shelf(Shelf::default());
    let scratch = Scratch::new();
    let report = push(&scratch, &registry).unwrap_err().report();
    assert_eq!(report.code, "image-not-found");
    let pinned = registry.name("app:1").with_digest(Hasher::digest(b"x"));
    let options = PushOptions::default();
    let error = scratch.store.push(&pinned, &options, &Silent).unwrap_err();
    assert_eq!(error.report().code, "push-by-digest");
    assert!(registry.seen().is_empty());
}
