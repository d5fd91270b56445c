//! Containers from creation to removal, through the real monitor, on a busybox root.

#![expect(
    clippy::unwrap_used,
    clippy::panic,
    clippy::print_stderr,
    reason = "helpers of tests fail by panicking and say what they skip"
)]

use std::os::fd::AsFd as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use knarr_diag::{Class, Explain};
use knarr_engine::image::{ImportOptions, Silent, Source};
use knarr_engine::{
    CopyEnd, CopyOptions, CreateRequest, Ended, Engine, ListOptions, LogOptions, OnSignal,
    RemoveOptions, Session, Settings, StartOptions, Status, StopOptions, Streams, VolumeCreate,
    WaitCondition,
};

/// An engine on folders of its own, with busybox as image `box`.
struct World {
    engine: Engine,
    folder: knarr_fs::TempDir,
}

/// The monitor that was built beside this test, if it was.
fn monitor() -> Option<PathBuf> {
    let test = std::env::current_exe().unwrap();
    let path = test.parent()?.parent()?.join("knarr-monitor");
    path.exists().then_some(path)
}

fn world(test: &str) -> Option<World> {
    let skip = |reason: &str| {
        eprintln!("SKIP {test}: {reason}");
        None
    };
    if !rustix::process::geteuid().is_root() {
        return skip("not root");
    }
    // The machine's own network is not touched.
    knarr_sys::namespace::unshare_network().unwrap();
    let Some(monitor) = monitor() else {
        return skip("knarr-monitor is not built");
    };
    let busybox = Path::new("/bin/busybox");
    if !busybox.exists() {
        return skip("no static busybox");
    }
    let folder = knarr_fs::TempDir::new_in(Path::new("/var/tmp/knarr-engine-tests")).unwrap();
    let settings = Settings {
        root: folder.path().join("data"),
        run_root: folder.path().join("run"),
        monitor,
    };
    let engine = Engine::open(settings).unwrap();
    let root = folder.path().join("root");
    for name in ["bin", "etc", "tmp", "seed"] {
        std::fs::create_dir_all(root.join(name)).unwrap();
    }
    std::fs::copy(busybox, root.join("bin/busybox")).unwrap();
    for name in [
        "sh", "cat", "echo", "sleep", "id", "ls", "true", "hostname", "touch", "pwd", "rm",
    ] {
        std::os::unix::fs::symlink("busybox", root.join("bin").join(name)).unwrap();
    }
    std::fs::write(
        root.join("etc/passwd"),
        "root:x:0:0::/root:/bin/sh\nme:x:7:8::/home/me:/bin/sh\n",
    )
    .unwrap();
    std::fs::write(root.join("seed/file"), "from the image\n").unwrap();
    let tar = folder.path().join("root.tar");
    let status = Command::new("tar")
        .arg("-cf")
        .arg(&tar)
        .arg("-C")
        .arg(&root)
        .arg(".")
        .status()
        .unwrap();
    assert!(status.success());
    let options = ImportOptions {
        reference: Some("box".parse().unwrap()),
        changes: vec!["CMD [\"sh\"]".to_owned()],
        ..ImportOptions::default()
    };
    engine
        .images()
        .import(Source::Path(&tar), &options)
        .unwrap();
    Some(World { engine, folder })
}

fn request(name: &str, command: &[&str]) -> CreateRequest {
    let mut request = CreateRequest {
        name: Some(name.to_owned()),
        ..CreateRequest::default()
    };
    request.config.image = "box".to_owned();
    request.config.cmd = Some(command.iter().map(|&word| word.to_owned()).collect());
    request
}

/// Pumps a session to its end: exit code and what it wrote.
fn finish(mut session: Session) -> (i32, String, String) {
    let (out_read, out) = rustix::pipe::pipe().unwrap();
    let (err_read, err) = rustix::pipe::pipe().unwrap();
    let streams = Streams {
        stdout: Some(out.as_fd()),
        stderr: Some(err.as_fd()),
        ..Streams::default()
    };
    let ended = session.pump(&streams, &mut |_| OnSignal::Ignore).unwrap();
    drop((out, err));
    let text = |fd| std::io::read_to_string(std::fs::File::from(fd)).unwrap();
    let Ended::Exited(code) = ended else {
        panic!("detached")
    };
    (code, text(out_read), text(err_read))
}

