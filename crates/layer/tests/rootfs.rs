//! Roots as the kernel makes them: stacking, sharing, writing, user namespaces.

#![expect(
    clippy::unwrap_used,
    clippy::print_stderr,
    reason = "a test's helpers may do what its tests may"
)]

mod fixture;

use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;

use fixture::{World, inside, root};
use knarr_layer::{Base, Driver, IdMap, LayerPaths, Rootfs, Upper, mount, sweep_holders};

fn three_layers(world: &World) -> Vec<LayerPaths> {
    let mut layers = Vec::new();
    let bottom = world.layer(&layers, |tree| {
        std::fs::create_dir_all(tree.join("etc/opaque")).unwrap();
        std::fs::create_dir(tree.join("gone")).unwrap();
        std::fs::write(tree.join("etc/both"), "bottom").unwrap();
        std::fs::write(tree.join("etc/removed"), "bottom").unwrap();
        std::fs::write(tree.join("etc/opaque/hidden"), "bottom").unwrap();
        std::fs::write(tree.join("gone/file"), "bottom").unwrap();
        std::fs::write(tree.join("large"), vec![7; 300_000]).unwrap();
        std::fs::hard_link(tree.join("large"), tree.join("link")).unwrap();
    });
    layers.push(bottom);
    let middle = world.layer(&layers, |tree| {
        std::fs::create_dir_all(tree.join("etc/opaque")).unwrap();
        std::fs::write(tree.join("etc/both"), "middle").unwrap();
        std::fs::write(tree.join("etc/.wh.removed"), "").unwrap();
        std::fs::write(tree.join("etc/opaque/.wh..wh..opq"), "").unwrap();
        std::fs::write(tree.join("etc/opaque/shown"), "middle").unwrap();
        std::fs::write(tree.join(".wh.gone"), "").unwrap();
    });
    layers.push(middle);
    let top = world.layer(&layers, |tree| {
        std::fs::write(tree.join("top"), "top").unwrap();
        std::fs::set_permissions(tree, std::fs::Permissions::from_mode(0o711)).unwrap();
        std::os::unix::fs::chown(tree, Some(0), Some(7)).unwrap();
    });
    layers.push(top);
    layers
}

