//! Other servers than the one that is named: mirrors, hosts.toml, rewritten names, proxies.
#![expect(clippy::unwrap_used, reason = "in tests a panic is the message")]

mod support;

use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};

use knarr_cas::Hasher;
use knarr_diag::Explain as _;
use knarr_distribution::{Credentials, Proxies, Settings};
use knarr_image::{Error, PullOptions, Pulled, Silent};
use support::registry::{Answer, Content, Registry};
use support::{Handmade, Scratch};

/// A pull of `name` with these files below `/etc`.
fn pull(scratch: &Scratch, name: &str, etc: &[(&str, &str)]) -> Result<Pulled, Error> {
    for (path, text) in etc {
        scratch.write(&format!("etc/{path}"), text.as_bytes());
    }
    let options = PullOptions {
        registry: Settings {
            etc: Some(scratch.path("etc")),
            auth_file: Some(scratch.write("auth.json", b"{}")),
            ..Settings::default()
        },
        ..PullOptions::default()
    };
    scratch
        .store
        .pull(&name.parse().unwrap(), &options, &Silent)
}

fn serving(repository: &str, image: &Handmade) -> Registry {
    let content = Content::of(repository, "1", image);
    Registry::start(move |seen| content.answer(seen))
}

#[test]
fn the_next_mirror_is_asked_when_one_fails() {
    let image = Handmade::new("mirrored");
    let broken = Registry::start(|_| Answer::error(500, "UNKNOWN"));
    let empty = Registry::start(|_| Answer::error(404, "MANIFEST_UNKNOWN"));
    let lying = {
        let content = Content::of("cache/app", "1", &Handmade::new("another"));
        Registry::start(move |seen| match seen.path.contains("/manifests/") {
            // A manifest whose digest is not what the header says.
            true => Answer {
                headers: vec![(
                    "docker-content-digest".to_owned(),
                    format!("sha256:{}", "0".repeat(64)),
                )],
                ..content.answer(seen)
            },
            false => content.answer(seen),
        })
    };
    let good = serving("cache/app", &image);
    let home = serving("team/app", &image);
    let conf = format!(
        "[[registry]]\nprefix = \"{home}/team\"\nlocation = \"{home}/team\"\n\
         [[registry.mirror]]\nlocation = \"{broken}/cache\"\n\
         [[registry.mirror]]\nlocation = \"{empty}/cache\"\n\
         [[registry.mirror]]\nlocation = \"{lying}/cache\"\n\
         [[registry.mirror]]\nlocation = \"{good}/cache\"\n",
        home = home.address,
        broken = broken.address,
        empty = empty.address,
        lying = lying.address,
        good = good.address,
    );
    let etc = [("containers/registries.conf", conf.as_str())];
    let scratch = Scratch::new();
    let name = format!("{}/team/app:1", home.address);
    let pulled = pull(&scratch, &name, &etc).unwrap();
    assert_eq!(pulled.image.id.digest(), image.id());
    assert!(home.seen().is_empty(), "the mirrors had everything");
    assert!(!broken.seen().is_empty() && !empty.seen().is_empty() && !lying.seen().is_empty());
    // Named as it was asked for.
    assert!(scratch.store.resolve(&name).is_ok());
    // What mirrors lack comes from home.
    drop(good);
    let scratch = Scratch::new();
    pull(&scratch, &name, &etc).unwrap();
    assert!(!home.seen().is_empty());
}

#[test]
fn mirrors_serve_digests_or_tags_as_they_are_said_to() {
    let image = Handmade::new("by digest");
    let mirror = serving("app", &image);
    let home = serving("app", &image);
    let digest = Hasher::digest(&image.manifest);
    for (pulls, tag, by_digest) in [
        ("pull-from-mirror = \"digest-only\"", false, true),
        ("pull-from-mirror = \"all\"", true, true),
        // Blobs are asked for by digest.
        ("pull-from-mirror = \"tag-only\"", true, false),
    ] {
        let conf = format!(
            "[[registry]]\nlocation = \"{}\"\n[[registry.mirror]]\nlocation = \"{}\"\n{pulls}\n",
            home.address, mirror.address
        );
        let etc = [("containers/registries.conf.d/10-test.conf", conf.as_str())];
        for (rest, expected) in [
            ("app:1".to_owned(), tag),
            (format!("app@{digest}"), by_digest),
        ] {
            let before = mirror.seen().len();
            pull(&Scratch::new(), &format!("{}/{rest}", home.address), &etc).unwrap();
            let new = mirror.seen().split_off(before);
            let manifests = new.iter().any(|seen| seen.path.contains("/manifests/"));
            assert_eq!(manifests, expected, "{pulls} {rest}");
        }
    }
}

