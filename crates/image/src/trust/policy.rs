//! `policy.json` (containers-policy.json(5)): which images are accepted. Read strictly: a field that
//! is not known, or is there twice, spoils the file.

use std::collections::BTreeMap;
use std::path::PathBuf;

use knarr_spec::Reference;
use serde_json::{Map, Value};

/// The file.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Policy {
    default: Vec<Requirement>,
    /// By transport (`docker`), then by scope.
    transports: BTreeMap<String, BTreeMap<String, Vec<Requirement>>>,
}

/// What an image must be; all requirements of a scope hold at once.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Requirement {
    /// `insecureAcceptAnything`
    Anything,
    /// `reject`
    Nothing,
    /// `sigstoreSigned`, with one of some keys.
    Signed { keys: Vec<Key>, identity: Identity },
    /// What Knarr cannot check, and so never accepts.
    NotServed(&'static str),
}

/// Where a public key is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Key {
    File(PathBuf),
    /// PEM.
    Data(Vec<u8>),
}

/// Which identity a signature must claim.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) enum Identity {
    /// `matchExact`
    Exact,
    /// `matchRepoDigestOrExact`
    #[default]
    RepositoryOrExact,
    /// `matchRepository`
    Repository,
    /// `exactReference`
    Reference(String),
    /// `exactRepository`
    RepositoryOf(String),
    /// `remapIdentity`
    Remap {
        prefix: String,
        signed_prefix: String,
    },
}

/// What an image is called where it comes from, as policies see it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Place {
    /// `docker`
    Registry(Reference),
    /// `dir`, `oci`, `oci-archive`: an absolute path.
    Path(&'static str, PathBuf),
    /// `docker-archive` and what comes on a stream: only the transport is known.
    Transport(&'static str),
}

impl Place {
    pub(crate) fn transport(&self) -> &'static str {
        match self {
            Self::Registry(_) => "docker",
            Self::Path(transport, _) | Self::Transport(transport) => transport,
        }
    }

    /// The scopes that mean it, the narrowest first.
    pub(crate) fn scopes(&self) -> Vec<String> {
        match self {
            Self::Registry(reference) => {
                let mut scopes = vec![reference.to_string()];
                scopes.extend(namespaces(reference));
                let host = reference.registry();
                let mut host = host.split(':').next().unwrap_or(host);
                while let Some((_, parent)) = host.split_once('.') {
                    scopes.push(format!("*.{parent}"));
                    host = parent;
                }
                scopes
            }
            // `/` alone is no scope.
            Self::Path(_, path) => path
                .ancestors()
                .filter(|path| path.parent().is_some())
                .map(|path| path.display().to_string())
                .collect(),
            Self::Transport(_) => Vec::new(),
        }
    }
}

/// The repository and what it is below, the narrowest first.
pub(crate) fn namespaces(reference: &Reference) -> Vec<String> {
    let mut name = format!("{}/{}", reference.registry(), reference.repository());
    let mut found = vec![name.clone()];
    while let Some((parent, _)) = name.rsplit_once('/') {
        name = parent.to_owned();
        found.push(name.clone());
    }
    found
}

impl Policy {
    /// Everything is accepted: where there is no policy.
    pub(crate) fn accepting() -> Self {
        Self {
            default: vec![Requirement::Anything],
            transports: BTreeMap::new(),
        }
    }

    /// Reads a file.
    ///
    /// # Errors
    /// In words: where it is wrong.
    pub(crate) fn parse(bytes: &[u8]) -> Result<Self, String> {
        knarr_spec::manifest::check_unambiguous(bytes).map_err(|error| error.to_string())?;
        let value: Value = serde_json::from_slice(bytes).map_err(|error| error.to_string())?;
        let top = object(&value, "it", &["default", "transports"])?;
        let default = top.get("default").ok_or("default is missing")?;
        let default = requirements(default, "default")?;
        let mut transports = BTreeMap::new();
        if let Some(all) = top.get("transports") {
            let all = all.as_object().ok_or("transports is not an object")?;
            for (transport, scopes) in all {
                let wrong = format!("transports.{transport}");
                let scopes = scopes
                    .as_object()
                    .ok_or(format!("{wrong} is not an object"))?;
                let mut read = BTreeMap::new();
                for (scope, value) in scopes {
                    check_scope(transport, scope)?;
                    let needed = requirements(value, &format!("{wrong}.{scope:?}"))?;
                    read.insert(scope.clone(), needed);
                }
                transports.insert(transport.clone(), read);
            }
        }
        Ok(Self {
            default,
            transports,
        })
    }

