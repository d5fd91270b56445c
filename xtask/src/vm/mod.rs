//! `cargo x vm`: tests that need another machine than this one: Debian 12 with its Linux 6.1, systemd
//! and nothing but cgroup v2, AppArmor. It runs under qemu, which translates its code: some ten times
//! slower than this machine, everywhere alike (`KNARR_VM_ACCELERATOR=kvm` where that works).
//!
//! The machine's disk is made once from Debian's packages ([`image`]). What is tested comes in on a
//! second disk, made for each run: the built binaries, the fixtures, the test programs that have a test
//! to run, and a script that runs them. Their output leaves through a serial port of virtio. Nothing
//! that a run writes to either disk is kept.
//!
//! A test that makes sense only there is marked `#[ignore = "for cargo x vm"]`; there, ignored tests
//! run too.

mod image;

use std::io::BufReader;
use std::path::{Path, PathBuf};
use std::process::{ChildStdout, Command, Stdio};
use std::time::Instant;

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use crate::test::Totals;
use crate::{packages, shell};
use image::Image;

/// Seconds that all of it may take; then the machine is switched off and the run has failed.
const BUDGET: u32 = 600;

/// The test programs that run there, as (package, test target).
const SUITES: &[(&str, &str)] = &[
    ("knarr-cgroup", "hierarchies"),
    ("knarr-cgroup", "systemd"),
    ("knarr-seccomp", "load"),
    ("knarr-tests", "cgroup_views"),
    ("knarr-tests", "lifecycle"),
    ("knarr-tests", "oci_apparmor"),
    ("knarr-tests", "oci_commands"),
    ("knarr-tests", "oci_events"),
    ("knarr-tests", "oci_systemd"),
    ("knarr-tests", "run"),
    ("knarr-tests", "volumes"),
];

/// Static binaries, where they are built.
const BINARIES: &[&str] = &["knarr", "knarr-monitor", "knarr-oci"];

/// What tests read from the checkout, and the fixtures that they use.
const FOLDERS: &[&str] = &["bin", "crates", "testkit", "tests"];
const FIXTURES: &[&str] = &["busybox-rootfs.tar", "busybox.tar"];

/// The last line of a run that came to its end.
const DONE: &str = "the machine has run everything";

/// Why there can be no virtual machine here: no reason to fail the other tests.
#[derive(Debug)]
pub(crate) struct Unavailable(anyhow::Error);

impl std::fmt::Display for Unavailable {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "there is no virtual machine here: {:#}", self.0)
    }
}

impl std::error::Error for Unavailable {}

/// `cargo x vm`: builds, and runs the tests whose names contain `filter` (all of them without).
pub(crate) fn command(filter: &[&str]) -> Result<()> {
    packages::install(packages::BUILD)?;
    packages::install(&[("busybox-static", "/bin/busybox")])?;
    shell::build_binaries()?;
    crate::test::make_fixtures()?;
    if let ["--shell"] = filter {
        return shell();
    }
    run(filter)?.conclude()
}

/// Runs them on binaries and fixtures that are there. No machine is made where `filter` chooses none.
///
/// # Errors
/// [`Unavailable`]; or when the machine fails. Failed tests are in the totals.
pub(crate) fn run(filter: &[&str]) -> Result<Totals> {
    let start = Instant::now();
    let workspace = shell::workspace();
    let mut programs = test_programs(&workspace)?;
    if !filter.is_empty() {
        programs = with_tests(programs, filter)?;
    }
    if programs.is_empty() {
        return Ok(Totals {
            success: true,
            ..Totals::default()
        });
    }
    let machine = Machine::prepare(&programs, &script(&workspace, &programs, filter))?;
    println!(
        "virtual machine ready after {} s",
        start.elapsed().as_secs()
    );
    let totals = machine.run()?;
    println!(
        "tests in the virtual machine took {} s, building included",
        start.elapsed().as_secs()
    );
    Ok(totals)
}

/// `cargo x vm --shell`: root on the machine's console, with everything in its place.
fn shell() -> Result<()> {
    let workspace = shell::workspace();
    let programs = test_programs(&workspace)?;
    let machine = Machine::prepare(&programs, &format!("{}\nexit\n", setup(&workspace)))?;
    println!("log in as root (no password); `poweroff` ends it");
    shell::run(machine.qemu().args(["-serial", "mon:stdio"]))
}

/// What the script does before anything else: the second disk at the checkout's own place.
fn setup(workspace: &Path) -> String {
    let place = workspace.display();
    format!(
        "mkdir -p {place}; mount /dev/vdb {place}; cd {place}\n\
         export KNARR_TARGET_DIR={place}/target HOME=/root USER=root\n\
         export PATH={place}/target/release:/usr/sbin:/usr/bin"
    )
}

