//! system check, system df, prune: every byte has an owner, and what is damaged is found and made
//! whole again.

use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};
use knarr_testkit::{ImageBuilder, Knarr, Registry, fixture, tar_folder};

fn text(path: &Path) -> &str {
    path.to_str().unwrap_or_default()
}

/// What `system df -v` ends with.
fn unaccounted(knarr: &Knarr) -> Result<String> {
    let shown = knarr.ok(["system", "df", "-v"])?;
    let last = shown.lines().last().context("no lines")?;
    if last != "Unaccounted bytes: 0" {
        return Ok(shown);
    }
    Ok(last.to_owned())
}

/// Fails where a byte has no owner.
fn all_accounted(knarr: &Knarr, when: &str) -> Result<()> {
    let found = unaccounted(knarr)?;
    ensure!(found == "Unaccounted bytes: 0", "{when}: {found}");
    Ok(())
}

/// The folder of an image's topmost layer.
fn top_layer(knarr: &Knarr, image: &str) -> Result<PathBuf> {
    let layers = knarr.ok(["inspect", "-f", "{{json .RootFS.Layers}}", image])?;
    let layers: Vec<String> = serde_json::from_str(&layers)?;
    let hex = layers.last().context("no layers")?.replace("sha256:", "");
    Ok(knarr.root().join("layers/sha256").join(hex))
}

/// Changes one byte in the middle of a file.
fn flip(path: &Path) -> Result<()> {
    let file = std::fs::OpenOptions::new()
        .read(true)
        .write(true)
        .open(path)?;
    let at = file.metadata()?.len() / 2;
    let mut byte = [0];
    file.read_exact_at(&mut byte, at)?;
    byte[0] ^= 0x20;
    file.write_all_at(&byte, at)?;
    Ok(())
}

/// An image of two layers on top of busybox.
fn image(knarr: &Knarr, name: &str) -> Result<ImageBuilder> {
    let mut builder = fixture::busybox(&fixture::busybox_rootfs()?)?;
    for layer in ["one", "two"] {
        let dir = knarr.scratch().join(format!("{name}-{layer}"));
        std::fs::create_dir_all(&dir)?;
        std::fs::write(dir.join(layer), format!("{name} {layer}").repeat(5000))?;
        let tar = dir.with_extension("tar");
        tar_folder(&dir, &tar)?;
        builder = builder.layer(std::fs::read(tar)?);
    }
    builder.name = format!("{name}:1");
    Ok(builder)
}

