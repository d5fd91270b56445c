//! knarr-oci for users without rights.

#![expect(clippy::unwrap_used, reason = "a test says what it saw by failing")]

use std::os::unix::fs::MetadataExt as _;
use std::process::{Command, Stdio};
use std::time::Duration;

use knarr_testkit::eventually;
use knarr_testkit::oci::{Ended, Oci, SUBORDINATE, USER, end};
use serde_json::{Value, json};

const LONG: Duration = Duration::from_secs(60);
/// How many subordinate ids the user has where it has some.
const COUNT: u32 = 1000;

/// A container with a user namespace, whose first id is the user's own, and without cgroup.
fn rootless(config: &mut Value, script: &str, subordinate: u32) {
    config["process"]["args"] = json!(["sh", "-c", script]);
    for set in ["bounding", "effective", "permitted"] {
        config["process"]["capabilities"][set] = json!(["CAP_CHOWN"]);
    }
    let linux = &mut config["linux"];
    linux["namespaces"]
        .as_array_mut()
        .unwrap()
        .push(json!({"type": "user"}));
    let mut map = vec![json!({"containerID": 0, "hostID": USER, "size": 1})];
    if subordinate > 0 {
        map.push(json!({"containerID": 1, "hostID": SUBORDINATE, "size": subordinate}));
    }
    linux["uidMappings"] = json!(map);
    linux["gidMappings"] = json!(map);
    let linux = linux.as_object_mut().unwrap();
    linux.remove("cgroupsPath");
    linux.remove("resources");
    for mount in config["mounts"].as_array_mut().unwrap() {
        let options = mount.get_mut("options").and_then(Value::as_array_mut);
        if let (0, Some(options)) = (subordinate, options) {
            // Nobody has that group.
            options.retain(|option| option != "gid=5");
        }
    }
}

fn run(oci: &Oci, id: &str, subordinate: u32) -> Ended {
    end(&mut oci.by_user(&oci.with_bundle("run", &[], id), subordinate))
}

#[test]
fn a_single_id_is_enough() {
    let oci = Oci::new("single");
    let script = "id -u; id -g; cat /proc/self/setgroups; echo text >/made; hostname; exit 7";
    oci.bundle("web", |config| rootless(config, script, 0));
    oci.give();
    let ended = run(&oci, "web", 0);
    assert_eq!(ended.out, "0\n0\ndeny\nknarr\n", "{}", ended.err);
    assert_eq!(ended.code, 7);
    let made = std::fs::metadata(oci.dir().join("bundles/web/rootfs/made")).unwrap();
    assert_eq!((made.uid(), made.gid()), (USER, USER));
    let word = "the container has no cgroup of its own, so it cannot be limited, paused or counted";
    assert!(ended.err.contains(word), "{}", ended.err);
    // As `spec --rootless` writes it for the user, whose state is where it may write.
    let spec = oci.dir().join("spec");
    std::fs::create_dir_all(&spec).unwrap();
    oci.give();
    let rootfs = oci.dir().join("bundles/web/rootfs");
    let program = oci.command(&[]).get_program().to_owned();
    let mut command = Command::new("sh");
    command
        .args(["-ec"])
        .arg(
            "cd $1; $0 spec --rootless; ln -s $2 rootfs; \
             sed -i 's/\"terminal\": true/\"terminal\": false/; s/\"sh\"/\"id\"/' config.json; \
             export XDG_RUNTIME_DIR=$1; $0 run own; ls $1/knarr-oci/.knarr >/dev/null || ls -d $1/knarr-oci",
        )
        .arg(&program)
        .arg(&spec)
        .arg(&rootfs);
    let ended = end(&mut oci.by_user(&command, 0));
    assert!(
        ended.out.starts_with("uid=0(root) gid=0(root)"),
        "{}{}",
        ended.out,
        ended.err
    );
    assert_eq!(ended.code, 0, "{}", ended.err);
    // Groups cannot be changed in such a namespace.
    oci.rewrite("web", |config| {
        config["process"]["user"]["additionalGids"] = json!([0])
    });
    let ended = run(&oci, "web", 0);
    assert!(ended.err.contains("setgroups"), "{}", ended.err);
    assert_eq!(ended.code, 1);
}