    /// What is required of an image, and the scope that says so. Only the narrowest counts.
    pub(crate) fn requirements(&self, place: &Place) -> (&[Requirement], String) {
        let transport = place.transport();
        if let Some(scopes) = self.transports.get(transport) {
            for scope in place.scopes() {
                if let Some(found) = scopes.get(&scope) {
                    return (found, format!("{transport}: {scope}"));
                }
            }
            if let Some(found) = scopes.get("") {
                return (found, format!("{transport}: \"\""));
            }
        }
        (&self.default, "default".to_owned())
    }
}

fn check_scope(transport: &str, scope: &str) -> Result<(), String> {
    let wrong = |why: &str| Err(format!("scope {scope:?} of {transport}: {why}"));
    match (transport, scope) {
        (_, "") => Ok(()),
        ("dir" | "oci" | "oci-archive", "/") => wrong("write \"\" for every path"),
        ("dir" | "oci" | "oci-archive", scope) if !scope.starts_with('/') => {
            wrong("it is not an absolute path")
        }
        ("docker", scope)
            if scope.contains('*')
                && (!scope.starts_with("*.") || scope.matches('*').count() > 1) =>
        {
            wrong("a wildcard stands for subdomains only, as in *.example.com")
        }
        _ => Ok(()),
    }
}

/// An object with no other fields than these.
fn object<'v>(
    value: &'v Value,
    what: &str,
    known: &[&str],
) -> Result<&'v Map<String, Value>, String> {
    let fields = value
        .as_object()
        .ok_or_else(|| format!("{what} is not an object"))?;
    match fields.keys().find(|key| !known.contains(&key.as_str())) {
        Some(unknown) => Err(format!("{what} has an unknown field, {unknown:?}")),
        None => Ok(fields),
    }
}

fn requirements(value: &Value, what: &str) -> Result<Vec<Requirement>, String> {
    let list = value
        .as_array()
        .ok_or_else(|| format!("{what} is not a list"))?;
    if list.is_empty() {
        return Err(format!("{what} is empty: it must say what is accepted"));
    }
    list.iter().map(|value| requirement(value, what)).collect()
}

fn requirement(value: &Value, what: &str) -> Result<Requirement, String> {
    let kind = value.get("type").and_then(Value::as_str);
    match kind.unwrap_or_default() {
        "insecureAcceptAnything" => {
            object(value, what, &["type"])?;
            Ok(Requirement::Anything)
        }
        "reject" => {
            object(value, what, &["type"])?;
            Ok(Requirement::Nothing)
        }
        "signedBy" => {
            let known = [
                "type",
                "keyType",
                "keyPath",
                "keyPaths",
                "keyData",
                "signedIdentity",
            ];
            object(value, what, &known)?;
            Ok(Requirement::NotServed("signedBy (GPG signatures)"))
        }
        "sigstoreSigned" => signed(value, what),
        other => Err(format!(
            "{what} has a requirement of unknown type {other:?}"
        )),
    }
}

/// What a `sigstoreSigned` may have that asks for more than keys.
const KEYLESS: [(&str, &str); 7] = [
    ("fulcio", "sigstoreSigned by fulcio"),
    ("pki", "sigstoreSigned by pki"),
    ("rekorPublicKeyPath", "sigstoreSigned with a Rekor log"),
    ("rekorPublicKeyPaths", "sigstoreSigned with a Rekor log"),
    ("rekorPublicKeyData", "sigstoreSigned with a Rekor log"),
    ("rekorPublicKeyDatas", "sigstoreSigned with a Rekor log"),
    ("rekorSET", "sigstoreSigned with a Rekor log"),
];

