//! `untag`.

use super::{Arguments, Call, Command, USUAL, tag};
use crate::failure::Result;

pub(super) static COMMAND: Command = Command {
    names: &["untag", "image untag"],
    usage: "IMAGE [IMAGE...]",
    about: "Remove names from an image (all of them, or those that follow)",
    arguments: Arguments::AtLeast(1),
    run: |call: &Call<'_>| -> Result<u8> {
        let names = call.line.args.get(1..).unwrap_or_default();
        let names: Vec<_> = names
            .iter()
            .map(|name| tag::reference(name))
            .collect::<Result<_>>()?;
        call.engine()?.images().untag(call.arg(0), &names)?;
        Ok(0)
    },
    ..USUAL
};
