//! YAML as the configuration files of container tools use it: mappings, sequences and scalars.
//! Anchors, aliases, tags and several documents in one file are refused by name: no such file needs
//! them, and a few bytes of aliases can stand for gigabytes.

use saphyr_parser::{Event, Parser, ScalarStyle};
use serde_json::{Map, Value};

/// How deep a file may be nested.
const DEPTH: usize = 32;

/// What a file holds; an empty one holds null.
///
/// # Errors
/// In words, with the line.
pub(crate) fn parse(text: &str) -> Result<Value, String> {
    let mut reader = Reader {
        events: Parser::new_from_str(text),
        line: 1,
    };
    loop {
        match reader.next()? {
            Event::StreamStart | Event::Nothing => {}
            Event::DocumentStart(_) => break,
            Event::StreamEnd => return Ok(Value::Null),
            _ => return Err(reader.wrong("it is no document")),
        }
    }
    let first = reader.next()?;
    let value = reader.value(first, DEPTH)?;
    match (reader.next()?, reader.next()?) {
        (Event::DocumentEnd, Event::StreamEnd) => Ok(value),
        _ => Err(reader.wrong("it has more than one document")),
    }
}

struct Reader<'t> {
    events: Parser<'t, saphyr_parser::StrInput<'t>>,
    line: usize,
}

impl<'t> Reader<'t> {
    fn next(&mut self) -> Result<Event<'t>, String> {
        match self.events.next() {
            Some(Ok((event, span))) => {
                self.line = span.start.line();
                Ok(event)
            }
            Some(Err(error)) => Err(error.to_string()),
            None => Ok(Event::StreamEnd),
        }
    }

    fn wrong(&self, what: &str) -> String {
        format!("line {}: {what}", self.line)
    }

    fn value(&mut self, event: Event<'t>, depth: usize) -> Result<Value, String> {
        if depth == 0 {
            return Err(self.wrong("it is nested too deeply"));
        }
        match event {
            Event::Scalar(text, style, 0, None) => Ok(scalar(&text, style)),
            Event::SequenceStart(0, None) => {
                let mut items = Vec::new();
                loop {
                    match self.next()? {
                        Event::SequenceEnd => return Ok(Value::Array(items)),
                        event => items.push(self.value(event, depth - 1)?),
                    }
                }
            }
            Event::MappingStart(0, None) => {
                let mut fields = Map::new();
                loop {
                    let key = match self.next()? {
                        Event::MappingEnd => return Ok(Value::Object(fields)),
                        Event::Scalar(key, _, 0, None) => key.into_owned(),
                        _ => return Err(self.wrong("a key is not a plain text")),
                    };
                    let event = self.next()?;
                    let value = self.value(event, depth - 1)?;
                    if fields.insert(key.clone(), value).is_some() {
                        return Err(self.wrong(&format!("{key} is there twice")));
                    }
                }
            }
            Event::Alias(_) => Err(self.wrong("aliases are not served")),
            Event::Scalar(..) | Event::SequenceStart(..) | Event::MappingStart(..) => {
                Err(self.wrong("anchors and tags are not served"))
            }
            _ => Err(self.wrong("a value is missing")),
        }
    }
}

/// The core schema's booleans and null; numbers stay texts, as nothing here needs them.
fn scalar(text: &str, style: ScalarStyle) -> Value {
    match (text, style) {
        ("" | "~" | "null" | "Null" | "NULL", ScalarStyle::Plain) => Value::Null,
        ("true" | "True" | "TRUE", ScalarStyle::Plain) => true.into(),
        ("false" | "False" | "FALSE", ScalarStyle::Plain) => false.into(),
        _ => text.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn what_configuration_files_use_is_read_and_the_rest_refused() {
        for (text, expected) in [
            ("", json!(null)),
            ("# nothing\n", json!(null)),
            (
                "docker:\n  reg.io:5000/a:\n    use-sigstore-attachments: true\n",
                json!({"docker": {"reg.io:5000/a": {"use-sigstore-attachments": true}}}),
            ),
            (
                "reg.io:\n  tls-verify: false\n  images:\n    busybox: []\n    redis:\n      - \"1.0\"\n      - 2.0 # two\n",
                json!({"reg.io": {"tls-verify": false, "images": {"busybox": [], "redis": ["1.0", "2.0"]}}}),
            ),
            (
                "a: {b: [x, 'true', ~]}",
                json!({"a": {"b": ["x", "true", null]}}),
            ),
        ] {
            assert_eq!(parse(text).unwrap(), expected, "{text}");
        }
        for (text, why) in [
            ("a: &x 1\nb: *x\n", "anchors"),
            ("b: !!str x\n", "tags"),
            ("a: 1\na: 2\n", "twice"),
            ("---\na: 1\n---\nb: 2\n", "more than one"),
            ("[a]: 1\n", "key"),
            ("a: [", ""),
        ] {
            let error = parse(text).unwrap_err();
            assert!(error.contains(why), "{text}: {error}");
        }
        let deep = "[".repeat(100_000);
        assert!(parse(&deep).is_err());
    }
}
