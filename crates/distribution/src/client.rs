//! What the threads of one operation share.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rustls::ClientConfig;

use crate::connection::Origin;
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
    /// The origin of each registry, once a connection told http from https.
    origins: HashMap<String, Origin>,
    /// The `Authorization` header by registry and repository.
    authorizations: HashMap<(String, String), Authorization>,
    tls: HashMap<String, Arc<ClientConfig>>,
}

/// A header's value and whether a user's credentials are behind it.
#[derive(Clone)]
pub(crate) struct Authorization {
    pub(crate) header: String,
    pub(crate) with_credentials: bool,
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

    pub(crate) fn origin(&self, registry: &str) -> Option<Origin> {
        self.learnt().origins.get(registry).cloned()
    }

    pub(crate) fn learn_origin(&self, registry: &str, origin: &Origin) {
        self.learnt()
            .origins
            .insert(registry.to_owned(), origin.clone());
    }

    pub(crate) fn authorization(&self, registry: &str, repository: &str) -> Option<Authorization> {
        let key = (registry.to_owned(), repository.to_owned());
        self.learnt().authorizations.get(&key).cloned()
    }

    pub(crate) fn learn_authorization(
        &self,
        registry: &str,
        repository: &str,
        authorization: &Authorization,
    ) {
        let key = (registry.to_owned(), repository.to_owned());
        self.learnt()
            .authorizations
            .insert(key, authorization.clone());
    }

    /// The TLS configuration for a host, made once: reading the system's authorities takes
    /// milliseconds.
    pub(crate) fn tls(&self, host: &str) -> Result<Arc<ClientConfig>> {
        if let Some(config) = self.learnt().tls.get(host) {
            return Ok(Arc::clone(config));
        }
        let config = tls::config(&self.settings, host)?;
        self.learnt()
            .tls
            .insert(host.to_owned(), Arc::clone(&config));
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
