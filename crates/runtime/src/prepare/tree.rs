//! The container's tree, prepared: mounts, devices, covered paths.

use std::ffi::CString;
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::Path;

use knarr_fs::Root;
use knarr_sys::Failure;
use knarr_sys::mount::{Attributes, Change, Propagation as SysPropagation, mount_setattr};
use rustix::fs::{CWD, FileType, Mode};
use rustix::io::Errno;
use rustix::mount::{MountFlags, OpenTreeFlags, open_tree};
use rustix::process::{Gid, Uid};

use super::{Place, c_string, map_lines, need_selinux};
use crate::plan::{
    Attribute, CgroupView, DeviceKind, Idmap, MountChange, MountKind, Namespace, Plan, Propagation,
    SuperOption,
};
use crate::step::mount_text;
use crate::{Error, MountPlan, Result};

/// A mount, ready to be made.
#[derive(Debug)]
pub(crate) struct Mount {
    pub(crate) place: Place,
    pub(crate) source: Source,
    pub(crate) propagation: Vec<(SysPropagation, bool)>,
}

#[derive(Debug)]
pub(crate) enum Source {
    /// A detached mount, to be moved in.
    Tree { tree: OwnedFd, directory: bool },
    /// mount(2).
    New {
        file_system: CString,
        source: CString,
        data: Option<CString>,
        flags: MountFlags,
    },
    /// mount(2) with MS_REMOUNT.
    Again {
        data: Option<CString>,
        flags: MountFlags,
    },
    /// A tmpfs with these in it: directory, options (none for cgroup2).
    Hierarchies {
        list: Vec<(CString, Option<CString>)>,
        flags: MountFlags,
    },
}

/// A device node.
#[derive(Debug)]
pub(crate) struct Device {
    pub(crate) place: Place,
    pub(crate) source: DeviceSource,
}

#[derive(Debug)]
pub(crate) enum DeviceSource {
    Node {
        kind: FileType,
        mode: Mode,
        dev: u64,
        owner: Option<(Uid, Gid)>,
    },
    /// The host's node, for where mknod(2) is not allowed.
    Tree(OwnedFd),
}

/// The container's tree, ready to be put together.
#[derive(Debug)]
pub(crate) struct Tree {
    pub(crate) mounts: Vec<Mount>,
    pub(crate) devices: Vec<Device>,
    pub(crate) dev: Option<Place>,
    pub(crate) sysctls: Vec<(CString, Vec<u8>)>,
    pub(crate) console: Option<Place>,
    pub(crate) masked: Vec<CString>,
    pub(crate) readonly: Vec<CString>,
    /// A mount of the host's `/dev/null`, verified, for masked files.
    pub(crate) null: Option<OwnedFd>,
}

/// The attributes of a change as mount_setattr(2) has them.
fn attributes(change: &MountChange) -> (Attributes, Attributes) {
    let one = |attribute: &Attribute| match attribute {
        Attribute::Ro => Attributes::RDONLY,
        Attribute::Nosuid => Attributes::NOSUID,
        Attribute::Nodev => Attributes::NODEV,
        Attribute::Noexec => Attributes::NOEXEC,
        Attribute::Relatime => Attributes::RELATIME,
        Attribute::Noatime => Attributes::NOATIME,
        Attribute::Strictatime => Attributes::STRICTATIME,
        Attribute::Nodiratime => Attributes::NODIRATIME,
        Attribute::Nosymfollow => Attributes::NOSYMFOLLOW,
    };
    let is_atime = |attribute: &&Attribute| {
        matches!(
            attribute,
            Attribute::Relatime | Attribute::Noatime | Attribute::Strictatime
        )
    };
    let set = change
        .set
        .iter()
        .map(one)
        .fold(Attributes::NONE, Attributes::with);
    let mut clear = change
        .clear
        .iter()
        .filter(|attribute| !is_atime(attribute))
        .map(one)
        .fold(Attributes::NONE, Attributes::with);
    // How access times are kept is one field, not a bit each.
    if change
        .set
        .iter()
        .chain(&change.clear)
        .any(|attribute| is_atime(&attribute))
    {
        clear = clear.with(Attributes::ATIME);
    }
    (set, clear)
}

