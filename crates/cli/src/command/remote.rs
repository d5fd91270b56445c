//! Images at registries, without pulling them: `image list-tags`, `image inspect --remote`,
//! `image delete`, `search`.

use knarr_distribution::{Client, Fetched, Session};
use knarr_engine::image::PullOptions;
use knarr_spec::manifest::Document;
use knarr_spec::{Platform, Reference};
use serde_json::{Value, json};

use super::{Arguments, Call, Command, USUAL, pull, tag};
use crate::failure::{Failure, Result};
use crate::flag::Flag;
use crate::format::{self, Layout};
use crate::output;
use crate::request::flags;

pub(super) static TAGS: Command = Command {
    names: &["image list-tags"],
    usage: "[OPTIONS] REPOSITORY",
    about: "List the tags of a repository at its registry",
    flags: &[
        &[Flag::with(
            "format",
            "string",
            "Format output using a custom template (\"json\", \"{{.Tag}}\")",
        )],
        flags::REGISTRY,
    ],
    arguments: Arguments::Exactly(1),
    run: tags,
    ..USUAL
};

pub(super) static DELETE: Command = Command {
    names: &["image delete"],
    usage: "[OPTIONS] --remote NAME[:TAG|@DIGEST]...",
    about: "Delete images at their registries",
    flags: &[
        &[Flag::switch(
            "remote",
            "Delete at the registry (`knarr rmi` removes what is here)",
        )],
        flags::REGISTRY,
    ],
    arguments: Arguments::AtLeast(1),
    run: delete,
    ..USUAL
};

pub(super) static SEARCH: Command = Command {
    names: &["search"],
    usage: "[OPTIONS] REGISTRY/TERM",
    about: "Search a registry that lists its repositories",
    flags: &[
        &[
            Flag::with(
                "format",
                "string",
                "Pretty-print search using a Go template",
            ),
            Flag::with("limit", "int", "Max number of search results")
                .checked(crate::flag::value::int),
            Flag::switch("no-trunc", "Don't truncate output"),
            Flag::with("filter", "filter", "")
                .short('f')
                .refused("registries say no more than names"),
        ],
        flags::REGISTRY,
    ],
    arguments: Arguments::Exactly(1),
    run: search,
    ..USUAL
};

/// How registries are reached, as the flags say.
pub(super) fn client(call: &Call<'_>) -> Result<(Client<'static>, PullOptions)> {
    let options = pull::options(call)?;
    let client = Client::new(options.registry.clone()).on_retry(output::note);
    Ok((client, options))
}

/// A name without the transport that Podman and skopeo write before it.
pub(super) fn bare_name(typed: &str) -> &str {
    typed.strip_prefix("docker://").unwrap_or(typed)
}

/// What a name that was typed means: the first thing that `registries.conf` says.
pub(super) fn reference(options: &PullOptions, typed: &str) -> Result<Reference> {
    let name = bare_name(typed);
    let meanings = options.registry.qualify(name)?;
    match meanings.into_iter().next() {
        Some(reference) => Ok(reference),
        None => tag::reference(name),
    }
}

static TAG_LAYOUT: Layout = Layout {
    table: "{{.Name}}\t{{.Tag}}",
    titles: &[("Name", "NAME"), ("Tag", "TAG")],
    kind: "*formatter.tagContext",
};

fn tags(call: &Call<'_>) -> Result<u8> {
    let (client, options) = client(call)?;
    let reference = reference(&options, call.arg(0))?;
    let tags = client.session()?.tags(&reference)?;
    let name = reference.full_name();
    let format = call.line.text("format");
    if format == "json" {
        let all = json!({"Repository": name, "Tags": tags});
        return output::line(&all.to_string()).map(|()| 0);
    }
    let rows: Vec<Value> = tags
        .iter()
        .map(|tag| json!({"Name": name, "Tag": tag}))
        .collect();
    output::print(&format::rows(&TAG_LAYOUT, format, &rows, &|_, _, _| None)?)?;
    Ok(0)
}

fn delete(call: &Call<'_>) -> Result<u8> {
    if !call.line.on("remote") {
        return Err(
            Failure::invalid("`knarr image delete` works on registries only")
                .hint("add --remote, or use `knarr rmi` for what is here"),
        );
    }
    let (client, options) = client(call)?;
    let session = client.session()?;
    crate::failure::each(&call.line.args, |typed| {
        let reference = reference(&options, typed)?;
        let digest = session.delete_manifest(&reference)?;
        output::line(&format!("Deleted: {}@{digest}", reference.familiar_name()))
    })
}

