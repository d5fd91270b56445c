//! Images: Knarr beside docker, podman, containerd (`ctr`) and skopeo.

mod keep;
mod layers;
mod tool;
mod transfer;

pub(crate) use keep::{check, commit, load, save};
pub(crate) use layers::layers;
pub(crate) use transfer::{copy, layered, pull, push, update};

use anyhow::Result;
use knarr_testkit::fixture;

/// How often each tool does a thing: seconds long, and so steady enough.
const ROUNDS: usize = 2;
/// Of the image with many.
const LAYERS: usize = 60;

/// Makes the images, once.
pub(crate) fn prepare() -> Result<()> {
    fixture::realistic_layouts()?;
    fixture::layered_layout(LAYERS)?;
    fixture::large_image()?;
    Ok(())
}
