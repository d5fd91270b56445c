//! Values as Go prints them.

use serde_json::{Number, Value};

use crate::units::significant;

/// Field widths and precisions beyond this are cut, or a format could ask for all memory.
const WIDEST: usize = 4096;

/// `%v`.
pub(super) fn show(value: &Value) -> String {
    let mut out = String::new();
    write(&mut out, value, false);
    out
}

fn write(out: &mut String, value: &Value, nested: bool) {
    match value {
        Value::Null => out.push_str(if nested { "<nil>" } else { "<no value>" }),
        Value::Bool(on) => out.push_str(if *on { "true" } else { "false" }),
        Value::Number(number) => out.push_str(&show_number(number)),
        Value::String(text) => out.push_str(text),
        Value::Array(items) => {
            out.push('[');
            for (index, item) in items.iter().enumerate() {
                if index > 0 {
                    out.push(' ');
                }
                write(out, item, true);
            }
            out.push(']');
        }
        Value::Object(map) => {
            out.push_str("map[");
            let mut keys: Vec<&String> = map.keys().collect();
            keys.sort();
            for (index, key) in keys.into_iter().enumerate() {
                if index > 0 {
                    out.push(' ');
                }
                out.push_str(key);
                out.push(':');
                write(out, map.get(key).unwrap_or(&Value::Null), true);
            }
            out.push(']');
        }
    }
}

fn show_number(number: &Number) -> String {
    if number.is_i64() || number.is_u64() {
        return number.to_string();
    }
    show_float(number.as_f64().unwrap_or(0.0))
}

/// The shortest digits that read back the same, with an exponent from 1e6 on (where there are
/// that many digits before the point) and below 1e-4.
fn show_float(value: f64) -> String {
    if value == 0.0 {
        return "0".to_owned();
    }
    if (1e-4..1e6).contains(&value.abs()) {
        return format!("{value}");
    }
    let text = format!("{value:e}");
    let (mantissa, exponent) = text.split_once('e').unwrap_or((&text, "0"));
    let exponent: i32 = exponent.parse().unwrap_or(0);
    let sign = if exponent < 0 { '-' } else { '+' };
    format!("{mantissa}e{sign}{:02}", exponent.abs())
}

#[derive(Default)]
struct Directive {
    minus: bool,
    plus: bool,
    sharp: bool,
    space: bool,
    zero: bool,
    width: Option<usize>,
    precision: Option<usize>,
}

/// `fmt.Sprintf`.
pub(super) fn sprintf(format: &str, args: &[Value]) -> String {
    let mut out = String::new();
    let mut rest = format.chars().peekable();
    let mut args = args.iter();
    while let Some(c) = rest.next() {
        if c != '%' {
            out.push(c);
            continue;
        }
        let mut directive = Directive::default();
        while let Some(flag) = rest.next_if(|c| "-+# 0".contains(*c)) {
            match flag {
                '-' => directive.minus = true,
                '+' => directive.plus = true,
                '#' => directive.sharp = true,
                ' ' => directive.space = true,
                _ => directive.zero = true,
            }
        }
        let mut star = |rest: &mut std::iter::Peekable<std::str::Chars<'_>>| -> Option<usize> {
            if rest.next_if_eq(&'*').is_some() {
                let value = args.next().and_then(Value::as_u64)?;
                return usize::try_from(value).ok();
            }
            let mut digits = String::new();
            while let Some(digit) = rest.next_if(char::is_ascii_digit) {
                digits.push(digit);
            }
            digits.parse().ok()
        };
        directive.width = star(&mut rest);
        if rest.next_if_eq(&'.').is_some() {
            directive.precision = Some(star(&mut rest).unwrap_or(0));
        }
        match rest.next() {
            None => out.push_str("%!(NOVERB)"),
            Some('%') => out.push('%'),
            Some(verb) => match args.next() {
                None => out.push_str(&format!("%!{verb}(MISSING)")),
                Some(value) => out.push_str(&one(&directive, verb, value)),
            },
        }
        if out.len() > 1 << 24 {
            return out;
        }
    }
    let extra: Vec<String> = args.map(|v| format!("{}={}", kind(v), show(v))).collect();
    if !extra.is_empty() {
        out.push_str(&format!("%!(EXTRA {})", extra.join(", ")));
    }
    out
}

