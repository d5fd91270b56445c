//! -v, --mount, --tmpfs, --volumes-from, VOLUME, `knarr volume`.

use anyhow::Result;
use knarr_testkit::{Knarr, fixture};
use serde_json::json;

#[test]
fn binds_show_the_hosts_files() -> Result<()> {
    let knarr = Knarr::with_busybox()?;
    let dir = knarr.scratch().join("data");
    std::fs::create_dir(&dir)?;
    std::fs::write(dir.join("in"), "from the host")?;
    let bind = format!("{}:/data", dir.display());
    assert_eq!(
        knarr.ok([
            "run",
            "--rm",
            "-v",
            &bind,
            "busybox",
            "sh",
            "-c",
            "cat /data/in; echo x > /data/out"
        ])?,
        "from the host"
    );
    assert_eq!(std::fs::read_to_string(dir.join("out"))?, "x\n");
    let read_only = knarr.run([
        "run",
        "--rm",
        "-v",
        &format!("{bind}:ro"),
        "busybox",
        "touch",
        "/data/no",
    ])?;
    assert!(
        read_only.stderr.contains("Read-only file system"),
        "{}",
        read_only.stderr
    );
    // One file; and a folder that -v makes and --mount does not.
    let file = format!("{}:/etc/in:ro", dir.join("in").display());
    assert_eq!(
        knarr.ok(["run", "--rm", "-v", &file, "busybox", "cat", "/etc/in"])?,
        "from the host"
    );
    let made = dir.join("made");
    knarr.ok([
        "run",
        "--rm",
        "-v",
        &format!("{}:/m", made.display()),
        "busybox",
        "true",
    ])?;
    assert!(made.is_dir());
    let refused = knarr.run([
        "run",
        "--rm",
        "--mount",
        &format!("type=bind,source={},target=/m", dir.join("none").display()),
        "busybox",
        "true",
    ])?;
    assert_eq!(refused.code, 125);
    assert!(refused.stderr.contains("none"), "{}", refused.stderr);
    Ok(())
}

#[test]
fn named_volumes_live_on_and_start_with_the_images_content() -> Result<()> {
    let knarr = Knarr::with_busybox()?;
    assert_eq!(
        knarr
            .ok([
                "run",
                "--rm",
                "-v",
                "vol:/etc",
                "busybox",
                "sh",
                "-c",
                "grep -c root /etc/passwd; echo 1 > /etc/kept; stat -c %a /etc"
            ])?
            .lines()
            .next(),
        Some("1")
    );
    assert_eq!(
        knarr.ok([
            "run",
            "--rm",
            "--mount",
            "type=volume,source=vol,target=/v",
            "busybox",
            "cat",
            "/v/kept"
        ])?,
        "1"
    );
    assert_eq!(knarr.ok(["volume", "ls", "-q"])?, "vol");
    let point = knarr.ok(["volume", "inspect", "-f", "{{.Mountpoint}}", "vol"])?;
    assert!(std::path::Path::new(&point).join("kept").is_file());
    knarr.ok(["create", "--name", "user", "-v", "vol:/v", "busybox"])?;
    let refused = knarr.run(["volume", "rm", "vol"])?;
    assert_eq!(refused.code, 1);
    assert!(refused.stderr.contains("in use"), "{}", refused.stderr);
    knarr.ok(["rm", "user"])?;
    assert_eq!(knarr.ok(["volume", "rm", "vol"])?, "vol");
    assert_eq!(
        knarr.ok(["volume", "create", "--label", "a=b", "two"])?,
        "two"
    );
    assert_eq!(
        knarr
            .ok([
                "run",
                "--rm",
                "-v",
                "two:/etc:nocopy",
                "busybox",
                "ls",
                "/etc/passwd"
            ])
            .err()
            .map(|_| ()),
        Some(())
    );
    assert!(knarr.ok(["volume", "prune", "-f", "-a"])?.contains("two"));
    Ok(())
}

#[test]
fn anonymous_volumes_come_and_go_with_their_container() -> Result<()> {
    let knarr = Knarr::new()?;
    let mut image = fixture::busybox(&fixture::busybox_rootfs()?)?;
    image.config = json!({"Cmd": ["sh"], "Volumes": {"/home": {}, "/var/lib/db": {}}});
    image.name = "db:1".to_owned();
    let archive = knarr.scratch().join("db.tar");
    image.write_docker_archive(&archive)?;
    knarr.ok(["load", "-q", "-i", archive.to_str().unwrap_or_default()])?;
    assert_eq!(
        knarr.ok([
            "run",
            "--rm",
            "db:1",
            "sh",
            "-c",
            "echo 1 > /var/lib/db/x; cat /var/lib/db/x"
        ])?,
        "1"
    );
    assert_eq!(knarr.ok(["volume", "ls", "-q"])?, "");
    knarr.ok([
        "run",
        "--name",
        "first",
        "db:1",
        "sh",
        "-c",
        "echo data > /var/lib/db/x",
    ])?;
    assert_eq!(knarr.ok(["volume", "ls", "-q"])?.lines().count(), 2);
    assert_eq!(
        knarr.ok([
            "run",
            "--rm",
            "--volumes-from",
            "first",
            "db:1",
            "cat",
            "/var/lib/db/x"
        ])?,
        "data"
    );
    knarr.ok(["start", "first"])?;
    knarr.ok(["wait", "first"])?;
    knarr.ok(["rm", "-v", "first"])?;
    assert_eq!(knarr.ok(["volume", "ls", "-q"])?, "");
    Ok(())
}
