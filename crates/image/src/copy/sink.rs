//! Where a copy goes.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use knarr_distribution::Client;
use knarr_layer::TarWriter;
use knarr_spec::image::{Descriptor, ImageConfig, Index, Manifest, media_type};
use knarr_spec::manifest::{DOCUMENT_LIMIT, Document};
use knarr_spec::{Digest, Reference};
use rustix::fs::{FlockOperation, Mode, OFlags};

use super::source::Source;
use super::{CopyOptions, Location, Top};
use crate::inflate::{self, Failure, Hashing};
use crate::load;
use crate::save::{self, DockerImage};
use crate::{Error, Result, Store};

/// What a layout's `oci-layout` says (image-layout.md).
const LAYOUT_VERSION: &[u8] = b"{\"imageLayoutVersion\":\"1.0.0\"}";
/// What `version` in skopeo's folder says (containers/image, directory transport).
const FOLDER_VERSION: &[u8] = b"Directory Transport Version: 1.1\n";
/// What moves at once, in bytes.
const PIECE: usize = 512 << 10;

/// An open place.
pub(super) enum Sink<'a> {
    Layout {
        folder: PathBuf,
        name: Option<&'a str>,
    },
    LayoutArchive {
        tar: Mutex<Tar>,
        name: Option<&'a str>,
    },
    DockerArchive {
        store: &'a Store,
        tar: Mutex<Tar>,
        name: Option<&'a Reference>,
        image: Mutex<Image>,
    },
    Folder(PathBuf),
    Registry {
        store: &'a Store,
        client: Box<Client<'a>>,
        reference: &'a Reference,
    },
}

/// A scratch file from its start.
struct FromStart<'f> {
    file: &'f File,
    at: u64,
}

impl Read for FromStart<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.file.read_at(buffer, self.at)?;
        self.at += count as u64;
        Ok(count)
    }
}

/// Stores a manifest or index under a tag, or its digest.
fn put(client: &Client<'_>, reference: &Reference, top: &Top) -> Result<()> {
    let failed = |cause| refused(reference, cause);
    let session = client.session().map_err(failed)?;
    session
        .put_manifest(reference, &top.media_type, &top.bytes)
        .map_err(failed)?;
    Ok(())
}

fn refused(reference: &Reference, cause: knarr_distribution::Error) -> Error {
    Error::Push {
        name: reference.familiar(),
        cause: Box::new(cause),
    }
}

/// The one image of a docker-archive.
#[derive(Default)]
pub(super) struct Image {
    config: Option<Digest>,
    /// The blobs with their tars' digests, bottom first.
    layers: Vec<(Digest, Digest)>,
}

/// A blob that is there but for the last step, which follows when its digest is known to be right.
pub(super) struct Settled<'s>(Box<dyn FnOnce() -> Result<()> + 's>);

impl Settled<'_> {
    pub(super) fn keep(self) -> Result<()> {
        (self.0)()
    }
}

/// A tar beside its final name.
pub(super) struct Tar {
    writer: TarWriter<File>,
    written: BTreeSet<String>,
    target: Target,
}

/// A file that takes its name when it is whole; a device or pipe is written directly.
struct Target {
    path: PathBuf,
    temporary: Option<PathBuf>,
}

impl Drop for Target {
    fn drop(&mut self) {
        if let Some(temporary) = &self.temporary {
            // What it was for has failed, which is told.
            rustix::fs::unlink(temporary).ok();
        }
    }
}

impl Target {
    fn create(path: &Path) -> Result<(File, Self)> {
        let special = std::fs::metadata(path).is_ok_and(|metadata| !metadata.is_file());
        let mut target = Self {
            path: path.to_owned(),
            temporary: None,
        };
        let file = if special {
            let flags = OFlags::WRONLY | OFlags::CLOEXEC;
            rustix::fs::open(path, flags, Mode::empty())
                .map_err(knarr_fs::Error::of("open", "open", path))?
        } else {
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            let temporary = path.with_file_name(format!(".{name}.{}", random(path)?));
            let file = create(&temporary)?;
            target.temporary = Some(temporary);
            file
        };
        Ok((File::from(file), target))
    }

    fn publish(mut self) -> Result<()> {
        if let Some(temporary) = self.temporary.take() {
            knarr_fs::rename(&temporary, &self.path)?;
        }
        Ok(())
    }
}

/// A new file as any program makes one.
fn create(path: &Path) -> Result<std::os::fd::OwnedFd> {
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
    let opened = rustix::fs::open(path, flags, Mode::from_raw_mode(0o644));
    Ok(opened.map_err(knarr_fs::Error::of("create", "open", path))?)
}

