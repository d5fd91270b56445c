use std::fs::Permissions;
use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::os::fd::{AsFd as _, AsRawFd as _};
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::time::{Duration, Instant};

use knarr_diag::{Class, Explain as _};
use serde_json::{Value, json};

use super::*;

/// A plugin that writes down what it was called with, beside itself, and answers what it is told.
fn plugin(folder: &Path, name: &str, body: &str) {
    let log = folder.join("log");
    let text = format!(
        "#!/bin/sh\n(echo \"$CNI_COMMAND {name}\"; env | sort; cat; echo) >>{}\n{body}\n",
        log.display()
    );
    let path = folder.join(name);
    std::fs::write(&path, text).unwrap();
    std::fs::set_permissions(&path, Permissions::from_mode(0o755)).unwrap();
}

fn calls(folder: &Path) -> Vec<String> {
    let log = std::fs::read_to_string(folder.join("log")).unwrap_or_default();
    let is_call = |line: &&str| {
        let word = line.split(' ').next().unwrap_or_default();
        !word.is_empty() && word.bytes().all(|byte| byte.is_ascii_uppercase())
    };
    log.lines().filter(is_call).map(str::to_owned).collect()
}

fn runner(folder: &Path) -> Runner {
    Runner {
        folders: vec![folder.to_owned()],
        patience: Duration::from_secs(20),
        ..Runner::new(folder.join("cache"))
    }
}

fn list(value: &Value) -> List {
    List::parse(value.to_string().as_bytes(), Path::new("x.conflist")).unwrap()
}

fn attachment() -> Attachment {
    Attachment {
        container: "c1".to_owned(),
        netns: "/run/netns/x".to_owned(),
        interface: "eth0".to_owned(),
        ..Attachment::default()
    }
}

const RESULT: &str = r#"echo '{"cniVersion":"1.0.0","interfaces":[{"name":"eth0","sandbox":"/x"}],"ips":[{"address":"10.1.0.5/16","gateway":"10.1.0.1","interface":0}],"routes":null,"dns":{}}'"#;

#[test]
fn plugins_are_called_in_order_with_what_the_specification_says() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    plugin(folder, "first", RESULT);
    plugin(
        folder,
        "second",
        r#"echo '{"cniVersion":"1.0.0","ips":[{"address":"10.1.0.6/16"}]}'"#,
    );
    let list = list(&json!({"cniVersion": "1.0.0", "name": "net", "plugins": [
        {"type": "first", "mine": {"a": 1}, "capabilities": {"portMappings": true, "mac": false}},
        {"type": "second"},
    ]}));
    let mut attachment = attachment();
    attachment.args = vec![("IgnoreUnknown".to_owned(), "1".to_owned())];
    attachment
        .capabilities
        .insert("portMappings".to_owned(), json!([{"hostPort": 80}]));
    attachment
        .capabilities
        .insert("mac".to_owned(), json!("02:00:00:00:00:01"));
    let runner = runner(folder);
    let result = runner.add(&list, &attachment).unwrap();
    assert_eq!(
        result.ips.first().map(|ip| ip.address.as_str()),
        Some("10.1.0.6/16")
    );
    runner.check(&list, &attachment).unwrap();
    assert_eq!(runner.attachments("net").unwrap(), [attachment.clone()]);
    runner.del(&list, &attachment).unwrap();
    assert_eq!(runner.attachments("net").unwrap(), []);
    assert_eq!(
        calls(folder),
        [
            "ADD first",
            "ADD second",
            "CHECK first",
            "CHECK second",
            "DEL second",
            "DEL first"
        ]
    );
    let log = std::fs::read_to_string(folder.join("log")).unwrap();
    let variables: std::collections::BTreeSet<&str> = log
        .lines()
        .filter_map(|line| line.split_once('=').map(|(name, _)| name))
        .filter(|name| !name.contains(['{', ' ', '"']))
        .collect();
    let given = [
        "CNI_ARGS",
        "CNI_COMMAND",
        "CNI_CONTAINERID",
        "CNI_IFNAME",
        "CNI_NETNS",
        "CNI_PATH",
    ];
    let shells = ["PATH", "PWD", "OLDPWD", "SHLVL", "_"];
    assert!(
        variables
            .iter()
            .all(|name| given.contains(name) || shells.contains(name)),
        "{variables:?}"
    );
    assert!(
        given.iter().all(|name| variables.contains(name)),
        "{variables:?}"
    );
    let inputs: Vec<Value> = log
        .lines()
        .filter_map(|line| serde_json::from_str(line.get(line.find('{')?..)?).ok())
        .collect();
    assert_eq!(
        inputs[0],
        json!({"type": "first", "mine": {"a": 1}, "name": "net", "cniVersion": "1.0.0",
               "runtimeConfig": {"portMappings": [{"hostPort": 80}]}})
    );
    assert_eq!(inputs[1]["prevResult"]["ips"][0]["address"], "10.1.0.5/16");
    // CHECK and DEL get the result of the last.
    for input in &inputs[2..] {
        assert_eq!(input["prevResult"]["ips"][0]["address"], "10.1.0.6/16");
    }
}

