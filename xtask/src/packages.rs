//! Debian packages that demo, tests and benchmarks need.

use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Result, bail};

use crate::shell;

/// A package and a file that tells that it is installed.
type Package = (&'static str, &'static str);

/// What builds need: a C compiler for aws-lc and zstd.
pub(crate) const BUILD: &[Package] = &[
    ("gcc", "/usr/bin/gcc"),
    ("libc6-dev", "/usr/include/stdio.h"),
];

/// What `demo --debian` needs.
pub(crate) const DEMO_DEBIAN: &[Package] = &[
    ("mmdebstrap", "/usr/bin/mmdebstrap"),
    ("docker-registry", "/usr/bin/docker-registry"),
    ("busybox-static", "/bin/busybox"),
];

/// What the tests need: makers of images, and oracles.
pub(crate) const TEST: &[Package] = &[
    ("mmdebstrap", "/usr/bin/mmdebstrap"),
    ("docker-registry", "/usr/bin/docker-registry"),
    ("busybox-static", "/bin/busybox"),
    ("apache2-utils", "/usr/bin/htpasswd"),
    ("skopeo", "/usr/bin/skopeo"),
    ("umoci", "/usr/bin/umoci"),
    ("libseccomp-dev", "/usr/include/seccomp.h"),
    ("libcap2-bin", "/sbin/setcap"),
    ("attr", "/usr/bin/setfattr"),
    ("openssl", "/usr/bin/openssl"),
    ("erofs-utils", "/usr/bin/fsck.erofs"),
    ("strace", "/usr/bin/strace"),
    ("time", "/usr/bin/time"),
    ("zstd", "/usr/bin/zstd"),
    (
        "golang-github-containers-common",
        "/usr/share/containers/seccomp.json",
    ),
    ("python3", "/usr/bin/python3"),
    ("containernetworking-plugins", "/usr/lib/cni/bridge"),
    ("iptables", "/usr/sbin/iptables"),
    ("nftables", "/usr/sbin/nft"),
    ("iproute2", "/usr/sbin/ip"),
    ("curl", "/usr/bin/curl"),
    ("docker.io", "/usr/sbin/dockerd"),
    ("containerd", "/usr/bin/containerd"),
    ("podman", "/usr/bin/podman"),
    ("conmon", "/usr/bin/conmon"),
    ("netavark", "/usr/lib/podman/netavark"),
    ("aardvark-dns", "/usr/lib/podman/aardvark-dns"),
    ("runc", "/usr/sbin/runc"),
    ("uidmap", "/usr/bin/newuidmap"),
];

/// What the virtual machine needs: its maker and its hardware.
pub(crate) const VM: &[Package] = &[
    ("mmdebstrap", "/usr/bin/mmdebstrap"),
    ("e2fsprogs", "/sbin/mkfs.ext4"),
    ("qemu-system-x86", "/usr/bin/qemu-system-x86_64"),
];

/// What the benchmarks need: the peers.
pub(crate) const BENCH: &[Package] = &[
    ("mmdebstrap", "/usr/bin/mmdebstrap"),
    ("busybox-static", "/bin/busybox"),
    ("docker.io", "/usr/sbin/dockerd"),
    ("docker-registry", "/usr/bin/docker-registry"),
    ("skopeo", "/usr/bin/skopeo"),
    ("containerd", "/usr/bin/containerd"),
    ("runc", "/usr/sbin/runc"),
    ("crun", "/usr/bin/crun"),
    ("podman", "/usr/bin/podman"),
    ("conmon", "/usr/bin/conmon"),
    ("iproute2", "/usr/sbin/ip"),
    ("strace", "/usr/bin/strace"),
    ("time", "/usr/bin/time"),
    ("iptables", "/usr/sbin/iptables"),
    ("iperf3", "/usr/bin/iperf3"),
];

/// Installs the packages of a list that are missing.
pub(crate) fn install(packages: &[Package]) -> Result<()> {
    let missing: Vec<&str> = packages
        .iter()
        .filter(|(_, file)| !is_installed(file))
        .map(|(package, _)| *package)
        .collect();
    if missing.is_empty() {
        return Ok(());
    }
    println!("installing {}", missing.join(" "));
    let apt = |args: &[&str]| {
        shell::run(
            Command::new("apt-get")
                .args(args)
                .env("DEBIAN_FRONTEND", "noninteractive")
                // Packages with services must not start them: nothing here needs a daemon.
                .env("RUNLEVEL", "1")
                .stdin(Stdio::null())
                .stdout(Stdio::null()),
        )
    };
    if !Path::new("/usr/bin/apt-get").exists() {
        bail!(
            "this needs the Debian packages {}; install their like",
            missing.join(" ")
        );
    }
    let install = [
        &["install", "-y", "-qq", "--no-install-recommends"],
        &missing[..],
    ]
    .concat();
    if apt(&install).is_err() {
        apt(&["update", "-qq"])?;
        apt(&install)?;
    }
    Ok(())
}

/// `/bin` and `/sbin` are where `/usr/bin` and `/usr/sbin` are, but not everywhere.
fn is_installed(file: &str) -> bool {
    Path::new(file).exists()
        || (!file.starts_with("/usr") && Path::new("/usr").join(&file[1..]).exists())
}
