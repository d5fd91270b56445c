//! The image's part of a configuration, merged in by Docker's rules (moby, `daemon/commit.go`,
//! `merge`).

use std::collections::BTreeMap;

use knarr_spec::docker::{ContainerConfig, Empty};
use knarr_spec::image::ExecutionConfig;

use crate::{Error, Result};

/// Labels as an image has them: shown to users and matched by their filters, and nothing else.
///
/// What Knarr does is decided by [`ContainerConfig`] and `HostConfig` fields alone; there is no
/// way from this type to any of those but the `labels` that are shown.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct ImageLabels(BTreeMap<String, String>);

impl ImageLabels {
    pub(crate) fn of(config: &ExecutionConfig) -> Self {
        Self(config.labels.clone().unwrap_or_default())
    }

    /// For display: the user's own come first.
    fn shown_below(self, users: &mut BTreeMap<String, String>) {
        for (key, value) in self.0 {
            users.entry(key).or_insert(value);
        }
    }
}

/// Fills in what the user left open. Only fields that say what runs *inside* are taken from an
/// image: nothing of it reaches the host's side.
pub(crate) fn merge(user: &mut ContainerConfig, image: &ExecutionConfig) {
    if user.user.is_empty() {
        user.user.clone_from(&image.user);
    }
    for port in image.exposed_ports.iter().flat_map(BTreeMap::keys) {
        user.exposed_ports.entry(port.clone()).or_insert(Empty {});
    }
    for entry in image.env.iter().flatten() {
        let key = env_key(entry);
        if !user.env.iter().any(|own| env_key(own) == key) {
            user.env.push(entry.clone());
        }
    }
    ImageLabels::of(image).shown_below(&mut user.labels);
    if user.entrypoint.as_ref().is_none_or(Vec::is_empty) {
        if user.cmd.as_ref().is_none_or(Vec::is_empty) {
            user.cmd.clone_from(&image.cmd);
        }
        if user.entrypoint.is_none() {
            user.entrypoint.clone_from(&image.entrypoint);
        }
    }
    if user.working_dir.is_empty() {
        user.working_dir.clone_from(&image.working_dir);
    }
    if user.stop_signal.is_none() {
        user.stop_signal.clone_from(&image.stop_signal);
    }
    if user.shell.is_none() {
        user.shell.clone_from(&image.shell);
    }
    if let Some(theirs) = &image.healthcheck {
        let ours = user.healthcheck.get_or_insert_default();
        if ours.test.is_empty() {
            ours.test.clone_from(&theirs.test);
        }
        for (ours, theirs) in [
            (&mut ours.interval, theirs.interval),
            (&mut ours.timeout, theirs.timeout),
            (&mut ours.start_period, theirs.start_period),
            (&mut ours.retries, theirs.retries),
        ] {
            if *ours == 0 {
                *ours = theirs;
            }
        }
    }
    if let Some(theirs) = image.volumes.as_ref().filter(|volumes| !volumes.is_empty()) {
        let ours = user.volumes.get_or_insert_default();
        for path in theirs.keys() {
            ours.entry(path.clone()).or_insert(Empty {});
        }
    }
}

/// What is left to decide once everything is merged.
pub(crate) fn settle(config: &mut ContainerConfig) -> Result<()> {
    if config
        .entrypoint
        .as_ref()
        .is_some_and(|words| words.iter().all(String::is_empty))
    {
        config.entrypoint = None;
    }
    let words = [&config.entrypoint, &config.cmd];
    if words.into_iter().flatten().flatten().next().is_none() {
        return Err(Error::invalid_hint(
            "no command specified",
            "say what to run behind the image's name; the image has no default",
        ));
    }
    // The engine's words are `NAME=value`; a name alone takes a variable away.
    for entry in &config.env {
        if env_key(entry).is_empty() || entry.contains('\0') {
            return Err(Error::invalid(format!(
                "invalid environment variable: {entry}"
            )));
        }
    }
    if config.working_dir.is_empty() {
        return Ok(());
    }
    if !config.working_dir.starts_with('/') {
        return Err(Error::invalid(format!(
            "the working directory '{}' is invalid, it needs to be an absolute path",
            config.working_dir
        )));
    }
    config.working_dir = crate::mounts::clean(&config.working_dir);
    Ok(())
}

