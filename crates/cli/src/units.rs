//! Sizes and spans as Docker prints and reads them (docker/go-units).

/// `{:.{precision}g}` of C and Go: significant digits, no trailing zeros, an exponent when large.
pub(crate) fn significant(value: f64, precision: usize) -> String {
    let precision = precision.max(1);
    if value == 0.0 {
        return "0".to_owned();
    }
    let scientific = format!("{value:.*e}", precision - 1);
    let (mantissa, exponent) = scientific.split_once('e').unwrap_or((&scientific, "0"));
    let exponent: i32 = exponent.parse().unwrap_or(0);
    let negative = mantissa.starts_with('-');
    let digits: String = mantissa.chars().filter(char::is_ascii_digit).collect();
    let digits = digits.trim_end_matches('0');
    let count = i32::try_from(digits.len()).unwrap_or(i32::MAX);
    let mut limit = i32::try_from(precision).unwrap_or(i32::MAX);
    if limit > count && count > exponent {
        limit = count;
    }
    let text = if exponent < -4 || exponent >= limit {
        let (first, rest) = digits.split_at(1.min(digits.len()));
        let point = if rest.is_empty() { "" } else { "." };
        let sign = if exponent < 0 { '-' } else { '+' };
        format!("{first}{point}{rest}e{sign}{:02}", exponent.abs())
    } else {
        let decimals = usize::try_from((count - exponent - 1).max(0)).unwrap_or(0);
        format!("{:.decimals$}", value.abs())
    };
    if negative { format!("-{text}") } else { text }
}

fn scaled(size: f64, base: f64, units: &[&str], precision: usize) -> String {
    let mut size = size;
    let mut unit = 0;
    while size >= base && unit < units.len() - 1 {
        size /= base;
        unit += 1;
    }
    let unit = units.get(unit).copied().unwrap_or_default();
    format!("{}{unit}", significant(size, precision))
}

/// Bytes in powers of 1000, as image and container sizes are shown: `72.8MB`.
pub(crate) fn decimal(bytes: u64, precision: usize) -> String {
    const UNITS: &[&str] = &["B", "kB", "MB", "GB", "TB", "PB", "EB", "ZB", "YB"];
    scaled(lossy(bytes), 1000.0, UNITS, precision)
}

/// Bytes in powers of 1024, as memory is shown: `3.5MiB`.
pub(crate) fn binary(bytes: u64) -> String {
    const UNITS: &[&str] = &["B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB", "ZiB", "YiB"];
    scaled(lossy(bytes), 1024.0, UNITS, 4)
}

/// For display only: 53 bits are more than four digits need.
#[expect(clippy::cast_precision_loss, reason = "shown with at most four digits")]
pub(crate) fn lossy(count: u64) -> f64 {
    count as f64
}

/// Reads `512m`, `1.5g`, `64KiB`, `10b` or a bare number of bytes; units are powers of 1024.
pub(crate) fn ram_in_bytes(text: &str) -> Result<i64, String> {
    let invalid = || format!("invalid size: '{text}'");
    let split = text
        .rfind(|c: char| c.is_ascii_digit() || c == '.' || c == ' ')
        .ok_or_else(invalid)?;
    let (number, suffix) = text.split_at(split + 1);
    let number = number.strip_suffix(' ').unwrap_or(number);
    let plain = |b: u8| b.is_ascii_digit() || matches!(b, b'.' | b'-' | b'+' | b'e' | b'E');
    let size: f64 = match number.parse() {
        Ok(size) if number.bytes().all(plain) => size,
        _ => return Err(invalid()),
    };
    if size < 0.0 || !size.is_finite() {
        return Err(invalid());
    }
    let lower = suffix.to_ascii_lowercase();
    let power = match lower.as_str() {
        "" | "b" => 0,
        other => {
            let unit = other.strip_suffix('b').unwrap_or(other);
            let unit = match unit.strip_suffix('i') {
                Some(unit) if other.ends_with('b') => unit,
                _ => unit,
            };
            match unit {
                "k" => 1,
                "m" => 2,
                "g" => 3,
                "t" => 4,
                "p" => 5,
                _ => return Err(format!("invalid suffix: '{suffix}'")),
            }
        }
    };
    let bytes = size * 1024_f64.powi(power);
    if bytes >= 9.2e18 {
        return Err(invalid());
    }
    #[expect(
        clippy::cast_possible_truncation,
        reason = "within range, fractions of a byte go"
    )]
    let bytes = bytes as i64;
    Ok(bytes)
}

