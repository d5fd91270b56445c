//! `certs.d/<host>/hosts.toml` (containerd, "hosts.md"): servers that stand for a registry.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::Deserialize;

use crate::registries::{self, invalid};
use crate::{Result, Settings};

/// What may be asked of a server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Capability {
    /// Blobs and manifests by digest.
    Pull,
    /// Manifests by tag.
    Resolve,
    Push,
}

/// A server of `hosts.toml`, in the order of the file.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Host {
    pub(crate) https: bool,
    /// `host[:port]`
    pub(crate) authority: String,
    /// What comes before the repository in a path, such as `/v2`.
    pub(crate) base: String,
    pub(crate) capabilities: Vec<Capability>,
    pub(crate) trust: Trust,
    pub(crate) headers: Vec<(String, String)>,
    /// Whether it is the registry itself (`server = …`).
    pub(crate) is_server: bool,
}

/// Whom to believe, and how to identify oneself.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub(crate) struct Trust {
    pub(crate) authorities: Vec<PathBuf>,
    /// Certificate and key; one file may hold both.
    pub(crate) clients: Vec<(PathBuf, PathBuf)>,
    pub(crate) skip_verify: bool,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct File {
    server: Option<String>,
    host: toml::Table,
    #[serde(flatten)]
    of_server: Section,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct Section {
    capabilities: Option<Vec<String>>,
    ca: OneOrMore,
    client: Clients,
    skip_verify: bool,
    override_path: bool,
    header: BTreeMap<String, OneOrMore>,
}

#[derive(Deserialize, Default)]
#[serde(untagged)]
enum OneOrMore {
    #[default]
    None,
    One(String),
    More(Vec<String>),
}

#[derive(Deserialize, Default)]
#[serde(untagged)]
enum Clients {
    #[default]
    None,
    One(String),
    Files(Vec<String>),
    Pairs(Vec<Vec<String>>),
}

impl OneOrMore {
    fn list(&self) -> Vec<String> {
        match self {
            Self::None => Vec::new(),
            Self::One(one) => vec![one.clone()],
            Self::More(more) => more.clone(),
        }
    }
}

/// The folders that `certs.d` has for a registry, whether they exist or not.
pub(crate) fn folders(settings: &Settings, registry: &str) -> Vec<PathBuf> {
    let etc = settings.etc();
    let mut names = vec![registry.to_owned()];
    if let Some((host, port)) = registry.rsplit_once(':') {
        // For file systems without colons in names.
        names.push(format!("{host}_{port}_"));
    }
    ["docker/certs.d", "containers/certs.d", "containerd/certs.d"]
        .iter()
        .map(|folder| etc.join(folder))
        .flat_map(|folder| names.iter().map(move |name| folder.join(name)))
        .collect()
}

/// The servers that `hosts.toml` names for a registry; none where there is no such file.
pub(crate) fn load(settings: &Settings, registry: &str) -> Result<Vec<Host>> {
    let mut folders = folders(settings, registry);
    folders.push(settings.etc().join("containerd/certs.d/_default"));
    for folder in folders {
        let path = folder.join("hosts.toml");
        if let Some(text) = registries::text(&path)? {
            return read(&path, &text, registry);
        }
    }
    Ok(Vec::new())
}

fn read(path: &Path, text: &str, registry: &str) -> Result<Vec<Host>> {
    let file: File = registries::parse(path, text)?;
    let mut hosts = Vec::new();
    for (url, section) in &file.host {
        let section: Section = section
            .clone()
            .try_into()
            .map_err(|error: toml::de::Error| {
                invalid(path, format!("[host.{url:?}]: {}", error.message()))
            })?;
        hosts.push(host(path, url, &section)?);
    }
    let own = if registry == "docker.io" {
        "registry-1.docker.io"
    } else {
        registry
    };
    let server = match &file.server {
        Some(server) => host(path, server, &file.of_server)?,
        None => host(path, own, &file.of_server)?,
    };
    hosts.push(Host {
        is_server: true,
        ..server
    });
    Ok(hosts)
}

fn host(path: &Path, url: &str, section: &Section) -> Result<Host> {
    let (https, rest) = match url.split_once("://") {
        Some(("https", rest)) => (true, rest),
        Some(("http", rest)) => (false, rest),
        Some(_) => return Err(invalid(path, format!("{url} is neither http nor https"))),
        None => (true, url),
    };
    let (authority, below) = rest.split_once('/').unwrap_or((rest, ""));
    if authority.is_empty() {
        return Err(invalid(path, format!("{url} has no host")));
    }
    let below = below.trim_end_matches('/');
    let base = match (section.override_path, below) {
        (_, "") if !section.override_path => "/v2".to_owned(),
        (true, below) => format!("/{below}").trim_end_matches('/').to_owned(),
        (false, below) if below == "v2" || below.ends_with("/v2") => format!("/{below}"),
        (false, below) => format!("/{below}/v2"),
    };
    let all = || ["pull", "resolve", "push"].map(str::to_owned).to_vec();
    let capabilities = section
        .capabilities
        .clone()
        .unwrap_or_else(all)
        .iter()
        .map(|name| match name.as_str() {
            "pull" => Ok(Capability::Pull),
            "resolve" => Ok(Capability::Resolve),
            "push" => Ok(Capability::Push),
            other => Err(invalid(path, format!("{other:?} is no capability"))),
        })
        .collect::<Result<_>>()?;
    let folder = path.parent().unwrap_or(Path::new("/"));
    let file = |name: &str| folder.join(name);
    let pair = |pair: &[String]| match pair {
        [both] => Ok((file(both), file(both))),
        [certificate, key] if key.is_empty() => Ok((file(certificate), file(certificate))),
        [certificate, key] => Ok((file(certificate), file(key))),
        _ => Err(invalid(path, "a client is a certificate and a key")),
    };
    let clients = match &section.client {
        Clients::None => Vec::new(),
        Clients::One(one) => vec![(file(one), file(one))],
        Clients::Files(files) => files
            .iter()
            .map(|one| pair(std::slice::from_ref(one)))
            .collect::<Result<_>>()?,
        Clients::Pairs(pairs) => pairs.iter().map(|p| pair(p)).collect::<Result<_>>()?,
    };
    let headers = section.header.iter().flat_map(|(name, values)| {
        let values = values.list();
        values.into_iter().map(|value| (name.clone(), value))
    });
    Ok(Host {
        https,
        authority: authority.to_owned(),
        base,
        capabilities,
        trust: Trust {
            authorities: section.ca.list().iter().map(|name| file(name)).collect(),
            clients,
            skip_verify: section.skip_verify,
        },
        headers: headers.collect(),
        is_server: false,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn servers_come_in_the_order_of_the_file() {
        let text = r#"
            server = "https://registry-1.docker.io"
            [host."https://mirror.local:5000"]
            capabilities = ["pull", "resolve"]
            ca = "ca.crt"
            client = [["client.cert", "client.key"]]
            [host."https://mirror.local:5000".header]
            x-custom = ["a", "b"]
            [host."http://plain.local/some/path"]
            skip_verify = true
            [host."https://odd.local/api"]
            override_path = true
            "#;
        let hosts = read(Path::new("/c/docker.io/hosts.toml"), text, "docker.io").unwrap();
        let shown: Vec<_> = hosts
            .iter()
            .map(|h| (h.https, h.authority.as_str(), h.base.as_str(), h.is_server))
            .collect();
        assert_eq!(
            shown,
            [
                (true, "mirror.local:5000", "/v2", false),
                (false, "plain.local", "/some/path/v2", false),
                (true, "odd.local", "/api", false),
                (true, "registry-1.docker.io", "/v2", true),
            ]
        );
        let first = &hosts[0];
        assert_eq!(first.capabilities, [Capability::Pull, Capability::Resolve]);
        assert_eq!(first.trust.authorities, [Path::new("/c/docker.io/ca.crt")]);
        assert_eq!(first.headers.len(), 2);
        assert_eq!(first.trust.clients.len(), 1);
        assert!(hosts[1].trust.skip_verify);
    }

    #[test]
    fn what_is_wrong_is_said() {
        for (text, expected) in [
            ("[host.\"ftp://x\"]", "neither http"),
            ("[host.\"https://x\"]\ncapabilities = [\"fly\"]", "fly"),
            (
                "[host.\"https://x\"]\nclient = [[\"a\",\"b\",\"c\"]]",
                "certificate and a key",
            ),
            ("server = 1", "hosts.toml"),
        ] {
            let error = read(Path::new("/c/hosts.toml"), text, "x").unwrap_err();
            assert!(error.to_string().contains(expected), "{error}");
        }
    }
}
