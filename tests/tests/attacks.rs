//! Attacks from inside a container or an image, each carried out for real.
//!
//! Rows of the security design: B1 (runtime binary), B7 (copy in and out), B11 (host files through
//! image data), B14 (image data as control).

use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result};
use knarr_testkit::{ImageBuilder, Knarr, binary, fixture, sha256, tar_folder, wait_for};
use serde_json::json;

/// Busybox's files in a folder to change, and then an image of it.
fn altered(knarr: &Knarr, name: &str, change: impl FnOnce(&Path) -> Result<()>) -> Result<()> {
    let dir = knarr.scratch().join(format!("tree-{name}"));
    std::fs::create_dir(&dir)?;
    let rootfs = fixture::busybox_rootfs()?;
    std::process::Command::new("tar")
        .arg("-xf")
        .arg(&rootfs)
        .arg("-C")
        .arg(&dir)
        .status()?;
    change(&dir)?;
    let tar = dir.with_extension("tar");
    tar_folder(&dir, &tar)?;
    let archive = dir.with_extension("image.tar");
    ImageBuilder::new(&format!("{name}:1"))
        .layer(std::fs::read(&tar)?)
        .config(json!({"Cmd": ["sh"], "Env": ["PATH=/bin"]}))
        .write_docker_archive(&archive)?;
    knarr.ok(["load", "-q", "-i", archive.to_str().unwrap_or_default()])?;
    Ok(())
}

fn executable(path: &Path, text: &str) -> Result<()> {
    std::fs::write(path, text)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o755))?;
    Ok(())
}

/// Opens whatever executable a process in sight has that is not busybox, keeps it open beyond the
/// process's end, and writes to it over and over, as the exploit of CVE-2019-5736 did with runc.
const WATCH: &str = r#"#!/bin/sh
while :; do
    for p in /proc/[0-9]*; do
        case $(readlink $p/exe) in */busybox | "") continue ;; esac
        (
            exec 3<$p/exe || exit
            who=$(tr '\0' ' ' <$p/cmdline)
            n=0
            while [ $n -lt 30 ]; do
                e=$( { echo broken >/proc/self/fd/3; } 2>&1 ) && e=WON
                echo "$who: $e"
                n=$((n + 1))
            done
        ) 2>/dev/null
    done
done
"#;

/// B1: the container has Knarr's own binaries executed inside, by name and as a script's
/// interpreter, and tries to overwrite them.
///
/// The defence is that both are executed from a clone of their mount that is read-only. In a build
/// whose clone were writable the answer would be ETXTBSY while the file is executed, and then a
/// write that gets through to `knarr` after the exec's end; the test takes neither.
#[test]
fn the_runtimes_binaries_cannot_be_overwritten() -> Result<()> {
    let knarr = Knarr::new()?;
    let hashes = || -> Result<Vec<String>> {
        ["knarr", "knarr-monitor"]
            .iter()
            .map(|name| Ok(sha256(&std::fs::read(binary(name))?)))
            .collect()
    };
    let before = hashes()?;
    altered(&knarr, "thief", |dir| {
        executable(&dir.join("bin/self"), "#!/proc/self/exe\n")?;
        executable(&dir.join("bin/prowl"), WATCH)
    })?;
    let watch = ["--privileged", "--name", "watch", "thief:1", "prowl"];
    knarr.ok(["run", "-d"].iter().chain(&watch))?;
    let denied = |who: &str| {
        wait_for(Duration::from_secs(20), || {
            let log = knarr.ok(["logs", "watch"]).ok()?;
            let line = |l: &str| l.contains(who) && l.contains("Read-only file system");
            log.lines().any(line).then_some(())
        })
        .with_context(|| format!("the attack never reached {who}: it proves nothing"))
    };
    // exec: what is executed inside is `knarr`, which waits for an archive until it was attacked.
    let mut exec = knarr.spawn(["exec", "-i", "watch", "/proc/self/exe", "load"])?;
    let attacked = denied("/proc/self/exe load");
    drop(exec.stdin.take());
    exec.wait()?;
    // run: it is `knarr-monitor`, which stays as the init of a container in sight.
    let other = [
        "--pid",
        "container:watch",
        "--init",
        "--name",
        "init",
        "thief:1",
    ];
    knarr.ok(["run", "-d"].iter().chain(&other).chain(&["sleep", "60"]))?;
    let attacked = attacked.and_then(|()| denied("knarr-monitor"));
    // And as whatever runs for a moment only.
    for _ in 0..10 {
        knarr.run(["exec", "watch", "self", "--version"])?;
        knarr.run(["exec", "-d", "watch", "/proc/self/exe"])?;
        let run = [
            "run",
            "--rm",
            "--pid",
            "container:watch",
            "--privileged",
            "thief:1",
        ];
        knarr.run(run.iter().chain(&["self"]))?;
    }
    let log = knarr.ok(["logs", "watch"])?;
    knarr.ok(["rm", "-f", "init", "watch"])?;
    assert!(!log.contains("WON"), "a write got through:\n{log}");
    assert!(
        !log.contains("Text file busy"),
        "only luck kept a write out:\n{log}"
    );
    assert_eq!(hashes()?, before);
    attacked
}