impl World {
    fn run(&self, request: &CreateRequest) -> (i32, String, String) {
        let attach = StartOptions {
            attach: true,
            stdin: false,
        };
        let (_, session) = self
            .engine
            .run(request, &attach, &Silent)
            .unwrap_or_else(told);
        finish(session.unwrap())
    }

    fn start(&self, request: &CreateRequest) {
        self.engine
            .run(request, &StartOptions::default(), &Silent)
            .unwrap_or_else(told);
    }

    fn all(&self) -> Vec<knarr_engine::Summary> {
        let options = ListOptions {
            all: true,
            ..ListOptions::default()
        };
        let listing = self.engine.list(&options).unwrap();
        assert!(listing.damaged.is_empty(), "{:?}", listing.damaged);
        listing.containers
    }

    fn names(&self, folder: &str) -> Vec<String> {
        let names = knarr_fs::file_names(&self.folder.path().join(folder)).unwrap();
        names
            .into_iter()
            .map(|name| name.into_string().unwrap())
            .collect()
    }

    /// Nothing of a container is left anywhere.
    fn is_clean(&self) {
        for folder in [
            "data/containers",
            "data/ephemeral",
            "data/names",
            "data/userns",
            "run/containers",
        ] {
            assert_eq!(self.names(folder), Vec::<String>::new(), "{folder}");
        }
    }
}

fn told<T>(error: knarr_engine::Error) -> T {
    panic!("{}", error.report())
}

#[test]
fn run_rm_gives_output_and_exit_code_and_leaves_nothing() {
    let Some(world) = world("run_rm") else { return };
    let mut request = request("once", &["sh", "-c", "echo out; echo err >&2; exit 7"]);
    request.host.auto_remove = true;
    assert_eq!(
        world.run(&request),
        (7, "out\n".to_owned(), "err\n".to_owned())
    );
    world.is_clean();
}

#[test]
fn a_container_is_created_started_listed_stopped_and_removed() {
    let Some(world) = world("lifecycle") else {
        return;
    };
    let engine = &world.engine;
    let created = engine.create(
        &request(
            "web",
            &[
                "sh",
                "-c",
                "echo hi; trap 'exit 3' TERM; while :; do sleep 0.1; done",
            ],
        ),
        &Silent,
    );
    let created = created.unwrap_or_else(told);
    assert_eq!(world.all()[0].status, Status::Created);
    let again = engine
        .create(&request("web", &["true"]), &Silent)
        .unwrap_err();
    assert!(
        again.to_string().contains("is already in use by container"),
        "{again}"
    );
    assert_eq!(again.class(), Class::Exists);
    engine
        .start("web", &StartOptions::default())
        .unwrap_or_else(told);
    assert_eq!(world.all()[0].status, Status::Running);
    assert_eq!(engine.resolve(created.id.short()).unwrap(), created.id);
    let inspected = engine.inspect("web", true).unwrap();
    assert_eq!(inspected["State"]["Status"], "running");
    assert_eq!(inspected["Name"], "/web");
    let top = engine.top("web", &[]).unwrap_or_else(told);
    assert!(
        top.processes
            .iter()
            .any(|row| row.last().unwrap().contains("trap")),
        "{top:?}"
    );
    let refused = engine.remove("web", &RemoveOptions::default()).unwrap_err();
    assert!(
        refused.to_string().contains("container is running"),
        "{refused}"
    );
    engine.pause("web").unwrap_or_else(told);
    assert_eq!(
        world.all()[0].status_text.rsplit(' ').next(),
        Some("(Paused)")
    );
    engine.unpause("web").unwrap_or_else(told);
    engine.rename("web", "site").unwrap_or_else(told);
    assert_eq!(engine.resolve("web").unwrap_err().class(), Class::NotFound);
    let stats = engine.stats("site").unwrap().sample().unwrap();
    assert!(stats.pids >= 1, "{stats:?}");
    engine
        .stop("site", &StopOptions::default())
        .unwrap_or_else(told);
    assert_eq!(engine.wait("site", WaitCondition::NotRunning).unwrap(), 3);
    assert_eq!(world.all()[0].status, Status::Exited);
    let mut lines = Vec::new();
    engine
        .logs("site", &LogOptions::default(), &mut |line| {
            lines.push(String::from_utf8_lossy(line.text).into_owned());
            Ok(())
        })
        .unwrap();
    assert_eq!(lines, ["hi\n"]);
    engine
        .remove("site", &RemoveOptions::default())
        .unwrap_or_else(told);
    world.is_clean();
}

