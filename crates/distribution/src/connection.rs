//! Where to connect, and an HTTP/1.1 connection to there.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use http::Uri;
use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;

use crate::body::Body;
use crate::proxy::Proxy;
use crate::{Error, Result, dns};

/// For one address.
const CONNECT: Duration = Duration::from_secs(10);
const HANDSHAKE: Duration = Duration::from_secs(10);
/// What hyper buffers of one connection at most, in bytes.
const BUFFER: usize = 128 << 10;

/// Scheme, host and port: who gets a request, and the border that credentials do not cross.
#[derive(Clone, PartialEq, Eq, Hash)]
pub(crate) struct Origin {
    pub(crate) https: bool,
    /// Lower case; an IPv6 address without brackets.
    pub(crate) host: String,
    pub(crate) port: u16,
}

impl Origin {
    /// Of `host[:port]`.
    pub(crate) fn of_authority(authority: &str, https: bool) -> Option<Self> {
        let scheme = if https { "https" } else { "http" };
        Self::of_uri(&format!("{scheme}://{authority}/").parse().ok()?)
    }

    /// Of an absolute URL.
    pub(crate) fn of_uri(uri: &Uri) -> Option<Self> {
        let https = match uri.scheme_str()? {
            "https" => true,
            "http" => false,
            _ => return None,
        };
        let host = uri.host()?;
        Some(Self {
            https,
            host: host
                .trim_start_matches('[')
                .trim_end_matches(']')
                .to_ascii_lowercase(),
            port: uri.port_u16().unwrap_or(if https { 443 } else { 80 }),
        })
    }

    /// Whether it is this machine.
    pub(crate) fn is_loopback(&self) -> bool {
        match self.host.parse::<IpAddr>() {
            Ok(address) => address.is_loopback(),
            Err(_) => self.host == "localhost" || self.host.ends_with(".localhost"),
        }
    }

    /// The `Host` header, and how `certs.d` names the folder.
    pub(crate) fn authority(&self) -> String {
        let host = if self.host.contains(':') {
            format!("[{}]", self.host)
        } else {
            self.host.clone()
        };
        let default = if self.https { 443 } else { 80 };
        if self.port == default {
            host
        } else {
            format!("{host}:{}", self.port)
        }
    }
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = if self.https { "https" } else { "http" };
        write!(f, "{scheme}://{}", self.authority())
    }
}

impl fmt::Debug for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// What requests are sent on.
pub(crate) type Sender = SendRequest<Body>;

/// Connects, through `proxy` where there is one; `tls` where the origin is https. Must be called
/// inside the runtime, on which the connection then lives.
pub(crate) async fn open(
    origin: &Origin,
    registry: &str,
    tls: Option<Arc<ClientConfig>>,
    proxy: Option<&Proxy>,
) -> Result<Sender> {
    let stream = match proxy {
        None => connect(&origin.host, origin.port, registry).await?,
        Some(proxy) => {
            let failed = |cause| Error::Proxy {
                proxy: proxy.to_string(),
                registry: registry.to_owned(),
                cause: Box::new(cause),
            };
            let stream = connect(&proxy.host, proxy.port, registry)
                .await
                .map_err(failed)?;
            match origin.https {
                true => tunnel(stream, origin, proxy, registry).await?,
                // A proxy answers plain requests itself.
                false => stream,
            }
        }
    };
    match tls {
        None => handshake(TokioIo::new(stream), registry).await,
        Some(config) => {
            let failed = |cause| Error::Tls {
                registry: registry.to_owned(),
                cause,
            };
            let name = ServerName::try_from(origin.host.clone())
                .map_err(|error| failed(std::io::Error::other(error)))?;
            let secured = TlsConnector::from(config).connect(name, stream);
            match timeout(HANDSHAKE, secured).await {
                Ok(Ok(stream)) => handshake(TokioIo::new(stream), registry).await,
                Ok(Err(cause)) => Err(failed(cause)),
                Err(_) => Err(Error::Timeout {
                    registry: registry.to_owned(),
                    doing: "agreeing on encryption",
                    after: HANDSHAKE,
                }),
            }
        }
    }
}

