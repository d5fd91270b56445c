//! What can go wrong with images.

use std::path::PathBuf;

use knarr_diag::{Class, Explain};
use knarr_spec::manifest::DocumentError;
use knarr_spec::{Digest, Platform, Reference, ReferenceError};

use crate::{ImageId, LayerId};

/// Why an image operation failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// No image of that name or id.
    #[error("no such image: {name}")]
    NotFound {
        /// What was asked for.
        name: String,
        /// Names in the store that look like it, best first.
        near: Vec<String>,
    },
    /// A prefix of several ids.
    #[error("image id prefix {prefix} is ambiguous: {}", ids(matches))]
    Ambiguous {
        /// What was asked for.
        prefix: String,
        /// What it may mean.
        matches: Vec<ImageId>,
    },
    /// Not an image's name.
    #[error("`{name}` is not the name of an image")]
    Name {
        /// What was given.
        name: String,
        /// Why not.
        #[source]
        cause: ReferenceError,
    },
    /// A name that cannot be given to an image.
    #[error("cannot tag an image as {name}: a tag cannot have a digest")]
    TagWithDigest {
        /// The name.
        name: Reference,
    },
    /// A name that means another image, or none.
    #[error("{} is not a name of image {}", name.familiar(), id.short())]
    NotItsName {
        /// The name.
        name: Box<Reference>,
        /// The image.
        id: ImageId,
    },
    /// The image is in use (Docker's words).
    #[error("conflict: unable to {what} ({}) - {why}", if *forceable { "must be forced" } else { "cannot be forced" })]
    Conflict {
        /// `delete 0123456789ab` or `remove repository reference "x"`.
        what: String,
        /// Whether `--force` does it.
        forceable: bool,
        /// By whom, or why.
        why: String,
    },
    /// The image is for another platform.
    #[error("image {name} is for {actual}, not for {wanted}")]
    Platform {
        /// The image.
        name: String,
        /// What was asked for.
        wanted: Box<Platform>,
        /// What it is for.
        actual: Box<Platform>,
    },
    /// No image of a multi-platform index fits.
    #[error("{name} has no image for {wanted}; it has {}", platforms(available))]
    NoPlatform {
        /// The index.
        name: String,
        /// What was asked for.
        wanted: Box<Platform>,
        /// What there is.
        available: Vec<Platform>,
    },
    /// Something else than an image of a file system.
    #[error("{name} is not a container image: {what}")]
    NotAnImage {
        /// What was asked for.
        name: String,
        /// What it is instead.
        what: String,
    },
    /// A file that says which images are trusted cannot be used.
    #[error("the policy file {} cannot be used: {why}", path.display())]
    Policy {
        /// The file.
        path: PathBuf,
        /// Where it is wrong.
        why: String,
    },
    /// The policy does not accept an image.
    #[error("image {name} is refused by {} ({scope}): {why}", policy.display())]
    Untrusted {
        /// The image.
        name: String,
        /// The policy's file.
        policy: PathBuf,
        /// Its scope that counts: `docker: reg.io/team`, `default`.
        scope: String,
        /// Why.
        why: String,
        /// What helps.
        hint: Option<&'static str>,
    },
    /// Something of a whole index was removed.
    #[error(
        "{name} is not whole any more: manifest {lacks} of its index, or the image, is not here"
    )]
    NotWhole {
        /// What the index is called.
        name: String,
        /// What it names.
        lacks: Digest,
    },
    /// Manifest and configuration disagree.
    #[error("the manifest of {name} lists {layers} layers but its configuration {diff_ids}")]
    LayerCount {
        /// The image.
        name: String,
        /// In the manifest.
        layers: usize,
        /// In the configuration.
        diff_ids: usize,
    },
    /// The configuration cannot be read.
    #[error("the configuration of {name} cannot be read")]
    Config {
        /// The image.
        name: String,
        /// Where it is wrong.
        #[source]
        cause: serde_json::Error,
    },
    /// The manifest cannot be used.
    #[error("the manifest of {name} cannot be used")]
    Manifest {
        /// The image.
        name: String,
        /// Why not.
        #[source]
        cause: DocumentError,
    },
    /// A layer's stream ends early or cannot be inflated.
    #[error("layer {layer} of {name} is damaged")]
    LayerStream {
        /// The image.
        name: String,
        /// The layer as its manifest or archive names it.
        layer: String,
        /// What the decompressor or the source said.
        #[source]
        cause: std::io::Error,
    },
    /// A layer's bytes are not what its manifest says.
    #[error("layer {layer} of {name} has wrong bytes: expected digest {expected}, got {got}")]
    LayerMismatch {
        /// The image.
        name: String,
        /// The layer.
        layer: String,
        /// What the manifest says.
        expected: Digest,
        /// What came.
        got: Digest,
    },
    /// A blob has more or fewer bytes than its manifest says.
    #[error("blob {blob} of {name} has {} bytes instead of {expected}", if got > expected { "more".to_owned() } else { got.to_string() })]
    NotItsSize {
        /// The image.
        name: String,
        /// The blob.
        blob: Digest,
        /// What the manifest says.
        expected: u64,
        /// What came, as far as it was read.
        got: u64,
    },
    /// Something that a place cannot hold.
    #[error("{what} is not supported")]
    Unsupported {
        /// What.
        what: String,
    },
    /// The layer store's part failed.
    #[error("cannot store layer {layer} of {name}")]
    Layer {
        /// The image.
        name: String,
        /// The layer.
        layer: String,
        /// Why.
        #[source]
        cause: knarr_layer::Error,
    },
    /// A layer vanished between looking and using.
    #[error("layer {layer} of {name} was removed meanwhile")]
    LayerGone {
        /// The image.
        name: String,
        /// The layer.
        layer: LayerId,
    },
    /// An archive is not what it should be.
    #[error("{archive} is not an image archive: {what}")]
    NotAnArchive {
        /// The archive.
        archive: String,
        /// What is wrong.
        what: String,
    },
    /// An archive's bytes cannot be read.
    #[error("cannot read {archive}")]
    ArchiveRead {
        /// The archive.
        archive: String,
        /// Why.
        #[source]
        cause: std::io::Error,
    },
    /// An archive is no readable tar.
    #[error("{archive} is not a readable tar")]
    ArchiveTar {
        /// The archive.
        archive: String,
        /// Why.
        #[source]
        cause: knarr_layer::tar::Error,
    },
    /// An archive lacks what its manifest names, or has other bytes.
    #[error("{archive} is damaged: {what}")]
    ArchiveDamaged {
        /// The archive.
        archive: String,
        /// What.
        what: String,
    },
    /// JSON in an archive cannot be read.
    #[error("{member} in {archive} cannot be read")]
    ArchiveJson {
        /// The archive.
        archive: String,
        /// The member.
        member: String,
        /// Where it is wrong.
        #[source]
        cause: serde_json::Error,
    },
    /// A `--change` that is not understood.
    #[error("invalid change `{change}`: {reason}")]
    Change {
        /// The instruction.
        change: String,
        /// Why not.
        reason: String,
    },
    /// A description in the store is damaged.
    #[error("image {id} is damaged: {} cannot be read", path.display())]
    Record {
        /// The image.
        id: ImageId,
        /// The file.
        path: PathBuf,
        /// Where it is wrong.
        #[source]
        cause: serde_json::Error,
    },
    /// A description that a later version wrote.
    #[error("image {id} was stored by a later version of Knarr (format {version})")]
    Version {
        /// The image.
        id: ImageId,
        /// The format.
        version: u32,
    },
    /// A name's file is damaged.
    #[error("the name {name} is damaged: {} does not hold an image's id", path.display())]
    NameFile {
        /// The name.
        name: String,
        /// The file.
        path: PathBuf,
    },
    /// The archive cannot be written.
    #[error("cannot write the archive")]
    Write(#[source] std::io::Error),
    /// A thread of a pull or load panicked.
    #[error("a worker stopped without a result")]
    Worker,
    /// Only names with tags can be given to images at a registry.
    #[error("cannot push to {name}: a digest is not chosen, it follows from the image")]
    PushByDigest {
        /// The name.
        name: knarr_spec::Reference,
    },
    /// The registry's part failed.
    #[error("cannot push {name}")]
    Push {
        /// The image.
        name: String,
        /// Why.
        #[source]
        cause: Box<knarr_distribution::Error>,
    },
    /// The registry's part failed.
    #[error("cannot pull {name}")]
    Pull {
        /// The image.
        name: String,
        /// Why.
        #[source]
        cause: Box<knarr_distribution::Error>,
    },
    /// No list of that name is being made.
    #[error("no such manifest list: {name}")]
    ListNotFound {
        /// What was asked for.
        name: String,
    },
    /// One of that name is being made.
    #[error("the manifest list {name} exists already")]
    ListExists {
        /// Its name.
        name: String,
    },
    /// The file of a list is damaged.
    #[error("the manifest list {name} cannot be read")]
    ListDamaged {
        /// Its name.
        name: String,
        /// Where it is wrong.
        #[source]
        cause: serde_json::Error,
    },
    /// Not one image of a list, but none or several.
    #[error("the manifest list has {count} images that {typed} may mean")]
    ListEntry {
        /// What was asked for.
        typed: String,
        /// How many.
        count: usize,
    },
    /// An entry of a list is itself a list.
    #[error("{name} is no image")]
    ListOfLists {
        /// The entry.
        name: String,
    },
    /// A file operation failed.
    #[error("cannot access the image store")]
    File(#[from] knarr_fs::Error),
    /// The blob store failed.
    #[error(transparent)]
    Blob(#[from] knarr_cas::Error),
    /// The layer store failed.
    #[error(transparent)]
    LayerStore(#[from] knarr_layer::Error),
}

/// The crate's result.
pub type Result<T, E = Error> = std::result::Result<T, E>;

fn ids(ids: &[ImageId]) -> String {
    let ids: Vec<String> = ids.iter().map(ImageId::short).collect();
    ids.join(", ")
}

fn platforms(platforms: &[Platform]) -> String {
    if platforms.is_empty() {
        return "none at all".to_owned();
    }
    let platforms: Vec<String> = platforms.iter().map(Platform::to_string).collect();
    platforms.join(", ")
}

impl Explain for Error {
    fn class(&self) -> Class {
        match self {
            Self::NotFound { .. }
            | Self::ListNotFound { .. }
            | Self::NotItsName { .. }
            | Self::NoPlatform { .. }
            | Self::NotWhole { .. }
            | Self::Platform { .. } => Class::NotFound,
            Self::Ambiguous { .. }
            | Self::Name { .. }
            | Self::TagWithDigest { .. }
            | Self::PushByDigest { .. }
            | Self::NotAnImage { .. }
            | Self::NotAnArchive { .. }
            | Self::Policy { .. }
            | Self::ListEntry { .. }
            | Self::ListOfLists { .. }
            | Self::Change { .. } => Class::Invalid,
            Self::Untrusted { .. } => Class::Denied,
            Self::ListExists { .. } => Class::Exists,
            Self::Conflict { .. } | Self::LayerGone { .. } => Class::Busy,
            Self::LayerCount { .. }
            | Self::Config { .. }
            | Self::Manifest { .. }
            | Self::LayerStream { .. }
            | Self::LayerMismatch { .. }
            | Self::NotItsSize { .. }
            | Self::ArchiveTar { .. }
            | Self::ArchiveDamaged { .. }
            | Self::ArchiveJson { .. }
            | Self::Record { .. }
            | Self::ListDamaged { .. }
            | Self::NameFile { .. } => Class::Corrupt,
            Self::Version { .. } | Self::Unsupported { .. } => Class::Unsupported,
            Self::ArchiveRead { cause, .. } | Self::Write(cause) => of_io(cause),
            Self::Worker => Class::Bug,
            Self::Layer { cause, .. } | Self::LayerStore(cause) => cause.class(),
            Self::Pull { cause, .. } | Self::Push { cause, .. } => cause.class(),
            Self::File(error) => error.class(),
            Self::Blob(error) => error.class(),
        }
    }

    fn code(&self) -> &'static str {
        match self {
            Self::NotFound { .. } => "image-not-found",
            Self::Ambiguous { .. } => "image-ambiguous",
            Self::Name { .. } => "image-name-invalid",
            Self::TagWithDigest { .. } => "tag-with-digest",
            Self::NotItsName { .. } => "image-name-not-found",
            Self::Conflict { .. } => "image-in-use",
            Self::Platform { .. } | Self::NoPlatform { .. } => "platform-not-found",
            Self::NotAnImage { .. } => "not-an-image",
            Self::NotWhole { .. } => "index-not-whole",
            Self::Policy { .. } => "policy-invalid",
            Self::Untrusted { .. } => "image-untrusted",
            Self::LayerCount { .. } | Self::Manifest { .. } => "manifest-invalid",
            Self::Config { .. } => "image-config-invalid",
            Self::LayerStream { .. } => "layer-stream-damaged",
            Self::LayerMismatch { .. } => "digest-mismatch",
            Self::NotItsSize { .. } => "size-mismatch",
            Self::Unsupported { .. } => "unsupported",
            Self::Layer { cause, .. } | Self::LayerStore(cause) => cause.code(),
            Self::LayerGone { .. } => "layer-gone",
            Self::NotAnArchive { .. } => "not-an-archive",
            Self::ArchiveRead { .. } => "archive-unreadable",
            Self::ArchiveTar { .. } | Self::ArchiveDamaged { .. } | Self::ArchiveJson { .. } => {
                "archive-damaged"
            }
            Self::Change { .. } => "change-invalid",
            Self::Record { .. } => "image-damaged",
            Self::Version { .. } => "image-version",
            Self::NameFile { .. } => "image-name-damaged",
            Self::Write(_) => "archive-not-written",
            Self::Worker => "worker-lost",
            Self::Pull { cause, .. } | Self::Push { cause, .. } => cause.code(),
            Self::PushByDigest { .. } => "push-by-digest",
            Self::ListNotFound { .. } => "manifest-list-not-found",
            Self::ListExists { .. } => "manifest-list-exists",
            Self::ListDamaged { .. } => "manifest-list-damaged",
            Self::ListEntry { .. } => "manifest-list-entry",
            Self::ListOfLists { .. } => "manifest-list-nested",
            Self::File(error) => error.code(),
            Self::Blob(error) => error.code(),
        }
    }

    fn hint(&self) -> Option<String> {
        match self {
            Self::NotFound { name, near } => Some(match near.as_slice() {
                [] => format!("`knarr pull {name}` fetches it, `knarr images` lists what is here"),
                near => format!("did you mean {}?", near.join(" or ")),
            }),
            Self::Ambiguous { .. } => Some("give more digits of the id".to_owned()),
            Self::Conflict {
                forceable: true, ..
            } => Some("add --force".to_owned()),
            Self::Conflict { .. } => Some("stop and remove the container first".to_owned()),
            Self::NoPlatform { available, .. } => available
                .first()
                .map(|platform| format!("choose one of them, such as --platform {platform}")),
            Self::LayerStream { .. } | Self::LayerMismatch { .. } | Self::ArchiveDamaged { .. } => {
                Some("nothing was stored; fetch or make the image again".to_owned())
            }
            Self::ArchiveTar { .. } => {
                Some("the file may be cut short; `knarr import` takes a plain root file system".to_owned())
            }
            Self::NotAnArchive { .. } => Some(
                "`knarr load` takes what `docker save`, `podman save` and `skopeo copy` write; `knarr import` takes a plain root file system"
                    .to_owned(),
            ),
            Self::Record { id, .. } => Some(format!(
                "`knarr rmi {}` removes it; pull or load it again",
                id.short()
            )),
            Self::NameFile { name, .. } => Some(format!("`knarr rmi {name}` removes the name")),
            Self::Untrusted { hint, .. } => hint.map(str::to_owned),
            Self::Policy { .. } => Some("containers-policy.json(5) says what may be in it".to_owned()),
            Self::NotWhole { name, .. } => Some(format!(
                "`knarr pull --all-platforms {name}` brings it again; --platform takes one image"
            )),
            Self::LayerGone { .. } => Some("try again".to_owned()),
            Self::Layer { cause, .. } | Self::LayerStore(cause) => cause.hint(),
            Self::ListNotFound { name } => {
                Some(format!("`knarr manifest create {name} IMAGE...` makes it"))
            }
            Self::ListExists { .. } => Some("add --amend".to_owned()),
            Self::ListDamaged { name, .. } => Some(format!("`knarr manifest rm {name}` removes it")),
            Self::ListEntry { .. } => Some(
                "name the image by its digest, which `knarr manifest inspect` shows".to_owned(),
            ),
            Self::ListOfLists { .. } => {
                Some("add the images of an index with `knarr manifest add --all`".to_owned())
            }
            Self::PushByDigest { .. } => Some("name a tag: `knarr push NAME:TAG`".to_owned()),
            Self::Pull { cause, .. } | Self::Push { cause, .. } => cause.hint(),
            Self::File(error) => error.hint(),
            Self::Blob(error) => error.hint(),
            _ => None,
        }
    }
}

fn of_io(error: &std::io::Error) -> Class {
    match error.kind() {
        std::io::ErrorKind::NotFound => Class::NotFound,
        std::io::ErrorKind::PermissionDenied => Class::Denied,
        std::io::ErrorKind::StorageFull => Class::Exhausted,
        std::io::ErrorKind::InvalidData | std::io::ErrorKind::UnexpectedEof => Class::Corrupt,
        _ => Class::Unavailable,
    }
}
