//! A container's life under its monitor: start, streams, logs, stop, restart, removal.

use std::io::{Read as _, Write as _};
use std::net::Shutdown;
use std::time::{Duration, Instant};

use crate::sandbox::{Container, can_run, eventually, monitor, read_frames};
use knarr_diag::Class;
use knarr_monitor::client::{self, Connection};
use knarr_monitor::request::{Log, Restart, Size, Stdin, Streams};
use knarr_monitor::state::Status;

#[test]
fn a_container_runs_and_its_exit_code_output_and_events_are_kept() {
    if !can_run("a_container_runs_and_its_exit_code_output_and_events_are_kept") {
        return;
    }
    let container = Container::new("echo out; echo err >&2; exit 7");
    let mut started = container.start();
    let state = started.wait().unwrap();
    assert_eq!(state.status, Status::Exited);
    assert_eq!(state.exit_code, Some(7));
    assert!(!state.oom_killed);
    assert!(state.started_at < state.finished_at);
    assert_eq!(container.state(), state);
    let mut logged = container.logged();
    logged.sort();
    let expected = [("stderr", "err\n"), ("stdout", "out\n")];
    assert_eq!(logged, expected.map(|(a, b)| (a.to_owned(), b.to_owned())));
    assert_eq!(container.events(), ["start", "die"]);
    // Everything but state and lock is gone once the monitor lets go of the lock.
    drop(container.lock());
    assert_eq!(container.cgroups(), Vec::<std::path::PathBuf>::new());
    let mut left = knarr_fs::file_names(container.run_folder()).unwrap();
    left.sort();
    assert_eq!(left, ["lock", "state.json"]);
    assert_eq!(
        knarr_monitor::State::load(&container.data_folder()).unwrap(),
        Some(state),
        "the data folder has it, too"
    );
}

#[test]
fn a_program_that_is_not_there_is_told_and_nothing_is_left() {
    if !can_run("a_program_that_is_not_there_is_told_and_nothing_is_left") {
        return;
    }
    let container = Container::with_args(&["/bin/nothing"]);
    let report = client::spawn(monitor(), &container.request, container.lock()).unwrap_err();
    assert_eq!(report.class, Class::CommandNotFound, "{report}");
    let state = container.state();
    assert_eq!(
        (state.status, state.exit_code),
        (Status::Created, Some(127))
    );
    assert!(state.error.is_some());
    drop(container.lock());
    assert!(container.cgroups().is_empty());
    assert!(!container.run_folder().join("undo").exists());

    let container = Container::with_args(&["/bin/nothing"]).removed();
    client::spawn(monitor(), &container.request, container.lock()).unwrap_err();
    assert!(!container.run_folder().exists());
    assert!(!container.data_folder().exists());
}

#[test]
fn with_rm_the_container_is_gone_before_its_exit_code_is_told() {
    if !can_run("with_rm_the_container_is_gone_before_its_exit_code_is_told") {
        return;
    }
    let container = Container::new("exit 3").removed();
    let mut started = container.start();
    let state = started.wait().unwrap();
    assert_eq!(state.exit_code, Some(3));
    assert!(!container.run_folder().exists());
    assert!(!container.data_folder().exists());
    assert_eq!(container.events(), ["start", "die", "destroy"]);
    let ending = container.root().join("run/ending");
    eventually("the rest is removed", || {
        knarr_fs::file_names(&ending)
            .unwrap()
            .is_empty()
            .then_some(())
    });
    assert!(container.cgroups().is_empty());
    eventually("the trash is empty", || {
        let trash = container.root().join("data/trash");
        knarr_fs::file_names(&trash)
            .unwrap()
            .is_empty()
            .then_some(())
    });
}

