//! `version`.

use serde_json::{Value, json};

use super::{Call, Command, USUAL, inspect};
use crate::failure::Result;
use crate::format;
use crate::output;

pub(super) static COMMAND: Command = Command {
    names: &["version"],
    usage: "[OPTIONS]",
    about: "Show the version information",
    flags: &[&[inspect::FORMAT]],
    run,
    ..USUAL
};

/// The version of Docker's API whose words Knarr speaks.
const API: &str = "1.43";

fn client() -> Value {
    json!({
        "Version": env!("CARGO_PKG_VERSION"),
        "ApiVersion": API,
        "DefaultAPIVersion": API,
        "GitCommit": "",
        "GoVersion": "",
        "Os": "linux",
        "Arch": knarr_spec::Platform::host().architecture,
        "BuildTime": "",
        "Context": "default",
    })
}

fn run(call: &Call<'_>) -> Result<u8> {
    let format = call.line.text("format");
    // Where the engine cannot be opened, the client's half is still told.
    let (server, trouble) = match call.engine() {
        Ok(engine) => (engine.version(), None),
        Err(failure) => (Value::Null, Some(failure)),
    };
    let data = json!({"Client": client(), "Server": server});
    let text = match format {
        "" => text(&data),
        "json" => format!("{data}\n"),
        template => {
            let template = format::template(template)?;
            inspect::render(&template, &data)? + "\n"
        }
    };
    output::print(&text)?;
    trouble.map_or(Ok(0), Err)
}

fn text(data: &Value) -> String {
    let client = data.get("Client").unwrap_or(&Value::Null);
    let word = |of: &Value, key: &str| {
        of.get(key)
            .and_then(Value::as_str)
            .unwrap_or_default()
            .to_owned()
    };
    let mut text = format!(
        "Client: Knarr\n Version:           {}\n API version:       {}\n OS/Arch:           {}/{}\n",
        word(client, "Version"),
        word(client, "ApiVersion"),
        word(client, "Os"),
        word(client, "Arch"),
    );
    let server = data.get("Server").unwrap_or(&Value::Null);
    if server.is_null() {
        return text;
    }
    let platform = server
        .pointer("/Platform/Name")
        .and_then(Value::as_str)
        .unwrap_or("Knarr");
    text.push_str(&format!("\nServer: {platform}\n Engine:\n"));
    for (title, key) in [
        ("Version", "Version"),
        ("API version", "ApiVersion"),
        ("OS/Arch", ""),
        ("Kernel", "KernelVersion"),
    ] {
        let value = match key {
            "" => format!("{}/{}", word(server, "Os"), word(server, "Arch")),
            key => word(server, key),
        };
        if !value.is_empty() {
            text.push_str(&format!("  {:<17} {value}\n", format!("{title}:")));
        }
    }
    text
}