fn names(path: &Path) -> Vec<String> {
    let mut names: Vec<_> = std::fs::read_dir(path)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

/// The mounts that this process's namespace shows.
fn mount_table() -> String {
    std::fs::read_to_string("/proc/self/mountinfo").unwrap()
}

#[test]
fn every_driver_stacks_layers_and_takes_writes() {
    if !root("every_driver_stacks_layers_and_takes_writes") {
        return;
    }
    let world = World::new();
    let layers = three_layers(&world);
    for driver in Driver::ALL {
        let rootfs = world.rootfs(driver, &layers, driver.name());
        let mounted = mount(&rootfs, &world.run()).unwrap();
        let at = |path: &str| inside(&mounted.root, path);
        let text = |path: &str| std::fs::read_to_string(at(path)).unwrap();
        assert_eq!(names(&at("")), ["etc", "large", "link", "top"], "{driver}");
        assert_eq!(names(&at("etc")), ["both", "opaque"], "{driver}");
        assert_eq!(names(&at("etc/opaque")), ["shown"], "{driver}");
        assert_eq!(text("etc/both"), "middle", "{driver}");
        assert_eq!(text("top"), "top", "{driver}");
        assert_eq!(
            std::fs::read(at("large")).unwrap(),
            vec![7; 300_000],
            "{driver}"
        );
        let stat = std::fs::metadata(at("")).unwrap();
        assert_eq!((stat.mode() & 0o7777, stat.gid()), (0o711, 7), "{driver}");
        // One file system, with numbers that say which files are one.
        let (large, link) = (
            std::fs::metadata(at("large")),
            std::fs::metadata(at("link")),
        );
        let (large, link) = (large.unwrap(), link.unwrap());
        assert_eq!(large.ino(), link.ino(), "{driver}");
        assert_ne!(
            large.ino(),
            std::fs::metadata(at("top")).unwrap().ino(),
            "{driver}"
        );
        for path in ["etc", "etc/both", "etc/opaque/shown", "large", "top"] {
            assert_eq!(
                std::fs::metadata(at(path)).unwrap().dev(),
                stat.dev(),
                "{driver} {path}"
            );
        }
        // Copy-up, creation, deletion, whiteouts, replaced directories.
        std::fs::write(at("etc/both"), "changed").unwrap();
        std::fs::write(at("new"), "new").unwrap();
        std::fs::remove_file(at("top")).unwrap();
        std::fs::remove_dir_all(at("etc/opaque")).unwrap();
        std::fs::create_dir(at("etc/opaque")).unwrap();
        assert_eq!(names(&at("etc/opaque")), [""; 0], "{driver}");
        assert_eq!(names(&at("")), ["etc", "large", "link", "new"], "{driver}");
        // A folder of the image cannot be renamed; tools know EXDEV and copy.
        let renamed = std::fs::rename(at("etc"), at("etc2")).unwrap_err();
        assert_eq!(
            renamed.kind(),
            std::io::ErrorKind::CrossesDevices,
            "{driver}"
        );
        let mv = std::process::Command::new("mv")
            .arg(at("etc"))
            .arg(at("etc2"))
            .status();
        assert!(mv.unwrap().success(), "{driver}");
        assert_eq!(names(&at("")), ["etc2", "large", "link", "new"], "{driver}");
        drop(mounted);
        // What was written is there at the next start.
        let mounted = mount(&rootfs, &world.run()).unwrap();
        assert_eq!(
            std::fs::read(inside(&mounted.root, "etc2/both")).unwrap(),
            b"changed"
        );
        assert_eq!(
            names(&inside(&mounted.root, "")),
            ["etc2", "large", "link", "new"]
        );
    }
    assert!(!mount_table().contains(world.path("").to_str().unwrap()));
    let containers = names(&world.path("containers"));
    assert_eq!(containers.len(), Driver::ALL.len());
}

#[test]
fn a_root_of_few_layers_needs_no_upper_folder() {
    if !root("a_root_of_few_layers_needs_no_upper_folder") {
        return;
    }
    let world = World::new();
    let layers = three_layers(&world);
    for driver in Driver::ALL {
        for count in 0..=3 {
            let mut rootfs = world.rootfs(driver, &layers[..count], "c");
            rootfs.upper = None;
            let mounted = mount(&rootfs, &world.run()).unwrap();
            let shown = names(&inside(&mounted.root, ""));
            let expected: &[&str] = match count {
                0 => &[],
                1 => &["etc", "gone", "large", "link"],
                2 => &["etc", "large", "link"],
                _ => &["etc", "large", "link", "top"],
            };
            assert_eq!(shown, expected, "{driver} {count}");
            let written = std::fs::write(inside(&mounted.root, "new"), "").unwrap_err();
            assert_eq!(written.kind(), std::io::ErrorKind::ReadOnlyFilesystem);
            let rootfs = world.rootfs(driver, &layers[..count], &format!("{driver}{count}"));
            let mounted = mount(&rootfs, &world.run()).unwrap();
            std::fs::write(inside(&mounted.root, "new"), "").unwrap();
        }
    }
}

#[test]
fn twenty_roots_of_one_image_share_its_superblocks() {
    if !root("twenty_roots_of_one_image_share_its_superblocks") {
        return;
    }
    let world = World::new();
    let layers = three_layers(&world);
    for driver in [
        Driver::Erofs,
        Driver::ErofsPath,
        Driver::ErofsLoop,
        Driver::ErofsLoopPath,
    ] {
        let device =
            |held: &knarr_layer::HeldLayer| rustix::fs::fstat(held.directory()).unwrap().st_dev;
        let mut mounted: Vec<_> = (0..20)
            .map(|number| {
                let rootfs = world.rootfs(driver, &layers, &format!("{driver}{number}"));
                mount(&rootfs, &world.run()).unwrap()
            })
            .collect();
        for layer in 0..3 {
            let first = device(&mounted[0].held[layer]);
            for mounted in &mounted {
                assert_eq!(device(&mounted.held[layer]), first, "{driver}");
            }
        }
        let folder = world.run().join("layers").join(layers[0].id.digest().hex());
        assert_eq!(names(&folder.join("holders")).len(), 20);
        // The clones outlive whoever mounted.
        let first = device(&mounted[0].held[0]);
        let last = mounted.pop().unwrap();
        drop(mounted);
        let rootfs = world.rootfs(driver, &layers, "late");
        let late = mount(&rootfs, &world.run()).unwrap();
        assert_eq!(device(&late.held[0]), first, "{driver}");
        assert_eq!(device(&last.held[0]), first, "{driver}");
        drop((last, late));
        assert_eq!(names(&folder.join("holders")), [""; 0]);
    }
    sweep_holders(&world.run()).unwrap();
    assert_eq!(names(&world.run().join("layers")), [""; 0]);
}

#[test]
fn records_of_the_dead_are_swept_and_liars_are_not_believed() {
    if !root("records_of_the_dead_are_swept_and_liars_are_not_believed") {
        return;
    }
    let world = World::new();
    let layers = three_layers(&world);
    let rootfs = world.rootfs(Driver::Erofs, &layers[..1], "c");
    let holders = world
        .run()
        .join("layers")
        .join(layers[0].id.digest().hex())
        .join("holders");
    std::fs::create_dir_all(&holders).unwrap();
    let boot = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap();
    let boot = boot.trim();
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap();
    let start = stat
        .rsplit_once(')')
        .unwrap()
        .1
        .split_whitespace()
        .nth(19)
        .unwrap()
        .to_owned();
    let me = std::process::id();
    // A process that never was, ours with another start time, another boot, a descriptor that we do
    // not have (as who is being killed has none), nonsense.
    for (name, target) in [
        ("4194305.3", format!("1:{boot}:50:mount")),
        (&format!("{me}.990"), format!("1:{boot}:50:mount")),
        (&format!("{me}.991"), format!("{start}:another:50:mount")),
        (&format!("{me}.992"), format!("{start}:{boot}:50:mount")),
        ("nonsense", "nonsense".to_owned()),
    ] {
        std::os::unix::fs::symlink(target, holders.join(name)).unwrap();
    }
    // We live, but what we hold is no layer.
    let file = std::fs::File::open("/").unwrap();
    let lie = format!("{me}.{}", std::os::fd::AsRawFd::as_raw_fd(&file));
    let device = file.metadata().unwrap().dev();
    std::os::unix::fs::symlink(format!("{start}:{boot}:{device}:mount"), holders.join(&lie))
        .unwrap();
    let mounted = mount(&rootfs, &world.run()).unwrap();
    assert_eq!(
        names(&inside(&mounted.root, "")),
        ["etc", "gone", "large", "link"]
    );
    let left = names(&holders);
    assert_eq!(left.len(), 2, "{left:?}");
    assert!(left.contains(&lie));
}

#[test]
fn a_hundred_and_fifty_layers_are_one_root() {
    if !root("a_hundred_and_fifty_layers_are_one_root") {
        return;
    }
    let world = World::new();
    let mut layers = Vec::new();
    for number in 0..150 {
        let layer = world.layer(&layers, |tree| {
            std::fs::write(tree.join(format!("file-{number}")), number.to_string()).unwrap();
            std::fs::write(tree.join("last"), number.to_string()).unwrap();
        });
        layers.push(layer);
    }
    for driver in [Driver::Erofs, Driver::ErofsPath, Driver::Overlay] {
        let rootfs = world.rootfs(driver, &layers, driver.name());
        let mounted = mount(&rootfs, &world.run()).unwrap();
        assert_eq!(names(&inside(&mounted.root, "")).len(), 151);
        assert_eq!(
            std::fs::read(inside(&mounted.root, "last")).unwrap(),
            b"149"
        );
    }
}

#[test]
fn a_user_namespace_sees_its_own_ids_and_nothing_is_chowned() {
    if !root("a_user_namespace_sees_its_own_ids_and_nothing_is_chowned") {
        return;
    }
    let world = World::new();
    let layer = world.layer(&[], |tree| {
        for (name, uid) in [("root", 0), ("user", 1000)] {
            std::fs::write(tree.join(name), name).unwrap();
            std::os::unix::fs::chown(tree.join(name), Some(uid), Some(uid)).unwrap();
        }
    });
    let idmap = IdMap::shifted(300_000, 65_536);
    for driver in Driver::ALL {
        let mut rootfs = world.rootfs(driver, std::slice::from_ref(&layer), driver.name());
        rootfs.idmap = Some(idmap.clone());
        let mounted = mount(&rootfs, &world.run()).unwrap();
        let owner = |path: &str| {
            let stat = std::fs::symlink_metadata(inside(&mounted.root, path)).unwrap();
            (stat.uid(), stat.gid())
        };
        assert_eq!(owner(""), (300_000, 300_000), "{driver}");
        assert_eq!(owner("root"), (300_000, 300_000), "{driver}");
        assert_eq!(owner("user"), (301_000, 301_000), "{driver}");
        // What the container's root writes belongs to it outside, too.
        let userns = knarr_layer::userns(&idmap).unwrap();
        let script = "stat -c '%u:%g %n' root user; echo more >> user; : > new; \
                      chown 5:6 root; mkdir dir; stat -c '%u:%g %n' root user new";
        let shell = std::process::Command::new("nsenter")
            .arg(format!("--user=/proc/self/fd/{}", keep(&userns)))
            .args(["--setuid=0", "--setgid=0", "sh", "-c"])
            .arg(format!(
                "cd /proc/self/fd/{} && {script}",
                keep(&mounted.root)
            ))
            .output()
            .unwrap();
        let said = String::from_utf8(shell.stdout).unwrap();
        let error = String::from_utf8_lossy(&shell.stderr);
        assert_eq!(
            said.lines().collect::<Vec<_>>(),
            [
                "0:0 root",
                "1000:1000 user",
                "5:6 root",
                "1000:1000 user",
                "0:0 new"
            ],
            "{driver} {error}"
        );
        let upper = world.path("containers").join(driver.name()).join("upper");
        let on_disk = |path: &str| {
            let stat = std::fs::symlink_metadata(upper.join(path)).unwrap();
            (stat.uid(), stat.gid())
        };
        assert_eq!(on_disk(""), (300_000, 300_000));
        assert_eq!(on_disk("new"), (300_000, 300_000));
        assert_eq!(on_disk("user"), (301_000, 301_000));
        assert_eq!(on_disk("root"), (300_005, 300_006));
        // The image is as it was.
        let plain = world.rootfs(driver, std::slice::from_ref(&layer), "plain");
        let plain = mount(
            &Rootfs {
                upper: None,
                ..plain
            },
            &world.run(),
        )
        .unwrap();
        let stat = std::fs::metadata(inside(&plain.root, "user")).unwrap();
        assert_eq!((stat.uid(), stat.len()), (1000, 4));
    }
}

/// A descriptor that the next program inherits, leaked on purpose.
fn keep(fd: &std::os::fd::OwnedFd) -> i32 {
    use std::os::fd::IntoRawFd;
    rustix::io::dup(fd).unwrap().into_raw_fd()
}

#[test]
fn a_volatile_root_can_be_mounted_again() {
    if !root("a_volatile_root_can_be_mounted_again") {
        return;
    }
    let world = World::new();
    let layers = three_layers(&world);
    let mut rootfs = world.rootfs(Driver::Erofs, &layers, "c");
    rootfs.volatile = true;
    for text in ["first", "second"] {
        let mounted = mount(&rootfs, &world.run()).unwrap();
        std::fs::write(inside(&mounted.root, text), text).unwrap();
    }
    let mounted = mount(&rootfs, &world.run()).unwrap();
    assert_eq!(
        std::fs::read(inside(&mounted.root, "first")).unwrap(),
        b"first"
    );
}

#[test]
fn a_request_reads_back_as_it_was_written() {
    let world = Rootfs {
        base: Base::Host,
        upper: None,
        volatile: false,
        idmap: Some(IdMap::shifted(1, 2)),
    };
    let text = serde_json::to_string(&world).unwrap();
    assert_eq!(serde_json::from_str::<Rootfs>(&text).unwrap(), world);
}

/// Another process, which mounts the root that its environment describes and keeps it until it is
/// killed or its standard input ends: this very program, asked for one test.
struct Holder(std::process::Child);

const HOLD: &str = "KNARR_TEST_HOLD";

impl Holder {
    fn start(rootfs: &Rootfs, run_root: &Path) -> Self {
        use std::io::BufRead as _;
        let mut child = std::process::Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "be_a_holder", "--nocapture"])
            .env(HOLD, serde_json::to_string(&(rootfs, run_root)).unwrap())
            .stdin(std::process::Stdio::piped())
            .stdout(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        let output = std::io::BufReader::new(child.stdout.as_mut().unwrap());
        assert!(output.lines().any(|line| line.unwrap().contains("holding")));
        Self(child)
    }

    fn kill(mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

#[test]
fn be_a_holder() {
    let Ok(text) = std::env::var(HOLD) else {
        // Only of use to the tests below.
        return;
    };
    let (rootfs, run_root): (Rootfs, std::path::PathBuf) = serde_json::from_str(&text).unwrap();
    if let Base::Layers { driver, layers } = &rootfs.base {
        let store = knarr_layer::Store::open(&run_root.parent().unwrap().join("data"));
        for layer in layers {
            driver.snapshotter().prepare(&store, &layer.id).unwrap();
        }
    }
    let mounted = mount(&rootfs, &run_root).unwrap();
    println!("holding");
    std::io::stdin().read_line(&mut String::new()).unwrap();
    drop(mounted);
}

#[test]
fn a_kill_at_any_point_leaves_what_the_next_start_uses_or_removes() {
    if !root("a_kill_at_any_point_leaves_what_the_next_start_uses_or_removes") {
        return;
    }
    for point in ["layer.unpacked", "layer.mounted", "layer.upper"] {
        let world = World::new();
        let layers = three_layers(&world);
        let driver = match point {
            "layer.unpacked" => Driver::Overlay,
            _ => Driver::Erofs,
        };
        // Only the killed process has prepared the layers so far.
        let mut rootfs = world.rootfs(driver, &[], "c");
        rootfs.base = Base::Layers {
            driver,
            layers: layers.clone(),
        };
        let killed = std::process::Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "be_a_holder", "--nocapture"])
            .env(
                HOLD,
                serde_json::to_string(&(&rootfs, world.run())).unwrap(),
            )
            .env("KNARR_FAILPOINT", point)
            .stdin(std::process::Stdio::null())
            .stdout(std::process::Stdio::null())
            .status()
            .unwrap();
        let signal = std::os::unix::process::ExitStatusExt::signal(&killed);
        assert_eq!(signal, Some(9), "{point}");
        world.rootfs(driver, &layers, "c");
        let mounted = mount(&rootfs, &world.run()).unwrap();
        assert_eq!(
            names(&inside(&mounted.root, "")),
            ["etc", "large", "link", "top"]
        );
        let stat = std::fs::metadata(inside(&mounted.root, "")).unwrap();
        assert_eq!((stat.mode() & 0o7777, stat.gid()), (0o711, 7), "{point}");
        assert_eq!(
            names(&world.path("containers/c")),
            ["upper", "work"],
            "{point}"
        );
        for layer in &layers {
            let left = names(&layer.folder);
            let left: Vec<_> = left
                .iter()
                .filter(|name| name.starts_with(".tmp"))
                .collect();
            assert!(left.is_empty(), "{point} {left:?}");
        }
    }
}

