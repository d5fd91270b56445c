//! A private pair of roots, and containers made of nothing but busybox.

use std::collections::BTreeMap;
use std::io::Read as _;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use knarr_cgroup::Layout;
use knarr_fs::{Lock, TempDir};
use knarr_layer::{Base, Driver, Rootfs, Upper};
use knarr_monitor::client::{self, Connection, Observed, Started};
use knarr_monitor::request::{CopyUp, Log, Paths, Removal, Restart, Stdin, Stop, Streams};
use knarr_monitor::{Request, State};
use knarr_spec::ContainerId;
use serde_json::json;

/// The program under test, or the one that `KNARR_TEST_MONITOR` names: the static release build, for
/// measuring.
pub(crate) fn monitor() -> &'static Path {
    static PATH: std::sync::OnceLock<PathBuf> = std::sync::OnceLock::new();
    PATH.get_or_init(|| {
        std::env::var_os("KNARR_TEST_MONITOR")
            .map_or_else(|| env!("CARGO_BIN_EXE_knarr-monitor").into(), PathBuf::from)
    })
}

/// Whether the test can run here; says so if not.
pub(crate) fn can_run(test: &str) -> bool {
    let reason = if !rustix::process::geteuid().is_root() {
        "needs root"
    } else if !Path::new("/bin/busybox").exists() {
        "needs /bin/busybox"
    } else {
        return true;
    };
    eprintln!("SKIP {test}: {reason}");
    false
}

