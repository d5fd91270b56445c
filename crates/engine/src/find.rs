//! From what people type to a container, and what a call finds there.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use knarr_fs::{Lock, Trash, failpoint};
use knarr_monitor::State;
use knarr_monitor::client::{self, Connection, Swept};
use knarr_spec::{ContainerId, ContainerName};
use serde::{Deserialize, Serialize};

use crate::record::{FILE, Record};
use crate::{Engine, Error, Result, names, userns, volume};

/// How long an operation waits for another one on the same container.
const PATIENCE: Duration = Duration::from_secs(20);
/// A file in the run folder while a container is made or removed: what to undo, or to finish.
pub(crate) const INTENT: &str = "intent.json";

/// What has no other trace of whose it is.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(crate) struct Intent {
    /// The container is to go, whether its record is still there or not.
    pub(crate) removing: bool,
    /// Volumes that go with it.
    pub(crate) volumes: Vec<String>,
    /// A rename: the name before and the one after. Which of them counts, the record says.
    #[serde(default)]
    pub(crate) names: Vec<ContainerName>,
}

/// A container as an operation finds it.
#[derive(Debug)]
pub(crate) enum Found {
    /// It does not run, nobody else works on it, and nobody can: the lock is held.
    Idle(Lock, State),
    /// It runs, and its monitor answers.
    Running(State),
}

impl Engine {
    /// The id that a name, an id or a unique prefix of one means. An object that a killed command
    /// left half-made is undone here, and then not found.
    pub(crate) fn find(&self, text: &str) -> Result<ContainerId> {
        let settings = self.settings();
        if let Ok(id) = text.parse::<ContainerId>() {
            return if self.exists(&id) {
                Ok(id)
            } else {
                self.not_found(text)
            };
        }
        if let Ok(name) = text.parse::<ContainerName>()
            && let Some(id) = names::holder(settings, &name)?
        {
            if self.exists(&id) {
                return Ok(id);
            }
            self.undo(&id)?;
        }
        let digits = !text.is_empty()
            && text.len() < 64
            && text
                .bytes()
                .all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
        if digits {
            let mut matching = self.ids()?;
            matching.retain(|id| id.as_str().starts_with(text) && self.exists(id));
            match matching.as_slice() {
                [] => {}
                [id] => return Ok(id.clone()),
                _ => {
                    return Err(Error::Ambiguous {
                        prefix: text.to_owned(),
                    });
                }
            }
        }
        self.not_found(text)
    }

    fn not_found<T>(&self, text: &str) -> Result<T> {
        for id in self.ids()? {
            if !self.exists(&id) {
                self.undo(&id)?;
            }
        }
        self.sweep_gone();
        let known = knarr_fs::file_names(&self.settings().names())?;
        let known = known.into_iter().filter_map(|name| name.into_string().ok());
        Err(Error::NotFound {
            name: text.to_owned(),
            near: names::near(text, known),
        })
    }

    pub(crate) fn exists(&self, id: &ContainerId) -> bool {
        self.settings().data_dir(id).join(FILE).exists()
            || self.settings().run_dir(id).join(FILE).exists()
    }

    /// The ids of all containers, half-made ones included.
    pub(crate) fn ids(&self) -> Result<Vec<ContainerId>> {
        Ok(self.places()?.into_keys().collect())
    }

    /// The same, and whether there is a run folder: without one it is not running, and nobody works
    /// on it.
    pub(crate) fn places(&self) -> Result<BTreeMap<ContainerId, bool>> {
        let mut places = BTreeMap::new();
        for (folder, run) in [
            (self.settings().containers(), false),
            (self.settings().run_containers(), true),
        ] {
            let names = knarr_fs::file_names(&folder)?;
            let ids = names
                .iter()
                .filter_map(|name| name.to_str()?.parse::<ContainerId>().ok());
            places.extend(ids.map(|id| (id, run)));
        }
        Ok(places)
    }

    /// Reads a container's record.
    pub(crate) fn record(&self, id: &ContainerId) -> Result<Record> {
        match Record::load(self.settings(), id)? {
            Some(record) => Ok(record),
            None => self.not_found(id.as_str()),
        }
    }

