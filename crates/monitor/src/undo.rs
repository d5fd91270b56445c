//! What must be undone, written down before it is done; and the undoing, by whoever comes next.
//!
//! ```text
//! <run root>/containers/<id>/undo    from before the first effect until nothing is left of it
//! <run root>/ending/<id>/            the run folder of a removed container while its cgroups go
//! ```
//! Whoever undoes holds the container's lock. Every step is idempotent.

use std::path::{Path, PathBuf};
use std::time::Duration;

use knarr_cgroup::{Cgroup, Layout};
use knarr_fs::{Durability, Lock, Trash};
use serde::{Deserialize, Serialize};

use crate::request::{Removal, Request};
use crate::state::{State, Status};
use crate::{Error, Result, stdio};

pub(crate) const UNDO_FILE: &str = "undo";
pub(crate) const REQUEST_FILE: &str = "request.json";
pub(crate) const SOCKET_FILE: &str = "monitor.sock";
pub(crate) const EXECS_FOLDER: &str = "execs";
const LOCK_FILE: &str = "lock";
const VERSION: u32 = 1;

/// What one start leaves behind that does not end with its processes.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Undo {
    version: u32,
    pub(crate) run_root: PathBuf,
    pub(crate) cgroup: knarr_cgroup::Plan,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) data: Option<PathBuf>,
    /// The networks that it is on.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    networks: Vec<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) remove: Option<Removal>,
}

/// What [`sweep`] found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Swept {
    /// Nothing to undo.
    Clean,
    /// Something was undone; the container is there, and ended.
    Undone,
    /// It was a `--rm` container and is gone.
    Removed,
    /// It lives: adopt it instead.
    Alive,
}

impl Undo {
    pub(crate) fn of(request: &Request) -> Self {
        Self {
            version: VERSION,
            run_root: request.paths.run_root.clone(),
            cgroup: request.cgroup.clone(),
            data: request.paths.data.clone(),
            networks: request.network.as_ref().map_or_else(Vec::new, |plan| {
                let names = plan.endpoints.iter().map(|endpoint| &endpoint.network.name);
                names.cloned().collect()
            }),
            remove: request.remove.clone(),
        }
    }

    pub(crate) fn save(&self, run: &Path) -> Result<()> {
        let bytes = serde_json::to_vec(self).map_err(Error::request)?;
        Ok(knarr_fs::write_atomic(
            &run.join(UNDO_FILE),
            &bytes,
            Durability::Volatile,
        )?)
    }

