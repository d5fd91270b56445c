//! Debian's docker-registry, skopeo and umoci: what they made comes in as they made it.
#![expect(clippy::unwrap_used, reason = "in tests a panic is the message")]

mod support;

use std::io::{BufRead as _, BufReader};
use std::net::TcpListener;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use knarr_image::{PullOptions, Silent, Source};
use support::{Handmade, Scratch, has};

fn run(program: &str, args: &[&str]) -> Vec<u8> {
    let output = Command::new(program).args(args).output().unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {args:?}: {errors}");
    output.stdout
}

struct Server {
    child: Child,
    address: String,
}

impl Server {
    fn start(folder: &Path) -> Self {
        // Free a moment ago; the registry cannot choose one itself.
        let port = TcpListener::bind("127.0.0.1:0")
            .unwrap()
            .local_addr()
            .unwrap()
            .port();
        let address = format!("127.0.0.1:{port}");
        let config = folder.join("config.yml");
        let text = format!(
            "version: 0.1\nlog:\n  level: info\nstorage:\n  filesystem:\n    rootdirectory: {}\nhttp:\n  addr: {address}\n",
            folder.join("registry").display()
        );
        std::fs::write(&config, text).unwrap();
        let mut child = Command::new("docker-registry")
            .args(["serve".as_ref(), config.as_os_str()])
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
        let listening = lines
            .by_ref()
            .any(|line| line.unwrap().contains("listening on"));
        assert!(listening, "docker-registry did not start");
        // It blocks once its pipe is full.
        std::thread::spawn(move || lines.for_each(drop));
        Self { child, address }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

#[test]
fn what_skopeo_pushed_to_docker_registry_is_pulled() {
    let test = "what_skopeo_pushed_to_docker_registry_is_pulled";
    if !has(test, "docker-registry") || !has(test, "skopeo") {
        return;
    }
    let scratch = Scratch::new();
    let server = Server::start(scratch.dir.path());
    let image = Handmade::new("oracle");
    let archive = scratch.write("image.tar", &image.docker_archive(&["app:1"]));
    let from = format!("docker-archive:{}", archive.display());
    for format in ["v2s2", "oci"] {
        let name = format!("{}/team/app:{format}", server.address);
        run(
            "skopeo",
            &[
                "--insecure-policy",
                "copy",
                "--dest-tls-verify=false",
                "--format",
                format,
                &from,
                &format!("docker://{name}"),
            ],
        );
        let pulled = scratch
            .store
            .pull(&name.parse().unwrap(), &PullOptions::default(), &Silent)
            .unwrap();
        let inspected = run(
            "skopeo",
            &[
                "inspect",
                "--tls-verify=false",
                "--format",
                "{{.Digest}}",
                &format!("docker://{name}"),
            ],
        );
        assert_eq!(
            String::from_utf8_lossy(&inspected).trim(),
            pulled.digest.to_string()
        );
        assert_eq!(pulled.image.config.rootfs.diff_ids.len(), image.tars.len());
        for (id, tar) in pulled.image.layers.iter().zip(&image.tars) {
            let stored = scratch.store.layers().path(id).join("layer.tar");
            assert!(std::fs::read(stored).unwrap() == *tar);
        }
    }
    let missing = format!("{}/team/app:missing", server.address)
        .parse()
        .unwrap();
    let error = scratch
        .store
        .pull(&missing, &PullOptions::default(), &Silent)
        .unwrap_err();
    assert_eq!(knarr_diag::Explain::code(&error), "manifest-unknown");
    let missing = format!("{}/nobody:1", server.address).parse().unwrap();
    let error = scratch
        .store
        .pull(&missing, &PullOptions::default(), &Silent)
        .unwrap_err();
    assert!(matches!(
        knarr_diag::Explain::code(&error),
        "repository-unknown" | "manifest-unknown"
    ));
}

#[test]
fn what_umoci_made_is_loaded() {
    let test = "what_umoci_made_is_loaded";
    if !has(test, "umoci") || !has(test, "skopeo") || !Path::new("/bin/busybox").exists() {
        return;
    }
    let scratch = Scratch::new();
    let layout = scratch.path("layout");
    let layout_text = layout.display().to_string();
    let image = format!("{layout_text}:v1");
    run("umoci", &["init", "--layout", &layout_text]);
    run("umoci", &["new", "--image", &image]);
    run(
        "umoci",
        &[
            "insert",
            "--rootless",
            "--image",
            &image,
            "/bin/busybox",
            "/bin/busybox",
        ],
    );
    run(
        "umoci",
        &["config", "--image", &image, "--config.cmd", "/bin/busybox"],
    );
    let loaded = scratch
        .store
        .load(Source::Path(&layout), None, &Silent)
        .unwrap();
    let config = run(
        "skopeo",
        &["inspect", "--raw", "--config", &format!("oci:{image}")],
    );
    assert_eq!(scratch.store.config_bytes(loaded[0].id).unwrap(), config);
    // skopeo's archives of it are the same image.
    for format in ["docker-archive", "oci-archive"] {
        let archive = scratch.path(format);
        let to = format!("{format}:{}:busy:1", archive.display());
        run(
            "skopeo",
            &["--insecure-policy", "copy", &format!("oci:{image}"), &to],
        );
        let loaded = scratch
            .store
            .load(Source::Path(&archive), None, &Silent)
            .unwrap();
        assert_eq!(loaded[0].lines(), ["Loaded image: busy:1"]);
    }
}
