//! Why a registry could not give what was asked.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use knarr_diag::{Class, Explain};
use knarr_spec::Digest;
use knarr_spec::manifest::DocumentError;

use crate::dns;

/// The crate's result.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// A request to a registry that failed. `registry` is the host as the user wrote it.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The host's name has no address.
    #[error("cannot find registry {registry}")]
    Resolve {
        /// The registry, or the host it sent us to.
        registry: String,
        /// What the name servers said.
        #[source]
        cause: dns::Error,
    },
    /// Nothing answers there.
    #[error("cannot connect to registry {registry} at {address}")]
    Connect {
        /// The registry.
        registry: String,
        /// The last address that was tried.
        address: SocketAddr,
        /// What the kernel said.
        #[source]
        cause: std::io::Error,
    },
    /// The other side's certificate or protocol is wrong.
    #[error("cannot make a secure connection to registry {registry}")]
    Tls {
        /// The registry.
        registry: String,
        /// What rustls said.
        #[source]
        cause: std::io::Error,
    },
    /// A certificate file cannot be used.
    #[error("cannot use the certificate {}: {reason}", path.display())]
    Certificate {
        /// The file.
        path: PathBuf,
        /// Why not.
        reason: String,
    },
    /// The system has no certificate authorities.
    #[error("no certificate authorities to check registry {registry} with")]
    NoAuthorities {
        /// The registry.
        registry: String,
    },
    /// The connection broke.
    #[error("the connection to registry {registry} broke while {doing}")]
    Broken {
        /// The registry.
        registry: String,
        /// What was going on.
        doing: &'static str,
        /// What hyper said.
        #[source]
        cause: hyper::Error,
    },
    /// Silence.
    #[error("registry {registry} did not answer within {} s while {doing}", after.as_secs())]
    Timeout {
        /// The registry.
        registry: String,
        /// What was going on.
        doing: &'static str,
        /// How long it was waited.
        after: Duration,
    },
    /// Credentials are needed or wrong.
    #[error("registry {registry} refuses access to repository {repository}: {}", unauthorized(*sent_credentials, detail))]
    Unauthorized {
        /// The registry.
        registry: String,
        /// The repository.
        repository: String,
        /// Whether a name and password were sent.
        sent_credentials: bool,
        /// The registry's own words.
        detail: String,
        /// Why configured credentials could not be used.
        unusable: Option<String>,
    },
    /// 403.
    #[error("registry {registry} denies access to repository {repository}: {detail}")]
    Denied {
        /// The registry.
        registry: String,
        /// The repository.
        repository: String,
        /// The registry's own words.
        detail: String,
    },
    /// The registry wants credentials to be sent to somebody else.
    #[error("registry {registry} asks to log in at {realm}, which does not belong to it")]
    ForeignRealm {
        /// The registry.
        registry: String,
        /// The host of the token service.
        realm: String,
    },
    /// No such repository.
    #[error("registry {registry} has no repository {repository}")]
    NameUnknown {
        /// The registry.
        registry: String,
        /// The repository.
        repository: String,
    },
    /// The repository has no such tag or digest.
    #[error("repository {repository} at registry {registry} has no {what}")]
    ManifestUnknown {
        /// The registry.
        registry: String,
        /// The repository.
        repository: String,
        /// `tag x` or `manifest sha256:…`.
        what: String,
    },
    /// A layer or configuration is missing.
    #[error("repository {repository} at registry {registry} lacks blob {digest} of the image")]
    BlobUnknown {
        /// The registry.
        registry: String,
        /// The repository.
        repository: String,
        /// The blob.
        digest: Digest,
    },
    /// 429.
    #[error("registry {registry} refuses more requests for now (429): {detail}")]
    TooManyRequests {
        /// The registry.
        registry: String,
        /// The registry's own words.
        detail: String,
        /// When to come back.
        retry_after: Option<Duration>,
    },
    /// 5xx.
    #[error("registry {registry} has an internal problem ({status}): {detail}")]
    Server {
        /// The registry.
        registry: String,
        /// The HTTP status.
        status: u16,
        /// The registry's own words.
        detail: String,
        /// When to come back.
        retry_after: Option<Duration>,
    },
    /// Another status that makes no sense here.
    #[error("registry {registry} answered with status {status}: {detail}")]
    Unexpected {
        /// The registry.
        registry: String,
        /// The HTTP status.
        status: u16,
        /// The registry's own words.
        detail: String,
    },
    /// Something else listens there.
    #[error("{registry} is not a container registry: it answered with {what}")]
    NotARegistry {
        /// The host.
        registry: String,
        /// What came.
        what: String,
    },
    /// A redirect that is not followed.
    #[error("registry {registry} redirects to {location}, which is not followed: {reason}")]
    Redirect {
        /// The registry.
        registry: String,
        /// Where to.
        location: String,
        /// Why not.
        reason: &'static str,
    },
    /// Bytes that are not what the digest says.
    #[error("registry {registry} delivered wrong bytes for {what}: expected {expected}, got {got}")]
    Mismatch {
        /// The registry.
        registry: String,
        /// What was asked for.
        what: String,
        /// The digest that was asked for.
        expected: Digest,
        /// The digest of what came.
        got: Digest,
    },
    /// More bytes than announced or allowed.
    #[error("registry {registry} delivered more than {limit} bytes for {what}")]
    TooLarge {
        /// The registry.
        registry: String,
        /// What was asked for.
        what: String,
        /// The most that is taken.
        limit: u64,
    },
    /// The stream ends early however often it is asked.
    #[error("registry {registry} delivers only {got} of the {expected} bytes of {what}")]
    Truncated {
        /// The registry.
        registry: String,
        /// What was asked for.
        what: String,
        /// Bytes that came.
        got: u64,
        /// Bytes announced.
        expected: u64,
    },
    /// The manifest cannot be used.
    #[error("the manifest of {what} from registry {registry} cannot be used")]
    Manifest {
        /// The registry.
        registry: String,
        /// What was asked for.
        what: String,
        /// Why not.
        #[source]
        cause: DocumentError,
    },
    /// A list or another document of the registry's cannot be read.
    #[error("registry {registry} gives {what} in a form that cannot be read")]
    Answer {
        /// The registry.
        registry: String,
        /// What was asked for.
        what: String,
        /// Where it is wrong.
        #[source]
        cause: serde_json::Error,
    },
    /// 405: it has no such function, or nobody may use it.
    #[error("registry {registry} does not allow {what}: {detail}")]
    NotAllowed {
        /// The registry.
        registry: String,
        /// What was tried.
        what: String,
        /// The registry's own words.
        detail: String,
    },
    /// What is pushed cannot be read.
    #[error("cannot read what is to be pushed")]
    Source(#[source] std::io::Error),
    /// What is pushed has other bytes than it should.
    #[error("what is to be pushed is damaged: expected {expected}, got {got}")]
    SourceMismatch {
        /// What it should be.
        expected: Digest,
        /// What it is.
        got: Digest,
    },
    /// `registries.conf` forbids the name.
    #[error("{name} is blocked by {}", path.display())]
    Blocked {
        /// The name.
        name: String,
        /// The file.
        path: PathBuf,
    },
    /// Not a reference.
    #[error(transparent)]
    Name(knarr_spec::ReferenceError),
    /// A configuration file is wrong.
    #[error("the configuration file {} cannot be used: {reason}", path.display())]
    Configuration {
        /// The file.
        path: PathBuf,
        /// Why not.
        reason: String,
    },
    /// A proxy's address makes no sense.
    #[error("cannot use the proxy {proxy}: {reason}")]
    ProxyInvalid {
        /// Without its password.
        proxy: String,
        /// Why not.
        reason: String,
    },
    /// A proxy cannot be reached.
    #[error("cannot reach the proxy {proxy} for registry {registry}")]
    Proxy {
        /// Its host and port.
        proxy: String,
        /// The registry.
        registry: String,
        /// Why.
        #[source]
        cause: Box<Error>,
    },
    /// A proxy does not connect.
    #[error("the proxy {proxy} does not connect to registry {registry}: {detail}")]
    ProxyRefused {
        /// Its host and port.
        proxy: String,
        /// The registry.
        registry: String,
        /// Its own words.
        detail: String,
    },
    /// A credential helper failed.
    #[error("the credential helper {helper} failed to {action}: {reason}")]
    Helper {
        /// The program.
        helper: String,
        /// What it was to do.
        action: &'static str,
        /// Its own words.
        reason: String,
    },
    /// A file with credentials cannot be written.
    #[error("cannot change the credentials file")]
    File(#[from] knarr_fs::Error),
    /// A file with credentials cannot be read.
    #[error("cannot read the credentials file {}", path.display())]
    AuthFileRead {
        /// The file.
        path: PathBuf,
        /// What the kernel said.
        #[source]
        cause: std::io::Error,
    },
    /// A file with credentials is malformed.
    #[error("the credentials file {} is not valid", path.display())]
    AuthFile {
        /// The file.
        path: PathBuf,
        /// Where it is wrong.
        #[source]
        cause: serde_json::Error,
    },
    /// The kernel gives no event loop.
    #[error("cannot start an event loop")]
    Runtime(#[source] std::io::Error),
}

fn unauthorized(sent_credentials: bool, detail: &str) -> String {
    if sent_credentials {
        format!("the user name or password is wrong ({detail})")
    } else {
        "it does not exist or needs a login".to_owned()
    }
}

impl Error {
    /// Whether trying again may help.
    pub(crate) fn is_transient(&self) -> bool {
        match self {
            Self::Broken { .. }
            | Self::Timeout { .. }
            | Self::TooManyRequests { .. }
            | Self::Truncated { .. } => true,
            Self::Server { status, .. } => matches!(status, 500 | 502 | 503 | 504),
            Self::Connect { cause, .. } => matches!(
                cause.kind(),
                std::io::ErrorKind::ConnectionReset
                    | std::io::ErrorKind::ConnectionAborted
                    | std::io::ErrorKind::TimedOut
                    | std::io::ErrorKind::Interrupted
            ),
            Self::Resolve { cause, .. } => cause.is_transient(),
            Self::Proxy { cause, .. } => cause.is_transient(),
            _ => false,
        }
    }

    /// Whether the registry answered that it does not have what was asked for.
    pub(crate) fn is_absence(&self) -> bool {
        matches!(
            self,
            Self::NameUnknown { .. } | Self::ManifestUnknown { .. } | Self::BlobUnknown { .. }
        )
    }

    /// Whether the fault is on this machine, so that no other server would do better.
    pub(crate) fn is_local(&self) -> bool {
        matches!(
            self,
            Self::Runtime(_)
                | Self::Configuration { .. }
                | Self::Certificate { .. }
                | Self::AuthFile { .. }
                | Self::AuthFileRead { .. }
                | Self::Helper { .. }
                | Self::ProxyInvalid { .. }
                | Self::Source(_)
                | Self::SourceMismatch { .. }
                | Self::File(_)
        )
    }

    /// How long the registry wants to be left alone.
    pub(crate) fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::TooManyRequests { retry_after, .. } | Self::Server { retry_after, .. } => {
                *retry_after
            }
            _ => None,
        }
    }
}

