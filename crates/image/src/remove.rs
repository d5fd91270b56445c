//! `rmi`, by Docker's rules (moby, daemon/images/image_delete.go).

use std::path::PathBuf;

use knarr_fs::{Durability, Lock, failpoint};
use knarr_spec::Reference;

use crate::names::AllNames;
use crate::store::Named;
use crate::{Error, Image, ImageId, LayerId, Removed, Result, Store, User};

/// Who asks the engine which containers an image has.
pub(crate) type Users<'a> = &'a dyn Fn(ImageId) -> Vec<User>;

impl Store {
    /// `rmi`: by Docker's rules removes a name, or the image with its last name. `users` lists the
    /// containers (stopped ones too) made from an image; it is called while the image is locked.
    /// Where `force` removes an image that a stopped container still needs, it vanishes from lists
    /// but its layers stay until [`release`](Self::release).
    ///
    /// The space is free after [`empty_trash`](Self::empty_trash).
    ///
    /// # Errors
    /// [`Error::Conflict`] in Docker's words, [`Error::NotFound`].
    pub fn remove(&self, name: &str, force: bool, users: Users<'_>) -> Result<Vec<Removed>> {
        self.finish_removals(users)?;
        loop {
            let (named, image) = match self.find(name) {
                Err(Error::Record { id, .. }) => return self.remove_damaged(id),
                Err(error @ Error::NameFile { .. }) => {
                    return self.remove_damaged_name(name, error);
                }
                Err(error @ Error::NotFound { .. }) => {
                    // A removal that was killed once the image was gone: what it left goes now.
                    self.collect()?;
                    return Err(error);
                }
                found => found?,
            };
            let Some(lock) = self.records.lock(image.id)? else {
                continue;
            };
            // Somebody else may have removed or renamed it before the lock was had.
            if self.find(name).ok().map(|(_, now)| now.id) != Some(image.id) {
                continue;
            }
            let removed = self.remove_locked(&named, &image, lock, force, users)?;
            for line in &removed {
                match line {
                    Removed::Untagged(name) => {
                        self.announce
                            .image("untag", image.id, Some(name.familiar()));
                    }
                    Removed::Image(id) => self.announce.image("delete", *id, None),
                    Removed::Layer(_) => {}
                }
            }
            return Ok(removed);
        }
    }

