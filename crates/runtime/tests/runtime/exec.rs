//! More programs in a running container.

use std::os::fd::AsFd as _;

use crate::support::{
    Done, Guard, Image, config, finish, linux, pipes, plan, report, skip, start, strings, text,
};
use knarr_runtime::process::Exit;
use knarr_runtime::{ConsoleSize, Error, ExecPlan, Plan, ProcessPlan, Stdio, Target, UserPlan};
use knarr_spec::runtime::{IdMapping, Namespace};

fn process_plan(plan: &Plan, script: &str) -> ProcessPlan {
    ProcessPlan {
        args: strings(&["sh", "-c", script]),
        ..plan.process.clone()
    }
}

pub(crate) fn exec(container: &Guard, plan: &Plan, process: ProcessPlan) -> Result<Done, Error> {
    let (stdio, reads) = pipes();
    let target = Target {
        pid: container.0.pid,
        pidfd: container.0.pidfd.as_fd(),
        cgroup: None,
    };
    let process = knarr_runtime::exec(&target, &ExecPlan::new(plan, process), stdio)?;
    Ok(finish(process, reads))
}

#[test]
fn a_program_joins_the_container() {
    skip!("a_program_joins_the_container");
    let image = Image::new();
    let plan = plan(&config(&["sleep", "60"]));
    let (container, _reads) = start(&image, &plan);
    let done = exec(
        &container,
        &plan,
        process_plan(
            &plan,
            "hostname; [ $(readlink /proc/self/ns/pid) = $(readlink /proc/1/ns/pid) ] && echo pid; \
             [ $(readlink /proc/self/ns/net) = $(readlink /proc/1/ns/net) ] && echo net; \
             [ $(readlink /proc/self/ns/mnt) = $(readlink /proc/1/ns/mnt) ] && echo mnt; \
             tr '\\0' ' ' </proc/1/cmdline; echo; grep CapEff /proc/self/status; \
             ls /proc/self/fd | tr '\\n' ' '; echo $HOME; exit 5",
        ),
    )
    .unwrap();
    assert_eq!(
        done.out,
        "knarr-test\npid\nnet\nmnt\nsleep 60 \nCapEff:\t00000000a80425fb\n0 1 2 3 /root\n",
        "{}",
        done.err
    );
    assert_eq!(done.exit, Exit::Code(5));
}

#[test]
fn a_program_runs_as_another_user_elsewhere() {
    skip!("a_program_runs_as_another_user_elsewhere");
    let image = Image::new();
    let plan = plan(&config(&["sleep", "60"]));
    let (container, _reads) = start(&image, &plan);
    let mut process = process_plan(
        &plan,
        "id -u; id -G; pwd; echo $A$HOME; grep NoNew /proc/self/status",
    );
    process.user = UserPlan::Lookup {
        spec: "app".to_owned(),
        group_add: strings(&["tty"]),
    };
    process.cwd = "/home/app".to_owned();
    process.env.push("A=b".to_owned());
    process.no_new_privileges = true;
    let done = exec(&container, &plan, process).unwrap();
    assert_eq!(
        done.out, "1001\n1002 5 10\n/home/app\nb/home/app\nNoNewPrivs:\t1\n",
        "{}",
        done.err
    );
}

#[test]
fn a_program_gets_a_terminal_of_the_container() {
    skip!("a_program_gets_a_terminal_of_the_container");
    let image = Image::new();
    let plan = plan(&config(&["sleep", "60"]));
    let (container, _reads) = start(&image, &plan);
    let mut process = process_plan(&plan, "tty; stty size; echo t >/dev/tty");
    process.terminal = Some(ConsoleSize {
        rows: 20,
        columns: 30,
    });
    let target = Target {
        pid: container.0.pid,
        pidfd: container.0.pidfd.as_fd(),
        cgroup: None,
    };
    let plan = ExecPlan::new(&plan, process);
    let mut done = knarr_runtime::exec(&target, &plan, Stdio::Terminal).unwrap();
    let said = text(done.terminal.take().unwrap());
    assert_eq!(said, "/dev/pts/0\r\n20 30\r\nt\r\n");
    assert_eq!(
        knarr_runtime::process::wait(&done.pidfd).unwrap(),
        Exit::Code(0)
    );
}

#[test]
fn a_program_joins_a_user_namespace_too() {
    skip!("a_program_joins_a_user_namespace_too");
    let image = Image::new();
    let mut config = config(&["sleep", "60"]);
    linux(&mut config).namespaces.push(Namespace {
        kind: "user".to_owned(),
        path: None,
    });
    let map = vec![IdMapping {
        container_id: 0,
        host_id: 200_000,
        size: 65536,
    }];
    linux(&mut config).uid_mappings.clone_from(&map);
    linux(&mut config).gid_mappings = map;
    for path in ["", "tmp", "dev", "etc", "proc", "sys", "root"] {
        std::os::unix::fs::chown(image.path(path), Some(200_000), Some(200_000)).unwrap();
    }
    let plan = plan(&config);
    let (container, _reads) = start(&image, &plan);
    let script =
        "id -u; cat /proc/self/uid_map | tr -s ' '; cat /proc/1/cmdline >/dev/null && echo see";
    let done = exec(&container, &plan, process_plan(&plan, script)).unwrap();
    assert_eq!(done.out, "0\n 0 200000 65536\nsee\n", "{}", done.err);
}

#[test]
fn what_cannot_be_executed_is_told() {
    skip!("what_cannot_be_executed_is_told");
    let image = Image::new();
    let plan = plan(&config(&["sleep", "60"]));
    let (container, _reads) = start(&image, &plan);
    let mut process = process_plan(&plan, "true");
    process.args = strings(&["nothing"]);
    let error = exec(&container, &plan, process.clone()).unwrap_err();
    assert_eq!(
        error.to_string(),
        "exec: \"nothing\": executable file not found in $PATH"
    );
    assert_eq!(knarr_diag::Explain::class(&error).run_exit_code(), 127);
    process.args = strings(&["true"]);
    process.cwd = "/nowhere".to_owned();
    let error = exec(&container, &plan, process.clone()).unwrap_err();
    assert_eq!(
        report(&error),
        "error: cannot use /nowhere as the working directory\n  because: openat2: ENOENT (no \
         such file or directory)\n  hint: it does not exist in the container"
    );
    process.cwd = "/proc/self/fd/7".to_owned();
    assert!(exec(&container, &plan, process.clone()).is_err());
    process.cwd = "/".to_owned();
    knarr_runtime::process::kill(&container.0.pidfd).unwrap();
    let dead = container.0.pidfd.try_clone().unwrap();
    drop(container);
    let target = Target {
        pid: rustix::process::getpid(),
        pidfd: dead.as_fd(),
        cgroup: None,
    };
    let (stdio, _reads) = pipes();
    let error = knarr_runtime::exec(&target, &ExecPlan::new(&plan, process), stdio).unwrap_err();
    assert!(matches!(error, Error::NotRunning), "{error}");
}