#[test]
fn the_first_client_misses_nothing_and_its_end_of_input_arrives() {
    if !can_run("the_first_client_misses_nothing_and_its_end_of_input_arrives") {
        return;
    }
    let container = Container::new("echo ready; cat; echo done >&2").attached(true);
    let mut started = container.start();
    let mut stream = started.attached.take().unwrap();
    let text = "line\n".repeat(100_000);
    let mut writer = stream.try_clone().unwrap();
    let (stdout, stderr) = std::thread::scope(|scope| {
        scope.spawn(|| {
            writer.write_all(text.as_bytes()).unwrap();
            writer.shutdown(Shutdown::Write).unwrap();
        });
        read_frames(&mut stream)
    });
    assert_eq!(String::from_utf8(stdout).unwrap(), format!("ready\n{text}"));
    assert_eq!(stderr, b"done\n");
    assert_eq!(started.wait().unwrap().exit_code, Some(0));
    assert_eq!(container.logged().len(), 100_002);
}

#[test]
fn an_open_stdin_outlives_its_clients() {
    if !can_run("an_open_stdin_outlives_its_clients") {
        return;
    }
    let mut container = Container::new("while read line; do echo got $line; done");
    container.request.stdin = Stdin::Open;
    let mut started = container.start();
    for word in ["one", "two"] {
        let streams = Streams {
            stdin: true,
            ..Streams::default()
        };
        let mut attached = container.connect().attach(streams).unwrap();
        attached
            .stream
            .write_all(format!("{word}\n").as_bytes())
            .unwrap();
        drop(attached);
        container.wait_for_log(&format!("got {word}"));
    }
    let state = container.connect().stop(Some(9), None, |_| ()).unwrap();
    assert_eq!(state.exit_code, Some(137));
    assert_eq!(started.wait().unwrap(), state);
}

#[test]
fn a_slow_client_makes_the_container_wait_and_loses_nothing() {
    if !can_run("a_slow_client_makes_the_container_wait_and_loses_nothing") {
        return;
    }
    let script = "i=0; while [ $i -lt 40000 ]; do echo 0123456789012345678901234567890123456789 $i; \
                  i=$((i+1)); done";
    let container = Container::new(script).attached(false);
    let mut started = container.start();
    let mut stream = started.attached.take().unwrap();
    let second = Streams {
        stdout: true,
        ..Streams::default()
    };
    let other = container.connect().attach(second).unwrap();
    // Nobody reads: the container stands still well before its end, and is not lost.
    let mut before = 0;
    eventually("it stands still", || {
        std::thread::sleep(Duration::from_millis(150));
        let now = container.logged().len();
        let still = now == before && now > 0;
        before = now;
        still.then_some(())
    });
    assert!(before < 40_000, "{before}");
    assert!(container.observe().unwrap().alive);
    drop(other);
    let (stdout, _) = read_frames(&mut stream);
    assert_eq!(stdout.iter().filter(|&&byte| byte == b'\n').count(), 40_000);
    assert_eq!(started.wait().unwrap().exit_code, Some(0));
    assert_eq!(container.logged().len(), 40_000);
}

#[test]
fn stop_escalates_and_says_that_nobody_listens() {
    if !can_run("stop_escalates_and_says_that_nobody_listens") {
        return;
    }
    // A shell without a handler, as pid 1.
    let container = Container::new("echo up; while :; do sleep 1000 & wait; done");
    let _started = container.start();
    container.wait_for_log("up");
    let mut deaf = Vec::new();
    let begun = Instant::now();
    let state = container
        .connect()
        .stop(None, Some(1), |signal| deaf.push(signal))
        .unwrap();
    assert!((Duration::from_millis(950)..Duration::from_secs(5)).contains(&begun.elapsed()));
    assert_eq!((state.exit_code, state.stopped_by_user), (Some(137), true));
    assert_eq!(deaf, [15]);
    assert_eq!(container.events(), ["start", "kill", "die", "stop"]);

    let container = Container::new(
        "trap 'echo bye; exit 5' TERM; echo up; while :; do sleep 1000 & wait; done",
    );
    let _started = container.start();
    container.wait_for_log("up");
    let mut deaf = Vec::new();
    let state = container
        .connect()
        .stop(None, None, |signal| deaf.push(signal))
        .unwrap();
    assert_eq!(state.exit_code, Some(5));
    assert!(deaf.is_empty());
    assert!(container.logged().iter().any(|(_, log)| log == "bye\n"));
}

