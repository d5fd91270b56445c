//! What is fed, and what must be true of the answers.

use knarr_distribution::foreign;
use knarr_layer::tar::{self, Event, Kind, Limits, Member, Reader};
use knarr_spec::image::ImageConfig;
use knarr_spec::manifest::Document;
use knarr_spec::{Digest, Platform, Reference};

use crate::Target;

/// All of them.
pub const TARGETS: [Target; 7] = [
    Target {
        name: "tar",
        corpus: tars,
        words: &[
            b"ustar\x0000",
            b"ustar  \0",
            b"path=",
            b"linkpath=",
            b"size=",
            b"mtime=1.5",
            b"GNU.sparse.major=1",
            b"GNU.sparse.map=0,1",
            b"GNU.sparse.realsize=9",
            b"SCHILY.xattr.user.a=b",
            b"77777777777",
            b"\x80\0\0\0\0\0\0\0\0\0\x01",
        ],
        run: tar_is_read_the_same_however_it_comes,
    },
    Target {
        name: "manifest",
        corpus: documents,
        words: &[
            b"\"manifests\":[]",
            b"\"layers\":[]",
            b"\"config\":{}",
            b"\"mediaType\":",
            b"\"fsLayers\":",
            b"\"schemaVersion\":1",
            b"\\u0000",
            b"1e400",
            b"null",
            b"[[[[",
        ],
        run: document_is_one_thing,
    },
    Target {
        name: "config",
        corpus: configs,
        words: &[
            b"\"rootfs\":",
            b"\"diff_ids\":[",
            b"null",
            b"\"history\":[{}]",
            b"1e400",
            b"{}",
        ],
        run: config_comes_back,
    },
    Target {
        name: "reference",
        corpus: references,
        words: &[
            b"@sha256:",
            b":",
            b"localhost/",
            b"[::1]:5000/",
            b"..",
            b"_",
            b"--",
            b"/",
        ],
        run: reference_is_safe_and_comes_back,
    },
    Target {
        name: "words",
        corpus: words,
        words: &[b"sha256:", b"sha512:", b"linux/", b"/v8", b"/"],
        run: words_come_back,
    },
    Target {
        name: "challenge",
        corpus: challenges,
        words: &[
            b"Bearer ", b"Basic ", b"realm=", b"\"", b"\\\"", b",", b"scope=", b"=",
        ],
        run: challenge_is_bounded,
    },
    Target {
        name: "range",
        corpus: ranges,
        words: &[b"bytes ", b"-", b"/", b"*", b" "],
        run: range_is_what_it_says,
    },
];

fn texts(all: &[&str]) -> Vec<Vec<u8>> {
    all.iter().map(|text| text.as_bytes().to_vec()).collect()
}

/// Everything that a reader says of some bytes.
type Read = Result<Vec<(Member, u64)>, tar::Error>;

fn read(bytes: &[u8], step: usize) -> Read {
    let limits = Limits {
        extended_header: 64 << 10,
        segments: 1 << 10,
    };
    let mut reader = Reader::new(limits);
    let mut found: Vec<(Member, u64)> = Vec::new();
    for mut piece in bytes.chunks(step) {
        while !piece.is_empty() {
            let (taken, event) = reader.feed(piece)?;
            assert!(taken > 0 || event.is_some(), "it does not get on");
            match event {
                Some(Event::Member(member)) => found.push((*member, 0)),
                Some(Event::Data(data)) => {
                    let last = found.last_mut().map(|(_, count)| count);
                    *last.unwrap_or_else(|| panic!("data of nobody")) += data.len() as u64;
                }
                None => {}
            }
            piece = piece.get(taken..).unwrap_or_default();
        }
    }
    reader.end()?;
    Ok(found)
}

fn tar_is_read_the_same_however_it_comes(bytes: &[u8]) {
    let whole = read(bytes, usize::MAX);
    for step in [61, 512, 4096] {
        let pieces = read(bytes, step);
        match (&whole, &pieces) {
            (Ok(one), Ok(other)) => assert_eq!(one, other, "in pieces of {step}"),
            (Err(one), Err(other)) => {
                assert_eq!(one.reason, other.reason, "in pieces of {step}");
            }
            _ => panic!("in pieces of {step}: {whole:?}, {pieces:?}"),
        }
    }
    for (member, count) in whole.unwrap_or_default() {
        assert!(member.data.is_multiple_of(tar::BLOCK), "{member:?}");
        assert_eq!(count, member.data_size, "{member:?}");
        assert!(!member.path.contains(&0), "{member:?}");
        written_again(member);
    }
}

