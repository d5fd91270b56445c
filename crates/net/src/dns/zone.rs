//! The names of a container's networks, read from the run root at the moment of the question.
//!
//! ```text
//! <run root>/networks/<network>/names/<name>/<address>    symlinks to the container's id
//!                               leases/<address>          a symlink to the container's id
//! ```
//! No copy is kept, so there is nothing to reload: a name exists from the instant of its symlink on.

use std::ffi::OsStr;
use std::mem::MaybeUninit;
use std::net::IpAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, Mode, OFlags, RawDir};

/// The most addresses of one name and names of one address that are answered.
const MOST_RECORDS: usize = 256;
/// The most names of a network that are looked through for those of an address.
const MOST_NAMES: usize = 16 << 10;

/// The networks whose names a container sees.
#[derive(Debug, Clone)]
pub(super) struct Zone {
    networks: Vec<Network>,
}

#[derive(Debug, Clone)]
struct Network {
    /// `.` and the name, lower-case: what may follow a name.
    suffix: String,
    folder: PathBuf,
}

/// What is known of a name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Found {
    /// No network has it.
    Nothing,
    /// It exists, with these addresses of the family asked for, sorted; perhaps none.
    Addresses(Vec<IpAddr>),
}

impl Zone {
    /// The networks below `<run root>/networks`, the one that wins first.
    pub(super) fn new(run_root: &Path, networks: &[String]) -> Self {
        let networks = networks
            .iter()
            .map(|name| Network {
                suffix: format!(".{}", name.to_ascii_lowercase()),
                folder: run_root.join("networks").join(name),
            })
            .collect();
        Self { networks }
    }

    /// The addresses of a name that are `wanted`: from the first network that has any, so that the
    /// same name in two networks does not mean one or the other by chance. `name.network` is
    /// understood too. `name` is one of [`Name::to_host_name`](super::message::Name::to_host_name).
    pub(super) fn find(&self, name: &str, wanted: impl Fn(&IpAddr) -> bool) -> Found {
        let mut exists = false;
        for network in &self.networks {
            let qualified = name.strip_suffix(network.suffix.as_str());
            for name in [Some(name), qualified].into_iter().flatten() {
                let mut addresses = addresses(&network.folder, name);
                exists |= !addresses.is_empty();
                addresses.retain(&wanted);
                if !addresses.is_empty() {
                    addresses.sort_unstable();
                    return Found::Addresses(addresses);
                }
            }
        }
        if exists {
            Found::Addresses(Vec::new())
        } else {
            Found::Nothing
        }
    }

    /// The names of an address, as `name.network`; `None` where no network has leased it. A short
    /// id is left out if there is another name.
    pub(super) fn names_of(&self, address: IpAddr) -> Option<Vec<String>> {
        for network in &self.networks {
            let lease = network.folder.join("leases").join(address.to_string());
            let Ok(owner) = rustix::fs::readlinkat(CWD, &lease, Vec::new()) else {
                continue;
            };
            let short = owner.as_bytes().get(..12).unwrap_or_default();
            let mut names = names(&network.folder.join("names"), address);
            names.sort_unstable();
            if names.iter().any(|name| name.as_bytes() != short) {
                names.retain(|name| name.as_bytes() != short);
            }
            names.truncate(MOST_RECORDS);
            for name in &mut names {
                name.push_str(&network.suffix);
            }
            return Some(names);
        }
        None
    }
}

/// What is in `names/<name>`: addresses, nothing else is ever put there.
fn addresses(network: &Path, name: &str) -> Vec<IpAddr> {
    // No `..` and no `/` can be in a host name, but a folder called `.` could be asked for.
    if name.is_empty() || name.starts_with('.') {
        return Vec::new();
    }
    let mut path = network.join("names");
    path.push(name);
    let mut found = Vec::new();
    each_entry(&path, |_, entry| {
        found.extend(entry.to_str().and_then(|text| text.parse::<IpAddr>().ok()));
        found.len() < MOST_RECORDS
    });
    found
}

fn names(folder: &Path, address: IpAddr) -> Vec<String> {
    let (mut found, mut seen) = (Vec::new(), 0);
    each_entry(folder, |folder, entry| {
        seen += 1;
        let link = Path::new(entry).join(address.to_string());
        if rustix::fs::readlinkat(folder, &link, Vec::new()).is_ok() {
            found.extend(entry.to_str().map(str::to_owned));
        }
        seen < MOST_NAMES
    });
    found
}

/// Calls `visit` with the names in a folder until it has enough. A folder that is not there is
/// empty.
fn each_entry(path: &Path, mut visit: impl FnMut(&OwnedFd, &OsStr) -> bool) {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let Ok(folder) = rustix::fs::open(path, flags, Mode::empty()) else {
        return;
    };
    let mut buffer = [MaybeUninit::uninit(); 2048];
    let mut entries = RawDir::new(folder.as_fd(), &mut buffer);
    while let Some(Ok(entry)) = entries.next() {
        let name: &OsStr = std::os::unix::ffi::OsStrExt::from_bytes(entry.file_name().to_bytes());
        if name != "." && name != ".." && !visit(&folder, name) {
            return;
        }
    }
}
