//! Who has which address and which name: symlinks, exclusive by nature, whose target is the
//! container's id.
//!
//! ```text
//! <run root>/networks/<net>/leases/<ip>          → id
//! <run root>/networks/<net>/names/<name>/<ip>    → id     lower case; several addresses share a name
//! <run root>/networks/<net>/last4, last6         the last address that was handed out: a hint
//! ```
//! Addresses are handed out in a circle, so that none is used again at once. A lease is stale when
//! its container neither runs nor has a link left, and is taken over under the folder's lock only.

use std::net::IpAddr;
use std::path::{Path, PathBuf};

use knarr_fs::{Durability, Lock};
use knarr_spec::ContainerId;

use crate::netlink::Socket;
use crate::network::{Network, Pool};
use crate::{Error, Result};

/// The run folder of a network.
pub fn folder(run_root: &Path, network: &str) -> PathBuf {
    run_root.join("networks").join(network)
}

fn leases(run_root: &Path, network: &str) -> PathBuf {
    folder(run_root, network).join("leases")
}

fn names(run_root: &Path, network: &str) -> PathBuf {
    folder(run_root, network).join("names")
}

/// Takes `wanted`, or the next free address of a pool, for a container.
///
/// # Errors
/// [`Error::AddressInUse`], [`Error::NoAddress`], [`Error::Invalid`] for an address outside.
pub(crate) fn take(
    run_root: &Path,
    network: &Network,
    pool: &Pool,
    wanted: Option<IpAddr>,
    id: &ContainerId,
) -> Result<IpAddr> {
    let folder = leases(run_root, &network.name);
    knarr_fs::create_dir_all(&folder)?;
    if let Some(address) = wanted {
        if !pool.may_lease(address) {
            return Err(Error::invalid_hint(
                format!(
                    "address {address} cannot be given to a container on network {}",
                    network.name
                ),
                format!("it has {} and its gateway is taken", pool.subnet),
            ));
        }
        return take_one(run_root, network, &folder, address, id);
    }
    let hint = crate::lease::folder(run_root, &network.name).join(if pool.subnet.is_ipv6() {
        "last6"
    } else {
        "last4"
    });
    let last = knarr_fs::read_to_string(&hint).ok();
    let last = last.and_then(|text| text.parse::<IpAddr>().ok());
    for sweep in [false, true] {
        if sweep {
            sweep_stale(run_root, network)?;
        }
        for address in pool.after(last) {
            match knarr_fs::symlink(id.as_str(), &folder.join(address.to_string())) {
                Ok(()) => {
                    let text = address.to_string();
                    knarr_fs::write_atomic(&hint, text.as_bytes(), Durability::Volatile)?;
                    return Ok(address);
                }
                Err(error) if error.is_exists() => {}
                Err(error) => return Err(error.into()),
            }
        }
    }
    Err(Error::NoAddress {
        network: network.name.clone(),
        pool: pool.range().to_string(),
    })
}

fn take_one(
    run_root: &Path,
    network: &Network,
    folder: &Path,
    address: IpAddr,
    id: &ContainerId,
) -> Result<IpAddr> {
    let link = folder.join(address.to_string());
    match knarr_fs::symlink(id.as_str(), &link) {
        Err(error) if error.is_exists() => {}
        done => return Ok(done.map(|()| address)?),
    }
    let _alone = lock(run_root, &network.name)?;
    let holder = holder(&link)?;
    if let Some(holder) = holder.filter(|holder| holder != id)
        && !is_stale(run_root, &network.name, &holder)?
    {
        return Err(Error::AddressInUse {
            address,
            network: network.name.clone(),
            holder: holder.short().to_owned(),
        });
    }
    knarr_fs::remove_file(&link)?;
    knarr_fs::symlink(id.as_str(), &link)?;
    Ok(address)
}

/// Held while leases or the bridge of a network are judged.
pub(crate) fn lock(run_root: &Path, network: &str) -> Result<Lock> {
    let folder = folder(run_root, network);
    knarr_fs::create_dir_all(&folder)?;
    Ok(Lock::exclusive(&folder.join("lock"))?)
}