/// The same for mount(2).
fn mount_flags(change: &MountChange) -> MountFlags {
    change
        .set
        .iter()
        .fold(MountFlags::empty(), |flags, attribute| {
            flags
                | match attribute {
                    Attribute::Ro => MountFlags::RDONLY,
                    Attribute::Nosuid => MountFlags::NOSUID,
                    Attribute::Nodev => MountFlags::NODEV,
                    Attribute::Noexec => MountFlags::NOEXEC,
                    Attribute::Relatime => MountFlags::RELATIME,
                    Attribute::Noatime => MountFlags::NOATIME,
                    Attribute::Strictatime => MountFlags::STRICTATIME,
                    Attribute::Nodiratime => MountFlags::NODIRATIME,
                    Attribute::Nosymfollow => MountFlags::NOSYMFOLLOW,
                }
        })
}

pub(crate) fn propagation(word: Propagation) -> SysPropagation {
    match word {
        Propagation::Private => SysPropagation::Private,
        Propagation::Slave => SysPropagation::Slave,
        Propagation::Shared => SysPropagation::Shared,
        Propagation::Unbindable => SysPropagation::Unbindable,
    }
}

/// Prepares the tree. `opened` are bind sources that the caller opened, by index in `plan.mounts`:
/// O_PATH descriptors or detached mounts.
pub(crate) fn tree(plan: &Plan, root: &Root, opened: Vec<(usize, OwnedFd)>) -> Result<Tree> {
    let mut opened = opened;
    if plan.mount_label.is_some() {
        need_selinux("linux.mountLabel")?;
    }
    let mut mounts = Vec::with_capacity(plan.mounts.len());
    for (index, mount) in plan.mounts.iter().enumerate() {
        let given = opened
            .iter()
            .position(|(at, _)| *at == index)
            .map(|position| opened.swap_remove(position).1);
        mounts.push(prepare_mount(
            mount,
            root,
            given,
            plan.mount_label.as_deref(),
        )?);
    }
    let bind_devices = plan.bind_devices || plan.namespaces().contains(&Namespace::User);
    let devices = plan
        .devices
        .iter()
        .map(|device| prepare_device(device, bind_devices))
        .collect::<Result<Vec<_>>>()?;
    let paths = |field: &str, paths: &[String]| {
        paths
            .iter()
            .map(|path| c_string(field, path))
            .collect::<Result<Vec<_>>>()
    };
    let sysctls = plan
        .sysctls
        .iter()
        .map(|sysctl| {
            // Dots separate, unless slashes do; then dots belong to the names.
            let path = if sysctl.name.contains('/') {
                format!("sys/{}", sysctl.name)
            } else {
                format!("sys/{}", sysctl.name.replace('.', "/"))
            };
            Ok((
                c_string("linux.sysctl", &path)?,
                sysctl.value.clone().into_bytes(),
            ))
        })
        .collect::<Result<Vec<_>>>()?;
    Ok(Tree {
        mounts,
        devices,
        dev: if plan.dev_links {
            Some(Place::new("/dev", "/dev")?)
        } else {
            None
        },
        sysctls,
        console: match plan.process.terminal {
            Some(_) => Some(Place::new("/dev/console", "/dev/console")?),
            None => None,
        },
        masked: paths("linux.maskedPaths", &plan.masked)?,
        readonly: paths("linux.readonlyPaths", &plan.readonly)?,
        null: if plan.masked.is_empty() {
            None
        } else {
            Some(host_device(
                Path::new("/dev/null"),
                FileType::CharacterDevice,
                1,
                3,
            )?)
        },
    })
}

/// The options of a new file system, with its label.
fn data_of(file_system: &str, data: &str, label: Option<&str>) -> String {
    // These take none (as in libselinux and runc).
    let unlabelled = matches!(
        file_system,
        "proc" | "sysfs" | "cgroup" | "cgroup2" | "mqueue"
    );
    match label {
        Some(label) if !unlabelled && data.is_empty() => format!("context=\"{label}\""),
        Some(label) if !unlabelled => format!("{data},context=\"{label}\""),
        _ => data.to_owned(),
    }
}

