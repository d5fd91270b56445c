//! `tag`.

use knarr_spec::Reference;

use super::{Arguments, Call, Command, USUAL};
use crate::failure::{Failure, Result};

pub(super) static COMMAND: Command = Command {
    names: &["tag", "image tag"],
    usage: "SOURCE_IMAGE[:TAG] TARGET_IMAGE[:TAG]",
    about: "Create a tag TARGET_IMAGE that refers to SOURCE_IMAGE",
    arguments: Arguments::Exactly(2),
    run: |call: &Call<'_>| -> Result<u8> {
        let target = reference(call.arg(1))?;
        call.engine()?.images().tag(call.arg(0), &target)?;
        Ok(0)
    },
    ..USUAL
};

/// Reads a reference that the user typed.
pub(super) fn reference(text: &str) -> Result<Reference> {
    text.parse().map_err(|error: knarr_spec::ReferenceError| {
        Failure::of(
            knarr_diag::Class::Invalid,
            "invalid-reference",
            error.to_string(),
        )
    })
}