/// Go's name for the type, as its error texts show it.
pub(super) fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "<nil>",
        Value::Bool(_) => "bool",
        Value::Number(number) if number.is_f64() => "float64",
        Value::Number(_) => "int",
        Value::String(_) => "string",
        Value::Array(_) => "[]interface {}",
        Value::Object(_) => "map[string]interface {}",
    }
}

fn one(directive: &Directive, verb: char, value: &Value) -> String {
    let text = match (verb, value) {
        ('v' | 's', Value::Null) => if verb == 'v' { "<nil>" } else { "%!s(<nil>)" }.to_owned(),
        ('v', Value::Number(number)) => signed(directive, show_number(number)),
        ('v' | 's', Value::String(text)) => cut(text, directive.precision),
        ('v', _) | ('s', Value::Array(_) | Value::Object(_)) => show(value),
        ('q', Value::String(text)) => quote(text),
        ('q', Value::Array(items)) => {
            let quoted: Vec<String> = items.iter().map(|i| one(directive, 'q', i)).collect();
            format!("[{}]", quoted.join(" "))
        }
        ('x' | 'X', Value::String(text)) => {
            let hex: String = text.bytes().map(|byte| format!("{byte:02x}")).collect();
            if verb == 'X' { hex.to_uppercase() } else { hex }
        }
        ('t', Value::Bool(on)) => on.to_string(),
        ('T', _) => kind(value).to_owned(),
        ('d' | 'x' | 'X' | 'o' | 'b' | 'c' | 'U' | 'q', Value::Number(number)) => {
            match number.as_i64() {
                Some(number) => integer(directive, verb, number),
                None => bad(verb, value),
            }
        }
        ('f' | 'F' | 'e' | 'g', Value::Number(number)) if number.is_f64() => {
            float(directive, verb, number.as_f64().unwrap_or(0.0))
        }
        _ => bad(verb, value),
    };
    let numeric = matches!(value, Value::Number(_));
    fit(directive, text, numeric)
}

fn bad(verb: char, value: &Value) -> String {
    format!("%!{verb}({}={})", kind(value), show(value))
}

fn cut(text: &str, precision: Option<usize>) -> String {
    match precision {
        Some(precision) => text.chars().take(precision).collect(),
        None => text.to_owned(),
    }
}

fn signed(directive: &Directive, text: String) -> String {
    if text.starts_with('-') {
        text
    } else if directive.plus {
        format!("+{text}")
    } else if directive.space {
        format!(" {text}")
    } else {
        text
    }
}

fn integer(directive: &Directive, verb: char, number: i64) -> String {
    let size = number.unsigned_abs();
    let letter = u32::try_from(number)
        .ok()
        .and_then(char::from_u32)
        .unwrap_or('\u{fffd}');
    let prefix = |text| if directive.sharp { text } else { "" };
    let digits = match verb {
        'x' => format!("{}{size:x}", prefix("0x")),
        'X' => format!("{}{size:X}", prefix("0X")),
        'o' => format!("{}{size:o}", prefix("0")),
        'b' => format!("{}{size:b}", prefix("0b")),
        'c' => return letter.to_string(),
        'q' => return format!("'{letter}'"),
        'U' => return format!("U+{size:04X}"),
        _ => size.to_string(),
    };
    let text = if number < 0 {
        format!("-{digits}")
    } else {
        digits
    };
    signed(directive, text)
}

