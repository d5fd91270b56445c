//! Which mounts a container has: `-v`, `--mount`, `--tmpfs`, `--volumes-from` and the image's
//! volumes, in Docker's order of precedence. Pure: nothing is made here.

use std::collections::BTreeMap;

use knarr_spec::docker::{ContainerConfig, HostConfig, MountRequest};

use crate::record::{Mount, MountKind, Record};
use crate::{Error, Result};

/// A mount that is wanted, and what has to be made for it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Wanted {
    pub(crate) mount: Mount,
    /// Labels for a volume that has to be made.
    pub(crate) labels: BTreeMap<String, String>,
}

impl Wanted {
    fn new(mount: Mount) -> Self {
        Self {
            mount,
            labels: BTreeMap::new(),
        }
    }
}

/// All mounts of a container, shallow ones first. Sources of volumes are empty, and so are names of
/// anonymous ones: whoever makes the volumes fills them in. `others` are the containers that
/// `--volumes-from` names, in that order.
pub(crate) fn resolve(
    config: &ContainerConfig,
    host: &HostConfig,
    others: &[Record],
) -> Result<Vec<Wanted>> {
    let mut all: BTreeMap<String, Wanted> = BTreeMap::new();
    for (word, other) in host.volumes_from.iter().flatten().zip(others) {
        let read_only = match volumes_from(word)?.1 {
            "" | "rw" | "z" | "Z" => false,
            "ro" => true,
            mode => {
                return Err(Error::invalid(format!(
                    "invalid mode for volumes-from: {mode}"
                )));
            }
        };
        for mount in other
            .mounts
            .iter()
            .filter(|mount| mount.kind != MountKind::Tmpfs)
        {
            let mut mount = mount.clone();
            mount.read_only |= read_only;
            // It stays the other's: not copied into again, not removed with this one.
            mount.copy_up = false;
            mount.anonymous = false;
            all.insert(mount.destination.clone(), Wanted::new(mount));
        }
    }
    let mut own: BTreeMap<String, Wanted> = BTreeMap::new();
    let mut add = |wanted: Wanted| {
        let destination = wanted.mount.destination.clone();
        match own.insert(destination.clone(), wanted) {
            Some(_) => Err(Error::invalid(format!(
                "Duplicate mount point: {destination}"
            ))),
            None => Ok(()),
        }
    };
    for spec in host.binds.iter().flatten() {
        add(short(spec)?)?;
    }
    for request in host.mounts.iter().flatten() {
        add(long(request)?)?;
    }
    for (path, options) in &host.tmpfs {
        add(Wanted::new(Mount {
            kind: MountKind::Tmpfs,
            destination: destination(path, path)?,
            read_only: options.split(',').any(|option| option == "ro"),
            tmpfs: tmpfs_options(options)?,
            ..Mount::default()
        }))?;
    }
    all.append(&mut own);
    // What the image (or a `-v /path`) wants a volume for, where nothing else is mounted.
    for path in config.volumes.iter().flatten().map(|(path, _)| path) {
        let destination = destination(path, path).map_err(|_| {
            Error::invalid_hint(
                format!("invalid volume path `{path}`: it must be absolute and not `/`"),
                "the image's VOLUME asks for it; do not run this image, or have it fixed",
            )
        })?;
        all.entry(destination.clone()).or_insert_with(|| {
            Wanted::new(Mount {
                kind: MountKind::Volume,
                destination,
                copy_up: true,
                anonymous: true,
                ..Mount::default()
            })
        });
    }
    let mut mounts: Vec<_> = all.into_values().collect();
    mounts.sort_by_key(|wanted| wanted.mount.destination.matches('/').count());
    Ok(mounts)
}

/// `container[:mode]` of `--volumes-from`.
pub(crate) fn volumes_from(word: &str) -> Result<(&str, &str)> {
    let (name, mode) = word.split_once(':').unwrap_or((word, ""));
    if name.is_empty() {
        return Err(Error::invalid(format!("invalid volumes-from: {word}")));
    }
    Ok((name, mode))
}

