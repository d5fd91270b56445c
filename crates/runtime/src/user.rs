//! Who `user[:group]` is, by the container's own `/etc/passwd` and `/etc/group`.
//!
//! The rules are Docker's (moby/sys/user, `GetExecUser`): a number is always an id, whether it is
//! listed or not; the first matching line wins; supplementary groups come from the group file
//! unless a group is given. The files are the image's, so they are read below the root's handle,
//! only if they are regular, up to 10 MiB, and lines that do not parse are passed over rather than
//! taken for 0.

use std::path::Path;

use knarr_diag::{Class, Explain};
use knarr_fs::Root;

/// The most that is read of either file, in bytes.
const LIMIT: u64 = 10 << 20;
/// The largest id that Docker takes.
const MAX_ID: i64 = i32::MAX as i64;

/// Why a user or group cannot be told.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No such name.
    #[error("unable to find user {0}: no matching entries in passwd file")]
    NoUser(String),
    /// No such group.
    #[error("unable to find group {0}: no matching entries in group file")]
    NoGroup(String),
    /// A number that is no id.
    #[error("`{0}`: uids and gids must be in range 0-{MAX_ID}")]
    Range(String),
    /// A name that cannot be one.
    #[error("`{0}` is not a user or group name")]
    Name(String),
    /// The file itself.
    #[error("cannot look up users in the container")]
    File(#[from] knarr_fs::Error),
}

impl Explain for Error {
    fn class(&self) -> Class {
        match self {
            Self::NoUser(_) | Self::NoGroup(_) => Class::NotFound,
            Self::Range(_) | Self::Name(_) | Self::File(_) => Class::Invalid,
        }
    }

    fn code(&self) -> &'static str {
        match self {
            Self::NoUser(_) => "no-such-user",
            Self::NoGroup(_) => "no-such-group",
            Self::Range(_) => "id-out-of-range",
            Self::Name(_) => "bad-user-name",
            Self::File(_) => "bad-passwd-file",
        }
    }

    fn hint(&self) -> Option<String> {
        match self {
            Self::NoUser(_) => Some("a numeric id needs no entry in the image".to_owned()),
            Self::NoGroup(_) => Some("a numeric group id needs no entry in the image".to_owned()),
            _ => None,
        }
    }
}

/// Ids in the container, and the home directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Resolved {
    /// User.
    pub uid: u32,
    /// Primary group.
    pub gid: u32,
    /// Supplementary groups, sorted.
    pub additional_gids: Vec<u32>,
    /// `/` where passwd does not say.
    pub home: String,
}

/// A line of passwd(5).
#[derive(Debug, Clone, PartialEq, Eq)]
struct User<'a> {
    name: &'a str,
    uid: u32,
    gid: u32,
    home: &'a str,
}

/// A line of group(5).
#[derive(Debug, Clone, PartialEq, Eq)]
struct Group<'a> {
    name: &'a str,
    gid: u32,
    members: Vec<&'a str>,
}

/// What a word is: a number in range, or a name.
enum Word<'a> {
    Id(u32),
    Name(&'a str),
}

fn word(text: &str) -> Result<Word<'_>, Error> {
    let digits = text.strip_prefix(['-', '+']).unwrap_or(text);
    if !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit()) {
        // However long: a number too large for any integer is out of range, not a name and not 0.
        let id = text
            .parse::<i64>()
            .ok()
            .filter(|id| (0..=MAX_ID).contains(id));
        let id = id.and_then(|id| u32::try_from(id).ok());
        return id
            .map(Word::Id)
            .ok_or_else(|| Error::Range(text.to_owned()));
    }
    if text.contains(['\n', '\0', '/', ':']) {
        return Err(Error::Name(text.to_owned()));
    }
    Ok(Word::Name(text))
}

/// An id field of a file: only digits, or the line does not count.
fn id(field: Option<&str>) -> Option<u32> {
    let field = field?;
    if field.is_empty() || !field.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    field.parse().ok().filter(|id| i64::from(*id) <= MAX_ID)
}

fn users(text: &str) -> impl Iterator<Item = User<'_>> {
    text.lines().filter_map(|line| {
        let mut fields = line.trim().split(':');
        let name = fields
            .next()
            .filter(|name| !name.is_empty() && !name.starts_with('#'))?;
        let uid = id(fields.nth(1))?;
        let gid = id(fields.next())?;
        let home = fields.nth(1).unwrap_or_default();
        Some(User {
            name,
            uid,
            gid,
            home,
        })
    })
}

fn groups(text: &str) -> impl Iterator<Item = Group<'_>> {
    text.lines().filter_map(|line| {
        let mut fields = line.trim().split(':');
        let name = fields
            .next()
            .filter(|name| !name.is_empty() && !name.starts_with('#'))?;
        let gid = id(fields.nth(1))?;
        let members = fields.next().unwrap_or_default();
        Some(Group {
            name,
            gid,
            members: members.split(',').filter(|m| !m.is_empty()).collect(),
        })
    })
}