#[test]
fn volumes_are_filled_kept_in_use_and_removed() {
    let Some(world) = world("volumes") else {
        return;
    };
    let engine = &world.engine;
    engine
        .volume_create(&VolumeCreate {
            name: Some("data".to_owned()),
            ..VolumeCreate::default()
        })
        .unwrap();
    let mut first = request(
        "first",
        &["sh", "-c", "cat /seed/file /etc/hostname; touch /seed/new"],
    );
    first.host.binds = Some(vec!["data:/seed".to_owned()]);
    first.config.hostname = "inside".to_owned();
    first.config.volumes = Some([("/anonymous".to_owned(), Default::default())].into());
    let (code, out, err) = world.run(&first);
    assert_eq!(
        (code, out.as_str(), err.as_str()),
        (0, "from the image\ninside\n", "")
    );
    let volume = engine.volume("data").unwrap();
    assert!(volume.mountpoint.join("new").exists());
    let refused = engine.volume_remove("data", false).unwrap_err();
    assert!(
        refused.to_string().starts_with("volume is in use"),
        "{refused}"
    );
    let mut second = request("second", &["ls", "/seed"]);
    second.host.volumes_from = Some(vec!["first:ro".to_owned()]);
    second.host.auto_remove = true;
    assert_eq!(world.run(&second).1, "file\nnew\n");
    assert_eq!(world.names("data/volumes").len(), 2);
    let remove = RemoveOptions {
        force: true,
        volumes: true,
    };
    engine.remove("first", &remove).unwrap_or_else(told);
    assert_eq!(world.names("data/volumes"), ["data"]);
    engine.volume_remove("data", false).unwrap_or_else(told);
    world.is_clean();
}

#[test]
fn user_hostname_environment_and_folder_are_as_asked() {
    let Some(world) = world("process") else {
        return;
    };
    let mut asked = request(
        "who",
        &["sh", "-c", "id -u; id -g; hostname; pwd; echo $A $HOME"],
    );
    asked.host.auto_remove = true;
    asked.config.user = "me".to_owned();
    asked.config.hostname = "box".to_owned();
    asked.config.working_dir = "/work/deep".to_owned();
    asked.config.env = vec!["A=b".to_owned()];
    assert_eq!(world.run(&asked).1, "7\n8\nbox\n/work/deep\nb /home/me\n");
    asked.name = None;
    asked.config.user = "nobody-here".to_owned();
    let attach = StartOptions {
        attach: true,
        stdin: false,
    };
    let error = world.engine.run(&asked, &attach, &Silent).unwrap_err();
    assert!(
        error.report().to_string().contains("nobody-here"),
        "{}",
        error.report()
    );
    world.is_clean();
}

#[test]
fn a_container_in_a_user_namespace_is_nobody_outside() {
    let Some(world) = world("userns") else { return };
    let mut asked = request(
        "shifted",
        &["sh", "-c", "id -u; cat /proc/self/uid_map; touch /mine"],
    );
    asked.host.userns_mode = "auto".to_owned();
    let (code, out, err) = world.run(&asked);
    assert_eq!((code, err.as_str()), (0, ""));
    let inspected = world.engine.inspect("shifted", false).unwrap();
    let start = inspected["IDMappings"]["Start"].as_u64().unwrap();
    assert!(start >= 65_536 && out.starts_with("0\n"), "{out}");
    assert!(out.contains(&start.to_string()), "{out}");
    world
        .engine
        .remove("shifted", &RemoveOptions::default())
        .unwrap_or_else(told);
    world.is_clean();
}

#[test]
fn a_missing_program_is_told_and_a_rm_container_goes() {
    let Some(world) = world("missing") else {
        return;
    };
    let mut asked = request("gone", &["/no/such/program"]);
    asked.host.auto_remove = true;
    let error = world
        .engine
        .run(&asked, &StartOptions::default(), &Silent)
        .unwrap_err();
    assert_eq!(error.class(), Class::CommandNotFound, "{}", error.report());
    world.is_clean();
}

#[test]
fn limits_and_host_programs() {
    let Some(world) = world("host") else { return };
    let mut asked = request("host", &["sh", "-c", "echo $$"]);
    asked.config.image = "@host".to_owned();
    asked.host.auto_remove = true;
    asked.host.pids_limit = Some(20);
    let (code, out, err) = world.run(&asked);
    assert_eq!((code, out.as_str()), (0, "1\n"), "{err}");
    world.is_clean();
}

