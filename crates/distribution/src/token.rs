//! Answering a challenge: basic credentials, bearer tokens (distribution, "Token Authentication"),
//! identity tokens ("OAuth2 Token Authentication").

use std::time::{Duration, Instant};

use http::header::{ACCEPT, CONTENT_TYPE};
use http::{Method, StatusCode, Uri};
use serde::Deserialize;

use crate::ask::{Access, Ask, Target, What};
use crate::challenge::Challenge;
use crate::client::Authorization;
use crate::connection::Origin;
use crate::credentials::{self, Credentials, Found, Secret};
use crate::endpoint::Endpoint;
use crate::hosts::Capability;
use crate::location::encode_query;
use crate::session::{SMALL, challenges, unfollowed};
use crate::{Error, Result, Session, auth};

/// What a service says it is talking to.
const CLIENT: &str = "knarr";
/// How long a token is good for at least ("expires_in").
const SHORTEST: u64 = 60;
const LONGEST: u64 = 24 * 3600;

#[derive(Deserialize, Default)]
#[serde(default)]
struct Token {
    token: Option<String>,
    access_token: Option<String>,
    refresh_token: Option<String>,
    /// Seconds.
    expires_in: Option<u64>,
}

/// A token service, as a challenge names it.
struct Service {
    realm: Uri,
    origin: Origin,
    name: Option<String>,
    scopes: Vec<String>,
}

