//! `system df`: what every byte below the data root is for.
//!
//! Nothing is trusted to add up: the folder is walked, and each entry is asked whose it is. What has
//! no owner is *unaccounted*, by path, and should not exist.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::path::{Path, PathBuf};

use knarr_fs::{Lock, tree};
use knarr_image::{LayerId, Listed};
use knarr_spec::{ContainerId, Digest};
use rustix::fs::{AtFlags, CWD, FileType};

use crate::{Engine, Filters, ListOptions, Result, Summary, Volume};

/// What the data root holds. Sizes are bytes on the disk, but for those of single images, which are
/// of their uncompressed layers.
#[derive(Debug, Default)]
pub struct Usage {
    /// The images.
    pub images: Vec<ImageUsage>,
    /// Images' layers, manifests, configurations and names.
    pub image_bytes: u64,
    /// What of it is for images that no container has.
    pub image_reclaimable: u64,
    /// The containers, with their sizes.
    pub containers: Vec<Summary>,
    /// What containers wrote, with their logs and descriptions.
    pub container_bytes: u64,
    /// What of it is for containers that do not run.
    pub container_reclaimable: u64,
    /// The volumes.
    pub volumes: Vec<VolumeUsage>,
    /// Pulls, loads, commits and creations that are under way, and what an interrupted pull keeps
    /// to go on with.
    pub under_way: u64,
    /// Damaged objects that were set aside.
    pub set_aside: u64,
    /// What was removed and is not deleted yet.
    pub trash: u64,
    /// What no object has, and how many bytes it takes.
    pub unaccounted: Vec<(PathBuf, u64)>,
}

/// An image's part.
#[derive(Debug, Clone, PartialEq)]
pub struct ImageUsage {
    /// The image.
    pub listed: Listed,
    /// Bytes of layers that other images have too.
    pub shared: u64,
    /// Bytes of layers that only this one has.
    pub unique: u64,
    /// How many containers were made from it.
    pub containers: usize,
}

/// A volume's part.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VolumeUsage {
    /// The volume.
    pub volume: Volume,
    /// How many containers have it.
    pub links: usize,
    /// Bytes on the disk.
    pub bytes: u64,
}

impl Usage {
    /// Bytes that have no owner.
    pub fn unaccounted_bytes(&self) -> u64 {
        self.unaccounted.iter().map(|(_, bytes)| bytes).sum()
    }

    fn count(&mut self, owner: Owner, path: PathBuf, bytes: u64) {
        match owner {
            Owner::Image => self.image_bytes += bytes,
            Owner::IdleImage => {
                self.image_bytes += bytes;
                self.image_reclaimable += bytes;
            }
            Owner::Container => self.container_bytes += bytes,
            Owner::IdleContainer => {
                self.container_bytes += bytes;
                self.container_reclaimable += bytes;
            }
            Owner::UnderWay => self.under_way += bytes,
            Owner::SetAside => self.set_aside += bytes,
            Owner::Trash => self.trash += bytes,
            Owner::Volume | Owner::Frame => {}
            // It has gone since this began.
            Owner::Nobody if !path.exists() => {}
            Owner::Nobody => self.unaccounted.push((path, bytes)),
        }
    }
}

/// Whose an entry is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Owner {
    /// An image that a container has, or several images.
    Image,
    /// Images that no container has.
    IdleImage,
    Container,
    IdleContainer,
    /// Counted with the volumes themselves.
    Volume,
    UnderWay,
    SetAside,
    Trash,
    /// Knarr's own, whatever there is: folders, locks, names.
    Frame,
    Nobody,
}

/// What is known when the walk begins.
struct Known {
    /// Blobs and layers by whether a container needs them.
    blobs: BTreeMap<Digest, bool>,
    layers: BTreeMap<LayerId, bool>,
    /// Some image cannot be read: nobody knows what it needs.
    unsure: bool,
    running: BTreeSet<ContainerId>,
}

impl Engine {
    pub(crate) fn usage_now(&self) -> Result<Usage> {
        let mut usage = Usage::default();
        let listing = self.list(&ListOptions {
            all: true,
            size: true,
            ..ListOptions::default()
        })?;
        usage.containers = listing.containers;
        let mut users: BTreeMap<String, usize> = BTreeMap::new();
        for container in &usage.containers {
            *users.entry(container.image_id.clone()).or_default() += 1;
        }
        self.images_of(&users, &mut usage)?;
        self.volumes_of(&mut usage)?;
        let known = self.known(&users, &usage)?;
        let root = self.settings().root.clone();
        self.walk(&known, &root, &mut usage)?;
        let doubtful = std::mem::take(&mut usage.unaccounted);
        if !doubtful.is_empty() {
            // Who is bringing it is asked first: what nobody holds then is some image's, or nobody's.
            let mut asked = Vec::new();
            for (path, bytes) in doubtful {
                let is_held = self.is_held(&names(&root, &path), &path)?;
                asked.push((path, bytes, is_held));
            }
            let known = self.known(&users, &usage)?;
            for (path, bytes, is_held) in asked {
                let owner = match self.owner(&known, &names(&root, &path)) {
                    Owner::Nobody if is_held => Owner::UnderWay,
                    owner => owner,
                };
                usage.count(owner, path, bytes);
            }
        }
        usage.unaccounted.sort();
        Ok(usage)
    }

