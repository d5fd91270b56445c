//! `oci`: knarr-oci beside crun, runc and (where it is installed) youki: the same bundle, the same
//! command lines, alternately.
//!
//! Twice, in private views of the machine's cgroups: v2 alone (without limits: on a hybrid machine
//! the controllers are bound to v1, and crun 1.8 stops at device rules there), then v1 alone with
//! limits.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use knarr_seccomp::{Arch, default_profile};
use knarr_testkit::{binary, fixture, has_program, target};
use serde_json::{Value, json};

use crate::sample::{Samples, print};

/// Which view this process is in: set for the process that measures.
const VIEW: &str = "KNARR_BENCH_OCI_VIEW";

/// Docker's default capabilities.
const CAPABILITIES: [&str; 14] = [
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

/// Measures in both views.
pub(crate) fn run() -> Result<()> {
    if let Ok(view) = std::env::var(VIEW) {
        return measure(&view);
    }
    for (view, script) in [
        (
            "v2",
            "mount --make-rprivate / && umount -l /sys/fs/cgroup && \
             mount -t cgroup2 none /sys/fs/cgroup && exec \"$0\" oci",
        ),
        (
            "v1",
            "mount --make-rprivate / && umount -l /sys/fs/cgroup/unified && exec \"$0\" oci",
        ),
    ] {
        let status = Command::new("unshare")
            .args(["--mount", "sh", "-c", script])
            .arg(std::env::current_exe()?)
            .env(VIEW, view)
            .status()?;
        ensure!(status.success(), "the view {view} failed: {status}");
    }
    Ok(())
}

/// One runtime.
struct Runtime {
    name: &'static str,
    program: PathBuf,
    root: PathBuf,
}

impl Runtime {
    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(&self.program);
        command
            .arg("--root")
            .arg(&self.root)
            .args(args)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        command
    }

    fn ok(&self, args: &[&str]) -> Result<()> {
        let status = self.command(args).status()?;
        if status.success() {
            return Ok(());
        }
        let output = self.command(args).stderr(Stdio::piped()).output()?;
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        anyhow::bail!("{} {args:?}: {status}: {said}", self.name)
    }
}

/// The folder, the bundle, and who runs it.
struct Bench {
    dir: PathBuf,
    bundle: String,
    runtimes: Vec<Runtime>,
}

impl Bench {
    fn new(view: &str) -> Result<Self> {
        let dir = target()
            .join("bench")
            .join(format!("oci-{}", std::process::id()));
        // What /run is on every distribution.
        std::fs::create_dir_all(dir.join("run"))?;
        let mounted = Command::new("mount")
            .args(["-t", "tmpfs", "-o", "mode=700", "tmpfs"])
            .arg(dir.join("run"))
            .status()?;
        ensure!(mounted.success(), "cannot mount a tmpfs: {mounted}");
        let bundle = dir.join("bundle");
        std::fs::create_dir_all(bundle.join("rootfs"))?;
        let unpacked = Command::new("tar")
            .arg("-xf")
            .arg(fixture::busybox_rootfs()?)
            .arg("-C")
            .arg(bundle.join("rootfs"))
            .status()?;
        ensure!(unpacked.success(), "cannot unpack the root: {unpacked}");
        let config = config(&bundle, view == "v1")?;
        std::fs::write(bundle.join("config.json"), serde_json::to_vec(&config)?)?;
        let mut runtimes = Vec::new();
        for (name, program) in [
            ("knarr-oci", binary("knarr-oci")),
            ("crun", PathBuf::from("crun")),
            ("runc", PathBuf::from("runc")),
            ("youki", PathBuf::from("youki")),
        ] {
            if program.is_absolute() || has_program(name) {
                runtimes.push(Runtime {
                    name,
                    program,
                    root: dir.join("run").join(name),
                });
            }
        }
        Ok(Self {
            bundle: bundle.display().to_string(),
            dir,
            runtimes,
        })
    }

