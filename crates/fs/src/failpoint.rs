//! Places where tests kill the process.

use std::sync::OnceLock;

use rustix::process::{Signal, getpid, kill_process};

/// A point and what happens there, from `KNARR_FAILPOINT=<name>[:stop]`.
struct Armed {
    name: String,
    signal: Signal,
}

static ARMED: OnceLock<Option<Armed>> = OnceLock::new();

/// Marks an instant by name: `failpoint!("run.cloned")`.
///
/// Where the environment variable `KNARR_FAILPOINT` holds this name, the process sends itself
/// SIGKILL here, or SIGSTOP for `name:stop`. All it can do is end the process it is set for, so
/// it is in release builds too and what is tested is what ships.
///
/// The variable is read once; a process that forks must have passed a failpoint before (any name),
/// so that the child does not allocate.
#[macro_export]
macro_rules! failpoint {
    ($name:literal) => {
        $crate::failpoint_hit($name)
    };
}

/// What [`failpoint!`](crate::failpoint) calls.
pub fn hit(name: &str) {
    let armed = ARMED.get_or_init(|| {
        let value = std::env::var("KNARR_FAILPOINT").ok()?;
        Some(match value.strip_suffix(":stop") {
            Some(name) => Armed {
                name: name.to_owned(),
                signal: Signal::STOP,
            },
            None => Armed {
                name: value,
                signal: Signal::KILL,
            },
        })
    });
    if let Some(armed) = armed
        && armed.name == name
        // It cannot fail: a process may always signal itself. (In a new pid namespace init
        // ignores even SIGKILL from itself, hence the exit.)
        && (kill_process(getpid(), armed.signal).is_err() || armed.signal == Signal::KILL)
    {
        knarr_sys::process::exit_now(137);
    }
}
