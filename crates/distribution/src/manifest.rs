//! Manifests, tags and referrers of a repository: reading and writing.

use bytes::Bytes;
use http::Method;
use http::header::{ACCEPT, CONTENT_LENGTH, CONTENT_TYPE, LINK};
use http::response::Parts;
use knarr_spec::image::{Descriptor, Index, media_type};
use knarr_spec::manifest::{DOCUMENT_LIMIT, Document};
use knarr_spec::{Digest, Reference};
use serde::Deserialize;

use crate::ask::{Access, Ask, Target, What};
use crate::endpoint::Endpoint;
use crate::hosts::Capability;
use crate::location::{encode_query, follow};
use crate::session::{header, too_large};
use crate::{Error, Result, Session};

/// The most names in a list of tags, repositories or referrers.
const NAMES: usize = 100_000;
/// How many are asked for at a time.
const PAGE: usize = 1000;

/// A manifest or index as it came.
#[derive(Debug, Clone)]
pub struct Fetched {
    /// The exact bytes.
    pub bytes: Vec<u8>,
    /// Their digest.
    pub digest: Digest,
    /// What they say they are, else what the registry said.
    pub media_type: String,
    /// What they say.
    pub document: Document,
}

impl Fetched {
    /// What an index says of it, without a platform.
    pub fn descriptor(&self) -> Descriptor {
        Descriptor {
            media_type: self.media_type.clone(),
            digest: self.digest,
            size: self.bytes.len() as u64,
            urls: Vec::new(),
            annotations: std::collections::BTreeMap::new(),
            platform: None,
        }
    }
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct Names {
    tags: Option<Vec<String>>,
    repositories: Option<Vec<String>>,
}

/// What an index says of its entries beside their descriptors.
#[derive(Deserialize, Default)]
#[serde(default)]
struct Types {
    manifests: Vec<Type>,
}

#[derive(Deserialize, Default)]
#[serde(default, rename_all = "camelCase")]
struct Type {
    artifact_type: Option<String>,
}

/// `manifests/<…>` and what messages call it.
fn name_of(reference: &Reference) -> (String, String) {
    match (reference.digest(), reference.tag()) {
        (Some(digest), _) => (digest.to_string(), format!("manifest {digest}")),
        (None, tag) => {
            let tag = tag.unwrap_or("latest");
            (tag.to_owned(), format!("tag {tag}"))
        }
    }
}

const ACCEPTED: [&str; 4] = [
    media_type::OCI_INDEX,
    media_type::OCI_MANIFEST,
    media_type::DOCKER_LIST,
    media_type::DOCKER_MANIFEST,
];

fn resolving(reference: &Reference) -> Capability {
    match reference.digest() {
        Some(_) => Capability::Pull,
        None => Capability::Resolve,
    }
}

impl Session<'_> {
    /// The manifest or index that `reference` means: by its digest where it has one, else its tag.
    ///
    /// # Errors
    /// [`Error`]; among others when the bytes do not have the digest that was asked for or that
    /// the registry announces.
    pub fn manifest(&self, reference: &Reference) -> Result<Fetched> {
        self.runtime.block_on(self.fetch_manifest(reference))
    }

    /// What `reference` means, without fetching it; `None` where there is no such manifest.
    ///
    /// # Errors
    /// [`Error`].
    pub fn head_manifest(&self, reference: &Reference) -> Result<Option<Descriptor>> {
        let (name, what) = name_of(reference);
        let mut ask = Ask::get(
            format!("manifests/{name}"),
            &ACCEPTED.join(", "),
            What::Manifest(what),
        );
        ask.method = Method::HEAD;
        let endpoints = self.endpoints(reference, resolving(reference))?;
        let answer = self.runtime.block_on(async {
            let (answer, _) = self.fetch(&endpoints, &ask).await?;
            let parts = answer.parts.clone();
            self.keep(answer.line, answer.sender);
            Ok(parts)
        });
        let parts = match answer {
            Ok(parts) => parts,
            Err(error) if Error::is_absence(&error) => return Ok(None),
            Err(error) => return Err(error),
        };
        let digest = header(&parts, "docker-content-digest").parse().ok();
        let size = header(&parts, CONTENT_LENGTH).parse().ok();
        match (digest.or(reference.digest()), size) {
            (Some(digest), Some(size)) => Ok(Some(Descriptor {
                media_type: header(&parts, CONTENT_TYPE),
                digest,
                size,
                urls: Vec::new(),
                annotations: std::collections::BTreeMap::new(),
                platform: None,
            })),
            // Not every registry says it without the bytes.
            _ => self.manifest(reference).map(|m| Some(m.descriptor())),
        }
    }

