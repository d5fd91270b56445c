//! What a start costs: system calls of the container's process, and time.

use std::time::Instant;

use crate::support::{Image, config, pipes, plan, skip, together};
use knarr_runtime::{Begun, Launch};

/// Between clone and exec, with Docker's default config.
const MOST_CALLS: usize = 160;

fn run_true(image: &Image, plan: &knarr_runtime::Plan) -> (u128, u128) {
    let rootfs = image.mount();
    let (stdio, _reads) = pipes();
    let begin = Instant::now();
    let launch = Launch {
        plan,
        rootfs,
        stdio,
        cgroup: None,
        binds: Vec::new(),
        extras: knarr_runtime::Extras::default(),
    };
    let init = knarr_runtime::begin(launch).and_then(Begun::start).unwrap();
    let started = begin.elapsed().as_micros();
    knarr_runtime::process::wait(&init.pidfd).unwrap();
    (started, begin.elapsed().as_micros())
}

#[test]
fn a_start_takes_milliseconds() {
    skip!("a_start_takes_milliseconds");
    let image = Image::new();
    let plan = plan(&config(&["true"]));
    let _together = together();
    let mut times: Vec<_> = (0..50).map(|_| run_true(&image, &plan)).collect();
    times.sort_unstable();
    let (start, whole) = times[times.len() / 2];
    eprintln!("begin to exec {start} µs, to the end {whole} µs (medians of 50, this build)");
}

#[test]
fn an_exec_takes_milliseconds() {
    skip!("an_exec_takes_milliseconds");
    let image = Image::new();
    let plan = plan(&config(&["sleep", "60"]));
    let (container, _reads) = crate::support::start(&image, &plan);
    let pidfd = std::os::fd::AsFd::as_fd(&container.0.pidfd);
    let target = knarr_runtime::Target {
        pid: container.0.pid,
        pidfd,
        cgroup: None,
    };
    let args = vec!["true".to_owned()];
    let process = knarr_runtime::ProcessPlan {
        args,
        ..plan.process.clone()
    };
    let exec = knarr_runtime::ExecPlan::new(&plan, process);
    let _together = together();
    let mut times: Vec<_> = (0..50)
        .map(|_| {
            let (stdio, _reads) = pipes();
            let begin = Instant::now();
            let process = knarr_runtime::exec(&target, &exec, stdio).unwrap();
            let started = begin.elapsed().as_micros();
            knarr_runtime::process::wait(&process.pidfd).unwrap();
            (started, begin.elapsed().as_micros())
        })
        .collect();
    times.sort_unstable();
    let (start, whole) = times[times.len() / 2];
    eprintln!("exec {start} µs, to the end {whole} µs (medians of 50, this build)");
}

#[test]
fn a_start_takes_few_system_calls() {
    skip!("a_start_takes_few_system_calls");
    let tracer = std::process::Command::new("strace").arg("-V").output();
    if tracer.is_err() {
        eprintln!("SKIP a_start_takes_few_system_calls: no strace");
        return;
    }
    let image = Image::new();
    let log = image.top().join("log");
    let status = std::process::Command::new("strace")
        .args(["-f", "-o"])
        .arg(&log)
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", "speed::one_start", "--ignored"])
        .stdout(std::process::Stdio::null())
        .status()
        .unwrap();
    assert!(status.success());
    let text = std::fs::read_to_string(log).unwrap();
    // The child is whoever makes a session first; its calls up to the first execve.
    let child = text.lines().find(|line| line.contains(" setsid(")).unwrap();
    let child = child.split_whitespace().next().unwrap();
    let calls: Vec<_> = text
        .lines()
        .filter(|line| line.split_whitespace().next() == Some(child))
        .filter(|line| !line.contains(" resumed>"))
        .map(|line| line.split_whitespace().nth(1).unwrap_or_default())
        .map(|call| call.split('(').next().unwrap_or_default())
        .take_while(|call| *call != "execve")
        .collect();
    let mut kinds = std::collections::BTreeMap::<_, usize>::new();
    for call in &calls {
        *kinds.entry(*call).or_default() += 1;
    }
    let mut kinds: Vec<_> = kinds.into_iter().collect();
    kinds.sort_by_key(|(_, count)| std::cmp::Reverse(*count));
    eprintln!(
        "{} system calls between clone and exec: {kinds:?}",
        calls.len()
    );
    assert!(
        calls.len() <= MOST_CALLS,
        "{} calls: {kinds:?}",
        calls.len()
    );
}

/// For the test above.
#[test]
#[ignore = "run by a_start_takes_few_system_calls"]
fn one_start() {
    skip!("one_start");
    let image = Image::new();
    run_true(&image, &plan(&config(&["true"])));
}

#[test]
fn an_allocation_in_a_child_would_be_seen() {
    skip!("an_allocation_in_a_child_would_be_seen");
    let child = || i32::try_from(std::hint::black_box(vec![0u8; 10]).len()).unwrap_or(0);
    let (_, pidfd) = knarr_sys::child::fork(
        knarr_sys::clone::Namespaces::NONE,
        None,
        knarr_sys::child::Parent::Caller,
        child,
    )
    .unwrap();
    let exit = knarr_runtime::process::wait(pidfd.unwrap()).unwrap();
    assert_eq!(exit, knarr_runtime::process::Exit::Code(99));
}
