//! `cargo x bench [WHAT]`: Knarr beside its peers, alternately, in one run.
//!
//! Only the ratios mean anything: they are taken on the same machine within the same minutes. The
//! peers are Debian's docker.io and podman on sockets and folders of the benchmark's own, everything
//! in a network and mount namespace of its own that ends with it.
#![expect(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a program for people"
)]

mod engine;
mod image;
mod memory;
mod net;
mod oci;
mod probe;
mod sample;
mod start;

use std::process::{Command, ExitCode};

use anyhow::{Result, bail};

use engine::{Engines, Network};

/// A benchmark's name, what it measures, and what does it.
type Benchmark = (&'static str, &'static str, fn(&Engines) -> Result<()>);

/// Without a network.
const BENCHMARKS: &[Benchmark] = &[
    (
        "run",
        "run --rm --network none busybox true, hot and cold",
        start::run,
    ),
    (
        "exec",
        "exec true in a running container, hot and cold",
        start::exec,
    ),
    ("ps", "ps with 200 containers", start::ps),
    (
        "start",
        "100 starts one after the other, and 32 at a time",
        start::many,
    ),
    (
        "memory",
        "private memory (PSS) per idle container, 200 of them",
        memory::idle,
    ),
    ("pull", "pull of a realistic image, cold", image::pull),
    (
        "update",
        "pull of it when its last layer changed",
        image::update,
    ),
    ("layered", "pull of 60 small layers", image::layered),
    (
        "layers",
        "files seen through 10 to 120 layers and through one",
        image::layers,
    ),
    ("push", "push of it to an empty registry", image::push),
    (
        "load",
        "load and rmi of an image of about 850 MB and 50,000 files",
        image::load,
    ),
    ("save", "save of the same", image::save),
    ("commit", "commit of 500 MB", image::commit),
    ("copy", "image copy beside skopeo", image::copy),
    ("check", "system check beside sha256sum", image::check),
];

/// What `image` stands for.
const IMAGE: &[&str] = &[
    "pull", "update", "layered", "layers", "push", "load", "save", "commit", "copy", "check",
];

/// With every engine in a network namespace of its own, on its default network. `net`: all.
const NETWORK: &[Benchmark] = &[
    (
        "net-start",
        "run --rm true on the default network, with a published port, 100 starts, 32 at a time",
        net::start,
    ),
    (
        "net-path",
        "throughput and round trips to the host, another container, published ports",
        net::paths,
    ),
    (
        "net-port",
        "processes, memory and time of published ports",
        net::ports,
    ),
    ("net-dns", "names: queries per second, p99", net::names),
];

fn usage() -> String {
    let mut text = "cargo x bench [WHAT]...\n\n".to_owned();
    for (name, about, _) in BENCHMARKS.iter().chain(NETWORK) {
        text.push_str(&format!("  {name:<9} {about}\n"));
    }
    text + "  image     pull, update, layered, layers, push, load, save, commit, copy and check\n  \
            net       all that begin with net-\n  \
            oci       knarr-oci beside crun, runc and youki (alone, not with others)\n\n\
            Without WHAT: run and exec."
}

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    if let Some(("probe", words)) = args.split_first().map(|(verb, rest)| (verb.as_str(), rest)) {
        return probe::run(words);
    }
    let what: Vec<&str> = match args.as_slice() {
        [] => vec!["run", "exec"],
        [all] if all == "image" => IMAGE.to_vec(),
        [all] if all == "net" => NETWORK.iter().map(|(name, ..)| *name).collect(),
        some => some.iter().map(String::as_str).collect(),
    };
    if std::env::var_os("KNARR_BENCH_INSIDE").is_none() {
        // Debian's mirror is out of reach from there.
        if what.iter().any(|name| IMAGE.contains(name)) {
            image::prepare()?;
        }
        return enter_namespaces(&args);
    }
    if args == ["oci"] {
        return oci::run();
    }
    let (network, table) = match what.iter().any(|name| name.starts_with("net-")) {
        true => (Network::Default, NETWORK),
        false => (Network::None, BENCHMARKS),
    };
    let known = |name: &&str| table.iter().find(|(known, ..)| known == name);
    if let Some(unknown) = what.iter().find(|name| known(name).is_none()) {
        bail!(
            "`{unknown}` is not a benchmark, or none that runs together with the others\n\n{}",
            usage()
        );
    }
    println!(
        "load average before: {}",
        std::fs::read_to_string("/proc/loadavg")?.trim()
    );
    if network == Network::None {
        // A registry would move what is started after it; daemons are to be where it is.
        knarr_testkit::private_network()?;
    }
    let engines = Engines::start(network)?;
    for (name, _, measure) in what.iter().filter_map(known) {
        println!("\n== {name}");
        measure(&engines)?;
    }
    Ok(())
}

/// Runs this program again in private network and mount namespaces, with loopback up.
fn enter_namespaces(args: &[String]) -> Result<()> {
    let status = Command::new("unshare")
        .args([
            "--net",
            "--mount",
            "sh",
            "-c",
            "ip link set lo up; exec \"$0\" \"$@\"",
        ])
        .arg(std::env::current_exe()?)
        .args(args)
        .env("KNARR_BENCH_INSIDE", "1")
        .status()?;
    if status.success() {
        Ok(())
    } else {
        bail!("the benchmark failed: {status}")
    }
}
