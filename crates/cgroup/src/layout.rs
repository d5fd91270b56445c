//! Which cgroup hierarchies this machine has, and where in them the caller is.

use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use crate::control;
use crate::{Error, Result};

/// statfs(2) of a cgroup v2 hierarchy (linux/magic.h).
const CGROUP2_SUPER_MAGIC: knarr_sys::rustix::fs::FsWord = 0x6367_7270;

/// How the machine has its cgroups.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// v2 alone.
    Unified,
    /// v1 for the controllers, v2 beside it.
    Hybrid,
    /// v1 alone.
    Legacy,
}

/// The mounted hierarchies and the caller's place in each.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Layout {
    pub(crate) unified: Option<Hierarchy>,
    pub(crate) legacy: Vec<Hierarchy>,
}

/// One mounted hierarchy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Hierarchy {
    /// Where it is mounted.
    pub(crate) mount: PathBuf,
    /// v1: the controllers bound to it. v2: those available at its root, read when first asked for.
    controllers: OnceLock<Vec<String>>,
    /// The caller's cgroup, absolute below `mount`.
    pub(crate) own: String,
    /// v2: see [`Layout::delegated`].
    delegated: Option<String>,
}

impl Hierarchy {
    /// The uppermost cgroup above and with the caller's that the caller may write to. To move a
    /// process one must write to the `cgroup.procs` of the common ancestor.
    fn find_delegated(&self) -> Option<String> {
        let mut path = String::new();
        let parts = self.own.split('/').filter(|part| !part.is_empty());
        for part in std::iter::once("").chain(parts) {
            if !part.is_empty() {
                path.push('/');
                path.push_str(part);
            }
            let dir = self.dir(&path);
            if control::is_writable(&dir) && control::is_writable(&dir.join("cgroup.procs")) {
                return Some(path);
            }
        }
        None
    }

    pub(crate) fn has(&self, controller: &str) -> bool {
        self.controllers().iter().any(|has| has == controller)
    }

    /// The controllers of this hierarchy; none where the file cannot be read.
    pub(crate) fn controllers(&self) -> &[String] {
        self.controllers.get_or_init(|| {
            control::read(&self.mount.join("cgroup.controllers"))
                .map(|available| available.split_whitespace().map(str::to_owned).collect())
                .unwrap_or_default()
        })
    }

    /// The directory of a cgroup given by its absolute path.
    pub(crate) fn dir(&self, path: &str) -> PathBuf {
        self.mount.join(path.trim_start_matches('/'))
    }
}

impl Layout {
    /// Looks once in a process. Where `/sys/fs/cgroup` is v2 and may be written at its top, that is
    /// all there is to know; else `/proc/self/mountinfo` and `/proc/self/cgroup` tell, in some
    /// 0.1 ms.
    ///
    /// # Errors
    /// [`Error::NotMounted`], [`Error::Read`].
    pub fn detect() -> Result<Self> {
        static DETECTED: OnceLock<Layout> = OnceLock::new();
        if let Some(layout) = DETECTED.get() {
            return Ok(layout.clone());
        }
        let layout = Self::read()?;
        Ok(DETECTED.get_or_init(|| layout).clone())
    }

    /// v2 alone, where everybody mounts it, with the right to make cgroups at its top. What v1
    /// hierarchies somebody mounts elsewhere beside it are not for containers.
    fn plain() -> Option<Self> {
        let mount = Path::new("/sys/fs/cgroup");
        let magic = knarr_sys::rustix::fs::statfs(mount).ok()?.f_type;
        let unified = Hierarchy {
            mount: mount.to_owned(),
            controllers: OnceLock::new(),
            own: "/".to_owned(),
            delegated: Some(String::new()),
        };
        let delegated = (magic == CGROUP2_SUPER_MAGIC).then(|| unified.find_delegated())?;
        (delegated.as_deref() == Some("")).then(|| Self {
            unified: Some(unified),
            legacy: Vec::new(),
        })
    }

    fn read() -> Result<Self> {
        if let Some(layout) = Self::plain() {
            return Ok(layout);
        }
        let mounts = control::read(Path::new("/proc/self/mountinfo"))?;
        let memberships = control::read(Path::new("/proc/self/cgroup"))?;
        let mut layout = Self::parse(&mounts, &memberships)?;
        if let Some(unified) = &mut layout.unified {
            unified.delegated = unified.find_delegated();
        }
        Ok(layout)
    }