fn holder(link: &Path) -> Result<Option<ContainerId>> {
    match knarr_fs::read_link(link) {
        Ok(target) => Ok(target.to_str().and_then(|text| text.parse().ok())),
        Err(error) if error.is_not_found() => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// Whether nothing is left of a container's part in a network.
fn is_stale(run_root: &Path, network: &str, id: &ContainerId) -> Result<bool> {
    let run = run_root.join("containers").join(id.as_str());
    match Lock::try_shared(&run.join("lock")) {
        Ok(None) => return Ok(false),
        Ok(Some(_)) => {}
        Err(error) if error.is_not_found() => {}
        Err(error) => return Err(error.into()),
    }
    Ok(!lives(&run) && !has_link(network, id)?)
}

/// Whether the first process lives, as `state.json` names it.
fn lives(run: &Path) -> bool {
    #[derive(serde::Deserialize)]
    struct State {
        process: Option<Process>,
    }
    #[derive(serde::Deserialize)]
    struct Process {
        pid: u32,
        start_time: u64,
    }
    let Ok(bytes) = knarr_fs::read(&run.join("state.json")) else {
        return false;
    };
    let Ok(State {
        process: Some(process),
    }) = serde_json::from_slice(&bytes)
    else {
        return false;
    };
    let stat =
        knarr_fs::read(Path::new(&format!("/proc/{}/stat", process.pid))).unwrap_or_default();
    let stat = String::from_utf8_lossy(&stat);
    // Field 22 of proc(5); the second one may hold anything.
    let start = stat.rsplit_once(')').and_then(|(_, rest)| {
        let mut fields = rest.split_whitespace();
        (fields.next() != Some("Z"))
            .then(|| fields.nth(18)?.parse().ok())
            .flatten()
    });
    start == Some(process.start_time)
}

/// Whether a link of the container's is still a port of the bridge: the kernel takes it away some
/// time after the namespace's last user.
pub(crate) fn has_link(network: &str, id: &ContainerId) -> Result<bool> {
    Ok(newest_link(network, id)?.is_some())
}

/// The name of the link that was made last.
pub(crate) fn newest_link(network: &str, id: &ContainerId) -> Result<Option<String>> {
    let prefix = link_prefix(network, id);
    let links = Socket::route()?.links()?;
    let ours = links
        .into_iter()
        .filter(|link| link.name.starts_with(&prefix));
    Ok(ours.max_by_key(|link| link.index).map(|link| link.name))
}

/// What the names of a container's links on the host begin with. A digit follows: a new start does
/// not wait until the kernel has taken the old link away.
pub(crate) fn link_prefix(network: &str, id: &ContainerId) -> String {
    let mut bytes = id.as_str().as_bytes().to_vec();
    bytes.push(b' ');
    bytes.extend(network.as_bytes());
    format!("kv{:011x}", knarr_spec::fnv1a(&bytes) >> 20)
}

/// Removes the leases and names of containers that are gone.
///
/// # Errors
/// The first thing that could not be removed.
pub fn sweep_stale(run_root: &Path, network: &Network) -> Result<()> {
    let _alone = lock(run_root, &network.name)?;
    for (address, target) in knarr_fs::link_names(&leases(run_root, &network.name))? {
        let id = target
            .to_str()
            .and_then(|text| text.parse::<ContainerId>().ok());
        let stale = match &id {
            Some(id) => is_stale(run_root, &network.name, id)?,
            None => true,
        };
        if stale {
            if let Some(id) = &id {
                forget_names(run_root, &network.name, id)?;
            }
            knarr_fs::remove_file(&leases(run_root, &network.name).join(address))?;
        }
    }
    Ok(())
}

/// Gives an address back, if the container has it.
///
/// # Errors
/// When the symlink cannot be removed.
pub(crate) fn give_back(
    run_root: &Path,
    network: &str,
    id: &ContainerId,
    address: IpAddr,
) -> Result<()> {
    let link = leases(run_root, network).join(address.to_string());
    if holder(&link)?.as_ref() == Some(id) {
        knarr_fs::remove_file(&link)?;
    }
    Ok(())
}

/// Gives back every address that the container has on a network.
///
/// # Errors
/// When a symlink cannot be removed.
pub(crate) fn give_back_all(run_root: &Path, network: &str, id: &ContainerId) -> Result<()> {
    let folder = leases(run_root, network);
    for (address, target) in knarr_fs::link_names(&folder)? {
        if target.as_os_str() == id.as_str() {
            knarr_fs::remove_file(&folder.join(address))?;
        }
    }
    Ok(())
}

/// Who holds which address of a network, by address.
///
/// # Errors
/// When the folder cannot be read.
pub fn holders(run_root: &Path, network: &str) -> Result<Vec<(IpAddr, ContainerId)>> {
    let mut all: Vec<(IpAddr, ContainerId)> = knarr_fs::link_names(&leases(run_root, network))?
        .into_iter()
        .filter_map(|(address, target)| {
            Some((
                address.to_str()?.parse().ok()?,
                target.to_str()?.parse().ok()?,
            ))
        })
        .collect();
    all.sort();
    Ok(all)
}

/// Makes names lead to an address.
///
/// # Errors
/// When a symlink cannot be made; [`Error::Invalid`] for what is no name.
pub(crate) fn add_names<'a>(
    run_root: &Path,
    network: &str,
    id: &ContainerId,
    wanted: impl IntoIterator<Item = &'a String>,
    address: IpAddr,
) -> Result<()> {
    let folder = names(run_root, network);
    for name in wanted {
        check_name(name)?;
        let place = folder.join(name);
        let link = place.join(address.to_string());
        // Somebody may be taking away the empty folder, or a killed one has left its link.
        for attempt in 0.. {
            knarr_fs::create_dir_all(&place)?;
            match knarr_fs::symlink(id.as_str(), &link) {
                Ok(()) => break,
                Err(error) if attempt > 8 => return Err(error.into()),
                Err(error) if error.is_exists() => knarr_fs::remove_file(&link)?,
                Err(error) if error.is_not_found() => {}
                Err(error) => return Err(error.into()),
            }
        }
    }
    Ok(())
}

/// A name that is one part of a path, and one that DNS can ask for: lower case, at most 255 bytes.
pub(crate) fn check_name(name: &str) -> Result<()> {
    let good = |byte: u8| {
        byte.is_ascii_lowercase() || byte.is_ascii_digit() || matches!(byte, b'-' | b'_' | b'.')
    };
    let fits = (1..=253).contains(&name.len()) && !name.starts_with('.');
    if (fits && name.bytes().all(good)) || crate::weak::off("names") {
        Ok(())
    } else {
        Err(Error::invalid(format!(
            "{name:?} cannot be the name of a host"
        )))
    }
}

/// Names no longer lead to an address of the container's.
///
/// # Errors
/// When a symlink cannot be removed.
pub(crate) fn remove_names<'a>(
    run_root: &Path,
    network: &str,
    id: &ContainerId,
    gone: impl IntoIterator<Item = &'a String>,
    address: IpAddr,
) -> Result<()> {
    for name in gone {
        remove_name(&names(run_root, network).join(name), id, |one| {
            one == address.to_string()
        })?;
    }
    Ok(())
}

