//! What goes wrong is told: which object, why, and what to do; with Docker's exit codes.

use std::os::unix::fs::PermissionsExt as _;

use anyhow::Result;
use knarr_testkit::{Knarr, fixture, tar_folder};

#[test]
fn a_command_that_cannot_run_is_explained() -> Result<()> {
    let knarr = Knarr::new()?;
    let dir = knarr.scratch().join("tree");
    let rootfs = fixture::busybox_rootfs()?;
    std::fs::create_dir(&dir)?;
    std::process::Command::new("tar")
        .arg("-xf")
        .arg(&rootfs)
        .arg("-C")
        .arg(&dir)
        .status()?;
    let script = |name: &str, text: &[u8], mode: u32| -> Result<()> {
        let path = dir.join("bin").join(name);
        std::fs::write(&path, text)?;
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode))?;
        Ok(())
    };
    script("plain", b"#!/bin/sh\n", 0o644)?;
    script("crlf", b"#!/bin/sh\r\necho\r\n", 0o755)?;
    script("nobash", b"#!/bin/bash\n", 0o755)?;
    // A header for an ARM machine is all that execve looks at.
    let mut arm = vec![0u8; 64];
    arm[..20].copy_from_slice(&[
        0x7f, b'E', b'L', b'F', 2, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2, 0, 183, 0,
    ]);
    script("arm", &arm, 0o755)?;
    // A real dynamic program without its loader.
    std::fs::copy("/usr/bin/env", dir.join("bin/dynamic"))?;
    let tar = knarr.scratch().join("tree.tar");
    tar_folder(&dir, &tar)?;
    knarr.ok(["import", tar.to_str().unwrap_or_default(), "odd:1"])?;
    for (command, code, words) in [
        ("nothing", 127, &["nothing", "not found"][..]),
        ("/no/such", 127, &["/no/such"]),
        (
            "/bin/plain",
            126,
            &["/bin/plain", "not executable", "chmod"],
        ),
        ("/bin/crlf", 127, &["/bin/crlf", "carriage return"]),
        ("/bin/nobash", 127, &["/bin/nobash", "/bin/bash"]),
        ("/bin/arm", 126, &["/bin/arm", "arm64", "amd64"]),
        ("/bin/dynamic", 127, &["/bin/dynamic", "ld-linux"]),
        ("/etc", 126, &["/etc", "directory"]),
    ] {
        let output = knarr.run(["run", "--rm", "odd:1", command])?;
        assert_eq!(output.code, code, "{command}: {}", output.stderr);
        for word in words {
            assert!(
                output.stderr.to_lowercase().contains(word),
                "{command}: no {word:?} in {}",
                output.stderr
            );
        }
    }
    assert_eq!(knarr.containers()?, Vec::<String>::new());
    assert_eq!(knarr.litter(), Default::default());
    Ok(())
}

#[test]
fn wrong_words_are_told_with_the_right_ones() -> Result<()> {
    let knarr = Knarr::with_busybox()?;
    knarr.ok(["create", "--name", "webserver", "busybox"])?;
    for (args, code, words) in [
        (
            &["run", "Busy Box", "true"][..],
            125,
            &["invalid reference"][..],
        ),
        (
            &["run", "--pull", "never", "busibox", "true"],
            125,
            &["busibox", "busybox"],
        ),
        (&["run", "--nosuchflag", "busybox"], 125, &["--nosuchflag"]),
        (&["run", "--gpus", "all", "busybox"], 125, &["--gpus"]),
        (
            &["run", "-p", "80:x", "busybox"],
            125,
            &["invalid containerPort: x"],
        ),
        (
            &["run", "--rm", "--network", "bridg", "busybox"],
            125,
            &["bridg", "bridge"],
        ),
        (&["run", "-m", "lots", "busybox"], 125, &["lots", "memory"]),
        (&["run", "--restart", "maybe", "busybox"], 125, &["maybe"]),
        (
            &["run", "--rm", "--device", "/dev/none", "busybox"],
            125,
            &["/dev/none"],
        ),
        (
            &["run", "--rm", "-u", "nobodyhere", "busybox", "true"],
            125,
            &["nobodyhere"],
        ),
        (
            &["run", "-v", "relative:path:rw:x", "busybox"],
            125,
            &["relative"],
        ),
        (&["stop", "webserve"], 1, &["webserve", "webserver"]),
        (&["inspect", "nothing"], 1, &["nothing"]),
        (&["rmi", "nothing"], 1, &["nothing"]),
        (&["pull", "127.0.0.1:1/x"], 1, &["127.0.0.1:1", "refused"]),
        (&["frobnicate"], 1, &["frobnicate"]),
        (
            &["network", "inspect", "frontend"],
            1,
            &["frontend", "network ls"],
        ),
    ] {
        let output = knarr.run(args.iter().copied())?;
        assert_eq!(output.code, code, "{args:?}: {}", output.stderr);
        assert!(
            output.stdout.is_empty()
                || matches!(args[0], "inspect" | "pull")
                || args.get(1) == Some(&"inspect"),
            "{args:?} printed {}",
            output.stdout
        );
        for word in words {
            assert!(
                output.stderr.contains(word),
                "{args:?}: no {word:?} in {}",
                output.stderr
            );
        }
    }
    assert_eq!(knarr.containers()?.len(), 1, "nothing half-made is left");
    Ok(())
}

#[test]
fn without_root_the_way_is_shown() -> Result<()> {
    use std::os::unix::process::CommandExt as _;
    // The checkout may be where others cannot look.
    let copy = std::env::temp_dir().join(format!("knarr-rootless-{}", std::process::id()));
    std::fs::create_dir_all(&copy)?;
    std::fs::set_permissions(&copy, std::fs::Permissions::from_mode(0o755))?;
    let program = copy.join("knarr");
    std::fs::copy(knarr_testkit::binary("knarr"), &program)?;
    let output = std::process::Command::new(&program)
        .args(["run", "--rm", "@host", "true"])
        .uid(65534)
        .gid(65534)
        .output()?;
    std::fs::remove_dir_all(&copy)?;
    assert_eq!(output.status.code(), Some(125));
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(
        stderr.contains("root") && stderr.contains("hint:"),
        "{stderr}"
    );
    Ok(())
}

#[test]
fn a_damaged_object_is_named_and_the_others_go_on() -> Result<()> {
    let knarr = Knarr::with_busybox()?;
    knarr.ok(["create", "--name", "good", "busybox"])?;
    let bad = knarr.ok(["create", "--name", "bad", "busybox"])?;
    std::fs::write(
        knarr
            .root()
            .join("containers")
            .join(&bad)
            .join("container.json"),
        "{ half",
    )?;
    let ps = knarr.run(["ps", "-a", "--format", "{{.Names}}"])?;
    assert!(ps.stdout.contains("good"), "{ps:?}");
    assert!(
        ps.stderr.contains(&bad[..12]),
        "the damaged one is named: {}",
        ps.stderr
    );
    knarr.ok(["rm", "good"])?;
    knarr.ok(["rm", "-f", &bad])?;
    assert_eq!(knarr.ok(["ps", "-aq"])?, "");
    Ok(())
}