impl Explain for Error {
    fn class(&self) -> Class {
        match self {
            Self::Resolve { .. }
            | Self::Connect { .. }
            | Self::Broken { .. }
            | Self::Server { .. }
            | Self::NotARegistry { .. }
            | Self::Unexpected { .. }
            | Self::Answer { .. }
            | Self::Proxy { .. }
            | Self::ProxyRefused { .. }
            | Self::Truncated { .. } => Class::Unavailable,
            Self::Tls { .. } | Self::Denied { .. } => Class::Denied,
            Self::ForeignRealm { .. } | Self::Redirect { .. } | Self::Blocked { .. } => {
                Class::Denied
            }
            Self::NotAllowed { .. } => Class::Unsupported,
            Self::Helper { .. } => Class::Unavailable,
            Self::File(error) => error.class(),
            Self::Timeout { .. } => Class::Timeout,
            Self::Unauthorized { .. } => Class::Unauthenticated,
            Self::NameUnknown { .. } | Self::ManifestUnknown { .. } => Class::NotFound,
            Self::BlobUnknown { .. } | Self::Mismatch { .. } | Self::TooLarge { .. } => {
                Class::Corrupt
            }
            Self::Manifest { .. } | Self::Source(_) | Self::SourceMismatch { .. } => Class::Corrupt,
            Self::TooManyRequests { .. } | Self::Runtime(_) => Class::Exhausted,
            Self::Certificate { .. }
            | Self::NoAuthorities { .. }
            | Self::Configuration { .. }
            | Self::Name(_)
            | Self::ProxyInvalid { .. }
            | Self::AuthFileRead { .. }
            | Self::AuthFile { .. } => Class::Invalid,
        }
    }

