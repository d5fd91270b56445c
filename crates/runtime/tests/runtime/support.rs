//! A busybox root, Docker's default config, and running it.

use std::fs;
use std::io::Read as _;
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::sync::{PoisonError, RwLock};

use knarr_runtime::process::Exit;
use knarr_runtime::{Begun, Error, Launch, Plan, PlanOptions, Process, Stdio};
use knarr_spec::runtime::{Capabilities, Config, Linux, Mount, Namespace, Root, User};
use rustix::fs::CWD;
use rustix::mount::{OpenTreeFlags, open_tree};

/// Docker's default capabilities.
pub(crate) const CAPABILITIES: [&str; 14] = [
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_FSETID",
    "CAP_FOWNER",
    "CAP_MKNOD",
    "CAP_NET_RAW",
    "CAP_SETGID",
    "CAP_SETUID",
    "CAP_SETFCAP",
    "CAP_SETPCAP",
    "CAP_NET_BIND_SERVICE",
    "CAP_SYS_CHROOT",
    "CAP_KILL",
    "CAP_AUDIT_WRITE",
];

/// A child that another thread forks has every file that is being written here open until it
/// execs, and a file that is open for writing cannot be executed: programs are written alone.
static PROGRAMS: RwLock<()> = RwLock::new(());

/// Whether a test that needs root must be passed over.
pub(crate) fn must_skip(test: &str) -> bool {
    crate::HEAP.arm();
    let reason = if !rustix::process::geteuid().is_root() {
        "not root"
    } else if !Path::new("/bin/busybox").exists() {
        "no /bin/busybox (package busybox-static)"
    } else {
        return false;
    };
    eprintln!("SKIP {test}: {reason}");
    true
}

macro_rules! skip {
    ($name:literal) => {
        if crate::support::must_skip($name) {
            return;
        }
    };
}
pub(crate) use skip;

/// A directory with a small root file system in `root`.
pub(crate) struct Image {
    top: knarr_fs::TempDir,
}

impl Image {
    pub(crate) fn new() -> Self {
        let top = knarr_fs::TempDir::new_in(&std::env::temp_dir().join("knarr-runtime-tests"));
        let image = Self { top: top.unwrap() };
        // Hosts that run tests may have restrictive defaults; other users must get in.
        for dir in [
            "bin", "proc", "sys", "dev", "etc", "tmp", "root", "home/app", "var",
        ] {
            fs::create_dir_all(image.path(dir)).unwrap();
        }
        chmod(image.top(), 0o755);
        chmod(&image.path("tmp"), 0o1777);
        image.program("busybox", &fs::read("/bin/busybox").unwrap(), 0o755);
        for applet in [
            "sh", "true", "false", "cat", "echo", "id", "ls", "hostname", "mount", "stat", "touch",
            "sleep", "ps", "kill", "tty", "stty", "grep", "readlink", "pwd", "mkdir", "test",
            "ifconfig", "env", "tr", "mknod", "umount", "head", "wc", "rm", "cut", "uname",
        ] {
            symlink("busybox", image.path("bin").join(applet)).unwrap();
        }
        fs::write(
            image.path("etc/passwd"),
            "root:x:0:0:root:/root:/bin/sh\napp:x:1001:1002::/home/app:/bin/sh\n",
        )
        .unwrap();
        fs::write(
            image.path("etc/group"),
            "root:x:0:\ntty:x:5:\nwheel:x:10:app\napp:x:1002:\n",
        )
        .unwrap();
        image
    }

    pub(crate) fn top(&self) -> &Path {
        self.top.path()
    }

    pub(crate) fn path(&self, inside: &str) -> PathBuf {
        self.top.path().join("root").join(inside)
    }

