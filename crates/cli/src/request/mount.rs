//! `--mount type=bind,source=/a,target=/b,readonly`: comma-separated fields, as in CSV.

use knarr_spec::docker::{BindOptions, MountRequest, TmpfsOptions, VolumeOptions};

use super::parts::absolute;
use crate::flag::value::parse_boolean;
use crate::units;

/// For the table of flags.
pub(crate) fn check(text: &str) -> Result<(), String> {
    parse(text).map(|_| ())
}

/// Reads one `--mount`, with Docker's words for what is wrong with it.
pub(crate) fn parse(text: &str) -> Result<MountRequest, String> {
    let mut mount = MountRequest {
        kind: "volume".to_owned(),
        ..MountRequest::default()
    };
    for field in fields(text)? {
        let (key, value) = match field.split_once('=') {
            Some((key, value)) => (key.to_lowercase(), Some(value)),
            None => (field.to_lowercase(), None),
        };
        let switch = matches!(
            key.as_str(),
            "readonly" | "ro" | "volume-nocopy" | "bind-nonrecursive"
        );
        let value = match value {
            Some(value) => value,
            None if switch => "true",
            None => return Err(format!("invalid field '{field}' must be a key=value pair")),
        };
        set(&mut mount, &key, value, &field)?;
    }
    finish(mount)
}

fn set(mount: &mut MountRequest, key: &str, value: &str, field: &str) -> Result<(), String> {
    let on = || parse_boolean(value).ok_or_else(|| format!("invalid value for {key}: {value}"));
    match key {
        "type" => mount.kind = value.to_lowercase(),
        "source" | "src" => mount.source = value.to_owned(),
        "target" | "dst" | "destination" => mount.target = value.to_owned(),
        "readonly" | "ro" => mount.read_only = on()?,
        "consistency" => {}
        "bind-propagation" => bind(mount).propagation = value.to_lowercase(),
        "bind-nonrecursive" => bind(mount).non_recursive = on()?,
        "bind-recursive" => match value {
            "enabled" | "writable" => {}
            "disabled" => bind(mount).non_recursive = true,
            "readonly" => {
                return Err("bind-recursive=readonly is not served by Knarr yet".to_owned());
            }
            _ => {
                return Err(format!(
                    "invalid value for {key}: {value} (must be \"enabled\", \"disabled\", \
                     \"writable\", or \"readonly\")"
                ));
            }
        },
        "bind-create-src" => bind(mount).create_mountpoint = on()?,
        "volume-nocopy" => volume(mount).no_copy = on()?,
        "volume-subpath" => volume(mount).subpath = value.to_owned(),
        "volume-label" => {
            let (name, text) = value.split_once('=').unwrap_or((value, ""));
            volume(mount)
                .labels
                .insert(name.to_owned(), text.to_owned());
        }
        "volume-driver" if value == "local" => {}
        "volume-driver" | "volume-opt" | "image-subpath" => {
            return Err(format!("{key} is not served by Knarr yet"));
        }
        "tmpfs-size" => {
            tmpfs(mount).size_bytes = units::ram_in_bytes(value)
                .map_err(|_| format!("invalid value for {key}: {value}"))?;
        }
        "tmpfs-mode" => {
            let mode = u32::from_str_radix(value, 8);
            let mode = mode.map_err(|_| format!("invalid value for {key}: {value}"))?;
            tmpfs(mount).mode = Some(mode);
        }
        _ => return Err(format!("unexpected key '{key}' in '{field}'")),
    }
    Ok(())
}

fn bind(mount: &mut MountRequest) -> &mut BindOptions {
    mount.bind_options.get_or_insert_default()
}

fn volume(mount: &mut MountRequest) -> &mut VolumeOptions {
    mount.volume_options.get_or_insert_default()
}

fn tmpfs(mount: &mut MountRequest) -> &mut TmpfsOptions {
    mount.tmpfs_options.get_or_insert_default()
}