    /// Understands the two files (proc_pid_mountinfo(5), cgroups(7)). The controllers of v2 stay
    /// open: they are in neither.
    pub(crate) fn parse(mounts: &str, memberships: &str) -> Result<Self> {
        let memberships: Vec<(Vec<&str>, &str)> = memberships
            .lines()
            .filter_map(|line| {
                let (controllers, path) = line.split_once(':')?.1.split_once(':')?;
                Some((
                    controllers
                        .split(',')
                        .filter(|name| !name.is_empty())
                        .collect(),
                    path,
                ))
            })
            .collect();
        let mut layout = Self {
            unified: None,
            legacy: Vec::new(),
        };
        for line in mounts.lines() {
            let Some((place, source)) = line.split_once(" - cgroup") else {
                continue;
            };
            let unreadable = || Error::Unreadable {
                path: "/proc/self/mountinfo".into(),
                line: line.to_owned(),
            };
            let mut place = place.split(' ').skip(3);
            let root = unescape(place.next().ok_or_else(unreadable)?);
            let mount = PathBuf::from(unescape(place.next().ok_or_else(unreadable)?));
            let own = |path: &str| own_below(&root, path);
            if source.starts_with("2 ") {
                if layout.unified.is_none() {
                    let path = memberships
                        .iter()
                        .find(|(controllers, _)| controllers.is_empty())
                        .map_or("/", |(_, path)| path);
                    layout.unified = Some(Hierarchy {
                        mount,
                        controllers: OnceLock::new(),
                        own: own(path),
                        delegated: Some(String::new()),
                    });
                }
            } else {
                let options: Vec<&str> = source
                    .rsplit(' ')
                    .next()
                    .unwrap_or_default()
                    .split(',')
                    .collect();
                // A hierarchy without controllers (name=systemd) is of no use to a container.
                let Some((controllers, path)) = memberships.iter().find(|(controllers, _)| {
                    controllers
                        .first()
                        .is_some_and(|first| !first.starts_with("name=") && options.contains(first))
                }) else {
                    continue;
                };
                let first = controllers.first().copied().unwrap_or_default();
                if !layout.legacy.iter().any(|known| known.has(first)) {
                    layout.legacy.push(Hierarchy {
                        mount,
                        controllers: known(controllers),
                        own: own(path),
                        delegated: Some(String::new()),
                    });
                }
            }
        }
        if layout.unified.is_none() && layout.legacy.is_empty() {
            return Err(Error::NotMounted);
        }
        Ok(layout)
    }

    /// Pure v2 with these controllers.
    #[cfg(test)]
    pub(crate) fn with_controllers(controllers: &[&str]) -> Self {
        Self {
            unified: Some(Hierarchy {
                mount: PathBuf::from("/c"),
                controllers: known(controllers),
                own: "/".to_owned(),
                delegated: Some(String::new()),
            }),
            legacy: Vec::new(),
        }
    }

    /// Which kind of layout it is.
    pub fn mode(&self) -> Mode {
        match (&self.unified, self.legacy.is_empty()) {
            (Some(_), true) => Mode::Unified,
            (Some(_), false) => Mode::Hybrid,
            (None, _) => Mode::Legacy,
        }
    }

    /// The v1 hierarchy that has a controller.
    pub(crate) fn legacy_with(&self, controller: &str) -> Option<&Hierarchy> {
        self.legacy
            .iter()
            .find(|hierarchy| hierarchy.has(controller))
    }

    /// The names of all controllers, v1's and v2's.
    pub(crate) fn controllers(&self) -> Vec<String> {
        let mut names: Vec<String> = self
            .unified
            .iter()
            .chain(&self.legacy)
            .flat_map(|hierarchy| hierarchy.controllers().iter().cloned())
            .collect();
        names.sort();
        names.dedup();
        names
    }

    /// The v2 cgroup below which the caller may make others: empty for the root; else the uppermost of
    /// those that the caller is in and may write to (cgroups(7), "Delegation").
    ///
    /// # Errors
    /// [`Error::NotDelegated`].
    pub(crate) fn delegated(&self) -> Result<&str> {
        let Some(unified) = &self.unified else {
            return Ok("");
        };
        unified
            .delegated
            .as_deref()
            .ok_or_else(|| Error::NotDelegated {
                own: unified.dir(&unified.own),
            })
    }

