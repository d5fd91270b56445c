//! Many layers: overlayfs over all of them, against one that holds the same files, as a merged
//! index would show them.

use std::path::Path;

use anyhow::{Context as _, Result, ensure};
use knarr_testkit::{ImageBuilder, fixture, tar_folder};
use serde_json::json;

use crate::engine::{Engine, Engines};

const COUNTS: [usize; 4] = [10, 30, 60, 120];
const ROUNDS: usize = 5;
/// Where every layer puts a package, so that this directory is merged from all of them.
const PACKAGES: &str = "usr/lib/python3/dist-packages";

/// What is timed inside, in milliseconds: names that do not exist, twice; imports of a module of
/// each layer; all of /usr listed.
const SCRIPT: &str = "
import os, sys, time
places = ['/usr/lib/python3/dist-packages', '/usr/lib/python3.11', '/usr/bin', '/etc']
def timed(do):
    start = time.perf_counter()
    do()
    return (time.perf_counter() - start) * 1e3
def absent():
    for n in range(5000):
        for place in places:
            try: os.stat(f'{place}/absent-{n}')
            except FileNotFoundError: pass
def imports():
    for n in range(120):
        try: __import__(f'package{n}.module')
        except ModuleNotFoundError: pass
def walk():
    for _ in os.walk('/usr'): pass
print(timed(absent), timed(absent), timed(imports), timed(walk))
";

/// Prints the medians of both for each number of layers.
pub(crate) fn layers(engines: &Engines) -> Result<()> {
    let knarr = engines.all.first().context("no engine")?;
    println!(
        "  {:<24} {:>14} {:>14} {:>14} {:>14}",
        "least of five, ms", "20000 absent", "again", "imports", "walk of /usr"
    );
    for count in COUNTS {
        let names = build(knarr, engines.dir(), count)?;
        let mut least = [[f64::INFINITY; 4]; 2];
        for _ in 0..ROUNDS {
            for (name, least) in names.iter().zip(&mut least) {
                let mut command = knarr.command(&["run", "--rm", name, "python3", "-c", SCRIPT]);
                let output = command.stdout(std::process::Stdio::piped()).output()?;
                let text = String::from_utf8(output.stdout)?;
                ensure!(output.status.success(), "{name}: {text}");
                for (least, word) in least.iter_mut().zip(text.split_whitespace()) {
                    *least = least.min(word.parse()?);
                }
            }
        }
        for (name, [absent, again, imports, walk]) in names.iter().zip(least) {
            println!("  {name:<24} {absent:>14.1} {again:>14.1} {imports:>14.1} {walk:>14.1}");
            knarr.ok(&["rmi", name])?;
        }
    }
    Ok(())
}

/// Loads an image of so many layers, and one of a single layer with the same files; their names.
fn build(knarr: &Engine, dir: &Path, count: usize) -> Result<[String; 2]> {
    let base = std::fs::read(fixture::debian_rootfs()?)?;
    let names = [format!("stacked:{count}"), format!("merged:{count}")];
    let [stacked, merged] = &names;
    let mut many = ImageBuilder::new(stacked)
        .config(json!({}))
        .layer(base.clone());
    let mut one = without_end(base);
    let (tree, tar) = (dir.join("layer"), dir.join("layer.tar"));
    for layer in 1..count {
        let package = tree.join(PACKAGES).join(format!("package{layer}"));
        std::fs::create_dir_all(&package)?;
        std::fs::create_dir_all(tree.join("usr/bin"))?;
        std::fs::write(package.join("__init__.py"), "")?;
        std::fs::write(package.join("module.py"), format!("value = {layer}\n"))?;
        std::fs::write(tree.join(format!("usr/bin/tool{layer}")), "#!/bin/sh\n")?;
        tar_folder(&tree, &tar)?;
        let bytes = std::fs::read(&tar)?;
        one.extend(without_end(bytes.clone()));
        many = many.layer(bytes);
        std::fs::remove_dir_all(&tree)?;
    }
    one.resize(one.len() + 1024, 0);
    let archive = dir.join("layers.tar");
    for image in [many, ImageBuilder::new(merged).config(json!({})).layer(one)] {
        image.write_docker_archive(&archive)?;
        knarr.ok(&["load", "-i", archive.to_str().context("odd path")?])?;
    }
    Ok(names)
}

/// A tar without its last zeros, so that another may follow.
fn without_end(mut tar: Vec<u8>) -> Vec<u8> {
    let used = tar
        .rchunks(512)
        .take_while(|block| block.iter().all(|&b| b == 0));
    let zeros = used.count() * 512;
    tar.truncate(tar.len() - zeros);
    tar
}
