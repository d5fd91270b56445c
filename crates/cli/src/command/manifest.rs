//! `manifest`: indexes of images for several platforms, made by hand.
//!
//! A list in the making is a file `manifests/<its name, with slashes as %2F>.json` below the data
//! root: an OCI image index, its entries' repositories in an annotation that a push takes out.

use std::collections::BTreeMap;
use std::path::PathBuf;

use knarr_distribution::{Fetched, Session};
use knarr_engine::image::PullOptions;
use knarr_fs::Durability;
use knarr_spec::image::{Descriptor, Index, media_type};
use knarr_spec::manifest::Document;
use knarr_spec::{Platform, Reference};
use serde_json::Value;

use super::remote::{self, bare_name};
use super::{Arguments, Call, Command, USUAL};
use crate::failure::{Failure, Result, each};
use crate::flag::Flag;
use crate::request::flags;
use crate::{format, output};

/// Where an entry's image is; of no concern to the registry.
const FROM: &str = "knarr.from";

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
    run: |call| {
        each(&call.line.args, |name| {
            // A damaged one too, so it is not read.
            let list = List::at(call, name)?;
            if !list.path.exists() {
                return Err(List::missing(name));
            }
            Ok(knarr_fs::remove_file(&list.path)?)
        })
    },
    ..USUAL
};

/// A list in the making.
struct List {
    reference: Reference,
    path: PathBuf,
    index: Index,
}

impl List {
    fn at(call: &Call<'_>, name: &str) -> Result<Self> {
        let reference = super::tag::reference(name)?;
        let settings = knarr_engine::Settings::locate(
            call.globals.root.clone(),
            call.globals.run_root.clone(),
        )?;
        let file = format!("{}.json", reference.to_string().replace('/', "%2F"));
        Ok(Self {
            path: settings.root.join("manifests").join(file),
            reference,
            index: Index {
                schema_version: 2,
                media_type: Some(media_type::OCI_INDEX.to_owned()),
                manifests: Vec::new(),
                annotations: BTreeMap::new(),
            },
        })
    }

