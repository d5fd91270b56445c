//! `top`: what ps(1) would print, read from the host's `/proc`. No program is run, neither the
//! container's nor the host's.

use std::collections::BTreeMap;
use std::path::Path;

use rustix::process::Pid;

use crate::{Error, Result, Top, time};

/// One process, as far as a column wants it.
#[derive(Debug, Default)]
struct Process {
    pid: i32,
    ppid: i32,
    uid: u32,
    state: String,
    tty: i64,
    /// Clock ticks.
    cpu: u64,
    /// Clock ticks after boot.
    start: u64,
    nice: i64,
    /// Bytes.
    vsize: u64,
    /// Pages.
    rss: u64,
    name: String,
    command: String,
}

struct Host {
    users: BTreeMap<u32, String>,
    /// Seconds since boot.
    uptime: f64,
    memory: u64,
    now: i64,
}

type Column = (&'static str, &'static str, fn(&Process, &Host) -> String);

/// The columns by the names that ps(1) has for them.
const COLUMNS: [Column; 25] = [
    ("pid", "PID", |p, _| p.pid.to_string()),
    ("ppid", "PPID", |p, _| p.ppid.to_string()),
    ("user", "USER", user),
    ("euser", "EUSER", user),
    ("uname", "USER", user),
    ("uid", "UID", |p, _| p.uid.to_string()),
    ("UID", "UID", user),
    ("c", "C", |p, host| {
        format!("{:.0}", usage(p, host).min(99.0))
    }),
    ("stime", "STIME", started),
    ("start", "STARTED", started),
    ("START", "START", started),
    ("tty", "TTY", terminal),
    ("tname", "TTY", terminal),
    ("time", "TIME", |p, _| clock(p.cpu / TICKS)),
    ("TIME", "TIME", |p, _| {
        format!("{}:{:02}", p.cpu / TICKS / 60, p.cpu / TICKS % 60)
    }),
    ("etime", "ELAPSED", |p, host| clock(age(p, host))),
    ("cmd", "CMD", |p, _| p.command.clone()),
    ("args", "COMMAND", |p, _| p.command.clone()),
    ("comm", "COMMAND", |p, _| p.name.clone()),
    ("pcpu", "%CPU", |p, host| format!("{:.1}", usage(p, host))),
    ("pmem", "%MEM", memory_percent),
    ("rss", "RSS", |p, _| (p.rss * PAGE / 1024).to_string()),
    ("vsz", "VSZ", |p, _| (p.vsize / 1024).to_string()),
    ("stat", "STAT", |p, _| p.state.clone()),
    ("ni", "NI", |p, _| p.nice.to_string()),
];

/// `USER_HZ` of every architecture that Linux still has.
const TICKS: u64 = 100;
const PAGE: u64 = 4096;

/// The table for these processes; `arguments` are ps's: none, `-ef`, `aux`, `-o` columns.
pub(crate) fn table(processes: &[Pid], arguments: &[String]) -> Result<Top> {
    let columns = columns(arguments)?;
    let host = Host {
        users: users(),
        uptime: knarr_fs::read_to_string(Path::new("/proc/uptime"))
            .ok()
            .and_then(|text| text.split(' ').next()?.parse().ok())
            .unwrap_or_default(),
        memory: crate::system::machine_memory(),
        now: time::now(),
    };
    // A process that ends meanwhile is left out.
    let found = processes
        .iter()
        .filter_map(|pid| read(pid.as_raw_nonzero().get()));
    Ok(Top {
        titles: columns
            .iter()
            .map(|(_, title, _)| (*title).to_owned())
            .collect(),
        processes: found
            .map(|process| {
                columns
                    .iter()
                    .map(|(_, _, value)| value(&process, &host))
                    .collect()
            })
            .collect(),
    })
}

fn columns(arguments: &[String]) -> Result<Vec<Column>> {
    let named = |names: &str| -> Result<Vec<Column>> {
        names
            .split([',', ' '])
            .filter(|name| !name.is_empty())
            .map(|name| {
                let (name, title) = match name.split_once('=') {
                    Some((name, title)) => (name, Some(title)),
                    None => (name, None),
                };
                let wanted = match name {
                    "%cpu" => "pcpu",
                    "%mem" => "pmem",
                    "command" => "args",
                    "ucmd" => "comm",
                    "vsize" => "vsz",
                    "rssize" => "rss",
                    "state" | "s" => "stat",
                    "nice" => "ni",
                    "cputime" => "time",
                    "tt" => "tty",
                    other => other,
                };
                let known = COLUMNS.iter().find(|(known, ..)| *known == wanted).copied();
                match (known, title) {
                    (Some(column), None | Some("")) => Ok(column),
                    _ => Err(Error::Unsupported {
                        what: format!("the ps column `{name}`"),
                        reason: "there are pid, ppid, user, uid, c, stime, tty, time, etime, cmd, \
                                 args, comm, pcpu, pmem, rss, vsz, stat and ni",
                    }),
                }
            })
            .collect()
    };
    let joined = arguments.join(" ");
    let words: Vec<&str> = joined.split_whitespace().collect();
    match words.as_slice() {
        [] | ["-ef" | "-Af" | "-f" | "ef"] => named("UID,pid,ppid,c,stime,tty,time,cmd"),
        ["aux" | "-aux" | "u" | "ux" | "au"] => {
            named("user,pid,pcpu,pmem,vsz,rss,tname,stat,START,TIME,args")
        }
        ["-e" | "-A" | "a" | "ax"] => named("pid,tty,time,comm"),
        ["-o" | "-eo" | "o" | "axo" | "-Ao" | "-axo", rest @ ..] => named(&rest.join(",")),
        [word, rest @ ..] if word.starts_with("-o") || word.starts_with("-eo") => {
            let first = word
                .trim_start_matches('-')
                .trim_start_matches('e')
                .trim_start_matches('o');
            named(&[&[first], rest].concat().join(","))
        }
        _ => Err(Error::Unsupported {
            what: format!("`ps {joined}`"),
            reason: "there are -ef, aux, -e and -o COLUMNS; no program is run for it",
        }),
    }
}