fn float(directive: &Directive, verb: char, value: f64) -> String {
    let precision = directive.precision.map(|precision| precision.min(WIDEST));
    let text = match verb {
        'g' => match precision {
            Some(precision) => significant(value, precision),
            None => show_float(value),
        },
        'e' => {
            let text = format!("{value:.*e}", precision.unwrap_or(6));
            let (mantissa, exponent) = text.split_once('e').unwrap_or((&text, "0"));
            let exponent: i32 = exponent.parse().unwrap_or(0);
            let sign = if exponent < 0 { '-' } else { '+' };
            format!("{mantissa}e{sign}{:02}", exponent.abs())
        }
        _ => format!("{value:.*}", precision.unwrap_or(6)),
    };
    signed(directive, text)
}

/// Go's `strconv.Quote` for text that is UTF-8.
fn quote(text: &str) -> String {
    let mut out = String::from("\"");
    for c in text.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\t' => out.push_str("\\t"),
            '\r' => out.push_str("\\r"),
            '\u{7}' => out.push_str("\\a"),
            '\u{8}' => out.push_str("\\b"),
            '\u{b}' => out.push_str("\\v"),
            '\u{c}' => out.push_str("\\f"),
            c if u32::from(c) < 0x20 || c == '\u{7f}' => {
                out.push_str(&format!("\\x{:02x}", u32::from(c)));
            }
            c => out.push(c),
        }
    }
    out.push('"');
    out
}

fn fit(directive: &Directive, text: String, numeric: bool) -> String {
    let width = directive.width.unwrap_or(0).min(WIDEST);
    let missing = width.saturating_sub(text.chars().count());
    if missing == 0 {
        return text;
    }
    if directive.minus {
        return format!("{text}{}", " ".repeat(missing));
    }
    if directive.zero && numeric {
        let (sign, digits) = match text.strip_prefix(['-', '+']) {
            Some(digits) => text.split_at(text.len() - digits.len()),
            None => ("", text.as_str()),
        };
        return format!("{sign}{}{digits}", "0".repeat(missing));
    }
    format!("{}{text}", " ".repeat(missing))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn formats_are_gos() {
        for (format, args, expected) in [
            ("%s", vec![json!("a")], "a"),
            ("%d", vec![json!("a")], "%!d(string=a)"),
            ("%s", vec![json!(1)], "%!s(int=1)"),
            ("%d", vec![], "%!d(MISSING)"),
            ("x", vec![json!(1)], "x%!(EXTRA int=1)"),
            ("%", vec![], "%!(NOVERB)"),
            ("%-5s|", vec![json!("ab")], "ab   |"),
            ("%5s|", vec![json!("ab")], "   ab|"),
            ("%.1s", vec![json!("ab")], "a"),
            (
                "%+d %05d %x %#x",
                vec![json!(1), json!(-42), json!(255), json!(255)],
                "+1 -0042 ff 0xff",
            ),
            ("%*d", vec![json!(4), json!(1)], "   1"),
            (
                "%.3f %e %g",
                vec![json!(1.5), json!(1.5), json!(1.5)],
                "1.500 1.500000e+00 1.5",
            ),
            (
                "%q %q",
                vec![json!("a\n\"b"), json!(["x", "y"])],
                "\"a\\n\\\"b\" [\"x\" \"y\"]",
            ),
            (
                "%v %v",
                vec![json!(null), json!({"b": null, "a": [1]})],
                "<nil> map[a:[1] b:<nil>]",
            ),
            ("%c %U", vec![json!(233), json!(233)], "é U+00E9"),
            ("%t", vec![json!(true)], "true"),
        ] {
            assert_eq!(sprintf(format, &args), expected, "{format}");
        }
        for (number, text) in [
            (json!(1e21), "1e+21"),
            (json!(123_456_789.0), "1.23456789e+08"),
            (json!(0.000_01), "1e-05"),
            (json!(1.5), "1.5"),
        ] {
            assert_eq!(show(&number), text);
        }
    }
}
