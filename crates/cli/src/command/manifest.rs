//! `manifest`: indexes of images for several platforms, made by hand.

use std::collections::BTreeMap;

use knarr_engine::image::{Error as ImageError, ManifestList, ManifestNote, PullOptions};
use knarr_spec::{Digest, Reference};
use serde_json::Value;

use super::remote::{self, bare_name};
use super::{Arguments, Call, Command, USUAL, tag};
use crate::failure::{Failure, Result, each};
use crate::flag::Flag;
use crate::request::flags;
use crate::{format, output};

pub(super) static CREATE: Command = Command {
    names: &["manifest create"],
    usage: "[OPTIONS] LIST [MANIFEST...]",
    about: "Create a local manifest list of images at registries",
    flags: &[
        &[
            Flag::switch("amend", "Amend an existing manifest list").short('a'),
            Flag::switch("insecure", "Allow communication with an insecure registry"),
        ],
        flags::REGISTRY,
    ],
    arguments: Arguments::AtLeast(1),
    run: create,
    ..USUAL
};

pub(super) static ADD: Command = Command {
    names: &["manifest add"],
    usage: "[OPTIONS] LIST MANIFEST",
    about: "Add an image, or all images of an index, to a manifest list",
    flags: &[
        &[Flag::switch("all", "Add all images of an index")],
        flags::REGISTRY,
    ],
    arguments: Arguments::Exactly(2),
    run: add,
    ..USUAL
};

pub(super) static ANNOTATE: Command = Command {
    names: &["manifest annotate"],
    usage: "[OPTIONS] LIST MANIFEST",
    about: "Add information to an image of a manifest list",
    flags: &[&[
        Flag::with("annotation", "list", "Set an annotation (KEY=VALUE)"),
        Flag::with("arch", "string", "Set architecture"),
        Flag::with("os", "string", "Set operating system"),
        Flag::with("os-version", "string", "Set operating system version"),
        Flag::with("variant", "string", "Set architecture variant"),
    ]],
    arguments: Arguments::Exactly(2),
    run: annotate,
    ..USUAL
};

pub(super) static INSPECT: Command = Command {
    names: &["manifest inspect"],
    usage: "[OPTIONS] [LIST] MANIFEST",
    about: "Display an image manifest, or manifest list",
    flags: &[
        &[Flag::switch(
            "insecure",
            "Allow communication with an insecure registry",
        )],
        flags::REGISTRY,
    ],
    arguments: Arguments::Between(1, 2),
    run: inspect,
    ..USUAL
};

pub(super) static PUSH: Command = Command {
    names: &["manifest push"],
    usage: "[OPTIONS] LIST",
    about: "Push a manifest list to a repository",
    flags: &[
        &[
            Flag::switch("insecure", "Allow push to an insecure registry"),
            Flag::switch("purge", "Remove the local manifest list after push").short('p'),
        ],
        flags::REGISTRY,
    ],
    arguments: Arguments::Exactly(1),
    run: push,
    ..USUAL
};

pub(super) static REMOVE: Command = Command {
    names: &["manifest rm"],
    usage: "LIST [LIST...]",
    about: "Delete one or more manifest lists from local storage",
    arguments: Arguments::AtLeast(1),
    run: remove,
    ..USUAL
};

/// How registries are reached, with Docker's word for it too.
fn client(call: &Call<'_>) -> Result<(knarr_distribution::Client<'static>, PullOptions)> {
    let (client, mut options) = remote::client(call)?;
    if !call.line.on("insecure") {
        return Ok((client, options));
    }
    options.registry.insecure = true;
    let client = knarr_distribution::Client::new(options.registry.clone()).on_retry(output::note);
    Ok((client, options))
}

fn create(call: &Call<'_>) -> Result<u8> {
    let engine = call.engine()?;
    let name = tag::reference(call.arg(0))?;
    let mut list = engine
        .images()
        .create_manifest_list(&name, call.line.on("amend"))?;
    for typed in call.line.args.iter().skip(1) {
        fill(call, &mut list, typed, false)?;
    }
    list.save()?;
    output::line(&format!("Created manifest list {name}"))?;
    Ok(0)
}