/// A file of the container as text; a missing one is empty.
fn read(root: &Root, path: &str) -> Result<String, Error> {
    match root.read(Path::new(path), LIMIT) {
        Ok(bytes) => Ok(String::from_utf8_lossy(&bytes).into_owned()),
        Err(error) if error.is_not_found() => Ok(String::new()),
        Err(error) => Err(error.into()),
    }
}

/// Who `spec` (`user`, `user:group`, names or numbers, empty for root) is in the container at
/// `root`, with `group_add` (names or numbers) added to the supplementary groups.
///
/// # Errors
/// [`Error`]; a missing file is an empty one.
pub fn resolve(root: &Root, spec: &str, group_add: &[String]) -> Result<Resolved, Error> {
    let passwd = read(root, "/etc/passwd")?;
    let group = read(root, "/etc/group")?;
    resolve_in(&passwd, &group, spec, group_add)
}

/// The home directory of a numeric id, where passwd has one.
///
/// # Errors
/// [`Error::File`].
pub fn home_of(root: &Root, uid: u32) -> Result<Option<String>, Error> {
    let passwd = read(root, "/etc/passwd")?;
    let home = users(&passwd)
        .find(|user| user.uid == uid)
        .map(|user| user.home.to_owned());
    Ok(home.filter(|home| home.starts_with('/')))
}

fn resolve_in(
    passwd: &str,
    group: &str,
    spec: &str,
    group_add: &[String],
) -> Result<Resolved, Error> {
    let (user_word, group_word) = spec.split_once(':').unwrap_or((spec, ""));
    let wanted = if user_word.is_empty() {
        Word::Id(0)
    } else {
        word(user_word)?
    };
    let found = users(passwd).find(|user| match wanted {
        Word::Id(uid) => user.uid == uid,
        Word::Name(name) => user.name == name,
    });
    let (uid, mut gid) = match (&found, wanted) {
        (Some(user), _) => (user.uid, user.gid),
        (None, Word::Id(uid)) => (uid, 0),
        (None, Word::Name(name)) => return Err(Error::NoUser(name.to_owned())),
    };
    let mut additional = Vec::new();
    if !group_word.is_empty() {
        gid = group_id(group, group_word)?;
    } else if let Some(user) = &found {
        additional.extend(
            groups(group)
                .filter(|group| group.members.contains(&user.name))
                .map(|group| group.gid),
        );
    }
    for name in group_add {
        additional.push(group_id(group, name)?);
    }
    additional.sort_unstable();
    additional.dedup();
    let home = found
        .map(|user| user.home)
        .filter(|home| home.starts_with('/'))
        .unwrap_or("/");
    Ok(Resolved {
        uid,
        gid,
        additional_gids: additional,
        home: home.to_owned(),
    })
}

