//! login, logout, push, list-tags, inspect --remote, delete --remote, against Debian's registry and
//! with skopeo as the judge.

use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, ensure};
use knarr_testkit::{Knarr, Output, Registry};
use serde_json::Value;

fn text(path: &Path) -> &str {
    path.to_str().unwrap_or_default()
}

fn guarded(knarr: &Knarr) -> Result<Registry> {
    let hash = Command::new("htpasswd")
        .args(["-nbB", "me", "secret"])
        .output()?;
    let lines = String::from_utf8(hash.stdout)?;
    Registry::start(&knarr.scratch().join("registry"), Some(&lines))
}

/// `knarr login` with a password on standard input.
fn login(knarr: &Knarr, args: &[&str], password: &str) -> Result<Output> {
    use std::io::Write as _;
    let mut command = knarr.command([&["login", "-u", "me", "--password-stdin"], args].concat());
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()?;
    let mut stdin = child.stdin.take().context("no stdin")?;
    stdin.write_all(format!("{password}\n").as_bytes())?;
    drop(stdin);
    let output = child.wait_with_output()?;
    Ok(Output {
        code: output.status.code().unwrap_or(-1),
        stdout: String::from_utf8(output.stdout)?,
        stderr: String::from_utf8(output.stderr)?,
    })
}

