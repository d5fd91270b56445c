//! Real engines with knarr-oci as their runtime: Debian's containerd, dockerd and podman, each on
//! folders, a network namespace and a mount namespace of the test's own.

#![expect(clippy::unwrap_used, reason = "a test says what it saw by failing")]

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use knarr_testkit::oci::{Ended, end, remove_cgroups};
use knarr_testkit::{binary, eventually, fixture, target};

const LONG: Duration = Duration::from_secs(90);

/// Namespaces that a sleeping process holds, and a folder.
struct Place {
    holder: Child,
    dir: PathBuf,
    cgroup: String,
}

impl Place {
    fn new(name: &str) -> Self {
        let own = format!("{}-{name}", std::process::id());
        let dir = target().join("oci").join(&own);
        std::fs::create_dir_all(dir.join("run")).unwrap();
        let script = "ip link set lo up && mount --make-rprivate / && \
                      mount -t tmpfs -o mode=700 tmpfs \"$0\" && echo ready && exec sleep 3600";
        let mut holder = Command::new("unshare")
            .args(["--net", "--mount", "sh", "-c", script])
            .arg(dir.join("run"))
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut ready = [0; 6];
        std::io::Read::read_exact(&mut holder.stdout.take().unwrap(), &mut ready).unwrap();
        Self {
            holder,
            dir,
            cgroup: format!("knarr-oci-{own}"),
        }
    }

    fn at(&self, name: &str) -> String {
        self.dir.join(name).display().to_string()
    }

    /// A program in there.
    fn command(&self, program: &str, args: &[&str]) -> Command {
        let mut command = Command::new("nsenter");
        command
            .args([
                "--target",
                &self.holder.id().to_string(),
                "--net",
                "--mount",
                "--",
            ])
            .arg(program)
            .args(args)
            .stdin(Stdio::null());
        command
    }

    /// A daemon in there, which answers once `ask` succeeds.
    fn daemon(&self, program: &str, args: &[&str], ask: impl Fn() -> Ended) -> Child {
        let log = std::fs::File::create(self.dir.join("log")).unwrap();
        let daemon = self
            .command(program, args)
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .unwrap();
        eventually(LONG, "the daemon answers", || {
            (ask().code == 0).then_some(())
        });
        daemon
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.dir.join("log")).unwrap_or_default()
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.holder.kill().ok();
        self.holder.wait().ok();
        remove_cgroups(&self.cgroup);
        std::fs::remove_dir_all(&self.dir).ok();
    }
}

fn stop(mut daemon: Child) {
    let pid = rustix::process::Pid::from_child(&daemon);
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
    daemon.wait().unwrap();
}

fn image() -> String {
    fixture::busybox_image().unwrap().display().to_string()
}

/// The value of a control file of the only container below the place's cgroup.
fn limit(place: &Place, files: [&str; 2]) -> String {
    let hierarchies = std::fs::read_dir("/sys/fs/cgroup").unwrap();
    let found = hierarchies
        .flatten()
        .map(|entry| entry.path().join(&place.cgroup))
        .chain([Path::new("/sys/fs/cgroup").join(&place.cgroup)])
        .flat_map(|dir| std::fs::read_dir(dir).into_iter().flatten().flatten())
        .find_map(|container| {
            files
                .iter()
                .find_map(|file| std::fs::read_to_string(container.path().join(file)).ok())
        });
    found.unwrap_or_default().trim().to_owned()
}