#[test]
fn every_byte_has_an_owner() -> Result<()> {
    let knarr = Knarr::with_busybox()?;
    all_accounted(&knarr, "after a load")?;
    knarr.ok([
        "run",
        "--name",
        "aa",
        "-v",
        "/data",
        "busybox",
        "sh",
        "-c",
        "echo x > /x; echo y > /data/y",
    ])?;
    knarr.ok([
        "run", "-d", "--rm", "--name", "bb", "busybox", "sleep", "1000",
    ])?;
    knarr.ok(["volume", "create", "vv"])?;
    all_accounted(&knarr, "with containers and volumes")?;
    knarr.ok(["commit", "aa", "made:1"])?;
    for point in [
        "commit.taken",
        "commit.layer-present",
        "layer.synced",
        "image.written",
        "image.published",
    ] {
        knarr.ok([
            "run",
            "--name",
            "kk",
            "busybox",
            "sh",
            "-c",
            "date > /now; echo $RANDOM >> /now",
        ])?;
        let mut command = knarr.command(["commit", "kk", "killed:1"]);
        command.env("KNARR_FAILPOINT", point);
        ensure!(!command.status()?.success(), "{point} was not passed");
        knarr.ok(["rm", "kk"])?;
        knarr.run(["system", "check", "--repair"])?;
        all_accounted(&knarr, point)?;
        knarr.run(["rmi", "killed:1"])?;
    }
    for point in [
        "image.hidden",
        "image.unnamed",
        "image.removed",
        "image.layer-removed",
    ] {
        knarr.ok([
            "run",
            "--name",
            "kk",
            "busybox",
            "sh",
            "-c",
            "date > /now; echo $RANDOM >> /now",
        ])?;
        knarr.ok(["commit", "kk", "doomed:1"])?;
        knarr.ok(["rm", "kk"])?;
        let mut command = knarr.command(["rmi", "doomed:1"]);
        command.env("KNARR_FAILPOINT", point);
        ensure!(!command.status()?.success(), "{point} was not passed");
        knarr.run(["rmi", "doomed:1"])?;
        knarr.run(["system", "check", "--repair"])?;
        ensure!(knarr.run(["inspect", "doomed:1"])?.code == 1, "{point}");
        all_accounted(&knarr, point)?;
    }
    let foreign = knarr.root().join("layers/left-behind");
    std::fs::write(&foreign, vec![1; 10_000])?;
    let found = unaccounted(&knarr)?;
    ensure!(
        found.contains("left-behind") && found.contains("12288"),
        "{found}"
    );
    std::fs::remove_file(foreign)?;
    // One was made and not named yet when it was killed.
    knarr.ok(["image", "prune", "-f"])?;
    let summary = knarr.ok([
        "system",
        "df",
        "--format",
        "{{.Type}} {{.TotalCount}} {{.Active}}",
    ])?;
    ensure!(
        summary == "Images 2 1\nContainers 2 1\nLocal Volumes 2 1\nBuild Cache 0 0",
        "{summary}"
    );
    knarr.ok(["rm", "-f", "bb"])?;
    let pruned = knarr.ok(["system", "prune", "-a", "-f", "--volumes"])?;
    ensure!(
        pruned.contains("Deleted Containers:") && pruned.contains("untagged: made:1"),
        "{pruned}"
    );
    ensure!(knarr.ok(["images", "-q"])?.is_empty());
    ensure!(knarr.ok(["volume", "ls", "-q"])? == "vv");
    knarr.ok(["system", "empty-trash"])?;
    all_accounted(&knarr, "after a prune")?;
    Ok(())
}

#[test]
fn what_is_damaged_is_found_and_made_whole_again() -> Result<()> {
    let knarr = Knarr::new()?;
    let registry = Registry::start(&knarr.scratch().join("registry"), None)?;
    let layout = knarr.scratch().join("layout");
    let manifest = image(&knarr, "app")?.write_layout(&layout)?;
    registry.push_layout(&layout, "app", "1")?;
    let name = format!("{}/app:1", registry.host());
    knarr.ok(["pull", &name])?;
    let archive = knarr.scratch().join("local.tar");
    image(&knarr, "local")?.write_docker_archive(&archive)?;
    knarr.ok(["load", "-i", text(&archive)])?;
    let clean = knarr.ok(["system", "check"])?;
    ensure!(
        clean.starts_with("Checked 2 images, 5 layers and 4 blobs"),
        "{clean}"
    );

    // A layer's bytes: only that layer is fetched again.
    let top = top_layer(&knarr, &name)?;
    flip(&top.join("layer.tar"))?;
    let found = knarr.run(["system", "check"])?;
    ensure!(
        found.code == 1
            && found.stdout.contains("layer.tar has digest")
            && found.stdout.contains(&name),
        "{found:?}"
    );
    // The registry has lost the others: to ask for them would fail.
    let manifest = manifest.replace("sha256:", "");
    let manifest = std::fs::read(layout.join("blobs/sha256").join(manifest))?;
    let manifest: serde_json::Value = serde_json::from_slice(&manifest)?;
    let layers = manifest["layers"].as_array().context("no layers")?;
    for layer in layers.iter().rev().skip(1) {
        let hex = layer["digest"]
            .as_str()
            .unwrap_or_default()
            .replace("sha256:", "");
        let blobs = "data/docker/registry/v2/blobs/sha256";
        let blob = knarr
            .scratch()
            .join("registry")
            .join(blobs)
            .join(&hex[..2])
            .join(&hex);
        std::fs::remove_file(blob.join("data"))?;
    }
    let repaired = knarr.run(["system", "check", "--repair"])?;
    ensure!(
        repaired.code == 0 && repaired.stdout.contains("repaired: fetched again from"),
        "{repaired:?}"
    );
    ensure!(
        knarr
            .ok(["run", "--rm", &name, "cat", "/two"])?
            .starts_with("app two")
    );

    // Its index: made again from the tar.
    flip(&top.join("index.erofs"))?;
    let index = knarr.run(["system", "check", "-q", "--repair"])?;
    let whole = index.stdout.is_empty() || index.stdout.contains("indexed again from its tar");
    ensure!(index.code == 0 && whole, "{index:?}");
    std::fs::remove_file(top.join("index.erofs"))?;
    let index = knarr.run(["system", "check", "-q", "--repair"])?;
    ensure!(
        index.code == 0 && index.stdout.contains("indexed again from its tar"),
        "{index:?}"
    );

    // A manifest, a configuration, a record.
    let id = knarr
        .ok(["inspect", "-f", "{{.Id}}", &name])?
        .replace("sha256:", "");
    flip(&knarr.root().join("blobs/sha256").join(&id))?;
    let config = knarr.run(["system", "check", "-q", "--repair"])?;
    ensure!(
        config.code == 0
            && config
                .stdout
                .contains("written again from the image's description"),
        "{config:?}"
    );
    std::fs::write(
        knarr.root().join("images").join(&id).join("image.json"),
        "{\"version\":1,",
    )?;
    let record = knarr.run(["system", "check", "-q", "--repair"])?;
    ensure!(
        record.code == 0 && record.stdout.contains("written again from its manifest"),
        "{record:?}"
    );
    ensure!(
        knarr
            .ok(["run", "--rm", &name, "cat", "/one"])?
            .starts_with("app one")
    );

    // What came from no registry cannot be fetched, and says so; the others are unharmed.
    flip(&top_layer(&knarr, "local:1")?.join("layer.tar"))?;
    let local = knarr.run(["system", "check", "--repair"])?;
    ensure!(
        local.code == 1
            && local.stdout.contains("local:1")
            && local.stdout.contains("came from no registry"),
        "{local:?}"
    );
    ensure!(knarr.run(["run", "--rm", "local:1", "true"])?.code == 125);
    knarr.ok(["load", "-i", text(&archive)])?;
    ensure!(
        knarr
            .ok(["run", "--rm", "local:1", "cat", "/two"])?
            .starts_with("local two")
    );
    ensure!(
        knarr
            .ok(["system", "check"])?
            .starts_with("Checked 2 images")
    );
    all_accounted(&knarr, "after repairs")?;
    Ok(())
}

