//! Images made from Debian's packages, once, kept in `target/fixtures`.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use rustix::fs::{FlockOperation, flock};
use serde_json::json;

use crate::image::{ImageBuilder, tar_folder};

/// A root file system of one static busybox and its applets: `busybox-rootfs.tar`, 2 MB.
///
/// # Errors
/// When Debian's package busybox-static is not installed.
pub fn busybox_rootfs() -> Result<PathBuf> {
    once("busybox-rootfs.tar", |tar| {
        let root = tar.with_extension("tree");
        for dir in [
            "bin", "dev", "etc", "home", "proc", "root", "sys", "tmp", "usr", "var",
        ] {
            std::fs::create_dir_all(root.join(dir))?;
        }
        let program = ["/bin/busybox", "/usr/bin/busybox"]
            .into_iter()
            .find(|path| Path::new(path).exists())
            .context("busybox is missing: install Debian's package busybox-static")?;
        std::fs::copy(program, root.join("bin/busybox"))?;
        let applets = Command::new(program).arg("--list").output()?;
        for applet in String::from_utf8(applets.stdout)?.lines() {
            let link = root.join("bin").join(applet);
            if !link.exists() {
                std::os::unix::fs::symlink("busybox", link)?;
            }
        }
        std::fs::write(
            root.join("etc/passwd"),
            "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/home:/bin/false\n\
             app:x:1000:1000::/home/app:/bin/sh\n",
        )?;
        std::fs::write(
            root.join("etc/group"),
            "root:x:0:\nnobody:x:65534:\napp:x:1000:\nextra:x:2000:app\n",
        )?;
        mode(&root.join("tmp"), 0o1777)?;
        tar_folder(&root, tar)?;
        std::fs::remove_dir_all(&root)?;
        Ok(())
    })
}

/// `busybox:latest` as `docker save` writes it.
///
/// # Errors
/// As [`busybox_rootfs`].
pub fn busybox_image() -> Result<PathBuf> {
    let rootfs = busybox_rootfs()?;
    once("busybox.tar", |path| {
        busybox(&rootfs)?.write_docker_archive(path)
    })
}

/// The builder behind [`busybox_image`], to change before writing.
///
/// # Errors
/// When the file system tar cannot be read.
pub fn busybox(rootfs: &Path) -> Result<ImageBuilder> {
    Ok(ImageBuilder::new("busybox:latest")
        .layer(std::fs::read(rootfs)?)
        .config(json!({
            "Cmd": ["sh"],
            "Env": ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"],
        })))
}

/// Debian 12 with Python, made by mmdebstrap: `debian-rootfs.tar`, about 180 MB.
///
/// # Errors
/// When mmdebstrap is not installed or Debian's mirror is out of reach.
pub fn debian_rootfs() -> Result<PathBuf> {
    once("debian-rootfs.tar", |tar| {
        debian(tar, "python3", &["/usr/share/doc/*", "/usr/share/locale/*"])
    })
}

/// `services:latest` as `docker save` writes it: Debian 12 with nginx, Redis, PostgreSQL, dnsmasq,
/// Python and curl, about 330 MB.
///
/// # Errors
/// As [`debian_rootfs`].
pub fn services_image() -> Result<PathBuf> {
    once("services.tar", |path| {
        let tar = path.with_extension("rootfs.tar");
        // PostgreSQL compiles queries with LLVM only if that is there.
        debian(
            &tar,
            "python3,nginx-light,redis-server,postgresql-15,dnsmasq-base,curl",
            &[
                "/usr/share/doc/*",
                "/usr/share/locale/*",
                "/usr/share/man/*",
                "/usr/lib/*/libLLVM*",
            ],
        )?;
        ImageBuilder::new("services:latest")
            .layer(std::fs::read(&tar)?)
            .config(json!({
                "Cmd": ["bash"],
                "Env": ["PATH=/usr/lib/postgresql/15/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"],
            }))
            .write_docker_archive(path)?;
        Ok(std::fs::remove_file(&tar)?)
    })
}

