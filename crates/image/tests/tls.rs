//! https registries: a good certificate is enough, a bad one never is.
#![expect(clippy::unwrap_used, reason = "in tests a panic is the message")]

mod support;

use std::sync::Arc;

use base64::Engine as _;
use knarr_diag::Explain as _;
use knarr_image::{Error, PullOptions, Pulled, Silent};
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{ConfigBuilder, RootCertStore, ServerConfig, WantsVerifier};
use support::registry::{Answer, Content, Registry};
use support::{Handmade, Scratch};

struct Authority {
    pem: String,
    issuer: Issuer<'static, KeyPair>,
}

impl Authority {
    fn new() -> Self {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().unwrap();
        let pem = pem(params.self_signed(&key).unwrap().der());
        Self {
            pem,
            issuer: Issuer::new(params, key),
        }
    }

    /// A server's configuration with a certificate for `name`, changed by `change`.
    fn server(&self, name: &str, change: impl Fn(&mut CertificateParams)) -> ServerConfig {
        let mut params = CertificateParams::new(vec![name.to_owned()]).unwrap();
        change(&mut params);
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        server(certificate.der().clone(), &key)
    }
}

fn pem(certificate: &CertificateDer<'_>) -> String {
    armored("CERTIFICATE", certificate)
}

fn armored(what: &str, bytes: &[u8]) -> String {
    let text = base64::engine::general_purpose::STANDARD.encode(bytes);
    format!("-----BEGIN {what}-----\n{text}\n-----END {what}-----\n")
}

fn server(certificate: CertificateDer<'static>, key: &KeyPair) -> ServerConfig {
    builder()
        .with_no_client_auth()
        .with_single_cert(vec![certificate], secret(key))
        .unwrap()
}

fn builder() -> ConfigBuilder<ServerConfig, WantsVerifier> {
    ServerConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .unwrap()
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::aws_lc_rs::default_provider())
}

fn secret(key: &KeyPair) -> PrivateKeyDer<'static> {
    PrivateKeyDer::Pkcs8(key.serialize_der().into())
}

fn pull(
    scratch: &Scratch,
    registry: &Registry,
    authority: &str,
    insecure: bool,
) -> Result<Pulled, Error> {
    scratch.write("certs/ca.crt", authority.as_bytes());
    let mut options = PullOptions::default();
    options.registry.cert_dir = Some(scratch.path("certs"));
    options.registry.auth_file = Some(scratch.write("auth.json", b"{}"));
    options.registry.insecure = insecure;
    scratch
        .store
        .pull(&registry.name("app:1"), &options, &Silent)
}

fn content() -> Content {
    Content::of("app", "1", &Handmade::new("tls"))
}

#[test]
fn a_certificate_of_a_given_authority_is_good() {
    let authority = Authority::new();
    let content = content();
    let config = authority.server("127.0.0.1", |_| {});
    let registry = Registry::start_tls(config, move |seen| content.answer(seen));
    pull(&Scratch::new(), &registry, &authority.pem, false).unwrap();
}

#[test]
fn bad_certificates_are_refused_and_no_request_is_sent() {
    let (authority, other) = (Authority::new(), Authority::new());
    let key = KeyPair::generate().unwrap();
    let alone = CertificateParams::new(vec!["127.0.0.1".to_owned()]).unwrap();
    let alone = alone.self_signed(&key).unwrap();
    let cases = [
        ("signed by nobody", other.server("127.0.0.1", |_| {})),
        ("signed by nobody", server(alone.der().clone(), &key)),
        ("another name", authority.server("registry.example", |_| {})),
        ("another name", authority.server("127.0.0.2", |_| {})),
        (
            "expired",
            authority.server("127.0.0.1", |params| {
                params.not_after = rcgen::date_time_ymd(2020, 1, 1);
            }),
        ),
        (
            "not valid yet",
            authority.server("127.0.0.1", |params| {
                params.not_before = rcgen::date_time_ymd(2090, 1, 1);
            }),
        ),
    ];
    for (hint, config) in cases {
        let content = content();
        let registry = Registry::start_tls(config, move |seen| content.answer(seen));
        let scratch = Scratch::new();
        let report = pull(&scratch, &registry, &authority.pem, false)
            .unwrap_err()
            .report();
        assert_eq!(report.code, "registry-tls", "{report}");
        assert!(
            report.hint.as_deref().unwrap_or_default().contains(hint),
            "{report}"
        );
        assert!(registry.seen().is_empty());
        // Only who asks for it gets it.
        pull(&scratch, &registry, &authority.pem, true).unwrap();
    }
}