/// B7: copying never runs a program of the container nor follows its links out.
#[test]
fn copying_trusts_nothing_in_the_container() -> Result<()> {
    let knarr = Knarr::new()?;
    let secret = knarr.scratch().join("secret");
    std::fs::write(&secret, "host secret")?;
    let trap = knarr.scratch().join("trap");
    altered(&knarr, "trap", |dir| {
        for program in ["tar", "xz", "unpigz", "gzip", "zstd"] {
            let path = dir.join("bin").join(program);
            std::fs::remove_file(&path).ok();
            executable(&path, &format!("#!/bin/sh\ntouch {}\n", trap.display()))?;
        }
        std::os::unix::fs::symlink(&secret, dir.join("leak"))?;
        std::os::unix::fs::symlink("/", dir.join("etc/top"))?;
        std::os::unix::fs::symlink("../../../../../../..", dir.join("etc/up"))?;
        Ok(())
    })?;
    let out = knarr.scratch().join("out");
    let target = out.to_str().unwrap_or_default();
    for name in ["live", "still"] {
        if name == "live" {
            knarr.ok(["run", "-d", "--name", name, "trap:1", "sleep", "100"])?;
        } else {
            knarr.ok(["create", "--name", name, "trap:1"])?;
        }
        // Through the link (-L) there is only what the container has there: nothing.
        let leaked = knarr.run(["cp", "-L", &format!("{name}:/leak"), target])?;
        assert_ne!(leaked.code, 0, "{leaked:?}");
        assert!(!out.exists());
        // Writing through links stays inside.
        let hosts = std::fs::read("/etc/passwd")?;
        knarr.run([
            "cp",
            secret.to_str().unwrap_or_default(),
            &format!("{name}:/etc/up/etc/passwd"),
        ])?;
        knarr.run([
            "cp",
            secret.to_str().unwrap_or_default(),
            &format!("{name}:/etc/top/etc/planted"),
        ])?;
        assert_eq!(std::fs::read("/etc/passwd")?, hosts);
        assert!(!Path::new("/etc/planted").exists());
        knarr.ok(["cp", &format!("{name}:/etc"), target])?;
        std::fs::remove_dir_all(&out)?;
        knarr.ok(["rm", "-f", name])?;
    }
    assert!(!trap.exists(), "a program of the container ran");
    Ok(())
}

/// B7: a container that swaps a folder for a link while it is copied gets nothing of the host.
#[test]
fn copying_survives_a_swapping_container() -> Result<()> {
    let knarr = Knarr::with_busybox()?;
    let marker = format!("/etc/knarr-planted-{}", std::process::id());
    let swap =
        "mkdir -p /a/etc; ln -s / /b; while :; do mv /a /c; mv /b /a; mv /a /b; mv /c /a; done";
    knarr.ok(["run", "-d", "--name", "swap", "busybox", "sh", "-c", swap])?;
    let file = knarr.scratch().join("file");
    std::fs::write(&file, "x")?;
    for _ in 0..100 {
        knarr.run([
            "cp",
            file.to_str().unwrap_or_default(),
            &format!("swap:/a{marker}"),
        ])?;
        assert!(!Path::new(&marker).exists());
    }
    knarr.ok(["rm", "-f", "swap"])?;
    Ok(())
}

