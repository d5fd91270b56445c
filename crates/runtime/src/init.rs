//! The tiny init of `--init`: pid 1 of the container is the runtime's own child, the program its
//! child. It forwards every signal, reaps whatever ends, and ends with the program. Allocates
//! nothing and opens nothing; its executable is the caller's, which `seal` keeps from being
//! written.

use std::os::fd::BorrowedFd;

use knarr_sys::Failure;
use knarr_sys::child::{Parent, close_all_from, close_all_from_but, fork, kill, wait_signal};
use knarr_sys::clone::Namespaces;
use knarr_sys::process::{SignalSet, exit_now, reset_signals, set_signal_mask};
use rustix::process::{Pid, Signal, WaitOptions};

use crate::child::{execute, give_up};
use crate::prepare::Prepared;
use crate::step::{Fault, Step};

/// Forks the program, stays, and ends with it. Comes back only with what failed before.
pub(crate) fn run(process: &Prepared, socket: BorrowedFd<'_>) -> Result<i32, Fault> {
    let at = Fault::at(Step::Fork);
    let signals = SignalSet::full();
    set_signal_mask(&signals).map_err(&at)?;
    // Before the fork, so that this process cannot be traced by what it starts.
    rustix::process::set_dumpable_behavior(rustix::process::DumpableBehavior::NotDumpable)
        .map_err(Failure::of("prctl"))
        .map_err(&at)?;
    // What both need is left. No owner of a descriptor is dropped any more: fork ends the program's
    // side, `exit_now` this one.
    close_all_from_but(3, socket).map_err(&at)?;
    let forked = fork(Namespaces::NONE, None, Parent::Caller, || {
        program(process, socket)
    });
    let program = match forked {
        Ok((program, pidfd)) => {
            std::mem::forget(pidfd);
            program
        }
        Err(failure) => exit_now(give_up(socket, at(failure))),
    };
    // From here on the socket is the program's: it closes by its exec.
    if let Err(failure) = close_all_from(0) {
        exit_now(give_up(socket, at(failure)));
    }
    exit_now(stay(program, &signals))
}

/// The program's side.
fn program(process: &Prepared, socket: BorrowedFd<'_>) -> i32 {
    // A group of its own in the foreground of the terminal, where there is one, so that what a
    // terminal sends goes to the program and not to init as well.
    if rustix::process::setpgid(None, None).is_ok() {
        rustix::termios::tcsetpgrp(rustix::stdio::stdin(), rustix::process::getpid()).ok();
    }
    let fault = match reset_signals(process.ignored_signals) {
        Ok(()) => {
            knarr_fs::failpoint!("run.exec");
            execute(process)
        }
        Err(failure) => Fault::at(Step::CloseFiles)(failure),
    };
    give_up(socket, fault)
}

fn stay(program: Pid, signals: &SignalSet) -> i32 {
    loop {
        match wait_signal(signals) {
            Ok(signal) if signal == Signal::CHILD.as_raw() => {
                if let Some(code) = reap(program) {
                    return code;
                }
            }
            Ok(signal) => {
                // It may have ended just now; the next SIGCHLD tells.
                kill(program, signal).ok();
            }
            Err(_) => {}
        }
    }
}

/// Reaps all that ended; the program's code if it did.
fn reap(program: Pid) -> Option<i32> {
    let mut code = None;
    while let Ok(Some((pid, status))) = rustix::process::wait(WaitOptions::NOHANG) {
        if pid == program {
            code = status
                .exit_status()
                .or_else(|| status.terminating_signal().map(|signal| 128 + signal));
        }
    }
    code
}