#[test]
fn restarts_follow_the_policy_and_stop_ends_them() {
    if !can_run("restarts_follow_the_policy_and_stop_ends_them") {
        return;
    }
    let mut container = Container::new("echo try; exit 4");
    container.request.restart = Restart::OnFailure { max: 2 };
    let mut started = container.start();
    assert_eq!(started.wait().unwrap().status, Status::Restarting);
    let state = eventually("it gives up", || {
        let state = container.state();
        (state.status == Status::Exited).then_some(state)
    });
    assert_eq!(
        (state.restart_count, state.exit_code),
        (2, Some(4)),
        "{state:?}"
    );
    assert_eq!(container.logged().len(), 3);
    drop(container.lock());
    assert!(container.cgroups().is_empty());

    let mut container = Container::new("echo again");
    container.request.restart = Restart::Always;
    let _started = container.start();
    eventually("three starts", || {
        (container.logged().len() >= 3).then_some(())
    });
    let state = container.connect().stop(None, None, |_| ()).unwrap();
    assert_eq!(state.status, Status::Exited);
    drop(container.lock());
    assert!(!container.observe().unwrap().alive);
}

#[test]
fn logs_rotate_while_it_runs() {
    if !can_run("logs_rotate_while_it_runs") {
        return;
    }
    let mut container = Container::new("i=0; while [ $i -lt 5000 ]; do echo $i; i=$((i+1)); done");
    container.request.log = Log::JsonFile {
        path: container.log_path(),
        max_size: 32 << 10,
        max_file: 3,
    };
    container.start().wait().unwrap();
    let files = knarr_monitor::log_files(&container.log_path());
    assert_eq!(files.len(), 3);
    for file in &files {
        assert!(std::fs::metadata(file).unwrap().len() < 33 << 10);
    }
    let logged = container.logged();
    let numbers: Vec<u32> = logged
        .iter()
        .map(|(_, log)| log.trim().parse().unwrap())
        .collect();
    assert_eq!(numbers.last(), Some(&4999));
    assert!(
        numbers.windows(2).all(|pair| pair[1] == pair[0] + 1),
        "no line is missing"
    );
}

#[test]
fn a_terminal_has_a_size_and_can_be_left_and_joined() {
    if !can_run("a_terminal_has_a_size_and_can_be_left_and_joined") {
        return;
    }
    let container = Container::new(
        "trap 'stty size; exit 0' WINCH; stty size; while :; do sleep 1 & wait; done",
    )
    .terminal();
    let mut started = container.start();
    container.wait_for_log("24 80");
    let streams = Streams {
        stdin: true,
        stdout: true,
        stderr: true,
    };
    let mut attached = container.connect().attach(streams).unwrap();
    assert!(attached.raw);
    container
        .connect()
        .resize(Size {
            rows: 50,
            cols: 132,
        })
        .unwrap();
    let mut text = String::new();
    attached.stream.read_to_string(&mut text).unwrap();
    assert_eq!(text, "50 132\r\n");
    assert_eq!(started.wait().unwrap().exit_code, Some(0));

    let container = Container::new("sleep 1000");
    let _started = container.start();
    let error = container
        .connect()
        .resize(Size { rows: 1, cols: 1 })
        .unwrap_err();
    assert!(error.to_string().contains("has no terminal"), "{error}");
}

#[test]
fn pausing_freezes_and_stopping_a_paused_container_works() {
    if !can_run("pausing_freezes_and_stopping_a_paused_container_works") {
        return;
    }
    let container =
        Container::new("trap 'exit 9' TERM; echo up; while :; do sleep 1000 & wait; done");
    let _started = container.start();
    container.wait_for_log("up");
    container.connect().pause().unwrap();
    assert_eq!(container.state().status, Status::Paused);
    assert!(
        container
            .connect()
            .pause()
            .unwrap_err()
            .to_string()
            .contains("already paused")
    );
    assert!(container.observe().unwrap().alive);
    container.connect().unpause().unwrap();
    assert_eq!(container.state().status, Status::Running);
    container.connect().pause().unwrap();
    let state = container.connect().stop(None, None, |_| ()).unwrap();
    assert_eq!(state.exit_code, Some(9));
}

