//! Where an image is, as skopeo writes it.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use knarr_spec::Reference;

use crate::Result;
use crate::trust::policy::Place;

/// A place that holds images.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Location {
    /// `docker://NAME`: a registry.
    Registry(Reference),
    /// `oci:PATH[:NAME]`: a folder in the OCI image layout.
    Layout {
        /// The folder.
        path: PathBuf,
        /// Which of its images (`org.opencontainers.image.ref.name`).
        name: Option<String>,
    },
    /// `oci-archive:PATH[:NAME]`: the same in a tar.
    LayoutArchive {
        /// The tar.
        path: PathBuf,
        /// Which of its images.
        name: Option<String>,
    },
    /// `docker-archive:PATH[:NAME]`: what `docker save` writes.
    DockerArchive {
        /// The tar.
        path: PathBuf,
        /// Which of its images, or what it is to be called.
        name: Option<Reference>,
    },
    /// `dir:PATH`: one file per blob and `manifest.json`, as skopeo has it.
    Folder(PathBuf),
    /// `knarr:NAME`, or a name alone: this store.
    Store(String),
}

/// A text that is no place.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{text}` is not a place of images: {why}")]
pub struct LocationError {
    text: String,
    why: String,
}

impl FromStr for Location {
    type Err = LocationError;

    fn from_str(text: &str) -> Result<Self, LocationError> {
        let wrong = |why: String| LocationError {
            text: text.to_owned(),
            why,
        };
        let with_name = |rest: &str| -> Result<(PathBuf, Option<String>), LocationError> {
            let (path, name) = match rest.split_once(':') {
                Some((path, name)) => (path, Some(name.to_owned())),
                None => (rest, None),
            };
            if path.is_empty() {
                return Err(wrong("it names no path".to_owned()));
            }
            Ok((PathBuf::from(path), name.filter(|name| !name.is_empty())))
        };
        let reference = |name: &str| {
            name.parse::<Reference>()
                .map_err(|error| wrong(error.to_string()))
        };
        let Some((transport, rest)) = text.split_once(':') else {
            reference(text)?;
            return Ok(Self::Store(text.to_owned()));
        };
        match transport {
            "docker" => match rest.strip_prefix("//") {
                Some(name) => Ok(Self::Registry(reference(name)?)),
                None => Err(wrong("a registry is written docker://NAME".to_owned())),
            },
            "oci" => with_name(rest).map(|(path, name)| Self::Layout { path, name }),
            "oci-archive" => with_name(rest).map(|(path, name)| Self::LayoutArchive { path, name }),
            "docker-archive" => {
                let (path, name) = with_name(rest)?;
                let name = name.map(|name| reference(&name)).transpose()?;
                Ok(Self::DockerArchive { path, name })
            }
            "dir" => with_name(rest).map(|_| Self::Folder(PathBuf::from(rest))),
            "knarr" => Ok(Self::Store(rest.to_owned())),
            "containers-storage" | "docker-daemon" | "ostree" | "sif" | "atomic" | "tarball" => {
                Err(wrong(format!(
                    "{transport}: belongs to another program; go through oci-archive: or a registry"
                )))
            }
            // `name:tag`, or an id.
            _ => {
                reference(text)?;
                Ok(Self::Store(text.to_owned()))
            }
        }
    }
}

impl Location {
    /// What policies call it; `None` for this store, which let in what it has.
    pub(crate) fn place(&self) -> Result<Option<Place>> {
        let path = |transport, path: &PathBuf| {
            let whole = std::fs::canonicalize(path);
            let whole = whole.map_err(knarr_fs::Error::of_io("resolve", "readlink", path))?;
            Ok(Some(Place::Path(transport, whole)))
        };
        match self {
            Self::Registry(reference) => Ok(Some(Place::Registry(reference.clone()))),
            Self::Layout { path: folder, .. } => path("oci", folder),
            Self::LayoutArchive { path: file, .. } => path("oci-archive", file),
            Self::Folder(folder) => path("dir", folder),
            Self::DockerArchive { .. } => Ok(Some(Place::Transport("docker-archive"))),
            Self::Store(_) => Ok(None),
        }
    }
}

impl fmt::Display for Location {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let named = |f: &mut fmt::Formatter<'_>, kind: &str, path: &PathBuf, name: Option<&str>| {
            write!(f, "{kind}:{}", path.display())?;
            name.map_or(Ok(()), |name| write!(f, ":{name}"))
        };
        match self {
            Self::Registry(reference) => write!(f, "docker://{}", reference.familiar()),
            Self::Layout { path, name } => named(f, "oci", path, name.as_deref()),
            Self::LayoutArchive { path, name } => named(f, "oci-archive", path, name.as_deref()),
            Self::DockerArchive { path, name } => {
                let name = name.as_ref().map(Reference::familiar);
                named(f, "docker-archive", path, name.as_deref())
            }
            Self::Folder(path) => write!(f, "dir:{}", path.display()),
            Self::Store(name) => f.write_str(name),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_skopeos() {
        for (text, shown) in [
            ("docker://debian", "docker://debian:latest"),
            (
                "docker://reg.io:5000/a/b@sha256:aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
                "docker://reg.io:5000/a/b@sha256:aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
            ),
            ("oci:dir", "oci:dir"),
            ("oci:/a/b:name:1", "oci:/a/b:name:1"),
            ("oci-archive:x.tar:1", "oci-archive:x.tar:1"),
            (
                "docker-archive:x.tar:debian",
                "docker-archive:x.tar:debian:latest",
            ),
            ("dir:/x", "dir:/x"),
            ("debian:12", "debian:12"),
            ("knarr:debian", "debian"),
            ("0123456789ab", "0123456789ab"),
        ] {
            let location: Location = text.parse().unwrap();
            assert_eq!(location.to_string(), shown, "{text}");
        }
        for bad in [
            "docker:debian",
            "oci:",
            "dir:",
            "docker-daemon:x",
            "a/UPPER",
            "",
        ] {
            assert!(bad.parse::<Location>().is_err(), "{bad}");
        }
    }
}
