//! The same commands on hybrid, pure v2 and pure v1 cgroups, each a private view of this machine.

use std::process::Command;

use anyhow::{Result, ensure};
use knarr_testkit::{Knarr, binary};

/// Mounts that make the view, run in a private mount namespace.
const VIEWS: &[(&str, &str)] = &[
    ("as it is", ":"),
    (
        "pure v2",
        "umount -l /sys/fs/cgroup && mount -t cgroup2 none /sys/fs/cgroup",
    ),
    (
        "pure v1",
        "test ! -d /sys/fs/cgroup/unified || umount -l /sys/fs/cgroup/unified",
    ),
];

/// Runs a script with `$K` as the knarr command in a view.
fn in_view(knarr: &Knarr, mounts: &str, script: &str) -> Result<String> {
    let text = format!(
        "mount --make-rprivate / && {mounts} && K='{} --root {} --runroot {}' && {script}",
        binary("knarr").display(),
        knarr.root().display(),
        knarr.run_root().display()
    );
    let output = Command::new("unshare")
        .args(["-m", "sh", "-ec", &text])
        .output()?;
    ensure!(
        output.status.success(),
        "{text}: {}\n{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

#[test]
fn a_container_lives_on_every_kind_of_cgroup() -> Result<()> {
    for (view, mounts) in VIEWS {
        let knarr = Knarr::with_busybox()?;
        let script = "$K run --rm busybox echo one; \
             $K run -d --name cc busybox sleep 100 >/dev/null; $K exec cc echo two; \
             $K pause cc >/dev/null; $K inspect -f '{{.State.Status}}' cc; $K unpause cc >/dev/null; \
             $K stats --no-stream --format '{{.Name}}' cc; $K top cc | grep -c 'sleep 100'; \
             $K stop -t 0 cc >/dev/null; $K inspect -f '{{.State.ExitCode}}' cc; $K rm cc";
        let output = in_view(&knarr, mounts, script).map_err(|e| e.context(*view))?;
        assert_eq!(output, "one\ntwo\npaused\ncc\n1\n137\ncc", "{view}");
    }
    Ok(())
}

#[test]
fn device_rules_hold_on_every_kind_of_cgroup() -> Result<()> {
    for (view, mounts) in VIEWS {
        let knarr = Knarr::with_busybox()?;
        let script = "$K run --rm busybox sh -c 'mknod /d b 254 0; head -c 1 /d 2>&1 | grep -c permitted; \
             head -c 2 /dev/zero | wc -c'";
        let output = in_view(&knarr, mounts, script).map_err(|e| e.context(*view))?;
        assert_eq!(output, "1\n2", "{view}");
    }
    Ok(())
}

#[test]
fn a_limit_that_this_machine_cannot_set_is_refused_by_name() -> Result<()> {
    // Pure v2 here has no memory controller: it is bound to v1.
    let knarr = Knarr::with_busybox()?;
    let script = "$K run --rm -m 64m busybox true 2>&1 || echo code $?";
    let output = in_view(&knarr, VIEWS[1].1, script)?;
    let has_memory = std::fs::read_to_string("/sys/fs/cgroup/cgroup.controllers")
        .is_ok_and(|text| text.contains("memory"));
    if has_memory {
        assert_eq!(output, "");
    } else {
        assert!(
            output.contains("memory") && output.ends_with("code 125"),
            "{output}"
        );
    }
    Ok(())
}
