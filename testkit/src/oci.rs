//! An OCI runtime by its command line, with bundles of its own: `knarr-oci`, or a peer to ask the
//! same.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};

use serde_json::Value;

use crate::{binary, fixture, target};

/// A runtime on a state folder and a cgroup of its own. Dropping it deletes every container, and
/// fails the test if the state folder or the cgroup is not empty then.
#[derive(Debug)]
pub struct Oci {
    program: PathBuf,
    dir: PathBuf,
    cgroup: String,
}

/// The user of [`Oci::by_user`].
pub const USER: u32 = 4321;
/// The first of its subordinate ids.
pub const SUBORDINATE: u32 = 700_000;

/// How a call ended.
#[derive(Debug)]
pub struct Ended {
    /// The exit code, 128 + signal where one ended it.
    pub code: i32,
    /// Standard output.
    pub out: String,
    /// Standard error.
    pub err: String,
}

impl Ended {
    /// Fails the test unless it went well; gives what it printed.
    #[expect(clippy::panic, reason = "a test's way to fail")]
    pub fn ok(self) -> String {
        if self.code != 0 {
            panic!("exit code {}: {}{}", self.code, self.out, self.err);
        }
        self.out
    }
}

/// Runs a command to its end.
#[expect(clippy::panic, reason = "a test's way to fail")]
pub fn end(command: &mut Command) -> Ended {
    use std::os::unix::process::ExitStatusExt as _;
    let output = match command.output() {
        Ok(output) => output,
        Err(error) => panic!("{command:?}: {error}"),
    };
    let status = output.status;
    Ended {
        code: status
            .code()
            .unwrap_or_else(|| 128 + status.signal().unwrap_or(0)),
        out: String::from_utf8_lossy(&output.stdout).into_owned(),
        err: String::from_utf8_lossy(&output.stderr).into_owned(),
    }
}

#[expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test's way to fail"
)]
impl Oci {
    /// `knarr-oci` as it is built.
    pub fn new(name: &str) -> Self {
        Self::of(name, binary("knarr-oci"))
    }

