//! `top`.

use super::{Arguments, Call, Command, USUAL};
use crate::failure::Result;
use crate::{output, table};

pub(super) static COMMAND: Command = Command {
    names: &["top", "container top"],
    usage: "CONTAINER [ps OPTIONS]",
    about: "Display the running processes of a container",
    arguments: Arguments::AtLeast(1),
    interspersed: false,
    run,
    ..USUAL
};

/// Docker gives the columns of `top` twice the usual width.
const COLUMN: usize = 20;

fn run(call: &Call<'_>) -> Result<u8> {
    let arguments = call.line.args.get(1..).unwrap_or_default();
    let top = call.engine()?.top(call.arg(0), arguments)?;
    let mut text = top.titles.join("\t") + "\n";
    for process in &top.processes {
        text.push_str(&(process.join("\t") + "\n"));
    }
    output::print(&table::align_to(&text, COLUMN))?;
    Ok(0)
}