    fn images_of(&self, users: &BTreeMap<String, usize>, usage: &mut Usage) -> Result<()> {
        let images = self.images();
        let listed = images.list()?.images;
        let mut count: BTreeMap<LayerId, usize> = BTreeMap::new();
        for image in &listed {
            let own: BTreeSet<&LayerId> = image.image.layers.iter().collect();
            for layer in own {
                *count.entry(*layer).or_default() += 1;
            }
        }
        for listed in listed {
            let (mut shared, mut unique) = (0, 0);
            for layer in &listed.image.layers {
                // A damaged one counts nothing here; the check tells of it.
                let size = images.layers().load(layer).map_or(0, |layer| layer.size);
                if count.get(layer).is_some_and(|count| *count > 1) {
                    shared += size;
                } else {
                    unique += size;
                }
            }
            let containers = users.get(&listed.image.id.to_string()).copied();
            usage.images.push(ImageUsage {
                listed,
                shared,
                unique,
                containers: containers.unwrap_or_default(),
            });
        }
        Ok(())
    }

    fn volumes_of(&self, usage: &mut Usage) -> Result<()> {
        for volume in self.volumes(&Filters::default())? {
            let folder = volume.mountpoint.parent().unwrap_or(&volume.mountpoint);
            usage.volumes.push(VolumeUsage {
                links: self.users_of_volume(&volume.name)?.len(),
                bytes: on_disk(folder)?,
                volume,
            });
        }
        Ok(())
    }

    fn known(&self, users: &BTreeMap<String, usize>, usage: &Usage) -> Result<Known> {
        let contents = self.images().references()?;
        let mut known = Known {
            blobs: BTreeMap::new(),
            layers: BTreeMap::new(),
            unsure: contents.unsure,
            running: BTreeSet::new(),
        };
        for (image, blobs, layers) in contents.images {
            let used = users.contains_key(&image.to_string());
            for blob in blobs {
                *known.blobs.entry(blob).or_default() |= used;
            }
            for layer in layers {
                *known.layers.entry(layer).or_default() |= used;
            }
        }
        for container in &usage.containers {
            if !matches!(
                container.status,
                crate::Status::Created | crate::Status::Exited | crate::Status::Dead
            ) {
                known.running.insert(container.id.clone());
            }
        }
        Ok(known)
    }

    fn walk(&self, known: &Known, folder: &Path, usage: &mut Usage) -> Result<()> {
        for entry in
            std::fs::read_dir(folder).map_err(knarr_fs::Error::of_io("list", "open", folder))?
        {
            let entry = entry.map_err(knarr_fs::Error::of_io("list", "getdents", folder))?;
            let path = entry.path();
            let names = names(&self.settings().root, &path);
            let is_dir = entry.file_type().is_ok_and(|kind| kind.is_dir());
            if is_dir && has_entries_of_its_own(&names) {
                self.walk(known, &path, usage)?;
                continue;
            }
            let owner = self.owner(known, &names);
            let bytes = on_disk(&path)?;
            usage.count(owner, path, bytes);
        }
        Ok(())
    }

