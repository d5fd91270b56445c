//! The functions of templates: Go's own and Docker's.

use std::cmp::Ordering;

use serde_json::Value;

use super::format::{kind, show, sprintf};

/// A function: its name, how many arguments it takes, and what it does.
#[derive(Debug)]
pub(super) struct Function {
    pub(super) name: &'static str,
    least: usize,
    most: usize,
    pub(super) call: fn(&[Value]) -> Result<Value, String>,
}

const ANY: usize = usize::MAX;

/// `and` and `or` are evaluated lazily and never called.
static FUNCTIONS: &[Function] = &[
    Function {
        name: "and",
        least: 1,
        most: ANY,
        call: last,
    },
    Function {
        name: "or",
        least: 1,
        most: ANY,
        call: last,
    },
    Function {
        name: "not",
        least: 1,
        most: 1,
        call: |a| Ok(Value::Bool(!truth(first(a)))),
    },
    Function {
        name: "eq",
        least: 1,
        most: ANY,
        call: equal,
    },
    Function {
        name: "ne",
        least: 2,
        most: 2,
        call: |a| Ok(Value::Bool(!same(first(a), second(a))?)),
    },
    Function {
        name: "lt",
        least: 2,
        most: 2,
        call: |a| compare(a, Ordering::is_lt),
    },
    Function {
        name: "le",
        least: 2,
        most: 2,
        call: |a| compare(a, Ordering::is_le),
    },
    Function {
        name: "gt",
        least: 2,
        most: 2,
        call: |a| compare(a, Ordering::is_gt),
    },
    Function {
        name: "ge",
        least: 2,
        most: 2,
        call: |a| compare(a, Ordering::is_ge),
    },
    Function {
        name: "index",
        least: 1,
        most: ANY,
        call: index,
    },
    Function {
        name: "slice",
        least: 1,
        most: 4,
        call: slice,
    },
    Function {
        name: "len",
        least: 1,
        most: 1,
        call: len,
    },
    Function {
        name: "print",
        least: 0,
        most: ANY,
        call: |a| Ok(Value::String(sprint(a))),
    },
    Function {
        name: "printf",
        least: 1,
        most: ANY,
        call: printf,
    },
    Function {
        name: "println",
        least: 0,
        most: ANY,
        call: println,
    },
    Function {
        name: "html",
        least: 0,
        most: ANY,
        call: html,
    },
    Function {
        name: "urlquery",
        least: 0,
        most: ANY,
        call: urlquery,
    },
    Function {
        name: "json",
        least: 1,
        most: 1,
        call: |a| Ok(Value::String(first(a).to_string())),
    },
    Function {
        name: "join",
        least: 2,
        most: 2,
        call: join,
    },
    Function {
        name: "split",
        least: 2,
        most: 2,
        call: split,
    },
    Function {
        name: "lower",
        least: 1,
        most: 1,
        call: |a| map_text(a, str::to_lowercase),
    },
    Function {
        name: "upper",
        least: 1,
        most: 1,
        call: |a| map_text(a, str::to_uppercase),
    },
    Function {
        name: "title",
        least: 1,
        most: 1,
        call: |a| map_text(a, title),
    },
    Function {
        name: "pad",
        least: 3,
        most: 3,
        call: pad,
    },
    Function {
        name: "truncate",
        least: 2,
        most: 2,
        call: truncate,
    },
];

pub(super) fn find(name: &str) -> Option<&'static Function> {
    FUNCTIONS.iter().find(|function| function.name == name)
}

impl Function {
    /// Go checks the count before it calls.
    pub(super) fn accepts(&self, count: usize) -> Result<(), String> {
        if (self.least..=self.most).contains(&count) {
            return Ok(());
        }
        let least = if self.most == ANY { "at least " } else { "" };
        Err(format!(
            "wrong number of args for {}: want {least}{} got {count}",
            self.name, self.least
        ))
    }
}

/// Whether a value counts as true: not zero, not empty, not nil.
pub(super) fn truth(value: &Value) -> bool {
    match value {
        Value::Null => false,
        Value::Bool(on) => *on,
        Value::Number(number) => number.as_f64() != Some(0.0),
        Value::String(text) => !text.is_empty(),
        Value::Array(items) => !items.is_empty(),
        Value::Object(map) => !map.is_empty(),
    }
}

fn first(args: &[Value]) -> &Value {
    args.first().unwrap_or(&Value::Null)
}

