//! Who may change the table: whoever has the one socket that owns it.
//!
//! ```text
//! <run root>/firewall/lock                       held while the table is changed
//! <run root>/firewall/holders/<pid>.<fd>[.<fd>]  → the socket's netlink port
//! <run root>/firewall/generation                 the firewall's generation when it was whole
//! ```
//! Since Linux 6.9 a table can belong to a netlink socket (`NFT_TABLE_F_OWNER`): nobody else changes
//! or flushes it; and it outlives that socket (`NFT_TABLE_F_PERSIST`), then without an owner. The
//! owner is a socket, not a process, so every monitor has the same one: the first claims the table,
//! the others get the socket from any that lives (pidfd_getfd(2)). Nothing is handed over when one
//! dies, until the last: whoever claims a table without an owner makes it anew as the files say,
//! unless nobody has changed anything in the firewall since a holder that ended in peace. The lock
//! keeps what different processes say on the socket apart.
//!
//! Before Linux 6.9 the table has no owner. Then the monitors share a second socket, on which the
//! kernel tells who changed what, and one of them, whichever wakes, makes the table anew when it was
//! somebody else ([`Hold::heal`]).

use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use knarr_fs::{Durability, Lock};
use rustix::process::{Pid, PidfdFlags, PidfdGetfdFlags};

use super::{Change, Content, table};
use crate::netlink::Socket;
use crate::nft::{self, Family, Ownership, Transaction};
use crate::{Error, Result};

/// How long a killed owner may take until its socket is closed.
const PATIENCE: Duration = Duration::from_secs(5);

fn folder(run_root: &Path) -> PathBuf {
    run_root.join("firewall")
}

/// A monitor's part in keeping the table as it must be.
#[derive(Debug)]
pub struct Hold {
    run_root: PathBuf,
    _socket: Socket,
    watch: Option<Socket>,
    record: PathBuf,
}

impl Drop for Hold {
    fn drop(&mut self) {
        // Only what saves the next one time; and a record that stays is passed over.
        if self.watch.is_none() {
            note_generation(&folder(&self.run_root)).ok();
        }
        knarr_fs::remove_file(&self.record).ok();
    }
}

/// The table, while nobody else changes it.
struct Table {
    name: String,
    socket: Socket,
    watch: Option<Socket>,
    /// What is in it is what Knarr put there.
    trusted: bool,
    /// It may have an owner.
    ownable: bool,
    /// Declared last: the socket is closed before another one looks for the owner.
    _alone: Lock,
}

