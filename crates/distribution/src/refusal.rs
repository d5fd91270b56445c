//! What an answer other than 2xx means.

use std::fmt;
use std::time::Duration;

use http::header::RETRY_AFTER;
use http::{Method, StatusCode};
use serde::Deserialize;

use crate::ask::{Ask, What};
use crate::connection::Origin;
use crate::endpoint::Endpoint;
use crate::session::{Answer, SMALL, header};
use crate::{Error, Session};

#[derive(Deserialize, Default)]
#[serde(default)]
struct Refusals {
    errors: Vec<Refused>,
    /// Docker Hub's token service.
    details: Option<String>,
    /// OAuth 2 (RFC 6749, section 5.2).
    error_description: Option<String>,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct Refused {
    code: Option<String>,
    message: Option<String>,
}

impl Session<'_> {
    pub(crate) async fn refusal(
        &self,
        endpoint: &Endpoint,
        home: &Origin,
        ask: &Ask,
        answer: Answer,
        sent_credentials: bool,
    ) -> Error {
        let status = answer.parts.status;
        let retry_after = header(&answer.parts, RETRY_AFTER)
            .parse()
            .ok()
            .map(Duration::from_secs);
        let (detail, code) = self.detail(answer, &endpoint.registry, &ask.what).await;
        let registry = endpoint.registry.clone();
        let repository = endpoint.repository.clone();
        match status {
            StatusCode::UNAUTHORIZED => Error::Unauthorized {
                registry,
                repository,
                sent_credentials,
                detail,
                unusable: None,
            },
            StatusCode::FORBIDDEN => Error::Denied {
                registry,
                repository,
                detail,
            },
            StatusCode::NOT_FOUND => {
                let says_nothing = code.is_none() && ask.method != Method::HEAD;
                if code.as_deref() == Some("NAME_UNKNOWN") {
                    return Error::NameUnknown {
                        registry,
                        repository,
                    };
                }
                if says_nothing && !self.is_registry(endpoint, home).await {
                    return Error::NotARegistry {
                        registry,
                        what: "404 to everything".to_owned(),
                    };
                }
                match &ask.what {
                    What::Blob(digest) => Error::BlobUnknown {
                        registry,
                        repository,
                        digest: *digest,
                    },
                    What::Tags => Error::NameUnknown {
                        registry,
                        repository,
                    },
                    what => Error::ManifestUnknown {
                        registry,
                        repository,
                        what: what.to_string(),
                    },
                }
            }
            StatusCode::METHOD_NOT_ALLOWED | StatusCode::NOT_IMPLEMENTED => Error::NotAllowed {
                registry,
                what: format!("{} of {}", ask.method, ask.what),
                detail,
            },
            StatusCode::TOO_MANY_REQUESTS => Error::TooManyRequests {
                registry,
                detail,
                retry_after,
            },
            status if status.is_server_error() => Error::Server {
                registry,
                status: status.as_u16(),
                detail,
                retry_after,
            },
            status => Error::Unexpected {
                registry,
                status: status.as_u16(),
                detail,
            },
        }
    }

    /// A refusal's own words and its first error code (distribution-spec, "Error codes").
    pub(crate) async fn detail(
        &self,
        answer: Answer,
        registry: &str,
        what: &impl fmt::Display,
    ) -> (String, Option<String>) {
        let status = answer.parts.status;
        let body = match self.read_whole(answer, registry, what, SMALL).await {
            Ok((_, bytes)) => bytes,
            Err(_) => Vec::new(),
        };
        let refusals: Refusals = serde_json::from_slice(&body).unwrap_or_default();
        let code = refusals.errors.first().and_then(|error| error.code.clone());
        let words = refusals
            .errors
            .iter()
            .filter_map(|error| error.message.clone().or_else(|| error.code.clone()))
            .chain(refusals.details)
            .chain(refusals.error_description)
            .next();
        let words = words.filter(|words| !words.is_empty()).unwrap_or_else(|| {
            let reason = status.canonical_reason().unwrap_or("no reason given");
            reason.to_lowercase()
        });
        // They end on a terminal.
        let clean = words
            .chars()
            .filter(|c| !c.is_control())
            .take(300)
            .collect();
        (clean, code)
    }
}