fn second(args: &[Value]) -> &Value {
    args.get(1).unwrap_or(&Value::Null)
}

fn last(args: &[Value]) -> Result<Value, String> {
    Ok(args.last().cloned().unwrap_or(Value::Null))
}

fn text<'a>(value: &'a Value, wanted: &str) -> Result<&'a str, String> {
    match value {
        Value::String(text) => Ok(text),
        other => Err(format!(
            "wrong type for value; expected {wanted}; got {}",
            kind(other)
        )),
    }
}

fn whole(value: &Value) -> Result<usize, String> {
    let number = value
        .as_i64()
        .ok_or_else(|| format!("cannot index slice/array with type {}", kind(value)))?;
    usize::try_from(number).map_err(|_| format!("index out of range: {number}"))
}

fn same(a: &Value, b: &Value) -> Result<bool, String> {
    match (a, b) {
        (Value::Number(x), Value::Number(y)) => Ok(match (x.as_i64(), y.as_i64()) {
            (Some(x), Some(y)) => x == y,
            _ => x.as_f64() == y.as_f64(),
        }),
        (Value::Null, _) | (_, Value::Null) => Ok(a == b),
        (Value::Array(_) | Value::Object(_), _) | (_, Value::Array(_) | Value::Object(_)) => {
            Err("non-comparable type".to_owned())
        }
        _ if std::mem::discriminant(a) == std::mem::discriminant(b) => Ok(a == b),
        _ => Err("incompatible types for comparison".to_owned()),
    }
}

fn equal(args: &[Value]) -> Result<Value, String> {
    let others = args.get(1..).unwrap_or_default();
    if others.is_empty() {
        return Err("missing argument for comparison".to_owned());
    }
    for other in others {
        if same(first(args), other)? {
            return Ok(Value::Bool(true));
        }
    }
    Ok(Value::Bool(false))
}

fn compare(args: &[Value], wanted: fn(Ordering) -> bool) -> Result<Value, String> {
    let ordering = match (first(args), second(args)) {
        (Value::Number(x), Value::Number(y)) => match (x.as_i64(), y.as_i64()) {
            (Some(x), Some(y)) => Some(x.cmp(&y)),
            _ => x.as_f64().partial_cmp(&y.as_f64()),
        },
        (Value::String(x), Value::String(y)) => Some(x.cmp(y)),
        (Value::Number(_) | Value::String(_), Value::Number(_) | Value::String(_)) => {
            return Err("incompatible types for comparison".to_owned());
        }
        _ => return Err("invalid type for comparison".to_owned()),
    };
    Ok(Value::Bool(ordering.is_some_and(wanted)))
}

fn index(args: &[Value]) -> Result<Value, String> {
    let mut value = first(args);
    for key in args.get(1..).unwrap_or_default() {
        value = match value {
            Value::Null => return Err("index of untyped nil".to_owned()),
            Value::Object(map) => map.get(text(key, "string")?).unwrap_or(&Value::Null),
            Value::Array(items) => {
                let at = whole(key)?;
                items
                    .get(at)
                    .ok_or_else(|| format!("index out of range: {at}"))?
            }
            Value::String(letters) => {
                let at = whole(key)?;
                let byte = letters.as_bytes().get(at);
                let byte = byte.ok_or_else(|| format!("index out of range: {at}"))?;
                return Ok(Value::from(*byte));
            }
            other => return Err(format!("can't index item of type {}", kind(other))),
        };
    }
    Ok(value.clone())
}

fn slice(args: &[Value]) -> Result<Value, String> {
    let length = match first(args) {
        Value::String(text) => text.len(),
        Value::Array(items) => items.len(),
        Value::Null => return Err("slice of untyped nil".to_owned()),
        other => return Err(format!("can't slice item of type {}", kind(other))),
    };
    let from = args.get(1).map_or(Ok(0), whole)?;
    let to = args.get(2).map_or(Ok(length), whole)?;
    for at in [from, to] {
        if at > length {
            return Err(format!("index out of range: {at}"));
        }
    }
    if from > to {
        return Err(format!("invalid slice index: {from} > {to}"));
    }
    Ok(match first(args) {
        Value::Array(items) => Value::Array(items.get(from..to).unwrap_or_default().to_vec()),
        Value::String(text) => {
            let bytes = text.as_bytes().get(from..to).unwrap_or_default();
            Value::String(String::from_utf8_lossy(bytes).into_owned())
        }
        _ => Value::Null,
    })
}