    /// Whose the entry with these names below the data root is.
    fn owner(&self, known: &Known, names: &[String]) -> Owner {
        let digest = |hex: &str| Digest::from_hex(hex).ok();
        let idle = |used: Option<&bool>| match used {
            Some(true) => Owner::Image,
            Some(false) => Owner::IdleImage,
            None if known.unsure => Owner::Image,
            None => Owner::Nobody,
        };
        let under_way = |is: bool| match is {
            true => Owner::UnderWay,
            false => Owner::Nobody,
        };
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        match *names {
            ["blobs", "sha256", name] => match digest(name) {
                Some(digest) => idle(known.blobs.get(&digest)),
                None => Owner::Nobody,
            },
            // What an interrupted pull has, by the blob's digest.
            ["blobs", "partial", name] if name.starts_with(|c: char| c.is_ascii_hexdigit()) => {
                Owner::UnderWay
            }
            ["blobs", "damaged", _] | ["layers", "damaged", _] => Owner::SetAside,
            ["layers", "sha256", name] => match digest(name) {
                Some(digest) => idle(known.layers.get(&digest.into())),
                None => Owner::Nobody,
            },
            ["images", name] => match digest(name) {
                Some(digest) => match known.blobs.get(&digest) {
                    Some(true) => Owner::Image,
                    Some(false) => Owner::IdleImage,
                    // A damaged record is still an image, to be repaired or removed.
                    None => Owner::Image,
                },
                None => Owner::Nobody,
            },
            // Lists in the making are a few KiB of names.
            ["refs", ..] | ["manifests", ..] => Owner::Image,
            ["containers", name] => match name.strip_prefix(".tmp-") {
                Some(id) => under_way(self.is_being_made(id)),
                None => self.container(known, name),
            },
            ["ephemeral", name] => self.container(known, name),
            ["names" | "userns" | "networks", ..] => Owner::Frame,
            ["volumes", name] if name.starts_with(".tmp-") => Owner::UnderWay,
            ["volumes", name] if name.starts_with('.') => Owner::Frame,
            ["volumes", name] => match crate::volume::load(self.settings(), name) {
                Ok(None) => Owner::Nobody,
                // A damaged one keeps its data.
                Ok(Some(_)) | Err(_) => Owner::Volume,
            },
            ["trash", ..] => Owner::Trash,
            [name] if FOLDERS.contains(&name) => Owner::Frame,
            _ => Owner::Nobody,
        }
    }

    /// Whether somebody is at work on what no image names yet: a blob, a layer, or what will be one.
    fn is_held(&self, names: &[String], path: &Path) -> Result<bool> {
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        let lock = match *names {
            ["layers", "sha256", hex] => match Digest::from_hex(hex) {
                Ok(digest) => self.images().layers().lock_path(&digest.into()),
                Err(_) => return Ok(false),
            },
            ["blobs", _, _] | ["layers" | "images", _] => path.to_owned(),
            _ => return Ok(false),
        };
        Ok(Lock::is_held(&lock)?)
    }

    fn container(&self, known: &Known, name: &str) -> Owner {
        let Ok(id) = name.parse::<ContainerId>() else {
            return Owner::Nobody;
        };
        if known.running.contains(&id) {
            return Owner::Container;
        }
        if self.exists(&id) {
            return Owner::IdleContainer;
        }
        if self.is_being_made(name) {
            return Owner::UnderWay;
        }
        Owner::Nobody
    }

    /// Whether somebody is at work on a container that is not there yet, or not there any more.
    fn is_being_made(&self, id: &str) -> bool {
        let Ok(id) = id.parse::<ContainerId>() else {
            return false;
        };
        let run = self.settings().run_dir(&id);
        run.is_dir() && matches!(Lock::try_exclusive(&run.join("lock")), Ok(None))
    }
}

/// The names that lead to a path from the data root.
fn names(root: &Path, path: &Path) -> Vec<String> {
    let inside = path.strip_prefix(root).unwrap_or(path);
    let names = inside.iter().map(OsStr::to_string_lossy);
    names.map(std::borrow::Cow::into_owned).collect()
}

/// The folders of the data root.
const FOLDERS: [&str; 11] = [
    "blobs",
    "layers",
    "images",
    "refs",
    "containers",
    "ephemeral",
    "names",
    "userns",
    "networks",
    "volumes",
    "trash",
];

/// Folders that are only the place of what is in them.
fn has_entries_of_its_own(names: &[String]) -> bool {
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    match *names {
        ["blobs" | "layers", "sha256" | "partial" | "damaged"] => true,
        ["refs" | "trash"] => false,
        [name] => FOLDERS.contains(&name),
        _ => false,
    }
}

/// Bytes on the disk of a file or a whole folder; what vanished takes none.
pub(crate) fn on_disk(path: &Path) -> Result<u64> {
    let stat = match rustix::fs::statat(CWD, path, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(stat) => stat,
        Err(rustix::io::Errno::NOENT) => return Ok(0),
        Err(errno) => return Err(knarr_fs::Error::of("stat", "fstatat", path)(errno).into()),
    };
    if FileType::from_raw_mode(stat.st_mode) != FileType::Directory {
        return Ok(u64::try_from(stat.st_blocks).unwrap_or_default() * 512);
    }
    let measured = tree::Tree::open(path).and_then(|tree| tree.disk_usage());
    match measured {
        Err(error) if error.is_not_found() => Ok(0),
        measured => Ok(measured?),
    }
}
