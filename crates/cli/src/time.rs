//! Moments as Docker prints and reads them.

use std::path::Path;
use std::sync::OnceLock;

use jiff::tz::TimeZone;
use jiff::{Timestamp, Zoned};

use crate::duration;

/// Nanoseconds since the epoch, now.
pub(crate) fn now() -> i64 {
    nanoseconds(Timestamp::now())
}

fn nanoseconds(time: Timestamp) -> i64 {
    i64::try_from(time.as_nanosecond()).unwrap_or(i64::MAX)
}

/// `2006-01-02 15:04:05 -0700 MST`, in the local time zone.
pub(crate) fn local(nanoseconds: i64) -> String {
    in_zone(nanoseconds, zone().clone())
}

/// The local time zone. `/etc/localtime` says all about it; only a name in `TZ` is worth reading the
/// names of all zones, which takes some milliseconds.
fn zone() -> &'static TimeZone {
    static ZONE: OnceLock<TimeZone> = OnceLock::new();
    ZONE.get_or_init(|| {
        if std::env::var_os("TZ").is_some() {
            return TimeZone::system();
        }
        // Without the file it is UTC, tzset(3).
        knarr_fs::read(Path::new("/etc/localtime"))
            .ok()
            .and_then(|file| TimeZone::tzif("", &file).ok())
            .unwrap_or(TimeZone::UTC)
    })
}

fn in_zone(nanoseconds: i64, zone: TimeZone) -> String {
    let time = Timestamp::from_nanosecond(i128::from(nanoseconds)).unwrap_or_default();
    let zoned = Zoned::new(time, zone);
    zoned.strftime("%Y-%m-%d %H:%M:%S %z %Z").to_string()
}

/// `2006-01-02T15:04:05Z07:00`, in the local time zone: Go's `time.RFC3339`.
pub(crate) fn rfc3339(nanoseconds: i64) -> String {
    in_zone_as(nanoseconds, zone().clone(), "%Y-%m-%dT%H:%M:%S")
}

/// The same with nine digits of a second.
pub(crate) fn rfc3339_nano(nanoseconds: i64) -> String {
    in_zone_as(nanoseconds, zone().clone(), "%Y-%m-%dT%H:%M:%S.%9f")
}

/// A time in a form, and its zone as RFC 3339 has it: `Z` or `+01:00`.
fn in_zone_as(nanoseconds: i64, zone: TimeZone, form: &str) -> String {
    let time = Timestamp::from_nanosecond(i128::from(nanoseconds)).unwrap_or_default();
    let zoned = Zoned::new(time, zone);
    let offset = match zoned.offset().seconds() {
        0 => "Z".to_owned(),
        _ => zoned.strftime("%:z").to_string(),
    };
    format!("{}{offset}", zoned.strftime(form))
}

/// Nanoseconds since the epoch of an RFC 3339 time.
pub(crate) fn parse_rfc3339(text: &str) -> Option<i64> {
    text.parse().ok().map(nanoseconds)
}

/// `About a minute ago`.
pub(crate) fn ago(nanoseconds: i64) -> String {
    let seconds = now().saturating_sub(nanoseconds) / 1_000_000_000;
    format!("{} ago", crate::units::span(seconds))
}

/// What `--since` and `--until` may be: a duration before now, seconds since the epoch with a
/// fraction, or a time of RFC 3339 that may lack its zone, seconds, minutes or time of day.
pub(crate) fn moment(text: &str, now: i64) -> Result<i64, String> {
    moment_in(text, now, zone())
}

fn moment_in(text: &str, now: i64, zone: &TimeZone) -> Result<i64, String> {
    if let Ok(before) = duration::parse(text) {
        return Ok(now.saturating_sub(before));
    }
    if let Some(time) = parse_rfc3339(text) {
        return Ok(time);
    }
    let wrong = || format!("failed to parse value as time or duration: {text:?}");
    if !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit() || b == b'.') {
        let (seconds, fraction) = text.split_once('.').unwrap_or((text, ""));
        let seconds: i64 = seconds.parse().map_err(|_| wrong())?;
        let nano: i64 = format!("{fraction:0<9.9}").parse().map_err(|_| wrong())?;
        return Ok(seconds.saturating_mul(1_000_000_000).saturating_add(nano));
    }
    let (text, utc) = match text.strip_suffix('Z') {
        Some(text) => (text, true),
        None => (text, false),
    };
    let full = match text.len() {
        10 => format!("{text}T00:00:00"),
        13 => format!("{text}:00:00"),
        16 => format!("{text}:00"),
        _ => text.to_owned(),
    };
    let civil: jiff::civil::DateTime = full.parse().map_err(|_| wrong())?;
    let zone = if utc { TimeZone::UTC } else { zone.clone() };
    let zoned = civil.to_zoned(zone).map_err(|_| wrong())?;
    Ok(nanoseconds(zoned.timestamp()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moments_are_durations_stamps_or_dates() {
        const SECOND: i64 = 1_000_000_000;
        let now = 1_700_000_000 * SECOND;
        for (text, expected) in [
            ("10m", now - 600 * SECOND),
            ("1136073845", 1_136_073_845 * SECOND),
            ("1136073845.5", 1_136_073_845 * SECOND + SECOND / 2),
            ("2006-01-02T15:04:05Z", 1_136_214_245 * SECOND),
            ("2006-01-02T15:04:05+01:00", 1_136_210_645 * SECOND),
            ("2006-01-02T15:04:05", 1_136_214_245 * SECOND),
            ("2006-01-02T15:04", 1_136_214_240 * SECOND),
            ("2006-01-02T15", 1_136_214_000 * SECOND),
            ("2006-01-02", 1_136_160_000 * SECOND),
            ("2006-01-02Z", 1_136_160_000 * SECOND),
        ] {
            assert_eq!(moment_in(text, now, &TimeZone::UTC), Ok(expected), "{text}");
        }
        for bad in ["", "yesterday", "2006-13-01", "1.2.3", "-"] {
            assert!(moment_in(bad, now, &TimeZone::UTC).is_err(), "{bad}");
        }
    }

    #[test]
    fn local_times_are_gos_default_layout() {
        let time = 1_136_214_245_000_000_000;
        assert_eq!(
            in_zone(time, TimeZone::UTC),
            "2006-01-02 15:04:05 +0000 UTC"
        );
        let zone = TimeZone::fixed(jiff::tz::offset(-7));
        assert!(in_zone(time, zone.clone()).starts_with("2006-01-02 08:04:05 -0700"));
        let nano = "%Y-%m-%dT%H:%M:%S.%9f";
        assert_eq!(
            in_zone_as(time + 12, zone, nano),
            "2006-01-02T08:04:05.000000012-07:00"
        );
        assert_eq!(
            in_zone_as(time, TimeZone::UTC, "%Y-%m-%dT%H:%M:%S"),
            "2006-01-02T15:04:05Z"
        );
    }
}
