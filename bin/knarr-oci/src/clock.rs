//! The time of day as RFC 3339 has it, in UTC.

use std::time::{SystemTime, UNIX_EPOCH};

/// `2026-11-25T10:09:39Z`, for logs.
pub(crate) fn seconds() -> String {
    format(SystemTime::now(), false)
}

/// `2026-11-25T10:09:39.380162582Z`, for state.
pub(crate) fn nanoseconds() -> String {
    format(SystemTime::now(), true)
}

fn format(time: SystemTime, fine: bool) -> String {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    let (days, rest) = (since.as_secs() / 86_400, since.as_secs() % 86_400);
    let (year, month, day) = civil(days);
    let (hour, minute, second) = (rest / 3600, rest / 60 % 60, rest % 60);
    let date = format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}");
    if fine {
        format!("{date}.{:09}Z", since.subsec_nanos())
    } else {
        format!("{date}Z")
    }
}

/// The date of a number of days since 1970-01-01: years begin in March here, so that the leap day
/// comes last, and 400 of them have 146097 days.
fn civil(days: u64) -> (u64, u64, u64) {
    let days = days + 719_468;
    let (era, of_era) = (days / 146_097, days % 146_097);
    let year = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year + year / 4 - year / 100);
    let march = (5 * of_year + 2) / 153;
    let day = of_year - (153 * march + 2) / 5 + 1;
    let month = if march < 10 { march + 3 } else { march - 9 };
    let year = era * 400 + year + u64::from(month <= 2);
    (year, month, day)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn dates_are_the_calendars() {
        for (seconds, text) in [
            (0, "1970-01-01T00:00:00Z"),
            (951_782_399, "2000-02-28T23:59:59Z"),
            (951_782_400, "2000-02-29T00:00:00Z"),
            (1_709_251_200, "2024-03-01T00:00:00Z"),
            (1_795_601_379, "2026-11-25T10:09:39Z"),
            (4_102_444_799, "2099-12-31T23:59:59Z"),
        ] {
            assert_eq!(
                format(UNIX_EPOCH + Duration::from_secs(seconds), false),
                text
            );
        }
        let fine = UNIX_EPOCH + Duration::new(1, 5);
        assert_eq!(format(fine, true), "1970-01-01T00:00:01.000000005Z");
    }
}
