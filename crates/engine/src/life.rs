//! Start, stop and everything between.

use knarr_monitor::client::{self, Connection};
use knarr_monitor::request::Streams;
use knarr_monitor::state::Status;
use knarr_spec::{ContainerId, ContainerName};

use crate::find::{Found, Intent};
use crate::record::Record;
use crate::{
    CreateRequest, Created, Engine, Error, RemoveOptions, Result, Session, StartOptions,
    StopOptions, WaitCondition, names, signal, volume,
};
use knarr_fs::{Lock, Trash, failpoint};

/// How long `rm` waits for a monitor to let go of what it watched.
const LETTING_GO: std::time::Duration = std::time::Duration::from_secs(20);

impl Engine {
    pub(crate) fn run_now(
        &self,
        request: &CreateRequest,
        options: &StartOptions,
        progress: &dyn knarr_image::Progress,
    ) -> Result<(Created, Option<Session>)> {
        let mut draft = self.draft(request, progress)?;
        let mut warnings = std::mem::take(&mut draft.warnings);
        let (record, lock) = self.publish(request.name.as_deref(), draft)?;
        match self.launch(&record, lock, 0, options) {
            Ok((started, more)) => {
                warnings.extend(more);
                Ok((
                    Self::created(&record, warnings),
                    self.session(started, &record),
                ))
            }
            Err(error) => {
                if record.host.auto_remove {
                    // Its monitor removes it; where there was none, nobody has yet.
                    self.discard(&record.id);
                }
                Err(error)
            }
        }
    }

    fn session(&self, started: client::Started, record: &Record) -> Option<Session> {
        let settings = self.settings();
        let run = settings.run_dir(&record.id);
        Session::started(started, record.config.tty, run, record.paths.folder.clone())
    }

    /// Removes a container that could not be started; the reason is being told already.
    fn discard(&self, id: &ContainerId) {
        if let Ok(Found::Idle(lock, _)) = self.touch(id) {
            self.erase(id, lock, true).ok();
        }
    }

    pub(crate) fn start_now(&self, text: &str, options: &StartOptions) -> Result<Option<Session>> {
        let id = self.find(text)?;
        let record = self.record(&id)?;
        match self.touch_decided(&id)? {
            Found::Running(state) if state.status == Status::Paused => Err(Error::conflict(
                "cannot start a paused container, try unpause instead",
                format!("`knarr unpause {text}`"),
            )),
            Found::Running(_) if options.attach => self.attach_now(text, options).map(Some),
            Found::Running(_) => Ok(None),
            Found::Idle(lock, _) => {
                let (started, _) = self.launch(&record, lock, 0, options)?;
                Ok(self.session(started, &record))
            }
        }
    }

    /// As `touch`, but a monitor that is just starting or ending the container is waited for: it
    /// says soon which of the two it is.
    fn touch_decided(&self, id: &ContainerId) -> Result<Found> {
        let path = self.settings().run_dir(id).join("lock");
        let deadline = std::time::Instant::now() + LETTING_GO;
        loop {
            match self.touch(id)? {
                Found::Running(state)
                    if matches!(state.status, Status::Created | Status::Exited)
                        && std::time::Instant::now() < deadline =>
                {
                    // The monitor holds the lock meanwhile; the next look tells what became of it.
                    Lock::exclusive_within(&path, std::time::Duration::from_millis(5)).ok();
                }
                found => return Ok(found),
            }
        }
    }

    pub(crate) fn attach_now(&self, text: &str, options: &StartOptions) -> Result<Session> {
        let id = self.find(text)?;
        let record = self.record(&id)?;
        self.persist(|| match self.touch(&id)? {
            Found::Idle(..) => Err(Error::conflict(
                "You cannot attach to a stopped container, start it first",
                format!("`knarr start -a {text}`"),
            )),
            Found::Running(state) if state.status == Status::Paused => Err(Error::conflict(
                "You cannot attach to a paused container, unpause it first",
                format!("`knarr unpause {text}`"),
            )),
            Found::Running(state) if state.status == Status::Restarting => Err(Error::conflict(
                "You cannot attach to a restarting container, wait until it is running",
                format!("`knarr logs {text}` shows why it ended"),
            )),
            Found::Running(_) => {
                let run = self.settings().run_dir(&id);
                let streams = Streams {
                    stdin: options.stdin && record.config.open_stdin,
                    stdout: true,
                    stderr: true,
                };
                let attached = Connection::open(&run)?.attach(streams)?;
                Ok(Session::attached(
                    attached,
                    record.config.tty,
                    run,
                    record.paths.folder.clone(),
                ))
            }
        })
    }

