//! Limits as control files and their values, for v1 and v2. Pure.

use crate::layout::Layout;
use crate::plan::{Limits, Warning};
use crate::{Error, Result};

/// What Docker says where a wish that can be lived without is dropped.
pub(crate) mod warning {
    use super::Warning;

    pub(crate) const SWAP: Warning = Warning(
        "Your kernel does not support swap limit capabilities or the cgroup is not mounted. \
         Memory limited without swap.",
    );
    pub(crate) const RESERVATION: Warning = Warning(
        "Your kernel does not support memory soft limit capabilities or the cgroup is not \
         mounted. Limitation discarded.",
    );
    pub(crate) const SWAPPINESS: Warning = Warning(
        "Your kernel does not support memory swappiness capabilities or the cgroup is not \
         mounted. Memory swappiness discarded.",
    );
    pub(crate) const OOM_KILL: Warning =
        Warning("Your kernel does not support OomKillDisable. OomKillDisable discarded.");
    pub(crate) const SHARES: Warning = Warning(
        "Your kernel does not support CPU shares or the cgroup is not mounted. Shares discarded.",
    );
    pub(crate) const WEIGHT: Warning = Warning(
        "Your kernel does not support Block I/O weight or the cgroup is not mounted. Weight \
         discarded.",
    );
}

/// One value for one control file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Setting {
    /// Whose hierarchy it is in.
    pub(crate) controller: &'static str,
    /// In the v2 hierarchy, or in the v1 hierarchy of the controller.
    pub(crate) unified: bool,
    /// File names and values, of which the first that exists is written.
    pub(crate) choices: Vec<(String, String)>,
    /// If none exists: drop it with this sentence, or fail.
    pub(crate) soft: Option<Warning>,
}

/// A controller for the limit `wanted`: on v2 (`true`) or v1.
pub(crate) fn place(
    layout: &Layout,
    controller: &'static str,
    wanted: &'static str,
) -> Result<bool> {
    if layout.legacy_with(controller).is_some() {
        return Ok(false);
    }
    let on_v2 = v2_name(controller);
    if layout
        .unified
        .as_ref()
        .is_some_and(|unified| unified.has(on_v2))
    {
        return Ok(true);
    }
    Err(Error::MissingController {
        wanted,
        controller: if layout.legacy.is_empty() {
            on_v2
        } else {
            controller
        },
        available: layout.controllers(),
    })
}

