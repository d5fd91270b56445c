//! The user's terminal: raw while a container's terminal is shown on it, its size, its keys.

use std::os::fd::{AsFd, BorrowedFd};

use rustix::termios::{OptionalActions, Termios, isatty, tcgetattr, tcgetwinsize, tcsetattr};

/// The terminal as it was, put back when this is dropped: on a return, an error and a panic alike.
/// Signals that would end the process are received as data meanwhile (`crate::session`).
#[derive(Debug)]
pub(crate) struct Raw<'a> {
    terminal: BorrowedFd<'a>,
    before: Termios,
}

impl<'a> Raw<'a> {
    /// Makes the terminal pass every key on. `None` where it is no terminal.
    pub(crate) fn enter(terminal: BorrowedFd<'a>) -> Option<Self> {
        let before = tcgetattr(terminal).ok()?;
        let mut raw = before.clone();
        raw.make_raw();
        tcsetattr(terminal, OptionalActions::Now, &raw).ok()?;
        Some(Self { terminal, before })
    }
}

impl Drop for Raw<'_> {
    fn drop(&mut self) {
        // The terminal may be gone; then there is nothing to put back.
        tcsetattr(self.terminal, OptionalActions::Now, &self.before).ok();
    }
}

/// Whether what is typed is shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Echo {
    On,
    Off,
}

/// A line from standard input, without its end; not shown while it is typed where `echo` is off.
pub(crate) fn read_line(echo: Echo) -> std::io::Result<String> {
    use rustix::termios::LocalModes;
    /// Puts the terminal back, however reading ends.
    struct Shown(Termios);
    impl Drop for Shown {
        fn drop(&mut self) {
            tcsetattr(rustix::stdio::stdin(), OptionalActions::Flush, &self.0).ok();
        }
    }
    let stdin = rustix::stdio::stdin();
    let mut shown = None;
    if echo == Echo::Off
        && let Ok(before) = tcgetattr(stdin)
    {
        let mut hidden = before.clone();
        hidden.local_modes.remove(LocalModes::ECHO);
        tcsetattr(stdin, OptionalActions::Flush, &hidden)?;
        shown = Some(Shown(before));
    }
    let mut line = String::new();
    std::io::stdin().read_line(&mut line)?;
    drop(shown);
    Ok(line.trim_end_matches(['\r', '\n']).to_owned())
}

/// Whether it is a terminal.
pub(crate) fn is_terminal(fd: impl AsFd) -> bool {
    isatty(fd)
}

/// Rows and columns, of standard output or else of standard input.
pub(crate) fn size() -> Option<(u16, u16)> {
    let of = |fd: BorrowedFd<'_>| tcgetwinsize(fd).ok().filter(|size| size.ws_col > 0);
    let size = of(rustix::stdio::stdout()).or_else(|| of(rustix::stdio::stdin()))?;
    Some((size.ws_row, size.ws_col))
}

/// The bytes of `ctrl-p,ctrl-q`, as `--detach-keys` takes them.
pub(crate) fn detach_keys(text: &str) -> Result<Vec<u8>, String> {
    if text.is_empty() {
        return Ok(vec![16, 17]);
    }
    text.split(',')
        .map(|key| {
            let unknown = || format!("invalid detach keys ({text}): unknown character: '{key}'");
            match (key.as_bytes(), key.strip_prefix("ctrl-").map(str::as_bytes)) {
                (_, Some(b"@")) => Ok(0),
                (_, Some([letter @ b'a'..=b'z'])) => Ok(letter - b'a' + 1),
                (_, Some(b"[")) => Ok(27),
                (_, Some(b"\\")) => Ok(28),
                (_, Some(b"]")) => Ok(29),
                (_, Some(b"^")) => Ok(30),
                (_, Some(b"_")) => Ok(31),
                (b"DEL", _) => Ok(127),
                ([key], _) if key.is_ascii() => Ok(*key),
                _ => Err(unknown()),
            }
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn detach_keys_are_letters_and_controls() {
        for (text, keys) in [
            ("", &[16, 17][..]),
            ("ctrl-p,ctrl-q", &[16, 17]),
            ("ctrl-a,x,DEL", &[1, b'x', 127]),
            (
                "ctrl-@,ctrl-[,ctrl-\\,ctrl-],ctrl-^,ctrl-_",
                &[0, 27, 28, 29, 30, 31],
            ),
        ] {
            assert_eq!(detach_keys(text), Ok(keys.to_vec()), "{text}");
        }
        assert!(detach_keys("ctrl-1").is_err() && detach_keys("ab").is_err());
    }

    fn terminal() -> (rustix::fd::OwnedFd, rustix::fd::OwnedFd) {
        use rustix::pty::{OpenptFlags, grantpt, ioctl_tiocgptpeer, openpt, unlockpt};
        let master = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).unwrap();
        grantpt(&master).unwrap();
        unlockpt(&master).unwrap();
        let user = ioctl_tiocgptpeer(&master, OpenptFlags::RDWR | OpenptFlags::NOCTTY).unwrap();
        (master, user)
    }

    #[test]
    fn a_terminal_is_raw_until_the_guard_is_dropped_even_by_a_panic() {
        use rustix::termios::LocalModes;
        let (_master, user) = terminal();
        let cooked = || {
            let modes = tcgetattr(&user).unwrap().local_modes;
            modes.contains(LocalModes::ICANON | LocalModes::ECHO | LocalModes::ISIG)
        };
        assert!(cooked());
        let raw = Raw::enter(user.as_fd()).unwrap();
        assert!(!cooked());
        drop(raw);
        assert!(cooked());
        let panicked = std::panic::catch_unwind(|| {
            let _raw = Raw::enter(user.as_fd()).unwrap();
            panic!("in the middle of it");
        });
        assert!(panicked.is_err() && cooked());
    }

    #[test]
    fn what_is_no_terminal_is_left_alone() {
        let (read, _write) = rustix::pipe::pipe().unwrap();
        assert!(!is_terminal(&read));
        assert!(Raw::enter(read.as_fd()).is_none());
    }
}