    /// To be called after a container is removed: frees its image if `rmi --force` left it for
    /// that container. One `stat` where there is nothing to do.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub fn release(&self, id: ImageId, users: Users<'_>) -> Result<()> {
        if self.records.is_hidden(id)
            && let Some(lock) = self.records.lock(id)?
            && self.records.is_hidden(id)
            && users(id).is_empty()
        {
            self.delete(id, lock)?;
        }
        Ok(())
    }

    fn remove_locked(
        &self,
        named: &Named,
        image: &Image,
        lock: Lock,
        force: bool,
        ask: Users<'_>,
    ) -> Result<Vec<Removed>> {
        let users = ask(image.id);
        let all = self.names.all()?;
        let mut names: Vec<Reference> = all.of(image.id).cloned().collect();
        let mut report = Vec::new();
        match named {
            Named::Name(name) => {
                if !force
                    && is_single(&names)
                    && let Some(user) = users.first()
                {
                    return Err(Error::Conflict {
                        what: format!("remove repository reference \"{}\"", name.familiar()),
                        forceable: true,
                        why: format!(
                            "container {} is using its referenced image {}",
                            short(&user.container),
                            image.id.short()
                        ),
                    });
                }
                names.retain(|other| other != name);
                let mut gone = vec![name.clone()];
                // With its last tag a repository's digests go too.
                let same = |other: &Reference| {
                    (other.registry(), other.repository()) == (name.registry(), name.repository())
                };
                if name.digest().is_none()
                    && !names
                        .iter()
                        .any(|other| other.digest().is_none() && same(other))
                {
                    let (digests, others) = names.into_iter().partition(same);
                    gone.extend::<Vec<Reference>>(digests);
                    names = others;
                }
                report.extend(self.remove_along(&all, &gone, image.id, force, ask)?);
                // Only names go while others stay, or while a running container holds the image.
                let stays = !names.is_empty() || users.iter().any(|user| user.running);
                if stays {
                    let names_lock = self.names.lock()?;
                    for name in &gone {
                        self.names.remove(&names_lock, name, Durability::Durable)?;
                    }
                    drop(names_lock);
                    if gone.iter().any(|name| all.indexes.contains_key(name)) {
                        // Its index has no other owner.
                        self.collect()?;
                    }
                    report.extend(gone.into_iter().map(Removed::Untagged));
                    return Ok(report);
                }
                report.extend(gone.into_iter().map(Removed::Untagged));
            }
            Named::Id => {
                let conflict = |forceable, why| Error::Conflict {
                    what: format!("delete {}", image.id.short()),
                    forceable,
                    why,
                };
                if let Some(user) = users.iter().find(|user| user.running) {
                    let why = format!(
                        "image is being used by running container {}",
                        short(&user.container)
                    );
                    return Err(conflict(false, why));
                }
                if !force && !is_single(&names) {
                    let why = "image is referenced in multiple repositories".to_owned();
                    return Err(conflict(true, why));
                }
                if !force && let Some(user) = users.first() {
                    let why = format!(
                        "image is being used by stopped container {}",
                        short(&user.container)
                    );
                    return Err(conflict(true, why));
                }
                report.extend(self.remove_along(&all, &names, image.id, force, ask)?);
                report.extend(names.into_iter().map(Removed::Untagged));
            }
        }
        // From here on the image does not exist; what follows anybody can finish.
        self.records.hide(&lock, image.id)?;
        failpoint!("image.hidden");
        self.remove_names(image.id)?;
        report.push(Removed::Image(image.id));
        if users.is_empty() {
            let layers = self.delete(image.id, lock)?;
            report.extend(layers.into_iter().rev().map(Removed::Layer));
        }
        Ok(report)
    }

    /// Removes the images of whole indexes that go with the names in `gone`, before those do: killed
    /// half-way, the same call finishes it. One that a container has makes a conflict before anything
    /// is removed; with `force` it stays for that container.
    fn remove_along(
        &self,
        all: &AllNames,
        gone: &[Reference],
        main: ImageId,
        force: bool,
        ask: Users<'_>,
    ) -> Result<Vec<Removed>> {
        let going = self.going_along(all, gone, main)?;
        for (id, _) in &going {
            if let Some(user) = ask(*id).first()
                && !force
            {
                return Err(Error::Conflict {
                    what: format!("delete {}", id.short()),
                    forceable: true,
                    why: format!(
                        "container {} is using this image of the index",
                        short(&user.container)
                    ),
                });
            }
        }
        let mut report = Vec::new();
        for (id, names) in going {
            let others = all.of(id).any(|name| !names.contains(name));
            // One that is just being used stays, with its digest for a name.
            let Some(lock) = self.records.try_lock(id)? else {
                continue;
            };
            let users = ask(id);
            report.extend(names.iter().cloned().map(Removed::Untagged));
            if others || users.iter().any(|user| user.running) {
                let lock = self.names.lock()?;
                for name in &names {
                    self.names.remove(&lock, name, Durability::Durable)?;
                }
                continue;
            }
            self.records.hide(&lock, id)?;
            failpoint!("image.part-hidden");
            self.remove_names(id)?;
            report.push(Removed::Image(id));
            if users.is_empty() {
                let layers = self.delete(id, lock)?;
                report.extend(layers.into_iter().rev().map(Removed::Layer));
            }
        }
        Ok(report)
    }

    /// Takes all names from an image that is hidden, durably: once its record is gone, nobody would
    /// know that one which a power cut brings back was taken away, and the same image may come again.
    pub(crate) fn remove_names(&self, id: ImageId) -> Result<()> {
        let lock = self.names.lock()?;
        let all = self.names.all()?;
        for name in all.of(id) {
            self.names.remove(&lock, name, Durability::Durable)?;
        }
        failpoint!("image.unnamed");
        Ok(())
    }

    /// Deletes a hidden image that nobody uses, and the layers that only it had; gives those.
    fn delete(&self, id: ImageId, lock: Lock) -> Result<Vec<LayerId>> {
        let mut layers = match self.records.read(id) {
            Ok(Some(record)) => record.image.layers,
            // A damaged one: its layers are found as orphans.
            Ok(None) | Err(_) => Vec::new(),
        };
        self.records.remove(lock, id, &self.trash())?;
        let mut gone = self.collect()?;
        // Others' leftovers went along; and it may have one layer twice.
        layers.retain(|layer| match gone.iter().position(|other| other == layer) {
            Some(at) => {
                gone.swap_remove(at);
                true
            }
            None => false,
        });
        Ok(layers)
    }

    /// Where blobs and layers are that were set aside as damaged, if any are.
    pub fn damaged(&self) -> [PathBuf; 2] {
        ["blobs/damaged", "layers/damaged"].map(|folder| self.data_root.join(folder))
    }

    /// Throws away what was set aside as damaged.
    ///
    /// # Errors
    /// Where it cannot be renamed into the trash.
    pub fn forget_damaged(&self) -> Result<()> {
        for folder in self.damaged() {
            self.trash().throw(&folder)?;
        }
        Ok(())
    }

    /// Finishes removals that were killed half-way, and those whose last container is gone.
    fn finish_removals(&self, users: Users<'_>) -> Result<()> {
        for id in self.records.ids()? {
            if self.records.is_hidden(id) {
                self.remove_names(id)?;
                self.release(id, users)?;
            }
        }
        Ok(())
    }

    fn remove_damaged(&self, id: ImageId) -> Result<Vec<Removed>> {
        let Some(lock) = self.records.lock(id)? else {
            return Ok(Vec::new());
        };
        let names = self.names.all()?;
        let mut report: Vec<Removed> = names.of(id).cloned().map(Removed::Untagged).collect();
        self.records.hide(&lock, id)?;
        self.remove_names(id)?;
        report.push(Removed::Image(id));
        let layers = self.delete(id, lock)?;
        report.extend(layers.into_iter().map(Removed::Layer));
        Ok(report)
    }

    fn remove_damaged_name(&self, name: &str, error: Error) -> Result<Vec<Removed>> {
        let Ok(name) = name.parse::<Reference>() else {
            return Err(error);
        };
        let lock = self.names.lock()?;
        self.names.remove(&lock, &name, Durability::Durable)?;
        Ok(vec![Removed::Untagged(name)])
    }
}

/// Docker's: at most one tag, and everything in one repository.
fn is_single(names: &[Reference]) -> bool {
    let tags = names.iter().filter(|name| name.digest().is_none()).count();
    let mut repositories = names
        .iter()
        .map(|name| (name.registry(), name.repository()));
    let first = repositories.next();
    tags <= 1 && repositories.all(|other| Some(other) == first)
}

fn short(container: &str) -> &str {
    container.get(..12).unwrap_or(container)
}