    /// Writes a program into `/bin`, in a process of its own: a descriptor open for writing here
    /// would be inherited by what other tests fork, and the program be busy (ETXTBSY).
    pub(crate) fn program(&self, name: &str, bytes: &[u8], mode: u32) {
        let _alone = PROGRAMS.write().unwrap_or_else(PoisonError::into_inner);
        let path = self.path("bin").join(name);
        let mut writer = std::process::Command::new("dd")
            .args(["status=none", "bs=64k"])
            .arg(format!("of={}", path.display()))
            .stdin(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        let mut input = writer.stdin.take().unwrap();
        std::io::Write::write_all(&mut input, bytes).unwrap();
        drop(input);
        assert!(writer.wait().unwrap().success());
        chmod(&path, mode);
    }

    /// The root as the layer crate hands it over.
    pub(crate) fn mount(&self) -> OwnedFd {
        let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
        let tree = open_tree(CWD, self.path(""), flags).unwrap();
        let change = knarr_sys::mount::Change {
            propagation: knarr_sys::mount::Propagation::Private,
            ..Default::default()
        };
        knarr_sys::mount::mount_setattr(&tree, c"", &change).unwrap();
        tree
    }
}

pub(crate) fn chmod(path: &Path, mode: u32) {
    use std::os::unix::fs::PermissionsExt as _;
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
}

pub(crate) fn strings(list: &[&str]) -> Vec<String> {
    list.iter().map(|text| (*text).to_owned()).collect()
}

pub(crate) fn mount(destination: &str, kind: &str, source: &str, options: &[&str]) -> Mount {
    Mount {
        destination: destination.to_owned(),
        kind: Some(kind.to_owned()),
        source: Some(source.to_owned()),
        options: strings(options),
        ..Mount::default()
    }
}

/// What `docker run` gives a container by default.
pub(crate) fn config(args: &[&str]) -> Config {
    let mut config = Config {
        oci_version: "1.3.0".to_owned(),
        root: Some(Root {
            path: "rootfs".to_owned(),
            readonly: false,
        }),
        hostname: Some("knarr-test".to_owned()),
        ..Config::default()
    };
    let caps = strings(&CAPABILITIES);
    config.process = Some(knarr_spec::runtime::Process {
        user: User::default(),
        args: strings(args),
        env: strings(&["PATH=/usr/sbin:/usr/bin:/sbin:/bin"]),
        cwd: "/".to_owned(),
        capabilities: Some(Capabilities {
            bounding: caps.clone(),
            effective: caps.clone(),
            permitted: caps,
            ..Capabilities::default()
        }),
        ..knarr_spec::runtime::Process::default()
    });
    config.mounts = vec![
        mount("/proc", "proc", "proc", &["nosuid", "noexec", "nodev"]),
        mount(
            "/dev",
            "tmpfs",
            "tmpfs",
            &["nosuid", "strictatime", "mode=755", "size=65536k"],
        ),
        mount(
            "/dev/pts",
            "devpts",
            "devpts",
            &[
                "nosuid",
                "noexec",
                "newinstance",
                "ptmxmode=0666",
                "mode=0620",
                "gid=5",
            ],
        ),
        mount(
            "/sys",
            "sysfs",
            "sysfs",
            &["nosuid", "noexec", "nodev", "ro"],
        ),
        mount(
            "/sys/fs/cgroup",
            "cgroup",
            "cgroup",
            &["ro", "nosuid", "noexec", "nodev"],
        ),
        mount(
            "/dev/mqueue",
            "mqueue",
            "mqueue",
            &["nosuid", "noexec", "nodev"],
        ),
        mount(
            "/dev/shm",
            "tmpfs",
            "shm",
            &["nosuid", "noexec", "nodev", "mode=1777", "size=67108864"],
        ),
    ];
    config.linux = Some(Linux {
        namespaces: ["mount", "uts", "pid", "ipc", "network", "cgroup"]
            .iter()
            .map(|kind| Namespace {
                kind: (*kind).to_owned(),
                path: None,
            })
            .collect(),
        masked_paths: strings(&[
            "/proc/asound",
            "/proc/acpi",
            "/proc/interrupts",
            "/proc/kcore",
            "/proc/keys",
            "/proc/latency_stats",
            "/proc/timer_list",
            "/proc/timer_stats",
            "/proc/sched_debug",
            "/proc/scsi",
            "/sys/firmware",
            "/sys/devices/virtual/powercap",
        ]),
        readonly_paths: strings(&[
            "/proc/bus",
            "/proc/fs",
            "/proc/irq",
            "/proc/sys",
            "/proc/sysrq-trigger",
        ]),
        ..Linux::default()
    });
    config
}

/// A shell with Docker's defaults.
pub(crate) fn shell(script: &str) -> Config {
    config(&["sh", "-c", script])
}

pub(crate) fn process(config: &mut Config) -> &mut knarr_spec::runtime::Process {
    config.process.as_mut().unwrap()
}

pub(crate) fn linux(config: &mut Config) -> &mut Linux {
    config.linux.as_mut().unwrap()
}

/// What a container said, and how it ended.
#[derive(Debug)]
pub(crate) struct Done {
    pub(crate) out: String,
    pub(crate) err: String,
    pub(crate) exit: Exit,
}

pub(crate) fn plan(config: &Config) -> Plan {
    knarr_runtime::plan(config, &PlanOptions::default()).unwrap()
}

pub(crate) fn run(image: &Image, config: &Config) -> Result<Done, Error> {
    run_plan(image, &plan(config))
}

/// Runs it and must succeed in starting it.
pub(crate) fn output(image: &Image, config: &Config) -> Done {
    match run(image, config) {
        Ok(done) => done,
        Err(error) => panic!("{}", knarr_diag::Explain::report(&error)),
    }
}

pub(crate) fn pipes() -> (Stdio, [OwnedFd; 2]) {
    let (out, out_write) = std::io::pipe().unwrap();
    let (err, err_write) = std::io::pipe().unwrap();
    let input = fs::File::open("/dev/null").unwrap();
    let files = Stdio::Files([input.into(), out_write.into(), err_write.into()]);
    (files, [out.into(), err.into()])
}

pub(crate) fn run_plan(image: &Image, plan: &Plan) -> Result<Done, Error> {
    let (stdio, reads) = pipes();
    let launch = Launch {
        plan,
        rootfs: image.mount(),
        stdio,
        cgroup: None,
        binds: Vec::new(),
        extras: knarr_runtime::Extras::default(),
    };
    let started = {
        let _together = together();
        knarr_runtime::begin(launch).and_then(Begun::start)
    };
    Ok(finish(started?, reads))
}

/// Held while a program is started.
pub(crate) fn together() -> std::sync::RwLockReadGuard<'static, ()> {
    PROGRAMS.read().unwrap_or_else(PoisonError::into_inner)
}

