//! `@host`: the machine's own programs, and none of its secrets.

#![expect(
    clippy::unwrap_used,
    clippy::print_stderr,
    reason = "a test's helpers may do what its tests may"
)]

mod fixture;

use std::os::fd::IntoRawFd;
use std::process::Command;

use fixture::{World, root};
use knarr_layer::{Base, IdMap, Rootfs, mount};

fn host(idmap: Option<IdMap>) -> Rootfs {
    Rootfs {
        base: Base::Host,
        upper: None,
        volatile: false,
        idmap,
    }
}

/// Runs a script in a user and mount namespace with the root entered, as a container would be.
fn run(world: &World, script: &str) -> (String, String) {
    let idmap = IdMap::shifted(400_000, 65_536);
    let mounted = mount(&host(Some(idmap.clone())), &world.run()).unwrap();
    let userns = knarr_layer::userns(&idmap).unwrap();
    // Leaked, so that the program below inherits them.
    let root = rustix::io::dup(&mounted.root).unwrap().into_raw_fd();
    let userns = rustix::io::dup(&userns).unwrap().into_raw_fd();
    let output = Command::new("nsenter")
        .arg(format!("--user=/proc/self/fd/{userns}"))
        .args(["--setuid=0", "--setgid=0", "chroot"])
        .arg(format!("/proc/self/fd/{root}"))
        .args(["/bin/sh", "-c", script])
        .output()
        .unwrap();
    (
        String::from_utf8(output.stdout).unwrap(),
        String::from_utf8(output.stderr).unwrap(),
    )
}

#[test]
fn the_machines_programs_run_and_its_secrets_stay_unreadable() {
    if !root("the_machines_programs_run_and_its_secrets_stay_unreadable") {
        return;
    }
    let world = World::new();
    // To prove that the test can fail: outside it is readable.
    assert!(std::fs::read("/etc/shadow").is_ok());
    let (said, error) = run(
        &world,
        "id -u; cat /etc/passwd >/dev/null && echo passwd; cat /etc/shadow >/dev/null && echo BAD; \
         touch /usr/bad 2>/dev/null && echo BAD; touch /etc/bad 2>/dev/null && echo BAD; \
         chmod 644 /etc/shadow 2>/dev/null && echo BAD; \
         touch /tmp/a /var/tmp/a /root/a /home/a /srv/a /run/a && echo written; \
         ls /root /var/lib /home /run /proc /sys; test -L /var/run && echo link",
    );
    assert_eq!(
        said,
        "0\npasswd\nwritten\n/home:\na\n\n/proc:\n\n/root:\na\n\n/run:\na\nlock\n\n/sys:\n\n\
         /var/lib:\nlink\n",
        "{error}"
    );
    assert!(error.contains("/etc/shadow: Permission denied"), "{error}");
    // Each root is a new one.
    let (said, _) = run(&world, "ls /tmp /root");
    assert_eq!(said, "/root:\n\n/tmp:\n");
    assert!(!std::path::Path::new("/tmp/a").exists());
}

#[test]
fn without_a_user_namespace_it_is_refused() {
    let world = World::new();
    for idmap in [None, Some(IdMap::shifted(0, 65_536))] {
        let refused = mount(&host(idmap), &world.run()).unwrap_err();
        assert_eq!(
            refused.to_string(),
            "@host can only be run in a user namespace"
        );
    }
}