/// What was understood can be written, and is understood the same then.
fn written_again(member: Member) {
    if member.sparse.is_some() {
        return;
    }
    let Ok(mut bytes) = tar::encode(&member) else {
        return;
    };
    let header = bytes.len() as u64;
    bytes.resize(
        bytes.len() + usize::try_from(member.data_size).unwrap_or_default(),
        0,
    );
    bytes.extend(tar::padding(member.data_size));
    bytes.extend(tar::TRAILER);
    let again = match read(&bytes, 4096) {
        Ok(again) => again,
        Err(error) => panic!("{member:?} is written as what cannot be read: {error}"),
    };
    let expected = Member {
        data: header,
        ..member
    };
    assert_eq!(again.len(), 1, "{expected:?}");
    for (found, _) in again {
        let found = Member {
            data: header,
            ..found
        };
        assert_eq!(found, expected);
    }
}

fn tars() -> Vec<Vec<u8>> {
    let of = |members: &[(Member, &[u8])]| {
        let mut out = Vec::new();
        for (member, data) in members {
            let size = data.len() as u64;
            let member = Member {
                size,
                data_size: size,
                ..member.clone()
            };
            out.extend(tar::encode(&member).unwrap_or_default());
            out.extend_from_slice(data);
            out.extend(tar::padding(size));
        }
        out.extend(tar::TRAILER);
        out
    };
    let named = |path: &str, kind: Kind| Member {
        path: path.as_bytes().to_vec(),
        kind,
        mode: 0o644,
        ..Member::default()
    };
    let linked = |path: &str, kind: Kind, link: &str| Member {
        link: link.as_bytes().to_vec(),
        ..named(path, kind)
    };
    let long = "a/".repeat(120) + "name";
    let rich = Member {
        uid: 3_000_000_000,
        gid: -1,
        owner: "ow\u{f6}ner".as_bytes().to_vec(),
        xattrs: [(b"user.a".to_vec(), b"b\0c".to_vec())]
            .into_iter()
            .map(|(k, v)| (k.into(), v.into()))
            .collect(),
        mtime: knarr_layer::tree::Time {
            seconds: -5,
            nanoseconds: 500,
        },
        ..named("rich", Kind::File)
    };
    vec![
        of(&[
            (named("d/", Kind::Dir), b""),
            (named("d/f", Kind::File), b"some data"),
            (linked("d/s", Kind::Symlink, "../f"), b""),
            (linked("d/h", Kind::HardLink, "d/f"), b""),
        ]),
        of(&[(named(&long, Kind::File), &[7; 700]), (rich, b"x")]),
        of(&[
            (named("fifo", Kind::Fifo), b""),
            (linked("l", Kind::Symlink, &long), b""),
            (named("d/.wh.f", Kind::File), b""),
        ]),
    ]
}

fn document_is_one_thing(bytes: &[u8]) {
    for kind in ["", "application/vnd.oci.image.index.v1+json"] {
        let Ok(document) = Document::parse(bytes, kind) else {
            continue;
        };
        let written = match &document {
            Document::Manifest(manifest) => serde_json::to_vec(manifest),
            Document::Index(index) => serde_json::to_vec(index),
        };
        let written = written.unwrap_or_else(|error| panic!("it cannot be written: {error}"));
        match Document::parse(&written, "") {
            Ok(again) => assert_eq!(again, document),
            Err(error) => panic!("what was written cannot be read: {error}"),
        }
    }
}

fn documents() -> Vec<Vec<u8>> {
    let digest = "sha256:".to_owned() + &"a".repeat(64);
    let config = format!(
        r#"{{"mediaType":"application/vnd.oci.image.config.v1+json","digest":"{digest}","size":7}}"#
    );
    let layer = config.replace("config.v1+json", "layer.v1.tar+gzip");
    let manifest = format!(
        r#"{{"schemaVersion":2,"mediaType":"application/vnd.oci.image.manifest.v1+json","config":{config},"layers":[{layer},{layer}],"annotations":{{"a":"b"}}}}"#
    );
    let index = format!(
        r#"{{"schemaVersion":2,"mediaType":"application/vnd.oci.image.index.v1+json","manifests":[{{"mediaType":"application/vnd.oci.image.manifest.v1+json","digest":"{digest}","size":9,"platform":{{"architecture":"arm64","os":"linux","variant":"v8"}}}}]}}"#
    );
    vec![manifest.into_bytes(), index.into_bytes()]
}

