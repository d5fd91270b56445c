//! AppArmor's profiles on containers, where the kernel has the module.

#![expect(clippy::unwrap_used, reason = "a test says what it saw by failing")]

use std::io::Write as _;
use std::process::{Command, Stdio};

use knarr_testkit::oci::Oci;
use serde_json::json;

/// Loads a profile that allows everything but to write below `/denied`.
fn load(name: &str) {
    let text = format!(
        "profile {name} flags=(attach_disconnected,mediate_deleted) {{\n\
         capability,\n file,\n signal,\n unix,\n ptrace,\n network,\n mount,\n\
         deny /denied/** w,\n}}\n"
    );
    let mut parser = Command::new("apparmor_parser")
        .args(["--replace", "--skip-cache"])
        .stdin(Stdio::piped())
        .spawn()
        .unwrap();
    let mut input = parser.stdin.take().unwrap();
    input.write_all(text.as_bytes()).unwrap();
    drop(input);
    assert!(parser.wait().unwrap().success());
}

#[test]
#[ignore = "for cargo x vm"]
fn a_profile_confines_the_program_and_what_is_executed_in_it() {
    load("knarr-first");
    load("knarr-second");
    let oci = Oci::new("apparmor");
    let script = "cat /proc/self/attr/current; echo x >/denied/file || echo refused; echo x >/free && echo written; exec sleep 1000";
    oci.bundle("web", |config| {
        config["process"]["args"] = json!(["sh", "-c", script.replace("exec sleep 1000", "true")]);
        config["process"]["apparmorProfile"] = json!("knarr-first");
    });
    std::fs::create_dir(oci.dir().join("bundles/web/rootfs/denied")).unwrap();
    assert_eq!(
        oci.run_container("web").ok(),
        "knarr-first (enforce)\nrefused\nwritten\n"
    );
    oci.rewrite("web", |config| {
        config["process"]["args"] = json!(["sleep", "1000"])
    });
    oci.create("web");
    oci.run(&["start", "web"]).ok();
    let current = |flags: &[&str]| {
        oci.run(&[&["exec"], flags, &["web", "cat", "/proc/self/attr/current"]].concat())
    };
    assert_eq!(current(&[]).ok(), "knarr-first (enforce)\n");
    assert_eq!(
        current(&["--apparmor", "knarr-second"]).ok(),
        "knarr-second (enforce)\n"
    );
    let missing = current(&["--apparmor", "knarr-missing"]);
    assert_eq!(missing.code, 255);
    assert!(missing.err.contains("knarr-missing"), "{}", missing.err);
    let process = oci.dir().join("process.json");
    let asked = json!({
        "args": ["cat", "/proc/self/attr/current"], "cwd": "/", "env": ["PATH=/bin"],
        "user": {"uid": 0, "gid": 0}, "apparmorProfile": "knarr-second"
    });
    std::fs::write(&process, asked.to_string()).unwrap();
    let asked = ["exec", "-p", &process.display().to_string(), "web"];
    assert_eq!(oci.run(&asked).ok(), "knarr-second (enforce)\n");
    oci.run(&["delete", "--force", "web"]).ok();
    oci.rewrite("web", |config| {
        config["process"]["apparmorProfile"] = json!("knarr-missing")
    });
    let ended = oci.run_container("web");
    assert_eq!(ended.code, 1);
    assert!(ended.err.contains("knarr-missing"), "{}", ended.err);
    let features: serde_json::Value = serde_json::from_str(&oci.run(&["features"]).ok()).unwrap();
    assert_eq!(features["linux"]["apparmor"]["enabled"], true);
}