impl Session<'_> {
    pub(crate) async fn answer_challenge(
        &self,
        endpoint: &Endpoint,
        home: &Origin,
        scopes: &[String],
        challenges: &[Challenge],
        detail: String,
    ) -> Result<Authorization> {
        let settings = &self.client.settings;
        // What was given with the command is for the registry that was named there.
        let find = match endpoint.is_named {
            true => credentials::find,
            false => credentials::kept,
        };
        let found = find(settings, &endpoint.registry, &endpoint.repository)?;
        if let Some(Secret::Bearer(token)) = &found.secret {
            return Ok(Authorization::lasting(format!("Bearer {token}")));
        }
        let named = |scheme: &str| challenges.iter().find(|c| c.scheme == scheme);
        if let Some(bearer) = named("bearer") {
            let service = service(endpoint, home, bearer, scopes)?;
            return self.token(endpoint, home, &service, found).await;
        }
        match (named("basic"), &found.secret) {
            (Some(_), Some(Secret::Password(credentials))) => {
                Ok(Authorization::lasting(credentials.basic()))
            }
            _ => Err(Error::Unauthorized {
                registry: endpoint.registry.clone(),
                repository: endpoint.repository.clone(),
                sent_credentials: false,
                detail,
                unusable: found.unusable,
            }),
        }
    }

    /// Fetches a bearer token.
    async fn token(
        &self,
        endpoint: &Endpoint,
        home: &Origin,
        service: &Service,
        mut found: Found,
    ) -> Result<Authorization> {
        if found.secret.is_some() && !auth::belongs(&home.host, &service.origin.host) {
            // Unless the user has credentials for that host itself.
            let settings = &self.client.settings;
            let theirs = match settings.credentials {
                Some(_) => Found::default(),
                None => credentials::find(settings, &service.origin.authority(), "")?,
            };
            if theirs.secret.is_none() {
                return Err(Error::ForeignRealm {
                    registry: endpoint.registry.clone(),
                    realm: service.origin.host.clone(),
                });
            }
            found = theirs;
        }
        let with_credentials = found.secret.is_some();
        let (ask, authorization) = match &found.secret {
            Some(Secret::Identity(token)) => {
                let fields = [("grant_type", "refresh_token"), ("refresh_token", token)];
                (service.post(&fields), None)
            }
            Some(Secret::Password(credentials)) => {
                let extra = [("account", credentials.user.as_str())];
                let basic = Authorization::lasting(credentials.basic());
                (service.get(&extra, endpoint)?, Some(basic))
            }
            _ => (service.get(&[], endpoint)?, None),
        };
        let token = self
            .ask_service(
                endpoint,
                home,
                service,
                &ask,
                authorization,
                with_credentials,
            )
            .await
            .map_err(|error| match error {
                Error::Unauthorized {
                    registry,
                    repository,
                    sent_credentials,
                    detail,
                    ..
                } => Error::Unauthorized {
                    registry,
                    repository,
                    sent_credentials,
                    detail,
                    unusable: found.unusable,
                },
                other => other,
            })?;
        let lives = token
            .expires_in
            .unwrap_or(SHORTEST)
            .clamp(SHORTEST, LONGEST);
        let value = token.token.or(token.access_token);
        let value = value.filter(|token| !token.is_empty());
        let value = value.ok_or_else(|| Error::NotARegistry {
            registry: endpoint.registry.clone(),
            what: format!(
                "the login service {}, which gives no token",
                service.origin.host
            ),
        })?;
        Ok(Authorization {
            header: format!("Bearer {value}"),
            with_credentials,
            // A little earlier than it ends, so that it does not end on the way.
            until: Instant::now().checked_add(Duration::from_secs(lives * 9 / 10)),
        })
    }

    async fn ask_service(
        &self,
        endpoint: &Endpoint,
        home: &Origin,
        service: &Service,
        ask: &Ask,
        authorization: Option<Authorization>,
        with_credentials: bool,
    ) -> Result<Token> {
        let Target::Url(uri) = &ask.target else {
            return Err(unfollowed(
                &endpoint.registry,
                &service.realm,
                "it is not a URL",
            ));
        };
        let origin = &service.origin;
        let at_home = origin == home;
        let answer = self
            .exchange(endpoint, origin, uri, ask, authorization.as_ref(), at_home)
            .await?;
        if answer.parts.status != StatusCode::OK {
            let refusal = self
                .refusal(endpoint, home, ask, answer, with_credentials)
                .await;
            return Err(match refusal {
                // What OAuth 2 says of a token that is no longer good.
                Error::Unexpected {
                    status: 400,
                    detail,
                    ..
                } if with_credentials => Error::Unauthorized {
                    registry: endpoint.registry.clone(),
                    repository: endpoint.repository.clone(),
                    sent_credentials: true,
                    detail,
                    unusable: None,
                },
                other => other,
            });
        }
        let (_, bytes) = self
            .read_whole(answer, &endpoint.registry, &ask.what, SMALL)
            .await?;
        Ok(serde_json::from_slice(&bytes).unwrap_or_default())
    }

    /// `login`: tries a name and password at a registry. Gives what is to be kept: an identity
    /// token where the registry's token service gives one, else the password.
    ///
    /// # Errors
    /// [`Error::Unauthorized`] where they are refused.
    pub fn login(&self, registry: &str, credentials: &Credentials) -> Result<Secret> {
        self.runtime.block_on(self.try_login(registry, credentials))
    }

    async fn try_login(&self, registry: &str, credentials: &Credentials) -> Result<Secret> {
        let reference = format!("{registry}/login").parse();
        let reference: knarr_spec::Reference = reference.map_err(|_| Error::NotARegistry {
            registry: registry.to_owned(),
            what: "a name that is no host".to_owned(),
        })?;
        let endpoints = self.endpoints(&reference, Capability::Push)?;
        let Some(endpoint) = endpoints.last() else {
            return Err(unfollowed(registry, registry, "there is no server"));
        };
        let endpoint = Endpoint {
            repository: String::new(),
            ..endpoint.clone()
        };
        let home = self.home(&endpoint).await?;
        let ask = Ask::new(
            Method::GET,
            Target::Root(String::new()),
            Access::Identity,
            What::Login,
        );
        let uri: Uri = format!("{home}{}/", endpoint.base)
            .parse()
            .map_err(|_| unfollowed(registry, registry, "it is not a host"))?;
        let answer = self
            .exchange(&endpoint, &home, &uri, &ask, None, true)
            .await?;
        let status = answer.parts.status;
        if status != StatusCode::UNAUTHORIZED {
            // One that asks nobody who he is takes any name; one that is none says so.
            if status.is_success() {
                return Ok(Secret::Password(credentials.clone()));
            }
            return Err(self.refusal(&endpoint, &home, &ask, answer, false).await);
        }
        let challenges = challenges(&answer.parts);
        let basic = Authorization::lasting(credentials.basic());
        let Some(bearer) = challenges.iter().find(|c| c.scheme == "bearer") else {
            let answer = self
                .exchange(&endpoint, &home, &uri, &ask, Some(&basic), true)
                .await?;
            if answer.parts.status.is_success() {
                return Ok(Secret::Password(credentials.clone()));
            }
            return Err(self.refusal(&endpoint, &home, &ask, answer, true).await);
        };
        let service = service(&endpoint, &home, bearer, &[])?;
        if !auth::belongs(&home.host, &service.origin.host) {
            return Err(Error::ForeignRealm {
                registry: registry.to_owned(),
                realm: service.origin.host,
            });
        }
        let extra = [
            ("account", credentials.user.as_str()),
            ("client_id", CLIENT),
            ("offline_token", "true"),
        ];
        let ask = service.get(&extra, &endpoint)?;
        let token = self
            .ask_service(&endpoint, &home, &service, &ask, Some(basic), true)
            .await?;
        Ok(
            match token.refresh_token.filter(|token| !token.is_empty()) {
                Some(token) => Secret::Identity(token),
                None => Secret::Password(credentials.clone()),
            },
        )
    }
}

