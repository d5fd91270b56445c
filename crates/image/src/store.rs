//! The store's front.

use std::io::Read;
use std::path::{Path, PathBuf};

use knarr_spec::{Digest, Platform, Reference};

use crate::{Image, ImageId, Listed, Progress, Removed, Result, User};

/// The images below a data root. Cheap to open: nothing is read until asked.
#[derive(Debug)]
pub struct Store {
    root: PathBuf,
}

/// Keeps an image from being removed while it lives (shared `flock` on the image's folder).
#[derive(Debug)]
pub struct Hold {
    #[allow(dead_code, reason = "held for its drop")]
    file: std::fs::File,
}

/// When a name is looked up at the registry.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum PullPolicy {
    /// Only when the store lacks it.
    #[default]
    Missing,
    /// Before every use.
    Always,
    /// Not at all.
    Never,
}

/// How to pull.
#[derive(Debug, Clone, Default)]
pub struct PullOptions {
    /// Which image of a multi-platform index; the host's by default.
    pub platform: Option<Platform>,
    /// Credentials, certificates, plain http: how registries are reached.
    pub registry: knarr_distribution::Settings,
}

/// What a pull brought.
#[derive(Debug, Clone, PartialEq)]
pub struct Pulled {
    /// The image.
    pub image: Image,
    /// The digest the registry has for the reference (of the index, where it is one).
    pub digest: Digest,
    /// Whether the name meant another image before, or nothing (`Downloaded newer image`).
    pub newer: bool,
}

/// Where an archive comes from.
pub enum Source<'a> {
    /// A file, or the folder of an OCI layout.
    Path(&'a Path),
    /// A stream, such as standard input.
    Stream(&'a mut (dyn Read + Send)),
}

impl std::fmt::Debug for Source<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Path(path) => f.debug_tuple("Path").field(path).finish(),
            Self::Stream(_) => f.write_str("Stream"),
        }
    }
}

/// An image that `load` brought.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Loaded {
    /// Its id (`Loaded image ID: sha256:…` where it has no names).
    pub id: ImageId,
    /// Its names (`Loaded image: name` each).
    pub names: Vec<Reference>,
}

/// How to import a root file system.
#[derive(Debug, Clone, Default)]
pub struct ImportOptions {
    /// The name the image gets.
    pub reference: Option<Reference>,
    /// Dockerfile instructions (`CMD ["sh"]`) applied to its configuration.
    pub changes: Vec<String>,
    /// The comment in its history.
    pub message: Option<String>,
    /// What it is for; the host's platform by default.
    pub platform: Option<Platform>,
}

/// The archive format of [`Store::save`].
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum SaveFormat {
    /// `docker save`'s.
    #[default]
    Docker,
    /// An OCI image layout in a tar.
    Oci,
}

/// The images of a store, and what of it is damaged.
#[derive(Debug, Default)]
pub struct Listing {
    /// Newest first, as `docker images` sorts.
    pub images: Vec<Listed>,
    /// Objects that could not be read; the rest is unaffected.
    pub damaged: Vec<crate::Error>,
}

impl Store {
    /// Opens the store below `data_root`, making its folders where they are missing.
    ///
    /// # Errors
    /// When the folders cannot be made.
    pub fn open(data_root: &Path, run_root: &Path) -> Result<Self> {
        let _ = run_root;
        Ok(Self {
            root: data_root.to_owned(),
        })
    }

    /// The image that `name` means: `name[:tag]`, `name@digest`, or an id or a prefix of one.
    /// Three small files are read.
    ///
    /// # Errors
    /// `NotFound` with near names, `Ambiguous` for a prefix of several ids.
    pub fn resolve(&self, name: &str) -> Result<Image> {
        let _ = (name, &self.root);
        todo!()
    }

    /// [`resolve`](Self::resolve), and a shared lock that keeps the image until it is dropped.
    /// Take it before writing `container.json`, drop it after.
    ///
    /// # Errors
    /// As [`resolve`](Self::resolve).
    pub fn resolve_and_hold(&self, name: &str) -> Result<(Image, Hold)> {
        let _ = name;
        todo!()
    }

