//! `--change`: Dockerfile instructions that alter an image's configuration.

use std::collections::BTreeMap;

use knarr_spec::docker::Empty;
use knarr_spec::image::ExecutionConfig;

use crate::{Error, Result};

/// Applies one instruction, such as `CMD ["sh"]` or `env A=1`.
pub(crate) fn apply(config: &mut ExecutionConfig, change: &str) -> Result<()> {
    let bad = |reason: &str| Error::Change {
        change: change.to_owned(),
        reason: reason.to_owned(),
    };
    let change = change.trim();
    let (instruction, rest) = change
        .split_once(|c: char| c.is_ascii_whitespace())
        .unwrap_or((change, ""));
    let rest = rest.trim();
    if rest.is_empty() {
        return Err(bad("it has no argument"));
    }
    match instruction.to_ascii_uppercase().as_str() {
        "CMD" => config.cmd = Some(command(rest)),
        "ENTRYPOINT" => {
            config.entrypoint = Some(command(rest));
        }
        "ENV" => {
            let environment = config.env.get_or_insert_default();
            for (name, value) in pairs(rest).map_err(|reason| bad(&reason))? {
                let prefix = format!("{name}=");
                environment.retain(|known| !known.starts_with(&prefix));
                environment.push(format!("{name}={value}"));
            }
        }
        "LABEL" => {
            let labels = config.labels.get_or_insert_default();
            labels.extend(pairs(rest).map_err(|reason| bad(&reason))?);
        }
        "EXPOSE" => {
            let ports = config.exposed_ports.get_or_insert_default();
            for word in rest.split_ascii_whitespace() {
                expose(word, ports).map_err(|reason| bad(&reason))?;
            }
        }
        "USER" => config.user = rest.to_owned(),
        "VOLUME" => {
            let paths = list(rest)
                .unwrap_or_else(|| rest.split_ascii_whitespace().map(str::to_owned).collect());
            let volumes = config.volumes.get_or_insert_default();
            volumes.extend(paths.into_iter().map(|path| (path, Empty {})));
        }
        "WORKDIR" => {
            config.working_dir = if rest.starts_with('/') {
                rest.to_owned()
            } else {
                format!("{}/{rest}", config.working_dir.trim_end_matches('/'))
            };
        }
        "STOPSIGNAL" => config.stop_signal = Some(rest.to_owned()),
        "ONBUILD" => config
            .on_build
            .get_or_insert_default()
            .push(rest.to_owned()),
        other => {
            return Err(bad(&format!(
                "{other} is not one of CMD ENTRYPOINT ENV EXPOSE LABEL ONBUILD STOPSIGNAL USER \
                 VOLUME WORKDIR"
            )));
        }
    }
    Ok(())
}

/// `["a","b"]`, else a line for the shell.
fn command(text: &str) -> Vec<String> {
    list(text).unwrap_or_else(|| ["/bin/sh", "-c", text].map(str::to_owned).to_vec())
}

fn list(text: &str) -> Option<Vec<String>> {
    text.starts_with('[')
        .then(|| serde_json::from_str(text).ok())?
}

/// `80`, `80/udp`, `8000-8010/tcp`.
fn expose(word: &str, ports: &mut BTreeMap<String, Empty>) -> Result<(), String> {
    let (range, protocol) = word.split_once('/').unwrap_or((word, "tcp"));
    let protocol = protocol.to_ascii_lowercase();
    if !matches!(protocol.as_str(), "tcp" | "udp" | "sctp") {
        return Err(format!("`{protocol}` is not a protocol"));
    }
    let (first, last) = range.split_once('-').unwrap_or((range, range));
    let port = |text: &str| {
        text.parse::<u16>()
            .map_err(|_| format!("`{text}` is not a port"))
    };
    let (first, last) = (port(first)?, port(last)?);
    if first > last {
        return Err(format!("`{range}` is not a range"));
    }
    ports.extend((first..=last).map(|port| (format!("{port}/{protocol}"), Empty {})));
    Ok(())
}