#[test]
fn a_blocked_registry_is_not_asked() {
    let home = Registry::start(|_| Answer::error(404, "MANIFEST_UNKNOWN"));
    let conf = format!(
        "[[registry]]\nprefix = \"{}/bad\"\nblocked = true\n",
        home.address
    );
    let etc = [("containers/registries.conf", conf.as_str())];
    let name = format!("{}/bad/app:1", home.address);
    let report = pull(&Scratch::new(), &name, &etc).unwrap_err().report();
    assert_eq!(report.code, "registry-blocked");
    assert!(report.hint.unwrap().contains("registries.conf"));
    assert!(home.seen().is_empty());
}

#[test]
fn hosts_toml_and_dockers_mirrors_are_heeded() {
    let image = Handmade::new("hosts");
    let elsewhere = serving("library/app", &image);
    let (address, content) = (elsewhere.address, Content::of("library/app", "1", &image));
    let cache = Registry::start(move |seen| match seen.path.contains("/blobs/") {
        true => {
            let location = format!("http://{address}{}", seen.path);
            Answer::new(307, "").with("location", location)
        }
        false => content.answer(seen),
    });
    let toml = format!(
        "server = \"http://127.0.0.1:1\"\n[host.\"http://{}\"]\ncapabilities = [\"pull\", \"resolve\"]\n\
         [host.\"http://{}\".header]\nx-team = \"blue\"\n",
        cache.address, cache.address
    );
    let etc = [("containerd/certs.d/reg.test/hosts.toml", toml.as_str())];
    pull(&Scratch::new(), "reg.test/library/app:1", &etc).unwrap();
    let seen = cache.seen();
    assert!(
        seen.iter()
            .all(|seen| seen.header("x-team") == Some("blue"))
    );
    let seen = elsewhere.seen();
    assert!(!seen.is_empty() && seen.iter().all(|seen| seen.header("x-team").is_none()));
    // Docker Hub itself is out of reach here.
    let json = format!(r#"{{"registry-mirrors":["http://{}/"]}}"#, cache.address);
    let etc = [("docker/daemon.json", json.as_str())];
    let scratch = Scratch::new();
    pull(&scratch, "app:1", &etc).unwrap();
    assert!(scratch.store.resolve("app:1").is_ok());
}

#[test]
fn a_mirror_is_not_told_the_registrys_password() {
    let image = Handmade::new("secret");
    let mirror = serving("app", &image);
    let content = Content::of("app", "1", &image);
    let home = Registry::start(move |seen| match seen.authorization() {
        Some("Basic bWU6cHc=") => content.answer(seen),
        _ => Answer::error(401, "UNAUTHORIZED").with("www-authenticate", "Basic realm=\"x\""),
    });
    let challenging = Registry::start(|_| {
        Answer::error(401, "UNAUTHORIZED").with("www-authenticate", "Basic realm=\"x\"")
    });
    let scratch = Scratch::new();
    let conf = format!(
        "[[registry]]\nlocation = \"{}\"\n[[registry.mirror]]\nlocation = \"{}\"\n",
        home.address, challenging.address
    );
    scratch.write("etc/containers/registries.conf", conf.as_bytes());
    let auths = format!(
        r#"{{"auths":{{"{}":{{"auth":"bWU6cHc="}}}}}}"#,
        home.address
    );
    let given = Credentials {
        user: "me".to_owned(),
        password: "pw".to_owned(),
    };
    for (auths, credentials) in [(auths.as_str(), None), ("{}", Some(given))] {
        let options = PullOptions {
            registry: Settings {
                etc: Some(scratch.path("etc")),
                auth_file: Some(scratch.write("auth.json", auths.as_bytes())),
                credentials,
                ..Settings::default()
            },
            ..PullOptions::default()
        };
        let store = Scratch::new();
        let pulled = store.store.pull(&home.name("app:1"), &options, &Silent);
        pulled.unwrap();
    }
    for other in [&mirror, &challenging] {
        assert!(
            other
                .seen()
                .iter()
                .all(|seen| seen.authorization().is_none())
        );
    }
}

/// A proxy that knows where `registry.test` is; what it was asked for.
fn proxy(target: std::net::SocketAddr) -> (std::net::SocketAddr, Arc<Mutex<Vec<String>>>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let heads: Arc<Mutex<Vec<String>>> = Arc::default();
    let log = Arc::clone(&heads);
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let (mut stream, log) = (stream.unwrap(), Arc::clone(&log));
            std::thread::spawn(move || {
                let mut head = Vec::new();
                let mut byte = [0];
                while !head.ends_with(b"\r\n\r\n") {
                    if stream.read(&mut byte).unwrap_or(0) == 0 {
                        return;
                    }
                    head.push(byte[0]);
                }
                let text = String::from_utf8_lossy(&head).into_owned();
                log.lock().unwrap().push(text.clone());
                let mut upstream = TcpStream::connect(target).unwrap();
                if text.starts_with("CONNECT ") {
                    stream.write_all(b"HTTP/1.1 200 Go on\r\n\r\n").unwrap();
                } else {
                    let plain = text.replacen("http://registry.test:5000", "", 1);
                    upstream.write_all(plain.as_bytes()).unwrap();
                }
                let (mut from, mut to) =
                    (stream.try_clone().unwrap(), upstream.try_clone().unwrap());
                std::thread::spawn(move || std::io::copy(&mut from, &mut to).ok());
                std::io::copy(&mut upstream, &mut stream).ok();
            });
        }
    });
    (address, heads)
}

