//! What registries tell of their contents: tags, repositories, referrers.

mod support;

use knarr_cas::Hasher;
use knarr_distribution::{Client, Settings};
use knarr_spec::Reference;
use support::Scratch;
use support::registry::{Answer, Registry, Seen};

fn client(scratch: &Scratch) -> Client<'static> {
    Client::new(Settings {
        auth_file: Some(scratch.write("auth.json", b"{}")),
        etc: Some(scratch.path("etc")),
        ..Settings::default()
    })
}

#[test]
fn lists_are_followed_page_by_page_and_not_for_ever() {
    let registry = Registry::start(|seen| match seen.path.as_str() {
        "/v2/app/tags/list?n=1000" => Answer::new(200, r#"{"tags":["a","b"]}"#)
            .with("link", "</v2/app/tags/list?last=b>; rel=\"next\""),
        // It leads to itself.
        "/v2/app/tags/list?last=b" => Answer::new(200, r#"{"tags":["c"]}"#)
            .with("link", "</v2/app/tags/list?last=b>; rel=next"),
        "/v2/none/tags/list?n=1000" => Answer::new(200, r#"{"name":"none","tags":null}"#),
        "/v2/_catalog?n=1000" => Answer::new(200, r#"{"repositories":["app"]}"#)
            .with("link", "</v2/_catalog?last=app>; rel=\"next\""),
        "/v2/_catalog?last=app" => Answer::new(200, r#"{"repositories":["team/app"]}"#),
        _ => Answer::error(404, "NAME_UNKNOWN"),
    });
    let scratch = Scratch::new();
    let client = client(&scratch);
    let session = client.session().unwrap();
    assert_eq!(
        session.tags(&registry.name("app")).unwrap(),
        ["a", "b", "c"]
    );
    assert!(session.tags(&registry.name("none")).unwrap().is_empty());
    assert!(session.tags(&registry.name("other")).is_err());
    let host = registry.address.to_string();
    assert_eq!(session.repositories(&host).unwrap(), ["app", "team/app"]);
}

#[test]
fn referrers_come_by_their_own_path_or_by_a_tag_and_only_of_the_type_that_is_wanted() {
    let subject = Hasher::digest(b"subject");
    let entry = |kind: &str| {
        let mut entry = support::descriptor(
            "application/vnd.oci.image.manifest.v1+json",
            kind.as_bytes(),
        );
        entry["artifactType"] = kind.into();
        entry
    };
    let index = support::index_of(vec![entry("a/sbom"), entry("a/signature")]);
    let knows = {
        let (path, index) = (format!("/v2/app/referrers/{subject}"), index.clone());
        // It does not choose itself.
        move |seen: &Seen| match seen.path.split('?').next() == Some(&path) {
            true => Answer::new(200, index.clone()),
            false => Answer::error(404, "MANIFEST_UNKNOWN"),
        }
    };
    let tag = format!("/v2/app/manifests/sha256-{}", subject.hex());
    let old = move |seen: &Seen| match seen.path == tag {
        true => Answer::new(200, index.clone()),
        false => Answer::error(404, "MANIFEST_UNKNOWN"),
    };
    let empty = |_: &Seen| Answer::error(404, "MANIFEST_UNKNOWN");
    let scratch = Scratch::new();
    let client = client(&scratch);
    let session = client.session().unwrap();
    for (registry, all, signatures) in [
        (Registry::start(knows), 2, 1),
        (Registry::start(old), 2, 1),
        (Registry::start(empty), 0, 0),
    ] {
        let of: Reference = registry.name("app").with_digest(subject);
        assert_eq!(session.referrers(&of, None).unwrap().manifests.len(), all);
        let found = session.referrers(&of, Some("a/signature")).unwrap();
        assert_eq!(found.manifests.len(), signatures);
        let wanted = Hasher::digest(b"a/signature");
        assert!(found.manifests.iter().all(|entry| entry.digest == wanted));
    }
}
