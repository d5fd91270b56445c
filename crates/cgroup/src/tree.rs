//! The directories of a cgroup: made, opened to controllers, entered, removed.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use knarr_sys::Failure;
use knarr_sys::rustix::fs;
use knarr_sys::rustix::io::Errno;
use knarr_sys::rustix::process::Pid;

use crate::control;
use crate::layout::Hierarchy;
use crate::settings::{self, Setting};
use crate::{Error, Result};

/// What was made, so that a failure can take it back.
#[derive(Debug, Default)]
pub(crate) struct Made(Vec<PathBuf>);

impl Made {
    /// Makes `dir` and what is missing between it and `mount`; whether it is new.
    pub(crate) fn directory(&mut self, mount: &Path, dir: &Path) -> Result<bool> {
        let failed = |cause| Error::Create {
            path: dir.to_owned(),
            cause,
        };
        match control::make_dir(dir) {
            Ok(fresh) => {
                if fresh {
                    self.0.push(dir.to_owned());
                }
                Ok(fresh)
            }
            Err(cause) if cause.errno == Errno::NOENT => match dir.parent() {
                Some(parent) if parent.starts_with(mount) && parent != mount => {
                    self.directory(mount, parent)?;
                    let fresh = control::make_dir(dir).map_err(failed)?;
                    if fresh {
                        self.0.push(dir.to_owned());
                    }
                    Ok(fresh)
                }
                _ => Err(failed(cause)),
            },
            Err(cause) => Err(failed(cause)),
        }
    }

    pub(crate) fn undo(&self) {
        for dir in self.0.iter().rev() {
            // The first failure is the one to tell; an empty cgroup can always be removed.
            fs::rmdir(dir).ok();
        }
    }
}

/// Moves a process.
pub(crate) fn join(dir: &Path, pid: Pid) -> Result<()> {
    let pid = pid.as_raw_nonzero().get();
    control::write_raw(&dir.join("cgroup.procs"), &pid.to_string()).map_err(|cause| Error::Join {
        pid,
        path: dir.to_owned(),
        cause,
    })
}

/// v2: switches on what limits need, and what numbers need if it can be had, in every cgroup
/// between the root and the container.
pub(crate) fn delegate(hierarchy: &Hierarchy, dir: &Path, settings: &[Setting]) -> Result<()> {
    if hierarchy.controllers().is_empty() {
        return Ok(());
    }
    let needed: BTreeSet<&str> = settings
        .iter()
        .filter(|setting| setting.unified)
        .flat_map(|setting| match setting.controller {
            "unified" => setting
                .choices
                .first()
                .and_then(|(file, _)| file.split('.').next()),
            controller => Some(settings::v2_name(controller)),
        })
        .filter(|controller| !matches!(*controller, "cgroup" | "unified"))
        .collect();
    let counting = ["cpu", "memory", "pids", "io"];
    let wanted: BTreeSet<&str> = counting
        .into_iter()
        .filter(|controller| hierarchy.has(controller))
        .chain(needed.iter().copied())
        .collect();
    if wanted.is_empty() {
        return Ok(());
    }
    let Ok(below) = dir.strip_prefix(&hierarchy.mount) else {
        return Ok(());
    };
    let mut parent = hierarchy.mount.clone();
    for part in below {
        let file = parent.join("cgroup.subtree_control");
        let enabled = control::read(&file)?;
        let enabled: BTreeSet<&str> = enabled.split_whitespace().collect();
        for controller in wanted.difference(&enabled) {
            if let Err(cause) = control::write_raw(&file, &format!("+{controller}"))
                && needed.contains(controller)
            {
                return Err(Error::Delegate {
                    path: parent,
                    controller: (*controller).to_owned(),
                    cause,
                });
            }
        }
        parent.push(part);
    }
    Ok(())
}

/// A fresh v1 cpuset is empty and takes no process; the parents' values are what "not asked" means.
pub(crate) fn inherit_cpuset(mount: &Path, dir: &Path) -> Result<()> {
    for file in ["cpuset.cpus", "cpuset.mems"] {
        let path = dir.join(file);
        if !control::read(&path)?.trim().is_empty() {
            continue;
        }
        if let Some(parent) = dir.parent()
            && dir != mount
        {
            inherit_cpuset(mount, parent)?;
            let inherited = control::read(&parent.join(file))?;
            control::write(&path, inherited.trim())?;
        }
    }
    Ok(())
}

/// Removes a directory with its children; a cgroup whose last process is still on its way out is
/// busy, so EBUSY is tried again until the deadline.
pub(crate) fn remove_dir(dir: &Path, deadline: Instant) -> std::result::Result<(), Failure> {
    let mut pause = Duration::from_micros(200);
    loop {
        match fs::rmdir(dir) {
            Ok(()) | Err(Errno::NOENT) => return Ok(()),
            Err(errno @ (Errno::BUSY | Errno::NOTEMPTY)) => {
                for child in control::children(dir).unwrap_or_default() {
                    remove_dir(&child, deadline)?;
                }
                match fs::rmdir(dir) {
                    Ok(()) | Err(Errno::NOENT) => return Ok(()),
                    Err(_) if Instant::now() < deadline => {
                        std::thread::sleep(pause);
                        pause = (pause * 2).min(Duration::from_millis(50));
                    }
                    Err(_) => {
                        return Err(Failure {
                            call: "rmdir",
                            errno,
                        });
                    }
                }
            }
            Err(errno) => {
                return Err(Failure {
                    call: "rmdir",
                    errno,
                });
            }
        }
    }
}