fn random(path: &Path) -> Result<String> {
    let mut random = [0u8; 8];
    rustix::rand::getrandom(&mut random, rustix::rand::GetRandomFlags::empty()).map_err(
        knarr_fs::Error::of("get random bytes for", "getrandom", path),
    )?;
    Ok(format!("{:016x}", u64::from_ne_bytes(random)))
}

impl Tar {
    fn create(path: &Path) -> Result<Mutex<Self>> {
        let (file, target) = Target::create(path)?;
        Ok(Mutex::new(Self {
            writer: TarWriter::new(file),
            written: BTreeSet::new(),
            target,
        }))
    }

    fn file(&mut self, name: &str, mut bytes: &[u8]) -> Result<()> {
        let size = bytes.len() as u64;
        self.stream(name, &mut bytes, size)
    }

    fn stream(&mut self, name: &str, source: &mut dyn Read, size: u64) -> Result<()> {
        if self.written.insert(name.to_owned()) {
            let written = self.writer.file(name, source, size);
            written.map_err(save::of_the_writer)?;
        }
        Ok(())
    }

    fn finish(self) -> Result<()> {
        self.writer.finish().map_err(save::of_the_writer)?;
        self.target.publish()
    }
}

impl<'a> Sink<'a> {
    pub(super) fn open(
        store: &'a Store,
        location: &'a Location,
        options: &CopyOptions,
    ) -> Result<Self> {
        match location {
            Location::Layout { path, name } => {
                make_folder(&path.join("blobs/sha256"))?;
                Ok(Self::Layout {
                    folder: path.clone(),
                    name: name.as_deref(),
                })
            }
            Location::LayoutArchive { path, name } => {
                let tar = Tar::create(path)?;
                lock(&tar).file("oci-layout", LAYOUT_VERSION)?;
                Ok(Self::LayoutArchive {
                    tar,
                    name: name.as_deref(),
                })
            }
            Location::DockerArchive { path, name } => Ok(Self::DockerArchive {
                store,
                tar: Tar::create(path)?,
                name: name.as_ref(),
                image: Mutex::default(),
            }),
            Location::Folder(path) => {
                make_folder(path)?;
                Ok(Self::Folder(path.clone()))
            }
            Location::Registry(reference) => Ok(Self::Registry {
                store,
                client: Box::new(Client::new(options.to.clone())),
                reference,
            }),
            Location::Store(_) => Err(Error::Unsupported {
                what: format!("copying to {location}"),
            }),
        }
    }

    /// Whether several blobs may come at a time.
    pub(super) fn takes_several(&self) -> bool {
        matches!(
            self,
            Self::Layout { .. } | Self::Folder(_) | Self::Registry { .. }
        )
    }

    /// Refuses an index where only one image fits in.
    pub(super) fn takes_indexes(&self) -> Result<()> {
        match self {
            Self::DockerArchive { .. } => Err(Error::Unsupported {
                what: "a whole index in a docker-archive".to_owned(),
            }),
            _ => Ok(()),
        }
    }

    /// An image whose blobs follow.
    pub(super) fn image(&self, source: &Source<'_>, name: &str, manifest: &Manifest) -> Result<()> {
        let Self::DockerArchive { image, .. } = self else {
            return Ok(());
        };
        // Its tars are named by what they are uncompressed.
        let mut config = Vec::new();
        source.blob(&manifest.config, &mut |bytes| {
            let read = bytes.take(DOCUMENT_LIMIT).read_to_end(&mut config);
            read.map(drop).map_err(|cause| unreadable(name, cause))
        })?;
        let count = manifest.layers.len();
        let parsed: ImageConfig = crate::select::check_config(name, &config, count, None)?;
        let blobs = manifest.layers.iter().map(|layer| layer.digest);
        *lock(image) = Image {
            config: Some(manifest.config.digest),
            layers: blobs.zip(parsed.rootfs.diff_ids).collect(),
        };
        Ok(())
    }

    /// Whether a blob is here already, by name and size.
    pub(super) fn has(&self, descriptor: &Descriptor) -> Result<bool> {
        let path = match self {
            Self::Layout { folder, .. } => blob_path(folder, descriptor.digest),
            Self::Folder(folder) => folder.join(descriptor.digest.hex()),
            Self::LayoutArchive { .. } | Self::DockerArchive { .. } => return Ok(false),
            Self::Registry {
                client, reference, ..
            } => {
                let session = client
                    .session()
                    .map_err(|cause| refused(reference, cause))?;
                let there = session
                    .has_blob(reference, descriptor.digest)
                    .map_err(|cause| refused(reference, cause))?;
                return Ok(there == Some(descriptor.size));
            }
        };
        let size = std::fs::metadata(path).map(|metadata| metadata.len());
        Ok(size.is_ok_and(|size| size == descriptor.size))
    }