/// B11: passwd, group and volume paths of the image that lead elsewhere.
#[test]
fn image_data_never_opens_files_of_the_host() -> Result<()> {
    let knarr = Knarr::new()?;
    let made = |name: &str, plant: &dyn Fn(&Path) -> Result<()>| {
        altered(&knarr, name, |dir| {
            std::fs::remove_file(dir.join("etc/passwd"))?;
            plant(&dir.join("etc/passwd"))
        })
    };
    made("fifo", &|path| {
        Ok(rustix::fs::mknodat(
            rustix::fs::CWD,
            path,
            rustix::fs::FileType::Fifo,
            rustix::fs::Mode::RWXU,
            0,
        )?)
    })?;
    made("zero", &|path| {
        Ok(std::os::unix::fs::symlink("/dev/zero", path)?)
    })?;
    made("host", &|path| {
        Ok(std::os::unix::fs::symlink(
            "../../../../../etc/shadow",
            path,
        )?)
    })?;
    made("huge", &|path| {
        Ok(std::fs::write(
            path,
            "app:x:1000:1000::/:/bin/sh\n".repeat(500_000),
        )?)
    })?;
    for image in ["fifo:1", "zero:1", "host:1", "huge:1"] {
        let output = wait_for(Duration::from_secs(20), || {
            knarr.run(["run", "--rm", "-u", "app", image, "id"]).ok()
        });
        let output = output.unwrap_or_else(|| panic!("{image} hangs"));
        assert_eq!(output.code, 125, "{image}: {output:?}");
        assert!(
            output.stderr.contains("passwd"),
            "{image}: {}",
            output.stderr
        );
    }
    // A volume path of the image that is a link to the host's root shows the image's own.
    altered(&knarr, "volume", |dir| {
        Ok(std::os::unix::fs::symlink("/../../..", dir.join("data"))?)
    })?;
    let mut image =
        ImageBuilder::new("vol:1").layer(std::fs::read(knarr.scratch().join("tree-volume.tar"))?);
    image.config = json!({"Cmd": ["sh"], "Volumes": {"/data/x/../../data": {}}});
    let archive = knarr.scratch().join("vol.tar");
    image.write_docker_archive(&archive)?;
    knarr.ok(["load", "-q", "-i", archive.to_str().unwrap_or_default()])?;
    let output = knarr.run([
        "run",
        "--rm",
        "vol:1",
        "/bin/sh",
        "-c",
        "ls /data/x 2>/dev/null; ls / | head -3",
    ])?;
    assert!(!output.stdout.contains("work"), "{output:?}");
    Ok(())
}

/// B14: labels and annotations of an image are words, never switches.
#[test]
fn labels_of_an_image_control_nothing() -> Result<()> {
    let knarr = Knarr::new()?;
    let planted = knarr.scratch().join("planted");
    let mut labels = serde_json::Map::new();
    for key in [
        "io.knarr.privileged",
        "io.knarr.runtime",
        "io.knarr.log-driver",
        "io.knarr.isolation",
        "org.opencontainers.runtime",
        "run.oci.handler",
        "io.containerd.image.log-uri",
        "io.kubernetes.cri-o.Devices",
        "run.oci.hooks.stdout",
        "knarr.plan",
    ] {
        labels.insert(
            key.to_owned(),
            json!(format!("binary:///bin/touch?{}", planted.display())),
        );
    }
    let mut image = fixture::busybox(&fixture::busybox_rootfs()?)?;
    image.name = "labels:1".to_owned();
    image.config = json!({"Cmd": ["grep", "CapEff", "/proc/self/status"], "Labels": labels, "StopSignal": "TERM"});
    let archive = knarr.scratch().join("labels.tar");
    image.write_docker_archive(&archive)?;
    knarr.ok(["load", "-q", "-i", archive.to_str().unwrap_or_default()])?;
    let without: serde_json::Value = serde_json::from_str(
        &knarr
            .ok(["create", "--name", "plain", "labels:1"])
            .and_then(|_| knarr.ok(["inspect", "plain"]))?,
    )?;
    assert_eq!(without[0]["HostConfig"]["Privileged"], false);
    assert_eq!(without[0]["HostConfig"]["LogConfig"]["Type"], "json-file");
    assert!(
        knarr
            .ok(["run", "--rm", "labels:1"])?
            .contains("00000000a80425fb")
    );
    assert!(!planted.exists());
    Ok(())
}
