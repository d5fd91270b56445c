//! Device rules: which nodes may be read, written and made; as eBPF (v2) or as v1 lines.

use serde::{Deserialize, Serialize};

/// Which devices a rule is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DeviceKind {
    /// Both kinds.
    All,
    /// Block devices.
    Block,
    /// Character devices.
    Char,
}

/// What a rule allows or denies, any combination.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Access {
    /// Open for reading.
    pub read: bool,
    /// Open for writing.
    pub write: bool,
    /// Make a node (mknod(2)).
    pub mknod: bool,
}

/// One rule; of several that match, the last decides.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeviceRule {
    /// Or deny.
    pub allow: bool,
    /// Block, character or both.
    pub kind: DeviceKind,
    /// `None` matches all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub major: Option<u32>,
    /// `None` matches all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub minor: Option<u32>,
    /// Which acts.
    pub access: Access,
}