    /// Takes a blob's bytes; a tar's are in it at once, and an error spoils it whole.
    pub(super) fn blob(
        &self,
        descriptor: &Descriptor,
        bytes: &mut dyn Read,
    ) -> Result<Settled<'_>> {
        let digest = descriptor.digest;
        match self {
            Self::Layout { folder, .. } => keep_file(blob_path(folder, digest), bytes),
            Self::Folder(folder) => keep_file(folder.join(digest.hex()), bytes),
            Self::Registry {
                store,
                client,
                reference,
            } => {
                // An upload that breaks off has to be taken up again, and the source is read once.
                let mut scratch = store.blobs.scratch()?;
                inflate::pump(bytes, &mut scratch).map_err(|failure| match failure {
                    Failure::Sink(cause) => Error::Write(cause),
                    Failure::Source(cause) | Failure::Stream(cause, _) => {
                        unreadable(&digest.to_string(), cause)
                    }
                })?;
                Ok(Settled(Box::new(move || {
                    let session = client
                        .session()
                        .map_err(|cause| refused(reference, cause))?;
                    let mut open = || -> io::Result<Box<dyn Read>> {
                        Ok(Box::new(FromStart {
                            file: &scratch,
                            at: 0,
                        }))
                    };
                    session
                        .push_blob(reference, Some(digest), &mut open, &|_| {})
                        .map_err(|cause| refused(reference, cause))?;
                    Ok(())
                })))
            }
            Self::LayoutArchive { tar, .. } => {
                let name = load::member(digest);
                lock(tar).stream(&name, bytes, descriptor.size)?;
                // One byte more than announced is enough to tell that it is wrong.
                let more = bytes.read(&mut [0]);
                more.map_err(|cause| unreadable(&name, cause))?;
                Ok(Settled(Box::new(|| Ok(()))))
            }
            Self::DockerArchive {
                store, tar, image, ..
            } => {
                let (config, diff_id) = {
                    let image = lock(image);
                    let layer = image.layers.iter().find(|(blob, _)| *blob == digest);
                    (image.config, layer.map(|(_, diff_id)| *diff_id))
                };
                let name = match diff_id {
                    Some(diff_id) => format!("{}.tar", diff_id.hex()),
                    None if config == Some(digest) => format!("{}.json", digest.hex()),
                    None => digest.hex(),
                };
                let mut scratch = store.blobs.scratch()?;
                let copied = match diff_id {
                    Some(_) => inflate::copy(bytes, Hashing::Never, &mut scratch),
                    None => inflate::pump(bytes, &mut scratch)
                        .map(|()| inflate::Copied { digest: None }),
                };
                copied.map_err(|failure| match failure {
                    Failure::Sink(cause) => Error::Write(cause),
                    Failure::Source(cause) | Failure::Stream(cause, _) => {
                        unreadable(&digest.to_string(), cause)
                    }
                })?;
                Ok(Settled(Box::new(move || {
                    let size = scratch.metadata().map_err(Error::Write)?.len();
                    io::Seek::rewind(&mut scratch).map_err(Error::Write)?;
                    lock(tar).stream(&name, &mut scratch, size)
                })))
            }
        }
    }

    /// A manifest or index that another one names.
    pub(super) fn document(&self, top: &Top) -> Result<()> {
        let digest = top.digest();
        let write = |path| keep_file(path, &mut &top.bytes[..])?.keep();
        match self {
            Self::Layout { folder, .. } => write(blob_path(folder, digest)),
            Self::Folder(folder) => write(folder.join(format!("{}.manifest.json", digest.hex()))),
            Self::LayoutArchive { tar, .. } => lock(tar).file(&load::member(digest), &top.bytes),
            Self::DockerArchive { .. } => Ok(()),
            Self::Registry {
                client, reference, ..
            } => put(client, &reference.with_digest(digest), top),
        }
    }

    /// Everything is there: names it.
    pub(super) fn finish(self, top: &Top) -> Result<()> {
        match self {
            Self::Registry {
                ref client,
                reference,
                ..
            } => put(client, reference, top),
            Self::Layout { ref folder, name } => {
                self.document(top)?;
                // Two copies into one layout write its index one after the other.
                let alone =
                    File::open(folder).map_err(knarr_fs::Error::of_io("open", "open", folder))?;
                rustix::fs::flock(&alone, FlockOperation::LockExclusive)
                    .map_err(knarr_fs::Error::of("lock", "flock", folder))?;
                let path = folder.join("index.json");
                let before = match knarr_fs::read(&path) {
                    Ok(bytes) => Some(bytes),
                    Err(error) if error.is_not_found() => None,
                    Err(error) => return Err(error.into()),
                };
                let index = with_entry(folder, before, top, name)?;
                let version = folder.join("oci-layout");
                keep_file(version, &mut &LAYOUT_VERSION[..])?.keep()?;
                keep_file(path, &mut &index[..])?.keep()
            }
            Self::LayoutArchive { tar, name } => {
                let mut tar = tar.into_inner().unwrap_or_else(PoisonError::into_inner);
                tar.file(&load::member(top.digest()), &top.bytes)?;
                let index = with_entry(Path::new("index.json"), None, top, name)?;
                tar.file("index.json", &index)?;
                tar.finish()
            }
            Self::DockerArchive {
                tar, name, image, ..
            } => {
                let mut tar = tar.into_inner().unwrap_or_else(PoisonError::into_inner);
                let image = image.into_inner().unwrap_or_else(PoisonError::into_inner);
                let config = image.config.map(|digest| format!("{}.json", digest.hex()));
                let listed = vec![DockerImage {
                    config: config.unwrap_or_default(),
                    repo_tags: name.map(Reference::familiar).into_iter().collect(),
                    layers: image
                        .layers
                        .iter()
                        .map(|(_, diff_id)| format!("{}.tar", diff_id.hex()))
                        .collect(),
                }];
                let listed = serde_json::to_vec(&listed).map_err(save::unwritable)?;
                tar.file("manifest.json", &listed)?;
                tar.finish()
            }
            Self::Folder(ref folder) => {
                let version = folder.join("version");
                keep_file(version, &mut &FOLDER_VERSION[..])?.keep()?;
                keep_file(folder.join("manifest.json"), &mut &top.bytes[..])?.keep()
            }
        }
    }
}

