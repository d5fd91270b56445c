//! OCI config → [`Plan`] → a running container: create, start, exec, signals, and why a start
//! failed.
//!
//! Owns everything between `clone3` and `execve`, on both sides of the fork. Never keeps state of
//! its own on disk, never forks a second time where once is enough, never prints, and knows nothing
//! of images, networks or restarts. Cgroups come as a directory to be cloned into, the root file
//! system as a detached mount, the system call filter as compiled bytes.
//!
//! ```text
//! spec::runtime::Config ──plan()──▶ Plan (pure, serde, `knarr run --plan`)
//!                                    │ Launch { plan, rootfs, stdio, cgroup }
//!  parent                            ▼                                child
//!  resolve user, open binds, make C strings, buffers, sockets
//!  begin() ──────────── clone3(all namespaces, cgroup, pidfd) ───────▶ waits where a user
//!  writes uid/gid maps, oom_score_adj ────────── M ──────────────────▶ namespace is new
//!  caller joins v1 cgroups, joined() ─────────── J ──────────────────▶ (only where waited for)
//!                                                       mounts, devices, /proc, masks, pivot_root
//!  ready() ◀───────────── ready (+ pty master by SCM_RIGHTS) ────────
//!  start() ───────────────────── go ─────────────────────────────────▶ user, caps, seccomp
//!          ◀───────── end of file: execve went well ────────────────── execve
//!          ◀───────── or 16 bytes: (step, index, call, errno) ───────  exit
//! ```
//! Hooks stop the child once more, before `pivot_root`. A container whose creator does not stay
//! (`knarr-oci create`) waits at a listening socket of the creator's instead of *go*; who connects
//! starts it and hears the same answers.
//!
//! Invariants:
//! * The child allocates nothing, takes no lock and runs no destructor that matters: all it needs
//!   was made before the clone (`prepare`), and all it can say is a fixed-size message that the
//!   parent turns into an error naming the object from the plan.
//! * Every path in the container's tree is resolved by `openat2` below the root's descriptor, and
//!   every mount is attached to a descriptor, so no symlink of the image leads out.
//! * Descriptors are close-on-exec from birth; the child closes the rest before `execve`.

mod capability;
mod child;
mod console;
mod copy;
pub mod diagnose;
mod error;
mod exec;
pub mod hook;
mod init;
mod launch;
mod plan;
mod prepare;
pub mod process;
pub mod rootless;
pub mod seal;
mod step;
pub mod user;
pub mod weak;

pub use capability::Capability;
pub use error::{Error, Result};
pub use exec::{ExecExtras, ExecPlan, Target, exec, exec_then};
pub use launch::{
    Begun, Created, Extras, Init, Launch, Process, Stdio, Waiting, begin, create, open_gate,
    send_fd,
};
pub use plan::{
    AffinityPlan, Attribute, CapabilitySets, CgroupHierarchy, CgroupView, ConsoleSize, DeviceKind,
    DevicePlan, HookPlan, HooksPlan, IdRange, Idmap, JoinNamespace, ListenerPlan, MemoryPolicyPlan,
    MountChange, MountKind, MountPlan, Namespace, Plan, PlanOptions, ProcessPlan, Propagation,
    Rlimit, RootPlan, SchedulerPlan, SuperOption, Sysctl, TimeOffset, UserNamespace, UserPlan,
    hook_plan, plan, process_plan,
};