    fn args<'a>(&'a self, verb: &'a str, id: &'a str) -> [&'a str; 4] {
        [verb, "--bundle", &self.bundle, id]
    }

    fn rewrite(&self, args: &[&str]) -> Result<()> {
        let path = Path::new(&self.bundle).join("config.json");
        let mut config: Value = serde_json::from_slice(&std::fs::read(&path)?)?;
        config["process"]["args"] = json!(args);
        Ok(std::fs::write(path, serde_json::to_vec(&config)?)?)
    }

    /// Times a call on every runtime, in alternating order.
    fn alternate(
        &self,
        rounds: usize,
        pause: Duration,
        mut call: impl FnMut(&Runtime, &mut Samples) -> Result<()>,
    ) -> Result<Vec<(&'static str, Samples)>> {
        let mut rows: Vec<_> = self
            .runtimes
            .iter()
            .map(|runtime| (runtime.name, Samples::default()))
            .collect();
        for round in 0..rounds {
            for step in 0..self.runtimes.len() {
                let index = if round % 2 == 0 {
                    step
                } else {
                    self.runtimes.len() - 1 - step
                };
                if let (Some(runtime), Some((_, samples))) =
                    (self.runtimes.get(index), rows.get_mut(index))
                {
                    std::thread::sleep(pause);
                    call(runtime, samples)?;
                }
            }
        }
        Ok(rows)
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        for runtime in &self.runtimes {
            for id in ["one", "box"] {
                runtime.command(&["delete", "--force", id]).status().ok();
            }
        }
        Command::new("umount")
            .arg("-l")
            .arg(self.dir.join("run"))
            .status()
            .ok();
        std::fs::remove_dir_all(&self.dir).ok();
    }
}

/// What Docker gives a container by default.
fn config(bundle: &Path, limits: bool) -> Result<Value> {
    let written = Command::new(binary("knarr-oci"))
        .args(["spec", "--bundle"])
        .arg(bundle)
        .status()?;
    ensure!(written.success(), "cannot write a config: {written}");
    let mut config: Value = serde_json::from_slice(&std::fs::read(bundle.join("config.json"))?)?;
    // The oldest peer refuses what is newer.
    config["ociVersion"] = json!("1.0.2");
    let process = &mut config["process"];
    process["terminal"] = json!(false);
    process["args"] = json!(["true"]);
    process["noNewPrivileges"] = json!(false);
    for set in ["bounding", "effective", "permitted"] {
        process["capabilities"][set] = json!(CAPABILITIES);
    }
    config["root"]["readonly"] = json!(false);
    let linux = &mut config["linux"];
    linux["seccomp"] = serde_json::to_value(default_profile(&CAPABILITIES, Arch::HOST))?;
    linux["resources"] = if limits {
        json!({
            "memory": {"limit": 256 << 20},
            "pids": {"limit": 100},
            "cpu": {"shares": 512},
            "devices": [{"allow": false, "access": "rwm"}]
        })
    } else {
        json!({})
    };
    Ok(config)
}

fn measure(view: &str) -> Result<()> {
    let bench = Bench::new(view)?;
    println!("\n== cgroup {view} alone");
    for runtime in &bench.runtimes {
        // Fills caches that every later start has, and says what is wrong.
        runtime.ok(&bench.args("run", "one"))?;
    }
    let hot = Duration::ZERO;
    let cold = Duration::from_millis(300);
    for (name, rounds, pause) in [("hot", 60, hot), ("cold", 15, cold)] {
        let rows = bench.alternate(rounds, pause, |runtime, samples| {
            samples.time(|| runtime.ok(&bench.args("run", "one")))
        })?;
        print(&format!("run true, {name}"), &rows);
    }
    life(&bench)?;
    bench.rewrite(&["sleep", "3600"])?;
    for runtime in &bench.runtimes {
        runtime.ok(&["run", "-d", "--bundle", &bench.bundle, "box"])?;
    }
    for (name, rounds, pause) in [("hot", 60, hot), ("cold", 15, cold)] {
        let rows = bench.alternate(rounds, pause, |runtime, samples| {
            samples.time(|| runtime.ok(&["exec", "box", "true"]))
        })?;
        print(&format!("exec true, {name}"), &rows);
    }
    bench.rewrite(&["true"])?;
    println!(
        "{:<28} {:>9} {:>9} {:>9} {:>9}",
        "run true", "CPU ms", "syscalls", "RSS KiB", "32 at once"
    );
    for runtime in &bench.runtimes {
        let (cpu, calls) = (cpu_time(&bench, runtime)?, system_calls(&bench, runtime)?);
        let (memory, rate) = (peak_memory(&bench, runtime)?, in_flight(&bench, runtime)?);
        println!(
            "  {:<26} {cpu:>9.2} {calls:>9} {memory:>9} {rate:>7.0}/s",
            runtime.name
        );
    }
    Ok(())
}

