//! Where everything is.

use std::path::{Path, PathBuf};

use knarr_spec::ContainerId;

use crate::{Error, Result};

/// The folders and the monitor binary that an engine works with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// The data root, `/var/lib/knarr`.
    pub root: PathBuf,
    /// The run root, `/run/knarr`; on tmpfs.
    pub run_root: PathBuf,
    /// The `knarr-monitor` binary.
    pub monitor: PathBuf,
}

impl Settings {
    /// The defaults: what is given (`--root`, `--runroot`), else `KNARR_ROOT` and `KNARR_RUNROOT`,
    /// else the system's folders. The monitor is `KNARR_MONITOR`, else `knarr-monitor` beside the
    /// running binary. Nothing is touched.
    ///
    /// # Errors
    /// When the running binary cannot be found, or a given path is relative to a folder that is gone.
    pub fn locate(root: Option<PathBuf>, run_root: Option<PathBuf>) -> Result<Self> {
        let pick = |given: Option<PathBuf>, variable: &str, default: &str| {
            let from_env = || std::env::var_os(variable).filter(|value| !value.is_empty());
            let path = given
                .or_else(|| from_env().map(PathBuf::from))
                .unwrap_or_else(|| PathBuf::from(default));
            std::path::absolute(&path).map_err(knarr_fs::Error::of_io(
                "make absolute",
                "getcwd",
                &path,
            ))
        };
        let monitor = match std::env::var_os("KNARR_MONITOR").filter(|value| !value.is_empty()) {
            Some(path) => PathBuf::from(path),
            None => std::env::current_exe()
                .map_err(knarr_fs::Error::of_io(
                    "read the link",
                    "readlink",
                    Path::new("/proc/self/exe"),
                ))?
                .with_file_name("knarr-monitor"),
        };
        Ok(Self {
            root: pick(root, "KNARR_ROOT", "/var/lib/knarr")?,
            run_root: pick(run_root, "KNARR_RUNROOT", "/run/knarr")?,
            monitor,
        })
    }

    /// `<data>/containers`
    pub(crate) fn containers(&self) -> PathBuf {
        self.root.join("containers")
    }

    /// `<run>/containers`
    pub(crate) fn run_containers(&self) -> PathBuf {
        self.run_root.join("containers")
    }

    /// `<run>/containers/<id>`
    pub(crate) fn run_dir(&self, id: &ContainerId) -> PathBuf {
        self.run_containers().join(id.as_str())
    }

    /// `<data>/containers/<id>`
    pub(crate) fn data_dir(&self, id: &ContainerId) -> PathBuf {
        self.containers().join(id.as_str())
    }

    /// `<data>/ephemeral/<id>`: the writable layer of a `--rm` container. On disk, because the run
    /// root is memory; never synced, because its overlay is volatile.
    pub(crate) fn ephemeral_dir(&self, id: &ContainerId) -> PathBuf {
        self.root.join("ephemeral").join(id.as_str())
    }

    /// `<data>/names`
    pub(crate) fn names(&self) -> PathBuf {
        self.root.join("names")
    }

    /// `<data>/volumes`
    pub(crate) fn volumes(&self) -> PathBuf {
        self.root.join("volumes")
    }

    /// `<data>/userns`
    pub(crate) fn leases(&self) -> PathBuf {
        self.root.join("userns")
    }

    /// Makes the folders that everything else takes for granted, and wipes a run root that another
    /// boot left.
    pub(crate) fn prepare(&self) -> Result<()> {
        let make = |path: &Path| {
            knarr_fs::create_dir_all(path).map_err(|error| {
                if matches!(
                    error.errno(),
                    Some(rustix::io::Errno::ACCESS | rustix::io::Errno::PERM)
                ) && !rustix::process::geteuid().is_root()
                {
                    Error::NotRoot
                } else {
                    Error::Fs(error)
                }
            })
        };
        let boot = boot_id()?;
        let marker = self.run_root.join("boot-id");
        let known = knarr_fs::read_to_string(&marker).ok();
        if known.as_deref() == Some(&boot) {
            return Ok(());
        }
        make(&self.run_root)?;
        for folder in [
            self.containers(),
            self.names(),
            self.volumes(),
            self.run_containers(),
        ] {
            make(&folder)?;
        }
        let lock = knarr_fs::Lock::exclusive(&self.run_root.join("lock"))?;
        if knarr_fs::read_to_string(&marker).ok().as_deref() != Some(&boot) {
            // What another boot's containers left is stale: nothing of it runs.
            for stale in [self.run_containers(), self.root.join("ephemeral")] {
                for name in knarr_fs::file_names(&stale)? {
                    knarr_fs::remove_tree(&stale.join(name))?;
                }
            }
            for stale in ["layers", "seccomp", "networks", "published", "firewall"] {
                knarr_fs::remove_tree(&self.run_root.join(stale))?;
            }
            knarr_fs::remove_file(&self.run_root.join("forwarding"))?;
            knarr_fs::write_atomic(&marker, boot.as_bytes(), knarr_fs::Durability::Volatile)?;
        }
        drop(lock);
        Ok(())
    }
}

/// The kernel's name for this boot.
pub(crate) fn boot_id() -> Result<String> {
    let text = knarr_fs::read_to_string(Path::new("/proc/sys/kernel/random/boot_id"))?;
    Ok(text.trim().to_owned())
}