#[test]
fn silent_clients_hold_nothing_up() {
    if !can_run("silent_clients_hold_nothing_up") {
        return;
    }
    let container = Container::new("read x");
    let mut container = container;
    container.request.stdin = Stdin::Open;
    let _started = container.start();
    let silent: Vec<_> = (0..300)
        .map(|_| Connection::open(container.run_folder()))
        .collect();
    let begun = Instant::now();
    assert_eq!(
        container.connect().status().unwrap().status,
        Status::Running
    );
    assert!(begun.elapsed() < Duration::from_secs(5));
    drop(silent);
    container.connect().stop(Some(9), None, |_| ()).unwrap();
}

#[test]
fn long_roots_are_no_problem_for_the_socket() {
    if !can_run("long_roots_are_no_problem_for_the_socket") {
        return;
    }
    let container = Container::new("sleep 1000");
    assert!(
        container
            .run_folder()
            .join("monitor.sock")
            .as_os_str()
            .len()
            > 108
    );
    let _started = container.start();
    assert_eq!(
        container.connect().status().unwrap().status,
        Status::Running
    );
}

#[test]
fn the_container_inherits_nothing_of_who_started_it() {
    if !can_run("the_container_inherits_nothing_of_who_started_it") {
        return;
    }
    // What a test runner has: an ignored SIGPIPE, descriptors, a working folder.
    let container = Container::new(
        "grep -E '^Sig(Ign|Blk)' /proc/self/status; umask; pwd; ls /proc/self/fd | wc -l; env; \
         ulimit -c",
    );
    container.start().wait().unwrap();
    let text: String = container.logged().into_iter().map(|(_, log)| log).collect();
    for line in [
        "SigBlk:\t0000000000000000\n",
        "SigIgn:\t0000000000000000\n",
        "0022\n",
        "/\n",
    ] {
        assert!(text.contains(line), "{line:?} not in {text}");
    }
    // Standard streams, and the folder that ls reads.
    assert!(text.contains("\n4\n"), "{text}");
    assert!(!text.contains("CARGO"), "{text}");
}

#[test]
fn the_monitor_stands_alone_and_its_program_cannot_be_written() {
    if !can_run("the_monitor_stands_alone_and_its_program_cannot_be_written") {
        return;
    }
    let container = Container::new("sleep 1000");
    let _started = container.start();
    let pid = container.state().monitor.unwrap().pid;
    let proc = |name: &str| std::path::PathBuf::from(format!("/proc/{pid}/{name}"));
    let stat = std::fs::read_to_string(proc("stat")).unwrap();
    let fields: Vec<_> = stat
        .rsplit_once(')')
        .unwrap()
        .1
        .split_whitespace()
        .collect();
    assert_eq!(fields[3], pid.to_string(), "a session of its own");
    assert_eq!(
        std::fs::read_link(proc("cwd")).unwrap(),
        std::path::Path::new("/")
    );
    let cgroups = std::fs::read_to_string(proc("cgroup")).unwrap();
    let own = cgroups.lines().find(|line| line.starts_with("0::"));
    if let Some(own) = own {
        assert!(own.contains("knarr-monitors"), "{own}");
    }
    assert_eq!(std::fs::read(proc("environ")).unwrap(), b"");
    let fds = std::fs::read_dir(proc("fd")).unwrap().count();
    assert!(fds < 24, "{fds}");
    // CVE-2019-5736: whoever keeps its program open cannot write to it when nobody executes it.
    let exe = rustix::fs::open(
        proc("exe"),
        rustix::fs::OFlags::PATH,
        rustix::fs::Mode::empty(),
    );
    let mount = rustix::fs::fstatvfs(exe.unwrap()).unwrap();
    assert!(mount.f_flag.contains(rustix::fs::StatVfsMountFlags::RDONLY));
    container.connect().stop(Some(9), None, |_| ()).unwrap();
}

