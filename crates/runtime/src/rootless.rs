//! A caller without rights becomes root of a user namespace (user_namespaces(7)): of its own id, and of
//! its subordinate ids (subuid(5)) where it has some. In there containers are made as root makes them,
//! and their ids are taken from those.

use std::os::fd::AsFd as _;
use std::process::{Command, Stdio};
use std::sync::OnceLock;

use knarr_sys::Failure;
use knarr_sys::clone::Namespaces;
use knarr_sys::namespace::{unshare_mounts, user_namespace_by};
use rustix::process::{DumpableBehavior, Pid, set_dumpable_behavior};

use crate::child::become_root;
use crate::launch::write_proc;
use crate::prepare::map_lines;
use crate::{Error, IdRange, Result, UserNamespace};

/// The inode of the first user namespace (`USER_NS_INIT_INO`, linux/nsfs.h; the same since Linux 3.8).
const FIRST: u64 = 0xEFFF_FFFD;

/// Whether this process is in a user namespace that is not the machine's first: where it is root, it is
/// so only in there.
pub fn is_nested() -> bool {
    static NESTED: OnceLock<bool> = OnceLock::new();
    *NESTED.get_or_init(|| {
        rustix::fs::stat("/proc/self/ns/user").is_ok_and(|stat| stat.st_ino != FIRST)
    })
}

/// The ids of a user namespace that a caller can make: its own as 0, its subordinate ones behind it.
pub fn ids(own: u32, subordinate: &[(u32, u32)]) -> Vec<IdRange> {
    let mut ranges = vec![IdRange {
        container: 0,
        host: own,
        size: 1,
    }];
    let mut next = 1u32;
    for &(host, size) in subordinate {
        let Some(after) = next.checked_add(size).filter(|_| size > 0) else {
            continue;
        };
        ranges.push(IdRange {
            container: next,
            host,
            size,
        });
        next = after;
    }
    ranges
}

/// The ranges of a user in a text of subuid(5): lines of `user:first:count`, the user by name or number.
pub fn subordinate(text: &str, names: &[&str]) -> Vec<(u32, u32)> {
    text.lines()
        .filter_map(|line| {
            let mut fields = line.trim().split(':');
            let user = fields.next()?;
            let range = (fields.next()?.parse().ok()?, fields.next()?.parse().ok()?);
            names.contains(&user).then_some(range)
        })
        .collect()
}

/// The ranges in a text of `/proc/PID/uid_map`.
pub fn parse_map(text: &str) -> Vec<IdRange> {
    text.lines()
        .filter_map(|line| {
            let mut fields = line.split_whitespace().map(str::parse);
            Some(IdRange {
                container: fields.next()?.ok()?,
                host: fields.next()?.ok()?,
                size: fields.next()?.ok()?,
            })
        })
        .collect()
}

/// What `ranges` are for who is in the user namespace that `outer` maps: the same ids of the container,
/// made of that namespace's own.
///
/// # Errors
/// The first id of the host that it does not have.
pub fn inside(ranges: &[IdRange], outer: &[IdRange]) -> std::result::Result<Vec<IdRange>, u32> {
    let mut found = Vec::new();
    for range in ranges {
        let (mut container, mut host, mut left) = (range.container, range.host, range.size);
        while left > 0 {
            let (offset, around) = outer
                .iter()
                .find_map(|outer| {
                    let offset = host.checked_sub(outer.host)?;
                    (offset < outer.size).then_some((offset, outer))
                })
                .ok_or(host)?;
            let size = left.min(around.size - offset);
            found.push(IdRange {
                container,
                host: around.container.saturating_add(offset),
                size,
            });
            left -= size;
            container = container.saturating_add(size);
            host = host.saturating_add(size);
        }
    }
    Ok(found)
}

