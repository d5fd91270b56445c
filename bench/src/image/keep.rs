//! `load` and `rmi`, `save`, `commit`, `system check`.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use knarr_testkit::{fixture, wait_for};

use super::ROUNDS;
use super::tool::{Act, Table, Tools};
use crate::engine::Engines;
use crate::sample::{Samples, print};

fn text(path: &Path) -> Result<&str> {
    path.to_str().context("odd path")
}

fn read_once(path: &Path) -> Result<()> {
    std::io::copy(&mut std::fs::File::open(path)?, &mut std::io::sink())?;
    Ok(())
}

/// What the large image is called: containerd knows no short names.
fn large(tool: &str) -> &'static str {
    match tool {
        "ctr" => "docker.io/library/large:latest",
        _ => "large:latest",
    }
}

/// `load` from a warm page cache; then `rmi`, and how long until the space is free again.
pub(crate) fn load(engines: &Engines) -> Result<()> {
    let tools = Tools::start(engines)?;
    let archive = fixture::large_image()?;
    let load = Act::Load(text(&archive)?);
    println!(
        "  archive of {} MB",
        std::fs::metadata(&archive)?.len() >> 20
    );
    let (mut loads, mut removals) = (Table::default(), Table::default());
    for round in 0..ROUNDS {
        for tool in tools.order(round, load) {
            // Read once, so that the disk is not what is measured.
            read_once(&archive)?;
            rustix::fs::sync();
            let free = free_bytes(&tools.dir)?;
            loads.add(tool.name, tool.measure(load, &tools.dir)?);
            let remove = Act::Remove(large(tool.name));
            let start = Instant::now();
            removals.add(tool.name, tool.measure(remove, &tools.dir)?);
            let back = wait_for(Duration::from_secs(20), || {
                (free_bytes(&tools.dir).ok()? + (50 << 20) > free).then_some(())
            });
            let back = back.map_or("never".to_owned(), |()| {
                format!("{} ms", start.elapsed().as_millis())
            });
            println!("  {:<32} space back {back} after rmi began", tool.name);
        }
    }
    loads.print("load", &tools.names());
    removals.print("rmi", &tools.names());
    Ok(())
}

fn free_bytes(dir: &Path) -> Result<u64> {
    let stat = rustix::fs::statvfs(dir)?;
    Ok(stat.f_bfree * stat.f_frsize)
}

/// `save` of a large image into a file.
pub(crate) fn save(engines: &Engines) -> Result<()> {
    let tools = Tools::start(engines)?;
    let archive = fixture::large_image()?;
    let out = tools.dir.join("saved.tar");
    let mut table = Table::default();
    for tool in tools.order(0, Act::Load("")) {
        tool.ok(Act::Load(text(&archive)?))?;
    }
    for round in 0..ROUNDS {
        for tool in tools.order(round, Act::Save("", "")) {
            rustix::fs::sync();
            let save = Act::Save(large(tool.name), text(&out)?);
            table.add(tool.name, tool.measure(save, &tools.dir)?);
            std::fs::remove_file(&out)?;
        }
    }
    table.print("save of a large image", &tools.names());
    for tool in tools.order(0, Act::Load("")) {
        tool.ok(Act::Remove(large(tool.name)))?;
    }
    Ok(())
}

/// `commit` of a stopped container that wrote 500 MB into a hundred files.
pub(crate) fn commit(engines: &Engines) -> Result<()> {
    let tools = Tools::start(engines)?;
    let script = "mkdir /data; for n in $(seq 100); do dd if=/dev/urandom of=/data/$n bs=1M count=5 2>/dev/null; done";
    let mut table = Table::default();
    for engine in &engines.all {
        engine.ok(&["run", "--name", "writer", "busybox", "sh", "-c", script])?;
    }
    for round in 0..ROUNDS {
        let name = format!("committed:{round}");
        for engine in &engines.all {
            rustix::fs::sync();
            let words = ["commit", "writer", &name];
            let cost = tools.get(engine.name)?.measure_words(&words, &tools.dir)?;
            table.add(engine.name, cost);
            engine.ok(&["rmi", &name])?;
        }
    }
    table.print("commit of 500 MB", &tools.names());
    for engine in &engines.all {
        engine.ok(&["rm", "writer"])?;
    }
    Ok(())
}

fn ok(command: &mut Command) -> Result<()> {
    let output = command.stdin(Stdio::null()).output()?;
    ensure!(
        output.status.success(),
        "{command:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(())
}

/// `system check` of a large image, beside hashing its layers with coreutils.
pub(crate) fn check(engines: &Engines) -> Result<()> {
    let archive = fixture::large_image()?;
    let knarr = engines.all.first().context("no engine")?;
    knarr.ok(&["load", "-i", text(&archive)?])?;
    let layers = engines.dir().join("knarr/data/layers/sha256");
    let tars: Vec<PathBuf> = std::fs::read_dir(layers)?
        .map(|layer| Ok(layer?.path().join("layer.tar")))
        .collect::<Result<_>>()?;
    let mut samples = [
        ("knarr system check", Samples::default()),
        ("sha256sum of the layers", Samples::default()),
    ];
    for _ in 0..ROUNDS {
        for tar in &tars {
            read_once(tar)?;
        }
        for (tool, samples) in &mut samples {
            samples.time(|| match *tool {
                "knarr system check" => knarr.ok(&["system", "check"]),
                _ => ok(Command::new("sha256sum").args(&tars)),
            })?;
        }
    }
    print("check of a large image", &samples);
    knarr.ok(&["rmi", "large:latest"])
}