/// Starts it and leaves it running.
pub(crate) fn start(image: &Image, plan: &Plan) -> (Guard, [OwnedFd; 2]) {
    let (stdio, reads) = pipes();
    let launch = Launch {
        plan,
        rootfs: image.mount(),
        stdio,
        cgroup: None,
        binds: Vec::new(),
        extras: knarr_runtime::Extras::default(),
    };
    let init = {
        let _together = together();
        knarr_runtime::create(launch).and_then(|created| created.start())
    };
    match init {
        Ok(init) => (Guard(init), reads),
        Err(error) => panic!("{}", knarr_diag::Explain::report(&error)),
    }
}

/// A process that is killed and reaped at the end of its test.
pub(crate) struct Guard(pub(crate) Process);

impl Drop for Guard {
    fn drop(&mut self) {
        knarr_runtime::process::kill(&self.0.pidfd).ok();
        knarr_runtime::process::wait(&self.0.pidfd).ok();
    }
}

pub(crate) fn finish(process: Process, [out, err]: [OwnedFd; 2]) -> Done {
    let (out, err) = (text(out), text(err));
    let exit = knarr_runtime::process::wait(process.pidfd.as_fd()).unwrap();
    Done { out, err, exit }
}

pub(crate) fn text(fd: OwnedFd) -> String {
    let mut bytes = Vec::new();
    // A terminal whose other end is closed says EIO, not end of file.
    fs::File::from(fd).read_to_end(&mut bytes).ok();
    String::from_utf8_lossy(&bytes).into_owned()
}

/// The report of an error as text.
pub(crate) fn report(error: &Error) -> String {
    knarr_diag::Explain::report(error).to_string()
}
