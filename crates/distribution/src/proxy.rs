//! HTTP proxies, as the environment names them (`HTTPS_PROXY`, `HTTP_PROXY`, `NO_PROXY`, in
//! either case; the rules are those of Go's `net/http`).

use std::env;
use std::fmt;
use std::net::IpAddr;

use base64::Engine as _;
use http::Uri;

use crate::connection::Origin;
use crate::{Error, Result};

/// Which proxy is asked for which host.
#[derive(Debug, Clone, Default)]
pub struct Proxies {
    http: Option<Proxy>,
    https: Option<Proxy>,
    without: Vec<Without>,
}

/// A proxy; what is secret about it is never printed.
#[derive(Clone)]
pub(crate) struct Proxy {
    pub(crate) host: String,
    pub(crate) port: u16,
    /// The value of `Proxy-Authorization`.
    pub(crate) authorization: Option<String>,
}

impl fmt::Debug for Proxy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

impl fmt::Display for Proxy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.host, self.port)
    }
}

/// A word of `NO_PROXY`.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Without {
    Everything,
    Net(IpAddr, u8),
    /// This host (where a port is given: at this port), and those below it.
    Domain {
        name: String,
        below_only: bool,
        port: Option<u16>,
    },
}

impl Proxies {
    /// As the environment says.
    ///
    /// # Errors
    /// When a proxy is not `http://host:port`.
    pub fn from_environment() -> Result<Self> {
        let of = |name: &str| {
            let lower = env::var(name.to_ascii_lowercase());
            let value = lower.or_else(|_| env::var(name)).unwrap_or_default();
            Some(value).filter(|value| !value.is_empty())
        };
        Self::of(
            of("HTTP_PROXY").as_deref(),
            of("HTTPS_PROXY").as_deref(),
            &of("NO_PROXY").unwrap_or_default(),
        )
    }

    /// For http, for https, and the list of hosts that none is asked for.
    ///
    /// # Errors
    /// When a proxy is not `http://host:port`.
    pub fn of(http: Option<&str>, https: Option<&str>, without: &str) -> Result<Self> {
        Ok(Self {
            http: http.map(Proxy::parse).transpose()?,
            https: https.map(Proxy::parse).transpose()?,
            without: without
                .split([',', ' '])
                .filter_map(Without::parse)
                .collect(),
        })
    }

    /// The proxy to ask for an origin. This machine is always reached directly.
    pub(crate) fn for_origin(&self, origin: &Origin) -> Option<&Proxy> {
        let proxy = if origin.https {
            &self.https
        } else {
            &self.http
        }
        .as_ref()?;
        let direct = origin.is_loopback() || self.without.iter().any(|w| w.covers(origin));
        (!direct).then_some(proxy)
    }
}

impl Proxy {
    fn parse(text: &str) -> Result<Self> {
        let invalid = |reason: &str| Error::ProxyInvalid {
            // What is before the @ is secret.
            proxy: text.rsplit('@').next().unwrap_or_default().to_owned(),
            reason: reason.to_owned(),
        };
        let (scheme, rest) = text.split_once("://").unwrap_or(("http", text));
        if scheme != "http" {
            return Err(invalid("only http:// proxies are served"));
        }
        let (secret, rest) = match rest.rsplit_once('@') {
            Some((secret, rest)) => (Some(secret), rest),
            None => (None, rest),
        };
        let uri: Uri = format!("http://{rest}")
            .parse()
            .map_err(|_| invalid("it is not a URL"))?;
        let origin = Origin::of_uri(&uri).ok_or_else(|| invalid("it has no host"))?;
        let authorization = secret.map(|secret| {
            let plain = decode(secret);
            let code = base64::engine::general_purpose::STANDARD.encode(plain);
            format!("Basic {code}")
        });
        Ok(Self {
            host: origin.host,
            port: origin.port,
            authorization,
        })
    }
}

/// Undoes percent-encoding.
fn decode(text: &str) -> Vec<u8> {
    let bytes = text.as_bytes();
    let mut out = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while let Some(byte) = bytes.get(at) {
        let pair = text.get(at + 1..at + 3);
        match pair.and_then(|pair| u8::from_str_radix(pair, 16).ok()) {
            Some(decoded) if *byte == b'%' => {
                out.push(decoded);
                at += 3;
            }
            _ => {
                out.push(*byte);
                at += 1;
            }
        }
    }
    out
}