/// Has a proxy connect to `origin` (RFC 9110, section 9.3.6).
async fn tunnel(
    mut stream: TcpStream,
    origin: &Origin,
    proxy: &Proxy,
    registry: &str,
) -> Result<TcpStream> {
    /// Far more than any proxy says.
    const HEAD: usize = 16 << 10;
    let host = if origin.host.contains(':') {
        format!("[{}]:{}", origin.host, origin.port)
    } else {
        format!("{}:{}", origin.host, origin.port)
    };
    let authorization = proxy
        .authorization
        .as_ref()
        .map(|value| format!("Proxy-Authorization: {value}\r\n"))
        .unwrap_or_default();
    let request = format!("CONNECT {host} HTTP/1.1\r\nHost: {host}\r\n{authorization}\r\n");
    let refused = |what: &str| Error::ProxyRefused {
        proxy: proxy.to_string(),
        registry: registry.to_owned(),
        detail: what.chars().filter(|c| !c.is_control()).take(200).collect(),
    };
    let exchange = async {
        stream.write_all(request.as_bytes()).await?;
        let mut head = Vec::new();
        // Byte by byte: what follows the head belongs to the registry.
        while !head.ends_with(b"\r\n\r\n") && head.len() < HEAD {
            head.push(stream.read_u8().await?);
        }
        Ok::<_, std::io::Error>(head)
    };
    let head = match timeout(CONNECT, exchange).await {
        Ok(Ok(head)) => String::from_utf8_lossy(&head).into_owned(),
        Ok(Err(cause)) => return Err(refused(&cause.to_string())),
        Err(_) => return Err(refused("no answer")),
    };
    let status = head.lines().next().unwrap_or_default();
    match status.split(' ').nth(1) {
        Some(code) if code.len() == 3 && code.starts_with('2') => Ok(stream),
        _ => Err(refused(status)),
    }
}

async fn connect(host: &str, port: u16, registry: &str) -> Result<TcpStream> {
    let addresses = dns::lookup(host).await.map_err(|cause| Error::Resolve {
        registry: registry.to_owned(),
        cause,
    })?;
    let mut failure = None;
    for address in addresses {
        let address = SocketAddr::new(address, port);
        let cause = match timeout(CONNECT, TcpStream::connect(address)).await {
            Ok(Ok(stream)) => {
                // Requests are small and waited for; it cannot fail on a connected socket.
                stream.set_nodelay(true).ok();
                return Ok(stream);
            }
            Ok(Err(cause)) => cause,
            Err(_) => std::io::ErrorKind::TimedOut.into(),
        };
        // What the first address said is the likeliest to help.
        failure.get_or_insert(Error::Connect {
            registry: registry.to_owned(),
            address,
            cause,
        });
    }
    Err(failure.unwrap_or_else(|| Error::Resolve {
        registry: registry.to_owned(),
        cause: dns::Error::NoSuchHost(host.to_owned()),
    }))
}

async fn handshake<T>(io: TokioIo<T>, registry: &str) -> Result<Sender>
where
    TokioIo<T>: hyper::rt::Read + hyper::rt::Write + Unpin + Send + 'static,
{
    let (sender, connection) = http1::Builder::new()
        .max_buf_size(BUFFER)
        .handshake(io)
        .await
        .map_err(|cause| Error::Broken {
            registry: registry.to_owned(),
            doing: "connecting",
            cause,
        })?;
    // Its errors reach whoever waits for the response.
    tokio::spawn(async move { connection.await.ok() });
    Ok(sender)
}

/// Whether a TLS handshake failed because the other side does not speak TLS at all.
pub(crate) fn is_not_tls(error: &Error) -> bool {
    match error {
        Error::Tls { cause, .. } => {
            let invalid = cause
                .get_ref()
                .and_then(|inner| inner.downcast_ref::<rustls::Error>())
                .is_some_and(|error| matches!(error, rustls::Error::InvalidMessage(_)));
            invalid
                || matches!(
                    cause.kind(),
                    std::io::ErrorKind::UnexpectedEof | std::io::ErrorKind::ConnectionReset
                )
        }
        Error::Timeout { doing, .. } => *doing == "agreeing on encryption",
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn origins_are_compared_by_scheme_host_and_port() {
        let of = |text: &str| Origin::of_uri(&text.parse().unwrap()).unwrap();
        assert_eq!(of("https://Reg.io/v2/"), of("https://reg.io:443/"));
        assert_ne!(of("https://reg.io"), of("http://reg.io:443"));
        assert_ne!(of("https://reg.io"), of("https://reg.io:444"));
        assert_eq!(of("http://[::1]:5000/").host, "::1");
        assert_eq!(of("http://[::1]:5000/").authority(), "[::1]:5000");
        assert!(of("http://[::1]:5000/").is_loopback());
        assert!(of("http://127.9.9.9/").is_loopback());
        assert!(!of("http://127.evil.example/").is_loopback());
        assert!(!of("http://localhost.evil/").is_loopback());
        let hub = Origin::of_authority("Registry-1.docker.io", true).unwrap();
        assert_eq!(hub.to_string(), "https://registry-1.docker.io");
    }
}
