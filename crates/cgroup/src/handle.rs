//! The cgroup of one container: made, entered, watched, removed.

use std::os::fd::BorrowedFd;

use knarr_sys::rustix::process::Pid;

use crate::Result;
use crate::layout::Layout;
use crate::plan::{Limits, Plan};
use crate::stats::Stats;

/// A handle on a container's cgroup in all hierarchies. Dropping it changes nothing.
#[derive(Debug)]
pub struct Cgroup {
    plan: Plan,
}

impl Cgroup {
    /// Makes the directories that identity and limits need, sets the limits, installs the device
    /// rules. Idempotent. Without limits on v2 or hybrid it is one mkdir. When it fails, what it made is gone.
    ///
    /// # Errors
    /// [`Error::Create`](crate::Error::Create), [`Error::Write`](crate::Error::Write),
    /// [`Error::Delegate`](crate::Error::Delegate), [`Error::Devices`](crate::Error::Devices).
    pub fn create(layout: &Layout, plan: &Plan) -> Result<Self> {
        let _ = (layout, plan);
        todo!()
    }

    /// Opens what [`Self::create`] made, perhaps in another process.
    ///
    /// # Errors
    /// [`Error::Open`](crate::Error::Open), of class not-found when it does not exist.
    pub fn open(layout: &Layout, plan: &Plan) -> Result<Self> {
        let _ = (layout, plan);
        todo!()
    }

    /// The plan it was made from.
    pub fn plan(&self) -> &Plan {
        &self.plan
    }

    /// The v2 directory, for `CLONE_INTO_CGROUP`; `None` on pure v1.
    pub fn dir_fd(&self) -> Option<BorrowedFd<'_>> {
        todo!()
    }

    /// Whether [`Self::join_limits`] has anything to do.
    pub fn needs_join(&self) -> bool {
        todo!()
    }

    /// Moves a process that is still held back into the v1 hierarchies that limit it (on pure v1
    /// also into the one that identifies it). Meant for the parent, while the child makes its
    /// mounts: the first write after a quiet moment takes 5 to 17 ms, further ones some 20 µs.
    ///
    /// # Errors
    /// [`Error::Join`](crate::Error::Join).
    pub fn join_limits(&self, pid: Pid) -> Result<()> {
        let _ = pid;
        todo!()
    }

    /// Moves all processes of the container into the v1 hierarchies that count for [`Self::stats`]
    /// and were not joined yet. Memory used before stays charged to where it was. Nothing to do on v2.
    ///
    /// # Errors
    /// [`Error::Create`](crate::Error::Create), [`Error::Join`](crate::Error::Join).
    pub fn join_stats(&self) -> Result<()> {
        todo!()
    }

    /// Stops all processes and waits until they stand.
    ///
    /// # Errors
    /// [`Error::Stuck`](crate::Error::Stuck).
    pub fn freeze(&self) -> Result<()> {
        todo!()
    }

    /// Lets them go on.
    ///
    /// # Errors
    /// [`Error::Write`](crate::Error::Write).
    pub fn thaw(&self) -> Result<()> {
        todo!()
    }

    /// Whether it is frozen.
    ///
    /// # Errors
    /// [`Error::Read`](crate::Error::Read).
    pub fn is_frozen(&self) -> Result<bool> {
        todo!()
    }

    /// Sends SIGKILL to every process in it, frozen ones and those of child cgroups included, and
    /// does not wait for their end.
    ///
    /// # Errors
    /// [`Error::Write`](crate::Error::Write), [`Error::Read`](crate::Error::Read).
    pub fn kill(&self) -> Result<()> {
        todo!()
    }

    /// Whether a live process is in it or in a child cgroup.
    ///
    /// # Errors
    /// [`Error::Read`](crate::Error::Read).
    pub fn is_populated(&self) -> Result<bool> {
        todo!()
    }

    /// All processes, child cgroups included, ascending, in the caller's pid namespace.
    ///
    /// # Errors
    /// [`Error::Read`](crate::Error::Read).
    pub fn processes(&self) -> Result<Vec<Pid>> {
        todo!()
    }

    /// What was used until now.
    ///
    /// # Errors
    /// [`Error::Read`](crate::Error::Read).
    pub fn stats(&self) -> Result<Stats> {
        todo!()
    }

    /// How many processes the kernel killed in it because memory ran out; 0 where nobody counts.
    ///
    /// # Errors
    /// [`Error::Read`](crate::Error::Read).
    pub fn oom_kills(&self) -> Result<u64> {
        todo!()
    }

    /// Changes limits while it runs: those that are `Some` in `limits`, the others stay. On v1,
    /// processes are moved into hierarchies that start to limit them. Keep [`Self::plan`] afterwards.
    ///
    /// # Errors
    /// [`Error::Write`](crate::Error::Write): what was set before the failure stays set.
    pub fn update(&mut self, limits: &Limits) -> Result<()> {
        let _ = limits;
        todo!()
    }

    /// Removes the directories in all hierarchies, child cgroups included. Idempotent. Processes that
    /// were just killed are waited for briefly.
    ///
    /// # Errors
    /// [`Error::Remove`](crate::Error::Remove) with all that is still there.
    pub fn remove(layout: &Layout, plan: &Plan) -> Result<()> {
        let _ = (layout, plan);
        todo!()
    }
}
