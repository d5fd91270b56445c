//! What the threads of one operation share.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use rustls::ClientConfig;

use crate::connection::Origin;
use crate::endpoint::Endpoint;
use crate::hosts::{self, Host, Trust};
use crate::proxy::Proxies;
use crate::registries::Registries;
use crate::{Result, Session, Settings, tls};

/// Settings, and what was learnt about registries so far: schemes, tokens, certificates.
pub struct Client<'a> {
    pub(crate) settings: Settings,
    on_retry: Option<Told<'a>>,
    learnt: Mutex<Learnt>,
}

/// Hears why something is tried again.
type Told<'a> = Box<dyn Fn(&str) + Send + Sync + 'a>;

#[derive(Default)]
struct Learnt {
    /// `registries.conf` and its like, once read.
    registries: Option<Arc<Registries>>,
    /// `hosts.toml` by registry.
    hosts: HashMap<String, Arc<Vec<Host>>>,
    proxies: Option<Arc<Proxies>>,
    /// The origin of each `host[:port]`, and whether it may be insecure, once a connection told
    /// http from https.
    origins: HashMap<(String, bool), Origin>,
    /// The `Authorization` header by server, registry and scopes.
    authorizations: HashMap<(Origin, String, Vec<String>), Authorization>,
    tls: HashMap<Trusted, Arc<ClientConfig>>,
}

/// Whom to believe on an encrypted connection, and how to identify oneself there.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Trusted {
    /// The folders of `certs.d`, by their names.
    names: Vec<String>,
    /// What `hosts.toml` says.
    trust: Arc<Trust>,
    /// Any certificate will do.
    insecure: bool,
}

/// What a connection may be used again for: the server, and what it was trusted for. A mirror and a
/// registry may be one server, and yet one of them believed with any certificate, the other not.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Line {
    pub(crate) origin: Origin,
    /// `None`: not encrypted.
    pub(crate) trusted: Option<Trusted>,
}

/// A header's value and whether a user's credentials are behind it.
#[derive(Clone)]
pub(crate) struct Authorization {
    pub(crate) header: String,
    pub(crate) with_credentials: bool,
    /// `None`: it does not end.
    pub(crate) until: Option<Instant>,
}

impl Authorization {
    /// One that does not end, with credentials.
    pub(crate) fn lasting(header: String) -> Self {
        Self {
            header,
            with_credentials: true,
            until: None,
        }
    }
}

impl<'a> Client<'a> {
    /// A client; nothing is read or connected yet.
    pub fn new(settings: Settings) -> Self {
        Self {
            settings,
            on_retry: None,
            learnt: Mutex::default(),
        }
    }

    /// Has `told` called with a sentence before something that failed is tried again.
    #[must_use]
    pub fn on_retry(mut self, told: impl Fn(&str) + Send + Sync + 'a) -> Self {
        self.on_retry = Some(Box::new(told));
        self
    }

    /// Connections for the calling thread.
    ///
    /// # Errors
    /// When the kernel gives no epoll instance.
    pub fn session(&self) -> Result<Session<'_>> {
        Session::new(self)
    }

    pub(crate) fn retrying(&self, why: &str) {
        if let Some(told) = &self.on_retry {
            told(why);
        }
    }

    pub(crate) fn registries(&self) -> Result<Arc<Registries>> {
        if let Some(known) = &self.learnt().registries {
            return Ok(Arc::clone(known));
        }
        let read = Arc::new(Registries::load(&self.settings)?);
        self.learnt().registries = Some(Arc::clone(&read));
        Ok(read)
    }

    pub(crate) fn hosts(&self, registry: &str) -> Result<Arc<Vec<Host>>> {
        if let Some(known) = self.learnt().hosts.get(registry) {
            return Ok(Arc::clone(known));
        }
        let read = Arc::new(hosts::load(&self.settings, registry)?);
        self.learnt()
            .hosts
            .insert(registry.to_owned(), Arc::clone(&read));
        Ok(read)
    }

    pub(crate) fn proxies(&self) -> Result<Arc<Proxies>> {
        if let Some(known) = &self.learnt().proxies {
            return Ok(Arc::clone(known));
        }
        let read = Arc::new(match &self.settings.proxies {
            Some(given) => given.clone(),
            None => Proxies::from_environment()?,
        });
        self.learnt().proxies = Some(Arc::clone(&read));
        Ok(read)
    }

    pub(crate) fn origin(&self, endpoint: &Endpoint) -> Option<Origin> {
        let key = (endpoint.authority.clone(), endpoint.insecure);
        self.learnt().origins.get(&key).cloned()
    }

    pub(crate) fn learn_origin(&self, endpoint: &Endpoint, origin: &Origin) {
        let key = (endpoint.authority.clone(), endpoint.insecure);
        self.learnt().origins.insert(key, origin.clone());
    }

    /// What was learnt for these scopes, unless it is about to end.
    pub(crate) fn authorization(
        &self,
        home: &Origin,
        registry: &str,
        scopes: &[String],
    ) -> Option<Authorization> {
        let key = (home.clone(), registry.to_owned(), scopes.to_vec());
        let known = self.learnt().authorizations.get(&key).cloned();
        known.filter(|known| known.until.is_none_or(|until| Instant::now() < until))
    }

    pub(crate) fn learn_authorization(
        &self,
        home: &Origin,
        registry: &str,
        scopes: &[String],
        authorization: &Authorization,
    ) {
        let key = (home.clone(), registry.to_owned(), scopes.to_vec());
        self.learnt()
            .authorizations
            .insert(key, authorization.clone());
    }

    /// The line to an origin for an endpoint: to its own server (`at_home`), or to where that sends
    /// us.
    pub(crate) fn line(&self, endpoint: &Endpoint, origin: &Origin, at_home: bool) -> Line {
        let trusted = || {
            if !at_home {
                return Trusted {
                    names: vec![origin.authority()],
                    trust: Arc::default(),
                    insecure: self.settings.insecure,
                };
            }
            let mut names = vec![endpoint.registry.clone()];
            if origin.authority() != endpoint.registry {
                names.push(origin.authority());
            }
            Trusted {
                names,
                trust: Arc::clone(&endpoint.trust),
                insecure: endpoint.insecure,
            }
        };
        Line {
            origin: origin.clone(),
            trusted: origin.https.then(trusted),
        }
    }

    /// The TLS configuration of a line. Made once: reading the system's authorities takes
    /// milliseconds.
    pub(crate) fn tls(&self, trusted: &Trusted) -> Result<Arc<ClientConfig>> {
        if let Some(config) = self.learnt().tls.get(trusted) {
            return Ok(Arc::clone(config));
        }
        let Trusted {
            names,
            trust,
            insecure,
        } = trusted;
        let config = tls::config(&self.settings, names, trust, *insecure)?;
        self.learnt()
            .tls
            .insert(trusted.clone(), Arc::clone(&config));
        Ok(config)
    }

    fn learnt(&self) -> MutexGuard<'_, Learnt> {
        // Every change is one insert, so a panic elsewhere leaves it whole.
        self.learnt.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for Client<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Client")
            .field("settings", &self.settings)
            .finish_non_exhaustive()
    }
}