/// `create`, `start`, `state`, `delete`, each by itself.
fn life(bench: &Bench) -> Result<()> {
    let mut tables: Vec<Vec<(&'static str, Samples)>> = Vec::new();
    let verbs = ["create", "start", "state", "delete"];
    for _ in verbs {
        let rows = bench
            .runtimes
            .iter()
            .map(|runtime| (runtime.name, Samples::default()));
        tables.push(rows.collect());
    }
    for round in 0..40 {
        for step in 0..bench.runtimes.len() {
            let index = if round % 2 == 0 {
                step
            } else {
                bench.runtimes.len() - 1 - step
            };
            let Some(runtime) = bench.runtimes.get(index) else {
                continue;
            };
            for (verb, table) in verbs.iter().zip(&mut tables) {
                let create = bench.args("create", "one");
                let args: &[&str] = match *verb {
                    "create" => &create,
                    "delete" => &["delete", "--force", "one"],
                    verb => &[verb, "one"],
                };
                if let Some((_, samples)) = table.get_mut(index) {
                    samples.time(|| runtime.ok(args))?;
                }
            }
        }
    }
    for (verb, table) in verbs.iter().zip(&tables) {
        print(&format!("{verb}, hot"), table);
    }
    Ok(())
}

/// User and system time of one run with all it starts, in milliseconds.
fn cpu_time(bench: &Bench, runtime: &Runtime) -> Result<f64> {
    const RUNS: u32 = 50;
    let ticks = || -> Result<u64> {
        let stat = std::fs::read_to_string("/proc/self/stat")?;
        let after = stat.rsplit_once(')').context("stat")?.1;
        let fields: Vec<&str> = after.split_whitespace().collect();
        let field =
            |index: usize| -> Result<u64> { Ok(fields.get(index).context("stat")?.parse()?) };
        // cutime and cstime (proc_pid_stat(5), fields 16 and 17).
        Ok(field(13)? + field(14)?)
    };
    let before = ticks()?;
    for _ in 0..RUNS {
        runtime.ok(&bench.args("run", "one"))?;
    }
    #[expect(clippy::cast_precision_loss, reason = "a few hundred ticks of 10 ms")]
    let milliseconds = (ticks()? - before) as f64 * 10.0;
    Ok(milliseconds / f64::from(RUNS))
}

/// How many system calls one run makes, its container's program included.
fn system_calls(bench: &Bench, runtime: &Runtime) -> Result<u64> {
    let summary = bench.dir.join("strace");
    let status = Command::new("strace")
        .args(["-f", "-c", "-o"])
        .arg(&summary)
        .arg(&runtime.program)
        .arg("--root")
        .arg(&runtime.root)
        .args(bench.args("run", "one"))
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()?;
    ensure!(status.success(), "strace {}: {status}", runtime.name);
    let text = std::fs::read_to_string(&summary)?;
    let total = text.lines().rev().find(|line| line.ends_with("total"));
    // % time, seconds, usecs/call, calls, errors
    let calls = total.and_then(|line| line.split_whitespace().nth(3));
    calls
        .context("strace's total")?
        .parse()
        .context("strace's total")
}

/// The most memory that any process of one run had at once, in KiB.
fn peak_memory(bench: &Bench, runtime: &Runtime) -> Result<u64> {
    let output = Command::new("/usr/bin/time")
        .args(["-f", "%M"])
        .arg(&runtime.program)
        .arg("--root")
        .arg(&runtime.root)
        .args(bench.args("run", "one"))
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .output()
        .context("time")?;
    let text = String::from_utf8_lossy(&output.stderr);
    let last = text.lines().last().context("time said nothing")?;
    last.trim()
        .parse()
        .with_context(|| text.clone().into_owned())
}

/// Runs per second with 32 in flight.
fn in_flight(bench: &Bench, runtime: &Runtime) -> Result<f64> {
    const THREADS: u32 = 32;
    const RUNS: u32 = 8;
    let start = Instant::now();
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..THREADS)
            .map(|thread| {
                scope.spawn(move || -> Result<()> {
                    for run in 0..RUNS {
                        let id = format!("many-{thread}-{run}");
                        runtime.ok(&bench.args("run", &id))?;
                    }
                    Ok(())
                })
            })
            .collect();
        threads
            .into_iter()
            .try_for_each(|thread| match thread.join() {
                Ok(done) => done,
                Err(_) => anyhow::bail!("a thread failed"),
            })
    })?;
    Ok(f64::from(THREADS * RUNS) / start.elapsed().as_secs_f64())
}