    /// Stores a manifest or index under the reference's tag, or under its digest alone.
    ///
    /// # Errors
    /// [`Error`]; among others when something that it names is missing in the repository.
    pub fn put_manifest(
        &self,
        reference: &Reference,
        media_type: &str,
        bytes: &[u8],
    ) -> Result<Digest> {
        let digest = digest_of(bytes);
        let (name, what) = match reference.tag() {
            Some(tag) => (tag.to_owned(), format!("tag {tag}")),
            None => (digest.to_string(), format!("manifest {digest}")),
        };
        let ask = Ask::new(
            Method::PUT,
            Target::Path(format!("manifests/{name}")),
            Access::Push { from: None },
            What::Upload(what.clone()),
        )
        .with(CONTENT_TYPE, media_type)
        .sending(Bytes::copy_from_slice(bytes));
        let endpoints = self.endpoints(reference, Capability::Push)?;
        let registry = reference.registry();
        let (parts, _, _) =
            self.runtime
                .block_on(self.fetch_whole(&endpoints, &ask, DOCUMENT_LIMIT))?;
        match header(&parts, "docker-content-digest").parse::<Digest>() {
            Ok(stored) if stored != digest => Err(Error::Mismatch {
                registry: registry.to_owned(),
                what,
                expected: digest,
                got: stored,
            }),
            _ => Ok(digest),
        }
    }

    /// Deletes the manifest that `reference` means. (A registry's tags are deleted with the
    /// manifest that they mean.)
    ///
    /// # Errors
    /// [`Error`]; [`Error::NotAllowed`] where the registry does not let anybody.
    pub fn delete_manifest(&self, reference: &Reference) -> Result<Digest> {
        let digest = match reference.digest() {
            Some(digest) => digest,
            None => {
                let (_, what) = name_of(reference);
                let found = self.head_manifest(reference)?;
                found
                    .map(|found| found.digest)
                    .ok_or_else(|| Error::ManifestUnknown {
                        registry: reference.registry().to_owned(),
                        repository: reference.repository().to_owned(),
                        what,
                    })?
            }
        };
        let ask = Ask::new(
            Method::DELETE,
            Target::Path(format!("manifests/{digest}")),
            Access::Delete,
            What::Manifest(format!("manifest {digest}")),
        );
        let endpoints = self.endpoints(reference, Capability::Push)?;
        self.runtime
            .block_on(self.fetch_whole(&endpoints, &ask, DOCUMENT_LIMIT))?;
        Ok(digest)
    }

    /// All tags of the reference's repository, as the registry sorts them.
    ///
    /// # Errors
    /// [`Error`].
    pub fn tags(&self, reference: &Reference) -> Result<Vec<String>> {
        let endpoints = self.endpoints(reference, Capability::Resolve)?;
        let path = Target::Path(format!("tags/list?n={PAGE}"));
        let ask = Ask::new(Method::GET, path, Access::Pull, What::Tags);
        self.names(&endpoints, ask, |names| names.tags)
    }

    /// The repositories of a registry that shows them (distribution's `_catalog`).
    ///
    /// # Errors
    /// [`Error`].
    pub fn repositories(&self, registry: &str) -> Result<Vec<String>> {
        let reference = format!("{registry}/catalog").parse();
        let reference: Reference = reference.map_err(|_| Error::NotARegistry {
            registry: registry.to_owned(),
            what: "a name that is no host".to_owned(),
        })?;
        let endpoints = self.endpoints(&reference, Capability::Push)?;
        let path = Target::Root(format!("_catalog?n={PAGE}"));
        let ask = Ask::new(Method::GET, path, Access::Catalog, What::Search);
        self.names(&endpoints, ask, |names| names.repositories)
    }

