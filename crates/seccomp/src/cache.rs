//! Compiled programs on disk.
//!
//! ```text
//! "knarr-seccomp 1\n"  length of the key (u32)  key  program (Program::to_bytes)
//! ```
//! The key is the section itself, canonical, with the architecture. The file is named by a short
//! hash of it, so two sections may share a name: the later one then replaces the earlier, and
//! neither is ever taken for the other. A program made by another version of the compiler has
//! another head.

use std::path::{Path, PathBuf};

use knarr_fs as fs;
use knarr_spec::runtime::Seccomp;

use crate::{Arch, Program, Result, compile};

/// Of the file and of the compiler: to be raised when [`compile`] gives other programs.
const HEAD: &[u8] = b"knarr-seccomp 1\n";

/// Compiled programs, `<run root>/seccomp/<hash>`. A file holds the section it was compiled from
/// beside the program, and is used only if that is the section asked for.
#[derive(Debug)]
pub struct Cache {
    dir: PathBuf,
}

impl Cache {
    /// Below a run root; the folder is made when something is stored.
    pub fn new(run_root: &Path) -> Self {
        Self {
            dir: run_root.join("seccomp"),
        }
    }

    /// The program for a section: read, or compiled and stored. That it cannot be stored is no
    /// failure.
    ///
    /// # Errors
    /// As [`compile`].
    pub fn program(&self, section: &Seccomp) -> Result<Program> {
        let Some(key) = key(section) else {
            return compile(section);
        };
        let path = self.dir.join(format!("{:016x}", knarr_spec::fnv1a(&key)));
        if let Some(program) = fs::read(&path).ok().and_then(|bytes| parse(&bytes, &key)) {
            return Ok(program);
        }
        let program = compile(section)?;
        let bytes = [HEAD, &length(&key), &key, &program.to_bytes()].concat();
        // The next start compiles again, that is all.
        fs::create_dir_all(&self.dir)
            .and_then(|()| fs::write_atomic(&path, &bytes, fs::Durability::Volatile))
            .ok();
        Ok(program)
    }
}

/// What decides the program: the section in the order of its fields, and the host.
fn key(section: &Seccomp) -> Option<Vec<u8>> {
    let mut key = Arch::HOST.oci_name().as_bytes().to_vec();
    serde_json::to_writer(&mut key, section).ok()?;
    Some(key)
}

fn length(key: &[u8]) -> [u8; 4] {
    u32::try_from(key.len()).unwrap_or(u32::MAX).to_le_bytes()
}

fn parse(bytes: &[u8], key: &[u8]) -> Option<Program> {
    let rest = bytes.strip_prefix(HEAD)?;
    let program = rest.strip_prefix(&length(key))?.strip_prefix(key)?;
    Program::from_bytes(program).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::default_profile;

    #[test]
    fn a_program_is_read_back_and_a_bad_file_is_not_believed() {
        let dir = tempfile::tempdir().unwrap();
        let cache = Cache::new(dir.path());
        let section = default_profile(&["CAP_CHOWN"], Arch::HOST);
        let compiled = compile(&section).unwrap();
        assert_eq!(cache.program(&section).unwrap(), compiled);
        let files: Vec<_> = std::fs::read_dir(&cache.dir)
            .unwrap()
            .map(|entry| entry.unwrap().path())
            .collect();
        assert_eq!(files.len(), 1);
        let good = std::fs::read(&files[0]).unwrap();
        // A marked program shows that the file is what is used.
        let mut marked = good.clone();
        let last = marked.len() - 8;
        marked[last..].copy_from_slice(&[6, 0, 0, 0, 1, 2, 3, 4]);
        std::fs::write(&files[0], &marked).unwrap();
        assert_ne!(cache.program(&section).unwrap(), compiled);
        for (what, bad) in [
            (
                "another version",
                [b"knarr-seccomp 0\n", &good[HEAD.len()..]].concat(),
            ),
            ("another section", {
                let mut bad = good.clone();
                bad[HEAD.len() + 40] ^= 1;
                bad
            }),
            ("cut short", good[..good.len() - 3].to_vec()),
            (
                "without program",
                good[..good.len() - compiled.to_bytes().len()].to_vec(),
            ),
            ("empty", Vec::new()),
        ] {
            std::fs::write(&files[0], &bad).unwrap();
            assert_eq!(cache.program(&section).unwrap(), compiled, "{what}");
            assert_eq!(
                std::fs::read(&files[0]).unwrap(),
                good,
                "{what}: written anew"
            );
        }
        let other = default_profile(&["CAP_SYS_ADMIN"], Arch::HOST);
        assert_eq!(cache.program(&other).unwrap(), compile(&other).unwrap());
        assert_eq!(std::fs::read_dir(&cache.dir).unwrap().count(), 2);
    }

    #[test]
    fn a_folder_that_cannot_be_written_is_no_failure() {
        let section = default_profile(&["CAP_CHOWN"], Arch::HOST);
        let cache = Cache::new(Path::new("/proc/nowhere"));
        assert_eq!(cache.program(&section).unwrap(), compile(&section).unwrap());
    }
}