fn read(pid: i32) -> Option<Process> {
    let file = |name: &str| knarr_fs::read(Path::new(&format!("/proc/{pid}/{name}"))).ok();
    let stat = String::from_utf8_lossy(&file("stat")?).into_owned();
    // The name may contain anything, parentheses too.
    let (name, rest) = (stat.find('(')?, stat.rfind(')')?);
    let fields: Vec<&str> = stat.get(rest + 1..)?.split_whitespace().collect();
    // Field 3 of proc_pid_stat(5) comes first here.
    let text = |number: usize| fields.get(number - 3).copied().unwrap_or_default();
    let number = |field: usize| text(field).parse::<u64>().unwrap_or_default();
    let status = String::from_utf8_lossy(&file("status")?).into_owned();
    let uid = status.lines().find_map(|line| line.strip_prefix("Uid:"))?;
    let name = stat.get(name + 1..rest)?.to_owned();
    let line = file("cmdline")?;
    let words = line.split(|&byte| byte == 0).map(String::from_utf8_lossy);
    let command = words.collect::<Vec<_>>().join(" ").trim_end().to_owned();
    Some(Process {
        pid,
        ppid: text(4).parse().unwrap_or_default(),
        uid: uid.split_whitespace().nth(1)?.parse().ok()?,
        state: text(3).to_owned(),
        tty: text(7).parse().unwrap_or_default(),
        cpu: number(14) + number(15),
        nice: text(19).parse().unwrap_or_default(),
        start: number(22),
        vsize: number(23),
        rss: number(24),
        command: printable(if command.is_empty() {
            format!("[{name}]")
        } else {
            command
        }),
        name: printable(name),
    })
}

/// What a container calls itself must not move the cursor of who looks.
fn printable(text: String) -> String {
    text.chars()
        .map(|c| if c.is_control() { '?' } else { c })
        .collect()
}

fn users() -> BTreeMap<u32, String> {
    let text = knarr_fs::read_to_string(Path::new("/etc/passwd")).unwrap_or_default();
    let entry = |line: &str| {
        let mut fields = line.split(':');
        let name = fields.next()?.to_owned();
        Some((fields.nth(1)?.parse().ok()?, name))
    };
    // Of several names the first counts.
    text.lines().rev().filter_map(entry).collect()
}

fn user(process: &Process, host: &Host) -> String {
    host.users
        .get(&process.uid)
        .cloned()
        .unwrap_or_else(|| process.uid.to_string())
}

/// Whole seconds since it started.
fn age(process: &Process, host: &Host) -> u64 {
    std::time::Duration::try_from_secs_f64(host.uptime)
        .map(|uptime| uptime.as_secs())
        .unwrap_or_default()
        .saturating_sub(process.start / TICKS)
}

/// Percent of one CPU over its whole life.
#[expect(clippy::cast_precision_loss, reason = "one digit is shown")]
fn usage(process: &Process, host: &Host) -> f64 {
    let life = host.uptime - process.start as f64 / TICKS as f64;
    if life > 0.0 {
        process.cpu as f64 / TICKS as f64 / life * 100.0
    } else {
        0.0
    }
}

#[expect(clippy::cast_precision_loss, reason = "one digit is shown")]
fn memory_percent(process: &Process, host: &Host) -> String {
    format!(
        "{:.1}",
        (process.rss * PAGE) as f64 / host.memory.max(1) as f64 * 100.0
    )
}

fn started(process: &Process, host: &Host) -> String {
    let seconds = i64::try_from(age(process, host)).unwrap_or_default();
    let text = time::format(
        host.now
            .saturating_sub(seconds.saturating_mul(1_000_000_000)),
    );
    // The hour today, the day before that; UTC like all of Knarr's times.
    let part = if seconds < 86_400 {
        text.get(11..16)
    } else {
        text.get(5..10)
    };
    part.unwrap_or_default().to_owned()
}

fn terminal(process: &Process, _: &Host) -> String {
    match (
        process.tty >> 8 & 0xfff,
        process.tty & 0xff | process.tty >> 12 & 0xf_ff00,
    ) {
        (0, _) => "?".to_owned(),
        (major @ 136..=143, minor) => format!("pts/{}", (major - 136) * 256 + minor),
        (4, minor) => format!("tty{minor}"),
        (major, minor) => format!("{major},{minor}"),
    }
}

fn clock(seconds: u64) -> String {
    format!(
        "{:02}:{:02}:{:02}",
        seconds / 3600,
        seconds / 60 % 60,
        seconds % 60
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_is_shown_as_ps_would() {
        let me = rustix::process::getpid();
        let full = table(&[me], &[]).unwrap();
        assert_eq!(full.titles.join(" "), "UID PID PPID C STIME TTY TIME CMD");
        assert_eq!(full.processes[0][1], me.as_raw_nonzero().to_string());
        let own = table(&[me], &["-o".to_owned(), "pid,comm".to_owned()]).unwrap();
        assert_eq!(own.titles.join(" "), "PID COMMAND");
        assert!(table(&[me], &["--forest".to_owned()]).is_err());
        assert!(table(&[me], &["-o".to_owned(), "label".to_owned()]).is_err());
    }

    #[test]
    fn names_do_not_move_the_cursor() {
        assert_eq!(printable("a\u{1b}[2Jb\n".to_owned()), "a?[2Jb?");
    }
}
