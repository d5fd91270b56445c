//! Whole indexes: pulled, run, listed, checked, pushed, saved, loaded, copied and removed with the
//! images of all platforms, with Debian's registry and skopeo as the judges.

use std::path::Path;
use std::process::Command;

use anyhow::{Result, ensure};
use knarr_testkit::{Knarr, Registry, fixture};
use serde_json::Value;

fn text(path: &Path) -> &str {
    path.to_str().unwrap_or_default()
}

fn skopeo(args: &[&str]) -> Result<String> {
    let output = Command::new("skopeo").args(args).output()?;
    ensure!(
        output.status.success(),
        "skopeo {args:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(String::from_utf8(output.stdout)?)
}

fn raw(place: &str) -> Result<String> {
    skopeo(&["inspect", "--raw", "--tls-verify=false", place])
}

/// Fails unless skopeo finds everything that an index at a place names.
fn whole(knarr: &Knarr, place: &str, name: &str) -> Result<()> {
    let to = format!("dir:{}", knarr.scratch().join(name).display());
    skopeo(&["copy", "-q", "--all", "--src-tls-verify=false", place, &to]).map(drop)
}

/// Puts an index of this machine's image and one for another machine into a registry.
fn publish(knarr: &Knarr, of: &dyn Fn(&str) -> String) -> Result<String> {
    let (native, other, list) = (of("native:1"), of("other:1"), of("multi:1"));
    knarr.ok(["tag", "busybox", &native])?;
    knarr.ok(["push", "-q", &native])?;
    let tar = fixture::busybox_rootfs()?;
    let platform = ["--platform", "linux/s390x"];
    knarr.ok([&["import"], &platform[..], &[text(&tar), &other]].concat())?;
    knarr.ok(["push", "-q", &other])?;
    knarr.ok(["manifest", "create", &list, &native, &other])?;
    knarr.ok(["manifest", "push", "--purge", &list])
}

fn accounted(knarr: &Knarr) -> Result<()> {
    let shown = knarr.ok(["system", "df", "-v"])?;
    ensure!(shown.ends_with("Unaccounted bytes: 0"), "{shown}");
    knarr.ok(["system", "check"]).map(drop)
}

fn lines(knarr: &Knarr, args: &[&str]) -> Result<usize> {
    Ok(knarr.ok(args)?.lines().count())
}

#[test]
fn a_whole_index_moves_as_one() -> Result<()> {
    let maker = Knarr::with_busybox()?;
    let registry = Registry::start(&maker.scratch().join("registry"), None)?;
    let of = |rest: &str| format!("{}/{rest}", registry.host());
    let digest = publish(&maker, &of)?;
    let (name, copy, again) = (of("multi:1"), of("copy:1"), of("again:1"));
    let there = raw(&format!("docker://{name}"))?;

    let knarr = Knarr::new()?;
    knarr.ok(["pull", "-q", "--all-platforms", "--keep-blobs", &name])?;
    accounted(&knarr)?;
    // One image under the name, and the other behind it.
    assert_eq!(lines(&knarr, &["images", "-q"])?, 1);
    assert_eq!(lines(&knarr, &["images", "-aq"])?, 2);
    assert_eq!(knarr.ok(["images", "-q", "-f", "dangling=true"])?, "");
    knarr.ok(["image", "prune", "-f"])?;
    assert_eq!(
        knarr.ok(["run", "--rm", &name, "echo", "native"])?,
        "native"
    );
    let platform = ["--pull", "never", "--platform", "linux/s390x"];
    let made = knarr.ok([
        &["create"],
        &platform[..],
        &["--name", "other", &name, "sh"],
    ]
    .concat())?;
    assert!(!made.is_empty());
    let id = maker.ok(["image", "inspect", "-f", "{{.Id}}", &of("other:1")])?;
    assert_eq!(knarr.ok(["inspect", "-f", "{{.Image}}", "other"])?, id);

    // With its blobs it is pushed as it came, to another repository too.
    knarr.ok(["tag", &name, &copy])?;
    let told = knarr.ok(["push", &copy])?;
    assert!(told.contains(&digest), "{told}");
    assert_eq!(raw(&format!("docker://{copy}"))?, there);
    whole(&knarr, &format!("docker://{copy}"), "copied")?;
    // One image of it, by platform.
    let one = of("one:1");
    knarr.ok(["tag", &name, &one])?;
    knarr.ok(["push", "-q", "--platform", "linux/s390x", &one])?;
    let pushed: Value = serde_json::from_str(&raw(&format!("docker://{one}"))?)?;
    assert_eq!(pushed["config"]["digest"], id);

    // Through an archive, too.
    let archive = knarr.scratch().join("whole.tar");
    let save = ["save", "--format", "oci-archive", "-o", text(&archive)];
    knarr.ok([&save[..], &[&name]].concat())?;
    let place = format!("oci-archive:{}", archive.display());
    assert_eq!(raw(&place)?, there);
    whole(&knarr, &place, "saved")?;
    // And as skopeo writes one; it needs no name then.
    let theirs = knarr.scratch().join("theirs.tar");
    let to = format!("oci-archive:{}:{name}", theirs.display());
    skopeo(&["copy", "-q", "--all", &place, &to])?;
    for archive in [&archive, &theirs] {
        let loaded = Knarr::new()?;
        let told = loaded.ok(["load", "--all-platforms", "-q", "-i", text(archive)])?;
        assert!(told.contains(&format!("Loaded image: {name}")), "{told}");
        accounted(&loaded)?;
        // Without the blobs the layers are compressed anew: another digest, but all of it.
        loaded.ok(["tag", &name, &again])?;
        loaded.ok(["push", "-q", &again])?;
        whole(&loaded, &format!("docker://{again}"), "again")?;
        loaded.ok(["rmi", &name, &again])?;
        assert_eq!(lines(&loaded, &["images", "-aq"])?, 0);
        accounted(&loaded)?;
    }

    // Copies between places, without and with the store.
    let layout = format!("oci:{}:x", knarr.scratch().join("layout").display());
    let copied = knarr.ok(["image", "copy", "--all", "-q", &name, &layout])?;
    assert_eq!(copied, digest);
    assert_eq!(raw(&layout)?, there);
    let stored = ["image", "copy", "--all", "-q", &layout, "stored:1"];
    assert_eq!(knarr.ok(stored)?, digest);
    assert_eq!(
        knarr.ok(["image", "inspect", "-f", "{{.Id}}", "stored:1"])?,
        knarr.ok(["image", "inspect", "-f", "{{.Id}}", &name])?
    );

    // A container has the other image: it goes when that goes.
    knarr.ok(["rmi", &copy, &one, "stored:1"])?;
    let refused = knarr.run(["rmi", &name])?;
    assert_eq!(refused.code, 1);
    assert!(
        refused.stderr.contains("image of the index"),
        "{}",
        refused.stderr
    );
    knarr.ok(["rm", "other"])?;
    knarr.ok(["rmi", &name])?;
    assert_eq!(lines(&knarr, &["images", "-aq"])?, 0);
    accounted(&knarr)?;
    Ok(())
}