fn finish(mut mount: MountRequest) -> Result<MountRequest, String> {
    let kind = mount.kind.clone();
    let mixed = |options| format!("cannot mix '{options}' options with mount type '{kind}'");
    if mount.kind.is_empty() {
        return Err("type is required".to_owned());
    }
    if mount.target.is_empty() {
        return Err("target is required".to_owned());
    }
    if mount.bind_options.is_some() && kind != "bind" {
        return Err(mixed("bind-*"));
    }
    if mount.volume_options.is_some() && kind != "volume" {
        return Err(mixed("volume-*"));
    }
    if mount.tmpfs_options.is_some() && kind != "tmpfs" {
        return Err(mixed("tmpfs-*"));
    }
    match kind.as_str() {
        "bind" if mount.source.starts_with('.') => mount.source = absolute(&mount.source)?,
        "bind" | "volume" | "tmpfs" => {}
        "npipe" | "cluster" | "image" => {
            return Err(format!("mount type {kind} is not served by Knarr yet"));
        }
        _ => return Err(format!("mount type unknown: {kind:?}")),
    }
    Ok(mount)
}

/// One record of CSV: a field in double quotes may hold commas, and quotes doubled.
fn fields(text: &str) -> Result<Vec<String>, String> {
    let mut fields = vec![String::new()];
    let mut letters = text.trim().chars().peekable();
    let mut quoted = false;
    while let Some(c) = letters.next() {
        let Some(field) = fields.last_mut() else {
            break;
        };
        match c {
            '"' if quoted && letters.next_if_eq(&'"').is_some() => field.push('"'),
            '"' if quoted => quoted = false,
            '"' if field.is_empty() => quoted = true,
            '"' => return Err("parse error on line 1: bare \" in non-quoted field".to_owned()),
            ',' if !quoted => fields.push(String::new()),
            c => field.push(c),
        }
    }
    match (quoted, fields.len()) {
        (true, _) => {
            Err("parse error on line 1: extraneous or missing \" in quoted field".to_owned())
        }
        (false, 1) if text.is_empty() => Err("value is empty".to_owned()),
        _ => Ok(fields),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn json(text: &str) -> String {
        serde_json::to_string(&parse(text).unwrap()).unwrap()
    }

    #[test]
    fn mounts_become_dockers_json() {
        for (text, expected) in [
            (
                "type=bind,source=/a,target=/b,readonly",
                r#"{"Type":"bind","Source":"/a","Target":"/b","ReadOnly":true}"#,
            ),
            (
                "type=bind,src=/a,dst=/b,ro=false,bind-propagation=rslave",
                r#"{"Type":"bind","Source":"/a","Target":"/b","BindOptions":{"Propagation":"rslave"}}"#,
            ),
            (
                "src=data,destination=/d",
                r#"{"Type":"volume","Source":"data","Target":"/d"}"#,
            ),
            (
                "target=/d,volume-nocopy,volume-label=a=b",
                r#"{"Type":"volume","Target":"/d","VolumeOptions":{"NoCopy":true,"Labels":{"a":"b"}}}"#,
            ),
            (
                "type=tmpfs,target=/t,tmpfs-size=64m,tmpfs-mode=1770",
                r#"{"Type":"tmpfs","Target":"/t","TmpfsOptions":{"SizeBytes":67108864,"Mode":1016}}"#,
            ),
            (
                r#"type=bind,"source=/a,b",target=/b"#,
                r#"{"Type":"bind","Source":"/a,b","Target":"/b"}"#,
            ),
        ] {
            assert_eq!(json(text), expected, "{text}");
        }
    }

    #[test]
    fn wrong_mounts_are_refused_in_dockers_words() {
        for (text, error) in [
            ("x", "invalid field 'x' must be a key=value pair"),
            ("", "value is empty"),
            ("type=bind", "target is required"),
            ("type=,target=/x", "type is required"),
            ("type=foo,target=/x", "mount type unknown: \"foo\""),
            ("target=/x,foo=bar", "unexpected key 'foo' in 'foo=bar'"),
            (
                "target=/x,readonly=maybe",
                "invalid value for readonly: maybe",
            ),
            (
                "type=bind,source=/a,target=/x,volume-nocopy=true",
                "cannot mix 'volume-*' options with mount type 'bind'",
            ),
            (
                "type=tmpfs,target=/x,tmpfs-size=z",
                "invalid value for tmpfs-size: z",
            ),
            (
                "type=image,target=/x",
                "mount type image is not served by Knarr yet",
            ),
            (
                "\"a",
                "parse error on line 1: extraneous or missing \" in quoted field",
            ),
        ] {
            assert_eq!(parse(text), Err(error.to_owned()), "{text}");
        }
    }
}
