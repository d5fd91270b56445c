//! The programs, what they call each act, and what an act costs.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use knarr_testkit::wait_for;
use rustix::process::{Pid, Signal, kill_process};

use crate::engine::{Engine, Engines};

/// What a tool is asked to do with an image.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Act<'a> {
    Pull(&'a str),
    Push(&'a str),
    /// From a name to another.
    Tag(&'a str, &'a str),
    Remove(&'a str),
    /// An archive.
    Load(&'a str),
    /// An image into an archive.
    Save(&'a str, &'a str),
    /// One place to another, as `docker://…` and the like.
    Copy(&'a str, &'a str),
}

/// A program, and the daemons that work for it.
#[derive(Debug)]
pub(crate) struct Tool {
    /// What tables call it.
    pub(crate) name: &'static str,
    engine: Engine,
    daemons: Vec<u32>,
    /// More words for a verb.
    more: &'static [&'static str],
}

impl Tool {
    /// The same program, under another name, with more words behind each verb.
    pub(crate) fn variant(&self, name: &'static str, more: &'static [&'static str]) -> Self {
        Self {
            name,
            engine: self.engine.clone(),
            daemons: self.daemons.clone(),
            more,
        }
    }

    /// The same with another `--root`.
    pub(crate) fn with_root(mut self, root: &Path) -> Self {
        self.engine = self.engine.with_root(root);
        self
    }

    /// The command line of an act; `None` where the tool has no such act.
    fn words<'a>(&self, act: Act<'a>) -> Option<Vec<&'a str>> {
        let words = match (self.engine.name, act) {
            ("ctr", Act::Pull(name)) => vec!["images", "pull", "--plain-http", name],
            ("ctr", Act::Push(name)) => vec!["images", "push", "--plain-http", name],
            ("ctr", Act::Tag(from, to)) => vec!["images", "tag", from, to],
            ("ctr", Act::Remove(name)) => vec!["images", "rm", "--sync", name],
            ("ctr", Act::Load(archive)) => vec!["images", "import", archive],
            ("ctr", Act::Save(name, archive)) => vec!["images", "export", archive, name],
            ("skopeo", Act::Copy(from, to)) => vec![
                "copy",
                "-q",
                "--src-tls-verify=false",
                "--dest-tls-verify=false",
                from,
                to,
            ],
            ("podman", Act::Pull(name)) => vec!["pull", "-q", "--tls-verify=false", name],
            ("podman", Act::Push(name)) => vec!["push", "-q", "--tls-verify=false", name],
            ("knarr", Act::Copy(from, to)) => vec!["image", "copy", from, to],
            ("ctr" | "skopeo", _) | (_, Act::Copy(..)) => return None,
            (_, Act::Pull(name)) => vec!["pull", "-q", name],
            (_, Act::Push(name)) => vec!["push", "-q", name],
            (_, Act::Tag(from, to)) => vec!["tag", from, to],
            (_, Act::Remove(name)) => vec!["rmi", name],
            (_, Act::Load(archive)) => vec!["load", "-i", archive],
            (_, Act::Save(name, archive)) => vec!["save", "-o", archive, name],
        };
        Some(words)
    }

    /// Whether it can do that.
    pub(crate) fn can(&self, act: Act<'_>) -> bool {
        self.words(act).is_some()
    }

    /// Does it, not measured.
    pub(crate) fn ok(&self, act: Act<'_>) -> Result<()> {
        let words = self.words(act).context("it has no such act")?;
        self.engine.ok(&words)
    }

    /// Does it; how long it took till it returned, till it was on the disk too (syncfs(2) of the
    /// benchmark's folder), and the most memory that a process had.
    pub(crate) fn measure(&self, act: Act<'_>, dir: &Path) -> Result<Cost> {
        let mut words = self.words(act).context("it has no such act")?;
        words.splice(1..1, self.more.iter().copied());
        self.measure_words(&words, dir)
    }

    /// As [`measure`](Self::measure), of any command line.
    pub(crate) fn measure_words(&self, words: &[&str], dir: &Path) -> Result<Cost> {
        for daemon in &self.daemons {
            // Resets VmHWM (proc_pid_clear_refs(5)).
            std::fs::write(format!("/proc/{daemon}/clear_refs"), "5")?;
        }
        let inner = self.engine.command(words);
        let mut timed = Command::new("/usr/bin/time");
        timed
            .args(["-q", "-f", "%M"])
            .arg(inner.get_program())
            .args(inner.get_args())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped());
        let start = Instant::now();
        let output = timed.output().context("time")?;
        let returned = start.elapsed();
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(
            output.status.success(),
            "{} {words:?} failed: {said}",
            self.name
        );
        rustix::fs::syncfs(std::fs::File::open(dir)?)?;
        let durable = start.elapsed();
        let last = said.lines().last().context("time said nothing")?;
        let mut memory: u64 = last.trim().parse().with_context(|| said.to_string())?;
        for daemon in &self.daemons {
            memory += high_water(*daemon)?;
        }
        Ok(Cost {
            returned,
            durable,
            memory,
        })
    }
}