impl Without {
    fn parse(word: &str) -> Option<Self> {
        let word = word.trim().to_ascii_lowercase();
        if word.is_empty() {
            return None;
        }
        if word == "*" {
            return Some(Self::Everything);
        }
        if let Some((address, bits)) = word.split_once('/') {
            return Some(Self::Net(address.parse().ok()?, bits.parse().ok()?));
        }
        if let Ok(address) = word.trim_matches(['[', ']']).parse() {
            return Some(Self::Net(address, 128));
        }
        let (name, port) = match word.rsplit_once(':') {
            Some((name, port)) => (name, Some(port.parse().ok()?)),
            None => (word.as_str(), None),
        };
        let bare = name.trim_start_matches('*');
        Some(Self::Domain {
            below_only: bare.starts_with('.'),
            name: bare.trim_start_matches('.').to_owned(),
            port,
        })
    }

    fn covers(&self, origin: &Origin) -> bool {
        match self {
            Self::Everything => true,
            Self::Net(net, bits) => match (net, origin.host.parse::<IpAddr>()) {
                (IpAddr::V4(net), Ok(IpAddr::V4(host))) => {
                    let shift = 32u32.saturating_sub((*bits).into());
                    (u64::from(u32::from(*net)) >> shift) == (u64::from(u32::from(host)) >> shift)
                }
                (IpAddr::V6(net), Ok(IpAddr::V6(host))) => {
                    let shift = 128u32.saturating_sub((*bits).into());
                    u128::from(*net).checked_shr(shift) == u128::from(host).checked_shr(shift)
                }
                _ => false,
            },
            Self::Domain {
                name,
                below_only,
                port,
            } => {
                let below = origin
                    .host
                    .strip_suffix(name.as_str())
                    .is_some_and(|front| front.ends_with('.'));
                port.is_none_or(|port| port == origin.port)
                    && (below || (!below_only && origin.host == *name))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn proxies_are_chosen_as_go_does() {
        let proxies = Proxies::of(
            Some("http://plain:3128"),
            Some("user:p%40ss@secure:3129"),
            "direct.io, .below.io,10.0.0.0/8,ported.io:8443,*.star.io,fd00::/8",
        )
        .unwrap();
        for (url, expected) in [
            ("http://reg.io/", Some("plain:3128")),
            ("https://reg.io/", Some("secure:3129")),
            ("https://direct.io/", None),
            ("https://a.direct.io/", None),
            ("https://notdirect.io/", Some("secure:3129")),
            ("https://below.io/", Some("secure:3129")),
            ("https://a.below.io/", None),
            ("https://a.star.io/", None),
            ("https://10.1.2.3/", None),
            ("https://11.1.2.3/", Some("secure:3129")),
            ("https://[fd00::1]/", None),
            ("https://[fe80::1]/", Some("secure:3129")),
            ("https://ported.io:8443/", None),
            ("https://ported.io/", Some("secure:3129")),
            ("https://localhost/", None),
            ("http://127.0.0.1:5000/", None),
        ] {
            let origin = Origin::of_uri(&url.parse().unwrap()).unwrap();
            let chosen = proxies.for_origin(&origin).map(ToString::to_string);
            assert_eq!(chosen.as_deref(), expected, "{url}");
        }
        let origin = Origin::of_uri(&"https://reg.io".parse().unwrap()).unwrap();
        let proxy = proxies.for_origin(&origin).unwrap();
        // user:p@ss
        assert_eq!(proxy.authorization.as_deref(), Some("Basic dXNlcjpwQHNz"));
        assert!(!format!("{proxies:?}").contains("dXNl"));
        let none = Proxies::of(Some("http://p:1"), None, "*").unwrap();
        let origin = Origin::of_uri(&"http://reg.io".parse().unwrap()).unwrap();
        assert!(none.for_origin(&origin).is_none());
        let error = Proxies::of(Some("socks5://u:pw@p:1"), None, "").unwrap_err();
        assert!(!error.to_string().contains("pw") && error.to_string().contains("p:1"));
    }
}