    pub(crate) fn stop_now(
        &self,
        text: &str,
        options: &StopOptions,
        deaf: &mut dyn FnMut(i32),
    ) -> Result<()> {
        let id = self.find(text)?;
        self.stop_id(&id, options, deaf)
    }

    fn stop_id(
        &self,
        id: &ContainerId,
        options: &StopOptions,
        deaf: &mut dyn FnMut(i32),
    ) -> Result<()> {
        let signal = options.signal.as_deref().map(signal::parse).transpose()?;
        let run = self.settings().run_dir(id);
        let mut asked = false;
        self.persist(|| match self.touch(id) {
            // It ended, and with `--rm` it is gone.
            Err(Error::NotFound { .. }) if asked => Ok(()),
            Err(error) => Err(error),
            Ok(Found::Idle(..)) => Ok(()),
            Ok(Found::Running(_)) => {
                asked = true;
                let mut monitor = Connection::open(&run)?;
                monitor.stop(signal, options.timeout, &mut *deaf)?;
                Ok(())
            }
        })
    }

    /// Tries again when a monitor died under the call: the next `touch` adopts the container, or
    /// knows its end.
    fn persist<T>(&self, mut operation: impl FnMut() -> Result<T>) -> Result<T> {
        for _ in 0..4 {
            match operation() {
                Err(Error::Monitor(
                    knarr_monitor::Error::Connect { .. } | knarr_monitor::Error::Answer { .. },
                )) => {}
                done => return done,
            }
        }
        operation()
    }

    pub(crate) fn kill_now(&self, text: &str, name: &str) -> Result<()> {
        let number = signal::parse(name)?;
        let id = self.find(text)?;
        self.persist(|| match self.touch(&id)? {
            Found::Idle(..) => Err(Error::conflict(
                format!("cannot kill container: {text}: container {id} is not running"),
                "`knarr ps -a` shows its state",
            )),
            Found::Running(_) => {
                Ok(Connection::open(&self.settings().run_dir(&id))?.signal(number)?)
            }
        })
    }

    pub(crate) fn restart_now(&self, text: &str, options: &StopOptions) -> Result<()> {
        let id = self.find(text)?;
        let record = self.record(&id)?;
        if record.host.auto_remove && matches!(self.touch(&id)?, Found::Running(_)) {
            return Err(Error::conflict(
                format!("container {text} was started with --rm: stopping it would remove it"),
                "stop it, and run it again",
            ));
        }
        self.stop_id(&id, options, &mut |_| {})?;
        match self.touch(&id)? {
            Found::Running(_) => Ok(()),
            Found::Idle(lock, _) => self
                .launch(&record, lock, 0, &StartOptions::default())
                .map(drop),
        }
    }

    pub(crate) fn remove_now(&self, text: &str, options: &RemoveOptions) -> Result<()> {
        let id = self.find(text)?;
        let lock = match self.touch(&id)? {
            Found::Idle(lock, _) => lock,
            Found::Running(state) if !options.force => {
                let state = match state.status {
                    Status::Paused => "paused",
                    Status::Restarting => "restarting",
                    _ => "running",
                };
                return Err(Error::conflict(
                    format!(
                        "cannot remove container {text:?}: container is {state}: stop the container \
                         before removing or force remove"
                    ),
                    format!("`knarr rm -f {text}` does both"),
                ));
            }
            Found::Running(_) => {
                let kill = StopOptions {
                    signal: Some("KILL".to_owned()),
                    timeout: Some(0),
                };
                self.stop_id(&id, &kill, &mut |_| {})?;
                match self.until_idle(&id)? {
                    Some(lock) => lock,
                    // It was a `--rm` one, and its monitor has removed it.
                    None => return Ok(()),
                }
            }
        };
        self.erase(&id, lock, options.volumes)
    }

