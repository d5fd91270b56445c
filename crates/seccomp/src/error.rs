//! Why a profile is not a filter.

use knarr_diag::{Class, Explain};

/// What is wrong with a profile or a stored program.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// An architecture nobody knows, or that Knarr has no table for.
    #[error("seccomp architecture `{0}` is not supported")]
    Architecture(String),
    /// A flag nobody knows.
    #[error("seccomp flag `{0}` is not supported")]
    Flag(String),
    /// A condition on an argument that no call has.
    #[error("seccomp rule for `{call}` compares argument {index}, calls have 0 to 5")]
    Argument {
        /// A call of the rule.
        call: String,
        /// As given.
        index: u32,
    },
    /// An errno for an action that has none.
    #[error("seccomp action does not take an errno, but errnoRet is {errno}")]
    Errno {
        /// As given.
        errno: u32,
    },
    /// A rule names no call.
    #[error("seccomp rule {index} names no system call")]
    NoNames {
        /// Of the rule, from 0.
        index: usize,
    },
    /// The listener's settings contradict the rules.
    #[error("seccomp listener: {0}")]
    Listener(&'static str),
    /// More than the kernel takes.
    #[error("the seccomp program has {0} instructions, the kernel takes at most 4096")]
    TooLong(usize),
    /// A profile file that is not one.
    #[error("cannot understand the seccomp profile")]
    Profile(#[source] serde_json::Error),
    /// A profile that says one thing in two ways.
    #[error("the seccomp profile has both {0}")]
    Ambiguous(&'static str),
    /// A `minKernel` that is no version.
    #[error("`{0}` in the seccomp profile is not a kernel version such as 4.8")]
    Kernel(String),
    /// Bytes that are no program.
    #[error("{0} bytes are not a seccomp program")]
    Bytes(usize),
}

/// What the crate returns.
pub type Result<T> = std::result::Result<T, Error>;

impl Explain for Error {
    fn class(&self) -> Class {
        match self {
            Self::Architecture(_) | Self::Flag(_) | Self::TooLong(_) => Class::Unsupported,
            Self::Bytes(_) => Class::Corrupt,
            _ => Class::Invalid,
        }
    }

    fn code(&self) -> &'static str {
        match self {
            Self::Architecture(_) => "seccomp-architecture-unsupported",
            Self::Flag(_) => "seccomp-flag-unsupported",
            Self::Argument { .. } => "seccomp-argument-invalid",
            Self::Errno { .. } => "seccomp-errno-invalid",
            Self::NoNames { .. } => "seccomp-rule-empty",
            Self::Listener(_) => "seccomp-listener-invalid",
            Self::TooLong(_) => "seccomp-program-too-long",
            Self::Profile(_) | Self::Ambiguous(_) | Self::Kernel(_) => "seccomp-profile-invalid",
            Self::Bytes(_) => "seccomp-program-corrupt",
        }
    }

    fn hint(&self) -> Option<String> {
        match self {
            Self::Architecture(_) => {
                Some("supported are SCMP_ARCH_X86_64, X86, X32, AARCH64 and ARM".to_owned())
            }
            Self::Errno { .. } => {
                Some("only SCMP_ACT_ERRNO and SCMP_ACT_TRACE take errnoRet".to_owned())
            }
            Self::TooLong(_) => {
                Some("use fewer rules with arguments, or fewer architectures".to_owned())
            }
            Self::Profile(_) => Some(
                "it is JSON in the form of Docker's default profile: \
                 https://docs.docker.com/engine/security/seccomp/"
                    .to_owned(),
            ),
            _ => None,
        }
    }
}