    /// Any runtime with runc's command line.
    pub fn of(name: &str, program: impl Into<PathBuf>) -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let own = format!("{}-{count}-{name}", std::process::id());
        let dir = target().join("oci").join(&own);
        std::fs::create_dir_all(&dir).unwrap();
        Self {
            program: program.into(),
            dir,
            cgroup: format!("knarr-oci-{own}"),
        }
    }

    /// A folder for whatever the test needs.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Where the state of containers is.
    pub fn root(&self) -> PathBuf {
        self.dir.join("state")
    }

    /// The cgroup that its containers are below.
    pub fn cgroup(&self) -> &str {
        &self.cgroup
    }

    /// The cgroup directories of its containers, in all hierarchies.
    pub fn cgroup_dirs(&self) -> Vec<PathBuf> {
        let hierarchies = std::fs::read_dir("/sys/fs/cgroup").unwrap();
        hierarchies
            .map(|entry| entry.unwrap().path())
            .chain([PathBuf::from("/sys/fs/cgroup")])
            .map(|hierarchy| hierarchy.join(&self.cgroup))
            .filter(|dir| dir.is_dir())
            .flat_map(|dir| std::fs::read_dir(dir).into_iter().flatten().flatten())
            .map(|entry| entry.path())
            .filter(|path| path.is_dir())
            .collect()
    }

    /// Makes a bundle with a busybox root: what `knarr-oci spec` writes, without terminal, with a
    /// root that can be written and a cgroup of the test's, and then what `edit` makes of it.
    pub fn bundle(&self, id: &str, edit: impl FnOnce(&mut Value)) -> PathBuf {
        let bundle = self.dir.join("bundles").join(id);
        std::fs::create_dir_all(bundle.join("rootfs")).unwrap();
        let tar = fixture::busybox_rootfs().unwrap();
        let unpacked = Command::new("tar")
            .arg("-xf")
            .arg(tar)
            .arg("-C")
            .arg(bundle.join("rootfs"))
            .status()
            .unwrap();
        assert!(unpacked.success());
        std::fs::remove_file(bundle.join("config.json")).ok();
        let made = Command::new(binary("knarr-oci"))
            .args(["spec", "--bundle"])
            .arg(&bundle)
            .status()
            .unwrap();
        assert!(made.success());
        self.rewrite(id, |config| {
            config["process"]["terminal"] = Value::Bool(false);
            config["root"]["readonly"] = Value::Bool(false);
            config["linux"]["cgroupsPath"] = Value::from(format!("/{}/{id}", self.cgroup));
            edit(config);
        });
        bundle
    }

    /// Changes the configuration of a bundle.
    pub fn rewrite(&self, id: &str, edit: impl FnOnce(&mut Value)) {
        let path = self.dir.join("bundles").join(id).join("config.json");
        let mut config: Value =
            serde_json::from_slice(&std::fs::read(&path).unwrap()).expect("config.json");
        edit(&mut config);
        std::fs::write(path, serde_json::to_vec_pretty(&config).unwrap()).unwrap();
    }

    /// A call, not started, without input, its output collected.
    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(&self.program);
        command
            .arg("--root")
            .arg(self.root())
            .args(args)
            .stdin(Stdio::null());
        command
    }

    /// Gives all of the test's folder to the user of [`Self::by_user`].
    pub fn give(&self) {
        let given = Command::new("chown")
            .args(["-R", &format!("{USER}:{USER}")])
            .arg(&self.dir)
            .status()
            .unwrap();
        assert!(given.success());
    }

    /// The same call by an unprivileged user ([`USER`]), whom the host's files know in a mount namespace
    /// of the call's own, with so many subordinate ids from [`SUBORDINATE`] on.
    pub fn by_user(&self, command: &Command, subordinate: u32) -> Command {
        let files = self.dir.join("user");
        std::fs::create_dir_all(&files).unwrap();
        let line = format!("knarr-user:x:{USER}:{USER}::/:/bin/sh\n");
        std::fs::write(files.join("passwd"), line).unwrap();
        let line = match subordinate {
            0 => String::new(),
            count => format!("knarr-user:{SUBORDINATE}:{count}\n"),
        };
        std::fs::write(files.join("subid"), line).unwrap();
        let id = USER.to_string();
        let mut user = Command::new("unshare");
        user.args(["--mount", "sh", "-ec"])
            .arg(
                "mount --bind \"$0/passwd\" /etc/passwd; mount --bind \"$0/subid\" /etc/subuid; \
                 mount --bind \"$0/subid\" /etc/subgid; exec \"$@\"",
            )
            .arg(&files)
            .args([
                "setpriv",
                "--reuid",
                &id,
                "--regid",
                &id,
                "--clear-groups",
                "--",
            ])
            .arg(command.get_program())
            .args(command.get_args())
            .stdin(Stdio::null());
        user
    }

    /// A call.
    pub fn run(&self, args: &[&str]) -> Ended {
        end(&mut self.command(args))
    }

    /// A call that makes a container with this bundle: `create`, `run`, with more flags.
    pub fn with_bundle(&self, verb: &str, flags: &[&str], id: &str) -> Command {
        let bundle = self.dir.join("bundles").join(id);
        let mut command = self.command(&[verb, "--bundle"]);
        command.arg(bundle).args(flags).arg(id);
        command
    }

    /// Runs a container of this bundle to its end.
    pub fn run_container(&self, id: &str) -> Ended {
        end(&mut self.with_bundle("run", &[], id))
    }

    /// Creates a container whose output nobody reads.
    pub fn create(&self, id: &str) {
        let mut command = self.with_bundle("create", &[], id);
        let errors = self.dir.join(format!("{id}.err"));
        command
            .stdout(Stdio::null())
            .stderr(std::fs::File::create(&errors).unwrap());
        let status = command.status().unwrap();
        if !status.success() {
            panic!("create: {}", std::fs::read_to_string(errors).unwrap());
        }
    }

    /// A field of `state`.
    pub fn state(&self, id: &str) -> Value {
        serde_json::from_str(&self.run(&["state", id]).ok()).unwrap()
    }

    /// `created`, `running`, `stopped`, `paused`.
    pub fn status(&self, id: &str) -> String {
        self.state(id)["status"].as_str().unwrap().to_owned()
    }
}

impl Drop for Oci {
    fn drop(&mut self) {
        let names = |dir: &Path| -> Vec<String> {
            std::fs::read_dir(dir)
                .into_iter()
                .flatten()
                .flatten()
                .map(|entry| entry.file_name().to_string_lossy().into_owned())
                .filter(|name| name != ".knarr")
                .collect()
        };
        let mut complaints = Vec::new();
        for id in names(&self.root()) {
            let deleted = end(&mut self.command(&["delete", "--force", &id]));
            if deleted.code != 0 {
                complaints.push(format!("delete {id}: {}", deleted.err));
            }
        }
        let left = names(&self.root());
        if !left.is_empty() {
            complaints.push(format!("state is left: {left:?}"));
        }
        let dirs = self.cgroup_dirs();
        if !dirs.is_empty() {
            complaints.push(format!("cgroups are left: {dirs:?}"));
        }
        remove_cgroups(&self.cgroup);
        std::fs::remove_dir_all(&self.dir).ok();
        assert!(
            complaints.is_empty() || std::thread::panicking(),
            "{complaints:#?}"
        );
    }
}

/// Removes a cgroup, with all below, from every hierarchy.
pub fn remove_cgroups(name: &str) {
    fn remove(dir: &Path) {
        for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
            if entry.path().is_dir() {
                remove(&entry.path());
            }
        }
        // What is still there is somebody's; the test has said so.
        std::fs::remove_dir(dir).ok();
    }
    let hierarchies = std::fs::read_dir("/sys/fs/cgroup").into_iter().flatten();
    for hierarchy in hierarchies.flatten().map(|entry| entry.path()) {
        remove(&hierarchy.join(name));
    }
    remove(&Path::new("/sys/fs/cgroup").join(name));
}
