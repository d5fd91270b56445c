//! What makes an image exist: `images/<hex of its id>/image.json`.

use std::path::{Path, PathBuf};

use knarr_fs::{Durability, Lock, TempDir, failpoint};
use knarr_spec::image::ImageConfig;
use knarr_spec::{Digest, Platform};
use serde::{Deserialize, Serialize};

use crate::{Error, Image, ImageId, LayerId, Result};

const FILE: &str = "image.json";
const LOCK: &str = "lock";
/// Marks an image that `rmi --force` removed while a stopped container still needs its layers.
const REMOVED: &str = "removed";
const VERSION: u32 = 1;

/// The folder `images/`.
#[derive(Debug, Clone)]
pub(crate) struct Records {
    root: PathBuf,
}

/// The file. It repeats the configuration so that a start reads one file; everything in it can be
/// made again from the manifest and the layers.
#[derive(Serialize, Deserialize)]
struct File<C> {
    version: u32,
    manifest: Digest,
    /// Bottom first.
    layers: Vec<LayerId>,
    /// Bytes of all layers.
    size: u64,
    /// Seconds since 1970 when it was stored.
    stored: u64,
    config: C,
}

/// An image and what only the store needs to know.
#[derive(Debug, Clone)]
pub(crate) struct Record {
    pub(crate) image: Image,
    /// Whether only a stopped container keeps it.
    pub(crate) removed: bool,
    pub(crate) stored: u64,
}

/// A version of a record: inode and time of its last change.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Stamp(u64, i64, i64);

/// What a new record is made of.
pub(crate) struct NewRecord<'a> {
    pub(crate) id: ImageId,
    pub(crate) manifest: Digest,
    pub(crate) config: &'a [u8],
    pub(crate) layers: Vec<LayerId>,
    pub(crate) size: u64,
}

impl Records {
    pub(crate) fn below(data_root: &Path) -> Self {
        Self {
            root: data_root.join("images"),
        }
    }

    pub(crate) fn folder(&self, id: ImageId) -> PathBuf {
        self.root.join(id.digest().hex())
    }