/// The script that runs the test programs. Each has its own limit of time, so that one that hangs
/// leaves some for the others.
fn script(workspace: &Path, programs: &[Program], filter: &[&str]) -> String {
    let mut lines = vec![
        "until [ -e /dev/virtio-ports/knarr ]; do sleep 0.1; done".to_owned(),
        "exec >/dev/virtio-ports/knarr 2>&1".to_owned(),
        "trap 'busybox poweroff -f' EXIT".to_owned(),
        setup(workspace),
        "echo \"$(uname -r), up for $(cut -d ' ' -f 1 /proc/uptime) s\"".to_owned(),
    ];
    for Program { name, file } in programs {
        let filter = filter.join(" ");
        lines.push(format!(
            "echo 'in the machine: {name}'; timeout -k 5 {} ./{file} --include-ignored --show-output {filter} </dev/null || echo \"{name} gave $?\"",
            BUDGET / 2
        ));
    }
    lines.push(format!("echo '{DONE}'; sleep 1"));
    lines.join("\n")
}

/// A test program, here and on the second disk.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Program {
    name: String,
    /// Below the checkout.
    file: String,
}

/// Disks that are ready to be run.
struct Machine {
    image: Image,
    data: PathBuf,
    folder: PathBuf,
}

impl Machine {
    fn prepare(programs: &[Program], script: &str) -> Result<Self> {
        packages::install(packages::VM).map_err(Unavailable)?;
        let image = Image::make().map_err(Unavailable)?;
        let workspace = shell::workspace();
        let folder = workspace.join("target/vm");
        let stage = folder.join("stage");
        if stage.exists() {
            std::fs::remove_dir_all(&stage)?;
        }
        std::fs::create_dir_all(&stage)?;
        stage_files(&workspace, &stage, programs)?;
        std::fs::write(stage.join("run.sh"), script)?;
        let data = folder.join("data.img");
        make_disk(&stage, &data, 2048)?;
        std::fs::remove_dir_all(&stage)?;
        Ok(Self {
            image,
            data,
            folder,
        })
    }

    fn qemu(&self) -> Command {
        let drive = |file: &Path| {
            format!(
                "file={},if=virtio,format=raw,snapshot=on",
                file.display().to_string().replace(',', ",,")
            )
        };
        // KVM is often there and does not work (nested, or switched off), so it must be asked for.
        let accelerator = std::env::var("KNARR_VM_ACCELERATOR");
        let accelerator = accelerator.as_deref().unwrap_or("tcg,thread=multi");
        let mut command = Command::new("timeout");
        command
            .args(["--foreground", "-k", "5", &BUDGET.to_string()])
            .args(["qemu-system-x86_64", "-machine", "q35", "-smp", "2"])
            .args(["-accel", accelerator, "-cpu", "Nehalem", "-m", "2048"])
            .args(["-nodefaults", "-display", "none", "-no-reboot"])
            .arg("-kernel")
            .arg(&self.image.kernel)
            .arg("-initrd")
            .arg(&self.image.initrd)
            .args(["-append", "console=ttyS0 quiet"])
            .args(["-drive", &drive(&self.image.root)])
            .args(["-drive", &drive(&self.data)])
            // What is written to the disks goes to a file without a name there.
            .env("TMPDIR", &self.folder);
        command
    }

    /// Runs it to its end.
    fn run(&self) -> Result<Totals> {
        let console = self.folder.join("console.log");
        let mut child = self
            .qemu()
            .args(["-device", "virtio-serial", "-chardev", "stdio,id=out"])
            .args(["-device", "virtserialport,chardev=out,name=knarr"])
            .arg("-serial")
            .arg(format!("file:{}", console.display()))
            // At the end of its standard input qemu would hang up.
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .context("cannot run qemu-system-x86_64")?;
        let output: ChildStdout = child.stdout.take().context("no output")?;
        let log = shell::workspace().join("target/vm.log");
        let mut totals = Totals::default();
        let mut done = false;
        totals.read(BufReader::new(output), &log, |line| {
            done |= line == DONE;
            if line.starts_with("in the machine: ") || line.contains(" gave ") {
                println!("{line}");
            }
        })?;
        let status = child.wait()?;
        ensure!(
            done,
            "the virtual machine did not come to its end ({}); see {} and {}",
            match status.code() {
                Some(124 | 137) => format!("it was stopped after {BUDGET} s"),
                _ => status.to_string(),
            },
            log.display(),
            console.display()
        );
        totals.success = totals.failed == 0;
        Ok(totals)
    }
}

