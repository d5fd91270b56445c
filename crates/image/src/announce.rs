//! Telling of what happened to images, for those who follow events.

use std::fmt;
use std::sync::Arc;

use crate::ImageId;

/// What happened, to whom (an image's id, or a name where it is about a name), and the name in
/// question: Docker's image events.
type Tell = dyn Fn(&str, &str, &str) + Send + Sync;

/// Whom a store tells; nobody by default.
#[derive(Clone, Default)]
pub(crate) struct Announce(Option<Arc<Tell>>);

impl Announce {
    pub(crate) fn to(tell: impl Fn(&str, &str, &str) + Send + Sync + 'static) -> Self {
        Self(Some(Arc::new(tell)))
    }

    /// `load`, `import`, `tag`, `untag`, `delete`, `save`.
    pub(crate) fn image(&self, action: &str, id: ImageId, name: Option<String>) {
        let id = id.to_string();
        self.say(action, &id, &name.unwrap_or_else(|| id.clone()));
    }

    /// `pull` and `push` are about a name.
    pub(crate) fn name(&self, action: &str, reference: &knarr_spec::Reference) {
        self.say(action, &reference.familiar(), &reference.familiar_name());
    }

    fn say(&self, action: &str, id: &str, name: &str) {
        if let Some(tell) = &self.0 {
            tell(action, id, name);
        }
    }
}

impl fmt::Debug for Announce {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Announce")
    }
}