fn signed(value: &Value, what: &str) -> Result<Requirement, String> {
    let mut known = vec![
        "type",
        "keyPath",
        "keyPaths",
        "keyData",
        "keyDatas",
        "signedIdentity",
    ];
    known.extend(KEYLESS.map(|(field, _)| field));
    let fields = object(value, what, &known)?;
    let identity = match fields.get("signedIdentity") {
        None => Identity::default(),
        Some(value) => identity(value, what)?,
    };
    if let Some((_, name)) = KEYLESS.iter().find(|(key, _)| fields.contains_key(*key)) {
        return Ok(Requirement::NotServed(name));
    }
    let text = |value: &Value, field: &str| match value.as_str() {
        Some(text) if !text.is_empty() => Ok(text.to_owned()),
        _ => Err(format!("{field} in {what} is not a text")),
    };
    let texts = |value: &Value, field: &str| -> Result<Vec<String>, String> {
        let list = value.as_array().filter(|list| !list.is_empty());
        let list = list.ok_or_else(|| format!("{field} in {what} is not a list of texts"))?;
        list.iter().map(|value| text(value, field)).collect()
    };
    let data = |text: String| {
        use base64::Engine as _;
        let decoded = base64::engine::general_purpose::STANDARD.decode(text);
        let decoded = decoded.map_err(|error| format!("a key in {what} is not base64: {error}"))?;
        Ok::<_, String>(Key::Data(decoded))
    };
    let mut given = Vec::new();
    for (field, value) in fields {
        given.push(match field.as_str() {
            "keyPath" => vec![Key::File(text(value, field)?.into())],
            "keyPaths" => {
                let paths = texts(value, field)?;
                paths
                    .into_iter()
                    .map(|path| Key::File(path.into()))
                    .collect()
            }
            "keyData" => vec![data(text(value, field)?)?],
            "keyDatas" => {
                let all = texts(value, field)?;
                all.into_iter().map(data).collect::<Result<_, _>>()?
            }
            _ => continue,
        });
    }
    match <[Vec<Key>; 1]>::try_from(given) {
        Ok([keys]) => Ok(Requirement::Signed { keys, identity }),
        Err(given) => Err(format!(
            "{what} must have exactly one of keyPath, keyPaths, keyData and keyDatas, not {}",
            given.len()
        )),
    }
}

fn identity(value: &Value, what: &str) -> Result<Identity, String> {
    let what = &format!("signedIdentity in {what}");
    let text = |field: &str| match value.get(field).and_then(Value::as_str) {
        Some(text) if !text.is_empty() => Ok(text.to_owned()),
        _ => Err(format!("{what} lacks {field}")),
    };
    match value.get("type").and_then(Value::as_str) {
        Some("matchExact") => object(value, what, &["type"]).map(|_| Identity::Exact),
        Some("matchRepoDigestOrExact") => {
            object(value, what, &["type"]).map(|_| Identity::RepositoryOrExact)
        }
        Some("matchRepository") => object(value, what, &["type"]).map(|_| Identity::Repository),
        Some("exactReference") => {
            object(value, what, &["type", "dockerReference"])?;
            Ok(Identity::Reference(text("dockerReference")?))
        }
        Some("exactRepository") => {
            object(value, what, &["type", "dockerRepository"])?;
            Ok(Identity::RepositoryOf(text("dockerRepository")?))
        }
        Some("remapIdentity") => {
            object(value, what, &["type", "prefix", "signedPrefix"])?;
            Ok(Identity::Remap {
                prefix: text("prefix")?,
                signed_prefix: text("signedPrefix")?,
            })
        }
        other => Err(format!("{what} is of unknown type {other:?}")),
    }
}

impl Identity {
    /// Whether a signature that claims `signed` is one for `image`.
    ///
    /// # Errors
    /// In words: what is expected.
    pub(crate) fn accepts(&self, image: Option<&Reference>, signed: &str) -> Result<(), String> {
        let claimed = Claimed::parse(signed)?;
        let (wanted, fits) = match (self, image) {
            (Self::Reference(wanted), _) => {
                let wanted = Claimed::parse(wanted)?;
                (format!("{wanted}"), wanted.is_exact() && claimed == wanted)
            }
            (Self::RepositoryOf(wanted), _) => {
                let wanted = Claimed::parse(wanted)?;
                (
                    wanted.repository(),
                    claimed.repository() == wanted.repository(),
                )
            }
            (_, None) => {
                return Err(
                    "it has no name at a registry; only exactReference and exactRepository can be asked of it"
                        .to_owned(),
                );
            }
            (Self::Exact, Some(image)) => {
                let image = Claimed::of(image);
                (format!("{image}"), claimed == image)
            }
            (Self::Repository, Some(image)) => {
                let wanted = Claimed::of(image).repository();
                let fits = claimed.repository() == wanted;
                (wanted, fits)
            }
            (Self::RepositoryOrExact, Some(image)) => repository_or_exact(&claimed, image),
            (
                Self::Remap {
                    prefix,
                    signed_prefix,
                },
                Some(image),
            ) => repository_or_exact(&claimed, &remapped(image, prefix, signed_prefix)?),
        };
        match fits {
            true => Ok(()),
            false => Err(format!("it is signed as {claimed}, not as {wanted}")),
        }
    }
}

