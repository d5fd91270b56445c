//! pull, load, import, images, tag, rmi, inspect.

use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, Result};
use knarr_testkit::{ImageBuilder, Knarr, Registry, fixture, tar_folder};
use serde_json::json;

fn text(path: &Path) -> &str {
    path.to_str().unwrap_or_default()
}

/// A tar of one file.
fn one_file(knarr: &Knarr, name: &str, content: &str) -> Result<Vec<u8>> {
    let dir = knarr
        .scratch()
        .join(format!("tree-{}", name.replace('/', "-")));
    let path = dir.join(name);
    std::fs::create_dir_all(path.parent().context("no parent")?)?;
    std::fs::write(&path, content)?;
    let tar = dir.with_extension("tar");
    tar_folder(&dir, &tar)?;
    Ok(std::fs::read(tar)?)
}

#[test]
fn a_real_image_comes_from_a_registry_and_runs() -> Result<()> {
    let knarr = Knarr::new()?;
    let registry = Registry::start(&knarr.scratch().join("registry"), None)?;
    registry.push_layout(&fixture::debian_layout()?, "debian-python", "12")?;
    let image = format!("{}/debian-python:12", registry.host());
    let pulled = knarr.ok(["pull", &image])?;
    assert!(
        pulled.contains("Digest: sha256:") && pulled.contains("Downloaded newer image"),
        "{pulled}"
    );
    assert!(knarr.ok(["pull", &image])?.contains("Image is up to date"));
    let listed = knarr.ok(["images", "--format", "{{.Repository}}:{{.Tag}}"])?;
    assert_eq!(listed, image);
    // Python works, its libraries are found, and the second layer is on top of the first.
    let script = "import ssl, json, sys; print(sys.version_info[0], open('/srv/www/index.html').read().strip())";
    assert_eq!(
        knarr.ok(["run", "--rm", &image, "python3", "-c", script])?,
        "3 <h1>Hello from Debian</h1>"
    );
    // dpkg checks every file that packages installed against its own list.
    let verified = knarr.run([
        "run",
        "--rm",
        &image,
        "dpkg",
        "--verify",
        "libc6",
        "python3.11-minimal",
        "coreutils",
    ])?;
    let faults: Vec<&str> = verified
        .stdout
        .lines()
        .filter(|l| !l.contains("/usr/share/doc") && !l.contains("/usr/share/locale"))
        .collect();
    assert_eq!(faults, Vec::<&str>::new());
    assert_eq!(
        knarr.ok([
            "run",
            "--rm",
            &image,
            "sh",
            "-c",
            "du -sx / >/dev/null && echo ok"
        ])?,
        "ok"
    );
    // --pull policies.
    assert_eq!(
        knarr
            .run(["run", "--rm", "--pull", "never", "127.0.0.1:1/none", "true"])?
            .code,
        125
    );
    assert_eq!(
        knarr.ok(["run", "--rm", "-q", "--pull", "always", &image, "echo", "1"])?,
        "1"
    );
    let removed = knarr.ok(["rmi", &image])?;
    assert!(
        removed.starts_with(&format!("Untagged: {image}")) && removed.contains("Deleted: sha256:"),
        "{removed}"
    );
    assert_eq!(knarr.ok(["images", "-q"])?, "");
    let layers = std::fs::read_dir(knarr.root().join("layers/sha256"))?.count();
    assert_eq!(layers, 0, "no layer without an image");
    Ok(())
}

#[test]
fn basic_auth_is_asked_for_by_name() -> Result<()> {
    let mut knarr = Knarr::new()?;
    let hash = Command::new("htpasswd")
        .args(["-nbB", "me", "secret"])
        .output()?;
    let registry = Registry::start(
        &knarr.scratch().join("registry"),
        Some(&String::from_utf8(hash.stdout)?),
    )?;
    let image = format!("{}/x:1", registry.host());
    let refused = knarr.run(["pull", &image])?;
    assert_eq!(refused.code, 1);
    assert!(
        refused.stderr.contains("hint:") && refused.stderr.contains(&registry.host()),
        "{}",
        refused.stderr
    );
    // The same file that docker and podman keep.
    let home = knarr.scratch().join("home/.docker");
    std::fs::create_dir_all(&home)?;
    let auths = json!({"auths": {registry.host(): {"auth": "bWU6c2VjcmV0"}}});
    std::fs::write(home.join("config.json"), auths.to_string())?;
    knarr.env("HOME", text(home.parent().context("no home")?));
    let missing = knarr.run(["pull", &image])?;
    assert!(missing.stderr.contains("no tag 1"), "{}", missing.stderr);
    Ok(())
}

