//! What is read of a server's headers, for those that feed parsers with foreign bytes.

use std::collections::BTreeMap;

/// The challenges of a `WWW-Authenticate` header (RFC 9110, section 11.6.1): schemes and parameters.
pub fn challenges(header: &str) -> Vec<(String, BTreeMap<String, String>)> {
    let parsed = crate::challenge::parse(header);
    let parsed = parsed.into_iter();
    parsed
        .map(|challenge| (challenge.scheme, challenge.parameters))
        .collect()
}

/// Where a `Content-Range` (RFC 9110, section 14.4) begins, in bytes.
pub fn range_start(header: &str) -> Option<u64> {
    // `bytes 100-199/200`
    let range = header.strip_prefix("bytes ")?;
    let start = range.split('-').next()?.trim();
    // Not what Rust also takes for a number.
    let is_number = start.bytes().all(|byte| byte.is_ascii_digit());
    start.parse().ok().filter(|_| is_number)
}
