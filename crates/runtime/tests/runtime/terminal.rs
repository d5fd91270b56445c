//! Programs with a terminal.

use std::fs;
use std::os::unix::fs::symlink;

use crate::support::{Guard, Image, plan, process, report, shell, skip, text, together};
use knarr_runtime::{Launch, Stdio};
use knarr_spec::runtime::{Config, ConsoleSize};

fn with_terminal(script: &str) -> Config {
    let mut config = shell(script);
    process(&mut config).terminal = true;
    process(&mut config).console_size = Some(ConsoleSize {
        height: 33,
        width: 77,
    });
    config
}

fn launch(image: &Image, config: &Config) -> Result<(Guard, String), knarr_runtime::Error> {
    let plan = plan(config);
    let (rootfs, stdio) = (image.mount(), Stdio::Terminal);
    let launch = Launch {
        plan: &plan,
        rootfs,
        stdio,
        cgroup: None,
        binds: Vec::new(),
        extras: knarr_runtime::Extras::default(),
    };
    let mut init = {
        let _together = together();
        knarr_runtime::begin(launch)?.start()?
    };
    let master = init.terminal.take().unwrap();
    Ok((Guard(init), text(master)))
}

#[test]
fn a_terminal_is_the_containers_own() {
    skip!("a_terminal_is_the_containers_own");
    let image = Image::new();
    let script = "tty; stty size; ls -l /dev/console; stat -c '%u %G' /dev/pts/0; \
        echo hi >/dev/console; echo err >&2; echo there >/dev/tty; ls /proc/self/fd | tr '\\n' ' '";
    let mut config = with_terminal(script);
    process(&mut config).user.uid = 1001;
    process(&mut config).user.additional_gids = vec![5];
    let (init, said) = launch(&image, &config).unwrap();
    let lines: Vec<_> = said.lines().map(str::trim).collect();
    assert_eq!(lines[0], "/dev/pts/0", "{said}");
    assert_eq!(lines[1], "33 77");
    assert!(
        lines[2].starts_with("crw--w----") && lines[2].contains("136,   0"),
        "{said}"
    );
    assert_eq!(
        lines[3..],
        ["1001 tty", "hi", "err", "there", "0 1 2 3"],
        "{said}"
    );
    let exit = knarr_runtime::process::wait(&init.0.pidfd).unwrap();
    assert_eq!(exit, knarr_runtime::process::Exit::Code(0));
    std::mem::forget(init);
}

#[test]
fn an_interrupt_reaches_the_program_behind_init() {
    skip!("an_interrupt_reaches_the_program_behind_init");
    let image = Image::new();
    let config = with_terminal(
        "trap 'echo interrupted; exit 4' INT; echo ready; while :; do sleep 0.05; done",
    );
    let options = knarr_runtime::PlanOptions {
        init: true,
        ..Default::default()
    };
    let plan = knarr_runtime::plan(&config, &options).unwrap();
    let (rootfs, stdio) = (image.mount(), Stdio::Terminal);
    let launch = Launch {
        plan: &plan,
        rootfs,
        stdio,
        cgroup: None,
        binds: Vec::new(),
        extras: knarr_runtime::Extras::default(),
    };
    let mut init = knarr_runtime::begin(launch).unwrap().start().unwrap();
    let master = init.terminal.take().unwrap();
    let guard = Guard(init);
    let mut seen = Vec::new();
    let mut buffer = [0; 256];
    while !String::from_utf8_lossy(&seen).contains("ready") {
        let count = rustix::io::read(&master, &mut buffer).unwrap();
        seen.extend(&buffer[..count]);
    }
    rustix::io::write(&master, b"\x03").unwrap();
    let said = text(master);
    assert!(said.contains("interrupted"), "{said}");
    let exit = knarr_runtime::process::wait(&guard.0.pidfd).unwrap();
    assert_eq!(exit, knarr_runtime::process::Exit::Code(4));
    std::mem::forget(guard);
}

#[test]
fn a_console_that_the_image_prepared_is_not_followed() {
    skip!("a_console_that_the_image_prepared_is_not_followed");
    // CVE-2025-52565: /dev is the image's own, with links where the console goes.
    let image = Image::new();
    let host = image.top().join("host");
    fs::write(&host, "host").unwrap();
    symlink(&host, image.path("dev/console")).unwrap();
    let mut config = with_terminal("tty");
    config.mounts.retain(|mount| mount.destination != "/dev");
    let error = report(&launch(&image, &config).map(drop).unwrap_err());
    assert!(
        error.starts_with("error: cannot open a terminal in the container"),
        "{error}"
    );
    assert_eq!(fs::read_to_string(&host).unwrap(), "host");
    // A ptmx that is no multiplexer.
    let image = Image::new();
    fs::create_dir(image.path("dev/pts")).unwrap();
    rustix::fs::mknodat(
        rustix::fs::CWD,
        image.path("dev/pts/ptmx"),
        rustix::fs::FileType::CharacterDevice,
        rustix::fs::Mode::RWXU,
        rustix::fs::makedev(1, 3),
    )
    .unwrap();
    let mut config = with_terminal("tty");
    config
        .mounts
        .retain(|mount| !mount.destination.starts_with("/dev"));
    let error = report(&launch(&image, &config).map(drop).unwrap_err());
    assert!(
        error.contains("cannot open a terminal in the container"),
        "{error}"
    );
    assert!(error.contains("ENOTTY"), "{error}");
}
