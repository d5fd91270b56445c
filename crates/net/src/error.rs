//! What can go wrong with a network.

use std::net::IpAddr;
use std::path::PathBuf;

use knarr_diag::{Class, Explain};
use knarr_sys::Failure;
use rustix::io::Errno;

/// What this crate's functions return.
pub type Result<T> = std::result::Result<T, Error>;

/// A failure to make, find or release a part of a network.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The kernel refused something about a link, an address, a route or the firewall.
    #[error("cannot {what}")]
    Kernel {
        /// What was tried, on what.
        what: String,
        /// How it failed.
        #[source]
        cause: Failure,
    },
    /// A file operation failed.
    #[error(transparent)]
    File(#[from] knarr_fs::Error),
    /// A file is not what it must be.
    #[error("{} is damaged", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What the parser said.
        #[source]
        cause: serde_json::Error,
    },
    /// The request itself is wrong.
    #[error("{message}")]
    Invalid {
        /// In the words of Docker, where it has some.
        message: String,
        /// What to do.
        hint: Option<String>,
    },
    /// All addresses of a network are leased.
    #[error("network {network} has no free address in {pool}")]
    NoAddress {
        /// The network.
        network: String,
        /// Where one was looked for.
        pool: String,
    },
    /// Somebody has the address.
    #[error("address {address} on network {network} is in use by container {holder}")]
    AddressInUse {
        /// The address.
        address: IpAddr,
        /// The network.
        network: String,
        /// The container's id, shortened.
        holder: String,
    },
    /// Somebody has the port.
    #[error("cannot publish port {address}:{port}/{protocol}: {holder} has it")]
    PortInUse {
        /// On the host.
        address: IpAddr,
        /// On the host.
        port: u16,
        /// `tcp`, `udp` or `sctp`.
        protocol: &'static str,
        /// The process or container, as far as it can be told.
        holder: String,
    },
    /// Every pool overlaps with something.
    #[error("no free subnet is left in the default address pools")]
    NoSubnet {
        /// The first few things in the way: `172.17.0.0/16 (route via eth0)`.
        taken: Vec<String>,
    },
    /// A link of that name is there, and it is not Knarr's.
    #[error("interface {name} exists and {owner}")]
    ForeignLink {
        /// The link.
        name: String,
        /// `is not Knarr's`, `belongs to the Knarr of /run/other`.
        owner: String,
    },
    /// Somebody else owns the firewall's table.
    #[error("the firewall table {table} belongs to another process (netlink port {port})")]
    ForeignTable {
        /// The table's name.
        table: String,
        /// The owner's; usually the number of its process.
        port: u32,
    },
    /// This kernel or machine cannot do it.
    #[error("{what} is not possible here: {reason}")]
    Unsupported {
        /// What was asked.
        what: String,
        /// Why not.
        reason: String,
    },
}

impl Error {
    /// For `map_err`: names what was tried.
    pub(crate) fn of(call: &'static str, what: impl Into<String>) -> impl FnOnce(Errno) -> Self {
        let what = what.into();
        move |errno| Self::Kernel {
            what,
            cause: Failure { call, errno },
        }
    }

    pub(crate) fn invalid(message: impl Into<String>) -> Self {
        Self::Invalid {
            message: message.into(),
            hint: None,
        }
    }

    pub(crate) fn invalid_hint(message: impl Into<String>, hint: impl Into<String>) -> Self {
        Self::Invalid {
            message: message.into(),
            hint: Some(hint.into()),
        }
    }

    /// What the kernel answered, where it did.
    pub fn errno(&self) -> Option<Errno> {
        match self {
            Self::Kernel { cause, .. } => Some(cause.errno),
            Self::File(error) => error.errno(),
            _ => None,
        }
    }
}

impl Explain for Error {
    fn class(&self) -> Class {
        match self {
            Self::Kernel { cause, .. } => match cause.errno {
                Errno::PERM | Errno::ACCESS => Class::Denied,
                Errno::OPNOTSUPP | Errno::AFNOSUPPORT | Errno::NOSYS => Class::Unsupported,
                _ => Class::Unavailable,
            },
            Self::File(error) => error.class(),
            Self::Damaged { .. } => Class::Corrupt,
            Self::Invalid { .. } => Class::Invalid,
            Self::NoAddress { .. } | Self::NoSubnet { .. } => Class::Exhausted,
            Self::AddressInUse { .. }
            | Self::PortInUse { .. }
            | Self::ForeignLink { .. }
            | Self::ForeignTable { .. } => Class::Busy,
            Self::Unsupported { .. } => Class::Unsupported,
        }
    }

    fn code(&self) -> &'static str {
        match self {
            Self::Kernel { .. } => "network-failed",
            Self::File(error) => error.code(),
            Self::Damaged { .. } => "network-damaged",
            Self::Invalid { .. } => "network-invalid",
            Self::NoAddress { .. } => "address-exhausted",
            Self::AddressInUse { .. } => "address-in-use",
            Self::PortInUse { .. } => "port-in-use",
            Self::NoSubnet { .. } => "subnet-exhausted",
            Self::ForeignLink { .. } => "link-in-use",
            Self::ForeignTable { .. } => "table-in-use",
            Self::Unsupported { .. } => "network-unsupported",
        }
    }

    fn hint(&self) -> Option<String> {
        match self {
            Self::File(error) => error.hint(),
            Self::Invalid { hint, .. } => hint.clone(),
            Self::Kernel { cause, .. } if cause.errno == Errno::PERM => {
                Some("networks need CAP_NET_ADMIN; `--network none` and `host` do not".to_owned())
            }
            Self::NoAddress { network, .. } => Some(format!(
                "`knarr network inspect {network}` lists who has them; a larger --subnet has more"
            )),
            Self::AddressInUse { holder, .. } => {
                Some(format!("choose another address, or stop {holder} first"))
            }
            Self::PortInUse { .. } => {
                Some("publish another port, or stop what has this one".to_owned())
            }
            Self::NoSubnet { taken } => Some(format!(
                "in the way are {}; say which to use with --subnet",
                taken.join(", ")
            )),
            Self::ForeignTable { .. } => Some(
                "Knarr's monitors lend it to each other, which needs CAP_SYS_PTRACE; if it is none \
                 of them, stop the process: `ss -f netlink -p` names it"
                    .to_owned(),
            ),
            Self::ForeignLink { name, .. } => Some(format!(
                "remove it (`ip link del {name}`), or give the network another name for its bridge"
            )),
            _ => None,
        }
    }
}
