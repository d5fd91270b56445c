//! `--format` of the commands that list things: `table …`, `json`, or a Go template per row.

use knarr_diag::Class;
use serde_json::{Map, Value};

use crate::failure::{Failure, Result};
use crate::suggest;
use crate::table;
use crate::template::{Data, Template};

/// What a kind of row looks like.
pub(crate) struct Layout {
    /// Docker's default.
    pub(crate) table: &'static str,
    /// The title of each field.
    pub(crate) titles: &'static [(&'static str, &'static str)],
    /// Go's name of the row's type, for errors.
    pub(crate) kind: &'static str,
}

/// Computes `.Label "name"` and the like of one row.
pub(crate) type RowMethod<'a> = &'a dyn Fn(&Value, &str, &[Value]) -> Option<Value>;

/// A template error in Docker's words.
pub(crate) fn failure(text: &str) -> Failure {
    Failure::of(
        Class::Invalid,
        "template",
        format!("template parsing error: {text}"),
    )
    .exit(64)
}

/// Reads the template of an `inspect`; a wrong one has Docker's exit code for usage.
pub(crate) fn template(text: &str) -> Result<Template> {
    Template::parse(text).map_err(|text| failure(&text).exit(64))
}

/// Prints rows as `format` says; empty is the default table.
pub(crate) fn rows(
    layout: &Layout,
    format: &str,
    rows: &[Value],
    method: RowMethod<'_>,
) -> Result<String> {
    let (template, is_table) = match format {
        "" | "table" => (layout.table.to_owned(), true),
        "json" => ("{{json .}}".to_owned(), false),
        _ => match format.strip_prefix("table") {
            Some(custom) if custom.starts_with([' ', '\t']) => (custom.trim().to_owned(), true),
            _ => (format.trim_matches(' ').to_owned(), false),
        },
    };
    let template = template.replace("\\t", "\t").replace("\\n", "\n");
    let template = Template::parse(&template).map_err(|text| {
        let text = format!("failed to parse template: {text}");
        Failure::of(Class::Invalid, "template", text)
    })?;
    let mut text = String::new();
    if is_table {
        let titles: Map<String, Value> = layout
            .titles
            .iter()
            .map(|(field, title)| ((*field).to_owned(), Value::from(*title)))
            .collect();
        let data = Data {
            root: &Value::Object(titles),
            method: &|name, args| match (name, args) {
                ("Label", [Value::String(key)]) => Some(Value::from(title_of_label(key))),
                _ => None,
            },
            kind: Some(layout.kind),
            titles: true,
            structs: false,
        };
        text = render(layout, &template, &data)? + "\n";
    }
    for row in rows {
        let data = Data {
            root: row,
            method: &|name, args| method(row, name, args),
            kind: Some(layout.kind),
            titles: false,
            structs: false,
        };
        text.push_str(&render(layout, &template, &data)?);
        text.push('\n');
    }
    Ok(if is_table { table::align(&text) } else { text })
}

fn render(layout: &Layout, template: &Template, data: &Data<'_>) -> Result<String> {
    template.render(data).map_err(|text| {
        let wanted = text
            .split_once("can't evaluate field ")
            .and_then(|(_, rest)| rest.split_once(' '))
            .map(|(field, _)| field);
        let fields = layout.titles.iter().map(|(field, _)| *field);
        let near = wanted.and_then(|wanted| {
            let lower = wanted.to_lowercase();
            let same = fields.clone().find(|field| field.to_lowercase() == lower);
            same.or_else(|| suggest::nearest(wanted, fields))
        });
        let failure = Failure::of(
            Class::Invalid,
            "template",
            format!("failed to execute template: {text}"),
        );
        match near {
            Some(near) => failure.hint(format!("did you mean `.{near}`?")),
            None => failure,
        }
    })
}

/// `com.example.some-label` is titled `some label`.
fn title_of_label(key: &str) -> String {
    let last = key.rsplit('.').next().unwrap_or(key);
    last.replace(['-', '_'], " ")
}

/// `key=value` texts of labels, joined by commas.
pub(crate) fn labels<'a>(labels: impl IntoIterator<Item = (&'a String, &'a String)>) -> String {
    let pairs = labels
        .into_iter()
        .map(|(key, value)| format!("{key}={value}"));
    pairs.collect::<Vec<_>>().join(",")
}

/// At most `width` letters, the last an ellipsis where some are missing.
pub(crate) fn ellipsis(text: &str, width: usize) -> String {
    if text.chars().count() <= width {
        return text.to_owned();
    }
    let kept: String = text.chars().take(width.saturating_sub(1)).collect();
    format!("{kept}…")
}

/// JSON as Docker's `inspect` prints it: indented by four.
pub(crate) fn pretty(value: &Value) -> String {
    let mut out = Vec::new();
    let indent = serde_json::ser::PrettyFormatter::with_indent(b"    ");
    let mut serializer = serde_json::Serializer::with_formatter(&mut out, indent);
    // A value of JSON always serializes into memory.
    serde::Serialize::serialize(value, &mut serializer).ok();
    String::from_utf8_lossy(&out).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    static LAYOUT: Layout = Layout {
        table: "table {{.ID}}\t{{.Name}}",
        titles: &[("ID", "CONTAINER ID"), ("Name", "NAMES")],
        kind: "*formatter.ContainerContext",
    };

    fn print(format: &str) -> Result<String> {
        let layout = Layout {
            table: "{{.ID}}\t{{.Name}}",
            ..LAYOUT
        };
        let data = [
            json!({"ID": "abc", "Name": "web"}),
            json!({"ID": "def", "Name": "db"}),
        ];
        rows(&layout, format, &data, &|_, name, args| {
            (name == "Label" && !args.is_empty()).then(|| json!("value"))
        })
    }

    #[test]
    fn rows_print_as_tables_templates_and_json() {
        for (format, expected) in [
            (
                "",
                "CONTAINER ID   NAMES\nabc            web\ndef            db\n",
            ),
            (
                "table",
                "CONTAINER ID   NAMES\nabc            web\ndef            db\n",
            ),
            (
                "table {{.Name}}\\t{{upper .ID}}",
                "NAMES     CONTAINER ID\nweb       ABC\ndb        DEF\n",
            ),
            (
                "table {{.Label \"a.some-key\"}}",
                "some key\nvalue\nvalue\n",
            ),
            ("{{.Name}}", "web\ndb\n"),
            ("{{.Name}}\\t{{.ID}}", "web\tabc\ndb\tdef\n"),
            (
                "json",
                "{\"ID\":\"abc\",\"Name\":\"web\"}\n{\"ID\":\"def\",\"Name\":\"db\"}\n",
            ),
        ] {
            assert_eq!(print(format).unwrap(), expected, "{format}");
        }
    }

    #[test]
    fn a_wrong_field_is_named_and_the_right_one_suggested() {
        let failure = print("{{.id}}").unwrap_err();
        let report = failure.reports.first().unwrap();
        assert_eq!(
            report.message,
            "failed to execute template: template: :1:2: executing \"\" at <.id>: can't evaluate \
             field id in type *formatter.ContainerContext"
        );
        assert_eq!(report.hint.as_deref(), Some("did you mean `.ID`?"));
    }

    #[test]
    fn long_texts_end_in_an_ellipsis() {
        assert_eq!(ellipsis("abcdef", 6), "abcdef");
        assert_eq!(ellipsis("abcdefg", 6), "abcde…");
    }
}
