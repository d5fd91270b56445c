//! System call filters: an OCI seccomp section becomes one small BPF program.
//!
//! Owns the compiler, Docker's default profile, and the cache of compiled programs. It never
//! installs a filter: that is `knarr_sys::seccomp::load`, called by the runtime in the child.
//!
//! ```text
//! Profile (Docker's JSON or `Profile::docker`) --section(capabilities)--> spec::runtime::Seccomp
//!     --compile--> Program  [load arch; per arch: binary tree over ranges of call numbers; leaves
//!                            return at once or compare arguments]
//! <run root>/seccomp/<hash>     compiled programs, each with the section it was made from
//! ```
//! Semantics are libseccomp's and runc's, checked against libseccomp in the tests: rules of one
//! call are alternatives, conditions of one rule must all hold (but one that names an argument twice
//! means "or"), a rule without conditions beats all others, calls newer than the profile fail with
//! ENOSYS, calls through an architecture that is not listed kill. Where rules of one call contradict
//! each other libseccomp's answer is an accident of its trees (some never end); here the first rule
//! that matches decides.
//!
//! ```
//! use knarr_seccomp::{Arch, Profile, compile};
//! let section = Profile::docker().section(&["CAP_CHOWN"], Arch::HOST);
//! let program = compile(&section).unwrap();
//! assert!(program.instructions().len() < 4096);
//! ```

mod arch;
mod assemble;
mod cache;
mod compile;
mod docker;
mod error;
mod profile;
mod program;
mod table;

pub use arch::Arch;
pub use cache::Cache;
pub use compile::compile;
pub use error::{Error, Result};
pub use knarr_sys::seccomp::{Flags, Instruction};
pub use profile::{ArchMap, Condition, Profile, Rule, default_profile};
pub use program::Program;
