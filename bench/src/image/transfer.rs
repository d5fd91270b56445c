//! `pull`, `update`, `push`, `copy`: to and from a registry on loopback.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use knarr_testkit::{Registry, fixture};

use super::tool::{Act, Table, Tools};
use super::{LAYERS, ROUNDS};
use crate::engine::Engines;

/// An image's files are read once before, so that the disk under the registry is not measured.
fn read_all(dir: &Path) -> Result<u64> {
    let mut size = 0;
    for entry in std::fs::read_dir(dir)? {
        let path = entry?.path();
        if path.is_dir() {
            size += read_all(&path)?;
        } else {
            size += std::io::copy(&mut std::fs::File::open(&path)?, &mut std::io::sink())?;
        }
    }
    Ok(size)
}

/// A registry with some layouts as `bench/image:<tag>`.
struct Source {
    registry: Registry,
    dir: PathBuf,
}

impl Source {
    fn start(dir: PathBuf, layouts: &[(&Path, &str)]) -> Result<Self> {
        let registry = Registry::start(&dir, None)?;
        for (layout, tag) in layouts {
            registry.push_layout(layout, "bench/image", tag)?;
        }
        Ok(Self { registry, dir })
    }

    fn name(&self, tag: &str) -> String {
        format!("{}/bench/image:{tag}", self.registry.host())
    }

    /// How many bytes it has; they are in memory then.
    fn warm(&self) -> Result<u64> {
        read_all(&self.dir.join("data"))
    }
}

/// `pull` of the realistic image into an empty store.
pub(crate) fn pull(engines: &Engines) -> Result<()> {
    let tools = Tools::start(engines)?;
    let [layout, _] = fixture::realistic_layouts()?;
    let source = Source::start(tools.dir.join("registry"), &[(&layout, "1")])?;
    println!("  {} MB compressed", source.warm()? >> 20);
    let name = source.name("1");
    tools.alternate(
        "pull, cold",
        Act::Pull(&name),
        |_| source.warm().map(drop),
        |tool| tool.ok(Act::Remove(&name)),
    )
}

/// `pull` of the realistic image whose last layer changed.
pub(crate) fn update(engines: &Engines) -> Result<()> {
    let tools = Tools::start(engines)?;
    let [before, after] = fixture::realistic_layouts()?;
    let layouts = [(before.as_path(), "1"), (after.as_path(), "2")];
    let source = Source::start(tools.dir.join("registry"), &layouts)?;
    let (before, after) = (source.name("1"), source.name("2"));
    for tool in tools.order(0, Act::Pull(&before)) {
        tool.ok(Act::Pull(&before))?;
    }
    tools.alternate(
        "pull, last layer changed",
        Act::Pull(&after),
        |_| source.warm().map(drop),
        |tool| tool.ok(Act::Remove(&after)),
    )?;
    for tool in tools.order(0, Act::Pull(&before)) {
        tool.ok(Act::Remove(&before))?;
    }
    Ok(())
}

/// `pull` of an image of 60 small layers.
pub(crate) fn layered(engines: &Engines) -> Result<()> {
    let tools = Tools::start(engines)?;
    let layout = fixture::layered_layout(LAYERS)?;
    let source = Source::start(tools.dir.join("registry"), &[(&layout, "1")])?;
    let name = source.name("1");
    tools.alternate(
        "pull of 60 small layers",
        Act::Pull(&name),
        |_| source.warm().map(drop),
        |tool| tool.ok(Act::Remove(&name)),
    )
}

/// `push` of what was pulled from elsewhere to an empty registry: who keeps no compressed bytes
/// compresses anew. Then with them kept.
pub(crate) fn push(engines: &Engines) -> Result<()> {
    let mut tools = Tools::start(engines)?;
    let [layout, _] = fixture::realistic_layouts()?;
    let source = Source::start(tools.dir.join("registry"), &[(&layout, "1")])?;
    let name = source.name("1");
    let zstd = tools
        .get("knarr")?
        .variant("knarr, zstd", &["--compression", "zstd"]);
    tools.all.insert(1, zstd);
    let kept = tools.get("knarr")?.variant("knarr, blobs kept", &[]);
    let kept = kept.with_root(&tools.dir.join("kept"));
    tools.all.push(kept);
    for tool in tools.order(0, Act::Pull(&name)) {
        match tool.name {
            "knarr, zstd" => {}
            "knarr, blobs kept" => {
                let pull = ["pull", "-q", "--keep-blobs", &name];
                tool.measure_words(&pull, &tools.dir)?;
            }
            _ => tool.ok(Act::Pull(&name))?,
        }
    }
    let mut table = Table::default();
    let mut sizes: Vec<(&str, u64)> = Vec::new();
    for round in 0..ROUNDS {
        for tool in tools.order(round, Act::Push(&name)) {
            let target = Source::start(tools.dir.join(format!("target-{round}")), &[])?;
            let to = target.name("1");
            tool.ok(Act::Tag(&name, &to))?;
            rustix::fs::sync();
            table.add(tool.name, tool.measure(Act::Push(&to), &tools.dir)?);
            if round == 0 {
                sizes.push((tool.name, target.warm()?));
            }
            tool.ok(Act::Remove(&to))?;
        }
    }
    table.print("push to an empty registry", &tools.names());
    for (name, size) in sizes {
        println!("  {name:<32} {:>9} MB at the registry", size >> 20);
    }
    for tool in tools.order(0, Act::Pull(&name)) {
        if tool.name != "knarr, zstd" {
            tool.ok(Act::Remove(&name))?;
        }
    }
    Ok(())
}

/// `image copy` between a registry and a folder, beside skopeo.
pub(crate) fn copy(engines: &Engines) -> Result<()> {
    let tools = Tools::start(engines)?;
    let [layout, _] = fixture::realistic_layouts()?;
    let source = Source::start(tools.dir.join("registry"), &[(&layout, "1")])?;
    let registry = format!("docker://{}", source.name("1"));
    let text = |path: &Path| path.to_str().map(str::to_owned).context("odd path");
    let out = tools.dir.join("copied");
    let folder = format!("oci:{}:x", text(&out)?);
    let clear = || -> Result<()> {
        match std::fs::symlink_metadata(&out) {
            Ok(meta) if meta.is_dir() => Ok(std::fs::remove_dir_all(&out)?),
            Ok(_) => Ok(std::fs::remove_file(&out)?),
            Err(_) => Ok(()),
        }
    };
    tools.alternate(
        "copy docker: to oci:",
        Act::Copy(&registry, &folder),
        |_| source.warm().map(drop),
        |_| clear(),
    )?;
    let archive = format!("oci-archive:{}:x", text(&out)?);
    let from = format!("oci:{}", text(&layout)?);
    tools.alternate(
        "copy oci: to oci-archive:",
        Act::Copy(&from, &archive),
        |_| read_all(&layout).map(drop),
        |_| clear(),
    )?;
    // To a registry that has nothing, which is a new one each time.
    let mut table = Table::default();
    for round in 0..ROUNDS {
        for tool in tools.order(round, Act::Copy(&from, &from)) {
            let target = Source::start(tools.dir.join("target"), &[])?;
            let to = format!("docker://{}", target.name("1"));
            read_all(&layout)?;
            rustix::fs::sync();
            table.add(tool.name, tool.measure(Act::Copy(&from, &to), &tools.dir)?);
        }
    }
    table.print("copy oci: to docker:", &tools.names());
    Ok(())
}
