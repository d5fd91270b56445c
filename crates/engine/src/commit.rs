//! `commit`: an image of what a container changed.

use std::path::Path;
use std::time::{Duration, Instant};

use knarr_diag::Explain as _;
use knarr_fs::failpoint;
use knarr_image::{CommitOptions, ImageId};
use knarr_monitor::client::Connection;
use knarr_spec::Reference;
use knarr_spec::image::ExecutionConfig;

use crate::find::Found;
use crate::record::{Record, Root};
use crate::watch::Watch;
use crate::{Engine, Error, Result};

/// How long a container that ends or starts at the wrong moment is waited for.
const PATIENCE: Duration = Duration::from_secs(2);
/// Where nothing is seen to change.
const LOOK_AGAIN: Duration = Duration::from_millis(250);

/// What `commit` asks for.
#[derive(Debug, Clone, Default)]
pub struct CommitRequest {
    /// The name the image gets.
    pub reference: Option<Reference>,
    /// Who made it.
    pub author: Option<String>,
    /// The comment in its history.
    pub message: Option<String>,
    /// Dockerfile instructions applied to the configuration.
    pub changes: Vec<String>,
    /// Freeze a running container while its files are read.
    pub pause: bool,
}

/// What keeps the files still while they are read.
#[derive(Debug)]
enum Still {
    /// Nobody starts it: its lock is held.
    Stopped(#[expect(dead_code, reason = "held")] knarr_fs::Lock),
    /// It is frozen until this connection closes.
    Frozen(#[expect(dead_code, reason = "held")] Connection),
    /// Nothing does: it was not asked for, or the user has frozen it.
    Nothing,
}

impl Engine {
    pub(crate) fn commit_now(&self, text: &str, request: &CommitRequest) -> Result<ImageId> {
        let id = self.find(text)?;
        let record = self.record(&id)?;
        let base = match &record.root {
            Root::Image { id, .. } => Some(self.images().get((*id).into())?),
            Root::Scratch => None,
            Root::Host => {
                return Err(Error::Unsupported {
                    what: format!("committing {text}"),
                    reason: "it runs on the machine's own files (@host), of which no image is made",
                });
            }
        };
        let rootfs = self.rootfs(&record);
        let Some(upper) = &rootfs.upper else {
            return Err(Error::invalid(format!("{text} has no files of its own")));
        };
        let own: Vec<&Path> = crate::system::mount_points(&record).collect();
        let leave_out = |path: &Path| own.contains(&Path::new("/").join(path).as_path());
        let options = CommitOptions {
            reference: request.reference.clone(),
            author: request.author.clone(),
            message: request.message.clone(),
            changes: request.changes.clone(),
            created_by: record.command().join(" "),
            config: execution(&record),
        };
        let mut still = Some(self.still(&record, request.pause)?);
        let mut write = |out: &mut dyn std::io::Write| {
            let written = knarr_layer::diff(upper, rootfs.idmap.as_ref(), &leave_out, out);
            // What is left to do needs the container no more.
            still = None;
            written
        };
        let image = self.images().commit(base.as_ref(), &options, &mut write)?;
        let name = request.reference.as_ref().map(Reference::familiar);
        self.event(
            &record,
            "commit",
            &[
                ("comment", request.message.as_deref().unwrap_or_default()),
                ("imageID", &image.id.to_string()),
                ("imageRef", name.as_deref().unwrap_or_default()),
            ],
        );
        Ok(image.id)
    }

    fn still(&self, record: &Record, pause: bool) -> Result<Still> {
        let run = self.settings().run_dir(&record.id);
        let deadline = Instant::now() + PATIENCE;
        loop {
            // Before the look: what changes after it wakes. One that does not run has no folder.
            let watch = Watch::new(&run).ok();
            let refused = match self.touch(&record.id)? {
                Found::Idle(lock, _) => return Ok(Still::Stopped(lock)),
                Found::Running(_) if !pause => return Ok(Still::Nothing),
                Found::Running(_) => {
                    match Connection::open(&run).and_then(|mut monitor| {
                        monitor.hold()?;
                        Ok(monitor)
                    }) {
                        Ok(monitor) => {
                            failpoint!("commit.held");
                            return Ok(Still::Frozen(monitor));
                        }
                        Err(error) if error.report().code == "already-paused" => {
                            return Ok(Still::Nothing);
                        }
                        Err(error) => error,
                    }
                }
            };
            // It ends or restarts just now.
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(refused.into());
            }
            if let Some(watch) = watch {
                watch.wait(Some(left.min(LOOK_AGAIN)))?;
            }
        }
    }
}

/// The part of a container's configuration that images have.
fn execution(record: &Record) -> ExecutionConfig {
    let config = &record.config;
    let ports = &config.exposed_ports;
    ExecutionConfig {
        user: config.user.clone(),
        exposed_ports: (!ports.is_empty()).then(|| ports.clone()),
        env: (!config.env.is_empty()).then(|| config.env.clone()),
        entrypoint: config.entrypoint.clone(),
        cmd: config.cmd.clone(),
        volumes: config.volumes.clone().filter(|all| !all.is_empty()),
        working_dir: config.working_dir.clone(),
        labels: (!config.labels.is_empty()).then(|| config.labels.clone()),
        stop_signal: config.stop_signal.clone(),
        healthcheck: config.healthcheck.clone(),
        on_build: config.on_build.clone(),
        shell: config.shell.clone(),
    }
}
