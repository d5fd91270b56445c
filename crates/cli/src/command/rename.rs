//! `rename`.

use super::{Arguments, Call, Command, USUAL};
use crate::failure::Result;

pub(super) static COMMAND: Command = Command {
    names: &["rename", "container rename"],
    usage: "CONTAINER NEW_NAME",
    about: "Rename a container",
    arguments: Arguments::Exactly(2),
    run: |call: &Call<'_>| -> Result<u8> {
        call.engine()?.rename(call.arg(0), call.arg(1))?;
        Ok(0)
    },
    ..USUAL
};
