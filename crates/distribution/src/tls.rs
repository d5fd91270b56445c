//! Who is trusted: the system's authorities, `certs.d`, `--cert-dir`.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};

use crate::hosts::{self, Trust};
use crate::{Error, Result, Settings};

/// The TLS configuration for one server, by the names (`name` or `name:port`) that folders of
/// `certs.d` may have for it (docker's "certs.d", containers-certs.d(5)).
///
/// # Errors
/// When a given certificate cannot be used, or there is no authority at all.
pub(crate) fn config(
    settings: &Settings,
    names: &[String],
    trust: &Trust,
    insecure: bool,
) -> Result<Arc<ClientConfig>> {
    let registry = names.first().cloned().unwrap_or_default();
    let provider = Arc::new(aws_lc_rs::default_provider());
    let failed = |error: rustls::Error| Error::Tls {
        registry: registry.clone(),
        cause: std::io::Error::other(error),
    };
    let builder = ClientConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()
        .map_err(failed)?;
    let folders: Vec<(PathBuf, bool)> = names
        .iter()
        .flat_map(|name| hosts::folders(settings, name))
        .map(|folder| (folder, false))
        .chain(settings.cert_dir.clone().map(|folder| (folder, true)))
        .collect();
    let mut clients = trust.clients.clone();
    let mut roots = RootCertStore::empty();
    for (folder, must_exist) in &folders {
        for path in files(folder, *must_exist)? {
            match path.extension().and_then(|extension| extension.to_str()) {
                Some("crt") if !insecure => add(&mut roots, &path)?,
                Some("cert") => clients.push((path.clone(), path.with_extension("key"))),
                _ => {}
            }
        }
    }
    let builder = if insecure {
        let verifier = Arc::new(AcceptAny { provider });
        builder
            .dangerous()
            .with_custom_certificate_verifier(verifier)
    } else {
        let system = rustls_native_certs::load_native_certs();
        roots.add_parsable_certificates(system.certs);
        for path in &trust.authorities {
            add(&mut roots, path)?;
        }
        if roots.is_empty() {
            return Err(Error::NoAuthorities { registry });
        }
        builder.with_root_certificates(roots)
    };
    let config = match clients.first() {
        None => builder.with_no_client_auth(),
        Some((certificate, key)) => {
            let chain = certificates(certificate)?;
            let bytes = read(key)?;
            let secret = PrivateKeyDer::from_pem_slice(&bytes)
                .map_err(|error| bad(key, format!("it holds no private key ({error})")))?;
            builder
                .with_client_auth_cert(chain, secret)
                .map_err(|error| bad(certificate, error.to_string()))?
        }
    };
    Ok(Arc::new(config))
}

fn bad(path: &Path, reason: String) -> Error {
    Error::Certificate {
        path: path.to_owned(),
        reason,
    }
}

fn read(path: &Path) -> Result<Vec<u8>> {
    std::fs::read(path).map_err(|error| bad(path, error.to_string()))
}

/// The files of a folder, sorted.
fn files(folder: &Path, must_exist: bool) -> Result<Vec<PathBuf>> {
    let entries = match std::fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(_) if !must_exist => return Ok(Vec::new()),
        Err(error) => return Err(bad(folder, error.to_string())),
    };
    let mut paths: Vec<PathBuf> = entries
        .filter_map(|entry| Some(entry.ok()?.path()))
        .collect();
    paths.sort();
    Ok(paths)
}

/// The PEM certificates of a file; at least one.
fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>> {
    let pem = read(path)?;
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&pem).collect();
    let found = found.map_err(|error| bad(path, error.to_string()))?;
    match found.is_empty() {
        true => Err(bad(path, "it holds no PEM certificate".to_owned())),
        false => Ok(found),
    }
}

/// Trusts the authorities of a file.
fn add(roots: &mut RootCertStore, path: &Path) -> Result<()> {
    for certificate in certificates(path)? {
        roots
            .add(certificate)
            .map_err(|error| bad(path, error.to_string()))?;
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
