//! Waiting for what must come true.

use std::time::{Duration, Instant};

/// Asks `probe` again and again until it gives a value; fails the test after `deadline`.
///
/// # Panics
/// When the deadline passes, saying what was waited for.
#[expect(clippy::panic, reason = "a test's way to fail")]
pub fn eventually<T>(deadline: Duration, what: &str, probe: impl FnMut() -> Option<T>) -> T {
    wait_for(deadline, probe).unwrap_or_else(|| panic!("not within {deadline:?}: {what}"))
}

/// As [`eventually`], but gives `None` after the deadline.
pub fn wait_for<T>(deadline: Duration, mut probe: impl FnMut() -> Option<T>) -> Option<T> {
    let end = Instant::now() + deadline;
    loop {
        if let Some(value) = probe() {
            return Some(value);
        }
        if Instant::now() >= end {
            return None;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}