#[test]
fn a_proxy_finds_hosts_that_nobody_else_knows() {
    let image = Handmade::new("proxied");
    let content = Content::of("app", "1", &image);
    // The proxy below rewrites only the first request of a connection.
    let home = Registry::start(move |seen| {
        let path = seen.path.trim_start_matches("http://registry.test:5000");
        let path = path.to_owned();
        content.answer(&support::registry::Seen {
            path,
            ..seen.clone()
        })
    });
    let (address, heads) = proxy(home.address);
    let scratch = Scratch::new();
    let options = |without: &str| PullOptions {
        registry: Settings {
            etc: Some(scratch.path("etc")),
            auth_file: Some(scratch.write("auth.json", b"{}")),
            insecure: true,
            proxies: Some(
                Proxies::of(
                    Some(&format!("http://user:pw@{address}")),
                    Some(&format!("http://user:pw@{address}")),
                    without,
                )
                .unwrap(),
            ),
            ..Settings::default()
        },
        ..PullOptions::default()
    };
    let name = "registry.test:5000/app:1".parse().unwrap();
    let pulled = scratch.store.pull(&name, &options(""), &Silent).unwrap();
    assert_eq!(pulled.image.id.digest(), image.id());
    let heads = heads.lock().unwrap();
    // First it is tried with encryption, through a tunnel.
    assert!(
        heads[0].starts_with("CONNECT registry.test:5000 "),
        "{heads:?}"
    );
    assert!(
        heads
            .iter()
            .any(|h| h.starts_with("GET http://registry.test:5000/v2/app/"))
    );
    assert!(
        heads
            .iter()
            .all(|h| h.contains("roxy-") && h.contains("Basic dXNlcjpwdw==")
                || h.contains("proxy-authorization: Basic dXNlcjpwdw=="))
    );
    // The registry is not told what the proxy is.
    assert!(
        home.seen()
            .iter()
            .all(|seen| seen.authorization().is_none())
    );
    let refused = Scratch::new();
    let error = refused
        .store
        .pull(&name, &options("registry.test"), &Silent);
    assert_eq!(error.unwrap_err().report().code, "registry-not-found");
}