    /// How a container is, without any lock.
    pub(crate) fn state(&self, id: &ContainerId) -> Result<State> {
        if let Some(observed) = client::observe(&self.settings().run_dir(id))? {
            return Ok(observed.state);
        }
        self.state_at_rest(id)
    }

    /// How a container without a run folder is.
    pub(crate) fn state_at_rest(&self, id: &ContainerId) -> Result<State> {
        Ok(client::remembered(&self.settings().data_dir(id))?
            .unwrap_or_else(|| State::created(id.clone())))
    }

    /// Comes to a container to do something with it: adopts it where its monitor died, undoes or
    /// finishes what was cut short, waits for what is under way.
    pub(crate) fn touch(&self, id: &ContainerId) -> Result<Found> {
        let run = self.settings().run_dir(id);
        let path = run.join("lock");
        let start = Instant::now();
        let mut patience = Duration::ZERO;
        loop {
            if !self.exists(id) {
                self.undo(id)?;
                return self.not_found(id.as_str());
            }
            knarr_fs::create_dir_all(&run)?;
            match Lock::exclusive_within(&path, patience) {
                Err(error) if error.is_not_found() => continue,
                Err(error) => return Err(error.into()),
                Ok(Some(lock)) => return self.settle(id, lock),
                Ok(None) => {}
            }
            if Connection::open(&run).is_ok() {
                if run.join(INTENT).exists() {
                    self.finish_rename(id)?;
                }
                return Ok(Found::Running(self.state(id)?));
            }
            // Another one works on it: look again now and then whether that one has become its
            // monitor, or gone.
            patience = Duration::from_millis(20);
            if start.elapsed() > PATIENCE {
                return Err(Error::conflict(
                    format!(
                        "container {} is busy: another operation holds its lock",
                        id.short()
                    ),
                    "wait for that operation to end, or find it with `fuser` on the lock file",
                ));
            }
        }
    }

    /// With the lock: makes the container what its files say.
    fn settle(&self, id: &ContainerId, lock: Lock) -> Result<Found> {
        let run = self.settings().run_dir(id);
        if !self.exists(id) {
            self.undo_locked(id, lock)?;
            return self.not_found(id.as_str());
        }
        if let Some(intent) = self.intent(id)? {
            if intent.removing {
                client::sweep(&run, &lock)?;
                self.undo_locked(id, lock)?;
                return self.not_found(id.as_str());
            }
            self.finish_rename(id)?;
        }
        failpoint!("engine.sweep");
        // Also where there is no state yet: what a start was about to make is written down before.
        match client::sweep(&run, &lock)? {
            Swept::Clean | Swept::Undone => {}
            Swept::Alive => return self.adopt(id, lock),
            Swept::Removed => {
                self.undo_locked(id, lock)?;
                return self.not_found(id.as_str());
            }
        }
        let state = self.state(id)?;
        Ok(Found::Idle(lock, state))
    }

    fn adopt(&self, id: &ContainerId, lock: Lock) -> Result<Found> {
        let run = self.settings().run_dir(id);
        match client::adopt(&self.settings().monitor, &run, lock) {
            Ok(_) => Ok(Found::Running(self.state(id)?)),
            // It ended before the new monitor could look, so there is something to sweep instead.
            Err(_) if !client::observe(&run)?.is_some_and(|observed| observed.alive) => {
                self.touch(id)
            }
            Err(report) => Err(report.into()),
        }
    }

    pub(crate) fn intent(&self, id: &ContainerId) -> Result<Option<Intent>> {
        let path = self.settings().run_dir(id).join(INTENT);
        match knarr_fs::read(&path) {
            Err(error) if error.is_not_found() => Ok(None),
            bytes => serde_json::from_slice(&bytes?)
                .map(Some)
                .map_err(|cause| Error::Damaged { path, cause }),
        }
    }

    pub(crate) fn write_intent(&self, id: &ContainerId, intent: &Intent) -> Result<()> {
        let path = self.settings().run_dir(id).join(INTENT);
        let bytes = serde_json::to_vec(intent).map_err(|cause| Error::Damaged {
            path: path.clone(),
            cause,
        })?;
        Ok(knarr_fs::write_atomic(
            &path,
            &bytes,
            knarr_fs::Durability::Volatile,
        )?)
    }

