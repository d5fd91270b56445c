//! Every parser of foreign bytes, fed with what it should not have to read.
//!
//! Inputs are made from a corpus by the same mutations each time for the same seed, on stable Rust and
//! without instrumentation: `cargo x test` runs a fixed number of them, `cargo x fuzz [TARGET]
//! [SECONDS]` others for as long as it is told. An input that makes a parser panic, contradict itself
//! or take long is written to `target/fuzz`.
#![expect(clippy::panic, reason = "a target says what is wrong by failing")]

mod mutate;
mod targets;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::{Duration, Instant};

pub use mutate::Random;
pub use targets::TARGETS;

/// How long one input may take.
const SLOW: Duration = Duration::from_secs(10);

/// A parser, and how it is judged.
#[derive(Debug)]
pub struct Target {
    /// What it is called on the command line.
    pub name: &'static str,
    /// Good inputs, from which others are made.
    pub corpus: fn() -> Vec<Vec<u8>>,
    /// Words that mean something to it.
    pub words: &'static [&'static [u8]],
    /// Panics where something is wrong.
    pub run: fn(&[u8]),
}

/// An input that something is wrong with.
#[derive(Debug)]
pub struct Finding {
    /// The input.
    pub input: Vec<u8>,
    /// What was said of it.
    pub what: String,
}

/// Feeds a target until `goes_on` (told how many inputs there were) says no; gives the first finding.
pub fn fuzz(target: &Target, seed: u64, mut goes_on: impl FnMut(u64) -> bool) -> Option<Finding> {
    let corpus = (target.corpus)();
    let mut random = Random::new(seed);
    for input in &corpus {
        if let Some(what) = judge(target, input) {
            let input = input.clone();
            return Some(Finding { input, what });
        }
    }
    let mut count = 0;
    while goes_on(count) {
        let input = mutate::mutated(&corpus, target.words, &mut random);
        if let Some(what) = judge(target, &input) {
            return Some(Finding { input, what });
        }
        count += 1;
    }
    None
}

fn judge(target: &Target, input: &[u8]) -> Option<String> {
    let begun = Instant::now();
    let run = AssertUnwindSafe(|| (target.run)(input));
    if let Err(panic) = catch_unwind(run) {
        let text = panic.downcast_ref::<String>().cloned();
        let text = text.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned()));
        return Some(text.unwrap_or_default());
    }
    let took = begun.elapsed();
    (took > SLOW).then(|| format!("it took {took:?}"))
}
