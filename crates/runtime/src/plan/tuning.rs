//! Scheduling, priorities, memory placement: words of the config → the kernel's numbers.

use knarr_spec::runtime;

use super::{AffinityPlan, MemoryPolicyPlan, SchedulerPlan};
use crate::{Error, Result};

fn invalid(field: &str, reason: impl Into<String>) -> Error {
    Error::Config {
        field: field.to_owned(),
        reason: reason.into(),
    }
}

fn find<T: Copy>(field: &str, table: &[(&str, T)], name: &str) -> Result<T> {
    table
        .iter()
        .find(|(known, _)| *known == name)
        .map(|(_, value)| *value)
        .ok_or_else(|| invalid(field, format!("`{name}` is not known")))
}

/// `linux.personality`.
pub(super) fn personality(asked: Option<&runtime::Personality>) -> Result<Option<u32>> {
    let Some(asked) = asked else { return Ok(None) };
    if let Some(flag) = asked.flags.first() {
        let reason = format!("`{flag}`: the specification has no flags yet");
        return Err(invalid("linux.personality.flags", reason));
    }
    let table = [("LINUX", 0), ("LINUX32", 8)];
    find("linux.personality.domain", &table, &asked.domain).map(Some)
}

/// `process.scheduler` (linux/sched.h).
pub(super) fn scheduler(asked: &runtime::Scheduler) -> Result<SchedulerPlan> {
    let policies = [
        ("SCHED_OTHER", 0),
        ("SCHED_FIFO", 1),
        ("SCHED_RR", 2),
        ("SCHED_BATCH", 3),
        ("SCHED_ISO", 4),
        ("SCHED_IDLE", 5),
        ("SCHED_DEADLINE", 6),
    ];
    let flags = [
        ("SCHED_FLAG_RESET_ON_FORK", 0x01),
        ("SCHED_FLAG_RECLAIM", 0x02),
        ("SCHED_FLAG_DL_OVERRUN", 0x04),
        ("SCHED_FLAG_KEEP_POLICY", 0x08),
        ("SCHED_FLAG_KEEP_PARAMS", 0x10),
        ("SCHED_FLAG_UTIL_CLAMP_MIN", 0x20),
        ("SCHED_FLAG_UTIL_CLAMP_MAX", 0x40),
    ];
    let policy = find("process.scheduler.policy", &policies, &asked.policy)?;
    let nice = asked.nice.unwrap_or(0);
    if !(-20..=19).contains(&nice) {
        let reason = format!("{nice} is not between -20 and 19");
        return Err(invalid("process.scheduler.nice", reason));
    }
    let realtime = matches!(policy, 1 | 2);
    let priority = asked.priority.unwrap_or(0);
    if priority != 0 && !realtime {
        let reason = format!("{} has none", asked.policy);
        return Err(invalid("process.scheduler.priority", reason));
    }
    let times = [asked.runtime, asked.deadline, asked.period];
    if policy != 6 && times.iter().any(|time| time.unwrap_or(0) != 0) {
        let reason = "runtime, deadline and period are for SCHED_DEADLINE";
        return Err(invalid("process.scheduler", reason));
    }
    let mut bits = 0u64;
    for flag in &asked.flags {
        bits |= find("process.scheduler.flags", &flags, flag)?;
    }
    Ok(SchedulerPlan {
        policy,
        flags: bits,
        nice,
        priority: u32::try_from(priority)
            .map_err(|_| invalid("process.scheduler.priority", "is negative"))?,
        runtime: asked.runtime.unwrap_or(0),
        deadline: asked.deadline.unwrap_or(0),
        period: asked.period.unwrap_or(0),
    })
}

/// `process.ioPriority` (linux/ioprio.h).
pub(super) fn io_priority(asked: &runtime::IoPriority) -> Result<u16> {
    let classes = [
        ("IOPRIO_CLASS_RT", 1u16),
        ("IOPRIO_CLASS_BE", 2),
        ("IOPRIO_CLASS_IDLE", 3),
    ];
    let class = find("process.ioPriority.class", &classes, &asked.class)?;
    match u16::try_from(asked.priority) {
        Ok(level @ 0..=7) => Ok((class << 13) | level),
        _ => {
            let reason = format!("{} is not between 0 and 7", asked.priority);
            Err(invalid("process.ioPriority.priority", reason))
        }
    }
}