    fn find(call: &Call<'_>, name: &str) -> Result<Option<Self>> {
        let mut list = Self::at(call, name)?;
        let bytes = match knarr_fs::read(&list.path) {
            Ok(bytes) => bytes,
            Err(error) if error.is_not_found() => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        list.index = serde_json::from_slice(&bytes).map_err(|error| {
            Failure::of(
                knarr_diag::Class::Corrupt,
                "manifest-list-damaged",
                format!("the manifest list {name} cannot be read: {error}"),
            )
            .hint(format!("`knarr manifest rm {name}` removes it"))
        })?;
        Ok(Some(list))
    }

    fn load(call: &Call<'_>, name: &str) -> Result<Self> {
        Self::find(call, name)?.ok_or_else(|| Self::missing(name))
    }

    fn missing(name: &str) -> Failure {
        Failure::of(
            knarr_diag::Class::NotFound,
            "manifest-list-not-found",
            format!("no such manifest list: {name}"),
        )
        .hint(format!("`knarr manifest create {name} IMAGE...` makes it"))
    }

    fn save(&self) -> Result<()> {
        if let Some(folder) = self.path.parent() {
            knarr_fs::create_dir_all(folder)?;
        }
        // Plain values always serialize.
        let bytes = serde_json::to_vec_pretty(&self.index).unwrap_or_default();
        Ok(knarr_fs::write_atomic(
            &self.path,
            &bytes,
            Durability::Durable,
        )?)
    }

    /// The one entry that `typed` means, by its digest or by where its image is.
    fn entry(&mut self, typed: &str) -> Result<&mut Descriptor> {
        let reference = super::tag::reference(bare_name(typed));
        let pinned = match typed.parse() {
            Ok(digest) => Some(digest),
            Err(_) => reference.as_ref().ok().and_then(Reference::digest),
        };
        let place = reference.map(|r| place_of(&r)).unwrap_or_default();
        let mut fitting = self
            .index
            .manifests
            .iter_mut()
            .filter(|entry| match pinned {
                Some(digest) => entry.digest == digest,
                None => entry.annotations.get(FROM) == Some(&place),
            });
        match (fitting.next(), fitting.count()) {
            (Some(entry), 0) => Ok(entry),
            (first, others) => Err(Failure::invalid(format!(
                "the manifest list has {} images that {typed} may mean",
                usize::from(first.is_some()) + others
            ))
            .hint("name the image by its digest, which `knarr manifest inspect` shows")),
        }
    }

    /// Puts an image in, in the place of the same one.
    fn put(&mut self, descriptor: Descriptor) {
        self.index
            .manifests
            .retain(|known| known.digest != descriptor.digest);
        self.index.manifests.push(descriptor);
    }

    /// Adds what `typed` means at its registry.
    fn add(
        &mut self,
        session: &Session<'_>,
        options: &PullOptions,
        typed: &str,
        all: bool,
    ) -> Result<()> {
        let reference = remote::reference(options, typed)?;
        let fetched = session.manifest(&reference)?;
        let index = match &fetched.document {
            Document::Manifest(_) => {
                self.put(described(session, &reference, &fetched)?);
                return Ok(());
            }
            Document::Index(index) => index,
        };
        if !all {
            let host = Platform::host();
            let wanted = options.platform.as_ref().unwrap_or(&host);
            let best = knarr_engine::image::best(&reference.familiar(), wanted, index)?.clone();
            self.put(from(best, &reference));
            return Ok(());
        }
        for entry in index.manifests.clone() {
            self.put(from(entry, &reference));
        }
        Ok(())
    }
}

fn from(mut descriptor: Descriptor, reference: &Reference) -> Descriptor {
    descriptor
        .annotations
        .insert(FROM.to_owned(), place_of(reference));
    descriptor
}

/// `registry/repository`
fn place_of(reference: &Reference) -> String {
    format!("{}/{}", reference.registry(), reference.repository())
}

/// Where an entry's image is.
fn source(entry: &Descriptor) -> Result<Reference> {
    let place = entry.annotations.get(FROM).map_or("", String::as_str);
    Ok(super::tag::reference(place)?.with_digest(entry.digest))
}

/// An image with the platform that its configuration says.
fn described(session: &Session<'_>, reference: &Reference, image: &Fetched) -> Result<Descriptor> {
    let mut descriptor = image.descriptor();
    if let Document::Manifest(manifest) = &image.document {
        let bytes = session.document(reference, &manifest.config)?;
        let platform: Platform = serde_json::from_slice(&bytes).unwrap_or_default();
        descriptor.platform = Some(platform).filter(|platform| !platform.os.is_empty());
    }
    Ok(from(descriptor, reference))
}

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
    let name = call.arg(0);
    let found = List::find(call, name)?;
    if found.is_some() && !call.line.on("amend") {
        return Err(Failure::of(
            knarr_diag::Class::Exists,
            "manifest-list-exists",
            format!("the manifest list {name} exists already"),
        )
        .hint("add --amend"));
    }
    let mut list = match found {
        Some(list) => list,
        None => List::at(call, name)?,
    };
    let (client, options) = client(call)?;
    let session = client.session()?;
    for typed in call.line.args.iter().skip(1) {
        list.add(&session, &options, typed, false)?;
    }
    list.save()?;
    output::line(&format!("Created manifest list {}", list.reference))?;
    Ok(0)
}

fn add(call: &Call<'_>) -> Result<u8> {
    let mut list = List::load(call, call.arg(0))?;
    let (client, options) = client(call)?;
    let session = client.session()?;
    list.add(&session, &options, call.arg(1), call.line.on("all"))?;
    list.save()?;
    output::line(&list.reference.to_string())?;
    Ok(0)
}

