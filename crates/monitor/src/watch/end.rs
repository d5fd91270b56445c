//! The end of a container: how it ended, what is left of it, whether it begins again.

use std::path::Path;
use std::time::{Duration, Instant};

use knarr_diag::Explain as _;
use knarr_fs::{Durability, Trash};
use knarr_runtime::process::Exit;

use super::{Init, LINGER, Phase, Watch, tell};
use crate::protocol::{Answer, Reply};
use crate::request::Request;
use crate::restart::End;
use crate::session::Role;
use crate::state::Status;
use crate::{clock, undo};

impl Watch {
    /// The first process has ended.
    pub(super) fn init_ended(&mut self) {
        let Some(init) = self.init.take() else { return };
        let exit = if init.ours {
            match knarr_runtime::process::try_wait(&init.pidfd) {
                Ok(Some(exit)) => Some(exit),
                // epoll was wrong; it will tell again.
                Ok(None) => {
                    self.init = Some(init);
                    return;
                }
                Err(_) => None,
            }
        } else {
            exit_of_another(&init)
        };
        let ran = init.since.elapsed();
        drop(init);
        knarr_fs::failpoint!("monitor.exit");
        self.kill_at = None;
        self.execs_ended();
        // What is left of it: with a pid namespace nothing, as the kernel ends that with its init.
        let emptied = self.cgroup.as_ref().map_or(Ok(()), undo::empty);
        self.drain();
        self.log.finish();
        self.streams.close();
        self.leave_network();
        self.state.network = knarr_net::Attached::default();
        self.state.log_lost = self.log.lost();
        self.state.oom_killed = self
            .cgroup
            .as_ref()
            .is_some_and(|cgroup| cgroup.oom_kills().is_ok_and(|kills| kills > 0));
        let code = exit.map_or(255, Exit::code);
        self.state.exit_code = Some(code);
        self.state.error = match (exit, emptied) {
            (None, _) => Some("nobody saw the end: the exit code is not known".to_owned()),
            (_, Err(error)) => Some(error.report().one_line()),
            _ => None,
        };
        if self.state.oom_killed {
            self.event("oom", &[]);
        }
        self.ended(End {
            exit_code: code,
            ran,
            wanted: self.state.stopped_by_user,
        });
    }

    /// It ended, or could not be started again: rest, or finish.
    fn ended(&mut self, end: End) {
        self.state.process = None;
        self.state.finished_at = Some(clock::now());
        let seconds = end.ran.as_secs().to_string();
        let code = end.exit_code.to_string();
        self.event("die", &[("exitCode", code), ("execDuration", seconds)]);
        match self.backoff.next(self.restart, end) {
            Some(wait) => {
                self.state.status = Status::Restarting;
                // The next change of state writes it again.
                self.state.save(&self.run, Durability::Volatile).ok();
                knarr_fs::failpoint!("monitor.resting");
                self.phase = Phase::Resting(Instant::now() + wait);
                self.tell_the_end();
            }
            None => self.finish(),
        }
    }

    /// The rest is over.
    pub(super) fn start_again(&mut self) {
        self.state.restart_count += 1;
        self.state.stopped_by_user = false;
        let started = Request::load(&self.run)
            .map_err(|error| error.report())
            .and_then(|request| {
                // The same cgroup would keep the count of what happened in it.
                self.cgroup = None;
                self.undo.remove_cgroup().map_err(|error| error.report())?;
                self.start(&request)
            });
        match started {
            Ok(()) => {
                self.relax_at = Some(Instant::now());
                self.event("start", &[]);
            }
            Err(report) => {
                self.init = None;
                self.streams.close();
                self.leave_network();
                self.state.network = knarr_net::Attached::default();
                let exit_code = i32::from(report.class.run_exit_code());
                self.state.exit_code = Some(exit_code);
                self.state.error = Some(report.one_line());
                let wanted = self.state.stopped_by_user;
                self.ended(End {
                    exit_code,
                    ran: Duration::ZERO,
                    wanted,
                });
            }
        }
    }

    /// It rested and shall not begin again.
    pub(super) fn stay_ended(&mut self) {
        self.finish();
    }

    /// It is over for good: state, removal, then everybody is told, then what may be slow.
    fn finish(&mut self) {
        self.state.status = Status::Exited;
        self.state.monitor = None;
        self.listener = None;
        let data = self.paths.data.clone();
        if let Err(error) = self.save_state(data.as_deref()) {
            self.state.error = Some(error.report().one_line());
        }
        knarr_fs::failpoint!("monitor.state");
        if self.state.stopped_by_user {
            self.event("stop", &[]);
        }
        let removed = self.remove.clone().is_some_and(|removal| {
            match self.undo.remove_container(&self.run, &removal) {
                Ok(place) => {
                    self.run = place;
                    knarr_fs::failpoint!("monitor.removed");
                    self.event("destroy", &[]);
                    true
                }
                Err(error) => {
                    self.state.error = Some(error.report().one_line());
                    false
                }
            }
        });
        self.tell_the_end();
        knarr_fs::failpoint!("monitor.told");
        self.clean_up(removed, data.as_deref());
        self.phase = Phase::Lingering(Instant::now() + LINGER);
    }

