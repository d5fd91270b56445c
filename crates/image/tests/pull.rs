//! Pulling from registries that behave, and from those that do not.
#![expect(clippy::unwrap_used, reason = "in tests a panic is the message")]

mod support;

use std::collections::HashSet;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use knarr_cas::Hasher;
use knarr_diag::Explain as _;
use knarr_distribution::{Credentials, Settings};
use knarr_image::{Error, Event, LayerState, Progress, PullOptions, PullPolicy, Pulled, Silent};
use support::registry::{Answer, Content, Registry};
use support::{Handmade, Scratch, gzip, noise, tar_of, zstd};

fn options() -> PullOptions {
    PullOptions {
        // Not what the machine's user has.
        registry: Settings {
            auth_file: Some("/dev/null.json".into()),
            ..Settings::default()
        },
        ..PullOptions::default()
    }
}

/// Options with an empty file of credentials, or the given one.
fn options_with(scratch: &Scratch, auths: &str) -> PullOptions {
    let mut options = options();
    options.registry.auth_file = Some(scratch.write("auth.json", auths.as_bytes()));
    options
}

fn pull(scratch: &Scratch, registry: &Registry, name: &str) -> Result<Pulled, Error> {
    let options = options_with(scratch, "{}");
    scratch.store.pull(&registry.name(name), &options, &Silent)
}

#[derive(Default)]
struct Recorded(Mutex<Vec<Event>>);

impl Progress for Recorded {
    fn event(&self, event: &Event) {
        self.0.lock().unwrap().push(event.clone());
    }
}

#[test]
fn an_image_is_pulled_once_and_then_up_to_date() {
    let image = Handmade::new("pulled");
    let content = Content::of("team/app", "1", &image);
    let registry = Registry::start(move |seen| content.answer(seen));
    let scratch = Scratch::new();
    let name = registry.name("team/app:1");
    let options = options_with(&scratch, "{}");
    let progress = Recorded::default();
    let pulled = scratch.store.pull(&name, &options, &progress).unwrap();
    assert!(pulled.newer);
    assert_eq!(pulled.digest, Hasher::digest(&image.manifest));
    assert_eq!(pulled.image.id.digest(), image.id());
    for (id, tar) in pulled.image.layers.iter().zip(&image.tars) {
        let stored = scratch.store.layers().path(id).join("layer.tar");
        assert!(std::fs::read(stored).unwrap() == *tar);
    }
    let events = progress.0.into_inner().unwrap();
    assert_eq!(events[0], Event::Pulling(name.clone()));
    for blob in &image.blobs {
        let layer = Hasher::digest(blob);
        let total = blob.len() as u64;
        for state in [
            LayerState::Pending,
            LayerState::Receiving { done: total, total },
            LayerState::Received,
            LayerState::Complete,
        ] {
            assert!(events.contains(&Event::Layer { layer, state }), "{state:?}");
        }
    }
    let listed = scratch.store.describe(pulled.image).unwrap();
    assert_eq!(listed.tags, std::slice::from_ref(&name));
    assert_eq!(listed.digests, [name.with_digest(pulled.digest)]);

    let before = (scratch.files(), registry.seen().len());
    let again = scratch.store.pull(&name, &options, &Silent).unwrap();
    assert!(!again.newer);
    assert_eq!(scratch.files(), before.0);
    // One request: the manifest.
    assert_eq!(registry.seen().len(), before.1 + 1);
    // And none at all where the image is here.
    let (obtained, _hold) = scratch
        .store
        .obtain(&name.to_string(), PullPolicy::Missing, &options, &Silent)
        .unwrap();
    assert_eq!(obtained, again.image);
    assert_eq!(registry.seen().len(), before.1 + 1);
    // By digest as well.
    let pinned = name.with_digest(pulled.digest).to_string();
    assert_eq!(scratch.store.resolve(&pinned).unwrap(), again.image);
}

