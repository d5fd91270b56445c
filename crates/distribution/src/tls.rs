//! Who is trusted: the system's authorities, `certs.d`, `--cert-dir`.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};

use crate::{Error, Result, Settings};

/// Folders with one folder per registry (docker's "certs.d", containers-certs.d(5)).
const CERTS_D: [&str; 2] = ["/etc/docker/certs.d", "/etc/containers/certs.d"];

/// The TLS configuration for one host (`name` or `name:port`, as the user wrote it).
///
/// # Errors
/// When a given certificate cannot be used, or there is no authority at all.
pub(crate) fn config(settings: &Settings, host: &str) -> Result<Arc<ClientConfig>> {
    let provider = Arc::new(aws_lc_rs::default_provider());
    let builder = ClientConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()
        .map_err(|error| Error::Tls {
            registry: host.to_owned(),
            cause: std::io::Error::other(error),
        })?;
    if settings.insecure {
        let verifier = Arc::new(AcceptAny { provider });
        return Ok(Arc::new(
            builder
                .dangerous()
                .with_custom_certificate_verifier(verifier)
                .with_no_client_auth(),
        ));
    }
    let mut roots = RootCertStore::empty();
    let system = rustls_native_certs::load_native_certs();
    roots.add_parsable_certificates(system.certs);
    let folders = CERTS_D
        .iter()
        .map(|folder| (Path::new(folder).join(host), false))
        .chain(settings.cert_dir.clone().map(|folder| (folder, true)));
    for (folder, must_exist) in folders {
        add_folder(&mut roots, &folder, must_exist)?;
    }
    if roots.is_empty() {
        return Err(Error::NoAuthorities {
            registry: host.to_owned(),
        });
    }
    Ok(Arc::new(
        builder.with_root_certificates(roots).with_no_client_auth(),
    ))
}

/// Trusts every `*.crt` in a folder.
fn add_folder(roots: &mut RootCertStore, folder: &Path, must_exist: bool) -> Result<()> {
    let entries = match std::fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(_) if !must_exist => return Ok(()),
        Err(error) => {
            return Err(Error::Certificate {
                path: folder.to_owned(),
                reason: error.to_string(),
            });
        }
    };
    let mut paths: Vec<PathBuf> = entries
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| path.extension().is_some_and(|e| e == "crt"))
        .collect();
    paths.sort();
    for path in paths {
        let bad = |reason: String| Error::Certificate {
            path: path.clone(),
            reason,
        };
        let pem = std::fs::read(&path).map_err(|error| bad(error.to_string()))?;
        let mut count = 0;
        for certificate in CertificateDer::pem_slice_iter(&pem) {
            let certificate = certificate.map_err(|error| bad(error.to_string()))?;
            roots
                .add(certificate)
                .map_err(|error| bad(error.to_string()))?;
            count += 1;
        }
        if count == 0 {
            return Err(bad("it holds no PEM certificate".to_owned()));
        }
    }
    Ok(())
}

/// For `--tls-verify=false` only: encrypts, but anybody may be at the other end.
#[derive(Debug)]
struct AcceptAny {
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for AcceptAny {
    fn verify_server_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        rustls::crypto::verify_tls12_signature(message, certificate, signature, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, certificate, signature, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider
            .signature_verification_algorithms
            .supported_schemes()
    }
}
