//! `cargo x demo`: from a clone to a running container.

use std::path::PathBuf;
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, bail, ensure};

use crate::{packages, shell};

/// What the first container shows: its own host name, process table, limits and exit code.
const TOUR: &str = "\
echo \"hostname    $(hostname)\"
echo \"my pid      $$\"
echo \"user        $(id -un 2>/dev/null) (uid $(id -u))\"
echo \"processes   $(ls -d /proc/[0-9]* | wc -l)\"
echo \"open files  $(ulimit -n) at most\"
echo \"interfaces  $(ls /sys/class/net 2>/dev/null | tr '\\n' ' ')\"
echo \"/etc/shadow $(cat /etc/shadow 2>&1 | head -n 1)\"
exit 7";

/// A container from the machine's own programs: nothing to download, no network.
pub(crate) fn host() -> Result<()> {
    let knarr = Knarr::build()?;
    println!(
        "$ knarr run --rm --network none --memory 64m --ulimit nofile=256:256 @host sh -c '…'\n"
    );
    let status = knarr
        .command(&[
            "run",
            "--rm",
            "--network",
            "none",
            "--memory",
            "64m",
            "--ulimit",
            "nofile=256:256",
            "@host",
            "sh",
            "-c",
            TOUR,
        ])
        .status()?;
    println!(
        "\nexit code   {} (the script says `exit 7`)",
        status.code().unwrap_or(-1)
    );
    ensure!(
        status.code() == Some(7),
        "the container should have ended with exit code 7"
    );
    println!(
        "\nThat was a container: own hostname, own process 1, a memory limit, no network, and this \
         machine's secrets out of reach.\nNext:\n  \
         cargo x demo --debian        a web server on a real Debian image, pulled from a registry\n  \
         cargo x install              puts knarr and knarr-monitor into /usr/local/bin\n  \
         knarr run -it --rm @host bash\n  \
         knarr run --help\n  \
         cargo x test                 every test\n  \
         cargo x bench run            beside docker and podman"
    );
    Ok(())
}

/// A real image from Debian's packages, from a registry on loopback, with a web server in it.
pub(crate) fn debian() -> Result<()> {
    packages::install(packages::DEMO_DEBIAN)?;
    let knarr = Knarr::build()?;
    println!("making a Debian 12 image with Python from packages (once, about a minute)");
    shell::cargo(
        &[
            "run",
            "--quiet",
            "--release",
            "--package",
            "knarr-testkit",
            "--example",
            "demo-registry",
            "--",
        ],
        &["--make-only"],
    )?;
    // Serves the image until its standard input closes, and prints its address first.
    let mut registry = Command::new(shell::cargo_program())
        .args(["run", "--quiet", "--release", "--package", "knarr-testkit"])
        .args(["--example", "demo-registry"])
        .current_dir(shell::workspace())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()?;
    let result = knarr.tour(&mut registry);
    drop(registry.stdin.take());
    registry.wait()?;
    knarr
        .command(&["rm", "-f", "demo-web"])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()?;
    result
}

/// The built binary on roots of the demo's own.
struct Knarr {
    binary: PathBuf,
    state: PathBuf,
}

impl Knarr {
    fn build() -> Result<Self> {
        packages::install(packages::BUILD)?;
        println!("building (release, static; the first time takes a few minutes)");
        shell::build_binaries()?;
        let target = shell::workspace().join("target");
        Ok(Self {
            binary: target.join("release/knarr"),
            state: target.join("demo"),
        })
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(&self.binary);
        command.arg("--root").arg(self.state.join("data"));
        command
            .arg("--runroot")
            .arg(self.state.join("run"))
            .args(args);
        command
    }

    /// Shows a command, runs it, and fails if it fails.
    fn show(&self, args: &[&str]) -> Result<()> {
        println!("\n$ knarr {}", args.join(" "));
        shell::run(&mut self.command(args))
    }

    fn tour(&self, registry: &mut std::process::Child) -> Result<()> {
        use std::io::BufRead as _;
        let mut lines =
            std::io::BufReader::new(registry.stdout.take().context("no output")?).lines();
        let host = lines.next().context("the registry did not start")??;
        let image = format!("{host}/debian-python:12");
        self.show(&["pull", &image])?;
        self.show(&["images"])?;
        self.show(&[
            "run",
            "-d",
            "--name",
            "demo-web",
            "--network",
            "host",
            &image,
        ])?;
        println!("\n$ curl http://127.0.0.1:8000/");
        println!("{}", fetch("127.0.0.1:8000")?);
        self.show(&["ps"])?;
        self.show(&["logs", "demo-web"])?;
        self.show(&["stats", "--no-stream", "demo-web"])?;
        self.show(&["exec", "demo-web", "python3", "--version"])?;
        self.show(&["stop", "-t", "3", "demo-web"])?;
        self.show(&["rm", "demo-web"])?;
        self.show(&["rmi", &image])?;
        println!(
            "\nNothing is left: no process, no mount, no folder. Try `knarr run --help` next."
        );
        Ok(())
    }
}

/// GET / with a few tries while the server comes up.
fn fetch(address: &str) -> Result<String> {
    use std::io::{Read as _, Write as _};
    for _ in 0..200 {
        if let Ok(mut stream) = std::net::TcpStream::connect(address) {
            stream.write_all(b"GET / HTTP/1.0\r\n\r\n")?;
            let mut answer = String::new();
            stream.read_to_string(&mut answer)?;
            if let Some((head, body)) = answer.split_once("\r\n\r\n") {
                ensure!(head.contains(" 200 "), "the web server answered: {head}");
                return Ok(body.to_owned());
            }
        }
        std::thread::sleep(std::time::Duration::from_millis(50));
    }
    bail!("no answer from http://{address}/ within 10 seconds; is the port taken?")
}
