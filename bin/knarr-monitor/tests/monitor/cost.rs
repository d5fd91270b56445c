//! What a monitor costs. These print; a comparison with others is `cargo x bench run`'s.

use std::time::{Duration, Instant};

use knarr_monitor::client;

use crate::sandbox::{Container, can_run, eventually};

/// A field of `/proc/PID/smaps_rollup`, in KiB.
fn rollup(pid: u32, field: &str) -> u64 {
    let text = std::fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap();
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix(field)?.strip_prefix(':'))
        .unwrap();
    line.trim().trim_end_matches("kB").trim().parse().unwrap()
}

/// How many, from `KNARR_TEST_COUNT`.
fn count(default: usize) -> usize {
    std::env::var("KNARR_TEST_COUNT")
        .ok()
        .and_then(|n| n.parse().ok())
        .unwrap_or(default)
}

#[test]
fn an_idle_monitor_is_small_and_ps_is_quick() {
    if !can_run("an_idle_monitor_is_small_and_ps_is_quick") {
        return;
    }
    let containers: Vec<_> = (0..count(10))
        .map(|_| Container::new("echo up; exec sleep 1000"))
        .collect();
    let begun = Instant::now();
    let started: Vec<_> = containers.iter().map(Container::start).collect();
    let spent = begun.elapsed();
    let number = u32::try_from(containers.len()).unwrap();
    println!(
        "{number} starts, one after the other: {:?} each",
        spent / number
    );
    for container in &containers {
        container.wait_for_log("up");
    }
    // Buffers are given back a second after the last output.
    std::thread::sleep(Duration::from_millis(1500));
    for field in ["Rss", "Pss", "Pss_Anon", "Pss_File", "Private_Dirty"] {
        let all = containers
            .iter()
            .map(|c| rollup(c.state().monitor.unwrap().pid, field));
        println!(
            "{field}: {} KiB per monitor",
            all.sum::<u64>() / u64::from(number)
        );
    }
    let begun = Instant::now();
    for container in &containers {
        assert!(
            client::observe(container.run_folder())
                .unwrap()
                .unwrap()
                .alive
        );
    }
    println!("observe: {:?} per container", begun.elapsed() / number);
    for container in &containers {
        container.connect().signal(9).unwrap();
    }
    for mut one in started {
        assert_eq!(one.wait().unwrap().exit_code, Some(137));
    }
}

#[test]
fn lines_are_logged_quickly_and_all_of_them() {
    if !can_run("lines_are_logged_quickly_and_all_of_them") {
        return;
    }
    let lines = 1_000_000;
    let script = format!("yes 0123456789012345678901234567890123456789 | head -n {lines}");
    let mut container = Container::new(&script);
    container.request.log = knarr_monitor::request::Log::JsonFile {
        path: container.log_path(),
        max_size: 0,
        max_file: 1,
    };
    let begun = Instant::now();
    let mut started = container.start();
    assert_eq!(started.wait().unwrap().exit_code, Some(0));
    let spent = begun.elapsed();
    let text = std::fs::read(container.log_path()).unwrap();
    assert_eq!(text.iter().filter(|&&byte| byte == b'\n').count(), lines);
    println!("{lines} lines in {spent:?}");
    eventually("it lets go", || {
        container.cgroups().is_empty().then_some(())
    });
}

#[test]
fn a_run_of_nothing_takes_few_milliseconds() {
    if !can_run("a_run_of_nothing_takes_few_milliseconds") {
        return;
    }
    let mut times = Vec::new();
    for _ in 0..20 {
        let container = Container::with_args(&["/bin/busybox", "true"]).removed();
        let begun = Instant::now();
        let mut started = container.start();
        let running = begun.elapsed();
        assert_eq!(started.wait().unwrap().exit_code, Some(0));
        times.push((begun.elapsed(), running));
    }
    times.sort();
    let (all, running) = times[times.len() / 2];
    println!(
        "spawn to running {running:?}, to gone {all:?} (median of {})",
        times.len()
    );
}
