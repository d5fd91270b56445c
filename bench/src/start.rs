//! How long people wait for a container, a command in one, a list of them.

use std::time::{Duration, Instant};

use anyhow::Result;

use crate::engine::{Engine, Engines};
use crate::sample::{Samples, print};

/// How the calls follow each other. In a tight loop a kernel with cgroup v1 stays within one
/// grace period and looks faster than it is for somebody who types a command.
#[derive(Clone, Copy)]
pub(crate) enum Pace {
    Hot,
    Cold,
}

impl Pace {
    pub(crate) const BOTH: [(Self, &'static str, usize); 2] =
        [(Self::Hot, "hot", 60), (Self::Cold, "cold", 30)];

    fn wait(self) {
        if matches!(self, Self::Cold) {
            std::thread::sleep(Duration::from_millis(300));
        }
    }
}

/// Times the same call on every engine, `rounds` times, in alternating order (ABC CBA …).
pub(crate) fn alternate(
    engines: &[Engine],
    rounds: usize,
    pace: Pace,
    call: impl Fn(&Engine) -> Result<()>,
) -> Result<Vec<(&'static str, Samples)>> {
    let mut rows: Vec<_> = engines
        .iter()
        .map(|engine| (engine.name, Samples::default()))
        .collect();
    for round in 0..rounds {
        let order: Vec<usize> = if round % 2 == 0 {
            (0..engines.len()).collect()
        } else {
            (0..engines.len()).rev().collect()
        };
        for index in order {
            if let (Some(engine), Some((_, samples))) = (engines.get(index), rows.get_mut(index)) {
                pace.wait();
                samples.time(|| call(engine))?;
            }
        }
    }
    Ok(rows)
}

/// `run --rm … true`, and the price of starting any process at all.
pub(crate) fn run(engines: &Engines) -> Result<()> {
    for (pace, name, rounds) in Pace::BOTH {
        let rows = alternate(&engines.all, rounds, pace, |engine| {
            engine.ok(&["run", "--rm", "busybox", "true"])
        })?;
        print(&format!("run --rm true, {name}"), &rows);
    }
    let mut control = Samples::default();
    for _ in 0..60 {
        control.time(|| {
            std::process::Command::new("/bin/busybox")
                .arg("true")
                .status()?;
            Ok(())
        })?;
    }
    print("control: fork and exec", &[("busybox true", control)]);
    Ok(())
}

/// `exec … true`.
pub(crate) fn exec(engines: &Engines) -> Result<()> {
    for engine in &engines.all {
        engine.ok(&["run", "-d", "--name", "exec0", "busybox", "sleep", "3600"])?;
    }
    for (pace, name, rounds) in Pace::BOTH {
        let rows = alternate(&engines.all, rounds, pace, |engine| {
            engine.ok(&["exec", "exec0", "true"])
        })?;
        print(&format!("exec true, {name}"), &rows);
    }
    engines.remove("exec", 1)
}

/// `ps` with 200 containers, a quarter of them running.
pub(crate) fn ps(engines: &Engines) -> Result<()> {
    for engine in &engines.all {
        for n in 0..200 {
            let name = format!("ps{n}");
            if n % 4 == 0 {
                engine.ok(&["run", "-d", "--name", &name, "busybox", "sleep", "3600"])?;
            } else {
                engine.ok(&["create", "--name", &name, "busybox", "true"])?;
            }
        }
    }
    let rows = alternate(&engines.all, 30, Pace::Hot, |engine| {
        engine.ok(&["ps", "-a"])
    })?;
    print("ps -a of 200", &rows);
    engines.remove("ps", 200)
}

/// Starts per second, one at a time and 32 at a time.
pub(crate) fn many(engines: &Engines) -> Result<()> {
    for (width, count) in [(1, 100), (32, 128)] {
        println!("{count} x run --rm true, {width} at a time");
        let mut base = None;
        for engine in &engines.all {
            let start = Instant::now();
            let next = std::sync::atomic::AtomicUsize::new(0);
            std::thread::scope(|scope| -> Result<()> {
                let workers: Vec<_> = (0..width)
                    .map(|_| {
                        scope.spawn(|| -> Result<()> {
                            while next.fetch_add(1, std::sync::atomic::Ordering::Relaxed) < count {
                                engine.ok(&["run", "--rm", "busybox", "true"])?;
                            }
                            Ok(())
                        })
                    })
                    .collect();
                for worker in workers {
                    worker
                        .join()
                        .map_err(|_| anyhow::anyhow!("a worker panicked"))??;
                }
                Ok(())
            })?;
            #[expect(
                clippy::cast_precision_loss,
                reason = "a count of at most a few hundred"
            )]
            let rate = count as f64 / start.elapsed().as_secs_f64();
            let base = *base.get_or_insert(rate);
            println!(
                "  {:<26} {rate:>9.1} starts/s  {:.1}x slower",
                engine.name,
                base / rate
            );
        }
    }
    Ok(())
}
