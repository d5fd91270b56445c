//! Timings and how they are printed.

use std::time::{Duration, Instant};

use anyhow::Result;

/// The times that one engine took for one thing.
#[derive(Debug, Clone, Default)]
pub(crate) struct Samples(Vec<Duration>);

impl Samples {
    /// Times one call.
    pub(crate) fn time(&mut self, call: impl FnOnce() -> Result<()>) -> Result<()> {
        let start = Instant::now();
        call()?;
        self.0.push(start.elapsed());
        Ok(())
    }

    fn quantile(&self, part: f64) -> Duration {
        let mut sorted = self.0.clone();
        sorted.sort();
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            clippy::cast_precision_loss,
            reason = "a quantile of a few hundred samples"
        )]
        let index = ((sorted.len() as f64 - 1.0) * part).round() as usize;
        sorted.get(index).copied().unwrap_or_default()
    }

    /// Takes another's.
    pub(crate) fn extend(&mut self, other: Self) {
        self.0.extend(other.0);
    }

    /// What one of a hundred exceeds.
    pub(crate) fn tail(&self) -> Duration {
        self.quantile(0.99)
    }

    /// The middle one.
    pub(crate) fn median(&self) -> Duration {
        self.quantile(0.5)
    }
}

/// Prints a table: one line an engine, the ratio to the first.
pub(crate) fn print(title: &str, rows: &[(&str, Samples)]) {
    println!(
        "{title:<28} {:>9} {:>9} {:>9}  ratio of p50",
        "min ms", "p50 ms", "p99 ms"
    );
    let base = rows
        .first()
        .map(|(_, s)| s.median().as_secs_f64())
        .unwrap_or(1.0);
    for (name, samples) in rows {
        let ms = |d: Duration| d.as_secs_f64() * 1e3;
        println!(
            "  {name:<26} {:>9.2} {:>9.2} {:>9.2}  {:.1}x",
            ms(samples.quantile(0.0)),
            ms(samples.median()),
            ms(samples.quantile(0.99)),
            samples.median().as_secs_f64() / base
        );
    }
}