    /// Follows the pages of a list.
    fn names(
        &self,
        endpoints: &[Endpoint],
        mut ask: Ask,
        part: impl Fn(Names) -> Option<Vec<String>>,
    ) -> Result<Vec<String>> {
        let mut all: Vec<String> = Vec::new();
        loop {
            let (answer, at) = self.runtime.block_on(self.fetch(endpoints, &ask))?;
            let registry = endpoints.get(at).map_or("", |e| e.registry.as_str());
            let uri = answer.uri.clone();
            let reading = self.read_whole(answer, registry, &ask.what, DOCUMENT_LIMIT);
            let (parts, bytes) = self.runtime.block_on(reading)?;
            let names: Names = serde_json::from_slice(&bytes).map_err(|cause| Error::Answer {
                registry: registry.to_owned(),
                what: ask.what.to_string(),
                cause,
            })?;
            let names = part(names).unwrap_or_default();
            let is_empty = names.is_empty();
            all.extend(names);
            if all.len() > NAMES {
                return Err(too_large(registry, ask.what.to_string(), NAMES as u64));
            }
            match next_page(&parts).and_then(|link| follow(&uri, &link)) {
                // A page that leads to itself must not be followed for ever.
                Some(next) if !is_empty && next != uri => ask.target = Target::Url(next),
                _ => return Ok(all),
            }
        }
    }

    /// What refers to the manifest with the reference's digest (distribution-spec, "Listing
    /// Referrers"), by the tag scheme where the registry does not know them.
    ///
    /// # Errors
    /// [`Error`].
    pub fn referrers(&self, reference: &Reference, artifact_type: Option<&str>) -> Result<Index> {
        let digest = match reference.digest() {
            Some(digest) => digest,
            None => self.manifest(reference)?.digest,
        };
        let mut path = format!("referrers/{digest}");
        if let Some(wanted) = artifact_type {
            path.push_str("?artifactType=");
            encode_query(wanted, &mut path);
        }
        let endpoints = self.endpoints(reference, Capability::Pull)?;
        let what = What::Referrers(digest);
        let ask = Ask::get(path, media_type::OCI_INDEX, what.clone());
        let fetched = self
            .runtime
            .block_on(self.fetch_whole(&endpoints, &ask, DOCUMENT_LIMIT));
        let (parts, bytes, at) = match fetched {
            Err(error) if error.is_absence() => {
                let tag = format!("sha256-{}", digest.hex());
                let ask = Ask::get(format!("manifests/{tag}"), media_type::OCI_INDEX, what)
                    .with(ACCEPT, media_type::DOCKER_LIST);
                let fallback =
                    self.runtime
                        .block_on(self.fetch_whole(&endpoints, &ask, DOCUMENT_LIMIT));
                match fallback {
                    Err(error) if error.is_absence() => return Ok(empty_index()),
                    fetched => fetched?,
                }
            }
            fetched => fetched?,
        };
        let registry = endpoints.get(at).map_or("", |e| e.registry.as_str());
        let what = ask.what.to_string();
        let Document::Index(mut index) = parse(registry, &what, &parts, &bytes)? else {
            return Err(Error::NotARegistry {
                registry: registry.to_owned(),
                what: "an image in place of a list of referrers".to_owned(),
            });
        };
        // A registry may leave the choice to who asks, and a tag always does.
        if let Some(wanted) = artifact_type {
            let types: Types = serde_json::from_slice(&bytes).map_err(|cause| Error::Answer {
                registry: registry.to_owned(),
                what,
                cause,
            })?;
            let mut types = types.manifests.iter();
            index.manifests.retain(|_| {
                let found = types
                    .next()
                    .and_then(|entry| entry.artifact_type.as_deref());
                found == Some(wanted)
            });
        }
        Ok(index)
    }