    /// Finishes a rename that was cut short (or forgets a creation that went well); one that is
    /// under way is left alone.
    fn finish_rename(&self, id: &ContainerId) -> Result<()> {
        let run = self.settings().run_dir(id);
        let Some(_alone) = Lock::try_exclusive(&run.join("rename.lock"))? else {
            return Ok(());
        };
        let Some(intent) = self.intent(id)? else {
            return Ok(());
        };
        let record = self.record(id)?;
        for name in intent.names.iter().filter(|name| **name != record.name) {
            names::release(self.settings(), name, id)?;
        }
        Ok(knarr_fs::remove_file(&run.join(INTENT))?)
    }

    /// Finishes a removal that was cut short; one that is under way is left alone.
    pub(crate) fn finish_removal(&self, id: &ContainerId) -> Result<()> {
        match Lock::try_exclusive(&self.settings().run_dir(id).join("lock")) {
            Err(error) if error.is_not_found() => Ok(()),
            Err(error) => Err(error.into()),
            Ok(None) => Ok(()),
            Ok(Some(lock)) => match self.settle(id, lock) {
                Ok(_) | Err(Error::NotFound { .. }) => Ok(()),
                Err(error) => Err(error),
            },
        }
    }

    /// Takes away what is left of a container that does not exist, unless somebody works on it.
    pub(crate) fn undo(&self, id: &ContainerId) -> Result<()> {
        let run = self.settings().run_dir(id);
        knarr_fs::create_dir_all(&run)?;
        match Lock::try_exclusive(&run.join("lock")) {
            // Somebody else was faster.
            Err(error) if error.is_not_found() => Ok(()),
            Err(error) => Err(error.into()),
            Ok(None) => Ok(()),
            Ok(Some(_)) if self.exists(id) => Ok(()),
            Ok(Some(lock)) => {
                client::sweep(&run, &lock)?;
                self.undo_locked(id, lock)
            }
        }
    }

    /// The same for who holds the lock; also what a removal does. Goes on after a failure and gives
    /// the first one; the run folder goes last, so that another call finds what is left.
    pub(crate) fn undo_locked(&self, id: &ContainerId, lock: Lock) -> Result<()> {
        let settings = self.settings();
        let trash = Trash::below(&settings.root);
        let mut done: Result<()> = Ok(());
        let mut step = |result: Result<()>| {
            if done.is_ok() {
                done = result;
            }
        };
        for name in self.intent(id)?.unwrap_or_default().volumes {
            step(volume::remove(settings, &name));
        }
        failpoint!("undo.volumes");
        // From here on it does not exist; what follows is finished by whoever comes next.
        step(knarr_fs::remove_file(&settings.run_dir(id).join(FILE)).map_err(Error::from));
        let half_made = settings.containers().join(format!(".tmp-{id}"));
        let half_volume = volume::half_made(settings, id.as_str());
        for folder in [
            settings.data_dir(id),
            settings.ephemeral_dir(id),
            half_made,
            half_volume,
        ] {
            if folder.exists() {
                step(trash.throw(&folder).map_err(Error::from));
            }
        }
        failpoint!("undo.folders");
        step(names::release_all(settings, id));
        step(userns::release_all(settings, id));
        failpoint!("undo.names");
        done?;
        // By one rename: who waits for the lock finds the folder gone, or makes a new one, and never
        // half of this one.
        Trash::below(&settings.run_root).throw(&settings.run_dir(id))?;
        failpoint!("undo.run");
        drop(lock);
        self.sweep_gone();
        Ok(())
    }

    /// Deletes what is nobody's any more, and finishes what killed monitors have left: the end of
    /// `--rm` containers, records of layers they held. What cannot be done now is the next one's
    /// business.
    fn sweep_gone(&self) {
        client::sweep_ending(&self.settings().run_root).ok();
        knarr_layer::sweep_holders(&self.settings().run_root).ok();
        for root in [&self.settings().root, &self.settings().run_root] {
            Trash::below(root).empty().ok();
        }
    }
}