fn super_flags(options: &[SuperOption]) -> MountFlags {
    options.iter().fold(MountFlags::empty(), |flags, option| {
        flags
            | match option {
                SuperOption::Sync => MountFlags::SYNCHRONOUS,
                SuperOption::Dirsync => MountFlags::DIRSYNC,
                SuperOption::Lazytime => MountFlags::LAZYTIME,
                SuperOption::Mand => MountFlags::PERMIT_MANDATORY_FILE_LOCKING,
                // MS_I_VERSION (linux/mount.h).
                SuperOption::Iversion => MountFlags::from_bits_retain(1 << 23),
                SuperOption::Silent => MountFlags::SILENT,
            }
    })
}

fn prepare_mount(
    mount: &MountPlan,
    root: &Root,
    given: Option<OwnedFd>,
    label: Option<&str>,
) -> Result<Mount> {
    let field = mount.destination.as_str();
    let mut after = Vec::new();
    let source = match &mount.kind {
        MountKind::Bind { source, recursive } => bind(mount, source, *recursive, given)?,
        MountKind::New {
            file_system,
            copy_up: true,
            data,
            source,
            super_options: _,
        } => {
            let data = data_of(file_system, data, label);
            let tree = copied_tmpfs(mount, source, &data, root)?;
            debug_assert_eq!(file_system, "tmpfs");
            Source::Tree {
                tree,
                directory: true,
            }
        }
        MountKind::New {
            file_system,
            source,
            data,
            copy_up: false,
            super_options,
        } => {
            let data = data_of(file_system, data, label);
            for (word, deep) in [
                (mount.propagation, false),
                (mount.propagation_recursive, true),
            ] {
                if let Some(word) = word {
                    after.push((propagation(word), deep));
                }
            }
            Source::New {
                file_system: c_string(field, file_system)?,
                source: c_string(field, source)?,
                data: if data.is_empty() {
                    None
                } else {
                    Some(c_string(field, &data)?)
                },
                flags: mount_flags(&mount.change)
                    | mount_flags(&mount.change_recursive)
                    | super_flags(super_options),
            }
        }
        MountKind::Remount {
            bind,
            data,
            super_options,
        } => {
            for (word, deep) in [
                (mount.propagation, false),
                (mount.propagation_recursive, true),
            ] {
                if let Some(word) = word {
                    after.push((propagation(word), deep));
                }
            }
            let only = if *bind {
                MountFlags::BIND
            } else {
                MountFlags::empty()
            };
            Source::Again {
                data: if data.is_empty() {
                    None
                } else {
                    Some(c_string(field, data)?)
                },
                flags: only | mount_flags(&mount.change) | super_flags(super_options),
            }
        }
        MountKind::Cgroup { view } => {
            let flags = mount_flags(&mount.change) | mount_flags(&mount.change_recursive);
            match view {
                CgroupView::Unified => Source::New {
                    file_system: c"cgroup2".to_owned(),
                    source: c"cgroup".to_owned(),
                    data: None,
                    flags,
                },
                CgroupView::Hierarchies(hierarchies) => Source::Hierarchies {
                    list: hierarchies
                        .iter()
                        .map(|hierarchy| {
                            let options = if hierarchy.controllers.is_empty() {
                                None
                            } else {
                                Some(c_string(field, &hierarchy.controllers)?)
                            };
                            Ok((c_string(field, &hierarchy.name)?, options))
                        })
                        .collect::<Result<_>>()?,
                    flags,
                },
            }
        }
    };
    Ok(Mount {
        place: Place::new(field, &mount.destination)?,
        source,
        propagation: after,
    })
}