    async fn fetch_manifest(&self, reference: &Reference) -> Result<Fetched> {
        let (name, what) = name_of(reference);
        let ask = Ask::get(
            format!("manifests/{name}"),
            &ACCEPTED.join(", "),
            What::Manifest(what.clone()),
        );
        let endpoints = self.endpoints(reference, resolving(reference))?;
        let mut first = 0;
        loop {
            let rest = endpoints.get(first..).unwrap_or_default();
            let (parts, bytes, at) = self.fetch_whole(rest, &ask, DOCUMENT_LIMIT).await?;
            let registry = rest.get(at).map_or("", |e| e.registry.as_str());
            match check(registry, reference, &what, &parts, &bytes) {
                // A mirror with wrong bytes is as good as none.
                Err(error) if at + 1 < rest.len() => {
                    self.next(&error, rest, at);
                    first += at + 1;
                }
                checked => return checked,
            }
        }
    }
}

fn check(
    registry: &str,
    reference: &Reference,
    what: &str,
    parts: &Parts,
    bytes: &[u8],
) -> Result<Fetched> {
    let announced: Option<Digest> = header(parts, "docker-content-digest").parse().ok();
    let mut digest = digest_of(bytes);
    for expected in reference.digest().into_iter().chain(announced) {
        digest = check_digest(registry, what.to_owned(), expected, bytes)?;
    }
    let document = parse(registry, what, parts, bytes)?;
    let said = match &document {
        Document::Manifest(manifest) => manifest.media_type.clone(),
        Document::Index(index) => index.media_type.clone(),
    };
    let sent = header(parts, CONTENT_TYPE);
    let usual = match &document {
        Document::Manifest(_) => media_type::OCI_MANIFEST,
        Document::Index(_) => media_type::OCI_INDEX,
    };
    let sent = sent.split(';').next().unwrap_or_default().trim();
    let media_type = said.unwrap_or_else(|| match ACCEPTED.contains(&sent) {
        true => sent.to_owned(),
        false => usual.to_owned(),
    });
    Ok(Fetched {
        bytes: bytes.to_vec(),
        digest,
        media_type,
        document,
    })
}

fn parse(registry: &str, what: &str, parts: &Parts, bytes: &[u8]) -> Result<Document> {
    let content_type = header(parts, CONTENT_TYPE);
    if content_type.starts_with("text/html") {
        return Err(Error::NotARegistry {
            registry: registry.to_owned(),
            what: "a web page".to_owned(),
        });
    }
    Document::parse(bytes, &content_type).map_err(|cause| Error::Manifest {
        registry: registry.to_owned(),
        what: what.to_owned(),
        cause,
    })
}

fn empty_index() -> Index {
    Index {
        schema_version: 2,
        media_type: Some(media_type::OCI_INDEX.to_owned()),
        manifests: Vec::new(),
        annotations: std::collections::BTreeMap::new(),
    }
}

/// The URL of `Link: <…>; rel="next"` (RFC 8288).
fn next_page(parts: &Parts) -> Option<String> {
    let link = header(parts, LINK);
    let (url, rest) = link.strip_prefix('<')?.split_once('>')?;
    rest.replace([' ', '"'], "")
        .split(';')
        .any(|parameter| parameter == "rel=next")
        .then(|| url.to_owned())
}

pub(crate) fn digest_of(bytes: &[u8]) -> Digest {
    let mut context = Hashing::default();
    context.update(bytes);
    context.finish()
}

/// A running SHA-256.
pub(crate) struct Hashing(aws_lc_rs::digest::Context);

impl Default for Hashing {
    fn default() -> Self {
        Self(aws_lc_rs::digest::Context::new(&aws_lc_rs::digest::SHA256))
    }
}

impl Hashing {
    pub(crate) fn update(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }

    pub(crate) fn finish(self) -> Digest {
        let mut raw = [0u8; 32];
        for (to, from) in raw.iter_mut().zip(self.0.finish().as_ref()) {
            *to = *from;
        }
        Digest::from_bytes(raw)
    }
}

pub(crate) fn check_digest(
    registry: &str,
    what: String,
    expected: Digest,
    bytes: &[u8],
) -> Result<Digest> {
    let got = digest_of(bytes);
    if got == expected {
        return Ok(got);
    }
    Err(Error::Mismatch {
        registry: registry.to_owned(),
        what,
        expected,
        got,
    })
}