/// Puts what the tests need into `stage`, each file where it is in the checkout.
fn stage_files(workspace: &Path, stage: &Path, programs: &[Program]) -> Result<()> {
    let copy = |file: &str, needed: bool| -> Result<()> {
        let (from, to) = (workspace.join(file), stage.join(file));
        if !needed && !from.exists() {
            return Ok(());
        }
        if let Some(parent) = to.parent() {
            std::fs::create_dir_all(parent)?;
        }
        shell::run(
            Command::new("cp")
                .args(["-a", "--reflink=auto"])
                .args([&from, &to]),
        )
    };
    for folder in FOLDERS {
        copy(folder, true)?;
    }
    for name in BINARIES {
        copy(&format!("target/release/{name}"), false)?;
    }
    for name in FIXTURES {
        copy(&format!("target/fixtures/{name}"), true)?;
    }
    programs
        .iter()
        .try_for_each(|program| copy(&program.file, true))
}

/// Those that have tests which `filter` chooses.
fn with_tests(programs: Vec<Program>, filter: &[&str]) -> Result<Vec<Program>> {
    let mut chosen = Vec::new();
    for program in programs {
        let output = Command::new(shell::workspace().join(&program.file))
            .args(["--list", "--format", "terse"])
            .args(filter)
            .output()
            .with_context(|| format!("cannot list the tests of {}", program.name))?;
        if !output.status.success() || !output.stdout.trim_ascii().is_empty() {
            chosen.push(program);
        }
    }
    Ok(chosen)
}

/// Builds the test programs, with the features that `cargo test --workspace` builds them with.
fn test_programs(workspace: &Path) -> Result<Vec<Program>> {
    let mut command = Command::new(shell::cargo_program());
    command
        .args(["test", "--release", "--workspace", "--no-run"])
        .args(["--message-format", "json-render-diagnostics"])
        .current_dir(shell::workspace())
        .stderr(Stdio::inherit());
    for (_, target) in SUITES {
        command.args(["--test", target]);
    }
    let output = command.output().context("cannot run cargo test")?;
    ensure!(output.status.success(), "the tests could not be built");
    let mut found = Vec::new();
    for line in output.stdout.split(|byte| *byte == b'\n') {
        let Ok(message) = serde_json::from_slice::<Value>(line) else {
            continue;
        };
        let text = |pointer: &str| message.pointer(pointer).and_then(Value::as_str);
        let (Some(program), Some(target), Some(manifest)) = (
            text("/executable"),
            text("/target/name"),
            text("/manifest_path"),
        ) else {
            continue;
        };
        let Some((package, _)) = SUITES
            .iter()
            .find(|(package, name)| *name == target && owns(package, manifest))
        else {
            continue;
        };
        let file = program
            .strip_prefix(workspace.to_str().context("a path is not text")?)
            .and_then(|file| file.strip_prefix('/'))
            .context("test programs are not built below the checkout")?;
        found.push(Program {
            name: format!("{package} {target}"),
            file: file.to_owned(),
        });
    }
    ensure!(
        found.len() == SUITES.len(),
        "only these of the tests for the machine were built: {found:?}"
    );
    found.sort();
    Ok(found)
}

/// Whether a manifest is that of a package, by their names: `knarr-tests` is in `tests/`.
fn owns(package: &str, manifest: &str) -> bool {
    let folder = package.strip_prefix("knarr-").unwrap_or(package);
    manifest.ends_with(&format!("/{folder}/Cargo.toml"))
}

/// A disk of ext4 with the content of a folder and at least `free` MiB beside it.
fn make_disk(folder: &Path, disk: &Path, free: u64) -> Result<()> {
    let output = Command::new("du")
        .args(["-sm", "--apparent-size"])
        .arg(folder)
        .output()?;
    let used: u64 = String::from_utf8_lossy(&output.stdout)
        .split_whitespace()
        .next()
        .and_then(|number| number.parse().ok())
        .context("du did not tell a size")?;
    if disk.exists() {
        std::fs::remove_file(disk)?;
    }
    shell::run(
        Command::new("mkfs.ext4")
            .args(["-q", "-E", "root_owner=0:0,lazy_itable_init=1", "-d"])
            .arg(folder)
            .arg(disk)
            .arg(format!("{}M", used + used / 4 + free))
            .stdout(Stdio::null()),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn programs_without_a_chosen_test_are_left_out() {
        let this = std::env::current_exe().unwrap();
        let chosen = |filter: &[&str]| {
            let this = Program {
                name: "xtask".to_owned(),
                file: this.display().to_string(),
            };
            with_tests(vec![this], filter).unwrap().len()
        };
        assert_eq!(chosen(&["without_a_chosen_test"]), 1);
        assert_eq!(chosen(&["no_such_test", "without_a_chosen_test"]), 1);
        assert_eq!(chosen(&["no_such_test"]), 0);
    }
}