/// `image inspect --remote`: Docker's form, made from manifest and configuration alone.
pub(super) fn inspect(call: &Call<'_>) -> Result<u8> {
    let (client, options) = client(call)?;
    let session = client.session()?;
    super::inspect::show(call, |typed| {
        let reference = reference(&options, typed)?;
        let top = session.manifest(&reference)?;
        let digest = top.digest;
        let image = image(&session, &reference, top, options.platform.as_ref(), 0)?;
        describe(&session, &reference, digest, &image)
    })
}

/// The image of an index that a platform would get.
fn image(
    session: &Session<'_>,
    reference: &Reference,
    fetched: Fetched,
    platform: Option<&Platform>,
    depth: usize,
) -> Result<Fetched> {
    let Document::Index(index) = &fetched.document else {
        return Ok(fetched);
    };
    let name = reference.familiar();
    let host = Platform::host();
    let chosen = knarr_engine::image::best(&name, platform.unwrap_or(&host), index)?;
    if depth > 4 {
        return Err(Failure::invalid(format!(
            "the indexes of {name} are nested too deeply"
        )));
    }
    let next = session.manifest(&reference.with_digest(chosen.digest))?;
    image(session, reference, next, platform, depth + 1)
}

fn describe(
    session: &Session<'_>,
    reference: &Reference,
    digest: knarr_spec::Digest,
    image: &Fetched,
) -> Result<Value> {
    let Document::Manifest(manifest) = &image.document else {
        return Err(Failure::invalid(format!(
            "{} is no image",
            reference.familiar()
        )));
    };
    let bytes = session.document(reference, &manifest.config)?;
    // What is no image has a configuration of another kind; its manifest says enough then.
    let raw: Value = serde_json::from_slice(&bytes).unwrap_or_default();
    let text = |key: &str| raw.get(key).cloned().unwrap_or_else(|| json!(""));
    let tags: Vec<String> = match reference.tag() {
        Some(_) => vec![reference.familiar()],
        None => Vec::new(),
    };
    Ok(json!({
        "Id": manifest.config.digest.to_string(),
        "RepoTags": tags,
        "RepoDigests": [reference.with_digest(digest).familiar()],
        "Created": text("created"),
        "Author": text("author"),
        "Config": raw.get("config").cloned().unwrap_or_default(),
        "Architecture": text("architecture"),
        "Variant": text("variant"),
        "Os": text("os"),
        "Size": manifest.layers.iter().map(|layer| layer.size).sum::<u64>(),
        "RootFS": raw.get("rootfs").map_or(Value::Null, |rootfs| json!({
            "Type": "layers",
            "Layers": rootfs.get("diff_ids").cloned().unwrap_or_default(),
        })),
        "Manifest": {
            "MediaType": image.media_type,
            "Digest": image.digest.to_string(),
            "Layers": manifest.layers,
            "Annotations": manifest.annotations,
        },
    }))
}

static SEARCH_LAYOUT: Layout = Layout {
    table: "{{.Name}}",
    titles: &[("Name", "NAME")],
    kind: "*formatter.searchContext",
};

fn search(call: &Call<'_>) -> Result<u8> {
    let (client, _) = client(call)?;
    let typed = call.arg(0);
    let (registry, term) = match typed.split_once('/') {
        Some((host, term)) if host.contains(['.', ':']) || host == "localhost" => (host, term),
        _ => {
            return Err(Failure::of(
                knarr_diag::Class::Unsupported,
                "search-not-served",
                "Docker Hub's search is not part of any specification and is not served",
            )
            .hint("name a registry that lists its repositories: `knarr search REGISTRY/TERM`"));
        }
    };
    let mut names = client.session()?.repositories(registry)?;
    names.retain(|name| name.contains(term));
    if let Some(limit) = call.line.int("limit").and_then(|n| usize::try_from(n).ok()) {
        names.truncate(limit);
    }
    let rows: Vec<Value> = names
        .iter()
        .map(|name| json!({"Name": format!("{registry}/{name}")}))
        .collect();
    let format = call.line.text("format");
    output::print(&format::rows(&SEARCH_LAYOUT, format, &rows, &|_, _, _| {
        None
    })?)?;
    Ok(0)
}