fn group_id(group: &str, text: &str) -> Result<u32, Error> {
    match word(text)? {
        Word::Id(gid) => Ok(gid),
        Word::Name(name) => groups(group)
            .find(|group| group.name == name)
            .map(|group| group.gid)
            .ok_or_else(|| Error::NoGroup(name.to_owned())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PASSWD: &str = "root:x:0:0:root:/root:/bin/sh\n\
        # a comment\n\
        daemon:x:1:1::/usr/sbin:\n\
        1000:x:0:0:a number for a name:/trap:\n\
        app:x:1001:1002:App:/home/app:/bin/sh\n\
        app:x:0:0:the second one:/:\n\
        broken:x:abc:0::/:\n\
        huge:x:4294967296:0::/:\n\
        minus:x:-1:0::/:\n\
        short\n\
        nohome:x:7:7\n";
    const GROUP: &str = "root:x:0:\nwheel:x:10:app,daemon\nvideo:x:44:app\n\
        1000:x:0:app\nbad:x:x:app\napp:x:1002:\n";

    #[test]
    fn users_are_found_as_docker_finds_them() {
        for (spec, add, expected) in [
            ("", &[][..], Ok((0, 0, vec![], "/root"))),
            ("root", &[], Ok((0, 0, vec![], "/root"))),
            ("app", &[], Ok((1001, 1002, vec![0, 10, 44], "/home/app"))),
            ("1001", &[], Ok((1001, 1002, vec![0, 10, 44], "/home/app"))),
            ("app:video", &[], Ok((1001, 44, vec![], "/home/app"))),
            ("app:999", &[], Ok((1001, 999, vec![], "/home/app"))),
            ("app:", &[], Ok((1001, 1002, vec![0, 10, 44], "/home/app"))),
            (":video", &[], Ok((0, 44, vec![], "/root"))),
            // A number is an id, whatever a line of passwd is called.
            ("1000", &[], Ok((1000, 0, vec![], "/"))),
            ("app:1000", &[], Ok((1001, 1000, vec![], "/home/app"))),
            ("nohome", &[], Ok((7, 7, vec![], "/"))),
            ("2147483647", &[], Ok((2_147_483_647, 0, vec![], "/"))),
            ("1", &["wheel", "5"], Ok((1, 1, vec![5, 10], "/usr/sbin"))),
            ("2147483648", &[], Err("id-out-of-range")),
            ("4294967296", &[], Err("id-out-of-range")),
            ("18446744073709551616", &[], Err("id-out-of-range")),
            ("99999999999999999999999", &[], Err("id-out-of-range")),
            ("-1", &[], Err("id-out-of-range")),
            ("0:-1", &[], Err("id-out-of-range")),
            ("0:4294967296", &[], Err("id-out-of-range")),
            ("0", &["4294967296"], Err("id-out-of-range")),
            ("nobody", &[], Err("no-such-user")),
            // Lines that do not parse are not 0.
            ("broken", &[], Err("no-such-user")),
            ("huge", &[], Err("no-such-user")),
            ("minus", &[], Err("no-such-user")),
            ("short", &[], Err("no-such-user")),
            ("app:nogroup", &[], Err("no-such-group")),
            ("app:bad", &[], Err("no-such-group")),
            ("app", &["nogroup"], Err("no-such-group")),
            ("a/b", &[], Err("bad-user-name")),
            ("app:x:y", &[], Err("bad-user-name")),
            ("0x0", &[], Err("no-such-user")),
            ("1e3", &[], Err("no-such-user")),
            (" 0", &[], Err("no-such-user")),
        ] {
            let add: Vec<String> = add.iter().map(|&text: &&str| text.to_owned()).collect();
            let got = resolve_in(PASSWD, GROUP, spec, &add);
            let got = got.map_err(|error| error.code());
            let expected = expected.map(|(uid, gid, additional_gids, home)| Resolved {
                uid,
                gid,
                additional_gids,
                home: home.to_owned(),
            });
            assert_eq!(got, expected, "{spec:?} {add:?}");
        }
    }

    #[test]
    fn the_messages_are_dockers() {
        let error = resolve_in("", "", "x", &[]).unwrap_err();
        assert_eq!(
            error.to_string(),
            "unable to find user x: no matching entries in passwd file"
        );
        let error = resolve_in("", "", "0:y", &[]).unwrap_err();
        assert_eq!(
            error.to_string(),
            "unable to find group y: no matching entries in group file"
        );
    }

    #[test]
    fn files_of_the_image_that_are_no_small_files_are_refused() {
        let top = knarr_fs::TempDir::new_in(&std::env::temp_dir().join("knarr-runtime-tests"));
        let top = top.unwrap();
        let etc = top.path().join("root/etc");
        std::fs::create_dir_all(&etc).unwrap();
        let host = top.path().join("host");
        std::fs::write(&host, "host:x:0:0::/:\n").unwrap();
        let root = Root::open_path(&top.path().join("root")).unwrap();
        let passwd = etc.join("passwd");
        // A host file behind a symlink is not the container's.
        std::os::unix::fs::symlink(&host, &passwd).unwrap();
        assert_eq!(
            resolve(&root, "host", &[]).unwrap_err().code(),
            "no-such-user"
        );
        std::fs::remove_file(&passwd).unwrap();
        // A FIFO must not block, a device must not be read.
        rustix::fs::mknodat(
            rustix::fs::CWD,
            &passwd,
            rustix::fs::FileType::Fifo,
            rustix::fs::Mode::RWXU,
            0,
        )
        .unwrap();
        assert_eq!(
            resolve(&root, "0", &[]).unwrap_err().code(),
            "bad-passwd-file"
        );
        std::fs::remove_file(&passwd).unwrap();
        std::os::unix::fs::symlink("/dev/zero", &passwd).unwrap();
        std::fs::create_dir(top.path().join("root/dev")).unwrap();
        if rustix::process::geteuid().is_root() {
            rustix::fs::mknodat(
                rustix::fs::CWD,
                top.path().join("root/dev/zero"),
                rustix::fs::FileType::CharacterDevice,
                rustix::fs::Mode::RWXU,
                rustix::fs::makedev(1, 5),
            )
            .unwrap();
            assert_eq!(
                resolve(&root, "0", &[]).unwrap_err().code(),
                "bad-passwd-file"
            );
        }
        std::fs::remove_file(&passwd).unwrap();
        std::fs::write(&passwd, vec![b'\n'; (10 << 20) + 1]).unwrap();
        assert_eq!(
            resolve(&root, "0", &[]).unwrap_err().code(),
            "bad-passwd-file"
        );
    }
}
