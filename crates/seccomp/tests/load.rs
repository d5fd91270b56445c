//! What loading a filter costs, and that the kernel takes and obeys it.
#![expect(clippy::unwrap_used, reason = "these are tests")]

use std::time::{Duration, Instant};

use knarr_seccomp::{Arch, Cache, Flags, Instruction, Profile, compile, default_profile};
use knarr_spec::runtime::{Seccomp, SeccompAction, SeccompSyscalls};
use knarr_sys::rustix::process::geteuid;
use knarr_sys::seccomp::load;

/// A filter with one comparison per call, as one without a compiler would be.
fn linear(section: &Seccomp) -> Vec<Instruction> {
    let instruction = |code, jt, jf, k| Instruction { code, jt, jf, k };
    let mut program = vec![instruction(0x20, 0, 0, 0)];
    let allowed: Vec<u32> = (0..470)
        .filter(|number| !matches!(number, 101 | 165 | 272))
        .collect();
    for number in allowed.iter().take(section.syscalls[0].names.len()) {
        program.push(instruction(0x15, 0, 1, *number));
        program.push(instruction(0x06, 0, 0, 0x7fff_0000));
    }
    program.push(instruction(0x06, 0, 0, 0x0005_0001));
    program
}

/// The median time of loading it in a thread of its own, whose end is the filter's.
fn time(program: &[Instruction]) -> Duration {
    let mut times: Vec<Duration> = (0..15)
        .map(|_| {
            std::thread::scope(|scope| {
                scope
                    .spawn(|| {
                        let begun = Instant::now();
                        load(program, Flags::NONE).unwrap();
                        begun.elapsed()
                    })
                    .join()
                    .unwrap()
            })
        })
        .collect();
    times.sort();
    times[times.len() / 2]
}

#[test]
fn loading_costs_less_than_with_a_comparison_per_call() {
    if !geteuid().is_root() {
        eprintln!("SKIP loading_costs_less_than_with_a_comparison_per_call: needs root");
        return;
    }
    let capabilities = ["CAP_CHOWN", "CAP_SYS_CHROOT"];
    let section = default_profile(&capabilities, Arch::HOST);
    let begun = Instant::now();
    let program = compile(&section).unwrap();
    let compiling = begun.elapsed();
    let begun = Instant::now();
    let profile = Profile::docker().section(&capabilities, Arch::HOST);
    let making = begun.elapsed();
    let dir = tempfile::tempdir().unwrap();
    let cache = Cache::new(dir.path());
    assert_eq!(cache.program(&profile).unwrap(), program);
    let begun = Instant::now();
    assert_eq!(cache.program(&profile).unwrap(), program);
    let reading = begun.elapsed();
    let allow = [Instruction {
        code: 6,
        jt: 0,
        jf: 0,
        k: 0x7fff_0000,
    }];
    let (ours, linear, least) = (
        time(program.instructions()),
        time(&linear(&section)),
        time(&allow),
    );
    println!(
        "load: ours {ours:?} ({} instructions), linear {linear:?}, allow all {least:?}; \
         section {making:?}, compile {compiling:?}, from cache {reading:?}",
        program.instructions().len()
    );
    assert!(ours < linear, "ours {ours:?}, linear {linear:?}");
}

#[test]
fn the_kernel_obeys_the_program() {
    if !geteuid().is_root() {
        eprintln!("SKIP the_kernel_obeys_the_program: needs root");
        return;
    }
    let section = Seccomp {
        default_action: SeccompAction::Allow,
        syscalls: vec![SeccompSyscalls {
            names: vec!["mkdir".to_owned(), "mkdirat".to_owned()],
            action: SeccompAction::Errno,
            errno_ret: Some(95),
            args: Vec::new(),
        }],
        ..Seccomp::default()
    };
    let program = compile(&section).unwrap();
    let errno = std::thread::spawn(move || {
        load(program.instructions(), program.flags()).unwrap();
        std::fs::create_dir("/tmp/knarr-never")
            .unwrap_err()
            .raw_os_error()
    });
    assert_eq!(errno.join().unwrap(), Some(95));
}