fn skopeo(args: &[&str]) -> Result<String> {
    let output = Command::new("skopeo").args(args).output()?;
    ensure!(
        output.status.success(),
        "skopeo {args:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(String::from_utf8(output.stdout)?)
}

#[test]
fn a_login_is_kept_where_podman_finds_it_and_a_logout_takes_it_away() -> Result<()> {
    let mut knarr = Knarr::with_busybox()?;
    let home = knarr.scratch().join("home");
    std::fs::create_dir_all(&home)?;
    knarr.env("HOME", text(&home));
    knarr.env("XDG_RUNTIME_DIR", text(&home.join("run")));
    let registry = guarded(&knarr)?;
    let host = registry.host();
    let image = format!("{host}/team/app:1");
    knarr.ok(["tag", "busybox", &image])?;
    let refused = knarr.run(["push", &image])?;
    assert_eq!(refused.code, 1);
    assert!(
        refused.stderr.contains(&format!("knarr login {host}")),
        "{}",
        refused.stderr
    );
    let wrong = login(&knarr, &[&host], "guess")?;
    assert_eq!(wrong.code, 1);
    assert!(wrong.stderr.contains("password is wrong") && !wrong.stderr.contains("guess"));
    let auth = home.join(".config/containers/auth.json");
    assert!(!auth.exists());
    let good = login(&knarr, &[&host], "secret")?;
    assert_eq!(good.code, 0, "{}", good.stderr);
    assert_eq!(good.text(), "Login Succeeded");
    assert!(good.stderr.contains(text(&auth)), "{}", good.stderr);
    assert_eq!(
        std::fs::metadata(&auth)?.permissions().mode() & 0o777,
        0o600
    );
    assert_eq!(knarr.ok(["login", "--get-login", &host])?, "me");
    knarr.ok(["push", &image])?;
    // Others read the same file.
    let name = format!("docker://{image}");
    skopeo(&[
        "inspect",
        "--tls-verify=false",
        "--authfile",
        text(&auth),
        &name,
    ])?;
    assert!(knarr.ok(["logout", &host])?.contains(&host));
    assert!(knarr.ok(["logout", &host])?.contains("Not logged in"));
    assert_eq!(knarr.run(["push", &image])?.code, 1);
    assert!(!std::fs::read_to_string(&auth)?.contains(&host));
    Ok(())
}

#[test]
fn a_credential_helper_keeps_the_password_out_of_files() -> Result<()> {
    let mut knarr = Knarr::with_busybox()?;
    let dir = knarr.scratch().join("helper");
    std::fs::create_dir_all(&dir)?;
    let helper = dir.join("docker-credential-shelf");
    let script = "#!/bin/sh\nread -r line\ncase $1 in\n\
        get) cat $SHELF/secret 2>/dev/null || { echo credentials not found in shelf; exit 1; };;\n\
        store) echo \"$line\" > $SHELF/secret;;\n\
        erase) rm $SHELF/secret;;\n\
        list) echo '{}';;\nesac\n";
    std::fs::write(&helper, script)?;
    std::fs::set_permissions(&helper, std::fs::Permissions::from_mode(0o755))?;
    let path = std::env::var("PATH")?;
    knarr.env("PATH", &format!("{}:{path}", dir.display()));
    knarr.env("SHELF", text(&dir));
    let registry = guarded(&knarr)?;
    let host = registry.host();
    let config = knarr.scratch().join("config");
    std::fs::create_dir_all(&config)?;
    let file = config.join("config.json");
    let json = format!(r#"{{"credHelpers":{{"{host}":"shelf"}},"HttpHeaders":{{"a":"b"}}}}"#);
    std::fs::write(&file, &json)?;
    knarr.env("REGISTRY_AUTH_FILE", text(&file));
    let image = format!("{host}/app:1");
    knarr.ok(["tag", "busybox", &image])?;
    let refused = knarr.run(["push", &image])?;
    assert!(
        refused.stderr.contains("docker-credential-shelf"),
        "{}",
        refused.stderr
    );
    let good = login(&knarr, &[&host], "secret")?;
    assert_eq!((good.code, good.stderr.as_str()), (0, ""));
    assert_eq!(
        std::fs::read_to_string(&file)?,
        json,
        "nothing was written there"
    );
    let kept = std::fs::read_to_string(dir.join("secret"))?;
    assert!(
        kept.contains(r#""Secret":"secret""#) && kept.contains(&host),
        "{kept}"
    );
    knarr.ok(["push", &image])?;
    knarr.ok(["logout", &host])?;
    assert!(!dir.join("secret").exists());
    // One that is not installed is named.
    std::fs::write(&file, json.replace("shelf", "nowhere"))?;
    let refused = knarr.run(["push", &image])?;
    assert!(
        refused.stderr.contains("docker-credential-nowhere")
            && refused.stderr.contains("not installed"),
        "{}",
        refused.stderr
    );
    Ok(())
}

#[test]
fn what_is_pushed_is_what_others_and_knarr_itself_pull() -> Result<()> {
    let knarr = Knarr::with_busybox()?;
    let registry = Registry::start(&knarr.scratch().join("registry"), None)?;
    let host = registry.host();
    let image = format!("{host}/team/app:1");
    knarr.ok(["tag", "busybox", &image])?;
    let id = knarr.ok(["image", "inspect", "-f", "{{.Id}}", "busybox"])?;
    let pushed = knarr.ok(["push", &image])?;
    assert!(
        pushed.contains(&format!("The push refers to repository [{host}/team/app]"))
            && pushed.contains(": Pushed")
            && pushed.contains("1: digest: sha256:"),
        "{pushed}"
    );
    // Skopeo hashes every blob and every tar.
    let copy = knarr.scratch().join("copy");
    let (from, to) = (
        format!("docker://{image}"),
        format!("dir:{}", copy.display()),
    );
    skopeo(&["copy", "--src-tls-verify=false", &from, &to])?;
    let manifest: Value = serde_json::from_slice(&std::fs::read(copy.join("manifest.json"))?)?;
    assert_eq!(manifest["config"]["digest"], id.as_str());
    let again = knarr.ok(["push", &image])?;
    assert!(
        again.contains("Layer already exists") && !again.contains("Pushed"),
        "{again}"
    );
    // Another repository takes the blobs from the first.
    let other = format!("{host}/other:2");
    knarr.ok(["tag", "busybox", &other])?;
    let mounted = knarr.ok(["push", &other])?;
    assert!(mounted.contains("Mounted from team/app"), "{mounted}");
    let digest = |text: &str| {
        let found = text
            .split_whitespace()
            .find(|word| word.starts_with("sha256:"));
        found.map(str::to_owned).context("no digest")
    };
    assert_eq!(digest(&pushed)?, digest(&mounted)?);
    // Back again, without what is here.
    let fresh = Knarr::new()?;
    let json = fresh.ok(["pull", "--progress", "json", &image])?;
    let lines: Vec<Value> = json
        .lines()
        .map(serde_json::from_str)
        .collect::<Result<_, _>>()?;
    assert!(
        lines.iter().any(|line| line["status"] == "Pull complete"),
        "{json}"
    );
    assert_eq!(fresh.ok(["image", "inspect", "-f", "{{.Id}}", &image])?, id);
    // As zstd: other bytes, the same image.
    let squeezed = format!("{host}/zstd:1");
    knarr.ok(["tag", "busybox", &squeezed])?;
    let pushed = knarr.ok(["push", "--compression", "zstd", &squeezed])?;
    assert!(pushed.contains(": Pushed"), "{pushed}");
    let fresh = Knarr::new()?;
    fresh.ok(["pull", "-q", &squeezed])?;
    assert_eq!(
        fresh.ok(["image", "inspect", "-f", "{{.Id}}", &squeezed])?,
        id
    );
    let raw: Value = serde_json::from_str(&skopeo(&[
        "inspect",
        "--raw",
        "--tls-verify=false",
        &format!("docker://{squeezed}"),
    ])?)?;
    assert!(
        raw["layers"][0]["mediaType"]
            .as_str()
            .context("no type")?
            .ends_with("zstd")
    );
    // Lists and deletions.
    assert_eq!(
        knarr.ok([
            "image",
            "list-tags",
            "--format",
            "{{.Tag}}",
            &format!("{host}/team/app")
        ])?,
        "1"
    );
    assert!(
        knarr
            .ok(["search", &format!("{host}/tea")])?
            .contains("team/app")
    );
    let remote = knarr.ok([
        "image",
        "inspect",
        "--remote",
        "-f",
        "{{.Id}} {{.Os}}",
        &image,
    ])?;
    assert_eq!(remote, format!("{id} linux"));
    knarr.ok(["image", "delete", "--remote", &other])?;
    assert_eq!(knarr.run(["image", "inspect", "--remote", &other])?.code, 1);
    Ok(())
}

#[test]
fn kept_blobs_keep_the_digest() -> Result<()> {
    let knarr = Knarr::with_busybox()?;
    let registry = Registry::start(&knarr.scratch().join("registry"), None)?;
    let second = Registry::start(&knarr.scratch().join("second"), None)?;
    let image = format!("{}/app:1", registry.host());
    knarr.ok(["tag", "busybox", &image])?;
    // A level that a push would not choose by itself.
    knarr.ok(["push", "-q", "--compression-level", "9", &image])?;
    let there = |host: &str| {
        skopeo(&[
            "inspect",
            "--tls-verify=false",
            "--format",
            "{{.Digest}}",
            &format!("docker://{host}/app:1"),
        ])
    };
    for (flags, same) in [
        (&["pull", "-q"][..], false),
        (&["pull", "-q", "--keep-blobs"], true),
    ] {
        let fresh = Knarr::new()?;
        fresh.ok([flags, &[&image]].concat())?;
        let target = format!("{}/app:1", second.host());
        fresh.ok(["tag", &image, &target])?;
        let pushed = fresh.ok(["push", &target])?;
        assert_eq!(
            there(&registry.host())? == there(&second.host())?,
            same,
            "{pushed}"
        );
        assert_eq!(pushed.contains("compressed anew"), !same, "{pushed}");
        // What was kept goes with the image.
        fresh.ok(["rmi", "-f", &image, &target])?;
        let blobs = std::fs::read_dir(fresh.root().join("blobs/sha256"))?.count();
        assert_eq!(blobs, 0);
        knarr.ok(["image", "delete", "--remote", &target])?;
    }
    Ok(())
}

#[test]
fn images_are_copied_to_registries_and_back() -> Result<()> {
    let knarr = Knarr::with_busybox()?;
    let registry = Registry::start(&knarr.scratch().join("registry"), None)?;
    let image = format!("{}/app:1", registry.host());
    knarr.ok(["tag", "busybox", &image])?;
    knarr.ok(["push", "-q", &image])?;
    let digest = |name: &str| {
        skopeo(&[
            "inspect",
            "--tls-verify=false",
            "--format",
            "{{.Digest}}",
            name,
        ])
    };
    let (from, to) = (
        format!("docker://{image}"),
        format!("docker://{}/copied:2", registry.host()),
    );
    knarr.ok(["image", "copy", &from, &to])?;
    assert_eq!(digest(&from)?, digest(&to)?);
    let layout = format!("oci:{}:3", knarr.scratch().join("layout").display());
    let back = format!("docker://{}/back:3", registry.host());
    knarr.ok(["image", "copy", &from, &layout])?;
    knarr.ok(["image", "copy", &layout, &back])?;
    assert_eq!(digest(&from)?, digest(&back)?);
    Ok(())
}

#[test]
fn an_index_is_made_by_hand_and_pulled_by_platform() -> Result<()> {
    let knarr = Knarr::with_busybox()?;
    let registry = Registry::start(&knarr.scratch().join("registry"), None)?;
    let of = |rest: &str| format!("{}/{rest}", registry.host());
    let (native, other, list) = (of("native:1"), of("other:1"), of("list:1"));
    knarr.ok(["tag", "busybox", &native])?;
    knarr.ok(["push", "-q", &native])?;
    // Another image, said to be for another machine.
    let tar = knarr_testkit::fixture::busybox_rootfs()?;
    knarr.ok(["import", "-c", "CMD [\"other\"]", text(&tar), &other])?;
    knarr.ok(["push", "-q", &other])?;
    knarr.ok(["manifest", "create", &list, &native, &other])?;
    assert_eq!(knarr.run(["manifest", "create", &list, &native])?.code, 1);
    knarr.ok([
        "manifest",
        "annotate",
        "--arch",
        "s390x",
        "--annotation",
        "a=b",
        &list,
        &other,
    ])?;
    let local: Value = serde_json::from_str(&knarr.ok(["manifest", "inspect", &list])?)?;
    assert_eq!(local["manifests"][1]["platform"]["architecture"], "s390x");
    assert_eq!(
        local["manifests"][1]["annotations"],
        serde_json::json!({"a": "b"})
    );
    let digest = knarr.ok(["manifest", "push", "--purge", &list])?;
    assert_eq!(knarr.run(["manifest", "rm", &list])?.code, 1);
    let there: Value = serde_json::from_str(&knarr.ok(["manifest", "inspect", &list])?)?;
    assert_eq!(there, local);
    let name = format!("docker://{list}");
    let judged = skopeo(&[
        "inspect",
        "--tls-verify=false",
        "--format",
        "{{.Digest}}",
        &name,
    ])?;
    assert_eq!(judged.trim(), digest);
    let fresh = Knarr::new()?;
    fresh.ok(["pull", "-q", &list])?;
    let id = knarr.ok(["image", "inspect", "-f", "{{.Id}}", "busybox"])?;
    assert_eq!(fresh.ok(["image", "inspect", "-f", "{{.Id}}", &list])?, id);
    // An index of another index's images, in another repository.
    let second = of("second:1");
    knarr.ok(["manifest", "create", &second])?;
    knarr.ok(["manifest", "add", &second, &native])?;
    knarr.ok(["manifest", "add", "--all", &second, &list])?;
    let local: Value = serde_json::from_str(&knarr.ok(["manifest", "inspect", &second])?)?;
    // The one that was there already is there once.
    assert_eq!(local["manifests"].as_array().map(Vec::len), Some(2));
    let entry = local["manifests"][1]["digest"].as_str().context("none")?;
    let image: Value = serde_json::from_str(&knarr.ok(["manifest", "inspect", &second, entry])?)?;
    assert!(image["layers"].is_array(), "{image}");
    let unclear = knarr.run(["manifest", "inspect", &second, &list])?;
    assert!(
        unclear.stderr.contains("has 2 images"),
        "{}",
        unclear.stderr
    );
    knarr.ok(["manifest", "push", &second])?;
    knarr.ok(["manifest", "rm", &second])?;
    let there: Value = serde_json::from_str(&knarr.ok(["manifest", "inspect", &second])?)?;
    assert_eq!(there, local);
    skopeo(&[
        "copy",
        "--all",
        "--src-tls-verify=false",
        &format!("docker://{second}"),
        &format!("dir:{}", knarr.scratch().join("copy").display()),
    ])?;
    // A damaged one is said to be so, and can be removed.
    knarr.ok(["manifest", "create", &second])?;
    let lists = std::fs::read_dir(knarr.root().join("manifests"))?;
    for file in lists {
        std::fs::write(file?.path(), "{")?;
    }
    let damaged = knarr.run(["manifest", "inspect", &second])?;
    assert!(
        damaged.stderr.contains("cannot be read"),
        "{}",
        damaged.stderr
    );
    knarr.ok(["manifest", "rm", &second])?;
    knarr.ok(["manifest", "create", &second])?;
    Ok(())
}

#[test]
fn all_tags_go_and_come_together() -> Result<()> {
    let knarr = Knarr::with_busybox()?;
    let registry = Registry::start(&knarr.scratch().join("registry"), None)?;
    let repository = format!("{}/app", registry.host());
    let tags = ["1", "2"].map(|tag| format!("{repository}:{tag}"));
    for tag in tags.iter().chain([&format!("{repository}2:3")]) {
        knarr.ok(["tag", "busybox", tag])?;
    }
    knarr.ok(["push", "-q", "-a", &repository])?;
    let list = ["image", "list-tags", "--format", "{{.Tag}}", &repository];
    let listed = knarr.ok(list)?;
    let mut listed: Vec<&str> = listed.lines().collect();
    // Debian's registry does not sort.
    listed.sort_unstable();
    assert_eq!(listed, ["1", "2"]);
    let other = knarr.run(["image", "list-tags", &format!("{repository}2")])?;
    assert_eq!(other.code, 1, "it was not asked for: {}", other.stdout);
    let fresh = Knarr::new()?;
    let bars = fresh.ok(["pull", "--progress", "tty", "-a", &repository])?;
    assert!(bars.contains("\x1b["), "{bars:?}");
    for tag in &tags {
        fresh.ok(["image", "inspect", tag])?;
    }
    for command in ["pull", "push"] {
        let refused = knarr.run([command, "-a", &tags[0]])?;
        assert_eq!(refused.code, 1);
        assert!(refused.stderr.contains("--all-tags"), "{}", refused.stderr);
    }
    Ok(())
}

#[test]
fn a_push_that_is_killed_harms_nothing_and_the_next_one_succeeds() -> Result<()> {
    let knarr = Knarr::with_busybox()?;
    let registry = Registry::start(&knarr.scratch().join("registry"), None)?;
    let image = format!("{}/app:1", registry.host());
    knarr.ok(["tag", "busybox", &image])?;
    let mut command = knarr.command(["push", &image]);
    command.env("KNARR_FAILPOINT", "push.begun");
    ensure!(!command.status()?.success(), "it was not killed");
    let df = knarr.ok(["system", "df", "-v"])?;
    ensure!(df.ends_with("Unaccounted bytes: 0"), "{df}");
    ensure!(knarr.run(["pull", "-q", &image])?.code == 1);
    knarr.ok(["push", &image])?;
    knarr.ok(["rmi", &image])?;
    knarr.ok(["pull", "-q", &image])?;
    Ok(())
}