/// Calls `check` until it gives something.
pub(crate) fn eventually<T>(what: &str, mut check: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + Duration::from_secs(20);
    loop {
        if let Some(value) = check() {
            return value;
        }
        assert!(Instant::now() < deadline, "never: {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// One container that a test makes.
pub(crate) struct Container {
    dir: TempDir,
    pub(crate) request: Request,
    /// `KNARR_FAILPOINT` is per process, so such a start goes through a helper process.
    pub(crate) id: ContainerId,
}

impl Container {
    /// A container that runs a shell script.
    pub(crate) fn new(script: &str) -> Self {
        Self::with_args(&["/bin/busybox", "sh", "-c", script])
    }

    pub(crate) fn with_args(args: &[&str]) -> Self {
        let dir = TempDir::new_in(&std::env::temp_dir().join("knarr-monitor-tests")).unwrap();
        let mut random = [0u8; 32];
        rustix::rand::getrandom(&mut random, rustix::rand::GetRandomFlags::empty()).unwrap();
        let id = ContainerId::from_bytes(random);
        let run_root = dir.path().join("run");
        let run = run_root.join("containers").join(id.as_str());
        let data = dir.path().join("data/containers").join(id.as_str());
        let upper = data.join("upper");
        for folder in [
            &run,
            &data.join("logs"),
            &upper.join("bin"),
            &dir.path().join("data/trash"),
        ] {
            knarr_fs::create_dir_all(folder).unwrap();
        }
        std::fs::copy("/bin/busybox", upper.join("bin/busybox")).unwrap();
        std::os::unix::fs::symlink("busybox", upper.join("bin/sh")).unwrap();
        let config: knarr_spec::runtime::Config = serde_json::from_value(json!({
            "ociVersion": "1.0.2",
            "process": {
                "args": args,
                "cwd": "/",
                "env": ["PATH=/bin"],
                "user": {"uid": 0, "gid": 0},
            },
            "root": {"path": "rootfs"},
            "mounts": [
                {"destination": "/proc", "type": "proc", "source": "proc"},
                {"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["mode=755"]},
                {"destination": "/dev/pts", "type": "devpts", "source": "devpts",
                 "options": ["newinstance", "ptmxmode=0666", "mode=0620"]},
            ],
            "linux": {"namespaces": [
                {"type": "pid"}, {"type": "mount"}, {"type": "ipc"}, {"type": "uts"},
            ]},
        }))
        .unwrap();
        let layout = Layout::detect().unwrap();
        let resources = knarr_spec::runtime::Resources::default();
        let path = knarr_cgroup::Plan::path_for(&id, None);
        let request = Request {
            version: knarr_monitor::request::REQUEST_VERSION,
            id: id.clone(),
            attributes: BTreeMap::from([("image".to_owned(), "busybox".to_owned())]),
            paths: Paths {
                run_root,
                run,
                data: Some(data.clone()),
            },
            runtime: knarr_runtime::plan(&config, &knarr_runtime::PlanOptions::default()).unwrap(),
            rootfs: Rootfs {
                base: Base::Layers {
                    driver: Driver::Overlay,
                    layers: Vec::new(),
                },
                upper: Some(Upper {
                    upper,
                    work: data.join("work"),
                }),
                volatile: false,
                idmap: None,
            },
            cgroup: knarr_cgroup::Plan::from_resources(&layout, &resources, &path).unwrap(),
            network: None,
            log: Log::json_file(data.join("logs/json.log")),
            restart: Restart::No,
            restart_count: 0,
            stdin: Stdin::Null,
            terminal: None,
            stop: Stop::default(),
            copy_ups: Vec::new(),
            remove: None,
            attach: None,
        };
        Self { dir, request, id }
    }

    /// With a terminal. The plan says so, too.
    pub(crate) fn terminal(mut self) -> Self {
        self.request.terminal = Some(knarr_monitor::request::Size { rows: 24, cols: 80 });
        self.request.runtime.process.terminal = Some(knarr_runtime::ConsoleSize {
            rows: 24,
            columns: 80,
        });
        self.request.stdin = Stdin::Open;
        self
    }

    /// `--rm`.
    pub(crate) fn removed(mut self) -> Self {
        let data = self.request.paths.data.take().unwrap();
        self.request.rootfs.volatile = true;
        self.request.remove = Some(Removal {
            data_root: self.dir.path().join("data"),
            paths: vec![data],
        });
        self
    }

    /// A new volume that gets what the image has at `from`.
    pub(crate) fn with_volume(&mut self, from: &str) {
        let volume = self.dir.path().join("volume");
        knarr_fs::create_dir_all(&volume.join("data")).unwrap();
        self.request.copy_ups = vec![CopyUp {
            from: from.to_owned(),
            volume,
        }];
    }

    pub(crate) fn attached(mut self, stdin: bool) -> Self {
        self.request.attach = Some(Streams {
            stdin,
            stdout: true,
            stderr: true,
        });
        if stdin {
            self.request.stdin = Stdin::Once;
        }
        self
    }

    pub(crate) fn run_folder(&self) -> &Path {
        &self.request.paths.run
    }

    pub(crate) fn data_folder(&self) -> PathBuf {
        self.dir
            .path()
            .join("data/containers")
            .join(self.id.as_str())
    }

    pub(crate) fn root(&self) -> &Path {
        self.dir.path()
    }

    pub(crate) fn lock(&self) -> Lock {
        Lock::exclusive_within(&self.run_folder().join("lock"), Duration::from_secs(20))
            .unwrap()
            .expect("the lock")
    }

    pub(crate) fn start(&self) -> Started {
        client::spawn(monitor(), &self.request, self.lock()).unwrap_or_else(|e| panic!("{e}"))
    }

    pub(crate) fn connect(&self) -> Connection {
        Connection::open(self.run_folder()).unwrap()
    }

    /// The socket itself, for what the client would not say.
    pub(crate) fn raw_connection(&self) -> UnixStream {
        use std::os::fd::AsRawFd as _;
        let folder = std::fs::File::open(self.run_folder()).unwrap();
        let path = format!("/proc/self/fd/{}/monitor.sock", folder.as_raw_fd());
        UnixStream::connect(path).unwrap()
    }

    pub(crate) fn observe(&self) -> Option<Observed> {
        client::observe(self.run_folder()).unwrap()
    }

    pub(crate) fn state(&self) -> State {
        State::load(self.run_folder()).unwrap().expect("state.json")
    }

    pub(crate) fn log_path(&self) -> PathBuf {
        self.data_folder().join("logs/json.log")
    }

    /// What was logged, as `(stream, text)`.
    pub(crate) fn logged(&self) -> Vec<(String, String)> {
        knarr_monitor::log_files(&self.log_path())
            .iter()
            .filter_map(|file| std::fs::read_to_string(file).ok())
            .flat_map(|text| text.lines().map(str::to_owned).collect::<Vec<_>>())
            .map(|line| {
                let value: serde_json::Value = serde_json::from_str(&line).unwrap();
                let field = |name: &str| value[name].as_str().unwrap().to_owned();
                (field("stream"), field("log"))
            })
            .collect()
    }

    pub(crate) fn wait_for_log(&self, text: &str) {
        eventually(text, || {
            self.logged()
                .iter()
                .any(|(_, log)| log.contains(text))
                .then_some(())
        });
    }

    pub(crate) fn events(&self) -> Vec<String> {
        let path = self.request.paths.run_root.join("events");
        std::fs::read_to_string(path)
            .unwrap_or_default()
            .lines()
            .map(|line| {
                let event: knarr_monitor::events::Event = serde_json::from_str(line).unwrap();
                event.action
            })
            .collect()
    }

    /// SIGKILL to the monitor; returns once it is gone.
    pub(crate) fn kill_monitor(&self) {
        let pid = self.state().monitor.unwrap().pid;
        kill_child(pid);
    }

    /// Cgroups of this container in any hierarchy.
    pub(crate) fn cgroups(&self) -> Vec<PathBuf> {
        let mut found = Vec::new();
        let mut folders = vec![(PathBuf::from("/sys/fs/cgroup"), 0)];
        while let Some((folder, depth)) = folders.pop() {
            for entry in std::fs::read_dir(&folder).into_iter().flatten().flatten() {
                let path = entry.path();
                if !path.is_dir() || path.is_symlink() {
                    continue;
                }
                if path.to_string_lossy().contains(self.id.as_str()) {
                    found.push(path.clone());
                }
                if depth < 3 {
                    folders.push((path, depth + 1));
                }
            }
        }
        found
    }
}

/// Kills a child of this process and takes its record away.
pub(crate) fn kill_child(pid: u32) {
    let pid = rustix::process::Pid::from_raw(pid.cast_signed()).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
    rustix::process::waitpid(Some(pid), rustix::process::WaitOptions::empty()).unwrap();
}

impl Drop for Container {
    fn drop(&mut self) {
        // Whatever a failed test left: its processes and cgroups, and nobody else's.
        if let Some(observed) = client::observe(self.run_folder()).ok().flatten()
            && observed.alive
            && let Ok(mut connection) = Connection::open(self.run_folder())
        {
            connection.stop(Some(9), Some(0), |_| ()).ok();
        }
        if let Ok(Some(lock)) =
            Lock::exclusive_within(&self.run_folder().join("lock"), Duration::from_secs(5))
        {
            client::sweep(self.run_folder(), &lock).ok();
        }
        if let Ok(layout) = Layout::detect() {
            if let Ok(cgroup) = knarr_cgroup::Cgroup::open(&layout, &self.request.cgroup) {
                cgroup.kill().ok();
            }
            knarr_cgroup::Cgroup::remove(&layout, &self.request.cgroup).ok();
        }
    }
}

/// Takes Docker's frames apart: stdout, stderr.
pub(crate) fn read_frames(stream: &mut UnixStream) -> (Vec<u8>, Vec<u8>) {
    let (mut stdout, mut stderr) = (Vec::new(), Vec::new());
    let mut head = [0u8; 8];
    while stream.read_exact(&mut head).is_ok() {
        let length = u32::from_be_bytes(head[4..].try_into().unwrap()) as usize;
        let mut bytes = vec![0; length];
        stream.read_exact(&mut bytes).unwrap();
        match head[0] {
            1 => stdout.extend(bytes),
            2 => stderr.extend(bytes),
            other => panic!("frame of kind {other}"),
        }
    }
    (stdout, stderr)
}
