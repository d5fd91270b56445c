//! The store's front.

use std::io::Read;
use std::path::{Path, PathBuf};

use knarr_fs::{Durability, Lock, Trash, failpoint};
use knarr_spec::image::ImageConfig;
use knarr_spec::manifest::DOCUMENT_LIMIT;
use knarr_spec::{Digest, Platform, Reference};

use crate::announce::Announce;
use crate::assemble::{Assembled, Context};
use crate::names::{AllNames, Meaning, Names};
use crate::record::{NewRecord, Record, Records};
use crate::trust::Trust;
use crate::{Error, Image, ImageId, Listed, Progress, Result, near};

/// The images below a data root. Cheap to open: nothing is read until asked.
#[derive(Debug, Clone)]
pub struct Store {
    pub(crate) data_root: PathBuf,
    pub(crate) run_root: PathBuf,
    pub(crate) blobs: knarr_cas::Store,
    pub(crate) layers: knarr_layer::Store,
    pub(crate) names: Names,
    pub(crate) records: Records,
    pub(crate) announce: Announce,
    pub(crate) trust: Trust,
}

/// Keeps an image from being removed while it lives (a shared `flock` in the image's folder).
#[derive(Debug)]
pub struct Hold {
    _lock: Lock,
}

impl Hold {
    pub(crate) fn of(lock: Lock) -> Self {
        Self { _lock: lock }
    }
}

/// What a pull, load or import has made, about to become an image.
pub(crate) struct NewImage<'a> {
    pub(crate) manifest: &'a [u8],
    pub(crate) config: &'a [u8],
    pub(crate) assembled: &'a Assembled,
    pub(crate) names: &'a [Reference],
    /// The index that the names mean the whole of.
    pub(crate) index: Option<Digest>,
}

