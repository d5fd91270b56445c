//! Networks: how long a container waits for one, how fast it is, what a published port costs,
//! how fast names are. Every engine has a network namespace of its own, and a neighbour outside.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use knarr_testkit::{ImageBuilder, Netns, fixture, tar_folder, wait_for};
use serde_json::{Value, json};

use crate::engine::{Engine, Engines, HOST, Place};
use crate::memory::pss_of;
use crate::sample::print;
use crate::start::{Pace, alternate, many};

/// An image with iperf3 and this program.
const TOOLS: &str = "tools:latest";
/// This program, in that image and outside.
const PROBE: &str = "/probe";
const IPERF_PORT: &str = "5201";
const ECHO_PORT: &str = "5202";

/// `run --rm … true` without a network, with the default one, with a port published on it; hot
/// and cold; then many of them.
pub(crate) fn start(engines: &Engines) -> Result<()> {
    let cases: [(&str, &[&str]); 3] = [
        ("no network", &["--network", "none"]),
        ("default network", &[]),
        ("published port", &["-p", "18080:80"]),
    ];
    for (pace, name, rounds) in Pace::BOTH {
        for (case, options) in cases {
            let args = [&["run", "--rm"], options, &["busybox", "true"]].concat();
            // A peer takes half a second.
            let rows = alternate(&engines.all, rounds / 2, pace, |engine| engine.ok(&args))?;
            print(&format!("{case}, {name}"), &rows);
        }
    }
    many(engines)
}