    /// Waits until the monitor of a container that ended lets go; `None` where the container is
    /// gone then.
    fn until_idle(&self, id: &ContainerId) -> Result<Option<Lock>> {
        let path = self.settings().run_dir(id).join("lock");
        // The lock first: with it, `touch` finds the container idle.
        match Lock::exclusive_within(&path, LETTING_GO) {
            Ok(lock) => drop(lock),
            Err(error) if error.is_not_found() => {}
            Err(error) => return Err(error.into()),
        }
        match self.touch(id) {
            Ok(Found::Idle(lock, _)) => Ok(Some(lock)),
            Ok(Found::Running(_)) => Err(Error::conflict(
                format!("container {} was started again meanwhile", id.short()),
                "try again",
            )),
            Err(Error::NotFound { .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Removes a container that does not run: written down first, so that it is finished by
    /// whoever comes next if this process dies.
    pub(crate) fn erase(&self, id: &ContainerId, lock: Lock, volumes: bool) -> Result<()> {
        let record = match Record::load(self.settings(), id) {
            Ok(record) => record,
            // A damaged one goes too; what it had besides its folder is not known.
            Err(Error::Damaged { .. }) => None,
            Err(error) => return Err(error),
        };
        let mut intent = Intent {
            removing: true,
            ..Intent::default()
        };
        if volumes {
            let own = record.iter().flat_map(|record| &record.mounts);
            for mount in own.filter(|mount| mount.anonymous) {
                // `--volumes-from` may have lent it to others.
                if self
                    .users_of_volume(&mount.name)?
                    .iter()
                    .all(|user| user == id.as_str())
                {
                    intent.volumes.push(mount.name.clone());
                }
            }
        }
        self.write_intent(id, &intent)?;
        failpoint!("remove.intent");
        let image = record.as_ref().and_then(|record| match &record.root {
            crate::record::Root::Image { id, .. } => Some(*id),
            _ => None,
        });
        self.undo_locked(id, lock)?;
        if let Some(record) = &record {
            self.event(record, "destroy", &[]);
        }
        if let Some(image) = image {
            self.images()
                .release(image.into(), &|id| self.image_users(id))?;
        }
        Ok(())
    }

    pub(crate) fn rename_now(&self, text: &str, name: &str) -> Result<()> {
        let settings = self.settings();
        let new: ContainerName = name.parse().map_err(|_| {
            Error::invalid(format!(
                "Invalid container name ({name}), only [a-zA-Z0-9][a-zA-Z0-9_.-] are allowed"
            ))
        })?;
        let id = self.find(text)?;
        // Two renames of one container wait for each other; nothing else writes its record.
        let found = self.touch(&id)?;
        let _order = Lock::exclusive(&settings.run_dir(&id).join("rename.lock"))?;
        let mut record = self.record(&id)?;
        if record.name == new {
            return Err(Error::invalid(
                "Renaming a container with the same name as its current name",
            ));
        }
        let names = vec![record.name.clone(), new.clone()];
        self.write_intent(
            &id,
            &Intent {
                names,
                ..Intent::default()
            },
        )?;
        let intent = settings.run_dir(&id).join(crate::find::INTENT);
        if let Err(error) = names::claim(settings, &new, &id) {
            knarr_fs::remove_file(&intent)?;
            return Err(error);
        }
        failpoint!("rename.claimed");
        let old = std::mem::replace(&mut record.name, new);
        if let Err(error) = record.save(&record.paths.folder, record.durability()) {
            names::release(settings, &record.name, &id)?;
            knarr_fs::remove_file(&intent)?;
            return Err(error);
        }
        failpoint!("rename.written");
        names::release(settings, &old, &id)?;
        knarr_fs::remove_file(&intent)?;
        self.event(&record, "rename", &[("oldName", &format!("/{old}"))]);
        drop(found);
        Ok(())
    }

    pub(crate) fn pause_now(&self, text: &str, pause: bool) -> Result<()> {
        let id = self.find(text)?;
        let word = if pause { "pause" } else { "unpause" };
        self.persist(|| match self.touch(&id)? {
            Found::Idle(..) => Err(Error::conflict(
                format!("cannot {word} container {text}: Container {id} is not running"),
                format!("start it first: `knarr start {text}`"),
            )),
            Found::Running(state) => {
                let paused = state.status == Status::Paused;
                if paused == pause {
                    let is = if paused {
                        "already paused"
                    } else {
                        "not paused"
                    };
                    return Err(Error::Conflict {
                        reason: format!("Container {id} is {is}"),
                        hint: None,
                    });
                }
                let mut monitor = Connection::open(&self.settings().run_dir(&id))?;
                if pause {
                    monitor.pause()?;
                } else {
                    monitor.unpause()?;
                }
                Ok(())
            }
        })
    }

    pub(crate) fn wait_now(&self, text: &str, condition: WaitCondition) -> Result<i32> {
        let id = self.find(text)?;
        let run = self.settings().run_dir(&id);
        loop {
            match self.touch(&id) {
                Ok(Found::Running(_)) => {
                    let code = match Connection::open(&run).and_then(|mut monitor| monitor.wait()) {
                        Ok(state) => state.exit_code.unwrap_or(255),
                        // The monitor died: whoever takes over knows.
                        Err(_) => continue,
                    };
                    if condition != WaitCondition::Removed || !self.exists(&id) {
                        return Ok(code);
                    }
                }
                Ok(Found::Idle(lock, state)) => {
                    if condition == WaitCondition::NotRunning {
                        return Ok(state.exit_code.unwrap_or_default());
                    }
                    drop(lock);
                    self.until_changed(&id)?;
                }
                Err(Error::NotFound { .. }) if condition == WaitCondition::Removed => return Ok(0),
                Err(error) => return Err(error),
            }
        }
    }

    /// Sleeps until something in the container's run folder changes.
    fn until_changed(&self, id: &ContainerId) -> Result<()> {
        use rustix::fs::inotify::{self, CreateFlags, WatchFlags};
        let run = self.settings().run_dir(id);
        let watch = inotify::init(CreateFlags::CLOEXEC)
            .map_err(Error::of("watch the container", "inotify_init1"))?;
        let what = WatchFlags::CREATE
            | WatchFlags::MOVED_TO
            | WatchFlags::DELETE
            | WatchFlags::DELETE_SELF
            | WatchFlags::MOVE_SELF;
        inotify::add_watch(&watch, &run, what)
            .map_err(Error::of("watch the container", "inotify_add_watch"))?;
        let mut events = [0u8; 4096];
        rustix::io::read(&watch, &mut events).map_err(Error::of("watch the container", "read"))?;
        Ok(())
    }

    /// Tells those who follow events. That it cannot be written down changes nothing of what was
    /// done.
    pub(crate) fn event(&self, record: &Record, action: &str, more: &[(&str, &str)]) {
        let mut attributes = crate::launch::attributes(record);
        attributes.extend(
            more.iter()
                .map(|&(key, value)| (key.to_owned(), value.to_owned())),
        );
        let run_root = &self.settings().run_root;
        knarr_monitor::events::append(
            run_root,
            "container",
            action,
            record.id.as_str(),
            attributes,
        )
        .ok();
    }

    /// The ids of the containers that have a volume.
    pub(crate) fn users_of_volume(&self, name: &str) -> Result<Vec<String>> {
        let mut users = Vec::new();
        for id in self.ids()? {
            // A damaged record cannot say what it has; the volume is not in use by its word.
            let Ok(Some(record)) = Record::load(self.settings(), &id) else {
                continue;
            };
            if record.mounts.iter().any(|mount| mount.name == name) {
                users.push(id.to_string());
            }
        }
        Ok(users)
    }

    pub(crate) fn volume_remove_now(&self, name: &str, force: bool) -> Result<()> {
        let settings = self.settings();
        // Nobody makes a container with it meanwhile.
        let _alone = Lock::exclusive(&settings.volumes().join(".lock"))?;
        if volume::load(settings, name)?.is_none() {
            if force {
                return Ok(());
            }
            return Err(self.no_volume(name)?);
        }
        let containers = self.users_of_volume(name)?;
        if !containers.is_empty() {
            return Err(Error::VolumeInUse { containers });
        }
        failpoint!("volume.remove");
        volume::remove(settings, name)?;
        Trash::below(&settings.root).empty().ok();
        Ok(())
    }

    pub(crate) fn no_volume(&self, name: &str) -> Result<Error> {
        let near = names::near(name, volume::all(self.settings())?);
        Ok(Error::VolumeNotFound {
            name: name.to_owned(),
            near,
        })
    }
}
