//! `info`.

use serde_json::Value;

use super::{Call, Command, USUAL, inspect};
use crate::failure::Result;
use crate::{format, output, units};

pub(super) static COMMAND: Command = Command {
    names: &["info", "system info"],
    usage: "[OPTIONS]",
    about: "Display system-wide information",
    flags: &[&[inspect::FORMAT]],
    run,
    ..USUAL
};

fn run(call: &Call<'_>) -> Result<u8> {
    let info = call.engine()?.info()?;
    let text = match call.line.text("format") {
        "" => text(&info),
        "json" => format!("{info}\n"),
        template => {
            let template = format::template(template)?;
            inspect::render(&template, &info)? + "\n"
        }
    };
    output::print(&text)?;
    Ok(0)
}

/// Docker's lines, of what there is to say.
fn text(info: &Value) -> String {
    const LINES: &[(usize, &str, &str)] = &[
        (1, "Containers", "Containers"),
        (2, "Running", "ContainersRunning"),
        (2, "Paused", "ContainersPaused"),
        (2, "Stopped", "ContainersStopped"),
        (1, "Images", "Images"),
        (1, "Server Version", "ServerVersion"),
        (1, "Storage Driver", "Driver"),
        (1, "Logging Driver", "LoggingDriver"),
        (1, "Cgroup Driver", "CgroupDriver"),
        (1, "Cgroup Version", "CgroupVersion"),
        (1, "Security Options", "SecurityOptions"),
        (1, "Kernel Version", "KernelVersion"),
        (1, "Operating System", "OperatingSystem"),
        (1, "OSType", "OSType"),
        (1, "Architecture", "Architecture"),
        (1, "CPUs", "NCPU"),
        (1, "Total Memory", "MemTotal"),
        (1, "Name", "Name"),
        (1, "Knarr Root Dir", "DockerRootDir"),
    ];
    let mut text = format!(
        "Client:\n Version:    {}\n\nServer:\n",
        env!("CARGO_PKG_VERSION")
    );
    for (indent, title, key) in LINES {
        let Some(value) = info.get(key) else { continue };
        let indent = " ".repeat(*indent);
        let value = match value {
            Value::Array(items) => {
                text.push_str(&format!("{indent}{title}:\n"));
                for item in items.iter().filter_map(Value::as_str) {
                    let name = item.strip_prefix("name=").unwrap_or(item);
                    text.push_str(&format!("{indent} {name}\n"));
                }
                continue;
            }
            Value::Number(bytes) if *key == "MemTotal" => {
                units::binary(bytes.as_u64().unwrap_or(0))
            }
            Value::String(text) => text.clone(),
            other => other.to_string(),
        };
        text.push_str(&format!("{indent}{title}: {value}\n"));
    }
    for warning in info
        .get("Warnings")
        .and_then(Value::as_array)
        .into_iter()
        .flatten()
    {
        text.push_str(&format!(
            "\nWARNING: {}",
            warning.as_str().unwrap_or_default()
        ));
    }
    text
}