/// What v2 calls a controller of v1.
pub(crate) fn v2_name(controller: &'static str) -> &'static str {
    match controller {
        "blkio" => "io",
        other => other,
    }
}

/// All settings, in the order in which they must be written to a fresh cgroup.
///
/// # Errors
/// [`Error::MissingController`], [`Error::Invalid`] for a combination that v2 cannot say.
pub(crate) fn settings(limits: &Limits, layout: &Layout) -> Result<Vec<Setting>> {
    let mut all = Vec::new();
    let mut add = |controller, unified, file: &str, value: String| {
        all.push(Setting {
            controller,
            unified,
            choices: vec![(file.to_owned(), value)],
            soft: None,
        });
    };

    if let Some(list) = &limits.cpuset_mems {
        let unified = place(layout, "cpuset", "list of memory nodes")?;
        add("cpuset", unified, "cpuset.mems", list.clone());
    }
    if let Some(list) = &limits.cpuset_cpus {
        let unified = place(layout, "cpuset", "list of CPUs")?;
        add("cpuset", unified, "cpuset.cpus", list.clone());
    }

    if let Some(bytes) = limits.memory {
        let unified = place(layout, "memory", "memory limit")?;
        let file = if unified {
            "memory.max"
        } else {
            "memory.limit_in_bytes"
        };
        add("memory", unified, file, amount(bytes, unified));
    }
    if let Some(bytes) = limits.memory_swap {
        if place(layout, "memory", "swap limit")? {
            add(
                "memory",
                true,
                "memory.swap.max",
                swap_alone(bytes, limits.memory)?,
            );
        } else {
            add(
                "memory",
                false,
                "memory.memsw.limit_in_bytes",
                amount(bytes, false),
            );
        }
    }
    if let Some(bytes) = limits.memory_reservation {
        let unified = place(layout, "memory", "memory reservation")?;
        let file = if unified {
            "memory.low"
        } else {
            "memory.soft_limit_in_bytes"
        };
        add("memory", unified, file, amount(bytes, unified));
    }
    if let Some(percent) = limits.swappiness {
        let unified = place(layout, "memory", "swappiness")?;
        add("memory", unified, "memory.swappiness", percent.to_string());
    }
    if let Some(disable) = limits.disable_oom_killer {
        // Only v1 has it; v2 needs to be told nothing when it is off.
        let unified = place(layout, "memory", "setting of the OOM killer")?;
        if disable || !unified {
            add(
                "memory",
                unified,
                "memory.oom_control",
                u8::from(disable).to_string(),
            );
        }
    }

    if let Some(shares) = limits.cpu_shares {
        if place(layout, "cpu", "CPU weight")? {
            add(
                "cpu",
                true,
                "cpu.weight",
                weight_of_shares(shares).to_string(),
            );
        } else {
            add("cpu", false, "cpu.shares", shares.to_string());
        }
    }
    if limits.cpu_quota.is_some() || limits.cpu_period.is_some() {
        if place(layout, "cpu", "CPU quota")? {
            let quota = match limits.cpu_quota {
                Some(quota) if quota > 0 => quota.to_string(),
                _ => "max".to_owned(),
            };
            let value = match limits.cpu_period {
                Some(period) => format!("{quota} {period}"),
                None => quota,
            };
            add("cpu", true, "cpu.max", value);
        } else {
            if let Some(period) = limits.cpu_period {
                add("cpu", false, "cpu.cfs_period_us", period.to_string());
            }
            if let Some(quota) = limits.cpu_quota {
                let quota = if quota > 0 { quota } else { -1 };
                add("cpu", false, "cpu.cfs_quota_us", quota.to_string());
            }
        }
    }
    if let Some(burst) = limits.cpu_burst {
        let unified = place(layout, "cpu", "CPU burst")?;
        let file = if unified {
            "cpu.max.burst"
        } else {
            "cpu.cfs_burst_us"
        };
        add("cpu", unified, file, burst.to_string());
    }
    if let Some(idle) = limits.cpu_idle {
        let unified = place(layout, "cpu", "CPU idle setting")?;
        add("cpu", unified, "cpu.idle", idle.to_string());
    }

    if let Some(count) = limits.pids {
        let unified = place(layout, "pids", "limit of processes")?;
        let value = if count > 0 {
            count.to_string()
        } else {
            "max".to_owned()
        };
        add("pids", unified, "pids.max", value);
    }

    if let Some(weight) = limits.block_weight {
        let unified = place(layout, "blkio", "block I/O weight")?;
        let same = weight.to_string();
        let choices = if unified {
            let spread = 1 + (u64::from(weight).saturating_sub(10)) * 9999 / 990;
            vec![
                ("io.bfq.weight".to_owned(), same),
                ("io.weight".to_owned(), spread.to_string()),
            ]
        } else {
            vec![
                ("blkio.bfq.weight".to_owned(), same.clone()),
                ("blkio.weight".to_owned(), same),
            ]
        };
        let controller = "blkio";
        all.push(Setting {
            controller,
            unified,
            choices,
            soft: Some(warning::WEIGHT),
        });
    }

    for (file, value) in &limits.unified {
        if layout.unified.is_none() {
            return Err(Error::Invalid {
                what: format!("unified setting {file}"),
                reason: "needs cgroup v2, which is not mounted",
            });
        }
        all.push(Setting {
            controller: "unified",
            unified: true,
            choices: vec![(file.clone(), value.clone())],
            soft: None,
        });
    }
    Ok(all)
}

/// Bytes, or the word for no limit.
fn amount(bytes: i64, unified: bool) -> String {
    match (bytes, unified) {
        (..0, true) => "max".to_owned(),
        (..0, false) => "-1".to_owned(),
        _ => bytes.to_string(),
    }
}

/// v2 counts swap without memory.
fn swap_alone(swap: i64, memory: Option<i64>) -> Result<String> {
    match memory {
        _ if swap < 0 => Ok("max".to_owned()),
        Some(memory) if memory >= 0 => Ok(swap.saturating_sub(memory).max(0).to_string()),
        _ => Err(Error::Invalid {
            what: format!("memory+swap limit {swap}"),
            reason: "needs a memory limit beside it",
        }),
    }
}

/// v1's shares (2 to 262144, normal 1024) as v2's weight (1 to 10000, normal 100): the curve through
/// these three points that runc and crun use since 2025.
fn weight_of_shares(shares: u64) -> u64 {
    if shares <= 2 {
        return 1;
    }
    if shares >= 262_144 {
        return 10_000;
    }
    let log = (shares as f64).log2();
    let exponent = (log * log + 125.0 * log) / 612.0 - 7.0 / 34.0;
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "between 1 and 10000 for shares between 2 and 2^18"
    )]
    let weight = 10f64.powf(exponent).ceil() as u64;
    weight
}

#[cfg(test)]
mod tests {
    use super::*;