#[test]
fn every_archive_format_loads() -> Result<()> {
    let knarr = Knarr::new()?;
    let scratch = knarr.scratch();
    let image = |name: &str| -> Result<ImageBuilder> {
        Ok(fixture::busybox(&fixture::busybox_rootfs()?)?.layer(one_file(&knarr, "name", name)?))
    };
    let mut builder = image("docker")?;
    builder.name = "docker:1".to_owned();
    let docker = scratch.join("docker.tar");
    builder.write_docker_archive(&docker)?;
    let mut builder = image("oci")?;
    builder.name = "oci:1".to_owned();
    let oci = scratch.join("oci.tar");
    builder.write_oci_archive(&oci)?;
    let mut builder = image("layout")?;
    builder.name = "layout:1".to_owned();
    let layout = scratch.join("layout");
    builder.write_layout(&layout)?;
    let status = Command::new("gzip").arg("-k").arg(&docker).status()?;
    assert!(status.success());
    let status = Command::new("zstd").args(["-q", "-k"]).arg(&oci).status()?;
    assert!(status.success());
    for (path, name) in [
        (docker.clone(), "docker"),
        (scratch.join("docker.tar.gz"), "docker"),
        (oci.clone(), "oci"),
        (scratch.join("oci.tar.zst"), "oci"),
        (layout, "layout"),
    ] {
        let reference = format!("{name}:1");
        let loaded = knarr.ok(["load", "-i", text(&path)])?;
        assert!(
            loaded.contains(&format!("Loaded image: {reference}")),
            "{}: {loaded}",
            path.display()
        );
        assert_eq!(knarr.ok(["run", "--rm", &reference, "cat", "/name"])?, name);
        knarr.ok(["rmi", &reference])?;
    }
    // From standard input too.
    let mut command = knarr.command(["load"]);
    command.stdin(std::fs::File::open(&docker)?);
    assert!(command.output()?.status.success());
    assert_eq!(
        knarr.ok(["run", "--rm", "docker:1", "cat", "/name"])?,
        "docker"
    );
    Ok(())
}

#[test]
fn import_makes_an_image_of_a_root_file_system() -> Result<()> {
    let knarr = Knarr::new()?;
    let rootfs = fixture::busybox_rootfs()?;
    let id = knarr.ok([
        "import",
        "--change",
        "CMD [\"echo\", \"imported\"]",
        "--change",
        "ENV A=b",
        "-m",
        "by hand",
        text(&rootfs),
        "mine:1",
    ])?;
    assert!(id.starts_with("sha256:"), "{id}");
    assert_eq!(knarr.ok(["run", "--rm", "mine:1"])?, "imported");
    assert_eq!(
        knarr.ok(["inspect", "-f", "{{json .Config.Env}}", "mine:1"])?,
        "[\"A=b\"]"
    );
    assert_eq!(knarr.ok(["inspect", "-f", "{{.Id}}", "mine:1"])?, id);
    Ok(())
}

#[test]
fn tags_are_names_and_images_in_use_stay() -> Result<()> {
    let knarr = Knarr::with_busybox()?;
    let id = knarr.ok(["images", "-q", "--no-trunc", "busybox"])?;
    knarr.ok(["tag", "busybox", "reg.example:5000/team/box:v1"])?;
    assert_eq!(
        knarr.ok(["images", "-q", "--no-trunc"])?,
        format!("{id}\n{id}")
    );
    assert_eq!(knarr.ok(["rmi", "busybox"])?, "Untagged: busybox:latest");
    assert_eq!(
        knarr.ok(["run", "--rm", "reg.example:5000/team/box:v1", "echo", "1"])?,
        "1"
    );
    assert_eq!(knarr.ok(["run", "--rm", &id[7..19], "echo", "1"])?, "1");
    knarr.ok(["create", "--name", "user", "reg.example:5000/team/box:v1"])?;
    let refused = knarr.run(["rmi", &id[7..19]])?;
    assert_eq!(refused.code, 1);
    assert!(
        refused.stderr.contains("user") || refused.stderr.contains("container"),
        "{}",
        refused.stderr
    );
    knarr.ok(["rm", "user"])?;
    knarr.ok(["rmi", &id[7..19]])?;
    assert_eq!(knarr.ok(["images", "-q"])?, "");
    Ok(())
}

