//! Who proves who he is to whom, and with what.

mod support;

use std::sync::Mutex;

use knarr_diag::Explain as _;
use knarr_distribution::{Client, Credentials, Secret, Settings};
use knarr_image::{Error, PullOptions, Pulled, Silent};
use support::registry::{Answer, Content, Registry};
use support::{Handmade, Scratch};

fn settings(scratch: &Scratch, auths: &str) -> Settings {
    Settings {
        auth_file: Some(scratch.write("auth.json", auths.as_bytes())),
        etc: Some(scratch.path("etc")),
        ..Settings::default()
    }
}

fn pull(scratch: &Scratch, registry: &Registry, settings: Settings) -> Result<Pulled, Error> {
    let options = PullOptions {
        registry: settings,
        ..PullOptions::default()
    };
    scratch
        .store
        .pull(&registry.name("app:1"), &options, &Silent)
}

/// A registry that wants bearer tokens of a service, and takes those that `good` says.
fn guarded(
    tokens: &Registry,
    content: Content,
    good: impl Fn(&str) -> bool + Send + Sync + 'static,
) -> Registry {
    let realm = format!("http://{}/token", tokens.address);
    Registry::start(move |seen| {
        let token = seen.authorization().and_then(|a| a.strip_prefix("Bearer "));
        if !token.is_some_and(&good) {
            let challenge = format!(r#"Bearer realm="{realm}",service="reg""#);
            return Answer::error(401, "UNAUTHORIZED").with("www-authenticate", challenge);
        }
        content.answer(seen)
    })
}

#[test]
fn an_identity_token_buys_tokens_and_is_in_no_url() {
    let content = Content::of("app", "1", &Handmade::new("identity"));
    let tokens = Registry::start(|seen| {
        let good = seen.method == "POST" && seen.text().contains("refresh_token=secret%2Bid");
        match good {
            true => Answer::new(200, r#"{"access_token":"good"}"#),
            false => Answer::error(400, "invalid_grant"),
        }
    });
    let registry = guarded(&tokens, content, |token| token == "good");
    let scratch = Scratch::new();
    let auths = |token: &str| {
        format!(
            r#"{{"auths":{{"{}":{{"auth":"PHRva2VuPjo=","identitytoken":"{token}"}}}}}}"#,
            registry.address
        )
    };
    pull(&scratch, &registry, settings(&scratch, &auths("secret+id"))).unwrap();
    let seen = tokens.seen();
    assert!(seen.iter().all(|seen| !seen.path.contains("secret")));
    let form = seen[0].text();
    for part in [
        "grant_type=refresh_token",
        "service=reg",
        "scope=repository:app:pull",
    ] {
        assert!(form.contains(part), "{form}");
    }
    // One that is not good any more is told as a login that is needed.
    let scratch = Scratch::new();
    let error = pull(&scratch, &registry, settings(&scratch, &auths("old"))).unwrap_err();
    let report = error.report();
    assert_eq!(report.code, "registry-unauthorized", "{report}");
    assert!(report.hint.unwrap().contains("knarr login"));
}

#[test]
fn a_token_that_ends_meanwhile_is_bought_anew() {
    let content = Content::of("app", "1", &Handmade::new("refresh"));
    let count = Mutex::new(0);
    let tokens = Registry::start(move |_| {
        let mut count = count.lock().unwrap();
        *count += 1;
        Answer::new(200, format!(r#"{{"token":"{count}","expires_in":300}}"#))
    });
    // Each token is good for two requests.
    let uses = Mutex::new(std::collections::HashMap::<String, u32>::new());
    let registry = guarded(&tokens, content, move |token| {
        let mut uses = uses.lock().unwrap();
        let count = uses.entry(token.to_owned()).or_default();
        *count += 1;
        *count <= 2
    });
    let scratch = Scratch::new();
    pull(&scratch, &registry, settings(&scratch, "{}")).unwrap();
    assert!(tokens.seen().len() >= 2);
}

#[test]
fn a_login_is_tried_and_gives_what_is_to_be_kept() {
    let me = |password: &str| Credentials {
        user: "me".to_owned(),
        password: password.to_owned(),
    };
    let try_at = |registry: &Registry, password: &str| {
        let scratch = Scratch::new();
        let client = Client::new(settings(&scratch, "{}"));
        let session = client.session().unwrap();
        session.login(&registry.address.to_string(), &me(password))
    };
    // "me:pw"
    let basic = Registry::start(|seen| match seen.authorization() {
        Some("Basic bWU6cHc=") => Answer::new(200, "{}"),
        _ => Answer::error(401, "UNAUTHORIZED").with("www-authenticate", "Basic realm=\"x\""),
    });
    assert_eq!(try_at(&basic, "pw").unwrap(), Secret::Password(me("pw")));
    let report = try_at(&basic, "no").unwrap_err().report();
    assert_eq!(report.code, "registry-unauthorized");
    assert!(
        report.message.contains("name or password is wrong"),
        "{report}"
    );
    // With a token service, which may give an identity token.
    let tokens = Registry::start(|seen| match seen.authorization() {
        Some("Basic bWU6cHc=") => {
            assert!(seen.path.contains("offline_token=true"), "{}", seen.path);
            Answer::new(200, r#"{"token":"t","refresh_token":"keep-me"}"#)
        }
        _ => Answer::error(401, "UNAUTHORIZED"),
    });
    let registry = guarded(&tokens, Content::default(), |_| false);
    assert_eq!(
        try_at(&registry, "pw").unwrap(),
        Secret::Identity("keep-me".to_owned())
    );
    assert!(try_at(&registry, "no").is_err());
    // One that belongs to somebody else is not told the password.
    let realm = format!("http://localhost:{}/token", tokens.address.port());
    let before = tokens.seen().len();
    let foreign = Registry::start(move |_| {
        let challenge = format!(r#"Bearer realm="{realm}""#);
        Answer::error(401, "UNAUTHORIZED").with("www-authenticate", challenge)
    });
    let report = try_at(&foreign, "pw").unwrap_err().report();
    assert_eq!(report.code, "registry-foreign-realm");
    assert_eq!(tokens.seen().len(), before);
    // What is no registry takes no login.
    let page = Registry::start(|_| Answer::new(404, "<html>"));
    assert_eq!(
        try_at(&page, "pw").unwrap_err().report().code,
        "not-a-registry"
    );
}
