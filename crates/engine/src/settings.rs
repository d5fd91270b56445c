//! Where everything is.

use std::path::PathBuf;

use crate::Result;

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
    /// When the running binary cannot be found.
    pub fn locate(root: Option<PathBuf>, run_root: Option<PathBuf>) -> Result<Self> {
        let _ = (root, run_root);
        todo!()
    }
}