#[test]
fn further_processes_are_the_monitors_and_their_codes_are_kept() {
    if !can_run("further_processes_are_the_monitors_and_their_codes_are_kept") {
        return;
    }
    let container = Container::new("sleep 1000");
    let _started = container.start();
    let mut process = container.request.runtime.process.clone();
    process.args = ["/bin/busybox", "sh", "-c", "cat; exit 12"]
        .map(str::to_owned)
        .to_vec();
    let plan = knarr_runtime::ExecPlan::new(&container.request.runtime, process);
    let (reader, writer) = std::io::pipe().unwrap();
    let (mut output, out) = std::io::pipe().unwrap();
    let err = out.try_clone().unwrap();
    let pid = container
        .connect()
        .exec(
            "abc1",
            plan.clone(),
            Some([reader.into(), out.into(), err.into()]),
        )
        .unwrap();
    assert!(pid > 0);
    (&writer).write_all(b"through").unwrap();
    drop(writer);
    let mut text = String::new();
    output.read_to_string(&mut text).unwrap();
    assert_eq!(text, "through");
    let path = container.run_folder().join("execs/abc1.json");
    let state = eventually("the code is kept", || {
        let state: knarr_monitor::ExecState =
            serde_json::from_slice(&std::fs::read(&path).ok()?).ok()?;
        state.exit_code.is_some().then_some(state)
    });
    assert_eq!((state.exit_code, state.pid), (Some(12), pid));
    // Without streams; and a name that leads elsewhere is refused.
    container
        .connect()
        .exec("abc2", plan.clone(), None)
        .unwrap();
    let error = container.connect().exec("../x", plan, None).unwrap_err();
    assert!(error.to_string().contains("cannot name"), "{error}");
    container.connect().stop(Some(9), None, |_| ()).unwrap();
}

#[test]
fn running_out_of_memory_is_told() {
    if !can_run("running_out_of_memory_is_told") {
        return;
    }
    // Fills a tmpfs that counts against the container's memory.
    let mut container = Container::new("dd if=/dev/zero of=/dev/fill bs=1M count=64; sleep 1");
    let layout = knarr_cgroup::Layout::detect().unwrap();
    let resources = serde_json::from_value(serde_json::json!({
        "memory": {"limit": 16 << 20, "swap": 16 << 20}
    }))
    .unwrap();
    let path = container.request.cgroup.path.clone();
    container.request.cgroup =
        knarr_cgroup::Plan::from_resources(&layout, &resources, &path).unwrap();
    let state = container.start().wait().unwrap();
    assert!(state.oom_killed, "{state:?}");
    assert!(container.events().contains(&"oom".to_owned()));
    drop(container.lock());
    assert!(container.cgroups().is_empty());
}

#[test]
fn a_new_policy_is_kept_and_obeyed() {
    if !can_run("a_new_policy_is_kept_and_obeyed") {
        return;
    }
    let container = Container::new("sleep 1000");
    let _started = container.start();
    container.connect().update(Restart::Always).unwrap();
    let kept = std::fs::read(container.run_folder().join("request.json")).unwrap();
    assert_eq!(
        knarr_monitor::Request::parse(&kept).unwrap().restart,
        Restart::Always
    );
    let first = container.state().process;
    rustix::process::kill_process(
        rustix::process::Pid::from_raw(first.unwrap().pid.cast_signed()).unwrap(),
        rustix::process::Signal::KILL,
    )
    .unwrap();
    eventually("it is there again", || {
        let state = container.state();
        (state.status == Status::Running && state.process != first).then_some(())
    });
    container.connect().stop(Some(9), None, |_| ()).unwrap();
}