/// Throughput in both Gbit/s and parts of a bare pair of links, and the time of one byte there
/// and back.
pub(crate) fn paths(engines: &Engines) -> Result<()> {
    const ROUNDS: usize = 3;
    give_tools(engines)?;
    let bare = Place::new()?;
    let _bare_servers = Servers::start(&bare.host)?;
    let mut host_servers = Vec::new();
    for engine in &engines.all {
        host_servers.push(Servers::start(&place(engine)?.host)?);
        serve(engine)?;
    }
    // Ask at another's door in its own network, or from inside the container `client`.
    type Path = (&'static str, From, &'static str, [&'static str; 2]);
    enum From {
        Client,
        Neighbour,
        Host,
    }
    let published = ["15201", "15202"];
    let cases: [Path; 4] = [
        (
            "container to host",
            From::Client,
            HOST,
            [IPERF_PORT, ECHO_PORT],
        ),
        (
            "container to container",
            From::Client,
            "server",
            [IPERF_PORT, ECHO_PORT],
        ),
        ("published, from outside", From::Neighbour, HOST, published),
        (
            "published, from localhost",
            From::Host,
            "127.0.0.1",
            published,
        ),
    ];
    for (case, from, host, [iperf_port, echo_port]) in cases {
        let iperf = ["iperf3", "-J", "-t", "2", "-c", host, "-p", iperf_port];
        let trip = [PROBE, "probe", "rr", host, echo_port, "10000"];
        let mut rows = Rows::default();
        for _ in 0..ROUNDS {
            for engine in &engines.all {
                let run = |words: &[&str]| match from {
                    From::Client => engine.text(&[&["exec", "client"], words].concat()),
                    From::Neighbour => outside(&place(engine)?.neighbour, words),
                    From::Host => outside(&place(engine)?.host, words),
                };
                let (p50, p99) = pair(&run(&trip)?)?;
                rows.add(engine.name, [gbits(&run(&iperf)?)?, p50, p99]);
            }
            let iperf = ["iperf3", "-J", "-t", "2", "-c", HOST, "-p", IPERF_PORT];
            let trip = [PROBE, "probe", "rr", HOST, ECHO_PORT, "10000"];
            let (p50, p99) = pair(&outside(&bare.neighbour, &trip)?)?;
            let gbits = gbits(&outside(&bare.neighbour, &iperf)?)?;
            rows.add("bare pair of links", [gbits, p50, p99]);
        }
        let rows = rows.medians();
        let base = rows.last().map_or(1.0, |(_, [gbits, ..])| *gbits);
        println!(
            "{case:<28} {:>9} {:>9} {:>9} {:>9}",
            "Gbit/s", "of bare", "p50 µs", "p99 µs"
        );
        for (name, [gbits, p50, p99]) in rows {
            println!(
                "  {name:<26} {gbits:>9.2} {:>9.2} {p50:>9.1} {p99:>9.1}",
                gbits / base
            );
        }
    }
    unserve(engines)
}

/// What 20 containers with a published port cost more than without; what a range of 100 takes.
pub(crate) fn ports(engines: &Engines) -> Result<()> {
    const COUNT: u16 = 20;
    println!(
        "{:<28} {:>14} {:>14} {:>14}",
        "per published port", "processes", "KiB PSS", "ms to start"
    );
    for engine in &engines.all {
        let names: &[&str] = match engine.name {
            "knarr" => &["knarr-monitor"],
            "docker" => &["docker-proxy", "containerd-shim-runc-v2"],
            _ => &["conmon", "rootlessport"],
        };
        let mut measured = Vec::new();
        for publish in [false, true] {
            let begin = Instant::now();
            for n in 0..COUNT {
                let (name, port) = (format!("port{n}"), format!("{}:80", 20000 + n));
                let mut args = vec!["run", "-d", "--name", &name];
                if publish {
                    args.extend(["-p", &port]);
                }
                args.extend(["busybox", "sleep", "3600"]);
                engine.ok(&args)?;
            }
            let time = begin.elapsed().as_secs_f64() * 1e3;
            let (mut processes, mut pss) = (0.0, 0.0);
            for name in names {
                let (found, kib) = pss_of(name)?;
                processes += f64::from(found);
                pss += kib;
            }
            measured.push([processes, pss, time].map(|total| total / f64::from(COUNT)));
            engines_remove(engine, "port", COUNT)?;
        }
        if let [without, with] = measured.as_slice() {
            let more: Vec<f64> = with.iter().zip(without).map(|(a, b)| a - b).collect();
            print!("  {:<26}", engine.name);
            for value in more {
                print!(" {value:>14.1}");
            }
            println!();
        }
    }
    let rows = alternate(&engines.all, 3, Pace::Hot, |engine| {
        let range = [
            "run",
            "--rm",
            "-p",
            "21000-21099:21000-21099",
            "busybox",
            "true",
        ];
        engine.ok(&range)
    })?;
    print("run --rm true, 100 ports", &rows);
    Ok(())
}

/// Queries for the address of a container on the same network, eight clients at a time.
pub(crate) fn names(engines: &Engines) -> Result<()> {
    give_tools(engines)?;
    for engine in &engines.all {
        serve(engine)?;
    }
    println!(
        "{:<28} {:>9} {:>9} {:>9}  ratio of rate",
        "address of a container", "per s", "p50 µs", "p99 µs"
    );
    let mut rows = Rows::default();
    for _ in 0..3 {
        for engine in &engines.all {
            let text = engine.text(&["exec", "client", PROBE, "probe", "dns", "server", "2000"])?;
            let numbers: Vec<f64> = text.split(' ').map(str::parse).collect::<Result<_, _>>()?;
            let row = numbers.try_into().ok().context("not three numbers")?;
            rows.add(engine.name, row);
        }
    }
    let rows = rows.medians();
    let base = rows.first().map_or(1.0, |(_, [rate, ..])| *rate);
    for (name, [rate, p50, p99]) in rows {
        println!(
            "  {name:<26} {rate:>9.0} {p50:>9.1} {p99:>9.1}  {:.1}x slower",
            base / rate
        );
    }
    unserve(engines)
}

/// Gives every engine the image with the tools.
fn give_tools(engines: &Engines) -> Result<()> {
    let tree = engines.dir().join("tools");
    let iperf = Path::new("/usr/bin/iperf3");
    let own = std::env::current_exe()?;
    for (program, at) in [(iperf, "usr/bin/iperf3"), (&own, "probe")] {
        let mut files = vec![(program.to_owned(), PathBuf::from(at))];
        let libraries = Command::new("ldd").arg(program).output()?;
        for word in String::from_utf8(libraries.stdout)?.split_whitespace() {
            if let Some(path) = word.strip_prefix('/') {
                files.push((PathBuf::from(word), PathBuf::from(path)));
            }
        }
        for (from, to) in files {
            let to = tree.join(to);
            std::fs::create_dir_all(to.parent().context("odd path")?)?;
            std::fs::copy(&from, &to).with_context(|| format!("{}", from.display()))?;
        }
    }
    let tar = engines.dir().join("tools-layer.tar");
    tar_folder(&tree, &tar)?;
    let archive = engines.dir().join("tools.tar");
    let busybox = fixture::busybox_rootfs()?;
    ImageBuilder::new(TOOLS)
        .layer(std::fs::read(busybox)?)
        .layer(std::fs::read(&tar)?)
        .config(json!({"Env": ["PATH=/usr/bin:/bin"]}))
        .write_docker_archive(&archive)?;
    for engine in &engines.all {
        engine.ok(&["load", "-i", archive.to_str().context("odd path")?])?;
    }
    Ok(())
}

/// On a network of their own: `server`, its ports published, and `client`, which waits.
fn serve(engine: &Engine) -> Result<()> {
    let script = format!("iperf3 -s -D -p {IPERF_PORT}; exec {PROBE} probe echo {ECHO_PORT}");
    engine.ok(&["network", "create", "bench"])?;
    engine.ok(&[
        "run",
        "-d",
        "--name",
        "server",
        "--network",
        "bench",
        "-p",
        "15201:5201",
        "-p",
        "15202:5202",
        TOOLS,
        "sh",
        "-c",
        &script,
    ])?;
    engine.ok(&[
        "run",
        "-d",
        "--name",
        "client",
        "--network",
        "bench",
        TOOLS,
        "sleep",
        "3600",
    ])?;
    let up = wait_for(Duration::from_secs(10), || {
        let trip = [
            "exec", "client", PROBE, "probe", "rr", "server", ECHO_PORT, "1",
        ];
        engine.ok(&trip).ok()
    });
    ensure!(up.is_some(), "{}: the server does not answer", engine.name);
    Ok(())
}

fn unserve(engines: &Engines) -> Result<()> {
    for engine in &engines.all {
        engine.ok(&["rm", "-f", "server", "client"])?;
        engine.ok(&["network", "rm", "bench"])?;
    }
    Ok(())
}

fn engines_remove(engine: &Engine, prefix: &str, count: u16) -> Result<()> {
    let names: Vec<String> = (0..count).map(|n| format!("{prefix}{n}")).collect();
    let mut args = vec!["rm", "-f"];
    args.extend(names.iter().map(String::as_str));
    engine.ok(&args)
}

/// iperf3 and the echo server on a host. Dropping it ends them.
struct Servers(Vec<Child>);

impl Servers {
    fn start(host: &Netns) -> Result<Self> {
        let own = std::env::current_exe()?;
        let mut children = Vec::new();
        for (program, args) in [
            (Path::new("iperf3"), &["-s", "-p", IPERF_PORT][..]),
            (&own, &["probe", "echo", ECHO_PORT]),
        ] {
            let mut command = Command::new(program);
            command
                .args(args)
                .stdin(Stdio::null())
                .stdout(Stdio::null());
            children.push(host.within(|| Ok(command.spawn()?))?);
        }
        Ok(Self(children))
    }
}

impl Drop for Servers {
    fn drop(&mut self) {
        for child in &mut self.0 {
            child.kill().ok();
            child.wait().ok();
        }
    }
}

fn place(engine: &Engine) -> Result<&Place> {
    engine.place.as_deref().context("an engine without a place")
}

/// Runs one of the tools outside containers.
fn outside(at: &Netns, words: &[&str]) -> Result<String> {
    let (program, args) = words.split_first().context("no program")?;
    let program = match *program {
        PROBE => std::env::current_exe()?,
        other => PathBuf::from(other),
    };
    let output = at.within(|| Ok(Command::new(program).args(args).output()?))?;
    ensure!(
        output.status.success(),
        "{words:?}: {}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(String::from_utf8(output.stdout)?.trim().to_owned())
}

/// What iperf3's report says that arrived.
fn gbits(report: &str) -> Result<f64> {
    let report: Value = serde_json::from_str(report)?;
    let rate = report.pointer("/end/sum_received/bits_per_second");
    Ok(rate.and_then(Value::as_f64).context("no rate")? / 1e9)
}

fn pair(text: &str) -> Result<(f64, f64)> {
    let (p50, p99) = text.split_once(' ').context("not two numbers")?;
    Ok((p50.parse()?, p99.parse()?))
}

/// What was measured of each, in several rounds.
#[derive(Default)]
struct Rows(Vec<(&'static str, Vec<[f64; 3]>)>);

impl Rows {
    fn add(&mut self, name: &'static str, row: [f64; 3]) {
        match self.0.iter_mut().find(|(known, _)| *known == name) {
            Some((_, rows)) => rows.push(row),
            None => self.0.push((name, vec![row])),
        }
    }

    /// The middle of each column.
    fn medians(self) -> Vec<(&'static str, [f64; 3])> {
        let middle = |rows: &[[f64; 3]], column: usize| {
            let mut values: Vec<f64> = rows
                .iter()
                .filter_map(|row| row.get(column).copied())
                .collect();
            values.sort_by(f64::total_cmp);
            values.get(values.len() / 2).copied().unwrap_or_default()
        };
        let rows = self.0.into_iter();
        rows.map(|(name, rows)| (name, [0, 1, 2].map(|column| middle(&rows, column))))
            .collect()
    }
}