#[test]
fn a_dropped_connection_is_resumed_where_it_broke() {
    let tar = tar_of(&[("./", b""), ("big", &noise(5, 3_000_000))]);
    let image = Handmade::of(vec![tar], "amd64", zstd);
    let content = Content::of("app", "1", &image);
    let blob = format!("/v2/app/blobs/{}", Hasher::digest(&image.blobs[0]));
    for ranges in [true, false] {
        let (content, blob, count) = (content.clone(), blob.clone(), AtomicUsize::new(0));
        let registry = Registry::start(move |seen| {
            let mut seen = seen.clone();
            if !ranges {
                seen.headers.remove("range");
            }
            let mut answer = content.answer(&seen);
            let tries = count.load(Ordering::Relaxed);
            if seen.path == blob && tries < 3 {
                count.fetch_add(1, Ordering::Relaxed);
                answer.cut = Some(400_000 * (tries + 1));
            }
            answer
        });
        let scratch = Scratch::new();
        let pulled = pull(&scratch, &registry, "app:1").unwrap();
        assert_eq!(pulled.image.id.digest(), image.id());
        let starts: Vec<Option<String>> = registry
            .seen()
            .iter()
            .filter(|seen| seen.path.contains("/blobs/") && seen.header("range").is_some())
            .map(|seen| seen.header("range").map(str::to_owned))
            .collect();
        let expected: &[&str] = if ranges {
            &["bytes=400000-", "bytes=1200000-", "bytes=2400000-"]
        } else {
            // Every time from the start, what is known is dropped.
            &["bytes=400000-", "bytes=800000-", "bytes=1200000-"]
        };
        let starts: Vec<&str> = starts.iter().flatten().map(String::as_str).collect();
        assert_eq!(starts, expected);
    }
}

#[test]
fn wrong_bytes_are_refused_and_named() {
    let image = Handmade::new("liar");
    let good = Content::of("app", "1", &image);
    let path_of = |bytes: &[u8]| format!("/v2/app/blobs/{}", Hasher::digest(bytes));
    let layer = path_of(&image.blobs[1]);
    let config = path_of(&image.config);
    type Lie = Box<dyn Fn(&str, Answer) -> Answer + Send + Sync>;
    let lies: Vec<(&str, Lie)> = vec![
        ("digest-mismatch", {
            let layer = layer.clone();
            Box::new(move |path, mut answer| {
                if path == layer {
                    let last = answer.body.len() - 1;
                    answer.body[last] ^= 1;
                }
                answer
            })
        }),
        ("registry-too-large", {
            let layer = layer.clone();
            Box::new(move |path, mut answer| {
                if path == layer {
                    answer.body.push(0);
                }
                answer
            })
        }),
        ("digest-mismatch", {
            Box::new(move |path, mut answer| {
                if path == config {
                    answer.body[0] = b' ';
                }
                answer
            })
        }),
        // The manifest is not what Docker-Content-Digest says.
        ("digest-mismatch", {
            Box::new(move |path, mut answer| {
                if path.contains("/manifests/") {
                    answer.body.push(b' ');
                }
                answer
            })
        }),
        ("manifest-invalid", {
            Box::new(move |path, mut answer| {
                if path.contains("/manifests/") {
                    answer.headers.clear();
                    let text = String::from_utf8(answer.body).unwrap();
                    answer.body = text.replacen('{', "{\"manifests\":[],", 1).into_bytes();
                }
                answer
            })
        }),
        ("registry-too-large", {
            Box::new(move |path, mut answer| {
                if path.contains("/manifests/") {
                    answer.body = vec![b' '; 5 << 20];
                }
                answer
            })
        }),
        ("not-a-registry", {
            Box::new(move |path, mut answer| {
                if path.contains("/manifests/") {
                    answer.headers = vec![("content-type".to_owned(), "text/html".to_owned())];
                    answer.body = b"<html>log in</html>".to_vec();
                }
                answer
            })
        }),
        ("not-a-registry", {
            Box::new(move |_, mut answer| {
                answer.raw = Some(b"SSH-2.0-OpenSSH_9.2\r\n".to_vec());
                answer
            })
        }),
        ("blob-unknown", {
            let layer = layer.clone();
            Box::new(move |path, answer| {
                if path == layer {
                    Answer::error(404, "BLOB_UNKNOWN")
                } else {
                    answer
                }
            })
        }),
        // It ends early for ever.
        ("registry-truncated", {
            Box::new(move |path, mut answer| {
                if path == layer {
                    let half = answer.body.len() / 2;
                    answer
                        .body
                        .truncate(if answer.status == 206 { 0 } else { half });
                }
                answer
            })
        }),
    ];
    for (code, lie) in lies {
        let content = good.clone();
        let registry = Registry::start(move |seen| lie(&seen.path, content.answer(seen)));
        let scratch = Scratch::new();
        let error = pull(&scratch, &registry, "app:1").unwrap_err();
        let report = error.report();
        assert_eq!(report.code, code, "{report}");
        assert!(scratch.store.list().unwrap().images.is_empty());
        // Nothing but whole layers may be left, and what came of those that broke off.
        let liar = Hasher::digest(&image.blobs[1]).hex().to_string();
        for (path, _) in scratch.files() {
            let broke_off = path.starts_with(scratch.path("data/blobs/partial"))
                && (code == "registry-truncated" || !path.to_string_lossy().contains(&liar));
            let is_layer = path.starts_with(scratch.path("data/layers/sha256"));
            assert!(is_layer || broke_off, "{code}: {path:?}");
        }
    }
}

