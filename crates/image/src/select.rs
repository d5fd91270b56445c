//! From what a name means to the image for one platform.

use knarr_spec::Platform;
use knarr_spec::image::{Descriptor, ImageConfig, Index, Manifest, media_type};
use knarr_spec::manifest::Document;

use crate::record::platform_of;
use crate::{Error, Result};

/// How deep indexes may be nested.
const DEPTH: usize = 4;

/// An image's manifest with its exact bytes.
#[derive(Debug, Clone)]
pub(crate) struct Chosen {
    pub(crate) manifest: Manifest,
    pub(crate) bytes: Vec<u8>,
}

/// Follows indexes down to one image. `fetch` gives a document and its bytes.
pub(crate) fn choose(
    name: &str,
    platform: Option<&Platform>,
    mut current: (Vec<u8>, Document),
    mut fetch: impl FnMut(&Descriptor) -> Result<(Vec<u8>, Document)>,
) -> Result<Chosen> {
    let host = Platform::host();
    let wanted = platform.unwrap_or(&host);
    for _ in 0..DEPTH {
        let (bytes, document) = current;
        match document {
            Document::Manifest(manifest) => {
                check_types(name, &manifest)?;
                return Ok(Chosen {
                    manifest: *manifest,
                    bytes,
                });
            }
            Document::Index(index) => current = fetch(best(name, wanted, &index)?)?,
        }
    }
    Err(Error::NotAnImage {
        name: name.to_owned(),
        what: "its indexes are nested too deeply".to_owned(),
    })
}

/// The entry of an index for a platform.
///
/// # Errors
/// [`Error::NoPlatform`], which says what there is; `name` is the image's in it.
pub fn best<'i>(name: &str, wanted: &Platform, index: &'i Index) -> Result<&'i Descriptor> {
    let images: Vec<&Descriptor> = index.manifests.iter().filter(|d| is_image(d)).collect();
    let ranked = images
        .iter()
        .filter_map(|d| Some((d.platform.as_ref()?.rank(wanted)?, *d)))
        .min_by_key(|(rank, _)| *rank)
        .map(|(_, descriptor)| descriptor);
    // Without platforms: a nested index may know more, and a single image may be meant for all.
    let nested = images.iter().copied().find(|d| {
        d.platform.is_none()
            && matches!(
                d.media_type.as_str(),
                media_type::OCI_INDEX | media_type::DOCKER_LIST
            )
    });
    let only = match images.as_slice() {
        [single] if single.platform.is_none() => Some(*single),
        _ => None,
    };
    ranked.or(nested).or(only).ok_or_else(|| Error::NoPlatform {
        name: name.to_owned(),
        wanted: Box::new(wanted.clone()),
        available: images.iter().filter_map(|d| d.platform.clone()).collect(),
    })
}

/// Whether an entry of an index is an image; BuildKit's attestations have the platform
/// unknown/unknown.
pub(crate) fn is_image(descriptor: &Descriptor) -> bool {
    descriptor
        .platform
        .as_ref()
        .is_none_or(|p| p.os != "unknown")
}

/// Refuses artifacts, and layers that are not tars.
pub(crate) fn check_types(name: &str, manifest: &Manifest) -> Result<()> {
    let not_an_image = |what: String| Error::NotAnImage {
        name: name.to_owned(),
        what,
    };
    let config = manifest.config.media_type.as_str();
    if !matches!(
        config,
        "" | media_type::OCI_CONFIG | media_type::DOCKER_CONFIG
    ) {
        return Err(not_an_image(format!(
            "its configuration is of type {config}"
        )));
    }
    for layer in &manifest.layers {
        let kind = layer.media_type.as_str();
        if !kind.is_empty() && (!kind.contains("tar") || kind.contains("encrypted")) {
            return Err(not_an_image(format!("a layer is of type {kind}")));
        }
    }
    Ok(())
}

/// Parses a configuration and checks it against its manifest and an explicitly asked platform.
pub(crate) fn check_config(
    name: &str,
    bytes: &[u8],
    layers: usize,
    platform: Option<&Platform>,
) -> Result<ImageConfig> {
    let config: ImageConfig = serde_json::from_slice(bytes).map_err(|cause| Error::Config {
        name: name.to_owned(),
        cause,
    })?;
    let diff_ids = config.rootfs.diff_ids.len();
    if diff_ids != layers {
        return Err(Error::LayerCount {
            name: name.to_owned(),
            layers,
            diff_ids,
        });
    }
    let actual = platform_of(&config);
    match platform {
        Some(wanted) if !actual.satisfies(wanted) => Err(Error::Platform {
            name: name.to_owned(),
            wanted: Box::new(wanted.clone()),
            actual: Box::new(actual),
        }),
        _ => Ok(config),
    }
}