fn devices(mounted: &knarr_layer::Mounted) -> Vec<u64> {
    let device =
        |held: &knarr_layer::HeldLayer| rustix::fs::fstat(held.directory()).unwrap().st_dev;
    mounted.held.iter().map(device).collect()
}

#[test]
fn layers_are_shared_between_processes_and_survive_the_one_that_mounted() {
    if !root("layers_are_shared_between_processes_and_survive_the_one_that_mounted") {
        return;
    }
    let world = World::new();
    let layers = three_layers(&world);
    for driver in [Driver::Erofs, Driver::ErofsPath] {
        let holders = |layer: &LayerPaths| {
            let folder = world.run().join("layers").join(layer.id.digest().hex());
            names(&folder.join("holders"))
        };
        let theirs = world.rootfs(driver, &layers, &format!("{driver}-theirs"));
        let holder = Holder::start(&theirs, &world.run());
        let pid = holder.0.id();
        assert_eq!(holders(&layers[0]).len(), 1);
        let ours = world.rootfs(driver, &layers, &format!("{driver}-ours"));
        let first = mount(&ours, &world.run()).unwrap();
        holder.kill();
        assert_eq!(
            std::fs::read(inside(&first.root, "large")).unwrap(),
            vec![7; 300_000]
        );
        // The dead one's record is passed over: ours lives.
        let next = world.rootfs(driver, &layers, &format!("{driver}-next"));
        let second = mount(&next, &world.run()).unwrap();
        assert_eq!(devices(&first), devices(&second), "{driver}");
        drop((first, second));
        // Nobody living is left: a new superblock, and the dead one's record goes.
        let stale = holders(&layers[0]);
        assert_eq!(stale.len(), 1, "{stale:?}");
        assert!(stale[0].starts_with(&format!("{pid}.")));
        let third = mount(&next, &world.run()).unwrap();
        assert_eq!(holders(&layers[0]).len(), 1);
        assert_ne!(holders(&layers[0]), stale);
        drop(third);
    }
}

