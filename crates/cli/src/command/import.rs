//! `import`.

use std::path::Path;

use knarr_engine::image::{ImportOptions, Source};

use super::{Arguments, Call, Command, USUAL, tag};
use crate::failure::{Failure, Result};
use crate::flag::Flag;
use crate::{output, request};

pub(super) static COMMAND: Command = Command {
    names: &["import", "image import"],
    usage: "[OPTIONS] file|- [REPOSITORY[:TAG]]",
    about: "Import the contents from a tarball to create a filesystem image",
    flags: &[&[
        Flag::with(
            "change",
            "list",
            "Apply Dockerfile instruction to the created image",
        )
        .short('c'),
        Flag::with("message", "string", "Set commit message for imported image").short('m'),
        Flag::with("platform", "string", "Set platform of the image"),
    ]],
    arguments: Arguments::Between(1, 2),
    run,
    ..USUAL
};

fn run(call: &Call<'_>) -> Result<u8> {
    let file = call.arg(0);
    if file.starts_with("http://") || file.starts_with("https://") {
        return Err(Failure::of(
            knarr_diag::Class::Unsupported,
            "import-url",
            "importing from a URL is not served by Knarr yet",
        )
        .hint(format!("curl -L {file} | knarr import - NAME")));
    }
    let name = call.line.args.get(1).map(|name| tag::reference(name));
    let options = ImportOptions {
        reference: name.transpose()?,
        changes: call.line.list("change"),
        message: call.line.get("message").map(str::to_owned),
        platform: request::pull_options(&call.line)?.platform,
    };
    let mut stdin = std::io::stdin();
    let source = match file {
        "-" => Source::Stream(&mut stdin),
        path => Source::Path(Path::new(path)),
    };
    let image = call.engine()?.images().import(source, &options)?;
    output::line(&image.id.to_string())?;
    Ok(0)
}