/// With a tag exactly that; with a digest, which is checked anyway, any tag of the repository.
fn repository_or_exact(claimed: &Claimed, image: &Reference) -> (String, bool) {
    let wanted = Claimed::of(image);
    match image.digest() {
        None => (format!("{wanted}"), *claimed == wanted),
        Some(_) => {
            let repository = wanted.repository();
            let fits = claimed.is_exact() && claimed.repository() == repository;
            (format!("a tag of {repository}"), fits)
        }
    }
}

fn remapped(image: &Reference, prefix: &str, signed: &str) -> Result<Reference, String> {
    let text = image.to_string();
    let name = format!("{}/{}", image.registry(), image.repository());
    let rest = name
        .strip_prefix(prefix)
        .filter(|rest| rest.is_empty() || rest.starts_with('/'));
    match rest {
        None => Ok(image.clone()),
        Some(_) => {
            let moved = format!("{signed}{}", text.get(prefix.len()..).unwrap_or_default());
            let parsed = moved.parse::<Reference>();
            parsed.map_err(|error| format!("the remapped name is wrong: {error}"))
        }
    }
}

/// A name in a signature or a policy, where a missing tag is no `latest`.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Claimed {
    reference: Reference,
    /// Whether a tag or digest was written.
    exact: bool,
}

impl Claimed {
    fn of(image: &Reference) -> Self {
        Self {
            reference: image.clone(),
            exact: true,
        }
    }

    fn parse(text: &str) -> Result<Self, String> {
        let reference = text.parse().map_err(|_| {
            let text: String = text.chars().filter(|c| !c.is_control()).take(200).collect();
            format!("{text:?} is not the name of an image")
        })?;
        let last = text.rsplit('/').next().unwrap_or_default();
        // A host alone may have a port, but then it is no name.
        let exact = last.contains([':', '@']);
        Ok(Self { reference, exact })
    }

    fn is_exact(&self) -> bool {
        self.exact
    }

    fn repository(&self) -> String {
        format!(
            "{}/{}",
            self.reference.registry(),
            self.reference.repository()
        )
    }
}