#[test]
fn a_mirror_that_is_believed_whatever_it_shows_vouches_for_no_registry_on_its_host() {
    let authority = Authority::new();
    let content = content();
    let config = authority.server("127.0.0.1", |_| {});
    let registry =
        Registry::start_tls(config, move |seen| match seen.path.starts_with("/mirror") {
            true => Answer::error(404, "MANIFEST_UNKNOWN"),
            false => content.answer(seen),
        });
    let scratch = Scratch::new();
    let address = registry.address;
    let hosts = format!(
        "server = \"https://{address}\"\n[host.\"https://{address}/mirror\"]\nskip_verify = true\n"
    );
    let file = format!("etc/containerd/certs.d/{address}/hosts.toml");
    scratch.write(&file, hosts.as_bytes());
    let mut options = PullOptions::default();
    options.registry.etc = Some(scratch.path("etc"));
    options.registry.auth_file = Some(scratch.write("auth.json", b"{}"));
    let pulled = scratch
        .store
        .pull(&registry.name("app:1"), &options, &Silent);
    assert_eq!(pulled.unwrap_err().report().code, "registry-tls");
    // The mirror was asked on a connection that would have served the registry as well.
    let seen = registry.seen();
    assert!(!seen.is_empty());
    assert!(seen.iter().all(|seen| seen.path.starts_with("/mirror")));
}

#[test]
fn a_registry_may_want_a_certificate_of_its_clients() {
    let authority = Authority::new();
    let signed = |name: &str| {
        let key = KeyPair::generate().unwrap();
        let params = CertificateParams::new(vec![name.to_owned()]).unwrap();
        let certificate = params.signed_by(&key, &authority.issuer).unwrap();
        (certificate.der().clone(), key)
    };
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(
        CertificateDer::pem_slice_iter(authority.pem.as_bytes()).flatten(),
    );
    let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider());
    let (certificate, key) = signed("127.0.0.1");
    let config = builder()
        .with_client_cert_verifier(verifier.build().unwrap())
        .with_single_cert(vec![certificate], secret(&key))
        .unwrap();
    let content = content();
    let registry = Registry::start_tls(config, move |seen| content.answer(seen));
    let scratch = Scratch::new();
    pull(&scratch, &registry, &authority.pem, false).unwrap_err();
    assert!(registry.seen().is_empty());
    let (certificate, key) = signed("client");
    scratch.write("certs/me.cert", pem(&certificate).as_bytes());
    // A certificate is nothing without its key.
    let report = pull(&scratch, &registry, &authority.pem, false)
        .unwrap_err()
        .report();
    assert!(report.to_string().contains("me.key"), "{report}");
    let key = armored("PRIVATE KEY", &key.serialize_der());
    scratch.write("certs/me.key", key.as_bytes());
    pull(&scratch, &registry, &authority.pem, false).unwrap();
}

#[test]
fn https_does_not_lead_to_http() {
    let authority = Authority::new();
    let plain = Registry::start(|_| Answer::new(200, "x"));
    let address = plain.address;
    let content = content();
    let registry = Registry::start_tls(authority.server("127.0.0.1", |_| {}), move |seen| {
        if seen.path.contains("/blobs/") {
            let location = format!("http://{address}{}", seen.path);
            return Answer::new(307, "").with("location", location);
        }
        content.answer(seen)
    });
    let report = pull(&Scratch::new(), &registry, &authority.pem, false)
        .unwrap_err()
        .report();
    assert_eq!(report.code, "registry-redirect", "{report}");
    assert!(plain.seen().is_empty());
}

#[test]
fn a_bad_authority_file_is_named() {
    let registry = Registry::start(|_| Answer::new(200, "x"));
    let scratch = Scratch::new();
    for bad in [
        "",
        "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n",
    ] {
        let report = pull(&scratch, &registry, bad, false).unwrap_err().report();
        assert_eq!(report.code, "certificate-invalid");
        assert!(report.to_string().contains("ca.crt"), "{report}");
    }
}