/// `-v [source:]destination[:options]`.
fn short(spec: &str) -> Result<Wanted> {
    let invalid =
        |why: &str| Error::invalid(format!("invalid volume specification: '{spec}'{why}"));
    if spec.contains(['\0', '\n']) {
        return Err(invalid(": a path has no line breaks"));
    }
    let parts: Vec<&str> = spec.split(':').collect();
    let (source, target, mode) = match *parts.as_slice() {
        [target] => ("", target, ""),
        [source, target] if target.starts_with('/') => (source, target, ""),
        // `/path:ro`: an anonymous volume with options.
        [target, mode] if target.starts_with('/') && options(mode).is_ok() => ("", target, mode),
        [source, target] => (source, target, ""),
        [source, target, mode] => (source, target, mode),
        _ => return Err(invalid("")),
    };
    if parts.len() > 1 && source.is_empty() && !parts.first().is_some_and(|p| p.starts_with('/')) {
        return Err(invalid(""));
    }
    if clean(target) == "/" {
        return Err(invalid(": destination can't be '/'"));
    }
    let options = options(mode).map_err(|word| {
        Error::invalid(format!(
            "invalid volume specification: '{spec}': invalid mode: {word}"
        ))
    })?;
    let mut mount = Mount {
        destination: destination(target, spec)?,
        mode: mode.to_owned(),
        read_only: options.read_only,
        propagation: options.propagation,
        ..Mount::default()
    };
    if source.starts_with(['/', '.', '~']) {
        mount.kind = MountKind::Bind;
        mount.source = host_path(source)?;
        if options.no_copy {
            return Err(invalid(": invalid mode: nocopy"));
        }
        mount.make_source = true;
        return Ok(Wanted::new(mount));
    }
    mount.kind = MountKind::Volume;
    mount.copy_up = !options.no_copy;
    mount.anonymous = source.is_empty();
    if !source.is_empty() {
        crate::volume::check_name(source)?;
    }
    source.clone_into(&mut mount.name);
    if !mount.propagation.is_empty() {
        return Err(invalid(&format!(": invalid mode: {}", mount.propagation)));
    }
    Ok(Wanted::new(mount))
}

/// `--mount type=…,…`.
fn long(request: &MountRequest) -> Result<Wanted> {
    let kind = request.kind.as_str();
    let invalid =
        |why: String| Error::invalid(format!("invalid mount config for type {kind:?}: {why}"));
    if request.target.is_empty() {
        return Err(invalid("field Target must not be empty".to_owned()));
    }
    if !request.target.starts_with('/') {
        return Err(invalid(format!(
            "invalid mount path: '{}' mount path must be absolute",
            request.target
        )));
    }
    if clean(&request.target) == "/" {
        return Err(invalid(
            "invalid specification: destination can't be '/'".to_owned(),
        ));
    }
    let mut mount = Mount {
        destination: clean(&request.target),
        read_only: request.read_only,
        ..Mount::default()
    };
    let mut wanted_labels = BTreeMap::new();
    match kind {
        "bind" => {
            mount.kind = MountKind::Bind;
            if request.source.is_empty() {
                return Err(invalid("field Source must not be empty".to_owned()));
            }
            if !request.source.starts_with('/') {
                return Err(invalid(format!(
                    "invalid mount path: '{}' mount path must be absolute",
                    request.source
                )));
            }
            mount.source = host_path(&request.source)?;
            if let Some(options) = &request.bind_options {
                if !options.propagation.is_empty() && !is_propagation(&options.propagation) {
                    return Err(invalid(format!(
                        "invalid propagation mode: {}",
                        options.propagation
                    )));
                }
                mount.propagation.clone_from(&options.propagation);
                mount.non_recursive = options.non_recursive;
                mount.make_source = options.create_mountpoint;
            }
        }
        "volume" => {
            mount.kind = MountKind::Volume;
            mount.copy_up = true;
            mount.anonymous = request.source.is_empty();
            if !request.source.is_empty() {
                crate::volume::check_name(&request.source)?;
            }
            mount.name.clone_from(&request.source);
            if let Some(options) = &request.volume_options {
                mount.copy_up = !options.no_copy;
                wanted_labels.clone_from(&options.labels);
                if !options.subpath.is_empty() {
                    return Err(Error::Unsupported {
                        what: format!("volume-subpath={}", options.subpath),
                        reason: "a volume is mounted as a whole so far",
                    });
                }
            }
        }
        "tmpfs" => {
            mount.kind = MountKind::Tmpfs;
            if !request.source.is_empty() {
                return Err(invalid("field Source must not be specified".to_owned()));
            }
            let mut words = Vec::new();
            if let Some(options) = &request.tmpfs_options {
                if options.size_bytes < 0 {
                    return Err(invalid("tmpfs size cannot be negative".to_owned()));
                }
                if options.size_bytes > 0 {
                    words.push(format!("size={}", options.size_bytes));
                }
                if let Some(mode) = options.mode {
                    words.push(format!("mode={mode:o}"));
                }
            }
            if request.read_only {
                words.push("ro".to_owned());
            }
            mount.tmpfs = tmpfs_options(&words.join(","))?;
        }
        "npipe" | "cluster" | "image" => {
            return Err(Error::Unsupported {
                what: format!("--mount type={kind}"),
                reason: "there are bind, volume and tmpfs",
            });
        }
        _ => return Err(Error::invalid(format!("mount type unknown: {kind:?}"))),
    }
    Ok(Wanted {
        mount,
        labels: wanted_labels,
    })
}