    pub(crate) fn load(run: &Path) -> Result<Option<Self>> {
        let path = run.join(UNDO_FILE);
        let bytes = match knarr_fs::read(&path) {
            Ok(bytes) => bytes,
            Err(error) if error.is_not_found() => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        let damaged = |cause| Error::State {
            path: path.clone(),
            cause,
        };
        let undo = crate::parse_versioned(&bytes, "undo record", VERSION, damaged)?;
        Ok(Some(undo))
    }

    /// Kills what is left and removes the cgroups. Slow on a machine that is busy with its end.
    pub(crate) fn remove_cgroup(&self) -> Result<()> {
        let layout = Layout::detect()?;
        if let Ok(cgroup) = Cgroup::open(&layout, &self.cgroup) {
            empty(&cgroup)?;
        }
        Ok(Cgroup::remove(&layout, &self.cgroup)?)
    }

    /// The networks that it is on, or was on since it started.
    pub(crate) fn networks(&self) -> &[String] {
        &self.networks
    }

    /// It is about to join one more network.
    pub(crate) fn note_network(&mut self, name: &str) {
        if !self.networks.iter().any(|known| known == name) {
            self.networks.push(name.to_owned());
        }
    }

    /// Closes ports, removes names and addresses that a killed monitor has left. After the
    /// processes are gone: then their links go, too.
    fn sweep_network(&self, run: &Path) -> Result<()> {
        let id = run.file_name().and_then(|name| name.to_str()?.parse().ok());
        match id {
            Some(id) if !self.networks.is_empty() => {
                Ok(knarr_net::sweep(&self.run_root, &id, &self.networks)?)
            }
            _ => Ok(()),
        }
    }

    /// Removes the container: first its name and data, then, by one rename, the run folder. Gives
    /// where the run folder is now.
    pub(crate) fn remove_container(&self, run: &Path, removal: &Removal) -> Result<PathBuf> {
        let trash = Trash::below(&removal.data_root);
        for path in &removal.paths {
            trash.throw(path)?;
            knarr_fs::failpoint!("monitor.rm");
        }
        let ending = self.run_root.join("ending");
        knarr_fs::create_dir_all(&ending)?;
        let place = ending.join(run.file_name().unwrap_or_default());
        knarr_fs::rename(run, &place)?;
        Ok(place)
    }
}

/// Ends every process in a cgroup and waits, for a moment, until they are gone.
pub(crate) fn empty(cgroup: &Cgroup) -> Result<()> {
    // 10 + 20 + … ms, two seconds in all: killed processes end at once, unless they wait for a disk.
    for round in 0..20 {
        if !cgroup.is_populated()? {
            return Ok(());
        }
        cgroup.kill()?;
        if round > 0 || cgroup.is_populated()? {
            std::thread::sleep(Duration::from_millis(if round == 0 {
                1
            } else {
                10 * round
            }));
        }
    }
    Ok(())
}

/// Undoes what a monitor that is gone has left of a container that does not live: processes,
/// cgroups, streams; with `--rm` the container itself. Whoever calls it holds the lock.
/// Cheap when there is nothing to do. Afterwards `state.json` tells the truth.
///
/// # Errors
/// The first thing that could not be undone, after trying all of it; another call tries again.
pub fn sweep(run: &Path, lock: &Lock) -> Result<Swept> {
    // The lock is proof that no monitor lives; nothing else is done with it.
    let _: &Lock = lock;
    if let Some(observed) = crate::client::observe(run)?
        && observed.alive
    {
        return Ok(Swept::Alive);
    }
    let Some(undo) = Undo::load(run)? else {
        return Ok(Swept::Clean);
    };
    let cgroup = undo.remove_cgroup().and(undo.sweep_network(run));
    if let Some(removal) = &undo.remove {
        // A failure above is kept for the folder in `ending`, where another sweep finds it.
        let place = undo.remove_container(run, removal)?;
        cgroup?;
        knarr_fs::remove_tree(&place)?;
        Trash::below(&removal.data_root).empty()?;
        return Ok(Swept::Removed);
    }
    let told = tell_the_end(run, undo.data.as_deref());
    let streams = clean_run(run);
    cgroup.and(told).and(streams)?;
    knarr_fs::remove_file(&run.join(UNDO_FILE))?;
    Ok(Swept::Undone)
}

/// Finishes the removal of `--rm` containers whose monitors were killed in the middle of it. Cheap
/// when there are none.
///
/// # Errors
/// The first thing that could not be undone, after trying all of it.
pub fn sweep_ending(run_root: &Path) -> Result<()> {
    let ending = run_root.join("ending");
    let mut result = Ok(());
    for name in knarr_fs::file_names(&ending)? {
        let folder = ending.join(name);
        // A monitor that is at it holds the lock. Without the file there was nothing to lock yet.
        let swept = Lock::try_exclusive(&folder.join(LOCK_FILE))
            .map_err(Error::from)
            .and_then(|lock| match lock {
                None => Ok(()),
                Some(_held) => {
                    if let Some(undo) = Undo::load(&folder)? {
                        undo.remove_cgroup()?;
                        undo.sweep_network(&folder)?;
                    }
                    Ok(knarr_fs::remove_tree(&folder)?)
                }
            });
        result = result.and(swept);
    }
    result
}

/// Removes from the run folder what belongs to a live container only.
pub(crate) fn clean_run(run: &Path) -> Result<()> {
    let socket = knarr_fs::remove_file(&run.join(SOCKET_FILE));
    let request = knarr_fs::remove_file(&run.join(REQUEST_FILE));
    stdio::remove(run)?;
    socket?;
    Ok(request?)
}

/// Rewrites a state that says more than is true, as nobody saw the end.
fn tell_the_end(run: &Path, data: Option<&Path>) -> Result<()> {
    let Some(mut state) = State::load(run)? else {
        return Ok(());
    };
    if state.status.is_alive() {
        state = unseen_end(state);
        state.save(run, Durability::Volatile)?;
    }
    match data {
        Some(data) => state.save(data, Durability::Volatile),
        None => Ok(()),
    }
}

/// The state of a container that ended while nobody looked.
pub(crate) fn unseen_end(mut state: State) -> State {
    if state.status == Status::Restarting {
        // How it ended last is known; only the restart did not happen.
        state.error = Some("its monitor was killed while it waited to restart it".to_owned());
    } else {
        state.exit_code = Some(255);
        state.error = Some(
            "its monitor was killed and nobody saw the end: the exit code is not known".to_owned(),
        );
    }
    state.finished_at.get_or_insert_with(crate::clock::now);
    over(state)
}

/// The state of a container that ran when the machine went down.
pub(crate) fn lost_end(mut state: State) -> State {
    state.exit_code = Some(255);
    state.error = Some("the machine was restarted while it ran".to_owned());
    // Nobody knows when that was; it had ended when this boot began.
    state.finished_at.get_or_insert_with(crate::clock::boot);
    over(state)
}

fn over(mut state: State) -> State {
    state.status = Status::Exited;
    state.process = None;
    state.monitor = None;
    state
}
