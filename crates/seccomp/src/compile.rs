//! From a section to a program.

use knarr_spec::runtime::Seccomp;

use crate::{Program, Result};

/// Compiles an OCI `linux.seccomp` section. Without architectures the host's own is meant, as in
/// runc. Names of calls that an architecture does not have are left out there.
///
/// # Errors
/// [`Error::Architecture`](crate::Error::Architecture), [`Error::Flag`](crate::Error::Flag),
/// [`Error::Argument`](crate::Error::Argument), [`Error::TooLong`](crate::Error::TooLong), …
pub fn compile(section: &Seccomp) -> Result<Program> {
    let _ = section;
    todo!()
}