fn annotate(call: &Call<'_>) -> Result<u8> {
    let line = &call.line;
    let mut list = List::load(call, call.arg(0))?;
    let entry = list.entry(call.arg(1))?;
    let mut platform = entry.platform.clone().unwrap_or_default();
    for (flag, field) in [
        ("arch", &mut platform.architecture),
        ("os", &mut platform.os),
    ] {
        if let Some(value) = line.get(flag) {
            *field = value.to_owned();
        }
    }
    platform.variant = line.get("variant").map(str::to_owned).or(platform.variant);
    platform.os_version = line
        .get("os-version")
        .map(str::to_owned)
        .or(platform.os_version);
    entry.platform = Some(platform);
    for annotation in line.all("annotation") {
        let Some((key, value)) = annotation.split_once('=') else {
            return Err(Failure::invalid(format!("{annotation:?} is not KEY=VALUE")));
        };
        entry.annotations.insert(key.to_owned(), value.to_owned());
    }
    list.save()?;
    Ok(0)
}

/// The index as a registry gets it.
fn bare(mut index: Index) -> Index {
    for entry in &mut index.manifests {
        entry.annotations.remove(FROM);
    }
    index
}

fn inspect(call: &Call<'_>) -> Result<u8> {
    let name = call.arg(0);
    let (client, options) = client(call)?;
    let wanted = match call.line.args.get(1) {
        Some(image) => source(List::load(call, name)?.entry(image)?)?,
        None => match List::find(call, bare_name(name))? {
            Some(list) => {
                let value = serde_json::to_value(bare(list.index)).unwrap_or_default();
                return output::line(&format::pretty(&value)).map(|()| 0);
            }
            None => remote::reference(&options, name)?,
        },
    };
    let fetched = client.session()?.manifest(&wanted)?;
    let value: Value = serde_json::from_slice(&fetched.bytes).unwrap_or_default();
    output::line(&format::pretty(&value))?;
    Ok(0)
}

fn push(call: &Call<'_>) -> Result<u8> {
    let list = List::load(call, call.arg(0))?;
    let (client, _) = client(call)?;
    let session = client.session()?;
    let to = &list.reference;
    let home = place_of(to);
    for entry in &list.index.manifests {
        if entry.annotations.get(FROM) != Some(&home) {
            bring(&session, to, entry)?;
        }
    }
    let bytes = serde_json::to_vec(&bare(list.index.clone())).unwrap_or_default();
    let digest = session.put_manifest(to, media_type::OCI_INDEX, &bytes)?;
    if call.line.on("purge") {
        knarr_fs::remove_file(&list.path)?;
    }
    output::line(&digest.to_string())?;
    Ok(0)
}

/// Has an image in the list's repository too: blobs are taken over inside a registry, and else
/// passed on.
fn bring(session: &Session<'_>, to: &Reference, entry: &Descriptor) -> Result<()> {
    let source = source(entry)?;
    let fetched = session.manifest(&source)?;
    let Document::Manifest(manifest) = &fetched.document else {
        return Err(Failure::invalid(format!("{source} is no image"))
            .hint("add the images of an index with `knarr manifest add --all`"));
    };
    for blob in manifest.layers.iter().chain([&manifest.config]) {
        if session.has_blob(to, blob.digest)? == Some(blob.size) {
            continue;
        }
        if source.registry() == to.registry()
            && session.mount_blob(to, blob.digest, source.repository())?
        {
            continue;
        }
        let mut open = || -> std::io::Result<Box<dyn std::io::Read>> {
            let blob = session.blob(&source, blob).map_err(std::io::Error::other)?;
            Ok(Box::new(blob))
        };
        session.push_blob(to, Some(blob.digest), &mut open, &|_| {})?;
    }
    session.put_manifest(
        &to.with_digest(entry.digest),
        &fetched.media_type,
        &fetched.bytes,
    )?;
    Ok(())
}