/// What an act cost.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Cost {
    returned: Duration,
    durable: Duration,
    /// KiB: the command's largest process, and its daemons.
    memory: u64,
}

fn high_water(pid: u32) -> Result<u64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let kib = line.context("no VmHWM")?.trim().trim_end_matches(" kB");
    Ok(kib.trim().parse()?)
}

/// What tools cost for one act.
#[derive(Debug, Default)]
pub(crate) struct Table(Vec<(&'static str, Vec<Cost>)>);

impl Table {
    /// Adds a measurement.
    pub(crate) fn add(&mut self, name: &'static str, cost: Cost) {
        println!(
            "    {name}: {:.0} ms, on disk {:.0} ms, {} MiB",
            ms(cost.returned),
            ms(cost.durable),
            cost.memory >> 10
        );
        match self.0.iter_mut().find(|(known, _)| *known == name) {
            Some((_, costs)) => costs.push(cost),
            None => self.0.push((name, vec![cost])),
        }
    }

    /// Prints it, in the order of `tools`; ratios are to the first.
    pub(crate) fn print(&self, title: &str, tools: &[&'static str]) {
        println!(
            "{title:<34} {:>9} {:>9}  {:<9} {:>9}  {:<9} {:>8}",
            "min ms", "median", "ratio", "on disk", "ratio", "peak MiB"
        );
        let mut base = None;
        for name in tools {
            let Some((_, costs)) = self.0.iter().find(|(known, _)| known == name) else {
                continue;
            };
            let returned = median(costs.iter().map(|cost| cost.returned));
            let durable = median(costs.iter().map(|cost| cost.durable));
            let least = costs.iter().map(|cost| cost.returned).min();
            let memory = costs.iter().map(|cost| cost.memory).max();
            let (first, first_durable) = *base.get_or_insert((returned, durable));
            println!(
                "  {name:<32} {:>9.0} {:>9.0}  {:<9} {:>9.0}  {:<9} {:>8}",
                ms(least.unwrap_or_default()),
                ms(returned),
                format!("{:.1}x", returned.as_secs_f64() / first.as_secs_f64()),
                ms(durable),
                format!(
                    "{:.1}x",
                    durable.as_secs_f64() / first_durable.as_secs_f64()
                ),
                memory.unwrap_or_default() >> 10,
            );
        }
    }
}

fn ms(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e3
}

fn median(durations: impl Iterator<Item = Duration>) -> Duration {
    let mut sorted: Vec<Duration> = durations.collect();
    sorted.sort();
    let at = |index: usize| sorted.get(index).copied().unwrap_or_default();
    (at(sorted.len().saturating_sub(1) / 2) + at(sorted.len() / 2)) / 2
}

/// Every tool with folders of its own. Dropping ends containerd.
#[derive(Debug)]
pub(crate) struct Tools {
    /// Knarr first.
    pub(crate) all: Vec<Tool>,
    /// Where everything is.
    pub(crate) dir: PathBuf,
    containerd: Child,
}

impl Tools {
    /// Starts containerd beside what runs already.
    pub(crate) fn start(engines: &Engines) -> Result<Self> {
        let dir = engines.dir().to_owned();
        let at = |name: &str| dir.join(name).display().to_string();
        let (root, state) = (at("containerd"), at("run/containerd"));
        let socket = format!("{state}/sock");
        let config = dir.join("containerd.toml");
        // Nobody here speaks CRI.
        std::fs::write(
            &config,
            format!(
                "version = 2\nroot = {root:?}\nstate = {state:?}\n\
                 disabled_plugins = [\"io.containerd.grpc.v1.cri\"]\n\
                 [grpc]\naddress = {socket:?}\n"
            ),
        )?;
        let containerd = Command::new("containerd")
            .arg("--config")
            .arg(&config)
            .stdout(Stdio::null())
            .stderr(std::fs::File::create(dir.join("containerd.log"))?)
            .spawn()
            .context("cannot start containerd")?;
        let mut all: Vec<Tool> = engines
            .all
            .iter()
            .map(|engine| Tool {
                name: engine.name,
                engine: engine.clone(),
                daemons: match engine.name {
                    "docker" => engines.daemons(),
                    _ => Vec::new(),
                },
                more: &[],
            })
            .collect();
        all.push(Tool {
            name: "ctr",
            engine: Engine::new("ctr", "ctr", &["-a", &socket, "-n", "bench"]),
            daemons: vec![containerd.id()],
            more: &[],
        });
        all.push(Tool {
            name: "skopeo",
            engine: Engine::new("skopeo", "skopeo", &[]),
            daemons: Vec::new(),
            more: &[],
        });
        let tools = Self {
            all,
            dir,
            containerd,
        };
        let ctr = &tools.get("ctr")?.engine;
        let up = wait_for(Duration::from_secs(30), || ctr.ok(&["version"]).ok());
        ensure!(up.is_some(), "containerd does not answer");
        Ok(tools)
    }

    /// One of them.
    pub(crate) fn get(&self, name: &str) -> Result<&Tool> {
        let found = self.all.iter().find(|tool| tool.name == name);
        found.with_context(|| format!("{name} is not here"))
    }

    /// Those that can do something, in alternating order (ABC, CBA, …).
    pub(crate) fn order(&self, round: usize, act: Act<'_>) -> Vec<&Tool> {
        let able = self.all.iter().filter(|tool| tool.can(act));
        match round % 2 {
            0 => able.collect(),
            _ => able.rev().collect(),
        }
    }

    /// Their names, Knarr first.
    pub(crate) fn names(&self) -> Vec<&'static str> {
        self.all.iter().map(|tool| tool.name).collect()
    }

    /// Does an act with each tool that can, round by round, after `before` and followed by `after`,
    /// which are not measured, and prints the table.
    pub(crate) fn alternate(
        &self,
        title: &str,
        act: Act<'_>,
        before: impl Fn(&Tool) -> Result<()>,
        after: impl Fn(&Tool) -> Result<()>,
    ) -> Result<()> {
        let mut table = Table::default();
        for round in 0..super::ROUNDS {
            for tool in self.order(round, act) {
                before(tool)?;
                rustix::fs::sync();
                table.add(tool.name, tool.measure(act, &self.dir)?);
                after(tool)?;
            }
        }
        table.print(title, &self.names());
        Ok(())
    }
}

impl Drop for Tools {
    fn drop(&mut self) {
        if let Ok(pid) = i32::try_from(self.containerd.id())
            && let Some(pid) = Pid::from_raw(pid)
        {
            kill_process(pid, Signal::TERM).ok();
        }
        self.containerd.wait().ok();
    }
}