impl std::fmt::Display for Claimed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.exact {
            true => self.reference.fmt(f),
            false => f.write_str(&self.repository()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reference(text: &str) -> Reference {
        text.parse().unwrap()
    }

    #[test]
    fn the_narrowest_scope_counts_alone() {
        let policy = Policy::parse(
            br#"{"default":[{"type":"reject"}],"transports":{
                "docker":{"docker.io/library/busybox:1":[{"type":"insecureAcceptAnything"}],
                          "docker.io/library":[{"type":"signedBy"}],
                          "reg.io:5000/team":[{"type":"sigstoreSigned","keyPath":"/k"}],
                          "*.example.com":[{"type":"insecureAcceptAnything"}]},
                "oci":{"":[{"type":"insecureAcceptAnything"}],"/srv/images":[{"type":"reject"}]}}}"#,
        )
        .unwrap();
        let docker = |name: &str| Place::Registry(reference(name));
        for (place, scope) in [
            (docker("busybox:1"), "docker: docker.io/library/busybox:1"),
            (docker("busybox:2"), "docker: docker.io/library"),
            (docker("user/x"), "default"),
            (docker("reg.io:5000/team/a/b"), "docker: reg.io:5000/team"),
            (docker("reg.io:5000/teams/a"), "default"),
            (docker("a.b.example.com:5000/x"), "docker: *.example.com"),
            (docker("example.com/x"), "default"),
            (
                Place::Path("oci", "/srv/images/a".into()),
                "oci: /srv/images",
            ),
            (Place::Path("oci", "/srv/image".into()), "oci: \"\""),
            (Place::Path("dir", "/srv/images".into()), "default"),
            (Place::Transport("docker-archive"), "default"),
        ] {
            assert_eq!(policy.requirements(&place).1, scope, "{place:?}");
        }
    }

    #[test]
    fn files_are_read_strictly() {
        let sigstore = |rest: &str| format!(r#"{{"default":[{{"type":"sigstoreSigned"{rest}}}]}}"#);
        for (text, why) in [
            ("{}".to_owned(), "default is missing"),
            (r#"{"default":[]}"#.to_owned(), "is empty"),
            (r#"{"default":[{"type":"reject"}],"x":1}"#.to_owned(), "unknown field, \"x\""),
            (r#"{"default":[{"type":"reject"}],"default":[]}"#.to_owned(), "twice"),
            (r#"{"default":[{"type":"reject","a":1}]}"#.to_owned(), "unknown field, \"a\""),
            (r#"{"default":[{"type":"maybe"}]}"#.to_owned(), "unknown type"),
            (sigstore(""), "exactly one of"),
            (sigstore(r#","keyPath":"/a","keyData":"YQ==""#), "exactly one of"),
            (sigstore(r#","keyData":"!""#), "base64"),
            (
                sigstore(r#","keyPath":"/a","signedIdentity":{"type":"matchSome"}"#),
                "unknown type",
            ),
            (
                sigstore(r#","keyPath":"/a","signedIdentity":{"type":"exactReference"}"#),
                "lacks dockerReference",
            ),
            (
                r#"{"default":[{"type":"reject"}],"transports":{"oci":{"a":[{"type":"reject"}]}}}"#.to_owned(),
                "absolute",
            ),
            (
                r#"{"default":[{"type":"reject"}],"transports":{"docker":{"a*.com":[{"type":"reject"}]}}}"#.to_owned(),
                "wildcard",
            ),
        ] {
            let error = Policy::parse(text.as_bytes()).unwrap_err();
            assert!(error.contains(why), "{text}: {error}");
        }
        let fulcio = sigstore(r#","fulcio":{"caPath":"/x"}"#);
        let policy = Policy::parse(fulcio.as_bytes()).unwrap();
        assert_eq!(
            policy.default,
            [Requirement::NotServed("sigstoreSigned by fulcio")]
        );
    }

    #[test]
    fn identities_are_compared_as_containers_tools_do() {
        let hex = "a".repeat(64);
        let by_digest = format!("reg.io/team/app@sha256:{hex}");
        let remap = Identity::Remap {
            prefix: "reg.io".to_owned(),
            signed_prefix: "vendor.example".to_owned(),
        };
        let reference_of = Identity::Reference("vendor.example/app:1".to_owned());
        let repository_of = Identity::RepositoryOf("vendor.example/app".to_owned());
        let tagged = "reg.io/team/app:1";
        for (identity, image, signed, accepted) in [
            (&Identity::Exact, Some(tagged), tagged, true),
            (&Identity::Exact, Some(tagged), "reg.io/team/app:2", false),
            (&Identity::Exact, Some(tagged), "reg.io/team/app", false),
            (
                &Identity::Exact,
                Some("reg.io/team/app:latest"),
                "reg.io/team/app",
                false,
            ),
            (&Identity::Exact, Some(&by_digest), tagged, false),
            (&Identity::RepositoryOrExact, Some(tagged), tagged, true),
            (
                &Identity::RepositoryOrExact,
                Some(tagged),
                "reg.io/team/app",
                false,
            ),
            (&Identity::RepositoryOrExact, Some(&by_digest), tagged, true),
            (
                &Identity::RepositoryOrExact,
                Some(&by_digest),
                "reg.io/team/app",
                false,
            ),
            (
                &Identity::RepositoryOrExact,
                Some(&by_digest),
                "reg.io/team/b:1",
                false,
            ),
            (&Identity::Repository, Some(tagged), "reg.io/team/app", true),
            (
                &Identity::Repository,
                Some(tagged),
                "reg.io/team/app:9",
                true,
            ),
            (
                &Identity::Repository,
                Some(tagged),
                "reg.io/team/apps",
                false,
            ),
            (
                &Identity::Repository,
                Some("busybox:1"),
                "docker.io/library/busybox",
                true,
            ),
            (&Identity::Repository, None, tagged, false),
            (&reference_of, None, "vendor.example/app:1", true),
            (&reference_of, Some(tagged), "vendor.example/app", false),
            (&repository_of, None, "vendor.example/app:7", true),
            (&repository_of, Some(tagged), tagged, false),
            (&remap, Some(tagged), "vendor.example/team/app:1", true),
            (&remap, Some(tagged), tagged, false),
            (&remap, Some("reg.iox/app:1"), "reg.iox/app:1", true),
            (&Identity::Repository, Some(tagged), "not a name", false),
        ] {
            let image = image.map(reference);
            let result = identity.accepts(image.as_ref(), signed);
            assert_eq!(
                result.is_ok(),
                accepted,
                "{identity:?} {image:?} {signed}: {result:?}"
            );
        }
    }
}
