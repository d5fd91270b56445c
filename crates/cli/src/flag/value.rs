//! What the values of flags must be, with Docker's (and Go's) words for what they are not.

use crate::units;

/// Go's `strconv.ParseBool`.
pub(crate) fn parse_boolean(text: &str) -> Option<bool> {
    match text {
        "1" | "t" | "T" | "true" | "TRUE" | "True" => Some(true),
        "0" | "f" | "F" | "false" | "FALSE" | "False" => Some(false),
        _ => None,
    }
}

/// Go's `strconv.ParseInt(text, 0, 64)` for the forms people use: decimal, `0x`, `0o`, `0b`.
pub(crate) fn parse_int(text: &str) -> Option<i64> {
    let (negative, digits) = match text.as_bytes().first()? {
        b'-' => (true, text.get(1..)?),
        b'+' => (false, text.get(1..)?),
        _ => (false, text),
    };
    if digits.starts_with(['-', '+']) {
        return None;
    }
    let (radix, digits) = match digits.get(..2) {
        Some("0x" | "0X") => (16, digits.get(2..)?),
        Some("0o" | "0O") => (8, digits.get(2..)?),
        Some("0b" | "0B") => (2, digits.get(2..)?),
        _ if digits.len() > 1 && digits.starts_with('0') => (8, digits.get(1..)?),
        _ => (10, digits),
    };
    let magnitude = i128::from_str_radix(digits, radix).ok()?;
    i64::try_from(if negative { -magnitude } else { magnitude }).ok()
}

fn number_trouble(text: &str) -> &'static str {
    let digits = text.trim_start_matches(['-', '+']);
    if !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit()) {
        "value out of range"
    } else {
        "invalid syntax"
    }
}

pub(crate) fn boolean(text: &str) -> Result<(), String> {
    match parse_boolean(text) {
        Some(_) => Ok(()),
        None => Err(format!(
            "strconv.ParseBool: parsing {text:?}: invalid syntax"
        )),
    }
}

pub(crate) fn int(text: &str) -> Result<(), String> {
    match parse_int(text) {
        Some(_) => Ok(()),
        None => {
            let trouble = number_trouble(text);
            Err(format!("strconv.ParseInt: parsing {text:?}: {trouble}"))
        }
    }
}

pub(crate) fn uint16(text: &str) -> Result<(), String> {
    match parse_int(text).map(u16::try_from) {
        Some(Ok(_)) => Ok(()),
        _ => {
            let trouble = number_trouble(text);
            Err(format!("strconv.ParseUint: parsing {text:?}: {trouble}"))
        }
    }
}

/// A size such as `512m`.
pub(crate) fn bytes(text: &str) -> Result<(), String> {
    units::ram_in_bytes(text).map(|_| ())
}

/// A size, or -1 for none.
pub(crate) fn swap(text: &str) -> Result<(), String> {
    if text == "-1" { Ok(()) } else { bytes(text) }
}

/// A decimal number of CPUs.
pub(crate) fn cpus(text: &str) -> Result<(), String> {
    parse_cpus(text).map(|_| ())
}

/// Nano-CPUs out of `1.5` (or `3/2`, as Go's rational numbers may be written).
pub(crate) fn parse_cpus(text: &str) -> Result<i64, String> {
    let not_rational = || format!("failed to parse {text} as a rational number");
    let (over, under) = match text.split_once('/') {
        Some((over, under)) => (over, under.parse().map_err(|_| not_rational())?),
        None => (text, 1_i128),
    };
    if under <= 0 {
        return Err(not_rational());
    }
    let (negative, over) = match over.strip_prefix('-') {
        Some(over) => (true, over),
        None => (false, over.strip_prefix('+').unwrap_or(over)),
    };
    let (mantissa, exponent) = match over.split_once(['e', 'E']) {
        Some((mantissa, exponent)) => (mantissa, exponent.parse().map_err(|_| not_rational())?),
        None => (over, 0_i32),
    };
    let (whole, fraction) = mantissa.split_once('.').unwrap_or((mantissa, ""));
    let digits = format!("{whole}{fraction}");
    if digits.is_empty() || digits.len() > 24 || !digits.bytes().all(|b| b.is_ascii_digit()) {
        return Err(not_rational());
    }
    let mut value: i128 = digits.parse().map_err(|_| not_rational())?;
    let scale = 9 + exponent - i32::try_from(fraction.len()).unwrap_or(i32::MAX);
    let mut divisor = under;
    let power = 10_i128
        .checked_pow(scale.unsigned_abs())
        .ok_or_else(not_rational)?;
    if scale >= 0 {
        value = value.checked_mul(power).ok_or_else(not_rational)?;
    } else {
        divisor = divisor.checked_mul(power).ok_or_else(not_rational)?;
    }
    if value % divisor != 0 {
        return Err("value is too precise".to_owned());
    }
    let value = value / divisor;
    i64::try_from(if negative { -value } else { value }).map_err(|_| not_rational())
}

/// `NAME` or `NAME=value`.
pub(crate) fn environment(text: &str) -> Result<(), String> {
    match text.split_once('=').map_or(text, |(name, _)| name) {
        "" => Err(format!("invalid environment variable: {text}")),
        _ => Ok(()),
    }
}

/// `key` or `key=value`.
pub(crate) fn label(text: &str) -> Result<(), String> {
    match text.split_once('=').map_or(text, |(name, _)| name) {
        "" => Err(format!("invalid label '{text}': empty name")),
        _ => Ok(()),
    }
}

/// `key=value`.
pub(crate) fn pair(text: &str) -> Result<(), String> {
    match text.split_once('=') {
        Some(("", _)) | None => Err(format!("{text} must be formatted as key=value")),
        Some(_) => Ok(()),
    }
}

/// `stdin`, `stdout` or `stderr`, in any case.
pub(crate) fn stream(text: &str) -> Result<(), String> {
    match text.to_ascii_lowercase().as_str() {
        "stdin" | "stdout" | "stderr" => Ok(()),
        _ => Err("valid streams are STDIN, STDOUT and STDERR".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cpus_are_rationals_down_to_a_nano_cpu() {
        for (text, nano) in [
            ("1", 1_000_000_000),
            ("1.5", 1_500_000_000),
            (".5", 500_000_000),
            ("0.000000001", 1),
            ("3/2", 1_500_000_000),
            ("1e-1", 100_000_000),
            ("-1", -1_000_000_000),
        ] {
            assert_eq!(parse_cpus(text), Ok(nano), "{text}");
        }
        assert_eq!(
            parse_cpus("0.0000000001"),
            Err("value is too precise".to_owned())
        );
        for bad in ["", "x", "1.2.3", "1/0", "--1", "1e999", "."] {
            assert!(parse_cpus(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn integers_are_gos() {
        for (text, value) in [
            ("10", Some(10)),
            ("-1", Some(-1)),
            ("0x10", Some(16)),
            ("010", Some(8)),
        ] {
            assert_eq!(parse_int(text), value);
        }
        assert_eq!(
            int("99999999999999999999").unwrap_err(),
            "strconv.ParseInt: parsing \"99999999999999999999\": value out of range"
        );
        assert_eq!(
            int("1k").unwrap_err(),
            "strconv.ParseInt: parsing \"1k\": invalid syntax"
        );
    }
}
