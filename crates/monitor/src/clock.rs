//! Wall-clock times as Docker writes them.

use std::fmt::Write as _;
use std::time::{SystemTime, UNIX_EPOCH};

/// Seconds and nanoseconds since 1970, UTC.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Timestamp {
    pub(crate) seconds: i64,
    pub(crate) nanoseconds: u32,
}

impl Timestamp {
    pub(crate) fn now() -> Self {
        // A clock before 1970 is shown as 1970.
        let since = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default();
        Self {
            seconds: i64::try_from(since.as_secs()).unwrap_or(i64::MAX),
            nanoseconds: since.subsec_nanos(),
        }
    }

    /// One nanosecond later.
    pub(crate) fn next(self) -> Self {
        if self.nanoseconds < 999_999_999 {
            Self {
                nanoseconds: self.nanoseconds + 1,
                ..self
            }
        } else {
            Self {
                seconds: self.seconds + 1,
                nanoseconds: 0,
            }
        }
    }

    pub(crate) fn as_nanoseconds(self) -> i64 {
        self.seconds
            .saturating_mul(1_000_000_000)
            .saturating_add(i64::from(self.nanoseconds))
    }
}

impl std::fmt::Display for Timestamp {
    /// Go's `time.RFC3339Nano`: trailing zeros of the fraction are left out.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write_second(f, self.seconds)?;
        write_fraction(f, self.nanoseconds)
    }
}

/// `2026-11-20T19:30:29`.
pub(crate) fn write_second(out: &mut impl std::fmt::Write, seconds: i64) -> std::fmt::Result {
    let days = seconds.div_euclid(86_400);
    let of_day = seconds.rem_euclid(86_400);
    let (year, month, day) = civil(days);
    let (hour, minute, second) = (of_day / 3600, of_day / 60 % 60, of_day % 60);
    write!(
        out,
        "{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}"
    )
}

/// `.123456789Z`, without trailing zeros; `Z` for none.
pub(crate) fn write_fraction(out: &mut impl std::fmt::Write, nanoseconds: u32) -> std::fmt::Result {
    if nanoseconds == 0 {
        return out.write_char('Z');
    }
    let (mut digits, mut rest) = (9, nanoseconds);
    while rest.is_multiple_of(10) {
        rest /= 10;
        digits -= 1;
    }
    write!(out, ".{rest:0digits$}Z")
}

/// The date of a day counted from 1970-01-01 (Howard Hinnant, "chrono-compatible low-level date
/// algorithms", `civil_from_days`).
fn civil(days: i64) -> (i64, i64, i64) {
    let shifted = days + 719_468;
    let era = shifted.div_euclid(146_097);
    let day_of_era = shifted.rem_euclid(146_097);
    let year_of_era =
        (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted_month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted_month + 2) / 5 + 1;
    let month = if shifted_month < 10 {
        shifted_month + 3
    } else {
        shifted_month - 9
    };
    let year = year_of_era + era * 400 + i64::from(month <= 2);
    (year, month, day)
}

/// The time as text, for `state.json`.
pub(crate) fn now() -> String {
    let mut text = String::with_capacity(30);
    // Writing to a string cannot fail.
    write!(text, "{}", Timestamp::now()).unwrap_or_default();
    text
}

/// When this boot began, in the same form.
pub(crate) fn boot() -> String {
    use rustix::time::{ClockId, clock_gettime};
    let now = clock_gettime(ClockId::Realtime).tv_sec;
    let seconds = now - clock_gettime(ClockId::Boottime).tv_sec;
    let mut text = String::with_capacity(30);
    write!(
        text,
        "{}",
        Timestamp {
            seconds,
            nanoseconds: 0
        }
    )
    .unwrap_or_default();
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_written_as_go_writes_them() {
        for (seconds, nanoseconds, text) in [
            (0, 0, "1970-01-01T00:00:00Z"),
            (951_782_400, 120_000_000, "2000-02-29T00:00:00.12Z"),
            (1_795_203_029, 1, "2026-11-20T19:30:29.000000001Z"),
            (4_102_444_799, 999_999_999, "2099-12-31T23:59:59.999999999Z"),
            (1_709_164_800, 500, "2024-02-29T00:00:00.0000005Z"),
        ] {
            assert_eq!(
                Timestamp {
                    seconds,
                    nanoseconds
                }
                .to_string(),
                text
            );
        }
    }
}