#[test]
fn many_processes_that_start_and_end_at_once_get_their_roots() {
    if !root("many_processes_that_start_and_end_at_once_get_their_roots") {
        return;
    }
    let world = World::new();
    let layers = three_layers(&world);
    std::thread::scope(|scope| {
        for thread in 0..4 {
            let (world, layers) = (&world, &layers);
            scope.spawn(move || {
                for number in 0..8 {
                    let name = format!("{thread}-{number}");
                    let rootfs = world.rootfs(Driver::Erofs, layers, &name);
                    let holder = Holder::start(&rootfs, &world.run());
                    let mounted = mount(
                        &world.rootfs(Driver::Erofs, layers, &format!("{name}-own")),
                        &world.run(),
                    )
                    .unwrap();
                    if number % 2 == 0 {
                        holder.kill();
                    } else {
                        drop(holder);
                    }
                    assert_eq!(names(&inside(&mounted.root, "")).len(), 4);
                    sweep_holders(&world.run()).unwrap();
                }
            });
        }
    });
    sweep_holders(&world.run()).unwrap();
}

impl Drop for Holder {
    fn drop(&mut self) {
        // Its standard input ends with the child's handle; then it goes by itself.
        drop(self.0.stdin.take());
        self.0.wait().ok();
    }
}

