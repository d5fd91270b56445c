//! One mount of the config → [`MountPlan`].

use knarr_spec::runtime;

use super::{
    Attribute, CgroupView, Idmap, MountChange, MountKind, MountPlan, Propagation, SuperOption,
    UserNamespace, ranges,
};
use crate::{Error, Result};

/// What one option of mount(8) means.
enum Meaning {
    Set(Attribute),
    Clear(Attribute),
    Propagation(Propagation),
    Super(SuperOption),
    Bind,
    /// The default, or without effect in Linux.
    Nothing,
}

/// The options that the kernel itself knows, without the `r` that makes them recursive.
fn meaning(option: &str) -> Option<Meaning> {
    use Attribute::{
        Noatime, Nodev, Nodiratime, Noexec, Nosuid, Nosymfollow, Relatime, Ro, Strictatime,
    };
    Some(match option {
        "defaults" | "async" | "nomand" | "loud" | "noiversion" | "nolazytime" => Meaning::Nothing,
        "sync" => Meaning::Super(SuperOption::Sync),
        "dirsync" => Meaning::Super(SuperOption::Dirsync),
        "lazytime" => Meaning::Super(SuperOption::Lazytime),
        "mand" => Meaning::Super(SuperOption::Mand),
        "iversion" => Meaning::Super(SuperOption::Iversion),
        "silent" => Meaning::Super(SuperOption::Silent),
        "ro" => Meaning::Set(Ro),
        "rw" => Meaning::Clear(Ro),
        "nosuid" => Meaning::Set(Nosuid),
        "suid" => Meaning::Clear(Nosuid),
        "nodev" => Meaning::Set(Nodev),
        "dev" => Meaning::Clear(Nodev),
        "noexec" => Meaning::Set(Noexec),
        "exec" => Meaning::Clear(Noexec),
        "noatime" => Meaning::Set(Noatime),
        "atime" => Meaning::Clear(Noatime),
        "relatime" => Meaning::Set(Relatime),
        "norelatime" => Meaning::Clear(Relatime),
        "strictatime" => Meaning::Set(Strictatime),
        "nostrictatime" => Meaning::Clear(Strictatime),
        "nodiratime" => Meaning::Set(Nodiratime),
        "diratime" => Meaning::Clear(Nodiratime),
        "nosymfollow" => Meaning::Set(Nosymfollow),
        "symfollow" => Meaning::Clear(Nosymfollow),
        "private" => Meaning::Propagation(Propagation::Private),
        "slave" => Meaning::Propagation(Propagation::Slave),
        "shared" => Meaning::Propagation(Propagation::Shared),
        "unbindable" => Meaning::Propagation(Propagation::Unbindable),
        "bind" => Meaning::Bind,
        _ => return None,
    })
}

