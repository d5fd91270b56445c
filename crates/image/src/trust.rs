//! Which images are let in: `policy.json`, and signatures made by cosign or skopeo with a key.
//!
//! What a policy asks of an image is decided before anything of it is stored. A signature is found by
//! cosign's tag (`sha256-<hex>.sig`) or among the referrers of the manifest, and counts for the
//! manifest that it names; one for an index counts for everything that the index names.

mod attachments;
pub(crate) mod policy;
mod signature;

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use knarr_distribution::Session;
use knarr_spec::image::{Descriptor, Manifest};
use knarr_spec::manifest::Document;
use knarr_spec::{Digest, Reference};

use crate::{Error, Result};
use attachments::Attachments;
use policy::{Identity, Key, Place, Policy, Requirement};

/// The most signatures of one manifest that are looked at.
const SIGNATURES: usize = 100;
/// What signatures among the referrers are of.
const REFERRER: &str = "application/vnd.dev.cosign.artifact.sig.v1+json";

/// Where the policy is.
#[derive(Debug, Clone, Default)]
pub(crate) struct Trust {
    /// A file that takes the place of all others.
    pub(crate) policy: Option<PathBuf>,
}

impl Trust {
    /// What is asked of an image from a place. `etc` is what takes the place of `/etc`.
    ///
    /// # Errors
    /// [`Error::Policy`]; [`Error::Untrusted`] where nothing could make it accepted.
    pub(crate) fn gate(&self, name: &str, place: Place, etc: Option<&Path>) -> Result<Gate> {
        let etc = etc.unwrap_or(Path::new("/etc"));
        let (file, policy) = self.policy(etc)?;
        let (requirements, scope) = policy.requirements(&place);
        let mut gate = Gate {
            name: name.to_owned(),
            requirements: requirements.to_vec(),
            file,
            scope,
            reference: match place {
                Place::Registry(reference) => Some(reference),
                _ => None,
            },
            attachments: false,
            accepted: Mutex::default(),
        };
        gate.requirements.retain(|r| *r != Requirement::Anything);
        for requirement in &gate.requirements {
            match requirement {
                Requirement::Nothing => return Err(gate.refused("it rejects every image", None)),
                Requirement::NotServed(what) => {
                    let why = format!("{what}, which it asks for, is not served by Knarr");
                    return Err(gate.refused(&why, None));
                }
                Requirement::Anything | Requirement::Signed { .. } => {}
            }
        }
        if let (false, Some(reference)) = (gate.requirements.is_empty(), &gate.reference) {
            let folder = configuration(etc, "registries.d", Path::is_dir);
            let read = Attachments::load(&folder);
            let read = read.map_err(|(path, why)| Error::Policy { path, why })?;
            gate.attachments = read.used(reference);
        }
        Ok(gate)
    }

    fn policy(&self, etc: &Path) -> Result<(PathBuf, Policy)> {
        let given = std::env::var_os("KNARR_SIGNATURE_POLICY").filter(|path| !path.is_empty());
        let given = self.policy.clone().or(given.map(PathBuf::from));
        let path = match &given {
            Some(path) => path.clone(),
            None => configuration(etc, "policy.json", Path::is_file),
        };
        let bytes = match knarr_fs::read(&path) {
            Ok(bytes) => bytes,
            // Docker's users have none.
            Err(error) if error.is_not_found() && given.is_none() => {
                return Ok((path, Policy::accepting()));
            }
            Err(error) => return Err(error.into()),
        };
        match Policy::parse(&bytes) {
            Ok(policy) => Ok((path, policy)),
            Err(why) => Err(Error::Policy { path, why }),
        }
    }
}

/// A file of the user's, else the system's.
fn configuration(etc: &Path, name: &str, is: fn(&Path) -> bool) -> PathBuf {
    let home = std::env::var_os("HOME").filter(|home| !home.is_empty());
    let own = home.map(|home| Path::new(&home).join(".config/containers").join(name));
    own.filter(|path| is(path))
        .unwrap_or_else(|| etc.join("containers").join(name))
}

/// What a policy asks of one image, or of an index with all that it names.
#[derive(Debug)]
pub(crate) struct Gate {
    name: String,
    /// Signatures; nothing where everything is accepted.
    requirements: Vec<Requirement>,
    file: PathBuf,
    scope: String,
    /// What it is called at its registry.
    reference: Option<Reference>,
    /// Whether signatures are looked for at registries.
    attachments: bool,
    accepted: Mutex<HashSet<Digest>>,
}

/// A signature as it was found.
struct Found {
    place: String,
    payload: Vec<u8>,
    signature: String,
}

impl Gate {
    /// Lets a manifest or index through, or the first of several that it is named by; `chain` is its
    /// own digest, then those of the indexes that lead to it.
    ///
    /// # Errors
    /// [`Error::Untrusted`]; the registry's.
    pub(crate) fn check(&self, session: Option<&Session<'_>>, chain: &[Digest]) -> Result<()> {
        if self.requirements.is_empty() || chain.iter().any(|digest| self.is_accepted(*digest)) {
            return Ok(());
        }
        let (Some(session), Some(reference)) = (session, &self.reference) else {
            return Err(self.refused(
                "it asks for a signature, and none can come from there",
                None,
            ));
        };
        if !self.attachments {
            return Err(self.refused(
                "it asks for a signature, and signatures are not looked for",
                Some("say `use-sigstore-attachments: true` of this registry in /etc/containers/registries.d/*.yaml"),
            ));
        }
        let mut refusal = None;
        for digest in chain {
            match self.check_one(session, reference, *digest)? {
                Ok(()) => {
                    let accepted = self.accepted.lock();
                    accepted
                        .unwrap_or_else(PoisonError::into_inner)
                        .insert(*digest);
                    return Ok(());
                }
                Err(why) => _ = refusal.get_or_insert(why),
            }
        }
        Err(self.refused(&refusal.unwrap_or_default(), None))
    }