#[test]
fn a_pull_by_digest_takes_no_other_bytes() {
    let (wanted, other) = (Handmade::new("wanted"), Handmade::new("other"));
    let digest = Hasher::digest(&wanted.manifest);
    let mut content = Content::of("app", "1", &other);
    content.put_tag("app", &digest.to_string(), &other.manifest);
    // It even says the right digest.
    let registry = Registry::start(move |seen| {
        let mut answer = content.answer(seen);
        answer
            .headers
            .retain(|(name, _)| name != "docker-content-digest");
        answer
    });
    let scratch = Scratch::new();
    let error = pull(&scratch, &registry, &format!("app@{digest}")).unwrap_err();
    assert_eq!(error.report().code, "digest-mismatch");
}

#[test]
fn basic_credentials_are_sent_when_asked_for_and_only_there() {
    let image = Handmade::new("private");
    let content = Content::of("app", "1", &image);
    let elsewhere = content.clone();
    // Layers are somewhere else, as on every big registry.
    let cdn = Registry::start(move |seen| elsewhere.answer(seen));
    let cdn_address = cdn.address;
    let registry = Registry::start(move |seen| {
        if seen.authorization() != Some("Basic dXNlcjpwYXNz") {
            return Answer::error(401, "UNAUTHORIZED")
                .with("www-authenticate", "Basic realm=\"x\"");
        }
        if seen.path.contains("/blobs/") {
            let location = format!("http://{cdn_address}{}", seen.path);
            return Answer::new(307, "").with("location", location);
        }
        content.answer(seen)
    });
    let scratch = Scratch::new();
    let name = registry.name("app:1");
    // None: refused, with a hint.
    let report = pull(&scratch, &registry, "app:1").unwrap_err().report();
    assert_eq!(report.code, "registry-unauthorized");
    assert!(report.hint.unwrap().contains("knarr login"));
    // Wrong ones.
    let mut options = options_with(&scratch, "{}");
    options.registry.credentials = Some(Credentials {
        user: "user".to_owned(),
        password: "wrong".to_owned(),
    });
    let report = scratch
        .store
        .pull(&name, &options, &Silent)
        .unwrap_err()
        .report();
    assert!(report.to_string().contains("password is wrong"), "{report}");
    assert!(!report.to_string().contains("wrong\""), "{report}");
    // Good ones, from a file.
    let auths = format!(
        r#"{{"auths":{{"{}":{{"auth":"dXNlcjpwYXNz"}}}}}}"#,
        registry.address
    );
    let options = options_with(&scratch, &auths);
    scratch.store.pull(&name, &options, &Silent).unwrap();
    assert!(
        cdn.seen().iter().all(|seen| seen.authorization().is_none()),
        "{:?}",
        cdn.seen()
    );
    assert_eq!(cdn.seen().len(), 3);
}