/// Plans `mount`, the `index`th of the config.
///
/// `maps` are the container's own, for an id-mapped mount without maps.
pub(super) fn plan(
    mount: &runtime::Mount,
    index: usize,
    view: &CgroupView,
    maps: Option<&UserNamespace>,
) -> Result<MountPlan> {
    let field = |name: &str| format!("mounts[{index}].{name}");
    let invalid = |name: &str, reason: String| Error::Config {
        field: field(name),
        reason,
    };
    let unsupported = |name: &str, what: String| Error::Unsupported {
        field: field(name),
        what,
    };
    if !mount.destination.starts_with('/') {
        let reason = format!("`{}` is not an absolute path", mount.destination);
        return Err(invalid("destination", reason));
    }
    if mount
        .destination
        .split('/')
        .all(|part| part.is_empty() || part == ".")
    {
        return Err(unsupported(
            "destination",
            "a mount over the root".to_owned(),
        ));
    }
    let mut planned = MountPlan {
        destination: mount.destination.clone(),
        kind: MountKind::Cgroup {
            view: CgroupView::Unified,
        },
        change: MountChange::default(),
        change_recursive: MountChange::default(),
        propagation: None,
        propagation_recursive: None,
        idmap: None,
    };
    let mut super_options = Vec::new();
    let mut idmap: Option<bool> = None;
    let (mut bind, mut recursive, mut copy_up) =
        (mount.kind.as_deref() == Some("bind"), false, false);
    let mut remount = false;
    let mut data: Vec<&str> = Vec::new();
    for option in &mount.options {
        // `relatime` and `rw` begin with an r of their own.
        let (found, deep) = match meaning(option) {
            Some(found) => (Some(found), false),
            None => (option.strip_prefix('r').and_then(meaning), true),
        };
        let change = if deep {
            &mut planned.change_recursive
        } else {
            &mut planned.change
        };
        match found {
            Some(Meaning::Set(attribute)) => {
                change.clear.retain(|&old| old != attribute);
                change.set.push(attribute);
            }
            Some(Meaning::Clear(attribute)) => {
                change.set.retain(|&old| old != attribute);
                change.clear.push(attribute);
            }
            Some(Meaning::Propagation(propagation)) if deep => {
                planned.propagation_recursive = Some(propagation);
            }
            Some(Meaning::Propagation(propagation)) => planned.propagation = Some(propagation),
            Some(Meaning::Bind) => {
                bind = true;
                recursive |= deep;
            }
            // The kernel's words have no recursive form.
            Some(Meaning::Super(_) | Meaning::Nothing) if deep => data.push(option),
            Some(Meaning::Super(word)) => super_options.push(word),
            Some(Meaning::Nothing) => {}
            None => match option.as_str() {
                "tmpcopyup" => copy_up = true,
                "idmap" => idmap = Some(false),
                "ridmap" => idmap = Some(true),
                "remount" => remount = true,
                _ => data.push(option),
            },
        }
    }
    for change in [&mut planned.change, &mut planned.change_recursive] {
        for list in [&mut change.set, &mut change.clear] {
            list.sort_unstable();
            list.dedup();
        }
    }
    let has_maps = !mount.uid_mappings.is_empty() || !mount.gid_mappings.is_empty();
    if idmap.is_some() || has_maps {
        planned.idmap = Some(idmap_of(
            mount,
            idmap.unwrap_or(false),
            bind,
            maps,
            &invalid,
        )?);
    }
    if remount {
        let deep = !planned.change_recursive.is_empty() || recursive;
        if deep || copy_up || planned.idmap.is_some() || (bind && !data.is_empty()) {
            let reason = "`remount` changes a mount that is there, and only that one".to_owned();
            return Err(invalid("options", reason));
        }
        planned.kind = MountKind::Remount {
            bind,
            data: data.join(","),
            super_options,
        };
        return Ok(planned);
    }
    planned.kind = if bind {
        if let Some(word) = super_options.first() {
            let reason =
                format!("{word:?} is of the file system, which a bind mount cannot change");
            return Err(invalid("options", reason));
        }
        if let Some(option) = data.first() {
            return Err(invalid(
                "options",
                format!("`{option}` is not an option of a bind mount"),
            ));
        }
        match mount.source.as_deref() {
            Some(source) if source.starts_with('/') => MountKind::Bind {
                source: source.to_owned(),
                recursive,
            },
            Some(source) => {
                return Err(invalid(
                    "source",
                    format!("`{source}` is not an absolute path"),
                ));
            }
            None => return Err(invalid("source", "a bind mount needs one".to_owned())),
        }
    } else {
        match mount.kind.as_deref() {
            None | Some("") => {
                return Err(invalid(
                    "type",
                    "missing, and this is not a bind mount".to_owned(),
                ));
            }
            Some("cgroup" | "cgroup2") => MountKind::Cgroup { view: view.clone() },
            Some(file_system) => MountKind::New {
                file_system: file_system.to_owned(),
                source: mount
                    .source
                    .clone()
                    .unwrap_or_else(|| file_system.to_owned()),
                data: data.join(","),
                copy_up: copy_up && file_system == "tmpfs",
                super_options,
            },
        }
    };
    if copy_up && !matches!(planned.kind, MountKind::New { copy_up: true, .. }) {
        return Err(invalid(
            "options",
            "`tmpcopyup` is for tmpfs only".to_owned(),
        ));
    }
    Ok(planned)
}

/// The maps of an id-mapped mount: its own, else the container's.
fn idmap_of(
    mount: &runtime::Mount,
    recursive: bool,
    bind: bool,
    container: Option<&UserNamespace>,
    invalid: &dyn Fn(&str, String) -> Error,
) -> Result<Idmap> {
    if !bind {
        let reason = "only a bind mount can be id-mapped".to_owned();
        return Err(invalid("uidMappings", reason));
    }
    let own = UserNamespace {
        uids: ranges(&mount.uid_mappings),
        gids: ranges(&mount.gid_mappings),
    };
    let maps = match (own.uids.is_empty(), own.gids.is_empty(), container) {
        (false, false, _) => own,
        (true, true, Some(maps)) => maps.clone(),
        (true, true, None) => {
            let reason = "an id-mapped mount needs maps, its own or a user namespace's".to_owned();
            return Err(invalid("options", reason));
        }
        _ => {
            let reason = "both uidMappings and gidMappings are needed".to_owned();
            return Err(invalid("uidMappings", reason));
        }
    };
    super::config::check_ranges("uidMappings", &maps.uids)
        .and_then(|()| super::config::check_ranges("gidMappings", &maps.gids))
        .map_err(|error| invalid("uidMappings", error.to_string()))?;
    Ok(Idmap { maps, recursive })
}