struct Options {
    read_only: bool,
    no_copy: bool,
    propagation: String,
}

/// The words behind the second colon of `-v`; the wrong one is the error.
fn options(mode: &str) -> Result<Options, String> {
    let mut options = Options {
        read_only: false,
        no_copy: false,
        propagation: String::new(),
    };
    let mut seen = std::collections::BTreeSet::new();
    for word in mode.split(',').filter(|word| !word.is_empty()) {
        let group = match word {
            "ro" | "rw" => "write",
            // Labels are for SELinux; without it they mean nothing, as with Docker.
            "z" | "Z" => "label",
            "nocopy" => "copy",
            // Mac's consistency, which Docker on Linux ignores too.
            "consistent" | "cached" | "delegated" => "consistency",
            _ if is_propagation(word) => "propagation",
            _ => return Err(word.to_owned()),
        };
        if !seen.insert(group) {
            return Err(mode.to_owned());
        }
        match group {
            "write" => options.read_only = word == "ro",
            "copy" => options.no_copy = true,
            "propagation" => word.clone_into(&mut options.propagation),
            _ => {}
        }
    }
    Ok(options)
}

fn is_propagation(word: &str) -> bool {
    matches!(
        word,
        "private" | "rprivate" | "shared" | "rshared" | "slave" | "rslave"
    )
}

/// A path in the container: absolute, clean, not the root.
fn destination(path: &str, shown: &str) -> Result<String> {
    let clean = clean(path);
    if !path.starts_with('/') || clean == "/" || path.contains('\0') {
        return Err(Error::invalid(format!(
            "invalid volume specification: '{shown}': invalid mount path: '{path}' mount path must \
             be absolute"
        )));
    }
    Ok(clean)
}

/// A path on the host, absolute and clean.
fn host_path(path: &str) -> Result<String> {
    if path.starts_with('/') {
        return Ok(clean(path));
    }
    let shown = std::path::Path::new(path);
    let absolute = std::path::absolute(shown).map_err(knarr_fs::Error::of_io(
        "make absolute",
        "getcwd",
        shown,
    ))?;
    absolute
        .to_str()
        .map(clean)
        .ok_or_else(|| Error::invalid(format!("{} is not text (UTF-8)", absolute.display())))
}

/// The options of a tmpfs with Docker's defaults in front, checked.
fn tmpfs_options(options: &str) -> Result<String> {
    const FLAGS: [&str; 22] = [
        "ro",
        "rw",
        "suid",
        "nosuid",
        "dev",
        "nodev",
        "exec",
        "noexec",
        "sync",
        "async",
        "dirsync",
        "remount",
        "mand",
        "nomand",
        "atime",
        "noatime",
        "diratime",
        "nodiratime",
        "relatime",
        "norelatime",
        "strictatime",
        "nostrictatime",
    ];
    let mut words: Vec<&str> = vec!["noexec", "nosuid", "nodev"];
    for word in options.split(',').filter(|word| !word.is_empty()) {
        let known = match word.split_once('=') {
            Some((key, _)) => matches!(
                key,
                "size" | "mode" | "uid" | "gid" | "nr_inodes" | "nr_blocks" | "mpol"
            ),
            None => FLAGS.contains(&word) || is_propagation(word),
        };
        if !known || word.contains(['\n', '\0']) {
            return Err(Error::invalid(format!("Invalid tmpfs option {word:?}")));
        }
        let opposite = match word {
            "exec" => "noexec",
            "suid" => "nosuid",
            "dev" => "nodev",
            _ => "",
        };
        words.retain(|known| *known != opposite && *known != word);
        words.push(word);
    }
    Ok(words.join(","))
}

