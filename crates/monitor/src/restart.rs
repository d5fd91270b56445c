//! Whether and when a container is started again: Docker's restart policies, decided purely.

use std::time::Duration;

use crate::request::Restart;

/// The first wait; it doubles with every further one.
const FIRST: Duration = Duration::from_millis(100);
/// The longest wait.
const LONGEST: Duration = Duration::from_secs(60);
/// Who ran so long starts over with the shortest wait.
const SETTLED: Duration = Duration::from_secs(10);

/// Counts the failures in a row.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Backoff {
    wait: Option<Duration>,
    failures: u32,
}

/// One end of a container.
#[derive(Debug, Clone, Copy)]
pub(crate) struct End {
    pub(crate) exit_code: i32,
    pub(crate) ran: Duration,
    /// The user asked for it.
    pub(crate) wanted: bool,
}

impl Backoff {
    /// As a monitor that takes over has it: the failures count, the wait starts over.
    pub(crate) fn after(failures: u32) -> Self {
        Self {
            wait: None,
            failures,
        }
    }

    /// How long to wait before the next start; `None` is never.
    pub(crate) fn next(&mut self, policy: Restart, end: End) -> Option<Duration> {
        if end.ran >= SETTLED {
            *self = Self::default();
        }
        let again = !end.wanted
            && match policy {
                Restart::No => false,
                Restart::Always | Restart::UnlessStopped => true,
                Restart::OnFailure { max } => {
                    end.exit_code != 0 && (max == 0 || self.failures < max)
                }
            };
        if !again {
            return None;
        }
        self.failures += 1;
        let wait = self.wait.map_or(FIRST, |wait| (wait * 2).min(LONGEST));
        self.wait = Some(wait);
        Some(wait)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn end(exit_code: i32, seconds: u64, wanted: bool) -> End {
        End {
            exit_code,
            ran: Duration::from_secs(seconds),
            wanted,
        }
    }

    #[test]
    fn waits_double_up_to_a_minute_and_start_over_after_ten_seconds() {
        let mut backoff = Backoff::default();
        let waits: Vec<_> = (0..12)
            .map(|_| {
                backoff
                    .next(Restart::Always, end(0, 0, false))
                    .unwrap()
                    .as_millis()
            })
            .collect();
        assert_eq!(
            waits,
            [
                100, 200, 400, 800, 1600, 3200, 6400, 12800, 25600, 51200, 60000, 60000
            ]
        );
        let after = backoff.next(Restart::Always, end(0, 10, false)).unwrap();
        assert_eq!(after.as_millis(), 100);
    }

    #[test]
    fn policies_are_dockers() {
        let on_failure = Restart::OnFailure { max: 2 };
        for (policy, ended, expected) in [
            (Restart::No, end(1, 0, false), false),
            (Restart::Always, end(0, 0, false), true),
            (Restart::Always, end(0, 0, true), false),
            (Restart::UnlessStopped, end(137, 0, true), false),
            (on_failure, end(0, 0, false), false),
            (on_failure, end(1, 0, false), true),
            (Restart::OnFailure { max: 0 }, end(1, 0, false), true),
        ] {
            let waits = Backoff::default().next(policy, ended).is_some();
            assert_eq!(waits, expected, "{policy:?} {ended:?}");
        }
        let mut backoff = Backoff::default();
        let tries = (0..5).filter(|_| backoff.next(on_failure, end(1, 0, false)).is_some());
        assert_eq!(tries.count(), 2);
    }
}