fn len(args: &[Value]) -> Result<Value, String> {
    Ok(Value::from(match first(args) {
        // A list or map that is nil has no entries.
        Value::Null => 0,
        Value::String(text) => text.len(),
        Value::Array(items) => items.len(),
        Value::Object(map) => map.len(),
        other => return Err(format!("len of type {}", kind(other))),
    }))
}

fn sprint(args: &[Value]) -> String {
    let mut out = String::new();
    let mut before_is_text = true;
    for (at, value) in args.iter().enumerate() {
        let is_text = value.is_string();
        if at > 0 && !is_text && !before_is_text {
            out.push(' ');
        }
        out.push_str(&nil_or(value));
        before_is_text = is_text;
    }
    out
}

fn nil_or(value: &Value) -> String {
    if value.is_null() {
        "<nil>".to_owned()
    } else {
        show(value)
    }
}

fn println(args: &[Value]) -> Result<Value, String> {
    let shown: Vec<String> = args.iter().map(nil_or).collect();
    Ok(Value::String(shown.join(" ") + "\n"))
}

fn printf(args: &[Value]) -> Result<Value, String> {
    let format = text(first(args), "string")?;
    let rest = args.get(1..).unwrap_or_default();
    Ok(Value::String(sprintf(format, rest)))
}

fn html(args: &[Value]) -> Result<Value, String> {
    let mut out = String::new();
    for c in sprint(args).chars() {
        match c {
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '&' => out.push_str("&amp;"),
            '"' => out.push_str("&#34;"),
            '\'' => out.push_str("&#39;"),
            c => out.push(c),
        }
    }
    Ok(Value::String(out))
}

fn urlquery(args: &[Value]) -> Result<Value, String> {
    let mut out = String::new();
    for byte in sprint(args).bytes() {
        match byte {
            b' ' => out.push('+'),
            b'-' | b'_' | b'.' | b'~' => out.push(char::from(byte)),
            byte if byte.is_ascii_alphanumeric() => out.push(char::from(byte)),
            byte => out.push_str(&format!("%{byte:02X}")),
        }
    }
    Ok(Value::String(out))
}

fn join(args: &[Value]) -> Result<Value, String> {
    let separator = text(second(args), "string")?;
    let items = match first(args) {
        Value::Array(items) => items.as_slice(),
        Value::Null => &[],
        other => {
            let kind = kind(other);
            return Err(format!(
                "wrong type for value; expected []string; got {kind}"
            ));
        }
    };
    let items: Vec<String> = items.iter().map(show).collect();
    Ok(Value::String(items.join(separator)))
}

fn split(args: &[Value]) -> Result<Value, String> {
    let (whole, separator) = (text(first(args), "string")?, text(second(args), "string")?);
    let parts: Vec<Value> = if separator.is_empty() {
        whole.chars().map(|c| Value::from(c.to_string())).collect()
    } else {
        whole.split(separator).map(Value::from).collect()
    };
    Ok(Value::Array(parts))
}

fn map_text(args: &[Value], change: impl Fn(&str) -> String) -> Result<Value, String> {
    Ok(Value::String(change(text(first(args), "string")?)))
}

/// The first letter of each word in upper case.
fn title(words: &str) -> String {
    let mut out = String::with_capacity(words.len());
    let mut inside = false;
    for c in words.chars() {
        if inside {
            out.push(c);
        } else {
            out.extend(c.to_uppercase());
        }
        inside = c.is_alphanumeric() || c == '_' || c == '\'';
    }
    out
}

fn pad(args: &[Value]) -> Result<Value, String> {
    const WIDEST: usize = 4096;
    let source = text(first(args), "string")?;
    let before = whole(second(args))?.min(WIDEST);
    let after = args.get(2).map_or(Ok(0), whole)?.min(WIDEST);
    if source.is_empty() {
        return Ok(Value::from(""));
    }
    Ok(Value::String(format!(
        "{}{source}{}",
        " ".repeat(before),
        " ".repeat(after)
    )))
}

fn truncate(args: &[Value]) -> Result<Value, String> {
    let (source, length) = (text(first(args), "string")?, whole(second(args))?);
    let bytes = source.as_bytes();
    let kept = bytes.get(..length).unwrap_or(bytes);
    Ok(Value::String(String::from_utf8_lossy(kept).into_owned()))
}