fn config_comes_back(bytes: &[u8]) {
    let Ok(config) = serde_json::from_slice::<ImageConfig>(bytes) else {
        return;
    };
    let written = serde_json::to_vec(&config);
    let written = written.unwrap_or_else(|error| panic!("it cannot be written: {error}"));
    match serde_json::from_slice::<ImageConfig>(&written) {
        Ok(again) => assert_eq!(again, config),
        Err(error) => panic!("what was written cannot be read: {error}"),
    }
}

fn configs() -> Vec<Vec<u8>> {
    let digest = "sha256:".to_owned() + &"b".repeat(64);
    let config = format!(
        r#"{{"created":"2024-01-02T03:04:05.6Z","architecture":"amd64","os":"linux","config":{{"User":"1:2","Env":["A=b"],"Cmd":["sh"],"ExposedPorts":{{"80/tcp":{{}}}},"Volumes":{{"/v":{{}}}},"Labels":{{"a":"b"}},"Healthcheck":{{"Test":["CMD","x"],"Interval":1000000}},"StopSignal":"SIGINT"}},"rootfs":{{"type":"layers","diff_ids":["{digest}"]}},"history":[{{"created_by":"x","empty_layer":true}}]}}"#
    );
    vec![config.into_bytes()]
}

fn reference_is_safe_and_comes_back(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else {
        return;
    };
    let Ok(reference) = text.parse::<Reference>() else {
        return;
    };
    let shown = reference.to_string();
    match shown.parse::<Reference>() {
        Ok(again) => assert_eq!(again, reference, "{text:?} {shown:?}"),
        Err(error) => panic!("{text:?} is shown as {shown:?}: {error}"),
    }
    let familiar = reference.familiar();
    match familiar.parse::<Reference>() {
        Ok(again) => assert_eq!(again, reference, "{text:?} {familiar:?}"),
        Err(error) => panic!("{text:?} is shown as {familiar:?}: {error}"),
    }
    // Folders are made of these.
    let registry = reference.registry();
    assert!(
        !registry.contains('/') && !matches!(registry, "" | "." | ".."),
        "{text:?}"
    );
    for part in reference.repository().split('/').chain(reference.tag()) {
        assert!(
            !matches!(part, "" | "." | "..") && !part.contains(['/', '\0']),
            "{text:?}"
        );
    }
}

fn references() -> Vec<Vec<u8>> {
    let digest = "c".repeat(64);
    let mut all = texts(&[
        "busybox",
        "a/b:1",
        "reg.io:5000/team/app:v1.2-x",
        "localhost/x",
        "[::1]:5000/a/b__c:tag",
        "index.docker.io/library/x:latest",
    ]);
    all.push(format!("reg.io/x:1@sha256:{digest}").into_bytes());
    all
}

fn words_come_back(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else {
        return;
    };
    if let Ok(digest) = text.parse::<Digest>() {
        assert_eq!(digest.to_string(), text);
    }
    if let Ok(platform) = text.parse::<Platform>() {
        let shown = platform.to_string();
        assert_eq!(
            shown.parse::<Platform>().ok(),
            Some(platform),
            "{text:?} {shown:?}"
        );
    }
}

fn words() -> Vec<Vec<u8>> {
    let mut all = texts(&["linux/amd64", "linux/arm64/v8", "arm64", "windows/amd64"]);
    all.push(format!("sha256:{}", "0".repeat(64)).into_bytes());
    all
}

fn challenge_is_bounded(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    let mut size = 0;
    for (scheme, parameters) in foreign::challenges(&text) {
        assert!(!scheme.is_empty(), "{text:?}");
        size += scheme.len();
        for (name, value) in parameters {
            assert!(!name.is_empty(), "{text:?}");
            size += name.len() + value.len();
        }
    }
    // Nothing is made of nothing (a letter may be longer in lower case).
    assert!(size <= 3 * text.len(), "{text:?}");
}

fn challenges() -> Vec<Vec<u8>> {
    texts(&[
        r#"Bearer realm="https://auth.io/token",service="reg.io",scope="repository:a/b:pull,push""#,
        r#"Basic realm="a \"quoted\" one", Bearer realm=x"#,
        "Negotiate, Basic realm=\"x\"",
    ])
}

fn range_is_what_it_says(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    if let Some(start) = foreign::range_start(&text) {
        let said = text.strip_prefix("bytes ").unwrap_or_default();
        let said = said.split('-').next().unwrap_or_default().trim();
        assert_eq!(said.parse(), Ok(start), "{text:?}");
    }
}

fn ranges() -> Vec<Vec<u8>> {
    texts(&[
        "bytes 0-99/200",
        "bytes 100-199/*",
        "bytes */200",
        "bytes 5-",
    ])
}