/// The token service that a challenge names, and the scopes to ask it for.
fn service(
    endpoint: &Endpoint,
    home: &Origin,
    challenge: &Challenge,
    scopes: &[String],
) -> Result<Service> {
    let parameter = |name: &str| challenge.parameters.get(name).map(String::as_str);
    let bad_realm = |reason| {
        unfollowed(
            &endpoint.registry,
            parameter("realm").unwrap_or_default(),
            reason,
        )
    };
    let not_a_url = "the token service it names is not a URL";
    let realm: Uri = parameter("realm")
        .and_then(|realm| realm.parse().ok())
        .ok_or_else(|| bad_realm(not_a_url))?;
    let origin = Origin::of_uri(&realm).ok_or_else(|| bad_realm(not_a_url))?;
    if home.https && !origin.https {
        return Err(bad_realm("the token service it names is not https"));
    }
    let mut scopes = scopes.to_vec();
    // What the registry asks for may be more than what is known here to be needed.
    let asked = parameter("scope").unwrap_or_default().split(' ');
    for scope in asked.filter(|scope| !scope.is_empty()) {
        if !scopes.iter().any(|known| known == scope) {
            scopes.push(scope.to_owned());
        }
    }
    Ok(Service {
        realm,
        origin,
        name: parameter("service").map(str::to_owned),
        scopes,
    })
}

impl Service {
    fn ask(method: Method, uri: Uri) -> Ask {
        Ask::new(method, Target::Url(uri), Access::Identity, What::Login)
            .with(ACCEPT, "application/json")
    }

    /// By GET, with basic credentials where there are some.
    fn get(&self, extra: &[(&str, &str)], endpoint: &Endpoint) -> Result<Ask> {
        let mut url = self.realm.to_string();
        let service = self.name.iter().map(|name| ("service", name.as_str()));
        let scopes = self.scopes.iter().map(|scope| ("scope", scope.as_str()));
        for (name, value) in service.chain(scopes).chain(extra.iter().copied()) {
            url.push(if url.contains('?') { '&' } else { '?' });
            url.push_str(name);
            url.push('=');
            encode_query(value, &mut url);
        }
        let uri = url.parse().map_err(|_| {
            let reason = "the token service it names is not a URL";
            unfollowed(&endpoint.registry, &url, reason)
        })?;
        Ok(Self::ask(Method::GET, uri))
    }

    /// By POST: a refresh token must not be in a URL, which servers log.
    fn post(&self, fields: &[(&str, &str)]) -> Ask {
        let mut form = String::new();
        let scope = self.scopes.join(" ");
        let service = self.name.as_deref().unwrap_or_default();
        let own = [
            ("service", service),
            ("client_id", CLIENT),
            ("scope", &scope),
        ];
        for (name, value) in fields.iter().copied().chain(own) {
            if value.is_empty() {
                continue;
            }
            if !form.is_empty() {
                form.push('&');
            }
            form.push_str(name);
            form.push('=');
            encode_query(value, &mut form);
        }
        Self::ask(Method::POST, self.realm.clone())
            .with(CONTENT_TYPE, "application/x-www-form-urlencoded")
            .sending(form)
    }
}