/// What became of it.
pub(crate) struct Stored {
    pub(crate) image: Image,
    /// Whether its first name meant another image before, or nothing.
    pub(crate) newer: bool,
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
    /// The whole of a multi-platform index: all its images, and what else is in it. `platform` is
    /// then the one that the name means where none is asked for.
    pub all_platforms: bool,
    /// Keeps the compressed blobs too, so that a push has the same digests.
    pub keep_blobs: bool,
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
    /// An open file; one that can seek is read in place, as if by its path.
    File(std::fs::File),
    /// Any other stream.
    Stream(&'a mut (dyn Read + Send)),
}

impl std::fmt::Debug for Source<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Path(path) => f.debug_tuple("Path").field(path).finish(),
            Self::File(file) => f.debug_tuple("File").field(file).finish(),
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
        Ok(Self {
            data_root: data_root.to_owned(),
            run_root: run_root.to_owned(),
            blobs: knarr_cas::Store::open(data_root)?,
            layers: knarr_layer::Store::open(data_root),
            names: Names::below(data_root),
            records: Records::below(data_root),
            announce: Announce::default(),
            trust: Trust::default(),
        })
    }

    /// Has `tell` called with everything that happens to images: the action, the image's id (or a
    /// name, of `pull` and `push`), and the name in question.
    #[must_use]
    pub fn announcing(self, tell: impl Fn(&str, &str, &str) + Send + Sync + 'static) -> Self {
        Self {
            announce: Announce::to(tell),
            ..self
        }
    }

    /// Has a file decide which images are let in, in the place of `KNARR_SIGNATURE_POLICY`, the
    /// user's `~/.config/containers/policy.json` and the system's `/etc/containers/policy.json`.
    #[must_use]
    pub fn with_policy(self, policy: PathBuf) -> Self {
        Self {
            trust: Trust {
                policy: Some(policy),
            },
            ..self
        }
    }

    /// The layers.
    pub fn layers(&self) -> &knarr_layer::Store {
        &self.layers
    }

    /// The image that `name` means: `name[:tag]`, `name@digest`, an id, or a prefix of one.
    /// A name costs two small file reads, an id one.
    ///
    /// # Errors
    /// `NotFound` with near names, `Ambiguous` for a prefix of several ids.
    pub fn resolve(&self, name: &str) -> Result<Image> {
        Ok(self.find(name)?.1)
    }

    /// [`resolve`](Self::resolve), and a shared lock that keeps the image until it is dropped.
    /// Take it before writing `container.json`, drop it after.
    ///
    /// # Errors
    /// As [`resolve`](Self::resolve).
    pub fn resolve_and_hold(&self, name: &str) -> Result<(Image, Hold)> {
        loop {
            let image = self.resolve(name)?;
            let Some(lock) = self.records.hold(image.id)? else {
                // Removed in between: what does the name mean now?
                continue;
            };
            // Now it cannot go away any more, unless it has.
            match self.records.read(image.id)? {
                Some(Record {
                    removed: false,
                    image,
                    ..
                }) => return Ok((image, Hold { _lock: lock })),
                _ => continue,
            }
        }
    }

    /// The image with this id, also one that `rmi --force` took away under a stopped container.
    ///
    /// # Errors
    /// `NotFound`, or what reading it gave.
    pub fn get(&self, id: ImageId) -> Result<Image> {
        match self.records.read(id)? {
            Some(record) => Ok(record.image),
            None => Err(Error::NotFound {
                name: id.to_string(),
                near: Vec::new(),
            }),
        }
    }

    /// The names of an image.
    ///
    /// # Errors
    /// When the store's folders cannot be read.
    pub fn describe(&self, image: Image) -> Result<Listed> {
        let names = self.names.all()?;
        let is_part = self.parts_of_indexes(&names)?.contains(&image.id);
        Ok(listed(image, &names, is_part))
    }

    /// The exact bytes of the image's configuration.
    ///
    /// # Errors
    /// When the blob is missing or damaged.
    pub fn config_bytes(&self, id: ImageId) -> Result<Vec<u8>> {
        Ok(self.blobs.read(id.digest(), DOCUMENT_LIMIT)?)
    }

    /// The exact bytes of the image's manifest.
    ///
    /// # Errors
    /// When the blob is missing or damaged.
    pub fn manifest_bytes(&self, image: &Image) -> Result<Vec<u8>> {
        Ok(self.blobs.read(image.manifest, DOCUMENT_LIMIT)?)
    }

    /// All images with their names.
    ///
    /// # Errors
    /// When the store itself cannot be read; a damaged image is in [`Listing::damaged`].
    pub fn list(&self) -> Result<Listing> {
        let names = self.names.all()?;
        let parts = self.parts_of_indexes(&names)?;
        let mut listing = Listing::default();
        let mut found = Vec::new();
        for id in self.records.ids()? {
            match self.records.read(id) {
                Ok(Some(record)) if !record.removed => {
                    let created = record.image.config.created.as_deref();
                    let made = created.and_then(|text| text.parse::<jiff::Timestamp>().ok());
                    let key = (made, record.stored, id);
                    let is_part = parts.contains(&id);
                    found.push((key, listed(record.image, &names, is_part)));
                }
                Ok(_) => {}
                Err(error) => listing.damaged.push(error),
            }
        }
        found.sort_by(|(a, _), (b, _)| b.cmp(a));
        listing.images = found.into_iter().map(|(_, image)| image).collect();
        listing.damaged.extend(names.damaged);
        Ok(listing)
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
        let fits = |image: &Image| {
            let wanted = options.platform.as_ref();
            wanted.is_none_or(|wanted| image.platform.satisfies(wanted))
        };
        if policy != PullPolicy::Always {
            match self.resolve_meaning(name, options) {
                Ok((image, hold)) if fits(&image) => return Ok((image, hold)),
                Ok((image, _)) if policy == PullPolicy::Never => {
                    return Err(Error::Platform {
                        name: name.to_owned(),
                        wanted: Box::new(options.platform.clone().unwrap_or_default()),
                        actual: Box::new(image.platform),
                    });
                }
                Err(error @ Error::NotFound { .. }) if policy == PullPolicy::Never => {
                    return Err(error);
                }
                Ok(_) | Err(Error::NotFound { .. } | Error::Record { .. }) => {}
                Err(error) => return Err(error),
            }
        }
        let references = self.meanings(name, options)?;
        loop {
            let (_, pulled) = self.pull_first(&references, options, progress)?;
            // `rmi` may be faster than this call.
            if let Some(lock) = self.records.hold(pulled.image.id)? {
                return Ok((pulled.image, Hold { _lock: lock }));
            }
        }
    }

    /// What a name that is to be pulled may mean, by `registries.conf`.
    ///
    /// # Errors
    /// [`Error::Name`]; where the configuration is wrong.
    pub fn meanings(&self, name: &str, options: &PullOptions) -> Result<Vec<Reference>> {
        parse_name(name)?;
        let meanings = options.registry.qualify(name);
        meanings.map_err(|cause| Error::Pull {
            name: name.to_owned(),
            cause: Box::new(cause),
        })
    }

    /// The image of a name, also where it was pulled for what `registries.conf` says that it means;
    /// the one for the platform that is asked for, where the name has it.
    fn resolve_meaning(&self, name: &str, options: &PullOptions) -> Result<(Image, Hold)> {
        let resolve = |name: &str| match self.resolve_platform(name, options.platform.as_ref()) {
            Err(Error::Platform { .. }) => self.resolve_and_hold(name),
            found => found,
        };
        let found = resolve(name);
        if let Err(Error::NotFound { .. }) = found {
            for meaning in self.meanings(name, options)? {
                if let Ok(found) = resolve(&meaning.to_string()) {
                    return Ok(found);
                }
            }
        }
        found
    }

    /// `tag`: gives the image another name.
    ///
    /// # Errors
    /// As [`resolve`](Self::resolve); [`Error::TagWithDigest`].
    pub fn tag(&self, source: &str, target: &Reference) -> Result<()> {
        if target.digest().is_some() {
            return Err(Error::TagWithDigest {
                name: target.clone(),
            });
        }
        let (image, _hold) = self.resolve_and_hold(source)?;
        // A whole index has all its images under every name.
        let index = self.index_of(source)?;
        let names = std::slice::from_ref(target);
        self.name(names, Meaning::of(image.id, index))?;
        self.announce
            .image("tag", image.id, Some(target.familiar()));
        Ok(())
    }

    /// `untag`: takes names away from an image, all of them where `targets` is empty. The image
    /// stays. Gives the names that went.
    ///
    /// # Errors
    /// As [`resolve`](Self::resolve); [`Error::NotItsName`] before any name is taken.
    pub fn untag(&self, source: &str, targets: &[Reference]) -> Result<Vec<Reference>> {
        let (image, _hold) = self.resolve_and_hold(source)?;
        let lock = self.names.lock()?;
        let all = self.names.all()?;
        let names: Vec<Reference> = all.of(image.id).cloned().collect();
        if let Some(other) = targets.iter().find(|target| !names.contains(target)) {
            return Err(Error::NotItsName {
                name: Box::new(other.clone()),
                id: image.id,
            });
        }
        let gone = if targets.is_empty() {
            names
        } else {
            targets.to_vec()
        };
        for name in &gone {
            self.names.remove(&lock, name, Durability::Durable)?;
            self.announce
                .image("untag", image.id, Some(name.familiar()));
        }
        drop(lock);
        if gone.iter().any(|name| all.indexes.contains_key(name)) {
            self.collect()?;
        }
        Ok(gone)
    }

    /// Deletes what removals left in the trash. Takes as long as deleting takes: call it after the
    /// user has the answer.
    ///
    /// # Errors
    /// As unlinkat(2), after trying everything.
    pub fn empty_trash(&self) -> Result<()> {
        Ok(self.trash().empty()?)
    }

    pub(crate) fn trash(&self) -> Trash {
        Trash::below(&self.data_root)
    }

    pub(crate) fn context<'a>(&'a self, name: String, progress: &'a dyn Progress) -> Context<'a> {
        Context {
            layers: &self.layers,
            claims: self.run_root.join("claims"),
            progress,
            name,
        }
    }

    /// Makes an image of what is in the store, and names it.
    pub(crate) fn store_image(&self, new: &NewImage<'_>) -> Result<Stored> {
        // Held until the record says that they are needed.
        let (manifest, _manifest_hold) = self.blobs.put_and_hold(new.manifest)?;
        let (config, _config_hold) = self.blobs.put_and_hold(new.config)?;
        let id = ImageId::from(config);
        failpoint!("image.blobs-stored");
        if self.records.is_hidden(id) {
            // The names of a removal that was not finished must not come back with it.
            self.remove_names(id)?;
        }
        let hold = self.records.publish(&NewRecord {
            id,
            manifest,
            config: new.config,
            layers: new.assembled.ids(),
            size: new.assembled.size(),
        })?;
        let newer = self.name(new.names, Meaning::of(id, new.index))?;
        let image = self.get(id)?;
        drop(hold);
        Ok(Stored { image, newer })
    }

    /// Gives something names; whether the first one meant another image before, or none.
    pub(crate) fn name(&self, names: &[Reference], meaning: Meaning) -> Result<bool> {
        let (mut newer, mut replaced) = (false, false);
        if !names.is_empty() {
            let lock = self.names.lock()?;
            for (n, name) in names.iter().enumerate() {
                let had = self.names.meaning(name).ok().flatten();
                newer |= n == 0 && had.is_none_or(|had| had.image != meaning.image);
                let index = had.and_then(|had| had.index);
                replaced |= index.is_some() && index != meaning.index;
                self.names.write(&lock, name, meaning)?;
            }
        }
        if replaced {
            // Nobody else had the index; its images stay.
            self.collect()?;
        }
        Ok(newer)
    }

    /// [`store_image`](Self::store_image) of one that is made here, so that it has a configuration
    /// and a manifest of plain tars yet to be written; `label` is what messages call it.
    pub(crate) fn store_made(
        &self,
        config: &ImageConfig,
        assembled: &Assembled,
        name: Option<&Reference>,
        label: &str,
    ) -> Result<Image> {
        let unwritten = |cause| Error::Config {
            name: label.to_owned(),
            cause,
        };
        let config = serde_json::to_vec(config).map_err(unwritten)?;
        let tars = assembled.layers.iter().map(|l| (l.diff_id, l.size));
        let manifest = crate::load::plain_manifest(&config, tars).map_err(unwritten)?;
        let stored = self.store_image(&NewImage {
            manifest: &manifest,
            config: &config,
            assembled,
            names: name.map(std::slice::from_ref).unwrap_or_default(),
            index: None,
        })?;
        Ok(stored.image)
    }

    /// The name or id that `name` is, and its image.
    pub(crate) fn find(&self, name: &str) -> Result<(Named, Image)> {
        let visible = |id| {
            let record = self.records.read(id)?;
            Ok::<_, Error>(record.filter(|r| !r.removed).map(|r| r.image))
        };
        if let Ok(id) = name.parse::<ImageId>() {
            return match visible(id)? {
                Some(image) => Ok((Named::Id, image)),
                None => Err(self.not_found(name)),
            };
        }
        let reference = name.parse::<Reference>();
        if let Ok(reference) = &reference
            && let Some(id) = self.names.read(reference)?
            && let Some(image) = visible(id)?
        {
            return Ok((Named::Name(reference.clone()), image));
        }
        let prefix = name.strip_prefix("sha256:").unwrap_or(name);
        if is_hex(prefix) {
            let mut matches: Vec<ImageId> = self.records.ids()?;
            matches.retain(|id| id.digest().hex().starts_with(prefix));
            matches.retain(|id| !self.records.is_hidden(*id));
            match matches.as_slice() {
                [] => {}
                [id] => {
                    if let Some(image) = visible(*id)? {
                        return Ok((Named::Id, image));
                    }
                }
                _ => {
                    return Err(Error::Ambiguous {
                        prefix: name.to_owned(),
                        matches,
                    });
                }
            }
        }
        match reference {
            Ok(_) => Err(self.not_found(name)),
            Err(cause) => Err(Error::Name {
                name: name.to_owned(),
                cause,
            }),
        }
    }

    fn not_found(&self, name: &str) -> Error {
        let full = name
            .parse::<Reference>()
            .map_or_else(|_| name.to_owned(), |reference| reference.familiar());
        // Only to help: without the list there is no suggestion.
        let known = self.names.all().unwrap_or_default();
        let known = known.names.keys().filter(|name| name.digest().is_none());
        Error::NotFound {
            name: name.to_owned(),
            near: near::names(&full, known.map(Reference::familiar)),
        }
    }
}

/// How an image was named.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Named {
    Name(Reference),
    /// By its id or a prefix.
    Id,
}

fn listed(image: Image, names: &AllNames, is_part: bool) -> Listed {
    let (digests, tags): (Vec<Reference>, Vec<Reference>) = names
        .of(image.id)
        .cloned()
        .partition(|name: &Reference| name.digest().is_some());
    let is_part = is_part && tags.is_empty();
    Listed {
        image,
        tags,
        digests,
        is_part,
    }
}

pub(crate) fn parse_name(name: &str) -> Result<Reference> {
    name.parse().map_err(|cause| Error::Name {
        name: name.to_owned(),
        cause,
    })
}

fn is_hex(text: &str) -> bool {
    !text.is_empty()
        && text.len() <= 64
        && text
            .bytes()
            .all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
}
