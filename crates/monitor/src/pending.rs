//! Stand-ins until `knarr_runtime` and `knarr_layer::rootfs` are published; same names, same place.

use serde::{Deserialize, Serialize};

/// `knarr_runtime::Plan`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Plan {}
/// `knarr_runtime::ExecPlan`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ExecPlan {}
/// `knarr_layer::Rootfs`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Rootfs {}