#[test]
fn a_failed_add_is_undone_and_names_plugin_and_network() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    plugin(folder, "first", RESULT);
    let list = list(&json!({"cniVersion": "1.0.0", "name": "net", "plugins": [
        {"type": "first"}, {"type": "second"}]}));
    let runner = runner(folder);
    let add = |body: &str| {
        if !body.is_empty() {
            plugin(folder, "second", body);
        }
        std::fs::remove_file(folder.join("log")).ok();
        let error = runner.add(&list, &attachment()).unwrap_err();
        let text = error.to_string();
        assert!(
            text.contains("second") && text.contains("network net"),
            "{text}"
        );
        (error, text)
    };
    let (error, _) = add("");
    assert_eq!(error.class(), Class::Unsupported);
    assert!(
        error
            .hint()
            .unwrap()
            .contains("containernetworking-plugins")
    );
    assert_eq!(calls(folder), ["ADD first", "DEL first"]);
    let refuse = r#"printf %s '{"cniVersion":"1.0.0","code":11,"msg":"no room","details":"in 10.1\n"}'; exit 1"#;
    let (error, text) = add(refuse);
    assert_eq!(
        text,
        "CNI plugin second of network net failed to ADD: no room (in 10.1)"
    );
    assert_eq!(error.class(), Class::Busy);
    assert_eq!(
        calls(folder),
        ["ADD first", "ADD second", "DEL second", "DEL first"]
    );
    let (_, text) = add("echo >&2 'no iptables'; exit 3");
    assert_eq!(
        text,
        "CNI plugin second of network net ended with status 3 (no iptables) on ADD"
    );
    let (_, text) = add("kill -9 $$");
    assert_eq!(
        text,
        "CNI plugin second of network net was killed by signal 9 on ADD"
    );
    let (_, text) = add("echo nonsense");
    assert!(text.contains("gave no result"), "{text}");
    let (_, text) = add("head -c 3000000 /dev/zero | tr '\\0' x");
    assert!(text.contains("gave no result"), "{text}");
    let impatient = Runner {
        patience: Duration::from_millis(300),
        ..runner.clone()
    };
    let children = folder.join("children");
    let script = format!("sleep 60 & echo $! >>{}; wait", children.display());
    plugin(folder, "second", &script);
    let error = impatient.add(&list, &attachment()).unwrap_err();
    assert!(error.to_string().contains("took longer"), "{error}");
    let children = std::fs::read_to_string(children).unwrap();
    // Of a zombie, nothing is left to read.
    let lives = |pid: &str| {
        std::fs::read(format!("/proc/{pid}/cmdline")).is_ok_and(|words| !words.is_empty())
    };
    let until = Instant::now() + Duration::from_secs(20);
    while children.lines().any(lives) {
        assert!(Instant::now() < until, "what the plugin ran is left");
        std::thread::sleep(Duration::from_millis(5));
    }
    assert_eq!(children.lines().count(), 2, "ADD and DEL");
    // What could not be undone is remembered.
    assert_eq!(runner.attachments("net").unwrap().len(), 1);
    plugin(folder, "second", "exit 0");
    runner.del(&list, &attachment()).unwrap();
    assert_eq!(runner.attachments("net").unwrap(), []);
}