/// A layout's index with one entry more, in the place of one of the same name.
fn with_entry(
    folder: &Path,
    before: Option<Vec<u8>>,
    top: &Top,
    name: Option<&str>,
) -> Result<Vec<u8>> {
    const NAME: &str = "org.opencontainers.image.ref.name";
    let mut index = match before {
        None => Index {
            schema_version: 2,
            media_type: None,
            manifests: Vec::new(),
            annotations: BTreeMap::new(),
        },
        Some(bytes) => match Document::parse(&bytes, media_type::OCI_INDEX) {
            Ok(Document::Index(index)) => index,
            Ok(Document::Manifest(_)) => {
                return Err(Error::ArchiveDamaged {
                    archive: folder.display().to_string(),
                    what: "its index.json is no index".to_owned(),
                });
            }
            Err(cause) => {
                return Err(Error::Manifest {
                    name: format!("index.json in {}", folder.display()),
                    cause,
                });
            }
        },
    };
    let mut entry = top.descriptor();
    if let Some(name) = name {
        entry.annotations.insert(NAME.to_owned(), name.to_owned());
    }
    let same = |other: &Descriptor| match (name, other.annotations.get(NAME)) {
        (Some(name), Some(other)) => name == other,
        (None, None) => other.digest == entry.digest,
        _ => false,
    };
    index.manifests.retain(|other| !same(other));
    index.manifests.push(entry);
    serde_json::to_vec(&index).map_err(save::unwritable)
}

fn blob_path(folder: &Path, digest: Digest) -> PathBuf {
    folder.join("blobs/sha256").join(digest.hex())
}

/// Writes a file beside its name, which it gets when it is kept.
fn keep_file<'s>(path: PathBuf, bytes: &mut dyn Read) -> Result<Settled<'s>> {
    let (mut file, target) = Target::create(&path)?;
    let mut buffer = vec![0; PIECE];
    loop {
        let count = match bytes.read(&mut buffer) {
            Ok(0) => break,
            Ok(count) => count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(cause) => return Err(unreadable(&path.display().to_string(), cause)),
        };
        let written = file.write_all(buffer.get(..count).unwrap_or_default());
        written.map_err(knarr_fs::Error::of_io("write", "write", &path))?;
    }
    Ok(Settled(Box::new(move || target.publish())))
}

fn unreadable(what: &str, cause: io::Error) -> Error {
    Error::ArchiveRead {
        archive: what.to_owned(),
        cause,
    }
}

/// A folder as any program makes one.
fn make_folder(path: &Path) -> Result<()> {
    let made = std::fs::create_dir_all(path);
    Ok(made.map_err(knarr_fs::Error::of_io("create", "mkdir", path))?)
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