    fn code(&self) -> &'static str {
        match self {
            Self::Resolve { .. } => "registry-not-found",
            Self::Connect { .. } => "registry-unreachable",
            Self::Tls { .. } => "registry-tls",
            Self::Certificate { .. } => "certificate-invalid",
            Self::NoAuthorities { .. } => "no-certificate-authorities",
            Self::Broken { .. } => "registry-connection-broken",
            Self::Timeout { .. } => "registry-timeout",
            Self::Unauthorized { .. } => "registry-unauthorized",
            Self::Denied { .. } => "registry-denied",
            Self::ForeignRealm { .. } => "registry-foreign-realm",
            Self::NameUnknown { .. } => "repository-unknown",
            Self::ManifestUnknown { .. } => "manifest-unknown",
            Self::BlobUnknown { .. } => "blob-unknown",
            Self::TooManyRequests { .. } => "registry-too-many-requests",
            Self::Server { .. } => "registry-failed",
            Self::Unexpected { .. } => "registry-unexpected",
            Self::NotARegistry { .. } => "not-a-registry",
            Self::Redirect { .. } => "registry-redirect",
            Self::Mismatch { .. } => "digest-mismatch",
            Self::TooLarge { .. } => "registry-too-large",
            Self::Truncated { .. } => "registry-truncated",
            Self::Manifest { .. } => "manifest-invalid",
            Self::Answer { .. } => "registry-answer-invalid",
            Self::NotAllowed { .. } => "registry-not-allowed",
            Self::Source(_) => "source-unreadable",
            Self::SourceMismatch { .. } => "source-damaged",
            Self::Blocked { .. } => "registry-blocked",
            Self::Name(_) => "image-name-invalid",
            Self::Configuration { .. } => "registry-configuration-invalid",
            Self::ProxyInvalid { .. } => "proxy-invalid",
            Self::Proxy { .. } => "proxy-unreachable",
            Self::ProxyRefused { .. } => "proxy-refused",
            Self::Helper { .. } => "credential-helper-failed",
            Self::File(error) => error.code(),
            Self::AuthFileRead { .. } => "auth-file-unreadable",
            Self::AuthFile { .. } => "auth-file-invalid",
            Self::Runtime(_) => "event-loop",
        }
    }

    fn hint(&self) -> Option<String> {
        Some(match self {
            Self::Resolve { registry, .. } => {
                format!("check the spelling of {registry} and the name servers in /etc/resolv.conf")
            }
            Self::Connect {
                registry, cause, ..
            } if cause.kind() == std::io::ErrorKind::ConnectionRefused => {
                format!(
                    "nothing listens there; is the registry {registry} running, and on that port?"
                )
            }
            Self::Connect { .. } | Self::Timeout { .. } => {
                "check the network and any firewall in between".to_owned()
            }
            Self::Tls { registry, cause } => tls_hint(registry, cause)?,
            Self::NoAuthorities { .. } => {
                "install the package ca-certificates, or name a bundle in SSL_CERT_FILE".to_owned()
            }
            Self::Unauthorized {
                unusable: Some(unusable),
                ..
            } => {
                format!("{unusable}; `knarr login` puts user and password there")
            }
            Self::Unauthorized {
                registry,
                sent_credentials: false,
                ..
            } => format!(
                "check the name; if the repository is private, `knarr login {registry}`"
            ),
            Self::Unauthorized { registry, .. } => {
                format!("log in again: `knarr login {registry}`")
            }
            Self::Denied { registry, .. } => {
                format!("ask the owner of the repository at {registry} for access")
            }
            Self::ForeignRealm { realm, .. } => {
                format!(
                    "if {realm} is really its login service, add credentials for {realm} to auth.json"
                )
            }
            Self::NotAllowed { .. } => {
                "its operator can switch that on, where the registry has it at all".to_owned()
            }
            Self::Source(_) | Self::SourceMismatch { .. } => {
                "`knarr system check` finds what is damaged".to_owned()
            }
            Self::Blocked { path, .. } => {
                format!("take `blocked = true` out of {} to allow it", path.display())
            }
            Self::Configuration { path, .. } => {
                format!("correct {}; containers-registries.conf(5) and hosts.toml describe it", path.display())
            }
            Self::ProxyInvalid { .. } | Self::Proxy { .. } | Self::ProxyRefused { .. } => {
                "the proxy comes from HTTPS_PROXY or HTTP_PROXY; NO_PROXY lists hosts to reach directly".to_owned()
            }
            Self::Helper { helper, .. } => {
                format!("try `{helper} list`; without it, take credsStore or credHelpers out of the credentials file")
            }
            Self::File(error) => error.hint()?,
            Self::NameUnknown { .. } => "check the spelling of the repository".to_owned(),
            Self::ManifestUnknown { .. } => "check the tag".to_owned(),
            Self::TooManyRequests {
                retry_after: Some(wait),
                ..
            } => {
                format!(
                    "try again in {} s, or log in for a higher limit",
                    wait.as_secs()
                )
            }
            Self::TooManyRequests { .. } => {
                "try again later, or log in for a higher limit".to_owned()
            }
            Self::Server { .. } | Self::Broken { .. } | Self::Truncated { .. } => {
                "try again; if it stays, the fault is the registry's or a proxy's in between"
                    .to_owned()
            }
            Self::NotARegistry { registry, .. } => {
                format!("check the host and port of {registry}")
            }
            Self::Mismatch { .. } => {
                "a cache or proxy in between may be broken; nothing was stored".to_owned()
            }
            _ => return None,
        })
    }
}

fn tls_hint(registry: &str, cause: &std::io::Error) -> Option<String> {
    use rustls::CertificateError as Bad;
    let tls = cause.get_ref()?.downcast_ref::<rustls::Error>()?;
    Some(match tls {
        rustls::Error::InvalidCertificate(Bad::UnknownIssuer | Bad::BadSignature) => format!(
            "its certificate is signed by nobody this machine knows: put the authority into /etc/docker/certs.d/{registry}/ca.crt, or give --cert-dir"
        ),
        rustls::Error::InvalidCertificate(Bad::Expired | Bad::ExpiredContext { .. }) => {
            "its certificate has expired, or this machine's clock is wrong".to_owned()
        }
        rustls::Error::InvalidCertificate(Bad::NotValidYet | Bad::NotValidYetContext { .. }) => {
            "its certificate is not valid yet: check this machine's clock".to_owned()
        }
        rustls::Error::InvalidCertificate(
            Bad::NotValidForName | Bad::NotValidForNameContext { .. },
        ) => "its certificate is for another name: use the name the certificate has".to_owned(),
        rustls::Error::InvalidMessage(_) => {
            "it does not speak https: if plain http is what you want, add --tls-verify=false"
                .to_owned()
        }
        _ => return None,
    })
}
