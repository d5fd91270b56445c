//! Ranges of user ids, leased to containers with a user namespace of their own.
//!
//! A lease is a symlink `<data>/userns/<first id>` to the container: exclusive by nature, so no two
//! containers ever have an id in common. A container keeps its range while it exists.

use std::path::Path;

use knarr_fs::{Lock, failpoint};
use knarr_spec::ContainerId;

use crate::record::IdRange;
use crate::{Error, Result, Settings, names};

/// How many ids a container gets.
pub(crate) const SIZE: u32 = 65_536;

/// Where ids come from when `/etc/subuid` has no user `containers` (as Podman's) and none `root`:
/// above what systemd gives its containers (524288 to 1879048191) and below 2^31.
const POOL: (u32, u32) = (0x7000_0000, 0x0fff_0000);

/// Leases a free range to `id`, whose lock the caller holds.
pub(crate) fn lease(settings: &Settings, id: &ContainerId) -> Result<IdRange> {
    let folder = settings.leases();
    knarr_fs::create_dir_all(&folder)?;
    for start in starts() {
        let link = folder.join(start.to_string());
        match knarr_fs::symlink(id.as_str(), &link) {
            Err(error) if error.is_exists() => {}
            done => {
                done?;
                return Ok(IdRange { start, size: SIZE });
            }
        }
        if take_over(settings, &link, id)? {
            return Ok(IdRange { start, size: SIZE });
        }
    }
    Err(Error::IdsExhausted)
}

/// Takes a lease over whose container is gone.
fn take_over(settings: &Settings, link: &Path, id: &ContainerId) -> Result<bool> {
    let stale = || -> Result<bool> {
        let holder = match knarr_fs::read_link(link) {
            Err(error) if error.is_not_found() => return Ok(true),
            holder => holder?,
        };
        match holder.to_str().and_then(|text| text.parse().ok()) {
            Some(holder) => Ok(!names::is_live(settings, &holder)?),
            None => Ok(true),
        }
    };
    // Without the lock first: most are not stale.
    if !stale()? {
        return Ok(false);
    }
    let _folder = Lock::exclusive(&settings.leases().join(".lock"))?;
    if !stale()? {
        return Ok(false);
    }
    failpoint!("userns.stale");
    knarr_fs::remove_file(link)?;
    knarr_fs::symlink(id.as_str(), link)?;
    Ok(true)
}

/// Gives back what `id` leased.
pub(crate) fn release_all(settings: &Settings, id: &ContainerId) -> Result<()> {
    for (name, target) in knarr_fs::link_names(&settings.leases())? {
        if target.as_os_str() == id.as_str() {
            knarr_fs::remove_file(&settings.leases().join(name))?;
        }
    }
    Ok(())
}

/// A range as a plan shows it: the first there is, leased or not.
pub(crate) fn first() -> Option<IdRange> {
    starts().first().map(|&start| IdRange { start, size: SIZE })
}

/// The first ids of all ranges there are.
fn starts() -> Vec<u32> {
    let read = |path: &str| knarr_fs::read_to_string(Path::new(path)).unwrap_or_default();
    ranges(&read("/etc/subuid"), &read("/etc/subgid"))
}

/// The ranges that `/etc/subuid` and `/etc/subgid` (subuid(5)) both give to `containers`, else to
/// `root`; else the default pool.
fn ranges(uids: &str, gids: &str) -> Vec<u32> {
    let of = |text: &str, user: &str| -> Vec<(u32, u32)> {
        text.lines()
            .filter_map(|line| {
                let mut fields = line.trim().split(':');
                (fields.next()? == user).then_some(())?;
                Some((fields.next()?.parse().ok()?, fields.next()?.parse().ok()?))
            })
            .collect()
    };
    let cut = |(start, count): (u32, u32)| {
        // Ids above i32::MAX trouble some file systems' tools, but a user who says so means it.
        (0..count / SIZE).filter_map(move |index| start.checked_add(index * SIZE))
    };
    for user in ["containers", "root"] {
        let groups = of(gids, user);
        let both: Vec<u32> = of(uids, user)
            .into_iter()
            .flat_map(cut)
            .filter(|start| *start >= SIZE)
            .filter(|start| {
                let end = start.checked_add(SIZE);
                groups.iter().any(|(first, count)| {
                    first <= start
                        && end.is_some_and(|end| {
                            first.checked_add(*count).is_none_or(|last| end <= last)
                        })
                })
            })
            .collect();
        if !both.is_empty() {
            return both;
        }
    }
    cut(POOL).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_come_from_both_files_or_the_pool() {
        let uids = "me:100000:65536\ncontainers:1000000:200000\n";
        assert_eq!(ranges(uids, uids), [1_000_000, 1_065_536, 1_131_072]);
        assert_eq!(ranges(uids, "containers:1000000:65536"), [1_000_000]);
        assert_eq!(ranges(uids, "").first(), Some(&0x7000_0000));
        assert_eq!(
            ranges("root:0:65536", "root:0:65536").first(),
            Some(&0x7000_0000)
        );
        assert_eq!(ranges("root:200000:65536", "root:200000:65536"), [200_000]);
        let pool = ranges("", "");
        assert!(pool.len() > 4000 && pool.windows(2).all(|pair| pair[0] + SIZE == pair[1]));
    }

    #[test]
    fn leases_are_disjoint_and_come_back() {
        let dir = knarr_fs::TempDir::new_in(&std::env::temp_dir().join("knarr-engine")).unwrap();
        let settings = Settings {
            root: dir.path().join("data"),
            run_root: dir.path().join("run"),
            monitor: "/nonexistent".into(),
        };
        settings.prepare().unwrap();
        let make = || {
            let id = names::random_id().unwrap();
            knarr_fs::create_dir_all(&settings.run_dir(&id)).unwrap();
            let lock = Lock::try_exclusive(&settings.run_dir(&id).join("lock"))
                .unwrap()
                .unwrap();
            let range = lease(&settings, &id).unwrap();
            (id, lock, range.start)
        };
        let (one, two, three) = (make(), make(), make());
        assert!(one.2 != two.2 && two.2 != three.2 && one.2 != three.2);
        release_all(&settings, &two.0).unwrap();
        assert_eq!(make().2, two.2, "given back");
        // Its holder died without giving it back.
        let freed = one.2;
        drop(one);
        assert_eq!(make().2, freed);
    }
}
