//! Signatures as cosign makes them: a payload that names an image and its digest ("simple signing"),
//! and the signature over the payload's exact bytes.

use aws_lc_rs::signature::{self, ParsedPublicKey, VerificationAlgorithm};
use base64::Engine as _;
use knarr_spec::Digest;
use serde::Deserialize;

/// The media type of a payload in a signatures' manifest.
pub(crate) const PAYLOAD: &str = "application/vnd.dev.cosign.simplesigning.v1+json";
/// Where the manifest has the signature, in base64.
pub(crate) const SIGNATURE: &str = "dev.cosignproject.cosign/signature";
/// What `type` says in a payload.
const KIND: &str = "cosign container image signature";

/// The keys that sigstore's tools take, all with SHA-256 (Ed25519 has its own hash).
static ALGORITHMS: [&dyn VerificationAlgorithm; 5] = [
    &signature::ECDSA_P256_SHA256_ASN1,
    &signature::ED25519,
    &signature::RSA_PKCS1_2048_8192_SHA256,
    &signature::ECDSA_P384_SHA256_ASN1,
    &signature::ECDSA_P521_SHA256_ASN1,
];

/// Reads a public key: PEM, `BEGIN PUBLIC KEY` (RFC 7468, section 13).
///
/// # Errors
/// In words.
pub(crate) fn public_key(pem: &[u8]) -> Result<ParsedPublicKey, String> {
    const BEGIN: &str = "-----BEGIN PUBLIC KEY-----";
    const END: &str = "-----END PUBLIC KEY-----";
    let text = std::str::from_utf8(pem).map_err(|_| "it is not PEM".to_owned())?;
    let inner = text
        .split_once(BEGIN)
        .and_then(|(_, rest)| rest.split_once(END))
        .ok_or("it has no `BEGIN PUBLIC KEY`")?
        .0;
    let inner: String = inner.split_whitespace().collect();
    let der = base64::engine::general_purpose::STANDARD.decode(inner);
    let der = der.map_err(|error| format!("it is not base64: {error}"))?;
    // The raw forms that are accepted besides are shorter than any SubjectPublicKeyInfo.
    ALGORITHMS
        .iter()
        .find_map(|algorithm| ParsedPublicKey::new(*algorithm, &der).ok())
        .ok_or_else(|| {
            "it is neither an ECDSA (P-256, P-384, P-521), nor an Ed25519, nor an RSA key of 2048 bits or more".to_owned()
        })
}

/// What a payload says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Payload {
    /// The name that the image was signed as.
    pub(crate) reference: String,
    /// The digest of its manifest.
    pub(crate) digest: Digest,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Signed {
    critical: Critical,
    #[serde(default)]
    #[expect(dead_code, reason = "anybody's notes; nothing is decided by them")]
    optional: Option<serde_json::Map<String, serde_json::Value>>,
}

/// What must be understood in full.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Critical {
    identity: SignedIdentity,
    image: SignedImage,
    #[serde(rename = "type")]
    kind: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct SignedIdentity {
    #[serde(rename = "docker-reference")]
    reference: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct SignedImage {
    #[serde(rename = "docker-manifest-digest")]
    digest: Digest,
}

/// Whether a signature (in base64) over a payload was made with a key.
pub(crate) fn is_made_with(key: &ParsedPublicKey, payload: &[u8], signature: &str) -> bool {
    let signature = base64::engine::general_purpose::STANDARD.decode(signature);
    signature.is_ok_and(|signature| key.verify_sig(payload, &signature).is_ok())
}

/// Reads a payload, whose signature must have been checked.
///
/// # Errors
/// In words.
pub(crate) fn read(payload: &[u8]) -> Result<Payload, String> {
    knarr_spec::manifest::check_unambiguous(payload)
        .map_err(|error| format!("what was signed cannot be read: {error}"))?;
    let signed: Signed = serde_json::from_slice(payload)
        .map_err(|error| format!("what was signed cannot be read: {error}"))?;
    if signed.critical.kind != KIND {
        return Err("what was signed is no image".to_owned());
    }
    Ok(Payload {
        reference: signed.critical.identity.reference,
        digest: signed.critical.image.digest,
    })
}
