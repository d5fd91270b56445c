//! `push`.

use knarr_engine::image::{Compression, CompressionKind, PushOptions};
use knarr_spec::Reference;

use super::{Arguments, Call, Command, USUAL, pull, tag};
use crate::failure::{Failure, Result};
use crate::flag::{Flag, value};
use crate::output;
use crate::progress::{self, Bars, Place};
use crate::request::flags;

pub(super) static COMMAND: Command = Command {
    names: &["push", "image push"],
    usage: "[OPTIONS] NAME[:TAG]",
    about: "Upload an image to a registry",
    flags: &[
        &[
            Flag::switch("all-tags", "Push all tags of an image to the repository").short('a'),
            Flag::with(
                "compression",
                "string",
                "Compress layers with \"gzip\" or \"zstd\"",
            )
            .checked(|text| text.parse::<CompressionKind>().map(|_| ())),
            Flag::with("compression-format", "string", "")
                .checked(|text| text.parse::<CompressionKind>().map(|_| ()))
                .hidden(),
            Flag::with("compression-level", "int", "Compression level").checked(value::int),
            Flag::with(
                "digestfile",
                "string",
                "Write the manifest's digest to a file",
            ),
            Flag::with(
                "platform",
                "string",
                "Push one image of a whole index, not the index",
            ),
            progress::FLAG,
            Flag::switch("quiet", "Suppress verbose output").short('q'),
        ],
        flags::REGISTRY,
    ],
    arguments: Arguments::Exactly(1),
    run,
    ..USUAL
};

fn run(call: &Call<'_>) -> Result<u8> {
    let line = &call.line;
    let kind = line.get("compression").or(line.get("compression-format"));
    let kind = kind.map(str::parse).transpose().map_err(Failure::invalid)?;
    let level = line.int("compression-level");
    let level = level.map(|level| i32::try_from(level).unwrap_or(i32::MAX));
    let compression = match (kind, level) {
        (None, None) => None,
        (kind, level) => {
            let kind = kind.unwrap_or(CompressionKind::Gzip);
            Some(Compression::new(kind, level).map_err(Failure::invalid)?)
        }
    };
    let reached = pull::options(call)?;
    let options = PushOptions {
        compression,
        platform: reached.platform,
        registry: reached.registry,
    };
    let typed = call.arg(0);
    let place = Place::of(line);
    let engine = call.engine()?;
    let references = match line.on("all-tags") {
        true => tags(&engine, typed)?,
        false => {
            if place.is_text() && !pull::names_a_tag(typed) {
                output::line("Using default tag: latest")?;
            }
            vec![tag::reference(typed)?]
        }
    };
    for reference in &references {
        let bars = Bars::for_push(place);
        let pushed = engine.images().push(reference, &options, &bars)?;
        let tag = reference.tag().unwrap_or_default();
        match place {
            Place::Nowhere => output::line(&reference.to_string())?,
            _ => bars.say(&format!(
                "{tag}: digest: {} size: {}",
                pushed.digest, pushed.size
            )),
        }
        if let Some(was) = pushed.was
            && place.is_text()
        {
            bars.say(&format!(
                "(layers were compressed anew, so the digest is another than {was};\n \
                 `knarr pull --keep-blobs` keeps what is needed to push the same)"
            ));
        }
        if let Some(path) = line.get("digestfile") {
            std::fs::write(path, pushed.digest.to_string())
                .map_err(|error| Failure::io(format!("cannot write {path}"), &error))?;
        }
    }
    Ok(0)
}

/// Every tag that an image here has in the repository.
fn tags(engine: &knarr_engine::Engine, typed: &str) -> Result<Vec<Reference>> {
    if pull::names_a_tag(typed) {
        return Err(Failure::invalid("tag can't be used with --all-tags/-a"));
    }
    let wanted = tag::reference(typed)?;
    let mut found: Vec<Reference> = engine
        .images()
        .list()?
        .images
        .into_iter()
        .flat_map(|listed| listed.tags)
        .filter(|tag| {
            (tag.registry(), tag.repository()) == (wanted.registry(), wanted.repository())
        })
        .collect();
    found.sort();
    if found.is_empty() {
        return Err(Failure::of(
            knarr_diag::Class::NotFound,
            "image-not-found",
            format!("no image here has a tag in {typed}"),
        )
        .hint(format!("give one with `knarr tag IMAGE {typed}:TAG`")));
    }
    Ok(found)
}