    /// The image with this id, also one that `rmi --force` took away under a stopped container.
    ///
    /// # Errors
    /// `NotFound`, or what reading it gave.
    pub fn get(&self, id: ImageId) -> Result<Image> {
        let _ = id;
        todo!()
    }

    /// The names of an image.
    ///
    /// # Errors
    /// When the store's folders cannot be read.
    pub fn describe(&self, image: Image) -> Result<Listed> {
        let _ = image;
        todo!()
    }

    /// The exact bytes of the image's configuration.
    ///
    /// # Errors
    /// When the blob is missing or damaged.
    pub fn config_bytes(&self, id: ImageId) -> Result<Vec<u8>> {
        let _ = id;
        todo!()
    }

    /// All images with their names.
    ///
    /// # Errors
    /// When the store itself cannot be read; a damaged image is in [`Listing::damaged`].
    pub fn list(&self) -> Result<Listing> {
        todo!()
    }

    /// `pull`: fetches `reference`, all layers at once. Joins every thread before it returns.
    ///
    /// # Errors
    /// The registry's, or the store's; nothing half-made stays.
    pub fn pull(
        &self,
        reference: &Reference,
        options: &PullOptions,
        progress: &dyn Progress,
    ) -> Result<Pulled> {
        let _ = (reference, options, progress);
        todo!()
    }

    /// What `run` and `create` need: the image of that name, pulled where `policy` says so (also
    /// when the one here is for another platform than asked), and held.
    ///
    /// # Errors
    /// As [`resolve`](Self::resolve) and [`pull`](Self::pull).
    pub fn obtain(
        &self,
        name: &str,
        policy: PullPolicy,
        options: &PullOptions,
        progress: &dyn Progress,
    ) -> Result<(Image, Hold)> {
        let _ = (name, policy, options, progress);
        todo!()
    }

    /// `load`: docker-archive, oci-archive or the folder of an OCI layout; gzip, zstd or plain.
    /// `platform` picks from multi-platform indexes.
    ///
    /// # Errors
    /// A damaged or lying archive, or the store's; nothing half-made stays.
    pub fn load(
        &self,
        source: Source<'_>,
        platform: Option<&Platform>,
        progress: &dyn Progress,
    ) -> Result<Vec<Loaded>> {
        let _ = (source, platform, progress);
        todo!()
    }

    /// `import`: makes an image of a root file system tar.
    ///
    /// # Errors
    /// A damaged tar, a wrong change, or the store's.
    pub fn import(
        &self,
        source: Source<'_>,
        options: &ImportOptions,
        progress: &dyn Progress,
    ) -> Result<Image> {
        let _ = (source, options, progress);
        todo!()
    }

    /// `save`: writes images with their names into one archive.
    ///
    /// # Errors
    /// Names that mean nothing, damaged blobs, or the writer's.
    pub fn save(
        &self,
        names: &[String],
        format: SaveFormat,
        out: &mut dyn std::io::Write,
    ) -> Result<()> {
        let _ = (names, format, out);
        todo!()
    }

    /// `tag`: gives the image another name.
    ///
    /// # Errors
    /// As [`resolve`](Self::resolve); `Invalid` for a target with a digest.
    pub fn tag(&self, source: &str, target: &Reference) -> Result<()> {
        let _ = (source, target);
        todo!()
    }

    /// `rmi`: by Docker's rules removes a name, or the image with its last name. `users` lists the
    /// containers (stopped ones too) made from an image; it is called while the image is locked.
    /// Where `force` removes an image that a stopped container still needs, it vanishes from lists
    /// but its layers stay until [`release`](Self::release).
    ///
    /// # Errors
    /// `Conflict` in Docker's words, `NotFound`.
    pub fn remove(
        &self,
        name: &str,
        force: bool,
        users: &dyn Fn(ImageId) -> Vec<User>,
    ) -> Result<Vec<Removed>> {
        let _ = (name, force, users);
        todo!()
    }

    /// To be called after a container is removed: frees its image if `rmi --force` left it for
    /// that container. One `stat` where there is nothing to do.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub fn release(&self, id: ImageId, users: &dyn Fn(ImageId) -> Vec<User>) -> Result<()> {
        let _ = (id, users);
        todo!()
    }
}