    /// The image, hidden ones too; `None` where there is none.
    pub(crate) fn read(&self, id: ImageId) -> Result<Option<Record>> {
        let folder = self.folder(id);
        let path = folder.join(FILE);
        let bytes = match knarr_fs::read(&path) {
            Ok(bytes) => bytes,
            Err(error) if error.is_not_found() => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        let damaged = |cause| Error::Record {
            id,
            path: path.clone(),
            cause,
        };
        let file: File<ImageConfig> = match serde_json::from_slice(&bytes) {
            Ok(file) => file,
            Err(cause) => {
                // A later format may have other fields.
                let version: Result<Version, _> = serde_json::from_slice(&bytes);
                return Err(match version {
                    Ok(Version { version }) if version > VERSION => Error::Version { id, version },
                    _ => damaged(cause),
                });
            }
        };
        if file.version != VERSION {
            let version = file.version;
            return Err(Error::Version { id, version });
        }
        let image = Image {
            id,
            manifest: file.manifest,
            platform: platform_of(&file.config),
            config: file.config,
            layers: file.layers,
            size: file.size,
        };
        Ok(Some(Record {
            image,
            removed: folder.join(REMOVED).exists(),
            stored: file.stored,
        }))
    }

    /// Tells one version of a record from another; `None` where there is none.
    pub(crate) fn stamp(&self, id: ImageId) -> Result<Option<Stamp>> {
        use std::os::unix::fs::MetadataExt as _;
        let path = self.folder(id).join(FILE);
        match std::fs::metadata(&path) {
            Ok(file) => Ok(Some(Stamp(file.ino(), file.ctime(), file.ctime_nsec()))),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(knarr_fs::Error::of_io("stat", "stat", &path)(error).into()),
        }
    }

    /// Whether there is such an image, hidden or not.
    pub(crate) fn exists(&self, id: ImageId) -> bool {
        self.folder(id).join(FILE).exists()
    }

    /// The exact bytes of the configuration, as the record repeats them.
    pub(crate) fn config(&self, id: ImageId) -> Result<Vec<u8>> {
        let path = self.folder(id).join(FILE);
        let bytes = knarr_fs::read(&path)?;
        let file: File<Box<serde_json::value::RawValue>> =
            serde_json::from_slice(&bytes).map_err(|cause| Error::Record { id, path, cause })?;
        Ok(file.config.get().as_bytes().to_vec())
    }

    /// The ids of all images, hidden ones too.
    pub(crate) fn ids(&self) -> Result<Vec<ImageId>> {
        Ok(knarr_fs::file_names(&self.root)?
            .iter()
            .filter_map(|name| Digest::from_hex(name.to_str()?).ok())
            .map(ImageId::from)
            .collect())
    }

    /// A shared lock; `None` where there is no such image.
    pub(crate) fn hold(&self, id: ImageId) -> Result<Option<Lock>> {
        present(Lock::shared(&self.folder(id).join(LOCK)))
    }

    /// An exclusive lock; `None` where there is no such image.
    pub(crate) fn lock(&self, id: ImageId) -> Result<Option<Lock>> {
        present(Lock::exclusive(&self.folder(id).join(LOCK)))
    }

    /// An exclusive lock if nobody has one; `None` also where there is no such image.
    pub(crate) fn try_lock(&self, id: ImageId) -> Result<Option<Lock>> {
        let path = self.folder(id).join(LOCK);
        Ok(present(Lock::try_exclusive(&path))?.flatten())
    }

    /// Makes the image exist, durably, or brings one back that was hidden; gives a hold on it.
    pub(crate) fn publish(&self, new: &NewRecord<'_>) -> Result<Lock> {
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
        let config: Box<serde_json::value::RawValue> =
            serde_json::from_slice(new.config).map_err(|cause| Error::Config {
                name: new.id.to_string(),
                cause,
            })?;
        let file = File {
            version: VERSION,
            manifest: new.manifest,
            layers: new.layers.clone(),
            size: new.size,
            stored: now.map(|now| now.as_secs()).unwrap_or_default(),
            config,
        };
        let bytes = serde_json::to_vec(&file).map_err(|cause| Error::Record {
            id: new.id,
            path: self.folder(new.id).join(FILE),
            cause,
        })?;
        loop {
            if let Some(hold) = self.hold(new.id)? {
                let same = matches!(self.read(new.id), Ok(Some(record))
                    if record.image.layers == new.layers && record.image.manifest == new.manifest);
                if !same {
                    // Another manifest of the same configuration, or a damaged record.
                    let path = self.folder(new.id).join(FILE);
                    knarr_fs::write_atomic(&path, &bytes, Durability::Durable)?;
                }
                knarr_fs::remove_file(&self.folder(new.id).join(REMOVED))?;
                return Ok(hold);
            }
            knarr_fs::create_dir_all_durable(&self.root)?;
            let (folder, held) = TempDir::new_held_in(&self.root)?;
            knarr_fs::write_atomic(&folder.path().join(FILE), &bytes, Durability::Durable)?;
            failpoint!("image.written");
            match folder.publish(&self.folder(new.id), Durability::Durable) {
                Err(error) if exists(&error) => {}
                published => published?,
            }
            failpoint!("image.published");
            drop(held);
        }
    }

    /// Hides the image, durably: the one step of a removal that cannot be taken back. Its layers
    /// stay for the containers that have them.
    pub(crate) fn hide(&self, _lock: &Lock, id: ImageId) -> Result<()> {
        let folder = self.folder(id);
        // An empty file has no data to sync, only its name, which comes in one step.
        knarr_fs::create_empty(&folder.join(REMOVED))?;
        Ok(knarr_fs::sync_dir(&folder)?)
    }

    pub(crate) fn is_hidden(&self, id: ImageId) -> bool {
        self.folder(id).join(REMOVED).exists()
    }

    /// Throws a hidden image away; who waits for its lock then finds nothing.
    pub(crate) fn remove(&self, _lock: Lock, id: ImageId, trash: &knarr_fs::Trash) -> Result<()> {
        trash.throw(&self.folder(id))?;
        failpoint!("image.removed");
        Ok(())
    }

    /// Removes what killed writers left.
    pub(crate) fn sweep(&self) -> Result<()> {
        knarr_fs::sweep(&self.root)?;
        Ok(())
    }
}

#[derive(Deserialize)]
struct Version {
    version: u32,
}

/// What a configuration says it is for.
pub(crate) fn platform_of(config: &ImageConfig) -> Platform {
    Platform {
        architecture: config.architecture.clone(),
        os: config.os.clone(),
        variant: config.variant.clone(),
        os_version: None,
    }
}

fn present<T>(lock: knarr_fs::Result<T>) -> Result<Option<T>> {
    match lock {
        Ok(lock) => Ok(Some(lock)),
        Err(error) if error.is_not_found() => Ok(None),
        Err(error) => Err(error.into()),
    }
}

fn exists(error: &knarr_fs::Error) -> bool {
    error.is_exists() || error.errno() == Some(rustix::io::Errno::NOTEMPTY)
}