    const V1: &str = "\
1 0 0:1 / /c/memory rw - cgroup cgroup rw,memory
1 0 0:2 / /c/cpu rw - cgroup cgroup rw,cpu
1 0 0:3 / /c/cpuset rw - cgroup cgroup rw,cpuset
1 0 0:4 / /c/pids rw - cgroup cgroup rw,pids
1 0 0:5 / /c/blkio rw - cgroup cgroup rw,blkio
";
    const OWN: &str = "5:memory:/me\n4:cpu:/\n3:cpuset:/\n2:pids:/\n1:blkio:/\n0::/\n";

    fn v1() -> Layout {
        Layout::parse(V1, OWN).unwrap()
    }

    fn v2(controllers: &[&str]) -> Layout {
        let mut layout = Layout::parse("1 0 0:1 / /c rw - cgroup2 none rw\n", "0::/\n").unwrap();
        layout.unified.as_mut().unwrap().controllers =
            controllers.iter().map(|name| (*name).to_owned()).collect();
        layout
    }

    fn text(limits: &Limits, layout: &Layout) -> Vec<String> {
        settings(limits, layout)
            .unwrap()
            .into_iter()
            .map(|setting| {
                let (file, value) = &setting.choices[0];
                format!("{file} = {value}")
            })
            .collect()
    }

    fn everything() -> Limits {
        Limits {
            memory: Some(1 << 28),
            memory_swap: Some(3 << 27),
            memory_reservation: Some(1 << 27),
            swappiness: None,
            disable_oom_killer: Some(false),
            cpu_shares: Some(1024),
            cpu_quota: Some(50_000),
            cpu_period: Some(100_000),
            cpu_burst: Some(1000),
            cpu_idle: None,
            cpuset_cpus: Some("0-1".to_owned()),
            cpuset_mems: Some("0".to_owned()),
            pids: Some(64),
            block_weight: Some(500),
            unified: Default::default(),
        }
    }

    #[test]
    fn limits_become_files_of_v1() {
        assert_eq!(
            text(&everything(), &v1()),
            [
                "cpuset.mems = 0",
                "cpuset.cpus = 0-1",
                "memory.limit_in_bytes = 268435456",
                "memory.memsw.limit_in_bytes = 402653184",
                "memory.soft_limit_in_bytes = 134217728",
                "memory.oom_control = 0",
                "cpu.shares = 1024",
                "cpu.cfs_period_us = 100000",
                "cpu.cfs_quota_us = 50000",
                "cpu.cfs_burst_us = 1000",
                "pids.max = 64",
                "blkio.bfq.weight = 500",
            ]
        );
    }

    #[test]
    fn limits_become_files_of_v2() {
        let layout = v2(&["memory", "cpu", "cpuset", "pids", "io"]);
        assert_eq!(
            text(&everything(), &layout),
            [
                "cpuset.mems = 0",
                "cpuset.cpus = 0-1",
                "memory.max = 268435456",
                "memory.swap.max = 134217728",
                "memory.low = 134217728",
                "cpu.weight = 100",
                "cpu.max = 50000 100000",
                "cpu.max.burst = 1000",
                "pids.max = 64",
                "io.bfq.weight = 500",
            ]
        );
        let unlimited = Limits {
            memory: Some(-1),
            memory_swap: Some(-1),
            cpu_quota: Some(-1),
            pids: Some(0),
            ..Limits::default()
        };
        assert_eq!(
            text(&unlimited, &layout),
            [
                "memory.max = max",
                "memory.swap.max = max",
                "cpu.max = max",
                "pids.max = max"
            ]
        );
    }

    #[test]
    fn a_missing_controller_is_named_with_what_is_there() {
        use knarr_diag::Explain as _;
        let limits = Limits {
            cpuset_cpus: Some("0".to_owned()),
            ..Limits::default()
        };
        let error = settings(&limits, &v2(&["memory", "pids"])).unwrap_err();
        assert_eq!(
            error.to_string(),
            "the list of CPUs needs the cgroup controller `cpuset`, which is not available"
        );
        assert!(
            error
                .hint()
                .unwrap()
                .ends_with("available are: memory, pids")
        );
    }

    #[test]
    fn swap_without_memory_cannot_be_said_on_v2() {
        let limits = Limits {
            memory_swap: Some(5),
            ..Limits::default()
        };
        assert!(settings(&limits, &v2(&["memory"])).is_err());
        assert!(settings(&limits, &v1()).is_ok());
    }

    #[test]
    fn shares_become_weights_along_the_common_curve() {
        for (shares, weight) in [
            (2, 1),
            (1024, 100),
            (262_144, 10_000),
            (512, 59),
            (2048, 174),
        ] {
            assert_eq!(weight_of_shares(shares), weight, "{shares}");
        }
    }
}
