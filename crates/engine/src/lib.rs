//! Containers and volumes: what Docker's words mean here, decided, written down and carried out.
//!
//! Owns `container.json` and `volume.json`, names, leases of user id ranges, and the pure step from
//! Docker's configuration to an OCI one (module `spec`). It asks the image store for layers, hands a
//! finished plan to a monitor per container and keeps nothing running itself: an [`Engine`] is two
//! paths and some parsed facts, as cheap as a function call.
//!
//! It never prints, never draws a progress bar, never forks with threads running, and never
//! executes a program of a container outside of it.
//!
//! ```text
//! <data>/containers/<id>/       container.json upper/ work/ logs/ hosts resolv.conf hostname
//! <data>/ephemeral/<id>/        upper/ work/ of a --rm container (on disk, but never synced)
//! <data>/names/<name>           symlink to the id, of both kinds of containers
//! <data>/volumes/<name>/        volume.json data/
//! <data>/userns/<start>         symlink to the id that leases these 65536 ids
//! <run>/boot-id                 which boot the run root belongs to
//! <run>/containers/<id>/        lock state.json monitor.sock …; container.json of a --rm container;
//!                               intent.json while it is made, renamed or removed
//! ```
//!
//! Invariants:
//! - A container exists once its folder has its final name: everything before is in a `.tmp-` folder.
//! - Only the holder of `<run>/containers/<id>/lock` changes a container or rolls it back.
//! - What has no other trace of whose it is stands in `intent.json` before it is made or taken
//!   away, so the next call on a container undoes or finishes what a killed one began.
//! - What an image says (its labels, its volumes, its user) never becomes what Knarr does.
//!
//! ```no_run
//! use knarr_engine::{CreateRequest, Engine, Settings, StartOptions, image::Silent};
//! let engine = Engine::open(Settings::locate(None, None)?)?;
//! let mut request = CreateRequest::default();
//! request.config.image = "debian".to_owned();
//! request.config.cmd = Some(vec!["true".to_owned()]);
//! let (created, _) = engine.run(&request, &StartOptions::default(), &Silent)?;
//! assert_eq!(engine.resolve(created.name.as_str())?, created.id);
//! # Ok::<(), knarr_engine::Error>(())
//! ```

mod check;
mod commit;
mod container;
mod copy;
mod create;
mod engine;
mod error;
mod events;
mod exec;
mod files;
mod find;
mod image_mount;
mod inspect;
mod launch;
mod life;
mod list;
mod logs;
mod merge;
mod mounts;
mod names;
mod network;
mod prune;
mod record;
mod session;
mod settings;
mod signal;
mod spec;
mod system;
mod time;
mod top;
mod update;
mod usage;
mod userns;
mod volume;
mod watch;

pub use commit::CommitRequest;
pub use container::{
    CreateRequest, Created, RemoveOptions, StartOptions, StopOptions, WaitCondition,
};
pub use copy::{CopyEnd, CopyOptions};
pub use engine::Engine;
pub use error::{Error, Result};
pub use events::{EventOptions, EventSink};
pub use exec::ExecRequest;
pub use knarr_image as image;
pub use knarr_monitor::events::Event;
pub use list::{Filters, ListOptions, Listing, Status, Summary};
pub use logs::{LogLine, LogOptions};
pub use network::{NetworkCreate, NetworkSummary, PublishedPort, Way};
pub use prune::SystemPruned;
pub use session::{Ended, OnSignal, Session, Streams};
pub use settings::Settings;
pub use system::{Change, ChangeKind, Pruned, Stats, StatsReader, Top};
pub use update::UpdateRequest;
pub use usage::{ImageUsage, Usage, VolumeUsage};
pub use volume::{Volume, VolumeCreate};

/// Compares with a golden file in `tests/golden`; `KNARR_BLESS=1` (`cargo x bless`) renews it.
#[cfg(test)]
fn golden(name: &str, text: &str) {
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/golden")
        .join(name);
    if std::env::var_os("KNARR_BLESS").is_some() {
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, text).unwrap();
    }
    let known = std::fs::read_to_string(&path).unwrap_or_default();
    assert_eq!(
        text,
        known,
        "differs from {}; `cargo x bless` renews it",
        path.display()
    );
}
