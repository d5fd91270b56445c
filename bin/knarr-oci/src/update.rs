//! `update`.

use std::io::Read as _;
use std::path::Path;
use std::process::ExitCode;

use knarr_cgroup::Limits;
use knarr_spec::runtime::{BlockIo, Cpu, Memory, Pids, Resources};

use crate::args::{Flag, Parsed};
use crate::bundle;
use crate::command::{Globals, value};
use crate::container::{Container, Status};
use crate::failure::{Failure, Result};

/// Its flags.
pub(crate) const FLAGS: &[Flag] = &[
    value(
        "resources,r",
        "file with the resources as in config.json, - for standard input",
    ),
    value("blkio-weight", "weight of block I/O, 10 to 1000"),
    value("cpu-period", "microseconds of a period"),
    value("cpu-quota", "microseconds of CPU time per period"),
    value("cpu-burst", "microseconds that may be saved up"),
    value("cpu-share", "relative weight"),
    value("cpu-rt-period", "microseconds of a period, realtime"),
    value(
        "cpu-rt-runtime",
        "microseconds of CPU time per period, realtime",
    ),
    value("cpu-idle", "1 makes it SCHED_IDLE"),
    value("cpuset-cpus", "CPUs, as in 0-2,4"),
    value("cpuset-mems", "memory nodes, as in 0-2,4"),
    value("kernel-memory", "obsolete, ignored by kernels"),
    value("kernel-memory-tcp", "obsolete, ignored by kernels"),
    value("memory", "bytes, with suffix k, m, g"),
    value(
        "memory-reservation",
        "bytes that reclaim tries to leave alone",
    ),
    value(
        "memory-swap",
        "bytes of memory and swap together, -1 without limit",
    ),
    value("pids-limit", "the most processes"),
    value("l3-cache-schema", "Intel RDT, not served"),
    value("mem-bw-schema", "Intel RDT, not served"),
];

/// `update`.
pub(crate) fn update(globals: &mut Globals, parsed: &Parsed) -> Result<ExitCode> {
    let id = parsed.rest.first().map_or("", String::as_str);
    let mut container = Container::open(&globals.root, id)?;
    let _lock = container.lock()?;
    if container.status()? == Status::Stopped {
        return Err(Failure::new("container not running"));
    }
    let resources = match parsed.value("resources") {
        Some(path) => from_file(path)?,
        None => from_flags(parsed)?,
    };
    let limits = Limits::parse(&resources)?;
    let mut cgroup = container.need_cgroup("update")?;
    cgroup.update(&limits)?;
    for warning in cgroup.warnings() {
        globals.log.warning(&warning.to_string());
    }
    container.record.cgroup = Some(cgroup.plan().clone());
    container.record.save(&container.dir)?;
    Ok(ExitCode::SUCCESS)
}

fn from_file(path: &str) -> Result<Resources> {
    let bytes = if path == "-" {
        let mut bytes = Vec::new();
        std::io::stdin()
            .read_to_end(&mut bytes)
            .map_err(|error| Failure::new(format!("cannot read standard input: {error}")))?;
        bytes
    } else {
        knarr_fs::read(Path::new(path))?
    };
    bundle::parse(&bytes, Path::new(path))
}

fn from_flags(parsed: &Parsed) -> Result<Resources> {
    for name in ["l3-cache-schema", "mem-bw-schema"] {
        if parsed.value(name).is_some_and(|schema| !schema.is_empty()) {
            return Err(Failure::new(format!(
                "--{name}: Intel's resource director technology is not served"
            )));
        }
    }
    let bytes = |name: &str| {
        parsed
            .value(name)
            .filter(|text| !text.is_empty())
            .map(|text| {
                parse_bytes(text)
                    .ok_or_else(|| Failure::new(format!("invalid value for {name}: {text}")))
            })
            .transpose()
    };
    let text = |name: &str| parsed.value(name).map(str::to_owned);
    let cpu = Cpu {
        shares: parsed.number("cpu-share")?,
        quota: parsed.number("cpu-quota")?,
        burst: parsed.number("cpu-burst")?,
        period: parsed.number("cpu-period")?,
        cpus: text("cpuset-cpus"),
        mems: text("cpuset-mems"),
        idle: parsed.number("cpu-idle")?,
        realtime_runtime: parsed.number("cpu-rt-runtime")?,
        realtime_period: parsed.number("cpu-rt-period")?,
    };
    let memory = Memory {
        limit: bytes("memory")?,
        reservation: bytes("memory-reservation")?,
        swap: bytes("memory-swap")?,
        ..Memory::default()
    };
    Ok(Resources {
        memory: Some(memory),
        cpu: Some(cpu),
        pids: parsed.number("pids-limit")?.map(|limit| Pids { limit }),
        block_io: parsed.number("blkio-weight")?.map(|weight| BlockIo {
            weight: Some(weight),
            ..BlockIo::default()
        }),
        ..Resources::default()
    })
}

/// `512m`, `-1`: units of 1024.
fn parse_bytes(text: &str) -> Option<i64> {
    if text == "-1" {
        return Some(-1);
    }
    let lower = text.trim().to_ascii_lowercase();
    let digits = lower.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let shift = match lower.get(digits.len()..)? {
        "" | "b" => 0,
        "k" | "kb" | "kib" => 10,
        "m" | "mb" | "mib" => 20,
        "g" | "gb" | "gib" => 30,
        "t" | "tb" | "tib" => 40,
        _ => return None,
    };
    let number: i64 = digits.parse().ok().filter(|number| *number >= 0)?;
    number.checked_mul(1 << shift)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_have_units_of_1024() {
        for (text, bytes) in [
            ("-1", Some(-1)),
            ("1024", Some(1024)),
            ("4k", Some(4096)),
            ("512m", Some(512 << 20)),
            ("1GiB", Some(1 << 30)),
            ("-2", None),
            ("", None),
            ("m", None),
            ("1x", None),
            ("9223372036854775807k", None),
        ] {
            assert_eq!(parse_bytes(text), bytes, "{text}");
        }
    }
}
