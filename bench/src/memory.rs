//! What an idle container costs besides its own process.

use anyhow::{Context as _, Result};

use crate::engine::Engines;

/// Private memory (PSS) of each engine's per-container process, at 200 containers.
pub(crate) fn idle(engines: &Engines) -> Result<()> {
    const COUNT: usize = 200;
    for engine in &engines.all {
        for n in 0..COUNT {
            engine.ok(&[
                "run",
                "-d",
                "--name",
                &format!("mem{n}"),
                "busybox",
                "sleep",
                "3600",
            ])?;
        }
        let process = match engine.name {
            "knarr" => "knarr-monitor",
            "docker" => "containerd-shim",
            _ => "conmon",
        };
        let (found, pss) = pss_of(process)?;
        println!(
            "  {:<26} {found} processes `{process}`, {:>8.0} KiB PSS each",
            engine.name,
            if found == 0 {
                0.0
            } else {
                pss / f64::from(found)
            }
        );
        // One engine at a time, so that nothing is shared between their measurements.
        for n in (0..COUNT).step_by(20) {
            let names: Vec<String> = (n..n + 20).map(|n| format!("mem{n}")).collect();
            let mut args = vec!["rm", "-f"];
            args.extend(names.iter().map(String::as_str));
            engine.ok(&args)?;
        }
    }
    Ok(())
}

/// How many processes of that name there are (comm holds 15 bytes), and their PSS in KiB.
pub(crate) fn pss_of(name: &str) -> Result<(u32, f64)> {
    let comm = name.get(..15).unwrap_or(name);
    let (mut found, mut pss) = (0, 0.0);
    for entry in std::fs::read_dir("/proc")?.flatten() {
        let path = entry.path();
        if std::fs::read_to_string(path.join("comm")).is_ok_and(|text| text.trim() == comm)
            && let Ok(text) = std::fs::read_to_string(path.join("smaps_rollup"))
        {
            let kib = text
                .lines()
                .find_map(|line| line.strip_prefix("Pss:"))
                .context("no Pss")?;
            pss += kib.trim().trim_end_matches(" kB").trim().parse::<f64>()?;
            found += 1;
        }
    }
    Ok((found, pss))
}