    /// The v2 cgroup of all monitors (`/knarr-monitors`), made if missing, as a directory for
    /// `CLONE_INTO_CGROUP`: spawned there a monitor leaves its caller's cgroup for nothing, where a
    /// later move costs 1 to 10 ms.
    ///
    /// On v1 the monitor stays with its caller (hybrid: in the v1 hierarchies; pure v1: `None`).
    /// There is no `CLONE_INTO_CGROUP` for v1, so leaving would cost every start that grace period;
    /// and a monitor outside the caller's memory cgroup would escape the caller's limit.
    ///
    /// # Errors
    /// [`Error::Create`], [`Error::Open`].
    pub fn monitors_dir(&self) -> Result<Option<OwnedFd>> {
        let Some(unified) = &self.unified else {
            return Ok(None);
        };
        let path = unified.mount.join("knarr-monitors");
        control::make_dir(&path).map_err(|cause| Error::Create {
            path: path.clone(),
            cause,
        })?;
        control::open_dir(&path).map(Some)
    }
}

fn known(controllers: &[&str]) -> OnceLock<Vec<String>> {
    OnceLock::from(
        controllers
            .iter()
            .map(|name| (*name).to_owned())
            .collect::<Vec<_>>(),
    )
}

/// The caller's cgroup as seen below a mount that may show only a part (`root`) of the hierarchy.
fn own_below(root: &str, path: &str) -> String {
    let below = if root == "/" {
        Some(path)
    } else {
        path.strip_prefix(root)
    };
    match below {
        // Outside of what is mounted (also `/../..` of a cgroup namespace): start at the top.
        None => "/".to_owned(),
        Some(below) if below.split('/').any(|part| part == "..") => "/".to_owned(),
        Some("") => "/".to_owned(),
        Some(below) => below.to_owned(),
    }
}

/// mountinfo writes blank, tab, newline and backslash as three octal digits.
fn unescape(text: &str) -> String {
    ["\\040 ", "\\011\t", "\\012\n", "\\134\\"]
        .iter()
        .fold(text.to_owned(), |text, escape| {
            let (code, character) = escape.split_at(4);
            if text.contains(code) {
                text.replace(code, character)
            } else {
                text
            }
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    const HYBRID: &str = "\
22 1 254:0 / / rw - ext4 /dev/vda rw
31 23 0:28 / /sys/fs/cgroup rw,relatime - tmpfs tmpfs rw,mode=755
32 31 0:29 / /sys/fs/cgroup/cpu,cpuacct rw,relatime shared:4 - cgroup cgroup rw,cpu,cpuacct
35 31 0:32 / /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory
40 31 0:37 / /sys/fs/cgroup/systemd rw,relatime - cgroup cgroup rw,name=systemd
41 31 0:38 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw
";

    #[test]
    fn a_hybrid_machine_is_understood() {
        let own = "3:memory:/a/b\n2:cpu,cpuacct:/\n1:name=systemd:/x\n0::/user.slice\n";
        let layout = Layout::parse(HYBRID, own).unwrap();
        assert_eq!(layout.mode(), Mode::Hybrid);
        assert_eq!(layout.unified.as_ref().unwrap().own, "/user.slice");
        let memory = layout.legacy_with("memory").unwrap();
        assert_eq!(
            (memory.mount.as_path(), memory.own.as_str()),
            (Path::new("/sys/fs/cgroup/memory"), "/a/b")
        );
        assert_eq!(layout.legacy_with("cpuacct"), layout.legacy_with("cpu"));
        assert_eq!(layout.legacy.len(), 2, "name=systemd is left out");
        assert!(layout.legacy_with("pids").is_none());
    }

    #[test]
    fn a_mount_of_a_part_of_the_hierarchy_is_understood() {
        let mounts = "9 8 0:9 /docker/x /sys/fs/cgroup ro - cgroup2 cgroup rw\n";
        for (own, expected) in [
            ("0::/docker/x\n", "/"),
            ("0::/docker/x/inner\n", "/inner"),
            ("0::/elsewhere\n", "/"),
            ("0::/../..\n", "/"),
        ] {
            let layout = Layout::parse(mounts, own).unwrap();
            assert_eq!(layout.mode(), Mode::Unified);
            assert_eq!(layout.unified.unwrap().own, expected, "{own}");
        }
    }

    #[test]
    fn a_machine_without_cgroups_is_told() {
        let error = Layout::parse("22 1 254:0 / / rw - ext4 /dev/vda rw\n", "").unwrap_err();
        assert!(matches!(error, Error::NotMounted));
    }

    #[test]
    fn escapes_of_mountinfo_are_read() {
        assert_eq!(unescape("/a\\040b\\134c"), "/a b\\c");
    }

    #[test]
    fn this_machine_is_understood() {
        let layout = Layout::detect().unwrap();
        for hierarchy in layout.unified.iter().chain(&layout.legacy) {
            assert!(
                hierarchy.dir(&hierarchy.own).join("cgroup.procs").exists(),
                "{hierarchy:?}"
            );
        }
    }
}
