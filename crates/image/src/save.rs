//! To an archive. The layers' tars are exact, so nothing is made anew but the frame.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{self, Write};

use knarr_cas::Hasher;
use knarr_layer::TarWriter;
use knarr_spec::image::{Descriptor, Index, media_type};
use knarr_spec::{Digest, Reference};
use serde::Serialize;

use crate::load::{member, plain_manifest};
use crate::record::platform_of;
use crate::store::Named;
use crate::{Error, Hold, Image, Result, SaveFormat, Store};

/// An entry of a docker-archive's manifest.json.
#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
pub(crate) struct DockerImage {
    pub(crate) config: String,
    pub(crate) repo_tags: Vec<String>,
    pub(crate) layers: Vec<String>,
}

/// An image to be saved, kept from removal.
struct Chosen {
    image: Image,
    names: Vec<Reference>,
    _hold: Hold,
}

impl Store {
    /// `save`: writes images with the names they are given here into one archive; layers are plain
    /// tars, each once.
    ///
    /// # Errors
    /// Names that mean nothing, damaged blobs, or the writer's.
    pub fn save(&self, names: &[String], format: SaveFormat, out: &mut dyn Write) -> Result<()> {
        let mut chosen: Vec<Chosen> = Vec::new();
        for name in names {
            let (named, _) = self.find(name)?;
            let (image, hold) = self.resolve_and_hold(name)?;
            let name = match named {
                Named::Name(name) if name.digest().is_none() => Some(name),
                _ => None,
            };
            match chosen.iter_mut().find(|known| known.image.id == image.id) {
                Some(known) => known.names.extend(name),
                None => chosen.push(Chosen {
                    image,
                    names: name.into_iter().collect(),
                    _hold: hold,
                }),
            }
        }
        let mut archive = Archive {
            writer: TarWriter::new(out),
            written: BTreeSet::new(),
        };
        match format {
            SaveFormat::Docker => self.save_docker(&chosen, &mut archive)?,
            SaveFormat::Oci => self.save_oci(&chosen, &mut archive)?,
        }
        archive.writer.finish().map_err(of_the_writer)?;
        for Chosen { image, names, .. } in &chosen {
            let name = names.first().map(Reference::familiar);
            self.announce.image("save", image.id, name);
        }
        Ok(())
    }

    fn save_docker(&self, chosen: &[Chosen], archive: &mut Archive<'_>) -> Result<()> {
        let mut listed = Vec::new();
        for Chosen { image, names, .. } in chosen {
            let config = format!("{}.json", image.id.digest().hex());
            archive.bytes(&config, &self.config_bytes(image.id)?)?;
            let mut layers = Vec::new();
            for (diff_id, _) in self.tars(image)? {
                layers.push(format!("{}.tar", diff_id.hex()));
            }
            for (id, member) in image.layers.iter().zip(&layers) {
                archive.file(member, &self.layers.path(id).join(knarr_layer::store::TAR))?;
            }
            listed.push(DockerImage {
                config,
                repo_tags: names.iter().map(Reference::familiar).collect(),
                layers,
            });
        }
        archive.json("manifest.json", &listed)
    }

    fn save_oci(&self, chosen: &[Chosen], archive: &mut Archive<'_>) -> Result<()> {
        archive.bytes("oci-layout", b"{\"imageLayoutVersion\":\"1.0.0\"}")?;
        let mut manifests = Vec::new();
        for Chosen { image, names, .. } in chosen {
            let config = self.config_bytes(image.id)?;
            let tars = self.tars(image)?;
            let manifest = plain_manifest(&config, tars.iter().copied()).map_err(unwritable)?;
            let digest = Hasher::digest(&manifest);
            archive.bytes(&member(image.id.digest()), &config)?;
            archive.bytes(&member(digest), &manifest)?;
            for (id, (diff_id, _)) in image.layers.iter().zip(&tars) {
                let tar = self.layers.path(id).join(knarr_layer::store::TAR);
                archive.file(&member(*diff_id), &tar)?;
            }
            let named = |name: Option<&Reference>| Descriptor {
                media_type: media_type::OCI_MANIFEST.to_owned(),
                digest,
                size: manifest.len() as u64,
                urls: Vec::new(),
                annotations: name.map_or_else(BTreeMap::new, |name| {
                    let tag = name.tag().unwrap_or("latest").to_owned();
                    BTreeMap::from([
                        ("io.containerd.image.name".to_owned(), name.to_string()),
                        ("org.opencontainers.image.ref.name".to_owned(), tag),
                    ])
                }),
                platform: Some(platform_of(&image.config)),
            };
            if names.is_empty() {
                manifests.push(named(None));
            }
            manifests.extend(names.iter().map(|name| named(Some(name))));
        }
        archive.json(
            "index.json",
            &Index {
                schema_version: 2,
                media_type: Some(media_type::OCI_INDEX.to_owned()),
                manifests,
                annotations: BTreeMap::new(),
            },
        )
    }

    /// Diff id and size of an image's tars, bottom first.
    /// The image's layers as a manifest of plain tars has them: digest and size.
    pub(crate) fn tars(&self, image: &Image) -> Result<Vec<(Digest, u64)>> {
        image
            .layers
            .iter()
            .map(|id| {
                let layer = self.layers.load(id)?;
                Ok((layer.diff_id, layer.size))
            })
            .collect()
    }
}

pub(crate) fn unwritable(error: serde_json::Error) -> Error {
    Error::Write(io::Error::other(error))
}

/// A tar being written; a name is written once.
struct Archive<'a> {
    writer: TarWriter<&'a mut dyn Write>,
    written: BTreeSet<String>,
}

impl Archive<'_> {
    fn json(&mut self, name: &str, value: &impl Serialize) -> Result<()> {
        let bytes = serde_json::to_vec(value).map_err(unwritable)?;
        self.bytes(name, &bytes)
    }

    fn bytes(&mut self, name: &str, mut bytes: &[u8]) -> Result<()> {
        if self.written.insert(name.to_owned()) {
            let size = bytes.len() as u64;
            let written = self.writer.file(name, &mut bytes, size);
            written.map_err(of_the_writer)?;
        }
        Ok(())
    }

    fn file(&mut self, name: &str, path: &std::path::Path) -> Result<()> {
        if self.written.insert(name.to_owned()) {
            let mut file = File::from(knarr_fs::open_read(path)?);
            let written = self.writer.copy(name, &mut file, path);
            written.map_err(of_the_writer)?;
        }
        Ok(())
    }
}

/// What goes wrong with the archive is the archive's, not a layer's.
pub(crate) fn of_the_writer(error: knarr_layer::Error) -> Error {
    match error {
        knarr_layer::Error::Output(cause) => Error::Write(cause),
        error => Error::LayerStore(error),
    }
}
