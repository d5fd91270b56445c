//! Why a program could not be executed.

use std::fs;
use std::os::unix::fs::symlink;

use crate::support::{Image, config, mount, process, report, run, skip};

#[test]
fn the_reason_is_found() {
    skip!("the_reason_is_found");
    let image = Image::new();
    let file = |name: &str, bytes: &[u8], mode: u32| image.program(name, bytes, mode);
    let mut busybox = fs::read("/bin/busybox").unwrap();
    busybox.truncate(64);
    busybox[18] = 183;
    file("arm", &busybox, 0o755);
    file("text", b"echo hello\n", 0o755);
    file("empty", b"", 0o755);
    file("binary", &[0, 1, 2, 3], 0o755);
    file("plain", b"#!/bin/sh\n", 0o644);
    file("python", b"#!/usr/bin/python3 -u\nprint(1)\n", 0o755);
    file("crlf", b"#!/bin/sh\r\necho hello\r\n", 0o755);
    file("nested", b"#!/bin/python\n", 0o755);
    file("private", b"#!/bin/sh\n", 0o700);
    symlink("/opt/missing", image.path("bin/dangling")).unwrap();
    // A program of the host that is linked dynamically; the image has no loader.
    let dynamic = fs::read("/bin/ls").unwrap();
    file("dynamic", &dynamic, 0o755);
    fs::create_dir(image.path("noexec")).unwrap();
    fs::copy("/bin/busybox", image.top().join("true")).unwrap();
    for (command, uid, expected) in [
        (
            "nothing",
            0,
            "127 error: exec: \"nothing\": executable file not found in $PATH\n  \
             hint: install `nothing` in the image, or give its full path",
        ),
        (
            "/bin/nothing",
            0,
            "127 error: exec: \"/bin/nothing\": stat /bin/nothing: no such file or directory\n  \
             hint: the path is looked up in the image and its volumes, not on the host",
        ),
        (
            "/bin",
            0,
            "126 error: /bin is a directory\n  hint: give the program itself as the command",
        ),
        (
            "/bin/plain",
            0,
            "126 error: /bin/plain is not executable (mode 0644): permission denied\n  \
             hint: `chmod +x /bin/plain` in the image",
        ),
        (
            "plain",
            0,
            "126 error: /bin/plain is not executable (mode 0644): permission denied\n  \
             hint: `chmod +x /bin/plain` in the image",
        ),
        (
            "python",
            0,
            "127 error: /bin/python needs /usr/bin/python3, which does not exist in the container\n  \
             hint: install `/usr/bin/python3` in the image, or correct the script's first line",
        ),
        (
            "nested",
            0,
            "127 error: /bin/python needs /usr/bin/python3, which does not exist in the container\n  \
             hint: install `/usr/bin/python3` in the image, or correct the script's first line",
        ),
        (
            "crlf",
            0,
            "127 error: the first line of /bin/crlf ends with a carriage return (CRLF, a Windows \
             line end)\n  hint: convert the line ends: `sed -i 's/\\r$//' /bin/crlf`",
        ),
        (
            "dangling",
            0,
            "127 error: /bin/dangling is a symbolic link to /opt/missing, which does not exist in \
             the container\n  \
             hint: the path is looked up in the image and its volumes, not on the host",
        ),
        (
            "dynamic",
            0,
            "127 error: /bin/dynamic needs the loader /lib64/ld-linux-x86-64.so.2, which does not \
             exist in the container\n  hint: the program was linked against glibc, which this \
             image does not have; link it statically or use an image with glibc",
        ),
        (
            "arm",
            0,
            "126 error: /bin/arm is a program for arm64, this machine is amd64: exec format \
             error\n  hint: use an image for this machine, or install an emulator on the host \
             (qemu-user, binfmt_misc)",
        ),
        (
            "text",
            0,
            "126 error: /bin/text is a script without a `#!` line: exec format error\n  \
             hint: begin it with `#!/bin/sh`, or run it as `sh SCRIPT`",
        ),
        (
            "empty",
            0,
            "126 error: /bin/empty is empty: exec format error",
        ),
        (
            "binary",
            0,
            "126 error: /bin/binary is not a program: exec format error",
        ),
        (
            "private",
            1001,
            "126 error: /bin/private may not be executed by this user (owner 0:0, mode 0700)\n  \
             hint: run as another user (`--user`), or change its mode",
        ),
        (
            "/noexec/true",
            0,
            "126 error: /noexec/true is on a mount with the option noexec\n  \
             hint: mount it with `exec`, or keep programs elsewhere",
        ),
        ("/dev/null", 0, "126 error: /dev/null is not a regular file"),
    ] {
        let mut config = config(&[command]);
        let top = image.top().to_string_lossy().into_owned();
        config
            .mounts
            .push(mount("/noexec", "bind", &top, &["bind", "noexec"]));
        process(&mut config).user.uid = uid;
        if uid != 0 {
            let caps = process(&mut config).capabilities.as_mut().unwrap();
            caps.effective.clear();
            caps.permitted.clear();
        }
        let error = match run(&image, &config) {
            Ok(done) => panic!("{command} ran: {done:?}"),
            Err(error) => error,
        };
        let code = knarr_diag::Explain::class(&error).run_exit_code();
        assert_eq!(format!("{code} {}", report(&error)), expected);
    }
}