#[test]
fn a_plan_is_shown_and_nothing_is_made() {
    let Some(world) = world("plan") else { return };
    let mut asked = request("plan", &["true"]);
    asked.host.binds = Some(vec!["new:/data".to_owned()]);
    let plan = world.engine.plan(&asked, &Silent).unwrap_or_else(told);
    assert_eq!(plan["command"][0], "true");
    assert!(plan["runtime"]["mounts"].as_array().unwrap().len() > 5);
    assert_eq!(world.names("data/volumes"), Vec::<String>::new());
    world.is_clean();
}

/// Copies without a stream.
fn copy(world: &World, from: &CopyEnd, to: &CopyEnd) -> Result<(), knarr_engine::Error> {
    let options = CopyOptions::default();
    world.engine.copy(
        from,
        to,
        &options,
        &mut std::io::empty(),
        &mut std::io::sink(),
    )
}

#[test]
fn files_are_copied_in_and_out_running_or_not() {
    let Some(world) = world("copy") else { return };
    let sleeper = [
        "sh",
        "-c",
        "trap 'exit 0' TERM; while :; do sleep 0.1; done",
    ];
    let mut asked = request("files", &sleeper);
    asked.host.binds = Some(vec!["stuff:/stuff".to_owned()]);
    world.engine.create(&asked, &Silent).unwrap_or_else(told);
    let outside = world.folder.path().join("outside");
    std::fs::create_dir_all(outside.join("deep/er")).unwrap();
    std::fs::write(outside.join("deep/er/file"), "content").unwrap();
    std::os::unix::fs::symlink("er/file", outside.join("deep/link")).unwrap();
    let local = |name: &str| CopyEnd::Local(outside.join(name));
    let inside = |path: &str| CopyEnd::Container {
        name: "files".to_owned(),
        path: path.to_owned(),
    };
    for round in ["stopped", "running"] {
        if round == "running" {
            world
                .engine
                .start("files", &StartOptions::default())
                .unwrap_or_else(told);
        }
        for base in ["/tmp", "/stuff"] {
            let to = format!("{base}/{round}");
            copy(&world, &local("deep"), &inside(&to)).unwrap_or_else(told);
            let back = format!("{round}{}", base.replace('/', "-"));
            copy(&world, &inside(&to), &local(&back)).unwrap_or_else(told);
            let file = outside.join(&back).join("er/file");
            assert_eq!(std::fs::read_to_string(file).unwrap(), "content", "{back}");
            let link = outside.join(&back).join("link");
            assert_eq!(std::fs::read_link(link).unwrap(), Path::new("er/file"));
        }
        // Into a folder that is there: below it, or with `/.` what is in it.
        copy(&world, &local("deep"), &inside("/tmp")).unwrap_or_else(told);
        copy(&world, &local("deep/."), &inside("/tmp/")).unwrap_or_else(told);
        let mut tar = Vec::new();
        let options = CopyOptions::default();
        world
            .engine
            .copy(
                &inside("/tmp/deep"),
                &CopyEnd::Stream,
                &options,
                &mut std::io::empty(),
                &mut tar,
            )
            .unwrap_or_else(told);
        assert!(tar.windows(10).any(|bytes| bytes == b"deep/link\0"));
        world
            .engine
            .copy(
                &CopyEnd::Stream,
                &inside("/seed"),
                &options,
                &mut tar.as_slice(),
                &mut std::io::sink(),
            )
            .unwrap_or_else(told);
        copy(&world, &inside("/seed/deep/er/file"), &local("single")).unwrap_or_else(told);
        assert_eq!(
            std::fs::read_to_string(outside.join("single")).unwrap(),
            "content"
        );
        for (from, to, message) in [
            (
                inside("/no/such"),
                local("x"),
                "Could not find the file /no/such in container files",
            ),
            (
                local("nothing"),
                inside("/tmp"),
                "no such file or directory",
            ),
            (local("deep"), inside("/seed/file"), "cannot copy directory"),
            (local("single"), inside("/nowhere/"), "no such directory"),
            (
                local("single"),
                inside("/nowhere/x"),
                "Could not find the file /nowhere",
            ),
            (inside("/tmp"), inside("/seed"), "between containers"),
        ] {
            let error = copy(&world, &from, &to).unwrap_err();
            assert!(error.to_string().contains(message), "{round}: {error}");
        }
    }
    let diff = world.engine.diff("files").unwrap_or_else(told);
    assert!(
        diff.iter()
            .any(|change| change.path == Path::new("/seed/deep")),
        "{diff:?}"
    );
    world
        .engine
        .remove(
            "files",
            &RemoveOptions {
                force: true,
                volumes: true,
            },
        )
        .unwrap_or_else(told);
    world.is_clean();
}