fn add(call: &Call<'_>) -> Result<u8> {
    let engine = call.engine()?;
    let mut list = engine
        .images()
        .manifest_list(&tag::reference(call.arg(0))?)?;
    fill(call, &mut list, call.arg(1), call.line.on("all"))?;
    list.save()?;
    output::line(&list.reference().to_string())?;
    Ok(0)
}

/// Adds what `typed` means at its registry.
fn fill(call: &Call<'_>, list: &mut ManifestList, typed: &str, all: bool) -> Result<()> {
    let (client, options) = client(call)?;
    let reference = remote::reference(&options, typed)?;
    let platform = options.platform.as_ref();
    Ok(list.add(&client.session()?, &reference, platform, all)?)
}

/// What `typed` may mean in a list: a digest, a place, or both.
fn meaning(typed: &str) -> (Option<Digest>, Option<Reference>) {
    let reference = tag::reference(bare_name(typed)).ok();
    let digest = match typed.parse() {
        Ok(digest) => Some(digest),
        Err(_) => reference.as_ref().and_then(Reference::digest),
    };
    (digest, reference)
}

fn annotate(call: &Call<'_>) -> Result<u8> {
    let line = &call.line;
    let engine = call.engine()?;
    let mut list = engine
        .images()
        .manifest_list(&tag::reference(call.arg(0))?)?;
    let typed = call.arg(1);
    let (digest, reference) = meaning(typed);
    let mut note = ManifestNote {
        os: line.get("os").map(str::to_owned),
        architecture: line.get("arch").map(str::to_owned),
        variant: line.get("variant").map(str::to_owned),
        os_version: line.get("os-version").map(str::to_owned),
        annotations: BTreeMap::new(),
    };
    for annotation in line.all("annotation") {
        let Some((key, value)) = annotation.split_once('=') else {
            return Err(Failure::invalid(format!("{annotation:?} is not KEY=VALUE")));
        };
        note.annotations.insert(key.to_owned(), value.to_owned());
    }
    list.annotate(typed, digest, reference.as_ref(), note)?;
    list.save()?;
    Ok(0)
}

/// A list that is being made here, an image of one, or what a registry has.
fn inspect(call: &Call<'_>) -> Result<u8> {
    let name = call.arg(0);
    let engine = call.engine()?;
    let (client, options) = client(call)?;
    let wanted = match call.line.args.get(1) {
        Some(image) => {
            let mut list = engine.images().manifest_list(&tag::reference(name)?)?;
            let (digest, reference) = meaning(image);
            list.source(image, digest, reference.as_ref())?
        }
        None => match engine
            .images()
            .manifest_list(&tag::reference(bare_name(name))?)
        {
            Ok(list) => {
                let value = serde_json::to_value(list.index()).unwrap_or_default();
                return output::line(&format::pretty(&value)).map(|()| 0);
            }
            Err(ImageError::ListNotFound { .. }) => remote::reference(&options, name)?,
            Err(error) => return Err(error.into()),
        },
    };
    let fetched = client.session()?.manifest(&wanted)?;
    let value: Value = serde_json::from_slice(&fetched.bytes).unwrap_or_default();
    output::line(&format::pretty(&value))?;
    Ok(0)
}

fn push(call: &Call<'_>) -> Result<u8> {
    let engine = call.engine()?;
    let list = engine
        .images()
        .manifest_list(&tag::reference(call.arg(0))?)?;
    let (client, _) = client(call)?;
    let digest = list.push(&client.session()?)?;
    if call.line.on("purge") {
        list.remove()?;
    }
    output::line(&digest.to_string())?;
    Ok(0)
}

fn remove(call: &Call<'_>) -> Result<u8> {
    let engine = call.engine()?;
    each(&call.line.args, |name| {
        Ok(engine
            .images()
            .remove_manifest_list(&tag::reference(name)?)?)
    })
}
