//! What a container costs through knarr-oci, in numbers that no other load on the machine changes.
//! Times are measured by `cargo x bench oci`.

#![expect(clippy::unwrap_used, reason = "a test says what it saw by failing")]

use std::process::{Command, Stdio};

use knarr_testkit::oci::Oci;
use serde_json::json;

/// For `run`, the 21 of the program that it runs included.
const MOST_CALLS_OF_RUN: u64 = 300;
/// For `exec` in it.
const MOST_CALLS_OF_EXEC: u64 = 195;
/// KiB resident, in any of its processes. Nearly all is the program itself, mapped from the page
/// cache in pieces as large as that has it.
const MOST_MEMORY: u64 = 3400;

/// A call in a mount namespace with cgroup v2 alone, where the number of v1 hierarchies that the
/// machine has plays no part.
fn with_plain_cgroups(tool: &[&str], call: &Command) -> Command {
    let mut command = Command::new("unshare");
    command
        .args(["--mount", "sh", "-ec"])
        .arg(
            "mount --make-rprivate /\numount -l /sys/fs/cgroup\n\
             mount -t cgroup2 none /sys/fs/cgroup\nexec \"$@\"",
        )
        .arg("sh")
        .args(tool)
        .arg(call.get_program())
        .args(call.get_args())
        .stdin(Stdio::null());
    command
}

/// How many system calls it makes, with all processes that it starts.
fn calls(oci: &Oci, call: &Command) -> u64 {
    let summary = oci.dir().join("calls");
    let tool = ["strace", "-f", "-c", "-o", summary.to_str().unwrap()];
    let output = with_plain_cgroups(&tool, call).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    let text = std::fs::read_to_string(&summary).unwrap();
    let total = text.lines().rfind(|line| line.ends_with("total"));
    // % time, seconds, usecs/call, calls, errors
    let calls = total.unwrap().split_whitespace().nth(3).unwrap();
    calls.parse().unwrap()
}

/// The most memory that one of its processes had at once, in KiB.
fn memory(call: &Command) -> u64 {
    let output = with_plain_cgroups(&["/usr/bin/time", "-f", "%M"], call)
        .output()
        .unwrap();
    assert!(output.status.success(), "{output:?}");
    let said = String::from_utf8(output.stderr).unwrap();
    said.trim().parse().unwrap()
}

#[test]
fn a_container_costs_few_system_calls_and_little_memory() {
    let oci = Oci::new("speed");
    let seccomp = json!({
        "defaultAction": "SCMP_ACT_ALLOW",
        "syscalls": [{"names": ["bpf", "keyctl"], "action": "SCMP_ACT_ERRNO"}]
    });
    oci.bundle("true", |config| {
        config["process"]["args"] = json!(["true"]);
        config["linux"]["seccomp"] = seccomp.clone();
    });
    oci.bundle("box", |config| {
        config["process"]["args"] = json!(["sleep", "1000"]);
        config["linux"]["seccomp"] = seccomp.clone();
    });
    let run = oci.with_bundle("run", &[], "true");
    // The first one compiles the filter.
    assert!(with_plain_cgroups(&[], &run).status().unwrap().success());
    let most = memory(&run);
    assert!(most <= MOST_MEMORY, "run: {most} KiB");
    let most = calls(&oci, &run);
    assert!(most <= MOST_CALLS_OF_RUN, "run: {most} system calls");

    let start = oci.with_bundle("run", &["--detach"], "box");
    let mut start = with_plain_cgroups(&[], &start);
    start.stdout(Stdio::null()).stderr(Stdio::null());
    assert!(start.status().unwrap().success());
    let exec = oci.command(&["exec", "box", "true"]);
    let most = memory(&exec);
    assert!(most <= MOST_MEMORY, "exec: {most} KiB");
    let most = calls(&oci, &exec);
    assert!(most <= MOST_CALLS_OF_EXEC, "exec: {most} system calls");
    let delete = oci.command(&["delete", "--force", "box"]);
    assert!(with_plain_cgroups(&[], &delete).status().unwrap().success());
}