/// `process.execCPUAffinity`.
pub(super) fn affinity(asked: Option<&runtime::CpuAffinity>) -> Result<AffinityPlan> {
    let Some(asked) = asked else {
        return Ok(AffinityPlan::default());
    };
    let list = |field: &str, text: &Option<String>| match text.as_deref() {
        None | Some("") => Ok(Vec::new()),
        Some(text) => parse_list(field, text),
    };
    Ok(AffinityPlan {
        initial: list("process.execCPUAffinity.initial", &asked.initial)?,
        last: list("process.execCPUAffinity.final", &asked.last)?,
    })
}

/// `linux.memoryPolicy` (linux/mempolicy.h).
pub(super) fn memory_policy(asked: &runtime::MemoryPolicy) -> Result<MemoryPolicyPlan> {
    let modes = [
        ("MPOL_DEFAULT", 0u32),
        ("MPOL_PREFERRED", 1),
        ("MPOL_BIND", 2),
        ("MPOL_INTERLEAVE", 3),
        ("MPOL_LOCAL", 4),
        ("MPOL_PREFERRED_MANY", 5),
        ("MPOL_WEIGHTED_INTERLEAVE", 6),
    ];
    let flags = [
        ("MPOL_F_NUMA_BALANCING", 1u32 << 13),
        ("MPOL_F_RELATIVE_NODES", 1 << 14),
        ("MPOL_F_STATIC_NODES", 1 << 15),
    ];
    let mut mode = find("linux.memoryPolicy.mode", &modes, &asked.mode)?;
    for flag in &asked.flags {
        mode |= find("linux.memoryPolicy.flags", &flags, flag)?;
    }
    let nodes = if asked.nodes.is_empty() {
        Vec::new()
    } else {
        parse_list("linux.memoryPolicy.nodes", &asked.nodes)?
    };
    Ok(MemoryPolicyPlan { mode, nodes })
}

/// `0-2,5` → 0, 1, 2, 5 (cpuset(7), "List format").
fn parse_list(field: &str, text: &str) -> Result<Vec<u32>> {
    let bad = || invalid(field, format!("`{text}` is not a list such as 0-2,4"));
    let mut numbers = Vec::new();
    for part in text.split(',') {
        let (first, last) = part
            .trim()
            .split_once('-')
            .unwrap_or((part.trim(), part.trim()));
        let number = |text: &str| text.parse::<u32>().ok().filter(|number| *number < 1024);
        let (first, last) = (
            number(first).ok_or_else(bad)?,
            number(last).ok_or_else(bad)?,
        );
        if first > last {
            return Err(bad());
        }
        numbers.extend(first..=last);
    }
    numbers.sort_unstable();
    numbers.dedup();
    Ok(numbers)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_are_what_cpuset_takes() {
        assert_eq!(parse_list("x", "0-2,5").unwrap(), [0, 1, 2, 5]);
        assert_eq!(parse_list("x", "3, 3").unwrap(), [3]);
        for bad in ["", "a", "2-1", "1,", "-1", "0-", "1024", "4294967296"] {
            assert!(parse_list("x", bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn priorities_are_the_kernels_numbers() {
        let best = |priority| runtime::IoPriority {
            class: "IOPRIO_CLASS_BE".to_owned(),
            priority,
        };
        assert_eq!(io_priority(&best(4)).unwrap(), 0x4004);
        assert!(io_priority(&best(8)).is_err());
        assert!(io_priority(&best(-1)).is_err());
        let fifo = runtime::Scheduler {
            policy: "SCHED_FIFO".to_owned(),
            priority: Some(10),
            ..runtime::Scheduler::default()
        };
        assert_eq!(scheduler(&fifo).unwrap().priority, 10);
        let wrong = runtime::Scheduler {
            policy: "SCHED_OTHER".to_owned(),
            priority: Some(10),
            ..runtime::Scheduler::default()
        };
        assert!(scheduler(&wrong).is_err());
    }
}
