//! Images and processes that try to get out (security.md B1 to B5, B11).

use std::fs;
use std::os::unix::fs::symlink;

use crate::support::{Image, config, linux, mount, output, process, report, run, shell, skip};

/// A directory of the host that no container may change, and what it looks like.
struct Sentinel {
    dir: std::path::PathBuf,
}

impl Sentinel {
    fn new(image: &Image) -> Self {
        let dir = image.top().join("host");
        for name in ["dev", "etc", "sub/deep"] {
            fs::create_dir_all(dir.join(name)).unwrap();
        }
        fs::write(dir.join("file"), "host").unwrap();
        Self { dir }
    }

    fn tree(&self) -> Vec<String> {
        let mut found = Vec::new();
        let mut todo = vec![self.dir.clone()];
        while let Some(dir) = todo.pop() {
            for entry in fs::read_dir(&dir).unwrap() {
                let entry = entry.unwrap();
                found.push(format!(
                    "{} {:?}",
                    entry.path().display(),
                    entry.file_type().unwrap()
                ));
                if entry.file_type().unwrap().is_dir() {
                    todo.push(entry.path());
                }
            }
        }
        found.sort();
        found
    }
}

#[test]
fn links_of_the_image_lead_nowhere_but_into_the_image() {
    skip!("links_of_the_image_lead_nowhere_but_into_the_image");
    for link in ["dev", "proc", "sys", "etc", "run", "srv"] {
        for relative in [false, true] {
            let image = Image::new();
            let sentinel = Sentinel::new(&image);
            let before = sentinel.tree();
            let place = image.path(link);
            fs::remove_dir_all(&place).ok();
            let target = if relative {
                "../../../../../../../../../..".to_owned() + sentinel.dir.to_str().unwrap()
            } else {
                sentinel.dir.to_str().unwrap().to_owned()
            };
            symlink(target, &place).unwrap();
            // Inside, the same path exists as well, so that nothing fails for want of it.
            let inside = sentinel.dir.strip_prefix("/").unwrap();
            fs::create_dir_all(image.path("").join(inside)).unwrap();
            let mut config = config(&["true"]);
            config
                .mounts
                .push(mount("/etc/new/place", "tmpfs", "tmpfs", &[]));
            config
                .mounts
                .push(mount("/run/new", "bind", "/bin", &["rbind", "ro"]));
            config
                .mounts
                .push(mount("/srv/file", "bind", "/bin/busybox", &["bind", "ro"]));
            process(&mut config).cwd = format!("/{link}/cwd");
            let result = run(&image, &config);
            if matches!(link, "proc" | "sys") {
                // Nobody would find them where they are expected.
                let error = report(&result.unwrap_err());
                assert!(
                    error.contains(&format!("place /{link} to mount on")),
                    "{error}"
                );
                assert!(error.contains("ELOOP"), "{error}");
            } else if let Err(error) = result {
                panic!("{link}: {}", report(&error));
            }
            assert_eq!(sentinel.tree(), before, "/{link}, relative: {relative}");
        }
    }
}

#[test]
fn a_masked_path_is_not_covered_by_what_the_image_calls_dev_null() {
    skip!("a_masked_path_is_not_covered_by_what_the_image_calls_dev_null");
    let image = Image::new();
    // As in CVE-2025-31133: a /dev that is the image's own, with a prepared /dev/null.
    symlink("/proc/sys/kernel/core_pattern", image.path("dev/null")).unwrap();
    let before = fs::read_to_string("/proc/sys/kernel/core_pattern").unwrap();
    let mut config = shell(
        "echo pwned 2>/dev/zero >/proc/interrupts; stat -c %t:%T /proc/interrupts; \
         echo pwned 2>/dev/zero >/proc/keys; stat -c '%F' /dev/null",
    );
    config
        .mounts
        .retain(|mount| !mount.destination.starts_with("/dev"));
    let done = output(&image, &config);
    assert_eq!(done.out, "1:3\ncharacter special file\n", "{}", done.err);
    assert_eq!(
        fs::read_to_string("/proc/sys/kernel/core_pattern").unwrap(),
        before
    );
}

#[test]
fn kernel_parameters_do_not_go_through_a_prepared_proc() {
    skip!("kernel_parameters_do_not_go_through_a_prepared_proc");
    let image = Image::new();
    let sentinel = Sentinel::new(&image);
    let before = sentinel.tree();
    let fake = sentinel.dir.join("fake");
    fs::create_dir_all(fake.join("sys/net/ipv4")).unwrap();
    fs::write(fake.join("sys/net/ipv4/ip_forward"), "untouched").unwrap();
    // A volume instead of procfs.
    let mut config = shell("cat /proc/sys/net/ipv4/ip_forward");
    config.mounts[0] = mount("/proc", "bind", fake.to_str().unwrap(), &["rbind"]);
    linux(&mut config)
        .sysctl
        .insert("net.ipv4.ip_forward".to_owned(), "1".to_owned());
    linux(&mut config).masked_paths.clear();
    linux(&mut config).readonly_paths.clear();
    let done = output(&image, &config);
    assert_eq!(done.out, "untouched");
    fs::remove_dir_all(&fake).unwrap();
    assert_eq!(sentinel.tree(), before);
}