fn env_key(entry: &str) -> &str {
    entry.split_once('=').map_or(entry, |(key, _)| key)
}

/// `defaults` first, replaced or (by a name without a value) taken away by `own`; what `own` adds
/// comes behind, in its order.
pub(crate) fn environment(defaults: Vec<String>, own: &[String]) -> Vec<String> {
    let mut merged = defaults;
    for entry in own {
        let key = env_key(entry);
        let place = merged.iter().position(|known| env_key(known) == key);
        match (place, entry.contains('=')) {
            (Some(place), true) => {
                if let Some(known) = merged.get_mut(place) {
                    known.clone_from(entry);
                }
            }
            (Some(place), false) => {
                merged.remove(place);
            }
            (None, true) => merged.push(entry.clone()),
            (None, false) => {}
        }
    }
    merged
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(words: &[&str]) -> Option<Vec<String>> {
        Some(words.iter().map(|&word| word.to_owned()).collect())
    }

    #[test]
    fn entrypoint_and_command_follow_dockers_rules() {
        let image = |entrypoint: Option<Vec<String>>, cmd: Option<Vec<String>>| ExecutionConfig {
            entrypoint,
            cmd,
            ..Default::default()
        };
        let full = || image(words(&["/entry"]), words(&["arg"]));
        let some = |line: &[&str]| words(line).map(|words| words.join(" "));
        for (entrypoint, cmd, image, runs) in [
            (None, None, full(), some(&["/entry", "arg"])),
            (None, words(&["own"]), full(), some(&["/entry", "own"])),
            (words(&["sh"]), None, full(), some(&["sh"])),
            (words(&["sh"]), words(&["-c"]), full(), some(&["sh", "-c"])),
            (words(&[""]), words(&["own"]), full(), some(&["own"])),
            (words(&[""]), None, full(), None),
            (None, None, image(None, None), None),
            (None, None, image(None, words(&["sh"])), some(&["sh"])),
        ] {
            let shown = format!("{entrypoint:?} {cmd:?} over {image:?}");
            let mut config = ContainerConfig {
                entrypoint,
                cmd,
                ..Default::default()
            };
            merge(&mut config, &image);
            let settled = settle(&mut config);
            let line: Vec<_> = [&config.entrypoint, &config.cmd]
                .into_iter()
                .flatten()
                .flatten()
                .cloned()
                .collect();
            match runs {
                Some(runs) => assert_eq!(line.join(" "), runs, "{shown}"),
                None => assert_eq!(
                    settled.unwrap_err().to_string(),
                    "no command specified",
                    "{shown}"
                ),
            }
        }
    }

    #[test]
    fn the_users_words_win() {
        let image: ExecutionConfig = serde_json::from_value(serde_json::json!({
            "User": "daemon", "Env": ["A=image", "B=image"], "Labels": {"x": "image", "y": "image"},
            "Volumes": {"/data": {}}, "ExposedPorts": {"80/tcp": {}}, "StopSignal": "SIGINT",
        }))
        .unwrap();
        let mut config = ContainerConfig {
            env: vec!["B=user".into()],
            labels: [("x".into(), "user".into())].into(),
            ..Default::default()
        };
        merge(&mut config, &image);
        assert_eq!(config.env, ["B=user", "A=image"]);
        assert_eq!(config.labels.get("x").unwrap(), "user");
        assert_eq!(config.labels.get("y").unwrap(), "image");
        assert_eq!(
            (config.user.as_str(), config.stop_signal.as_deref()),
            ("daemon", Some("SIGINT"))
        );
        assert!(config.volumes.unwrap().contains_key("/data"));
        let own = ["A".to_owned(), "PATH=/bin".to_owned(), "C=".to_owned()];
        assert_eq!(
            environment(vec!["PATH=/x".into(), "A=1".into()], &own),
            ["PATH=/bin", "C="]
        );
    }
}