/// `a=1 b="two words"`, or the old `a one word after another`.
fn pairs(text: &str) -> Result<Vec<(String, String)>, String> {
    let words = words(text)?;
    if !words.first().is_some_and(|word| word.contains('=')) {
        let (name, value) = text
            .split_once(|c: char| c.is_ascii_whitespace())
            .ok_or_else(|| format!("`{text}` is not name=value"))?;
        return Ok(vec![(name.to_owned(), value.trim().to_owned())]);
    }
    words
        .iter()
        .map(|word| match word.split_once('=') {
            Some((name, value)) if !name.is_empty() => Ok((name.to_owned(), value.to_owned())),
            _ => Err(format!("`{word}` is not name=value")),
        })
        .collect()
}

/// Splits at blanks; quotes group, a backslash takes the next character as it is.
fn words(text: &str) -> Result<Vec<String>, String> {
    let mut words = Vec::new();
    let mut word: Option<String> = None;
    let mut quote = None;
    let mut characters = text.chars();
    while let Some(character) = characters.next() {
        match (character, quote) {
            (c, Some(q)) if c == q => quote = None,
            ('\'' | '"', None) => {
                quote = Some(character);
                word.get_or_insert_default();
            }
            ('\\', q) if q != Some('\'') => {
                if let Some(next) = characters.next() {
                    word.get_or_insert_default().push(next);
                }
            }
            (c, None) if c.is_ascii_whitespace() => words.extend(word.take()),
            (c, _) => word.get_or_insert_default().push(c),
        }
    }
    if quote.is_some() {
        return Err("a quote is not closed".to_owned());
    }
    words.extend(word);
    Ok(words)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn changes_are_applied_as_a_dockerfile_would() {
        let mut config = ExecutionConfig {
            env: Some(vec!["A=0".to_owned(), "AB=0".to_owned()]),
            ..ExecutionConfig::default()
        };
        for change in [
            "CMD [\"sh\", \"-c\", \"echo\"]",
            "entrypoint exec top -b",
            "ENV A=1 B=\"two words\" C=x\\ y",
            "env D old form here",
            "LABEL a.b=\"c d\" e=",
            "EXPOSE 80 53/UDP 8000-8002",
            "USER 1000:1000",
            "VOLUME [\"/data\"]",
            "VOLUME /a /b",
            "WORKDIR /srv",
            "WORKDIR app",
            "STOPSIGNAL SIGINT",
            "ONBUILD RUN x",
        ] {
            apply(&mut config, change).unwrap();
        }
        assert_eq!(config.cmd.unwrap(), ["sh", "-c", "echo"]);
        assert_eq!(config.entrypoint.unwrap(), ["/bin/sh", "-c", "exec top -b"]);
        assert_eq!(
            config.env.unwrap(),
            ["AB=0", "A=1", "B=two words", "C=x y", "D=old form here"]
        );
        assert_eq!(config.labels.unwrap()["a.b"], "c d");
        let ports: Vec<String> = config.exposed_ports.unwrap().into_keys().collect();
        assert_eq!(
            ports,
            ["53/udp", "80/tcp", "8000/tcp", "8001/tcp", "8002/tcp"]
        );
        assert_eq!(config.user, "1000:1000");
        assert_eq!(config.volumes.unwrap().len(), 3);
        assert_eq!(config.working_dir, "/srv/app");
        assert_eq!(config.stop_signal.unwrap(), "SIGINT");
        assert_eq!(config.on_build.unwrap(), ["RUN x"]);
    }

    #[test]
    fn what_is_not_understood_is_named() {
        for (change, expected) in [
            ("RUN x", "RUN is not one of"),
            ("CMD", "no argument"),
            ("ENV A=\"x", "not closed"),
            ("ENV A", "not name=value"),
            ("EXPOSE http", "not a port"),
            ("EXPOSE 9-8", "not a range"),
            ("EXPOSE 1/icmp", "not a protocol"),
        ] {
            let error = apply(&mut ExecutionConfig::default(), change).unwrap_err();
            assert!(error.to_string().contains(expected), "{error}");
        }
    }
}