#[test]
fn del_goes_on_and_tells_of_all_failures() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    for name in ["one", "two", "three"] {
        plugin(
            folder,
            name,
            &format!(
                "[ $CNI_COMMAND = ADD ] && {RESULT} && exit; echo '{{\"code\":100,\"msg\":\"{name} says no\"}}'; exit 1"
            ),
        );
    }
    let list = list(&json!({"cniVersion": "0.4.0", "name": "net", "plugins": [
        {"type": "one"}, {"type": "two"}, {"type": "three"}]}));
    let runner = runner(folder);
    runner.add(&list, &attachment()).unwrap();
    let error = runner.del(&list, &attachment()).unwrap_err();
    let report = error.report();
    let text = format!("{} {:?}", report.message, report.hint);
    assert!(
        ["one", "two", "three"]
            .iter()
            .all(|name| text.contains(&format!("{name} says no"))),
        "{text}"
    );
}

#[test]
fn garbage_collection_names_what_is_attached() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    plugin(
        folder,
        "one",
        &format!("[ $CNI_COMMAND = ADD ] && {RESULT}; exit 0"),
    );
    let new = list(&json!({"cniVersion": "1.1.0", "name": "net", "plugins": [{"type": "one"}]}));
    let runner = runner(folder);
    runner.add(&new, &attachment()).unwrap();
    runner.gc(&new).unwrap();
    runner.status(&new).unwrap();
    let log = std::fs::read_to_string(folder.join("log")).unwrap();
    assert!(
        log.contains(r#""cni.dev/valid-attachments":[{"containerID":"c1","ifname":"eth0"}]"#),
        "{log}"
    );
    let old = list(&json!({"cniVersion": "1.0.0", "name": "net", "plugins": [{"type": "one"}]}));
    assert!(matches!(runner.gc(&old), Err(Error::TooOld { .. })));
    let older = list(&json!({"cniVersion": "0.3.1", "name": "net", "plugins": [{"type": "one"}]}));
    assert!(matches!(
        runner.check(&older, &attachment()),
        Err(Error::TooOld { .. })
    ));
    let mut other = attachment();
    other.container = "c2".to_owned();
    assert!(matches!(
        runner.check(&new, &other),
        Err(Error::NotAttached { .. })
    ));
}

