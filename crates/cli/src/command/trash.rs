//! Freeing space behind the user's back: removal is a rename, deleting may take longer.

use std::process::{Command as Process, Stdio};

use knarr_engine::Engine;

use super::{Call, Command, USUAL};

/// Not in the help: what [`empty_later`] runs.
pub(super) static EMPTY: Command = Command {
    names: &["system empty-trash"],
    run: |call: &Call<'_>| {
        call.engine()?.images().empty_trash()?;
        Ok(0)
    },
    ..USUAL
};

/// Has a process of its own delete what is in the trash, so that this one may end. Where that
/// cannot be, the next removal does it.
pub(super) fn empty_later(engine: &Engine) {
    let settings = engine.settings();
    match knarr_fs::file_names(&settings.root.join("trash")) {
        Ok(names) if !names.is_empty() => {}
        _ => return,
    }
    let mut process = Process::new("/proc/self/exe");
    process
        .arg("--root")
        .arg(&settings.root)
        .arg("--runroot")
        .arg(&settings.run_root)
        .args(["system", "empty-trash"])
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    // A key that ends this program does not end that one.
    std::os::unix::process::CommandExt::process_group(&mut process, 0);
    // It is never waited for: this process ends now.
    drop(process.spawn());
}
