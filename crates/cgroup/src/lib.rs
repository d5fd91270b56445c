//! Control groups of one container: limits, identity, numbers, on v2, v1 and both at once.
//!
//! Owns every directory named `knarr-*` below the mounted cgroup hierarchies. It never starts a
//! process, never moves one that is not the container's (or its own, when asked to), and never
//! touches a cgroup that it did not make, save to switch controllers on for its children.
//!
//! ```text
//! pure v2   /sys/fs/cgroup/knarr-<id>                 identity, limits, numbers, device program
//! hybrid    /sys/fs/cgroup/unified/knarr-<id>         identity, freeze, kill, device program
//!           /sys/fs/cgroup/<v1>/<own>/knarr-<id>      limits (before exec) and numbers (lazily)
//! pure v1   /sys/fs/cgroup/<v1>/<own>/knarr-<id>      everything; identity in `freezer` or `pids`
//! ```
//! `<own>` is the cgroup of the caller in that hierarchy: who is limited cannot use Knarr to
//! escape. v2 has no place below the caller, because a cgroup with processes cannot pass its
//! controllers on; there the container lives at the root, or below `--cgroup-parent`.
//!
//! A [`Plan`] holds all of it, resolved, so that any later process finds the same directories.
//!
//! Invariants:
//! - On v2 and hybrid a process enters by `CLONE_INTO_CGROUP` ([`Cgroup::dir_fd`]): no migration.
//! - A v1 hierarchy without a limit is not touched by [`Cgroup::create`]: the first write to a v1
//!   `cgroup.procs` after a quiet moment waits 5 to 17 ms for a grace period of the kernel.
//! - Limits are in force before the program runs ([`Cgroup::join_limits`] before the gate opens).

mod control;
mod devices;
mod error;
mod freezer;
mod handle;
mod layout;
mod limits;
mod plan;
pub mod report;
mod settings;
mod stats;
mod systemd;
mod tree;

pub use devices::{Access, DeviceKind, DeviceRule};
pub use error::{Error, Result};
pub use handle::Cgroup;
pub use layout::{Layout, Mode};
pub use limits::Limits;
pub use plan::{Plan, Warning};
pub use report::Report;
pub use stats::{BlockStats, CpuStats, MemoryStats, PidsStats, Stats};
pub use systemd::Unit;
