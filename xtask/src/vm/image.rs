//! The virtual machine's disk, made once from Debian's packages and kept in `target/fixtures`.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result};

use crate::shell;

/// What is installed in it, beside Debian's essential packages and the kernel.
const PACKAGES: &[&str] = &[
    "systemd",
    "systemd-sysv",
    "libpam-systemd",
    "dbus",
    "dbus-user-session",
    "udev",
    "kmod",
    "busybox-static",
    "apparmor",
    "iproute2",
    "nftables",
    "criu",
    "procps",
    "uidmap",
    "runc",
];

/// Runs on the finished tree, its path in `$1`: the kernel without its maintainer scripts (they would
/// make a large initrd), an initrd of a few modules, one unit, and no services that nobody needs.
const HOOK: &str = r#"set -e
chroot "$1" sh -e <<'END'
cd /tmp
package=$(apt-cache depends linux-image-cloud-amd64 | sed -n 's/.*Depends: \(linux-image[^ ]*\).*/\1/p' | head -n 1)
apt-get -qq download "$package"
dpkg-deb -x "$package"*.deb kernel
cp -a kernel/lib/modules /usr/lib/
mv kernel/boot/vmlinuz-* /boot/vmlinuz
rm -rf kernel ./*.deb
version=$(ls /usr/lib/modules)
depmod -a "$version"

mkdir -p initrd/bin initrd/dev initrd/root initrd/modules
cp /bin/busybox initrd/bin/
number=100
for module in virtio_pci virtio_blk virtio_console; do
    for file in $(modprobe -S "$version" --show-depends $module | cut -d ' ' -f 2); do
        ls initrd/modules | grep -q "^[0-9]*-${file##*/}\$" || cp "$file" initrd/modules/$number-${file##*/}
        number=$((number + 1))
    done
done
cat >initrd/init <<'INIT'
#!/bin/busybox sh
busybox mount -t devtmpfs dev /dev
for module in /modules/*; do busybox insmod $module; done
busybox mount -t ext4 /dev/vda /root
busybox mount --move /dev /root/dev
exec busybox switch_root /root /sbin/init
INIT
chmod +x initrd/init
(cd initrd; find . | busybox cpio -o -H newc 2>/dev/null | gzip -1) >/boot/initrd
rm -r initrd

cat >/etc/systemd/system/knarr-tests.service <<'UNIT'
[Unit]
Description=What the second disk says
After=multi-user.target
[Service]
Type=oneshot
Delegate=yes
TasksMax=infinity
ExecStart=/bin/sh -c 'mount /dev/vdb /mnt && exec sh /mnt/run.sh'
[Install]
WantedBy=graphical.target
UNIT
systemctl -q enable knarr-tests.service
systemctl -q set-default graphical.target
systemctl -q mask systemd-timesyncd apt-daily.timer apt-daily-upgrade.timer dpkg-db-backup.timer fstrim.timer \
    e2scrub_all.timer e2scrub_reap.service apparmor.service getty@tty1.service systemd-pstore.service \
    systemd-random-seed.service systemd-update-utmp.service systemd-journal-flush.service
passwd -q -d root
echo vm >/etc/hostname
echo 127.0.0.1 localhost vm >/etc/hosts
systemd-machine-id-setup 2>/dev/null
useradd -m -u 1000 -s /bin/bash user
mkdir -p /var/lib/systemd/linger
touch /var/lib/systemd/linger/user
rm -rf /var/cache/apt /var/lib/apt/lists /usr/share/doc /usr/share/locale /usr/share/man
END
"#;

/// The files that qemu starts from.
pub(super) struct Image {
    pub(super) kernel: PathBuf,
    pub(super) initrd: PathBuf,
    pub(super) root: PathBuf,
}

impl Image {
    /// Makes it where it is not made yet: some 40 s, and 500 MB on disk.
    pub(super) fn make() -> Result<Self> {
        let fixtures = shell::workspace().join("target/fixtures");
        let packages = PACKAGES.join(",");
        let folder = fixtures.join(format!("vm-{:016x}", fingerprint(&[&packages, HOOK])));
        let image = Self {
            kernel: folder.join("vmlinuz"),
            initrd: folder.join("initrd"),
            root: folder.join("root.img"),
        };
        if folder.exists() {
            forget_others(&fixtures, &folder)?;
            return Ok(image);
        }
        println!("making the virtual machine's disk (once, about 40 s)");
        let making = fixtures.join("making-vm");
        if making.exists() {
            std::fs::remove_dir_all(&making)?;
        }
        std::fs::create_dir_all(&making)?;
        let hook = making.join("hook.sh");
        std::fs::write(&hook, HOOK)?;
        let tree = making.join("tree");
        shell::run(
            Command::new("mmdebstrap")
                .args(["--variant=minbase", "--quiet"])
                .arg(format!("--include={packages}"))
                .arg(format!("--customize-hook=sh '{}' \"$1\"", hook.display()))
                .arg("bookworm")
                .arg(&tree)
                .stdout(Stdio::null()),
        )
        .context("cannot make the virtual machine's disk from Debian's packages")?;
        for file in ["vmlinuz", "initrd"] {
            std::fs::rename(tree.join("boot").join(file), making.join(file))?;
        }
        super::make_disk(&tree, &making.join("root.img"), 1024)?;
        std::fs::remove_dir_all(&tree)?;
        std::fs::rename(&making, &folder)?;
        forget_others(&fixtures, &folder)?;
        Ok(image)
    }
}

/// A number that changes with the texts.
fn fingerprint(texts: &[&str]) -> u64 {
    let bytes: Vec<u8> = texts
        .iter()
        .flat_map(|text| text.bytes().chain([0]))
        .collect();
    knarr_spec::fnv1a(&bytes)
}

/// Removes the disks of before: each has 500 MB.
fn forget_others(fixtures: &Path, kept: &Path) -> Result<()> {
    for entry in std::fs::read_dir(fixtures)? {
        let path = entry?.path();
        let is_disk = path
            .file_name()
            .is_some_and(|name| name.to_string_lossy().starts_with("vm-"));
        if is_disk && path != kept {
            println!(
                "removing {}: another disk has taken its place",
                path.display()
            );
            std::fs::remove_dir_all(path)?;
        }
    }
    Ok(())
}