#[test]
fn a_bearer_token_is_fetched_and_sent_to_the_registry_only() {
    let image = Handmade::new("token");
    let content = Content::of("app", "1", &image);
    let elsewhere = content.clone();
    let cdn = Registry::start(move |seen| elsewhere.answer(seen));
    let cdn_address = cdn.address;
    let tokens = Registry::start(|seen| match seen.authorization() {
        Some("Basic dXNlcjpwYXNz") => Answer::new(200, r#"{"token":"good"}"#),
        _ => Answer::new(200, r#"{"access_token":"anonymous"}"#),
    });
    let realm = format!("http://{}/token", tokens.address);
    let registry = Registry::start(move |seen| {
        if seen.authorization() != Some("Bearer good") {
            let challenge =
                format!(r#"Bearer realm="{realm}",service="reg & co",scope="repository:app:pull""#);
            return Answer::error(401, "UNAUTHORIZED").with("www-authenticate", challenge);
        }
        if seen.path.contains("/blobs/") {
            let location = format!("http://{cdn_address}{}", seen.path);
            return Answer::new(302, "").with("location", location);
        }
        content.answer(seen)
    });
    let scratch = Scratch::new();
    // An anonymous token is not enough here.
    let report = pull(&scratch, &registry, "app:1").unwrap_err().report();
    assert_eq!(report.code, "registry-unauthorized");
    assert!(
        tokens
            .seen()
            .iter()
            .all(|seen| seen.authorization().is_none())
    );
    let auths = format!(
        r#"{{"auths":{{"{}":{{"auth":"dXNlcjpwYXNz"}}}}}}"#,
        registry.address
    );
    let options = options_with(&scratch, &auths);
    scratch
        .store
        .pull(&registry.name("app:1"), &options, &Silent)
        .unwrap();
    let asked = tokens.seen().pop().unwrap();
    assert_eq!(
        asked.path,
        "/token?service=reg%20%26%20co&scope=repository:app:pull&account=user"
    );
    assert!(cdn.seen().iter().all(|seen| seen.authorization().is_none()));
    // One token served all requests.
    let with_credentials = tokens
        .seen()
        .iter()
        .filter(|s| s.authorization().is_some())
        .count();
    assert_eq!(with_credentials, 1);
}

#[test]
fn credentials_do_not_go_to_a_foreign_token_service() {
    let tokens = Registry::start(|_| Answer::new(200, r#"{"token":"stolen"}"#));
    // Another loopback address is another host.
    let realm = format!("http://localhost:{}/token", tokens.address.port());
    let registry = Registry::start(move |_| {
        let challenge = format!(r#"Bearer realm="{realm}",service="x""#);
        Answer::error(401, "UNAUTHORIZED").with("www-authenticate", challenge)
    });
    let scratch = Scratch::new();
    let auths = format!(
        r#"{{"auths":{{"{}":{{"auth":"dXNlcjpwYXNz"}}}}}}"#,
        registry.address
    );
    let options = options_with(&scratch, &auths);
    let error = scratch
        .store
        .pull(&registry.name("app:1"), &options, &Silent)
        .unwrap_err();
    assert_eq!(error.report().code, "registry-foreign-realm");
    assert!(tokens.seen().is_empty());
}

#[test]
fn overload_is_waited_out_as_long_as_the_registry_asks() {
    let image = Handmade::new("busy");
    let content = Content::of("app", "1", &image);
    let count = AtomicUsize::new(0);
    let registry = Registry::start(move |seen| match count.fetch_add(1, Ordering::Relaxed) {
        0 => Answer::error(429, "TOOMANYREQUESTS").with("retry-after", "1"),
        1 => Answer::error(503, "UNAVAILABLE"),
        2 => Answer::new(500, "oops"),
        _ => content.answer(seen),
    });
    let scratch = Scratch::new();
    let begun = Instant::now();
    let progress = Recorded::default();
    let options = options_with(&scratch, "{}");
    scratch
        .store
        .pull(&registry.name("app:1"), &options, &progress)
        .unwrap();
    assert!(begun.elapsed() > Duration::from_secs(1));
    let events = progress.0.into_inner().unwrap();
    let retries = events
        .iter()
        .filter(|e| matches!(e, Event::Retrying(_)))
        .count();
    assert_eq!(retries, 3);
    // For ever: told as it is.
    let registry =
        Registry::start(|_| Answer::error(429, "TOOMANYREQUESTS").with("retry-after", "0"));
    let report = pull(&Scratch::new(), &registry, "app:1")
        .unwrap_err()
        .report();
    assert_eq!(report.code, "registry-too-many-requests");
    let registry = Registry::start(|_| Answer::new(500, "\u{1b}[31mred"));
    let report = pull(&Scratch::new(), &registry, "app:1")
        .unwrap_err()
        .report();
    assert_eq!(report.code, "registry-failed");
    assert!(!report.to_string().contains('\u{1b}'));
}

#[test]
fn what_is_missing_is_told_apart() {
    let registry = Registry::start(|seen| {
        if seen.path.contains("/nobody/") {
            Answer::error(404, "NAME_UNKNOWN")
        } else if seen.path.contains("/forbidden/") {
            Answer::error(403, "DENIED")
        } else if seen.path == "/v2/" {
            Answer::new(200, "{}")
        } else {
            Answer::error(404, "MANIFEST_UNKNOWN")
        }
    });
    let scratch = Scratch::new();
    for (name, code) in [
        ("nobody:1", "repository-unknown"),
        ("app:nope", "manifest-unknown"),
        ("forbidden:1", "registry-denied"),
    ] {
        let report = pull(&scratch, &registry, name).unwrap_err().report();
        assert_eq!(report.code, code, "{report}");
        let address = registry.address.to_string();
        assert!(report.to_string().contains(&address), "{report}");
    }
    let web = Registry::start(|_| Answer::new(404, "not here"));
    let report = pull(&scratch, &web, "app:1").unwrap_err().report();
    assert_eq!(report.code, "not-a-registry", "{report}");
    // Nobody listens: a port that was just free.
    let name = web.name("app:1");
    drop(web);
    std::thread::sleep(Duration::from_millis(50));
    let report = scratch
        .store
        .pull(&name, &options_with(&scratch, "{}"), &Silent)
        .unwrap_err()
        .report();
    assert_eq!(report.code, "registry-unreachable", "{report}");
    assert!(report.hint.unwrap().contains("nothing listens"));
    let name = "no-such-host.invalid/app:1".parse().unwrap();
    let error = scratch
        .store
        .pull(&name, &options_with(&scratch, "{}"), &Silent);
    assert_eq!(error.unwrap_err().report().code, "registry-not-found");
}

#[test]
fn an_index_gives_the_platform_that_was_asked_for() {
    let make = |architecture| {
        let tar = tar_of(&[("./", b""), (architecture, b"")]);
        Handmade::of(vec![tar], architecture, gzip)
    };
    let (amd, arm) = (make("amd64"), make("arm64"));
    let entry = |image: &Handmade, architecture: &str| {
        let mut descriptor = image.descriptor();
        descriptor["platform"] = serde_json::json!({"os": "linux", "architecture": architecture});
        descriptor
    };
    let index = support::index_of(vec![entry(&arm, "arm64"), entry(&amd, "amd64")]);
    let mut content = Content::default();
    content.put_image("app", &amd);
    content.put_image("app", &arm);
    content.put_tag("app", "1", &index);
    content.put_tag("app", "arm-only", &arm.manifest);
    let registry = Registry::start(move |seen| content.answer(seen));
    let scratch = Scratch::new();
    let with = |platform: &str, tag: &str| {
        let mut options = options_with(&scratch, "{}");
        options.platform = Some(platform.parse().unwrap());
        scratch
            .store
            .pull(&registry.name(&format!("app:{tag}")), &options, &Silent)
    };
    let pulled = with("linux/arm64", "1").unwrap();
    assert_eq!(pulled.image.id.digest(), arm.id());
    assert_eq!(pulled.digest, Hasher::digest(&index));
    assert_eq!(with("amd64", "1").unwrap().image.id.digest(), amd.id());
    assert_eq!(
        with("s390x", "1").unwrap_err().report().code,
        "platform-not-found"
    );
    let report = with("linux/amd64", "arm-only").unwrap_err().report();
    assert!(
        report
            .message
            .contains("is for linux/arm64, not for linux/amd64"),
        "{report}"
    );
    // What is here but for another platform is fetched anew.
    let mut options = options_with(&scratch, "{}");
    options.platform = Some("arm64".parse().unwrap());
    let name = registry.name("app:1").to_string();
    let (image, _hold) = scratch
        .store
        .obtain(&name, PullPolicy::Missing, &options, &Silent)
        .unwrap();
    assert_eq!(image.id.digest(), arm.id());
    let never = scratch
        .store
        .obtain(&name, PullPolicy::Never, &with_platform("s390x"), &Silent);
    assert_eq!(never.unwrap_err().report().code, "platform-not-found");
}

#[test]
fn all_platforms_are_pulled_from_nested_indexes_too() {
    let make = |architecture| {
        let tar = tar_of(&[("./", b""), (architecture, b"")]);
        Handmade::of(vec![tar], architecture, gzip)
    };
    let (amd, arm) = (make("amd64"), make("arm64"));
    let inner = support::index_of(vec![arm.descriptor(), amd.descriptor()]);
    let mut entry = amd.descriptor();
    entry["platform"] = serde_json::json!({"os": "linux", "architecture": "amd64"});
    let mut attestation = support::descriptor("application/vnd.oci.image.manifest.v1+json", b"{}");
    attestation["platform"] = serde_json::json!({"os": "unknown", "architecture": "unknown"});
    let nested = support::descriptor("application/vnd.oci.image.index.v1+json", &inner);
    let outer = support::index_of(vec![entry, attestation, nested.clone(), nested]);
    let mut content = Content::default();
    content.put_image("app", &amd);
    content.put_image("app", &arm);
    content.put_manifest("app", &inner);
    content.put_tag("app", "1", &outer);
    let registry = Registry::start(move |seen| content.answer(seen));
    let scratch = Scratch::new();
    let mut options = options_with(&scratch, "{}");
    options.all_platforms = true;
    let name = registry.name("app:1");
    let pulled = scratch.store.pull(&name, &options, &Silent).unwrap();
    assert_eq!(pulled.image.id.digest(), amd.id());
    for image in [&amd, &arm] {
        let own = name.with_digest(Hasher::digest(&image.manifest));
        let found = scratch.store.resolve(&own.to_string()).unwrap();
        assert_eq!(found.id.digest(), image.id());
    }
    let inner = Hasher::digest(&inner).to_string();
    let asked = registry.seen();
    let asked = asked.iter().filter(|seen| seen.path.ends_with(&inner));
    assert_eq!(asked.count(), 1);
}

fn with_platform(platform: &str) -> PullOptions {
    PullOptions {
        platform: Some(platform.parse().unwrap()),
        ..options()
    }
}

#[test]
fn pulls_of_one_image_at_the_same_time_share_the_work() {
    let tars: Vec<Vec<u8>> = (0..4)
        .map(|n| tar_of(&[("./", b""), ("x", &noise(2 * n + 100, 800_000))]))
        .collect();
    let image = Handmade::of(tars, "amd64", gzip);
    let content = Content::of("app", "1", &image);
    let registry = Registry::start(move |seen| {
        // Long enough for the others to come.
        if seen.path.contains("/blobs/") {
            std::thread::sleep(Duration::from_millis(100));
        }
        content.answer(seen)
    });
    let scratch = Scratch::new();
    let options = options_with(&scratch, "{}");
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                let pulled = scratch
                    .store
                    .pull(&registry.name("app:1"), &options, &Silent);
                assert_eq!(pulled.unwrap().image.id.digest(), image.id());
            });
        }
    });
    let layers: HashSet<String> = image
        .blobs
        .iter()
        .map(|b| Hasher::digest(b).to_string())
        .collect();
    let fetched = registry
        .seen()
        .iter()
        .filter(|seen| {
            layers
                .iter()
                .any(|layer| seen.path.ends_with(layer.as_str()))
        })
        .count();
    assert_eq!(fetched, 4);
    assert_eq!(scratch.store.layers().list().unwrap().len(), 4);
    assert!(
        std::fs::read_dir(scratch.path("run/claims"))
            .unwrap()
            .next()
            .is_none()
    );
}

#[test]
fn artifacts_are_not_images() {
    let mut image = Handmade::new("chart");
    let text = String::from_utf8(image.manifest).unwrap();
    image.manifest = text
        .replace(
            "vnd.oci.image.config.v1+json",
            "vnd.cncf.helm.config.v1+json",
        )
        .into_bytes();
    let content = Content::of("chart", "1", &image);
    let registry = Registry::start(move |seen| content.answer(seen));
    let report = pull(&Scratch::new(), &registry, "chart:1")
        .unwrap_err()
        .report();
    assert_eq!(report.code, "not-an-image");
    assert!(report.message.contains("helm"), "{report}");
}
