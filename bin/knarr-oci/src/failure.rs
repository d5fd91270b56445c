//! Why a command failed: one line, as runc writes it, and the exit code.

use knarr_diag::{Explain, Report};

/// What commands return.
pub(crate) type Result<T> = std::result::Result<T, Failure>;

/// The line and the code.
#[derive(Debug)]
pub(crate) struct Failure {
    pub(crate) message: String,
    pub(crate) code: u8,
    /// The command was not understood, so nothing was tried.
    pub(crate) usage: bool,
}

impl Failure {
    /// What cannot be understood.
    pub(crate) fn usage(message: impl Into<String>) -> Self {
        Self {
            usage: true,
            ..Self::new(message)
        }
    }

    /// With exit code 1.
    pub(crate) fn new(message: impl Into<String>) -> Self {
        Self {
            message: message.into(),
            code: 1,
            usage: false,
        }
    }

    /// Puts what was done in front.
    #[must_use]
    pub(crate) fn during(mut self, what: &str) -> Self {
        self.message = format!("{what}: {}", self.message);
        self
    }

    #[must_use]
    pub(crate) fn with_code(mut self, code: u8) -> Self {
        self.code = code;
        self
    }
}

/// The chain of an error in one line, the remedy in parentheses at its end.
pub(crate) fn line(report: &Report) -> String {
    let mut line = report.message.clone();
    for reason in &report.because {
        line.push_str(": ");
        line.push_str(reason);
    }
    if let Some(hint) = &report.hint {
        line.push_str(" (");
        line.push_str(hint);
        line.push(')');
    }
    line
}

impl<E: Explain> From<E> for Failure {
    fn from(error: E) -> Self {
        Self::new(line(&error.report()))
    }
}