/// A path without `//`, `.` and `..`, the latter never going above the root (Go's `path.Clean` for
/// absolute paths). Symlinks are not looked at: that is done below the container's root, when the
/// mount is made.
pub(crate) fn clean(path: &str) -> String {
    let mut names: Vec<&str> = Vec::new();
    for name in path.split('/') {
        match name {
            "" | "." => {}
            ".." => {
                names.pop();
            }
            name => names.push(name),
        }
    }
    format!("/{}", names.join("/"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn resolve_json(config: &str, host: &str) -> Result<Vec<Wanted>> {
        resolve(
            &serde_json::from_str(config).unwrap(),
            &serde_json::from_str(host).unwrap(),
            &[],
        )
    }

    fn shown(wanted: &Wanted) -> String {
        let mount = &wanted.mount;
        let source = if mount.kind == MountKind::Volume {
            &mount.name
        } else {
            &mount.source
        };
        let mut text = format!("{} {source}→{}", mount.kind_name(), mount.destination);
        for (word, set) in [
            ("ro", mount.read_only),
            ("copy", mount.copy_up),
            ("anonymous", mount.anonymous),
            ("make", mount.make_source),
        ] {
            if set {
                text.push(' ');
                text.push_str(word);
            }
        }
        for word in [&mount.propagation, &mount.tmpfs] {
            if !word.is_empty() {
                text.push(' ');
                text.push_str(word);
            }
        }
        text
    }

    #[test]
    fn short_forms_mean_what_docker_means() {
        for (spec, means) in [
            ("/a:/b", "bind /a→/b make"),
            ("/a/../x//:/b/./c/", "bind /x→/b/c make"),
            ("/a:/b:ro", "bind /a→/b ro make"),
            ("/a:/b:ro,Z,rslave", "bind /a→/b ro make rslave"),
            ("data:/b", "volume data→/b copy"),
            ("data:/b:nocopy,ro", "volume data→/b ro"),
            ("/b", "volume →/b copy anonymous"),
        ] {
            assert_eq!(shown(&short(spec).unwrap()), means, "{spec}");
        }
        for (spec, message) in [
            ("/a:/", "destination can't be '/'"),
            ("/", "destination can't be '/'"),
            ("/a:b", "mount path must be absolute"),
            ("/a:/b:xx", "invalid mode: xx"),
            ("/a:/b:ro,rw", "invalid mode: ro,rw"),
            ("/a:/b:nocopy", "invalid mode: nocopy"),
            (
                "a/b:/c",
                "includes invalid characters for a local volume name",
            ),
            ("data:/b:rshared", "invalid mode: rshared"),
            (":/b", "invalid volume specification: ':/b'"),
            ("/a:/b:ro:x", "invalid volume specification"),
        ] {
            let error = short(spec).unwrap_err().to_string();
            assert!(error.contains(message), "{spec}: {error}");
        }
    }

    #[test]
    fn the_more_specific_wish_wins_and_two_are_refused() {
        let mounts = resolve_json(
            r#"{"Volumes": {"/data": {}, "/other/deep": {}}}"#,
            r#"{"Binds": ["/host:/data"], "Tmpfs": {"/run": "size=1m,exec"},
                "Mounts": [{"Type": "volume", "Source": "vol", "Target": "/v", "ReadOnly": true}]}"#,
        )
        .unwrap();
        let all: Vec<_> = mounts.iter().map(shown).collect();
        assert_eq!(
            all,
            [
                "bind /host→/data make",
                "tmpfs →/run nosuid,nodev,size=1m,exec",
                "volume vol→/v ro copy",
                "volume →/other/deep copy anonymous"
            ]
        );
        for (host, message) in [
            (
                r#"{"Binds": ["/a:/x", "/b:/x/"]}"#,
                "Duplicate mount point: /x",
            ),
            (
                r#"{"Binds": ["/a:/x"], "Tmpfs": {"/x": ""}}"#,
                "Duplicate mount point: /x",
            ),
            (
                r#"{"Tmpfs": {"/x": "what"}}"#,
                "Invalid tmpfs option \"what\"",
            ),
            (
                r#"{"Mounts": [{"Type": "bind", "Target": "/x"}]}"#,
                "Source must not be empty",
            ),
            (
                r#"{"Mounts": [{"Type": "odd", "Target": "/x"}]}"#,
                "mount type unknown",
            ),
        ] {
            let error = resolve_json("{}", host).unwrap_err().to_string();
            assert!(error.contains(message), "{host}: {error}");
        }
    }

    #[test]
    fn an_image_cannot_have_a_volume_over_the_root() {
        for path in ["/", "/..", "//", "relative", "../../etc"] {
            let config = format!(r#"{{"Volumes": {{"{path}": {{}}}}}}"#);
            assert!(resolve_json(&config, "{}").is_err(), "{path}");
        }
    }
}