#[test]
fn a_container_of_a_user_with_subordinate_ids_goes_through_its_life() {
    let oci = Oci::new("subordinate");
    let script = "touch /mine; chown 5:6 /mine; touch /ready; exec sleep 100";
    oci.bundle("web", |config| rootless(config, script, COUNT));
    oci.give();
    let call = |args: &[&str]| end(&mut oci.by_user(&oci.command(args), COUNT));
    let mut create = oci.by_user(&oci.with_bundle("create", &[], "web"), COUNT);
    let errors = std::fs::File::create(oci.dir().join("errors")).unwrap();
    create.stdout(Stdio::null()).stderr(errors);
    let created = create.status().unwrap();
    let errors = std::fs::read_to_string(oci.dir().join("errors")).unwrap();
    assert!(created.success(), "{errors}");
    let status = || {
        let state: Value = serde_json::from_str(&call(&["state", "web"]).ok()).unwrap();
        state["status"].as_str().unwrap().to_owned()
    };
    assert_eq!(status(), "created");
    call(&["start", "web"]).ok();
    let rootfs = oci.dir().join("bundles/web/rootfs");
    eventually(LONG, "the program runs", || {
        rootfs.join("ready").exists().then_some(())
    });
    assert_eq!(status(), "running");
    let mine = std::fs::metadata(rootfs.join("mine")).unwrap();
    assert_eq!((mine.uid(), mine.gid()), (SUBORDINATE + 4, SUBORDINATE + 5));
    let exec = |flags: &[&str], script: &str| {
        call(&[&["exec"], flags, &["web", "sh", "-c", script]].concat())
    };
    assert_eq!(
        exec(&["-u", "7:8", "-g", "9"], "id -u; id -g; id -G").ok(),
        "7\n8\n8 9\n"
    );
    assert_eq!(exec(&[], "exit 3").code, 3);
    let owner = json_list(&call(&["list", "-f", "json"]).ok());
    assert_eq!(owner[0]["owner"], "knarr-user");
    // Where there is no cgroup, each command that needs one says so.
    for args in [
        &["pause", "web"][..],
        &["ps", "web"],
        &["events", "--stats", "web"],
        &["update", "--pids-limit", "5", "web"],
        &["kill", "--all", "web", "TERM"],
    ] {
        let ended = call(args);
        assert_eq!(ended.code, 1, "{args:?}");
        assert!(
            ended.err.contains("a container without a cgroup"),
            "{args:?}: {}",
            ended.err
        );
    }
    call(&["kill", "web", "KILL"]).ok();
    eventually(LONG, "it stops", || (status() == "stopped").then_some(()));
    call(&["delete", "web"]).ok();
    assert!(
        call(&["state", "web"])
            .err
            .contains("container does not exist")
    );
    // All of them at once, which without a cgroup is the first process's pid namespace.
    let mut again = oci.by_user(&oci.with_bundle("run", &["-d"], "web"), COUNT);
    assert!(
        again
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status()
            .unwrap()
            .success()
    );
    call(&["kill", "--all", "web", "KILL"]).ok();
    eventually(LONG, "it stops", || (status() == "stopped").then_some(()));
    call(&["delete", "web"]).ok();
}

fn json_list(text: &str) -> Value {
    serde_json::from_str(text).unwrap()
}

#[test]
fn what_a_user_has_not_is_refused_by_its_name() {
    let oci = Oci::new("refused");
    type Change = fn(&mut Value);
    let cases: &[(Change, &str)] = &[
        (
            |config| {
                let linux = config["linux"].as_object_mut().unwrap();
                linux.remove("uidMappings");
                linux.remove("gidMappings");
                let namespaces = linux["namespaces"].as_array_mut().unwrap();
                namespaces.retain(|namespace| namespace["type"] != "user");
            },
            "rootless container requires user namespaces",
        ),
        (
            |config| {
                let namespaces = config["linux"]["namespaces"].as_array_mut().unwrap();
                namespaces.retain(|namespace| namespace["type"] != "user");
                namespaces.push(json!({"type": "user", "path": "/proc/1/ns/user"}));
            },
            "a user namespace can be joined by root only",
        ),
        (
            |config| config["linux"]["uidMappings"][0]["hostID"] = json!(0),
            "linux.uidMappings: id 0 of the host is neither the caller's own, 4321, nor one of its subordinate ids in /etc/subuid",
        ),
        (
            |config| config["linux"]["gidMappings"][1]["size"] = json!(2000),
            "linux.gidMappings: id 701000 of the host",
        ),
        (
            |config| config["linux"]["resources"] = json!({"pids": {"limit": 5}}),
            "no cgroup is delegated to this user",
        ),
        (
            |config| config["root"]["path"] = json!("/root"),
            "EACCES (permission denied)",
        ),
    ];
    for (change, said) in cases {
        oci.bundle("web", |config| {
            rootless(config, "true", COUNT);
            change(config);
        });
        oci.give();
        let ended = run(&oci, "web", COUNT);
        assert!(
            ended.err.contains(said),
            "{said}: {}{}",
            ended.out,
            ended.err
        );
        assert_eq!(ended.code, 1, "{said}");
        assert!(!oci.root().join("web").exists(), "{said}");
    }
}
