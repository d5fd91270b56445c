//! `load` and `rmi` of a large image.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use knarr_testkit::{fixture, wait_for};

use crate::engine::Engines;
use crate::sample::{Samples, print};

/// Loads from a warm page cache, durable as each engine does it; then removes, and waits until
/// the space is free again.
pub(crate) fn load(engines: &Engines) -> Result<()> {
    let archive = fixture::large_image()?;
    let archive = archive.to_str().context("odd path")?;
    println!(
        "  archive of {} MB",
        std::fs::metadata(archive)?.len() >> 20
    );
    let mut loads: Vec<_> = engines
        .all
        .iter()
        .map(|e| (e.name, Samples::default()))
        .collect();
    let mut removals = loads.clone();
    for _ in 0..3 {
        for ((engine, (_, load)), (_, removal)) in
            engines.all.iter().zip(&mut loads).zip(&mut removals)
        {
            // Read once, so that the disk is not what is measured.
            std::io::copy(&mut std::fs::File::open(archive)?, &mut std::io::sink())?;
            rustix::fs::sync();
            let free = free_bytes(engines.dir())?;
            load.time(|| engine.ok(&["load", "-i", archive]))?;
            removal.time(|| engine.ok(&["rmi", "large:latest"]))?;
            let start = Instant::now();
            let back = wait_for(Duration::from_secs(20), || {
                (free_bytes(engines.dir()).ok()? + (50 << 20) > free).then_some(())
            });
            println!(
                "  {:<26} space back {} ms after rmi returned",
                engine.name,
                back.map_or("never".to_owned(), |()| start
                    .elapsed()
                    .as_millis()
                    .to_string())
            );
        }
    }
    print("load", &loads);
    print("rmi", &removals);
    Ok(())
}

fn free_bytes(dir: &Path) -> Result<u64> {
    let stat = rustix::fs::statvfs(dir)?;
    Ok(stat.f_bfree * stat.f_frsize)
}
