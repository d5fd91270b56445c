//! `events`: numbers and out-of-memory kills, in the form that runc prints.

use std::process::ExitCode;
use std::time::{Duration, Instant};

use knarr_cgroup::Report;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use serde_json::json;

use crate::args::Parsed;
use crate::command::Globals;
use crate::container::{Container, Status};
use crate::failure::{Failure, Result};

/// How often out-of-memory kills are looked for.
const LOOK: Duration = Duration::from_millis(200);

/// `events`.
pub(crate) fn events(globals: &mut Globals, parsed: &Parsed) -> Result<ExitCode> {
    let id = parsed.rest.first().map_or("", String::as_str);
    let interval = duration(parsed.value("interval").unwrap_or("5s"))?;
    if interval.is_zero() {
        return Err(Failure::new("duration interval must be greater than 0"));
    }
    let container = Container::open(&globals.root, id)?;
    let init = match (&container.record.init, container.status()?) {
        (Some(init), status) if status != Status::Stopped => init,
        _ => {
            return Err(Failure::new(format!(
                "container with id {id} is not running"
            )));
        }
    };
    let cgroup = container.need_cgroup("count")?;
    if parsed.is_set("stats") {
        print(id, "stats", Some(&cgroup.report()?));
        return Ok(ExitCode::SUCCESS);
    }
    let Some(pidfd) = init.open()? else {
        return Ok(ExitCode::SUCCESS);
    };
    let mut kills = cgroup.oom_kills()?;
    let mut next = Instant::now();
    loop {
        let now = Instant::now();
        if now >= next {
            print(id, "stats", Some(&cgroup.report()?));
            next = now + interval;
        }
        let killed = cgroup.oom_kills()?;
        for _ in kills..killed {
            print(id, "oom", None);
        }
        kills = killed;
        let pause = LOOK.min(next.saturating_duration_since(now));
        let limit = Timespec {
            tv_sec: i64::try_from(pause.as_secs()).unwrap_or(0),
            tv_nsec: i64::from(pause.subsec_nanos()),
        };
        if let Ok(1..) = poll(&mut [PollFd::new(&pidfd, PollFlags::IN)], Some(&limit)) {
            return Ok(ExitCode::SUCCESS);
        }
    }
}

fn print(id: &str, kind: &str, data: Option<&Report>) {
    let mut event = json!({"type": kind, "id": id});
    if let Some(data) = data {
        event["data"] = json!(data);
    }
    println!("{event}");
}

/// `5s`, `500ms`, `1m`, `1.5s`, as Go has them.
fn duration(text: &str) -> Result<Duration> {
    let wrong = || Failure::new(format!("invalid value \"{text}\" for flag -interval"));
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let seconds: f64 = digits.parse().map_err(|_| wrong())?;
    let factor = match text.get(digits.len()..).unwrap_or_default() {
        "ms" => 0.001,
        "s" => 1.0,
        "m" => 60.0,
        "h" => 3600.0,
        _ => return Err(wrong()),
    };
    Duration::try_from_secs_f64(seconds * factor).map_err(|_| wrong())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn intervals_are_gos() {
        assert_eq!(duration("5s").unwrap(), Duration::from_secs(5));
        assert_eq!(duration("500ms").unwrap(), Duration::from_millis(500));
        assert_eq!(duration("1.5m").unwrap(), Duration::from_secs(90));
        for bad in ["5", "s", "-1s", "1d", ""] {
            assert!(duration(bad).is_err(), "{bad}");
        }
    }
}