/// No name leads to the container any more.
///
/// # Errors
/// When a symlink cannot be removed.
pub(crate) fn forget_names(run_root: &Path, network: &str, id: &ContainerId) -> Result<()> {
    let folder = names(run_root, network);
    for name in knarr_fs::file_names(&folder)? {
        remove_name(&folder.join(name), id, |_| true)?;
    }
    Ok(())
}

fn remove_name(place: &Path, id: &ContainerId, wanted: impl Fn(&str) -> bool) -> Result<()> {
    for (address, target) in knarr_fs::link_names(place)? {
        if target.as_os_str() == id.as_str() && address.to_str().is_some_and(&wanted) {
            knarr_fs::remove_file(&place.join(address))?;
        }
    }
    match rustix::fs::rmdir(place) {
        Ok(()) | Err(rustix::io::Errno::NOENT | rustix::io::Errno::NOTEMPTY) => Ok(()),
        Err(errno) => Err(knarr_fs::Error::of("remove", "rmdir", place)(errno).into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// B13: no byte in a name makes a second one, or leaves its folder. Without the check an alias
    /// takes an address away from everybody.
    #[test]
    fn every_byte_in_a_name_makes_one_name_or_an_error() {
        let dir = tempfile::tempdir().unwrap();
        let id: ContainerId = "a".repeat(64).parse().unwrap();
        let address: IpAddr = "10.0.0.9".parse().unwrap();
        let add = |name: String| add_names(dir.path(), "web", &id, [&name], address);
        let known = || knarr_fs::file_names(&names(dir.path(), "web")).unwrap();
        for odd in (0..=255u8).map(char::from) {
            for name in [format!("d{odd}b"), format!("{odd}db"), format!("db{odd}")] {
                match add(name.clone()) {
                    Ok(()) => {
                        let plain = odd.is_ascii_lowercase() || odd.is_ascii_digit();
                        assert!(plain || "-_.".contains(odd), "{odd:?}");
                        assert_eq!(known(), [name.as_str()]);
                        remove_names(dir.path(), "web", &id, [&name], address).unwrap();
                    }
                    Err(error) => assert!(matches!(error, Error::Invalid { .. }), "{error}"),
                }
                assert!(known().is_empty(), "{odd:?}");
            }
        }
        let attack = || {
            add("../leases".to_owned()).is_ok()
                && leases(dir.path(), "web").join("10.0.0.9").is_symlink()
        };
        knarr_fs::create_dir_all(&leases(dir.path(), "web")).unwrap();
        assert!(!attack());
        assert!(crate::weak::without("names", attack));
    }
}
