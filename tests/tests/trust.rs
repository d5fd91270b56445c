//! policy.json and signatures as cosign makes them, made here with openssl; skopeo judges the scopes.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Result, ensure};
use knarr_testkit::{Knarr, Registry, sha256};
use serde_json::{Value, json};

fn text(path: &Path) -> &str {
    path.to_str().unwrap_or_default()
}

fn openssl(args: &[&str]) -> Result<()> {
    let output = Command::new("openssl").args(args).output()?;
    let error = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "openssl {args:?}: {error}");
    Ok(())
}

/// Keys of every kind, and one that nobody signs with.
struct Keys(PathBuf);

const SIGNERS: [&str; 3] = ["ecdsa", "rsa", "ed25519"];

impl Keys {
    fn make(folder: &Path) -> Result<Self> {
        std::fs::create_dir_all(folder)?;
        let keys = Self(folder.to_owned());
        for (name, args) in [
            (
                "ecdsa",
                &["-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256"][..],
            ),
            (
                "other",
                &["-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256"],
            ),
            (
                "rsa",
                &["-algorithm", "RSA", "-pkeyopt", "rsa_keygen_bits:2048"],
            ),
            ("ed25519", &["-algorithm", "ED25519"]),
        ] {
            let private = folder.join(name);
            openssl(&[&["genpkey", "-out", text(&private)], args].concat())?;
            let public = keys.public(name);
            openssl(&["pkey", "-in", text(&private), "-pubout", "-out", &public])?;
        }
        Ok(keys)
    }

    fn public(&self, name: &str) -> String {
        format!("{}.pub", self.0.join(name).display())
    }

    /// A signature over `payload`, in base64.
    fn sign(&self, name: &str, payload: &Path) -> Result<String> {
        let (key, out) = (self.0.join(name), self.0.join("signature"));
        let files = ["-out", text(&out)];
        match name {
            "ed25519" => {
                let args = ["pkeyutl", "-sign", "-rawin", "-inkey", text(&key), "-in"];
                openssl(&[&args[..], &[text(payload)], &files].concat())?;
            }
            _ => {
                let args = ["dgst", "-sha256", "-sign", text(&key)];
                openssl(&[&args[..], &files, &[text(payload)]].concat())?;
            }
        }
        base64(&out)
    }
}

fn base64(path: &Path) -> Result<String> {
    let output = Command::new("openssl")
        .args(["base64", "-A", "-in", text(path)])
        .output()?;
    Ok(String::from_utf8(output.stdout)?.trim().to_owned())
}

/// Puts signatures for a manifest where cosign does: `<repository>:sha256-<hex>.sig`.
fn sign(
    knarr: &Knarr,
    keys: &Keys,
    repository: &str,
    at: &str,
    signed: (&str, &str),
) -> Result<()> {
    let (reference, digest) = signed;
    let layout = knarr.scratch().join("signatures");
    std::fs::remove_dir_all(&layout).ok();
    std::fs::create_dir_all(layout.join("blobs/sha256"))?;
    let put = |bytes: &[u8], kind: &str| -> Result<Value> {
        let hex = sha256(bytes);
        std::fs::write(layout.join("blobs/sha256").join(&hex), bytes)?;
        Ok(json!({"mediaType": kind, "digest": format!("sha256:{hex}"), "size": bytes.len()}))
    };
    let payload = json!({
        "critical": {
            "identity": {"docker-reference": reference},
            "image": {"docker-manifest-digest": digest},
            "type": "cosign container image signature",
        },
        "optional": {"creator": "a test"},
    });
    let payload = payload.to_string();
    let kind = "application/vnd.dev.cosign.simplesigning.v1+json";
    let layer = put(payload.as_bytes(), kind)?;
    let file = knarr.scratch().join("payload");
    std::fs::write(&file, &payload)?;
    let mut layers = Vec::new();
    for key in SIGNERS {
        let mut layer = layer.clone();
        layer["annotations"] =
            json!({"dev.cosignproject.cosign/signature": keys.sign(key, &file)?});
        layers.push(layer);
    }
    let config = put(b"{}", "application/vnd.oci.image.config.v1+json")?;
    let kind = "application/vnd.oci.image.manifest.v1+json";
    let manifest =
        json!({"schemaVersion": 2, "mediaType": kind, "config": config, "layers": layers});
    let manifest = put(manifest.to_string().as_bytes(), kind)?;
    let index = json!({"schemaVersion": 2, "manifests": [manifest]});
    std::fs::write(layout.join("index.json"), index.to_string())?;
    std::fs::write(
        layout.join("oci-layout"),
        r#"{"imageLayoutVersion":"1.0.0"}"#,
    )?;
    let from = format!("oci:{}", layout.display());
    let tag = at.replace(':', "-");
    knarr.ok([
        "image",
        "copy",
        "-q",
        &from,
        &format!("docker://{repository}:{tag}.sig"),
    ])?;
    Ok(())
}