/// Clones the mount that a bind mount shows, and gives it its attributes, here where errors can be
/// told at length; the child only moves it in.
fn bind(
    mount: &MountPlan,
    source: &str,
    recursive: bool,
    given: Option<OwnedFd>,
) -> Result<Source> {
    let prepare = |cause: Failure| Error::Prepare {
        what: mount_text(mount),
        cause,
    };
    let mut flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    if recursive {
        flags |= OpenTreeFlags::AT_RECURSIVE;
    }
    let tree = match given {
        Some(given) => open_tree(&given, c"", flags | OpenTreeFlags::AT_EMPTY_PATH)
            .map_err(Failure::of("open_tree"))
            .map_err(prepare)?,
        None => match foreign(source) {
            Some((process, inside)) => open_foreign(process, inside, flags).map_err(prepare)?,
            None => open_tree(CWD, source, flags)
                .map_err(Failure::of("open_tree"))
                .map_err(prepare)?,
        },
    };
    let stat = rustix::fs::fstat(&tree)
        .map_err(Failure::of("fstat"))
        .map_err(prepare)?;
    let directory = FileType::from_raw_mode(stat.st_mode) == FileType::Directory;
    if let Some(idmap) = &mount.idmap {
        let Idmap { maps, recursive } = idmap;
        let (uids, gids) = (map_lines(&maps.uids), map_lines(&maps.gids));
        let namespace = knarr_sys::namespace::user_namespace(&uids, &gids).map_err(prepare)?;
        let change = Change {
            idmap: Some(namespace.as_fd()),
            recursive: *recursive,
            ..Change::default()
        };
        mount_setattr(&tree, c"", &change).map_err(prepare)?;
    }
    // A clone of a shared mount is its peer: without this the container's mounts would appear on
    // the host.
    let (own, deep) = match (mount.propagation, mount.propagation_recursive) {
        (None, None) => (None, Some(Propagation::Private)),
        asked => asked,
    };
    for (change, propagation_asked, recursive) in [
        (&mount.change_recursive, deep, true),
        (&mount.change, own, false),
    ] {
        if change.is_empty() && propagation_asked.is_none() {
            continue;
        }
        let (set, clear) = attributes(change);
        let change = Change {
            set,
            clear,
            propagation: propagation_asked.map_or(SysPropagation::Unchanged, propagation),
            idmap: None,
            recursive,
        };
        mount_setattr(&tree, c"", &change).map_err(prepare)?;
    }
    Ok(Source::Tree { tree, directory })
}

/// Takes `/proc/PID/root/PATH` apart: a path in another process's mount namespace.
fn foreign(source: &str) -> Option<(u32, &str)> {
    let (process, rest) = source.strip_prefix("/proc/")?.split_once('/')?;
    let inside = rest.strip_prefix("root")?;
    Some((process.parse().ok()?, inside.strip_prefix('/')?))
}

/// Clones a mount of another mount namespace, which the kernel allows only from within it: the
/// calling thread goes there for the moment. `inside` is below that process's root, which is
/// another container's, so no symlink is followed.
fn open_foreign(
    process: u32,
    inside: &str,
    flags: OpenTreeFlags,
) -> std::result::Result<OwnedFd, Failure> {
    use knarr_sys::clone::Namespaces;
    use rustix::fs::{Mode, OFlags, ResolveFlags, open, openat2};
    let path_only = OFlags::PATH | OFlags::CLOEXEC;
    let own = open(
        "/proc/self/ns/mnt",
        OFlags::RDONLY | OFlags::CLOEXEC,
        Mode::empty(),
    )
    .map_err(Failure::of("open"))?;
    let other = open(
        format!("/proc/{process}/ns/mnt"),
        OFlags::RDONLY | OFlags::CLOEXEC,
        Mode::empty(),
    )
    .map_err(Failure::of("open"))?;
    let root = open(format!("/proc/{process}/root"), path_only, Mode::empty())
        .map_err(Failure::of("open"))?;
    let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_SYMLINKS;
    let found = openat2(&root, inside, path_only, Mode::empty(), resolve)
        .map_err(Failure::of("openat2"))?;
    knarr_sys::process::setns(other.as_fd(), Namespaces::MOUNT)?;
    let tree = open_tree(&found, c"", flags | OpenTreeFlags::AT_EMPTY_PATH)
        .map_err(Failure::of("open_tree"));
    knarr_sys::process::setns(own.as_fd(), Namespaces::MOUNT)?;
    tree
}

