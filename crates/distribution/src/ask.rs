//! One request, before it is known which server will answer it.

use std::fmt;

use bytes::Bytes;
use http::header::ACCEPT;
use http::{HeaderName, Method, Uri};
use knarr_spec::Digest;

/// What is asked for, for messages.
#[derive(Debug, Clone)]
pub(crate) enum What {
    /// `tag x` or `manifest sha256:…`
    Manifest(String),
    Blob(Digest),
    /// The upload of a blob or manifest.
    Upload(String),
    Tags,
    Referrers(Digest),
    Login,
    Search,
}

impl fmt::Display for What {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Manifest(what) | Self::Upload(what) => f.write_str(what),
            Self::Blob(digest) => write!(f, "blob {digest}"),
            Self::Tags => f.write_str("the list of tags"),
            Self::Referrers(digest) => write!(f, "the referrers of {digest}"),
            Self::Login => f.write_str("a login"),
            Self::Search => f.write_str("a search"),
        }
    }
}

/// Which rights a token must give (distribution, "Token scope").
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Access {
    Pull,
    Push {
        /// Another repository of the registry, to take blobs from.
        from: Option<String>,
    },
    Delete,
    /// Only who asks.
    Identity,
    /// The names of all repositories.
    Catalog,
}

impl Access {
    /// The scopes to ask a token service for.
    pub(crate) fn scopes(&self, repository: &str) -> Vec<String> {
        let of = |repository: &str, actions: &str| format!("repository:{repository}:{actions}");
        match self {
            Self::Pull => vec![of(repository, "pull")],
            Self::Push { from } => {
                let mut scopes = vec![of(repository, "pull,push")];
                scopes.extend(from.iter().map(|from| of(from, "pull")));
                scopes
            }
            Self::Delete => vec![of(repository, "pull,delete")],
            Self::Identity => Vec::new(),
            Self::Catalog => vec!["registry:catalog:*".to_owned()],
        }
    }
}

/// Where a request goes.
#[derive(Debug, Clone)]
pub(crate) enum Target {
    /// Below `/v2/<repository>/`.
    Path(String),
    /// Below `/v2/`.
    Root(String),
    /// Where the server said to go on.
    Url(Uri),
}

/// One request.
#[derive(Debug, Clone)]
pub(crate) struct Ask {
    pub(crate) method: Method,
    pub(crate) target: Target,
    pub(crate) headers: Vec<(HeaderName, String)>,
    pub(crate) body: Bytes,
    pub(crate) access: Access,
    pub(crate) what: What,
}

impl Ask {
    pub(crate) fn new(method: Method, target: Target, access: Access, what: What) -> Self {
        Self {
            method,
            target,
            headers: Vec::new(),
            body: Bytes::new(),
            access,
            what,
        }
    }

    /// A GET below the repository.
    pub(crate) fn get(path: String, accept: &str, what: What) -> Self {
        Self::new(Method::GET, Target::Path(path), Access::Pull, what).with(ACCEPT, accept)
    }

    /// Adds a header.
    pub(crate) fn with(mut self, name: HeaderName, value: impl Into<String>) -> Self {
        self.headers.push((name, value.into()));
        self
    }

    /// Sets the body.
    pub(crate) fn sending(mut self, body: impl Into<Bytes>) -> Self {
        self.body = body.into();
        self
    }

    /// Whether asking twice does no more than asking once.
    pub(crate) fn is_safe(&self) -> bool {
        self.method == Method::GET || self.method == Method::HEAD
    }
}
