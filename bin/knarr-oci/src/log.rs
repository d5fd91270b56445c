//! The log: lines that containerd and podman parse, or people read.

use std::fs::{File, OpenOptions};
use std::io::Write as _;
use std::path::Path;

use crate::clock;
use crate::failure::{Failure, Result};

/// Where lines go, and in which form.
#[derive(Debug, Default)]
pub(crate) struct Log {
    /// `None` is standard error.
    file: Option<File>,
    json: bool,
}

impl Log {
    /// `path` is `--log`, `format` `--log-format`.
    ///
    /// # Errors
    /// A file that cannot be opened, a format that is not known.
    pub(crate) fn open(path: Option<&str>, format: Option<&str>) -> Result<Self> {
        let json = match format {
            None | Some("" | "text") => false,
            Some("json") => true,
            Some(other) => {
                return Err(Failure::new(format!("invalid log-format: {other}")));
            }
        };
        let file = match path {
            None | Some("" | "/dev/stderr") => None,
            Some(path) => Some(
                OpenOptions::new()
                    .append(true)
                    .create(true)
                    .open(Path::new(path))
                    .map_err(|error| Failure::new(format!("open {path}: {error}")))?,
            ),
        };
        Ok(Self { file, json })
    }

    /// An error; also in plain words on standard error where the log is elsewhere.
    pub(crate) fn error(&mut self, message: &str) {
        self.write("error", message);
        if self.file.is_some() {
            eprintln!("{message}");
        }
    }

    /// What went wrong without stopping anything.
    pub(crate) fn warning(&mut self, message: &str) {
        self.write("warning", message);
    }

    fn write(&mut self, level: &str, message: &str) {
        let time = clock::seconds();
        let line = if self.json {
            let text = |text: &str| serde_json::Value::from(text).to_string();
            format!(
                "{{\"level\":{},\"msg\":{},\"time\":{}}}\n",
                text(level),
                text(message),
                text(&time)
            )
        } else {
            format!("time=\"{time}\" level={level} msg={}\n", quoted(message))
        };
        // There is nowhere left to tell that a log cannot be written.
        match &mut self.file {
            Some(file) => file.write_all(line.as_bytes()).ok(),
            None => std::io::stderr().write_all(line.as_bytes()).ok(),
        };
    }
}

/// In quotation marks, on one line whatever it contains.
fn quoted(message: &str) -> String {
    if knarr_runtime::weak::off("log") {
        return format!("\"{message}\"");
    }
    // JSON's way of quoting; logrus reads the same.
    serde_json::Value::from(message).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_byte_stays_on_one_line() {
        let all: String = (0u8..=255).map(char::from).collect();
        let path = std::env::temp_dir().join(format!("knarr-oci-log-{}", std::process::id()));
        let name = path.display().to_string();
        for format in ["json", "text"] {
            std::fs::remove_file(&path).ok();
            let mut log = Log::open(Some(&name), Some(format)).unwrap();
            log.warning(&all);
            let text = std::fs::read_to_string(&path).unwrap();
            assert_eq!(text.lines().count(), 1, "{format}: {text:?}");
            assert_eq!(
                text.bytes().filter(|byte| *byte < 0x20).count(),
                1,
                "{format}"
            );
            if format == "json" {
                let line: serde_json::Value = serde_json::from_str(&text).unwrap();
                assert_eq!(line["msg"], all.as_str());
            }
        }
        std::fs::remove_file(&path).unwrap();
    }
}