/// A tmpfs, detached, with a copy of what the image has at the destination.
fn copied_tmpfs(mount: &MountPlan, source: &str, data: &str, root: &Root) -> Result<OwnedFd> {
    use rustix::mount::{
        FsMountFlags, FsOpenFlags, MountAttrFlags, fsconfig_create, fsconfig_set_flag,
        fsconfig_set_string, fsmount, fsopen,
    };
    let prepare = |call: &'static str| {
        move |errno: Errno| Error::Prepare {
            what: mount_text(mount),
            cause: Failure { call, errno },
        }
    };
    let context = fsopen(c"tmpfs", FsOpenFlags::FSOPEN_CLOEXEC).map_err(prepare("fsopen"))?;
    fsconfig_set_string(&context, c"source", source).map_err(prepare("fsconfig"))?;
    for option in data.split(',').filter(|option| !option.is_empty()) {
        match option.split_once('=') {
            Some((key, value)) => fsconfig_set_string(&context, key, value),
            None => fsconfig_set_flag(&context, option),
        }
        .map_err(prepare("fsconfig"))?;
    }
    fsconfig_create(&context).map_err(prepare("fsconfig"))?;
    let tree = fsmount(
        &context,
        FsMountFlags::FSMOUNT_CLOEXEC,
        MountAttrFlags::empty(),
    )
    .map_err(prepare("fsmount"))?;
    let from = match root.enter(Path::new(&mount.destination)) {
        Ok(from) => Some(from),
        Err(error) if error.is_not_found() => None,
        Err(cause) => {
            return Err(Error::File {
                what: mount_text(mount),
                cause,
            });
        }
    };
    if let Some(from) = from {
        crate::copy::tree(&from, &tree).map_err(|cause| Error::File {
            what: mount_text(mount),
            cause,
        })?;
    }
    let (set, clear) = attributes(&mount.change);
    let change = Change {
        set,
        clear,
        ..Change::default()
    };
    if !mount.change.is_empty() {
        mount_setattr(&tree, c"", &change).map_err(|cause| Error::Prepare {
            what: mount_text(mount),
            cause,
        })?;
    }
    Ok(tree)
}

fn prepare_device(device: &crate::DevicePlan, bind: bool) -> Result<Device> {
    let place = Place::new("linux.devices", &device.path)?;
    let kind = match device.kind {
        DeviceKind::Character => FileType::CharacterDevice,
        DeviceKind::Block => FileType::BlockDevice,
        DeviceKind::Fifo => FileType::Fifo,
    };
    let source = if bind && device.kind != DeviceKind::Fifo {
        // By its own path, or where the kernel says it is: this is the host's tree, and what is
        // found there is verified.
        let (major, minor) = (device.major, device.minor);
        let tree = host_device(Path::new(&device.path), kind, major, minor).or_else(|error| {
            let class = if kind == FileType::BlockDevice {
                "block"
            } else {
                "char"
            };
            let uevent = format!("/sys/dev/{class}/{major}:{minor}/uevent");
            let text = knarr_fs::read_to_string(Path::new(&uevent)).unwrap_or_default();
            match text.lines().find_map(|line| line.strip_prefix("DEVNAME=")) {
                Some(name) => host_device(&Path::new("/dev").join(name), kind, major, minor),
                None => Err(error),
            }
        })?;
        DeviceSource::Tree(tree)
    } else {
        DeviceSource::Node {
            kind,
            mode: Mode::from_raw_mode(device.mode),
            dev: rustix::fs::makedev(device.major, device.minor),
            owner: (device.uid != 0 || device.gid != 0)
                .then(|| (Uid::from_raw(device.uid), Gid::from_raw(device.gid))),
        }
    };
    Ok(Device { place, source })
}

/// A detached mount of a device node of the host that is what it should be.
fn host_device(path: &Path, kind: FileType, major: u32, minor: u32) -> Result<OwnedFd> {
    let prepare = |call: &'static str| {
        move |errno: Errno| Error::Prepare {
            what: format!("cannot use the host's {}", path.display()),
            cause: Failure { call, errno },
        }
    };
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    let tree = open_tree(CWD, path, flags).map_err(prepare("open_tree"))?;
    let stat = rustix::fs::fstat(&tree).map_err(prepare("fstat"))?;
    if FileType::from_raw_mode(stat.st_mode) != kind
        || stat.st_rdev != rustix::fs::makedev(major, minor)
    {
        return Err(prepare("fstat")(Errno::NODEV));
    }
    let change = Change {
        propagation: SysPropagation::Private,
        ..Change::default()
    };
    mount_setattr(&tree, c"", &change)
        .map_err(|failure| prepare("mount_setattr")(failure.errno))?;
    Ok(tree)
}