#[test]
fn what_comes_out_stays_in_the_folder_it_was_copied_to() {
    let Some(world) = world("copy_confined") else {
        return;
    };
    let script = "mkdir -p /evil; ln -s /etc /evil/way; ln -s / /evil/up";
    world.run(&request(
        "evil",
        &[
            "/bin/busybox",
            "sh",
            "-c",
            &script
                .replace("mkdir", "/bin/busybox mkdir")
                .replace("ln -s", "/bin/busybox ln -s"),
        ],
    ));
    let outside = world.folder.path().join("target");
    std::fs::create_dir(&outside).unwrap();
    let from = |path: &str| CopyEnd::Container {
        name: "evil".to_owned(),
        path: path.to_owned(),
    };
    copy(&world, &from("/evil/."), &CopyEnd::Local(outside.clone())).unwrap_or_else(told);
    // A second copy through the link that the first one made lands inside, not in /etc.
    let again = copy(
        &world,
        &from("/etc/passwd"),
        &CopyEnd::Local(outside.join("way/knarr-test")),
    );
    if again.is_ok() {
        let wrong = Path::new("/etc/knarr-test");
        let there = wrong.exists();
        std::fs::remove_file(wrong).ok();
        assert!(there, "the caller's own words may lead through links");
    }
    let mut tar = Vec::new();
    let member = |path: &str, kind, link: &str, size| knarr_layer::tar::Member {
        path: path.into(),
        kind,
        link: link.into(),
        mode: 0o644,
        size,
        ..Default::default()
    };
    use knarr_layer::tar::{Kind, TRAILER, encode, padding};
    tar.extend(encode(&member("hole", Kind::Symlink, "/../../..", 0)).unwrap());
    tar.extend(
        encode(&member(
            "hole/tmp/../../../knarr-escaped",
            Kind::File,
            "",
            2,
        ))
        .unwrap(),
    );
    tar.extend(b"x\n");
    tar.extend(padding(2));
    tar.extend(TRAILER);
    let options = CopyOptions::default();
    let to = CopyEnd::Container {
        name: "evil".to_owned(),
        path: "/tmp".to_owned(),
    };
    world
        .engine
        .copy(
            &CopyEnd::Stream,
            &to,
            &options,
            &mut tar.as_slice(),
            &mut std::io::sink(),
        )
        .unwrap_or_else(told);
    assert!(!Path::new("/knarr-escaped").exists());
    let id = world.engine.resolve("evil").unwrap();
    let upper = world
        .folder
        .path()
        .join("data/containers")
        .join(id.as_str())
        .join("upper");
    assert!(upper.join("tmp/knarr-escaped").exists());
    world
        .engine
        .remove("evil", &RemoveOptions::default())
        .unwrap_or_else(told);
    world.is_clean();
}

#[test]
fn what_waits_keeps_up_with_a_killed_monitor() {
    let Some(world) = world("adoption") else {
        return;
    };
    world.start(&request(
        "alone",
        &[
            "sh",
            "-c",
            "trap 'exit 5' TERM; while :; do sleep 0.1; done",
        ],
    ));
    let id = world.engine.resolve("alone").unwrap();
    let state = world.folder.path().join("run/containers").join(id.as_str());
    let state = knarr_monitor::State::load(&state).unwrap().unwrap();
    let monitor = i32::try_from(state.monitor.unwrap().pid).unwrap();
    let pid = rustix::process::Pid::from_raw(monitor).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
    assert_eq!(world.all()[0].status, Status::Running);
    world
        .engine
        .stop("alone", &StopOptions::default())
        .unwrap_or_else(told);
    assert_eq!(world.all()[0].status, Status::Exited);
    world
        .engine
        .remove("alone", &RemoveOptions::default())
        .unwrap_or_else(told);
    world.is_clean();
}