#[test]
fn configurations_that_are_none_say_why() {
    for (text, reason) in [
        ("{", "EOF"),
        ("[]", "not a JSON object"),
        (
            r#"{"cniVersion":"1.0.0","plugins":[{"type":"x"}]}"#,
            "not a network's name",
        ),
        (
            r#"{"cniVersion":"1.0.0","name":"../x","plugins":[{"type":"x"}]}"#,
            "not a network's name",
        ),
        (
            r#"{"cniVersion":"1.0.0","name":"x","plugins":[]}"#,
            "names no plugin",
        ),
        (r#"{"cniVersion":"1.0.0","name":"x"}"#, "names no plugin"),
        (
            r#"{"cniVersion":"1.0.0","name":"x","plugins":{}}"#,
            "not a list",
        ),
        (
            r#"{"cniVersion":"1.0.0","name":"x","plugins":[1]}"#,
            "not a program's name",
        ),
        (
            r#"{"cniVersion":"1.0.0","name":"x","plugins":[{"type":"../../bin/sh"}]}"#,
            "not a program's name",
        ),
        (
            r#"{"cniVersion":"0.2.0","name":"x","type":"y"}"#,
            "not one from 0.3.0",
        ),
        (
            r#"{"cniVersion":"2.0.0","name":"x","type":"y"}"#,
            "not one from 0.3.0",
        ),
        (
            r#"{"cniVersion":"1","name":"x","type":"y"}"#,
            "not one from 0.3.0",
        ),
        (r#"{"name":"x","type":"y"}"#, "not one from 0.3.0"),
    ] {
        let error = List::parse(text.as_bytes(), Path::new("/n/x.conf")).unwrap_err();
        let shown = error.to_string();
        assert!(
            shown.contains("/n/x.conf") && shown.contains(reason),
            "{text}: {shown}"
        );
    }
    let folder = tempfile::tempdir().unwrap();
    let dir = folder.path();
    let missing = List::load(dir, "a").unwrap_err();
    assert_eq!(missing.class(), Class::NotFound);
    std::fs::write(
        dir.join("20-a.conflist"),
        r#"{"cniVersion":"1.0.0","name":"a","disableCheck":"true","plugins":[{"type":"x"}]}"#,
    )
    .unwrap();
    std::fs::write(
        dir.join("10-b.conf"),
        r#"{"cniVersion":"0.4.0","name":"b","type":"y"}"#,
    )
    .unwrap();
    std::fs::write(dir.join("readme.txt"), "not one").unwrap();
    assert!(List::load(dir, "a").unwrap().disable_check);
    assert_eq!(List::load(dir, "b").unwrap().plugins.len(), 1);
    let hint = List::load(dir, "c").unwrap_err().hint().unwrap();
    assert_eq!(hint, "there is b, a");
    std::fs::write(dir.join("30-c.json"), "{").unwrap();
    assert!(matches!(List::load(dir, "c"), Err(Error::BadList { .. })));
    assert!(List::load(dir, "a").is_ok());
}

#[test]
fn arguments_that_plugins_would_misread_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let list = list(&json!({"cniVersion": "1.0.0", "name": "net", "plugins": [{"type": "x"}]}));
    let runner = runner(folder.path());
    let change: [fn(&mut Attachment); 10] = [
        |a| a.container = "../x".to_owned(),
        |a| a.container = String::new(),
        |a| a.container = "a\nb".to_owned(),
        |a| a.interface = "..".to_owned(),
        |a| a.interface = "e/0".to_owned(),
        |a| a.interface = "sixteencharacter".to_owned(),
        |a| a.netns = "relative".to_owned(),
        |a| a.netns = String::new(),
        |a| a.args = vec![("A".to_owned(), "1;B=2".to_owned())],
        |a| a.args = vec![(String::new(), "1".to_owned())],
    ];
    for (index, change) in change.iter().enumerate() {
        let mut attachment = attachment();
        change(&mut attachment);
        let error = runner.add(&list, &attachment).unwrap_err();
        assert!(
            matches!(error, Error::BadArgument { .. }),
            "{index}: {error}"
        );
    }
    assert!(!folder.path().join("cache").exists());
}

fn programs(test: &str) -> bool {
    for (program, package) in [
        ("/usr/lib/cni/bridge", "containernetworking-plugins"),
        ("/usr/sbin/iptables", "iptables"),
    ] {
        if !Path::new(program).exists() {
            eprintln!("SKIP {test}: needs {program} ({package})");
            return false;
        }
    }
    true
}

/// The standard plugins: an address, a way in through a published port, and nothing left.
#[test]
fn debians_plugins_make_a_network_and_take_it_away() {
    const TEST: &str = "debians_plugins_make_a_network_and_take_it_away";
    if !programs(TEST) || !crate::testing::private(TEST) {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let list = list(&json!({"cniVersion": "1.0.0", "name": "lab", "plugins": [
        {"type": "bridge", "bridge": "lab0", "isGateway": true, "ipMasq": true, "hairpinMode": true,
         "ipam": {"type": "host-local", "dataDir": folder.join("ipam"),
                  "ranges": [[{"subnet": "10.77.0.0/24"}], [{"subnet": "fd77::/64"}]],
                  "routes": [{"dst": "0.0.0.0/0"}]}},
        {"type": "portmap", "capabilities": {"portMappings": true}, "snat": true},
        {"type": "firewall", "backend": "iptables"},
    ]}));
    let loopback = self::list(&json!({"cniVersion": "1.0.0", "name": "lo", "plugins": [
        {"type": "loopback"}]}));
    let namespace = crate::testing::namespace();
    let mut attachment = attachment();
    attachment.netns = format!("/proc/{}/fd/{}", std::process::id(), namespace.as_raw_fd());
    attachment.capabilities.insert(
        "portMappings".to_owned(),
        json!([{"hostPort": 8080, "containerPort": 80, "protocol": "tcp"}]),
    );
    // Its version 1.1.1 looks for the rules of IPv4 in ip6tables on CHECK, so that has no ports.
    let mut plain = attachment.clone();
    plain.capabilities.clear();
    let mut lo = attachment.clone();
    lo.interface = "lo".to_owned();
    let runner = Runner::new(folder.join("cache"));
    let rules = || {
        let saved = std::process::Command::new("/usr/sbin/iptables-save")
            .output()
            .unwrap();
        String::from_utf8(saved.stdout)
            .unwrap()
            .matches("c1")
            .count()
    };
    let leases = || {
        let files = std::fs::read_dir(folder.join("ipam/lab")).unwrap();
        let names = files.filter_map(|file| file.unwrap().file_name().into_string().ok());
        names.filter(|name| name.starts_with("10.77")).count()
    };
    for _ in 0..2 {
        runner.add(&loopback, &lo).unwrap();
        let result = runner.add(&list, &attachment).unwrap();
        assert_eq!(result.ips.len(), 2);
        let address = result.ips.first().unwrap().address.clone();
        let address = address.strip_suffix("/24").unwrap().to_owned();
        assert!(address.starts_with("10.77.0."), "{address}");
        assert!(
            result
                .interfaces
                .iter()
                .any(|interface| interface.name == "eth0")
        );
        runner.check(&list, &plain).unwrap();
        runner.check(&loopback, &lo).unwrap();
        assert!(rules() > 0);
        assert_eq!(leases(), 1);
        let listener = crate::within(namespace.as_fd(), || {
            Ok(TcpListener::bind("0.0.0.0:80").unwrap())
        })
        .unwrap();
        let server = std::thread::spawn(move || {
            for _ in 0..2 {
                listener.accept().unwrap().0.write_all(b"hello").unwrap();
            }
        });
        for place in [format!("{address}:80"), "10.77.0.1:8080".to_owned()] {
            let mut text = String::new();
            TcpStream::connect(&place)
                .unwrap()
                .read_to_string(&mut text)
                .unwrap();
            assert_eq!(text, "hello", "{place}");
        }
        server.join().unwrap();
        runner.del(&list, &attachment).unwrap();
        runner.del(&loopback, &lo).unwrap();
        // Once more does no harm.
        runner.del(&list, &attachment).unwrap();
        assert_eq!((rules(), leases()), (0, 0));
    }
    // CHECK sees that an address is gone.
    runner.add(&list, &attachment).unwrap();
    let flush = crate::within(namespace.as_fd(), || {
        let status = std::process::Command::new("/usr/sbin/ip")
            .args(["addr", "flush", "dev", "eth0"])
            .status();
        Ok(status.unwrap().success())
    });
    assert!(flush.unwrap());
    let error = runner.check(&list, &plain).unwrap_err().to_string();
    assert!(
        error.contains("bridge") && error.contains("network lab"),
        "{error}"
    );
    runner.del(&list, &attachment).unwrap();
}
