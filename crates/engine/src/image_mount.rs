//! `image mount`: an image's files, read-only, at a path.
//!
//! The one mount that the machine's mount table shows, because that is what it is for. It needs no
//! process: the kernel keeps it until it is unmounted. Where it is says which image it is of:
//! `<run>/mounts/<id>/root`.

use std::path::{Path, PathBuf};

use knarr_fs::Lock;
use knarr_image::ImageId;
use knarr_layer::{Base, Driver, LayerPaths, Rootfs};
use knarr_spec::Digest;
use rustix::fs::{AtFlags, CWD, StatxAttributes, StatxFlags};
use rustix::mount::UnmountFlags;

use crate::{Engine, Error, Result};

impl Engine {
    pub(crate) fn image_mount_now(&self, name: &str) -> Result<PathBuf> {
        let (image, _hold) = self.images().resolve_and_hold(name)?;
        let folder = self.mount_folder(image.id);
        knarr_fs::create_dir_all(&folder)?;
        let _alone = Lock::exclusive(&folder.join("lock"))?;
        let root = folder.join("root");
        knarr_fs::create_dir_all(&root)?;
        if is_mounted(&root)? {
            return Ok(root);
        }
        let settings = self.settings();
        let store = self.images().layers();
        let rootfs = Rootfs {
            base: Base::Layers {
                driver: Driver::choose(&settings.root, &settings.run_root)?,
                layers: image
                    .layers
                    .iter()
                    .map(|id| LayerPaths {
                        id: *id,
                        folder: store.path(id),
                    })
                    .collect(),
            },
            upper: None,
            volatile: false,
            idmap: None,
        };
        knarr_layer::mount(&rootfs, &settings.run_root)?.attach(&root)?;
        Ok(root)
    }

    pub(crate) fn image_unmount_now(&self, id: ImageId, force: bool) -> Result<()> {
        let folder = self.mount_folder(id);
        let not_mounted = || Error::Conflict {
            reason: format!("image {} is not mounted", id.short()),
            hint: Some("`knarr image mount` lists the mounted ones".to_owned()),
        };
        let alone = match Lock::exclusive(&folder.join("lock")) {
            Err(error) if error.is_not_found() => return Err(not_mounted()),
            lock => lock?,
        };
        let root = folder.join("root");
        if !is_mounted(&root)? {
            return Err(not_mounted());
        }
        let flags = if force {
            UnmountFlags::DETACH | UnmountFlags::NOFOLLOW
        } else {
            UnmountFlags::NOFOLLOW
        };
        match rustix::mount::unmount(&root, flags) {
            Ok(()) => {}
            Err(rustix::io::Errno::BUSY) => {
                return Err(Error::conflict(
                    format!("image {} is in use at {}", id.short(), root.display()),
                    "end the programs that use it, or add --force to unmount it when they end",
                ));
            }
            Err(errno) => {
                return Err(knarr_fs::Error::of("unmount", "umount2", &root)(errno).into());
            }
        }
        knarr_fs::remove_tree(&folder)?;
        drop(alone);
        Ok(())
    }

    pub(crate) fn image_mounts_now(&self) -> Result<Vec<(ImageId, PathBuf)>> {
        let mut found = Vec::new();
        for name in knarr_fs::file_names(&self.mounts())? {
            let digest = name.to_str().and_then(|name| Digest::from_hex(name).ok());
            let Some(id) = digest.map(ImageId::from) else {
                continue;
            };
            let root = self.mount_folder(id).join("root");
            if is_mounted(&root)? {
                found.push((id, root));
            }
        }
        found.sort();
        Ok(found)
    }

    /// Where an image is mounted, if it is.
    pub(crate) fn mounted_at(&self, id: ImageId) -> Option<PathBuf> {
        let root = self.mount_folder(id).join("root");
        is_mounted(&root).unwrap_or(false).then_some(root)
    }

    fn mounts(&self) -> PathBuf {
        self.settings().run_root.join("mounts")
    }

    fn mount_folder(&self, id: ImageId) -> PathBuf {
        self.mounts().join(id.digest().hex())
    }
}

/// Whether something is mounted at a folder, here (statx(2), Linux 5.8).
fn is_mounted(path: &Path) -> Result<bool> {
    match rustix::fs::statx(CWD, path, AtFlags::SYMLINK_NOFOLLOW, StatxFlags::TYPE) {
        Ok(stat) => Ok(stat.stx_attributes.contains(StatxAttributes::MOUNT_ROOT)),
        Err(rustix::io::Errno::NOENT) => Ok(false),
        Err(errno) => Err(knarr_fs::Error::of("stat", "statx", path)(errno).into()),
    }
}