    /// What nobody waits for. What fails stays in `undo`, for the next call on the container.
    fn clean_up(&mut self, removed: bool, data: Option<&Path>) {
        self.cgroup = None;
        self.held.clear();
        let cgroup = self.undo.remove_cgroup();
        knarr_fs::failpoint!("monitor.cgroup-removed");
        self.give_addresses_back();
        knarr_fs::failpoint!("monitor.network-left");
        if removed {
            if cgroup.is_ok() {
                knarr_fs::remove_tree(&self.run).ok();
            }
            if let Some(removal) = &self.remove {
                Trash::below(&removal.data_root).empty().ok();
            }
        } else {
            let cleaned = undo::clean_run(&self.run);
            if let Some(data) = data {
                // Once more, to stay through a power cut: nobody waits for the disk now.
                self.state.save(data, Durability::Durable).ok();
            }
            if cgroup.is_ok() && cleaned.is_ok() && self.remove.is_none() {
                knarr_fs::remove_file(&self.run.join(undo::UNDO_FILE)).ok();
            }
        }
        drop(self.lock.take());
    }

    /// Tells everybody who waits for the end, and ends the streams.
    fn tell_the_end(&mut self) {
        if let Some(report) = self.report.take() {
            tell(
                &report,
                &Reply::ok(Answer::Ended(Box::new(self.state.clone()))),
            );
        }
        for client in self.clients.values_mut() {
            match client.role {
                Role::Waiting => {
                    client.answer_last(Answer::Ended(Box::new(self.state.clone())));
                }
                Role::Attached(_) | Role::Holding => client.role = Role::Leaving,
                Role::Asking { .. } | Role::Leaving => {}
            }
        }
        self.settle();
    }

    /// The other processes ended with it.
    fn execs_ended(&mut self) {
        let tokens: Vec<_> = self.execs.keys().copied().collect();
        for token in tokens {
            self.exec_ended(token);
        }
    }
}

/// How a process ended that is not our child. Whoever is its parent now reaps it soon.
fn exit_of_another(init: &Init) -> Option<Exit> {
    use std::os::fd::AsFd as _;
    for round in 0..40u64 {
        match knarr_sys::pidfd::exit_status(init.pidfd.as_fd()) {
            Ok(Some(status)) => return Some(decode(status)),
            Ok(None) => {}
            // An older kernel: its zombie still knows.
            Err(_) => return zombie_status(init.id.pid).map(decode),
        }
        if round == 0
            && let Some(status) = zombie_status(init.id.pid)
        {
            return Some(decode(status));
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    None
}

/// `exit_code`, field 52 of `/proc/PID/stat`, while it is a zombie.
fn zombie_status(pid: u32) -> Option<i32> {
    let stat = knarr_fs::read(Path::new(&format!("/proc/{pid}/stat"))).ok()?;
    let text = String::from_utf8_lossy(&stat);
    let (_, after) = text.rsplit_once(')')?;
    let mut fields = after.split_whitespace();
    if fields.next()? != "Z" {
        return None;
    }
    fields.nth(48)?.parse().ok()
}

/// The status of waitpid(2).
fn decode(status: i32) -> Exit {
    match status & 0x7f {
        0 => Exit::Code(u8::try_from(status >> 8 & 0xff).unwrap_or(u8::MAX)),
        signal => Exit::Signal(signal),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wait_statuses_are_decoded() {
        for (status, code) in [
            (0, 0),
            (7 << 8, 7),
            (9, 137),
            (11 | 0x80, 139),
            (255 << 8, 255),
        ] {
            assert_eq!(decode(status).code(), code);
        }
    }

    #[test]
    fn a_zombie_tells_its_status() {
        let child = std::process::Command::new("/bin/sh")
            .args(["-c", "exit 3"])
            .spawn()
            .unwrap();
        let pid = child.id();
        let deadline = Instant::now() + Duration::from_secs(10);
        let status = loop {
            if let Some(status) = zombie_status(pid) {
                break status;
            }
            assert!(Instant::now() < deadline);
            std::thread::yield_now();
        };
        assert_eq!(decode(status), Exit::Code(3));
        assert_eq!(zombie_status(std::process::id()), None);
        let mut child = child;
        child.wait().unwrap();
    }
}
