//! Where processes are killed, by what they are at: one table per operation, so that a test can say
//! which point of the sources has no case.

/// Points that every way passes which brings an image.
macro_rules! bringing {
    ($($own:literal),* $(,)?) => {
        [
            "layer.begun",
            "layer.indexed",
            "layer.synced",
            "layer.published",
            "blob.synced",
            "blob.linked",
            "blob.published",
            "image.blobs-stored",
            "image.written",
            "image.published",
            "image.naming",
            "image.named",
            $($own),*
        ]
    };
}

/// `kill.rs`.
pub(crate) const LOAD: [&str; 14] = bringing!["layer.taken", "load.layers-present"];
/// `resume.rs`.
pub(crate) const PULL: [&str; 17] = bringing![
    "pull.receiving",
    "pull.segment-received",
    "layer.taken",
    "pull.partial-removed",
    "pull.layers-present",
];
/// `kill.rs`.
pub(crate) const COMMIT: [&str; 14] = bringing!["commit.taken", "commit.layer-present"];
/// `kill.rs`.
pub(crate) const IMPORT: [&str; 14] = bringing!["import.taken", "import.layer-present"];
/// `kill.rs`.
pub(crate) const REMOVE: [&str; 6] = [
    "image.hidden",
    "image.unnamed",
    "image.removed",
    "image.collecting",
    "image.layer-removed",
    "image.blob-removed",
];
/// `whole.rs`: of an index, besides those of its images.
const REMOVE_INDEX: [&str; 1] = ["image.part-hidden"];
/// `kill.rs`.
pub(crate) const COLLECT: [&str; 3] = [
    "image.collecting",
    "image.layer-removed",
    "image.blob-removed",
];
/// `kill.rs`.
pub(crate) const CHECK: [&str; 1] = ["check.set-aside"];
/// `tests/tests/registry.rs`.
const PUSH: [&str; 1] = ["push.begun"];
/// Of a start: `tests/tests/kill_matrix.rs`.
const START: [&str; 3] = ["layer.mounted", "layer.upper", "layer.unpacked"];

pub(crate) const ALL: [&[&str]; 10] = [
    &LOAD,
    &PULL,
    &COMMIT,
    &IMPORT,
    &REMOVE,
    &REMOVE_INDEX,
    &COLLECT,
    &CHECK,
    &PUSH,
    &START,
];
