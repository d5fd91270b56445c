//! `rmi`.

use knarr_diag::{Class, Explain};

use super::{Arguments, Call, Command, USUAL, trash};
use crate::failure::{Result, each};
use crate::flag::Flag;
use crate::output;

pub(super) static COMMAND: Command = Command {
    names: &["rmi", "image rm", "image remove"],
    usage: "[OPTIONS] IMAGE [IMAGE...]",
    about: "Remove one or more images",
    flags: &[&[
        Flag::switch("force", "Force removal of the image").short('f'),
        Flag::switch("no-prune", "").hidden(),
        Flag::with("platform", "strings", "").refused("name an image of an index by its digest"),
    ]],
    arguments: Arguments::AtLeast(1),
    run,
    ..USUAL
};

fn run(call: &Call<'_>) -> Result<u8> {
    let force = call.line.on("force");
    let engine = call.engine()?;
    let done = each(&call.line.args, |name| {
        match engine.remove_image(name, force) {
            Ok(removed) => {
                let lines: String = removed.iter().map(|line| format!("{line}\n")).collect();
                output::print(&lines)
            }
            Err(error) if force && error.class() == Class::NotFound => {
                output::note(&error.report().to_string());
                Ok(())
            }
            Err(error) => Err(error.into()),
        }
    });
    trash::empty_later(&engine);
    done
}
