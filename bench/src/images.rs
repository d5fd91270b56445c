//! `save`, `commit`, `image copy`, `system check`.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, ensure};
use knarr_testkit::fixture;

use crate::engine::{Engine, Engines};
use crate::sample::{Samples, print};

const ROUNDS: usize = 3;

fn text(path: &Path) -> Result<&str> {
    path.to_str().context("odd path")
}

fn rows(engines: &Engines) -> Vec<(&'static str, Samples)> {
    let all = engines.all.iter();
    all.map(|engine| (engine.name, Samples::default()))
        .collect()
}

fn read_once(path: &Path) -> Result<()> {
    std::io::copy(&mut std::fs::File::open(path)?, &mut std::io::sink())?;
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

/// `save` of a large image into a file.
pub(crate) fn save(engines: &Engines) -> Result<()> {
    let archive = fixture::large_image()?;
    let mut saves = rows(engines);
    for engine in &engines.all {
        engine.ok(&["load", "-i", text(&archive)?])?;
    }
    for _ in 0..ROUNDS {
        for (engine, (_, save)) in engines.all.iter().zip(&mut saves) {
            let out = engines.dir().join("saved.tar");
            rustix::fs::sync();
            let out_text = text(&out)?.to_owned();
            save.time(|| engine.ok(&["save", "-o", &out_text, "large:latest"]))?;
            std::fs::remove_file(out)?;
        }
    }
    print("save of a large image", &saves);
    for engine in &engines.all {
        engine.ok(&["rmi", "large:latest"])?;
    }
    Ok(())
}

/// `commit` of a stopped container that wrote 500 MB into a hundred files.
pub(crate) fn commit(engines: &Engines) -> Result<()> {
    let script = "mkdir /data; for n in $(seq 100); do dd if=/dev/urandom of=/data/$n bs=1M count=5 2>/dev/null; done";
    let mut commits = rows(engines);
    for engine in &engines.all {
        engine.ok(&["run", "--name", "writer", "busybox", "sh", "-c", script])?;
    }
    for round in 0..ROUNDS {
        let name = format!("committed:{round}");
        for (engine, (_, commit)) in engines.all.iter().zip(&mut commits) {
            rustix::fs::sync();
            commit.time(|| engine.ok(&commit_args(engine, &name)))?;
            engine.ok(&["rmi", &name])?;
        }
    }
    print("commit of 500 MB", &commits);
    for (name, samples) in &commits {
        println!(
            "  {name:<26} {:>9.0} MB/s",
            500.0 / samples.median().as_secs_f64()
        );
    }
    for engine in &engines.all {
        engine.ok(&["rm", "writer"])?;
    }
    Ok(())
}

fn commit_args<'a>(engine: &Engine, name: &'a str) -> Vec<&'a str> {
    match engine.name {
        // Its default format has no layer of its own digest.
        "podman" => vec!["commit", "-q", "writer", name],
        _ => vec!["commit", "writer", name],
    }
}

/// A layout to another, and to an archive; beside skopeo.
pub(crate) fn copy(engines: &Engines) -> Result<()> {
    let layout = fixture::debian_layout()?;
    let source = format!("oci:{}", text(&layout)?);
    let mut size = 0;
    for blob in std::fs::read_dir(layout.join("blobs/sha256"))? {
        let blob = blob?.path();
        size += std::fs::metadata(&blob)?.len();
        read_once(&blob)?;
    }
    println!("  layout of {} MB", size >> 20);
    let knarr = engines.all.first().context("no engine")?;
    for (kind, name) in [("oci", "copied"), ("oci-archive", "copied.tar")] {
        let mut samples = [
            ("knarr", Samples::default()),
            ("skopeo", Samples::default()),
        ];
        for _ in 0..ROUNDS + 2 {
            for (tool, samples) in &mut samples {
                let out: PathBuf = engines.dir().join(name);
                let target = format!("{kind}:{}:x", text(&out)?);
                rustix::fs::sync();
                samples.time(|| match *tool {
                    "knarr" => knarr.ok(&["image", "copy", &source, &target]),
                    _ => ok(Command::new("skopeo").args(["copy", "-q", &source, &target])),
                })?;
                match out.is_dir() {
                    true => std::fs::remove_dir_all(&out)?,
                    false => std::fs::remove_file(&out)?,
                }
            }
        }
        print(&format!("copy oci: to {kind}:"), &samples);
    }
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