    fn is_accepted(&self, digest: Digest) -> bool {
        let accepted = self.accepted.lock();
        accepted
            .unwrap_or_else(PoisonError::into_inner)
            .contains(&digest)
    }

    /// Every requirement needs a signature of its own; the inner error says why there is none.
    fn check_one(
        &self,
        session: &Session<'_>,
        reference: &Reference,
        digest: Digest,
    ) -> Result<std::result::Result<(), String>> {
        let tag = format!("sha256-{}.sig", digest.hex());
        let place = format!("{}/{}:{tag}", reference.registry(), reference.repository());
        let mut found = Vec::new();
        if let Ok(at) = place.parse::<Reference>() {
            self.signatures(session, &at, &mut found)?;
        }
        let mut failed = self.met(digest, &found);
        if failed.is_err() {
            let subject = reference.with_digest(digest);
            // Where the registry cannot say, the tag was all there is.
            let others = session.referrers(&subject, Some(REFERRER));
            for entry in others.map(|index| index.manifests).unwrap_or_default() {
                let at = reference.with_digest(entry.digest);
                self.signatures(session, &at, &mut found)?;
            }
            failed = self.met(digest, &found);
        }
        Ok(match failed {
            Err(_) if found.is_empty() => Err(format!(
                "it asks for a signature, and there is none for {digest} ({place})"
            )),
            failed => failed,
        })
    }

    fn met(&self, digest: Digest, found: &[Found]) -> std::result::Result<(), String> {
        self.requirements
            .iter()
            .try_for_each(|requirement| match requirement {
                Requirement::Signed { keys, identity } => {
                    self.signed(digest, found, keys, identity)
                }
                _ => Ok(()),
            })
    }

    fn signed(
        &self,
        digest: Digest,
        found: &[Found],
        keys: &[Key],
        identity: &Identity,
    ) -> std::result::Result<(), String> {
        let mut why = None;
        for key in keys {
            let (called, pem) = match key {
                Key::Data(pem) => ("the key in the policy".to_owned(), Ok(pem.clone())),
                Key::File(path) => (format!("key {}", path.display()), knarr_fs::read(path)),
            };
            let pem = pem.map_err(|error| format!("{called} cannot be read: {error}"))?;
            let key = signature::public_key(&pem)
                .map_err(|error| format!("{called} cannot be used: {error}"))?;
            for Found {
                place,
                payload,
                signature,
            } in found
            {
                let of =
                    |error| format!("the signature {place} does not count for {called}: {error}");
                // Nothing of the payload is looked at before.
                if !signature::is_made_with(&key, payload, signature) {
                    why.get_or_insert_with(|| of("it was not made with this key".to_owned()));
                    continue;
                }
                let accepted = signature::read(payload).and_then(|payload| {
                    if payload.digest != digest {
                        return Err(format!("it is for {}, not for {digest}", payload.digest));
                    }
                    identity.accepts(self.reference.as_ref(), &payload.reference)
                });
                match accepted {
                    Ok(()) => return Ok(()),
                    // The better thing to say.
                    Err(error) => why = Some(of(error)),
                }
            }
        }
        Err(why.unwrap_or_else(|| "there is no signature".to_owned()))
    }

    /// The signatures in a manifest.
    fn signatures(
        &self,
        session: &Session<'_>,
        at: &Reference,
        found: &mut Vec<Found>,
    ) -> Result<()> {
        use knarr_diag::{Class, Explain as _};
        let failed = |cause| Error::Pull {
            name: at.familiar(),
            cause: Box::new(cause),
        };
        let manifest: Box<Manifest> = match session.manifest(at) {
            Ok(fetched) => match fetched.document {
                Document::Manifest(manifest) => manifest,
                Document::Index(_) => return Ok(()),
            },
            Err(error) if error.class() == Class::NotFound => return Ok(()),
            Err(error) => return Err(failed(error)),
        };
        let is_signature = |layer: &&Descriptor| layer.media_type == signature::PAYLOAD;
        for layer in manifest.layers.iter().filter(is_signature) {
            if found.len() >= SIGNATURES {
                break;
            }
            if let Some(signature) = layer.annotations.get(signature::SIGNATURE) {
                found.push(Found {
                    place: at.familiar(),
                    payload: session.document(at, layer).map_err(failed)?,
                    signature: signature.clone(),
                });
            }
        }
        Ok(())
    }

    fn refused(&self, why: &str, hint: Option<&'static str>) -> Error {
        Error::Untrusted {
            name: self.name.clone(),
            policy: self.file.clone(),
            scope: self.scope.clone(),
            why: why.to_owned(),
            hint,
        }
    }
}