/// A minimal Debian 12 with some packages (a list with commas), without the files of some patterns.
fn debian(tar: &Path, packages: &str, excluded: &[&str]) -> Result<()> {
    let exclusions = excluded
        .iter()
        .map(|pattern| format!("--dpkgopt=path-exclude={pattern}"));
    let output = Command::new("mmdebstrap")
        .args(["--variant=minbase", "--quiet"])
        .arg(format!("--include={packages}"))
        .args(exclusions)
        .arg("bookworm")
        .arg(tar)
        .output()
        .context("mmdebstrap is missing: install Debian's package mmdebstrap")?;
    ensure!(
        output.status.success(),
        "mmdebstrap failed: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(())
}

/// `debian-python:12` as an OCI layout folder: Debian, and on top of it a small web site.
///
/// # Errors
/// As [`debian_rootfs`].
pub fn debian_layout() -> Result<PathBuf> {
    let rootfs = debian_rootfs()?;
    once("debian-layout", |path| {
        let site = path.with_extension("site");
        std::fs::create_dir_all(site.join("srv/www"))?;
        std::fs::write(
            site.join("srv/www/index.html"),
            "<h1>Hello from Debian</h1>\n",
        )?;
        let tar = path.with_extension("site.tar");
        tar_folder(&site, &tar)?;
        ImageBuilder::new("debian-python:12")
            .layer(std::fs::read(&rootfs)?)
            .layer(std::fs::read(&tar)?)
            .config(json!({
                "Cmd": ["python3", "-u", "-m", "http.server", "--bind", "127.0.0.1", "8000"],
                "WorkingDir": "/srv/www",
                "Env": ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"],
            }))
            .write_layout(path)?;
        std::fs::remove_dir_all(&site)?;
        std::fs::remove_file(&tar)?;
        Ok(())
    })
}

/// About 850 MB in 50,000 files in four layers, for `load` and `rmi`: copies of Debian's files.
///
/// # Errors
/// As [`debian_rootfs`].
pub fn large_image() -> Result<PathBuf> {
    let rootfs = debian_rootfs()?;
    once("large.tar", |path| {
        let mut image = ImageBuilder::new("large:latest").config(json!({"Cmd": ["true"]}));
        image = image.layer(std::fs::read(&rootfs)?);
        for copy in ["a", "b", "c", "d", "e"] {
            let tree = path.with_extension("tree");
            std::fs::create_dir_all(tree.join(format!("copy/{copy}")))?;
            let status = Command::new("tar")
                .args(["--exclude=./dev/*", "-xf"])
                .arg(&rootfs)
                .arg("-C")
                .arg(tree.join(format!("copy/{copy}")))
                .status()?;
            ensure!(status.success(), "tar -x failed: {status}");
            let tar = path.with_extension("copy.tar");
            tar_folder(&tree, &tar)?;
            image = image.layer(std::fs::read(&tar)?);
            std::fs::remove_dir_all(&tree)?;
            std::fs::remove_file(&tar)?;
        }
        image.write_docker_archive(path)
    })
}

/// An image as people have them, `realistic:1`, as an OCI layout: Debian, Python with what science
/// uses and a compiler, Node with its tools, and an application. Four layers, about 1 GB in 55,000 files, 290 MB
/// compressed. Beside it `realistic:2`, whose last layer differs in one file.
///
/// # Errors
/// As [`debian_rootfs`].
pub fn realistic_layouts() -> Result<[PathBuf; 2]> {
    let base = debian_rootfs()?;
    let python = extracted(
        "realistic-python.tar",
        "python3-dev,python3-numpy,python3-pandas,python3-sympy,python3-django,g++,git",
    )?;
    let node = extracted(
        "realistic-node.tar",
        "npm,nodejs,webpack,node-typescript,eslint",
    )?;
    let build = |path: &Path, version: u8| -> Result<()> {
        let tree = path.with_extension("tree");
        std::fs::create_dir_all(tree.join("srv/app"))?;
        let status = Command::new("tar")
            .arg("-xf")
            .arg(&python)
            .arg("-C")
            .arg(tree.join("srv/app"))
            .arg("./usr/lib/python3/dist-packages/django")
            .status()?;
        ensure!(status.success(), "tar -x failed: {status}");
        std::fs::write(tree.join("srv/app/version"), format!("{version}\n"))?;
        let app = path.with_extension("app.tar");
        tar_folder(&tree, &app)?;
        let mut image = ImageBuilder::new(&format!("realistic:{version}"))
            .config(json!({"Cmd": ["true"]}))
            .gzip(6);
        for tar in [&base, &python, &node, &app] {
            image = image.layer(std::fs::read(tar)?);
        }
        image.write_layout(path)?;
        std::fs::remove_dir_all(&tree)?;
        std::fs::remove_file(&app)?;
        Ok(())
    };
    Ok([
        once("realistic-1", |path| build(path, 1))?,
        once("realistic-2", |path| build(path, 2))?,
    ])
}

/// Files of Debian packages and of what they depend on, not configured.
fn extracted(name: &str, packages: &str) -> Result<PathBuf> {
    once(name, |tar| {
        let output = Command::new("mmdebstrap")
            .args(["--variant=extract", "--quiet"])
            .arg(format!("--include={packages}"))
            .arg("bookworm")
            .arg(tar)
            .output()
            .context("mmdebstrap is missing: install Debian's package mmdebstrap")?;
        ensure!(
            output.status.success(),
            "mmdebstrap failed: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        Ok(())
    })
}

/// `layered:1` as an OCI layout: busybox and on top of it `count` - 1 layers of 20 files, 8 KB each.
///
/// # Errors
/// As [`busybox_rootfs`].
pub fn layered_layout(count: usize) -> Result<PathBuf> {
    let rootfs = busybox_rootfs()?;
    once(&format!("layered-{count}"), |path| {
        let tree = path.with_extension("tree");
        let tar = path.with_extension("layer.tar");
        let mut image = busybox(&rootfs)?;
        image.name = "layered:1".to_owned();
        for layer in 1..count {
            std::fs::create_dir_all(tree.join("srv"))?;
            for file in 0..20 {
                let line = format!("{layer} {file} {}\n", layer * 7919 + file * 104_729);
                let text = line.repeat(8192 / line.len());
                std::fs::write(tree.join(format!("srv/{layer}-{file}")), text)?;
            }
            tar_folder(&tree, &tar)?;
            image = image.layer(std::fs::read(&tar)?);
            std::fs::remove_dir_all(&tree)?;
        }
        std::fs::remove_file(&tar)?;
        image.write_layout(path)?;
        Ok(())
    })
}

/// Makes `target/fixtures/<name>` once, whoever asks first; a lock keeps the others waiting.
fn once(name: &str, make: impl FnOnce(&Path) -> Result<()>) -> Result<PathBuf> {
    let dir = crate::target().join("fixtures");
    std::fs::create_dir_all(&dir)?;
    let path = dir.join(name);
    if path.exists() {
        return Ok(path);
    }
    let lock = std::fs::File::create(dir.join(format!(".{name}.lock")))?;
    flock(&lock, FlockOperation::LockExclusive)?;
    if path.exists() {
        return Ok(path);
    }
    let temporary = dir.join(format!("making-{name}"));
    if temporary.is_dir() {
        std::fs::remove_dir_all(&temporary)?;
    }
    make(&temporary).with_context(|| format!("cannot make the fixture {name}"))?;
    std::fs::rename(&temporary, &path)?;
    Ok(path)
}

fn mode(path: &Path, mode: u32) -> Result<()> {
    use std::os::unix::fs::PermissionsExt as _;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode))?;
    Ok(())
}
