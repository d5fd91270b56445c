//! What went wrong, why, and what to do: the one shape of errors that leave a crate.
//!
//! Every crate has its own error enum and implements [`Explain`] for it. A [`Report`] is such an
//! error taken apart into plain data: it crosses process boundaries as JSON (monitor to CLI) and is
//! rendered once, by [`Report`]'s `Display`, in `main` or at an API's edge:
//!
//! ```text
//! error: cannot start container `web`
//!   because: cannot mount /srv/data on /data
//!   because: mount_setattr: EINVAL (invalid argument)
//!   hint: /srv/data is on nfs, which has no idmapped mounts; use `--userns=host` or a local volume
//! ```
//!
//! This crate never prints and knows no other crate.

use std::fmt;

use serde::{Deserialize, Serialize};

/// What kind of failure it is, which decides exit codes and, later, HTTP and gRPC codes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Class {
    /// The named object does not exist.
    NotFound,
    /// The name or object exists already.
    Exists,
    /// The request itself is wrong.
    Invalid,
    /// The kernel, a policy or a registry forbids it.
    Denied,
    /// Credentials are missing or wrong.
    Unauthenticated,
    /// The object is in use or in the wrong state.
    Busy,
    /// Disk, memory, ids or another resource ran out.
    Exhausted,
    /// Knarr or this kernel cannot do that.
    Unsupported,
    /// A peer (registry, monitor) cannot be reached.
    Unavailable,
    /// It took too long.
    Timeout,
    /// Stored or received bytes are not what they claim to be.
    Corrupt,
    /// The container's command does not exist in it (exit code 127).
    CommandNotFound,
    /// The container's command exists but cannot be run (exit code 126).
    CommandNotExecutable,
    /// Knarr's own fault.
    Bug,
}

impl Class {
    /// All of them, for tests that walk the table.
    pub const ALL: [Self; 14] = [
        Self::NotFound,
        Self::Exists,
        Self::Invalid,
        Self::Denied,
        Self::Unauthenticated,
        Self::Busy,
        Self::Exhausted,
        Self::Unsupported,
        Self::Unavailable,
        Self::Timeout,
        Self::Corrupt,
        Self::CommandNotFound,
        Self::CommandNotExecutable,
        Self::Bug,
    ];

    /// The exit code of `run`, `create`, `start` and `exec` for this class: Docker's 125 for
    /// everything that is the engine's, 126 and 127 for the command's own faults
    /// (docs.docker.com, "docker run", exit status).
    pub const fn run_exit_code(self) -> u8 {
        match self {
            Self::CommandNotFound => 127,
            Self::CommandNotExecutable => 126,
            _ => 125,
        }
    }
}

/// Implemented by every error type that may reach a user.
///
/// `Display` names the object and never repeats the text of `source()`; the chain is printed by
/// [`Report`]. Wrapping variants delegate to the error they wrap unless they know better.
pub trait Explain: std::error::Error {
    /// The kind of failure.
    fn class(&self) -> Class;

    /// A short stable name for scripts, in kebab case, such as `mount-failed`.
    fn code(&self) -> &'static str;

    /// What the user can do about it: one sentence without a full stop.
    fn hint(&self) -> Option<String> {
        None
    }

    /// Takes the error apart.
    fn report(&self) -> Report {
        let mut because = Vec::new();
        let mut source = self.source();
        while let Some(error) = source {
            because.push(error.to_string());
            source = error.source();
        }
        Report {
            class: self.class(),
            code: self.code().to_owned(),
            message: self.to_string(),
            because,
            hint: self.hint(),
        }
    }
}

/// An error as data: what failed, the chain of reasons outermost first, and a remedy.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    /// The kind of failure.
    pub class: Class,
    /// The short stable name, see [`Explain::code`].
    pub code: String,
    /// What could not be done, naming the object.
    pub message: String,
    /// Why, each line the reason of the one before.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub because: Vec<String>,
    /// What to do about it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hint: Option<String>,
}

impl Report {
    /// Puts a line in front: `message` failed because of what this report says.
    #[must_use]
    pub fn wrap(mut self, message: impl Into<String>) -> Self {
        let inner = std::mem::replace(&mut self.message, message.into());
        self.because.insert(0, inner);
        self
    }

    /// What and why in one line of text, without the remedy: `message: reason: reason`.
    pub fn one_line(&self) -> String {
        let mut text = self.message.clone();
        for reason in &self.because {
            text.push_str(": ");
            text.push_str(reason);
        }
        text
    }

    /// The report as one line of JSON, for `--format json` and logs.
    pub fn to_json(&self) -> String {
        // A struct of strings always serializes.
        serde_json::to_string(self).unwrap_or_default()
    }
}

impl<E: Explain> From<E> for Report {
    fn from(error: E) -> Self {
        error.report()
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "error: {}", self.message)?;
        for line in &self.because {
            write!(f, "\n  because: {line}")?;
        }
        if let Some(hint) = &self.hint {
            write!(f, "\n  hint: {hint}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug)]
    struct Outer(std::io::Error);
    impl fmt::Display for Outer {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("cannot mount /srv on /data")
        }
    }
    impl std::error::Error for Outer {
        fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
            Some(&self.0)
        }
    }
    impl Explain for Outer {
        fn class(&self) -> Class {
            Class::Denied
        }
        fn code(&self) -> &'static str {
            "mount-failed"
        }
        fn hint(&self) -> Option<String> {
            Some("use a local volume".to_owned())
        }
    }

    #[test]
    fn a_report_prints_the_whole_chain_and_the_hint() {
        let report = Outer(std::io::Error::other("EINVAL"))
            .report()
            .wrap("cannot start `web`");
        assert_eq!(
            report.to_string(),
            "error: cannot start `web`\n  because: cannot mount /srv on /data\n  \
             because: EINVAL\n  hint: use a local volume"
        );
        assert_eq!(
            report.one_line(),
            "cannot start `web`: cannot mount /srv on /data: EINVAL"
        );
        let back: Report = serde_json::from_str(&report.to_json()).unwrap();
        assert_eq!(back, report);
    }

    #[test]
    fn every_class_has_dockers_exit_code() {
        for class in Class::ALL {
            let expected = match class {
                Class::CommandNotFound => 127,
                Class::CommandNotExecutable => 126,
                _ => 125,
            };
            assert_eq!(class.run_exit_code(), expected, "{class:?}");
        }
    }
}