#[test]
fn an_index_gives_this_machines_image() -> Result<()> {
    let knarr = Knarr::new()?;
    let scratch = knarr.scratch();
    let layout = scratch.join("index");
    let mut manifests = Vec::new();
    for architecture in ["arm64", "amd64"] {
        let mut builder = fixture::busybox(&fixture::busybox_rootfs()?)?;
        builder.architecture = architecture.to_owned();
        let digest = builder
            .layer(one_file(&knarr, "arch", architecture)?)
            .write_layout(&layout)?;
        let index: serde_json::Value =
            serde_json::from_slice(&std::fs::read(layout.join("index.json"))?)?;
        let mut entry = index["manifests"][0].clone();
        assert_eq!(entry["digest"], digest.as_str());
        entry
            .as_object_mut()
            .context("no object")?
            .remove("annotations");
        manifests.push(entry);
    }
    let list = serde_json::to_vec(
        &json!({"schemaVersion": 2, "mediaType": "application/vnd.oci.image.index.v1+json", "manifests": manifests}),
    )?;
    let digest = knarr_testkit::sha256(&list);
    std::fs::write(layout.join("blobs/sha256").join(&digest), &list)?;
    std::fs::write(
        layout.join("index.json"),
        serde_json::to_vec(&json!({"schemaVersion": 2, "manifests": [{
            "mediaType": "application/vnd.oci.image.index.v1+json", "digest": format!("sha256:{digest}"), "size": list.len(),
            "annotations": {"io.containerd.image.name": "multi:1", "org.opencontainers.image.ref.name": "1"},
        }]}))?,
    )?;
    knarr.ok(["load", "-i", text(&layout)])?;
    assert_eq!(
        knarr.ok(["run", "--rm", "multi:1", "cat", "/arch"])?,
        "amd64"
    );
    Ok(())
}

#[test]
fn broken_archives_leave_nothing_and_harm_nothing() -> Result<()> {
    let knarr = Knarr::with_busybox()?;
    let before: std::collections::BTreeSet<_> = tree(&knarr.root());
    let scratch = knarr.scratch();
    let good = std::fs::read(fixture::busybox_image()?)?;
    let half = scratch.join("half.tar");
    std::fs::write(&half, &good[..good.len() / 2])?;
    // A layer that is not what the configuration says.
    let layout = scratch.join("lying");
    let mut builder =
        fixture::busybox(&fixture::busybox_rootfs()?)?.layer(one_file(&knarr, "a", "true")?);
    builder.name = "lying:1".to_owned();
    builder.write_layout(&layout)?;
    for entry in std::fs::read_dir(layout.join("blobs/sha256"))?.flatten() {
        let bytes = std::fs::read(entry.path())?;
        if bytes.starts_with(&[0x1f, 0x8b]) && bytes.len() < 10_000 {
            let other = builder.clone();
            let mut gzip = Vec::new();
            gzip.extend_from_slice(&bytes);
            let last = gzip.len() - 9;
            gzip[last] ^= 1;
            drop(other);
            std::fs::write(entry.path(), gzip)?;
        }
    }
    let garbage = scratch.join("garbage");
    std::fs::write(&garbage, "this is no archive")?;
    for (path, word) in [
        (&half, "half.tar"),
        (&layout, "sha256:"),
        (&garbage, "garbage"),
    ] {
        let output = knarr.run(["load", "-i", text(path)])?;
        assert_eq!(output.code, 1, "{}", path.display());
        assert!(
            output.stderr.starts_with("error: ") && output.stderr.contains(word),
            "{}: {}",
            path.display(),
            output.stderr
        );
    }
    assert_eq!(tree(&knarr.root()), before, "nothing half-made is left");
    assert_eq!(
        knarr.ok(["run", "--rm", "busybox", "echo", "fine"])?,
        "fine"
    );
    Ok(())
}

/// Every path below a folder.
fn tree(dir: &Path) -> std::collections::BTreeSet<std::path::PathBuf> {
    let mut found = std::collections::BTreeSet::new();
    for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
        let path = entry.path();
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            found.extend(tree(&path));
        }
        found.insert(path);
    }
    found
}