/// Enters a new user namespace with these maps as its root, and a mount namespace that it owns. The
/// caller has one thread and is about to exec, which makes the process the namespace's own.
///
/// # Errors
/// [`Error::Prepare`] where the kernel refuses, [`Error::Config`] where newuidmap(1) does.
pub fn enter(maps: &UserNamespace) -> Result<()> {
    let failed = |what: &'static str| {
        move |cause| Error::Prepare {
            what: what.to_owned(),
            cause,
        }
    };
    let dumpable = |behavior| {
        set_dumpable_behavior(behavior)
            .map_err(Failure::of("prctl"))
            .map_err(failed("cannot prepare this process"))
    };
    // Whoever writes the maps must be the owner of the process that has them.
    dumpable(DumpableBehavior::Dumpable)?;
    let namespace = user_namespace_by(
        |pid| write_maps(pid, maps),
        failed("cannot make a user namespace"),
    );
    dumpable(DumpableBehavior::NotDumpable)?;
    let namespace = namespace?;
    knarr_sys::process::setns(namespace.as_fd(), Namespaces::USER)
        .map_err(failed("cannot enter the user namespace"))?;
    become_root().map_err(failed("cannot become root of the user namespace"))?;
    unshare_mounts().map_err(failed("cannot make a mount namespace"))?;
    dumpable(DumpableBehavior::NotDumpable)
}

fn write_maps(pid: Pid, maps: &UserNamespace) -> Result<()> {
    if let ([_], [_]) = (maps.uids.as_slice(), maps.gids.as_slice()) {
        // The only map that may be written without rights; one's groups cannot be dropped then.
        let (uids, gids) = (map_lines(&maps.uids), map_lines(&maps.gids));
        for (file, text) in [
            ("setgroups", "deny"),
            ("uid_map", &uids),
            ("gid_map", &gids),
        ] {
            write_proc(pid, file, text)?;
        }
        return Ok(());
    }
    for (program, field, ranges) in [
        ("newuidmap", "linux.uidMappings", &maps.uids),
        ("newgidmap", "linux.gidMappings", &maps.gids),
    ] {
        let numbers = ranges
            .iter()
            .flat_map(|range| [range.container, range.host, range.size]);
        let refused = |reason: String| Error::Config {
            field: field.to_owned(),
            reason,
        };
        let output = Command::new(program)
            .arg(pid.as_raw_nonzero().to_string())
            .args(numbers.map(|number| number.to_string()))
            .stdin(Stdio::null())
            .output()
            .map_err(|error| {
                refused(format!(
                    "cannot run {program}, which maps subordinate ids: {error} (install the package \
                     `uidmap`, or map the caller's own id alone)"
                ))
            })?;
        if !output.status.success() {
            let said = String::from_utf8_lossy(&output.stderr);
            return Err(refused(said.trim().to_owned()));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(container: u32, host: u32, size: u32) -> IdRange {
        IdRange {
            container,
            host,
            size,
        }
    }

    #[test]
    fn ids_are_the_own_one_and_the_subordinate_ones_behind_it() {
        let text = "other:1:5\nuser:100000:65536\n1000:300000:10\nbroken\nuser:x:1\n";
        let found = subordinate(text, &["user", "1000"]);
        assert_eq!(found, [(100_000, 65_536), (300_000, 10)]);
        let all = [
            range(0, 1000, 1),
            range(1, 100_000, 65_536),
            range(65_537, 300_000, 10),
        ];
        assert_eq!(ids(1000, &found), all);
        assert_eq!(ids(1000, &[]), [range(0, 1000, 1)]);
        let text: String = all
            .iter()
            .map(|r| format!("{:10} {:10} {:10}\n", r.container, r.host, r.size))
            .collect();
        assert_eq!(parse_map(&text), all);
    }

    #[test]
    fn ranges_are_taken_from_those_of_the_namespace_around() {
        let outer = [
            range(0, 1000, 1),
            range(1, 100_000, 10),
            range(11, 300_000, 5),
        ];
        for (asked, expected) in [
            (vec![range(0, 1000, 1)], Ok(vec![range(0, 0, 1)])),
            (
                vec![range(0, 100_004, 6), range(6, 1000, 1)],
                Ok(vec![range(0, 5, 6), range(6, 0, 1)]),
            ),
            (vec![range(0, 100_000, 11)], Err(100_010)),
            (vec![range(0, 0, 1)], Err(0)),
            (vec![range(0, 1000, 2)], Err(1001)),
        ] {
            assert_eq!(inside(&asked, &outer), expected, "{asked:?}");
        }
        // Two ranges of the host that touch are two of the namespace.
        let touching = [range(0, 50, 5), range(20, 55, 5)];
        assert_eq!(
            inside(&[range(0, 52, 6)], &touching),
            Ok(vec![range(0, 2, 3), range(3, 20, 3)])
        );
    }
}
