//! `load`.

use std::path::Path;

use knarr_engine::image::Source;

use super::{Call, Command, USUAL};
use crate::failure::{Failure, Result};
use crate::flag::Flag;
use crate::progress::Bars;
use crate::{output, request, terminal};

pub(super) static COMMAND: Command = Command {
    names: &["load", "image load"],
    usage: "[OPTIONS]",
    about: "Load an image from a tar archive, an OCI layout folder or STDIN",
    flags: &[&[
        Flag::switch(
            "all-platforms",
            "Load whole indexes, with the images of all platforms",
        ),
        Flag::with(
            "input",
            "string",
            "Read from tar archive file or folder, instead of STDIN",
        )
        .short('i'),
        Flag::with(
            "platform",
            "string",
            "Load only the given platform of a multi-platform image",
        ),
        Flag::switch("quiet", "Suppress the load output").short('q'),
    ]],
    run,
    ..USUAL
};

fn run(call: &Call<'_>) -> Result<u8> {
    let line = &call.line;
    let options = request::pull_options(line)?;
    let bars = Bars::for_archive(line.on("quiet"));
    let path = line.text("input");
    let mut stdin = std::io::stdin();
    let source = match path {
        "" | "-" if terminal::is_terminal(&stdin) => {
            return Err(
                Failure::invalid("requested load from stdin, but stdin is empty")
                    .hint("name the archive: `knarr load -i FILE`"),
            );
        }
        "" | "-" => Source::Stream(&mut stdin),
        path => Source::Path(Path::new(path)),
    };
    let engine = call.engine()?;
    let loaded = match options.all_platforms {
        true => engine.images().load_whole(source, &bars)?,
        false => engine
            .images()
            .load(source, options.platform.as_ref(), &bars)?,
    };
    let mut text = String::new();
    for image in loaded {
        if image.names.is_empty() {
            text.push_str(&format!("Loaded image ID: {}\n", image.id));
        }
        for name in image.names {
            text.push_str(&format!("Loaded image: {}\n", name.familiar()));
        }
    }
    output::print(&text)?;
    Ok(0)
}