#[test]
fn dockerd_uses_it() {
    let place = Place::new("docker");
    let socket = format!("unix://{}", place.at("docker.sock"));
    let docker =
        |args: &[&str]| end(&mut place.command("docker", &[&["-H", &socket], args].concat()));
    let daemon = place.daemon(
        "dockerd",
        &[
            "--data-root",
            &place.at("data"),
            "--exec-root",
            &place.at("run/docker"),
            "--pidfile",
            &place.at("docker.pid"),
            "-H",
            &socket,
            "--bridge=none",
            "--iptables=false",
            "--ip6tables=false",
            "--ip-forward=false",
            "--storage-driver",
            "overlay2",
            "--cgroup-parent",
            &format!("/{}", place.cgroup),
            "--add-runtime",
            &format!("knarr={}", binary("knarr-oci").display()),
            "--default-runtime",
            "knarr",
        ],
        || docker(&["version"]),
    );
    docker(&["load", "-i", &image()]).ok();
    let run = |args: &[&str]| docker(&[&["run", "--rm", "--network", "none"], args].concat());
    assert_eq!(run(&["busybox", "echo", "hello"]).ok(), "hello\n");
    assert_eq!(run(&["busybox", "sh", "-c", "exit 7"]).code, 7);
    let missing = run(&["busybox", "nosuch"]);
    assert_eq!(missing.code, 127, "{}", missing.err);
    assert!(
        missing.err.contains("executable file not found in $PATH"),
        "{}",
        missing.err
    );
    assert_eq!(run(&["busybox", "/etc/passwd"]).code, 126);
    assert_eq!(
        run(&[
            "-u",
            "1000:1000",
            "busybox",
            "sh",
            "-c",
            "id -u; echo x >/dev/stdout"
        ])
        .ok(),
        "1000\nx\n"
    );
    let strict = run(&[
        "--read-only",
        "--tmpfs",
        "/t",
        "--cap-drop",
        "all",
        "--security-opt",
        "no-new-privileges",
        "busybox",
        "sh",
        "-c",
        "touch /t/x; touch /x 2>/dev/null || echo refused; grep -E 'CapEff|NoNew|Seccomp:' /proc/self/status",
    ]);
    assert_eq!(
        strict.ok(),
        "refused\nCapEff:\t0000000000000000\nNoNewPrivs:\t1\nSeccomp:\t2\n"
    );
    assert_eq!(
        run(&["--privileged", "busybox", "sh", "-c", "test -e /dev/kmsg"]).code,
        0
    );
    let script = format!("docker -H {socket} run -t --rm --network none busybox tty");
    let terminal = end(&mut place.command("script", &["-qec", &script, "/dev/null"]));
    assert!(
        terminal.out.contains("/dev/pts/0"),
        "{}{}",
        terminal.out,
        terminal.err
    );
    docker(&[
        "run",
        "-d",
        "--name",
        "web",
        "--network",
        "none",
        "--memory",
        "64m",
        "--cpus",
        "0.5",
        "--pids-limit",
        "20",
        "busybox",
        "sleep",
        "1000",
    ])
    .ok();
    assert_eq!(
        limit(&place, ["memory.limit_in_bytes", "memory.max"]),
        "67108864"
    );
    assert_eq!(limit(&place, ["pids.max", "pids.max"]), "20");
    assert_eq!(
        docker(&["exec", "web", "sh", "-c", "echo $HOME; exit 3"]).code,
        3
    );
    assert!(docker(&["top", "web"]).ok().contains("sleep 1000"));
    let stats = docker(&[
        "stats",
        "--no-stream",
        "--format",
        "{{.MemUsage}} {{.PIDs}}",
        "web",
    ]);
    assert!(stats.ok().ends_with("/ 64MiB 1\n"));
    docker(&["pause", "web"]).ok();
    let status = || docker(&["inspect", "-f", "{{.State.Status}}", "web"]).ok();
    assert_eq!(status(), "paused\n");
    docker(&["unpause", "web"]).ok();
    docker(&["update", "--memory", "128m", "--memory-swap", "256m", "web"]).ok();
    assert_eq!(
        limit(&place, ["memory.limit_in_bytes", "memory.max"]),
        "134217728"
    );
    docker(&["stop", "-t", "1", "web"]).ok();
    assert_eq!(
        docker(&["inspect", "-f", "{{.State.ExitCode}}", "web"]).ok(),
        "137\n"
    );
    docker(&["start", "web"]).ok();
    docker(&["rm", "-f", "web"]).ok();
    docker(&[
        "run",
        "--name",
        "oom",
        "--network",
        "none",
        "--memory",
        "16m",
        "busybox",
        "dd",
        "if=/dev/zero",
        "of=/dev/null",
        "bs=200M",
        "count=1",
    ]);
    eventually(LONG, "the kill is noticed", || {
        let state = docker(&[
            "inspect",
            "-f",
            "{{.State.OOMKilled}} {{.State.ExitCode}}",
            "oom",
        ]);
        (state.out == "true 137\n").then_some(())
    });
    docker(&["rm", "oom"]).ok();
    assert_eq!(docker(&["ps", "-aq"]).ok(), "", "{}", place.log());
    stop(daemon);
}

