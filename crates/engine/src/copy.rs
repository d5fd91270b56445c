//! Files in and out of containers.

use std::path::PathBuf;

/// One end of `cp`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CopyEnd {
    /// A path here.
    Local(PathBuf),
    /// A tar stream: standard input or output (`-`).
    Stream,
    /// `container:path`.
    Container {
        /// Name or id.
        name: String,
        /// As typed; a trailing `/` or `/.` matters.
        path: String,
    },
}

/// How to copy.
#[derive(Debug, Clone, Copy, Default)]
pub struct CopyOptions {
    /// Keep owners (`-a`).
    pub archive: bool,
    /// Follow a symlink that is the source itself (`-L`).
    pub follow: bool,
}

impl crate::Engine {
    pub(crate) fn copy_now(
        &self,
        _from: &CopyEnd,
        _to: &CopyEnd,
        _options: &CopyOptions,
        _input: &mut dyn std::io::Read,
        _output: &mut dyn std::io::Write,
    ) -> crate::Result<()> {
        Err(crate::Error::Unsupported {
            what: "cp".to_owned(),
            reason: "it is not written yet",
        })
    }
}
