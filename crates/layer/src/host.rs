//! `@host`.
use crate::rootfs::IdMap;
use crate::{Mounted, Result};

pub(crate) fn mount(_idmap: Option<&IdMap>) -> Result<Mounted> {
    todo!()
}