#[test]
fn containerd_uses_it() {
    let place = Place::new("containerd");
    let config = format!(
        "version = 2\nroot = \"{}\"\nstate = \"{}\"\n\
         disabled_plugins = [\"io.containerd.grpc.v1.cri\"]\n[grpc]\n  address = \"{}\"\n",
        place.at("root"),
        place.at("run/state"),
        place.at("c.sock")
    );
    std::fs::write(place.dir.join("config.toml"), config).unwrap();
    let socket = place.at("c.sock");
    let ctr = |args: &[&str]| end(&mut place.command("ctr", &[&["-a", &socket], args].concat()));
    let daemon = place.daemon("containerd", &["-c", &place.at("config.toml")], || {
        ctr(&["version"])
    });
    ctr(&["images", "import", &image()]).ok();
    let name = ctr(&["images", "ls", "-q"]).ok();
    let name = name.lines().next().unwrap();
    let program = binary("knarr-oci").display().to_string();
    let run = |id: &str, flags: &[&str], args: &[&str]| {
        let cgroup = format!("/{}/{id}", place.cgroup);
        let head = ["run", "--runc-binary", &program, "--cgroup", &cgroup];
        ctr(&[&head, flags, &[name, id], args].concat())
    };
    assert_eq!(run("a", &["--rm"], &["echo", "hello"]).ok(), "hello\n");
    assert_eq!(run("b", &["--rm"], &["sh", "-c", "exit 7"]).code, 7);
    let missing = run("c", &["--rm"], &["nosuch"]);
    assert!(
        missing.err.contains("executable file not found in $PATH"),
        "{}",
        missing.err
    );
    run(
        "web",
        &["-d", "--memory-limit", "67108864"],
        &["sleep", "1000"],
    )
    .ok();
    assert_eq!(
        limit(&place, ["memory.limit_in_bytes", "memory.max"]),
        "67108864"
    );
    assert_eq!(
        ctr(&[
            "task",
            "exec",
            "--exec-id",
            "e",
            "web",
            "sh",
            "-c",
            "exit 4"
        ])
        .code,
        4
    );
    let metrics = ctr(&["task", "metrics", "web"]).ok();
    assert!(metrics.contains("67108864"), "{metrics}");
    let status = || ctr(&["task", "ls"]).ok();
    ctr(&["task", "pause", "web"]).ok();
    assert!(status().contains("PAUSED"));
    ctr(&["task", "resume", "web"]).ok();
    ctr(&["task", "kill", "-s", "KILL", "web"]).ok();
    eventually(LONG, "it stops", || {
        status().contains("STOPPED").then_some(())
    });
    ctr(&["task", "rm", "web"]);
    ctr(&["containers", "rm", "web"]).ok();
    assert_eq!(ctr(&["containers", "ls", "-q"]).ok(), "");
    stop(daemon);
}

#[test]
fn podman_uses_it() {
    let place = Place::new("podman");
    let program = binary("knarr-oci").display().to_string();
    let (data, run_root, tmp) = (place.at("data"), place.at("run/run"), place.at("run/tmp"));
    let globals = [
        "--root",
        &data,
        "--runroot",
        &run_root,
        "--tmpdir",
        &tmp,
        "--cgroup-manager",
        "cgroupfs",
        "--storage-driver",
        "overlay",
        "--events-backend",
        "file",
        "--runtime",
        &program,
        "--log-level",
        "error",
    ];
    let podman = |args: &[&str]| end(&mut place.command("podman", &[&globals, args].concat()));
    let parent = format!("/{}", place.cgroup);
    // Its default limits need CAP_SYS_RESOURCE where the host has lower ones.
    let flags = [
        "--network",
        "none",
        "--ulimit",
        "nofile=1024:2048",
        "--ulimit",
        "nproc=4096:8192",
        "--cgroup-parent",
        &parent,
    ];
    let run = |args: &[&str]| podman(&[&["run"], &flags[..], args].concat());
    podman(&["load", "-i", &image()]).ok();
    assert_eq!(run(&["--rm", "busybox", "echo", "hello"]).ok(), "hello\n");
    assert_eq!(run(&["--rm", "busybox", "sh", "-c", "exit 7"]).code, 7);
    let missing = run(&["--rm", "busybox", "nosuch"]);
    assert_eq!(missing.code, 127, "{}", missing.err);
    let user = run(&[
        "--rm",
        "--user",
        "1000:1000",
        "--read-only",
        "--cap-drop",
        "all",
        "busybox",
        "sh",
        "-c",
        "id -u; echo x >/dev/stdout; touch /y 2>/dev/null || echo refused",
    ]);
    assert_eq!(user.ok(), "1000\nx\nrefused\n");
    run(&[
        "-d",
        "--name",
        "web",
        "--memory",
        "64m",
        "--pids-limit",
        "20",
        "busybox",
        "sleep",
        "1000",
    ])
    .ok();
    assert_eq!(podman(&["exec", "web", "sh", "-c", "exit 3"]).code, 3);
    let stats = podman(&[
        "stats",
        "--no-stream",
        "--format",
        "{{.MemLimit}} {{.PIDs}}",
        "web",
    ])
    .ok();
    assert!(
        stats.contains("67.11MB 1") || stats.contains("67108864 1"),
        "{stats}"
    );
    let script = format!("podman {} exec -t web tty", globals.join(" "));
    let terminal = end(&mut place.command("script", &["-qec", &script, "/dev/null"]));
    assert!(
        terminal.out.contains("/dev/pts/0"),
        "{}{}",
        terminal.out,
        terminal.err
    );
    podman(&["pause", "web"]).ok();
    let status = || podman(&["inspect", "-f", "{{.State.Status}}", "web"]).ok();
    assert_eq!(status(), "paused\n");
    podman(&["unpause", "web"]).ok();
    podman(&["stop", "-t", "1", "web"]).ok();
    assert_eq!(
        podman(&["inspect", "-f", "{{.State.ExitCode}}", "web"]).ok(),
        "137\n"
    );
    podman(&["start", "web"]).ok();
    assert_eq!(status(), "running\n");
    podman(&["rm", "-f", "-t", "0", "web"]).ok();
    assert_eq!(podman(&["ps", "-aq"]).ok(), "");
    podman(&["system", "reset", "-f"]);
}
