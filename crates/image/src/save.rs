//! To an archive. The layers' tars are exact, so nothing is made anew but the frame.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{self, Write};

use knarr_layer::TarWriter;
use knarr_spec::image::{Descriptor, Index, Manifest, media_type};
use knarr_spec::manifest::Document;
use knarr_spec::{Digest, Platform, Reference};
use serde::Serialize;

use crate::copy::Top;
use crate::load::{member, plain_manifest};
use crate::record::platform_of;
use crate::store::Named;
use crate::whole::{self, Export};
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
    /// The whole index that its names mean.
    index: Option<Digest>,
    _hold: Hold,
}

impl Store {
    /// `save`: writes images with the names they are given here into one archive; layers are plain
    /// tars, each once. What is a whole index goes whole into an OCI layout, as it came where its
    /// blobs were kept, unless one `platform` is asked for; Docker's archive has one image of it.
    ///
    /// # Errors
    /// Names that mean nothing, damaged blobs, or the writer's.
    pub fn save(
        &self,
        names: &[String],
        format: SaveFormat,
        platform: Option<&Platform>,
        out: &mut dyn Write,
    ) -> Result<()> {
        let mut chosen: Vec<Chosen> = Vec::new();
        for name in names {
            let (named, _) = self.find(name)?;
            let (image, hold) = self.resolve_platform(name, platform)?;
            let index = match platform {
                None => self.index_of(name)?,
                Some(_) => None,
            };
            let name = match named {
                Named::Name(name) if name.digest().is_none() => Some(name),
                _ => None,
            };
            let same = |known: &&mut Chosen| (known.image.id, known.index) == (image.id, index);
            match chosen.iter_mut().find(same) {
                Some(known) => known.names.extend(name),
                None => chosen.push(Chosen {
                    image,
                    names: name.into_iter().collect(),
                    index,
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
        for chosen in chosen {
            let mut layout = Layout {
                store: self,
                archive,
            };
            let (top, platform) = match chosen.index {
                Some(index) => {
                    let name = chosen.names.first().map(Reference::familiar);
                    let name = name.unwrap_or_else(|| index.to_string());
                    (self.export(&name, index, &mut layout)?, None)
                }
                None => {
                    let manifest = self.plain_manifest(&chosen.image)?;
                    let platform = platform_of(&chosen.image.config);
                    (layout.write(&chosen.image, manifest)?, Some(platform))
                }
            };
            layout.document(&top)?;
            let named = |name: Option<&Reference>| Descriptor {
                annotations: name.map_or_else(BTreeMap::new, |name| {
                    let tag = name.tag().unwrap_or("latest").to_owned();
                    BTreeMap::from([
                        ("io.containerd.image.name".to_owned(), name.to_string()),
                        ("org.opencontainers.image.ref.name".to_owned(), tag),
                    ])
                }),
                platform: platform.clone(),
                ..top.descriptor()
            };
            let names = &chosen.names;
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

    /// A manifest of plain tars for an image.
    fn plain_manifest(&self, image: &Image) -> Result<Vec<u8>> {
        let config = self.config_bytes(image.id)?;
        plain_manifest(&config, self.tars(image)?.into_iter()).map_err(unwritable)
    }

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

/// An OCI layout being written.
struct Layout<'a, 'w> {
    store: &'a Store,
    archive: &'a mut Archive<'w>,
}

impl Layout<'_, '_> {
    /// Everything that an image's manifest names.
    fn write(&mut self, image: &Image, manifest: Vec<u8>) -> Result<Top> {
        let name = image.id.to_string();
        let top = Top::parse(manifest, media_type::OCI_MANIFEST, &name)?;
        let Document::Manifest(manifest) = &top.document else {
            return Err(Error::ListOfLists { name });
        };
        let store = self.store;
        let config = store.config_bytes(image.id)?;
        self.archive.bytes(&member(image.id.digest()), &config)?;
        for (id, layer) in image.layers.iter().zip(&manifest.layers) {
            let path = match store.layers.load(id)?.diff_id == layer.digest {
                true => store.layers.path(id).join(knarr_layer::store::TAR),
                false => store.blobs.path(layer.digest),
            };
            self.archive.file(&member(layer.digest), &path)?;
        }
        Ok(top)
    }
}

impl Export for Layout<'_, '_> {
    fn image(&mut self, image: Image, _hold: Hold, own: Vec<u8>) -> Result<Top> {
        let manifest = self.store.manifest_for_copies(&image, own)?;
        self.write(&image, manifest)
    }

    fn other(&mut self, manifest: &Manifest) -> Result<()> {
        for blob in whole::blobs_of(manifest) {
            let path = self.store.blobs.path(blob.digest);
            self.archive.file(&member(blob.digest), &path)?;
        }
        Ok(())
    }

    fn document(&mut self, top: &Top) -> Result<()> {
        self.archive.bytes(&member(top.digest()), &top.bytes)
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