#[test]
fn nonsense_is_refused_with_a_reason() {
    if !can_run("nonsense_is_refused_with_a_reason") {
        return;
    }
    let container = Container::new("sleep 1000");
    let _started = container.start();
    for (line, expected) in [
        ("{\"version\":1,\"call\":\"dance\"}\n", "call-unknown"),
        ("{\"version\":9,\"call\":\"wait\"}\n", "version-unknown"),
        ("GET / HTTP/1.1\r\n", "call-unknown"),
    ] {
        let mut stream = container.raw_connection();
        stream.write_all(line.as_bytes()).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        assert!(answer.contains(expected), "{answer}");
    }
    let error = container.connect().signal(99).unwrap_err();
    assert!(error.to_string().contains("signal 99"), "{error}");
    container.connect().stop(Some(9), None, |_| ()).unwrap();
    let error = Connection::open(container.run_folder()).unwrap_err();
    assert!(error.to_string().contains("no monitor answers"), "{error}");
}

#[test]
fn a_new_volume_gets_the_images_content_once_and_a_half_copy_is_done_over() {
    if !can_run("a_new_volume_gets_the_images_content_once_and_a_half_copy_is_done_over") {
        return;
    }
    let mut container = Container::new("true");
    container.with_volume("/bin");
    let volume = container.root().join("volume");
    container.start().wait().unwrap();
    let names = || {
        let mut names: Vec<_> = std::fs::read_dir(volume.join("data"))
            .unwrap()
            .map(|entry| entry.unwrap().file_name())
            .collect();
        names.sort();
        names
    };
    assert_eq!(names(), ["busybox", "sh"]);
    // What is the user's stays.
    std::fs::remove_file(volume.join("data/sh")).unwrap();
    container.start().wait().unwrap();
    assert_eq!(names(), ["busybox"]);
    std::fs::write(volume.join(".copying"), "").unwrap();
    std::fs::write(volume.join("data/half"), "").unwrap();
    container.start().wait().unwrap();
    assert_eq!(names(), ["busybox", "sh"]);
    assert!(!volume.join(".copying").exists());
}

#[test]
fn without_a_pid_namespace_what_is_left_is_killed() {
    if !can_run("without_a_pid_namespace_what_is_left_is_killed") {
        return;
    }
    let mut container = Container::new("sleep 1000 & echo $!; exit 2");
    let plan = &mut container.request.runtime;
    plan.create
        .retain(|namespace| *namespace != knarr_runtime::Namespace::Pid);
    let state = container.start().wait().unwrap();
    assert_eq!(state.exit_code, Some(2));
    let pid: i32 = container.logged()[0].1.trim().parse().unwrap();
    assert_eq!(knarr_runtime::process::start_time(pid).unwrap(), None);
    drop(container.lock());
    assert!(container.cgroups().is_empty());
}

#[test]
fn without_a_log_driver_nothing_is_kept_and_nothing_stands_still() {
    if !can_run("without_a_log_driver_nothing_is_kept_and_nothing_stands_still") {
        return;
    }
    let mut container = Container::new("yes | head -n 200000");
    container.request.log = Log::None;
    assert_eq!(container.start().wait().unwrap().exit_code, Some(0));
    assert!(!container.log_path().exists());
}

#[test]
fn a_user_without_rights_may_reopen_its_streams() {
    if !can_run("a_user_without_rights_may_reopen_its_streams") {
        return;
    }
    // As nginx's image does with its logs.
    let mut container = Container::new("echo reopened > /proc/self/fd/1; echo too > /dev/stderr");
    container.request.runtime.process.user = knarr_runtime::UserPlan::Ids {
        uid: 1000,
        gid: 1000,
        additional_gids: Vec::new(),
    };
    // The image's folders are root's only, as the test makes them.
    let upper = container.data_folder().join("upper");
    for folder in [upper.clone(), upper.join("bin")] {
        let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        std::fs::set_permissions(folder, mode).unwrap();
    }
    container.start().wait().unwrap();
    let mut logged = container.logged();
    logged.sort();
    let expected = [("stderr", "too\n"), ("stdout", "reopened\n")];
    assert_eq!(logged, expected.map(|(a, b)| (a.to_owned(), b.to_owned())));
}