#[test]
fn the_program_has_no_descriptor_but_its_own() {
    skip!("the_program_has_no_descriptor_but_its_own");
    let image = Image::new();
    // Leaked by a careless caller: inheritable, a directory of the host among them.
    let leaked: Vec<_> = (0..20)
        .map(|_| {
            let dir = fs::File::open("/").unwrap();
            rustix::io::fcntl_setfd(&dir, rustix::io::FdFlags::empty()).unwrap();
            dir
        })
        .collect();
    let done = output(&image, &shell("ls /proc/self/fd | tr '\\n' ' '"));
    drop(leaked);
    // 3 is the folder that ls reads.
    assert_eq!(done.out, "0 1 2 3 ", "{}", done.err);
}

#[test]
fn a_working_directory_cannot_be_outside() {
    skip!("a_working_directory_cannot_be_outside");
    let image = Image::new();
    let _dir = fs::File::open("/").unwrap();
    symlink("/proc/self/fd/7", image.path("link")).unwrap();
    let mut cwds: Vec<String> = (3..24).map(|fd| format!("/proc/self/fd/{fd}")).collect();
    cwds.extend([
        "/link".to_owned(),
        "/proc/1/root".to_owned(),
        "/proc/self/cwd".to_owned(),
    ]);
    for cwd in cwds {
        let mut config = shell("pwd; ls /work");
        process(&mut config).cwd.clone_from(&cwd);
        let error = report(&run(&image, &config).unwrap_err());
        assert!(
            error.starts_with(&format!("error: cannot use {cwd} as the working directory")),
            "{error}"
        );
    }
    let mut config = shell("pwd; ls");
    process(&mut config).cwd = "/../../../..".to_owned();
    let done = output(&image, &config);
    assert!(done.out.starts_with("/\nbin\n"), "{done:?}");
}

#[test]
fn a_script_that_names_the_runtime_as_its_interpreter_cannot_write_it() {
    skip!("a_script_that_names_the_runtime_as_its_interpreter_cannot_write_it");
    // CVE-2019-5736. The runtime here is this test's executable; sealed, it runs from a clone
    // whose mount is read-only, and what it forks shows that one.
    let image = Image::new();
    fs::write(image.path("bin/evil"), "#!/proc/self/exe\n").unwrap();
    crate::support::chmod(&image.path("bin/evil"), 0o755);
    let copy = image.top().join("runtime");
    fs::copy("/proc/self/exe", &copy).unwrap();
    let sealed = knarr_runtime::seal::Executable::open(&copy).unwrap();
    let before = fs::metadata("/proc/self/exe").unwrap().modified().unwrap();
    let error = rustix::fs::open(
        sealed.path(),
        rustix::fs::OFlags::RDWR,
        rustix::fs::Mode::empty(),
    );
    assert_eq!(error.unwrap_err(), rustix::io::Errno::ROFS);
    // As init of a container: pid 1 is ours, and its executable is not to be had.
    let options = knarr_runtime::PlanOptions {
        init: true,
        ..knarr_runtime::PlanOptions::default()
    };
    let plan = knarr_runtime::plan(
        &shell("exec 3</proc/1/exe && echo open; ls /proc/1/fd /proc/1/map_files; true"),
        &options,
    )
    .unwrap();
    let done = crate::support::run_plan(&image, &plan).unwrap();
    assert_eq!(done.out, "", "{}", done.err);
    assert_eq!(
        fs::metadata("/proc/self/exe").unwrap().modified().unwrap(),
        before
    );
}

#[test]
fn a_shared_volume_cannot_be_swapped_under_a_mount() {
    skip!("a_shared_volume_cannot_be_swapped_under_a_mount");
    // CVE-2021-30465: another container exchanges a folder of a shared volume and a link to the
    // host while this one mounts on it.
    use std::sync::atomic::{AtomicBool, Ordering};
    let image = Image::new();
    let sentinel = Sentinel::new(&image);
    let before = sentinel.tree();
    let volume = image.top().join("volume");
    fs::create_dir_all(volume.join("a")).unwrap();
    symlink(&sentinel.dir, volume.join("b")).unwrap();
    let stop = AtomicBool::new(false);
    let mut config = config(&["true"]);
    config
        .mounts
        .push(mount("/v", "bind", volume.to_str().unwrap(), &["rbind"]));
    config
        .mounts
        .push(mount("/v/a/made", "tmpfs", "tmpfs", &[]));
    config
        .mounts
        .push(mount("/v/a/file", "bind", "/bin/busybox", &["bind", "ro"]));
    let plan = crate::support::plan(&config);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                rustix::fs::renameat_with(
                    rustix::fs::CWD,
                    volume.join("a"),
                    rustix::fs::CWD,
                    volume.join("b"),
                    rustix::fs::RenameFlags::EXCHANGE,
                )
                .unwrap();
            }
        });
        let mut through = 0;
        for _ in 0..200 {
            // It may fail, it must not go out.
            through += u32::from(crate::support::run_plan(&image, &plan).is_ok());
        }
        stop.store(true, Ordering::Relaxed);
        assert!(through > 0, "the race was never lost");
    });
    assert_eq!(sentinel.tree(), before);
}