#[test]
fn only_what_the_policy_accepts_comes_in() -> Result<()> {
    let maker = Knarr::with_busybox()?;
    let registry = Registry::start(&maker.scratch().join("registry"), None)?;
    let keys = Keys::make(&maker.scratch().join("keys"))?;
    let host = registry.host();
    let repository = format!("{host}/team/app");
    let push = |from: &str, to: &str| -> Result<String> {
        maker.ok(["tag", from, to])?;
        let told = maker.ok(["push", to])?;
        let digest = told
            .split_whitespace()
            .find(|word| word.starts_with("sha256:"));
        Ok(digest.unwrap_or_default().to_owned())
    };
    // Signed as cosign does it, without a tag; signed with the tag; signed for something else; not.
    let tree = knarr_testkit::fixture::busybox_rootfs()?;
    let mut digests = Vec::new();
    for (tag, reference) in [
        ("cosign", Some(repository.clone())),
        ("exact", Some(format!("{repository}:exact"))),
        ("wrong", Some(repository.clone())),
        ("unsigned", None),
    ] {
        maker.ok(["import", "-m", tag, text(&tree), tag])?;
        let digest = push(tag, &format!("{repository}:{tag}"))?;
        if let Some(reference) = reference {
            let named = match (tag, digests.first()) {
                ("wrong", Some(other)) => other,
                _ => &digest,
            };
            sign(&maker, &keys, &repository, &digest, (&reference, named))?;
        }
        digests.push(digest);
    }

    let mut knarr = Knarr::new()?;
    let home = knarr.scratch().join("home");
    let containers = home.join(".config/containers");
    let attachments = containers.join("registries.d");
    std::fs::create_dir_all(&attachments)?;
    let policy = containers.join("policy.json");
    knarr.env("HOME", text(&home));
    let signed = |key: &str, identity: Value| json!([{"type": "sigstoreSigned", "keyPath": keys.public(key), "signedIdentity": identity}]);
    let repo = || json!({"type": "matchRepository"});
    let both = || {
        let mut both = signed("rsa", repo());
        let more = signed("other", repo());
        both.as_array_mut()
            .into_iter()
            .for_each(|both| both.extend(more.as_array().into_iter().flatten().cloned()));
        both
    };
    let remap = json!({"type": "remapIdentity", "prefix": format!("{host}/team"), "signedPrefix": format!("{host}/team")});
    let vendor = json!({"type": "remapIdentity", "prefix": host, "signedPrefix": "vendor.example"});
    let data = base64(Path::new(&keys.public("ecdsa")))?;
    let by_data = json!([{"type": "sigstoreSigned", "keyData": data, "signedIdentity": repo()}]);
    let exact = || json!({"type": "matchExact"});
    let digest_or_exact = || json!({"type": "matchRepoDigestOrExact"});
    let is = |kind: &str| json!({"type": kind, "dockerRepository": repository});
    let by_digest = format!("@{}", digests[1]);
    let skopeos = |name: &str| -> Result<(bool, String)> {
        let output = Command::new("skopeo")
            .env("HOME", &home)
            .args([
                "--policy",
                text(&policy),
                "--registries.d",
                text(&attachments),
            ])
            .args([
                "copy",
                "-q",
                "--src-tls-verify=false",
                &format!("docker://{name}"),
            ])
            .arg(format!("dir:{}", home.join("copied").display()))
            .output()?;
        let error = String::from_utf8_lossy(&output.stderr).into_owned();
        Ok((output.status.success(), error))
    };
    std::fs::write(
        attachments.join("on.yaml"),
        format!("docker:\n  {host}/team:\n    use-sigstore-attachments: true\n"),
    )?;
    for (needed, which, refusal) in [
        (signed("ecdsa", repo()), ":cosign", ""),
        (signed("rsa", repo()), ":cosign", ""),
        (signed("ed25519", repo()), ":cosign", ""),
        (by_data, ":cosign", ""),
        (signed("ecdsa", is("exactRepository")), ":cosign", ""),
        (signed("ecdsa", exact()), ":exact", ""),
        (signed("ecdsa", remap), ":exact", ""),
        (signed("ecdsa", digest_or_exact()), &by_digest, ""),
        (signed("ecdsa", exact()), ":cosign", "it is signed as"),
        (signed("ecdsa", exact()), &by_digest, "it is signed as"),
        (
            signed("ecdsa", digest_or_exact()),
            ":cosign",
            "it is signed as",
        ),
        (
            signed("ecdsa", vendor),
            ":exact",
            "not as vendor.example/team/app:exact",
        ),
        (
            signed("other", repo()),
            ":cosign",
            "was not made with this key",
        ),
        (both(), ":cosign", "was not made with this key"),
        (
            signed("missing", repo()),
            ":cosign",
            "missing.pub cannot be read",
        ),
        (signed("ecdsa", repo()), ":wrong", "it is for sha256:"),
        (
            signed("ecdsa", repo()),
            ":unsigned",
            "there is none for sha256:",
        ),
        (
            json!([{"type": "reject"}]),
            ":cosign",
            "rejects every image",
        ),
    ] {
        let scopes = json!({format!("{host}/team"): needed, "": [{"type": "reject"}]});
        let all = json!({"default": [{"type": "reject"}], "transports": {"docker": scopes}});
        std::fs::write(&policy, all.to_string())?;
        let name = format!("{repository}{which}");
        let accepted = refusal.is_empty();
        let pulled = knarr.run(["run", "--rm", "--entrypoint", "true", &name])?;
        assert_eq!(
            pulled.code == 0,
            accepted,
            "{name} {all}: {}",
            pulled.stderr
        );
        if accepted {
            knarr.ok(["rmi", "-f", &name])?;
        } else {
            for part in [
                refusal,
                text(&policy),
                &format!("docker: {host}/team"),
                which,
            ] {
                assert!(pulled.stderr.contains(part), "{part}: {}", pulled.stderr);
            }
            assert_eq!(knarr.ok(["images", "-aq"])?, "");
        }
    }

    // Which scope counts, skopeo says too. (Debian's cannot check signatures of this kind.)
    let (yes, no) = (
        json!([{"type": "insecureAcceptAnything"}]),
        json!([{"type": "reject"}]),
    );
    for (scopes, accepted) in [
        (json!({host.clone(): yes}), true),
        (
            json!({host.clone(): yes, format!("{host}/team"): no}),
            false,
        ),
        (json!({host.clone(): no, repository.clone(): yes}), true),
        (
            json!({repository.clone(): no, format!("{repository}:cosign"): yes}),
            true,
        ),
        (
            json!({repository.clone(): yes, format!("{repository}:exact"): no}),
            true,
        ),
        (json!({format!("{host}/tea"): yes}), false),
        (json!({"": yes, "*.0.0.1": no}), false),
        (json!({"": yes, "*.example.com": no}), true),
    ] {
        let all = json!({"default": no, "transports": {"docker": scopes}});
        std::fs::write(&policy, all.to_string())?;
        let name = format!("{repository}:cosign");
        let (theirs, said) = skopeos(&name)?;
        assert_eq!(theirs, accepted, "skopeo: {all}: {said}");
        let pulled = knarr.run(["pull", "-q", &name])?;
        assert_eq!(pulled.code == 0, accepted, "{all}: {}", pulled.stderr);
        if accepted {
            knarr.ok(["rmi", &name])?;
        }
    }

    // A signature for the index, as cosign makes it, counts for what the index names.
    let list = format!("{repository}:list");
    maker.ok([
        "manifest",
        "create",
        &list,
        &format!("{repository}:unsigned"),
    ])?;
    let digest = maker.ok(["manifest", "push", "--purge", &list])?;
    sign(&maker, &keys, &repository, &digest, (&repository, &digest))?;
    let needed = json!({host.clone(): signed("ecdsa", repo())});
    let all = json!({"default": [{"type": "reject"}], "transports": {"docker": needed}});
    std::fs::write(&policy, all.to_string())?;
    knarr.ok(["pull", "-q", &list])?;
    knarr.ok(["rmi", &list])?;
    knarr.ok(["pull", "-q", "--all-platforms", &list])?;
    knarr.ok(["rmi", &list])?;

    // Copies and loads are asked about too.
    let unsigned = format!("docker://{repository}:unsigned");
    let layout = format!("oci:{}", knarr.scratch().join("layout").display());
    let copied = knarr.run(["image", "copy", "-q", &unsigned, &layout])?;
    assert!(
        copied.stderr.contains("there is none for"),
        "{}",
        copied.stderr
    );
    let cosign = format!("docker://{repository}:cosign");
    knarr.ok(["image", "copy", "-q", &cosign, &layout])?;
    let refused = knarr.run(["image", "copy", "-q", &layout, "mine:1"])?;
    assert!(refused.stderr.contains("(default)"), "{}", refused.stderr);
    let archive = knarr.scratch().join("archive.tar");
    maker.ok(["save", "-o", text(&archive), "cosign"])?;
    let refused = knarr.run(["load", "-q", "-i", text(&archive)])?;
    assert!(
        refused.stderr.contains("rejects every image"),
        "{}",
        refused.stderr
    );
    assert_eq!(knarr.ok(["images", "-aq"])?, "");

    // What is not understood is said to be so.
    for (content, part) in [
        (
            "{\"default\":[]}".to_owned(),
            "it must say what is accepted",
        ),
        (
            json!({"default": [{"type": "signedBy", "keyType": "GPGKeys", "keyPath": "/x"}]})
                .to_string(),
            "signedBy (GPG signatures)",
        ),
    ] {
        std::fs::write(&policy, content)?;
        let refused = knarr.run(["pull", "-q", &list])?;
        assert!(refused.stderr.contains(part), "{}", refused.stderr);
    }
    // Signatures are looked for only where registries.d says so; a policy can be named.
    std::fs::remove_file(attachments.join("on.yaml"))?;
    let named = knarr.scratch().join("named.json");
    std::fs::write(&named, all.to_string())?;
    knarr.env("KNARR_SIGNATURE_POLICY", text(&named));
    let refused = knarr.run(["pull", "-q", &list])?;
    for part in [text(&named), "use-sigstore-attachments: true"] {
        assert!(refused.stderr.contains(part), "{}", refused.stderr);
    }
    Ok(())
}