/// `cargo test --release -p knarr-layer --test rootfs -- --ignored --nocapture how_long`
#[test]
#[ignore = "a measurement"]
fn how_long_mounting_takes() {
    let world = World::new();
    let layers = three_layers(&world);
    let mut many = layers.clone();
    for number in 0..17 {
        let layer = world.layer(&many, |tree| {
            std::fs::write(tree.join(format!("file-{number}")), "").unwrap();
        });
        many.push(layer);
    }
    let shm = knarr_fs::TempDir::new_in(Path::new("/dev/shm/knarr-layer-tests")).unwrap();
    // The making alone: taking back is the kernel's, and a later start's, business.
    let time = |what: &str, make: &dyn Fn(usize) -> Box<dyn std::any::Any>| {
        let mut times: Vec<_> = (0..200)
            .map(|number| {
                let start = std::time::Instant::now();
                let made = make(number);
                let taken = start.elapsed().as_nanos() / 1000;
                drop(made);
                taken
            })
            .collect();
        times.sort_unstable();
        println!("{what}: median {} us, least {} us", times[100], times[0]);
    };
    for driver in Driver::ALL {
        for (what, layers) in [("1 layer", &layers[..1]), ("20 layers", &many[..])] {
            // As `run --rm` has it: the container's folder on a tmpfs.
            let rootfs = |number| {
                let container = shm.path().join(format!("{driver}{what}{number}"));
                std::fs::create_dir(&container).unwrap();
                Rootfs {
                    volatile: true,
                    upper: Some(Upper {
                        upper: container.join("upper"),
                        work: container.join("work"),
                    }),
                    ..world.rootfs(driver, layers, "c")
                }
            };
            let rootfs: Vec<_> = (0..401).map(rootfs).collect();
            let run = shm.path().join("run");
            let alone = |number: usize| -> Box<dyn std::any::Any> {
                Box::new(mount(&rootfs[number], &run).unwrap())
            };
            let shared = |number: usize| alone(number + 200);
            time(&format!("{driver}, {what}, nobody holds it"), &alone);
            let held = mount(&rootfs[400], &run).unwrap();
            time(&format!("{driver}, {what}, cloned"), &shared);
            drop(held);
        }
    }
    let host = Rootfs {
        base: Base::Host,
        upper: None,
        volatile: false,
        idmap: Some(IdMap::shifted(100_000, 65_536)),
    };
    let run = world.run();
    time("@host", &|_| Box::new(mount(&host, &run).unwrap()));
    let map = IdMap::shifted(100_000, 65_536);
    time("userns", &|_| Box::new(knarr_layer::userns(&map).unwrap()));
}