#[test]
fn prune_keeps_what_filters_and_containers_keep() -> Result<()> {
    let knarr = Knarr::with_busybox()?;
    for (name, label) in [("keep", "stage=live"), ("drop", "stage=test")] {
        knarr.ok([
            "run",
            "--name",
            name,
            "busybox",
            "touch",
            &format!("/{name}"),
        ])?;
        knarr.ok([
            "commit",
            "-c",
            &format!("LABEL {label}"),
            name,
            &format!("{name}:1"),
        ])?;
        knarr.ok(["rm", name])?;
    }
    knarr.ok(["create", "--name", "user", "busybox"])?;
    let pruned = knarr.ok(["image", "prune", "-a", "-f", "--filter", "label=stage=test"])?;
    ensure!(
        pruned.contains("untagged: drop:1") && !pruned.contains("keep"),
        "{pruned}"
    );
    let none = knarr.ok(["image", "prune", "-a", "-f", "--filter", "until=1h"])?;
    ensure!(none == "Total reclaimed space: 0B", "{none}");
    let none = knarr.ok(["image", "prune", "-f"])?;
    ensure!(none == "Total reclaimed space: 0B", "{none}");
    let all = knarr.ok([
        "image",
        "prune",
        "-a",
        "-f",
        "--filter",
        "label!=stage=none",
    ])?;
    ensure!(
        all.contains("untagged: keep:1") && !all.contains("busybox"),
        "{all}"
    );
    ensure!(knarr.ok(["images", "--format", "{{.Repository}}"])? == "busybox");
    let wrong = knarr.run(["image", "prune", "-f", "--filter", "colour=red"])?;
    ensure!(
        wrong.code == 1 && wrong.stderr.contains("invalid filter 'colour'"),
        "{wrong:?}"
    );
    let wrong = knarr.run(["system", "prune", "-f", "--volumes", "--filter", "until=1h"])?;
    ensure!(
        wrong.code == 1 && wrong.stderr.contains("until"),
        "{wrong:?}"
    );
    Ok(())
}