/// A span in words: `Less than a second`, `About a minute`, `3 weeks`.
pub(crate) fn span(seconds: i64) -> String {
    let minutes = seconds / 60;
    let hours = (seconds + 1800) / 3600;
    match () {
        () if seconds < 1 => "Less than a second".to_owned(),
        () if seconds == 1 => "1 second".to_owned(),
        () if seconds < 60 => format!("{seconds} seconds"),
        () if minutes == 1 => "About a minute".to_owned(),
        () if minutes < 60 => format!("{minutes} minutes"),
        () if hours == 1 => "About an hour".to_owned(),
        () if hours < 48 => format!("{hours} hours"),
        () if hours < 24 * 7 * 2 => format!("{} days", hours / 24),
        () if hours < 24 * 30 * 2 => format!("{} weeks", hours / 24 / 7),
        () if hours < 24 * 365 * 2 => format!("{} months", hours / 24 / 30),
        () => format!("{} years", seconds / 3600 / 24 / 365),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_printed_with_gos_digits() {
        for (bytes, three, four) in [
            (0, "0B", "0B"),
            (999, "999B", "999B"),
            (1000, "1kB", "1kB"),
            (1234, "1.23kB", "1.234kB"),
            (72_800_000, "72.8MB", "72.8MB"),
            (999_600_000, "1e+03MB", "999.6MB"),
            (1_000_000_000, "1GB", "1GB"),
            (123_456_789_012, "123GB", "123.5GB"),
        ] {
            assert_eq!(decimal(bytes, 3), three);
            assert_eq!(decimal(bytes, 4), four);
        }
        for (bytes, text) in [
            (1024, "1KiB"),
            (3_670_016, "3.5MiB"),
            (1_048_575, "1024KiB"),
            (16_777_216_000, "15.62GiB"),
        ] {
            assert_eq!(binary(bytes), text);
        }
    }

    #[test]
    fn significant_digits_are_cs() {
        for (value, precision, text) in [
            (0.000_01, 3, "1e-05"),
            (0.000_1, 3, "0.0001"),
            (12345.0, 3, "1.23e+04"),
            (-1.5, 3, "-1.5"),
            (100.0, 3, "100"),
        ] {
            assert_eq!(significant(value, precision), text);
        }
    }

    #[test]
    fn sizes_are_read_as_docker_reads_them() {
        for (text, bytes) in [
            ("32", 32),
            ("32b", 32),
            ("32B", 32),
            ("32k", 32 << 10),
            ("32KB", 32 << 10),
            ("32KiB", 32 << 10),
            ("1.5g", 3 << 29),
            ("32 mb", 32 << 20),
            ("2T", 2 << 40),
        ] {
            assert_eq!(ram_in_bytes(text), Ok(bytes), "{text}");
        }
        for (text, error) in [
            ("", "invalid size: ''"),
            ("x", "invalid size: 'x'"),
            ("-1", "invalid size: '-1'"),
            ("hello", "invalid size: 'hello'"),
            ("32bm", "invalid suffix: 'bm'"),
            ("32mbb", "invalid suffix: 'mbb'"),
            ("32 x", "invalid suffix: 'x'"),
            ("1e99g", "invalid size: '1e99g'"),
        ] {
            assert_eq!(ram_in_bytes(text), Err(error.to_owned()), "{text}");
        }
    }

    #[test]
    fn spans_are_dockers_phrases() {
        const HOUR: i64 = 3600;
        for (seconds, text) in [
            (-5, "Less than a second"),
            (0, "Less than a second"),
            (1, "1 second"),
            (59, "59 seconds"),
            (60, "About a minute"),
            (119, "About a minute"),
            (120, "2 minutes"),
            (59 * 60 + 59, "59 minutes"),
            (HOUR, "About an hour"),
            (HOUR + 1799, "About an hour"),
            (HOUR + 1800, "2 hours"),
            (47 * HOUR, "47 hours"),
            (48 * HOUR, "2 days"),
            (13 * 24 * HOUR, "13 days"),
            (14 * 24 * HOUR, "2 weeks"),
            (60 * 24 * HOUR, "2 months"),
            (2 * 365 * 24 * HOUR, "2 years"),
        ] {
            assert_eq!(span(seconds), text);
        }
    }
}
