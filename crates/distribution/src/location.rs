//! Where requests go: paths below a registry's base, redirects, `Location` headers.

use std::fmt;

use http::{Method, StatusCode, Uri};

use crate::Result;
use crate::ask::{Ask, Target};
use crate::connection::Origin;
use crate::endpoint::Endpoint;
use crate::session::unfollowed;

/// Where a request goes.
pub(crate) fn uri(home: &Origin, endpoint: &Endpoint, ask: &Ask) -> Result<Uri> {
    let base = &endpoint.base;
    let text = match &ask.target {
        Target::Path(path) => format!("{home}{base}/{}/{path}", endpoint.repository),
        Target::Root(path) => format!("{home}{base}/{path}"),
        Target::Url(uri) => return Ok(uri.clone()),
    };
    text.parse()
        .map_err(|_| unfollowed(&endpoint.registry, &text, "it is not a URL"))
}

/// Whether a redirect may be followed without changing what is asked.
pub(crate) fn is_followed(status: StatusCode, method: &Method) -> bool {
    match status.as_u16() {
        307 | 308 => true,
        301..=303 => method == Method::GET || method == Method::HEAD,
        _ => false,
    }
}

/// Where a `Location` leads, seen from `base`: an absolute URL, or a path on the same host.
pub(crate) fn follow(base: &Uri, location: &str) -> Option<Uri> {
    if let Some(path) = location.strip_prefix('/') {
        let scheme = base.scheme_str()?;
        return match path.strip_prefix('/') {
            Some(rest) => format!("{scheme}://{rest}").parse().ok(),
            None => format!("{scheme}://{}/{path}", base.authority()?)
                .parse()
                .ok(),
        };
    }
    location
        .parse()
        .ok()
        .filter(|uri: &Uri| uri.scheme().is_some() && uri.host().is_some())
}

/// Percent-encodes a query value (RFC 3986; `:` and `/` may stay).
pub(crate) fn encode_query(value: &str, out: &mut String) {
    use fmt::Write as _;
    for byte in value.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~:/,".contains(&byte) {
            out.push(char::from(byte));
        } else {
            // Writing to a String cannot fail.
            write!(out, "%{byte:02X}").unwrap_or_default();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn locations_are_followed_from_where_they_are_said() {
        let base: Uri = "https://reg.io:5000/v2/a/blobs/x".parse().unwrap();
        for (location, expected) in [
            ("/b?c=1", Some("https://reg.io:5000/b?c=1")),
            ("//cdn.io/b", Some("https://cdn.io/b")),
            ("http://cdn.io/b", Some("http://cdn.io/b")),
            ("b", None),
            ("", None),
            ("mailto:x", None),
        ] {
            let followed = follow(&base, location).map(|uri| uri.to_string());
            assert_eq!(followed.as_deref(), expected, "{location}");
        }
    }

    #[test]
    fn query_values_are_encoded() {
        let mut out = String::new();
        encode_query("repository:a/b:pull & x=\"é\"", &mut out);
        assert_eq!(out, "repository:a/b:pull%20%26%20x%3D%22%C3%A9%22");
    }
}