impl Table {
    fn open(run_root: &Path) -> Result<Self> {
        let folder = folder(run_root);
        let alone = match Lock::exclusive(&folder.join("lock")) {
            Err(error) if error.is_not_found() => {
                knarr_fs::create_dir_all(&folder.join("holders"))?;
                Lock::exclusive(&folder.join("lock"))
            }
            lock => lock,
        }?;
        let name = table(run_root);
        // Tests force what older kernels do.
        let ownable = std::env::var_os("KNARR_FIREWALL").is_none_or(|forced| forced != "shared");
        let deadline = Instant::now() + PATIENCE;
        loop {
            let ownership = nft::ownership(&name)?;
            if let Some((socket, watch)) = borrow(&folder, ownership)? {
                // What a killed one has not heard.
                socket.drain(|_| {})?;
                return Ok(Self {
                    name,
                    socket,
                    watch,
                    trusted: ownership != Ownership::Missing,
                    ownable,
                    _alone: alone,
                });
            }
            let Ownership::Owned(port) = ownership else {
                return Ok(Self {
                    name,
                    socket: Socket::netfilter()?,
                    watch: None,
                    trusted: false,
                    ownable,
                    _alone: alone,
                });
            };
            if Instant::now() >= deadline {
                return Err(Error::ForeignTable { table: name, port });
            }
            // Whoever owned it was killed; the kernel is closing its descriptors.
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// Makes a table that nobody owns this socket's, if nobody has changed it since it was whole.
    fn claim(&mut self, run_root: &Path) -> Result<bool> {
        if !self.ownable || nft::ownership(&self.name)? != Ownership::Orphan {
            return Ok(false);
        }
        let known = knarr_fs::read_to_string(&generation_file(&folder(run_root)));
        let now = nft::generation()?;
        if known.ok().and_then(|text| text.parse().ok()) != Some(now) {
            return Ok(false);
        }
        let mut transaction = Transaction::new(Family::Inet, &self.name);
        transaction.claim_table();
        // What was changed between the question and now was not by Knarr, which has the lock.
        self.trusted =
            transaction.commit(&self.socket).is_ok() && nft::generation()? == now.wrapping_add(1);
        Ok(self.trusted)
    }

    /// Makes the table as the files say.
    fn renew(&mut self, run_root: &Path) -> Result<()> {
        let content = Content::load(run_root)?;
        // What is still queued there was before.
        let watched = self.watch.as_ref().map(|watch| watch.drain(|_| {}));
        watched.transpose()?;
        let owned = self.ownable && {
            let done = content.replace(&self.socket, &self.name, true);
            !done.as_ref().is_err_and(nft::cannot_own) && done.map(|()| true)?
        };
        if !owned {
            content.replace(&self.socket, &self.name, false)?;
        }
        self.trusted = true;
        Ok(())
    }
}

/// Makes a change. Where its elements cannot be added or taken away, the table is made anew as the
/// files say: it was flushed while nobody owned it, or a killed monitor left an element.
///
/// # Errors
/// When the kernel refuses the whole table.
pub fn change(run_root: &Path, change: &Change) -> Result<()> {
    let mut table = Table::open(run_root)?;
    let borrowed = table.trusted;
    let done = if (borrowed || table.claim(run_root)?)
        && *change != Change::Rebuild
        && change.apply(&table.socket, &table.name).is_ok()
    {
        Ok(())
    } else {
        table.renew(run_root)
    };
    if !borrowed && done.is_ok() {
        note_generation(&folder(run_root))?;
    }
    done
}

fn generation_file(folder: &Path) -> PathBuf {
    folder.join("generation")
}

/// Notes that the table is whole, while this process has the socket that owns it.
fn note_generation(folder: &Path) -> Result<()> {
    let text = nft::generation()?.to_string();
    let path = generation_file(folder);
    Ok(knarr_fs::write_atomic(
        &path,
        text.as_bytes(),
        Durability::Volatile,
    )?)
}

/// Keeps the table as it must be for as long as the answer lives. A table that may not be as it
/// must is made anew.
///
/// # Errors
/// When the kernel refuses the table, or nobody lends what owns it.
pub fn hold(run_root: &Path) -> Result<Hold> {
    keep(run_root, Table::open(run_root)?)
}

fn keep(run_root: &Path, mut table: Table) -> Result<Hold> {
    if !table.trusted {
        sweep(&folder(run_root))?;
    }
    if !table.trusted && !table.claim(run_root)? {
        table.renew(run_root)?;
        if nft::ownership(&table.name)? == Ownership::Nobody {
            table.watch = Some(Socket::firewall_changes()?);
        }
    }
    let Table { socket, watch, .. } = &table;
    let mut name = format!("{}.{}", std::process::id(), socket.as_fd().as_raw_fd());
    if let Some(watch) = watch {
        name.push_str(&format!(".{}", watch.as_fd().as_raw_fd()));
    }
    let record = folder(run_root).join("holders").join(name);
    // One of that name is of a process that had this number.
    knarr_fs::remove_file(&record)?;
    knarr_fs::symlink(socket.port()?.to_string(), &record)?;
    let Table { socket, watch, .. } = table;
    Ok(Hold {
        run_root: run_root.to_owned(),
        _socket: socket,
        watch,
        record,
    })
}

impl Hold {
    /// Readable when somebody may have changed the table; `None` where nobody can. All monitors
    /// share it: one of them is enough (`EPOLLEXCLUSIVE`).
    pub fn changes(&self) -> Option<BorrowedFd<'_>> {
        self.watch.as_ref().map(AsFd::as_fd)
    }

    /// Makes the table anew, if it was somebody else who changed it.
    ///
    /// # Errors
    /// When the kernel refuses the table.
    pub fn heal(&self) -> Result<()> {
        self.heal_in(Table::open(&self.run_root)?)
    }

    fn heal_in(&self, mut table: Table) -> Result<()> {
        let own = table.socket.port()?;
        let mut foreign = !table.trusted;
        if let Some(watch) = &self.watch {
            let name = table.name.as_bytes();
            let complete = watch.drain(|message| {
                foreign |= message.port != own && nft::is_about(message, name);
            });
            // What was lost may have been about this table.
            foreign |= !complete?;
        }
        if foreign {
            table.renew(&self.run_root)?;
        }
        Ok(())
    }
}

/// The sockets of a process that lives and has the one that owns the table; where none can, of any
/// that watches it.
fn borrow(folder: &Path, ownership: Ownership) -> Result<Option<(Socket, Option<Socket>)>> {
    let port = match ownership {
        Ownership::Owned(port) => Some(port),
        Ownership::Nobody | Ownership::Missing => None,
        Ownership::Orphan => return Ok(None),
    };
    let holders = folder.join("holders");
    for (name, target) in knarr_fs::link_names(&holders)? {
        let known = target.to_str().and_then(|text| text.parse().ok());
        let (Some(known), Some(name)) = (known, name.to_str()) else {
            continue;
        };
        let mut numbers = name.split('.').map(str::parse::<i32>);
        let (Some(Ok(pid)), Some(Ok(fd))) = (numbers.next(), numbers.next()) else {
            continue;
        };
        let watch = numbers.next().and_then(std::result::Result::ok);
        let Some(process) = process(pid) else {
            knarr_fs::remove_file(&holders.join(name))?;
            continue;
        };
        if port.is_some_and(|port| port != known) || (port.is_none() && watch.is_none()) {
            continue;
        }
        if let Some(sockets) = lend(process.as_fd(), fd, watch, known) {
            return Ok(Some(sockets));
        }
    }
    Ok(None)
}

/// A process, if there is one of that number.
fn process(pid: i32) -> Option<OwnedFd> {
    rustix::process::pidfd_open(Pid::from_raw(pid)?, PidfdFlags::empty()).ok()
}

/// A process's sockets, if they are what its record says. Its number may be another's by now, so
/// the socket must have the port that only the owner has.
fn lend(
    process: BorrowedFd<'_>,
    fd: i32,
    watch: Option<i32>,
    port: u32,
) -> Option<(Socket, Option<Socket>)> {
    let get = |fd| -> Option<OwnedFd> {
        rustix::process::pidfd_getfd(process, fd, PidfdGetfdFlags::empty()).ok()
    };
    let socket = Socket::lent(get(fd)?);
    if socket.port().ok()? != port {
        return None;
    }
    let watch = match watch {
        Some(fd) => {
            let watch = Socket::lent(get(fd)?);
            watch.port().ok()?;
            Some(watch)
        }
        None => None,
    };
    Some((socket, watch))
}

/// Removes the records of processes that are gone.
fn sweep(folder: &Path) -> Result<()> {
    let holders = folder.join("holders");
    knarr_fs::create_dir_all(&holders)?;
    for name in knarr_fs::file_names(&holders)? {
        let pid = name
            .to_str()
            .and_then(|name| name.split('.').next()?.parse().ok());
        let lives = pid.and_then(process).is_some();
        if !lives {
            knarr_fs::remove_file(&holders.join(name))?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::firewall::{Bridge, Published, remember};

    fn nft(args: &[&str]) -> String {
        let output = std::process::Command::new("nft").args(args).output();
        let output = output.unwrap();
        assert!(output.status.success(), "{args:?}: {output:?}");
        String::from_utf8(output.stdout).unwrap()
    }

    /// The table's content; `nft` shows its owner as a comment.
    fn rules() -> String {
        let all = nft(&["list", "ruleset"]);
        let lines = all.lines().map(|line| line.split(" # ").next().unwrap());
        let lines = lines.filter(|line| !matches!(line.trim(), "" | "flags" | "flags owner"));
        lines.collect::<Vec<_>>().join("\n")
    }

    fn published() -> Vec<Published> {
        vec![Published {
            protocol: crate::port::Protocol::Tcp,
            host: "0.0.0.0".parse().unwrap(),
            host_port: 8080,
            count: 1,
            target: "10.0.0.2".parse().unwrap(),
            target_port: 80,
        }]
    }

    fn bridge() -> Bridge {
        Bridge {
            name: "knarr0".to_owned(),
            internal: false,
            isolated: false,
            subnets: vec!["10.0.0.0/24".parse().unwrap()],
            masquerade: Vec::new(),
        }
    }

    /// A run root that has one network with a bridge.
    fn run_root() -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().join("networks/web");
        std::fs::create_dir_all(&folder).unwrap();
        let text = serde_json::to_vec(&bridge()).unwrap();
        std::fs::write(folder.join("bridge.json"), text).unwrap();
        dir
    }

    #[test]
    fn nobody_else_changes_a_table_that_is_held() {
        if !crate::testing::private("nobody_else_changes_a_table_that_is_held") {
            return;
        }
        let dir = run_root();
        let first = hold(dir.path()).unwrap();
        assert!(first.changes().is_none());
        let name = table(dir.path());
        let second = hold(dir.path()).unwrap();
        // The one who claimed it goes; the other one has the same socket.
        drop(first);
        let before = rules();
        assert!(before.contains("knarr0"), "{before}");
        nft(&["flush", "ruleset"]);
        for words in [
            &["delete", "table", "inet"][..],
            &["flush", "table", "inet"],
        ] {
            let words = [words, &[name.as_str()]].concat();
            let refused = std::process::Command::new("nft").args(words).output();
            assert!(!refused.unwrap().status.success());
        }
        assert_eq!(rules(), before);
        // Who holds nothing changes it by way of who does.
        let id = "a".repeat(64).parse().unwrap();
        remember(dir.path(), &id, &published()).unwrap();
        change(dir.path(), &Change::Publish(published())).unwrap();
        assert!(rules().contains("8080 : 10.0.0.2 . 80"), "{}", rules());
        change(dir.path(), &Change::Unpublish(published())).unwrap();
        assert_eq!(rules(), before);
        drop(second);
        assert_eq!(nft::ownership(&name).unwrap(), Ownership::Orphan);
        assert_eq!(rules(), before);
        assert_eq!(
            knarr_fs::file_names(&folder(dir.path()).join("holders")).unwrap(),
            Vec::<std::ffi::OsString>::new()
        );
    }

    #[test]
    fn who_claims_a_table_makes_it_whole() {
        if !crate::testing::private("who_claims_a_table_makes_it_whole") {
            return;
        }
        let dir = run_root();
        let name = table(dir.path());
        drop(hold(dir.path()).unwrap());
        let whole = rules();
        // Older programs cannot print the flags of the table.
        let saved = nft(&["list", "ruleset"]).replace("flags \n", "\n");
        let file = dir.path().join("saved");
        std::fs::write(&file, saved).unwrap();
        let file = file.to_str().unwrap();
        let chain = ["delete", "chain", "inet", &name, "forward"];
        for harm in [
            &["flush", "ruleset"][..],
            &["flush", "table", "inet", &name],
            &["delete", "table", "inet", &name],
            &["flush", "set", "inet", &name, "same"],
            &["add", "rule", "inet", &name, "forward", "accept"],
            &["flush", "chain", "inet", &name, "forward"],
            &chain,
        ] {
            nft(harm);
            drop(hold(dir.path()).unwrap());
            assert_eq!(rules(), whole, "{harm:?}");
            nft(harm);
            change(dir.path(), &Change::AddBridge(bridge())).unwrap();
            assert_eq!(rules(), whole, "{harm:?}");
        }
        // A ruleset that was saved and loaded: the table has no owner and does not persist.
        nft(&["flush", "ruleset"]);
        nft(&["-f", file]);
        assert_eq!(nft::ownership(&name).unwrap(), Ownership::Nobody);
        let held = hold(dir.path()).unwrap();
        assert!(matches!(
            nft::ownership(&name).unwrap(),
            Ownership::Owned(_)
        ));
        assert_eq!(rules(), whole);
        drop(held);
    }

    #[test]
    fn a_table_that_anybody_may_change_is_healed() {
        if !crate::testing::private("a_table_that_anybody_may_change_is_healed") {
            return;
        }
        let dir = run_root();
        let name = table(dir.path());
        let hold = || {
            let mut table = Table::open(dir.path()).unwrap();
            table.ownable = false;
            keep(dir.path(), table).unwrap()
        };
        let heal = |hold: &Hold| {
            let mut event = [rustix::event::PollFd::from_borrowed_fd(
                hold.changes().unwrap(),
                rustix::event::PollFlags::IN,
            )];
            let now = rustix::time::Timespec {
                tv_sec: 0,
                tv_nsec: 0,
            };
            let ready = rustix::event::poll(&mut event, Some(&now)).unwrap();
            let mut table = Table::open(dir.path()).unwrap();
            table.ownable = false;
            hold.heal_in(table).unwrap();
            ready > 0
        };
        let (first, second) = (hold(), hold());
        assert_eq!(nft::ownership(&name).unwrap(), Ownership::Nobody);
        let whole = rules();
        for harm in [
            &["flush", "ruleset"][..],
            &["flush", "chain", "inet", &name, "forward"],
            &["add", "rule", "inet", &name, "forward", "accept"],
            &["flush", "set", "inet", &name, "same"],
        ] {
            for who in [&first, &second] {
                nft(harm);
                assert!(heal(who), "{harm:?}");
                assert_eq!(rules(), whole, "{harm:?}");
                // What is healed is no reason to heal.
                heal(&first);
                heal(&second);
                assert!(!heal(&second), "{harm:?}");
            }
        }
        // What others do with theirs, and Knarr with its own, changes nothing.
        nft(&["add", "table", "inet", "theirs"]);
        change(dir.path(), &Change::Publish(published())).unwrap();
        heal(&second);
        assert!(rules().contains("8080 : 10.0.0.2 . 80"));
        nft(&["delete", "table", "inet", "theirs"]);
        heal(&first);
        assert!(rules().contains("8080 : 10.0.0.2 . 80"));
        drop(first);
        // No file says that it is published.
        nft(&["flush", "ruleset"]);
        heal(&second);
        assert_eq!(rules(), whole);
    }
}
