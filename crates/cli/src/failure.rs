//! What a command gives back when it did not work.

use std::io;

use knarr_diag::{Class, Explain, Report};

/// A result of a command or a step of it.
pub(crate) type Result<T, E = Failure> = std::result::Result<T, E>;

/// One or more reports, rendered once by the caller of the command, and the exit code.
#[derive(Debug, Default)]
pub(crate) struct Failure {
    /// What to print. Empty: everything has been said.
    pub(crate) reports: Vec<Report>,
    /// The exit code, where it is not the command's usual one.
    pub(crate) exit: Option<u8>,
    /// Whether the command's usage line is printed below.
    pub(crate) usage: bool,
}

impl Failure {
    /// Ends with this code and no words.
    pub(crate) fn silent(exit: u8) -> Self {
        Self {
            exit: Some(exit),
            ..Self::default()
        }
    }

    /// The request is wrong: one sentence.
    pub(crate) fn invalid(message: impl Into<String>) -> Self {
        Self::of(Class::Invalid, "invalid-request", message)
    }

    /// A report without a chain.
    pub(crate) fn of(class: Class, code: &str, message: impl Into<String>) -> Self {
        Self::told(vec![Report {
            class,
            code: code.to_owned(),
            message: message.into(),
            because: Vec::new(),
            hint: None,
        }])
    }

    /// These reports, and the command's usual exit code.
    pub(crate) fn told(reports: Vec<Report>) -> Self {
        Self {
            reports,
            exit: None,
            usage: false,
        }
    }

    /// Adds a remedy to the last report.
    #[must_use]
    pub(crate) fn hint(mut self, hint: impl Into<String>) -> Self {
        if let Some(report) = self.reports.last_mut() {
            report.hint = Some(hint.into());
        }
        self
    }

    /// Sets the exit code.
    #[must_use]
    pub(crate) fn exit(mut self, code: u8) -> Self {
        self.exit = Some(code);
        self
    }

    /// An operation of the kernel on a named object failed.
    pub(crate) fn io(message: impl Into<String>, error: &io::Error) -> Self {
        if error.kind() == io::ErrorKind::BrokenPipe {
            return Self::silent(crate::output::BROKEN_PIPE);
        }
        let class = match error.kind() {
            io::ErrorKind::NotFound => Class::NotFound,
            io::ErrorKind::PermissionDenied => Class::Denied,
            io::ErrorKind::AlreadyExists => Class::Exists,
            _ => Class::Invalid,
        };
        let mut failure = Self::of(class, "io", message);
        for report in &mut failure.reports {
            report.because.push(error.to_string());
        }
        failure
    }
}

impl<E: Explain> From<E> for Failure {
    fn from(error: E) -> Self {
        Self::told(vec![error.report()])
    }
}

/// Does something with each of `names`, going on after a failure, as Docker does.
pub(crate) fn each<'a>(
    names: impl IntoIterator<Item = &'a String>,
    mut act: impl FnMut(&'a str) -> Result<()>,
) -> Result<u8> {
    let mut reports = Vec::new();
    for name in names {
        match act(name) {
            Ok(()) => {}
            // Nobody reads any more.
            Err(failure) if failure.reports.is_empty() => return Err(failure),
            Err(failure) => reports.extend(failure.reports),
        }
    }
    if reports.is_empty() {
        return Ok(0);
    }
    Err(Failure::told(reports))
}
