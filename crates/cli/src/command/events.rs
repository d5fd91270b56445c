//! `events`.

use std::io::ErrorKind;

use knarr_engine::{Event, EventOptions};
use serde_json::{Map, Value};

use super::{Call, Command, USUAL, ps};
use crate::failure::{Failure, Result};
use crate::flag::Flag;
use crate::template::{Data, Template};
use crate::{format, output, time};

pub(super) static COMMAND: Command = Command {
    names: &["events", "system events"],
    usage: "[OPTIONS]",
    about: "Get real time events",
    flags: &[&[
        Flag::with(
            "filter",
            "filter",
            "Filter output based on conditions provided",
        )
        .short('f'),
        Flag::with(
            "format",
            "string",
            "Format output using a custom template:\n\
             'json':             Print in JSON format\n\
             'TEMPLATE':         Print output using the given Go template",
        ),
        Flag::with("since", "string", "Show all events created since timestamp"),
        Flag::with("until", "string", "Stream events until this timestamp"),
    ]],
    run,
    ..USUAL
};

fn run(call: &Call<'_>) -> Result<u8> {
    let line = &call.line;
    let now = time::now();
    let moment = |flag: &str| match line.text(flag) {
        "" => Ok(None),
        text => time::moment(text, now).map(Some).map_err(Failure::invalid),
    };
    let options = EventOptions {
        since: moment("since")?,
        until: moment("until")?,
        filters: ps::filters(line)?,
    };
    let template = match line.text("format") {
        "" => None,
        "json" => Some(format::template("{{json .}}")?),
        text => Some(format::template(
            &text.replace("\\t", "\t").replace("\\n", "\n"),
        )?),
    };
    let mut failure = None;
    let followed = call.engine()?.events(&options, &mut |event| {
        let text = match &template {
            None => Ok(said(event)),
            Some(template) => render(template, &json(event)),
        };
        let printed = text.and_then(|text| output::line(&text));
        printed.map_err(|told| {
            failure = Some(told);
            ErrorKind::Other.into()
        })
    });
    match failure {
        Some(failure) => Err(failure),
        None => followed.map(|()| 0).map_err(Failure::from),
    }
}

fn render(template: &Template, event: &Value) -> Result<String> {
    let data = Data {
        structs: true,
        ..Data::plain(event)
    };
    template
        .render(&data)
        .map_err(|text| format::failure(&text))
}

/// `2025-01-02T03:04:05.678901234+01:00 container start <id> (image=busybox, name=web)`.
fn said(event: &Event) -> String {
    let attributes = &event.actor.attributes;
    let mut text = format!(
        "{} {} {} {}",
        time::rfc3339_nano(event.time_nano),
        event.kind,
        event.action,
        event.actor.id
    );
    if !attributes.is_empty() {
        let pairs = attributes
            .iter()
            .map(|(key, value)| format!("{key}={value}"));
        let pairs: Vec<String> = pairs.collect();
        text.push_str(&format!(" ({})", pairs.join(", ")));
    }
    text
}

/// As the Engine API has it, with the fields of old that it still sends for containers and images.
fn json(event: &Event) -> Value {
    let mut fields = Map::new();
    if matches!(event.kind.as_str(), "container" | "image") {
        fields.insert("status".to_owned(), event.action.clone().into());
        fields.insert("id".to_owned(), event.actor.id.clone().into());
        if event.kind == "container" {
            let from = event.actor.attributes.get("image").cloned();
            fields.insert("from".to_owned(), from.unwrap_or_default().into());
        }
    }
    // Plain data always serializes.
    if let Ok(Value::Object(own)) = serde_json::to_value(event) {
        fields.extend(own);
    }
    Value::Object(fields)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_is_one_line_and_one_object() {
        let event: Event = serde_json::from_str(
            r#"{"Type":"container","Action":"start","Actor":{"ID":"abc","Attributes":{"image":"busybox","name":"web"}},"scope":"local","time":1,"timeNano":1000000002}"#,
        )
        .unwrap();
        let line = said(&event);
        assert!(
            line.ends_with(" container start abc (image=busybox, name=web)"),
            "{line}"
        );
        assert!(line.contains(":01.000000002"), "{line}");
        assert_eq!(
            json(&event).to_string(),
            r#"{"status":"start","id":"abc","from":"busybox","Type":"container","Action":"start","Actor":{"ID":"abc","Attributes":{"image":"busybox","name":"web"}},"scope":"local","time":1,"timeNano":1000000002}"#
        );
        let template =
            format::template("{{.Type}} {{.Action}} {{.Actor.ID}} {{.Actor.Attributes.name}}")
                .unwrap();
        assert_eq!(
            render(&template, &json(&event)).unwrap(),
            "container start abc web"
        );
    }
}
